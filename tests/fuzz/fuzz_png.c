/* libFuzzer target: the bytes as a PNG picture, as they are and with the right checksums. */
#include "tests/fuzz/exercise_picture.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    exercise_png(data, size);
    return 0;
}

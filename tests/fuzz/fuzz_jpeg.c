/* libFuzzer target: the bytes as a JPEG picture. */
#include "tests/fuzz/exercise_picture.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    exercise_picture(data, size);
    return 0;
}

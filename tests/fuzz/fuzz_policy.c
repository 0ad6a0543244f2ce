/* libFuzzer target: the bytes are a YAML file of an augmentation policy (see README.md here for how to run it). */
#include "tests/fuzz/exercise_policy.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    exercise_policy(data, size);
    return 0;
}

/* libFuzzer target: the bytes are an index of shards beside two fixed shards (see README.md here for how to run it). */
#include <stddef.h>
#include <stdint.h>

#include "tests/fuzz/exercise_weights.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    exercise_index(data, size);
    return 0;
}

/* libFuzzer target: the bytes are a cache file, and also a value and a recipe (see README.md here for how to run it). */
#include <stddef.h>
#include <stdint.h>

#include "tests/fuzz/exercise_cache.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    exercise_pages(data, size);
    exercise_values(data, size);
    return 0;
}

/* libFuzzer target: the bytes are a cache file, whose pages are validated and, if they are accepted, walked by LMDB (see README.md here for how to run it). */
#include <stddef.h>
#include <stdint.h>

#include "tests/fuzz/exercise_cache.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    exercise_pages(data, size);
    return 0;
}

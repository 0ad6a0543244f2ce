/* libFuzzer target: the bytes are a feature record, an entry of an image or of a view, and a recipe, as they are and with their checksums put right. */
#include <stddef.h>
#include <stdint.h>

#include "tests/fuzz/exercise_cache.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    exercise_values(data, size);
    return 0;
}

/* libFuzzer target: the bytes are a legacy (non-zip) .pth, or what follows its magic number, protocol and system info (see README.md here for how to run it). */
#include <stddef.h>
#include <stdint.h>

#include "tests/fuzz/exercise_weights.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    exercise_legacy(data, size);
    return 0;
}

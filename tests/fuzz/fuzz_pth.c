/* libFuzzer target: bytes that begin with "PK" are a .pth; anything else is its pickle alone, because a fuzzer doesn't guess CRCs. */
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "common/weights/unpickle.h"
#include "tests/fuzz/exercise_weights.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size >= 2 && memcmp(data, "PK", 2) == 0) {
        exercise_weights(data, size);
        return 0;
    }
    kd_err err = {0};
    kd_pickle_list list = {0};
    kd_arena *arena = kd_arena_create();
    exercise_require(arena != NULL, "memory for an arena");
    kd_status status = kd_unpickle_tensors(data, size, "fuzz", arena, &list, &err);
    exercise_status(status, &err);
    exercise_require(status != KD_OK || list.count > 0, "success comes with tensors");
    kd_arena_destroy(arena);
    return 0;
}

/* Inside of common/weights only: tensors from a PyTorch pickle, without executing anything.
 *
 * Python's pickle is a program for a stack machine that may call any function. This machine knows numbers, strings, tuples, lists,
 * dictionaries and PyTorch's tensors; names of classes and functions are only compared with a short list, never looked up, and every other
 * call gives an opaque value that nobody can use. So a malicious file can at worst be refused.
 *
 * Every quantity is bounded (bytes, stack, memo, values, depth); a bound that is hit is an error with a sentence. */
#ifndef KD_COMMON_WEIGHTS_UNPICKLE_H
#define KD_COMMON_WEIGHTS_UNPICKLE_H

#include "common/base/mem.h"
#include "common/tensor/tensor.h"

enum { KD_PICKLE_MAX_BYTES = 64 << 20 };

/* A tensor as the pickle describes it: a view into the storage `key`, all numbers checked against storage_numel. */
typedef struct kd_pickle_tensor {
    const char *name; /* path through the nested dictionaries, joined with '.' */
    const char *key;  /* the storage is the container's entry PREFIX/data/KEY */
    kd_dtype dtype;
    int64_t storage_numel;
    int64_t offset;
    int rank;
    int64_t shape[KD_MAX_RANK], stride[KD_MAX_RANK];
} kd_pickle_tensor;

/* Runs the pickle and lists the tensors that its dictionaries and lists hold, in their order. Everything lives in arena.
 * `what` names the source in sentences. KD_EFAIL: malformed, a bound, views outside their storage.
 * KD_EUSAGE: an object that isn't a dictionary or list, no tensors in it, an element type that isn't read. */
kd_status kd_unpickle_tensors(const uint8_t *bytes, size_t size, const char *what, kd_arena *arena, kd_pickle_tensor **tensors, size_t *count,
                              kd_err *err);

#endif

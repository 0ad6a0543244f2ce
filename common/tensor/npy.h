/* The .npy format of NumPy (numpy/lib/format.py, version 1.0): one dense array in a file, for numpy.load.
 *
 *     const kd_tensor t = {.dtype = KD_F32, .rank = 2, .shape = {n, width}, .data = values};
 *     KD_TRY(kd_npy_write("photos.pooled.npy", &t, err));
 *
 * The bytes are those of numpy.save of NumPy 2 for the same array in C order. Thread rule: no shared state. */
#ifndef KD_COMMON_TENSOR_NPY_H
#define KD_COMMON_TENSOR_NPY_H

#include "common/tensor/tensor.h"

/* Writes atomically; t->name isn't used. KD_EFAIL: memory, or what the file system says; KD_ENOSPACE. bf16, which NumPy doesn't have, is our own mistake (asserted). */
kd_status kd_npy_write(const char *path, const kd_tensor *t, kd_err *err);

#endif

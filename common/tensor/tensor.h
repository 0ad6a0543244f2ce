/* A named host tensor: dense, row-major. A plain description; it doesn't own its data unless a function says so. */
#ifndef KD_COMMON_TENSOR_TENSOR_H
#define KD_COMMON_TENSOR_TENSOR_H

#include "common/base/err.h"
#include "common/tensor/dtype.h"

enum { KD_MAX_RANK = 8 };

typedef struct kd_tensor {
    const char *name;
    kd_dtype dtype;
    int rank;                   /* 0 = scalar (one element) */
    int64_t shape[KD_MAX_RANK];
    const void *data;
} kd_tensor;

/* Number of elements; asserts that the product doesn't overflow (parsers check first). */
size_t kd_tensor_numel(const kd_tensor *t);
/* "[2, 3, 224]" into buf. */
const char *kd_shape_text(const int64_t *shape, int rank, char *buf, size_t cap);
int kd_shape_equal(const int64_t *a, int rank_a, const int64_t *b, int rank_b);

#endif

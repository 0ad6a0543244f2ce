/* The one comparer of tensors, used by every test and by --compare modes. It can't be fooled: non-finite values are counted first
 * and fail, an empty input fails, a shape mismatch fails, and the test is written so that NaN never passes. */
#ifndef KD_COMMON_TENSOR_COMPARE_H
#define KD_COMMON_TENSOR_COMPARE_H

#include "common/tensor/tensor.h"

typedef struct kd_tolerance {
    double abs; /* a pair passes when |a-b| <= abs + rel * |b| */
    double rel;
    double min_cosine; /* of the whole tensors; 0 = not required */
} kd_tolerance;

typedef struct kd_comparison {
    int equal;              /* 1 only when everything below is within tolerance */
    size_t nonfinite;       /* in either tensor */
    size_t outside;         /* pairs outside the tolerance */
    size_t worst;           /* flat index of the largest |a-b| */
    double max_abs, rel_l2; /* max |a-b|; ||a-b|| / ||b|| */
    double cosine;
    double got, want;       /* values at `worst` */
    char text[400];         /* one line that says all this; begins with the tensor's name */
} kd_comparison;

/* got and want may have different dtypes (both floating, or both integer: then exact equality is demanded). */
kd_comparison kd_compare(const kd_tensor *got, const kd_tensor *want, kd_tolerance tol);

#endif

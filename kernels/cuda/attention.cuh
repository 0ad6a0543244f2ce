/* What the attention kernels share: where a head's rows lie, and the two paths. */
#ifndef KD_KERNELS_CUDA_ATTENTION_CUH
#define KD_KERNELS_CUDA_ATTENTION_CUH

#include "kernels/cuda/device.cuh"

typedef struct kd_attention {
    const void *x, *dy;
    void *y, *dx;
    float *lse, *delta; /* [N, heads, T]: base-2 logarithm of the sum of 2^(score log2 e); sum of dy y over the head. NULL when not wanted */
    size_t pairs;       /* N x heads */
    int tokens, heads, head;
    int x_bf16, y_bf16, add, whole; /* whole: rows may be moved in groups of eight */
    float scale;                    /* of the scores: 1 / sqrt(Dh) */
} kd_attention;

/* ---- where things lie ---- */

/* A head's rows in one of the tensors: element d of token t is p[at + t * stride + d]. */
typedef struct kd_head_rows {
    const void *p;
    size_t at;
    unsigned stride;
    int bf16;
} kd_head_rows;

/* Grid: x tiles of tokens, y and z pairs of image and head. */
static inline dim3 kd_attention_grid(const kd_attention *a, int rows_of_a_block, int columns) {
    size_t y = a->pairs < 65535 ? a->pairs : 65535;
    return dim3((unsigned)((a->tokens + rows_of_a_block - 1) / rows_of_a_block * columns), (unsigned)y, (unsigned)((a->pairs + y - 1) / y));
}
static __device__ __forceinline__ size_t kd_pair() {
    return (size_t)blockIdx.z * gridDim.y + blockIdx.y;
}

/* part: 0 q, 1 k, 2 v of x, or of dx. */
static __device__ __forceinline__ kd_head_rows kd_rows_of_x(const kd_attention &a, const void *x, size_t pair, int part) {
    size_t width = (size_t)a.heads * a.head, image = pair / a.heads;
    return kd_head_rows{x, image * a.tokens * 3 * width + part * width + (pair - image * a.heads) * a.head, 3 * (unsigned)width, a.x_bf16};
}
static __device__ __forceinline__ kd_head_rows kd_rows_of_y(const kd_attention &a, const void *y, size_t pair) {
    size_t width = (size_t)a.heads * a.head, image = pair / a.heads;
    return kd_head_rows{y, image * a.tokens * width + (pair - image * a.heads) * a.head, (unsigned)width, a.y_bf16};
}

/* ---- the paths: forward and backward each ---- */

/* Operands in bf16, heads of up to 128. */
kd_status kd_attention_tensor_forward(kd_cuda *b, const kd_attention *a, kd_err *err);
kd_status kd_attention_tensor_backward(kd_cuda *b, const kd_attention *a, kd_err *err);
/* delta, before either of the backward passes. */
kd_status kd_attention_row_products(kd_cuda *b, const kd_attention *a, kd_err *err);
/* Everything else. */
kd_status kd_attention_plain_forward(kd_cuda *b, const kd_attention *a, kd_err *err);
kd_status kd_attention_plain_backward(kd_cuda *b, const kd_attention *a, kd_err *err);

#endif

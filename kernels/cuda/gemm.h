/* Matrix products through cuBLASLt, the only place that knows it. Row-major, as everything here.
 *
 *     c[m,n] = alpha * op(a) op(b) + beta * c (+ bias[n]), batch times
 *
 * Prepared once for a shape: the algorithm is cuBLASLt's first choice for it, which depends on nothing but shape, device and library version, so a run and its resume use the same. f32 is full f32
 * (no TF32); bf16 multiplies bf16 and accumulates in f32.
 *
 *     kd_gemm_desc d = {.name = "similarities", .m = rows, .n = rows, .k = width, .ab = KD_F32, .c = KD_F32, .trans_b = 1};
 *     KD_TRY(kd_gemm_create(b, &g, &d, &scratch, err));
 *     KD_TRY(kd_gemm_run(b, g, c, a, a, NULL, at_least_scratch_bytes, err)); */
#ifndef KD_KERNELS_CUDA_GEMM_H
#define KD_KERNELS_CUDA_GEMM_H

#include "kernels/cuda/cuda.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct kd_gemm_desc {
    const char *name;     /* for messages */
    int64_t m, n, k;
    kd_dtype ab, c;       /* F32 or BF16; c BF16 only with ab BF16 */
    int trans_a, trans_b; /* a is [m,k], or [k,m] when trans_a; b is [k,n], or [n,k] when trans_b */
    int64_t lda, ldb, ldc;/* elements from row to row as they lie in memory; 0: dense */
    int64_t batch, stride_a, stride_b, stride_c; /* batch 0 is 1; a stride of 0 is one matrix for all (a and b only) */
    float alpha;          /* 0 is 1 */
    int accumulate;       /* beta = 1 */
    int bias, relu;       /* epilogue: + bias[n] (of c's type), then max(., 0) */
} kd_gemm_desc;

typedef struct kd_gemm kd_gemm;

kd_status kd_gemm_library_create(kd_gemm_library **out, kd_err *err);
void kd_gemm_library_destroy(kd_gemm_library *l); /* accepts NULL */
void kd_gemm_library_version(const kd_gemm_library *l, int *major, int *minor, int *patch);

/* *scratch: bytes that run needs, 64-byte aligned. KD_EFAIL: no algorithm. */
kd_status kd_gemm_create(kd_cuda *b, kd_gemm **out, const kd_gemm_desc *desc, size_t *scratch, kd_err *err);
void kd_gemm_destroy(kd_gemm *g); /* accepts NULL */

/* Addresses are multiples of 16 bytes, or of the largest power of two below that divides the distances between the operand's rows and batches: an asserted condition, for the algorithm was chosen
 * by it. bias: 16 bytes; NULL without one. */
kd_status kd_gemm_run(kd_cuda *b, kd_gemm *g, void *c, const void *a, const void *bm, const void *bias, void *scratch, kd_err *err);
/* With accumulate: `onto`, a matrix of c's type and layout, stands in for what c holds, which is only written. */
kd_status kd_gemm_run_onto(kd_cuda *b, kd_gemm *g, void *c, const void *onto, const void *a, const void *bm, const void *bias, void *scratch, kd_err *err);

#ifdef __cplusplus
}
#endif
#endif

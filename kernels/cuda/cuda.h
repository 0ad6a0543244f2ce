/* The cuda backend's inside: what its files share. One file per family of ops, each giving a kd_cuda_kind; cuda_backend.c is the table over them.
 *
 * Matrix products are cuBLASLt's (gemm.h), convolutions cuDNN's (cudnn_conv.h); everything that is bound by memory, and attention, is written here (device.cuh has what kernels share).
 * Work goes onto one stream in order. Copies between host and device go through pinned memory on streams of their own (transfer.h), so that they overlap with the work.
 * C and C++: the shared headers are C, so they are included as that. No managed memory, no atomics, one kernel launch wrapper that checks (device.cuh). */
#ifndef KD_KERNELS_CUDA_CUDA_H
#define KD_KERNELS_CUDA_CUDA_H

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cuda_runtime.h>

#ifdef __cplusplus
extern "C" {
#endif
#include "common/base/mem.h"
#include "kernels/backend.h"

typedef struct kd_gemm_library kd_gemm_library; /* gemm.h */
typedef struct kd_conv_library kd_conv_library; /* cudnn_conv.h */
typedef struct kd_transfer kd_transfer;         /* transfer.h */

typedef struct kd_cuda {
    kd_backend base;
    int ordinal;
    int processors; /* streaming multiprocessors: how many blocks are worth having */
    cudaStream_t stream;
    kd_transfer *transfer;
    kd_gemm_library *gemm;
    kd_conv_library *conv;
    float *reduction; /* KD_CUDA_PARTS doubles for sums over flat vectors */
    char about[200];
} kd_cuda;

enum { KD_CUDA_PARTS = 1024 };

typedef struct kd_cuda_kind {
    kd_status (*create)(kd_cuda *b, kd_op *op, kd_op_needs *needs, kd_err *err); /* fills op->impl; NULL: nothing to prepare */
    void (*destroy)(void *impl);
    kd_status (*pack)(kd_cuda *b, kd_op *op, const kd_op_args *a, kd_err *err);  /* NULL: nothing to pack */
    kd_status (*forward)(kd_cuda *b, kd_op *op, const kd_op_args *a, kd_err *err);
    kd_status (*backward)(kd_cuda *b, kd_op *op, const kd_op_args *a, kd_err *err); /* NULL: no gradient */
} kd_cuda_kind;

struct kd_op {
    kd_op_desc desc;
    const kd_cuda_kind *kind;
    void *impl;
};

extern const kd_cuda_kind kd_cuda_conv2d, kd_cuda_linear, kd_cuda_attention, kd_cuda_batch_norm, kd_cuda_layer_norm;
extern const kd_cuda_kind kd_cuda_normalize, kd_cuda_act, kd_cuda_silu_gate, kd_cuda_add, kd_cuda_scale_add, kd_cuda_mse, kd_cuda_mse_adjoint;
extern const kd_cuda_kind kd_cuda_max_pool, kd_cuda_mean_tokens, kd_cuda_tokens, kd_cuda_token_slice, kd_cuda_rope, kd_cuda_resize_bilinear;
extern const kd_cuda_kind kd_cuda_concat, kd_cuda_channel_slice, kd_cuda_channel_gate, kd_cuda_row_scale, kd_cuda_qkv_by_head;
extern const kd_cuda_kind kd_cuda_l2_normalize, kd_cuda_cosine, kd_cuda_smooth_l1, kd_cuda_kl_logits, kd_cuda_kl_queue, kd_cuda_kl_intra, kd_cuda_gram, kd_cuda_koleo;

/* --- flat vectors (cuda_flat.cu), target encoding (cuda_encode.cu): as in backend.h --- */
kd_status kd_cuda_sum_squares(kd_backend *b, float *out, const float *x, size_t n, kd_err *err);
kd_status kd_cuda_clip_scale(kd_backend *b, float *scale, const float *sumsq, float max_norm, kd_err *err);
kd_status kd_cuda_adamw(kd_backend *b, float *w, const float *g, float *m, float *v, size_t n, const kd_adamw *h, const float *scale, kd_err *err);
kd_status kd_cuda_sgd(kd_backend *b, float *w, const float *g, float *m, size_t n, const kd_sgd *h, const float *scale, kd_err *err);
kd_status kd_cuda_lars(kd_backend *b, float *w, const float *g, float *m, const uint64_t *begin, float *rate, size_t tensors, const kd_lars *h, const float *scale, kd_err *err);
kd_status kd_cuda_ema(kd_backend *b, float *e, const float *w, size_t n, float decay, kd_err *err);
kd_status kd_cuda_encode(kd_backend *b, uint8_t *out, kd_encode_stats *stats, const float *x, size_t records, const kd_encode_spec *spec, void *scratch, kd_err *err);

/* The current device belongs to the host's thread, and a backend may be used by another one than opened it: every function of the table begins with this. */
kd_cuda *kd_cuda_use(kd_backend *b);

/* --- errors (cuda_backend.c) --- */

/* KD_OK for cudaSuccess; else KD_EFAIL, or KD_ENODEVICE when the device is gone or has no room, with a sentence that begins with `what`. */
kd_status kd_cuda_check(cudaError_t status, const char *what, kd_err *err);

/* --- loops that files share (cuda_loops.cu) --- */

/* All dimensions of a tensor but the last, and the last. */
static inline size_t kd_cuda_rows(const kd_tdesc *t) {
    return kd_tdesc_numel(t) / (size_t)t->shape[t->rank - 1];
}
static inline size_t kd_cuda_width(const kd_tdesc *t) {
    return (size_t)t->shape[t->rank - 1];
}

/* A region of a scratch buffer, 64-byte aligned: returns the offset and advances *at. */
static inline size_t kd_cuda_region(size_t *at, size_t bytes) {
    size_t begin = *at;
    *at = (begin + bytes + 63) / 64 * 64;
    return begin;
}
static inline void *kd_cuda_at(void *base, size_t offset) {
    return (char *)base + offset;
}

/* dst = src, or dst += src, between F32 and BF16; n elements. */
kd_status kd_cuda_copy(kd_cuda *b, void *dst, kd_dtype dst_type, const void *src, kd_dtype src_type, size_t n, int add, kd_err *err);

/* out[width] += sums over `rows` of g, or of g * times, rows lying `stride` elements apart. Two passes with partial sums in scratch (kd_cuda_columns_bytes), in an order that only
 * depends on the shape. */
typedef struct kd_cuda_columns {
    float *out;
    const void *g, *times; /* times may be NULL */
    kd_dtype g_type, times_type;
    size_t rows, stride, width;
    void *scratch;
} kd_cuda_columns;
size_t kd_cuda_columns_bytes(size_t rows, size_t width);
kd_status kd_cuda_add_columns(kd_cuda *b, const kd_cuda_columns *c, kd_err *err);

/* g = dy * act' at `at`, the activation's input; for RELU y serves as well. NONE only converts. */
typedef struct kd_cuda_act_grad {
    void *g;
    const void *dy, *at;
    kd_dtype g_type, dy_type, at_type;
    kd_act act;
    int add; /* g += instead */
} kd_cuda_act_grad;
kd_status kd_cuda_act_backward(kd_cuda *b, const kd_cuda_act_grad *c, size_t n, kd_err *err);

/* y = act(x + bias), bias[width] f32 or NULL; n = rows * width. y may be x. */
kd_status kd_cuda_act_forward(kd_cuda *b, void *y, kd_dtype y_type, const void *x, kd_dtype x_type, const float *bias, size_t width, kd_act act, size_t n, kd_err *err);

#ifdef __cplusplus
}
#endif
#endif

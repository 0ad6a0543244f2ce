/* The cpu backend's inside: what its files share. One file per family of ops, each giving a kd_cpu_kind; cpu_backend.c is the table over them.
 * Convolutions are our own (product.h, outer.h; 3x3 of f32 winograd.h), as are linear layers of f32 on CPUs with AVX2 and without AVX-512, and with AVX-512 attention and linear layers (matmul.h; in training product.h and outer.h): there they are as fast as
 * oneDNN's (dnn.h) or faster and keep no packed copies of weights. oneDNN has the rest: with AVX-512 windows over a photo's three channels and layers of few values, groups, and CPUs without AVX2. Everything that is bound by memory is written here with simd.h. */
#ifndef KD_KERNELS_CPU_CPU_H
#define KD_KERNELS_CPU_CPU_H

#include "kernels/backend.h"
#include "kernels/cpu/dnn.h"

typedef struct kd_cpu {
    kd_backend base;
    kd_dnn_engine *engine;
    char about[160];
} kd_cpu;

typedef struct kd_cpu_kind {
    kd_status (*create)(kd_cpu *b, kd_op *op, kd_op_needs *needs, kd_err *err); /* fills op->impl; NULL: nothing to prepare */
    void (*destroy)(void *impl);
    kd_status (*pack)(kd_cpu *b, kd_op *op, const kd_op_args *a, kd_err *err);  /* NULL: nothing to pack */
    kd_status (*forward)(kd_cpu *b, kd_op *op, const kd_op_args *a, kd_err *err);
    kd_status (*backward)(kd_cpu *b, kd_op *op, const kd_op_args *a, kd_err *err); /* NULL: no gradient */
} kd_cpu_kind;

struct kd_op {
    kd_op_desc desc;
    const kd_cpu_kind *kind;
    void *impl;
};

extern const kd_cpu_kind kd_cpu_conv2d, kd_cpu_linear, kd_cpu_attention, kd_cpu_batch_norm, kd_cpu_layer_norm;
extern const kd_cpu_kind kd_cpu_normalize, kd_cpu_act, kd_cpu_silu_gate, kd_cpu_add, kd_cpu_scale_add, kd_cpu_mse, kd_cpu_mse_adjoint;
extern const kd_cpu_kind kd_cpu_max_pool, kd_cpu_mean_tokens, kd_cpu_tokens, kd_cpu_token_slice, kd_cpu_rope, kd_cpu_resize_bilinear;
extern const kd_cpu_kind kd_cpu_concat, kd_cpu_channel_slice, kd_cpu_channel_gate, kd_cpu_row_scale, kd_cpu_qkv_by_head;
extern const kd_cpu_kind kd_cpu_l2_normalize, kd_cpu_cosine, kd_cpu_smooth_l1, kd_cpu_kl_logits, kd_cpu_kl_queue, kd_cpu_kl_intra, kd_cpu_gram, kd_cpu_koleo;
/* The same ops, compiled for AVX-512 (simd.h). */
extern const kd_cpu_kind kd_cpu_batch_norm_avx512, kd_cpu_layer_norm_avx512, kd_cpu_max_pool_avx512, kd_cpu_resize_bilinear_avx512;

/* Whether every product of f32 is our own: AVX2 without AVX-512. */
int kd_cpu_f32_here(void);
/* What does d in place of the table's kind (cpu_product.c): convolutions without groups and linear layers, on CPUs with AVX2 and without AVX-512 those of f32, with AVX-512 of linear layers those in training. NULL: nothing. */
const kd_cpu_kind *kd_cpu_product_kind(const kd_op_desc *d);
/* Likewise (cpu_linear_avx512.c): linear layers outside training on CPUs with AVX-512. */
const kd_cpu_kind *kd_cpu_wide_linear(const kd_op_desc *d);

/* --- depthwise convolutions (cpu_depthwise.c) --- */
int kd_cpu_is_depthwise(const kd_op_desc *d); /* one input and one output channel per group, several groups */
/* dw[C,1,k,k] += the gradient of d's weights, from x and g (gradient of the product), both of `type`; scratch: kd_cpu_depthwise_bytes. */
void kd_cpu_depthwise_dw(int threads, const kd_op_desc *d, float *dw, const void *x, const void *g, kd_dtype type, void *scratch);
size_t kd_cpu_depthwise_bytes(const kd_op_desc *d, int threads);

/* --- flat vectors (cpu_flat.c) --- */
kd_status kd_cpu_sum_squares(kd_backend *b, float *out, const float *x, size_t n, kd_err *err);
kd_status kd_cpu_clip_scale(kd_backend *b, float *scale, const float *sumsq, float max_norm, kd_err *err);
kd_status kd_cpu_adamw(kd_backend *b, float *w, const float *g, float *m, float *v, size_t n, const kd_adamw *h, const float *scale, kd_err *err);
kd_status kd_cpu_sgd(kd_backend *b, float *w, const float *g, float *m, size_t n, const kd_sgd *h, const float *scale, kd_err *err);
kd_status kd_cpu_lars(kd_backend *b, float *w, const float *g, float *m, const uint64_t *begin, float *rate, size_t tensors, const kd_lars *h, const float *scale, kd_err *err);
kd_status kd_cpu_ema(kd_backend *b, float *e, const float *w, size_t n, float decay, kd_err *err);

/* --- target encoding (cpu_encode.c) --- */
kd_status kd_cpu_encode(kd_backend *b, uint8_t *out, kd_encode_stats *stats, const float *x, size_t records, const kd_encode_spec *spec, void *scratch, kd_err *err);

/* --- loops (cpu_loops.c) --- */

enum { KD_CPU_MAX_THREADS = 256 }; /* of arrays with an entry per thread */

/* fn(ctx, slice, begin, end) for `threads` slices of [0, n), in parallel; slice i of a given thread count is always the same range, and some may be empty
 * (then fn isn't called). Borders are multiples of 16 elements when unit is 1. unit: elements per index, so that small work stays on the calling thread. */
typedef void (*kd_cpu_range)(const void *ctx, int slice, size_t begin, size_t end);
void kd_cpu_parallel(int threads, size_t n, size_t unit, kd_cpu_range fn, const void *ctx);
/* As kd_cpu_parallel, but a thread that is done takes more of what is left, in ranges of any border: for work whose result doesn't depend on who does what. Where a processor is shared with other work, the slowest thread
 * doesn't decide. slice: the thread's, 0 .. threads - 1, for its scratch; fn is called several times with the same. */
void kd_cpu_share(int threads, size_t n, size_t unit, kd_cpu_range fn, const void *ctx);

/* Rows and width of a tensor: the last dimension and all others. */
size_t kd_cpu_rows(const kd_tdesc *t);
size_t kd_cpu_width(const kd_tdesc *t);

/* A region of a scratch buffer, 64-byte aligned: returns the offset and advances *at. */
size_t kd_cpu_region(size_t *at, size_t bytes);
void *kd_cpu_at(void *base, size_t offset);

/* dst = src, or dst += src, between F32 and BF16. */
void kd_cpu_copy(int threads, void *dst, kd_dtype dst_type, const void *src, kd_dtype src_type, size_t n, int add);
/* out[width] += sums over `rows` of g, or of g * times, which lie `stride` elements apart from row to row (f64 inside, order independent of the thread count). */
typedef struct kd_cpu_columns {
    float *out;
    const void *g, *times; /* times may be NULL */
    kd_dtype g_type, times_type;
    size_t rows, stride, width;
} kd_cpu_columns;
void kd_cpu_add_columns(int threads, const kd_cpu_columns *c);
/* db[out] += the sums of the gradient of d's product (conv2d, linear): of g, which has x's type, or without an activation of dy itself, which isn't rounded. */
void kd_cpu_add_bias_gradient(int threads, const kd_op_desc *d, float *db, const void *dy, const void *g);
/* g = dy * act' at `at`, the activation's input; for RELU y serves as well. NONE only converts. */
typedef struct kd_cpu_act_grad {
    void *g;
    const void *dy, *at;
    kd_dtype g_type, dy_type, at_type;
    kd_act act;
    int add; /* g += instead */
} kd_cpu_act_grad;
void kd_cpu_act_backward(int threads, const kd_cpu_act_grad *c, size_t n);
/* y = act(x). */
void kd_cpu_act_forward(int threads, void *y, kd_dtype y_type, const void *x, kd_dtype x_type, kd_act act, size_t n);

#endif

/* The arithmetic of the reference backend: every op as a plain function on arrays of double.
 *
 * ref_backend.c converts f32 and bf16 buffers to double, calls these, and rounds once at the end; the gradient test calls them directly,
 * so that central differences aren't drowned by f32 rounding. Nothing is kept from forward to backward: backward recomputes what it
 * needs from x, which is slow and simple. When x[0] is BF16 the operands of matrix products are rounded as ops.h says.
 *
 *     const kd_ref_core *c = kd_ref_core_of(KD_OP_LINEAR);
 *     double *work = ...c->work(&desc) doubles...
 *     c->forward(&desc, &(kd_ref_vals){.x = {x}, .param = {w, b}, .y = y, .work = work});
 *
 * Thread rule: no shared state. */
#ifndef KD_KERNELS_REF_CORE_H
#define KD_KERNELS_REF_CORE_H

#include "kernels/ops.h"

/* As kd_op_args, in double. dx and dparam receive the gradient (they are overwritten, not added to); NULL: not wanted. */
typedef struct kd_ref_vals {
    const double *x[KD_OP_MAX_X];
    double *y;
    const double *param[KD_OP_MAX_PARAM];
    double *state[KD_OP_MAX_STATE];
    const double *dy;
    double *dx[KD_OP_MAX_X];
    double *dparam[KD_OP_MAX_PARAM];
    double *work;
} kd_ref_vals;

typedef struct kd_ref_core {
    void (*forward)(const kd_op_desc *d, const kd_ref_vals *v);
    void (*backward)(const kd_op_desc *d, const kd_ref_vals *v); /* NULL: no gradient (normalize) */
    size_t (*work)(const kd_op_desc *d);                         /* doubles that forward and backward need; NULL: none */
} kd_ref_core;

const kd_ref_core *kd_ref_core_of(kd_op_kind kind);

/* One entry per file of this folder. */
extern const kd_ref_core kd_ref_conv2d, kd_ref_linear, kd_ref_attention;
extern const kd_ref_core kd_ref_batch_norm, kd_ref_layer_norm;
extern const kd_ref_core kd_ref_normalize, kd_ref_relu, kd_ref_gelu, kd_ref_silu, kd_ref_hardswish, kd_ref_hardsigmoid, kd_ref_silu_gate, kd_ref_add, kd_ref_scale_add, kd_ref_mse;
extern const kd_ref_core kd_ref_channel_gate, kd_ref_row_scale;
extern const kd_ref_core kd_ref_mean_tokens, kd_ref_tokens, kd_ref_token_slice, kd_ref_rope, kd_ref_concat, kd_ref_channel_slice, kd_ref_qkv_by_head;
extern const kd_ref_core kd_ref_max_pool, kd_ref_resize_bilinear, kd_ref_mse_adjoint;
extern const kd_ref_core kd_ref_l2_normalize, kd_ref_cosine, kd_ref_smooth_l1, kd_ref_kl_logits;
extern const kd_ref_core kd_ref_kl_queue, kd_ref_kl_intra, kd_ref_gram, kd_ref_koleo;

/* --- helpers shared by the files (ref_math.c) --- */

/* act(x), and its derivative at x. */
double kd_ref_act(kd_act act, double x);
double kd_ref_dact(kd_act act, double x);

/* Operand of a matrix product: rounded to bf16 when the op's x[0] is BF16, else unchanged. */
double kd_ref_operand(const kd_op_desc *d, double v);
void kd_ref_operands(const kd_op_desc *d, double *v, size_t n);

/* A matrix inside a larger array: element (i, j) is at[i * row + j * col]. */
typedef struct kd_ref_mat {
    const double *at;
    int64_t row, col;
} kd_ref_mat;

/* c[m,n] += a[m,k] b[k,n]; rows of b and c are contiguous, their distances are b_row and c_row. */
void kd_ref_matmul_add(double *c, int64_t c_row, kd_ref_mat a, const double *b, int64_t b_row, int64_t m, int64_t k, int64_t n);

/* out[n,m] = in[m,n] transposed. */
void kd_ref_transpose(double *out, const double *in, int64_t m, int64_t n);

double kd_ref_dot(const double *a, const double *b, int64_t n);

/* y = x / max(|x|, eps); returns |x|. Its backward: dx from dy, y and that norm (ops.h, l2_normalize); dx may be dy. */
double kd_ref_normalize_row(double *y, const double *x, int64_t n, double eps);
void kd_ref_normalize_row_backward(double *dx, const double *dy, const double *y, double norm, int64_t n, double eps);

/* KL(t / temperature || s / temperature) of two rows of n scores (ops.h). difference, unless NULL: q - p, the gradient by s / temperature. */
double kd_ref_kl_row(double *difference, const double *s, const double *t, int64_t n, double temperature);

/* Sizes: all dimensions but the last, and the last. */
int64_t kd_ref_rows(const kd_tdesc *t);
int64_t kd_ref_width(const kd_tdesc *t);

#endif

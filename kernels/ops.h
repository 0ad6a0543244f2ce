/* Ops: the contract that ref, cpu and cuda implement. One op = one node of a graph, prepared once for fixed shapes and run many times.
 *
 * Shape legend: N batch, H W height and width, C channels, T tokens, D width, P patches. Activations are dense and channels-last: a map is [N,H,W,C], tokens are
 * [N,T,D], so a map of patches is the same memory as its tokens. Parameters keep the reference library's shapes (convolution [O,I,kh,kw], linear [O,I]) and are always f32; what layout or precision
 * a backend multiplies with is its own business (op_pack).
 *
 * Precision: an activation is F32 or BF16 (kd_tdesc.dtype); a gradient has the dtype of its value. When x[0] is BF16, conv2d, linear and attention multiply bf16 by bf16 (weights, probabilities and incoming
 * gradients rounded to nearest even) and accumulate in f32; bias, activation, normalisation, softmax and losses compute in f32 and round once at the output. Parameter gradients are f32.
 *
 * Backward rule: parameter gradients accumulate (dparam += ...); activation gradients overwrite (dx = ...) unless the desc's add_dx bit says that they are added (dx += ...).
 * In training mode x, y and saved of the forward pass are still valid when backward is called, but for those that the op doesn't need (kd_op_needs.unread).
 * In inference the result's bits don't depend on the number of threads (caches are equal whatever made them); gradient reductions have a fixed order for a fixed thread count. */
#ifndef KD_KERNELS_OPS_H
#define KD_KERNELS_OPS_H

#include <stddef.h>
#include <stdint.h>

#include "common/tensor/dtype.h"

enum { KD_OP_MAX_X = 8, KD_OP_MAX_PARAM = 4, KD_OP_MAX_STATE = 2, KD_OP_MAX_RANK = 4, KD_OP_MAX_PERIODS = 64 };

typedef enum kd_op_kind {
    /* x0 U8 [N,H,W,3] -> y [N,H,W,3]: y = (x/255 - mean) / std, in f32 with true divisions (torchvision ToTensor, Normalize). No gradient. */
    KD_OP_NORMALIZE,
    /* x0 [N,H,W,I], param0 weight [O,I/groups,k,k], param1 bias [O] if desc.bias -> y [N,Ho,Wo,O]; Ho = (H + 2 pad - k) / stride + 1, zero padding, cross-correlation.
     * Output channel o sees the input channels of its group: those from (o / (O/groups)) * (I/groups) on, I/groups many (torch.nn.Conv2d). groups = I = O: depthwise. act RELU or NONE. */
    KD_OP_CONV2D,
    /* x0 [.., I] -> y [.., O] (leading dimensions are rows): y = act(x W^T + b), param0 weight [O,I], param1 bias [O] if desc.bias. act NONE, RELU, GELU (exact, erf).
     * With desc.residual (inference only): y = x1 + param2 * (x W^T + b), x1 like y, param2 gamma [O] or absent (then 1); act NONE. */
    KD_OP_LINEAR,
    /* x0 [N,H,W,C], param0 weight [C], param1 bias [C], state0 running mean [C], state1 running variance [C] -> y. act NONE or RELU, with one input also SILU or HARDSWISH; applied last.
     * train: batch statistics (biased variance to normalise), running = (1-momentum) running + momentum * batch (unbiased variance), torch.nn.BatchNorm2d. Otherwise the running ones.
     * With two inputs: y = act(bn(x0) + x1), the join of a residual block; dx1 = gradient after the activation. */
    KD_OP_BATCH_NORM,
    /* x0 [.., D], param0 weight [D], param1 bias [D] -> y: over the last dimension, biased variance, eps inside the root. */
    KD_OP_LAYER_NORM,
    KD_OP_RELU, /* x0 -> y */
    KD_OP_GELU, /* x0 -> y: 0.5 x (1 + erf(x / sqrt 2)) */
    KD_OP_SILU, /* x0 -> y: x / (1 + e^-x) */
    /* x0 -> y: x r, r = min(max(x + 3, 0), 6) / 6. Gradient: 0 for x <= -3, x/3 + 1/2 between, 1 for x >= 3 (torch.nn.Hardswish) */
    KD_OP_HARDSWISH,
    KD_OP_HARDSIGMOID, /* x0 -> y: min(max(x + 3, 0), 6) / 6. Gradient: 1/6 for -3 < x < 3, else 0 (torch.nn.Hardsigmoid) */
    /* x0 [.., 2F] -> y [.., F]: silu(x[..F]) * x[F..] (DINOv2 SwiGLUFFNFused) */
    KD_OP_SILU_GATE,
    KD_OP_ADD, /* x0 + x1 -> y, same shapes; act NONE or RELU. x0, x1 and y may differ in dtype. */
    /* x0 + gamma * x1 -> y [.., D], param0 gamma [D] (LayerScale and its residual join) */
    KD_OP_SCALE_ADD,
    KD_OP_MAX_POOL,  /* x0 [N,H,W,C] -> y: k, stride, pad; padding never wins; ties: the first in row-major order gets the gradient */
    KD_OP_MEAN_TOKENS, /* x0 [N,T,D] or [N,H,W,D] -> y [N,D]: mean over positions (global average pooling) */
    /* x0 [N,T,3D] rows q|k|v, each D = heads x Dh -> y [N,T,D]: softmax(q k^T / sqrt(Dh)) v per head, heads concatenated */
    KD_OP_ATTENTION,
    /* x0 [N,T,3D] rows q|k|v as for attention -> y, same shape and dtype. Tokens begin..T-1 are the patches of a grid_h x grid_w grid in row-major order; their q and k are
     * rotated by their position, head by head, everything else (tokens before begin, all v) is copied. With Dh = D / heads, Dh/4 = periods, h = Dh/2, and the patch in row r, column c:
     *     angle[j] = 2 pi (2 (r + .5) / grid_h - 1) / period[j]            for j < Dh/4
     *     angle[j] = 2 pi (2 (c + .5) / grid_w - 1) / period[j - Dh/4]     for Dh/4 <= j < h
     *     y[j] = x[j] cos angle[j] - x[j+h] sin angle[j];  y[j+h] = x[j+h] cos angle[j] + x[j] sin angle[j]
     * The angles are f32, made in the order of DINOv3's f32 operations (kd_op_rope_table; dinov3/layers/rope_position_encoding.py, attention.py); the gradient turns back. */
    KD_OP_ROPE,
    /* x0 [N,P,D], param0 class token [D], param1 positions [1+P,D] if desc.positions, param2 registers [R,D] if desc.registers = R > 0 -> y [N,1+R+P,D]:
     * row 0 = class token (+ positions[0]), rows 1..R = registers (they have no position), row 1+R+p = x0[p] (+ positions[1+p]) */
    KD_OP_TOKENS,
    /* x0 [N,T,D] -> y [N,n,D] = rows begin .. begin+n-1 */
    KD_OP_TOKEN_SLICE,
    KD_OP_CONCAT, /* x0 [..,A], x1 [..,B], .. (2 to KD_OP_MAX_X inputs) -> y [..,A+B+..], each row that of x0, then that of x1, and so on; one dtype */
    KD_OP_CHANNEL_SLICE, /* x0 [..,C] -> y [..,n] = channels begin .. begin+n-1 of every row; one dtype */
    /* x0 [N,..,C], x1 [N,C] or [N,1,1,C] -> y like x0: every position times its image's x1 (squeeze and excitation). dx1 = sum over positions of dy x0. */
    KD_OP_CHANNEL_GATE,
    KD_OP_ROW_SCALE, /* x0 [N,..], x1 F32 [N,1] -> y like x0: every image times its x1 (drop path). No dx1. */
    /* x0 [N,T,heads x (2 Dk + Dh)], every head's q (Dk), k (Dk), v (Dh) beside each other (ultralytics Attention) -> y [N,T,3 heads Dh] rows q|k|v as attention takes them: q and k filled up
     * with zeros from Dk = desc.key_dim to Dh, and q times f32 sqrt(Dh/Dk), so that attention's q k / sqrt(Dh) is q k / sqrt(Dk). One dtype. */
    KD_OP_QKV_BY_HEAD,
    /* x0 [N,h,w,D] -> y [N,H,W,D]: bilinear, align_corners = false, no antialiasing (torch.nn.functional.interpolate), source index clamped at 0 */
    KD_OP_RESIZE_BILINEAR,
    /* x0 prediction F32, x1 target F32 (same shape) -> y F32 [1] = mean over all elements of (x0 - x1)^2, summed in f64. dx0 = *dy * 2 / count * (x0 - x1); no dx1. */
    KD_OP_MSE,
    /* The same loss against a full grid t [N,H,W,D] that is known only as x1 = a = U^T t and x2 = |t|^2, with U the bilinear upsampling to grid_h x grid_w = H x W as in
     * resize_bilinear (common/tensor/target.h, adjoint): x0 prediction s F32 [N,K,L,D], x1 F32 like x0, x2 F32 [N,1] -> y F32 [1] = sum over n (|U s_n|^2 - 2 <s_n, a_n> + x2_n)
     * / (N H W D), the mean of (U s - t)^2, summed in f64. dx0 = *dy * 2 / (N H W D) * (U^T U s - a); no dx1, dx2. */
    KD_OP_MSE_ADJOINT,
    /* x0 [.., D] -> y: each row (over the last dimension) x / max(|x|, KD_OP_L2_EPS) (torch.nn.functional.normalize). dx = (dy - y <y, dy>) / |x|; where |x| is below the limit, which is
     * then a constant, dx = dy / KD_OP_L2_EPS. */
    KD_OP_L2_NORMALIZE,
    /* The losses from here on: x0 prediction F32, x1 target F32 of the same shape -> y F32 [1]. dx0 = *dy times the derivative; no dx1. A NaN in x0 or x1 gives NaN. "rows" are the vectors over
     * the last dimension, R their number, s and t a row of x0 and x1, s^ and t^ those rows as l2_normalize makes them, T = temperature > 0, and
     *     KL(t || s) = sum over j of p_j (log p_j - log q_j), p = softmax(t), q = softmax(s)
     * Sums over rows are in f64. */
    /* mean over rows of 1 - <s, t> / (max(|s|, KD_OP_COSINE_EPS) max(|t|, KD_OP_COSINE_EPS)) (torch.nn.functional.cosine_similarity) */
    KD_OP_COSINE,
    /* mean over all elements of e^2 / (2 beta) where |e| < beta, else |e| - beta / 2, with e = x0 - x1 and beta > 0 (torch.nn.SmoothL1Loss) */
    KD_OP_SMOOTH_L1,
    /* T^2 / R times the sum over rows of KL(t / T || s / T): Hinton's distillation of logits (torch.nn.KLDivLoss, batchmean over rows). d = *dy T / R (q - p). */
    KD_OP_KL_LOGITS,
    /* x0, x1 [N,D], state0 queue Q [queue_rows, D] -> 1 / N times the sum over rows of KL(Q t^ / T || Q s^ / T), without a factor T^2 (LightlyTrain's first distillation method).
     * train: before the loss, the queue moves down by N rows (the last ones fall out) and the batch's t^ become its first rows, row 0 = image 0; with N >= queue_rows it is the first queue_rows
     * of them. Otherwise the queue stays as it is. Rows never filled are zero and take part with similarity 0. Backward reads the queue as forward left it. */
    KD_OP_KL_QUEUE,
    /* x0, x1 [N,P,D] or [N,h,w,D] with P = h w -> 1 / (N P) times the sum over images and patches i of KL(t^_i T^ / T || s^_i S^ / T), where s^_i S^ are the P similarities of patch i with all
     * patches of its image, itself included (the local term of LightlyTrain's third method). The gradient flows through both factors. */
    KD_OP_KL_INTRA,
    /* x0, x1 as for kl_intra -> mean over N, i, j of (<s^_i, s^_j> - <t^_i, t^_j>)^2 (DINOv3 loss/gram_loss.py: normalized, img_level, remove_neg false) */
    KD_OP_GRAM,
    /* x0 [N,D], N >= 2, no x1 -> - mean over i of log(|u_i| + KD_OP_KOLEO_EPS), u_i = y_i - y_j + KD_OP_KOLEO_EPS in every element, y = x / max(|x|, KD_OP_KOLEO_EPS), j the row other than i with the
     * largest <y_i, y_j>, of equals the lowest (DINOv2 loss/koleo_loss.py with torch.nn.PairwiseDistance(2, eps=1e-8), which adds eps to the difference; there the row itself counts
     * with -1 instead of being left out, which is the same but for rounding). The gradient flows into y_i and y_j; the choice of j is a constant, and where u_i = 0, so is |u_i|. */
    KD_OP_KOLEO,
    KD_OP_KINDS
} kd_op_kind;

typedef enum kd_act { KD_ACT_NONE = 0, KD_ACT_RELU = 1, KD_ACT_GELU = 2, KD_ACT_SILU = 3, KD_ACT_HARDSWISH = 4, KD_ACT_HARDSIGMOID = 5 } kd_act; /* formulas: at the ops of these names */

typedef struct kd_tdesc {
    kd_dtype dtype; /* KD_F32, KD_BF16; KD_U8 only for NORMALIZE */
    int rank;
    int64_t shape[KD_OP_MAX_RANK];
} kd_tdesc;

typedef struct kd_op_desc {
    kd_op_kind kind;
    const char *name; /* for messages and profiles: "layer1.0.conv1" */
    int inputs;
    kd_tdesc x[KD_OP_MAX_X], y;
    int train;         /* backward will be called (and batch norm uses batch statistics) */
    int changing;      /* outside training: parameters change about as often as the op runs (validation), so that a packed copy isn't worth its memory. A backend may keep one nevertheless */
    unsigned need_dx;  /* bit i: dx[i] is wanted; clear for the first layer */
    unsigned add_dx;   /* bit i: dx[i] is added to, else overwritten */
    int need_dparam;   /* 0: parameters are frozen */
    int kernel, stride, pad; /* conv2d, max_pool */
    int groups;              /* conv2d; 0 is 1 */
    int bias, residual;
    kd_act act;
    int heads, begin;
    int key_dim;                    /* qkv_by_head */
    int positions, registers;       /* tokens */
    int grid_h, grid_w;             /* rope, mse_adjoint */
    int periods;                    /* rope */
    float period[KD_OP_MAX_PERIODS];
    float eps, momentum;
    float mean[3], std[3]; /* normalize */
    float temperature;     /* kl_logits, kl_queue, kl_intra */
    float beta;            /* smooth_l1 */
    int queue_rows;        /* kl_queue */
} kd_op_desc;

/* Below these norms a row is divided by the limit instead: torch.nn.functional.normalize, cosine_similarity, DINOv2's koleo_loss.py. */
#define KD_OP_L2_EPS 1e-12
#define KD_OP_COSINE_EPS 1e-8
#define KD_OP_KOLEO_EPS 1e-8

/* What an op wants from the planner, in bytes (each region is 64-byte aligned). */
typedef struct kd_op_needs {
    size_t packed;  /* lives as long as the parameters: repacked weights */
    size_t saved;   /* from forward to backward of one step */
    size_t scratch; /* during one call */
    unsigned unread;   /* training: bit i says that op_backward doesn't read x[i], KD_OP_UNREAD_Y that it doesn't read y: their memory may hold something else by then. Not in bytes */
    unsigned consumed; /* inference: bit i says that op_forward doesn't read param[i] once op_pack has run, so that its memory may go (param[i] may then be NULL). Not in bytes */
} kd_op_needs;
#define KD_OP_UNREAD_Y (1u << KD_OP_MAX_X)

/* Pointers for one call; all device addresses. Unused ones are NULL. */
typedef struct kd_op_args {
    const void *x[KD_OP_MAX_X];
    void *y;
    const float *param[KD_OP_MAX_PARAM];
    float *state[KD_OP_MAX_STATE];
    void *packed, *saved, *scratch;
    const void *dy;
    void *dx[KD_OP_MAX_X];
    float *dparam[KD_OP_MAX_PARAM];
} kd_op_args;

const char *kd_op_kind_name(kd_op_kind k);
size_t kd_tdesc_numel(const kd_tdesc *t);
size_t kd_tdesc_bytes(const kd_tdesc *t);

/* Checks a desc against the contract above (ranks, shapes, dtypes, attributes); asserts with the op's name when it is violated: a builder's bug, not input.
 * Called by every backend's op_create. Lives in kernels/ops.c; a module finds it in the program that loads it (programs are linked with -rdynamic). */
void kd_op_check(const kd_op_desc *d);
/* Elements of parameter (state) i, 0 when the op has none there. The gamma of a residual linear counts although it may be absent. */
size_t kd_op_param_numel(const kd_op_desc *d, int i);
size_t kd_op_state_numel(const kd_op_desc *d, int i);
/* kd_op_needs.unread of a backward pass that computes what it can from x, dy and what it has saved: the cpu's, and cuda's where it doesn't say otherwise. */
unsigned kd_op_unread(const kd_op_desc *d);
static inline int kd_op_groups(const kd_op_desc *d) {
    return d->groups > 0 ? d->groups : 1;
}
/* What rope turns by: (grid_h + grid_w) lines of cos[periods], sin[periods]; first the angles of the grid's rows (the first half of the Dh/2), then those of its columns.
 * f32 as ops.h says above, each cosine and sine rounded once from double, so that every backend turns by the same numbers. d must have passed kd_op_check. */
size_t kd_op_rope_table_floats(const kd_op_desc *d);
void kd_op_rope_table(const kd_op_desc *d, float *table);
/* Floating-point operations of one forward call (2 per multiply-add): for plans and benches. Matrix work only (conv2d, linear, attention, losses over similarities); the rest is memory traffic and counts 0. */
double kd_op_flops(const kd_op_desc *d);

#endif

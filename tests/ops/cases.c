#include "tests/ops/cases.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/err.h"

enum { MAX_CASES = 3000 };
static ops_case cases[MAX_CASES];
static size_t count;

/* KD_OPS names kinds: "linear" or "linear,conv2d". */
static int wanted(kd_op_kind kind) {
    const char *filter = getenv("KD_OPS"), *name = kd_op_kind_name(kind);
    if (!filter || !*filter)
        return 1;
    for (const char *at = strstr(filter, name); at; at = strstr(at + 1, name)) {
        char before = at == filter ? ',' : at[-1], after = at[strlen(name)];
        if (before == ',' && (after == ',' || after == '\0'))
            return 1;
    }
    return 0;
}

int ops_uses_bf16(const kd_op_desc *d) {
    int bf16 = d->y.dtype == KD_BF16;
    for (int i = 0; i < d->inputs; i++)
        bf16 |= d->x[i].dtype == KD_BF16;
    return bf16;
}

int ops_is_loss(kd_op_kind kind) {
    return kind == KD_OP_MSE || kind == KD_OP_MSE_ADJOINT || (kind >= KD_OP_COSINE && kind <= KD_OP_KOLEO);
}

static void push(const kd_op_desc *d, int no_gamma, const char *label, const char *variant) {
    if (!wanted(d->kind))
        return;
    KD_ASSERT(count < MAX_CASES);
    ops_case *c = &cases[count++];
    c->desc = *d;
    c->no_gamma = no_gamma;
    snprintf(c->label, sizeof c->label, "%s %s | %s", kd_op_kind_name(d->kind), label, variant);
    c->desc.name = c->label;
    kd_op_check(&c->desc);
}

static void set_dtype(kd_op_desc *d, kd_dtype t) {
    for (int i = 0; i < d->inputs; i++)
        if (d->x[i].dtype != KD_U8 && !(d->kind == KD_OP_ROW_SCALE && i == 1))
            d->x[i].dtype = t;
    d->y.dtype = t;
}

/* Which dx a trained op can give. */
static unsigned all_dx(const kd_op_desc *d) {
    return d->kind == KD_OP_NORMALIZE ? 0 : ops_is_loss(d->kind) || d->kind == KD_OP_ROW_SCALE ? 1 : (1u << d->inputs) - 1;
}

/* Every combination of f32 and bf16, inference and training, and the ways in which gradients are asked for. */
static void variants(kd_op_desc d, int no_gamma, const char *label) {
    for (int bf16 = 0; bf16 <= !ops_is_loss(d.kind); bf16++) {
        set_dtype(&d, bf16 ? KD_BF16 : KD_F32);
        d.train = d.need_dparam = 0;
        d.need_dx = d.add_dx = 0;
        push(&d, no_gamma, label, bf16 ? "infer bf16" : "infer f32");
        if (!bf16 && (d.kind == KD_OP_CONV2D || d.kind == KD_OP_LINEAR)) {
            d.changing = 1;
            push(&d, no_gamma, label, "infer f32 changing");
            d.changing = 0;
        }
        if (d.residual)
            continue;
        d.train = d.need_dparam = 1;
        d.need_dx = all_dx(&d);
        push(&d, no_gamma, label, bf16 ? "train bf16" : "train f32");
        if (d.need_dx) {
            d.add_dx = d.need_dx;
            push(&d, no_gamma, label, bf16 ? "train bf16 add" : "train f32 add");
        }
        if (kd_op_param_numel(&d, 0) > 0) {
            d.add_dx = d.need_dx = 0;
            push(&d, no_gamma, label, bf16 ? "train bf16 no dx" : "train f32 no dx");
            d.need_dx = all_dx(&d);
            d.need_dparam = 0;
            push(&d, no_gamma, label, bf16 ? "train bf16 frozen" : "train f32 frozen");
        }
        if (d.inputs >= 2 && all_dx(&d) > 1) { /* one side overwrites while the other adds or is not wanted */
            d.need_dparam = 1;
            d.need_dx = all_dx(&d);
            d.add_dx = 2;
            push(&d, no_gamma, label, bf16 ? "train bf16 add dx1" : "train f32 add dx1");
            d.need_dx = 1;
            d.add_dx = 1;
            push(&d, no_gamma, label, bf16 ? "train bf16 only dx0" : "train f32 only dx0");
        }
    }
}

/* Sizes whose gradients would take the tests too long: inference in both precisions. */
static void inference(kd_op_desc d, const char *label) {
    for (int bf16 = 0; bf16 < 2; bf16++) {
        set_dtype(&d, bf16 ? KD_BF16 : KD_F32);
        push(&d, 0, label, bf16 ? "infer bf16" : "infer f32");
    }
}

/* Sizes that a backend parts further than the others: training alone, in both precisions. */
static void training(kd_op_desc d, const char *label) {
    d.train = d.need_dparam = 1;
    d.need_dx = all_dx(&d);
    for (int bf16 = 0; bf16 < 2; bf16++) {
        set_dtype(&d, bf16 ? KD_BF16 : KD_F32);
        push(&d, 0, label, bf16 ? "train bf16" : "train f32");
    }
}

/* Dtypes that differ inside one op: f32 residual streams and f32 results around bf16 arithmetic. */
static void mixed(kd_op_desc d, int no_gamma, const char *label, kd_dtype x0, kd_dtype x1, kd_dtype y) {
    char variant[60];
    d.x[0].dtype = x0;
    d.x[1].dtype = x1;
    d.y.dtype = y;
    d.train = d.need_dparam = !d.residual;
    d.need_dx = d.train ? all_dx(&d) : 0;
    if (d.inputs == 2)
        snprintf(variant, sizeof variant, "%s,%s to %s", kd_dtype_name(x0), kd_dtype_name(x1), kd_dtype_name(y));
    else
        snprintf(variant, sizeof variant, "%s to %s", kd_dtype_name(x0), kd_dtype_name(y));
    push(&d, no_gamma, label, variant);
}

static kd_tdesc shape(int rank, ...) {
    kd_tdesc t = {.dtype = KD_F32, .rank = rank};
    va_list ap;
    va_start(ap, rank);
    for (int i = 0; i < rank; i++)
        t.shape[i] = va_arg(ap, int);
    va_end(ap);
    return t;
}

static const char *text(const char *fmt, ...) KD_PRINTF(1, 2);
static const char *text(const char *fmt, ...) {
    static char buf[100];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(buf, sizeof buf, fmt, ap);
    va_end(ap);
    return buf;
}

static const char *act_name(kd_act act) {
    static const char *const names[] = {[KD_ACT_RELU] = " relu", [KD_ACT_GELU] = " gelu", [KD_ACT_SILU] = " silu", [KD_ACT_HARDSWISH] = " hardswish"};
    return act == KD_ACT_NONE ? "" : names[act];
}

#define COUNT(a) (sizeof(a) / sizeof *(a))

/* --- convolution and pooling --- */

typedef struct window_case {
    int n, h, w, in, out, k, stride, pad, bias;
    kd_act act;
    int groups;
} window_case;

static kd_op_desc conv2d(const window_case *c) {
    return (kd_op_desc){.kind = KD_OP_CONV2D, .inputs = 1, .kernel = c->k, .stride = c->stride, .pad = c->pad, .groups = c->groups, .bias = c->bias, .act = c->act,
                        .x = {shape(4, c->n, c->h, c->w, c->in)},
                        .y = shape(4, c->n, (c->h + 2 * c->pad - c->k) / c->stride + 1, (c->w + 2 * c->pad - c->k) / c->stride + 1, c->out)};
}

static void conv2d_cases(void) {
    static const window_case list[] = {
        {1, 1, 1, 1, 1, 1, 1, 0, 0, KD_ACT_NONE, 1},
        {2, 7, 5, 3, 4, 3, 1, 1, 1, KD_ACT_NONE, 1},
        {1, 17, 17, 3, 8, 7, 2, 3, 0, KD_ACT_NONE, 1},   /* a ResNet stem */
        {2, 9, 9, 17, 33, 1, 1, 0, 0, KD_ACT_NONE, 1},
        {1, 8, 8, 16, 16, 3, 2, 1, 1, KD_ACT_RELU, 1},
        {2, 7, 7, 5, 7, 1, 2, 0, 0, KD_ACT_NONE, 1},     /* a shortcut: rows and columns that no tap reaches */
        {1, 34, 33, 3, 6, 3, 2, 0, 1, KD_ACT_NONE, 1},   /* a row left over */
        {1, 29, 28, 3, 17, 14, 14, 0, 1, KD_ACT_NONE, 1},/* a patch embedding, a row left over */
        {1, 3, 3, 7, 1, 3, 1, 2, 0, KD_ACT_RELU, 1},
        {2, 6, 6, 64, 64, 3, 1, 1, 0, KD_ACT_NONE, 1},
        {3, 14, 14, 32, 48, 3, 2, 1, 0, KD_ACT_NONE, 1},
        {5, 17, 13, 9, 21, 3, 1, 1, 0, KD_ACT_NONE, 1},  /* from here to the depthwise: more pixels than products take at once, borders between images inside */
        {3, 25, 31, 8, 18, 5, 2, 2, 1, KD_ACT_RELU, 1},
        {4, 33, 27, 3, 17, 7, 2, 3, 0, KD_ACT_NONE, 1},
        {2, 29, 18, 5, 16, 4, 3, 2, 0, KD_ACT_NONE, 1},
        {3, 15, 16, 19, 35, 1, 1, 0, 1, KD_ACT_NONE, 1},
        {9, 7, 7, 32, 16, 3, 1, 1, 0, KD_ACT_NONE, 1},
        {3, 9, 8, 200, 168, 3, 1, 1, 0, KD_ACT_NONE, 1}, /* more weights than the second-level cache has room for */
        {3, 1, 1, 5, 6, 3, 1, 1, 0, KD_ACT_NONE, 1},     /* taps that see nothing */
        {2, 10, 9, 12, 24, 5, 1, 2, 0, KD_ACT_NONE, 1},
        {3, 9, 7, 20, 38, 3, 1, 0, 1, KD_ACT_RELU, 1},
        {13, 6, 5, 34, 70, 3, 1, 1, 0, KD_ACT_NONE, 1},  /* more images than a tile has rows */
        {1, 5, 5, 600, 72, 1, 1, 0, 0, KD_ACT_NONE, 1},
        {1, 5, 4, 14, 40, 1, 3, 0, 0, KD_ACT_NONE, 1},
        {2, 9, 7, 17, 17, 3, 1, 1, 0, KD_ACT_NONE, 17},  /* depthwise */
        {1, 11, 12, 33, 33, 5, 2, 2, 1, KD_ACT_NONE, 33},
        {2, 14, 14, 48, 48, 7, 1, 3, 1, KD_ACT_NONE, 48},
        {3, 9, 9, 64, 64, 3, 2, 1, 0, KD_ACT_RELU, 64},
        {1, 3, 2, 16, 16, 7, 1, 3, 1, KD_ACT_NONE, 16},  /* a window larger than the map */
        {2, 4, 5, 7, 7, 1, 1, 0, 1, KD_ACT_NONE, 7},
        {2, 8, 6, 130, 130, 3, 1, 1, 0, KD_ACT_NONE, 130},
        {2, 7, 11, 36, 36, 5, 1, 2, 0, KD_ACT_NONE, 36},
        {1, 9, 21, 40, 40, 5, 2, 2, 1, KD_ACT_RELU, 40},
        {1, 11, 10, 12, 12, 7, 2, 3, 0, KD_ACT_NONE, 12},
        {1, 4, 75, 4, 4, 3, 1, 0, 0, KD_ACT_NONE, 4},    /* wide rows */
        {2, 9, 6, 8, 16, 2, 2, 0, 1, KD_ACT_RELU, 1},    /* windows side by side, a row left over */
        {1, 7, 8, 16, 12, 3, 3, 0, 0, KD_ACT_NONE, 1},   /* a row and two columns */
        {1, 6, 5, 4, 8, 3, 1, 1, 1, KD_ACT_NONE, 4},     /* two outputs per input channel */
        {2, 7, 7, 6, 9, 3, 1, 1, 1, KD_ACT_NONE, 3},
        {1, 8, 8, 32, 64, 3, 2, 1, 0, KD_ACT_RELU, 2},
        {2, 5, 4, 64, 64, 1, 1, 0, 0, KD_ACT_NONE, 4},
        {1, 1, 1, 16, 16, 3, 1, 1, 1, KD_ACT_NONE, 1},   /* from here on what Winograd's tiles take: a map smaller than a tile */
        {3, 15, 13, 32, 48, 3, 1, 1, 1, KD_ACT_RELU, 1},
        {5, 30, 31, 16, 80, 3, 1, 1, 0, KD_ACT_NONE, 1}, /* more tiles than either pass takes at once */
        {2, 7, 7, 528, 64, 3, 1, 1, 1, KD_ACT_NONE, 1},  /* long sums */
        {2, 8, 6, 112, 176, 3, 1, 1, 0, KD_ACT_RELU, 1},
    };
    for (size_t i = 0; i < COUNT(list); i++) {
        const window_case *c = &list[i];
        variants(conv2d(c), 0, text("%dx%dx%dx%d->%d k%d s%d p%d%s%s%s", c->n, c->h, c->w, c->in, c->out, c->k, c->stride, c->pad, c->bias ? " bias" : "", act_name(c->act),
                                       c->groups == 1 ? "" : c->groups == c->in ? " depthwise" : " groups"));
    }
    static const window_case patch16 = {1, 16, 48, 3, 4096, 16, 16, 0, 1, KD_ACT_NONE, 1}; /* of the largest teacher */
    inference(conv2d(&patch16), "1x16x48x3->4096 k16 s16 bias");
    mixed(conv2d(&list[1]), 0, "2x7x5x3->4 k3 bias", KD_BF16, KD_F32, KD_F32);
    mixed(conv2d(&list[3]), 0, "2x9x9x17->33 k1", KD_F32, KD_F32, KD_BF16);
    mixed(conv2d(&list[7]), 0, "1x29x28x3->17 k14 s14 bias", KD_BF16, KD_F32, KD_F32);
    mixed(conv2d(&list[9]), 0, "2x6x6x64->64 k3", KD_F32, KD_F32, KD_BF16);
    static const window_case depthwise3 = {2, 9, 7, 17, 17, 3, 1, 1, 0, KD_ACT_NONE, 17}, depthwise7 = {2, 14, 14, 48, 48, 7, 1, 3, 1, KD_ACT_NONE, 48};
    mixed(conv2d(&depthwise3), 0, "2x9x7x17 k3 depthwise", KD_BF16, KD_F32, KD_F32);
    mixed(conv2d(&depthwise7), 0, "2x14x14x48 k7 depthwise", KD_F32, KD_F32, KD_BF16);
}

static void max_pool_cases(void) {
    static const window_case list[] = {
        {1, 1, 1, 1, 1, 1, 1, 0, 0, KD_ACT_NONE, 1}, {1, 17, 17, 3, 3, 3, 2, 1, 0, KD_ACT_NONE, 1}, {2, 7, 7, 5, 5, 2, 2, 0, 0, KD_ACT_NONE, 1},
        {3, 5, 7, 17, 17, 3, 1, 1, 0, KD_ACT_NONE, 1}, {2, 8, 8, 16, 16, 3, 2, 1, 0, KD_ACT_NONE, 1}, {1, 33, 9, 64, 64, 3, 2, 1, 0, KD_ACT_NONE, 1},
    };
    for (size_t i = 0; i < COUNT(list); i++) {
        const window_case *c = &list[i];
        kd_op_desc d = conv2d(c);
        d.kind = KD_OP_MAX_POOL;
        variants(d, 0, text("%dx%dx%dx%d k%d s%d p%d", c->n, c->h, c->w, c->in, c->k, c->stride, c->pad));
        if (i == 1)
            mixed(d, 0, "1x17x17x3", KD_BF16, KD_F32, KD_F32);
    }
}

/* --- linear --- */

static kd_op_desc linear(kd_tdesc x, int out, int bias, kd_act act) {
    kd_op_desc d = {.kind = KD_OP_LINEAR, .inputs = 1, .x = {x}, .y = x, .bias = bias, .act = act};
    d.y.shape[x.rank - 1] = out;
    return d;
}

static kd_op_desc residual_linear(kd_tdesc x, int out, int bias) {
    kd_op_desc d = linear(x, out, bias, KD_ACT_NONE);
    d.inputs = 2;
    d.residual = 1;
    d.x[1] = d.y;
    return d;
}

static void linear_cases(void) {
    variants(linear(shape(2, 1, 1), 1, 0, KD_ACT_NONE), 0, "1x1->1");
    variants(linear(shape(2, 1, 7), 33, 1, KD_ACT_RELU), 0, "1x7->33 bias relu");
    variants(linear(shape(2, 3, 7), 17, 1, KD_ACT_NONE), 0, "3x7->17 bias");
    variants(linear(shape(3, 2, 5, 33), 17, 0, KD_ACT_GELU), 0, "2x5x33->17 gelu");
    variants(linear(shape(4, 1, 3, 3, 16), 9, 1, KD_ACT_GELU), 0, "1x3x3x16->9 bias gelu");
    variants(linear(shape(3, 2, 17, 64), 128, 1, KD_ACT_RELU), 0, "2x17x64->128 bias relu");
    variants(linear(shape(3, 2, 50, 192), 64, 1, KD_ACT_GELU), 0, "2x50x192->64 bias gelu");
    variants(linear(shape(2, 257, 96), 288, 1, KD_ACT_NONE), 0, "257x96->288 bias");
    variants(linear(shape(3, 7, 113, 20), 50, 1, KD_ACT_GELU), 0, "7x113x20->50 bias gelu");
    variants(residual_linear(shape(2, 3, 7), 17, 1), 0, "3x7->17 bias residual gamma");
    variants(residual_linear(shape(3, 2, 17, 33), 33, 0), 1, "2x17x33->33 residual");
    variants(residual_linear(shape(3, 2, 50, 192), 64, 1), 0, "2x50x192->64 bias residual gamma");
    variants(residual_linear(shape(3, 2, 50, 64), 64, 1), 1, "2x50x64->64 bias residual");
    inference(linear(shape(2, 3, 1280), 7, 1, KD_ACT_NONE), "3x1280->7 bias");
    inference(linear(shape(2, 2, 4096), 515, 1, KD_ACT_NONE), "2x4096->515 bias");
    inference(linear(shape(2, 19, 700), 160, 1, KD_ACT_GELU), "19x700->160 bias gelu"); /* blocks of columns, and a last one of two narrow panels */
    inference(residual_linear(shape(2, 19, 2112), 112, 1), "19x2112->112 bias residual gamma");
    mixed(linear(shape(3, 2, 17, 64), 33, 1, KD_ACT_NONE), 0, "2x17x64->33 bias", KD_BF16, KD_F32, KD_F32);
    mixed(linear(shape(3, 2, 17, 64), 33, 1, KD_ACT_GELU), 0, "2x17x64->33 bias gelu", KD_BF16, KD_F32, KD_F32);
    mixed(linear(shape(3, 2, 17, 64), 33, 1, KD_ACT_GELU), 0, "2x17x64->33 bias gelu", KD_F32, KD_F32, KD_BF16);
    mixed(residual_linear(shape(3, 2, 17, 64), 33, 1), 0, "2x17x64->33 bias residual gamma", KD_BF16, KD_F32, KD_F32);
    mixed(residual_linear(shape(3, 2, 17, 64), 33, 1), 1, "2x17x64->33 bias residual", KD_BF16, KD_F32, KD_F32);
    mixed(linear(shape(3, 2, 17, 64), 33, 1, KD_ACT_RELU), 0, "2x17x64->33 bias relu", KD_F32, KD_F32, KD_BF16);
    mixed(residual_linear(shape(3, 2, 17, 64), 33, 1), 0, "2x17x64->33 bias residual gamma", KD_F32, KD_BF16, KD_BF16);
    /* More than 16 MiB of products in f32 that need a second pass: a backend may go by blocks of rows. */
    mixed(linear(shape(2, 301, 2), 14001, 1, KD_ACT_GELU), 0, "301x2->14001 bias gelu", KD_BF16, KD_F32, KD_BF16);
}

/* --- normalisation --- */

static kd_op_desc batch_norm(kd_tdesc x, int inputs, kd_act act) {
    return (kd_op_desc){.kind = KD_OP_BATCH_NORM, .inputs = inputs, .x = {x, x}, .y = x, .act = act, .eps = 1e-5f, .momentum = 0.1f};
}

static void batch_norm_cases(void) {
    const kd_tdesc small = shape(4, 2, 3, 3, 7), odd = shape(4, 2, 7, 5, 33), points = shape(4, 7, 1, 1, 17), wide = shape(4, 3, 9, 9, 64);
    variants(batch_norm(small, 1, KD_ACT_NONE), 0, "2x3x3x7");
    variants(batch_norm(odd, 1, KD_ACT_RELU), 0, "2x7x5x33 relu");
    variants(batch_norm(points, 1, KD_ACT_NONE), 0, "7x1x1x17");
    variants(batch_norm(wide, 1, KD_ACT_RELU), 0, "3x9x9x64 relu");
    variants(batch_norm(small, 1, KD_ACT_HARDSWISH), 0, "2x3x3x7 hardswish");
    variants(batch_norm(odd, 1, KD_ACT_SILU), 0, "2x7x5x33 silu");
    variants(batch_norm(wide, 1, KD_ACT_SILU), 0, "3x9x9x64 silu");
    variants(batch_norm(wide, 1, KD_ACT_HARDSWISH), 0, "3x9x9x64 hardswish");
    variants(batch_norm(small, 2, KD_ACT_NONE), 0, "2x3x3x7 join");
    variants(batch_norm(odd, 2, KD_ACT_RELU), 0, "2x7x5x33 join relu");
    variants(batch_norm(wide, 2, KD_ACT_RELU), 0, "3x9x9x64 join relu");
    variants(batch_norm(shape(4, 1, 1, 7, 1), 1, KD_ACT_NONE), 0, "1x1x7x1");
    training(batch_norm(shape(4, 3, 25, 24, 296), 2, KD_ACT_RELU), "3x25x24x296 join relu");
    training(batch_norm(shape(4, 2, 41, 40, 13), 1, KD_ACT_SILU), "2x41x40x13 silu");
    mixed(batch_norm(odd, 1, KD_ACT_RELU), 0, "2x7x5x33 relu", KD_BF16, KD_F32, KD_F32);
    mixed(batch_norm(odd, 1, KD_ACT_SILU), 0, "2x7x5x33 silu", KD_BF16, KD_F32, KD_F32);
    mixed(batch_norm(odd, 1, KD_ACT_SILU), 0, "2x7x5x33 silu", KD_F32, KD_F32, KD_BF16);
    mixed(batch_norm(odd, 2, KD_ACT_RELU), 0, "2x7x5x33 join relu", KD_BF16, KD_BF16, KD_F32);
    mixed(batch_norm(odd, 2, KD_ACT_RELU), 0, "2x7x5x33 join relu", KD_BF16, KD_F32, KD_F32);
}

static void layer_norm_cases(void) {
    const kd_tdesc list[] = {shape(2, 1, 7), shape(2, 3, 17), shape(3, 2, 5, 33), shape(3, 2, 17, 192), shape(4, 1, 3, 3, 64), shape(2, 65, 257), shape(2, 3, 1280), shape(2, 2, 1536),
                                shape(2, 3, 4096)};
    for (size_t i = 0; i < COUNT(list); i++) {
        kd_op_desc d = {.kind = KD_OP_LAYER_NORM, .inputs = 1, .x = {list[i]}, .y = list[i], .eps = 1e-6f};
        const char *label = text("rank %d, %d rows of %d", list[i].rank, (int)(kd_tdesc_numel(&list[i]) / (size_t)list[i].shape[list[i].rank - 1]),
                                 (int)list[i].shape[list[i].rank - 1]);
        variants(d, 0, label);
        if (i >= 2 && i <= 3) {
            mixed(d, 0, label, KD_F32, KD_F32, KD_BF16);
            mixed(d, 0, label, KD_BF16, KD_F32, KD_F32);
        }
    }
}

/* --- pointwise --- */

static void pointwise_cases(void) {
    const kd_tdesc rows = shape(2, 1801, 264);
    training((kd_op_desc){.kind = KD_OP_SCALE_ADD, .inputs = 2, .x = {rows, rows}, .y = rows}, "1801 rows of 264");
    const kd_tdesc list[] = {shape(1, 1), shape(1, 7), shape(2, 3, 7), shape(3, 2, 17, 33), shape(4, 2, 5, 5, 64), shape(2, 7, 1025)};
    for (size_t i = 0; i < COUNT(list); i++) {
        kd_tdesc t = list[i];
        const char *label = text("rank %d, %d elements", t.rank, (int)kd_tdesc_numel(&t));
        kd_op_desc d = {.inputs = 1, .x = {t, t}, .y = t};
        static const kd_op_kind acts[] = {KD_OP_RELU, KD_OP_GELU, KD_OP_SILU, KD_OP_HARDSWISH, KD_OP_HARDSIGMOID};
        for (size_t k = 0; k < COUNT(acts); k++) {
            d.kind = acts[k];
            variants(d, 0, label);
            if (i == 3)
                mixed(d, 0, label, KD_BF16, KD_F32, KD_F32);
        }
        d.inputs = 2;
        d.kind = KD_OP_SCALE_ADD;
        variants(d, 0, label);
        if (i >= 2)
            mixed(d, 0, label, KD_F32, KD_BF16, KD_F32);
        d.kind = KD_OP_ADD;
        variants(d, 0, label);
        d.act = KD_ACT_RELU;
        variants(d, 0, text("rank %d, %d elements relu", t.rank, (int)kd_tdesc_numel(&t)));
        if (i >= 2)
            for (int m = 1; m < 7; m++) { /* every mixture of the three dtypes */
                d.act = m % 2 ? KD_ACT_RELU : KD_ACT_NONE;
                mixed(d, 0, text("rank %d, %d elements%s", t.rank, (int)kd_tdesc_numel(&t), act_name(d.act)), m & 1 ? KD_BF16 : KD_F32, m & 2 ? KD_BF16 : KD_F32,
                      m & 4 ? KD_BF16 : KD_F32);
            }
    }
}

static void silu_gate_cases(void) {
    const kd_tdesc list[] = {shape(2, 1, 2), shape(2, 3, 14), shape(3, 2, 17, 66), shape(3, 2, 9, 512)};
    for (size_t i = 0; i < COUNT(list); i++) {
        kd_op_desc d = {.kind = KD_OP_SILU_GATE, .inputs = 1, .x = {list[i]}, .y = list[i]};
        int last = list[i].rank - 1;
        d.y.shape[last] /= 2;
        variants(d, 0, text("%d values in rows of %d", (int)kd_tdesc_numel(&list[i]), (int)list[i].shape[last]));
    }
}

static void normalize_cases(void) {
    const kd_tdesc list[] = {shape(4, 1, 1, 1, 3), shape(4, 2, 7, 17, 3), shape(4, 1, 33, 33, 3)};
    for (size_t i = 0; i < COUNT(list); i++) {
        kd_op_desc d = {.kind = KD_OP_NORMALIZE, .inputs = 1, .x = {list[i]}, .y = list[i], .mean = {0.485f, 0.456f, 0.406f}, .std = {0.229f, 0.224f, 0.225f}};
        d.x[0].dtype = KD_U8;
        variants(d, 0, text("%dx%dx%dx3", (int)list[i].shape[0], (int)list[i].shape[1], (int)list[i].shape[2]));
    }
}

static void mse_cases(void) {
    const kd_tdesc list[] = {shape(1, 1), shape(2, 1, 7), shape(3, 2, 17, 33), shape(2, 7, 10007)};
    for (size_t i = 0; i < COUNT(list); i++) {
        kd_op_desc d = {.kind = KD_OP_MSE, .inputs = 2, .x = {list[i], list[i]}, .y = shape(1, 1)};
        variants(d, 0, text("%d values", (int)kd_tdesc_numel(&list[i])));
    }
}

static void mse_adjoint_cases(void) {
    static const int sizes[][6] = {{1, 1, 1, 1, 1, 1}, {2, 1, 1, 7, 3, 2}, {3, 7, 7, 33, 16, 16}, {2, 4, 6, 17, 9, 7}, {1, 14, 14, 8, 16, 16},
                                   {2, 5, 3, 64, 4, 2}, {2, 3, 5, 19, 3, 5}, {1, 9, 2, 130, 3, 11}, {2, 7, 7, 384, 16, 16}}; /* N, K, L, D, H, W */
    for (size_t i = 0; i < COUNT(sizes); i++) {
        const int *s = sizes[i];
        kd_tdesc map = shape(4, s[0], s[1], s[2], s[3]);
        kd_op_desc d = {.kind = KD_OP_MSE_ADJOINT, .inputs = 3, .grid_h = s[4], .grid_w = s[5], .x = {map, map, shape(2, s[0], 1)}, .y = shape(1, 1)};
        variants(d, 0, text("%dx%dx%dx%d for %dx%d", s[0], s[1], s[2], s[3], s[4], s[5]));
    }
}

static void l2_normalize_cases(void) {
    const kd_tdesc list[] = {shape(1, 1), shape(2, 1, 7), shape(2, 3, 17), shape(3, 2, 17, 33), shape(4, 2, 3, 5, 64), shape(2, 7, 1025), shape(2, 65, 384)};
    for (size_t i = 0; i < COUNT(list); i++) {
        kd_op_desc d = {.kind = KD_OP_L2_NORMALIZE, .inputs = 1, .x = {list[i]}, .y = list[i]};
        int width = (int)list[i].shape[list[i].rank - 1];
        const char *label = text("rank %d, %d rows of %d", list[i].rank, (int)kd_tdesc_numel(&list[i]) / width, width);
        variants(d, 0, label);
        if (i == 3)
            mixed(d, 0, label, KD_BF16, KD_F32, KD_F32);
    }
}

/* Losses that take each row or element by itself. */
static void row_loss_cases(void) {
    const kd_tdesc list[] = {shape(2, 1, 2), shape(2, 1, 7), shape(2, 3, 17), shape(3, 2, 17, 33), shape(4, 2, 3, 5, 64), shape(2, 7, 1025), shape(2, 65, 384)};
    for (size_t i = 0; i < COUNT(list); i++) {
        int width = (int)list[i].shape[list[i].rank - 1], rows = (int)kd_tdesc_numel(&list[i]) / width;
        kd_op_desc d = {.inputs = 2, .x = {list[i], list[i]}, .y = shape(1, 1), .beta = i % 2 ? 1.0f : 0.3f, .temperature = i % 2 ? 4.0f : 0.7f};
        d.kind = KD_OP_COSINE;
        variants(d, 0, text("rank %d, %d rows of %d", list[i].rank, rows, width));
        d.kind = KD_OP_SMOOTH_L1;
        variants(d, 0, text("rank %d, %d rows of %d, beta %.1f", list[i].rank, rows, width, (double)d.beta));
        d.kind = KD_OP_KL_LOGITS;
        variants(d, 0, text("rank %d, %d rows of %d, temperature %.1f", list[i].rank, rows, width, (double)d.temperature));
    }
}

/* Losses over similarities. A queue shorter than the batch, as long, a little and much longer. */
static void similarity_loss_cases(void) {
    static const int queues[][3] = {{1, 1, 1}, {2, 7, 1}, {3, 17, 7}, {7, 33, 5}, {5, 64, 5}, {17, 130, 33}, {3, 384, 257}, {33, 96, 1030}}; /* N, D, queue_rows */
    static const int maps[][4] = {{1, 1, 1, 3}, {2, 1, 7, 17}, {3, 5, 3, 33}, {2, 4, 4, 64}, {1, 7, 7, 130}, {2, 16, 16, 96}, {1, 1, 257, 40}}; /* N, h, w, D */
    static const int batches[][2] = {{2, 2}, {3, 7}, {7, 17}, {17, 33}, {33, 130}, {65, 384}}; /* N, D */
    for (size_t i = 0; i < COUNT(queues); i++) {
        kd_tdesc t = shape(2, queues[i][0], queues[i][1]);
        kd_op_desc d = {.kind = KD_OP_KL_QUEUE, .inputs = 2, .x = {t, t}, .y = shape(1, 1), .queue_rows = queues[i][2], .temperature = i % 2 ? 0.5f : 0.2f};
        variants(d, 0, text("%dx%d, %d in the queue", queues[i][0], queues[i][1], queues[i][2]));
    }
    for (size_t i = 0; i < COUNT(maps); i++) {
        const int *s = maps[i];
        kd_tdesc t = i % 2 ? shape(3, s[0], s[1] * s[2], s[3]) : shape(4, s[0], s[1], s[2], s[3]);
        kd_op_desc d = {.inputs = 2, .x = {t, t}, .y = shape(1, 1), .temperature = i % 2 ? 0.5f : 0.3f};
        d.kind = KD_OP_KL_INTRA;
        variants(d, 0, text("rank %d, %dx%dx%dx%d", t.rank, s[0], s[1], s[2], s[3]));
        d.kind = KD_OP_GRAM;
        variants(d, 0, text("rank %d, %dx%dx%dx%d", t.rank, s[0], s[1], s[2], s[3]));
    }
    for (size_t i = 0; i < COUNT(batches); i++) {
        kd_op_desc d = {.kind = KD_OP_KOLEO, .inputs = 1, .x = {shape(2, batches[i][0], batches[i][1])}, .y = shape(1, 1)};
        variants(d, 0, text("%dx%d", batches[i][0], batches[i][1]));
    }
}

/* --- tokens, attention, maps --- */

static void token_cases(void) {
    static const int sizes[][3] = {{1, 1, 1}, {2, 7, 17}, {3, 16, 33}, {2, 49, 64}, {1, 1100, 72}}; /* N, P, D */
    for (size_t i = 0; i < COUNT(sizes); i++) {
        int n = sizes[i][0], p = sizes[i][1], w = sizes[i][2];
        const char *label = text("%dx%dx%d", n, p, w);
        kd_op_desc d = {.kind = KD_OP_MEAN_TOKENS, .inputs = 1, .x = {shape(3, n, p, w)}};
        d.y = shape(2, n, w);
        variants(d, 0, label);
        mixed(d, 0, label, KD_BF16, KD_F32, KD_F32);
        mixed(d, 0, label, KD_F32, KD_F32, KD_BF16);
    }
    kd_op_desc map = {.kind = KD_OP_MEAN_TOKENS, .inputs = 1, .x = {shape(4, 2, 7, 5, 33)}, .y = shape(2, 2, 33)};
    variants(map, 0, "2x7x5x33");
    mixed(map, 0, "2x7x5x33", KD_BF16, KD_F32, KD_F32);

    static const int slices[][5] = {{1, 1, 1, 0, 1}, {2, 8, 17, 1, 7}, {3, 17, 33, 0, 1}, {2, 10, 7, 5, 3}, {2, 50, 64, 1, 49}}; /* N, T, D, begin, count */
    for (size_t i = 0; i < COUNT(slices); i++) {
        const int *s = slices[i];
        kd_op_desc d = {.kind = KD_OP_TOKEN_SLICE, .inputs = 1, .begin = s[3], .x = {shape(3, s[0], s[1], s[2])}, .y = shape(3, s[0], s[4], s[2])};
        const char *label = text("%dx%dx%d rows %d..%d", s[0], s[1], s[2], s[3], s[3] + s[4] - 1);
        variants(d, 0, label);
        mixed(d, 0, label, KD_BF16, KD_F32, KD_F32);
        mixed(d, 0, label, KD_F32, KD_F32, KD_BF16);
    }
}

/* The class token, registers and patches of a ViT's sequence. */
static void sequence_cases(void) {
    static const int sizes[][5] = {{1, 1, 1, 1, 0}, {2, 7, 17, 1, 0}, {3, 16, 33, 1, 4}, {2, 49, 64, 0, 4}, {2, 5, 7, 0, 0}, {1, 3, 130, 1, 1}}; /* N, P, D, positions, registers */
    for (size_t i = 0; i < COUNT(sizes); i++) {
        const int *s = sizes[i];
        kd_op_desc d = {.kind = KD_OP_TOKENS, .inputs = 1, .positions = s[3], .registers = s[4], .x = {shape(3, s[0], s[1], s[2])}, .y = shape(3, s[0], 1 + s[4] + s[1], s[2])};
        const char *label = text("%dx%dx%d%s, %d registers", s[0], s[1], s[2], s[3] ? " positions" : "", s[4]);
        variants(d, 0, label);
        mixed(d, 0, label, KD_BF16, KD_F32, KD_F32);
    }
}

/* Periods as DINOv3 makes them: 100^(2 i / (Dh/2)). */
static kd_op_desc rope(int n, int begin, int h, int w, int heads, int head) {
    kd_tdesc t = shape(3, n, begin + h * w, 3 * heads * head);
    kd_op_desc d = {.kind = KD_OP_ROPE, .inputs = 1, .heads = heads, .begin = begin, .grid_h = h, .grid_w = w, .periods = head / 4, .x = {t}, .y = t};
    for (int i = 0; i < d.periods; i++)
        d.period[i] = (float)pow(100, 4.0 * i / head);
    return d;
}

static void rope_cases(void) {
    static const int sizes[][6] = {{1, 0, 1, 1, 1, 4}, {2, 1, 3, 5, 2, 8}, {1, 5, 7, 4, 3, 20}, {2, 5, 4, 4, 2, 64}, {1, 1, 2, 9, 1, 80}, {1, 5, 1, 13, 2, 88}, {1, 0, 3, 2, 1, 104},
                                   {1, 5, 5, 3, 2, 128}, {1, 1, 2, 2, 1, 256}}; /* N, begin, grid height and width, heads, Dh */
    for (size_t i = 0; i < COUNT(sizes); i++) {
        const int *s = sizes[i];
        variants(rope(s[0], s[1], s[2], s[3], s[4], s[5]), 0, text("%d from %d, grid %dx%d, %d heads of %d", s[0], s[1], s[2], s[3], s[4], s[5]));
    }
}

static void concat_cases(void) {
    static const kd_tdesc list[][2] = {{{KD_F32, 1, {1}}, {KD_F32, 1, {2}}},
                                       {{KD_F32, 2, {3, 7}}, {KD_F32, 2, {3, 17}}},
                                       {{KD_F32, 3, {2, 5, 33}}, {KD_F32, 3, {2, 5, 1}}},
                                       {{KD_F32, 4, {2, 3, 4, 64}}, {KD_F32, 4, {2, 3, 4, 130}}},
                                       {{KD_F32, 3, {2, 17, 384}}, {KD_F32, 3, {2, 17, 384}}}};
    for (size_t i = 0; i < COUNT(list); i++) {
        kd_op_desc d = {.kind = KD_OP_CONCAT, .inputs = 2, .x = {list[i][0], list[i][1]}, .y = list[i][0]};
        int last = d.y.rank - 1;
        d.y.shape[last] += list[i][1].shape[last];
        variants(d, 0, text("rank %d, rows of %d and %d", d.y.rank, (int)list[i][0].shape[last], (int)list[i][1].shape[last]));
    }
}

/* More than two inputs, as many as there may be. */
static void long_concat_cases(void) {
    static const int sizes[][9] = {{3, 5, 1, 1}, {2, 7, 16, 33, 5}, {3, 9, 64, 64, 64, 64}, {2, 3, 1, 2, 3, 4, 5, 6, 7}, {1, 4, 48, 48, 96, 17, 1, 33, 64}}; /* leading dimensions, widths */
    for (size_t i = 0; i < COUNT(sizes); i++) {
        const int *s = sizes[i];
        kd_op_desc d = {.kind = KD_OP_CONCAT, .y = shape(3, s[0], s[1], 0)};
        while (d.inputs < 7 && s[2 + d.inputs] > 0) {
            d.x[d.inputs] = shape(3, s[0], s[1], s[2 + d.inputs]);
            d.y.shape[2] += s[2 + d.inputs++];
        }
        if (i + 1 == COUNT(sizes)) { /* the eighth */
            d.x[d.inputs++] = shape(3, s[0], s[1], 3);
            d.y.shape[2] += 3;
        }
        variants(d, 0, text("%d inputs, %d rows of %d in all", d.inputs, s[0] * s[1], (int)d.y.shape[2]));
    }
}

static void channel_slice_cases(void) {
    static const struct {
        kd_tdesc x;
        int begin, count;
    } list[] = {{{KD_F32, 1, {1}}, 0, 1}, {{KD_F32, 2, {3, 7}}, 2, 3}, {{KD_F32, 4, {2, 3, 5, 33}}, 16, 17}, {{KD_F32, 4, {2, 4, 4, 64}}, 0, 32}, {{KD_F32, 3, {2, 17, 130}}, 65, 65},
                {{KD_F32, 3, {2, 9, 48}}, 0, 48}};
    for (size_t i = 0; i < COUNT(list); i++) {
        kd_op_desc d = {.kind = KD_OP_CHANNEL_SLICE, .inputs = 1, .begin = list[i].begin, .x = {list[i].x}, .y = list[i].x};
        int last = d.y.rank - 1;
        d.y.shape[last] = list[i].count;
        variants(d, 0, text("rank %d, channels %d..%d of %d", d.y.rank, list[i].begin, list[i].begin + list[i].count - 1, (int)list[i].x.shape[last]));
    }
}

static void gate_and_scale_cases(void) {
    const kd_tdesc map = shape(4, 3, 31, 30, 264);
    training((kd_op_desc){.kind = KD_OP_CHANNEL_GATE, .inputs = 2, .x = {map, shape(2, 3, 264)}, .y = map}, "rank 4, 3 images of 930 positions, 264 channels");
    const kd_tdesc list[] = {shape(2, 1, 1), shape(2, 3, 7), shape(3, 2, 5, 33), shape(4, 2, 3, 5, 17), shape(4, 3, 13, 11, 64), shape(4, 1, 9, 9, 130)};
    for (size_t i = 0; i < COUNT(list); i++) {
        int n = (int)list[i].shape[0], width = (int)list[i].shape[list[i].rank - 1];
        const char *label = text("rank %d, %d images, %d values, %d channels", list[i].rank, n, (int)kd_tdesc_numel(&list[i]), width);
        kd_op_desc d = {.kind = KD_OP_CHANNEL_GATE, .inputs = 2, .x = {list[i], i % 2 ? shape(4, n, 1, 1, width) : shape(2, n, width)}, .y = list[i]};
        variants(d, 0, label);
        mixed(d, 0, label, KD_BF16, KD_F32, KD_BF16);
        mixed(d, 0, label, KD_F32, KD_BF16, KD_F32);
        mixed(d, 0, label, KD_BF16, KD_BF16, KD_F32);
        d.kind = KD_OP_ROW_SCALE;
        d.x[1] = shape(2, n, 1);
        variants(d, 0, label);
        mixed(d, 0, label, KD_BF16, KD_F32, KD_F32);
    }
}

static void qkv_by_head_cases(void) {
    static const int sizes[][5] = {{1, 1, 1, 1, 1}, {2, 7, 2, 3, 5}, {2, 9, 2, 32, 64}, {1, 5, 3, 16, 33}, {3, 4, 4, 17, 17}}; /* N, T, heads, Dk, Dh */
    for (size_t i = 0; i < COUNT(sizes); i++) {
        const int *s = sizes[i];
        kd_op_desc d = {.kind = KD_OP_QKV_BY_HEAD, .inputs = 1, .heads = s[2], .key_dim = s[3], .x = {shape(3, s[0], s[1], s[2] * (2 * s[3] + s[4]))},
                        .y = shape(3, s[0], s[1], 3 * s[2] * s[4])};
        variants(d, 0, text("%dx%d, %d heads of %d and %d", s[0], s[1], s[2], s[3], s[4]));
    }
}

/* Longer than a backend may take at once: several images whose heads it has to part, and one head whose queries it has to part. */
static void long_attention_cases(void) {
    kd_op_desc heads = {.kind = KD_OP_ATTENTION, .inputs = 1, .heads = 4, .x = {shape(3, 2, 733, 96)}, .y = shape(3, 2, 733, 32)};
    kd_op_desc queries = {.kind = KD_OP_ATTENTION, .inputs = 1, .heads = 2, .x = {shape(3, 1, 1571, 48)}, .y = shape(3, 1, 1571, 16)};
    inference(heads, "2x733, 4 heads of 8");
    inference(queries, "1x1571, 2 heads of 8");
    heads.train = heads.need_dx = 1;
    for (int bf16 = 0; bf16 < 2; bf16++) {
        set_dtype(&heads, bf16 ? KD_BF16 : KD_F32);
        push(&heads, 0, "2x733, 4 heads of 8", bf16 ? "train bf16" : "train f32");
    }
}

static void attention_cases(void) {
    static const int sizes[][4] = {{1, 1, 1, 1}, {1, 7, 1, 7}, {2, 17, 3, 16}, {1, 33, 2, 5}, {2, 50, 3, 64}, {1, 257, 1, 64},
                                   {1, 9, 2, 4}, {1, 21, 2, 80}, {2, 17, 1, 88}, {1, 33, 1, 104}, {1, 21, 2, 128},
                                   {2, 150, 1, 80}, {1, 97, 2, 128}, {1, 70, 2, 160}}; /* N, T, heads, Dh */
    for (size_t i = 0; i < COUNT(sizes); i++) {
        const int *s = sizes[i];
        int width = s[2] * s[3];
        kd_op_desc d = {.kind = KD_OP_ATTENTION, .inputs = 1, .heads = s[2], .x = {shape(3, s[0], s[1], 3 * width)}, .y = shape(3, s[0], s[1], width)};
        const char *label = text("%dx%d, %d heads of %d", s[0], s[1], s[2], s[3]);
        variants(d, 0, label);
        if (s[3] == 64 || s[3] == 160) {
            mixed(d, 0, label, KD_BF16, KD_F32, KD_F32);
            mixed(d, 0, label, KD_F32, KD_F32, KD_BF16);
        }
    }
    long_attention_cases();
}

static void resize_cases(void) {
    static const int sizes[][6] = {{1, 1, 1, 1, 3, 3}, {2, 7, 5, 17, 14, 10}, {1, 16, 16, 33, 14, 14}, {1, 7, 7, 8, 3, 5}, {1, 3, 4, 7, 17, 33}, {2, 5, 5, 64, 5, 5}};
    for (size_t i = 0; i < COUNT(sizes); i++) {
        const int *s = sizes[i]; /* N, h, w, D, H, W */
        kd_op_desc d = {.kind = KD_OP_RESIZE_BILINEAR, .inputs = 1, .x = {shape(4, s[0], s[1], s[2], s[3])}, .y = shape(4, s[0], s[4], s[5], s[3])};
        const char *label = text("%dx%dx%dx%d to %dx%d", s[0], s[1], s[2], s[3], s[4], s[5]);
        variants(d, 0, label);
        mixed(d, 0, label, KD_BF16, KD_F32, KD_F32);
    }
}

size_t ops_cases(const ops_case **list) {
    static int built;
    if (!built) {
        built = 1;
        normalize_cases();
        conv2d_cases();
        linear_cases();
        batch_norm_cases();
        layer_norm_cases();
        pointwise_cases();
        silu_gate_cases();
        max_pool_cases();
        token_cases();
        sequence_cases();
        concat_cases();
        long_concat_cases();
        channel_slice_cases();
        gate_and_scale_cases();
        qkv_by_head_cases();
        rope_cases();
        attention_cases();
        resize_cases();
        mse_cases();
        mse_adjoint_cases();
        l2_normalize_cases();
        row_loss_cases();
        similarity_loss_cases();
    }
    *list = cases;
    return count;
}

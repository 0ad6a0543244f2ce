/* Ops of kernels/ops.h in ops of ONNX (onnx/docs/Operators.md, opset 17). */
#include <math.h>

#include "train/export/onnx_walk.h"

/* The order in which arguments are computed is the compiler's: at most one of a call's arguments may write a node. */
static const char *one(kd_onnx_walk *w, const char *op, const char *x, const kd_onnx_attr *attrs) {
    return kd_onnx_emit(w, op, KD_ONNX_NAMES(x), attrs);
}

static const char *two(kd_onnx_walk *w, const char *op, const char *a, const char *b) {
    return kd_onnx_emit(w, op, KD_ONNX_NAMES(a, b), NULL);
}

static void shape_of(const kd_onnx_walk *w, kd_val v, int *rank, int64_t shape[3]) {
    kd_graph_shape(w->g, v, rank, shape);
}

static int64_t channels_of(const kd_onnx_walk *w, kd_val v) {
    int rank;
    int64_t shape[3];
    shape_of(w, v, &rank, shape);
    return shape[rank - 1];
}

static int channel_axis(kd_onnx_layout layout) {
    return layout == KD_ONNX_MAPS ? 1 : -1;
}

/* ---- activations ---- */

/* 0.5 x (1 + erf(x / sqrt 2)); Gelu itself begins with opset 20 */
static const char *gelu(kd_onnx_walk *w, const char *x) {
    const char *e = one(w, "Erf", two(w, "Div", x, kd_onnx_scalar(w, sqrtf(2.0f))), NULL);
    return two(w, "Mul", two(w, "Mul", x, two(w, "Add", e, kd_onnx_scalar(w, 1.0f))), kd_onnx_scalar(w, 0.5f));
}

static const char *silu(kd_onnx_walk *w, const char *x) {
    return two(w, "Mul", x, one(w, "Sigmoid", x, NULL));
}

static const char *activation(kd_onnx_walk *w, const char *x, kd_act act) {
    switch (act) {
    case KD_ACT_NONE: return x;
    case KD_ACT_RELU: return one(w, "Relu", x, NULL);
    case KD_ACT_GELU: return gelu(w, x);
    case KD_ACT_SILU: return silu(w, x);
    case KD_ACT_HARDSWISH: return one(w, "HardSwish", x, NULL);
    case KD_ACT_HARDSIGMOID: return one(w, "HardSigmoid", x, KD_ONNX_ATTRS(KD_ONNX_FLOAT("alpha", 1.0f / 6), KD_ONNX_FLOAT("beta", 0.5f)));
    }
    return x;
}

/* One number after another: in any layout. */
static void act_node(kd_onnx_walk *w, const kd_graph_node *n, kd_act act) {
    kd_onnx_layout layout = kd_onnx_layout_of(w, n->x[0]);
    kd_onnx_set(w, n->y, layout, activation(w, kd_onnx_value(w, n->x[0], layout), act));
}

/* silu(first half) * second half */
static void silu_gate(kd_onnx_walk *w, const kd_graph_node *n) {
    int64_t half = channels_of(w, n->y);
    const char *part[2];
    kd_onnx_split(w, kd_onnx_value(w, n->x[0], KD_ONNX_ROWS), -1, 2, (int64_t[]){half, half}, part);
    kd_onnx_set(w, n->y, KD_ONNX_ROWS, two(w, "Mul", silu(w, part[0]), part[1]));
}

/* ---- maps ---- */

static void conv2d(kd_onnx_walk *w, const kd_graph_node *n) {
    const kd_op_desc *d = n->desc;
    const char *bias = d->bias ? kd_onnx_param(w, n->param[1]) : NULL;
    const char *y = kd_onnx_emit(w, "Conv", KD_ONNX_NAMES(kd_onnx_value(w, n->x[0], KD_ONNX_MAPS), kd_onnx_param(w, n->param[0]), bias),
                                 KD_ONNX_ATTRS(KD_ONNX_INT("group", kd_op_groups(d)), KD_ONNX_INTS("kernel_shape", d->kernel, d->kernel),
                                               KD_ONNX_INTS("pads", d->pad, d->pad, d->pad, d->pad), KD_ONNX_INTS("strides", d->stride, d->stride)));
    kd_onnx_set(w, n->y, KD_ONNX_MAPS, activation(w, y, d->act));
}

static void batch_norm(kd_onnx_walk *w, const kd_graph_node *n) {
    const char *y = kd_onnx_emit(w, "BatchNormalization",
                                 KD_ONNX_NAMES(kd_onnx_value(w, n->x[0], KD_ONNX_MAPS), kd_onnx_param(w, n->param[0]), kd_onnx_param(w, n->param[1]), kd_onnx_param(w, n->state[0]),
                                               kd_onnx_param(w, n->state[1])),
                                 KD_ONNX_ATTRS(KD_ONNX_FLOAT("epsilon", n->desc->eps)));
    if (n->desc->inputs == 2)
        y = two(w, "Add", y, kd_onnx_value(w, n->x[1], KD_ONNX_MAPS));
    kd_onnx_set(w, n->y, KD_ONNX_MAPS, activation(w, y, n->desc->act));
}

static void max_pool(kd_onnx_walk *w, const kd_graph_node *n) {
    const kd_op_desc *d = n->desc;
    kd_onnx_set(w, n->y, KD_ONNX_MAPS, one(w, "MaxPool", kd_onnx_value(w, n->x[0], KD_ONNX_MAPS),
                                           KD_ONNX_ATTRS(KD_ONNX_INTS("kernel_shape", d->kernel, d->kernel), KD_ONNX_INTS("pads", d->pad, d->pad, d->pad, d->pad),
                                                         KD_ONNX_INTS("strides", d->stride, d->stride))));
}

static void mean_tokens(kd_onnx_walk *w, const kd_graph_node *n) {
    int rank;
    int64_t shape[3];
    shape_of(w, n->x[0], &rank, shape);
    const kd_onnx_attr *axes = rank == 3 ? KD_ONNX_ATTRS(KD_ONNX_INTS("axes", 2, 3), KD_ONNX_INT("keepdims", 0)) : KD_ONNX_ATTRS(KD_ONNX_INTS("axes", 1), KD_ONNX_INT("keepdims", 0));
    kd_onnx_set(w, n->y, KD_ONNX_ROWS, one(w, "ReduceMean", kd_onnx_value(w, n->x[0], KD_ONNX_MAPS), axes));
}

/* x1 holds a number per channel, as a vector or as a map of one position. */
static void channel_gate(kd_onnx_walk *w, const kd_graph_node *n) {
    int rank, gate_rank;
    int64_t shape[3];
    shape_of(w, n->x[1], &gate_rank, shape);
    shape_of(w, n->x[0], &rank, shape);
    const char *x = kd_onnx_value(w, n->x[0], KD_ONNX_MAPS), *gate = kd_onnx_value(w, n->x[1], KD_ONNX_MAPS);
    if (gate_rank != rank)
        gate = two(w, "Reshape", gate, rank == 3 ? KD_ONNX_CONST(w, 0, shape[2], 1, 1) : KD_ONNX_CONST(w, 0, 1, shape[rank - 1]));
    kd_onnx_set(w, n->y, KD_ONNX_MAPS, two(w, "Mul", x, gate));
}

/* ---- joins and slices ---- */

static void add(kd_onnx_walk *w, const kd_graph_node *n) {
    kd_onnx_layout layout = kd_onnx_layout_of(w, n->x[0]);
    const char *a = kd_onnx_value(w, n->x[0], layout), *b = kd_onnx_value(w, n->x[1], layout);
    kd_onnx_set(w, n->y, layout, activation(w, two(w, "Add", a, b), n->desc->act));
}

/* gamma is a vector, or [C,1,1] for maps. */
static void scale_add(kd_onnx_walk *w, const kd_graph_node *n) {
    kd_onnx_layout layout = kd_params_info(w->p, n->param[0]).rank == 3 ? KD_ONNX_MAPS : KD_ONNX_ROWS;
    const char *residual = kd_onnx_value(w, n->x[0], layout), *x = kd_onnx_value(w, n->x[1], layout);
    x = two(w, "Mul", x, kd_onnx_param(w, n->param[0]));
    kd_onnx_set(w, n->y, layout, two(w, "Add", residual, x));
}

static void concat(kd_onnx_walk *w, const kd_graph_node *n) {
    kd_onnx_layout layout = kd_onnx_layout_of(w, n->x[0]);
    const char *x[KD_OP_MAX_X + 1] = {NULL};
    for (int k = 0; k < n->desc->inputs; k++)
        x[k] = kd_onnx_value(w, n->x[k], layout);
    kd_onnx_set(w, n->y, layout, kd_onnx_emit(w, "Concat", x, KD_ONNX_ATTRS(KD_ONNX_INT("axis", channel_axis(layout)))));
}

static const char *slice(kd_onnx_walk *w, const char *x, int64_t begin, int64_t count, int64_t axis) {
    return kd_onnx_emit(w, "Slice", KD_ONNX_NAMES(x, KD_ONNX_CONST(w, begin), KD_ONNX_CONST(w, begin + count), KD_ONNX_CONST(w, axis)), NULL);
}

static void channel_slice(kd_onnx_walk *w, const kd_graph_node *n) {
    kd_onnx_layout layout = kd_onnx_layout_of(w, n->x[0]);
    kd_onnx_set(w, n->y, layout, slice(w, kd_onnx_value(w, n->x[0], layout), n->desc->begin, channels_of(w, n->y), channel_axis(layout)));
}

static void token_slice(kd_onnx_walk *w, const kd_graph_node *n) {
    int rank;
    int64_t shape[3];
    shape_of(w, n->y, &rank, shape);
    kd_onnx_set(w, n->y, KD_ONNX_ROWS, slice(w, kd_onnx_value(w, n->x[0], KD_ONNX_ROWS), n->desc->begin, shape[0], 1));
}

/* ---- rows ---- */

/* x W^T + b; runtimes turn the weight once, when they load the model. */
static void linear(kd_onnx_walk *w, const kd_graph_node *n) {
    const char *weight = one(w, "Transpose", kd_onnx_param(w, n->param[0]), KD_ONNX_ATTRS(KD_ONNX_INTS("perm", 1, 0)));
    const char *y = two(w, "MatMul", kd_onnx_value(w, n->x[0], KD_ONNX_ROWS), weight);
    if (n->desc->bias)
        y = two(w, "Add", y, kd_onnx_param(w, n->param[1]));
    kd_onnx_set(w, n->y, KD_ONNX_ROWS, activation(w, y, n->desc->act));
}

static void layer_norm(kd_onnx_walk *w, const kd_graph_node *n) {
    kd_onnx_set(w, n->y, KD_ONNX_ROWS,
                kd_onnx_emit(w, "LayerNormalization", KD_ONNX_NAMES(kd_onnx_value(w, n->x[0], KD_ONNX_ROWS), kd_onnx_param(w, n->param[0]), kd_onnx_param(w, n->param[1])),
                             KD_ONNX_ATTRS(KD_ONNX_INT("axis", -1), KD_ONNX_FLOAT("epsilon", n->desc->eps))));
}

/* [batch,T,D] -> [batch,heads,T,D/heads], or with its last two sides swapped */
static const char *heads_of(kd_onnx_walk *w, const char *x, int64_t heads, int64_t head_dim, int swapped) {
    x = two(w, "Reshape", x, KD_ONNX_CONST(w, 0, 0, heads, head_dim));
    return one(w, "Transpose", x, swapped ? KD_ONNX_ATTRS(KD_ONNX_INTS("perm", 0, 2, 3, 1)) : KD_ONNX_ATTRS(KD_ONNX_INTS("perm", 0, 2, 1, 3)));
}

/* softmax(q k^T / sqrt(Dh)) v */
static void attention(kd_onnx_walk *w, const kd_graph_node *n) {
    int64_t width = channels_of(w, n->y), heads = n->desc->heads, head_dim = width / heads;
    const char *part[3];
    kd_onnx_split(w, kd_onnx_value(w, n->x[0], KD_ONNX_ROWS), -1, 3, (int64_t[]){width, width, width}, part);
    const char *q = two(w, "Mul", heads_of(w, part[0], heads, head_dim, 0), kd_onnx_scalar(w, 1.0f / sqrtf((float)head_dim)));
    const char *p = one(w, "Softmax", two(w, "MatMul", q, heads_of(w, part[1], heads, head_dim, 1)), KD_ONNX_ATTRS(KD_ONNX_INT("axis", -1)));
    const char *y = two(w, "MatMul", p, heads_of(w, part[2], heads, head_dim, 0));
    y = one(w, "Transpose", y, KD_ONNX_ATTRS(KD_ONNX_INTS("perm", 0, 2, 1, 3)));
    kd_onnx_set(w, n->y, KD_ONNX_ROWS, two(w, "Reshape", y, KD_ONNX_CONST(w, 0, 0, width)));
}

/* [batch,T,heads (2 Dk + Dh)], q|k|v of a head beside each other -> [batch,T,3 heads Dh], rows q|k|v; q and k get zeros up to Dh, and q what attention's 1 / sqrt(Dh) lacks for 1 / sqrt(Dk). */
static void qkv_by_head(kd_onnx_walk *w, const kd_graph_node *n) {
    int64_t heads = n->desc->heads, key = n->desc->key_dim, width = channels_of(w, n->y) / 3, head_dim = width / heads;
    const char *part[3], *x = two(w, "Reshape", kd_onnx_value(w, n->x[0], KD_ONNX_ROWS), KD_ONNX_CONST(w, 0, 0, heads, 2 * key + head_dim));
    kd_onnx_split(w, x, -1, 3, (int64_t[]){key, key, head_dim}, part);
    part[0] = two(w, "Mul", part[0], kd_onnx_scalar(w, sqrtf((float)head_dim / (float)key)));
    for (int i = 0; i < 3; i++) {
        if (i < 2)
            part[i] = two(w, "Pad", part[i], KD_ONNX_CONST(w, 0, 0, 0, 0, 0, 0, 0, head_dim - key));
        part[i] = two(w, "Reshape", part[i], KD_ONNX_CONST(w, 0, 0, width));
    }
    kd_onnx_set(w, n->y, KD_ONNX_ROWS, kd_onnx_emit(w, "Concat", KD_ONNX_NAMES(part[0], part[1], part[2]), KD_ONNX_ATTRS(KD_ONNX_INT("axis", -1))));
}

/* A parameter [1,n,D] for every image of the batch, whose size is that of x. */
static const char *for_batch(kd_onnx_walk *w, int param, const char *x) {
    kd_param_info info = kd_params_info(w->p, param);
    const char *batch = one(w, "Shape", x, KD_ONNX_ATTRS(KD_ONNX_INT("start", 0), KD_ONNX_INT("end", 1)));
    const char *shape = kd_onnx_emit(w, "Concat", KD_ONNX_NAMES(batch, KD_ONNX_CONST(w, info.shape[1], info.shape[2])), KD_ONNX_ATTRS(KD_ONNX_INT("axis", 0)));
    return two(w, "Expand", kd_onnx_param(w, param), shape);
}

/* Class token and patches, positions added to both, registers between them. */
static void tokens(kd_onnx_walk *w, const kd_graph_node *n) {
    int rank;
    int64_t shape[3];
    shape_of(w, n->x[0], &rank, shape);
    const kd_onnx_attr *axis = KD_ONNX_ATTRS(KD_ONNX_INT("axis", 1));
    const char *x = kd_onnx_value(w, n->x[0], KD_ONNX_ROWS), *part[2];
    const char *y = kd_onnx_emit(w, "Concat", KD_ONNX_NAMES(for_batch(w, n->param[0], x), x), axis);
    if (n->desc->positions)
        y = two(w, "Add", y, kd_onnx_param(w, n->param[1]));
    if (n->desc->registers > 0) {
        kd_onnx_split(w, y, 1, 2, (int64_t[]){1, shape[0]}, part);
        y = kd_onnx_emit(w, "Concat", KD_ONNX_NAMES(part[0], for_batch(w, n->param[2], x), part[1]), axis);
    }
    kd_onnx_set(w, n->y, KD_ONNX_ROWS, y);
}

/* ---- all of them ---- */

void kd_onnx_op(kd_onnx_walk *w, const kd_graph_node *n) {
    w->node = n->desc->name;
    switch (n->desc->kind) {
    case KD_OP_NORMALIZE: kd_onnx_set(w, n->y, KD_ONNX_MAPS, "images"); return; /* the input is what comes out of it */
    case KD_OP_CONV2D: conv2d(w, n); return;
    case KD_OP_LINEAR: linear(w, n); return;
    case KD_OP_BATCH_NORM: batch_norm(w, n); return;
    case KD_OP_LAYER_NORM: layer_norm(w, n); return;
    case KD_OP_RELU: act_node(w, n, KD_ACT_RELU); return;
    case KD_OP_GELU: act_node(w, n, KD_ACT_GELU); return;
    case KD_OP_SILU: act_node(w, n, KD_ACT_SILU); return;
    case KD_OP_HARDSWISH: act_node(w, n, KD_ACT_HARDSWISH); return;
    case KD_OP_HARDSIGMOID: act_node(w, n, KD_ACT_HARDSIGMOID); return;
    case KD_OP_SILU_GATE: silu_gate(w, n); return;
    case KD_OP_ADD: add(w, n); return;
    case KD_OP_SCALE_ADD: scale_add(w, n); return;
    case KD_OP_MAX_POOL: max_pool(w, n); return;
    case KD_OP_MEAN_TOKENS: mean_tokens(w, n); return;
    case KD_OP_ATTENTION: attention(w, n); return;
    case KD_OP_TOKENS: tokens(w, n); return;
    case KD_OP_TOKEN_SLICE: token_slice(w, n); return;
    case KD_OP_CONCAT: concat(w, n); return;
    case KD_OP_CHANNEL_SLICE: channel_slice(w, n); return;
    case KD_OP_CHANNEL_GATE: channel_gate(w, n); return;
    case KD_OP_QKV_BY_HEAD: qkv_by_head(w, n); return;
    default: break; /* what no student has: turned positions, resizing, losses, what is only for training */
    }
    if (w->status == KD_OK)
        w->status = kd_fail(w->err, KD_EUSAGE, "%s: the op %s isn't written as ONNX; export as safetensors", n->desc->name, kd_op_kind_name(n->desc->kind));
}

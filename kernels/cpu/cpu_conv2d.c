/* conv2d: oneDNN's direct convolutions on channels-last maps. Weights are packed once per change, in one layout for the forward pass and one for the gradient of x. */
#include "common/base/mem.h"
#include "kernels/cpu/cpu.h"

typedef struct conv {
    kd_dnn *forward, *dx, *dw;
    kd_dnn *pack_forward, *pack_dx; /* pack_dx NULL: both want one layout */
    kd_dnn *unpack_dw;
    size_t packed_dx;               /* offset in args->packed */
    size_t y32, g, dx_part, dw_blocked, work; /* offsets in args->scratch */
    kd_dtype type;                  /* of the operands */
    int rounds_y;                   /* f32 product, bf16 result: oneDNN writes f32 and we round */
    int own_g;                      /* dy isn't the product's gradient yet: activation or type differ */
} conv;

static void conv_destroy(void *impl) {
    conv *c = impl;
    if (!c)
        return;
    kd_dnn *const all[] = {c->forward, c->dx, c->dw, c->pack_forward, c->pack_dx, c->unpack_dw};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        kd_dnn_destroy(all[i]);
    kd_free(c);
}

static kd_dnn_tensor weights_of(const kd_op_desc *d, kd_dtype type) {
    return (kd_dnn_tensor){.dtype = type, .rank = 4, .dim = {d->y.shape[3], d->x[0].shape[3], d->kernel, d->kernel}};
}

static kd_dnn_tensor plain_weights(const kd_op_desc *d) {
    kd_dnn_tensor w = weights_of(d, KD_F32);
    int64_t kk = (int64_t)d->kernel * d->kernel;
    w.stride[0] = w.dim[1] * kk;
    w.stride[1] = kk;
    w.stride[2] = d->kernel;
    w.stride[3] = 1;
    return w;
}

static kd_status create_forward(kd_cpu *b, conv *c, const kd_op_desc *d, kd_err *err) {
    kd_dnn_conv_desc f = {.pass = KD_DNN_FORWARD,
                          .src = kd_dnn_nhwc(c->type, d->x[0].shape),
                          .weights = weights_of(d, c->type),
                          .dst = kd_dnn_nhwc(c->rounds_y ? KD_F32 : d->y.dtype, d->y.shape),
                          .stride = d->stride,
                          .pad = d->pad,
                          .act = d->act == KD_ACT_RELU ? KD_DNN_RELU : KD_DNN_NONE};
    if (d->bias)
        f.bias = (kd_dnn_tensor){.dtype = KD_F32, .rank = 1, .dim = {d->y.shape[3]}, .stride = {1}};
    kd_dnn_tensor plain = plain_weights(d);
    KD_TRY(kd_dnn_conv(&c->forward, b->engine, &f, d->name, err));
    return kd_dnn_pack(&c->pack_forward, c->forward, &plain, d->name, err);
}

static kd_status create_backward(kd_cpu *b, conv *c, const kd_op_desc *d, kd_err *err) {
    kd_dnn_conv_desc g = {.src = kd_dnn_nhwc(c->type, d->x[0].shape), .dst = kd_dnn_nhwc(c->type, d->y.shape), .stride = d->stride, .pad = d->pad};
    kd_dnn_tensor plain = plain_weights(d);
    if (d->need_dx & 1) {
        g.pass = KD_DNN_BACKWARD_DATA;
        g.weights = weights_of(d, c->type);
        KD_TRY(kd_dnn_conv(&c->dx, b->engine, &g, d->name, err));
        if (!kd_dnn_same_weights(c->dx, c->forward))
            KD_TRY(kd_dnn_pack(&c->pack_dx, c->dx, &plain, d->name, err));
    }
    if (d->need_dparam) {
        g.pass = KD_DNN_BACKWARD_WEIGHTS;
        g.weights = weights_of(d, KD_F32);
        KD_TRY(kd_dnn_conv(&c->dw, b->engine, &g, d->name, err));
        KD_TRY(kd_dnn_unpack_add(&c->unpack_dw, c->dw, &plain, d->name, err));
    }
    return KD_OK;
}

static size_t largest(size_t a, size_t b) {
    return a > b ? a : b;
}

static void plan(conv *c, const kd_op_desc *d, kd_op_needs *needs) {
    size_t rows_y = kd_tdesc_numel(&d->y), work = kd_dnn_scratch_bytes(c->forward);
    kd_dnn *const others[] = {c->dx, c->dw, c->pack_forward, c->pack_dx, c->unpack_dw};
    for (size_t i = 0; i < sizeof others / sizeof *others; i++)
        work = largest(work, kd_dnn_scratch_bytes(others[i]));
    kd_cpu_region(&needs->packed, kd_dnn_weights_bytes(c->forward));
    if (c->pack_dx)
        c->packed_dx = kd_cpu_region(&needs->packed, kd_dnn_weights_bytes(c->dx));
    c->work = kd_cpu_region(&needs->scratch, work);
    c->y32 = kd_cpu_region(&needs->scratch, c->rounds_y ? rows_y * sizeof(float) : 0);
    c->g = kd_cpu_region(&needs->scratch, c->own_g ? rows_y * kd_dtype_size(c->type) : 0);
    c->dx_part = kd_cpu_region(&needs->scratch, c->dx && (d->add_dx & 1) ? kd_tdesc_bytes(&d->x[0]) : 0);
    c->dw_blocked = kd_cpu_region(&needs->scratch, c->dw ? kd_dnn_weights_bytes(c->dw) : 0);
}

static kd_status conv_create(kd_cpu *b, kd_op *op, kd_op_needs *needs, kd_err *err) {
    const kd_op_desc *d = &op->desc;
    conv *c = NULL;
    KD_TRY(kd_alloc_array(&c, 1, sizeof *c, err));
    op->impl = c;
    c->type = d->x[0].dtype;
    c->rounds_y = c->type == KD_F32 && d->y.dtype == KD_BF16;
    c->own_g = d->train && (d->act != KD_ACT_NONE || d->y.dtype != c->type);
    KD_TRY(create_forward(b, c, d, err));
    if (d->train)
        KD_TRY(create_backward(b, c, d, err));
    plan(c, d, needs);
    return KD_OK;
}

static kd_status conv_pack(kd_cpu *b, kd_op *op, const kd_op_args *a, kd_err *err) {
    const conv *c = op->impl;
    (void)b;
    void *work = kd_cpu_at(a->scratch, c->work);
    KD_TRY(kd_dnn_run(c->pack_forward, (void *[KD_DNN_ARGS]){[KD_DNN_SRC] = (void *)a->param[0], [KD_DNN_DST] = a->packed, [KD_DNN_SCRATCH] = work}, err));
    if (!c->pack_dx)
        return KD_OK;
    return kd_dnn_run(c->pack_dx, (void *[KD_DNN_ARGS]){[KD_DNN_SRC] = (void *)a->param[0], [KD_DNN_DST] = kd_cpu_at(a->packed, c->packed_dx), [KD_DNN_SCRATCH] = work}, err);
}

static kd_status conv_forward(kd_cpu *b, kd_op *op, const kd_op_args *a, kd_err *err) {
    const conv *c = op->impl;
    void *y = c->rounds_y ? kd_cpu_at(a->scratch, c->y32) : a->y;
    KD_TRY(kd_dnn_run(c->forward,
                      (void *[KD_DNN_ARGS]){[KD_DNN_SRC] = (void *)a->x[0], [KD_DNN_WEIGHTS] = a->packed, [KD_DNN_BIAS] = (void *)a->param[1], [KD_DNN_DST] = y,
                                            [KD_DNN_SCRATCH] = kd_cpu_at(a->scratch, c->work)},
                      err));
    if (c->rounds_y)
        kd_cpu_copy(b->base.threads, a->y, KD_BF16, y, KD_F32, kd_tdesc_numel(&op->desc.y), 0);
    return KD_OK;
}

static kd_status backward_dx(kd_cpu *b, const conv *c, const kd_op_desc *d, const kd_op_args *a, void *g, kd_err *err) {
    int add = (d->add_dx & 1) != 0;
    void *dx = add ? kd_cpu_at(a->scratch, c->dx_part) : a->dx[0];
    KD_TRY(kd_dnn_run(c->dx,
                      (void *[KD_DNN_ARGS]){[KD_DNN_SRC] = dx, [KD_DNN_WEIGHTS] = kd_cpu_at(a->packed, c->packed_dx), [KD_DNN_DST] = g,
                                            [KD_DNN_SCRATCH] = kd_cpu_at(a->scratch, c->work)},
                      err));
    if (add)
        kd_cpu_copy(b->base.threads, a->dx[0], c->type, dx, c->type, kd_tdesc_numel(&d->x[0]), 1);
    return KD_OK;
}

/* Sums of the unrounded gradient where there is one: without an activation that is dy itself. */
static void add_bias_gradient(int threads, const conv *c, const kd_op_desc *d, const kd_op_args *a, const void *g) {
    size_t width = kd_cpu_width(&d->y);
    kd_cpu_columns columns = {.out = a->dparam[1], .g = g, .g_type = c->type, .rows = kd_cpu_rows(&d->y), .stride = width, .width = width};
    if (d->act == KD_ACT_NONE)
        columns.g = a->dy, columns.g_type = d->y.dtype;
    kd_cpu_add_columns(threads, &columns);
}

static kd_status conv_backward(kd_cpu *b, kd_op *op, const kd_op_args *a, kd_err *err) {
    const conv *c = op->impl;
    const kd_op_desc *d = &op->desc;
    int threads = b->base.threads;
    void *g = (void *)a->dy, *work = kd_cpu_at(a->scratch, c->work);
    if (c->own_g) {
        g = kd_cpu_at(a->scratch, c->g);
        kd_cpu_act_grad grad = {.g = g, .dy = a->dy, .at = a->y, .g_type = c->type, .dy_type = d->y.dtype, .at_type = d->y.dtype, .act = d->act};
        kd_cpu_act_backward(threads, &grad, kd_tdesc_numel(&d->y));
    }
    if (c->dw) {
        void *dw = kd_cpu_at(a->scratch, c->dw_blocked);
        KD_TRY(kd_dnn_run(c->dw, (void *[KD_DNN_ARGS]){[KD_DNN_SRC] = (void *)a->x[0], [KD_DNN_WEIGHTS] = dw, [KD_DNN_DST] = g, [KD_DNN_SCRATCH] = work}, err));
        KD_TRY(kd_dnn_run(c->unpack_dw, (void *[KD_DNN_ARGS]){[KD_DNN_SRC] = dw, [KD_DNN_DST] = a->dparam[0], [KD_DNN_SCRATCH] = work}, err));
        if (d->bias)
            add_bias_gradient(threads, c, d, a, g);
    }
    return c->dx ? backward_dx(b, c, d, a, g, err) : KD_OK;
}

const kd_cpu_kind kd_cpu_conv2d = {conv_create, conv_destroy, conv_pack, conv_forward, conv_backward};

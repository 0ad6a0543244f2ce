/* conv2d by oneDNN, where cpu_product.c has nothing faster: CPUs without AVX2, groups and, with AVX-512, windows of few values or over a photo's three channels. Its direct convolutions on channels-last maps; weights are packed once per
 * change, in one layout for the forward pass and one for the gradient of x.
 *
 * The gradient of the weights is outer.h's, that of depthwise convolutions cpu_depthwise.c's. oneDNN's is left where outer.h has no instructions (no AVX2; bf16 without its dot products) and for groups. It is computed in parts then,
 * each by one thread over its share of the batch, and summed in a fixed order. oneDNN would do the same inside one call, but its threads wait for each other in a spinning barrier: when decoding threads take a processor away,
 * that costs whole time slices (a step took three times as long).
 *
 * Forward passes have the same bits for every number of threads (tried up to 16 with patch embeddings, a ResNet's stem and its 3x3). In the fallback that oneDNN takes for a single output channel they don't: in f32 such a
 * layer is cpu_product.c's wherever that runs. */
#include <omp.h>

#include "common/base/mem.h"
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/outer.h"
#include "kernels/cpu/simd.h"

typedef struct conv {
    kd_dnn *forward, *dx;
    kd_dnn **dw;                    /* one per part, or a single one for all threads */
    int parts;
    kd_dnn *pack_forward, *pack_dx; /* pack_dx NULL: both want one layout */
    kd_dnn *unpack_dw;
    size_t packed_dx;               /* offset in args->packed */
    size_t y32, g, dx_part, work;   /* offsets in args->scratch */
    size_t own_dw;                  /* likewise, of kd_cpu_depthwise_dw or kd_outer_dw */
    size_t dw_blocked, dw_bytes;    /* parts' results, dw_bytes apart */
    size_t dw_work, dw_work_bytes;  /* parts' own scratch, dw_work_bytes apart */
    kd_dtype type;                  /* of the operands */
    int rounds_y;                   /* f32 product, bf16 result: oneDNN writes f32 and we round */
    int own_g;                      /* dy isn't the product's gradient yet: activation or type differ */
} conv;

static void conv_destroy(void *impl) {
    conv *c = impl;
    if (!c)
        return;
    kd_dnn *const all[] = {c->forward, c->dx, c->pack_forward, c->pack_dx, c->unpack_dw};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        kd_dnn_destroy(all[i]);
    for (int i = 0; c->dw && i < c->parts; i++)
        kd_dnn_destroy(c->dw[i]);
    kd_free(c->dw);
    kd_free(c);
}

static kd_dnn_tensor weights_of(const kd_op_desc *d, kd_dtype type) {
    int64_t in = d->x[0].shape[3], out = d->y.shape[3], groups = kd_op_groups(d);
    if (groups == 1)
        return (kd_dnn_tensor){.dtype = type, .rank = 4, .dim = {out, in, d->kernel, d->kernel}};
    return (kd_dnn_tensor){.dtype = type, .rank = 5, .dim = {groups, out / groups, in / groups, d->kernel, d->kernel}};
}

static kd_dnn_tensor plain_weights(const kd_op_desc *d) {
    kd_dnn_tensor w = weights_of(d, KD_F32);
    for (int64_t i = w.rank - 1, stride = 1; i >= 0; i--) {
        w.stride[i] = stride;
        stride *= w.dim[i];
    }
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

/* Images first .. last-1 of part i. */
static int64_t part_begin(int64_t images, int part, int parts) {
    return images * part / parts;
}

static kd_dnn_conv_desc gradient_desc(const conv *c, const kd_op_desc *d) {
    return (kd_dnn_conv_desc){.src = kd_dnn_nhwc(c->type, d->x[0].shape), .dst = kd_dnn_nhwc(c->type, d->y.shape), .stride = d->stride, .pad = d->pad};
}

static kd_status create_dw_part(kd_cpu *b, conv *c, const kd_op_desc *d, int part, kd_err *err) {
    kd_dnn_conv_desc g = gradient_desc(c, d);
    int64_t images = d->x[0].shape[0];
    g.pass = KD_DNN_BACKWARD_WEIGHTS;
    g.weights = weights_of(d, KD_F32);
    g.src.dim[0] = g.dst.dim[0] = part_begin(images, part + 1, c->parts) - part_begin(images, part, c->parts);
    return kd_dnn_conv(&c->dw[part], b->engine, &g, d->name, err);
}

/* One part per thread, unless the parts' results would take more memory than this; then oneDNN divides the work over all threads. */
static const size_t PARTS_BYTES = (size_t)256 << 20;

static int parts_of(const kd_op_desc *d, int threads) {
    size_t bytes = kd_op_param_numel(d, 0) * sizeof(float) * (size_t)threads;
    if (bytes > PARTS_BYTES || threads > KD_CPU_MAX_THREADS)
        return 1;
    return d->x[0].shape[0] < threads ? (int)d->x[0].shape[0] : threads;
}

static kd_status create_dw(kd_cpu *b, conv *c, const kd_op_desc *d, kd_err *err) {
    kd_dnn_tensor plain = plain_weights(d);
    kd_status status = KD_OK;
    c->parts = parts_of(d, b->base.threads);
    KD_TRY(kd_alloc_array(&c->dw, (size_t)c->parts, sizeof *c->dw, err));
    if (c->parts > 1)
        omp_set_num_threads(1); /* oneDNN prepares a primitive for the number of threads at its creation */
    for (int i = 0; i < c->parts && status == KD_OK; i++)
        status = create_dw_part(b, c, d, i, err);
    omp_set_num_threads(b->base.threads);
    KD_TRY(status);
    for (int i = 1; i < c->parts; i++) /* parts differ by one image at most; the layout of the result doesn't depend on that */
        if (!kd_dnn_same_weights(c->dw[0], c->dw[i]))
            return kd_fail(err, KD_EFAIL, "%s: oneDNN chose different layouts for parts of %d images; use --threads 1 or a batch that the threads divide", d->name,
                           (int)d->x[0].shape[0]);
    return kd_dnn_unpack_add(&c->unpack_dw, c->dw[0], &plain, d->name, err);
}

/* Whether outer.h computes the gradient of the weights. */
static int is_outer(const kd_op_desc *d) {
    return kd_op_groups(d) == 1 && kd_product_runs_here(d->x[0].dtype);
}

/* Scratch of a gradient of the weights that isn't oneDNN's. */
static size_t own_dw_bytes(const conv *c, const kd_op_desc *d, int threads) {
    if (!d->train || !d->need_dparam || c->dw)
        return 0;
    kd_window s = kd_product_window(d);
    return kd_cpu_is_depthwise(d) ? kd_cpu_depthwise_bytes(d, threads) : kd_outer_dw_bytes(&s, c->type, threads);
}

static kd_status create_backward(kd_cpu *b, conv *c, const kd_op_desc *d, kd_err *err) {
    kd_dnn_conv_desc g = gradient_desc(c, d);
    kd_dnn_tensor plain = plain_weights(d);
    if (d->need_dx & 1) {
        g.pass = KD_DNN_BACKWARD_DATA;
        g.weights = weights_of(d, c->type);
        KD_TRY(kd_dnn_conv(&c->dx, b->engine, &g, d->name, err));
        if (!kd_dnn_same_weights(c->dx, c->forward))
            KD_TRY(kd_dnn_pack(&c->pack_dx, c->dx, &plain, d->name, err));
    }
    return d->need_dparam && !kd_cpu_is_depthwise(d) && !is_outer(d) ? create_dw(b, c, d, err) : KD_OK;
}

static size_t largest(size_t a, size_t b) {
    return a > b ? a : b;
}

static void plan(conv *c, const kd_op_desc *d, int threads, kd_op_needs *needs) {
    size_t rows_y = kd_tdesc_numel(&d->y), work = kd_dnn_scratch_bytes(c->forward);
    kd_dnn *const others[] = {c->dx, c->pack_forward, c->pack_dx, c->unpack_dw};
    for (size_t i = 0; i < sizeof others / sizeof *others; i++)
        work = largest(work, kd_dnn_scratch_bytes(others[i]));
    needs->consumed = d->train ? 0 : 1u;
    kd_cpu_region(&needs->packed, kd_dnn_weights_bytes(c->forward));
    if (c->pack_dx)
        c->packed_dx = kd_cpu_region(&needs->packed, kd_dnn_weights_bytes(c->dx));
    c->work = kd_cpu_region(&needs->scratch, work);
    c->y32 = kd_cpu_region(&needs->scratch, c->rounds_y ? rows_y * sizeof(float) : 0);
    c->g = kd_cpu_region(&needs->scratch, c->own_g ? rows_y * kd_dtype_size(c->type) : 0);
    c->dx_part = kd_cpu_region(&needs->scratch, c->dx && (d->add_dx & 1) ? kd_tdesc_bytes(&d->x[0]) : 0);
    c->own_dw = kd_cpu_region(&needs->scratch, own_dw_bytes(c, d, threads));
    if (!c->dw)
        return;
    kd_cpu_region(&c->dw_bytes, kd_dnn_weights_bytes(c->dw[0]));
    for (int i = 0; i < c->parts; i++)
        c->dw_work_bytes = largest(c->dw_work_bytes, (kd_dnn_scratch_bytes(c->dw[i]) + 63) / 64 * 64);
    c->dw_blocked = kd_cpu_region(&needs->scratch, (size_t)c->parts * c->dw_bytes);
    c->dw_work = kd_cpu_region(&needs->scratch, (size_t)c->parts * c->dw_work_bytes);
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
    plan(c, d, b->base.threads, needs);
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

typedef struct dw_ctx {
    const conv *c;
    const kd_op_desc *d;
    const kd_op_args *a;
    const char *g;
    kd_status *status; /* per part */
} dw_ctx;

static void dw_range(const void *ctx, int slice, size_t begin, size_t end) {
    const dw_ctx *w = ctx;
    const conv *c = w->c;
    size_t images = (size_t)w->d->x[0].shape[0], x_bytes = kd_tdesc_bytes(&w->d->x[0]) / images, g_bytes = kd_tdesc_numel(&w->d->y) / images * kd_dtype_size(c->type);
    (void)slice;
    for (size_t i = begin; i < end; i++) {
        size_t first = (size_t)part_begin((int64_t)images, (int)i, c->parts);
        w->status[i] = kd_dnn_run(c->dw[i],
                                  (void *[KD_DNN_ARGS]){[KD_DNN_SRC] = (char *)w->a->x[0] + first * x_bytes,
                                                        [KD_DNN_WEIGHTS] = kd_cpu_at(w->a->scratch, c->dw_blocked + i * c->dw_bytes),
                                                        [KD_DNN_DST] = (char *)w->g + first * g_bytes,
                                                        [KD_DNN_SCRATCH] = kd_cpu_at(w->a->scratch, c->dw_work + i * c->dw_work_bytes)},
                                  NULL);
    }
}

typedef struct sum_ctx {
    float *parts;
    size_t stride;
    int count;
} sum_ctx;

/* The first part becomes the sum of all. */
KD_HOT static void sum_range(const void *ctx, int slice, size_t begin, size_t end) {
    const sum_ctx c = *(const sum_ctx *)ctx;
    (void)slice;
    for (size_t i = begin; i < end; i += KD_VF) {
        int n = kd_lanes(end - i);
        kd_vf sum = kd_load_f32(c.parts + i, n);
        for (int p = 1; p < c.count; p++)
            sum += kd_load_f32(c.parts + (size_t)p * c.stride + i, n);
        kd_store_f32(c.parts + i, sum, n);
    }
}

static kd_status backward_dw(int threads, const conv *c, const kd_op_desc *d, const kd_op_args *a, const void *g, kd_err *err) {
    kd_status status[KD_CPU_MAX_THREADS];
    float *dw = kd_cpu_at(a->scratch, c->dw_blocked);
    dw_ctx w = {c, d, a, g, status};
    if (c->parts == 1)
        dw_range(&w, 0, 0, 1);
    else
        kd_cpu_parallel(threads, (size_t)c->parts, (size_t)1 << 20, dw_range, &w);
    for (int i = 0; i < c->parts; i++)
        if (status[i] != KD_OK)
            return kd_fail(err, status[i], "oneDNN failed in part %d of %d of a convolution's weights gradient", i, c->parts);
    if (c->parts > 1)
        kd_cpu_parallel(threads, c->dw_bytes / sizeof(float), 1, sum_range, &(sum_ctx){dw, c->dw_bytes / sizeof(float), c->parts});
    return kd_dnn_run(c->unpack_dw, (void *[KD_DNN_ARGS]){[KD_DNN_SRC] = dw, [KD_DNN_DST] = a->dparam[0], [KD_DNN_SCRATCH] = kd_cpu_at(a->scratch, c->work)}, err);
}

static void own_dw(int threads, const conv *c, const kd_op_desc *d, const kd_op_args *a, const void *g) {
    void *scratch = kd_cpu_at(a->scratch, c->own_dw);
    kd_window s = kd_product_window(d);
    if (kd_cpu_is_depthwise(d))
        kd_cpu_depthwise_dw(threads, d, a->dparam[0], a->x[0], g, c->type, scratch);
    else
        kd_outer_dw(threads, &s, c->type, a->dparam[0], a->x[0], g, scratch);
}

static kd_status conv_backward(kd_cpu *b, kd_op *op, const kd_op_args *a, kd_err *err) {
    const conv *c = op->impl;
    const kd_op_desc *d = &op->desc;
    int threads = b->base.threads;
    void *g = (void *)a->dy;
    if (c->own_g) {
        g = kd_cpu_at(a->scratch, c->g);
        kd_cpu_act_grad grad = {.g = g, .dy = a->dy, .at = a->y, .g_type = c->type, .dy_type = d->y.dtype, .at_type = d->y.dtype, .act = d->act};
        kd_cpu_act_backward(threads, &grad, kd_tdesc_numel(&d->y));
    }
    if (c->dw)
        KD_TRY(backward_dw(threads, c, d, a, g, err));
    else if (d->need_dparam)
        own_dw(threads, c, d, a, g);
    if (d->need_dparam && d->bias)
        kd_cpu_add_bias_gradient(threads, d, a->dparam[1], a->dy, g);
    return c->dx ? backward_dx(b, c, d, a, g, err) : KD_OK;
}

const kd_cpu_kind kd_cpu_conv2d = {conv_create, conv_destroy, conv_pack, conv_forward, conv_backward};

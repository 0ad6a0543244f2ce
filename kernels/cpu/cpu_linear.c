/* linear by oneDNN, where cpu_product.c and cpu_linear_avx512.c have nothing faster: matrix products with packed weights; bias and (in inference) the activation ride on the product. The residual join is an own pass over the product:
 * oneDNN's binary post operations took four times as long.
 *
 * In inference the bits mustn't depend on the number of threads. Those of oneDNN's brgemm (AVX-512) don't. Its older products ("gemm:jit", all that 2.x has
 * without) divide the work in ways that follow the number of threads; there the rows are cut into blocks that follow from the op's shape alone, and each block is one thread's. */
#include <omp.h>
#include <string.h>

#include "common/base/mem.h"
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/simd.h"

/* Prepared products hold the addresses of a call, so every slice of the work has its own. */
typedef struct block_products {
    kd_dnn *whole, *last; /* last: of the remaining rows, NULL when there are none */
} block_products;

typedef struct linear {
    kd_dnn *forward, *dx, *dw; /* forward NULL: the slices compute it in blocks */
    kd_dnn *pack_forward, *pack_dx;
    block_products *slice;
    int slices;
    int64_t block_rows;
    size_t block_work, block_work_bytes; /* offset in args->scratch of the first slice's part, and the distance to the next */
    size_t packed_dx;          /* offset in args->packed */
    size_t y32, g, work;       /* offsets in args->scratch */
    kd_dtype type;             /* of the operands */
    kd_dtype product;          /* of what oneDNN writes */
    int saves_input_of_act;    /* GELU in training: the product goes to args->saved in f32, its activation to y */
    int own_g;                 /* dy isn't the product's gradient yet: activation or type differ */
} linear;

static void linear_destroy(void *impl) {
    linear *l = impl;
    if (!l)
        return;
    kd_dnn *const all[] = {l->forward, l->dx, l->dw, l->pack_forward, l->pack_dx};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        kd_dnn_destroy(all[i]);
    for (int i = 0; l->slice && i < l->slices; i++) {
        kd_dnn_destroy(l->slice[i].whole);
        kd_dnn_destroy(l->slice[i].last);
    }
    kd_free(l->slice);
    kd_free(l);
}

typedef struct dims {
    int64_t rows, in, out;
} dims;

static dims dims_of(const kd_op_desc *d) {
    return (dims){(int64_t)kd_cpu_rows(&d->y), (int64_t)kd_cpu_width(&d->x[0]), (int64_t)kd_cpu_width(&d->y)};
}

static kd_dnn_tensor packed_matrix(kd_dtype type, int64_t rows, int64_t width) {
    return (kd_dnn_tensor){.dtype = type, .rank = 2, .dim = {rows, width}};
}

/* Blocks share one layout of the weights, so it is given, not chosen. Rows lie a little further apart than they are long: with 1536 columns in rows without a gap, blocks took
 * a third longer. */
static kd_dnn_tensor weights_of_blocks(const linear *l, dims s) {
    kd_dnn_tensor w = packed_matrix(l->type, s.in, s.out);
    w.stride[0] = (s.out + 15) / 16 * 16 + 16;
    w.stride[1] = 1;
    return w;
}

/* y[rows,O] = x[rows,I] W^T */
static kd_status create_product(kd_dnn **out, kd_cpu *b, const linear *l, const kd_op_desc *d, int64_t rows, kd_err *err) {
    static const kd_dnn_act act[] = {[KD_ACT_NONE] = KD_DNN_NONE, [KD_ACT_RELU] = KD_DNN_RELU, [KD_ACT_GELU] = KD_DNN_GELU};
    dims s = dims_of(d);
    kd_dnn_matmul_desc m = {.a = kd_dnn_rows(l->type, rows, s.in), .c = kd_dnn_rows(l->product, rows, s.out)};
    m.b = l->slice ? weights_of_blocks(l, s) : packed_matrix(l->type, s.in, s.out);
    if (d->bias)
        m.bias = kd_dnn_rows(KD_F32, 1, s.out);
    if (!l->saves_input_of_act)
        m.act = act[d->act];
    return kd_dnn_matmul(out, b->engine, &m, d->name, err);
}

/* Small enough to share the images of a small batch among threads, and hardly slower than all rows at once. It doesn't depend on the number of threads, for the shape of a
 * product may change its bits. */
enum { BLOCK_ROWS = 128 };

static kd_status create_slices(kd_cpu *b, linear *l, const kd_op_desc *d, kd_err *err) {
    kd_status status = KD_OK;
    int64_t rows = dims_of(d).rows;
    l->block_rows = rows < BLOCK_ROWS ? rows : BLOCK_ROWS;
    l->slices = b->base.threads < KD_CPU_MAX_THREADS ? b->base.threads : KD_CPU_MAX_THREADS;
    KD_TRY(kd_alloc_array(&l->slice, (size_t)l->slices, sizeof *l->slice, err));
    omp_set_num_threads(1); /* oneDNN prepares a primitive for the number of threads at its creation */
    for (int i = 0; i < l->slices && status == KD_OK; i++) {
        block_products *p = &l->slice[i];
        status = create_product(&p->whole, b, l, d, l->block_rows, err);
        if (status == KD_OK && rows % l->block_rows)
            status = create_product(&p->last, b, l, d, rows % l->block_rows, err);
    }
    omp_set_num_threads(b->base.threads);
    return status;
}

static const kd_dnn *forward_product(const linear *l) {
    return l->slice ? l->slice[0].whole : l->forward;
}

static kd_status create_forward(kd_cpu *b, linear *l, const kd_op_desc *d, kd_err *err) {
    dims s = dims_of(d);
    kd_dnn_tensor plain = kd_dnn_transposed(kd_dnn_rows(KD_F32, s.out, s.in));
    KD_TRY(create_product(&l->forward, b, l, d, s.rows, err));
    if (!d->train && strncmp(kd_dnn_implementation(l->forward), "brg:", 4) != 0) {
        kd_dnn_destroy(l->forward);
        l->forward = NULL;
        KD_TRY(create_slices(b, l, d, err));
    }
    return kd_dnn_pack(&l->pack_forward, forward_product(l), &plain, d->name, err);
}

/* dx[M,I] = g[M,O] W and dW[O,I] += g^T x */
static kd_status create_backward(kd_cpu *b, linear *l, const kd_op_desc *d, kd_err *err) {
    dims s = dims_of(d);
    kd_dnn_tensor g = kd_dnn_rows(l->type, s.rows, s.out), x = kd_dnn_rows(l->type, s.rows, s.in), plain = kd_dnn_rows(KD_F32, s.out, s.in);
    if (d->need_dx & 1) {
        kd_dnn_matmul_desc m = {.a = g, .b = packed_matrix(l->type, s.out, s.in), .c = x, .add = (d->add_dx & 1) != 0};
        KD_TRY(kd_dnn_matmul(&l->dx, b->engine, &m, d->name, err));
        KD_TRY(kd_dnn_pack(&l->pack_dx, l->dx, &plain, d->name, err));
    }
    if (d->need_dparam) {
        kd_dnn_matmul_desc m = {.a = kd_dnn_transposed(g), .b = x, .c = plain, .add = 1};
        KD_TRY(kd_dnn_matmul(&l->dw, b->engine, &m, d->name, err));
    }
    return KD_OK;
}

static void plan(linear *l, const kd_op_desc *d, kd_op_needs *needs) {
    size_t outputs = kd_tdesc_numel(&d->y), work = 0;
    const kd_dnn *const all[] = {l->forward, l->dx, l->dw, l->pack_forward, l->pack_dx};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        if (kd_dnn_scratch_bytes(all[i]) > work)
            work = kd_dnn_scratch_bytes(all[i]);
    needs->consumed = d->train ? 0 : 1u;
    kd_cpu_region(&needs->packed, kd_dnn_weights_bytes(forward_product(l)));
    if (l->dx)
        l->packed_dx = kd_cpu_region(&needs->packed, kd_dnn_weights_bytes(l->dx));
    if (l->saves_input_of_act)
        needs->saved = outputs * sizeof(float);
    l->work = kd_cpu_region(&needs->scratch, work);
    if (l->slice) {
        size_t whole = kd_dnn_scratch_bytes(l->slice[0].whole), last = kd_dnn_scratch_bytes(l->slice[0].last);
        l->block_work_bytes = ((whole > last ? whole : last) + 63) / 64 * 64;
        l->block_work = kd_cpu_region(&needs->scratch, (size_t)l->slices * l->block_work_bytes);
    }
    l->y32 = kd_cpu_region(&needs->scratch, l->product != d->y.dtype && !l->saves_input_of_act ? outputs * sizeof(float) : 0);
    l->g = kd_cpu_region(&needs->scratch, l->own_g ? outputs * kd_dtype_size(l->type) : 0);
}

static kd_status linear_create(kd_cpu *b, kd_op *op, kd_op_needs *needs, kd_err *err) {
    const kd_op_desc *d = &op->desc;
    linear *l = NULL;
    KD_TRY(kd_alloc_array(&l, 1, sizeof *l, err));
    op->impl = l;
    l->type = d->x[0].dtype;
    l->saves_input_of_act = d->train && d->act == KD_ACT_GELU;
    l->product = l->type == KD_F32 || l->saves_input_of_act || d->residual ? KD_F32 : d->y.dtype;
    l->own_g = d->train && (d->act != KD_ACT_NONE || d->y.dtype != l->type);
    KD_TRY(create_forward(b, l, d, err));
    if (d->train)
        KD_TRY(create_backward(b, l, d, err));
    plan(l, d, needs);
    return KD_OK;
}

static kd_status linear_pack(kd_cpu *b, kd_op *op, const kd_op_args *a, kd_err *err) {
    const linear *l = op->impl;
    (void)b;
    void *work = kd_cpu_at(a->scratch, l->work);
    KD_TRY(kd_dnn_run(l->pack_forward, (void *[KD_DNN_ARGS]){[KD_DNN_SRC] = (void *)a->param[0], [KD_DNN_DST] = a->packed, [KD_DNN_SCRATCH] = work}, err));
    if (!l->dx)
        return KD_OK;
    return kd_dnn_run(l->pack_dx, (void *[KD_DNN_ARGS]){[KD_DNN_SRC] = (void *)a->param[0], [KD_DNN_DST] = kd_cpu_at(a->packed, l->packed_dx), [KD_DNN_SCRATCH] = work}, err);
}

typedef struct product_call {
    const linear *l;
    const kd_op_args *a;
    dims s;
    void *product;
    kd_status *status; /* per slice */
} product_call;

static void blocks_range(const void *ctx, int slice, size_t begin, size_t end) {
    const product_call *c = ctx;
    const linear *l = c->l;
    for (size_t i = begin; i < end && c->status[slice] == KD_OK; i++) {
        int64_t row = (int64_t)i * l->block_rows;
        int last = c->s.rows - row < l->block_rows;
        void *x = (char *)c->a->x[0] + (size_t)(row * c->s.in) * kd_dtype_size(l->type), *y = (char *)c->product + (size_t)(row * c->s.out) * kd_dtype_size(l->product);
        c->status[slice] = kd_dnn_run(last ? l->slice[slice].last : l->slice[slice].whole,
                                      (void *[KD_DNN_ARGS]){[KD_DNN_SRC] = x, [KD_DNN_WEIGHTS] = c->a->packed, [KD_DNN_BIAS] = (void *)c->a->param[1], [KD_DNN_DST] = y,
                                                            [KD_DNN_SCRATCH] = kd_cpu_at(c->a->scratch, l->block_work + (size_t)slice * l->block_work_bytes)},
                                      NULL);
    }
}

/* Always in a parallel region, however small the work is: outside of one, oneDNN would run a product that was prepared for one thread on all. */
static kd_status run_blocks(const linear *l, const kd_op_desc *d, const kd_op_args *a, void *product, kd_err *err) {
    kd_status status[KD_CPU_MAX_THREADS] = {KD_OK};
    product_call c = {l, a, dims_of(d), product, status};
    kd_cpu_parallel(l->slices, (size_t)((c.s.rows + l->block_rows - 1) / l->block_rows), (size_t)1 << 20, blocks_range, &c);
    for (int i = 0; i < l->slices; i++)
        if (status[i] != KD_OK)
            return kd_fail(err, status[i], "oneDNN failed in part %d of %d of a linear layer's product", i, l->slices);
    return KD_OK;
}

static kd_status run_product(const linear *l, const kd_op_desc *d, const kd_op_args *a, void *product, kd_err *err) {
    if (l->slice)
        return run_blocks(l, d, a, product, err);
    return kd_dnn_run(l->forward,
                      (void *[KD_DNN_ARGS]){[KD_DNN_SRC] = (void *)a->x[0], [KD_DNN_WEIGHTS] = a->packed, [KD_DNN_BIAS] = (void *)a->param[1], [KD_DNN_DST] = product,
                                            [KD_DNN_SCRATCH] = kd_cpu_at(a->scratch, l->work)},
                      err);
}

typedef struct join_ctx {
    void *y;
    const void *x1;
    kd_dtype type; /* of y and x1 */
    const float *product, *gamma; /* gamma may be NULL; y may be the product's memory */
    size_t width;
} join_ctx;

KD_HOT static void join_range(const void *ctx, int slice, size_t begin, size_t end) {
    const join_ctx c = *(const join_ctx *)ctx;
    (void)slice;
    for (size_t r = begin; r < end; r++)
        for (size_t i = 0; i < c.width; i += KD_VF) {
            int n = kd_lanes(c.width - i);
            size_t at = r * c.width + i;
            kd_vf v = kd_load_f32(c.product + at, n);
            if (c.gamma)
                v *= kd_load_f32(c.gamma + i, n);
            kd_store(c.y, c.type, at, kd_load(c.x1, c.type, at, n) + v, n);
        }
}

static kd_status linear_forward(kd_cpu *b, kd_op *op, const kd_op_args *a, kd_err *err) {
    const linear *l = op->impl;
    const kd_op_desc *d = &op->desc;
    int direct = l->product == d->y.dtype && !l->saves_input_of_act;
    void *product = l->saves_input_of_act ? a->saved : direct ? a->y : kd_cpu_at(a->scratch, l->y32);
    KD_TRY(run_product(l, d, a, product, err));
    if (d->residual)
        kd_cpu_parallel(b->base.threads, kd_cpu_rows(&d->y), kd_cpu_width(&d->y), join_range,
                        &(join_ctx){a->y, a->x[1], d->y.dtype, product, a->param[2], kd_cpu_width(&d->y)});
    else if (!direct)
        kd_cpu_act_forward(b->base.threads, a->y, d->y.dtype, product, KD_F32, l->saves_input_of_act ? d->act : KD_ACT_NONE, kd_tdesc_numel(&d->y));
    return KD_OK;
}

static kd_status linear_backward(kd_cpu *b, kd_op *op, const kd_op_args *a, kd_err *err) {
    const linear *l = op->impl;
    const kd_op_desc *d = &op->desc;
    int threads = b->base.threads;
    void *g = (void *)a->dy, *work = kd_cpu_at(a->scratch, l->work);
    if (l->own_g) {
        g = kd_cpu_at(a->scratch, l->g);
        kd_cpu_act_grad grad = {.g = g, .dy = a->dy, .g_type = l->type, .dy_type = d->y.dtype, .act = d->act};
        grad.at = l->saves_input_of_act ? a->saved : a->y;
        grad.at_type = l->saves_input_of_act ? KD_F32 : d->y.dtype;
        kd_cpu_act_backward(threads, &grad, kd_tdesc_numel(&d->y));
    }
    if (l->dw) {
        KD_TRY(kd_dnn_run(l->dw, (void *[KD_DNN_ARGS]){[KD_DNN_SRC] = g, [KD_DNN_WEIGHTS] = (void *)a->x[0], [KD_DNN_DST] = a->dparam[0], [KD_DNN_SCRATCH] = work}, err));
        if (d->bias)
            kd_cpu_add_bias_gradient(threads, d, a->dparam[1], a->dy, g);
    }
    if (!l->dx)
        return KD_OK;
    return kd_dnn_run(l->dx, (void *[KD_DNN_ARGS]){[KD_DNN_SRC] = g, [KD_DNN_WEIGHTS] = kd_cpu_at(a->packed, l->packed_dx), [KD_DNN_DST] = a->dx[0], [KD_DNN_SCRATCH] = work}, err);
}

const kd_cpu_kind kd_cpu_linear = {linear_create, linear_destroy, linear_pack, linear_forward, linear_backward};

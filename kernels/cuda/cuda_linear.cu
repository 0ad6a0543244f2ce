/* linear: y = act(x W^T + b) and its gradients, cuBLASLt's products with bias, ReLU and the residual join in their epilogue.
 *
 * The residual join y = x1 + gamma (x W^T + b) is a product onto x1: gamma is multiplied into the weight and the bias when they are packed. A bf16 result takes its bias as bf16 (all that cuBLASLt
 * has for it); the sum is in f32 and rounded once.
 * GELU is the exact one and cuBLASLt's is not, so it is a pass of its own over an f32 product. That goes by blocks of rows which stay in the L2 cache between product and pass. All blocks have the
 * same number of rows, so that an image's bits don't depend on its place in the batch; the last one begins early and computes some rows once more. */
#include "kernels/cuda/device.cuh"
#include "kernels/cuda/gemm.h"

enum { BLOCK_BYTES = 16 << 20, ROWS_OF_A_TILE = 128, FOLD_THREADS = 256 };

typedef struct linear {
    kd_gemm *forward, *dx, *dw;
    kd_dtype type;    /* of the operands */
    kd_dtype product; /* of what the forward product writes */
    int passes;       /* that isn't y yet: GELU or a conversion follows */
    int saves;        /* the product goes to args->saved, where backward finds the activation's input */
    int own_g;        /* dy isn't the product's gradient yet: activation or type differ */
    int packs_weight, packs_bias;
    size_t block_rows;
    size_t bias;                      /* offset in args->packed */
    size_t work, block, g, columns;   /* offsets in args->scratch */
} linear;

typedef struct linear_dims {
    size_t rows, in, out;
} linear_dims;

static linear_dims dims_of(const kd_op_desc *d) {
    return linear_dims{kd_cuda_rows(&d->y), kd_cuda_width(&d->x[0]), kd_cuda_width(&d->y)};
}

static void linear_destroy(void *impl) {
    linear *l = (linear *)impl;
    if (!l)
        return;
    kd_gemm_destroy(l->forward);
    kd_gemm_destroy(l->dx);
    kd_gemm_destroy(l->dw);
    kd_free(l);
}

/* ---- preparation ---- */

static size_t rounded_up(size_t n, size_t to) {
    return (n + to - 1) / to * to;
}

/* As many rows as BLOCK_BYTES hold, or somewhat fewer, so that the last block has little to compute again. */
static size_t rows_of_a_block(linear_dims s) {
    size_t most = BLOCK_BYTES / (s.out * sizeof(float));
    if (most < ROWS_OF_A_TILE)
        most = ROWS_OF_A_TILE;
    size_t blocks = (s.rows + most - 1) / most, rows = rounded_up((s.rows + blocks - 1) / blocks, ROWS_OF_A_TILE);
    return rows < s.rows ? rows : s.rows;
}

static void decide(linear *l, const kd_op_desc *d) {
    l->type = d->x[0].dtype;
    l->product = l->type == KD_F32 || d->act == KD_ACT_GELU ? KD_F32 : d->y.dtype;
    l->passes = d->act == KD_ACT_GELU || l->product != d->y.dtype;
    l->saves = d->train && d->act == KD_ACT_GELU;
    l->own_g = d->train && (d->act != KD_ACT_NONE || d->y.dtype != l->type);
    l->packs_weight = l->type == KD_BF16 || d->residual;
    l->packs_bias = d->bias && (l->product == KD_BF16 || d->residual);
    l->block_rows = l->passes ? rows_of_a_block(dims_of(d)) : kd_cuda_rows(&d->y);
}

static kd_status add_product(kd_cuda *b, kd_gemm **out, const kd_gemm_desc *desc, size_t *work, kd_err *err) {
    size_t scratch = 0;
    KD_TRY(kd_gemm_create(b, out, desc, &scratch, err));
    if (scratch > *work)
        *work = scratch;
    return KD_OK;
}

/* y[rows,O] = x[rows,I] W^T; dx[rows,I] = g[rows,O] W; dW[O,I] += g^T x */
static kd_status create_products(kd_cuda *b, linear *l, const kd_op_desc *d, size_t *work, kd_err *err) {
    linear_dims s = dims_of(d);
    kd_gemm_desc m = {};
    m.name = d->name;
    m.m = (int64_t)l->block_rows, m.n = (int64_t)s.out, m.k = (int64_t)s.in;
    m.ab = l->type, m.c = l->product;
    m.trans_b = 1;
    m.bias = d->bias, m.relu = d->act == KD_ACT_RELU;
    m.accumulate = d->residual && !l->passes;
    KD_TRY(add_product(b, &l->forward, &m, work, err));
    if (d->train && (d->need_dx & 1)) {
        m = {};
        m.name = d->name;
        m.m = (int64_t)s.rows, m.n = (int64_t)s.in, m.k = (int64_t)s.out;
        m.ab = m.c = l->type;
        m.accumulate = (d->add_dx & 1) != 0;
        KD_TRY(add_product(b, &l->dx, &m, work, err));
    }
    if (d->train && d->need_dparam) {
        m = {};
        m.name = d->name;
        m.m = (int64_t)s.out, m.n = (int64_t)s.in, m.k = (int64_t)s.rows;
        m.ab = l->type, m.c = KD_F32;
        m.trans_a = m.accumulate = 1;
        KD_TRY(add_product(b, &l->dw, &m, work, err));
    }
    return KD_OK;
}

static void plan(linear *l, const kd_op_desc *d, size_t work, kd_op_needs *needs) {
    linear_dims s = dims_of(d);
    int in_scratch = l->passes && !l->saves && d->y.dtype != l->product;
    if (l->packs_weight)
        kd_cuda_region(&needs->packed, s.out * s.in * kd_dtype_size(l->type));
    if (l->packs_bias)
        l->bias = kd_cuda_region(&needs->packed, s.out * kd_dtype_size(l->product));
    if (!d->train)
        needs->consumed = (l->packs_weight ? 1u : 0u) | (l->packs_bias ? 2u : 0u) | (d->residual ? 4u : 0u);
    if (l->saves)
        needs->saved = s.rows * s.out * sizeof(float);
    l->work = kd_cuda_region(&needs->scratch, work);
    l->block = kd_cuda_region(&needs->scratch, in_scratch ? l->block_rows * s.out * sizeof(float) : 0);
    l->g = kd_cuda_region(&needs->scratch, l->own_g ? s.rows * s.out * kd_dtype_size(l->type) : 0);
    l->columns = kd_cuda_region(&needs->scratch, l->dw && d->bias ? kd_cuda_columns_bytes(s.rows, s.out) : 0);
}

static kd_status linear_create(kd_cuda *b, kd_op *op, kd_op_needs *needs, kd_err *err) {
    linear *l = NULL;
    size_t work = 0;
    KD_TRY(kd_alloc_array(&l, 1, sizeof *l, err));
    op->impl = l;
    decide(l, &op->desc);
    KD_TRY(create_products(b, l, &op->desc, &work, err));
    plan(l, &op->desc, work, needs);
    return KD_OK;
}

/* ---- packing ---- */

/* dst[O,width] = src scale[O] */
static __global__ void fold_kernel(void *dst, int bf16, const float *src, const float *scale, size_t width, size_t n) {
    kd_grid_stride(i, n) kd_store1(dst, bf16, i, src[i] * scale[i / width]);
}

static kd_status pack(kd_cuda *b, void *dst, kd_dtype type, const float *src, const float *gamma, size_t out, size_t width, kd_err *err) {
    if (!gamma)
        return kd_cuda_copy(b, dst, type, src, KD_F32, out * width, 0, err);
    return kd_launch(b, "packing of a linear layer", fold_kernel, kd_blocks(b, out * width, FOLD_THREADS), FOLD_THREADS, err, dst, kd_is_bf16(type), src, gamma, width, out * width);
}

static kd_status linear_pack(kd_cuda *b, kd_op *op, const kd_op_args *a, kd_err *err) {
    const linear *l = (const linear *)op->impl;
    linear_dims s = dims_of(&op->desc);
    const float *gamma = op->desc.residual ? a->param[2] : NULL;
    if (l->packs_weight)
        KD_TRY(pack(b, a->packed, l->type, a->param[0], gamma, s.out, s.in, err));
    return l->packs_bias ? pack(b, kd_cuda_at(a->packed, l->bias), l->product, a->param[1], gamma, s.out, 1, err) : KD_OK;
}

static const void *weight_of(const linear *l, const kd_op_args *a) {
    return l->packs_weight ? a->packed : a->param[0];
}

static const void *bias_of(const linear *l, const kd_op_desc *d, const kd_op_args *a) {
    return !d->bias ? NULL : l->packs_bias ? kd_cuda_at(a->packed, l->bias) : a->param[1];
}

/* ---- forward ---- */

static const void *row_of(const void *base, size_t row, size_t width, kd_dtype type) {
    return (const char *)base + row * width * kd_dtype_size(type);
}

/* Rows row .. row + block_rows - 1 of y from their product in f32. */
static kd_status finish_block(kd_cuda *b, const linear *l, const kd_op_desc *d, const kd_op_args *a, const void *product, size_t row, kd_err *err) {
    linear_dims s = dims_of(d);
    size_t n = l->block_rows * s.out;
    void *y = (void *)row_of(a->y, row, s.out, d->y.dtype);
    if (!d->residual)
        return kd_cuda_act_forward(b, y, d->y.dtype, product, KD_F32, NULL, s.out, d->act, n, err);
    KD_TRY(kd_cuda_copy(b, y, d->y.dtype, row_of(a->x[1], row, s.out, d->x[1].dtype), d->x[1].dtype, n, 0, err));
    return kd_cuda_copy(b, y, d->y.dtype, product, KD_F32, n, 1, err);
}

static kd_status forward_block(kd_cuda *b, const linear *l, const kd_op_desc *d, const kd_op_args *a, size_t row, kd_err *err) {
    linear_dims s = dims_of(d);
    const void *x = row_of(a->x[0], row, s.in, l->type);
    void *y = (void *)row_of(a->y, row, s.out, d->y.dtype), *work = kd_cuda_at(a->scratch, l->work);
    void *product = l->saves ? (void *)row_of(a->saved, row, s.out, KD_F32) : l->product == d->y.dtype ? y : kd_cuda_at(a->scratch, l->block);
    const void *onto = d->residual && !l->passes ? a->x[1] : product;
    KD_TRY(kd_gemm_run_onto(b, l->forward, product, onto, x, weight_of(l, a), bias_of(l, d, a), work, err));
    return l->passes ? finish_block(b, l, d, a, product, row, err) : KD_OK;
}

static kd_status linear_forward(kd_cuda *b, kd_op *op, const kd_op_args *a, kd_err *err) {
    const linear *l = (const linear *)op->impl;
    size_t rows = kd_cuda_rows(&op->desc.y);
    for (size_t done = 0; done < rows; done += l->block_rows)
        KD_TRY(forward_block(b, l, &op->desc, a, rows - done < l->block_rows ? rows - l->block_rows : done, err));
    return KD_OK;
}

/* ---- backward ---- */

/* Sums of the unrounded gradient where there is one: without an activation that is dy itself. */
static kd_status add_bias_gradient(kd_cuda *b, const linear *l, const kd_op_desc *d, const kd_op_args *a, const void *g, kd_err *err) {
    linear_dims s = dims_of(d);
    kd_cuda_columns columns = {};
    columns.out = a->dparam[1];
    columns.g = d->act == KD_ACT_NONE ? a->dy : g;
    columns.g_type = d->act == KD_ACT_NONE ? d->y.dtype : l->type;
    columns.rows = s.rows;
    columns.stride = columns.width = s.out;
    columns.scratch = kd_cuda_at(a->scratch, l->columns);
    return kd_cuda_add_columns(b, &columns, err);
}

/* g = dy act' in the operands' type; for ReLU y tells as much as its input. */
static kd_status make_g(kd_cuda *b, const linear *l, const kd_op_desc *d, const kd_op_args *a, void *g, kd_err *err) {
    kd_cuda_act_grad grad = {};
    grad.g = g;
    grad.dy = a->dy;
    grad.at = l->saves ? a->saved : a->y;
    grad.g_type = l->type;
    grad.dy_type = d->y.dtype;
    grad.at_type = l->saves ? KD_F32 : d->y.dtype;
    grad.act = d->act;
    return kd_cuda_act_backward(b, &grad, kd_tdesc_numel(&d->y), err);
}

static kd_status linear_backward(kd_cuda *b, kd_op *op, const kd_op_args *a, kd_err *err) {
    const linear *l = (const linear *)op->impl;
    const kd_op_desc *d = &op->desc;
    void *work = kd_cuda_at(a->scratch, l->work), *own = kd_cuda_at(a->scratch, l->g);
    const void *g = l->own_g ? own : a->dy;
    if (l->own_g)
        KD_TRY(make_g(b, l, d, a, own, err));
    if (l->dw) {
        KD_TRY(kd_gemm_run(b, l->dw, a->dparam[0], g, a->x[0], NULL, work, err));
        if (d->bias)
            KD_TRY(add_bias_gradient(b, l, d, a, g, err));
    }
    return l->dx ? kd_gemm_run(b, l->dx, a->dx[0], g, weight_of(l, a), NULL, work, err) : KD_OK;
}

extern "C" const kd_cuda_kind kd_cuda_linear = {linear_create, linear_destroy, linear_pack, linear_forward, linear_backward};

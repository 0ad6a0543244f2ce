/* Ops that move or average tokens: mean_tokens, tokens, token_slice. */
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/simd.h"

typedef struct op_ctx {
    const kd_op_desc *d;
    const kd_op_args *p;
    size_t positions; /* rows of x per image */
    size_t width;
} op_ctx;

static op_ctx context_of(const kd_op *op, const kd_op_args *a) {
    size_t width = kd_cpu_width(&op->desc.x[0]);
    return (op_ctx){&op->desc, a, kd_tdesc_numel(&op->desc.x[0]) / (size_t)op->desc.x[0].shape[0] / width, width};
}

/* ---- mean_tokens: one image at a time; a column of 16 channels runs down all positions ---- */

enum { FOLD = 64 };

KD_HOT static void mean_range(const void *ctx, int slice, size_t begin, size_t end) {
    const op_ctx c = *(const op_ctx *)ctx;
    const void *x = c.p->x[0];
    void *y = c.p->y;
    kd_dtype tx = c.d->x[0].dtype, ty = c.d->y.dtype;
    (void)slice;
    for (size_t image = begin; image < end; image++)
        for (size_t i = 0; i < c.width; i += KD_VF) {
            int n = kd_lanes(c.width - i);
            kd_vf total = {0}; /* sums of sums: as exact as f64 for the position counts that occur, without leaving f32 */
            for (size_t p0 = 0; p0 < c.positions; p0 += FOLD) {
                kd_vf s = {0};
                for (size_t p = p0; p < c.positions && p < p0 + FOLD; p++)
                    s += kd_load(x, tx, (image * c.positions + p) * c.width + i, n);
                total += s;
            }
            kd_store(y, ty, image * c.width + i, total / (float)c.positions, n);
        }
}

KD_HOT static void mean_grad_range(const void *ctx, int slice, size_t begin, size_t end) {
    const op_ctx c = *(const op_ctx *)ctx;
    const kd_op_args p = *c.p;
    kd_dtype tx = c.d->x[0].dtype, ty = c.d->y.dtype;
    int add = (c.d->add_dx & 1) != 0;
    (void)slice;
    for (size_t r = begin; r < end; r++)
        for (size_t i = 0; i < c.width; i += KD_VF) {
            int n = kd_lanes(c.width - i);
            kd_store_grad(p.dx[0], tx, r * c.width + i, kd_load(p.dy, ty, r / c.positions * c.width + i, n) / (float)c.positions, n, add);
        }
}

static kd_status mean_forward(kd_cpu *b, kd_op *op, const kd_op_args *a, kd_err *err) {
    op_ctx c = context_of(op, a);
    (void)err;
    kd_cpu_parallel(b->base.threads, (size_t)op->desc.y.shape[0], c.positions * c.width, mean_range, &c);
    return KD_OK;
}

static kd_status mean_backward(kd_cpu *b, kd_op *op, const kd_op_args *a, kd_err *err) {
    op_ctx c = context_of(op, a);
    (void)err;
    if (op->desc.need_dx & 1)
        kd_cpu_parallel(b->base.threads, kd_cpu_rows(&op->desc.x[0]), c.width, mean_grad_range, &c);
    return KD_OK;
}

const kd_cpu_kind kd_cpu_mean_tokens = {NULL, NULL, NULL, mean_forward, mean_backward};

/* ---- tokens ---- */

/* Row r of y: image r / (1+R+P), token r % (1+R+P). */
KD_HOT static void tokens_range(const void *ctx, int slice, size_t begin, size_t end) {
    const op_ctx c = *(const op_ctx *)ctx;
    const kd_op_args p = *c.p;
    kd_dtype tx = c.d->x[0].dtype, ty = c.d->y.dtype;
    size_t first = 1 + (size_t)c.d->registers, tokens = first + c.positions; /* first: of the patches */
    (void)slice;
    for (size_t r = begin; r < end; r++) {
        size_t token = r % tokens, from = (r / tokens * c.positions + token - first) * c.width;
        const float *own = token == 0 ? p.param[0] : token < first ? p.param[2] + (token - 1) * c.width : NULL, *position = NULL;
        if (c.d->positions && (token == 0 || token >= first))
            position = p.param[1] + (token == 0 ? 0 : token - first + 1) * c.width;
        for (size_t i = 0; i < c.width; i += KD_VF) {
            int n = kd_lanes(c.width - i);
            kd_vf v = own ? kd_load_f32(own + i, n) : kd_load(p.x[0], tx, from + i, n);
            kd_store(p.y, ty, r * c.width + i, position ? v + kd_load_f32(position + i, n) : v, n);
        }
    }
}

/* Row r of dx: image r / P, patch r % P. */
KD_HOT static void tokens_grad_range(const void *ctx, int slice, size_t begin, size_t end) {
    const op_ctx c = *(const op_ctx *)ctx;
    size_t first = 1 + (size_t)c.d->registers;
    int add = (c.d->add_dx & 1) != 0;
    (void)slice;
    for (size_t r = begin; r < end; r++) {
        size_t from = r / c.positions * (first + c.positions) + first + r % c.positions;
        kd_copy_row(c.p->dx[0], c.d->x[0].dtype, r * c.width, c.p->dy, c.d->y.dtype, from * c.width, c.width, add);
    }
}

static kd_status tokens_forward(kd_cpu *b, kd_op *op, const kd_op_args *a, kd_err *err) {
    op_ctx c = context_of(op, a);
    (void)err;
    kd_cpu_parallel(b->base.threads, kd_cpu_rows(&op->desc.y), c.width, tokens_range, &c);
    return KD_OK;
}

/* out[rows * width] += the sums over images of `rows` rows of dy from `first`. */
static void add_rows(int threads, const op_ctx *c, float *out, size_t first, size_t rows) {
    kd_dtype type = c->d->y.dtype;
    kd_cpu_columns sums = {.out = out, .g = (const char *)c->p->dy + first * c->width * kd_dtype_size(type), .g_type = type, .rows = (size_t)c->d->y.shape[0],
                           .stride = (size_t)c->d->y.shape[1] * c->width, .width = rows * c->width};
    kd_cpu_add_columns(threads, &sums);
}

static kd_status tokens_backward(kd_cpu *b, kd_op *op, const kd_op_args *a, kd_err *err) {
    op_ctx c = context_of(op, a);
    const kd_op_desc *d = &op->desc;
    size_t registers = (size_t)d->registers;
    int threads = b->base.threads;
    (void)err;
    if (d->need_dparam) {
        add_rows(threads, &c, a->dparam[0], 0, 1);
        if (d->positions) {
            add_rows(threads, &c, a->dparam[1], 0, 1);
            add_rows(threads, &c, a->dparam[1] + c.width, 1 + registers, c.positions);
        }
        if (registers > 0)
            add_rows(threads, &c, a->dparam[2], 1, registers);
    }
    if (d->need_dx & 1)
        kd_cpu_parallel(threads, kd_cpu_rows(&d->x[0]), c.width, tokens_grad_range, &c);
    return KD_OK;
}

const kd_cpu_kind kd_cpu_tokens = {NULL, NULL, NULL, tokens_forward, tokens_backward};

/* ---- token_slice ---- */

KD_HOT static void slice_range(const void *ctx, int slice, size_t begin, size_t end) {
    const op_ctx c = *(const op_ctx *)ctx;
    size_t kept = (size_t)c.d->y.shape[1];
    (void)slice;
    for (size_t r = begin; r < end; r++) {
        size_t from = r / kept * c.positions + (size_t)c.d->begin + r % kept;
        kd_copy_row(c.p->y, c.d->y.dtype, r * c.width, c.p->x[0], c.d->x[0].dtype, from * c.width, c.width, 0);
    }
}

/* Rows outside the slice get a gradient of 0. */
KD_HOT static void slice_grad_range(const void *ctx, int slice, size_t begin, size_t end) {
    const op_ctx c = *(const op_ctx *)ctx;
    size_t kept = (size_t)c.d->y.shape[1], first = (size_t)c.d->begin;
    int add = (c.d->add_dx & 1) != 0;
    kd_dtype type = c.d->x[0].dtype;
    (void)slice;
    for (size_t r = begin; r < end; r++) {
        size_t image = r / c.positions, token = r % c.positions;
        if (token >= first && token < first + kept)
            kd_copy_row(c.p->dx[0], type, r * c.width, c.p->dy, c.d->y.dtype, (image * kept + token - first) * c.width, c.width, add);
        else if (!add)
            memset((char *)c.p->dx[0] + r * c.width * kd_dtype_size(type), 0, c.width * kd_dtype_size(type));
    }
}

static kd_status slice_forward(kd_cpu *b, kd_op *op, const kd_op_args *a, kd_err *err) {
    op_ctx c = context_of(op, a);
    (void)err;
    kd_cpu_parallel(b->base.threads, kd_cpu_rows(&op->desc.y), c.width, slice_range, &c);
    return KD_OK;
}

static kd_status slice_backward(kd_cpu *b, kd_op *op, const kd_op_args *a, kd_err *err) {
    op_ctx c = context_of(op, a);
    (void)err;
    if (op->desc.need_dx & 1)
        kd_cpu_parallel(b->base.threads, kd_cpu_rows(&op->desc.x[0]), c.width, slice_grad_range, &c);
    return KD_OK;
}

const kd_cpu_kind kd_cpu_token_slice = {NULL, NULL, NULL, slice_forward, slice_backward};

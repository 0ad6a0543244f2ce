/* layer_norm: rows of D values, each read from memory once and from the first-level cache twice more. */
#include <math.h>

#include "kernels/cpu/cpu.h"
#include "kernels/cpu/simd.h"

enum { FOLD = 64 }; /* rows summed in f32 before they are folded into f64 */

typedef struct norm_ctx {
    const kd_op_desc *d;
    const kd_op_args *p;
    double *sums; /* backward: [slice][2][D] */
    float *parts; /* backward: [slice][2][padded] */
    size_t width, padded;
} norm_ctx;

static size_t padded_width(const kd_op_desc *d) {
    return (kd_cpu_width(&d->y) + KD_VF - 1) / KD_VF * KD_VF;
}

static kd_status norm_create(kd_cpu *b, kd_op *op, kd_op_needs *needs, kd_err *err) {
    const kd_op_desc *d = &op->desc;
    size_t threads = (size_t)b->base.threads;
    (void)err;
    if (!d->train)
        return KD_OK;
    needs->saved = 2 * kd_cpu_rows(&d->y) * sizeof(float); /* mean and rstd of each row */
    needs->scratch = threads * 2 * (kd_cpu_width(&d->y) * sizeof(double) + padded_width(d) * sizeof(float)) + 64;
    return KD_OK;
}

/* `whole`: the width is a multiple of KD_VF. The types and that come as constants (simd.h). */
KD_LANE void forward_rows(const norm_ctx *ctx, kd_dtype tx, kd_dtype ty, int whole, size_t begin, size_t end) {
    const norm_ctx c = *ctx;
    const kd_op_args p = *c.p;
    float *saved = c.d->train ? p.saved : NULL, count = (float)c.width;
    for (size_t r = begin; r < end; r++) {
        size_t row = r * c.width;
        kd_carried s = KD_NO_SUM, q = KD_NO_SUM;
        for (size_t i = 0; i < c.width; i += KD_VF)
            kd_carry(&s, kd_load(p.x[0], tx, row + i, whole ? KD_VF : kd_lanes(c.width - i)));
        float mean = kd_sum(kd_carried_sum(&s)) / count;
        for (size_t i = 0; i < c.width; i += KD_VF) {
            int n = whole ? KD_VF : kd_lanes(c.width - i);
            kd_vf v = kd_load(p.x[0], tx, row + i, n) - mean;
            if (!whole)
                v = kd_select(kd_first(n), v, (kd_vf){0});
            kd_carry(&q, v * v);
        }
        float rstd = 1 / sqrtf(kd_sum(kd_carried_sum(&q)) / count + c.d->eps);
        for (size_t i = 0; i < c.width; i += KD_VF) {
            int n = whole ? KD_VF : kd_lanes(c.width - i);
            kd_vf v = (kd_load(p.x[0], tx, row + i, n) - mean) * rstd;
            kd_store(p.y, ty, row + i, v * kd_load_f32(p.param[0] + i, n) + kd_load_f32(p.param[1] + i, n), n);
        }
        if (saved) {
            saved[2 * r] = mean;
            saved[2 * r + 1] = rstd;
        }
    }
}

KD_HOT static void forward_range(const void *ctx, int slice, size_t begin, size_t end) {
    const norm_ctx *c = ctx;
    kd_dtype tx = c->d->x[0].dtype, ty = c->d->y.dtype;
    (void)slice;
    if (c->width % KD_VF == 0 && tx == KD_F32 && ty == KD_F32)
        forward_rows(c, KD_F32, KD_F32, 1, begin, end);
    else if (c->width % KD_VF == 0 && tx == KD_F32 && ty == KD_BF16)
        forward_rows(c, KD_F32, KD_BF16, 1, begin, end);
    else
        forward_rows(c, tx, ty, 0, begin, end);
}

static kd_status norm_forward(kd_cpu *b, kd_op *op, const kd_op_args *args, kd_err *err) {
    norm_ctx c = {.d = &op->desc, .p = args, .width = kd_cpu_width(&op->desc.y)};
    (void)err;
    kd_cpu_parallel(b->base.threads, kd_cpu_rows(&op->desc.y), c.width, forward_range, &c);
    return KD_OK;
}

/* Adds a row to the slice's f32 sums and returns what dx needs: sums of dy w and dy w xhat. */
typedef struct row_sums {
    float sum, dot;
} row_sums;

KD_LANE row_sums reduce_row(const norm_ctx *c, const kd_op_args *p, kd_dtype tx, kd_dtype ty, int whole, float *part, size_t row, float mean, float rstd) {
    kd_carried sum = KD_NO_SUM, dot = KD_NO_SUM;
    for (size_t i = 0; i < c->width; i += KD_VF) {
        int n = whole ? KD_VF : kd_lanes(c->width - i);
        kd_vf xhat = (kd_load(p->x[0], tx, row + i, n) - mean) * rstd, dy = kd_load(p->dy, ty, row + i, n);
        kd_vf scaled = dy * kd_load_f32(p->param[0] + i, n);
        kd_carry(&sum, scaled);
        kd_carry(&dot, scaled * xhat);
        kd_store_f32(part + i, kd_load_f32(part + i, KD_VF) + dy * xhat, KD_VF);
        kd_store_f32(part + c->padded + i, kd_load_f32(part + c->padded + i, KD_VF) + dy, KD_VF);
    }
    return (row_sums){kd_sum(kd_carried_sum(&sum)), kd_sum(kd_carried_sum(&dot))};
}

static void fold(const norm_ctx *c, double *sums, float *part) {
    for (size_t w = 0; w < 2; w++)
        for (size_t i = 0; i < c->width; i++)
            sums[w * c->width + i] += (double)part[w * c->padded + i];
    memset(part, 0, 2 * c->padded * sizeof *part);
}

/* As forward_rows. */
KD_LANE void backward_rows(const norm_ctx *ctx, kd_dtype tx, kd_dtype ty, int whole, int slice, size_t begin, size_t end) {
    const norm_ctx c = *ctx;
    const kd_op_args p = *c.p;
    double *sums = c.sums + (size_t)slice * 2 * c.width;
    float *part = c.parts + (size_t)slice * 2 * c.padded;
    const float *saved = p.saved;
    int wants_dx = (c.d->need_dx & 1) != 0, add = (c.d->add_dx & 1) != 0;
    for (size_t r = begin; r < end; r++) {
        size_t row = r * c.width;
        float mean = saved[2 * r], rstd = saved[2 * r + 1];
        row_sums s = reduce_row(&c, &p, tx, ty, whole, part, row, mean, rstd);
        float sum = s.sum / (float)c.width, dot = s.dot / (float)c.width;
        for (size_t i = 0; wants_dx && i < c.width; i += KD_VF) {
            int n = whole ? KD_VF : kd_lanes(c.width - i);
            kd_vf xhat = (kd_load(p.x[0], tx, row + i, n) - mean) * rstd;
            kd_vf scaled = kd_load(p.dy, ty, row + i, n) * kd_load_f32(p.param[0] + i, n);
            kd_store_grad(p.dx[0], tx, row + i, (scaled - sum - xhat * dot) * rstd, n, add);
        }
        if ((r - begin) % FOLD == FOLD - 1 || r + 1 == end)
            fold(&c, sums, part);
    }
}

KD_HOT static void backward_range(const void *ctx, int slice, size_t begin, size_t end) {
    const norm_ctx *c = ctx;
    kd_dtype tx = c->d->x[0].dtype, ty = c->d->y.dtype;
    if (c->width % KD_VF == 0 && tx == KD_F32 && ty == KD_F32)
        backward_rows(c, KD_F32, KD_F32, 1, slice, begin, end);
    else if (c->width % KD_VF == 0 && tx == KD_F32 && ty == KD_BF16)
        backward_rows(c, KD_F32, KD_BF16, 1, slice, begin, end);
    else
        backward_rows(c, tx, ty, 0, slice, begin, end);
}

static kd_status norm_backward(kd_cpu *b, kd_op *op, const kd_op_args *args, kd_err *err) {
    const kd_op_desc *d = &op->desc;
    size_t threads = (size_t)b->base.threads;
    norm_ctx c = {.d = d, .p = args, .width = kd_cpu_width(&d->y), .padded = padded_width(d), .sums = args->scratch};
    (void)err;
    c.parts = (float *)(c.sums + threads * 2 * c.width);
    memset(args->scratch, 0, threads * 2 * (c.width * sizeof(double) + c.padded * sizeof(float)));
    kd_cpu_parallel((int)threads, kd_cpu_rows(&d->y), c.width, backward_range, &c);
    for (size_t w = 0; d->need_dparam && w < 2; w++)
        for (size_t i = 0; i < c.width; i++) {
            double sum = 0;
            for (size_t t = 0; t < threads; t++)
                sum += c.sums[(2 * t + w) * c.width + i];
            args->dparam[w][i] += (float)sum;
        }
    return KD_OK;
}

const kd_cpu_kind kd_cpu_layer_norm = {norm_create, NULL, NULL, norm_forward, norm_backward};

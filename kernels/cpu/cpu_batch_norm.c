/* batch_norm on channels-last maps: y = act((x0 - mean) * a + bias [+ x1]), a = rstd * weight.
 *
 * Sums over rows run in blocks of ROWS rows: f32 in registers inside a block, f64 from block to block, one accumulator per slice of rows. */
#include <math.h>

#include "kernels/cpu/cpu.h"
#include "kernels/cpu/simd.h"

enum { ROWS = 32 };

typedef struct norm_ctx {
    const kd_op_desc *d;
    const kd_op_args *p;
    const float *mean, *a, *bias;
    const float *k1, *k2;      /* backward: dx0 = a * (g - k1 - (x0 - mean) * k2) */
    double *sums;              /* [slice][2][C] */
    size_t width;
    int masked;                /* backward: the activation's mask is still to be applied to dy */
} norm_ctx;

/* Offsets in args->scratch: sums, then a, k1, k2, and mean (inference). args->saved: mean, rstd. */
typedef struct layout {
    size_t sums, a, k1, k2, mean, end;
} layout;

static layout layout_of(const kd_op_desc *d, int threads) {
    size_t c = kd_cpu_width(&d->y), at = 0;
    layout l;
    l.sums = kd_cpu_region(&at, (size_t)threads * 2 * c * sizeof(double));
    l.a = kd_cpu_region(&at, c * sizeof(float));
    l.k1 = kd_cpu_region(&at, c * sizeof(float));
    l.k2 = kd_cpu_region(&at, c * sizeof(float));
    l.mean = kd_cpu_region(&at, c * sizeof(float));
    l.end = at;
    return l;
}

static kd_status norm_create(kd_cpu *b, kd_op *op, kd_op_needs *needs, kd_err *err) {
    (void)err;
    needs->scratch = layout_of(&op->desc, b->base.threads).end;
    if (op->desc.train)
        needs->saved = 2 * kd_cpu_width(&op->desc.y) * sizeof(float);
    return KD_OK;
}

static void fold(double *sum, kd_vf v, size_t n) {
    float s[KD_VF];
    memcpy(s, &v, sizeof s);
    for (size_t i = 0; i < n; i++)
        sum[i] += (double)s[i];
}

/* ---- forward ---- */

/* Sums of x - s and (x - s)^2, where s is the channel's first value: close enough to the mean that nothing cancels. */
KD_HOT static void stats_range(const void *ctx, int slice, size_t begin, size_t end) {
    const norm_ctx c = *(const norm_ctx *)ctx;
    const void *x = c.p->x[0];
    kd_dtype type = c.d->x[0].dtype;
    double *sum = c.sums + (size_t)slice * 2 * c.width, *square = sum + c.width;
    for (size_t r0 = begin; r0 < end; r0 += ROWS)
        for (size_t i = 0; i < c.width; i += KD_VF) {
            int n = kd_lanes(c.width - i);
            kd_vf shift = kd_load(x, type, i, n), s = {0}, q = {0};
            for (size_t r = r0; r < end && r < r0 + ROWS; r++) {
                kd_vf v = kd_load(x, type, r * c.width + i, n) - shift;
                s += v;
                q += v * v;
            }
            fold(sum + i, s, (size_t)n);
            fold(square + i, q, (size_t)n);
        }
}

static double over_slices(const norm_ctx *c, int threads, size_t which, size_t i) {
    double sum = 0;
    for (int t = 0; t < threads; t++)
        sum += c->sums[((size_t)t * 2 + which) * c->width + i];
    return sum;
}

static float first_value(const void *x, kd_dtype type, size_t i) {
    return type == KD_F32 ? ((const float *)x)[i] : kd_bf16_to_f32(((const uint16_t *)x)[i]);
}

/* Batch statistics into saved (mean, rstd), and the running ones moved. */
static void batch_statistics(const norm_ctx *c, int threads, float *mean, float *rstd) {
    size_t rows = kd_cpu_rows(&c->d->y);
    double n = (double)rows, momentum = (double)c->d->momentum;
    memset(c->sums, 0, (size_t)threads * 2 * c->width * sizeof(double));
    kd_cpu_parallel(threads, rows, c->width, stats_range, c);
    for (size_t i = 0; i < c->width; i++) {
        double s = over_slices(c, threads, 0, i) / n, q = over_slices(c, threads, 1, i) / n, var = q - s * s;
        if (var < 0)
            var = 0;
        double m = (double)first_value(c->p->x[0], c->d->x[0].dtype, i) + s;
        mean[i] = (float)m;
        rstd[i] = (float)(1 / sqrt(var + (double)c->d->eps));
        c->p->state[0][i] = (float)((1 - momentum) * (double)c->p->state[0][i] + momentum * m);
        c->p->state[1][i] = (float)((1 - momentum) * (double)c->p->state[1][i] + momentum * var * n / (n - 1));
    }
}

KD_HOT static void apply_range(const void *ctx, int slice, size_t begin, size_t end) {
    const norm_ctx c = *(const norm_ctx *)ctx;
    const kd_op_args p = *c.p;
    kd_dtype t0 = c.d->x[0].dtype, t1 = c.d->x[1].dtype, ty = c.d->y.dtype;
    int join = c.d->inputs == 2, relu = c.d->act == KD_ACT_RELU;
    (void)slice;
    for (size_t r = begin; r < end; r++)
        for (size_t i = 0; i < c.width; i += KD_VF) {
            int n = kd_lanes(c.width - i);
            size_t at = r * c.width + i;
            kd_vf v = (kd_load(p.x[0], t0, at, n) - kd_load_f32(c.mean + i, n)) * kd_load_f32(c.a + i, n) + kd_load_f32(c.bias + i, n);
            if (join)
                v += kd_load(p.x[1], t1, at, n);
            kd_store(p.y, ty, at, relu ? kd_relu(v) : v, n);
        }
}

static norm_ctx context_of(const kd_cpu *b, const kd_op *op, const kd_op_args *args, layout *l) {
    *l = layout_of(&op->desc, b->base.threads);
    return (norm_ctx){.d = &op->desc, .p = args, .bias = args->param[1], .sums = kd_cpu_at(args->scratch, l->sums), .width = kd_cpu_width(&op->desc.y)};
}

static void set_factors(float *a, const float *weight, const float *rstd, size_t n) {
    for (size_t i = 0; i < n; i++)
        a[i] = weight[i] * rstd[i];
}

static kd_status norm_forward(kd_cpu *b, kd_op *op, const kd_op_args *args, kd_err *err) {
    layout l;
    norm_ctx c = context_of(b, op, args, &l);
    float *a = kd_cpu_at(args->scratch, l.a), *mean = op->desc.train ? args->saved : kd_cpu_at(args->scratch, l.mean);
    float *rstd = op->desc.train ? mean + c.width : kd_cpu_at(args->scratch, l.k1);
    (void)err;
    if (op->desc.train)
        batch_statistics(&c, b->base.threads, mean, rstd);
    else
        for (size_t i = 0; i < c.width; i++) {
            mean[i] = args->state[0][i];
            rstd[i] = (float)(1 / sqrt((double)args->state[1][i] + (double)op->desc.eps));
        }
    set_factors(a, args->param[0], rstd, c.width);
    c.mean = mean;
    c.a = a;
    kd_cpu_parallel(b->base.threads, kd_cpu_rows(&op->desc.y), c.width, apply_range, &c);
    return KD_OK;
}

/* ---- backward. g: gradient before the activation ---- */

/* dy through the ReLU. With one input the sign is recomputed from x0 exactly as the forward pass had it, which saves reading y. */
KD_LANE kd_vf masked_gradient(const norm_ctx *c, const kd_op_args *p, kd_vf x, size_t at, size_t i, int n) {
    kd_vf g = kd_load(p->dy, c->d->y.dtype, at, n);
    if (c->d->act != KD_ACT_RELU)
        return g;
    if (c->d->inputs == 2)
        return kd_relu_grad(g, kd_load(p->y, c->d->y.dtype, at, n));
    return kd_relu_grad(g, (x - kd_load_f32(c->mean + i, n)) * kd_load_f32(c->a + i, n) + kd_load_f32(c->bias + i, n));
}

/* Sums of g and g * (x0 - mean); dx1 = g on the way. */
KD_HOT static void reduce_range(const void *ctx, int slice, size_t begin, size_t end) {
    const norm_ctx c = *(const norm_ctx *)ctx;
    const kd_op_desc d = *c.d;
    const kd_op_args p = *c.p;
    double *sum = c.sums + (size_t)slice * 2 * c.width, *dot = sum + c.width;
    int add1 = (d.add_dx & 2) != 0;
    for (size_t r0 = begin; r0 < end; r0 += ROWS)
        for (size_t i = 0; i < c.width; i += KD_VF) {
            int n = kd_lanes(c.width - i);
            kd_vf mean = kd_load_f32(c.mean + i, n), s = {0}, q = {0};
            for (size_t r = r0; r < end && r < r0 + ROWS; r++) {
                size_t at = r * c.width + i;
                kd_vf x = kd_load(p.x[0], d.x[0].dtype, at, n), g = masked_gradient(&c, &p, x, at, i, n);
                s += g;
                q += g * (x - mean);
                if (d.need_dx & 2)
                    kd_store_grad(p.dx[1], d.x[1].dtype, at, g, n, add1);
            }
            fold(sum + i, s, (size_t)n);
            fold(dot + i, q, (size_t)n);
        }
}

KD_HOT static void dx_range(const void *ctx, int slice, size_t begin, size_t end) {
    const norm_ctx c = *(const norm_ctx *)ctx;
    const kd_op_desc d = *c.d;
    const kd_op_args p = *c.p;
    int add = (d.add_dx & 1) != 0;
    (void)slice;
    for (size_t r = begin; r < end; r++)
        for (size_t i = 0; i < c.width; i += KD_VF) {
            int n = kd_lanes(c.width - i);
            size_t at = r * c.width + i;
            kd_vf x = kd_load(p.x[0], d.x[0].dtype, at, n);
            kd_vf g = c.masked ? masked_gradient(&c, &p, x, at, i, n) : kd_load(p.dx[1], d.x[1].dtype, at, n);
            kd_vf v = g - kd_load_f32(c.k1 + i, n) - (x - kd_load_f32(c.mean + i, n)) * kd_load_f32(c.k2 + i, n);
            kd_store_grad(p.dx[0], d.x[0].dtype, at, v * kd_load_f32(c.a + i, n), n, add);
        }
}

static kd_status norm_backward(kd_cpu *b, kd_op *op, const kd_op_args *args, kd_err *err) {
    layout l;
    norm_ctx c = context_of(b, op, args, &l);
    const kd_op_desc *d = &op->desc;
    int threads = b->base.threads;
    size_t rows = kd_cpu_rows(&d->y);
    float *a = kd_cpu_at(args->scratch, l.a), *k1 = kd_cpu_at(args->scratch, l.k1), *k2 = kd_cpu_at(args->scratch, l.k2);
    const float *mean = args->saved, *rstd = mean + c.width;
    (void)err;
    set_factors(a, args->param[0], rstd, c.width);
    c.mean = mean, c.a = a, c.k1 = k1, c.k2 = k2;
    memset(c.sums, 0, (size_t)threads * 2 * c.width * sizeof(double));
    kd_cpu_parallel(threads, rows, c.width, reduce_range, &c);
    for (size_t i = 0; i < c.width; i++) {
        double db = over_slices(&c, threads, 0, i), dw = over_slices(&c, threads, 1, i) * (double)rstd[i];
        k1[i] = (float)(db / (double)rows);
        k2[i] = (float)(dw * (double)rstd[i] / (double)rows);
        if (d->need_dparam) {
            args->dparam[0][i] += (float)dw;
            args->dparam[1][i] += (float)db;
        }
    }
    if (!(d->need_dx & 1))
        return KD_OK;
    /* dx1 holds g unless it was added to something or rounded. */
    c.masked = !(d->need_dx & 2) || (d->add_dx & 2) || d->x[1].dtype != d->y.dtype;
    kd_cpu_parallel(threads, rows, c.width, dx_range, &c);
    return KD_OK;
}

const kd_cpu_kind kd_cpu_batch_norm = {norm_create, NULL, NULL, norm_forward, norm_backward};

/* batch_norm on channels-last maps: y = act((x0 - mean) * a + bias [+ x1]), a = rstd * weight.
 *
 * Sums over rows run in blocks of ROWS rows: f32 inside a block, f64 from block to block, one accumulator per slice of rows. All loops take rows as they lie in memory: with 16 channels' sums in registers over the rows of a
 * block, a column of 64 bytes at a time, they took twice as long where maps have 64 to 256 channels.
 *
 * The loops are written for any types, activation and join, and compiled for those of f32 and of bf16 training on their own (WITH_CONSTANTS; why: simd.h). */
#include <math.h>

#include "kernels/cpu/cpu.h"
#include "kernels/cpu/cpu_act.h"

enum {
    ROWS = 32,
    TOGETHER = 2 /* rows that are added to a block's sums at once; with 4 or 8 side by side memory is slower again */
};

typedef struct norm_ctx {
    const kd_op_desc *d;
    const kd_op_args *p;
    const float *mean, *a, *bias;
    const float *k1, *k2;      /* backward: dx0 = a * (g - k1 - (x0 - mean) * k2) */
    double *sums;              /* [slice][2][C] */
    float *part;               /* [slice][2][C], of a block */
    size_t width;
    const void *kept;          /* backward: dx1 where it is g, the gradient before the activation; NULL: g is computed again */
} norm_ctx;

/* What a loop is compiled for. */
typedef struct variant {
    kd_dtype x0, x1, y;
    kd_act act;
    int join;
} variant;

static int all_are(const kd_op_desc *d, kd_dtype type) {
    return d->x[0].dtype == type && d->y.dtype == type && (d->inputs == 1 || d->x[1].dtype == type);
}

#define VARIANT(type, act, join) ((variant){(type), (type), (type), (act), (join)})
#define WITH_CONSTANTS_OF(type, loop, c, slice, begin, end)                                                                                        \
    do {                                                                                                                                           \
        if (desc_->act == KD_ACT_NONE && !join_)                                                                                                   \
            loop(c, VARIANT(type, KD_ACT_NONE, 0), slice, begin, end);                                                                             \
        else if (desc_->act == KD_ACT_RELU && !join_)                                                                                              \
            loop(c, VARIANT(type, KD_ACT_RELU, 0), slice, begin, end);                                                                             \
        else if (desc_->act == KD_ACT_SILU)                                                                                                        \
            loop(c, VARIANT(type, KD_ACT_SILU, 0), slice, begin, end);                                                                             \
        else if (desc_->act == KD_ACT_HARDSWISH)                                                                                                   \
            loop(c, VARIANT(type, KD_ACT_HARDSWISH, 0), slice, begin, end);                                                                        \
        else if (desc_->act == KD_ACT_NONE)                                                                                                        \
            loop(c, VARIANT(type, KD_ACT_NONE, 1), slice, begin, end);                                                                             \
        else                                                                                                                                       \
            loop(c, VARIANT(type, KD_ACT_RELU, 1), slice, begin, end);                                                                             \
    } while (0)
#define WITH_CONSTANTS(loop, c, slice, begin, end)                                                                                                 \
    do {                                                                                                                                           \
        const kd_op_desc *desc_ = (c)->d;                                                                                                          \
        int join_ = desc_->inputs == 2;                                                                                                            \
        if (all_are(desc_, KD_F32))                                                                                                                \
            WITH_CONSTANTS_OF(KD_F32, loop, c, slice, begin, end);                                                                                 \
        else if (all_are(desc_, KD_BF16))                                                                                                          \
            WITH_CONSTANTS_OF(KD_BF16, loop, c, slice, begin, end);                                                                                \
        else                                                                                                                                       \
            loop(c, (variant){desc_->x[0].dtype, desc_->x[1].dtype, desc_->y.dtype, desc_->act, join_}, slice, begin, end);                        \
    } while (0)

/* Offsets in args->scratch: sums, a block's, then a, k1, k2, and mean (inference). args->saved: mean, rstd. */
typedef struct layout {
    size_t sums, part, a, k1, k2, mean, end;
} layout;

static layout layout_of(const kd_op_desc *d, int threads) {
    size_t c = kd_cpu_width(&d->y), at = 0;
    layout l;
    l.sums = kd_cpu_region(&at, (size_t)threads * 2 * c * sizeof(double));
    l.part = kd_cpu_region(&at, (size_t)threads * 2 * c * sizeof(float));
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

/* sum[n] += a block's, which begin anew. */
KD_LANE void fold(double *sum, float *part, size_t n) {
    for (size_t i = 0; i < n; i++) {
        sum[i] += (double)part[i];
        part[i] = 0;
    }
}

/* ---- forward ---- */

/* Sums of x - s and (x - s)^2 for n channels from i on, where s is the channel's first value: close enough to the mean that nothing cancels. */
KD_LANE void stats_at(const norm_ctx *c, kd_dtype type, float *part, size_t r, int rows, size_t i, int n) {
    const void *x = c->p->x[0];
    kd_vf shift = kd_load(x, type, i, n), s = kd_load_f32(part + i, n), q = kd_load_f32(part + c->width + i, n);
#pragma GCC unroll 2
    for (int j = 0; j < rows; j++) {
        kd_vf v = kd_load(x, type, (r + (size_t)j) * c->width + i, n) - shift;
        s += v;
        q += v * v;
    }
    kd_store_f32(part + i, s, n);
    kd_store_f32(part + c->width + i, q, n);
}

KD_LANE void stats_rows(const norm_ctx *c, kd_dtype type, float *part, size_t r, int rows) {
    size_t whole = c->width / KD_VF * KD_VF;
    for (size_t i = 0; i < whole; i += KD_VF)
        stats_at(c, type, part, r, rows, i, KD_VF);
    if (whole < c->width)
        stats_at(c, type, part, r, rows, whole, (int)(c->width - whole));
}

KD_LANE void stats_loop(const norm_ctx *c, kd_dtype type, int slice, size_t begin, size_t end) {
    double *sum = c->sums + (size_t)slice * 2 * c->width;
    float *part = c->part + (size_t)slice * 2 * c->width;
    memset(part, 0, 2 * c->width * sizeof *part);
    for (size_t r = begin; r < end;) {
        size_t last = r + ROWS < end ? r + ROWS : end;
        for (; r + TOGETHER <= last; r += TOGETHER)
            stats_rows(c, type, part, r, TOGETHER);
        for (; r < last; r++)
            stats_rows(c, type, part, r, 1);
        fold(sum, part, 2 * c->width);
    }
}

KD_HOT static void stats_range(const void *ctx, int slice, size_t begin, size_t end) {
    const norm_ctx c = *(const norm_ctx *)ctx;
    if (c.d->x[0].dtype == KD_F32)
        stats_loop(&c, KD_F32, slice, begin, end);
    else
        stats_loop(&c, KD_BF16, slice, begin, end);
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

/* What comes before the activation, for element `at` in channel i, exactly as every pass has it. */
KD_LANE kd_vf pre_activation(const norm_ctx *c, variant k, kd_vf x, size_t at, size_t i, int n) {
    kd_vf v = (x - kd_load_f32(c->mean + i, n)) * kd_load_f32(c->a + i, n) + kd_load_f32(c->bias + i, n);
    return k.join ? v + kd_load(c->p->x[1], k.x1, at, n) : v;
}

KD_LANE void apply_at(const norm_ctx *c, variant k, size_t r, size_t i, int n) {
    size_t at = r * c->width + i;
    kd_store(c->p->y, k.y, at, kd_act_value(k.act, pre_activation(c, k, kd_load(c->p->x[0], k.x0, at, n), at, i, n)), n);
}

KD_LANE void apply_loop(const norm_ctx *c, variant k, int slice, size_t begin, size_t end) {
    size_t whole = c->width / KD_VF * KD_VF;
    (void)slice;
    for (size_t r = begin; r < end; r++) {
        for (size_t i = 0; i < whole; i += KD_VF)
            apply_at(c, k, r, i, KD_VF);
        if (whole < c->width)
            apply_at(c, k, r, whole, (int)(c->width - whole));
    }
}

KD_HOT static void apply_range(const void *ctx, int slice, size_t begin, size_t end) {
    const norm_ctx c = *(const norm_ctx *)ctx;
    WITH_CONSTANTS(apply_loop, &c, slice, begin, end);
}

static norm_ctx context_of(const kd_cpu *b, const kd_op *op, const kd_op_args *args, layout *l) {
    *l = layout_of(&op->desc, b->base.threads);
    return (norm_ctx){.d = &op->desc, .p = args, .bias = args->param[1], .sums = kd_cpu_at(args->scratch, l->sums), .part = kd_cpu_at(args->scratch, l->part), .width = kd_cpu_width(&op->desc.y)};
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

/* dy through the activation. What was before it is computed again from x0, which for a ReLU saves reading y; behind a join y has the sign. */
KD_LANE kd_vf gradient_before(const norm_ctx *c, variant k, kd_vf x, size_t at, size_t i, int n) {
    kd_vf g = kd_load(c->p->dy, k.y, at, n);
    if (k.act == KD_ACT_NONE)
        return g;
    if (k.act == KD_ACT_RELU && k.join)
        return kd_relu_grad(g, kd_load(c->p->y, k.y, at, n));
    return kd_act_gradient(k.act, g, pre_activation(c, k, x, at, i, n));
}

/* Sums of g and g * (x0 - mean) for n channels from i on; dx1 = g on the way. */
KD_LANE void reduce_at(const norm_ctx *c, variant k, float *part, size_t r, int rows, size_t i, int n) {
    kd_vf mean = kd_load_f32(c->mean + i, n), s = kd_load_f32(part + i, n), q = kd_load_f32(part + c->width + i, n);
    int dx1 = (c->d->need_dx & 2) != 0, add1 = (c->d->add_dx & 2) != 0;
#pragma GCC unroll 2
    for (int j = 0; j < rows; j++) {
        size_t at = (r + (size_t)j) * c->width + i;
        kd_vf x = kd_load(c->p->x[0], k.x0, at, n), g = gradient_before(c, k, x, at, i, n);
        s += g;
        q += g * (x - mean);
        if (k.join && dx1)
            kd_store_grad(c->p->dx[1], k.x1, at, g, n, add1);
    }
    kd_store_f32(part + i, s, n);
    kd_store_f32(part + c->width + i, q, n);
}

KD_LANE void reduce_rows(const norm_ctx *c, variant k, float *part, size_t r, int rows) {
    size_t whole = c->width / KD_VF * KD_VF;
    for (size_t i = 0; i < whole; i += KD_VF)
        reduce_at(c, k, part, r, rows, i, KD_VF);
    if (whole < c->width)
        reduce_at(c, k, part, r, rows, whole, (int)(c->width - whole));
}

KD_LANE void reduce_loop(const norm_ctx *c, variant k, int slice, size_t begin, size_t end) {
    double *sum = c->sums + (size_t)slice * 2 * c->width;
    float *part = c->part + (size_t)slice * 2 * c->width;
    memset(part, 0, 2 * c->width * sizeof *part);
    for (size_t r = begin; r < end;) {
        size_t last = r + ROWS < end ? r + ROWS : end;
        for (; r + TOGETHER <= last; r += TOGETHER)
            reduce_rows(c, k, part, r, TOGETHER);
        for (; r < last; r++)
            reduce_rows(c, k, part, r, 1);
        fold(sum, part, 2 * c->width);
    }
}

KD_HOT static void reduce_range(const void *ctx, int slice, size_t begin, size_t end) {
    const norm_ctx c = *(const norm_ctx *)ctx;
    WITH_CONSTANTS(reduce_loop, &c, slice, begin, end);
}

KD_LANE void dx_at(const norm_ctx *c, variant k, kd_vf g, kd_vf x, size_t at, size_t i, int n, int add) {
    kd_vf v = g - kd_load_f32(c->k1 + i, n) - (x - kd_load_f32(c->mean + i, n)) * kd_load_f32(c->k2 + i, n);
    kd_store_grad(c->p->dx[0], k.x0, at, v * kd_load_f32(c->a + i, n), n, add);
}

KD_LANE void dx_loop(const norm_ctx *c, variant k, int slice, size_t begin, size_t end) {
    size_t whole = c->width / KD_VF * KD_VF;
    int add = (c->d->add_dx & 1) != 0;
    (void)slice;
    for (size_t r = begin; r < end; r++)
        for (size_t i = 0; i < c->width; i += KD_VF) {
            size_t at = r * c->width + i;
            int n = (int)(c->width - whole);
            if (i < whole) {
                kd_vf x = kd_load(c->p->x[0], k.x0, at, KD_VF);
                dx_at(c, k, gradient_before(c, k, x, at, i, KD_VF), x, at, i, KD_VF, add);
            } else {
                kd_vf x = kd_load(c->p->x[0], k.x0, at, n);
                dx_at(c, k, gradient_before(c, k, x, at, i, n), x, at, i, n, add);
            }
        }
}

/* The same where g was kept. */
KD_LANE void dx_kept_loop(const norm_ctx *c, variant k, size_t begin, size_t end) {
    size_t whole = c->width / KD_VF * KD_VF;
    int add = (c->d->add_dx & 1) != 0;
    for (size_t r = begin; r < end; r++)
        for (size_t i = 0; i < c->width; i += KD_VF) {
            size_t at = r * c->width + i;
            int n = (int)(c->width - whole);
            if (i < whole)
                dx_at(c, k, kd_load(c->kept, k.x1, at, KD_VF), kd_load(c->p->x[0], k.x0, at, KD_VF), at, i, KD_VF, add);
            else
                dx_at(c, k, kd_load(c->kept, k.x1, at, n), kd_load(c->p->x[0], k.x0, at, n), at, i, n, add);
        }
}

KD_HOT static void dx_range(const void *ctx, int slice, size_t begin, size_t end) {
    const norm_ctx c = *(const norm_ctx *)ctx;
    if (!c.kept)
        WITH_CONSTANTS(dx_loop, &c, slice, begin, end);
    else if (all_are(c.d, KD_F32))
        dx_kept_loop(&c, VARIANT(KD_F32, KD_ACT_NONE, 1), begin, end);
    else if (all_are(c.d, KD_BF16))
        dx_kept_loop(&c, VARIANT(KD_BF16, KD_ACT_NONE, 1), begin, end);
    else
        dx_kept_loop(&c, (variant){.x0 = c.d->x[0].dtype, .x1 = c.d->x[1].dtype}, begin, end);
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
    if ((d->need_dx & 2) && !(d->add_dx & 2) && d->x[1].dtype == d->y.dtype) /* neither added to something nor rounded */
        c.kept = args->dx[1];
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
    kd_cpu_parallel(threads, rows, c.width, dx_range, &c);
    return KD_OK;
}

const kd_cpu_kind kd_cpu_batch_norm = {norm_create, NULL, NULL, norm_forward, norm_backward};

/* batch_norm on channels-last maps: y = act((x0 - mean) * a + bias [+ x1]), a = rstd * weight. Every pass is a tile that runs down the rows (columns.cuh).
 *
 * Training reads x0 twice: for the sums of x and x^2, then to normalise, join and activate. Backward has a pass of sums of g, the gradient before the activation, and of g (x0 - mean),
 * which writes dx1 = g on the way, and one for dx0, which reads g from there where it lies unchanged. */
#include "kernels/cuda/columns.cuh"

enum { STATS_AT_ONCE = 4, AT_ONCE = 2 }; /* rows whose loads are under way together */

/* What all passes need of the channels. */
typedef struct norm_channels {
    const float *mean, *spread, *weight, *bias;
    float eps;
    int from_variance; /* spread is a variance (inference), else rstd */
} norm_channels;

struct channels8 {
    kd_f8 mean, a, bias;
};

static __device__ __forceinline__ channels8 channels_of(const norm_channels &c, size_t i, int n, int whole) {
    channels8 r;
    kd_f8 spread = kd_load_some(c.spread, 0, i, n, whole), weight = kd_load_some(c.weight, 0, i, n, whole);
    r.mean = kd_load_some(c.mean, 0, i, n, whole);
    r.bias = kd_load_some(c.bias, 0, i, n, whole);
    for (int k = 0; k < 8; k++)
        r.a.v[k] = weight.v[k] * (c.from_variance ? 1.0f / sqrtf(spread.v[k] + c.eps) : spread.v[k]);
    return r;
}

/* What comes before the join and the activation: the same bits in forward and backward, so that both see a ReLU's edge in the same place. */
static __device__ __forceinline__ kd_f8 normalised(const channels8 &c, kd_f8 x) {
    for (int k = 0; k < 8; k++)
        x.v[k] = fmaf(x.v[k] - c.mean.v[k], c.a.v[k], c.bias.v[k]);
    return x;
}

/* ---- forward ---- */

/* Sums of x - shift and its square over STATS_AT_ONCE rows, from row r on. */
static __device__ __forceinline__ void stats_rows(float *s, float *q, const void *x, int x_bf16, const kd_f8 &shift, const kd_lane &l, const kd_tile &t, size_t r) {
    kd_raw8 raw[STATS_AT_ONCE];
#pragma unroll
    for (int u = 0; u < STATS_AT_ONCE; u++) {
        size_t row = r + (size_t)u * t.down;
        raw[u] = kd_load_raw(x, x_bf16, (row < l.last ? row : r) * t.width + l.i, l.n, t.whole);
    }
#pragma unroll
    for (int u = 0; u < STATS_AT_ONCE; u++) {
        kd_f8 v = kd_values(raw[u], x_bf16, t.whole);
        int here = r + (size_t)u * t.down < l.last;
        for (int k = 0; k < 8; k++) {
            float d = here ? v.v[k] - shift.v[k] : 0.0f;
            s[k] += d;
            q[k] = fmaf(d, d, q[k]);
        }
    }
}

/* A thread's shift is its own first row: near enough to the mean that nothing cancels in f32. The sums of x and x^2 that follow from the shifted ones are f64. */
static __global__ void __launch_bounds__(KD_TILE_THREADS, 2) stats_kernel(double *part, const void *x, int x_bf16, kd_tile t) {
    __shared__ double sum[16 * KD_TILE_THREADS];
    kd_lane l = kd_lane_of(t);
    kd_f8 shift = {};
    size_t r = l.first;
    double count = l.first < l.last ? (double)((l.last - l.first + t.down - 1) / t.down) : 0.0;
    kd_clear8(sum);
    kd_clear8(sum + 8 * KD_TILE_THREADS);
    if (l.first < l.last)
        shift = kd_load_some(x, x_bf16, l.first * t.width + l.i, l.n, t.whole);
    while (r < l.last) {
        float s[8] = {}, q[8] = {};
        for (int round = 0; round < KD_TILE_FOLD_ROWS / STATS_AT_ONCE && r < l.last; round++, r += STATS_AT_ONCE * t.down)
            stats_rows(s, q, x, x_bf16, shift, l, t, r);
        kd_fold8(sum, s);
        kd_fold8(sum + 8 * KD_TILE_THREADS, q);
    }
    for (int k = 0; k < 8; k++) {
        double *first = sum + k * KD_TILE_THREADS + threadIdx.x, *second = first + 8 * KD_TILE_THREADS, c = (double)shift.v[k];
        *second += c * (2.0 * *first + count * c);
        *first += count * c;
    }
    kd_tile_sum(sum, 16, t);
    kd_store_part(part, sum, t, l, 0, 2);
    kd_store_part(part, sum + 8 * KD_TILE_THREADS, t, l, 1, 2);
}

/* saved: mean [C], rstd [C]. */
static __global__ void __launch_bounds__(KD_PARTS_THREADS) moments_kernel(float *saved, float *running_mean, float *running_var, kd_parts p, double rows, double eps, double momentum) {
    __shared__ double sum[2 * KD_PARTS_THREADS];
    kd_column l = kd_parts_sum(sum, p);
    if (!l.here)
        return;
    double mean = sum[threadIdx.x] / rows, var = sum[KD_PARTS_THREADS + threadIdx.x] / rows - mean * mean;
    var = var < 0 ? 0.0 : var;
    saved[l.c] = (float)mean;
    saved[p.width + l.c] = (float)(1.0 / sqrt(var + eps));
    running_mean[l.c] = (float)((1.0 - momentum) * (double)running_mean[l.c] + momentum * mean);
    running_var[l.c] = (float)((1.0 - momentum) * (double)running_var[l.c] + momentum * (var * rows / (rows - 1.0)));
}

typedef struct apply_args {
    norm_channels c;
    const void *x, *join; /* join: x1 or NULL */
    void *y;
    int x_bf16, join_bf16, y_bf16, act;
} apply_args;

static __global__ void __launch_bounds__(KD_TILE_THREADS, 3) apply_kernel(apply_args a, kd_tile t) {
    kd_lane l = kd_lane_of(t);
    if (l.first >= l.last)
        return;
    channels8 c = channels_of(a.c, l.i, l.n, t.whole);
    for (size_t r = l.first; r < l.last; r += AT_ONCE * t.down) {
        kd_raw8 x[AT_ONCE], join[AT_ONCE];
#pragma unroll
        for (int u = 0; u < AT_ONCE; u++) {
            size_t row = r + (size_t)u * t.down, at = (row < l.last ? row : r) * t.width + l.i;
            x[u] = kd_load_raw(a.x, a.x_bf16, at, l.n, t.whole);
            if (a.join)
                join[u] = kd_load_raw(a.join, a.join_bf16, at, l.n, t.whole);
            else
                join[u].low = join[u].high = make_uint4(0, 0, 0, 0);
        }
#pragma unroll
        for (int u = 0; u < AT_ONCE; u++) {
            size_t row = r + (size_t)u * t.down;
            kd_f8 v = normalised(c, kd_values(x[u], a.x_bf16, t.whole));
            if (a.join) {
                kd_f8 more = kd_values(join[u], a.join_bf16, t.whole);
                for (int k = 0; k < 8; k++)
                    v.v[k] += more.v[k];
            }
            if (row < l.last)
                kd_store_some(a.y, a.y_bf16, row * t.width + l.i, kd_act8(a.act, v), l.n, t.whole);
        }
    }
}

/* ---- backward ---- */

typedef struct grad_args {
    norm_channels c;
    const void *x, *dy, *y; /* y: only behind a join with a ReLU, where its sign decides; else NULL */
    void *dx0, *dx1;        /* NULL: not wanted */
    const float *k1, *k2;   /* dx0 = a (g - k1 - (x - mean) k2) */
    int x_bf16, dy_bf16, dx1_bf16, act, add0, add1;
} grad_args;

struct raw_row {
    kd_raw8 x, dy, y;
};

struct row8 {
    kd_f8 x, g;
};

/* join: y decides, a constant where registers are scarce. */
static __device__ __forceinline__ raw_row load_row(const grad_args &a, size_t at, int n, int whole, int join) {
    raw_row r;
    r.x = kd_load_raw(a.x, a.x_bf16, at, n, whole);
    r.dy = kd_load_raw(a.dy, a.dy_bf16, at, n, whole);
    r.y = r.dy;
    if (join)
        r.y = kd_load_raw(a.y, a.dy_bf16, at, n, whole);
    return r;
}

static __device__ __forceinline__ row8 row_of(const grad_args &a, const channels8 &c, const raw_row &raw, int whole, int join) {
    row8 r;
    r.x = kd_values(raw.x, a.x_bf16, whole);
    r.g = kd_values(raw.dy, a.dy_bf16, whole);
    if (a.act != KD_ACT_NONE)
        r.g = kd_dact8(a.act, r.g, join ? kd_values(raw.y, a.dy_bf16, whole) : normalised(c, r.x));
    return r;
}

/* Sums over AT_ONCE rows, from row r on; dx1 on the way. */
static __device__ __forceinline__ void reduce_rows(float *s, float *q, const grad_args &a, const channels8 &c, const kd_lane &l, const kd_tile &t, size_t r, int join) {
    raw_row raw[AT_ONCE];
#pragma unroll
    for (int u = 0; u < AT_ONCE; u++) {
        size_t row = r + (size_t)u * t.down;
        raw[u] = load_row(a, (row < l.last ? row : r) * t.width + l.i, l.n, t.whole, join);
    }
#pragma unroll
    for (int u = 0; u < AT_ONCE; u++) {
        size_t row = r + (size_t)u * t.down;
        if (row >= l.last)
            continue;
        row8 v = row_of(a, c, raw[u], t.whole, join);
        for (int k = 0; k < 8; k++) {
            s[k] += v.g.v[k];
            q[k] = fmaf(v.g.v[k], v.x.v[k] - c.mean.v[k], q[k]);
        }
        if (a.dx1)
            kd_store_grad_some(a.dx1, a.dx1_bf16, row * t.width + l.i, v.g, l.n, t.whole, a.add1);
    }
}

static __device__ __forceinline__ void reduce(double *part, double *sum, const grad_args &a, const kd_tile &t, int join) {
    kd_lane l = kd_lane_of(t);
    channels8 c = channels_of(a.c, l.i, l.n, t.whole && l.n == 8);
    size_t r = l.first;
    kd_clear8(sum);
    kd_clear8(sum + 8 * KD_TILE_THREADS);
    while (r < l.last) {
        float s[8] = {}, q[8] = {};
        for (int round = 0; round < KD_TILE_FOLD_ROWS / AT_ONCE && r < l.last; round++, r += AT_ONCE * t.down)
            reduce_rows(s, q, a, c, l, t, r, join);
        kd_fold8(sum, s);
        kd_fold8(sum + 8 * KD_TILE_THREADS, q);
    }
    kd_tile_sum(sum, 16, t);
    kd_store_part(part, sum, t, l, 0, 2);
    kd_store_part(part, sum + 8 * KD_TILE_THREADS, t, l, 1, 2);
}

static __global__ void __launch_bounds__(KD_TILE_THREADS, 2) reduce_kernel(double *part, grad_args a, kd_tile t) {
    __shared__ double sum[16 * KD_TILE_THREADS];
    reduce(part, sum, a, t, 0);
}

static __global__ void __launch_bounds__(KD_TILE_THREADS, 2) reduce_join_kernel(double *part, grad_args a, kd_tile t) {
    __shared__ double sum[16 * KD_TILE_THREADS];
    reduce(part, sum, a, t, 1);
}

static __global__ void __launch_bounds__(KD_PARTS_THREADS) factors_kernel(float *k1, float *k2, float *dweight, float *dbias, const float *rstd, kd_parts p, double rows) {
    __shared__ double sum[2 * KD_PARTS_THREADS];
    kd_column l = kd_parts_sum(sum, p);
    if (!l.here)
        return;
    double scale = (double)rstd[l.c], db = sum[threadIdx.x], dw = sum[KD_PARTS_THREADS + threadIdx.x] * scale;
    k1[l.c] = (float)(db / rows);
    k2[l.c] = (float)(dw * scale / rows);
    if (dweight) {
        dweight[l.c] += (float)dw;
        dbias[l.c] += (float)db;
    }
}

static __global__ void __launch_bounds__(KD_TILE_THREADS, 2) dx_kernel(grad_args a, kd_tile t) {
    kd_lane l = kd_lane_of(t);
    if (l.first >= l.last)
        return;
    channels8 c = channels_of(a.c, l.i, l.n, t.whole);
    kd_f8 k1 = kd_load_some(a.k1, 0, l.i, l.n, t.whole), k2 = kd_load_some(a.k2, 0, l.i, l.n, t.whole);
    for (size_t r = l.first; r < l.last; r += AT_ONCE * t.down) {
        raw_row raw[AT_ONCE];
#pragma unroll
        for (int u = 0; u < AT_ONCE; u++) {
            size_t row = r + (size_t)u * t.down;
            raw[u] = load_row(a, (row < l.last ? row : r) * t.width + l.i, l.n, t.whole, a.y != NULL);
        }
#pragma unroll
        for (int u = 0; u < AT_ONCE; u++) {
            size_t row = r + (size_t)u * t.down;
            row8 v = row_of(a, c, raw[u], t.whole, a.y != NULL);
            for (int k = 0; k < 8; k++)
                v.g.v[k] = (v.g.v[k] - k1.v[k] - (v.x.v[k] - c.mean.v[k]) * k2.v[k]) * c.a.v[k];
            if (row < l.last)
                kd_store_grad_some(a.dx0, a.x_bf16, row * t.width + l.i, v.g, l.n, t.whole, a.add0);
        }
    }
}

/* ---- the op ---- */

/* scratch: partial sums, then k1 and k2; saved: mean, rstd. */
typedef struct layout {
    size_t part, k1, k2, end;
} layout;

static layout layout_of(const kd_tile *t) {
    layout l;
    size_t at = 0;
    l.part = kd_cuda_region(&at, kd_parts_bytes(t, 1, 2));
    l.k1 = kd_cuda_region(&at, t->width * sizeof(float));
    l.k2 = kd_cuda_region(&at, t->width * sizeof(float));
    l.end = at;
    return l;
}

static kd_tile tile_of(const kd_op_desc *d) {
    return kd_tile_of(1, kd_cuda_rows(&d->y), kd_cuda_width(&d->y));
}

static kd_status norm_create(kd_cuda *b, kd_op *op, kd_op_needs *needs, kd_err *err) {
    kd_tile t = tile_of(&op->desc);
    (void)b, (void)err;
    if (!op->desc.train)
        return KD_OK;
    needs->saved = 2 * t.width * sizeof(float);
    needs->scratch = layout_of(&t).end;
    return KD_OK;
}

static kd_status norm_forward(kd_cuda *b, kd_op *op, const kd_op_args *p, kd_err *err) {
    const kd_op_desc *d = &op->desc;
    kd_tile t = tile_of(d);
    float *saved = (float *)p->saved;
    norm_channels c = {p->state[0], p->state[1], p->param[0], p->param[1], d->eps, 1};
    if (d->train) {
        double *part = (double *)kd_cuda_at(p->scratch, layout_of(&t).part);
        kd_parts sums = kd_parts_of(part, &t, 2);
        KD_TRY(kd_launch(b, "statistics of batch norm", stats_kernel, kd_tile_grid(&t, 1), KD_TILE_THREADS, err, part, p->x[0], kd_is_bf16(d->x[0].dtype), t));
        KD_TRY(kd_launch(b, "statistics of batch norm", moments_kernel, sums.blocks, KD_PARTS_THREADS, err, saved, p->state[0], p->state[1], sums, (double)t.rows, (double)d->eps,
                         (double)d->momentum));
        c.mean = saved, c.spread = saved + t.width, c.from_variance = 0;
    }
    apply_args a = {c, p->x[0], d->inputs == 2 ? p->x[1] : NULL, p->y, kd_is_bf16(d->x[0].dtype), kd_is_bf16(d->x[1].dtype), kd_is_bf16(d->y.dtype), (int)d->act};
    kd_tile spread = kd_tile_spread(b, t, 1);
    return kd_launch(b, "batch norm", apply_kernel, kd_tile_grid(&spread, 1), KD_TILE_THREADS, err, a, spread);
}

static kd_status norm_backward(kd_cuda *b, kd_op *op, const kd_op_args *p, kd_err *err) {
    const kd_op_desc *d = &op->desc;
    kd_tile t = tile_of(d);
    layout l = layout_of(&t);
    double *part = (double *)kd_cuda_at(p->scratch, l.part);
    float *k1 = (float *)kd_cuda_at(p->scratch, l.k1), *k2 = (float *)kd_cuda_at(p->scratch, l.k2);
    const float *mean = (const float *)p->saved, *rstd = mean + t.width;
    int dx1 = (d->need_dx & 2) != 0, add1 = (d->add_dx & 2) != 0;
    grad_args a = {{mean, rstd, p->param[0], p->param[1], d->eps, 0}, p->x[0], p->dy, d->inputs == 2 && d->act == KD_ACT_RELU ? p->y : NULL, p->dx[0], dx1 ? p->dx[1] : NULL, k1, k2,
                   kd_is_bf16(d->x[0].dtype), kd_is_bf16(d->y.dtype), kd_is_bf16(d->x[1].dtype), (int)d->act, (d->add_dx & 1) != 0, add1};
    kd_parts sums = kd_parts_of(part, &t, 2);
    KD_TRY(kd_launch(b, "sums of batch norm's gradient", a.y ? reduce_join_kernel : reduce_kernel, kd_tile_grid(&t, 1), KD_TILE_THREADS, err, part, a, t));
    KD_TRY(kd_launch(b, "sums of batch norm's gradient", factors_kernel, sums.blocks, KD_PARTS_THREADS, err, k1, k2, d->need_dparam ? p->dparam[0] : NULL, d->need_dparam ? p->dparam[1] : NULL,
                     rstd, sums, (double)t.rows));
    if (!(d->need_dx & 1))
        return KD_OK;
    if (dx1 && !add1 && d->x[1].dtype == d->y.dtype) { /* dx1 is g, neither added to something nor rounded */
        a.dy = p->dx[1];
        a.y = NULL;
        a.act = KD_ACT_NONE;
    }
    kd_tile spread = kd_tile_spread(b, t, 1);
    return kd_launch(b, "gradient of batch norm", dx_kernel, kd_tile_grid(&spread, 1), KD_TILE_THREADS, err, a, spread);
}

extern "C" const kd_cuda_kind kd_cuda_batch_norm = {norm_create, NULL, NULL, norm_forward, norm_backward};

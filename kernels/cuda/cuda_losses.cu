/* l2_normalize, and the losses that take each row or element by itself: mse, smooth_l1, cosine, kl_logits. One pass over memory each; what a row's gradient needs of the whole row is kept. */
#include "kernels/cuda/cuda_loss.cuh"

enum { THREADS = 256, TOTAL_THREADS = 1024, GROUPS_OF_A_THREAD = 4 };

/* ---- sums ---- */

static __global__ void __launch_bounds__(TOTAL_THREADS) total_kernel(float *y, const double *part, size_t n, double scale) {
    __shared__ double shared[32];
    double sum = 0;
    for (size_t i = threadIdx.x; i < n; i += blockDim.x)
        sum += part[i];
    sum = kd_block_sum(sum, shared);
    if (threadIdx.x == 0)
        y[0] = (float)(scale * sum);
}

kd_status kd_cuda_loss_total(kd_cuda *b, void *y, const double *part, size_t n, double scale, kd_err *err) {
    unsigned threads = n < TOTAL_THREADS ? (unsigned)((n + 31) / 32 * 32) : TOTAL_THREADS;
    return kd_launch(b, "sum of a loss", total_kernel, 1, threads, err, (float *)y, part, n, scale);
}

static unsigned blocks_of_rows(const kd_tdesc *t) {
    return (unsigned)kd_loss_blocks(kd_cuda_rows(t), kd_cuda_width(t));
}

/* ---- l2_normalize ---- */

static __global__ void __launch_bounds__(KD_TEAM_MOST) normalize_kernel(void *y, int y_bf16, const void *x, int x_bf16, size_t rows, size_t width) {
    __shared__ double shared[32];
    kd_team t = kd_team_here(width, shared);
    int aligned = width % 8 == 0;
    for (size_t at = t.row * width; at < rows * width; at += t.step * width) {
        float norm = (float)kd_at_least(kd_row_norm(&t, x, x_bf16, at, width, aligned), KD_OP_L2_EPS);
        kd_team_groups(i, t, width) {
            kd_f8 v = kd_row_load(x, x_bf16, at + i, width - i, aligned);
            for (int k = 0; k < 8; k++)
                v.v[k] = v.v[k] / norm;
            kd_row_store_grad(y, y_bf16, at + i, v, width - i, aligned, 0);
        }
    }
}

/* y is divided again rather than multiplied by an inverse: for a row of one value the gradient is then exactly zero. */
static __global__ void __launch_bounds__(KD_TEAM_MOST) normalize_grad_kernel(kd_normalize_grad g, int x_bf16, int dy_bf16) {
    __shared__ double shared[32];
    kd_team t = kd_team_here(g.width, shared);
    int aligned = g.width % 8 == 0;
    double factor = g.of_loss ? g.factor * (double)g.of_loss[0] : g.factor;
    for (size_t at = t.row * g.width; at < g.rows * g.width; at += t.step * g.width) {
        double norm = kd_row_norm(&t, g.x, x_bf16, at, g.width, aligned), dot = 0;
        float by = (float)kd_at_least(norm, g.eps), scale = (float)(factor / kd_at_least(norm, g.eps));
        kd_team_groups(i, t, g.width) {
            kd_f8 x = kd_row_load(g.x, x_bf16, at + i, g.width - i, aligned), d = kd_row_load(g.dy, dy_bf16, at + i, g.width - i, aligned);
            float sum = 0;
            for (int k = 0; k < 8; k++)
                sum = fmaf(x.v[k] / by, d.v[k], sum);
            dot += (double)sum;
        }
        float along = (float)kd_team_sum(&t, dot);
        if (norm < g.eps)
            along = 0;
        kd_team_groups(i, t, g.width) {
            kd_f8 x = kd_row_load(g.x, x_bf16, at + i, g.width - i, aligned), d = kd_row_load(g.dy, dy_bf16, at + i, g.width - i, aligned);
            for (int k = 0; k < 8; k++)
                d.v[k] = fmaf(-(x.v[k] / by), along, d.v[k]) * scale;
            kd_row_store_grad(g.dx, x_bf16, at + i, d, g.width - i, aligned, g.add);
        }
    }
}

kd_status kd_cuda_normalize_grad(kd_cuda *b, const kd_normalize_grad *g, kd_err *err) {
    return kd_launch(b, "gradient of normalised rows", normalize_grad_kernel, (unsigned)kd_loss_blocks(g->rows, g->width), kd_team_threads(g->width), err, *g, kd_is_bf16(g->x_type),
                     kd_is_bf16(g->dy_type));
}

static kd_status normalize_forward(kd_cuda *b, kd_op *op, const kd_op_args *a, kd_err *err) {
    const kd_op_desc *d = &op->desc;
    return kd_launch(b, "l2 normalize", normalize_kernel, blocks_of_rows(&d->y), kd_team_threads(kd_cuda_width(&d->y)), err, a->y, kd_is_bf16(d->y.dtype), a->x[0], kd_is_bf16(d->x[0].dtype),
                     kd_cuda_rows(&d->y), kd_cuda_width(&d->y));
}

static kd_status normalize_backward(kd_cuda *b, kd_op *op, const kd_op_args *a, kd_err *err) {
    const kd_op_desc *d = &op->desc;
    kd_normalize_grad g = {a->dx[0], a->dy, a->x[0], d->x[0].dtype, d->y.dtype, kd_cuda_rows(&d->y), kd_cuda_width(&d->y), KD_OP_L2_EPS, 1, NULL, kd_adds_dx(d)};
    return kd_wants_dx(d) ? kd_cuda_normalize_grad(b, &g, err) : KD_OK;
}

extern "C" const kd_cuda_kind kd_cuda_l2_normalize = {NULL, NULL, NULL, normalize_forward, normalize_backward};

/* ---- mse, smooth_l1: functions of e = x0 - x1. beta is smooth_l1's; 0: e^2 ---- */

static __device__ __forceinline__ float value_of(float e, float beta) {
    if (beta == 0)
        return e * e;
    return fabsf(e) < beta ? e * e / (2 * beta) : fabsf(e) - beta / 2;
}

static __device__ __forceinline__ float slope_of(float e, float beta) {
    if (beta == 0)
        return 2 * e;
    return fabsf(e) >= beta ? copysignf(1.0f, e) : e / beta;
}

static __global__ void __launch_bounds__(THREADS) element_kernel(double *part, const float *s, const float *target, size_t n, float beta) {
    __shared__ double shared[32];
    double total = 0;
    kd_grid_stride(g, (n + 7) / 8) {
        size_t i = 8 * g, left = n - i;
        kd_f8 a = kd_row_load(s, 0, i, left, 1), c = kd_row_load(target, 0, i, left, 1);
        float sum = 0;
        for (int k = 0; k < 8; k++)
            sum += value_of(a.v[k] - c.v[k], beta); /* 0 where there is none */
        total += (double)sum;
    }
    total = kd_block_sum(total, shared);
    if (threadIdx.x == 0)
        part[blockIdx.x] = total;
}

static __global__ void __launch_bounds__(THREADS) element_grad_kernel(float *dx, const float *s, const float *target, size_t n, float beta, double scale, const float *dy, int add) {
    float factor = (float)(scale * (double)dy[0]);
    kd_grid_stride(g, (n + 7) / 8) {
        size_t i = 8 * g, left = n - i;
        kd_f8 a = kd_row_load(s, 0, i, left, 1), c = kd_row_load(target, 0, i, left, 1);
        for (int k = 0; k < 8; k++)
            a.v[k] = slope_of(a.v[k] - c.v[k], beta) * factor;
        kd_row_store_grad(dx, 0, i, a, left, 1, add);
    }
}

static size_t element_parts(size_t n) {
    size_t of_a_block = 8 * THREADS * GROUPS_OF_A_THREAD, parts = (n + of_a_block - 1) / of_a_block;
    return parts < KD_LOSS_PARTS ? parts : KD_LOSS_PARTS;
}

static kd_status element_create(kd_cuda *b, kd_op *op, kd_op_needs *needs, kd_err *err) {
    (void)b, (void)err;
    needs->scratch = element_parts(kd_tdesc_numel(&op->desc.x[0])) * sizeof(double);
    return KD_OK;
}

static float beta_of(const kd_op_desc *d) {
    return d->kind == KD_OP_SMOOTH_L1 ? d->beta : 0.0f;
}

static kd_status element_forward(kd_cuda *b, kd_op *op, const kd_op_args *a, kd_err *err) {
    size_t n = kd_tdesc_numel(&op->desc.x[0]), parts = element_parts(n);
    KD_TRY(kd_launch(b, "loss of elements", element_kernel, (unsigned)parts, THREADS, err, (double *)a->scratch, (const float *)a->x[0], (const float *)a->x[1], n, beta_of(&op->desc)));
    return kd_cuda_loss_total(b, a->y, (const double *)a->scratch, parts, 1 / (double)n, err);
}

static kd_status element_backward(kd_cuda *b, kd_op *op, const kd_op_args *a, kd_err *err) {
    const kd_op_desc *d = &op->desc;
    size_t n = kd_tdesc_numel(&d->x[0]);
    if (!kd_wants_dx(d))
        return KD_OK;
    return kd_launch(b, "gradient of a loss of elements", element_grad_kernel, kd_blocks(b, (n + 7) / 8, THREADS), THREADS, err, (float *)a->dx[0], (const float *)a->x[0],
                     (const float *)a->x[1], n, beta_of(d), 1 / (double)n, (const float *)a->dy, kd_adds_dx(d));
}

extern "C" const kd_cuda_kind kd_cuda_mse = {element_create, NULL, NULL, element_forward, element_backward};
extern "C" const kd_cuda_kind kd_cuda_smooth_l1 = {element_create, NULL, NULL, element_forward, element_backward};

/* ---- cosine, kl_logits: rows of x0 and x1 ---- */

typedef struct row_loss_args {
    const float *s, *t;
    double *part;
    void *saved; /* per row, cosine_row or kd_kl; NULL when there is no gradient */
    size_t rows, width;
    float temperature;
} row_loss_args;

typedef struct row_loss_grad_args {
    const float *s, *t, *dy;
    float *dx;
    const void *saved;
    size_t rows, width;
    float temperature;
    double scale;
    int add;
} row_loss_grad_args;

static kd_status row_create(kd_op *op, kd_op_needs *needs, size_t saved) {
    const kd_op_desc *d = &op->desc;
    needs->scratch = blocks_of_rows(&d->x[0]) * sizeof(double);
    needs->saved = kd_wants_dx(d) ? kd_cuda_rows(&d->x[0]) * saved : 0;
    return KD_OK;
}

/* y = scale times the sum over rows. */
static kd_status row_value(kd_cuda *b, kd_op *op, const kd_op_args *a, const char *name, void (*kernel)(row_loss_args), double scale, kd_err *err) {
    const kd_op_desc *d = &op->desc;
    row_loss_args r = {(const float *)a->x[0], (const float *)a->x[1], (double *)a->scratch, kd_wants_dx(d) ? a->saved : NULL, kd_cuda_rows(&d->x[0]), kd_cuda_width(&d->x[0]), d->temperature};
    KD_TRY(kd_launch(b, name, kernel, blocks_of_rows(&d->x[0]), kd_team_threads(r.width), err, r));
    return kd_cuda_loss_total(b, a->y, r.part, blocks_of_rows(&d->x[0]), scale, err);
}

static kd_status row_grad(kd_cuda *b, kd_op *op, const kd_op_args *a, const char *name, void (*kernel)(row_loss_grad_args), double scale, kd_err *err) {
    const kd_op_desc *d = &op->desc;
    row_loss_grad_args r = {(const float *)a->x[0], (const float *)a->x[1], (const float *)a->dy, (float *)a->dx[0], a->saved, kd_cuda_rows(&d->x[0]), kd_cuda_width(&d->x[0]), d->temperature,
                            scale, kd_adds_dx(d)};
    return kd_wants_dx(d) ? kd_launch(b, name, kernel, blocks_of_rows(&d->x[0]), kd_team_threads(r.width), err, r) : KD_OK;
}

static double per_row(const kd_op *op) {
    return 1 / (double)kd_cuda_rows(&op->desc.x[0]);
}

/* d(1 - cos) = of_t t - of_s s */
typedef struct cosine_row {
    float of_s, of_t;
} cosine_row;

static __global__ void __launch_bounds__(KD_TEAM_MOST) cosine_kernel(row_loss_args a) {
    __shared__ double shared[32];
    kd_team t = kd_team_here(a.width, shared);
    int aligned = a.width % 8 == 0;
    double total = 0;
    for (size_t r = t.row; r < a.rows; r += t.step) {
        double dot = 0, norm = kd_row_norm(&t, a.s, 0, r * a.width, a.width, aligned), norm_t = kd_row_norm(&t, a.t, 0, r * a.width, a.width, aligned);
        kd_team_groups(i, t, a.width) {
            kd_f8 s = kd_row_load(a.s, 0, r * a.width + i, a.width - i, aligned), of_t = kd_row_load(a.t, 0, r * a.width + i, a.width - i, aligned);
            float sum = 0;
            for (int k = 0; k < 8; k++)
                sum = fmaf(s.v[k], of_t.v[k], sum);
            dot += (double)sum;
        }
        double by_s = 1 / kd_at_least(norm, KD_OP_COSINE_EPS), by_t = 1 / kd_at_least(norm_t, KD_OP_COSINE_EPS), cosine = kd_team_sum(&t, dot) * by_s * by_t;
        total += 1 - cosine;
        if (a.saved && t.lane == 0) {
            cosine_row row = {norm < KD_OP_COSINE_EPS ? 0.0f : (float)(-cosine * by_s * by_s), (float)(-by_s * by_t)};
            ((cosine_row *)a.saved)[r] = row;
        }
    }
    kd_team_finish(a.part, &t, total);
}

static __global__ void __launch_bounds__(KD_TEAM_MOST) cosine_grad_kernel(row_loss_grad_args a) {
    kd_team t = kd_team_here(a.width, NULL);
    int aligned = a.width % 8 == 0;
    double factor = a.scale * (double)a.dy[0];
    for (size_t r = t.row; r < a.rows; r += t.step) {
        cosine_row row = ((const cosine_row *)a.saved)[r];
        float by_s = (float)((double)row.of_s * factor), by_t = (float)((double)row.of_t * factor);
        kd_team_groups(i, t, a.width) {
            kd_f8 s = kd_row_load(a.s, 0, r * a.width + i, a.width - i, aligned), of_t = kd_row_load(a.t, 0, r * a.width + i, a.width - i, aligned);
            for (int k = 0; k < 8; k++)
                s.v[k] = of_t.v[k] * by_t - s.v[k] * by_s;
            kd_row_store_grad(a.dx, 0, r * a.width + i, s, a.width - i, aligned, a.add);
        }
    }
}

static kd_status cosine_create(kd_cuda *b, kd_op *op, kd_op_needs *needs, kd_err *err) {
    (void)b, (void)err;
    return row_create(op, needs, sizeof(cosine_row));
}

static kd_status cosine_forward(kd_cuda *b, kd_op *op, const kd_op_args *a, kd_err *err) {
    return row_value(b, op, a, "cosine loss", cosine_kernel, per_row(op), err);
}

static kd_status cosine_backward(kd_cuda *b, kd_op *op, const kd_op_args *a, kd_err *err) {
    return row_grad(b, op, a, "gradient of cosine loss", cosine_grad_kernel, per_row(op), err);
}

extern "C" const kd_cuda_kind kd_cuda_cosine = {cosine_create, NULL, NULL, cosine_forward, cosine_backward};

static __device__ __forceinline__ kd_score_rows logits_of(const float *s, const float *t, size_t row, size_t width, float temperature) {
    kd_score_rows r = {s + row * width, t + row * width, NULL, NULL, width, 1.0f / temperature, 1.0f / temperature, width % 8 == 0};
    return r;
}

static __global__ void __launch_bounds__(KD_TEAM_MOST) logits_kernel(row_loss_args a) {
    __shared__ double shared[32];
    kd_team t = kd_team_here(a.width, shared);
    double total = 0;
    for (size_t r = t.row; r < a.rows; r += t.step) {
        kd_score_rows rows = logits_of(a.s, a.t, r, a.width, a.temperature);
        kd_kl kl;
        total += kd_kl_row(&t, &rows, &kl);
        if (a.saved && t.lane == 0)
            ((kd_kl *)a.saved)[r] = kl;
    }
    kd_team_finish(a.part, &t, total);
}

static __global__ void __launch_bounds__(KD_TEAM_MOST) logits_grad_kernel(row_loss_grad_args a) {
    kd_team t = kd_team_here(a.width, NULL);
    float factor = (float)(a.scale * (double)a.dy[0]);
    for (size_t r = t.row; r < a.rows; r += t.step) {
        kd_score_rows rows = logits_of(a.s, a.t, r, a.width, a.temperature);
        kd_kl kl = ((const kd_kl *)a.saved)[r];
        kd_team_groups(i, t, a.width)
            kd_row_store_grad(a.dx, 0, r * a.width + i, kd_kl_grad(&rows, &kl, i, factor), a.width - i, rows.aligned, a.add);
    }
}

static kd_status logits_create(kd_cuda *b, kd_op *op, kd_op_needs *needs, kd_err *err) {
    (void)b, (void)err;
    return row_create(op, needs, sizeof(kd_kl));
}

static kd_status logits_forward(kd_cuda *b, kd_op *op, const kd_op_args *a, kd_err *err) {
    double temperature = (double)op->desc.temperature;
    return row_value(b, op, a, "KL of logits", logits_kernel, temperature * temperature * per_row(op), err);
}

static kd_status logits_backward(kd_cuda *b, kd_op *op, const kd_op_args *a, kd_err *err) {
    return row_grad(b, op, a, "gradient of KL of logits", logits_grad_kernel, (double)op->desc.temperature * per_row(op), err);
}

extern "C" const kd_cuda_kind kd_cuda_kl_logits = {logits_create, NULL, NULL, logits_forward, logits_backward};

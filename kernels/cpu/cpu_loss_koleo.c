/* koleo: every row of the batch against every other. A batch is small, and dot products in one fixed order make equal rows exactly equally near. */
#include "kernels/cpu/cpu_loss.h"

typedef struct koleo_ctx {
    const kd_op_args *a;
    float *y;          /* saved: normalised rows [N,D] */
    double *norm;      /* saved [N] */
    double *length;    /* saved [N]: |u_i| */
    int32_t *nearest;  /* saved [N] */
    size_t n, width;
    double factor;     /* of gradients */
    int add;
} koleo_ctx;

/* The layout of args->saved; returns its size. */
static size_t lay_out(koleo_ctx *c, const kd_op *op, const kd_op_args *a) {
    size_t at = 0, n = (size_t)op->desc.x[0].shape[0], width = (size_t)op->desc.x[0].shape[1];
    size_t y = kd_cpu_region(&at, n * width * sizeof(float)), norm = kd_cpu_region(&at, n * sizeof(double));
    size_t length = kd_cpu_region(&at, n * sizeof(double)), nearest = kd_cpu_region(&at, n * sizeof(int32_t));
    if (a)
        *c = (koleo_ctx){.a = a, .y = kd_cpu_at(a->saved, y), .norm = kd_cpu_at(a->saved, norm), .length = kd_cpu_at(a->saved, length), .nearest = kd_cpu_at(a->saved, nearest),
                         .n = n, .width = width, .add = (op->desc.add_dx & 1) != 0};
    return at;
}

static kd_status koleo_create(kd_cpu *b, kd_op *op, kd_op_needs *needs, kd_err *err) {
    (void)err;
    needs->saved = lay_out(NULL, op, NULL);
    needs->scratch = (size_t)b->base.threads * kd_cpu_padded(kd_cpu_width(&op->desc.x[0])) * sizeof(float);
    return KD_OK;
}

KD_HOT static void normalize_range(const void *ctx, int slice, size_t begin, size_t end) {
    const koleo_ctx c = *(const koleo_ctx *)ctx;
    (void)slice;
    for (size_t i = begin; i < end; i++)
        c.norm[i] = kd_normalize_row(c.y + i * c.width, (const float *)c.a->x[0] + i * c.width, c.width, KD_OP_KOLEO_EPS);
}

KD_LANE float likeness(const float *a, const float *b, size_t n) {
    kd_vf sum = {0};
    for (size_t i = 0; i < n; i += KD_VF) {
        int lanes = kd_lanes(n - i);
        sum += kd_load_f32(a + i, lanes) * kd_load_f32(b + i, lanes);
    }
    return kd_sum(sum);
}

/* |y_i - y_j + eps|. */
KD_LANE double distance(const float *a, const float *b, size_t n) {
    kd_vf sum = {0};
    for (size_t i = 0; i < n; i += KD_VF) {
        int lanes = kd_lanes(n - i);
        kd_vf u = kd_load_f32(a + i, lanes) - kd_load_f32(b + i, lanes) + (float)KD_OP_KOLEO_EPS;
        sum += (kd_vf)((kd_vi)(u * u) & kd_first(lanes));
    }
    return sqrt((double)kd_sum(sum));
}

KD_HOT static void nearest_range(const void *ctx, int slice, size_t begin, size_t end) {
    const koleo_ctx c = *(const koleo_ctx *)ctx;
    (void)slice;
    for (size_t i = begin; i < end; i++) {
        const float *y = c.y + i * c.width;
        size_t best = i == 0;
        float most = likeness(y, c.y + best * c.width, c.width);
        for (size_t j = best + 1; j < c.n; j++) {
            float like = j == i ? -INFINITY : likeness(y, c.y + j * c.width, c.width);
            if (like > most) {
                best = j;
                most = like;
            }
        }
        c.nearest[i] = (int32_t)best;
        c.length[i] = distance(y, c.y + best * c.width, c.width);
    }
}

static kd_status koleo_forward(kd_cpu *b, kd_op *op, const kd_op_args *a, kd_err *err) {
    koleo_ctx c;
    double sum = 0;
    (void)err;
    lay_out(&c, op, a);
    kd_cpu_parallel(b->base.threads, c.n, c.width + 1, normalize_range, &c);
    kd_cpu_parallel(b->base.threads, c.n, c.n * c.width, nearest_range, &c);
    for (size_t i = 0; i < c.n; i++)
        sum += log(c.length[i] + KD_OP_KOLEO_EPS);
    *(float *)a->y = (float)(-sum / (double)c.n);
    return KD_OK;
}

/* What |u_i| passes on to each element of u_i. */
KD_LANE float per_element(const koleo_ctx *c, size_t i) {
    double length = c->length[i];
    return length == 0 ? 0 : (float)(-1 / ((length + KD_OP_KOLEO_EPS) * length));
}

/* dy += g u_i, or -= where row `i` is another's neighbour. */
KD_LANE void add_difference(const koleo_ctx *c, float *dy, float g, size_t i) {
    const float *a = c->y + i * c->width, *b = c->y + (size_t)c->nearest[i] * c->width;
    for (size_t k = 0; k < c->width; k += KD_VF) {
        int n = kd_lanes(c->width - k);
        kd_vf u = kd_load_f32(a + k, n) - kd_load_f32(b + k, n) + (float)KD_OP_KOLEO_EPS;
        kd_store_f32(dy + k, kd_load_f32(dy + k, n) + u * g, n);
    }
}

/* A row's gradient: from its own distance, then from those of the rows whose neighbour it is, in order. It is summed up in scratch. */
KD_HOT static void grad_range(const void *ctx, int slice, size_t begin, size_t end) {
    const koleo_ctx c = *(const koleo_ctx *)ctx;
    float *dy = (float *)c.a->scratch + (size_t)slice * kd_cpu_padded(c.width);
    for (size_t i = begin; i < end; i++) {
        memset(dy, 0, c.width * sizeof *dy);
        add_difference(&c, dy, per_element(&c, i), i);
        for (size_t k = 0; k < c.n; k++)
            if ((size_t)c.nearest[k] == i)
                add_difference(&c, dy, -per_element(&c, k), k);
        kd_normalize_row_grad((float *)c.a->dx[0] + i * c.width, dy, c.y + i * c.width, c.norm[i], c.width, KD_OP_KOLEO_EPS, c.factor, c.add);
    }
}

static kd_status koleo_backward(kd_cpu *b, kd_op *op, const kd_op_args *a, kd_err *err) {
    koleo_ctx c;
    (void)err;
    lay_out(&c, op, a);
    c.factor = (double)*(const float *)a->dy / (double)c.n;
    if (op->desc.need_dx & 1)
        kd_cpu_parallel(b->base.threads, c.n, 3 * c.width, grad_range, &c);
    return KD_OK;
}

const kd_cpu_kind kd_cpu_koleo = {koleo_create, NULL, NULL, koleo_forward, koleo_backward};

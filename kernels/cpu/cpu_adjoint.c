/* mse_adjoint: the squared error on a full grid, computed on the reduced one. U^T U is separable, and along each axis it joins a point only with its two neighbours, because an upsampled
 * point is made from two neighbouring points: so U^T U s is a sum over 3 x 3 points whose weights are prepared here. */
#include "common/base/mem.h"
#include "common/tensor/target.h"
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/simd.h"

/* U^T U along one axis: weight[3 k + 1 + o] of point k + o in the result at k, o = -1, 0, 1; 0 outside. */
typedef struct axis {
    int64_t points;
    float *weight;
} axis;

typedef struct adjoint {
    axis rows, columns;
} adjoint;

static void adjoint_destroy(void *impl) {
    adjoint *s = impl;
    if (!s)
        return;
    kd_free(s->rows.weight);
    kd_free(s->columns.weight);
    kd_free(s);
}

static kd_status axis_create(axis *a, int64_t points, int64_t full, kd_err *err) {
    double *sum = NULL;
    a->points = points;
    KD_TRY(kd_alloc_array(&a->weight, 3 * (size_t)points, sizeof *a->weight, err));
    KD_TRY(kd_alloc_array(&sum, 3 * (size_t)points, sizeof *sum, err));
    for (int64_t i = 0; i < full; i++) {
        int64_t k0, k1;
        double w1;
        kd_bilinear_tap(points, full, i, &k0, &k1, &w1);
        sum[3 * k0 + 1] += (1 - w1) * (1 - w1);
        sum[3 * k1 + 1] += w1 * w1;
        sum[3 * k0 + 1 + (k1 - k0)] += (1 - w1) * w1;
        sum[3 * k1 + 1 - (k1 - k0)] += (1 - w1) * w1;
    }
    for (int64_t k = 0; k < 3 * points; k++)
        a->weight[k] = (float)sum[k];
    kd_free(sum);
    return KD_OK;
}

static kd_status adjoint_create(kd_cpu *b, kd_op *op, kd_op_needs *needs, kd_err *err) {
    const int64_t *shape = op->desc.x[0].shape;
    adjoint *s = NULL;
    (void)b;
    KD_TRY(kd_alloc_array(&s, 1, sizeof *s, err));
    op->impl = s;
    needs->scratch = (size_t)shape[0] * sizeof(double);
    KD_TRY(axis_create(&s->rows, shape[1], op->desc.grid_h, err));
    return axis_create(&s->columns, shape[2], op->desc.grid_w, err);
}

typedef struct adjoint_ctx {
    const adjoint *m;
    const float *s, *a;
    double *sum; /* [N]: each image's <s, U^T U s - 2 a> */
    float *dx;
    size_t width;
    float scale;
    int add;
} adjoint_ctx;

/* The points from -1 to 1 around k that exist. */
KD_LANE int64_t first_of(int64_t k) {
    return k > 0 ? -1 : 0;
}

KD_LANE int64_t last_of(int64_t k, int64_t points) {
    return k + 1 < points ? 1 : 0;
}

/* n values from `at` of U^T U s at point (k, l) of an image that begins at s. */
KD_LANE kd_vf gram(const adjoint_ctx *c, const float *s, int64_t k, int64_t l, size_t at, int n) {
    int64_t columns = c->m->columns.points;
    kd_vf sum = {0};
    for (int64_t i = first_of(k); i <= last_of(k, c->m->rows.points); i++) {
        kd_vf line = {0};
        for (int64_t j = first_of(l); j <= last_of(l, columns); j++)
            line += kd_load_f32(s + (size_t)((k + i) * columns + l + j) * c->width + at, n) * c->m->columns.weight[3 * l + 1 + j];
        sum += line * c->m->rows.weight[3 * k + 1 + i];
    }
    return sum;
}

/* begin, end: images. Products are summed in f32 over one token, then in f64. */
KD_HOT static void value_range(const void *ctx, int slice, size_t begin, size_t end) {
    const adjoint_ctx c = *(const adjoint_ctx *)ctx;
    int64_t columns = c.m->columns.points;
    size_t tokens = (size_t)(c.m->rows.points * columns);
    (void)slice;
    for (size_t image = begin; image < end; image++) {
        const float *s = c.s + image * tokens * c.width, *a = c.a + image * tokens * c.width;
        double total = 0;
        for (size_t p = 0; p < tokens; p++) {
            kd_vf sum = {0};
            for (size_t i = 0; i < c.width; i += KD_VF) {
                int n = kd_lanes(c.width - i);
                kd_vf g = gram(&c, s, (int64_t)p / columns, (int64_t)p % columns, i, n);
                sum += kd_load_f32(s + p * c.width + i, n) * (g - 2 * kd_load_f32(a + p * c.width + i, n));
            }
            total += (double)kd_sum(sum);
        }
        c.sum[image] = total;
    }
}

/* begin, end: tokens of the batch. */
KD_HOT static void grad_range(const void *ctx, int slice, size_t begin, size_t end) {
    const adjoint_ctx c = *(const adjoint_ctx *)ctx;
    int64_t columns = c.m->columns.points;
    size_t tokens = (size_t)(c.m->rows.points * columns);
    (void)slice;
    for (size_t r = begin; r < end; r++) {
        const float *s = c.s + r / tokens * tokens * c.width;
        int64_t p = (int64_t)(r % tokens);
        for (size_t i = 0; i < c.width; i += KD_VF) {
            int n = kd_lanes(c.width - i);
            kd_vf g = gram(&c, s, p / columns, p % columns, i, n);
            kd_store_grad(c.dx, KD_F32, r * c.width + i, (g - kd_load_f32(c.a + r * c.width + i, n)) * c.scale, n, c.add);
        }
    }
}

/* N H W D */
static double full_numel(const kd_op_desc *d) {
    return (double)d->x[0].shape[0] * d->grid_h * d->grid_w * (double)d->x[0].shape[3];
}

static kd_status adjoint_forward(kd_cpu *b, kd_op *op, const kd_op_args *a, kd_err *err) {
    size_t images = (size_t)op->desc.x[0].shape[0];
    const float *square = a->x[2];
    adjoint_ctx c = {.m = op->impl, .s = a->x[0], .a = a->x[1], .sum = a->scratch, .width = kd_cpu_width(&op->desc.x[0])};
    double sum = 0;
    (void)err;
    kd_cpu_parallel(b->base.threads, images, kd_tdesc_numel(&op->desc.x[0]) / images + 1, value_range, &c);
    for (size_t i = 0; i < images; i++)
        sum += c.sum[i] + (double)square[i];
    *(float *)a->y = (float)(sum / full_numel(&op->desc));
    return KD_OK;
}

static kd_status adjoint_backward(kd_cpu *b, kd_op *op, const kd_op_args *a, kd_err *err) {
    const kd_op_desc *d = &op->desc;
    adjoint_ctx c = {.m = op->impl, .s = a->x[0], .a = a->x[1], .dx = a->dx[0], .width = kd_cpu_width(&d->x[0]), .add = (d->add_dx & 1) != 0};
    (void)err;
    c.scale = (float)((double)*(const float *)a->dy * 2 / full_numel(d));
    if (d->need_dx & 1)
        kd_cpu_parallel(b->base.threads, kd_cpu_rows(&d->x[0]), c.width + 1, grad_range, &c);
    return KD_OK;
}

const kd_cpu_kind kd_cpu_mse_adjoint = {adjoint_create, adjoint_destroy, NULL, adjoint_forward, adjoint_backward};

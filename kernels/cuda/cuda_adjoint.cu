/* mse_adjoint: the squared error on a full grid, computed on the reduced one. U^T U is separable, and along each axis it joins a point only with its two neighbours, because an upsampled
 * point is made from two neighbouring points: so U^T U s is a sum over 3 x 3 points. Their weights follow from the grid's sizes; they are made once, in op_pack.
 *
 *     packed   rows [K,3], then columns [L,3] of f32: the weight of points -1, 0, 1 from each; 0 where there is no such point */
#include "kernels/cuda/cuda_loss.cuh"

enum { WEIGHT_THREADS = 128 };

/* As kd_bilinear_tap (common/tensor/target.h), which is the host's. */
static __device__ void bilinear_tap(int from, int to, int i, int *i0, int *i1, double *w1) {
    double at = ((double)i + 0.5) * (double)from / (double)to - 0.5;
    at = at < 0 ? 0 : at;
    *i0 = (int)at < from - 1 ? (int)at : from - 1;
    *i1 = *i0 + 1 < from ? *i0 + 1 : *i0;
    *w1 = at - (double)*i0;
}

/* A thread per point of an axis: its line of U^T U. */
static __global__ void weights_kernel(float *weight, int points, int full) {
    int k = (int)(blockIdx.x * blockDim.x + threadIdx.x);
    double sum[3] = {0, 0, 0};
    if (k >= points)
        return;
    for (int i = 0; i < full; i++) {
        int k0, k1;
        double w1;
        bilinear_tap(points, full, i, &k0, &k1, &w1);
        if (k0 == k) {
            sum[1] += (1 - w1) * (1 - w1);
            sum[1 + (k1 - k0)] += (1 - w1) * w1;
        }
        if (k1 == k) {
            sum[1] += w1 * w1;
            sum[1 - (k1 - k0)] += (1 - w1) * w1;
        }
    }
    for (int o = 0; o < 3; o++)
        weight[3 * k + o] = (float)sum[o];
}

typedef struct adjoint_loss_args {
    const float *s, *a, *square;
    const float *weight;
    size_t images, width;
    int rows, columns; /* K, L */
} adjoint_loss_args;

/* A point of the reduced grid, and the weights of the nine points around it. */
typedef struct point {
    size_t image, at; /* at: of its first value */
    int k, l;
    float weight[9];
} point;

static __device__ __forceinline__ point point_of(const adjoint_loss_args *a, size_t r) {
    size_t tokens = (size_t)a->rows * (size_t)a->columns;
    point p;
    p.image = r / tokens, p.at = r * a->width;
    p.k = (int)(r % tokens) / a->columns, p.l = (int)(r % tokens) % a->columns;
    for (int o = 0; o < 9; o++)
        p.weight[o] = a->weight[3 * p.k + o / 3] * a->weight[3 * (a->rows + p.l) + o % 3];
    return p;
}

/* U^T U s in the group at i. */
static __device__ __forceinline__ kd_f8 gram(const adjoint_loss_args *a, const point *p, size_t i, int aligned) {
    kd_f8 sum = {{0, 0, 0, 0, 0, 0, 0, 0}};
    for (int o = 0; o < 9; o++) {
        int dk = o / 3 - 1, dl = o % 3 - 1;
        if (p->k + dk < 0 || p->k + dk >= a->rows || p->l + dl < 0 || p->l + dl >= a->columns)
            continue;
        kd_f8 v = kd_row_load(a->s, 0, p->at + i + (size_t)((ptrdiff_t)(dk * a->columns + dl) * (ptrdiff_t)a->width), a->width - i, aligned);
        for (int k = 0; k < 8; k++)
            sum.v[k] = fmaf(v.v[k], p->weight[o], sum.v[k]);
    }
    return sum;
}

static __global__ void __launch_bounds__(KD_TEAM_MOST) adjoint_kernel(double *part, adjoint_loss_args a) {
    __shared__ double shared[32];
    kd_team t = kd_team_here(a.width, shared);
    size_t tokens = (size_t)a.rows * (size_t)a.columns;
    int aligned = a.width % 8 == 0;
    double total = 0;
    for (size_t r = t.row; r < a.images * tokens; r += t.step) {
        point p = point_of(&a, r);
        double sum = 0;
        kd_team_groups(i, t, a.width) {
            kd_f8 s = kd_row_load(a.s, 0, p.at + i, a.width - i, aligned), target = kd_row_load(a.a, 0, p.at + i, a.width - i, aligned), g = gram(&a, &p, i, aligned);
            float products = 0;
            for (int k = 0; k < 8; k++)
                products = fmaf(s.v[k], g.v[k] - 2 * target.v[k], products);
            sum += (double)products;
        }
        total += kd_team_sum(&t, sum);
        if (p.k == 0 && p.l == 0)
            total += (double)a.square[p.image];
    }
    kd_team_finish(part, &t, total);
}

static __global__ void __launch_bounds__(KD_TEAM_MOST) adjoint_grad_kernel(float *dx, adjoint_loss_args a, double scale, const float *dy, int add) {
    kd_team t = kd_team_here(a.width, NULL);
    size_t tokens = (size_t)a.rows * (size_t)a.columns;
    int aligned = a.width % 8 == 0;
    float factor = (float)(scale * (double)dy[0]);
    for (size_t r = t.row; r < a.images * tokens; r += t.step) {
        point p = point_of(&a, r);
        kd_team_groups(i, t, a.width) {
            kd_f8 target = kd_row_load(a.a, 0, p.at + i, a.width - i, aligned), g = gram(&a, &p, i, aligned);
            for (int k = 0; k < 8; k++)
                g.v[k] = (g.v[k] - target.v[k]) * factor;
            kd_row_store_grad(dx, 0, p.at + i, g, a.width - i, aligned, add);
        }
    }
}

static kd_status adjoint_create(kd_cuda *b, kd_op *op, kd_op_needs *needs, kd_err *err) {
    const kd_tdesc *s = &op->desc.x[0];
    (void)b, (void)err;
    needs->packed = 3 * (size_t)(s->shape[1] + s->shape[2]) * sizeof(float);
    needs->scratch = kd_loss_blocks(kd_cuda_rows(s), kd_cuda_width(s)) * sizeof(double);
    return KD_OK;
}

static kd_status adjoint_pack(kd_cuda *b, kd_op *op, const kd_op_args *a, kd_err *err) {
    const kd_op_desc *d = &op->desc;
    int rows = (int)d->x[0].shape[1], columns = (int)d->x[0].shape[2];
    float *weight = (float *)a->packed;
    KD_TRY(kd_launch(b, "weights of an adjoint", weights_kernel, (unsigned)((rows + WEIGHT_THREADS - 1) / WEIGHT_THREADS), WEIGHT_THREADS, err, weight, rows, d->grid_h));
    return kd_launch(b, "weights of an adjoint", weights_kernel, (unsigned)((columns + WEIGHT_THREADS - 1) / WEIGHT_THREADS), WEIGHT_THREADS, err, weight + 3 * rows, columns, d->grid_w);
}

static adjoint_loss_args args_of(const kd_op_desc *d, const kd_op_args *a) {
    const int64_t *shape = d->x[0].shape;
    adjoint_loss_args r = {(const float *)a->x[0], (const float *)a->x[1], (const float *)a->x[2], (const float *)a->packed, (size_t)shape[0], (size_t)shape[3], (int)shape[1], (int)shape[2]};
    return r;
}

/* N H W D */
static double full_numel(const kd_op_desc *d) {
    return (double)d->x[0].shape[0] * d->grid_h * d->grid_w * (double)d->x[0].shape[3];
}

static kd_status adjoint_forward(kd_cuda *b, kd_op *op, const kd_op_args *a, kd_err *err) {
    const kd_op_desc *d = &op->desc;
    size_t width = kd_cuda_width(&d->x[0]), parts = kd_loss_blocks(kd_cuda_rows(&d->x[0]), width);
    KD_TRY(kd_launch(b, "adjoint loss", adjoint_kernel, (unsigned)parts, kd_team_threads(width), err, (double *)a->scratch, args_of(d, a)));
    return kd_cuda_loss_total(b, a->y, (const double *)a->scratch, parts, 1 / full_numel(d), err);
}

static kd_status adjoint_backward(kd_cuda *b, kd_op *op, const kd_op_args *a, kd_err *err) {
    const kd_op_desc *d = &op->desc;
    size_t width = kd_cuda_width(&d->x[0]);
    if (!kd_wants_dx(d))
        return KD_OK;
    return kd_launch(b, "gradient of adjoint loss", adjoint_grad_kernel, (unsigned)kd_loss_blocks(kd_cuda_rows(&d->x[0]), width), kd_team_threads(width), err, (float *)a->dx[0], args_of(d, a),
                     2 / full_numel(d), (const float *)a->dy, kd_adds_dx(d));
}

extern "C" const kd_cuda_kind kd_cuda_mse_adjoint = {adjoint_create, NULL, adjoint_pack, adjoint_forward, adjoint_backward};

/* layer_norm: a warp per row. Statistics of a training pass are kept; the gradients of weight and bias are partial sums per group of rows, folded in f64. */
#include "kernels/cuda/device.cuh"

enum { WARPS = 8, PART_ROWS = 64, MOST_PARTS = 512, FOLD_THREADS = 128 };

typedef struct norm_args {
    const void *x;
    void *y;
    const float *weight, *bias;
    float *saved; /* mean and rstd of each row; NULL in inference */
    size_t rows, width;
    int x_bf16, y_bf16, whole;
    float eps;
} norm_args;

static __global__ void __launch_bounds__(32 * WARPS) forward_kernel(norm_args a) {
    size_t row = (size_t)blockIdx.x * WARPS + threadIdx.x / 32, lane = threadIdx.x % 32, at = row * a.width;
    if (row >= a.rows)
        return;
    float sum = 0, squares = 0;
    for (size_t i = 8 * lane; i < a.width; i += 256) {
        kd_f8 v = kd_load_some(a.x, a.x_bf16, at + i, (int)(a.width - i), a.whole);
        for (int k = 0; k < 8; k++)
            sum += v.v[k];
    }
    float mean = kd_warp_sum(sum) / (float)a.width;
    for (size_t i = 8 * lane; i < a.width; i += 256) {
        int n = (int)(a.width - i);
        kd_f8 v = kd_load_some(a.x, a.x_bf16, at + i, n, a.whole);
        for (int k = 0; k < 8; k++)
            squares = k < n ? fmaf(v.v[k] - mean, v.v[k] - mean, squares) : squares;
    }
    float rstd = 1.0f / sqrtf(kd_warp_sum(squares) / (float)a.width + a.eps);
    for (size_t i = 8 * lane; i < a.width; i += 256) {
        int n = (int)(a.width - i);
        kd_f8 v = kd_load_some(a.x, a.x_bf16, at + i, n, a.whole), w = kd_load_some(a.weight, 0, i, n, a.whole), c = kd_load_some(a.bias, 0, i, n, a.whole);
        for (int k = 0; k < 8; k++)
            v.v[k] = fmaf((v.v[k] - mean) * rstd, w.v[k], c.v[k]);
        kd_store_some(a.y, a.y_bf16, at + i, v, n, a.whole);
    }
    if (a.saved && lane == 0) {
        a.saved[2 * row] = mean;
        a.saved[2 * row + 1] = rstd;
    }
}

typedef struct norm_grad_args {
    const void *x, *dy;
    void *dx;
    const float *weight, *saved;
    size_t rows, width;
    int x_bf16, dy_bf16, whole, add;
} norm_grad_args;

/* dx = rstd (dy w - mean(dy w) - xhat mean(dy w xhat)) */
static __global__ void __launch_bounds__(32 * WARPS) dx_kernel(norm_grad_args a) {
    size_t row = (size_t)blockIdx.x * WARPS + threadIdx.x / 32, lane = threadIdx.x % 32, at = row * a.width;
    if (row >= a.rows)
        return;
    float mean = a.saved[2 * row], rstd = a.saved[2 * row + 1], sum = 0, dot = 0;
    for (size_t i = 8 * lane; i < a.width; i += 256) {
        int n = (int)(a.width - i);
        kd_f8 x = kd_load_some(a.x, a.x_bf16, at + i, n, a.whole), d = kd_load_some(a.dy, a.dy_bf16, at + i, n, a.whole), w = kd_load_some(a.weight, 0, i, n, a.whole);
        for (int k = 0; k < 8; k++) {
            float scaled = d.v[k] * w.v[k];
            sum += scaled;
            dot = fmaf(scaled, (x.v[k] - mean) * rstd, dot);
        }
    }
    sum = kd_warp_sum(sum) / (float)a.width;
    dot = kd_warp_sum(dot) / (float)a.width;
    for (size_t i = 8 * lane; i < a.width; i += 256) {
        int n = (int)(a.width - i);
        kd_f8 x = kd_load_some(a.x, a.x_bf16, at + i, n, a.whole), d = kd_load_some(a.dy, a.dy_bf16, at + i, n, a.whole), w = kd_load_some(a.weight, 0, i, n, a.whole);
        for (int k = 0; k < 8; k++)
            d.v[k] = (d.v[k] * w.v[k] - sum - (x.v[k] - mean) * rstd * dot) * rstd;
        kd_store_grad_some(a.dx, a.x_bf16, at + i, d, n, a.whole, a.add);
    }
}

static size_t parts_of(size_t rows) {
    size_t parts = (rows + PART_ROWS - 1) / PART_ROWS;
    return parts < MOST_PARTS ? parts : MOST_PARTS;
}

/* A thread per column and a block row per part: the sums of dy xhat and dy over the part's rows, in f64 of f32 sums of 32. */
static __global__ void param_parts_kernel(double *part, norm_grad_args a, size_t parts) {
    size_t col = (size_t)blockIdx.x * blockDim.x + threadIdx.x, p = blockIdx.y, first = a.rows * p / parts, last = a.rows * (p + 1) / parts;
    if (col >= a.width)
        return;
    double weight = 0, bias = 0;
    float w = 0, c = 0;
    for (size_t r = first; r < last; r++) {
        float d = kd_load1(a.dy, a.dy_bf16, r * a.width + col);
        w = fmaf(d, (kd_load1(a.x, a.x_bf16, r * a.width + col) - a.saved[2 * r]) * a.saved[2 * r + 1], w);
        c += d;
        if ((r - first) % 32 == 31) {
            weight += (double)w, bias += (double)c;
            w = 0, c = 0;
        }
    }
    part[2 * p * a.width + col] = weight + (double)w;
    part[(2 * p + 1) * a.width + col] = bias + (double)c;
}

static __global__ void param_sum_kernel(float *dweight, float *dbias, const double *part, size_t width, size_t parts) {
    size_t col = (size_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (col >= width)
        return;
    double weight = 0, bias = 0;
    for (size_t p = 0; p < parts; p++) {
        weight += part[2 * p * width + col];
        bias += part[(2 * p + 1) * width + col];
    }
    dweight[col] += (float)weight;
    dbias[col] += (float)bias;
}

static kd_status norm_create(kd_cuda *b, kd_op *op, kd_op_needs *needs, kd_err *err) {
    const kd_op_desc *d = &op->desc;
    (void)b, (void)err;
    if (!d->train)
        return KD_OK;
    needs->saved = 2 * kd_cuda_rows(&d->y) * sizeof(float);
    needs->scratch = parts_of(kd_cuda_rows(&d->y)) * 2 * kd_cuda_width(&d->y) * sizeof(double);
    return KD_OK;
}

static kd_status norm_forward(kd_cuda *b, kd_op *op, const kd_op_args *p, kd_err *err) {
    const kd_op_desc *d = &op->desc;
    norm_args a = {p->x[0], p->y, p->param[0], p->param[1], d->train ? (float *)p->saved : NULL, kd_cuda_rows(&d->y), kd_cuda_width(&d->y), kd_is_bf16(d->x[0].dtype), kd_is_bf16(d->y.dtype),
                   kd_cuda_width(&d->y) % 8 == 0, d->eps};
    return kd_launch(b, "layer norm", forward_kernel, (unsigned)((a.rows + WARPS - 1) / WARPS), 32 * WARPS, err, a);
}

static kd_status norm_backward(kd_cuda *b, kd_op *op, const kd_op_args *p, kd_err *err) {
    const kd_op_desc *d = &op->desc;
    norm_grad_args a = {p->x[0], p->dy, p->dx[0], p->param[0], (const float *)p->saved, kd_cuda_rows(&d->y), kd_cuda_width(&d->y), kd_is_bf16(d->x[0].dtype), kd_is_bf16(d->y.dtype),
                        kd_cuda_width(&d->y) % 8 == 0, (d->add_dx & 1) != 0};
    if (d->need_dx & 1)
        KD_TRY(kd_launch(b, "gradient of layer norm", dx_kernel, (unsigned)((a.rows + WARPS - 1) / WARPS), 32 * WARPS, err, a));
    if (!d->need_dparam)
        return KD_OK;
    size_t parts = parts_of(a.rows);
    unsigned wide = (unsigned)((a.width + FOLD_THREADS - 1) / FOLD_THREADS);
    KD_TRY(kd_launch(b, "gradient of layer norm", param_parts_kernel, dim3(wide, (unsigned)parts), FOLD_THREADS, err, (double *)p->scratch, a, parts));
    return kd_launch(b, "gradient of layer norm", param_sum_kernel, wide, FOLD_THREADS, err, p->dparam[0], p->dparam[1], (const double *)p->scratch, a.width, parts);
}

extern "C" const kd_cuda_kind kd_cuda_layer_norm = {norm_create, NULL, NULL, norm_forward, norm_backward};

/* max_pool, resize_bilinear, and the loss that is defined by it: mse_adjoint. */
#include <math.h>
#include <string.h>

#include "common/tensor/target.h"
#include "kernels/ref/ref_core.h"

/* Flat index in x of the largest value of the window of output (n, oy, ox, c): the first one in row-major order; a NaN wins. */
static int64_t window_max(const kd_op_desc *d, const double *x, int64_t n, int64_t oy, int64_t ox, int64_t c) {
    const int64_t *s = d->x[0].shape;
    int64_t best = -1;
    for (int64_t ky = 0; ky < d->kernel; ky++)
        for (int64_t kx = 0; kx < d->kernel; kx++) {
            int64_t iy = oy * d->stride + ky - d->pad, ix = ox * d->stride + kx - d->pad;
            if (iy < 0 || iy >= s[1] || ix < 0 || ix >= s[2])
                continue;
            int64_t at = ((n * s[1] + iy) * s[2] + ix) * s[3] + c;
            if (best < 0 || x[at] > x[best] || (isnan(x[at]) && !isnan(x[best])))
                best = at;
        }
    return best;
}

static int64_t window_of(const kd_op_desc *d, const double *x, int64_t out) {
    const int64_t *s = d->y.shape;
    int64_t c = out % s[3], ox = out / s[3] % s[2], oy = out / (s[3] * s[2]) % s[1], n = out / (s[3] * s[2] * s[1]);
    return window_max(d, x, n, oy, ox, c);
}

static void max_pool_forward(const kd_op_desc *d, const kd_ref_vals *v) {
    for (int64_t i = 0; i < (int64_t)kd_tdesc_numel(&d->y); i++)
        v->y[i] = v->x[0][window_of(d, v->x[0], i)];
}

static void max_pool_backward(const kd_op_desc *d, const kd_ref_vals *v) {
    if (!v->dx[0])
        return;
    memset(v->dx[0], 0, kd_tdesc_numel(&d->x[0]) * sizeof(double));
    for (int64_t i = 0; i < (int64_t)kd_tdesc_numel(&d->y); i++)
        v->dx[0][window_of(d, v->x[0], i)] += v->dy[i];
}

const kd_ref_core kd_ref_max_pool = {max_pool_forward, max_pool_backward, NULL};

/* Calls are the same in both directions: forward reads x at the four corners, backward adds to dx there. */
static void resize(const int64_t in[4], const int64_t out[4], const double *x, double *y, const double *dy, double *dx) {
    int64_t width = in[3];
    for (int64_t n = 0; n < out[0]; n++)
        for (int64_t oy = 0; oy < out[1]; oy++)
            for (int64_t ox = 0; ox < out[2]; ox++) {
                int64_t to = ((n * out[1] + oy) * out[2] + ox) * width;
                int64_t row[2], col[2];
                double wr[2], wc[2];
                kd_bilinear_tap(in[1], out[1], oy, &row[0], &row[1], &wr[1]);
                kd_bilinear_tap(in[2], out[2], ox, &col[0], &col[1], &wc[1]);
                wr[0] = 1 - wr[1];
                wc[0] = 1 - wc[1];
                for (int k = 0; k < 4; k++) {
                    int64_t from = ((n * in[1] + row[k / 2]) * in[2] + col[k % 2]) * width;
                    double w = wr[k / 2] * wc[k % 2];
                    for (int64_t i = 0; i < width; i++)
                        if (dx)
                            dx[from + i] += w * dy[to + i];
                        else
                            y[to + i] += w * x[from + i];
                }
            }
}

static void resize_forward(const kd_op_desc *d, const kd_ref_vals *v) {
    memset(v->y, 0, kd_tdesc_numel(&d->y) * sizeof(double));
    resize(d->x[0].shape, d->y.shape, v->x[0], v->y, NULL, NULL);
}

static void resize_backward(const kd_op_desc *d, const kd_ref_vals *v) {
    if (!v->dx[0])
        return;
    memset(v->dx[0], 0, kd_tdesc_numel(&d->x[0]) * sizeof(double));
    resize(d->x[0].shape, d->y.shape, NULL, NULL, v->dy, v->dx[0]);
}

const kd_ref_core kd_ref_resize_bilinear = {resize_forward, resize_backward, NULL};

/* ---- mse_adjoint: the upsampled prediction U s lies in the work area ---- */

static size_t full_numel(const kd_op_desc *d) {
    return (size_t)d->x[0].shape[0] * (size_t)d->grid_h * (size_t)d->grid_w * (size_t)d->x[0].shape[3];
}

static void upsample(const kd_op_desc *d, const kd_ref_vals *v) {
    const int64_t *s = d->x[0].shape, full[4] = {s[0], d->grid_h, d->grid_w, s[3]};
    memset(v->work, 0, full_numel(d) * sizeof(double));
    resize(s, full, v->x[0], v->work, NULL, NULL);
}

static void mse_adjoint_forward(const kd_op_desc *d, const kd_ref_vals *v) {
    size_t n = full_numel(d);
    double sum = 0;
    upsample(d, v);
    for (size_t i = 0; i < n; i++)
        sum += v->work[i] * v->work[i];
    for (size_t i = 0; i < kd_tdesc_numel(&d->x[0]); i++)
        sum -= 2 * v->x[0][i] * v->x[1][i];
    for (size_t i = 0; i < kd_tdesc_numel(&d->x[2]); i++)
        sum += v->x[2][i];
    v->y[0] = sum / (double)n;
}

static void mse_adjoint_backward(const kd_op_desc *d, const kd_ref_vals *v) {
    const int64_t *s = d->x[0].shape, full[4] = {s[0], d->grid_h, d->grid_w, s[3]};
    size_t n = kd_tdesc_numel(&d->x[0]);
    if (!v->dx[0])
        return;
    upsample(d, v);
    memset(v->dx[0], 0, n * sizeof(double));
    resize(s, full, NULL, NULL, v->work, v->dx[0]);
    for (size_t i = 0; i < n; i++)
        v->dx[0][i] = v->dy[0] * 2 / (double)full_numel(d) * (v->dx[0][i] - v->x[1][i]);
}

const kd_ref_core kd_ref_mse_adjoint = {mse_adjoint_forward, mse_adjoint_backward, full_numel};

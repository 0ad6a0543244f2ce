/* max_pool and resize_bilinear. */
#include <math.h>
#include <string.h>

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

/* The two source lines of one output line, and the weight of the second. */
typedef struct source {
    int64_t a, b;
    double wb;
} source;

static source source_of(int64_t out, int64_t in_size, int64_t out_size) {
    double at = ((double)out + 0.5) * (double)in_size / (double)out_size - 0.5;
    if (at < 0)
        at = 0;
    int64_t a = (int64_t)at;
    if (a > in_size - 1)
        a = in_size - 1;
    return (source){a, a + 1 < in_size ? a + 1 : a, at - (double)a};
}

/* Calls are the same in both directions: forward reads x at the four corners, backward adds to dx there. */
static void resize(const kd_op_desc *d, const double *x, double *y, const double *dy, double *dx) {
    const int64_t *in = d->x[0].shape, *out = d->y.shape;
    int64_t width = in[3];
    for (int64_t n = 0; n < out[0]; n++)
        for (int64_t oy = 0; oy < out[1]; oy++)
            for (int64_t ox = 0; ox < out[2]; ox++) {
                source r = source_of(oy, in[1], out[1]), c = source_of(ox, in[2], out[2]);
                int64_t to = ((n * out[1] + oy) * out[2] + ox) * width;
                int64_t row[2] = {r.a, r.b}, col[2] = {c.a, c.b};
                double wr[2] = {1 - r.wb, r.wb}, wc[2] = {1 - c.wb, c.wb};
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
    resize(d, v->x[0], v->y, NULL, NULL);
}

static void resize_backward(const kd_op_desc *d, const kd_ref_vals *v) {
    if (!v->dx[0])
        return;
    memset(v->dx[0], 0, kd_tdesc_numel(&d->x[0]) * sizeof(double));
    resize(d, NULL, NULL, v->dy, v->dx[0]);
}

const kd_ref_core kd_ref_resize_bilinear = {resize_forward, resize_backward, NULL};

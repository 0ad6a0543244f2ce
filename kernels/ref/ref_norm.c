/* batch_norm and layer_norm. Both are "normalise a group, then scale and shift"; a group is a channel (over all pixels) or a row. */
#include <math.h>

#include "kernels/ref/ref_core.h"

/* A group of `n` elements, `step` apart. */
typedef struct group {
    int64_t n, step;
} group;

typedef struct moments {
    double mean, rstd, var; /* var is the biased one */
} moments;

static moments moments_of(const double *x, group g, double eps) {
    double sum = 0, square = 0;
    for (int64_t i = 0; i < g.n; i++)
        sum += x[i * g.step];
    double mean = sum / (double)g.n;
    for (int64_t i = 0; i < g.n; i++)
        square += (x[i * g.step] - mean) * (x[i * g.step] - mean);
    double var = square / (double)g.n;
    return (moments){mean, 1 / sqrt(var + eps), var};
}

/* --- batch norm --- */

static moments channel_moments(const kd_op_desc *d, const kd_ref_vals *v, int64_t c, group g) {
    if (d->train)
        return moments_of(v->x[0] + c, g, (double)d->eps);
    double var = v->state[1][c];
    return (moments){v->state[0][c], 1 / sqrt(var + (double)d->eps), var};
}

static double batch_norm_pre(const kd_op_desc *d, const kd_ref_vals *v, const moments *m, int64_t c, int64_t i) {
    double y = (v->x[0][i] - m->mean) * m->rstd * v->param[0][c] + v->param[1][c];
    return d->inputs == 2 ? y + v->x[1][i] : y;
}

static void batch_norm_forward(const kd_op_desc *d, const kd_ref_vals *v) {
    int64_t width = kd_ref_width(&d->y);
    group g = {kd_ref_rows(&d->y), width};
    for (int64_t c = 0; c < width; c++) {
        moments m = channel_moments(d, v, c, g);
        for (int64_t r = 0; r < g.n; r++)
            v->y[r * width + c] = kd_ref_act(d->act, batch_norm_pre(d, v, &m, c, r * width + c));
        if (d->train) {
            double keep = 1 - (double)d->momentum, unbiased = m.var * (double)g.n / (double)(g.n - 1);
            v->state[0][c] = keep * v->state[0][c] + (double)d->momentum * m.mean;
            v->state[1][c] = keep * v->state[1][c] + (double)d->momentum * unbiased;
        }
    }
}

static void batch_norm_backward(const kd_op_desc *d, const kd_ref_vals *v) {
    int64_t width = kd_ref_width(&d->y);
    group g = {kd_ref_rows(&d->y), width};
    for (int64_t c = 0; c < width; c++) {
        moments m = channel_moments(d, v, c, g);
        double dw = 0, db = 0;
        for (int64_t i = c; i < g.n * width; i += width) {
            double dpre = v->dy[i] * kd_ref_dact(d->act, batch_norm_pre(d, v, &m, c, i));
            db += dpre;
            dw += dpre * (v->x[0][i] - m.mean) * m.rstd;
            if (v->dx[1])
                v->dx[1][i] = dpre;
        }
        for (int64_t i = c; v->dx[0] && i < g.n * width; i += width) {
            double dpre = v->dy[i] * kd_ref_dact(d->act, batch_norm_pre(d, v, &m, c, i));
            double xhat = (v->x[0][i] - m.mean) * m.rstd;
            v->dx[0][i] = v->param[0][c] * m.rstd * (dpre - (db + xhat * dw) / (double)g.n);
        }
        if (v->dparam[0])
            v->dparam[0][c] = dw;
        if (v->dparam[1])
            v->dparam[1][c] = db;
    }
}

const kd_ref_core kd_ref_batch_norm = {batch_norm_forward, batch_norm_backward, NULL};

/* --- layer norm --- */

static void layer_norm_forward(const kd_op_desc *d, const kd_ref_vals *v) {
    int64_t width = kd_ref_width(&d->y), rows = kd_ref_rows(&d->y);
    for (int64_t r = 0; r < rows; r++) {
        const double *x = v->x[0] + r * width;
        moments m = moments_of(x, (group){width, 1}, (double)d->eps);
        for (int64_t i = 0; i < width; i++)
            v->y[r * width + i] = (x[i] - m.mean) * m.rstd * v->param[0][i] + v->param[1][i];
    }
}

/* One row; the parameter gradients are sums over rows, so they are added to. */
static void layer_norm_row_backward(const kd_ref_vals *v, const double *x, const double *dy, double *dx, int64_t width, double eps) {
    moments m = moments_of(x, (group){width, 1}, eps);
    double sum = 0, dot = 0;
    for (int64_t i = 0; i < width; i++) {
        double xhat = (x[i] - m.mean) * m.rstd;
        sum += dy[i] * v->param[0][i];
        dot += dy[i] * v->param[0][i] * xhat;
        if (v->dparam[0])
            v->dparam[0][i] += dy[i] * xhat;
        if (v->dparam[1])
            v->dparam[1][i] += dy[i];
    }
    for (int64_t i = 0; dx && i < width; i++) {
        double xhat = (x[i] - m.mean) * m.rstd;
        dx[i] = m.rstd * (dy[i] * v->param[0][i] - (sum + xhat * dot) / (double)width);
    }
}

static void layer_norm_backward(const kd_op_desc *d, const kd_ref_vals *v) {
    int64_t width = kd_ref_width(&d->y), rows = kd_ref_rows(&d->y);
    for (int p = 0; p < 2; p++)
        for (int64_t i = 0; v->dparam[p] && i < width; i++)
            v->dparam[p][i] = 0;
    for (int64_t r = 0; r < rows; r++)
        layer_norm_row_backward(v, v->x[0] + r * width, v->dy + r * width, v->dx[0] ? v->dx[0] + r * width : NULL, width, (double)d->eps);
}

const kd_ref_core kd_ref_layer_norm = {layer_norm_forward, layer_norm_backward, NULL};

/* Losses that take every row or element by itself: cosine, smooth_l1, kl_logits; and l2_normalize, of which the others are made. */
#include <math.h>

#include "kernels/ref/ref_core.h"

/* --- l2_normalize --- */

static void l2_normalize_forward(const kd_op_desc *d, const kd_ref_vals *v) {
    int64_t width = kd_ref_width(&d->y), rows = kd_ref_rows(&d->y);
    for (int64_t r = 0; r < rows; r++)
        kd_ref_normalize_row(v->y + r * width, v->x[0] + r * width, width, KD_OP_L2_EPS);
}

static void l2_normalize_backward(const kd_op_desc *d, const kd_ref_vals *v) {
    int64_t width = kd_ref_width(&d->y), rows = kd_ref_rows(&d->y);
    for (int64_t r = 0; v->dx[0] && r < rows; r++) {
        double norm = kd_ref_normalize_row(v->work, v->x[0] + r * width, width, KD_OP_L2_EPS);
        kd_ref_normalize_row_backward(v->dx[0] + r * width, v->dy + r * width, v->work, norm, width, KD_OP_L2_EPS);
    }
}

static size_t one_row(const kd_op_desc *d) {
    return (size_t)kd_ref_width(&d->x[0]);
}

static size_t two_rows(const kd_op_desc *d) {
    return 2 * one_row(d);
}

const kd_ref_core kd_ref_l2_normalize = {l2_normalize_forward, l2_normalize_backward, one_row};

/* --- cosine --- */

static void cosine_forward(const kd_op_desc *d, const kd_ref_vals *v) {
    int64_t width = kd_ref_width(&d->x[0]), rows = kd_ref_rows(&d->x[0]);
    double *a = v->work, *b = a + width, sum = 0;
    for (int64_t r = 0; r < rows; r++) {
        kd_ref_normalize_row(a, v->x[0] + r * width, width, KD_OP_COSINE_EPS);
        kd_ref_normalize_row(b, v->x[1] + r * width, width, KD_OP_COSINE_EPS);
        sum += 1 - kd_ref_dot(a, b, width);
    }
    v->y[0] = sum / (double)rows;
}

static void cosine_backward(const kd_op_desc *d, const kd_ref_vals *v) {
    int64_t width = kd_ref_width(&d->x[0]), rows = kd_ref_rows(&d->x[0]);
    double *a = v->work, *b = a + width;
    for (int64_t r = 0; v->dx[0] && r < rows; r++) {
        double norm = kd_ref_normalize_row(a, v->x[0] + r * width, width, KD_OP_COSINE_EPS);
        kd_ref_normalize_row(b, v->x[1] + r * width, width, KD_OP_COSINE_EPS);
        for (int64_t i = 0; i < width; i++)
            b[i] *= -v->dy[0] / (double)rows;
        kd_ref_normalize_row_backward(v->dx[0] + r * width, b, a, norm, width, KD_OP_COSINE_EPS);
    }
}

const kd_ref_core kd_ref_cosine = {cosine_forward, cosine_backward, two_rows};

/* --- smooth_l1 --- */

static void smooth_l1_forward(const kd_op_desc *d, const kd_ref_vals *v) {
    size_t n = kd_tdesc_numel(&d->x[0]);
    double beta = (double)d->beta, sum = 0;
    for (size_t i = 0; i < n; i++) {
        double e = v->x[0][i] - v->x[1][i];
        sum += fabs(e) < beta ? e * e / (2 * beta) : fabs(e) - beta / 2;
    }
    v->y[0] = sum / (double)n;
}

static void smooth_l1_backward(const kd_op_desc *d, const kd_ref_vals *v) {
    size_t n = kd_tdesc_numel(&d->x[0]);
    double beta = (double)d->beta, scale = v->dy[0] / (double)n;
    for (size_t i = 0; v->dx[0] && i < n; i++) {
        double e = v->x[0][i] - v->x[1][i];
        v->dx[0][i] = scale * (fabs(e) >= beta ? copysign(1, e) : e / beta);
    }
}

const kd_ref_core kd_ref_smooth_l1 = {smooth_l1_forward, smooth_l1_backward, NULL};

/* --- kl_logits --- */

static void kl_logits_forward(const kd_op_desc *d, const kd_ref_vals *v) {
    int64_t width = kd_ref_width(&d->x[0]), rows = kd_ref_rows(&d->x[0]);
    double temperature = (double)d->temperature, sum = 0;
    for (int64_t r = 0; r < rows; r++)
        sum += kd_ref_kl_row(NULL, v->x[0] + r * width, v->x[1] + r * width, width, temperature);
    v->y[0] = temperature * temperature * sum / (double)rows;
}

static void kl_logits_backward(const kd_op_desc *d, const kd_ref_vals *v) {
    int64_t width = kd_ref_width(&d->x[0]), rows = kd_ref_rows(&d->x[0]);
    double temperature = (double)d->temperature, scale = v->dy[0] * temperature / (double)rows;
    for (int64_t r = 0; v->dx[0] && r < rows; r++) {
        double *dx = v->dx[0] + r * width;
        kd_ref_kl_row(dx, v->x[0] + r * width, v->x[1] + r * width, width, temperature);
        for (int64_t i = 0; i < width; i++)
            dx[i] *= scale;
    }
}

const kd_ref_core kd_ref_kl_logits = {kl_logits_forward, kl_logits_backward, NULL};

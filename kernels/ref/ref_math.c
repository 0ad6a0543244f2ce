#include <math.h>

#include "common/base/err.h"
#include "kernels/ref/ref_core.h"

static const double inv_sqrt2 = 0.70710678118654752440, inv_sqrt_2pi = 0.39894228040143267794;

static double clamp(double x, double low, double high) {
    return x < low ? low : x > high ? high : x; /* NaN stays */
}

static double sigmoid(double x) {
    return 1 / (1 + exp(-x));
}

double kd_ref_act(kd_act act, double x) {
    switch (act) {
    case KD_ACT_RELU:
        return x > 0 || isnan(x) ? x : 0; /* NaN stays NaN, so that a broken layer shows */
    case KD_ACT_GELU:
        return 0.5 * x * (1 + erf(x * inv_sqrt2));
    case KD_ACT_SILU:
        return x * sigmoid(x);
    case KD_ACT_HARDSWISH:
        return x * clamp(x + 3, 0, 6) / 6;
    case KD_ACT_HARDSIGMOID:
        return clamp(x + 3, 0, 6) / 6;
    case KD_ACT_NONE:
        break;
    }
    return x;
}

double kd_ref_dact(kd_act act, double x) {
    switch (act) {
    case KD_ACT_RELU:
        return x > 0 ? 1 : 0;
    case KD_ACT_GELU:
        return 0.5 * (1 + erf(x * inv_sqrt2)) + x * inv_sqrt_2pi * exp(-0.5 * x * x);
    case KD_ACT_SILU:
        return sigmoid(x) * (1 + x * (1 - sigmoid(x)));
    case KD_ACT_HARDSWISH:
        return x <= -3 ? 0 : x >= 3 ? 1 : x / 3 + 0.5;
    case KD_ACT_HARDSIGMOID:
        return x > -3 && x < 3 ? 1.0 / 6 : 0;
    case KD_ACT_NONE:
        break;
    }
    return 1;
}

double kd_ref_operand(const kd_op_desc *d, double v) {
    return d->x[0].dtype == KD_BF16 ? (double)kd_bf16_to_f32(kd_f32_to_bf16((float)v)) : v;
}

void kd_ref_operands(const kd_op_desc *d, double *v, size_t n) {
    if (d->x[0].dtype == KD_BF16)
        for (size_t i = 0; i < n; i++)
            v[i] = kd_ref_operand(d, v[i]);
}

/* One row of the product. Four rows of b at a time, so that c is read and written a quarter as often. */
__attribute__((target_clones("avx512f", "avx2", "default")))
static void row_times_matrix(double *KD_RESTRICT c, const double *a, int64_t a_step, const double *KD_RESTRICT b, int64_t b_row, int64_t k, int64_t n) {
    int64_t p = 0;
    for (; p + 4 <= k; p += 4) {
        double a0 = a[p * a_step], a1 = a[(p + 1) * a_step], a2 = a[(p + 2) * a_step], a3 = a[(p + 3) * a_step];
        const double *b0 = b + p * b_row, *b1 = b0 + b_row, *b2 = b1 + b_row, *b3 = b2 + b_row;
        for (int64_t j = 0; j < n; j++)
            c[j] += (a0 * b0[j] + a1 * b1[j]) + (a2 * b2[j] + a3 * b3[j]);
    }
    for (; p < k; p++)
        for (int64_t j = 0; j < n; j++)
            c[j] += a[p * a_step] * b[p * b_row + j];
}

void kd_ref_matmul_add(double *c, int64_t c_row, kd_ref_mat a, const double *b, int64_t b_row, int64_t m, int64_t k, int64_t n) {
    for (int64_t i = 0; i < m; i++)
        row_times_matrix(c + i * c_row, a.at + i * a.row, a.col, b, b_row, k, n);
}

void kd_ref_transpose(double *out, const double *in, int64_t m, int64_t n) {
    for (int64_t i = 0; i < m; i++)
        for (int64_t j = 0; j < n; j++)
            out[j * m + i] = in[i * n + j];
}

double kd_ref_dot(const double *a, const double *b, int64_t n) {
    double sum = 0;
    for (int64_t i = 0; i < n; i++)
        sum += a[i] * b[i];
    return sum;
}

/* NaN stays NaN, so that a broken row shows. */
static double at_least(double norm, double eps) {
    return norm < eps ? eps : norm;
}

double kd_ref_normalize_row(double *y, const double *x, int64_t n, double eps) {
    double norm = sqrt(kd_ref_dot(x, x, n));
    for (int64_t i = 0; i < n; i++)
        y[i] = x[i] / at_least(norm, eps);
    return norm;
}

void kd_ref_normalize_row_backward(double *dx, const double *dy, const double *y, double norm, int64_t n, double eps) {
    double along = norm < eps ? 0 : kd_ref_dot(y, dy, n);
    for (int64_t i = 0; i < n; i++)
        dx[i] = (dy[i] - y[i] * along) / at_least(norm, eps);
}

/* log of the sum of e^(x / temperature), shifted by the largest so that nothing overflows. */
static double log_sum(const double *x, int64_t n, double temperature) {
    double top = x[0], sum = 0;
    for (int64_t i = 1; i < n; i++)
        top = x[i] > top ? x[i] : top;
    for (int64_t i = 0; i < n; i++)
        sum += exp((x[i] - top) / temperature);
    return top / temperature + log(sum);
}

double kd_ref_kl_row(double *difference, const double *s, const double *t, int64_t n, double temperature) {
    double log_s = log_sum(s, n, temperature), log_t = log_sum(t, n, temperature), sum = 0;
    for (int64_t i = 0; i < n; i++) {
        double log_q = s[i] / temperature - log_s, log_p = t[i] / temperature - log_t;
        sum += exp(log_p) * (log_p - log_q);
        if (difference)
            difference[i] = exp(log_q) - exp(log_p);
    }
    return sum;
}

int64_t kd_ref_width(const kd_tdesc *t) {
    return t->shape[t->rank - 1];
}

int64_t kd_ref_rows(const kd_tdesc *t) {
    return (int64_t)kd_tdesc_numel(t) / kd_ref_width(t);
}

/* What the losses' files share: products that one thread computes, so that their bits don't depend on how many there are, and the arithmetic of single rows for simd.h's loops. */
#ifndef KD_KERNELS_CPU_CPU_LOSS_H
#define KD_KERNELS_CPU_CPU_LOSS_H

#include <math.h>

#include "kernels/cpu/cpu.h"
#include "kernels/cpu/simd.h"

/* ---- products (cpu_loss.c) ---- */

enum { KD_CPU_MAX_PRODUCTS = 2 };

/* Some matrix products, prepared once per slice of kd_cpu_parallel (they hold the addresses of a call) for a single thread. Zeroed = empty. */
typedef struct kd_cpu_products {
    kd_dnn **of; /* [slices][count] */
    int slices, count;
    size_t work_bytes, work; /* of one slice, and where the first slice's begins in args->scratch */
} kd_cpu_products;

/* Reserves the slices' work areas in needs->scratch. what: the op's name for messages. */
kd_status kd_cpu_products_create(kd_cpu_products *p, kd_cpu *b, const kd_dnn_matmul_desc *list, int count, const char *what, kd_op_needs *needs, kd_err *err);
void kd_cpu_products_destroy(kd_cpu_products *p);
/* c = a b by product `which` in slice `slice`. Only inside kd_cpu_products_parallel. */
kd_status kd_cpu_product_run(const kd_cpu_products *p, int slice, int which, void *scratch, const float *a, const float *b, float *c);
/* kd_cpu_parallel over n pieces, always in a parallel region: outside of one, oneDNN would run a product that was prepared for one thread on all. */
void kd_cpu_products_parallel(const kd_cpu_products *p, size_t n, kd_cpu_range fn, const void *ctx);

/* ---- rows of f32 ---- */

/* Rows of `width` floats begin at multiples of 64 bytes when they lie this far apart. */
static inline size_t kd_cpu_padded(size_t width) {
    return (width + KD_VF - 1) / KD_VF * KD_VF;
}

KD_LANE double kd_dot_double(const float *a, const float *b, size_t n) {
    kd_vd sum[4] = {{0}};
    size_t i = 0;
    for (; i + 4 * KD_VD <= n; i += 4 * KD_VD)
        for (size_t k = 0; k < 4; k++)
            sum[k] += kd_load_double(a + i + k * KD_VD) * kd_load_double(b + i + k * KD_VD);
    double total = kd_sum_double((sum[0] + sum[2]) + (sum[1] + sum[3]));
    for (; i < n; i++)
        total += (double)a[i] * (double)b[i];
    return total;
}

/* 1 / max(norm, eps); NaN stays. */
KD_LANE double kd_inverse_norm(double norm, double eps) {
    return 1 / (norm < eps ? eps : norm);
}

/* y = x / max(|x|, eps); returns |x|. */
KD_LANE double kd_normalize_row(float *y, const float *x, size_t n, double eps) {
    double norm = sqrt(kd_sum_of_squares(x, n));
    float inverse = (float)kd_inverse_norm(norm, eps);
    for (size_t i = 0; i < n; i += KD_VF) {
        int lanes = kd_lanes(n - i);
        kd_store_f32(y + i, kd_load_f32(x + i, lanes) * inverse, lanes);
    }
    return norm;
}

/* dx = (dy - y <y, dy>) * factor / |x|, where |x| < eps without the second term and by eps. */
KD_LANE void kd_normalize_row_grad(float *dx, const float *dy, const float *y, double norm, size_t n, double eps, double factor, int add) {
    float along = norm < eps ? 0 : (float)kd_dot_double(y, dy, n), scale = (float)(factor * kd_inverse_norm(norm, eps));
    for (size_t i = 0; i < n; i += KD_VF) {
        int lanes = kd_lanes(n - i);
        kd_store_grad(dx, KD_F32, i, (kd_load_f32(dy + i, lanes) - kd_load_f32(y + i, lanes) * along) * scale, lanes, add);
    }
}

/* ---- KL divergence of two rows ---- */

/* n values as lanes for a maximum: those that aren't there never win. */
KD_LANE kd_vf kd_load_for_max(const float *x, int n) {
    return kd_select(kd_first(n), kd_load_f32(x, n), kd_splat(-1e38f));
}

/* A softmax's shift, and the sum of the shifted exponentials. */
typedef struct kd_softmax_row {
    float top;
    double total;
} kd_softmax_row;

/* KL(softmax(scale t) || softmax(scale s)) = sum over j of p_j scale ((t_j - top_t) - (s_j - top_s)) + log total_s - log total_t. Sums of exponentials are folded into f64 every FOLD values. */
KD_LANE double kd_kl_row(kd_softmax_row *of_s, kd_softmax_row *of_t, const float *s, const float *t, size_t n, float scale) {
    enum { FOLD = 256 };
    kd_vf top_s = kd_splat(-1e38f), top_t = top_s;
    double total_s = 0, total_t = 0, distance = 0;
    for (size_t i = 0; i < n; i += KD_VF) {
        int lanes = kd_lanes(n - i);
        top_s = kd_max(top_s, kd_load_for_max(s + i, lanes));
        top_t = kd_max(top_t, kd_load_for_max(t + i, lanes));
    }
    float shift_s = kd_max_lane(top_s), shift_t = kd_max_lane(top_t);
    for (size_t at = 0; at < n; at += FOLD) {
        size_t stop = n - at < FOLD ? n : at + FOLD;
        kd_carried sum_s = KD_NO_SUM, sum_t = sum_s, sum_d = sum_s;
        for (size_t i = at; i < stop; i += KD_VF) {
            int lanes = kd_lanes(stop - i);
            kd_vi there = kd_first(lanes);
            kd_vf a = (kd_load_f32(s + i, lanes) - shift_s) * scale, b = (kd_load_f32(t + i, lanes) - shift_t) * scale;
            kd_vf es = (kd_vf)((kd_vi)kd_exp_negative(a) & there), et = (kd_vf)((kd_vi)kd_exp_negative(b) & there);
            kd_carry(&sum_s, es);
            kd_carry(&sum_t, et);
            kd_carry(&sum_d, et * (b - a));
        }
        total_s += (double)kd_sum(kd_carried_sum(&sum_s));
        total_t += (double)kd_sum(kd_carried_sum(&sum_t));
        distance += (double)kd_sum(kd_carried_sum(&sum_d));
    }
    *of_s = (kd_softmax_row){shift_s, total_s};
    *of_t = (kd_softmax_row){shift_t, total_t};
    return distance / total_t + log(total_s) - log(total_t);
}

/* out = (q - p) * factor, q = softmax(scale s), p = softmax(scale t), after kd_kl_row. out may be s or t. */
KD_LANE void kd_kl_row_grad(float *out, const kd_softmax_row *of_s, const kd_softmax_row *of_t, const float *s, const float *t, size_t n, float scale, double factor, int add) {
    float shift_s = of_s->top, shift_t = of_t->top, by_s = (float)(factor / of_s->total), by_t = (float)(factor / of_t->total);
    for (size_t i = 0; i < n; i += KD_VF) {
        int lanes = kd_lanes(n - i);
        kd_vf q = kd_exp_negative((kd_load_f32(s + i, lanes) - shift_s) * scale) * by_s, p = kd_exp_negative((kd_load_f32(t + i, lanes) - shift_t) * scale) * by_t;
        kd_store_grad(out, KD_F32, i, q - p, lanes, add);
    }
}

/* Sum of one number per row or image, in order. */
static inline double kd_cpu_total(const double *part, size_t n) {
    double sum = 0;
    for (size_t i = 0; i < n; i++)
        sum += part[i];
    return sum;
}

#endif

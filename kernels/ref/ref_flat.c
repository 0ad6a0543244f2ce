#include "kernels/ref/ref_flat.h"

#include <math.h>

kd_status kd_ref_sum_squares(kd_backend *b, float *out, const float *x, size_t n, kd_err *err) {
    (void)b, (void)err;
    double sum = 0;
    for (size_t i = 0; i < n; i++)
        sum += (double)x[i] * (double)x[i];
    *out = (float)sum;
    return KD_OK;
}

kd_status kd_ref_clip_scale(kd_backend *b, float *scale, const float *sumsq, float max_norm, kd_err *err) {
    (void)b, (void)err;
    double norm = sqrt((double)*sumsq);
    if (!isfinite(norm))
        *scale = NAN;
    else if (max_norm > 0 && norm > (double)max_norm)
        *scale = (float)((double)max_norm / (norm + 1e-6));
    else
        *scale = 1;
    return KD_OK;
}

kd_status kd_ref_adamw(kd_backend *b, float *w, const float *g, float *m, float *v, size_t n, const kd_adamw *h, const float *scale, kd_err *err) {
    (void)b, (void)err;
    if (isnan(*scale))
        return KD_OK;
    double t = (double)h->step;
    float keep = (float)(1 - h->lr * h->weight_decay), a1 = (float)(1 - h->beta1), a2 = (float)(1 - h->beta2), b2 = (float)h->beta2;
    float step = (float)(-h->lr / (1 - pow(h->beta1, t))), root = (float)sqrt(1 - pow(h->beta2, t)), eps = (float)h->eps;
    for (size_t i = 0; i < n; i++) {
        float gi = g[i] * *scale;
        m[i] = fmaf(a1, gi - m[i], m[i]);
        v[i] = fmaf(a2 * gi, gi, b2 * v[i]);
        w[i] = w[i] * keep + step * m[i] / (sqrtf(v[i]) / root + eps);
    }
    return KD_OK;
}

kd_status kd_ref_sgd(kd_backend *b, float *w, const float *g, float *m, size_t n, const kd_sgd *h, const float *scale, kd_err *err) {
    (void)b, (void)err;
    if (isnan(*scale))
        return KD_OK;
    for (size_t i = 0; i < n; i++) {
        m[i] = h->momentum * m[i] + fmaf(h->weight_decay, w[i], g[i] * *scale);
        w[i] = fmaf(-h->lr, m[i], w[i]);
    }
    return KD_OK;
}

static double norm_of(const float *x, size_t n) {
    double sum = 0;
    for (size_t i = 0; i < n; i++)
        sum += (double)x[i] * (double)x[i];
    return sqrt(sum);
}

kd_status kd_ref_lars(kd_backend *b, float *w, const float *g, float *m, const uint64_t *begin, float *rate, size_t tensors, const kd_lars *h, const float *scale, kd_err *err) {
    (void)b, (void)err;
    if (isnan(*scale))
        return KD_OK;
    double decay = (double)h->weight_decay;
    for (size_t t = 0; t < tensors; t++) {
        size_t first = (size_t)begin[t], end = (size_t)begin[t + 1];
        double wn = norm_of(w + first, end - first), gn = (double)*scale * norm_of(g + first, end - first);
        double r = wn == 0 ? 1 : gn == 0 ? 0 : (double)h->trust * wn / (gn + decay * wn + (double)h->eps);
        rate[t] = (float)r;
        for (size_t i = first; i < end; i++) {
            m[i] = h->momentum * m[i] + rate[t] * fmaf(h->weight_decay, w[i], g[i] * *scale);
            w[i] = fmaf(-h->lr, m[i], w[i]);
        }
    }
    return KD_OK;
}

kd_status kd_ref_ema(kd_backend *b, float *e, const float *w, size_t n, float decay, kd_err *err) {
    (void)b, (void)err;
    for (size_t i = 0; i < n; i++)
        e[i] = (float)((double)decay * (double)e[i] + (1 - (double)decay) * (double)w[i]);
    return KD_OK;
}

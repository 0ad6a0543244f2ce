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
    double lr = (double)h->lr, b1 = (double)h->beta1, b2 = (double)h->beta2, t = (double)h->step;
    double step = lr / (1 - pow(b1, t)), root = sqrt(1 - pow(b2, t));
    for (size_t i = 0; i < n; i++) {
        double gi = (double)g[i] * (double)*scale;
        double mi = b1 * (double)m[i] + (1 - b1) * gi;
        double vi = b2 * (double)v[i] + (1 - b2) * gi * gi;
        double wi = (double)w[i] * (1 - lr * (double)h->weight_decay);
        m[i] = (float)mi;
        v[i] = (float)vi;
        w[i] = (float)(wi - step * mi / (sqrt(vi) / root + (double)h->eps));
    }
    return KD_OK;
}

kd_status kd_ref_sgd(kd_backend *b, float *w, const float *g, float *m, size_t n, const kd_sgd *h, const float *scale, kd_err *err) {
    (void)b, (void)err;
    if (isnan(*scale))
        return KD_OK;
    for (size_t i = 0; i < n; i++) {
        double d = (double)g[i] * (double)*scale + (double)h->weight_decay * (double)w[i];
        double mi = (double)h->momentum * (double)m[i] + d;
        m[i] = (float)mi;
        w[i] = (float)((double)w[i] - (double)h->lr * mi);
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
            double mi = (double)h->momentum * (double)m[i] + r * ((double)g[i] * (double)*scale + decay * (double)w[i]);
            m[i] = (float)mi;
            w[i] = (float)((double)w[i] - (double)h->lr * mi);
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

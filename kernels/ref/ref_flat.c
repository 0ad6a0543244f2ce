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

/* Flat vectors: gradient norm and clipping, the optimizers' steps, moving averages. */
#include <math.h>

#include "kernels/cpu/cpu.h"
#include "kernels/cpu/simd.h"

/* ---- sum of squares ---- */

enum { PARTS = 64 }; /* a partition that doesn't depend on the thread count, so neither does the sum */

typedef struct squares_ctx {
    double *part;
    const float *x;
    size_t n;
} squares_ctx;

KD_HOT static void squares_range(const void *ctx, int slice, size_t begin, size_t end) {
    const squares_ctx c = *(const squares_ctx *)ctx;
    (void)slice;
    for (size_t p = begin; p < end; p++) {
        size_t first = c.n * p / PARTS, last = c.n * (p + 1) / PARTS;
        c.part[p] = kd_sum_of_squares(c.x + first, last - first);
    }
}

static double sum_squares(int threads, const float *x, size_t n) {
    double part[PARTS], sum = 0;
    kd_cpu_parallel(threads, PARTS, n / PARTS + 1, squares_range, &(squares_ctx){part, x, n});
    for (int p = 0; p < PARTS; p++)
        sum += part[p];
    return sum;
}

kd_status kd_cpu_sum_squares(kd_backend *b, float *out, const float *x, size_t n, kd_err *err) {
    (void)err;
    *out = (float)sum_squares(b->threads, x, n);
    return KD_OK;
}

kd_status kd_cpu_clip_scale(kd_backend *b, float *scale, const float *sumsq, float max_norm, kd_err *err) {
    (void)b, (void)err;
    double norm = sqrt((double)*sumsq);
    if (!isfinite(norm))
        *scale = NAN;
    else
        *scale = max_norm > 0 && norm > (double)max_norm ? (float)((double)max_norm / (norm + 1e-6)) : 1;
    return KD_OK;
}

/* ---- AdamW ---- */

typedef struct adamw_ctx {
    float *w, *m, *v;
    const float *g;
    float scale, keep, a1, a2, b2, step, root, eps; /* keep: what weight decay leaves; a1, a2: 1 - beta; step: -lr / (1 - beta1^t); root: sqrt(1 - beta2^t) */
} adamw_ctx;

KD_HOT static void adamw_range(const void *ctx, int slice, size_t begin, size_t end) {
    const adamw_ctx c = *(const adamw_ctx *)ctx;
    (void)slice;
    float *KD_RESTRICT w = c.w, *KD_RESTRICT m = c.m, *KD_RESTRICT v = c.v;
    const float *KD_RESTRICT g = c.g;
    for (size_t i = begin; i < end; i++) {
        float gi = g[i] * c.scale;
        m[i] = fmaf(c.a1, gi - m[i], m[i]);
        v[i] = fmaf(c.a2 * gi, gi, c.b2 * v[i]);
        w[i] = w[i] * c.keep + c.step * m[i] / (sqrtf(v[i]) / c.root + c.eps);
    }
}

kd_status kd_cpu_adamw(kd_backend *b, float *w, const float *g, float *m, float *v, size_t n, const kd_adamw *h, const float *scale, kd_err *err) {
    (void)err;
    if (isnan(*scale))
        return KD_OK;
    double t = (double)h->step;
    adamw_ctx c = {.w = w, .m = m, .v = v, .g = g, .scale = *scale, .b2 = (float)h->beta2, .eps = (float)h->eps};
    c.keep = (float)(1 - h->lr * h->weight_decay);
    c.a1 = (float)(1 - h->beta1);
    c.a2 = (float)(1 - h->beta2);
    c.step = (float)(-h->lr / (1 - pow(h->beta1, t)));
    c.root = (float)sqrt(1 - pow(h->beta2, t));
    kd_cpu_parallel(b->threads, n, 1, adamw_range, &c);
    return KD_OK;
}

/* ---- SGD and LARS ---- */

typedef struct momentum_ctx {
    float *w, *m;
    const float *g;
    float scale, decay, rate, momentum, lr; /* m = momentum m + rate (scale g + decay w);  w -= lr m. rate 1 is SGD */
} momentum_ctx;

KD_HOT static void momentum_range(const void *ctx, int slice, size_t begin, size_t end) {
    const momentum_ctx c = *(const momentum_ctx *)ctx;
    (void)slice;
    float *KD_RESTRICT w = c.w, *KD_RESTRICT m = c.m;
    const float *KD_RESTRICT g = c.g;
    for (size_t i = begin; i < end; i++) {
        m[i] = c.momentum * m[i] + c.rate * fmaf(c.decay, w[i], g[i] * c.scale);
        w[i] = fmaf(-c.lr, m[i], w[i]);
    }
}

kd_status kd_cpu_sgd(kd_backend *b, float *w, const float *g, float *m, size_t n, const kd_sgd *h, const float *scale, kd_err *err) {
    (void)err;
    if (isnan(*scale))
        return KD_OK;
    momentum_ctx c = {.w = w, .m = m, .g = g, .scale = *scale, .decay = h->weight_decay, .rate = 1, .momentum = h->momentum, .lr = h->lr};
    kd_cpu_parallel(b->threads, n, 1, momentum_range, &c);
    return KD_OK;
}

/* Tensor by tensor: most of one is still in the cache when its norms are known. */
kd_status kd_cpu_lars(kd_backend *b, float *w, const float *g, float *m, const uint64_t *begin, float *rate, size_t tensors, const kd_lars *h, const float *scale, kd_err *err) {
    (void)err;
    if (isnan(*scale))
        return KD_OK;
    double decay = (double)h->weight_decay;
    for (size_t t = 0; t < tensors; t++) {
        size_t first = (size_t)begin[t], n = (size_t)begin[t + 1] - first;
        double wn = sqrt(sum_squares(b->threads, w + first, n)), gn = (double)*scale * sqrt(sum_squares(b->threads, g + first, n));
        double r = wn == 0 ? 1 : gn == 0 ? 0 : (double)h->trust * wn / (gn + decay * wn + (double)h->eps);
        rate[t] = (float)r;
        momentum_ctx c = {.w = w + first, .m = m + first, .g = g + first, .scale = *scale, .decay = h->weight_decay, .rate = rate[t], .momentum = h->momentum, .lr = h->lr};
        kd_cpu_parallel(b->threads, n, 1, momentum_range, &c);
    }
    return KD_OK;
}

/* ---- moving average ---- */

typedef struct ema_ctx {
    float *e;
    const float *w;
    double decay;
} ema_ctx;

KD_HOT static void ema_range(const void *ctx, int slice, size_t begin, size_t end) {
    const ema_ctx c = *(const ema_ctx *)ctx;
    (void)slice;
    float *KD_RESTRICT e = c.e;
    const float *KD_RESTRICT w = c.w;
    for (size_t i = begin; i < end; i++)
        e[i] = (float)(c.decay * (double)e[i] + (1 - c.decay) * (double)w[i]);
}

kd_status kd_cpu_ema(kd_backend *b, float *e, const float *w, size_t n, float decay, kd_err *err) {
    (void)err;
    kd_cpu_parallel(b->threads, n, 1, ema_range, &(ema_ctx){e, w, (double)decay});
    return KD_OK;
}

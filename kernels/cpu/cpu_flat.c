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
    double scale, b1, b2, keep, step, root, eps; /* keep: what weight decay leaves; step: lr / (1 - b1^t); root: sqrt(1 - b2^t) */
} adamw_ctx;

/* In double inside: memory is the limit anyway. */
KD_HOT static void adamw_range(const void *ctx, int slice, size_t begin, size_t end) {
    const adamw_ctx c = *(const adamw_ctx *)ctx;
    (void)slice;
    float *KD_RESTRICT w = c.w, *KD_RESTRICT m = c.m, *KD_RESTRICT v = c.v;
    const float *KD_RESTRICT g = c.g;
    for (size_t i = begin; i < end; i++) {
        double gi = (double)g[i] * c.scale;
        double mi = c.b1 * (double)m[i] + (1 - c.b1) * gi;
        double vi = c.b2 * (double)v[i] + (1 - c.b2) * gi * gi;
        m[i] = (float)mi;
        v[i] = (float)vi;
        w[i] = (float)((double)w[i] * c.keep - c.step * mi / (sqrt(vi) / c.root + c.eps));
    }
}

kd_status kd_cpu_adamw(kd_backend *b, float *w, const float *g, float *m, float *v, size_t n, const kd_adamw *h, const float *scale, kd_err *err) {
    (void)err;
    if (isnan(*scale))
        return KD_OK;
    double lr = (double)h->lr, b1 = (double)h->beta1, b2 = (double)h->beta2, t = (double)h->step;
    adamw_ctx c = {.w = w, .m = m, .v = v, .g = g, .scale = (double)*scale, .b1 = b1, .b2 = b2, .eps = (double)h->eps};
    c.keep = 1 - lr * (double)h->weight_decay;
    c.step = lr / (1 - pow(b1, t));
    c.root = sqrt(1 - pow(b2, t));
    kd_cpu_parallel(b->threads, n, 1, adamw_range, &c);
    return KD_OK;
}

/* ---- SGD and LARS ---- */

typedef struct momentum_ctx {
    float *w, *m;
    const float *g;
    double scale, decay, momentum, lr; /* m = momentum m + scale g + decay w;  w -= lr m */
} momentum_ctx;

KD_HOT static void momentum_range(const void *ctx, int slice, size_t begin, size_t end) {
    const momentum_ctx c = *(const momentum_ctx *)ctx;
    (void)slice;
    float *KD_RESTRICT w = c.w, *KD_RESTRICT m = c.m;
    const float *KD_RESTRICT g = c.g;
    for (size_t i = begin; i < end; i++) {
        double wi = (double)w[i], mi = c.momentum * (double)m[i] + ((double)g[i] * c.scale + c.decay * wi);
        m[i] = (float)mi;
        w[i] = (float)(wi - c.lr * mi);
    }
}

kd_status kd_cpu_sgd(kd_backend *b, float *w, const float *g, float *m, size_t n, const kd_sgd *h, const float *scale, kd_err *err) {
    (void)err;
    if (isnan(*scale))
        return KD_OK;
    momentum_ctx c = {.w = w, .m = m, .g = g, .scale = (double)*scale, .decay = (double)h->weight_decay, .momentum = (double)h->momentum, .lr = (double)h->lr};
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
        momentum_ctx c = {.w = w + first, .m = m + first, .g = g + first, .scale = r * (double)*scale, .decay = r * decay, .momentum = (double)h->momentum, .lr = (double)h->lr};
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

/* ops_check_flat: the flat-vector functions of a backend against ref's. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "common/base/mem.h"
#include "tests/ops/harness.h"

enum { GUARD_FLOATS = 64 };

static void must(kd_status status, const kd_err *err) {
    if (status != KD_OK)
        fail_msg("%s", err->msg);
}

/* Device copy of n floats with GUARD_FLOATS of 12345 after them. */
static float *to_device(kd_backend *b, const float *x, size_t n) {
    kd_err err = {0};
    float guard[GUARD_FLOATS];
    void *p = NULL;
    for (int i = 0; i < GUARD_FLOATS; i++)
        guard[i] = 12345;
    must(b->v->alloc(b, &p, (n + GUARD_FLOATS) * sizeof *x, &err), &err);
    must(b->v->upload(b, p, x, n * sizeof *x, &err), &err);
    must(b->v->upload(b, (float *)p + n, guard, sizeof guard, &err), &err);
    return p;
}

static float *from_device(kd_backend *b, float *device, size_t n) {
    kd_err err = {0};
    float *x = kd_malloc((n + GUARD_FLOATS) * sizeof *x);
    assert_non_null(x);
    must(b->v->download(b, x, device, (n + GUARD_FLOATS) * sizeof *x, &err), &err);
    for (size_t i = 0; i < GUARD_FLOATS; i++)
        if (!(x[n + i] == 12345.0f))
            fail_msg("written %zu floats behind a vector of %zu", i + 1, n);
    b->v->release(b, device);
    return x;
}

static float sum_squares_of(kd_backend *b, const float *x, size_t n) {
    kd_err err = {0};
    float nan = NAN, *dx = to_device(b, x, n), *out = to_device(b, &nan, 1);
    must(b->v->sum_squares(b, out, dx, n, &err), &err);
    float *host = from_device(b, out, 1), value = host[0];
    kd_free(host);
    b->v->release(b, dx);
    return value;
}

static float clip_scale_of(kd_backend *b, float sumsq, float max_norm) {
    kd_err err = {0};
    float nan = NAN, *in = to_device(b, &sumsq, 1), *out = to_device(b, &nan, 1);
    must(b->v->clip_scale(b, out, in, max_norm, &err), &err);
    float *host = from_device(b, out, 1), value = host[0];
    kd_free(host);
    b->v->release(b, in);
    return value;
}

typedef struct adamw_state {
    float *w, *m, *v;
} adamw_state;

static adamw_state adamw_steps(kd_backend *b, const float *w0, const float *g, size_t n, float scale, int steps) {
    kd_err err = {0};
    float *zero = kd_calloc(n, sizeof *zero), *w = to_device(b, w0, n), *m = to_device(b, zero, n), *v = to_device(b, zero, n), *dg = to_device(b, g, n), *s = to_device(b, &scale, 1);
    for (int t = 1; t <= steps; t++) {
        kd_adamw h = {.lr = 1e-3, .beta1 = 0.9, .beta2 = 0.999, .eps = 1e-8, .weight_decay = 0.05, .step = t};
        must(b->v->adamw(b, w, dg, m, v, n, &h, s, &err), &err);
    }
    kd_free(zero);
    b->v->release(b, dg);
    b->v->release(b, s);
    return (adamw_state){from_device(b, w, n), from_device(b, m, n), from_device(b, v, n)};
}

static void near(const char *what, const float *got, const float *want, size_t n, double rel) {
    for (size_t i = 0; i < n; i++)
        if (!(fabs((double)got[i] - (double)want[i]) <= rel * fabs((double)want[i])))
            fail_msg("%s[%zu] of %zu: %.9g, ref has %.9g", what, i, n, (double)got[i], (double)want[i]);
}

static void check_adamw(kd_backend *b, kd_backend *ref, const float *w, const float *g, size_t n) {
    adamw_state x = adamw_steps(b, w, g, n, 0.7f, 5), y = adamw_steps(ref, w, g, n, 0.7f, 5), untouched = adamw_steps(b, w, g, n, NAN, 1);
    assert_memory_equal(x.m, y.m, n * sizeof *w);
    assert_memory_equal(x.v, y.v, n * sizeof *w);
    assert_memory_equal(x.w, y.w, n * sizeof *w);
    assert_memory_equal(untouched.w, w, n * sizeof *w);
    for (size_t i = 0; i < n; i++)
        assert_true(untouched.m[i] == 0 && untouched.v[i] == 0);
    float *all[] = {x.w, x.m, x.v, y.w, y.m, y.v, untouched.w, untouched.m, untouched.v};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        kd_free(all[i]);
}

/* ---- SGD, LARS, moving average ---- */

typedef struct momentum_state {
    float *w, *m;
} momentum_state;

static momentum_state sgd_steps(kd_backend *b, const float *w0, const float *g, size_t n, float scale, int steps) {
    kd_err err = {0};
    float *zero = kd_calloc(n, sizeof *zero), *w = to_device(b, w0, n), *m = to_device(b, zero, n), *dg = to_device(b, g, n), *s = to_device(b, &scale, 1);
    const kd_sgd h = {.lr = 0.1f, .momentum = 0.9f, .weight_decay = 0.05f};
    for (int t = 0; t < steps; t++)
        must(b->v->sgd(b, w, dg, m, n, &h, s, &err), &err);
    kd_free(zero);
    b->v->release(b, dg);
    b->v->release(b, s);
    return (momentum_state){from_device(b, w, n), from_device(b, m, n)};
}

/* A vector as tensors of 1, 7, 17, .. values; the third has no values that aren't 0, the fourth no gradient. */
enum { MAX_TENSORS = 64 };

static size_t cut(uint64_t begin[MAX_TENSORS + 1], size_t n) {
    static const size_t lengths[] = {1, 7, 17, 33, 257, 4099};
    size_t tensors = 0, at = 0;
    while (at < n && tensors < MAX_TENSORS) {
        size_t length = tensors == MAX_TENSORS - 1 ? n - at : lengths[tensors % (sizeof lengths / sizeof *lengths)];
        length = length < n - at ? length : n - at;
        begin[tensors++] = at;
        at += length;
    }
    begin[tensors] = n;
    return tensors;
}

static momentum_state lars_steps(kd_backend *b, const float *w0, const float *g, size_t n, float scale, int steps, float rate[MAX_TENSORS]) {
    kd_err err = {0};
    uint64_t begin[MAX_TENSORS + 1];
    size_t tensors = cut(begin, n);
    void *offsets = NULL;
    float *zero = kd_calloc(n, sizeof *zero), *w = to_device(b, w0, n), *m = to_device(b, zero, n), *dg = to_device(b, g, n), *s = to_device(b, &scale, 1), *r = to_device(b, zero, tensors);
    const kd_lars h = {.lr = 5, .momentum = 0.9f, .weight_decay = 0.05f, .trust = 1e-3f, .eps = 1e-8f};
    must(b->v->alloc(b, &offsets, sizeof begin, &err), &err);
    must(b->v->upload(b, offsets, begin, (tensors + 1) * sizeof *begin, &err), &err);
    for (int t = 0; t < steps; t++)
        must(b->v->lars(b, w, dg, m, offsets, r, tensors, &h, s, &err), &err);
    kd_free(zero);
    b->v->release(b, dg);
    b->v->release(b, s);
    b->v->release(b, offsets);
    float *rates = from_device(b, r, tensors);
    memcpy(rate, rates, tensors * sizeof *rate);
    kd_free(rates);
    return (momentum_state){from_device(b, w, n), from_device(b, m, n)};
}

static void free_states(momentum_state *s, size_t n) {
    for (size_t i = 0; i < n; i++) {
        kd_free(s[i].w);
        kd_free(s[i].m);
    }
}

/* The sum of two terms of opposite sign may lose digits, so an absolute part belongs to the bound: the values are around 1. */
static void close_to(const char *what, const float *got, const float *want, size_t n) {
    for (size_t i = 0; i < n; i++)
        if (!(fabs((double)got[i] - (double)want[i]) <= 1e-6 * (fabs((double)want[i]) + 1)))
            fail_msg("%s[%zu] of %zu: %.9g, ref has %.9g", what, i, n, (double)got[i], (double)want[i]);
}

static void check_sgd(kd_backend *b, kd_backend *ref, const float *w, const float *g, size_t n) {
    momentum_state s[] = {sgd_steps(b, w, g, n, 0.7f, 5), sgd_steps(ref, w, g, n, 0.7f, 5), sgd_steps(b, w, g, n, NAN, 1)};
    assert_memory_equal(s[0].m, s[1].m, n * sizeof *w);
    assert_memory_equal(s[0].w, s[1].w, n * sizeof *w);
    assert_memory_equal(s[2].w, w, n * sizeof *w);
    for (size_t i = 0; i < n; i++)
        assert_true(s[2].m[i] == 0);
    free_states(s, 3);
}

static void check_lars(kd_backend *b, kd_backend *ref, const float *w, const float *g, size_t n) {
    float rate[4][MAX_TENSORS] = {{0}}, *x = kd_malloc(n * sizeof *x), *d = kd_malloc(n * sizeof *d);
    uint64_t begin[MAX_TENSORS + 1];
    size_t tensors = cut(begin, n);
    memcpy(x, w, n * sizeof *x);
    memcpy(d, g, n * sizeof *d);
    for (size_t i = tensors > 2 ? begin[2] : n; tensors > 2 && i < begin[3]; i++)
        x[i] = 0;
    for (size_t i = tensors > 3 ? begin[3] : n; tensors > 3 && i < begin[4]; i++)
        d[i] = 0;
    momentum_state s[] = {lars_steps(b, x, d, n, 0.7f, 3, rate[0]), lars_steps(ref, x, d, n, 0.7f, 3, rate[1]), lars_steps(b, x, d, n, NAN, 1, rate[2]),
                          lars_steps(b, x, d, n, 0.7f, 1, rate[3])};
    close_to("lars m", s[0].m, s[1].m, n);
    close_to("lars w", s[0].w, s[1].w, n);
    near("lars rate", rate[0], rate[1], tensors, 1e-5);
    assert_memory_equal(s[2].w, x, n * sizeof *x);
    for (size_t i = 0; i < n; i++)
        assert_true(s[2].m[i] == 0);
    if (tensors > 3) {
        assert_true(rate[3][2] == 1 && rate[3][3] == 0);
        assert_memory_equal(s[3].w + begin[3], x + begin[3], (size_t)(begin[4] - begin[3]) * sizeof *x); /* no gradient: no decay either */
    }
    free_states(s, 4);
    kd_free(x);
    kd_free(d);
}

static void check_ema(kd_backend *b, const float *e0, const float *w0, size_t n) {
    static const float decays[] = {0, 0.5f, 0.999f, 1};
    kd_err err = {0};
    for (size_t k = 0; k < sizeof decays / sizeof *decays; k++) {
        float *e = to_device(b, e0, n), *w = to_device(b, w0, n);
        must(b->v->ema(b, e, w, n, decays[k], &err), &err);
        float *got = from_device(b, e, n);
        for (size_t i = 0; i < n; i++) {
            float want = (float)((double)decays[k] * (double)e0[i] + (1 - (double)decays[k]) * (double)w0[i]);
            if (!(fabs((double)got[i] - (double)want) <= 2e-7 * (fabs((double)e0[i]) + fabs((double)w0[i]))))
                fail_msg("ema %g of [%zu]: %.9g, expected %.9g", (double)decays[k], i, (double)got[i], (double)want);
        }
        assert_true(decays[k] != 0 || memcmp(got, w0, n * sizeof *got) == 0);
        assert_true(decays[k] != 1 || memcmp(got, e0, n * sizeof *got) == 0);
        kd_free(got);
        b->v->release(b, w);
    }
}

/* Vectors that begin anywhere: the parameters that aren't decayed begin behind those that are. apart: how much further each vector begins than the one before. */
static void check_places(kd_backend *b, kd_backend *ref, const float *w0, const float *g0, size_t n) {
    kd_err err = {0};
    const kd_sgd h = {.lr = 0.1f, .momentum = 0.9f, .weight_decay = 0.05f};
    for (size_t skip = 0; skip < 4; skip++)
        for (size_t apart = 0; apart < 2; apart++) {
            float *result[2][2], scale = 0.7f;
            size_t count = n > skip + 2 * apart ? n - skip - 2 * apart : 0;
            for (int k = 0; k < 2; k++) {
                kd_backend *on = k ? ref : b;
                float *w = to_device(on, w0, n), *m = to_device(on, w0, n), *g = to_device(on, g0, n), *s = to_device(on, &scale, 1);
                must(on->v->sgd(on, w + skip, g + skip + apart, m + skip + 2 * apart, count, &h, s, &err), &err);
                on->v->release(on, g);
                on->v->release(on, s);
                result[k][0] = from_device(on, w, n);
                result[k][1] = from_device(on, m, n);
            }
            for (int i = 0; i < 2; i++) {
                assert_memory_equal(result[0][i], result[1][i], n * sizeof *w0);
                kd_free(result[0][i]);
                kd_free(result[1][i]);
            }
        }
}

static void check_clip(kd_backend *b, kd_backend *ref) {
    static const float sums[] = {0, 1e-12f, 0.25f, 1, 4, 1e10f, 3e38f}, limits[] = {0, -1, 0.5f, 1, 2, 1e6f};
    for (size_t i = 0; i < sizeof sums / sizeof *sums; i++)
        for (size_t k = 0; k < sizeof limits / sizeof *limits; k++) {
            float got = clip_scale_of(b, sums[i], limits[k]), want = clip_scale_of(ref, sums[i], limits[k]);
            near("clip_scale", &got, &want, 1, 2e-7);
        }
    assert_true(isnan(clip_scale_of(b, INFINITY, 1)));
    assert_true(isnan(clip_scale_of(b, NAN, 1)));
    assert_true(isnan(clip_scale_of(b, NAN, 0)));
}

void ops_check_flat(kd_backend *b, kd_backend *ref) {
    static const size_t sizes[] = {1, 7, 17, 33, 1000, 100003};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        size_t n = sizes[i];
        float *x = kd_calloc(n, sizeof *x), *g = kd_calloc(n, sizeof *g);
        assert_true(x && g);
        ops_fill_normal(x, n, 7, i);
        ops_fill_normal(g, n, 8, i);
        float got = sum_squares_of(b, x, n), want = sum_squares_of(ref, x, n), again = sum_squares_of(b, x, n);
        near("sum_squares", &got, &want, 1, 1e-6);
        assert_memory_equal(&got, &again, sizeof got);
        check_adamw(b, ref, x, g, n);
        check_sgd(b, ref, x, g, n);
        if (n <= 1000)
            check_places(b, ref, x, g, n);
        check_lars(b, ref, x, g, n);
        check_ema(b, x, g, n);
        kd_free(x);
        kd_free(g);
    }
    check_clip(b, ref);
}

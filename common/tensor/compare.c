#include "common/tensor/compare.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

static int is_float(kd_dtype t)
{
    return t == KD_F32 || t == KD_F16 || t == KD_BF16 || t == KD_F64;
}

static double element(const kd_tensor *t, size_t i)
{
    if (t->dtype == KD_F64)
        return ((const double *)t->data)[i];
    float x;
    kd_convert_to_f32(&x, (const char *)t->data + i * kd_dtype_size(t->dtype), t->dtype, 1);
    return x;
}

static int64_t integer(const kd_tensor *t, size_t i)
{
    switch (t->dtype) {
    case KD_U8: case KD_BOOL: return ((const uint8_t *)t->data)[i];
    case KD_I8: return ((const int8_t *)t->data)[i];
    case KD_I16: return ((const int16_t *)t->data)[i];
    case KD_I32: return ((const int32_t *)t->data)[i];
    default: return ((const int64_t *)t->data)[i];
    }
}

static const char *name_of(const kd_tensor *t)
{
    return t->name ? t->name : "(unnamed)";
}

/* The reasons why there is nothing to compare element by element. */
static int refused(kd_comparison *c, const kd_tensor *got, const kd_tensor *want)
{
    char a[200], b[200];
    if (!kd_shape_equal(got->shape, got->rank, want->shape, want->rank)) {
        snprintf(c->text, sizeof c->text, "%.100s: shape %s, expected %s", name_of(got), kd_shape_text(got->shape, got->rank, a, sizeof a / 2),
                 kd_shape_text(want->shape, want->rank, b, sizeof b / 2));
        return 1;
    }
    if (is_float(got->dtype) != is_float(want->dtype)) {
        snprintf(c->text, sizeof c->text, "%.100s: dtype %s cannot be compared with %s", name_of(got), kd_dtype_name(got->dtype),
                 kd_dtype_name(want->dtype));
        return 1;
    }
    if (kd_tensor_numel(got) == 0 || !got->data || !want->data) {
        snprintf(c->text, sizeof c->text, "%.100s: empty, which proves nothing", name_of(got));
        return 1;
    }
    return 0;
}

static void compare_integers(kd_comparison *c, const kd_tensor *got, const kd_tensor *want, size_t n)
{
    double dd = 0, ww = 0, gg = 0, gw = 0;
    for (size_t i = 0; i < n; i++) {
        int64_t g = integer(got, i), w = integer(want, i);
        double x = (double)g, y = (double)w, d = fabs(x - y);
        if (g != w) {
            c->outside++;
            if (d == 0) /* above 2^53 neighbours are the same double */
                d = 1;
        }
        if (d > c->max_abs) {
            c->max_abs = d;
            c->worst = i;
        }
        dd += d * d;
        gg += x * x;
        ww += y * y;
        gw += x * y;
    }
    c->rel_l2 = dd == 0 ? 0 : sqrt(dd / ww);
    c->cosine = gg > 0 && ww > 0 ? gw / sqrt(gg * ww) : gg == ww;
}

static void compare_floats(kd_comparison *c, const kd_tensor *got, const kd_tensor *want, kd_tolerance tol, size_t n)
{
    double dd = 0, ww = 0, gg = 0, gw = 0;
    int have_worst = 0;
    for (size_t i = 0; i < n; i++) {
        double x = element(got, i), y = element(want, i), d;
        int bad = !isfinite(x) + !isfinite(y);
        c->nonfinite += (size_t)bad;
        if (bad) {
            if (!have_worst) /* the first one is shown */
                c->worst = i;
            have_worst = 1;
            continue;
        }
        d = fabs(x - y);
        if (!(d <= tol.abs + tol.rel * fabs(y)))
            c->outside++;
        if (d > c->max_abs) {
            c->max_abs = d;
            if (!have_worst)
                c->worst = i;
        }
        dd += d * d;
        gg += x * x;
        ww += y * y;
        gw += x * y;
    }
    c->rel_l2 = dd == 0 ? 0 : sqrt(dd / ww); /* infinite against zeros */
    c->cosine = gg > 0 && ww > 0 ? gw / sqrt(gg * ww) : gg == ww;
}

kd_comparison kd_compare(const kd_tensor *got, const kd_tensor *want, kd_tolerance tol)
{
    kd_comparison c;
    size_t n, rest;
    int length;
    memset(&c, 0, sizeof c);
    if (refused(&c, got, want))
        return c;
    n = kd_tensor_numel(got);
    if (is_float(got->dtype))
        compare_floats(&c, got, want, tol, n);
    else
        compare_integers(&c, got, want, n);
    c.got = element(got, c.worst);
    c.want = element(want, c.worst);
    /* "not above" would let a NaN pass; every comparison that a NaN could enter is written as "is within". */
    c.equal = c.nonfinite == 0 && c.outside == 0 && (tol.min_cosine == 0 || c.cosine >= tol.min_cosine);
    length = snprintf(c.text, sizeof c.text, "%.100s: %s: ", name_of(got), c.equal ? "equal" : "DIFFERENT");
    rest = sizeof c.text - (size_t)length;
    if (c.nonfinite)
        snprintf(c.text + length, rest, "%zu of %zu values are not finite, first at %zu: got %.9g, want %.9g", c.nonfinite, 2 * n, c.worst,
                 c.got, c.want);
    else
        snprintf(c.text + length, rest, "%zu of %zu outside (abs %g, rel %g), max |a-b| %.3g at %zu (got %.9g, want %.9g), rel L2 %.3g, cosine %.9f%s",
                 c.outside, n, tol.abs, tol.rel, c.max_abs, c.worst, c.got, c.want, c.rel_l2, c.cosine,
                 c.cosine >= tol.min_cosine ? "" : " (too low)");
    return c;
}

#include "common/tensor/target.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/options.h"

static const char *const kind_name[] = {"full", "pool", "adjoint"};

/* A side of 1 to KD_TARGET_MAX_SIDE; moves *text behind it. 0: there is none. */
static int side(const char **text)
{
    char *end;
    long v;
    if (**text < '0' || **text > '9')
        return 0;
    v = strtol(*text, &end, 10);
    if (v < 1 || v > KD_TARGET_MAX_SIDE)
        return 0;
    *text = end;
    return (int)v;
}

kd_status kd_target_parse(kd_target *t, const char *text, const char *what, kd_err *err)
{
    const char *colon = strchr(text, ':'), *rest;
    size_t n = colon ? (size_t)(colon - text) : strlen(text);
    char name[16];
    const char *near;
    *t = (kd_target){0};
    for (int k = 0; k < 3; k++) {
        if (strlen(kind_name[k]) != n || strncmp(kind_name[k], text, n) != 0)
            continue;
        t->kind = (kd_target_kind)k;
        if (k == KD_TARGET_FULL && !colon)
            return KD_OK;
        rest = colon ? colon + 1 : "";
        t->h = side(&rest);
        t->w = t->h && *rest == 'x' ? (rest++, side(&rest)) : t->h;
        if (k != KD_TARGET_FULL && t->h && t->w && *rest == 0)
            return KD_OK;
        return kd_fail(err, KD_EUSAGE, "%s %s: expected full, or pool:K or adjoint:K with K or rows x columns from 1 to %d, such as adjoint:7 or pool:4x6", what, text, KD_TARGET_MAX_SIDE);
    }
    snprintf(name, sizeof name, "%.*s", (int)(n < 15 ? n : 15), text);
    near = kd_nearest_name(name, kind_name, 3);
    return kd_fail(err, KD_EUSAGE, "%s %s: expected full, pool:K or adjoint:K%s%s", what, text, near ? "; did you mean " : "", near ? near : "");
}

const char *kd_target_text(const kd_target *t, char buf[KD_TARGET_TEXT])
{
    if (t->kind == KD_TARGET_FULL)
        snprintf(buf, KD_TARGET_TEXT, "full");
    else if (t->h == t->w)
        snprintf(buf, KD_TARGET_TEXT, "%s:%d", kind_name[t->kind], t->h);
    else
        snprintf(buf, KD_TARGET_TEXT, "%s:%dx%d", kind_name[t->kind], t->h, t->w);
    return buf;
}

int kd_target_equal(const kd_target *a, const kd_target *b)
{
    return a->kind == b->kind && (a->kind == KD_TARGET_FULL || (a->h == b->h && a->w == b->w));
}

uint32_t kd_target_rows(const kd_target *t, int grid_h, int grid_w)
{
    return t->kind == KD_TARGET_FULL ? (uint32_t)grid_h * (uint32_t)grid_w : (uint32_t)t->h * (uint32_t)t->w;
}

void kd_bilinear_tap(int64_t from, int64_t to, int64_t i, int64_t *i0, int64_t *i1, double *w1)
{
    double at = ((double)i + 0.5) * (double)from / (double)to - 0.5;
    if (at < 0)
        at = 0;
    *i0 = (int64_t)at < from - 1 ? (int64_t)at : from - 1;
    *i1 = *i0 + 1 < from ? *i0 + 1 : *i0;
    *w1 = at - (double)*i0;
}

size_t kd_stored_bytes(kd_dtype dtype, size_t rows, size_t width)
{
    return dtype == KD_I8 ? rows * (4 + width) : rows * width * (dtype == KD_F32 ? 4 : 2);
}

int kd_hadamard_block(int width)
{
    return width & -width;
}

float kd_hadamard_norm(int block)
{
    return (float)(1.0 / sqrt((double)block));
}

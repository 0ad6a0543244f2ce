/* ops_encode, and ops_check_encode: the encoding of a backend against ref's. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "common/base/mem.h"
#include "tests/ops/harness.h"

enum { GUARD = 256, GUARD_BYTE = 0xA5, DIRTY_BYTE = 0xFF };

static void must(kd_status status, const kd_err *err) {
    if (status != KD_OK)
        fail_msg("%s", err->msg);
}

/* Device memory of `bytes` dirty bytes between guards; the address behind the first guard. */
static void *guarded(kd_backend *b, size_t bytes) {
    kd_err err = {0};
    uint8_t *host = kd_malloc(bytes + 2 * GUARD);
    void *p = NULL;
    assert_non_null(host);
    memset(host, GUARD_BYTE, bytes + 2 * GUARD);
    memset(host + GUARD, DIRTY_BYTE, bytes);
    must(b->v->alloc(b, &p, bytes + 2 * GUARD, &err), &err);
    must(b->v->upload(b, p, host, bytes + 2 * GUARD, &err), &err);
    kd_free(host);
    return (char *)p + GUARD;
}

/* The bytes, after a look at the guards; releases the device memory. */
static void *take_back(kd_backend *b, const char *name, void *at, size_t bytes) {
    kd_err err = {0};
    uint8_t *host = kd_malloc(bytes + 2 * GUARD);
    assert_non_null(host);
    must(b->v->download(b, host, (char *)at - GUARD, bytes + 2 * GUARD, &err), &err);
    for (size_t i = 0; i < GUARD; i++)
        if (host[i] != GUARD_BYTE || host[GUARD + bytes + i] != GUARD_BYTE)
            fail_msg("encode wrote outside of %s (%zu bytes)", name, bytes);
    b->v->release(b, (char *)at - GUARD);
    memmove(host, host + GUARD, bytes);
    return host;
}

ops_encoded ops_encode(kd_backend *b, const kd_encode_spec *s, const float *x, size_t records) {
    kd_err err = {0};
    size_t values = records * (size_t)s->grid_h * (size_t)s->grid_w * (size_t)s->width, bytes = records * kd_encode_bytes(s), scratch_bytes = kd_encode_scratch_bytes(s, records);
    void *in = guarded(b, values * sizeof *x), *out = guarded(b, bytes), *stats = guarded(b, records * sizeof(kd_encode_stats)), *scratch = guarded(b, scratch_bytes);
    must(b->v->upload(b, in, x, values * sizeof *x, &err), &err);
    kd_mem_fail_after(1);
    must(b->v->encode(b, out, stats, in, records, s, scratch, &err), &err);
    kd_mem_fail_after(0);
    must(b->v->sync(b, &err), &err);
    ops_encoded e = {take_back(b, "the payload", out, bytes), take_back(b, "the statistics", stats, records * sizeof(kd_encode_stats))};
    void *still = take_back(b, "the tokens", in, values * sizeof *x);
    assert_memory_equal(still, x, values * sizeof *x);
    kd_free(still);
    kd_free(take_back(b, "the scratch region", scratch, scratch_bytes));
    return e;
}

void ops_encoded_free(ops_encoded *e) {
    kd_free(e->payload);
    kd_free(e->stats);
}

static void describe(const kd_encode_spec *s, char *text, size_t cap) {
    char target[KD_TARGET_TEXT];
    snprintf(text, cap, "%s of %dx%dx%d as %s", kd_target_text(&s->target, target), s->grid_h, s->grid_w, s->width, kd_dtype_name(s->dtype));
}

static void near_stats(const char *what, const kd_encode_stats *got, const kd_encode_stats *want) {
    const double g[] = {got->xx, got->qq, got->xq, got->err2, got->worst, got->square}, w[] = {want->xx, want->qq, want->xq, want->err2, want->worst, want->square};
    for (int k = 0; k < 6 && want->bad == 0; k++)
        if (!(fabs(g[k] - w[k]) <= 1e-12 * fabs(w[k])))
            fail_msg("%s: statistic %d is %.17g, ref has %.17g", what, k, g[k], w[k]);
    if (got->bad != want->bad)
        fail_msg("%s: %g bad values, ref has %g", what, got->bad, want->bad);
}

/* Payloads are equal bit for bit, and statistics too between thread counts. */
static void check_spec(kd_backend *b, kd_backend *single, kd_backend *ref, const kd_encode_spec *s, const float *x, size_t records) {
    char what[120];
    describe(s, what, sizeof what);
    ops_encoded got = ops_encode(b, s, x, records), alone = ops_encode(single, s, x, records), want = ops_encode(ref, s, x, records);
    for (size_t i = 0; i < records * kd_encode_bytes(s); i++) {
        if (got.payload[i] != want.payload[i])
            fail_msg("%s: byte %zu of the payload is %02x, ref has %02x", what, i, got.payload[i], want.payload[i]);
        if (got.payload[i] != alone.payload[i])
            fail_msg("%s: byte %zu of the payload is %02x with %d threads, %02x with one", what, i, got.payload[i], b->threads, alone.payload[i]);
    }
    assert_memory_equal(got.stats, alone.stats, records * sizeof *got.stats);
    for (size_t r = 0; r < records; r++)
        near_stats(what, &got.stats[r], &want.stats[r]);
    ops_encoded_free(&got);
    ops_encoded_free(&alone);
    ops_encoded_free(&want);
}

/* A token of zeros, one of tiny values, one of large ones, one around f16's smallest values, and values on the limits of the types. */
static void make_special(float *x, int grid, int width) {
    size_t w = (size_t)width;
    for (size_t i = 0; i < w && grid > 3; i++) {
        x[w + i] = 0;
        x[2 * w + i] *= 1e-42f;
        x[3 * w + i] *= 1e28f;
    }
    for (size_t i = 0; i < w && grid > 4; i++)
        x[4 * w + i] *= i % 3 ? 2e-5f : 1e-7f;
    x[0] = 65519; /* rounds to 65504 in f16, but isn't held */
    x[w - 1] = -3e-6f; /* subnormal in f16 */
}

static void check_grid(kd_backend *b, kd_backend *single, kd_backend *ref, int h, int w, int width) {
    static const kd_target targets[] = {{KD_TARGET_POOL, 7, 7}, {KD_TARGET_ADJOINT, 7, 7}, {KD_TARGET_FULL, 0, 0}, {KD_TARGET_ADJOINT, 5, 2}, {KD_TARGET_POOL, 2, 3}}; /* wide tokens: the last three */
    static const kd_dtype types[] = {KD_F32, KD_F16, KD_BF16, KD_I8};
    enum { RECORDS = 5, WIDE = 1024 };
    size_t grid = (size_t)h * (size_t)w * (size_t)width;
    float *x = kd_calloc(RECORDS * grid, sizeof *x);
    assert_non_null(x);
    ops_fill_normal(x, RECORDS * grid, 9, (uint64_t)(width * 100 + h));
    make_special(x + grid, h * w, width);
    for (size_t t = width > WIDE ? 2 : 0; t < sizeof targets / sizeof *targets; t++)
        for (size_t k = 0; k < sizeof types / sizeof *types; k++)
            check_spec(b, single, ref, &(kd_encode_spec){.target = targets[t], .grid_h = h, .grid_w = w, .width = width, .dtype = types[k]}, x, RECORDS);
    x[3 * grid] = NAN;
    x[4 * grid - 1] = -INFINITY;
    for (size_t k = 0; k < sizeof types / sizeof *types; k++) { /* what the bytes are then isn't promised */
        kd_encode_spec s = {.grid_h = h, .grid_w = w, .width = width, .dtype = types[k]};
        ops_encoded got = ops_encode(b, &s, x, RECORDS), want = ops_encode(ref, &s, x, RECORDS);
        for (int r = 0; r < RECORDS; r++)
            assert_true(got.stats[r].bad == want.stats[r].bad && (got.stats[r].bad > 0) == (r == 3 || (r == 1 && got.stats[1].bad > 0)));
        ops_encoded_free(&got);
        ops_encoded_free(&want);
    }
    kd_free(x);
}

void ops_check_encode(kd_backend *b, kd_backend *ref) {
    static const int sizes[][3] = {{1, 1, 1}, {1, 1, 384}, {4, 1, 7}, {3, 5, 6}, {9, 7, 12}, {11, 13, 24}, {16, 16, 48}, {7, 4, 192}, {5, 3, 200}, {16, 16, 384}, {2, 3, 768}, {2, 2, 1024}, {1, 2, 1280},
                                   {4, 4, 1536}, {2, 1, 2048}, {2, 2, 4097}, {2, 1, 4096}, {1, 2, 24576}};
    kd_err err = {0};
    kd_backend *single = NULL;
    must(kd_backend_open(&single, b->v->name, 1, &err), &err);
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
        check_grid(b, single, ref, sizes[i][0], sizes[i][1], sizes[i][2]);
    kd_backend_close(single);
}

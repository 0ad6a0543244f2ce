/* Speed of target encoding on one device: patch tokens of a ViT-S view (16 x 16 x 384) in every element type and target.
 *
 *     bench_encode [DEVICE [THREADS [RECORDS]]]
 *
 * One line per case: f32 values of the full grid that are encoded per second of processor time (best of several rounds; of all threads together, so that a busy machine doesn't count). */
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "common/base/mem.h"
#include "common/base/rng.h"
#include "kernels/backend.h"

enum { GRID = 16, WIDTH = 384, ROUNDS = 30 };

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static kd_status upload_tokens(kd_backend *b, void **x, size_t n, kd_err *err) {
    float *host = NULL;
    kd_rng r = kd_rng_make(1, 1, 0, KD_RNG_TEST);
    KD_TRY(kd_alloc_array(&host, n, sizeof *host, err));
    for (size_t i = 0; i < n; i++)
        host[i] = i < GRID * GRID * WIDTH ? (float)kd_rng_normal(&r) : host[i % (GRID * GRID * WIDTH)];
    kd_status status = b->v->alloc(b, x, n * sizeof *host, err);
    if (status == KD_OK)
        status = b->v->upload(b, *x, host, n * sizeof *host, err);
    kd_free(host);
    return status;
}

static kd_status time_spec(kd_backend *b, const kd_encode_spec *s, const float *x, size_t records, kd_err *err) {
    void *out = NULL, *stats = NULL, *scratch = NULL;
    char target[KD_TARGET_TEXT];
    double best = 1e9;
    KD_TRY(b->v->alloc(b, &out, records * kd_encode_bytes(s), err));
    KD_TRY(b->v->alloc(b, &stats, records * sizeof(kd_encode_stats), err));
    KD_TRY(b->v->alloc(b, &scratch, kd_encode_scratch_bytes(s, records), err));
    for (int i = 0; i < ROUNDS; i++) {
        double begin = now();
        KD_TRY(b->v->encode(b, out, stats, x, records, s, scratch, err));
        KD_TRY(b->v->sync(b, err));
        best = now() - begin < best ? now() - begin : best;
    }
    printf("%-5s %-12s %8.0f million values/s\n", kd_dtype_name(s->dtype), kd_target_text(&s->target, target), (double)(records * GRID * GRID * WIDTH) / best * 1e-6);
    b->v->release(b, out);
    b->v->release(b, stats);
    b->v->release(b, scratch);
    return KD_OK;
}

static kd_status run(kd_backend *b, size_t records, kd_err *err) {
    static const kd_target targets[] = {{KD_TARGET_FULL, 0, 0}, {KD_TARGET_POOL, 7, 7}, {KD_TARGET_ADJOINT, 7, 7}, {KD_TARGET_ADJOINT, 14, 14}};
    static const kd_dtype types[] = {KD_F16, KD_BF16, KD_I8};
    void *x = NULL;
    KD_TRY(upload_tokens(b, &x, records * GRID * GRID * WIDTH, err));
    for (size_t t = 0; t < sizeof targets / sizeof *targets; t++)
        for (size_t k = 0; k < sizeof types / sizeof *types; k++)
            KD_TRY(time_spec(b, &(kd_encode_spec){.target = targets[t], .grid_h = GRID, .grid_w = GRID, .width = WIDTH, .dtype = types[k]}, x, records, err));
    b->v->release(b, x);
    return KD_OK;
}

int main(int argc, char **argv) {
    kd_err err = {0};
    kd_backend *b = NULL;
    kd_status status = kd_backend_open(&b, argc > 1 ? argv[1] : "cpu", argc > 2 ? atoi(argv[2]) : 1, &err);
    if (status == KD_OK)
        status = run(b, argc > 3 ? (size_t)atoi(argv[3]) : 16, &err);
    if (status != KD_OK)
        fprintf(stderr, "bench_encode: %s\n", err.msg);
    kd_backend_close(b);
    return status == KD_OK ? 0 : 1;
}

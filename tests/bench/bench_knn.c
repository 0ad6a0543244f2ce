/* Speed of the search for neighbours, beside peer_faiss.py on the same features.
 *
 *     bench_knn search FOLDER WIDTH K [DEVICE [THREADS]]         FOLDER/rows.f32 and queries.f32 of peer_faiss.py; writes FOLDER/found.ours (u32 [queries][K])
 *     bench_knn plan ROWS QUERIES WIDTH K [DEVICE [THREADS]]     only says what a search takes
 *     bench_knn drawn ROWS QUERIES WIDTH K [DEVICE [THREADS]]    plan, and a search among drawn features: peak memory against the plan
 *     bench_knn peak                                             multiply-adds in registers alone: GFLOP/s of one processor
 *
 * One JSON line: seconds of wall-clock and of user time from raw features to neighbours; the process's memory before the search and at its peak. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>

#include "common/base/io.h"
#include "common/base/mem.h"
#include "common/base/rng.h"
#include "train/eval/neighbours.h"

typedef struct clocks {
    double wall, user;
    size_t rss; /* highest so far, bytes */
} clocks;

static clocks look(void) {
    struct timespec t;
    struct rusage r;
    clock_gettime(CLOCK_MONOTONIC, &t);
    getrusage(RUSAGE_SELF, &r);
    return (clocks){(double)t.tv_sec + 1e-9 * (double)t.tv_nsec, (double)r.ru_utime.tv_sec + 1e-6 * (double)r.ru_utime.tv_usec, (size_t)r.ru_maxrss * 1024};
}

static kd_status measure(kd_neighbour *found, kd_backend *b, const kd_neighbours_task *t, kd_err *err) {
    clocks before = look();
    KD_TRY(kd_neighbours_find(found, b, t, err));
    clocks after = look();
    printf("{\"wall_s\": %.3f, \"user_s\": %.3f, \"before_bytes\": %zu, \"peak_bytes\": %zu}\n", after.wall - before.wall, after.user - before.user, before.rss, after.rss);
    return KD_OK;
}

static kd_status read_rows(float **out, size_t *count, const char *folder, const char *file, size_t width, kd_err *err) {
    char path[4096];
    uint8_t *bytes = NULL;
    size_t cap = 0, size;
    snprintf(path, sizeof path, "%s/%s", folder, file);
    KD_TRY(kd_io_read_into(path, SIZE_MAX, &bytes, &cap, &size, err));
    *out = (float *)(void *)bytes;
    *count = size / (width * sizeof(float));
    return KD_OK;
}

static kd_status write_found(const kd_neighbour *found, size_t n, const char *folder, kd_err *err) {
    char path[4096];
    snprintf(path, sizeof path, "%s/found.ours", folder);
    FILE *f = fopen(path, "wb");
    for (size_t i = 0; f != NULL && i < n; i++)
        fwrite(&found[i].index, sizeof found[i].index, 1, f);
    return f != NULL && fclose(f) == 0 ? KD_OK : kd_fail(err, KD_EFAIL, "%s: can't be written", path);
}

static kd_status search(kd_backend *b, const char *folder, kd_neighbours_task t, kd_err *err) {
    float *rows = NULL, *queries = NULL;
    kd_neighbour *found = NULL;
    kd_status status = read_rows(&rows, &t.row_count, folder, "rows.f32", t.width, err);
    if (status == KD_OK)
        status = read_rows(&queries, &t.query_count, folder, "queries.f32", t.width, err);
    if (status == KD_OK)
        status = kd_alloc_array(&found, t.query_count * (size_t)t.k, sizeof *found, err);
    t.rows = rows;
    t.queries = queries;
    if (status == KD_OK)
        status = measure(found, b, &t, err);
    if (status == KD_OK)
        status = write_found(found, t.query_count * (size_t)t.k, folder, err);
    kd_free(rows);
    kd_free(queries);
    kd_free(found);
    return status;
}

static kd_status plan(kd_backend *b, const kd_neighbours_task *t, kd_err *err) {
    kd_neighbours_plan p;
    char text[KD_NEIGHBOURS_TEXT];
    KD_TRY(kd_neighbours_plan_make(&p, b, t, err));
    kd_neighbours_plan_text(&p, text, sizeof text);
    printf("%s\n{\"products\": %zu, \"flops\": %.4g, \"features_bytes\": %zu, \"host_bytes\": %zu, \"device_bytes\": %zu}\n", text, p.products, p.flops, p.features, p.host, p.device);
    return KD_OK;
}

static kd_status draw(float **out, size_t count, size_t width, uint32_t set, kd_err *err) {
    KD_TRY(kd_alloc_array(out, count, width * sizeof(float), err));
    for (size_t i = 0; i < count; i++) {
        kd_rng r = kd_rng_make(1, i, set, KD_RNG_TEST);
        for (size_t c = 0; c < width; c++)
            (*out)[i * width + c] = (float)kd_rng_normal(&r);
    }
    return KD_OK;
}

static kd_status drawn(kd_backend *b, kd_neighbours_task t, kd_err *err) {
    float *rows = NULL, *queries = NULL;
    kd_neighbour *found = NULL;
    kd_status status = plan(b, &t, err);
    if (status == KD_OK)
        status = draw(&rows, t.row_count, t.width, 1, err);
    if (status == KD_OK)
        status = draw(&queries, t.query_count, t.width, 2, err);
    t.rows = rows;
    t.queries = queries;
    size_t n = t.query_count * (size_t)t.k;
    found = status == KD_OK ? malloc(n * sizeof *found) : NULL; /* not touched, so that it counts with the search, as in the plan */
    if (status == KD_OK)
        status = found != NULL ? measure(found, b, &t, err) : kd_fail(err, KD_EFAIL, "out of memory for %zu neighbours", n);
    free(found);
    kd_free(rows);
    kd_free(queries);
    return status;
}

/* Twelve independent sums of eight lanes hide the latency of a fused multiply-add on every AVX2 processor so far. */
#if defined(__x86_64__)
__attribute__((target("avx2,fma")))
static void peak(void) {
    enum { SUMS = 12, ROUNDS = 50000000 };
    clocks before = look();
    for (int i = 0; i < ROUNDS; i++)
        __asm__ volatile("vfmadd231ps %%ymm0, %%ymm0, %%ymm4\n vfmadd231ps %%ymm0, %%ymm0, %%ymm5\n vfmadd231ps %%ymm0, %%ymm0, %%ymm6\n vfmadd231ps %%ymm0, %%ymm0, %%ymm7\n"
                         "vfmadd231ps %%ymm0, %%ymm0, %%ymm8\n vfmadd231ps %%ymm0, %%ymm0, %%ymm9\n vfmadd231ps %%ymm0, %%ymm0, %%ymm10\n vfmadd231ps %%ymm0, %%ymm0, %%ymm11\n"
                         "vfmadd231ps %%ymm0, %%ymm0, %%ymm12\n vfmadd231ps %%ymm0, %%ymm0, %%ymm13\n vfmadd231ps %%ymm0, %%ymm0, %%ymm14\n vfmadd231ps %%ymm0, %%ymm0, %%ymm15"
                         ::: "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11", "xmm12", "xmm13", "xmm14", "xmm15");
    printf("{\"gflops\": %.1f}\n", 2e-9 * 8 * SUMS * ROUNDS / (look().user - before.user));
}
#endif

static int usage(void) {
    fprintf(stderr, "usage: bench_knn search FOLDER WIDTH K | plan|drawn ROWS QUERIES WIDTH K [DEVICE [THREADS]] | peak\n");
    return 2;
}

static const char *argument(int argc, char **argv, int i, const char *otherwise) {
    return i < argc ? argv[i] : otherwise;
}

static kd_status command(int argc, char **argv, kd_backend *b, kd_err *err) {
    if (strcmp(argv[1], "search") == 0)
        return search(b, argv[2], (kd_neighbours_task){.width = (size_t)atoll(argv[3]), .k = atoi(argv[4])}, err);
    kd_neighbours_task t = {.row_count = (size_t)atoll(argv[2]), .query_count = (size_t)atoll(argv[3]), .width = (size_t)atoll(argv[4]), .k = atoi(argument(argc, argv, 5, "20"))};
    return strcmp(argv[1], "plan") == 0 ? plan(b, &t, err) : drawn(b, t, err);
}

int main(int argc, char **argv) {
    kd_err err = {0};
    kd_backend *b;
    if (argc == 2 && strcmp(argv[1], "peak") == 0) {
        peak();
        return 0;
    }
    int device = argc > 1 && strcmp(argv[1], "search") == 0 ? 5 : 6;
    if (argc < device)
        return usage();
    kd_status status = kd_backend_open(&b, argument(argc, argv, device, "cpu"), atoi(argument(argc, argv, device + 1, "1")), &err);
    if (status == KD_OK) {
        status = command(argc, argv, b, &err);
        kd_backend_close(b);
    }
    if (status != KD_OK)
        fprintf(stderr, "bench_knn: %s\n", err.msg);
    return status != KD_OK;
}

/* Speed of the image pipeline: file -> id -> decode -> view -> hash, one view per decode, as precompute and replay do it.
 *
 *     bench_loader DIR PRESET SIZE THREADS [PASSES]          PRESET "floor": only the partial decode that crop-flip needs
 *
 * DIR is a flat folder of pictures; every pass draws other views and takes the files four times, so that a large picture at its end, which one
 * thread finishes alone, weighs little. One JSON line: images per second of wall-clock time (best pass), and processor
 * time per image of each stage in microseconds (all passes, all threads). The floor is what the linked libjpeg needs and no augmentation code can beat. */
#include <dirent.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "common/base/io.h"
#include "common/base/mem.h"
#include "common/data/dataset.h"
#include "common/image/augment.h"

enum { ROUNDS = 4, MOST_FILES = 20000, MOST_THREADS = 256, PATH_CAP = 4096 };
typedef enum stage { READ, ID, DECODE, RESAMPLE, COLOUR, HASH, STAGES } stage;
static const char *const stage_name[STAGES] = {"read", "id", "decode", "resample", "colour", "hash"};

static char *files[MOST_FILES];
static size_t file_count;
static kd_policy policy;
static int only_decode, measure_stages;
static uint64_t seed;
static atomic_size_t next_file;

typedef struct worker {
    uint8_t *bytes, *out;
    size_t cap;
    kd_image image;
    kd_view_scratch scratch;
    double seconds[STAGES];
    uint8_t mixed; /* of the hashes, so that they are computed */
    kd_err err;
    kd_status status;
} worker;

static double clock_of(clockid_t c) {
    struct timespec t;
    clock_gettime(c, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* Adds the time since *since to a stage. */
static void lap(worker *w, stage s, double *since) {
    if (!measure_stages)
        return;
    double now = clock_of(CLOCK_THREAD_CPUTIME_ID);
    w->seconds[s] += now - *since;
    *since = now;
}

/* A plan's crop and resize alone: what is left of the time of the whole plan is flips and colour. */
static kd_plan only_resample(kd_plan p) {
    p.hflip = p.vflip = p.gray = p.blur_radius = 0;
    p.solarize = 256;
    p.mix_lambda = 1.0f;
    memset(p.jitter_order, KD_JITTER_NONE, sizeof p.jitter_order);
    return p;
}

typedef struct drawing {
    kd_hash128 id;
    kd_plan plan;
} drawing;

static kd_box draw(void *ctx, int width, int height) {
    drawing *d = ctx;
    d->plan = kd_plan_draw(&policy, seed, &d->id, 0, width, height);
    return kd_plans_box(&(kd_plans){&d->plan, 1}, width, height);
}

static kd_status one(worker *w, const char *path, kd_err *err) {
    double t = clock_of(CLOCK_THREAD_CPUTIME_ID);
    size_t size;
    KD_TRY(kd_io_read_into(path, KD_MAX_IMAGE_FILE, &w->bytes, &w->cap, &size, err));
    lap(w, READ, &t);
    drawing d = {.id = kd_image_id(w->bytes, size)};
    lap(w, ID, &t);
    KD_TRY(kd_image_decode_box(&w->image, w->bytes, size, path, NULL, draw, &d, err));
    lap(w, DECODE, &t);
    if (only_decode)
        return KD_OK;
    if (measure_stages) {
        kd_plan bare = only_resample(d.plan);
        KD_TRY(kd_plan_apply(&bare, &w->image, w->out, &w->scratch, err));
        double before = w->seconds[RESAMPLE];
        lap(w, RESAMPLE, &t);
        w->seconds[COLOUR] -= w->seconds[RESAMPLE] - before;
    }
    KD_TRY(kd_plan_apply(&d.plan, &w->image, w->out, &w->scratch, err));
    lap(w, COLOUR, &t);
    kd_hash128 h = kd_view_hash(w->out, d.plan.out_w, d.plan.out_h);
    w->mixed ^= h.b[0];
    lap(w, HASH, &t);
    return KD_OK;
}

static void *work(void *arg) {
    worker *w = arg;
    for (size_t i; w->status == KD_OK && (i = atomic_fetch_add(&next_file, 1)) < ROUNDS * file_count;)
        w->status = one(w, files[i % file_count], &w->err);
    return NULL;
}

/* Wall-clock seconds of one pass; negative after a failure. */
static double pass(worker *w, int threads) {
    pthread_t id[MOST_THREADS];
    atomic_store(&next_file, 0);
    seed++;
    double begin = clock_of(CLOCK_MONOTONIC);
    for (int i = 1; i < threads; i++)
        if (pthread_create(&id[i], NULL, work, &w[i]) != 0)
            return -1.0;
    work(&w[0]);
    for (int i = 1; i < threads; i++)
        pthread_join(id[i], NULL);
    double seconds = clock_of(CLOCK_MONOTONIC) - begin;
    for (int i = 0; i < threads; i++)
        if (w[i].status != KD_OK) {
            fprintf(stderr, "bench_loader: %s\n", w[i].err.msg);
            return -1.0;
        }
    return seconds;
}

static int by_name(const void *a, const void *b) { return strcmp(*(char *const *)a, *(char *const *)b); }

static int list_files(const char *dir) {
    DIR *d = opendir(dir);
    if (d == NULL)
        return 0;
    for (struct dirent *e; (e = readdir(d)) != NULL && file_count < MOST_FILES;)
        if (e->d_name[0] != '.' && (files[file_count] = kd_asprintf("%s/%s", dir, e->d_name)) != NULL)
            file_count++;
    closedir(d);
    qsort(files, file_count, sizeof *files, by_name);
    return file_count > 0;
}

static int run(worker *w, int threads, int passes) {
    double best = pass(w, threads); /* warms caches and buffers */
    for (int i = 0; i < passes && best >= 0.0; i++) {
        double s = pass(w, threads);
        best = i == 0 || s < best ? s : best;
    }
    measure_stages = 1;
    if (best < 0.0 || pass(w, threads) < 0.0)
        return 1;
    printf("{\"images_per_s\": %.1f, \"us\": {", (double)(ROUNDS * file_count) / best);
    for (int s = 0; s < STAGES; s++) {
        double sum = 0.0;
        for (int i = 0; i < threads; i++)
            sum += w[i].seconds[s];
        printf("%s\"%s\": %.1f", s ? ", " : "", stage_name[s], 1e6 * sum / (double)(ROUNDS * file_count));
    }
    puts("}}");
    return 0;
}

int main(int argc, char **argv) {
    kd_err err = {0};
    int size = argc > 3 ? atoi(argv[3]) : 0, threads = argc > 4 ? atoi(argv[4]) : 0, passes = argc > 5 ? atoi(argv[5]) : 3;
    if (argc < 5 || threads < 1 || threads > MOST_THREADS) {
        fprintf(stderr, "usage: bench_loader DIR PRESET|floor SIZE THREADS [PASSES]\n");
        return 2;
    }
    only_decode = strcmp(argv[2], "floor") == 0;
    static worker w[MOST_THREADS];
    kd_status status = kd_policy_load(&policy, only_decode ? "crop-flip" : argv[2], size, size, &err);
    for (int i = 0; i < threads && status == KD_OK; i++)
        status = kd_alloc_array(&w[i].out, (size_t)size * (size_t)size, 3, &err);
    if (status != KD_OK || !list_files(argv[1])) {
        fprintf(stderr, "bench_loader: %s\n", status != KD_OK ? err.msg : "no files there");
        return 1;
    }
    int failed = run(w, threads, passes);
    for (int i = 0; i < threads; i++) {
        kd_free(w[i].bytes);
        kd_free(w[i].out);
        kd_image_free(&w[i].image);
        kd_view_scratch_free(&w[i].scratch);
    }
    for (size_t i = 0; i < file_count; i++)
        kd_free(files[i]);
    return failed;
}

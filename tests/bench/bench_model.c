/* Speed of one model on one device: images per second of inference or of a training step (forward, backward, AdamW) on made-up pixels.
 *
 *     bench_model NAME BATCH SIZE f32|bf16 infer|train THREADS [DEVICE [ROUNDS [profile]]]
 *
 * Prints one JSON line: the median of the rounds; cpu_ms is processor time of all threads per round, which a busy machine doesn't change. With `profile`, also the time of every op on stderr (slower: the device is waited for after each). */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "common/base/mem.h"
#include "kernels/nn/inspect.h"
#include "kernels/nn/models.h"

typedef struct bench {
    const char *model, *device;
    int batch, size, train, threads, rounds, profile;
    kd_dtype precision;
    kd_backend *b;
    kd_graph *g;
    kd_params *p;
    kd_exec *e;
    float *m, *v, *scale; /* device: AdamW's moments, the clip factor */
    int64_t step;
} bench;

static double now(clockid_t clock) {
    struct timespec t;
    clock_gettime(clock, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void add_losses(kd_graph *g, const kd_model_taps *taps) {
    enum { OUT = 192 }; /* width of the small teacher */
    int64_t cls = OUT, map[3] = {taps->map_h, taps->map_w, OUT};
    kd_val a = kd_graph_linear(g, kd_graph_layer_norm(g, taps->pooled, "head.cls.norm", 1e-6f), "head.cls.linear", OUT, 1);
    kd_val b = kd_graph_linear(g, kd_graph_layer_norm(g, taps->map, "head.patch.norm", 1e-6f), "head.patch.linear", OUT, 1);
    kd_graph_mse(g, a, kd_graph_input(g, "target_cls", 1, &cls), 1, "loss_cls");
    kd_graph_mse(g, b, kd_graph_input(g, "target_map", 3, map), 1, "loss_map");
}

static kd_status device_floats(kd_backend *b, float **out, size_t n, kd_err *err) {
    void *p = NULL;
    KD_TRY(b->v->alloc(b, &p, n * sizeof(float), err));
    *out = p;
    return KD_OK;
}

static kd_status upload_pixels(bench *o, kd_err *err) {
    size_t n = (size_t)o->batch * (size_t)o->size * (size_t)o->size * 3;
    uint8_t *pixels = NULL;
    KD_TRY(kd_alloc_array(&pixels, n, 1, err));
    for (size_t i = 0; i < n; i++)
        pixels[i] = (uint8_t)((i * 2654435761u) >> 24);
    kd_status s = kd_exec_upload(o->e, "images", pixels, err);
    kd_free(pixels);
    return s;
}

static kd_status prepare(bench *o, kd_err *err) {
    kd_model_info m;
    const float one = 1;
    size_t total;
    KD_TRY(kd_backend_open(&o->b, o->device, o->threads, err));
    KD_TRY(kd_model_find(&m, o->model, NULL, err));
    KD_TRY(kd_model_check_size(&m, o->size, o->size, err));
    o->g = kd_graph_create();
    if (!o->g)
        return kd_fail(err, KD_EFAIL, "out of memory");
    kd_model_taps taps = kd_model_build(o->g, &m, o->size, o->size);
    if (o->train)
        add_losses(o->g, &taps);
    KD_TRY(kd_params_create(&o->p, o->g, o->b, err));
    KD_TRY(kd_params_init(o->p, 1, err));
    KD_TRY(kd_exec_create(&o->e, o->g, o->p, &(kd_exec_config){.batch = o->batch, .precision = o->precision, .train = o->train}, err));
    kd_params_trained(o->p, NULL, &total);
    KD_TRY(device_floats(o->b, &o->m, total, err));
    KD_TRY(device_floats(o->b, &o->v, total, err));
    KD_TRY(device_floats(o->b, &o->scale, 1, err));
    KD_TRY(o->b->v->upload(o->b, o->scale, &one, sizeof one, err));
    return upload_pixels(o, err);
}

static kd_status one_pass(bench *o, kd_err *err) {
    KD_TRY(kd_exec_forward(o->e, err));
    if (o->train) {
        size_t total;
        float *w = kd_params_trained(o->p, NULL, &total);
        kd_adamw h = {.lr = 1e-3f, .beta1 = 0.9f, .beta2 = 0.999f, .eps = 1e-8f, .weight_decay = 0.05f, .step = ++o->step};
        KD_TRY(kd_exec_backward(o->e, 0, err));
        KD_TRY(o->b->v->adamw(o->b, w, kd_exec_gradients(o->e), o->m, o->v, total, &h, o->scale, err));
        kd_params_changed(o->p);
    }
    return o->b->v->sync(o->b, err);
}

static int by_value(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

static kd_status measure(bench *o, kd_err *err) {
    double seconds[1000], cpu;
    KD_TRY(one_pass(o, err)); /* warm-up */
    KD_TRY(one_pass(o, err));
    kd_exec_profile(o->e, o->profile);
    cpu = now(CLOCK_PROCESS_CPUTIME_ID);
    for (int i = 0; i < o->rounds; i++) {
        double begin = now(CLOCK_MONOTONIC);
        KD_TRY(one_pass(o, err));
        seconds[i] = now(CLOCK_MONOTONIC) - begin;
    }
    cpu = (now(CLOCK_PROCESS_CPUTIME_ID) - cpu) / o->rounds;
    qsort(seconds, (size_t)o->rounds, sizeof *seconds, by_value);
    double median = seconds[o->rounds / 2], flops = kd_exec_flops(o->e) * (o->train ? 3 : 1);
    printf("{\"model\":\"%s\",\"device\":\"%s\",\"mode\":\"%s\",\"precision\":\"%s\",\"batch\":%d,\"size\":%d,\"threads\":%d,\"rounds\":%d,\"ms\":%.3f,\"best_ms\":%.3f,\"cpu_ms\":%.3f,"
           "\"images_per_s\":%.2f,\"gflops\":%.1f,\"device_mib\":%.1f}\n",
           o->model, o->b->v->name, o->train ? "train" : "infer", kd_dtype_name(o->precision), o->batch, o->size, o->b->threads, o->rounds, median * 1e3, seconds[0] * 1e3, cpu * 1e3,
           o->batch / median, flops / median * 1e-9, (double)kd_exec_device_bytes(o->e) / (1 << 20));
    if (o->profile)
        KD_TRY(kd_exec_print_profile(o->e, stderr, err));
    return KD_OK;
}

static void drop(bench *o) {
    if (o->b) {
        o->b->v->release(o->b, o->m);
        o->b->v->release(o->b, o->v);
        o->b->v->release(o->b, o->scale);
    }
    kd_exec_destroy(o->e);
    kd_params_destroy(o->p);
    kd_graph_destroy(o->g);
    kd_backend_close(o->b);
}

int main(int argc, char **argv) {
    kd_err err = {0};
    if (argc < 7) {
        fprintf(stderr, "usage: bench_model NAME BATCH SIZE f32|bf16 infer|train THREADS [DEVICE [ROUNDS [profile]]]\n");
        return 2;
    }
    bench o = {.model = argv[1], .batch = atoi(argv[2]), .size = atoi(argv[3]), .precision = strcmp(argv[4], "bf16") == 0 ? KD_BF16 : KD_F32, .train = strcmp(argv[5], "train") == 0,
               .threads = atoi(argv[6]), .device = argc > 7 ? argv[7] : "cpu", .rounds = argc > 8 ? atoi(argv[8]) : 5, .profile = argc > 9};
    if (o.rounds < 1 || o.rounds > 1000)
        o.rounds = 5;
    kd_status s = prepare(&o, &err);
    if (s == KD_OK)
        s = measure(&o, &err);
    drop(&o);
    if (s != KD_OK)
        fprintf(stderr, "bench_model: error: %s\n", err.msg);
    return kd_exit_code(s);
}

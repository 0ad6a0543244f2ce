/* Speed of one model on one device: images per second on made-up pixels.
 *
 *     bench_model NAME BATCH SIZE f32|bf16 infer|features|train THREADS [DEVICE [ROUNDS [profile]]]
 *
 * infer: a forward pass. features: what kd-precompute does of a teacher: upload of the pixels, forward pass, class token and patches encoded as i8, their way to the host while the next batch is worked on.
 * train: forward, backward, clipping, AdamW.
 *
 * Prints one JSON line: ms is the median of the rounds, mean_ms their mean; cpu_ms is processor time of all threads per round, which a busy machine doesn't change. With `profile` (slower on a GPU, which is waited for after each op), also
 * the means of ops_ms, what all ops take, and of floor_ms, what convolutions, linear layers and attention take of it; and the time of every op on stderr. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "common/base/mem.h"
#include "kernels/nn/inspect.h"
#include "kernels/nn/models.h"

typedef struct bench {
    const char *model, *device;
    int batch, size, train, features, threads, rounds, profile;
    kd_dtype precision;
    kd_backend *b;
    kd_graph *g;
    kd_params *p;
    kd_exec *e;
    float *m, *v, *scale; /* device: AdamW's moments; the clip factor, and the sum of squares that it is made of */
    int64_t step;
    uint8_t *pixels;
    /* features: what is encoded, and two sets of device memory and fetches, used in turns */
    kd_encode_spec spec[2];
    void *payload[2], *stats, *scratch;
    kd_fetch *fetch[2];
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
    KD_TRY(kd_alloc_array(&o->pixels, n, 1, err));
    for (size_t i = 0; i < n; i++)
        o->pixels[i] = (uint8_t)((i * 2654435761u) >> 24);
    return kd_exec_upload(o->e, "images", o->pixels, err);
}

/* Payload bytes of one image, and where those of output k begin in a batch's. */
static size_t payload_bytes(const bench *o, int k) {
    return (size_t)o->batch * kd_encode_bytes(&o->spec[k]);
}

static kd_status prepare_features(bench *o, const kd_model_taps *taps, int width, kd_err *err) {
    size_t scratch = 0, bytes;
    o->spec[0] = (kd_encode_spec){.target = {KD_TARGET_FULL, 0, 0}, .grid_h = 1, .grid_w = 1, .width = width, .dtype = KD_I8};
    o->spec[1] = (kd_encode_spec){.target = {KD_TARGET_FULL, 0, 0}, .grid_h = taps->map_h, .grid_w = taps->map_w, .width = width, .dtype = KD_I8};
    for (int k = 0; k < 2; k++) {
        bytes = kd_encode_scratch_bytes(&o->spec[k], (size_t)o->batch);
        scratch = bytes > scratch ? bytes : scratch;
    }
    bytes = payload_bytes(o, 0) + payload_bytes(o, 1);
    KD_TRY(o->b->v->alloc(o->b, &o->scratch, scratch, err));
    KD_TRY(o->b->v->alloc(o->b, &o->stats, (size_t)o->batch * sizeof(kd_encode_stats), err));
    for (int i = 0; i < 2; i++) {
        KD_TRY(o->b->v->alloc(o->b, &o->payload[i], bytes, err));
        KD_TRY(o->b->v->fetch_create(o->b, &o->fetch[i], bytes, err));
    }
    return KD_OK;
}

static kd_status prepare(bench *o, kd_err *err) {
    kd_model_info m;
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
    if (o->features)
        KD_TRY(prepare_features(o, &taps, m.width, err));
    if (o->train) {
        KD_TRY(device_floats(o->b, &o->m, total, err));
        KD_TRY(device_floats(o->b, &o->v, total, err));
        KD_TRY(device_floats(o->b, &o->scale, 2, err));
    }
    return upload_pixels(o, err);
}

static kd_status one_pass(bench *o, kd_err *err) {
    KD_TRY(kd_exec_forward(o->e, err));
    if (o->train) {
        size_t total;
        float *w = kd_params_trained(o->p, NULL, &total);
        kd_adamw h = {.lr = 1e-3f, .beta1 = 0.9f, .beta2 = 0.999f, .eps = 1e-8f, .weight_decay = 0.05f, .step = ++o->step};
        KD_TRY(kd_exec_backward(o->e, 0, err));
        KD_TRY(o->b->v->sum_squares(o->b, o->scale + 1, kd_exec_gradients(o->e), total, err));
        KD_TRY(o->b->v->clip_scale(o->b, o->scale, o->scale + 1, 1.0f, err));
        KD_TRY(o->b->v->adamw(o->b, w, kd_exec_gradients(o->e), o->m, o->v, total, &h, o->scale, err));
        kd_params_changed(o->p);
    }
    return o->b->v->sync(o->b, err);
}

/* Batch number `i` is queued, and the one before it taken back, while which this one runs. */
static kd_status one_batch(bench *o, int i, kd_err *err) {
    static const char *const output[2] = {"cls", "map"};
    const void *data;
    size_t at = 0;
    KD_TRY(kd_exec_upload(o->e, "images", o->pixels, err));
    KD_TRY(kd_exec_forward(o->e, err));
    for (int k = 0; k < 2; k++) {
        const float *x = kd_exec_output(o->e, output[k], NULL);
        KD_TRY(o->b->v->encode(o->b, (uint8_t *)o->payload[i % 2] + at, o->stats, x, (size_t)o->batch, &o->spec[k], o->scratch, err));
        at += payload_bytes(o, k);
    }
    KD_TRY(o->b->v->fetch_begin(o->b, o->fetch[i % 2], o->payload[i % 2], at, err));
    return i == 0 ? KD_OK : o->b->v->fetch_end(o->b, o->fetch[(i - 1) % 2], &data, err);
}

static int by_value(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

static kd_status measure(bench *o, kd_err *err) {
    double seconds[1000], sum = 0, cpu;
    int warm_up = o->b->v->record_begin ? 4 : 2; /* passes; the second is recorded where the backend records */
    for (int i = 0; i < warm_up; i++)
        KD_TRY(o->features ? one_batch(o, i, err) : one_pass(o, err));
    kd_exec_profile(o->e, o->profile);
    cpu = now(CLOCK_PROCESS_CPUTIME_ID);
    for (int i = 0; i < o->rounds; i++) {
        double begin = now(CLOCK_MONOTONIC);
        KD_TRY(o->features ? one_batch(o, warm_up + i, err) : one_pass(o, err));
        seconds[i] = now(CLOCK_MONOTONIC) - begin;
        sum += seconds[i];
    }
    cpu = (now(CLOCK_PROCESS_CPUTIME_ID) - cpu) / o->rounds;
    qsort(seconds, (size_t)o->rounds, sizeof *seconds, by_value);
    double median = seconds[o->rounds / 2], flops = kd_exec_flops(o->e) * (o->train ? 3 : 1);
    printf("{\"model\":\"%s\",\"device\":\"%s\",\"mode\":\"%s\",\"precision\":\"%s\",\"batch\":%d,\"size\":%d,\"threads\":%d,\"rounds\":%d,\"library\":\"%s\",\"ms\":%.3f,\"mean_ms\":%.3f,\"best_ms\":%.3f,\"cpu_ms\":%.3f,"
           "\"images_per_s\":%.2f,\"gflops\":%.1f,\"device_mib\":%.1f",
           o->model, o->b->v->name, o->train ? "train" : o->features ? "features" : "infer", kd_dtype_name(o->precision), o->batch, o->size, o->b->threads, o->rounds, o->b->v->describe(o->b), median * 1e3, 1e3 * sum / o->rounds, seconds[0] * 1e3, cpu * 1e3,
           o->batch / median, flops / median * 1e-9, (double)kd_exec_device_bytes(o->e) / (1 << 20));
    if (o->profile) {
        kd_exec_times t = kd_exec_profile_times(o->e);
        printf(",\"ops_ms\":%.3f,\"floor_ms\":%.3f", t.ops * 1e3, t.products * 1e3);
    }
    printf("}\n");
    return o->profile ? kd_exec_print_profile(o->e, stderr, err) : KD_OK;
}

static void drop(bench *o) {
    if (o->b) {
        o->b->v->release(o->b, o->m);
        o->b->v->release(o->b, o->v);
        o->b->v->release(o->b, o->scale);
        o->b->v->release(o->b, o->stats);
        o->b->v->release(o->b, o->scratch);
        for (int i = 0; i < 2; i++) {
            o->b->v->release(o->b, o->payload[i]);
            o->b->v->fetch_destroy(o->b, o->fetch[i]);
        }
    }
    kd_free(o->pixels);
    kd_exec_destroy(o->e);
    kd_params_destroy(o->p);
    kd_graph_destroy(o->g);
    kd_backend_close(o->b);
}

int main(int argc, char **argv) {
    kd_err err = {0};
    if (argc < 7) {
        fprintf(stderr, "usage: bench_model NAME BATCH SIZE f32|bf16 infer|features|train THREADS [DEVICE [ROUNDS [profile]]]\n");
        return 2;
    }
    bench o = {.model = argv[1], .batch = atoi(argv[2]), .size = atoi(argv[3]), .precision = strcmp(argv[4], "bf16") == 0 ? KD_BF16 : KD_F32, .train = strcmp(argv[5], "train") == 0, .features = strcmp(argv[5], "features") == 0,
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

/* Speed of single ops on one device: the shapes of a small ViT teacher, and of training ResNet-18, MobileNetV3, ConvNeXt and YOLO.
 *
 *     bench_ops [DEVICE [THREADS [BATCH [FILTER]]]]          FILTER: only cases whose name contains it
 *
 * One line per case: processor time of the forward and the backward call (best of several; of all threads together, so that a busy machine doesn't count), and what
 * that makes in GFLOP/s per thread. Backward is counted as twice the forward operations, once when only one gradient is wanted. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "common/base/mem.h"
#include "kernels/backend.h"

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

enum { MAX_CASES = 200, ROUNDS = 7, MOST_SECONDS = 4 };

typedef struct bench_case {
    char name[60];
    kd_op_desc d;
} bench_case;

static bench_case cases[MAX_CASES];
static int case_count;

static void add_case(const char *name, kd_op_desc d, kd_dtype type) {
    bench_case *c = &cases[case_count++];
    snprintf(c->name, sizeof c->name, "%s %s", name, kd_dtype_name(type));
    c->d = d;
    c->d.name = c->name;
}

static kd_tdesc tensor(kd_dtype t, int rank, int64_t a, int64_t b, int64_t c, int64_t d) {
    return (kd_tdesc){t, rank, {a, b, c, d}};
}

static void linear_cases(kd_dtype t, int64_t n, int64_t width) {
    static const struct {
        const char *name;
        int in, out, residual, train;
        kd_act act;
    } list[] = {{"qkv", 1, 3, 0, 0, KD_ACT_NONE}, {"fc1 gelu", 1, 4, 0, 0, KD_ACT_GELU}, {"fc1 plain", 1, 4, 0, 0, KD_ACT_NONE}, {"fc2 join", 4, 1, 1, 0, KD_ACT_NONE},
                {"fc2 plain", 4, 1, 0, 0, KD_ACT_NONE}, {"qkv train", 1, 3, 0, 1, KD_ACT_NONE}, {"fc1 gelu train", 1, 4, 0, 1, KD_ACT_GELU}, {"fc2 train", 4, 1, 0, 1, KD_ACT_NONE}};
    for (size_t i = 0; i < sizeof list / sizeof *list; i++) {
        char name[60];
        snprintf(name, sizeof name, "linear %s D=%lld", list[i].name, (long long)width);
        kd_tdesc y = tensor(list[i].residual ? KD_F32 : t, 3, n, 257, list[i].out * width, 0);
        add_case(name,
                 (kd_op_desc){.kind = KD_OP_LINEAR, .inputs = 1 + list[i].residual, .x = {tensor(t, 3, n, 257, list[i].in * width, 0), y}, .y = y, .bias = 1,
                              .residual = list[i].residual, .act = list[i].act, .train = list[i].train, .need_dx = list[i].train ? 1 : 0, .need_dparam = list[i].train},
                 t);
    }
    for (int train = 0; train < 2; train++) {
        char name[60];
        snprintf(name, sizeof name, "attention%s D=%lld", train ? " train" : "", (long long)width);
        add_case(name,
                 (kd_op_desc){.kind = KD_OP_ATTENTION, .inputs = 1, .x = {tensor(t, 3, n, 257, 3 * width, 0)}, .y = tensor(t, 3, n, 257, width, 0), .heads = (int)(width / 64),
                              .train = train, .need_dx = train ? 1 : 0},
                 t);
    }
}

/* Long sequences: 224, 518 and 1024 px in patches of 16, 14 and 16 with class token and registers; the heads of ViT-B and of the 7B. */
static void attention_cases(kd_dtype t) {
    static const int sizes[][4] = {{8, 197, 12, 64}, {8, 201, 12, 64}, {8, 257, 12, 64}, {1, 1374, 12, 64}, {1, 4101, 12, 64}, {1, 1374, 8, 128}, {1, 4101, 4, 128}}; /* N, T, heads, Dh */
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        const int *s = sizes[i];
        char name[60];
        snprintf(name, sizeof name, "long attention T=%d %dx%d", s[1], s[2], s[3]);
        add_case(name,
                 (kd_op_desc){.kind = KD_OP_ATTENTION, .inputs = 1, .heads = s[2], .x = {tensor(t, 3, s[0], s[1], 3 * s[2] * s[3], 0)}, .y = tensor(t, 3, s[0], s[1], s[2] * s[3], 0)}, t);
    }
}

/* One block's parts in ViT-g/14 (257 tokens) and in the DINOv3 7B (201): the products of the gated feed-forward network and of attention, and what lies between them. */
static void large_block_cases(kd_dtype t) {
    static const int sizes[][4] = {{257, 1536, 4096, 24}, {201, 4096, 8192, 32}}; /* T, D, hidden, heads */
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        const int *s = sizes[i];
        kd_tdesc x = tensor(t, 3, 1, s[0], s[1], 0), residual = tensor(KD_F32, 3, 1, s[0], s[1], 0), gates = tensor(t, 3, 1, s[0], 2 * s[2], 0), hidden = tensor(t, 3, 1, s[0], s[2], 0);
        kd_tdesc qkv = tensor(t, 3, 1, s[0], 3 * s[1], 0);
        kd_op_desc parts[] = {
            {.kind = KD_OP_LAYER_NORM, .inputs = 1, .x = {residual}, .y = x, .eps = 1e-6f},
            {.kind = KD_OP_LINEAR, .inputs = 1, .x = {x}, .y = qkv, .bias = 1},
            {.kind = KD_OP_ROPE, .inputs = 1, .heads = s[3], .begin = 1, .grid_h = 1, .grid_w = s[0] - 1, .periods = s[1] / s[3] / 4, .x = {qkv}, .y = qkv},
            {.kind = KD_OP_ATTENTION, .inputs = 1, .heads = s[3], .x = {qkv}, .y = x},
            {.kind = KD_OP_LINEAR, .inputs = 2, .residual = 1, .x = {x, residual}, .y = residual, .bias = 1},
            {.kind = KD_OP_LINEAR, .inputs = 1, .x = {x}, .y = gates, .bias = 1},
            {.kind = KD_OP_SILU_GATE, .inputs = 1, .x = {gates}, .y = hidden},
            {.kind = KD_OP_LINEAR, .inputs = 2, .residual = 1, .x = {hidden, residual}, .y = residual, .bias = 1},
        };
        static const char *const names[] = {"norm", "qkv", "rope", "attention", "proj join", "w12", "silu_gate", "w3 join"};
        for (size_t k = 0; k < sizeof parts / sizeof *parts; k++) {
            char name[60];
            for (int j = 0; j < parts[k].periods; j++)
                parts[k].period[j] = (float)(j + 1);
            snprintf(name, sizeof name, "block D=%d %s", s[1], names[k]);
            add_case(name, parts[k], t);
        }
    }
}

static void conv_case(kd_dtype t, int64_t n, int64_t size, int64_t in, int64_t out, int k, int stride, int pad, int train) {
    int64_t o = (size + 2 * pad - k) / stride + 1;
    char name[60];
    snprintf(name, sizeof name, "conv %lldx%lld %lld->%lld k%d s%d", (long long)size, (long long)size, (long long)in, (long long)out, k, stride);
    add_case(name,
             (kd_op_desc){.kind = KD_OP_CONV2D, .inputs = 1, .x = {tensor(t, 4, n, size, size, in)}, .y = tensor(t, 4, n, o, o, out), .kernel = k, .stride = stride, .pad = pad,
                          .train = train, .need_dx = train && in > 3 ? 1 : 0, .need_dparam = train},
             t);
}

static void memory_cases(kd_dtype t, int64_t n) {
    kd_tdesc map = tensor(t, 4, n, 56, 56, 64), tokens = tensor(KD_F32, 3, n, 257, 384, 0), out = tensor(t, 3, n, 257, 384, 0);
    kd_op_desc norm = {.kind = KD_OP_BATCH_NORM, .inputs = 1, .x = {map}, .y = map, .act = KD_ACT_RELU, .eps = 1e-5f, .momentum = 0.1f, .train = 1, .need_dx = 1, .need_dparam = 1};
    add_case("batch_norm 56x56x64", norm, t);
    norm.inputs = 2;
    norm.x[1] = map;
    norm.need_dx = 3;
    add_case("batch_norm join 56x56x64", norm, t);
    add_case("max_pool 56x56x64",
             (kd_op_desc){.kind = KD_OP_MAX_POOL, .inputs = 1, .x = {map}, .y = tensor(t, 4, n, 28, 28, 64), .kernel = 3, .stride = 2, .pad = 1, .train = 1, .need_dx = 1}, t);
    add_case("layer_norm 257x384", (kd_op_desc){.kind = KD_OP_LAYER_NORM, .inputs = 1, .x = {tokens}, .y = out, .eps = 1e-6f, .train = 1, .need_dx = 1, .need_dparam = 1}, t);
    add_case("gelu 257x384", (kd_op_desc){.kind = KD_OP_GELU, .inputs = 1, .x = {out}, .y = out, .train = 1, .need_dx = 1}, t);
    add_case("scale_add 257x384", (kd_op_desc){.kind = KD_OP_SCALE_ADD, .inputs = 2, .x = {tokens, out}, .y = tokens, .train = 1, .need_dx = 3, .need_dparam = 1}, t);
    add_case("resize 7->16 x384",
             (kd_op_desc){.kind = KD_OP_RESIZE_BILINEAR, .inputs = 1, .x = {tensor(t, 4, n, 7, 7, 384)}, .y = tensor(t, 4, n, 16, 16, 384), .train = 1, .need_dx = 1}, t);
}

/* One output per input channel: MobileNetV3-Small and -Large, ConvNeXt-Tiny. */
static void depthwise_cases(kd_dtype t, int64_t n) {
    static const int list[][4] = {{112, 16, 3, 2}, {112, 16, 3, 1}, {56, 64, 3, 2}, {28, 96, 5, 2}, {28, 120, 5, 1}, {14, 240, 5, 1}, {7, 576, 5, 1}, {14, 480, 3, 1},
                                  {56, 96, 7, 1}, {28, 192, 7, 1}, {14, 384, 7, 1}, {7, 768, 7, 1}}; /* side, channels, kernel, stride */
    for (size_t i = 0; i < sizeof list / sizeof *list; i++) {
        const int *s = list[i];
        int64_t o = (s[0] - 1) / s[3] + 1;
        char name[60];
        snprintf(name, sizeof name, "depthwise %dx%dx%d k%d s%d", s[0], s[0], s[1], s[2], s[3]);
        add_case(name,
                 (kd_op_desc){.kind = KD_OP_CONV2D, .inputs = 1, .x = {tensor(t, 4, n, s[0], s[0], s[1])}, .y = tensor(t, 4, n, o, o, s[1]), .kernel = s[2], .stride = s[3],
                              .pad = s[2] / 2, .groups = s[1], .train = 1, .need_dx = 1, .need_dparam = 1},
                 t);
    }
}

/* What lies between the convolutions of such networks; 80x80x64 is a map of YOLOv8n at 640 px. */
static void cnn_cases(kd_dtype t, int64_t n) {
    kd_tdesc map = tensor(t, 4, n, 80, 80, 64), half = tensor(t, 4, n, 80, 80, 32);
    static const kd_op_kind acts[] = {KD_OP_RELU, KD_OP_SILU, KD_OP_HARDSWISH, KD_OP_HARDSIGMOID};
    for (size_t i = 0; i < sizeof acts / sizeof *acts; i++) {
        char name[60];
        snprintf(name, sizeof name, "%s 80x80x64", kd_op_kind_name(acts[i]));
        add_case(name, (kd_op_desc){.kind = acts[i], .inputs = 1, .x = {map}, .y = map, .train = 1, .need_dx = 1}, t);
    }
    static const kd_act norm_acts[] = {KD_ACT_NONE, KD_ACT_RELU, KD_ACT_SILU, KD_ACT_HARDSWISH};
    static const char *const norm_names[] = {"batch_norm 80x80x64", "batch_norm relu 80x80x64", "batch_norm silu 80x80x64", "batch_norm hardswish 80x80x64"};
    for (size_t i = 0; i < sizeof norm_acts / sizeof *norm_acts; i++)
        add_case(norm_names[i],
                 (kd_op_desc){.kind = KD_OP_BATCH_NORM, .inputs = 1, .x = {map}, .y = map, .act = norm_acts[i], .eps = 1e-3f, .momentum = 0.03f, .train = 1, .need_dx = 1, .need_dparam = 1}, t);
    add_case("channel_slice 80x80x64", (kd_op_desc){.kind = KD_OP_CHANNEL_SLICE, .inputs = 1, .begin = 32, .x = {map}, .y = half, .train = 1, .need_dx = 1}, t);
    add_case("concat 3 of 80x80x32", (kd_op_desc){.kind = KD_OP_CONCAT, .inputs = 3, .x = {half, half, half}, .y = tensor(t, 4, n, 80, 80, 96), .train = 1, .need_dx = 7}, t);
    add_case("channel_gate 80x80x64", (kd_op_desc){.kind = KD_OP_CHANNEL_GATE, .inputs = 2, .x = {map, tensor(t, 2, n, 64, 0, 0)}, .y = map, .train = 1, .need_dx = 3}, t);
    add_case("row_scale 80x80x64", (kd_op_desc){.kind = KD_OP_ROW_SCALE, .inputs = 2, .x = {map, tensor(KD_F32, 2, n, 1, 0, 0)}, .y = map, .train = 1, .need_dx = 1}, t);
    add_case("add 80x80x64", (kd_op_desc){.kind = KD_OP_ADD, .inputs = 2, .x = {map, map}, .y = map, .train = 1, .need_dx = 3}, t);
}

static void make_cases(int64_t n) {
    for (int bf16 = 0; bf16 < 2; bf16++) {
        kd_dtype t = bf16 ? KD_BF16 : KD_F32;
        linear_cases(t, n, 192);
        linear_cases(t, n, 384);
        attention_cases(t);
        large_block_cases(t);
        conv_case(t, n, 224, 3, 384, 14, 14, 0, 0);
        conv_case(t, n, 112, 3, 64, 7, 2, 3, 1);
        conv_case(t, n, 28, 64, 64, 3, 1, 1, 1);
        conv_case(t, n, 28, 64, 128, 3, 2, 1, 1);
        conv_case(t, n, 28, 64, 128, 1, 2, 0, 1);
        conv_case(t, n, 14, 128, 128, 3, 1, 1, 1);
        conv_case(t, n, 7, 256, 256, 3, 1, 1, 1);
        conv_case(t, n, 4, 512, 512, 3, 1, 1, 1);
        memory_cases(t, n);
        depthwise_cases(t, n);
        cnn_cases(t, n);
    }
}

typedef struct buffers {
    void *all[2 * KD_OP_MAX_X + 2 * KD_OP_MAX_PARAM + KD_OP_MAX_STATE + 8];
    int count;
} buffers;

/* Small values without NaN in either type: every byte pair 0x3C..: about 0.01. */
static kd_status filled(kd_backend *b, buffers *s, void **out, size_t bytes, kd_err *err) {
    uint16_t *host = NULL;
    KD_TRY(kd_alloc_array(&host, bytes / 2 + 32, sizeof *host, err));
    for (size_t i = 0; i < bytes / 2; i++)
        host[i] = (uint16_t)(0x3C00 + (i * 2654435761u >> 20) % 256 + (i & 4 ? 0x8000 : 0));
    kd_status status = b->v->alloc(b, out, bytes + 64, err);
    if (status == KD_OK) {
        s->all[s->count++] = *out;
        status = b->v->upload(b, *out, host, bytes, err);
    }
    kd_free(host);
    return status;
}

static kd_status make_args(kd_backend *b, buffers *s, const kd_op_desc *d, const kd_op_needs *needs, kd_op_args *a, kd_err *err) {
    for (int i = 0; i < d->inputs; i++) {
        KD_TRY(filled(b, s, (void **)&a->x[i], kd_tdesc_bytes(&d->x[i]), err));
        KD_TRY(filled(b, s, &a->dx[i], kd_tdesc_bytes(&d->x[i]), err));
    }
    for (int i = 0; i < KD_OP_MAX_PARAM; i++) {
        size_t n = kd_op_param_numel(d, i);
        if (n == 0)
            continue;
        KD_TRY(filled(b, s, (void **)&a->param[i], n * sizeof(float), err));
        KD_TRY(filled(b, s, (void **)&a->dparam[i], n * sizeof(float), err));
    }
    for (int i = 0; i < KD_OP_MAX_STATE; i++)
        if (kd_op_state_numel(d, i))
            KD_TRY(filled(b, s, (void **)&a->state[i], kd_op_state_numel(d, i) * sizeof(float), err));
    KD_TRY(filled(b, s, &a->y, kd_tdesc_bytes(&d->y), err));
    KD_TRY(filled(b, s, (void **)&a->dy, kd_tdesc_bytes(&d->y), err));
    KD_TRY(filled(b, s, &a->packed, needs->packed, err));
    KD_TRY(filled(b, s, &a->saved, needs->saved, err));
    return filled(b, s, &a->scratch, needs->scratch, err);
}

static kd_status time_calls(kd_backend *b, kd_op *op, const kd_op_desc *d, const kd_op_args *a, double best[2], kd_err *err) {
    KD_TRY(b->v->op_pack(b, op, a, err));
    double begin = now();
    for (int r = 0; r < ROUNDS && (r < 2 || now() - begin < MOST_SECONDS); r++) {
        double t0 = now();
        KD_TRY(b->v->op_forward(b, op, a, err));
        KD_TRY(b->v->sync(b, err));
        double t1 = now();
        if (d->train)
            KD_TRY(b->v->op_backward(b, op, a, err));
        KD_TRY(b->v->sync(b, err));
        double t2 = now();
        best[0] = t1 - t0 < best[0] ? t1 - t0 : best[0];
        best[1] = t2 - t1 < best[1] ? t2 - t1 : best[1];
    }
    return KD_OK;
}

static kd_status run_case(kd_backend *b, const bench_case *c, kd_err *err) {
    kd_op *op = NULL;
    kd_op_needs needs;
    kd_op_args args = {0};
    buffers s = {0};
    double best[2] = {1e30, 1e30};
    KD_TRY(b->v->op_create(b, &op, &c->d, &needs, err));
    kd_status status = make_args(b, &s, &c->d, &needs, &args, err);
    if (status == KD_OK)
        status = time_calls(b, op, &c->d, &args, best, err);
    for (int i = 0; i < s.count; i++)
        b->v->release(b, s.all[i]);
    b->v->op_destroy(b, op);
    if (status != KD_OK)
        return status;
    double flops = kd_op_flops(&c->d), back = flops * (((c->d.need_dx & 1) != 0) + (c->d.need_dparam != 0));
    if (c->d.kind == KD_OP_ATTENTION)
        back = 2 * flops;
    printf("%-34s forward %8.3f ms", c->name, best[0] * 1e3);
    printf(flops > 0 ? " %6.1f GFLOP/s" : "                ", flops / best[0] * 1e-9);
    if (c->d.kind == KD_OP_ATTENTION)
        printf(" scratch %7.1f MiB", (double)needs.scratch / (1 << 20));
    if (c->d.train) {
        printf("   backward %8.3f ms", best[1] * 1e3);
        printf(flops > 0 ? " %6.1f GFLOP/s" : "", back / best[1] * 1e-9);
    }
    printf("\n");
    return KD_OK;
}

int main(int argc, char **argv) {
    kd_err err = {0};
    kd_backend *b = NULL;
    kd_status s = kd_backend_open(&b, argc > 1 ? argv[1] : "cpu", argc > 2 ? atoi(argv[2]) : 1, &err);
    if (s == KD_OK) {
        printf("%s\n", b->v->describe(b));
        make_cases(argc > 3 ? atoi(argv[3]) : 16);
    }
    for (int i = 0; s == KD_OK && i < case_count; i++)
        if (argc <= 4 || strstr(cases[i].name, argv[4]))
            s = run_case(b, &cases[i], &err);
    kd_backend_close(b);
    if (s != KD_OK)
        fprintf(stderr, "bench_ops: error: %s\n", err.msg);
    return kd_exit_code(s);
}

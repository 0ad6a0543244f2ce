/* In inference the bits of the cpu backend's results don't depend on the number of threads (kernels/ops.h), so that caches are equal whatever made them: every inference case of the list,
 * and the sizes of real models, whose matrix products oneDNN divides in other ways than small ones. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "common/base/mem.h"
#include "tests/ops/harness.h"

static const int THREADS[] = {1, 2, 3, 8};
enum { COUNTS = sizeof THREADS / sizeof *THREADS, MAX_LARGE = 160 };

static kd_backend *with[COUNTS]; /* a backend per number of threads */
static char missing[1200], no_bf16[1200];
static ops_case large[MAX_LARGE];
static size_t larges;

static void same_bits_for_every_number_of_threads(void **state) {
    const ops_case *c = *state;
    if (ops_uses_bf16(&c->desc) && no_bf16[0]) {
        print_message("skipped, no bf16: %s\n", no_bf16);
        skip();
    }
    ops_inputs in = ops_inputs_make(c, 1);
    ops_results one = ops_run(with[0], c, &in, 0);
    for (int i = 1; i < COUNTS; i++) {
        ops_results more = ops_run(with[i], c, &in, 0);
        ops_assert_identical(c, &one, &more);
        ops_results_free(&more);
    }
    ops_results_free(&one);
    ops_inputs_free(&in);
}

static void backends_are_present(void **state) {
    (void)state;
    if (missing[0]) {
        print_message("skipped: %s\n", missing);
        skip();
    }
    for (int i = 0; i < COUNTS; i++)
        print_message("%s\n", with[i]->v->describe(with[i]));
}

/* ---- sizes of real models ---- */

static void add_typed(kd_op_desc d, const char *label, kd_dtype type) {
    KD_ASSERT(larges < MAX_LARGE);
    ops_case *c = &large[larges++];
    d.x[0].dtype = d.x[1].dtype = d.y.dtype = type;
    c->desc = d;
    snprintf(c->label, sizeof c->label, "%s %s %s", kd_op_kind_name(d.kind), label, kd_dtype_name(type));
    c->desc.name = c->label;
    kd_op_check(&c->desc);
}

static void add(kd_op_desc d, const char *label) {
    add_typed(d, label, KD_F32);
    add_typed(d, label, KD_BF16);
}

static void add_linears(void) {
    static const struct {
        int rows, in, out, residual;
        kd_act act;
    } list[] = {{257, 384, 1152, 0, KD_ACT_NONE},  {514, 384, 1536, 0, KD_ACT_GELU}, {514, 1536, 384, 1, KD_ACT_NONE}, {2056, 192, 576, 0, KD_ACT_NONE},
                {1028, 384, 384, 1, KD_ACT_NONE},  {197, 768, 768, 0, KD_ACT_NONE},  {1, 1536, 1000, 0, KD_ACT_NONE},  {16, 384, 1000, 0, KD_ACT_NONE},
                {333, 517, 129, 0, KD_ACT_RELU},   {131, 4096, 7, 0, KD_ACT_NONE},   {99, 33, 2051, 0, KD_ACT_NONE},   {1000, 65, 1, 0, KD_ACT_NONE},
                {4099, 17, 31, 0, KD_ACT_NONE},    {49, 6144, 64, 0, KD_ACT_NONE},   {8, 2048, 4099, 0, KD_ACT_NONE}};
    for (size_t i = 0; i < sizeof list / sizeof *list; i++) {
        char label[80];
        kd_tdesc x = {KD_F32, 2, {list[i].rows, list[i].in}}, y = {KD_F32, 2, {list[i].rows, list[i].out}};
        snprintf(label, sizeof label, "%dx%d->%d%s", list[i].rows, list[i].in, list[i].out, list[i].residual ? " residual" : "");
        add((kd_op_desc){.kind = KD_OP_LINEAR, .inputs = 1 + list[i].residual, .x = {x, y}, .y = y, .bias = 1, .residual = list[i].residual, .act = list[i].act}, label);
    }
}

static void add_convs(void) {
    static const int list[][8] = {{2, 224, 3, 384, 14, 14, 0, 1},  {1, 224, 3, 384, 16, 16, 0, 1}, {1, 112, 3, 64, 7, 2, 3, 1},   {2, 28, 64, 64, 3, 1, 1, 1},
                                  {2, 28, 64, 128, 1, 2, 0, 1},    {1, 14, 256, 512, 1, 1, 0, 1},  {3, 7, 256, 256, 3, 1, 1, 1},  {1, 29, 17, 1, 3, 1, 1, 1},
                                  {2, 56, 96, 96, 7, 1, 3, 96},    {1, 28, 120, 120, 5, 1, 2, 120}, {3, 56, 64, 64, 3, 2, 1, 64}, {1, 7, 960, 960, 5, 1, 2, 960}}; /* N, H, I, O, k, stride, pad, groups */
    for (size_t i = 0; i < sizeof list / sizeof *list; i++) {
        char label[80];
        const int *c = list[i];
        int64_t out = (c[1] + 2 * c[6] - c[4]) / c[5] + 1;
        snprintf(label, sizeof label, "%dx%dx%dx%d->%d k%d s%d", c[0], c[1], c[1], c[2], c[3], c[4], c[5]);
        add((kd_op_desc){.kind = KD_OP_CONV2D, .inputs = 1, .kernel = c[4], .stride = c[5], .pad = c[6], .groups = c[7], .bias = 1, .x = {{KD_F32, 4, {c[0], c[1], c[1], c[2]}}},
                         .y = {KD_F32, 4, {c[0], out, out, c[3]}}},
            label);
    }
}

static void add_others(void) {
    kd_tdesc x = {KD_F32, 3, {2, 257, 384}}, qkv = {KD_F32, 3, {2, 257, 1152}}, patches = {KD_F32, 3, {2, 256, 384}}, map = {KD_F32, 4, {2, 16, 16, 384}};
    kd_op_desc rope = {.kind = KD_OP_ROPE, .inputs = 1, .heads = 6, .begin = 1, .grid_h = 16, .grid_w = 16, .periods = 16, .x = {qkv}, .y = qkv};
    for (int i = 0; i < rope.periods; i++)
        rope.period[i] = (float)(i + 1);
    add(rope, "2x257, 6 heads of 64");
    add((kd_op_desc){.kind = KD_OP_ATTENTION, .inputs = 1, .heads = 6, .x = {qkv}, .y = x}, "2x257, 6 heads of 64");
    add((kd_op_desc){.kind = KD_OP_ATTENTION, .inputs = 1, .heads = 3, .x = {{KD_F32, 3, {1, 1030, 576}}}, .y = {KD_F32, 3, {1, 1030, 192}}}, "1x1030, 3 heads of 64");
    add((kd_op_desc){.kind = KD_OP_LAYER_NORM, .inputs = 1, .x = {x}, .y = x, .eps = 1e-6f}, "514x384");
    add((kd_op_desc){.kind = KD_OP_GELU, .inputs = 1, .x = {x}, .y = x}, "514x384");
    add((kd_op_desc){.kind = KD_OP_SILU_GATE, .inputs = 1, .x = {qkv}, .y = {KD_F32, 3, {2, 257, 576}}}, "514x1152");
    add((kd_op_desc){.kind = KD_OP_SCALE_ADD, .inputs = 2, .x = {x, x}, .y = x}, "514x384");
    add((kd_op_desc){.kind = KD_OP_TOKENS, .inputs = 1, .positions = 1, .x = {patches}, .y = x}, "2x256x384");
    add((kd_op_desc){.kind = KD_OP_TOKEN_SLICE, .inputs = 1, .begin = 1, .x = {x}, .y = patches}, "2x257x384");
    add((kd_op_desc){.kind = KD_OP_MEAN_TOKENS, .inputs = 1, .x = {patches}, .y = {KD_F32, 2, {2, 384}}}, "2x256x384");
    add((kd_op_desc){.kind = KD_OP_RESIZE_BILINEAR, .inputs = 1, .x = {map}, .y = {KD_F32, 4, {2, 7, 7, 384}}}, "2x16x16x384 to 7x7");
    add((kd_op_desc){.kind = KD_OP_BATCH_NORM, .inputs = 1, .x = {map}, .y = map, .act = KD_ACT_RELU, .eps = 1e-5f}, "2x16x16x384");
    add((kd_op_desc){.kind = KD_OP_MAX_POOL, .inputs = 1, .kernel = 3, .stride = 2, .pad = 1, .x = {map}, .y = {KD_F32, 4, {2, 8, 8, 384}}}, "2x16x16x384");
}

static void add_losses(void) {
    kd_tdesc cls = {KD_F32, 2, {64, 384}}, map = {KD_F32, 4, {3, 16, 16, 384}}, one = {KD_F32, 1, {1}};
    add_typed((kd_op_desc){.kind = KD_OP_KL_QUEUE, .inputs = 2, .x = {cls, cls}, .y = one, .queue_rows = 8192, .temperature = 0.07f}, "64x384, 8192 in the queue", KD_F32);
    add_typed((kd_op_desc){.kind = KD_OP_KL_INTRA, .inputs = 2, .x = {map, map}, .y = one, .temperature = 0.07f}, "3x16x16x384", KD_F32);
    add_typed((kd_op_desc){.kind = KD_OP_GRAM, .inputs = 2, .x = {map, map}, .y = one}, "3x16x16x384", KD_F32);
    add_typed((kd_op_desc){.kind = KD_OP_COSINE, .inputs = 2, .x = {map, map}, .y = one}, "3x16x16x384", KD_F32);
    add_typed((kd_op_desc){.kind = KD_OP_SMOOTH_L1, .inputs = 2, .x = {map, map}, .y = one, .beta = 1}, "3x16x16x384", KD_F32);
    add_typed((kd_op_desc){.kind = KD_OP_KOLEO, .inputs = 1, .x = {cls}, .y = one}, "64x384", KD_F32);
}

static kd_status open_all(kd_err *err) {
    for (int i = 0; i < COUNTS; i++)
        KD_TRY(kd_backend_open(&with[i], "cpu", THREADS[i], err));
    return KD_OK;
}

static void add_test(struct CMUnitTest *tests, size_t *n, const ops_case *c) {
    if (!c->desc.train)
        tests[(*n)++] = (struct CMUnitTest){c->label, same_bits_for_every_number_of_threads, NULL, NULL, (void *)(uintptr_t)c};
}

int main(void) {
    kd_err err = {0};
    const ops_case *list;
    size_t n = 0, count = ops_cases(&list);
    struct CMUnitTest *tests = kd_calloc(1 + count + MAX_LARGE, sizeof *tests);
    if (!tests)
        return 1;
    tests[n++] = (struct CMUnitTest)cmocka_unit_test(backends_are_present);
    kd_status status = open_all(&err);
    if (status == KD_OK) {
        if (with[0]->v->check_bf16(with[0], &err) != KD_OK)
            snprintf(no_bf16, sizeof no_bf16, "%s", err.msg);
        add_linears();
        add_convs();
        add_others();
        add_losses();
        for (size_t i = 0; i < count; i++)
            add_test(tests, &n, &list[i]);
        for (size_t i = 0; i < larges; i++)
            add_test(tests, &n, &large[i]);
    } else if (status == KD_ENODEVICE) {
        snprintf(missing, sizeof missing, "%s", err.msg);
    } else {
        printf("device cpu: %s\n", err.msg);
        return 1;
    }
    int failed = _cmocka_run_group_tests("threads", tests, n, NULL, NULL);
    for (int i = 0; i < COUNTS; i++)
        kd_backend_close(with[i]);
    kd_free(tests);
    return failed;
}

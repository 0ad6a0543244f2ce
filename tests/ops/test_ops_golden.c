/* ref against PyTorch: forward, gradients, running statistics and ten AdamW steps from tests/golden/ops/ops.safetensors, rotary positions by DINOv3's own code from
 * rope.safetensors, the ops of convolutional students from cnn.safetensors, the loss of an adjoint target from encode.safetensors (recipes: make_ops.py, make_rope.py, make_cnn.py and
 * make_encode.py beside them); the losses of tests/golden/losses/losses.safetensors (make_losses.py) on the cpu backend and on the emulated CUDA device too. PyTorch computed in double, so what is left is one rounding to f32
 * on either side. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "common/base/mem.h"
#include "common/weights/weights.h"
#include "tests/ops/harness.h"

enum { OPS, ROPE, CNN, LOSSES, ENCODE, FILES };
static const char *const golden_path[FILES] = {"tests/golden/ops/ops.safetensors", "tests/golden/ops/rope.safetensors", "tests/golden/ops/cnn.safetensors", "tests/golden/losses/losses.safetensors",
                                               "tests/golden/ops/encode.safetensors"};
static kd_weights *files[FILES], *golden; /* golden: the one of the running test */
static kd_backend *ref, *others[2]; /* cpu, cuda on an emulated device; NULL where the module is missing */

/* Attributes of the recorded cases; shapes come from the file. */
static const kd_op_desc recorded[] = {
    {.name = "conv_stem", .kind = KD_OP_CONV2D, .kernel = 7, .stride = 2, .pad = 3, .bias = 1, .act = KD_ACT_RELU},
    {.name = "conv_3x3", .kind = KD_OP_CONV2D, .kernel = 3, .stride = 1, .pad = 1},
    {.name = "conv_patch", .kind = KD_OP_CONV2D, .kernel = 7, .stride = 7, .bias = 1},
    {.name = "linear_gelu", .kind = KD_OP_LINEAR, .bias = 1, .act = KD_ACT_GELU},
    {.name = "linear_plain", .kind = KD_OP_LINEAR},
    {.name = "batch_norm", .kind = KD_OP_BATCH_NORM, .eps = 1e-5f, .momentum = 0.1f},
    {.name = "batch_norm_join", .kind = KD_OP_BATCH_NORM, .eps = 1e-5f, .momentum = 0.1f, .act = KD_ACT_RELU},
    {.name = "batch_norm_eval", .kind = KD_OP_BATCH_NORM, .eps = 1e-5f, .momentum = 0.1f, .act = KD_ACT_RELU},
    {.name = "layer_norm", .kind = KD_OP_LAYER_NORM, .eps = 1e-6f},
    {.name = "attention", .kind = KD_OP_ATTENTION, .heads = 3},
    {.name = "gelu", .kind = KD_OP_GELU},
    {.name = "relu", .kind = KD_OP_RELU},
    {.name = "silu_gate", .kind = KD_OP_SILU_GATE},
    {.name = "scale_add", .kind = KD_OP_SCALE_ADD},
    {.name = "add_relu", .kind = KD_OP_ADD, .act = KD_ACT_RELU},
    {.name = "mse", .kind = KD_OP_MSE},
    {.name = "max_pool", .kind = KD_OP_MAX_POOL, .kernel = 3, .stride = 2, .pad = 1},
    {.name = "max_pool_ties", .kind = KD_OP_MAX_POOL, .kernel = 3, .stride = 2, .pad = 1},
    {.name = "resize_up", .kind = KD_OP_RESIZE_BILINEAR},
    {.name = "resize_down", .kind = KD_OP_RESIZE_BILINEAR},
    {.name = "mean_tokens", .kind = KD_OP_MEAN_TOKENS},
    {.name = "tokens", .kind = KD_OP_TOKENS, .positions = 1},
    {.name = "rope_narrow", .kind = KD_OP_ROPE, .heads = 2, .begin = 5, .grid_h = 3, .grid_w = 4},
    {.name = "rope_wide", .kind = KD_OP_ROPE, .heads = 1, .begin = 1, .grid_h = 1, .grid_w = 3},
    {.name = "rope_no_prefix", .kind = KD_OP_ROPE, .heads = 3, .grid_h = 5, .grid_w = 2},
    {.name = "conv_depthwise", .kind = KD_OP_CONV2D, .kernel = 5, .stride = 2, .pad = 2, .groups = 6, .bias = 1},
    {.name = "conv_groups", .kind = KD_OP_CONV2D, .kernel = 3, .stride = 1, .pad = 1, .groups = 3},
    {.name = "silu", .kind = KD_OP_SILU},
    {.name = "hardswish", .kind = KD_OP_HARDSWISH},
    {.name = "hardsigmoid", .kind = KD_OP_HARDSIGMOID},
    {.name = "batch_norm_silu", .kind = KD_OP_BATCH_NORM, .eps = 1e-3f, .momentum = 0.03f, .act = KD_ACT_SILU},
    {.name = "batch_norm_hardswish", .kind = KD_OP_BATCH_NORM, .eps = 1e-3f, .momentum = 0.03f, .act = KD_ACT_HARDSWISH},
    {.name = "channel_gate", .kind = KD_OP_CHANNEL_GATE},
    {.name = "channel_slice", .kind = KD_OP_CHANNEL_SLICE, .begin = 4},
    {.name = "concat", .kind = KD_OP_CONCAT},
    {.name = "row_scale", .kind = KD_OP_ROW_SCALE},
    {.name = "qkv_by_head", .kind = KD_OP_QKV_BY_HEAD, .heads = 2, .key_dim = 3},
    {.name = "mse_adjoint", .kind = KD_OP_MSE_ADJOINT, .grid_h = 9, .grid_w = 7},
    {.name = "l2_normalize", .kind = KD_OP_L2_NORMALIZE},
    {.name = "l2_normalize_zero", .kind = KD_OP_L2_NORMALIZE},
    {.name = "cosine", .kind = KD_OP_COSINE},
    {.name = "cosine_zero", .kind = KD_OP_COSINE},
    {.name = "smooth_l1", .kind = KD_OP_SMOOTH_L1, .beta = 1},
    {.name = "smooth_l1_beta2", .kind = KD_OP_SMOOTH_L1, .beta = 2},
    {.name = "kl_logits", .kind = KD_OP_KL_LOGITS, .temperature = 4},
    {.name = "kl_logits_cold", .kind = KD_OP_KL_LOGITS, .temperature = 1},
    {.name = "kl_queue_wrap_1", .kind = KD_OP_KL_QUEUE, .temperature = 0.07f},
    {.name = "kl_queue_wrap_2", .kind = KD_OP_KL_QUEUE, .temperature = 0.07f},
    {.name = "kl_queue_wrap_3", .kind = KD_OP_KL_QUEUE, .temperature = 0.07f},
    {.name = "kl_queue_wrap_eval", .kind = KD_OP_KL_QUEUE, .temperature = 0.07f},
    {.name = "kl_queue_equal_1", .kind = KD_OP_KL_QUEUE, .temperature = 0.07f},
    {.name = "kl_queue_equal_2", .kind = KD_OP_KL_QUEUE, .temperature = 0.07f},
    {.name = "kl_queue_equal_3", .kind = KD_OP_KL_QUEUE, .temperature = 0.07f},
    {.name = "kl_queue_equal_eval", .kind = KD_OP_KL_QUEUE, .temperature = 0.07f},
    {.name = "kl_queue_short_1", .kind = KD_OP_KL_QUEUE, .temperature = 0.07f},
    {.name = "kl_queue_short_2", .kind = KD_OP_KL_QUEUE, .temperature = 0.07f},
    {.name = "kl_queue_short_3", .kind = KD_OP_KL_QUEUE, .temperature = 0.07f},
    {.name = "kl_queue_short_eval", .kind = KD_OP_KL_QUEUE, .temperature = 0.07f},
    {.name = "kl_intra", .kind = KD_OP_KL_INTRA, .temperature = 0.07f},
    {.name = "kl_intra_map", .kind = KD_OP_KL_INTRA, .temperature = 0.07f},
    {.name = "gram", .kind = KD_OP_GRAM},
    {.name = "gram_map", .kind = KD_OP_GRAM},
    {.name = "koleo", .kind = KD_OP_KOLEO},
    {.name = "koleo_twins", .kind = KD_OP_KOLEO},
};
enum { RECORDED = sizeof recorded / sizeof *recorded };

/* Index of "CASE.tensor", or -1. */
static int find(const char *name, const char *fmt, int i) {
    char tensor[40], full[100];
    snprintf(tensor, sizeof tensor, fmt, i);
    snprintf(full, sizeof full, "%s.%s", name, tensor);
    return kd_weights_find(golden, full);
}

static float *read_tensor(int i, size_t *n) {
    kd_err err = {0};
    if (i < 0)
        return NULL;
    kd_tensor info = kd_weights_info(golden, i);
    *n = kd_tensor_numel(&info);
    float *out = kd_calloc(*n, sizeof *out);
    assert_non_null(out);
    if (kd_weights_read_f32(golden, i, out, *n, &err) != KD_OK)
        fail_msg("%s", err.msg);
    return out;
}

static kd_tdesc desc_of(int i) {
    kd_tdesc t = {.dtype = KD_F32};
    if (i < 0)
        return t;
    kd_tensor info = kd_weights_info(golden, i);
    assert_in_range(info.rank, 1, KD_OP_MAX_RANK);
    t.rank = info.rank;
    memcpy(t.shape, info.shape, (size_t)info.rank * sizeof *t.shape);
    return t;
}

static void read_periods(kd_op_desc *d) {
    size_t n = 0;
    float *period = read_tensor(find(d->name, "period", 0), &n);
    assert_true(period && n <= KD_OP_MAX_PERIODS);
    memcpy(d->period, period, n * sizeof *period);
    d->periods = (int)n;
    kd_free(period);
}

/* Desc and inputs of a recorded case; gradients are asked for wherever the file has them, and added to zero. */
static ops_inputs load(ops_case *c) {
    kd_op_desc *d = &c->desc;
    ops_inputs in = {0};
    size_t n;
    snprintf(c->label, sizeof c->label, "%s", d->name);
    d->y = desc_of(find(d->name, "y", 0));
    in.dy = read_tensor(find(d->name, "dy", 0), &n);
    d->train = in.dy != NULL;
    if (d->kind == KD_OP_ROPE)
        read_periods(d);
    for (int i = 0; i < KD_OP_MAX_X && find(d->name, "x%d", i) >= 0; i++) {
        d->inputs = i + 1;
        d->x[i] = desc_of(find(d->name, "x%d", i));
        in.x[i] = read_tensor(find(d->name, "x%d", i), &n);
        if (find(d->name, "dx%d", i) >= 0) {
            d->need_dx |= 1u << i;
            in.dx[i] = kd_calloc(n, sizeof(float));
        }
    }
    for (int i = 0; i < KD_OP_MAX_PARAM; i++) {
        in.param[i] = read_tensor(find(d->name, "param%d", i), &n);
        if (in.param[i] && d->train) {
            d->need_dparam = 1;
            in.dparam[i] = kd_calloc(n, sizeof(float));
        }
    }
    for (int i = 0; i < KD_OP_MAX_STATE; i++)
        in.state[i] = read_tensor(find(d->name, "state%d", i), &n);
    if (d->kind == KD_OP_KL_QUEUE)
        d->queue_rows = (int)desc_of(find(d->name, "state0", 0)).shape[0];
    return in;
}

/* The file that has the case; golden is it from here on. */
static int file_of(const char *name) {
    for (int f = 0; f < FILES; f++) {
        golden = files[f];
        if (find(name, "y", 0) >= 0)
            return f;
    }
    fail_msg("no golden file has the case %s", name);
    return -1;
}

static void compare(const ops_case *c, const char *fmt, int i, const float *got, double tolerance) {
    char tensor[40];
    size_t n = 0;
    int at = find(c->desc.name, fmt, i);
    snprintf(tensor, sizeof tensor, fmt, i);
    float *want = read_tensor(at, &n);
    if (want)
        ops_compare_tensor("PyTorch", c, tensor, got, want, n, tolerance);
    kd_free(want);
}

static void check_run(kd_backend *b, const ops_case *c, const ops_inputs *in, double tolerance) {
    ops_results r = ops_run(b, c, in, 0);
    compare(c, "y", 0, r.y, tolerance);
    for (int i = 0; i < KD_OP_MAX_X; i++)
        compare(c, "dx%d", i, r.dx[i], tolerance);
    for (int i = 0; i < KD_OP_MAX_PARAM; i++)
        compare(c, "dparam%d", i, r.dparam[i], tolerance);
    for (int i = 0; i < KD_OP_MAX_STATE; i++)
        compare(c, "state%d_after", i, r.state[i], tolerance);
    ops_results_free(&r);
}

static void matches_pytorch(void **state) {
    ops_case c = {.desc = *(const kd_op_desc *)*state};
    int file = file_of(c.desc.name);
    ops_inputs in = load(&c);
    check_run(ref, &c, &in, OPS_TOLERANCE_GOLDEN);
    for (int i = 0; i < 2; i++)
        if (file == LOSSES && others[i] != NULL)
            check_run(others[i], &c, &in, ops_tolerance_vs_ref(c.desc.kind).f32);
    ops_inputs_free(&in);
}

/* Every tensor of the files belongs to a case that is run; what encode.safetensors has beside the loss is test_ops_encode's. */
static void every_recorded_tensor_is_used(void **state) {
    (void)state;
    for (int f = 0; f < ENCODE; f++)
        for (int i = 0; i < kd_weights_count(files[f]); i++) {
            const char *name = kd_weights_info(files[f], i).name;
            size_t length = strcspn(name, "."), known = strncmp(name, "adamw.", 6) == 0 || strncmp(name, "table_", 6) == 0;
            for (int k = 0; k < RECORDED; k++)
                known |= strlen(recorded[k].name) == length && strncmp(name, recorded[k].name, length) == 0;
            if (!known)
                fail_msg("%s: no case uses tensor %s", golden_path[f], name);
        }
}

/* One unit in the last place of numbers below 1 (PyTorch's sines may be that far off); an angle that was rounded elsewhere would show as up to 4.8e-7. */
static void rope_tables_match_dinov3(void **state) {
    (void)state;
    static const kd_op_desc list[] = {
        {.name = "table_14x14", .grid_h = 14, .grid_w = 14}, {.name = "table_64x37", .grid_h = 64, .grid_w = 37}, {.name = "table_9x5", .grid_h = 9, .grid_w = 5}};
    golden = files[ROPE];
    for (size_t k = 0; k < sizeof list / sizeof *list; k++) {
        kd_op_desc d = list[k];
        size_t n = 0;
        read_periods(&d);
        float *want = read_tensor(find(d.name, "lines", 0), &n), *got = kd_calloc(n, sizeof *got);
        assert_true(want && got && n == kd_op_rope_table_floats(&d));
        kd_op_rope_table(&d, got);
        for (size_t i = 0; i < n; i++)
            if (!(fabs((double)got[i] - (double)want[i]) <= 6e-8))
                fail_msg("%s: value %zu is %.9g, DINOv3 has %.9g", d.name, i, (double)got[i], (double)want[i]);
        kd_free(want);
        kd_free(got);
    }
}

/* torch.nn.utils.clip_grad_norm_(1.0), then torch.optim.AdamW with one decayed and one undecayed group, ten times. */
static void ten_adamw_steps_match_pytorch(void **state) {
    (void)state;
    enum { N = 50, DECAYED = 30 };
    golden = files[OPS];
    kd_err err = {0};
    float m[N] = {0}, v[N] = {0}, sumsq = 0, scale = 0;
    int clipped = 0;
    size_t n;
    float *w = read_tensor(find("adamw", "w0", 0), &n);
    assert_true(w && n == N);
    for (int t = 1; t <= 10; t++) {
        float *g = read_tensor(find("adamw", "g%d", t - 1), &n), *norm = read_tensor(find("adamw", "norm%d", t - 1), &n), *want = read_tensor(find("adamw", "w%d", t), &n);
        assert_true(g && norm && want);
        assert_int_equal(ref->v->sum_squares(ref, &sumsq, g, N, &err), KD_OK);
        assert_true(fabs(sqrt((double)sumsq) - (double)*norm) <= 1e-6 * (double)*norm);
        assert_int_equal(ref->v->clip_scale(ref, &scale, &sumsq, 1.0f, &err), KD_OK);
        clipped += scale < 1;
        kd_adamw h = {.lr = 2e-3, .beta1 = 0.9, .beta2 = 0.999, .eps = 1e-8, .weight_decay = 0.05, .step = t};
        assert_int_equal(ref->v->adamw(ref, w, g, m, v, DECAYED, &h, &scale, &err), KD_OK);
        h.weight_decay = 0;
        assert_int_equal(ref->v->adamw(ref, w + DECAYED, g + DECAYED, m + DECAYED, v + DECAYED, N - DECAYED, &h, &scale, &err), KD_OK);
        for (int i = 0; i < N; i++)
            if (!(fabs((double)w[i] - (double)want[i]) <= 5e-7 * fmax(fabs((double)want[i]), 0.1)))
                fail_msg("step %d: w[%d] is %.9g, PyTorch has %.9g", t, i, (double)w[i], (double)want[i]);
        kd_free(g);
        kd_free(norm);
        kd_free(want);
    }
    assert_int_equal(clipped, 5); /* both sides of the limit were visited */
    kd_free(w);
}

int main(void) {
    kd_err err = {0};
    struct CMUnitTest tests[RECORDED + 3];
    size_t n = 0;
    for (int f = 0; f < FILES; f++)
        if (kd_weights_open(&files[f], golden_path[f], &err) != KD_OK) {
            printf("%s\n", err.msg);
            return 1;
        }
    ref = ops_open_ref();
    ops_use_emulated();
    for (int i = 0; i < 2; i++)
        if (kd_backend_open(&others[i], i == 0 ? "cpu" : "cuda", 2, &err) != KD_OK)
            printf("without one backend: %s\n", err.msg);
    tests[n++] = (struct CMUnitTest)cmocka_unit_test(every_recorded_tensor_is_used);
    tests[n++] = (struct CMUnitTest)cmocka_unit_test(rope_tables_match_dinov3);
    tests[n++] = (struct CMUnitTest)cmocka_unit_test(ten_adamw_steps_match_pytorch);
    for (int i = 0; i < RECORDED; i++)
        tests[n++] = (struct CMUnitTest){recorded[i].name, matches_pytorch, NULL, NULL, (void *)(uintptr_t)&recorded[i]};
    int failed = _cmocka_run_group_tests("golden ops", tests, n, NULL, NULL);
    ops_print_measured();
    kd_backend_close(ref);
    for (int i = 0; i < 2; i++)
        kd_backend_close(others[i]);
    for (int f = 0; f < FILES; f++)
        kd_weights_close(files[f]);
    return failed;
}

/* The graph: fusion, gradients, programs, parameters and refused sizes. On the reference backend. */
#include "tests/unit/graph_fixture.h"

#include <math.h>
#include <stdlib.h>

#include "common/base/mem.h"

/* ---- gradients ---- */

/* ---- stopping ---- */

typedef struct countdown {
    int left, asked;
} countdown;

static kd_status count_down(void *ctx, kd_err *e) {
    countdown *c = ctx;
    c->asked++;
    return c->left-- > 0 ? KD_OK : kd_fail(e, KD_ESIGTERM, "enough");
}

/* A pass can be ended before any of its ops, forwards and backwards, and the next one is right. */
static void a_pass_ends_between_two_ops(void **state) {
    (void)state;
    fixture f;
    kd_exec *e;
    make(&f);
    countdown c = {.left = 1 << 20};
    kd_exec_config config = {.batch = BATCH, .precision = KD_F32, .train = 1, .stop = count_down, .stop_ctx = &c};
    must(kd_exec_create(&e, f.g, f.p, &config, &err));
    int64_t counter = kd_params_counter(f.p);
    double want = loss(e);
    int forward = c.asked;
    must(kd_exec_backward(e, 0, &err));
    int both = c.asked;
    assert_true(forward > 10 && both > forward);
    for (int n = 0; n < both; n++) {
        c = (countdown){.left = n};
        kd_status status = kd_exec_forward(e, &err);
        assert_int_equal(status, n < forward ? KD_ESIGTERM : KD_OK);
        if (n >= forward)
            assert_int_equal(kd_exec_backward(e, 0, &err), KD_ESIGTERM);
        assert_int_equal(c.asked, n + 1);
    }
    assert_int_equal(kd_params_counter(f.p), counter + 1 + both - forward); /* passes that came to their end */
    c.left = 1 << 20;
    assert_true(loss(e) == want);
    kd_exec_destroy(e);
    drop(&f);
}

static void gradients_equal_differences_through_the_whole_graph(void **state) {
    (void)state;
    fixture f;
    make(&f);
    kd_exec *e = compile(&f, KD_F32, 1);
    check_gradients(f.p, e, loss);
    kd_exec_destroy(e);
    drop(&f);
}

static void accumulated_gradients_are_sums_and_others_start_from_zero(void **state) {
    (void)state;
    fixture f;
    make(&f);
    kd_exec *e = compile(&f, KD_F32, 1);
    size_t total;
    float *once = NULL;
    kd_params_trained(f.p, NULL, &total);
    must(kd_alloc_array(&once, total, sizeof *once, &err));
    (void)loss(e);
    must(kd_exec_backward(e, 0, &err));
    memcpy(once, kd_exec_gradients(e), total * sizeof *once);
    (void)loss(e);
    must(kd_exec_backward(e, 0, &err));
    assert_memory_equal(once, kd_exec_gradients(e), total * sizeof *once);
    (void)loss(e);
    must(kd_exec_backward(e, 1, &err));
    for (size_t k = 0; k < total; k++)
        assert_float_equal(kd_exec_gradients(e)[k], 2 * once[k], 1e-6 + 1e-5 * fabs((double)once[k]));
    kd_free(once);
    kd_exec_destroy(e);
    drop(&f);
}

/* ---- programs ---- */

/* A training program in which the running statistics are those of the batch gives what an inference program gives: fused equals unfused. */
static void fused_inference_equals_the_unfused_forward_pass(void **state) {
    (void)state;
    kd_graph *g = kd_graph_create();
    kd_params *p = NULL;
    kd_exec *train = NULL, *infer = NULL;
    kd_val x = kd_graph_input(g, "x", 2, (int64_t[]){5, 8});
    kd_val y = kd_graph_act(g, kd_graph_linear(g, x, "a", 16, 1), KD_ACT_GELU);
    y = kd_graph_scale_add(g, x, kd_graph_linear(g, y, "b", 8, 1), "gamma");
    kd_val z = kd_graph_add(g, kd_graph_linear(g, y, "c", 8, 0), y);
    kd_val twice = kd_graph_linear(g, z, "e", 8, 1); /* read by two nodes: stays */
    z = kd_graph_add(g, twice, kd_graph_act(g, twice, KD_ACT_GELU));
    kd_val tapped = kd_graph_linear(g, z, "d", 8, 1);
    kd_graph_output(g, tapped, "tapped"); /* an output isn't fused away */
    kd_graph_output(g, kd_graph_act(g, tapped, KD_ACT_RELU), "relu");
    must(kd_params_create(&p, g, ref, &err));
    float buf[256], in[2 * 40], got[2 * 40], want[2 * 40];
    must(formula_params(p, buf, &err));
    formula_targets(in, "x", 80);
    must(kd_exec_create(&train, g, p, &(kd_exec_config){.batch = 2, .train = 1}, &err));
    must(kd_exec_create(&infer, g, p, &(kd_exec_config){.batch = 2}, &err));
    assert_int_equal(train->node_count, 11);
    assert_int_equal(infer->node_count, 8); /* a+gelu, b+scale_add, c+add, e, gelu, add, d, relu */
    must(kd_exec_upload(train, "x", in, &err));
    must(kd_exec_upload(infer, "x", in, &err));
    must(kd_exec_forward(train, &err));
    must(kd_exec_forward(infer, &err));
    const char *const outputs[] = {"tapped", "relu"};
    for (int o = 0; o < 2; o++) {
        must(kd_exec_download(train, outputs[o], 2, want, &err));
        must(kd_exec_download(infer, outputs[o], 2, got, &err));
        for (int i = 0; i < 80; i++)
            assert_float_equal(got[i], want[i], 1e-5);
    }
    kd_exec_destroy(train);
    kd_exec_destroy(infer);
    kd_params_destroy(p);
    kd_graph_destroy(g);
}

/* The fused op wants a residual of its result's type; a bf16 residual keeps its own node. */
static void a_residual_of_another_type_is_not_fused(void **state) {
    (void)state;
    kd_graph *g = kd_graph_create();
    kd_params *p = NULL;
    kd_exec *e = NULL;
    kd_val x = kd_graph_layer_norm(g, kd_graph_input(g, "x", 1, (int64_t[]){8}), "norm", 1e-6f);
    kd_graph_output(g, kd_graph_add(g, x, kd_graph_linear(g, x, "a", 8, 1)), "y");
    must(kd_params_create(&p, g, ref, &err));
    for (int bf16 = 0; bf16 < 2; bf16++) {
        must(kd_exec_create(&e, g, p, &(kd_exec_config){.batch = 2, .precision = bf16 ? KD_BF16 : KD_F32}, &err));
        assert_int_equal(e->node_count, bf16 ? 3 : 2);
        kd_exec_destroy(e);
    }
    kd_params_destroy(p);
    kd_graph_destroy(g);
}

static void weights_are_packed_once_per_change(void **state) {
    (void)state;
    fixture f;
    make(&f);
    kd_exec *infer = compile(&f, KD_F32, 0), *train = compile(&f, KD_F32, 1);
    size_t before = packs;
    (void)loss(train);
    assert_int_equal(packs - before, train->node_count);
    (void)loss(train); /* batch statistics moved, weights didn't */
    assert_int_equal(packs - before, train->node_count);
    before = packs;
    must(kd_exec_forward(infer, &err));
    must(kd_exec_forward(infer, &err));
    assert_int_equal(packs - before, infer->node_count);
    (void)loss(train); /* running statistics may be packed into an inference program */
    must(kd_exec_forward(infer, &err));
    assert_int_equal(packs - before, 2 * (size_t)infer->node_count);
    kd_params_changed(f.p);
    must(kd_exec_forward(infer, &err));
    assert_int_equal(packs - before, 3 * (size_t)infer->node_count);
    kd_exec_destroy(infer);
    kd_exec_destroy(train);
    drop(&f);
}

static void inference_has_neither_losses_nor_their_inputs(void **state) {
    (void)state;
    fixture f;
    make(&f);
    kd_exec *e = compile(&f, KD_F32, 0);
    float x;
    assert_null(kd_exec_output(e, "loss_cls", NULL));
    assert_int_equal(kd_exec_upload(e, "target_cls", f.target_cls, &err), KD_EFAIL);
    assert_non_null(strstr(err.msg, "target_cls"));
    assert_int_equal(kd_exec_download(e, "loss_map", 1, &x, &err), KD_EFAIL);
    for (int i = 0; i < e->node_count; i++) {
        assert_string_not_equal(e->nodes[i].desc.name, "head");
        assert_int_not_equal(e->nodes[i].desc.kind, KD_OP_MSE);
    }
    kd_exec_destroy(e);
    drop(&f);
}

static void programs_see_changed_parameters_and_statistics(void **state) {
    (void)state;
    fixture f;
    make(&f);
    kd_exec *infer = compile(&f, KD_F32, 0), *train = compile(&f, KD_F32, 1);
    float before[BATCH * WIDTH], after[BATCH * WIDTH], w[4096];
    must(kd_exec_forward(infer, &err));
    must(kd_exec_download(infer, "cls", BATCH, before, &err));
    assert_int_equal(kd_params_counter(f.p), 0);
    (void)loss(train); /* moves the running statistics */
    assert_int_equal(kd_params_counter(f.p), 1);
    must(kd_exec_forward(infer, &err));
    must(kd_exec_download(infer, "cls", BATCH, after, &err));
    assert_memory_not_equal(before, after, sizeof after);
    int i = kd_params_find(f.p, "norm.bias");
    must(kd_params_get(f.p, i, w, &err));
    w[3] += 1;
    must(kd_params_set(f.p, i, w, &err));
    memcpy(before, after, sizeof after);
    must(kd_exec_forward(infer, &err));
    must(kd_exec_download(infer, "cls", BATCH, after, &err));
    for (int k = 0; k < BATCH * WIDTH; k++)
        assert_float_equal(after[k] - before[k], (k % WIDTH == 3), 1e-5);
    kd_exec_destroy(infer);
    kd_exec_destroy(train);
    drop(&f);
}

static void a_part_of_the_batch_can_be_uploaded(void **state) {
    (void)state;
    fixture f;
    make(&f);
    kd_exec *whole = compile(&f, KD_F32, 0), *parts = compile(&f, KD_F32, 0);
    float a[BATCH * WIDTH], b[BATCH * WIDTH];
    uint8_t zero[sizeof f.pixels] = {0};
    must(kd_exec_upload(parts, "images", zero, &err));
    for (int r = BATCH - 1; r >= 0; r--)
        must(kd_exec_upload_rows(parts, "images", r, 1, f.pixels + r * SIDE * SIDE * 3, &err));
    must(kd_exec_forward(whole, &err));
    must(kd_exec_forward(parts, &err));
    must(kd_exec_download(whole, "cls", BATCH, a, &err));
    must(kd_exec_download(parts, "cls", 2, b, &err));
    assert_memory_equal(a, b, 2 * WIDTH * sizeof *a);
    kd_exec_destroy(whole);
    kd_exec_destroy(parts);
    drop(&f);
}

/* ---- types ---- */

static void bf16_keeps_residual_streams_predictions_and_losses_in_f32(void **state) {
    (void)state;
    fixture f;
    make(&f);
    kd_exec *e = compile(&f, KD_BF16, 1), *exact = compile(&f, KD_F32, 1);
    for (int i = 0; i < e->node_count; i++) {
        const kd_op_desc *d = &e->nodes[i].desc;
        int wide = d->kind == KD_OP_ADD || d->kind == KD_OP_SCALE_ADD || d->kind == KD_OP_TOKENS || d->kind == KD_OP_MEAN_TOKENS || d->kind == KD_OP_MSE ||
                   d->kind == KD_OP_TOKEN_SLICE || d->kind == KD_OP_CONCAT || d->kind == KD_OP_MAX_POOL || d->kind == KD_OP_RESIZE_BILINEAR || strcmp(d->name, "norm") == 0 ||
                   strncmp(d->name, "head", 4) == 0;
        if (d->y.dtype != (wide ? KD_F32 : KD_BF16))
            fail_msg("%s (%s) writes %s", d->name, kd_op_kind_name(d->kind), kd_dtype_name(d->y.dtype));
    }
    double a = loss(e), b = loss(exact);
    assert_true(fabs(a - b) < 0.03 * b);
    assert_true(a != b);
    kd_exec_destroy(e);
    kd_exec_destroy(exact);
    drop(&f);
}

static void a_bf16_output_is_widened_on_download(void **state) {
    (void)state;
    kd_graph *g = kd_graph_create();
    kd_params *p = NULL;
    kd_exec *e = NULL;
    kd_val x = kd_graph_input(g, "x", 1, (int64_t[]){4});
    kd_graph_output(g, kd_graph_layer_norm(g, x, "norm", 1e-6f), "y");
    must(kd_params_create(&p, g, ref, &err));
    must(kd_params_init(p, 0, &err));
    must(kd_exec_create(&e, g, p, &(kd_exec_config){.batch = 3, .precision = KD_BF16}, &err));
    float in[12] = {-3, -1, 1, 3, 0, 0, 1, 1, 7, 5, 3, 1}, out[12];
    must(kd_exec_upload(e, "x", in, &err));
    must(kd_exec_forward(e, &err));
    kd_tdesc d;
    assert_non_null(kd_exec_output(e, "y", &d));
    assert_int_equal(d.dtype, KD_BF16);
    must(kd_exec_download(e, "y", 3, out, &err));
    static const double want[12] = {-1.3416, -0.4472, 0.4472, 1.3416, -1, -1, 1, 1, 1.3416, 0.4472, -0.4472, -1.3416};
    for (int i = 0; i < 12; i++)
        assert_float_equal(out[i], want[i], 0.005);
    kd_exec_destroy(e);
    kd_params_destroy(p);
    kd_graph_destroy(g);
}

/* ---- parameters ---- */

static void parameters_lie_decayed_first_aligned_with_zero_padding(void **state) {
    (void)state;
    fixture f;
    make(&f);
    size_t decayed, total, covered = 0;
    const float *w = kd_params_trained(f.p, &decayed, &total);
    for (int i = 0; i < kd_params_count(f.p); i++) {
        kd_param_info info = kd_params_info(f.p, i);
        int token = strcmp(info.name, "cls_token") == 0 || strcmp(info.name, "pos_embed") == 0 || strcmp(info.name, "register_tokens") == 0;
        assert_int_equal(kd_params_find(f.p, info.name), i);
        assert_int_equal(info.decay, info.rank >= 2 && !token);
        if (info.is_counter || info.is_state)
            continue;
        assert_int_equal(f.p->offset[i] % 16, 0);
        assert_true(info.decay ? f.p->offset[i] + info.count <= decayed : f.p->offset[i] >= decayed);
        assert_true(f.p->offset[i] + info.count <= total);
        for (size_t k = info.count; k % 16; k++)
            assert_true(w[f.p->offset[i] + k] == 0);
        covered += (info.count + 15) / 16 * 16;
    }
    assert_int_equal(covered, total);
    drop(&f);
}

static void initial_values_depend_on_seed_and_name_only(void **state) {
    (void)state;
    kd_graph *g[2];
    kd_params *p[2];
    float a[3 * 70000];
    static float b[3 * 70000];
    for (int k = 0; k < 2; k++) {
        g[k] = kd_graph_create();
        kd_val x = kd_graph_input(g[k], "x", 1, (int64_t[]){3});
        if (k)
            x = kd_graph_linear(g[k], x, "first", 3, 1);
        x = kd_graph_linear(g[k], x, "big", 70000, 1);
        kd_graph_output(g[k], x, "y");
        must(kd_params_create(&p[k], g[k], ref, &err));
        must(kd_params_init(p[k], 7, &err));
    }
    must(kd_params_get(p[0], kd_params_find(p[0], "big.weight"), a, &err));
    must(kd_params_get(p[1], kd_params_find(p[1], "big.weight"), b, &err));
    assert_memory_equal(a, b, sizeof a);
    double sum = 0, square = 0, bound = 1 / sqrt(3.0);
    for (int i = 0; i < 210000; i++) {
        assert_true(fabs((double)a[i]) <= bound);
        sum += (double)a[i];
        square += (double)a[i] * (double)a[i];
    }
    assert_true(fabs(sum / 210000) < 0.005);
    assert_float_equal(square / 210000, bound * bound / 3, 0.002);
    assert_memory_not_equal(a, a + 65536, 1000 * sizeof *a); /* segments draw from different streams */
    must(kd_params_init(p[1], 8, &err));
    must(kd_params_get(p[1], kd_params_find(p[1], "big.weight"), b, &err));
    assert_memory_not_equal(a, b, 1000 * sizeof *a);
    for (int k = 0; k < 2; k++) {
        kd_params_destroy(p[k]);
        kd_graph_destroy(g[k]);
    }
}

/* ---- bad sizes ---- */

static void absurd_batches_are_refused(void **state) {
    (void)state;
    fixture f;
    make(&f);
    kd_exec *e = NULL;
    size_t live = kd_mem_live_bytes();
    assert_int_equal(kd_exec_create(&e, f.g, f.p, &(kd_exec_config){.batch = 0}, &err), KD_EUSAGE);
    assert_int_equal(kd_exec_create(&e, f.g, f.p, &(kd_exec_config){.batch = 2000000000}, &err), KD_EFAIL);
    assert_null(e);
    assert_int_equal(kd_mem_live_bytes(), live);
    drop(&f);
}

static void batch_norm_of_single_values_is_refused_in_training(void **state) {
    (void)state;
    kd_graph *g = kd_graph_create();
    kd_params *p = NULL;
    kd_exec *e = NULL;
    kd_val x = kd_graph_input(g, "x", 3, (int64_t[]){1, 1, 4});
    kd_graph_output(g, kd_graph_batch_norm(g, x, -1, "bn", 1e-5f, 0.1f, KD_ACT_NONE), "y");
    must(kd_params_create(&p, g, ref, &err));
    assert_int_equal(kd_exec_create(&e, g, p, &(kd_exec_config){.batch = 1, .train = 1}, &err), KD_EUSAGE);
    assert_non_null(strstr(err.msg, "bn"));
    must(kd_exec_create(&e, g, p, &(kd_exec_config){.batch = 1}, &err));
    kd_exec_destroy(e);
    kd_params_destroy(p);
    kd_graph_destroy(g);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_pass_ends_between_two_ops),
        cmocka_unit_test(gradients_equal_differences_through_the_whole_graph),
        cmocka_unit_test(accumulated_gradients_are_sums_and_others_start_from_zero),
        cmocka_unit_test(fused_inference_equals_the_unfused_forward_pass),
        cmocka_unit_test(a_residual_of_another_type_is_not_fused),
        cmocka_unit_test(weights_are_packed_once_per_change),
        cmocka_unit_test(inference_has_neither_losses_nor_their_inputs),
        cmocka_unit_test(programs_see_changed_parameters_and_statistics),
        cmocka_unit_test(a_part_of_the_batch_can_be_uploaded),
        cmocka_unit_test(bf16_keeps_residual_streams_predictions_and_losses_in_f32),
        cmocka_unit_test(a_bf16_output_is_widened_on_download),
        cmocka_unit_test(parameters_lie_decayed_first_aligned_with_zero_padding),
        cmocka_unit_test(initial_values_depend_on_seed_and_name_only),
        cmocka_unit_test(absurd_batches_are_refused),
        cmocka_unit_test(batch_norm_of_single_values_is_refused_in_training),
    };
    return cmocka_run_group_tests(tests, open_ref, close_ref);
}

/* What the graphs of convolutional networks need beside ResNet's: grouped convolutions, channel slices and concatenations of several values, gates, drop path, attention by head,
 * activations of their own, scales of any shape, initial values. On the reference backend. */
#include "tests/unit/graph_fixture.h"

#include "common/base/mem.h"

enum { MAP = 6, CHANNELS = 8, IMAGES = 2, KEY = 2, HEADS = 2, TARGETS = 3 };

/* One of everything. `a` is read by two slices, a convolution, a shortcut and a concatenation: their gradients add. */
static void build_cnn(kd_graph *g) {
    kd_val x = kd_graph_input(g, "x", 3, (int64_t[]){MAP, MAP, 3}), drop = kd_graph_input(g, "drop", 1, (int64_t[]){1});
    kd_val a = kd_graph_batch_norm(g, kd_graph_conv2d(g, x, "stem", CHANNELS, 3, 1, 1, 0), -1, "bn1", 1e-3f, 0.03f, KD_ACT_SILU);
    kd_val left = kd_graph_channel_slice(g, a, 0, CHANNELS / 2), right = kd_graph_channel_slice(g, a, CHANNELS / 2, CHANNELS / 2);
    kd_val deep = kd_graph_conv2d_grouped(g, a, "depthwise", CHANNELS, 3, 1, 1, CHANNELS, 1);
    deep = kd_graph_batch_norm(g, deep, -1, "bn2", 1e-3f, 0.01f, KD_ACT_HARDSWISH);
    kd_val s = kd_graph_linear(g, kd_graph_mean_tokens(g, deep), "squeeze", 3, 1);
    s = kd_graph_act(g, kd_graph_linear(g, kd_graph_act(g, s, KD_ACT_RELU), "excite", CHANNELS, 1), KD_ACT_HARDSIGMOID);
    deep = kd_graph_row_scale(g, kd_graph_channel_gate(g, deep, s), drop);
    deep = kd_graph_shortcut(g, a, kd_graph_conv2d_grouped(g, deep, "groups", CHANNELS, 1, 1, 0, 2, 0));
    kd_val all = kd_graph_concat_n(g, (kd_val[]){left, right, deep, a}, 4);
    kd_val tokens = kd_graph_reshape(g, kd_graph_conv2d(g, all, "qkv", HEADS * (2 * KEY + 4), 1, 1, 0, 1), 2, (int64_t[]){MAP * MAP, HEADS * (2 * KEY + 4)});
    tokens = kd_graph_attention(g, kd_graph_qkv_by_head(g, tokens, HEADS, KEY), HEADS);
    kd_val map = kd_graph_reshape(g, tokens, 3, (int64_t[]){MAP, MAP, CHANNELS});
    map = kd_graph_scale_add_shaped(g, a, map, "layer_scale", 3, (int64_t[]){CHANNELS, 1, 1}, 0.5f);
    kd_graph_output(g, kd_graph_as_f32(g, map), "map");
    kd_graph_output(g, deep, "deep");
    kd_graph_mse(g, kd_graph_linear(g, kd_graph_mean_tokens(g, map), "head", TARGETS, 1), kd_graph_input(g, "target", 1, (int64_t[]){TARGETS}), 1.0f, "loss");
}

static double cnn_loss(kd_exec *e) {
    float y;
    must(kd_exec_forward(e, &err));
    must(kd_exec_download(e, "loss", 1, &y, &err));
    return (double)y;
}

typedef struct cnn {
    kd_graph *g;
    kd_params *p;
} cnn;

static cnn make_cnn(void) {
    cnn c = {.g = kd_graph_create()};
    float buf[4096];
    build_cnn(c.g);
    must(kd_params_create(&c.p, c.g, ref, &err));
    must(formula_params(c.p, buf, &err));
    return c;
}

static void drop_cnn(cnn *c) {
    kd_params_destroy(c->p);
    kd_graph_destroy(c->g);
}

static kd_exec *compile_cnn(const cnn *c, kd_dtype precision, int train) {
    kd_exec *e = NULL;
    float x[IMAGES * MAP * MAP * 3], target[IMAGES * TARGETS];
    formula_targets(x, "x", IMAGES * MAP * MAP * 3);
    formula_targets(target, "target", IMAGES * TARGETS);
    must(kd_exec_create(&e, c->g, c->p, &(kd_exec_config){.batch = IMAGES, .precision = precision, .train = train}, &err));
    must(kd_exec_upload(e, "x", x, &err));
    if (train) {
        must(kd_exec_upload(e, "target", target, &err));
        must(kd_exec_upload(e, "drop", (float[]){1.25f, 0.75f}, &err));
    }
    return e;
}

static void gradients_equal_differences(void **state) {
    (void)state;
    cnn c = make_cnn();
    kd_exec *e = compile_cnn(&c, KD_F32, 1);
    check_gradients(c.p, e, cnn_loss);
    kd_exec_destroy(e);
    drop_cnn(&c);
}

/* A dropped branch (s = 0) leaves the shortcut alone, and no gradient reaches what lies behind it. */
static void a_dropped_branch_leaves_the_shortcut(void **state) {
    (void)state;
    kd_graph *g = kd_graph_create();
    kd_params *p = NULL;
    kd_exec *e = NULL;
    kd_val x = kd_graph_input(g, "x", 1, (int64_t[]){4}), s = kd_graph_input(g, "s", 1, (int64_t[]){1});
    kd_val a = kd_graph_linear(g, x, "a", 4, 0), b = kd_graph_linear(g, a, "b", 4, 0);
    kd_val y = kd_graph_add(g, a, kd_graph_row_scale(g, b, s));
    kd_graph_output(g, a, "a");
    kd_graph_output(g, y, "y");
    kd_graph_mse(g, y, kd_graph_input(g, "t", 1, (int64_t[]){4}), 1.0f, "loss");
    must(kd_params_create(&p, g, ref, &err));
    must(kd_params_init(p, 1, &err));
    must(kd_exec_create(&e, g, p, &(kd_exec_config){.batch = 2, .train = 1}, &err));
    must(kd_exec_upload(e, "x", (float[]){1, 2, 3, 4, 4, 3, 2, 1}, &err));
    must(kd_exec_upload(e, "t", (float[]){0, 0, 0, 0, 0, 0, 0, 0}, &err));
    must(kd_exec_upload(e, "s", (float[]){0, 0}, &err));
    must(kd_exec_forward(e, &err));
    float got[8], want[8];
    must(kd_exec_download(e, "y", 2, got, &err));
    must(kd_exec_download(e, "a", 2, want, &err));
    assert_memory_equal(got, want, sizeof got);
    must(kd_exec_backward(e, 0, &err));
    const float *gradient = kd_exec_gradients(e);
    for (size_t k = 0; k < 16; k++)
        assert_true(gradient[p->offset[kd_params_find(p, "a.weight")] + k] != 0 && gradient[p->offset[kd_params_find(p, "b.weight")] + k] == 0);
    kd_exec_destroy(e);
    kd_params_destroy(p);
    kd_graph_destroy(g);
}

/* Outside training drop path is no op, its factor no input, and what a linear layer fuses with it isn't in the way of. */
static void inference_has_no_drop_path(void **state) {
    (void)state;
    kd_graph *g = kd_graph_create();
    kd_params *p = NULL;
    kd_exec *train = NULL, *infer = NULL;
    kd_val x = kd_graph_input(g, "x", 1, (int64_t[]){4}), s = kd_graph_input(g, "s", 1, (int64_t[]){1});
    kd_val a = kd_graph_layer_norm(g, x, "norm", 1e-6f);
    kd_val y = kd_graph_add(g, a, kd_graph_row_scale(g, kd_graph_row_scale(g, kd_graph_linear(g, a, "a", 4, 1), s), s));
    kd_graph_output(g, kd_graph_row_scale(g, y, s), "y");
    must(kd_params_create(&p, g, ref, &err));
    must(kd_params_init(p, 1, &err));
    must(kd_exec_create(&train, g, p, &(kd_exec_config){.batch = 1, .train = 1}, &err));
    must(kd_exec_create(&infer, g, p, &(kd_exec_config){.batch = 1}, &err));
    assert_int_equal(infer->node_count, 2); /* norm, a joined */
    assert_int_equal(infer->input_count, 1);
    float one = 1, got[4], want[4], in[] = {1, 5, -3, 2};
    assert_int_equal(kd_exec_upload(infer, "s", &one, &err), KD_EFAIL);
    must(kd_exec_upload(infer, "x", in, &err));
    must(kd_exec_upload(train, "x", in, &err));
    must(kd_exec_upload(train, "s", &one, &err));
    must(kd_exec_forward(infer, &err));
    must(kd_exec_forward(train, &err));
    must(kd_exec_download(infer, "y", 1, got, &err));
    must(kd_exec_download(train, "y", 1, want, &err));
    for (int i = 0; i < 4; i++)
        assert_float_equal(got[i], want[i], 1e-6);
    kd_exec_destroy(train);
    kd_exec_destroy(infer);
    kd_params_destroy(p);
    kd_graph_destroy(g);
}

static const kd_pnode *node_of(const kd_exec *e, kd_op_kind kind, int skip) {
    for (int i = 0; i < e->node_count; i++)
        if (e->nodes[i].desc.kind == kind && skip-- == 0)
            return &e->nodes[i];
    fail_msg("the program has no %s", kd_op_kind_name(kind));
    return NULL;
}

/* Maps stay bf16 through slices, gates, drop path, shortcuts and concatenations; LayerScale's join and what is asked for in f32 are f32. */
static void bf16_stays_inside_the_network(void **state) {
    (void)state;
    cnn c = make_cnn();
    for (int train = 0; train < 2; train++) {
        kd_exec *e = compile_cnn(&c, KD_BF16, train);
        static const kd_op_kind narrow[] = {KD_OP_CHANNEL_SLICE, KD_OP_CHANNEL_GATE, KD_OP_ADD, KD_OP_CONCAT, KD_OP_QKV_BY_HEAD, KD_OP_ATTENTION, KD_OP_HARDSIGMOID, KD_OP_BATCH_NORM};
        for (size_t i = 0; i < sizeof narrow / sizeof *narrow; i++)
            assert_int_equal(node_of(e, narrow[i], 0)->desc.y.dtype, KD_BF16);
        assert_int_equal(node_of(e, KD_OP_SCALE_ADD, 0)->desc.y.dtype, KD_F32);
        if (train) {
            assert_int_equal(node_of(e, KD_OP_ROW_SCALE, 0)->desc.y.dtype, KD_BF16);
            assert_int_equal(node_of(e, KD_OP_ROW_SCALE, 0)->desc.x[1].dtype, KD_F32);
            (void)cnn_loss(e);
            must(kd_exec_backward(e, 0, &err));
        } else {
            must(kd_exec_forward(e, &err));
        }
        kd_exec_destroy(e);
    }
    drop_cnn(&c);
}

/* An activation that asks for f32 writes it itself. */
static void a_tapped_activation_is_f32(void **state) {
    (void)state;
    kd_graph *g = kd_graph_create();
    kd_params *p = NULL;
    kd_exec *e = NULL;
    kd_tdesc d;
    kd_val x = kd_graph_input(g, "x", 3, (int64_t[]){4, 4, 2});
    x = kd_graph_batch_norm(g, kd_graph_conv2d(g, x, "conv", 4, 1, 1, 0, 0), -1, "bn", 1e-3f, 0.1f, KD_ACT_SILU);
    kd_graph_output(g, kd_graph_as_f32(g, kd_graph_channel_slice(g, x, 1, 2)), "y");
    must(kd_params_create(&p, g, ref, &err));
    must(kd_exec_create(&e, g, p, &(kd_exec_config){.batch = 1, .precision = KD_BF16}, &err));
    assert_non_null(kd_exec_output(e, "y", &d));
    assert_int_equal(d.dtype, KD_F32);
    kd_exec_destroy(e);
    kd_params_destroy(p);
    kd_graph_destroy(g);
}

/* ---- parameters ---- */

static void shapes_and_decay_of_parameters(void **state) {
    (void)state;
    cnn c = make_cnn();
    static const struct {
        const char *name;
        int rank, decay;
        int64_t shape[4];
    } want[] = {{"depthwise.weight", 4, 1, {CHANNELS, 1, 3, 3}}, {"groups.weight", 4, 1, {CHANNELS, CHANNELS / 2, 1, 1}}, {"layer_scale", 3, 0, {CHANNELS, 1, 1}},
                {"depthwise.bias", 1, 0, {CHANNELS}}};
    for (size_t i = 0; i < sizeof want / sizeof *want; i++) {
        int at = kd_params_find(c.p, want[i].name);
        assert_true(at >= 0);
        kd_param_info info = kd_params_info(c.p, at);
        assert_int_equal(info.rank, want[i].rank);
        assert_int_equal(info.decay, want[i].decay);
        for (int k = 0; k < info.rank; k++)
            assert_int_equal(info.shape[k], want[i].shape[k]);
    }
    must(kd_params_init(c.p, 1, &err));
    float scale[CHANNELS];
    must(kd_params_get(c.p, kd_params_find(c.p, "layer_scale"), scale, &err));
    for (int i = 0; i < CHANNELS; i++)
        assert_true(scale[i] == 0.5f);
    drop_cnn(&c);
}

static double deviation(kd_params *p, const char *name) {
    static float values[1 << 17];
    int i = kd_params_find(p, name);
    size_t n = kd_params_info(p, i).count;
    double sum = 0;
    assert_true(n <= sizeof values / sizeof *values);
    must(kd_params_get(p, i, values, &err));
    for (size_t k = 0; k < n; k++)
        sum += (double)values[k] * (double)values[k];
    return sqrt(sum / (double)n);
}

/* torchvision's initialisations; a uniform value within +-b has a deviation of b / sqrt 3. */
static void initial_deviations_are_the_librarys(void **state) {
    (void)state;
    static const struct {
        kd_init init;
        double conv, depthwise, linear;
        int zero_bias;
    } want[] = {{KD_INIT_TORCH, 1 / sqrt(3.0 * 64 * 9), 1 / sqrt(3.0 * 49), 1 / sqrt(3.0 * 256), 0},
                {KD_INIT_MOBILENET, sqrt(2.0 / (128 * 9)), sqrt(2.0 / (1024 * 49)), 0.01, 1},
                {KD_INIT_CONVNEXT, 0.02, 0.02, 0.02, 1}};
    for (size_t i = 0; i < sizeof want / sizeof *want; i++) {
        kd_graph *g = kd_graph_create();
        kd_params *p = NULL;
        kd_graph_set_init(g, want[i].init);
        kd_val map = kd_graph_conv2d(g, kd_graph_input(g, "x", 3, (int64_t[]){3, 3, 64}), "conv", 128, 3, 1, 1, 1);
        kd_graph_output(g, map, "map");
        kd_graph_output(g, kd_graph_conv2d_grouped(g, kd_graph_input(g, "w", 3, (int64_t[]){7, 7, 1024}), "depthwise", 1024, 7, 1, 3, 1024, 1), "wide");
        kd_graph_output(g, kd_graph_linear(g, kd_graph_input(g, "v", 1, (int64_t[]){256}), "linear", 256, 1), "linear");
        must(kd_params_create(&p, g, ref, &err));
        must(kd_params_init(p, 3, &err));
        assert_true(fabs(deviation(p, "conv.weight") / want[i].conv - 1) < 0.02);
        assert_true(fabs(deviation(p, "depthwise.weight") / want[i].depthwise - 1) < 0.02);
        assert_true(fabs(deviation(p, "linear.weight") / want[i].linear - 1) < 0.02);
        assert_int_equal(deviation(p, "conv.bias") == 0, want[i].zero_bias);
        assert_int_equal(deviation(p, "depthwise.bias") == 0, want[i].zero_bias);
        assert_int_equal(deviation(p, "linear.bias") == 0, want[i].zero_bias);
        kd_params_destroy(p);
        kd_graph_destroy(g);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(gradients_equal_differences),
        cmocka_unit_test(a_dropped_branch_leaves_the_shortcut),
        cmocka_unit_test(inference_has_no_drop_path),
        cmocka_unit_test(bf16_stays_inside_the_network),
        cmocka_unit_test(a_tapped_activation_is_f32),
        cmocka_unit_test(shapes_and_decay_of_parameters),
        cmocka_unit_test(initial_deviations_are_the_librarys),
    };
    return cmocka_run_group_tests(tests, open_ref, close_ref);
}

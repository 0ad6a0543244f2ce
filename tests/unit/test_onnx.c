/* ONNX: models byte for byte as the onnx package writes them, and equal in numbers to what onnxruntime computes with them (tests/golden/onnx); data beside a model; refusals; faults that leave nothing. */
#include "tests/unit/unit.h"

#include <errno.h>

#include "common/base/io.h"
#include "common/base/mem.h"
#include "common/tensor/compare.h"
#include "common/weights/weights.h"
#include "tests/unit/formula.h"
#include "train/export/onnx.h"
#include "train/export/onnx_file.h"

#define GOLDEN "tests/golden/onnx/"

static kd_err err;
static kd_backend *ref;
static char *folder;

static int set_up(void **state) {
    (void)state;
    folder = unit_folder();
    return kd_backend_open(&ref, "ref", 1, &err) == KD_OK ? 0 : -1;
}

static int tear_down(void **state) {
    (void)state;
    kd_backend_close(ref);
    free(folder);
    return 0;
}

/* A path in the test's folder, until the next call but one. */
static const char *at(const char *name) {
    static char path[2][4096];
    static int turn;
    turn = !turn;
    snprintf(path[turn], sizeof path[turn], "%s/%s", folder, name);
    return path[turn];
}

static void same_file(const char *got, const char *want) {
    uint8_t *a = NULL, *b = NULL;
    size_t m, n, i = 0;
    assert_ok(kd_io_read_all(got, 1 << 20, &a, &m, &err));
    assert_ok(kd_io_read_all(want, 1 << 20, &b, &n, &err));
    while (i < m && i < n && a[i] == b[i])
        i++;
    if (m != n || i < n)
        fail_msg("%s has %zu bytes, %s %zu; they differ at %zu", got, m, want, n, i);
    kd_free(a);
    kd_free(b);
}

/* ---- the graphs of make_onnx.py ---- */

enum { SIDE = 16, IMAGES = 3 };

typedef struct model {
    kd_graph *g;
    kd_params *p;
    kd_model_info info;
    kd_model_taps taps;
} model;

static kd_val squeeze_excitation(kd_graph *g, kd_val x) {
    kd_val s = kd_graph_reshape(g, kd_graph_mean_tokens(g, x), 3, (int64_t[]){1, 1, 8});
    s = kd_graph_act(g, kd_graph_conv2d(g, s, "fc1", 4, 1, 1, 0, 1), KD_ACT_RELU);
    s = kd_graph_act(g, kd_graph_conv2d(g, s, "fc2", 8, 1, 1, 0, 1), KD_ACT_HARDSIGMOID);
    return kd_graph_channel_gate(g, x, s);
}

/* Attention of 2 heads of 4 channels whose keys have 2, as YOLO11 has it. */
static kd_val map_attention(kd_graph *g, kd_val x) {
    kd_val qkv = kd_graph_reshape(g, kd_graph_conv2d(g, x, "qkv", 16, 1, 1, 0, 1), 2, (int64_t[]){16, 16});
    qkv = kd_graph_qkv_by_head(g, qkv, 2, 2);
    kd_val v = kd_graph_channel_slice(g, qkv, 16, 8), a = kd_graph_attention(g, qkv, 2);
    return kd_graph_shortcut(g, kd_graph_reshape(g, a, 3, (int64_t[]){4, 4, 8}), kd_graph_reshape(g, v, 3, (int64_t[]){4, 4, 8}));
}

static kd_val build_maps(model *m) {
    kd_graph *g = m->g;
    kd_val x = kd_graph_normalize(g, kd_graph_images(g, SIDE, SIDE), m->info.mean, m->info.std);
    kd_val r = kd_graph_batch_norm(g, kd_graph_conv2d(g, x, "stem", 8, 3, 2, 1, 1), -1, "bn1", 1e-3f, 0.1f, KD_ACT_SILU);
    x = kd_graph_batch_norm(g, kd_graph_conv2d_grouped(g, r, "dw", 8, 3, 1, 1, 4, 0), r, "bn2", 1e-3f, 0.1f, KD_ACT_RELU);
    x = squeeze_excitation(g, kd_graph_max_pool(g, x, 3, 2, 1));
    x = kd_graph_batch_norm(g, x, -1, "bn3", 1e-3f, 0.1f, KD_ACT_HARDSWISH);
    kd_val y = kd_graph_act(g, kd_graph_linear(g, kd_graph_layer_norm(g, x, "ln", 1e-6f), "pw", 8, 1), KD_ACT_GELU);
    x = kd_graph_scale_add_shaped(g, x, y, "layer_scale", 3, (int64_t[]){8, 1, 1}, 1.0f);
    return kd_graph_act(g, kd_graph_concat(g, x, map_attention(g, x)), KD_ACT_SILU);
}

static void build_tokens(model *m, kd_val map) {
    kd_graph *g = m->g;
    int64_t width = 8;
    kd_val x = kd_graph_reshape(g, kd_graph_conv2d(g, map, "patch", 8, 2, 2, 0, 1), 2, (int64_t[]){4, 8});
    x = kd_graph_tokens(g, x, "cls_token", "pos_embed", "register_tokens", 2);
    kd_val y = kd_graph_attention(g, kd_graph_linear(g, kd_graph_layer_norm(g, x, "norm1", 1e-6f), "attn", 24, 1), 2);
    x = kd_graph_scale_add(g, x, kd_graph_linear(g, y, "proj", 8, 1), "ls.gamma");
    (void)kd_graph_token_slice(g, x, 3, 4); /* a tap that nothing reads isn't written */
    x = kd_graph_add(g, x, kd_graph_silu_gate(g, kd_graph_linear(g, x, "w12", 16, 1)));
    x = kd_graph_as_f32(g, kd_graph_layer_norm(g, x, "norm", 1e-6f));
    m->taps.pooled = m->taps.cls = kd_graph_reshape(g, kd_graph_token_slice(g, x, 0, 1), 1, &width);
    m->taps.map = kd_graph_reshape(g, kd_graph_token_slice(g, x, 3, 4), 3, (int64_t[]){2, 2, 8});
}

static void start(model *m, const char *name) {
    *m = (model){.info = {.library = "none", .mean = {0.5f, 0.25f, 0.75f}, .std = {0.5f, 0.25f, 0.125f}}};
    snprintf(m->info.name, sizeof m->info.name, "%s", name);
    m->g = kd_graph_create();
    assert_non_null(m->g);
}

static void finish(model *m) {
    float buf[2048];
    kd_graph_output(m->g, m->taps.pooled, "pooled");
    kd_graph_output(m->g, m->taps.map, "map");
    assert_ok(kd_params_create(&m->p, m->g, ref, &err));
    assert_ok(formula_params(m->p, buf, &err));
}

static void make(model *m, const char *name) {
    start(m, name);
    kd_val map = build_maps(m);
    if (strcmp(name, "tokens") == 0) {
        build_tokens(m, map);
        m->taps.map_h = m->taps.map_w = 2;
    } else {
        m->taps = (kd_model_taps){.map = kd_graph_as_f32(m->g, map), .map_h = 4, .map_w = 4};
        m->taps.pooled = m->taps.cls = kd_graph_mean_tokens(m->g, map);
    }
    finish(m);
}

static void drop(model *m) {
    kd_params_destroy(m->p);
    kd_graph_destroy(m->g);
}

static kd_status write_model(const model *m, const char *path, int side) {
    json_t *metadata = json_pack("{s:s}", "kdcache_cache", "aa");
    kd_status status = kd_onnx_write(path, m->g, m->p, &m->info, &m->taps, side, side, metadata, &err);
    json_decref(metadata);
    return status;
}

/* ---- goldens ---- */

static void check_values(const kd_weights *w, const char *name, const float *got, size_t count) {
    float *want = NULL;
    int i = kd_weights_find(w, name);
    assert_true(i >= 0);
    assert_ok(kd_alloc_array(&want, count, sizeof *want, &err));
    assert_ok(kd_weights_read_f32(w, i, want, count, &err));
    kd_tensor a = {.name = name, .dtype = KD_F32, .rank = 1, .shape = {(int64_t)count}, .data = got}, b = a;
    b.data = want;
    kd_comparison c = kd_compare(&a, &b, (kd_tolerance){.abs = 2e-6, .rel = 2e-6});
    if (!c.equal)
        fail_msg("%s", c.text);
    kd_free(want);
}

/* [n,h,w,C] -> [n,C,h,w], as ONNX has maps. */
static void channels_first(float *out, const float *in, size_t n, size_t positions, size_t channels) {
    for (size_t k = 0; k < n; k++)
        for (size_t p = 0; p < positions; p++)
            for (size_t c = 0; c < channels; c++)
                out[(k * channels + c) * positions + p] = in[(k * positions + p) * channels + c];
}

/* What the graph computes is what onnxruntime computed with the golden file. */
static void check_numbers(const model *m, const char *golden, size_t positions, size_t channels, int is_map) {
    uint8_t images[IMAGES * SIDE * SIDE * 3];
    float map[IMAGES * 16 * 16], turned[IMAGES * 16 * 16], pooled[IMAGES * 16];
    kd_exec *e;
    kd_weights *w;
    assert_true(positions * channels <= 16 * 16);
    formula_pictures(images, sizeof images);
    assert_ok(kd_exec_create(&e, m->g, m->p, &(kd_exec_config){.batch = IMAGES, .precision = KD_F32}, &err));
    assert_ok(kd_exec_upload(e, "images", images, &err));
    assert_ok(kd_exec_forward(e, &err));
    assert_ok(kd_exec_download(e, "pooled", IMAGES, pooled, &err));
    assert_ok(kd_exec_download(e, "map", IMAGES, map, &err));
    channels_first(turned, map, IMAGES, positions, channels);
    assert_ok(kd_weights_open(&w, golden, &err));
    check_values(w, "pooled", pooled, IMAGES * channels);
    check_values(w, "cls", pooled, IMAGES * channels);
    check_values(w, "patch", is_map ? turned : map, IMAGES * positions * channels);
    kd_weights_close(w);
    kd_exec_destroy(e);
}

static void a_cnn_for_any_size_is_the_golden_model(void **state) {
    model m;
    (void)state;
    make(&m, "maps");
    assert_ok(write_model(&m, at("maps.onnx"), 0));
    same_file(at("maps.onnx"), GOLDEN "maps.onnx");
    check_numbers(&m, GOLDEN "maps.safetensors", 16, 16, 1);
    drop(&m);
}

static void a_transformer_is_the_golden_model(void **state) {
    model m;
    (void)state;
    make(&m, "tokens");
    assert_ok(write_model(&m, at("tokens.onnx"), SIDE));
    same_file(at("tokens.onnx"), GOLDEN "tokens.onnx");
    check_numbers(&m, GOLDEN "tokens.safetensors", 4, 8, 0);
    drop(&m);
}

/* ---- a model in two files ---- */

static kd_status give_b(void *ctx, const char *name, float *out, size_t count, kd_err *e) {
    (void)ctx;
    if (strcmp(name, "b") != 0)
        return kd_fail(e, KD_EFAIL, "%s isn't asked for", name);
    for (size_t i = 0; i < count; i++)
        out[i] = (float)i / 4;
    return KD_OK;
}

/* outside() of make_onnx.py; the values of b come from a source, those of a and c are given. */
static kd_status write_outside(const char *path, uint64_t limit) {
    static const char *const names[] = {"a", "b", "c"}, *const sums[] = {"0/sum/ReduceSum", "1/sum/ReduceSum", "2/sum/ReduceSum"};
    static const int64_t sizes[] = {300, 1200, 255};
    const kd_param_source source = {.read = give_b};
    float up[300];
    kd_onnx_file *f = kd_onnx_file_create();
    assert_non_null(f);
    for (int i = 0; i < 300; i++)
        up[i] = (float)i;
    for (int i = 2; i >= 0; i--) {
        kd_onnx_file_tensor(f, &(kd_tensor){.name = names[i], .dtype = KD_F32, .rank = 1, .shape = {sizes[i]}, .data = i == 1 ? NULL : up});
        kd_onnx_file_node(f, "ReduceSum", sums[2 - i], KD_ONNX_NAMES(names[2 - i]), KD_ONNX_NAMES(sums[2 - i]), KD_ONNX_ATTRS(KD_ONNX_INT("keepdims", 0)));
    }
    kd_onnx_file_node(f, "Sum", "3/sum/Sum", KD_ONNX_NAMES(sums[0], sums[1], sums[2]), KD_ONNX_NAMES("total"), NULL);
    kd_onnx_file_output(f, "total", 0, NULL);
    kd_status status = kd_onnx_file_write(f, path, "outside", NULL, &source, limit, &err);
    kd_onnx_file_destroy(f);
    return status;
}

static void a_model_above_the_limit_has_its_data_beside_it(void **state) {
    (void)state;
    unit_write(at("outside.onnx"), "old", 3);
    assert_ok(write_outside(at("outside.onnx"), 4000));
    same_file(at("outside.onnx"), GOLDEN "outside.onnx");
    same_file(at("outside.onnx.data"), GOLDEN "outside.onnx.data");
    assert_ok(write_outside(at("inside.onnx"), 10000));
    assert_false(kd_io_exists(at("inside.onnx.data")));
}

static void a_graph_above_the_limit_is_refused(void **state) {
    (void)state;
    assert_int_equal(write_outside(at("small.onnx"), 400), KD_EFAIL);
    assert_contains(err.msg, "small.onnx: the graph alone has ");
    assert_contains(err.msg, "holds 400; export as safetensors");
    assert_false(kd_io_exists(at("small.onnx")));
    assert_false(kd_io_exists(at("small.onnx.data")));
}

/* ---- refusals ---- */

static void a_model_of_one_size_has_no_file_for_any(void **state) {
    model m;
    (void)state;
    make(&m, "tokens");
    m.info.one_size = 1;
    assert_int_equal(write_model(&m, at("any.onnx"), 0), KD_EUSAGE);
    assert_contains(err.msg, "tokens has learnt a position for every patch");
    assert_false(kd_io_exists(at("any.onnx")));
    drop(&m);
}

static void an_op_that_no_student_has_is_refused_by_name(void **state) {
    model m;
    (void)state;
    start(&m, "resized");
    kd_val x = kd_graph_normalize(m.g, kd_graph_images(m.g, SIDE, SIDE), m.info.mean, m.info.std);
    x = kd_graph_conv2d(m.g, x, "stem", 4, 8, 8, 0, 0);
    m.taps.map = kd_graph_as_f32(m.g, kd_graph_resize_bilinear(m.g, x, 4, 4));
    m.taps.pooled = m.taps.cls = kd_graph_mean_tokens(m.g, m.taps.map);
    finish(&m);
    assert_int_equal(write_model(&m, at("resized.onnx"), SIDE), KD_EUSAGE);
    assert_contains(err.msg, "the op resize_bilinear isn't written as ONNX");
    drop(&m);
}

static void channels_that_become_positions_are_refused(void **state) {
    model m;
    (void)state;
    start(&m, "turned");
    kd_val x = kd_graph_normalize(m.g, kd_graph_images(m.g, SIDE, SIDE), m.info.mean, m.info.std);
    x = kd_graph_reshape(m.g, kd_graph_conv2d(m.g, x, "stem", 4, 8, 8, 0, 0), 2, (int64_t[]){2, 8});
    m.taps.map = kd_graph_as_f32(m.g, kd_graph_reshape(m.g, kd_graph_linear(m.g, x, "fc", 8, 0), 3, (int64_t[]){1, 2, 8}));
    m.taps.pooled = m.taps.cls = kd_graph_mean_tokens(m.g, m.taps.map);
    finish(&m);
    assert_int_equal(write_model(&m, at("turned.onnx"), SIDE), KD_EUSAGE);
    assert_contains(err.msg, "fc: a value of 3 dimensions that becomes one of 2 isn't written as ONNX");
    drop(&m);
}

static void a_parameter_that_is_not_finite_is_named(void **state) {
    model m;
    float gamma[8] = {1, 1, 1, -INFINITY};
    (void)state;
    make(&m, "tokens");
    assert_ok(kd_params_set(m.p, kd_params_find(m.p, "ls.gamma"), gamma, &err));
    unit_write(at("bad.onnx"), "old", 3);
    assert_int_equal(write_model(&m, at("bad.onnx"), SIDE), KD_ENONFINITE);
    assert_contains(err.msg, "ls.gamma is -inf at index 3");
    uint64_t size;
    assert_ok(kd_io_file_size(at("bad.onnx"), &size, &err));
    assert_int_equal(size, 3);
    drop(&m);
}

/* ---- faults ---- */

static void memory_that_runs_out_leaves_the_old_file_or_the_whole_new_one(void **state) {
    model m;
    kd_status status = KD_EFAIL;
    size_t n = 0;
    (void)state;
    make(&m, "tokens");
    while (status != KD_OK) {
        unit_write(at("short.onnx"), "old", 3);
        kd_mem_fail_after(++n);
        status = write_model(&m, at("short.onnx"), SIDE);
        kd_mem_fail_after(0);
        uint64_t size;
        assert_true(status == KD_OK || status == KD_EFAIL);
        assert_ok(kd_io_file_size(at("short.onnx"), &size, &err));
        if (size != 3) /* a fault after the file was put in place */
            same_file(at("short.onnx"), GOLDEN "tokens.onnx");
    }
    assert_true(n > 20);
    same_file(at("short.onnx"), GOLDEN "tokens.onnx");
    drop(&m);
}

static void a_full_disk_leaves_no_model_beside_the_wrong_data(void **state) {
    kd_status status = KD_ENOSPACE;
    size_t n = 0;
    (void)state;
    while (status != KD_OK) {
        unlink(at("outside.onnx.data"));
        unit_write(at("outside.onnx"), "old", 3);
        kd_io_fail_after(++n, ENOSPC);
        status = write_outside(at("outside.onnx"), 4000);
        kd_io_fail_after(0, 0);
        assert_true(status == KD_OK || status == KD_ENOSPACE);
        if (kd_io_exists(at("outside.onnx.data")) && kd_io_exists(at("outside.onnx"))) /* never the old model */
            same_file(at("outside.onnx"), GOLDEN "outside.onnx");
    }
    assert_true(n > 6);
    same_file(at("outside.onnx"), GOLDEN "outside.onnx");
    same_file(at("outside.onnx.data"), GOLDEN "outside.onnx.data");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_cnn_for_any_size_is_the_golden_model),
        cmocka_unit_test(a_transformer_is_the_golden_model),
        cmocka_unit_test(a_model_above_the_limit_has_its_data_beside_it),
        cmocka_unit_test(a_graph_above_the_limit_is_refused),
        cmocka_unit_test(a_model_of_one_size_has_no_file_for_any),
        cmocka_unit_test(an_op_that_no_student_has_is_refused_by_name),
        cmocka_unit_test(channels_that_become_positions_are_refused),
        cmocka_unit_test(a_parameter_that_is_not_finite_is_named),
        cmocka_unit_test(memory_that_runs_out_leaves_the_old_file_or_the_whole_new_one),
        cmocka_unit_test(a_full_disk_leaves_no_model_beside_the_wrong_data),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}

/* The graph: shapes, parameter layout, fusion, gradients, memory planning, and that a step allocates nothing. On the reference backend. */
#include "tests/unit/unit.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/mem.h"
#include "kernels/nn/graph_impl.h"
#include "tests/unit/formula.h"

static kd_err err;
static kd_backend *ref;
static size_t device_allocs; /* calls of the backend's alloc */
static size_t packs;         /* calls of its op_pack */
static kd_backend_table counting, plain;

static kd_status counted_pack(kd_backend *b, kd_op *op, const kd_op_args *args, kd_err *e) {
    packs++;
    return plain.op_pack(b, op, args, e);
}

static kd_status counted_alloc(kd_backend *b, void **out, size_t bytes, kd_err *e) {
    device_allocs++;
    return plain.alloc(b, out, bytes, e);
}

static int open_counted(kd_backend **b, const char *device) {
    if (kd_backend_open(b, device, 2, &err) != KD_OK)
        return -1;
    plain = counting = *(*b)->v;
    counting.alloc = counted_alloc;
    counting.op_pack = counted_pack;
    (*b)->v = &counting;
    return 0;
}

static int open_ref(void **state) {
    (void)state;
    return open_counted(&ref, "ref");
}

static int close_ref(void **state) {
    (void)state;
    ref->v = &plain;
    kd_backend_close(ref);
    return 0;
}

static void must(kd_status s) {
    if (s != KD_OK)
        fail_msg("%s: %s", kd_status_name(s), err.msg);
}

/* ---- a graph with every kind of connection: convolution, batch norm with a residual, tokens and registers, turned attention, joins, slices, reshapes, one norm twice, two losses, a value
 * read four times ---- */

enum { SIDE = 8, WIDTH = 12, REGISTERS = 2, OUT = 5, BATCH = 3 };

static void build(kd_graph *g) {
    static const float mean[3] = {0.5f, 0.4f, 0.3f}, std[3] = {0.2f, 0.25f, 0.3f}, period = 2.5f;
    kd_val x = kd_graph_normalize(g, kd_graph_images(g, SIDE, SIDE), mean, std);
    x = kd_graph_conv2d(g, x, "stem", WIDTH, 2, 2, 0, 1);
    kd_val r = kd_graph_batch_norm(g, x, -1, "bn1", 1e-5f, 0.1f, KD_ACT_RELU);
    kd_val y = kd_graph_conv2d(g, r, "conv", WIDTH, 3, 1, 1, 0);
    x = kd_graph_batch_norm(g, y, r, "bn2", 1e-5f, 0.1f, KD_ACT_RELU);
    x = kd_graph_reshape(g, x, 2, (int64_t[]){16, WIDTH});
    x = kd_graph_tokens(g, x, "cls_token", "pos_embed", "register_tokens", REGISTERS);
    y = kd_graph_layer_norm(g, x, "norm1", 1e-6f);
    y = kd_graph_linear(g, y, "qkv", 3 * WIDTH, 1);
    y = kd_graph_rope(g, y, 3, 1 + REGISTERS, 4, 4, &period, 1);
    y = kd_graph_linear(g, kd_graph_attention(g, y, 3), "proj", WIDTH, 1);
    x = kd_graph_scale_add(g, x, y, "ls.gamma");
    y = kd_graph_layer_norm(g, x, "norm2", 1e-6f);
    y = kd_graph_act(g, kd_graph_linear(g, y, "fc1", 2 * WIDTH, 1), KD_ACT_GELU);
    x = kd_graph_add(g, x, kd_graph_linear(g, y, "fc2", WIDTH, 1));
    kd_val early = x; /* the residual of two joins: only one can share its gradient's buffer */
    y = kd_graph_silu_gate(g, kd_graph_linear(g, x, "w12", 2 * WIDTH, 0));
    x = kd_graph_add(g, kd_graph_linear(g, y, "w3", WIDTH, 1), x); /* the linear layer on the left this time */
    x = kd_graph_add(g, early, kd_graph_linear(g, kd_graph_layer_norm(g, x, "norm3", 1e-6f), "last", WIDTH, 0));
    x = kd_graph_add(g, early, kd_graph_linear(g, x, "last2", WIDTH, 0));
    x = kd_graph_as_f32(g, kd_graph_layer_norm(g, x, "norm", 1e-6f));
    kd_val cls = kd_graph_reshape(g, kd_graph_token_slice(g, x, 0, 1), 1, (int64_t[]){WIDTH});
    kd_val map = kd_graph_reshape(g, kd_graph_token_slice(g, x, 1 + REGISTERS, 16), 3, (int64_t[]){4, 4, WIDTH});
    kd_val both = kd_graph_concat(g, x, kd_graph_as_f32(g, kd_graph_layer_norm_again(g, early, "norm")));
    both = kd_graph_as_f32(g, kd_graph_reshape(g, kd_graph_token_slice(g, both, 0, 1), 1, (int64_t[]){2 * WIDTH}));
    kd_graph_output(g, both, "both");
    kd_graph_output(g, cls, "cls");
    kd_graph_output(g, map, "map");
    kd_graph_output(g, kd_graph_mean_tokens(g, map), "mean");
    kd_val pool = kd_graph_max_pool(g, map, 2, 2, 0);
    kd_val up = kd_graph_resize_bilinear(g, kd_graph_linear(g, pool, "head", OUT, 1), 3, 3);
    kd_graph_mse(g, kd_graph_linear(g, both, "head_cls", OUT, 1), kd_graph_input(g, "target_cls", 1, (int64_t[]){OUT}), 1.0f, "loss_cls");
    kd_graph_mse(g, up, kd_graph_input(g, "target_map", 3, (int64_t[]){3, 3, OUT}), 0.5f, "loss_map");
}

typedef struct fixture {
    kd_graph *g;
    kd_params *p;
    uint8_t pixels[BATCH * SIDE * SIDE * 3];
    float target_cls[BATCH * OUT], target_map[BATCH * 9 * OUT];
} fixture;

static void make(fixture *f) {
    float buf[4096];
    f->g = kd_graph_create();
    assert_non_null(f->g);
    build(f->g);
    must(kd_params_create(&f->p, f->g, ref, &err));
    must(formula_params(f->p, buf, &err));
    formula_pictures(f->pixels, sizeof f->pixels);
    formula_targets(f->target_cls, "target_cls", BATCH * OUT);
    formula_targets(f->target_map, "target_map", BATCH * 9 * OUT);
}

static void drop(fixture *f) {
    kd_params_destroy(f->p);
    kd_graph_destroy(f->g);
}

static kd_exec *compile(fixture *f, kd_dtype precision, int train) {
    kd_exec *e = NULL;
    must(kd_exec_create(&e, f->g, f->p, &(kd_exec_config){.batch = BATCH, .precision = precision, .train = train}, &err));
    must(kd_exec_upload(e, "images", f->pixels, &err));
    if (train) {
        must(kd_exec_upload(e, "target_cls", f->target_cls, &err));
        must(kd_exec_upload(e, "target_map", f->target_map, &err));
    }
    return e;
}

static double loss(kd_exec *e) {
    float a, b;
    must(kd_exec_forward(e, &err));
    must(kd_exec_download(e, "loss_cls", 1, &a, &err));
    must(kd_exec_download(e, "loss_map", 1, &b, &err));
    return (double)a + 0.5 * (double)b;
}

/* ---- gradients ---- */

/* The slopes to the left and to the right for some values of one parameter: the gradient is their mean, or anything between them where a kink of ReLU or max pooling
 * lies inside the step. The graph stores activations in f32, so a slope carries noise of about 1e-7 / step. */
static void check_parameter(fixture *f, kd_exec *e, int i, const float *gradient) {
    kd_param_info info = kd_params_info(f->p, i);
    float values[4096];
    const double step = 1e-3;
    must(kd_params_get(f->p, i, values, &err));
    for (size_t k = 0; k < info.count; k += info.count / 3 + 1) {
        float old = values[k];
        double at[3];
        for (int s = 0; s < 3; s++) {
            values[k] = (float)(old + (s - 1) * step);
            must(kd_params_set(f->p, i, values, &err));
            at[s] = loss(e);
        }
        values[k] = old;
        must(kd_params_set(f->p, i, values, &err));
        double left = (at[1] - at[0]) / step, right = (at[2] - at[1]) / step, got = (double)gradient[k];
        double mean = (left + right) / 2, slack = 1e-3 + 0.01 * fabs(mean), half = fabs(right - left) / 2;
        if (!(fabs(got - mean) <= slack + half))
            fail_msg("d loss / d %s[%zu] is %g, slopes %g and %g", info.name, k, got, left, right);
    }
}

static void gradients_equal_differences_through_the_whole_graph(void **state) {
    (void)state;
    fixture f;
    make(&f);
    kd_exec *e = compile(&f, KD_F32, 1);
    size_t total;
    const float *trained = kd_params_trained(f.p, NULL, &total);
    float *gradients = NULL;
    must(kd_alloc_array(&gradients, total, sizeof *gradients, &err));
    (void)loss(e);
    must(kd_exec_backward(e, 0, &err));
    memcpy(gradients, kd_exec_gradients(e), total * sizeof *gradients);
    size_t nonzero = 0;
    for (size_t k = 0; k < total; k++) {
        assert_true(isfinite(gradients[k]));
        nonzero += gradients[k] != 0;
    }
    assert_true(nonzero > total / 2);
    for (int i = 0; i < kd_params_count(f.p); i++)
        if (!kd_params_info(f.p, i).is_state)
            check_parameter(&f, e, i, gradients + (f.p->trained + f.p->offset[i] - trained));
    kd_free(gradients);
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
    must(kd_exec_backward(e, 0, &err));
    assert_memory_equal(once, kd_exec_gradients(e), total * sizeof *once);
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

/* ---- memory ---- */

static void spans_alive_together_never_overlap(void **state) {
    (void)state;
    enum { N = 200 };
    kd_span s[N];
    size_t total, sum = 0, peak = 0;
    for (int i = 0; i < N; i++) {
        uint32_t r = formula_bits("span", (uint32_t)i);
        s[i] = (kd_span){.bytes = 1 + r % 5000, .first = (int)(r >> 16) % 100};
        s[i].last = s[i].first + (int)(r >> 8) % 10;
        sum += s[i].bytes;
    }
    must(kd_plan_place(s, N, &total, &err));
    for (int i = 0; i < N; i++) {
        assert_int_equal(s[i].offset % 64, 0);
        assert_true(s[i].offset + s[i].bytes <= total);
        for (int k = 0; k < i; k++)
            if (s[i].first <= s[k].last && s[k].first <= s[i].last)
                assert_true(s[i].offset >= s[k].offset + s[k].bytes || s[k].offset >= s[i].offset + s[i].bytes);
    }
    for (int t = 0; t < 110; t++) {
        size_t now = 0;
        for (int i = 0; i < N; i++)
            now += s[i].first <= t && t <= s[i].last ? s[i].bytes : 0;
        peak = now > peak ? now : peak;
    }
    assert_true(total >= peak && total < peak + peak / 4);
    assert_true(total < sum / 4);
}

static void inference_shares_memory_and_training_keeps_it(void **state) {
    (void)state;
    fixture f;
    make(&f);
    kd_exec *train = compile(&f, KD_F32, 1), *infer = compile(&f, KD_F32, 0);
    assert_true(infer->bytes[KD_ARENA_ACTIVATIONS] < train->bytes[KD_ARENA_ACTIVATIONS] / 2);
    assert_true(train->bytes[KD_ARENA_GRADIENTS] < train->bytes[KD_ARENA_ACTIVATIONS] / 2);
    assert_int_equal(infer->bytes[KD_ARENA_GRADIENTS], 0);
    assert_int_equal(infer->bytes[KD_ARENA_PARAM_GRADIENTS], 0);
    kd_exec_destroy(train);
    kd_exec_destroy(infer);
    drop(&f);
}

static void one_step(kd_exec *e, fixture *f, float *out) {
    must(kd_exec_upload(e, "images", f->pixels, &err));
    must(kd_exec_forward(e, &err));
    if (e->config.train)
        must(kd_exec_backward(e, 0, &err));
    must(kd_exec_download(e, "cls", BATCH, out, &err));
    kd_params_changed(f->p); /* the next step packs again */
}

/* Any allocation on the host would fail, and the device's are counted. */
static void check_steps(int train, kd_dtype precision) {
    fixture f;
    float out[BATCH * WIDTH];
    make(&f);
    kd_exec *e = compile(&f, precision, train);
    size_t before = device_allocs, live = kd_mem_live_bytes(), peak = kd_mem_peak_bytes();
    kd_mem_fail_after(1);
    for (int k = 0; k < 3; k++)
        one_step(e, &f, out);
    void *p = kd_malloc(1);
    assert_null(p); /* the fault was still armed: nobody had allocated */
    assert_int_equal(device_allocs, before);
    assert_int_equal(kd_mem_live_bytes(), live);
    assert_int_equal(kd_mem_peak_bytes(), peak);
    kd_exec_destroy(e);
    drop(&f);
}

static void a_step_allocates_nothing(void **state) {
    for (int mode = 0; mode < 4; mode++)
        check_steps(mode >> 1, mode & 1 ? KD_BF16 : KD_F32);
    /* Where its module is there, the same with oneDNN. The counting table belongs to one backend at a time. */
    close_ref(state);
    if (open_counted(&ref, "cpu") == 0) {
        int modes = ref->v->check_bf16(ref, &err) == KD_OK ? 2 : 1;
        for (int mode = 0; mode < 4; mode++)
            if ((mode & 1) < modes)
                check_steps(mode >> 1, mode & 1 ? KD_BF16 : KD_F32);
        close_ref(state);
    }
    assert_int_equal(open_ref(state), 0);
}

/* ---- frozen parameters ---- */

/* The formula's values, as a weight file would give them. */
typedef struct formula_source {
    const kd_params *infos;
    int reads[64]; /* per parameter */
    const char *damaged;
} formula_source;

static kd_status read_formula(void *ctx, const char *name, float *out, size_t count, kd_err *e) {
    formula_source *s = ctx;
    int i = kd_params_find(s->infos, name);
    assert_true(i >= 0 && i < 64);
    kd_param_info info = kd_params_info(s->infos, i);
    assert_int_equal(info.count, count);
    if (s->damaged && strcmp(name, s->damaged) == 0)
        return kd_fail(e, KD_EFAIL, "tensor %s is damaged", name);
    formula_fill(out, &info);
    s->reads[i]++;
    return KD_OK;
}

static size_t live_device_bytes; /* allocated through sized_alloc and not yet released */

typedef struct block {
    void *p;
    size_t bytes;
} block;
static block blocks[64];

static kd_status sized_alloc(kd_backend *b, void **out, size_t bytes, kd_err *e) {
    kd_status s = plain.alloc(b, out, bytes, e);
    for (int i = 0; s == KD_OK && bytes && i < 64; i++)
        if (!blocks[i].p) {
            blocks[i] = (block){*out, bytes};
            live_device_bytes += bytes;
            break;
        }
    return s;
}

static void sized_release(kd_backend *b, void *p) {
    for (int i = 0; p && i < 64; i++)
        if (blocks[i].p == p) {
            live_device_bytes -= blocks[i].bytes;
            blocks[i].p = NULL;
        }
    plain.release(b, p);
}

/* Bytes that the parameters of a program's nodes take where packing consumes them, and where it doesn't. */
static void parameter_bytes(const kd_exec *e, size_t *consumed, size_t *kept) {
    char seen[64] = {0}; /* a norm may stand in two nodes */
    *consumed = *kept = 0;
    for (int i = 0; i < e->node_count; i++) {
        const kd_pnode *n = &e->nodes[i];
        for (int k = 0; k < KD_OP_MAX_PARAM; k++)
            if (n->param[k] >= 0 && !seen[n->param[k]]++)
                *(n->needs.consumed >> k & 1 ? consumed : kept) += (e->p->params[n->param[k]].info.count * 4 + 63) / 64 * 64;
        for (int k = 0; k < KD_OP_MAX_STATE; k++)
            if (n->state[k] >= 0)
                *kept += (e->p->params[n->state[k]].info.count * 4 + 63) / 64 * 64;
    }
}

static void check_frozen(const char *device, kd_dtype precision) {
    fixture f;
    kd_params *frozen = NULL;
    formula_source source = {0};
    size_t consumed, kept, live;
    make(&f);
    source.infos = f.p;
    kd_exec *want = compile(&f, precision, 0), *got = NULL;
    must(kd_exec_forward(want, &err));
    live = live_device_bytes;
    must(kd_params_create_frozen(&frozen, f.g, ref, &(kd_param_source){read_formula, &source}, &err));
    assert_int_equal(live_device_bytes, live); /* they have no array */
    assert_null(kd_params_trained(frozen, NULL, NULL));
    must(kd_exec_create(&got, f.g, frozen, &(kd_exec_config){.batch = BATCH, .precision = precision}, &err));
    parameter_bytes(got, &consumed, &kept);
    assert_true(strcmp(device, "cpu") == 0 ? consumed > 0 : consumed == 0);
    /* The program is the ordinary one and the parameters that ops still read; what packing consumed is gone. */
    assert_int_equal(got->bytes[KD_ARENA_PARAMETERS], kept);
    assert_int_equal(kd_exec_model_bytes(got), kept + got->bytes[KD_ARENA_PACKED]);
    assert_int_equal(kd_exec_device_bytes(got), kd_exec_device_bytes(want) + kept);
    assert_int_equal(live_device_bytes - live, kd_exec_device_bytes(got));
    must(kd_exec_upload(got, "images", f.pixels, &err));
    size_t before = packs;
    must(kd_exec_forward(got, &err));
    must(kd_exec_forward(got, &err));
    assert_int_equal(packs, before);
    static const char *const outputs[] = {"cls", "map", "mean", "both"};
    for (int o = 0; o < 4; o++) {
        float a[BATCH * 16 * WIDTH], b[BATCH * 16 * WIDTH];
        kd_tdesc d;
        assert_non_null(kd_exec_output(got, outputs[o], &d));
        must(kd_exec_download(want, outputs[o], BATCH, a, &err));
        must(kd_exec_download(got, outputs[o], BATCH, b, &err));
        assert_memory_equal(a, b, kd_tdesc_numel(&d) * sizeof *a);
    }
    for (int i = 0; i < kd_params_count(f.p); i++) { /* each once; the heads, which inference leaves out, and the counters never */
        kd_param_info info = kd_params_info(f.p, i);
        assert_int_equal(source.reads[i], strncmp(info.name, "head", 4) != 0 && !info.is_counter);
    }
    kd_exec_destroy(want);
    kd_exec_destroy(got);
    kd_params_destroy(frozen);
    drop(&f);
}

static void frozen_parameters_give_the_same_bits_in_less_memory(void **state) {
    static const char *const devices[] = {"ref", "cpu"};
    close_ref(state);
    for (int d = 0; d < 2; d++) {
        if (open_counted(&ref, devices[d]) != 0)
            continue;
        counting.alloc = sized_alloc;
        counting.release = sized_release;
        check_frozen(devices[d], KD_F32);
        if (ref->v->check_bf16(ref, &err) == KD_OK)
            check_frozen(devices[d], KD_BF16);
        assert_int_equal(live_device_bytes, 0);
        close_ref(state);
    }
    assert_int_equal(open_ref(state), 0);
}

static void a_source_that_fails_is_quoted(void **state) {
    (void)state;
    fixture f;
    kd_params *frozen = NULL;
    kd_exec *e = NULL;
    make(&f);
    size_t live = kd_mem_live_bytes();
    static const char *const damaged[] = {"fc1.weight", "norm.bias", "bn1.running_var"};
    for (int i = 0; i < 3; i++) {
        formula_source source = {.infos = f.p, .damaged = damaged[i]};
        must(kd_params_create_frozen(&frozen, f.g, ref, &(kd_param_source){read_formula, &source}, &err));
        assert_int_equal(kd_exec_create(&e, f.g, frozen, &(kd_exec_config){.batch = BATCH}, &err), KD_EFAIL);
        assert_null(e);
        assert_contains(err.msg, damaged[i]);
        kd_params_destroy(frozen);
        assert_int_equal(kd_mem_live_bytes(), live);
    }
    drop(&f);
}

static kd_status read_ones(void *ctx, const char *name, float *out, size_t count, kd_err *e) {
    (void)ctx;
    (void)name;
    (void)e;
    for (size_t i = 0; i < count; i++)
        out[i] = 1;
    return KD_OK;
}

/* Everything from building to the first pass, with the n-th allocation failing. */
static kd_status whole_life(int freeze) {
    kd_graph *g = kd_graph_create();
    kd_params *p = NULL;
    kd_exec *e = NULL;
    if (!g)
        return KD_EFAIL;
    build(g);
    kd_status s = freeze ? kd_params_create_frozen(&p, g, ref, &(kd_param_source){read_ones, NULL}, &err) : kd_params_create(&p, g, ref, &err);
    if (s == KD_OK && !freeze)
        s = kd_params_init(p, 1, &err);
    if (s == KD_OK)
        s = kd_exec_create(&e, g, p, &(kd_exec_config){.batch = BATCH, .train = !freeze}, &err);
    if (s == KD_OK)
        s = kd_exec_forward(e, &err);
    kd_exec_destroy(e);
    kd_params_destroy(p);
    kd_graph_destroy(g);
    return s;
}

static void check_failing_allocations(int freeze) {
    size_t live = kd_mem_live_bytes(), n = 1, failures = 0;
    for (;; n++) {
        kd_mem_fail_after(n);
        kd_status s = whole_life(freeze);
        void *probe = kd_malloc(1); /* NULL: the fault hadn't fired yet */
        int fired = probe != NULL;
        kd_free(probe);
        kd_mem_fail_after(0);
        assert_int_equal(kd_mem_live_bytes(), live);
        if (!fired) {
            assert_int_equal(s, KD_OK);
            break;
        }
        failures += s == KD_EFAIL;
        assert_true(s == KD_EFAIL);
        assert_true(n < 100000);
    }
    assert_true(failures > 50);
}

static void every_failing_allocation_is_an_error_without_a_leak(void **state) {
    (void)state;
    check_failing_allocations(0);
    check_failing_allocations(1);
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
        cmocka_unit_test(spans_alive_together_never_overlap),
        cmocka_unit_test(inference_shares_memory_and_training_keeps_it),
        cmocka_unit_test(a_step_allocates_nothing),
        cmocka_unit_test(frozen_parameters_give_the_same_bits_in_less_memory),
        cmocka_unit_test(a_source_that_fails_is_quoted),
        cmocka_unit_test(every_failing_allocation_is_an_error_without_a_leak),
        cmocka_unit_test(absurd_batches_are_refused),
        cmocka_unit_test(batch_norm_of_single_values_is_refused_in_training),
    };
    return cmocka_run_group_tests(tests, open_ref, close_ref);
}

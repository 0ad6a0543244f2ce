/* A small graph with every kind of connection on a counted reference backend, for the tests of graphs and of the memory of their programs. */
#ifndef KD_TESTS_UNIT_GRAPH_FIXTURE_H
#define KD_TESTS_UNIT_GRAPH_FIXTURE_H

#include "tests/unit/unit.h"

#include <math.h>
#include <string.h>

#include "kernels/nn/graph_impl.h"
#include "tests/unit/formula.h"

static kd_err err;
static kd_backend *ref;
static size_t device_allocs; /* calls of the backend's alloc */
static size_t packs;         /* calls of its op_pack */
static kd_backend_table counting, plain;

static inline kd_status counted_pack(kd_backend *b, kd_op *op, const kd_op_args *args, kd_err *e) {
    packs++;
    return plain.op_pack(b, op, args, e);
}

static inline kd_status counted_alloc(kd_backend *b, void **out, size_t bytes, kd_err *e) {
    device_allocs++;
    return plain.alloc(b, out, bytes, e);
}

static inline int open_counted(kd_backend **b, const char *device) {
    if (kd_backend_open(b, device, 2, &err) != KD_OK)
        return -1;
    plain = counting = *(*b)->v;
    counting.alloc = counted_alloc;
    counting.op_pack = counted_pack;
    (*b)->v = &counting;
    return 0;
}

static inline int open_ref(void **state) {
    (void)state;
    return open_counted(&ref, "ref");
}

static inline int close_ref(void **state) {
    (void)state;
    ref->v = &plain;
    kd_backend_close(ref);
    return 0;
}

static inline void must(kd_status s) {
    if (s != KD_OK)
        fail_msg("%s: %s", kd_status_name(s), err.msg);
}

/* ---- a graph with every kind of connection: convolution, batch norm with a residual, tokens and registers, turned attention, joins, slices, reshapes, one norm twice, two losses, a value
 * read four times ---- */

enum { SIDE = 8, WIDTH = 12, REGISTERS = 2, OUT = 5, BATCH = 3 };

static inline void build(kd_graph *g) {
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

static inline void make(fixture *f) {
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

static inline void drop(fixture *f) {
    kd_params_destroy(f->p);
    kd_graph_destroy(f->g);
}

static inline kd_exec *compile(fixture *f, kd_dtype precision, int train) {
    kd_exec *e = NULL;
    must(kd_exec_create(&e, f->g, f->p, &(kd_exec_config){.batch = BATCH, .precision = precision, .train = train}, &err));
    must(kd_exec_upload(e, "images", f->pixels, &err));
    if (train) {
        must(kd_exec_upload(e, "target_cls", f->target_cls, &err));
        must(kd_exec_upload(e, "target_map", f->target_map, &err));
    }
    return e;
}

static inline double loss(kd_exec *e) {
    float a, b;
    must(kd_exec_forward(e, &err));
    must(kd_exec_download(e, "loss_cls", 1, &a, &err));
    must(kd_exec_download(e, "loss_map", 1, &b, &err));
    return (double)a + 0.5 * (double)b;
}

/* ---- gradients ---- */

/* The slopes to the left and to the right for some values of one parameter: the gradient is their mean, or anything between them where a kink of ReLU or max pooling
 * lies inside the step. The graph stores activations in f32, so a slope carries noise of about 1e-7 / step. */
static inline void check_parameter(kd_params *p, kd_exec *e, double (*loss_of)(kd_exec *), int i, const float *gradient) {
    kd_param_info info = kd_params_info(p, i);
    float values[4096];
    const double step = 1e-3;
    must(kd_params_get(p, i, values, &err));
    for (size_t k = 0; k < info.count; k += info.count / 3 + 1) {
        float old = values[k];
        double at[3];
        for (int s = 0; s < 3; s++) {
            values[k] = (float)(old + (s - 1) * step);
            must(kd_params_set(p, i, values, &err));
            at[s] = loss_of(e);
        }
        values[k] = old;
        must(kd_params_set(p, i, values, &err));
        double left = (at[1] - at[0]) / step, right = (at[2] - at[1]) / step, got = (double)gradient[k];
        double mean = (left + right) / 2, slack = 1e-3 + 0.01 * fabs(mean), half = fabs(right - left) / 2;
        if (!(fabs(got - mean) <= slack + half))
            fail_msg("d loss / d %s[%zu] is %g, slopes %g and %g", info.name, k, got, left, right);
    }
}

/* The gradients of a training program, all inputs uploaded, against differences of its loss; most of them aren't 0. */
static inline void check_gradients(kd_params *p, kd_exec *e, double (*loss_of)(kd_exec *)) {
    size_t total, nonzero = 0;
    const float *trained = kd_params_trained(p, NULL, &total);
    float *gradients = NULL;
    must(kd_alloc_array(&gradients, total, sizeof *gradients, &err));
    (void)loss_of(e);
    must(kd_exec_backward(e, 0, &err));
    memcpy(gradients, kd_exec_gradients(e), total * sizeof *gradients);
    for (size_t k = 0; k < total; k++) {
        assert_true(isfinite(gradients[k]));
        nonzero += gradients[k] != 0;
    }
    assert_true(nonzero > total / 2);
    for (int i = 0; i < kd_params_count(p); i++)
        if (!kd_params_info(p, i).is_state)
            check_parameter(p, e, loss_of, i, gradients + (p->trained + p->offset[i] - trained));
    kd_free(gradients);
}

#endif

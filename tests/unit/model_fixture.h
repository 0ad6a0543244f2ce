/* What tests of models share: golden files of tests/golden/models, and one step of training against them (training_step of generate.py): pictures, weights and targets by the formula, heads of
 * LayerNorm and Linear on pooled and map, loss_cls + 0.5 loss_patch. Functions fail the test themselves. */
#ifndef KD_TESTS_UNIT_MODEL_FIXTURE_H
#define KD_TESTS_UNIT_MODEL_FIXTURE_H

#include "tests/unit/unit.h"

#include <math.h>
#include <string.h>

#include "common/base/mem.h"
#include "common/tensor/compare.h"
#include "kernels/nn/graph_impl.h"
#include "kernels/nn/model_builders.h"
#include "tests/unit/formula.h"

#define GOLDEN "tests/golden/models/"

static kd_err err;

/* The devices that the goldens are computed on. */
static const char *const devices[] = {"ref", "cpu"};
enum { DEVICES = 2 };

/* NULL when the module isn't there. */
static inline kd_backend *try_open(const char *device) {
    kd_backend *b = NULL;
    return kd_backend_open(&b, device, 2, &err) == KD_OK ? b : NULL;
}

static inline kd_backend *open_ref(void) {
    kd_backend *b = try_open("ref");
    assert_non_null(b);
    return b;
}

/* A golden tensor as f32; the caller frees. */
static inline float *golden(const kd_weights *w, const char *name, size_t count) {
    int i = kd_weights_find(w, name);
    float *values = NULL;
    if (i < 0)
        fail_msg("%s has no tensor %s", kd_weights_path(w), name);
    assert_ok(kd_alloc_array(&values, count, sizeof *values, &err));
    assert_ok(kd_weights_read_f32(w, i, values, count, &err));
    return values;
}

static inline void check(const char *name, const float *got, const float *want, size_t count, kd_tolerance tol) {
    kd_tensor a = {.name = name, .dtype = KD_F32, .rank = 1, .shape = {(int64_t)count}, .data = got}, b = a;
    b.data = want;
    kd_comparison c = kd_compare(&a, &b, tol);
    if (!c.equal)
        fail_msg("%s", c.text);
}

static inline void check_golden(const kd_weights *w, const char *name, const float *got, size_t count, kd_tolerance tol) {
    float *want = golden(w, name, count);
    check(name, got, want, count, tol);
    kd_free(want);
}

/* ---- one training step ---- */

enum { HEAD_OUT = 24 };

typedef struct step_case {
    const char *file;
    kd_model_info model;
    int size, batch, target_side;
    double drop_path; /* of the training program; draws as in families.py */
    double kinks;     /* gradients may be this far off, if that is more: rounding makes a ReLU at 0 fall the other way */
    int eval;         /* the file has eval/pooled and eval/map, of the first picture */
} step_case;

typedef struct step {
    const step_case *c;
    kd_backend *b;
    kd_graph *g;
    kd_params *p;
    kd_exec *e;
    kd_model_taps taps;
    float *buf; /* scratch for the largest tensor */
    size_t buf_count;
} step;

static inline kd_val head(kd_graph *g, kd_val x, const char *norm, const char *linear) {
    return kd_graph_linear(g, kd_graph_layer_norm(g, x, norm, 1e-6f), linear, HEAD_OUT, 1);
}

static inline void step_build(step *s) {
    const step_case *c = s->c;
    s->g = kd_graph_create();
    s->taps = kd_model_build_with(s->g, &c->model, c->size, c->size, &(kd_model_options){.drop_path = c->drop_path});
    kd_val cls = head(s->g, s->taps.pooled, "head.cls.norm", "head.cls.linear");
    kd_val patch = head(s->g, s->taps.map, "head.patch.norm", "head.patch.linear");
    patch = kd_graph_resize_bilinear(s->g, patch, c->target_side, c->target_side);
    kd_graph_output(s->g, kd_graph_as_f32(s->g, cls), "pred_cls");
    kd_graph_mse(s->g, cls, kd_graph_input(s->g, "target_cls", 1, (int64_t[]){HEAD_OUT}), 1.0f, "loss_cls");
    kd_graph_mse(s->g, patch, kd_graph_input(s->g, "target_patch", 3, (int64_t[]){c->target_side, c->target_side, HEAD_OUT}), 0.5f, "loss_patch");
}

/* Image n loses branch i when the formula's "drop_path.i" at n is negative. */
static inline void step_drops(step *s) {
    const kd_model_info *m = &s->c->model;
    for (int i = 0; i < m->branches; i++) {
        double chance = kd_model_drop_chance(m, s->c->drop_path, i);
        char name[32];
        snprintf(name, sizeof name, "drop_path.%d", i);
        for (int n = 0; n < s->c->batch; n++)
            s->buf[n] = formula_unit(name, (uint32_t)n) < 0 ? 0 : (float)(1 / (1 - chance));
        if (chance > 0)
            assert_ok(kd_exec_upload(s->e, name, s->buf, &err));
    }
}

static inline void step_run(step *s, kd_dtype precision) {
    const step_case *c = s->c;
    size_t pixels = (size_t)(c->batch * c->size * c->size * 3), patches = (size_t)(c->batch * c->target_side * c->target_side * HEAD_OUT);
    step_build(s);
    assert_ok(kd_params_create(&s->p, s->g, s->b, &err));
    s->buf_count = pixels;
    for (int i = 0; i < kd_params_count(s->p); i++)
        if (kd_params_info(s->p, i).count > s->buf_count)
            s->buf_count = kd_params_info(s->p, i).count;
    assert_ok(kd_alloc_array(&s->buf, s->buf_count, sizeof *s->buf, &err));
    assert_ok(formula_params(s->p, s->buf, &err));
    assert_ok(kd_exec_create(&s->e, s->g, s->p, &(kd_exec_config){.batch = c->batch, .precision = precision, .train = 1}, &err));
    formula_pictures((uint8_t *)s->buf, pixels);
    assert_ok(kd_exec_upload(s->e, "images", s->buf, &err));
    formula_targets(s->buf, "target_cls", (size_t)(c->batch * HEAD_OUT));
    assert_ok(kd_exec_upload(s->e, "target_cls", s->buf, &err));
    formula_targets(s->buf, "target_patch", patches);
    assert_ok(kd_exec_upload(s->e, "target_patch", s->buf, &err));
    step_drops(s);
    assert_ok(kd_exec_forward(s->e, &err));
    assert_ok(kd_exec_backward(s->e, 0, &err));
}

static inline void step_drop(step *s) {
    kd_exec_destroy(s->e);
    kd_params_destroy(s->p);
    kd_graph_destroy(s->g);
    kd_free(s->buf);
    kd_backend_close(s->b);
}

static inline void check_output(step *s, const kd_weights *w, const char *name, kd_tolerance tol) {
    kd_tdesc d;
    assert_non_null(kd_exec_output(s->e, name, &d));
    assert_true(kd_tdesc_numel(&d) <= s->buf_count);
    assert_ok(kd_exec_download(s->e, name, (int)d.shape[0], s->buf, &err));
    check_golden(w, name, s->buf, kd_tdesc_numel(&d), tol);
}

/* sample() of generate.py: L2 norm and four values. The tolerance is relative to the norm: single values may be tiny differences of large numbers. Below `none` a norm is rounding, and only has to
 * stay there. */
static inline void check_sample(step *s, const kd_weights *w, const char *name, const float *device, size_t n, double tolerance, double none) {
    assert_ok(s->b->v->download(s->b, s->buf, device, n * sizeof(float), &err));
    const size_t at[4] = {0, n / 3, 2 * n / 3, n - 1};
    float *want = golden(w, name, 5);
    double sum = 0, rms;
    for (size_t i = 0; i < n; i++)
        sum += (double)s->buf[i] * (double)s->buf[i];
    rms = (double)want[0] / sqrt((double)n);
    if ((double)want[0] < none) {
        if (!(sqrt(sum) < none))
            fail_msg("%s: norm %g, PyTorch %g, which is none", name, sqrt(sum), (double)want[0]);
        kd_free(want);
        return;
    }
    if (!(fabs(sqrt(sum) - (double)want[0]) <= tolerance * (double)want[0]))
        fail_msg("%s: norm %g, PyTorch %g", name, sqrt(sum), (double)want[0]);
    for (int k = 0; k < 4; k++)
        if (!(fabs((double)s->buf[at[k]] - (double)want[1 + k]) <= tolerance * (3 * rms + fabs((double)want[1 + k]))))
            fail_msg("%s[%zu]: %g, PyTorch %g (rms %g)", name, at[k], (double)s->buf[at[k]], (double)want[1 + k], rms);
    kd_free(want);
}

/* Norm of all gradients in the file. */
static inline double gradient_norm(const kd_weights *w) {
    double sum = 0;
    for (int i = 0; i < kd_weights_count(w); i++) {
        const char *name = kd_weights_info(w, i).name;
        if (strncmp(name, "grad/", 5) != 0)
            continue;
        float *sample = golden(w, name, 5);
        sum += (double)sample[0] * (double)sample[0];
        kd_free(sample);
    }
    return sqrt(sum);
}

/* A gradient may be none but for rounding: that of a shift before a batch norm. Tensors below 1e-6 of the whole gradient count as such. */
static inline void check_parameters(step *s, const kd_weights *w, double tolerance) {
    int gradients = 0, states = 0;
    double none = 1e-6 * gradient_norm(w);
    for (int i = 0; i < kd_params_count(s->p); i++) {
        kd_param_info info = kd_params_info(s->p, i);
        char name[200];
        if (info.carried || info.is_counter)
            continue;
        snprintf(name, sizeof name, "%s/%s", info.is_state ? "state" : "grad", info.name);
        const float *base = info.is_state ? kd_params_states(s->p, NULL) : kd_exec_gradients(s->e);
        check_sample(s, w, name, base + s->p->offset[i], info.count, info.is_state ? tolerance : fmax(tolerance, s->c->kinks), info.is_state ? 0 : none);
        *(info.is_state ? &states : &gradients) += 1;
    }
    assert_true(gradients > 20);
    /* The file holds nothing that we haven't compared: five outputs, those of evaluation, and a sample per parameter. */
    assert_int_equal(kd_weights_count(w), 5 + (s->c->eval ? 2 : 0) + gradients + states);
}

/* The first picture's features in evaluation mode, by the running statistics of the formula. */
static inline void check_eval(const step_case *c, kd_backend *b, const kd_weights *w, kd_tolerance tol) {
    kd_graph *g = kd_graph_create();
    kd_params *p = NULL;
    kd_exec *e = NULL;
    float *buf = NULL;
    size_t count = (size_t)(c->size * c->size * 3);
    kd_model_taps taps = kd_model_build(g, &c->model, c->size, c->size);
    assert_ok(kd_params_create(&p, g, b, &err));
    for (int i = 0; i < kd_params_count(p); i++)
        if (kd_params_info(p, i).count > count)
            count = kd_params_info(p, i).count;
    assert_ok(kd_alloc_array(&buf, count, sizeof *buf, &err));
    assert_ok(formula_params(p, buf, &err));
    assert_ok(kd_exec_create(&e, g, p, &(kd_exec_config){.batch = 1}, &err));
    formula_pictures((uint8_t *)buf, (size_t)(c->size * c->size * 3));
    assert_ok(kd_exec_upload(e, "images", buf, &err));
    assert_ok(kd_exec_forward(e, &err));
    assert_ok(kd_exec_download(e, "pooled", 1, buf, &err));
    check_golden(w, "eval/pooled", buf, (size_t)c->model.width, tol);
    assert_ok(kd_exec_download(e, "map", 1, buf, &err));
    check_golden(w, "eval/map", buf, (size_t)(taps.map_h * taps.map_w * c->model.width), tol);
    kd_exec_destroy(e);
    kd_params_destroy(p);
    kd_graph_destroy(g);
    kd_free(buf);
}

/* ref, cpu: how far each may be from the goldens, which are f64: outputs absolutely and relatively, gradients and statistics relatively to their norm. */
static inline void check_step(const step_case *c, double ref, double cpu) {
    kd_weights *w = NULL;
    int ran = 0;
    assert_ok(kd_weights_open(&w, c->file, &err));
    for (int d = 0; d < DEVICES; d++) {
        step s = {.c = c, .b = try_open(devices[d])};
        if (!s.b)
            continue;
        step_run(&s, KD_F32);
        double bound = d == 0 ? ref : cpu;
        kd_tolerance tol = {.abs = bound, .rel = bound};
        check_output(&s, w, "pooled", tol);
        check_output(&s, w, "map", tol);
        check_output(&s, w, "pred_cls", tol);
        check_output(&s, w, "loss_cls", tol);
        check_output(&s, w, "loss_patch", tol);
        check_parameters(&s, w, bound);
        assert_int_equal(kd_params_counter(s.p), 1);
        if (c->eval)
            check_eval(c, s.b, w, tol);
        step_drop(&s);
        ran++;
    }
    assert_true(ran >= 1);
    kd_weights_close(w);
}

#endif

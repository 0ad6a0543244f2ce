/* Three training steps of full-size students against PyTorch in f64: every gradient of the first, the losses of all, and where the weights went. The whole of the chain that DESIGN promises: the reference
 * libraries' networks, heads, losses, clipping, AdamW. tests/golden/train/generate_steps.py makes the files and says how 9 numbers hold a tensor's relative L2 error. */
#include "tests/unit/unit.h"

#include <math.h>

#include "common/base/mem.h"
#include "common/weights/weights.h"
#include "kernels/nn/inspect.h"
#include "tests/unit/formula.h"
#include "tests/unit/loss_fixture.h"
#include "train/step.h"

enum { STEPS = 3, WIDTH = 24, PROJECTIONS = 8, SUMMARY = 2 + PROJECTIONS, MAX_BATCH = 4 };
static const double LR = 1e-4;

typedef struct parity_case {
    const char *model, *pictures; /* pictures: the generator's choice, in recipe_steps.json */
    int batch, side, grid;
    double gradient; /* limit of the relative L2 error of a tensor's gradient, rounding (below 1e-6 of the whole gradient) excepted */
    double loss;     /* limit of the relative error of a loss */
    double times;    /* how often PyTorch's own f32 error the way of all weights may be off */
} parity_case;

static kd_err err;

/* A tensor's norm and projections, as summary() of the generator. */
static void summarize(double out[1 + PROJECTIONS], const char *name, const float *x, const float *minus, size_t n) {
    char signs[300];
    snprintf(signs, sizeof signs, "%s/signs", name);
    memset(out, 0, (1 + PROJECTIONS) * sizeof *out);
    for (size_t i = 0; i < n; i++) {
        double v = (double)x[i] - (minus != NULL ? (double)minus[i] : 0);
        uint32_t bits = formula_bits(signs, (uint32_t)i) >> 24;
        out[0] += v * v;
        for (int j = 0; j < PROJECTIONS; j++)
            out[1 + j] += bits >> (PROJECTIONS - 1 - j) & 1 ? v : -v;
    }
    out[0] = sqrt(out[0]);
}

/* Norm of the difference of two tensors, from their projections. */
static double distance(const double a[1 + PROJECTIONS], const float b[SUMMARY]) {
    double sum = 0;
    for (int j = 1; j <= PROJECTIONS; j++)
        sum += (a[j] - (double)b[j]) * (a[j] - (double)b[j]);
    return sqrt(sum / PROJECTIONS);
}

/* Two summaries: gradient, way. */
static int read_golden(const kd_weights *w, const char *name, float out[2 * SUMMARY]) {
    int i = kd_weights_find(w, name);
    if (i >= 0)
        assert_ok(kd_weights_read_f32(w, i, out, 2 * SUMMARY, &err));
    return i >= 0;
}

static kd_student *make_student(kd_backend *b, const parity_case *c, float *buf) {
    static kd_train_config config;
    kd_student *s;
    config = (kd_train_config){.lr = "1e-4", .weight_decay = "0.05", .batch_size = c->batch, .optimizer = "adamw", .lr_scale = "auto", .accumulate = 1};
    kd_loss loss = lf_std_mse(1, 1);
    kd_student_spec spec = {.name = c->model, .batch = c->batch, .precision = KD_F32, .config = &config, .loss = &loss, .views = 1,
                            .view = {{.image_h = c->side, .image_w = c->side, .width = WIDTH, .grid_h = c->grid, .grid_w = c->grid}}};
    assert_ok(kd_student_create(&s, b, &spec, &err));
    assert_ok(formula_params(s->params, buf, &err));
    return s;
}

static void put_batch(kd_student *s, const parity_case *c) {
    size_t row = (size_t)(c->side * c->side * 3), patch_row = (size_t)(c->grid * c->grid * WIDTH), n = (size_t)c->batch;
    uint8_t *pixels;
    float *cls, *patch;
    assert_ok(kd_alloc_array(&pixels, n * row, 1, &err));
    assert_ok(kd_alloc_array(&cls, n * WIDTH, sizeof *cls, &err));
    assert_ok(kd_alloc_array(&patch, n * patch_row, sizeof *patch, &err));
    for (size_t i = 0; i < n * row; i++)
        pixels[i] = (uint8_t)(formula_bits(c->pictures, (uint32_t)i) >> 24);
    formula_targets(cls, "target.cls", n * WIDTH);
    formula_targets(patch, "target.patch", n * patch_row);
    for (size_t i = 0; i < n; i++) {
        kd_sample sample = {.pixels = pixels + i * row, .target = {cls + i * WIDTH, patch + i * patch_row}};
        assert_ok(kd_student_put(s, 0, (int)i, &sample, &err));
    }
    kd_free(pixels);
    kd_free(cls);
    kd_free(patch);
}

/* Every trained parameter has a golden tensor; the first gradient that is too far off is named, from the loss on. Prints the worst: what the limits are set by. */
static void check_gradients(kd_student *s, const kd_weights *w, const parity_case *c, float *buf) {
    float want[2 * SUMMARY];
    double got[1 + PROJECTIONS], whole = 0, worst = 0;
    int compared = 0;
    for (int i = 0; i < kd_params_count(s->params); i++)
        if (read_golden(w, kd_params_info(s->params, i).name, want))
            whole += (double)want[0] * (double)want[0];
    whole = sqrt(whole);
    for (int i = kd_params_count(s->params) - 1; i >= 0; i--) {
        kd_param_info info = kd_params_info(s->params, i);
        const float *gradient = kd_exec_gradient(s->program[0].train, i);
        if (gradient == NULL)
            continue;
        if (!read_golden(w, info.name, want))
            fail_msg("PyTorch has no gradient of %s", info.name);
        assert_ok(s->backend->v->download(s->backend, buf, gradient, info.count * sizeof *buf, &err));
        summarize(got, info.name, buf, NULL, info.count);
        double relative = distance(got, want) / (double)want[0];
        compared++;
        if ((double)want[0] < 1e-6 * whole)
            continue;
        worst = fmax(worst, relative);
        if (!(relative <= c->gradient))
            fail_msg("the gradient of %s is %.2g of its norm away from PyTorch's (limit %.2g): the first such tensor from the loss backwards", info.name, relative, c->gradient);
        if (!(fabs(got[0] - (double)want[0]) <= 1.5 * c->gradient * (double)want[0]))
            fail_msg("the norm of the gradient of %s is %.9g, PyTorch's is %.9g", info.name, got[0], (double)want[0]);
    }
    print_message("%s on %s: %d gradients, worst %.2g", c->model, s->backend->v->name, compared, worst);
    assert_true(compared > 50);
}

static void check_way(kd_student *s, const kd_weights *w, const parity_case *c, float *buf, float *start) {
    float want[2 * SUMMARY];
    double off = 0, off32 = 0, norm = 0;
    for (int i = 0; i < kd_params_count(s->params); i++) {
        kd_param_info info = kd_params_info(s->params, i);
        double got[1 + PROJECTIONS];
        if (!read_golden(w, info.name, want))
            continue;
        const float *way = want + SUMMARY;
        assert_ok(kd_params_get(s->params, i, buf, &err));
        formula_fill(start, &info);
        summarize(got, info.name, buf, start, info.count);
        double d = distance(got, way), single = (double)way[0] * (double)way[SUMMARY - 1];
        off += d * d;
        off32 += single * single;
        norm += (double)way[0] * (double)way[0];
    }
    print_message(", way of the weights %.2g (PyTorch in f32 %.2g)\n", sqrt(off / norm), sqrt(off32 / norm));
    assert_true(norm > 0);
    if (!(sqrt(off) <= c->times * sqrt(off32)))
        fail_msg("after %d steps the weights are %.2g of their way away from PyTorch's in f64; PyTorch's own in f32 are %.2g away", STEPS, sqrt(off / norm), sqrt(off32 / norm));
}

static void check_loss(const char *what, int step, double got, const kd_weights *w, double limit) {
    char name[32];
    float want[STEPS];
    snprintf(name, sizeof name, "loss_%s", what);
    assert_ok(kd_weights_read_f32(w, kd_weights_find(w, name), want, STEPS, &err));
    if (!(fabs(got - (double)want[step]) <= limit * (double)want[step]))
        fail_msg("loss %s of step %d is %.9g, PyTorch's is %.9g", what, step + 1, got, (double)want[step]);
}

static void run_case(const char *device, const parity_case *c) {
    enum { LARGEST = 4 << 20 }; /* values of a parameter: ResNet-18's last convolutions have 2.4 million */
    kd_backend *b;
    kd_weights *w;
    float *buf, *start;
    char path[200];
    if (kd_backend_open(&b, device, 2, &err) != KD_OK) {
        print_message("skipped: %s\n", err.msg);
        skip();
    }
    snprintf(path, sizeof path, "tests/golden/train/steps_%s.safetensors", c->model);
    assert_ok(kd_weights_open(&w, path, &err));
    assert_ok(kd_alloc_array(&buf, LARGEST, sizeof *buf, &err));
    assert_ok(kd_alloc_array(&start, LARGEST, sizeof *start, &err));
    kd_student *s = make_student(b, c, buf);
    put_batch(s, c);
    for (int step = 0; step < STEPS; step++) {
        kd_step_result x;
        assert_ok(kd_step_run(s, LR * (step + 1) / STEPS, 1.0, &x, &err));
        check_loss("cls", step, x.term[0], w, c->loss);
        check_loss("patch", step, x.term[1], w, c->loss);
        if (step == 0)
            check_gradients(s, w, c, buf);
    }
    check_way(s, w, c, buf, start);
    kd_student_destroy(s);
    kd_free(buf);
    kd_free(start);
    kd_weights_close(w);
    kd_backend_close(b);
}

static const parity_case resnet18 = {"resnet18", "images.17", 4, 64, 4, 1e-4, 1e-4, 3};
static const parity_case vit_small = {"vit_small_patch16_224", "images.0", 2, 224, 16, 1e-4, 1e-4, 3};

static const parity_case yolov8n = {"yolov8n", "images.22", 4, 64, 4, 1e-4, 1e-4, 3};

static void resnet18_on_ref(void **state) {
    (void)state;
    run_case("ref", &resnet18);
}
static void resnet18_on_cpu(void **state) {
    (void)state;
    run_case("cpu", &resnet18);
}
/* The reference would take minutes; the small ViT of test_train_step.c covers it. */
static void vit_small_on_cpu(void **state) {
    (void)state;
    run_case("cpu", &vit_small);
}

static void yolov8n_on_ref(void **state) {
    (void)state;
    run_case("ref", &yolov8n);
}
static void yolov8n_on_cpu(void **state) {
    (void)state;
    run_case("cpu", &yolov8n);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(resnet18_on_ref), cmocka_unit_test(resnet18_on_cpu), cmocka_unit_test(vit_small_on_cpu), cmocka_unit_test(yolov8n_on_ref),
                                       cmocka_unit_test(yolov8n_on_cpu)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}

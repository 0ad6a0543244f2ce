/* Adjoint targets in double: from U^T t and |t|^2 come the value and the gradient of the mean squared error between an upsampled prediction and t, also of standardised features.
 * U is written out here as a matrix, row by row of the grid; the op's reference core never sees t. A graph trained with either loss gets the same gradients. */
#include <math.h>

#include "tests/unit/unit.h"

#include "common/base/mem.h"
#include "common/base/rng.h"
#include "common/tensor/target.h"
#include "kernels/nn/graph.h"
#include "kernels/ref/ref_core.h"

typedef struct sizes {
    int n, k, l, h, w, d; /* images, reduced grid, full grid, width */
} sizes;

static const sizes list[] = {{2, 7, 7, 16, 16, 6}, {2, 14, 14, 16, 16, 5}, {3, 5, 5, 16, 16, 4}, {2, 4, 6, 9, 7, 8}, {1, 1, 1, 3, 5, 3}, {2, 5, 3, 4, 2, 7}, {1, 6, 6, 6, 6, 2}, {2, 7, 7, 37, 37, 3}};

static double *normal(size_t n, uint64_t stream) {
    kd_rng r = kd_rng_make(11, stream, 0, KD_RNG_TEST);
    double *x = calloc(n, sizeof *x);
    assert_non_null(x);
    for (size_t i = 0; i < n; i++)
        x[i] = 0.3 + kd_rng_normal(&r);
    return x;
}

/* u[point of the full grid][point of the reduced grid] */
static double *upsampling(const sizes *s) {
    int points = s->k * s->l;
    double *u = calloc((size_t)(s->h * s->w * points), sizeof *u);
    assert_non_null(u);
    for (int y = 0; y < s->h; y++)
        for (int x = 0; x < s->w; x++) {
            int64_t r[2], c[2];
            double wr, wc;
            kd_bilinear_tap(s->k, s->h, y, &r[0], &r[1], &wr);
            kd_bilinear_tap(s->l, s->w, x, &c[0], &c[1], &wc);
            for (int i = 0; i < 4; i++)
                u[(y * s->w + x) * points + r[i / 2] * s->l + c[i % 2]] += (i / 2 ? wr : 1 - wr) * (i % 2 ? wc : 1 - wc);
        }
    return u;
}

/* out[n][reduced points][d] = U^T t */
static double *transpose(const sizes *s, const double *u, const double *t) {
    int full = s->h * s->w, points = s->k * s->l;
    double *a = calloc((size_t)(s->n * points * s->d), sizeof *a);
    assert_non_null(a);
    for (int n = 0; n < s->n; n++)
        for (int f = 0; f < full; f++)
            for (int p = 0; p < points; p++)
                for (int d = 0; d < s->d; d++)
                    a[(n * points + p) * s->d + d] += u[f * points + p] * t[(n * full + f) * s->d + d];
    return a;
}

static double *squares(const sizes *s, const double *t) {
    int each = s->h * s->w * s->d;
    double *out = calloc((size_t)s->n, sizeof *out);
    assert_non_null(out);
    for (int i = 0; i < s->n * each; i++)
        out[i / each] += t[i] * t[i];
    return out;
}

/* Mean of (U s - t)^2 and its gradient by s, on the full grid. */
static double full_loss(const sizes *s, const double *u, const double *pred, const double *t, double *gradient) {
    int full = s->h * s->w, points = s->k * s->l;
    double count = (double)s->n * full * s->d, sum = 0;
    memset(gradient, 0, (size_t)(s->n * points * s->d) * sizeof *gradient);
    for (int n = 0; n < s->n; n++)
        for (int f = 0; f < full; f++)
            for (int d = 0; d < s->d; d++) {
                double e = -t[(n * full + f) * s->d + d];
                for (int p = 0; p < points; p++)
                    e += u[f * points + p] * pred[(n * points + p) * s->d + d];
                sum += e * e;
                for (int p = 0; p < points; p++)
                    gradient[(n * points + p) * s->d + d] += 2 / count * e * u[f * points + p];
            }
    return sum / count;
}

static void same(const char *what, const sizes *s, double got, double want, double size) {
    if (!(fabs(got - want) <= 1e-6 * size)) /* the figure that the cache promises */
        fail_msg("%dx%d for %dx%d: %s is %.17g, the full grid's %.17g", s->k, s->l, s->h, s->w, what, got, want);
}

/* The op on a and |t|^2 against the full grid's loss with t. */
static void check_loss(const sizes *s, const double *u, const double *pred, const double *t, const double *a, const double *square) {
    int each = s->k * s->l * s->d, n = s->n * each;
    kd_tdesc map = {KD_F32, 4, {s->n, s->k, s->l, s->d}};
    kd_op_desc d = {.kind = KD_OP_MSE_ADJOINT, .name = "loss", .inputs = 3, .train = 1, .need_dx = 1, .grid_h = s->h, .grid_w = s->w,
                    .x = {map, map, {KD_F32, 2, {s->n, 1}}}, .y = {KD_F32, 1, {1}}};
    const kd_ref_core *core = kd_ref_core_of(d.kind);
    double value = 0, one = 1, *gradient = calloc((size_t)n, sizeof *gradient), *want = calloc((size_t)n, sizeof *want), *work = calloc(core->work(&d), sizeof *work), largest = 0;
    kd_ref_vals v = {.x = {pred, a, square}, .y = &value, .dy = &one, .dx = {gradient}, .work = work};
    kd_op_check(&d);
    core->forward(&d, &v);
    core->backward(&d, &v);
    double loss = full_loss(s, u, pred, t, want);
    same("the value", s, value, loss, loss);
    for (int i = 0; i < n; i++)
        largest = fmax(largest, fabs(want[i]));
    for (int i = 0; i < n; i++)
        same("a gradient", s, gradient[i], want[i], largest);
    free(gradient);
    free(want);
    free(work);
}

static void value_and_gradient_are_those_of_the_full_grid(void **state) {
    (void)state;
    for (size_t i = 0; i < sizeof list / sizeof *list; i++) {
        const sizes *s = &list[i];
        double *u = upsampling(s), *t = normal((size_t)(s->n * s->h * s->w * s->d), 2 * i), *pred = normal((size_t)(s->n * s->k * s->l * s->d), 2 * i + 1);
        double *a = transpose(s, u, t), *square = squares(s, t);
        check_loss(s, u, pred, t, a, square);
        double *all[] = {u, t, pred, a, square};
        for (size_t k = 0; k < 5; k++)
            free(all[k]);
    }
}

/* t' = (t - mu) / sigma, without t: a' = (a - c mu) / sigma with c = U^T 1, and |t'|^2 = (|t|^2 - 2 <mu, sum of the rows of a> + points |mu|^2) / sigma^2, because U's rows sum to 1. */
static void standardisation_commutes_with_the_adjoint(void **state) {
    (void)state;
    const double sigma = 1.7;
    for (size_t i = 0; i < sizeof list / sizeof *list; i++) {
        const sizes *s = &list[i];
        int full = s->h * s->w, points = s->k * s->l;
        double *u = upsampling(s), *t = normal((size_t)(s->n * full * s->d), 100 + 3 * i), *pred = normal((size_t)(s->n * points * s->d), 101 + 3 * i);
        double *mu = normal((size_t)s->d, 102 + 3 * i), *a = transpose(s, u, t), *square = squares(s, t);
        double mu2 = 0;
        for (int d = 0; d < s->d; d++)
            mu2 += mu[d] * mu[d];
        for (int n = 0; n < s->n; n++) {
            double dot = 0;
            for (int p = 0; p < points; p++) {
                double c = 0;
                for (int f = 0; f < full; f++)
                    c += u[f * points + p];
                for (int d = 0; d < s->d; d++) {
                    double *at = &a[(n * points + p) * s->d + d];
                    dot += mu[d] * *at;
                    *at = (*at - c * mu[d]) / sigma;
                }
            }
            square[n] = (square[n] - 2 * dot + full * mu2) / (sigma * sigma);
        }
        for (int k = 0; k < s->n * full * s->d; k++)
            t[k] = (t[k] - mu[k % s->d]) / sigma;
        check_loss(s, u, pred, t, a, square);
        double *all[] = {u, t, pred, mu, a, square};
        for (size_t k = 0; k < 6; k++)
            free(all[k]);
    }
}

enum { BATCH = 2, SIDE = 4, WIDTH = 5, FULL_H = 7, FULL_W = 9 };

/* Loss and parameter gradients of a convolution whose map is taught at FULL_H x FULL_W; t: the targets there, a and square: their adjoint. */
static float train_once(kd_backend *b, const float *t, const float *a, const float *square, float *gradients, size_t count) {
    kd_err err = {0};
    const float mean[3] = {0.4f, 0.4f, 0.4f}, std[3] = {0.2f, 0.2f, 0.2f};
    kd_graph *g = kd_graph_create();
    kd_params *p = NULL;
    kd_exec *e = NULL;
    uint8_t pixels[BATCH * SIDE * SIDE * 3];
    float loss = 0;
    kd_val map = kd_graph_conv2d(g, kd_graph_normalize(g, kd_graph_images(g, SIDE, SIDE), mean, std), "conv", WIDTH, 3, 1, 1, 1);
    if (t)
        kd_graph_mse(g, kd_graph_resize_bilinear(g, map, FULL_H, FULL_W), kd_graph_input(g, "t", 3, (int64_t[]){FULL_H, FULL_W, WIDTH}), 0.5f, "loss");
    else
        kd_graph_mse_adjoint(g, map, kd_graph_input(g, "a", 3, (int64_t[]){SIDE, SIDE, WIDTH}), kd_graph_input(g, "square", 1, (int64_t[]){1}), FULL_H, FULL_W, 0.5f, "loss");
    for (size_t i = 0; i < sizeof pixels; i++)
        pixels[i] = (uint8_t)(i * 37 % 251);
    assert_ok(kd_params_create(&p, g, b, &err));
    assert_ok(kd_params_init(p, 5, &err));
    assert_ok(kd_exec_create(&e, g, p, &(kd_exec_config){.batch = BATCH, .precision = KD_F32, .train = 1}, &err));
    assert_ok(kd_exec_upload(e, "images", pixels, &err));
    if (t) {
        assert_ok(kd_exec_upload(e, "t", t, &err));
    } else {
        assert_ok(kd_exec_upload(e, "a", a, &err));
        assert_ok(kd_exec_upload(e, "square", square, &err));
    }
    assert_ok(kd_exec_forward(e, &err));
    assert_ok(kd_exec_backward(e, 0, &err));
    assert_ok(kd_exec_download(e, "loss", 1, &loss, &err));
    assert_ok(b->v->download(b, gradients, kd_exec_gradients(e), count * sizeof *gradients, &err));
    kd_exec_destroy(e);
    kd_params_destroy(p);
    kd_graph_destroy(g);
    return loss;
}

static float *narrow(const double *x, size_t n) {
    float *out = calloc(n, sizeof *out);
    assert_non_null(out);
    for (size_t i = 0; i < n; i++)
        out[i] = (float)x[i];
    return out;
}

static void a_graph_learns_the_same_from_an_adjoint_target(void **state) {
    (void)state;
    enum { COUNT = WIDTH * 3 * 9 + WIDTH };
    const sizes s = {BATCH, SIDE, SIDE, FULL_H, FULL_W, WIDTH};
    kd_err err = {0};
    kd_backend *b = NULL;
    size_t full = BATCH * FULL_H * FULL_W * WIDTH, reduced = BATCH * SIDE * SIDE * WIDTH;
    double *u = upsampling(&s), *t = normal(full, 7), *a, *square;
    for (size_t i = 0; i < full; i++)
        t[i] = (double)(float)t[i];
    a = transpose(&s, u, t);
    square = squares(&s, t);
    float *ft = narrow(t, full), *fa = narrow(a, reduced), *fsquare = narrow(square, BATCH), want[COUNT], got[COUNT];
    assert_ok(kd_backend_open(&b, "ref", 1, &err));
    float loss = train_once(b, ft, NULL, NULL, want, COUNT), adjoint = train_once(b, NULL, fa, fsquare, got, COUNT);
    assert_true(loss > 0.5f && fabsf(loss - adjoint) <= 1e-6f * loss);
    for (int i = 0; i < COUNT; i++)
        if (!(fabsf(got[i] - want[i]) <= 1e-6f))
            fail_msg("gradient %d is %.9g, that of the full grid %.9g", i, (double)got[i], (double)want[i]);
    kd_backend_close(b);
    void *all[] = {u, t, a, square, ft, fa, fsquare};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        free(all[i]);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(value_and_gradient_are_those_of_the_full_grid),
        cmocka_unit_test(standardisation_commutes_with_the_adjoint),
        cmocka_unit_test(a_graph_learns_the_same_from_an_adjoint_target),
    };
    return cmocka_run_group_tests_name("adjoint targets", tests, NULL, NULL);
}

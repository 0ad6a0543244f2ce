/* Adjoint targets: what is computed from U^T t and |t|^2 equals what the full grid gives. U is built here from its definition, independently of the code under test. */
#include "tests/unit/unit.h"

#include <math.h>

#include "tests/unit/formula.h"
#include "train/adjoint.h"

enum { MOST = 16, WIDTH = 5 };

static kd_err err;

/* Rows of the bilinear upsampling (align_corners = false) from h x w to H x W as one matrix [H * W, h * w]. */
static void upsampling(double *u, int h, int w, int H, int W) {
    memset(u, 0, sizeof *u * (size_t)(H * W * h * w));
    for (int y = 0; y < H; y++)
        for (int x = 0; x < W; x++) {
            double sy = fmax(0, (y + 0.5) * h / H - 0.5), sx = fmax(0, (x + 0.5) * w / W - 0.5);
            for (int i = 0; i < h; i++)
                for (int j = 0; j < w; j++) {
                    double a = fmax(0, 1 - fabs(fmin(sy, h - 1) - i)), b = fmax(0, 1 - fabs(fmin(sx, w - 1) - j));
                    u[(y * W + x) * h * w + i * w + j] = a * b;
                }
        }
}

/* a = U^T t, in double. */
static void reduce(double *a, const double *u, const double *t, int rows, int tokens) {
    for (int k = 0; k < rows; k++)
        for (int c = 0; c < WIDTH; c++) {
            a[k * WIDTH + c] = 0;
            for (int p = 0; p < tokens; p++)
                a[k * WIDTH + c] += u[p * rows + k] * t[p * WIDTH + c];
        }
}

static void agrees(int h, int w, int H, int W) {
    static double u[MOST * MOST * MOST * MOST], t[MOST * MOST * WIDTH], a[MOST * MOST * WIDTH];
    static float tokens[MOST * MOST * WIDTH], s[MOST * MOST * WIDTH];
    const float mean[WIDTH] = {0.5f, -1.25f, 3, 0, 0.125f}, std = 1.75f;
    const kd_target target = {KD_TARGET_ADJOINT, h, w};
    int rows = h * w, grid = H * W;
    double square = 0, want_square = 0, want = 0;
    kd_adjoint x;
    upsampling(u, h, w, H, W);
    for (int i = 0; i < grid * WIDTH; i++) {
        t[i] = 2 * formula_unit("t", (uint32_t)i) + (double)mean[i % WIDTH];
        square += t[i] * t[i];
    }
    reduce(a, u, t, rows, grid);
    for (int i = 0; i < rows * WIDTH; i++)
        tokens[i] = (float)a[i];
    assert_ok(kd_adjoint_create(&x, &target, H, W, &err));
    double got = kd_adjoint_standardise(&x, tokens, square, mean, std, WIDTH);
    for (int i = 0; i < grid * WIDTH; i++) {
        t[i] = (t[i] - (double)mean[i % WIDTH]) / (double)std;
        want_square += t[i] * t[i];
    }
    reduce(a, u, t, rows, grid);
    assert_true(fabs(got - want_square) < 1e-6 * want_square); /* tokens come as f32 */
    for (int i = 0; i < rows * WIDTH; i++)
        assert_true(fabs((double)tokens[i] - a[i]) < 2e-6 * fmax(1, fabs(a[i])) * grid / rows);
    formula_targets(s, "s", (size_t)(rows * WIDTH));
    for (int p = 0; p < grid; p++)
        for (int c = 0; c < WIDTH; c++) {
            double up = 0;
            for (int k = 0; k < rows; k++)
                up += u[p * rows + k] * (double)s[k * WIDTH + c];
            want += up * up;
        }
    assert_true(fabs(kd_adjoint_upsampled_square(&x, s, WIDTH) - want) < 1e-12 * want);
    kd_adjoint_free(&x);
}

static void sums_over_the_grid_need_no_single_token(void **state) {
    (void)state;
    agrees(7, 7, 16, 16);
    agrees(3, 5, 8, 12);
    agrees(1, 1, 4, 6);  /* the mean of the grid */
    agrees(4, 4, 4, 4);  /* the grid itself */
    agrees(1, 7, 16, 9);
    agrees(9, 6, 4, 13); /* rows are reduced: some of the map's have no weight */
}

static void a_grid_that_equals_its_mean_standardises_to_nothing(void **state) {
    (void)state;
    const kd_target target = {KD_TARGET_ADJOINT, 2, 3};
    const float mean[1] = {1.5f};
    float tokens[6];
    kd_adjoint x;
    assert_ok(kd_adjoint_create(&x, &target, 8, 9, &err));
    for (int k = 0; k < 6; k++)
        tokens[k] = (float)(x.ones_h[k / 3] * x.ones_w[k % 3] * 1.5);
    assert_true(fabs(kd_adjoint_standardise(&x, tokens, 72 * 1.5 * 1.5, mean, 2, 1)) < 1e-12);
    for (int k = 0; k < 6; k++)
        assert_true(fabsf(tokens[k]) < 1e-6f);
    kd_adjoint_free(&x);
}

/* The map of a prediction as its own target, and both turned into means of the grid around each point. */
static void looks_right(int h, int w, int H, int W) {
    static double u[MOST * MOST * MOST * MOST], full[MOST * MOST * WIDTH], a[MOST * MOST * WIDTH];
    static float s[MOST * MOST * WIDTH], got[MOST * MOST * WIDTH];
    const kd_target target = {KD_TARGET_ADJOINT, h, w};
    int rows = h * w, grid = H * W;
    kd_adjoint x;
    upsampling(u, h, w, H, W);
    formula_targets(s, "s", (size_t)(rows * WIDTH));
    for (int p = 0; p < grid; p++)
        for (int c = 0; c < WIDTH; c++) {
            full[p * WIDTH + c] = 0;
            for (int k = 0; k < rows; k++)
                full[p * WIDTH + c] += u[p * rows + k] * (double)s[k * WIDTH + c];
        }
    reduce(a, u, full, rows, grid);
    assert_ok(kd_adjoint_create(&x, &target, H, W, &err));
    kd_adjoint_of_prediction(&x, got, s, WIDTH);
    for (int i = 0; i < rows * WIDTH; i++)
        assert_true(fabs((double)got[i] - a[i]) < 2e-6 * fmax(1, fabs(a[i])) * grid / rows);
    kd_adjoint_means(&x, got, WIDTH);
    for (int k = 0; k < rows; k++) {
        double ones = 0;
        for (int p = 0; p < grid; p++)
            ones += u[p * rows + k];
        for (int c = 0; c < WIDTH; c++)
            assert_true(fabs((double)got[k * WIDTH + c] - (ones > 1e-12 ? a[k * WIDTH + c] / ones : 0)) < 1e-5);
    }
    kd_adjoint_free(&x);
}

static void predictions_and_targets_can_be_looked_at(void **state) {
    (void)state;
    looks_right(7, 7, 16, 16);
    looks_right(3, 5, 8, 7);
    looks_right(4, 4, 4, 4);
    looks_right(9, 6, 4, 13); /* some of the map's rows are reached by no point of the grid */
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(sums_over_the_grid_need_no_single_token),
        cmocka_unit_test(a_grid_that_equals_its_mean_standardises_to_nothing),
        cmocka_unit_test(predictions_and_targets_can_be_looked_at),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

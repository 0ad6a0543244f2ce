/* Ridge maps, what they read out, intervals and grids: NumPy's and PyTorch's numbers, and the extremes. */
#include "tests/unit/unit.h"

#include <math.h>

#include "common/base/rng.h"
#include "tests/golden/likeness/likeness_golden.h"
#include "train/eval/likeness.h"
#include "train/eval/ridge.h"

static kd_err err;

enum { N = LIKE_IMAGES * LIKE_ROWS };
static float x[N * LIKE_STUDENT], y[N * LIKE_TEACHER];

static void sequence(double *out, size_t n, uint32_t seed) {
    for (size_t i = 0; i < n; i++) {
        seed = 1664525u * seed + 1013904223u;
        out[i] = seed / 4294967296.0 - 0.5;
    }
}

/* As make_likeness.py makes them. */
static int make(void **state) {
    static double a[N * LIKE_STUDENT], noise[N * LIKE_TEACHER], mix[LIKE_TEACHER * LIKE_STUDENT];
    (void)state;
    sequence(a, N * LIKE_STUDENT, 1);
    sequence(noise, N * LIKE_TEACHER, 2);
    sequence(mix, LIKE_TEACHER * LIKE_STUDENT, 3);
    for (int i = 0; i < N * LIKE_STUDENT; i++) {
        x[i] = (float)(3 * a[i]);
        x[i] += i % LIKE_STUDENT == 0 ? 1 : 0;
    }
    for (int i = 0; i < N; i++)
        for (int o = 0; o < LIKE_TEACHER; o++) {
            double sum = noise[i * LIKE_TEACHER + o] + 0.5;
            for (int c = 0; c < LIKE_STUDENT; c++)
                sum += (double)x[i * LIKE_STUDENT + c] * mix[o * LIKE_STUDENT + c];
            y[i * LIKE_TEACHER + o] = (float)sum;
        }
    return 0;
}

static void assert_near(double got, double want, double tolerance) {
    if (!(fabs(got - want) <= tolerance * (1 + fabs(want))))
        fail_msg("%.17g instead of %.17g", got, want);
}

static void assert_figure(kd_figure f, const double want[3]) {
    assert_near(f.value, want[0], 1e-5);
    assert_near(f.low, want[1], 1e-5);
    assert_near(f.high, want[2], 1e-5);
}

static void a_map_is_numpys(void **state) {
    (void)state;
    kd_ridge map = {0};
    float predicted[N * LIKE_TEACHER];
    assert_ok(kd_ridge_fit(&map, x, LIKE_STUDENT, y, LIKE_TEACHER, N, 0.03, 2, &err));
    for (int i = 0; i < LIKE_TEACHER * LIKE_STUDENT; i++)
        assert_near(map.weight[i], ridge_weight[i], 1e-6);
    for (int i = 0; i < LIKE_TEACHER; i++)
        assert_near(map.bias[i], ridge_bias[i], 1e-6);
    kd_ridge_apply(&map, x, N, predicted, 2);
    for (int o = 0; o < LIKE_TEACHER; o++) {
        double sum = ridge_bias[o];
        for (int c = 0; c < LIKE_STUDENT; c++)
            sum += ridge_weight[o * LIKE_STUDENT + c] * (double)x[7 * LIKE_STUDENT + c];
        assert_near((double)predicted[7 * LIKE_TEACHER + o], sum, 1e-6);
    }
    kd_ridge_free(&map);
    assert_ok(kd_ridge_fit_best(&map, x, LIKE_STUDENT, y, LIKE_TEACHER, N, LIKE_ROWS, 1, &err));
    assert_true(map.strength == ridge_best[0]);
    kd_ridge_free(&map);
}

static void likeness_is_numpys_whatever_the_thread_count(void **state) {
    (void)state;
    kd_likeness l, again;
    assert_ok(kd_likeness_measure(&l, y, LIKE_TEACHER, x, LIKE_STUDENT, LIKE_IMAGES, LIKE_ROWS, 1, &err));
    assert_ok(kd_likeness_measure(&again, y, LIKE_TEACHER, x, LIKE_STUDENT, LIKE_IMAGES, LIKE_ROWS, 3, &err));
    assert_figure(l.r2, like_r2);
    assert_figure(l.cosine, like_cosine);
    assert_true(l.strength[0] == like_strength[0] && l.strength[1] == like_strength[1]);
    assert_false(l.same_width);
    assert_true(l.r2.value == again.r2.value && l.cosine.low == again.cosine.low && l.r2.high == again.r2.high);
}

static void features_of_one_width_are_compared_as_they_are_too(void **state) {
    (void)state;
    static float a[N * LIKE_TEACHER];
    kd_likeness l;
    for (int i = 0; i < N; i++)
        memcpy(a + i * LIKE_TEACHER, x + i * LIKE_STUDENT, LIKE_TEACHER * sizeof *a);
    assert_ok(kd_likeness_measure(&l, y, LIKE_TEACHER, a, LIKE_TEACHER, LIKE_IMAGES, LIKE_ROWS, 2, &err));
    assert_true(l.same_width);
    assert_figure(l.raw_cosine, like_raw_cosine);
    assert_figure(l.raw_mse, like_raw_mse);
    assert_ok(kd_likeness_measure(&l, y, LIKE_TEACHER, y, LIKE_TEACHER, LIKE_IMAGES, LIKE_ROWS, 2, &err));
    assert_true(l.raw_mse.value == 0 && fabs(l.raw_cosine.value - 1) < 1e-12);
    assert_true(l.r2.value > 0.999 && l.r2.value <= 1 && l.cosine.value > 0.999);
}

/* More channels than images: a map that was measured on what it was fitted on would read out anything. */
static void noise_tells_nothing_of_noise(void **state) {
    (void)state;
    enum { IMAGES = 40, WIDE = 120, NARROW = 6 };
    static float a[IMAGES * WIDE], b[IMAGES * NARROW];
    kd_rng r = kd_rng_make(5, 0, 0, KD_RNG_TEST);
    kd_likeness l;
    for (int i = 0; i < IMAGES * WIDE; i++)
        a[i] = (float)kd_rng_normal(&r);
    for (int i = 0; i < IMAGES * NARROW; i++)
        b[i] = (float)kd_rng_normal(&r);
    assert_ok(kd_likeness_measure(&l, b, NARROW, a, WIDE, IMAGES, 1, 2, &err));
    assert_true(l.r2.value < 0.1 && l.cosine.value < 0.3);
    memset(a, 0, sizeof a); /* and of what doesn't vary nothing is read */
    assert_ok(kd_likeness_measure(&l, b, NARROW, a, WIDE, IMAGES, 1, 2, &err));
    assert_true(fabs(l.r2.value) < 1e-6 && l.cosine.value == 0);
    assert_ok(kd_likeness_measure(&l, a, WIDE, b, NARROW, KD_LIKENESS_IMAGES, 1, 2, &err)); /* a teacher that doesn't vary */
    assert_true(l.cosine.value == 0);
}

static void an_interval_is_that_of_a_mean(void **state) {
    (void)state;
    const double a[5] = {1, 2, 3, 4, 10}, twice[5] = {2, 2, 2, 2, 2};
    kd_figure f = kd_figure_ratio(a, NULL, 5), g = kd_figure_ratio(a, twice, 5);
    double margin = 1.96 * sqrt(50 / 4.0 / 5); /* of squares 9 + 4 + 1 + 0 + 36 */
    assert_near(f.value, 4, 1e-12);
    assert_near(f.low, 4 - margin, 1e-12);
    assert_near(f.high, 4 + margin, 1e-12);
    assert_near(g.value, 2, 1e-12);
    assert_near(g.high, 2 + margin / 2, 1e-12);
}

static void grids_are_resized_as_pytorch_does(void **state) {
    (void)state;
    double values[3 * 2 * 4];
    float in[3 * 2 * 4], out[5 * 7 * 4], same[3 * 2 * 4];
    sequence(values, 24, 4);
    for (int i = 0; i < 24; i++)
        in[i] = (float)values[i];
    kd_grid_resize(out, 5, 7, in, 3, 2, 4);
    for (int i = 0; i < 5 * 7 * 4; i++)
        assert_near((double)out[i], grid_5x7[i], 1e-6);
    kd_grid_resize(out, 2, 1, in, 3, 2, 4);
    for (int i = 0; i < 2 * 1 * 4; i++)
        assert_near((double)out[i], grid_2x1[i], 1e-6);
    kd_grid_resize(same, 3, 2, in, 3, 2, 4);
    assert_memory_equal(same, in, sizeof in);
}

static void samples_are_spread_over_the_grid(void **state) {
    (void)state;
    float from[12], to[12];
    int seen[12] = {0};
    for (int i = 0; i < 12; i++)
        from[i] = (float)i;
    for (size_t image = 0; image < 12; image++) {
        kd_grid_sample(to, 4, from, 12, 1, image);
        for (int j = 0; j < 4; j++) {
            assert_true(to[j] >= (float)(3 * j) && to[j] < (float)(3 * j + 3)); /* one of each quarter */
            seen[(int)to[j]]++;
        }
    }
    for (int i = 0; i < 12; i++)
        assert_true(seen[i] > 0); /* over the images every place */
    kd_grid_sample(to, 12, from, 12, 1, 5);
    assert_memory_equal(to, from, sizeof from);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_map_is_numpys),
        cmocka_unit_test(likeness_is_numpys_whatever_the_thread_count),
        cmocka_unit_test(features_of_one_width_are_compared_as_they_are_too),
        cmocka_unit_test(noise_tells_nothing_of_noise),
        cmocka_unit_test(an_interval_is_that_of_a_mean),
        cmocka_unit_test(grids_are_resized_as_pytorch_does),
        cmocka_unit_test(samples_are_spread_over_the_grid),
    };
    return cmocka_run_group_tests(tests, make, NULL);
}

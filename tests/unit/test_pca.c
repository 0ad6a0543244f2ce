/* PCA: axes of data whose axes are known, order and signs, degenerate data, colours. */
#include "tests/unit/unit.h"

#include <math.h>

#include "common/base/rng.h"
#include "train/eval/pca.h"

static kd_err err;

enum { N = 500, W = 40 };

/* Four orthogonal directions with known spread, in a space of 40, and a mean. */
static void make(float *rows, double dirs[4][W], const double spread[4]) {
    kd_rng r = kd_rng_make(9, 0, 0, KD_RNG_TEST);
    for (int k = 0; k < 4; k++) {
        for (int c = 0; c < W; c++)
            dirs[k][c] = kd_rng_normal(&r);
        for (int j = 0; j < k; j++) {
            double along = 0;
            for (int c = 0; c < W; c++)
                along += dirs[j][c] * dirs[k][c];
            for (int c = 0; c < W; c++)
                dirs[k][c] -= along * dirs[j][c];
        }
        double length = 0;
        for (int c = 0; c < W; c++)
            length += dirs[k][c] * dirs[k][c];
        for (int c = 0; c < W; c++)
            dirs[k][c] /= sqrt(length);
    }
    for (int i = 0; i < N; i++) /* at +-spread, uncorrelated over whole periods: the sample's axes are exactly these */
        for (int c = 0; c < W; c++) {
            double v = 3 + c;
            for (int k = 0; k < 4; k++)
                v += ((i >> k & 1) ? 1 : -1) * spread[k] * dirs[k][c];
            rows[i * W + c] = (float)v;
        }
}

static void axes_are_found_in_order(void **state) {
    (void)state;
    static float rows[N * W];
    double dirs[4][W];
    const double spread[4] = {2, 9, 5, 0.5}; /* largest second */
    const int order[3] = {1, 2, 0};
    kd_pca p;
    make(rows, dirs, spread);
    assert_ok(kd_pca_fit(&p, rows, 496, W, &err)); /* whole periods of 16 */
    for (int k = 0; k < 3; k++) {
        double along = 0, length = 0;
        int largest = 0;
        for (int c = 0; c < W; c++) {
            along += p.axis[k * W + c] * dirs[order[k]][c];
            length += p.axis[k * W + c] * p.axis[k * W + c];
            if (fabs(p.axis[k * W + c]) > fabs(p.axis[k * W + largest]))
                largest = c;
        }
        assert_true(fabs(fabs(along) - 1) < 1e-6);
        assert_true(fabs(length - 1) < 1e-12);
        assert_true(p.axis[k * W + largest] > 0);
        assert_true(fabs(p.variance[k] / (spread[order[k]] * spread[order[k]]) - 1) < 1e-5);
    }
    assert_true(fabs(p.total / (4 + 81 + 25 + 0.25) - 1) < 1e-5);
    for (int c = 0; c < W; c++)
        assert_true(fabs(p.mean[c] - 3 - c) < 1e-5);
    kd_pca_free(&p);
}

static void the_same_data_give_the_same_bits(void **state) {
    (void)state;
    static float rows[N * W];
    double dirs[4][W];
    const double spread[4] = {1, 1, 1, 1}; /* no order: still one answer */
    kd_pca p, q;
    make(rows, dirs, spread);
    assert_ok(kd_pca_fit(&p, rows, N, W, &err));
    assert_ok(kd_pca_fit(&q, rows, N, W, &err));
    assert_memory_equal(p.axis, q.axis, 3 * W * sizeof(double));
    kd_pca_free(&p);
    kd_pca_free(&q);
}

static void assert_orthonormal(const kd_pca *p, size_t axes) {
    for (size_t a = 0; a < axes; a++)
        for (size_t b = 0; b < axes; b++) {
            double along = 0;
            for (size_t c = 0; c < p->width; c++)
                along += p->axis[a * p->width + c] * p->axis[b * p->width + c];
            assert_true(fabs(along - (a == b)) < 1e-9);
        }
}

static void data_that_hardly_vary_are_no_trouble(void **state) {
    (void)state;
    static float rows[20 * W];
    uint8_t rgb[20 * 3];
    kd_pca p;
    for (int i = 0; i < 20 * W; i++)
        rows[i] = 4;
    assert_ok(kd_pca_fit(&p, rows, 20, W, &err)); /* nothing varies */
    assert_orthonormal(&p, 3);
    assert_true(p.variance[0] == 0 && p.total == 0);
    kd_pca_colour(&p, rows, 20, rgb);
    for (int i = 0; i < 60; i++)
        assert_int_equal(rgb[i], 128);
    kd_pca_free(&p);
    for (int i = 0; i < 20; i++)
        rows[i * W + 7] += (float)i; /* one direction */
    assert_ok(kd_pca_fit(&p, rows, 20, W, &err));
    assert_orthonormal(&p, 3);
    assert_true(fabs(p.axis[7] - 1) < 1e-9);
    assert_true(p.variance[1] < 1e-9 * p.variance[0]);
    kd_pca_free(&p);
    assert_ok(kd_pca_fit(&p, rows, 1, W, &err)); /* one row */
    kd_pca_free(&p);
    assert_ok(kd_pca_fit(&p, rows, 20, 2, &err)); /* fewer channels than components */
    assert_orthonormal(&p, 2);
    kd_pca_colour(&p, rows, 1, rgb);
    assert_int_equal(rgb[2], 128);
    kd_pca_free(&p);
}

static void colours_span_the_middle_of_the_data(void **state) {
    (void)state;
    float rows[101 * 2];
    uint8_t rgb[101 * 3];
    kd_pca p;
    for (int i = 0; i < 101; i++) {
        rows[2 * i] = (float)i;
        rows[2 * i + 1] = 0;
    }
    rows[200] = 1e4f; /* an outlier takes no colours away */
    assert_ok(kd_pca_fit(&p, rows, 101, 2, &err));
    kd_pca_colour(&p, rows, 101, rgb);
    assert_int_equal(rgb[0], 0);
    assert_int_equal(rgb[3 * 2], 0);      /* 2nd percentile */
    assert_int_equal(rgb[3 * 50], 128);
    assert_int_equal(rgb[3 * 98], 255);   /* 98th */
    assert_int_equal(rgb[3 * 100], 255);
    for (int i = 1; i < 101; i++)
        assert_true(rgb[3 * i] >= rgb[3 * (i - 1)]);
    kd_pca_free(&p);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(axes_are_found_in_order),
        cmocka_unit_test(the_same_data_give_the_same_bits),
        cmocka_unit_test(data_that_hardly_vary_are_no_trouble),
        cmocka_unit_test(colours_span_the_middle_of_the_data),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

/* Neighbourhood agreement against a plain count, its extremes, ties, and thread counts. */
#include "tests/unit/unit.h"

#include <math.h>

#include "common/base/rng.h"
#include "train/eval/agreement.h"

static kd_err err;

static void fill(float *out, size_t n, uint64_t id) {
    kd_rng r = kd_rng_make(1, id, 0, KD_RNG_TEST);
    for (size_t i = 0; i < n; i++)
        out[i] = (float)kd_rng_normal(&r);
}

static double agree_on(int threads, double *each, const float *a, size_t wa, const float *b, size_t wb, size_t n, int k) {
    kd_backend *backend;
    double share = -1;
    assert_ok(kd_backend_open(&backend, "ref", threads, &err));
    assert_ok(kd_agreement(&share, each, backend, a, wa, b, wb, n, k, &err));
    kd_backend_close(backend);
    return share;
}

static double agree(const float *a, size_t wa, const float *b, size_t wb, size_t n, int k) {
    double each[600], again[600], mean = 0, share = agree_on(1, each, a, wa, b, wb, n, k);
    assert_true(share == agree_on(3, again, a, wa, b, wb, n, k));
    assert_memory_equal(each, again, n * sizeof *each);
    for (size_t i = 0; i < n; i++)
        mean += each[i] / (double)n;
    assert_true(fabs(mean - share) < 1e-12);
    return share;
}

enum { N = 60, A = 19, B = 7, K = 6 };

static double similarity(const float *x, size_t width, int i, int j) {
    double xy = 0, xx = 0, yy = 0;
    for (size_t c = 0; c < width; c++) {
        double a = (double)x[(size_t)i * width + c], b = (double)x[(size_t)j * width + c];
        xy += a * b;
        xx += a * a;
        yy += b * b;
    }
    return xy / sqrt(xx * yy);
}

/* Whether j is among i's k nearest: fewer than k others come before it. */
static int is_neighbour(const float *x, size_t width, int i, int j) {
    int before = 0;
    for (int m = 0; m < N; m++)
        before += m != i && m != j && similarity(x, width, i, m) > similarity(x, width, i, j);
    return before < K;
}

static void it_is_the_share_of_neighbours_that_both_have(void **state) {
    (void)state;
    static float a[N * A], b[N * B];
    fill(a, N * A, 1);
    fill(b, N * B, 2);
    for (int i = 0; i < N; i++) /* something in common */
        for (int c = 0; c < B; c++)
            b[i * B + c] += 2 * a[i * A + c];
    int both = 0;
    for (int i = 0; i < N; i++)
        for (int j = 0; j < N; j++)
            both += i != j && is_neighbour(a, A, i, j) && is_neighbour(b, B, i, j);
    double share = agree(a, A, b, B, N, K);
    assert_true(fabs(share - both / (double)(N * K)) < 1e-12);
    assert_true(share > 0.2 && share < 0.95);
}

static void a_copy_agrees_wholly_and_noise_by_chance(void **state) {
    (void)state;
    static float a[600 * 32], b[600 * 32];
    fill(a, 600 * 32, 3);
    fill(b, 600 * 32, 4);
    assert_true(agree(a, 32, a, 32, 600, 20) == 1);
    double chance = agree(a, 32, b, 32, 600, 20);
    assert_true(fabs(chance - 20.0 / 599) < 0.012);
    for (int i = 0; i < 600 * 32; i++)
        b[i] = 3 * a[i]; /* length doesn't matter */
    assert_true(agree(a, 32, b, 32, 600, 20) == 1);
}

static void small_sets_compare_what_they_can(void **state) {
    (void)state;
    float a[3 * 4], b[3 * 4];
    fill(a, 12, 5);
    fill(b, 12, 6);
    assert_true(agree(a, 4, b, 4, 2, 20) == 1); /* one neighbour each */
    double share = agree(a, 4, b, 4, 3, 20);    /* one of two */
    assert_true(share == 0 || fabs(share - 1 / 3.0) < 1e-12 || fabs(share - 2 / 3.0) < 1e-12 || share == 1);
}

static void equal_similarities_go_to_the_lower_index(void **state) {
    (void)state;
    /* All rows equal: everyone's nearest are the lowest others. Of the second set row 5 is nearest to row 0 alone. */
    float a[6 * 2], b[6 * 2] = {1, 0, 0, 1, 0, 1, 0, 1, 0, 1, 1, 0};
    for (int i = 0; i < 12; i++)
        a[i] = 1;
    /* k = 1: a: row 0 -> 1, rows 1..5 -> 0. b: 0 -> 5, 1 -> 2, 2,3,4 -> 1, 5 -> 0. In common: 5 -> 0. */
    assert_true(fabs(agree(a, 2, b, 2, 6, 1) - 1 / 6.0) < 1e-12);
    memset(b, 0, sizeof b); /* a feature of length 0 is like nothing: 0 everywhere, so the lower index again */
    assert_true(agree(a, 2, b, 2, 6, 1) == 1);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(it_is_the_share_of_neighbours_that_both_have),
        cmocka_unit_test(a_copy_agrees_wholly_and_noise_by_chance),
        cmocka_unit_test(small_sets_compare_what_they_can),
        cmocka_unit_test(equal_similarities_go_to_the_lower_index),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

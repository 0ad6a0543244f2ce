/* Flat functions of the reference backend on values that can be worked out by hand (PyTorch's ten steps: test_ops_golden). */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "tests/ops/harness.h"

static int open_ref(void **state) {
    *state = ops_open_ref();
    return 0;
}

static int close_ref(void **state) {
    kd_backend_close(*state);
    return 0;
}

static float sum_squares_of(kd_backend *b, const float *x, size_t n) {
    kd_err err = {0};
    float out = NAN;
    assert_int_equal(b->v->sum_squares(b, &out, x, n, &err), KD_OK);
    return out;
}

static void sum_of_squares(void **state) {
    const float x[] = {3, -4, 12}, with_nan[] = {1, NAN}, large[] = {1e30f, 1};
    assert_true(sum_squares_of(*state, x, 3) == 169);
    assert_true(sum_squares_of(*state, x, 0) == 0);
    assert_true(isnan(sum_squares_of(*state, with_nan, 2)));
    assert_true(isinf(sum_squares_of(*state, large, 2)));
}

static float clip_scale_of(kd_backend *b, float sumsq, float max_norm) {
    kd_err err = {0};
    float out = -1;
    assert_int_equal(b->v->clip_scale(b, &out, &sumsq, max_norm, &err), KD_OK);
    return out;
}

static void clipping_scales_only_above_the_limit(void **state) {
    assert_true(clip_scale_of(*state, 4, 3) == 1);
    assert_true(clip_scale_of(*state, 4, 2) == 1);
    assert_true(clip_scale_of(*state, 4, 0) == 1);  /* no limit */
    assert_true(clip_scale_of(*state, 4, -1) == 1); /* no limit */
    assert_true(clip_scale_of(*state, 0, 1) == 1);
    assert_true(clip_scale_of(*state, 16, 1) == (float)(1 / (4 + 1e-6)));
    assert_true(isnan(clip_scale_of(*state, NAN, 1)));
    assert_true(isnan(clip_scale_of(*state, INFINITY, 1)));
    assert_true(isnan(clip_scale_of(*state, INFINITY, 0)));
}

/* Step 1 from zero moments: m = (1-b1) g, v = (1-b2) g^2, both corrected back to g and g^2, so w moves by lr * sign(g) after the decay. */
static void first_adamw_step_moves_by_lr(void **state) {
    kd_backend *b = *state;
    kd_err err = {0};
    const kd_adamw h = {.lr = 0.01, .beta1 = 0.9, .beta2 = 0.999, .eps = 0, .weight_decay = 0.5, .step = 1};
    float w[] = {1, 2, -4}, m[3] = {0}, v[3] = {0}, scale = 0.5f;
    const float g[] = {0.3f, -20, 1e-3f}, want[] = {0.995f - 0.01f, 1.99f + 0.01f, -3.98f - 0.01f};
    assert_int_equal(b->v->adamw(b, w, g, m, v, 3, &h, &scale, &err), KD_OK);
    for (int i = 0; i < 3; i++) {
        assert_true(fabsf(w[i] - want[i]) <= 1e-6f);
        assert_true(fabsf(m[i] - 0.1f * 0.5f * g[i]) <= 1e-6f * fabsf(g[i]));
    }
}

static void adamw_with_a_nan_scale_changes_nothing(void **state) {
    kd_backend *b = *state;
    kd_err err = {0};
    const kd_adamw h = {.lr = 0.01, .beta1 = 0.9, .beta2 = 0.999, .eps = 1e-8, .weight_decay = 0.5, .step = 3};
    float w[] = {1, 2}, m[] = {3, 4}, v[] = {5, 6}, scale = NAN;
    const float g[] = {INFINITY, 1};
    assert_int_equal(b->v->adamw(b, w, g, m, v, 2, &h, &scale, &err), KD_OK);
    assert_true(w[0] == 1 && w[1] == 2 && m[0] == 3 && m[1] == 4 && v[0] == 5 && v[1] == 6);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(sum_of_squares),
        cmocka_unit_test(clipping_scales_only_above_the_limit),
        cmocka_unit_test(first_adamw_step_moves_by_lr),
        cmocka_unit_test(adamw_with_a_nan_scale_changes_nothing),
    };
    return cmocka_run_group_tests_name("flat functions", tests, open_ref, close_ref);
}

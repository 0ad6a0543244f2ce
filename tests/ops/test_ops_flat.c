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
    const kd_adamw h = {.lr = 0.01f, .beta1 = 0.9f, .beta2 = 0.999f, .eps = 0, .weight_decay = 0.5f, .step = 1};
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
    const kd_adamw h = {.lr = 0.01f, .beta1 = 0.9f, .beta2 = 0.999f, .eps = 1e-8f, .weight_decay = 0.5f, .step = 3};
    float w[] = {1, 2}, m[] = {3, 4}, v[] = {5, 6}, scale = NAN;
    const float g[] = {INFINITY, 1};
    assert_int_equal(b->v->adamw(b, w, g, m, v, 2, &h, &scale, &err), KD_OK);
    assert_true(w[0] == 1 && w[1] == 2 && m[0] == 3 && m[1] == 4 && v[0] == 5 && v[1] == 6);
}

/* IEEE 754 binary16 by hand; bytes lie in planes, per record first the high then the low ones. */
static void f16_encoding_has_ieee_values_in_byte_planes(void **state) {
    enum { N = 8 };
    kd_backend *b = *state;
    kd_err err = {0};
    const float x[2 * N] = {1, -2, 65504, 0, 5.9604645e-8f, 1.00048828125f, 1.00146484375f, 0.1f, /* ties go to even: 1 + 2^-11 down, 1 + 3 * 2^-11 up */
                            -0.0f, 65519, 1e-9f, 0.5f, 2048, 2049, 2051, -65504};
    const uint16_t want[2 * N] = {0x3C00, 0xC000, 0x7BFF, 0x0000, 0x0001, 0x3C00, 0x3C02, 0x2E66, 0x8000, 0x7BFF, 0x0000, 0x3800, 0x6800, 0x6800, 0x6802, 0xFBFF};
    uint8_t out[4 * N];
    kd_encode_stats s[2];
    assert_int_equal(b->v->encode_f16(b, out, s, x, 2, N, &err), KD_OK);
    for (int r = 0; r < 2; r++)
        for (int i = 0; i < N; i++) {
            unsigned got = (unsigned)out[r * 2 * N + i] << 8 | out[r * 2 * N + N + i];
            if (got != want[r * N + i])
                fail_msg("record %d, value %d (%g): got %04x, want %04x", r, i, (double)x[r * N + i], got, want[r * N + i]);
        }
    assert_true(s[0].bad == 0 && s[1].bad == 1); /* 65519 isn't held although it rounds to 65504 */
}

static void encode_statistics_are_the_sums(void **state) {
    kd_backend *b = *state;
    kd_err err = {0};
    const float x[] = {1, 2049, -3}, broken[] = {NAN, -INFINITY, 70000};
    uint8_t out[6];
    kd_encode_stats s;
    assert_int_equal(b->v->encode_f16(b, out, &s, x, 1, 3, &err), KD_OK); /* 2049 becomes 2048 */
    assert_true(s.xx == 10 + 2049.0 * 2049 && s.qq == 10 + 2048.0 * 2048 && s.xq == 10 + 2049.0 * 2048 && s.err2 == 1 && s.bad == 0);
    assert_int_equal(b->v->encode_f16(b, out, &s, broken, 1, 3, &err), KD_OK);
    assert_true(s.bad == 3);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(sum_of_squares),
        cmocka_unit_test(clipping_scales_only_above_the_limit),
        cmocka_unit_test(first_adamw_step_moves_by_lr),
        cmocka_unit_test(adamw_with_a_nan_scale_changes_nothing),
        cmocka_unit_test(f16_encoding_has_ieee_values_in_byte_planes),
        cmocka_unit_test(encode_statistics_are_the_sums),
    };
    return cmocka_run_group_tests_name("flat functions", tests, open_ref, close_ref);
}

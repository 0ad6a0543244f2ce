/* Target encoding of the reference backend: values worked out by hand, what an independent decoder makes of the payload, and PyTorch's reductions and conversions
 * (tests/golden/ops/encode.safetensors, recipe: make_encode.py beside it). */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "common/base/mem.h"
#include "common/weights/weights.h"
#include "tests/ops/harness.h"

static kd_weights *golden;
static kd_backend *ref;

static kd_encode_spec rows_of(int rows, int width, kd_dtype dtype) {
    return (kd_encode_spec){.grid_h = rows, .grid_w = 1, .width = width, .dtype = dtype};
}

/* ---- a decoder by the definition: the matrix element by element, integer sums ---- */

static int parity(int v) {
    int odd = 0;
    for (; v; v &= v - 1)
        odd = !odd;
    return odd;
}

static void decode_i8(float *y, const uint8_t *payload, int rows, int width) {
    int block = kd_hadamard_block(width);
    for (int r = 0; r < rows; r++) {
        const int8_t *q = (const int8_t *)payload + 4 * rows + r * width;
        float scale;
        memcpy(&scale, payload + 4 * r, sizeof scale);
        for (int i = 0; i < width; i++) {
            int first = i / block * block, sum = 0;
            for (int j = 0; j < block; j++)
                sum += parity((i - first) & j) ? -q[first + j] : q[first + j];
            y[r * width + i] = (float)sum * (scale * kd_hadamard_norm(block));
        }
    }
}

static void decode(float *y, const uint8_t *payload, const kd_encode_spec *s) {
    int rows = (int)kd_encode_rows(s), n = rows * s->width;
    if (s->dtype == KD_F32) {
        memcpy(y, payload, (size_t)n * sizeof *y);
        return;
    }
    if (s->dtype == KD_I8) {
        decode_i8(y, payload, rows, s->width);
        return;
    }
    for (int i = 0; i < n; i++) {
        uint16_t h = (uint16_t)(payload[i] << 8 | payload[n + i]);
        y[i] = s->dtype == KD_F16 ? kd_f16_to_f32(h) : kd_bf16_to_f32(h);
    }
}

/* ---- by hand ---- */

static void check_planes(kd_dtype dtype, const float *x, const uint16_t *want, int n, double bad) {
    kd_encode_spec s = rows_of(n / 2, 2, dtype);
    ops_encoded e = ops_encode(ref, &s, x, 1);
    for (int i = 0; i < n; i++) {
        unsigned got = (unsigned)e.payload[i] << 8 | e.payload[n + i];
        if (got != want[i])
            fail_msg("%s: value %d (%g): got %04x, want %04x", kd_dtype_name(dtype), i, (double)x[i], got, want[i]);
    }
    assert_true(e.stats->bad == bad);
    ops_encoded_free(&e);
}

static void f16_has_ieee_values_in_byte_planes(void **state) {
    (void)state;
    const float x[] = {1, -2, 65504, 0, 5.9604645e-8f, 1.00048828125f, 1.00146484375f, 0.1f, /* ties go to even: 1 + 2^-11 down, 1 + 3 * 2^-11 up */
                       -0.0f, 65519, 1e-9f, 0.5f, 2048, 2049, 2051, -65504};
    const uint16_t want[] = {0x3C00, 0xC000, 0x7BFF, 0x0000, 0x0001, 0x3C00, 0x3C02, 0x2E66, 0x8000, 0x7BFF, 0x0000, 0x3800, 0x6800, 0x6800, 0x6802, 0xFBFF};
    check_planes(KD_F16, x, want, 16, 1); /* 65519 isn't held although it rounds to 65504 */
}

static void bf16_rounds_to_nearest_even_in_byte_planes(void **state) {
    (void)state;
    const float x[] = {1, -2, 1 + 0x1p-8f, 1 + 0x3p-8f, 1 + 0x1.02p-8f, 70000, 3.3895314e38f, 0x1p-133f, -0.0f, 3.397e38f};
    const uint16_t want[] = {0x3F80, 0xC000, 0x3F80, 0x3F82, 0x3F81, 0x4789, 0x7F7F, 0x0001, 0x8000, 0x7F80};
    check_planes(KD_BF16, x, want, 10, 1); /* the last rounds to infinity */
}

/* (1, 2, 3, 4) times [[1 1 1 1] [1 -1 1 -1] [1 1 -1 -1] [1 -1 -1 1]] / 2 is (5, -1, -2, 0); 127 / 5 = 25.4 codes to the unit. A token of zeros has no scale. */
static void i8_rotates_scales_and_rounds(void **state) {
    (void)state;
    const float x[] = {1, 2, 3, 4, 0, 0, 0, 0}, scale[] = {5.0f / 127, 0};
    const int8_t q[] = {127, -25, -51, 0, 0, 0, 0, 0};
    const int sums[] = {51, 101, 153, 203};
    kd_encode_spec s = rows_of(2, 4, KD_I8);
    ops_encoded e = ops_encode(ref, &s, x, 1);
    double err2 = 0;
    assert_int_equal(kd_encode_bytes(&s), 2 * (4 + 4));
    assert_memory_equal(e.payload, scale, sizeof scale);
    assert_memory_equal(e.payload + sizeof scale, q, sizeof q);
    for (int i = 0; i < 4; i++)
        err2 += pow((double)x[i] - (double)((float)sums[i] * (scale[0] * 0.5f)), 2);
    assert_true(fabs(e.stats->err2 - err2) <= 1e-12 * err2 && fabs(e.stats->worst - sqrt(err2 / 30)) <= 1e-12 && e.stats->xx == 30 && e.stats->bad == 0);
    ops_encoded_free(&e);
}

/* An odd width isn't rotated; the largest value is 127 codes, and halves go to the even code. */
static void i8_of_an_odd_width_is_not_rotated(void **state) {
    (void)state;
    const float x[] = {127, -63.5f, 0.5f, 1.5f, 2.5f, -0.4f, -127}, want_scale = 1;
    const int8_t q[] = {127, -64, 0, 2, 2, 0, -127};
    kd_encode_spec s = rows_of(1, 7, KD_I8);
    ops_encoded e = ops_encode(ref, &s, x, 1);
    assert_memory_equal(e.payload, &want_scale, 4);
    assert_memory_equal(e.payload + 4, q, 7);
    assert_true(fabs(e.stats->err2 - (4 * 0.25 + 0.16)) <= 1e-7);
    ops_encoded_free(&e);
}

static void statistics_are_the_sums_and_the_worst_token(void **state) {
    (void)state;
    const float x[] = {1, 2049, 0, 0, -3, 0, 4, 5}; /* 2049 becomes 2048 */
    kd_encode_spec s = rows_of(2, 2, KD_F16);
    ops_encoded e = ops_encode(ref, &s, x, 2);
    assert_true(e.stats[0].xx == 1 + 2049.0 * 2049 && e.stats[0].qq == 1 + 2048.0 * 2048 && e.stats[0].xq == 1 + 2049.0 * 2048 && e.stats[0].err2 == 1 && e.stats[0].bad == 0);
    assert_true(e.stats[0].worst == sqrt(1 / (1 + 2049.0 * 2049)) && e.stats[1].worst == 0 && e.stats[0].square == 0);
    assert_true(e.stats[1].xx == 50 && e.stats[1].qq == 50);
    ops_encoded_free(&e);
}

/* NaN, infinity and what is beyond the type; in i8 such a token's codes are zeros, its neighbours' are not. */
static void values_that_cannot_be_stored_are_counted(void **state) {
    (void)state;
    const float x[] = {NAN, -INFINITY, 70000, 1e31f, 1, 2, 65504, -65504};
    const kd_dtype types[] = {KD_F32, KD_F16, KD_BF16, KD_I8};
    const double bad[] = {2, 4, 2, 3};
    for (size_t k = 0; k < sizeof types / sizeof *types; k++) {
        kd_encode_spec s = rows_of(2, 4, types[k]);
        ops_encoded e = ops_encode(ref, &s, x, 1);
        assert_true(e.stats->bad == bad[k]);
        if (types[k] == KD_I8) {
            const uint8_t none[4] = {0};
            assert_memory_equal(e.payload, none, 4);
            assert_memory_equal(e.payload + 8, none, 4);
            assert_memory_not_equal(e.payload + 4, none, 4);
        }
        ops_encoded_free(&e);
    }
}

/* What is beyond the type is counted after the reduction: the mean of 100000 and 20000 is held, the sum of 40000 and 40000 is not. */
static void the_limit_is_that_of_the_reduced_values(void **state) {
    (void)state;
    const float x[] = {100000, 40000, 20000, 40000};
    kd_encode_spec s = {.target = {KD_TARGET_POOL, 1, 1}, .grid_h = 2, .grid_w = 1, .width = 2, .dtype = KD_F16};
    ops_encoded pool = ops_encode(ref, &s, x, 1);
    assert_true(pool.stats->bad == 0 && pool.stats->xx == 60000.0 * 60000 + 40000.0 * 40000);
    s.target.kind = KD_TARGET_ADJOINT;
    ops_encoded adjoint = ops_encode(ref, &s, x, 1);
    assert_true(adjoint.stats->bad == 2 && adjoint.stats->square == 1e10 + 4e8 + 2 * 1.6e9);
    ops_encoded_free(&pool);
    ops_encoded_free(&adjoint);
}

/* ---- statistics against what a reader gets ---- */

static void check_decoded(const kd_encode_spec *s, const float *x) {
    size_t n = (size_t)s->grid_h * (size_t)s->width;
    float *y = kd_calloc(n, sizeof *y);
    ops_encoded e = ops_encode(ref, s, x, 1);
    double sum[4] = {0}, worst = 0;
    decode(y, e.payload, s);
    for (int r = 0; r < s->grid_h; r++) {
        double xx = 0, err2 = 0;
        for (int i = 0; i < s->width; i++) {
            double a = (double)x[r * s->width + i], b = (double)y[r * s->width + i];
            xx += a * a;
            err2 += (a - b) * (a - b);
            sum[1] += b * b;
            sum[2] += a * b;
        }
        sum[0] += xx;
        sum[3] += err2;
        worst = fmax(worst, sqrt(err2 / xx));
    }
    const double got[] = {e.stats->xx, e.stats->qq, e.stats->xq, e.stats->err2, e.stats->worst}, want[] = {sum[0], sum[1], sum[2], sum[3], worst};
    for (int k = 0; k < 5; k++)
        if (!(fabs(got[k] - want[k]) <= 1e-12 * want[k]))
            fail_msg("%s, width %d: statistic %d is %.17g, what is decoded gives %.17g", kd_dtype_name(s->dtype), s->width, k, got[k], want[k]);
    if (!(sum[3] <= (s->dtype == KD_I8 ? 4e-4 : s->dtype == KD_F32 ? 0 : 1e-5) * sum[0])) /* of squares: 2 % in i8, 0.3 % in bf16, none in f32 */
        fail_msg("%s, width %d: relative squared error %g", kd_dtype_name(s->dtype), s->width, sum[3] / sum[0]);
    ops_encoded_free(&e);
    kd_free(y);
}

static void statistics_describe_what_a_reader_decodes(void **state) {
    (void)state;
    static const int widths[] = {1, 7, 6, 24, 48, 192, 384, 1536};
    static const kd_dtype types[] = {KD_F32, KD_F16, KD_BF16, KD_I8};
    enum { ROWS = 9, WIDEST = 1536 };
    float *x = kd_calloc(ROWS * WIDEST, sizeof *x);
    ops_fill_normal(x, ROWS * WIDEST, 3, 1);
    for (size_t i = 0; i < sizeof widths / sizeof *widths; i++)
        for (size_t k = 0; k < sizeof types / sizeof *types; k++) {
            kd_encode_spec s = rows_of(ROWS, widths[i], types[k]);
            check_decoded(&s, x);
        }
    kd_free(x);
}

/* ---- PyTorch ---- */

static float *tensor(const char *name, const char *part, kd_tensor *info) {
    char full[60];
    kd_err err = {0};
    snprintf(full, sizeof full, "%s.%s", name, part);
    int i = kd_weights_find(golden, full);
    if (i < 0)
        fail_msg("no %s in the file", full);
    *info = kd_weights_info(golden, i);
    float *out = kd_calloc(kd_tensor_numel(info), sizeof *out);
    assert_non_null(out);
    if (kd_weights_read_f32(golden, i, out, kd_tensor_numel(info), &err) != KD_OK)
        fail_msg("%s", err.msg);
    return out;
}

/* The bits that PyTorch's rounded values have in f16, and their sums. */
static void check_reduction(const char *name, kd_target target) {
    kd_tensor tx, ty, ts;
    float *x = tensor(name, "x", &tx), *y = tensor(name, "y", &ty), *square = tensor(name, "square", &ts);
    kd_encode_spec s = {.target = target, .grid_h = (int)tx.shape[1], .grid_w = (int)tx.shape[2], .width = (int)tx.shape[3], .dtype = KD_F16};
    size_t records = (size_t)tx.shape[0], n = kd_encode_rows(&s) * (size_t)s.width;
    assert_true(kd_tensor_numel(&ty) == records * n);
    ops_encoded e = ops_encode(ref, &s, x, records);
    for (size_t r = 0; r < records; r++) {
        const uint8_t *p = e.payload + r * kd_encode_bytes(&s);
        double xx = 0;
        for (size_t i = 0; i < n; i++) {
            unsigned got = (unsigned)p[i] << 8 | p[n + i], want = kd_f32_to_f16(y[r * n + i]);
            if (got != want)
                fail_msg("%s: value %zu of record %zu is %04x in f16, PyTorch's %g is %04x", name, i, r, got, (double)y[r * n + i], want);
            xx += (double)y[r * n + i] * (double)y[r * n + i];
        }
        assert_true(fabs(e.stats[r].xx - xx) <= 1e-12 * xx);
        assert_true(target.kind == KD_TARGET_ADJOINT ? fabs(e.stats[r].square - (double)square[r]) <= 1e-7 * (double)square[r] : e.stats[r].square == 0);
    }
    ops_encoded_free(&e);
    kd_free(x);
    kd_free(y);
    kd_free(square);
}

static void pooling_is_adaptive_avg_pool2d(void **state) {
    (void)state;
    check_reduction("pool_7", (kd_target){KD_TARGET_POOL, 7, 7});
    check_reduction("pool_odd", (kd_target){KD_TARGET_POOL, 4, 3});
    check_reduction("pool_up", (kd_target){KD_TARGET_POOL, 5, 4});
}

static void adjoint_is_the_transpose_of_interpolate(void **state) {
    (void)state;
    check_reduction("adjoint_7", (kd_target){KD_TARGET_ADJOINT, 7, 7});
    check_reduction("adjoint_14", (kd_target){KD_TARGET_ADJOINT, 14, 14});
    check_reduction("adjoint_odd", (kd_target){KD_TARGET_ADJOINT, 4, 6});
    check_reduction("adjoint_down", (kd_target){KD_TARGET_ADJOINT, 6, 5});
    check_reduction("adjoint_same", (kd_target){KD_TARGET_ADJOINT, 5, 5});
}

static void halves_round_as_in_pytorch(void **state) {
    (void)state;
    for (int k = 0; k < 2; k++) {
        kd_dtype dtype = k ? KD_BF16 : KD_F16;
        kd_tensor tx, ty;
        float *x = tensor(kd_dtype_name(dtype), "x", &tx), *y = tensor(kd_dtype_name(dtype), "y", &ty), *back = kd_calloc(kd_tensor_numel(&tx), sizeof *back);
        kd_encode_spec s = rows_of(1, (int)kd_tensor_numel(&tx), dtype);
        ops_encoded e = ops_encode(ref, &s, x, 1);
        decode(back, e.payload, &s);
        assert_memory_equal(back, y, kd_tensor_numel(&tx) * sizeof *y);
        assert_true(e.stats->bad == 0);
        ops_encoded_free(&e);
        kd_free(x);
        kd_free(y);
        kd_free(back);
    }
}

static void codes_are_those_of_a_rotation_in_pytorch(void **state) {
    (void)state;
    static const char *const names[] = {"i8_16", "i8_4", "i8_64", "i8_1"};
    static const int block[] = {16, 4, 64, 1};
    for (size_t k = 0; k < sizeof names / sizeof *names; k++) {
        kd_tensor tx, tq, ts, ty;
        float *x = tensor(names[k], "x", &tx), *q = tensor(names[k], "q", &tq), *scale = tensor(names[k], "scale", &ts), *y = tensor(names[k], "y", &ty);
        int rows = (int)tx.shape[0], width = (int)tx.shape[1];
        float *back = kd_calloc(kd_tensor_numel(&tx), sizeof *back);
        kd_encode_spec s = rows_of(rows, width, KD_I8);
        ops_encoded e = ops_encode(ref, &s, x, 1);
        decode(back, e.payload, &s);
        assert_int_equal(kd_hadamard_block(width), block[k]);
        for (int i = 0; i < rows * width; i++) {
            float got;
            memcpy(&got, e.payload + 4 * (i / width), sizeof got);
            if (!(fabs((double)got - (double)scale[i / width]) <= 1e-6 * (double)scale[i / width]) || (float)(int8_t)e.payload[4 * rows + i] != q[i] ||
                !(fabs((double)back[i] - (double)y[i]) <= 1e-6 * 127 * (double)scale[i / width]))
                fail_msg("%s: value %d: scale %g, code %d, decoded %g; PyTorch %g, %g, %g", names[k], i, (double)got, (int8_t)e.payload[4 * rows + i], (double)back[i],
                         (double)scale[i / width], (double)q[i], (double)y[i]);
        }
        ops_encoded_free(&e);
        float *all[] = {x, q, scale, y, back};
        for (size_t i = 0; i < sizeof all / sizeof *all; i++)
            kd_free(all[i]);
    }
}

int main(void) {
    kd_err err = {0};
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(f16_has_ieee_values_in_byte_planes),
        cmocka_unit_test(bf16_rounds_to_nearest_even_in_byte_planes),
        cmocka_unit_test(i8_rotates_scales_and_rounds),
        cmocka_unit_test(i8_of_an_odd_width_is_not_rotated),
        cmocka_unit_test(statistics_are_the_sums_and_the_worst_token),
        cmocka_unit_test(values_that_cannot_be_stored_are_counted),
        cmocka_unit_test(the_limit_is_that_of_the_reduced_values),
        cmocka_unit_test(statistics_describe_what_a_reader_decodes),
        cmocka_unit_test(pooling_is_adaptive_avg_pool2d),
        cmocka_unit_test(adjoint_is_the_transpose_of_interpolate),
        cmocka_unit_test(halves_round_as_in_pytorch),
        cmocka_unit_test(codes_are_those_of_a_rotation_in_pytorch),
    };
    if (kd_weights_open(&golden, "tests/golden/ops/encode.safetensors", &err) != KD_OK) {
        printf("%s\n", err.msg);
        return 1;
    }
    ref = ops_open_ref();
    int failed = cmocka_run_group_tests_name("encode", tests, NULL, NULL);
    kd_backend_close(ref);
    kd_weights_close(golden);
    return failed;
}

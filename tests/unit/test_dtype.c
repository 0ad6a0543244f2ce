/* Conversions: every 16-bit value, every rounding boundary, arrays equal to scalars. */
#include "tests/unit/unit.h"

#include <math.h>

#include "common/tensor/tensor.h"

static uint32_t bits(float x)
{
    uint32_t u;
    memcpy(&u, &x, sizeof u);
    return u;
}

static float number(uint32_t u)
{
    float x;
    memcpy(&x, &u, sizeof x);
    return x;
}

/* The value of a half from its definition, in double. */
static double half_value(uint16_t h)
{
    int exponent = h >> 10 & 31, mantissa = h & 1023;
    double v = exponent == 0 ? ldexp(mantissa, -24) : ldexp(1024 + mantissa, exponent - 25);
    return h & 0x8000 ? -v : v;
}

static void every_half_has_its_defined_value_and_comes_back(void **state)
{
    (void)state;
    for (uint32_t h = 0; h < 65536; h++) {
        float f = kd_f16_to_f32((uint16_t)h);
        int special = (h >> 10 & 31) == 31;
        if (special && (h & 1023)) {
            assert_true(isnan(f));
            assert_true(isnan(kd_f16_to_f32(kd_f32_to_f16(f))));
            assert_int_equal(kd_f32_to_f16(f), h | 0x200); /* quiet, payload kept */
            continue;
        }
        if (special)
            assert_true(isinf(f) && (f < 0) == (h >> 15));
        else
            assert_true(f == half_value((uint16_t)h) && bits(f) >> 31 == h >> 15);
        assert_int_equal(kd_f32_to_f16(f), h);
    }
}

static void every_bfloat_comes_back(void **state)
{
    (void)state;
    for (uint32_t h = 0; h < 65536; h++) {
        float f = kd_bf16_to_f32((uint16_t)h);
        assert_int_equal(bits(f), h << 16);
        assert_int_equal(kd_f32_to_bf16(f), isnan(f) ? h | 0x40 : h);
    }
}

/* Between neighbouring halves: the middle goes to the even one, a bit more or less to the nearer one. */
static void halves_round_to_nearest_even(void **state)
{
    (void)state;
    for (uint32_t h = 0; h < 0x7C00; h++) {
        double low = half_value((uint16_t)h), high = h == 0x7BFF ? 65536 : half_value((uint16_t)(h + 1));
        float middle = (float)((low + high) / 2); /* exact: one bit more than a half has */
        uint16_t even = (uint16_t)(h & 1 ? h + 1 : h);
        assert_int_equal(kd_f32_to_f16(middle), even);
        assert_int_equal(kd_f32_to_f16(nextafterf(middle, 0)), h);
        assert_int_equal(kd_f32_to_f16(nextafterf(middle, 1e9f)), h + 1);
        assert_int_equal(kd_f32_to_f16(-middle), even | 0x8000);
    }
    assert_int_equal(kd_f32_to_f16(65504), 0x7BFF);
    assert_int_equal(kd_f32_to_f16(65519.996f), 0x7BFF);
    assert_int_equal(kd_f32_to_f16(65520), 0x7C00);
    assert_int_equal(kd_f32_to_f16(1e-30f), 0);
    assert_int_equal(kd_f32_to_f16(-1e-30f), 0x8000);
}

static void bfloats_round_to_nearest_even(void **state)
{
    (void)state;
    for (uint32_t h = 0; h < 0x7F80; h++) {
        assert_int_equal(kd_f32_to_bf16(number(h << 16 | 0x8000)), h & 1 ? h + 1 : h);
        assert_int_equal(kd_f32_to_bf16(number(h << 16 | 0x7FFF)), h);
        assert_int_equal(kd_f32_to_bf16(number(h << 16 | 0x8001)), h + 1);
    }
    assert_int_equal(kd_f32_to_bf16(3.4028235e38f), 0x7F80);
}

static void arrays_equal_scalars(void **state)
{
    enum { N = 65536 };
    uint16_t *h = malloc(N * sizeof *h), *back = malloc(N * sizeof *back);
    float *f = malloc(N * sizeof *f);
    (void)state;
    for (uint32_t i = 0; i < N; i++)
        h[i] = (uint16_t)i;
    kd_f16_to_f32_n(f, h, N);
    for (uint32_t i = 0; i < N; i++)
        assert_int_equal(bits(f[i]), bits(kd_f16_to_f32(h[i])));
    kd_bf16_to_f32_n(f, h, N);
    for (uint32_t i = 0; i < N; i++)
        assert_int_equal(bits(f[i]), bits(kd_bf16_to_f32(h[i])));
    for (uint32_t round = 0; round < 64; round++) { /* 4 million f32 patterns: every exponent, boundaries and odd low bits */
        for (uint32_t i = 0; i < N; i++)
            f[i] = number((i << 16 | (round * 1031 & 0xFFFF)) ^ (round == 1 ? 0x1000 : round == 2 ? 0x0FFF : round == 3 ? 0x8000 : 0));
        kd_f32_to_f16_n(back, f, N);
        for (uint32_t i = 0; i < N; i++)
            if (back[i] != kd_f32_to_f16(f[i]))
                fail_msg("f16 of bits %08x: array %04x, scalar %04x", bits(f[i]), back[i], kd_f32_to_f16(f[i]));
        kd_f32_to_bf16_n(back, f, N);
        for (uint32_t i = 0; i < N; i++)
            if (back[i] != kd_f32_to_bf16(f[i]))
                fail_msg("bf16 of bits %08x: array %04x, scalar %04x", bits(f[i]), back[i], kd_f32_to_bf16(f[i]));
    }
    free(h);
    free(back);
    free(f);
}

static void odd_lengths_touch_nothing_else(void **state)
{
    (void)state;
    for (size_t n = 0; n < 20; n++) {
        uint16_t h[24];
        float f[24], g[24];
        for (size_t i = 0; i < 24; i++) {
            f[i] = (float)i + 0.25f;
            g[i] = -77;
            h[i] = 0xABCD;
        }
        kd_f32_to_f16_n(h, f, n);
        kd_f16_to_f32_n(g, h, n);
        for (size_t i = 0; i < 24; i++) {
            assert_int_equal(h[i], i < n ? kd_f32_to_f16(f[i]) : 0xABCD);
            assert_true(g[i] == (i < n ? f[i] : -77));
        }
    }
}

static void every_type_converts_to_f32(void **state)
{
    static const double d[] = {1.5, -2, 1e300};
    static const uint8_t u8[] = {0, 7, 255};
    static const int8_t i8[] = {-128, 0, 127};
    static const int16_t i16[] = {-32768, 3, 32767};
    static const int32_t i32[] = {-5, 0, 1 << 24};
    static const int64_t i64[] = {-5, 0, 1LL << 40};
    static const uint16_t f16[] = {0x3C00, 0xC000, 0}, bf16[] = {0x3F80, 0xC000, 0};
    float f[3];
    (void)state;
    kd_convert_to_f32(f, d, KD_F64, 3);
    assert_true(f[0] == 1.5f && f[1] == -2 && isinf(f[2]));
    kd_convert_to_f32(f, u8, KD_U8, 3);
    assert_true(f[0] == 0 && f[1] == 7 && f[2] == 255);
    kd_convert_to_f32(f, i8, KD_I8, 3);
    assert_true(f[0] == -128 && f[2] == 127);
    kd_convert_to_f32(f, i16, KD_I16, 3);
    assert_true(f[0] == -32768 && f[2] == 32767);
    kd_convert_to_f32(f, i32, KD_I32, 3);
    assert_true(f[0] == -5 && f[2] == 16777216);
    kd_convert_to_f32(f, i64, KD_I64, 3);
    assert_true(f[0] == -5 && f[2] == 1099511627776.0f);
    kd_convert_to_f32(f, f16, KD_F16, 3);
    assert_true(f[0] == 1 && f[1] == -2 && f[2] == 0);
    kd_convert_to_f32(f, bf16, KD_BF16, 3);
    assert_true(f[0] == 1 && f[1] == -2 && f[2] == 0);
    kd_convert_to_f32(f, "\1\0\1", KD_BOOL, 3);
    assert_true(f[0] == 1 && f[1] == 0 && f[2] == 1);
}

static void the_first_nonfinite_value_is_found(void **state)
{
    static const size_t places[] = {0, 1, 255, 256, 257, 700, 999};
    static const uint32_t values[] = {0x7F800000, 0xFF800000, 0x7FC00000, 0x7F800001, 0xFFFFFFFF};
    float x[1000];
    (void)state;
    for (size_t i = 0; i < 1000; i++)
        x[i] = i % 2 ? 3.4028235e38f : -1e-45f;
    assert_int_equal(kd_first_nonfinite(x, 1000), 1000);
    assert_int_equal(kd_first_nonfinite(x, 0), 0);
    for (size_t p = 0; p < sizeof places / sizeof *places; p++) {
        float saved = x[places[p]];
        for (size_t v = 0; v < sizeof values / sizeof *values; v++) {
            x[places[p]] = number(values[v]);
            assert_int_equal(kd_first_nonfinite(x, 1000), places[p]);
            assert_int_equal(kd_first_nonfinite(x, places[p]), places[p]);
        }
        x[places[p]] = saved;
    }
}

static void sizes_names_and_shapes(void **state)
{
    static const int64_t shape[] = {2, 3, 224};
    char buf[64], small[6];
    kd_tensor t = {.rank = 3, .shape = {2, 3, 224}}, scalar = {.rank = 0};
    (void)state;
    assert_int_equal(kd_dtype_size(KD_BF16), 2);
    assert_int_equal(kd_dtype_size(KD_I64), 8);
    assert_int_equal(kd_dtype_size(KD_BOOL), 1);
    assert_string_equal(kd_dtype_name(KD_BF16), "bf16");
    assert_string_equal(kd_dtype_name(KD_BOOL), "bool");
    assert_string_equal(kd_shape_text(shape, 3, buf, sizeof buf), "[2, 3, 224]");
    assert_string_equal(kd_shape_text(NULL, 0, buf, sizeof buf), "[]");
    kd_shape_text(shape, 3, small, sizeof small);
    assert_true(strlen(small) < sizeof small);
    assert_int_equal(kd_tensor_numel(&t), 1344);
    assert_int_equal(kd_tensor_numel(&scalar), 1);
    assert_true(kd_shape_equal(shape, 3, t.shape, 3));
    assert_false(kd_shape_equal(shape, 2, t.shape, 3));
    t.shape[1] = 4;
    assert_false(kd_shape_equal(shape, 3, t.shape, 3));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_half_has_its_defined_value_and_comes_back),
        cmocka_unit_test(every_bfloat_comes_back),
        cmocka_unit_test(halves_round_to_nearest_even),
        cmocka_unit_test(bfloats_round_to_nearest_even),
        cmocka_unit_test(arrays_equal_scalars),
        cmocka_unit_test(odd_lengths_touch_nothing_else),
        cmocka_unit_test(every_type_converts_to_f32),
        cmocka_unit_test(the_first_nonfinite_value_is_found),
        cmocka_unit_test(sizes_names_and_shapes),
    };
    return cmocka_run_group_tests_name("dtype", tests, NULL, NULL);
}

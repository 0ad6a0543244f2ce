/* Every random draw of the project: Philox equals its published answers, draws are a pure function of their key, and the exact
 * functions equal references with 50 digits. */
#include "tests/unit/unit.h"

#include <math.h>

#include "common/base/rng.h"

/* kat_vectors of the Random123 distribution, philox4x32-10. */
static void philox_known_answers(void **state)
{
    static const struct { uint32_t ctr[4], key[2], out[4]; } kat[] = {
        {{0, 0, 0, 0}, {0, 0}, {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}},
        {{0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff}, {0xffffffff, 0xffffffff}, {0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}},
        {{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, {0xa4093822, 0x299f31d0}, {0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}}};
    (void)state;
    for (int i = 0; i < 3; i++) {
        uint32_t out[4];
        kd_philox4x32(out, kat[i].ctr, kat[i].key);
        assert_memory_equal(out, kat[i].out, sizeof out);
    }
}

static void the_counter_has_the_documented_layout(void **state)
{
    kd_rng r = kd_rng_make(0x1122334455667788ULL, 0x99aabbccddeeff00ULL, 0x01020304, KD_RNG_SHUFFLE);
    uint32_t key[2] = {0x55667788, 0x11223344}, ctr[4] = {0xddeeff00, 0x99aabbcc, 0x01020304, 3u << 16}, out[4];
    (void)state;
    for (uint32_t block = 0; block < 3; block++) {
        ctr[3] = 3u << 16 | block;
        kd_philox4x32(out, ctr, key);
        for (int i = 0; i < 4; i++)
            assert_int_equal(kd_rng_u32(&r), out[i]);
    }
}

static void a_stream_holds_65536_blocks(void **state)
{
    kd_rng r = kd_rng_make(1, 2, 3, KD_RNG_TEST);
    uint32_t last = 0, key[2] = {1, 0}, ctr[4] = {2, 0, 3, 5u << 16 | 0xFFFF}, out[4];
    (void)state;
    for (int i = 0; i < 262144; i++)
        last = kd_rng_u32(&r);
    kd_philox4x32(out, ctr, key);
    assert_int_equal(last, out[3]);
}

static void draws_stay_in_their_range(void **state)
{
    kd_rng r = kd_rng_make(7, 0, 0, KD_RNG_TEST);
    double sum = 0, squares = 0;
    size_t seen[10] = {0};
    (void)state;
    for (int i = 0; i < 20000; i++) {
        double u = kd_rng_unit(&r), v = kd_rng_uniform(&r, -3, 5);
        uint32_t b = kd_rng_below(&r, 10);
        assert_true(u >= 0 && u < 1);
        assert_true(v >= -3 && v < 5);
        assert_true(b < 10);
        seen[b]++;
    }
    for (int i = 0; i < 10; i++)
        assert_in_range(seen[i], 1800, 2200); /* 2000 expected, standard deviation 42 */
    assert_int_equal(kd_rng_below(&r, 1), 0);
    for (int i = 0; i < 40000; i++) {
        double x = kd_rng_normal(&r);
        assert_true(isfinite(x));
        sum += x;
        squares += x * x;
    }
    assert_true(fabs(sum / 40000) < 0.02);
    assert_true(fabs(squares / 40000 - 1) < 0.03);
}

static void below_is_unbiased_where_the_remainder_would_not_be(void **state)
{
    const uint32_t n = 3u << 30; /* u32 % n would fall into the lower third twice as often */
    kd_rng r = kd_rng_make(9, 0, 0, KD_RNG_TEST);
    size_t low = 0;
    (void)state;
    for (int i = 0; i < 30000; i++)
        low += kd_rng_below(&r, n) < n / 3;
    assert_in_range(low, 9600, 10400); /* 10000 expected, standard deviation 82; biased: 15000 */
}

static void purposes_views_and_seeds_are_independent_streams(void **state)
{
    uint32_t first[5];
    (void)state;
    for (int i = 0; i < 5; i++) {
        kd_rng r = kd_rng_make(i == 0 ? 1 : 0, i == 1 ? 1 : 0, i == 2 ? 1 : 0, i == 3 ? KD_RNG_SPLIT : KD_RNG_AUGMENT);
        first[i] = kd_rng_u32(&r);
        for (int j = 0; j < i; j++)
            assert_int_not_equal(first[i], first[j]);
    }
}

static void a_permutation_is_one(void **state)
{
    enum { N = 200000 }; /* more than one stream's worth */
    uint32_t *a = malloc(N * sizeof *a), *b = malloc(N * sizeof *b), moved = 0, different = 0;
    unsigned char *seen = calloc(N, 1);
    uint32_t one[1] = {9};
    (void)state;
    kd_rng_permutation(5, 0, a, N);
    kd_rng_permutation(5, 1, b, N);
    for (uint32_t i = 0; i < N; i++) {
        assert_true(a[i] < N && !seen[a[i]]);
        seen[a[i]] = 1;
        moved += a[i] != i;
        different += a[i] != b[i];
    }
    assert_true(moved > N - 20 && different > N - 20);
    kd_rng_permutation(5, 0, b, N);
    assert_memory_equal(a, b, N * sizeof *a);
    kd_rng_permutation(5, 0, one, 1);
    assert_int_equal(one[0], 0);
    kd_rng_permutation(5, 0, NULL, 0);
    free(a);
    free(b);
    free(seen);
}

static void assert_close(double got, double want, const char *what, double x)
{
    if (!(fabs(got - want) <= 1e-14 * fabs(want)))
        fail_msg("%s(%.17g) = %.17g, expected %.17g", what, x, got, want);
}

/* mpmath with 50 digits, printed with 17. */
static void exact_functions_equal_references(void **state)
{
    static const struct { double x, exp, cos; } points[] = {
        {1e-09, 1.000000001, 1.0},
        {0.1, 1.1051709180756476, 9.9500416527802577e-1},
        {0.3465735902799726, 1.414213562373095, 9.4054210468324389e-1},
        {0.3465735902799727, 1.4142135623730951, 9.4054210468324385e-1},
        {1.0, 2.7182818284590452, 5.4030230586813972e-1},
        {-1.0, 3.6787944117144232e-1, 5.4030230586813972e-1},
        {1.5707963267948966, 4.8104773809653514, 6.1232339957367659e-17},
        {3.141592653589793, 23.140692632779266, -1.0},
        {4.71238898038469, 1.1131777848985621e+2, -1.8369701987210298e-16},
        {6.283185307179586, 5.3549165552476461e+2, 1.0},
        {6.283185307179586, 5.3549165552476461e+2, 1.0},
        {7.853981633974483, 2.5759704965975698e+3, 3.0616169978683829e-16},
        {-1.5707963267948966, 2.0787957635076192e-1, 6.1232339957367659e-17},
        {0.7853981633974483, 2.1932800507380154, 7.0710678118654755e-1},
        {0.7853981633974484, 2.1932800507380156, 7.0710678118654747e-1},
        {2.3561944901923453, 10.550724074197766, -7.0710678118654777e-1},
        {10.0, 2.2026465794806717e+4, -8.3907152907645245e-1},
        {-10.0, 4.5399929762484852e-5, -8.3907152907645245e-1},
        {4.71238898038469, 1.1131777848985621e+2, -1.8369701987210298e-16},
        {7.853981633974483, 2.5759704965975698e+3, 3.0616169978683829e-16},
        {20.5, 7.9990217747550541e+8, -7.9563567278540062e-2},
        {-37.25, 6.6455441729150705e-17, 9.0083306480550673e-1},
        {99.9, 2.4323089739791292e+43, 8.0745865769955001e-1},
        {-100.0, 3.720075976020836e-44, 8.6231887228768393e-1},
        {100.0, 2.6881171418161354e+43, 8.6231887228768393e-1},
    };
    static const struct { double x, log; } logs[] = {
        {1e-300, -6.9077552789821371e+2},
        {2.3283064365386963e-10, -22.18070977791825},
        {0.5, -6.9314718055994531e-1},
        {0.7071067811865475, -3.4657359027997274e-1},
        {0.7071067811865476, -3.4657359027997259e-1},
        {0.9999999, -1.0000000494736474e-7},
        {0.9999999999999999, -1.1102230246251566e-16},
        {1.0000000000000002, 2.2204460492503128e-16},
        {1.4142135623730951, 3.4657359027997272e-1},
        {1.4142135623730954, 3.4657359027997288e-1},
        {2.0, 6.9314718055994531e-1},
        {2.718281828459045, 9.9999999999999995e-1},
        {10.0, 2.3025850929940457},
        {10000000000.0, 23.025850929940457},
        {1e+308, 7.0919620864216607e+2},
    };
    (void)state;
    for (size_t i = 0; i < sizeof points / sizeof *points; i++) {
        assert_close(kd_exact_exp(points[i].x), points[i].exp, "exp", points[i].x);
        if (fabs(points[i].x) <= 10)
            assert_close(kd_exact_cos(points[i].x), points[i].cos, "cos", points[i].x);
    }
    for (size_t i = 0; i < sizeof logs / sizeof *logs; i++)
        assert_close(kd_exact_log(logs[i].x), logs[i].log, "log", logs[i].x);
    assert_true(kd_exact_exp(0) == 1 && kd_exact_log(1) == 0 && kd_exact_cos(0) == 1);
}

/* glibc's functions are within 1 unit in the last place; a dense sweep against them finds what the points above miss. */
static void exact_functions_follow_libm_everywhere(void **state)
{
    (void)state;
    for (int i = 0; i <= 200000; i++) {
        double t = i / 200000.0, e = -100 + 200 * t, c = -10 + 20 * t, l = exp(-80 + 160 * t);
        assert_close(kd_exact_exp(e), exp(e), "exp", e);
        assert_close(kd_exact_cos(c), cos(c), "cos", c);
        assert_close(kd_exact_log(l), log(l), "log", l);
    }
}

static void edges_of_exact_functions(void **state)
{
    (void)state;
    assert_true(kd_exact_log(0) == -HUGE_VAL);
    assert_true(isnan(kd_exact_log(-1)));
    assert_true(isnan(kd_exact_log(NAN)));
    assert_true(kd_exact_log(HUGE_VAL) == HUGE_VAL);
    assert_true(kd_exact_exp(1000) == HUGE_VAL);
    assert_true(kd_exact_exp(-1000) == 0);
    assert_true(isnan(kd_exact_exp(NAN)));
    assert_close(kd_exact_log(5e-324), -744.44007192138127, "log", 5e-324);
}

/* Bits of the normal draws that initial weights and plans are made of: any change of arithmetic shows here. */
static void normal_draws_keep_their_bits(void **state)
{
    kd_rng r = kd_rng_make(42, 1234567890123ULL, 7, KD_RNG_INIT);
    uint64_t mix = 0;
    (void)state;
    for (int i = 0; i < 1000; i++) {
        double x = kd_rng_normal(&r);
        uint64_t bits;
        memcpy(&bits, &x, sizeof bits);
        mix = (mix ^ bits) * 0x9E3779B97F4A7C15ULL;
    }
    assert_int_equal(mix, 0x7a948fb9593c3216ULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(philox_known_answers),
        cmocka_unit_test(the_counter_has_the_documented_layout),
        cmocka_unit_test(a_stream_holds_65536_blocks),
        cmocka_unit_test(draws_stay_in_their_range),
        cmocka_unit_test(below_is_unbiased_where_the_remainder_would_not_be),
        cmocka_unit_test(purposes_views_and_seeds_are_independent_streams),
        cmocka_unit_test(a_permutation_is_one),
        cmocka_unit_test(exact_functions_equal_references),
        cmocka_unit_test(exact_functions_follow_libm_everywhere),
        cmocka_unit_test(edges_of_exact_functions),
        cmocka_unit_test(normal_draws_keep_their_bits),
    };
    return cmocka_run_group_tests_name("rng", tests, NULL, NULL);
}

/* The comparer that every other test relies on can't be fooled. */
#include "tests/unit/unit.h"

#include <math.h>

#include "common/tensor/compare.h"

enum { ROWS = 4, COLUMNS = 5, N = ROWS * COLUMNS };
static const kd_tolerance tight = {1e-6, 1e-6, 0}, loose = {1e30, 1e30, 0}, by_cosine = {1e30, 0, 0.999};

static void fill(float *x)
{
    for (int i = 0; i < N; i++)
        x[i] = (float)sin(i * 1.7) * (1 + (float)(i / COLUMNS));
}

static kd_tensor tensor(const float *x)
{
    return (kd_tensor){.name = "blocks.3.out", .dtype = KD_F32, .rank = 2, .shape = {ROWS, COLUMNS}, .data = x};
}

static kd_comparison compared(const float *got, const float *want, kd_tolerance tol)
{
    kd_tensor a = tensor(got), b = tensor(want);
    kd_comparison c = kd_compare(&a, &b, tol);
    assert_memory_equal(c.text, "blocks.3.out: ", 14);
    return c;
}

static void equal_tensors_are_equal(void **state)
{
    float a[N], b[N];
    kd_comparison c;
    (void)state;
    fill(a);
    fill(b);
    c = compared(a, b, (kd_tolerance){0, 0, 1 - 1e-12});
    assert_int_equal(c.equal, 1);
    assert_true(c.max_abs == 0 && c.rel_l2 == 0 && fabs(c.cosine - 1) < 1e-12);
    memset(a, 0, sizeof a);
    memset(b, 0, sizeof b);
    assert_int_equal(compared(a, b, (kd_tolerance){0, 0, 0.9}).equal, 1); /* all zeros point the same way */
}

static void nan_and_infinity_never_pass(void **state)
{
    static const float values[] = {NAN, INFINITY, -INFINITY};
    (void)state;
    for (int v = 0; v < 3; v++) {
        for (int where = 0; where < 3; where++) { /* got, want, both */
            float a[N], b[N];
            kd_comparison c;
            fill(a);
            fill(b);
            if (where != 1)
                a[7] = values[v];
            if (where != 0)
                b[7] = values[v];
            c = compared(a, b, loose);
            assert_int_equal(c.equal, 0);
            assert_int_equal(c.nonfinite, where == 2 ? 2 : 1);
            assert_int_equal(c.worst, 7);
            assert_contains(c.text, "not finite");
        }
    }
}

static void a_tolerance_that_is_nan_lets_nothing_pass(void **state)
{
    float a[N], b[N];
    (void)state;
    fill(a);
    fill(b);
    a[0] += 1;
    assert_int_equal(compared(a, b, (kd_tolerance){NAN, 0, 0}).equal, 0);
    assert_int_equal(compared(a, b, (kd_tolerance){1e9, 0, NAN}).equal, 0);
}

static void one_wrong_element_is_found(void **state)
{
    (void)state;
    for (size_t i = 0; i < N; i++) {
        float a[N], b[N];
        kd_comparison c;
        fill(a);
        fill(b);
        a[i] += 0.5f;
        c = compared(a, b, tight);
        assert_int_equal(c.equal, 0);
        assert_int_equal(c.outside, 1);
        assert_int_equal(c.worst, i);
        assert_true(fabs(c.max_abs - 0.5) < 1e-6);
        assert_true(c.got == a[i] && c.want == b[i]);
    }
}

static void swapped_rows_are_found(void **state)
{
    float a[N], b[N];
    kd_comparison c;
    (void)state;
    fill(a);
    fill(b);
    memcpy(a, b + COLUMNS, COLUMNS * sizeof *a);
    memcpy(a + COLUMNS, b, COLUMNS * sizeof *a);
    c = compared(a, b, tight);
    assert_int_equal(c.equal, 0);
    assert_true(c.outside >= 2 * COLUMNS - 2);
    assert_int_equal(compared(a, b, by_cosine).equal, 0); /* also when only the direction is asked for */
}

static void shapes_must_be_the_same(void **state)
{
    float a[N] = {0}, b[N] = {0};
    kd_tensor x = tensor(a), y = tensor(b);
    kd_comparison c;
    (void)state;
    y.shape[0] = COLUMNS;
    y.shape[1] = ROWS; /* the same number of elements */
    c = kd_compare(&x, &y, loose);
    assert_int_equal(c.equal, 0);
    assert_contains(c.text, "shape [4, 5], expected [5, 4]");
    y.shape[0] = ROWS;
    y.shape[1] = COLUMNS - 1;
    assert_int_equal(kd_compare(&x, &y, loose).equal, 0);
    y.rank = 1;
    assert_int_equal(kd_compare(&x, &y, loose).equal, 0);
}

static void an_empty_tensor_proves_nothing(void **state)
{
    float a[1] = {0};
    kd_tensor x = tensor(a), y = tensor(a);
    (void)state;
    x.shape[0] = y.shape[0] = 0;
    assert_int_equal(kd_compare(&x, &y, loose).equal, 0);
    assert_contains(kd_compare(&x, &y, loose).text, "empty");
    x = y = tensor(NULL);
    assert_int_equal(kd_compare(&x, &y, loose).equal, 0);
}

static void tolerances_are_absolute_plus_relative(void **state)
{
    float a[1] = {100.5f}, b[1] = {100};
    kd_tensor x = {.name = "x", .dtype = KD_F32, .rank = 1, .shape = {1}, .data = a}, y = x;
    (void)state;
    y.data = b;
    assert_int_equal(kd_compare(&x, &y, (kd_tolerance){0.5, 0, 0}).equal, 1);
    assert_int_equal(kd_compare(&x, &y, (kd_tolerance){0.49, 0, 0}).equal, 0);
    assert_int_equal(kd_compare(&x, &y, (kd_tolerance){0, 0.005, 0}).equal, 1);
    assert_int_equal(kd_compare(&x, &y, (kd_tolerance){0, 0.0049, 0}).equal, 0);
    assert_int_equal(kd_compare(&x, &y, (kd_tolerance){0.25, 0.0025, 0}).equal, 1);
}

static void opposite_and_zero_outputs_fail_the_cosine(void **state)
{
    float a[N], b[N];
    (void)state;
    fill(b);
    for (int i = 0; i < N; i++)
        a[i] = -b[i];
    assert_int_equal(compared(a, b, by_cosine).equal, 0);
    memset(a, 0, sizeof a);
    assert_int_equal(compared(a, b, by_cosine).equal, 0);
    for (int i = 0; i < N; i++)
        a[i] = 3 * b[i];
    assert_int_equal(compared(a, b, by_cosine).equal, 1);
}

static void dtypes_may_differ_within_their_kind(void **state)
{
    static const float f[] = {1, -2, 0.5f};
    static const uint16_t h[] = {0x3C00, 0xC000, 0x3800};
    static const double d[] = {1, -2, 0.5};
    static const int32_t i[] = {1, -2, 3};
    static const int64_t l[] = {1, -2, 3}, wide[] = {1LL << 53, 0, 0}, wider[] = {(1LL << 53) + 1, 0, 0};
    kd_tensor tf = {"f", KD_F32, 1, {3}, f}, th = {"h", KD_F16, 1, {3}, h}, td = {"d", KD_F64, 1, {3}, d}, ti = {"i", KD_I32, 1, {3}, i},
              tl = {"l", KD_I64, 1, {3}, l}, tw = {"w", KD_I64, 1, {3}, wide}, tx = {"x", KD_I64, 1, {3}, wider};
    static const kd_tolerance none = {0, 0, 0};
    (void)state;
    assert_int_equal(kd_compare(&tf, &th, none).equal, 1);
    assert_int_equal(kd_compare(&th, &td, none).equal, 1);
    assert_int_equal(kd_compare(&ti, &tl, none).equal, 1);
    assert_int_equal(kd_compare(&tf, &ti, loose).equal, 0);
    assert_contains(kd_compare(&tf, &ti, loose).text, "cannot be compared");
    assert_int_equal(kd_compare(&tw, &tx, loose).equal, 0); /* integers are equal exactly, beyond what a double holds */
    assert_int_equal(kd_compare(&tw, &tw, none).equal, 1);
}

static void doubles_are_compared_as_doubles(void **state)
{
    static const double a[] = {1.0000000001}, b[] = {1};
    kd_tensor x = {"x", KD_F64, 1, {1}, a}, y = {"y", KD_F64, 1, {1}, b};
    (void)state;
    assert_int_equal(kd_compare(&x, &y, (kd_tolerance){1e-11, 0, 0}).equal, 0);
    assert_int_equal(kd_compare(&x, &y, (kd_tolerance){1e-9, 0, 0}).equal, 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(equal_tensors_are_equal),
        cmocka_unit_test(nan_and_infinity_never_pass),
        cmocka_unit_test(a_tolerance_that_is_nan_lets_nothing_pass),
        cmocka_unit_test(one_wrong_element_is_found),
        cmocka_unit_test(swapped_rows_are_found),
        cmocka_unit_test(shapes_must_be_the_same),
        cmocka_unit_test(an_empty_tensor_proves_nothing),
        cmocka_unit_test(tolerances_are_absolute_plus_relative),
        cmocka_unit_test(opposite_and_zero_outputs_fail_the_cosine),
        cmocka_unit_test(dtypes_may_differ_within_their_kind),
        cmocka_unit_test(doubles_are_compared_as_doubles),
    };
    return cmocka_run_group_tests_name("compare", tests, NULL, NULL);
}

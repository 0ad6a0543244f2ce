/* L-BFGS: minima that are known in closed form, what ends it, and that it never makes things worse. */
#include "tests/unit/unit.h"

#include <math.h>

#include "train/eval/lbfgs.h"

static kd_err err;
static const kd_lbfgs_options usual = {.memory = 10, .max_iterations = 1000, .tolerance = 1e-12};

/* sum of 100 (x[i+1] - x[i]^2)^2 + (1 - x[i])^2 over pairs: minimum 0 at 1, through a curved valley. */
static double rosenbrock(void *ctx, const double *x, double *g) {
    size_t n = *(size_t *)ctx;
    double sum = 0;
    for (size_t i = 0; i < n; i += 2) {
        double a = x[i + 1] - x[i] * x[i], b = 1 - x[i];
        sum += 100 * a * a + b * b;
        g[i] = -400 * a * x[i] - 2 * b;
        g[i + 1] = 200 * a;
    }
    return sum;
}

static void a_curved_valley_is_followed_to_its_minimum(void **state) {
    (void)state;
    enum { N = 10 };
    double x[N];
    size_t n = N;
    kd_lbfgs_result r;
    for (int i = 0; i < N; i++)
        x[i] = i % 2 ? 1 : -1.2 - 0.1 * i;
    assert_ok(kd_lbfgs_minimise(x, n, rosenbrock, &n, &usual, &r, &err));
    for (int i = 0; i < N; i++)
        assert_float_equal(1, x[i], 1e-6);
    assert_true(r.end != KD_LBFGS_ITERATIONS && r.iterations < 600 && r.evaluations < r.iterations * 3 / 2); /* most first steps of the line search are taken */
}

/* sum of weight[i] (x[i] - target[i])^2 / 2 + 1 */
enum { QUADRATIC = 50 };
typedef struct quadratic {
    double weight[QUADRATIC], target[QUADRATIC];
} quadratic;

static double bowl(void *ctx, const double *x, double *g) {
    quadratic *q = ctx;
    double sum = 1;
    for (int i = 0; i < QUADRATIC; i++) {
        double d = x[i] - q->target[i];
        sum += q->weight[i] * d * d / 2;
        g[i] = q->weight[i] * d;
    }
    return sum;
}

static quadratic narrow_bowl(void) {
    quadratic q = {0};
    for (int i = 0; i < QUADRATIC; i++) {
        q.weight[i] = pow(10, 4.0 * i / (QUADRATIC - 1) - 2);
        q.target[i] = i % 7 - 3;
    }
    return q;
}

static void precondition(void *ctx, double *d) {
    const quadratic *q = ctx;
    for (int i = 0; i < QUADRATIC; i++)
        d[i] /= 2 * q->weight[i]; /* right up to a factor */
}

static void preconditioner_finds_the_same_minimum_in_fewer_steps(void **state) {
    (void)state;
    quadratic q = narrow_bowl();
    double plain[QUADRATIC] = {0}, helped[QUADRATIC] = {0};
    kd_lbfgs_options with = usual;
    kd_lbfgs_result slow, fast;
    with.precondition = precondition;
    assert_ok(kd_lbfgs_minimise(plain, QUADRATIC, bowl, &q, &usual, &slow, &err));
    assert_ok(kd_lbfgs_minimise(helped, QUADRATIC, bowl, &q, &with, &fast, &err));
    for (int i = 0; i < QUADRATIC; i++) {
        assert_float_equal(q.target[i], plain[i], 1e-4);
        assert_float_equal(q.target[i], helped[i], 1e-7);
    }
    assert_true(fast.iterations <= 5);
    assert_true(slow.iterations > 10 * fast.iterations);
}

static void gradient_of_nothing_ends_at_once(void **state) {
    (void)state;
    quadratic q = narrow_bowl();
    double x[QUADRATIC];
    kd_lbfgs_result r;
    memcpy(x, q.target, sizeof x);
    assert_ok(kd_lbfgs_minimise(x, QUADRATIC, bowl, &q, &usual, &r, &err));
    assert_int_equal(KD_LBFGS_GRADIENT, r.end);
    assert_int_equal(0, r.iterations);
    assert_float_equal(1, r.value, 0);
}

static void iterations_are_limited_and_value_only_falls(void **state) {
    (void)state;
    quadratic q = narrow_bowl();
    double before = HUGE_VAL;
    for (int limit = 0; limit < 12; limit++) {
        double x[QUADRATIC] = {0}, g[QUADRATIC];
        kd_lbfgs_options o = usual;
        kd_lbfgs_result r;
        o.max_iterations = limit;
        assert_ok(kd_lbfgs_minimise(x, QUADRATIC, bowl, &q, &o, &r, &err));
        assert_int_equal(KD_LBFGS_ITERATIONS, r.end);
        assert_int_equal(limit, r.iterations);
        assert_float_equal(bowl(&q, x, g), r.value, 0);
        assert_true(r.value < before);
        before = r.value;
    }
}

/* -log(x) + x: minimum at 1; not defined from 0 down. */
static double barrier(void *ctx, const double *x, double *g) {
    (void)ctx;
    g[0] = 1 - 1 / x[0];
    return x[0] > 0 ? x[0] - log(x[0]) : NAN;
}

static void line_search_comes_back_from_where_the_function_is_not_defined(void **state) {
    (void)state;
    double x = 30; /* the first step of length 1, then steps that the small curvature makes far too long */
    kd_lbfgs_result r;
    assert_ok(kd_lbfgs_minimise(&x, 1, barrier, NULL, &usual, &r, &err));
    assert_float_equal(1, x, 1e-6);
}

static void start_that_is_not_finite_is_refused(void **state) {
    (void)state;
    double x = -1;
    kd_lbfgs_result r;
    assert_int_equal(KD_ENONFINITE, kd_lbfgs_minimise(&x, 1, barrier, NULL, &usual, &r, &err));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_curved_valley_is_followed_to_its_minimum),
        cmocka_unit_test(preconditioner_finds_the_same_minimum_in_fewer_steps),
        cmocka_unit_test(gradient_of_nothing_ends_at_once),
        cmocka_unit_test(iterations_are_limited_and_value_only_falls),
        cmocka_unit_test(line_search_comes_back_from_where_the_function_is_not_defined),
        cmocka_unit_test(start_that_is_not_finite_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

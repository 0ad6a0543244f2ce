/* Outliers of the loss and of the gradient: what is flagged, and that a stored window goes on as if nothing had happened. */
#include "tests/unit/unit.h"

#include "train/outlier.h"

static kd_err err;

static void a_burst_is_flagged_once(void **state) {
    (void)state;
    kd_outlier_window w = {0};
    for (int i = 0; i < 50; i++)
        assert_int_equal(kd_outlier_add(&w, 1 + 0.01 * i), 0);
    assert_int_equal(kd_outlier_add(&w, 12), 0); /* under ten times the median */
    assert_int_equal(kd_outlier_add(&w, 13), 1);
    assert_int_equal(kd_outlier_add(&w, 50), 0); /* the same burst */
    assert_int_equal(kd_outlier_add(&w, 1), 0);
    assert_int_equal(kd_outlier_add(&w, 13), 1); /* another one */
}

static void the_first_values_are_not_judged(void **state) {
    (void)state;
    kd_outlier_window w = {0};
    for (int i = 0; i < KD_OUTLIER_LEAST - 1; i++)
        kd_outlier_add(&w, 1);
    assert_int_equal(kd_outlier_add(&w, 1000), 0);
    assert_int_equal(kd_outlier_add(&w, 1000), 1);
}

static void what_stays_high_becomes_the_rule(void **state) {
    (void)state;
    kd_outlier_window w = {0};
    int flags = 0;
    for (int i = 0; i < 200; i++)
        kd_outlier_add(&w, 1);
    for (int i = 0; i < 200; i++)
        flags += kd_outlier_add(&w, 100);
    assert_int_equal(flags, 1);
    assert_int_equal(w.outside, 0);
    assert_true(kd_outlier_median(&w) == 100);
}

static void the_median_is_the_lower_of_two(void **state) {
    (void)state;
    kd_outlier_window w = {0};
    assert_true(kd_outlier_median(&w) == 0);
    const double values[] = {5, 1, 4, 2};
    for (int i = 0; i < 4; i++)
        kd_outlier_add(&w, values[i]);
    assert_true(kd_outlier_median(&w) == 2);
    kd_outlier_add(&w, 3);
    assert_true(kd_outlier_median(&w) == 3);
}

static void a_stored_window_goes_on(void **state) {
    (void)state;
    for (int stop = 0; stop < 260; stop += 13) {
        kd_outlier_window a = {0}, b;
        for (int i = 0; i < stop; i++)
            kd_outlier_add(&a, (i * 37 % 11) / 3.0 + (i % 50 == 49 ? 1e3 : 0));
        json_t *j = kd_outlier_json(&a);
        assert_ok(kd_outlier_parse(&b, j, "a test", &err));
        json_decref(j);
        for (int i = stop; i < stop + 200; i++) {
            double x = (i * 37 % 11) / 3.0 + (i % 50 == 49 ? 1e3 : 0);
            assert_int_equal(kd_outlier_add(&a, x), kd_outlier_add(&b, x));
        }
    }
}

static void what_is_no_window_is_refused(void **state) {
    (void)state;
    static const char *const bad[] = {"{}", "[]", "{\"values\":3,\"outside\":false}", "{\"values\":[],\"outside\":1}"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        kd_outlier_window w;
        json_t *j;
        assert_ok(kd_json_parse(bad[i], strlen(bad[i]), "a test", &j, &err));
        assert_int_equal(kd_outlier_parse(&w, j, "latest.kdt", &err), KD_EDAMAGED);
        assert_contains(err.msg, "latest.kdt");
        json_decref(j);
    }
    kd_outlier_window w;
    assert_int_equal(kd_outlier_parse(&w, NULL, "latest.kdt", &err), KD_EDAMAGED);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_burst_is_flagged_once),          cmocka_unit_test(the_first_values_are_not_judged), cmocka_unit_test(what_stays_high_becomes_the_rule),
        cmocka_unit_test(the_median_is_the_lower_of_two),   cmocka_unit_test(a_stored_window_goes_on),         cmocka_unit_test(what_is_no_window_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

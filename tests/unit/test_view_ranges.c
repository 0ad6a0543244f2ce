/* --views 0-3,6. */
#include "tests/unit/unit.h"

#include "cache/view_ranges.h"

static kd_err err;

static void lists_of_views_and_ranges_are_read(void **state)
{
    kd_view_ranges v;
    (void)state;
    assert_ok(kd_view_ranges_parse(&v, "6", "--views", &err));
    assert_false(kd_view_ranges_have(&v, 5));
    assert_true(kd_view_ranges_have(&v, 6));
    assert_ok(kd_view_ranges_parse(&v, "9,0-3,2-5,4294967294", "--views", &err));
    for (uint32_t i = 0; i < 12; i++)
        assert_int_equal(kd_view_ranges_have(&v, i), i <= 5 || i == 9);
    assert_true(kd_view_ranges_have(&v, 4294967294u));
    assert_false(kd_view_ranges_have(&v, 4294967293u));
}

static void without_a_text_every_view_is_meant(void **state)
{
    kd_view_ranges v;
    (void)state;
    assert_ok(kd_view_ranges_parse(&v, NULL, "--views", &err));
    assert_true(kd_view_ranges_have(&v, 0) && kd_view_ranges_have(&v, 4294967294u));
}

static void what_is_not_a_range_is_refused(void **state)
{
    static const char *const bad[] = {"", ",", "1,", ",1", "-1", "3-", "3-2", "1 2", " 1", "1-2-3", "a", "0x1", "+1", "4294967295", "0-99999999999999999999", "1;2"};
    kd_view_ranges v;
    char many[400] = "0";
    (void)state;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        assert_int_equal(kd_view_ranges_parse(&v, bad[i], "--views", &err), KD_EUSAGE);
        assert_contains(err.msg, "such as 0-3");
        assert_contains(err.msg, "--views");
    }
    for (int i = 0; i < KD_MAX_VIEW_RANGES; i++)
        strcat(many, ",1");
    assert_int_equal(kd_view_ranges_parse(&v, many, "--views", &err), KD_EUSAGE);
    assert_contains(err.msg, "more than 64 ranges");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(lists_of_views_and_ranges_are_read),
        cmocka_unit_test(without_a_text_every_view_is_meant),
        cmocka_unit_test(what_is_not_a_range_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

/* The sentence of an error is one safe line, its status is the exit code, and a full disk is recognised. */
#include "tests/unit/unit.h"

#include <errno.h>

static void control_characters_are_escaped(void **state)
{
    kd_err err;
    (void)state;
    assert_int_equal(kd_fail(&err, KD_EFAIL, "a\nb\tc\x1b[31md\x7f"), KD_EFAIL);
    assert_string_equal(err.msg, "a\\nb\\tc\\x1b[31md\\x7f");
}

static void only_valid_utf8_passes(void **state)
{
    char out[100];
    (void)state;
    assert_string_equal(kd_text_escape(out, sizeof out, "h\xc3\xa9 \xe2\x82\xac \xf0\x9f\x98\x80"), "h\xc3\xa9 \xe2\x82\xac \xf0\x9f\x98\x80");
    assert_string_equal(kd_text_escape(out, sizeof out, "\xff\xc3"), "\\xff\\xc3");
    assert_string_equal(kd_text_escape(out, sizeof out, "\xc0\xaf"), "\\xc0\\xaf");         /* overlong */
    assert_string_equal(kd_text_escape(out, sizeof out, "\xed\xa0\x80"), "\\xed\\xa0\\x80"); /* surrogate */
    assert_string_equal(kd_text_escape(out, sizeof out, "\xc2\x9b"), "\\xc2\\x9b");         /* a C1 control character */
}

static void a_long_text_is_cut_at_a_character(void **state)
{
    char out[5];
    kd_err err;
    char text[3000];
    (void)state;
    assert_string_equal(kd_text_escape(out, sizeof out, "ab\xe2\x82\xac"), "ab");
    memset(text, 'x', sizeof text - 1);
    text[sizeof text - 1] = '\0';
    kd_fail(&err, KD_EFAIL, "%s", text);
    assert_int_equal(strlen(err.msg), sizeof err.msg - 1);
}

static void errno_is_appended_and_a_full_disk_is_recognised(void **state)
{
    kd_err err;
    (void)state;
    errno = EACCES;
    assert_int_equal(kd_fail_errno(&err, KD_EFAIL, "f.kdc"), KD_EFAIL);
    assert_string_equal(err.msg, "f.kdc: Permission denied");
    errno = ENOSPC;
    assert_int_equal(kd_fail_errno(&err, KD_EFAIL, "f.kdc"), KD_ENOSPACE);
    assert_int_equal(err.status, KD_ENOSPACE);
    errno = EDQUOT;
    assert_int_equal(kd_fail_errno(NULL, KD_EFAIL, "f.kdc"), KD_ENOSPACE);
}

static void a_sentence_may_quote_the_one_before(void **state)
{
    kd_err err;
    (void)state;
    kd_fail(&err, KD_EFAIL, "inner");
    kd_fail(&err, KD_EUSAGE, "outer: %s", err.msg);
    assert_string_equal(err.msg, "outer: inner");
    assert_int_equal(err.status, KD_EUSAGE);
    assert_non_null(strstr(err.file, "test_err.c"));
}

static void exit_codes_are_the_contract(void **state)
{
    static const struct { kd_status s; int code; } all[] = {
        {KD_OK, 0}, {KD_DONE, 0}, {KD_EFAIL, 1}, {KD_EUSAGE, 2}, {KD_ESKIPPED, 3}, {KD_ENOTFOUND, 10}, {KD_ELOCKED, 11}, {KD_EDAMAGED, 12},
        {KD_EMISMATCH, 13}, {KD_ENOSPACE, 14}, {KD_ENODEVICE, 15}, {KD_ENONFINITE, 16}, {KD_ESIGINT, 130}, {KD_ESIGTERM, 143}};
    (void)state;
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
        assert_int_equal(kd_exit_code(all[i].s), all[i].code);
        assert_string_not_equal(kd_status_name(all[i].s), "unknown status");
    }
}

static kd_status tried(kd_status inner, int *after)
{
    KD_TRY(inner);
    *after = 1;
    return KD_OK;
}

static void try_passes_every_other_status_on(void **state)
{
    int after = 0;
    (void)state;
    assert_int_equal(tried(KD_EDAMAGED, &after), KD_EDAMAGED);
    assert_int_equal(after, 0);
    assert_int_equal(tried(KD_OK, &after), KD_OK);
    assert_int_equal(after, 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(control_characters_are_escaped),
        cmocka_unit_test(only_valid_utf8_passes),
        cmocka_unit_test(a_long_text_is_cut_at_a_character),
        cmocka_unit_test(errno_is_appended_and_a_full_disk_is_recognised),
        cmocka_unit_test(a_sentence_may_quote_the_one_before),
        cmocka_unit_test(exit_codes_are_the_contract),
        cmocka_unit_test(try_passes_every_other_status_on),
    };
    return cmocka_run_group_tests_name("err", tests, NULL, NULL);
}

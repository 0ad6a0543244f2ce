/* Growing text: pieces, markup made harmless, base64 (RFC 4648 section 10), memory that runs out. */
#include "tests/unit/unit.h"

#include "common/base/mem.h"
#include "common/base/text.h"

static void pieces_are_joined(void **state) {
    (void)state;
    kd_text t = {0};
    kd_err err;
    for (int i = 0; i < 1000; i++)
        kd_text_printf(&t, "%d,", i % 10);
    assert_int_equal(t.size, 2000);
    assert_int_equal(strlen(t.at), 2000);
    assert_memory_equal(t.at + 1990, "5,6,7,8,9,", 11);
    assert_ok(kd_text_check(&t, "a text", &err));
    kd_text_free(&t);
    assert_null(t.at);
}

static void a_name_can_not_bring_markup(void **state) {
    (void)state;
    kd_text t = {0};
    kd_text_html(&t, "<script a=\"b\" c='d'>&\n\xff\xc3\xa9");
    assert_string_equal(t.at, "&lt;script a=&quot;b&quot; c=&#39;d&#39;&gt;&amp;\\n\\xff\xc3\xa9");
    kd_text_free(&t);
}

static void base64_is_that_of_the_rfc(void **state) {
    (void)state;
    static const char *const want[] = {"", "Zg==", "Zm8=", "Zm9v", "Zm9vYg==", "Zm9vYmE=", "Zm9vYmFy"};
    for (size_t n = 0; n <= 6; n++) {
        kd_text t = {0};
        kd_text_base64(&t, "foobar", n);
        assert_string_equal(t.at ? t.at : "", want[n]);
        kd_text_free(&t);
    }
    const uint8_t high[3] = {0xfb, 0xff, 0xbf};
    kd_text t = {0};
    kd_text_base64(&t, high, 3);
    assert_string_equal(t.at, "+/+/");
    kd_text_free(&t);
}

static void memory_that_runs_out_is_remembered(void **state) {
    (void)state;
    kd_err err;
    for (size_t n = 1; n <= 3; n++) {
        kd_text t = {0};
        kd_mem_fail_after(n);
        kd_text_printf(&t, "%s", "some text");
        kd_text_html(&t, "<more>");
        kd_text_base64(&t, "and more of it, so that it grows", 32);
        kd_mem_fail_after(0);
        assert_int_equal(kd_text_check(&t, "the report", &err), KD_EFAIL);
        assert_contains(err.msg, "the report");
        kd_text_free(&t);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(pieces_are_joined),
        cmocka_unit_test(a_name_can_not_bring_markup),
        cmocka_unit_test(base64_is_that_of_the_rfc),
        cmocka_unit_test(memory_that_runs_out_is_remembered),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

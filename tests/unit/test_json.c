/* JSON from outside is strict, canonical text is canonical, and names that aren't UTF-8 survive without colliding. */
#include "tests/unit/unit.h"

#include "common/base/json.h"
#include "common/base/mem.h"

static json_t *parsed(const char *text)
{
    json_t *v;
    kd_err err;
    assert_ok(kd_json_parse(text, strlen(text), "t", &v, &err));
    return v;
}

static void foreign_text_is_strict(void **state)
{
    static const char *const bad[] = {"", "{\"a\":1,\"a\":2}", "{\"a\":1} x", "[1,]", "{a:1}", "[1", "\"\xff\"", "[NaN]", "[1e999]", "nul",
                                      "[99999999999999999999999]", "{\"a\\u0000b\":1}"};
    json_t *v;
    kd_err err;
    (void)state;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        if (kd_json_parse(bad[i], strlen(bad[i]), "header of x.safetensors", &v, &err) != KD_EDAMAGED)
            fail_msg("\"%s\" was accepted", bad[i]);
        assert_null(v);
        assert_contains(err.msg, "header of x.safetensors");
        assert_contains(err.msg, "line 1");
    }
}

static void exactly_the_given_bytes_are_parsed(void **state)
{
    json_t *v;
    kd_err err;
    (void)state;
    assert_ok(kd_json_parse("17garbage", 2, "t", &v, &err));
    assert_int_equal(json_integer_value(v), 17);
    json_decref(v);
}

static void deep_nesting_is_refused_not_a_crash(void **state)
{
    enum { N = 1000000 };
    char *text = malloc(N);
    json_t *v;
    kd_err err;
    (void)state;
    memset(text, '[', N);
    assert_int_equal(kd_json_parse(text, N, "t", &v, &err), KD_EDAMAGED);
    free(text);
}

static void canonical_text(void **state)
{
    json_t *v = parsed("{\"b\": [1, 2.5, 1.0, 0.1],\n \"a\": {\"z\": true, \"y\": null}, \"\xc3\xa9\": \"\\u00e9\\n\"}");
    char *text = kd_json_canonical(v);
    (void)state;
    assert_string_equal(text, "{\"a\":{\"y\":null,\"z\":true},\"b\":[1,2.5,1.0,0.10000000000000001],\"\xc3\xa9\":\"\xc3\xa9\\n\"}");
    kd_free(text);
    json_decref(v);
}

static void typed_fields(void **state)
{
    json_t *v = parsed("{\"i\": 5, \"r\": 2.5, \"s\": \"text\"}");
    long long i;
    double r;
    const char *s;
    kd_err err;
    (void)state;
    assert_ok(kd_json_get_int(v, "i", "t", &i, &err));
    assert_int_equal(i, 5);
    assert_ok(kd_json_get_real(v, "r", "t", &r, &err));
    assert_true(r == 2.5);
    assert_ok(kd_json_get_real(v, "i", "t", &r, &err));
    assert_true(r == 5);
    assert_ok(kd_json_get_string(v, "s", "t", &s, &err));
    assert_string_equal(s, "text");
    assert_int_equal(kd_json_get_int(v, "r", "meta of c.kdc", &i, &err), KD_EDAMAGED);
    assert_string_equal(err.msg, "meta of c.kdc: the integer \"r\" has another type");
    assert_int_equal(kd_json_get_string(v, "absent", "t", &s, &err), KD_EDAMAGED);
    assert_string_equal(err.msg, "t: the string \"absent\" is missing");
    json_object_set_new(v, "nul", json_stringn("a\0b", 3)); /* a C string would end in its middle */
    assert_int_equal(kd_json_get_string(v, "nul", "t", &s, &err), KD_EDAMAGED);
    assert_int_equal(kd_json_get_real(NULL, "x", "t", &r, &err), KD_EDAMAGED);
    json_decref(v);
}

static void names_that_are_not_utf8_survive(void **state)
{
    static const struct { const char *bytes; size_t n; const char *text; } names[] = {
        {"plain name.jpg", 14, "plain name.jpg"}, {"caf\xc3\xa9", 5, "caf\xc3\xa9"}, {"caf\xe9.jpg", 8, "caf\\xe9.jpg"}, {"a\nb", 3, "a\nb"},
        {"\\xe9", 4, "\\x5cxe9"}, /* the text of an escape is itself escaped: no two names become one */
        {"a\0b", 3, "a\\x00b"}, {"", 0, ""}, {"\xe2\x82", 2, "\\xe2\\x82"}, {"\xc3\xa9\xff\xc3\xa9", 5, "\xc3\xa9\\xff\xc3\xa9"}};
    (void)state;
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        json_t *v = kd_json_bytes(names[i].bytes, names[i].n);
        assert_non_null(v);
        assert_string_equal(json_string_value(v), names[i].text);
        json_decref(v);
    }
}

static void files_are_read_and_named(void **state)
{
    char *folder = unit_folder(), path[4200];
    json_t *v;
    kd_err err;
    (void)state;
    snprintf(path, sizeof path, "%s/x.json", folder);
    unit_write(path, "{\"a\": 1}\n", 9);
    assert_ok(kd_json_read_file(path, 100, &v, &err));
    assert_int_equal(json_integer_value(json_object_get(v, "a")), 1);
    json_decref(v);
    assert_int_equal(kd_json_read_file(path, 5, &v, &err), KD_EFAIL);
    unit_write(path, "{\"a\": }", 7);
    assert_int_equal(kd_json_read_file(path, 100, &v, &err), KD_EDAMAGED);
    assert_contains(err.msg, "x.json");
    free(folder);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(foreign_text_is_strict), cmocka_unit_test(exactly_the_given_bytes_are_parsed),
        cmocka_unit_test(deep_nesting_is_refused_not_a_crash), cmocka_unit_test(canonical_text),
        cmocka_unit_test(typed_fields), cmocka_unit_test(names_that_are_not_utf8_survive),
        cmocka_unit_test(files_are_read_and_named),
    };
    return cmocka_run_group_tests_name("json", tests, NULL, NULL);
}

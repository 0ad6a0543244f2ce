/* Configuration files: types as documented, everything dangerous or ambiguous refused with its place, and what we write reads back. */
#include "tests/unit/unit.h"

#include "common/base/mem.h"
#include "common/base/yaml.h"

static char *folder, path[4200];

static int start(void **state)
{
    (void)state;
    folder = unit_folder();
    snprintf(path, sizeof path, "%s/c.yaml", folder);
    return 0;
}

static int end(void **state)
{
    (void)state;
    free(folder);
    return 0;
}

static kd_status read_text(const char *text, json_t **v, kd_err *err)
{
    unit_write(path, text, strlen(text));
    return kd_yaml_read_file(path, v, err);
}

static void scalars_have_their_types(void **state)
{
    json_t *v, *want;
    kd_err err;
    (void)state;
    assert_ok(read_text("# comment\nint: -12\nreal: 1.5e-3\ndot: .5\nexp: 1e6\nyes: true\nno: false\noff: off\nbare: no\nquoted: \"12\"\n"
                        "single: 'true'\nnothing:\ntilde: ~\npath: /a b/c.kdc\nversion: 1.2.3\ninf: .inf\nhex: 0x10\nbig: 123456789012345678901234567890\n"
                        "list: [1, two, 3.0]\nblock:\n  - a\n  - b\nmap: {x: 1, y: {z: deep}}\nsize: 32GB\n",
                        &v, &err));
    want = json_pack("{s:i, s:f, s:f, s:f, s:b, s:b, s:s, s:s, s:s, s:s, s:n, s:n, s:s, s:s, s:s, s:s, s:s, s:[i,s,f], s:[s,s], s:{s:i,s:{s:s}}, s:s}",
                     "int", -12, "real", 1.5e-3, "dot", 0.5, "exp", 1e6, "yes", 1, "no", 0, "off", "off", "bare", "no", "quoted", "12", "single",
                     "true", "nothing", "tilde", "path", "/a b/c.kdc", "version", "1.2.3", "inf", ".inf", "hex", "0x10", "big",
                     "123456789012345678901234567890", "list", 1, "two", 3.0, "block", "a", "b", "map", "x", 1, "y", "z", "deep", "size", "32GB");
    assert_non_null(want);
    assert_true(json_equal(v, want));
    json_decref(want);
    json_decref(v);
}

static void an_empty_file_is_an_empty_object(void **state)
{
    static const char *const empty[] = {"", "# only a comment\n", "---\n", "---\n...\n", "null\n"};
    json_t *v;
    kd_err err;
    (void)state;
    for (size_t i = 0; i < sizeof empty / sizeof *empty; i++) {
        assert_ok(read_text(empty[i], &v, &err));
        assert_true(json_is_object(v));
        assert_int_equal(json_object_size(v), 0);
        json_decref(v);
    }
}

static void what_is_refused_is_named_with_its_place(void **state)
{
    static const struct { const char *text, *said; } bad[] = {
        {"a: 1\nb: 2\na: 3\n", "c.yaml:3:1: the key \"a\" stands here a second time"},
        {"a: &x 1\n", "c.yaml:1:4: anchors and tags"},
        {"a: *x\n", "c.yaml:1:4: aliases"},
        {"a: !!int 1\n", "anchors and tags"},
        {"a: !!python/object:os.system x\n", "anchors and tags"},
        {"a: &x [1]\n", "anchors and tags"},
        {"a: &x {b: 1}\n", "anchors and tags"},
        {"? [a]\n: 1\n", "a key must be a plain name"},
        {"- a\n- b\n", "\"name: value\" lines are expected"},
        {"just text\n", "\"name: value\" lines are expected"},
        {"a: 1\n---\nb: 2\n", "a second document"},
        {"a: [1, 2\n", "c.yaml:2:1"},
        {"a: 1\n\tb: 2\n", "c.yaml:2"},
        {"a: \"x\\0y\"\n", "zero byte"},
        {"a: \xff\n", "c.yaml: byte 3"},
        {"a: [[[[[[[[[[[[[[[[1]]]]]]]]]]]]]]]]\n", "deeper than 16"}};
    (void)state;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        json_t *v;
        kd_err err;
        if (read_text(bad[i].text, &v, &err) != KD_EUSAGE)
            fail_msg("accepted: %s", bad[i].text);
        assert_null(v);
        assert_contains(err.msg, bad[i].said);
    }
}

static void missing_and_huge_files_are_refused(void **state)
{
    json_t *v;
    kd_err err;
    size_t n = (1u << 20) + 1;
    char *big = malloc(n);
    (void)state;
    assert_int_equal(kd_yaml_read_file("/absent/x.yaml", &v, &err), KD_EUSAGE);
    assert_contains(err.msg, "/absent/x.yaml");
    assert_int_equal(err.status, KD_EUSAGE);
    memset(big, '#', n);
    unit_write(path, big, n);
    assert_int_equal(kd_yaml_read_file(path, &v, &err), KD_EUSAGE);
    assert_contains(err.msg, "limit of 1048576");
    free(big);
}

static void what_we_write_reads_back(void **state)
{
    json_t *v = json_pack("{s:i, s:f, s:f, s:f, s:b, s:n, s:s, s:s, s:s, s:s, s:[s,i], s:[]}", "z", 5, "lr", 0.1, "one", 1.0, "small", 1e-5, "flag", 0,
                          "none", "text", "a: b # c", "number", "12", "quote", "\"\\\n\t\x01", "name", "caf\xc3\xa9 \xf0\x9f\x98\x80", "list", "x y", 3,
                          "empty"),
           *back;
    char *text = kd_yaml_text(v);
    kd_err err;
    (void)state;
    assert_non_null(v);
    assert_memory_equal(text, "z: 5\nlr: 0.1\none: 1.0\nsmall: 1e-05\nflag: false\nnone: null\n", 58);
    assert_ok(read_text(text, &back, &err));
    assert_true(json_equal(v, back));
    json_decref(v);
    json_decref(back);
    kd_free(text);
}

static void out_of_memory_while_writing_is_reported(void **state)
{
    json_t *v = json_pack("{s:s, s:s}", "a", "some text that makes the buffer grow", "b", "and more of it, so that it grows again");
    size_t n;
    (void)state;
    for (n = 1; n < 50; n++) {
        char *text;
        kd_mem_fail_after(n);
        text = kd_yaml_text(v);
        kd_mem_fail_after(0);
        kd_free(text);
        if (text)
            break;
    }
    assert_in_range(n, 2, 20);
    json_decref(v);
}

#define YAML_TEST(f) cmocka_unit_test_setup_teardown(f, start, end)

int main(void)
{
    const struct CMUnitTest tests[] = {
        YAML_TEST(scalars_have_their_types),           YAML_TEST(an_empty_file_is_an_empty_object), YAML_TEST(what_is_refused_is_named_with_its_place),
        YAML_TEST(missing_and_huge_files_are_refused), YAML_TEST(what_we_write_reads_back),         YAML_TEST(out_of_memory_while_writing_is_reported),
    };
    return cmocka_run_group_tests_name("yaml", tests, NULL, NULL);
}

/* kd-cache info on manifests that others wrote: a manifest proves only that it is whole. */
#include "tests/cache_fixture.h"

#include "cache/commands.h"
#include "cache/manifest.h"

/* What `kd-cache info a.kdc` prints; kd_free'd by the caller. */
static char *info(int all)
{
    char *argv[] = {"kd-cache", "info", (char *)(uintptr_t)fx_path("a.kdc"), all ? "--all" : NULL};
    int json = 0, out;
    kd_arena *arena = kd_arena_create();
    uint8_t *text;
    size_t size;
    assert_non_null(arena);
    fflush(stdout);
    out = dup(STDOUT_FILENO);
    assert_true(out >= 0);
    assert_non_null(freopen(fx_path("out"), "w", stdout));
    kd_status status = kd_cache_main(all ? 4 : 3, argv, &json, arena, &fx_err);
    fflush(stdout);
    assert_true(dup2(out, STDOUT_FILENO) >= 0);
    close(out);
    kd_arena_destroy(arena);
    must_be(KD_OK, status);
    fx_read_file(fx_path("out"), &text, &size);
    return (char *)text;
}

static void write_manifest(const char *key, json_t *value)
{
    kd_manifest m;
    must(kd_manifest_read(&m, fx_path("a.kdc"), &fx_err));
    json_object_set_new(m.json, key, value);
    must(kd_manifest_write(fx_path("a.kdc"), m.json, &fx_err));
    kd_manifest_free(&m);
}

static void provenance_of_any_type_is_read(void **state)
{
    static const char *const key[] = {"teacher_name", "program", "precision", "backend", "license", "contact", "note"};
    json_t *p = json_pack("{s:{s:i,s:s,s:n}}", "dataset", "name", 7, "files", "many", "bytes");
    char *text;
    (void)state;
    for (size_t i = 0; i < sizeof key / sizeof key[0]; i++)
        json_object_set_new(p, key[i], i % 2 ? json_integer(1) : json_array());
    fx_make_cache(fx_path("a.kdc"), 0, 2);
    write_manifest("provenance", p);
    for (int all = 0; all < 2; all++) {
        text = info(all);
        assert_non_null(strstr(text, "(the set has no name)"));
        assert_non_null(strstr(text, "2 images, 4 views"));
        kd_free(text);
    }
    write_manifest("provenance", json_string("nothing"));
    kd_free(info(1));
}

static void texts_cannot_command_the_terminal(void **state)
{
    char *text;
    (void)state;
    fx_make_cache(fx_path("a.kdc"), 0, 2);
    write_manifest("provenance", json_pack("{s:s,s:s,s:{s:s}}", "program", "\033[2J", "note", "\033]0;x\a", "dataset", "name", "\033c"));
    write_manifest("created", json_string("\033[31m2026"));
    for (int all = 0; all < 2; all++) {
        text = info(all);
        assert_null(strchr(text, '\033'));
        assert_null(strchr(text, '\a'));
        kd_free(text);
    }
}

int main(void)
{
#define T(f) cmocka_unit_test_setup_teardown(f, fx_make_dir, fx_drop_dir)
    const struct CMUnitTest tests[] = {T(provenance_of_any_type_is_read), T(texts_cannot_command_the_terminal)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}

/* Moving a sealed shard onto one that is there already: what isn't there as well is never removed. */
#include "tests/cache_fixture.h"

#include "cache/shard_move.h"

static void make(const char *path, unsigned first, unsigned count, unsigned view)
{
    kd_recipe r = fx_recipe();
    kd_writer *w;
    must(kd_writer_open(&w, path, &r, NULL, 0, &fx_err));
    for (unsigned i = first; i < first + count; i++)
        must(fx_add(w, &r, i, view, &fx_err));
    must(kd_writer_seal(w, &fx_err));
    kd_writer_close(w);
    kd_recipe_free(&r);
}

static void a_shard_is_moved_with_its_manifest(void **state)
{
    kd_cache *c;
    (void)state;
    make(fx_path("a.kdc"), 0, 3, 0);
    must(kd_io_write_atomic(fx_path("b.kdc.json.tmp.1.0"), "{", 1, &fx_err));
    must(kd_shard_move(fx_path("a.kdc"), fx_path("b.kdc"), &fx_err));
    assert_false(kd_io_exists(fx_path("a.kdc")) || kd_io_exists(fx_path("a.kdc.json")));
    must(fx_open(&c, fx_path("b.kdc"), &fx_err));
    kd_cache_close(c);
    assert_false(kd_io_exists(fx_path("b.kdc.json.tmp.1.0"))); /* of a job that was killed while it wrote the manifest there */
    make(fx_path("a.kdc"), 0, 3, 0); /* made again, byte for byte: a job that was killed after the move */
    must(kd_shard_move(fx_path("a.kdc"), fx_path("b.kdc"), &fx_err));
    assert_false(kd_io_exists(fx_path("a.kdc")));
}

static void a_shard_that_covers_this_one_takes_its_place(void **state)
{
    (void)state;
    make(fx_path("b.kdc"), 0, 4, 0);
    make(fx_path("a.kdc"), 1, 2, 0);
    must(kd_shard_move(fx_path("a.kdc"), fx_path("b.kdc"), &fx_err));
    assert_false(kd_io_exists(fx_path("a.kdc")));
}

/* As many views and more, but others. */
static void a_shard_with_other_views_is_kept(void **state)
{
    (void)state;
    make(fx_path("b.kdc"), 0, 4, 0);
    make(fx_path("a.kdc"), 2, 3, 0);
    must_be(KD_EMISMATCH, kd_shard_move(fx_path("a.kdc"), fx_path("b.kdc"), &fx_err));
    must_say("lacks views of the first");
    assert_true(kd_io_exists(fx_path("a.kdc")) && kd_io_exists(fx_path("a.kdc.json")));
    make(fx_path("c.kdc"), 0, 2, 1);
    must_be(KD_EMISMATCH, kd_shard_move(fx_path("c.kdc"), fx_path("b.kdc"), &fx_err));
    assert_true(kd_io_exists(fx_path("c.kdc")));
}

int main(void)
{
#define T(f) cmocka_unit_test_setup_teardown(f, fx_make_dir, fx_drop_dir)
    const struct CMUnitTest tests[] = {T(a_shard_is_moved_with_its_manifest), T(a_shard_that_covers_this_one_takes_its_place), T(a_shard_with_other_views_is_kept)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}

/* Caches from caches: what merge, split, compact and extract do, without the command line. */
#include "tests/cache_fixture.h"

#include <signal.h>
#include <sys/wait.h>

#include "cache/copy.h"
#include "cache/image_list.h"
#include "common/base/threads.h"

enum { IMAGES = 24 };

static void read_digest(const char *path, kd_sha256 *digest)
{
    kd_cache *c;
    must(fx_open(&c, path, &fx_err));
    must(kd_cache_digest(c, digest, &fx_err));
    kd_cache_close(c);
}

static void same_digest(const char *a, const char *b)
{
    kd_sha256 x, y;
    read_digest(a, &x);
    read_digest(b, &y);
    assert_memory_equal(x.b, y.b, sizeof x.b);
}

/* Opens paths, derives and copies. job: all but cache and derived. */
static kd_status copy_paths(const char *const *paths, size_t count, const kd_derive_options *o, kd_copy_job job, kd_copy_result *result, kd_err *err)
{
    kd_derive_options none = {0};
    kd_derived derived;
    kd_status status;
    KD_TRY(kd_cache_open(&job.cache, paths, count, err));
    status = kd_derive(&derived, kd_cache_recipe(job.cache), o ? o : &none, err);
    if (status == KD_OK) {
        job.derived = &derived;
        job.command = "kd-cache test";
        status = kd_cache_copy(&job, result, err);
        kd_derived_free(&derived);
    }
    kd_cache_close(job.cache);
    return status;
}

static kd_status copy(const char *from, const kd_derive_options *o, kd_copy_job job, kd_err *err)
{
    kd_copy_result ignored;
    return copy_paths(&from, 1, o, job, &ignored, err);
}

/* Removes a sealed file, its manifest and its folder, if it has one of its own. */
static void drop(const char *folder)
{
    char path[600];
    struct dirent *e;
    DIR *d = opendir(folder);
    while (d && (e = readdir(d)) != NULL) {
        snprintf(path, sizeof path, "%s/%s", folder, e->d_name);
        unlink(path);
    }
    if (d)
        closedir(d);
    rmdir(folder);
}

/* ---- the same records in other files ---- */

static void overlapping_caches_become_one_as_if_made_at_once(void **state)
{
    const char *paths[2];
    kd_copy_result result;
    (void)state;
    fx_make_cache_of(fx_recipe_full(), fx_path("a.kdc"), 0, 16);
    fx_make_cache_of(fx_recipe_full(), fx_path("b.kdc"), 10, IMAGES - 10);
    fx_make_cache_of(fx_recipe_full(), fx_path("all.kdc"), 0, IMAGES);
    paths[0] = fx_path("a.kdc");
    paths[1] = fx_path("b.kdc");
    must(copy_paths(paths, 2, NULL, (kd_copy_job){.out = fx_path("m.kdc")}, &result, &fx_err));
    assert_int_equal(result.images, IMAGES);
    assert_int_equal(result.views, IMAGES * FX_VIEWS);
    fx_assert_equal_files(fx_path("m.kdc"), fx_path("all.kdc"));
    same_digest(fx_path("m.kdc"), fx_path("all.kdc"));
}

static void a_split_cache_has_the_same_content_and_joins_again(void **state)
{
    char folder[512], again[512];
    const char *path = folder;
    kd_copy_result result;
    (void)state;
    snprintf(folder, sizeof folder, "%s", fx_path("split"));
    snprintf(again, sizeof again, "%s", fx_path("again.kdc"));
    fx_make_cache_of(fx_recipe_full(), fx_path("a.kdc"), 0, IMAGES);
    for (uint32_t shards = 1; shards <= IMAGES; shards += shards < 7 ? 3 : 17) {
        kd_cache *c;
        const char *from = fx_path("a.kdc");
        must(copy_paths(&from, 1, NULL, (kd_copy_job){.out = folder, .shards = shards}, &result, &fx_err));
        assert_int_equal(result.shards, shards);
        must(fx_open(&c, folder, &fx_err));
        assert_int_equal(kd_cache_shards(c), shards);
        must(fx_compare_all(c, 0, IMAGES, &fx_err));
        kd_cache_close(c);
        same_digest(folder, fx_path("a.kdc"));
        must(copy_paths(&path, 1, NULL, (kd_copy_job){.out = again}, &result, &fx_err));
        fx_assert_equal_files(again, fx_path("a.kdc"));
        unlink(again);
        unlink(fx_path("again.kdc.json"));
        drop(folder);
    }
    must_be(KD_EUSAGE, copy(fx_path("a.kdc"), NULL, (kd_copy_job){.out = folder, .shards = IMAGES + 1}, &fx_err));
    must_say("there are 24 images");
}

static void shards_end_where_the_size_is_reached(void **state)
{
    kd_cache *c;
    const char *from;
    kd_copy_result result;
    uint64_t each; /* bytes of an image's records */
    (void)state;
    fx_make_cache(fx_path("a.kdc"), 0, IMAGES);
    each = FX_VIEWS * (2 * 128 + 2 * FX_WIDTH * (1 + FX_ROWS)); /* random numbers: a little less or more compressed */
    from = fx_path("a.kdc");
    must(copy_paths(&from, 1, NULL, (kd_copy_job){.out = fx_path("sized"), .shard_size = 4 * each}, &result, &fx_err));
    assert_true(result.shards >= IMAGES / 6 && result.shards <= IMAGES / 4 + 1);
    same_digest(fx_path("sized"), fx_path("a.kdc"));
    must(fx_open(&c, fx_path("sized"), &fx_err));
    for (size_t i = 0; i + 1 < result.shards; i++) {
        json_int_t images = json_integer_value(json_object_get(json_object_get(kd_cache_shard_manifest(c, i), "content"), "images"));
        assert_true(images >= 4 && images <= 6);
    }
    kd_cache_close(c);
    drop(fx_path("sized"));
}

static void compressing_anew_changes_no_value(void **state)
{
    kd_cache *c;
    (void)state;
    fx_make_cache_of(fx_recipe_full(), fx_path("a.kdc"), 0, IMAGES);
    must(copy(fx_path("a.kdc"), NULL, (kd_copy_job){.out = fx_path("z.kdc"), .zstd_level = 19}, &fx_err));
    same_digest(fx_path("a.kdc"), fx_path("z.kdc"));
    must(fx_open(&c, fx_path("z.kdc"), &fx_err));
    must(fx_compare_all(c, 0, IMAGES, &fx_err));
    kd_cache_close(c);
}

/* ---- less of it ---- */

/* One view of each image, cls only, as kd-precompute would write it. */
static void what_is_left_out_gives_the_file_of_a_direct_run(void **state)
{
    json_t *j = fx_recipe_json();
    kd_recipe cls;
    kd_writer *w;
    (void)state;
    json_object_set_new(j, "features", json_pack("[s]", "cls"));
    json_object_set_new(j, "patch_targets", json_array());
    must(kd_recipe_from_json(&cls, j, "cls", &fx_err));
    must(kd_writer_open(&w, fx_path("direct.kdc"), &cls, NULL, 0, &fx_err));
    for (unsigned i = 0; i < IMAGES; i++)
        must(fx_add(w, &cls, i, 1, &fx_err));
    must(kd_writer_seal(w, &fx_err));
    kd_writer_close(w);
    kd_recipe_free(&cls);
    fx_make_cache_of(fx_recipe_full(), fx_path("a.kdc"), 0, IMAGES);
    must(copy(fx_path("a.kdc"), &(kd_derive_options){.features = "cls", .layers = "1"},
              (kd_copy_job){.out = fx_path("less.kdc"), .views = {.range = {{1, 5}}, .count = 1}}, &fx_err));
    fx_assert_equal_files(fx_path("less.kdc"), fx_path("direct.kdc"));
}

static void chosen_images_only(void **state)
{
    kd_copy_job job = {.out = fx_path("some.kdc")};
    kd_cache *c;
    uint8_t chosen[IMAGES];
    (void)state;
    fx_make_cache(fx_path("a.kdc"), 0, IMAGES);
    for (size_t i = 0; i < IMAGES; i++)
        chosen[i] = i % 3 == 1;
    job.chosen = chosen;
    must(copy(fx_path("a.kdc"), NULL, job, &fx_err));
    must(fx_open(&c, fx_path("some.kdc"), &fx_err));
    assert_int_equal(kd_cache_images(c), IMAGES / 3);
    for (unsigned i = 0; i < IMAGES; i++) {
        kd_hash128 id = fx_image_id(i);
        if (kd_cache_find_image(c, &id))
            must(fx_compare_all(c, i, 1, &fx_err));
    }
    kd_cache_close(c);
    memset(chosen, 0, sizeof chosen);
    job.out = fx_path("none.kdc");
    must_be(KD_EUSAGE, copy(fx_path("a.kdc"), NULL, job, &fx_err));
    job.chosen = NULL;
    job.views = (kd_view_ranges){.range = {{7, 9}}, .count = 1};
    must_be(KD_EUSAGE, copy(fx_path("a.kdc"), NULL, job, &fx_err));
    must_say("none of the chosen images has one of the chosen views");
    assert_false(kd_io_exists(fx_path("none.kdc.partial")));
}

/* patch2 of the parent is patch of the result: what the teacher gave is the same, under another name. */
static void a_second_target_becomes_the_first(void **state)
{
    static float x[FX_LARGEST], y[FX_LARGEST];
    kd_cache *a, *b;
    kd_reader *ra, *rb;
    (void)state;
    fx_make_cache_of(fx_recipe_stored("i8", "full,adjoint:3"), fx_path("a.kdc"), 0, IMAGES);
    must(copy(fx_path("a.kdc"), &(kd_derive_options){.features = "patch", .targets = "adjoint:3"}, (kd_copy_job){.out = fx_path("b.kdc")}, &fx_err));
    must(fx_open(&a, fx_path("a.kdc"), &fx_err));
    must(fx_open(&b, fx_path("b.kdc"), &fx_err));
    assert_false(kd_recipe_has(kd_cache_recipe(b), KD_FEATURE_CLS) || kd_recipe_has(kd_cache_recipe(b), KD_FEATURE_PATCH2));
    assert_null(json_object_get(kd_cache_recipe(b)->json, "source"));
    must(kd_reader_create(&ra, a, &fx_err));
    must(kd_reader_create(&rb, b, &fx_err));
    for (unsigned i = 0; i < IMAGES; i++) {
        kd_hash128 id = fx_image_id(i);
        kd_record_facts fa, fb;
        must(kd_reader_feature(ra, KD_FEATURE_PATCH2, &id, 1, 1, x, &fa, &fx_err));
        must(kd_reader_feature(rb, KD_FEATURE_PATCH, &id, 1, 1, y, &fb, &fx_err));
        assert_memory_equal(x, y, 9 * FX_WIDTH * sizeof *x);
        assert_true(fa.square == fb.square && fb.square == fx_square(i, 1));
        assert_memory_equal(fa.view_hash.b, fb.view_hash.b, 16);
    }
    kd_reader_destroy(ra);
    kd_reader_destroy(rb);
    kd_cache_close(a);
    kd_cache_close(b);
}

/* ---- rounded again ---- */

/* a = U^T t, straight from the definition of U. */
static void adjoint_of(double *a, const float *t, int k)
{
    memset(a, 0, (size_t)(k * k) * FX_WIDTH * sizeof *a);
    for (int i = 0; i < FX_GRID; i++) {
        for (int j = 0; j < FX_GRID; j++) {
            double py = fmax(0, (i + 0.5) * k / FX_GRID - 0.5), px = fmax(0, (j + 0.5) * k / FX_GRID - 0.5);
            int y = (int)fmin(floor(py), k - 1), x = (int)fmin(floor(px), k - 1);
            for (int corner = 0; corner < 4; corner++) {
                int row = corner / 2 ? (y + 1 < k ? y + 1 : y) : y, column = corner % 2 ? (x + 1 < k ? x + 1 : x) : x;
                double w = (corner / 2 ? py - y : 1 - (py - y)) * (corner % 2 ? px - x : 1 - (px - x));
                for (int d = 0; d < FX_WIDTH; d++)
                    a[(row * k + column) * FX_WIDTH + d] += w * (double)t[(i * FX_GRID + j) * FX_WIDTH + d];
            }
        }
    }
}

static void a_reduced_grid_is_the_adjoint_of_the_stored_one(void **state)
{
    static float x[FX_LARGEST], y[FX_LARGEST];
    static double want[9 * FX_WIDTH];
    kd_cache *a, *b;
    kd_reader *ra, *rb;
    (void)state;
    fx_make_cache(fx_path("a.kdc"), 0, IMAGES);
    must(copy(fx_path("a.kdc"), &(kd_derive_options){.targets = "adjoint:3", .dtype = "i8"}, (kd_copy_job){.out = fx_path("b.kdc")}, &fx_err));
    must(fx_open(&a, fx_path("a.kdc"), &fx_err));
    must(fx_open(&b, fx_path("b.kdc"), &fx_err));
    assert_true(kd_cache_recipe(b)->dtype == KD_I8);
    must(kd_reader_create(&ra, a, &fx_err));
    must(kd_reader_create(&rb, b, &fx_err));
    for (unsigned i = 0; i < IMAGES; i++) {
        kd_hash128 id = fx_image_id(i);
        kd_record_facts facts;
        double square = 0;
        must(kd_reader_feature(ra, KD_FEATURE_PATCH, &id, 0, 1, x, NULL, &fx_err));
        must(kd_reader_feature(rb, KD_FEATURE_PATCH, &id, 0, 1, y, &facts, &fx_err));
        adjoint_of(want, x, 3);
        for (int k = 0; k < FX_ROWS * FX_WIDTH; k++)
            square += (double)x[k] * (double)x[k];
        assert_true(fabs(facts.square - square) <= 1e-12 * square);
        for (int r = 0; r < 9; r++) {
            double xx = 0, err2 = 0;
            for (int d = r * FX_WIDTH; d < (r + 1) * FX_WIDTH; d++) {
                xx += want[d] * want[d];
                err2 += (want[d] - (double)y[d]) * (want[d] - (double)y[d]);
            }
            assert_true(sqrt(err2 / xx) < 0.015); /* 8 bits */
        }
    }
    kd_reader_destroy(ra);
    kd_reader_destroy(rb);
    kd_cache_close(a);
    kd_cache_close(b);
}

/* |t|^2 isn't rounded: it is carried over. The fidelity is what the new rounding cost. */
static void a_reduced_target_keeps_its_square_in_another_type(void **state)
{
    static float x[FX_LARGEST], y[FX_LARGEST];
    kd_cache *a, *b;
    kd_reader *ra, *rb;
    double xx = 0, err2 = 0, told;
    (void)state;
    fx_make_cache_of(fx_recipe_stored("f16", "adjoint:3"), fx_path("a.kdc"), 0, IMAGES);
    must(copy(fx_path("a.kdc"), &(kd_derive_options){.dtype = "i8"}, (kd_copy_job){.out = fx_path("b.kdc")}, &fx_err));
    must(fx_open(&a, fx_path("a.kdc"), &fx_err));
    must(fx_open(&b, fx_path("b.kdc"), &fx_err));
    must(kd_reader_create(&ra, a, &fx_err));
    must(kd_reader_create(&rb, b, &fx_err));
    for (unsigned n = 0; n < IMAGES * FX_VIEWS; n++) {
        kd_hash128 id = fx_image_id(n / FX_VIEWS);
        kd_record_facts facts;
        must(kd_reader_feature(ra, KD_FEATURE_PATCH, &id, n % FX_VIEWS, 1, x, NULL, &fx_err));
        must(kd_reader_feature(rb, KD_FEATURE_PATCH, &id, n % FX_VIEWS, 1, y, &facts, &fx_err));
        assert_true(facts.square == fx_square(n / FX_VIEWS, n % FX_VIEWS));
        for (int k = 0; k < 9 * FX_WIDTH; k++) {
            xx += (double)x[k] * (double)x[k];
            err2 += ((double)x[k] - (double)y[k]) * ((double)x[k] - (double)y[k]);
        }
    }
    told = json_real_value(json_object_get(json_object_get(json_object_get(json_object_get(kd_cache_shard_manifest(b, 0), "fidelity"), "patch"), "1"), "relative_l2"));
    assert_true(fabs(told - sqrt(err2 / xx)) < 1e-5 && told > 0);
    kd_reader_destroy(ra);
    kd_reader_destroy(rb);
    kd_cache_close(a);
    kd_cache_close(b);
}

/* A bf16 of 1e30, which f16 hasn't. */
static void values_that_the_type_cannot_hold_are_refused(void **state)
{
    json_t *j = fx_recipe_json();
    kd_recipe r;
    kd_writer *w;
    kd_record_buf buf = {0};
    kd_record_scratch scratch = {0};
    kd_view_entry v = fx_view(0, 0);
    kd_image_entry e = {.image = v.image, .rel = "a.jpg", .file_size = 1, .width = 100, .height = 80};
    uint8_t payload[2 * FX_WIDTH] = {0};
    (void)state;
    json_object_set_new(j, "features", json_pack("[s]", "cls"));
    json_object_set_new(j, "patch_targets", json_array());
    json_object_set_new(j, "store", json_pack("{s:s}", "dtype", "bf16"));
    must(kd_recipe_from_json(&r, j, "bf16", &fx_err));
    payload[5] = (uint8_t)(kd_f32_to_bf16(1e30f) >> 8);
    payload[FX_WIDTH + 5] = (uint8_t)kd_f32_to_bf16(1e30f);
    kd_record_head head = kd_recipe_head(&r, KD_FEATURE_CLS, &v.image, 0, 1);
    head.view_hash = v.view_hash;
    must(kd_record_encode(&buf, &head, payload, 1, &scratch, &fx_err));
    must(kd_writer_open(&w, fx_path("a.kdc"), &r, NULL, 0, &fx_err));
    must(kd_writer_add_view(w, &e, &v, &(kd_record_ref){KD_FEATURE_CLS, 1, buf.bytes, buf.size}, 1, &fx_err));
    must(kd_writer_seal(w, &fx_err));
    kd_writer_close(w);
    must_be(KD_ENONFINITE, copy(fx_path("a.kdc"), &(kd_derive_options){.dtype = "f16"}, (kd_copy_job){.out = fx_path("b.kdc")}, &fx_err));
    must_say("beyond 65504, the largest that f16 holds; --store bf16");
    assert_false(kd_io_exists(fx_path("b.kdc")));
    kd_record_buf_free(&buf);
    kd_record_scratch_free(&scratch);
    kd_recipe_free(&r);
}

/* ---- provenance, refusals, interruptions ---- */

static void the_parents_are_recorded(void **state)
{
    const char *paths[2];
    kd_copy_result result;
    kd_cache *a, *m, *e;
    const json_t *p, *parent;
    kd_sha256 digest;
    char hex[65];
    (void)state;
    fx_make_cache(fx_path("a.kdc"), 0, 4);
    fx_make_cache(fx_path("b.kdc"), 4, 4);
    paths[0] = fx_path("a.kdc");
    paths[1] = fx_path("b.kdc");
    must(copy_paths(paths, 2, NULL, (kd_copy_job){.out = fx_path("m.kdc")}, &result, &fx_err));
    must(copy(fx_path("m.kdc"), &(kd_derive_options){.features = "cls"}, (kd_copy_job){.out = fx_path("e.kdc")}, &fx_err));
    must(fx_open(&a, fx_path("a.kdc"), &fx_err));
    must(fx_open(&m, fx_path("m.kdc"), &fx_err));
    must(fx_open(&e, fx_path("e.kdc"), &fx_err));
    p = json_object_get(kd_cache_shard_manifest(m, 0), "provenance");
    assert_string_equal(json_string_value(json_object_get(p, "made_by")), "a test");
    parent = json_object_get(p, "parent");
    kd_hex(hex, kd_cache_recipe(a)->sha.b, 32);
    assert_string_equal(json_string_value(json_object_get(parent, "identity")), hex);
    must(kd_cache_digest(m, &digest, &fx_err));
    kd_hex(hex, digest.b, 32);
    assert_string_equal(json_string_value(json_object_get(parent, "digest")), hex);
    assert_string_equal(json_string_value(json_object_get(parent, "command")), "kd-cache test");
    assert_int_equal(json_array_size(json_object_get(parent, "files")), 2);
    assert_true(json_equal(json_array_get(json_object_get(parent, "files"), 0), json_object_get(kd_cache_shard_manifest(a, 0), "sha256")));
    p = json_object_get(kd_cache_shard_manifest(e, 0), "provenance");
    assert_string_equal(json_string_value(json_object_get(p, "made_by")), "a test");
    assert_true(json_equal(json_object_get(json_object_get(p, "parent"), "parent"), parent)); /* the grandparents */
    kd_cache_close(a);
    kd_cache_close(m);
    kd_cache_close(e);
}

static void caches_of_other_recipes_are_refused_naming_the_field(void **state)
{
    json_t *j = fx_recipe_json();
    kd_recipe other;
    const char *paths[2];
    kd_copy_result result;
    (void)state;
    json_object_set_new(j, "seed", json_integer(8));
    must(kd_recipe_from_json(&other, j, "other", &fx_err));
    fx_make_cache(fx_path("a.kdc"), 0, 3);
    fx_make_cache_of(other, fx_path("b.kdc"), 0, 3);
    paths[0] = fx_path("a.kdc");
    paths[1] = fx_path("b.kdc");
    must_be(KD_EMISMATCH, copy_paths(paths, 2, NULL, (kd_copy_job){.out = fx_path("m.kdc")}, &result, &fx_err));
    must_say("seed is 7 in");
    must_be(KD_EMISMATCH, copy(paths[0], NULL, (kd_copy_job){.out = paths[1]}, &fx_err));
    must_say("seed is 8 in");
}

static void nothing_is_written_over_or_beside_what_it_is_made_from(void **state)
{
    char folder[512], file[600];
    (void)state;
    snprintf(folder, sizeof folder, "%s", fx_path("shards"));
    snprintf(file, sizeof file, "%s/a.kdc", folder);
    must(kd_io_mkdirs(folder, &fx_err));
    fx_make_cache(file, 0, 3);
    must_be(KD_EUSAGE, copy(file, NULL, (kd_copy_job){.out = file}, &fx_err));
    must_say("is read from there");
    must_be(KD_EUSAGE, copy(folder, NULL, (kd_copy_job){.out = folder}, &fx_err));
    must_say("is read from there");
    fx_make_cache(fx_path("b.kdc"), 3, 3);
    must_be(KD_EUSAGE, copy(fx_path("b.kdc"), NULL, (kd_copy_job){.out = folder}, &fx_err));
    must_say("holds a.kdc, which would be read together with the new shards");
    must_be(KD_EUSAGE, copy(fx_path("b.kdc"), NULL, (kd_copy_job){.out = ""}, &fx_err));
    drop(folder);
}

/* A result that is there already counts when it is what would be written, and is refused when it isn't. */
static void a_finished_result_is_recognised(void **state)
{
    kd_copy_job one = {.out = fx_path("b.kdc"), .views = {.range = {{0, 0}}, .count = 1}};
    (void)state;
    fx_make_cache(fx_path("a.kdc"), 0, 5);
    must(copy(fx_path("a.kdc"), NULL, (kd_copy_job){.out = fx_path("b.kdc")}, &fx_err));
    must(copy(fx_path("a.kdc"), NULL, (kd_copy_job){.out = fx_path("b.kdc")}, &fx_err));
    must_be(KD_EMISMATCH, copy(fx_path("a.kdc"), NULL, one, &fx_err));
    must_say("holds other views than this command would write");
    fx_make_cache(fx_path("more.kdc"), 0, 6);
    must_be(KD_EMISMATCH, copy(fx_path("more.kdc"), NULL, (kd_copy_job){.out = fx_path("b.kdc")}, &fx_err));
}

/* As many views of every image, but others: the recipe says nothing about views. */
static void a_finished_result_with_other_views_is_refused(void **state)
{
    kd_copy_job job = {.out = fx_path("b.kdc"), .views = {.range = {{0, 0}}, .count = 1}};
    kd_sha256 before, after;
    (void)state;
    fx_make_cache(fx_path("a.kdc"), 0, 5);
    must(copy(fx_path("a.kdc"), NULL, job, &fx_err));
    read_digest(fx_path("b.kdc"), &before);
    job.views.range[0].first = job.views.range[0].last = 1;
    must_be(KD_EMISMATCH, copy(fx_path("a.kdc"), NULL, job, &fx_err));
    must_say("is there already and holds other views than this command would write");
    read_digest(fx_path("b.kdc"), &after);
    assert_memory_equal(before.b, after.b, sizeof before.b);
}

/* The first views in key order: as a killed copy leaves them. */
static void leave_partial(const char *from, const char *path, unsigned views)
{
    kd_cache *c;
    kd_writer *w;
    kd_recipe r = fx_recipe();
    must(fx_open(&c, from, &fx_err));
    must(kd_writer_open(&w, path, &r, NULL, 0, &fx_err));
    for (unsigned v = 0; v < views; v++) {
        for (unsigned i = 0; i < IMAGES; i++) {
            kd_hash128 id = fx_image_id(i);
            if (memcmp(kd_cache_image(c, v / FX_VIEWS)->image.b, id.b, 16) == 0)
                must(fx_add(w, &r, i, v % FX_VIEWS, &fx_err));
        }
    }
    must(kd_writer_commit(w, &fx_err));
    kd_writer_close(w);
    kd_cache_close(c);
    kd_recipe_free(&r);
}

static void shard_name(char *out, size_t cap, const char *folder, size_t shard)
{
    snprintf(out, cap, "%s/shard-%05zu.kdc", folder, shard);
}

static void same_shards(const char *a, const char *b, size_t shards)
{
    char x[700], y[700];
    for (size_t s = 0; s < shards; s++) {
        shard_name(x, sizeof x, a, s);
        shard_name(y, sizeof y, b, s);
        fx_assert_equal_files(x, y);
    }
    shard_name(y, sizeof y, b, shards);
    assert_false(kd_io_exists(y));
}

/* However many views it had copied, and whichever shards it had sealed, the result is that of a copy that was left alone. */
static void a_copy_goes_on_where_it_was_killed(void **state)
{
    const char *whole = fx_path("whole"), *cut = fx_path("cut"), *from = fx_path("a.kdc");
    kd_copy_job job = {.out = whole, .shard_size = 40000};
    kd_copy_result result;
    kd_cache *c;
    unsigned first;
    char name[700];
    (void)state;
    fx_make_cache(from, 0, IMAGES);
    must(copy_paths(&from, 1, NULL, job, &result, &fx_err));
    assert_true(result.shards > 2);
    must(fx_open(&c, whole, &fx_err));
    first = (unsigned)json_integer_value(json_object_get(json_object_get(kd_cache_shard_manifest(c, 0), "content"), "views"));
    kd_cache_close(c);
    job.out = cut;
    for (unsigned views = 0; views <= first; views++) {
        must(kd_io_mkdirs(cut, &fx_err));
        shard_name(name, sizeof name, cut, 0);
        if (views > 0)
            leave_partial(from, name, views);
        must(copy(from, NULL, job, &fx_err));
        same_shards(whole, cut, result.shards);
        for (size_t s = result.shards - 1; s > views % result.shards; s--) { /* killed later, when shards were sealed */
            shard_name(name, sizeof name, cut, s);
            unlink(name);
            strcat(name, ".json");
            unlink(name);
        }
        must(copy(from, NULL, job, &fx_err));
        same_shards(whole, cut, result.shards);
        drop(cut);
    }
    drop(whole);
}

static void what_another_command_left_unfinished_is_refused(void **state)
{
    kd_copy_job job = {.out = fx_path("b.kdc"), .views = {.range = {{1, 1}}, .count = 1}};
    (void)state;
    fx_make_cache(fx_path("a.kdc"), 0, IMAGES);
    leave_partial(fx_path("a.kdc"), fx_path("b.kdc"), 7);
    must_be(KD_EMISMATCH, copy(fx_path("a.kdc"), NULL, job, &fx_err));
    must_say("is unfinished (its .partial is there) and holds other views");
}

/* In a process of its own: the flag of an interruption stays. */
static void an_interrupted_copy_can_be_completed(void **state)
{
    int status;
    pid_t child;
    (void)state;
    fx_make_cache(fx_path("a.kdc"), 0, IMAGES);
    fflush(stdout);
    child = fork();
    if (child == 0) {
        kd_err err;
        kd_signals_catch();
        raise(SIGTERM);
        status = copy(fx_path("a.kdc"), NULL, (kd_copy_job){.out = fx_path("b.kdc")}, &err);
        _exit(status == KD_ESIGTERM && strstr(err.msg, "run the same command again") && !kd_io_exists(fx_path("b.kdc")) ? 0 : 1);
    }
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    must(copy(fx_path("a.kdc"), NULL, (kd_copy_job){.out = fx_path("b.kdc")}, &fx_err));
    fx_assert_equal_files(fx_path("a.kdc"), fx_path("b.kdc"));
}

/* In a process of its own, as above. */
static void the_digest_of_one_file_can_be_interrupted(void **state)
{
    int status;
    pid_t child;
    (void)state;
    fx_make_cache(fx_path("a.kdc"), 0, IMAGES);
    fflush(stdout);
    child = fork();
    if (child == 0) {
        kd_cache *c;
        kd_sha256 sha;
        kd_err err;
        if (fx_open(&c, fx_path("a.kdc"), &err) != KD_OK)
            _exit(2);
        kd_signals_catch();
        raise(SIGINT);
        _exit(kd_cache_digest(c, &sha, &err) == KD_ESIGINT && strstr(err.msg, "interrupted") ? 0 : 1);
    }
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

static void a_damaged_record_stops_the_copy(void **state)
{
    uint8_t *bytes;
    size_t size, at = 0;
    (void)state;
    fx_make_cache(fx_path("a.kdc"), 0, 6);
    fx_read_file(fx_path("a.kdc"), &bytes, &size);
    while (memcmp(bytes + at, "KDFR\1\0\1", 7) != 0)
        at++;
    bytes[at + 500] ^= 4;
    fx_write_file(fx_path("a.kdc"), bytes, size);
    kd_free(bytes);
    must_be(KD_EDAMAGED, copy(fx_path("a.kdc"), NULL, (kd_copy_job){.out = fx_path("b.kdc")}, &fx_err));
    must_say("patch of image");
    assert_false(kd_io_exists(fx_path("b.kdc")));
}

/* ---- lists of images ---- */

static kd_status read_list(kd_cache *c, const char *text, size_t size, int nul, size_t *chosen, kd_err *err)
{
    uint8_t *mask;
    fx_write_file(fx_path("list"), text, size);
    kd_image_set set = kd_image_set_of(c);
    KD_TRY(kd_image_list_read(&mask, &set, fx_path("list"), nul, NULL, err));
    *chosen = 0;
    for (size_t i = 0; i < kd_cache_images(c); i++)
        *chosen += mask[i];
    kd_free(mask);
    return KD_OK;
}

static void images_are_named_by_id_or_path(void **state)
{
    kd_cache *c;
    kd_hash128 id = fx_image_id(7);
    char text[200], hex[33];
    size_t n;
    (void)state;
    kd_hex(hex, id.b, 16);
    fx_make_cache(fx_path("a.kdc"), 0, 12);
    must(fx_open(&c, fx_path("a.kdc"), &fx_err));
    snprintf(text, sizeof text, "%s\r\n\nclass 1/photo-1.jpg\nclass 1/photo-7.jpg", hex); /* photo-7 twice */
    must(read_list(c, text, strlen(text), 0, &n, &fx_err));
    assert_int_equal(n, 2);
    must(read_list(c, "class 0/photo-0.jpg\0class 2/photo-2.jpg\0", 40, 1, &n, &fx_err));
    assert_int_equal(n, 2);
    must_be(KD_ENOTFOUND, read_list(c, "class 1/photo-1.jpg\nclass 1/photo-2.jpg\n", 40, 0, &n, &fx_err));
    must_say("entry 2, \"class 1/photo-2.jpg\"");
    must_be(KD_ENOTFOUND, read_list(c, "00000000000000000000000000000000\n", 33, 0, &n, &fx_err));
    must_be(KD_EUSAGE, read_list(c, "\n\n", 2, 0, &n, &fx_err));
    must_say("names no image");
    must_be(KD_EUSAGE, read_list(c, "a\0b", 3, 0, &n, &fx_err));
    must_say("--null");
    kd_cache_close(c);
}

/* In a cache whose paths are hidden a path is found by its hash. */
static void hidden_paths_are_found(void **state)
{
    kd_recipe r = fx_recipe();
    kd_writer *w;
    kd_cache *c;
    char rel[48] = "xxh128:";
    kd_hash128 h = kd_xxh128("cats/a.jpg", 10);
    kd_view_entry v = fx_view(0, 0);
    kd_image_entry e = {.image = v.image, .rel = rel, .file_size = 1, .width = 100, .height = 80};
    size_t n;
    (void)state;
    kd_hex(rel + 7, h.b, 16);
    must(kd_writer_open(&w, fx_path("a.kdc"), &r, NULL, 0, &fx_err));
    must(fx_add_view(w, &r, 0, &e, &v, &fx_err));
    must(kd_writer_seal(w, &fx_err));
    kd_writer_close(w);
    kd_recipe_free(&r);
    must(fx_open(&c, fx_path("a.kdc"), &fx_err));
    must(read_list(c, "cats/a.jpg\n", 11, 0, &n, &fx_err));
    assert_int_equal(n, 1);
    must(read_list(c, rel, strlen(rel), 0, &n, &fx_err));
    must_be(KD_ENOTFOUND, read_list(c, "cats/b.jpg\n", 11, 0, &n, &fx_err));
    kd_cache_close(c);
}

int main(void)
{
#define T(f) cmocka_unit_test_setup_teardown(f, fx_make_dir, fx_drop_dir)
    const struct CMUnitTest tests[] = {
        T(overlapping_caches_become_one_as_if_made_at_once), T(a_split_cache_has_the_same_content_and_joins_again), T(shards_end_where_the_size_is_reached), T(compressing_anew_changes_no_value),
        T(what_is_left_out_gives_the_file_of_a_direct_run), T(chosen_images_only), T(a_second_target_becomes_the_first), T(a_reduced_grid_is_the_adjoint_of_the_stored_one),
        T(a_reduced_target_keeps_its_square_in_another_type), T(values_that_the_type_cannot_hold_are_refused), T(the_parents_are_recorded),
        T(caches_of_other_recipes_are_refused_naming_the_field), T(nothing_is_written_over_or_beside_what_it_is_made_from), T(a_finished_result_is_recognised), T(a_finished_result_with_other_views_is_refused),
        T(a_copy_goes_on_where_it_was_killed), T(what_another_command_left_unfinished_is_refused), T(an_interrupted_copy_can_be_completed), T(the_digest_of_one_file_can_be_interrupted), T(a_damaged_record_stops_the_copy),
        T(images_are_named_by_id_or_path), T(hidden_paths_are_found),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

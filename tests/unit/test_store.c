#include "tests/cache_fixture.h"

#include <math.h>

#include "cache/entry.h"
#include "cache/manifest.h"

enum { IMAGES = 40 };

static void what_was_written_is_read(void **state)
{
    kd_cache *c;
    float std = 0;
    const float *mean;
    (void)state;
    fx_make_cache(fx_path("a.kdc"), 0, IMAGES);
    must(fx_open(&c, fx_path("a.kdc"), &fx_err));
    assert_int_equal(kd_cache_images(c), IMAGES);
    assert_int_equal(kd_cache_view_total(c), IMAGES * FX_VIEWS);
    must(fx_compare_all(c, 0, IMAGES, &fx_err));
    for (size_t i = 1; i < IMAGES; i++)
        assert_true(memcmp(kd_cache_image(c, i - 1)->image.b, kd_cache_image(c, i)->image.b, 16) < 0);
    for (unsigned i = 0; i < IMAGES; i++) {
        kd_hash128 id = fx_image_id(i);
        const kd_image_entry *e = kd_cache_find_image(c, &id);
        char rel[64];
        assert_non_null(e);
        snprintf(rel, sizeof rel, "class %u/photo-%u.jpg", i % 3, i);
        assert_string_equal(e->rel, rel);
        assert_int_equal(e->file_size, 1000 + i);
        assert_int_equal(e->views, FX_VIEWS);
    }
    must(kd_cache_mean(c, KD_FEATURE_PATCH, 1, &mean, &std, &fx_err));
    assert_non_null(mean);
    assert_true(std > 0.5f && std < 0.65f); /* uniform in -1..1: 1/sqrt(3) = 0.577 */
    kd_cache_close(c);
}

/* By another way: straight from the formula of the values. */
static void expect_statistics(kd_cache *c, kd_feature f, uint16_t layer)
{
    const kd_recipe *r = kd_cache_recipe(c);
    double sum[FX_WIDTH] = {0}, squares[FX_WIDTH] = {0}, variance = 0;
    double n = (double)(IMAGES * FX_VIEWS) * (double)kd_recipe_rows(r, f);
    const float *mean, *again;
    float std = 0;
    for (unsigned i = 0; i < IMAGES; i++) {
        for (unsigned v = 0; v < FX_VIEWS; v++) {
            for (size_t k = 0; k < (size_t)kd_recipe_rows(r, f) * FX_WIDTH; k++) {
                double x = (double)fx_value_of(i, v, f, layer, k);
                sum[k % FX_WIDTH] += x;
                squares[k % FX_WIDTH] += x * x;
            }
        }
    }
    must(kd_cache_mean(c, f, layer, &mean, &std, &fx_err));
    for (int k = 0; k < FX_WIDTH; k++) {
        assert_true(fabs((double)mean[k] - sum[k] / n) < 1e-6);
        variance += squares[k] / n - sum[k] / n * (sum[k] / n);
    }
    assert_true(fabs((double)std - sqrt(variance / FX_WIDTH)) < 1e-6);
    must(kd_cache_mean(c, f, layer, &again, &std, &fx_err));
    assert_ptr_equal(again, mean);
}

static void statistics_are_of_each_feature_and_layer(void **state)
{
    kd_cache *c;
    const float *mean;
    float std;
    (void)state;
    fx_make_cache_of(fx_recipe_full(), fx_path("a.kdc"), 0, IMAGES);
    must(fx_open(&c, fx_path("a.kdc"), &fx_err));
    for (int f = 0; f < KD_OUTPUTS; f++) {
        expect_statistics(c, (kd_feature)f, 4); /* in any order */
        expect_statistics(c, (kd_feature)f, 1);
    }
    must_be(KD_ENOTFOUND, kd_cache_mean(c, KD_FEATURE_MEAN, 2, &mean, &std, &fx_err));
    must_say("no mean of layer 2");
    kd_cache_close(c);
}

static void four_features_of_two_layers_are_read(void **state)
{
    kd_cache *c;
    const json_t *content;
    (void)state;
    fx_make_cache_of(fx_recipe_full(), fx_path("a.kdc"), 0, IMAGES);
    must(fx_open(&c, fx_path("a.kdc"), &fx_err));
    must(fx_compare_all(c, 0, IMAGES, &fx_err));
    content = json_object_get(kd_cache_shard_manifest(c, 0), "content");
    for (int f = 0; f < KD_OUTPUTS; f++)
        assert_int_equal(json_integer_value(json_object_get(content, kd_feature_name((kd_feature)f))), 2 * IMAGES * FX_VIEWS);
    kd_cache_close(c);
}

/* torch.cat of two layers is twice as wide and is one layer for whoever reads it. */
static void joined_layers_are_read_as_one(void **state)
{
    json_t *j = fx_recipe_json();
    kd_recipe r;
    kd_cache *c;
    float std;
    const float *mean;
    (void)state;
    json_object_set_new(j, "layers", json_pack("[i,i]", 2, 3));
    json_object_set_new(j, "layer_concat", json_true());
    json_object_set_new(j, "width", json_integer(2 * FX_WIDTH));
    must(kd_recipe_from_json(&r, j, "joined", &fx_err));
    fx_make_cache_of(r, fx_path("a.kdc"), 0, 5);
    must(fx_open(&c, fx_path("a.kdc"), &fx_err));
    must(fx_compare_all(c, 0, 5, &fx_err));
    must(kd_cache_mean(c, KD_FEATURE_PATCH, 2, &mean, &std, &fx_err));
    assert_true(fabsf(mean[2 * FX_WIDTH - 1]) < 0.5f && std > 0.5f && std < 0.65f);
    must_be(KD_ENOTFOUND, kd_cache_mean(c, KD_FEATURE_PATCH, 3, &mean, &std, &fx_err));
    kd_cache_close(c);
}

/* Each feature of each layer of the recipe, once: nothing else becomes a view. */
static void incomplete_and_foreign_records_are_refused(void **state)
{
    kd_recipe r = fx_recipe_full();
    kd_view_entry v = fx_view(0, 0);
    kd_image_entry e = {.image = v.image, .rel = "a.jpg", .file_size = 1, .width = 100, .height = 80};
    kd_record_buf buf[FX_RECORDS] = {{0}};
    kd_record_ref refs[FX_RECORDS];
    kd_writer *w;
    (void)state;
    must(kd_writer_open(&w, fx_path("a.kdc"), &r, NULL, 0, &fx_err));
    for (int i = 0; i < FX_RECORDS; i++) {
        fx_record(&buf[i], &r, 0, &v, (kd_feature)(i / 2), r.layer[i % 2]);
        refs[i] = (kd_record_ref){(kd_feature)(i / 2), r.layer[i % 2], buf[i].bytes, buf[i].size};
    }
    must_be(KD_EFAIL, kd_writer_add_view(w, &e, &v, refs, FX_RECORDS - 1, &fx_err));
    must_say("7 records where the recipe has 8");
    refs[7] = refs[6];
    must_be(KD_EFAIL, kd_writer_add_view(w, &e, &v, refs, FX_RECORDS, &fx_err));
    must_say("twice with mean of layer 1");
    refs[7].layer = 3;
    must_be(KD_EFAIL, kd_writer_add_view(w, &e, &v, refs, FX_RECORDS, &fx_err));
    must_say("mean of layer 3, which the recipe doesn't have");
    refs[7].layer = 4; /* said to be of layer 4, but its own head knows better */
    must_be(KD_EDAMAGED, kd_writer_add_view(w, &e, &v, refs, FX_RECORDS, &fx_err));
    must_say("belongs to key");
    refs[7] = (kd_record_ref){KD_FEATURE_MEAN, 4, buf[1].bytes, buf[1].size}; /* cls of layer 4: same shape, same key */
    must_be(KD_EDAMAGED, kd_writer_add_view(w, &e, &v, refs, FX_RECORDS, &fx_err));
    must_say("feature 0 where mean");
    refs[7] = (kd_record_ref){KD_FEATURE_MEAN, 4, buf[7].bytes, buf[7].size};
    must(kd_writer_add_view(w, &e, &v, refs, FX_RECORDS, &fx_err));
    must(kd_writer_seal(w, &fx_err));
    kd_writer_close(w);
    for (int i = 0; i < FX_RECORDS; i++)
        kd_record_buf_free(&buf[i]);
    kd_recipe_free(&r);
}

static void sealed_bytes_depend_on_content_only(void **state)
{
    kd_recipe r = fx_recipe_full();
    kd_writer *w;
    (void)state;
    fx_make_cache_of(fx_recipe_full(), fx_path("a.kdc"), 0, IMAGES);
    /* Backwards, views interleaved, small commits, closed and opened again on the way. */
    must(kd_writer_open(&w, fx_path("b.kdc"), &r, NULL, 1 << 20, &fx_err));
    for (int v = FX_VIEWS - 1; v >= 0; v--) {
        for (int i = IMAGES - 1; i >= 0; i--) {
            must(fx_add(w, &r, (unsigned)i, (unsigned)v, &fx_err));
            if (i % 5 == 0)
                must(kd_writer_commit(w, &fx_err));
            if (i % 16 == 0) {
                kd_writer_close(w);
                must(kd_writer_open(&w, fx_path("b.kdc"), &r, NULL, 0, &fx_err));
            }
        }
    }
    assert_true(kd_writer_view_count(w) < IMAGES * FX_VIEWS); /* what wasn't committed before a close is done again */
    for (unsigned i = 0; i < IMAGES; i++) {
        for (unsigned v = 0; v < FX_VIEWS; v++) {
            kd_hash128 id = fx_image_id(i);
            if (!kd_writer_has_view(w, &id, v))
                must(fx_add(w, &r, i, v, &fx_err));
        }
    }
    assert_int_equal(kd_writer_view_count(w), IMAGES * FX_VIEWS);
    must(kd_writer_seal(w, &fx_err));
    kd_writer_close(w);
    kd_recipe_free(&r);
    fx_assert_equal_files(fx_path("a.kdc"), fx_path("b.kdc"));
}

static void a_closed_writer_keeps_committed_views_only(void **state)
{
    kd_recipe r = fx_recipe();
    kd_writer *w;
    kd_hash128 id0 = fx_image_id(0), id1 = fx_image_id(1);
    (void)state;
    must(kd_writer_open(&w, fx_path("a.kdc"), &r, NULL, 0, &fx_err));
    must(fx_add(w, &r, 0, 0, &fx_err));
    must(kd_writer_commit(w, &fx_err));
    must(fx_add(w, &r, 1, 0, &fx_err));
    assert_true(kd_writer_has_view(w, &id1, 0));
    kd_writer_close(w);
    must(kd_writer_open(&w, fx_path("a.kdc"), &r, NULL, 0, &fx_err));
    assert_int_equal(kd_writer_view_count(w), 1);
    assert_true(kd_writer_has_view(w, &id0, 0));
    assert_false(kd_writer_has_view(w, &id0, 1));
    assert_false(kd_writer_has_view(w, &id1, 0));
    kd_writer_close(w);
    kd_recipe_free(&r);
}

static void a_second_writer_is_refused_by_name(void **state)
{
    kd_recipe r = fx_recipe();
    kd_writer *w, *second;
    char pid[32];
    (void)state;
    must(kd_writer_open(&w, fx_path("a.kdc"), &r, NULL, 0, &fx_err));
    must_be(KD_ELOCKED, kd_writer_open(&second, fx_path("a.kdc"), &r, NULL, 0, &fx_err));
    snprintf(pid, sizeof pid, "pid %ld on ", (long)getpid());
    must_say(pid);
    assert_null(second);
    kd_writer_close(w);
    assert_false(kd_io_exists(fx_path("a.kdc.partial.lock")));
    must(kd_writer_open(&w, fx_path("a.kdc"), &r, NULL, 0, &fx_err));
    kd_writer_close(w);
    kd_recipe_free(&r);
}

static void a_finished_cache_is_done_and_read_only(void **state)
{
    kd_recipe r = fx_recipe();
    kd_writer *w;
    struct stat st;
    (void)state;
    fx_make_cache(fx_path("a.kdc"), 0, 3);
    assert_int_equal(stat(fx_path("a.kdc"), &st), 0);
    assert_int_equal(st.st_mode & 0777, 0444);
    assert_false(kd_io_exists(fx_path("a.kdc.partial")));
    assert_false(kd_io_exists(fx_path("a.kdc.partial.lock")));
    assert_false(kd_io_exists(fx_path("a.kdc.sealing")));
    must_be(KD_DONE, kd_writer_open(&w, fx_path("a.kdc"), &r, NULL, 0, &fx_err));
    assert_null(w);
    kd_recipe_free(&r);
}

static void another_recipe_is_refused_naming_the_field(void **state)
{
    json_t *j = fx_recipe_json();
    kd_recipe r = fx_recipe(), other;
    kd_writer *w;
    const char *paths[2];
    kd_cache *c;
    (void)state;
    json_object_set_new(j, "seed", json_integer(8));
    must(kd_recipe_from_json(&other, j, "other", &fx_err));
    fx_make_cache(fx_path("a.kdc"), 0, 3);
    must_be(KD_EMISMATCH, kd_writer_open(&w, fx_path("a.kdc"), &other, NULL, 0, &fx_err));
    must_say("seed is 7 in ");
    must(kd_writer_open(&w, fx_path("b.kdc"), &other, NULL, 0, &fx_err));
    kd_writer_close(w);
    must_be(KD_EMISMATCH, kd_writer_open(&w, fx_path("b.kdc"), &r, NULL, 0, &fx_err));
    must_say("seed is 8 in ");
    unlink(fx_path("b.kdc.partial"));
    must(kd_writer_open(&w, fx_path("b.kdc"), &other, NULL, 0, &fx_err));
    /* Its records carry the identity of the recipe: those of another one are refused when they are added. */
    must_be(KD_EDAMAGED, fx_add(w, &r, 5, 0, &fx_err));
    must(fx_add(w, &other, 5, 0, &fx_err));
    must(kd_writer_seal(w, &fx_err));
    kd_writer_close(w);
    paths[0] = fx_path("a.kdc");
    paths[1] = fx_path("b.kdc");
    must_be(KD_EMISMATCH, kd_cache_open(&c, paths, 2, &fx_err));
    must_say("seed is 7 in ");
    kd_recipe_free(&r);
    kd_recipe_free(&other);
}

static void a_cache_without_views_is_not_sealed(void **state)
{
    kd_recipe r = fx_recipe();
    kd_writer *w;
    (void)state;
    must(kd_writer_open(&w, fx_path("a.kdc"), &r, NULL, 0, &fx_err));
    must_be(KD_EFAIL, kd_writer_seal(w, &fx_err));
    must_say("no view");
    must(fx_add(w, &r, 0, 1, &fx_err));
    must_be(KD_EFAIL, fx_add(w, &r, 0, 1, &fx_err));
    must_say("there already");
    kd_writer_close(w);
    assert_false(kd_io_exists(fx_path("a.kdc")));
    kd_recipe_free(&r);
}

/* A repaired or extracted cache may have any views of an image. */
static void any_views_of_an_image_can_be_stored(void **state)
{
    static const unsigned view[] = {1, 2, 3, 7, 70000};
    kd_recipe r = fx_recipe();
    kd_hash128 id = fx_image_id(0);
    kd_writer *w;
    kd_cache *c;
    kd_reader *reader;
    kd_view_entry v;
    const kd_image_entry *e;
    (void)state;
    must(kd_writer_open(&w, fx_path("a.kdc"), &r, NULL, 0, &fx_err));
    for (int i = 4; i >= 0; i--)
        must(fx_add(w, &r, 0, view[i], &fx_err));
    must(kd_writer_seal(w, &fx_err));
    kd_writer_close(w);
    must(fx_open(&c, fx_path("a.kdc"), &fx_err));
    e = kd_cache_find_image(c, &id);
    assert_int_equal(e->views, 5);
    assert_int_equal(e->runs, 3);
    must(kd_reader_create(&reader, c, &fx_err));
    for (unsigned i = 0; i < 5; i++) {
        assert_int_equal(kd_image_view(e, i), view[i]);
        must(kd_reader_view(reader, &id, view[i], &v, &fx_err));
    }
    must_be(KD_ENOTFOUND, kd_reader_view(reader, &id, 0, &v, &fx_err));
    must_say("has 5 views from 1 to 70000, not 0");
    must_be(KD_ENOTFOUND, kd_reader_view(reader, &id, 8, &v, &fx_err));
    kd_reader_destroy(reader);
    kd_cache_close(c);
    kd_recipe_free(&r);
}

static void make_views(const char *path, unsigned image, unsigned first, unsigned end)
{
    kd_recipe r = fx_recipe();
    kd_writer *w;
    must(kd_writer_open(&w, path, &r, NULL, 0, &fx_err));
    for (unsigned v = first; v < end; v++)
        must(fx_add(w, &r, image, v, &fx_err));
    must(kd_writer_seal(w, &fx_err));
    kd_writer_close(w);
    kd_recipe_free(&r);
}

static kd_sha256 digest_of(const char *const *paths, size_t n)
{
    kd_cache *c;
    kd_sha256 sha;
    must(kd_cache_open(&c, paths, n, &fx_err));
    must(kd_cache_digest(c, &sha, &fx_err));
    kd_cache_close(c);
    return sha;
}

/* Views added to a sealed cache as a new shard, and shards that share some. */
static void shards_may_hold_different_views_of_an_image(void **state)
{
    kd_hash128 id = fx_image_id(3);
    kd_cache *c;
    kd_reader *reader;
    kd_view_entry v;
    const kd_image_entry *e;
    kd_sha256 parts, whole;
    const char *paths[3], *all;
    (void)state;
    paths[0] = fx_path("s0.kdc");
    paths[1] = fx_path("s1.kdc");
    paths[2] = fx_path("s2.kdc");
    make_views(paths[0], 3, 2, 5);
    make_views(paths[1], 3, 0, 3);
    make_views(paths[2], 3, 6, 8);
    must(kd_cache_open(&c, paths, 3, &fx_err));
    e = kd_cache_find_image(c, &id);
    assert_int_equal(kd_cache_images(c), 1);
    assert_int_equal(e->views, 7);
    assert_int_equal(kd_cache_view_total(c), 7);
    must(kd_reader_create(&reader, c, &fx_err));
    for (unsigned i = 0; i < 7; i++) {
        kd_view_entry want = fx_view(3, i < 5 ? i : i + 1);
        assert_int_equal(kd_image_view(e, i), want.view);
        must(kd_reader_view(reader, &id, want.view, &v, &fx_err));
        assert_memory_equal(v.view_hash.b, want.view_hash.b, 16);
        must(fx_compare_records(reader, kd_cache_recipe(c), 3, &want, &fx_err));
    }
    must_be(KD_ENOTFOUND, kd_reader_view(reader, &id, 5, &v, &fx_err));
    kd_reader_destroy(reader);
    kd_cache_close(c);
    /* The digest is of what is there, not of how it lies. */
    parts = digest_of(paths, 3);
    all = fx_path("all.kdc");
    kd_recipe r = fx_recipe();
    kd_writer *w;
    must(kd_writer_open(&w, all, &r, NULL, 0, &fx_err));
    for (unsigned i = 7; i-- > 0;)
        must(fx_add(w, &r, 3, i < 5 ? i : i + 1, &fx_err));
    must(kd_writer_seal(w, &fx_err));
    kd_writer_close(w);
    kd_recipe_free(&r);
    whole = digest_of(&all, 1);
    assert_memory_equal(parts.b, whole.b, 32);
    whole = digest_of(paths, 2);
    assert_memory_not_equal(parts.b, whole.b, 32);
}

static void every_element_type_and_target_is_read(void **state)
{
    static const char *const dtype[] = {"f16", "bf16", "i8"};
    (void)state;
    for (int d = 0; d < 3; d++) {
        kd_cache *c;
        char name[32];
        snprintf(name, sizeof name, "%s.kdc", dtype[d]);
        fx_make_cache_of(fx_recipe_stored(dtype[d], "full,pool:2x3,adjoint:3,adjoint:2"), fx_path(name), 0, 5);
        must(fx_open(&c, fx_path(name), &fx_err));
        assert_int_equal(kd_recipe_records(kd_cache_recipe(c)), 5);
        must(fx_compare_all(c, 0, 5, &fx_err));
        kd_cache_close(c);
    }
}

/* Sums over U^T t are those over t, and |t|^2 is beside it. */
static void statistics_of_adjoint_targets_are_those_of_the_tokens(void **state)
{
    kd_cache *c;
    double sum[FX_WIDTH] = {0}, square = 0, mean2 = 0, n = 5.0 * FX_VIEWS * FX_ROWS;
    const float *mean;
    float std;
    kd_recipe r;
    (void)state;
    fx_make_cache_of(fx_recipe_stored("f16", "adjoint:2"), fx_path("a.kdc"), 0, 5);
    must(fx_open(&c, fx_path("a.kdc"), &fx_err));
    r = *kd_cache_recipe(c);
    for (unsigned i = 0; i < 5; i++) {
        for (unsigned v = 0; v < FX_VIEWS; v++) {
            square += fx_square(i, v);
            for (size_t k = 0; k < 4 * FX_WIDTH; k++)
                sum[k % FX_WIDTH] += (double)fx_stored(&r, i, v, KD_FEATURE_PATCH, 1, k);
        }
    }
    must(kd_cache_mean(c, KD_FEATURE_PATCH, 1, &mean, &std, &fx_err));
    for (int k = 0; k < FX_WIDTH; k++) {
        assert_true(fabs((double)mean[k] - sum[k] / n) < 1e-7);
        mean2 += sum[k] / n * (sum[k] / n);
    }
    assert_true(fabs((double)std - sqrt((square / n - mean2) / FX_WIDTH)) < 1e-6);
    kd_cache_close(c);
}

/* Rotation at a fixed size must not depend on interruptions. */
static void the_writer_counts_value_bytes_over_interruptions(void **state)
{
    kd_recipe r = fx_recipe();
    kd_writer *w;
    uint64_t two, after;
    (void)state;
    must(kd_writer_open(&w, fx_path("a.kdc"), &r, NULL, 0, &fx_err));
    assert_int_equal(kd_writer_value_bytes(w), 0);
    must(fx_add(w, &r, 0, 0, &fx_err));
    must(fx_add(w, &r, 1, 0, &fx_err));
    must(kd_writer_commit(w, &fx_err));
    two = kd_writer_value_bytes(w);
    assert_true(two > 2 * (128 + 2 * FX_ROWS * FX_WIDTH / 2));
    must(fx_add(w, &r, 2, 0, &fx_err)); /* lost with the process */
    kd_writer_close(w);
    must(kd_writer_open(&w, fx_path("a.kdc"), &r, NULL, 0, &fx_err));
    assert_int_equal(kd_writer_value_bytes(w), two);
    must(fx_add(w, &r, 2, 0, &fx_err));
    after = kd_writer_value_bytes(w);
    assert_true(after > two);
    kd_writer_close(w);
    kd_recipe_free(&r);
}

static void shards_read_as_one_cache(void **state)
{
    kd_cache *c, *all;
    const char *dir = fx_dir;
    float std_parts, std_all;
    const float *mean_parts, *mean_all;
    (void)state;
    fx_make_cache_of(fx_recipe_full(), fx_path("s0.kdc"), 0, 15);
    fx_make_cache_of(fx_recipe_full(), fx_path("s1.kdc"), 15, 25);
    must(kd_cache_open(&c, &dir, 1, &fx_err));
    assert_int_equal(kd_cache_shards(c), 2);
    assert_int_equal(kd_cache_images(c), 40);
    must(fx_compare_all(c, 0, 40, &fx_err));
    fx_make_cache_of(fx_recipe_full(), fx_path("all.kdc"), 0, 40);
    must(fx_open(&all, fx_path("all.kdc"), &fx_err));
    for (int i = 0; i < FX_RECORDS; i++) {
        uint16_t layer = i % 2 ? 4 : 1;
        must(kd_cache_mean(c, (kd_feature)(i / 2), layer, &mean_parts, &std_parts, &fx_err));
        must(kd_cache_mean(all, (kd_feature)(i / 2), layer, &mean_all, &std_all, &fx_err));
        assert_memory_equal(mean_parts, mean_all, FX_WIDTH * sizeof(float)); /* same order of additions: same bits */
        assert_true(std_parts == std_all);
    }
    kd_cache_close(c);
    kd_cache_close(all);
    must(kd_cache_open(&c, &dir, 1, &fx_err)); /* all.kdc holds what the shards hold: read once */
    assert_int_equal(kd_cache_images(c), 40);
    assert_int_equal(kd_cache_view_total(c), 40 * FX_VIEWS);
    must(fx_compare_all(c, 0, 40, &fx_err));
    kd_cache_close(c);
}

static void absent_and_unfinished_caches_are_not_found(void **state)
{
    kd_recipe r = fx_recipe();
    kd_writer *w;
    kd_cache *c;
    const char *dir = fx_dir;
    (void)state;
    must_be(KD_ENOTFOUND, fx_open(&c, fx_path("a.kdc"), &fx_err));
    must_say("kd-precompute --images");
    must_be(KD_ENOTFOUND, kd_cache_open(&c, &dir, 1, &fx_err));
    must(kd_writer_open(&w, fx_path("a.kdc"), &r, NULL, 0, &fx_err));
    kd_writer_close(w);
    must_be(KD_ENOTFOUND, fx_open(&c, fx_path("a.kdc"), &fx_err));
    must_say("not finished yet");
    must_be(KD_ENOTFOUND, kd_cache_open(&c, &dir, 1, &fx_err));
    must_say("unfinished");
    kd_recipe_free(&r);
}

/* What other systems put beside a file that they copy: ._a.kdc */
static void hidden_files_of_a_folder_are_no_shards(void **state)
{
    const char *dir = fx_dir;
    kd_cache *c;
    (void)state;
    fx_make_cache(fx_path("a.kdc"), 0, 2);
    fx_write_file(fx_path("._a.kdc"), "Mac OS X", 8);
    must(kd_cache_open(&c, &dir, 1, &fx_err));
    assert_int_equal(kd_cache_shards(c), 1);
    kd_cache_close(c);
}

/* An image's runs of views end below 2^32 - 1: a view of that number could be stored, but not listed. */
static void the_number_that_no_view_can_have_is_refused(void **state)
{
    uint8_t value[KD_MIXED_VALUE_BYTES], key[KD_VIEW_KEY_BYTES];
    kd_view_entry v = fx_view(0, 0), back;
    kd_recipe r = fx_recipe();
    kd_writer *w;
    size_t size;
    (void)state;
    for (uint32_t last = 0; last < 2; last++) {
        v.view = UINT32_MAX - 1 + last;
        size = kd_view_value_encode(value, r.sha.b, &v);
        kd_view_key(key, &v.image, v.view);
        must_be(last ? KD_EDAMAGED : KD_OK, kd_view_value_decode(&back, (kd_bytes){key, sizeof key}, (kd_bytes){value, size}, r.sha.b, "x.kdc", &fx_err));
    }
    must_say("view 4294967295");
    must(kd_writer_open(&w, fx_path("a.kdc"), &r, NULL, 0, &fx_err));
    must_be(KD_EFAIL, fx_add(w, &r, 0, UINT32_MAX, &fx_err));
    must_say("view 4294967295");
    must(fx_add(w, &r, 0, UINT32_MAX - 1, &fx_err));
    must(kd_writer_seal(w, &fx_err));
    kd_writer_close(w);
    kd_recipe_free(&r);
}

static void a_missing_manifest_is_said_and_completed(void **state)
{
    kd_recipe r = fx_recipe();
    kd_writer *w;
    kd_cache *c;
    (void)state;
    fx_make_cache(fx_path("a.kdc"), 0, 3);
    unlink(fx_path("a.kdc.json"));
    must_be(KD_EDAMAGED, fx_open(&c, fx_path("a.kdc"), &fx_err));
    must_say("run the same kd-precompute command again");
    must_be(KD_DONE, kd_writer_open(&w, fx_path("a.kdc"), &r, NULL, 0, &fx_err));
    must(fx_open(&c, fx_path("a.kdc"), &fx_err));
    kd_cache_close(c);
    kd_recipe_free(&r);
}

static void manifests_prove_themselves_and_their_file(void **state)
{
    kd_cache *c;
    uint8_t *bytes;
    size_t size, noticed = 0, same = 0;
    json_t *original, *edited;
    (void)state;
    fx_make_cache(fx_path("a.kdc"), 0, 3);
    fx_make_cache(fx_path("b.kdc"), 10, 3);
    fx_read_file(fx_path("a.kdc.json"), &bytes, &size);
    original = json_loadb((const char *)bytes, size, 0, NULL);
    for (size_t i = 0; i < size; i++) { /* any edit of a value is noticed, and so is one that leaves no JSON */
        uint8_t old = bytes[i];
        if (old < '1' || old > '9')
            continue;
        bytes[i] = old == '9' ? '8' : (uint8_t)(old + 1);
        edited = json_loadb((const char *)bytes, size, 0, NULL);
        if (json_equal(original, edited)) { /* the seventeenth digit of a real number doesn't always count */
            same++;
        } else {
            fx_write_file(fx_path("a.kdc.json"), bytes, size);
            must_be(KD_EDAMAGED, fx_open(&c, fx_path("a.kdc"), &fx_err));
            noticed++;
        }
        json_decref(edited);
        bytes[i] = old;
    }
    json_decref(original);
    assert_true(noticed > 100 && same < 10);
    kd_free(bytes);
    fx_read_file(fx_path("b.kdc.json"), &bytes, &size);
    fx_write_file(fx_path("a.kdc.json"), bytes, size);
    must_be(KD_EDAMAGED, fx_open(&c, fx_path("a.kdc"), &fx_err));
    must_say("copy both");
    kd_free(bytes);
}

/* A manifest that proves itself and tells another number of records than the file holds. */
static void records_are_counted_for_each_feature(void **state)
{
    kd_cache *c;
    (void)state;
    fx_make_cache_of(fx_recipe_full(), fx_path("a.kdc"), 0, 3);
    for (int f = 0; f < KD_OUTPUTS; f++) {
        char says[64];
        json_t *j, *content;
        must(kd_json_read_file(fx_path("a.kdc.json"), 1 << 20, &j, &fx_err));
        content = json_object_get(j, "content");
        json_object_set_new(content, kd_feature_name((kd_feature)f), json_integer(11));
        must(kd_manifest_write(fx_path("a.kdc"), j, &fx_err));
        must_be(KD_EDAMAGED, fx_open(&c, fx_path("a.kdc"), &fx_err));
        snprintf(says, sizeof says, "has 12 %s records where 11 are expected", kd_feature_name((kd_feature)f));
        must_say(says);
        json_object_del(content, kd_feature_name((kd_feature)f));
        must(kd_manifest_write(fx_path("a.kdc"), j, &fx_err));
        must_be(KD_EDAMAGED, fx_open(&c, fx_path("a.kdc"), &fx_err));
        must_say(kd_feature_name((kd_feature)f));
        json_object_set_new(content, kd_feature_name((kd_feature)f), json_integer(12));
        must(kd_manifest_write(fx_path("a.kdc"), j, &fx_err));
        json_decref(j);
    }
    must(fx_open(&c, fx_path("a.kdc"), &fx_err));
    kd_cache_close(c);
}

static void fidelity_and_provenance_stand_in_the_manifest(void **state)
{
    kd_recipe r = fx_recipe();
    kd_writer *w;
    kd_cache *c;
    const json_t *m, *f;
    json_t *p = json_pack("{s:i}", "threads", 1), *q = json_pack("{s:i}", "threads", 2);
    (void)state;
    must(kd_writer_open(&w, fx_path("a.kdc"), &r, p, 0, &fx_err));
    must(fx_add(w, &r, 0, 0, &fx_err));
    must(kd_writer_commit(w, &fx_err));
    kd_writer_close(w);
    must(kd_writer_open(&w, fx_path("a.kdc"), &r, q, 0, &fx_err)); /* resumed: the sums go on */
    must(fx_add(w, &r, 2, 1, &fx_err));
    must(kd_writer_seal(w, &fx_err));
    kd_writer_close(w);
    must(fx_open(&c, fx_path("a.kdc"), &fx_err));
    m = kd_cache_shard_manifest(c, 0);
    f = json_object_get(json_object_get(json_object_get(m, "fidelity"), "patch"), "1"); /* xx = qq = 4 each; err2 = 0.25 and 0.75; worst 0.125 and 0.25: fx_record */
    assert_true(fabs(json_number_value(json_object_get(f, "cosine")) - (8 + 8 - 1) / 16.0) < 1e-9);
    assert_true(fabs(json_number_value(json_object_get(f, "relative_l2")) - sqrt(1 / 8.0)) < 1e-9);
    assert_true(json_number_value(json_object_get(f, "worst_token")) == 0.25);
    assert_int_equal(json_integer_value(json_object_get(json_object_get(m, "provenance"), "threads")), 1);
    assert_int_equal(json_integer_value(json_object_get(json_array_get(json_object_get(json_object_get(m, "provenance"), "resumed"), 0), "threads")), 2);
    kd_cache_close(c);
    json_decref(p);
    json_decref(q);
    kd_recipe_free(&r);
}

static void unknown_keys_are_not_found(void **state)
{
    kd_cache *c;
    kd_reader *r;
    kd_view_entry v;
    float x[FX_WIDTH];
    kd_hash128 id = fx_image_id(0), other = fx_image_id(99);
    (void)state;
    fx_make_cache(fx_path("a.kdc"), 0, 3);
    must(fx_open(&c, fx_path("a.kdc"), &fx_err));
    must(kd_reader_create(&r, c, &fx_err));
    must_be(KD_ENOTFOUND, kd_reader_view(r, &other, 0, &v, &fx_err));
    must_be(KD_ENOTFOUND, kd_reader_view(r, &id, FX_VIEWS, &v, &fx_err));
    must_be(KD_ENOTFOUND, kd_reader_feature(r, KD_FEATURE_CLS, &id, 0, 2, x, NULL, &fx_err));
    must(kd_reader_feature(r, KD_FEATURE_CLS, &id, 0, 1, x, NULL, &fx_err));
    kd_reader_destroy(r);
    kd_cache_close(c);
}

static void two_keys_in_a_cache_of_one_feature(void **state)
{
    json_t *j = fx_recipe_json();
    kd_recipe r;
    kd_writer *w;
    kd_cache *c;
    kd_reader *reader;
    kd_hash128 id = fx_image_id(0);
    float x[FX_WIDTH * FX_ROWS], std;
    const float *mean;
    (void)state;
    json_object_set_new(j, "features", json_pack("[s]", "cls"));
    json_object_set_new(j, "patch_targets", json_array());
    must(kd_recipe_from_json(&r, j, "cls only", &fx_err));
    must(kd_writer_open(&w, fx_path("a.kdc"), &r, NULL, 0, &fx_err));
    must(fx_add(w, &r, 0, 0, &fx_err));
    must(kd_writer_seal(w, &fx_err));
    kd_writer_close(w);
    must(fx_open(&c, fx_path("a.kdc"), &fx_err));
    must_be(KD_ENOTFOUND, kd_cache_mean(c, KD_FEATURE_PATCH, 1, &mean, &std, &fx_err));
    assert_null(mean);
    must(kd_reader_create(&reader, c, &fx_err));
    must(kd_reader_feature(reader, KD_FEATURE_CLS, &id, 0, 1, x, NULL, &fx_err));
    must_be(KD_ENOTFOUND, kd_reader_feature(reader, KD_FEATURE_PATCH, &id, 0, 1, x, NULL, &fx_err));
    kd_reader_destroy(reader);
    kd_cache_close(c);
    kd_recipe_free(&r);
}

int main(void)
{
#define T(f) cmocka_unit_test_setup_teardown(f, fx_make_dir, fx_drop_dir)
    const struct CMUnitTest tests[] = {
        T(what_was_written_is_read), T(four_features_of_two_layers_are_read), T(joined_layers_are_read_as_one),
        T(incomplete_and_foreign_records_are_refused), T(statistics_are_of_each_feature_and_layer), T(sealed_bytes_depend_on_content_only),
        T(a_closed_writer_keeps_committed_views_only), T(a_second_writer_is_refused_by_name), T(a_finished_cache_is_done_and_read_only),
        T(another_recipe_is_refused_naming_the_field), T(a_cache_without_views_is_not_sealed), T(any_views_of_an_image_can_be_stored), T(shards_may_hold_different_views_of_an_image),
        T(every_element_type_and_target_is_read), T(statistics_of_adjoint_targets_are_those_of_the_tokens), T(the_writer_counts_value_bytes_over_interruptions), T(shards_read_as_one_cache),
        T(absent_and_unfinished_caches_are_not_found), T(hidden_files_of_a_folder_are_no_shards), T(the_number_that_no_view_can_have_is_refused),
        T(a_missing_manifest_is_said_and_completed), T(manifests_prove_themselves_and_their_file),
        T(records_are_counted_for_each_feature), T(fidelity_and_provenance_stand_in_the_manifest), T(unknown_keys_are_not_found), T(two_keys_in_a_cache_of_one_feature),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

/* Golden shards: every later version must read them, bit for bit. tests/golden/cache/README.md says how they were made: most by a second writer that knows FORMAT.md only, some by this
 * project's writer of format 1.0. Beside each lies what a reader must give (make_golden.py has the names of its tensors). */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "cache/store.h"
#include "common/base/io.h"
#include "common/base/log.h"
#include "common/base/mem.h"
#include "common/weights/weights.h"

#define FOLDER "tests/golden/cache/"
enum { ID_WORDS = 2, DIGEST_WORDS = 4, PLAN_WORDS = 2 * KD_PLAN_BYTES / 8 };

static kd_err err;
static void must_(kd_status status, const char *what, int line)
{
    if (status != KD_OK) {
        print_error("line %d: %s: %s\n", line, what, err.msg);
        fail();
    }
}
#define must(expr) must_((expr), #expr, __LINE__)

/* A tensor of the golden file; `each` values for one of `count` things. */
static int64_t *words(const kd_weights *w, const char *name, size_t count, size_t each)
{
    int i = kd_weights_find(w, name);
    int64_t *x = kd_malloc(count * each * sizeof *x);
    if (i < 0)
        print_error("no tensor %s\n", name);
    assert_true(i >= 0);
    must(kd_weights_read_i64(w, i, x, count * each, &err));
    return x;
}

static float *values(const kd_weights *w, const char *prefix, const char *name, size_t n)
{
    char full[64];
    float *x = kd_malloc(n * sizeof *x);
    snprintf(full, sizeof full, "%s%s", prefix, name);
    must(kd_weights_read_f32(w, kd_weights_find(w, full), x, n, &err));
    return x;
}

static void same_features(kd_cache *c, const kd_weights *w, kd_feature f)
{
    const kd_recipe *r = kd_cache_recipe(c);
    size_t each = (size_t)kd_recipe_rows(r, f) * (size_t)r->width, views = (size_t)kd_cache_view_total(c), layers = (size_t)r->layers, at = 0;
    float *want = values(w, "", kd_feature_name(f), views * layers * each), *got = kd_malloc(each * sizeof *got);
    int64_t *square = NULL;
    kd_reader *reader;
    if (kd_feature_target(f) >= 0) {
        static const char *const name[KD_MAX_TARGETS] = {"square", "square2", "square3", "square4"};
        square = words(w, name[kd_feature_target(f)], views, layers);
    }
    must(kd_reader_create(&reader, c, &err));
    for (size_t i = 0; i < kd_cache_images(c); i++) {
        const kd_image_entry *e = kd_cache_image(c, i);
        for (uint32_t v = 0; v < e->views; v++) {
            for (size_t l = 0; l < layers; l++, at++) {
                kd_record_facts facts;
                must(kd_reader_feature(reader, f, &e->image, kd_image_view(e, v), r->layer[l], got, &facts, &err));
                assert_memory_equal(got, want + at * each, each * sizeof *got);
                if (square)
                    assert_memory_equal(&facts.square, square + at, 8);
            }
        }
    }
    assert_int_equal(at, views * layers);
    kd_reader_destroy(reader);
    kd_free(want);
    kd_free(got);
    kd_free(square);
}

static void same_statistics(kd_cache *c, const kd_weights *w, kd_feature f)
{
    const kd_recipe *r = kd_cache_recipe(c);
    size_t width = (size_t)r->width, layers = (size_t)r->layers;
    float *mean = values(w, "mean/", kd_feature_name(f), layers * width), *deviation = values(w, "std/", kd_feature_name(f), layers);
    for (size_t l = 0; l < layers; l++) {
        const float *got;
        float scalar;
        must(kd_cache_mean(c, f, r->layer[l], &got, &scalar, &err));
        assert_memory_equal(got, mean + l * width, width * sizeof *got);
        assert_memory_equal(&scalar, deviation + l, sizeof scalar);
    }
    kd_free(mean);
    kd_free(deviation);
}

/* Ids, paths, numbers of views, view hashes and plans. */
static void same_views(kd_cache *c, const kd_weights *w)
{
    size_t images = kd_cache_images(c), views = (size_t)kd_cache_view_total(c), at = 0, path_words = (size_t)kd_weights_info(w, kd_weights_find(w, "paths")).shape[0];
    int64_t *ids = words(w, "ids", images, ID_WORDS), *numbers = words(w, "views", views, 2), *hashes = words(w, "hashes", views, ID_WORDS), *plans = words(w, "plans", views, PLAN_WORDS);
    int64_t *paths = words(w, "paths", path_words, 1);
    const char *path = (const char *)paths;
    kd_reader *reader;
    must(kd_reader_create(&reader, c, &err));
    for (size_t i = 0; i < images; i++) {
        const kd_image_entry *e = kd_cache_image(c, i);
        assert_memory_equal(e->image.b, ids + i * ID_WORDS, 16);
        assert_string_equal(e->rel, path);
        path += strlen(path) + 1;
        for (uint32_t v = 0; v < e->views; v++, at++) {
            uint8_t plan[2 * KD_PLAN_BYTES] = {0};
            kd_view_entry entry;
            assert_int_equal(numbers[2 * at], i);
            assert_int_equal(numbers[2 * at + 1], kd_image_view(e, v));
            must(kd_reader_view(reader, &e->image, kd_image_view(e, v), &entry, &err));
            assert_memory_equal(entry.view_hash.b, hashes + at * ID_WORDS, 16);
            kd_plan_encode(&entry.plan, plan);
            if (entry.plan.mix_lambda < 1)
                kd_plan_encode(&entry.partner, plan + KD_PLAN_BYTES);
            assert_memory_equal(plan, plans + at * PLAN_WORDS, sizeof plan);
        }
    }
    assert_int_equal(at, views);
    kd_reader_destroy(reader);
    kd_free(ids);
    kd_free(numbers);
    kd_free(hashes);
    kd_free(plans);
    kd_free(paths);
}

static void same_digest(kd_cache *c, const kd_weights *w)
{
    int64_t *want = words(w, "digest", DIGEST_WORDS, 1);
    kd_sha256 got;
    must(kd_cache_digest(c, &got, &err));
    assert_memory_equal(got.b, want, sizeof got.b);
    kd_free(want);
}

static void reads_as_specified(void **state)
{
    const char *name = *state;
    char path[200], golden[200];
    const char *paths[1] = {path};
    kd_cache *c;
    kd_weights *w;
    kd_log_set_level(KD_LOG_WARN);
    snprintf(path, sizeof path, FOLDER "%s.kdc", name);
    if (!kd_io_exists(path))
        snprintf(path, sizeof path, FOLDER "%s", name); /* a folder of shards */
    snprintf(golden, sizeof golden, FOLDER "%s.safetensors", name);
    must(kd_cache_open(&c, paths, 1, &err));
    must(kd_weights_open(&w, golden, &err));
    same_views(c, w);
    for (int f = 0; f < KD_FEATURES; f++) {
        assert_int_equal(kd_weights_find(w, kd_feature_name((kd_feature)f)) >= 0, kd_recipe_has(kd_cache_recipe(c), (kd_feature)f));
        if (kd_recipe_has(kd_cache_recipe(c), (kd_feature)f)) {
            same_features(c, w, (kd_feature)f);
            same_statistics(c, w, (kd_feature)f);
        }
    }
    same_digest(c, w);
    kd_weights_close(w);
    kd_cache_close(c);
}

#define CASE(name) {name, reads_as_specified, NULL, NULL, (void *)(uintptr_t)name}

int main(void)
{
    const struct CMUnitTest tests[] = {
        CASE("f16-full"), CASE("f16-reduced"), CASE("bf16-full"), CASE("bf16-reduced"), CASE("i8-full"), CASE("i8-reduced"), CASE("i8-wide"), CASE("i8-odd"), CASE("joined"), CASE("cls"),
        CASE("derived"), CASE("runs"), CASE("mixed"), CASE("shards"), CASE("written-f16"), CASE("written-bf16"), CASE("written-i8"),
    };
    return cmocka_run_group_tests_name("golden cache", tests, NULL, NULL);
}

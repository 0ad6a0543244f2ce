/* Shards whose pages and counts are in order, but whose keys don't fit each other: as another program, or a bit that flipped in a key, might leave them. */
#include "tests/cache_fixture.h"

#include "cache/check.h"
#include "cache/entry.h"

/* In the leaf pages of a.kdc, turns view 1 of image 0 into view 2 where its key has `size` bytes, the first time from the `skip`-th on. Keys stay ascending. */
static void rename_key(size_t size, int skip)
{
    uint8_t *bytes, want[KD_VIEW_KEY_BYTES];
    size_t n, found = 0;
    kd_hash128 id = fx_image_id(0);
    memcpy(want, id.b, 16);
    memcpy(want + 16, "\0\0\0\1", 4);
    fx_read_file(fx_path("a.kdc"), &bytes, &n);
    for (size_t i = 8; i + sizeof want < n && !found; i++) {
        if (bytes[i - 2] != size || bytes[i - 1] != 0 || memcmp(bytes + i, want, sizeof want) != 0 || skip-- > 0) /* a node: sizes and flags, size of the key u16, key */
            continue;
        bytes[i + 19] = 2;
        found = i;
    }
    assert_true(found > 0);
    fx_write_file(fx_path("a.kdc"), bytes, n);
    kd_free(bytes);
}

static void say_nothing(void *ctx, const char *sentence)
{
    snprintf(ctx, 2000, "%s", sentence);
}

static void structure_must_say(const char *text)
{
    char said[2000] = "";
    kd_check_result result;
    kd_check_options o = {.part = 1, .parts = 1, .threads = 1};
    kd_cache *c;
    must(fx_open(&c, fx_path("a.kdc"), &fx_err)); /* pages, counts and image table are sound */
    must_be(KD_EDAMAGED, kd_cache_shard_structure(c, 0, &fx_err));
    must_say(text);
    must(kd_cache_check(c, &o, 0, say_nothing, said, &result, &fx_err));
    assert_int_equal(result.bad, 1);
    assert_string_equal(said, fx_err.msg);
    kd_cache_close(c);
}

static void a_sound_shard_has_structure(void **state)
{
    kd_cache *c;
    (void)state;
    fx_make_cache_of(fx_recipe_full(), fx_path("a.kdc"), 0, 4);
    must(fx_open(&c, fx_path("a.kdc"), &fx_err));
    must(kd_cache_shard_structure(c, 0, &fx_err));
    kd_cache_close(c);
}

static void a_view_under_another_key_is_missed(void **state)
{
    (void)state;
    fx_make_cache(fx_path("a.kdc"), 0, 4);
    rename_key(KD_VIEW_KEY_BYTES, 0);
    structure_must_say("00000001 is missing, although its image lists it");
}

static void a_record_under_another_key_is_missed(void **state)
{
    (void)state;
    for (int feature = 0; feature < 2; feature++) {
        fx_make_cache(fx_path("a.kdc"), 0, 4);
        rename_key(KD_KEY_BYTES, feature);
        structure_must_say("000000010001 is missing, although its view is there");
        unlink(fx_path("a.kdc"));
    }
}

static void damaged_statistics_are_found(void **state)
{
    uint8_t *bytes;
    size_t n, at = 0;
    (void)state;
    fx_make_cache(fx_path("a.kdc"), 0, 4);
    fx_read_file(fx_path("a.kdc"), &bytes, &n);
    for (size_t i = 0; i + 11 < n; i++)
        at = memcmp(bytes + i, "stats/cls/1", 11) == 0 ? i : at;
    assert_true(at > 0);
    bytes[at + 11 + 16 + 20] ^= 1; /* behind the key: hash, views, width, deviation, mean */
    fx_write_file(fx_path("a.kdc"), bytes, n);
    kd_free(bytes);
    structure_must_say("the meta entry");
}

/* Numbers that prove themselves and are none: training would subtract or divide by them. */
static void statistics_that_are_no_numbers_are_refused(void **state)
{
    enum { PAYLOAD = 16 + 4 * FX_WIDTH };
    static const struct { size_t at; float value; } bad[] = {{12, NAN}, {12, INFINITY}, {12, -1.0f}, {16, NAN}, {PAYLOAD - 4, -INFINITY}};
    uint8_t *bytes, *value;
    size_t n, at = 0, size;
    (void)state;
    fx_make_cache(fx_path("a.kdc"), 0, 4);
    fx_read_file(fx_path("a.kdc"), &bytes, &n);
    for (size_t i = 0; i + 11 < n; i++)
        at = memcmp(bytes + i, "stats/cls/1", 11) == 0 ? i : at;
    assert_true(at > 0);
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        uint8_t payload[PAYLOAD];
        const float *mean;
        float deviation;
        kd_cache *c;
        memcpy(payload, bytes + at + 11 + KD_VALUE_HASH_BYTES, PAYLOAD);
        memcpy(payload + bad[i].at, &bad[i].value, 4);
        must(kd_meta_encode(&value, &size, "stats/cls/1", payload, PAYLOAD, &fx_err));
        uint8_t sound[KD_VALUE_HASH_BYTES + PAYLOAD];
        memcpy(sound, bytes + at + 11, sizeof sound);
        memcpy(bytes + at + 11, value, size);
        fx_write_file(fx_path("a.kdc"), bytes, n);
        memcpy(bytes + at + 11, sound, sizeof sound);
        kd_free(value);
        structure_must_say("statistics of cls of layer 1");
        must(fx_open(&c, fx_path("a.kdc"), &fx_err));
        must_be(KD_EDAMAGED, kd_cache_mean(c, KD_FEATURE_CLS, 1, &mean, &deviation, &fx_err));
        assert_null(mean);
        kd_cache_close(c);
    }
    kd_free(bytes);
}

/* And never "not cached": whoever asks for it learns that the file is damaged. */
static void a_missing_record_is_damage(void **state)
{
    kd_cache *c;
    kd_reader *r;
    kd_hash128 id = fx_image_id(0);
    float x[FX_WIDTH];
    (void)state;
    fx_make_cache(fx_path("a.kdc"), 0, 4);
    rename_key(KD_KEY_BYTES, 0);
    must(fx_open(&c, fx_path("a.kdc"), &fx_err));
    must(kd_reader_create(&r, c, &fx_err));
    must_be(KD_EDAMAGED, kd_reader_feature(r, KD_FEATURE_CLS, &id, 1, 1, x, NULL, &fx_err));
    must_say("is missing; copy the file again");
    must_be(KD_EDAMAGED, kd_reader_will_need(r, KD_FEATURE_CLS, &id, 1, 1, &fx_err));
    must(kd_reader_will_need(r, KD_FEATURE_CLS, &id, 0, 1, &fx_err));
    must_be(KD_ENOTFOUND, kd_reader_will_need(r, KD_FEATURE_CLS, &id, 2, 1, &fx_err)); /* the image table doesn't list it */
    kd_reader_destroy(r);
    kd_cache_close(c);
}

int main(void)
{
#define T(f) cmocka_unit_test_setup_teardown(f, fx_make_dir, fx_drop_dir)
    const struct CMUnitTest tests[] = {T(a_sound_shard_has_structure), T(a_view_under_another_key_is_missed), T(a_record_under_another_key_is_missed), T(damaged_statistics_are_found),
                                       T(statistics_that_are_no_numbers_are_refused), T(a_missing_record_is_damage)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}

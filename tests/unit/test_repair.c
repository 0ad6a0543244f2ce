/* Damaged caches, repaired: every view whose bytes are untouched is saved with its values, every other one is listed, and what comes out is sound. */
#include "tests/cache_fixture.h"

#include "cache/check.h"
#include "cache/entry.h"
#include "cache/repair.h"
#include "cache/salvage.h"

enum { IMAGES = 30, PAGE = 4096, MAX_PAGES = 2000 };

static uint8_t *original;
static size_t size;
static char file[512], repaired[512], list[512], manifest[512];
static kd_rng rng;
static uint8_t touched[MAX_PAGES]; /* pages that the damage changed */
static unsigned problems;

static void count(void *ctx, const char *sentence)
{
    (void)ctx;
    assert_true(strlen(sentence) > 0);
    problems++;
}

static int setup(void **state)
{
    if (fx_make_dir(state) != 0)
        return -1;
    snprintf(file, sizeof file, "%s/a.kdc", fx_dir);
    snprintf(repaired, sizeof repaired, "%s/r.kdc", fx_dir);
    snprintf(list, sizeof list, "%s/r.kdc.missing.txt", fx_dir);
    snprintf(manifest, sizeof manifest, "%s/a.kdc.json", fx_dir);
    rng = kd_rng_make(20261128, 1, 0, KD_RNG_TEST);
    fx_make_cache_of(fx_recipe_full(), file, 0, IMAGES);
    fx_read_file(file, &original, &size);
    assert_true(size / PAGE <= MAX_PAGES);
    return chmod(file, 0644);
}

static int teardown(void **state)
{
    kd_free(original);
    return fx_drop_dir(state);
}

static void forget(void)
{
    unlink(repaired);
    unlink(fx_path("r.kdc.json"));
    unlink(list);
    memset(touched, 0, sizeof touched);
}

static kd_status repair(const char *out, kd_repair_result *result)
{
    const char *path = file;
    kd_repair_job job = {.paths = &path, .count = 1, .out = out, .command = "kd-cache test", .report = count};
    problems = 0;
    return kd_cache_repair(&job, result, &fx_err);
}

/* ---- where everything lies in the undamaged file ---- */

enum { ENTRIES = IMAGES * (1 + FX_VIEWS * (1 + FX_RECORDS)) };
static struct { uint8_t key[KD_KEY_BYTES]; size_t key_size; uint64_t first_page, last_page; } place[2 * ENTRIES];
static size_t places;

static kd_status note(void *ctx, const kd_salvaged *found, kd_err *err)
{
    (void)ctx;
    (void)err;
    if (found->db == KD_DB_META)
        return KD_OK;
    assert_true(places < 2 * ENTRIES);
    memcpy(place[places].key, found->key.data, found->key.size);
    place[places].key_size = found->key.size;
    place[places].first_page = found->at / PAGE;
    place[places++].last_page = (found->at + found->size - 1) / PAGE;
    return KD_OK;
}

static void find_places(void)
{
    kd_salvage s;
    places = 0;
    must(kd_salvage_open(&s, file, &fx_err));
    must(kd_salvage_scan(&s, note, NULL, &fx_err));
    kd_salvage_close(&s);
    assert_true(places >= ENTRIES);
}

/* 1 when no page that holds the image's entry, the view's or one of its records was touched: then it must be saved. */
static int is_untouched(unsigned image, unsigned view)
{
    kd_hash128 id = fx_image_id(image);
    for (size_t i = 0; i < places; i++) {
        if (memcmp(place[i].key, id.b, 16) != 0 || (place[i].key_size > 16 && place[i].key[19] != view))
            continue;
        for (uint64_t p = place[i].first_page; p <= place[i].last_page; p++) {
            if (touched[p])
                return 0;
        }
    }
    return 1;
}

/* ---- what was saved ---- */

/* 1 when the list has this view. */
static int is_listed(const char *text, unsigned image, unsigned view)
{
    kd_hash128 id = fx_image_id(image);
    char hex[33];
    kd_hex(hex, id.b, 16);
    for (const char *p = strstr(text, hex); p; p = strstr(p + 1, hex)) {
        unsigned first, last;
        int n = sscanf(p + 33, "%u-%u", &first, &last);
        assert_true(n >= 1 && p[32] == ' ' && (p == text || p[-1] == '\n'));
        if (view >= first && view <= (n == 2 ? last : first))
            return 1;
    }
    return 0;
}

static void compare(const kd_repair_result *result)
{
    const char *path = repaired;
    kd_check_options all = {.read_data = 1, .part = 1, .parts = 1, .threads = 1};
    kd_check_result checked;
    kd_recipe full = fx_recipe_full();
    kd_cache *c;
    kd_reader *r;
    uint8_t *text = NULL;
    size_t n, saved = 0, listed = 0;
    must(kd_cache_open_anew(&c, &path, 1, &fx_err));
    must(kd_cache_check(c, &all, 0, count, NULL, &checked, &fx_err));
    assert_int_equal(checked.bad, 0);
    assert_memory_equal(kd_cache_recipe(c)->sha.b, full.sha.b, 32);
    must(kd_reader_create(&r, c, &fx_err));
    assert_int_equal(kd_io_exists(list), result->missing[0] != 0);
    if (result->missing[0])
        fx_read_file(result->missing, &text, &n);
    for (unsigned i = 0; i < IMAGES; i++) {
        kd_hash128 id = fx_image_id(i);
        const kd_image_entry *e = kd_cache_find_image(c, &id);
        char rel[64];
        snprintf(rel, sizeof rel, "class %u/photo-%u.jpg", i % 3, i);
        if (e)
            assert_string_equal(e->rel, rel);
        for (unsigned v = 0; v < FX_VIEWS; v++) {
            kd_view_entry want = fx_view(i, v);
            int has = e && kd_image_find_view(e, v), said = text && is_listed((char *)text, i, v);
            if (has)
                must(fx_compare_records(r, &full, i, &want, &fx_err));
            if (is_untouched(i, v))
                assert_true(has);
            assert_false(has && said);
            saved += (size_t)has;
            listed += (size_t)said;
            if (!has && !said) /* all trace of it is lost, and its image is one of those that are counted */
                assert_true(!e && result->lost_images > 0);
        }
    }
    assert_int_equal(result->views, saved);
    assert_int_equal(result->lost_views, listed);
    assert_int_equal(result->images, kd_cache_images(c));
    kd_free(text);
    kd_reader_destroy(r);
    kd_cache_close(c);
    kd_recipe_free(&full);
}

/* Writes damaged bytes, repairs, compares. *all: the views that were saved, added. */
static void trial(const uint8_t *bytes, size_t n, size_t *all)
{
    kd_repair_result result;
    kd_status status;
    fx_write_file(file, bytes, n);
    for (size_t p = 0; p < size / PAGE; p++)
        touched[p] |= (uint8_t)((p + 1) * PAGE > n || memcmp(bytes + p * PAGE, original + p * PAGE, PAGE) != 0);
    status = repair(repaired, &result);
    if (status == KD_OK) {
        compare(&result);
        *all += result.views;
        assert_true(problems > 0);
    } else {
        must_be(KD_EDAMAGED, status);
        must_say(strstr(fx_err.msg, "recipe") ? "nothing can be believed without it" : "no view in it is sound");
        for (unsigned v = 0; v < IMAGES * FX_VIEWS; v++)
            assert_true(!is_untouched(v / FX_VIEWS, v % FX_VIEWS) || strstr(fx_err.msg, "recipe"));
        assert_false(kd_io_exists(repaired) || kd_io_exists(list) || kd_io_exists(fx_path("r.kdc.partial")));
    }
    forget();
}

static uint8_t *damaged_copy(void)
{
    uint8_t *b = kd_malloc(size);
    assert_non_null(b);
    memcpy(b, original, size);
    return b;
}

static size_t below(size_t n)
{
    static uint32_t segment;
    if (rng.ctr[3] >= 60000) /* a stream ends after 65,536 blocks */
        rng = kd_rng_make(20261128, 1, ++segment, KD_RNG_TEST);
    return kd_rng_below(&rng, (uint32_t)n);
}

/* A page of the trees. */
static size_t tree_page(void)
{
    for (;;) {
        size_t p = below(size / PAGE);
        uint64_t number;
        memcpy(&number, original + p * PAGE, 8);
        if (number == p && (original[p * PAGE + 10] == 1 || original[p * PAGE + 10] == 2))
            return p;
    }
}

/* ---- tests ---- */

static void a_sound_cache_is_left_alone(void **state)
{
    kd_repair_result result;
    (void)state;
    must(repair(NULL, &result));
    assert_int_equal(problems, 0);
    assert_true(result.files == 1 && result.bad_files == 0 && result.lost_views == 0 && result.lost_entries == 0);
    assert_int_equal(result.views, IMAGES * FX_VIEWS);
    assert_int_equal(result.images, IMAGES);
    assert_false(kd_io_exists(repaired));
    must(repair(repaired, &result)); /* and copied when that is asked for */
    fx_assert_equal_files(file, repaired);
    must_be(KD_EUSAGE, repair(repaired, &result));
    must_say("is there already");
}

static void damage_of_every_kind_costs_only_what_it_hits(void **state)
{
    size_t saved = 0;
    (void)state;
    find_places();
    for (unsigned i = 0; i < 60; i++) {
        uint8_t *b = damaged_copy();
        size_t p = i % 2 ? tree_page() : below(size / PAGE), n = size;
        switch (i % 6) {
        case 0: memset(b + p * PAGE, 0, PAGE); break;
        case 1: memset(b + p * PAGE, 0, PAGE); break;
        case 2: b[p * PAGE + below(PAGE)] ^= (uint8_t)(1u << below(8)); break;
        case 3: for (size_t k = 0; k < 16; k++) b[p * PAGE + below(64)] = (uint8_t)below(256); break;
        case 4: n = size - below(size / 2); break;
        default: memcpy(b + p * PAGE, original + tree_page() * PAGE, PAGE); b[p * PAGE + 100] ^= 1;
        }
        trial(b, n, &saved);
        kd_free(b);
    }
    print_message("60 damaged caches: %zu of %d views saved\n", saved, 60 * IMAGES * FX_VIEWS);
    assert_true(saved > 60 * IMAGES * FX_VIEWS / 2);
}

static void both_meta_pages_and_all_branches_may_be_gone(void **state)
{
    uint8_t *b = damaged_copy();
    size_t saved = 0;
    (void)state;
    find_places();
    memset(b, 0xff, 2 * PAGE);
    for (size_t p = 2; p < size / PAGE; p++) {
        uint64_t number;
        memcpy(&number, b + p * PAGE, 8);
        if (number == p && b[p * PAGE + 10] == 1)
            memset(b + p * PAGE, 0, PAGE);
    }
    trial(b, size, &saved);
    assert_int_equal(saved, IMAGES * FX_VIEWS);
    kd_free(b);
}

static void a_manifest_may_be_missing_damaged_or_of_another_cache(void **state)
{
    kd_repair_result result;
    json_t *other = fx_recipe_json();
    kd_recipe r;
    uint8_t *text;
    size_t n;
    char folder[512], from[600], copy[600];
    (void)state;
    find_places();
    fx_read_file(manifest, &text, &n);
    unlink(manifest);
    must(repair(repaired, &result));
    assert_true(result.bad_files == 1 && problems == 1);
    compare(&result);
    forget();
    text[n / 2] ^= 1;
    fx_write_file(manifest, text, n);
    must(repair(repaired, &result));
    assert_int_equal(result.bad_files, 1);
    compare(&result);
    forget();
    kd_free(text);
    snprintf(folder, sizeof folder, "%s", fx_dir);
    json_object_set_new(other, "seed", json_integer(8));
    must(kd_recipe_from_json(&r, other, "other", &fx_err));
    fx_make_cache_of(r, fx_path("b.kdc"), 0, 2);
    snprintf(from, sizeof from, "%s/b.kdc.json", folder);
    snprintf(copy, sizeof copy, "%s/a.kdc.json", folder);
    fx_read_file(from, &text, &n);
    fx_write_file(copy, text, n);
    kd_free(text);
    must(repair(repaired, &result));
    assert_int_equal(result.bad_files, 1);
    compare(&result);
}

/* The recipe is in the file's last pages: a cut file has it in its manifest only. */
static void a_cut_file_uses_the_recipe_of_its_manifest(void **state)
{
    uint8_t *b = damaged_copy();
    size_t saved = 0;
    (void)state;
    find_places();
    trial(b, size / 2, &saved);
    assert_true(saved == 0); /* the records of mean are the last: every view lacks one */
    trial(b, size - 3 * PAGE, &saved);
    assert_true(saved > 0);
    unlink(manifest);
    trial(b, size - 8 * PAGE, &saved);
    kd_free(b);
}

static void an_image_that_is_lost_is_counted_and_its_views_are_listed(void **state)
{
    uint8_t *b = damaged_copy(), *text;
    kd_repair_result result;
    size_t n, lost = 0;
    (void)state;
    find_places();
    for (size_t i = 0; i < places; i++) { /* an inline entry's page */
        if (place[i].key_size == 16)
            b[place[i].first_page * PAGE + 10] = 77;
    }
    fx_write_file(file, b, size);
    must_be(KD_EDAMAGED, repair(repaired, &result));
    assert_int_equal(result.lost_views, IMAGES * FX_VIEWS);
    assert_int_equal(result.lost_entries, IMAGES);
    assert_int_equal(result.lost_images, 0);
    memcpy(b, original, size);
    for (size_t i = 0; i < places; i++) { /* one entry only */
        kd_hash128 id = fx_image_id(4);
        uint8_t *at = b + place[i].first_page * PAGE;
        if (place[i].key_size != 16 || memcmp(place[i].key, id.b, 16) != 0)
            continue;
        for (size_t k = 0; k + 10 < PAGE; k++) {
            if (memcmp(at + k, "photo-4.jp", 10) == 0)
                at[k] ^= 1, lost++;
        }
    }
    assert_true(lost >= 1);
    fx_write_file(file, b, size);
    must(repair(repaired, &result));
    assert_int_equal(result.lost_entries, 1);
    assert_int_equal(result.lost_images, 0);
    assert_int_equal(result.lost_views, FX_VIEWS);
    fx_read_file(list, &text, &n);
    assert_non_null(strstr((char *)text, " 0-1 ?\n"));
    kd_free(text);
    kd_free(b);
}

static kd_status count_found(void *ctx, const kd_salvaged *found, kd_err *err)
{
    (void)found;
    (void)err;
    ++*(size_t *)ctx;
    return KD_OK;
}

/* A page of 4 KiB that lists one node again and again: memory for thousands of entries would be a multiple of the file. */
static void a_page_has_no_more_entries_than_a_few_pages_hold(void **state)
{
    enum { LISTED = 1900, NODE = PAGE - 100, NODE_BYTES = 8 + KD_IMAGE_KEY_BYTES + 60 };
    uint8_t page[PAGE] = {0};
    size_t found = 0;
    kd_salvage s;
    (void)state;
    page[10] = 2; /* a leaf */
    kd_put_le(page + 12, 16 + 2 * LISTED, 2);
    kd_put_le(page + 14, 16 + 2 * LISTED, 2);
    for (size_t i = 0; i < LISTED; i++)
        kd_put_le(page + 16 + 2 * i, NODE, 2);
    kd_put_le(page + NODE, 60, 4);
    kd_put_le(page + NODE + 6, KD_IMAGE_KEY_BYTES, 2);
    fx_write_file(file, page, sizeof page);
    must(kd_salvage_open(&s, file, &fx_err));
    must(kd_salvage_scan(&s, count_found, &found, &fx_err));
    kd_salvage_close(&s);
    assert_true(found >= 1 && found <= 4 * PAGE / NODE_BYTES);
}

/* What is damaged in one shard may be sound in another. */
static void a_folder_is_repaired_into_one(void **state)
{
    char folder[512], a[600], b[600];
    const char *path = folder;
    kd_repair_job job = {.paths = &path, .count = 1, .out = repaired, .command = "kd-cache test", .report = count};
    kd_repair_result result;
    uint8_t *bytes;
    size_t n, at = 0;
    kd_cache *c;
    (void)state;
    snprintf(folder, sizeof folder, "%s/shards", fx_dir);
    snprintf(a, sizeof a, "%s/a.kdc", folder);
    snprintf(b, sizeof b, "%s/b.kdc", folder);
    must(kd_io_mkdirs(folder, &fx_err));
    fx_make_cache(a, 0, 10);
    fx_make_cache(b, 5, 10);
    fx_read_file(a, &bytes, &n);
    for (; at + 300 < n; at++) { /* every patch record */
        if (memcmp(bytes + at, "KDFR\1\0\1", 7) == 0)
            bytes[at + 250] ^= 1;
    }
    fx_write_file(a, bytes, n);
    kd_free(bytes);
    must(kd_cache_repair(&job, &result, &fx_err));
    assert_int_equal(result.views, 10 * FX_VIEWS);
    assert_int_equal(result.lost_views, 5 * FX_VIEWS);
    assert_true(result.files == 2 && result.bad_files == 1);
    must(fx_open(&c, repaired, &fx_err));
    must(fx_compare_all(c, 5, 10, &fx_err));
    kd_cache_close(c);
    unlink(a);
    unlink(b);
    strcat(a, ".json");
    strcat(b, ".json");
    unlink(a);
    unlink(b);
    rmdir(folder);
}

/* Lines of the list are for machines. */
static void paths_that_a_line_cannot_hold_are_hidden(void **state)
{
    kd_recipe r = fx_recipe();
    kd_writer *w;
    kd_view_entry v[2] = {fx_view(0, 0), fx_view(1, 0)};
    kd_image_entry e[2] = {{.image = v[0].image, .rel = "a\nb.jpg", .file_size = 1, .width = 100, .height = 80}, {.image = v[1].image, .rel = "plain.jpg", .file_size = 1, .width = 100, .height = 80}};
    kd_hash128 h = kd_xxh128("a\nb.jpg", 7);
    kd_repair_result result;
    uint8_t *bytes;
    size_t n;
    char want[64] = " 0 xxh128:";
    (void)state;
    unlink(file);
    unlink(manifest);
    must(kd_writer_open(&w, file, &r, NULL, 0, &fx_err));
    for (unsigned i = 0; i < 2; i++)
        must(fx_add_view(w, &r, i, &e[i], &v[i], &fx_err));
    must(kd_writer_seal(w, &fx_err));
    kd_writer_close(w);
    kd_recipe_free(&r);
    fx_read_file(file, &bytes, &n);
    for (size_t at = 0; at + 32 < n; at++) { /* a record in a leaf: its head is behind its node's key */
        if (memcmp(bytes + at, "KDFR\1\0\0", 7) == 0 && memcmp(bytes + at + 10, v[0].image.b, 16) == 0)
            bytes[at + 130] ^= 1;
    }
    fx_write_file(file, bytes, n);
    kd_free(bytes);
    must(repair(repaired, &result));
    assert_true(result.views == 1 && result.lost_views == 1);
    fx_read_file(list, &bytes, &n);
    kd_hex(want + 10, h.b, 16);
    strcat(want, "\n");
    assert_non_null(strstr((char *)bytes, want));
    kd_free(bytes);
}

static void what_is_no_cache_gives_nothing(void **state)
{
    kd_repair_result result;
    uint8_t *b = damaged_copy();
    (void)state;
    unlink(manifest);
    for (size_t i = 0; i < size; i++)
        b[i] = (uint8_t)below(256);
    fx_write_file(file, b, size);
    must_be(KD_EDAMAGED, repair(repaired, &result));
    must_say("its recipe can't be read");
    fx_write_file(file, b, 0);
    must_be(KD_EDAMAGED, repair(repaired, &result));
    unlink(file);
    must_be(KD_ENOTFOUND, repair(repaired, &result));
    kd_free(b);
}

static uint64_t seen, file_end;

static kd_status stays_inside(void *ctx, const kd_salvaged *found, kd_err *err)
{
    static uint8_t value[1 << 20];
    (void)err;
    assert_true(found->db < KD_DBS && found->key.size >= 1 && found->key.size <= 511);
    assert_true(found->at <= file_end && found->size <= file_end - found->at);
    if (found->size <= sizeof value)
        must(kd_salvage_read(ctx, found->at, found->size, value, &fx_err));
    seen++;
    return KD_OK;
}

/* Pages of the trees with changed bytes in their heads, node offsets and nodes: what is handed out lies in the file. */
static void entries_of_broken_pages_stay_inside_the_file(void **state)
{
    enum { COPIES = 64 };
    kd_salvage s = {.path = "memory", .pages = COPIES};
    uint8_t *pages = kd_malloc(COPIES * PAGE);
    (void)state;
    assert_non_null(pages);
    s.map = (kd_map){pages, COPIES * PAGE - 100}; /* the last one is cut */
    file_end = s.map.size;
    for (unsigned round = 0; round < 60; round++) {
        for (size_t i = 0; i < COPIES; i++) {
            uint8_t *p = pages + i * PAGE;
            uint64_t number = i;
            memcpy(p, original + tree_page() * PAGE, PAGE);
            memcpy(p, &number, 8);
            for (size_t k = 0; k < round % 8; k++) {
                size_t low = (size_t)(p[12] | p[13] << 8), at = k % 2 ? 12 + below(low < PAGE && low > 16 ? low - 12 : 100) : below(PAGE);
                p[at] = (uint8_t)(k % 3 == 0 ? 0xff : below(256));
            }
        }
        must(kd_salvage_scan(&s, stays_inside, &s, &fx_err));
    }
    assert_true(seen > 1000);
    kd_free(pages);
}

int main(void)
{
#define T(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
    const struct CMUnitTest tests[] = {
        T(a_sound_cache_is_left_alone), T(damage_of_every_kind_costs_only_what_it_hits), T(both_meta_pages_and_all_branches_may_be_gone),
        T(a_manifest_may_be_missing_damaged_or_of_another_cache), T(a_cut_file_uses_the_recipe_of_its_manifest), T(an_image_that_is_lost_is_counted_and_its_views_are_listed),
        T(a_folder_is_repaired_into_one), T(a_page_has_no_more_entries_than_a_few_pages_hold), T(paths_that_a_line_cannot_hold_are_hidden), T(what_is_no_cache_gives_nothing), T(entries_of_broken_pages_stay_inside_the_file),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

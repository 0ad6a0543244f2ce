/* A cache as a folder of shards: where shards end, what counts as stored, interrupted runs, parts of an array, and writing on another disk first. */
#include "tests/cache_fixture.h"

#include <errno.h>
#include <sys/stat.h>
#include <sys/vfs.h>

#include "cache/shard_writer.h"

/* In place of the C library's: what lies under fx_dir/net is on NFS. */
int statfs(const char *path, struct statfs *fs);
int statfs(const char *path, struct statfs *fs)
{
    struct stat st;
    if (stat(path, &st) != 0)
        return -1;
    memset(fs, 0, sizeof *fs);
    fs->f_type = strstr(path, "/net") ? 0x6969 : 0xEF53;
    return 0;
}

enum { IMAGES = 24, SHARD_BYTES = 20000 };

static char dest[200], stage[200], file[200];

static void remove_all(void)
{
    char command[200];
    snprintf(command, sizeof command, "rm -rf '%s'/*", fx_dir);
    assert_int_equal(system(command), 0);
}

static int setup(void **state)
{
    if (fx_make_dir(state) != 0)
        return -1;
    kd_log_set_level(KD_LOG_ERROR);
    snprintf(dest, sizeof dest, "%s/photos", fx_dir);
    snprintf(stage, sizeof stage, "%s/stage", fx_dir);
    snprintf(file, sizeof file, "%s/photos.kdc", fx_dir);
    return 0;
}

static int teardown(void **state)
{
    remove_all();
    return fx_drop_dir(state);
}

static kd_shard_place place_at(const char *path)
{
    return (kd_shard_place){.path = path, .shard_size = SHARD_BYTES};
}

static kd_status open_at(kd_shard_writer **w, const kd_shard_place *place)
{
    kd_recipe r = fx_recipe();
    kd_status status = kd_shard_writer_open(w, place, &r, NULL, &fx_err);
    kd_recipe_free(&r);
    return status;
}

static void add(kd_shard_writer *w, unsigned image, unsigned view)
{
    static kd_record_buf record[FX_RECORDS];
    kd_recipe r = fx_recipe();
    kd_view_entry v = fx_view(image, view);
    kd_record_ref refs[2];
    char rel[64];
    kd_image_entry e = {.image = v.image, .rel = rel, .file_size = 1000 + image, .width = 100, .height = 80};
    snprintf(rel, sizeof rel, "class %u/photo-%u.jpg", image % 3, image);
    for (int f = 0; f < 2; f++) {
        fx_record(&record[f], &r, image, &v, (kd_feature)f, 1);
        refs[f] = (kd_record_ref){(kd_feature)f, 1, record[f].bytes, record[f].size};
    }
    must(kd_shard_writer_add_view(w, &e, &v, refs, 2, &fx_err));
    kd_recipe_free(&r);
}

/* As kd-precompute does: what is stored is left out. Returns how many views were added before `most` was reached. */
static unsigned add_missing(kd_shard_writer *w, unsigned first, unsigned count, unsigned most)
{
    unsigned added = 0;
    for (unsigned i = first; i < first + count; i++) {
        for (unsigned v = 0; v < FX_VIEWS; v++) {
            kd_hash128 id = fx_image_id(i);
            if (kd_shard_writer_has_view(w, &id, v))
                continue;
            if (added == most)
                return added;
            add(w, i, v);
            added++;
        }
    }
    return added;
}

static void make_at(const kd_shard_place *place, unsigned first, unsigned count)
{
    kd_shard_writer *w;
    must(open_at(&w, place));
    add_missing(w, first, count, UINT32_MAX);
    must(kd_shard_writer_seal(w, &fx_err));
    kd_shard_writer_close(w);
}

/* folder/name, in one of four buffers. */
static const char *in(const char *folder, const char *name)
{
    static char path[4][900];
    static int next;
    next = (next + 1) % 4;
    snprintf(path[next], sizeof path[next], "%s/%s", folder, name);
    return path[next];
}

/* "a b c": the names in a folder, sorted. */
static const char *names_in(const char *folder)
{
    static char text[300];
    struct dirent **e;
    int n = scandir(folder, &e, NULL, alphasort);
    text[0] = 0;
    for (int i = 0; i < n; i++) {
        if (strcmp(e[i]->d_name, ".") != 0 && strcmp(e[i]->d_name, "..") != 0)
            snprintf(text + strlen(text), sizeof text - strlen(text), "%s%s", text[0] ? " " : "", e[i]->d_name);
        free(e[i]);
    }
    if (n >= 0)
        free(e);
    return text;
}

static void assert_holds(const char *path, unsigned first, unsigned count)
{
    kd_cache *c;
    must(fx_open(&c, path, &fx_err));
    assert_int_equal(kd_cache_images(c), count);
    assert_int_equal(kd_cache_view_total(c), count * FX_VIEWS);
    must(fx_compare_all(c, first, count, &fx_err));
    kd_cache_close(c);
}

/* Two folders hold the same shards, byte by byte. Manifests differ in their dates. Returns how many. */
static unsigned assert_same_shards(const char *a, const char *b)
{
    char name[32];
    unsigned n = 0;
    for (;; n++) {
        snprintf(name, sizeof name, "shard-%05u.kdc", n);
        assert_int_equal(kd_io_exists(in(a, name)), kd_io_exists(in(b, name)));
        if (!kd_io_exists(in(a, name)))
            return n;
        fx_assert_equal_files(in(a, name), in(b, name));
    }
}

/* ---- shards ---- */

static void paths_tell_files_from_folders(void **state)
{
    (void)state;
    must(kd_io_mkdirs(in(fx_dir, "folder.kdc"), &fx_err));
    assert_true(kd_shard_is_folder("photos"));
    assert_true(kd_shard_is_folder("photos/"));
    assert_true(kd_shard_is_folder("photos.kdc/"));
    assert_true(kd_shard_is_folder(in(fx_dir, "folder.kdc")));
    assert_true(kd_shard_is_folder(".kdc"));
    assert_false(kd_shard_is_folder("photos.kdc"));
    assert_false(kd_shard_is_folder("a/photos.kdc"));
}

static void a_full_shard_ends_between_two_images(void **state)
{
    kd_shard_place place = place_at(dest);
    size_t images = 0, shards;
    kd_cache *c;
    (void)state;
    make_at(&place, 0, IMAGES);
    assert_holds(dest, 0, IMAGES);
    must(fx_open(&c, dest, &fx_err));
    shards = kd_cache_shards(c);
    kd_cache_close(c);
    assert_in_range(shards, 4, IMAGES / 2);
    for (size_t i = 0; i < shards; i++) {
        char name[32];
        snprintf(name, sizeof name, "shard-%05zu.kdc", i);
        must(fx_open(&c, in(dest, name), &fx_err));
        images += kd_cache_images(c);
        assert_int_equal(kd_cache_view_total(c), kd_cache_images(c) * FX_VIEWS);
        kd_cache_close(c);
    }
    assert_int_equal(images, IMAGES);
}

/* As kd-precompute --fill may ask for them. */
static void views_of_an_image_stay_together_in_any_order(void **state)
{
    kd_shard_place place = {.path = dest, .shard_size = 1};
    kd_shard_writer *w;
    kd_cache *c;
    (void)state;
    must(open_at(&w, &place));
    for (unsigned i = 0; i < 3; i++) {
        add(w, i, 1);
        add(w, i, 0);
    }
    must(kd_shard_writer_seal(w, &fx_err));
    kd_shard_writer_close(w);
    must(fx_open(&c, dest, &fx_err));
    assert_int_equal(kd_cache_shards(c), 3);
    for (size_t i = 0; i < 3; i++) {
        assert_int_equal(kd_cache_image(c, i)->views, 2);
        assert_int_equal(kd_cache_image(c, i)->runs, 1);
    }
    kd_cache_close(c);
}

static void without_a_limit_there_is_one_shard(void **state)
{
    kd_shard_place place = {.path = dest};
    (void)state;
    make_at(&place, 0, IMAGES);
    assert_string_equal(names_in(dest), "shard-00000.kdc shard-00000.kdc.json");
}

/* Killed after any number of views, also in the middle of an image and of a transaction, and at the end of a shard. */
static void an_interrupted_run_makes_the_same_shards(void **state)
{
    char whole[200];
    kd_shard_place place = place_at(whole);
    (void)state;
    snprintf(whole, sizeof whole, "%s/whole", fx_dir);
    make_at(&place, 0, IMAGES);
    for (unsigned step = 2; step < IMAGES * FX_VIEWS; step += 1 + step / 3) {
        char command[300];
        unsigned added, rounds = 0;
        place.path = dest;
        do {
            kd_shard_writer *w;
            unsigned most = step - (rounds % 3 == 2); /* so that what is lost is not always the same */
            must(open_at(&w, &place));
            added = add_missing(w, 0, IMAGES, most);
            if (rounds++ % 3 != 2)
                must(kd_shard_writer_commit(w, &fx_err));
            kd_shard_writer_close(w);
            assert_true(rounds < 2 * IMAGES * FX_VIEWS);
        } while (added > 0);
        make_at(&place, 0, IMAGES);
        assert_true(assert_same_shards(whole, dest) >= 4);
        snprintf(command, sizeof command, "rm -rf '%s'", dest);
        assert_int_equal(system(command), 0);
    }
}

static void what_is_sealed_counts_as_stored(void **state)
{
    kd_shard_place place = {.path = dest};
    kd_shard_writer *w;
    kd_shard_totals t;
    (void)state;
    make_at(&place, 0, 3);
    make_at(&place, 0, 3); /* nothing to do: no new shard */
    assert_string_equal(names_in(dest), "shard-00000.kdc shard-00000.kdc.json");
    must(open_at(&w, &place));
    t = kd_shard_writer_totals(w);
    assert_int_equal(t.views, 3 * FX_VIEWS);
    assert_int_equal(t.shards, 1);
    assert_int_equal(add_missing(w, 0, 5, UINT32_MAX), 2 * FX_VIEWS);
    t = kd_shard_writer_totals(w);
    assert_int_equal(t.views, 5 * FX_VIEWS);
    assert_true(t.unfinished_bytes > 0);
    must(kd_shard_writer_seal(w, &fx_err));
    kd_shard_writer_close(w);
    assert_string_equal(names_in(dest), "shard-00000.kdc shard-00000.kdc.json shard-00001.kdc shard-00001.kdc.json");
    assert_holds(dest, 0, 5);
}

/* A first run with fewer views: the others go to new shards, interrupted or not. */
static void views_are_added_to_sealed_images(void **state)
{
    char whole[200];
    kd_shard_place place = place_at(whole);
    (void)state;
    snprintf(whole, sizeof whole, "%s/whole", fx_dir);
    for (int interrupted = 0; interrupted < 2; interrupted++) {
        kd_shard_writer *w;
        place.path = interrupted ? dest : whole;
        must(open_at(&w, &place));
        for (unsigned i = 0; i < IMAGES; i++)
            add(w, i, 0);
        must(kd_shard_writer_seal(w, &fx_err));
        kd_shard_writer_close(w);
        if (interrupted) {
            must(open_at(&w, &place));
            assert_int_equal(add_missing(w, 0, IMAGES, IMAGES / 2 + 1), IMAGES / 2 + 1);
            kd_shard_writer_close(w);
        }
        make_at(&place, 0, IMAGES);
        assert_holds(place.path, 0, IMAGES);
    }
    assert_true(assert_same_shards(whole, dest) >= 4);
}

/* A cache of one file becomes a folder by moving it into one. */
static void a_single_file_may_be_the_first_shard(void **state)
{
    kd_shard_place place = place_at(dest);
    (void)state;
    fx_make_cache(file, 0, 3);
    must(kd_io_mkdirs(dest, &fx_err));
    assert_int_equal(rename(file, in(dest, "photos.kdc")), 0);
    assert_int_equal(rename(in(fx_dir, "photos.kdc.json"), in(dest, "photos.kdc.json")), 0);
    make_at(&place, 0, 4);
    assert_string_equal(names_in(dest), "photos.kdc photos.kdc.json shard-00000.kdc shard-00000.kdc.json");
    assert_holds(dest, 0, 4);
}

static void a_removed_shard_is_made_again(void **state)
{
    char whole[200];
    kd_shard_place place = place_at(whole);
    (void)state;
    snprintf(whole, sizeof whole, "%s/whole", fx_dir);
    make_at(&place, 0, IMAGES);
    place.path = dest;
    make_at(&place, 0, IMAGES);
    unlink(in(dest, "shard-00001.kdc"));
    unlink(in(dest, "shard-00001.kdc.json"));
    make_at(&place, 0, IMAGES);
    assert_same_shards(whole, dest);
}

static void another_recipe_is_refused_by_field(void **state)
{
    kd_shard_place place = place_at(dest);
    kd_shard_writer *w;
    json_t *j = fx_recipe_json();
    kd_recipe r;
    (void)state;
    make_at(&place, 0, 3);
    json_object_set_new(j, "seed", json_integer(8));
    must(kd_recipe_from_json(&r, j, "another recipe", &fx_err));
    must_be(KD_EMISMATCH, kd_shard_writer_open(&w, &place, &r, NULL, &fx_err));
    assert_non_null(strstr(fx_err.msg, "seed"));
    place.part = 1;
    place.parts = 2;
    must_be(KD_EMISMATCH, kd_shard_writer_open(&w, &place, &r, NULL, &fx_err));
    kd_recipe_free(&r);
}

static void a_damaged_shard_is_refused(void **state)
{
    kd_shard_place place = place_at(dest);
    kd_shard_writer *w;
    (void)state;
    make_at(&place, 0, 3);
    assert_int_equal(chmod(in(dest, "shard-00000.kdc"), 0644), 0);
    assert_int_equal(truncate(in(dest, "shard-00000.kdc"), 5000), 0);
    must_be(KD_EDAMAGED, open_at(&w, &place));
}

static void a_run_killed_while_it_sealed_is_completed(void **state)
{
    kd_shard_place place = {.path = dest};
    (void)state;
    make_at(&place, 0, 3);
    unlink(in(dest, "shard-00000.kdc.json")); /* after the rename, before the manifest */
    make_at(&place, 0, 4);
    assert_string_equal(names_in(dest), "shard-00000.kdc shard-00000.kdc.json shard-00001.kdc shard-00001.kdc.json");
    assert_holds(dest, 0, 4);
    fx_write_file(in(dest, "shard-00000.kdc.partial.lock"), "", 0); /* before its lock was removed */
    make_at(&place, 0, 4);
    assert_string_equal(names_in(dest), "shard-00000.kdc shard-00000.kdc.json shard-00001.kdc shard-00001.kdc.json");
}

/* Killed before the first commit, and then there is nothing left to add. */
static void an_empty_unfinished_shard_goes_away(void **state)
{
    kd_shard_place place = {.path = dest};
    kd_shard_writer *w;
    (void)state;
    must(open_at(&w, &place));
    add_missing(w, 0, 1, 1);
    kd_shard_writer_close(w);
    assert_true(kd_io_exists(in(dest, "shard-00000.kdc.partial")));
    must(open_at(&w, &place));
    must(kd_shard_writer_seal(w, &fx_err));
    kd_shard_writer_close(w);
    assert_string_equal(names_in(dest), "");
}

static void a_run_that_adds_nothing_leaves_no_folder(void **state)
{
    kd_shard_place place = {.path = dest};
    (void)state;
    make_at(&place, 0, 0);
    assert_false(kd_io_exists(dest));
}

/* ---- parts ---- */

static void parts_write_side_by_side(void **state)
{
    kd_shard_place one = {.path = dest, .part = 1, .parts = 2}, two = {.path = dest, .part = 2, .parts = 2};
    kd_shard_writer *a, *b, *c;
    kd_hash128 id = fx_image_id(0);
    (void)state;
    must(open_at(&a, &one));
    must(open_at(&b, &two));
    must_be(KD_ELOCKED, open_at(&c, &one));
    assert_int_equal(add_missing(a, 0, 3, UINT32_MAX), 3 * FX_VIEWS);
    assert_int_equal(add_missing(b, 3, 2, UINT32_MAX), 2 * FX_VIEWS);
    must(kd_shard_writer_seal(a, &fx_err));
    must(kd_shard_writer_seal(b, &fx_err));
    kd_shard_writer_close(a);
    kd_shard_writer_close(b);
    assert_string_equal(names_in(dest), "part-00001-of-00002-00000.kdc part-00001-of-00002-00000.kdc.json part-00002-of-00002-00000.kdc part-00002-of-00002-00000.kdc.json");
    assert_holds(dest, 0, 5);
    /* A part knows its own shards, and not how far the others are; a run alone, or of another division, knows all. */
    must(open_at(&a, &one));
    assert_true(kd_shard_writer_has_view(a, &id, 0));
    kd_shard_writer_close(a);
    must(open_at(&b, &two));
    assert_false(kd_shard_writer_has_view(b, &id, 0));
    kd_shard_writer_close(b);
    one.parts = 3;
    must(open_at(&a, &one));
    assert_int_equal(kd_shard_writer_totals(a).views, 5 * FX_VIEWS);
    kd_shard_writer_close(a);
    one.part = one.parts = 1;
    must(open_at(&a, &one));
    assert_int_equal(kd_shard_writer_totals(a).views, 5 * FX_VIEWS);
    kd_shard_writer_close(a);
}

static void a_file_has_no_parts(void **state)
{
    kd_shard_place place = {.path = file, .part = 1, .parts = 2};
    kd_shard_writer *w;
    (void)state;
    must_be(KD_EUSAGE, open_at(&w, &place));
    assert_non_null(strstr(fx_err.msg, "folder"));
}

/* ---- one file ---- */

static void one_file_is_written_as_by_the_plain_writer(void **state)
{
    kd_shard_place place = place_at(file);
    kd_shard_writer *w;
    (void)state;
    make_at(&place, 0, 6); /* above the shard size: it doesn't count here */
    fx_make_cache(in(fx_dir, "plain.kdc"), 0, 6);
    fx_assert_equal_files(file, in(fx_dir, "plain.kdc"));
    must_be(KD_DONE, open_at(&w, &place));
    assert_null(w);
}

/* ---- a stage ---- */

/* The only folder in the stage. */
static const char *work_folder(void)
{
    return in(stage, names_in(stage));
}

static void shards_are_moved_from_the_stage(void **state)
{
    char whole[200];
    kd_shard_place place = place_at(whole);
    (void)state;
    snprintf(whole, sizeof whole, "%s/whole", fx_dir);
    make_at(&place, 0, IMAGES);
    place.path = dest;
    place.stage = stage;
    make_at(&place, 0, IMAGES);
    assert_true(assert_same_shards(whole, dest) >= 4);
    assert_string_equal(names_in(stage), "");
    assert_holds(dest, 0, IMAGES);
    make_at(&place, 0, IMAGES);
    assert_true(assert_same_shards(whole, dest) >= 4);
}

/* Each state that a kill can leave behind, made by hand. */
static void a_move_goes_on_where_it_was_killed(void **state)
{
    enum { NOT_BEGUN, LOCKED, PART_COPIED, NO_MANIFEST, NOT_REMOVED, MANIFEST_REMOVED, STATES };
    kd_shard_place place = {.path = dest, .stage = stage};
    (void)state;
    for (int s = 0; s < STATES; s++) {
        kd_shard_writer *w;
        char work[600], command[2000];
        must(open_at(&w, &place)); /* makes both folders */
        add_missing(w, 0, 1, 1);
        snprintf(work, sizeof work, "%s", work_folder());
        kd_shard_writer_close(w);
        unlink(in(work, "shard-00000.kdc.partial"));
        must(kd_io_mkdirs(dest, &fx_err));
        fx_make_cache(in(work, "shard-00000.kdc"), 0, 3);
        snprintf(command, sizeof command, "cd '%s'", work);
        if (s == PART_COPIED)
            snprintf(command, sizeof command, "head -c 9000 '%s/shard-00000.kdc' > '%s/.shard-00000.kdc.moving' && chmod 444 '%s/.shard-00000.kdc.moving'", work, dest, dest);
        if (s >= NO_MANIFEST)
            snprintf(command, sizeof command, "cp '%s/shard-00000.kdc' '%s'", work, dest);
        if (s >= NOT_REMOVED)
            snprintf(command, sizeof command, "cp '%s'/* '%s'", work, dest);
        assert_int_equal(system(command), 0);
        if (s == LOCKED)
            fx_write_file(in(work, "shard-00000.kdc.partial.lock"), "", 0);
        if (s == MANIFEST_REMOVED)
            unlink(in(work, "shard-00000.kdc.json"));
        must(open_at(&w, &place));
        assert_int_equal(kd_shard_writer_totals(w).views, 3 * FX_VIEWS);
        assert_int_equal(add_missing(w, 0, 3, UINT32_MAX), 0);
        must(kd_shard_writer_seal(w, &fx_err));
        kd_shard_writer_close(w);
        assert_string_equal(names_in(dest), "shard-00000.kdc shard-00000.kdc.json");
        assert_string_equal(names_in(stage), "");
        assert_holds(dest, 0, 3);
        remove_all();
    }
}

static void an_unfinished_shard_in_the_stage_is_resumed(void **state)
{
    kd_shard_place place = {.path = dest, .stage = stage};
    kd_shard_writer *w;
    (void)state;
    must(open_at(&w, &place));
    add_missing(w, 0, 3, 5);
    must(kd_shard_writer_commit(w, &fx_err));
    kd_shard_writer_close(w);
    assert_string_equal(names_in(dest), "");
    must(open_at(&w, &place));
    assert_int_equal(add_missing(w, 0, 3, UINT32_MAX), 3 * FX_VIEWS - 5);
    must(kd_shard_writer_seal(w, &fx_err));
    kd_shard_writer_close(w);
    assert_holds(dest, 0, 3);
}

/* A job that was put back in the queue goes on on another machine, whose stage knows nothing; the first machine's stage is settled when a job comes back to it. */
static void a_job_that_changes_machines_goes_on(void **state)
{
    char other[200];
    kd_shard_place place = {.path = dest, .stage = stage};
    kd_shard_writer *w;
    (void)state;
    snprintf(other, sizeof other, "%s/other", fx_dir);
    must(open_at(&w, &place));
    add_missing(w, 0, 3, 5);
    must(kd_shard_writer_commit(w, &fx_err));
    kd_shard_writer_close(w);
    place.stage = other;
    make_at(&place, 0, 3);
    place.stage = stage;
    make_at(&place, 0, 3);
    assert_string_equal(names_in(stage), "");
    assert_string_equal(names_in(dest), "shard-00000.kdc shard-00000.kdc.json");
    assert_holds(dest, 0, 3);
}

static void a_shard_damaged_in_the_stage_is_not_moved(void **state)
{
    kd_shard_place place = {.path = dest, .stage = stage};
    kd_shard_writer *w;
    char work[600];
    uint8_t *bytes;
    size_t size;
    (void)state;
    must(open_at(&w, &place));
    add_missing(w, 0, 1, 1);
    snprintf(work, sizeof work, "%s", work_folder());
    kd_shard_writer_close(w);
    unlink(in(work, "shard-00000.kdc.partial"));
    fx_make_cache(in(work, "shard-00000.kdc"), 0, 3);
    fx_read_file(in(work, "shard-00000.kdc"), &bytes, &size);
    bytes[size / 2] ^= 1;
    fx_write_file(in(work, "shard-00000.kdc"), bytes, size);
    kd_free(bytes);
    must_be(KD_EDAMAGED, open_at(&w, &place));
    assert_non_null(strstr(fx_err.msg, "SHA-256"));
    assert_string_equal(names_in(dest), "");
}

static void caches_that_share_a_stage_stay_apart(void **state)
{
    char second[200];
    kd_shard_place a = {.path = dest, .stage = stage}, b = {.path = second, .stage = stage};
    kd_shard_writer *w;
    (void)state;
    snprintf(second, sizeof second, "%s/second", fx_dir);
    must(open_at(&w, &a));
    add_missing(w, 0, 2, 3);
    must(kd_shard_writer_commit(w, &fx_err));
    kd_shard_writer_close(w);
    make_at(&b, 5, 2);
    assert_holds(second, 5, 2);
    make_at(&a, 0, 2);
    assert_holds(dest, 0, 2);
}

static void one_file_is_staged_too(void **state)
{
    kd_shard_place place = {.path = file, .stage = stage};
    kd_shard_writer *w;
    (void)state;
    make_at(&place, 0, 3);
    assert_string_equal(names_in(stage), "");
    assert_holds(file, 0, 3);
    must_be(KD_DONE, open_at(&w, &place));
}

static void an_unfinished_shard_beside_the_stage_is_refused(void **state)
{
    kd_shard_place place = {.path = dest};
    kd_shard_writer *w;
    (void)state;
    must(open_at(&w, &place));
    add_missing(w, 0, 1, 1);
    kd_shard_writer_close(w);
    place.stage = stage;
    must_be(KD_EUSAGE, open_at(&w, &place));
    assert_non_null(strstr(fx_err.msg, "shard-00000.kdc.partial"));
}

/* ---- network file systems ---- */

static void a_network_file_system_needs_a_stage_or_force(void **state)
{
    char net[200];
    kd_shard_place place = {.path = net};
    kd_shard_writer *w;
    (void)state;
    snprintf(net, sizeof net, "%s/net/photos", fx_dir);
    must(kd_io_mkdirs(in(fx_dir, "net"), &fx_err));
    must_be(KD_EUSAGE, open_at(&w, &place));
    assert_non_null(strstr(fx_err.msg, "NFS"));
    assert_non_null(strstr(fx_err.msg, "--stage"));
    assert_non_null(strstr(fx_err.msg, "--force"));
    assert_false(kd_io_exists(net));
    place.stage = in(fx_dir, "net/stage");
    must_be(KD_EUSAGE, open_at(&w, &place));
    place.stage = stage;
    make_at(&place, 0, 3);
    assert_holds(net, 0, 3);
    place.stage = NULL;
    place.force = 1;
    make_at(&place, 0, 4);
    assert_holds(net, 0, 4);
    snprintf(net, sizeof net, "%s/net/one.kdc", fx_dir);
    make_at(&place, 0, 2);
    place.force = 0;
    must_be(KD_DONE, open_at(&w, &place)); /* it is finished: nothing will be written */
    snprintf(net, sizeof net, "%s/net/two.kdc", fx_dir);
    must_be(KD_EUSAGE, open_at(&w, &place));
}

int main(void)
{
#define T(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
    const struct CMUnitTest tests[] = {
        T(paths_tell_files_from_folders),
        T(a_full_shard_ends_between_two_images),
        T(views_of_an_image_stay_together_in_any_order),
        T(without_a_limit_there_is_one_shard),
        T(an_interrupted_run_makes_the_same_shards),
        T(what_is_sealed_counts_as_stored),
        T(views_are_added_to_sealed_images),
        T(a_single_file_may_be_the_first_shard),
        T(a_removed_shard_is_made_again),
        T(another_recipe_is_refused_by_field),
        T(a_damaged_shard_is_refused),
        T(a_run_killed_while_it_sealed_is_completed),
        T(an_empty_unfinished_shard_goes_away),
        T(a_run_that_adds_nothing_leaves_no_folder),
        T(parts_write_side_by_side),
        T(a_file_has_no_parts),
        T(one_file_is_written_as_by_the_plain_writer),
        T(shards_are_moved_from_the_stage),
        T(a_move_goes_on_where_it_was_killed),
        T(an_unfinished_shard_in_the_stage_is_resumed),
        T(a_job_that_changes_machines_goes_on),
        T(a_shard_damaged_in_the_stage_is_not_moved),
        T(caches_that_share_a_stage_stay_apart),
        T(one_file_is_staged_too),
        T(an_unfinished_shard_beside_the_stage_is_refused),
        T(a_network_file_system_needs_a_stage_or_force),
    };
    return cmocka_run_group_tests_name("shard_writer", tests, NULL, NULL);
}

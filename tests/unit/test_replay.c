/* Replay: the pixels that a student gets are the teacher's, whatever happened to the folder; everything else stops with a sentence that says what happened. */
#include "tests/tar_file.h"
#include "tests/unit/train_fixture.h"

#include "train/replay.h"

static kd_err err;
static char *folder; /* with pictures/ and x.kdc */

enum { IMAGES = 10, VIEWS = 3 };

static char *at(const char *name) {
    static char path[8][4300];
    static int next;
    next = (next + 1) % 8;
    snprintf(path[next], sizeof path[next], "%s/%s", folder, name);
    return path[next];
}

static int fresh(void **state) {
    (void)state;
    folder = unit_folder();
    tf_pictures(at("pictures"), IMAGES);
    return 0;
}
static int drop(void **state) {
    (void)state;
    free(folder);
    return 0;
}

static kd_replay_options options(kd_cache *c) {
    kd_replay_options o = {.source = {.cache = c}, .images = at("pictures"), .threads = 2, .student_h = TF_H, .student_w = TF_W, .targets = 1, .view_memory = 1 << 20, .ahead = 4};
    assert_ok(kd_replay_target_of(&o.target[0], &(kd_source){.cache = c}, KD_FEATURE_CLS, 1, &err));
    o.targets += kd_recipe_has(kd_cache_recipe(c), KD_FEATURE_PATCH);
    if (o.targets > 1)
        assert_ok(kd_replay_target_of(&o.target[1], &(kd_source){.cache = c}, KD_FEATURE_PATCH, 1, &err));
    return o;
}

/* All views in order. */
static size_t all_items(const kd_replay *r, kd_replay_item *items) {
    size_t n = 0;
    for (size_t i = 0; i < kd_replay_images(r); i++)
        for (uint32_t v = 0; v < kd_replay_image(r, i)->views; v++)
            items[n++] = (kd_replay_item){.image = (uint32_t)i, .view = v};
    return n;
}

/* Runs a pass and copies what arrives; returns the first error. */
static kd_status pass(kd_replay *r, uint8_t *pixels, float *targets, size_t bytes) {
    kd_replay_item items[IMAGES * VIEWS];
    size_t n = all_items(r, items);
    kd_sample s;
    kd_status status;
    assert_ok(kd_replay_begin(r, items, n, &err));
    for (size_t i = 0; (status = kd_replay_next(r, &s, &err)) == KD_OK; i++) {
        assert_true(i < n);
        if (pixels != NULL)
            memcpy(pixels + i * bytes, s.pixels, bytes);
        if (targets != NULL) {
            float *t = targets + i * (1 + TF_ROWS) * TF_WIDTH;
            memcpy(t, s.target[0], TF_WIDTH * sizeof *t);
            memcpy(t + TF_WIDTH, s.target[1], TF_ROWS * TF_WIDTH * sizeof *t);
        }
        kd_replay_release(r, &s);
    }
    kd_replay_end(r);
    return status;
}

static void views_and_targets_are_what_the_cache_was_made_from(void **state) {
    (void)state;
    kd_cache *c = tf_cache(at("x.kdc"), at("pictures"), IMAGES, VIEWS, 1, NULL);
    static uint8_t pixels[IMAGES * VIEWS * TF_PIXELS];
    static float targets[IMAGES * VIEWS * (1 + TF_ROWS) * TF_WIDTH];
    kd_replay_options o = options(c);
    kd_replay *r;
    kd_reader *reader;
    assert_ok(kd_replay_create(&r, &o, &err));
    assert_int_equal(kd_replay_images(r), IMAGES);
    assert_int_equal(pass(r, pixels, targets, TF_PIXELS), KD_DONE);
    assert_ok(kd_reader_create(&reader, c, &err));
    size_t k = 0;
    for (size_t i = 0; i < IMAGES; i++)
        for (uint32_t v = 0; v < VIEWS; v++, k++) {
            kd_view_entry e;
            float x[TF_ROWS * TF_WIDTH];
            const kd_hash128 *id = &kd_replay_image(r, i)->image;
            assert_ok(kd_reader_view(reader, id, v, &e, &err));
            kd_hash128 h = kd_view_hash(pixels + k * TF_PIXELS, TF_W, TF_H);
            assert_memory_equal(h.b, e.view_hash.b, 16);
            for (int f = KD_FEATURE_CLS; f <= KD_FEATURE_PATCH; f++) {
                float std, *got = targets + k * (1 + TF_ROWS) * TF_WIDTH + (f == KD_FEATURE_CLS ? 0 : TF_WIDTH);
                const float *mean;
                assert_ok(kd_cache_mean(c, (kd_feature)f, 1, &mean, &std, &err));
                size_t n = f == KD_FEATURE_CLS ? TF_WIDTH : TF_ROWS * TF_WIDTH;
                tf_features(x, id, v, (kd_feature)f, 1, n);
                for (size_t j = 0; j < n; j++)
                    assert_true(fabsf(got[j] - (x[j] - mean[j % TF_WIDTH]) / std) < 1e-5f);
            }
        }
    kd_reader_destroy(reader);
    kd_replay_destroy(r);
    kd_cache_close(c);
}

static void threads_and_view_memory_change_no_bit(void **state) {
    (void)state;
    kd_cache *c = tf_cache(at("x.kdc"), at("pictures"), IMAGES, VIEWS, 1, NULL);
    enum { H = 12, W = 16, BYTES = H * W * 3 };
    static uint8_t want[IMAGES * VIEWS * BYTES], got[sizeof want];
    static float want_t[IMAGES * VIEWS * (1 + TF_ROWS) * TF_WIDTH], got_t[sizeof want_t / sizeof *want_t];
    for (int k = 0; k < 4; k++) {
        kd_replay_options o = options(c);
        kd_replay *r;
        o.student_h = H;
        o.student_w = W;
        o.threads = k % 2 == 0 ? 1 : 3;
        o.view_memory = k < 2 ? 0 : 5 * BYTES; /* room for five views */
        assert_ok(kd_replay_create(&r, &o, &err));
        for (int again = 0; again < 2; again++) {
            assert_int_equal(pass(r, got, got_t, BYTES), KD_DONE);
            if (k == 0 && again == 0) {
                memcpy(want, got, sizeof want);
                memcpy(want_t, got_t, sizeof want_t);
            }
            assert_memory_equal(want, got, sizeof want);
            assert_memory_equal(want_t, got_t, sizeof want_t);
        }
        assert_int_equal(kd_replay_decoded(r), 2 * IMAGES * VIEWS - (k < 2 ? 0 : 5));
        kd_replay_destroy(r);
    }
    kd_cache_close(c);
}

static void a_pass_can_be_left_in_the_middle(void **state) {
    (void)state;
    kd_cache *c = tf_cache(at("x.kdc"), at("pictures"), IMAGES, VIEWS, 1, NULL);
    kd_replay_options o = options(c);
    kd_replay *r;
    kd_sample s;
    kd_replay_item items[IMAGES * VIEWS];
    assert_ok(kd_replay_create(&r, &o, &err));
    size_t n = all_items(r, items);
    assert_ok(kd_replay_begin(r, items, n, &err));
    assert_ok(kd_replay_next(r, &s, &err));
    kd_replay_end(r);
    assert_int_equal(pass(r, NULL, NULL, TF_PIXELS), KD_DONE);
    kd_replay_destroy(r);
    kd_cache_close(c);
}

static void moved_files_are_found_by_content_and_others_ignored(void **state) {
    (void)state;
    kd_cache *c = tf_cache(at("x.kdc"), at("pictures"), IMAGES, VIEWS, 1, NULL);
    kd_replay_options o = options(c);
    kd_replay *r;
    assert_ok(kd_io_mkdirs(at("pictures/deep/er"), &err));
    assert_int_equal(rename(at("pictures/003.jpg"), at("pictures/deep/er/other name.jpg")), 0);
    tf_draw(at("pictures/extra.jpg"), 77);
    assert_ok(kd_replay_create(&r, &o, &err));
    assert_int_equal(kd_replay_images(r), IMAGES);
    assert_int_equal(kd_replay_missing(r), 0);
    assert_int_equal(kd_replay_extra(r), 1);
    assert_int_equal(pass(r, NULL, NULL, TF_PIXELS), KD_DONE);
    kd_replay_destroy(r);
    kd_cache_close(c);
}

static void swapped_files_of_equal_size_are_found_out_and_found_again(void **state) {
    (void)state;
    uint8_t *a, *b;
    size_t na, nb;
    /* Two different pictures, padded to one size: path and size of both fit, content doesn't. Bytes after a JPEG's end are ignored. */
    assert_ok(kd_io_read_all(at("pictures/000.jpg"), 1 << 20, &a, &na, &err));
    assert_ok(kd_io_read_all(at("pictures/001.jpg"), 1 << 20, &b, &nb, &err));
    size_t n = (na > nb ? na : nb) + 7;
    a = kd_realloc(a, n);
    b = kd_realloc(b, n);
    memset(a + na, 1, n - na);
    memset(b + nb, 2, n - nb);
    unit_write(at("pictures/000.jpg"), a, n);
    unit_write(at("pictures/001.jpg"), b, n);
    kd_cache *c = tf_cache(at("x.kdc"), at("pictures"), IMAGES, VIEWS, 1, NULL);
    static uint8_t want[IMAGES * VIEWS * TF_PIXELS], got[sizeof want];
    kd_replay_options o = options(c);
    kd_replay *r;
    assert_ok(kd_replay_create(&r, &o, &err));
    assert_int_equal(pass(r, want, NULL, TF_PIXELS), KD_DONE);
    kd_replay_destroy(r);
    unit_write(at("pictures/000.jpg"), b, n);
    unit_write(at("pictures/001.jpg"), a, n);
    assert_ok(kd_replay_create(&r, &o, &err));
    assert_int_equal(pass(r, got, NULL, TF_PIXELS), KD_DONE);
    assert_memory_equal(want, got, sizeof want);
    kd_replay_destroy(r);
    kd_cache_close(c);
    kd_free(a);
    kd_free(b);
}

/* err says "image ID, view V: the view's hash is H and the teacher saw T" with this image's id, and the T of that view in the cache, which isn't H. */
static void assert_names_a_view_of(kd_cache *c, const char *rel) {
    kd_reader *reader;
    kd_view_entry v;
    size_t i = 0;
    char text[200], id[33], hash[33];
    const char *at, *have;
    while (strcmp(kd_cache_image(c, i)->rel, rel) != 0)
        i++;
    const kd_image_entry *e = kd_cache_image(c, i);
    kd_hex(id, e->image.b, 16);
    snprintf(text, sizeof text, "image %s, view ", id);
    assert_non_null(at = strstr(err.msg, text));
    unsigned long view = strtoul(at + strlen(text), NULL, 10);
    assert_true(view < e->views);
    assert_ok(kd_reader_create(&reader, c, &err));
    kd_err sentence = err;
    assert_ok(kd_reader_view(reader, &e->image, (uint32_t)view, &v, &err));
    kd_reader_destroy(reader);
    kd_hex(hash, v.view_hash.b, 16);
    snprintf(text, sizeof text, " and the teacher saw %s", hash);
    assert_contains(sentence.msg, text);
    assert_non_null(have = strstr(sentence.msg, "the view's hash is "));
    have += strlen("the view's hash is ");
    assert_int_equal(strspn(have, "0123456789abcdef"), 32);
    assert_memory_not_equal(have, hash, 32);
}

static void a_changed_image_stops_the_pass_naming_it(void **state) {
    (void)state;
    uint8_t *bytes;
    size_t size;
    kd_cache *c = tf_cache(at("x.kdc"), at("pictures"), IMAGES, VIEWS, 1, NULL);
    kd_replay *r;
    assert_ok(kd_io_read_all(at("pictures/004.jpg"), 1 << 20, &bytes, &size, &err));
    uint8_t *other = NULL; /* another picture, padded to the recorded size: bytes after a JPEG's end are ignored */
    size_t other_size = size + 1;
    for (int i = 40; other_size > size; i++) {
        kd_free(other);
        tf_draw(at("pictures/004.jpg"), i);
        assert_ok(kd_io_read_all(at("pictures/004.jpg"), 1 << 20, &other, &other_size, &err));
    }
    other = kd_realloc(other, size);
    memset(other + other_size, 0, size - other_size);
    unit_write(at("pictures/004.jpg"), other, size);
    kd_replay_options o = options(c);
    assert_ok(kd_replay_create(&r, &o, &err)); /* path and size fit */
    assert_int_equal(pass(r, NULL, NULL, TF_PIXELS), KD_EMISMATCH);
    assert_contains(err.msg, "004.jpg");
    assert_contains(err.msg, "the file was changed");
    assert_names_a_view_of(c, "004.jpg");
    kd_replay_destroy(r);
    kd_free(other);
    kd_free(bytes);
    kd_cache_close(c);
}

static void a_missing_image_is_refused_or_left_out(void **state) {
    (void)state;
    kd_cache *c = tf_cache(at("x.kdc"), at("pictures"), IMAGES, VIEWS, 1, NULL);
    kd_replay_options o = options(c);
    kd_replay *r;
    unlink(at("pictures/002.jpg"));
    assert_int_equal(kd_replay_create(&r, &o, &err), KD_EMISMATCH);
    assert_contains(err.msg, "of the cache's 10 images 9 at their recorded paths, 1 missing (first: 002.jpg)");
    assert_contains(err.msg, "002.jpg");
    assert_contains(err.msg, "--allow-missing");
    o.allow_missing = 1;
    assert_ok(kd_replay_create(&r, &o, &err));
    assert_int_equal(kd_replay_images(r), IMAGES - 1);
    assert_int_equal(kd_replay_missing(r), 1);
    assert_int_equal(pass(r, NULL, NULL, TF_PIXELS), KD_DONE);
    kd_replay_destroy(r);
    kd_cache_close(c);
}

static void moved_changed_and_missing_images_are_told_apart(void **state) {
    (void)state;
    kd_cache *c = tf_cache(at("x.kdc"), at("pictures"), IMAGES, VIEWS, 1, NULL);
    kd_replay_options o = options(c);
    kd_replay *r;
    char from[4300];
    snprintf(from, sizeof from, "%s", at("pictures/001.jpg"));
    assert_int_equal(rename(from, at("pictures/renamed.jpg")), 0);
    unlink(at("pictures/002.jpg"));
    unit_write(at("pictures/003.jpg"), "not that picture any more", 25);
    assert_int_equal(kd_replay_create(&r, &o, &err), KD_EMISMATCH);
    assert_contains(err.msg, "of the cache's 10 images 7 at their recorded paths, 1 moved or renamed, 1 changed (first: 003.jpg), 1 missing (first: 002.jpg)");
    assert_contains(err.msg, "--allow-missing");
    o.allow_missing = 1;
    assert_ok(kd_replay_create(&r, &o, &err));
    assert_int_equal(kd_replay_images(r), IMAGES - 2);
    assert_int_equal(kd_replay_missing(r), 2);
    assert_int_equal(pass(r, NULL, NULL, TF_PIXELS), KD_DONE);
    kd_replay_destroy(r);
    for (int i = 0; i < IMAGES; i++) {
        char name[40];
        snprintf(name, sizeof name, "pictures/%03d.jpg", i);
        unit_write(at(name), name, strlen(name));
    }
    unlink(at("pictures/renamed.jpg"));
    o = options(c);
    assert_int_equal(kd_replay_create(&r, &o, &err), KD_EMISMATCH);
    assert_contains(err.msg, "none of the cache's 10 images is there as it was: 10 changed (first: ");
    kd_cache_close(c);
}

static void images_are_replayed_from_a_tar(void **state) {
    (void)state;
    kd_cache *c = tf_cache(at("x.kdc"), at("pictures"), IMAGES, VIEWS, 1, NULL);
    static uint8_t want[IMAGES * VIEWS * TF_PIXELS], got[sizeof want];
    kd_replay_options o = options(c);
    kd_replay *r;
    tar_file t = {0};
    assert_ok(kd_replay_create(&r, &o, &err));
    assert_int_equal(pass(r, want, NULL, TF_PIXELS), KD_DONE);
    kd_replay_destroy(r);
    for (int i = IMAGES - 1; i >= 0; i--) {
        char name[40];
        uint8_t *bytes;
        size_t size;
        snprintf(name, sizeof name, "pictures/%03d.jpg", i);
        assert_ok(kd_io_read_all(at(name), 1 << 20, &bytes, &size, &err));
        snprintf(name, sizeof name, "./%06d.jpg", IMAGES - i);
        tar_add(&t, name, bytes, size);
        tar_add(&t, "label.cls", "1", 1);
        kd_free(bytes);
    }
    tar_end(&t);
    unit_write(at("all.tar"), t.bytes, t.size);
    o.images = at("all.tar");
    assert_ok(kd_replay_create(&r, &o, &err));
    assert_int_equal(pass(r, got, NULL, TF_PIXELS), KD_DONE);
    assert_memory_equal(want, got, sizeof want);
    kd_replay_destroy(r);
    /* A picture that is damaged inside the tar is named there. */
    memset(t.bytes + t.size - 4096, 7, 1024);
    unit_write(at("all.tar"), t.bytes, t.size);
    assert_int_equal(kd_replay_create(&r, &o, &err), KD_EMISMATCH);
    assert_contains(err.msg, "9 moved or renamed, 1 missing");
    tar_free(&t);
    kd_cache_close(c);
}

static void a_wrong_folder_is_said_to_be_one(void **state) {
    (void)state;
    kd_cache *c = tf_cache(at("x.kdc"), at("pictures"), IMAGES, VIEWS, 1, NULL);
    kd_replay_options o = options(c);
    kd_replay *r;
    assert_ok(kd_io_mkdirs(at("elsewhere"), &err));
    tf_draw(at("elsewhere/a.jpg"), 99);
    o.images = at("elsewhere");
    o.allow_missing = 1;
    assert_int_equal(kd_replay_create(&r, &o, &err), KD_EMISMATCH);
    assert_contains(err.msg, "another folder");
    assert_contains(err.msg, "re-encoded");
    kd_cache_close(c);
}

static void an_image_that_vanishes_later_stops_the_pass(void **state) {
    (void)state;
    kd_cache *c = tf_cache(at("x.kdc"), at("pictures"), IMAGES, VIEWS, 1, NULL);
    kd_replay_options o = options(c);
    kd_replay *r;
    assert_ok(kd_replay_create(&r, &o, &err));
    unlink(at("pictures/006.jpg"));
    assert_int_equal(pass(r, NULL, NULL, TF_PIXELS), KD_EFAIL);
    assert_contains(err.msg, "006.jpg");
    kd_replay_destroy(r);
    kd_cache_close(c);
}

static void another_decoder_is_refused_by_name(void **state) {
    (void)state;
    kd_cache *c = tf_cache(at("x.kdc"), at("pictures"), IMAGES, VIEWS, 1, "000102030405060708090a0b0c0d0e0f");
    kd_replay_options o = options(c);
    kd_replay *r;
    assert_int_equal(kd_replay_create(&r, &o, &err), KD_EMISMATCH);
    assert_contains(err.msg, "decoder");
    kd_cache_close(c);
}

static void a_cache_of_cls_alone_serves_cls_alone(void **state) {
    (void)state;
    kd_cache *c = tf_cache(at("x.kdc"), at("pictures"), IMAGES, VIEWS, 0, NULL);
    kd_replay_options o = options(c);
    kd_replay *r;
    assert_int_equal(kd_replay_target_of(&o.target[1], &(kd_source){.cache = c}, KD_FEATURE_PATCH, 1, &err), KD_EUSAGE);
    assert_contains(err.msg, "--patch-weight 0");
    assert_ok(kd_replay_create(&r, &o, &err));
    assert_int_equal(pass(r, NULL, NULL, TF_PIXELS), KD_DONE);
    kd_replay_destroy(r);
    kd_cache_close(c);
}

static void a_student_size_above_the_view_is_refused(void **state) {
    (void)state;
    kd_cache *c = tf_cache(at("x.kdc"), at("pictures"), IMAGES, VIEWS, 1, NULL);
    kd_replay_options o = options(c);
    kd_replay *r;
    o.student_h = TF_H + 1; /* although it is less than TF_W */
    assert_int_equal(kd_replay_create(&r, &o, &err), KD_EUSAGE);
    assert_contains(err.msg, "25x40");
    o = options(c);
    o.student_w = TF_W + 1;
    assert_int_equal(kd_replay_create(&r, &o, &err), KD_EUSAGE);
    assert_contains(err.msg, "measure 24x40");
    kd_cache_close(c);
}

#define T(name) cmocka_unit_test_setup_teardown(name, fresh, drop)

int main(void) {
    const struct CMUnitTest tests[] = {
        T(views_and_targets_are_what_the_cache_was_made_from),
        T(threads_and_view_memory_change_no_bit),
        T(a_pass_can_be_left_in_the_middle),
        T(moved_files_are_found_by_content_and_others_ignored),
        T(swapped_files_of_equal_size_are_found_out_and_found_again),
        T(a_changed_image_stops_the_pass_naming_it),
        T(a_missing_image_is_refused_or_left_out),
        T(moved_changed_and_missing_images_are_told_apart),
        T(images_are_replayed_from_a_tar),
        T(a_wrong_folder_is_said_to_be_one),
        T(an_image_that_vanishes_later_stops_the_pass),
        T(another_decoder_is_refused_by_name),
        T(a_cache_of_cls_alone_serves_cls_alone),
        T(a_student_size_above_the_view_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

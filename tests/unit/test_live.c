/* A live teacher beside a cache that kd-precompute makes with the same options: the same images, the same pixels, targets that differ by the codec's rounding and by nothing else, the same statistics; fed into a
 * replay; and what is refused. */
#include "tests/unit/train_fixture.h"

#include "common/weights/weights.h"
#include "precompute/config.h"
#include "precompute/run.h"
#include "train/live_config.h"
#include "train/live_stats.h"
#include "train/replay.h"

static kd_err err;
static kd_arena *arena;
static kd_backend *backend;
static char *folder; /* with pictures/ */

#define TEACHER "tests/golden/models/tiny_dinov2.pth"
enum { IMAGES = 6, VIEWS = 3, ALL = IMAGES * VIEWS, H = 28, W = 42, BATCH = 4, WIDEST = 1 << 14 };

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
    arena = kd_arena_create();
    tf_pictures(at("pictures"), IMAGES);
    return kd_backend_open(&backend, "ref", 1, &err) == KD_OK ? 0 : -1;
}
static int drop(void **state) {
    (void)state;
    kd_backend_close(backend);
    kd_arena_destroy(arena);
    free(folder);
    return 0;
}

/* ---- both, from the same options ---- */

static kd_cache *make_cache(const char *store, const char *augment) {
    kd_precompute_config c = {0};
    kd_cache *cache;
    const char *path = at("x.kdc");
    char *argv[] = {"kd-precompute", "--images",  at("pictures"),  "--weights", TEACHER, "--cache",  kd_arena_strdup(arena, path), "--views",  "3",
                    "--seed",        "7",         "--image-size",  "28x42",     "--layers", "1,2",    "--features", "cls,patch,mean", "--patch-target", "full,adjoint:2",
                    "--store",       kd_arena_strdup(arena, store), "--augment", kd_arena_strdup(arena, augment), "--batch-size", "4", "--threads", "2", "--device", "ref", "-q"};
    int json;
    assert_ok(kd_options_parse(&kd_precompute_program, &c, (int)(sizeof argv / sizeof *argv), argv, &json, arena, &err));
    assert_ok(kd_precompute_run(&c, &err));
    assert_ok(kd_cache_open(&cache, &path, 1, &err));
    return cache;
}

static const kd_target forms[] = {{.kind = KD_TARGET_FULL}, {KD_TARGET_ADJOINT, 2, 2}};

static kd_live_options options(const char *augment, int threads) {
    return (kd_live_options){.weights = TEACHER, .teacher = "auto", .images = at("pictures"), .augment = augment, .exif = "ignore", .image_h = H, .image_w = W, .seed = 7, .views = VIEWS,
                             .selection = {"cls,patch,mean", "1,2", "on", "off"}, .target = forms, .targets = 2, .batch = BATCH, .precision = KD_F32, .threads = threads};
}

static kd_live *open_live(const char *augment, int threads) {
    kd_live_options o = options(augment, threads);
    kd_live *l;
    assert_ok(kd_live_open(&l, &o, &err));
    assert_ok(kd_live_start(l, backend, &err));
    return l;
}

static const char *const augmentations[] = {"lightly", "dino", "lightly+mixup"};

static void views_are_those_of_the_cache_byte_for_byte(void **state) {
    (void)state;
    for (size_t k = 0; k < sizeof augmentations / sizeof *augmentations; k++) {
        kd_cache *c = make_cache("f16", augmentations[k]);
        kd_live *l = open_live(augmentations[k], 1);
        kd_reader *reader;
        assert_ok(kd_reader_create(&reader, c, &err));
        assert_int_equal(kd_live_images(l), IMAGES);
        assert_int_equal(kd_cache_images(c), IMAGES);
        for (size_t i = 0; i < IMAGES; i++) {
            const kd_image_entry *a = kd_cache_image(c, i), *b = kd_live_image(l, i);
            assert_memory_equal(&a->image, &b->image, sizeof a->image);
            assert_string_equal(a->rel, b->rel);
            assert_int_equal(a->file_size, b->file_size);
            assert_int_equal(b->views, VIEWS);
            for (uint32_t v = 0; v < VIEWS; v++) {
                kd_view_entry want;
                kd_image picture;
                kd_hash128 hash, own;
                assert_ok(kd_reader_view(reader, &a->image, v, &want, &err));
                assert_ok(kd_live_view(l, 0, i, kd_image_view(b, v), &picture, &hash, &err));
                own = kd_view_hash(picture.rgb, picture.width, picture.height);
                assert_memory_equal(&hash, &want.view_hash, sizeof hash);
                assert_memory_equal(&own, &want.view_hash, sizeof own);
            }
        }
        kd_reader_destroy(reader);
        kd_live_close(l);
        kd_cache_close(c);
        assert_int_equal(unlink(at("x.kdc")), 0);
    }
}

/* Everything but the element type. */
static void the_recipe_is_that_of_the_cache(void **state) {
    (void)state;
    kd_cache *c = make_cache("i8", "lightly");
    kd_live *l = open_live("lightly", 1);
    json_t *a = json_deep_copy(kd_cache_recipe(c)->json), *b = json_deep_copy(kd_live_recipe(l)->json);
    assert_int_equal(kd_live_recipe(l)->dtype, KD_F32);
    assert_true(memcmp(&kd_cache_recipe(c)->sha, &kd_live_recipe(l)->sha, sizeof(kd_sha256)) != 0);
    json_object_del(a, "store");
    json_object_del(b, "store");
    assert_true(json_equal(a, b));
    json_decref(a);
    json_decref(b);
    kd_recipe r; /* and no cache can have it */
    assert_int_equal(kd_recipe_from_json(&r, json_deep_copy(kd_live_recipe(l)->json), "x", &err), KD_EDAMAGED);
    assert_contains(err.msg, "\"f32\"");
    kd_live_close(l);
    kd_cache_close(c);
}

/* ---- targets ---- */

/* Runs the teacher over views first .. first + count - 1 in key order. */
static void run_views(kd_live *l, size_t first, int count) {
    static uint8_t pixels[BATCH * H * W * 3];
    for (size_t k = 0; k < (size_t)count; k++) {
        kd_image picture;
        assert_ok(kd_live_view(l, 0, (first + k) / VIEWS, (uint32_t)((first + k) % VIEWS), &picture, NULL, &err));
        memcpy(pixels + k * H * W * 3, picture.rgb, H * W * 3);
    }
    assert_ok(kd_live_run(l, pixels, count, &err));
}

typedef struct difference {
    double err2, xx;
} difference;

/* What the cache has of the views that were run, against what the teacher gives. */
static void compare(kd_live *l, kd_cache *c, kd_reader *reader, size_t first, int count, kd_feature f, uint16_t layer, difference *d) {
    static float live[WIDEST], stored[WIDEST];
    double square[BATCH];
    const kd_recipe *r = kd_cache_recipe(c);
    size_t values = kd_recipe_rows(r, f) * (size_t)r->width;
    assert_true(values * BATCH <= WIDEST);
    assert_ok(kd_live_target(l, f, layer, count, live, square, &err));
    for (size_t k = 0; k < (size_t)count; k++) {
        kd_record_facts facts;
        assert_ok(kd_reader_feature(reader, f, &kd_cache_image(c, (first + k) / VIEWS)->image, (uint32_t)((first + k) % VIEWS), layer, stored, &facts, &err));
        assert_true(square[k] == facts.square);
        for (size_t i = 0; i < values; i++) {
            double x = (double)live[k * values + i], q = (double)stored[i];
            d->xx += x * x;
            d->err2 += (x - q) * (x - q);
        }
    }
}

static double stated(kd_cache *c, kd_feature f, uint16_t layer) {
    char key[8];
    snprintf(key, sizeof key, "%u", layer);
    json_t *of = json_object_get(json_object_get(json_object_get(kd_cache_shard_manifest(c, 0), "fidelity"), kd_feature_name(f)), key);
    return json_real_value(json_object_get(of, "relative_l2"));
}

/* The rounding of the codec, as it was measured while the cache was written, is the whole difference. */
static void targets_differ_by_the_stated_fidelity(void **state) {
    (void)state;
    static const char *const stores[] = {"f16", "i8"};
    for (int s = 0; s < 2; s++) {
        kd_cache *c = make_cache(stores[s], "lightly");
        kd_live *l = open_live("lightly", 1);
        kd_reader *reader;
        difference d[KD_FEATURES][2] = {{{0}}};
        assert_ok(kd_reader_create(&reader, c, &err));
        for (size_t first = 0; first < ALL; first += BATCH) { /* the last batch is padded */
            int count = ALL - first < BATCH ? (int)(ALL - first) : BATCH;
            run_views(l, first, count);
            for (kd_feature f = 0; f < KD_FEATURES; f++)
                for (uint16_t layer = 1; layer <= 2 && kd_recipe_has(kd_cache_recipe(c), f); layer++)
                    compare(l, c, reader, first, count, f, layer, &d[f][layer - 1]);
        }
        for (kd_feature f = 0; f < KD_FEATURES; f++)
            for (uint16_t layer = 1; layer <= 2 && kd_recipe_has(kd_cache_recipe(c), f); layer++) {
                double got = sqrt(d[f][layer - 1].err2 / d[f][layer - 1].xx), want = stated(c, f, layer);
                if (!(want > 0 && fabs(got - want) <= 1e-4 * want))
                    fail_msg("%s of layer %u in %s: relative difference %g, the cache states %g", kd_feature_name(f), layer, stores[s], got, want);
            }
        kd_reader_destroy(reader);
        kd_live_close(l);
        kd_cache_close(c);
        assert_int_equal(unlink(at("x.kdc")), 0);
    }
}

static void statistics_are_those_of_the_seal(void **state) {
    (void)state;
    kd_cache *c = make_cache("f16", "lightly");
    kd_live *l = open_live("lightly", 2);
    for (kd_feature f = 0; f < KD_FEATURES; f++)
        for (uint16_t layer = 1; layer <= 2 && kd_recipe_has(kd_cache_recipe(c), f); layer++) {
            const float *want, *got;
            float want_std, got_std;
            assert_ok(kd_cache_mean(c, f, layer, &want, &want_std, &err));
            assert_ok(kd_live_mean(l, f, layer, &got, &got_std, &err));
            assert_true(fabsf(got_std - want_std) <= 1e-3f * want_std);
            for (int i = 0; i < kd_cache_recipe(c)->width; i++)
                assert_true(fabsf(got[i] - want[i]) <= 1e-3f * want_std);
        }
    kd_live_close(l);
    kd_cache_close(c);
}

/* Any views in any order, in batches of which the last is short: what a batch of its own gives each. */
static void features_of_chosen_views_are_theirs(void **state) {
    (void)state;
    static const kd_live_item items[] = {{5, 2}, {0, 0}, {3, 1}, {0, 0}, {2, 2}, {4, 0}};
    enum { COUNT = sizeof items / sizeof *items };
    static float together[COUNT * 200], alone[200];
    double square;
    kd_live *l = open_live("lightly", 3);
    size_t width = (size_t)kd_live_recipe(l)->width;
    assert_true(width <= 200);
    assert_ok(kd_live_features(l, items, COUNT, KD_FEATURE_CLS, 2, together, &err));
    for (size_t i = 0; i < COUNT; i++) {
        run_views(l, items[i].image * VIEWS + items[i].view, 1);
        assert_ok(kd_live_target(l, KD_FEATURE_CLS, 2, 1, alone, &square, &err));
        assert_memory_equal(alone, together + i * width, width * sizeof *alone);
    }
    assert_int_equal(kd_live_features(l, items, COUNT, KD_FEATURE_REGISTERS, 2, together, &err), KD_ENOTFOUND);
    kd_live_close(l);
}

/* Mean and deviation of cls of layer 1 with the options as they are. */
static float deviation(const kd_live_options *o) {
    kd_live *l;
    const float *mean;
    float std;
    assert_ok(kd_live_open(&l, o, &err));
    assert_ok(kd_live_start(l, backend, &err));
    assert_ok(kd_live_mean(l, KD_FEATURE_CLS, 1, &mean, &std, &err));
    kd_live_close(l);
    return std;
}

/* A run that goes on standardises by the numbers with which it began. That the file is what counts shows when another number stands in it. */
static void statistics_are_kept_for_the_run(void **state) {
    (void)state;
    kd_live_options o = options("lightly", 2);
    kd_stats sums[KD_FEATURES * 2] = {{0}};
    float made, made_of_others;
    o.statistics = kd_arena_strdup(arena, at("statistics.safetensors"));
    made = deviation(&o);
    assert_true(made == deviation(&o));

    kd_weights *w;
    assert_ok(kd_weights_open(&w, o.statistics, &err));
    char of[33];
    snprintf(of, sizeof of, "%s", json_string_value(json_object_get(kd_weights_metadata(w), "of")));
    kd_weights_close(w);
    kd_live *l = open_live("lightly", 1);
    const kd_recipe *r = kd_live_recipe(l);
    for (int i = 0; i < KD_FEATURES * 2; i++)
        assert_ok(kd_stats_create(&sums[i], r->width, &err));
    assert_int_equal(kd_live_stats_read(o.statistics, "00", r, sums, &err), KD_DONE);
    assert_ok(kd_live_stats_read(o.statistics, of, r, sums, &err));
    assert_true(sums[0].scalar_std == made);
    sums[0].scalar_std = 123;
    assert_ok(kd_live_stats_write(o.statistics, of, r, sums, &err));
    assert_true(deviation(&o) == 123);
    kd_live_close(l);

    o.views = 2; /* not what the file is of */
    made_of_others = deviation(&o);
    assert_true(made_of_others != 123 && made_of_others != made);
    o.views = VIEWS;
    unit_write(o.statistics, "damaged", 7);
    assert_true(deviation(&o) == made);
    for (int i = 0; i < KD_FEATURES * 2; i++)
        kd_stats_free(&sums[i]);
}

/* A dry run has no use for them. */
static void a_plan_needs_no_statistics(void **state) {
    (void)state;
    kd_live_options o = options("lightly", 1);
    o.plan_only = 1;
    o.statistics = kd_arena_strdup(arena, at("none.safetensors"));
    assert_true(deviation(&o) == 1);
    assert_int_equal(access(o.statistics, F_OK), -1);
}

/* The census is the first views in the order of image ids: with fewer of them than there are, the images behind don't count. */
static void statistics_end_with_the_views_that_a_seal_counts(void **state) {
    (void)state;
    kd_live_options o = options("lightly", 2);
    kd_live *l;
    const float *mean;
    float std, again;
    o.views = KD_STATS_VIEWS / 2; /* of 6 images the first two */
    o.image_h = o.image_w = 14;
    o.targets = 1;
    o.selection.layers = "1";
    o.batch = 64;
    assert_ok(kd_live_open(&l, &o, &err));
    assert_ok(kd_live_start(l, backend, &err));
    assert_ok(kd_live_mean(l, KD_FEATURE_CLS, 1, &mean, &std, &err));
    char *others = at("two");
    assert_ok(kd_io_mkdirs(others, &err));
    for (size_t i = 0; i < 2; i++) {
        char from[4300], to[4300];
        snprintf(from, sizeof from, "%s/%s", at("pictures"), kd_live_image(l, i)->rel);
        snprintf(to, sizeof to, "%s/%zu.jpg", others, i);
        assert_int_equal(link(from, to), 0);
    }
    o.images = others;
    kd_live *two;
    assert_ok(kd_live_open(&two, &o, &err));
    assert_ok(kd_live_start(two, backend, &err));
    const float *same;
    assert_ok(kd_live_mean(two, KD_FEATURE_CLS, 1, &same, &again, &err));
    assert_true(std == again);
    assert_memory_equal(mean, same, (size_t)kd_live_recipe(l)->width * sizeof *mean);
    kd_live_close(two);
    kd_live_close(l);
}

/* ---- in a replay ---- */

enum { SMALL_H = 14, SMALL_W = 21, SMALL = SMALL_H * SMALL_W * 3, LEARNT = 5 };

typedef struct outcome {
    uint8_t pixels[ALL * SMALL];
    float target[LEARNT][ALL * 400], square[LEARNT][ALL];
    size_t floats[LEARNT];
    uint64_t decoded;
} outcome;

/* Every view once, in an order that isn't that of the keys; twice, of which the first time is given up after a few samples. */
static void replay(kd_source source, int threads, outcome *out) {
    static const struct { kd_feature f; uint16_t layer; int raw; } learnt[LEARNT] = {
        {KD_FEATURE_CLS, 1, 0}, {KD_FEATURE_PATCH, 1, 0}, {KD_FEATURE_PATCH2, 2, 0}, {KD_FEATURE_PATCH2, 2, 1}, {KD_FEATURE_MEAN, 2, 1}};
    kd_replay_options o = {.source = source, .images = at("pictures"), .threads = threads, .student_h = SMALL_H, .student_w = SMALL_W, .targets = LEARNT, .view_memory = 1 << 20, .ahead = 1};
    kd_replay_item items[ALL];
    kd_replay *r;
    kd_sample s;
    for (int i = 0; i < LEARNT; i++) {
        assert_ok(kd_replay_target_of(&o.target[i], &source, learnt[i].f, learnt[i].layer, &err));
        o.target[i].raw = learnt[i].raw;
        out->floats[i] = kd_recipe_rows(kd_source_recipe(&source), learnt[i].f) * (size_t)kd_source_recipe(&source)->width;
        assert_true(out->floats[i] <= 400);
    }
    assert_ok(kd_replay_create(&r, &o, &err));
    assert_int_equal(kd_replay_images(r), IMAGES);
    for (size_t i = 0; i < IMAGES; i++)
        assert_string_equal(kd_replay_name(r, i), kd_source_image(&source, i)->rel);
    for (uint32_t i = 0; i < ALL; i++)
        items[i] = (kd_replay_item){.image = i * 5 % ALL / VIEWS, .view = i * 5 % ALL % VIEWS};
    for (int pass = 0; pass < 2; pass++) {
        size_t n = 0;
        kd_status status = KD_OK;
        assert_ok(kd_replay_begin(r, items, ALL, &err));
        for (; (pass == 1 || n < BATCH + 1) && (status = kd_replay_next(r, &s, &err)) == KD_OK; n++) {
            memcpy(out->pixels + n * SMALL, s.pixels, SMALL);
            for (int i = 0; i < LEARNT; i++) {
                memcpy(out->target[i] + n * out->floats[i], s.target[i], out->floats[i] * sizeof(float));
                out->square[i][n] = s.square[i];
            }
            kd_replay_release(r, &s);
        }
        assert_int_equal(status, pass == 1 ? KD_DONE : KD_OK);
        assert_int_equal(n, pass == 1 ? ALL : BATCH + 1);
        if (pass == 1) /* and stays at its end */
            assert_int_equal(kd_replay_next(r, &s, &err), KD_DONE);
        kd_replay_end(r);
    }
    kd_replay_destroy(r);
}

static void a_replay_gives_the_same_samples_from_either(void **state) {
    (void)state;
    static outcome cached, live, more;
    kd_cache *c = make_cache("f16", "lightly");
    kd_live *l = open_live("lightly", 1), *threaded = open_live("lightly", 3);
    replay((kd_source){.cache = c}, 2, &cached);
    replay((kd_source){.live = l}, 1, &live);
    replay((kd_source){.live = threaded}, 3, &more);
    assert_memory_equal(live.pixels, cached.pixels, sizeof live.pixels);
    assert_memory_equal(&live, &more, sizeof live);
    for (int i = 0; i < LEARNT; i++) {
        double err2 = 0, xx = 0;
        for (size_t k = 0; k < ALL * live.floats[i]; k++) {
            double x = (double)live.target[i][k], q = (double)cached.target[i][k];
            err2 += (x - q) * (x - q);
            xx += x * x;
        }
        if (!(xx > 0 && err2 <= 1e-6 * xx)) /* f16: 3e-4 of the length; standardising magnifies it by the mean's share */
            fail_msg("target %d: relative difference %g", i, sqrt(err2 / xx));
        for (size_t k = 0; k < ALL; k++)
            assert_true(fabsf(live.square[i][k] - cached.square[i][k]) <= 2e-3f * cached.square[i][k] && (live.square[i][k] > 0) == (i == 2 || i == 3));
    }
    kd_live_close(threaded);
    kd_live_close(l);
    kd_cache_close(c);
}

/* ---- what is refused ---- */

static void a_picture_that_cannot_be_decoded_is_named_and_left_out(void **state) {
    (void)state;
    uint8_t *bytes = NULL;
    size_t size;
    assert_ok(kd_io_read_all(at("pictures/002.jpg"), KD_MAX_IMAGE_FILE, &bytes, &size, &err));
    unit_write(at("pictures/002.jpg"), bytes, size / 2);
    kd_free(bytes);
    kd_live *l = open_live("lightly", 1);
    kd_status status = KD_OK;
    kd_image picture;
    for (size_t i = 0; i < IMAGES && status == KD_OK; i++)
        status = kd_live_view(l, 0, i, 0, &picture, NULL, &err);
    assert_int_equal(status, KD_EFAIL);
    assert_contains(err.msg, "002.jpg is truncated");
    assert_ok(kd_live_check_images(l, &err)); /* as a run does it */
    assert_int_equal(kd_live_skipped(l), 1);
    assert_int_equal(kd_live_images(l), IMAGES - 1);
    for (size_t i = 0; i < IMAGES - 1; i++)
        assert_ok(kd_live_view(l, 0, i, 0, &picture, NULL, &err));
    kd_live_close(l);
}

static void a_file_that_changes_under_the_run_is_noticed(void **state) {
    (void)state;
    kd_live *l = open_live("lightly", 1);
    kd_image picture;
    char path[4300];
    snprintf(path, sizeof path, "%s/%s", at("pictures"), kd_live_image(l, 0)->rel);
    tf_draw(path, 77);
    assert_int_equal(kd_live_view(l, 0, 0, 0, &picture, NULL, &err), KD_EFAIL);
    assert_contains(err.msg, kd_live_image(l, 0)->rel);
    assert_contains(err.msg, "was changed");
    kd_live_close(l);
}

static void what_the_teacher_was_not_asked_for_is_not_found(void **state) {
    (void)state;
    kd_live *l = open_live("lightly", 1);
    const float *mean;
    float std;
    assert_int_equal(kd_live_mean(l, KD_FEATURE_REGISTERS, 1, &mean, &std, &err), KD_ENOTFOUND);
    assert_int_equal(kd_live_mean(l, KD_FEATURE_CLS, 3, &mean, &std, &err), KD_ENOTFOUND);
    assert_contains(err.msg, "--layers");
    kd_live_close(l);
    kd_live_options o = options("lightly", 1);
    const kd_target large = {KD_TARGET_POOL, 4, 4};
    o.target = &large;
    o.targets = 1;
    assert_int_equal(kd_live_open(&l, &o, &err), KD_EUSAGE);
    assert_contains(err.msg, "grid of patches is 2 x 3");
}

/* ---- options of kd-train ---- */

static kd_train_config train_config(const char *const *extra, int n) {
    kd_train_config c = {0};
    const char *argv[20] = {"kd-train", "--images", at("pictures"), "--student", "resnet18", "--out", at("run"), "--image-size", "28x42"};
    char *words[20];
    int json, count = 9 + n;
    for (int i = 0; i < count; i++)
        words[i] = kd_arena_strdup(arena, i < 9 ? argv[i] : extra[i - 9]);
    assert_ok(kd_options_parse(&kd_train_program, &c, count, words, &json, arena, &err));
    return c;
}

static void a_run_has_one_source_and_says_nothing_that_is_not_meant_for_it(void **state) {
    (void)state;
    static const struct { const char *word[4]; int n; const char *why; } wrong[] = {
        {{0}, 0, "--cache is missing"},
        {{"--cache", "x.kdc", "--live-teacher", "w"}, 4, "two sources"},
        {{"--cache", "x.kdc", "--views", "4"}, 4, "--views is for --live-teacher"},
        {{"--cache", "x.kdc", "--augment", "dino"}, 4, "--augment is for --live-teacher"},
        {{"--cache", "x.kdc", "--weights-key", "teacher"}, 4, "--weights-key is for --live-teacher"},
    };
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        kd_train_config c = train_config(wrong[i].word, wrong[i].n);
        assert_int_equal(kd_train_config_check(&c, &err), KD_EUSAGE);
        assert_contains(err.msg, wrong[i].why);
    }
    kd_train_config c = train_config((const char *[]){"--live-teacher", "w", "--views", "4"}, 4);
    assert_ok(kd_train_config_check(&c, &err));
}

static void views_0_is_a_new_one_each_epoch_and_students_choose_among_forms(void **state) {
    (void)state;
    kd_train_config c = train_config((const char *[]){"--live-teacher", TEACHER, "--views", "0", "--epochs", "13", "--student", "resnet18,name=b,patch-target=pool:2"}, 8);
    kd_student_choice *choices;
    kd_live *l;
    assert_ok(kd_student_choices(&choices, &c, arena, &err));
    assert_ok(kd_live_from_config(&l, &c, choices, 1, &err));
    assert_int_equal(c.views, 13);
    assert_int_equal(kd_live_image(l, 0)->views, 13);
    const kd_recipe *r = kd_live_recipe(l);
    assert_int_equal(r->targets, 2);
    assert_int_equal(r->target[0].kind, KD_TARGET_FULL);
    assert_int_equal(r->target[1].kind, KD_TARGET_POOL);
    assert_true(kd_recipe_has(r, KD_FEATURE_CLS) && kd_recipe_has(r, KD_FEATURE_MEAN) && !kd_recipe_has(r, KD_FEATURE_REGISTERS));
    kd_live_close(l);
}

#define IN_FOLDER(test) cmocka_unit_test_setup_teardown(test, fresh, drop)

int main(void) {
    const struct CMUnitTest tests[] = {
        IN_FOLDER(views_are_those_of_the_cache_byte_for_byte),
        IN_FOLDER(the_recipe_is_that_of_the_cache),
        IN_FOLDER(targets_differ_by_the_stated_fidelity),
        IN_FOLDER(statistics_are_those_of_the_seal),
        IN_FOLDER(features_of_chosen_views_are_theirs),
        IN_FOLDER(statistics_are_kept_for_the_run),
        IN_FOLDER(a_plan_needs_no_statistics),
        IN_FOLDER(statistics_end_with_the_views_that_a_seal_counts),
        IN_FOLDER(a_replay_gives_the_same_samples_from_either),
        IN_FOLDER(a_picture_that_cannot_be_decoded_is_named_and_left_out),
        IN_FOLDER(a_file_that_changes_under_the_run_is_noticed),
        IN_FOLDER(what_the_teacher_was_not_asked_for_is_not_found),
        IN_FOLDER(a_run_has_one_source_and_says_nothing_that_is_not_meant_for_it),
        IN_FOLDER(views_0_is_a_new_one_each_epoch_and_students_choose_among_forms),
    };
    return cmocka_run_group_tests_name("live", tests, NULL, NULL);
}

/* Groups: which caches of a run are shards of one recipe and which are recipes of their own, which images they have in common, and that a run of several recipes goes on with the same
 * bits. */
#include "tests/unit/train_fixture.h"

#include "common/base/log.h"
#include "train/group.h"
#include "train/run.h"
#include "train/setup.h"

static kd_err err;
static char *folder;
static kd_arena *arena;

enum { IMAGES = 8, VIEWS = 2, OTHERS = 4 };

static char *at(const char *name) {
    static char path[16][4300];
    static int next;
    next = (next + 1) % 16;
    snprintf(path[next], sizeof path[next], "%s/%s", folder, name);
    return path[next];
}

/* pictures/ and others/ have no picture in common. */
static int fresh(void **state) {
    (void)state;
    char name[40];
    folder = unit_folder();
    arena = kd_arena_create();
    kd_log_set_level(KD_LOG_ERROR);
    tf_pictures(at("pictures"), IMAGES);
    assert_ok(kd_io_mkdirs(at("others"), &err));
    for (int i = 0; i < OTHERS; i++) {
        snprintf(name, sizeof name, "others/%03d.jpg", i);
        tf_draw(at(name), 100 + i);
    }
    return 0;
}
static int drop(void **state) {
    (void)state;
    kd_arena_destroy(arena);
    free(folder);
    return 0;
}

/* A recipe that differs from that of another seed in nothing that a student could see. */
static json_t *recipe(int seed) {
    json_t *j = tf_recipe_json(NULL);
    json_object_set_new(j, "seed", json_integer(seed));
    return j;
}

static const char *make(json_t *j, const char *name, const char *pictures, int count, uint32_t views) {
    char *path = at(name);
    kd_cache_close(tf_cache_of(j, path, at(pictures), count, views));
    return path;
}

static void equal_recipes_are_shards_and_others_make_groups(void **state) {
    (void)state;
    const char *paths[] = {make(recipe(1), "a.kdc", "pictures", IMAGES, VIEWS), make(recipe(2), "b.kdc", "pictures", 5, VIEWS), make(recipe(1), "c.kdc", "others", OTHERS, VIEWS)};
    kd_groups g = {0};
    assert_ok(kd_groups_open(&g, paths, 3, &err));
    assert_int_equal(g.count, 2);
    assert_int_equal(kd_cache_shards(g.group[0].source.cache), 2);
    assert_int_equal(kd_cache_images(g.group[0].source.cache), IMAGES + OTHERS);
    assert_int_equal(kd_cache_images(g.group[1].source.cache), 5);
    kd_groups_close(&g);
}

static void refused(const char *const *paths, size_t count, kd_status status, const char *text) {
    kd_groups g = {0};
    assert_int_equal(kd_groups_open(&g, paths, count, &err), status);
    assert_contains(err.msg, text);
    kd_groups_close(&g);
}

static void another_teacher_or_other_layers_are_refused_by_name(void **state) {
    (void)state;
    const char *paths[2] = {make(recipe(1), "a.kdc", "pictures", 2, 1), NULL};
    json_t *j = recipe(2);
    json_object_set_new(json_object_get(j, "teacher"), "sha256", json_string("ff112233445566778899aabbccddeeff00112233445566778899aabbccddeeff"));
    paths[1] = make(j, "teacher.kdc", "pictures", 2, 1);
    refused(paths, 2, KD_EMISMATCH, "teacher.sha256 is \"00112233");
    assert_contains(err.msg, "teacher.kdc");
    j = recipe(2);
    json_object_set_new(j, "layers", json_pack("[i]", 2));
    paths[1] = make(j, "layers.kdc", "pictures", 2, 1);
    refused(paths, 2, KD_EMISMATCH, "layers is [1] in ");
    j = recipe(2);
    json_object_set_new(j, "layer_norm", json_false());
    paths[1] = make(j, "norm.kdc", "pictures", 2, 1);
    refused(paths, 2, KD_EMISMATCH, "layer_norm is true in ");
}

static void a_fifth_recipe_is_refused(void **state) {
    (void)state;
    const char *paths[KD_MAX_GROUPS + 1];
    for (int i = 0; i <= KD_MAX_GROUPS; i++) {
        char name[16];
        snprintf(name, sizeof name, "%d.kdc", i);
        paths[i] = make(recipe(i), name, "pictures", 1, 1);
    }
    refused(paths, KD_MAX_GROUPS + 1, KD_EUSAGE, "at most 4 recipes");
}

/* A replay for each of two caches. */
static void open_pair(kd_groups *g, const char *first, const char *second) {
    const char *paths[2] = {first, second};
    assert_ok(kd_groups_open(g, paths, 2, &err));
    assert_int_equal(g->count, 2);
    for (int k = 0; k < 2; k++) {
        kd_group *x = &g->group[k];
        kd_replay_options o = {.source = x->source, .images = folder, .threads = 1, .student_h = TF_H, .student_w = TF_W, .targets = 1, .ahead = 2};
        assert_ok(kd_replay_target_of(&o.target[0], &x->source, KD_FEATURE_CLS, 1, &err));
        assert_ok(kd_replay_create(&x->replay, &o, &err));
    }
}

static void images_are_those_that_every_recipe_has(void **state) {
    (void)state;
    kd_groups g = {0};
    const char *whole = make(recipe(1), "a.kdc", "pictures", IMAGES, VIEWS);
    open_pair(&g, whole, make(recipe(2), "b.kdc", "pictures", 5, 3));
    assert_ok(kd_groups_match(&g, &err));
    assert_int_equal(g.images, 5);
    assert_int_equal(g.left_out, IMAGES - 5);
    for (size_t i = 0; i < g.images; i++) {
        const kd_image_entry *a = kd_group_image(&g.group[0], i), *b = kd_group_image(&g.group[1], i);
        assert_memory_equal(a->image.b, b->image.b, 16);
        assert_int_equal(a->views, VIEWS);
        assert_int_equal(b->views, 3);
        for (uint32_t epoch = 0; epoch < 3; epoch++) { /* every view once in as many epochs as there are */
            assert_true(kd_group_item(&g.group[1], i, epoch).view != kd_group_item(&g.group[1], i, epoch + 1).view);
            assert_int_equal(kd_group_item(&g.group[1], i, epoch).image, g.group[1].image[i]);
        }
    }
    kd_groups_close(&g);
    open_pair(&g, whole, make(recipe(2), "c.kdc", "others", OTHERS, VIEWS));
    assert_int_equal(kd_groups_match(&g, &err), KD_EMISMATCH);
    assert_contains(err.msg, "no image is in all 2 recipes");
    kd_groups_close(&g);
}

static kd_train_config config(const char *out, const char *steps) {
    kd_train_config c = {0};
    int json = 0;
    const char *argv[] = {"kd-train", "--cache", at("a.kdc"), "--cache", at("b.kdc"), "--images", at("pictures"), "--student", "dinov2_w64_d1", "--student-size", "14x28", "--out", at(out),
                          "--device", "ref", "--batch-size", "2", "--epochs", "3", "--threads", "1", "--val-fraction", "0.2", "--log-every", "1", "--steps", steps};
    char *words[sizeof argv / sizeof *argv];
    for (size_t i = 0; i < sizeof argv / sizeof *argv; i++) /* the parser takes main's argv */
        words[i] = kd_arena_strdup(arena, argv[i]);
    assert_ok(kd_options_parse(&kd_train_program, &c, (int)(sizeof argv / sizeof *argv), words, &json, arena, &err));
    return c;
}

static void run(const char *out, const char *steps) {
    kd_train_config c = config(out, steps);
    assert_ok(kd_train_run(&c, arena, &err));
}

static void same_file(const char *a, const char *b) {
    uint8_t *x, *y;
    size_t nx, ny;
    assert_ok(kd_io_read_all(at(a), 1 << 30, &x, &nx, &err));
    assert_ok(kd_io_read_all(at(b), 1 << 30, &y, &ny, &err));
    assert_int_equal(nx, ny);
    assert_memory_equal(x, y, nx);
    kd_free(x);
    kd_free(y);
}

static void a_paused_run_of_two_recipes_ends_in_the_same_bits(void **state) {
    (void)state;
    make(recipe(1), "a.kdc", "pictures", IMAGES, VIEWS);
    make(recipe(2), "b.kdc", "pictures", IMAGES, 3);
    run("straight", "0");
    run("paused", "1"); /* inside the first epoch */
    run("paused", "4");
    run("paused", "0");
    same_file("straight/exported/dinov2_w64_d1.safetensors", "paused/exported/dinov2_w64_d1.safetensors");
    same_file("straight/exported/dinov2_w64_d1-best.safetensors", "paused/exported/dinov2_w64_d1-best.safetensors");
}

static void the_log_has_the_mean_and_each_recipe(void **state) {
    (void)state;
    char line[4000];
    int lines = 0, differing = 0;
    make(recipe(1), "a.kdc", "pictures", IMAGES, VIEWS);
    make(recipe(2), "b.kdc", "pictures", IMAGES, 3);
    run("run", "0");
    FILE *f = fopen(at("run/metrics.jsonl"), "r");
    assert_non_null(f);
    while (fgets(line, sizeof line, f) != NULL) {
        json_t *j = json_loads(line, 0, NULL);
        double loss = json_real_value(json_object_get(j, "loss")), a = json_real_value(json_object_get(j, "loss_recipe_1")), b = json_real_value(json_object_get(j, "loss_recipe_2"));
        if (json_object_get(j, "lr") != NULL) {
            assert_true(a > 0 && b > 0);
            assert_true(fabs(loss - (a + b) / 2) < 1e-7 * loss);
            lines++;
            differing += a != b; /* the same drawn views under other numbers: in some steps both show the same */
        }
        json_decref(j);
    }
    fclose(f);
    assert_true(lines > 3 && differing > 0);
}

static void a_run_goes_on_with_its_recipes_only(void **state) {
    (void)state;
    make(recipe(1), "a.kdc", "pictures", IMAGES, VIEWS);
    make(recipe(2), "b.kdc", "pictures", IMAGES, VIEWS);
    run("run", "2");
    kd_train_config c = config("run", "0"), swapped = config("run", "0");
    c.cache.count = 1;
    assert_int_equal(kd_train_run(&c, arena, &err), KD_EMISMATCH);
    assert_contains(err.msg, "cache_2 was ");
    assert_contains(err.msg, "is absent now");
    const char *first = swapped.cache.item[0];
    swapped.cache.item[0] = swapped.cache.item[1];
    swapped.cache.item[1] = first;
    assert_int_equal(kd_train_run(&swapped, arena, &err), KD_EMISMATCH);
    assert_contains(err.msg, "caches of the run in their order");
}

int main(void) {
#define T(f) cmocka_unit_test_setup_teardown(f, fresh, drop)
    const struct CMUnitTest tests[] = {
        T(equal_recipes_are_shards_and_others_make_groups), T(another_teacher_or_other_layers_are_refused_by_name), T(a_fifth_recipe_is_refused), T(images_are_those_that_every_recipe_has),
        T(a_paused_run_of_two_recipes_ends_in_the_same_bits), T(the_log_has_the_mean_and_each_recipe), T(a_run_goes_on_with_its_recipes_only),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

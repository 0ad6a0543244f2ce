/* Which of a cache's layers a student learns: the deepest stored unless --teacher-layer says another, each with its own statistics; joined layers are one wide target. */
#include "tests/unit/train_fixture.h"

#include "common/base/log.h"
#include "common/weights/weights.h"
#include "train/loss.h"
#include "train/run.h"
#include "train/setup.h"

static kd_err err;
static char *folder;
static kd_arena *arena;

enum { IMAGES = 8, VIEWS = 2, BATCH = 4 };

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
    kd_log_set_level(KD_LOG_WARN);
    tf_pictures(at("pictures"), IMAGES);
    return 0;
}
static int drop(void **state) {
    (void)state;
    kd_arena_destroy(arena);
    free(folder);
    return 0;
}

/* A cache of cls, patch, registers and mean of both layers of the teacher. */
static json_t *both_layers(void) {
    json_t *j = tf_recipe_json(NULL);
    json_object_set_new(j, "layers", json_pack("[i,i]", 1, 2));
    json_object_set_new(j, "features", json_pack("[s,s,s,s]", "cls", "patch", "registers", "mean"));
    return j;
}

/* torch.cat of both layers: one record of twice the width. */
static json_t *joined(void) {
    json_t *j = both_layers();
    json_object_set_new(j, "layer_concat", json_true());
    json_object_set_new(j, "width", json_integer(2 * TF_WIDTH));
    return j;
}

static void make(json_t *recipe) {
    kd_cache_close(tf_cache_of(recipe, at("x.kdc"), at("pictures"), IMAGES, VIEWS));
}

/* The options of a run on x.kdc; extra: up to two more words. */
static kd_train_config config(const char *extra, const char *value) {
    kd_train_config c = {0};
    int json = 0;
    const char *argv[] = {"kd-train", "--cache", at("x.kdc"), "--images", at("pictures"), "--student", "dinov2_w64_d1", "--student-size", "14x28", "--out", at("run"), "--device", "ref",
                          "--batch-size", "4", "--epochs", "2", "--threads", "1", "--val-fraction", "0", extra, value};
    int n = (int)(sizeof argv / sizeof *argv) - (extra == NULL ? 2 : 0);
    char *words[sizeof argv / sizeof *argv];
    for (int i = 0; i < n; i++) /* the parser takes main's argv */
        words[i] = kd_arena_strdup(arena, argv[i]);
    assert_ok(kd_options_parse(&kd_train_program, &c, n, words, &json, arena, &err));
    return c;
}

/* The targets of the layer that the setup has chosen, against the formula and that layer's statistics. */
static void expect_targets(const kd_setup *s, uint16_t layer) {
    kd_replay *replay = s->groups.group[0].replay;
    kd_cache *cache = s->groups.group[0].source.cache;
    kd_replay_item items[IMAGES];
    kd_sample sample;
    for (uint32_t i = 0; i < IMAGES; i++)
        items[i] = (kd_replay_item){.image = i, .view = i % VIEWS};
    assert_ok(kd_replay_begin(replay, items, IMAGES, &err));
    for (uint32_t i = 0; i < IMAGES; i++) {
        assert_ok(kd_replay_next(replay, &sample, &err));
        for (int f = 0; f < KD_TARGETS; f++) {
            const float *mean, *got = sample.target[f];
            float x[TF_LARGEST], std;
            size_t width = (size_t)kd_cache_recipe(cache)->width, n = kd_recipe_rows(kd_cache_recipe(cache), (kd_feature)f) * width;
            assert_ok(kd_cache_mean(cache, (kd_feature)f, layer, &mean, &std, &err));
            tf_features(x, &kd_replay_image(replay, i)->image, items[i].view, (kd_feature)f, layer, n);
            for (size_t k = 0; k < n; k++)
                assert_true(fabsf(got[k] - (x[k] - mean[k % width]) / std) < 1e-5f);
        }
        kd_replay_release(replay, &sample);
    }
    kd_replay_end(replay);
}

static void expect_layer(const char *option, const char *value, uint16_t layer) {
    kd_setup s = {.lock = -1};
    kd_train_config c = config(option, value);
    assert_ok(kd_setup_open(&s, &c, arena, &err));
    assert_int_equal(c.teacher_layer, layer);
    assert_int_equal(json_integer_value(json_object_get(s.options, "teacher-layer")), layer); /* so that a run can't go on with another one */
    expect_targets(&s, layer);
    kd_setup_close(&s);
}

static void the_deepest_stored_layer_is_learnt_unless_told(void **state) {
    (void)state;
    make(both_layers());
    expect_layer(NULL, NULL, 1);
    expect_layer("--teacher-layer", "1", 1);
    expect_layer("--teacher-layer", "2", 2);
}

static void refused(kd_train_config c, kd_status status, const char *text) {
    kd_setup s = {.lock = -1};
    assert_int_equal(kd_setup_open(&s, &c, arena, &err), status);
    assert_contains(err.msg, text);
    kd_setup_close(&s);
}

static void an_unknown_layer_lists_the_stored_ones(void **state) {
    (void)state;
    make(both_layers());
    refused(config("--teacher-layer", "3"), KD_EUSAGE, "--teacher-layer 3: ");
    assert_contains(err.msg, "holds layers 1, 2 (1 = the teacher's last)");
    assert_contains(err.msg, "--layers 3");
}

static void joined_layers_have_one_number(void **state) {
    (void)state;
    make(joined());
    expect_layer(NULL, NULL, 1);
    refused(config("--teacher-layer", "2"), KD_EUSAGE, "holds layer 1 (1 = the teacher's last), several joined under the number of the last");
}

static void a_cache_of_a_single_layer_that_is_not_the_last(void **state) {
    (void)state;
    json_t *j = both_layers();
    json_object_set_new(j, "layers", json_pack("[i]", 2));
    make(j);
    expect_layer(NULL, NULL, 2);
}

static void caches_without_a_target_are_refused_by_name(void **state) {
    (void)state;
    json_t *j = both_layers();
    json_object_set_new(j, "features", json_pack("[s,s]", "registers", "mean"));
    json_object_set_new(j, "patch_targets", json_array());
    make(j);
    refused(config(NULL, NULL), KD_EUSAGE, "neither cls nor patch");
    unlink(at("x.kdc"));
    unlink(at("x.kdc.json"));
    j = both_layers();
    json_object_set_new(j, "features", json_pack("[s,s]", "patch", "mean"));
    make(j);
    refused(config(NULL, NULL), KD_EUSAGE, "no cls features, which pair cls of loss std-mse learns; give --cls-weight 0");
}

static double last_loss(void) {
    char line[4000];
    double loss = -1;
    FILE *f = fopen(at("run/metrics.jsonl"), "r");
    assert_non_null(f);
    while (fgets(line, sizeof line, f) != NULL) {
        json_t *j = json_loads(line, 0, NULL);
        if (json_object_get(j, "seen_loss") != NULL)
            loss = json_real_value(json_object_get(j, "seen_loss"));
        json_decref(j);
    }
    fclose(f);
    return loss;
}

static void training_goes_to_the_joined_width(void **state) {
    (void)state;
    kd_train_config c = config("--lr", "5e-3");
    kd_weights *w;
    int found = 0;
    make(joined());
    assert_ok(kd_train_run(&c, arena, &err));
    double loss = last_loss();
    assert_true(loss > 0 && loss < 4); /* two terms of variance about 1 each */
    assert_ok(kd_weights_open(&w, at("run/checkpoints/latest.kdt"), &err));
    for (int i = 0; i < kd_weights_count(w); i++) {
        kd_tensor t = kd_weights_info(w, i);
        if (strstr(t.name, "patch.linear.weight") == NULL)
            continue;
        assert_int_equal(t.shape[0], 2 * TF_WIDTH);
        found++;
    }
    assert_true(found > 0);
    kd_weights_close(w);
}

static void a_run_goes_on_with_its_layer_only(void **state) {
    (void)state;
    make(both_layers());
    kd_train_config c = config("--teacher-layer", "2"), other = config(NULL, NULL), again = config("--teacher-layer", "2");
    assert_ok(kd_train_run(&c, arena, &err));
    assert_int_equal(kd_train_run(&other, arena, &err), KD_EUSAGE);
    assert_contains(err.msg, "--teacher-layer was 2 when");
    assert_contains(err.msg, "and is 1 now");
    assert_ok(kd_train_run(&again, arena, &err));
}

int main(void) {
#define T(f) cmocka_unit_test_setup_teardown(f, fresh, drop)
    const struct CMUnitTest tests[] = {
        T(the_deepest_stored_layer_is_learnt_unless_told), T(an_unknown_layer_lists_the_stored_ones), T(joined_layers_have_one_number),
        T(a_cache_of_a_single_layer_that_is_not_the_last), T(caches_without_a_target_are_refused_by_name), T(training_goes_to_the_joined_width),
        T(a_run_goes_on_with_its_layer_only),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

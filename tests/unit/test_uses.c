/* What kd-cache info says that a cache can train is what kd-train takes: every name of --loss, for every form that a cache may store. */
#include "tests/unit/unit.h"

#include "cache/uses.h"
#include "common/base/log.h"
#include "train/loss_named.h"
#include "train/patch_target.h"

static kd_err err;
static kd_arena *arena;

static int fresh(void **state) {
    (void)state;
    arena = kd_arena_create();
    kd_log_set_level(KD_LOG_ERROR);
    return 0;
}
static int drop(void **state) {
    (void)state;
    kd_log_set_level(KD_LOG_INFO);
    kd_arena_destroy(arena);
    return 0;
}

/* A whole name in "a, b, c". */
static int listed(const char *list, const char *name) {
    size_t n = strlen(name);
    for (const char *p = list; (p = strstr(p, name)) != NULL; p += n)
        if ((p == list || p[-1] == ' ') && (p[n] == '\0' || p[n] == ','))
            return 1;
    return 0;
}

/* Whether kd-train can give this loss the stored feature and nothing else: the other side's weight is 0. */
static int trains(const char *name, const kd_recipe *r) {
    int cls = kd_recipe_has(r, KD_FEATURE_CLS);
    char *argv[] = {"kd-train", "--cache", "c", "--images", "i", "--out", "o", "--student", "resnet18", "--teacher-layer", "1", "--loss", kd_arena_strdup(arena, name), cls ? "--patch-weight" : "--cls-weight",
                    "0"};
    kd_train_config c = {0};
    kd_loss loss;
    kd_loss_offer offer = {.recipe = r, .cache = "photos.kdc", .images = 100, .classes = 3};
    assert_ok(kd_options_parse(&kd_train_program, &c, (int)(sizeof argv / sizeof *argv), argv, NULL, arena, &err));
    if (kd_loss_from_config(&loss, &c, &offer, &err) != KD_OK)
        return 0;
    for (int p = 0; p < loss.pairs && !cls; p++) {
        const kd_patch_learner l = {.student = "resnet18", .loss = name, .pair = loss.pair[p].name, .compares = kd_pair_single_tokens(&loss, p), .map_h = 7, .map_w = 7, .image_h = 224, .image_w = 224};
        int form;
        if (kd_patch_target_choose(&form, &(kd_patch_offer){"photos.kdc", r->target, r->targets}, "auto", &l, &err) != KD_OK)
            return 0;
    }
    return 1;
}

static void agree(const kd_recipe *r, int least) {
    kd_use use[1 + KD_MAX_TARGETS];
    const kd_option *o = kd_train_program.options;
    int yes = 0, all = 0;
    assert_int_equal(kd_recipe_uses(use, r), 1);
    while (strcmp(o->name, "loss") != 0)
        o++;
    for (char *name, *rest = kd_arena_strdup(arena, o->metavar); (name = strsep(&rest, "|")) != NULL;) {
        int said = listed(use[0].losses, name);
        if (strcmp(name, "none") == 0) {
            assert_false(said);
            continue;
        }
        if (said != trains(name, r))
            fail_msg("%s, %s: kd-cache info says %s, and kd-train %s: %s", use[0].stored, name, said ? "yes" : "no", said ? "no" : "yes", said ? err.msg : "");
        yes += said;
        all++;
    }
    assert_true(yes >= least && yes < all);
    int commas = 0;
    for (const char *p = use[0].losses; *p != '\0'; p++)
        commas += *p == ',';
    assert_int_equal(yes, commas + 1); /* no other name is said */
}

static void a_line_names_the_losses_that_kd_train_takes(void **state) {
    (void)state;
    kd_recipe r = {.image_h = 224, .image_w = 224, .width = 8, .grid_h = 16, .grid_w = 16, .layers = 1, .layer = {1}};
    r.features = 1u << KD_FEATURE_CLS;
    agree(&r, 10);
    r.features = 1u << KD_FEATURE_PATCH;
    r.targets = 1;
    r.target[0] = (kd_target){.kind = KD_TARGET_FULL};
    agree(&r, 10);
    r.target[0] = (kd_target){KD_TARGET_POOL, 7, 7};
    agree(&r, 10);
    r.target[0] = (kd_target){KD_TARGET_ADJOINT, 7, 7};
    agree(&r, 2);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test_setup_teardown(a_line_names_the_losses_that_kd_train_takes, fresh, drop)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}

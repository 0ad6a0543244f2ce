/* Patch targets: which form of the patches a student learns, and that what can't serve it is refused with what to do. */
#include "tests/unit/unit.h"

#include "train/patch_target.h"

static kd_err err;

static const kd_target FULL = {KD_TARGET_FULL, 0, 0}, POOL4 = {KD_TARGET_POOL, 4, 4}, POOL8 = {KD_TARGET_POOL, 8, 8}, ADJOINT7 = {KD_TARGET_ADJOINT, 7, 7},
                       ADJOINT14 = {KD_TARGET_ADJOINT, 14, 14}, ADJOINT46 = {KD_TARGET_ADJOINT, 4, 6};

static kd_patch_learner resnet(int map_h, int map_w) {
    return (kd_patch_learner){.student = "resnet18", .loss = "std-mse", .pair = "patch", .map_h = map_h, .map_w = map_w, .image_h = map_h * 32, .image_w = map_w * 32};
}

static kd_status choose(int *chosen, const kd_target *t, int n, const char *wish, kd_patch_learner l) {
    return kd_patch_target_choose(chosen, &(kd_patch_offer){"photos.kdc", t, n}, wish, &l, &err);
}

static void chosen(int want, const kd_target *t, int n, const char *wish, int map_h, int map_w) {
    int got;
    assert_ok(choose(&got, t, n, wish, resnet(map_h, map_w)));
    assert_int_equal(got, want);
}

static void auto_takes_the_students_own_map_then_full_then_pool(void **state) {
    (void)state;
    const kd_target all[] = {POOL4, FULL, ADJOINT7, ADJOINT14}, pools[] = {ADJOINT7, POOL4, POOL8}, wide[] = {ADJOINT46, FULL};
    chosen(2, all, 4, "auto", 7, 7);
    chosen(3, all, 4, "auto", 14, 14);
    chosen(1, all, 4, "auto", 4, 4);
    chosen(1, all, 4, "auto", 7, 14); /* both sides count */
    chosen(2, pools, 3, "auto", 16, 16);
    chosen(0, pools, 3, "auto", 7, 7);
    chosen(0, wide, 2, "auto", 4, 6);
    chosen(1, wide, 2, "auto", 6, 4);
}

static void a_named_target_is_taken(void **state) {
    (void)state;
    const kd_target all[] = {FULL, POOL4, ADJOINT7, ADJOINT46};
    chosen(0, all, 4, "full", 7, 7);
    chosen(1, all, 4, "pool:4", 7, 7);
    chosen(2, all, 4, "adjoint:7", 7, 7);
    chosen(2, all, 4, "adjoint:7x7", 7, 7);
    chosen(3, all, 4, "adjoint:4x6", 4, 6);
}

static void a_map_that_nothing_fits_is_refused_with_what_to_do(void **state) {
    (void)state;
    int got;
    const kd_target t[] = {ADJOINT7, ADJOINT14};
    assert_int_equal(choose(&got, t, 2, "auto", resnet(4, 5)), KD_EUSAGE);
    assert_string_equal(err.msg, "--student resnet18: its feature map at 128x160 px is 4x5, which isn't served by adjoint:7, adjoint:14 (photos.kdc holds adjoint:7, adjoint:14); give a --student-size at which "
                                 "the map fits, or make a fitting cache: kd-cache extract FULL.kdc --patch-target adjoint:4x5 --out NEW.kdc from one with full patches, or kd-precompute --patch-target adjoint:4x5");
    const kd_target with_full[] = {FULL, ADJOINT7};
    assert_int_equal(choose(&got, with_full, 2, "adjoint:7", resnet(4, 4)), KD_EUSAGE);
    assert_contains(err.msg, "4x4, which isn't served by adjoint:7 (photos.kdc holds full, adjoint:7)");
}

static void a_target_that_is_not_there_is_refused_with_what_is(void **state) {
    (void)state;
    int got;
    const kd_target t[] = {FULL, ADJOINT7};
    assert_int_equal(choose(&got, t, 2, "adjoint:4", resnet(4, 4)), KD_EUSAGE);
    assert_contains(err.msg, "--patch-target adjoint:4: photos.kdc holds full, adjoint:7; give one of them, or make it: kd-cache extract FULL.kdc --patch-target adjoint:4 --out NEW.kdc from a cache");
    assert_int_equal(choose(&got, t, 2, "adjoin:4", resnet(4, 4)), KD_EUSAGE);
    assert_contains(err.msg, "--patch-target adjoin:4");
}

static void a_loss_of_single_tokens_refuses_adjoint_by_name(void **state) {
    (void)state;
    int got;
    const kd_target adjoint[] = {ADJOINT7}, both[] = {ADJOINT7, FULL};
    kd_patch_learner l = resnet(7, 7);
    l.loss = "radio";
    l.compares = "cosine";
    assert_int_equal(choose(&got, adjoint, 1, "auto", l), KD_EUSAGE);
    assert_contains(err.msg, "--loss radio: pair patch compares single patch tokens (cosine), and of adjoint:7 in photos.kdc nothing but sums over the grid is stored");
    assert_int_equal(choose(&got, both, 2, "adjoint:7", l), KD_EUSAGE);
    assert_contains(err.msg, "learn patches with squared error (--loss std-mse or mse)");
    assert_ok(choose(&got, both, 2, "auto", l));
    assert_int_equal(got, 1);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(auto_takes_the_students_own_map_then_full_then_pool), cmocka_unit_test(a_named_target_is_taken),
        cmocka_unit_test(a_map_that_nothing_fits_is_refused_with_what_to_do), cmocka_unit_test(a_target_that_is_not_there_is_refused_with_what_is),
        cmocka_unit_test(a_loss_of_single_tokens_refuses_adjoint_by_name),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

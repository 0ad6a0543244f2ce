/* What happens when: learning rates, views of an epoch, the held-out part. */
#include "tests/unit/unit.h"

#include <math.h>

#include "train/schedule.h"

static kd_err err;

static kd_hash128 id_of(unsigned i) {
    return kd_xxh128(&i, sizeof i);
}

static void warm_up_is_linear_and_ends_at_the_peak(void **state) {
    (void)state;
    kd_schedule s = {.base = 0.4, .warmup = 4, .total = 20};
    for (int i = 0; i < 4; i++)
        assert_true(fabs(kd_schedule_lr(&s, i) - 0.1 * (i + 1)) < 1e-15);
    assert_true(fabs(kd_schedule_lr(&s, 4) - 0.4) < 1e-15); /* the cosine begins at the peak */
}

static void cosine_falls_to_a_thousandth_at_the_last_step(void **state) {
    (void)state;
    kd_schedule s = {.base = 2, .warmup = 0, .total = 101};
    assert_true(fabs(kd_schedule_lr(&s, 0) - 2) < 1e-12);
    assert_true(fabs(kd_schedule_lr(&s, 50) - (2 + 0.002) / 2) < 1e-12);
    assert_true(fabs(kd_schedule_lr(&s, 100) - 0.002) < 1e-12);
    for (int i = 1; i <= 100; i++)
        assert_true(kd_schedule_lr(&s, i) < kd_schedule_lr(&s, i - 1));
}

static void schedules_of_one_step_and_of_warm_up_alone_are_finite(void **state) {
    (void)state;
    kd_schedule one = {.base = 1, .warmup = 0, .total = 1}, warm = {.base = 1, .warmup = 3, .total = 3};
    assert_true(isfinite(kd_schedule_lr(&one, 0)) && kd_schedule_lr(&one, 0) > 0);
    assert_true(kd_schedule_lr(&warm, 2) == 1);
}

static void every_view_is_shown_once_in_as_many_epochs(void **state) {
    (void)state;
    static const uint32_t counts[] = {1, 2, 3, 8, 13};
    for (unsigned i = 0; i < 50; i++)
        for (size_t k = 0; k < sizeof counts / sizeof *counts; k++) {
            unsigned seen = 0;
            kd_hash128 id = id_of(i);
            for (uint32_t e = 0; e < counts[k]; e++)
                seen |= 1u << kd_epoch_view(&id, e + 1000, counts[k]);
            assert_int_equal(seen, (1u << counts[k]) - 1);
        }
}

static void images_are_out_of_phase(void **state) {
    (void)state;
    int first[4] = {0};
    for (unsigned i = 0; i < 4000; i++) {
        kd_hash128 id = id_of(i);
        first[kd_epoch_view(&id, 0, 4)]++;
    }
    for (int v = 0; v < 4; v++)
        assert_true(first[v] > 850 && first[v] < 1150);
}

static void the_split_is_a_property_of_the_image(void **state) {
    (void)state;
    enum { N = 5000 };
    static uint64_t keys[N];
    static uint8_t held[N];
    kd_split all, half;
    for (unsigned i = 0; i < N; i++) {
        kd_hash128 id = id_of(i);
        keys[i] = kd_split_key(&id, "a/b.jpg", 0);
        assert_true(keys[i] == kd_hash128_low64(&id));
    }
    assert_ok(kd_split_make(&all, N, keys, NULL, 0.1, 0, &err));
    assert_int_equal(all.train_count + all.held_count, N);
    assert_true(all.held_count > 400 && all.held_count < 600);
    assert_int_equal(all.groups, N);
    assert_int_equal(all.held_groups, all.held_count);
    for (size_t i = 0; i < all.held_count; i++)
        held[all.held[i]] = 1;
    for (size_t i = 0; i < all.train_count; i++)
        assert_int_equal(held[all.train[i]], 0);
    assert_ok(kd_split_make(&half, N / 2, keys, NULL, 0.1, 0, &err)); /* other images around: the same choice */
    for (size_t i = 0; i < half.held_count; i++)
        assert_int_equal(held[half.held[i]], 1);
    for (size_t i = 0; i < half.train_count; i++)
        assert_int_equal(held[half.train[i]], 0);
    kd_split_free(&half);
    assert_ok(kd_split_make(&half, N, keys, NULL, 0.1, 1, &err)); /* another seed: another choice */
    assert_true(half.held_count != all.held_count || memcmp(half.held, all.held, all.held_count * sizeof *all.held) != 0);
    kd_split_free(&all);
    kd_split_free(&half);
}

static void a_small_set_still_holds_one_out(void **state) {
    (void)state;
    uint64_t keys[5];
    kd_split s;
    for (unsigned i = 0; i < 5; i++) {
        kd_hash128 id = id_of(i);
        keys[i] = kd_hash128_low64(&id);
    }
    assert_ok(kd_split_make(&s, 5, keys, NULL, 1e-6, 0, &err));
    assert_int_equal(s.held_count, 1);
    assert_int_equal(s.train_count, 4);
    kd_split_free(&s);
    assert_ok(kd_split_make(&s, 5, keys, NULL, 0, 0, &err));
    assert_int_equal(s.held_count, 0);
    assert_int_equal(s.held_groups, 0);
    kd_split_free(&s);
}

static uint64_t key_of(const char *path, int depth) {
    kd_hash128 id = id_of((unsigned)strlen(path));
    return kd_split_key(&id, path, depth);
}

static void a_group_is_what_shares_its_first_folders(void **state) {
    (void)state;
    assert_true(key_of("v1/s1/000.jpg", 1) == key_of("v1/s2/1000.jpg", 1));
    assert_true(key_of("v1/s1/000.jpg", 2) != key_of("v1/s2/000.jpg", 2));
    assert_true(key_of("v1/s1/000.jpg", 2) == key_of("v1/s1/a/b/c.jpg", 2));
    assert_true(key_of("v1/000.jpg", 1) != key_of("v11/000.jpg", 1));
    assert_true(key_of("v1/000.jpg", 5) == key_of("v1/1000.jpg", 5)); /* fewer folders: all of them */
    assert_true(key_of("000.jpg", 1) == key_of("1000.jpg", 1));
    assert_true(key_of("./v1/000.jpg", 1) == key_of("v1/1.jpg", 1));
    assert_true(key_of("/v1/000.jpg", 1) == key_of("v1/1.jpg", 1));
}

static void groups_stay_on_one_side(void **state) {
    (void)state;
    enum { N = 2000, GROUPS = 100 };
    static uint64_t keys[N];
    static int side[GROUPS];
    kd_split s;
    char path[64];
    for (int i = 0; i < N; i++) {
        snprintf(path, sizeof path, "video %d/%d.jpg", i % GROUPS, i);
        keys[i] = key_of(path, 1);
    }
    assert_ok(kd_split_make(&s, N, keys, NULL, 0.2, 0, &err));
    assert_int_equal(s.groups, GROUPS);
    assert_true(s.held_groups > 8 && s.held_groups < 35);
    assert_int_equal(s.held_count, s.held_groups * (N / GROUPS));
    for (size_t i = 0; i < s.held_count; i++)
        side[s.held[i] % GROUPS] = 1;
    for (size_t i = 0; i < s.train_count; i++)
        assert_int_equal(side[s.train[i] % GROUPS], 0);
    kd_split_free(&s);
    assert_ok(kd_split_make(&s, N, keys, NULL, 1e-9, 0, &err)); /* at least one group, whole */
    assert_int_equal(s.held_groups, 1);
    assert_int_equal(s.held_count, N / GROUPS);
    kd_split_free(&s);
}

static void a_list_holds_out_what_it_names_with_its_groups(void **state) {
    (void)state;
    const uint64_t alone[6] = {10, 11, 12, 13, 14, 15}, grouped[6] = {1, 2, 1, 3, 2, 3};
    const uint8_t listed[6] = {0, 1, 0, 0, 0, 0};
    kd_split s;
    assert_ok(kd_split_make(&s, 6, alone, listed, 0.5, 0, &err)); /* the fraction draws nothing */
    assert_int_equal(s.held_count, 1);
    assert_int_equal(s.held[0], 1);
    assert_int_equal(s.train_count, 5);
    kd_split_free(&s);
    assert_ok(kd_split_make(&s, 6, grouped, listed, 0.5, 0, &err));
    assert_int_equal(s.held_count, 2);
    assert_int_equal(s.held[0], 1);
    assert_int_equal(s.held[1], 4);
    assert_int_equal(s.groups, 3);
    assert_int_equal(s.held_groups, 1);
    kd_split_free(&s);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(warm_up_is_linear_and_ends_at_the_peak),
        cmocka_unit_test(cosine_falls_to_a_thousandth_at_the_last_step),
        cmocka_unit_test(schedules_of_one_step_and_of_warm_up_alone_are_finite),
        cmocka_unit_test(every_view_is_shown_once_in_as_many_epochs),
        cmocka_unit_test(images_are_out_of_phase),
        cmocka_unit_test(the_split_is_a_property_of_the_image),
        cmocka_unit_test(a_small_set_still_holds_one_out),
        cmocka_unit_test(a_group_is_what_shares_its_first_folders),
        cmocka_unit_test(groups_stay_on_one_side),
        cmocka_unit_test(a_list_holds_out_what_it_names_with_its_groups),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

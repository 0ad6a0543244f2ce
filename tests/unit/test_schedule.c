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

static const kd_hash128 *nth(const void *ctx, size_t i) {
    return (const kd_hash128 *)ctx + i;
}

static void the_split_is_a_property_of_the_image(void **state) {
    (void)state;
    enum { N = 5000 };
    static kd_hash128 ids[N];
    static uint8_t held[N];
    kd_split all, half;
    for (unsigned i = 0; i < N; i++)
        ids[i] = id_of(i);
    assert_ok(kd_split_make(&all, N, nth, ids, 0.1, 0, &err));
    assert_int_equal(all.train_count + all.held_count, N);
    assert_true(all.held_count > 400 && all.held_count < 600);
    for (size_t i = 0; i < all.held_count; i++)
        held[all.held[i]] = 1;
    for (size_t i = 0; i < all.train_count; i++)
        assert_int_equal(held[all.train[i]], 0);
    assert_ok(kd_split_make(&half, N / 2, nth, ids, 0.1, 0, &err)); /* other images around: the same choice */
    for (size_t i = 0; i < half.held_count; i++)
        assert_int_equal(held[half.held[i]], 1);
    for (size_t i = 0; i < half.train_count; i++)
        assert_int_equal(held[half.train[i]], 0);
    kd_split_free(&half);
    assert_ok(kd_split_make(&half, N, nth, ids, 0.1, 1, &err)); /* another seed: another choice */
    assert_true(half.held_count != all.held_count || memcmp(half.held, all.held, all.held_count * sizeof *all.held) != 0);
    kd_split_free(&all);
    kd_split_free(&half);
}

static void a_small_set_still_holds_one_out(void **state) {
    (void)state;
    kd_hash128 ids[5];
    kd_split s;
    for (unsigned i = 0; i < 5; i++)
        ids[i] = id_of(i);
    assert_ok(kd_split_make(&s, 5, nth, ids, 1e-6, 0, &err));
    assert_int_equal(s.held_count, 1);
    assert_int_equal(s.train_count, 4);
    kd_split_free(&s);
    assert_ok(kd_split_make(&s, 5, nth, ids, 0, 0, &err));
    assert_int_equal(s.held_count, 0);
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
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

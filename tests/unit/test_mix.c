/* Mixup: partner and lambda equal those of an independent drawing, blended bytes those of numpy (tests/golden/image/mix.txt); entries of mixed views hold both plans, and nothing else passes. */
#include "tests/unit/unit.h"

#include <math.h>

#include "cache/entry.h"
#include "common/image/mix.h"

static kd_err err;

enum { MOST = 1000 };

static int by_id(const void *a, const void *b) { return memcmp(a, b, sizeof(kd_hash128)); }

static kd_hash128 image_id(unsigned i) {
    char text[32];
    snprintf(text, sizeof text, "image %u", i);
    return kd_xxh128(text, strlen(text));
}

static void fill_set(kd_hash128 *ids, size_t n) {
    for (size_t i = 0; i < n; i++)
        ids[i] = image_id((unsigned)i);
    qsort(ids, n, sizeof *ids, by_id);
}

static kd_policy policy_of(double p) {
    kd_policy policy;
    assert_ok(kd_policy_load(&policy, "lightly+mixup", 8, 8, &err));
    policy.mix_p = p;
    return policy;
}

static kd_plan drawn(double p, uint64_t seed, const kd_hash128 *id, uint32_t view, const kd_hash128 *ids, size_t n) {
    kd_policy policy = policy_of(p);
    kd_plan plan = kd_plan_draw(&policy, seed, id, view, 100, 80);
    kd_mix_draw(&plan, &policy, seed, id, view, ids, n);
    return plan;
}

static void draws_and_digests_equal_an_independent_drawing(void **state) {
    (void)state;
    static kd_hash128 ids[MOST];
    FILE *f = fopen("tests/golden/image/mix.txt", "r");
    assert_non_null(f);
    char line[200], hex[80], got[80];
    unsigned long long seed;
    unsigned n, image, view, share, sets = 0, draws = 0;
    while (fgets(line, sizeof line, f) != NULL) {
        if (sscanf(line, "set %u %79s", &n, hex) == 2) {
            assert_true(n <= MOST);
            fill_set(ids, n);
            kd_sha256 digest = kd_mix_digest(ids, n);
            kd_hex(got, digest.b, sizeof digest.b);
            assert_string_equal(got, hex);
            sets++;
        } else if (sscanf(line, "draw %u %llu %u %u %u %79s", &n, &seed, &image, &view, &share, hex) == 6) {
            kd_hash128 id = image_id(image);
            kd_plan plan = drawn(1.0, seed, &id, view, ids, n);
            kd_hex(got, plan.mix_partner.b, 16);
            assert_string_equal(got, hex);
            assert_true(plan.mix_lambda == (float)share / 65536.0f);
            assert_int_equal(plan.mix_view, view);
            draws++;
        }
    }
    fclose(f);
    assert_int_equal(sets, 4);
    assert_int_equal(draws, 3 * 3 * (2 + 3 + 3 + 3));
}

static void blended_bytes_equal_numpys(void **state) {
    (void)state;
    static uint8_t p[65536], q[65536];
    FILE *f = fopen("tests/golden/image/mix.txt", "r");
    assert_non_null(f);
    char line[200], hex[40], got[33];
    unsigned share, n = 0;
    while (fgets(line, sizeof line, f) != NULL) {
        if (sscanf(line, "blend %u %39s", &share, hex) != 2)
            continue;
        for (unsigned i = 0; i < 65536; i++) {
            p[i] = (uint8_t)(167 * i + (i >> 8));
            q[i] = (uint8_t)(91 * i + 7 * (i >> 8));
        }
        kd_mix_bytes(p, q, sizeof p, (float)share / 65536.0f);
        kd_hash128 h = kd_xxh128(p, sizeof p);
        kd_hex(got, h.b, 16);
        assert_string_equal(got, hex);
        n++;
    }
    fclose(f);
    assert_int_equal(n, 11);
}

static void a_partner_is_any_other_image_and_the_rest_of_the_plan_stays(void **state) {
    (void)state;
    enum { N = 5, VIEWS = 4000 };
    kd_hash128 ids[N];
    int seen[N] = {0};
    double sum = 0;
    fill_set(ids, N);
    for (uint32_t v = 0; v < VIEWS; v++) {
        kd_plan plain = drawn(0.0, 3, &ids[2], v, ids, N), plan = drawn(1.0, 3, &ids[2], v, ids, N);
        for (int i = 0; i < N; i++)
            seen[i] += memcmp(&plan.mix_partner, &ids[i], sizeof ids[i]) == 0;
        sum += (double)plan.mix_lambda;
        assert_false(kd_plan_is_mixed(&plain));
        plan.mix_lambda = 1.0f;
        plan.mix_view = 0;
        memset(&plan.mix_partner, 0, sizeof plan.mix_partner);
        uint8_t a[KD_PLAN_BYTES], b[KD_PLAN_BYTES];
        kd_plan_encode(&plain, a);
        kd_plan_encode(&plan, b);
        assert_memory_equal(a, b, sizeof a);
    }
    assert_int_equal(seen[2], 0);
    for (int i = 0; i < N; i++)
        assert_true(i == 2 || abs(seen[i] - VIEWS / (N - 1)) < 150); /* more than five deviations */
    assert_true(fabs(sum / VIEWS - 0.5) < 0.025);
}

static void probability_decides_and_one_image_has_no_partner(void **state) {
    (void)state;
    kd_hash128 ids[7];
    int mixed = 0;
    fill_set(ids, 7);
    for (uint32_t v = 0; v < 4000; v++) {
        kd_plan plan = drawn(0.25, 9, &ids[0], v, ids, 7), always = drawn(1.0, 9, &ids[0], v, ids, 7);
        mixed += kd_plan_is_mixed(&plan);
        if (kd_plan_is_mixed(&plan)) { /* the probability moves neither partner nor lambda */
            assert_memory_equal(&plan.mix_partner, &always.mix_partner, 16);
            assert_true(plan.mix_lambda == always.mix_lambda);
        }
        plan = drawn(1.0, 9, &ids[0], v, ids, 1);
        assert_false(kd_plan_is_mixed(&plan));
    }
    assert_true(abs(mixed - 1000) < 150);
    assert_true(kd_mix_has(ids, 7, &ids[6]));
    assert_false(kd_mix_has(ids, 6, &ids[6]));
}

static void a_mixed_view_is_the_blend_of_two_views(void **state) {
    (void)state;
    enum { SIDE = 8, BYTES = SIDE * SIDE * 3 };
    kd_hash128 ids[2];
    fill_set(ids, 2);
    kd_policy policy = policy_of(1.0);
    uint8_t rgb[2][20 * 16 * 3], out[BYTES], want[BYTES], other[BYTES];
    kd_image img[2] = {{.rgb = rgb[0], .width = 20, .height = 16}, {.rgb = rgb[1], .width = 16, .height = 20}};
    for (unsigned i = 0; i < sizeof rgb[0]; i++) {
        rgb[0][i] = (uint8_t)(i * 37);
        rgb[1][i] = (uint8_t)(i * i);
    }
    kd_view_scratch scratch = {0};
    for (uint32_t v = 0; v < 5; v++) {
        kd_plan plan = kd_plan_draw(&policy, 1, &ids[0], v, 20, 16), partner = kd_plan_draw(&policy, 1, &ids[1], v, 16, 20);
        assert_ok(kd_plan_apply(&plan, &img[0], want, &scratch, &err));
        assert_ok(kd_plan_apply(&partner, &img[1], other, &scratch, &err));
        kd_mix_draw(&plan, &policy, 1, &ids[0], v, ids, 2);
        kd_mix_bytes(want, other, BYTES, plan.mix_lambda);
        assert_ok(kd_plan_apply(&plan, &img[0], out, &scratch, &err));
        assert_ok(kd_view_mix(out, &plan, &partner, &img[1], &scratch, &err));
        assert_memory_equal(out, want, BYTES);
        /* The partner's file isn't the one that was planned. */
        partner.crop_w = 17;
        assert_int_equal(kd_view_mix(out, &plan, &partner, &img[1], &scratch, &err), KD_EMISMATCH);
    }
    kd_view_scratch_free(&scratch);
}

/* ---- entries ---- */

static const uint8_t identity[8] = {1, 2, 3, 4, 5, 6, 7, 8};

static kd_view_entry mixed_entry(void) {
    kd_hash128 ids[2];
    fill_set(ids, 2);
    kd_policy policy = policy_of(1.0);
    kd_view_entry e = {.image = ids[0], .view = 3, .view_hash = ids[1], .plan = drawn(1.0, 5, &ids[0], 3, ids, 2)};
    e.partner = kd_plan_draw(&policy, 5, &ids[1], 3, 50, 60);
    return e;
}

static kd_status decode(kd_view_entry *out, const kd_view_entry *e, const uint8_t *value, size_t size) {
    uint8_t key[KD_VIEW_KEY_BYTES];
    kd_view_key(key, &e->image, e->view);
    return kd_view_value_decode(out, (kd_bytes){key, sizeof key}, (kd_bytes){value, size}, identity, "x.kdc", &err);
}

/* With the checksum that makes the change credible. */
static void reseal(uint8_t *value, size_t size, const kd_view_entry *e) {
    uint8_t key[KD_VIEW_KEY_BYTES];
    kd_view_key(key, &e->image, e->view);
    kd_hash128 h = kd_xxh128_2(key, sizeof key, value + 16, size - 16);
    memcpy(value, h.b, 16);
}

static void an_entry_holds_both_plans(void **state) {
    (void)state;
    kd_view_entry e = mixed_entry(), got;
    uint8_t value[KD_MIXED_VALUE_BYTES], a[KD_PLAN_BYTES], b[KD_PLAN_BYTES];
    assert_int_equal(kd_view_value_encode(value, identity, &e), 432);
    assert_ok(decode(&got, &e, value, 432));
    kd_plan_encode(&e.plan, a);
    kd_plan_encode(&got.plan, b);
    assert_memory_equal(a, b, sizeof a);
    kd_plan_encode(&e.partner, a);
    kd_plan_encode(&got.partner, b);
    assert_memory_equal(a, b, sizeof a);
    e.plan = drawn(0.0, 5, &e.image, 3, &e.image, 1);
    assert_int_equal(kd_view_value_encode(value, identity, &e), 240);
    assert_ok(decode(&got, &e, value, 240));
    kd_view_entry zero = {0};
    assert_memory_equal(&got.partner, &zero.partner, sizeof got.partner);
}

static void entries_that_contradict_themselves_are_damaged(void **state) {
    (void)state;
    kd_view_entry e = mixed_entry(), got, other = e;
    uint8_t value[KD_MIXED_VALUE_BYTES];
    kd_view_value_encode(value, identity, &e);
    reseal(value, 240, &e); /* mixed, without the partner's plan */
    assert_int_equal(decode(&got, &e, value, 240), KD_EDAMAGED);
    other.plan = drawn(0.0, 5, &e.image, 3, &e.image, 1);
    kd_view_value_encode(value, identity, &other);
    memset(value + 240, 0, 192);
    reseal(value, 432, &e); /* not mixed, with one */
    assert_int_equal(decode(&got, &e, value, 432), KD_EDAMAGED);
    assert_non_null(strstr(err.msg, "not mixed"));
    other = e;
    other.partner = e.plan; /* a partner that is mixed itself */
    assert_int_equal(kd_view_value_encode(value, identity, &other), 432);
    assert_int_equal(decode(&got, &e, value, 432), KD_EDAMAGED);
    other = e;
    other.partner.out_w--; /* of another size */
    kd_view_value_encode(value, identity, &other);
    assert_int_equal(decode(&got, &e, value, 432), KD_EDAMAGED);
    kd_view_value_encode(value, identity, &e);
    for (size_t i = 240; i < 432; i += 7) {
        value[i] ^= 0x40;
        assert_int_equal(decode(&got, &e, value, 432), KD_EDAMAGED);
        value[i] ^= 0x40;
    }
    assert_ok(decode(&got, &e, value, 432));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(draws_and_digests_equal_an_independent_drawing),
        cmocka_unit_test(blended_bytes_equal_numpys),
        cmocka_unit_test(a_partner_is_any_other_image_and_the_rest_of_the_plan_stays),
        cmocka_unit_test(probability_decides_and_one_image_has_no_partner),
        cmocka_unit_test(a_mixed_view_is_the_blend_of_two_views),
        cmocka_unit_test(an_entry_holds_both_plans),
        cmocka_unit_test(entries_that_contradict_themselves_are_damaged),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

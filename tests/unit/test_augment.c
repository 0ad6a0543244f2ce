/* Views: drawn plans and their pixels equal those of an independent drawing and of Pillow + torchvision (tests/golden/image/views), records are
 * read back exactly or refused, and each variable has its own random numbers. */
#include "tests/unit/unit.h"

#include <math.h>

#include "common/base/io.h"
#include "common/base/mem.h"
#include "common/image/augment.h"

#define VIEWS "tests/golden/image/views/"

static kd_err err;

/* ---- reading goldens ---- */

static void ints_of(const json_t *plan, const char *key, int n, int32_t *const *out) {
    const json_t *a = json_object_get(plan, key);
    assert_int_equal(json_array_size(a), n);
    for (int i = 0; i < n; i++)
        *out[i] = (int32_t)json_integer_value(json_array_get(a, (size_t)i));
}

static kd_plan plan_of(const json_t *j) {
    static const char *const jitter[4] = {"brightness", "contrast", "saturation", "hue"}, *const filter[3] = {"box", "bilinear", "bicubic"};
    kd_plan p;
    memset(&p, 0, sizeof p);
    ints_of(j, "crop", 4, (int32_t *const[]){&p.crop_x, &p.crop_y, &p.crop_w, &p.crop_h});
    ints_of(j, "resize", 2, (int32_t *const[]){&p.resize_w, &p.resize_h});
    ints_of(j, "out", 4, (int32_t *const[]){&p.out_x, &p.out_y, &p.out_w, &p.out_h});
    for (uint8_t i = 0; i < 3; i++)
        if (strcmp(json_string_value(json_object_get(j, "filter")), filter[i]) == 0)
            p.filter = i;
    p.hflip = json_is_true(json_object_get(j, "hflip"));
    p.gray = json_is_true(json_object_get(j, "gray"));
    const json_t *order = json_object_get(j, "jitter_order"), *factor = json_object_get(j, "jitter_factor");
    memset(p.jitter_order, KD_JITTER_NONE, 4);
    for (uint8_t k = 0; k < 4; k++) {
        p.jitter_factor[k] = (float)json_number_value(json_object_get(factor, jitter[k]));
        for (size_t i = 0; i < json_array_size(order); i++)
            if (strcmp(json_string_value(json_array_get(order, i)), jitter[k]) == 0)
                p.jitter_order[i] = k;
    }
    p.vflip = json_is_true(json_object_get(j, "vflip"));
    const json_t *solarize = json_object_get(j, "solarize"), *blur = json_object_get(j, "blur"), *weights = json_object_get(blur, "weights");
    p.solarize = solarize ? (uint16_t)json_integer_value(solarize) : KD_SOLARIZE_OFF;
    p.blur_radius = (uint8_t)json_integer_value(json_object_get(blur, "radius"));
    p.blur_sigma = (float)json_number_value(json_object_get(blur, "sigma"));
    assert_int_equal(json_array_size(weights), p.blur_radius > 0 ? p.blur_radius + 1 : 0);
    for (size_t i = 0; i < json_array_size(weights); i++)
        p.blur_weight[i] = (uint32_t)json_integer_value(json_array_get(weights, i));
    p.mix_lambda = 1.0f;
    return p;
}

static void assert_same_plan(const kd_plan *a, const kd_plan *b, const char *what) {
    uint8_t x[KD_PLAN_BYTES], y[KD_PLAN_BYTES];
    kd_plan_encode(a, x);
    kd_plan_encode(b, y);
    for (int i = 0; i < KD_PLAN_BYTES; i++)
        if (x[i] != y[i])
            fail_msg("%s: the plans differ at byte %d of their records", what, i);
}

typedef struct golden_case {
    json_t *line;
    const char *file;
    uint8_t *bytes;
    size_t size;
    kd_image img;
} golden_case;

static void check_case(golden_case *c, kd_view_scratch *scratch) {
    kd_plan expected = plan_of(json_object_get(c->line, "plan")), plan = expected, decoded;
    if (strcmp(json_string_value(json_object_get(c->line, "kind")), "drawn") == 0) {
        kd_policy policy;
        const char *preset = json_string_value(json_object_get(c->line, "preset"));
        const json_t *size = json_object_get(c->line, "size"); /* a side, or rows and columns */
        int side = (int)json_integer_value(size), h = (int)json_integer_value(json_array_get(size, 0)), w = (int)json_integer_value(json_array_get(size, 1));
        assert_ok(kd_policy_load(&policy, preset, side ? side : h, side ? side : w, &err));
        kd_hash128 id = kd_xxh128(c->bytes, c->size);
        uint64_t seed = strtoull(json_string_value(json_object_get(c->line, "seed")), NULL, 10);
        plan = kd_plan_draw(&policy, seed, &id, (uint32_t)json_integer_value(json_object_get(c->line, "view")), c->img.width, c->img.height);
        assert_same_plan(&plan, &expected, preset);
    }
    uint8_t record[KD_PLAN_BYTES];
    kd_plan_encode(&plan, record);
    assert_ok(kd_plan_decode(&decoded, record, &err));
    assert_same_plan(&decoded, &plan, "decoded");
    json_t *json = kd_plan_json(&decoded, NULL); /* what Python users replay from must hold every parameter */
    kd_plan from_json = plan_of(json);
    assert_same_plan(&from_json, &plan, "from JSON");
    json_decref(json);

    uint8_t *out = malloc((size_t)plan.out_w * (size_t)plan.out_h * 3);
    assert_non_null(out);
    assert_ok(kd_plan_apply(&decoded, &c->img, out, scratch, &err));
    kd_hash128 h = kd_view_hash(out, plan.out_w, plan.out_h);
    char hex[33];
    kd_hex(hex, h.b, 16);
    if (strcmp(hex, json_string_value(json_object_get(c->line, "hash"))) != 0) {
        char *text = json_dumps(c->line, JSON_COMPACT);
        print_error("%s\n", text);
        fail_msg("%s: the view has other pixels than in Pillow", c->file);
    }
    free(out);
}

static void views_equal_pillow_and_torchvision(void **state) {
    (void)state;
    FILE *f = fopen(VIEWS "views.jsonl", "r");
    assert_non_null(f);
    char text[4096], path[256];
    int drawn = 0, given = 0;
    kd_view_scratch scratch = {0};
    golden_case c = {0};
    while (fgets(text, sizeof text, f)) {
        assert_ok(kd_json_parse(text, strlen(text), "views.jsonl", &c.line, &err));
        c.file = json_string_value(json_object_get(c.line, "file"));
        snprintf(path, sizeof path, VIEWS "%s", c.file);
        assert_ok(kd_io_read_all(path, 1 << 20, &c.bytes, &c.size, &err));
        assert_ok(kd_image_decode(&c.img, c.bytes, c.size, path, NULL, &err));
        if (json_object_get(c.line, "preset"))
            drawn++;
        else
            given++;
        check_case(&c, &scratch);
        kd_free(c.bytes);
        json_decref(c.line);
    }
    assert_int_equal(drawn, 198);
    assert_int_equal(given, 89);
    kd_image_free(&c.img);
    kd_view_scratch_free(&scratch);
    fclose(f);
}

/* ---- drawing ---- */

static kd_hash128 id_of(uint64_t n) { return kd_xxh128(&n, sizeof n); }

/* The shape of the picture changes which of the ten crop tries succeeds; nothing else may move. */
static void the_crop_shifts_no_other_variable(void **state) {
    (void)state;
    kd_policy p;
    assert_ok(kd_policy_load(&p, "dino", 224, 224, &err));
    p.vflip_p = 0.5;
    for (uint32_t view = 0; view < 500; view++) {
        kd_hash128 id = id_of(9);
        kd_plan a = kd_plan_draw(&p, 3, &id, view, 640, 480), b = kd_plan_draw(&p, 3, &id, view, 2000, 31);
        assert_int_equal(a.hflip, b.hflip);
        assert_int_equal(a.vflip, b.vflip);
        assert_int_equal(a.gray, b.gray);
        assert_int_equal(a.solarize, b.solarize);
        assert_int_equal(a.blur_radius, b.blur_radius);
        assert_true(a.blur_sigma == b.blur_sigma);
        assert_memory_equal(a.jitter_order, b.jitter_order, sizeof a.jitter_order);
        assert_memory_equal(a.jitter_factor, b.jitter_factor, sizeof a.jitter_factor);
    }
}

static void plans_follow_the_policy(void **state) {
    (void)state;
    enum { N = 20000 };
    kd_policy p;
    assert_ok(kd_policy_load(&p, "lightly", 224, 224, &err));
    int flips = 0, grays = 0, jitters = 0, first[4] = {0}, last[4] = {0};
    double area = 0;
    for (uint64_t i = 0; i < N; i++) {
        kd_hash128 id = id_of(i);
        kd_plan plan = kd_plan_draw(&p, 1, &id, (uint32_t)(i % 8), 500, 375);
        double share = (double)plan.crop_w * plan.crop_h / (500.0 * 375.0), ratio = (double)plan.crop_w / plan.crop_h;
        assert_true(share > 0.135 && share <= 1.0);
        assert_true(ratio > 0.74 && ratio < 1.35);
        assert_true(plan.crop_x >= 0 && plan.crop_y >= 0 && plan.crop_x + plan.crop_w <= 500 && plan.crop_y + plan.crop_h <= 375);
        assert_true(plan.jitter_factor[0] >= 0.6f && plan.jitter_factor[0] <= 1.4f && plan.jitter_factor[2] >= 0.8f && plan.jitter_factor[2] <= 1.2f);
        assert_true(fabsf(plan.jitter_factor[3]) <= 0.1f);
        area += share;
        flips += plan.hflip;
        grays += plan.gray;
        if (plan.jitter_order[0] != KD_JITTER_NONE) {
            jitters++;
            first[plan.jitter_order[0]]++;
            last[plan.jitter_order[3]]++;
        }
    }
    assert_in_range(flips, N * 48 / 100, N * 52 / 100);
    assert_in_range(grays, N * 19 / 100, N * 21 / 100);
    assert_in_range(jitters, N * 79 / 100, N * 81 / 100);
    for (int i = 0; i < 4; i++) {
        assert_in_range(first[i], jitters * 23 / 100, jitters * 27 / 100);
        assert_in_range(last[i], jitters * 23 / 100, jitters * 27 / 100);
    }
    assert_true(fabs(area / N - 0.465) < 0.007); /* 20,000 draws of torchvision's get_params: 0.465 */
}

/* What was added later draws as often as it should, and moves nothing of a plan that hasn't it. */
static void blur_solarize_and_vertical_flip_follow_the_policy(void **state) {
    (void)state;
    enum { N = 20000 };
    kd_policy with, without;
    assert_ok(kd_policy_load(&with, "dino", 224, 224, &err));
    assert_ok(kd_policy_load(&without, "dino-1", 224, 224, &err));
    with.vflip_p = 0.3;
    int blurs = 0, solarized = 0, flips = 0, all = 0;
    double sigma = 0, square = 0;
    for (uint64_t i = 0; i < N; i++) {
        kd_hash128 id = id_of(i);
        kd_plan a = kd_plan_draw(&with, 1, &id, (uint32_t)(i % 8), 500, 375), b = kd_plan_draw(&without, 1, &id, (uint32_t)(i % 8), 500, 375);
        assert_true(a.solarize == 128 || a.solarize == KD_SOLARIZE_OFF);
        assert_true(a.blur_radius == 4 || a.blur_radius == 0);
        flips += a.vflip;
        solarized += a.solarize == 128;
        blurs += a.blur_radius > 0;
        all += a.vflip && a.solarize == 128 && a.blur_radius == 0;
        if (a.blur_radius) {
            assert_true(a.blur_sigma >= 0.1f && a.blur_sigma <= 2.0f);
            sigma += a.blur_sigma;
            square += (double)a.blur_sigma * a.blur_sigma;
        }
        a.vflip = 0;
        a.solarize = KD_SOLARIZE_OFF;
        a.blur_radius = 0;
        a.blur_sigma = 0;
        memset(a.blur_weight, 0, sizeof a.blur_weight);
        assert_same_plan(&a, &b, "without blur");
    }
    assert_in_range(blurs, N * 89 / 100, N * 91 / 100);
    assert_in_range(solarized, N * 19 / 100, N * 21 / 100);
    assert_in_range(flips, N * 29 / 100, N * 31 / 100);
    assert_in_range(all, N * 5 / 1000, N * 7 / 1000); /* independent: 0.3 x 0.2 x 0.1 */
    sigma /= blurs;
    assert_true(fabs(sigma - 1.05) < 0.02 && fabs(square / blurs - sigma * sigma - 1.9 * 1.9 / 12) < 0.02);
}

static void every_shape_of_picture_has_a_plan(void **state) {
    (void)state;
    const char *const presets[] = {"lightly", "crop-flip", "eval", "dino"};
    const int side[] = {1, 2, 3, 13, 14, 255, 256, 257, 2400, 65500};
    for (size_t k = 0; k < 4; k++)
        for (size_t a = 0; a < 10; a++)
            for (size_t b = 0; b < 10; b++)
                for (uint32_t view = 0; view < 4; view++) {
                    kd_policy p;
                    kd_plan decoded;
                    uint8_t record[KD_PLAN_BYTES];
                    kd_hash128 id = id_of(a * 10 + b);
                    int h = view % 2 ? 224 : 112, w = view / 2 ? 224 : 98;
                    assert_ok(kd_policy_load(&p, presets[k], h, w, &err));
                    kd_plan plan = kd_plan_draw(&p, 0, &id, view, side[a], side[b]);
                    assert_true(plan.crop_x + plan.crop_w <= side[a] && plan.crop_y + plan.crop_h <= side[b]);
                    assert_int_equal(plan.out_h, h);
                    assert_int_equal(plan.out_w, w);
                    assert_true(plan.resize_h >= h && plan.resize_w >= w);
                    if (p.cover_h > 0) /* covers, and one side just so */
                        assert_true(plan.resize_h == p.cover_h ? plan.resize_w >= p.cover_w : plan.resize_h >= p.cover_h && plan.resize_w == p.cover_w);
                    kd_plan_encode(&plan, record);
                    assert_ok(kd_plan_decode(&decoded, record, &err));
                }
}

/* Found by fuzzing: no box of an allowed shape has a whole pixel in it. */
static void a_crop_has_a_pixel_at_least(void **state) {
    (void)state;
    kd_policy p;
    kd_hash128 id = id_of(1);
    assert_ok(kd_policy_load(&p, "crop-flip", 64, 64, &err));
    p.ratio_min = 5.0;
    p.ratio_max = 100.0;
    kd_plan tall = kd_plan_draw(&p, 0, &id, 0, 1, 65500);
    assert_true(tall.crop_w == 1 && tall.crop_h == 1 && tall.crop_x == 0 && tall.crop_y == 32749);
    p.ratio_min = 0.01;
    p.ratio_max = 0.2;
    kd_plan wide = kd_plan_draw(&p, 0, &id, 0, 300, 1);
    assert_true(wide.crop_w == 1 && wide.crop_h == 1 && wide.crop_x == 149 && wide.crop_y == 0);
}

static void seeds_views_and_images_draw_differently(void **state) {
    (void)state;
    kd_policy p;
    assert_ok(kd_policy_load(&p, "crop-flip", 224, 224, &err));
    kd_hash128 one = id_of(1), two = id_of(2);
    kd_plan base = kd_plan_draw(&p, 5, &one, 0, 400, 300), others[] = {kd_plan_draw(&p, 6, &one, 0, 400, 300), kd_plan_draw(&p, 5 + (1ULL << 32), &one, 0, 400, 300),
        kd_plan_draw(&p, 5, &one, 1, 400, 300), kd_plan_draw(&p, 5, &two, 0, 400, 300)};
    for (size_t i = 0; i < 4; i++)
        assert_memory_not_equal(&base, &others[i], 16);
    kd_plan again = kd_plan_draw(&p, 5, &one, 0, 400, 300);
    assert_memory_equal(&base, &again, sizeof base);
}

/* ---- records and policies ---- */

/* A changed byte is either refused or a plan whose record has exactly these bytes: nothing is silently ignored. Returns how many changes were refused. */
static int change_every_byte(const kd_plan *plan) {
    kd_plan decoded;
    uint8_t record[KD_PLAN_BYTES], again[KD_PLAN_BYTES];
    int refused = 0;
    kd_plan_encode(plan, record);
    for (int i = 0; i < KD_PLAN_BYTES; i++)
        for (int v = 0; v < 256; v++) {
            uint8_t was = record[i];
            record[i] = (uint8_t)v;
            kd_status status = kd_plan_decode(&decoded, record, &err);
            if (status == KD_OK) {
                kd_plan_encode(&decoded, again);
                assert_memory_equal(record, again, KD_PLAN_BYTES);
            } else {
                assert_int_equal(status, KD_EDAMAGED);
                refused++;
            }
            record[i] = was;
        }
    return refused;
}

static void no_byte_of_a_record_is_ignored(void **state) {
    (void)state;
    kd_policy p;
    kd_hash128 id = id_of(4);
    assert_ok(kd_policy_load(&p, "lightly", 224, 224, &err));
    kd_plan plan = kd_plan_draw(&p, 1, &id, 2, 500, 375), decoded;
    assert_true(change_every_byte(&plan) > 100 * 255); /* with neither blur nor mix, 120 bytes have one value */
    plan.blur_radius = 5;
    plan.blur_sigma = 1.5f;
    kd_blur_weights(plan.blur_weight, 5, 1.5f);
    plan.vflip = 1;
    plan.solarize = 3;
    plan.mix_lambda = 0.25f;
    plan.mix_partner = id;
    plan.mix_view = 2;
    assert_true(change_every_byte(&plan) > 100 * 255); /* the kernel's sum holds its bytes */
    uint8_t record[KD_PLAN_BYTES];
    kd_plan_encode(&plan, record);
    assert_ok(kd_plan_decode(&decoded, record, &err));
    assert_same_plan(&decoded, &plan, "everything");
    record[0] = 9;
    assert_int_equal(kd_plan_decode(&decoded, record, &err), KD_EDAMAGED);
    assert_contains(err.msg, "version 9");
    record[0] = KD_PLAN_VERSION;
    record[KD_PLAN_BYTES - 1] = 1;
    assert_int_equal(kd_plan_decode(&decoded, record, &err), KD_EDAMAGED);
    assert_contains(err.msg, "update the program");
}

static void nonsense_numbers_are_refused(void **state) {
    (void)state;
    enum { BAD = 28 };
    kd_policy p;
    kd_hash128 id = id_of(4);
    assert_ok(kd_policy_load(&p, "lightly", 224, 224, &err));
    const kd_plan good = kd_plan_draw(&p, 1, &id, 2, 500, 375);
    kd_plan blurred = good, bad[BAD];
    blurred.blur_radius = 4;
    blurred.blur_sigma = 1.5f;
    kd_blur_weights(blurred.blur_weight, 4, 1.5f);
    for (int i = 0; i < BAD; i++)
        bad[i] = i < 17 ? good : blurred;
    bad[0].jitter_factor[1] = NAN;
    bad[1].jitter_factor[0] = INFINITY;
    bad[2].jitter_factor[3] = 0.51f;
    bad[3].crop_x = -1;
    bad[4].crop_w = INT32_MAX;
    bad[5].out_w = 225;
    bad[6].jitter_order[1] = bad[6].jitter_order[0] = KD_JITTER_HUE;
    bad[7].resize_w = 0;
    bad[8].jitter_factor[2] = -0.5f;
    bad[9].vflip = 2;
    bad[10].solarize = 257;
    bad[11].blur_sigma = 1.0f; /* no blur, but a sigma; no blur, but a kernel */
    bad[12].blur_weight[0] = KD_BLUR_ONE;
    bad[13].mix_lambda = 1.5f;
    bad[14].mix_lambda = NAN;
    bad[15].mix_lambda = 0.1f; /* no multiple of 2^-16 */
    bad[16].mix_view = 1;      /* a partner's view without a partner */
    bad[17].blur_radius = 12;
    bad[18].blur_radius = 3;
    bad[19].blur_sigma = 0.0f;
    bad[20].blur_sigma = NAN;
    bad[21].blur_sigma = INFINITY;
    bad[22].blur_weight[0]++;
    bad[23].blur_weight[5] = 1;
    bad[24].blur_weight[4] = 0;
    bad[25].blur_weight[1] += 1u << 31; /* twice that is 2^32, which 32 bits would lose */
    bad[26].out_h = 4;
    bad[27].out_w = 4;
    for (int i = 0; i < BAD; i++) {
        uint8_t record[KD_PLAN_BYTES];
        kd_plan decoded;
        kd_plan_encode(&bad[i], record);
        if (kd_plan_decode(&decoded, record, &err) != KD_EDAMAGED)
            fail_msg("plan %d was taken", i);
        assert_contains(err.msg, "impossible");
    }
    bad[26].out_h = 5; /* a mirror of 5 rows shows the 4 that a radius of 4 needs */
    uint8_t record[KD_PLAN_BYTES];
    kd_plan decoded;
    kd_plan_encode(&bad[26], record);
    assert_ok(kd_plan_decode(&decoded, record, &err));
}

static void another_picture_than_planned_is_a_mismatch(void **state) {
    (void)state;
    kd_policy p;
    kd_hash128 id = id_of(4);
    assert_ok(kd_policy_load(&p, "lightly", 32, 32, &err));
    kd_plan plan = kd_plan_draw(&p, 1, &id, 2, 500, 375);
    kd_image img = {0};
    kd_view_scratch scratch = {0};
    uint8_t out[32 * 32 * 3];
    assert_ok(kd_image_resize_buffer(&img, 50, 40, &err));
    assert_int_equal(kd_plan_apply(&plan, &img, out, &scratch, &err), KD_EMISMATCH);
    assert_contains(err.msg, "isn't the file that was planned");
    kd_image_free(&img);
    kd_view_scratch_free(&scratch);
}

static void policies_have_names_and_a_canonical_text(void **state) {
    (void)state;
    kd_policy p;
    assert_int_equal(kd_policy_load(&p, "lightli", 224, 224, &err), KD_EUSAGE);
    assert_contains(err.msg, "did you mean \"lightly\"");
    assert_int_equal(kd_policy_load(&p, "lightly", 0, 0, &err), KD_EUSAGE);
    assert_int_equal(kd_policy_load(&p, "lightly", 224, 0, &err), KD_EUSAGE);
    assert_int_equal(kd_policy_load(&p, "lightly", 224, KD_VIEW_MAX_SIDE + 1, &err), KD_EUSAGE);
    assert_contains(err.msg, "224x4097");
    assert_int_equal(kd_policy_load(&p, "lightly", KD_VIEW_MAX_SIDE + 1, KD_VIEW_MAX_SIDE + 1, &err), KD_EUSAGE);
    assert_ok(kd_policy_load(&p, "eval", 112, 112, &err));
    assert_int_equal(p.cover_h, 128);
    assert_int_equal(p.cover_w, 128);
    assert_ok(kd_policy_load(&p, "lightly+mixup", 224, 224, &err));
    assert_true(p.mix_p == 1.0);
    assert_ok(kd_policy_load(&p, "dino", 5, 224, &err));
    assert_int_equal(kd_policy_load(&p, "dino", 224, 4, &err), KD_EUSAGE); /* a blur of radius 4 needs 5 pixels */
    assert_contains(err.msg, "224x4");
    assert_contains(err.msg, "at least 5");
    assert_ok(kd_policy_load(&p, "lightly", 224, 224, &err));
    json_t *json = kd_policy_json(&p);
    char *text = kd_json_canonical(json);
    assert_string_equal(text, "{\"blur_kernel\":0,\"blur_p\":0.0,\"blur_sigma\":[0.0,0.0],\"brightness\":0.40000000000000002,\"contrast\":0.40000000000000002,\"cover\":[0,0],"
                              "\"gray_p\":0.20000000000000001,\"hflip_p\":0.5,\"hue\":0.10000000000000001,\"image_size\":[224,224],\"interpolation\":\"bicubic\","
                              "\"jitter_p\":0.80000000000000004,\"mix_p\":0.0,\"name\":\"lightly\",\"ratio\":[0.75,1.3333333333333333],\"rng\":\"philox4x32-10\","
                              "\"saturation\":0.20000000000000001,\"scale\":[0.14000000000000001,1.0],\"solarize_p\":0.0,\"solarize_threshold\":0,\"version\":2,\"vflip_p\":0.0}");
    kd_free(text);
    json_decref(json);
}

static void sizes_are_a_side_or_rows_and_columns(void **state) {
    (void)state;
    static const struct { const char *text; int h, w; } good[] = {{"224", 224, 224}, {"112x168", 112, 168}, {"1x4096", 1, 4096}, {"4096", 4096, 4096}, {"0", 0, 0}, {"070x98", 70, 98}};
    static const char *const bad[] = {"", "x", "224x", "x224", "0x224", "224x0", "0x0", "224x224x3", "224X224", "224 x 224", " 224", "224 ", "-224", "+224", "224.0", "2e2", "4097", "224x4097",
                                      "99999999999999999999", "224x99999999999999999999", "224,224", "auto", "0x10000"};
    int h, w;
    char text[KD_SIZE_TEXT];
    for (size_t i = 0; i < sizeof good / sizeof good[0]; i++) {
        assert_ok(kd_image_size_parse(good[i].text, "--image-size", &h, &w, &err));
        assert_int_equal(h, good[i].h);
        assert_int_equal(w, good[i].w);
    }
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        assert_int_equal(kd_image_size_parse(bad[i], "--student-size", &h, &w, &err), KD_EUSAGE);
        assert_contains(err.msg, "--student-size");
        assert_contains(err.msg, "224x336");
    }
    assert_string_equal(kd_image_size_text(224, 224, text), "224");
    assert_string_equal(kd_image_size_text(112, 168, text), "112x168");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(views_equal_pillow_and_torchvision),
        cmocka_unit_test(the_crop_shifts_no_other_variable),
        cmocka_unit_test(plans_follow_the_policy),
        cmocka_unit_test(blur_solarize_and_vertical_flip_follow_the_policy),
        cmocka_unit_test(every_shape_of_picture_has_a_plan),
        cmocka_unit_test(a_crop_has_a_pixel_at_least),
        cmocka_unit_test(seeds_views_and_images_draw_differently),
        cmocka_unit_test(no_byte_of_a_record_is_ignored),
        cmocka_unit_test(nonsense_numbers_are_refused),
        cmocka_unit_test(another_picture_than_planned_is_a_mismatch),
        cmocka_unit_test(policies_have_names_and_a_canonical_text),
        cmocka_unit_test(sizes_are_a_side_or_rows_and_columns),
    };
    return cmocka_run_group_tests_name("augment", tests, NULL, NULL);
}

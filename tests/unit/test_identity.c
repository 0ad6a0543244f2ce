#include "tests/cache_fixture.h"

#include "cache/identity.h"

/* Sets a field given by a dotted path. */
static void set(json_t *j, const char *path, json_t *value)
{
    const char *dot = strchr(path, '.');
    char head[64];
    if (!dot) {
        if (value)
            json_object_set_new(j, path, value);
        else
            json_object_del(j, path);
        return;
    }
    snprintf(head, sizeof head, "%.*s", (int)(dot - path), path);
    set(json_object_get(j, head), dot + 1, value);
}

static void a_recipe_is_read(void **state)
{
    kd_recipe r = fx_recipe();
    (void)state;
    assert_int_equal(r.seed, 7);
    assert_int_equal(r.image_h, 70);
    assert_int_equal(r.image_w, 70);
    assert_int_equal(r.width, 48);
    assert_int_equal(r.grid_h, 5);
    assert_int_equal(r.layers, 1);
    assert_int_equal(r.layer[0], 1);
    assert_true(kd_recipe_has(&r, KD_FEATURE_CLS) && kd_recipe_has(&r, KD_FEATURE_PATCH));
    assert_false(kd_recipe_has(&r, KD_FEATURE_REGISTERS) || kd_recipe_has(&r, KD_FEATURE_MEAN) || r.concat);
    assert_int_equal(r.registers, 4);
    assert_int_equal(kd_recipe_records(&r), 2);
    assert_int_equal(kd_recipe_largest(&r), 25 * 48);
    kd_recipe_free(&r);
}

static void the_hash_is_of_the_canonical_text(void **state)
{
    kd_recipe r = fx_recipe(), s;
    char *text = kd_json_canonical(r.json);
    kd_sha256 sha = kd_sha256_of(text, strlen(text));
    json_t *shuffled = json_object(), *v;
    const char *key;
    (void)state;
    assert_memory_equal(sha.b, r.sha.b, 32);
    json_object_set(shuffled, "width", json_object_get(r.json, "width")); /* another order of the same fields */
    json_object_foreach(r.json, key, v)
        json_object_set(shuffled, key, v);
    must(kd_recipe_from_json(&s, shuffled, "shuffled", &fx_err));
    assert_memory_equal(s.sha.b, r.sha.b, 32);
    must(kd_recipe_compare(&r, "a", &s, "b", &fx_err));
    kd_free(text);
    kd_recipe_free(&r);
    kd_recipe_free(&s);
}

static void every_required_field_is_missed_by_name(void **state)
{
    static const char *const field[] = {"format_version", "teacher", "teacher.sha256", "teacher.family", "teacher.width", "teacher.depth", "teacher.heads", "teacher.patch", "layers",
                                        "layer_norm", "layer_concat", "teacher.tensors", "teacher.registers", "teacher.positions", "teacher.layer_norm_eps", "teacher.mean", "teacher.std", "registers", "augment", "seed", "image_size", "decoder", "exif", "features", "grid", "width", "patch_targets", "store", "store.dtype"};
    (void)state;
    for (size_t i = 0; i < sizeof field / sizeof field[0]; i++) {
        json_t *j = fx_recipe_json();
        const char *last = strrchr(field[i], '.');
        kd_recipe r;
        set(j, field[i], NULL);
        must_be(KD_EDAMAGED, kd_recipe_from_json(&r, j, "X.kdc", &fx_err));
        must_say("X.kdc");
        must_say(last ? last + 1 : field[i]);
    }
}

static void values_out_of_range_are_refused(void **state)
{
    struct { const char *path, *json; } bad[] = {
        {"format_version", "0"}, {"format_version", "2"}, {"teacher.sha256", "\"12\""}, {"teacher.width", "0"}, {"teacher.depth", "1e9"}, {"layers", "[]"}, {"layers", "[2,1]"}, {"layers", "[0]"},
        {"layers", "[7]"}, {"layers", "[1.5]"}, {"layer_norm", "1"}, {"image_size", "70"}, {"image_size", "[70]"}, {"image_size", "[0,70]"}, {"image_size", "[70,70000]"}, {"image_size", "[70.0,70]"}, {"decoder", "\"xyz\""}, {"exif", "\"turn\""}, {"features", "[]"},
        {"features", "[\"cls\",\"cls\"]"}, {"features", "[\"rgb\"]"}, {"grid", "[5]"}, {"grid", "[0,5]"}, {"grid", "[5,100000]"}, {"width", "100000"}, {"width", "47"}, {"layer_concat", "0"}, {"registers", "3"}, {"registers", "2000"}, {"teacher.registers", "-1"},
        {"teacher.positions", "\"bicubic\""}, {"teacher.tensors", "1"}, {"teacher.layer_norm_eps", "0.0"}, {"teacher.layer_norm_eps", "\"x\""}, {"teacher.mean", "[0.5,0.5]"},
        {"teacher.mean", "[0.5,0.5,1]"}, {"teacher.std", "[0.5,0.5,0.0]"}, {"features", "[\"patch\",\"cls\"]"}, {"features", "[\"mean\",\"mean\"]"}, {"features", "[1]"}, {"patch_targets", "\"full\""}, {"patch_targets", "[]"},
        {"patch_targets", "[\"half\"]"}, {"patch_targets", "[\"pool:6\"]"}, {"patch_targets", "[\"pool:0\"]"}, {"patch_targets", "[\"pool:4x4\"]"}, {"patch_targets", "[\"full\",\"full\"]"},
        {"patch_targets", "[\"pool:1\",\"pool:2\",\"pool:3\",\"pool:4\",\"pool:5\"]"}, {"store.dtype", "\"f64\""}, {"source", "{\"dtype\":\"f16\"}"},
        {"source", "{\"dtype\":\"f32\",\"patch_target\":\"full\"}"},
    };
    (void)state;
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        json_t *j = fx_recipe_json(), *v = json_loads(bad[i].json, JSON_DECODE_ANY, NULL);
        kd_recipe r;
        assert_non_null(v);
        set(j, bad[i].path, v);
        must_be(KD_EDAMAGED, kd_recipe_from_json(&r, j, "X.kdc", &fx_err));
    }
}

/* Replay decodes as the teacher's run did: turned or not, and a picture that was within its --max-pixels is within replay's. */
static void the_recipe_says_how_pictures_are_decoded(void **state)
{
    kd_recipe r = fx_recipe();
    kd_decode_options o = kd_recipe_decode_options(&r, 100, 200);
    json_t *j = fx_recipe_json();
    (void)state;
    assert_false(o.exif_apply);
    assert_true(o.max_pixels == KD_IMAGE_MAX_PIXELS);
    assert_true(kd_recipe_decode_options(&r, 60000, 50000).max_pixels == 3000000000);
    kd_recipe_free(&r);
    set(j, "exif", json_string("apply"));
    must(kd_recipe_from_json(&r, j, "X.kdc", &fx_err));
    assert_true(kd_recipe_decode_options(&r, 100, 200).exif_apply);
    kd_recipe_free(&r);
}

/* Law 2: whatever differs is refused naming the field and both values. */
static void every_difference_is_named(void **state)
{
    struct { const char *path, *json, *says; } change[] = {
        {"teacher.sha256", "\"ff112233445566778899aabbccddeeff00112233445566778899aabbccddeeff\"", "teacher.sha256 is \"00112233445..\" in A, \"ff112233445..\" in B"},
        {"teacher.family", "\"dinov3\"", "teacher.family is \"dinov2\" in A, \"dinov3\" in B"},
        {"teacher.depth", "3", "teacher.depth is 6 in A, 3 in B"},
        {"teacher.positions", "\"hf\"", "teacher.positions is \"official\" in A, \"hf\" in B"},
        {"teacher.tensors", "\"teacher.backbone.\"", "teacher.tensors is \"\" in A, \"teacher.backbone.\" in B"},
        {"teacher.layer_norm_eps", "1e-5", "teacher.layer_norm_eps is 1e-06 in A, 1e-05 in B"},
        {"teacher.mean", "[0.5,0.5,0.5]", "teacher.mean is"},
        {"teacher.std", "[0.5,0.5,0.5]", "teacher.std is"},
        {"layers", "[2]", "layers is [1] in A, [2] in B"},
        {"layer_norm", "false", "layer_norm is true in A, false in B"},
        {"augment.name", "\"eval\"", "augment.name is \"lightly\" in A, \"eval\" in B"},
        {"augment.scale_min", "0.5", "augment.scale_min is absent in A, 0.5 in B"},
        {"seed", "8", "seed is 7 in A, 8 in B"},
        {"image_size", "[70,84]", "image_size is [70,70] in A, [70,84] in B"},
        {"decoder", "\"1123456789abcdef0123456789abcdef\"", "decoder is"},
        {"exif", "\"apply\"", "exif is \"ignore\" in A, \"apply\" in B"},
        {"features", "[\"cls\",\"patch\",\"mean\"]", "features is [\"cls\",\"patch\"] in A, [\"cls\",\"patch\",\"mean\"] in B"},
        {"grid", "[5,6]", "grid is [5,5] in A, [5,6] in B"},
        {"layer_concat", "true", "layer_concat is false in A, true in B"},
        {"store.dtype", "\"i8\"", "store.dtype is \"f16\" in A, \"i8\" in B"},
        {"patch_targets", "[\"adjoint:2\"]", "patch_targets is [\"full\"] in A, [\"adjoint:2\"] in B"},
    };
    (void)state;
    for (size_t i = 0; i < sizeof change / sizeof change[0]; i++) {
        kd_recipe a = fx_recipe(), b;
        json_t *j = fx_recipe_json();
        set(j, change[i].path, json_loads(change[i].json, JSON_DECODE_ANY, NULL));
        must(kd_recipe_from_json(&b, j, "B", &fx_err));
        must_be(KD_EMISMATCH, kd_recipe_compare(&a, "A", &b, "B", &fx_err));
        must_say(change[i].says);
        kd_recipe_free(&a);
        kd_recipe_free(&b);
    }
}

static json_t *mixed_recipe(const char *digest, int images)
{
    json_t *j = fx_recipe_json();
    set(j, "augment.mix_p", json_real(1));
    json_object_set_new(j, "dataset", json_pack("{s:s,s:i}", "digest", digest, "images", images));
    return j;
}

static void the_set_is_part_of_a_mixed_recipe_and_of_no_other(void **state)
{
    static const char one[] = "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff", two[] = "11112233445566778899aabbccddeeff00112233445566778899aabbccddeeff";
    kd_recipe a, b;
    json_t *j;
    (void)state;
    must(kd_recipe_from_json(&a, mixed_recipe(one, 10), "A", &fx_err));
    must(kd_recipe_from_json(&b, mixed_recipe(two, 11), "B", &fx_err));
    assert_true(a.mixed);
    must_be(KD_EMISMATCH, kd_recipe_compare(&a, "A", &b, "B", &fx_err));
    must_say("A was made from 10 (digest of their ids 00112233..), B has 11 (11112233..)");
    must_say("can't be added, removed or changed");
    kd_recipe_free(&a);
    kd_recipe_free(&b);
    a = fx_recipe();
    assert_false(a.mixed);
    kd_recipe_free(&a);
    j = mixed_recipe(one, 10);
    json_object_del(j, "dataset");
    must_be(KD_EDAMAGED, kd_recipe_from_json(&a, j, "A", &fx_err));
    must_say("views are mixed and it has no \"dataset\"");
    j = mixed_recipe(one, 10);
    set(j, "augment.mix_p", json_real(0));
    must_be(KD_EDAMAGED, kd_recipe_from_json(&a, j, "A", &fx_err));
    must_say("not mixed and it has a \"dataset\"");
    must_be(KD_EDAMAGED, kd_recipe_from_json(&a, mixed_recipe(one + 1, 10), "A", &fx_err));
    must_be(KD_EDAMAGED, kd_recipe_from_json(&a, mixed_recipe(one, 0), "A", &fx_err));
}

/* Joined layers are stored as one record under the smallest number. */
static void joined_layers_are_one_wide_layer(void **state)
{
    json_t *j = fx_recipe_json();
    kd_recipe r;
    (void)state;
    json_object_set_new(j, "layers", json_pack("[i,i,i]", 2, 3, 5));
    json_object_set_new(j, "layer_concat", json_true());
    must_be(KD_EDAMAGED, kd_recipe_from_json(&r, json_deep_copy(j), "X.kdc", &fx_err)); /* still the width of one */
    must_say("not that of 3 of the teacher's layers of width 48");
    json_object_set_new(j, "width", json_integer(3 * 48));
    must(kd_recipe_from_json(&r, j, "X.kdc", &fx_err));
    assert_int_equal(r.layers, 1);
    assert_int_equal(r.layer[0], 2);
    assert_int_equal(r.width, 144);
    assert_int_equal(kd_recipe_layer_index(&r, 2), 0);
    assert_int_equal(kd_recipe_layer_index(&r, 3), -1);
    kd_recipe_free(&r);
}

static void registers_need_a_teacher_that_has_them(void **state)
{
    json_t *j = fx_recipe_json();
    kd_recipe r = fx_recipe_full();
    (void)state;
    assert_int_equal(kd_recipe_records(&r), 8);
    assert_int_equal(kd_recipe_rows(&r, KD_FEATURE_REGISTERS), 4);
    assert_int_equal(kd_recipe_rows(&r, KD_FEATURE_MEAN), 1);
    kd_recipe_free(&r);
    set(j, "registers", json_integer(0));
    set(j, "teacher.registers", json_integer(0));
    must(kd_recipe_from_json(&r, json_deep_copy(j), "X.kdc", &fx_err));
    kd_recipe_free(&r);
    set(j, "features", json_pack("[s]", "registers"));
    must_be(KD_EDAMAGED, kd_recipe_from_json(&r, j, "X.kdc", &fx_err));
    must_say("registers");
}

static void each_patch_target_is_a_feature_of_its_own(void **state)
{
    kd_recipe r = fx_recipe_stored("i8", "adjoint:2,full,pool:3x4");
    (void)state;
    assert_int_equal(r.targets, 3);
    assert_int_equal(r.dtype, KD_I8);
    assert_int_equal(kd_recipe_records(&r), 4);
    assert_true(kd_recipe_has(&r, KD_FEATURE_PATCH2) && kd_recipe_has(&r, KD_FEATURE_PATCH3) && !kd_recipe_has(&r, KD_FEATURE_PATCH4));
    assert_int_equal(kd_recipe_rows(&r, KD_FEATURE_PATCH), 4);
    assert_int_equal(kd_recipe_rows(&r, KD_FEATURE_PATCH2), 25);
    assert_int_equal(kd_recipe_rows(&r, KD_FEATURE_PATCH3), 12);
    assert_int_equal(kd_recipe_target(&r, KD_FEATURE_PATCH).kind, KD_TARGET_ADJOINT);
    assert_int_equal(kd_recipe_target(&r, KD_FEATURE_CLS).kind, KD_TARGET_FULL);
    for (int i = 0; i < KD_MAX_TARGETS; i++)
        assert_int_equal(kd_feature_target(kd_patch_feature(i)), i);
    assert_int_equal(kd_feature_target(KD_FEATURE_MEAN), -1);
    kd_recipe_free(&r);
}

/* The recipe in cache/FORMAT.md is one, is canonical, and has the identity that stands below it. */
static void the_recipe_of_the_specification_holds(void **state)
{
    uint8_t *bytes;
    size_t size, n = 0;
    char *text, *at, *canonical, *line, recipe[4096], hex[65];
    json_t *j;
    kd_recipe r;
    (void)state;
    must(kd_io_read_all("cache/FORMAT.md", 1 << 20, &bytes, &size, &fx_err));
    text = kd_malloc(size + 1);
    memcpy(text, bytes, size);
    text[size] = 0;
    at = strstr(text, "    {\"augment\"");
    assert_non_null(at);
    for (line = strtok(at, "\n"); line && strncmp(line, "    ", 4) == 0; line = strtok(NULL, "\n"))
        n += (size_t)snprintf(recipe + n, sizeof recipe - n, "%s", line + 4);
    assert_true(n < sizeof recipe);
    must(kd_json_parse(recipe, n, "FORMAT.md", &j, &fx_err));
    must(kd_recipe_from_json(&r, j, "FORMAT.md", &fx_err));
    canonical = kd_json_canonical(r.json);
    assert_string_equal(recipe, canonical);
    kd_hex(hex, r.sha.b, sizeof r.sha.b);
    assert_non_null(line);
    assert_non_null(strstr(line, hex));
    kd_free(canonical);
    kd_free(text);
    kd_free(bytes);
    kd_recipe_free(&r);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_recipe_is_read), cmocka_unit_test(the_hash_is_of_the_canonical_text), cmocka_unit_test(every_required_field_is_missed_by_name),
        cmocka_unit_test(values_out_of_range_are_refused), cmocka_unit_test(the_recipe_says_how_pictures_are_decoded), cmocka_unit_test(every_difference_is_named), cmocka_unit_test(joined_layers_are_one_wide_layer),
        cmocka_unit_test(registers_need_a_teacher_that_has_them), cmocka_unit_test(the_set_is_part_of_a_mixed_recipe_and_of_no_other),
        cmocka_unit_test(each_patch_target_is_a_feature_of_its_own), cmocka_unit_test(the_recipe_of_the_specification_holds),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

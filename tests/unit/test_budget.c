/* The ladder of storage choices. */
#include "cache/budget.h"
#include "tests/unit/unit.h"

enum { CLS = 1 << KD_FEATURE_CLS, PATCH = 1 << KD_FEATURE_PATCH };

static kd_budget_ask ask_of(uint64_t budget)
{
    return (kd_budget_ask){.shape = {.features = CLS | PATCH, .width = 768, .grid_h = 16, .grid_w = 16, .layers = 1}, .images = 100000, .views = 8, .budget = budget};
}

static kd_budget_choice chosen(const kd_budget_ask *ask)
{
    kd_budget_choice c;
    kd_err err;
    assert_ok(kd_budget_choose(&c, ask, &err));
    assert_true(ask->budget == 0 || c.cache_bytes <= ask->budget);
    assert_true(c.views >= 1 && c.views <= ask->views);
    return c;
}

/* The chosen step, as text. */
static void expect(const kd_budget_ask *ask, const char *storage, uint32_t views)
{
    kd_budget_choice c = chosen(ask);
    const kd_budget_step *s = &c.step[c.chosen];
    char text[KD_STORAGE_TEXT];
    assert_string_equal(kd_storage_text(&s->storage, s->features, text), storage);
    assert_int_equal(c.views, views);
}

/* A budget just large enough for this storage with so many views. */
static uint64_t room(const kd_budget_ask *ask, unsigned features, kd_dtype dtype, kd_target target, uint32_t views)
{
    kd_size_shape s = ask->shape;
    kd_storage f = {.dtype = dtype, .targets = 1, .target = {target}};
    s.features = features;
    return kd_size_cache(&s, &f, ask->images, views);
}

static void without_a_budget_every_token_is_kept(void **state)
{
    kd_budget_ask a = ask_of(0);
    (void)state;
    expect(&a, "i8 full", 8);
    assert_int_equal(chosen(&a).step[0].storage.dtype, KD_F16); /* shown to compare with */
}

static void the_ladder_is_taken_step_by_step(void **state)
{
    kd_budget_ask a = ask_of(0);
    const kd_target full = {.kind = KD_TARGET_FULL}, pool = {.kind = KD_TARGET_POOL, .h = 8, .w = 8};
    (void)state;
    a.budget = room(&a, CLS | PATCH, KD_F16, full, 8);
    expect(&a, "i8 full", 8);
    a.budget = room(&a, CLS | PATCH, KD_I8, full, 8);
    expect(&a, "i8 full", 8);
    a.budget = room(&a, CLS | PATCH, KD_I8, full, 8) - 1;
    expect(&a, "i8 pool:8", 8);
    a.budget = room(&a, CLS | PATCH, KD_I8, pool, 8) - 1;
    expect(&a, "i8 pool:8", 7);
    a.budget = room(&a, CLS | PATCH, KD_I8, pool, 1);
    expect(&a, "i8 pool:8", 1);
    a.budget--;
    expect(&a, "i8", 8);
    a.budget = room(&a, CLS, KD_I8, full, 8) - 1;
    expect(&a, "i8", 7);
}

static void too_little_is_refused_with_what_would_do(void **state)
{
    kd_budget_ask a = ask_of(4000000);
    kd_budget_choice c;
    kd_err err;
    (void)state;
    assert_int_equal(kd_budget_choose(&c, &a, &err), KD_ENOSPACE);
    assert_contains(err.msg, "even one view per image, stored as i8, needs");
    assert_true(c.steps >= 4); /* to be shown all the same */
    a.shape.features = PATCH;
    assert_int_equal(kd_budget_choose(&c, &a, &err), KD_ENOSPACE);
    assert_contains(err.msg, "i8 pool:8");
}

static void named_students_get_the_adjoint_of_their_maps(void **state)
{
    const kd_map_size small = {7, 7}, vit = {14, 14}, same = {16, 16}, tiny = {4, 4};
    const kd_map_size pair[] = {{7, 7}, {4, 4}}, many[] = {{7, 7}, {14, 14}};
    kd_budget_ask a = ask_of(0);
    (void)state;
    a.student = &small;
    a.students = 1;
    expect(&a, "i8 adjoint:7", 8);
    a.budget = room(&a, CLS | PATCH, KD_I8, (kd_target){KD_TARGET_ADJOINT, 7, 7}, 8) - 1; /* pool:8 would take more */
    expect(&a, "i8 adjoint:7", 7);
    a.budget = 0;
    a.student = &vit;
    expect(&a, "i8 adjoint:14", 8);
    a.student = &same;
    expect(&a, "i8 full", 8);
    a.student = &tiny;
    expect(&a, "i8 adjoint:4", 8);
    a.student = pair;
    a.students = 2;
    expect(&a, "i8 adjoint:7,adjoint:4", 8);
    a.student = many; /* 245 of 256 rows: every token serves everybody for hardly more */
    expect(&a, "i8 full", 8);
}

static void what_the_user_fixed_stays(void **state)
{
    const kd_dtype bf16 = KD_BF16;
    const kd_target pool = {.kind = KD_TARGET_POOL, .h = 4, .w = 4};
    kd_budget_ask a = ask_of(0);
    kd_budget_choice c;
    (void)state;
    a.dtype = &bf16;
    expect(&a, "bf16 full", 8);
    a.target = &pool;
    a.targets = 1;
    expect(&a, "bf16 pool:4", 8);
    c = chosen(&a);
    assert_int_equal(c.steps, 2); /* with and without patches */
    a.budget = room(&a, CLS | PATCH, KD_BF16, pool, 3);
    expect(&a, "bf16 pool:4", 3);
    a.dtype = NULL;
    expect(&a, "i8 pool:4", chosen(&a).views);
}

static void the_reason_names_what_did_not_fit(void **state)
{
    kd_budget_ask a = ask_of(0);
    kd_budget_choice c;
    char text[400];
    (void)state;
    a.budget = room(&a, CLS | PATCH, KD_I8, (kd_target){.kind = KD_TARGET_FULL}, 8) - 1;
    c = chosen(&a);
    kd_budget_reason(&c, &a, text, sizeof text);
    assert_contains(text, "i8 pool:8 x 8 views, ");
    assert_contains(text, ": i8 full x 8 would need ");
    a.budget = 0;
    c = chosen(&a);
    assert_null(strchr(kd_budget_reason(&c, &a, text, sizeof text), ':'));
}

static void lists_of_students_are_read(void **state)
{
    kd_map_size map[KD_FOR_MAX];
    kd_err err;
    int n;
    (void)state;
    assert_ok(kd_for_parse(map, &n, "resnet18,vit_tiny_patch16_224,vit_small_patch16_224", "0", 224, 224, &err));
    assert_int_equal(n, 2);
    assert_int_equal(map[0].h, 7);
    assert_int_equal(map[1].w, 14);
    assert_ok(kd_for_parse(map, &n, "resnet18", "112", 224, 224, &err));
    assert_int_equal(map[0].h, 4);
    assert_int_equal(kd_for_parse(map, &n, "resnet18,", "0", 224, 224, &err), KD_EUSAGE);
    assert_int_equal(kd_for_parse(map, &n, "", "0", 224, 224, &err), KD_EUSAGE);
    assert_int_equal(kd_for_parse(map, &n, "resnet19", "0", 224, 224, &err), KD_EUSAGE);
    assert_int_equal(kd_for_parse(map, &n, "resnet18", "448", 224, 224, &err), KD_EUSAGE);
    assert_contains(err.msg, "--student-size 448");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(without_a_budget_every_token_is_kept),
        cmocka_unit_test(the_ladder_is_taken_step_by_step),
        cmocka_unit_test(too_little_is_refused_with_what_would_do),
        cmocka_unit_test(named_students_get_the_adjoint_of_their_maps),
        cmocka_unit_test(what_the_user_fixed_stays),
        cmocka_unit_test(the_reason_names_what_did_not_fit),
        cmocka_unit_test(lists_of_students_are_read),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

/* The recipe of a cache that is made from another, and where its records come from. */
#include "tests/cache_fixture.h"

#include "cache/derive.h"

static kd_recipe parent;
static kd_derived d;

static void derive_from(kd_recipe r, const kd_derive_options *o)
{
    kd_recipe_free(&parent);
    kd_derived_free(&d);
    parent = r;
    must(kd_derive(&d, &parent, o, &fx_err));
}

static void refuse(kd_recipe r, const kd_derive_options *o, const char *text)
{
    kd_recipe_free(&parent);
    parent = r;
    must_be(KD_EUSAGE, kd_derive(&d, &parent, o, &fx_err));
    must_say(text);
}

static int end(void **state)
{
    (void)state;
    kd_recipe_free(&parent);
    kd_derived_free(&d);
    return 0;
}

/* Field `key` of the derived recipe as canonical text. */
static void field_is(const char *key, const char *text)
{
    char *have = kd_json_canonical(json_object_get(d.recipe.json, key));
    assert_string_equal(have ? have : "absent", text);
    kd_free(have);
}

static void nothing_chosen_is_the_same_recipe(void **state)
{
    (void)state;
    derive_from(fx_recipe_full(), &(kd_derive_options){0});
    assert_memory_equal(d.recipe.sha.b, parent.sha.b, 32);
    for (int f = 0; f < KD_OUTPUTS; f++)
        assert_true(d.origin[f].from == (kd_feature)f && !d.origin[f].encode);
}

/* So that the result can be joined with shards of such a run. */
static void leaving_out_gives_the_recipe_of_a_direct_run(void **state)
{
    json_t *j = fx_recipe_json();
    kd_recipe direct;
    (void)state;
    json_object_set_new(j, "features", json_pack("[s]", "cls"));
    json_object_set_new(j, "patch_targets", json_array());
    json_object_set_new(j, "layers", json_pack("[i]", 4));
    must(kd_recipe_from_json(&direct, j, "direct", &fx_err));
    derive_from(fx_recipe_full(), &(kd_derive_options){.features = "cls", .layers = "4"});
    assert_memory_equal(d.recipe.sha.b, direct.sha.b, 32);
    kd_recipe_free(&direct);
    direct = fx_recipe_stored("f16", "adjoint:3,full");
    derive_from(fx_recipe_stored("f16", "full,pool:2,adjoint:3"), &(kd_derive_options){.targets = "adjoint:3,full"});
    assert_memory_equal(d.recipe.sha.b, direct.sha.b, 32);
    assert_true(d.origin[KD_FEATURE_PATCH].from == KD_FEATURE_PATCH3 && !d.origin[KD_FEATURE_PATCH].encode);
    assert_true(d.origin[KD_FEATURE_PATCH2].from == KD_FEATURE_PATCH && !d.origin[KD_FEATURE_PATCH2].encode);
    kd_recipe_free(&direct);
}

static void features_and_layers_may_come_in_any_order(void **state)
{
    (void)state;
    derive_from(fx_recipe_full(), &(kd_derive_options){.features = "mean,cls", .layers = "4,1"});
    field_is("features", "[\"cls\",\"mean\"]");
    field_is("layers", "[1,4]");
    field_is("source", "absent");
}

static void rounding_again_is_told_in_the_recipe(void **state)
{
    (void)state;
    derive_from(fx_recipe_stored("f16", "full"), &(kd_derive_options){.dtype = "i8"});
    field_is("source", "{\"dtype\":\"f16\",\"patch_target\":\"full\"}");
    assert_true(d.recipe.dtype == KD_I8 && d.origin[KD_FEATURE_CLS].encode && d.origin[KD_FEATURE_PATCH].encode && d.origin[KD_FEATURE_PATCH].reduce.kind == KD_TARGET_FULL);
    derive_from(fx_recipe_stored("f16", "pool:2,full"), &(kd_derive_options){.targets = "pool:2,adjoint:3"});
    field_is("source", "{\"dtype\":\"f16\",\"patch_target\":\"full\"}");
    field_is("patch_targets", "[\"pool:2\",\"adjoint:3\"]");
    assert_true(!d.origin[KD_FEATURE_CLS].encode && !d.origin[KD_FEATURE_PATCH].encode && d.origin[KD_FEATURE_PATCH2].encode);
    assert_true(d.origin[KD_FEATURE_PATCH2].from == KD_FEATURE_PATCH2 && d.origin[KD_FEATURE_PATCH2].reduce.kind == KD_TARGET_ADJOINT);
    derive_from(fx_recipe_stored("bf16", "adjoint:3"), &(kd_derive_options){.dtype = "i8"});
    field_is("source", "{\"dtype\":\"bf16\",\"patch_target\":\"adjoint:3\"}");
}

static void the_first_rounding_stays_the_one_that_is_told(void **state)
{
    kd_recipe r = fx_recipe_stored("i8", "full");
    json_t *j = json_deep_copy(r.json);
    (void)state;
    kd_recipe_free(&r);
    json_object_set_new(j, "source", json_pack("{s:s,s:s}", "dtype", "f16", "patch_target", "full"));
    must(kd_recipe_from_json(&r, j, "derived before", &fx_err));
    derive_from(r, &(kd_derive_options){.targets = "adjoint:2"});
    field_is("source", "{\"dtype\":\"f16\",\"patch_target\":\"full\"}");
    field_is("store", "{\"dtype\":\"i8\"}");
}

static void what_the_cache_does_not_have_is_refused_by_name(void **state)
{
    json_t *j = fx_recipe_json();
    kd_recipe joined;
    (void)state;
    refuse(fx_recipe(), &(kd_derive_options){.features = "cls,mean"}, "--features mean: the cache has cls,patch");
    refuse(fx_recipe(), &(kd_derive_options){.features = "patch2"}, "\"patch2\" is not one of");
    refuse(fx_recipe(), &(kd_derive_options){.features = "cls,cls"}, "twice");
    refuse(fx_recipe(), &(kd_derive_options){.features = ""}, "is not one of");
    refuse(fx_recipe(), &(kd_derive_options){.features = "cls", .targets = "full"}, "patches aren't among the features");
    refuse(fx_recipe_stored("f16", "adjoint:3,pool:2"), &(kd_derive_options){.targets = "adjoint:2"}, "--patch-target adjoint:2: the cache has adjoint:3,pool:2; only a full grid can be reduced");
    refuse(fx_recipe_stored("f16", "adjoint:3"), &(kd_derive_options){.targets = "full"}, "--patch-target full: the cache has adjoint:3");
    refuse(fx_recipe(), &(kd_derive_options){.targets = "adjoint:6"}, "the grid of patches is 5 x 5, and adjoint:6 is larger");
    refuse(fx_recipe(), &(kd_derive_options){.targets = "adjoint:2,adjoint:2x2"}, "adjoint:2x2 is given twice");
    refuse(fx_recipe(), &(kd_derive_options){.targets = "pool:1,pool:2,pool:3,pool:4,pool:5"}, "at most 4 targets");
    refuse(fx_recipe(), &(kd_derive_options){.targets = "poll:2"}, "did you mean pool");
    refuse(fx_recipe_full(), &(kd_derive_options){.layers = "1,2"}, "--layers 2: not one of the cache's layers");
    refuse(fx_recipe_full(), &(kd_derive_options){.layers = "1,1"}, "is given twice");
    refuse(fx_recipe_full(), &(kd_derive_options){.layers = "1,x"}, "\"x\" is not a layer number");
    refuse(fx_recipe(), &(kd_derive_options){.dtype = "f32"}, "expected f16, bf16 or i8");
    json_object_set_new(j, "layers", json_pack("[i,i]", 1, 2));
    json_object_set_new(j, "layer_concat", json_true());
    json_object_set_new(j, "width", json_integer(2 * FX_WIDTH));
    must(kd_recipe_from_json(&joined, j, "joined", &fx_err));
    refuse(joined, &(kd_derive_options){.layers = "1"}, "joined into one");
}

int main(void)
{
#define T(f) cmocka_unit_test_teardown(f, end)
    const struct CMUnitTest tests[] = {
        T(nothing_chosen_is_the_same_recipe), T(leaving_out_gives_the_recipe_of_a_direct_run), T(features_and_layers_may_come_in_any_order), T(rounding_again_is_told_in_the_recipe),
        T(the_first_rounding_stays_the_one_that_is_told), T(what_the_cache_does_not_have_is_refused_by_name),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

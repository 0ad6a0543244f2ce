/* --features and --layers: sets in a fixed order, and every wrong one refused with what would be right. */
#include "tests/unit/unit.h"

#include "kernels/nn/selection.h"

static kd_err err;

static void features_are_a_set(void **state)
{
    unsigned features = 0;
    char text[64];
    (void)state;
    assert_int_equal(kd_features_parse("patch,cls", &features, &err), KD_OK);
    assert_int_equal(features, 1u << KD_FEATURE_CLS | 1u << KD_FEATURE_PATCH);
    assert_string_equal(kd_features_text(features, text, sizeof text), "cls,patch");
    for (kd_feature f = 0; f < KD_OUTPUTS; f++) {
        assert_int_equal(kd_features_parse(kd_feature_name(f), &features, &err), KD_OK);
        assert_int_equal(features, 1u << f);
    }
}

static void wrong_features_are_explained(void **state)
{
    static const struct { const char *text, *why; } wrong[] = {
        {"", "\"\" is not one of cls,patch"},     {"cls,", "\"\" is not one of"},           {"cls,pach", "did you mean patch?"},
        {"cls,patch,cls", "cls is given twice"},  {"cls patch", "\"cls patch\" is not one"}, {"CLS", "is not one of"},
    };
    unsigned features;
    (void)state;
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        assert_int_equal(kd_features_parse(wrong[i].text, &features, &err), KD_EUSAGE);
        assert_contains(err.msg, wrong[i].why);
        assert_contains(err.msg, "--features");
    }
}

static void layers_are_a_set_counted_from_the_end(void **state)
{
    static const struct { const char *text, *same; } right[] = {
        {"1", "1"}, {"12", "12"}, {"4,1", "1,4"}, {"1,2,3,4", "1,2,3,4"}, {"all:11", "1"}, {"all:0", "12"}, {"all:2,5,8,11", "1,4,7,10"}, {"all:11,2", "1,10"}, {"007", "7"},
    };
    (void)state;
    for (size_t i = 0; i < sizeof right / sizeof *right; i++) {
        uint16_t layer[KD_MAX_LAYERS];
        int count = 0;
        char text[64];
        assert_int_equal(kd_layers_parse(right[i].text, 12, layer, &count, &err), KD_OK);
        assert_string_equal(kd_layers_text(layer, count, text, sizeof text), right[i].same);
    }
}

static void wrong_layers_are_explained(void **state)
{
    static const struct { const char *text, *why; } wrong[] = {
        {"0", "no layer 0; this teacher has 12 layers, 1 (the last) to 12"},
        {"13", "no layer 13; this teacher has 12 layers"},
        {"all:12", "no block 12; this teacher has 12 blocks, 0 to 11"},
        {"1,4,1", "layer 1 of this teacher's 12 is given twice"},
        {"all:3,3", "block 3 of this teacher's 12 is given twice"},
        {"", "\"\" is not a layer number"},
        {"all:", "\"\" is not a layer number"},
        {"1,", "\"\" is not a layer number"},
        {"-1", "\"-1\" is not a layer number"},
        {"1 4", "\"1 4\" is not a layer number"},
        {"last", "\"last\" is not a layer number"},
        {"99999999999999999999", "is not a layer number"},
    };
    (void)state;
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        uint16_t layer[KD_MAX_LAYERS];
        int count;
        assert_int_equal(kd_layers_parse(wrong[i].text, 12, layer, &count, &err), KD_EUSAGE);
        assert_contains(err.msg, wrong[i].why);
        assert_contains(err.msg, "--layers");
    }
}

static void too_many_layers_are_refused(void **state)
{
    char text[800];
    size_t n = 0;
    uint16_t layer[KD_MAX_LAYERS];
    int count;
    (void)state;
    for (int i = KD_MAX_LAYERS; i >= 1; i--)
        n += (size_t)snprintf(text + n, sizeof text - n, "%s%d", n > 0 ? "," : "", i);
    assert_int_equal(kd_layers_parse(text, 200, layer, &count, &err), KD_OK);
    assert_int_equal(count, KD_MAX_LAYERS);
    snprintf(text + n, sizeof text - n, ",100");
    assert_int_equal(kd_layers_parse(text, 200, layer, &count, &err), KD_EUSAGE);
    assert_contains(err.msg, "at most 64");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(features_are_a_set),
        cmocka_unit_test(wrong_features_are_explained),
        cmocka_unit_test(layers_are_a_set_counted_from_the_end),
        cmocka_unit_test(wrong_layers_are_explained),
        cmocka_unit_test(too_many_layers_are_refused),
    };
    return cmocka_run_group_tests_name("selection", tests, NULL, NULL);
}

/* The size model against sealed caches whose sizes were measured on real photos, and against LMDB itself. */
#include <math.h>
#include <sys/stat.h>

#include "cache/size_model.h"
#include "tests/cache_fixture.h"
#include "tests/unit/unit.h"

enum { CLS = 1 << KD_FEATURE_CLS, PATCH = 1 << KD_FEATURE_PATCH };
#define FULL {.kind = KD_TARGET_FULL}
#define ADJOINT(k) {.kind = KD_TARGET_ADJOINT, .h = k, .w = k}
#define POOL(k) {.kind = KD_TARGET_POOL, .h = k, .w = k}

/* 606 photos of Caltech-101, one view each, ViT-Ti/14: tests/reference/README.md has how they were made. */
static void sealed_caches_of_real_photos_are_met(void **state)
{
    static const struct { unsigned features; kd_storage storage; double bytes, tolerance; } real[] = {
        {CLS | PATCH, {KD_F16, 1, {FULL}}, 57778176, 0.01},     {CLS, {KD_F16, 0, {FULL}}, 647168, 0.01},               {CLS | PATCH, {KD_F16, 1, {ADJOINT(7)}}, 13086720, 0.01},
        {CLS | PATCH, {KD_F16, 1, {POOL(7)}}, 13086720, 0.01},  {CLS | PATCH, {KD_F16, 1, {ADJOINT(14)}}, 43855872, 0.04}, /* its records straddle 17 pages */
        {CLS | PATCH, {KD_BF16, 1, {FULL}}, 47525888, 0.01},    {CLS | PATCH, {KD_BF16, 1, {ADJOINT(7)}}, 10604544, 0.01}, {CLS, {KD_BF16, 0, {FULL}}, 647168, 0.01},
        {CLS | PATCH, {KD_I8, 1, {FULL}}, 30334976, 0.01},      {CLS, {KD_I8, 0, {FULL}}, 520192, 0.01},                {CLS | PATCH, {KD_I8, 1, {ADJOINT(7)}}, 7995392, 0.01},
        {CLS | PATCH, {KD_I8, 1, {POOL(7)}}, 7995392, 0.01},    {CLS | PATCH, {KD_I8, 1, {ADJOINT(14)}}, 22888448, 0.01},
        {CLS | PATCH, {KD_I8, 2, {ADJOINT(7), ADJOINT(14)}}, 30371840, 0.01},
    };
    (void)state;
    for (size_t i = 0; i < sizeof real / sizeof real[0]; i++) {
        kd_size_shape s = {.features = real[i].features, .width = 192, .grid_h = 16, .grid_w = 16, .layers = 1};
        double model = (double)kd_size_cache(&s, &real[i].storage, 606, 1);
        if (!(fabs(model / real[i].bytes - 1) <= real[i].tolerance))
            fail_msg("case %zu: %.0f bytes, and the sealed cache has %.0f", i, model, real[i].bytes);
    }
}

/* Random values hardly compress, so that records are a little larger than the model's; pages and small entries are LMDB's own. */
static void pages_of_small_records_are_those_of_lmdb(void **state)
{
    enum { IMAGES = 1000 };
    struct stat st;
    kd_size_shape s = {.features = CLS, .width = FX_WIDTH, .grid_h = FX_GRID, .grid_w = FX_GRID, .layers = 1};
    kd_storage f = {.dtype = KD_F16};
    json_t *j = fx_recipe_json();
    kd_recipe r;
    double model;
    (void)state;
    json_object_set_new(j, "features", json_pack("[s]", "cls"));
    json_object_set_new(j, "patch_targets", json_array());
    must(kd_recipe_from_json(&r, j, "the test's recipe", &fx_err));
    fx_make_cache_of(r, fx_path("small.kdc"), 0, IMAGES);
    assert_int_equal(stat(fx_path("small.kdc"), &st), 0);
    model = (double)kd_size_cache(&s, &f, IMAGES, FX_VIEWS);
    if (!(fabs(model / (double)st.st_size - 1) < 0.03))
        fail_msg("%.0f bytes, and the sealed cache has %.0f", model, (double)st.st_size);
}

static void more_is_never_smaller(void **state)
{
    kd_size_shape s = {.features = CLS | PATCH, .width = 768, .grid_h = 16, .grid_w = 16, .layers = 1};
    kd_storage f16 = {.dtype = KD_F16, .targets = 1}, i8 = {.dtype = KD_I8, .targets = 1}, small = {.dtype = KD_I8, .targets = 1, .target = {ADJOINT(7)}};
    uint64_t one = kd_size_cache(&s, &f16, 1000, 1);
    (void)state;
    assert_true(kd_size_cache(&s, &f16, 1000, 2) > one);
    assert_true(kd_size_cache(&s, &f16, 2000, 1) > one);
    assert_true(kd_size_view(&s, &f16, 8) > kd_size_view(&s, &i8, 8));
    assert_true(kd_size_view(&s, &i8, 8) > kd_size_view(&s, &small, 8));
    s.mixed = 1;
    assert_true(kd_size_cache(&s, &f16, 1000, 1) > one);
    s.layers = 2;
    assert_true(kd_size_cache(&s, &f16, 1000, 1) > 2 * one - 1000000);
    assert_true(kd_size_cache(&s, &f16, UINT64_MAX / 2, 65536) == UINT64_MAX);
}

static void storage_reads_as_the_options_do(void **state)
{
    kd_storage f = {.dtype = KD_I8, .targets = 2, .target = {ADJOINT(7), {.kind = KD_TARGET_POOL, .h = 4, .w = 6}}};
    char text[KD_STORAGE_TEXT];
    (void)state;
    assert_string_equal(kd_storage_text(&f, CLS | PATCH, text), "i8 adjoint:7,pool:4x6");
    assert_string_equal(kd_storage_text(&f, CLS, text), "i8");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(sealed_caches_of_real_photos_are_met),
        cmocka_unit_test_setup_teardown(pages_of_small_records_are_those_of_lmdb, fx_make_dir, fx_drop_dir),
        cmocka_unit_test(more_is_never_smaller),
        cmocka_unit_test(storage_reads_as_the_options_do),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

/* Exports, byte by byte: what other tools read is what the cache holds. */
#include "cache/export.h"
#include "common/weights/weights.h"
#include "tests/cache_fixture.h"
#include "tests/unit/unit.h"

enum { IMAGES = 3, REDUCED = 4 };

/* i8: CLS, every token and a 2 x 2 adjoint target. */
static kd_export open_export(kd_cache **c, const kd_view_ranges *all, const char *dtype)
{
    const char *path = fx_path("c.kdc");
    kd_export x = {.views = all, .layers = 1, .layer = {1}};
    fx_make_cache_of(fx_recipe_stored(dtype, "full,adjoint:2"), path, 0, IMAGES);
    must(kd_cache_open(c, &path, 1, &fx_err));
    x.cache = *c;
    x.features = kd_cache_recipe(*c)->features;
    return x;
}

/* Which of the fixture's images has place i in the order of ids. */
static unsigned image_at(kd_cache *c, size_t i)
{
    for (unsigned k = 0; k < IMAGES; k++) {
        kd_hash128 id = fx_image_id(k);
        if (memcmp(&kd_cache_image(c, i)->image, &id, sizeof id) == 0)
            return k;
    }
    fail_msg("an image that wasn't put in");
    return 0;
}

static void read_tensor(const kd_weights *w, const char *name, float *out, size_t count)
{
    int i = kd_weights_find(w, name);
    assert_true(i >= 0);
    must(kd_weights_read_f32(w, i, out, count, &fx_err));
}

static void check_feature(const kd_export *x, const float *values, kd_feature f)
{
    const kd_recipe *r = kd_cache_recipe(x->cache);
    size_t each = kd_export_values(x, f);
    for (size_t v = 0; v < IMAGES * FX_VIEWS; v++) {
        for (size_t i = 0; i < each; i++)
            assert_true(values[v * each + i] == fx_stored(r, image_at(x->cache, v / FX_VIEWS), v % FX_VIEWS, f, 1, i));
    }
}

static void a_safetensors_file_has_every_value(void **state)
{
    static float values[IMAGES * FX_VIEWS * FX_LARGEST];
    const kd_view_ranges all = {.count = 0};
    kd_cache *c;
    kd_export x = open_export(&c, &all, "i8");
    kd_weights *w;
    (void)state;
    must(kd_export_safetensors(&x, fx_path("x.safetensors"), &fx_err));
    must(kd_weights_open(&w, fx_path("x.safetensors"), &fx_err));
    for (kd_feature f = 0; f < KD_FEATURES; f++) {
        if (!(x.features & 1u << f))
            continue;
        read_tensor(w, kd_feature_name(f), values, IMAGES * FX_VIEWS * kd_export_values(&x, f));
        check_feature(&x, values, f);
    }
    read_tensor(w, "square2", values, IMAGES * FX_VIEWS);
    for (size_t v = 0; v < IMAGES * FX_VIEWS; v++)
        assert_true(values[v] == (float)fx_square(image_at(c, v / FX_VIEWS), v % FX_VIEWS));
    read_tensor(w, "view", values, IMAGES * FX_VIEWS);
    for (size_t v = 0; v < IMAGES * FX_VIEWS; v++)
        assert_true(values[v] == (float)(v % FX_VIEWS));
    kd_weights_close(w);
    kd_cache_close(c);
}

/* The member's bytes; the caller frees them. */
static uint8_t *member(const char *tar, const char *name, size_t *size)
{
    uint8_t *all, *out = NULL;
    size_t n;
    fx_read_file(tar, &all, &n);
    for (size_t at = 0; at + 512 <= n && all[at]; ) {
        size_t bytes = strtoul((const char *)all + at + 124, NULL, 8);
        if (strcmp((const char *)all + at, name) == 0) {
            out = malloc(bytes);
            assert_non_null(out);
            memcpy(out, all + at + 512, bytes);
            *size = bytes;
        }
        at += 512 + (bytes + 511) / 512 * 512;
    }
    kd_free(all);
    if (!out)
        fail_msg("%s isn't in %s", name, tar);
    return out;
}

static void check_npy(const char *tar, const char *stem, const char *name, const char *descr, const char *shape, const void *values, size_t bytes)
{
    char path[100], want[100];
    size_t size;
    uint8_t *npy;
    snprintf(path, sizeof path, "%s.%s.npy", stem, name);
    npy = member(tar, path, &size);
    assert_int_equal(size, 128 + bytes);
    assert_memory_equal(npy, "\x93NUMPY\x01\x00\x76\x00", 10);
    snprintf(want, sizeof want, "{'descr': '%s', 'fortran_order': False, 'shape': (%s), }", descr, shape);
    assert_memory_equal(npy + 10, want, strlen(want));
    assert_int_equal(npy[127], '\n');
    assert_memory_equal(npy + 128, values, bytes);
    free(npy);
}

static void tars_have_every_value_as_npy(void **state)
{
    const kd_view_ranges all = {.count = 0};
    kd_cache *c;
    kd_export x = open_export(&c, &all, "i8");
    char stem[80], id[33];
    float value[FX_LARGEST];
    double square;
    size_t tars, size;
    uint8_t *json;
    (void)state;
    must(kd_export_webdataset(&x, fx_path("x-%02d.tar"), UINT64_MAX, &tars, &fx_err));
    assert_int_equal(tars, 1);
    for (size_t v = 0; v < IMAGES * FX_VIEWS; v++) {
        unsigned image = image_at(c, v / FX_VIEWS);
        kd_hex(id, kd_cache_image(c, v / FX_VIEWS)->image.b, 16);
        snprintf(stem, sizeof stem, "%s-%05zu", id, v % FX_VIEWS);
        for (size_t i = 0; i < FX_ROWS * FX_WIDTH; i++)
            value[i] = fx_stored(kd_cache_recipe(c), image, v % FX_VIEWS, KD_FEATURE_PATCH, 1, i);
        check_npy(fx_path("x-00.tar"), stem, "patch", "<f4", "1, 25, 48", value, FX_ROWS * FX_WIDTH * sizeof(float));
        for (size_t i = 0; i < REDUCED * FX_WIDTH; i++)
            value[i] = fx_stored(kd_cache_recipe(c), image, v % FX_VIEWS, KD_FEATURE_PATCH2, 1, i);
        check_npy(fx_path("x-00.tar"), stem, "patch2", "<f4", "1, 4, 48", value, REDUCED * FX_WIDTH * sizeof(float));
        square = fx_square(image, v % FX_VIEWS);
        check_npy(fx_path("x-00.tar"), stem, "square2", "<f8", "1,", &square, sizeof square);
        strcat(stem, ".json");
        json = member(fx_path("x-00.tar"), stem, &size);
        assert_non_null(memmem(json, size, id, 32));
        free(json);
    }
    kd_cache_close(c);
    unlink(fx_path("x-00.tar"));
}

static void f16_caches_give_f16(void **state)
{
    const kd_view_ranges first = {.range = {{0, 0}}, .count = 1};
    kd_cache *c;
    kd_export x = open_export(&c, &first, "f16");
    uint16_t half[FX_WIDTH];
    char stem[80], id[33];
    size_t tars;
    (void)state;
    assert_int_equal(kd_export_views(&x), IMAGES);
    must(kd_export_webdataset(&x, fx_path("h%d.tar"), 1, &tars, &fx_err));
    assert_int_equal(tars, IMAGES);
    kd_hex(id, kd_cache_image(c, 1)->image.b, 16);
    snprintf(stem, sizeof stem, "%s-00000", id);
    for (size_t i = 0; i < FX_WIDTH; i++)
        half[i] = kd_f32_to_f16(fx_stored(kd_cache_recipe(c), image_at(c, 1), 0, KD_FEATURE_CLS, 1, i));
    check_npy(fx_path("h1.tar"), stem, "cls", "<f2", "1, 48", half, sizeof half);
    kd_cache_close(c);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(a_safetensors_file_has_every_value, fx_make_dir, fx_drop_dir),
        cmocka_unit_test_setup_teardown(tars_have_every_value_as_npy, fx_make_dir, fx_drop_dir),
        cmocka_unit_test_setup_teardown(f16_caches_give_f16, fx_make_dir, fx_drop_dir),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

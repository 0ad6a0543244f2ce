/* Small caches for tests: images, views, plans and features that are pure functions of (image, view), so that what is read can be compared with what was meant. */
#ifndef KD_TESTS_CACHE_FIXTURE_H
#define KD_TESTS_CACHE_FIXTURE_H

#include <dirent.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "cache/store.h"
#include "common/base/io.h"
#include "common/base/log.h"
#include "common/base/mem.h"
#include "common/base/rng.h"

enum { FX_WIDTH = 48, FX_GRID = 5, FX_ROWS = FX_GRID * FX_GRID, FX_VIEWS = 2, FX_LARGEST = 2 * FX_ROWS * FX_WIDTH, FX_RECORDS = 8, FX_MOST_RECORDS = 2 * KD_FEATURES };

#define must(expr) fx_must((expr), #expr, &fx_err, __LINE__)
static kd_err fx_err;
static inline void fx_must(kd_status status, const char *expr, const kd_err *err, int line)
{
    if (status != KD_OK) {
        print_error("line %d: %s gave %s: %s\n", line, expr, kd_status_name(status), err->msg);
        fail();
    }
}
#define must_be(want, expr)                                                                            \
    do {                                                                                               \
        kd_status got_ = (expr);                                                                       \
        if (got_ != (want))                                                                            \
            print_error("%s gave %s: %s\n", #expr, kd_status_name(got_), got_ < 0 ? fx_err.msg : ""); \
        assert_int_equal(got_, (want));                                                                \
    } while (0)
#define must_say(text) fx_must_say(text, __LINE__)
static inline void fx_must_say(const char *text, int line)
{
    if (!strstr(fx_err.msg, text)) {
        print_error("line %d: \"%s\" doesn't say \"%s\"\n", line, fx_err.msg, text);
        fail();
    }
}

/* A fresh folder, removed with its files at exit. */
static char fx_dir[64];
static inline void fx_remove_dir(void)
{
    char path[512];
    struct dirent *e;
    DIR *d = opendir(fx_dir);
    while (d && (e = readdir(d)) != NULL) {
        snprintf(path, sizeof path, "%s/%s", fx_dir, e->d_name);
        unlink(path);
    }
    if (d)
        closedir(d);
    rmdir(fx_dir);
}
static inline int fx_make_dir(void **state)
{
    uint64_t room;
    (void)state;
    fx_remove_dir();
    /* In memory where there is room: the writer waits for the disk at every commit, and tests kill processes, never machines. */
    snprintf(fx_dir, sizeof fx_dir, "%s/kd-test-XXXXXX", kd_io_free_bytes("/dev/shm", &room, NULL) == KD_OK && room > (64 << 20) && access("/dev/shm", W_OK) == 0 ? "/dev/shm" : "/tmp");
    kd_log_set_level(KD_LOG_WARN);
    return mkdtemp(fx_dir) ? 0 : -1;
}
static inline int fx_drop_dir(void **state)
{
    (void)state;
    fx_remove_dir();
    return 0;
}
static inline const char *fx_path(const char *name)
{
    static char path[64][512];
    static int next;
    next = (next + 1) % 64;
    snprintf(path[next], sizeof path[next], "%s/%s", fx_dir, name);
    return path[next];
}

static inline json_t *fx_recipe_json(void)
{
    json_error_t e;
    json_t *j = json_loads("{\"format_version\":1,\"teacher\":{\"sha256\":\"00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff\",\"tensors\":\"\",\"family\":\"dinov2\","
                           "\"width\":48,\"depth\":6,\"heads\":3,\"patch\":14,\"registers\":4,\"positions\":\"official\",\"layer_norm_eps\":1e-6,\"mean\":[0.485,0.456,0.406],"
                           "\"std\":[0.229,0.224,0.225]},\"layers\":[1],\"layer_norm\":true,\"layer_concat\":false,\"augment\":{\"name\":\"lightly\"},"
                           "\"seed\":7,\"image_size\":[70,70],\"decoder\":\"0123456789abcdef0123456789abcdef\",\"exif\":\"ignore\",\"features\":[\"cls\",\"patch\"],\"grid\":[5,5],"
                           "\"registers\":4,\"width\":48,\"patch_targets\":[\"full\"],\"store\":{\"dtype\":\"f16\"}}", 0, &e);
    assert_non_null(j);
    return j;
}
static inline kd_recipe fx_recipe(void)
{
    kd_recipe r;
    must(kd_recipe_from_json(&r, fx_recipe_json(), "the test's recipe", &fx_err));
    return r;
}
/* All four features of layers 1 and 4. */
static inline kd_recipe fx_recipe_full(void)
{
    json_t *j = fx_recipe_json();
    kd_recipe r;
    json_object_set_new(j, "layers", json_pack("[i,i]", 1, 4));
    json_object_set_new(j, "features", json_pack("[s,s,s,s]", "cls", "patch", "registers", "mean"));
    must(kd_recipe_from_json(&r, j, "the test's full recipe", &fx_err));
    return r;
}

/* Another element type and other patch targets ("full", or up to four separated by commas). */
static inline kd_recipe fx_recipe_stored(const char *dtype, const char *targets)
{
    json_t *j = fx_recipe_json(), *list = json_array();
    char text[200], *rest = text;
    kd_recipe r;
    snprintf(text, sizeof text, "%s", targets);
    for (const char *t = strtok_r(text, ",", &rest); t; t = strtok_r(NULL, ",", &rest))
        json_array_append_new(list, json_string(t));
    json_object_set_new(j, "patch_targets", list);
    json_object_set_new(j, "store", json_pack("{s:s}", "dtype", dtype));
    must(kd_recipe_from_json(&r, j, "the test's recipe", &fx_err));
    return r;
}

static inline kd_hash128 fx_image_id(unsigned image)
{
    char text[32];
    snprintf(text, sizeof text, "image %u", image);
    return kd_xxh128(text, strlen(text));
}
/* The value that element i of a feature of a layer has after f16: what a reader must give. */
static inline float fx_value_of(unsigned image, unsigned view, kd_feature f, uint16_t layer, size_t i)
{
    uint32_t h = (uint32_t)(image * 2654435761u + view * 40503u + (unsigned)f * 97u + (layer - 1u) * 7919u + (uint32_t)i * 2246822519u);
    h ^= h >> 15;
    h *= 2654435761u;
    return kd_f16_to_f32(kd_f32_to_f16((float)(h >> 8) / 8388608.0f - 1.0f));
}
static inline float fx_value(unsigned image, unsigned view, kd_feature f, size_t i)
{
    return fx_value_of(image, view, f, 1, i);
}
static inline kd_view_entry fx_view(unsigned image, unsigned view)
{
    kd_view_entry v;
    kd_policy policy;
    char text[32];
    memset(&v, 0, sizeof v);
    v.image = fx_image_id(image);
    v.view = view;
    snprintf(text, sizeof text, "view %u of %u", view, image);
    v.view_hash = kd_xxh128(text, strlen(text));
    must(kd_policy_load(&policy, "lightly", 70, 70, &fx_err));
    v.plan = kd_plan_draw(&policy, 7, &v.image, view, 100, 80);
    return v;
}

/* The bytes of an i8 payload are drawn directly; what a reader must make of them is worked out here by the definition. */
static inline int fx_byte(unsigned image, unsigned view, kd_feature f, uint16_t layer, size_t i)
{
    return (int)lrintf(127 * fx_value_of(image, view, f, layer, i));
}
static inline float fx_scale(size_t row)
{
    return 0.001f * (float)(row + 1);
}
/* What a reader must give for value i of a record. */
static inline float fx_stored(const kd_recipe *r, unsigned image, unsigned view, kd_feature f, uint16_t layer, size_t i)
{
    float x = fx_value_of(image, view, f, layer, i);
    size_t width = (size_t)r->width, block = (size_t)(r->width & -r->width), first = i - i % width % block;
    long sum = 0;
    if (r->dtype != KD_I8)
        return r->dtype == KD_BF16 ? kd_bf16_to_f32(kd_f32_to_bf16(x)) : x;
    for (size_t k = 0; k < block; k++)
        sum += __builtin_popcount((unsigned)((i - first) & k)) & 1 ? -fx_byte(image, view, f, layer, first + k) : fx_byte(image, view, f, layer, first + k);
    return (float)sum * (fx_scale(i / width) * (float)(1 / sqrt((double)block)));
}
/* |t|^2 of an adjoint record. */
static inline double fx_square(unsigned image, unsigned view)
{
    return 10000.0 + image + 0.25 * view;
}

/* Encodes one feature of one layer of one view. */
static inline void fx_record(kd_record_buf *out, const kd_recipe *r, unsigned image, const kd_view_entry *v, kd_feature f, uint16_t layer)
{
    static kd_record_scratch scratch;
    static uint8_t payload[4 * FX_LARGEST];
    kd_record_head head = kd_recipe_head(r, f, &v->image, v->view, layer);
    size_t n = (size_t)head.rows * head.width;
    assert_true(n <= FX_LARGEST);
    head.view_hash = v->view_hash;
    head.square = head.target == KD_TARGET_ADJOINT ? fx_square(image, v->view) : 0;
    head.fidelity = (kd_fidelity){.xx = 4, .qq = 4, .err2 = 0.25 * (image + 1), .worst = 0.125 * (v->view + 1)};
    for (size_t i = 0; i < n; i++) {
        float x = fx_value_of(image, v->view, f, layer, i);
        uint16_t h = r->dtype == KD_BF16 ? kd_f32_to_bf16(x) : kd_f32_to_f16(x);
        if (r->dtype == KD_I8) {
            float scale = fx_scale(i / head.width);
            memcpy(payload + 4 * (i / head.width), &scale, 4);
            payload[4 * head.rows + i] = (uint8_t)fx_byte(image, v->view, f, layer, i);
            continue;
        }
        payload[i] = (uint8_t)(h >> 8);
        payload[n + i] = (uint8_t)h;
    }
    must(kd_record_encode(out, &head, payload, 1, &scratch, &fx_err));
}

/* Adds a view with every record that the recipe asks for. */
static inline kd_status fx_add_view(kd_writer *w, const kd_recipe *r, unsigned image, const kd_image_entry *e, const kd_view_entry *v, kd_err *err)
{
    static kd_record_buf record[FX_MOST_RECORDS];
    kd_record_ref refs[FX_MOST_RECORDS];
    size_t n = 0;
    assert_true(kd_recipe_records(r) <= FX_MOST_RECORDS);
    for (int f = 0; f < KD_FEATURES; f++) {
        for (int l = 0; l < r->layers && kd_recipe_has(r, (kd_feature)f); l++, n++) {
            fx_record(&record[n], r, image, v, (kd_feature)f, r->layer[l]);
            refs[n] = (kd_record_ref){(kd_feature)f, r->layer[l], record[n].bytes, record[n].size};
        }
    }
    return kd_writer_add_view(w, e, v, refs, n, err);
}

static inline kd_status fx_add(kd_writer *w, const kd_recipe *r, unsigned image, unsigned view, kd_err *err)
{
    kd_view_entry v = fx_view(image, view);
    char rel[64];
    kd_image_entry e = {.image = v.image, .rel = rel, .file_size = 1000 + image, .width = 100, .height = 80};
    snprintf(rel, sizeof rel, "class %u/photo-%u.jpg", image % 3, image);
    return fx_add_view(w, r, image, &e, &v, err);
}

/* A sealed cache of images first .. first+count-1. Takes over r. */
static inline void fx_make_cache_of(kd_recipe r, const char *path, unsigned first, unsigned count)
{
    kd_writer *w;
    json_t *provenance = json_pack("{s:s}", "made_by", "a test");
    must(kd_writer_open(&w, path, &r, provenance, 0, &fx_err));
    for (unsigned i = first; i < first + count; i++) {
        for (unsigned v = 0; v < FX_VIEWS; v++)
            must(fx_add(w, &r, i, v, &fx_err));
    }
    must(kd_writer_seal(w, &fx_err));
    kd_writer_close(w);
    json_decref(provenance);
    kd_recipe_free(&r);
}
/* cls and patch of the last layer. */
static inline void fx_make_cache(const char *path, unsigned first, unsigned count)
{
    fx_make_cache_of(fx_recipe(), path, first, count);
}

/* Reads every record of a view and compares. */
static inline kd_status fx_compare_records(kd_reader *r, const kd_recipe *recipe, unsigned image, const kd_view_entry *want, kd_err *err)
{
    static float x[FX_LARGEST];
    for (int i = 0; i < KD_FEATURES * recipe->layers; i++) {
        kd_feature f = (kd_feature)(i / recipe->layers);
        uint16_t layer = recipe->layer[i % recipe->layers];
        kd_record_facts facts;
        if (!kd_recipe_has(recipe, f))
            continue;
        KD_TRY(kd_reader_feature(r, f, &want->image, want->view, layer, x, &facts, err));
        assert_memory_equal(facts.view_hash.b, want->view_hash.b, 16);
        assert_true(facts.square == (kd_recipe_target(recipe, f).kind == KD_TARGET_ADJOINT ? fx_square(image, want->view) : 0));
        for (size_t k = 0; k < (size_t)kd_recipe_rows(recipe, f) * (size_t)recipe->width; k++) {
            if (!(x[k] == fx_stored(recipe, image, want->view, f, layer, k))) {
                print_error("image %u, view %u, %s of layer %u[%zu]: %.9g instead of %.9g\n", image, want->view, kd_feature_name(f), layer, k, (double)x[k],
                            (double)fx_stored(recipe, image, want->view, f, layer, k));
                fail();
            }
        }
    }
    return KD_OK;
}

/* Reads everything of images first..+count and compares. Returns KD_OK, or the first error; fails the test on a wrong value. */
static inline kd_status fx_compare_all(kd_cache *c, unsigned first, unsigned count, kd_err *err)
{
    kd_reader *r;
    kd_status status = kd_reader_create(&r, c, err);
    for (unsigned i = first; i < first + count && status == KD_OK; i++) {
        for (unsigned v = 0; v < FX_VIEWS && status == KD_OK; v++) {
            kd_view_entry want = fx_view(i, v), got;
            status = kd_reader_view(r, &want.image, v, &got, err);
            if (status == KD_OK) {
                uint8_t a[KD_PLAN_BYTES], b[KD_PLAN_BYTES];
                kd_plan_encode(&want.plan, a);
                kd_plan_encode(&got.plan, b);
                assert_memory_equal(a, b, sizeof a);
                assert_memory_equal(got.view_hash.b, want.view_hash.b, 16);
            }
            if (status == KD_OK)
                status = fx_compare_records(r, kd_cache_recipe(c), i, &want, err);
        }
    }
    kd_reader_destroy(r);
    return status;
}

static inline kd_status fx_open(kd_cache **c, const char *path, kd_err *err)
{
    return kd_cache_open(c, &path, 1, err);
}

static inline void fx_read_file(const char *path, uint8_t **bytes, size_t *size)
{
    must(kd_io_read_all(path, (size_t)1 << 30, bytes, size, &fx_err));
}
static inline void fx_write_file(const char *path, const void *bytes, size_t size)
{
    FILE *f;
    unlink(path); /* sealed files are read-only */
    f = fopen(path, "wb");
    assert_non_null(f);
    if (size > 0) /* bytes of an empty file may be NULL */
        assert_int_equal(fwrite(bytes, 1, size, f), size);
    assert_int_equal(fclose(f), 0);
}
static inline void fx_assert_equal_files(const char *a, const char *b)
{
    uint8_t *x, *y;
    size_t nx, ny;
    fx_read_file(a, &x, &nx);
    fx_read_file(b, &y, &ny);
    assert_int_equal(nx, ny);
    for (size_t i = 0; i < nx; i++) {
        if (x[i] != y[i]) {
            print_error("%s and %s differ first at byte %zu (page %zu, offset %zu)\n", a, b, i, i / 4096, i % 4096);
            fail();
        }
    }
    kd_free(x);
    kd_free(y);
}

#endif

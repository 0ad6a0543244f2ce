/* A folder of drawn pictures and a cache of their views, for tests of replaying and training: real plans, real view hashes, features that are a formula of (image, view). */
#ifndef KD_TESTS_UNIT_TRAIN_FIXTURE_H
#define KD_TESTS_UNIT_TRAIN_FIXTURE_H

#include "tests/unit/unit.h"

#include <math.h>

#include "cache/store.h"
#include "common/base/io.h"
#include "common/base/mem.h"
#include "common/data/dataset.h"
#include "tests/unit/formula.h"

/* Views that are not square, so that rows and columns can't be swapped unnoticed. */
enum { TF_H = 24, TF_W = 40, TF_PIXELS = TF_H * TF_W * 3, TF_WIDTH = 8, TF_GRID_H = 2, TF_GRID_W = 3, TF_ROWS = TF_GRID_H * TF_GRID_W };
enum { TF_REGISTERS = 3, TF_LARGEST = 2 * TF_ROWS * TF_WIDTH, TF_RECORDS = 2 * KD_FEATURES };

/* A picture that no other index has. */
static inline void tf_draw(const char *path, int index) {
    kd_err err = {0};
    enum { W = 60, H = 48 };
    uint8_t rgb[W * H * 3];
    for (int y = 0; y < H; y++)
        for (int x = 0; x < W; x++)
            for (int c = 0; c < 3; c++)
                rgb[(y * W + x) * 3 + c] = (uint8_t)(128 + 100 * sin(0.13 * (index + 1) * x + 0.4 * c) * cos(0.21 * y + index));
    assert_ok(kd_jpeg_write(path, rgb, W, H, 90, &err));
}

static inline void tf_pictures(const char *folder, int count) {
    kd_err err = {0};
    char path[4200];
    assert_ok(kd_io_mkdirs(folder, &err));
    for (int i = 0; i < count; i++) {
        snprintf(path, sizeof path, "%s/%03d.jpg", folder, i);
        tf_draw(path, i);
    }
}

/* cls and patch of the last of two layers; a test changes what it needs. decoder NULL: this program's. */
static inline json_t *tf_recipe_json(const char *decoder) {
    kd_err err = {0};
    kd_policy policy;
    kd_hash128 mine;
    char hex[33];
    assert_ok(kd_decoder_hash(&mine, &err));
    kd_hex(hex, mine.b, 16);
    assert_ok(kd_policy_load(&policy, "lightly", TF_H, TF_W, &err));
    json_t *teacher = json_pack("{s:s, s:s, s:s, s:i, s:i, s:i, s:i, s:i, s:s, s:f, s:[f,f,f], s:[f,f,f]}", "sha256", "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff",
                                "tensors", "", "family", "dinov2", "width", TF_WIDTH, "depth", 2, "heads", 1, "patch", 14, "registers", TF_REGISTERS, "positions", "official", "layer_norm_eps", 1e-6,
                                "mean", 0.485, 0.456, 0.406, "std", 0.229, 0.224, 0.225);
    json_t *j = json_pack("{s:i, s:o, s:[i], s:b, s:b, s:o, s:i, s:[i,i], s:s, s:s, s:[s,s], s:[i,i], s:i, s:i, s:[s], s:{s:s}}", "format_version", 1, "teacher", teacher,
                          "layers", 1, "layer_norm", 1, "layer_concat", 0, "augment", kd_policy_json(&policy), "seed", 3, "image_size", TF_H, TF_W, "decoder", decoder != NULL ? decoder : hex,
                          "exif", "ignore", "features", "cls", "patch", "grid", TF_GRID_H, TF_GRID_W, "registers", TF_REGISTERS, "width", TF_WIDTH, "patch_targets", "full", "store", "dtype", "f16");
    assert_non_null(j);
    return j;
}

/* Weight of point k of `from` in point p of `to`: bilinear, align_corners = false. */
static inline double tf_upsampling(int from, int to, int k, int p) {
    double at = fmin(fmax(0, (p + 0.5) * from / to - 0.5), from - 1);
    return fmax(0, 1 - fabs(at - k));
}
/* Weight of point p of `to` in the mean of cell k of `cells`. */
static inline double tf_cell(int cells, int to, int k, int p) {
    int begin = k * to / cells, end = ((k + 1) * to + cells - 1) / cells;
    return p >= begin && p < end ? 1.0 / (end - begin) : 0;
}

/* What the teacher "saw": depends on the image's bytes, the view and the layer, and has a mean and a spread that standardising must remove. */
static inline void tf_features(float *out, const kd_hash128 *id, uint32_t view, kd_feature f, uint16_t layer, size_t n) {
    char name[64], hex[33];
    kd_hex(hex, id->b, 16);
    snprintf(name, sizeof name, "%s/%u/%d/%u", hex, view, (int)f, layer);
    for (size_t i = 0; i < n; i++)
        out[i] = kd_f16_to_f32(kd_f32_to_f16((float)(3.0 * layer * formula_unit(name, (uint32_t)i) + 1.0 + 0.5 * (double)(i % TF_WIDTH))));
}

/* A patch target of the grid that the formula gives, before it is stored. Returns |t|^2 of adjoint targets, else 0. */
static inline double tf_patches(float *out, const kd_recipe *recipe, kd_feature f, const kd_hash128 *id, uint32_t view, uint16_t layer) {
    kd_target t = kd_recipe_target(recipe, f);
    float grid[TF_LARGEST];
    double sum[TF_LARGEST] = {0}, square = 0;
    size_t width = (size_t)recipe->width, tokens = TF_ROWS, rows = kd_recipe_rows(recipe, f);
    tf_features(grid, id, view, KD_FEATURE_PATCH, layer, tokens * width);
    for (size_t p = 0; p < tokens; p++)
        for (size_t k = 0; k < rows; k++) {
            double weight = p == k;
            if (t.kind == KD_TARGET_ADJOINT)
                weight = tf_upsampling(t.h, TF_GRID_H, (int)k / t.w, (int)p / TF_GRID_W) * tf_upsampling(t.w, TF_GRID_W, (int)k % t.w, (int)p % TF_GRID_W);
            else if (t.kind == KD_TARGET_POOL)
                weight = tf_cell(t.h, TF_GRID_H, (int)k / t.w, (int)p / TF_GRID_W) * tf_cell(t.w, TF_GRID_W, (int)k % t.w, (int)p % TF_GRID_W);
            for (size_t c = 0; c < width; c++)
                sum[k * width + c] += weight * (double)grid[p * width + c];
        }
    for (size_t i = 0; i < tokens * width; i++)
        square += (double)grid[i] * (double)grid[i];
    for (size_t i = 0; i < rows * width; i++)
        out[i] = (float)sum[i];
    return t.kind == KD_TARGET_ADJOINT ? square : 0;
}

static inline void tf_record(kd_record_buf *out, const kd_recipe *recipe, const kd_view_entry *v, kd_feature f, uint16_t layer, kd_record_scratch *codec) {
    kd_err err = {0};
    kd_record_head head = kd_recipe_head(recipe, f, &v->image, v->view, layer);
    size_t values = (size_t)head.rows * head.width;
    float x[TF_LARGEST];
    uint8_t planes[2 * TF_LARGEST];
    assert_true(values <= TF_LARGEST);
    if (kd_feature_target(f) >= 0)
        head.square = tf_patches(x, recipe, f, &v->image, v->view, layer);
    else
        tf_features(x, &v->image, v->view, f, layer, values);
    for (size_t i = 0; i < values; i++) {
        uint16_t h = kd_f32_to_f16(x[i]);
        planes[i] = (uint8_t)(h >> 8);
        planes[values + i] = (uint8_t)h;
    }
    head.view_hash = v->view_hash;
    assert_ok(kd_record_encode(out, &head, planes, 1, codec, &err));
}

static inline void tf_add(kd_writer *w, const kd_recipe *recipe, const char *folder, const char *rel, uint32_t views) {
    kd_err err = {0};
    char path[4200];
    uint8_t *bytes = NULL, pixels[TF_PIXELS];
    size_t size;
    kd_image img = {0};
    kd_policy policy;
    kd_view_scratch scratch = {0};
    kd_record_scratch codec = {0};
    kd_record_buf record[TF_RECORDS] = {{0}};
    snprintf(path, sizeof path, "%s/%s", folder, rel);
    assert_ok(kd_policy_load(&policy, "lightly", TF_H, TF_W, &err));
    assert_ok(kd_io_read_all(path, KD_MAX_IMAGE_FILE, &bytes, &size, &err));
    assert_ok(kd_image_decode(&img, bytes, size, path, NULL, &err));
    kd_image_entry e = {.image = kd_image_id(bytes, size), .rel = rel, .file_size = size, .width = img.width, .height = img.height};
    for (uint32_t v = 0; v < views; v++) {
        kd_view_entry entry = {.image = e.image, .view = v, .plan = kd_plan_draw(&policy, 3, &e.image, v, img.width, img.height)};
        kd_record_ref refs[TF_RECORDS];
        size_t n = 0;
        assert_ok(kd_plan_apply(&entry.plan, &img, pixels, &scratch, &err));
        entry.view_hash = kd_view_hash(pixels, TF_W, TF_H);
        for (int i = 0; i < KD_FEATURES * recipe->layers; i++) {
            kd_feature f = (kd_feature)(i / recipe->layers);
            uint16_t layer = recipe->layer[i % recipe->layers];
            if (!kd_recipe_has(recipe, f))
                continue;
            tf_record(&record[n], recipe, &entry, f, layer, &codec);
            refs[n] = (kd_record_ref){f, layer, record[n].bytes, record[n].size};
            n++;
        }
        assert_ok(kd_writer_add_view(w, &e, &entry, refs, n, &err));
    }
    for (int i = 0; i < TF_RECORDS; i++)
        kd_record_buf_free(&record[i]);
    kd_record_scratch_free(&codec);
    kd_view_scratch_free(&scratch);
    kd_image_free(&img);
    kd_free(bytes);
}

/* A sealed cache of folder/000.jpg .. with `views` views each, opened. Takes over the recipe. */
static inline kd_cache *tf_cache_of(json_t *recipe_json, const char *file, const char *folder, int count, uint32_t views) {
    kd_err err = {0};
    char rel[32];
    kd_writer *w;
    kd_cache *c;
    kd_recipe recipe;
    json_t *provenance = json_pack("{s:s}", "made_by", "a test");
    assert_ok(kd_recipe_from_json(&recipe, recipe_json, "the test's recipe", &err));
    assert_ok(kd_writer_open(&w, file, &recipe, provenance, 0, &err));
    for (int i = 0; i < count; i++) {
        snprintf(rel, sizeof rel, "%03d.jpg", i);
        tf_add(w, &recipe, folder, rel, views);
    }
    assert_ok(kd_writer_seal(w, &err));
    kd_writer_close(w);
    json_decref(provenance);
    kd_recipe_free(&recipe);
    assert_ok(kd_cache_open(&c, &file, 1, &err));
    return c;
}

/* cls, and with `patches` patch, of the last layer. */
static inline kd_cache *tf_cache(const char *file, const char *folder, int count, uint32_t views, int patches, const char *decoder) {
    json_t *j = tf_recipe_json(decoder);
    if (!patches) {
        json_object_set_new(j, "features", json_pack("[s]", "cls"));
        json_object_set_new(j, "patch_targets", json_array());
    }
    return tf_cache_of(j, file, folder, count, views);
}

#endif

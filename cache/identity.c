#include "cache/identity.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/mem.h"
#include "common/image/augment.h"

static kd_status get_ranged(const json_t *v, const char *key, const char *what, long long lo, long long hi, int *out, kd_err *err)
{
    long long x;
    KD_TRY(kd_json_get_int(v, key, what, &x, err));
    if (x < lo || x > hi)
        return kd_fail(err, KD_EDAMAGED, "%s: the recipe's \"%s\" is %lld, outside %lld..%lld", what, key, x, lo, hi);
    *out = (int)x;
    return KD_OK;
}

static kd_status want_text(const json_t *v, const char *key, const char *what, kd_err *err)
{
    const char *s;
    return kd_json_get_string(v, key, what, &s, err);
}

static kd_status want_hex(const json_t *v, const char *key, const char *what, size_t digits, kd_err *err)
{
    const char *s;
    KD_TRY(kd_json_get_string(v, key, what, &s, err));
    if (strlen(s) != digits || strspn(s, "0123456789abcdef") != digits)
        return kd_fail(err, KD_EDAMAGED, "%s: the recipe's \"%s\" is \"%s\", not %zu hexadecimal digits", what, key, s, digits);
    return KD_OK;
}

static kd_status get_object(const json_t *v, const char *key, const char *what, const json_t **out, kd_err *err)
{
    *out = json_object_get(v, key);
    if (!json_is_object(*out))
        return kd_fail(err, KD_EDAMAGED, "%s: the recipe has no object \"%s\"", what, key);
    return KD_OK;
}

/* "a", "b", "c": as many as there are names. */
static void name_list(char *out, size_t cap, const char *const *names, size_t n)
{
    size_t used = 0;
    for (size_t i = 0; i < n && used < cap; i++)
        used += (size_t)snprintf(out + used, cap - used, "%s%s", i ? ", " : "", names[i]);
}

/* [rows, columns] of 1 to `most`. */
static kd_status get_pair(const json_t *v, const char *key, const char *what, int most, int *rows, int *columns, kd_err *err)
{
    const json_t *pair = json_object_get(v, key);
    json_int_t h = json_integer_value(json_array_get(pair, 0)), w = json_integer_value(json_array_get(pair, 1));
    if (json_array_size(pair) != 2 || h < 1 || w < 1 || h > most || w > most)
        return kd_fail(err, KD_EDAMAGED, "%s: the recipe's \"%s\" isn't [rows, columns] of 1 to %d", what, key, most);
    *rows = (int)h;
    *columns = (int)w;
    return KD_OK;
}

/* Three numbers, one for each colour. */
static kd_status want_colours(const json_t *v, const char *key, const char *what, int positive, kd_err *err)
{
    const json_t *list = json_object_get(v, key);
    for (size_t i = 0; i < 3; i++) {
        const json_t *x = json_array_get(list, i);
        if (json_array_size(list) != 3 || !json_is_real(x) || (positive && !(json_real_value(x) > 0)))
            return kd_fail(err, KD_EDAMAGED, "%s: the recipe's \"teacher.%s\" isn't a list of 3 %sreal numbers", what, key, positive ? "positive " : "");
    }
    return KD_OK;
}

/* What the shapes of the records depend on. */
typedef struct teacher_facts {
    int width, depth, registers;
} teacher_facts;

static kd_status read_teacher(teacher_facts *facts, const json_t *json, const char *what, kd_err *err)
{
    static const char *const known[] = {"official", "hf", "timm", "rope"};
    const json_t *t;
    const char *positions;
    int ignored;
    double eps;
    KD_TRY(get_object(json, "teacher", what, &t, err));
    KD_TRY(want_hex(t, "sha256", what, 64, err));
    KD_TRY(want_text(t, "tensors", what, err));
    KD_TRY(want_text(t, "family", what, err));
    KD_TRY(get_ranged(t, "width", what, 1, 1 << 16, &facts->width, err));
    KD_TRY(get_ranged(t, "depth", what, 1, 1 << 10, &facts->depth, err));
    KD_TRY(get_ranged(t, "heads", what, 1, 1 << 10, &ignored, err));
    KD_TRY(get_ranged(t, "patch", what, 1, 1 << 10, &ignored, err));
    KD_TRY(get_ranged(t, "registers", what, 0, 1 << 10, &facts->registers, err));
    KD_TRY(kd_json_get_string(t, "positions", what, &positions, err));
    for (size_t i = 0; strcmp(positions, known[i]) != 0; i++) {
        char list[80];
        if (i + 1 < sizeof known / sizeof known[0])
            continue;
        name_list(list, sizeof list, known, sizeof known / sizeof known[0]);
        return kd_fail(err, KD_EDAMAGED, "%s: the recipe's \"teacher.positions\" is \"%s\"; known are %s", what, positions, list);
    }
    KD_TRY(kd_json_get_real(t, "layer_norm_eps", what, &eps, err));
    if (!(eps > 0) || eps > 1)
        return kd_fail(err, KD_EDAMAGED, "%s: the recipe's \"teacher.layer_norm_eps\" is %g, outside 0..1", what, eps);
    KD_TRY(want_colours(t, "mean", what, 0, err));
    return want_colours(t, "std", what, 1, err);
}

/* *chosen: how many layers the teacher gave; r->layers: how many are stored. */
static kd_status read_layers(kd_recipe *r, int depth, int *chosen, const char *what, kd_err *err)
{
    const json_t *list = json_object_get(r->json, "layers"), *norm = json_object_get(r->json, "layer_norm"), *concat = json_object_get(r->json, "layer_concat");
    size_t n = json_array_size(list);
    if (n == 0 || n > KD_MAX_LAYERS)
        return kd_fail(err, KD_EDAMAGED, "%s: the recipe's \"layers\" isn't a list of 1 to %d numbers", what, KD_MAX_LAYERS);
    for (size_t i = 0; i < n; i++) {
        const json_t *x = json_array_get(list, i);
        json_int_t v = json_integer_value(x);
        if (!json_is_integer(x) || v < 1 || v > depth || (i > 0 && v <= r->layer[i - 1]))
            return kd_fail(err, KD_EDAMAGED, "%s: the recipe's \"layers\" aren't ascending numbers from 1 to the teacher's depth of %d", what, depth);
        r->layer[i] = (uint16_t)v;
    }
    if (!json_is_boolean(norm) || !json_is_boolean(concat))
        return kd_fail(err, KD_EDAMAGED, "%s: the recipe has no boolean \"%s\"", what, json_is_boolean(norm) ? "layer_concat" : "layer_norm");
    *chosen = (int)n;
    r->concat = json_is_true(concat);
    r->layers = r->concat ? 1 : (int)n;
    return KD_OK;
}

static kd_status read_features(kd_recipe *r, const char *what, kd_err *err)
{
    const json_t *list = json_object_get(r->json, "features");
    for (size_t i = 0; i < json_array_size(list); i++) {
        const char *s = json_string_value(json_array_get(list, i));
        int f = 0;
        while (f < KD_OUTPUTS && (!s || strcmp(s, kd_feature_name((kd_feature)f)) != 0))
            f++;
        if (f == KD_OUTPUTS || r->features >> f != 0)
            return kd_fail(err, KD_EDAMAGED, "%s: the recipe's \"features\" hold \"%s\", unknown, twice or out of order; known are cls, patch, registers, mean, in this order", what,
                           s ? s : "?");
        r->features |= 1u << f;
    }
    if (r->features == 0)
        return kd_fail(err, KD_EDAMAGED, "%s: the recipe's \"features\" are missing or empty", what);
    return KD_OK;
}

static kd_status read_target(kd_recipe *r, const json_t *text, const char *what, kd_err *err)
{
    kd_target *t = &r->target[r->targets];
    char canonical[KD_TARGET_TEXT];
    const char *s = json_string_value(text);
    if (!s || kd_target_parse(t, s, "", NULL) != KD_OK || strcmp(kd_target_text(t, canonical), s) != 0)
        return kd_fail(err, KD_EDAMAGED, "%s: the recipe's \"patch_targets\" hold \"%s\"; this program knows full, pool:K and adjoint:K; a newer kdcache may have written it", what, s ? s : "?");
    if (t->h > r->grid_h || t->w > r->grid_w)
        return kd_fail(err, KD_EDAMAGED, "%s: the recipe's patch target %s is larger than its grid of %d x %d", what, s, r->grid_h, r->grid_w);
    for (int i = 0; i < r->targets; i++) {
        if (kd_target_equal(&r->target[i], t))
            return kd_fail(err, KD_EDAMAGED, "%s: the recipe's \"patch_targets\" hold \"%s\" twice", what, s);
    }
    r->features |= 1u << kd_patch_feature(r->targets++);
    return KD_OK;
}

/* After the grid. */
static kd_status read_targets(kd_recipe *r, const char *what, kd_err *err)
{
    const json_t *list = json_object_get(r->json, "patch_targets");
    int patches = kd_recipe_has(r, KD_FEATURE_PATCH);
    if (!json_is_array(list) || json_array_size(list) > KD_MAX_TARGETS || (json_array_size(list) > 0) != patches)
        return kd_fail(err, KD_EDAMAGED, "%s: the recipe's \"patch_targets\" aren't a list of %s", what, patches ? "1 to 4 targets" : "no targets, although it stores no patches");
    for (size_t i = 0; i < json_array_size(list); i++)
        KD_TRY(read_target(r, json_array_get(list, i), what, err));
    return KD_OK;
}

static kd_status read_dtype(kd_dtype *dtype, const json_t *object, const char *what, kd_err *err)
{
    static const kd_dtype known[] = {KD_F16, KD_BF16, KD_I8};
    const char *s;
    KD_TRY(kd_json_get_string(object, "dtype", what, &s, err));
    for (int i = 0; i < 3; i++) {
        if (strcmp(s, kd_dtype_name(known[i])) == 0) {
            *dtype = known[i];
            return KD_OK;
        }
    }
    return kd_fail(err, KD_EDAMAGED, "%s: the recipe's element type is \"%s\"; this program knows f16, bf16 and i8; a newer kdcache may have written it", what, s);
}

/* What the numbers were stored as before they were stored as they are: only in caches that were derived from others. */
static kd_status read_source(const kd_recipe *r, const char *what, kd_err *err)
{
    const json_t *source = json_object_get(r->json, "source");
    const char *text;
    kd_target target;
    kd_dtype dtype;
    if (!source)
        return KD_OK;
    KD_TRY(read_dtype(&dtype, source, what, err));
    KD_TRY(kd_json_get_string(source, "patch_target", what, &text, err));
    if (kd_target_parse(&target, text, "", NULL) != KD_OK)
        return kd_fail(err, KD_EDAMAGED, "%s: the recipe's \"source.patch_target\" is \"%s\"; this program knows full, pool:K and adjoint:K", what, text);
    return KD_OK;
}

/* Of the stored records, which must be what this teacher gives. */
static kd_status read_shape(kd_recipe *r, const teacher_facts *facts, int chosen, const char *what, kd_err *err)
{
    int joined = r->concat ? chosen : 1;
    KD_TRY(get_pair(r->json, "grid", what, 1024, &r->grid_h, &r->grid_w, err));
    KD_TRY(get_ranged(r->json, "registers", what, 0, 1 << 10, &r->registers, err));
    if (r->registers != facts->registers || (kd_recipe_has(r, KD_FEATURE_REGISTERS) && r->registers == 0))
        return kd_fail(err, KD_EDAMAGED, "%s: the recipe's \"registers\" is %d, its teacher has %d%s", what, r->registers, facts->registers,
                       r->registers ? "" : ", and the features of registers are asked for");
    KD_TRY(get_ranged(r->json, "width", what, 1, 1 << 16, &r->width, err));
    if (r->width != facts->width * joined)
        return kd_fail(err, KD_EDAMAGED, "%s: the recipe's \"width\" is %d, not that of %d of the teacher's layers of width %d", what, r->width, joined, facts->width);
    return KD_OK;
}

static kd_status read_exif(kd_recipe *r, const char *what, kd_err *err)
{
    const char *s;
    KD_TRY(kd_json_get_string(r->json, "exif", what, &s, err));
    r->exif_apply = strcmp(s, "apply") == 0;
    if (!r->exif_apply && strcmp(s, "ignore") != 0)
        return kd_fail(err, KD_EDAMAGED, "%s: the recipe's \"exif\" is \"%s\"; this program knows \"ignore\" and \"apply\"; a newer kdcache may have written it", what, s);
    return KD_OK;
}

/* The set is part of a recipe exactly where partners are drawn from it. */
static kd_status read_dataset(kd_recipe *r, const json_t *augment, const char *what, kd_err *err)
{
    const json_t *d = json_object_get(r->json, "dataset");
    long long images;
    r->mixed = json_number_value(json_object_get(augment, "mix_p")) > 0;
    if (r->mixed != (d != NULL))
        return kd_fail(err, KD_EDAMAGED, "%s: the recipe's views are %s and it has %s \"dataset\"", what, r->mixed ? "mixed" : "not mixed", d ? "a" : "no");
    if (!r->mixed)
        return KD_OK;
    KD_TRY(want_hex(d, "digest", what, 64, err));
    KD_TRY(kd_json_get_int(d, "images", what, &images, err));
    if (images < 1 || images > UINT32_MAX)
        return kd_fail(err, KD_EDAMAGED, "%s: the recipe's \"dataset.images\" is %lld, outside 1..%u", what, images, UINT32_MAX);
    return KD_OK;
}

/* Values that no cache holds, of a teacher that runs beside its students. */
static kd_status read_live_dtype(kd_dtype *dtype, const json_t *store, const char *what, kd_err *err)
{
    const char *s;
    KD_TRY(kd_json_get_string(store, "dtype", what, &s, err));
    *dtype = KD_F32;
    return strcmp(s, kd_dtype_name(KD_F32)) == 0 ? KD_OK : kd_fail(err, KD_EDAMAGED, "%s: a live teacher's element type is f32, not \"%s\"", what, s);
}

static kd_status read_recipe(kd_recipe *r, int live, const char *what, kd_err *err)
{
    const json_t *store, *augment;
    teacher_facts facts;
    long long seed;
    int version, chosen = 0;
    char *text;
    if (!json_is_object(r->json))
        return kd_fail(err, KD_EDAMAGED, "%s: the recipe isn't a JSON object", what);
    KD_TRY(get_ranged(r->json, "format_version", what, 0, 1 << 16, &version, err));
    if (version != KD_FORMAT_VERSION)
        return kd_fail(err, KD_EDAMAGED, "%s: has format version %d; this program reads version %d: %s", what, version, KD_FORMAT_VERSION,
                       version < KD_FORMAT_VERSION ? "make it again with kd-precompute" : "a newer kdcache wrote it");
    KD_TRY(read_teacher(&facts, r->json, what, err));
    KD_TRY(read_layers(r, facts.depth, &chosen, what, err));
    KD_TRY(get_object(r->json, "augment", what, &augment, err));
    KD_TRY(read_dataset(r, augment, what, err));
    KD_TRY(kd_json_get_int(r->json, "seed", what, &seed, err));
    r->seed = (uint64_t)seed;
    KD_TRY(get_pair(r->json, "image_size", what, KD_VIEW_MAX_SIDE, &r->image_h, &r->image_w, err));
    KD_TRY(want_hex(r->json, "decoder", what, 32, err));
    KD_TRY(read_exif(r, what, err));
    KD_TRY(read_features(r, what, err));
    KD_TRY(read_shape(r, &facts, chosen, what, err));
    KD_TRY(read_targets(r, what, err));
    KD_TRY(get_object(r->json, "store", what, &store, err));
    KD_TRY(live ? read_live_dtype(&r->dtype, store, what, err) : read_dtype(&r->dtype, store, what, err));
    KD_TRY(read_source(r, what, err));
    text = kd_json_canonical(r->json);
    if (!text)
        return kd_fail(err, KD_EFAIL, "%s: out of memory while reading the recipe", what);
    r->sha = kd_sha256_of(text, strlen(text));
    kd_free(text);
    return KD_OK;
}

static kd_status from_json(kd_recipe *r, json_t *json, int live, const char *what, kd_err *err)
{
    kd_status status;
    memset(r, 0, sizeof *r);
    r->json = json;
    if (!json)
        return kd_fail(err, KD_EFAIL, "%s: out of memory while making the recipe", what);
    status = read_recipe(r, live, what, err);
    if (status != KD_OK)
        kd_recipe_free(r);
    return status;
}

kd_status kd_recipe_from_json(kd_recipe *r, json_t *json, const char *what, kd_err *err)
{
    return from_json(r, json, 0, what, err);
}

kd_status kd_recipe_of_live(kd_recipe *r, json_t *json, const char *what, kd_err *err)
{
    return from_json(r, json, 1, what, err);
}

void kd_recipe_free(kd_recipe *r)
{
    json_decref(r->json);
    memset(r, 0, sizeof *r);
}

kd_decode_options kd_recipe_decode_options(const kd_recipe *r, int width, int height)
{
    int64_t pixels = (int64_t)width * height;
    return (kd_decode_options){.exif_apply = r->exif_apply, .max_pixels = pixels > KD_IMAGE_MAX_PIXELS ? pixels : KD_IMAGE_MAX_PIXELS};
}

int kd_recipe_has(const kd_recipe *r, kd_feature f)
{
    return (unsigned)f < KD_FEATURES && (r->features >> f & 1);
}

int kd_recipe_layer_index(const kd_recipe *r, uint16_t layer)
{
    for (int i = 0; i < r->layers; i++) {
        if (r->layer[i] == layer)
            return i;
    }
    return -1;
}

int kd_recipe_records(const kd_recipe *r)
{
    int features = 0;
    for (int f = 0; f < KD_FEATURES; f++)
        features += kd_recipe_has(r, (kd_feature)f);
    return features * r->layers;
}

uint32_t kd_recipe_rows(const kd_recipe *r, kd_feature f)
{
    kd_target t = kd_recipe_target(r, f);
    return kd_feature_target(f) >= 0 ? kd_target_rows(&t, r->grid_h, r->grid_w) : f == KD_FEATURE_REGISTERS ? (uint32_t)r->registers : 1;
}

kd_target kd_recipe_target(const kd_recipe *r, kd_feature f)
{
    int i = kd_feature_target(f);
    return i >= 0 && i < r->targets ? r->target[i] : (kd_target){0};
}

size_t kd_recipe_largest(const kd_recipe *r)
{
    size_t rows = 1;
    for (int f = 0; f < KD_FEATURES; f++) {
        if (kd_recipe_has(r, (kd_feature)f) && kd_recipe_rows(r, (kd_feature)f) > rows)
            rows = kd_recipe_rows(r, (kd_feature)f);
    }
    return rows * (size_t)r->width;
}

kd_record_head kd_recipe_head(const kd_recipe *r, kd_feature f, const kd_hash128 *image, uint32_t view, uint16_t layer)
{
    kd_record_head h = {.feature = f, .key = {*image, view, layer}, .rows = kd_recipe_rows(r, f), .width = (uint32_t)r->width, .dtype = r->dtype,
                        .target = kd_recipe_target(r, f).kind};
    memcpy(h.identity, r->sha.b, sizeof h.identity);
    return h;
}

/* As few digits as give the same number back. */
static void real_text(char *out, size_t cap, double x)
{
    for (int digits = 6; digits <= 17; digits++) {
        snprintf(out, cap, "%.*g", digits, x);
        if (strtod(out, NULL) == x)
            return;
    }
}

/* A value as it stands in a sentence: long texts and lists are cut. */
static void value_text(char *out, size_t cap, const json_t *v)
{
    char *text = v ? kd_json_canonical(v) : NULL;
    size_t n = text ? strlen(text) : 0;
    if (!v)
        snprintf(out, cap, "absent");
    else if (json_is_real(v))
        real_text(out, cap, json_real_value(v));
    else if (n > 24 && json_is_string(v))
        snprintf(out, cap, "%.12s..\"", text);
    else
        snprintf(out, cap, "%.60s%s", text ? text : "?", n > 60 ? ".." : "");
    kd_free(text);
}

/* Finds the first difference in key order. path is "teacher.sha256"; *x and *y the differing values, NULL where one side has none. */
static int first_difference(const json_t *a, const json_t *b, char *path, size_t cap, size_t used, const json_t **x, const json_t **y)
{
    const char *best = NULL, *key;
    json_t *value;
    if (!json_is_object(a) || !json_is_object(b)) {
        *x = a;
        *y = b;
        return !json_equal(a, b);
    }
    json_object_foreach((json_t *)(uintptr_t)a, key, value) {
        if (!json_equal(value, json_object_get(b, key)) && (!best || strcmp(key, best) < 0))
            best = key;
    }
    json_object_foreach((json_t *)(uintptr_t)b, key, value) {
        if (!json_object_get(a, key) && (!best || strcmp(key, best) < 0))
            best = key;
    }
    if (!best)
        return 0;
    if (used < cap)
        used += (size_t)snprintf(path + used, cap - used, "%s%s", used ? "." : "", best);
    a = json_object_get(a, best);
    b = json_object_get(b, best);
    if (json_is_object(a) && json_is_object(b))
        return first_difference(a, b, path, cap, used, x, y);
    *x = a;
    *y = b;
    return 1;
}

static const char *advice(const char *path)
{
    if (strncmp(path, "teacher", 7) == 0)
        return "they come from different teacher weights: use one weight file for all, or keep the caches apart";
    if (strncmp(path, "decoder", 7) == 0)
        return "the picture decoders make different pixels: link the same libjpeg-turbo and libwebp on both machines";
    return "give the same options to both, or keep the caches apart under different names";
}

/* Nobody chose this field, so its name alone would explain nothing. */
static kd_status refuse_other_set(const kd_recipe *a, const char *what_a, const kd_recipe *b, const char *what_b, kd_err *err)
{
    const json_t *x = json_object_get(a->json, "dataset"), *y = json_object_get(b->json, "dataset");
    return kd_fail(err, KD_EMISMATCH, "the images differ: %s was made from %lld (digest of their ids %.8s..), %s has %lld (%.8s..); views are mixed with partners that are drawn from the whole set, so "
                   "images can't be added, removed or changed afterwards: give the same images, or another name to a new cache", what_a, (long long)json_integer_value(json_object_get(x, "images")),
                   json_string_value(json_object_get(x, "digest")), what_b, (long long)json_integer_value(json_object_get(y, "images")), json_string_value(json_object_get(y, "digest")));
}

kd_status kd_recipe_compare(const kd_recipe *a, const char *what_a, const kd_recipe *b, const char *what_b, kd_err *err)
{
    char path[256] = "", va[80], vb[80];
    const json_t *x = NULL, *y = NULL;
    if (memcmp(a->sha.b, b->sha.b, sizeof a->sha.b) == 0)
        return KD_OK;
    if (!first_difference(a->json, b->json, path, sizeof path, 0, &x, &y)) /* same fields, other number types (1 and 1.0) */
        return kd_fail(err, KD_EMISMATCH, "the recipes of %s and %s have different hashes although all fields look equal; one was not written by kdcache", what_a, what_b);
    if (strncmp(path, "dataset", 7) == 0)
        return refuse_other_set(a, what_a, b, what_b, err);
    value_text(va, sizeof va, x);
    value_text(vb, sizeof vb, y);
    return kd_fail(err, KD_EMISMATCH, "the caches don't belong together: %s is %s in %s, %s in %s; %s", path, va, what_a, vb, what_b, advice(path));
}

kd_status kd_recipe_same_teacher(const kd_recipe *a, const char *what_a, const kd_recipe *b, const char *what_b, kd_err *err)
{
    static const char *const field[] = {"teacher", "layers", "layer_norm", "layer_concat", "width"};
    for (size_t i = 0; i < sizeof field / sizeof field[0]; i++) {
        const json_t *x = NULL, *y = NULL;
        char path[256], va[80], vb[80];
        size_t used = (size_t)snprintf(path, sizeof path, "%s", field[i]);
        if (!first_difference(json_object_get(a->json, field[i]), json_object_get(b->json, field[i]), path, sizeof path, used, &x, &y))
            continue;
        value_text(va, sizeof va, x);
        value_text(vb, sizeof vb, y);
        return kd_fail(err, KD_EMISMATCH, "one student can't learn from both caches: %s is %s in %s, %s in %s; give caches of one teacher and equal --layers, or train on them apart", path, va,
                       what_a, vb, what_b);
    }
    return KD_OK;
}

kd_status kd_recipe_check_decoder(const kd_recipe *r, kd_err *err)
{
    kd_hash128 mine;
    char hex[33];
    const char *theirs;
    KD_TRY(kd_json_get_string(r->json, "decoder", "the cache's recipe", &theirs, err));
    KD_TRY(kd_decoder_hash(&mine, err));
    kd_hex(hex, mine.b, sizeof mine.b);
    if (strcmp(hex, theirs) == 0)
        return KD_OK;
    return kd_fail(err, KD_EMISMATCH, "decoder: the cache was made with a decoder whose reference pictures hash to %s, and this program's (%s) gives %s; link the library that the cache's "
                   "provenance names (kd-cache info), or make the cache again", theirs, kd_decoder_version(), hex);
}

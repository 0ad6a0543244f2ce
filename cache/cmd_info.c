/* kd-cache info and list. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "cache/commands.h"
#include "cache/uses.h"
#include "common/base/io.h"
#include "common/base/mem.h"
#include "common/base/threads.h"

static const kd_option info_table[] = {KD_CACHE_FILES, KD_OPTION_FLAG(kd_cache_config, all, "all", "also the whole recipe with its augmentation, the statistics, and each shard with its manifest"),
                                       KD_OPTION_END};
const kd_program kd_cache_info_program = {
    .name = "kd-cache info",
    .summary = "Prints what made a cache, what it holds, how true it is and what it can train.",
    .examples = "  $ kd-cache info photos.kdc\n  $ kd-cache info photos.kdc --all\n  $ kd-cache info shards/ --json\n",
    .epilog = "Exit codes: 0 ok; 10 not found; 12 damaged; 13 the shards don't belong together.\n",
    .options = info_table,
};

static const kd_option list_table[] = {KD_CACHE_FILES, KD_OPTION_END};
const kd_program kd_cache_list_program = {
    .name = "kd-cache list",
    .summary = "Prints a line for each view: image id, view, hash of its pixels, path; with --json also the plan that made it.",
    .examples = "  $ kd-cache list photos.kdc\n  $ kd-cache list photos.kdc --json | jq -c 'select(.view == 0) | .plan'\n",
    .epilog = "Exit codes: 0 ok; 10 not found; 12 damaged.\n",
    .options = list_table,
};

/* ---- info ---- */

/* "name  {compact JSON}" or the bare text of a string. */
static void print_field(const char *name, const json_t *v)
{
    char line[2000], key[200];
    char *text = v && !json_is_string(v) ? json_dumps(v, JSON_COMPACT | JSON_SORT_KEYS | JSON_ENCODE_ANY | JSON_REAL_PRECISION(6)) : NULL;
    kd_text_escape(line, sizeof line, json_is_string(v) ? json_string_value(v) : text ? text : "-");
    printf("  %-14s %s\n", kd_text_escape(key, sizeof key, name), line);
    free(text); /* jansson's own allocation */
}

static void print_object(const char *name, const json_t *v)
{
    const char *key;
    json_t *value;
    if (json_object_size(v) == 0)
        return;
    printf("%s\n", name);
    json_object_foreach((json_t *)(uintptr_t)v, key, value)
        print_field(key, value);
}

static uint64_t content_bytes(const kd_cache *c)
{
    uint64_t bytes = 0;
    for (size_t i = 0; i < kd_cache_shards(c); i++)
        bytes += (uint64_t)json_integer_value(json_object_get(json_object_get(kd_cache_shard_manifest(c, i), "content"), "bytes"));
    return bytes;
}

/* {"cls":{"1":{"std":..,"mean_square_norm":..}}}: by feature and layer. */
static kd_status statistics_json(kd_cache *c, json_t **out, kd_err *err)
{
    const kd_recipe *r = kd_cache_recipe(c);
    *out = json_object();
    for (int f = 0; f < KD_FEATURES; f++) {
        json_t *of = json_object();
        for (int l = 0; l < r->layers && kd_recipe_has(r, (kd_feature)f); l++) {
            const float *mean;
            float deviation;
            double square = 0;
            char layer[16];
            kd_status status = kd_cache_mean(c, (kd_feature)f, r->layer[l], &mean, &deviation, err);
            if (status != KD_OK) {
                json_decref(of);
                json_decref(*out);
                return status;
            }
            for (int i = 0; i < r->width; i++)
                square += (double)mean[i] * (double)mean[i];
            snprintf(layer, sizeof layer, "%u", r->layer[l]);
            json_object_set_new(of, layer, json_pack("{s:f,s:f}", "std", (double)deviation, "mean_square_norm", square));
        }
        if (json_object_size(of) > 0)
            json_object_set(*out, kd_feature_name((kd_feature)f), of);
        json_decref(of);
    }
    return KD_OK;
}

/* ---- for people ---- */

typedef struct shown_fidelity {
    double cosine, relative_l2, worst_token;
} shown_fidelity;

static const char *text_of(const json_t *v, const char *key)
{
    const char *s = json_string_value(json_object_get(v, key));
    return s ? s : "?";
}

static long long int_of(const json_t *v, const char *key)
{
    return json_integer_value(json_object_get(v, key));
}

/* "0.485 0.456 0.406". */
static const char *colours(char out[64], const json_t *list)
{
    snprintf(out, 64, "%.6g %.6g %.6g", json_real_value(json_array_get(list, 0)), json_real_value(json_array_get(list, 1)), json_real_value(json_array_get(list, 2)));
    return out;
}

/* A field of the first shard's provenance that has it; NULL: none has. */
static const json_t *provenance_of(const kd_cache *c, const char *key)
{
    for (size_t i = 0; i < kd_cache_shards(c); i++) {
        const json_t *v = json_object_get(json_object_get(kd_cache_shard_manifest(c, i), "provenance"), key);
        if (v)
            return v;
    }
    return NULL;
}

/* The same of a text, as a terminal may show it; NULL: there is none. What stands in a provenance is for nobody but people, so it may be anything. */
static const char *said(const kd_cache *c, const char *key, char *buf, size_t cap)
{
    const char *text = json_string_value(provenance_of(c, key));
    return text ? kd_text_escape(buf, cap, text) : NULL;
}

static void print_teacher(const kd_cache *c)
{
    const json_t *t = json_object_get(kd_cache_recipe(c)->json, "teacher");
    char mean[64], std[64], family[200], prefix[600], name[200];
    const char *known = said(c, "teacher_name", name, sizeof name);
    printf("teacher  %s: width %lld, depth %lld, heads %lld, patch %lld, registers %lld%s%s\n", kd_text_escape(family, sizeof family, text_of(t, "family")), int_of(t, "width"),
           int_of(t, "depth"), int_of(t, "heads"), int_of(t, "patch"), int_of(t, "registers"), known ? ", known as " : "",
           known ? known : "");
    printf("  %-14s %s\n", "weights sha256", text_of(t, "sha256"));
    if (text_of(t, "tensors")[0])
        printf("  %-14s under \"%s\"\n", "tensors", kd_text_escape(prefix, sizeof prefix, text_of(t, "tensors")));
    printf("  %-14s mean %s, std %s; positions %s; layer norm eps %g\n", "input", colours(mean, json_object_get(t, "mean")), colours(std, json_object_get(t, "std")), text_of(t, "positions"),
           json_real_value(json_object_get(t, "layer_norm_eps")));
}

/* Layers, views and who ran it. */
static void print_making(const kd_cache *c)
{
    const kd_recipe *r = kd_cache_recipe(c);
    const json_t *chosen = json_object_get(r->json, "layers");
    char size[KD_SIZE_TEXT], text[300], augment[200];
    printf("  %-14s", json_array_size(chosen) == 1 ? "layer" : "layers");
    for (size_t i = 0; i < json_array_size(chosen); i++)
        printf("%s %lld", i ? "," : "", (long long)json_integer_value(json_array_get(chosen, i)));
    printf(" (1 = last), %s the final norm", json_is_true(json_object_get(r->json, "layer_norm")) ? "each through" : "without");
    if (r->concat)
        printf(", joined as layer %u, earlier block first", r->layer[0]);
    printf("\n  %-14s %s, %s px, seed %llu, exif %s%s\n", "views", kd_text_escape(augment, sizeof augment, text_of(json_object_get(r->json, "augment"), "name")),
           kd_image_size_text(r->image_h, r->image_w, size), (unsigned long long)r->seed, r->exif_apply ? "applied" : "ignored", r->mixed ? ", mixed with those of other images" : "");
    printf("  %-14s %s", "made", kd_text_escape(text, sizeof text, text_of(kd_cache_shard_manifest(c, 0), "created")));
    if (said(c, "program", text, sizeof text))
        printf(" by kd-precompute %s", text);
    if (said(c, "precision", text, sizeof text))
        printf(" in %s", text);
    if (said(c, "backend", text, sizeof text))
        printf(" on %s", text);
    printf("\n");
}

static void print_dataset(const kd_cache *c)
{
    static const char *const key[] = {"license", "contact", "note"};
    const json_t *d = provenance_of(c, "dataset");
    const char *name = json_string_value(json_object_get(d, "name"));
    char text[1000], size[32];
    printf("images   %s", name ? kd_text_escape(text, sizeof text, name) : "(the set has no name)");
    if (json_object_get(d, "files"))
        printf(": %lld files, %s", int_of(d, "files"), kd_io_size_text((uint64_t)int_of(d, "bytes"), size, sizeof size));
    printf("\n");
    for (int i = 0; i < 3; i++) {
        const char *v = said(c, key[i], text, sizeof text);
        printf("  %-14s %s\n", key[i], v ? v : "(not said)");
    }
}

/* Of all layers and shards together the least cosine and the largest errors of a feature. */
static shown_fidelity worst_fidelity(const kd_cache *c, kd_feature f)
{
    shown_fidelity w = {.cosine = 1};
    const char *layer;
    json_t *v;
    for (size_t i = 0; i < kd_cache_shards(c); i++) {
        json_t *layers = json_object_get(json_object_get(kd_cache_shard_manifest(c, i), "fidelity"), kd_feature_name(f));
        json_object_foreach(layers, layer, v)
        {
            w.cosine = fmin(w.cosine, json_number_value(json_object_get(v, "cosine")));
            w.relative_l2 = fmax(w.relative_l2, json_number_value(json_object_get(v, "relative_l2")));
            w.worst_token = fmax(w.worst_token, json_number_value(json_object_get(v, "worst_token")));
        }
    }
    return w;
}

static void print_stored(const kd_cache *c)
{
    const kd_recipe *r = kd_cache_recipe(c);
    printf("stored   %s; true to the teacher's f32 by cosine, relative L2 error, that of the worst token\n", kd_dtype_name(r->dtype));
    for (kd_feature f = 0; f < KD_FEATURES; f++) {
        char shape[64], target[KD_TARGET_TEXT] = "";
        shown_fidelity w;
        if (!kd_recipe_has(r, f))
            continue;
        if (kd_feature_target(f) >= 0)
            kd_target_text(&r->target[kd_feature_target(f)], target);
        snprintf(shape, sizeof shape, "%s [%u x %d] %s", kd_feature_name(f), kd_recipe_rows(r, f), r->width, target);
        w = worst_fidelity(c, f);
        printf("  %-32s %.7f  %.1e  %.1e\n", shape, w.cosine, w.relative_l2, w.worst_token);
    }
}

/* A line "  NAME   text", broken between words before a screen's edge. */
static void print_wrapped(const char *name, const char *text)
{
    enum { EDGE = 118, INDENT = 21 };
    int column = printf("  %-18s", name);
    while (*text) {
        int length = (int)strcspn(text, " ");
        if (column > INDENT && column + 1 + length > EDGE) {
            printf("\n%*s", INDENT - 1, "");
            column = INDENT - 1;
        }
        column += printf(" %.*s", length, text);
        text += length + (text[length] == ' ');
    }
    printf("\n");
}

static void print_uses(const kd_recipe *r)
{
    kd_use use[1 + KD_MAX_TARGETS];
    int n = kd_recipe_uses(use, r);
    char size[KD_SIZE_TEXT], text[256 + KD_USE_STUDENTS * (KD_USE_TEXT + 2)];
    printf("trains   with images of the same set, by --loss:\n");
    for (int i = 0; i < n; i++) {
        size_t used = (size_t)snprintf(text, sizeof text, "%s: ", use[i].losses);
        for (int k = 0; k < use[i].students; k++)
            used += (size_t)snprintf(text + used, sizeof text - used, "%s%s", k ? ", " : "", use[i].student[k]);
        if (use[i].every)
            snprintf(text + used, sizeof text - used, "every student");
        else if (use[i].students == 0)
            snprintf(text + used, sizeof text - used, "no student of this version has such a map in views of %s px", kd_image_size_text(r->image_h, r->image_w, size));
        print_wrapped(use[i].stored, text);
    }
    if (n == 0)
        printf("  nothing: kd-train learns cls and patches\n");
}

static void print_commands(const kd_cache *c, const kd_cache_config *config)
{
    const kd_recipe *r = kd_cache_recipe(c);
    char path[1000], arguments[200];
    kd_text_escape(path, sizeof path, config->files.item[0]);
    printf("use      $ kd-cache check %s --images IMAGES\n", path);
    if (*kd_recipe_train_arguments(r, arguments, sizeof arguments))
        printf("         $ kd-train --cache %s --images IMAGES %s --out RUN\n", path, arguments);
    if (r->features != 1u << KD_FEATURE_CLS && kd_recipe_has(r, KD_FEATURE_CLS))
        printf("         $ kd-cache extract %s --features cls --out cls.kdc\n", path);
    printf("         $ kd-cache info %s --all\n", path);
}

static void print_overview(const kd_cache *c, const kd_cache_config *config)
{
    const kd_recipe *r = kd_cache_recipe(c);
    uint64_t bytes = content_bytes(c), views = kd_cache_view_total(c);
    char size[32], each[32], hex[65];
    kd_hex(hex, r->sha.b, 32);
    printf("identity %s\n", hex);
    printf("content  %zu images, %llu views, %s, %s per view, %zu %s\n", kd_cache_images(c), (unsigned long long)views, kd_io_size_text(bytes, size, sizeof size),
           kd_io_size_text(views ? bytes / views : 0, each, sizeof each), kd_cache_shards(c), kd_cache_shards(c) == 1 ? "shard" : "shards");
    if (kd_cache_shards(c) == 1)
        printf("  %-14s %s\n", "digest", text_of(json_object_get(kd_cache_shard_manifest(c, 0), "content"), "digest"));
    print_dataset(c);
    print_teacher(c);
    print_making(c);
    print_stored(c);
    print_uses(r);
    print_commands(c, config);
}

/* ---- --all ---- */

/* What of the recipe the lines above don't tell. */
static void print_rest(const kd_recipe *r)
{
    static const char *const told[] = {"teacher", "layers", "layer_norm", "layer_concat", "features", "registers", "width"};
    json_t *rest = json_copy(r->json);
    for (size_t i = 0; rest && i < sizeof told / sizeof told[0]; i++)
        json_object_del(rest, told[i]);
    print_object("recipe", rest);
    json_decref(rest);
}

static void print_details(const kd_cache *c, const json_t *statistics)
{
    print_rest(kd_cache_recipe(c));
    print_object("statistics, by layer", statistics);
    for (size_t i = 0; i < kd_cache_shards(c); i++) {
        const json_t *m = kd_cache_shard_manifest(c, i);
        char path[1000];
        printf("shard    %s\n", kd_text_escape(path, sizeof path, kd_cache_shard_path(c, i)));
        print_field("created", json_object_get(m, "created"));
        print_field("sha256", json_object_get(m, "sha256"));
        print_field("content", json_object_get(m, "content"));
        print_field("fidelity", json_object_get(m, "fidelity"));
        print_field("provenance", json_object_get(m, "provenance"));
    }
}

static json_t *uses_json(const kd_recipe *r)
{
    kd_use use[1 + KD_MAX_TARGETS];
    json_t *list = json_array();
    int n = kd_recipe_uses(use, r);
    for (int i = 0; i < n; i++) {
        json_t *students = json_array();
        for (int k = 0; k < use[i].students; k++)
            json_array_append_new(students, json_string(use[i].student[k]));
        json_array_append_new(list, json_pack("{s:s,s:s,s:b,s:o}", "stored", use[i].stored, "losses", use[i].losses, "every_student", use[i].every, "students", students));
    }
    return list;
}

static void print_json(const kd_cache *c, const json_t *statistics)
{
    json_t *shards = json_array(), *line;
    uint64_t bytes = content_bytes(c), views = kd_cache_view_total(c);
    char hex[65];
    for (size_t i = 0; i < kd_cache_shards(c); i++) {
        const char *path = kd_cache_shard_path(c, i);
        json_array_append_new(shards, json_pack("{s:o,s:O}", "path", kd_json_bytes(path, strlen(path)), "manifest", kd_cache_shard_manifest(c, i)));
    }
    kd_hex(hex, kd_cache_recipe(c)->sha.b, 32);
    line = json_pack("{s:s,s:s,s:O,s:I,s:I,s:I,s:f,s:O,s:o}", "type", "result", "identity", hex, "recipe", kd_cache_recipe(c)->json, "images", (json_int_t)kd_cache_images(c), "views",
                     (json_int_t)views, "bytes", (json_int_t)bytes, "bytes_per_view", views ? (double)bytes / (double)views : 0.0, "statistics", statistics, "shards", shards);
    json_object_set_new(line, "uses", uses_json(kd_cache_recipe(c)));
    kd_json_line(line);
    json_decref(line);
}

/* Statistics of several shards are computed: only where they are printed. */
static kd_status print_with_statistics(kd_cache *c, const kd_cache_config *config, kd_err *err)
{
    json_t *statistics;
    KD_TRY(statistics_json(c, &statistics, err));
    if (config->json)
        print_json(c, statistics);
    else
        print_details(c, statistics);
    json_decref(statistics);
    return KD_OK;
}

kd_status kd_cache_info_run(const kd_cache_config *config, kd_err *err)
{
    kd_cache *c;
    kd_status status = KD_OK;
    KD_TRY(kd_cache_open_files(&c, config, err));
    if (!config->json)
        print_overview(c, config);
    if (config->json || config->all)
        status = print_with_statistics(c, config, err);
    kd_cache_close(c);
    return status;
}

/* ---- list ---- */

static kd_status list_line(const kd_cache_config *config, const kd_image_entry *e, const kd_view_entry *v, kd_err *err)
{
    char id[33], hash[33], path[4 * 4096];
    json_t *line;
    kd_hex(id, e->image.b, 16);
    kd_hex(hash, v->view_hash.b, 16);
    if (!config->json) {
        printf("%s %4u %s %s\n", id, v->view, hash, kd_text_escape(path, sizeof path, e->rel));
        return KD_OK;
    }
    line = json_pack("{s:s,s:s,s:o,s:I,s:s,s:o}", "type", "result", "id", id, "path", kd_json_bytes(e->rel, strlen(e->rel)), "view", (json_int_t)v->view, "hash", hash, "plan",
                     kd_plan_json(&v->plan, &v->partner));
    if (!line)
        return kd_fail(err, KD_EFAIL, "out of memory while listing views");
    kd_json_line(line);
    json_decref(line);
    return KD_OK;
}

kd_status kd_cache_list_run(const kd_cache_config *config, kd_err *err)
{
    kd_cache *c;
    kd_reader *r = NULL;
    kd_status status;
    KD_TRY(kd_cache_open_files(&c, config, err));
    status = kd_reader_create(&r, c, err);
    for (size_t i = 0; i < kd_cache_images(c) && status == KD_OK; i++) {
        const kd_image_entry *e = kd_cache_image(c, i);
        for (uint32_t n = 0; n < e->views && status == KD_OK; n++) {
            kd_view_entry v;
            status = kd_reader_view(r, &e->image, kd_image_view(e, n), &v, err);
            if (status == KD_OK)
                status = list_line(config, e, &v, err);
        }
        if (status == KD_OK && kd_stop_requested() != KD_OK)
            status = kd_fail(err, kd_stop_requested(), "interrupted after %zu of %zu images", i + 1, kd_cache_images(c));
    }
    if (status == KD_OK && (fflush(stdout) != 0 || ferror(stdout)))
        status = kd_fail_errno(err, KD_EFAIL, "standard output can't be written");
    kd_reader_destroy(r);
    kd_cache_close(c);
    return status;
}

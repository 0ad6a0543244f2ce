/* kd-cache info and list. */
#include <stdlib.h>
#include <string.h>

#include "cache/commands.h"
#include "common/base/io.h"
#include "common/base/mem.h"
#include "common/base/threads.h"

static const kd_option info_table[] = {KD_CACHE_FILES, KD_OPTION_END};
const kd_program kd_cache_info_program = {
    .name = "kd-cache info",
    .summary = "Prints what made a cache and what it holds.",
    .examples = "  $ kd-cache info photos.kdc\n  $ kd-cache info shards/ --json\n",
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
    char line[2000];
    char *text = v && !json_is_string(v) ? json_dumps(v, JSON_COMPACT | JSON_SORT_KEYS | JSON_ENCODE_ANY | JSON_REAL_PRECISION(6)) : NULL;
    kd_text_escape(line, sizeof line, json_is_string(v) ? json_string_value(v) : text ? text : "-");
    printf("  %-14s %s\n", name, line);
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

static json_t *statistics_json(const kd_cache *c)
{
    json_t *all = json_object();
    for (int f = 0; f < KD_FEATURES; f++) {
        float deviation;
        const float *mean = kd_cache_mean(c, (kd_feature)f, &deviation);
        double square = 0;
        for (int i = 0; mean && i < kd_cache_recipe(c)->width; i++)
            square += (double)mean[i] * (double)mean[i];
        if (mean)
            json_object_set_new(all, kd_feature_name((kd_feature)f), json_pack("{s:f,s:f}", "std", (double)deviation, "mean_square_norm", square));
    }
    return all;
}

static void print_text(const kd_cache *c, const json_t *statistics)
{
    uint64_t bytes = content_bytes(c), views = kd_cache_view_total(c);
    char size[32], each[32], hex[65];
    kd_hex(hex, kd_cache_recipe(c)->sha.b, 32);
    printf("identity %s\n", hex);
    printf("content  %zu images, %llu views, %s, %s per view, %zu %s\n", kd_cache_images(c), (unsigned long long)views, kd_io_size_text(bytes, size, sizeof size),
           kd_io_size_text(views ? bytes / views : 0, each, sizeof each), kd_cache_shards(c), kd_cache_shards(c) == 1 ? "shard" : "shards");
    print_object("recipe", kd_cache_recipe(c)->json);
    print_object("statistics", statistics);
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
    kd_json_line(line);
    json_decref(line);
}

kd_status kd_cache_info_run(const kd_cache_config *config, kd_err *err)
{
    kd_cache *c;
    json_t *statistics;
    KD_TRY(kd_cache_open_files(&c, config, err));
    statistics = statistics_json(c);
    if (config->json)
        print_json(c, statistics);
    else
        print_text(c, statistics);
    json_decref(statistics);
    kd_cache_close(c);
    return KD_OK;
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
                     kd_plan_json(&v->plan));
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
            status = kd_reader_view(r, &e->image, n, &v, err);
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

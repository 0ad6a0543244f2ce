/* kd-cache export. */
#include <string.h>

#include "cache/commands.h"
#include "cache/export.h"
#include "common/tensor/feature_list.h"

static const kd_option table[] = {
    KD_CACHE_FILES,
    KD_OPTION_STRING(kd_cache_config, webdataset, "webdataset", "OUT-%06d.tar|DIR/", NULL, 0,
                     "tars for the webdataset library: of each view ID-VIEW.cls.npy, .patch.npy .. and .json (id, path, view, hash of the pixels, plan)"),
    KD_OPTION_STRING(kd_cache_config, safetensors, "safetensors", "OUT.safetensors", NULL, 0, "one file: id [V,16], view [V], cls [V,L,D], patch [V,L,N,D] .., square [V,L] of adjoint targets"),
    KD_OPTION_STRING(kd_cache_config, features, "features", "LIST", NULL, 0, "of what is stored: any of cls, patch (all its targets), registers and mean; everything without this option"),
    KD_OPTION_STRING(kd_cache_config, views, "views", "N-M,...", NULL, 0, "views, such as 0-3,6; all without this option"),
    KD_OPTION_STRING(kd_cache_config, layers, "layers", "N,N,...", NULL, 0, "stored layers, 1 = last; all without this option"),
    KD_OPTION_SIZE(kd_cache_config, shard_size, "shard-size", "1GB", "a tar ends behind the view that reaches this size"),
    KD_OPTION_END,
};
const kd_program kd_cache_export_program = {
    .name = "kd-cache export",
    .summary = "Writes features as WebDataset tars or as one .safetensors file: f16 from f16 caches, else f32.",
    .examples = "  $ kd-cache export photos.kdc --webdataset features-%06d.tar\n  $ kd-cache export photos.kdc --safetensors cls.safetensors --features cls --views 0\n",
    .epilog = "Exit codes: 0 ok; 1 failure; 2 usage; 10 no such cache, feature or layer; 12 damaged; 14 disk full.\n",
    .options = table,
};

static kd_status choose_features(kd_export *x, const char *text, kd_err *err)
{
    const kd_recipe *r = kd_cache_recipe(x->cache);
    unsigned wanted = 0;
    x->features = r->features;
    if (!text)
        return KD_OK;
    KD_TRY(kd_features_parse(text, &wanted, err));
    for (kd_feature f = 0; f < KD_OUTPUTS; f++) {
        if (wanted & 1u << f && !kd_recipe_has(r, f))
            return kd_fail(err, KD_ENOTFOUND, "--features %s: the cache has no %s; kd-cache info lists what it has", text, kd_feature_name(f));
    }
    for (kd_feature f = KD_OUTPUTS; f < KD_FEATURES; f++) {
        if (wanted & 1u << KD_FEATURE_PATCH && kd_recipe_has(r, f))
            wanted |= 1u << f;
    }
    x->features = wanted;
    return KD_OK;
}

static kd_status choose_layers(kd_export *x, const char *text, kd_err *err)
{
    const kd_recipe *r = kd_cache_recipe(x->cache);
    x->layers = r->layers;
    memcpy(x->layer, r->layer, sizeof x->layer);
    if (!text)
        return KD_OK;
    KD_TRY(kd_layers_parse(text, (int)json_integer_value(json_object_get(json_object_get(r->json, "teacher"), "depth")), x->layer, &x->layers, err));
    for (int i = 0; i < x->layers; i++) {
        if (kd_recipe_layer_index(r, x->layer[i]) < 0)
            return kd_fail(err, KD_ENOTFOUND, "--layers %s: the cache has no layer %u; kd-cache info lists those that it has", text, x->layer[i]);
    }
    return KD_OK;
}

static void report(const kd_cache_config *config, const kd_export *x, size_t files)
{
    const char *out = config->webdataset ? config->webdataset : config->safetensors;
    unsigned long long views = kd_export_views(x);
    json_t *line;
    if (!config->json) {
        printf("%llu views in %zu file%s: %s\n", views, files, files == 1 ? "" : "s", out);
        return;
    }
    line = json_pack("{s:s,s:I,s:I,s:o}", "type", "result", "views", (json_int_t)views, "files", (json_int_t)files, "out", kd_json_bytes(out, strlen(out)));
    kd_json_line(line);
    json_decref(line);
}

static kd_status export_all(kd_export *x, const kd_cache_config *config, kd_err *err)
{
    size_t files = 1;
    KD_TRY(choose_features(x, config->features, err));
    KD_TRY(choose_layers(x, config->layers, err));
    if (kd_export_views(x) == 0)
        return kd_fail(err, KD_ENOTFOUND, "--views %s: no image has such a view; kd-cache list shows those that there are", config->views ? config->views : "");
    if (config->webdataset)
        KD_TRY(kd_export_webdataset(x, config->webdataset, config->shard_size, &files, err));
    else
        KD_TRY(kd_export_safetensors(x, config->safetensors, err));
    report(config, x, files);
    return KD_OK;
}

kd_status kd_cache_export_run(const kd_cache_config *config, kd_err *err)
{
    kd_view_ranges views = {.count = 0};
    kd_export x = {.views = &views};
    kd_status status;
    if (!config->webdataset == !config->safetensors || (config->webdataset && !*config->webdataset))
        return kd_fail(err, KD_EUSAGE, "give --webdataset OUT-%%06d.tar or --safetensors OUT.safetensors: one of them");
    if (config->views)
        KD_TRY(kd_view_ranges_parse(&views, config->views, "--views", err));
    KD_TRY(kd_cache_open_files(&x.cache, config, err));
    status = export_all(&x, config, err);
    kd_cache_close(x.cache);
    return status;
}

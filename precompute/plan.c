#include "precompute/plan.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "cache/record.h"
#include "cache/shard_writer.h"
#include "common/base/io.h"
#include "common/image/mix.h"

enum {
    PAGE = 4096,          /* LMDB page; values above half a page take whole overflow pages with a 16-byte header */
    SMALL_VIEW_BYTES = 700, /* plan record, keys and B-tree share of one view */
    IMAGE_BYTES = 256       /* image record with its path, amortised */
};

static uint64_t stored_bytes(uint64_t value) {
    return value < PAGE / 2 ? value + 64 : (value + 16 + PAGE - 1) / PAGE * PAGE;
}

unsigned kd_plan_features(const kd_run_plan *p) {
    unsigned features = p->choice.features;
    for (int i = 0; i < p->targets && features & 1u << KD_FEATURE_PATCH; i++)
        features |= 1u << kd_patch_feature(i);
    return features;
}

uint32_t kd_plan_rows(const kd_run_plan *p, kd_feature f) {
    int target = kd_feature_target(f);
    if (target >= 0)
        return kd_target_rows(&p->target[target], (int)p->grid_h, (int)p->grid_w);
    return f == KD_FEATURE_REGISTERS ? p->registers : 1;
}

uint64_t kd_plan_view_bytes(const kd_run_plan *p) {
    uint64_t records = 0;
    for (kd_feature f = 0; f < KD_FEATURES; f++)
        if (kd_plan_features(p) & 1u << f)
            records += stored_bytes(KD_RECORD_HEADER_BYTES + 32 + kd_stored_bytes(p->dtype, kd_plan_rows(p, f), p->width));
    return SMALL_VIEW_BYTES + IMAGE_BYTES + records * (uint64_t)kd_selection_layers(&p->choice);
}

static void size_plan(kd_run_plan *p) {
    p->bytes_per_view = kd_plan_view_bytes(p);
    p->cache_bytes = p->bytes_per_view * p->views * p->images + 64 * PAGE;
    p->peak_bytes = p->cache_bytes + (p->cache_bytes < p->beside_bytes ? p->cache_bytes : p->beside_bytes);
}

static int can_drop_patches(const kd_run_plan *p) {
    unsigned patch = 1u << KD_FEATURE_PATCH;
    return (p->choice.features & patch) != 0 && p->choice.features != patch;
}

/* Fewer views first, since a smaller cache of all features is worth more than many views without patches. */
static kd_status fit_budget(kd_run_plan *p, uint64_t budget, kd_err *err) {
    uint32_t wanted = p->views;
    size_plan(p);
    while (p->cache_bytes > budget) {
        if (p->views > 1) {
            p->views--;
        } else if (can_drop_patches(p)) {
            p->choice.features &= ~(1u << KD_FEATURE_PATCH);
            p->views = wanted;
        } else {
            char need[32], have[32];
            return kd_fail(err, KD_ENOSPACE, "--budget %s: even one view per image needs %s for %" PRIu64 " images; raise it to that or pass fewer images",
                           kd_io_size_text(budget, have, sizeof have), kd_io_size_text(p->cache_bytes, need, sizeof need), p->images);
        }
        size_plan(p);
    }
    return KD_OK;
}

kd_status kd_run_plan_make(kd_run_plan *plan, const kd_precompute_config *config, const kd_policy *policy, const kd_model_info *model, uint64_t images, kd_err *err) {
    *plan = (kd_run_plan){.images = images, .views = (uint32_t)config->views, .registers = (uint32_t)model->vit.registers};
    KD_TRY(kd_selection_parse(&plan->choice, config, model, err));
    plan->dtype = strcmp(config->store, "i8") == 0 ? KD_I8 : strcmp(config->store, "bf16") == 0 ? KD_BF16 : KD_F16;
    plan->grid_h = (uint32_t)(policy->image_h / model->multiple);
    plan->grid_w = (uint32_t)(policy->image_w / model->multiple);
    plan->width = kd_selection_width(&plan->choice, model);
    if (plan->choice.features & 1u << KD_FEATURE_PATCH)
        KD_TRY(kd_targets_parse(plan->target, &plan->targets, config->patch_target, (int)plan->grid_h, (int)plan->grid_w, err));
    plan->beside_bytes = config->stage != NULL ? 0 : kd_shard_is_folder(config->cache) && config->shard_size > 0 ? 2 * config->shard_size : UINT64_MAX;
    size_plan(plan);
    if (config->budget > 0)
        KD_TRY(fit_budget(plan, config->budget, err));
    return kd_io_free_bytes(config->cache, &plan->free_bytes, err);
}

kd_status kd_run_plan_guard(const kd_run_plan *plan, const kd_precompute_config *config, uint64_t already, kd_err *err) {
    uint64_t need = plan->peak_bytes > already ? plan->peak_bytes - already : 0;
    uint64_t usable = plan->free_bytes / 5 * 4;
    if (need <= usable)
        return KD_OK;
    char need_text[32], free_text[32], fit_text[32], features[64];
    uint64_t fits = (usable + already) / 2; /* or more, where less than as much again is needed beside it */
    if (plan->beside_bytes < fits)
        fits = usable + already - plan->beside_bytes;
    kd_io_size_text(need, need_text, sizeof need_text);
    kd_io_size_text(plan->free_bytes, free_text, sizeof free_text);
    kd_run_plan smaller = *plan;
    if (fit_budget(&smaller, fits, NULL) != KD_OK)
        return kd_fail(err, KD_ENOSPACE, "%s: writing and sealing needs about %s and %s are free (at most 80%% is used); put --cache on a larger disk",
                       config->cache, need_text, free_text);
    snprintf(fit_text, sizeof fit_text, "%" PRIu64 "MB", fits / 1000000);
    return kd_fail(err, KD_ENOSPACE,
                   "%s: writing and sealing needs about %s and %s are free (at most 80%% is used); --views %" PRIu32 " --features %s would fit, "
                   "and so does --budget %s",
                   config->cache, need_text, free_text, smaller.views, kd_features_text(smaller.choice.features, features, sizeof features), fit_text);
}

static json_t *feature_list(const kd_run_plan *plan) {
    json_t *list = json_array();
    for (kd_feature f = 0; f < KD_OUTPUTS; f++)
        if (plan->choice.features & 1u << f)
            json_array_append_new(list, json_string(kd_feature_name(f)));
    return list;
}

static json_t *layer_list(const kd_run_plan *plan) {
    json_t *list = json_array();
    for (int i = 0; i < plan->choice.layers; i++)
        json_array_append_new(list, json_integer(plan->choice.layer[i]));
    return list;
}

static json_t *target_list(const kd_run_plan *plan) {
    json_t *list = json_array();
    char text[KD_TARGET_TEXT];
    for (int i = 0; i < plan->targets && plan->choice.features & 1u << KD_FEATURE_PATCH; i++)
        json_array_append_new(list, json_string(kd_target_text(&plan->target[i], text)));
    return list;
}

/* NULL when memory is out. */
static json_t *teacher_json(const kd_model_info *model, const char *weights_hex) {
    const kd_vit_spec *v = &model->vit;
    const char *positions = v->periods > 0 ? "rope" : kd_pos_profile_name(v->positions);
    const float *m = model->mean, *s = model->std;
    return json_pack("{s:s, s:s, s:s, s:i, s:i, s:i, s:i, s:i, s:s, s:f, s:[f,f,f], s:[f,f,f]}", "sha256", weights_hex, "tensors", v->prefix, "family", kd_vit_family_name(v->family),
                     "width", v->width, "depth", v->depth, "heads", v->heads, "patch", v->patch, "registers", v->registers, "positions", positions, "layer_norm_eps", v->ln_eps,
                     "mean", (double)m[0], (double)m[1], (double)m[2], "std", (double)s[0], (double)s[1], (double)s[2]);
}

static json_t *dataset_json(const kd_hash128 *ids, size_t n) {
    kd_sha256 digest = kd_mix_digest(ids, n);
    char hex[65];
    kd_hex(hex, digest.b, sizeof digest.b);
    return json_pack("{s:s, s:I}", "digest", hex, "images", (json_int_t)n);
}

kd_status kd_run_recipe(kd_recipe *recipe, const kd_precompute_config *config, const kd_run_plan *plan, const kd_policy *policy,
                        const kd_model_info *model, const kd_sha256 *weights, const kd_hash128 *ids, size_t n, kd_err *err) {
    kd_hash128 decoder;
    KD_TRY(kd_decoder_hash(&decoder, err));
    char weights_hex[65], decoder_hex[33];
    kd_hex(weights_hex, weights->b, sizeof weights->b);
    kd_hex(decoder_hex, decoder.b, sizeof decoder.b);
    json_t *json = json_pack("{s:i, s:o, s:o, s:b, s:b, s:o, s:I, s:[i,i], s:s, s:s, s:o, s:[i,i], s:i, s:i, s:o, s:{s:s}}",
                             "format_version", KD_FORMAT_VERSION, "teacher", teacher_json(model, weights_hex), "layers", layer_list(plan), "layer_norm", plan->choice.norm,
                             "layer_concat", plan->choice.concat, "augment", kd_policy_json(policy), "seed", (json_int_t)config->seed,
                             "image_size", policy->image_h, policy->image_w, "decoder", decoder_hex, "exif", config->exif, "features", feature_list(plan),
                             "grid", (int)plan->grid_h, (int)plan->grid_w, "registers", (int)plan->registers, "width", (int)plan->width,
                             "patch_targets", target_list(plan), "store", "dtype", config->store);
    if (json == NULL)
        return kd_fail(err, KD_EFAIL, "out of memory for the recipe");
    if (policy->mix_p > 0)
        json_object_set_new(json, "dataset", dataset_json(ids, n));
    return kd_recipe_from_json(recipe, json, config->cache, err);
}

#include "precompute/plan.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "cache/budget.h"
#include "cache/recipe.h"
#include "cache/shard_writer.h"
#include "common/base/io.h"
#include "kernels/nn/teacher.h"

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

static kd_size_shape plan_shape(const kd_run_plan *p) {
    return (kd_size_shape){.features = p->choice.features, .width = (int)p->width, .grid_h = (int)p->grid_h, .grid_w = (int)p->grid_w, .registers = (int)p->registers,
                           .layers = kd_selection_layers(&p->choice), .mixed = p->mixed};
}

static void set_bytes(kd_run_plan *p, uint64_t bytes_per_view, uint64_t cache_bytes) {
    p->bytes_per_view = bytes_per_view;
    p->cache_bytes = cache_bytes;
    p->peak_bytes = p->cache_bytes + (p->cache_bytes < p->beside_bytes ? p->cache_bytes : p->beside_bytes);
}

/* Takes what the ladder (cache/budget.h) chose. */
static void take_choice(kd_run_plan *p, const kd_budget_choice *c) {
    const kd_budget_step *s = &c->step[c->chosen];
    p->views = c->views;
    p->choice.features = s->features;
    p->dtype = s->storage.dtype;
    p->targets = p->choice.features & 1u << KD_FEATURE_PATCH ? s->storage.targets : 0;
    memcpy(p->target, s->storage.target, sizeof p->target);
    set_bytes(p, c->view_bytes, c->cache_bytes);
}

static kd_dtype dtype_named(const char *store) {
    return strcmp(store, "i8") == 0 ? KD_I8 : strcmp(store, "bf16") == 0 ? KD_BF16 : KD_F16;
}

/* Element type, targets and views, by what the command line fixes, names or leaves open. */
static kd_status choose_storage(kd_run_plan *p, const kd_precompute_config *c, const kd_policy *policy, kd_err *err) {
    kd_budget_ask ask = {.shape = plan_shape(p), .images = p->images, .views = p->views, .budget = c->budget};
    kd_map_size map[KD_FOR_MAX];
    kd_target target[KD_MAX_TARGETS];
    kd_dtype dtype = dtype_named(c->store);
    kd_budget_choice choice;
    if (strcmp(c->store, "auto") != 0)
        ask.dtype = &dtype;
    if (strcmp(c->patch_target, "auto") != 0 && p->choice.features & 1u << KD_FEATURE_PATCH)
        KD_TRY(kd_targets_parse(target, &ask.targets, c->patch_target, (int)p->grid_h, (int)p->grid_w, err));
    if (c->students != NULL)
        KD_TRY(kd_for_parse(map, &ask.students, c->students, c->student_size, policy->image_h, policy->image_w, err));
    ask.target = target;
    ask.student = map;
    KD_TRY(kd_budget_choose(&choice, &ask, err));
    take_choice(p, &choice);
    kd_budget_reason(&choice, &ask, p->reason, sizeof p->reason);
    return KD_OK;
}

kd_status kd_run_plan_make(kd_run_plan *plan, const kd_precompute_config *config, const kd_policy *policy, const kd_model_info *model, uint64_t images, kd_err *err) {
    *plan = (kd_run_plan){.images = images, .views = (uint32_t)config->views, .registers = (uint32_t)model->vit.registers, .mixed = policy->mix_p > 0};
    KD_TRY(kd_selection_parse(&plan->choice, &(kd_selection_text){config->features, config->layers, config->layer_norm, config->layer_concat}, model, err));
    plan->grid_h = (uint32_t)(policy->image_h / model->multiple);
    plan->grid_w = (uint32_t)(policy->image_w / model->multiple);
    plan->width = kd_selection_width(&plan->choice, model);
    plan->beside_bytes = config->stage != NULL ? 0 : kd_shard_is_folder(config->cache) && config->shard_size > 0 ? 2 * config->shard_size : UINT64_MAX;
    KD_TRY(choose_storage(plan, config, policy, err));
    return kd_io_free_bytes(config->cache, &plan->free_bytes, err);
}

void kd_run_plan_narrow(kd_run_plan *plan, uint64_t images, uint32_t views, uint64_t count) {
    plan->images = images;
    plan->views = views;
    set_bytes(plan, plan->bytes_per_view, plan->bytes_per_view * count);
}

/* The plan with as many views as fit, stored in the same way, else without patches. */
static kd_status fit_space(kd_run_plan *p, uint64_t bytes, kd_err *err) {
    kd_budget_ask ask = {.shape = plan_shape(p), .images = p->images, .views = p->views, .budget = bytes > 0 ? bytes : 1, .dtype = &p->dtype, .target = p->target, .targets = p->targets};
    kd_budget_choice choice;
    KD_TRY(kd_budget_choose(&choice, &ask, err));
    take_choice(p, &choice);
    return KD_OK;
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
    if (fit_space(&smaller, fits, NULL) != KD_OK)
        return kd_fail(err, KD_ENOSPACE, "%s: writing and sealing needs about %s and %s are free (at most 80%% is used); put --cache on a larger disk",
                       config->cache, need_text, free_text);
    snprintf(fit_text, sizeof fit_text, "%" PRIu64 "MB", fits / 1000000);
    return kd_fail(err, KD_ENOSPACE,
                   "%s: writing and sealing needs about %s and %s are free (at most 80%% is used); --views %" PRIu32 " --features %s would fit, "
                   "and so does --budget %s",
                   config->cache, need_text, free_text, smaller.views, kd_features_text(smaller.choice.features, features, sizeof features), fit_text);
}

kd_status kd_run_recipe(kd_recipe *recipe, const kd_precompute_config *config, const kd_run_plan *plan, const kd_policy *policy,
                        const kd_model_info *model, const kd_sha256 *weights, const kd_hash128 *ids, size_t n, kd_err *err) {
    kd_recipe_parts parts = {.teacher = kd_teacher_json(model, weights), .layer = plan->choice.layer, .layers = plan->choice.layers, .norm = plan->choice.norm, .concat = plan->choice.concat,
                             .policy = policy, .seed = (uint64_t)config->seed, .exif = config->exif, .features = plan->choice.features, .grid_h = (int)plan->grid_h, .grid_w = (int)plan->grid_w,
                             .registers = (int)plan->registers, .width = (int)plan->width, .target = plan->target, .targets = plan->targets, .dtype = plan->dtype, .ids = ids, .images = n};
    return kd_recipe_make(recipe, &parts, config->cache, err);
}

#include "cache/derive.h"

#include <string.h>

#include "common/tensor/feature_list.h"
#include "cache/size_model.h"

/* *bits: 1 << kd_feature, below KD_OUTPUTS. */
static kd_status choose_features(unsigned *bits, const kd_recipe *parent, const char *list, kd_err *err)
{
    unsigned stored = parent->features & ((1u << KD_OUTPUTS) - 1);
    char have[80];
    *bits = stored;
    if (!list)
        return KD_OK;
    KD_TRY(kd_features_parse(list, bits, err));
    for (int f = 0; f < KD_OUTPUTS; f++) {
        if ((*bits & ~stored) >> f & 1)
            return kd_fail(err, KD_EUSAGE, "--features %s: the cache has %s", kd_feature_name((kd_feature)f), kd_features_text(stored, have, sizeof have));
    }
    return KD_OK;
}

/* Ascending, as recipes have them. */
static kd_status choose_layers(json_t *layers, const kd_recipe *parent, const char *list, kd_err *err)
{
    int depth = (int)json_integer_value(json_object_get(json_object_get(parent->json, "teacher"), "depth")), count;
    uint16_t layer[KD_MAX_LAYERS];
    if (!list)
        return KD_OK;
    if (parent->concat)
        return kd_fail(err, KD_EUSAGE, "--layers %s: the cache's layers were joined into one when it was made and can't be taken apart", list);
    KD_TRY(kd_layers_parse(list, depth, layer, &count, err));
    for (int i = 0; i < count; i++) {
        if (kd_recipe_layer_index(parent, layer[i]) < 0)
            return kd_fail(err, KD_EUSAGE, "--layers %u: not one of the cache's layers, which kd-cache info prints (1 = last)", layer[i]);
        json_array_append_new(layers, json_integer(layer[i]));
    }
    return KD_OK;
}

/* From which of the parent's targets t can be made: itself, else from the full grid. */
static kd_status choose_origin(struct kd_origin *o, const kd_recipe *parent, const kd_target *t, kd_err *err)
{
    char want[KD_TARGET_TEXT], have[KD_STORAGE_TEXT];
    int full = -1;
    for (int i = 0; i < parent->targets; i++) {
        if (kd_target_equal(&parent->target[i], t)) {
            *o = (struct kd_origin){.from = kd_patch_feature(i)};
            return KD_OK;
        }
        if (parent->target[i].kind == KD_TARGET_FULL)
            full = i;
    }
    kd_target_text(t, want);
    if (full < 0)
        return kd_fail(err, KD_EUSAGE, "--patch-target %s: the cache has %s; only a full grid can be reduced, and what is reduced stays as it is", want,
                       kd_targets_text(parent->target, parent->targets, have));
    *o = (struct kd_origin){.from = kd_patch_feature(full), .encode = 1, .reduce = *t};
    return KD_OK;
}

/* Fills the list and the origins of the patch features. */
static kd_status choose_targets(kd_derived *d, json_t *texts, const kd_recipe *parent, const char *list, kd_err *err)
{
    kd_target target[KD_MAX_TARGETS];
    char text[KD_TARGET_TEXT];
    int n = parent->targets;
    memcpy(target, parent->target, sizeof target);
    if (list)
        KD_TRY(kd_targets_parse(target, &n, list, parent->grid_h, parent->grid_w, err));
    for (int i = 0; i < n; i++) {
        KD_TRY(choose_origin(&d->origin[kd_patch_feature(i)], parent, &target[i], err));
        json_array_append_new(texts, json_string(kd_target_text(&target[i], text)));
    }
    return KD_OK;
}

static kd_status choose_dtype(kd_dtype *dtype, const kd_recipe *parent, const char *name, kd_err *err)
{
    static const kd_dtype known[] = {KD_F16, KD_BF16, KD_I8};
    *dtype = parent->dtype;
    for (size_t i = 0; name; i++) {
        if (i == sizeof known / sizeof known[0])
            return kd_fail(err, KD_EUSAGE, "--store %s: expected f16, bf16 or i8", name);
        if (strcmp(name, kd_dtype_name(known[i])) == 0) {
            *dtype = known[i];
            return KD_OK;
        }
    }
    return KD_OK;
}

/* What was rounded before: the first of the result's patch targets that is stored anew says from which of the parent's. NULL: nothing is rounded again. */
static json_t *source_json(const kd_derived *d, unsigned features, int targets, const kd_recipe *parent)
{
    kd_target t = {0};
    char text[KD_TARGET_TEXT];
    int rounded = 0;
    for (int f = 0; f < KD_FEATURES; f++) {
        int target = kd_feature_target((kd_feature)f);
        int stored = target >= 0 ? target < targets : (int)(features >> f & 1);
        if (!stored || !d->origin[f].encode)
            continue;
        if (target >= 0) {
            t = kd_recipe_target(parent, d->origin[f].from);
            return json_pack("{s:s,s:s}", "dtype", kd_dtype_name(parent->dtype), "patch_target", kd_target_text(&t, text));
        }
        rounded = 1;
    }
    return rounded ? json_pack("{s:s,s:s}", "dtype", kd_dtype_name(parent->dtype), "patch_target", kd_target_text(&t, text)) : NULL;
}

/* What the options chose. */
typedef struct choice {
    unsigned features;        /* bits 1 << kd_feature, below KD_OUTPUTS */
    json_t *targets, *layers; /* lists; layers in any order, empty: all */
    kd_dtype dtype;
} choice;

static kd_status choose(choice *c, kd_derived *d, const kd_recipe *parent, const kd_derive_options *o, kd_err *err)
{
    for (int f = 0; f < KD_OUTPUTS; f++)
        d->origin[f].from = (kd_feature)f;
    KD_TRY(choose_features(&c->features, parent, o->features, err));
    if (c->features >> KD_FEATURE_PATCH & 1)
        KD_TRY(choose_targets(d, c->targets, parent, o->targets, err));
    else if (o->targets)
        return kd_fail(err, KD_EUSAGE, "--patch-target %s: patches aren't among the features of the result", o->targets);
    KD_TRY(choose_layers(c->layers, parent, o->layers, err));
    KD_TRY(choose_dtype(&c->dtype, parent, o->dtype, err));
    for (int f = 0; f < KD_FEATURES; f++)
        d->origin[f].encode |= c->dtype != parent->dtype;
    return KD_OK;
}

/* json: a copy of the parent's recipe. */
static void write_choice(json_t *json, const choice *c, const kd_derived *d, const kd_recipe *parent)
{
    json_t *features = json_array(), *source = source_json(d, c->features, (int)json_array_size(c->targets), parent);
    for (int f = 0; f < KD_OUTPUTS; f++) {
        if (c->features >> f & 1)
            json_array_append_new(features, json_string(kd_feature_name((kd_feature)f)));
    }
    json_object_set_new(json, "features", features);
    json_object_set(json, "patch_targets", c->targets);
    if (json_array_size(c->layers) > 0)
        json_object_set(json, "layers", c->layers);
    json_object_set_new(json, "store", json_pack("{s:s}", "dtype", kd_dtype_name(c->dtype)));
    if (source && !json_object_get(json, "source")) /* the first rounding is told */
        json_object_set(json, "source", source);
    json_decref(source);
}

kd_status kd_derive(kd_derived *d, const kd_recipe *parent, const kd_derive_options *o, kd_err *err)
{
    choice c = {.targets = json_array(), .layers = json_array()};
    json_t *json = json_deep_copy(parent->json);
    kd_status status = KD_OK;
    memset(d, 0, sizeof *d);
    if (!json || !c.targets || !c.layers)
        status = kd_fail(err, KD_EFAIL, "out of memory while making the recipe of a derived cache");
    if (status == KD_OK)
        status = choose(&c, d, parent, o, err);
    if (status == KD_OK)
        write_choice(json, &c, d, parent);
    json_decref(c.targets);
    json_decref(c.layers);
    if (status != KD_OK) {
        json_decref(json);
        return status;
    }
    return kd_recipe_from_json(&d->recipe, json, "the derived cache's recipe", err);
}

void kd_derived_free(kd_derived *d)
{
    kd_recipe_free(&d->recipe);
}

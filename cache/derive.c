#include "cache/derive.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/options.h"

enum { ITEM = 40 };

/* Copies the item at *rest of a list that is separated by commas, and moves behind it; 0 after the last. Items that are too long are cut, which makes them unknown. */
static int next_item(const char **rest, char item[ITEM])
{
    size_t n;
    if (!*rest)
        return 0;
    n = strcspn(*rest, ",");
    snprintf(item, ITEM, "%.*s", n < ITEM ? (int)n : ITEM - 1, *rest);
    *rest = (*rest)[n] == ',' ? *rest + n + 1 : NULL;
    return 1;
}

static const char *features_text(const kd_recipe *r, char *buf, size_t cap)
{
    size_t used = 0;
    buf[0] = 0;
    for (int f = 0; f < KD_OUTPUTS; f++) {
        if (kd_recipe_has(r, (kd_feature)f) && used < cap)
            used += (size_t)snprintf(buf + used, cap - used, "%s%s", used ? "," : "", kd_feature_name((kd_feature)f));
    }
    return buf;
}

static const char *targets_text(const kd_recipe *r, char *buf, size_t cap)
{
    char one[KD_TARGET_TEXT];
    size_t used = 0;
    snprintf(buf, cap, "none");
    for (int i = 0; i < r->targets && used < cap; i++)
        used += (size_t)snprintf(buf + used, cap - used, "%s%s", i ? "," : "", kd_target_text(&r->target[i], one));
    return buf;
}

/* *bits: 1 << kd_feature, below KD_OUTPUTS. */
static kd_status choose_features(unsigned *bits, const kd_recipe *parent, const char *list, kd_err *err)
{
    char item[ITEM], have[80];
    *bits = list ? 0 : parent->features & ((1u << KD_OUTPUTS) - 1);
    while (next_item(&list, item)) {
        int f = 0;
        while (f < KD_OUTPUTS && strcmp(item, kd_feature_name((kd_feature)f)) != 0)
            f++;
        if (f == KD_OUTPUTS || !kd_recipe_has(parent, (kd_feature)f))
            return kd_fail(err, KD_EUSAGE, "--features %s: the cache has %s", item, features_text(parent, have, sizeof have));
        if (*bits >> f & 1)
            return kd_fail(err, KD_EUSAGE, "--features names %s twice", item);
        *bits |= 1u << f;
    }
    return KD_OK;
}

static kd_status choose_layers(json_t *layers, const kd_recipe *parent, const char *list, kd_err *err)
{
    unsigned char chosen[KD_MAX_LAYERS] = {0};
    char item[ITEM];
    if (list && parent->concat)
        return kd_fail(err, KD_EUSAGE, "--layers %s: the cache's layers were joined into one when it was made and can't be taken apart", list);
    while (next_item(&list, item)) {
        char *end;
        unsigned long v = strtoul(item, &end, 10);
        int at = item[0] >= '0' && item[0] <= '9' && *end == 0 && v <= UINT16_MAX ? kd_recipe_layer_index(parent, (uint16_t)v) : -1;
        if (at < 0 || chosen[at])
            return kd_fail(err, KD_EUSAGE, "--layers %s: %s", item, at < 0 ? "not one of the cache's layers, which kd-cache info prints (1 = last)" : "named twice");
        chosen[at] = 1;
        json_array_append_new(layers, json_integer((json_int_t)v));
    }
    return KD_OK;
}

/* Ascending, as recipes have them. */
static void sort_layers(json_t *out, const json_t *chosen, const kd_recipe *parent)
{
    for (int l = 0; l < parent->layers; l++) {
        for (size_t i = 0; i < json_array_size(chosen); i++) {
            if (json_integer_value(json_array_get(chosen, i)) == parent->layer[l])
                json_array_append_new(out, json_integer(parent->layer[l]));
        }
    }
}

/* From which of the parent's targets t can be made: itself, else from the full grid. */
static kd_status choose_origin(struct kd_origin *o, const kd_recipe *parent, const kd_target *t, kd_err *err)
{
    char want[KD_TARGET_TEXT], have[4 * KD_TARGET_TEXT];
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
                       targets_text(parent, have, sizeof have));
    if (t->h > parent->grid_h || t->w > parent->grid_w)
        return kd_fail(err, KD_EUSAGE, "--patch-target %s: larger than the cache's grid of %d x %d", want, parent->grid_h, parent->grid_w);
    *o = (struct kd_origin){.from = kd_patch_feature(full), .encode = 1, .reduce = *t};
    return KD_OK;
}

/* Fills the list and the origins of the patch features. */
static kd_status choose_targets(kd_derived *d, json_t *texts, const kd_recipe *parent, const char *list, kd_err *err)
{
    char all[4 * KD_TARGET_TEXT], item[ITEM], text[KD_TARGET_TEXT];
    int n = 0;
    if (!list)
        list = targets_text(parent, all, sizeof all);
    while (next_item(&list, item)) {
        kd_target t;
        KD_TRY(kd_target_parse(&t, item, "--patch-target", err));
        if (n == KD_MAX_TARGETS)
            return kd_fail(err, KD_EUSAGE, "--patch-target: more than %d targets", KD_MAX_TARGETS);
        kd_target_text(&t, text);
        for (int i = 0; i < n; i++) {
            if (strcmp(json_string_value(json_array_get(texts, (size_t)i)), text) == 0)
                return kd_fail(err, KD_EUSAGE, "--patch-target names %s twice", text);
        }
        KD_TRY(choose_origin(&d->origin[kd_patch_feature(n++)], parent, &t, err));
        json_array_append_new(texts, json_string(text));
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
    json_t *features = json_array(), *layers = json_array(), *source = source_json(d, c->features, (int)json_array_size(c->targets), parent);
    for (int f = 0; f < KD_OUTPUTS; f++) {
        if (c->features >> f & 1)
            json_array_append_new(features, json_string(kd_feature_name((kd_feature)f)));
    }
    sort_layers(layers, c->layers, parent);
    json_object_set_new(json, "features", features);
    json_object_set(json, "patch_targets", c->targets);
    if (json_array_size(layers) > 0)
        json_object_set(json, "layers", layers);
    json_decref(layers);
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

#include "cache/recipe.h"

#include "common/image/mix.h"

static json_t *feature_list(const kd_recipe_parts *p)
{
    json_t *list = json_array();
    for (kd_feature f = 0; f < KD_OUTPUTS; f++)
        if (p->features & 1u << f)
            json_array_append_new(list, json_string(kd_feature_name(f)));
    return list;
}

static json_t *layer_list(const kd_recipe_parts *p)
{
    json_t *list = json_array();
    for (int i = 0; i < p->layers; i++)
        json_array_append_new(list, json_integer(p->layer[i]));
    return list;
}

static json_t *target_list(const kd_recipe_parts *p)
{
    json_t *list = json_array();
    char text[KD_TARGET_TEXT];
    for (int i = 0; i < p->targets && p->features & 1u << KD_FEATURE_PATCH; i++)
        json_array_append_new(list, json_string(kd_target_text(&p->target[i], text)));
    return list;
}

static json_t *dataset_json(const kd_recipe_parts *p)
{
    kd_sha256 digest = kd_mix_digest(p->ids, p->images);
    char hex[65];
    kd_hex(hex, digest.b, sizeof digest.b);
    return json_pack("{s:s, s:I}", "digest", hex, "images", (json_int_t)p->images);
}

kd_status kd_recipe_make(kd_recipe *recipe, const kd_recipe_parts *p, const char *what, kd_err *err)
{
    kd_hash128 decoder;
    char hex[33];
    kd_status status = kd_decoder_hash(&decoder, err);
    if (status != KD_OK) {
        json_decref(p->teacher);
        return status;
    }
    kd_hex(hex, decoder.b, sizeof decoder.b);
    json_t *json = json_pack("{s:i, s:o, s:o, s:b, s:b, s:o, s:I, s:[i,i], s:s, s:s, s:o, s:[i,i], s:i, s:i, s:o, s:{s:s}}",
                             "format_version", KD_FORMAT_VERSION, "teacher", p->teacher, "layers", layer_list(p), "layer_norm", p->norm, "layer_concat", p->concat,
                             "augment", kd_policy_json(p->policy), "seed", (json_int_t)p->seed, "image_size", p->policy->image_h, p->policy->image_w, "decoder", hex, "exif", p->exif,
                             "features", feature_list(p), "grid", p->grid_h, p->grid_w, "registers", p->registers, "width", p->width, "patch_targets", target_list(p),
                             "store", "dtype", kd_dtype_name(p->dtype));
    if (json == NULL)
        return kd_fail(err, KD_EFAIL, "out of memory for the recipe");
    if (p->policy->mix_p > 0)
        json_object_set_new(json, "dataset", dataset_json(p));
    return p->dtype == KD_F32 ? kd_recipe_of_live(recipe, json, what, err) : kd_recipe_from_json(recipe, json, what, err);
}

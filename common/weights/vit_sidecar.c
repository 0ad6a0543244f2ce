/* Configuration files beside a weight file: transformers' config.json and preprocessor_config.json, timm's config.json.
 *
 * They are read only for the layouts that come with them, and only what the tensors can't say is taken: the number of heads, the epsilon, the normalisation. What contradicts the tensors, or asks
 * for arithmetic that isn't implemented, refuses the model. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "common/base/io.h"
#include "common/base/json.h"
#include "common/weights/vit_parts.h"

enum { MAX_SIDECAR = 4 << 20 };

/* NULL in *out: there is no such file. */
static kd_status read_sidecar(const kd_weights *w, const char *name, json_t **out, kd_vit_report *r, kd_err *err)
{
    kd_err found = {0};
    char *path = kd_asprintf("%s/%s", kd_weights_dir(w), name);
    *out = NULL;
    if (path == NULL)
        return kd_fail(err, KD_EFAIL, "%s: out of memory for the name of %s", kd_weights_path(w), name);
    if (kd_io_exists(path) && kd_json_read_file(path, MAX_SIDECAR, out, &found) != KD_OK)
        kd_vit_problem(r, "%s; it belongs to %s: repair it or move the weights to a folder of their own", found.msg, kd_weights_path(w));
    if (*out != NULL && !json_is_object(*out)) {
        kd_vit_problem(r, "%s isn't a JSON object; it belongs to %s: repair it or move the weights to a folder of their own", path, kd_weights_path(w));
        json_decref(*out);
        *out = NULL;
    }
    kd_free(path);
    return KD_OK;
}

/* Text of a value for a sentence. */
static const char *shown(const json_t *v, char text[80])
{
    char *all = kd_json_canonical(v);
    snprintf(text, 80, "%.60s", all != NULL ? all : "?");
    kd_free(all);
    return text;
}

static void refuse_value(const kd_weights *w, kd_vit_report *r, const char *file, const char *key, const json_t *v, const char *why)
{
    char text[80];
    kd_vit_problem(r, "%s/%s: %s is %s: %s", kd_weights_dir(w), file, key, shown(v, text), why);
}

/* -- the tensors and config.json agree -------------------------------------------------------------------------------------------- */

/* config's number must be the tensors'; absent is fine. A list of equal numbers is how some versions write the patch size. */
static void must_equal(const kd_weights *w, kd_vit_report *r, const json_t *config, const char *key, int value)
{
    const json_t *v = json_object_get(config, key);
    char why[160];
    if (json_is_array(v))
        v = json_array_get(v, 0);
    if (v == NULL || json_is_null(v) || (json_is_integer(v) && json_integer_value(v) == value))
        return;
    snprintf(why, sizeof why, "the tensors say %d; the file describes another model, or is damaged: move the weights to a folder of their own", value);
    refuse_value(w, r, "config.json", key, v, why);
}

static void must_be_100(const kd_weights *w, kd_vit_report *r, const json_t *config, const char *key)
{
    const json_t *v = json_object_get(config, key);
    if (v != NULL && !json_is_null(v) && !(json_is_number(v) && json_number_value(v) == 100.0))
        refuse_value(w, r, "config.json", key, v, "only rotary positions of base 100 (every released DINOv3) are read");
}

static void take_heads(const kd_weights *w, kd_vit_report *r, const json_t *config, const char *key)
{
    const json_t *v = json_object_get(config, key);
    if (v == NULL)
        return;
    if (json_is_integer(v) && json_integer_value(v) > 0 && json_integer_value(v) <= r->spec.width)
        r->spec.heads = (int)json_integer_value(v);
    else
        refuse_value(w, r, "config.json", key, v, "expected a number of heads");
}

static void take_eps(const kd_weights *w, kd_vit_report *r, const json_t *config)
{
    const json_t *v = json_object_get(config, "layer_norm_eps");
    if (v == NULL)
        return;
    if (json_is_number(v) && json_number_value(v) > 0 && json_number_value(v) < 0.1)
        r->spec.ln_eps = json_number_value(v);
    else
        refuse_value(w, r, "config.json", "layer_norm_eps", v, "expected a number above 0 and below 0.1");
}

/* hidden_act is the FFN's; DINOv2's SwiGLU has SiLU built in and ignores it (modeling_dinov2.py Dinov2SwiGLUFFN). */
static void check_activation(const kd_weights *w, kd_vit_report *r, const json_t *config)
{
    const json_t *v = json_object_get(config, "hidden_act");
    int gated = r->spec.ffn == KD_FFN_SWIGLU;
    const char *want = gated ? "silu" : "gelu";
    if (v == NULL || (gated && r->spec.family == KD_VIT_DINOV2) || (json_is_string(v) && strcmp(json_string_value(v), want) == 0))
        return;
    refuse_value(w, r, "config.json", "hidden_act", v, gated ? "only silu is read for a gated feed-forward layer" : "only gelu (the exact one) is read");
}

static void use_hugging_face(const kd_weights *w, kd_vit_report *r, const json_t *config)
{
    kd_vit_spec *s = &r->spec;
    const json_t *backbone = json_object_get(config, "backbone_config"); /* Depth Anything and others around a DINOv2 */
    if (json_is_object(backbone))
        config = backbone;
    const char *type = json_string_value(json_object_get(config, "model_type"));
    if (type == NULL || (!kd_vit_starts(type, "dinov2") && strcmp(type, "dinov3_vit") != 0))
        return; /* says nothing about this network */
    must_equal(w, r, config, "hidden_size", s->width);
    must_equal(w, r, config, "num_hidden_layers", s->depth);
    must_equal(w, r, config, "patch_size", s->patch);
    if (json_object_get(config, "num_register_tokens") != NULL)
        must_equal(w, r, config, "num_register_tokens", s->registers);
    must_be_100(w, r, config, "rope_theta");
    must_be_100(w, r, json_object_get(config, "rope_parameters"), "rope_theta");
    take_heads(w, r, config, "num_attention_heads");
    take_eps(w, r, config);
    check_activation(w, r, config);
}

/* -- normalisation ------------------------------------------------------------------------------------------------------------------ */

static int three_numbers(const json_t *v, float out[3], int positive)
{
    if (!json_is_array(v) || json_array_size(v) != 3)
        return 0;
    for (size_t i = 0; i < 3; i++) {
        const json_t *x = json_array_get(v, i);
        double value = json_is_number(x) ? json_number_value(x) : NAN;
        if (!(fabs(value) <= 1000) || (positive && !(value >= 1e-6)))
            return 0;
        out[i] = (float)value;
    }
    return 1;
}

static void take_normalisation(const kd_weights *w, kd_vit_report *r, const json_t *from, const char *file, const char *mean_key, const char *std_key, const char *said)
{
    const json_t *mean = json_object_get(from, mean_key), *std = json_object_get(from, std_key);
    float m[3], s[3];
    if (mean == NULL && std == NULL)
        return;
    if (!three_numbers(mean, m, 0) || !three_numbers(std, s, 1)) {
        refuse_value(w, r, file, three_numbers(mean, m, 0) ? std_key : mean_key, three_numbers(mean, m, 0) ? std : mean, "expected three numbers (standard deviations above 0)");
        return;
    }
    memcpy(r->spec.mean, m, sizeof m);
    memcpy(r->spec.std, s, sizeof s);
    r->spec.normalisation = said;
}

static void use_preprocessor(const kd_weights *w, kd_vit_report *r, const json_t *p)
{
    static const char file[] = "preprocessor_config.json";
    const json_t *factor = json_object_get(p, "rescale_factor"), *rescale = json_object_get(p, "do_rescale"), *normalise = json_object_get(p, "do_normalize");
    if (json_is_false(rescale))
        refuse_value(w, r, file, "do_rescale", rescale, "only pixels divided by 255 are read");
    if (factor != NULL && !(json_is_number(factor) && fabs(json_number_value(factor) * 255 - 1) < 1e-6))
        refuse_value(w, r, file, "rescale_factor", factor, "only 1/255 is read");
    if (json_is_false(normalise)) {
        for (int i = 0; i < 3; i++) {
            r->spec.mean[i] = 0;
            r->spec.std[i] = 1;
        }
        r->spec.normalisation = "from preprocessor_config.json";
        return;
    }
    take_normalisation(w, r, p, file, "image_mean", "image_std", "from preprocessor_config.json");
}

static void use_timm(const kd_weights *w, kd_vit_report *r, const json_t *config)
{
    const json_t *pretrained = json_object_get(config, "pretrained_cfg"), *args = json_object_get(config, "model_args");
    if (!json_is_object(pretrained))
        return; /* says nothing about this network */
    must_equal(w, r, config, "num_features", r->spec.width);
    if (json_is_object(args))
        take_heads(w, r, args, "num_heads");
    take_normalisation(w, r, pretrained, "config.json", "mean", "std", "from config.json");
}

kd_status kd_vit_sidecars(const kd_weights *w, kd_vit_report *r, kd_err *err)
{
    json_t *config = NULL, *preprocessor = NULL;
    if (r->spec.layout == KD_VIT_LAYOUT_OFFICIAL)
        return KD_OK;
    kd_status status = read_sidecar(w, "config.json", &config, r, err);
    if (status == KD_OK && r->spec.layout == KD_VIT_LAYOUT_HF)
        status = read_sidecar(w, "preprocessor_config.json", &preprocessor, r, err);
    if (status == KD_OK && config != NULL && r->spec.layout == KD_VIT_LAYOUT_HF)
        use_hugging_face(w, r, config);
    else if (status == KD_OK && config != NULL)
        use_timm(w, r, config);
    if (status == KD_OK && preprocessor != NULL)
        use_preprocessor(w, r, preprocessor);
    json_decref(config);
    json_decref(preprocessor);
    return status;
}

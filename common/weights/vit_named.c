/* Names: of models, families, profiles and normalisations. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/weights/vit_parts.h"

/* dinov2/hub/backbones.py, dinov3/hub/backbones.py, timm vision_transformer.py and deit.py. Heads are 64 wide but in ViT-7B. */
static const struct known {
    const char *name;
    kd_vit_family family;
    int width, depth, heads, patch, hidden;
    kd_ffn_kind ffn;
    int registers, grid;
    const char *normalisation;
} known_models[] = {
    {"dinov2_vits14", KD_VIT_DINOV2, 384, 12, 6, 14, 1536, KD_FFN_GELU, 0, 37, "imagenet"},
    {"dinov2_vitb14", KD_VIT_DINOV2, 768, 12, 12, 14, 3072, KD_FFN_GELU, 0, 37, "imagenet"},
    {"dinov2_vitl14", KD_VIT_DINOV2, 1024, 24, 16, 14, 4096, KD_FFN_GELU, 0, 37, "imagenet"},
    {"dinov2_vitg14", KD_VIT_DINOV2, 1536, 40, 24, 14, 4096, KD_FFN_SWIGLU, 0, 37, "imagenet"},
    {"dinov2_vits14_reg", KD_VIT_DINOV2, 384, 12, 6, 14, 1536, KD_FFN_GELU, 4, 37, "imagenet"},
    {"dinov2_vitb14_reg", KD_VIT_DINOV2, 768, 12, 12, 14, 3072, KD_FFN_GELU, 4, 37, "imagenet"},
    {"dinov2_vitl14_reg", KD_VIT_DINOV2, 1024, 24, 16, 14, 4096, KD_FFN_GELU, 4, 37, "imagenet"},
    {"dinov2_vitg14_reg", KD_VIT_DINOV2, 1536, 40, 24, 14, 4096, KD_FFN_SWIGLU, 4, 37, "imagenet"},
    {"dinov3_vits16", KD_VIT_DINOV3, 384, 12, 6, 16, 1536, KD_FFN_GELU, 4, 0, "imagenet"},
    {"dinov3_vits16plus", KD_VIT_DINOV3, 384, 12, 6, 16, 1536, KD_FFN_SWIGLU, 4, 0, "imagenet"},
    {"dinov3_vitb16", KD_VIT_DINOV3, 768, 12, 12, 16, 3072, KD_FFN_GELU, 4, 0, "imagenet"},
    {"dinov3_vitl16", KD_VIT_DINOV3, 1024, 24, 16, 16, 4096, KD_FFN_GELU, 4, 0, "imagenet"},
    {"dinov3_vitl16plus", KD_VIT_DINOV3, 1024, 24, 16, 16, 4096, KD_FFN_SWIGLU, 4, 0, "imagenet"},
    {"dinov3_vith16plus", KD_VIT_DINOV3, 1280, 32, 20, 16, 5120, KD_FFN_SWIGLU, 4, 0, "imagenet"},
    {"dinov3_vit7b16", KD_VIT_DINOV3, 4096, 40, 32, 16, 8192, KD_FFN_SWIGLU, 4, 0, "imagenet"},
    {"vit_tiny_patch8_224", KD_VIT_TIMM, 192, 12, 3, 8, 768, KD_FFN_GELU, 0, 28, "half"},
    {"vit_small_patch8_224", KD_VIT_TIMM, 384, 12, 6, 8, 1536, KD_FFN_GELU, 0, 28, "half"},
    {"vit_base_patch8_224", KD_VIT_TIMM, 768, 12, 12, 8, 3072, KD_FFN_GELU, 0, 28, "half"},
    {"vit_large_patch8_224", KD_VIT_TIMM, 1024, 24, 16, 8, 4096, KD_FFN_GELU, 0, 28, "half"},
    {"vit_tiny_patch14_224", KD_VIT_TIMM, 192, 12, 3, 14, 768, KD_FFN_GELU, 0, 16, "half"},
    {"vit_small_patch14_224", KD_VIT_TIMM, 384, 12, 6, 14, 1536, KD_FFN_GELU, 0, 16, "half"},
    {"vit_base_patch14_224", KD_VIT_TIMM, 768, 12, 12, 14, 3072, KD_FFN_GELU, 0, 16, "half"},
    {"vit_large_patch14_224", KD_VIT_TIMM, 1024, 24, 16, 14, 4096, KD_FFN_GELU, 0, 16, "half"},
    {"vit_huge_patch14_224", KD_VIT_TIMM, 1280, 32, 16, 14, 5120, KD_FFN_GELU, 0, 16, "half"},
    {"vit_tiny_patch16_224", KD_VIT_TIMM, 192, 12, 3, 16, 768, KD_FFN_GELU, 0, 14, "half"},
    {"vit_small_patch16_224", KD_VIT_TIMM, 384, 12, 6, 16, 1536, KD_FFN_GELU, 0, 14, "half"},
    {"vit_base_patch16_224", KD_VIT_TIMM, 768, 12, 12, 16, 3072, KD_FFN_GELU, 0, 14, "half"},
    {"vit_large_patch16_224", KD_VIT_TIMM, 1024, 24, 16, 16, 4096, KD_FFN_GELU, 0, 14, "half"},
    {"deit_tiny_patch16_224", KD_VIT_TIMM, 192, 12, 3, 16, 768, KD_FFN_GELU, 0, 14, "imagenet"},
    {"deit_small_patch16_224", KD_VIT_TIMM, 384, 12, 6, 16, 1536, KD_FFN_GELU, 0, 14, "imagenet"},
    {"deit_base_patch16_224", KD_VIT_TIMM, 768, 12, 12, 16, 3072, KD_FFN_GELU, 0, 14, "imagenet"},
};
enum { KNOWN = sizeof known_models / sizeof *known_models };

size_t kd_vit_names(const char *const **names)
{
    static const char *const list[KNOWN] = {
        "dinov2_vits14", "dinov2_vitb14", "dinov2_vitl14", "dinov2_vitg14", "dinov2_vits14_reg", "dinov2_vitb14_reg", "dinov2_vitl14_reg", "dinov2_vitg14_reg",
        "dinov3_vits16", "dinov3_vits16plus", "dinov3_vitb16", "dinov3_vitl16", "dinov3_vitl16plus", "dinov3_vith16plus", "dinov3_vit7b16",
        "vit_tiny_patch8_224", "vit_small_patch8_224", "vit_base_patch8_224", "vit_large_patch8_224",
        "vit_tiny_patch14_224", "vit_small_patch14_224", "vit_base_patch14_224", "vit_large_patch14_224", "vit_huge_patch14_224",
        "vit_tiny_patch16_224", "vit_small_patch16_224", "vit_base_patch16_224", "vit_large_patch16_224",
        "deit_tiny_patch16_224", "deit_small_patch16_224", "deit_base_patch16_224",
    };
    *names = list;
    return KNOWN;
}

int kd_vit_named(const char *name, kd_vit_spec *spec)
{
    for (int i = 0; i < KNOWN; i++) {
        const struct known *k = &known_models[i];
        if (strcmp(k->name, name) != 0)
            continue;
        kd_vit_spec s = {.family = k->family, .layout = k->family == KD_VIT_TIMM ? KD_VIT_LAYOUT_TIMM : KD_VIT_LAYOUT_OFFICIAL, .width = k->width, .depth = k->depth,
                         .heads = k->heads, .patch = k->patch, .ffn = k->ffn, .ffn_hidden = k->hidden, .layer_scale = k->family != KD_VIT_TIMM, .registers = k->registers,
                         .pos_grid = k->grid, .positions = k->family == KD_VIT_TIMM ? KD_POS_TIMM : KD_POS_OFFICIAL, .normalisation = k->normalisation};
        kd_vit_set_defaults(&s);
        snprintf(s.name, sizeof s.name, "%s", name);
        *spec = s;
        return 1;
    }
    return 0;
}

/* The name for what a file holds. A DeiT has timm's shapes; only its normalisation differs, which the file's name may have told. */
void kd_vit_set_name(kd_vit_spec *s)
{
    for (int i = 0; i < KNOWN; i++) {
        const struct known *k = &known_models[i];
        if (k->family == s->family && k->width == s->width && k->depth == s->depth && k->heads == s->heads && k->patch == s->patch && k->hidden == s->ffn_hidden &&
            k->ffn == s->ffn && k->registers == s->registers && (k->family == KD_VIT_DINOV3 || (k->grid == s->pos_grid && s->pos_columns == 0)) && s->layer_scale == (k->family != KD_VIT_TIMM)) {
            snprintf(s->name, sizeof s->name, "%s", k->name);
            return;
        }
    }
    snprintf(s->name, sizeof s->name, "%s d%d depth%d patch%d", kd_vit_family_name(s->family), s->width, s->depth, s->patch);
}

/* -- what follows from the shape numbers --------------------------------------------------------------------------------------- */

static const struct normalisation {
    const char *name;
    float mean[3], std[3];
} normalisations[] = {
    {"imagenet", {0.485f, 0.456f, 0.406f}, {0.229f, 0.224f, 0.225f}},
    {"half", {0.5f, 0.5f, 0.5f}, {0.5f, 0.5f, 0.5f}},            /* timm: IMAGENET_INCEPTION */
    {"dinov3-sat", {0.430f, 0.411f, 0.296f}, {0.213f, 0.156f, 0.143f}}, /* dinov3 README: SAT-493M models */
};
enum { NORMALISATIONS = sizeof normalisations / sizeof *normalisations };

static int named_normalisation(const char *name, float mean[3], float std[3])
{
    for (int i = 0; i < NORMALISATIONS; i++)
        if (strcmp(normalisations[i].name, name) == 0) {
            memcpy(mean, normalisations[i].mean, sizeof normalisations[i].mean);
            memcpy(std, normalisations[i].std, sizeof normalisations[i].std);
            return 1;
        }
    return 0;
}

static int64_t count_parameters(const kd_vit_spec *s)
{
    int64_t d = s->width, f = s->ffn_hidden, p = s->patch, g = (int64_t)s->pos_grid * kd_vit_pos_columns(s), k = s->ffn == KD_FFN_SWIGLU ? 2 : 1;
    int64_t block = 4 * d + 3 * d * d + 3 * d + d * d + d + k * f * d + k * f + d * f + d + (s->layer_scale ? 2 * d : 0);
    return d + (g > 0 ? (1 + g) * d : 0) + s->registers * d + 3 * d * p * p + d + s->depth * block + 2 * d;
}

void kd_vit_set_defaults(kd_vit_spec *s)
{
    int rotary = s->family == KD_VIT_DINOV3;
    if (s->ln_eps == 0)
        s->ln_eps = rotary ? 1e-5 : 1e-6; /* dinov3 "layernormbf16"; dinov2 and timm vision_transformer.py */
    if (rotary && !s->periods_from_file) {
        int half = s->width / s->heads / 2;
        s->periods = half / 2;
        /* rope_position_encoding.py: base ** (2 * arange(Dh / 4) / (Dh / 2)) in f32 */
        for (int i = 0; i < s->periods; i++)
            s->period[i] = (float)pow(100.0, (double)((float)(2 * i) / (float)half));
    }
    s->parameters = count_parameters(s);
    named_normalisation(s->normalisation, s->mean, s->std);
}

/* -- words --------------------------------------------------------------------------------------------------------------------- */

const char *kd_vit_family_name(kd_vit_family f) { return f == KD_VIT_DINOV3 ? "dinov3" : f == KD_VIT_TIMM ? "timm" : "dinov2"; }

const char *kd_vit_layout_name(kd_vit_layout l) { return l == KD_VIT_LAYOUT_HF ? "Hugging Face" : l == KD_VIT_LAYOUT_TIMM ? "timm" : "official"; }

static const char *const profiles[] = {"official", "hf", "timm"};

const char *kd_pos_profile_name(kd_pos_profile p) { return profiles[p]; }

int kd_pos_profile_parse(const char *text, kd_pos_profile *p)
{
    for (int i = 0; i < 3; i++)
        if (strcmp(text, profiles[i]) == 0) {
            *p = (kd_pos_profile)i;
            return 1;
        }
    return 0;
}

/* "M,M,M/S,S,S": six plain decimal numbers. */
static int parse_numbers(const char *text, float v[6])
{
    const char *p = text;
    for (int i = 0; i < 6; i++) {
        char *end;
        if ((*p < '0' || *p > '9') && *p != '-' && *p != '.')
            return 0;
        v[i] = strtof(p, &end);
        if (end == p || !isfinite(v[i]) || *end != (i == 5 ? '\0' : i == 2 ? '/' : ','))
            return 0;
        p = end + 1;
    }
    return v[3] > 0 && v[4] > 0 && v[5] > 0;
}

kd_status kd_normalisation_parse(const char *text, float mean[3], float std[3], kd_err *err)
{
    float v[6];
    if (named_normalisation(text, mean, std))
        return KD_OK;
    if (!parse_numbers(text, v))
        return kd_fail(err, KD_EUSAGE, "normalisation '%.200s' isn't imagenet, half, dinov3-sat or six numbers M,M,M/S,S,S (means, then standard deviations above 0, for pixels in 0..1)", text);
    memcpy(mean, v, 3 * sizeof *v);
    memcpy(std, v + 3, 3 * sizeof *v);
    return KD_OK;
}

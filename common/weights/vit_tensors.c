/* Canonical parameters and where they lie in the file.
 *
 * Sources of the names: dinov2/models/vision_transformer.py, dinov3/models/vision_transformer.py, transformers modeling_dinov2*.py and modeling_dinov3_vit.py (on the hub and, since version 5,
 * in memory), timm vision_transformer.py and eva.py. tests/golden/teachers/names holds them as the libraries print them. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "common/weights/vit_parts.h"

/* -- the layouts ------------------------------------------------------------------------------------------------------------------- */

#define STEM_OFFICIAL                                                                                                                \
    .blocks = "blocks.", .patch_weight = "patch_embed.proj.weight", .patch_bias = "patch_embed.proj.bias", .cls = "cls_token", .norm_weight = "norm.weight", .norm_bias = "norm.bias"
#define ATTENTION_OFFICIAL .qkv_weight = {"attn.qkv.weight"}, .proj_weight = "attn.proj.weight", .proj_bias = "attn.proj.bias"
#define SCALE_OFFICIAL .scale1 = "ls1.gamma", .scale2 = "ls2.gamma"
#define FFN_OFFICIAL .fc1_weight = "mlp.fc1.weight", .fc1_bias = "mlp.fc1.bias", .fc2_weight = "mlp.fc2.weight", .fc2_bias = "mlp.fc2.bias"
#define STEM_HF .cls = "embeddings.cls_token", .registers = "embeddings.register_tokens"
#define SCALE_HF .scale1 = "layer_scale1.lambda1", .scale2 = "layer_scale2.lambda1"
#define STEM_DINOV2_HF                                                                                                                                               \
    STEM_HF, SCALE_HF, .blocks = "encoder.layer.", .patch_weight = "embeddings.patch_embeddings.projection.weight", .patch_bias = "embeddings.patch_embeddings.projection.bias", \
        .positions = "embeddings.position_embeddings", .norm_weight = "layernorm.weight", .norm_bias = "layernorm.bias", FFN_OFFICIAL
#define ATTENTION_PROJ                                                                                                                                                           \
    .qkv_weight = {"attention.q_proj.weight", "attention.k_proj.weight", "attention.v_proj.weight"}, .qkv_bias = {"attention.q_proj.bias", "attention.k_proj.bias", "attention.v_proj.bias"}, \
    .proj_weight = "attention.o_proj.weight", .proj_bias = "attention.o_proj.bias"
#define SWIGLU_PROJ                                                                                                                            \
    .gate_weight = {"mlp.gate_proj.weight", "mlp.up_proj.weight"}, .gate_bias = {"mlp.gate_proj.bias", "mlp.up_proj.bias"}, .out_weight = "mlp.down_proj.weight", .out_bias = "mlp.down_proj.bias"

static const kd_vit_style dinov2_official = {
    STEM_OFFICIAL, ATTENTION_OFFICIAL, SCALE_OFFICIAL, FFN_OFFICIAL, .positions = "pos_embed", .registers = "register_tokens", .qkv_bias = {"attn.qkv.bias"},
    .gate_weight = {"mlp.w12.weight"}, .gate_bias = {"mlp.w12.bias"}, .out_weight = "mlp.w3.weight", .out_bias = "mlp.w3.bias",
};
static const kd_vit_style dinov3_official = {
    STEM_OFFICIAL, ATTENTION_OFFICIAL, SCALE_OFFICIAL, FFN_OFFICIAL, .registers = "storage_tokens", .qkv_bias = {"attn.qkv.bias"}, .gate_weight = {"mlp.w1.weight", "mlp.w2.weight"},
    .gate_bias = {"mlp.w1.bias", "mlp.w2.bias"}, .out_weight = "mlp.w3.weight", .out_bias = "mlp.w3.bias", .bias_mask = "attn.qkv.bias_mask", .periods = "rope_embed.periods",
};
/* As on the hub: what transformers writes in every version. */
static const kd_vit_style dinov2_hf = {
    STEM_DINOV2_HF,
    .qkv_weight = {"attention.attention.query.weight", "attention.attention.key.weight", "attention.attention.value.weight"},
    .qkv_bias = {"attention.attention.query.bias", "attention.attention.key.bias", "attention.attention.value.bias"},
    .proj_weight = "attention.output.dense.weight", .proj_bias = "attention.output.dense.bias",
    .gate_weight = {"mlp.weights_in.weight"}, .gate_bias = {"mlp.weights_in.bias"}, .out_weight = "mlp.weights_out.weight", .out_bias = "mlp.weights_out.bias",
};
/* As in the memory of transformers 5: a state_dict that was saved directly. */
static const kd_vit_style dinov2_hf5 = {STEM_DINOV2_HF, ATTENTION_PROJ, SWIGLU_PROJ};
static const kd_vit_style dinov3_hf = {
    STEM_HF, SCALE_HF, ATTENTION_PROJ, SWIGLU_PROJ, .blocks = "layer.", .patch_weight = "embeddings.patch_embeddings.weight", .patch_bias = "embeddings.patch_embeddings.bias",
    .norm_weight = "norm.weight", .norm_bias = "norm.bias",
    .fc1_weight = "mlp.up_proj.weight", .fc1_bias = "mlp.up_proj.bias", .fc2_weight = "mlp.down_proj.weight", .fc2_bias = "mlp.down_proj.bias",
};
/* timm's VisionTransformer: its DINOv2 and the plain ViT. SwiGLU is SwiGLUPacked: fc1 with twice the rows. */
static const kd_vit_style timm_vit = {
    STEM_OFFICIAL, ATTENTION_OFFICIAL, SCALE_OFFICIAL, FFN_OFFICIAL, .positions = "pos_embed", .registers = "reg_token", .qkv_bias = {"attn.qkv.bias"},
    .gate_weight = {"mlp.fc1.weight"}, .gate_bias = {"mlp.fc1.bias"}, .out_weight = "mlp.fc2.weight", .out_bias = "mlp.fc2.bias",
};
static const kd_vit_style timm_eva = {
    STEM_OFFICIAL, ATTENTION_OFFICIAL, FFN_OFFICIAL, .registers = "reg_token", .qkv_bias = {"attn.q_bias", NULL, "attn.v_bias"}, .scale1 = "gamma_1", .scale2 = "gamma_2",
    .gate_weight = {"mlp.fc1_g.weight", "mlp.fc1_x.weight"}, .gate_bias = {"mlp.fc1_g.bias", "mlp.fc1_x.bias"}, .out_weight = "mlp.fc2.weight", .out_bias = "mlp.fc2.bias",
};

/* -- finding ----------------------------------------------------------------------------------------------------------------------- */

int kd_vit_starts(const char *name, const char *prefix) { return strncmp(name, prefix, strlen(prefix)) == 0; }

int kd_vit_ends_in_path(const char *name, const char *tail)
{
    size_t n = strlen(name), k = strlen(tail);
    return n >= k && strcmp(name + n - k, tail) == 0 && (n == k || name[n - k - 1] == '.');
}

int kd_vit_is_float(kd_dtype t) { return t == KD_F32 || t == KD_F16 || t == KD_BF16 || t == KD_F64; }

int kd_vit_find(const kd_weights *w, const kd_vit_spec *s, const char *name)
{
    char full[KD_VIT_FULL_NAME];
    snprintf(full, sizeof full, "%s%s", s->prefix, name);
    return kd_weights_find(w, full);
}

int kd_vit_find_in_block(const kd_vit_file *f, int block, const char *name)
{
    char local[KD_VIT_FULL_NAME];
    if (!f->chunked) {
        snprintf(local, sizeof local, "%s%d.%s", f->blocks, block, name);
        return kd_vit_find(f->w, f->s, local);
    }
    for (int chunk = 0; chunk <= block; chunk++) {
        snprintf(local, sizeof local, "%s%d.%d.%s", f->blocks, chunk, block, name);
        int i = kd_vit_find(f->w, f->s, local);
        if (i >= 0)
            return i;
    }
    return -1;
}

int kd_vit_find_in_any_block(const kd_vit_file *f, const char *name)
{
    int found = -1;
    for (int block = 0; block < f->s->depth && found < 0; block++)
        found = kd_vit_find_in_block(f, block, name);
    return found;
}

const char *kd_vit_full_name(const kd_vit_file *f, int block, const char *name, char out[KD_VIT_FULL_NAME])
{
    if (block < 0)
        snprintf(out, KD_VIT_FULL_NAME, "%s%s", f->s->prefix, name);
    else
        snprintf(out, KD_VIT_FULL_NAME, "%s%s%s%d.%s", f->s->prefix, f->blocks, f->chunked ? "*." : "", block, name);
    return out;
}

/* "12.rest": 12 and the rest, or -1. */
static int leading_number(const char *p, const char **rest)
{
    int n = 0;
    if (*p < '0' || *p > '9' || (*p == '0' && p[1] != '.'))
        return -1;
    for (; *p >= '0' && *p <= '9'; p++)
        if ((n = n * 10 + (*p - '0')) >= KD_VIT_MAX_DEPTH)
            return -1;
    if (*p != '.')
        return -1;
    *rest = p + 1;
    return n;
}

int kd_vit_block_number(const kd_vit_file *f, const char *name, const char **rest)
{
    if (!kd_vit_starts(name, f->blocks))
        return -1;
    int n = leading_number(name + strlen(f->blocks), rest);
    return n >= 0 && f->chunked ? leading_number(*rest, rest) : n;
}

/* Two marks of one layout, so that a file which lacks one of them is still called by its layout. */
static int either(const kd_weights *w, const kd_vit_spec *s, const char *a, const char *b) { return kd_vit_find(w, s, a) >= 0 || kd_vit_find(w, s, b) >= 0; }

static const kd_vit_style *style_of(const kd_weights *w, const kd_vit_spec *s)
{
    if (s->family == KD_VIT_DINOV3)
        return s->layout == KD_VIT_LAYOUT_OFFICIAL ? &dinov3_official : s->layout == KD_VIT_LAYOUT_HF ? &dinov3_hf : &timm_eva;
    if (s->layout == KD_VIT_LAYOUT_HF)
        return either(w, s, "encoder.layer.0.attention.q_proj.weight", "encoder.layer.0.attention.k_proj.weight") ? &dinov2_hf5 : &dinov2_hf;
    return s->family == KD_VIT_DINOV2 && s->layout == KD_VIT_LAYOUT_OFFICIAL ? &dinov2_official : &timm_vit;
}

void kd_vit_look(kd_vit_file *f, const kd_weights *w, const kd_vit_spec *s)
{
    *f = (kd_vit_file){.w = w, .s = s, .style = style_of(w, s)};
    f->blocks = f->style->blocks;
    if (f->style == &dinov3_hf && either(w, s, "model.layer.0.norm1.weight", "model.layer.0.norm2.weight"))
        f->blocks = "model.layer."; /* transformers 5 in memory */
    f->chunked = f->style->blocks[0] == 'b' && either(w, s, "blocks.0.0.norm1.weight", "blocks.0.0.norm2.weight");
    int positions = f->style->positions != NULL ? kd_vit_find(w, s, f->style->positions) : -1;
    if (positions >= 0) {
        kd_tensor t = kd_weights_info(w, positions);
        f->class_row = t.rank != 3 || t.shape[1] != (int64_t)s->pos_grid * kd_vit_pos_columns(s);
    }
    for (int i = 0; i < 3; i++)
        f->has_bias[i] = f->style->qkv_bias[i] != NULL && kd_vit_find_in_any_block(f, f->style->qkv_bias[i]) >= 0;
    f->has_mask = f->style->bias_mask != NULL && kd_vit_find_in_any_block(f, f->style->bias_mask) >= 0;
}

/* -- the list ---------------------------------------------------------------------------------------------------------------------- */

#define SOURCE(n, ...) (kd_vit_source){.name = (n), .rank = (int)(sizeof((int64_t[]){__VA_ARGS__}) / sizeof(int64_t)), .shape = {__VA_ARGS__}}
#define ONE(n, ...) (kd_vit_param){.name = (n), .parts = 1, .part = {SOURCE(__VA_ARGS__)}}

int kd_vit_stem_params(const kd_vit_file *f, kd_vit_param out[KD_VIT_STEM_PARAMS])
{
    const kd_vit_spec *s = f->s;
    const kd_vit_style *y = f->style;
    const int64_t d = s->width, p = s->patch, g = (int64_t)s->pos_grid * kd_vit_pos_columns(s);
    int n = 0;
    out[n++] = ONE("cls_token", y->cls, 1, 1, d);
    if (y->positions != NULL && f->class_row)
        out[n++] = ONE("pos_embed", y->positions, 1, 1 + g, d);
    else if (y->positions != NULL)
        out[n++] = (kd_vit_param){.name = "pos_embed", .parts = 2, .part = {SOURCE(NULL, d), SOURCE(y->positions, 1, g, d)}};
    if (s->registers > 0)
        out[n++] = ONE("register_tokens", y->registers, 1, s->registers, d);
    out[n++] = ONE("patch_embed.proj.weight", y->patch_weight, d, 3, p, p);
    out[n++] = ONE("patch_embed.proj.bias", y->patch_bias, d);
    out[n++] = ONE("norm.weight", y->norm_weight, d);
    out[n++] = ONE("norm.bias", y->norm_bias, d);
    return n;
}

static kd_vit_param qkv_weight(const kd_vit_file *f)
{
    const int64_t d = f->s->width;
    const char *const *name = f->style->qkv_weight;
    if (name[1] == NULL)
        return ONE("attn.qkv.weight", name[0], 3 * d, d);
    return (kd_vit_param){.name = "attn.qkv.weight", .parts = 3, .part = {SOURCE(name[0], d, d), SOURCE(name[1], d, d), SOURCE(name[2], d, d)}};
}

/* Zeros where the file has no bias: k's in Hugging Face's and timm's DINOv3, all three in ViT-7B. */
static kd_vit_param qkv_bias(const kd_vit_file *f)
{
    const int64_t d = f->s->width;
    const char *const *name = f->style->qkv_bias;
    kd_vit_param p = {.name = "attn.qkv.bias", .parts = 3};
    if (name[1] == NULL && name[2] == NULL)
        return ONE("attn.qkv.bias", f->has_bias[0] ? name[0] : NULL, 3 * d);
    for (int i = 0; i < 3; i++)
        p.part[i] = SOURCE(f->has_bias[i] ? name[i] : NULL, d);
    return p;
}

static int ffn_params(const kd_vit_file *f, kd_vit_param *out)
{
    const kd_vit_style *y = f->style;
    const int64_t d = f->s->width, h = f->s->ffn_hidden;
    if (f->s->ffn == KD_FFN_GELU) {
        out[0] = ONE("mlp.fc1.weight", y->fc1_weight, h, d);
        out[1] = ONE("mlp.fc1.bias", y->fc1_bias, h);
        out[2] = ONE("mlp.fc2.weight", y->fc2_weight, d, h);
        out[3] = ONE("mlp.fc2.bias", y->fc2_bias, d);
        return 4;
    }
    if (y->gate_weight[1] == NULL) {
        out[0] = ONE("mlp.w12.weight", y->gate_weight[0], 2 * h, d);
        out[1] = ONE("mlp.w12.bias", y->gate_bias[0], 2 * h);
    } else {
        out[0] = (kd_vit_param){.name = "mlp.w12.weight", .parts = 2, .part = {SOURCE(y->gate_weight[0], h, d), SOURCE(y->gate_weight[1], h, d)}};
        out[1] = (kd_vit_param){.name = "mlp.w12.bias", .parts = 2, .part = {SOURCE(y->gate_bias[0], h), SOURCE(y->gate_bias[1], h)}};
    }
    out[2] = ONE("mlp.w3.weight", y->out_weight, d, h);
    out[3] = ONE("mlp.w3.bias", y->out_bias, d);
    return 4;
}

int kd_vit_block_params(const kd_vit_file *f, kd_vit_param out[KD_VIT_BLOCK_PARAMS])
{
    const kd_vit_style *y = f->style;
    const int64_t d = f->s->width;
    int n = 0;
    out[n++] = ONE("norm1.weight", "norm1.weight", d);
    out[n++] = ONE("norm1.bias", "norm1.bias", d);
    out[n++] = qkv_weight(f);
    out[n++] = qkv_bias(f);
    out[n++] = ONE("attn.proj.weight", y->proj_weight, d, d);
    out[n++] = ONE("attn.proj.bias", y->proj_bias, d);
    out[n++] = ONE("norm2.weight", "norm2.weight", d);
    out[n++] = ONE("norm2.bias", "norm2.bias", d);
    n += ffn_params(f, out + n);
    if (f->s->layer_scale) {
        out[n++] = ONE("ls1.gamma", y->scale1, d);
        out[n++] = ONE("ls2.gamma", y->scale2, d);
    }
    return n;
}

/* -- reading ----------------------------------------------------------------------------------------------------------------------- */

static size_t numel(const kd_vit_source *p)
{
    size_t n = 1;
    for (int i = 0; i < p->rank; i++)
        n *= (size_t)p->shape[i];
    return n;
}

/* dinov3/layers/attention.py LinearKMaskedBias: bias * bias_mask, where the mask is 1 for q and v and 0 for k. The mask is registered as NaN and some files keep it so: then 1, 0, 1. */
static kd_status mask_bias(const kd_vit_file *f, int block, float *bias, kd_err *err)
{
    size_t d = (size_t)f->s->width, n = 3 * d;
    int i = kd_vit_find_in_block(f, block, f->style->bias_mask);
    float *mask = NULL;
    kd_status status = KD_OK;
    KD_TRY(kd_alloc_array(&mask, n, sizeof *mask, err));
    if (i >= 0)
        KD_TRY_TO(end, status, kd_weights_read_f32_any(f->w, i, mask, n, err));
    if (i < 0 || kd_first_nonfinite(mask, n) < n)
        for (size_t k = 0; k < n; k++)
            mask[k] = 1;
    for (size_t k = 0; k < n; k++)
        bias[k] = k / d == 1 ? 0 : bias[k] * mask[k];
end:
    kd_free(mask);
    return status;
}

static kd_status read_parts(const kd_vit_file *f, int block, const kd_vit_param *p, float *out, kd_err *err)
{
    for (int i = 0; i < p->parts; i++) {
        const kd_vit_source *part = &p->part[i];
        size_t n = numel(part);
        if (part->name == NULL) {
            memset(out, 0, n * sizeof *out);
        } else {
            char full[KD_VIT_FULL_NAME];
            int at = block < 0 ? kd_vit_find(f->w, f->s, part->name) : kd_vit_find_in_block(f, block, part->name);
            if (at < 0)
                return kd_fail(err, KD_EFAIL, "%s: tensor '%s' is missing, and %s needs it", kd_weights_path(f->w), kd_vit_full_name(f, block, part->name, full), f->s->name);
            KD_TRY(kd_weights_read_f32(f->w, at, out, n, err));
        }
        out += n;
    }
    return KD_OK;
}

kd_status kd_vit_read(const kd_weights *w, const kd_vit_spec *s, const char *name, float *out, size_t count, kd_err *err)
{
    kd_vit_file f;
    kd_vit_param list[KD_VIT_STEM_PARAMS > KD_VIT_BLOCK_PARAMS ? KD_VIT_STEM_PARAMS : KD_VIT_BLOCK_PARAMS];
    const char *rest = name;
    kd_vit_look(&f, w, s);
    int block = kd_vit_starts(name, "blocks.") ? leading_number(name + strlen("blocks."), &rest) : -1;
    int n = block >= 0 ? kd_vit_block_params(&f, list) : kd_vit_stem_params(&f, list);
    for (int i = 0; i < n && block < s->depth; i++) {
        size_t have = 0;
        if (strcmp(list[i].name, rest) != 0)
            continue;
        for (int k = 0; k < list[i].parts; k++)
            have += numel(&list[i].part[k]);
        if (have != count)
            return kd_fail(err, KD_EFAIL, "%s: parameter %s of %s has %zu values, where %zu were expected", kd_weights_path(w), name, s->name, have, count);
        KD_TRY(read_parts(&f, block, &list[i], out, err));
        return f.has_mask && strcmp(rest, "attn.qkv.bias") == 0 ? mask_bias(&f, block, out, err) : KD_OK;
    }
    return kd_fail(err, KD_EFAIL, "%s: %s has no parameter '%s'", kd_weights_path(w), s->name, name);
}

/* Vision transformers: DINOv2 (dinov2/models/vision_transformer.py), DINOv3 (dinov3/models/vision_transformer.py) and the plain ViT of timm and DeiT. One trunk: they differ in how a patch's
 * place is told (a learned table that is added once, or q and k turned in every block), in registers, LayerScale and the FFN. */
#include <stdio.h>

#include "kernels/nn/model_builders.h"

enum { NAME = 96 };

static const char *sub(char buf[NAME], int block, const char *part) {
    snprintf(buf, NAME, "blocks.%d.%s", block, part);
    return buf;
}

static kd_val join(kd_graph *g, kd_val residual, kd_val x, const kd_vit_spec *s, int block, const char *gamma) {
    char buf[NAME];
    return s->layer_scale ? kd_graph_scale_add(g, residual, x, sub(buf, block, gamma)) : kd_graph_add(g, residual, x);
}

static kd_val feed_forward(kd_graph *g, kd_val x, const kd_vit_spec *s, int block) {
    char buf[NAME];
    if (s->ffn == KD_FFN_SWIGLU) {
        x = kd_graph_linear(g, x, sub(buf, block, "mlp.w12"), 2 * s->ffn_hidden, 1);
        x = kd_graph_silu_gate(g, x);
        return kd_graph_linear(g, x, sub(buf, block, "mlp.w3"), s->width, 1);
    }
    x = kd_graph_linear(g, x, sub(buf, block, "mlp.fc1"), s->ffn_hidden, 1);
    x = kd_graph_act(g, x, KD_ACT_GELU);
    return kd_graph_linear(g, x, sub(buf, block, "mlp.fc2"), s->width, 1);
}

/* What the blocks share. */
typedef struct trunk {
    kd_graph *g;
    const kd_vit_spec *s;
    const kd_model_info *m;
    const kd_model_options *o;
    int64_t map[3]; /* patches: rows, columns, width */
} trunk;

/* Class token and registers: what stands before the patches. */
static int prefix_tokens(const kd_vit_spec *s) {
    return 1 + s->registers;
}

/* x + ls1 * drop(attention(norm1 x)), then x + ls2 * drop(ffn(norm2 x)) */
static kd_val block(const trunk *t, kd_val x, int i) {
    kd_graph *g = t->g;
    const kd_vit_spec *s = t->s;
    char buf[NAME];
    float eps = (float)s->ln_eps;
    kd_val y = kd_graph_layer_norm(g, x, sub(buf, i, "norm1"), eps);
    y = kd_graph_linear(g, y, sub(buf, i, "attn.qkv"), 3 * s->width, 1);
    if (s->periods > 0)
        y = kd_graph_rope(g, y, s->heads, prefix_tokens(s), (int)t->map[0], (int)t->map[1], s->period, s->periods);
    y = kd_graph_attention(g, y, s->heads);
    y = kd_graph_linear(g, y, sub(buf, i, "attn.proj"), s->width, 1);
    x = join(g, x, kd_model_drop_path(g, y, t->m, t->o, 2 * i), s, i, "ls1.gamma");
    y = feed_forward(g, kd_graph_layer_norm(g, x, sub(buf, i, "norm2"), eps), s, i);
    return join(g, x, kd_model_drop_path(g, y, t->m, t->o, 2 * i + 1), s, i, "ls2.gamma");
}

/* Normalised images -> tokens before the first block. */
static kd_val embed(trunk *t, kd_val x) {
    kd_graph *g = t->g;
    const kd_vit_spec *s = t->s;
    int rank;
    kd_graph_set_init(g, KD_INIT_TORCH); /* the libraries leave the patch embedding at torch's default */
    x = kd_graph_conv2d(g, x, "patch_embed.proj", s->width, s->patch, s->patch, 0, 1);
    kd_graph_set_init(g, KD_INIT_TRUNC_NORMAL_02);
    kd_graph_shape(g, x, &rank, t->map);
    x = kd_graph_reshape(g, x, 2, (int64_t[]){t->map[0] * t->map[1], s->width});
    return kd_graph_tokens(g, x, "cls_token", s->periods > 0 ? NULL : "pos_embed", s->registers ? "register_tokens" : NULL, s->registers);
}

/* The patches of all tokens, as a map. */
static kd_val patch_map(const trunk *t, kd_val x) {
    return kd_graph_reshape(t->g, kd_graph_token_slice(t->g, x, prefix_tokens(t->s), (int)(t->map[0] * t->map[1])), 3, t->map);
}

/* ---- the model that the library has: every block, the final norm ---- */

kd_model_taps kd_vit_build(kd_graph *g, kd_val x, const kd_model_info *m, const kd_model_options *o) {
    const kd_vit_spec *s = &m->vit;
    trunk t = {.g = g, .s = s, .m = m, .o = o};
    kd_model_taps taps = {0};
    int64_t width = s->width;
    x = embed(&t, x);
    if (s->family == KD_VIT_DINOV2) { /* in the official file, zero, unused in inference */
        int64_t mask[2] = {1, width};
        kd_graph_carry(g, "mask_token", 2, mask);
    }
    for (int i = 0; i < s->depth; i++) {
        x = block(&t, x, i);
        kd_model_add_tap(g, &taps, patch_map(&t, x), "blocks.%d", i);
    }
    x = kd_graph_as_f32(g, kd_graph_layer_norm(g, x, "norm", (float)s->ln_eps));
    kd_graph_set_init(g, KD_INIT_TORCH);

    taps.cls = kd_graph_reshape(g, kd_graph_token_slice(g, x, 0, 1), 1, &width);
    taps.pooled = taps.cls; /* DINOv2, DINOv3 and timm (global_pool "token") pool the class token */
    taps.map = patch_map(&t, x);
    taps.map_h = (int)t.map[0];
    taps.map_w = (int)t.map[1];
    return taps;
}

/* ---- chosen features of chosen layers ---- */

static void tap(kd_graph *g, kd_val v, const char *feature, int layer) {
    char name[NAME];
    snprintf(name, sizeof name, "%s.%d", feature, layer);
    kd_graph_output(g, v, name);
}

/* x: all tokens of a layer, or of several side by side. */
static void tap_features(const trunk *t, kd_val x, int layer, unsigned features) {
    kd_graph *g = t->g;
    int rank, patches = (int)(t->map[0] * t->map[1]);
    int64_t shape[3];
    kd_graph_shape(g, x, &rank, shape);
    int64_t width = shape[1], map[3] = {t->map[0], t->map[1], width};
    if (features & KD_WANT_CLS)
        tap(g, kd_graph_reshape(g, kd_graph_token_slice(g, x, 0, 1), 1, &width), "cls", layer);
    if (features & KD_WANT_REGISTERS)
        tap(g, kd_graph_token_slice(g, x, 1, t->s->registers), "registers", layer);
    if (!(features & (KD_WANT_PATCH | KD_WANT_MEAN)))
        return;
    kd_val patch = kd_graph_token_slice(g, x, prefix_tokens(t->s), patches);
    if (features & KD_WANT_PATCH)
        tap(g, kd_graph_reshape(g, patch, 3, map), "patch", layer);
    if (features & KD_WANT_MEAN)
        tap(g, kd_graph_mean_tokens(g, patch), "mean", layer);
}

void kd_vit_build_layers(kd_graph *g, kd_val x, const kd_model_info *m, const kd_layer_choice *c) {
    const kd_vit_spec *s = &m->vit;
    trunk t = {.g = g, .s = s, .m = m, .o = &(kd_model_options){0}};
    kd_val layer[KD_LAYERS_MAX] = {0};
    int last = c->layers - 1; /* the earliest block: layers count from the end */
    x = embed(&t, x);
    for (int i = 0, next = last; next >= 0; i++) { /* blocks after the last one that is asked for aren't built */
        x = block(&t, x, i);
        if (s->depth - i != c->layer[next])
            continue;
        layer[next] = x;
        if (c->norm)
            layer[next] = next == last ? kd_graph_layer_norm(g, x, "norm", (float)s->ln_eps) : kd_graph_layer_norm_again(g, x, "norm");
        kd_graph_as_f32(g, layer[next]);
        next--;
    }
    if (!c->concat) {
        for (int k = 0; k < c->layers; k++)
            tap_features(&t, layer[k], c->layer[k], c->features);
        return;
    }
    x = layer[last];
    for (int k = last - 1; k >= 0; k--)
        x = kd_graph_concat(g, x, layer[k]);
    tap_features(&t, x, c->layer[0], c->features);
}

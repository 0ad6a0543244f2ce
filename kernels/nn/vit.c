/* Vision transformers: DINOv2 (dinov2/models/vision_transformer.py) and timm's plain ViT, which differ only in LayerScale, the mask token and the FFN of the giant. */
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

/* x + ls1 * attention(norm1 x), then x + ls2 * ffn(norm2 x) */
static kd_val block(kd_graph *g, kd_val x, const kd_vit_spec *s, int i) {
    char buf[NAME];
    float eps = (float)s->ln_eps;
    kd_val y = kd_graph_layer_norm(g, x, sub(buf, i, "norm1"), eps);
    y = kd_graph_linear(g, y, sub(buf, i, "attn.qkv"), 3 * s->width, 1);
    y = kd_graph_attention(g, y, s->heads);
    y = kd_graph_linear(g, y, sub(buf, i, "attn.proj"), s->width, 1);
    x = join(g, x, y, s, i, "ls1.gamma");
    y = kd_graph_layer_norm(g, x, sub(buf, i, "norm2"), eps);
    return join(g, x, feed_forward(g, y, s, i), s, i, "ls2.gamma");
}

kd_model_taps kd_vit_build(kd_graph *g, kd_val x, const kd_model_info *m) {
    const kd_vit_spec *s = &m->vit;
    kd_model_taps taps = {0};
    int rank;
    int64_t map[3], tokens[2], width = s->width;

    kd_graph_set_init(g, KD_INIT_TORCH); /* both libraries leave the patch embedding at torch's default */
    x = kd_graph_conv2d(g, x, "patch_embed.proj", s->width, s->patch, s->patch, 0, 1);
    kd_graph_set_init(g, KD_INIT_TRUNC_NORMAL_02);
    kd_graph_shape(g, x, &rank, map);
    tokens[0] = map[0] * map[1];
    tokens[1] = width;
    x = kd_graph_reshape(g, x, 2, tokens);
    x = kd_graph_tokens(g, x, "cls_token", "pos_embed");
    if (s->family == KD_VIT_DINOV2) { /* in the official file, zero, unused in inference */
        int64_t mask[2] = {1, width};
        kd_graph_carry(g, "mask_token", 2, mask, 0);
    }
    for (int i = 0; i < s->depth; i++)
        x = block(g, x, s, i);
    x = kd_graph_as_f32(g, kd_graph_layer_norm(g, x, "norm", (float)s->ln_eps));
    kd_graph_set_init(g, KD_INIT_TORCH);

    taps.cls = kd_graph_reshape(g, kd_graph_token_slice(g, x, 0, 1), 1, &width);
    taps.pooled = taps.cls; /* DINOv2 and timm (global_pool "token") both pool the class token */
    taps.map = kd_graph_reshape(g, kd_graph_token_slice(g, x, 1, (int)tokens[0]), 3, map);
    taps.map_h = (int)map[0];
    taps.map_w = (int)map[1];
    return taps;
}

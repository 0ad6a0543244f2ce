/* ConvNeXt as torchvision/models/convnext.py builds it: depthwise 7x7 convolutions and perceptrons over channels, with layer norm and LayerScale. */
#include <stdio.h>

#include "kernels/nn/model_builders.h"

static const float LN_EPS = 1e-6f, LAYER_SCALE = 1e-6f;
enum { STAGES = 4, STEM = 4, EXPANSION = 4, NAME = 64, BLOCK_NAME = 32, CLASSES = 1000 };

typedef struct convnext_config {
    int blocks[STAGES], channels[STAGES];
} convnext_config;

static const char *sub(char buf[NAME], const char *block, const char *part) {
    snprintf(buf, NAME, "%s.%s", block, part);
    return buf;
}

/* x + layer_scale * drop(linear(gelu(linear(norm(depthwise x))))) */
static kd_val block(kd_graph *g, kd_val x, const char *name, int channels, const kd_model_info *m, const kd_model_options *o, int number) {
    char buf[NAME];
    kd_val y = kd_graph_conv2d_grouped(g, x, sub(buf, name, "block.0"), channels, 7, 1, 3, channels, 1);
    y = kd_graph_layer_norm(g, y, sub(buf, name, "block.2"), LN_EPS);
    y = kd_graph_linear(g, y, sub(buf, name, "block.3"), EXPANSION * channels, 1);
    y = kd_graph_act(g, y, KD_ACT_GELU);
    y = kd_graph_linear(g, y, sub(buf, name, "block.5"), channels, 1);
    y = kd_model_drop_path(g, y, m, o, number);
    return kd_graph_scale_add_shaped(g, x, y, sub(buf, name, "layer_scale"), 3, (int64_t[]){channels, 1, 1}, LAYER_SCALE);
}

/* norm, then a convolution without overlap that halves the sides */
static kd_val downsample(kd_graph *g, kd_val x, int layer, int channels) {
    char name[NAME];
    snprintf(name, sizeof name, "features.%d.0", layer);
    x = kd_graph_layer_norm(g, x, name, LN_EPS);
    snprintf(name, sizeof name, "features.%d.1", layer);
    return kd_graph_conv2d(g, x, name, channels, 2, 2, 0, 1);
}

static kd_model_taps build(kd_graph *g, kd_val x, const kd_model_info *m, const kd_model_options *o) {
    const convnext_config *c = m->config;
    kd_model_taps taps = {0};
    int number = 0;
    kd_graph_set_init(g, KD_INIT_CONVNEXT);
    x = kd_graph_conv2d(g, x, "features.0.0", c->channels[0], STEM, STEM, 0, 1);
    x = kd_graph_layer_norm(g, x, "features.0.1", LN_EPS);
    for (int stage = 0; stage < STAGES; stage++) {
        int layer = 2 * stage + 1;
        if (stage > 0)
            x = downsample(g, x, layer - 1, c->channels[stage]);
        for (int i = 0; i < c->blocks[stage]; i++) {
            char name[BLOCK_NAME];
            snprintf(name, sizeof name, "features.%d.%d", layer, i);
            x = block(g, x, name, c->channels[stage], m, o, number++);
        }
        kd_model_add_tap(g, &taps, x, "features.%d", layer);
    }
    kd_model_set_map(g, &taps, x);
    taps.pooled = taps.cls = kd_graph_as_f32(g, kd_graph_layer_norm(g, taps.pooled, "classifier.0", LN_EPS)); /* what torchvision's classifier.2 reads */
    kd_graph_carry_linear(g, "classifier.2", m->width, CLASSES);
    kd_graph_set_init(g, KD_INIT_TORCH);
    return taps;
}

/* ---- the family ---- */

static const convnext_config tiny = {{3, 3, 9, 3}, {96, 192, 384, 768}}, small = {{3, 3, 27, 3}, {96, 192, 384, 768}};
static const kd_model_entry entries[] = {{"convnext_tiny", 768, &tiny, 18}, {"convnext_small", 768, &small, 36}};

/* As many blocks in the third stage, of this width. */
static int matches(const kd_weights *w, const char *prefix, const kd_model_entry *e) {
    const convnext_config *c = e->config;
    int64_t shape[4] = {c->channels[2], 1, 7, 7};
    char last[NAME], beyond[NAME];
    snprintf(last, sizeof last, "features.5.%d.block.0.weight", c->blocks[2] - 1);
    snprintf(beyond, sizeof beyond, "features.5.%d.block.0.weight", c->blocks[2]);
    return kd_model_file_has(w, prefix, last, 4, shape) && !kd_model_file_has(w, prefix, beyond, 0, NULL);
}

const kd_model_family kd_convnext_family = {
    .kind = KD_MODEL_CONVNEXT,
    .library = "torchvision",
    .norm = KD_MODEL_LAYER_NORM,
    .multiple = 1,
    .smallest = 32, /* no layer is padded: below, nothing is left */
    .usual = 224,
    .mean = KD_IMAGENET_MEAN,
    .std = KD_IMAGENET_STD,
    .entries = entries,
    .count = sizeof entries / sizeof *entries,
    .anchor = "features.1.0.layer_scale",
    .matches = matches,
    .build = build,
};

/* MobileNetV3 as torchvision/models/mobilenetv3.py builds it: inverted residual blocks with depthwise convolutions and squeeze-and-excitation. */
#include <stdio.h>

#include "kernels/nn/model_builders.h"

static const float BN_EPS = 1e-3f, BN_MOMENTUM = 0.01f; /* mobilenetv3.py: norm_layer = partial(BatchNorm2d, eps=0.001, momentum=0.01) */
enum { FIRST_CHANNELS = 16, LAST_EXPANSION = 6, MOST_BLOCKS = 15, NAME = 64, CLASSES = 1000 };

typedef struct block_config {
    int expanded, kernel, stride;
    int squeeze;   /* channels inside squeeze-and-excitation; 0: the block has none */
    int hardswish; /* else ReLU */
    int out;
} block_config;

typedef struct mobilenet_config {
    int blocks;
    block_config block[MOST_BLOCKS];
    int hidden; /* width inside the classifier */
} mobilenet_config;

/* convolution, batch norm, activation: torchvision's Conv2dNormActivation under `name`, which pads to keep the size at stride 1 */
static kd_val conv_bn(kd_graph *g, kd_val x, kd_val residual, const char *name, int out, int kernel, int stride, int groups, kd_act act) {
    char buf[NAME + 8];
    snprintf(buf, sizeof buf, "%s.0", name);
    x = kd_graph_conv2d_grouped(g, x, buf, out, kernel, stride, (kernel - 1) / 2, groups, 0);
    snprintf(buf, sizeof buf, "%s.1", name);
    return kd_graph_batch_norm(g, x, residual, buf, BN_EPS, BN_MOMENTUM, act);
}

/* x times a gate for each channel, computed from the mean of all channels */
static kd_val squeeze_excitation(kd_graph *g, kd_val x, const char *name, int channels, int squeeze) {
    char buf[NAME + 8];
    kd_val s = kd_graph_reshape(g, kd_graph_mean_tokens(g, x), 3, (int64_t[]){1, 1, channels});
    snprintf(buf, sizeof buf, "%s.fc1", name);
    s = kd_graph_act(g, kd_graph_conv2d(g, s, buf, squeeze, 1, 1, 0, 1), KD_ACT_RELU);
    snprintf(buf, sizeof buf, "%s.fc2", name);
    s = kd_graph_act(g, kd_graph_conv2d(g, s, buf, channels, 1, 1, 0, 1), KD_ACT_HARDSIGMOID);
    return kd_graph_channel_gate(g, x, s);
}

/* x -> [conv1x1 to `expanded`] -> depthwise -> [squeeze-and-excitation] -> conv1x1 to `out` -> + x where the shape stays. Parts that are missing take no number. */
static kd_val block(kd_graph *g, kd_val x, int number, const block_config *c) {
    char name[NAME];
    int rank, part = 0;
    int64_t shape[3];
    kd_graph_shape(g, x, &rank, shape);
    kd_act act = c->hardswish ? KD_ACT_HARDSWISH : KD_ACT_RELU;
    kd_val y = x;
    if (c->expanded != shape[2]) {
        snprintf(name, sizeof name, "features.%d.block.%d", number, part++);
        y = conv_bn(g, y, -1, name, c->expanded, 1, 1, 1, act);
    }
    snprintf(name, sizeof name, "features.%d.block.%d", number, part++);
    y = conv_bn(g, y, -1, name, c->expanded, c->kernel, c->stride, c->expanded, act);
    if (c->squeeze) {
        snprintf(name, sizeof name, "features.%d.block.%d", number, part++);
        y = squeeze_excitation(g, y, name, c->expanded, c->squeeze);
    }
    snprintf(name, sizeof name, "features.%d.block.%d", number, part);
    return conv_bn(g, y, c->stride == 1 && c->out == shape[2] ? x : -1, name, c->out, 1, 1, 1, KD_ACT_NONE);
}

static kd_model_taps build(kd_graph *g, kd_val x, const kd_model_info *m, const kd_model_options *o) {
    const mobilenet_config *c = m->config;
    const block_config *last = &c->block[c->blocks - 1];
    kd_model_taps taps = {0};
    char name[NAME];
    (void)o; /* torchvision's has no stochastic depth */
    kd_graph_set_init(g, KD_INIT_MOBILENET);
    x = conv_bn(g, x, -1, "features.0", FIRST_CHANNELS, 3, 2, 1, KD_ACT_HARDSWISH);
    kd_model_add_tap(g, &taps, x, "features.0");
    for (int i = 0; i < c->blocks; i++) {
        x = block(g, x, i + 1, &c->block[i]);
        kd_model_add_tap(g, &taps, x, "features.%d", i + 1);
    }
    snprintf(name, sizeof name, "features.%d", c->blocks + 1);
    x = conv_bn(g, x, -1, name, LAST_EXPANSION * last->out, 1, 1, 1, KD_ACT_HARDSWISH);
    kd_model_add_tap(g, &taps, x, "%s", name);
    kd_graph_carry_linear(g, "classifier.0", m->width, c->hidden);
    kd_graph_carry_linear(g, "classifier.3", c->hidden, CLASSES);
    kd_graph_set_init(g, KD_INIT_TORCH);
    kd_model_set_map(g, &taps, x);
    return taps;
}

/* ---- the family ---- */

static const mobilenet_config small = {
    11,
    {{16, 3, 2, 8, 0, 16},
     {72, 3, 2, 0, 0, 24},
     {88, 3, 1, 0, 0, 24},
     {96, 5, 2, 24, 1, 40},
     {240, 5, 1, 64, 1, 40},
     {240, 5, 1, 64, 1, 40},
     {120, 5, 1, 32, 1, 48},
     {144, 5, 1, 40, 1, 48},
     {288, 5, 2, 72, 1, 96},
     {576, 5, 1, 144, 1, 96},
     {576, 5, 1, 144, 1, 96}},
    1024,
};
static const mobilenet_config large = {
    15,
    {{16, 3, 1, 0, 0, 16},
     {64, 3, 2, 0, 0, 24},
     {72, 3, 1, 0, 0, 24},
     {72, 5, 2, 24, 0, 40},
     {120, 5, 1, 32, 0, 40},
     {120, 5, 1, 32, 0, 40},
     {240, 3, 2, 0, 1, 80},
     {200, 3, 1, 0, 1, 80},
     {184, 3, 1, 0, 1, 80},
     {184, 3, 1, 0, 1, 80},
     {480, 3, 1, 120, 1, 112},
     {672, 3, 1, 168, 1, 112},
     {672, 5, 2, 168, 1, 160},
     {960, 5, 1, 240, 1, 160},
     {960, 5, 1, 240, 1, 160}},
    1280,
};
static const kd_model_entry entries[] = {{"mobilenet_v3_small", 576, &small, 0}, {"mobilenet_v3_large", 960, &large, 0}};

/* The last convolution, of this width. */
static int matches(const kd_weights *w, const char *prefix, const kd_model_entry *e) {
    const mobilenet_config *c = e->config;
    int64_t shape[4] = {e->width, c->block[c->blocks - 1].out, 1, 1};
    char name[NAME];
    snprintf(name, sizeof name, "features.%d.0.weight", c->blocks + 1);
    return kd_model_file_has(w, prefix, name, 4, shape);
}

const kd_model_family kd_mobilenet_family = {
    .kind = KD_MODEL_MOBILENET,
    .library = "torchvision",
    .norm = KD_MODEL_BATCH_NORM,
    .multiple = 1,
    .smallest = 32,
    .usual = 224,
    .mean = KD_IMAGENET_MEAN,
    .std = KD_IMAGENET_STD,
    .entries = entries,
    .count = sizeof entries / sizeof *entries,
    .anchor = "features.1.block.0.0.weight",
    .matches = matches,
    .build = build,
};

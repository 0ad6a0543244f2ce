/* ResNets as torchvision/models/resnet.py builds them: names, order of operations, initialisation. */
#include <stdio.h>

#include "kernels/nn/model_builders.h"

static const float BN_EPS = 1e-5f, BN_MOMENTUM = 0.1f; /* torch.nn.BatchNorm2d */
enum { STAGES = 4, FIRST_CHANNELS = 64, EXPANSION = 4, NAME = 64, BLOCK_NAME = 32, CLASSES = 1000 };

typedef struct resnet_config {
    int blocks[STAGES];
    int bottleneck; /* blocks of 1x1, 3x3, 1x1 convolutions, four times as wide at their ends */
} resnet_config;

static const char *sub(char buf[NAME], const char *block, const char *part) {
    snprintf(buf, NAME, "%s.%s", block, part);
    return buf;
}

/* What a block adds its branch to: x, or conv1x1 bn of it where the shape changes. */
static kd_val shortcut(kd_graph *g, kd_val x, const char *name, int channels, int stride, int downsample) {
    char buf[NAME];
    if (!downsample)
        return x;
    x = kd_graph_conv2d(g, x, sub(buf, name, "downsample.0"), channels, 1, stride, 0, 0);
    return kd_graph_batch_norm(g, x, -1, sub(buf, name, "downsample.1"), BN_EPS, BN_MOMENTUM, KD_ACT_NONE);
}

/* x -> conv3x3 bn relu conv3x3 bn -> + shortcut -> relu. The join lies inside the last batch norm. */
static kd_val basic_block(kd_graph *g, kd_val x, const char *name, int channels, int stride, int downsample) {
    char buf[NAME];
    kd_val y = kd_graph_conv2d(g, x, sub(buf, name, "conv1"), channels, 3, stride, 1, 0);
    y = kd_graph_batch_norm(g, y, -1, sub(buf, name, "bn1"), BN_EPS, BN_MOMENTUM, KD_ACT_RELU);
    y = kd_graph_conv2d(g, y, sub(buf, name, "conv2"), channels, 3, 1, 1, 0);
    x = shortcut(g, x, name, channels, stride, downsample);
    return kd_graph_batch_norm(g, y, x, sub(buf, name, "bn2"), BN_EPS, BN_MOMENTUM, KD_ACT_RELU);
}

/* x -> conv1x1 bn relu conv3x3 (the stride is here: "ResNet v1.5") bn relu conv1x1 bn -> + shortcut -> relu */
static kd_val bottleneck_block(kd_graph *g, kd_val x, const char *name, int channels, int stride, int downsample) {
    char buf[NAME];
    kd_val y = kd_graph_conv2d(g, x, sub(buf, name, "conv1"), channels, 1, 1, 0, 0);
    y = kd_graph_batch_norm(g, y, -1, sub(buf, name, "bn1"), BN_EPS, BN_MOMENTUM, KD_ACT_RELU);
    y = kd_graph_conv2d(g, y, sub(buf, name, "conv2"), channels, 3, stride, 1, 0);
    y = kd_graph_batch_norm(g, y, -1, sub(buf, name, "bn2"), BN_EPS, BN_MOMENTUM, KD_ACT_RELU);
    y = kd_graph_conv2d(g, y, sub(buf, name, "conv3"), EXPANSION * channels, 1, 1, 0, 0);
    x = shortcut(g, x, name, EXPANSION * channels, stride, downsample);
    return kd_graph_batch_norm(g, y, x, sub(buf, name, "bn3"), BN_EPS, BN_MOMENTUM, KD_ACT_RELU);
}

static kd_model_taps build(kd_graph *g, kd_val x, const kd_model_info *m, const kd_model_options *o) {
    const resnet_config *c = m->config;
    (void)o; /* no drop path in a ResNet */
    kd_model_taps taps = {0};
    kd_graph_set_init(g, KD_INIT_KAIMING_FAN_OUT);
    x = kd_graph_conv2d(g, x, "conv1", FIRST_CHANNELS, 7, 2, 3, 0);
    x = kd_graph_batch_norm(g, x, -1, "bn1", BN_EPS, BN_MOMENTUM, KD_ACT_RELU);
    x = kd_graph_max_pool(g, x, 3, 2, 1);
    for (int stage = 0; stage < STAGES; stage++) {
        int channels = FIRST_CHANNELS << stage;
        for (int i = 0; i < c->blocks[stage]; i++) {
            char name[BLOCK_NAME];
            int stride = i == 0 && stage > 0 ? 2 : 1, downsample = i == 0 && (stage > 0 || c->bottleneck);
            snprintf(name, sizeof name, "layer%d.%d", stage + 1, i);
            x = (c->bottleneck ? bottleneck_block : basic_block)(g, x, name, channels, stride, downsample);
        }
        kd_model_add_tap(g, &taps, x, "layer%d", stage + 1);
    }
    kd_graph_set_init(g, KD_INIT_TORCH);
    kd_graph_carry_linear(g, "fc", m->width, CLASSES);
    kd_model_set_map(g, &taps, x);
    return taps;
}

/* ---- the family ---- */

static const resnet_config resnet18 = {{2, 2, 2, 2}, 0}, resnet34 = {{3, 4, 6, 3}, 0}, resnet50 = {{3, 4, 6, 3}, 1}, resnet101 = {{3, 4, 23, 3}, 1};
static const kd_model_entry entries[] = {{"resnet18", 512, &resnet18, 0}, {"resnet34", 512, &resnet34, 0}, {"resnet50", 2048, &resnet50, 0}, {"resnet101", 2048, &resnet101, 0}};

/* As many blocks in every stage, of this kind, and the plain width (ResNeXt and Wide ResNet have the same names). */
static int matches(const kd_weights *w, const char *prefix, const kd_model_entry *e) {
    const resnet_config *c = e->config;
    int64_t conv2[4] = {FIRST_CHANNELS, FIRST_CHANNELS, 3, 3};
    for (int stage = 0; stage < STAGES; stage++) {
        char last[NAME], beyond[NAME];
        snprintf(last, sizeof last, "layer%d.%d.conv1.weight", stage + 1, c->blocks[stage] - 1);
        snprintf(beyond, sizeof beyond, "layer%d.%d.conv1.weight", stage + 1, c->blocks[stage]);
        if (!kd_model_file_has(w, prefix, last, 0, NULL) || kd_model_file_has(w, prefix, beyond, 0, NULL))
            return 0;
    }
    return kd_model_file_has(w, prefix, "layer1.0.conv2.weight", 4, conv2) && kd_model_file_has(w, prefix, "layer1.0.conv3.weight", 0, NULL) == c->bottleneck;
}

const kd_model_family kd_resnet_family = {
    .kind = KD_MODEL_RESNET,
    .library = "torchvision",
    .norm = KD_MODEL_BATCH_NORM,
    .multiple = 1, /* torchvision takes any size; below 32 its strides leave nothing of the picture */
    .smallest = 32,
    .usual = 224,
    .mean = KD_IMAGENET_MEAN,
    .std = KD_IMAGENET_STD,
    .entries = entries,
    .count = sizeof entries / sizeof *entries,
    .anchor = "layer1.0.conv1.weight",
    .matches = matches,
    .build = build,
};

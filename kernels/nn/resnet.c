/* ResNet-18 and its kin of basic blocks, as torchvision/models/resnet.py builds them: names, order of operations, initialisation. */
#include <stdio.h>

#include "kernels/nn/model_builders.h"

static const float BN_EPS = 1e-5f, BN_MOMENTUM = 0.1f; /* torch.nn.BatchNorm2d */
enum { NAME = 64, BLOCK_NAME = 32, CLASSES = 1000 };

static const char *sub(char buf[NAME], const char *block, const char *part) {
    snprintf(buf, NAME, "%s.%s", block, part);
    return buf;
}

/* x -> conv3x3 bn relu conv3x3 bn -> + shortcut -> relu; the shortcut is x, or conv1x1 bn where the shape changes. The join lies inside the last batch norm. */
static kd_val basic_block(kd_graph *g, kd_val x, const char *name, int channels, int stride, int downsample) {
    char buf[NAME];
    kd_val y = kd_graph_conv2d(g, x, sub(buf, name, "conv1"), channels, 3, stride, 1, 0);
    y = kd_graph_batch_norm(g, y, -1, sub(buf, name, "bn1"), BN_EPS, BN_MOMENTUM, KD_ACT_RELU);
    y = kd_graph_conv2d(g, y, sub(buf, name, "conv2"), channels, 3, 1, 1, 0);
    if (downsample) {
        x = kd_graph_conv2d(g, x, sub(buf, name, "downsample.0"), channels, 1, stride, 0, 0);
        x = kd_graph_batch_norm(g, x, -1, sub(buf, name, "downsample.1"), BN_EPS, BN_MOMENTUM, KD_ACT_NONE);
    }
    return kd_graph_batch_norm(g, y, x, sub(buf, name, "bn2"), BN_EPS, BN_MOMENTUM, KD_ACT_RELU);
}

kd_model_taps kd_resnet_build(kd_graph *g, kd_val x, const kd_model_info *m) {
    kd_graph_set_init(g, KD_INIT_KAIMING_FAN_OUT);
    x = kd_graph_conv2d(g, x, "conv1", 64, 7, 2, 3, 0);
    x = kd_graph_batch_norm(g, x, -1, "bn1", BN_EPS, BN_MOMENTUM, KD_ACT_RELU);
    x = kd_graph_max_pool(g, x, 3, 2, 1);
    for (int stage = 0; stage < 4; stage++)
        for (int i = 0; i < m->blocks[stage]; i++) {
            char name[BLOCK_NAME];
            int first = i == 0 && stage > 0;
            snprintf(name, sizeof name, "layer%d.%d", stage + 1, i);
            x = basic_block(g, x, name, 64 << stage, first ? 2 : 1, first);
        }
    kd_graph_set_init(g, KD_INIT_TORCH);
    int64_t weight[2] = {CLASSES, m->width}, bias = CLASSES;
    kd_graph_carry(g, "fc.weight", 2, weight, m->width);
    kd_graph_carry(g, "fc.bias", 1, &bias, m->width);

    kd_model_taps taps = {0};
    int rank;
    int64_t shape[3];
    kd_graph_shape(g, x, &rank, shape);
    taps.map = kd_graph_as_f32(g, x);
    taps.map_h = (int)shape[0];
    taps.map_w = (int)shape[1];
    taps.pooled = taps.cls = kd_graph_mean_tokens(g, x);
    return taps;
}

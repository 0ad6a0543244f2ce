/* Backbones of ultralytics' YOLOv8 and YOLO11: everything before the neck, with the names "model.<layer>.<part>" of DetectionModel.state_dict(). Facts: ultralytics/cfg/models/v8/yolov8.yaml and
 * 11/yolo11.yaml (layers, scales), nn/modules/conv.py and block.py (modules), nn/tasks.py parse_model (scaling), utils/torch_utils.py initialize_weights (batch norm; convolutions start as torch's do). */
#include <stdio.h>

#include "kernels/nn/model_builders.h"

static const float BN_EPS = 1e-3f, BN_MOMENTUM = 0.03f;
enum { NAME = 96, HEAD_DIM = 64, KEY_DIM = 32, POOL = 5, POOLS = 3, C3K_REPEATS = 2 };

typedef enum layer_kind {
    CONV,     /* 3x3, stride 2 */
    C2F,      /* inner blocks: bottlenecks as wide inside as outside */
    C3K2,     /* half as wide inside */
    C3K2_C3K, /* C3k blocks */
    SPPF,
    C2PSA,
} layer_kind;

/* A line of the yaml: repeats and channels before scaling. */
typedef struct yolo_layer {
    layer_kind kind;
    int repeats, channels;
    int hidden; /* of C2f and its kin: channels of an inner block, in quarters of the layer's */
    int tap;
} yolo_layer;

static const yolo_layer v8_layers[] = {
    {CONV, 1, 64, 0, 0},  {CONV, 1, 128, 0, 0}, {C2F, 3, 128, 2, 0},  {CONV, 1, 256, 0, 0}, {C2F, 6, 256, 2, 1},
    {CONV, 1, 512, 0, 0}, {C2F, 6, 512, 2, 1},  {CONV, 1, 1024, 0, 0}, {C2F, 3, 1024, 2, 0}, {SPPF, 1, 1024, 0, 1},
};
static const yolo_layer v11_layers[] = {
    {CONV, 1, 64, 0, 0},       {CONV, 1, 128, 0, 0},  {C3K2, 2, 256, 1, 0},      {CONV, 1, 256, 0, 0}, {C3K2, 2, 512, 1, 1},  {CONV, 1, 512, 0, 0},
    {C3K2_C3K, 2, 512, 2, 1}, {CONV, 1, 1024, 0, 0}, {C3K2_C3K, 2, 1024, 2, 0}, {SPPF, 1, 1024, 0, 0}, {C2PSA, 2, 1024, 0, 1},
};

typedef struct yolo_config {
    const yolo_layer *layers;
    int count;
    int depth, width; /* the scale: percent of the repeats, quarters of the channels */
    int max_channels; /* before the width is applied */
} yolo_config;

/* max(round(repeats * depth), 1) */
static int scaled_repeats(const yolo_config *c, const yolo_layer *l) {
    int n = (l->repeats * c->depth + 50) / 100;
    return n > 1 ? n : 1;
}

/* ceil(min(channels, max_channels) * width / 8) * 8 */
static int scaled_channels(const yolo_config *c, const yolo_layer *l) {
    int channels = l->channels < c->max_channels ? l->channels : c->max_channels;
    return (channels * c->width + 31) / 32 * 8;
}

/* ---- modules ---- */

typedef struct name {
    char text[NAME];
} name;

static name sub(const char *module, const char *part) {
    name n;
    int length = snprintf(n.text, sizeof n.text, "%s.%s", module, part);
    KD_ASSERT(length < NAME);
    return n;
}

static name item(const char *module, int i) {
    name n;
    int length = snprintf(n.text, sizeof n.text, "%s.m.%d", module, i);
    KD_ASSERT(length < NAME);
    return n;
}

/* Conv: convolution without bias, batch norm, activation. */
static kd_val conv(kd_graph *g, kd_val x, name module, int channels, int kernel, int stride, int groups, kd_act act) {
    x = kd_graph_conv2d_grouped(g, x, sub(module.text, "conv").text, channels, kernel, stride, kernel / 2, groups, 0);
    return kd_graph_batch_norm(g, x, -1, sub(module.text, "bn").text, BN_EPS, BN_MOMENTUM, act);
}

static kd_val conv1x1(kd_graph *g, kd_val x, name module, int channels) {
    return conv(g, x, module, channels, 1, 1, 1, KD_ACT_SILU);
}

static kd_val conv3x3(kd_graph *g, kd_val x, name module, int channels, int stride) {
    return conv(g, x, module, channels, 3, stride, 1, KD_ACT_SILU);
}

/* x + Conv(Conv(x)), both 3x3 */
static kd_val bottleneck(kd_graph *g, kd_val x, const char *module, int channels, int hidden) {
    kd_val y = conv3x3(g, x, sub(module, "cv1"), hidden, 1);
    return kd_graph_shortcut(g, x, conv3x3(g, y, sub(module, "cv2"), channels, 1));
}

static kd_val c3k(kd_graph *g, kd_val x, const char *module, int channels) {
    int hidden = channels / 2;
    kd_val y[2] = {conv1x1(g, x, sub(module, "cv1"), hidden), conv1x1(g, x, sub(module, "cv2"), hidden)};
    for (int i = 0; i < C3K_REPEATS; i++)
        y[0] = bottleneck(g, y[0], item(module, i).text, hidden, hidden);
    return conv1x1(g, kd_graph_concat_n(g, y, 2), sub(module, "cv3"), channels);
}

/* C2f: the first convolution makes two halves; each block goes on from the last result, the second half to begin with; all are joined. The halves stay together for the join. */
static kd_val c2f(kd_graph *g, kd_val x, const char *module, layer_kind kind, int repeats, int channels, int hidden) {
    kd_val y[KD_OP_MAX_X];
    KD_ASSERT(repeats < KD_OP_MAX_X);
    y[0] = conv1x1(g, x, sub(module, "cv1"), 2 * hidden);
    kd_val last = kd_graph_channel_slice(g, y[0], hidden, hidden);
    for (int i = 0; i < repeats; i++) {
        name block = item(module, i);
        last = kind == C3K2_C3K ? c3k(g, last, block.text, hidden) : bottleneck(g, last, block.text, hidden, kind == C3K2 ? hidden / 2 : hidden);
        y[1 + i] = last;
    }
    return conv1x1(g, kd_graph_concat_n(g, y, 1 + repeats), sub(module, "cv2"), channels);
}

/* Max pools of 5, 9 and 13 as a chain of pools of 5. cv1 has an activation: the released weights were trained so, and ultralytics' versions between YOLO26 and PR #26040 that build it without
 * compute another function from the same tensors. */
static kd_val sppf(kd_graph *g, kd_val x, const char *module, int in, int channels) {
    kd_val y[1 + POOLS];
    y[0] = conv1x1(g, x, sub(module, "cv1"), in / 2);
    for (int i = 0; i < POOLS; i++)
        y[1 + i] = kd_graph_max_pool(g, y[i], POOL, 1, POOL / 2);
    return conv1x1(g, kd_graph_concat_n(g, y, 1 + POOLS), sub(module, "cv2"), channels);
}

/* Heads of HEAD_DIM channels whose queries and keys have half of that, and a depthwise convolution of the values that tells positions apart. */
static kd_val attention(kd_graph *g, kd_val x, const char *module, int channels) {
    int heads = channels / HEAD_DIM, wide = heads * (2 * KEY_DIM + HEAD_DIM), rank;
    int64_t grid[3];
    kd_graph_shape(g, x, &rank, grid);
    int64_t tokens[2] = {grid[0] * grid[1], wide};
    kd_val qkv = conv(g, x, sub(module, "qkv"), wide, 1, 1, 1, KD_ACT_NONE);
    qkv = kd_graph_qkv_by_head(g, kd_graph_reshape(g, qkv, 2, tokens), heads, KEY_DIM);
    kd_val v = kd_graph_reshape(g, kd_graph_channel_slice(g, qkv, 2 * channels, channels), 3, grid);
    kd_val y = kd_graph_reshape(g, kd_graph_attention(g, qkv, heads), 3, grid);
    y = kd_graph_shortcut(g, y, conv(g, v, sub(module, "pe"), channels, 3, 1, channels, KD_ACT_NONE));
    return conv(g, y, sub(module, "proj"), channels, 1, 1, 1, KD_ACT_NONE);
}

static kd_val psa_block(kd_graph *g, kd_val x, const char *module, int channels) {
    x = kd_graph_shortcut(g, x, attention(g, x, sub(module, "attn").text, channels));
    kd_val y = conv1x1(g, x, sub(module, "ffn.0"), 2 * channels);
    return kd_graph_shortcut(g, x, conv(g, y, sub(module, "ffn.1"), channels, 1, 1, 1, KD_ACT_NONE));
}

/* Attention blocks on one half of the channels. */
static kd_val c2psa(kd_graph *g, kd_val x, const char *module, int repeats, int channels) {
    int hidden = channels / 2;
    kd_val both = conv1x1(g, x, sub(module, "cv1"), 2 * hidden);
    kd_val y[2] = {kd_graph_channel_slice(g, both, 0, hidden), kd_graph_channel_slice(g, both, hidden, hidden)};
    for (int i = 0; i < repeats; i++)
        y[1] = psa_block(g, y[1], item(module, i).text, hidden);
    return conv1x1(g, kd_graph_concat_n(g, y, 2), sub(module, "cv2"), channels);
}

static kd_model_taps build(kd_graph *g, kd_val x, const kd_model_info *m, const kd_model_options *o) {
    const yolo_config *c = m->config;
    (void)o; /* no drop path in a YOLO */
    kd_model_taps taps = {0};
    int in = 3;
    kd_graph_set_init(g, KD_INIT_TORCH);
    for (int i = 0; i < c->count; i++) {
        const yolo_layer *l = &c->layers[i];
        int channels = scaled_channels(c, l), repeats = scaled_repeats(c, l);
        name layer;
        snprintf(layer.text, sizeof layer.text, "model.%d", i);
        switch (l->kind) {
        case CONV: x = conv3x3(g, x, layer, channels, 2); break;
        case SPPF: x = sppf(g, x, layer.text, in, channels); break;
        case C2PSA: x = c2psa(g, x, layer.text, repeats, channels); break;
        case C2F: case C3K2: case C3K2_C3K: x = c2f(g, x, layer.text, l->kind, repeats, channels, channels * l->hidden / 4); break;
        }
        if (l->tap)
            kd_model_add_tap(g, &taps, x, "%s", layer.text);
        in = channels;
    }
    kd_model_set_map(g, &taps, x);
    return taps;
}

/* ---- the family ---- */

#define V8(depth, width, max_channels) {v8_layers, sizeof v8_layers / sizeof *v8_layers, depth, width, max_channels}
#define V11(depth, width, max_channels) {v11_layers, sizeof v11_layers / sizeof *v11_layers, depth, width, max_channels}
static const yolo_config yolov8n = V8(33, 1, 1024), yolov8s = V8(33, 2, 1024), yolov8m = V8(67, 3, 768), yolov8l = V8(100, 4, 512), yolov8x = V8(100, 5, 512);
static const yolo_config yolo11n = V11(50, 1, 1024), yolo11s = V11(50, 2, 1024);
static const kd_model_entry entries[] = {
    {"yolov8n", 256, &yolov8n, 0}, {"yolov8s", 512, &yolov8s, 0}, {"yolov8m", 576, &yolov8m, 0}, {"yolov8l", 512, &yolov8l, 0}, {"yolov8x", 640, &yolov8x, 0},
    {"yolo11n", 256, &yolo11n, 0}, {"yolo11s", 512, &yolo11s, 0},
};

/* A tensor of YOLOs whose backbone has the same tensors as YOLO11's and computes another function from them (YOLO26: SPPF without its first activation, and with a shortcut). */
static const char *const end_to_end_head = "23.one2one_cv2.0.0.conv.weight";

/* The widths of all layers, and the repeats: the last convolution of a C2f reads two halves and one result of each repeat. */
static int matches(const kd_weights *w, const char *prefix, const kd_model_entry *e) {
    const yolo_config *c = e->config;
    int in = 3;
    for (int i = 0; i < c->count; i++) {
        const yolo_layer *l = &c->layers[i];
        int channels = scaled_channels(c, l), hidden = channels * l->hidden / 4;
        int64_t plain[4] = {channels, in, 3, 3}, joined[4] = {channels, (2 + scaled_repeats(c, l)) * hidden, 1, 1};
        name tensor;
        snprintf(tensor.text, sizeof tensor.text, l->kind == CONV ? "%d.conv.weight" : "%d.cv2.conv.weight", i);
        if ((l->kind == CONV || l->hidden) && !kd_model_file_has(w, prefix, tensor.text, 4, l->kind == CONV ? plain : joined))
            return 0;
        in = channels;
    }
    return !kd_model_file_has(w, prefix, end_to_end_head, 0, NULL);
}

const kd_model_family kd_yolo_family = {
    .kind = KD_MODEL_YOLO,
    .library = "ultralytics",
    .norm = KD_MODEL_BATCH_NORM,
    .multiple = 32, /* every layer of stride 2 must halve evenly, or the maps don't fit the neck's upsampled ones */
    .smallest = 32,
    .usual = 640,
    .mean = {0, 0, 0}, /* x / 255 */
    .std = {1, 1, 1},
    .entries = entries,
    .count = sizeof entries / sizeof *entries,
    .stem = "model.",
    .anchor = "2.m.0.cv1.conv.weight",
    .matches = matches,
    .build = build,
};

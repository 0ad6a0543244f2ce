#include "train/export/timm_layout.h"

#include <stdio.h>
#include <string.h>

/* ---- architecture ---- */

int kd_timm_loads(const kd_model_info *m) {
    return m->kind != KD_MODEL_MOBILENET && m->kind != KD_MODEL_YOLO;
}

/* Names of ours that timm has no function for; the same class is made from the patch of 16's. */
static const char *const only_patch16[] = {"vit_tiny_patch8_224", "vit_large_patch8_224", "vit_tiny_patch14_224", "vit_small_patch14_224", "vit_base_patch14_224"};

/* timm's name, and in *args (a new object) what its function must be told to make this network. */
static const char *architecture_of(const kd_model_info *m, char name[64], json_t **args) {
    static const char *const sizes[] = {"small", "base", "large", "giant"};
    const kd_vit_spec *s = &m->vit;
    *args = json_object();
    snprintf(name, 64, "%s", m->name);
    if (m->kind != KD_MODEL_VIT)
        return name;
    if (s->family == KD_VIT_TIMM) {
        for (size_t i = 0; i < sizeof only_patch16 / sizeof *only_patch16; i++)
            if (strcmp(m->name, only_patch16[i]) == 0) {
                snprintf(name, 64, "%.*s_patch16_224", (int)(strstr(m->name, "_patch") - m->name), m->name);
                json_object_set_new(*args, "patch_size", json_integer(s->patch));
            }
        return name;
    }
    const char *size = "small"; /* dinov2_wW_dD is the small one with other numbers */
    for (int i = 0; i < 4 && strncmp(m->name, "dinov2_vit", 10) == 0; i++)
        if (m->name[10] == sizes[i][0])
            size = sizes[i];
    snprintf(name, 64, "vit_%s_patch14_%sdinov2", size, s->registers > 0 ? "reg4_" : "");
    if (strncmp(m->name, "dinov2_w", 8) == 0) {
        json_object_set_new(*args, "embed_dim", json_integer(s->width));
        json_object_set_new(*args, "depth", json_integer(s->depth));
        json_object_set_new(*args, "num_heads", json_integer(s->heads));
    }
    return name;
}

static json_t *triple(const float v[3]) {
    json_t *list = json_array();
    for (int i = 0; i < 3; i++) { /* as text first: 0.485, not 0.485000014 */
        char text[32];
        double shortest;
        snprintf(text, sizeof text, "%.7g", (double)v[i]);
        sscanf(text, "%lf", &shortest);
        json_array_append_new(list, json_real(shortest));
    }
    return list;
}

json_t *kd_timm_config(const kd_model_info *m, int height, int width, const char *license) {
    static const char *const first[] = {[KD_MODEL_VIT] = "patch_embed.proj", [KD_MODEL_RESNET] = "conv1", [KD_MODEL_MOBILENET] = "features.0.0", [KD_MODEL_CONVNEXT] = "stem.0", [KD_MODEL_YOLO] = "model.0.conv"};
    static const char *const classifier[] = {[KD_MODEL_VIT] = "head", [KD_MODEL_RESNET] = "fc", [KD_MODEL_MOBILENET] = "classifier", [KD_MODEL_CONVNEXT] = "head.fc", [KD_MODEL_YOLO] = NULL};
    int is_vit = m->kind == KD_MODEL_VIT;
    char name[64];
    json_t *args;
    /* kd-eval's transform: the shorter side to size * 256 / 224, bicubic, centre crop */
    json_t *prepare = json_pack("{s:[i, i, i], s:b, s:s, s:f, s:s, s:o, s:o, s:i, s:s, s:s*, s:s*}", "input_size", 3, height, width, "fixed_input_size", is_vit, "interpolation", "bicubic", "crop_pct", 0.875,
                                "crop_mode", "center", "mean", triple(m->mean), "std", triple(m->std), "num_classes", 0, "first_conv", first[m->kind], "classifier", classifier[m->kind], "license", license);
    if (!kd_timm_loads(m))
        return json_pack("{s:s, s:s, s:i, s:i, s:o}", "library", m->library, "model", m->name, "num_classes", 0, "num_features", m->width, "pretrained_cfg", prepare);
    const char *architecture = architecture_of(m, name, &args);
    if (is_vit)
        json_object_set_new(args, "img_size", json_pack("[i, i]", height, width));
    return json_pack("{s:s, s:i, s:i, s:s, s:o, s:o}", "architecture", architecture, "num_classes", 0, "num_features", m->width, "global_pool", is_vit ? "token" : "avg", "model_args", args, "pretrained_cfg", prepare);
}

/* ---- names ---- */

enum { NAME = 96 };

/* torchvision's ConvNeXt: features.0 is the stem, then stages (1, 3, 5, 7) and between them what halves the map (2, 4, 6). */
static void convnext_name(const char *name, char out[NAME]) {
    static const struct {
        const char *ours, *timm;
    } parts[] = {{"block.0", "conv_dw"}, {"block.2", "norm"}, {"block.3", "mlp.fc1"}, {"block.5", "mlp.fc2"}, {"layer_scale", "gamma"}};
    int layer, block, used = 0;
    out[0] = '\0';
    if (sscanf(name, "features.%d.%d.%n", &layer, &block, &used) != 2 || used == 0) {
        snprintf(out, NAME, "head.norm.%s", strrchr(name, '.') + 1); /* classifier.0 */
        return;
    }
    const char *rest = name + used;
    if (layer == 0)
        snprintf(out, NAME, "stem.%d.%s", block, rest);
    else if (layer % 2 == 0)
        snprintf(out, NAME, "stages.%d.downsample.%d.%s", layer / 2, block, rest);
    for (size_t i = 0; layer % 2 == 1 && i < sizeof parts / sizeof *parts; i++) {
        size_t n = strlen(parts[i].ours);
        if (strncmp(rest, parts[i].ours, n) == 0)
            snprintf(out, NAME, "stages.%d.blocks.%d.%s%s", layer / 2, block, parts[i].timm, rest + n);
    }
    KD_ASSERT(out[0] != '\0');
}

kd_status kd_timm_rename(kd_model_state *s, const kd_model_info *m, kd_arena *arena, kd_err *err) {
    for (size_t i = 0; m->kind == KD_MODEL_CONVNEXT && i < s->count; i++) {
        kd_tensor *t = &s->tensor[i];
        char name[NAME];
        convnext_name(t->name, name);
        if ((t->name = kd_arena_strdup(arena, name)) == NULL)
            return kd_fail(err, KD_EFAIL, "out of memory for the names of %s", m->name);
        if (strstr(t->name, ".gamma") != NULL) /* [C,1,1] */
            t->rank = 1;
    }
    return KD_OK;
}

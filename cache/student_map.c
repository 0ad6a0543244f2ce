#include "cache/student_map.h"

#include <stdlib.h>
#include <string.h>

#include "common/base/options.h"
#include "common/weights/vit_spec.h"

enum {
    FREE_VIT_PATCH = 14, /* dinov2_wW_dD */
    HEAD_WIDTH = 64, MAX_WIDTH = 8192, MAX_DEPTH = 1024, MAX_SIDE = 8192 /* kernels/nn's limits */
};

/* CNNs: the last map is a stride'th of the view. */
static const struct cnn {
    const char *name;
    int stride;   /* the smallest view, too */
    int up;       /* padded layers round up at every halving, those without padding down */
    int multiple; /* of which the sides of its views must be */
} cnns[] = {{"resnet18", 32, 1, 1},           {"resnet34", 32, 1, 1},           {"resnet50", 32, 1, 1},      {"resnet101", 32, 1, 1},
            {"mobilenet_v3_small", 32, 1, 1}, {"mobilenet_v3_large", 32, 1, 1}, {"convnext_tiny", 32, 0, 1}, {"convnext_small", 32, 0, 1},
            {"yolov8n", 32, 1, 32},           {"yolov8s", 32, 1, 32},           {"yolov8m", 32, 1, 32},      {"yolov8l", 32, 1, 32},
            {"yolov8x", 32, 1, 32},           {"yolo11n", 32, 1, 32},           {"yolo11s", 32, 1, 32}};
enum { CNNS = sizeof cnns / sizeof cnns[0] };

static const char *const examples[] = {"resnet18",      "vit_tiny_patch16_224", "vit_small_patch16_224", "vit_base_patch16_224", "dinov2_vits14",
                                       "dinov2_vitb14", "dinov2_wW_dD",         NULL};

const char *kd_student_example(size_t i)
{
    return i < sizeof examples / sizeof examples[0] ? examples[i] : NULL;
}

/* "dinov2_w192_d6"; also with the letters W and D themselves, which stand for any. */
static int is_free_vit(const char *name)
{
    char *end;
    long width, depth;
    if (strcmp(name, "dinov2_wW_dD") == 0)
        return 1;
    if (strncmp(name, "dinov2_w", 8) != 0 || name[8] < '0' || name[8] > '9')
        return 0;
    width = strtol(name + 8, &end, 10);
    if (strncmp(end, "_d", 2) != 0 || end[2] < '0' || end[2] > '9')
        return 0;
    depth = strtol(end + 2, &end, 10);
    return *end == 0 && width >= HEAD_WIDTH && width % HEAD_WIDTH == 0 && width <= MAX_WIDTH && depth >= 1 && depth <= MAX_DEPTH;
}

static kd_status unknown(const char *name, kd_err *err)
{
    enum { MOST = 128 };
    const char *const *vits, *names[MOST], *near;
    size_t n = kd_vit_names(&vits), count = 0;
    for (size_t i = 0; i < CNNS; i++)
        names[count++] = cnns[i].name;
    names[count++] = "dinov2_wW_dD";
    for (size_t i = 0; i < n && count < MOST; i++) {
        if (strncmp(vits[i], "dinov3", 6) != 0)
            names[count++] = vits[i];
    }
    near = kd_nearest_name(name, names, count);
    return kd_fail(err, KD_EUSAGE, "no student is called \"%s\"%s%s; students are CNNs (resnet18, yolov8n, ...), DINOv2's and timm's ViTs (vit_small_patch16_224, dinov2_vits14, ...) and dinov2_wW_dD", name,
                   near ? "; the nearest is " : "", near ? near : "");
}

static kd_status vit_map(kd_map_size *map, const char *name, int patch, int height, int width, kd_err *err)
{
    if (height % patch || width % patch || height < patch || width < patch || height > MAX_SIDE || width > MAX_SIDE)
        return kd_fail(err, KD_EUSAGE, "%s takes views whose sides are multiples of %d, up to %d, not %d x %d", name, patch, MAX_SIDE, height, width);
    *map = (kd_map_size){height / patch, width / patch};
    return KD_OK;
}

static kd_status cnn_map(kd_map_size *map, const struct cnn *c, int height, int width, kd_err *err)
{
    int more = c->up ? c->stride - 1 : 0;
    if (height < c->stride || width < c->stride || height > MAX_SIDE || width > MAX_SIDE)
        return kd_fail(err, KD_EUSAGE, "%s takes views of %d to %d pixels a side, not %d x %d", c->name, c->stride, MAX_SIDE, height, width);
    if (height % c->multiple || width % c->multiple)
        return kd_fail(err, KD_EUSAGE, "%s takes views whose sides are multiples of %d, not %d x %d", c->name, c->multiple, height, width);
    *map = (kd_map_size){(height + more) / c->stride, (width + more) / c->stride};
    return KD_OK;
}

kd_status kd_student_map(kd_map_size *map, const char *name, int height, int width, kd_err *err)
{
    kd_vit_spec s;
    for (size_t i = 0; i < CNNS; i++)
        if (strcmp(cnns[i].name, name) == 0)
            return cnn_map(map, &cnns[i], height, width, err);
    if (is_free_vit(name))
        return vit_map(map, name, FREE_VIT_PATCH, height, width, err);
    if (!kd_vit_named(name, &s) || s.family == KD_VIT_DINOV3)
        return unknown(name, err);
    return vit_map(map, name, s.patch, height, width, err);
}

kd_target kd_student_target(const kd_map_size *map, int grid_h, int grid_w)
{
    if ((int64_t)map->h * map->w >= (int64_t)grid_h * grid_w)
        return (kd_target){.kind = KD_TARGET_FULL};
    return (kd_target){.kind = KD_TARGET_ADJOINT, .h = map->h, .w = map->w};
}

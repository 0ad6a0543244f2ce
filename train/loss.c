#include "train/loss.h"

#include <string.h>

#include "common/base/mem.h"

static const float HEAD_NORM_EPS = 1e-6f;

static const kd_loss_kind kinds[] = {{.name = "std-mse", .single_tokens = 0}};

const kd_loss_kind *kd_loss_find(const char *name) {
    size_t i = 0;
    while (strcmp(kinds[i].name, name) != 0) {
        i++;
        KD_ASSERT(i < sizeof kinds / sizeof kinds[0]);
    }
    return &kinds[i];
}

/* LayerNorm -> Linear over the last dimension. */
static kd_val head(kd_graph *g, kd_val x, const char *norm, const char *linear, int width) {
    x = kd_graph_layer_norm(g, x, norm, HEAD_NORM_EPS);
    return kd_graph_linear(g, x, linear, width, 1);
}

static void patch_term(kd_graph *g, const kd_model_taps *taps, const kd_loss_spec *spec) {
    const kd_target *t = &spec->target;
    kd_val pred = head(g, taps->map, KD_HEAD_PREFIX "patch.norm", KD_HEAD_PREFIX "patch.linear", spec->width);
    int64_t shape[3] = {t->kind == KD_TARGET_FULL ? spec->grid_h : t->h, t->kind == KD_TARGET_FULL ? spec->grid_w : t->w, spec->width}, one = 1;
    KD_ASSERT(t->kind != KD_TARGET_ADJOINT || (t->h == taps->map_h && t->w == taps->map_w));
    if (taps->map_h != shape[0] || taps->map_w != shape[1])
        pred = kd_graph_resize_bilinear(g, pred, (int)shape[0], (int)shape[1]);
    pred = kd_graph_as_f32(g, pred);
    kd_val target = kd_graph_input(g, "target.patch", 3, shape);
    kd_graph_output(g, pred, "pred.patch");
    if (t->kind == KD_TARGET_ADJOINT)
        kd_graph_mse_adjoint(g, pred, target, kd_graph_input(g, "target.square", 1, &one), spec->grid_h, spec->grid_w, (float)spec->patch_weight, "loss.patch");
    else
        kd_graph_mse(g, pred, target, (float)spec->patch_weight, "loss.patch");
}

void kd_loss_build(kd_graph *g, const kd_model_taps *taps, const kd_loss_spec *spec) {
    kd_graph_set_init(g, KD_INIT_TRUNC_NORMAL_02);
    if (spec->cls_weight > 0) {
        int64_t shape[1] = {spec->width};
        kd_val pred = kd_graph_as_f32(g, head(g, taps->cls, KD_HEAD_PREFIX "cls.norm", KD_HEAD_PREFIX "cls.linear", spec->width));
        kd_val target = kd_graph_input(g, "target.cls", 1, shape);
        kd_graph_output(g, pred, "pred.cls");
        kd_graph_mse(g, pred, target, (float)spec->cls_weight, "loss.cls");
    }
    if (spec->patch_weight > 0)
        patch_term(g, taps, spec);
}

#include "train/loss.h"

static const float HEAD_NORM_EPS = 1e-6f;

/* LayerNorm -> Linear over the last dimension. */
static kd_val head(kd_graph *g, kd_val x, const char *norm, const char *linear, int width) {
    x = kd_graph_layer_norm(g, x, norm, HEAD_NORM_EPS);
    return kd_graph_linear(g, x, linear, width, 1);
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
    if (spec->patch_weight > 0) {
        int64_t shape[3] = {spec->grid_h, spec->grid_w, spec->width};
        kd_val pred = head(g, taps->map, KD_HEAD_PREFIX "patch.norm", KD_HEAD_PREFIX "patch.linear", spec->width);
        if (taps->map_h != spec->grid_h || taps->map_w != spec->grid_w)
            pred = kd_graph_resize_bilinear(g, pred, spec->grid_h, spec->grid_w);
        pred = kd_graph_as_f32(g, pred);
        kd_val target = kd_graph_input(g, "target.patch", 3, shape);
        kd_graph_output(g, pred, "pred.patch");
        kd_graph_mse(g, pred, target, (float)spec->patch_weight, "loss.patch");
    }
}

/* Loss: what a student is asked to reproduce, as nodes at the end of its graph. std-mse (facts: the best simple choice for one teacher): heads LayerNorm -> Linear map the
 * student's features to the teacher's width, and their mean squared error to the centred, scalar-standardised targets is minimised, CLS and patches each with a weight.
 *
 *     kd_loss_build(graph, &taps, &(kd_loss_spec){.width = 384, .grid_h = 16, .grid_w = 16, .cls_weight = 1, .patch_weight = 1});
 *
 * Adds inputs "target.cls" [D], "target.patch" [gh,gw,D]; outputs "pred.cls", "pred.patch" (f32) and the unweighted terms "loss.cls", "loss.patch"; parameters
 * "kd_head.cls.*", "kd_head.patch.*", which are dropped at export. A term of weight 0 adds nothing. The patch head works on the student's own map; its result is resized
 * bilinearly to the teacher's grid when they differ. */
#ifndef KD_TRAIN_LOSS_H
#define KD_TRAIN_LOSS_H

#include "kernels/nn/models.h"

#define KD_HEAD_PREFIX "kd_head."

typedef struct kd_loss_spec {
    int width, grid_h, grid_w; /* of the teacher */
    double cls_weight, patch_weight;
} kd_loss_spec;

void kd_loss_build(kd_graph *g, const kd_model_taps *taps, const kd_loss_spec *spec);

#endif

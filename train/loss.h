/* Loss: what a student is asked to reproduce, as nodes at the end of its graph. std-mse (facts: the best simple choice for one teacher): heads LayerNorm -> Linear map the
 * student's features to the teacher's width, and their mean squared error to the centred, scalar-standardised targets is minimised, CLS and patches each with a weight.
 *
 *     kd_loss_build(graph, &taps, &(kd_loss_spec){.width = 384, .grid_h = 16, .grid_w = 16, .cls_weight = 1, .patch_weight = 1});
 *
 * Adds inputs "target.cls" [D], "target.patch" [rows of the target,D]; outputs "pred.cls", "pred.patch" (f32) and the unweighted terms "loss.cls", "loss.patch"; parameters
 * "kd_head.cls.*", "kd_head.patch.*", which are dropped at export. A term of weight 0 adds nothing. The patch head works on the student's own map; its result is resized
 * bilinearly to the target's grid when they differ. For an adjoint target of that map there is an input "target.square" [1], "pred.patch" stays on the map, and the loss is the one on
 * the teacher's full grid. */
#ifndef KD_TRAIN_LOSS_H
#define KD_TRAIN_LOSS_H

#include "common/tensor/target.h"
#include "kernels/nn/models.h"

#define KD_HEAD_PREFIX "kd_head."

/* A loss as --loss names it. A new one must say here whether it needs single patch tokens of the teacher: adjoint targets don't have them. */
typedef struct kd_loss_kind {
    const char *name;
    int single_tokens;
} kd_loss_kind;
/* name is one of --loss's choices. */
const kd_loss_kind *kd_loss_find(const char *name);

typedef struct kd_loss_spec {
    int width, grid_h, grid_w; /* of the teacher */
    kd_target target;          /* of the patches; zeroed: full. An adjoint one is of the student's own map (patch_target.h) */
    double cls_weight, patch_weight;
} kd_loss_spec;

void kd_loss_build(kd_graph *g, const kd_model_taps *taps, const kd_loss_spec *spec);

#endif

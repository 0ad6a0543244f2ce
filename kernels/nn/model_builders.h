/* The builders behind the registry of models.c. Each adds one network to a graph, from the normalised images on, and returns its taps (not yet outputs). */
#ifndef KD_KERNELS_NN_MODEL_BUILDERS_H
#define KD_KERNELS_NN_MODEL_BUILDERS_H

#include "kernels/nn/models.h"

/* x: normalised images [H,W,3]. */
kd_model_taps kd_resnet_build(kd_graph *g, kd_val x, const kd_model_info *m);
kd_model_taps kd_vit_build(kd_graph *g, kd_val x, const kd_model_info *m);
void kd_vit_build_layers(kd_graph *g, kd_val x, const kd_model_info *m, const kd_layer_choice *choice); /* names its outputs */

/* pos_embed [1 + from_h*from_w, width] of a file, for an image of to_h*to_w patches: out [1 + to_h*to_w, width]. The class token's row is copied; when the target is the file's own grid,
 * everything is. registers: whether the model has some (official and hf choose their filter by it). KD_EFAIL: memory. */
kd_status kd_pos_embed_resize(float *out, const float *in, int from_h, int from_w, int to_h, int to_w, int width, kd_pos_profile profile, int registers, kd_err *err);

/* The prefix that a resnet18 file puts before torchvision's names, or NULL when it holds no ResNet. */
const char *kd_resnet_prefix(const kd_weights *w);

/* A graph with this model alone: its parameters are the reference library's state_dict, heads excluded. Freed by the caller. */
kd_status kd_model_graph(kd_graph **out, const kd_model_info *m, kd_err *err);

#endif

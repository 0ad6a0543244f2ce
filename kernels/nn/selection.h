/* Selection: which features of which layers a teacher is to give, as a command line says it.
 *
 *     --features cls,patch --layers 1,4 --layer-norm on --layer-concat off
 *
 * Layers are numbered from the end, as DINOv2's get_intermediate_layers(n) counts: 1 is the last block's output, `depth` the first block's. "all:0,11" names blocks from the
 * start instead and means the same things. The order on the command line doesn't matter: a selection is a set, kept in ascending order. Pure functions. */
#ifndef KD_KERNELS_NN_SELECTION_H
#define KD_KERNELS_NN_SELECTION_H

#include "common/tensor/feature_list.h"
#include "kernels/nn/models.h"

typedef struct kd_selection_text {
    const char *features, *layers;
    const char *layer_norm, *layer_concat; /* "on" or "off" */
} kd_selection_text;

/* All of it for this teacher. KD_EUSAGE also for registers of a teacher that has none, and for joined layers that are one or too wide for a record. */
kd_status kd_selection_parse(kd_layer_choice *choice, const kd_selection_text *text, const kd_model_info *model, kd_err *err);

/* Layers and width of the records: joined layers are one, under the smallest number. */
int kd_selection_layers(const kd_layer_choice *choice);
uint32_t kd_selection_width(const kd_layer_choice *choice, const kd_model_info *model);

#endif

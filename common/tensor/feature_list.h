/* Feature lists: the values of --features, --layers and --patch-target, as all programs take them.
 *
 * Layers are numbered from the end, as DINOv2's get_intermediate_layers(n) counts: 1 is the last block's output, `depth` the first block's. "all:0,11" names blocks from the start instead and
 * means the same things. The order on the command line doesn't matter: both are sets. Pure functions. */
#ifndef KD_COMMON_TENSOR_FEATURE_LIST_H
#define KD_COMMON_TENSOR_FEATURE_LIST_H

#include <stddef.h>

#include "common/tensor/feature.h"
#include "common/tensor/target.h"

/* "cls,patch" -> bits 1 << KD_FEATURE_*. KD_EUSAGE: an unknown name (with the nearest), one given twice, none. */
kd_status kd_features_parse(const char *text, unsigned *features, kd_err *err);
/* The inverse, in the order of kd_feature: "cls,patch". */
const char *kd_features_text(unsigned features, char *buf, size_t cap);

/* "1,4" or "all:8,11" for a teacher of `depth` blocks -> layer[0..*count), ascending, 1 = last. KD_EUSAGE naming the depth: a number that is none, out of range, given twice,
 * or more than KD_MAX_LAYERS of them. */
kd_status kd_layers_parse(const char *text, int depth, uint16_t layer[KD_MAX_LAYERS], int *count, kd_err *err);
const char *kd_layers_text(const uint16_t *layer, int count, char *buf, size_t cap);

/* "adjoint:7,adjoint:14" -> target[0..*count), in the order given, for a grid_h x grid_w grid. KD_EUSAGE: a target that is none, twice the same, larger than the grid, or more than
 * KD_MAX_TARGETS. */
kd_status kd_targets_parse(kd_target target[KD_MAX_TARGETS], int *count, const char *text, int grid_h, int grid_w, kd_err *err);

#endif

/* Inside of common/weights only: what the pieces of ViT detection (vit_detect.c, vit_tensors.c, vit_sidecar.c, vit_named.c) share. */
#ifndef KD_COMMON_WEIGHTS_VIT_PARTS_H
#define KD_COMMON_WEIGHTS_VIT_PARTS_H

#include "common/weights/vit_spec.h"

/* Fills what follows from the shape numbers: ln_eps when 0, rotary periods unless from the file, parameters, and mean and std from a named normalisation. */
void kd_vit_set_defaults(kd_vit_spec *s);
/* s->name from the table of known models, or a description. */
void kd_vit_set_name(kd_vit_spec *s);

#endif

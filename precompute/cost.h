/* Cost: what one view costs a teacher, from its shape alone: before weights are read, and without a device. */
#ifndef KD_PRECOMPUTE_COST_H
#define KD_PRECOMPUTE_COST_H

#include "common/weights/vit_spec.h"

typedef struct kd_teacher_cost {
    int64_t tokens;          /* class token, registers and patches */
    double flops;            /* of one view through all blocks: matrix work, 2 per multiply-add (as kernels/ops.h counts) */
    uint64_t model_f32, model_bf16; /* bytes of the parameters in that type */
} kd_teacher_cost;

/* height and width in pixels, multiples of the patch. */
kd_teacher_cost kd_teacher_cost_of(const kd_vit_spec *s, int height, int width);

#endif

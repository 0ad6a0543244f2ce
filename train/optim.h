/* Optim: AdamW with gradient clipping over the flat parameter arrays of a student. Weight decay only on the decayed range (no 1-D parameters, tokens, positions).
 *
 *     KD_TRY(kd_optim_create(&o, params, weight_decay, err));
 *     KD_TRY(kd_optim_step(&o, gradients, lr, clip, &norm, err));   // o.steps counts
 */
#ifndef KD_TRAIN_OPTIM_H
#define KD_TRAIN_OPTIM_H

#include "kernels/nn/graph.h"

typedef struct kd_optim {
    kd_backend *backend;
    kd_params *params;
    float *m, *v;      /* device, as long as the trained parameters */
    float *scalars;    /* device: sum of squares of the gradient, scale of clipping */
    size_t decayed, total;
    double weight_decay;
    int64_t steps;     /* taken so far: AdamW's t */
} kd_optim;

kd_status kd_optim_create(kd_optim *o, kd_backend *backend, kd_params *params, double weight_decay, kd_err *err); /* borrows both */
void kd_optim_destroy(kd_optim *o); /* accepts a zeroed one */

/* One step; clip 0 = none. *norm is the gradient's norm before clipping; when it isn't finite, nothing is changed and the step isn't counted. */
kd_status kd_optim_step(kd_optim *o, const float *gradients, double lr, double clip, double *norm, kd_err *err);

#endif

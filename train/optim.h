/* Optim: the step of an optimizer over the flat parameter arrays of a student, with gradient clipping. Weight decay only on the decayed range (no 1-D parameters, tokens, positions).
 *
 *     KD_TRY(kd_optim_create(&o, params, &(kd_optim_spec){.kind = KD_ADAMW, .weight_decay = 0.04}, err));
 *     KD_TRY(kd_optim_step(&o, gradients, lr, clip, &norm, err));   // o.steps counts
 *
 * AdamW: beta 0.9 and 0.999, eps 1e-8. SGD: torch.optim.SGD with momentum. LARS: as LightlyTrain uses lightly's, trust 1e-3, eps 1e-8, for the decayed tensors; those without decay
 * take plain SGD, and with --weight-decay 0 all do. What a step needs of those before it lies in named slots, which checkpoints keep. */
#ifndef KD_TRAIN_OPTIM_H
#define KD_TRAIN_OPTIM_H

#include "kernels/nn/graph.h"

typedef enum kd_optimizer { KD_ADAMW, KD_SGD, KD_LARS, KD_OPTIMIZERS } kd_optimizer;
/* One of --optimizer's choices. */
kd_optimizer kd_optimizer_find(const char *name);

typedef struct kd_optim_spec {
    kd_optimizer kind;
    double weight_decay, momentum; /* momentum: of SGD and LARS */
} kd_optim_spec;

/* "adam.m" and "adam.v", or "momentum". */
typedef struct kd_optim_slot {
    const char *name;
    float *data; /* device, as long as the trained parameters; zero at the start */
} kd_optim_slot;
enum { KD_OPTIM_SLOTS = 2 };

typedef struct kd_optim {
    kd_backend *backend;
    kd_params *params;
    kd_optim_spec spec;
    kd_optim_slot slot[KD_OPTIM_SLOTS];
    int slots;
    float *scalars;    /* device: sum of squares of the gradient, scale of clipping */
    uint64_t *begin;   /* LARS, device: where each decayed tensor begins, and where the last one ends */
    float *rate;       /* LARS, device: the tensors' rates of the last step */
    size_t tensors;    /* LARS */
    size_t decayed, total;
    int64_t steps;     /* taken so far: AdamW's t */
} kd_optim;

kd_status kd_optim_create(kd_optim *o, kd_backend *backend, kd_params *params, const kd_optim_spec *spec, kd_err *err); /* borrows backend and params */
void kd_optim_destroy(kd_optim *o); /* accepts a zeroed one */
size_t kd_optim_device_bytes(const kd_optim *o);

/* One step; clip 0 = none. *norm is the gradient's norm before clipping; when it isn't finite, nothing is changed and the step isn't counted. */
kd_status kd_optim_step(kd_optim *o, const float *gradients, double lr, double clip, double *norm, kd_err *err);

#endif

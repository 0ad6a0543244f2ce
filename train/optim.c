#include "train/optim.h"

#include <math.h>

#include "common/base/mem.h"

enum { SUM_SQUARES = 0, SCALE = 16, SCALARS = 32 }; /* a cache line each */

kd_status kd_optim_create(kd_optim *o, kd_backend *backend, kd_params *params, double weight_decay, kd_err *err) {
    *o = (kd_optim){.backend = backend, .params = params, .weight_decay = weight_decay};
    kd_params_trained(params, &o->decayed, &o->total);
    kd_status status = backend->v->alloc(backend, (void **)&o->m, o->total * sizeof(float), err);
    if (status == KD_OK)
        status = backend->v->alloc(backend, (void **)&o->v, o->total * sizeof(float), err);
    if (status == KD_OK)
        status = backend->v->alloc(backend, (void **)&o->scalars, SCALARS * sizeof(float), err);
    if (status != KD_OK)
        kd_optim_destroy(o);
    return status;
}

void kd_optim_destroy(kd_optim *o) {
    if (o->backend == NULL)
        return;
    o->backend->v->release(o->backend, o->m);
    o->backend->v->release(o->backend, o->v);
    o->backend->v->release(o->backend, o->scalars);
    *o = (kd_optim){0};
}

kd_status kd_optim_step(kd_optim *o, const float *gradients, double lr, double clip, double *norm, kd_err *err) {
    const kd_backend_table *v = o->backend->v;
    float sum, *w = kd_params_trained(o->params, NULL, NULL);
    kd_adamw h = {.lr = (float)lr, .beta1 = 0.9f, .beta2 = 0.999f, .eps = 1e-8f, .weight_decay = (float)o->weight_decay, .step = o->steps + 1};
    KD_TRY(v->sum_squares(o->backend, o->scalars + SUM_SQUARES, gradients, o->total, err));
    KD_TRY(v->clip_scale(o->backend, o->scalars + SCALE, o->scalars + SUM_SQUARES, (float)clip, err));
    KD_TRY(v->adamw(o->backend, w, gradients, o->m, o->v, o->decayed, &h, o->scalars + SCALE, err));
    h.weight_decay = 0;
    size_t d = o->decayed;
    KD_TRY(v->adamw(o->backend, w + d, gradients + d, o->m + d, o->v + d, o->total - d, &h, o->scalars + SCALE, err));
    KD_TRY(v->download(o->backend, &sum, o->scalars + SUM_SQUARES, sizeof sum, err));
    *norm = sqrt((double)sum);
    if (isfinite(sum)) {
        o->steps++;
        kd_params_changed(o->params);
    }
    return KD_OK;
}

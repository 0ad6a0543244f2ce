#include "train/optim.h"

#include <math.h>
#include <string.h>

#include "common/base/mem.h"

enum { SUM_SQUARES = 0, SCALE = 16, SCALARS = 32 }; /* a cache line each */

static const float LARS_TRUST = 1e-3f, LARS_EPS = 1e-8f;

static const struct {
    const char *name, *slot[KD_OPTIM_SLOTS];
    int slots;
} kinds[KD_OPTIMIZERS] = {
    [KD_ADAMW] = {"adamw", {"adam.m", "adam.v"}, 2},
    [KD_SGD] = {"sgd", {"momentum"}, 1},
    [KD_LARS] = {"lars", {"momentum"}, 1},
};

kd_optimizer kd_optimizer_find(const char *name) {
    int kind = 0;
    while (strcmp(kinds[kind].name, name) != 0) {
        kind++;
        KD_ASSERT(kind < KD_OPTIMIZERS);
    }
    return (kd_optimizer)kind;
}

/* The decayed parameters in the order of their places, which is that of building: each with the padding behind it, which is zero and so adds nothing to a norm. */
static kd_status find_tensors(kd_optim *o, kd_err *err) {
    uint64_t *begin;
    int count = kd_params_count(o->params);
    KD_TRY(kd_alloc_array(&begin, (size_t)count + 1, sizeof *begin, err));
    for (int i = 0; i < count; i++) {
        kd_param_info info = kd_params_info(o->params, i);
        if (info.is_state || info.is_counter || info.carried || !info.decay)
            continue;
        begin[o->tensors] = kd_params_offset(o->params, i);
        KD_ASSERT(o->tensors == 0 || begin[o->tensors] > begin[o->tensors - 1]);
        o->tensors++;
    }
    begin[o->tensors] = o->decayed;
    kd_status status = o->backend->v->alloc(o->backend, (void **)&o->begin, (o->tensors + 1) * sizeof *begin, err);
    if (status == KD_OK)
        status = o->backend->v->upload(o->backend, o->begin, begin, (o->tensors + 1) * sizeof *begin, err);
    if (status == KD_OK)
        status = o->backend->v->alloc(o->backend, (void **)&o->rate, (o->tensors + 1) * sizeof *o->rate, err);
    kd_free(begin);
    return status;
}

static kd_status allocate(kd_optim *o, kd_err *err) {
    o->slots = kinds[o->spec.kind].slots;
    for (int k = 0; k < o->slots; k++) {
        o->slot[k].name = kinds[o->spec.kind].slot[k];
        KD_TRY(o->backend->v->alloc(o->backend, (void **)&o->slot[k].data, o->total * sizeof(float), err));
    }
    KD_TRY(o->backend->v->alloc(o->backend, (void **)&o->scalars, SCALARS * sizeof(float), err));
    return o->spec.kind == KD_LARS ? find_tensors(o, err) : KD_OK;
}

kd_status kd_optim_create(kd_optim *o, kd_backend *backend, kd_params *params, const kd_optim_spec *spec, kd_err *err) {
    *o = (kd_optim){.backend = backend, .params = params, .spec = *spec};
    kd_params_trained(params, &o->decayed, &o->total);
    kd_status status = allocate(o, err);
    if (status != KD_OK)
        kd_optim_destroy(o);
    return status;
}

void kd_optim_destroy(kd_optim *o) {
    if (o->backend == NULL)
        return;
    for (int k = 0; k < o->slots; k++)
        o->backend->v->release(o->backend, o->slot[k].data);
    o->backend->v->release(o->backend, o->scalars);
    o->backend->v->release(o->backend, o->begin);
    o->backend->v->release(o->backend, o->rate);
    *o = (kd_optim){0};
}

size_t kd_optim_device_bytes(const kd_optim *o) {
    return ((size_t)o->slots * o->total + SCALARS) * sizeof(float) + o->tensors * (sizeof *o->begin + sizeof *o->rate);
}

static kd_status step_adamw(kd_optim *o, const float *g, double lr, kd_err *err) {
    float *w = kd_params_trained(o->params, NULL, NULL), *m = o->slot[0].data, *v = o->slot[1].data;
    const float *scale = o->scalars + SCALE;
    size_t d = o->decayed;
    kd_adamw h = {.lr = lr, .beta1 = 0.9, .beta2 = 0.999, .eps = 1e-8, .weight_decay = o->spec.weight_decay, .step = o->steps + 1};
    KD_TRY(o->backend->v->adamw(o->backend, w, g, m, v, d, &h, scale, err));
    h.weight_decay = 0;
    return o->backend->v->adamw(o->backend, w + d, g + d, m + d, v + d, o->total - d, &h, scale, err);
}

static kd_status step_momentum(kd_optim *o, const float *g, double lr, kd_err *err) {
    const kd_backend_table *v = o->backend->v;
    float *w = kd_params_trained(o->params, NULL, NULL), *m = o->slot[0].data;
    const float *scale = o->scalars + SCALE;
    size_t d = o->decayed;
    kd_sgd h = {.lr = (float)lr, .momentum = (float)o->spec.momentum, .weight_decay = (float)o->spec.weight_decay};
    if (o->spec.kind == KD_LARS && o->spec.weight_decay > 0) {
        kd_lars lars = {.lr = h.lr, .momentum = h.momentum, .weight_decay = h.weight_decay, .trust = LARS_TRUST, .eps = LARS_EPS};
        KD_TRY(v->lars(o->backend, w, g, m, o->begin, o->rate, o->tensors, &lars, scale, err));
    } else {
        KD_TRY(v->sgd(o->backend, w, g, m, d, &h, scale, err));
    }
    h.weight_decay = 0;
    return v->sgd(o->backend, w + d, g + d, m + d, o->total - d, &h, scale, err);
}

kd_status kd_optim_step(kd_optim *o, const float *gradients, double lr, double clip, double *norm, kd_err *err) {
    const kd_backend_table *v = o->backend->v;
    float sum;
    KD_TRY(v->sum_squares(o->backend, o->scalars + SUM_SQUARES, gradients, o->total, err));
    KD_TRY(v->clip_scale(o->backend, o->scalars + SCALE, o->scalars + SUM_SQUARES, (float)clip, err));
    KD_TRY(o->spec.kind == KD_ADAMW ? step_adamw(o, gradients, lr, err) : step_momentum(o, gradients, lr, err));
    KD_TRY(v->download(o->backend, &sum, o->scalars + SUM_SQUARES, sizeof sum, err));
    *norm = sqrt((double)sum);
    if (isfinite(sum)) {
        o->steps++;
        kd_params_changed(o->params);
    }
    return KD_OK;
}

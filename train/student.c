#include "train/student.h"

#include <math.h>

#include "common/base/mem.h"

static kd_status build(kd_student *s, const kd_student_spec *spec, const kd_weights *weights, kd_err *err) {
    s->graph = kd_graph_create();
    if (s->graph == NULL)
        return kd_fail(err, KD_EFAIL, "out of memory for the graph of %s", spec->name);
    kd_model_taps taps = kd_model_build(s->graph, &s->model, spec->image_h, spec->image_w);
    kd_loss_build(s->graph, &taps, &spec->loss);
    KD_TRY(kd_params_create(&s->params, s->graph, s->backend, err));
    KD_TRY(kd_params_init(s->params, spec->seed, err));
    if (weights != NULL)
        KD_TRY(kd_model_load(s->params, &s->model, weights, spec->image_h, spec->image_w, err));
    KD_TRY(kd_exec_create(&s->train, s->graph, s->params, &(kd_exec_config){.batch = spec->batch, .precision = spec->precision, .train = 1}, err));
    KD_TRY(kd_exec_create(&s->infer, s->graph, s->params, &(kd_exec_config){.batch = spec->batch, .precision = spec->precision, .train = 0}, err));
    return kd_optim_create(&s->optim, s->backend, s->params, s->hyper.weight_decay, err);
}

static kd_status describe(kd_student *s, const kd_student_spec *spec, const kd_weights *weights, kd_err *err) {
    KD_TRY(kd_model_find(&s->model, spec->name, weights, err));
    KD_TRY(kd_model_check_student(&s->model, err));
    KD_TRY(kd_model_check_size(&s->model, spec->image_h, spec->image_w, err));
    if (spec->precision == KD_BF16)
        KD_TRY(s->backend->v->check_bf16(s->backend, err));
    s->name = s->model.name;
    s->image_h = spec->image_h;
    s->image_w = spec->image_w;
    s->batch = spec->batch;
    s->loss = spec->loss;
    s->best_loss = INFINITY;
    return kd_train_hyper(&s->hyper, spec->config, &s->model, err);
}

kd_status kd_student_create(kd_student **out, kd_backend *backend, const kd_student_spec *spec, kd_err *err) {
    kd_weights *weights = NULL;
    kd_student *s;
    *out = NULL;
    KD_TRY(kd_alloc_array(&s, 1, sizeof *s, err));
    s->backend = backend;
    kd_status status = spec->init != NULL ? kd_weights_open(&weights, spec->init, err) : KD_OK;
    if (status == KD_OK)
        status = describe(s, spec, weights, err);
    if (status == KD_OK)
        status = build(s, spec, weights, err);
    kd_weights_close(weights);
    if (status != KD_OK) {
        kd_student_destroy(s);
        return status;
    }
    *out = s;
    return KD_OK;
}

void kd_student_destroy(kd_student *s) {
    if (s == NULL)
        return;
    kd_optim_destroy(&s->optim);
    kd_exec_destroy(s->train);
    kd_exec_destroy(s->infer);
    kd_params_destroy(s->params);
    kd_graph_destroy(s->graph);
    kd_free(s);
}

size_t kd_student_device_bytes(const kd_student *s) {
    size_t states;
    kd_params_states(s->params, &states);
    return kd_exec_device_bytes(s->train) + kd_exec_device_bytes(s->infer) + (3 * s->optim.total + states) * sizeof(float);
}

kd_status kd_student_put(kd_student *s, kd_exec *program, int row, const kd_sample *sample, int with_targets, kd_err *err) {
    KD_TRY(kd_exec_upload_rows(program, "images", row, 1, sample->pixels, err));
    if (with_targets && s->loss.cls_weight > 0)
        KD_TRY(kd_exec_upload_rows(program, "target.cls", row, 1, sample->cls, err));
    if (with_targets && s->loss.patch_weight > 0)
        KD_TRY(kd_exec_upload_rows(program, "target.patch", row, 1, sample->patch, err));
    return KD_OK;
}

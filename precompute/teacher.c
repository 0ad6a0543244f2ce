#include "precompute/teacher.h"

#include <stdio.h>
#include <string.h>

#include "common/base/mem.h"

struct kd_teacher {
    kd_backend *backend;
    kd_model_info model;
    kd_layer_choice choice;
    kd_graph *graph;
    kd_params *params;
    kd_exec *exec;
    int batch, height, width;
    uint8_t *planes;        /* device: encoded records of the largest feature */
    kd_encode_stats *stats; /* device: one per row of the batch */
    uint8_t *padding;       /* host: one view of zeros */
};

size_t kd_teacher_record_values(const kd_teacher *t, kd_feature f) {
    const kd_vit_spec *s = &t->model.vit;
    size_t width = (size_t)s->width * (size_t)(t->choice.concat ? t->choice.layers : 1);
    size_t patches = (size_t)(t->height / s->patch) * (size_t)(t->width / s->patch);
    return width * (f == KD_FEATURE_PATCH ? patches : f == KD_FEATURE_REGISTERS ? (size_t)s->registers : 1);
}

static size_t largest_record(const kd_teacher *t) {
    size_t most = 1;
    for (kd_feature f = 0; f < KD_OUTPUTS; f++)
        if (t->choice.features & 1u << f && kd_teacher_record_values(t, f) > most)
            most = kd_teacher_record_values(t, f);
    return most;
}

static size_t planes_bytes(const kd_teacher *t) {
    return 2 * largest_record(t) * (size_t)t->batch;
}

static kd_status build(kd_teacher *t, const kd_weights *weights, kd_dtype precision, kd_err *err) {
    t->graph = kd_graph_create();
    if (t->graph == NULL)
        return kd_fail(err, KD_EFAIL, "out of memory for the teacher's graph");
    kd_model_build_layers(t->graph, &t->model, t->height, t->width, &t->choice);
    KD_TRY(kd_model_params_frozen(&t->params, t->graph, t->backend, &t->model, weights, t->height, t->width, err));
    KD_TRY(kd_exec_create(&t->exec, t->graph, t->params, &(kd_exec_config){.batch = t->batch, .precision = precision}, err));
    KD_TRY(t->backend->v->alloc(t->backend, (void **)&t->planes, planes_bytes(t), err));
    KD_TRY(t->backend->v->alloc(t->backend, (void **)&t->stats, sizeof(kd_encode_stats) * (size_t)t->batch, err));
    return kd_alloc_array(&t->padding, (size_t)t->height * (size_t)t->width, 3, err);
}

kd_status kd_teacher_open(kd_teacher **out, kd_backend *backend, const kd_weights *weights, const kd_teacher_config *c, kd_err *err) {
    *out = NULL;
    KD_TRY(kd_model_check_size(c->model, c->height, c->width, err));
    if (c->precision == KD_BF16)
        KD_TRY(backend->v->check_bf16(backend, err));
    kd_teacher *t = kd_calloc(1, sizeof *t);
    if (t == NULL)
        return kd_fail(err, KD_EFAIL, "out of memory for the teacher");
    t->backend = backend;
    t->model = *c->model;
    t->choice = *c->choice;
    t->batch = c->batch;
    t->height = c->height;
    t->width = c->width;
    kd_status status = build(t, weights, c->precision, err);
    if (status != KD_OK) {
        kd_teacher_close(t);
        return status;
    }
    *out = t;
    return KD_OK;
}

void kd_teacher_close(kd_teacher *t) {
    if (t == NULL)
        return;
    kd_exec_destroy(t->exec);
    kd_params_destroy(t->params);
    kd_graph_destroy(t->graph);
    t->backend->v->release(t->backend, t->planes);
    t->backend->v->release(t->backend, t->stats);
    kd_free(t->padding);
    kd_free(t);
}

size_t kd_teacher_model_bytes(const kd_teacher *t) {
    return kd_exec_model_bytes(t->exec);
}

size_t kd_teacher_work_bytes(const kd_teacher *t) {
    return kd_exec_device_bytes(t->exec) - kd_exec_model_bytes(t->exec) + planes_bytes(t);
}

double kd_teacher_flops(const kd_teacher *t) {
    return kd_exec_flops(t->exec) / t->batch;
}

kd_status kd_teacher_run(kd_teacher *t, const uint8_t *views, int count, kd_err *err) {
    KD_ASSERT(count > 0 && count <= t->batch);
    KD_TRY(kd_exec_upload_rows(t->exec, "images", 0, count, views, err));
    for (int row = count; row < t->batch; row++)
        KD_TRY(kd_exec_upload_rows(t->exec, "images", row, 1, t->padding, err));
    return kd_exec_forward(t->exec, err);
}

kd_status kd_teacher_planes(kd_teacher *t, kd_feature f, uint16_t layer, int count, uint8_t *planes, kd_encode_stats *stats, kd_err *err) {
    KD_ASSERT((t->choice.features & 1u << f) && count > 0 && count <= t->batch);
    const kd_backend_table *v = t->backend->v;
    kd_tdesc desc;
    char name[32];
    snprintf(name, sizeof name, "%s.%u", kd_feature_name(f), (unsigned)layer); /* the outputs of kd_model_build_layers */
    const void *values = kd_exec_output(t->exec, name, &desc);
    size_t n = kd_teacher_record_values(t, f), rows = (size_t)count;
    KD_ASSERT(values != NULL && desc.dtype == KD_F32 && kd_tdesc_numel(&desc) == n * (size_t)t->batch);
    KD_TRY(v->encode_f16(t->backend, t->planes, t->stats, values, rows, n, err));
    KD_TRY(v->download(t->backend, planes, t->planes, rows * n * 2, err));
    KD_TRY(v->download(t->backend, stats, t->stats, rows * sizeof *stats, err));
    for (size_t i = 0; i < rows; i++)
        if (stats[i].bad > 0)
            return kd_fail(err, KD_ENONFINITE,
                           "row %zu of the batch: %.0f of %zu %s features of layer %u are NaN, infinite or beyond the f16 range of 65504; check the teacher's "
                           "weights, and with --precision bf16 try f32%s",
                           i, stats[i].bad, n, kd_feature_name(f), (unsigned)layer, t->choice.norm ? "" : ", or --layer-norm on");
    return KD_OK;
}

#include "precompute/teacher.h"

#include <string.h>

#include "common/base/mem.h"

struct kd_teacher {
    kd_backend *backend;
    kd_model_info model;
    kd_model_taps taps;
    kd_graph *graph;
    kd_params *params;
    kd_exec *exec;
    int batch, image_h, image_w;
    int want[KD_FEATURES];
    uint8_t *planes;        /* device: encoded records of the larger feature */
    kd_encode_stats *stats; /* device: one per row of the batch */
    uint8_t *padding;       /* host: one view of zeros */
};

/* Outputs that kd_model_build names. */
static const char *const output_name[KD_FEATURES] = {"cls", "map"};

void kd_teacher_feature_shape(const kd_teacher *t, kd_feature f, uint32_t *rows, uint32_t *width) {
    *rows = f == KD_FEATURE_CLS ? 1 : (uint32_t)(t->taps.map_h * t->taps.map_w);
    *width = (uint32_t)t->model.width;
}

static size_t record_values(const kd_teacher *t, kd_feature f) {
    uint32_t rows, width;
    kd_teacher_feature_shape(t, f, &rows, &width);
    return (size_t)rows * width;
}

static kd_status build(kd_teacher *t, const kd_weights *weights, kd_dtype precision, kd_err *err) {
    t->graph = kd_graph_create();
    if (t->graph == NULL)
        return kd_fail(err, KD_EFAIL, "out of memory for the teacher's graph");
    t->taps = kd_model_build(t->graph, &t->model, t->image_h, t->image_w);
    KD_TRY(kd_params_create(&t->params, t->graph, t->backend, err));
    KD_TRY(kd_model_load(t->params, &t->model, weights, t->image_h, t->image_w, err));
    KD_TRY(kd_exec_create(&t->exec, t->graph, t->params, &(kd_exec_config){.batch = t->batch, .precision = precision}, err));
    size_t largest = record_values(t, t->want[KD_FEATURE_PATCH] ? KD_FEATURE_PATCH : KD_FEATURE_CLS);
    KD_TRY(t->backend->v->alloc(t->backend, (void **)&t->planes, 2 * largest * (size_t)t->batch, err));
    KD_TRY(t->backend->v->alloc(t->backend, (void **)&t->stats, sizeof(kd_encode_stats) * (size_t)t->batch, err));
    return kd_alloc_array(&t->padding, (size_t)t->image_h * (size_t)t->image_w, 3, err);
}

kd_status kd_teacher_open(kd_teacher **out, kd_backend *backend, const kd_weights *weights, const char *name, int image_h, int image_w, int batch,
                          kd_dtype precision, int want_cls, int want_patch, kd_err *err) {
    *out = NULL;
    kd_model_info model;
    KD_TRY(kd_model_find(&model, name, weights, err));
    KD_TRY(kd_model_check_size(&model, image_h, image_w, err));
    if (precision == KD_BF16)
        KD_TRY(backend->v->check_bf16(backend, err));
    kd_teacher *t = kd_calloc(1, sizeof *t);
    if (t == NULL)
        return kd_fail(err, KD_EFAIL, "out of memory for the teacher");
    t->backend = backend;
    t->model = model;
    t->batch = batch;
    t->image_h = image_h;
    t->image_w = image_w;
    t->want[KD_FEATURE_CLS] = want_cls;
    t->want[KD_FEATURE_PATCH] = want_patch;
    kd_status status = build(t, weights, precision, err);
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

const kd_model_info *kd_teacher_model(const kd_teacher *t) {
    return &t->model;
}

size_t kd_teacher_device_bytes(const kd_teacher *t) {
    return kd_exec_device_bytes(t->exec);
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

kd_status kd_teacher_planes(kd_teacher *t, kd_feature f, int count, uint8_t *planes, kd_encode_stats *stats, kd_err *err) {
    KD_ASSERT(t->want[f] && count > 0 && count <= t->batch);
    const kd_backend_table *v = t->backend->v;
    kd_tdesc desc;
    const void *values = kd_exec_output(t->exec, output_name[f], &desc);
    size_t n = record_values(t, f), rows = (size_t)count;
    KD_ASSERT(values != NULL && desc.dtype == KD_F32 && kd_tdesc_numel(&desc) == n * (size_t)t->batch);
    KD_TRY(v->encode_f16(t->backend, t->planes, t->stats, values, rows, n, err));
    KD_TRY(v->download(t->backend, planes, t->planes, rows * n * 2, err));
    KD_TRY(v->download(t->backend, stats, t->stats, rows * sizeof *stats, err));
    for (size_t i = 0; i < rows; i++)
        if (stats[i].bad > 0)
            return kd_fail(err, KD_ENONFINITE,
                           "row %zu of the batch: %.0f of %zu %s features are NaN, infinite or beyond the f16 range of 65504; check the teacher's "
                           "weights, and with --precision bf16 try f32",
                           i, stats[i].bad, n, kd_feature_name(f));
    return KD_OK;
}

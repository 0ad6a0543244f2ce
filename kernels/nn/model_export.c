/* Writing a model as the reference library's state_dict in .safetensors. */
#include <math.h>
#include <stdio.h>

#include "common/base/mem.h"
#include "common/weights/safetensors.h"
#include "kernels/nn/graph_impl.h"
#include "kernels/nn/model_builders.h"

/* Values of parameter i as a tensor that owns its data (kd_free). */
static kd_status export_one(kd_params *p, int i, kd_dtype dtype, kd_tensor *t, kd_err *err) {
    kd_param_info info = kd_params_info(p, i);
    float *values = NULL;
    *t = (kd_tensor){.name = info.name, .dtype = info.is_counter ? KD_I64 : dtype, .rank = info.rank};
    for (int k = 0; k < info.rank; k++)
        t->shape[k] = info.shape[k];
    if (info.is_counter) {
        int64_t *n = NULL;
        KD_TRY(kd_alloc_array(&n, 1, sizeof *n, err));
        *n = kd_params_counter(p);
        t->data = n;
        return KD_OK;
    }
    KD_TRY(kd_alloc_array(&values, info.count, sizeof *values, err));
    t->data = values;
    KD_TRY(kd_params_get(p, i, values, err));
    for (size_t k = 0; k < info.count; k++) {
        if (!isfinite(values[k]))
            return kd_fail(err, KD_ENONFINITE, "parameter %s is %g at index %zu and isn't exported; go back to an earlier checkpoint", info.name, (double)values[k], k);
        if (dtype == KD_F16 && !isfinite(kd_f16_to_f32(kd_f32_to_f16(values[k]))))
            return kd_fail(err, KD_ENONFINITE, "parameter %s is %g at index %zu, above the f16 limit of 65504; export as f32", info.name, (double)values[k], k);
    }
    if (dtype == KD_F16) /* half the bytes from the front: each write stays behind the reads */
        for (size_t k = 0; k < info.count; k++)
            ((uint16_t *)(void *)values)[k] = kd_f32_to_f16(values[k]);
    return KD_OK;
}

static int set_text(json_t *o, const char *key, const char *text) {
    return json_object_set_new(o, key, json_string(text));
}

static int set_triple(json_t *o, const char *key, const float v[3]) {
    char text[100];
    snprintf(text, sizeof text, "[%.7g, %.7g, %.7g]", (double)v[0], (double)v[1], (double)v[2]);
    return set_text(o, key, text);
}

json_t *kd_model_metadata(const kd_model_info *m, const json_t *metadata) {
    json_t *o = json_object();
    int bad = !o || (metadata && json_object_update(o, (json_t *)(uintptr_t)metadata));
    bad = bad || set_text(o, "model", m->name) || set_text(o, "library", m->library) || set_triple(o, "image_mean", m->mean) || set_triple(o, "image_std", m->std);
    bad = bad || set_text(o, "normalisation", "RGB: (pixel / 255 - image_mean) / image_std");
    if (bad) {
        json_decref(o);
        return NULL;
    }
    return o;
}

static kd_status write_all(kd_params *p, const kd_model_info *m, const kd_graph *names, kd_tensor *tensors, const char *path, kd_dtype dtype, const json_t *metadata, kd_err *err) {
    for (int i = 0; i < names->param_count; i++) {
        int k = kd_params_find(p, names->params[i].info.name);
        KD_ASSERT(k >= 0);
        KD_TRY(export_one(p, k, dtype, &tensors[i], err));
    }
    json_t *all = kd_model_metadata(m, metadata);
    if (!all)
        return kd_fail(err, KD_EFAIL, "%s: out of memory for the metadata", path);
    kd_status status = kd_safetensors_write(path, tensors, (size_t)names->param_count, all, err);
    json_decref(all);
    return status;
}

kd_status kd_model_export(kd_params *p, const kd_model_info *m, const char *path, kd_dtype dtype, const json_t *metadata, kd_err *err) {
    kd_graph *names = NULL;
    kd_tensor *tensors = NULL;
    KD_ASSERT(dtype == KD_F32 || dtype == KD_F16);
    KD_TRY(kd_model_graph(&names, m, err));
    int count = names->param_count;
    kd_status status = names->failed ? kd_fail(err, KD_EFAIL, "out of memory for the names of %s", m->name) : kd_alloc_array(&tensors, (size_t)count, sizeof *tensors, err);
    if (status == KD_OK)
        status = write_all(p, m, names, tensors, path, dtype, metadata, err);
    for (int i = 0; tensors && i < count; i++)
        kd_free((void *)(uintptr_t)tensors[i].data);
    kd_free(tensors);
    kd_graph_destroy(names);
    return status;
}

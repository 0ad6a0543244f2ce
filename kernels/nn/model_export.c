/* A model as the reference library's state_dict, for the writers of weight files. */
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

void kd_model_state_free(kd_model_state *s) {
    for (size_t i = 0; i < s->count; i++)
        kd_free((void *)(uintptr_t)s->tensor[i].data);
    kd_free(s->tensor);
    *s = (kd_model_state){0};
}

static kd_status read_state(kd_model_state *s, kd_params *p, const kd_model_info *m, const kd_graph *names, kd_dtype dtype, kd_err *err) {
    if (names->failed)
        return kd_fail(err, KD_EFAIL, "out of memory for the names of %s", m->name);
    KD_TRY(kd_alloc_array(&s->tensor, (size_t)names->param_count, sizeof *s->tensor, err));
    for (int i = 0; i < names->param_count; i++) {
        int k = kd_params_find(p, names->params[i].info.name);
        KD_ASSERT(k >= 0);
        if (!names->params[i].info.classifier)
            KD_TRY(export_one(p, k, dtype, &s->tensor[s->count++], err)); /* counted first: what it leaves behind when it fails is freed too */
    }
    return KD_OK;
}

kd_status kd_model_state_read(kd_model_state *s, kd_params *p, const kd_model_info *m, kd_dtype dtype, kd_err *err) {
    kd_graph *names = NULL;
    KD_ASSERT(dtype == KD_F32 || dtype == KD_F16);
    *s = (kd_model_state){0};
    KD_TRY(kd_model_graph(&names, m, err));
    kd_status status = read_state(s, p, m, names, dtype, err);
    kd_graph_destroy(names);
    if (status != KD_OK)
        kd_model_state_free(s);
    return status;
}

/* ---- what goes with it ---- */

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

kd_status kd_model_export(kd_params *p, const kd_model_info *m, const char *path, kd_dtype dtype, const json_t *metadata, kd_err *err) {
    kd_model_state s;
    KD_TRY(kd_model_state_read(&s, p, m, dtype, err));
    json_t *all = kd_model_metadata(m, metadata);
    kd_status status = all ? kd_safetensors_write(path, s.tensor, s.count, all, err) : kd_fail(err, KD_EFAIL, "%s: out of memory for the metadata", path);
    json_decref(all);
    kd_model_state_free(&s);
    return status;
}

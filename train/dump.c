/* The tensors of a file are listed with their device addresses and fetched one by one while the file is written. */
#include "train/dump.h"

#include <stdlib.h>
#include <string.h>

#include "common/base/io.h"
#include "common/base/log.h"
#include "common/base/mem.h"
#include "common/weights/safetensors.h"
#include "kernels/nn/inspect.h"

typedef struct dump {
    kd_backend *backend;
    kd_arena *names;
    kd_tensor *tensors; /* data: device addresses */
    size_t count, most; /* bytes of the largest */
    void *host;
} dump;

static int wanted(const kd_setup *s, int64_t step) {
    const kd_train_config *c = s->config;
    return c->dump != NULL && step <= (c->steps > 0 ? c->steps : KD_DUMP_STEPS);
}

/* ---- which tensors ---- */

static kd_status add(dump *d, const char *group, const char *name, kd_dtype dtype, int rank, const int64_t *shape, const void *device, kd_err *err) {
    kd_tensor *t = &d->tensors[d->count++];
    *t = (kd_tensor){.name = kd_arena_printf(d->names, "%s/%s", group, name), .dtype = dtype, .rank = rank, .data = device};
    if (t->name == NULL)
        return kd_fail(err, KD_EFAIL, "out of memory for a dump");
    memcpy(t->shape, shape, (size_t)rank * sizeof *shape);
    size_t bytes = kd_tensor_numel(t) * kd_dtype_size(dtype);
    d->most = bytes > d->most ? bytes : d->most;
    return KD_OK;
}

static kd_status add_params(dump *d, kd_student *s, int gradients, kd_err *err) {
    for (int i = 0; i < kd_params_count(s->params); i++) {
        kd_param_info info = kd_params_info(s->params, i);
        const float *data = gradients ? kd_exec_gradient(s->program[0].train, i) : kd_params_data(s->params, i);
        if (data != NULL)
            KD_TRY(add(d, gradients ? "grad" : "param", info.name, KD_F32, info.rank, info.shape, data, err));
    }
    return KD_OK;
}

static kd_status add_taps(dump *d, const kd_student *s, int k, kd_err *err) {
    const kd_exec *e = s->program[k].train;
    char group[16];
    for (int output = 0; output < 2; output++) {
        const char *what = output ? "output" : "input";
        snprintf(group, sizeof group, k == 0 ? "%s" : "%s.%d", what, k + 1);
        for (int i = 0; i < (output ? kd_exec_outputs(e) : kd_exec_inputs(e)); i++) {
            kd_exec_tap t = output ? kd_exec_output_tap(e, i) : kd_exec_input_tap(e, i);
            KD_TRY(add(d, group, t.name, t.desc.dtype, t.desc.rank, t.desc.shape, t.data, err));
        }
    }
    return KD_OK;
}

static kd_status add_ops(dump *d, const kd_student *s, int k, kd_err *err) {
    const kd_exec *e = s->program[k].train;
    char group[24];
    for (int i = 0; i < kd_exec_ops(e); i++) {
        kd_exec_tap t = kd_exec_op_tap(e, i);
        char name[300];
        snprintf(group, sizeof group, k == 0 ? "op" : "op.%d", k + 1);
        snprintf(name, sizeof name, "%04d %.250s", i, t.name);
        KD_TRY(add(d, group, name, t.desc.dtype, t.desc.rank, t.desc.shape, t.data, err));
    }
    return KD_OK;
}

static kd_status collect(dump *d, kd_student *s, int64_t step, int step_done, kd_err *err) {
    size_t room = 2 * (size_t)kd_params_count(s->params);
    for (int k = 0; k < s->programs; k++)
        room += (size_t)(kd_exec_inputs(s->program[k].train) + kd_exec_outputs(s->program[k].train) + kd_exec_ops(s->program[k].train));
    KD_TRY(kd_alloc_array(&d->tensors, room, sizeof *d->tensors, err));
    KD_TRY(add_params(d, s, 0, err));
    if (step_done)
        KD_TRY(add_params(d, s, 1, err));
    for (int k = 0; k < s->programs && step_done; k++)
        KD_TRY(add_taps(d, s, k, err));
    for (int k = 0; k < s->programs && step_done && step == 1; k++)
        KD_TRY(add_ops(d, s, k, err));
    return KD_OK;
}

/* ---- the file ---- */

static kd_status put(void *ctx, const kd_tensor *t, kd_replace *file, kd_err *err) {
    dump *d = ctx;
    size_t bytes = kd_tensor_numel(t) * kd_dtype_size(t->dtype);
    KD_TRY(d->backend->v->download(d->backend, d->host, t->data, bytes, err));
    return kd_io_replace_write(file, d->host, bytes, err);
}

static kd_status write_tensors(dump *d, kd_student *s, int64_t step, int step_done, const char *path, const json_t *metadata, kd_err *err) {
    d->names = kd_arena_create();
    if (d->names == NULL)
        return kd_fail(err, KD_EFAIL, "out of memory for a dump");
    KD_TRY(collect(d, s, step, step_done, err));
    KD_TRY(kd_alloc_array(&d->host, d->most, 1, err));
    return kd_safetensors_stream(path, d->tensors, d->count, metadata, put, d, err);
}

/* Takes over metadata. */
static kd_status write_file(const kd_setup *u, kd_student *s, int64_t step, int step_done, json_t *metadata, kd_err *err) {
    dump d = {.backend = s->backend};
    char *folder = kd_asprintf("%s/%s", u->config->dump, s->name), *path = kd_asprintf("%s/%s/step-%04lld.safetensors", u->config->dump, s->name, (long long)step);
    kd_status status = folder != NULL && path != NULL && metadata != NULL ? kd_io_mkdirs(folder, err) : kd_fail(err, KD_EFAIL, "out of memory for a dump");
    if (status == KD_OK)
        status = write_tensors(&d, s, step, step_done, path, metadata, err);
    json_decref(metadata);
    kd_arena_destroy(d.names);
    kd_free(d.tensors);
    kd_free(d.host);
    kd_free(folder);
    kd_free(path);
    return status;
}

/* ---- what stands beside the tensors: texts only, as the format wants ---- */

static void put_number(json_t *metadata, const char *key, double x) {
    char text[40];
    snprintf(text, sizeof text, "%.17g", x);
    json_object_set_new(metadata, key, json_string(text));
}

/* Takes over value. */
static void put_json(json_t *metadata, const char *key, json_t *value) {
    char *text = value != NULL ? json_dumps(value, JSON_COMPACT | JSON_REAL_PRECISION(17)) : NULL;
    json_object_set_new(metadata, key, json_string(text != NULL ? text : "null"));
    free(text); /* jansson's allocator */
    json_decref(value);
}

static json_t *decayed_names(const kd_student *s) {
    json_t *list = json_array();
    for (int i = 0; i < kd_params_count(s->params); i++) {
        kd_param_info info = kd_params_info(s->params, i);
        if (info.decay && !info.is_state && !info.carried)
            json_array_append_new(list, json_string(info.name));
    }
    return list;
}

static json_t *terms_of(const kd_student *s) {
    json_t *list = json_array();
    for (int i = 0; i < s->loss.terms; i++) {
        const kd_term *t = &s->loss.term[i];
        json_array_append_new(list, json_pack("{s:s, s:s, s:s, s:f}", "name", t->name, "kind", kd_term_facts_of(t->kind)->name, "pair", s->loss.pair[t->pair].name, "weight", t->weight));
    }
    return list;
}

static json_t *describe_start(const kd_setup *u, const kd_student *s, int64_t step) {
    const kd_model_info *m = &s->model;
    json_t *j = json_pack("{s:s, s:s}", "student", s->name, "library", m->library);
    if (j == NULL)
        return NULL;
    put_number(j, "step", (double)step);
    put_number(j, "lr", s->hyper.lr);
    put_number(j, "weight_decay", s->hyper.optim.weight_decay);
    put_number(j, "clip", s->hyper.clip);
    put_json(j, "mean", json_pack("[f,f,f]", (double)m->mean[0], (double)m->mean[1], (double)m->mean[2]));
    put_json(j, "std", json_pack("[f,f,f]", (double)m->std[0], (double)m->std[1], (double)m->std[2]));
    put_json(j, "decayed", decayed_names(s));
    put_json(j, "terms", terms_of(s));
    put_json(j, "options", json_incref(u->options));
    return j;
}

kd_status kd_dump_start(const kd_setup *u, int64_t step, kd_err *err) {
    if (u->config->dump == NULL)
        return KD_OK;
    if (u->config->accumulate > 1)
        return kd_fail(err, KD_EUSAGE, "--dump holds one batch for each step, and --accumulate %lld makes a step of as many; leave --accumulate out", (long long)u->config->accumulate);
    if (!wanted(u, step + 1)) {
        kd_log(KD_LOG_WARN, "--dump writes nothing: the run has done %lld steps already; give --steps %lld or more, or another --out", (long long)step, (long long)step + 1);
        return KD_OK;
    }
    for (size_t i = 0; i < u->count; i++)
        KD_TRY(write_file(u, u->students[i], step, 0, describe_start(u, u->students[i], step), err));
    return KD_OK;
}

kd_status kd_dump_step(const kd_setup *u, kd_student *s, int64_t step, double lr, const kd_step_result *result, kd_err *err) {
    if (!wanted(u, step))
        return KD_OK;
    json_t *j = json_pack("{s:s}", "student", s->name);
    if (j != NULL) {
        put_number(j, "step", (double)step);
        put_number(j, "lr", lr);
        put_number(j, "loss", result->loss);
        put_number(j, "grad_norm", result->grad_norm);
    }
    return write_file(u, s, step, 1, j, err);
}

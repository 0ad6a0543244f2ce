#include "kernels/nn/teacher.h"

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
    kd_target *target;
    int targets; /* at least 1 */
    kd_dtype store;
    uint8_t *payload;       /* device: a batch of the largest record */
    void *encode_scratch;   /* device: for the record that wants most */
    kd_encode_stats *stats; /* device: one per row of the batch */
    uint8_t *padding;       /* host: one view of zeros */
};

kd_encode_spec kd_teacher_spec(const kd_teacher *t, kd_feature f, int target) {
    const kd_vit_spec *s = &t->model.vit;
    kd_encode_spec e = {.grid_h = f == KD_FEATURE_REGISTERS ? s->registers : 1, .grid_w = 1, .dtype = t->store};
    e.width = s->width * (t->choice.concat ? t->choice.layers : 1);
    KD_ASSERT(f < KD_OUTPUTS && target >= 0 && target < (f == KD_FEATURE_PATCH ? t->targets : 1));
    if (f == KD_FEATURE_PATCH) {
        e.target = t->target[target];
        e.grid_h = t->height / s->patch;
        e.grid_w = t->width / s->patch;
    }
    return e;
}

/* What encoding takes on the device for any of the records. */
static void encode_bytes(const kd_teacher *t, size_t *payload, size_t *scratch) {
    *payload = *scratch = 1;
    for (kd_feature f = 0; f < KD_OUTPUTS; f++)
        for (int k = 0; t->choice.features & 1u << f && k < (f == KD_FEATURE_PATCH ? t->targets : 1); k++) {
            kd_encode_spec e = kd_teacher_spec(t, f, k);
            size_t p = kd_encode_bytes(&e) * (size_t)t->batch, s = kd_encode_scratch_bytes(&e, (size_t)t->batch);
            *payload = p > *payload ? p : *payload;
            *scratch = s > *scratch ? s : *scratch;
        }
}

static kd_status copy_targets(kd_teacher *t, const kd_teacher_config *c, kd_err *err) {
    t->targets = c->targets > 0 ? c->targets : 1;
    KD_TRY(kd_alloc_array(&t->target, (size_t)t->targets, sizeof *t->target, err)); /* zeroed: full */
    for (int i = 0; i < c->targets; i++)
        t->target[i] = c->target[i];
    return KD_OK;
}

static kd_status open_encoder(kd_teacher *t, kd_err *err) {
    const kd_backend_table *v = t->backend->v;
    size_t payload, scratch;
    encode_bytes(t, &payload, &scratch);
    KD_TRY(v->alloc(t->backend, (void **)&t->payload, payload, err));
    KD_TRY(v->alloc(t->backend, &t->encode_scratch, scratch, err));
    return v->alloc(t->backend, (void **)&t->stats, sizeof *t->stats * (size_t)t->batch, err);
}

static kd_status build(kd_teacher *t, const kd_weights *weights, const kd_teacher_config *c, kd_err *err) {
    KD_TRY(copy_targets(t, c, err));
    t->graph = kd_graph_create();
    if (t->graph == NULL)
        return kd_fail(err, KD_EFAIL, "out of memory for the teacher's graph");
    kd_model_build_layers(t->graph, &t->model, t->height, t->width, &t->choice);
    KD_TRY(kd_model_params_frozen(&t->params, t->graph, t->backend, &t->model, weights, t->height, t->width, err));
    KD_TRY(kd_exec_create(&t->exec, t->graph, t->params, &(kd_exec_config){.batch = t->batch, .precision = c->precision}, err));
    KD_TRY(open_encoder(t, err));
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
    t->store = c->store;
    kd_status status = build(t, weights, c, err);
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
    t->backend->v->release(t->backend, t->payload);
    t->backend->v->release(t->backend, t->encode_scratch);
    t->backend->v->release(t->backend, t->stats);
    kd_free(t->target);
    kd_free(t->padding);
    kd_free(t);
}

size_t kd_teacher_model_bytes(const kd_teacher *t) {
    return kd_exec_model_bytes(t->exec);
}

size_t kd_teacher_work_bytes(const kd_teacher *t) {
    size_t payload, scratch;
    encode_bytes(t, &payload, &scratch);
    return kd_exec_device_bytes(t->exec) - kd_exec_model_bytes(t->exec) + payload + scratch;
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

/* The first row with values that can't be stored, as a sentence. */
static kd_status check_stored(const kd_teacher *t, const kd_encode_spec *e, kd_feature f, uint16_t layer, const kd_encode_stats *stats, int count, kd_err *err) {
    size_t n = kd_encode_rows(e) * (size_t)e->width;
    for (int i = 0; i < count; i++)
        if (stats[i].bad > 0)
            return kd_fail(err, KD_ENONFINITE,
                           "row %d of the batch: %.0f of %zu %s values of layer %u are NaN, infinite or beyond the %s range of %g; check the teacher's weights%s, "
                           "and with --precision bf16 try f32%s",
                           i, stats[i].bad, n, kd_feature_name(f), (unsigned)layer, kd_dtype_name(e->dtype), (double)kd_encode_limit(e->dtype),
                           e->dtype == KD_F16 ? ", try --store bf16, which holds what is too large for f16" : "", t->choice.norm ? "" : ", or --layer-norm on");
    return KD_OK;
}

/* Queues the encoding of a kind of record into t->payload and t->stats. */
static kd_status encode(kd_teacher *t, const kd_encode_spec *e, kd_feature f, uint16_t layer, int count, kd_err *err) {
    KD_ASSERT((t->choice.features & 1u << f) && count > 0 && count <= t->batch);
    kd_tdesc desc;
    char name[32];
    snprintf(name, sizeof name, "%s.%u", kd_feature_name(f), (unsigned)layer); /* the outputs of kd_model_build_layers */
    const void *values = kd_exec_output(t->exec, name, &desc);
    size_t n = (size_t)e->grid_h * (size_t)e->grid_w * (size_t)e->width;
    KD_ASSERT(values != NULL && desc.dtype == KD_F32 && kd_tdesc_numel(&desc) == n * (size_t)t->batch);
    return t->backend->v->encode(t->backend, t->payload, t->stats, values, (size_t)count, e, t->encode_scratch, err);
}

kd_status kd_teacher_encode(kd_teacher *t, kd_feature f, uint16_t layer, int target, int count, uint8_t *payload, kd_encode_stats *stats, kd_err *err) {
    const kd_backend_table *v = t->backend->v;
    kd_encode_spec e = kd_teacher_spec(t, f, target);
    size_t rows = (size_t)count;
    KD_TRY(encode(t, &e, f, layer, count, err));
    KD_TRY(v->download(t->backend, payload, t->payload, rows * kd_encode_bytes(&e), err));
    KD_TRY(v->download(t->backend, stats, t->stats, rows * sizeof *stats, err));
    return check_stored(t, &e, f, layer, stats, count, err);
}

/* ---- in two halves ---- */

struct kd_teacher_fetch {
    kd_teacher *teacher;
    kd_feature feature;
    uint16_t layer;
    kd_encode_spec spec;
    int count;
    kd_fetch *payload, *stats;
};

kd_status kd_teacher_fetch_create(kd_teacher_fetch **out, kd_teacher *t, kd_feature f, uint16_t layer, int target, kd_err *err) {
    kd_teacher_fetch *x = NULL;
    KD_TRY(kd_alloc_array(&x, 1, sizeof *x, err));
    *x = (kd_teacher_fetch){.teacher = t, .feature = f, .layer = layer, .spec = kd_teacher_spec(t, f, target)};
    kd_status status = t->backend->v->fetch_create(t->backend, &x->payload, kd_encode_bytes(&x->spec) * (size_t)t->batch, err);
    if (status == KD_OK)
        status = t->backend->v->fetch_create(t->backend, &x->stats, sizeof(kd_encode_stats) * (size_t)t->batch, err);
    if (status != KD_OK) {
        kd_teacher_fetch_destroy(x);
        return status;
    }
    *out = x;
    return KD_OK;
}

void kd_teacher_fetch_destroy(kd_teacher_fetch *f) {
    if (f == NULL)
        return;
    f->teacher->backend->v->fetch_destroy(f->teacher->backend, f->payload);
    f->teacher->backend->v->fetch_destroy(f->teacher->backend, f->stats);
    kd_free(f);
}

kd_status kd_teacher_fetch_begin(kd_teacher_fetch *f, int count, kd_err *err) {
    kd_teacher *t = f->teacher;
    const kd_backend_table *v = t->backend->v;
    f->count = count;
    KD_TRY(encode(t, &f->spec, f->feature, f->layer, count, err));
    KD_TRY(v->fetch_begin(t->backend, f->payload, t->payload, (size_t)count * kd_encode_bytes(&f->spec), err));
    return v->fetch_begin(t->backend, f->stats, t->stats, (size_t)count * sizeof(kd_encode_stats), err);
}

kd_status kd_teacher_fetch_end(kd_teacher_fetch *f, const uint8_t **payload, const kd_encode_stats **stats, kd_err *err) {
    const kd_backend_table *v = f->teacher->backend->v;
    const void *bytes, *numbers;
    KD_TRY(v->fetch_end(f->teacher->backend, f->payload, &bytes, err));
    KD_TRY(v->fetch_end(f->teacher->backend, f->stats, &numbers, err));
    *payload = bytes;
    *stats = numbers;
    return check_stored(f->teacher, &f->spec, f->feature, f->layer, *stats, f->count, err);
}

json_t *kd_teacher_json(const kd_model_info *model, const kd_sha256 *weights) {
    const kd_vit_spec *v = &model->vit;
    const char *positions = v->periods > 0 ? "rope" : kd_pos_profile_name(v->positions);
    const float *m = model->mean, *s = model->std;
    char hex[65];
    kd_hex(hex, weights->b, sizeof weights->b);
    return json_pack("{s:s, s:s, s:s, s:i, s:i, s:i, s:i, s:i, s:s, s:f, s:[f,f,f], s:[f,f,f]}", "sha256", hex, "tensors", v->prefix, "family", kd_vit_family_name(v->family), "width", v->width,
                     "depth", v->depth, "heads", v->heads, "patch", v->patch, "registers", v->registers, "positions", positions, "layer_norm_eps", v->ln_eps, "mean", (double)m[0], (double)m[1],
                     (double)m[2], "std", (double)s[0], (double)s[1], (double)s[2]);
}

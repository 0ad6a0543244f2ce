/* Filling a model's parameters from a weight file: a ViT's by canonical names (kd_vit_read knows the file's layout), a CNN's by its library's. One value source serves both ways in:
 * kd_model_load copies it into ordinary parameters, kd_model_params_frozen hands it to programs that read, pack and drop. */
#include <stdio.h>
#include <string.h>

#include "common/base/log.h"
#include "common/base/mem.h"
#include "kernels/nn/graph_impl.h"
#include "kernels/nn/model_builders.h"

typedef struct source {
    const kd_model_info *m;    /* for its name */
    const kd_vit_spec *file;   /* what w holds, for a ViT */
    const kd_weights *w;
    const kd_params *p;        /* shapes of the parameters, for a CNN */
    const char *prefix;        /* before a CNN's names */
    size_t stem;               /* bytes at their beginning that aren't in the file (kd_model_family.stem) */
    kd_pos_profile positions;  /* m's, not the file's */
    int grid_h, grid_w;        /* patches of the image */
} source;

/* Index of the file's tensor prefix + name, or -1. */
static int find(const source *s, const char *prefix, const char *name) {
    char full[512];
    snprintf(full, sizeof full, "%s%s", prefix, name);
    return kd_weights_find(s->w, full);
}

/* ---- one parameter ---- */

static kd_status read_positions(const source *s, float *out, size_t count, kd_err *err) {
    int width = s->file->width, from_h = s->file->pos_grid, from_w = kd_vit_pos_columns(s->file);
    size_t have = (size_t)width * (1 + (size_t)from_h * (size_t)from_w);
    float *in = NULL;
    KD_ASSERT(count == (size_t)width * (1 + (size_t)s->grid_h * (size_t)s->grid_w));
    KD_TRY(kd_alloc_array(&in, have, sizeof *in, err));
    kd_status status = kd_vit_read(s->w, s->file, "pos_embed", in, have, err);
    if (status == KD_OK)
        status = kd_pos_embed_resize(out, in, from_h, from_w, s->grid_h, s->grid_w, width, s->positions, s->file->registers, err);
    kd_free(in);
    return status;
}

static kd_status read_cnn(const source *s, const char *name, float *out, size_t count, kd_err *err) {
    int tensor = find(s, s->prefix, name + s->stem), i = kd_params_find(s->p, name);
    char have[128], need[128];
    KD_ASSERT(i >= 0);
    kd_param_info want = kd_params_info(s->p, i);
    if (tensor < 0)
        return kd_fail(err, KD_EFAIL, "%s: tensor %s%s is missing, and %s needs it", kd_weights_path(s->w), s->prefix, name + s->stem, s->m->name);
    kd_tensor t = kd_weights_info(s->w, tensor);
    if (!kd_shape_equal(t.shape, t.rank, want.shape, want.rank))
        return kd_fail(err, KD_EFAIL, "%s: tensor %s has shape %s, but %s needs %s", kd_weights_path(s->w), t.name, kd_shape_text(t.shape, t.rank, have, sizeof have), s->m->name,
                       kd_shape_text(want.shape, want.rank, need, sizeof need));
    return kd_weights_read_f32(s->w, tensor, out, count, err);
}

/* kd_param_source.read */
static kd_status read_parameter(void *ctx, const char *name, float *out, size_t count, kd_err *err) {
    const source *s = ctx;
    if (!s->file)
        return read_cnn(s, name, out, count, err);
    if (strcmp(name, "pos_embed") == 0)
        return read_positions(s, out, count, err);
    return kd_vit_read(s->w, s->file, name, out, count, err);
}

/* ---- the file ---- */

/* found: room for what the file holds, used when m wasn't found with it. */
static kd_status open_source(source *s, kd_model_info *found, const kd_model_info *m, const kd_params *p, const kd_weights *w, int height, int width, kd_err *err) {
    const kd_model_info *held = m;
    if (!m->from_file) {
        KD_TRY(kd_model_find(found, "auto", w, err));
        held = found;
    }
    if (held->kind != m->kind || held->config != m->config)
        return kd_fail(err, KD_EFAIL, "%s holds %s, not %s", kd_weights_path(w), held->name, m->name);
    *s = (source){.m = m, .w = w, .p = p};
    if (m->kind != KD_MODEL_VIT) {
        const char *stem = kd_model_family_of(m)->stem;
        s->prefix = held->prefix;
        s->stem = stem ? strlen(stem) : 0;
        return KD_OK;
    }
    s->file = &held->vit;
    s->positions = m->vit.positions;
    s->grid_h = height / m->vit.patch;
    s->grid_w = width / m->vit.patch;
    return KD_OK;
}

/* ---- ordinary parameters ---- */

static kd_status load_counter(const source *s, kd_params *p, int tensor, kd_err *err) {
    int64_t n = 0;
    KD_TRY(kd_weights_read_i64(s->w, tensor, &n, 1, err));
    if (n < 0)
        return kd_fail(err, KD_EFAIL, "%s: tensor %s is %lld, and a count can't be negative", kd_weights_path(s->w), kd_weights_info(s->w, tensor).name, (long long)n);
    kd_params_set_counter(p, n);
    return KD_OK;
}

/* The tensor behind a parameter that the file may lack, or -1: a CNN's classifier and counters; the mask token, which has no canonical name because no inference reads it. */
static int find_optional(const source *s, const kd_param_info *info) {
    if (!s->file)
        return find(s, s->prefix, info->name + s->stem);
    return find(s, s->file->prefix, s->file->layout == KD_VIT_LAYOUT_HF ? "embeddings.mask_token" : info->name);
}

/* A classifier of other classes: no feature reads it, so the parameter keeps its initial values. */
static int is_other_classifier(const source *s, const kd_param_info *info, int tensor) {
    kd_tensor t = kd_weights_info(s->w, tensor);
    if (s->file || !info->carried || kd_shape_equal(t.shape, t.rank, info->shape, info->rank))
        return 0;
    kd_log(KD_LOG_INFO, "%s: %s has other classes than %s's and isn't taken", kd_weights_path(s->w), t.name, s->m->name);
    return 1;
}

static kd_status load_one(source *s, kd_params *p, const char *name, kd_err *err) {
    int i = kd_params_find(p, name);
    KD_ASSERT(i >= 0); /* p belongs to a graph that contains this model */
    kd_param_info info = kd_params_info(p, i);
    int optional = info.carried || info.is_counter, tensor = optional ? find_optional(s, &info) : -1;
    float *values = NULL;
    if (optional && (tensor < 0 || is_other_classifier(s, &info, tensor)))
        return KD_OK;
    if (info.is_counter)
        return load_counter(s, p, tensor, err);
    KD_TRY(kd_alloc_array(&values, info.count, sizeof *values, err));
    kd_status status = optional && s->file ? kd_weights_read_f32(s->w, tensor, values, info.count, err) : read_parameter(s, name, values, info.count, err);
    if (status == KD_OK)
        status = kd_params_set(p, i, values, err);
    kd_free(values);
    return status;
}

kd_status kd_model_load(kd_params *p, const kd_model_info *m, const kd_weights *w, int height, int width, kd_err *err) {
    source s;
    kd_model_info found;
    kd_graph *names = NULL;
    KD_TRY(open_source(&s, &found, m, p, w, height, width, err));
    KD_TRY(kd_model_graph(&names, m, err));
    kd_status status = names->failed ? kd_fail(err, KD_EFAIL, "out of memory for the names of %s", m->name) : KD_OK;
    for (int i = 0; i < names->param_count && status == KD_OK; i++)
        status = load_one(&s, p, names->params[i].info.name, err);
    kd_graph_destroy(names);
    return status;
}

/* ---- frozen parameters ---- */

kd_status kd_model_params_frozen(kd_params **out, const kd_graph *g, kd_backend *b, const kd_model_info *m, const kd_weights *w, int height, int width, kd_err *err) {
    KD_ASSERT(m->from_file);
    *out = NULL;
    source s;
    kd_params *p = NULL;
    KD_TRY(kd_params_create_frozen(&p, g, b, &(kd_param_source){.read = read_parameter}, err));
    kd_status status = open_source(&s, NULL, m, p, w, height, width, err);
    source *kept = status == KD_OK ? kd_arena_alloc(p->names, sizeof *kept) : NULL; /* lives as long as the parameters */
    if (status == KD_OK && !kept)
        status = kd_fail(err, KD_EFAIL, "out of memory for the parameters of %s", m->name);
    if (status != KD_OK) {
        kd_params_destroy(p);
        return status;
    }
    *kept = s;
    p->source.ctx = kept;
    *out = p;
    return KD_OK;
}

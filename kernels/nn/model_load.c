/* Filling a model's parameters from a weight file, by the names that both share. */
#include <stdio.h>
#include <string.h>

#include "common/base/mem.h"
#include "kernels/nn/graph_impl.h"
#include "kernels/nn/model_builders.h"

typedef struct loader {
    kd_params *p;
    const kd_model_info *m;
    const kd_weights *w;
    const char *prefix;
    int grid_h, grid_w; /* patches of the image */
} loader;

static int find(const loader *l, const char *name) {
    char full[512];
    snprintf(full, sizeof full, "%s%s", l->prefix, name);
    return kd_weights_find(l->w, full);
}

static kd_status wrong_shape(const loader *l, const kd_tensor *t, const kd_param_info *want, kd_err *err) {
    char have[128], need[128];
    return kd_fail(err, KD_EFAIL, "%s: tensor %s has shape %s, but %s needs %s", kd_weights_path(l->w), t->name, kd_shape_text(t->shape, t->rank, have, sizeof have), l->m->name,
                   kd_shape_text(want->shape, want->rank, need, sizeof need));
}

/* Side of a square position grid with a class token's row before it, or 0. */
static int grid_side(const kd_tensor *t, int64_t width) {
    if (t->rank != 3 || t->shape[0] != 1 || t->shape[2] != width || t->shape[1] < 2)
        return 0;
    int64_t side = 1;
    while (side * side < t->shape[1] - 1)
        side++;
    return side * side == t->shape[1] - 1 && side <= 4096 ? (int)side : 0;
}

static kd_status load_positions(const loader *l, int i, const kd_param_info *info, int tensor, kd_err *err) {
    kd_tensor t = kd_weights_info(l->w, tensor);
    int width = (int)info->shape[2], from = grid_side(&t, width);
    float *in = NULL, *out = NULL;
    kd_status status;
    if (!from)
        return wrong_shape(l, &t, info, err);
    KD_TRY_TO(end, status, kd_alloc_array(&in, kd_tensor_numel(&t), sizeof *in, err));
    KD_TRY_TO(end, status, kd_alloc_array(&out, info->count, sizeof *out, err));
    KD_TRY_TO(end, status, kd_weights_read_f32(l->w, tensor, in, kd_tensor_numel(&t), err));
    KD_TRY_TO(end, status, kd_pos_embed_resize(out, in, from, l->grid_h, l->grid_w, width, l->m->vit.family, err));
    status = kd_params_set(l->p, i, out, err);
end:
    kd_free(in);
    kd_free(out);
    return status;
}

static kd_status load_values(const loader *l, int i, const kd_param_info *info, int tensor, kd_err *err) {
    kd_tensor t = kd_weights_info(l->w, tensor);
    float *values = NULL;
    if (!kd_shape_equal(t.shape, t.rank, info->shape, info->rank))
        return wrong_shape(l, &t, info, err);
    KD_TRY(kd_alloc_array(&values, info->count, sizeof *values, err));
    kd_status status = kd_weights_read_f32(l->w, tensor, values, info->count, err);
    if (status == KD_OK)
        status = kd_params_set(l->p, i, values, err);
    kd_free(values);
    return status;
}

static kd_status load_counter(const loader *l, int tensor, kd_err *err) {
    int64_t n = 0;
    KD_TRY(kd_weights_read_i64(l->w, tensor, &n, 1, err));
    if (n < 0)
        return kd_fail(err, KD_EFAIL, "%s: tensor %s is %lld, and a count can't be negative", kd_weights_path(l->w), kd_weights_info(l->w, tensor).name, (long long)n);
    kd_params_set_counter(l->p, n);
    return KD_OK;
}

static kd_status load_one(const loader *l, const char *name, kd_err *err) {
    int i = kd_params_find(l->p, name), tensor = find(l, name);
    KD_ASSERT(i >= 0); /* p belongs to a graph that contains this model */
    kd_param_info info = kd_params_info(l->p, i);
    if (tensor < 0)
        return info.carried || info.is_counter ? KD_OK : kd_fail(err, KD_EFAIL, "%s: tensor %s%s is missing, and %s needs it", kd_weights_path(l->w), l->prefix, name, l->m->name);
    if (info.is_counter)
        return load_counter(l, tensor, err);
    if (l->m->kind == KD_MODEL_VIT && strcmp(name, "pos_embed") == 0)
        return load_positions(l, i, &info, tensor, err);
    return load_values(l, i, &info, tensor, err);
}

kd_status kd_model_load(kd_params *p, const kd_model_info *m, const kd_weights *w, int height, int width, kd_err *err) {
    loader l = {.p = p, .m = m, .w = w, .prefix = ""};
    kd_model_info held;
    kd_graph *names = NULL;
    KD_TRY(kd_model_find(&held, "auto", w, err));
    if (held.kind != m->kind)
        return kd_fail(err, KD_EFAIL, "%s holds %s, not %s", kd_weights_path(w), held.name, m->name);
    if (m->kind == KD_MODEL_VIT) {
        l.prefix = held.vit.prefix;
        l.grid_h = height / m->vit.patch;
        l.grid_w = width / m->vit.patch;
    } else {
        l.prefix = kd_resnet_prefix(w);
    }
    KD_TRY(kd_model_graph(&names, m, err));
    kd_status status = names->failed ? kd_fail(err, KD_EFAIL, "out of memory for the names of %s", m->name) : KD_OK;
    for (int i = 0; i < names->param_count && status == KD_OK; i++)
        status = load_one(&l, names->params[i].info.name, err);
    kd_graph_destroy(names);
    return status;
}

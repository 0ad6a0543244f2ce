/* Names, constants, layouts and shapes of values. */
#include <stdio.h>
#include <string.h>

#include "train/export/onnx_walk.h"

/* What can't fail for a caller: "" after memory ran out. */
static const char *kept(kd_onnx_walk *w, const char *name) {
    if (name != NULL)
        return name;
    if (w->status == KD_OK)
        w->status = kd_fail(w->err, KD_EFAIL, "out of memory for the names of an ONNX file");
    return "";
}

static const char *result_name(kd_onnx_walk *w, const char *op) {
    return kept(w, kd_arena_printf(w->names, "%d/%s/%s", w->number++, w->node, op));
}

const char *kd_onnx_emit(kd_onnx_walk *w, const char *op, const char *const *inputs, const kd_onnx_attr *attrs) {
    const char *name = result_name(w, op);
    kd_onnx_file_node(w->file, op, name, inputs, KD_ONNX_NAMES(name), attrs);
    return name;
}

void kd_onnx_split(kd_onnx_walk *w, const char *x, int axis, int n, const int64_t *sizes, const char **parts) {
    enum { MOST = 4 };
    const char *outputs[MOST + 1] = {NULL}, *name = result_name(w, "Split");
    KD_ASSERT(n <= MOST);
    for (int i = 0; i < n; i++)
        parts[i] = outputs[i] = kept(w, kd_arena_printf(w->names, "%s.%d", name, i));
    kd_onnx_file_node(w->file, "Split", name, KD_ONNX_NAMES(x, kd_onnx_ints(w, n, sizes)), outputs, KD_ONNX_ATTRS(KD_ONNX_INT("axis", axis)));
}

/* ---- constants and parameters ---- */

static const char *constant(kd_onnx_walk *w, const kd_tensor *t, size_t bytes) {
    kd_tensor kept_one = *t;
    kept_one.name = kept(w, kd_arena_strdup(w->names, t->name));
    if (kd_onnx_file_has_tensor(w->file, t->name))
        return kept_one.name;
    void *data = kd_arena_alloc(w->names, bytes);
    kept_one.data = data;
    if (data == NULL)
        return kept(w, NULL);
    memcpy(data, t->data, bytes);
    kd_onnx_file_tensor(w->file, &kept_one);
    return kept_one.name;
}

const char *kd_onnx_ints(kd_onnx_walk *w, int n, const int64_t *values) {
    char name[200] = "const/";
    int at = (int)strlen(name);
    for (int i = 0; i < n; i++)
        at += snprintf(name + at, sizeof name - (size_t)at, "%s%lld", i > 0 ? "," : "", (long long)values[i]);
    KD_ASSERT(at < (int)sizeof name);
    return constant(w, &(kd_tensor){.name = name, .dtype = KD_I64, .rank = 1, .shape = {n}, .data = values}, (size_t)n * sizeof *values);
}

const char *kd_onnx_scalar(kd_onnx_walk *w, float value) {
    char name[40];
    snprintf(name, sizeof name, "const/f32/%.9g", (double)value);
    return constant(w, &(kd_tensor){.name = name, .dtype = KD_F32, .data = &value}, sizeof value);
}

const char *kd_onnx_param(kd_onnx_walk *w, int i) {
    kd_param_info info = kd_params_info(w->p, i);
    if (!w->used[i]) {
        kd_tensor t = {.name = info.name, .dtype = KD_F32, .rank = info.rank};
        memcpy(t.shape, info.shape, (size_t)info.rank * sizeof *info.shape);
        kd_onnx_file_tensor(w->file, &t);
    }
    w->used[i] = 1;
    return info.name;
}

/* ---- values ---- */

static int rank_of(const kd_onnx_walk *w, kd_val v) {
    int rank;
    int64_t shape[3];
    kd_graph_shape(w->g, v, &rank, shape);
    return rank;
}

void kd_onnx_set(kd_onnx_walk *w, kd_val v, kd_onnx_layout layout, const char *name) {
    w->slot[v].name[rank_of(w, v) == 3 ? layout : KD_ONNX_ROWS] = name;
}

/* The map whose positions are the tokens of v: they have been a map, and every op since then has left their number alone. */
static kd_val grid_of(kd_onnx_walk *w, kd_val v) {
    kd_val r = kd_graph_root(w->g, v);
    int producer = kd_graph_producer(w->g, v);
    return rank_of(w, r) == 3 || producer < 0 ? r : grid_of(w, kd_graph_node_at(w->g, producer).x[0]);
}

/* The shape [batch,C,h,w] of what was tokens. */
static const char *map_shape(kd_onnx_walk *w, kd_val tokens, const int64_t shape[3]) {
    if (!w->dynamic)
        return KD_ONNX_CONST(w, 0, shape[2], shape[0], shape[1]); /* Reshape: 0 is the input's */
    const char *sides = kd_onnx_emit(w, "Shape", KD_ONNX_NAMES(kd_onnx_value(w, grid_of(w, tokens), KD_ONNX_MAPS)), KD_ONNX_ATTRS(KD_ONNX_INT("start", 2), KD_ONNX_INT("end", 4)));
    return kd_onnx_emit(w, "Concat", KD_ONNX_NAMES(KD_ONNX_CONST(w, 0, shape[2]), sides), KD_ONNX_ATTRS(KD_ONNX_INT("axis", 0)));
}

static const char *reshape(kd_onnx_walk *w, const char *x, const char *shape) {
    return kd_onnx_emit(w, "Reshape", KD_ONNX_NAMES(x, shape), NULL);
}

static const char *swap_rows(kd_onnx_walk *w, const char *x) {
    return kd_onnx_emit(w, "Transpose", KD_ONNX_NAMES(x), KD_ONNX_ATTRS(KD_ONNX_INTS("perm", 0, 2, 1)));
}

/* A reshaped value, from the one that it is another shape of. Channels stay, or it isn't written. */
static void write_view(kd_onnx_walk *w, kd_val v) {
    kd_val r = kd_graph_root(w->g, v);
    int from_rank, rank;
    int64_t from[3], to[3];
    kd_graph_shape(w->g, r, &from_rank, from);
    kd_graph_shape(w->g, v, &rank, to);
    const char *x = kd_onnx_value(w, r, KD_ONNX_MAPS), *shape;
    switch (from[from_rank - 1] == to[rank - 1] ? 10 * from_rank + rank : 0) {
    case 32: /* a map as tokens */
        kd_onnx_set(w, v, KD_ONNX_ROWS, swap_rows(w, reshape(w, x, KD_ONNX_CONST(w, 0, to[1], -1))));
        return;
    case 23: /* tokens as a map */
        shape = map_shape(w, r, to);
        kd_onnx_set(w, v, KD_ONNX_MAPS, reshape(w, swap_rows(w, x), shape));
        return;
    case 21: /* one token as a vector */
        kd_onnx_set(w, v, KD_ONNX_ROWS, reshape(w, x, KD_ONNX_CONST(w, 0, to[0])));
        return;
    case 13: /* a vector as a map of one position */
        kd_onnx_set(w, v, KD_ONNX_MAPS, reshape(w, x, KD_ONNX_CONST(w, 0, to[2], 1, 1)));
        return;
    }
    if (w->status == KD_OK)
        w->status = kd_fail(w->err, KD_EUSAGE, "%s: a value of %d dimensions that becomes one of %d isn't written as ONNX; export as safetensors", w->node, from_rank, rank);
}

kd_onnx_layout kd_onnx_layout_of(kd_onnx_walk *w, kd_val v) {
    const kd_onnx_slot *s = &w->slot[v];
    if (s->name[KD_ONNX_MAPS] == NULL && s->name[KD_ONNX_ROWS] == NULL && kd_graph_root(w->g, v) != v)
        write_view(w, v);
    return s->name[KD_ONNX_MAPS] != NULL ? KD_ONNX_MAPS : KD_ONNX_ROWS;
}

const char *kd_onnx_value(kd_onnx_walk *w, kd_val v, kd_onnx_layout layout) {
    kd_onnx_slot *s = &w->slot[v];
    kd_onnx_layout have = kd_onnx_layout_of(w, v);
    if (rank_of(w, v) < 3)
        layout = KD_ONNX_ROWS;
    if (s->name[have] == NULL) /* after an error */
        return "";
    if (s->name[layout] == NULL)
        s->name[layout] = kd_onnx_emit(w, "Transpose", KD_ONNX_NAMES(s->name[have]), layout == KD_ONNX_MAPS ? KD_ONNX_ATTRS(KD_ONNX_INTS("perm", 0, 3, 1, 2)) : KD_ONNX_ATTRS(KD_ONNX_INTS("perm", 0, 2, 3, 1)));
    return s->name[layout];
}

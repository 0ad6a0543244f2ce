#include "train/export/onnx.h"

#include <math.h>

#include "train/export/onnx_walk.h"

enum { VALUES = 3 };

static kd_status open_walk(kd_onnx_walk *w, kd_err *err) {
    w->file = kd_onnx_file_create();
    w->names = kd_arena_create();
    if (w->file == NULL || w->names == NULL)
        return kd_fail(err, KD_EFAIL, "out of memory for an ONNX file");
    KD_TRY(kd_alloc_array(&w->slot, (size_t)kd_graph_values(w->g), sizeof *w->slot, err));
    return kd_alloc_array(&w->used, (size_t)kd_params_count(w->p), 1, err);
}

static void close_walk(kd_onnx_walk *w) {
    kd_onnx_file_destroy(w->file);
    kd_arena_destroy(w->names);
    kd_free(w->slot);
    kd_free(w->used);
}

/* The nodes that the outputs depend on; a builder adds others, for taps. */
static kd_status write_nodes(kd_onnx_walk *w, const kd_model_taps *taps) {
    char *needed = NULL;
    KD_TRY(kd_alloc_array(&needed, (size_t)kd_graph_nodes(w->g), 1, w->err));
    kd_graph_needed(w->g, (const kd_val[VALUES]){taps->pooled, taps->cls, taps->map}, VALUES, needed);
    for (int i = 0; i < kd_graph_nodes(w->g) && w->status == KD_OK; i++) {
        kd_graph_node n = kd_graph_node_at(w->g, i);
        if (needed[i])
            kd_onnx_op(w, &n);
    }
    kd_free(needed);
    return w->status;
}

static void write_input(kd_onnx_walk *w, int height, int width) {
    kd_onnx_dim dims[4] = {{.param = "batch"}, {.value = 3}, {.value = height}, {.value = width}};
    if (w->dynamic) {
        dims[2].param = "height";
        dims[3].param = "width";
    }
    kd_onnx_file_input(w->file, "images", 4, dims);
}

/* A value under the name of an output. */
static void write_output(kd_onnx_walk *w, const char *name, const char *value, int rank, const kd_onnx_dim *dims) {
    kd_onnx_file_node(w->file, "Identity", name, KD_ONNX_NAMES(value), KD_ONNX_NAMES(name), NULL);
    kd_onnx_file_output(w->file, name, rank, dims);
}

/* A ViT's map is another shape of tokens, which its library has; a CNN's is a map. */
static void write_patch(kd_onnx_walk *w, const kd_model_taps *taps, int64_t channels) {
    kd_val root = kd_graph_root(w->g, taps->map);
    int rank;
    int64_t shape[3];
    kd_graph_shape(w->g, root, &rank, shape);
    if (rank == 2) {
        write_output(w, "patch", kd_onnx_value(w, root, KD_ONNX_ROWS), 3, (const kd_onnx_dim[]){{.param = "batch"}, {.value = shape[0]}, {.value = channels}});
        return;
    }
    kd_onnx_dim dims[4] = {{.param = "batch"}, {.value = channels}, {.value = taps->map_h}, {.value = taps->map_w}};
    if (w->dynamic) {
        dims[2].param = "map_height";
        dims[3].param = "map_width";
    }
    write_output(w, "patch", kd_onnx_value(w, taps->map, KD_ONNX_MAPS), 4, dims);
}

static kd_status write_outputs(kd_onnx_walk *w, const kd_model_taps *taps) {
    int rank;
    int64_t shape[3];
    kd_graph_shape(w->g, taps->map, &rank, shape);
    const kd_onnx_dim dims[2] = {{.param = "batch"}, {.value = shape[2]}};
    w->node = "output";
    write_output(w, "pooled", kd_onnx_value(w, taps->pooled, KD_ONNX_ROWS), 2, dims);
    write_output(w, "cls", kd_onnx_value(w, taps->cls, KD_ONNX_ROWS), 2, dims);
    write_patch(w, taps, shape[2]);
    return w->status;
}

/* kd_param_source of the initializers. */
static kd_status read_param(void *ctx, const char *name, float *out, size_t count, kd_err *err) {
    kd_params *p = ctx;
    int i = kd_params_find(p, name);
    KD_ASSERT(i >= 0 && kd_params_info(p, i).count == count);
    KD_TRY(kd_params_get(p, i, out, err));
    for (size_t k = 0; k < count; k++)
        if (!isfinite(out[k]))
            return kd_fail(err, KD_ENONFINITE, "parameter %s is %g at index %zu and isn't exported; go back to an earlier checkpoint", name, (double)out[k], k);
    return KD_OK;
}

static kd_status write_model(kd_onnx_walk *w, const char *path, const kd_model_info *m, const kd_model_taps *taps, int height, int width, const json_t *metadata) {
    const kd_param_source source = {.read = read_param, .ctx = w->p};
    KD_TRY(open_walk(w, w->err));
    write_input(w, height, width);
    KD_TRY(write_nodes(w, taps));
    KD_TRY(write_outputs(w, taps));
    json_t *all = kd_model_metadata(m, metadata);
    kd_status status = all != NULL ? kd_onnx_file_write(w->file, path, m->name, all, &source, KD_ONNX_LIMIT, w->err) : kd_fail(w->err, KD_EFAIL, "%s: out of memory for the metadata", path);
    json_decref(all);
    return status;
}

kd_status kd_onnx_write(const char *path, const kd_graph *g, kd_params *p, const kd_model_info *m, const kd_model_taps *taps, int height, int width, const json_t *metadata, kd_err *err) {
    kd_onnx_walk w = {.g = g, .p = p, .dynamic = height == 0, .node = "", .err = err};
    if (w.dynamic && m->one_size)
        return kd_fail(err, KD_EUSAGE, "%s: %s has learnt a position for every patch, so it takes one image size; export it with that size fixed", path, m->name);
    kd_status status = write_model(&w, path, m, taps, height, width, metadata);
    close_walk(&w);
    return status;
}

#include "train/export/onnx_file.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/base/io.h"
#include "common/base/mem.h"
#include "common/base/protobuf.h"

enum { MODEL_IR_VERSION = 1, MODEL_PRODUCER = 2, MODEL_GRAPH = 7, MODEL_OPSET = 8, MODEL_METADATA = 14 };
enum { GRAPH_NODE = 1, GRAPH_NAME = 2, GRAPH_TENSOR = 5, GRAPH_INPUT = 11, GRAPH_OUTPUT = 12 };
enum { NODE_INPUT = 1, NODE_OUTPUT = 2, NODE_NAME = 3, NODE_OP = 4, NODE_ATTR = 5 };
enum { ATTR_NAME = 1, ATTR_F = 2, ATTR_I = 3, ATTR_INTS = 8, ATTR_TYPE = 20 };
enum { TENSOR_DIMS = 1, TENSOR_TYPE = 2, TENSOR_NAME = 8, TENSOR_RAW = 9, TENSOR_EXTERNAL = 13, TENSOR_LOCATION = 14 };
enum { TYPE_FLOAT = 1, TYPE_INT64 = 7, LOCATION_EXTERNAL = 1 };
enum { DATA_ALIGN = 4096, DATA_SMALLEST = 1024 }; /* of tensors in the data file */

struct kd_onnx_file {
    kd_proto nodes, inputs, outputs; /* of the graph */
    kd_tensor *tensor;
    size_t count, cap;
    int failed;
};

kd_onnx_file *kd_onnx_file_create(void) {
    return kd_calloc(1, sizeof(kd_onnx_file));
}

void kd_onnx_file_destroy(kd_onnx_file *f) {
    if (f == NULL)
        return;
    kd_proto_free(&f->nodes);
    kd_proto_free(&f->inputs);
    kd_proto_free(&f->outputs);
    kd_free(f->tensor);
    kd_free(f);
}

/* ---- messages ---- */

static void put_attr(kd_proto *m, const kd_onnx_attr *a) {
    size_t attr = kd_proto_open(m, NODE_ATTR);
    kd_proto_text(m, ATTR_NAME, a->name);
    if (a->type == KD_ONNX_ATTR_FLOAT)
        kd_proto_float(m, ATTR_F, a->f);
    for (int k = 0; k < a->count; k++)
        kd_proto_int(m, a->type == KD_ONNX_ATTR_INT ? ATTR_I : ATTR_INTS, a->i[k]);
    kd_proto_int(m, ATTR_TYPE, a->type);
    kd_proto_close(m, attr);
}

void kd_onnx_file_node(kd_onnx_file *f, const char *op, const char *name, const char *const *inputs, const char *const *outputs, const kd_onnx_attr *attrs) {
    kd_proto *m = &f->nodes;
    size_t node = kd_proto_open(m, GRAPH_NODE);
    for (; *inputs != NULL; inputs++)
        kd_proto_text(m, NODE_INPUT, *inputs);
    for (; *outputs != NULL; outputs++)
        kd_proto_text(m, NODE_OUTPUT, *outputs);
    kd_proto_text(m, NODE_NAME, name);
    kd_proto_text(m, NODE_OP, op);
    for (; attrs != NULL && attrs->name != NULL; attrs++)
        put_attr(m, attrs);
    kd_proto_close(m, node);
}

static void put_value(kd_proto *m, unsigned field, const char *name, int rank, const kd_onnx_dim *dims) {
    size_t value = kd_proto_open(m, field);
    kd_proto_text(m, 1, name);
    size_t type = kd_proto_open(m, 2), tensor = kd_proto_open(m, 1);
    kd_proto_int(m, 1, TYPE_FLOAT);
    size_t shape = kd_proto_open(m, 2);
    for (int i = 0; i < rank; i++) {
        size_t dim = kd_proto_open(m, 1);
        if (dims[i].param != NULL)
            kd_proto_text(m, 2, dims[i].param);
        else
            kd_proto_int(m, 1, dims[i].value);
        kd_proto_close(m, dim);
    }
    kd_proto_close(m, shape);
    kd_proto_close(m, tensor);
    kd_proto_close(m, type);
    kd_proto_close(m, value);
}

void kd_onnx_file_input(kd_onnx_file *f, const char *name, int rank, const kd_onnx_dim *dims) {
    put_value(&f->inputs, GRAPH_INPUT, name, rank, dims);
}

void kd_onnx_file_output(kd_onnx_file *f, const char *name, int rank, const kd_onnx_dim *dims) {
    put_value(&f->outputs, GRAPH_OUTPUT, name, rank, dims);
}

void kd_onnx_file_tensor(kd_onnx_file *f, const kd_tensor *t) {
    KD_ASSERT(t->dtype == KD_F32 || (t->dtype == KD_I64 && t->data != NULL));
    if (f->count == f->cap) {
        size_t cap = f->cap != 0 ? 2 * f->cap : 64;
        kd_tensor *grown = kd_realloc(f->tensor, cap * sizeof *grown);
        if (grown == NULL) {
            f->failed = 1;
            return;
        }
        f->tensor = grown;
        f->cap = cap;
    }
    f->tensor[f->count++] = *t;
}

int kd_onnx_file_has_tensor(const kd_onnx_file *f, const char *name) {
    for (size_t i = 0; i < f->count; i++)
        if (strcmp(f->tensor[i].name, name) == 0)
            return 1;
    return 0;
}

/* ---- where tensors lie ---- */

static uint64_t tensor_bytes(const kd_tensor *t) {
    return (uint64_t)kd_tensor_numel(t) * kd_dtype_size(t->dtype);
}

typedef struct layout {
    const char *location; /* the data file's name; NULL: every tensor lies in the model */
    uint64_t end;         /* of what lies in the data file so far */
} layout;

static void put_entry(kd_proto *m, const char *key, const char *value) {
    size_t entry = kd_proto_open(m, TENSOR_EXTERNAL);
    kd_proto_text(m, 1, key);
    kd_proto_text(m, 2, value);
    kd_proto_close(m, entry);
}

static void put_number(kd_proto *m, const char *key, uint64_t v) {
    char text[24];
    snprintf(text, sizeof text, "%" PRIu64, v);
    put_entry(m, key, text);
}

static int is_outside(const layout *l, const kd_tensor *t) {
    return l->location != NULL && tensor_bytes(t) >= DATA_SMALLEST;
}

/* The initializer into m, but for the bytes of a tensor that lies in the model: they come next. A tensor outside lies at the end of the layout, which grows by it. */
static void put_tensor(kd_proto *m, layout *l, const kd_tensor *t) {
    kd_proto body = {0};
    uint64_t bytes = tensor_bytes(t);
    for (int i = 0; i < t->rank; i++)
        kd_proto_int(&body, TENSOR_DIMS, t->shape[i]);
    kd_proto_int(&body, TENSOR_TYPE, t->dtype == KD_I64 ? TYPE_INT64 : TYPE_FLOAT);
    kd_proto_text(&body, TENSOR_NAME, t->name);
    if (is_outside(l, t)) {
        uint64_t begin = (l->end + DATA_ALIGN - 1) / DATA_ALIGN * DATA_ALIGN;
        put_entry(&body, "location", l->location);
        put_number(&body, "offset", begin);
        put_number(&body, "length", bytes);
        kd_proto_int(&body, TENSOR_LOCATION, LOCATION_EXTERNAL);
        l->end = begin + bytes;
        bytes = 0;
    } else {
        kd_proto_head(&body, TENSOR_RAW, bytes);
    }
    kd_proto_head(m, GRAPH_TENSOR, body.size + bytes);
    kd_proto_append(m, &body);
    kd_proto_free(&body);
}

/* ---- the file ---- */

/* A model on its way to its files. */
typedef struct writer {
    const kd_onnx_file *f;
    const char *path;
    const kd_param_source *source;
    kd_proto head, name, tail; /* what stands before the graph's length, in it between nodes and tensors, and behind it */
    kd_replace *model, *data;  /* data NULL: tensors lie in the model */
    kd_proto m;                /* for one tensor */
    float *values;             /* the source's, of the largest tensor */
    layout layout;
} writer;

static void put_ends(writer *w, const char *graph_name, const json_t *metadata) {
    const char *key;
    json_t *value;
    kd_proto_int(&w->head, MODEL_IR_VERSION, KD_ONNX_IR_VERSION);
    kd_proto_text(&w->head, MODEL_PRODUCER, "kdcache");
    kd_proto_text(&w->name, GRAPH_NAME, graph_name);
    size_t opset = kd_proto_open(&w->tail, MODEL_OPSET);
    kd_proto_text(&w->tail, 1, ""); /* ONNX's own domain */
    kd_proto_int(&w->tail, 2, KD_ONNX_OPSET);
    kd_proto_close(&w->tail, opset);
    json_object_foreach ((json_t *)(uintptr_t)metadata, key, value) {
        size_t entry = kd_proto_open(&w->tail, MODEL_METADATA);
        kd_proto_text(&w->tail, 1, key);
        kd_proto_text(&w->tail, 2, json_string_value(value));
        kd_proto_close(&w->tail, entry);
    }
}

/* Bytes of the graph's message. */
static uint64_t graph_size(writer *w, const char *location) {
    const kd_onnx_file *f = w->f;
    layout l = {.location = location};
    uint64_t size = f->nodes.size + w->name.size + f->inputs.size + f->outputs.size;
    for (size_t i = 0; i < f->count; i++) {
        put_tensor(&w->m, &l, &f->tensor[i]);
        size += w->m.size + (is_outside(&l, &f->tensor[i]) ? 0 : tensor_bytes(&f->tensor[i]));
        kd_proto_clear(&w->m);
    }
    return size;
}

static kd_status put_message(kd_replace *r, const kd_proto *m, kd_err *err) {
    return kd_io_replace_write(r, m->bytes, m->size, err);
}

/* Up to where the next tensor begins. */
static kd_status pad_data(writer *w, uint64_t from, kd_err *err) {
    static const uint8_t zeros[DATA_ALIGN];
    return kd_io_replace_write(w->data, zeros, (size_t)((DATA_ALIGN - from % DATA_ALIGN) % DATA_ALIGN), err);
}

static kd_status write_tensor(writer *w, const kd_tensor *t, kd_err *err) {
    const void *bytes = t->data;
    uint64_t end = w->layout.end;
    if (bytes == NULL) {
        KD_TRY(w->source->read(w->source->ctx, t->name, w->values, kd_tensor_numel(t), err));
        bytes = w->values;
    }
    kd_proto_clear(&w->m);
    put_tensor(&w->m, &w->layout, t);
    if (w->m.failed)
        return kd_fail(err, KD_EFAIL, "%s: out of memory for its tensors", w->path);
    KD_TRY(put_message(w->model, &w->m, err));
    if (!is_outside(&w->layout, t))
        return kd_io_replace_write(w->model, bytes, (size_t)tensor_bytes(t), err);
    KD_TRY(pad_data(w, end, err));
    return kd_io_replace_write(w->data, bytes, (size_t)tensor_bytes(t), err);
}

static kd_status write_pieces(writer *w, uint64_t graph, kd_err *err) {
    const kd_onnx_file *f = w->f;
    KD_TRY(put_message(w->model, &w->head, err));
    kd_proto_clear(&w->m);
    kd_proto_head(&w->m, MODEL_GRAPH, graph);
    KD_TRY(put_message(w->model, &w->m, err));
    KD_TRY(put_message(w->model, &f->nodes, err));
    KD_TRY(put_message(w->model, &w->name, err));
    for (size_t i = 0; i < f->count; i++)
        KD_TRY(write_tensor(w, &f->tensor[i], err));
    KD_TRY(put_message(w->model, &f->inputs, err));
    KD_TRY(put_message(w->model, &f->outputs, err));
    return put_message(w->model, &w->tail, err);
}

/* Room for what the source gives. */
static kd_status alloc_values(writer *w, kd_err *err) {
    size_t largest = 1;
    for (size_t i = 0; i < w->f->count; i++)
        if (w->f->tensor[i].data == NULL && kd_tensor_numel(&w->f->tensor[i]) > largest)
            largest = kd_tensor_numel(&w->f->tensor[i]);
    return kd_alloc_array(&w->values, largest, sizeof *w->values, err);
}

/* The data first: a model that is there has its data. An old model beside new data would be a wrong one, so it goes before. */
static kd_status commit(writer *w, kd_err *err) {
    if (w->data != NULL) {
        kd_replace *data = w->data;
        w->data = NULL;
        if (unlink(w->path) != 0 && errno != ENOENT) {
            kd_io_replace_abort(data);
            return kd_io_write_failed(w->path, "the old model can't be removed", err);
        }
        KD_TRY(kd_io_replace_commit(data, err));
    }
    kd_replace *model = w->model;
    w->model = NULL;
    return kd_io_replace_commit(model, err);
}

static kd_status write_files(writer *w, uint64_t limit, const char *data_path, kd_err *err) {
    const kd_onnx_file *f = w->f;
    const char *slash = strrchr(data_path, '/');
    uint64_t room = w->head.size + w->tail.size + 16, graph = graph_size(w, NULL); /* 16: the graph's own key and length, at most 11 bytes */
    if (room + graph > limit) {
        w->layout.location = slash != NULL ? slash + 1 : data_path;
        graph = graph_size(w, w->layout.location);
    }
    if (f->failed || f->nodes.failed || f->inputs.failed || f->outputs.failed || w->head.failed || w->name.failed || w->tail.failed || w->m.failed)
        return kd_fail(err, KD_EFAIL, "%s: out of memory for its graph", w->path);
    if (room + graph > limit)
        return kd_fail(err, KD_EFAIL, "%s: the graph alone has %" PRIu64 " bytes, and an ONNX file holds %" PRIu64 "; export as safetensors", w->path, room + graph, limit);
    KD_TRY(alloc_values(w, err));
    KD_TRY(kd_io_replace_begin(&w->model, w->path, err));
    if (w->layout.location != NULL)
        KD_TRY(kd_io_replace_begin(&w->data, data_path, err));
    KD_TRY(write_pieces(w, graph, err));
    return commit(w, err);
}

static int by_name(const void *a, const void *b) {
    return strcmp(((const kd_tensor *)a)->name, ((const kd_tensor *)b)->name);
}

kd_status kd_onnx_file_write(kd_onnx_file *f, const char *path, const char *graph_name, const json_t *metadata, const kd_param_source *source, uint64_t limit, kd_err *err) {
    writer w = {.f = f, .path = path, .source = source};
    char *data_path = kd_asprintf("%s.data", path);
    if (f->count > 0)
        qsort(f->tensor, f->count, sizeof *f->tensor, by_name);
    put_ends(&w, graph_name, metadata);
    kd_status status = data_path != NULL ? write_files(&w, limit, data_path, err) : kd_fail(err, KD_EFAIL, "%s: out of memory for its graph", path);
    kd_io_replace_abort(w.model);
    kd_io_replace_abort(w.data);
    kd_proto_free(&w.head);
    kd_proto_free(&w.name);
    kd_proto_free(&w.tail);
    kd_proto_free(&w.m);
    kd_free(w.values);
    kd_free(data_path);
    return status;
}

/* ONNX file: a model's messages, piece by piece, and the file of them. Knows nothing of graphs: those are onnx.h's.
 *
 *     kd_onnx_file *f = kd_onnx_file_create();
 *     kd_onnx_file_node(f, "Conv", "17/conv1/Conv", KD_ONNX_NAMES("images", "conv1.weight"), KD_ONNX_NAMES("17/conv1/Conv"), KD_ONNX_ATTRS(KD_ONNX_INT("group", 1)));
 *     kd_onnx_file_tensor(f, &(kd_tensor){.name = "conv1.weight", .dtype = KD_F32, .rank = 4, .shape = {64, 3, 7, 7}});
 *     kd_onnx_file_input(f, "images", 4, dims); kd_onnx_file_output(f, "map", 4, dims);
 *     KD_TRY(kd_onnx_file_write(f, "r18.onnx", "resnet18", metadata, &source, KD_ONNX_LIMIT, err));
 *
 * The file is one protobuf message, ModelProto of onnx/onnx.proto: {1: ir_version, 2: producer_name, 7: GraphProto {1: nodes, 2: name, 5: initializers, 11: inputs, 12: outputs},
 * 8: opset_import {2: version}, 14: metadata_props {1: key, 2: value}}; NodeProto {1: inputs, 2: outputs, 3: name, 4: op_type, 5: AttributeProto {1: name, 2: f, 3: i, 8: ints, 20: type}};
 * TensorProto {1: dims, 2: data_type, 8: name, 9: raw_data, little-endian, 13: external_data, 14: data_location}; ValueInfoProto {1: name, 2: TypeProto {1: {1: elem_type, 2: shape {1: dim
 * {1: dim_value, 2: dim_param}}}}}. Fields are written in ascending order, so the bytes are those that the onnx package writes for the same model.
 * Thread rule: no shared state. */
#ifndef KD_TRAIN_EXPORT_ONNX_FILE_H
#define KD_TRAIN_EXPORT_ONNX_FILE_H

#include "common/base/json.h"
#include "common/tensor/tensor.h"
#include "kernels/nn/graph.h"

enum { KD_ONNX_IR_VERSION = 8, KD_ONNX_OPSET = 17 }; /* onnx 1.12 and whatever came after it reads them; LayerNormalization begins with opset 17 */

/* Bytes of the longest message that protobuf's readers take: they count in int32. */
#define KD_ONNX_LIMIT ((uint64_t)INT32_MAX)

enum { KD_ONNX_INTS_MAX = 4 };
typedef enum kd_onnx_attr_type { KD_ONNX_ATTR_FLOAT = 1, KD_ONNX_ATTR_INT = 2, KD_ONNX_ATTR_INTS = 7 } kd_onnx_attr_type; /* AttributeProto.AttributeType */
typedef struct kd_onnx_attr {
    const char *name;
    kd_onnx_attr_type type;
    float f;
    int64_t i[KD_ONNX_INTS_MAX];
    int count; /* of i */
} kd_onnx_attr;

/* Lists end in NULL, in an attribute without name. NULL instead of a list: none. */
#define KD_ONNX_NAMES(...) ((const char *const[]){__VA_ARGS__, NULL})
#define KD_ONNX_ATTRS(...) ((const kd_onnx_attr[]){__VA_ARGS__, {.name = NULL}})
#define KD_ONNX_FLOAT(n, v) {.name = (n), .type = KD_ONNX_ATTR_FLOAT, .f = (v)}
#define KD_ONNX_INT(n, v) {.name = (n), .type = KD_ONNX_ATTR_INT, .i = {v}, .count = 1}
#define KD_ONNX_INTS(n, ...) {.name = (n), .type = KD_ONNX_ATTR_INTS, .i = {__VA_ARGS__}, .count = (int)(sizeof((int64_t[]){__VA_ARGS__}) / sizeof(int64_t))}

/* A side of a tensor: a number, or the name of one that is known only when the model runs. */
typedef struct kd_onnx_dim {
    int64_t value;
    const char *param; /* NULL: value */
} kd_onnx_dim;

typedef struct kd_onnx_file kd_onnx_file;
kd_onnx_file *kd_onnx_file_create(void); /* NULL when memory is out */
void kd_onnx_file_destroy(kd_onnx_file *f); /* accepts NULL */
/* Nodes in an order in which every input is there before it is read. Texts are copied. That memory ran out is remembered and said by kd_onnx_file_write, here and below. */
void kd_onnx_file_node(kd_onnx_file *f, const char *op, const char *name, const char *const *inputs, const char *const *outputs, const kd_onnx_attr *attrs);
void kd_onnx_file_input(kd_onnx_file *f, const char *name, int rank, const kd_onnx_dim *dims);
void kd_onnx_file_output(kd_onnx_file *f, const char *name, int rank, const kd_onnx_dim *dims);
/* An initializer, F32 or I64. data NULL: F32 values that kd_onnx_file_write's source has under this name. Name and data are borrowed until the file is written. */
void kd_onnx_file_tensor(kd_onnx_file *f, const kd_tensor *t);
int kd_onnx_file_has_tensor(const kd_onnx_file *f, const char *name);

/* Replaces path, whole or not at all. Initializers stand in the order of their names. metadata: an object of strings, in its order. A model of more than limit bytes has its tensors of a kilobyte and more in path.data beside it, each at a multiple of 4096
 * bytes, as ONNX's external data has them; the two belong together and move together. Then an older model at path is gone before its data are replaced.
 * KD_EFAIL: memory, or more than limit bytes of nodes alone; KD_ENOSPACE; the causes of source->read. source may be NULL when no tensor needs it. */
kd_status kd_onnx_file_write(kd_onnx_file *f, const char *path, const char *graph_name, const json_t *metadata, const kd_param_source *source, uint64_t limit, kd_err *err);

#endif

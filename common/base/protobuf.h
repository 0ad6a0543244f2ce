/* Protobuf: messages of protocol buffers, written by hand, for the formats that are made of them (TensorBoard's events, ONNX).
 *
 *     kd_proto m = {0};
 *     kd_proto_int(&m, 1, 8);                                   // fields by number, in ascending order as the reference library writes them
 *     size_t graph = kd_proto_open(&m, 7);
 *     kd_proto_text(&m, 2, "resnet18");
 *     kd_proto_close(&m, graph);
 *     ... m.failed: memory ran out; else m.size bytes at m.bytes ...
 *     kd_proto_free(&m);
 *
 * A field is its key, (number << 3 | wire type) as a varint, and its value: a varint (type 0), 8 or 4 little-endian bytes (types 1, 5), or a length as a varint and that many bytes (type 2: strings and
 * messages). A varint has seven bits in a byte, the lowest first, and the top bit in all but the last (protobuf.dev/programming-guides/encoding). A repeated field is a field several times.
 * After memory ran out, which `failed` remembers, every call does nothing.
 * Thread rule: no shared state. */
#ifndef KD_COMMON_BASE_PROTOBUF_H
#define KD_COMMON_BASE_PROTOBUF_H

#include <stddef.h>
#include <stdint.h>

typedef struct kd_proto {
    uint8_t *bytes; /* owned */
    size_t size, cap;
    int failed;
} kd_proto;

void kd_proto_int(kd_proto *m, unsigned field, int64_t v); /* int32, int64, enum; a negative one takes ten bytes */
void kd_proto_float(kd_proto *m, unsigned field, float v);
void kd_proto_double(kd_proto *m, unsigned field, double v);
void kd_proto_bytes(kd_proto *m, unsigned field, const void *bytes, size_t n);
void kd_proto_text(kd_proto *m, unsigned field, const char *text);
/* Key and length of a field of n bytes, which the caller writes behind m himself: they may be too many to hold. */
void kd_proto_head(kd_proto *m, unsigned field, uint64_t n);
/* What is written between the two is a message, the value of this field. close takes what open gave; the last one opened is closed first. */
size_t kd_proto_open(kd_proto *m, unsigned field);
void kd_proto_close(kd_proto *m, size_t opened);
/* Fields that were written elsewhere. */
void kd_proto_append(kd_proto *m, const kd_proto *fields);
void kd_proto_clear(kd_proto *m); /* empty again; keeps the memory, and `failed` */
void kd_proto_free(kd_proto *m);

#endif

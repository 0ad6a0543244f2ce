#include "common/base/protobuf.h"

#include <string.h>

#include "common/base/mem.h"

enum { VARINT = 0, FIXED64 = 1, LENGTH = 2, FIXED32 = 5 }; /* wire types */
enum { VARINT_MAX = 10 };

/* n more bytes, or NULL. */
static uint8_t *grow(kd_proto *m, size_t n) {
    size_t need, cap = m->cap != 0 ? m->cap : 256;
    if (m->failed || !kd_add_size(m->size, n, &need)) {
        m->failed = 1;
        return NULL;
    }
    while (cap < need && cap <= SIZE_MAX / 2)
        cap *= 2;
    if (cap != m->cap) {
        uint8_t *grown = cap >= need ? kd_realloc(m->bytes, cap) : NULL;
        if (grown == NULL) {
            m->failed = 1;
            return NULL;
        }
        m->bytes = grown;
        m->cap = cap;
    }
    uint8_t *at = m->bytes + m->size;
    m->size = need;
    return at;
}

static size_t encode_varint(uint8_t out[VARINT_MAX], uint64_t v) {
    size_t n = 0;
    for (; v >= 0x80; v >>= 7)
        out[n++] = (uint8_t)(v | 0x80);
    out[n++] = (uint8_t)v;
    return n;
}

static void put(kd_proto *m, const void *bytes, size_t n) {
    uint8_t *at = grow(m, n);
    if (at != NULL && n > 0)
        memcpy(at, bytes, n);
}

static void put_varint(kd_proto *m, uint64_t v) {
    uint8_t text[VARINT_MAX];
    put(m, text, encode_varint(text, v));
}

static void put_key(kd_proto *m, unsigned field, unsigned type) {
    put_varint(m, (uint64_t)field << 3 | type);
}

static void put_little(kd_proto *m, uint64_t v, size_t n) {
    uint8_t bytes[8];
    for (size_t i = 0; i < n; i++)
        bytes[i] = (uint8_t)(v >> (8 * i));
    put(m, bytes, n);
}

void kd_proto_int(kd_proto *m, unsigned field, int64_t v) {
    put_key(m, field, VARINT);
    put_varint(m, (uint64_t)v);
}

void kd_proto_float(kd_proto *m, unsigned field, float v) {
    uint32_t bits;
    memcpy(&bits, &v, sizeof bits);
    put_key(m, field, FIXED32);
    put_little(m, bits, sizeof bits);
}

void kd_proto_double(kd_proto *m, unsigned field, double v) {
    uint64_t bits;
    memcpy(&bits, &v, sizeof bits);
    put_key(m, field, FIXED64);
    put_little(m, bits, sizeof bits);
}

void kd_proto_head(kd_proto *m, unsigned field, uint64_t n) {
    put_key(m, field, LENGTH);
    put_varint(m, n);
}

void kd_proto_bytes(kd_proto *m, unsigned field, const void *bytes, size_t n) {
    kd_proto_head(m, field, n);
    put(m, bytes, n);
}

void kd_proto_text(kd_proto *m, unsigned field, const char *text) {
    kd_proto_bytes(m, field, text, strlen(text));
}

size_t kd_proto_open(kd_proto *m, unsigned field) {
    put_key(m, field, LENGTH);
    return m->size;
}

/* The length is known only now: what follows it makes room. */
void kd_proto_close(kd_proto *m, size_t opened) {
    uint8_t length[VARINT_MAX];
    if (m->failed)
        return;
    size_t size = m->size - opened, n = encode_varint(length, size);
    if (grow(m, n) == NULL)
        return;
    memmove(m->bytes + opened + n, m->bytes + opened, size);
    memcpy(m->bytes + opened, length, n);
}

void kd_proto_append(kd_proto *m, const kd_proto *fields) {
    m->failed |= fields->failed;
    put(m, fields->bytes, fields->size);
}

void kd_proto_clear(kd_proto *m) {
    m->size = 0;
}

void kd_proto_free(kd_proto *m) {
    kd_free(m->bytes);
    *m = (kd_proto){0};
}

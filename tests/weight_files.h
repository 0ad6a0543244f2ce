/* For the tests of weight files: byte buffers, files in a temporary place, a zip writer, and a pickle assembler, so that tests can make
 * files that no library would write. */
#ifndef KD_TESTS_WEIGHT_FILES_H
#define KD_TESTS_WEIGHT_FILES_H

#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/base/io.h"
#include "common/base/mem.h"
#include "common/weights/weights.h"

enum { WF_CAPACITY = 1 << 18 };

typedef struct wf_bytes {
    uint8_t data[WF_CAPACITY];
    size_t size;
} wf_bytes;

static inline void wf_add(wf_bytes *b, const void *p, size_t n)
{
    assert_true(n <= WF_CAPACITY - b->size);
    if (n > 0)
        memcpy(b->data + b->size, p, n);
    b->size += n;
}

static inline void wf_number(wf_bytes *b, uint64_t v, int bytes)
{
    for (int i = 0; i < bytes; i++) {
        uint8_t byte = (uint8_t)(v >> (8 * i));
        wf_add(b, &byte, 1);
    }
}

/* -- files ------------------------------------------------------------------------------------------------------------------- */

static inline const char *wf_path(const char *name)
{
    static char path[4][512];
    static int next;
    const char *dir = getenv("TMPDIR");
    char *p = path[next++ % 4];
    snprintf(p, sizeof path[0], "%s/kd-weights-%ld-%s", dir != NULL ? dir : "/tmp", (long)getpid(), name);
    return p;
}

static inline void wf_save(const char *path, const void *bytes, size_t n)
{
    FILE *f = fopen(path, "wb");
    assert_non_null(f);
    assert_int_equal(fwrite(bytes, 1, n, f), n);
    assert_int_equal(fclose(f), 0);
}

static inline void wf_load(const char *path, wf_bytes *b)
{
    FILE *f = fopen(path, "rb");
    if (f == NULL)
        fail_msg("%s is missing", path);
    b->size = fread(b->data, 1, WF_CAPACITY, f);
    assert_true(b->size < WF_CAPACITY);
    fclose(f);
}

/* Opens bytes as a file; the file is removed at once (the reader keeps it open). */
static inline kd_status wf_open(kd_weights **w, const void *bytes, size_t n, kd_err *err)
{
    const char *path = wf_path("open");
    wf_save(path, bytes, n);
    kd_status status = kd_weights_open(w, path, err);
    unlink(path);
    return status;
}

static inline void wf_refused_as(kd_status want, const void *bytes, size_t n, const char *why)
{
    kd_weights *w = NULL;
    kd_err err = {0};
    size_t live = kd_mem_live_bytes();
    kd_status got = wf_open(&w, bytes, n, &err);
    if (got != want)
        fail_msg("expected status %d with '%s', got %d: %s", want, why, got, err.msg);
    assert_int_equal(err.status, want);
    if (strstr(err.msg, why) == NULL)
        fail_msg("expected '%s' in: %s", why, err.msg);
    assert_int_equal(kd_mem_live_bytes(), live);
}

/* Damaged bytes must be refused with KD_EFAIL and a sentence that contains `why`. */
static inline void wf_refused(const void *bytes, size_t n, const char *why) { wf_refused_as(KD_EFAIL, bytes, n, why); }

/* A whole file of another kind must be refused with KD_EUSAGE and a sentence that contains `why`. */
static inline void wf_wrong(const void *bytes, size_t n, const char *why) { wf_refused_as(KD_EUSAGE, bytes, n, why); }

/* -- files made by PyTorch --------------------------------------------------------------------------------------------------- */

static inline void wf_compare_tensor(const kd_weights *got, int i, const kd_weights *want, int k)
{
    kd_err err = {0};
    kd_tensor a = kd_weights_info(got, i), b = kd_weights_info(want, k);
    size_t n = kd_tensor_numel(&b);
    if (!kd_shape_equal(a.shape, a.rank, b.shape, b.rank))
        fail_msg("%s: another shape", a.name);
    if (b.dtype == KD_I64) {
        int64_t x[64], y[64];
        assert_true(n <= 64);
        assert_int_equal(kd_weights_read_i64(got, i, x, n, &err), KD_OK);
        assert_int_equal(kd_weights_read_i64(want, k, y, n, &err), KD_OK);
        assert_memory_equal(x, y, n * sizeof *x);
    } else {
        float x[64], y[64];
        assert_true(n <= 64);
        assert_int_equal(kd_weights_read_f32(got, i, x, n, &err), KD_OK);
        assert_int_equal(kd_weights_read_f32(want, k, y, n, &err), KD_OK);
        assert_memory_equal(x, y, n * sizeof *x);
    }
}

/* A file of tests/golden/weights has the tensors and values of its STEM.expected.safetensors, which PyTorch wrote. */
static inline void wf_equals_torch(const char *name)
{
    char path[128];
    kd_err err = {0};
    kd_weights *got = NULL, *want = NULL;
    size_t live = kd_mem_live_bytes();
    snprintf(path, sizeof path, "tests/golden/weights/%s", name);
    if (kd_weights_open(&got, path, &err) != KD_OK)
        fail_msg("%s", err.msg);
    snprintf(path, sizeof path, "tests/golden/weights/%.*s.expected.safetensors", (int)strcspn(name, "."), name);
    assert_int_equal(kd_weights_open(&want, path, &err), KD_OK);
    assert_true(kd_weights_count(want) > 0);
    assert_int_equal(kd_weights_count(got), kd_weights_count(want));
    for (int k = 0; k < kd_weights_count(want); k++) {
        int i = kd_weights_find(got, kd_weights_info(want, k).name);
        if (i < 0)
            fail_msg("%s: tensor '%s' is missing", name, kd_weights_info(want, k).name);
        wf_compare_tensor(got, i, want, k);
    }
    kd_weights_close(got);
    kd_weights_close(want);
    assert_int_equal(kd_mem_live_bytes(), live);
}

/* -- safetensors ------------------------------------------------------------------------------------------------------------- */

static inline void wf_safetensors(wf_bytes *b, const char *header, const void *data, size_t n)
{
    b->size = 0;
    wf_number(b, strlen(header), 8);
    wf_add(b, header, strlen(header));
    wf_add(b, data, n);
}

/* -- zip: stored entries, sizes in the local headers, no zip64 ----------------------------------------------------------------- */

static inline uint32_t wf_crc32(const uint8_t *p, size_t n)
{
    uint32_t c = 0xFFFFFFFF;
    for (size_t i = 0; i < n; i++) {
        c ^= p[i];
        for (int k = 0; k < 8; k++)
            c = c & 1 ? c >> 1 ^ 0xEDB88320 : c >> 1;
    }
    return ~c;
}

typedef struct wf_zip {
    wf_bytes out, directory;
    int count;
} wf_zip;

static inline void wf_zip_add_as(wf_zip *z, const char *name, const void *data, size_t n, int method, uint32_t claimed_size)
{
    uint32_t crc = wf_crc32(data, n);
    size_t local = z->out.size;
    for (int central = 0; central < 2; central++) {
        wf_bytes *b = central ? &z->directory : &z->out;
        wf_add(b, central ? "PK\x01\x02\x14\x00" : "PK\x03\x04", central ? 6 : 4);
        wf_number(b, 20, 2);
        wf_number(b, 0, 2);
        wf_number(b, (uint64_t)method, 2);
        wf_number(b, 0, 4);
        wf_number(b, crc, 4);
        wf_number(b, claimed_size, 4);
        wf_number(b, claimed_size, 4);
        wf_number(b, strlen(name), 2);
        wf_number(b, 0, 2);
        if (central) {
            wf_add(b, "\0\0\0\0\0\0\0\0\0", 10); /* comment length, disk, attributes */
            wf_number(b, local, 4);
        }
        wf_add(b, name, strlen(name));
    }
    wf_add(&z->out, data, n);
    z->count++;
}

static inline void wf_zip_add(wf_zip *z, const char *name, const void *data, size_t n)
{
    wf_zip_add_as(z, name, data, n, 0, (uint32_t)n);
}

/* Appends the directory; the file's bytes are then z->out. */
static inline void wf_zip_end(wf_zip *z)
{
    size_t at = z->out.size;
    wf_add(&z->out, z->directory.data, z->directory.size);
    wf_add(&z->out, "PK\x05\x06\0\0\0\0", 8);
    wf_number(&z->out, (uint64_t)z->count, 2);
    wf_number(&z->out, (uint64_t)z->count, 2);
    wf_number(&z->out, z->directory.size, 4);
    wf_number(&z->out, at, 4);
    wf_number(&z->out, 0, 2);
}

/* A .pth around a pickle, with storages "0" (64 bytes: f32 0..15) and "1" (8 bytes). */
static inline void wf_pth(wf_zip *z, const wf_bytes *pickle)
{
    float values[16];
    for (int i = 0; i < 16; i++)
        values[i] = (float)i;
    z->out.size = z->directory.size = 0;
    z->count = 0;
    wf_zip_add(z, "archive/data.pkl", pickle->data, pickle->size);
    wf_zip_add(z, "archive/data/0", values, sizeof values);
    wf_zip_add(z, "archive/data/1", values, 8);
    wf_zip_add(z, "archive/version", "3\n", 2);
    wf_zip_end(z);
}

/* -- pickle ------------------------------------------------------------------------------------------------------------------ */

static inline void wf_op(wf_bytes *b, const char *ops) { wf_add(b, ops, strlen(ops)); }

static inline void wf_text(wf_bytes *b, const char *s)
{
    wf_op(b, "X");
    wf_number(b, strlen(s), 4);
    wf_op(b, s);
}

static inline void wf_int(wf_bytes *b, int64_t v)
{
    wf_add(b, "\x8a\x08", 2); /* LONG1 of 8 bytes */
    wf_number(b, (uint64_t)v, 8);
}

static inline void wf_tuple(wf_bytes *b, const int64_t *v, int n)
{
    wf_op(b, "(");
    for (int i = 0; i < n; i++)
        wf_int(b, v[i]);
    wf_op(b, "t");
}

/* A tensor on the stack: _rebuild_tensor_v2(('storage', torch.CLASS, key, 'cpu', numel), offset, size, stride, False). */
typedef struct wf_tensor {
    const char *cls, *key;
    int64_t numel, offset;
    int rank, strides;
    int64_t size[10], stride[10];
} wf_tensor;

static inline void wf_push_tensor(wf_bytes *b, const wf_tensor *t)
{
    wf_op(b, "ctorch._utils\n_rebuild_tensor_v2\n((");
    wf_text(b, "storage");
    wf_op(b, "ctorch\n");
    wf_op(b, t->cls);
    wf_op(b, "\n");
    wf_text(b, t->key);
    wf_text(b, "cpu");
    wf_int(b, t->numel);
    wf_op(b, "tQ");
    wf_int(b, t->offset);
    wf_tuple(b, t->size, t->rank);
    wf_tuple(b, t->stride, t->strides);
    wf_op(b, "\x89tR");
}

/* {name: tensor}, whole pickle. */
static inline void wf_one_tensor(wf_bytes *b, const char *name, const wf_tensor *t)
{
    b->size = 0;
    wf_add(b, "\x80\x02}", 3);
    wf_text(b, name);
    wf_push_tensor(b, t);
    wf_op(b, "s.");
}

#endif

/* The .pth container, written. Its entries are stored as they are, so that a zip is only headers around them: they are written here and not by libzip, because every byte then depends on the content alone,
 * and because kd_io_replace takes them as they come (atomic, durable, a full disk said as such).
 *
 * Sizes and offsets are 64-bit ones always (ZIP64, PKWARE APPNOTE 4.3.9, 4.5.3), as a ViT-g needs them: one way for files of every size, which every test takes.
 *
 *     [local header, name, extra][bytes] ... [central header, name, extra] ... [ZIP64 end][its locator][end] */
#include "common/weights/pth.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/io.h"
#include "common/base/mem.h"
#include "common/weights/container.h"

enum {
    ALIGNMENT = 64,
    ENTRY_NAME = 40,
    VERSION = 45,       /* of the zip format: the first with ZIP64 */
    FIRST_DAY = 0x0021, /* 1 January 1980, the earliest that a zip can say: files don't tell when they were made */
    ZIP64 = 0x0001,     /* ids of extra fields; FB is PyTorch's for padding */
    PADDING = 0x4246,
    LOCAL_EXTRA = 4 + 16,
    CENTRAL_EXTRA = 4 + 24,
};

/* ---- bytes ---- */

/* A buffer that grows; short of memory it stays so and everything more is dropped. */
typedef struct bytes {
    uint8_t *at;
    size_t size, capacity;
    int failed;
} bytes;

static void put(bytes *b, const void *data, size_t n)
{
    if (!b->failed && b->size + n > b->capacity) {
        size_t capacity = 2 * b->capacity + n + 256;
        uint8_t *grown = kd_realloc(b->at, capacity);
        b->failed = grown == NULL;
        if (grown != NULL) {
            b->at = grown;
            b->capacity = capacity;
        }
    }
    if (b->failed)
        return;
    memcpy(b->at + b->size, data, n);
    b->size += n;
}

static void put_byte(bytes *b, int x) { put(b, &(uint8_t){(uint8_t)x}, 1); }
static void put_text(bytes *b, const char *text) { put(b, text, strlen(text)); }

/* The low n bytes of x, little endian. */
static void put_int(bytes *b, uint64_t x, int n)
{
    for (int i = 0; i < n; i++)
        put_byte(b, (int)(x >> 8 * i & 255));
}

/* ---- the pickle: opcodes of protocol 2, without the memo (Python's Lib/pickletools.py names and describes them) ---- */

enum { PROTO = 0x80, NEWFALSE = 0x89, LONG1 = 0x8a };

static void put_string(bytes *b, const char *text)
{
    put_byte(b, 'X'); /* BINUNICODE */
    put_int(b, strlen(text), 4);
    put_text(b, text);
}

static void put_number(bytes *b, int64_t x)
{
    if (x <= INT32_MAX) {
        put_byte(b, 'J'); /* BININT */
        put_int(b, (uint64_t)x, 4);
    } else {
        put_byte(b, LONG1);
        put_byte(b, 8);
        put_int(b, (uint64_t)x, 8);
    }
}

static void put_numbers(bytes *b, const int64_t *x, int n)
{
    put_byte(b, '('); /* MARK */
    for (int i = 0; i < n; i++)
        put_number(b, x[i]);
    put_byte(b, 't'); /* TUPLE */
}

static void put_empty_dict(bytes *b)
{
    put_text(b, "ccollections\nOrderedDict\n)R"); /* GLOBAL, EMPTY_TUPLE, REDUCE */
}

static const char *storage_class(kd_dtype t)
{
    switch (t) {
    case KD_F64: return "DoubleStorage";
    case KD_F32: return "FloatStorage";
    case KD_F16: return "HalfStorage";
    case KD_BF16: return "BFloat16Storage";
    case KD_I64: return "LongStorage";
    case KD_I32: return "IntStorage";
    case KD_I16: return "ShortStorage";
    case KD_I8: return "CharStorage";
    case KD_U8: return "ByteStorage";
    case KD_BOOL: return "BoolStorage";
    }
    KD_ASSERT(!"a dtype of kd_dtype");
    return NULL;
}

/* torch._utils._rebuild_tensor_v2(("storage", torch.XStorage, key, "cpu", numel), offset, size, stride, requires_grad, hooks) */
static void put_tensor(bytes *b, const kd_tensor *t, size_t key)
{
    kd_weight_entry dense = {.rank = t->rank};
    char text[24];
    memcpy(dense.shape, t->shape, sizeof dense.shape);
    kd_entry_set_dense_strides(&dense);
    snprintf(text, sizeof text, "%zu", key);
    put_text(b, "ctorch._utils\n_rebuild_tensor_v2\n((");
    put_string(b, "storage");
    put_text(b, "ctorch\n");
    put_text(b, storage_class(t->dtype));
    put_text(b, "\n");
    put_string(b, text);
    put_string(b, "cpu");
    put_number(b, (int64_t)kd_tensor_numel(t));
    put_text(b, "tQ"); /* TUPLE, BINPERSID */
    put_number(b, 0);
    put_numbers(b, t->shape, t->rank);
    put_numbers(b, dense.stride, t->rank);
    put_byte(b, NEWFALSE);
    put_empty_dict(b);
    put_text(b, "tR"); /* TUPLE, REDUCE */
}

static void put_pickle(bytes *b, const kd_tensor *tensors, size_t count)
{
    put_byte(b, PROTO);
    put_byte(b, 2);
    put_empty_dict(b);
    put_byte(b, '(');
    for (size_t i = 0; i < count; i++) {
        put_string(b, tensors[i].name);
        put_tensor(b, &tensors[i], i);
    }
    put_text(b, "u."); /* SETITEMS, STOP */
}

/* ---- the zip ---- */

typedef struct crc_table {
    uint32_t of[256];
} crc_table;

/* CRC-32 of IEEE 802.3, a byte at a time. */
static void fill_table(crc_table *t)
{
    for (uint32_t i = 0; i < 256; i++) {
        t->of[i] = i;
        for (int bit = 0; bit < 8; bit++)
            t->of[i] = t->of[i] >> 1 ^ (t->of[i] & 1 ? 0xEDB88320u : 0);
    }
}

static uint32_t crc32_of(const crc_table *t, const uint8_t *p, size_t n)
{
    uint32_t crc = ~0u;
    for (size_t i = 0; i < n; i++)
        crc = crc >> 8 ^ t->of[(crc ^ p[i]) & 255];
    return ~crc;
}

typedef struct writer {
    kd_replace *file;
    uint64_t at;    /* bytes written so far */
    bytes head;     /* header of the entry that is being written */
    bytes central;  /* the directory, which grows with the entries */
    size_t entries;
    const char *path;
    crc_table crc;
} writer;

static kd_status no_memory(const char *path, kd_err *err) { return kd_fail(err, KD_EFAIL, "%s: out of memory for the headers of the zip container", path); }

static kd_status write_bytes(writer *w, const void *data, size_t n, kd_err *err)
{
    KD_TRY(kd_io_replace_write(w->file, data, n, err));
    w->at += n;
    return KD_OK;
}

/* What both headers of an entry have in common: from the version that a reader needs to the lengths of name and extra. */
static void put_header(bytes *b, uint32_t crc, size_t name, size_t extra)
{
    put_int(b, VERSION, 2);
    put_int(b, 0, 2); /* no flags */
    put_int(b, 0, 2); /* stored */
    put_int(b, 0, 2); /* midnight */
    put_int(b, FIRST_DAY, 2);
    put_int(b, crc, 4);
    put_int(b, UINT32_MAX, 4); /* both sizes stand in the extra field */
    put_int(b, UINT32_MAX, 4);
    put_int(b, name, 2);
    put_int(b, extra, 2);
}

/* Ends the local header such that what follows it begins on a multiple of ALIGNMENT. */
static void put_padding(bytes *b, size_t n)
{
    put_int(b, PADDING, 2);
    put_int(b, n, 2);
    for (size_t i = 0; i < n; i++)
        put_byte(b, 'Z');
}

static kd_status write_entry(writer *w, const char *suffix, const void *data, size_t size, kd_err *err)
{
    char name[ENTRY_NAME];
    uint32_t crc = crc32_of(&w->crc, data, size);
    size_t length = (size_t)snprintf(name, sizeof name, "archive/%s", suffix);
    uint64_t start = w->at, unpadded = start + 30 + length + LOCAL_EXTRA + 4;
    size_t padding = (size_t)(ALIGNMENT - unpadded % ALIGNMENT) % ALIGNMENT;
    w->head.size = 0;
    put_text(&w->head, "PK\3\4");
    put_header(&w->head, crc, length, LOCAL_EXTRA + 4 + padding);
    put_text(&w->head, name);
    put_int(&w->head, ZIP64, 2);
    put_int(&w->head, LOCAL_EXTRA - 4, 2);
    put_int(&w->head, size, 8);
    put_int(&w->head, size, 8);
    put_padding(&w->head, padding);

    put_text(&w->central, "PK\1\2");
    put_int(&w->central, VERSION, 2); /* made by: the same, on MS-DOS, which is to say without permissions */
    put_header(&w->central, crc, length, CENTRAL_EXTRA);
    put_int(&w->central, 0, 2); /* no comment, */
    put_int(&w->central, 0, 2); /* on the first disk, */
    put_int(&w->central, 0, 2); /* no attributes */
    put_int(&w->central, 0, 4);
    put_int(&w->central, UINT32_MAX, 4); /* the offset stands in the extra field */
    put_text(&w->central, name);
    put_int(&w->central, ZIP64, 2);
    put_int(&w->central, CENTRAL_EXTRA - 4, 2);
    put_int(&w->central, size, 8);
    put_int(&w->central, size, 8);
    put_int(&w->central, start, 8);
    w->entries++;
    if (w->head.failed || w->central.failed)
        return no_memory(w->path, err);
    KD_TRY(write_bytes(w, w->head.at, w->head.size, err));
    return write_bytes(w, data, size, err);
}

static kd_status write_directory(writer *w, kd_err *err)
{
    uint64_t start = w->at, size = w->central.size;
    bytes *b = &w->central;
    put_text(b, "PK\6\6");
    put_int(b, 44, 8); /* bytes that follow in this record */
    put_int(b, VERSION, 2);
    put_int(b, VERSION, 2);
    put_int(b, 0, 4);
    put_int(b, 0, 4);
    put_int(b, w->entries, 8);
    put_int(b, w->entries, 8);
    put_int(b, size, 8);
    put_int(b, start, 8);
    put_text(b, "PK\6\7");
    put_int(b, 0, 4);
    put_int(b, start + size, 8);
    put_int(b, 1, 4);
    put_text(b, "PK\5\6");
    put_int(b, 0, 2);
    put_int(b, 0, 2);
    put_int(b, UINT16_MAX, 2); /* the numbers above count */
    put_int(b, UINT16_MAX, 2);
    put_int(b, UINT32_MAX, 4);
    put_int(b, UINT32_MAX, 4);
    put_int(b, 0, 2);
    return b->failed ? no_memory(w->path, err) : write_bytes(w, b->at, b->size, err);
}

static kd_status write_archive(writer *w, const bytes *pickle, const char *json, const kd_tensor *tensors, size_t count, kd_err *err)
{
    KD_TRY(write_entry(w, "data.pkl", pickle->at, pickle->size, err));
    KD_TRY(write_entry(w, "byteorder", "little", 6, err));
    for (size_t i = 0; i < count; i++) {
        char name[ENTRY_NAME];
        snprintf(name, sizeof name, "data/%zu", i);
        KD_TRY(write_entry(w, name, tensors[i].data, kd_tensor_numel(&tensors[i]) * kd_dtype_size(tensors[i].dtype), err));
    }
    KD_TRY(write_entry(w, "version", "3\n", 2, err));
    KD_TRY(write_entry(w, "kdcache.json", json, strlen(json), err));
    return write_directory(w, err);
}

/* ---- the file ---- */

static kd_status check_names(const char *path, const kd_tensor *tensors, size_t count, kd_err *err)
{
    kd_name_map *names;
    KD_TRY(kd_name_map_create(&names, count, err));
    kd_status status = KD_OK;
    for (size_t i = 0; status == KD_OK && i < count; i++) {
        json_t *text = json_string(tensors[i].name);
        if (text == NULL)
            status = kd_fail(err, KD_EFAIL, "%s: the name of tensor '%s' can't be written (not UTF-8, or out of memory)", path, tensors[i].name);
        else if (kd_name_map_add(names, tensors[i].name, (int)i) >= 0)
            status = kd_fail(err, KD_EFAIL, "%s: two tensors to write are named '%s'", path, tensors[i].name);
        json_decref(text);
    }
    kd_name_map_destroy(names);
    return status;
}

kd_status kd_pth_write(const char *path, const kd_tensor *tensors, size_t count, const json_t *metadata, kd_err *err)
{
    writer w = {.path = path};
    bytes pickle = {0};
    KD_TRY(kd_weights_check_strings(path, metadata, err));
    KD_TRY(check_names(path, tensors, count, err));
    put_pickle(&pickle, tensors, count);
    fill_table(&w.crc);
    char *json = metadata != NULL ? json_dumps(metadata, JSON_SORT_KEYS | JSON_INDENT(1)) : strdup("{}");
    kd_status status = pickle.failed || json == NULL ? kd_fail(err, KD_EFAIL, "%s: out of memory for the pickle of %zu tensors", path, count) : kd_io_replace_begin(&w.file, path, err);
    if (status == KD_OK) {
        status = write_archive(&w, &pickle, json, tensors, count, err);
        if (status == KD_OK)
            status = kd_io_replace_commit(w.file, err);
        else
            kd_io_replace_abort(w.file);
    }
    free(json);
    kd_free(pickle.at);
    kd_free(w.head.at);
    kd_free(w.central.at);
    return status;
}

/* The .safetensors container: 8 bytes little-endian header size N, N bytes of JSON, then the data, tensor after tensor without holes. */
#include "common/weights/safetensors.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "common/weights/container.h"

/* The format allows 100 MB; the header of a model with 100,000 tensors has some 12 MB. */
#define HEADER_LIMIT ((uint64_t)16 << 20)

/* In the writer's order of data types, which is the reference's: descending size, so that every tensor is aligned. */
static const struct type_name {
    const char *name;
    kd_dtype dtype;
} type_names[] = {{"I64", KD_I64}, {"F64", KD_F64}, {"F32", KD_F32}, {"I32", KD_I32}, {"BF16", KD_BF16},
                  {"F16", KD_F16}, {"I16", KD_I16}, {"I8", KD_I8},   {"U8", KD_U8},   {"BOOL", KD_BOOL}};
enum { TYPE_COUNT = sizeof type_names / sizeof type_names[0] };

/* -- reading ----------------------------------------------------------------------------------------------------------------- */

static kd_status read_header(kd_weights *w, json_t **header, uint64_t *data_start, kd_err *err)
{
    uint8_t size_bytes[8];
    if (w->map.size < 8)
        return kd_fail(err, KD_EFAIL, "%s: %zu bytes is too short for a weight file; expected .safetensors or a PyTorch .pth", w->path,
                       w->map.size);
    KD_TRY(kd_weights_copy(w, 0, size_bytes, sizeof size_bytes, err));
    uint64_t n = 0;
    for (int i = 7; i >= 0; i--)
        n = n << 8 | size_bytes[i];
    uint8_t brace = 0;
    if (w->map.size > 8)
        KD_TRY(kd_weights_copy(w, 8, &brace, 1, err));
    if (n > HEADER_LIMIT && brace == '{')
        return kd_fail(err, KD_EFAIL, "%s: the .safetensors header claims %" PRIu64 " bytes; the limit is %" PRIu64 "; the file is damaged",
                       w->path, n, HEADER_LIMIT);
    if (n == 0 || n > HEADER_LIMIT)
        return kd_fail(err, KD_EUSAGE, "%s: is neither a PyTorch .pth nor .safetensors, by its first bytes; download it again or convert it", w->path);
    if (n > w->map.size - 8)
        return kd_fail(err, KD_EFAIL, "%s: truncated .safetensors: the header has %" PRIu64 " bytes, the file only %zu; copy it again", w->path,
                       n, w->map.size);
    *data_start = 8 + n;
    return kd_weights_json(w, 8, (size_t)n, header, err);
}

/* Other types of the format (safetensors/src/tensor.rs): the file is whole, but its numbers aren't read here. */
static const char *const unread_types[] = {"F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ", "F6_E2M3", "F6_E3M2",
                                           "F4", "U16", "U32", "U64", "C64"};

static kd_status parse_dtype(const kd_weights *w, const char *name, const json_t *v, kd_dtype *out, kd_err *err)
{
    const char *text = json_string_value(v);
    for (int i = 0; text != NULL && i < TYPE_COUNT; i++)
        if (strcmp(text, type_names[i].name) == 0) {
            *out = type_names[i].dtype;
            return KD_OK;
        }
    for (size_t i = 0; text != NULL && i < sizeof unread_types / sizeof unread_types[0]; i++)
        if (strcmp(text, unread_types[i]) == 0)
            return kd_fail(err, KD_EUSAGE, "%s: tensor '%s': dtype %s isn't supported; convert it to F32, F16 or BF16", w->path, name, text);
    return kd_fail(err, KD_EFAIL, "%s: tensor '%s': dtype %s is none of the format's; the file is damaged", w->path, name,
                   text != NULL ? text : "(missing)");
}

static kd_status parse_shape(const kd_weights *w, const json_t *v, kd_weight_entry *e, kd_err *err)
{
    if (!json_is_array(v) || json_array_size(v) > KD_MAX_RANK)
        return kd_fail(err, KD_EFAIL, "%s: tensor '%s': the shape is missing or has more than %d dimensions", w->path, e->name, KD_MAX_RANK);
    e->rank = (int)json_array_size(v);
    for (int d = 0; d < e->rank; d++) {
        const json_t *size = json_array_get(v, (size_t)d);
        if (!json_is_integer(size))
            return kd_fail(err, KD_EFAIL, "%s: tensor '%s': size %d of the shape isn't an integer", w->path, e->name, d);
        e->shape[d] = json_integer_value(size);
    }
    KD_TRY(kd_entry_set_numel(e, w->path, err));
    kd_entry_set_dense_strides(e);
    return KD_OK;
}

/* One "name": {"dtype", "shape", "data_offsets"} entry. storage becomes an absolute file offset. */
static kd_status parse_entry(const kd_weights *w, const char *name, const json_t *v, uint64_t data_start, kd_weight_entry *e, kd_err *err)
{
    if (!json_is_object(v) || json_object_size(v) != 3)
        return kd_fail(err, KD_EFAIL, "%s: header entry '%s' isn't an object of dtype, shape and data_offsets", w->path, name);
    if (strlen(name) > KD_WEIGHTS_MAX_NAME)
        return kd_fail(err, KD_EFAIL, "%s: a tensor's name has %zu bytes; the limit is %d", w->path, strlen(name), KD_WEIGHTS_MAX_NAME);
    e->name = kd_arena_strdup(w->arena, name);
    if (e->name == NULL)
        return kd_fail(err, KD_EFAIL, "%s: out of memory for the names of its tensors", w->path);
    KD_TRY(parse_dtype(w, name, json_object_get(v, "dtype"), &e->dtype, err));
    KD_TRY(parse_shape(w, json_object_get(v, "shape"), e, err));
    const json_t *offsets = json_object_get(v, "data_offsets");
    const json_t *first = json_array_get(offsets, 0), *last = json_array_get(offsets, 1);
    if (json_array_size(offsets) != 2 || !json_is_integer(first) || !json_is_integer(last))
        return kd_fail(err, KD_EFAIL, "%s: tensor '%s': data_offsets isn't a pair of integers", w->path, name);
    int64_t begin = json_integer_value(first), end = json_integer_value(last);
    uint64_t room = w->map.size - data_start;
    if (begin < 0 || end < begin || (uint64_t)end > room)
        return kd_fail(err, KD_EFAIL,
                       "%s: tensor '%s': offsets %" PRId64 "..%" PRId64 " lie outside the file's %" PRIu64
                       " bytes of data; the file is truncated or damaged, copy it again", w->path, name, begin, end, room);
    uint64_t need = (uint64_t)e->numel * kd_dtype_size(e->dtype); /* numel is bounded, so this can't overflow */
    if ((uint64_t)(end - begin) != need)
        return kd_fail(err, KD_EFAIL, "%s: tensor '%s': its shape and dtype need %" PRIu64 " bytes, its offsets span %" PRId64, w->path, name,
                       need, end - begin);
    e->storage = data_start + (uint64_t)begin;
    return KD_OK;
}

static size_t entry_bytes(const kd_weight_entry *e) { return e->numel * kd_dtype_size(e->dtype); }

static int by_storage(const void *a, const void *b)
{
    const kd_weight_entry *x = a, *y = b;
    if (x->storage != y->storage)
        return x->storage < y->storage ? -1 : 1;
    if (entry_bytes(x) != entry_bytes(y)) /* an empty tensor lies before its neighbour */
        return entry_bytes(x) < entry_bytes(y) ? -1 : 1;
    return strcmp(x->name, y->name);
}

/* The format allows neither holes nor overlaps: every byte of data belongs to exactly one tensor. */
static kd_status check_layout(kd_weights *w, uint64_t data_start, kd_err *err)
{
    qsort(w->entries, w->count, sizeof *w->entries, by_storage);
    uint64_t at = data_start;
    for (size_t i = 0; i < w->count; i++) {
        const kd_weight_entry *e = &w->entries[i];
        if (e->storage != at)
            return kd_fail(err, KD_EFAIL, "%s: tensor '%s' %s (it begins at data offset %" PRIu64 ", expected %" PRIu64 "); the file is damaged",
                           w->path, e->name, e->storage < at ? "overlaps another tensor" : "follows a hole", e->storage - data_start,
                           at - data_start);
        at += entry_bytes(e);
    }
    if (at != w->map.size)
        return kd_fail(err, KD_EFAIL, "%s: %" PRIu64 " bytes after the last tensor belong to no tensor; the file is damaged", w->path,
                       w->map.size - at);
    return KD_OK;
}

static kd_status parse_header(kd_weights *w, json_t *header, uint64_t data_start, kd_err *err)
{
    const char *name;
    json_t *value;
    if (!json_is_object(header))
        return kd_fail(err, KD_EFAIL, "%s: the .safetensors header isn't a JSON object", w->path);
    size_t count = json_object_size(header) - (json_object_get(header, "__metadata__") != NULL);
    if (count > KD_WEIGHTS_MAX_TENSORS)
        return kd_fail(err, KD_EFAIL, "%s: %zu tensors; the limit is %d", w->path, count, KD_WEIGHTS_MAX_TENSORS);
    w->entries = kd_arena_alloc(w->arena, (count + 1) * sizeof *w->entries);
    if (w->entries == NULL)
        return kd_fail(err, KD_EFAIL, "%s: out of memory for %zu tensors", w->path, count);
    json_object_foreach (header, name, value) {
        if (strcmp(name, "__metadata__") == 0) {
            w->metadata = json_incref(value);
            KD_TRY(kd_weights_check_metadata(w, err));
            continue;
        }
        KD_TRY(parse_entry(w, name, value, data_start, &w->entries[w->count], err));
        w->count++;
    }
    return check_layout(w, data_start, err);
}

kd_status kd_safetensors_parse(kd_weights *w, kd_err *err)
{
    json_t *header = NULL;
    uint64_t data_start = 0;
    w->container = "safetensors";
    KD_TRY(read_header(w, &header, &data_start, err));
    kd_status status = parse_header(w, header, data_start, err);
    json_decref(header);
    return status;
}

/* -- writing ----------------------------------------------------------------------------------------------------------------- */

static int type_rank(kd_dtype t)
{
    for (int i = 0; i < TYPE_COUNT; i++)
        if (type_names[i].dtype == t)
            return i;
    KD_ASSERT(!"a dtype of kd_dtype");
    return 0;
}

static int by_type_and_name(const void *a, const void *b)
{
    const kd_tensor *x = *(const kd_tensor *const *)a, *y = *(const kd_tensor *const *)b;
    int dx = type_rank(x->dtype), dy = type_rank(y->dtype);
    return dx != dy ? dx - dy : strcmp(x->name, y->name);
}

static int by_text(const void *a, const void *b) { return strcmp(*(const char *const *)a, *(const char *const *)b); }

/* {"format":"pt"} and the caller's strings, keys sorted: the bytes of a file must not depend on the order of insertion. */
static json_t *sorted_metadata(const json_t *metadata)
{
    json_t *all = json_object(), *sorted = json_object();
    size_t n = 0;
    const char **keys = NULL, *key;
    json_t *value;
    if ((metadata != NULL && json_object_update(all, (json_t *)metadata) != 0) || json_object_set_new(all, "format", json_string("pt")) != 0)
        goto fail;
    keys = kd_calloc(json_object_size(all), sizeof *keys);
    if (keys == NULL)
        goto fail;
    json_object_foreach (all, key, value)
        keys[n++] = key;
    qsort(keys, n, sizeof *keys, by_text);
    for (size_t i = 0; i < n; i++)
        if (json_object_set(sorted, keys[i], json_object_get(all, keys[i])) != 0)
            goto fail;
    kd_free(keys);
    json_decref(all);
    return sorted;
fail:
    kd_free(keys);
    json_decref(all);
    json_decref(sorted);
    return NULL;
}

static json_t *entry_json(const kd_tensor *t, uint64_t begin, uint64_t end)
{
    json_t *shape = json_array();
    for (int d = 0; shape != NULL && d < t->rank; d++)
        if (json_array_append_new(shape, json_integer(t->shape[d])) != 0) {
            json_decref(shape);
            return NULL;
        }
    return json_pack("{s:s, s:o, s:[I, I]}", "dtype", type_names[type_rank(t->dtype)].name, "shape", shape, "data_offsets", (json_int_t)begin,
                     (json_int_t)end);
}

/* The header's text without padding (free() it: it is jansson's), keys in writing order. */
static kd_status header_text(const char *path, const kd_tensor *const *order, size_t count, const json_t *metadata, char **text, kd_err *err)
{
    uint64_t at = 0;
    json_t *header = json_object();
    json_t *sorted = sorted_metadata(metadata);
    kd_status status = KD_OK;
    if (sorted == NULL || json_object_set_new(header, "__metadata__", sorted) != 0)
        status = kd_fail(err, KD_EFAIL, "%s: out of memory for the header", path);
    for (size_t i = 0; status == KD_OK && i < count; i++) {
        const kd_tensor *t = order[i];
        uint64_t end = at + kd_tensor_numel(t) * kd_dtype_size(t->dtype);
        if (json_object_get(header, t->name) != NULL)
            status = kd_fail(err, KD_EFAIL, "%s: two tensors to write are named '%s'", path, t->name);
        else if (json_object_set_new(header, t->name, entry_json(t, at, end)) != 0) /* also for a name that isn't UTF-8 */
            status = kd_fail(err, KD_EFAIL, "%s: the header entry of tensor '%s' can't be made (name not UTF-8, or out of memory)", path, t->name);
        at = end;
    }
    if (status == KD_OK && (*text = json_dumps(header, JSON_COMPACT)) == NULL)
        status = kd_fail(err, KD_EFAIL, "%s: out of memory for the header", path);
    json_decref(header);
    return status;
}

typedef kd_status put_tensor(void *ctx, const kd_tensor *t, kd_replace *file, kd_err *err);

static kd_status put_data(void *ctx, const kd_tensor *t, kd_replace *file, kd_err *err)
{
    (void)ctx;
    return kd_io_replace_write(file, t->data, kd_tensor_numel(t) * kd_dtype_size(t->dtype), err);
}

static kd_status write_all(kd_replace *r, const char *text, const kd_tensor *const *order, size_t count, put_tensor *put, void *ctx, kd_err *err)
{
    size_t length = strlen(text), padded = (length + 7) / 8 * 8;
    uint8_t size_bytes[8];
    for (int i = 0; i < 8; i++)
        size_bytes[i] = (uint8_t)((uint64_t)padded >> (8 * i));
    KD_TRY(kd_io_replace_write(r, size_bytes, sizeof size_bytes, err));
    KD_TRY(kd_io_replace_write(r, text, length, err));
    KD_TRY(kd_io_replace_write(r, "       ", padded - length, err)); /* the data starts on a multiple of 8 */
    for (size_t i = 0; i < count; i++)
        KD_TRY(put(ctx, order[i], r, err));
    return KD_OK;
}

kd_status kd_safetensors_stream(const char *path, const kd_tensor *tensors, size_t count, const json_t *metadata, put_tensor *put, void *ctx, kd_err *err)
{
    const kd_tensor **order = NULL;
    char *text = NULL;
    kd_replace *r = NULL;
    kd_status status = kd_weights_check_strings(path, metadata, err);
    if (status != KD_OK)
        return status;
    KD_TRY(kd_alloc_array(&order, count, sizeof *order, err));
    for (size_t i = 0; i < count; i++)
        order[i] = &tensors[i];
    qsort(order, count, sizeof *order, by_type_and_name);
    KD_TRY_TO(done, status, header_text(path, order, count, metadata, &text, err));
    KD_TRY_TO(done, status, kd_io_replace_begin(&r, path, err));
    status = write_all(r, text, order, count, put, ctx, err);
    if (status == KD_OK)
        status = kd_io_replace_commit(r, err);
    else
        kd_io_replace_abort(r);
done:
    free(text);
    kd_free(order);
    return status;
}

kd_status kd_safetensors_write(const char *path, const kd_tensor *tensors, size_t count, const json_t *metadata, kd_err *err)
{
    return kd_safetensors_stream(path, tensors, count, metadata, put_data, NULL, err);
}

/* PyTorch's format before 1.6 (torch.save with _use_new_zipfile_serialization=False still writes it): pickles one after the other, then the
 * storages (torch/serialization.py _legacy_save).
 *
 *     0x1950a86a20f9469cfc6c | 1001 | {little_endian, ...} | the object | [key, key, ...] | int64 numel, data | int64 numel, data | ...
 *
 * A storage's element size is known only from the object that refers to it, so every key of the list must occur there. Data lies at any
 * byte and has no checksum; entries point into the mapped file, as those of a .safetensors do. */
#include <inttypes.h>
#include <string.h>

#include "common/weights/container.h"
#include "common/weights/unpickle.h"

enum { FIRST_READ = 1 << 20, PROTOCOL = 1001, MAX_STORAGES = 2 * KD_WEIGHTS_MAX_TENSORS };

/* The pickles, and where the file goes on after them. */
typedef struct legacy {
    kd_arena *arena;
    kd_pickle_list list;
    kd_pickle_result object;
    const kd_pickle_value *keys;
    uint64_t *at; /* by index in keys: where the storage's data begins */
} legacy;

int kd_legacy_pth_sniff(const uint8_t *bytes, size_t size)
{
    static const char magic[] = "\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19."; /* LONG1 of ten bytes, STOP */
    size_t at = size > 2 && bytes[2] == 0x95 ? 11 : 2;                                 /* protocol 4 puts a frame around it */
    return size >= at + sizeof magic - 1 && bytes[0] == 0x80 && bytes[1] >= 2 && bytes[1] <= 5 && memcmp(bytes + at, magic, sizeof magic - 1) == 0;
}

/* -- the pickles ------------------------------------------------------------------------------------------------------------- */

static kd_status check_system(const kd_pickle_value *info, const char *path, kd_err *err)
{
    for (size_t i = 0; info->kind == KD_PICKLE_DICT && i < info->as.seq.count; i += 2) {
        const kd_pickle_value *key = info->as.seq.items[i], *value = info->as.seq.items[i + 1];
        if (key->kind != KD_PICKLE_TEXT || strcmp(key->as.text.at, "little_endian") != 0 || value->kind != KD_PICKLE_BOOLEAN)
            continue;
        if (value->as.integer)
            return KD_OK;
        return kd_fail(err, KD_EUSAGE, "%s: was written on a big-endian machine; load and re-save it on a little-endian one", path);
    }
    return kd_fail(err, KD_EFAIL, "%s: the legacy .pth doesn't say its byte order; the file is damaged", path);
}

static kd_status check_keys(const kd_pickle_value *keys, const char *path, kd_err *err)
{
    int good = keys->kind == KD_PICKLE_LIST && keys->as.seq.count <= MAX_STORAGES;
    for (size_t i = 0; good && i < keys->as.seq.count; i++)
        good = keys->as.seq.items[i]->kind == KD_PICKLE_TEXT;
    return good ? KD_OK : kd_fail(err, KD_EFAIL, "%s: the legacy .pth has no list of at most %d storage keys after its object; the file is damaged",
                                  path, MAX_STORAGES);
}

static kd_status run_pickles(const uint8_t *bytes, size_t size, const char *path, legacy *l, uint64_t *end, kd_err *err)
{
    kd_pickle_result r;
    KD_TRY(kd_pickle_run(bytes, size, 0, path, l->arena, &r, err)); /* the magic number, which has been compared */
    KD_TRY(kd_pickle_run(bytes, size, r.end, path, l->arena, &r, err));
    if (r.root->kind != KD_PICKLE_INTEGER || r.root->as.integer != PROTOCOL)
        return kd_fail(err, KD_EFAIL, "%s: the legacy .pth isn't of protocol %d, the only one there has been; the file is damaged", path, PROTOCOL);
    KD_TRY(kd_pickle_run(bytes, size, r.end, path, l->arena, &r, err));
    KD_TRY(check_system(r.root, path, err));
    KD_TRY(kd_pickle_run(bytes, size, r.end, path, l->arena, &l->object, err));
    KD_TRY(kd_pickle_collect(l->object.root, path, l->arena, &l->list, err));
    KD_TRY(kd_pickle_run(bytes, size, l->object.end, path, l->arena, &r, err));
    KD_TRY(check_keys(r.root, path, err));
    l->keys = r.root;
    *end = r.end;
    return KD_OK;
}

/* Where the pickles end is known only when they have been run, and they must be run on a copy (the machine owns memory, see
 * kd_weights_guarded): so on a short beginning of the file first, and on a longer one when that wasn't enough. */
static kd_status read_pickles(const kd_weights *w, legacy *l, uint64_t *end, kd_err *err)
{
    kd_status status = KD_EFAIL;
    for (size_t limit = FIRST_READ;; limit *= 8) {
        if (limit > KD_PICKLE_MAX_BYTES)
            limit = KD_PICKLE_MAX_BYTES;
        size_t n = w->map.size < limit ? w->map.size : limit;
        uint8_t *bytes = NULL;
        kd_arena_destroy(l->arena);
        l->arena = kd_arena_create();
        if (l->arena == NULL)
            return kd_fail(err, KD_EFAIL, "%s: out of memory while reading the pickle", w->path);
        KD_TRY(kd_alloc_array(&bytes, n, 1, err));
        status = kd_weights_copy(w, 0, bytes, n, err);
        if (status == KD_OK)
            status = run_pickles(bytes, n, w->path, l, end, err);
        kd_free(bytes);
        if (status == KD_OK || n == w->map.size || limit == KD_PICKLE_MAX_BYTES)
            return status;
    }
}

/* -- the storages ------------------------------------------------------------------------------------------------------------ */

/* One storage at *at: its count, then its elements. */
static kd_status place_storage(const kd_weights *w, const kd_pickle_storage *s, uint64_t *at, kd_err *err)
{
    uint8_t count_bytes[8];
    uint64_t count = 0, room = w->map.size - *at, bytes = (uint64_t)s->numel * kd_dtype_size(s->dtype);
    if (room < 8 || bytes > room - 8)
        return kd_fail(err, KD_EFAIL, "%s: storage '%s' needs %" PRIu64 " bytes at byte %" PRIu64 ", the file has %zu; it is truncated, "
                       "copy it again", w->path, s->key, bytes + 8, *at, w->map.size);
    KD_TRY(kd_weights_copy(w, *at, count_bytes, 8, err));
    for (int i = 7; i >= 0; i--)
        count = count << 8 | count_bytes[i];
    if (count != (uint64_t)s->numel)
        return kd_fail(err, KD_EFAIL, "%s: storage '%s' at byte %" PRIu64 " has %" PRIu64 " elements, its tensors expect %" PRId64
                       "; the file is damaged", w->path, s->key, *at, count, s->numel);
    *at += 8 + bytes;
    return KD_OK;
}

/* Walks the storages in the order of the list. by_key: the storages of the object; in_list: the keys of the list. */
static kd_status place_storages(const kd_weights *w, legacy *l, const kd_name_map *by_key, kd_name_map *in_list, uint64_t at, kd_err *err)
{
    for (size_t i = 0; i < l->keys->as.seq.count; i++) {
        const char *key = l->keys->as.seq.items[i]->as.text.at;
        int first = kd_name_map_find(by_key, key);
        if (kd_name_map_add(in_list, key, (int)i) >= 0)
            return kd_fail(err, KD_EFAIL, "%s: storage '%s' comes twice; the file is damaged", w->path, key);
        if (first < 0)
            return kd_fail(err, KD_EFAIL, "%s: nothing refers to storage '%s', so that its size isn't known; the file is damaged", w->path, key);
        uint64_t start = at;
        KD_TRY(place_storage(w, l->object.storages[first], &at, err));
        l->at[i] = start + 8;
    }
    return KD_OK;
}

/* Every reference to one key must mean the same storage. */
static kd_status index_storages(const kd_weights *w, const legacy *l, kd_name_map *by_key, kd_err *err)
{
    for (size_t i = 0; i < l->object.storage_count; i++) {
        const kd_pickle_storage *s = l->object.storages[i];
        int before = kd_name_map_add(by_key, s->key, (int)i);
        const kd_pickle_storage *first = before >= 0 ? l->object.storages[before] : s;
        if (first->dtype != s->dtype || first->numel != s->numel)
            return kd_fail(err, KD_EFAIL, "%s: storage '%s' is described in two ways; the file is damaged", w->path, s->key);
    }
    return KD_OK;
}

static kd_status make_entries(kd_weights *w, const legacy *l, const kd_name_map *in_list, kd_err *err)
{
    w->entries = kd_arena_alloc(w->arena, l->list.count * sizeof *w->entries);
    if (w->entries == NULL)
        return kd_fail(err, KD_EFAIL, "%s: out of memory for %zu tensors", w->path, l->list.count);
    for (; w->count < l->list.count; w->count++) {
        const kd_pickle_tensor *t = &l->list.tensors[w->count];
        int storage = kd_name_map_find(in_list, t->storage.key);
        if (storage < 0)
            return kd_fail(err, KD_EFAIL, "%s: tensor '%s' lies in storage '%s', which the file doesn't have; it is damaged, copy it again", w->path,
                           t->name, t->storage.key);
        KD_TRY(kd_entry_set_pickled(w, &w->entries[w->count], t, l->at[storage], err));
    }
    return KD_OK;
}

kd_status kd_legacy_pth_parse(kd_weights *w, kd_err *err)
{
    legacy l = {0};
    kd_name_map *by_key = NULL, *in_list = NULL;
    uint64_t end = 0;
    kd_status status = read_pickles(w, &l, &end, err);
    if (status == KD_OK)
        status = kd_weights_set_container(w, "legacy", l.list.module, err);
    if (status == KD_OK)
        status = kd_name_map_create(&by_key, l.object.storage_count, err);
    if (status == KD_OK)
        status = kd_name_map_create(&in_list, l.keys->as.seq.count, err);
    if (status == KD_OK)
        status = kd_alloc_array(&l.at, l.keys->as.seq.count, sizeof *l.at, err);
    if (status == KD_OK)
        status = index_storages(w, &l, by_key, err);
    if (status == KD_OK)
        status = place_storages(w, &l, by_key, in_list, end, err);
    if (status == KD_OK)
        status = make_entries(w, &l, in_list, err);
    kd_free(l.at);
    kd_name_map_destroy(by_key);
    kd_name_map_destroy(in_list);
    kd_arena_destroy(l.arena);
    return status;
}

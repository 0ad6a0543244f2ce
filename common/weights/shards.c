/* Weights that lie in several files: an index (model.safetensors.index.json, pytorch_model.bin.index.json) says which tensor is in which
 * file beside it. Also which file of a folder is meant. The index is foreign bytes like the shards: file names must be plain, and index and
 * shards must agree about every tensor, in both directions. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/weights/container.h"

enum { MAX_INDEX_BYTES = 16 << 20, MAX_SHARDS = 256 /* each holds a mapping and perhaps a descriptor; the largest DINOv3 has 6 */ };

/* One line of the index; strings belong to its JSON. */
typedef struct listed {
    const char *tensor, *file;
} listed;

static int by_file(const void *a, const void *b)
{
    const listed *x = a, *y = b;
    int order = strcmp(x->file, y->file);
    return order != 0 ? order : strcmp(x->tensor, y->tensor);
}

/* A file beside the index: nothing that leads elsewhere, and nothing that a line of `sha256sum` would have to escape. */
static int is_plain_name(const char *name)
{
    size_t n = strlen(name);
    if (n == 0 || n > 255 || strcmp(name, ".") == 0 || strcmp(name, "..") == 0)
        return 0;
    for (size_t i = 0; i < n; i++)
        if ((unsigned char)name[i] < 0x20 || name[i] == 0x7f || name[i] == '/' || name[i] == '\\')
            return 0;
    return 1;
}

static kd_status read_list(const kd_weights *w, const json_t *map, listed *list, kd_err *err)
{
    const char *tensor;
    json_t *file;
    size_t n = 0;
    json_object_foreach ((json_t *)map, tensor, file) {
        if (!json_is_string(file) || !is_plain_name(json_string_value(file)))
            return kd_fail(err, KD_EFAIL, "%s: tensor '%s': its shard is %s%s%s; expected the plain name of a file in the same folder", w->path,
                           tensor, json_is_string(file) ? "'" : "not a string", json_is_string(file) ? json_string_value(file) : "",
                           json_is_string(file) ? "'" : "");
        list[n++] = (listed){tensor, json_string_value(file)};
    }
    qsort(list, n, sizeof *list, by_file);
    return KD_OK;
}

static const char *beside(const kd_weights *w, const char *file, kd_err *err)
{
    const char *path = kd_arena_printf(w->arena, "%s%s%s", w->dir, w->dir[strlen(w->dir) - 1] == '/' ? "" : "/", file);
    if (path == NULL)
        (void)kd_fail(err, KD_EFAIL, "%s: out of memory for the names of its shards", w->path);
    return path;
}

/* All shards or none: half a model must not be found out by the first missing tensor. */
static kd_status check_presence(const kd_weights *w, const listed *list, size_t n, int *shards, kd_err *err)
{
    const char *first_missing = NULL;
    int total = 0, present = 0;
    for (size_t i = 0; i < n; i++) {
        if (i > 0 && strcmp(list[i].file, list[i - 1].file) == 0)
            continue;
        if (++total > MAX_SHARDS)
            return kd_fail(err, KD_EFAIL, "%s: lists more than %d shards", w->path, MAX_SHARDS);
        const char *path = beside(w, list[i].file, err);
        if (path == NULL)
            return KD_EFAIL;
        if (kd_io_exists(path))
            present++;
        else if (first_missing == NULL)
            first_missing = list[i].file;
    }
    if (first_missing != NULL)
        return kd_fail(err, KD_EUSAGE, "%s: shard %s is missing (%d of %d are there); download the whole set into %s", w->path, first_missing,
                       present, total, w->dir);
    *shards = total;
    return KD_OK;
}

/* The n tensors that the index lists for this shard, against those that it has. */
static kd_status add_shard(kd_weights *w, kd_weights *shard, const listed *list, size_t n, kd_err *err)
{
    for (size_t i = 0; i < n; i++)
        if (kd_weights_find(shard, list[i].tensor) < 0)
            return kd_fail(err, KD_EFAIL, "%s: tensor '%s' isn't in %s, where the index says it is; index and shards are of different downloads",
                           w->path, list[i].tensor, list[i].file);
    for (size_t i = 0; i < shard->count; i++) {
        const listed key = {shard->entries[i].name, list[0].file};
        if (bsearch(&key, list, n, sizeof *list, by_file) == NULL)
            return kd_fail(err, KD_EFAIL, "%s: %s holds tensor '%s', which the index doesn't list there; index and shards are of different downloads",
                           w->path, list[0].file, key.tensor);
        kd_weight_entry *e = &w->entries[w->count++]; /* every name is listed once, so that all shards together have as many as the list */
        *e = shard->entries[i];
        e->storage = i;
        e->shard = w->shard_count - 1;
    }
    return KD_OK;
}

static kd_status open_shards(kd_weights *w, const listed *list, size_t n, kd_err *err)
{
    int shards = 0;
    KD_TRY(check_presence(w, list, n, &shards, err));
    w->entries = kd_arena_alloc(w->arena, n * sizeof *w->entries);
    w->shards = kd_arena_alloc(w->arena, (size_t)shards * sizeof *w->shards);
    if (w->entries == NULL || w->shards == NULL)
        return kd_fail(err, KD_EFAIL, "%s: out of memory for %zu tensors", w->path, n);
    for (size_t first = 0, end; first < n; first = end) {
        for (end = first + 1; end < n && strcmp(list[end].file, list[first].file) == 0;)
            end++;
        const char *path = beside(w, list[first].file, err);
        if (path == NULL)
            return KD_EFAIL;
        KD_TRY(kd_weights_open_file(&w->shards[w->shard_count], path, 1, err));
        w->shard_count++;
        KD_TRY(add_shard(w, w->shards[w->shard_count - 1], list + first, end - first, err));
    }
    return KD_OK;
}

kd_status kd_shards_open(kd_weights *w, kd_err *err)
{
    json_t *index = NULL;
    listed *list = NULL;
    if (w->map.size > MAX_INDEX_BYTES)
        return kd_fail(err, KD_EFAIL, "%s: %zu bytes are too many for an index of shards; the limit is %d", w->path, w->map.size, MAX_INDEX_BYTES);
    KD_TRY(kd_weights_json(w, 0, w->map.size, &index, err));
    const json_t *map = json_object_get(index, "weight_map");
    size_t n = json_object_size(map);
    kd_status status = KD_OK;
    if (!json_is_object(map))
        status = kd_fail(err, KD_EUSAGE, "%s: is a JSON file but no index of shards (it has no weight_map); pass the weight file or its folder",
                         w->path);
    else if (n == 0 || n > KD_WEIGHTS_MAX_TENSORS)
        status = kd_fail(err, KD_EFAIL, "%s: the index lists %zu tensors; expected 1 to %d", w->path, n, KD_WEIGHTS_MAX_TENSORS);
    if (status == KD_OK)
        status = kd_alloc_array(&list, n, sizeof *list, err);
    if (status == KD_OK)
        status = read_list(w, map, list, err);
    if (status == KD_OK)
        status = open_shards(w, list, n, err);
    kd_free(list);
    json_decref(index);
    kd_io_unmap(&w->map);
    return status;
}

kd_status kd_shards_choose(kd_arena *arena, const char *folder, const char **path, kd_err *err)
{
    static const char *const names[] = {"model.safetensors.index.json", "model.safetensors", "pytorch_model.bin.index.json", "pytorch_model.bin"};
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        *path = kd_arena_printf(arena, "%s%s%s", folder, folder[strlen(folder) - 1] == '/' ? "" : "/", names[i]);
        if (*path == NULL)
            return kd_fail(err, KD_EFAIL, "%s: out of memory while opening the weight file", folder);
        if (kd_io_exists(*path))
            return KD_OK;
    }
    return kd_fail(err, KD_EUSAGE, "%s: is a folder without %s, %s, %s or %s; pass the weight file itself", folder, names[0], names[1], names[2],
                   names[3]);
}

/* The text that `sha256sum SHARD...` prints for the shards by name, in the order that they have here (sorted). */
kd_status kd_shards_sha256(kd_weights *w, kd_sha256 *out, kd_err *err)
{
    kd_sha256_ctx *hash = kd_sha256_begin();
    kd_status status = hash != NULL ? KD_OK : kd_fail(err, KD_EFAIL, "%s: out of memory for its SHA-256", w->path);
    for (int i = 0; status == KD_OK && i < w->shard_count; i++) {
        char hex[65];
        kd_sha256 sum;
        const char *path = w->shards[i]->path, *name = strrchr(path, '/') + 1; /* beside() joins with a slash */
        status = kd_weights_sha256(w->shards[i], &sum, err);
        if (status != KD_OK)
            break;
        kd_hex(hex, sum.b, sizeof sum.b);
        kd_sha256_update(hash, hex, 64);
        kd_sha256_update(hash, "  ", 2);
        kd_sha256_update(hash, name, strlen(name));
        kd_sha256_update(hash, "\n", 1);
    }
    if (hash != NULL) {
        kd_sha256 sum = kd_sha256_final(hash);
        if (status == KD_OK)
            *out = sum;
    }
    return status;
}

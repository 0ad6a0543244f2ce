/* Inside of common/weights only: what weights.c (the public face) shares with the readers of the two containers.
 *
 * A reader checks the whole directory of its file, then describes every tensor as an entry: where its storage lies, and offset and
 * strides in elements inside that storage. weights.c turns entries into numbers and never looks at the file format again. */
#ifndef KD_COMMON_WEIGHTS_CONTAINER_H
#define KD_COMMON_WEIGHTS_CONTAINER_H

#include <pthread.h>

#include "common/base/io.h"
#include "common/base/json.h"
#include "common/base/mem.h"
#include "common/weights/weights.h"

enum {
    KD_WEIGHTS_MAX_TENSORS = 100000, /* a ViT-7B training checkpoint has some 3,000 */
    KD_WEIGHTS_MAX_NAME = 512        /* bytes */
};
/* Elements of one tensor. An expanded view (stride 0) can claim any shape, so a bound by file size isn't enough. */
#define KD_WEIGHTS_MAX_NUMEL ((int64_t)1 << 40)

typedef struct kd_weight_entry {
    const char *name; /* owned by the arena of kd_weights */
    kd_dtype dtype;
    int rank;
    int64_t shape[KD_MAX_RANK];
    int64_t stride[KD_MAX_RANK]; /* elements, never negative */
    int64_t offset;              /* elements from the start of the storage */
    size_t numel;
    uint64_t storage;            /* in the mapped file: byte offset; zip .pth: index of the zip entry; set: index in the shard */
    int shard;                   /* set of shards: which */
} kd_weight_entry;

typedef struct kd_pth kd_pth;

struct kd_weights {
    const char *path, *dir;
    const char *container; /* kd_weights_container; NULL for a set */
    kd_map map; /* the whole file; .pth storages are read through libzip instead, which checks their CRC */
    kd_arena *arena;
    kd_weight_entry *entries;
    size_t count;
    struct kd_name_map *names;
    json_t *metadata; /* safetensors' __metadata__, kdcache.json in a .pth, or NULL */
    kd_pth *pth;         /* zip .pth, or NULL */
    kd_weights **shards; /* a set: its files, sorted by name; then map and pth are empty and entries point into the shards */
    int shard_count;
    pthread_mutex_t lock; /* guards the SHA-256 below */
    int have_sha256;
    kd_sha256 sha256;
};

/* Shape and strides are set; sets numel, or refuses negative sizes and products beyond KD_WEIGHTS_MAX_NUMEL. */
kd_status kd_entry_set_numel(kd_weight_entry *e, const char *path, kd_err *err);
void kd_entry_set_dense_strides(kd_weight_entry *e);

/* KD_EFAIL unless w->metadata, as read, is an object of strings. */
kd_status kd_weights_check_metadata(const kd_weights *w, kd_err *err);

/* Metadata that are to be written to path: an object of strings, or NULL; else KD_EFAIL naming the key. */
kd_status kd_weights_check_strings(const char *path, const json_t *metadata, kd_err *err);

/* The entry of a pickle's tensor in the given storage; the name is copied. */
struct kd_pickle_tensor;
kd_status kd_entry_set_pickled(kd_weights *w, kd_weight_entry *e, const struct kd_pickle_tensor *t, uint64_t storage, kd_err *err);

/* Sets kd_weights_container of a PyTorch file of this kind ("zip", "legacy"); module as in kd_pickle_list. */
kd_status kd_weights_set_container(kd_weights *w, const char *kind, const char *module, kd_err *err);

/* Runs fn under kd_io_guard over the mapped file. A weight file whose pages can't be read is a bad weight file (KD_EFAIL, exit 1),
 * not a damaged cache. fn must not own memory while it touches the mapping. */
kd_status kd_weights_guarded(const kd_weights *w, kd_status (*fn)(void *arg, kd_err *err), void *arg, kd_err *err);

/* n bytes at file offset `at` into out; KD_EFAIL when the mapped file has become shorter or can't be read. */
kd_status kd_weights_copy(const kd_weights *w, size_t at, void *out, size_t n, kd_err *err);

/* Parses n bytes of text, or at file offset `at`, as JSON (kd_json_parse); whatever is wrong with them is KD_EFAIL. */
kd_status kd_weights_json_text(const kd_weights *w, const char *text, size_t n, json_t **out, kd_err *err);
kd_status kd_weights_json(const kd_weights *w, size_t at, size_t n, json_t **out, kd_err *err);

/* kd_weights_open for a path that is a file; of a shard (is_shard) it is an error to be an index of shards. */
kd_status kd_weights_open_file(kd_weights **out, const char *path, int is_shard, kd_err *err);

/* Fill w->entries, count (and metadata or pth) from w->path and w->map. On failure kd_weights_close frees what is there. */
kd_status kd_safetensors_parse(kd_weights *w, kd_err *err);
kd_status kd_pth_parse(kd_weights *w, kd_err *err);
kd_status kd_legacy_pth_parse(kd_weights *w, kd_err *err);
int kd_legacy_pth_sniff(const uint8_t *bytes, size_t size); /* whether a file that begins like this is one */

/* The same for an index of shards: w->map is the index's text and is unmapped afterwards. */
kd_status kd_shards_open(kd_weights *w, kd_err *err);
kd_status kd_shards_sha256(kd_weights *w, kd_sha256 *out, kd_err *err);
/* Path (owned by arena) of the weight file or index in a folder; KD_EUSAGE when there is none. */
kd_status kd_shards_choose(kd_arena *arena, const char *folder, const char **path, kd_err *err);

/* Calls use(arg, bytes, size) with the whole checked storage while no other thread reads from this file. wanted: bytes of it that the caller
 * is interested in; a storage that has more is kept until another one is read. */
typedef kd_status (*kd_storage_use)(void *arg, const uint8_t *bytes, size_t size, kd_err *err);
kd_status kd_pth_with_storage(kd_pth *p, uint64_t index, uint64_t wanted, kd_storage_use use, void *arg, kd_err *err);
void kd_pth_close(kd_pth *p); /* accepts NULL */

/* Names to indices. The map borrows the names. */
typedef struct kd_name_map kd_name_map;
kd_status kd_name_map_create(kd_name_map **out, size_t capacity, kd_err *err);
void kd_name_map_destroy(kd_name_map *m); /* accepts NULL */
/* Returns the index that the name already has, or -1 after adding it with this index. */
int kd_name_map_add(kd_name_map *m, const char *name, int index);
int kd_name_map_find(const kd_name_map *m, const char *name); /* -1 when absent */

#endif

/* What the store's files share: store_write.c and store_seal.c (one file being written), store_read.c (opening), store_reader.c (lookups). Inside cache/ only. */
#ifndef KD_CACHE_STORE_INTERNAL_H
#define KD_CACHE_STORE_INTERNAL_H

#include "cache/digest.h"
#include "cache/entry.h"
#include "cache/lock.h"
#include "cache/manifest.h"
#include "cache/stats.h"
#include "cache/store.h"
#include "cache/store_lmdb.h"
#include "cache/view_set.h"
#include "common/base/mem.h"

/* Keys of the meta database. */
#define KD_META_CONTENT "content"         /* JSON: counts and digest; sealed only */
#define KD_META_FIDELITY "fidelity"       /* JSON; sealed only */
#define KD_META_PROVENANCE "provenance"   /* JSON; partial only */
#define KD_META_VALUE_BYTES "value_bytes" /* u64: kd_writer_value_bytes; partial only */
#define KD_META_RECIPE "recipe"           /* canonical JSON */
#define KD_META_STATS "stats/"            /* + feature name / layer; sealed only */

struct kd_writer {
    char *path, *partial, *sealing, *lock_path, *manifest;
    kd_lock *lock;
    kd_recipe recipe;
    kd_lmdb *db;
    kd_view_set present;
    uint64_t views;         /* in `present` */
    uint64_t expected;      /* bytes; sizes the map once */
    uint64_t batch;         /* bytes of pages that the open transaction may touch */
    uint64_t value_bytes, committed_value_bytes;
    json_t *provenance;
    int broken;             /* a transaction was lost: memory knows more than the file */
    uint8_t *value;         /* KD_IMAGE_VALUE_HEAD + KD_MAX_REL: of an image in a partial file, which has no runs */
};

kd_db kd_feature_db(kd_feature f);
void kd_stats_key(char out[32], kd_feature f, uint16_t layer);

kd_status kd_meta_put(kd_lmdb *db, const char *key, const void *payload, size_t size, kd_err *err); /* inside a write transaction */
kd_status kd_meta_put_json(kd_lmdb *db, const char *key, const json_t *json, kd_err *err);          /* its canonical text; NULL: out of memory */
/* KD_DONE: absent. The payload lives as long as the transaction. */
kd_status kd_meta_get(kd_lmdb_txn *t, const char *key, kd_bytes *payload, const char *file, kd_err *err);
kd_status kd_meta_get_json(kd_lmdb_txn *t, const char *key, json_t **out, const char *file, kd_err *err);
/* The statistics of a sealed file: width numbers from the payload's byte KD_STATS_MEAN_AT. KD_EDAMAGED: absent, of another width, or not numbers that a deviation and a mean can be. */
enum { KD_STATS_STD_AT = 12, KD_STATS_MEAN_AT = 16 };
kd_status kd_stats_get(kd_lmdb_txn *t, const kd_recipe *r, kd_feature f, uint16_t layer, kd_bytes *payload, const char *file, kd_err *err);
kd_status kd_read_recipe(kd_recipe *r, kd_lmdb_txn *t, const char *file, kd_err *err); /* KD_DONE: absent */

/* Writes the manifest of a file that is sealed already, from what the writer knows, and removes the partial file. */
kd_status kd_writer_finish(kd_writer *w, kd_err *err);
void kd_writer_unlink_leftovers(kd_writer *w);

/* ---- reading ---- */

typedef struct kd_shard {
    char *path;
    kd_manifest manifest;
    kd_recipe recipe;
    kd_lmdb *db;
} kd_shard;

typedef struct kd_feature_stats {
    float *mean;
    float scalar_std;
} kd_feature_stats;

struct kd_cache {
    kd_shard *shards;
    size_t shard_count;
    kd_image_entry *images; /* sorted by id */
    size_t image_count;
    uint64_t views;
    kd_arena *arena;        /* paths and runs of images */
    kd_feature_stats stats[KD_FEATURES][KD_MAX_LAYERS]; /* in the recipe's order of layers; filled when they are asked for */
};

/* The lowest shard that the image is read from: the one whose entry gave its path. */
uint32_t kd_image_first_shard(const kd_image_entry *e);
/* KD_ENOTFOUND: the recipe has no such feature or layer. */
kd_status kd_check_stored(const kd_cache *c, kd_feature f, uint16_t layer, kd_err *err);

#endif

/* What store_write.c, store_seal.c and store_read.c share. Inside cache/ only. */
#ifndef KD_CACHE_STORE_INTERNAL_H
#define KD_CACHE_STORE_INTERNAL_H

#include "cache/entry.h"
#include "cache/lock.h"
#include "cache/manifest.h"
#include "cache/stats.h"
#include "cache/store.h"
#include "cache/store_lmdb.h"
#include "cache/view_set.h"

/* Keys of the meta database. */
#define KD_META_CONTENT "content"         /* JSON: counts and digest; sealed only */
#define KD_META_FIDELITY "fidelity"       /* sums; partial only (they depend on the order of addition, so the sealed copy is in the manifest) */
#define KD_META_PROVENANCE "provenance"   /* JSON; partial only */
#define KD_META_RECIPE "recipe"           /* canonical JSON */
#define KD_META_STATS "stats/"            /* + feature name / layer; sealed only */

typedef struct kd_fidelity {
    double xx, qq, xq, err2;
} kd_fidelity;

struct kd_writer {
    char *path, *partial, *sealing, *lock_path, *manifest;
    kd_lock *lock;
    kd_recipe recipe;
    kd_lmdb *db;
    kd_view_set present;
    uint64_t views;         /* in `present` */
    uint64_t expected;      /* bytes; sizes the map once */
    uint64_t batch;         /* bytes of pages that the open transaction may touch */
    kd_fidelity fidelity[KD_FEATURES];
    json_t *provenance;
    int fidelity_changed;
    int broken;             /* a transaction was lost: memory knows more than the file */
    uint8_t *value;         /* KD_IMAGE_VALUE_HEAD + KD_MAX_REL */
};

kd_db kd_feature_db(kd_feature f);
void kd_stats_key(char out[32], kd_feature f, uint16_t layer);

kd_status kd_meta_put(kd_lmdb *db, const char *key, const void *payload, size_t size, kd_err *err); /* inside a write transaction */
/* KD_DONE: absent. The payload lives as long as the transaction. */
kd_status kd_meta_get(kd_lmdb_txn *t, const char *key, kd_bytes *payload, const char *file, kd_err *err);
kd_status kd_meta_get_json(kd_lmdb_txn *t, const char *key, json_t **out, const char *file, kd_err *err);
kd_status kd_read_recipe(kd_recipe *r, kd_lmdb_txn *t, const char *file, kd_err *err); /* KD_DONE: absent */

/* Writes the manifest of a file that is sealed already, from what the writer knows, and removes the partial file. */
kd_status kd_writer_finish(kd_writer *w, kd_err *err);
void kd_writer_unlink_leftovers(kd_writer *w);

#endif

/* Copy: caches from caches: the views of an open cache, all or chosen, written into one or several new sealed shards. What merge, split, compact and extract share.
 *
 * Records whose numbers stay as they are keep their frames (or are only compressed anew); only what derive.h says is decoded and encoded again. Views go in key order through kd_writer, so
 * memory is flat, sealed bytes are a function of content, and an interrupted copy goes on when the same command is given again.
 * Inside cache/ only. Thread rule: one thread. */
#ifndef KD_CACHE_COPY_H
#define KD_CACHE_COPY_H

#include "cache/derive.h"
#include "cache/store.h"
#include "cache/view_ranges.h"

typedef struct kd_copy_job {
    kd_cache *cache;
    const kd_derived *derived;
    const uint8_t *chosen;      /* a byte for each image of the cache: 1 to copy; NULL: all */
    kd_view_ranges views;
    int zstd_level;             /* 0: frames are taken over; what is encoded anew gets KD_COPY_ZSTD_LEVEL */
    const char *out;            /* X.kdc, or a folder (kd_shard_is_folder), in which shard-00000.kdc .. are written */
    uint64_t shard_size;        /* folder: bytes of records in a shard, more by one image at most; 0: no limit */
    uint32_t shards;            /* folder: so many shards of about equally many views; 0: as shard_size says */
    int force;                  /* write on a network file system all the same */
    const char *command;        /* for the provenance */
} kd_copy_job;

enum { KD_COPY_ZSTD_LEVEL = 1, KD_COPY_MAX_SHARDS = 100000 };

typedef struct kd_copy_result {
    uint64_t images, views, bytes; /* of the sealed files */
    size_t shards;
    uint64_t dropped_images;       /* chosen ones that have none of the chosen views */
} kd_copy_result;

/* Nothing is started (KD_ENOSPACE) where the file system lacks room for the result and its sealing. KD_EUSAGE: nothing to copy; out is one of the sources, holds other shards or is on a network. KD_EMISMATCH:
 * out, finished or not, belongs to another recipe, which is named, or to another choice of views. KD_EDAMAGED: a record fails a check; nothing is sealed. KD_ENONFINITE: a value that the new
 * element type can't hold. KD_ESIGINT, KD_ESIGTERM: what was copied is kept. Otherwise as kd_writer_open. */
kd_status kd_cache_copy(const kd_copy_job *job, kd_copy_result *result, kd_err *err);

#endif

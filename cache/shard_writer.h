/* Shard writer: a cache that is being made, as one file or as a folder of shards. Between kd-precompute and the writer of one file (store.h).
 *
 *     photos/shard-00000.kdc  photos/shard-00001.kdc  ...                      one run; the next begins where a shard's records reach shard_size, between two images
 *     photos/part-00003-of-00008-00000.kdc  ...                                job 3 of an array of 8
 *
 * Sealed shards of the same recipe that are in the folder already count as stored, so a run adds what is missing (more views, more images) as new shards. Only the other parts of the same array
 * are left aside: they are being written now, and what a job stores must not depend on how far the others are; where parts share an image under two paths, both store it.
 * Where a shard ends depends on the views and their order only, so a killed and resumed run gives the same bytes. One lock for each name that shards begin with: jobs never meet in a file.
 *
 * On a network file system an unfinished cache is neither safe nor quick: refused. With a stage, shards are written on a local disk, in a folder of this cache's own, and moved when they are
 * sealed; after a kill the same call moves on, and what was moved or sealed isn't computed again.
 * Thread rule: one thread at a time. */
#ifndef KD_CACHE_SHARD_WRITER_H
#define KD_CACHE_SHARD_WRITER_H

#include "cache/store.h"

typedef struct kd_shard_place {
    const char *path;        /* X.kdc or a folder: see kd_shard_is_folder; borrowed during open, as stage */
    const char *stage;       /* a local folder to write in; NULL: write at path */
    uint32_t part, parts;    /* job `part` (from 1) of `parts`; parts 0 or 1: not divided. Folder only */
    uint64_t shard_size;     /* folder: bytes of records in a shard, more by one image at most; 0: no limit */
    uint64_t expected_bytes; /* of the whole cache: sizes a map */
    int force;               /* write on a network file system all the same */
} kd_shard_place;

/* What is known at path. */
typedef struct kd_shard_totals {
    uint64_t views;                   /* stored: in sealed shards and in the open one, without repetitions */
    size_t shards;                    /* sealed */
    uint64_t bytes, unfinished_bytes; /* of sealed shards; of the file that is being written */
} kd_shard_totals;

/* An existing folder, a path that ends in a slash, or one without the suffix .kdc. */
int kd_shard_is_folder(const char *path);

typedef struct kd_shard_writer kd_shard_writer;

/* Makes the folder, resumes what an interrupted run left. KD_DONE: path is a file that is sealed with this recipe already (nothing opened); a folder never says so.
 * KD_EUSAGE: on a network file system; a file divided into parts. KD_ELOCKED, KD_EMISMATCH naming the field, KD_EDAMAGED, KD_EFAIL as in kd_writer_open. */
kd_status kd_shard_writer_open(kd_shard_writer **out, const kd_shard_place *place, const kd_recipe *recipe, const json_t *provenance, kd_err *err);
void kd_shard_writer_close(kd_shard_writer *w); /* what isn't committed is lost; accepts NULL */

int kd_shard_writer_has_view(const kd_shard_writer *w, const kd_hash128 *image, uint32_t view);
kd_shard_totals kd_shard_writer_totals(const kd_shard_writer *w);

/* kd_writer_add_view; before an image begins it seals a shard that is full. Views of an image come one after another. */
kd_status kd_shard_writer_add_view(kd_shard_writer *w, const kd_image_entry *image, const kd_view_entry *view, const kd_record_ref *records, size_t n, kd_err *err);
kd_status kd_shard_writer_commit(kd_shard_writer *w, kd_err *err);
/* Seals (and moves) the last shard; nothing, where nothing was added. After an error the writer can only be closed; the same run again goes on. */
kd_status kd_shard_writer_seal(kd_shard_writer *w, kd_err *err);

#endif

/* Repair: a new shard with every view of damaged files whose entry and records all check, and a list of the others. Nothing is edited in place.
 *
 * It works on files that kd_cache_open refuses: what is in them is found by salvage.h, and each value is believed only after its checksum. The recipe comes from the files or from a manifest.
 * Inside cache/ only. Thread rule: one thread. */
#ifndef KD_CACHE_REPAIR_H
#define KD_CACHE_REPAIR_H

#include "cache/store.h"

typedef struct kd_repair_job {
    const char *const *paths; /* sealed files, or folders of them, damaged or not */
    size_t count;
    const char *out;          /* REPAIRED.kdc; NULL: only count */
    int force;                /* write on a network file system all the same */
    const char *command;      /* for the provenance */
    void (*report)(void *ctx, const char *sentence); /* the first 100 problems */
    void *ctx;
} kd_repair_job;

typedef struct kd_repair_result {
    size_t files, bad_files;        /* bad: a manifest, pages or the SHA-256 don't hold */
    uint64_t images, views;         /* kept: sound views, and the images that have one */
    uint64_t lost_views;            /* known from entries of their images or from what is left of themselves; listed */
    uint64_t lost_entries;          /* images whose entry is lost, as far as a count of a file's images is left */
    uint64_t lost_images;           /* of these, the ones of which nothing is left: in no list */
    char missing[4200];             /* the list that was written beside out: OUT.missing.txt; "" when no view is lost */
} kd_repair_result;

/* Reads every byte. With out: writes and seals it (KD_ENOSPACE before the start where there is no room), and the list for kd-precompute --fill, whose lines are "ID VIEW[-VIEW] PATH"; a path that
 * isn't known is "?", one that a line can't hold is given as its hash. KD_EDAMAGED: no recipe is left, or no sound view to write. KD_EMISMATCH: files of different recipes.
 * KD_EUSAGE: out is there already, or on a network. KD_ESIGINT, KD_ESIGTERM. KD_OK also when much is lost: see the result. */
kd_status kd_cache_repair(const kd_repair_job *job, kd_repair_result *result, kd_err *err);

#endif

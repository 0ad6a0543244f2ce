/* Check: proves a cache readable end to end, record by record, and says what is wrong with each that isn't. */
#ifndef KD_CACHE_CHECK_H
#define KD_CACHE_CHECK_H

#include "cache/store.h"
#include "common/data/locate.h"

typedef struct kd_check_result {
    uint64_t images, views, records, bytes;
    uint64_t bad;                  /* damage found; the first 100 problems of any kind are reported through the callback */
    double structure_s, data_s, replay_s; /* what each part took; 0 when it wasn't asked for */
    int decoder_differs;           /* replaying: this program's decoder isn't the one that made the cache (reported too); training refuses that whatever the views say */
    uint64_t replayed, replay_bad, replay_missing; /* views, with an image folder; missing: no file has the image's id, or that of the image that the view is mixed with */
    kd_search search;              /* images, with an image folder: in place, moved or renamed, changed, missing */
} kd_check_result;

/* Called for each problem, one call at a time. */
typedef void (*kd_check_report)(void *ctx, const char *sentence);

typedef struct kd_check_options {
    int read_data;          /* read every byte, not only the structure */
    uint32_t part, parts;   /* of read_data: only the images with (index mod parts) == part - 1, the index being their place in id order; 1 of 1 = all, and then the files' SHA-256 and digests too */
    const char *images;     /* replay every view from the files under this folder (found by recorded path, then by id) and compare the hashes; NULL = don't */
    kd_list_format list;
    int threads;            /* 0: all processors */
} kd_check_options;

/* Structure: kd_cache_shard_structure of every shard, of a cache from kd_cache_open_anew. Data: the SHA-256 of every shard against its manifest, the content digest, every record decoded.
 * KD_OK even when problems were found (they are in the result); other statuses when the walk itself could not go on. opened_s: seconds that opening took, for the result. */
kd_status kd_cache_check(kd_cache *c, const kd_check_options *options, double opened_s, kd_check_report report, void *ctx, kd_check_result *result, kd_err *err);

#endif

/* Check: proves a cache readable end to end, record by record, and says what is wrong with each that isn't. */
#ifndef KD_CACHE_CHECK_H
#define KD_CACHE_CHECK_H

#include "cache/store.h"
#include "common/data/locate.h"

typedef struct kd_check_result {
    uint64_t images, views, records, bytes;
    uint64_t bad;                  /* damage found; the first 100 problems of any kind are reported through the callback */
    int decoder_differs;           /* replaying: this program's decoder isn't the one that made the cache (reported too); training refuses that whatever the views say */
    uint64_t replayed, replay_bad, replay_missing; /* views, with an image folder; missing: no file has the image's id, or that of the image that the view is mixed with */
    kd_search search;              /* images, with an image folder: in place, moved or renamed, changed, missing */
} kd_check_result;

/* Called for each problem, one call at a time. */
typedef void (*kd_check_report)(void *ctx, const char *sentence);

/* Compares the SHA-256 of every shard with its manifest, recomputes the content digest, walks every view and decodes every record on `threads` threads (0: all processors);
 * with images != NULL replays every view from the files under that folder and compares the hashes (found by recorded path, then by id).
 * KD_OK even when problems were found (they are in the result); other statuses when the walk itself could not go on. */
kd_status kd_cache_check(kd_cache *c, const char *images, kd_list_format list, int threads, kd_check_report report, void *ctx, kd_check_result *result, kd_err *err);

#endif

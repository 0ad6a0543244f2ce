/* Live check: which pictures of a live teacher's set can't be used, found before the first step, so that every epoch, every resume and a cache of the same options have the same images.
 *
 * What kd-precompute skips when it comes to it is skipped here: a picture that can't be decoded, and with a mixing policy one that is mixed with such a picture. Files that can't be read or don't begin like
 * a picture were left out before (kd_locator_picture_ids).
 *
 *     KD_TRY(kd_live_check(usable, &skipped, &(kd_live_set){...}, err));
 *
 * What was found is kept as a file of the run, {"of": hex, "skipped": [{"id","path","reason"}]}, so that a run that goes on needn't decode everything again; "of" is a hash of the images and of how they
 * are decoded and mixed. */
#ifndef KD_TRAIN_LIVE_CHECK_H
#define KD_TRAIN_LIVE_CHECK_H

#include "common/data/views.h"

typedef struct kd_live_set {
    const kd_view_maker *make;
    const kd_hash128 *id; /* [count], ascending */
    const size_t *file;   /* [count]: in make->data */
    size_t count;
    uint32_t views;       /* of each image: 0 .. views - 1 */
    int threads;
    int json;             /* progress and skipped pictures as lines on stdout */
    const char *path;     /* of the file that is kept; NULL: none */
} kd_live_set;

/* usable: [count], becomes 1 or 0; *skipped: how many are 0. Each is warned of when it is found. KD_EFAIL: a file was changed since its id was made. KD_ESIGINT, KD_ESIGTERM: stopped; nothing is kept. KD_ENOSPACE. */
kd_status kd_live_check(uint8_t *usable, size_t *skipped, const kd_live_set *set, kd_err *err);

#endif

/* Schedule: what happens when. Pure functions of counters, seeds and image ids, so that a run can stop at any step and go on with the same bits:
 * the learning rate of a step, the view that an image shows in an epoch, and the part of the images that is held out.
 *
 *     kd_schedule s = {.base = 1e-3, .warmup = 450, .total = 4500};
 *     lr = kd_schedule_lr(&s, step);                               // step from 0
 *     view = kd_epoch_view(&image->image, epoch, image->views);
 */
#ifndef KD_TRAIN_SCHEDULE_H
#define KD_TRAIN_SCHEDULE_H

#include "common/base/hash.h"

/* Linear warm-up over `warmup` steps, then half a cosine from base to 0.001 * base, reached at the last of `total` steps (LightlyTrain's schedule). */
typedef struct kd_schedule {
    double base;
    int64_t warmup, total;
} kd_schedule;
double kd_schedule_lr(const kd_schedule *s, int64_t step);

/* (epoch + low 64 bits of the id) mod views: over `views` epochs every view is shown once, and images are out of phase. */
uint32_t kd_epoch_view(const kd_hash128 *id, uint32_t epoch, uint32_t views);

/* What the draw of an image's side is keyed by: depth 0: the low 64 bits of its id. Else those of XXH3-128 of its first `depth` folders ("video7/scene2"; of all its folders when it has fewer), so
 * that the images of a group, such as the frames of a video, stay on one side. A "/" or "./" in front isn't part of a path's first folder. */
uint64_t kd_split_key(const kd_hash128 *id, const char *path, int depth);

/* Indexes of the images to train on and of those held out, both in order. */
typedef struct kd_split {
    uint32_t *train, *held;
    size_t train_count, held_count;
    size_t groups, held_groups; /* different keys, in all and held out */
} kd_split;
/* Image i is held out when the draw (Philox by seed) of key[i] is below fraction, whatever other images there are; with fraction > 0 at least one key is. With `listed` (else NULL) nothing is drawn:
 * held out are the images i with listed[i], and all of equal key. KD_EFAIL: memory. */
kd_status kd_split_make(kd_split *s, size_t n, const uint64_t *key, const uint8_t *listed, double fraction, uint64_t seed, kd_err *err);
void kd_split_free(kd_split *s);

#endif

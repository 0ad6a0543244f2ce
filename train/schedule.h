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

/* Indexes of the images to train on and of those held out, both in the order of `id`. */
typedef struct kd_split {
    uint32_t *train, *held;
    size_t train_count, held_count;
} kd_split;
/* An image is held out when its own draw (Philox by seed and id) is below fraction, whatever other images there are; with fraction > 0 at least one is.
 * id(ctx, i) is the id of image i. KD_EFAIL: memory. */
kd_status kd_split_make(kd_split *s, size_t n, const kd_hash128 *(*id)(const void *ctx, size_t i), const void *ctx, double fraction, uint64_t seed, kd_err *err);
void kd_split_free(kd_split *s);

#endif

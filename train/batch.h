/* Batch: which images the steps of an epoch show, and their samples as batches in the students' training programs.
 *
 *     KD_TRY(kd_batches_open(&b, &setup, err));
 *     KD_TRY(kd_batches_begin(&b, step, end, err));              // steps of one epoch; loader threads begin to work
 *     for every step and each of its batches: KD_TRY(kd_batches_put(&b, students, count, err));
 *     kd_batches_end(&b);                                        // also in the middle
 *     kd_batches_close(&b);
 *
 * The order is a function of seed and epoch, and the same for every group. */
#ifndef KD_TRAIN_BATCH_H
#define KD_TRAIN_BATCH_H

#include "train/setup.h"
#include "train/spent.h"

typedef struct kd_batches {
    const kd_setup *setup;                /* borrowed */
    kd_replay_item *items[KD_MAX_GROUPS]; /* of the steps that were begun */
    uint32_t *order;
    kd_stages *stages;                    /* the caller's, borrowed: kd_batches_put is KD_SPENT_WAIT and KD_SPENT_BATCH of it (spent.h); NULL: nobody asks */
} kd_batches;

kd_status kd_batches_open(kd_batches *b, const kd_setup *setup, kd_stages *stages, kd_err *err); /* *b must be zeroed; after a failure it is to be closed too */
void kd_batches_close(kd_batches *b);

/* Steps step .. end - 1 of the run, all of step's epoch. */
kd_status kd_batches_begin(kd_batches *b, int64_t step, int64_t end, kd_err *err);
void kd_batches_end(kd_batches *b);
/* The next --batch-size images of every group, in each of the students. KD_ESIGINT, KD_ESIGTERM: asked to stop meanwhile. Errors of kd_replay_next and kd_student_put. */
kd_status kd_batches_put(kd_batches *b, kd_student *const *students, size_t count, kd_err *err);

#endif

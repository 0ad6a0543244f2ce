/* Step: forward and backward on the batches that were put into each of a student's training programs, one after the other; then clip, optimizer and moving average on the mean of their
 * gradients.
 *
 *     for (micro = 0; micro < s->accumulate; micro++) {
 *         for (g ...) for (row ...) kd_student_put(s, g, row, &sample, err);
 *         KD_TRY(kd_step_backward(s, micro, &result, err));
 *     }
 *     KD_TRY(kd_step_update(s, lr, clip, &result, err));
 *
 * kd_step_backward is two halves: kd_step_begin queues the passes, kd_step_losses waits for what they give. Between them a device works, and the host may put the next batch. */
#ifndef KD_TRAIN_STEP_H
#define KD_TRAIN_STEP_H

#include "train/spent.h"
#include "train/student.h"

typedef struct kd_step_result {
    double loss;      /* weighted sum of the terms, mean over the groups and batches: what is minimised */
    double term[KD_MAX_TERMS]; /* unweighted, in the order of the student's loss; means over the groups and batches */
    double group[KD_MAX_GROUPS]; /* the weighted sum of each group, mean over the batches */
    double grad_norm; /* before clipping */
} kd_step_result;

/* Batch number `micro` of the step, whose gradients are added to those of the batches before it. No weight is changed, but running statistics and states of losses are.
 * stages: the caller's, for KD_SPENT_FORWARD and KD_SPENT_BACKWARD (spent.h); may be NULL. KD_ESIGINT, KD_ESIGTERM: stopped, of a marked student. */
kd_status kd_step_begin(kd_student *s, int micro, kd_stages *stages, kd_err *err);
/* The losses of the batch that was begun; *x is complete, but for the norm, after the last. KD_ENONFINITE: the loss isn't finite. */
kd_status kd_step_losses(kd_student *s, int micro, kd_step_result *x, kd_err *err);
kd_status kd_step_backward(kd_student *s, int micro, kd_step_result *x, kd_err *err);
/* Drops the student's mark. KD_ENONFINITE, before a weight is changed, when the gradient isn't finite. */
kd_status kd_step_update(kd_student *s, double lr, double clip, kd_step_result *x, kd_err *err);
/* Both, of a step whose batches are all the one that was put. */
kd_status kd_step_run(kd_student *s, double lr, double clip, kd_step_result *x, kd_err *err);

#endif

/* Step: forward and backward on the batch that was put into each of a student's training programs, one after the other; then clip and AdamW on the sum of their gradients.
 *
 *     for (g ...) for (row ...) kd_student_put(s, g, row, &sample, err);
 *     KD_TRY(kd_step_run(s, lr, clip, &result, err));
 */
#ifndef KD_TRAIN_STEP_H
#define KD_TRAIN_STEP_H

#include "train/student.h"

typedef struct kd_step_result {
    double loss;      /* weighted sum of the terms, mean over the groups: what is minimised */
    double term[KD_MAX_TERMS]; /* unweighted, in the order of the student's loss; means over the groups */
    double group[KD_MAX_GROUPS]; /* the weighted sum of each group */
    double grad_norm; /* before clipping */
} kd_step_result;

/* KD_ENONFINITE, before anything is changed but running statistics, when the loss or the gradient isn't finite. */
kd_status kd_step_run(kd_student *s, double lr, double clip, kd_step_result *result, kd_err *err);

#endif

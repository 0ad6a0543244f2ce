/* Step: forward, backward, clip, AdamW on the batch that was put into a student's training program.
 *
 *     for (row ...) kd_student_put(s, s->train, row, &sample, 1, err);
 *     KD_TRY(kd_step_run(s, lr, clip, &result, err));
 */
#ifndef KD_TRAIN_STEP_H
#define KD_TRAIN_STEP_H

#include "train/student.h"

typedef struct kd_step_result {
    double loss;      /* weighted sum of the terms */
    double cls, patch; /* unweighted terms; 0 when not trained */
    double grad_norm; /* before clipping */
} kd_step_result;

/* KD_ENONFINITE, before anything is changed but running statistics, when the loss or the gradient isn't finite. */
kd_status kd_step_run(kd_student *s, double lr, double clip, kd_step_result *result, kd_err *err);

#endif

/* Validate: how well the students have learnt the teacher's features, on views that they don't train on and on views that they have seen.
 *
 * Losses: the terms of training, in inference mode (running statistics; queues are compared with and not pushed), averaged over batches. The last batch is filled up with the first items, which so
 * count more than once in the losses and nowhere else.
 * R2 = 1 - (mean squared error) / (variance of the targets over the validated set): 0 = no better than predicting the mean, 1 = perfect. Only of a loss that regresses (kd_term_facts).
 * Cosine: mean over tokens of the cosine between prediction and target, both centred by the cache's mean. Of a loss that only aligns directions (cosine, kl-queue, unit lengths) the prediction first
 * gets the target's length, for its own means nothing. Where a loss does neither (kl-intra, gram: predictions are free to turn), both are NaN. They are those of the first pair of that feature.
 *
 * An adjoint target (U^T t, |t|^2) gives the same squared error, variance and R2 as the full grid t, up to the rounding of what is stored: |U s - t|^2 = |U s|^2 - 2 <s, U^T t> + |t|^2,
 * and the rows of U^T t sum to the tokens' sum. Its cosine is another number: that of an image's whole map, <s, U^T t> / (|U s| |t|), averaged over the images, because single tokens
 * aren't stored; for raw targets it would not be centred, and is NaN. A pooled target's numbers are those of the pooled tokens. */
#ifndef KD_TRAIN_VALIDATE_H
#define KD_TRAIN_VALIDATE_H

#include "train/student.h"

typedef struct kd_val_result {
    double loss;               /* weighted as in training */
    double term[KD_MAX_TERMS]; /* unweighted, in the order of the student's loss */
    double r2[KD_TARGETS], cosine[KD_TARGETS]; /* indexed by KD_FEATURE_CLS and KD_FEATURE_PATCH; NaN: means nothing for this loss */
    double agreement; /* share of the teacher's neighbours kept (neighbourhood.h fills it in); NAN: not measured */
} kd_val_result;

/* Asked after each forward pass of student `student`: its program `infer` has just seen items first .. first + rows - 1. */
typedef struct kd_val_watch {
    kd_status (*see)(void *ctx, size_t student, kd_exec *infer, size_t first, int rows, kd_err *err);
    void *ctx;
} kd_val_watch;

/* One pass over `items` for all students (equal batch and image size); results[i] belongs to students[i]. count > 0; the replay prepares at least batch + 1 samples ahead. watch: NULL, or who else
 * looks at the outputs.
 * KD_ESIGINT or KD_ESIGTERM when the user asks to stop. */
kd_status kd_validate(kd_val_result *results, kd_student *const *students, size_t n, kd_replay *replay, const kd_replay_item *items, size_t count, const kd_val_watch *watch,
                      kd_err *err);

#endif

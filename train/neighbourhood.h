/* Neighbourhood: agreement.h for a run: the pooled features of the students against the teacher's CLS features, raw as the teacher gave them, so that the number doesn't depend on the loss or
 * on how it standardises. Collected while kd_validate runs, from the first KD_AGREEMENT_MAX items (in the order of ids, which are hashes).
 *
 *     kd_neighbourhood h = {0};
 *     KD_TRY(kd_neighbourhood_begin(&h, &setup, items, count, err));          // also after a failure: kd_neighbourhood_end
 *     KD_TRY(kd_validate(results, students, n, replay, items, count, &(kd_val_watch){kd_neighbourhood_see, &h}, err));
 *     KD_TRY(kd_neighbourhood_measure(&h, results, err));
 *     kd_neighbourhood_end(&h); */
#ifndef KD_TRAIN_NEIGHBOURHOOD_H
#define KD_TRAIN_NEIGHBOURHOOD_H

#include "train/setup.h"
#include "train/validate.h"

typedef struct kd_neighbourhood {
    const kd_setup *setup; /* borrowed */
    size_t count;          /* images that are compared; 0: the cache has no CLS features, or there are fewer than 3 images */
    size_t teacher_width;
    float *teacher;        /* [count, teacher_width] */
    float **student;       /* [students], each [count, width of the model] */
} kd_neighbourhood;

/* Reads the teacher's features of the items. *h must be zeroed. KD_EDAMAGED: the cache. Of a live teacher: errors of kd_live_features. */
kd_status kd_neighbourhood_begin(kd_neighbourhood *h, const kd_setup *setup, const kd_replay_item *items, size_t count, kd_err *err);
/* For kd_val_watch: ctx is the kd_neighbourhood. */
kd_status kd_neighbourhood_see(void *ctx, size_t student, kd_exec *infer, size_t first, int rows, kd_err *err);
/* Fills results[i].agreement; NAN where nothing could be compared. */
kd_status kd_neighbourhood_measure(const kd_neighbourhood *h, kd_val_result *results, kd_err *err);
void kd_neighbourhood_end(kd_neighbourhood *h);

#endif

/* Logbook: all that a run says while it trains: lines of metrics.jsonl and the same numbers as TensorBoard events, a line of the log per epoch, the progress line, flags of outliers. It owns what of
 * that must survive an interruption: how far both files reach, and the recent losses that outliers are judged by.
 *
 *     KD_TRY(kd_logbook_open(&b, &setup, stored, step, err));        // stored: the checkpoint's run object, or NULL
 *     for every student: kd_logbook_step(b, i, &result, lr);
 *     KD_TRY(kd_logbook_stepped(b, step, err));                      // once all students have made the step
 *     for every student: kd_logbook_epoch(b, i, step, &epoch, err);
 *     kd_logbook_resume_clock(b, step);                              // after what isn't training
 *     KD_TRY(kd_logbook_store(b, run, err));                         // before a checkpoint
 *     kd_logbook_finish(b, step);  kd_logbook_close(b);
 *
 * Keys of a step's line: step, epoch, student, loss, loss_TERM, loss_recipe_K (several recipes), lr, grad_norm, images_per_s, data_wait (share of the time), and outlier (true) where the loss or
 * the gradient's norm stands out. Of an epoch's line: step, epoch, student, train_loss, train_loss_TERM (means of the epoch's steps), val_* on held-out images and seen_* on views of the epoch
 * (loss, loss_TERM, r2_FEATURE, cos_FEATURE, agreement), knn_top1_kK and knn_top5_kK, best. What wasn't measured has no key. Events: tag STUDENT/KEY. */
#ifndef KD_TRAIN_LOGBOOK_H
#define KD_TRAIN_LOGBOOK_H

#include "train/events.h"
#include "train/eval/knn.h"
#include "train/maps.h"
#include "train/step.h"
#include "train/validate.h"

typedef struct kd_logbook kd_logbook;

/* Opens metrics.jsonl and the event file of the run directory, and drops from them what lies behind the checkpoint. Borrows the setup. step: done so far. KD_EFAIL, KD_ENOSPACE: a file can't be
 * written. KD_EDAMAGED: `stored` lacks what kd_logbook_store put there. */
kd_status kd_logbook_open(kd_logbook **out, const kd_setup *setup, const json_t *stored, int64_t step, kd_err *err);
void kd_logbook_close(kd_logbook *b); /* accepts NULL */

/* Makes both files durable and adds to the checkpoint's run object: metrics_bytes, events_bytes, outliers. */
kd_status kd_logbook_store(kd_logbook *b, json_t *run, kd_err *err);

/* What student i's next step gave, at learning rate lr. */
void kd_logbook_step(kd_logbook *b, size_t i, const kd_step_result *x, double lr);
/* All students have made step `step` (1 = the first): their lines, every --log-every steps and for outliers, which are also warned of; the progress line. */
kd_status kd_logbook_stepped(kd_logbook *b, int64_t step, kd_err *err);

typedef struct kd_epoch_facts {
    int64_t epoch;                    /* 1 = the first */
    const kd_val_result *held, *seen; /* held NULL: nothing is held out */
    const kd_knn_result *knn;         /* [knn_count]; none: not this epoch */
    size_t knn_count;
    int best;                         /* the lowest validation loss so far */
} kd_epoch_facts;
/* Student i after the epoch that ends with `step`; its means of the epoch (student.h: sum, summed) are still there. */
kd_status kd_logbook_epoch(kd_logbook *b, size_t i, int64_t step, const kd_epoch_facts *f, kd_err *err);
/* The maps of student i as a picture among the events (STUDENT/maps); nothing when it has none. */
kd_status kd_logbook_maps(kd_logbook *b, size_t i, int64_t step, const kd_maps *maps, kd_err *err);

/* Speeds are those of training: leaves out the time since the last step. */
void kd_logbook_resume_clock(kd_logbook *b, int64_t step);
/* Ends the progress line and sums up. */
void kd_logbook_finish(kd_logbook *b, int64_t step);

#endif

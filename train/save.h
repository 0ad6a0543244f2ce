/* Save: which states of a run are kept and when, and what a run goes on from. Files of OUT/checkpoints:
 *
 *     latest.kdt        what the same command goes on from: after every epoch, every --checkpoint-minutes, and when the run is interrupted
 *     best-STUDENT.kdt  the lowest validation loss, without optimizer
 *     epoch-0010.kdt    every --checkpoint-epochs, complete; the last --keep of them
 *
 *     KD_TRY(kd_save_open(&s, &setup, err));
 *     KD_TRY(kd_save_resume(&s, &at, &logbook, err));           // at is the beginning when there is nothing to go on from
 *     KD_TRY(kd_save_latest(&s, &at, err));
 *     kd_save_close(&s);
 *
 * Every file is replaced as a whole, and metrics and events are on disk before the state that counts their bytes: whatever ends the run, and wherever, latest.kdt is a state of it. Of the files of one
 * epoch latest.kdt is the last, so that the others are written again, with the same bits, when it wasn't. A failed write (KD_ENOSPACE: disk full) leaves the old file. */
#ifndef KD_TRAIN_SAVE_H
#define KD_TRAIN_SAVE_H

#include "train/logbook.h"

/* Where a run stands. It says everything about what comes next: all draws are functions of it. */
typedef struct kd_position {
    int64_t step;      /* steps done */
    int64_t validated; /* epochs that were validated and logged */
} kd_position;

typedef struct kd_save {
    const kd_setup *setup;
    kd_logbook *logbook; /* borrowed; what it has written goes to disk before every state */
    char *latest;        /* path */
    int64_t saved_step;  /* of latest.kdt; -1 = there is none */
    double saved_at;     /* time of the last latest.kdt, or of kd_save_open */
} kd_save;

/* Also removes what a killed run has left half-written in OUT, OUT/checkpoints and OUT/exported: the run directory is locked, so nobody is writing there. */
kd_status kd_save_open(kd_save *s, const kd_setup *setup, kd_err *err);
void kd_save_close(kd_save *s); /* accepts a zeroed one */

/* Restores all students from latest.kdt, if there is one, and opens the logbook where they stand; it is the caller's, as it is after a failure too when it isn't NULL. KD_EMISMATCH, KD_EUSAGE: the state is of another cache, of other images or options, named. KD_EFAIL: damaged. Another thread count or device is
 * warned of. */
kd_status kd_save_resume(kd_save *s, kd_position *at, kd_logbook **logbook, kd_err *err);

kd_status kd_save_latest(kd_save *s, const kd_position *at, kd_err *err);
kd_status kd_save_best(kd_save *s, const kd_position *at, kd_student *student, kd_err *err);
/* epoch-N.kdt when that epoch, at->validated, is one to be kept; then removes those that are too many. */
kd_status kd_save_epoch(kd_save *s, const kd_position *at, kd_err *err);

#endif

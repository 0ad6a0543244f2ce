/* Spent: where a training run's time goes, by the stages below, and the table that says so at its end.
 *
 * The stages of the training thread add up to the time from the start of the program. What loader threads do meanwhile is a table of its own, in processor seconds: decode (files read and decoded), replay
 * (plans applied, views proven and reduced), cache (records read, decoded and standardised).
 * On the cpu and ref backends a pass is over when it returns: forward and backward are the work itself, on all threads, and what loaders take from the same processors is in them. A device's passes are only
 * queued (the names say so); its work shows as the wait for it, and where the step reads the gradient's norm as optimizer. A batch that is put while the device works (step.h) is wait and batch too,
 * though nothing was lost by it: metrics.jsonl's data_wait leaves that out. */
#ifndef KD_TRAIN_SPENT_H
#define KD_TRAIN_SPENT_H

#include "train/group.h"

enum {
    KD_SPENT_START = 1,  /* caches opened, images found, programs built, a checkpoint read */
    KD_SPENT_WAIT,       /* for samples */
    KD_SPENT_TEACHER,    /* a live one */
    KD_SPENT_BATCH,      /* samples handed to the students */
    KD_SPENT_FORWARD,
    KD_SPENT_BACKWARD,
    KD_SPENT_DEVICE,     /* waited for, until the losses are there */
    KD_SPENT_OPTIMIZER,  /* norm, clip, step, moving average */
    KD_SPENT_VALIDATION, /* and k-NN */
    KD_SPENT_CHECKPOINT,
    KD_SPENT_REPORT,     /* report.html and maps */
    KD_SPENT_EXPORT,
    KD_SPENT_OTHER,      /* loaders started and stopped, metrics, dumps */
    KD_SPENT_STAGES
};

/* The end of a run: logs both tables. device: the passes were queued. json: also a {"type":"summary"} line on stdout with steps (of this run), seconds, and the tables as stages and loaders. No pass may be
 * open. */
void kd_spent_tell(const kd_stages *s, const kd_groups *groups, int device, long long steps, int json);

#endif

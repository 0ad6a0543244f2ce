/* Timing: where a precompute run's time goes, by the stages below, and the table that says so at its end.
 *
 * The stages of the main thread add up to the time from the start of the program. What loader threads do meanwhile is a table of its own, in processor seconds: decode (files read, hashed and decoded) and
 * replay (views made and hashed), as kd-train calls them.
 * On the cpu and ref backends the teacher's pass is over when it returns: "teacher" and "encode" are the work itself, on all threads, and what loaders take from the same processors is in them. A device's
 * work is only queued (the names say so) and shows as the wait for it; where it has two batches, what the main thread does for the one before is hidden behind it. */
#ifndef KD_PRECOMPUTE_TIMING_H
#define KD_PRECOMPUTE_TIMING_H

#include "common/data/views.h"

enum {
    KD_TIMING_START = 1, /* images listed, the teacher read and built, ids of mixed sets */
    KD_TIMING_WAIT,      /* for views */
    KD_TIMING_BATCH,     /* views copied, known ones left out */
    KD_TIMING_TEACHER,
    KD_TIMING_ENCODE,    /* features to what is stored of them */
    KD_TIMING_DEVICE,   /* waited for, until they are there */
    KD_TIMING_COMPRESS,
    KD_TIMING_WRITE,
    KD_TIMING_SEAL,
    KD_TIMING_OTHER,
    KD_TIMING_STAGES
};

/* Both tables through the log. loaders: [KD_STAGES], by the stages of views.h. device: passes were queued. */
void kd_timing_tell(const kd_stages *s, const double *loaders, int device);
/* Adds them to a line as objects: stages, loaders. */
void kd_timing_json(json_t *line, const kd_stages *s, const double *loaders, int device);

#endif

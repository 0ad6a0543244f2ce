/* Stages: where a thread's time goes. A thread is in one stage at a time, and entering the next one ends it: so the stages of a thread add up to its time, and what nobody named is a stage too.
 *
 *     enum { OTHER = 1, READING, WORKING };
 *     static const char *const name[] = {[OTHER] = "other", [READING] = "read", [WORKING] = "work"};
 *     kd_stages s = {0};
 *     kd_stages_begin(&s, OTHER);
 *     int before = kd_stages_enter(&s, READING);
 *     ...
 *     kd_stages_enter(&s, before);
 *     kd_stages_log("where the time went", name, s.seconds, 4, OTHER);
 *
 * Zeroed, it counts processor time of the thread that calls, in whatever stage is entered; kd_stages_begin makes it count time that passes. Worker threads have one each, left in stage 0 between items
 * (the next item may be another thread's); their sums are added when the threads have ended. Nothing is allocated; entering reads a clock (about 30 ns; processor time 300).
 * Thread rule: one thread at a time. */
#ifndef KD_COMMON_BASE_STAGES_H
#define KD_COMMON_BASE_STAGES_H

#include "common/base/json.h"

enum { KD_STAGES = 20 };

typedef struct kd_stages {
    int wall, now; /* now: the stage; 0: none, time isn't counted */
    double since, seconds[KD_STAGES];
} kd_stages;

void kd_stages_begin(kd_stages *s, int stage); /* of a zeroed one: from now on it counts time that passes */
/* Returns the stage that this ends. s may be NULL: nothing is counted. */
int kd_stages_enter(kd_stages *s, int stage);
/* `seconds` of what was counted in one stage were another's. Not more than there are. */
void kd_stages_move(kd_stages *s, int from, int to, double seconds);

void kd_stages_add(double seconds[KD_STAGES], const kd_stages *s); /* to a sum over threads */

/* Logs a table: stages 1 .. count - 1 that took time, `last` behind the others, each with its share, and their sum as "all". Printed seconds add up exactly: they are rounded as a running sum.
 * last 0: none. Nothing when no stage took time. */
void kd_stages_log(const char *title, const char *const *name, const double *seconds, int count, int last);
/* {"name": seconds, ...} of the same. New reference; NULL when memory is out. */
json_t *kd_stages_json(const char *const *name, const double *seconds, int count);

#endif

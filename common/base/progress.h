/* Progress: rate, ETA and data-wait on stderr; a moving line on a terminal, a plain line every 30 s otherwise.
 *
 *     kd_progress *p = kd_progress_create("precompute", "view", total, done_before);
 *     kd_progress_update(p, done, wait_seconds, "cos 0.9999");
 *     kd_progress_finish(p);
 *
 * NO_COLOR and TERM=dumb are honoured; -q silences it. With --json a {"type":"status",...} line goes to stdout at the same pace. */
#ifndef KD_COMMON_BASE_PROGRESS_H
#define KD_COMMON_BASE_PROGRESS_H

#include <stdint.h>

#include "common/base/err.h"

typedef struct kd_progress kd_progress;

/* total 0 = unknown. done_before counts work of an earlier run: shown, but not part of the rate. NULL when memory is out (all
 * functions accept NULL). json: emit status lines on stdout. */
kd_progress *kd_progress_create(const char *label, const char *unit, uint64_t total, uint64_t done_before, int json);
/* done includes done_before. wait_seconds: cumulated time spent waiting for data; extra: short text or NULL. */
void kd_progress_update(kd_progress *p, uint64_t done, double wait_seconds, const char *extra);
void kd_progress_finish(kd_progress *p); /* ends the line and frees p */

double kd_now(void); /* monotonic seconds */

#endif

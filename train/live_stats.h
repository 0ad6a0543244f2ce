/* Live statistics: the statistics of a live teacher's targets as a file of the run, so that a run that goes on standardises by the numbers with which it began, at once and on whatever machine.
 * A .safetensors: mean.FEATURE.LAYER [width] and std.FEATURE.LAYER [1] of everything that the recipe has, and under "of" in its metadata what they are of. */
#ifndef KD_TRAIN_LIVE_STATS_H
#define KD_TRAIN_LIVE_STATS_H

#include "cache/identity.h"
#include "cache/stats.h"

/* sums: [KD_FEATURES][layers of r], those that r has finished (kd_stats_finish). `of`: hex. KD_ENOSPACE, KD_EFAIL. */
kd_status kd_live_stats_write(const char *path, const char *of, const kd_recipe *r, const kd_stats *sums, kd_err *err);
/* Fills mean and scalar_std of created sums. KD_DONE: there is no such file, or it is of something else. KD_EFAIL: it is damaged. */
kd_status kd_live_stats_read(const char *path, const char *of, const kd_recipe *r, kd_stats *sums, kd_err *err);

#endif

/* Part: which share of the images this run takes, when several jobs fill one cache together.
 *
 *     --shard 3/8                 the third of eight
 *     sbatch --array=0-7 ...      the same from Slurm's variables, where --shard isn't given
 *
 * A file belongs to the part that the hash of its relative path names (kd_dataset_part), so jobs need to know nothing of each other. */
#ifndef KD_PRECOMPUTE_PART_H
#define KD_PRECOMPUTE_PART_H

#include <stdint.h>

#include "common/base/err.h"

typedef struct kd_part {
    uint32_t part, parts; /* from 1; parts 1: everything */
    int from_slurm;
} kd_part;

/* "I/N" with I from 1 to N; NULL: SLURM_ARRAY_TASK_ID, _MIN, _COUNT and _STEP where they are set, else everything. KD_EUSAGE: not of that form, or task ids that aren't evenly spaced. */
kd_status kd_part_parse(kd_part *p, const char *text, kd_err *err);

#endif

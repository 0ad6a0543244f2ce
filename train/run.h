/* Run: kd-train from its options to its exports: plan, resume, epochs, validation, checkpoints.
 *
 * Files of the run directory: report.html, config.resolved.yaml, metrics.jsonl, events.out.tfevents.*, train.log, image-index (when files had to be hashed), checkpoints/latest.kdt,
 * checkpoints/best-STUDENT.kdt, exported/STUDENT.safetensors (the last state), exported/STUDENT-best.safetensors (the best
 * validation loss). */
#ifndef KD_TRAIN_RUN_H
#define KD_TRAIN_RUN_H

#include "train/config.h"

/* c is completed ("auto" resolved); texts go to the arena. KD_OK also when --steps paused the run. */
kd_status kd_train_run(kd_train_config *c, kd_arena *arena, kd_err *err);

#endif

/* Checkpoint: one atomic file that a run can go on from, bit for bit: a .safetensors container with every parameter, running statistic, state of a loss, moving average and optimizer slot of
 * all students, and one JSON text with everything else. It opens in Python (safetensors); names are NAME/conv1.weight, of its moving average NAME/ema.conv1.weight, and NAME/adam.m,
 * NAME/adam.v or NAME/momentum, which have the length of kd_params_trained.
 *
 *     KD_TRY(kd_checkpoint_write("checkpoints/latest.kdt", students, n, run, 1, err));
 *     KD_TRY(kd_checkpoint_open(&c, "checkpoints/latest.kdt", err));
 *     run = kd_checkpoint_run(c);  KD_TRY(kd_checkpoint_restore(c, students[i], err));
 *
 * JSON: {"run": the caller's object, "students": [{"name","model","image_size":[h,w],"counter","steps","best_loss","best_epoch","sum","summed","slots":[names],"tensors","average",
 * "optimizer"}]}; "tensors", "average" (with a moving average) and "optimizer" (when it was saved) are the XOR of XXH3-128(name, bytes) over each of these sets of tensors, checked when they
 * are read. */
#ifndef KD_TRAIN_CHECKPOINT_H
#define KD_TRAIN_CHECKPOINT_H

#include "train/student.h"

/* run is borrowed. with_optimizer 0 leaves the optimizer out: enough for an export, not for a resume. KD_ENOSPACE and other failures leave the file that was there. */
kd_status kd_checkpoint_write(const char *path, kd_student *const *students, size_t n, const json_t *run, int with_optimizer, kd_err *err);

typedef struct kd_checkpoint kd_checkpoint;
/* KD_EFAIL: not a checkpoint, or its JSON fails the check. */
kd_status kd_checkpoint_open(kd_checkpoint **out, const char *path, kd_err *err);
void kd_checkpoint_close(kd_checkpoint *c); /* accepts NULL */

const json_t *kd_checkpoint_run(const kd_checkpoint *c); /* borrowed */
size_t kd_checkpoint_students(const kd_checkpoint *c);
/* Borrowed; {"name","model","image_size",...}. */
const json_t *kd_checkpoint_student(const kd_checkpoint *c, size_t i);
/* Index of the student of that name; name NULL: the only one. KD_EUSAGE listing the names. */
kd_status kd_checkpoint_find(const kd_checkpoint *c, const char *name, size_t *index, kd_err *err);

/* Parameters, statistics, moving average, optimizer and history of the student with s's name. */
kd_status kd_checkpoint_restore(const kd_checkpoint *c, kd_student *s, kd_err *err);
/* Only what a model without heads has, for an export: every parameter of p is filled by name from student i, from its moving average if it has one. */
kd_status kd_checkpoint_restore_model(const kd_checkpoint *c, size_t i, kd_params *p, kd_err *err);

#endif

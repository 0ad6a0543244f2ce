/* Truth: modes in which kd-train examines itself. docs/truth.md tells when to use which.
 *
 *     if (kd_truth_wanted(config)) KD_TRY(kd_truth_run(&setup, err));  // instead of training
 *     KD_TRY(kd_truth_watch(&setup, err));                             // before training: --check-finite
 *
 * --compare-backends, --overfit-batch and --profile work on the first batch of the run as it would be trained, print their result on stdout (with --json a line of JSON each) and touch nothing: the run
 * directory is neither made nor read. Several may be given: they run in the order below, each on the students as the one before left them. */
#ifndef KD_TRAIN_TRUTH_H
#define KD_TRAIN_TRUTH_H

#include "train/setup.h"

int kd_truth_wanted(const kd_train_config *c);

/* The modes that the options ask for, in this order, for every student:
 *   compare-backends  one training pass on the run's device beside the reference backend, same weights, same data, op by op: a line for every tensor that an op writes with its relative L2 error, and the
 *                     first beyond the tolerance (1e-4 in f32, 5e-2 in bf16; gradients of parameters below 1e-6 of the whole gradient's norm are rounding and excepted). KD_EFAIL when there is one.
 *                     KD_EUSAGE when the device is the reference itself.
 *   profile           the time of every op, forward and backward, over 5 steps after 2 that warm up, the longest first.
 *   overfit-batch N   N steps on that one batch, with constant learning rate after N/10 steps of warm-up. KD_EFAIL when the loss hasn't fallen to a tenth: the student can't learn what it is shown. */
kd_status kd_truth_run(kd_setup *s, kd_err *err);

/* --check-finite: from now on every op of every program is looked at; a step or a validation that meets a NaN or an infinity ends with KD_ENONFINITE naming op and tensor. Nothing without the option. */
kd_status kd_truth_watch(kd_setup *s, kd_err *err);

#endif

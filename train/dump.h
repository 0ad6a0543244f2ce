/* Dump: what another program needs to replay training steps and compare: --dump DIR. tests/reference/parity.py reads it with PyTorch.
 *
 *     KD_TRY(kd_dump_start(&setup, step, err));                     // before the first step of this command
 *     KD_TRY(kd_dump_step(&setup, student, step, lr, &result, err)); // after each; step counts from 1
 *
 * Both do nothing without --dump, and past the --steps that are asked for (without --steps: past the run's first KD_DUMP_STEPS). Files, .safetensors, everything row-major as the contract of ops has it
 * (maps and images are [N,H,W,C], parameters as the reference library shapes them):
 *
 *     DIR/STUDENT/step-0000.safetensors (the number of steps done before)
 *         param/NAME           every parameter and running statistic, heads (kd_head.*) included
 *         metadata             student, library, step, peak lr, weight_decay, clip, mean and std (JSON lists), decayed (JSON list of the parameters with weight decay), terms (JSON list
 *                              of the loss: name, kind, pair, weight), options (JSON)
 *     DIR/STUDENT/step-0001.safetensors, ...
 *         input/NAME           what the step was given: input/images U8, input/target.cls, ... as standardised; of further recipes input.2/NAME, ...
 *         output/NAME          the graph's outputs: features, predictions, unweighted loss terms [1]; of further recipes output.2/NAME, ...
 *         op/NNNN NAME         step 1 alone: the result of every op, in order of running: where two programs part, and which side of a ReLU each value was on; of further recipes op.2/...
 *         grad/NAME            gradient of every trained parameter, before clipping, summed over the recipes
 *         param/NAME           after the step
 *         metadata             student, step, lr, loss, grad_norm
 * Host memory: one tensor at a time. */
#ifndef KD_TRAIN_DUMP_H
#define KD_TRAIN_DUMP_H

#include "train/setup.h"
#include "train/step.h"

enum { KD_DUMP_STEPS = 3 };

/* KD_EUSAGE: a step has several batches (--accumulate). KD_EFAIL, KD_ENOSPACE: the folder or a file can't be written. */
kd_status kd_dump_start(const kd_setup *s, int64_t step, kd_err *err);
kd_status kd_dump_step(const kd_setup *s, kd_student *student, int64_t step, double lr, const kd_step_result *result, kd_err *err);

#endif

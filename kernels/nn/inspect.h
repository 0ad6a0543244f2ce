/* Inspect: looking into compiled programs: what is uploaded, what comes out, whether every op's numbers are finite, whether two backends agree op by op, where the time goes.
 * For the truth modes and dumps of training (train/truth.h, train/dump.h); a plain pass pays nothing for it.
 *
 *     KD_TRY(kd_exec_check_finite(e, 1, err));                               // from now on a pass stops at the first NaN, naming op and tensor
 *     KD_TRY(kd_exec_compare(on_cpu, on_ref, note, &notes, err));            // one training pass of both, side by side
 *     kd_exec_profile(e, 1); ...passes...; kd_exec_print_profile(e, stdout);
 *
 * Thread rule: that of graph.h. */
#ifndef KD_KERNELS_NN_INSPECT_H
#define KD_KERNELS_NN_INSPECT_H

#include "common/tensor/compare.h"
#include "kernels/nn/graph.h"

/* --- inputs, outputs, gradients by number --- */
/* A named door of a program: device address, valid as kd_exec_output says (inputs: until they are uploaded again). */
typedef struct kd_exec_tap {
    const char *name;
    kd_tdesc desc; /* with the batch */
    const void *data;
} kd_exec_tap;
int kd_exec_inputs(const kd_exec *e);
int kd_exec_outputs(const kd_exec *e);
kd_exec_tap kd_exec_input_tap(const kd_exec *e, int i);
kd_exec_tap kd_exec_output_tap(const kd_exec *e, int i);
/* Results of the ops in order of running; valid from the forward pass to the next in a program that keeps them (kd_exec_config.keep_values). The name is the op's ("layer1.0.conv1"); ops without parameters may share one. */
int kd_exec_ops(const kd_exec *e);
kd_exec_tap kd_exec_op_tap(const kd_exec *e, int i);
/* Device addresses of parameter i (kd_params_info) and, of a trained one, of its gradient after a backward pass; NULL where there is none: counters, and gradients of states. */
const float *kd_params_data(const kd_params *p, int i);
const float *kd_exec_gradient(kd_exec *e, int i);

/* --- finite numbers --- */
/* While on, everything that an op writes is looked at as soon as it is written: results and running statistics forwards, gradients of inputs and parameters backwards. The pass ends with
 * KD_ENONFINITE at the first NaN or infinity, naming op, tensor and place. KD_EFAIL: no host memory for the largest tensor. */
kd_status kd_exec_check_finite(kd_exec *e, int on, kd_err *err);

/* --- two backends --- */
/* A tensor that an op of both programs has just written. `got` and `want` lie on the host until the callback returns; their name says what it is: "conv2d layer1.0.conv1",
 * "conv2d layer1.0.conv1, gradient of layer1.0.conv1.weight". */
typedef struct kd_exec_pair {
    kd_tensor got, want;
    int parameter_gradient; /* else a result, a running statistic or the gradient of an input */
} kd_exec_pair;
typedef kd_status (*kd_exec_pair_fn)(void *ctx, const kd_exec_pair *pair, kd_err *err);
/* One forward and one backward pass of two training programs that were compiled from equal graphs with equal configurations, on their own parameters and inputs, op by op in turns; `pair` is called for
 * everything that was written, in this order. An error of the callback ends it. */
kd_status kd_exec_compare(kd_exec *got, kd_exec *want, kd_exec_pair_fn pair, void *ctx, kd_err *err);

/* --- time --- */
/* While on, the device is waited for after every op and its time is added up (a diagnosis: slower). Switching on or off clears the sums. */
void kd_exec_profile(kd_exec *e, int on);
/* Since profiling was switched on, in milliseconds of a pass: one line per op and direction, the longest first, with its share and, for matrix work, GFLOP/s; then the sums per kind of op. KD_EFAIL: memory. */
kd_status kd_exec_print_profile(const kd_exec *e, FILE *out, kd_err *err);
/* Since then, in seconds of a pass, both directions: all ops, and those of convolutions, linear layers and attention alone, below which no work on the others can bring it. */
typedef struct kd_exec_times {
    double ops, products;
} kd_exec_times;
kd_exec_times kd_exec_profile_times(const kd_exec *e);

#endif

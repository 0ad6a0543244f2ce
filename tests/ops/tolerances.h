/* The one table of tolerances of the op tests. A value is the largest allowed |got - want| / (rms(want) + |want|), so one number serves tensors of
 * every magnitude. KD_OPS_MEASURE=1 prints the measured maximum of every row. */
#ifndef KD_TESTS_OPS_TOLERANCES_H
#define KD_TESTS_OPS_TOLERANCES_H

#include "kernels/ops.h"

typedef struct ops_tolerance {
    double f32, bf16; /* tensors of that dtype; bf16 also covers f32 results (parameter gradients) of bf16 arithmetic */
} ops_tolerance;

/* A backend against ref, forward and backward. */
ops_tolerance ops_tolerance_vs_ref(kd_op_kind kind);

/* ref's gradient (rounded to f32 once, all else in double) against central differences with step 1e-4 in double. Measured 1e-7: f32's own rounding. */
#define OPS_TOLERANCE_DIFFERENCES 5e-7
/* ref against PyTorch in double, both stored as f32. Measured 6.5e-8, and 0 for most ops. */
#define OPS_TOLERANCE_GOLDEN 5e-7
/* ref with bf16 operands against the same inputs without rounding in between. Measured 1.1e-2 (linear, a few bf16 steps of 2^-8). */
#define OPS_TOLERANCE_BF16_ROUNDING 2e-2

/* Notes one measured error; prints the maxima per kind when the program ends, if KD_OPS_MEASURE is set. */
void ops_measured(const char *what, kd_op_kind kind, kd_dtype arithmetic, double error);
void ops_print_measured(void);

#endif

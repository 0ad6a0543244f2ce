/* L-BFGS: the minimum of a smooth function of many variables from its values and gradients.
 *
 * Limited-memory BFGS (Nocedal & Wright, Numerical Optimization, 2nd ed., algorithm 7.4, initial scaling 7.20) with a line search for the strong Wolfe conditions (algorithms 3.5 and 3.6,
 * c1 1e-4, c2 0.9, cubic interpolation). Deterministic; one thread, apart from what the caller's functions do. Used by logreg.h.
 *
 *     kd_lbfgs_options o = {.memory = 10, .max_iterations = 1000, .tolerance = 1e-12};
 *     KD_TRY(kd_lbfgs_minimise(x, n, value_and_gradient, &data, &o, &result, err));       // x: start in, minimum out */
#ifndef KD_TRAIN_LBFGS_H
#define KD_TRAIN_LBFGS_H

#include <stddef.h>

#include "common/base/err.h"

/* Returns the value at x [n] and overwrites gradient [n]. A value that isn't finite means "outside": the line search comes back nearer. */
typedef double (*kd_objective)(void *ctx, const double *x, double *gradient);

/* d = H d, where H is a fixed symmetric positive definite matrix near the inverse of the second derivatives (up to a factor): the fewer steps the nearer it is. */
typedef void (*kd_precondition)(void *ctx, double *d);

typedef struct kd_lbfgs_options {
    kd_precondition precondition; /* NULL: none */
    int memory;         /* pairs of steps and gradient differences that are kept; at least 1 */
    int max_iterations;
    double tolerance;   /* t: ends when the gradient's largest element is at most t * max(value, t), or the value has changed by at most t / 100 of it in 10 iterations (cuML's rules) */
} kd_lbfgs_options;

typedef enum kd_lbfgs_end {
    KD_LBFGS_GRADIENT,   /* the gradient is small enough */
    KD_LBFGS_VALUE,      /* the value doesn't change any more */
    KD_LBFGS_PRECISION,  /* no lower value was found along the steepest descent: what is left is rounding */
    KD_LBFGS_ITERATIONS  /* max_iterations were used up */
} kd_lbfgs_end;

typedef struct kd_lbfgs_result {
    double value, gradient; /* at x; the gradient's largest element */
    int iterations, evaluations;
    kd_lbfgs_end end;
} kd_lbfgs_result;

/* x is never left at a higher value than it began with. KD_ENONFINITE: value or gradient at the start aren't finite. KD_ESIGINT, KD_ESIGTERM: asked to stop (between iterations). KD_EFAIL: no
 * memory for (2 * memory + 5) * n numbers. */
kd_status kd_lbfgs_minimise(double *x, size_t n, kd_objective objective, void *ctx, const kd_lbfgs_options *options, kd_lbfgs_result *result, kd_err *err);

#endif

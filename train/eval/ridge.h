/* Ridge: the linear map with a bias that predicts one network's features from another's best, in closed form. How two feature spaces of different width are compared (likeness.h, patch_maps.h).
 *
 *     kd_ridge map = {0};
 *     KD_TRY(kd_ridge_fit_best(&map, student, 512, teacher, 384, n, 1, threads, err));
 *     kd_ridge_apply(&map, student, n, predicted, threads);              // [n][384]
 *     kd_ridge_free(&map);
 *
 * W minimises  1/n sum_i |W (x_i - mean x) - (y_i - mean y)|^2 + strength v |W|^2,  v = the mean variance of x's channels, so that a strength means the same for features of any scale
 * (Hoerl and Kennard 1970; scikit-learn's Ridge with alpha = n v strength). The bias isn't shrunk. In double, by Cholesky's decomposition of in x in numbers: in^3 / 3 multiplications, and n in (in / 2 + out)
 * for the sums. Results don't depend on the thread count. */
#ifndef KD_TRAIN_EVAL_RIDGE_H
#define KD_TRAIN_EVAL_RIDGE_H

#include <stddef.h>

#include "common/base/err.h"

typedef struct kd_ridge {
    size_t in, out;
    double *weight;  /* [out][in] */
    double *bias;    /* [out] */
    double *mean;    /* [out] of y over the fitted rows, rounded to f32: what the map predicts where x says nothing */
    double strength;
} kd_ridge;

/* x [n, in], y [n, out], finite; n >= 1, strength > 0 (asserted). *map must be zeroed or freed. Where x doesn't vary, the map is the mean of y. KD_EFAIL: memory; kd_ridge_free in any case. */
kd_status kd_ridge_fit(kd_ridge *map, const float *x, size_t in, const float *y, size_t out, size_t n, double strength, int threads, kd_err *err);
/* The same with the one of the strengths 1e-4, 1e-3, .. 10 that predicts every fourth sample best when fitted on the others (of equal ones the stronger), then fitted on all. A sample is `group` rows
 * that belong together (an image's patches); n is a multiple of it. Fewer than 4 samples: 0.1. */
kd_status kd_ridge_fit_best(kd_ridge *map, const float *x, size_t in, const float *y, size_t out, size_t n, size_t group, int threads, kd_err *err);
/* x [n, in] -> y [n, out]. */
void kd_ridge_apply(const kd_ridge *map, const float *x, size_t n, float *y, int threads);
void kd_ridge_free(kd_ridge *map); /* accepts a zeroed one */

#endif

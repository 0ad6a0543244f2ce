/* Adjoint: arithmetic on adjoint targets a = U^T t, |t|^2 (common/tensor/target.h) that needs no single token of t: standardising, and the squared length of an upsampled prediction.
 *
 *     KD_TRY(kd_adjoint_create(&a, &target, 16, 16, err));
 *     square = kd_adjoint_standardise(&a, tokens, square, mean, std, width);        // in place
 *     error2 = kd_adjoint_upsampled_square(&a, pred, width) - 2 <pred, tokens> + square;  // |U pred - t|^2
 *     kd_adjoint_free(&a);
 *
 * Thread rule: const objects may be shared. */
#ifndef KD_TRAIN_ADJOINT_H
#define KD_TRAIN_ADJOINT_H

#include "common/tensor/target.h"

typedef struct kd_adjoint {
    int h, w;               /* of the prediction's grid */
    int tokens;             /* of the teacher's grid */
    double *ones_h, *ones_w; /* U^T 1 is their outer product; [h], [w] */
    double *gram_h, *gram_w; /* U^T U is their Kronecker product; [h,h], [w,w] */
} kd_adjoint;

/* For target adjoint:HxW of a grid_h x grid_w grid. Also after a failure (KD_EFAIL: memory): kd_adjoint_free. */
kd_status kd_adjoint_create(kd_adjoint *a, const kd_target *target, int grid_h, int grid_w, kd_err *err);
void kd_adjoint_free(kd_adjoint *a); /* accepts a zeroed one */

/* tokens [h * w, width] = U^T t becomes U^T t', where t' = (t - mean) / std is the standardised grid; returns |t'|^2, given |t|^2. In double. */
double kd_adjoint_standardise(const kd_adjoint *a, float *tokens, double square, const float *mean, float std, size_t width);
/* |U s|^2 of a prediction s [h * w, width], in double. */
double kd_adjoint_upsampled_square(const kd_adjoint *a, const float *s, size_t width);
/* out [h * w, width] = U^T U s: what the target of an upsampled prediction s would be. */
void kd_adjoint_of_prediction(const kd_adjoint *a, float *out, const float *s, size_t width);
/* In place: U^T t divided by U^T 1: each token the weighted mean of the grid around it, for looking at. A token that no point of the grid reaches stays 0. */
void kd_adjoint_means(const kd_adjoint *a, float *tokens, size_t width);

#endif

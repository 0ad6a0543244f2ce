/* PCA: the three leading principal components of features, and their picture: each component a colour. For patches of a teacher and its students in one basis, so that equal colours mean
 * equal features.
 *
 *     kd_pca p = {0};
 *     KD_TRY(kd_pca_fit(&p, teacher, n, width, err));                // basis and ranges from the teacher
 *     kd_pca_colour(&p, student, m, rgb);                            // [m][3] bytes
 *     kd_pca_free(&p);
 *
 * Components: eigenvectors of the covariance by subspace iteration in double with a Rayleigh-Ritz step, from a start that is a function of the data: equal input, equal result. Sign: the entry
 * of largest magnitude (of equal ones the first) is positive. Colours: a component's 2nd to 98th percentile over the fitted rows become 0 to 255, the rest is clamped. */
#ifndef KD_TRAIN_PCA_H
#define KD_TRAIN_PCA_H

#include <stddef.h>
#include <stdint.h>

#include "common/base/err.h"

enum { KD_PCA_COMPONENTS = 3 };

typedef struct kd_pca {
    size_t width;
    double *mean;                          /* [width] */
    double *axis;                          /* [KD_PCA_COMPONENTS][width], of length 1, orthogonal */
    double variance[KD_PCA_COMPONENTS];    /* along each, over n; falling */
    double total;                          /* variance over all directions */
    double low[KD_PCA_COMPONENTS], high[KD_PCA_COMPONENTS]; /* percentiles of the fitted rows' coordinates */
} kd_pca;

/* rows [n, width], n >= 1, finite. Directions along which nothing varies are some orthogonal ones. KD_EFAIL: memory; kd_pca_free in any case. */
kd_status kd_pca_fit(kd_pca *p, const float *rows, size_t n, size_t width, kd_err *err);
void kd_pca_free(kd_pca *p); /* accepts a zeroed one */
/* Coordinates of a row [width] along the axes. */
void kd_pca_project(const kd_pca *p, const float *row, double out[KD_PCA_COMPONENTS]);
/* [m, width] -> [m][3]: red the first component, green the second, blue the third. */
void kd_pca_colour(const kd_pca *p, const float *rows, size_t m, uint8_t *rgb);

#endif

/* Likeness: how much of a teacher's features a linear map can read out of a student's, with no labels and no head of training, so that networks of any width and origin are measured alike; and the raw
 * distance where both have one width.
 *
 *     kd_likeness l;
 *     KD_TRY(kd_likeness_measure(&l, teacher, 384, student, 512, images, 1, threads, err));       // an image's pooled feature
 *     KD_TRY(kd_likeness_measure(&l, teacher, 384, student, 512, images, 256, threads, err));     // its patches, on one grid (kd_grid_resize)
 *
 * The map is a ridge regression (ridge.h) fitted on the images of even index and measured on those of odd index, and the other way round: every image is measured by a map that hasn't seen it. Its
 * strength is chosen within the half that it is fitted on. Patches: a half's map is fitted on at most KD_LIKENESS_ROWS of them, as many of each image, evenly spread, and measured on all.
 * With t a teacher's feature, p its prediction, m the mean of the half that the map was fitted on:
 *   R2       1 - sum |p - t|^2 / sum |t - m|^2 over all images: 1 = read out without error, 0 = no better than the mean, below 0 = worse
 *   cosine   of p - m and t - m, mean over rows and images (0 where either is 0)
 * and where widths are equal, of the features as they are:
 *   raw cosine of s and t, mean;  raw MSE  mean over rows and channels of (s - t)^2
 * Intervals: see kd_figure_ratio. */
#ifndef KD_TRAIN_EVAL_LIKENESS_H
#define KD_TRAIN_EVAL_LIKENESS_H

#include <stddef.h>

#include "common/base/err.h"

enum { KD_LIKENESS_IMAGES = 8 /* fewer tell nothing */, KD_LIKENESS_ROWS = 8192 };

typedef struct kd_figure {
    double value, low, high;
} kd_figure;
/* sum a / sum b over n images (b NULL: the mean of a) with its 95 % interval, value -+ 1.96 standard errors, the error by linearisation, sqrt(n / (n - 1) sum (a - value b)^2) / sum b (Cochran, Sampling
 * Techniques, ratio estimates). It tells how the figure would vary with other images of the kind; what was fitted beforehand counts as given. n >= 2. */
kd_figure kd_figure_ratio(const double *a, const double *b, size_t n);

typedef struct kd_likeness {
    kd_figure r2, cosine;
    double strength[2];   /* of the maps fitted on even and on odd images */
    int same_width;       /* 1: the next two are there */
    kd_figure raw_cosine, raw_mse;
} kd_likeness;

/* teacher [images, rows, teacher_width], student [images, rows, student_width], finite; images >= KD_LIKENESS_IMAGES (asserted). Doesn't depend on the thread count. KD_EFAIL: memory. */
kd_status kd_likeness_measure(kd_likeness *l, const float *teacher, size_t teacher_width, const float *student, size_t student_width, size_t images, size_t rows, int threads, kd_err *err);

/* in [h, w, width] -> out [to_h, to_w, width]: bilinear, align_corners = false (torch.nn.functional.interpolate), as training resizes a student's map to the teacher's grid. */
void kd_grid_resize(float *out, int to_h, int to_w, const float *in, int h, int w, size_t width);
/* Which `taken` of a map's `rows` rows stand for image i: row (j * rows + i * 7919 % rows) / taken for j = 0 .. taken - 1: evenly spread, and others from image to image. to [taken, width]. taken <= rows. */
void kd_grid_sample(float *to, size_t taken, const float *from, size_t rows, size_t width, size_t image);

#endif

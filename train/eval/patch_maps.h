/* Patch maps: the patches of a reference network (a teacher) in some photos, and those of others (its students), as colours in one basis, so that equal colours mean equal features. What `kd-eval pca`
 * draws; kd-train's own pictures are maps.h, which has the run's heads to bring a student's patches into the teacher's space. Here no head is at hand, so a linear map stands in: ridge regression from
 * the network's patches to the reference's at the same places, fitted on other photos than those that are shown. (Fitted on the shown ones it would draw the teacher's picture whatever the network knows.)
 *
 *     kd_patch_maps m = {.photos = 6, .h = 16, .w = 16, .width = 384, .reference = patches};
 *     KD_TRY(kd_patch_maps_fit(&m, 1, err));                                   // basis; foreground
 *     kd_patch_maps_colour(&m, m.reference, rgb);                              // [photos][h][w][3]
 *     KD_TRY(kd_patch_read_fit(&map, &other, reference_of_other_photos, &m, photos, threads, err));
 *     KD_TRY(kd_patch_read_apply(&map, &other_shown, &m, predicted, threads, err));
 *     kd_patch_maps_colour(&m, predicted, rgb);  kd_patch_maps_compare(&m, predicted, cosine, &r2);
 *     kd_patch_maps_free(&m);
 *
 * Basis: the three leading components of the reference's patches in the shown photos (pca.h). Foreground, as in DINOv2 (arXiv 2304.07193, figure 1): the first component of all patches splits them at its
 * mean; the side that fills more of the photos' middle than of their rim is kept (the paper chooses it by eye), components and colours are those of the kept patches alone, and the rest is black in every column. */
#ifndef KD_TRAIN_EVAL_PATCH_MAPS_H
#define KD_TRAIN_EVAL_PATCH_MAPS_H

#include "train/eval/pca.h"
#include "train/eval/ridge.h"

typedef struct kd_patch_maps {
    size_t photos, width;
    int h, w;               /* the reference's grid */
    const float *reference; /* [photos][h * w][width]; borrowed */
    uint8_t *shown;         /* [photos][h * w]: 0 = background */
    size_t kept;            /* patches that are shown */
    kd_pca pca;             /* of these */
} kd_patch_maps;

/* The fields before `shown` are filled in. foreground 0: every patch is shown. KD_EFAIL: memory; kd_patch_maps_free in any case. */
kd_status kd_patch_maps_fit(kd_patch_maps *m, int foreground, kd_err *err);
/* patches [photos][h * w][width], the reference's or predictions of them -> rgb [photos][h * w][3]; black where nothing is shown. */
void kd_patch_maps_colour(const kd_patch_maps *m, const float *patches, uint8_t *rgb);
/* cosine [photos]: mean over the shown patches of the cosine of prediction and reference, both without the reference's mean (0 where none is shown); *r2 = 1 - squared error / variance over all shown. */
void kd_patch_maps_compare(const kd_patch_maps *m, const float *predicted, double *cosine, double *r2);
void kd_patch_maps_free(kd_patch_maps *m); /* accepts a zeroed one */

/* Patches of a network in some photos, on its own grid. */
typedef struct kd_patch_grid {
    const float *patch; /* [photos][h * w][width] */
    int h, w;
    size_t width;
} kd_patch_grid;

/* From x in `photos` photos to the reference's patches y [photos][m->h * m->w][m->width] of the same photos: x is resized to m's grid (kd_grid_resize), and of each photo equally many places are fitted,
 * together at most KD_LIKENESS_ROWS. photos >= 1. *map must be zeroed. KD_EFAIL: memory. */
kd_status kd_patch_read_fit(kd_ridge *map, const kd_patch_grid *x, const float *y, const kd_patch_maps *m, size_t photos, int threads, kd_err *err);
/* x in m's photos -> predicted [photos][h * w][width]. */
kd_status kd_patch_read_apply(const kd_ridge *map, const kd_patch_grid *x, const kd_patch_maps *m, float *predicted, int threads, kd_err *err);

#endif

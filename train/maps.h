/* Maps: what teacher and students see in a few photos, as pictures to be compared: a photo beside the principal components of the teacher's patches and of each student's predicted patches, all in
 * one basis, so that equal colours mean equal features (pca.h; facts: the basis is fitted on the teacher's patches of these photos).
 *
 *     kd_maps m = {0};
 *     KD_TRY(kd_maps_make(&m, &setup, err));                         // also after a failure: kd_maps_free
 *     ... m.column[c].tile[photo] ...
 *     kd_maps_free(&m);
 *
 * Students that learn another form of the patches (full, pooled, adjoint) or of another layer get a teacher column, and a basis, of their own. An adjoint target holds weighted means of the grid around
 * each point of the student's map: the teacher is shown as these, and so is the student (U^T U s / U^T 1). A student whose loss leaves lengths open is shown with the
 * teacher's. */
#ifndef KD_TRAIN_MAPS_H
#define KD_TRAIN_MAPS_H

#include "train/setup.h"

enum { KD_MAPS_PHOTOS = 6, KD_MAPS_TITLE = 96, KD_MAPS_TILE = 112 /* pixels of a tile of a strip */ };

typedef struct kd_maps_column {
    char title[KD_MAPS_TITLE];
    int student;                    /* place among the setup's; -1: the photos; -2: the teacher */
    int h, w;                       /* of a tile */
    uint8_t *tile[KD_MAPS_PHOTOS];  /* [h][w][3] */
    double cosine[KD_MAPS_PHOTOS];  /* of students: mean over the patches of the cosine to the teacher's, both without their mean */
} kd_maps_column;

typedef struct kd_maps {
    int photos;                        /* 0: no student learns patches, or there are no images */
    int held;                          /* the photos are held out; 0: nothing is, and they are trained on */
    const char *name[KD_MAPS_PHOTOS];  /* their paths; borrowed from the setup */
    kd_maps_column *column;
    size_t columns;
} kd_maps;

/* Of the validated images, evenly spread, at most a batch; with the students' present weights (their validation programs are run). *m must be zeroed. The causes of kd_replay_next. */
kd_status kd_maps_make(kd_maps *m, kd_setup *setup, kd_err *err);
/* Photos, teacher and student `student` side by side, a row for each photo, tiles enlarged without smoothing: [*height][*width][3] in *rgb (kd_free'd by the caller; NULL: that student has no map). */
kd_status kd_maps_strip(const kd_maps *m, int student, uint8_t **rgb, int *height, int *width, kd_err *err);
void kd_maps_free(kd_maps *m);

#endif

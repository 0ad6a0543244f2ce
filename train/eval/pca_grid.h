/* PCA grid: photos and their patch maps as one picture: a row for each photo, a column for the photos and for each network, with what they are written above and below.
 *
 *     kd_pca_grid g = {.photos = 6, .columns = 3, .tile_h = 224, .tile_w = 224, .column = columns};
 *     KD_TRY(kd_pca_grid_write("pca.png", &g, err)); */
#ifndef KD_TRAIN_EVAL_PCA_GRID_H
#define KD_TRAIN_EVAL_PCA_GRID_H

#include <stddef.h>
#include <stdint.h>

#include "common/base/err.h"

enum { KD_PCA_CAPTION = 128 };

typedef struct kd_pca_column {
    char title[KD_PCA_CAPTION], note[KD_PCA_CAPTION]; /* above the column, in large letters (small ones if it is long) and in small ones; cut off where the column ends */
    char (*below)[KD_PCA_CAPTION];                    /* [photos], below each tile; of a text that is too long the end is shown. NULL: nothing */
    int h, w;                                         /* of its pictures */
    const uint8_t *rgb;                               /* [photos][h][w][3] */
} kd_pca_column;

typedef struct kd_pca_grid {
    size_t photos, columns;
    int tile_h, tile_w;          /* pixels; maps are enlarged without smoothing */
    const kd_pca_column *column;
} kd_pca_grid;

/* An RGB PNG, atomically. KD_EFAIL: memory, the file; KD_ENOSPACE. */
kd_status kd_pca_grid_write(const char *path, const kd_pca_grid *g, kd_err *err);

#endif

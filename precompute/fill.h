/* Fill: the views that a damaged cache lacks, from the list that kd-cache repair writes (missing.txt), for kd-precompute --fill.
 *
 *     # image id, views, path
 *     0b3c...e1 3 cat/12.jpg
 *     52f0...97 0-7 dog/with space.jpg
 *
 * A line names an image by its id and says where its file was; a file of the set with that id serves as well. The path may be a hidden one.
 * After kd_fill_select everything is read-only. */
#ifndef KD_PRECOMPUTE_FILL_H
#define KD_PRECOMPUTE_FILL_H

#include "common/data/locate.h"

typedef struct kd_fill_row {
    kd_hash128 image;
    uint32_t first, last; /* views, both included */
    const char *path;
    int lost;             /* kd_fill_select found no file; said in the image's first row */
} kd_fill_row;

typedef struct kd_fill {
    kd_fill_row *row; /* sorted by image and view */
    size_t count;
    uint32_t views;   /* one more than the largest view */
    char *text;       /* the file: paths point into it */
} kd_fill;

/* KD_EUSAGE naming line and what is wrong with it; also for a list without views. KD_EFAIL: can't be read. */
kd_status kd_fill_read(kd_fill *f, const char *path, kd_err *err);
void kd_fill_free(kd_fill *f);
int kd_fill_has(const kd_fill *f, const kd_hash128 *image, uint32_t view);
uint64_t kd_fill_view_count(const kd_fill *f); /* a view that is listed twice counts once */

/* The files of the set that hold the list's images, one for each, as a set of their own; rows whose image has none are marked. Files at the listed paths are hashed first; all others
 * (`threads` wide) only where that isn't enough. */
kd_status kd_fill_select(kd_fill *f, kd_dataset *out, const kd_dataset *data, int threads, kd_err *err);

#endif

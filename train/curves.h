/* Curves: metrics.jsonl read back as series of points, a series for each student and each key whose value is a number. What the report draws, so that the report of a resumed run is that of an
 * uninterrupted one.
 *
 *     kd_curves c = {0};
 *     KD_TRY(kd_curves_read(&c, "runs/r18/metrics.jsonl", epoch_steps, err));
 *     const kd_curve *loss = kd_curves_find(&c, "resnet18", "val_loss");       // or NULL
 *     kd_curves_free(&c); */
#ifndef KD_TRAIN_CURVES_H
#define KD_TRAIN_CURVES_H

#include <stdint.h>

#include "train/svg.h"

typedef struct kd_curve {
    char *student, *key;
    kd_point *point;      /* x: step / epoch_steps, y: the value; in the order of the file */
    size_t count, capacity;
} kd_curve;

typedef struct kd_curves {
    kd_curve *curve;      /* in order of appearance */
    size_t count, capacity;
} kd_curves;

/* *c must be zeroed; kd_curves_free in any case. Of a flag ("outlier", "best") the lines where it is true, with y = the line's loss (outlier) or 1. An unfinished last line is passed over: the
 * run may be writing it. KD_EFAIL: the file can't be read, or a line isn't a JSON object with step and student. */
kd_status kd_curves_read(kd_curves *c, const char *path, int64_t epoch_steps, kd_err *err);
const kd_curve *kd_curves_find(const kd_curves *c, const char *student, const char *key);
void kd_curves_free(kd_curves *c);

/* At most `most` points (>= 1): means of x and y over stretches of equal length. Returns how many; out has room for min(count, most). */
size_t kd_curve_thin(const kd_curve *curve, kd_point *out, size_t most);

#endif

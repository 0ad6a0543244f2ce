/* Outlier: whether a number of a training step (loss, gradient norm) stands far above what it was lately: more than 10 times the median of the last 100 values. The rule is a function of the
 * values alone, and the window can be stored, so that a resumed run flags the same steps.
 *
 *     kd_outlier_window w = {0};
 *     if (kd_outlier_add(&w, loss)) ...
 */
#ifndef KD_TRAIN_OUTLIER_H
#define KD_TRAIN_OUTLIER_H

#include "common/base/json.h"

enum { KD_OUTLIER_WINDOW = 100, KD_OUTLIER_LEAST = 20 /* values before anything is judged */, KD_OUTLIER_FACTOR = 10 };

typedef struct kd_outlier_window {
    double value[KD_OUTLIER_WINDOW]; /* a ring */
    int count, next;
    int outside;                     /* the last value was an outlier */
} kd_outlier_window;

/* Adds a finite value >= 0. 1: it is an outlier and the one before wasn't, so that a burst is reported once, at its first step. Outliers enter the window too: what stays high becomes the rule. */
int kd_outlier_add(kd_outlier_window *w, double value);
double kd_outlier_median(const kd_outlier_window *w); /* of what is in the window (the lower of the two in the middle); 0 when it is empty */

/* New reference, or NULL when memory is out; and back. KD_EDAMAGED: not a stored window. */
json_t *kd_outlier_json(const kd_outlier_window *w);
kd_status kd_outlier_parse(kd_outlier_window *w, const json_t *j, const char *what, kd_err *err);

#endif

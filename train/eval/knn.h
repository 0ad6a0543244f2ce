/* k-NN: the weighted nearest-neighbour classifier of DINO (eval_knn.py), on frozen features.
 *
 * Both sides are L2-normalised; similarity is the cosine; the k nearest training samples vote for their class with weight exp(similarity / temperature).
 * Order of equal similarities and of equal votes: the lower index wins, so that results are the same everywhere. */
#ifndef KD_TRAIN_KNN_H
#define KD_TRAIN_KNN_H

#include <stddef.h>
#include <stdint.h>

#include "common/base/err.h"

enum { KD_KNN_MAX_K = 256 };
#define KD_KNN_TEMPERATURE 0.07 /* dino/eval_knn.py; 0.002 is the least of which exp(1 / temperature) is far from the largest double */

typedef struct kd_knn_data {
    const float *features; /* [count][width] */
    const int32_t *label;  /* [count], 0 .. classes-1; -1 in the test set: a class that the training set doesn't have (always wrong) */
    size_t count;
} kd_knn_data;

typedef struct kd_knn_result {
    int k;
    double top1, top5; /* shares 0..1 */
} kd_knn_result;

/* results[i] for k[i]. predictions (may be NULL): [n_k][test count] top-1 classes. KD_EUSAGE: k below 1 or above KD_KNN_MAX_K or the training set. */
kd_status kd_knn(const kd_knn_data *train, const kd_knn_data *test, size_t width, size_t classes, const int *k, size_t n_k, double temperature, int threads,
                 kd_knn_result *results, int32_t *predictions, kd_err *err);

#endif

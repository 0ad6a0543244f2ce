/* k-NN: the weighted nearest-neighbour classifier of DINO (eval_knn.py), on frozen features.
 *
 * Both sides are L2-normalised; similarity is the cosine; the k nearest training samples vote for their class with weight exp(similarity / temperature).
 * Order of equal similarities and of equal votes: the lower index wins, so that results are the same everywhere. Features are read where they lie, in blocks, by neighbours.h; ImageNet's
 * 1,281,167 x 768 against its 50,000 test images take 0.3 GB beside the 4.1 GB of features.
 *
 *     KD_TRY(kd_knn_plan(&plan, backend, train_count, test_count, width, k, n_k, err));   // with the counts alone, before features are computed
 *     KD_TRY(kd_neighbours_plan_check(&plan, 1, kd_mem_available(), err));
 *     KD_TRY(kd_knn(backend, &train, &test, width, classes, k, n_k, KD_KNN_TEMPERATURE, results, predictions, err)); */
#ifndef KD_TRAIN_KNN_H
#define KD_TRAIN_KNN_H

#include "train/eval/neighbours.h"

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

/* What kd_knn will take. KD_EUSAGE: k below 1 or above KD_KNN_MAX_K or the training set. Else the causes of kd_neighbours_plan_make. */
kd_status kd_knn_plan(kd_neighbours_plan *plan, kd_backend *b, size_t train_count, size_t test_count, size_t width, const int *k, size_t n_k, kd_err *err);
/* On backend b, and on as many threads. results[i] for k[i]. predictions (may be NULL): [n_k][test count] top-1 classes. Errors: those of kd_knn_plan and kd_neighbours_find. */
kd_status kd_knn(kd_backend *b, const kd_knn_data *train, const kd_knn_data *test, size_t width, size_t classes, const int *k, size_t n_k, double temperature,
                 kd_knn_result *results, int32_t *predictions, kd_err *err);

#endif

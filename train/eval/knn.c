#include "train/eval/knn.h"

#include <math.h>
#include <string.h>

#include "common/base/mem.h"
#include "common/base/threads.h"

enum { BEST = 5 };

typedef struct job {
    const kd_knn_data *train, *test;
    const kd_neighbour *found; /* [test][k_max] */
    size_t classes, n_k, k_max;
    const int *k;
    double temperature;
    double *votes;        /* [threads][classes] */
    size_t *right1, *right5; /* [threads][n_k] */
    int32_t *predictions; /* [n_k][test] or NULL */
} job;

static void best_classes(int32_t top[BEST], double *votes, size_t classes) {
    for (int rank = 0; rank < BEST; rank++) {
        top[rank] = -2; /* never equal to a label */
        double best = 0;
        for (size_t c = 0; c < classes; c++)
            if (votes[c] > best) {
                best = votes[c];
                top[rank] = (int32_t)c;
            }
        if (top[rank] >= 0)
            votes[top[rank]] = 0;
    }
}

static void vote(void *ctx, int worker, size_t i) {
    const job *j = ctx;
    const kd_neighbour *list = j->found + i * j->k_max;
    double *votes = j->votes + (size_t)worker * j->classes;
    for (size_t q = 0; q < j->n_k; q++) {
        int32_t top[BEST];
        memset(votes, 0, j->classes * sizeof *votes);
        for (int n = 0; n < j->k[q]; n++)
            votes[j->train->label[list[n].index]] += exp((double)list[n].similarity / j->temperature);
        best_classes(top, votes, j->classes);
        if (j->predictions != NULL)
            j->predictions[q * j->test->count + i] = top[0];
        j->right1[(size_t)worker * j->n_k + q] += top[0] == j->test->label[i];
        for (int rank = 0; rank < BEST; rank++)
            j->right5[(size_t)worker * j->n_k + q] += top[rank] == j->test->label[i];
    }
}

static kd_status classify(job *j, int threads, kd_knn_result *results, kd_err *err) {
    KD_TRY(kd_alloc_array(&j->votes, (size_t)threads * j->classes, sizeof *j->votes, err));
    KD_TRY(kd_alloc_array(&j->right1, (size_t)threads * j->n_k, sizeof *j->right1, err));
    KD_TRY(kd_alloc_array(&j->right5, (size_t)threads * j->n_k, sizeof *j->right5, err));
    kd_parallel_for(threads, j->test->count, vote, j);
    for (size_t q = 0; q < j->n_k; q++) {
        size_t right1 = 0, right5 = 0;
        for (size_t w = 0; w < (size_t)threads; w++) {
            right1 += j->right1[w * j->n_k + q];
            right5 += j->right5[w * j->n_k + q];
        }
        results[q] = (kd_knn_result){.k = j->k[q], .top1 = (double)right1 / (double)j->test->count, .top5 = (double)right5 / (double)j->test->count};
    }
    return KD_OK;
}

static kd_status largest_k(int *largest, size_t train_count, const int *k, size_t n_k, kd_err *err) {
    *largest = 1;
    for (size_t q = 0; q < n_k; q++) {
        if (k[q] < 1 || k[q] > KD_KNN_MAX_K || (size_t)k[q] > train_count)
            return kd_fail(err, KD_EUSAGE, "--k %d: must be from 1 to %d and at most the %zu training images", k[q], KD_KNN_MAX_K, train_count);
        if (k[q] > *largest)
            *largest = k[q];
    }
    return KD_OK;
}

kd_status kd_knn_plan(kd_neighbours_plan *plan, kd_backend *b, size_t train_count, size_t test_count, size_t width, const int *k, size_t n_k, kd_err *err) {
    kd_neighbours_task t = {.row_count = train_count, .query_count = test_count, .width = width};
    KD_TRY(largest_k(&t.k, train_count, k, n_k, err));
    return kd_neighbours_plan_make(plan, b, &t, err);
}

kd_status kd_knn(kd_backend *b, const kd_knn_data *train, const kd_knn_data *test, size_t width, size_t classes, const int *k, size_t n_k, double temperature,
                 kd_knn_result *results, int32_t *predictions, kd_err *err) {
    kd_neighbours_task t = {.rows = train->features, .row_count = train->count, .queries = test->features, .query_count = test->count, .width = width};
    kd_neighbour *found = NULL;
    KD_TRY(largest_k(&t.k, train->count, k, n_k, err));
    KD_TRY(kd_alloc_array(&found, test->count * (size_t)t.k, sizeof *found, err));
    job j = {.train = train, .test = test, .found = found, .classes = classes, .n_k = n_k, .k_max = (size_t)t.k, .k = k, .temperature = temperature, .predictions = predictions};
    kd_status status = kd_neighbours_find(found, b, &t, err);
    if (status == KD_OK)
        status = classify(&j, b->threads, results, err);
    kd_free(found);
    kd_free(j.votes);
    kd_free(j.right1);
    kd_free(j.right5);
    return status;
}

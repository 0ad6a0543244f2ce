#include "train/eval/knn.h"

#include <math.h>
#include <string.h>

#include "common/base/mem.h"
#include "common/base/threads.h"

enum { BLOCK = 32 }; /* test rows per job: their features stay in cache while the training set streams by */

typedef struct neighbour {
    float similarity;
    uint32_t index;
} neighbour;

typedef struct job {
    const kd_knn_data *train, *test;
    float *a, *b; /* normalised train and test features */
    size_t width, classes;
    const int *k;
    size_t n_k;
    int k_max;
    double temperature;
    int32_t *top; /* [n_k][test][5] */
    double *votes;        /* [threads][classes] */
    neighbour *nearest;   /* [threads][k_max] */
} job;

static void normalise_rows(float *out, const float *in, size_t rows, size_t width) {
    for (size_t i = 0; i < rows; i++) {
        double sum = 0;
        for (size_t c = 0; c < width; c++)
            sum += (double)in[i * width + c] * (double)in[i * width + c];
        double scale = 1.0 / fmax(sqrt(sum), 1e-12);
        for (size_t c = 0; c < width; c++)
            out[i * width + c] = (float)((double)in[i * width + c] * scale);
    }
}

/* Sixteen partial sums let the compiler vectorise without re-associating by itself. */
__attribute__((target_clones("avx512f", "avx2", "default")))
static float dot(const float *a, const float *b, size_t n) {
    float part[16] = {0}, sum = 0;
    size_t i = 0;
    for (; i + 16 <= n; i += 16)
        for (size_t j = 0; j < 16; j++)
            part[j] += a[i + j] * b[i + j];
    for (size_t j = 0; j < 16; j++)
        sum += part[j];
    for (; i < n; i++)
        sum += a[i] * b[i];
    return sum;
}

/* Keeps the k largest, sorted; training rows come in index order, so `>` makes the lower index win ties. */
static void insert(neighbour *list, int *filled, int k, float similarity, uint32_t index) {
    if (*filled == k && !(similarity > list[k - 1].similarity))
        return;
    int at = *filled < k ? (*filled)++ : k - 1;
    while (at > 0 && similarity > list[at - 1].similarity) {
        list[at] = list[at - 1];
        at--;
    }
    list[at] = (neighbour){similarity, index};
}

static void best_five(int32_t top[5], double *votes, size_t classes) {
    for (int rank = 0; rank < 5; rank++) {
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

static void classify(job *j, int worker, size_t i) {
    neighbour *list = j->nearest + (size_t)worker * (size_t)j->k_max;
    double *votes = j->votes + (size_t)worker * j->classes;
    int filled = 0;
    for (size_t t = 0; t < j->train->count; t++)
        insert(list, &filled, j->k_max, dot(j->b + i * j->width, j->a + t * j->width, j->width), (uint32_t)t);
    for (size_t q = 0; q < j->n_k; q++) {
        memset(votes, 0, j->classes * sizeof *votes);
        for (int n = 0; n < j->k[q]; n++)
            votes[j->train->label[list[n].index]] += exp((double)list[n].similarity / j->temperature);
        best_five(j->top + (q * j->test->count + i) * 5, votes, j->classes);
    }
}

static void classify_block(void *ctx, int worker, size_t block) {
    job *j = ctx;
    size_t end = (block + 1) * BLOCK < j->test->count ? (block + 1) * BLOCK : j->test->count;
    for (size_t i = block * BLOCK; i < end; i++)
        classify(j, worker, i);
}

static void score(const job *j, size_t q, kd_knn_result *result, int32_t *predictions) {
    size_t right1 = 0, right5 = 0;
    for (size_t i = 0; i < j->test->count; i++) {
        const int32_t *top = j->top + (q * j->test->count + i) * 5;
        right1 += top[0] == j->test->label[i];
        for (int rank = 0; rank < 5; rank++)
            right5 += top[rank] == j->test->label[i];
        if (predictions != NULL)
            predictions[q * j->test->count + i] = top[0];
    }
    result->k = j->k[q];
    result->top1 = (double)right1 / (double)j->test->count;
    result->top5 = (double)right5 / (double)j->test->count;
}

static kd_status run(job *j, int threads, kd_knn_result *results, int32_t *predictions, kd_err *err) {
    KD_TRY(kd_alloc_array(&j->a, j->train->count * j->width, sizeof *j->a, err));
    KD_TRY(kd_alloc_array(&j->b, j->test->count * j->width, sizeof *j->b, err));
    KD_TRY(kd_alloc_array(&j->top, j->n_k * j->test->count, 5 * sizeof *j->top, err));
    KD_TRY(kd_alloc_array(&j->votes, (size_t)threads * j->classes, sizeof *j->votes, err));
    KD_TRY(kd_alloc_array(&j->nearest, (size_t)threads * (size_t)j->k_max, sizeof *j->nearest, err));
    normalise_rows(j->a, j->train->features, j->train->count, j->width);
    normalise_rows(j->b, j->test->features, j->test->count, j->width);
    kd_parallel_for(threads, (j->test->count + BLOCK - 1) / BLOCK, classify_block, j);
    for (size_t q = 0; q < j->n_k; q++)
        score(j, q, &results[q], predictions);
    return KD_OK;
}

kd_status kd_knn(const kd_knn_data *train, const kd_knn_data *test, size_t width, size_t classes, const int *k, size_t n_k, double temperature, int threads,
                 kd_knn_result *results, int32_t *predictions, kd_err *err) {
    job j = {.train = train, .test = test, .width = width, .classes = classes, .k = k, .n_k = n_k, .temperature = temperature};
    for (size_t q = 0; q < n_k; q++) {
        if (k[q] < 1 || k[q] > KD_KNN_MAX_K || (size_t)k[q] > train->count)
            return kd_fail(err, KD_EUSAGE, "--k %d: must be from 1 to %d and at most the %zu training images", k[q], KD_KNN_MAX_K, train->count);
        if (k[q] > j.k_max)
            j.k_max = k[q];
    }
    kd_status status = run(&j, threads, results, predictions, err);
    kd_free(j.a);
    kd_free(j.b);
    kd_free(j.top);
    kd_free(j.votes);
    kd_free(j.nearest);
    return status;
}

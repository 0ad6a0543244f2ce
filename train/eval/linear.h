/* Linear: a linear classifier trained by SGD on frozen features: DINOv2's linear probe (dinov2/eval/linear.py) adapted to features that are computed once. Labelled "linear-cached", because the
 * original augments its training images anew in every step (crops, flips) and these are the eval transform's; its numbers are lower by what augmentation gives.
 *
 * As there: 13 learning rates, each an own head W x + b, trained in parallel on the same batches; weights begin as N(0, 0.01), biases 0; cross entropy; SGD with momentum 0.9, without weight decay;
 * rate(t) = learning rate * batch / 256 * (1 + cos(pi t / iterations)) / 2; 12,500 iterations of batches from an endless stream of shuffled epochs; in f32. One of its four kinds of features: the
 * output of the last block.
 *
 * Which rate counts: DINOv2 reports the best on the set that it reports on, which flatters. Both are given: `best` is that one, `chosen` was chosen without the test set, by heads that nine tenths
 * of the training set trained and the held-out tenth (kd_parts) measured; what is reported of it is the head of that rate that all of the training set trained.
 *
 * Every draw is Philox's: batches by kd_rng_permutation (seed, epoch), weights by (seed, name of the head's weights, feature). Results don't depend on the thread count; a thread has a head. On the
 * host: an iteration costs 4 batch width classes operations for a rate. */
#ifndef KD_TRAIN_LINEAR_H
#define KD_TRAIN_LINEAR_H

#include "train/eval/classifier.h"

enum { KD_LINEAR_RATES = 13, KD_LINEAR_ITERATIONS = 12500, KD_LINEAR_BATCH = 128 }; /* the protocol's; its batch is per GPU (1024 on the 8 of the paper) */
extern const double kd_linear_protocol_rates[KD_LINEAR_RATES];

typedef struct kd_linear_options {
    const double *rate; /* [n_rates] before scaling, ascending, above 0 */
    size_t n_rates;
    int iterations, batch;
    int held_out;       /* train on nine tenths first, to choose: twice the time. With one rate there is nothing to choose */
    uint64_t seed;
    int threads;
    int json;           /* progress as JSON lines */
} kd_linear_options;

/* weights [n_rates][width + 1][kd_product_padded(classes)]: overwritten; row `width` is the bias. Labels from 0 to classes - 1. A head that diverges is left as it is then, with numbers that aren't finite.
 * progress: label of progress lines. KD_ESIGINT, KD_ESIGTERM; KD_EFAIL: no memory. */
kd_status kd_linear_train(float *weights, const kd_knn_data *train, size_t width, size_t classes, const kd_linear_options *options, const char *progress, kd_err *err);

typedef struct kd_linear_head {
    double rate;
    int diverged;         /* its accuracy is 0 */
    double held_out;      /* top-1 on the held-out tenth after training on the others; 0 when options->held_out isn't set */
    kd_shares accuracy;   /* on the test set */
} kd_linear_head;

typedef struct kd_linear_result {
    kd_linear_head *head; /* [n_rates] */
    size_t n_rates, held_out; /* images held out; 0: none */
    int32_t *prediction;  /* [n_rates][test count] classes */
    size_t best, chosen;  /* the smallest rate with the best top-1 on the test set; the one chosen on the held-out tenth (equal to best when there is none) */
    double seconds;       /* wall clock of training */
} kd_linear_result;

/* *result must be zeroed; kd_linear_result_free in any case. KD_EUSAGE: all training images of one class; the causes of kd_parts_make. KD_ENONFINITE: every head diverged. */
kd_status kd_linear(kd_linear_result *result, const kd_knn_data *train, const kd_knn_data *test, size_t width, size_t classes, const kd_linear_options *options, kd_err *err);
void kd_linear_result_free(kd_linear_result *result);

#endif

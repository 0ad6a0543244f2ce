/* Logreg: multinomial logistic regression on frozen features by DINOv2's protocol (dinov2/eval/log_regression.py, which uses cuML). Labelled "logreg": it is no "linear probe" (linear.h).
 *
 * In f64, for N images, the minimum over weights W [classes][width] and biases b [classes] of
 *
 *     C * sum of cross entropies of softmax(W x + b)  +  1/2 |W|^2          (scikit-learn's LogisticRegression(C), cuML's too; the biases aren't penalised)
 *
 * found as the minimum of that divided by C N with L-BFGS (lbfgs.h). Of two classes both libraries fit one vector, the difference of ours: the penalty of ours counts twice, which is the same.
 * C is chosen on a held-out tenth of the training set (kd_parts): a fit on the other nine for each C, the smallest with the best top-1 wins; then a fit on everything with that C.
 *
 * The mean of the training features is taken off first: since the biases aren't penalised the minimum is the same, and it is found in fewer steps. The fits go up in C, each beginning where the
 * last ended: the function is strictly convex in W, so that the minimum doesn't depend on the start. Results don't depend on the thread count. On the host, whatever device made the features:
 * an evaluation costs 4 N width classes operations. */
#ifndef KD_TRAIN_LOGREG_H
#define KD_TRAIN_LOGREG_H

#include "train/eval/classifier.h"
#include "train/eval/lbfgs.h"

/* DINOv2's values of C: 10^linspace(-6, 5, 45). */
enum { KD_LOGREG_CS = 45 };
void kd_logreg_protocol_cs(double c[KD_LOGREG_CS]);

typedef struct kd_logreg_model {
    size_t width, classes, padded; /* padded: columns of weights (kd_product_padded) */
    double *weights;               /* [width + 1][padded]; the last row is the bias; a class that the training set lacks has the bias -infinity */
    double *mean;                  /* [width]; is taken off the features */
} kd_logreg_model;

/* *m must be zeroed, or the fit to begin with (same width and classes; its mean is replaced). Labels from 0 to classes - 1. *seen: classes that have images; fewer than 2 are KD_EUSAGE. tolerance, max_iterations as in
 * lbfgs.h. KD_ENONFINITE: a feature isn't finite. KD_ESIGINT, KD_ESIGTERM. *m is the caller's to free, also after a failure. */
kd_status kd_logreg_fit(kd_logreg_model *m, const kd_knn_data *train, size_t width, size_t classes, double c, double tolerance, int max_iterations, int threads, kd_lbfgs_result *result,
                        kd_err *err);
/* Logarithms of probabilities up to a constant per image: [test count][classes]. */
kd_status kd_logreg_scores(const kd_logreg_model *m, const kd_knn_data *test, double *scores, int threads, kd_err *err);
void kd_logreg_model_free(kd_logreg_model *m);

typedef struct kd_logreg_options {
    const double *c;     /* [n_c] ascending, above 0; of one nothing is chosen, and nothing held out */
    size_t n_c;
    double tolerance;    /* DINOv2: 1e-12 */
    int max_iterations;  /* DINOv2: 1000 */
    uint64_t seed;       /* of the split */
    int threads;
    int json;            /* progress as JSON lines */
} kd_logreg_options;

typedef struct kd_logreg_try {
    double c, top1; /* on the held-out tenth */
    kd_lbfgs_result fit;
} kd_logreg_try;

typedef struct kd_logreg_result {
    kd_logreg_try *tried;   /* [n_c]; NULL when nothing was chosen */
    size_t n_c, held_out;
    double c;               /* the chosen one */
    kd_lbfgs_result fit;    /* on all of the training set */
    kd_shares accuracy;     /* on the test set */
    int32_t *prediction;    /* [test count] classes */
    double seconds;         /* wall clock of all fits */
} kd_logreg_result;

/* *result must be zeroed; kd_logreg_result_free in any case. Classes that the nine tenths lack are never predicted by the fits that choose. The causes of kd_parts_make and kd_logreg_fit. */
kd_status kd_logreg(kd_logreg_result *result, const kd_knn_data *train, const kd_knn_data *test, size_t width, size_t classes, const kd_logreg_options *options, kd_err *err);
void kd_logreg_result_free(kd_logreg_result *result);

#endif

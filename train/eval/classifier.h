/* Classifier: what the linear classifiers on frozen features (logreg.h, linear.h) have in common: the part of the training set that chooses their hyperparameters, and the classes that scores give. Accuracy itself is counted in accuracy.h. */
#ifndef KD_TRAIN_CLASSIFIER_H
#define KD_TRAIN_CLASSIFIER_H

#include "train/eval/knn.h"

enum { KD_TOP = 5 };

/* A training set in two parts: nine tenths that fit, and a held-out tenth (count / 10 images) that chooses. Each image draws 64 bits from Philox (seed, its index, KD_RNG_SPLIT), first word high;
 * those with the smallest are held out, so that a split is a function of seed and count alone. In each part images keep their order. */
typedef struct kd_parts {
    kd_knn_data fit, choose;
    size_t *index;     /* [count]: which images they are, those of `fit` first */
    size_t lacking;    /* classes that have no image in `fit`; warned of */
    float *features;   /* what fit and choose point into */
    int32_t *label;
} kd_parts;
/* *p must be zeroed; kd_parts_free in any case. KD_EUSAGE: fewer than 10 images. */
kd_status kd_parts_make(kd_parts *p, const kd_knn_data *train, size_t width, size_t classes, uint64_t seed, kd_err *err);
void kd_parts_free(kd_parts *p);

/* The KD_TOP classes of highest score, best first; of equal scores the lower class; -2 where there are fewer classes. A score of -infinity (a class that can't be) is never among them. */
void kd_top_classes(int32_t top[KD_TOP], const double *score, size_t classes);

/* Shares 0..1 of the images whose label is the first, or among the KD_TOP, of top [count][KD_TOP]; label -1 (a class that the training set lacks) is wrong. count >= 1. */
typedef struct kd_shares {
    double top1, top5;
} kd_shares;
kd_shares kd_top_shares(const int32_t *top, const int32_t *label, size_t count);

#endif

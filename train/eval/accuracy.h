/* Accuracy: what predicted classes are worth, over all test images and class by class. Shared by the protocols that predict classes (knn, logreg, linear). A protocol may have several settings (values of k), each with
 * predictions of its own.
 *
 *     const kd_setting setting[] = {{"k10", p}, {"k20", p + n}};
 *     KD_TRY(kd_accuracy_count(&a, &train, &test, &classes, setting, 2, err));
 *     ... kd_accuracy_mean(&a, 0), kd_wilson(a.right[0], a.test) ...
 *     KD_TRY(kd_accuracy_write(&a, "classes.csv", err));
 *     kd_accuracy_free(&a); */
#ifndef KD_TRAIN_EVAL_ACCURACY_H
#define KD_TRAIN_EVAL_ACCURACY_H

#include "train/eval/labelled.h"

typedef struct kd_interval {
    double low, high;
} kd_interval;
/* Wilson's 95 % interval of a share of which `right` of n were seen (Wilson 1927; z = 1.959964). n = 0: everything, [0,1]. It says how far chance in the choice of n test images may have moved the share; it
 * knows nothing of other training images or other seeds. */
kd_interval kd_wilson(size_t right, size_t n);

typedef struct kd_setting {
    const char *name;           /* part of a column's name: "k10" */
    const int32_t *prediction;  /* [test images] index in classes */
} kd_setting;

typedef struct kd_class_accuracy {
    const char *name;   /* "": test images in no class; borrowed from the sets */
    size_t train, test; /* images */
    size_t *right;      /* [settings] test images that were predicted right */
} kd_class_accuracy;

typedef struct kd_accuracy {
    kd_class_accuracy *row; /* [rows]: the training set's classes in their order, then the test set's own, as they come, which nothing predicts */
    size_t rows, classes;   /* the first `classes` are the training set's */
    size_t test;            /* images */
    size_t *right;          /* [settings] of all test images; its block holds the rows' too */
    const kd_setting *setting;
    size_t settings;
} kd_accuracy;

/* Sets, classes and settings are borrowed for the life of a. KD_EFAIL: memory. */
kd_status kd_accuracy_count(kd_accuracy *a, const kd_labelled *train, const kd_labelled *test, const kd_classes *classes, const kd_setting *setting, size_t settings, kd_err *err);
void kd_accuracy_free(kd_accuracy *a); /* accepts a zeroed one */
/* Mean over the classes with test images of the share that was predicted right (scikit-learn's balanced accuracy): every class counts alike, however many images it has. */
double kd_accuracy_mean(const kd_accuracy *a, size_t setting);
/* Classes of the training set with fewer than n training images. */
size_t kd_accuracy_below(const kd_accuracy *a, size_t n);
/* Fewest, median (of an even number the lower) and most training or test images of the classes that have any. */
typedef struct kd_spread {
    size_t least, median, most;
} kd_spread;
kd_status kd_accuracy_spread(const kd_accuracy *a, int of_test, kd_spread *spread, kd_err *err);

/* CSV: class,train,test, and for each setting correct_NAME,top1_NAME (empty for a class without test images). The file is replaced as a whole. Errors as kd_io_write_atomic. */
kd_status kd_accuracy_write(const kd_accuracy *a, const char *path, kd_err *err);
/* CSV: path,label, and for each setting the predicted class, in a column of the setting's name; a line for each test image, in path order. */
kd_status kd_predictions_write(const char *path, const kd_labelled *test, const kd_classes *classes, const kd_setting *setting, size_t settings, kd_err *err);

#endif

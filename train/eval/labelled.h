/* Labelled: a network's features of labelled images, and the classes that they are of. What every protocol with labels works on (k-NN, logistic regression, linear), in kd-eval and in kd-train's checks.
 *
 *     const kd_label_files from = {.train = "train.csv", .test = "test"};
 *     KD_TRY(kd_labelled_read(&train, &test, &classes, &network, &from, 1u << KD_TAP_POOLED, err));
 *     ... train.features.values[KD_TAP_POOLED] [train.features.count][width], train.label[i] ... classes.name[train.label[i]]
 *     kd_labelled_free(&train); kd_labelled_free(&test); kd_classes_free(&classes); */
#ifndef KD_TRAIN_EVAL_LABELLED_H
#define KD_TRAIN_EVAL_LABELLED_H

#include "train/eval/features.h"
#include "train/eval/label_source.h"

/* Where the labelled images are; sources as label_source.h has them. */
typedef struct kd_label_files {
    const char *train, *test;
    const char *images;  /* of a source that is a cache; NULL otherwise */
    kd_list_format list; /* of images */
} kd_label_files;

enum { KD_DIGEST_TEXT = 65 };

typedef struct kd_labelled {
    kd_feature_set features;  /* skipped: files that couldn't be read, and images of a cache that aren't there as they were */
    int32_t *label;           /* [features.count] index in classes; -1: a class that the training set lacks, or none */
    const char **name;        /* [features.count] the class as the source has it; NULL: none. Borrowed from source */
    char digest[KD_DIGEST_TEXT]; /* kd_labels_digest of the images that were read */
    size_t shared;            /* of a test set: images that are training images too, by their bytes; warned of */
    kd_label_source source;   /* its data moves into features when they are computed */
} kd_labelled;

/* Of the training images that were read, sorted by name (bytes). */
typedef struct kd_classes {
    char **name;
    size_t count;
} kd_classes;

/* In two steps, so that counts can be checked before hours of features: opens both sources (train->source.data.count images), then computes features (taps: bit i = kd_tap i) and labels. Test images of a class
 * that the training set lacks are warned of and get -1. KD_EUSAGE: a training image in no class folder, named; KD_EMISMATCH: an image of a cache whose bytes aren't those that the cache knows. Otherwise the
 * causes of kd_label_source_open and kd_features_run. After a failure of either nothing needs to be freed. threads: of kd_label_source_open. */
kd_status kd_labelled_open(kd_labelled *train, kd_labelled *test, const kd_label_files *from, int threads, kd_err *err);
kd_status kd_labelled_run(kd_labelled *train, kd_labelled *test, kd_classes *classes, const kd_network *x, const kd_label_files *from, unsigned taps, kd_err *err);
/* Both. */
kd_status kd_labelled_read(kd_labelled *train, kd_labelled *test, kd_classes *classes, const kd_network *x, const kd_label_files *from, unsigned taps, kd_err *err);
void kd_labelled_free(kd_labelled *l); /* accepts a zeroed one */
void kd_classes_free(kd_classes *c);   /* accepts a zeroed one */

/* The same errors as far as names tell, without reading a picture: before hours of training. */
typedef struct kd_label_counts {
    size_t classes, train, test;
} kd_label_counts;
kd_status kd_labelled_check(kd_label_counts *counts, const kd_label_files *from, int threads, kd_err *err);

/* What set of images this is, whatever their order, names and folders: SHA-256, in hex, of the entries [id, 16 bytes][class, its bytes][0], sorted by id and then class. label may be NULL (images without classes),
 * and so may a label be: their class is "". */
kd_status kd_labels_digest(char out[KD_DIGEST_TEXT], const kd_hash128 *id, const char *const *label, size_t count, kd_err *err);

#endif

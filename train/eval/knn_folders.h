/* k-NN over folders: a network's features tried on labelled images in class folders, as kd-eval knn and the checks within kd-train do. A class is the first folder of an image's relative path
 * (torchvision's ImageFolder); in a tar whose images lie in no folder it is the tar's name.
 *
 *     const int k[2] = {10, 20};  kd_knn_result r[2];  kd_knn_sets sets;
 *     KD_TRY(kd_knn_folders(&network, "train", "test", KD_TAP_POOLED, k, 2, r, &sets, err)); */
#ifndef KD_TRAIN_KNN_FOLDERS_H
#define KD_TRAIN_KNN_FOLDERS_H

#include "train/eval/features.h"
#include "train/eval/knn.h"

typedef struct kd_knn_sets {
    size_t classes;                     /* of the training folder */
    size_t train, test;                 /* images that could be read (kd_knn_folders_check: that are there) */
    size_t train_skipped, test_skipped; /* images that couldn't; warned of one by one */
} kd_knn_sets;

/* results[i] for k[i]; temperature and ties as in knn.h. Test images of a class that the training folder lacks count as wrong, with a warning. KD_EUSAGE: an image of `train` in no class
 * folder; fewer training images than k. Otherwise the causes of kd_features_run. */
kd_status kd_knn_folders(const kd_network *x, const char *train, const char *test, kd_tap tap, const int *k, size_t n_k, kd_knn_result *results, kd_knn_sets *sets, kd_err *err);
/* The same errors as far as names tell, without reading an image: before hours of training. */
kd_status kd_knn_folders_check(const char *train, const char *test, int k, kd_knn_sets *sets, kd_err *err);

#endif

/* Probe: k-NN on labelled images (--knn-train, --knn-test) with a student's present weights, now and then during training. It borrows the student's validation program, so the number is what
 * kd-eval knn gives for an export of this moment at the same sizes, and no bit of the training changes.
 *
 *     KD_TRY(kd_probe_check(config, threads, err));                              // before the first step
 *     if (kd_probe_is_due(&setup, epoch)) KD_TRY(kd_probe_knn(&setup, student, results, err)); */
#ifndef KD_TRAIN_PROBE_H
#define KD_TRAIN_PROBE_H

#include "train/eval/knn.h"
#include "train/setup.h"

enum { KD_PROBE_KS = 2 };
extern const int kd_probe_k[KD_PROBE_KS]; /* 10, 20 */

/* So that a wrong folder is said before hours of training: the causes of kd_labelled_check, and KD_EUSAGE for too few training images; says through kd_log how many images and classes there are. Nothing without
 * labelled images. threads: of kd_label_source_open. */
kd_status kd_probe_check(const kd_train_config *c, int threads, kd_err *err);
/* Whether there is one after this epoch (1 = the first): every --knn-every epochs and after the last, when there are labelled images. */
int kd_probe_is_due(const kd_setup *setup, int64_t epoch);
/* Pooled features of the eval view, at the size of the cache's views and reduced as the student sees them. Images that can't be read are left out with a warning. The causes of kd_labelled_read and kd_knn. */
kd_status kd_probe_knn(const kd_setup *setup, const kd_student *student, kd_knn_result results[KD_PROBE_KS], kd_err *err);

#endif

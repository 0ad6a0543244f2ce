/* Command classifier: what kd-eval logreg and kd-eval linear share: labelled features that are fit to train on, lists of numbers, and the report of predictions. */
#ifndef KD_TRAIN_COMMAND_CLASSIFIER_H
#define KD_TRAIN_COMMAND_CLASSIFIER_H

#include "train/eval/accuracy.h"
#include "train/eval/command.h"
#include "train/eval/knn.h"

/* Which feature, and files beside the result: options for a config T with a member `output` (kd_classifier_output). */
typedef struct kd_classifier_output {
    const char *feature, *per_class, *predictions;
} kd_classifier_output;
#define KD_EVAL_CLASSIFIER_OPTIONS(T)                                                                                                                                              \
    KD_OPTION_CHOICE(T, output.feature, "feature", "pooled|cls", "pooled",                                                                                                         \
                     "what is classified: the library's pooled feature (a ViT's class token, a CNN's average), or the class token"),                                               \
    KD_OPTION_STRING(T, output.per_class, "per-class", "FILE.csv", NULL, 0, "also write a table of classes: images, right answers and top-1"),                                     \
    KD_OPTION_STRING(T, output.predictions, "predictions", "FILE.csv", NULL, 0, "also write the predicted class of every test image")

typedef struct kd_classifier_sets {
    kd_labelled train, test;
    kd_classes classes;
    kd_knn_data train_data, test_data; /* of the feature; borrowed from train and test */
    size_t width;
} kd_classifier_sets;

/* Also looks whether the output files can be written, before the features. KD_ENONFINITE: a feature isn't finite, with its image. Otherwise the causes of kd_labelled_read. kd_classifier_sets_free in any case (*s zeroed). */
kd_status kd_classifier_sets_read(kd_classifier_sets *s, const kd_extractor *x, const kd_label_files *files, const kd_classifier_output *output, kd_err *err);
void kd_classifier_sets_free(kd_classifier_sets *s);
/* KD_ESKIPPED when images of either set couldn't be read. */
kd_status kd_classifier_sets_skipped(const kd_classifier_sets *s, const kd_label_files *files, kd_err *err);

/* "A,B,C": up to `most` finite numbers above 0, ascending. option: its name, for sentences. KD_EUSAGE otherwise. */
kd_status kd_classifier_numbers(const char *text, const char *option, double *out, size_t most, size_t *n, kd_err *err);

/* {"top1", "top1_interval", "top5", "top5_interval", "mean_class_top1"} of a setting of a; top5 is a share. */
json_t *kd_classifier_figures(const kd_accuracy *a, size_t setting, double top5);
/* The same as text: a line with `label` in front. */
void kd_classifier_print(const char *label, const json_t *figures);
/* Counts settings (into a, which is the caller's to free) and writes the files that were asked for. */
kd_status kd_classifier_count(kd_accuracy *a, const kd_classifier_sets *s, const kd_setting *setting, size_t settings, const kd_classifier_output *output, kd_err *err);

#endif

#include "train/eval/command_classifier.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/io.h"

static kd_status check_finite(const kd_labelled *l, kd_tap tap, kd_err *err) {
    const kd_feature_set *f = &l->features;
    for (size_t i = 0; i < f->count; i++)
        for (size_t c = 0; c < f->width; c++)
            if (!isfinite(f->values[tap][i * f->width + c]))
                return kd_fail(err, KD_ENONFINITE, "%s: feature %zu of %zu is %g: its network's output isn't finite, so nothing can be trained on it; check the weights", f->data.file[f->file[i]].rel, c,
                               f->width, (double)f->values[tap][i * f->width + c]);
    return KD_OK;
}

kd_status kd_classifier_sets_read(kd_classifier_sets *s, const kd_extractor *x, const kd_label_files *files, const kd_classifier_output *output, kd_err *err) {
    const kd_tap tap = strcmp(output->feature, "cls") == 0 ? KD_TAP_CLS : KD_TAP_POOLED;
    if (output->per_class != NULL)
        KD_TRY(kd_io_check_target(output->per_class, err));
    if (output->predictions != NULL)
        KD_TRY(kd_io_check_target(output->predictions, err));
    KD_TRY(kd_labelled_read(&s->train, &s->test, &s->classes, kd_extractor_network(x), files, 1u << tap, err));
    KD_TRY(check_finite(&s->train, tap, err));
    KD_TRY(check_finite(&s->test, tap, err));
    s->train_data = (kd_knn_data){s->train.features.values[tap], s->train.label, s->train.features.count};
    s->test_data = (kd_knn_data){s->test.features.values[tap], s->test.label, s->test.features.count};
    s->width = s->train.features.width;
    return KD_OK;
}

void kd_classifier_sets_free(kd_classifier_sets *s) {
    kd_labelled_free(&s->train);
    kd_labelled_free(&s->test);
    kd_classes_free(&s->classes);
}

kd_status kd_classifier_sets_skipped(const kd_classifier_sets *s, const kd_label_files *files, kd_err *err) {
    KD_TRY(kd_eval_skipped(s->train.features.skipped, s->train.features.count, files->train, err));
    return kd_eval_skipped(s->test.features.skipped, s->test.features.count, files->test, err);
}

kd_status kd_classifier_numbers(const char *text, const char *option, double *out, size_t most, size_t *n, kd_err *err) {
    *n = 0;
    for (const char *p = text; *n < most; p++) {
        char *end = NULL;
        double v = strtod(p, &end);
        if (end == p || !isfinite(v) || !(v > (*n > 0 ? out[*n - 1] : 0)) || (*end != ',' && *end != '\0'))
            break;
        out[(*n)++] = v;
        if (*end == '\0')
            return KD_OK;
        p = end;
    }
    return kd_fail(err, KD_EUSAGE, "--%s %s: expected at most %zu numbers above 0, the smallest first, separated by commas, such as 0.01,0.1,1", option, text, most);
}

static json_t *interval(size_t right, size_t n) {
    kd_interval i = kd_wilson(right, n);
    return json_pack("[f,f]", i.low, i.high);
}

json_t *kd_classifier_figures(const kd_accuracy *a, size_t setting, double top5) {
    return json_pack("{s:f, s:o, s:f, s:o, s:f}", "top1", (double)a->right[setting] / (double)a->test, "top1_interval", interval(a->right[setting], a->test), "top5", top5, "top5_interval",
                     interval((size_t)(top5 * (double)a->test + 0.5), a->test), "mean_class_top1", kd_accuracy_mean(a, setting));
}

static double percent(const json_t *figures, const char *key, size_t at) {
    const json_t *v = json_object_get(figures, key);
    return 100 * json_real_value(json_is_array(v) ? json_array_get(v, at) : v);
}

void kd_classifier_print(const char *label, const json_t *f) {
    printf("%stop-1 %.2f %% (95 %% interval %.2f to %.2f), top-5 %.2f %% (%.2f to %.2f), mean of classes %.2f %%\n", label, percent(f, "top1", 0), percent(f, "top1_interval", 0),
           percent(f, "top1_interval", 1), percent(f, "top5", 0), percent(f, "top5_interval", 0), percent(f, "top5_interval", 1), percent(f, "mean_class_top1", 0));
}

kd_status kd_classifier_count(kd_accuracy *a, const kd_classifier_sets *s, const kd_setting *setting, size_t settings, const kd_classifier_output *output, kd_err *err) {
    KD_TRY(kd_accuracy_count(a, &s->train, &s->test, &s->classes, setting, settings, err));
    if (output->per_class != NULL)
        KD_TRY(kd_accuracy_write(a, output->per_class, err));
    return output->predictions != NULL ? kd_predictions_write(output->predictions, &s->test, &s->classes, setting, settings, err) : KD_OK;
}

#include "train/eval/accuracy.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/csv.h"
#include "common/base/io.h"
#include "common/base/mem.h"

kd_interval kd_wilson(size_t right, size_t n) {
    const double z = 1.959963984540054, z2 = z * z;
    if (n == 0)
        return (kd_interval){0, 1};
    double p = (double)right / (double)n, over = 1 / (1 + z2 / (double)n);
    double centre = over * (p + z2 / (2 * (double)n)), half = over * z * sqrt(p * (1 - p) / (double)n + z2 / (4 * (double)n * (double)n));
    return (kd_interval){right == 0 ? 0 : centre - half, right == n ? 1 : centre + half};
}

/* ---- counting ---- */

/* Row of a class that the training set lacks; images of a class come together, so the newest is tried first. */
static kd_class_accuracy *unknown_row(kd_accuracy *a, const char *name) {
    for (size_t i = a->rows; i-- > a->classes;)
        if (a->row[i].name == name || strcmp(a->row[i].name, name) == 0)
            return &a->row[i];
    a->row[a->rows] = (kd_class_accuracy){.name = name};
    return &a->row[a->rows++];
}

/* A row for each class that can turn up: those of the test set are at most as many as its images of no known class. */
static kd_status make_rows(kd_accuracy *a, const kd_labelled *train, const kd_labelled *test, const kd_classes *classes, kd_err *err) {
    size_t unknown = 0;
    for (size_t i = 0; i < test->features.count; i++)
        unknown += test->label[i] < 0;
    KD_TRY(kd_alloc_array(&a->row, classes->count + unknown, sizeof *a->row, err));
    a->classes = a->rows = classes->count;
    for (size_t c = 0; c < classes->count; c++)
        a->row[c].name = classes->name[c];
    for (size_t i = 0; i < train->features.count; i++)
        a->row[train->label[i]].train++;
    for (size_t i = 0; i < test->features.count; i++) {
        int32_t c = test->label[i];
        kd_class_accuracy *row = c >= 0 ? &a->row[c] : unknown_row(a, test->name[i] != NULL ? test->name[i] : "");
        row->test++;
    }
    KD_TRY(kd_alloc_array(&a->right, (a->rows + 1) * a->settings, sizeof *a->right, err));
    for (size_t r = 0; r < a->rows; r++)
        a->row[r].right = a->right + (r + 1) * a->settings;
    return KD_OK;
}

kd_status kd_accuracy_count(kd_accuracy *a, const kd_labelled *train, const kd_labelled *test, const kd_classes *classes, const kd_setting *setting, size_t settings, kd_err *err) {
    *a = (kd_accuracy){.setting = setting, .settings = settings, .test = test->features.count};
    kd_status status = make_rows(a, train, test, classes, err);
    if (status != KD_OK) {
        kd_accuracy_free(a);
        return status;
    }
    for (size_t s = 0; s < settings; s++)
        for (size_t i = 0; i < a->test; i++)
            if (test->label[i] >= 0 && setting[s].prediction[i] == test->label[i]) {
                a->right[s]++;
                a->row[test->label[i]].right[s]++;
            }
    return KD_OK;
}

void kd_accuracy_free(kd_accuracy *a) {
    kd_free(a->row);
    kd_free(a->right);
    *a = (kd_accuracy){0};
}

double kd_accuracy_mean(const kd_accuracy *a, size_t setting) {
    double sum = 0;
    size_t n = 0;
    for (size_t r = 0; r < a->rows; r++)
        if (a->row[r].test > 0) {
            sum += (double)a->row[r].right[setting] / (double)a->row[r].test;
            n++;
        }
    return n > 0 ? sum / (double)n : 0;
}

size_t kd_accuracy_below(const kd_accuracy *a, size_t n) {
    size_t below = 0;
    for (size_t c = 0; c < a->classes; c++)
        below += a->row[c].train < n;
    return below;
}

static int ascending(const void *a, const void *b) {
    size_t x = *(const size_t *)a, y = *(const size_t *)b;
    return (x > y) - (x < y);
}

kd_status kd_accuracy_spread(const kd_accuracy *a, int of_test, kd_spread *spread, kd_err *err) {
    size_t *count, n = 0;
    KD_TRY(kd_alloc_array(&count, a->rows, sizeof *count, err));
    for (size_t r = 0; r < a->rows; r++) {
        size_t images = of_test ? a->row[r].test : a->row[r].train;
        if (images > 0)
            count[n++] = images;
    }
    qsort(count, n, sizeof *count, ascending);
    *spread = n > 0 ? (kd_spread){count[0], count[(n - 1) / 2], count[n - 1]} : (kd_spread){0};
    kd_free(count);
    return KD_OK;
}

/* ---- tables ---- */

static kd_status write_table(kd_text *t, const char *path, kd_err *err) {
    kd_status status = kd_text_check(t, path, err);
    if (status == KD_OK)
        status = kd_io_write_atomic(path, t->at, t->size, err);
    kd_text_free(t);
    return status;
}

kd_status kd_accuracy_write(const kd_accuracy *a, const char *path, kd_err *err) {
    kd_text t = {0};
    kd_text_printf(&t, "class,train,test");
    for (size_t s = 0; s < a->settings; s++)
        kd_text_printf(&t, ",correct_%s,top1_%s", a->setting[s].name, a->setting[s].name);
    kd_csv_end(&t);
    for (size_t r = 0; r < a->rows; r++) {
        const kd_class_accuracy *row = &a->row[r];
        kd_csv_put(&t, row->name);
        kd_csv_printf(&t, "%zu,%zu", row->train, row->test);
        for (size_t s = 0; s < a->settings; s++) {
            kd_csv_printf(&t, "%zu", row->right[s]);
            if (row->test > 0)
                kd_csv_printf(&t, "%.6f", (double)row->right[s] / (double)row->test);
            else
                kd_csv_printf(&t, "%s", "");
        }
        kd_csv_end(&t);
    }
    return write_table(&t, path, err);
}

kd_status kd_predictions_write(const char *path, const kd_labelled *test, const kd_classes *classes, const kd_setting *setting, size_t settings, kd_err *err) {
    const kd_feature_set *f = &test->features;
    kd_text t = {0};
    kd_text_printf(&t, "path,label");
    for (size_t s = 0; s < settings; s++)
        kd_text_printf(&t, ",%s", setting[s].name);
    kd_csv_end(&t);
    for (size_t i = 0; i < f->count; i++) {
        kd_csv_put(&t, f->data.file[f->file[i]].rel);
        kd_csv_put(&t, test->name[i] != NULL ? test->name[i] : "");
        for (size_t s = 0; s < settings; s++)
            kd_csv_put(&t, classes->name[setting[s].prediction[i]]);
        kd_csv_end(&t);
    }
    return write_table(&t, path, err);
}

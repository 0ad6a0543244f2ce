#include "train/eval/knn_folders.h"

#include <string.h>

#include "common/base/log.h"
#include "common/base/mem.h"

/* Some files of a data set, by index. */
typedef struct files {
    const kd_dataset *data;
    const size_t *file; /* [count]; NULL: all, in order */
    size_t count;
} files;

static size_t file_of(const files *f, size_t i) {
    return f->file != NULL ? f->file[i] : i;
}

/* Borrowed from a data set's names. */
typedef struct class_name {
    const char *at;
    size_t size; /* 0: no class */
} class_name;

static class_name class_of(const files *set, size_t i) {
    const kd_data_file *f = &set->data->file[file_of(set, i)];
    const char *inner = kd_dataset_inner_name(set->data, file_of(set, i)), *slash;
    while (strncmp(inner, "./", 2) == 0)
        inner += 2;
    slash = strchr(inner, '/');
    if (slash != NULL || f->tar == 0)
        return (class_name){inner, slash != NULL ? (size_t)(slash - inner) : 0};
    size_t n = set->data->tar[f->tar - 1].rel_length - strlen(".tar/"), at = n;
    while (at > 0 && f->rel[at - 1] != '/')
        at--;
    return (class_name){f->rel + at, n - at};
}

typedef struct labels {
    int32_t *train, *test; /* [count] of each; -1: a class that the training folder lacks */
    class_name *name;      /* [classes] */
    size_t classes;
} labels;

/* The newest first, because paths are sorted. -1: none. */
static int32_t find_class(const labels *l, class_name wanted) {
    for (size_t c = l->classes; wanted.size > 0 && c-- > 0;)
        if (l->name[c].size == wanted.size && memcmp(l->name[c].at, wanted.at, wanted.size) == 0)
            return (int32_t)c;
    return -1;
}

static kd_status label(labels *l, const files *train, const files *test, const char *train_folder, kd_err *err) {
    size_t unknown = 0;
    KD_TRY(kd_alloc_array(&l->train, train->count, sizeof *l->train, err));
    KD_TRY(kd_alloc_array(&l->test, test->count, sizeof *l->test, err));
    KD_TRY(kd_alloc_array(&l->name, train->count, sizeof *l->name, err));
    for (size_t i = 0; i < train->count; i++) {
        class_name mine = class_of(train, i);
        if (mine.size == 0)
            return kd_fail(err, KD_EUSAGE, "%s/%s: the image lies in no class folder; expected %s/CLASS/image.jpg", train_folder, train->data->file[file_of(train, i)].rel, train_folder);
        l->train[i] = find_class(l, mine);
        if (l->train[i] >= 0)
            continue;
        l->train[i] = (int32_t)l->classes;
        l->name[l->classes++] = mine;
    }
    for (size_t i = 0; i < test->count; i++) {
        l->test[i] = find_class(l, class_of(test, i));
        unknown += l->test[i] < 0;
    }
    if (unknown > 0)
        kd_log(KD_LOG_WARN, "%zu test images have a class that the training folder lacks; they count as wrong", unknown);
    return KD_OK;
}

static void free_labels(labels *l) {
    kd_free(l->train);
    kd_free(l->test);
    kd_free(l->name);
}

kd_status kd_knn_folders(const kd_network *x, const char *train, const char *test, kd_tap tap, const int *k, size_t n_k, kd_knn_result *results, kd_knn_sets *sets, kd_err *err) {
    kd_feature_set a = {0}, b = {0};
    labels l = {0};
    kd_status status = kd_features_run(x, train, KD_LIST_LINES, 1u << tap, &a, err);
    if (status == KD_OK)
        status = kd_features_run(x, test, KD_LIST_LINES, 1u << tap, &b, err);
    if (status == KD_OK)
        status = label(&l, &(files){&a.data, a.file, a.count}, &(files){&b.data, b.file, b.count}, train, err);
    if (status == KD_OK)
        status = kd_knn(&(kd_knn_data){a.values[tap], l.train, a.count}, &(kd_knn_data){b.values[tap], l.test, b.count}, a.width, l.classes, k, n_k, x->threads, results, NULL, err);
    *sets = (kd_knn_sets){.classes = l.classes, .train = a.count, .test = b.count, .train_skipped = a.skipped, .test_skipped = b.skipped};
    free_labels(&l);
    kd_feature_set_free(&a);
    kd_feature_set_free(&b);
    return status;
}

kd_status kd_knn_folders_check(const char *train, const char *test, int k, kd_knn_sets *sets, kd_err *err) {
    kd_dataset a = {0}, b = {0};
    labels l = {0};
    kd_status status = kd_dataset_open(&a, train, KD_LIST_LINES, err);
    if (status == KD_OK)
        status = kd_dataset_open(&b, test, KD_LIST_LINES, err);
    if (status == KD_OK)
        status = label(&l, &(files){&a, NULL, a.count}, &(files){&b, NULL, b.count}, train, err);
    if (status == KD_OK && a.count < (size_t)k)
        status = kd_fail(err, KD_EUSAGE, "%s: has %zu images and k-NN looks at %d neighbours; give a larger folder", train, a.count, k);
    *sets = (kd_knn_sets){.classes = l.classes, .train = a.count, .test = b.count};
    free_labels(&l);
    kd_dataset_close(&b);
    kd_dataset_close(&a);
    return status;
}

#include "train/eval/labelled.h"

#include <stdlib.h>
#include <string.h>

#include "common/base/log.h"
#include "common/base/mem.h"

/* ---- digest ---- */

typedef struct entry {
    const kd_hash128 *id;
    const char *label;
} entry;

static int by_id(const void *a, const void *b) {
    const entry *x = a, *y = b;
    int order = memcmp(x->id, y->id, sizeof *x->id);
    return order != 0 ? order : strcmp(x->label, y->label);
}

kd_status kd_labels_digest(char out[KD_DIGEST_TEXT], const kd_hash128 *id, const char *const *label, size_t count, kd_err *err) {
    entry *all;
    KD_TRY(kd_alloc_array(&all, count, sizeof *all, err));
    kd_sha256_ctx *sum = kd_sha256_begin();
    if (sum == NULL) {
        kd_free(all);
        return kd_fail(err, KD_EFAIL, "out of memory for a digest");
    }
    for (size_t i = 0; i < count; i++)
        all[i] = (entry){&id[i], label != NULL && label[i] != NULL ? label[i] : ""};
    qsort(all, count, sizeof *all, by_id);
    for (size_t i = 0; i < count; i++) {
        kd_sha256_update(sum, all[i].id->b, sizeof all[i].id->b);
        kd_sha256_update(sum, all[i].label, strlen(all[i].label) + 1);
    }
    kd_sha256 sha = kd_sha256_final(sum);
    kd_hex(out, sha.b, sizeof sha.b);
    kd_free(all);
    return KD_OK;
}

/* ---- classes ---- */

static int by_name(const void *a, const void *b) {
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

/* Of `count` names, NULLs left out. */
static kd_status find_classes(kd_classes *c, const char *const *name, size_t count, kd_err *err) {
    const char **sorted;
    size_t n = 0;
    KD_TRY(kd_alloc_array(&sorted, count, sizeof *sorted, err));
    for (size_t i = 0; i < count; i++)
        if (name[i] != NULL && (i == 0 || name[i] != name[i - 1])) /* neighbours of one class share their string */
            sorted[n++] = name[i];
    qsort((void *)sorted, n, sizeof *sorted, by_name);
    kd_status status = kd_alloc_array(&c->name, n, sizeof *c->name, err);
    for (size_t i = 0; i < n && status == KD_OK; i++) {
        if (i > 0 && strcmp(sorted[i], sorted[i - 1]) == 0)
            continue;
        c->name[c->count] = kd_strdup(sorted[i]);
        status = c->name[c->count++] != NULL ? KD_OK : kd_fail(err, KD_EFAIL, "out of memory for the names of classes");
    }
    kd_free((void *)sorted);
    return status;
}

static int32_t class_of(const kd_classes *c, const char *name) {
    char **at = name != NULL ? bsearch(&name, c->name, c->count, sizeof *c->name, by_name) : NULL;
    return at != NULL ? (int32_t)(at - c->name) : -1;
}

static void warn_unknown(size_t unknown) {
    if (unknown > 0)
        kd_log(KD_LOG_WARN, "%zu test images have a class that the training images lack; they count as wrong", unknown);
}

void kd_classes_free(kd_classes *c) {
    for (size_t i = 0; i < c->count; i++)
        kd_free(c->name[i]);
    kd_free(c->name);
    *c = (kd_classes){0};
}

/* ---- reading ---- */

/* Labels of the images that could be read, and what a cache knows about them. */
static kd_status take_names(kd_labelled *l, const char *source, kd_err *err) {
    const kd_feature_set *f = &l->features;
    KD_TRY(kd_alloc_array(&l->name, f->count, sizeof *l->name, err));
    KD_TRY(kd_alloc_array(&l->label, f->count, sizeof *l->label, err));
    for (size_t i = 0; i < f->count; i++) {
        size_t file = f->file[i];
        l->name[i] = l->source.label[file];
        if (l->source.id != NULL && memcmp(&l->source.id[file], &f->id[i], sizeof f->id[i]) != 0)
            return kd_fail(err, KD_EMISMATCH, "%s: %s has the size that the cache recorded but other bytes; restore the file that the cache was made from", source, f->data.file[file].rel);
    }
    return kd_labels_digest(l->digest, f->id, l->name, f->count, err);
}

static kd_status read_set(kd_labelled *l, const kd_network *x, const char *source, unsigned taps, kd_err *err) {
    KD_TRY(kd_features_run_over(x, &l->source.data, source, taps, &l->features, err));
    l->features.skipped += l->source.missing;
    return take_names(l, source, err);
}

static void assign(kd_labelled *l, const kd_classes *classes) {
    for (size_t i = 0; i < l->features.count; i++)
        l->label[i] = i > 0 && l->name[i] == l->name[i - 1] ? l->label[i - 1] : class_of(classes, l->name[i]);
}

static int compare_ids(const void *a, const void *b) {
    return memcmp(a, b, sizeof(kd_hash128));
}

static kd_status count_shared(kd_labelled *test, const kd_labelled *train, kd_err *err) {
    kd_hash128 *known;
    size_t n = train->features.count;
    KD_TRY(kd_alloc_array(&known, n, sizeof *known, err));
    memcpy(known, train->features.id, n * sizeof *known);
    qsort(known, n, sizeof *known, compare_ids);
    for (size_t i = 0; i < test->features.count; i++)
        test->shared += bsearch(&test->features.id[i], known, n, sizeof *known, compare_ids) != NULL;
    kd_free(known);
    if (test->shared > 0)
        kd_log(KD_LOG_WARN, "%zu of the %zu test images are training images too (the same bytes): the result is better than it would be on images that are new", test->shared, test->features.count);
    return KD_OK;
}

static kd_status read_both(kd_labelled *train, kd_labelled *test, kd_classes *classes, const kd_network *x, const kd_label_files *from, unsigned taps, kd_err *err) {
    size_t unknown = 0;
    KD_TRY(read_set(train, x, from->train, taps, err));
    KD_TRY(read_set(test, x, from->test, taps, err));
    KD_TRY(find_classes(classes, train->name, train->features.count, err));
    assign(train, classes);
    assign(test, classes);
    for (size_t i = 0; i < test->features.count; i++)
        unknown += test->label[i] < 0;
    warn_unknown(unknown);
    return count_shared(test, train, err);
}

/* Every training image that may be readable needs a class. */
static kd_status open_sources(kd_label_source *train, kd_label_source *test, const kd_label_files *from, int threads, kd_err *err) {
    KD_TRY(kd_label_source_open(train, from->train, from->images, from->list, threads, err));
    for (size_t i = 0; i < train->data.count; i++)
        if (train->label[i] == NULL && train->data.file[i].problem == NULL)
            return kd_fail(err, KD_EUSAGE, "%s: %s lies in no class folder; expected CLASS/image.jpg below it, or a FILE.csv of path,label", from->train, train->data.file[i].rel);
    return kd_label_source_open(test, from->test, from->images, from->list, threads, err);
}

static kd_status both_or_none(kd_labelled *train, kd_labelled *test, kd_status status) {
    if (status != KD_OK) {
        kd_labelled_free(train);
        kd_labelled_free(test);
    }
    return status;
}

kd_status kd_labelled_open(kd_labelled *train, kd_labelled *test, const kd_label_files *from, int threads, kd_err *err) {
    *train = *test = (kd_labelled){0};
    return both_or_none(train, test, open_sources(&train->source, &test->source, from, threads, err));
}

kd_status kd_labelled_run(kd_labelled *train, kd_labelled *test, kd_classes *classes, const kd_network *x, const kd_label_files *from, unsigned taps, kd_err *err) {
    *classes = (kd_classes){0};
    kd_status status = read_both(train, test, classes, x, from, taps, err);
    if (status != KD_OK)
        kd_classes_free(classes);
    return both_or_none(train, test, status);
}

kd_status kd_labelled_read(kd_labelled *train, kd_labelled *test, kd_classes *classes, const kd_network *x, const kd_label_files *from, unsigned taps, kd_err *err) {
    KD_TRY(kd_labelled_open(train, test, from, x->threads, err));
    return kd_labelled_run(train, test, classes, x, from, taps, err);
}

void kd_labelled_free(kd_labelled *l) {
    kd_feature_set_free(&l->features);
    kd_free(l->label);
    kd_free((void *)l->name);
    kd_label_source_close(&l->source);
    *l = (kd_labelled){0};
}

/* ---- checking ---- */

static kd_status count(kd_label_counts *counts, kd_classes *classes, const kd_label_source *train, const kd_label_source *test, kd_err *err) {
    size_t unknown = 0;
    KD_TRY(find_classes(classes, train->label, train->data.count, err));
    for (size_t i = 0; i < test->data.count; i++)
        unknown += class_of(classes, test->label[i]) < 0;
    warn_unknown(unknown);
    *counts = (kd_label_counts){classes->count, train->data.count, test->data.count};
    return KD_OK;
}

kd_status kd_labelled_check(kd_label_counts *counts, const kd_label_files *from, int threads, kd_err *err) {
    kd_labelled train, test;
    kd_classes classes = {0};
    KD_TRY(kd_labelled_open(&train, &test, from, threads, err));
    kd_status status = count(counts, &classes, &train.source, &test.source, err);
    kd_classes_free(&classes);
    kd_labelled_free(&test);
    kd_labelled_free(&train);
    return status;
}

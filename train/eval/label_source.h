/* Label source: which images there are and of which class each is, before a picture is read. First station of evaluation with labels; labelled.h is what commands use. A source is
 *   - a folder, a tar or a list of paths (common/data/dataset.h): the class is the first folder of an image's relative path (torchvision's ImageFolder), in a tar the first folder inside it, or,
 *     where its images lie in no folder, the tar's own name;
 *   - FILE.csv: a line path,label for each image (common/base/csv.h), paths relative to the CSV's folder; a path may name a tar's member, or a tar, all of whose images then are of this class. Without a header a line
 *     has just these two fields. A header names the columns, in any order and among others: path (or file, filename, image, ...) and label (or class, category, target, ...);
 *   - a cache (FILE.kdc, or a folder of shards): its own images, found again among the files of `images` by recorded path or by content. The class is the first folder of the recorded path, or, where paths are
 *     hidden, of the file's.
 *
 *     kd_label_source s;
 *     KD_TRY(kd_label_source_open(&s, "labels.csv", NULL, KD_LIST_LINES, threads, err));
 *     ... s.data.file[i].rel is a picture of a s.label[i] ...
 *     kd_label_source_close(&s); */
#ifndef KD_TRAIN_EVAL_LABEL_SOURCE_H
#define KD_TRAIN_EVAL_LABEL_SOURCE_H

#include "common/data/dataset.h"

typedef struct kd_label_source {
    kd_dataset data;
    const char **label; /* [data.count] class names; NULL: in no class folder. Names that stand side by side and are equal share a string */
    kd_hash128 *id;     /* [data.count] of a cache's images: the ids that it knows them by; else NULL */
    size_t missing;     /* a cache's images that aren't among the files as they were; warned of */
    kd_dataset whole;   /* owns the names of a part */
    struct kd_arena *arena;
} kd_label_source;

/* images, list: where a cache's images are (a source of common/data/dataset.h); may be NULL with others. threads: for hashing files when a cache's images aren't at their recorded paths.
 * KD_EUSAGE: the causes of kd_dataset_open; of a CSV, naming its line: the causes of kd_csv_next, an empty path or label, more or fewer fields than the header or than two, one path with two labels;
 * a cache without `images`. KD_EMISMATCH: none of a cache's images is there. Otherwise the causes of kd_cache_open. *s needs no closing after a failure. */
kd_status kd_label_source_open(kd_label_source *s, const char *source, const char *images, kd_list_format list, int threads, kd_err *err);
void kd_label_source_close(kd_label_source *s); /* accepts a zeroed one */

#endif

/* Kinds: what the files of a data set are, told from the first bytes of a sample. For --dry-run, so that a folder of HEICs is noticed before the run.
 *
 *     kd_kinds k;
 *     KD_TRY(kd_kinds_sample(&k, &data, err));
 *     kd_kinds_log(&k, &data);                // "kinds     990 JPEG, 8 PNG, 2 HEIC picture (of 1281167 files, 1000 looked at)" */
#ifndef KD_PRECOMPUTE_KINDS_H
#define KD_PRECOMPUTE_KINDS_H

#include "common/base/json.h"
#include "common/data/dataset.h"

enum { KD_KINDS_SAMPLE = 1000, KD_KINDS_MAX = 64 };

typedef struct kd_kinds {
    size_t looked_at;
    size_t unread;           /* of these, how many would be skipped: another kind, empty, or not readable at all */
    size_t example;          /* the first of the unread: index in the data set */
    size_t kinds;
    struct {
        const char *name;    /* of kd_image_sniff, or "unreadable file" */
        size_t count;
    } kind[KD_KINDS_MAX];    /* most frequent first */
} kd_kinds;

/* Looks at KD_KINDS_SAMPLE files, evenly spread, or at all when there are fewer. A file that can't be read is counted, not an error. KD_EFAIL: out of memory. */
kd_status kd_kinds_sample(kd_kinds *k, const kd_dataset *data, kd_err *err);
/* A line in the log, and a warning with an example when some would be skipped. */
void kd_kinds_log(const kd_kinds *k, const kd_dataset *data);
json_t *kd_kinds_json(const kd_kinds *k); /* new reference: {"JPEG":990,...} */

#endif

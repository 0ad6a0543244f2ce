/* Skip list: the inputs that a run couldn't use, each with its reason, in a file beside what the run made (X.kdc.skipped.tsv).
 *
 * A line is PATH<TAB>REASON; control characters, and bytes that aren't UTF-8, stand as \n, \t, \r or \xNN. The file replaces an earlier run's as a whole, when the run is finished: one with
 * no lines is removed.
 *
 *     KD_TRY(kd_skip_list_create(&s, "photos.kdc", err));
 *     kd_skip_list_add(s, "a/broken.jpg", "a/broken.jpg is truncated", err);
 *     status = kd_skip_list_finish(s, err);                            // or kd_skip_list_discard(s): an interrupted run
 *
 * Thread rule: one thread. */
#ifndef KD_COMMON_DATA_SKIP_LIST_H
#define KD_COMMON_DATA_SKIP_LIST_H

#include <stdint.h>

#include "common/base/err.h"

typedef struct kd_skip_list kd_skip_list;

/* product: the file that the run makes. Touches nothing yet. */
kd_status kd_skip_list_create(kd_skip_list **out, const char *product, kd_err *err);
const char *kd_skip_list_path(const kd_skip_list *s);
/* KD_EFAIL, KD_ENOSPACE: the list can't be written. */
kd_status kd_skip_list_add(kd_skip_list *s, const char *path, const char *reason, kd_err *err);
/* Puts the file in place, or removes it when nothing was added. Frees s, also after a failure. */
kd_status kd_skip_list_finish(kd_skip_list *s, kd_err *err);
/* Leaves what an earlier run wrote. Accepts NULL. */
void kd_skip_list_discard(kd_skip_list *s);

/* --max-skipped: "3" or "1.5%" of `total` inputs. KD_EUSAGE naming the option. */
kd_status kd_max_skipped_parse(const char *text, uint64_t total, uint64_t *limit, kd_err *err);

#endif

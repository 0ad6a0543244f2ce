/* Verdict: that a file's pages were validated before, remembered in the user's cache directory, so that a large shard opens at once the next time.
 *
 * A verdict is for one file as it is: device, inode, size, times of its last change of content and of state. A file that was changed within the last seconds gets none: another change within the
 * clock's grain would not show. Verdicts lie in $XDG_CACHE_HOME/kdcache/verdicts (~/.cache without it); where there is no such place, or it can't be written, files are validated every time.
 * They are as trustworthy as the user's own files: `kd-cache check` never believes them. Inside cache/ only. Thread rule: no shared state. */
#ifndef KD_CACHE_VERDICT_H
#define KD_CACHE_VERDICT_H

#include "cache/validate.h"

/* kd_lmdb_validate of a sealed file, or the facts of an earlier one. anew: walks the pages whatever is known. Remembers a good result. Errors as kd_lmdb_validate. */
kd_status kd_verdict_validate(const char *path, int anew, kd_lmdb_facts *facts, kd_err *err);

#endif

/* Sealed: what to say when the cache is finished already. A recipe doesn't count views and images, so the same recipe may have been asked for less, or for other images. */
#ifndef KD_PRECOMPUTE_SEALED_H
#define KD_PRECOMPUTE_SEALED_H

#include "common/data/dataset.h"

/* KD_OK: the sealed cache at `path` has `views` views of its images and knows files of `data` (by path and size). Says how many files it doesn't know: duplicates, unreadable
 * ones, or files that were added since. KD_EMISMATCH: fewer views, or none of the files. Otherwise the causes of kd_cache_open. */
kd_status kd_sealed_check(const char *path, const kd_dataset *data, uint32_t views, kd_err *err);

#endif

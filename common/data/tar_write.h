/* Writing tars: plain, of the same bytes whenever the same members are put in: no times, owners or padding beyond what the format asks for. GNU's format, whose long names are bytes of any
 * length; tar, libarchive and Python's tarfile read it.
 *
 *     KD_TRY(kd_tar_create(&t, "photos.tar", err));
 *     status = kd_tar_put(t, "a/1.jpg", bytes, size, err); ...
 *     status = kd_tar_finish(t, err);                                 // or kd_tar_discard(t)
 *
 * Thread rule: one thread. */
#ifndef KD_COMMON_DATA_TAR_WRITE_H
#define KD_COMMON_DATA_TAR_WRITE_H

#include <stdint.h>

#include "common/base/err.h"

typedef struct kd_tar_writer kd_tar_writer;

/* The file appears under its name when it is finished; until then a temporary one lies beside it. */
kd_status kd_tar_create(kd_tar_writer **out, const char *path, kd_err *err);
/* A regular file, mode 0644. KD_EFAIL: size above 8 GiB - 1; writing failed. KD_ENOSPACE. */
kd_status kd_tar_put(kd_tar_writer *t, const char *name, const void *bytes, size_t size, kd_err *err);
uint64_t kd_tar_written(const kd_tar_writer *t); /* bytes so far */
kd_status kd_tar_finish(kd_tar_writer *t, kd_err *err); /* frees t, also after a failure */
void kd_tar_discard(kd_tar_writer *t);                  /* accepts NULL */

#endif

/* Lock: one writer per cache, or for the shards of a folder whose names begin alike (shard_writer.h), refused at once with the holder's name. A lock file where the cache is kept carries
 * "pid N on HOST" and an flock, which the kernel releases however the process ends. Inside cache/ only. */
#ifndef KD_CACHE_LOCK_H
#define KD_CACHE_LOCK_H

#include "common/base/err.h"

typedef struct kd_lock kd_lock;

/* KD_ELOCKED naming pid and host. `what` is the cache that it guards, for the sentence. */
kd_status kd_lock_take(kd_lock **out, const char *path, const char *what, kd_err *err);
void kd_lock_release(kd_lock *l); /* removes the file; accepts NULL */

#endif

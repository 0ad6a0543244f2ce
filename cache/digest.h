/* Digest: what a cache holds, as one number that doesn't depend on how it is stored: not on the order, the shards, the zstd version or level, or the machine.
 *
 * It is the sum modulo 2^256 of the SHA-256 of each entry (as big-endian numbers), so that the digest of a cache is the sum of those of shards without common entries. An entry is the number of
 * its database (one byte: kd_db), its key, and of an image its size, width, height and path; of a view its value; of a record what kd_record_content keeps.
 * It finds accidents and tells equal caches; against an adversary the SHA-256 of the files in signed manifests stands. Inside cache/ only. Thread rule: one thread. */
#ifndef KD_CACHE_DIGEST_H
#define KD_CACHE_DIGEST_H

#include "cache/store_lmdb.h"
#include "common/base/hash.h"

/* Zero-initialise. */
typedef struct kd_digest {
    kd_sha256 sum;
} kd_digest;

/* value: as stored; of a record at least its header. KD_EDAMAGED: it is shorter than its kind's head; `file` names the cache. */
kd_status kd_digest_add(kd_digest *d, kd_db db, kd_bytes key, kd_bytes value, const char *file, kd_err *err);

#endif

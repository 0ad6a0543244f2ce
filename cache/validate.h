/* Validation of an LMDB file's pages before LMDB sees them: LMDB has no checksums and believes every offset that it reads (facts: CVE-2019-16224 and relatives).
 *
 * Walks both meta pages and every branch and leaf page of the free list, the main tree and the databases, of the format that LMDB 0.9 writes on 64-bit Linux
 * with 4096-byte pages: page numbers and kinds, bounds, node sizes and places, ascending keys, extents of large values, depths and totals. Each page may be used once.
 * Large values are not read: their records carry checksums. */
#ifndef KD_CACHE_VALIDATE_H
#define KD_CACHE_VALIDATE_H

#include "cache/store_lmdb.h"

typedef struct kd_lmdb_facts {
    int fresh;               /* nothing was ever committed: no databases */
    uint64_t entries[KD_DBS];
    uint64_t pages;          /* last used page + 1 */
    uint64_t first_value_at; /* file offset of the first value of `meta`; 0 when it has none */
} kd_lmdb_facts;

/* sealed: the file must end with its last page and its databases must be there. KD_EDAMAGED: path, page, what is wrong. Pages that can't be read are KD_EDAMAGED too. */
kd_status kd_lmdb_validate(const char *path, int sealed, kd_lmdb_facts *facts, kd_err *err);
/* The same for bytes in memory. */
kd_status kd_lmdb_validate_bytes(const uint8_t *bytes, uint64_t size, const char *path, int sealed, kd_lmdb_facts *facts, kd_err *err);

#endif

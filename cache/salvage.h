/* Salvage: what can still be read of a damaged cache file, whatever has become of its trees. For kd-cache repair.
 *
 * LMDB isn't asked and no tree is walked: every page of the file is looked at. A leaf page that is sound in itself gives its entries; a record in pages of its own is known by its magic and gives
 * its key itself. Nothing of it is to be believed before its checksum, which covers its key (entry.h, record.h), has been compared: then the value is the one that was written, wherever it was
 * found. The same entry may be found more than once: LMDB leaves older copies of pages behind.
 * Pages that can't be read (I/O error, file that shrinks) are passed over. Inside cache/ only. Thread rule: one thread. */
#ifndef KD_CACHE_SALVAGE_H
#define KD_CACHE_SALVAGE_H

#include "cache/store_lmdb.h"
#include "common/base/io.h"

typedef struct kd_salvage {
    const char *path; /* borrowed */
    kd_map map;
    uint64_t pages, unreadable;
} kd_salvage;

/* A value of `size` bytes at file offset `at`, within the file. key: as stored; of a record what its header says. */
typedef struct kd_salvaged {
    kd_db db;
    kd_bytes key; /* lives during the call */
    uint64_t at;
    size_t size;
} kd_salvaged;
typedef kd_status (*kd_salvage_visit)(void *ctx, const kd_salvaged *item, kd_err *err);

kd_status kd_salvage_open(kd_salvage *s, const char *path, kd_err *err);
void kd_salvage_close(kd_salvage *s);
/* Calls visit for everything that looks like an entry, in the order of the file. Stops at its first failure; KD_ESIGINT, KD_ESIGTERM when interrupted. */
kd_status kd_salvage_scan(kd_salvage *s, kd_salvage_visit visit, void *ctx, kd_err *err);
/* Copies bytes of the file out of the map. KD_EDAMAGED: they lie outside the file or can't be read. */
kd_status kd_salvage_read(const kd_salvage *s, uint64_t at, size_t size, uint8_t *out, kd_err *err);

#endif

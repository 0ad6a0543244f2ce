/* LMDB, behind a small door: an environment with this project's databases. Inside cache/ only; store_lmdb.c is the only file that includes lmdb.h.
 *
 * Errors become sentences here: a full disk (LMDB says EIO) is KD_ENOSPACE, structural trouble KD_EDAMAGED.
 * Files must have passed kd_lmdb_validate before they are opened: LMDB believes what it reads.
 * Thread rule: a writing environment belongs to one thread; read transactions belong to one thread each and may share an environment. */
#ifndef KD_CACHE_STORE_LMDB_H
#define KD_CACHE_STORE_LMDB_H

#include <stdint.h>

#include "common/base/err.h"

/* The databases of features follow each other in the order of kd_feature. */
typedef enum kd_db { KD_DB_META = 0, KD_DB_IMAGES = 1, KD_DB_VIEWS = 2, KD_DB_FEATURES = 3, KD_DBS = 10 } kd_db;
extern const char *const kd_db_names[KD_DBS];

typedef struct kd_bytes {
    const uint8_t *data;
    size_t size;
} kd_bytes;

typedef struct kd_lmdb kd_lmdb;

/* Creates the file or opens it for writing. durable = 0: nothing is synced before the caller does (a file that is thrown away after a crash).
 * map_bytes > 0 fixes the map's size, which LMDB stores in the file; 0: it grows with the need. */
kd_status kd_lmdb_open_write(kd_lmdb **out, const char *path, int durable, uint64_t map_bytes, kd_err *err);
/* Opens a sealed file, without a lock file. first_value_at: file offset of the first value of `meta` (from the validator), which tells where the map lies in memory. */
kd_status kd_lmdb_open_read(kd_lmdb **out, const char *path, uint64_t file_bytes, uint64_t first_value_at, kd_err *err);
void kd_lmdb_close(kd_lmdb *e); /* aborts an open transaction; accepts NULL */

/* ---- writing ---- */
/* Starts the write transaction with room in the map for need_bytes of pages. */
kd_status kd_lmdb_begin(kd_lmdb *e, uint64_t need_bytes, kd_err *err);
int kd_lmdb_in_transaction(const kd_lmdb *e);
/* append: keys come in ascending order (bulk load). A key that exists is overwritten. */
kd_status kd_lmdb_put(kd_lmdb *e, kd_db db, const void *key, size_t key_size, const void *value, size_t size, int append, kd_err *err);
kd_status kd_lmdb_commit(kd_lmdb *e, kd_err *err); /* the transaction is over, also after a failure */
void kd_lmdb_abort(kd_lmdb *e);
uint64_t kd_lmdb_used_bytes(const kd_lmdb *e); /* pages in use up to the last committed transaction */

/* ---- reading ---- */
typedef struct kd_lmdb_txn kd_lmdb_txn;
kd_status kd_lmdb_read(kd_lmdb_txn **out, kd_lmdb *e, kd_err *err); /* a snapshot of what is committed */
void kd_lmdb_read_end(kd_lmdb_txn *t);                               /* accepts NULL */
/* KD_DONE: no such key. The value points into the map until the transaction ends; touch it inside kd_lmdb_guard. */
kd_status kd_lmdb_get(kd_lmdb_txn *t, kd_db db, const void *key, size_t key_size, kd_bytes *value, kd_err *err);
/* Asks the kernel to read a large value in one go instead of page fault by page fault. */
void kd_lmdb_will_need(kd_bytes value);

typedef struct kd_lmdb_cursor kd_lmdb_cursor;
kd_status kd_lmdb_cursor_open(kd_lmdb_cursor **out, kd_lmdb_txn *t, kd_db db, kd_err *err);
kd_status kd_lmdb_cursor_next(kd_lmdb_cursor *c, kd_bytes *key, kd_bytes *value, kd_err *err); /* KD_DONE after the last */
void kd_lmdb_cursor_close(kd_lmdb_cursor *c); /* before its transaction ends; accepts NULL */

/* kd_io_guard over the mapped file of a reading environment: around kd_lmdb_get, kd_lmdb_cursor_next and every look at a value. */
kd_status kd_lmdb_guard(kd_lmdb *e, kd_status (*fn)(void *arg, kd_err *err), void *arg, kd_err *err);

#endif

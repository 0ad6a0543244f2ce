#include "cache/store_lmdb.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <lmdb.h>

#include "common/base/io.h"
#include "common/base/mem.h"

_Static_assert(sizeof(size_t) == 8, "caches are larger than a 32-bit map");

const char *const kd_db_names[KD_DBS] = {"meta", "images", "views", "cls", "patch", "registers", "mean", "patch2", "patch3", "patch4"};

enum { PAGE = 4096, MAP_STEP = 256 << 20 };

struct kd_lmdb {
    MDB_env *env;
    MDB_dbi dbi[KD_DBS];
    MDB_txn *txn; /* the write transaction */
    char *path;
    int fixed_map;
    const uint8_t *base; /* of the map, for the guard; reading only */
    size_t size;
};

struct kd_lmdb_txn {
    kd_lmdb *env;
    MDB_txn *txn;
};

struct kd_lmdb_cursor {
    kd_lmdb_txn *txn;
    MDB_dbi dbi;
    MDB_cursor *cursor;
};

/* LMDB reports a short write as EIO. Whether the cause is a full disk, a quota or a limit on file sizes, another try to take space there shows. */
static int disk_is_full(const char *path, int rc)
{
    char *probe;
    struct stat st;
    int fd, full = 0;
    if (rc == ENOSPC || rc == EDQUOT || rc == EFBIG)
        return 1;
    if (rc != EIO)
        return 0;
    probe = kd_asprintf("%s.probe", path);
    fd = probe && stat(path, &st) == 0 ? open(probe, O_WRONLY | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600) : -1;
    if (fd >= 0) {
        int error = posix_fallocate(fd, st.st_size, 1 << 20);
        full = error == ENOSPC || error == EDQUOT || error == EFBIG;
        close(fd);
        unlink(probe);
    } else {
        full = probe && (errno == ENOSPC || errno == EDQUOT);
    }
    kd_free(probe);
    return full;
}

static kd_status failed(const kd_lmdb *e, int rc, const char *doing, kd_err *err)
{
    char size[32], where[600];
    uint64_t free_bytes = 0;
    if (disk_is_full(e->path, rc)) {
        kd_io_free_bytes(e->path, &free_bytes, NULL);
        return kd_fail(err, KD_ENOSPACE, "%s: no space left while %s: %s has %s free (see also quotas and ulimit -f); what was committed before is safe: make room and run "
                       "the same command again", e->path, doing, kd_io_file_system(e->path, where, sizeof where), kd_io_size_text(free_bytes, size, sizeof size));
    }
    switch (rc) {
    case MDB_CORRUPTED: case MDB_PAGE_NOTFOUND: case MDB_INVALID: case MDB_VERSION_MISMATCH: case MDB_INCOMPATIBLE: case MDB_BAD_VALSIZE: case MDB_CURSOR_FULL:
        return kd_fail(err, KD_EDAMAGED, "%s: damaged, found while %s: %s", e->path, doing, mdb_strerror(rc));
    default:
        return kd_fail(err, KD_EFAIL, "%s: failed while %s: %s", e->path, doing, mdb_strerror(rc));
    }
}

static kd_status env_create(kd_lmdb **out, const char *path, kd_err *err)
{
    kd_lmdb *e = kd_calloc(1, sizeof *e);
    int rc;
    *out = NULL;
    if (!e || !(e->path = kd_strdup(path))) {
        kd_free(e);
        return kd_fail(err, KD_EFAIL, "%s: out of memory while opening", path);
    }
    rc = mdb_env_create(&e->env);
    if (rc == 0)
        rc = mdb_env_set_maxdbs(e->env, KD_DBS);
    if (rc != 0) {
        kd_status status = failed(e, rc, "opening", err);
        kd_lmdb_close(e);
        return status;
    }
    *out = e;
    return KD_OK;
}

void kd_lmdb_close(kd_lmdb *e)
{
    if (!e)
        return;
    kd_lmdb_abort(e);
    if (e->env)
        mdb_env_close(e->env);
    kd_free(e->path);
    kd_free(e);
}

static int open_databases(kd_lmdb *e, MDB_txn *txn, unsigned flags)
{
    int rc = 0;
    for (int i = 0; i < KD_DBS && rc == 0; i++)
        rc = mdb_dbi_open(txn, kd_db_names[i], flags, &e->dbi[i]);
    return rc;
}

/* The handles outlive the transaction that opened them only when it is committed. */
static int open_and_commit(kd_lmdb *e, unsigned txn_flags, unsigned dbi_flags)
{
    MDB_txn *txn;
    int rc = mdb_txn_begin(e->env, NULL, txn_flags, &txn);
    if (rc != 0)
        return rc;
    rc = open_databases(e, txn, dbi_flags);
    if (rc == 0)
        return mdb_txn_commit(txn);
    mdb_txn_abort(txn);
    return rc;
}

kd_status kd_lmdb_open_write(kd_lmdb **out, const char *path, int durable, uint64_t map_bytes, kd_err *err)
{
    kd_lmdb *e;
    /* The caller holds a lock of its own, so LMDB's (which would block a second writer instead of refusing it) is off. Never MDB_WRITEMAP: a full disk would be a signal. */
    unsigned flags = MDB_NOSUBDIR | MDB_NOLOCK | (durable ? 0 : MDB_NOSYNC | MDB_NOMETASYNC);
    int rc;
    *out = NULL;
    KD_TRY(env_create(&e, path, err));
    e->fixed_map = map_bytes > 0;
    rc = mdb_env_set_mapsize(e->env, map_bytes ? map_bytes : MAP_STEP);
    if (rc == 0)
        rc = mdb_env_open(e->env, path, flags, 0666);
    if (rc == 0)
        rc = open_and_commit(e, 0, MDB_CREATE);
    if (rc != 0) {
        kd_status status = failed(e, rc, "opening for writing", err);
        kd_lmdb_close(e);
        return status;
    }
    *out = e;
    return KD_OK;
}

/* Where LMDB has put its map: it doesn't say, but the address of a value whose place in the file is known does. */
static kd_status find_base(kd_lmdb *e, uint64_t file_bytes, uint64_t first_value_at, kd_err *err)
{
    kd_lmdb_txn *t = NULL;
    kd_lmdb_cursor *c = NULL;
    kd_bytes key, value;
    kd_status status = kd_lmdb_read(&t, e, err);
    if (status == KD_OK)
        status = kd_lmdb_cursor_open(&c, t, KD_DB_META, err);
    if (status == KD_OK)
        status = kd_lmdb_cursor_next(c, &key, &value, err);
    if (status == KD_OK) {
        e->base = value.data - first_value_at;
        e->size = file_bytes;
        if ((uintptr_t)e->base % PAGE != 0)
            status = kd_fail(err, KD_EDAMAGED, "%s: changed while it was being opened", e->path);
    } else if (status == KD_DONE) {
        status = kd_fail(err, KD_EDAMAGED, "%s: its meta database is empty", e->path);
    }
    kd_lmdb_cursor_close(c);
    kd_lmdb_read_end(t);
    return status;
}

kd_status kd_lmdb_open_read(kd_lmdb **out, const char *path, uint64_t file_bytes, uint64_t first_value_at, kd_err *err)
{
    kd_lmdb *e;
    kd_status status;
    int rc;
    *out = NULL;
    KD_TRY(env_create(&e, path, err));
    rc = mdb_env_set_mapsize(e->env, file_bytes);
    if (rc == 0) /* no readahead: an epoch reads in random order; kd_lmdb_will_need asks for what is wanted */
        rc = mdb_env_open(e->env, path, MDB_NOSUBDIR | MDB_NOLOCK | MDB_RDONLY | MDB_NORDAHEAD, 0);
    if (rc == 0)
        rc = open_and_commit(e, MDB_RDONLY, 0);
    status = rc == 0 ? KD_OK : rc == MDB_NOTFOUND ? kd_fail(err, KD_EDAMAGED, "%s: one of its %d databases is missing", path, KD_DBS) : failed(e, rc, "opening", err);
    if (status == KD_OK)
        status = find_base(e, file_bytes, first_value_at, err);
    if (status != KD_OK) {
        kd_lmdb_close(e);
        e = NULL;
    }
    *out = e;
    return status;
}

uint64_t kd_lmdb_used_bytes(const kd_lmdb *e)
{
    MDB_envinfo info;
    mdb_env_info(e->env, &info); /* fails only for a NULL argument */
    return ((uint64_t)info.me_last_pgno + 1) * PAGE;
}

/* A map that is too small would abort the transaction in its middle, so there is room before it starts. */
static kd_status make_room(kd_lmdb *e, uint64_t need, kd_err *err)
{
    MDB_envinfo info;
    uint64_t want = kd_lmdb_used_bytes(e) + need;
    int rc;
    mdb_env_info(e->env, &info);
    if (e->fixed_map || want <= info.me_mapsize)
        return KD_OK;
    want += want / 2;
    rc = mdb_env_set_mapsize(e->env, (want / MAP_STEP + 1) * MAP_STEP);
    return rc == 0 ? KD_OK : failed(e, rc, "growing its memory map (see ulimit -v)", err);
}

kd_status kd_lmdb_begin(kd_lmdb *e, uint64_t need_bytes, kd_err *err)
{
    int rc;
    KD_ASSERT(!e->txn);
    KD_TRY(make_room(e, need_bytes, err));
    rc = mdb_txn_begin(e->env, NULL, 0, &e->txn);
    if (rc != 0) {
        e->txn = NULL;
        return failed(e, rc, "starting a transaction", err);
    }
    return KD_OK;
}

int kd_lmdb_in_transaction(const kd_lmdb *e)
{
    return e->txn != NULL;
}

kd_status kd_lmdb_put(kd_lmdb *e, kd_db db, const void *key, size_t key_size, const void *value, size_t size, int append, kd_err *err)
{
    MDB_val k = {key_size, (void *)(uintptr_t)key}, v = {size, (void *)(uintptr_t)value};
    int rc = mdb_put(e->txn, e->dbi[db], &k, &v, append ? MDB_APPEND : 0);
    return rc == 0 ? KD_OK : failed(e, rc, "adding a record", err);
}

kd_status kd_lmdb_commit(kd_lmdb *e, kd_err *err)
{
    int rc;
    if (!e->txn)
        return KD_OK;
    rc = mdb_txn_commit(e->txn);
    e->txn = NULL;
    return rc == 0 ? KD_OK : failed(e, rc, "committing", err);
}

void kd_lmdb_abort(kd_lmdb *e)
{
    if (e->txn)
        mdb_txn_abort(e->txn);
    e->txn = NULL;
}

/* LMDB looks at pages in these too, so they go through the guard by themselves, where there is one. */
static kd_status guarded(kd_lmdb *e, kd_status (*fn)(void *arg, kd_err *err), void *arg, kd_err *err)
{
    return e->base ? kd_lmdb_guard(e, fn, arg, err) : fn(arg, err);
}

static kd_status begin_reading(void *arg, kd_err *err)
{
    kd_lmdb_txn *t = arg;
    int rc = mdb_txn_begin(t->env->env, NULL, MDB_RDONLY, &t->txn);
    return rc == 0 ? KD_OK : failed(t->env, rc, "starting to read", err);
}

kd_status kd_lmdb_read(kd_lmdb_txn **out, kd_lmdb *e, kd_err *err)
{
    kd_lmdb_txn *t = kd_calloc(1, sizeof *t);
    kd_status status;
    *out = NULL;
    if (!t)
        return kd_fail(err, KD_EFAIL, "%s: out of memory while starting to read", e->path);
    t->env = e;
    status = guarded(e, begin_reading, t, err);
    if (status != KD_OK) {
        kd_free(t);
        return status;
    }
    *out = t;
    return KD_OK;
}

void kd_lmdb_read_end(kd_lmdb_txn *t)
{
    if (!t)
        return;
    mdb_txn_abort(t->txn);
    kd_free(t);
}

kd_status kd_lmdb_get(kd_lmdb_txn *t, kd_db db, const void *key, size_t key_size, kd_bytes *value, kd_err *err)
{
    MDB_val k = {key_size, (void *)(uintptr_t)key}, v;
    int rc = mdb_get(t->txn, t->env->dbi[db], &k, &v);
    if (rc == MDB_NOTFOUND)
        return KD_DONE;
    if (rc != 0)
        return failed(t->env, rc, "reading", err);
    value->data = v.mv_data;
    value->size = v.mv_size;
    return KD_OK;
}

void kd_lmdb_will_need(kd_bytes value)
{
    uintptr_t start = (uintptr_t)value.data & ~(uintptr_t)(PAGE - 1);
    if (value.size > 2 * PAGE) /* a hint: its failure costs time only */
        (void)madvise((void *)start, (uintptr_t)value.data + value.size - start, MADV_WILLNEED);
}

static kd_status open_cursor(void *arg, kd_err *err)
{
    kd_lmdb_cursor *c = arg;
    int rc = mdb_cursor_open(c->txn->txn, c->dbi, &c->cursor);
    return rc == 0 ? KD_OK : failed(c->txn->env, rc, "starting to read", err);
}

kd_status kd_lmdb_cursor_open(kd_lmdb_cursor **out, kd_lmdb_txn *t, kd_db db, kd_err *err)
{
    kd_lmdb_cursor *c = kd_calloc(1, sizeof *c);
    kd_status status;
    *out = NULL;
    if (!c)
        return kd_fail(err, KD_EFAIL, "%s: out of memory while starting to read", t->env->path);
    c->txn = t;
    c->dbi = t->env->dbi[db];
    status = guarded(t->env, open_cursor, c, err);
    if (status != KD_OK) {
        kd_free(c);
        return status;
    }
    *out = c;
    return KD_OK;
}

kd_status kd_lmdb_cursor_next(kd_lmdb_cursor *c, kd_bytes *key, kd_bytes *value, kd_err *err)
{
    MDB_val k, v;
    int rc = mdb_cursor_get(c->cursor, &k, &v, MDB_NEXT);
    if (rc == MDB_NOTFOUND)
        return KD_DONE;
    if (rc != 0)
        return failed(c->txn->env, rc, "reading", err);
    key->data = k.mv_data;
    key->size = k.mv_size;
    value->data = v.mv_data;
    value->size = v.mv_size;
    return KD_OK;
}

void kd_lmdb_cursor_close(kd_lmdb_cursor *c)
{
    if (!c)
        return;
    mdb_cursor_close(c->cursor);
    kd_free(c);
}

kd_status kd_lmdb_guard(kd_lmdb *e, kd_status (*fn)(void *arg, kd_err *err), void *arg, kd_err *err)
{
    return kd_io_guard(e->base, e->size, e->path, fn, arg, err);
}

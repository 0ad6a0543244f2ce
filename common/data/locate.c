#include "common/data/locate.h"

#include <limits.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/io.h"
#include "common/base/log.h"
#include "common/base/mem.h"
#include "common/base/progress.h"
#include "common/base/threads.h"
#include "common/image/image.h"

/* The index file: "KDINDEX1", then per file id 16 | size u64 | mtime i64 | path length u32 | path, all little endian, then the XXH3-128 of everything before.
 * It saves time only: one that is damaged or missing is made anew. */
static const char magic[8] = {'K', 'D', 'I', 'N', 'D', 'E', 'X', '1'};
enum { ROW_HEAD = 36, MAX_INDEX_BYTES = 1 << 30, PATH_CAP = 8192 };

typedef enum id_state { ID_UNKNOWN = 0, ID_KNOWN, ID_UNREADABLE } id_state;

typedef struct by_id_row {
    kd_hash128 id;
    int64_t file;
} by_id_row;

/* A file by the hash of its relative path; 8 bytes of it find the row. */
typedef struct hidden_row {
    uint64_t hash;
    size_t file;
} hidden_row;

struct kd_locator {
    kd_dataset own;           /* what kd_locator_create opened */
    const kd_dataset *data;   /* own, or borrowed */
    char *real_root;      /* resolved, so that the index knows a folder by one name */
    kd_hash128 *id;       /* per file */
    uint8_t *state;       /* id_state per file */
    uint8_t *picture;     /* per file that was hashed here: it begins like a picture that can be decoded */
    by_id_row *sorted;    /* files with a known id */
    size_t sorted_count;
    hidden_row *hidden;   /* every file, ascending by hash */
};

static kd_status reserve(kd_locator *l, kd_err *err)
{
    char resolved[PATH_MAX];
    l->real_root = kd_strdup(l->data->root[0] && realpath(l->data->root, resolved) ? resolved : l->data->root);
    if (!l->real_root)
        return kd_fail(err, KD_EFAIL, "%s: out of memory while opening", l->data->root);
    KD_TRY(kd_alloc_array(&l->id, l->data->count, sizeof *l->id, err));
    KD_TRY(kd_alloc_array(&l->state, l->data->count, sizeof *l->state, err));
    KD_TRY(kd_alloc_array(&l->picture, l->data->count, sizeof *l->picture, err));
    KD_TRY(kd_alloc_array(&l->sorted, l->data->count, sizeof *l->sorted, err));
    return kd_alloc_array(&l->hidden, l->data->count, sizeof *l->hidden, err);
}

static kd_hash128 hash_of_name(const kd_locator *l, size_t i)
{
    return kd_xxh128(l->data->file[i].rel, strlen(l->data->file[i].rel));
}

static int compare_hidden(const void *a, const void *b)
{
    const hidden_row *x = a, *y = b;
    return (x->hash > y->hash) - (x->hash < y->hash);
}

/* Made at once, also where no path will be hidden, so that lookups stay read-only. */
static void index_names(kd_locator *l)
{
    for (size_t i = 0; i < l->data->count; i++) {
        kd_hash128 h = hash_of_name(l, i);
        l->hidden[i] = (hidden_row){kd_hash128_low64(&h), i};
    }
    qsort(l->hidden, l->data->count, sizeof *l->hidden, compare_hidden);
}

/* data NULL: opens source. */
static kd_status create(kd_locator **out, const kd_dataset *data, const char *source, kd_list_format list, kd_err *err)
{
    kd_locator *l;
    *out = NULL;
    KD_TRY(kd_alloc_array(&l, 1, sizeof *l, err));
    l->data = data ? data : &l->own;
    kd_status status = data ? KD_OK : kd_dataset_open(&l->own, source, list, err);
    if (status == KD_OK)
        status = reserve(l, err);
    if (status != KD_OK) {
        kd_locator_destroy(l);
        return status;
    }
    index_names(l);
    *out = l;
    return KD_OK;
}

kd_status kd_locator_create(kd_locator **out, const char *source, kd_list_format list, kd_err *err)
{
    return create(out, NULL, source, list, err);
}

kd_status kd_locator_create_over(kd_locator **out, const kd_dataset *data, kd_err *err)
{
    return create(out, data, NULL, KD_LIST_LINES, err);
}

void kd_locator_destroy(kd_locator *l)
{
    if (!l)
        return;
    kd_dataset_close(&l->own);
    kd_free(l->real_root);
    kd_free(l->id);
    kd_free(l->state);
    kd_free(l->picture);
    kd_free(l->sorted);
    kd_free(l->hidden);
    kd_free(l);
}

size_t kd_locator_files(const kd_locator *l)
{
    return l->data->count;
}

static int64_t by_hidden_name(const kd_locator *l, const kd_hash128 *hash)
{
    uint64_t want = kd_hash128_low64(hash);
    size_t lo = 0, hi = l->data->count;
    while (lo < hi) {
        size_t mid = lo + (hi - lo) / 2;
        if (l->hidden[mid].hash < want)
            lo = mid + 1;
        else
            hi = mid;
    }
    for (; lo < l->data->count && l->hidden[lo].hash == want; lo++) {
        kd_hash128 h = hash_of_name(l, l->hidden[lo].file);
        if (memcmp(h.b, hash->b, sizeof h.b) == 0)
            return (int64_t)l->hidden[lo].file;
    }
    return -1;
}

int64_t kd_locator_by_name(const kd_locator *l, const char *rel)
{
    kd_hash128 hash;
    size_t lo = 0, hi = l->data->count;
    while (lo < hi) {
        size_t mid = lo + (hi - lo) / 2;
        int order = strcmp(l->data->file[mid].rel, rel);
        if (order == 0)
            return (int64_t)mid;
        if (order < 0)
            lo = mid + 1;
        else
            hi = mid;
    }
    return kd_is_hidden_path(rel, &hash) ? by_hidden_name(l, &hash) : -1;
}

int64_t kd_locator_by_path(const kd_locator *l, const char *rel, uint64_t size)
{
    int64_t i = kd_locator_by_name(l, rel);
    return i >= 0 && l->data->file[i].size == size ? i : -1;
}

kd_status kd_locator_path(const kd_locator *l, int64_t i, char *buf, size_t cap, kd_err *err)
{
    KD_ASSERT(i >= 0 && (size_t)i < l->data->count);
    return kd_dataset_path(l->data, (size_t)i, buf, cap, err);
}

kd_status kd_locator_read(const kd_locator *l, int64_t i, uint8_t **buf, size_t *cap, size_t *size, kd_err *err)
{
    KD_ASSERT(i >= 0 && (size_t)i < l->data->count);
    return kd_dataset_read(l->data, (size_t)i, buf, cap, size, err);
}

/* ---- the index file ---- */

static void put_le(uint8_t *p, uint64_t v, int bytes)
{
    for (int i = 0; i < bytes; i++)
        p[i] = (uint8_t)(v >> (8 * i));
}

static uint64_t get_le(const uint8_t *p, int bytes)
{
    uint64_t v = 0;
    for (int i = bytes - 1; i >= 0; i--)
        v = v << 8 | p[i];
    return v;
}

/* Takes over what the index knows about file `path` of this size and time. The folder that the index calls real_root/rel is the same one under any name. */
static void take_row(kd_locator *l, const uint8_t *row, size_t path_size)
{
    const char *path = (const char *)row + ROW_HEAD;
    size_t root = strlen(l->real_root), skip = root && l->real_root[root - 1] != '/' ? root + 1 : root;
    char rel[PATH_CAP];
    int64_t i;
    if (path_size < skip || path_size - skip >= sizeof rel || memcmp(path, l->real_root, root) != 0 || (skip > root && path[root] != '/'))
        return;
    memcpy(rel, path + skip, path_size - skip);
    rel[path_size - skip] = 0;
    i = kd_locator_by_path(l, rel, get_le(row + 16, 8));
    if (i < 0 || l->data->file[i].mtime_ns != (int64_t)get_le(row + 24, 8))
        return;
    memcpy(l->id[i].b, row, 16);
    l->state[i] = ID_KNOWN;
}

static void read_index(kd_locator *l, const char *index_path)
{
    uint8_t *bytes;
    size_t size, at = sizeof magic;
    kd_hash128 h;
    kd_err err;
    if (!kd_io_exists(index_path))
        return;
    if (kd_io_read_all(index_path, MAX_INDEX_BYTES, &bytes, &size, &err) != KD_OK) {
        kd_log(KD_LOG_WARN, "%s; the files are hashed again", err.msg);
        return;
    }
    if (size >= sizeof magic + 16)
        h = kd_xxh128(bytes, size - 16);
    if (size < sizeof magic + 16 || memcmp(bytes, magic, sizeof magic) != 0 || memcmp(h.b, bytes + size - 16, 16) != 0) {
        kd_log(KD_LOG_WARN, "%s: damaged or of another version; the files are hashed again", index_path);
        kd_free(bytes);
        return;
    }
    while (size - 16 - at >= ROW_HEAD) {
        size_t path_size = (size_t)get_le(bytes + at + 32, 4);
        if (path_size > size - 16 - at - ROW_HEAD)
            break;
        take_row(l, bytes + at, path_size);
        at += ROW_HEAD + path_size;
    }
    kd_free(bytes);
}

static kd_status write_index(const kd_locator *l, const char *index_path, kd_err *err)
{
    size_t root = strlen(l->real_root), slash = root && l->real_root[root - 1] != '/', size = sizeof magic + 16, at = sizeof magic;
    uint8_t *bytes;
    kd_hash128 h;
    kd_status status;
    for (size_t i = 0; i < l->data->count; i++)
        size += l->state[i] == ID_KNOWN ? ROW_HEAD + root + slash + strlen(l->data->file[i].rel) : 0;
    bytes = kd_malloc(size);
    if (!bytes)
        return kd_fail(err, KD_EFAIL, "%s: out of memory while writing the index of %zu files", index_path, l->data->count);
    memcpy(bytes, magic, sizeof magic);
    for (size_t i = 0; i < l->data->count; i++) {
        const kd_data_file *f = &l->data->file[i];
        size_t n = strlen(f->rel);
        if (l->state[i] != ID_KNOWN)
            continue;
        memcpy(bytes + at, l->id[i].b, 16);
        put_le(bytes + at + 16, f->size, 8);
        put_le(bytes + at + 24, (uint64_t)f->mtime_ns, 8);
        put_le(bytes + at + 32, root + slash + n, 4);
        at += ROW_HEAD;
        memcpy(bytes + at, l->real_root, root);
        at += root;
        if (slash)
            bytes[at++] = '/';
        memcpy(bytes + at, f->rel, n);
        at += n;
    }
    KD_ASSERT(at + 16 == size);
    h = kd_xxh128(bytes, at);
    memcpy(bytes + at, h.b, 16);
    status = kd_io_write_atomic(index_path, bytes, size, err);
    kd_free(bytes);
    return status;
}

/* ---- hashing ---- */

typedef struct hasher {
    kd_locator *l;
    size_t *todo;
    struct {
        uint8_t *bytes;
        size_t cap;
    } *buffer; /* per worker */
    atomic_size_t done, unreadable;
    kd_progress *progress;
} hasher;

static void hash_one(void *ctx, int worker, size_t i)
{
    hasher *h = ctx;
    size_t file = h->todo[i], size;
    int is_picture;
    kd_err err;
    kd_status status;
    if (kd_stop_requested() != KD_OK)
        return;
    status = kd_dataset_read(h->l->data, file, &h->buffer[worker].bytes, &h->buffer[worker].cap, &size, &err);
    if (status == KD_OK) {
        h->l->id[file] = kd_image_id(h->buffer[worker].bytes, size);
        h->l->state[file] = ID_KNOWN;
        (void)kd_image_sniff(h->buffer[worker].bytes, size, &is_picture);
        h->l->picture[file] = (uint8_t)is_picture;
    } else {
        h->l->state[file] = ID_UNREADABLE;
        atomic_fetch_add(&h->unreadable, 1);
        kd_log(KD_LOG_DEBUG, "%s", err.msg);
    }
    size = atomic_fetch_add(&h->done, 1) + 1;
    if (worker == 0)
        kd_progress_update(h->progress, size, 0, NULL);
}

static int compare_ids(const void *a, const void *b)
{
    const by_id_row *x = a, *y = b;
    int order = memcmp(x->id.b, y->id.b, sizeof x->id.b);
    return order ? order : (x->file > y->file) - (x->file < y->file);
}

static void sort_ids(kd_locator *l)
{
    l->sorted_count = 0;
    for (size_t i = 0; i < l->data->count; i++) {
        if (l->state[i] == ID_KNOWN)
            l->sorted[l->sorted_count++] = (by_id_row){l->id[i], (int64_t)i};
    }
    qsort(l->sorted, l->sorted_count, sizeof *l->sorted, compare_ids);
}

static kd_status hash_todo(kd_locator *l, size_t *todo, size_t n, int threads, kd_err *err)
{
    hasher h = {.l = l, .todo = todo};
    KD_TRY(kd_alloc_array(&h.buffer, (size_t)threads, sizeof *h.buffer, err));
    h.progress = kd_progress_create("hashing files", "file", n, 0, 0);
    kd_parallel_for(threads, n, hash_one, &h);
    kd_progress_finish(h.progress);
    for (int i = 0; i < threads; i++)
        kd_free(h.buffer[i].bytes);
    kd_free(h.buffer);
    if (kd_stop_requested() != KD_OK)
        return kd_fail(err, kd_stop_requested(), "interrupted while hashing files");
    if (atomic_load(&h.unreadable))
        kd_log(KD_LOG_WARN, "%zu of %zu files could not be read and have no id", atomic_load(&h.unreadable), n);
    return KD_OK;
}

kd_status kd_locator_hash_all(kd_locator *l, int threads, const char *index_path, kd_err *err)
{
    size_t *todo, n = 0;
    kd_status status;
    if (threads < 1)
        threads = kd_cpu_count();
    if (index_path)
        read_index(l, index_path);
    KD_TRY(kd_alloc_array(&todo, l->data->count, sizeof *todo, err));
    for (size_t i = 0; i < l->data->count; i++) {
        if (l->state[i] == ID_UNKNOWN)
            todo[n++] = i;
    }
    status = n > 0 ? hash_todo(l, todo, n, threads, err) : KD_OK;
    kd_free(todo);
    if (status != KD_OK)
        return status;
    sort_ids(l);
    return index_path && n > 0 ? write_index(l, index_path, err) : KD_OK;
}

size_t kd_locator_picture_ids(const kd_locator *l, kd_hash128 *out)
{
    size_t n = 0;
    for (size_t i = 0; i < l->sorted_count; i++) {
        const by_id_row *row = &l->sorted[i];
        if (l->picture[row->file] && (n == 0 || memcmp(out[n - 1].b, row->id.b, sizeof row->id.b) != 0))
            out[n++] = row->id;
    }
    return n;
}

int64_t kd_locator_by_id(const kd_locator *l, const kd_hash128 *id)
{
    size_t lo = 0, hi = l->sorted_count;
    while (lo < hi) {
        size_t mid = lo + (hi - lo) / 2;
        if (memcmp(l->sorted[mid].id.b, id->b, sizeof id->b) < 0)
            lo = mid + 1;
        else
            hi = mid;
    }
    return lo < l->sorted_count && memcmp(l->sorted[lo].id.b, id->b, sizeof id->b) == 0 ? l->sorted[lo].file : -1;
}

/* ---- whereabouts ---- */

kd_whereabouts kd_locator_find(const kd_locator *l, const kd_hash128 *id, const char *rel, uint64_t size, int64_t *file)
{
    int64_t there = kd_locator_by_name(l, rel), elsewhere;
    *file = there;
    if (there >= 0 && l->data->file[there].size == size &&
        (l->state[there] == ID_UNKNOWN || (l->state[there] == ID_KNOWN && memcmp(l->id[there].b, id->b, sizeof id->b) == 0)))
        return KD_IN_PLACE;
    elsewhere = kd_locator_by_id(l, id);
    if (elsewhere >= 0) {
        *file = elsewhere;
        return KD_MOVED;
    }
    return there >= 0 ? KD_CHANGED : KD_MISSING;
}

const char *kd_locator_show(const kd_locator *l, int64_t file, const char *rel)
{
    return file >= 0 && kd_is_hidden_path(rel, NULL) ? l->data->file[file].rel : rel;
}

void kd_search_count(kd_search *s, kd_whereabouts w, const char *rel)
{
    if (s->count[w]++ == 0)
        s->example[w] = rel;
}

const char *kd_search_text(const kd_search *s, char *buf, size_t cap)
{
    static const char *const words[KD_WHEREABOUTS] = {"at their recorded paths", "moved or renamed", "changed", "missing"};
    size_t n = 0;
    buf[0] = 0;
    for (int w = 0; w < KD_WHEREABOUTS && n < cap; w++) {
        if (s->count[w])
            n += (size_t)snprintf(buf + n, cap - n, "%s%zu %s", n ? ", " : "", s->count[w], words[w]);
        if (s->count[w] && w >= KD_CHANGED && n < cap)
            n += (size_t)snprintf(buf + n, cap - n, " (first: %.200s)", s->example[w]);
    }
    return buf;
}

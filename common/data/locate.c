/* Finding the files of known images: see locate.h.
 *
 * The index file is a cache of hashes: "kdcache-index 1\n", then for each file `id size mtime path` (hex, decimal, decimal, absolute path)
 * ended by a zero byte, as a path may hold anything else. A wrong or foreign index costs time, not correctness: view hashes prove each image. */
#include "common/data/locate.h"

#include <inttypes.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/io.h"
#include "common/base/log.h"
#include "common/base/mem.h"
#include "common/base/progress.h"
#include "common/base/threads.h"

static const char index_header[] = "kdcache-index 1\n";
enum { MAX_PATH = 8192, MAX_INDEX_BYTES = 1 << 30, ID_HEX = 32 };

typedef enum hash_state { UNHASHED = 0, HASHED, UNREADABLE } hash_state;

typedef struct by_id_entry {
    kd_hash128 id;
    size_t file;
} by_id_entry;

struct kd_locator {
    kd_dataset data;
    kd_hash128 *id;  /* of each file, valid when state is HASHED */
    uint8_t *state;
    by_id_entry *sorted; /* by id, then by file */
    size_t sorted_count;
};

kd_status kd_locator_create(kd_locator **out, const char *source, kd_err *err) {
    kd_locator *l = NULL;
    KD_TRY(kd_alloc_array(&l, 1, sizeof *l, err));
    kd_status status;
    KD_TRY_TO(fail, status, kd_dataset_open(&l->data, source, err));
    KD_TRY_TO(fail, status, kd_alloc_array(&l->id, l->data.count, sizeof *l->id, err));
    KD_TRY_TO(fail, status, kd_alloc_array(&l->state, l->data.count, sizeof *l->state, err));
    *out = l;
    return KD_OK;
fail:
    kd_locator_destroy(l);
    return status;
}

void kd_locator_destroy(kd_locator *l) {
    if (!l)
        return;
    kd_dataset_close(&l->data);
    kd_free(l->id);
    kd_free(l->state);
    kd_free(l->sorted);
    kd_free(l);
}

size_t kd_locator_files(const kd_locator *l) { return l->data.count; }

int64_t kd_locator_by_path(const kd_locator *l, const char *rel, uint64_t size) {
    size_t lo = 0, hi = l->data.count;
    while (lo < hi) {
        size_t mid = lo + (hi - lo) / 2;
        int order = strcmp(l->data.file[mid].rel, rel);
        if (order == 0)
            return l->data.file[mid].size == size ? (int64_t)mid : -1;
        if (order < 0)
            lo = mid + 1;
        else
            hi = mid;
    }
    return -1;
}

kd_status kd_locator_path(const kd_locator *l, int64_t i, char *buf, size_t cap, kd_err *err) {
    KD_ASSERT(i >= 0);
    return kd_dataset_path(&l->data, (size_t)i, buf, cap, err);
}

/* ---- index file ---- */

typedef struct record {
    const char *path; /* inside the index's bytes */
    uint64_t size;
    int64_t mtime_ns;
    kd_hash128 id;
} record;

static int by_path(const void *a, const void *b) { return strcmp(((const record *)a)->path, ((const record *)b)->path); }

/* One record's text (NUL terminated); false when it isn't one. */
static int parse_record(record *r, const char *text) {
    if (strlen(text) <= ID_HEX || text[ID_HEX] != ' ')
        return 0;
    char hex[ID_HEX + 1];
    memcpy(hex, text, ID_HEX);
    hex[ID_HEX] = '\0';
    int path = 0;
    if (kd_unhex(r->id.b, hex, 16) != 0 || sscanf(text + ID_HEX, " %" SCNu64 " %" SCNd64 " %n", &r->size, &r->mtime_ns, &path) != 2 || path == 0)
        return 0;
    r->path = text + ID_HEX + path;
    return 1;
}

/* The absolute path under which file i stands in the index; false when there is none. */
static int index_path_of(const kd_locator *l, size_t i, char *buf) {
    char path[MAX_PATH];
    if (kd_dataset_path(&l->data, i, path, sizeof path, NULL) != KD_OK)
        return 0;
    char *real = realpath(path, NULL);
    size_t n = real ? strlen(real) : 0;
    int ok = real && n < MAX_PATH;
    if (ok)
        memcpy(buf, real, n + 1);
    free(real);
    return ok;
}

static void use_records(kd_locator *l, record *records, size_t n) {
    qsort(records, n, sizeof *records, by_path);
    for (size_t i = 0; i < l->data.count; i++) {
        char path[MAX_PATH];
        if (l->state[i] != UNHASHED || !index_path_of(l, i, path))
            continue;
        record key = {.path = path};
        const record *r = bsearch(&key, records, n, sizeof *records, by_path);
        if (r && r->size == l->data.file[i].size && r->mtime_ns == l->data.file[i].mtime_ns) {
            l->id[i] = r->id;
            l->state[i] = HASHED;
        }
    }
}

static kd_status read_index(kd_locator *l, const char *path, kd_err *err) {
    if (!kd_io_exists(path))
        return KD_OK;
    uint8_t *bytes = NULL;
    size_t size = 0, n = 0, head = sizeof index_header - 1;
    kd_err why = {0};
    if (kd_io_read_all(path, MAX_INDEX_BYTES, &bytes, &size, &why) != KD_OK || size < head || memcmp(bytes, index_header, head) != 0) {
        kd_log(KD_LOG_WARN, "%s isn't a readable index of image ids%s%s; it is made anew", path, why.msg[0] ? ": " : "", why.msg);
        kd_free(bytes);
        return KD_OK;
    }
    for (size_t i = head; i < size; i++)
        n += bytes[i] == 0;
    record *records = NULL;
    kd_status status = kd_alloc_array(&records, n, sizeof *records, err);
    if (status == KD_OK) {
        size_t good = 0;
        const char *text = (const char *)bytes + head;
        for (size_t i = 0; i < n; i++, text += strlen(text) + 1)
            good += (size_t)parse_record(&records[good], text);
        use_records(l, records, good);
    }
    kd_free(records);
    kd_free(bytes);
    return status;
}

/* Failing to keep the index is no reason to stop: it only saves time. */
static void write_index(const kd_locator *l, const char *path) {
    kd_err why = {0};
    kd_replace *file = NULL;
    kd_status status = kd_io_replace_begin(&file, path, &why);
    if (status == KD_OK) {
        status = kd_io_replace_write(file, index_header, sizeof index_header - 1, &why);
        for (size_t i = 0; i < l->data.count && status == KD_OK; i++) {
            char text[MAX_PATH + 128], where[MAX_PATH], hex[ID_HEX + 1];
            if (l->state[i] != HASHED || !index_path_of(l, i, where))
                continue;
            kd_hex(hex, l->id[i].b, 16);
            int n = snprintf(text, sizeof text, "%s %" PRIu64 " %" PRId64 " %s", hex, l->data.file[i].size, l->data.file[i].mtime_ns, where);
            status = kd_io_replace_write(file, text, (size_t)n + 1, &why);
        }
        if (status == KD_OK)
            status = kd_io_replace_commit(file, &why);
        else
            kd_io_replace_abort(file);
    }
    if (status != KD_OK)
        kd_log(KD_LOG_WARN, "the index of image ids isn't kept: %s", why.msg);
}

/* ---- hashing ---- */

typedef struct hash_job {
    kd_locator *l;
    struct reader {
        uint8_t *bytes;
        size_t capacity;
    } *reader; /* one per worker */
    pthread_mutex_t lock;
    kd_progress *progress;
    uint64_t done;
} hash_job;

static void hash_one(void *ctx, int worker, size_t i) {
    hash_job *job = ctx;
    kd_locator *l = job->l;
    if (l->state[i] != UNHASHED || kd_stop_requested() != KD_OK)
        return;
    char path[MAX_PATH];
    size_t size = 0;
    struct reader *r = &job->reader[worker];
    if (kd_dataset_path(&l->data, i, path, sizeof path, NULL) == KD_OK && kd_io_read_into(path, KD_MAX_IMAGE_FILE, &r->bytes, &r->capacity, &size, NULL) == KD_OK) {
        l->id[i] = kd_image_id(r->bytes, size);
        l->state[i] = HASHED;
    } else {
        l->state[i] = UNREADABLE;
    }
    pthread_mutex_lock(&job->lock);
    kd_progress_update(job->progress, ++job->done, 0.0, NULL);
    pthread_mutex_unlock(&job->lock);
}

static kd_status hash_missing(kd_locator *l, int threads, uint64_t missing, kd_err *err) {
    hash_job job = {.l = l, .lock = PTHREAD_MUTEX_INITIALIZER};
    KD_TRY(kd_alloc_array(&job.reader, (size_t)threads, sizeof *job.reader, err));
    job.progress = kd_progress_create("finding images by content", "file", missing, 0, 0);
    kd_parallel_for(threads, l->data.count, hash_one, &job);
    kd_progress_finish(job.progress);
    for (int t = 0; t < threads; t++)
        kd_free(job.reader[t].bytes);
    kd_free(job.reader);
    kd_status stop = kd_stop_requested();
    return stop == KD_OK ? KD_OK : kd_fail(err, stop, "stopped while looking for images by content");
}

static int by_id(const void *a, const void *b) {
    const by_id_entry *x = a, *y = b;
    int order = memcmp(x->id.b, y->id.b, sizeof x->id.b);
    return order ? order : x->file < y->file ? -1 : x->file > y->file;
}

static uint64_t count_state(const kd_locator *l, hash_state state) {
    uint64_t n = 0;
    for (size_t i = 0; i < l->data.count; i++)
        n += l->state[i] == state;
    return n;
}

kd_status kd_locator_hash_all(kd_locator *l, int threads, const char *index_path, kd_err *err) {
    KD_ASSERT(threads >= 1);
    if (index_path)
        KD_TRY(read_index(l, index_path, err));
    uint64_t missing = count_state(l, UNHASHED);
    if (missing > 0) {
        kd_status status = hash_missing(l, threads, missing, err);
        if (index_path)
            write_index(l, index_path); /* also what was done before an interruption */
        KD_TRY(status);
    }
    kd_free(l->sorted);
    l->sorted = NULL;
    l->sorted_count = 0;
    KD_TRY(kd_alloc_array(&l->sorted, count_state(l, HASHED), sizeof *l->sorted, err));
    for (size_t i = 0; i < l->data.count; i++)
        if (l->state[i] == HASHED)
            l->sorted[l->sorted_count++] = (by_id_entry){l->id[i], i};
    qsort(l->sorted, l->sorted_count, sizeof *l->sorted, by_id);
    return KD_OK;
}

int64_t kd_locator_by_id(const kd_locator *l, const kd_hash128 *id) {
    size_t lo = 0, hi = l->sorted_count;
    while (lo < hi) {
        size_t mid = lo + (hi - lo) / 2;
        if (memcmp(l->sorted[mid].id.b, id->b, sizeof id->b) < 0)
            lo = mid + 1;
        else
            hi = mid;
    }
    return lo < l->sorted_count && memcmp(l->sorted[lo].id.b, id->b, sizeof id->b) == 0 ? (int64_t)l->sorted[lo].file : -1;
}

#include "train/events.h"

#include <dirent.h>
#include <fcntl.h>
#include <math.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "common/base/io.h"
#include "common/base/mem.h"

static const char PREFIX[] = "events.out.tfevents.", SUFFIX[] = ".kd-train", FILE_VERSION[] = "brain.Event:2";

struct kd_events {
    FILE *file;
    char *path;
    uint8_t *record; /* re-used */
    size_t cap;
};

/* ---- checksum ---- */

static const uint32_t CASTAGNOLI = 0x82f63b78; /* 0x1edc6f41, reflected */

uint32_t kd_crc32c(const void *bytes, size_t n) {
    const uint8_t *b = bytes;
    uint32_t table[16], crc = ~(uint32_t)0;
    for (uint32_t i = 0; i < 16; i++) {
        table[i] = i;
        for (int bit = 0; bit < 4; bit++)
            table[i] = table[i] >> 1 ^ (table[i] & 1 ? CASTAGNOLI : 0);
    }
    for (size_t i = 0; i < n; i++) {
        crc ^= b[i];
        crc = crc >> 4 ^ table[crc & 15];
        crc = crc >> 4 ^ table[crc & 15];
    }
    return ~crc;
}

uint32_t kd_crc32c_masked(const void *bytes, size_t n) {
    uint32_t c = kd_crc32c(bytes, n);
    return (c >> 15 | c << 17) + 0xa282ead8u;
}

/* ---- messages: each writer appends at `at`, or only counts when `at` is NULL; it returns the bytes ---- */

static size_t put_bytes(uint8_t *at, const void *bytes, size_t n) {
    if (at != NULL && n > 0)
        memcpy(at, bytes, n);
    return n;
}

static size_t put_little(uint8_t *at, uint64_t v, size_t n) {
    for (size_t i = 0; i < n && at != NULL; i++)
        at[i] = (uint8_t)(v >> (8 * i));
    return n;
}

static size_t put_varint(uint8_t *at, uint64_t v) {
    size_t n = 0;
    for (; v >= 0x80; v >>= 7, n++)
        if (at != NULL)
            at[n] = (uint8_t)(v | 0x80);
    if (at != NULL)
        at[n] = (uint8_t)v;
    return n + 1;
}

static uint8_t *behind(uint8_t *at, size_t n) {
    return at != NULL ? at + n : NULL;
}

enum { VARINT = 0, FIXED64 = 1, LENGTH = 2, FIXED32 = 5 }; /* protobuf's wire types */

static size_t put_key(uint8_t *at, unsigned field, unsigned type) {
    return put_varint(at, field << 3 | type);
}

static size_t put_int(uint8_t *at, unsigned field, int64_t v) {
    size_t n = put_key(at, field, VARINT);
    return n + put_varint(behind(at, n), (uint64_t)v);
}

static size_t put_blob(uint8_t *at, unsigned field, const void *bytes, size_t size) {
    size_t n = put_key(at, field, LENGTH);
    n += put_varint(behind(at, n), size);
    return n + put_bytes(behind(at, n), bytes, size);
}

/* The key and length in front of a message of `size` bytes. */
static size_t put_head(uint8_t *at, unsigned field, size_t size) {
    size_t n = put_key(at, field, LENGTH);
    return n + put_varint(behind(at, n), size);
}

static size_t put_image(uint8_t *at, const kd_event_value *v) {
    size_t n = put_int(at, 1, v->height);
    n += put_int(behind(at, n), 2, v->width);
    n += put_int(behind(at, n), 3, 3);
    return n + put_blob(behind(at, n), 4, v->png, v->png_size);
}

static size_t put_value(uint8_t *at, const kd_event_value *v) {
    size_t n = put_blob(at, 1, v->tag, strlen(v->tag));
    if (v->png != NULL) {
        n += put_head(behind(at, n), 4, put_image(NULL, v));
        return n + put_image(behind(at, n), v);
    }
    float f = (float)v->scalar;
    uint32_t bits;
    memcpy(&bits, &f, sizeof bits);
    n += put_key(behind(at, n), 2, FIXED32);
    return n + put_little(behind(at, n), bits, 4);
}

static size_t put_summary(uint8_t *at, const kd_event_value *values, size_t count) {
    size_t n = 0;
    for (size_t i = 0; i < count; i++) {
        if (values[i].png == NULL && !isfinite(values[i].scalar))
            continue;
        n += put_head(behind(at, n), 1, put_value(NULL, &values[i]));
        n += put_value(behind(at, n), &values[i]);
    }
    return n;
}

static size_t put_event(uint8_t *at, double wall_time, int64_t step, const kd_event_value *values, size_t count) {
    uint64_t bits;
    memcpy(&bits, &wall_time, sizeof bits);
    size_t n = put_key(at, 1, FIXED64);
    n += put_little(behind(at, n), bits, 8);
    if (values == NULL)
        return n + put_blob(behind(at, n), 3, FILE_VERSION, strlen(FILE_VERSION));
    n += put_int(behind(at, n), 2, step);
    n += put_head(behind(at, n), 5, put_summary(NULL, values, count));
    return n + put_summary(behind(at, n), values, count);
}

kd_status kd_event_record(uint8_t **buf, size_t *cap, size_t *size, double wall_time, int64_t step, const kd_event_value *values, size_t n, kd_err *err) {
    size_t length = put_event(NULL, wall_time, step, values, n), need = 8 + 4 + length + 4;
    if (need > *cap) {
        uint8_t *grown = kd_realloc(*buf, need);
        if (grown == NULL)
            return kd_fail(err, KD_EFAIL, "out of memory for an event of %zu bytes", need);
        *buf = grown;
        *cap = need;
    }
    uint8_t *b = *buf;
    put_little(b, length, 8);
    put_little(b + 8, kd_crc32c_masked(b, 8), 4);
    put_event(b + 12, wall_time, step, values, n);
    put_little(b + 12 + length, kd_crc32c_masked(b + 12, length), 4);
    *size = need;
    return KD_OK;
}

/* ---- the file ---- */

static double wall_clock(void) {
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static int is_own(const char *name) {
    size_t n = strlen(name), end = strlen(SUFFIX);
    return strncmp(name, PREFIX, strlen(PREFIX)) == 0 && n > strlen(PREFIX) + end && strcmp(name + n - end, SUFFIX) == 0;
}

/* The file to go on with; the name of a new one when there is none. NULL: memory. */
static char *choose_path(const char *folder) {
    char *best = NULL, host[256];
    DIR *d = opendir(folder);
    for (struct dirent *e; d != NULL && (e = readdir(d)) != NULL;)
        if (is_own(e->d_name) && (best == NULL || strcmp(e->d_name, best) > 0)) {
            kd_free(best);
            best = kd_strdup(e->d_name);
        }
    if (d != NULL)
        closedir(d);
    if (gethostname(host, sizeof host) != 0)
        snprintf(host, sizeof host, "localhost");
    host[sizeof host - 1] = '\0';
    char *path = best != NULL ? kd_asprintf("%s/%s", folder, best) : kd_asprintf("%s/%s%010lld.%s%s", folder, PREFIX, (long long)time(NULL), host, SUFFIX);
    kd_free(best);
    return path;
}

static kd_status append(kd_events *e, double wall_time, int64_t step, const kd_event_value *values, size_t n, kd_err *err) {
    size_t size;
    KD_TRY(kd_event_record(&e->record, &e->cap, &size, wall_time, step, values, n, err));
    if (fwrite(e->record, 1, size, e->file) != size || fflush(e->file) != 0)
        return kd_io_write_failed(e->path, "an event can't be written", err);
    return KD_OK;
}

static kd_status open_file(kd_events *e, const char *folder, uint64_t keep_bytes, kd_err *err) {
    e->path = choose_path(folder);
    if (e->path == NULL)
        return kd_fail(err, KD_EFAIL, "out of memory for the event file of %s", folder);
    int fd = open(e->path, O_RDWR | O_CREAT | O_CLOEXEC, 0666);
    off_t size = fd >= 0 ? lseek(fd, 0, SEEK_END) : -1;
    if (size >= 0 && (uint64_t)size > keep_bytes && ftruncate(fd, (off_t)keep_bytes) == 0)
        size = (off_t)keep_bytes;
    e->file = size >= 0 && (uint64_t)size <= keep_bytes ? fdopen(fd, "a") : NULL;
    if (e->file == NULL) {
        kd_status status = kd_io_write_failed(e->path, "can't be opened for writing", err);
        if (fd >= 0)
            close(fd);
        return status;
    }
    KD_TRY(kd_io_fsync_dir_of(e->path, err)); /* a new file's name must be as durable as what checkpoints count of it */
    return size == 0 ? append(e, wall_clock(), 0, NULL, 0, err) : KD_OK;
}

kd_status kd_events_open(kd_events **out, const char *folder, uint64_t keep_bytes, kd_err *err) {
    kd_events *e;
    *out = NULL;
    KD_TRY(kd_alloc_array(&e, 1, sizeof *e, err));
    kd_status status = open_file(e, folder, keep_bytes, err);
    if (status != KD_OK) {
        kd_events_close(e);
        return status;
    }
    *out = e;
    return KD_OK;
}

kd_status kd_events_write(kd_events *e, int64_t step, const kd_event_value *values, size_t n, kd_err *err) {
    return append(e, wall_clock(), step, values, n, err);
}

kd_status kd_events_sync(kd_events *e, uint64_t *bytes, kd_err *err) {
    off_t size;
    if (fflush(e->file) != 0 || fsync(fileno(e->file)) != 0 || (size = lseek(fileno(e->file), 0, SEEK_END)) < 0)
        return kd_io_write_failed(e->path, "the events can't be written", err);
    *bytes = (uint64_t)size;
    return KD_OK;
}

void kd_events_close(kd_events *e) {
    if (e == NULL)
        return;
    if (e->file != NULL)
        fclose(e->file);
    kd_free(e->path);
    kd_free(e->record);
    kd_free(e);
}

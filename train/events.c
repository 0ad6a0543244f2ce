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
#include "common/base/protobuf.h"

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

/* ---- messages ---- */

static void put_little(uint8_t *at, uint64_t v, size_t n) {
    for (size_t i = 0; i < n; i++)
        at[i] = (uint8_t)(v >> (8 * i));
}

static void put_image(kd_proto *m, const kd_event_value *v) {
    size_t image = kd_proto_open(m, 4);
    kd_proto_int(m, 1, v->height);
    kd_proto_int(m, 2, v->width);
    kd_proto_int(m, 3, 3);
    kd_proto_bytes(m, 4, v->png, v->png_size);
    kd_proto_close(m, image);
}

static void put_value(kd_proto *m, const kd_event_value *v) {
    size_t value = kd_proto_open(m, 1);
    kd_proto_text(m, 1, v->tag);
    if (v->png != NULL)
        put_image(m, v);
    else
        kd_proto_float(m, 2, (float)v->scalar);
    kd_proto_close(m, value);
}

static void put_event(kd_proto *m, double wall_time, int64_t step, const kd_event_value *values, size_t count) {
    kd_proto_double(m, 1, wall_time);
    if (values == NULL) {
        kd_proto_text(m, 3, FILE_VERSION);
        return;
    }
    kd_proto_int(m, 2, step);
    size_t summary = kd_proto_open(m, 5);
    for (size_t i = 0; i < count; i++)
        if (values[i].png != NULL || isfinite(values[i].scalar))
            put_value(m, &values[i]);
    kd_proto_close(m, summary);
}

kd_status kd_event_record(uint8_t **buf, size_t *cap, size_t *size, double wall_time, int64_t step, const kd_event_value *values, size_t n, kd_err *err) {
    kd_proto m = {0};
    put_event(&m, wall_time, step, values, n);
    size_t need = 8 + 4 + m.size + 4;
    uint8_t *b = need > *cap ? kd_realloc(*buf, need) : *buf;
    if (m.failed || b == NULL) {
        kd_proto_free(&m);
        return kd_fail(err, KD_EFAIL, "out of memory for an event of %zu bytes", need);
    }
    *buf = b;
    *cap = need > *cap ? need : *cap;
    put_little(b, m.size, 8);
    put_little(b + 8, kd_crc32c_masked(b, 8), 4);
    memcpy(b + 12, m.bytes, m.size);
    put_little(b + 12 + m.size, kd_crc32c_masked(m.bytes, m.size), 4);
    *size = need;
    kd_proto_free(&m);
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

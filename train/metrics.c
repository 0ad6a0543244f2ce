#include "train/metrics.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/base/io.h"
#include "common/base/mem.h"

struct kd_metrics {
    FILE *file;
    char *path;
};

kd_status kd_metrics_open(kd_metrics **out, const char *path, uint64_t keep_bytes, kd_err *err) {
    kd_metrics *m;
    *out = NULL;
    KD_TRY(kd_alloc_array(&m, 1, sizeof *m, err));
    m->path = kd_strdup(path);
    int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0666);
    off_t size = fd >= 0 ? lseek(fd, 0, SEEK_END) : -1;
    int bad = m->path == NULL || size < 0 || ((uint64_t)size > keep_bytes && ftruncate(fd, (off_t)keep_bytes) != 0) || lseek(fd, 0, SEEK_END) < 0;
    if (!bad)
        m->file = fdopen(fd, "a");
    if (m->file == NULL) {
        kd_status status = kd_io_write_failed(path, "can't be opened for writing", err);
        if (fd >= 0)
            close(fd);
        kd_metrics_close(m);
        return status;
    }
    kd_status status = kd_io_fsync_dir_of(path, err); /* a new file's name must be as durable as what checkpoints count of it */
    if (status != KD_OK) {
        kd_metrics_close(m);
        return status;
    }
    *out = m;
    return KD_OK;
}

kd_status kd_metrics_write(kd_metrics *m, json_t *line, kd_err *err) {
    char *text = line != NULL ? json_dumps(line, JSON_COMPACT | JSON_PRESERVE_ORDER | JSON_REAL_PRECISION(9)) : NULL;
    kd_status status = KD_OK;
    if (text == NULL)
        status = kd_fail(err, KD_EFAIL, "out of memory for a line of %s", m->path);
    else if (fprintf(m->file, "%s\n", text) < 0 || fflush(m->file) != 0)
        status = kd_io_write_failed(m->path, "can't be written", err);
    free(text); /* jansson's allocator */
    json_decref(line);
    return status;
}

kd_status kd_metrics_sync(kd_metrics *m, uint64_t *bytes, kd_err *err) {
    off_t size;
    if (fflush(m->file) != 0 || fsync(fileno(m->file)) != 0 || (size = lseek(fileno(m->file), 0, SEEK_END)) < 0)
        return kd_io_write_failed(m->path, "can't be written", err);
    *bytes = (uint64_t)size;
    return KD_OK;
}

void kd_metrics_close(kd_metrics *m) {
    if (m == NULL)
        return;
    if (m->file != NULL)
        fclose(m->file);
    kd_free(m->path);
    kd_free(m);
}

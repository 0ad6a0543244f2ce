#include "common/data/tar_write.h"

#include <stdio.h>
#include <string.h>

#include "common/base/io.h"
#include "common/base/mem.h"

/* Places of the fields of a header: POSIX.1-1988; magic and long names as GNU tar's manual has them ("Basic Tar Format", "GNU Extensions to the Archive Format"). */
enum {
    RECORD = 512,
    NAME_BYTES = 100,
    MODE_AT = 100,
    UID_AT = 108,
    GID_AT = 116,
    SIZE_AT = 124,
    MTIME_AT = 136,
    SUM_AT = 148,
    TYPE_AT = 156,
    MAGIC_AT = 257
};

struct kd_tar_writer {
    kd_replace *file;
    char *path;
    uint64_t written;
};

kd_status kd_tar_create(kd_tar_writer **out, const char *path, kd_err *err)
{
    kd_tar_writer *t = kd_calloc(1, sizeof *t);
    kd_status status;
    *out = NULL;
    if (t)
        t->path = kd_strdup(path);
    status = t && t->path ? kd_io_replace_begin(&t->file, path, err) : kd_fail(err, KD_EFAIL, "%s: out of memory while preparing to write", path);
    if (status != KD_OK) {
        kd_tar_discard(t);
        return status;
    }
    *out = t;
    return KD_OK;
}

static kd_status append(kd_tar_writer *t, const void *bytes, size_t size, kd_err *err)
{
    KD_TRY(kd_io_replace_write(t->file, bytes, size, err));
    t->written += size;
    return KD_OK;
}

/* bytes, and zeros up to the next record. */
static kd_status append_padded(kd_tar_writer *t, const void *bytes, size_t size, kd_err *err)
{
    static const uint8_t zeros[RECORD];
    KD_TRY(append(t, bytes, size, err));
    return append(t, zeros, (RECORD - size % RECORD) % RECORD, err);
}

static kd_status put_header(kd_tar_writer *t, const char *name, char type, uint64_t size, kd_err *err)
{
    uint8_t h[RECORD] = {0};
    size_t n = strlen(name);
    unsigned sum = 0;
    memcpy(h, name, n < NAME_BYTES ? n : NAME_BYTES);
    memcpy(h + MODE_AT, "0000644", 8);
    memcpy(h + UID_AT, "0000000", 8);
    memcpy(h + GID_AT, "0000000", 8);
    snprintf((char *)h + SIZE_AT, 12, "%011llo", (unsigned long long)size);
    memcpy(h + MTIME_AT, "00000000000", 12);
    memset(h + SUM_AT, ' ', 8);
    h[TYPE_AT] = (uint8_t)type;
    memcpy(h + MAGIC_AT, "ustar  ", 8);
    for (int i = 0; i < RECORD; i++)
        sum += h[i];
    snprintf((char *)h + SUM_AT, 7, "%06o", sum);
    return append(t, h, sizeof h, err);
}

kd_status kd_tar_put(kd_tar_writer *t, const char *name, const void *bytes, size_t size, kd_err *err)
{
    size_t n = strlen(name);
    if ((uint64_t)size >> 33)
        return kd_fail(err, KD_EFAIL, "%s: %s has %zu bytes, above the limit of 8 GiB for a member", t->path, name, size);
    if (n > NAME_BYTES) {
        KD_TRY(put_header(t, "././@LongLink", 'L', n + 1, err));
        KD_TRY(append_padded(t, name, n + 1, err));
    }
    KD_TRY(put_header(t, name, '0', size, err));
    return append_padded(t, bytes, size, err);
}

uint64_t kd_tar_written(const kd_tar_writer *t)
{
    return t->written;
}

kd_status kd_tar_finish(kd_tar_writer *t, kd_err *err)
{
    static const uint8_t zeros[2 * RECORD];
    kd_status status = append(t, zeros, sizeof zeros, err);
    if (status != KD_OK) {
        kd_tar_discard(t);
        return status;
    }
    status = kd_io_replace_commit(t->file, err);
    t->file = NULL;
    kd_tar_discard(t);
    return status;
}

void kd_tar_discard(kd_tar_writer *t)
{
    if (!t)
        return;
    kd_io_replace_abort(t->file);
    kd_free(t->path);
    kd_free(t);
}

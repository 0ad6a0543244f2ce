#include "common/data/skip_list.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/base/io.h"
#include "common/base/mem.h"

enum { TEXT_CAP = 4 * 8192 /* every byte of a long path escaped as \xNN */, BUFFER = 1 << 16 };

struct kd_skip_list {
    char *path;
    kd_replace *file; /* NULL: nothing was added yet */
    char text[TEXT_CAP];
    char buffer[BUFFER]; /* written together: one system call for many lines */
    size_t used;
};

kd_status kd_skip_list_create(kd_skip_list **out, const char *product, kd_err *err)
{
    kd_skip_list *s = kd_calloc(1, sizeof *s);
    *out = NULL;
    if (s)
        s->path = kd_asprintf("%s.skipped.tsv", product);
    if (!s || !s->path) {
        kd_free(s);
        return kd_fail(err, KD_EFAIL, "%s: out of memory for the list of skipped inputs", product);
    }
    *out = s;
    return KD_OK;
}

const char *kd_skip_list_path(const kd_skip_list *s)
{
    return s->path;
}

static kd_status put(kd_skip_list *s, const char *text, size_t n, kd_err *err)
{
    if (n > BUFFER - s->used) {
        KD_TRY(kd_io_replace_write(s->file, s->buffer, s->used, err));
        s->used = 0;
    }
    memcpy(s->buffer + s->used, text, n);
    s->used += n;
    return KD_OK;
}

static kd_status put_escaped(kd_skip_list *s, const char *text, char end, kd_err *err)
{
    size_t n;
    kd_text_escape(s->text, sizeof s->text - 1, text);
    n = strlen(s->text);
    s->text[n++] = end;
    return put(s, s->text, n, err);
}

kd_status kd_skip_list_add(kd_skip_list *s, const char *path, const char *reason, kd_err *err)
{
    if (!s->file)
        KD_TRY(kd_io_replace_begin(&s->file, s->path, err));
    KD_TRY(put_escaped(s, path, '\t', err));
    return put_escaped(s, reason, '\n', err);
}

static void release(kd_skip_list *s)
{
    kd_free(s->path);
    kd_free(s);
}

kd_status kd_skip_list_finish(kd_skip_list *s, kd_err *err)
{
    kd_status status = KD_OK;
    if (!s->file) {
        if (unlink(s->path) != 0 && errno != ENOENT)
            status = kd_fail_errno(err, KD_EFAIL, "%s: the list of an earlier run can't be removed", s->path);
    } else {
        status = kd_io_replace_write(s->file, s->buffer, s->used, err);
        if (status == KD_OK)
            status = kd_io_replace_commit(s->file, err);
        else
            kd_io_replace_abort(s->file);
    }
    release(s);
    return status;
}

void kd_skip_list_discard(kd_skip_list *s)
{
    if (!s)
        return;
    kd_io_replace_abort(s->file);
    release(s);
}

kd_status kd_max_skipped_parse(const char *text, uint64_t total, uint64_t *limit, kd_err *err)
{
    char *end = NULL;
    double v = strtod(text, &end);
    int percent = end != text && strcmp(end, "%") == 0;
    if (end == text || (*end != '\0' && !percent) || !(v >= 0) || (percent ? v > 100 : v > 1e15 || v != floor(v)))
        return kd_fail(err, KD_EUSAGE, "--max-skipped %s: expected a count such as 20 or a share such as 1%%", text);
    *limit = percent ? (uint64_t)floor((double)total * v / 100.0) : (uint64_t)v;
    return KD_OK;
}

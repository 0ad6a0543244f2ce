#include "cache/shard_move.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "cache/manifest.h"
#include "cache/store.h"
#include "common/base/io.h"
#include "common/base/log.h"
#include "common/base/mem.h"
#include "common/base/progress.h"
#include "common/base/threads.h"

enum { CHUNK = 4 << 20 };

typedef struct move {
    const char *from, *to;
    char *moving, *from_manifest, *to_manifest;
    kd_manifest manifest; /* of from */
} move;

static kd_status write_all(int fd, const uint8_t *bytes, size_t size, const char *path, kd_err *err)
{
    while (size > 0) {
        ssize_t n = write(fd, bytes, size);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return kd_io_write_failed(path, "writing failed", err);
        bytes += n;
        size -= (size_t)n;
    }
    return KD_OK;
}

/* Every byte of `in` to `out`; *sha is of what was read. */
static kd_status copy_bytes(const move *m, int in, int out, kd_sha256 *sha, kd_err *err)
{
    uint8_t *chunk = kd_malloc(CHUNK);
    kd_sha256_ctx *hash = chunk ? kd_sha256_begin() : NULL;
    kd_progress *progress = kd_progress_create("moving", "MiB", m->manifest.bytes >> 20, 0, 0);
    kd_status status = hash ? KD_OK : kd_fail(err, KD_EFAIL, "%s: out of memory while moving it", m->from);
    uint64_t done = 0;
    ssize_t n = 1;
    while (status == KD_OK && n > 0) {
        if ((status = kd_stop_requested()) != KD_OK) {
            kd_fail(err, status, "stopped while moving %s to %s; run the same command again to go on", m->from, m->to);
            break;
        }
        n = read(in, chunk, CHUNK);
        if (n < 0 && errno == EINTR) {
            n = 1;
            continue;
        }
        if (n < 0) {
            status = kd_fail_errno(err, KD_EFAIL, "%s: reading failed", m->from);
            break;
        }
        kd_sha256_update(hash, chunk, (size_t)n);
        status = write_all(out, chunk, (size_t)n, m->moving, err);
        kd_progress_update(progress, (done += (uint64_t)n) >> 20, 0, NULL);
    }
    if (hash)
        *sha = kd_sha256_final(hash);
    kd_progress_finish(progress);
    kd_free(chunk);
    return status;
}

/* from -> .X.kdc.moving, durable and read-only. */
static kd_status copy(const move *m, kd_err *err)
{
    kd_sha256 sha;
    kd_status status;
    int in = open(m->from, O_RDONLY | O_CLOEXEC), out;
    if (in < 0)
        return kd_fail_errno(err, KD_EFAIL, "%s: can't be opened", m->from);
    unlink(m->moving); /* of an interrupted move, and maybe read-only already */
    out = open(m->moving, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
    status = out >= 0 ? copy_bytes(m, in, out, &sha, err) : kd_io_write_failed(m->moving, "can't be created", err);
    if (status == KD_OK && memcmp(sha.b, m->manifest.file_sha.b, sizeof sha.b) != 0)
        status = kd_fail(err, KD_EDAMAGED, "%s: its SHA-256 isn't the one in its manifest: it was damaged after it was sealed; remove it with its manifest and run the same command again", m->from);
    if (status == KD_OK && (fsync(out) != 0 || fchmod(out, 0444) != 0))
        status = kd_io_write_failed(m->moving, "can't be completed", err);
    if (out >= 0 && close(out) != 0 && status == KD_OK) /* where NFS reports what it couldn't write */
        status = kd_io_write_failed(m->moving, "can't be completed", err);
    close(in);
    if (status != KD_OK && out >= 0)
        unlink(m->moving);
    return status;
}

/* `to` holds all the bytes, but its manifest is gone. */
static int arrived(const move *m)
{
    kd_sha256 sha;
    return kd_io_exists(m->to) && kd_sha256_file(m->to, &sha, NULL) == KD_OK && memcmp(sha.b, m->manifest.file_sha.b, sizeof sha.b) == 0;
}

static kd_status copy_manifest(const move *m, kd_err *err)
{
    uint8_t *text;
    size_t size;
    kd_status status;
    KD_TRY(kd_io_read_all(m->from_manifest, (size_t)1 << 30, &text, &size, err));
    status = kd_io_write_atomic(m->to_manifest, text, size, err);
    kd_free(text);
    return status;
}

/* Whether `there` has every view of `ours`. */
static int has_all_views(const kd_cache *there, const kd_cache *ours)
{
    for (size_t i = 0; i < kd_cache_images(ours); i++) {
        const kd_image_entry *e = kd_cache_image(ours, i), *same = kd_cache_find_image(there, &e->image);
        for (uint32_t k = 0; k < e->views; k++) {
            if (!same || !kd_image_find_view(same, kd_image_view(e, k)))
                return 0;
        }
    }
    return 1;
}

/* *covered: the shard at `to` is of the same recipe and has all that is about to be removed here. */
static kd_status compare_views(const move *m, int *covered, kd_err *err)
{
    kd_cache *there, *ours = NULL;
    kd_status status;
    KD_TRY(kd_cache_open(&there, &m->to, 1, err));
    status = kd_cache_open(&ours, &m->from, 1, err);
    *covered = status == KD_OK && memcmp(kd_cache_recipe(there)->sha.b, kd_cache_recipe(ours)->sha.b, sizeof kd_cache_recipe(there)->sha.b) == 0 && has_all_views(there, ours);
    kd_cache_close(there);
    kd_cache_close(ours);
    return status;
}

/* `to` has a manifest. Its shard is this one, or one that a job on another machine has made from the same images meanwhile. */
static kd_status compare(const move *m, kd_err *err)
{
    kd_manifest there;
    int same, covered = 0;
    KD_TRY(kd_manifest_read(&there, m->to, err));
    same = memcmp(there.file_sha.b, m->manifest.file_sha.b, sizeof there.file_sha.b) == 0;
    kd_manifest_free(&there);
    if (same)
        return KD_OK;
    KD_TRY(compare_views(m, &covered, err));
    if (!covered)
        return kd_fail(err, KD_EMISMATCH, "%s and %s are different shards of one name, and the second lacks views of the first; move one of them out of the way", m->from, m->to);
    kd_log(KD_LOG_WARN, "%s is there already, made elsewhere; %s is removed", m->to, m->from);
    return KD_OK;
}

static kd_status run(move *m, kd_err *err)
{
    const char *slash = strrchr(m->to, '/');
    m->moving = slash ? kd_asprintf("%.*s/.%s.moving", (int)(slash - m->to), m->to, slash + 1) : kd_asprintf(".%s.moving", m->to);
    m->from_manifest = kd_manifest_path(m->from);
    m->to_manifest = kd_manifest_path(m->to);
    if (!m->moving || !m->from_manifest || !m->to_manifest)
        return kd_fail(err, KD_EFAIL, "%s: out of memory while moving it", m->from);
    KD_TRY(kd_manifest_read(&m->manifest, m->from, err));
    if (kd_io_exists(m->to) && kd_io_exists(m->to_manifest)) {
        KD_TRY(compare(m, err));
    } else {
        int there = arrived(m);
        if (!there)
            KD_TRY(copy(m, err));
        kd_io_remove_temporaries(m->to_manifest);
        KD_TRY(copy_manifest(m, err)); /* first: whoever reads the folder meanwhile would take a shard without one for a damaged one */
        if (!there && rename(m->moving, m->to) != 0)
            return kd_io_write_failed(m->to, "the moved shard can't be put in its place", err);
        KD_TRY(kd_io_fsync_dir_of(m->to, err));
    }
    if (unlink(m->from_manifest) != 0 || unlink(m->from) != 0) /* in this order no manifest is left alone */
        return kd_fail_errno(err, KD_EFAIL, "%s: moved, but it can't be removed", m->from);
    return KD_OK;
}

kd_status kd_shard_move(const char *from, const char *to, kd_err *err)
{
    move m = {.from = from, .to = to};
    kd_status status = run(&m, err);
    kd_manifest_free(&m.manifest);
    kd_free(m.moving);
    kd_free(m.from_manifest);
    kd_free(m.to_manifest);
    return status;
}

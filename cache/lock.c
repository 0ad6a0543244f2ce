#include "cache/lock.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "common/base/io.h"
#include "common/base/mem.h"

struct kd_lock {
    char *path;
    int fd;
};

/* The holder's line; empty where it can't be read. */
static void read_holder(int fd, char *line, size_t cap)
{
    ssize_t n = pread(fd, line, cap - 1, 0);
    line[n > 0 ? n : 0] = 0;
    line[strcspn(line, "\n")] = 0;
}

/* A holder that has just taken the lock hasn't written its line yet, and that of a killed one may still be there: a line counts when it stays for a moment. */
static kd_status held(int fd, const char *path, const char *what, kd_err *err)
{
    static const struct timespec moment = {0, 20000000};
    char holder[300], before[300] = "";
    read_holder(fd, holder, sizeof holder);
    for (int i = 0; i < 25 && (!holder[0] || strcmp(holder, before) != 0); i++) {
        memcpy(before, holder, sizeof before);
        nanosleep(&moment, NULL);
        read_holder(fd, holder, sizeof holder);
    }
    return kd_fail(err, KD_ELOCKED, "%s: being written by another process (%s, says %s); wait for it to end, or stop it and run the same command again", what,
                   holder[0] ? holder : "unknown", path);
}

/* True when fd is still the file behind path: its last owner may have removed it between our open and our flock. */
static int is_current(int fd, const char *path)
{
    struct stat a, b;
    return fstat(fd, &a) == 0 && stat(path, &b) == 0 && a.st_ino == b.st_ino && a.st_dev == b.st_dev;
}

static kd_status write_holder(int fd, const char *path, kd_err *err)
{
    char host[200] = "unknown host", text[300];
    int n;
    gethostname(host, sizeof host - 1);
    host[sizeof host - 1] = 0;
    n = snprintf(text, sizeof text, "pid %ld on %s\n", (long)getpid(), host);
    if (ftruncate(fd, 0) != 0 || pwrite(fd, text, (size_t)n, 0) != n)
        return kd_io_write_failed(path, "the lock can't be written", err);
    return KD_OK;
}

kd_status kd_lock_take(kd_lock **out, const char *path, const char *what, kd_err *err)
{
    kd_lock *l;
    kd_status status;
    int fd;
    *out = NULL;
    for (;;) {
        fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0666);
        if (fd < 0) {
            int cause = errno;
            KD_TRY(kd_io_check_target(path, err));
            errno = cause;
            return kd_io_write_failed(path, "the lock can't be created", err);
        }
        if (flock(fd, LOCK_EX | LOCK_NB) != 0) {
            status = errno == EWOULDBLOCK ? held(fd, path, what, err) : kd_fail_errno(err, KD_EFAIL, "%s: can't be locked", path);
            close(fd);
            return status;
        }
        if (is_current(fd, path))
            break;
        close(fd);
    }
    status = write_holder(fd, path, err);
    l = status == KD_OK ? kd_calloc(1, sizeof *l) : NULL;
    if (l && !(l->path = kd_strdup(path))) {
        kd_free(l);
        l = NULL;
    }
    if (!l) {
        unlink(path);
        close(fd);
        return status != KD_OK ? status : kd_fail(err, KD_EFAIL, "%s: out of memory while locking", path);
    }
    l->fd = fd;
    *out = l;
    return KD_OK;
}

void kd_lock_release(kd_lock *l)
{
    if (!l)
        return;
    unlink(l->path); /* while it is still held, so that nobody's new lock is removed */
    close(l->fd);
    kd_free(l->path);
    kd_free(l);
}

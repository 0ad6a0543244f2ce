#include "common/base/io.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <mntent.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "common/base/mem.h"

static atomic_size_t fail_countdown;
static atomic_int fail_error;

void kd_io_fail_after(size_t n, int error)
{
    atomic_store(&fail_error, error);
    atomic_store(&fail_countdown, n);
}

/* True when the test hook wants this system call to fail; errno is set then. */
static int must_fail(void)
{
    size_t n = atomic_load_explicit(&fail_countdown, memory_order_relaxed);
    while (n > 0) {
        if (atomic_compare_exchange_weak(&fail_countdown, &n, n - 1)) {
            if (n == 1)
                errno = atomic_load(&fail_error);
            return n == 1;
        }
    }
    return 0;
}

/* Opens for reading without ever waiting for a writer of a FIFO, and accepts regular files only. */
static kd_status open_regular(const char *path, int *fd, struct stat *st, kd_err *err)
{
    *fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (*fd < 0)
        return kd_fail_errno(err, KD_EFAIL, "%s: can't be opened", path);
    if (fstat(*fd, st) != 0) {
        kd_status status = kd_fail_errno(err, KD_EFAIL, "%s: can't be examined", path);
        close(*fd);
        return status;
    }
    if (!S_ISREG(st->st_mode)) {
        close(*fd);
        return kd_fail(err, KD_EFAIL, "%s: %s, not a regular file", path, S_ISDIR(st->st_mode) ? "a folder" : "a device, pipe or socket");
    }
    return KD_OK;
}

static kd_status read_fd(int fd, const char *path, uint8_t *buf, size_t size, kd_err *err)
{
    size_t done = 0;
    while (done < size) {
        ssize_t n = read(fd, buf + done, size - done);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return kd_fail_errno(err, KD_EFAIL, "%s: can't be read at byte %zu", path, done);
        if (n == 0)
            return kd_fail(err, KD_EFAIL, "%s: changed while being read: it ended at byte %zu of %zu", path, done, size);
        done += (size_t)n;
    }
    for (;;) {
        uint8_t extra;
        ssize_t n = read(fd, &extra, 1);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return kd_fail_errno(err, KD_EFAIL, "%s: can't be read at byte %zu", path, done);
        if (n > 0)
            return kd_fail(err, KD_EFAIL, "%s: changed while being read: it grew beyond %zu bytes", path, size);
        return KD_OK;
    }
}

/* Room for `want` bytes and the NUL after them; grown by half so that a loop over files rarely allocates. */
static kd_status grow(const char *path, uint8_t **buf, size_t *cap, size_t want, kd_err *err)
{
    size_t bigger = want + want / 2 + 1;
    uint8_t *p;
    if (want < *cap && *buf)
        return KD_OK;
    p = want > SIZE_MAX / 2 ? NULL : kd_malloc(bigger);
    if (!p)
        return kd_fail(err, KD_EFAIL, "%s: out of memory: no room for %zu bytes", path, want);
    kd_free(*buf);
    *buf = p;
    *cap = bigger;
    return KD_OK;
}

kd_status kd_io_read_into(const char *path, size_t max_bytes, uint8_t **buf, size_t *cap, size_t *size, kd_err *err)
{
    struct stat st;
    kd_status status;
    size_t want;
    int fd;
    KD_TRY(open_regular(path, &fd, &st, err));
    if (st.st_size < 0 || (uint64_t)st.st_size > max_bytes) {
        close(fd);
        return kd_fail(err, KD_EFAIL, "%s: %lld bytes are above the limit of %zu", path, (long long)st.st_size, max_bytes);
    }
    want = (size_t)st.st_size;
    status = grow(path, buf, cap, want, err);
    if (status == KD_OK)
        status = read_fd(fd, path, *buf, want, err);
    close(fd);
    if (status == KD_OK) {
        (*buf)[want] = 0;
        *size = want;
    }
    return status;
}

kd_status kd_io_read_all(const char *path, size_t max_bytes, uint8_t **bytes, size_t *size, kd_err *err)
{
    size_t cap = 0;
    kd_status status;
    *bytes = NULL;
    *size = 0;
    status = kd_io_read_into(path, max_bytes, bytes, &cap, size, err);
    if (status != KD_OK) {
        kd_free(*bytes);
        *bytes = NULL;
    }
    return status;
}

static kd_status pread_all(int fd, const char *path, uint64_t offset, uint8_t *buf, size_t size, kd_err *err)
{
    for (size_t done = 0; done < size;) {
        ssize_t n = pread(fd, buf + done, size - done, (off_t)(offset + done));
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return kd_fail_errno(err, KD_EFAIL, "%s: can't be read at byte %llu", path, (unsigned long long)(offset + done));
        if (n == 0)
            return kd_fail(err, KD_EFAIL, "%s: changed while being read: it ended at byte %llu", path, (unsigned long long)(offset + done));
        done += (size_t)n;
    }
    return KD_OK;
}

kd_status kd_io_read_part(const char *path, uint64_t file_size, uint64_t offset, size_t size, uint8_t **buf, size_t *cap, kd_err *err)
{
    struct stat st;
    kd_status status;
    int fd;
    KD_ASSERT(offset <= file_size && size <= file_size - offset);
    KD_TRY(open_regular(path, &fd, &st, err));
    status = (uint64_t)st.st_size == file_size ? KD_OK
                                               : kd_fail(err, KD_EFAIL, "%s: changed: it had %llu bytes and has %lld now", path, (unsigned long long)file_size, (long long)st.st_size);
    if (status == KD_OK)
        status = grow(path, buf, cap, size, err);
    if (status == KD_OK)
        status = pread_all(fd, path, offset, *buf, size, err);
    close(fd);
    if (status == KD_OK)
        (*buf)[size] = 0;
    return status;
}

kd_status kd_io_map(const char *path, kd_map *map, kd_err *err)
{
    struct stat st;
    void *p;
    int fd;
    map->data = NULL;
    map->size = 0;
    KD_TRY(open_regular(path, &fd, &st, err));
    if (st.st_size == 0) {
        close(fd);
        return KD_OK;
    }
    p = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
    if (p == MAP_FAILED) {
        kd_status status = kd_fail_errno(err, KD_EFAIL, "%s: %lld bytes can't be mapped", path, (long long)st.st_size);
        close(fd);
        return status;
    }
    close(fd);
    map->data = p;
    map->size = (size_t)st.st_size;
    return KD_OK;
}

void kd_io_unmap(kd_map *map)
{
    if (map->data)
        munmap((void *)(uintptr_t)map->data, map->size);
    map->data = NULL;
    map->size = 0;
}

void kd_io_map_release(const kd_map *map, size_t at, size_t n)
{
    enum { WINDOW = 1 << 16 }; /* a read makes its neighbours resident too, as far as they are in the page cache (Linux: fault_around_bytes) */
    KD_ASSERT(at <= map->size && n <= map->size - at);
    uintptr_t base = (uintptr_t)map->data, limit = base + map->size, start = (base + at) / WINDOW * WINDOW;
    uintptr_t end = (base + at + n + WINDOW - 1) / WINDOW * WINDOW;
    start = start < base ? base : start;
    end = end > limit ? limit : end;
    if (n > 0) /* advice: where it isn't followed, only memory is lost */
        (void)madvise((void *)start, end - start, MADV_DONTNEED);
}

struct kd_replace {
    char *path, *temporary;
    int fd;
    uint64_t written;
};

static void replace_free(kd_replace *r)
{
    if (!r)
        return;
    if (r->fd >= 0)
        close(r->fd);
    kd_free(r->path);
    kd_free(r->temporary);
    kd_free(r);
}

kd_status kd_io_replace_begin(kd_replace **out, const char *path, kd_err *err)
{
    static atomic_uint counter; /* two threads may replace files of one name in one process */
    *out = NULL;
    KD_TRY(kd_io_check_target(path, err));
    kd_replace *r = kd_calloc(1, sizeof *r);
    kd_status status;
    *out = NULL;
    if (r) {
        r->fd = -1;
        r->path = kd_strdup(path);
        r->temporary = kd_asprintf("%s.tmp.%ld.%u", path, (long)getpid(), atomic_fetch_add(&counter, 1));
    }
    if (!r || !r->path || !r->temporary) {
        replace_free(r);
        return kd_fail(err, KD_EFAIL, "%s: out of memory while preparing to write", path);
    }
    r->fd = open(r->temporary, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0666);
    if (r->fd < 0) {
        status = kd_io_write_failed(r->temporary, "can't be created", err);
        replace_free(r);
        return status;
    }
    *out = r;
    return KD_OK;
}

kd_status kd_io_replace_write(kd_replace *r, const void *bytes, size_t size, kd_err *err)
{
    const uint8_t *p = bytes;
    while (size > 0) {
        ssize_t n = must_fail() ? -1 : write(r->fd, p, size);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0) {
            char what[64];
            snprintf(what, sizeof what, "can't be written after %llu bytes", (unsigned long long)r->written);
            return kd_io_write_failed(r->temporary, what, err);
        }
        p += n;
        size -= (size_t)n;
        r->written += (uint64_t)n;
    }
    return KD_OK;
}

kd_status kd_io_replace_commit(kd_replace *r, kd_err *err)
{
    kd_status status = KD_OK;
    int closed;
    if (must_fail() || fsync(r->fd) != 0)
        status = kd_io_write_failed(r->temporary, "can't be written to disk", err);
    closed = close(r->fd);
    r->fd = -1;
    if (status == KD_OK && closed != 0) /* NFS reports a full disk here */
        status = kd_io_write_failed(r->temporary, "can't be closed", err);
    if (status == KD_OK && (must_fail() || rename(r->temporary, r->path) != 0))
        status = kd_io_write_failed(r->path, "can't be replaced", err);
    if (status == KD_OK)
        status = kd_io_fsync_dir_of(r->path, err);
    else
        unlink(r->temporary);
    replace_free(r);
    return status;
}

void kd_io_replace_abort(kd_replace *r)
{
    if (!r)
        return;
    unlink(r->temporary);
    replace_free(r);
}

kd_status kd_io_write_atomic(const char *path, const void *bytes, size_t size, kd_err *err)
{
    kd_replace *r;
    kd_status status;
    KD_TRY(kd_io_replace_begin(&r, path, err));
    status = kd_io_replace_write(r, bytes, size, err);
    if (status != KD_OK) {
        kd_io_replace_abort(r);
        return status;
    }
    return kd_io_replace_commit(r, err);
}

kd_status kd_io_mkdirs(const char *path, kd_err *err)
{
    char *copy = kd_strdup(path);
    kd_status status = KD_OK;
    if (!copy)
        return kd_fail(err, KD_EFAIL, "%s: out of memory while creating the folder", path);
    for (char *p = copy + 1; status == KD_OK; p++) {
        char here = *p;
        if (here != '/' && here != '\0')
            continue;
        *p = '\0';
        if (mkdir(copy, 0777) == 0) {
            status = kd_io_fsync_dir_of(copy, err);
        } else if (!(errno == EEXIST && kd_io_is_dir(copy))) {
            if (errno == EEXIST)
                errno = ENOTDIR;
            status = kd_io_write_failed(copy, "the folder can't be created", err);
        }
        if (here == '\0')
            break;
        *p = here;
    }
    kd_free(copy);
    return status;
}

/* The folder that holds path: "." for a bare name. NULL when memory is out. */
static char *parent_of(const char *path)
{
    const char *slash = strrchr(path, '/');
    if (!slash)
        return kd_strdup(".");
    if (slash == path)
        return kd_strdup("/");
    return kd_asprintf("%.*s", (int)(slash - path), path);
}

/* NAME.tmp.PID.N, as kd_io_replace_begin calls what isn't whole yet; `of`: NAME must be this one; NULL: any. */
static int is_temporary(const char *name, const char *of)
{
    const char *tail;
    size_t pid, n;
    if (of && strncmp(name, of, strlen(of)) != 0)
        return 0;
    tail = of ? name + strlen(of) : strstr(name, ".tmp.");
    if (!tail || strncmp(tail, ".tmp.", 5) != 0)
        return 0;
    pid = strspn(tail + 5, "0123456789");
    n = pid > 0 && tail[5 + pid] == '.' ? strspn(tail + 6 + pid, "0123456789") : 0;
    return n > 0 && tail[6 + pid + n] == 0;
}

void kd_io_remove_temporaries(const char *path)
{
    const char *slash = strrchr(path, '/');
    const char *of = kd_io_is_dir(path) ? NULL : slash ? slash + 1 : path;
    char *folder = of ? parent_of(path) : kd_strdup(path);
    DIR *d = folder ? opendir(folder) : NULL;
    for (struct dirent *e; d && (e = readdir(d)) != NULL;) {
        char *file = is_temporary(e->d_name, of) ? kd_asprintf("%s/%s", folder, e->d_name) : NULL;
        if (file)
            unlink(file);
        kd_free(file);
    }
    if (d)
        closedir(d);
    kd_free(folder);
}

kd_status kd_io_check_target(const char *path, kd_err *err)
{
    char *dir = parent_of(path);
    kd_status status = KD_OK;
    if (!dir)
        return kd_fail(err, KD_EFAIL, "%s: out of memory while preparing to write", path);
    if (kd_io_is_dir(path))
        status = kd_fail(err, KD_EFAIL, "%s: a folder, not a file that can be written; give the name of a file in it", path);
    else if (!kd_io_is_dir(dir))
        status = kd_fail(err, KD_EFAIL, "%s: can't be written: there is no folder %s; create it, or give another path", path, dir);
    else if (access(dir, W_OK) != 0)
        status = kd_fail_errno(err, KD_EFAIL, "%s: can't be written: nothing can be created in the folder %s", path, dir);
    kd_free(dir);
    return status;
}

kd_status kd_io_fsync_dir_of(const char *path, kd_err *err)
{
    char *dir = parent_of(path);
    kd_status status = KD_OK;
    int fd;
    if (!dir)
        return kd_fail(err, KD_EFAIL, "%s: out of memory while syncing its folder", path);
    fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0) {
        status = kd_fail_errno(err, KD_EFAIL, "%s: the folder can't be opened", dir);
    } else {
        /* Some network file systems can't sync a folder and say EINVAL: there is nothing more to do there. */
        if ((must_fail() || fsync(fd) != 0) && errno != EINVAL)
            status = kd_io_write_failed(dir, "the folder can't be written to disk", err);
        close(fd);
    }
    kd_free(dir);
    return status;
}

int kd_io_exists(const char *path)
{
    struct stat st;
    return stat(path, &st) == 0;
}

int kd_io_is_dir(const char *path)
{
    struct stat st;
    return stat(path, &st) == 0 && S_ISDIR(st.st_mode);
}

kd_status kd_io_file_size(const char *path, uint64_t *size, kd_err *err)
{
    struct stat st;
    if (stat(path, &st) != 0)
        return kd_fail_errno(err, KD_EFAIL, "%s: can't be examined", path);
    if (!S_ISREG(st.st_mode))
        return kd_fail(err, KD_EFAIL, "%s: not a regular file", path);
    *size = (uint64_t)st.st_size;
    return KD_OK;
}

kd_status kd_io_free_bytes(const char *path, uint64_t *bytes, kd_err *err)
{
    char *p = kd_strdup(path);
    struct statvfs fs;
    kd_status status = KD_OK;
    while (p && statvfs(p, &fs) != 0) {
        char *up;
        if (errno != ENOENT && errno != ENOTDIR) {
            status = kd_fail_errno(err, KD_EFAIL, "%s: the free space can't be read", p);
            kd_free(p);
            return status;
        }
        up = parent_of(p);
        kd_free(p);
        p = up;
    }
    if (!p)
        return kd_fail(err, KD_EFAIL, "%s: out of memory while reading the free space", path);
    kd_free(p);
    *bytes = (uint64_t)fs.f_bavail * fs.f_frsize;
    return KD_OK;
}

/* The topmost mount whose folder is a beginning of the path. */
static void name_mount(const char *path, char *buf, size_t cap)
{
    char line[2 * PATH_MAX];
    struct mntent m;
    size_t longest = 0;
    FILE *mounts = setmntent("/proc/self/mounts", "re");
    while (mounts && getmntent_r(mounts, &m, line, sizeof line)) {
        size_t n = strlen(m.mnt_dir);
        if (n < longest || strncmp(path, m.mnt_dir, n) != 0 || (n > 1 && path[n] != '/' && path[n] != '\0'))
            continue;
        longest = n;
        snprintf(buf, cap, "the file system at %s (%s)", m.mnt_dir, m.mnt_type);
    }
    if (mounts)
        endmntent(mounts);
}

const char *kd_io_file_system(const char *path, char *buf, size_t cap)
{
    char *p = kd_strdup(path), *real = NULL;
    snprintf(buf, cap, "its file system");
    while (p && !(real = realpath(p, NULL)) && (errno == ENOENT || errno == ENOTDIR) && strcmp(p, ".") != 0 && strcmp(p, "/") != 0) {
        char *up = parent_of(p);
        kd_free(p);
        p = up;
    }
    if (real)
        name_mount(real, buf, cap);
    free(real); /* libc's own allocation */
    kd_free(p);
    return buf;
}

kd_status kd_io_write_failed(const char *path, const char *what, kd_err *err)
{
    int cause = errno;
    char where[PATH_MAX], size[32];
    uint64_t free_bytes = 0;
    if (cause != ENOSPC && cause != EDQUOT && cause != EFBIG)
        return kd_fail_errno(err, KD_EFAIL, "%s: %s", path, what);
    (void)kd_io_free_bytes(path, &free_bytes, NULL);
    return kd_fail(err, KD_ENOSPACE, "%s: %s: %s; %s has %s free (see also quotas and ulimit -f)", path, what, strerror(cause), kd_io_file_system(path, where, sizeof where),
                   kd_io_size_text(free_bytes, size, sizeof size));
}

const char *kd_io_size_text(uint64_t bytes, char *buf, size_t cap)
{
    static const char *const units[] = {"B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
    double v = (double)bytes;
    size_t u = 0;
    while (v >= 1024 && u + 1 < sizeof units / sizeof *units) {
        v /= 1024;
        u++;
    }
    snprintf(buf, cap, u == 0 ? "%.0f %s" : "%.1f %s", v, units[u]);
    return buf;
}

kd_status kd_io_size_parse(const char *text, uint64_t *bytes, kd_err *err)
{
    static const char letters[] = "kmgtpe";
    char *end = NULL;
    const char *unit, *letter;
    double value, scale = 1;
    int valid = text[0] >= '0' && text[0] <= '9'; /* no sign, no blank, no "inf" */
    errno = 0;
    value = valid ? strtod(text, &end) : 0;
    if (valid && memchr(text, 'x', (size_t)(end - text))) /* strtod reads hexadecimal too */
        valid = 0;
    if (!valid)
        return kd_fail(err, KD_EUSAGE, "\"%s\" is not a size; write for example 4096, 500MB, 32GB or 1.5GiB", text);
    for (unit = end; *unit == ' ';)
        unit++;
    if (*unit != '\0' && (letter = strchr(letters, *unit | 0x20))) {
        double base = unit[1] == 'i' ? 1024 : 1000;
        for (const char *l = letters; l <= letter; l++)
            scale *= base;
        unit += unit[1] == 'i' ? 2 : 1;
    }
    if (*unit == 'B' || *unit == 'b')
        unit++;
    if (*unit != '\0' || errno == ERANGE)
        return kd_fail(err, KD_EUSAGE, "\"%s\" is not a size; write for example 4096, 500MB, 32GB or 1.5GiB", text);
    if (!(value * scale < 9.2e18))
        return kd_fail(err, KD_EUSAGE, "\"%s\" is above the largest size of 9.2EB", text);
    *bytes = (uint64_t)(value * scale + 0.5);
    return KD_OK;
}

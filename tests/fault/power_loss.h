/* Simulated power failures, for one test program of each writer. The program's own open, write, pwrite, writev, ftruncate, rename, unlink, fsync and fdatasync stand in front of libc's (also for the
 * libraries) and log what happens in one folder and the folders in it. From the log a test builds the folder as a power failure may leave it, at any point:
 *
 *   - what was written and not yet followed by a sync of that file is there, missing, there in part (sectors of 512 bytes or pages of 4,096), or there although earlier writes are missing;
 *     a longer file may have zeros where its data didn't come;
 *   - a file that was created, renamed or removed is so only for certain once its folder was synced; until then any of these steps may be missing, alone or with all later ones.
 *
 *     watched = folder, logging = 1;
 *     ... work ...                                            // append(NOTE)->note = n where the work has come to something
 *     logging = 0, check_log(NULL);
 *     ... empty the folder; write_image(1 + ft_below(event_count), style, 1); work again
 *     free_log();
 *
 * Folders themselves count as durable from the start. Included by one file of a program. */
#ifndef KD_TESTS_FAULT_POWER_LOSS_H
#define KD_TESTS_FAULT_POWER_LOSS_H

#include "tests/fault/fault_fixture.h"

#include <fcntl.h>
#include <sys/uio.h>

enum { SECTOR = 512, PAGE = 4096, MAX_FDS = 256, MAX_FILES = 64, MAX_CREATED = 4096, PATH_TEXT = 128, FOLDER = -2 };

/* ---- the log ---- */

typedef enum op { CREATE, WRITE, TRUNCATE, SYNC, SYNC_FOLDER, RENAME, UNLINK, NOTE } op; /* NOTE: of the test itself */
typedef struct event {
    op op;
    int file;       /* a number of its own for every file that was ever created */
    int durable;    /* WRITE through a descriptor that was opened with O_DSYNC: on the disk when it returns */
    uint64_t at;    /* WRITE; TRUNCATE: the new size */
    size_t size;
    uint8_t *bytes;
    char name[PATH_TEXT], to[PATH_TEXT]; /* relative to the folder; SYNC_FOLDER: "" or that of a folder in it */
    unsigned note;  /* NOTE */
} event;

typedef struct power_name {
    char text[PATH_TEXT];
    int file;
} power_name;
typedef struct power_folder {
    power_name entry[MAX_FILES];
    int count;
} power_folder;

static event *events;
static size_t event_count, event_capacity;
static int logging, files_created;
static power_folder now;                        /* as running processes see it */
static int fd_file[MAX_FDS], fd_durable[MAX_FDS]; /* file + 1, FOLDER, or 0: not one of ours */
static char fd_folder[MAX_FDS][PATH_TEXT];
static uint64_t logged_size[MAX_CREATED];         /* of each file, by what was logged */
static const char *watched;                       /* the folder whose life is logged */

static int find(const power_folder *f, const char *text)
{
    for (int i = 0; i < f->count; i++) {
        if (strcmp(f->entry[i].text, text) == 0)
            return i;
    }
    return -1;
}

static void link_name(power_folder *f, const char *text, int file)
{
    int i = find(f, text);
    if (i < 0)
        i = f->count++;
    KD_ASSERT(i < MAX_FILES);
    snprintf(f->entry[i].text, sizeof f->entry[i].text, "%s", text);
    f->entry[i].file = file;
}

static void unlink_name(power_folder *f, const char *text)
{
    int i = find(f, text);
    if (i >= 0)
        f->entry[i] = f->entry[--f->count];
}

static event *append(op what)
{
    if (event_count == event_capacity) {
        event_capacity = event_capacity ? 2 * event_capacity : 1024;
        events = realloc(events, event_capacity * sizeof *events);
        KD_ASSERT(events != NULL);
    }
    memset(&events[event_count], 0, sizeof *events);
    events[event_count].op = what;
    return &events[event_count++];
}

/* The name inside the watched folder, "" for itself, or NULL. */
static const char *inside(const char *path)
{
    size_t n = watched ? strlen(watched) : 0;
    if (!logging || strncmp(path, watched, n) != 0 || (path[n] != '/' && path[n] != '\0'))
        return NULL;
    return path[n] == '/' ? path + n + 1 : path + n;
}

static void log_write(int fd, const void *bytes, size_t n, uint64_t offset)
{
    if (!logging || fd >= MAX_FDS || fd_file[fd] <= 0 || n == 0)
        return;
    event *e = append(WRITE);
    e->file = fd_file[fd] - 1;
    e->durable = fd_durable[fd];
    e->at = offset;
    e->size = n;
    e->bytes = malloc(n);
    KD_ASSERT(e->bytes != NULL);
    memcpy(e->bytes, bytes, n);
    if (offset + n > logged_size[e->file])
        logged_size[e->file] = offset + n;
}

/* What a stream (stdio) has appended, whose writes don't come by here: logged when it is synced. */
static void log_appended(int fd)
{
    struct stat st;
    uint8_t *bytes;
    char self[40];
    int file = fd_file[fd] - 1, other;
    if (fstat(fd, &st) != 0 || (uint64_t)st.st_size <= logged_size[file])
        return;
    size_t n = (size_t)st.st_size - logged_size[file];
    bytes = malloc(n);
    snprintf(self, sizeof self, "/proc/self/fd/%d", fd); /* the descriptor itself may be for writing only */
    other = (int)syscall(SYS_openat, AT_FDCWD, self, O_RDONLY);
    KD_ASSERT(bytes != NULL && other >= 0 && syscall(SYS_pread64, other, bytes, n, (off_t)logged_size[file]) == (ssize_t)n);
    syscall(SYS_close, other);
    log_write(fd, bytes, n, logged_size[file]);
    free(bytes);
}

int open(const char *path, int flags, ...)
{
    const char *text = inside(path);
    int existed = access(path, F_OK) == 0, fd;
    mode_t mode = 0;
    va_list ap;
    va_start(ap, flags);
    if (flags & O_CREAT)
        mode = va_arg(ap, mode_t);
    va_end(ap);
    fd = (int)syscall(SYS_openat, AT_FDCWD, path, flags, mode);
    if (fd < 0 || fd >= MAX_FDS)
        return fd;
    fd_file[fd] = 0;
    fd_durable[fd] = (flags & O_DSYNC) != 0;
    if (!text)
        return fd;
    if (flags & O_DIRECTORY) {
        fd_file[fd] = FOLDER;
        snprintf(fd_folder[fd], sizeof fd_folder[fd], "%s", text);
        return fd;
    }
    if (!existed) {
        event *e = append(CREATE);
        KD_ASSERT(files_created < MAX_CREATED);
        e->file = files_created++;
        snprintf(e->name, sizeof e->name, "%s", text);
        link_name(&now, text, e->file);
    } else if (find(&now, text) < 0) {
        return fd; /* made by something that doesn't come by here */
    } else if (flags & O_TRUNC) {
        append(TRUNCATE)->file = now.entry[find(&now, text)].file;
        logged_size[now.entry[find(&now, text)].file] = 0;
    }
    fd_file[fd] = now.entry[find(&now, text)].file + 1;
    return fd;
}
int close(int fd)
{
    if (fd >= 0 && fd < MAX_FDS)
        fd_file[fd] = 0;
    return (int)syscall(SYS_close, fd);
}
ssize_t pwrite(int fd, const void *p, size_t n, off_t offset)
{
    ssize_t done = syscall(SYS_pwrite64, fd, p, n, offset);
    if (done > 0)
        log_write(fd, p, (size_t)done, (uint64_t)offset);
    return done;
}
ssize_t write(int fd, const void *p, size_t n)
{
    off_t offset = logging ? lseek(fd, 0, SEEK_CUR) : 0;
    ssize_t done = syscall(SYS_write, fd, p, n);
    if (done > 0)
        log_write(fd, p, (size_t)done, (uint64_t)offset);
    return done;
}
ssize_t writev(int fd, const struct iovec *v, int n)
{
    off_t offset = logging ? lseek(fd, 0, SEEK_CUR) : 0;
    ssize_t done = syscall(SYS_writev, fd, v, n), left = done;
    for (int i = 0; i < n && left > 0; i++) { /* each buffer an event of its own, so that a failure may come between them */
        size_t part = v[i].iov_len < (size_t)left ? v[i].iov_len : (size_t)left;
        log_write(fd, v[i].iov_base, part, (uint64_t)offset);
        offset += (off_t)part;
        left -= (ssize_t)part;
    }
    return done;
}
int ftruncate(int fd, off_t size)
{
    int rc = (int)syscall(SYS_ftruncate, fd, size);
    if (rc == 0 && logging && fd < MAX_FDS && fd_file[fd] > 0) {
        event *e = append(TRUNCATE);
        e->file = fd_file[fd] - 1;
        e->at = (uint64_t)size;
        logged_size[e->file] = e->at;
    }
    return rc;
}
static int synced(int fd, int rc)
{
    if (rc == 0 && logging && fd < MAX_FDS && fd_file[fd] != 0) {
        if (fd_file[fd] != FOLDER)
            log_appended(fd);
        event *e = append(fd_file[fd] == FOLDER ? SYNC_FOLDER : SYNC);
        e->file = fd_file[fd] - 1;
        snprintf(e->name, sizeof e->name, "%s", fd_file[fd] == FOLDER ? fd_folder[fd] : "");
    }
    return rc;
}
int fsync(int fd) { return synced(fd, (int)syscall(SYS_fsync, fd)); }
int fdatasync(int fd) { return synced(fd, (int)syscall(SYS_fdatasync, fd)); }
int rename(const char *a, const char *b)
{
    int rc = (int)syscall(SYS_rename, a, b);
    const char *from = inside(a), *to = inside(b);
    if (rc == 0 && from && to && find(&now, from) >= 0) {
        event *e = append(RENAME);
        snprintf(e->name, sizeof e->name, "%s", from);
        snprintf(e->to, sizeof e->to, "%s", to);
        e->file = now.entry[find(&now, from)].file;
        unlink_name(&now, from);
        link_name(&now, to, e->file);
    }
    return rc;
}
int unlink(const char *a)
{
    int rc = (int)syscall(SYS_unlink, a);
    const char *text = inside(a);
    if (rc == 0 && text && find(&now, text) >= 0) {
        snprintf(append(UNLINK)->name, sizeof events->name, "%s", text);
        unlink_name(&now, text);
    }
    return rc;
}

/* ---- what a power failure leaves ---- */

typedef enum style { NOTHING, EVERYTHING, SOME_WRITES, TORN_SECTORS, TORN_PAGES, UP_TO_A_POINT, STYLES } style;
static const char *const style_name[STYLES] = {"nothing unsynced is there", "everything is there", "some writes are missing", "sectors of writes are missing", "pages of writes are missing",
                                               "the writes up to a point are there, the last of them torn"};

typedef struct content {
    uint8_t *bytes;
    size_t size, capacity;
} content;

static void resize(content *c, size_t size)
{
    if (size > c->capacity) {
        size_t capacity = 2 * size;
        c->bytes = realloc(c->bytes, capacity);
        KD_ASSERT(c->bytes != NULL);
        memset(c->bytes + c->capacity, 0, capacity - c->capacity);
        c->capacity = capacity;
    }
    if (size < c->size)
        memset(c->bytes + size, 0, c->size - size);
    c->size = size;
}

/* The bytes of the write that stand in units (sectors or pages of the file) whose coin says so. unit 0: all. */
static void apply_write(content *c, const event *e, size_t unit)
{
    uint64_t end = e->at + e->size;
    if (unit == 0 || ft_below(2)) { /* else its size may not have come either */
        if (end > c->size)
            resize(c, end);
    }
    for (uint64_t p = e->at, next; p < end; p = next) {
        next = unit ? (p / unit + 1) * unit : end;
        if (next > end)
            next = end;
        if (unit && ft_below(2))
            continue;
        if (next > c->size)
            resize(c, next);
        memcpy(c->bytes + p, e->bytes + (p - e->at), next - p);
    }
}

static void apply(content *c, const event *e, size_t unit)
{
    if (e->op == TRUNCATE)
        resize(c, e->at);
    else
        apply_write(c, e, unit);
}

static void apply_to_folder(power_folder *f, const event *e)
{
    if (e->op == CREATE) {
        link_name(f, e->name, e->file);
    } else if (e->op == UNLINK) {
        unlink_name(f, e->name);
    } else {
        unlink_name(f, e->name);
        link_name(f, e->to, e->file);
    }
}

/* Of the folder that a sync was of. */
static int is_in(const event *e, const event *sync)
{
    const char *last = strrchr(e->name, '/');
    size_t n = last ? (size_t)(last - e->name) : 0;
    return strlen(sync->name) == n && strncmp(e->name, sync->name, n) == 0;
}

static int is_step_of_folder(const event *e)
{
    return e->op == CREATE || e->op == RENAME || e->op == UNLINK;
}

/* True for the events before `upto` that a later sync of their file or folder (before `upto`) made certain. syncs_work = 0: the disk ignores them. */
static void find_certain(size_t upto, int syncs_work, uint8_t *certain)
{
    memset(certain, 0, event_count);
    for (size_t i = 0; i < upto && syncs_work; i++) {
        certain[i] = (uint8_t)(events[i].op == WRITE && events[i].durable && i + 1 < upto); /* the last one hasn't returned */
        for (size_t k = 0; k < i && (events[i].op == SYNC || events[i].op == SYNC_FOLDER); k++)
            certain[k] |= (uint8_t)(events[i].op == SYNC ? (events[k].op == WRITE || events[k].op == TRUNCATE) && events[k].file == events[i].file
                                                               : is_step_of_folder(&events[k]) && is_in(&events[k], &events[i]));
    }
}

/* The folder's names: what is certain, and of the rest all, none, a beginning, or any steps. */
static power_folder build_folder(size_t upto, const uint8_t *certain, style s)
{
    power_folder f = {.count = 0};
    size_t kind = s == NOTHING ? 0 : s == EVERYTHING ? 1 : ft_below(4), cut = ft_below(upto + 1);
    for (size_t i = 0; i < upto; i++) {
        int coin = kind == 0 ? 0 : kind == 1 ? 1 : kind == 2 ? i < cut : (int)ft_below(2);
        if (is_step_of_folder(&events[i]) && (certain[i] || coin))
            apply_to_folder(&f, &events[i]);
    }
    return f;
}

static content build_file(int file, size_t upto, const uint8_t *certain, style s)
{
    content c = {0};
    size_t cut = ft_below(upto + 1);
    for (size_t i = 0; i < upto; i++) {
        const event *e = &events[i];
        if (e->file != file || (e->op != WRITE && e->op != TRUNCATE))
            continue;
        if (certain[i] || s == EVERYTHING)
            apply(&c, e, 0);
        else if (s == SOME_WRITES ? ft_below(2) : s == UP_TO_A_POINT ? i < cut : s != NOTHING)
            apply(&c, e, s == TORN_SECTORS || (s == UP_TO_A_POINT && i + 1 == cut) ? SECTOR : s == TORN_PAGES ? PAGE : 0);
    }
    return c;
}

static const char *in_watched(const char *text)
{
    static char path[700];
    snprintf(path, sizeof path, "%s/%s", watched, text);
    return path;
}

/* The watched folder, empty but for its folders, becomes what it may be after a power failure between events[upto - 1] and the next. */
static void write_image(size_t upto, style s, int syncs_work)
{
    uint8_t *certain = calloc(event_count, 1);
    power_folder f;
    assert_non_null(certain);
    find_certain(upto, syncs_work, certain);
    f = build_folder(upto, certain, s);
    for (int i = 0; i < f.count; i++) {
        content c = build_file(f.entry[i].file, upto, certain, s);
        fx_write_file(in_watched(f.entry[i].text), c.bytes, c.size);
        free(c.bytes);
    }
    free(certain);
}

/* Nothing has gone past the log: what it says stands on the disk. */
static void check_log(const char *but)
{
    uint8_t *certain = calloc(event_count, 1);
    assert_non_null(certain);
    for (int i = 0; i < now.count; i++) {
        content c = build_file(now.entry[i].file, event_count, certain, EVERYTHING);
        if (!but || strcmp(now.entry[i].text, but) != 0)
            assert_true(ft_same_bytes(in_watched(now.entry[i].text), c.bytes, c.size));
        free(c.bytes);
    }
    free(certain);
}

static void free_log(void)
{
    for (size_t i = 0; i < event_count; i++)
        free(events[i].bytes);
    free(events);
}

#endif

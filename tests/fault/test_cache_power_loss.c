/* Simulated power failures. This program's own open, write, pwrite, writev, ftruncate, rename, unlink, fsync and fdatasync stand in front of libc's (also for LMDB) and log what a writer
 * does to its folder, from the empty folder to the sealed cache. From the log the test builds folders as a power failure may leave them, at any point:
 *
 *   - what was written and not yet followed by a sync of that file is there, missing, there in part (sectors of 512 bytes or pages of 4,096), or there although earlier writes are missing;
 *     a longer file may have zeros where its data didn't come;
 *   - a file that was created, renamed or removed is so only for certain once its folder was synced; until then any of these steps may be missing, alone or with all later ones.
 *
 * The same work is then done again over each such folder. A disk that ignores every sync is the control: there the test must find damage, or it would find none anywhere. */
#include "tests/fault/fault_fixture.h"

#include <fcntl.h>
#include <sys/uio.h>

enum { SECTOR = 512, PAGE = 4096, MAX_FDS = 256, MAX_FILES = 64, FOLDER = -2 };

/* ---- the log ---- */

typedef enum op { CREATE, WRITE, TRUNCATE, SYNC, SYNC_FOLDER, RENAME, UNLINK, ACKNOWLEDGE, SEALED } op;
typedef struct event {
    op op;
    int file;       /* a number of its own for every file that was ever created */
    int durable;    /* WRITE through a descriptor that was opened with O_DSYNC: on the disk when it returns */
    uint64_t at;    /* WRITE; TRUNCATE: the new size */
    size_t size;
    uint8_t *bytes;
    char name[64], to[64];
    unsigned views; /* ACKNOWLEDGE */
} event;

typedef struct name {
    char text[64];
    int file;
} name;
typedef struct folder {
    name entry[MAX_FILES];
    int count;
} folder;

static event *events;
static size_t event_count, event_capacity;
static int logging, files_created;
static folder now;                        /* as running processes see it */
static int fd_file[MAX_FDS], fd_durable[MAX_FDS]; /* file + 1, FOLDER, or 0: not one of ours */

static int find(const folder *f, const char *text)
{
    for (int i = 0; i < f->count; i++) {
        if (strcmp(f->entry[i].text, text) == 0)
            return i;
    }
    return -1;
}

static void link_name(folder *f, const char *text, int file)
{
    int i = find(f, text);
    if (i < 0)
        i = f->count++;
    KD_ASSERT(i < MAX_FILES);
    snprintf(f->entry[i].text, sizeof f->entry[i].text, "%s", text);
    f->entry[i].file = file;
}

static void unlink_name(folder *f, const char *text)
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

/* The name inside the folder of this test, or NULL. */
static const char *inside(const char *path)
{
    size_t n = strlen(fx_dir);
    return logging && strncmp(path, fx_dir, n) == 0 && path[n] == '/' ? path + n + 1 : NULL;
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
    if (logging && strcmp(path, fx_dir) == 0)
        fd_file[fd] = FOLDER;
    if (!text)
        return fd;
    if (!existed) {
        event *e = append(CREATE);
        e->file = files_created++;
        snprintf(e->name, sizeof e->name, "%s", text);
        link_name(&now, text, e->file);
    } else if (flags & O_TRUNC) {
        append(TRUNCATE)->file = now.entry[find(&now, text)].file;
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
    }
    return rc;
}
static int synced(int fd, int rc)
{
    if (rc == 0 && logging && fd < MAX_FDS && fd_file[fd] != 0) {
        event *e = append(fd_file[fd] == FOLDER ? SYNC_FOLDER : SYNC);
        e->file = fd_file[fd] - 1;
    }
    return rc;
}
int fsync(int fd) { return synced(fd, (int)syscall(SYS_fsync, fd)); }
int fdatasync(int fd) { return synced(fd, (int)syscall(SYS_fdatasync, fd)); }
int rename(const char *a, const char *b)
{
    int rc = (int)syscall(SYS_rename, a, b);
    const char *from = inside(a), *to = inside(b);
    if (rc == 0 && from && to) {
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
    if (rc == 0 && text) {
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

static void apply_to_folder(folder *f, const event *e)
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
            certain[k] |= (uint8_t)(events[i].op == SYNC ? (events[k].op == WRITE || events[k].op == TRUNCATE) && events[k].file == events[i].file : is_step_of_folder(&events[k]));
    }
}

/* The folder's names: what is certain, and of the rest all, none, a beginning, or any steps. */
static folder build_folder(size_t upto, const uint8_t *certain, style s)
{
    folder f = {.count = 0};
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

/* The folder as it stands after a power failure between events[upto - 1] and the next. */
static void write_image(size_t upto, style s, int syncs_work)
{
    uint8_t *certain = calloc(event_count, 1);
    folder f;
    assert_non_null(certain);
    find_certain(upto, syncs_work, certain);
    f = build_folder(upto, certain, s);
    for (int i = 0; i < f.count; i++) {
        content c = build_file(f.entry[i].file, upto, certain, s);
        fx_write_file(fx_path(f.entry[i].text), c.bytes, c.size);
        free(c.bytes);
    }
    free(certain);
}

/* ---- the work, and what must be true after a failure ---- */

static char file[600];
static uint8_t *reference;
static size_t reference_size;

/* Two runs, as after a stop: the first ends in the middle of a transaction. */
static void work(void)
{
    kd_recipe r = fx_recipe_full();
    for (int run = 0; run < 2; run++) {
        kd_writer *w;
        must(kd_writer_open(&w, file, &r, NULL, 0, &fx_err));
        for (unsigned n = 0; n < (run ? FT_VIEWS : FT_VIEWS / 2 + 3); n++) {
            if (!ft_has(w, n))
                must(fx_add(w, &r, n / FX_VIEWS, n % FX_VIEWS, &fx_err));
            if ((n + 1) % FT_PER_COMMIT == 0) {
                must(kd_writer_commit(w, &fx_err));
                append(ACKNOWLEDGE)->views = n + 1;
            }
        }
        if (run) {
            must(kd_writer_seal(w, &fx_err));
            append(SEALED);
        }
        kd_writer_close(w);
    }
    kd_recipe_free(&r);
}

typedef enum verdict { GOOD, LOST, CORRUPT } verdict;

/* Opens what the failure left, as the next run would, then does the work again. */
static verdict judge(unsigned acknowledged, int was_sealed, kd_err *err)
{
    kd_recipe r = fx_recipe_full();
    kd_check_result result;
    kd_cache *c;
    kd_writer *w;
    kd_status status;
    unsigned wrong = 0;
    if (ft_exists(file, "") && ft_exists(file, ".json")) { /* whoever looks first may be a reader */
        if (fx_open(&c, file, err) != KD_OK)
            return CORRUPT;
        kd_cache_close(c);
    } else if (was_sealed) {
        return kd_fail(err, KD_EFAIL, "the sealed cache is gone"), LOST;
    }
    status = kd_writer_open(&w, file, &r, NULL, 0, err);
    if (status == KD_OK) {
        for (unsigned n = 0; n < acknowledged; n++) {
            if (!ft_has(w, n))
                return kd_fail(err, KD_EFAIL, "view %u of %u acknowledged ones is gone", n, acknowledged), LOST;
        }
        kd_writer_close(w);
    } else if (status != KD_DONE) {
        return CORRUPT;
    }
    status = ft_write(file, -1, err);
    if (status != KD_OK && status != KD_DONE)
        return CORRUPT;
    if (!ft_same_bytes(file, reference, reference_size))
        return kd_fail(err, KD_EFAIL, "the completed cache has other bytes"), CORRUPT;
    if (fx_open(&c, file, err) != KD_OK || ft_check(c, 1, ft_ignore, NULL, &result, err) != KD_OK || ft_read_all(c, FT_IMAGES, &wrong, err) != KD_OK)
        return CORRUPT;
    kd_cache_close(c);
    kd_recipe_free(&r);
    return result.bad || wrong ? (kd_fail(err, KD_EFAIL, "%llu problems, %u wrong values", (unsigned long long)result.bad, wrong), CORRUPT) : GOOD;
}

/* In a child, so that a crash is a verdict too. quiet: bad verdicts are expected. */
static verdict judge_image(size_t upto, style s, int syncs_work)
{
    unsigned acknowledged = 0;
    int sealed = 0, status;
    pid_t child;
    for (size_t i = 0; i < upto; i++) {
        acknowledged = events[i].op == ACKNOWLEDGE ? events[i].views : acknowledged;
        sealed |= events[i].op == SEALED;
    }
    write_image(upto, s, syncs_work);
    child = fork();
    if (child == 0) {
        verdict v = judge(acknowledged, sealed, &fx_err);
        if (v != GOOD && syncs_work)
            print_error("a failure after step %zu of %zu (%s), %u views acknowledged: %s\n", upto, event_count, style_name[s], acknowledged, fx_err.msg);
        _exit((int)v);
    }
    assert_int_equal(waitpid(child, &status, 0), child);
    ft_empty_dir();
    return WIFEXITED(status) && WEXITSTATUS(status) <= CORRUPT ? (verdict)WEXITSTATUS(status) : CORRUPT;
}

static int setup(void **state)
{
    if (fx_make_dir(state) != 0)
        return -1;
    kd_log_set_level(KD_LOG_ERROR);
    snprintf(file, sizeof file, "%s/a.kdc", fx_dir);
    logging = 1;
    work();
    logging = 0;
    for (int i = 0; i < now.count; i++) { /* nothing has gone past the log */
        content c;
        uint8_t *certain = calloc(event_count, 1);
        assert_non_null(certain);
        c = build_file(now.entry[i].file, event_count, certain, EVERYTHING);
        assert_true(ft_same_bytes(fx_path(now.entry[i].text), c.bytes, c.size));
        free(c.bytes);
        free(certain);
    }
    assert_int_equal(now.count, 2);
    fx_read_file(file, &reference, &reference_size);
    ft_empty_dir();
    return 0;
}

static int teardown(void **state)
{
    for (size_t i = 0; i < event_count; i++)
        free(events[i].bytes);
    free(events);
    kd_free(reference);
    return fx_drop_dir(state);
}

/* ---- tests ---- */

static void power_failures_lose_nothing_that_was_acknowledged(void **state)
{
    unsigned images = ft_trials(200, 5000), count[3] = {0}, of_style[STYLES] = {0};
    (void)state;
    for (unsigned i = 0; i < images; i++) {
        style s = (style)(i % STYLES);
        of_style[s]++;
        count[judge_image(1 + ft_below(event_count), s, 1)]++;
    }
    print_message("%u power failures in a life of %zu logged steps: %u lost, %u corrupt\n", images, event_count, count[LOST], count[CORRUPT]);
    for (int s = 0; s < STYLES; s++)
        print_message("    %s: %u\n", style_name[s], of_style[s]);
    assert_int_equal(count[LOST] + count[CORRUPT], 0);
}

/* After each step of the folder and each sync, before and after: the places where a wrong order would show. */
static void power_failures_at_every_step_of_the_folder(void **state)
{
    unsigned images = 0, bad = 0;
    (void)state;
    for (size_t i = 0; i < event_count; i++) {
        if (!is_step_of_folder(&events[i]) && events[i].op != SYNC && events[i].op != SYNC_FOLDER)
            continue;
        for (size_t upto = i; upto <= i + 1; upto++) {
            for (int s = 0; s < (getenv("KD_LONG") ? (int)STYLES : 2); s++, images++)
                bad += judge_image(upto, (style)s, 1) != GOOD;
        }
    }
    print_message("%u power failures around every create, rename, unlink and sync: %u lost or corrupt\n", images, bad);
    assert_int_equal(bad, 0);
}

static void a_disk_that_ignores_syncs_is_noticed(void **state)
{
    unsigned images = ft_trials(60, 500), count[3] = {0};
    (void)state;
    for (unsigned i = 0; i < images; i++)
        count[judge_image(1 + ft_below(event_count), (style)(i % STYLES), 0)]++;
    print_message("control, the same with syncs ignored: of %u images %u lost, %u corrupt\n", images, count[LOST], count[CORRUPT]);
    assert_true(count[LOST] > 0 && count[CORRUPT] > 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(power_failures_lose_nothing_that_was_acknowledged),
        cmocka_unit_test(power_failures_at_every_step_of_the_folder),
        cmocka_unit_test(a_disk_that_ignores_syncs_is_noticed),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}

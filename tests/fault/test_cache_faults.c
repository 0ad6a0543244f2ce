/* Kills and failing system calls while a cache is written and sealed. This program's own write, pwrite, fsync ... stand in front of libc's (also for LMDB), so that the n-th call can
 * kill the process or fail: with n = 1, 2, 3 ... every point of the writer's life is met once. After each fault the same work is done again without one, and the sealed bytes must
 * equal those of an undisturbed run. */
#include "tests/cache_fixture.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>

enum { IMAGES = 12 };

/* ---- the shim ---- */

typedef enum fault_mode { NO_FAULT, COUNT, KILL_BEFORE, KILL_AFTER, FAIL_ONCE, FAIL_FROM, SHORT_WRITE } fault_mode;
static fault_mode mode;
static int fault_error;
static long calls, fault_at;

/* True when this call must fail. */
static int fault(void)
{
    long n = mode == NO_FAULT ? 0 : ++calls;
    if (mode == KILL_BEFORE && n == fault_at)
        raise(SIGKILL);
    errno = fault_error;
    return (mode == FAIL_ONCE && n == fault_at) || (mode == FAIL_FROM && n >= fault_at);
}

static long after(long result)
{
    if (mode == KILL_AFTER && calls == fault_at)
        raise(SIGKILL);
    return result;
}

static size_t shortened(size_t n)
{
    return mode == SHORT_WRITE && calls >= fault_at && n > 1 ? n / 2 : n;
}

ssize_t write(int fd, const void *p, size_t n) { return fd > 2 && fault() ? -1 : after(syscall(SYS_write, fd, p, fd > 2 ? shortened(n) : n)); }
ssize_t pwrite(int fd, const void *p, size_t n, off_t at) { return fault() ? -1 : after(syscall(SYS_pwrite64, fd, p, shortened(n), at)); }
ssize_t pwritev(int fd, const struct iovec *v, int n, off_t at) { return fault() ? -1 : after(syscall(SYS_pwritev, fd, v, n, at, 0)); }
ssize_t writev(int fd, const struct iovec *v, int n) { return fault() ? -1 : after(syscall(SYS_writev, fd, v, n)); }
int fsync(int fd) { return fault() ? -1 : (int)after(syscall(SYS_fsync, fd)); }
int fdatasync(int fd) { return fault() ? -1 : (int)after(syscall(SYS_fdatasync, fd)); }
int ftruncate(int fd, off_t n) { return fault() ? -1 : (int)after(syscall(SYS_ftruncate, fd, n)); }
int fchmod(int fd, mode_t m) { return fault() ? -1 : (int)after(syscall(SYS_fchmod, fd, m)); }
int rename(const char *a, const char *b) { return fault() ? -1 : (int)after(syscall(SYS_rename, a, b)); }
int unlink(const char *a) { return (mode == KILL_BEFORE || mode == KILL_AFTER || mode == COUNT) && fault() ? -1 : (int)after(syscall(SYS_unlink, a)); }

/* ---- the work ---- */

static kd_status work(const char *path, kd_err *err)
{
    kd_recipe r = fx_recipe_full();
    kd_writer *w;
    kd_status status = kd_writer_open(&w, path, &r, NULL, 0, err);
    for (unsigned i = 0; i < IMAGES && status == KD_OK; i++) {
        for (unsigned v = 0; v < FX_VIEWS && status == KD_OK; v++) {
            kd_hash128 id = fx_image_id(i);
            if (!kd_writer_has_view(w, &id, v))
                status = fx_add(w, &r, i, v, err);
        }
        if (status == KD_OK && i % 4 == 3)
            status = kd_writer_commit(w, err);
    }
    if (status == KD_OK)
        status = kd_writer_seal(w, err);
    kd_writer_close(w);
    kd_recipe_free(&r);
    return status;
}

/* Runs the work in a child with a fault at call n. Returns its wait status; a sentence of a failure goes to *said. */
static int child_work(const char *path, fault_mode m, long n, int error, char *said, size_t cap)
{
    int pipe_fd[2], status;
    pid_t child;
    ssize_t got;
    assert_int_equal(pipe(pipe_fd), 0);
    child = fork();
    if (child == 0) {
        kd_status st;
        mode = m;
        fault_at = n;
        fault_error = error;
        st = work(path, &fx_err);
        mode = NO_FAULT;
        if (st < 0)
            syscall(SYS_write, pipe_fd[1], fx_err.msg, strlen(fx_err.msg));
        _exit(kd_exit_code(st));
    }
    close(pipe_fd[1]);
    got = read(pipe_fd[0], said, cap - 1);
    said[got > 0 ? got : 0] = 0;
    close(pipe_fd[0]);
    assert_int_equal(waitpid(child, &status, 0), child);
    return status;
}

static char reference[700], file[700];

static int setup(void **state)
{
    if (fx_make_dir(state) != 0)
        return -1;
    snprintf(reference, sizeof reference, "%s/reference.kdc", fx_dir);
    snprintf(file, sizeof file, "%s/a.kdc", fx_dir);
    fx_must(work(reference, &fx_err), "reference", &fx_err, __LINE__);
    return 0;
}

static void remove_all(void)
{
    static const char *const end[] = {"", ".json", ".partial", ".partial.lock", ".sealing"};
    for (size_t i = 0; i < sizeof end / sizeof end[0]; i++) {
        char p[800];
        snprintf(p, sizeof p, "%s%s", file, end[i]);
        unlink(p);
    }
}

static int exists(const char *end)
{
    char p[800];
    snprintf(p, sizeof p, "%s%s", file, end);
    return kd_io_exists(p);
}

/* The same command again, undisturbed: done, equal, nothing left over. */
static void complete_and_compare(long n)
{
    kd_cache *c;
    kd_status status = work(file, &fx_err);
    if (status != KD_OK && status != KD_DONE) {
        print_error("after a fault at call %ld: %s: %s\n", n, kd_status_name(status), fx_err.msg);
        fail();
    }
    fx_assert_equal_files(reference, file);
    assert_false(exists(".partial") || exists(".partial.lock") || exists(".sealing"));
    must(fx_open(&c, file, &fx_err));
    must(fx_compare_all(c, 0, IMAGES, &fx_err));
    kd_cache_close(c);
}

/* ---- tests ---- */

static void killed_at_every_call(void **state)
{
    unsigned writing = 0, sealing = 0, unnamed = 0, finished = 0, before_first = 0, total = 0;
    char said[1300];
    (void)state;
    for (int m = KILL_BEFORE; m <= KILL_AFTER; m++) {
        for (long n = 1;; n++) {
            int status = child_work(file, (fault_mode)m, n, 0, said, sizeof said);
            if (WIFEXITED(status)) { /* the run needs fewer calls */
                assert_int_equal(WEXITSTATUS(status), 0);
                remove_all();
                break;
            }
            assert_int_equal(WTERMSIG(status), SIGKILL);
            total++;
            if (exists(""))
                *(exists(".json") ? &finished : &unnamed) += 1;
            else
                *(exists(".sealing") ? &sealing : exists(".partial") ? &writing : &before_first) += 1;
            complete_and_compare(n);
            remove_all();
        }
    }
    print_message("%u kills: %u before the first page, %u while writing, %u while sealing, %u between rename and manifest, %u after the manifest; all completed with equal bytes\n", total,
                  before_first, writing, sealing, unnamed, finished);
    assert_true(writing > 0 && sealing > 0 && unnamed > 0 && finished > 0);
}

/* Killed again and again on the way: each run goes a little further. */
static void killed_many_times_in_one_life(void **state)
{
    char said[1300];
    unsigned kills = 0;
    (void)state;
    for (long n = 12;; n += 3) {
        int status = child_work(file, KILL_BEFORE, n, 0, said, sizeof said);
        if (WIFEXITED(status)) {
            assert_int_equal(WEXITSTATUS(status), 0);
            break;
        }
        kills++;
    }
    print_message("killed %u times in one life\n", kills);
    assert_true(kills > 3);
    complete_and_compare(0);
}

/* Each call fails once, or all fail from then on, as on a disk that stays full. */
static void full_at_every_call(void **state)
{
    static const struct { fault_mode mode; int error, want; } kind[] = {{FAIL_ONCE, ENOSPC, 14}, {FAIL_FROM, ENOSPC, 14}, {FAIL_ONCE, EIO, 1}, {FAIL_FROM, EDQUOT, 14}};
    unsigned refused = 0, unharmed = 0;
    char said[1300];
    (void)state;
    for (size_t k = 0; k < sizeof kind / sizeof kind[0]; k++) {
        for (long n = 1;; n++) {
            int status;
            long used;
            status = child_work(file, kind[k].mode, n, kind[k].error, said, sizeof said);
            assert_true(WIFEXITED(status));
            if (WEXITSTATUS(status) == 0 && n > 4) { /* fewer calls than n, or a failure that didn't matter */
                unharmed++;
                fx_assert_equal_files(reference, file);
                remove_all();
                break;
            }
            if (WEXITSTATUS(status) != kind[k].want)
                print_error("call %ld failing with %s: exit %d: %s\n", n, strerror(kind[k].error), WEXITSTATUS(status), said);
            assert_int_equal(WEXITSTATUS(status), kind[k].want);
            assert_true(said[0]);
            refused++;
            used = n;
            complete_and_compare(used);
            remove_all();
        }
    }
    print_message("%u failing calls: each said so with the right exit code and was completed with equal bytes\n", refused);
    assert_true(refused > 100);
}

/* LMDB reports a short write as EIO; nothing that was committed may be lost. */
static void short_writes_lose_nothing(void **state)
{
    unsigned refused = 0;
    char said[1300];
    (void)state;
    for (long n = 1; n < 60; n += 3) {
        int status = child_work(file, SHORT_WRITE, n, 0, said, sizeof said);
        assert_true(WIFEXITED(status));
        if (WEXITSTATUS(status) != 0) {
            assert_true(said[0]);
            refused++;
        }
        complete_and_compare(n);
        remove_all();
    }
    print_message("%u of 20 runs with short writes refused, all completed with equal bytes\n", refused);
    assert_true(refused > 5);
}

/* Started together: one writes, all others are refused at once with its name. */
static void many_writers_at_once(void **state)
{
    (void)state;
    for (int round = 0; round < 10; round++) {
        enum { WRITERS = 6 };
        pid_t child[WRITERS];
        int go[2], done = 0, locked = 0;
        assert_int_equal(pipe(go), 0);
        for (int i = 0; i < WRITERS; i++) {
            child[i] = fork();
            if (child[i] == 0) {
                char byte;
                kd_status st;
                close(go[1]);
                if (read(go[0], &byte, 1) < 0)
                    _exit(9);
                st = work(file, &fx_err);
                _exit(st == KD_ELOCKED && !strstr(fx_err.msg, "pid ") && !strstr(fx_err.msg, "unknown") ? 8 : kd_exit_code(st));
            }
        }
        close(go[0]);
        close(go[1]); /* everyone's read returns */
        for (int i = 0; i < WRITERS; i++) {
            int status;
            assert_int_equal(waitpid(child[i], &status, 0), child[i]);
            assert_true(WIFEXITED(status));
            assert_true(WEXITSTATUS(status) == 0 || WEXITSTATUS(status) == 11);
            done += WEXITSTATUS(status) == 0;
            locked += WEXITSTATUS(status) == 11;
        }
        assert_true(done >= 1);
        fx_assert_equal_files(reference, file);
        assert_false(exists(".partial.lock"));
        remove_all();
        if (round == 0)
            print_message("%d writers: %d wrote or found it done, %d refused\n", (int)WRITERS, done, locked);
    }
}

static void allocations_that_fail(void **state)
{
    unsigned failed = 0, passed = 0;
    (void)state;
    kd_log_set_level(KD_LOG_ERROR);
    for (size_t n = 1; passed < 20; n++) { /* some failures don't matter: a progress line, a manifest's name */
        kd_status status;
        size_t live = kd_mem_live_bytes();
        kd_recipe r = fx_recipe_full(); /* the fixture's own allocations come before */
        kd_writer *w = NULL;
        kd_cache *c = NULL;
        unsigned reached = 0;
        static int warm;
        if (!warm++) { /* buffers that the fixture keeps */
            must(kd_writer_open(&w, file, &r, NULL, 0, &fx_err));
            must(fx_add(w, &r, 0, 0, &fx_err));
            kd_writer_close(w);
            remove_all();
            live = kd_mem_live_bytes();
        }
        kd_mem_fail_after(n);
        status = kd_writer_open(&w, file, &r, NULL, 0, &fx_err);
        if (status == KD_OK) {
            reached = 1;
            status = fx_add(w, &r, 0, 0, &fx_err);
            if (status == KD_OK)
                status = kd_writer_seal(w, &fx_err);
            kd_writer_close(w);
        }
        if (status == KD_OK) {
            reached = 2;
            status = fx_open(&c, file, &fx_err);
        }
        if (status == KD_OK) {
            kd_reader *reader;
            kd_hash128 id = fx_image_id(0);
            const float *mean;
            float x[FX_ROWS * FX_WIDTH], std;
            reached = 3;
            status = kd_reader_create(&reader, c, &fx_err);
            if (status == KD_OK)
                status = kd_reader_feature(reader, KD_FEATURE_PATCH, &id, 0, 4, x, NULL, &fx_err);
            if (status == KD_OK)
                status = kd_cache_mean(c, KD_FEATURE_REGISTERS, 4, &mean, &std, &fx_err);
            kd_reader_destroy(status == KD_OK || reader ? reader : NULL);
        }
        kd_mem_fail_after(0);
        kd_cache_close(c);
        kd_recipe_free(&r);
        remove_all();
        if (kd_mem_live_bytes() > live)
            print_error("allocation %zu failing (phase %u) leaves %zu bytes\n", n, reached, kd_mem_live_bytes() - live);
        assert_true(kd_mem_live_bytes() <= live);
        if (status == KD_OK) {
            passed++;
            continue;
        }
        passed = 0;
        if (status != KD_EFAIL)
            print_error("allocation %zu failing gave %s: %s\n", n, kd_status_name(status), fx_err.msg);
        assert_int_equal(status, KD_EFAIL);
        failed++;
    }
    print_message("%u failing allocations: each a clean error, nothing leaked\n", failed);
    assert_true(failed > 30);
}

int main(void)
{
#define T(f) cmocka_unit_test_setup_teardown(f, setup, fx_drop_dir)
    const struct CMUnitTest tests[] = {
        T(killed_at_every_call), T(killed_many_times_in_one_life), T(full_at_every_call), T(short_writes_lose_nothing), T(many_writers_at_once),
        T(allocations_that_fail),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

/* What the tests of faults share: a writer's whole life whose progress is told through a pipe that outlives it, and comparing without ending the test (in a child process
 * cmocka's jump would go on with the parent's tests). KD_LONG=1 asks for as many trials as README.md reports. */
#ifndef KD_TESTS_FAULT_FIXTURE_H
#define KD_TESTS_FAULT_FIXTURE_H

#include "tests/cache_fixture.h"

#include <errno.h>
#include <signal.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>

#include "cache/check.h"

/* The life that is disturbed: so many images, in transactions of so many views. */
enum { FT_IMAGES = 24, FT_VIEWS = FT_IMAGES * FX_VIEWS, FT_PER_COMMIT = 4 * FX_VIEWS };

static inline unsigned ft_trials(unsigned in_make_test, unsigned in_a_long_run)
{
    return getenv("KD_LONG") ? in_a_long_run : in_make_test;
}

/* splitmix64: the same trials in every run, so that a failure can be repeated. */
static uint64_t ft_seed = 20240601;
static inline uint64_t ft_next(void)
{
    uint64_t z = (ft_seed += 0x9E3779B97F4A7C15);
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9;
    z = (z ^ z >> 27) * 0x94D049BB133111EB;
    return z ^ z >> 31;
}
static inline size_t ft_below(size_t n)
{
    return (size_t)(ft_next() % n);
}

static inline double ft_now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* ---- a writer's life ---- */

/* What the writer has come to. COMMITTED says that so many views are safe: from then on they must never be lost. */
typedef enum ft_what { FT_STARTED, FT_OPENED, FT_ADDED, FT_COMMITTING, FT_COMMITTED, FT_SEALING, FT_SEALED, FT_WAITING, FT_FAILED } ft_what;
typedef struct ft_mark {
    uint32_t what, views;
} ft_mark;

/* fd < 0: nobody listens. Around libc's write, which a test may have replaced. */
static inline void ft_tell(int fd, ft_what what, unsigned views)
{
    ft_mark m = {what, views};
    if (fd >= 0 && syscall(SYS_write, fd, &m, sizeof m) != sizeof m)
        _exit(9);
}

static inline int ft_has(const kd_writer *w, unsigned n) /* the n-th view in the order in which they are added */
{
    kd_hash128 id = fx_image_id(n / FX_VIEWS);
    return kd_writer_has_view(w, &id, n % FX_VIEWS);
}

/* Adds what isn't there yet, commits after every FT_PER_COMMIT views, seals. KD_DONE: it was sealed already. */
static inline kd_status ft_write(const char *path, int tell, kd_err *err)
{
    kd_recipe r = fx_recipe_full();
    kd_writer *w;
    kd_status status = kd_writer_open(&w, path, &r, NULL, 0, err);
    if (status == KD_OK)
        ft_tell(tell, FT_OPENED, (unsigned)kd_writer_view_count(w));
    for (unsigned n = 0; n < FT_VIEWS && status == KD_OK; n++) {
        if (!ft_has(w, n))
            status = fx_add(w, &r, n / FX_VIEWS, n % FX_VIEWS, err);
        if (status == KD_OK)
            ft_tell(tell, FT_ADDED, n + 1);
        if (status == KD_OK && (n + 1) % FT_PER_COMMIT == 0) {
            ft_tell(tell, FT_COMMITTING, n + 1);
            status = kd_writer_commit(w, err);
            if (status == KD_OK)
                ft_tell(tell, FT_COMMITTED, n + 1);
        }
    }
    if (status == KD_OK) {
        ft_tell(tell, FT_SEALING, FT_VIEWS);
        status = kd_writer_seal(w, err);
    }
    if (status == KD_OK)
        ft_tell(tell, FT_SEALED, FT_VIEWS);
    kd_writer_close(w);
    kd_recipe_free(&r);
    return status;
}

typedef struct ft_child {
    pid_t pid;
    int from;
    unsigned added, committed; /* views, as it has told */
    ft_what last;
    int status;                /* as waitpid gives it, after ft_end */
    char said[1300];           /* the sentence of its failure */
} ft_child;

/* Starts a life in a child. prepare (may be NULL) runs in it first and gets the descriptor to tell through. */
static inline void ft_start(ft_child *c, const char *path, void (*prepare)(int tell))
{
    int fd[2];
    memset(c, 0, sizeof *c);
    assert_int_equal(pipe(fd), 0);
    c->pid = fork();
    assert_true(c->pid >= 0);
    if (c->pid == 0) {
        kd_status status;
        close(fd[0]);
        if (prepare)
            prepare(fd[1]);
        status = ft_write(path, fd[1], &fx_err);
        if (status < 0) {
            ft_tell(fd[1], FT_FAILED, (unsigned)strlen(fx_err.msg));
            if (syscall(SYS_write, fd[1], fx_err.msg, strlen(fx_err.msg)) < 0)
                _exit(9);
        }
        _exit(kd_exit_code(status));
    }
    close(fd[1]);
    c->from = fd[0];
}

/* Listens until the child waits (1) or has ended (0). */
static inline int ft_listen(ft_child *c)
{
    ft_mark m;
    while (read(c->from, &m, sizeof m) == sizeof m) {
        c->last = (ft_what)m.what;
        if (m.what == FT_WAITING)
            return 1;
        if (m.what == FT_FAILED) {
            size_t n = 0;
            for (ssize_t got; n < m.views && (got = read(c->from, c->said + n, m.views - n)) > 0;)
                n += (size_t)got;
        } else if (m.what == FT_ADDED) {
            c->added = m.views;
        } else if (m.what == FT_COMMITTED || m.what == FT_SEALED) {
            c->committed = m.views;
        }
    }
    return 0;
}

static inline void ft_end(ft_child *c)
{
    assert_int_equal(ft_listen(c), 0);
    close(c->from);
    assert_int_equal(waitpid(c->pid, &c->status, 0), c->pid);
}

/* ---- comparing ---- */

static inline void ft_ignore(void *ctx, const char *sentence)
{
    (void)ctx;
    (void)sentence;
}

/* The check of every byte, or of the structure alone. */
static inline kd_status ft_check(kd_cache *c, int read_data, kd_check_report report, void *ctx, kd_check_result *result, kd_err *err)
{
    return kd_cache_check(c, &(kd_check_options){.read_data = read_data, .part = 1, .parts = 1, .threads = 1}, 0, report, ctx, result, err);
}

/* Reads every view and record of images 0..count-1 that the cache must have; *wrong counts values that were given and are not the right ones. The first error ends it. */
static inline kd_status ft_read_all(kd_cache *c, unsigned count, unsigned *wrong, kd_err *err)
{
    const kd_recipe *recipe = kd_cache_recipe(c);
    static float x[FX_LARGEST];
    kd_reader *r;
    KD_TRY(kd_reader_create(&r, c, err));
    kd_status status = KD_OK;
    for (unsigned n = 0; n < count * FX_VIEWS && status == KD_OK; n++) {
        kd_view_entry want = fx_view(n / FX_VIEWS, n % FX_VIEWS), got;
        uint8_t a[KD_PLAN_BYTES], b[KD_PLAN_BYTES];
        status = kd_reader_view(r, &want.image, want.view, &got, err);
        if (status != KD_OK)
            break;
        kd_plan_encode(&want.plan, a);
        kd_plan_encode(&got.plan, b);
        *wrong += memcmp(a, b, sizeof a) != 0 || memcmp(got.view_hash.b, want.view_hash.b, 16) != 0;
        for (int i = 0; i < KD_FEATURES * recipe->layers && status == KD_OK; i++) {
            kd_feature f = (kd_feature)(i / recipe->layers);
            uint16_t layer = recipe->layer[i % recipe->layers];
            kd_record_facts facts;
            if (!kd_recipe_has(recipe, f))
                continue;
            status = kd_reader_feature(r, f, &want.image, want.view, layer, x, &facts, err);
            for (size_t k = 0; status == KD_OK && k < (size_t)kd_recipe_rows(recipe, f) * (size_t)recipe->width; k++)
                *wrong += !(x[k] == fx_stored(recipe, n / FX_VIEWS, n % FX_VIEWS, f, layer, k));
            *wrong += status == KD_OK && memcmp(facts.view_hash.b, want.view_hash.b, 16) != 0;
        }
    }
    kd_reader_destroy(r);
    return status;
}

/* 1 when the file has these bytes. */
static inline int ft_same_bytes(const char *path, const uint8_t *bytes, size_t size)
{
    uint8_t *have;
    size_t n;
    int same;
    if (kd_io_read_all(path, (size_t)1 << 30, &have, &n, NULL) != KD_OK)
        return 0;
    same = n == size && memcmp(have, bytes, n) == 0;
    kd_free(have);
    return same;
}

static inline int ft_exists(const char *path, const char *end)
{
    char p[800];
    snprintf(p, sizeof p, "%s%s", path, end);
    return kd_io_exists(p);
}

static inline void ft_empty_dir(void)
{
    DIR *d = opendir(fx_dir);
    struct dirent *e;
    assert_non_null(d);
    while ((e = readdir(d)) != NULL)
        unlink(fx_path(e->d_name));
    closedir(d);
}

/* Removes a cache and everything that a writer of it leaves. */
static inline void ft_remove(const char *path)
{
    static const char *const end[] = {"", ".json", ".partial", ".partial.lock", ".sealing"};
    for (size_t i = 0; i < sizeof end / sizeof end[0]; i++) {
        char p[800];
        snprintf(p, sizeof p, "%s%s", path, end[i]);
        unlink(p);
    }
}

#endif

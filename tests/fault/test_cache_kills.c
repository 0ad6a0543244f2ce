/* kill -9 of a writer. It tells through a pipe what it has added and what it was told is committed; after every kill all of that must be there, at most one transaction is written again,
 * and what is sealed in the end has the bytes of a life that nobody disturbed. Half of the kills come at a random time, half while the writer stands at a place that random times rarely hit.
 * (A kill leaves the page cache alone: what a power failure does is test_cache_power_loss.c's subject.) */
#include "tests/fault/fault_fixture.h"

#include <sys/uio.h>

/* ---- places to be killed at: this program's own system calls stand in front of libc's, also for LMDB ---- */

typedef enum place { NOWHERE, PAGE_WRITE, DATA_SYNC, SEALED_SYNC, RENAME_SHARD, SHARD_RENAMED, RENAME_MANIFEST, MANIFEST_RENAMED, UNLINK, PLACES } place;
static const char *const place_name[PLACES] = {"a random time", "a write of pages", "a commit's sync", "a sealed file's sync", "the rename of the shard", "the renamed shard",
                                               "the rename of the manifest", "the renamed manifest", "the removal of the partial file"};
static place wait_at;
static unsigned passes; /* go by so many times first */
static int tell = -1;

static void at(place p)
{
    if (p != wait_at || tell < 0 || passes-- > 0)
        return;
    ft_tell(tell, FT_WAITING, 0);
    for (;;)
        pause();
}

static int ends_in(const char *s, const char *end)
{
    size_t n = strlen(s), m = strlen(end);
    return n > m && strcmp(s + n - m, end) == 0;
}

ssize_t pwrite(int fd, const void *p, size_t n, off_t offset)
{
    at(PAGE_WRITE);
    return syscall(SYS_pwrite64, fd, p, n, offset);
}
ssize_t writev(int fd, const struct iovec *v, int n)
{
    at(PAGE_WRITE);
    return syscall(SYS_writev, fd, v, n);
}
int fdatasync(int fd)
{
    at(DATA_SYNC);
    return (int)syscall(SYS_fdatasync, fd);
}
int fsync(int fd)
{
    at(SEALED_SYNC);
    return (int)syscall(SYS_fsync, fd);
}
int rename(const char *a, const char *b)
{
    int rc;
    at(ends_in(b, ".kdc") ? RENAME_SHARD : ends_in(b, ".json") ? RENAME_MANIFEST : NOWHERE);
    rc = (int)syscall(SYS_rename, a, b);
    at(ends_in(b, ".kdc") ? SHARD_RENAMED : ends_in(b, ".json") ? MANIFEST_RENAMED : NOWHERE);
    return rc;
}
int unlink(const char *a)
{
    if (ends_in(a, ".partial"))
        at(UNLINK);
    return (int)syscall(SYS_unlink, a);
}

static void arm(int fd)
{
    tell = wait_at == NOWHERE ? -1 : fd;
}

/* ---- trials ---- */

static uint8_t *reference;
static size_t reference_size;
static char file[600];
static double seconds; /* of an undisturbed life */

static int setup(void **state)
{
    if (fx_make_dir(state) != 0)
        return -1;
    snprintf(file, sizeof file, "%s/a.kdc", fx_dir);
    for (int i = 0; i < 2; i++) { /* the second run is warm */
        ft_child c;
        ft_remove(file);
        seconds = ft_now();
        ft_start(&c, file, NULL);
        ft_end(&c);
        seconds = ft_now() - seconds;
        assert_int_equal(c.status, 0);
        assert_int_equal(c.committed, FT_VIEWS);
    }
    fx_read_file(file, &reference, &reference_size);
    ft_remove(file);
    return 0;
}

static int teardown(void **state)
{
    kd_free(reference);
    return fx_drop_dir(state);
}

/* True when the child was killed; false when it had come to its end before. */
static int kill_one(ft_child *c, place p)
{
    wait_at = p;
    passes = p == PAGE_WRITE ? (unsigned)ft_below(60) : p == DATA_SYNC ? (unsigned)ft_below(7) : p == SEALED_SYNC ? (unsigned)ft_below(4) : 0;
    ft_start(c, file, arm);
    if (p == NOWHERE) {
        struct timespec t = {0, (long)(1e9 * seconds * 1.1 * (double)ft_below(1 << 20) / (1 << 20))};
        nanosleep(&t, NULL);
        kill(c->pid, SIGKILL);
    } else if (ft_listen(c)) {
        kill(c->pid, SIGKILL);
    }
    ft_end(c);
    if (WIFSIGNALED(c->status))
        assert_int_equal(WTERMSIG(c->status), SIGKILL);
    else
        assert_int_equal(WEXITSTATUS(c->status), 0);
    return WIFSIGNALED(c->status);
}

/* Opens what the kill has left, as the next run would. Returns how many views have to be written again. */
static unsigned look(const ft_child *c, unsigned acknowledged)
{
    kd_recipe r = fx_recipe_full();
    kd_writer *w;
    kd_status status = kd_writer_open(&w, file, &r, NULL, 0, &fx_err);
    unsigned again = 0;
    if (status == KD_OK) {
        for (unsigned n = 0; n < acknowledged; n++)
            assert_true(ft_has(w, n));
        assert_true(kd_writer_view_count(w) >= acknowledged);
        again = c->added > kd_writer_view_count(w) ? c->added - (unsigned)kd_writer_view_count(w) : 0;
        kd_writer_close(w);
    } else if (status != KD_DONE) {
        print_error("after a kill: %s: %s\n", kd_status_name(status), fx_err.msg);
        fail();
    }
    kd_recipe_free(&r);
    return again;
}

static void complete(void)
{
    kd_status status = ft_write(file, -1, &fx_err);
    if (status != KD_OK && status != KD_DONE)
        print_error("%s: %s\n", kd_status_name(status), fx_err.msg);
    assert_true(status == KD_OK || status == KD_DONE);
    assert_true(ft_same_bytes(file, reference, reference_size));
    assert_false(ft_exists(file, ".partial") || ft_exists(file, ".partial.lock") || ft_exists(file, ".sealing"));
}

static void killed_writers_lose_nothing_that_was_acknowledged(void **state)
{
    unsigned want = ft_trials(60, 300), kills = 0, lives = 0, at_place[PLACES] = {0}, phase[FT_FAILED + 1] = {0}, acknowledged = 0, most_again = 0, unnamed = 0;
    (void)state;
    while (kills < want) {
        ft_child c;
        place p = kills % 2 ? (place)(1 + kills / 2 % (PLACES - 1)) : NOWHERE;
        if (!kill_one(&c, p)) { /* it was done before the kill came */
            complete();
            ft_remove(file);
            acknowledged = 0;
            continue;
        }
        kills++;
        at_place[p]++;
        phase[c.last]++;
        unnamed += (unsigned)(ft_exists(file, "") && !ft_exists(file, ".json"));
        acknowledged = c.committed > acknowledged ? c.committed : acknowledged;
        unsigned again = look(&c, acknowledged);
        most_again = again > most_again ? again : most_again;
        assert_true(again <= FT_PER_COMMIT);
        if (ft_below(2)) /* else it is killed once more on its way */
            continue;
        complete();
        ft_remove(file);
        acknowledged = 0;
        lives++;
    }
    complete();
    print_message("%u kills in %u lives of %.0f ms: 0 acknowledged views lost, at most %u of %u views of a transaction written again, all ends equal byte for byte\n", kills, lives + 1, 1e3 * seconds,
                  most_again, (unsigned)FT_PER_COMMIT);
    for (int p = 0; p < PLACES; p++)
        print_message("    at %s: %u\n", place_name[p], at_place[p]);
    print_message("    the random times: %u opening, %u between views, %u committing, %u just committed, %u sealing, %u sealed; %u kills left a shard without its manifest\n", phase[FT_STARTED],
                  phase[FT_OPENED] + phase[FT_ADDED], phase[FT_COMMITTING], phase[FT_COMMITTED], phase[FT_SEALING], phase[FT_SEALED], unnamed);
    for (int p = 0; p < PLACES; p++)
        assert_true(at_place[p] > 0);
    assert_true(unnamed > 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test_setup_teardown(killed_writers_lose_nothing_that_was_acknowledged, setup, teardown)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}

/* Full disks: file systems in memory of many sizes (needs root to mount them), and limits on the size of files (always). Each ends with exit code 14 and a sentence that names the file system;
 * what was acknowledged before is there, also while the disk is still full; with room the same command completes the cache. */
#include "tests/fault/fault_fixture.h"

#include <sys/mount.h>
#include <sys/resource.h>

#include "cache/validate.h"
#include "common/base/threads.h"

static uint8_t *reference;
static size_t reference_size;
static char mount_point[600], file[700];
static rlim_t limit;

static int setup(void **state)
{
    if (fx_make_dir(state) != 0)
        return -1;
    snprintf(mount_point, sizeof mount_point, "%s/mnt", fx_dir);
    snprintf(file, sizeof file, "%s/a.kdc", fx_dir);
    must(ft_write(file, -1, &fx_err));
    fx_read_file(file, &reference, &reference_size);
    ft_remove(file);
    return 0;
}

static int teardown(void **state)
{
    kd_free(reference);
    (void)umount2(mount_point, MNT_DETACH); /* mounted still where a test has failed */
    rmdir(mount_point);
    return fx_drop_dir(state);
}

/* The i-th of n sizes: from 8 KiB to what the partial file and its sealed copy need together. */
static size_t size_of(unsigned i, unsigned n)
{
    return ((8 << 10) + (size_t)i * (5 * reference_size / 2 - (8 << 10)) / (n - 1)) & ~(size_t)4095;
}

/* All acknowledged views are in the partial file, or it is sealed. */
static void assert_nothing_lost(unsigned acknowledged)
{
    kd_recipe r = fx_recipe_full();
    kd_writer *w;
    kd_status status = kd_writer_open(&w, file, &r, NULL, 0, &fx_err);
    if (status == KD_OK) {
        for (unsigned n = 0; n < acknowledged; n++)
            assert_true(ft_has(w, n));
        kd_writer_close(w);
    } else {
        must_be(KD_DONE, status);
    }
    kd_recipe_free(&r);
}

/* Runs the writer where there is too little room. Returns its exit code; *acknowledged: what must be there from now on. */
static int run_short_of_room(void (*prepare)(int), size_t size, unsigned *acknowledged)
{
    char where[700];
    int code = 14;
    *acknowledged = 0;
    for (int run = 0; run < 2 && code == 14; run++) { /* twice: the disk is still full when the user tries again */
        kd_lmdb_facts facts;
        ft_child c;
        char partial[800];
        ft_start(&c, file, prepare);
        ft_end(&c);
        assert_true(WIFEXITED(c.status)); /* no signal */
        code = WEXITSTATUS(c.status);
        if (code != 0 && (code != 14 || !strstr(c.said, kd_io_file_system(file, where, sizeof where)) || !strstr(c.said, " free")))
            print_error("%zu bytes, run %d: exit %d: %s\n", size, run, code, c.said);
        assert_true(code == 0 || code == 14);
        if (code == 14) {
            assert_non_null(strstr(c.said, where));
            assert_non_null(strstr(c.said, " free"));
        }
        *acknowledged = c.committed > *acknowledged ? c.committed : *acknowledged;
        snprintf(partial, sizeof partial, "%s.partial", file);
        if (kd_io_exists(partial))
            must(kd_lmdb_validate(partial, 0, &facts, &fx_err));
        assert_false(ft_exists(file, ".sealing") || ft_exists(file, ".partial.lock") || ft_exists(file, ".partial.probe"));
    }
    return code;
}

static void complete(void)
{
    kd_status status = ft_write(file, -1, &fx_err);
    if (status != KD_DONE)
        must(status);
    assert_true(ft_same_bytes(file, reference, reference_size));
    assert_true(ft_exists(file, ".json"));
}

static void report(const char *what, unsigned n, unsigned full, unsigned with_some, unsigned most)
{
    print_message("%u %s: %u too small (each twice exit 14 with the file system's name, no signal, nothing acknowledged lost, then completed; %u of them with acknowledged views, up to %u of %u), "
                  "%u large enough\n", n, what, full, with_some, most, (unsigned)FT_VIEWS, n - full);
    assert_true(full > n / 2 && full < n && with_some > n / 4);
}

static void full_file_systems(void **state)
{
    unsigned n = ft_trials(64, 256), full = 0, with_some = 0, most = 0, acknowledged;
    char options[64];
    (void)state;
    assert_int_equal(mkdir(mount_point, 0700), 0);
    if (mount("tmpfs", mount_point, "tmpfs", 0, "size=64k") != 0) {
        print_message("mounting a small file system needs root: %s\n", strerror(errno));
        rmdir(mount_point);
        skip();
    }
    assert_int_equal(umount(mount_point), 0);
    snprintf(file, sizeof file, "%s/a.kdc", mount_point);
    for (unsigned i = 0; i < n; i++) {
        snprintf(options, sizeof options, "size=%zu", size_of(i, n));
        assert_int_equal(mount("tmpfs", mount_point, "tmpfs", 0, options), 0);
        if (run_short_of_room(NULL, size_of(i, n), &acknowledged) == 14) {
            full++;
            with_some += acknowledged > 0;
            most = acknowledged > most ? acknowledged : most;
            assert_int_equal(mount("tmpfs", mount_point, "tmpfs", MS_REMOUNT, "size=64m"), 0);
            assert_nothing_lost(acknowledged);
            complete();
        }
        assert_true(ft_same_bytes(file, reference, reference_size));
        assert_int_equal(umount(mount_point), 0);
    }
    rmdir(mount_point);
    report("file systems", n, full, with_some, most);
}

static void set_limit(int tell)
{
    struct rlimit l = {limit, limit};
    (void)tell;
    kd_signals_catch(); /* as the programs do */
    if (setrlimit(RLIMIT_FSIZE, &l) != 0)
        _exit(9);
}

static void limits_on_file_size(void **state)
{
    unsigned n = ft_trials(64, 256), full = 0, with_some = 0, most = 0, acknowledged;
    (void)state;
    for (unsigned i = 0; i < n; i++) {
        limit = size_of(i, n) * 2 / 3; /* of one file */
        if (run_short_of_room(set_limit, limit, &acknowledged) == 14) {
            full++;
            with_some += acknowledged > 0;
            most = acknowledged > most ? acknowledged : most;
            assert_nothing_lost(acknowledged);
            complete();
        }
        assert_true(ft_same_bytes(file, reference, reference_size));
        ft_remove(file);
    }
    report("limits on file size", n, full, with_some, most);
}

int main(void)
{
#define T(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
    const struct CMUnitTest tests[] = {T(full_file_systems), T(limits_on_file_size)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}

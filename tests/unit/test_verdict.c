#include "tests/cache_fixture.h"

#include <fcntl.h>
#include <inttypes.h>
#include <time.h>

#include "cache/manifest.h"
#include "cache/verdict.h"

/* A sealed shard whose last change lies an hour back, and an empty place for verdicts. */
static int make_settled(void **state)
{
    int failed = fx_make_dir(state);
    setenv("XDG_CACHE_HOME", fx_path("cache-home"), 1);
    fx_make_cache(fx_path("a.kdc"), 0, 3);
    return failed;
}

static int drop(void **state)
{
    char command[200];
    snprintf(command, sizeof command, "rm -rf %s/cache-home", fx_dir);
    return system(command) != 0 || fx_drop_dir(state);
}

/* Verdicts need a file that was left alone for some seconds. */
static void wait_until_settled(void)
{
    struct stat st;
    assert_int_equal(stat(fx_path("a.kdc"), &st), 0);
    while (time(NULL) - st.st_ctim.tv_sec <= 2)
        usleep(100000);
}

static int verdicts(void)
{
    DIR *d = opendir(fx_path("cache-home/kdcache/verdicts"));
    struct dirent *e;
    int n = 0;
    while (d && (e = readdir(d)) != NULL)
        n += e->d_name[0] != '.';
    if (d)
        closedir(d);
    return n;
}

/* Damages a page in a way that only a walk notices, and sets the times of the file back. */
static void damage(int keep_mtime)
{
    struct stat st;
    int fd;
    chmod(fx_path("a.kdc"), 0644);
    assert_int_equal(stat(fx_path("a.kdc"), &st), 0);
    fd = open(fx_path("a.kdc"), O_RDWR);
    assert_true(fd >= 0);
    for (off_t page = 2; page * 4096 < st.st_size; page++) { /* every leaf and branch page says that it is another */
        uint8_t head[16];
        assert_int_equal(pread(fd, head, 16, page * 4096), 16);
        if (head[10] == 1 || head[10] == 2) {
            head[0] ^= 1;
            assert_int_equal(pwrite(fd, head, 16, page * 4096), 16);
        }
    }
    close(fd);
    if (keep_mtime) {
        struct timespec t[2] = {st.st_atim, st.st_mtim};
        assert_int_equal(utimensat(AT_FDCWD, fx_path("a.kdc"), t, 0), 0);
    }
}

static void a_settled_file_is_walked_once(void **state)
{
    kd_lmdb_facts walked, recalled;
    (void)state;
    must(kd_verdict_validate(fx_path("a.kdc"), 0, &walked, &fx_err));
    assert_int_equal(verdicts(), 0); /* just sealed: a change in the same instant wouldn't show */
    wait_until_settled();
    must(kd_verdict_validate(fx_path("a.kdc"), 0, &walked, &fx_err));
    assert_int_equal(verdicts(), 1);
    must(kd_verdict_validate(fx_path("a.kdc"), 0, &recalled, &fx_err));
    assert_memory_equal(&walked, &recalled, sizeof walked);
    assert_int_equal(recalled.entries[KD_DB_IMAGES], 3);
}

/* Setting the time of the content back doesn't help: that changes the time of the state. */
static void a_changed_file_is_walked_again(void **state)
{
    kd_lmdb_facts f;
    (void)state;
    wait_until_settled();
    must(kd_verdict_validate(fx_path("a.kdc"), 0, &f, &fx_err));
    damage(1);
    must_be(KD_EDAMAGED, kd_verdict_validate(fx_path("a.kdc"), 0, &f, &fx_err));
    wait_until_settled();
    must_be(KD_EDAMAGED, kd_verdict_validate(fx_path("a.kdc"), 0, &f, &fx_err));
}

static void damaged_verdicts_are_none(void **state)
{
    kd_lmdb_facts walked, f;
    char name[400], path[1000];
    struct dirent *e;
    uint8_t *bytes;
    size_t size;
    DIR *d;
    (void)state;
    wait_until_settled();
    must(kd_verdict_validate(fx_path("a.kdc"), 0, &walked, &fx_err));
    snprintf(name, sizeof name, "%s", fx_path("cache-home/kdcache/verdicts"));
    d = opendir(name);
    assert_non_null(d);
    while ((e = readdir(d)) != NULL && e->d_name[0] == '.')
        ;
    assert_non_null(e);
    snprintf(path, sizeof path, "%s/%s", name, e->d_name);
    closedir(d);
    fx_read_file(path, &bytes, &size);
    for (size_t i = 0; i < size; i += 3) {
        bytes[i] ^= 1;
        fx_write_file(path, bytes, size);
        must(kd_verdict_validate(fx_path("a.kdc"), 0, &f, &fx_err));
        assert_memory_equal(&walked, &f, sizeof f);
        bytes[i] ^= 1;
    }
    for (size_t n = 0; n < size; n += 7) {
        fx_write_file(path, bytes, n);
        must(kd_verdict_validate(fx_path("a.kdc"), 0, &f, &fx_err));
        assert_memory_equal(&walked, &f, sizeof f);
    }
    kd_free(bytes);
}

/* A page that goes bad after the walk: the image table has more in it than was counted. Here the count is what is changed, in the verdict and in the manifest. */
static void a_table_larger_than_the_verdict_says_is_refused(void **state)
{
    char name[400], path[1000], text[1000];
    const char *cache = fx_path("a.kdc");
    struct dirent *e;
    uint8_t *bytes;
    size_t size, line;
    kd_manifest m;
    kd_cache *c;
    DIR *d;
    int n;
    (void)state;
    wait_until_settled();
    must(fx_open(&c, cache, &fx_err));
    kd_cache_close(c);
    snprintf(name, sizeof name, "%s", fx_path("cache-home/kdcache/verdicts"));
    d = opendir(name);
    assert_non_null(d);
    while ((e = readdir(d)) != NULL && e->d_name[0] == '.')
        ;
    assert_non_null(e);
    snprintf(path, sizeof path, "%s/%s", name, e->d_name);
    closedir(d);
    fx_read_file(path, &bytes, &size);
    line = strcspn((char *)bytes, "\n") + 1;
    line += strcspn((char *)bytes + line, "\n") + 1;
    snprintf(text, sizeof text, "%.*s", (int)line, (char *)bytes);
    kd_free(bytes);
    bytes = (uint8_t *)strchr(text, '\n');
    for (int space = 0; space < 3; space += *bytes == ' ') /* pages, first value, entries of meta, entries of images */
        bytes++;
    assert_int_equal(bytes[1], '3');
    bytes[1] = '2';
    n = snprintf(text + line, sizeof text - line, "%016" PRIx64 "\n", kd_xxh64(text, line));
    fx_write_file(path, text, line + (size_t)n);
    must(kd_manifest_read(&m, cache, &fx_err));
    json_object_set_new(json_object_get(m.json, "content"), "images", json_integer(2));
    must(kd_manifest_write(cache, m.json, &fx_err));
    kd_manifest_free(&m);
    must_be(KD_EDAMAGED, fx_open(&c, cache, &fx_err));
    must_say("more images than");
}

static void without_a_place_files_are_walked_every_time(void **state)
{
    kd_lmdb_facts f;
    (void)state;
    wait_until_settled();
    setenv("XDG_CACHE_HOME", "/proc/nowhere", 1);
    must(kd_verdict_validate(fx_path("a.kdc"), 0, &f, &fx_err));
    unsetenv("XDG_CACHE_HOME");
    setenv("HOME", "not-absolute", 1);
    must(kd_verdict_validate(fx_path("a.kdc"), 0, &f, &fx_err));
    assert_int_equal(f.entries[KD_DB_IMAGES], 3);
}

int main(void)
{
#define T(f) cmocka_unit_test_setup_teardown(f, make_settled, drop)
    const struct CMUnitTest tests[] = {T(a_settled_file_is_walked_once), T(a_changed_file_is_walked_again), T(damaged_verdicts_are_none), T(a_table_larger_than_the_verdict_says_is_refused),
                                        T(without_a_place_files_are_walked_every_time)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}

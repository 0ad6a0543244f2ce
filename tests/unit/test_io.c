/* Files: what is not a regular file or changes under us is refused, replacement is all or nothing at every failure point, and a
 * page that can't be read is an error, not a signal. */
#include "tests/unit/unit.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>

#include "common/base/io.h"
#include "common/base/mem.h"

static char *folder, path[4200];

static const char *in_folder(const char *name)
{
    snprintf(path, sizeof path, "%s/%s", folder, name);
    return path;
}

static int start(void **state)
{
    (void)state;
    folder = unit_folder();
    return 0;
}

static int end(void **state)
{
    (void)state;
    kd_io_fail_after(0, 0);
    kd_mem_fail_after(0);
    free(folder);
    return 0;
}

static size_t files_in(const char *dir)
{
    DIR *d = opendir(dir);
    size_t n = 0;
    assert_non_null(d);
    for (struct dirent *e; (e = readdir(d));)
        n += e->d_name[0] != '.';
    closedir(d);
    return n;
}

static void assert_content(const char *file, const char *want)
{
    kd_err err;
    uint8_t *bytes;
    size_t size;
    assert_ok(kd_io_read_all(file, 1 << 20, &bytes, &size, &err));
    assert_int_equal(size, strlen(want));
    assert_string_equal((char *)bytes, want); /* the NUL behind the content is part of the contract */
    kd_free(bytes);
}

static void whole_files_are_read(void **state)
{
    uint8_t *bytes;
    size_t size = 99;
    kd_err err;
    (void)state;
    unit_write(in_folder("a b\nc\xff"), "hello", 5);
    assert_content(path, "hello");
    unit_write(in_folder("empty"), "", 0);
    assert_ok(kd_io_read_all(path, 0, &bytes, &size, &err));
    assert_int_equal(size, 0);
    assert_int_equal(bytes[0], 0);
    kd_free(bytes);
}

static void what_cannot_be_read_is_said(void **state)
{
    uint8_t *bytes;
    size_t size;
    kd_err err;
    (void)state;
    assert_int_equal(kd_io_read_all(in_folder("absent"), 10, &bytes, &size, &err), KD_EFAIL);
    assert_contains(err.msg, "No such file");
    assert_null(bytes);
    assert_int_equal(kd_io_read_all(folder, 10, &bytes, &size, &err), KD_EFAIL);
    assert_contains(err.msg, "a folder, not a regular file");
    assert_int_equal(mkfifo(in_folder("fifo"), 0600), 0); /* nobody writes: a plain open would wait for ever */
    assert_int_equal(kd_io_read_all(path, 10, &bytes, &size, &err), KD_EFAIL);
    assert_contains(err.msg, "not a regular file");
    unit_write(in_folder("big"), "0123456789", 10);
    assert_int_equal(kd_io_read_all(path, 9, &bytes, &size, &err), KD_EFAIL);
    assert_contains(err.msg, "10 bytes are above the limit of 9");
    kd_mem_fail_after(1);
    assert_int_equal(kd_io_read_all(path, 10, &bytes, &size, &err), KD_EFAIL);
    assert_contains(err.msg, "out of memory");
}

static void a_buffer_is_reused_while_it_is_large_enough(void **state)
{
    uint8_t *buf = NULL, *first;
    size_t cap = 0, size;
    kd_err err;
    (void)state;
    unit_write(in_folder("long"), "0123456789", 10);
    assert_ok(kd_io_read_into(path, 100, &buf, &cap, &size, &err));
    first = buf;
    unit_write(in_folder("short"), "abc", 3);
    assert_ok(kd_io_read_into(path, 100, &buf, &cap, &size, &err));
    assert_ptr_equal(buf, first);
    assert_int_equal(size, 3);
    assert_string_equal((char *)buf, "abc");
    kd_free(buf);
}

static void maps_hold_the_content(void **state)
{
    kd_map map;
    kd_err err;
    (void)state;
    unit_write(in_folder("m"), "mapped", 6);
    assert_ok(kd_io_map(path, &map, &err));
    assert_int_equal(map.size, 6);
    assert_memory_equal(map.data, "mapped", 6);
    kd_io_unmap(&map);
    assert_null(map.data);
    unit_write(in_folder("e"), "", 0);
    assert_ok(kd_io_map(path, &map, &err));
    assert_null(map.data);
    kd_io_unmap(&map);
    assert_int_equal(kd_io_map(folder, &map, &err), KD_EFAIL);
}

typedef struct touch {
    const volatile uint8_t *data;
    size_t at, other_at;
    const volatile uint8_t *other;
    size_t other_size;
    kd_status inner;
    kd_err inner_err;
} touch;

static kd_status read_byte(void *arg, kd_err *err)
{
    touch *t = arg;
    return t->data[t->at] == 1 ? KD_OK : kd_fail(err, KD_EFAIL, "unexpected byte");
}

static kd_status guard_inside_a_guard(void *arg, kd_err *err)
{
    touch *t = arg, in = {.data = t->other, .at = t->other_at};
    t->inner = kd_io_guard((const void *)(uintptr_t)t->other, t->other_size, "inner", read_byte, &in, &t->inner_err);
    return read_byte(arg, err);
}

static void map_then_truncate(const char *name, kd_map *map, size_t pages, size_t left)
{
    kd_err err;
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    char *bytes = malloc(pages * page);
    memset(bytes, 1, pages * page);
    unit_write(in_folder(name), bytes, pages * page);
    free(bytes);
    assert_ok(kd_io_map(path, map, &err));
    assert_int_equal(truncate(path, (off_t)(left * page)), 0);
}

static void a_truncated_mapping_is_an_error_not_a_signal(void **state)
{
    kd_map a, b;
    kd_err err;
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    touch t;
    (void)state;
    map_then_truncate("a", &a, 4, 1);
    map_then_truncate("b", &b, 4, 2);
    t = (touch){.data = a.data, .at = 10};
    assert_ok(kd_io_guard(a.data, a.size, "a", read_byte, &t, &err));
    t.at = 2 * page + 5;
    for (int i = 0; i < 3; i++) { /* again: the handler must stay usable */
        char at[40];
        assert_int_equal(kd_io_guard(a.data, a.size, "a.kdc", read_byte, &t, &err), KD_EDAMAGED);
        assert_contains(err.msg, "a.kdc");
        snprintf(at, sizeof at, "at byte %zu", 2 * page + 5);
        assert_contains(err.msg, at);
    }
    t = (touch){.data = a.data, .at = 3, .other = b.data, .other_at = 3 * page, .other_size = b.size};
    assert_ok(kd_io_guard(a.data, a.size, "outer", guard_inside_a_guard, &t, &err)); /* the inner fault stays inside */
    assert_int_equal(t.inner, KD_EDAMAGED);
    assert_contains(t.inner_err.msg, "inner");
    t.at = 3 * page;
    assert_int_equal(kd_io_guard(a.data, a.size, "outer", guard_inside_a_guard, &t, &err), KD_EDAMAGED);
    assert_contains(err.msg, "outer");
    kd_io_unmap(&a);
    kd_io_unmap(&b);
}

/* Every failure point of a replacement in turn: the old content stays whole and no temporary file is left, until a run
 * without a failure has the new content. */
static void replacement_is_all_or_nothing(void **state)
{
    char target[4200];
    size_t n, live = kd_mem_live_bytes();
    kd_err err;
    (void)state;
    snprintf(target, sizeof target, "%s/target", folder);
    unit_write(target, "old", 3);
    for (n = 1; n < 20; n++) {
        kd_status status;
        kd_io_fail_after(n, ENOSPC);
        status = kd_io_write_atomic(target, "new content", 11, &err);
        kd_io_fail_after(0, 0);
        assert_int_equal(kd_mem_live_bytes(), live);
        assert_int_equal(files_in(folder), 1);
        if (status == KD_OK)
            break;
        assert_int_equal(status, KD_ENOSPACE);
        if (n < 4) { /* write, fsync, rename; the fourth is the folder's fsync: renamed, but not known to be durable */
            assert_contains(err.msg, "target");
            assert_content(target, "old");
        }
    }
    assert_int_equal(n, 5);
    assert_content(target, "new content");
    for (n = 1; n < 20; n++) {
        kd_status status;
        kd_mem_fail_after(n);
        status = kd_io_write_atomic(target, "third", 5, &err);
        kd_mem_fail_after(0);
        assert_int_equal(kd_mem_live_bytes(), live);
        assert_int_equal(files_in(folder), 1);
        if (status == KD_OK)
            break;
        assert_int_equal(status, KD_EFAIL);
    }
    assert_content(target, "third");
}

static void what_killed_writers_left_is_removed_and_nothing_else(void **state)
{
    static const char *const name[] = {"a.tmp.12.0", "a.tmp.9999.17", "ab.tmp.12.0", "a.tmp.x.0", "a.tmp.12", "a.tmp.12.0.txt", "a"};
    char path[4200];
    (void)state;
    for (size_t i = 0; i < sizeof name / sizeof *name; i++) {
        snprintf(path, sizeof path, "%s/%s", folder, name[i]);
        unit_write(path, "x", 1);
    }
    snprintf(path, sizeof path, "%s/a", folder);
    kd_io_remove_temporaries(path);
    assert_int_equal(files_in(folder), 5);
    snprintf(path, sizeof path, "%s/ab.tmp.12.0", folder);
    assert_true(kd_io_exists(path));
    kd_io_remove_temporaries(folder);
    assert_int_equal(files_in(folder), 4);
    assert_false(kd_io_exists(path));
    kd_io_remove_temporaries("/nowhere/a");
}

static void replacement_in_pieces(void **state)
{
    kd_replace *r;
    kd_err err;
    (void)state;
    unit_write(in_folder("p"), "old", 3);
    assert_ok(kd_io_replace_begin(&r, path, &err));
    assert_ok(kd_io_replace_write(r, "one ", 4, &err));
    assert_ok(kd_io_replace_write(r, "", 0, &err));
    assert_ok(kd_io_replace_write(r, "two", 3, &err));
    assert_content(path, "old");
    assert_ok(kd_io_replace_commit(r, &err));
    assert_content(path, "one two");
    assert_ok(kd_io_replace_begin(&r, path, &err));
    assert_ok(kd_io_replace_write(r, "x", 1, &err));
    kd_io_replace_abort(r);
    kd_io_replace_abort(NULL);
    assert_content(path, "one two");
    assert_int_equal(files_in(folder), 1);
    assert_int_equal(kd_io_replace_begin(&r, "/nonexistent folder/x", &err), KD_EFAIL);
    assert_contains(err.msg, "/nonexistent folder/x");
}

static void folders_are_made_with_their_parents(void **state)
{
    char file[4300];
    kd_err err;
    (void)state;
    assert_ok(kd_io_mkdirs(in_folder("a/b//c/"), &err));
    assert_true(kd_io_is_dir(path));
    assert_ok(kd_io_mkdirs(path, &err));
    assert_ok(kd_io_mkdirs(".", &err));
    snprintf(file, sizeof file, "%s/a/file", folder);
    unit_write(file, "x", 1);
    assert_true(kd_io_exists(file) && !kd_io_is_dir(file));
    assert_int_equal(kd_io_mkdirs(file, &err), KD_EFAIL);
    assert_contains(err.msg, "Not a directory");
    assert_ok(kd_io_fsync_dir_of(file, &err));
    assert_false(kd_io_exists(in_folder("nothing")));
}

static void sizes_and_free_space(void **state)
{
    uint64_t size, deep;
    kd_err err;
    (void)state;
    unit_write(in_folder("s"), "12345", 5);
    assert_ok(kd_io_file_size(path, &size, &err));
    assert_int_equal(size, 5);
    assert_int_equal(kd_io_file_size(folder, &size, &err), KD_EFAIL);
    assert_ok(kd_io_free_bytes(folder, &size, &err));
    assert_true(size > 0);
    assert_ok(kd_io_free_bytes(in_folder("not/yet/there.kdc"), &deep, &err));
    assert_true(deep > size / 2 && deep < size * 2);
    assert_ok(kd_io_free_bytes("relative-and-absent", &size, &err));
}

static void a_full_file_system_is_named(void **state)
{
    char where[300], want[5000];
    kd_err err;
    (void)state;
    assert_string_equal(kd_io_file_system("/proc/self/status", where, sizeof where), "the file system at /proc (proc)");
    assert_string_equal(kd_io_file_system("/proc", where, sizeof where), "the file system at /proc (proc)");
    assert_int_equal(strncmp(kd_io_file_system("/proceedings/absent", where, sizeof where), "the file system at / (", 22), 0);
    assert_int_equal(strncmp(kd_io_file_system("relative-and-absent", where, sizeof where), "the file system at /", 20), 0);
    errno = ENOSPC;
    assert_int_equal(kd_io_write_failed(in_folder("s"), "can't be written", &err), KD_ENOSPACE);
    snprintf(want, sizeof want, "%s: can't be written: No space left on device; %s has ", in_folder("s"), kd_io_file_system(folder, where, sizeof where));
    assert_int_equal(strncmp(err.msg, want, strlen(want)), 0);
    errno = EFBIG; /* ulimit -f */
    assert_int_equal(kd_io_write_failed(folder, "can't be written", &err), KD_ENOSPACE);
    errno = EACCES;
    assert_int_equal(kd_io_write_failed(folder, "can't be written", &err), KD_EFAIL);
    assert_null(strstr(err.msg, "file system"));
}

static void size_texts(void **state)
{
    static const struct { const char *text; uint64_t bytes; } good[] = {
        {"0", 0}, {"4096", 4096}, {"10k", 10000}, {"10K", 10000}, {"1.5GiB", 1610612736}, {"32GB", 32000000000ULL}, {"32 GB", 32000000000ULL},
        {"2TiB", 2199023255552ULL}, {"500MB", 500000000}, {"7B", 7}, {"1e3", 1000}};
    static const char *const bad[] = {"", "GB", "-1", "1.5.2G", "12XB", "1 G B", "nan", "inf", "0x10", "1e30", " 5", "5GBs", "1EE"};
    char buf[32];
    uint64_t bytes;
    kd_err err;
    (void)state;
    for (size_t i = 0; i < sizeof good / sizeof *good; i++) {
        assert_ok(kd_io_size_parse(good[i].text, &bytes, &err));
        assert_int_equal(bytes, good[i].bytes);
    }
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        if (kd_io_size_parse(bad[i], &bytes, &err) != KD_EUSAGE)
            fail_msg("\"%s\" was accepted as a size", bad[i]);
    assert_string_equal(kd_io_size_text(0, buf, sizeof buf), "0 B");
    assert_string_equal(kd_io_size_text(1023, buf, sizeof buf), "1023 B");
    assert_string_equal(kd_io_size_text(1610612736, buf, sizeof buf), "1.5 GiB");
    assert_string_equal(kd_io_size_text(UINT64_MAX, buf, sizeof buf), "16.0 EiB");
}

#define IO_TEST(f) cmocka_unit_test_setup_teardown(f, start, end)

int main(void)
{
    const struct CMUnitTest tests[] = {
        IO_TEST(whole_files_are_read),
        IO_TEST(what_cannot_be_read_is_said),
        IO_TEST(a_buffer_is_reused_while_it_is_large_enough),
        IO_TEST(maps_hold_the_content),
        IO_TEST(a_truncated_mapping_is_an_error_not_a_signal),
        IO_TEST(replacement_is_all_or_nothing),
        IO_TEST(what_killed_writers_left_is_removed_and_nothing_else),
        IO_TEST(replacement_in_pieces),
        IO_TEST(folders_are_made_with_their_parents),
        IO_TEST(sizes_and_free_space), IO_TEST(a_full_file_system_is_named),
        IO_TEST(size_texts),
    };
    return cmocka_run_group_tests_name("io", tests, NULL, NULL);
}

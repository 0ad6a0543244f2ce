/* Datasets: the same files in the same order whatever the file system says first, any name that a file can have, nothing that could hang;
 * and images found again by path or by content. */
#include "tests/unit/unit.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include "common/base/io.h"
#include "common/base/log.h"
#include "common/base/mem.h"
#include "common/data/locate.h"

static kd_err err;

static void put(const char *folder, const char *name, const char *text) {
    char path[8192];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    unit_write(path, text, strlen(text));
}

static void folder_in(const char *folder, const char *name) {
    char path[8192];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    assert_int_equal(mkdir(path, 0755), 0);
}

static void assert_files(const kd_dataset *d, const char *const *names, size_t n) {
    assert_int_equal(d->count, n);
    for (size_t i = 0; i < n; i++)
        assert_string_equal(d->file[i].rel, names[i]);
}

static void folders_are_walked_in_byte_order(void **state) {
    (void)state;
    char *folder = unit_folder(), path[4300];
    folder_in(folder, "b");
    folder_in(folder, "a");
    folder_in(folder, "a/deep");
    folder_in(folder, "looks-like.jpg");
    const char *const files[] = {"b/2.jpg", "b/10.JPG", "a/x.png", "a/deep/y.jpeg", "a.jpe", "z.JfIf", "w.webp", "name with space.jpg", "new\nline.jpg", "latin\xE9.jpg",
                                 "looks-like.jpg/inside.png"};
    for (size_t i = 0; i < 11; i++)
        put(folder, files[i], "12345");
    put(folder, "notes.txt", "");
    put(folder, "noextension", "");
    put(folder, "b/.jpg.swp", "");
    snprintf(path, sizeof path, "%s/pipe.jpg", folder);
    assert_int_equal(mkfifo(path, 0644), 0);
    snprintf(path, sizeof path, "%s/link.jpg", folder);
    assert_int_equal(symlink("b/2.jpg", path), 0);
    snprintf(path, sizeof path, "%s/dangling.jpg", folder);
    assert_int_equal(symlink("nowhere", path), 0);
    snprintf(path, sizeof path, "%s/round", folder);
    assert_int_equal(symlink(".", path), 0);

    const char *const expected[] = {"a.jpe", "a/deep/y.jpeg", "a/x.png", "b/10.JPG", "b/2.jpg", "latin\xE9.jpg", "link.jpg", "looks-like.jpg/inside.png",
                                    "name with space.jpg", "new\nline.jpg", "w.webp", "z.JfIf"};
    kd_dataset d;
    snprintf(path, sizeof path, "%s//", folder);
    assert_ok(kd_dataset_open(&d, path, KD_LIST_LINES, &err));
    assert_files(&d, expected, 12);
    assert_int_equal(d.ignored, 5); /* three other names, the pipe, the dangling link */
    assert_int_equal(d.file[6].size, 5);
    assert_true(d.file[6].mtime_ns > 1500000000LL * 1000000000);
    for (size_t i = 0; i < d.count; i++) {
        uint8_t *bytes;
        size_t size;
        assert_ok(kd_dataset_path(&d, i, path, sizeof path, &err));
        assert_ok(kd_io_read_all(path, 100, &bytes, &size, &err));
        kd_free(bytes);
    }
    assert_int_equal(kd_dataset_path(&d, 0, path, strlen(folder) + 3, &err), KD_EFAIL);
    assert_contains(err.msg, "longer than");
    kd_dataset_close(&d);
    free(folder);
}

static void lists_are_taken_as_they_are(void **state) {
    (void)state;
    char *folder = unit_folder(), path[4300], text[9000];
    folder_in(folder, "pics");
    put(folder, "pics/a.jpg", "abc");
    put(folder, "pics/odd name.dat", "abcd");
    snprintf(text, sizeof text, "pics/odd name.dat\n\npics/a.jpg\npics/gone.jpg\npics/a.jpg\n%s/pics/a.jpg", folder);
    put(folder, "list.txt", text);
    snprintf(path, sizeof path, "%s/list.txt", folder);
    kd_dataset d;
    assert_ok(kd_dataset_open(&d, path, KD_LIST_LINES, &err));
    assert_int_equal(d.count, 4);
    assert_string_equal(d.file[1].rel, "pics/a.jpg"); /* '/' of the absolute one sorts first */
    assert_int_equal(d.file[1].size, 3);
    assert_string_equal(d.file[2].rel, "pics/gone.jpg");
    assert_int_equal(d.file[2].size, 0);
    assert_string_equal(d.file[3].rel, "pics/odd name.dat");
    for (size_t i = 0; i < d.count; i++) {
        assert_ok(kd_dataset_path(&d, i, path, sizeof path, &err));
        assert_int_equal(kd_io_exists(path), i != 2);
    }
    kd_dataset_close(&d);
    free(folder);
}

static void a_list_comes_from_standard_input(void **state) {
    (void)state;
    char *folder = unit_folder(), path[4300];
    put(folder, "list", "/x/2.jpg\n/x/1.jpg\n");
    snprintf(path, sizeof path, "%s/list", folder);
    fflush(stdout);
    pid_t child = fork();
    if (child == 0) {
        kd_dataset d;
        int ok = freopen(path, "r", stdin) != NULL && kd_dataset_open(&d, "-", KD_LIST_LINES, &err) == KD_OK && d.count == 2 && strcmp(d.file[0].rel, "/x/1.jpg") == 0 &&
                 kd_dataset_path(&d, 0, path, sizeof path, &err) == KD_OK && strcmp(path, "/x/1.jpg") == 0;
        _exit(ok ? 0 : 1);
    }
    int status;
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_int_equal(status, 0);
    free(folder);
}

static void unusable_sources_are_usage_errors(void **state) {
    (void)state;
    char *folder = unit_folder(), path[4300];
    kd_dataset d;
    snprintf(path, sizeof path, "%s/none", folder);
    assert_int_equal(kd_dataset_open(&d, path, KD_LIST_LINES, &err), KD_EUSAGE);
    assert_contains(err.msg, "No such file");
    put(folder, "readme.txt", "no images here");
    assert_int_equal(kd_dataset_open(&d, folder, KD_LIST_LINES, &err), KD_EUSAGE);
    assert_contains(err.msg, "holds no images (1 other");
    snprintf(path, sizeof path, "%s/pipe", folder);
    assert_int_equal(mkfifo(path, 0644), 0);
    assert_int_equal(kd_dataset_open(&d, path, KD_LIST_LINES, &err), KD_EUSAGE); /* and doesn't hang */
    assert_contains(err.msg, "neither a folder nor a tar nor a list");
    snprintf(path, sizeof path, "%s/picture.jpg", folder);
    unit_write(path, "\xFF\xD8\xFF\xE0\0\x10JFIF", 10);
    assert_int_equal(kd_dataset_open(&d, path, KD_LIST_LINES, &err), KD_EUSAGE);
    assert_contains(err.msg, "isn't a list of paths");
    put(folder, "empty", "\n\n");
    snprintf(path, sizeof path, "%s/empty", folder);
    assert_int_equal(kd_dataset_open(&d, path, KD_LIST_LINES, &err), KD_EUSAGE);
    assert_int_equal(d.count, 0);
    kd_dataset_close(&d); /* harmless after a failure */
    free(folder);
}

static void running_out_of_memory_leaks_nothing(void **state) {
    (void)state;
    char *folder = unit_folder();
    folder_in(folder, "sub");
    put(folder, "sub/a.jpg", "x");
    size_t live = kd_mem_live_bytes(), n = 0;
    kd_status status;
    do {
        kd_dataset d;
        kd_mem_fail_after(++n);
        status = kd_dataset_open(&d, folder, KD_LIST_LINES, &err);
        kd_mem_fail_after(0);
        if (status == KD_OK)
            kd_dataset_close(&d);
        else
            assert_contains(err.msg, "memory");
        assert_int_equal(kd_mem_live_bytes(), live);
    } while (status != KD_OK);
    assert_true(n > 3);
    free(folder);
}

/* ---- locating ---- */

static void images_are_found_by_path_and_by_content(void **state) {
    (void)state;
    char *folder = unit_folder(), index[4300], path[4300];
    folder_in(folder, "images");
    put(folder, "images/a.jpg", "picture a");
    put(folder, "images/moved\nhere.jpg", "picture b!");
    put(folder, "images/copy of a.jpg", "picture a");
    snprintf(path, sizeof path, "%s/images", folder);
    snprintf(index, sizeof index, "%s/index", folder);
    kd_hash128 a = kd_image_id((const uint8_t *)"picture a", 9), b = kd_image_id((const uint8_t *)"picture b!", 10), c = kd_image_id((const uint8_t *)"picture c", 9);
    size_t live = kd_mem_live_bytes();
    kd_locator *l;
    for (int threads = 1; threads <= 3; threads++) {
        assert_ok(kd_locator_create(&l, path, KD_LIST_LINES, &err));
        assert_int_equal(kd_locator_files(l), 3);
        assert_int_equal(kd_locator_by_path(l, "a.jpg", 9), 0);
        assert_int_equal(kd_locator_by_path(l, "a.jpg", 8), -1); /* another size: another file */
        assert_int_equal(kd_locator_by_path(l, "b.jpg", 10), -1);
        assert_int_equal(kd_locator_by_id(l, &a), -1); /* nothing is hashed yet */
        assert_ok(kd_locator_hash_all(l, threads, index, &err));
        assert_int_equal(kd_locator_by_id(l, &a), 0);
        assert_int_equal(kd_locator_by_id(l, &b), 2);
        assert_int_equal(kd_locator_by_id(l, &c), -1);
        assert_ok(kd_locator_path(l, 2, path, sizeof path, &err));
        assert_contains(path, "/images/moved\nhere.jpg");
        path[strlen(folder) + 7] = '\0';
        kd_locator_destroy(l);
    }
    assert_int_equal(kd_mem_live_bytes(), live);

    /* The index is believed as long as size and time fit (shown by new content under the old time), and not after. */
    char file[4400];
    struct stat was;
    snprintf(file, sizeof file, "%s/a.jpg", path);
    assert_int_equal(stat(file, &was), 0);
    put(path, "a.jpg", "CHANGED a");
    const struct timespec times[2] = {was.st_atim, was.st_mtim};
    assert_int_equal(utimensat(AT_FDCWD, file, times, 0), 0);
    assert_ok(kd_locator_create(&l, path, KD_LIST_LINES, &err));
    assert_ok(kd_locator_hash_all(l, 1, index, &err));
    assert_int_equal(kd_locator_by_id(l, &a), 0);
    kd_locator_destroy(l);
    put(path, "a.jpg", "picture c");
    assert_ok(kd_locator_create(&l, path, KD_LIST_LINES, &err));
    assert_ok(kd_locator_hash_all(l, 1, index, &err));
    assert_int_equal(kd_locator_by_id(l, &c), 0);
    assert_int_equal(kd_locator_by_id(l, &a), 1);
    kd_locator_destroy(l);

    /* A damaged index costs time only. */
    uint8_t *bytes;
    size_t size;
    assert_ok(kd_io_read_all(index, 1 << 20, &bytes, &size, &err));
    kd_log_set_level(KD_LOG_ERROR); /* each is warned about */
    for (size_t n = 0; n <= size; n += 7) {
        unit_write(index, bytes, n);
        assert_ok(kd_locator_create(&l, path, KD_LIST_LINES, &err));
        assert_ok(kd_locator_hash_all(l, 1, index, &err));
        assert_int_equal(kd_locator_by_id(l, &b), 2);
        kd_locator_destroy(l);
    }
    kd_log_set_level(KD_LOG_INFO);
    kd_free(bytes);
    free(folder);
}

static void unreadable_files_are_left_out(void **state) {
    (void)state;
    char *folder = unit_folder();
    put(folder, "a.jpg", "picture a");
    put(folder, "list", "a.jpg\ngone.jpg\n.\n");
    char path[4300];
    snprintf(path, sizeof path, "%s/list", folder);
    kd_hash128 a = kd_image_id((const uint8_t *)"picture a", 9);
    kd_locator *l;
    assert_ok(kd_locator_create(&l, path, KD_LIST_LINES, &err));
    assert_ok(kd_locator_hash_all(l, 2, NULL, &err));
    assert_int_equal(kd_locator_by_id(l, &a), 1);
    kd_locator_destroy(l);
    assert_int_equal(kd_locator_create(&l, "/no/such/folder", KD_LIST_LINES, &err), KD_EUSAGE);
    free(folder);
}

/* Parts 1 .. parts hold every file once; a file's part depends on its name and the number of parts only. */
static void parts_divide_a_set_and_stay_when_it_grows(void **state) {
    (void)state;
    enum { FILES = 60, PARTS = 4 };
    char *folder = unit_folder(), name[32];
    size_t sum = 0, smallest = FILES;
    for (int i = 0; i < FILES; i++) {
        snprintf(name, sizeof name, "%02d.jpg", i);
        put(folder, name, "x");
    }
    kd_dataset whole, grown, part, again;
    assert_ok(kd_dataset_open(&whole, folder, KD_LIST_LINES, &err));
    put(folder, "new.jpg", "x");
    assert_ok(kd_dataset_open(&grown, folder, KD_LIST_LINES, &err));
    for (uint32_t p = 1; p <= PARTS; p++) {
        assert_ok(kd_dataset_part(&part, &whole, p, PARTS, &err));
        assert_ok(kd_dataset_part(&again, &grown, p, PARTS, &err));
        for (size_t i = 0, k = 0; i < part.count; i++, k++) {
            if (strcmp(again.file[k].rel, part.file[i].rel) != 0)
                k++;
            assert_string_equal(again.file[k].rel, part.file[i].rel);
            assert_int_equal(kd_xxh64(part.file[i].rel, strlen(part.file[i].rel)) % PARTS, p - 1);
        }
        sum += part.count;
        smallest = part.count < smallest ? part.count : smallest;
        kd_dataset_close(&part);
        kd_dataset_close(&again);
    }
    assert_int_equal(sum, FILES);
    assert_true(smallest > 0);
    kd_dataset_close(&whole);
    kd_dataset_close(&grown);
    free(folder);
}

static void a_part_of_a_tar_is_read_from_it(void **state) {
    (void)state;
    char *folder = unit_folder(), command[9000], path[4300];
    put(folder, "a.jpg", "picture a");
    put(folder, "b.jpg", "picture b");
    snprintf(command, sizeof command, "cd '%s' && tar -cf t.tar a.jpg b.jpg && rm a.jpg b.jpg", folder);
    assert_int_equal(system(command), 0);
    snprintf(path, sizeof path, "%s/t.tar", folder);
    kd_dataset whole, part;
    assert_ok(kd_dataset_open(&whole, path, KD_LIST_LINES, &err));
    assert_ok(kd_dataset_subset(&part, &whole, (const uint8_t[]){0, 1}, &err));
    assert_int_equal(part.count, 1);
    uint8_t *bytes = NULL;
    size_t cap = 0, size;
    assert_ok(kd_dataset_read(&part, 0, &bytes, &cap, &size, &err));
    assert_int_equal(size, 9);
    assert_memory_equal(bytes, "picture b", 9);
    kd_free(bytes);
    kd_dataset_close(&part);
    assert_ok(kd_dataset_subset(&part, &whole, (const uint8_t[]){0, 0}, &err));
    assert_int_equal(part.count, 0);
    kd_dataset_close(&part);
    kd_dataset_close(&whole);
    free(folder);
}

static void hidden_paths_are_the_hash_of_the_relative_path(void **state) {
    (void)state;
    char hidden[KD_HIDDEN_PATH];
    kd_hash128 hash, want = kd_xxh128("a/b.jpg", 7);
    kd_hidden_path(hidden, "a/b.jpg");
    assert_int_equal(strlen(hidden), 39);
    assert_true(kd_is_hidden_path(hidden, &hash));
    assert_memory_equal(hash.b, want.b, 16);
    assert_false(kd_is_hidden_path("a/b.jpg", NULL));
    assert_false(kd_is_hidden_path("xxh128:0123", NULL));
    assert_false(kd_is_hidden_path("xxh128:0123456789abcdef0123456789abcdeg", NULL));
    assert_false(kd_is_hidden_path("xxh128:0123456789abcdef0123456789abcdef0", NULL));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(folders_are_walked_in_byte_order),
        cmocka_unit_test(lists_are_taken_as_they_are),
        cmocka_unit_test(a_list_comes_from_standard_input),
        cmocka_unit_test(unusable_sources_are_usage_errors),
        cmocka_unit_test(running_out_of_memory_leaks_nothing),
        cmocka_unit_test(images_are_found_by_path_and_by_content),
        cmocka_unit_test(unreadable_files_are_left_out),
        cmocka_unit_test(parts_divide_a_set_and_stay_when_it_grows),
        cmocka_unit_test(a_part_of_a_tar_is_read_from_it),
        cmocka_unit_test(hidden_paths_are_the_hash_of_the_relative_path),
    };
    return cmocka_run_group_tests_name("dataset", tests, NULL, NULL);
}

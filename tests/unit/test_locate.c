#include "tests/cache_fixture.h"

#include <fcntl.h>
#include <sys/time.h>

#include "common/data/locate.h"

static char root[100], indexed[100];

static void put(const char *rel, const char *content)
{
    char path[500], *slash;
    snprintf(path, sizeof path, "%s/%s", root, rel);
    slash = strrchr(path, '/');
    *slash = 0;
    must(kd_io_mkdirs(path, &fx_err));
    *slash = '/';
    fx_write_file(path, content, strlen(content));
}

static kd_hash128 id_of(const char *content)
{
    return kd_image_id((const uint8_t *)content, strlen(content));
}

static int setup(void **state)
{
    if (fx_make_dir(state) != 0)
        return -1;
    snprintf(root, sizeof root, "%s/images", fx_dir);
    snprintf(indexed, sizeof indexed, "%s/index", fx_dir);
    put("b/two.jpg", "picture two");
    put("a/one.jpg", "picture one");
    put("a/with space\nand line.png", "picture three");
    put("c/same as one.jpg", "picture one");
    put("notes.txt", "not an image");
    return 0;
}

static int teardown(void **state)
{
    char command[200];
    snprintf(command, sizeof command, "rm -rf '%s'", root);
    return system(command) == 0 ? fx_drop_dir(state) : -1;
}

static kd_locator *open_locator(void)
{
    kd_locator *l;
    must(kd_locator_create(&l, root, KD_LIST_LINES, &fx_err));
    return l;
}

static void assert_found(const kd_locator *l, int64_t i, const char *rel)
{
    char path[500], want[500];
    assert_true(i >= 0);
    must(kd_locator_path(l, i, path, sizeof path, &fx_err));
    snprintf(want, sizeof want, "%s/%s", root, rel);
    assert_string_equal(path, want);
}

static void recorded_paths_are_found_by_name_and_size(void **state)
{
    kd_locator *l = open_locator();
    (void)state;
    assert_int_equal(kd_locator_files(l), 4);
    assert_found(l, kd_locator_by_path(l, "a/one.jpg", 11), "a/one.jpg");
    assert_found(l, kd_locator_by_path(l, "a/with space\nand line.png", 13), "a/with space\nand line.png");
    assert_int_equal(kd_locator_by_path(l, "a/one.jpg", 12), -1);
    assert_int_equal(kd_locator_by_path(l, "a/on", 11), -1);
    assert_int_equal(kd_locator_by_path(l, "z.jpg", 11), -1);
    kd_locator_destroy(l);
}

static void ids_are_found_after_hashing(void **state)
{
    kd_locator *l = open_locator();
    kd_hash128 one = id_of("picture one"), three = id_of("picture three"), none = id_of("picture four");
    (void)state;
    assert_int_equal(kd_locator_by_id(l, &one), -1); /* not hashed yet */
    must(kd_locator_hash_all(l, 2, NULL, &fx_err));
    assert_found(l, kd_locator_by_id(l, &one), "a/one.jpg"); /* of equal files the first in path order */
    assert_found(l, kd_locator_by_id(l, &three), "a/with space\nand line.png");
    assert_int_equal(kd_locator_by_id(l, &none), -1);
    kd_locator_destroy(l);
}

/* What views may be mixed with: by content, each once, in the order of the ids. The numbers of files are those of the data set. */
static void picture_ids_are_ascending_and_of_pictures_only(void **state)
{
    static const char jpeg[] = "\xFF\xD8\xFF\xE0 a", png[] = "\x89PNG\r\n\x1a\n b";
    kd_hash128 ids[5], want[2] = {kd_image_id((const uint8_t *)jpeg, sizeof jpeg), kd_image_id((const uint8_t *)png, sizeof png)};
    char folder[300], path[400];
    kd_dataset data;
    kd_locator *l;
    (void)state;
    snprintf(folder, sizeof folder, "%s/../pictures-%d", root, (int)getpid());
    assert_int_equal(mkdir(folder, 0700), 0);
    const struct { const char *name, *bytes; size_t size; } file[] = {{"1.jpg", "no picture", 10}, {"2.jpg", png, sizeof png}, {"3.png", jpeg, sizeof jpeg}, {"4.jpg", jpeg, sizeof jpeg}, {"5.jpg", "", 0}};
    for (size_t i = 0; i < 5; i++) {
        snprintf(path, sizeof path, "%s/%s", folder, file[i].name);
        fx_write_file(path, file[i].bytes, file[i].size);
    }
    must(kd_dataset_open(&data, folder, KD_LIST_LINES, &fx_err));
    must(kd_locator_create_over(&l, &data, &fx_err));
    assert_int_equal(kd_locator_picture_ids(l, ids), 0); /* not hashed yet */
    must(kd_locator_hash_all(l, 2, NULL, &fx_err));
    assert_int_equal(kd_locator_picture_ids(l, ids), 2);
    int swapped = memcmp(&want[0], &want[1], sizeof *want) > 0;
    assert_memory_equal(&ids[0], &want[swapped], 16);
    assert_memory_equal(&ids[1], &want[!swapped], 16);
    assert_string_equal(data.file[kd_locator_by_id(l, &want[0])].rel, "3.png");
    kd_locator_destroy(l);
    assert_int_equal(data.count, 5); /* borrowed: still open */
    kd_dataset_close(&data);
    for (size_t i = 0; i < 5; i++) {
        snprintf(path, sizeof path, "%s/%s", folder, file[i].name);
        unlink(path);
    }
    rmdir(folder);
}

/* The index is believed for files of equal path, size and time: shown by changing a file behind its back. */
static void the_index_saves_hashing_of_unchanged_files(void **state)
{
    kd_locator *l = open_locator();
    kd_hash128 one = id_of("picture one"), two = id_of("picture two"), changed = id_of("picture TWO");
    struct timespec time[2];
    struct stat st;
    char path[300];
    (void)state;
    snprintf(path, sizeof path, "%s/b/two.jpg", root);
    assert_int_equal(stat(path, &st), 0);
    must(kd_locator_hash_all(l, 1, indexed, &fx_err));
    kd_locator_destroy(l);
    put("b/two.jpg", "picture TWO");
    time[0] = time[1] = st.st_mtim;
    assert_int_equal(utimensat(AT_FDCWD, path, time, 0), 0);
    l = open_locator();
    must(kd_locator_hash_all(l, 1, indexed, &fx_err));
    assert_found(l, kd_locator_by_id(l, &two), "b/two.jpg"); /* from the index: the view hash is what proves a file */
    assert_found(l, kd_locator_by_id(l, &one), "a/one.jpg");
    kd_locator_destroy(l);
    time[1].tv_sec += 5;
    assert_int_equal(utimensat(AT_FDCWD, path, time, 0), 0);
    l = open_locator();
    must(kd_locator_hash_all(l, 1, indexed, &fx_err));
    assert_int_equal(kd_locator_by_id(l, &two), -1);
    assert_found(l, kd_locator_by_id(l, &changed), "b/two.jpg");
    kd_locator_destroy(l);
}

static void a_damaged_index_is_made_anew(void **state)
{
    kd_locator *l = open_locator();
    kd_hash128 two = id_of("picture two");
    uint8_t *bytes;
    size_t size;
    (void)state;
    kd_log_set_level(KD_LOG_ERROR);
    must(kd_locator_hash_all(l, 1, indexed, &fx_err));
    kd_locator_destroy(l);
    fx_read_file(indexed, &bytes, &size);
    for (size_t i = 0; i <= size; i += 3) {
        uint8_t *now;
        size_t n;
        if (i < size)
            bytes[i] ^= 4;
        fx_write_file(indexed, bytes, i < size ? size : size / 2);
        if (i < size)
            bytes[i] ^= 4;
        l = open_locator();
        must(kd_locator_hash_all(l, 1, indexed, &fx_err));
        assert_found(l, kd_locator_by_id(l, &two), "b/two.jpg");
        kd_locator_destroy(l);
        fx_read_file(indexed, &now, &n); /* and written again */
        assert_int_equal(n, size);
        assert_memory_equal(now, bytes, size);
        kd_free(now);
    }
    kd_free(bytes);
}

static void unreadable_files_have_no_id(void **state)
{
    kd_locator *l = open_locator();
    char path[300];
    kd_hash128 two = id_of("picture two"), one = id_of("picture one");
    (void)state;
    kd_log_set_level(KD_LOG_ERROR);
    snprintf(path, sizeof path, "%s/b/two.jpg", root);
    unlink(path); /* listed, then gone */
    must(kd_locator_hash_all(l, 2, NULL, &fx_err));
    assert_int_equal(kd_locator_by_id(l, &two), -1);
    assert_found(l, kd_locator_by_id(l, &one), "a/one.jpg");
    kd_locator_destroy(l);
}

static void a_missing_folder_is_a_usage_error(void **state)
{
    kd_locator *l;
    (void)state;
    must_be(KD_EUSAGE, kd_locator_create(&l, fx_path("none"), KD_LIST_LINES, &fx_err));
    assert_null(l);
}

static void hidden_paths_are_found_like_plain_ones(void **state)
{
    static const char *const rel[] = {"a/one.jpg", "a/with space\nand line.png", "b/two.jpg", "c/same as one.jpg"};
    kd_locator *l = open_locator();
    kd_hash128 one = id_of("picture one"), three = id_of("picture three"), none = id_of("picture four");
    char hidden[KD_HIDDEN_PATH];
    int64_t file;
    (void)state;
    for (size_t i = 0; i < 4; i++) {
        kd_hidden_path(hidden, rel[i]);
        assert_found(l, kd_locator_by_name(l, hidden), rel[i]);
    }
    kd_hidden_path(hidden, "a/one.jpg");
    assert_found(l, kd_locator_by_path(l, hidden, 11), "a/one.jpg");
    assert_int_equal(kd_locator_by_path(l, hidden, 12), -1);
    assert_int_equal(kd_locator_find(l, &one, hidden, 11, &file), KD_IN_PLACE);
    assert_string_equal(kd_locator_show(l, file, hidden), "a/one.jpg");
    assert_int_equal(kd_locator_find(l, &none, hidden, 12, &file), KD_CHANGED);
    assert_string_equal(kd_locator_show(l, file, hidden), "a/one.jpg"); /* the one that was changed */
    must(kd_locator_hash_all(l, 1, NULL, &fx_err));
    assert_int_equal(kd_locator_find(l, &three, hidden, 13, &file), KD_MOVED);
    assert_found(l, file, "a/with space\nand line.png");
    kd_hidden_path(hidden, "a/none.jpg");
    assert_int_equal(kd_locator_by_name(l, hidden), -1);
    assert_int_equal(kd_locator_find(l, &none, hidden, 11, &file), KD_MISSING);
    assert_string_equal(kd_locator_show(l, file, hidden), hidden);
    kd_locator_destroy(l);
}

/* Nobody's name is taken for a hidden path: a file that is called like one is found by it first. */
static void a_file_called_like_a_hidden_path_is_itself(void **state)
{
    char hidden[KD_HIDDEN_PATH];
    kd_dataset d = {0};
    kd_data_file file[2] = {{.rel = "a.jpg", .size = 5}, {.rel = hidden, .size = 7}};
    kd_locator *l;
    (void)state;
    kd_hidden_path(hidden, "a.jpg");
    d.root = "";
    d.file = file;
    d.count = 2;
    must(kd_locator_create_over(&l, &d, &fx_err));
    assert_int_equal(kd_locator_by_name(l, hidden), 1);
    assert_int_equal(kd_locator_by_path(l, hidden, 7), 1);
    kd_locator_destroy(l);
}

int main(void)
{
#define T(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
    const struct CMUnitTest tests[] = {
        T(recorded_paths_are_found_by_name_and_size), T(ids_are_found_after_hashing), T(picture_ids_are_ascending_and_of_pictures_only), T(the_index_saves_hashing_of_unchanged_files), T(a_damaged_index_is_made_anew),
        T(unreadable_files_have_no_id), T(a_missing_folder_is_a_usage_error),
        T(hidden_paths_are_found_like_plain_ones), T(a_file_called_like_a_hidden_path_is_itself),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

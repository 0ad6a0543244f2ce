/* Tars: members are read in place whatever kind of tar it is, under exactly the names that stand in it; what is cut off, damaged or stored otherwise is said, never guessed. */
#include "tests/unit/unit.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/base/io.h"
#include "common/base/log.h"
#include "common/base/mem.h"
#include "common/data/locate.h"
#include "tests/tar_file.h"

static kd_err err;
static char *folder, path[4300];

static int start(void **state)
{
    (void)state;
    folder = unit_folder();
    return 0;
}

static int end(void **state)
{
    (void)state;
    free(folder);
    return 0;
}

static const char *in_folder(const char *name)
{
    snprintf(path, sizeof path, "%s/%s", folder, name);
    return path;
}

static void save(tar_file *t, const char *name)
{
    unit_write(in_folder(name), (const char *)t->bytes, t->size);
    tar_free(t);
}

/* A member's bytes: its key repeated, so that a wrong offset shows. */
static void picture(char *out, size_t size, char key)
{
    for (size_t i = 0; i < size; i++)
        out[i] = (char)(key + (char)(i % 7));
}

static void add(tar_file *t, const char *name, size_t size, char key)
{
    char *bytes = malloc(size + 1);
    picture(bytes, size, key);
    tar_add(t, name, bytes, size);
    free(bytes);
}

static void assert_picture(const kd_dataset *d, const char *rel, size_t size, char key)
{
    uint8_t *buf = NULL;
    char *want = malloc(size + 1);
    size_t cap = 0, got;
    picture(want, size, key);
    for (size_t i = 0; i < d->count; i++) {
        if (strcmp(d->file[i].rel, rel) != 0)
            continue;
        assert_int_equal(d->file[i].size, size);
        assert_ok(kd_dataset_read(d, i, &buf, &cap, &got, &err));
        assert_int_equal(got, size);
        assert_memory_equal(buf, want, size);
        assert_int_equal(buf[size], 0);
        kd_free(buf);
        free(want);
        return;
    }
    fail_msg("%s isn't in the data set", rel);
}

/* The file rel can't be read, and the reason has these words. */
static void assert_problem(const kd_dataset *d, const char *rel, const char *words)
{
    uint8_t *buf = NULL;
    size_t cap = 0, got;
    for (size_t i = 0; i < d->count; i++) {
        if (strcmp(d->file[i].rel, rel) != 0)
            continue;
        assert_int_equal(kd_dataset_read(d, i, &buf, &cap, &got, &err), KD_EFAIL);
        assert_contains(err.msg, words);
        kd_free(buf);
        return;
    }
    fail_msg("%s isn't in the data set", rel);
}

static void every_kind_of_tar_is_read_in_place(void **state)
{
    (void)state;
    char longest[600], deep[1200];
    tar_file t = {0};
    kd_dataset d;
    memset(longest, 'n', 290);
    strcpy(longest + 290, ".jpg");
    memset(deep, 'p', 1000);
    strcpy(deep + 1000, "/\xC3\xA4\xE2\x82\xAC.png");
    add(&t, "plain.jpg", 5000, 'a');
    add(&t, "empty.jpg", 0, 'b');
    add(&t, "exact.jpg", 1024, 'c');
    tar_long_name(&t, longest);
    add(&t, "cut.jpg", 700, 'd');
    tar_pax(&t, "path", deep);
    add(&t, "short.png", 701, 'e');
    tar_pax(&t, "SCHILY.xattr.user.note", "whatever");
    add(&t, "attr.webp", 702, 'f');
    add(&t, "latin\xE9.jpg", 703, 'g');
    add(&t, "with space\nand line.JPEG", 704, 'h');
    tar_end(&t);
    save(&t, "all.tar");
    assert_ok(kd_dataset_open(&d, in_folder("all.tar"), KD_LIST_LINES, &err));
    assert_int_equal(d.count, 8);
    assert_int_equal(d.tars, 1);
    assert_int_equal(d.ignored, 0);
    assert_picture(&d, "all.tar/plain.jpg", 5000, 'a');
    assert_picture(&d, "all.tar/empty.jpg", 0, 'b');
    assert_picture(&d, "all.tar/exact.jpg", 1024, 'c');
    assert_picture(&d, "all.tar/latin\xE9.jpg", 703, 'g');
    assert_picture(&d, "all.tar/with space\nand line.JPEG", 704, 'h');
    assert_picture(&d, "all.tar/attr.webp", 702, 'f');
    char rel[2000];
    snprintf(rel, sizeof rel, "all.tar/%s", longest);
    assert_picture(&d, rel, 700, 'd');
    snprintf(rel, sizeof rel, "all.tar/%s", deep); /* the C locale doesn't change UTF-8 names */
    assert_picture(&d, rel, 701, 'e');
    for (size_t i = 0; i < d.count; i++) {
        char full[KD_DATA_NAME];
        assert_ok(kd_dataset_path(&d, i, full, sizeof full, &err));
        assert_memory_equal(full, folder, strlen(folder));
        assert_string_equal(full + strlen(folder) + 1, d.file[i].rel);
        assert_string_equal(kd_dataset_inner_name(&d, i), d.file[i].rel + strlen("all.tar/"));
    }
    kd_dataset_close(&d);
}

static void members_without_a_picture_are_counted(void **state)
{
    (void)state;
    tar_file t = {0};
    kd_dataset d;
    tar_header(&t, "folder/", '5', 0, "");
    add(&t, "folder/000.jpg", 100, 'a');
    add(&t, "folder/000.cls", 3, 'b');
    add(&t, "folder/000.json", 30, 'b');
    tar_header(&t, "hard.jpg", '1', 0, "folder/000.jpg");
    tar_header(&t, "soft.jpg", '2', 0, "/etc/passwd");
    tar_header(&t, "fifo.jpg", '6', 0, "");
    tar_header(&t, "device.jpg", '3', 0, "");
    add(&t, "../../outside.jpg", 101, 'c');
    add(&t, "/etc/absolute.jpg", 102, 'd');
    tar_end(&t);
    save(&t, "mixed.tar");
    assert_ok(kd_dataset_open(&d, in_folder("mixed.tar"), KD_LIST_LINES, &err));
    assert_int_equal(d.count, 3);
    assert_int_equal(d.ignored, 7);
    assert_picture(&d, "mixed.tar/folder/000.jpg", 100, 'a');
    assert_picture(&d, "mixed.tar/../../outside.jpg", 101, 'c'); /* a name, never a path */
    assert_picture(&d, "mixed.tar//etc/absolute.jpg", 102, 'd');
    kd_dataset_close(&d);
}

static void the_last_of_several_members_of_one_name_counts(void **state)
{
    (void)state;
    tar_file t = {0};
    kd_dataset d;
    add(&t, "a.jpg", 100, 'a');
    add(&t, "b.jpg", 100, 'b');
    add(&t, "a.jpg", 200, 'c');
    tar_end(&t);
    save(&t, "twice.tar");
    assert_ok(kd_dataset_open(&d, in_folder("twice.tar"), KD_LIST_LINES, &err));
    assert_int_equal(d.count, 2);
    assert_int_equal(d.ignored, 1);
    assert_picture(&d, "twice.tar/a.jpg", 200, 'c');
    kd_dataset_close(&d);
}

static void concatenated_tars_are_read_to_their_end(void **state)
{
    (void)state;
    tar_file t = {0};
    kd_dataset d;
    add(&t, "a.jpg", 100, 'a');
    tar_end(&t);
    add(&t, "b.jpg", 100, 'b');
    tar_end(&t);
    save(&t, "joined.tar");
    assert_ok(kd_dataset_open(&d, in_folder("joined.tar"), KD_LIST_LINES, &err));
    assert_int_equal(d.count, 2);
    assert_picture(&d, "joined.tar/b.jpg", 100, 'b');
    kd_dataset_close(&d);
}

static void cut_off_tars_keep_what_is_whole(void **state)
{
    (void)state;
    tar_file t = {0};
    kd_dataset d;
    size_t whole;
    add(&t, "a.jpg", 1000, 'a');
    whole = t.size;
    add(&t, "b.jpg", 3000, 'b');
    tar_end(&t);
    uint8_t *bytes = malloc(t.size);
    memcpy(bytes, t.bytes, t.size);
    /* Every length from the second header on: a.jpg can always be read, b.jpg never, and something says so unless the cut is between members. */
    for (size_t n = whole; n < whole + 512 + 3000; n += n == whole ? 1 : 97) {
        unit_write(in_folder("cut.tar"), (const char *)bytes, n);
        kd_log_set_level(KD_LOG_ERROR);
        assert_ok(kd_dataset_open(&d, in_folder("cut.tar"), KD_LIST_LINES, &err));
        kd_log_set_level(KD_LOG_INFO);
        assert_picture(&d, "cut.tar/a.jpg", 1000, 'a');
        if (n == whole)
            assert_int_equal(d.count, 1);
        else if (n < whole + 512)
            assert_problem(&d, "cut.tar", "cut off");
        else
            assert_problem(&d, "cut.tar/b.jpg", "cut off");
        kd_dataset_close(&d);
    }
    free(bytes);
    tar_free(&t);
}

static void impossible_sizes_are_said(void **state)
{
    (void)state;
    tar_file t = {0};
    kd_dataset d;
    add(&t, "a.jpg", 100, 'a');
    tar_header(&t, "huge.jpg", '0', 077777777777, "");
    add(&t, "later.jpg", 100, 'b');
    tar_end(&t);
    save(&t, "huge.tar");
    assert_ok(kd_dataset_open(&d, in_folder("huge.tar"), KD_LIST_LINES, &err));
    assert_int_equal(d.count, 2);
    assert_problem(&d, "huge.tar/huge.jpg", "go beyond the end");
    kd_dataset_close(&d);
    /* base-256: -1 and 2^62 */
    for (int negative = 0; negative < 2; negative++) {
        add(&t, "a.jpg", 100, 'a');
        tar_header(&t, "odd.jpg", '0', 0, "");
        uint8_t *h = t.bytes + t.size - 512;
        memset(h + 124, negative ? 0xFF : 0, 12);
        if (!negative) {
            h[124] = 0x80;
            h[128] = 0x40;
        }
        tar_checksum(h);
        tar_end(&t);
        save(&t, "odd.tar");
        assert_ok(kd_dataset_open(&d, in_folder("odd.tar"), KD_LIST_LINES, &err));
        assert_picture(&d, "odd.tar/a.jpg", 100, 'a');
        assert_int_equal(d.count, 2);
        assert_problem(&d, negative ? "odd.tar" : "odd.tar/odd.jpg", negative ? "damaged or cut off" : "go beyond the end");
        kd_dataset_close(&d);
    }
}

static void a_damaged_header_is_a_file_that_cannot_be_read(void **state)
{
    (void)state;
    tar_file t = {0};
    kd_dataset d;
    add(&t, "a.jpg", 100, 'a');
    size_t second = t.size;
    add(&t, "b.jpg", 100, 'b');
    tar_end(&t);
    t.bytes[second + 20] ^= 1; /* the checksum notices */
    save(&t, "flip.tar");
    assert_ok(kd_dataset_open(&d, in_folder("flip.tar"), KD_LIST_LINES, &err));
    assert_int_equal(d.count, 2);
    assert_picture(&d, "flip.tar/a.jpg", 100, 'a');
    assert_problem(&d, "flip.tar", "damaged or cut off after 1 members");
    kd_dataset_close(&d);
}

static void sparse_members_are_said(void **state)
{
    (void)state;
    tar_file t = {0};
    kd_dataset d;
    char *bytes = calloc(1, 1024);
    /* pax sparse 1.0: the map of holes stands before the data */
    tar_pax_records(&t, (const char *const[]){"GNU.sparse.major", "1", "GNU.sparse.minor", "0", "GNU.sparse.name", "holes.jpg", "GNU.sparse.realsize", "1000000", NULL});
    snprintf(bytes, 512, "1\n999488\n512\n");
    tar_add(&t, "GNUSparseFile.0/holes.jpg", bytes, 1024);
    add(&t, "b.jpg", 100, 'b');
    tar_end(&t);
    free(bytes);
    save(&t, "sparse.tar");
    assert_ok(kd_dataset_open(&d, in_folder("sparse.tar"), KD_LIST_LINES, &err));
    assert_picture(&d, "sparse.tar/b.jpg", 100, 'b');
    assert_problem(&d, "sparse.tar/holes.jpg", "--sparse");
    kd_dataset_close(&d);
}

static void what_is_no_tar_is_said(void **state)
{
    (void)state;
    kd_dataset d;
    unit_write(in_folder("squeezed.tar"), "\x1F\x8B\x08\0\0\0\0\0\0\3", 10);
    assert_ok(kd_dataset_open(&d, in_folder("squeezed.tar"), KD_LIST_LINES, &err));
    assert_problem(&d, "squeezed.tar", "gunzip it first");
    kd_dataset_close(&d);
    unit_write(in_folder("empty.tar"), "", 0);
    assert_ok(kd_dataset_open(&d, in_folder("empty.tar"), KD_LIST_LINES, &err));
    assert_problem(&d, "empty.tar", "empty (0 bytes)");
    kd_dataset_close(&d);
    unit_write(in_folder("text.tar"), "this is a text and nothing else", 31);
    assert_ok(kd_dataset_open(&d, in_folder("text.tar"), KD_LIST_LINES, &err));
    assert_problem(&d, "text.tar", "text.tar");
    kd_dataset_close(&d);
    unit_write(in_folder("x.tar.gz"), "\x1F\x8B\x08\0\0\0\0\0\0\3", 10);
    assert_int_equal(kd_dataset_open(&d, in_folder("x.tar.gz"), KD_LIST_LINES, &err), KD_EUSAGE);
    assert_contains(err.msg, "compressed");
    tar_file t = {0};
    add(&t, "notes.txt", 100, 'a');
    tar_end(&t);
    save(&t, "texts.tar");
    assert_int_equal(kd_dataset_open(&d, in_folder("texts.tar"), KD_LIST_LINES, &err), KD_EUSAGE);
    assert_contains(err.msg, "holds no images (1 other");
    snprintf(path, sizeof path, "%s/pipe.tar", folder);
    assert_int_equal(mkfifo(path, 0644), 0);
    assert_int_equal(kd_dataset_open(&d, path, KD_LIST_LINES, &err), KD_EUSAGE); /* and doesn't hang */
}

static void names_beyond_the_caches_limit_are_said(void **state)
{
    (void)state;
    char *name = malloc(5001);
    tar_file t = {0};
    kd_dataset d;
    uint8_t *buf = NULL;
    size_t cap = 0, size;
    memset(name, 'n', 4990);
    strcpy(name + 4990, ".jpg");
    tar_pax(&t, "path", name);
    add(&t, "x.jpg", 100, 'a');
    tar_end(&t);
    save(&t, "long.tar");
    assert_ok(kd_dataset_open(&d, in_folder("long.tar"), KD_LIST_LINES, &err));
    assert_int_equal(d.count, 1);
    assert_int_equal(kd_dataset_read(&d, 0, &buf, &cap, &size, &err), KD_EFAIL);
    assert_contains(err.msg, "above the limit of 4095");
    kd_dataset_close(&d);
    free(name);
}

static void write_shards(void)
{
    tar_file t = {0};
    assert_ok(kd_io_mkdirs(in_folder("set/sub"), &err));
    add(&t, "000.jpg", 100, 'a');
    add(&t, "cat/001.jpg", 200, 'b');
    tar_end(&t);
    save(&t, "set/shard-000.tar");
    add(&t, "000.jpg", 300, 'c');
    add(&t, "000.txt", 10, 'c');
    tar_end(&t);
    save(&t, "set/sub/shard-001.TAR");
    char text[50];
    picture(text, 40, 'x');
    unit_write(in_folder("set/sub/alone.jpg"), text, 40);
}

static void folders_and_lists_mix_tars_and_files(void **state)
{
    (void)state;
    static const char *const all[] = {"shard-000.tar/000.jpg", "shard-000.tar/cat/001.jpg", "sub/alone.jpg", "sub/shard-001.TAR/000.jpg"};
    kd_dataset d;
    write_shards();
    unit_write(in_folder("set/list.txt"), "sub/alone.jpg\nshard-000.tar\nsub/shard-001.TAR/000.jpg\n", 54);
    for (int list = 0; list < 2; list++) {
        assert_ok(kd_dataset_open(&d, in_folder(list ? "set/list.txt" : "set"), KD_LIST_LINES, &err));
        assert_int_equal(d.count, 4);
        assert_int_equal(d.ignored, list ? 0 : 2); /* a text in a tar, and the list itself */
        for (size_t i = 0; i < 4; i++)
            assert_string_equal(d.file[i].rel, all[i]);
        assert_picture(&d, all[0], 100, 'a');
        assert_picture(&d, all[1], 200, 'b');
        assert_picture(&d, all[2], 40, 'x');
        assert_picture(&d, all[3], 300, 'c');
        kd_dataset_close(&d);
    }
    static const char names[] = "shard-000.tar/cat/001.jpg\0shard-000.tar/none.jpg\0sub/alone.jpg\0gone.tar/x.jpg";
    unit_write(in_folder("set/list0"), names, sizeof names);
    assert_int_equal(kd_dataset_open(&d, in_folder("set/list0"), KD_LIST_LINES, &err), KD_EUSAGE);
    assert_contains(err.msg, "--null");
    assert_ok(kd_dataset_open(&d, in_folder("set/list0"), KD_LIST_NUL, &err));
    assert_int_equal(d.count, 4);
    assert_picture(&d, "shard-000.tar/cat/001.jpg", 200, 'b');
    assert_problem(&d, "shard-000.tar/none.jpg", "no image of this name");
    assert_problem(&d, "gone.tar/x.jpg", "can't be opened");
    kd_dataset_close(&d);
    assert_int_equal(kd_dataset_open(&d, in_folder("set/list.txt"), KD_LIST_NUL, &err), KD_EUSAGE);
    assert_contains(err.msg, "leave --null out");
}

static void a_tar_that_changes_is_said(void **state)
{
    (void)state;
    kd_dataset d;
    write_shards();
    assert_ok(kd_dataset_open(&d, in_folder("set"), KD_LIST_LINES, &err));
    assert_int_equal(truncate(in_folder("set/shard-000.tar"), 700), 0);
    assert_problem(&d, "shard-000.tar/cat/001.jpg", "changed: it had");
    assert_picture(&d, "sub/shard-001.TAR/000.jpg", 300, 'c');
    kd_dataset_close(&d);
}

static void members_are_located_by_path_by_id_and_from_the_index(void **state)
{
    (void)state;
    char index[4300], bytes[300];
    kd_locator *l;
    uint8_t *buf = NULL;
    size_t cap = 0, size;
    write_shards();
    snprintf(index, sizeof index, "%s/index", folder);
    picture(bytes, 300, 'c');
    kd_hash128 id = kd_image_id((const uint8_t *)bytes, 300), none = kd_image_id((const uint8_t *)bytes, 299);
    for (int round = 0; round < 2; round++) {
        assert_ok(kd_locator_create(&l, in_folder("set"), KD_LIST_LINES, &err));
        assert_int_equal(kd_locator_by_path(l, "sub/shard-001.TAR/000.jpg", 300), 3);
        assert_int_equal(kd_locator_by_path(l, "sub/shard-001.TAR/000.jpg", 301), -1);
        assert_ok(kd_locator_hash_all(l, 2, index, &err));
        assert_int_equal(kd_locator_by_id(l, &id), 3);
        assert_int_equal(kd_locator_by_id(l, &none), -1);
        if (round == 0)
            assert_ok(kd_locator_read(l, 3, &buf, &cap, &size, &err));
        kd_locator_destroy(l);
        /* The second round believes the index: other bytes behind an unchanged size and time aren't looked at. */
        struct stat st;
        assert_int_equal(stat(in_folder("set/sub/shard-001.TAR"), &st), 0);
        FILE *f = fopen(path, "r+b");
        fseek(f, 600, SEEK_SET);
        fputc('#', f);
        fclose(f);
        struct timespec times[2] = {st.st_atim, st.st_mtim};
        assert_int_equal(utimensat(AT_FDCWD, path, times, 0), 0);
    }
    assert_int_equal(size, 300);
    assert_memory_equal(buf, bytes, 300);
    kd_free(buf);
}

static void running_out_of_memory_leaks_nothing(void **state)
{
    (void)state;
    size_t live = kd_mem_live_bytes(), n = 0;
    kd_status status;
    char text[] = "shard-000.tar/000.jpg\nsub/shard-001.TAR\nsub/alone.jpg\n";
    write_shards();
    unit_write(in_folder("set/list.txt"), text, sizeof text - 1);
    in_folder("set/list.txt");
    do {
        kd_dataset d;
        kd_mem_fail_after(++n);
        status = kd_dataset_open(&d, path, KD_LIST_LINES, &err);
        kd_mem_fail_after(0);
        if (status == KD_OK)
            kd_dataset_close(&d);
        else
            assert_contains(err.msg, "memory");
        assert_int_equal(kd_mem_live_bytes(), live);
    } while (status != KD_OK);
    assert_true(n > 10);
}

/* Bytes changed at random: the walk ends, nothing is read beyond the file, and members that are given out can be read or say why not. */
static void random_damage_never_crashes(void **state)
{
    (void)state;
    uint64_t seed = 12345;
    tar_file t = {0};
    kd_dataset d;
    uint8_t *buf = NULL;
    size_t cap = 0, size;
    add(&t, "a.jpg", 600, 'a');
    tar_pax(&t, "path", "long/name.png");
    add(&t, "b.png", 600, 'b');
    tar_long_name(&t, "gnu/name.jpg");
    add(&t, "c.jpg", 600, 'c');
    tar_end(&t);
    uint8_t *bytes = malloc(t.size);
    kd_log_set_level(KD_LOG_ERROR);
    for (int round = 0; round < 600; round++) {
        memcpy(bytes, t.bytes, t.size);
        for (int k = 0; k < 1 + round % 4; k++) {
            seed = seed * 6364136223846793005u + 1442695040888963407u;
            size_t at = (size_t)(seed >> 33) % t.size;
            bytes[at] = (uint8_t)(seed >> 20);
            if (round % 2) /* with a sum that holds, so that the change is believed */
                tar_checksum(bytes + at / 512 * 512);
        }
        unit_write(in_folder("mutant.tar"), (const char *)bytes, t.size);
        kd_status status = kd_dataset_open(&d, in_folder("mutant.tar"), KD_LIST_LINES, &err);
        if (status != KD_OK) {
            assert_int_equal(status, KD_EUSAGE);
            continue;
        }
        for (size_t i = 0; i < d.count; i++) {
            if (kd_dataset_read(&d, i, &buf, &cap, &size, &err) == KD_OK)
                assert_int_equal(size, d.file[i].size);
        }
        kd_dataset_close(&d);
    }
    kd_log_set_level(KD_LOG_INFO);
    kd_free(buf);
    free(bytes);
    tar_free(&t);
}

#define T(f) cmocka_unit_test_setup_teardown(f, start, end)

int main(void)
{
    const struct CMUnitTest tests[] = {
        T(every_kind_of_tar_is_read_in_place), T(members_without_a_picture_are_counted), T(the_last_of_several_members_of_one_name_counts), T(concatenated_tars_are_read_to_their_end),
        T(cut_off_tars_keep_what_is_whole), T(impossible_sizes_are_said), T(a_damaged_header_is_a_file_that_cannot_be_read), T(sparse_members_are_said), T(what_is_no_tar_is_said),
        T(names_beyond_the_caches_limit_are_said), T(folders_and_lists_mix_tars_and_files), T(a_tar_that_changes_is_said),
        T(members_are_located_by_path_by_id_and_from_the_index), T(running_out_of_memory_leaks_nothing), T(random_damage_never_crashes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

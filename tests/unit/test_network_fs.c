/* Network file systems are told by what statfs says of a path or of its nearest existing parent. statfs itself is this file's: no such mounts are needed. */
#include "tests/unit/unit.h"

#include <errno.h>
#include <sys/vfs.h>

#include "common/base/io.h"

int statfs(const char *path, struct statfs *fs); /* in place of the C library's */

static long type;          /* what every existing path lies on */
static const char *exists; /* the only path that exists */
static char asked[64];     /* the last path asked for */

int statfs(const char *path, struct statfs *fs)
{
    snprintf(asked, sizeof asked, "%s", path);
    if (strcmp(path, exists) != 0) {
        errno = ENOENT;
        return -1;
    }
    memset(fs, 0, sizeof *fs);
    fs->f_type = type;
    return 0;
}

static void the_usual_ones_are_named(void **state)
{
    static const struct {
        long type;
        const char *name;
    } want[] = {{0x6969, "NFS"}, {0xFF534D42, "CIFS"}, {(int)0xFE534D42, "SMB"}, {0x0BD00BD0, "Lustre"}, {0x47504653, "GPFS"}, {0x19830326, "BeeGFS"}, {0x00C36400, "Ceph"},
                {0x65735546, "FUSE"}, {0x01021997, "9p"}, {0x5346414F, "AFS"}, {0x7461636F, "OCFS2"}, {0x01161970, "GFS2"}};
    const char *name;
    (void)state;
    exists = "/mnt";
    for (size_t i = 0; i < sizeof want / sizeof *want; i++) {
        type = want[i].type;
        assert_int_equal(kd_io_network_fs("/mnt", &name), 1);
        assert_string_equal(name, want[i].name);
        assert_int_equal(kd_io_network_fs("/mnt", NULL), 1);
    }
}

static void local_ones_are_not(void **state)
{
    static const long local[] = {0xEF53 /* ext4 */, 0x58465342 /* XFS */, 0x9123683E /* btrfs */, 0x01021994 /* tmpfs */, 0x794C7630 /* overlay */, 0x2FC12FC1 /* ZFS */, 0xF2F52010 /* F2FS */};
    const char *name = "?";
    (void)state;
    exists = "/mnt";
    for (size_t i = 0; i < sizeof local / sizeof *local; i++) {
        type = local[i];
        assert_int_equal(kd_io_network_fs("/mnt", &name), 0);
        assert_null(name);
    }
}

static void the_nearest_existing_parent_decides(void **state)
{
    static const struct {
        const char *path, *exists;
    } row[] = {{"/mnt/a/b.kdc", "/mnt"}, {"/new/", "/"}, {"new", "."}, {"a/b/c", "a"}, {"a//b", "a/"}, {".", "."}, {"", "."}};
    (void)state;
    type = 0x6969;
    for (size_t i = 0; i < sizeof row / sizeof *row; i++) {
        exists = row[i].exists;
        assert_int_equal(kd_io_network_fs(row[i].path, NULL), 1);
        assert_string_equal(asked, row[i].exists);
    }
}

static void a_path_that_cannot_be_examined_is_taken_as_local(void **state)
{
    (void)state;
    exists = "elsewhere";
    assert_int_equal(kd_io_network_fs("/mnt/x", NULL), 0);
    assert_string_equal(asked, "/");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_usual_ones_are_named),
        cmocka_unit_test(local_ones_are_not),
        cmocka_unit_test(the_nearest_existing_parent_decides),
        cmocka_unit_test(a_path_that_cannot_be_examined_is_taken_as_local),
    };
    return cmocka_run_group_tests_name("network_fs", tests, NULL, NULL);
}

/* Where caches that are made from others may be written. statfs, which tells network file systems, is this file's. */
#include "tests/unit/unit.h"

#include <sys/vfs.h>

#include "cache/place.h"

int statfs(const char *path, struct statfs *fs); /* in place of the C library's */

static kd_err err;
static long type = 0xEF53; /* ext4 */

int statfs(const char *path, struct statfs *fs)
{
    (void)path;
    memset(fs, 0, sizeof *fs);
    fs->f_type = type;
    return 0;
}

static void a_network_is_refused_unless_forced(void **state)
{
    (void)state;
    type = 0x6969;
    assert_int_equal(kd_place_check("/tmp/x.kdc", 0, &err), KD_EUSAGE);
    assert_contains(err.msg, "on a network file system (NFS)");
    assert_contains(err.msg, "--force");
    assert_ok(kd_place_check("/tmp/x.kdc", 1, &err));
    type = 0xEF53;
    assert_ok(kd_place_check("/tmp/x.kdc", 0, &err));
}

static void no_place_is_a_usage_error(void **state)
{
    (void)state;
    assert_int_equal(kd_place_check("", 1, &err), KD_EUSAGE);
}

static void what_does_not_fit_is_not_started(void **state)
{
    (void)state;
    assert_ok(kd_place_check_room("/tmp/x.kdc", 1, "", &err));
    assert_int_equal(kd_place_check_room("/tmp/x.kdc", UINT64_MAX / 2, ", or give less", &err), KD_ENOSPACE);
    assert_contains(err.msg, "needs about 8.0 EiB");
    assert_contains(err.msg, "put --out on a larger disk, or give less");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_network_is_refused_unless_forced),
        cmocka_unit_test(no_place_is_a_usage_error),
        cmocka_unit_test(what_does_not_fit_is_not_started),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

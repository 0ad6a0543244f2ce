/* TensorBoard event files: checksums of the published vectors, one event byte for byte, files that go on and are cut. The golden file was written by TensorBoard itself. */
#include "tests/unit/unit.h"

#include <dirent.h>
#include <math.h>

#include "common/base/io.h"
#include "common/base/mem.h"
#include "train/events.h"

static kd_err err;

static void checksums_are_the_published_ones(void **state) {
    (void)state;
    uint8_t zeros[32] = {0}, ones[32], up[32];
    memset(ones, 0xff, sizeof ones);
    for (int i = 0; i < 32; i++)
        up[i] = (uint8_t)i;
    assert_int_equal(kd_crc32c(zeros, 32), 0x8a9136aa); /* RFC 3720, B.4 */
    assert_int_equal(kd_crc32c(ones, 32), 0x62a8ab43);
    assert_int_equal(kd_crc32c(up, 32), 0x46dd794e);
    assert_int_equal(kd_crc32c("123456789", 9), 0xe3069283);
    assert_int_equal(kd_crc32c("", 0), 0);
    static const char record[] = "\x1a\x11" "CRC test, one two"; /* tensorboard's masked_crc.rs */
    assert_int_equal(kd_crc32c_masked(record, sizeof record - 1), 0x5794d08a);
}

static void an_event_is_these_bytes(void **state) {
    (void)state;
    const kd_event_value v = {.tag = "a/b", .scalar = 0.5};
    uint8_t *record = NULL;
    size_t cap = 0, size;
    assert_ok(kd_event_record(&record, &cap, &size, 2.0, 300, &v, 1, &err));
    static const uint8_t want[] = {
        0x09, 0, 0, 0, 0, 0, 0, 0, 0x40,         /* wall_time 2.0 */
        0x10, 0xac, 0x02,                        /* step 300 */
        0x2a, 0x0c, 0x0a, 0x0a,                  /* summary of 12 bytes: a value of 10 */
        0x0a, 0x03, 'a', '/', 'b',               /* tag */
        0x15, 0, 0, 0, 0x3f,                     /* simple_value 0.5 */
    };
    assert_int_equal(size, 8 + 4 + sizeof want + 4);
    assert_int_equal(record[0], sizeof want);
    for (int i = 1; i < 8; i++)
        assert_int_equal(record[i], 0);
    assert_memory_equal(record + 12, want, sizeof want);
    uint32_t crc = kd_crc32c_masked(want, sizeof want);
    for (int i = 0; i < 4; i++)
        assert_int_equal(record[12 + sizeof want + (size_t)i], (uint8_t)(crc >> (8 * i)));
    kd_free(record);
}

static void a_file_is_byte_for_byte_what_tensorboard_writes(void **state) {
    (void)state;
    static const uint8_t png[] = {0x89, 'P', 'N', 'G', '\r', '\n', 0x1a, '\n'};
    const kd_event_value first[2] = {{.tag = "resnet18/loss", .scalar = 1.25}, {.tag = "resnet18/lr", .scalar = 1e-3}};
    const kd_event_value second[3] = {{.tag = "resnet18/val_loss", .scalar = NAN}, {.tag = "resnet18/val_r2_cls", .scalar = -0.75}, {.tag = "resnet18/maps", .png = png, .png_size = sizeof png, .width = 300, .height = 2}};
    uint8_t *record = NULL, *golden = NULL;
    size_t cap = 0, size, at = 0, total;
    assert_ok(kd_io_read_all("tests/golden/events/events.golden", 1 << 20, &golden, &total, &err));
    for (int i = 0; i < 3; i++) {
        const kd_event_value *values[3] = {NULL, first, second};
        assert_ok(kd_event_record(&record, &cap, &size, 1700000000.5 + i, i * 1000, values[i], (size_t)i + (i > 0), &err));
        assert_true(at + size <= total);
        assert_memory_equal(golden + at, record, size);
        at += size;
    }
    assert_int_equal(at, total);
    kd_free(record);
    kd_free(golden);
}

/* The one event file of the folder. */
static char *event_file(const char *folder) {
    static char path[8192];
    int n = 0;
    DIR *d = opendir(folder);
    assert_non_null(d);
    for (struct dirent *e; (e = readdir(d)) != NULL;)
        if (strncmp(e->d_name, "events.out.tfevents.", 20) == 0) {
            snprintf(path, sizeof path, "%s/%s", folder, e->d_name);
            n++;
        }
    closedir(d);
    assert_int_equal(n, 1);
    return path;
}

static void a_file_goes_on_where_the_checkpoint_was(void **state) {
    (void)state;
    char *folder = unit_folder();
    const kd_event_value v = {.tag = "a/b", .scalar = 0.5};
    kd_events *e;
    uint64_t bytes, size;
    assert_ok(kd_events_open(&e, folder, 0, &err));
    assert_ok(kd_events_write(e, 1, &v, 1, &err));
    assert_ok(kd_events_sync(e, &bytes, &err));
    assert_ok(kd_events_write(e, 2, &v, 1, &err));
    kd_events_close(e);
    assert_ok(kd_io_file_size(event_file(folder), &size, &err));
    assert_true(size > bytes && bytes > 40);
    assert_ok(kd_events_open(&e, folder, bytes, &err)); /* resumed: what came after is dropped */
    assert_ok(kd_events_sync(e, &size, &err));
    assert_int_equal(size, bytes);
    assert_ok(kd_events_write(e, 2, &v, 1, &err));
    assert_ok(kd_events_sync(e, &size, &err));
    assert_true(size > bytes);
    kd_events_close(e);
    assert_ok(kd_events_open(&e, folder, 0, &err)); /* begun anew: only the version is left */
    assert_ok(kd_events_sync(e, &size, &err));
    assert_true(size < bytes && size > 0);
    kd_events_close(e);
    event_file(folder);
    free(folder);
}

static void a_folder_that_is_not_there_is_said(void **state) {
    (void)state;
    kd_events *e;
    assert_int_equal(kd_events_open(&e, "/absent folder", 0, &err), KD_EFAIL);
    assert_null(e);
    assert_contains(err.msg, "/absent folder/events.out.tfevents.");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(checksums_are_the_published_ones),
        cmocka_unit_test(an_event_is_these_bytes),
        cmocka_unit_test(a_file_is_byte_for_byte_what_tensorboard_writes),
        cmocka_unit_test(a_file_goes_on_where_the_checkpoint_was),
        cmocka_unit_test(a_folder_that_is_not_there_is_said),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

/* kd-cache prepare: reduced as Pillow would, named stably, the same bytes with any number of threads; and the tar that it is written to. */
#include "tests/unit/unit.h"

#include "cache/commands.h"
#include "common/base/io.h"
#include "common/base/log.h"
#include "common/base/mem.h"
#include "common/image/resample.h"

static kd_err err;
static char *folder;

static int start(void **state)
{
    (void)state;
    folder = unit_folder();
    kd_log_set_level(KD_LOG_ERROR);
    return 0;
}

static int end(void **state)
{
    (void)state;
    kd_log_set_level(KD_LOG_INFO);
    free(folder);
    return 0;
}

/* Several results may be alive at once. */
static const char *in_folder(const char *name)
{
    static char path[8][4300];
    static int next;
    char *p = path[next++ % 8];
    snprintf(p, sizeof path[0], "%s/%s", folder, name);
    return p;
}

/* A smooth picture: what JPEG keeps well. */
static uint8_t *pixels(int width, int height, int key)
{
    uint8_t *rgb = malloc((size_t)width * (size_t)height * 3);
    for (int y = 0; y < height; y++)
        for (int x = 0; x < width; x++) {
            uint8_t *p = rgb + ((size_t)y * (size_t)width + (size_t)x) * 3;
            p[0] = (uint8_t)(255 * x / width);
            p[1] = (uint8_t)(255 * y / height);
            p[2] = (uint8_t)(key * 20);
        }
    return rgb;
}

static void draw(const char *name, int width, int height, int key)
{
    uint8_t *rgb = pixels(width, height, key);
    const char *path = in_folder(name);
    assert_ok(strstr(name, ".png") ? kd_png_write(path, rgb, width, height, &err) : kd_jpeg_write(path, rgb, width, height, 95, &err));
    free(rgb);
}

static kd_cache_config config(const char *images, const char *out)
{
    return (kd_cache_config){.images = in_folder(images), .out = in_folder(out), .short_side = 64, .quality = 92, .exif = "ignore", .threads = 2, .max_pixels = 89478485};
}

static kd_status prepare(const char *images, const char *out, int threads)
{
    kd_cache_config c = config(images, out);
    c.threads = threads;
    return kd_cache_prepare_run(&c, &err);
}

static void assert_member(const kd_dataset *d, const char *rel, int width, int height)
{
    uint8_t *bytes = NULL;
    size_t cap = 0, size;
    kd_image img = {0};
    for (size_t i = 0; i < d->count; i++) {
        if (strcmp(d->file[i].rel, rel) != 0)
            continue;
        assert_ok(kd_dataset_read(d, i, &bytes, &cap, &size, &err));
        assert_memory_equal(bytes, "\xFF\xD8\xFF", 3);
        assert_ok(kd_image_decode(&img, bytes, size, rel, NULL, &err));
        assert_int_equal(img.width, width);
        assert_int_equal(img.height, height);
        kd_free(bytes);
        kd_image_free(&img);
        return;
    }
    fail_msg("%s isn't in the tar", rel);
}

static void images_are_reduced_named_and_listed(void **state)
{
    (void)state;
    kd_dataset d;
    uint8_t *text;
    size_t size;
    assert_ok(kd_io_mkdirs(in_folder("photos/sub"), &err));
    draw("photos/wide.jpg", 203, 100, 1);
    draw("photos/sub/tall.JPEG", 65, 129, 2);
    draw("photos/small.jpg", 40, 200, 3);
    draw("photos/exact.png", 64, 300, 4);
    draw("photos/same.jpg", 100, 100, 5);
    draw("photos/same.png", 90, 100, 6);
    unit_write(in_folder("photos/bad.jpg"), "\xFF\xD8\xFF nonsense", 12);
    assert_int_equal(prepare("photos", "out.tar", 2), KD_ESKIPPED);
    assert_contains(err.msg, "out.tar.skipped.tsv");
    assert_ok(kd_io_read_all(in_folder("out.tar.skipped.tsv"), 10000, &text, &size, &err));
    assert_memory_equal(text, "bad.jpg\t", 8);
    kd_free(text);
    assert_ok(kd_dataset_open(&d, in_folder("out.tar"), KD_LIST_LINES, &err));
    assert_int_equal(d.count, 6);
    assert_int_equal(d.ignored, 0);
    assert_member(&d, "out.tar/wide.jpg", 129, 64); /* 203 * 64 / 100 = 129.92, cut */
    assert_member(&d, "out.tar/sub/tall.jpg", 64, 127);
    assert_member(&d, "out.tar/small.jpg", 40, 200); /* never enlarged */
    assert_member(&d, "out.tar/exact.jpg", 64, 300);
    assert_member(&d, "out.tar/same.jpg", 64, 64);
    assert_member(&d, "out.tar/same.png.jpg", 64, 71);
    kd_dataset_close(&d);
}

static void pixels_are_the_reduced_ones(void **state)
{
    (void)state;
    kd_dataset d;
    kd_image source, got = {0};
    kd_resample_scratch scratch = {0};
    static uint8_t want[64 * 129 * 3];
    uint8_t *bytes = NULL;
    size_t cap = 0, size;
    int worst = 0;
    assert_ok(kd_io_mkdirs(in_folder("p"), &err));
    draw("p/a.png", 203, 100, 1);
    assert_ok(prepare("p", "p.tar", 1));
    uint8_t *rgb = pixels(203, 100, 1);
    source = (kd_image){.rgb = rgb, .width = 203, .height = 100};
    assert_ok(kd_resample(want, 129, 64, &source, 0, 0, 203, 100, KD_FILTER_BICUBIC, &scratch, &err));
    assert_ok(kd_dataset_open(&d, in_folder("p.tar"), KD_LIST_LINES, &err));
    assert_ok(kd_dataset_read(&d, 0, &bytes, &cap, &size, &err));
    assert_ok(kd_image_decode(&got, bytes, size, "a", NULL, &err));
    for (size_t i = 0; i < sizeof want; i++)
        worst = abs(want[i] - got.rgb[i]) > worst ? abs(want[i] - got.rgb[i]) : worst;
    assert_in_range(worst, 1, 8); /* JPEG at quality 92 of a smooth picture: measured 4 */
    kd_dataset_close(&d);
    kd_free(bytes);
    kd_image_free(&got);
    kd_resample_scratch_free(&scratch);
    free(rgb);
}

static void any_number_of_threads_gives_the_same_bytes(void **state)
{
    (void)state;
    uint8_t *a, *b;
    size_t na, nb;
    assert_ok(kd_io_mkdirs(in_folder("t"), &err));
    for (int i = 0; i < 30; i++) {
        char name[40];
        snprintf(name, sizeof name, "t/%02d.jpg", i);
        draw(name, 90 + i, 70 + 3 * i, i % 12);
    }
    assert_ok(prepare("t", "one.tar", 1));
    assert_ok(prepare("t", "four.tar", 4));
    assert_ok(kd_io_read_all(in_folder("one.tar"), 1 << 24, &a, &na, &err));
    assert_ok(kd_io_read_all(in_folder("four.tar"), 1 << 24, &b, &nb, &err));
    assert_int_equal(na, nb);
    assert_memory_equal(a, b, na);
    kd_free(a);
    kd_free(b);
}

static void long_and_odd_names_survive(void **state)
{
    (void)state;
    char name[600];
    kd_dataset d;
    assert_ok(kd_io_mkdirs(in_folder("n"), &err));
    snprintf(name, sizeof name, "n/%0200d", 7);
    assert_ok(kd_io_mkdirs(in_folder(name), &err));
    strcat(name, "/new\nline\xE9.jpg");
    draw(name, 30, 30, 1);
    draw("n/x.jpg", 30, 30, 2);
    assert_ok(prepare("n", "n.tar", 2));
    assert_ok(kd_dataset_open(&d, in_folder("n.tar"), KD_LIST_LINES, &err));
    assert_int_equal(d.count, 2);
    snprintf(name, sizeof name, "n.tar/%0200d/new\nline\xE9.jpg", 7);
    assert_member(&d, name, 30, 30);
    kd_dataset_close(&d);
    /* Nothing leads out of the folder that somebody unpacks the tar into. */
    unit_write(in_folder("n/list"), "../n/x.jpg\n", 11);
    assert_ok(prepare("n/list", "up.tar", 1));
    assert_ok(kd_dataset_open(&d, in_folder("up.tar"), KD_LIST_LINES, &err));
    assert_string_equal(d.file[0].rel, "up.tar/n/x.jpg");
    kd_dataset_close(&d);
    unit_write(in_folder("n/list"), "x.jpg\n./x.jpg\n", 14);
    assert_int_equal(prepare("n/list", "up.tar", 1), KD_EUSAGE);
    assert_contains(err.msg, "would both become");
}

static void a_tar_is_prepared_from_a_tar_but_not_onto_itself(void **state)
{
    (void)state;
    kd_dataset d;
    assert_ok(kd_io_mkdirs(in_folder("s"), &err));
    draw("s/a.jpg", 100, 100, 1);
    assert_ok(prepare("s", "s/first.tar", 1));
    assert_ok(prepare("s/first.tar", "second.tar", 1));
    assert_ok(kd_dataset_open(&d, in_folder("second.tar"), KD_LIST_LINES, &err));
    assert_int_equal(d.count, 1);
    assert_member(&d, "second.tar/a.jpg", 64, 64);
    kd_dataset_close(&d);
    assert_int_equal(prepare("s", "s/first.tar", 1), KD_EUSAGE);
    assert_contains(err.msg, "one of the tars under");
    assert_int_equal(prepare("s", "s/first.zip", 1), KD_EUSAGE);
    assert_contains(err.msg, "must end in .tar");
}

static void failures_leave_the_old_file_and_leak_nothing(void **state)
{
    (void)state;
    size_t live, n = 0;
    uint8_t *bytes;
    size_t size;
    kd_status status;
    assert_ok(kd_io_mkdirs(in_folder("f"), &err));
    draw("f/a.jpg", 100, 100, 1);
    draw("f/b.jpg", 100, 120, 1);
    unit_write(in_folder("f.tar"), "old", 3);
    assert_ok(prepare("f", "warm.tar", 1));
    live = kd_mem_live_bytes();
    do {
        kd_io_fail_after(++n, 28 /* ENOSPC */);
        status = prepare("f", "f.tar", 1);
        kd_io_fail_after(0, 0);
        assert_int_equal(kd_mem_live_bytes(), live);
        if (status == KD_OK)
            break;
        assert_int_equal(status, KD_ENOSPACE);
        assert_ok(kd_io_read_all(in_folder("f.tar"), 1 << 20, &bytes, &size, &err));
        kd_free(bytes);
        live = kd_mem_live_bytes();
    } while (n < 100 && size == 3);
    assert_true(n > 5);
}

#define T(f) cmocka_unit_test_setup_teardown(f, start, end)

int main(void)
{
    const struct CMUnitTest tests[] = {
        T(images_are_reduced_named_and_listed), T(pixels_are_the_reduced_ones), T(any_number_of_threads_gives_the_same_bytes), T(long_and_odd_names_survive),
        T(a_tar_is_prepared_from_a_tar_but_not_onto_itself), T(failures_leave_the_old_file_and_leak_nothing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

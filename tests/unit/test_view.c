/* kd-cache view: where on a sheet and in a file of all views the pixels lie that the view's hash proves. */
#include "tests/unit/train_fixture.h"

#include "cache/commands.h"

enum { IMAGES = 5, VIEWS = 3, GAP = 4, SHEET_H = IMAGES * (TF_H + GAP) + GAP, SHEET_W = VIEWS * (TF_W + GAP) + GAP };

static kd_err err;
static char *folder;
static kd_cache *cache;

static char *at(const char *name) {
    static char path[8][4300];
    static int next;
    next = (next + 1) % 8;
    snprintf(path[next], sizeof path[next], "%s/%s", folder, name);
    return path[next];
}

static int fresh(void **state) {
    (void)state;
    folder = unit_folder();
    tf_pictures(at("pictures"), IMAGES);
    cache = tf_cache(at("x.kdc"), at("pictures"), IMAGES, VIEWS, 0, NULL);
    return 0;
}
static int drop(void **state) {
    (void)state;
    kd_cache_close(cache);
    free(folder);
    return 0;
}

/* Runs the command with these options; the file lies at at(out). */
static kd_status view(kd_cache_config config, const char *out) {
    static const char *file;
    file = at("x.kdc");
    config.files = (kd_strings){&file, 1};
    config.images = at("pictures");
    config.out = at(out);
    return kd_cache_view_run(&config, &err);
}

static void all_views_lie_in_the_order_of_the_list(void **state) {
    (void)state;
    uint8_t *all;
    size_t size, k = 0;
    kd_reader *reader;
    assert_ok(view((kd_cache_config){.all = 1}, "all.rgb"));
    assert_ok(kd_io_read_all(at("all.rgb"), 1 << 24, &all, &size, &err));
    assert_int_equal(size, IMAGES * VIEWS * TF_PIXELS);
    assert_ok(kd_reader_create(&reader, cache, &err));
    for (size_t i = 0; i < IMAGES; i++)
        for (uint32_t v = 0; v < VIEWS; v++, k++) {
            kd_view_entry e;
            assert_ok(kd_reader_view(reader, &kd_cache_image(cache, i)->image, v, &e, &err));
            kd_hash128 h = kd_view_hash(all + k * TF_PIXELS, TF_W, TF_H);
            assert_memory_equal(h.b, e.view_hash.b, 16);
        }
    kd_reader_destroy(reader);
    kd_free(all);
}

static void check_sheet(const kd_image *sheet, const uint8_t *all, size_t first, size_t rows, size_t columns) {
    size_t line = (size_t)sheet->width * 3, white = 0;
    assert_int_equal(sheet->height, rows * (TF_H + GAP) + GAP);
    assert_int_equal(sheet->width, columns * (TF_W + GAP) + GAP);
    for (size_t i = 0; i < rows; i++)
        for (size_t v = 0; v < columns; v++)
            for (size_t y = 0; y < TF_H; y++)
                assert_memory_equal(sheet->rgb + (GAP + i * (TF_H + GAP) + y) * line + (GAP + v * (TF_W + GAP)) * 3,
                                    all + (((first + i) * VIEWS + v) * TF_H + y) * TF_W * 3, TF_W * 3);
    for (size_t y = 0; y < (size_t)sheet->height; y++)
        for (size_t x = 0; x < (size_t)sheet->width; x++)
            if (y % (TF_H + GAP) < GAP || x % (TF_W + GAP) < GAP) {
                const uint8_t *p = sheet->rgb + y * line + x * 3;
                white += p[0] == 255 && p[1] == 255 && p[2] == 255;
            }
    assert_int_equal(white, (size_t)sheet->height * (size_t)sheet->width - rows * columns * TF_H * TF_W);
}

static void a_sheet_has_images_down_and_views_across(void **state) {
    (void)state;
    uint8_t *all, *png;
    size_t size, png_size;
    kd_image sheet = {0};
    char id[33], whole[16];
    assert_ok(view((kd_cache_config){.all = 1}, "all.rgb"));
    assert_ok(kd_io_read_all(at("all.rgb"), 1 << 24, &all, &size, &err));
    kd_hex(id, kd_cache_image(cache, 2)->image.b, 16);
    snprintf(whole, sizeof whole, "%dx%d", IMAGES, VIEWS);
    const struct { kd_cache_config config; size_t first, rows, columns; } cases[] = {
        {{.grid = whole}, 0, IMAGES, VIEWS}, {{.grid = "2x2"}, 0, 2, 2}, {{.grid = "2x3", .id = id}, 2, 2, 3}, {{.grid = "1x1", .id = id}, 2, 1, 1}};
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        assert_ok(view(cases[i].config, "sheet.png"));
        assert_ok(kd_io_read_all(at("sheet.png"), 1 << 24, &png, &png_size, &err));
        assert_ok(kd_image_decode(&sheet, png, png_size, "sheet.png", NULL, &err));
        check_sheet(&sheet, all, cases[i].first, cases[i].rows, cases[i].columns);
        kd_free(png);
    }
    assert_int_equal(view((kd_cache_config){.grid = "4x1", .id = id}, "no.png"), KD_EUSAGE);
    assert_contains(err.msg, "3 images from this id on");
    kd_image_free(&sheet);
    kd_free(all);
}

static void one_view_is_its_cell(void **state) {
    (void)state;
    uint8_t *all, *png;
    size_t size, png_size;
    kd_image img = {0};
    char id[33];
    assert_ok(view((kd_cache_config){.all = 1}, "all.rgb"));
    assert_ok(kd_io_read_all(at("all.rgb"), 1 << 24, &all, &size, &err));
    kd_hex(id, kd_cache_image(cache, 3)->image.b, 16);
    assert_ok(view((kd_cache_config){.id = id, .view = 1}, "one.png"));
    assert_ok(kd_io_read_all(at("one.png"), 1 << 24, &png, &png_size, &err));
    assert_ok(kd_image_decode(&img, png, png_size, "one.png", NULL, &err));
    assert_int_equal(img.width, TF_W);
    assert_int_equal(img.height, TF_H);
    assert_memory_equal(img.rgb, all + (3 * VIEWS + 1) * TF_PIXELS, TF_PIXELS);
    kd_image_free(&img);
    kd_free(png);
    kd_free(all);
}

/* The images of the sheet have moved: the folder is searched once, and what is written is the same. */
static void moved_images_are_found_by_content(void **state) {
    (void)state;
    uint8_t *before, *after;
    size_t size, again;
    assert_ok(view((kd_cache_config){.all = 1}, "all.rgb"));
    assert_ok(kd_io_read_all(at("all.rgb"), 1 << 24, &before, &size, &err));
    assert_ok(kd_io_mkdirs(at("pictures/deep"), &err));
    assert_int_equal(rename(at("pictures/000.jpg"), at("pictures/deep/zero.jpg")), 0);
    assert_int_equal(rename(at("pictures/001.jpg"), at("pictures/000.jpg")), 0);
    assert_ok(view((kd_cache_config){.all = 1}, "all2.rgb"));
    assert_ok(kd_io_read_all(at("all2.rgb"), 1 << 24, &after, &again, &err));
    assert_int_equal(size, again);
    assert_memory_equal(before, after, size);
    unlink(at("pictures/004.jpg"));
    assert_int_equal(view((kd_cache_config){.all = 1}, "all3.rgb"), KD_EFAIL);
    assert_contains(err.msg, "004.jpg");
    assert_false(kd_io_exists(at("all3.rgb")));
    kd_free(before);
    kd_free(after);
}

#define T(name) cmocka_unit_test_setup_teardown(name, fresh, drop)

int main(void) {
    const struct CMUnitTest tests[] = {
        T(all_views_lie_in_the_order_of_the_list),
        T(a_sheet_has_images_down_and_views_across),
        T(one_view_is_its_cell),
        T(moved_images_are_found_by_content),
    };
    return cmocka_run_group_tests_name("view", tests, NULL, NULL);
}

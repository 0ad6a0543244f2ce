/* Patch maps: foreground, colours, a network that knows the teacher and one that doesn't; and the picture that they become. */
#include "tests/unit/unit.h"

#include <math.h>

#include "common/base/io.h"
#include "common/base/mem.h"
#include "common/base/rng.h"
#include "common/image/caption.h"
#include "common/image/image.h"
#include "train/eval/patch_maps.h"
#include "train/eval/pca_grid.h"

static kd_err err;

enum { PHOTOS = 12, SIDE = 8, PLACES = SIDE * SIDE, WIDTH = 16, OWN = 4, OWN_WIDTH = 20 };

/* A figure of its own kind in the middle of each photo, on a background of another; both with some variety. */
static void draw(float *patch, uint64_t seed) {
    kd_rng r = kd_rng_make(seed, 0, 0, KD_RNG_TEST);
    for (int photo = 0; photo < PHOTOS; photo++) {
        double kind = kd_rng_normal(&r);
        for (int i = 0; i < PLACES; i++) {
            int row = i / SIDE, column = i % SIDE, figure = row >= 2 && row < 6 && column >= 2 && column < 6;
            float *p = patch + (photo * PLACES + i) * WIDTH;
            for (int c = 0; c < WIDTH; c++)
                p[c] = (float)(0.1 * kd_rng_normal(&r));
            p[0] += figure ? -3.0f : 3.0f;
            p[1] += figure ? (float)kind : 0;
            p[2] += figure ? (float)(row - 3) : 0;
        }
    }
}

static void the_figure_is_the_foreground(void **state) {
    (void)state;
    static float patch[PHOTOS * PLACES * WIDTH];
    static uint8_t rgb[PHOTOS * PLACES * 3];
    kd_patch_maps m = {.photos = PHOTOS, .width = WIDTH, .h = SIDE, .w = SIDE, .reference = patch};
    draw(patch, 1);
    assert_ok(kd_patch_maps_fit(&m, 0, &err));
    assert_int_equal(m.kept, PHOTOS * PLACES);
    kd_patch_maps_free(&m);
    m = (kd_patch_maps){.photos = PHOTOS, .width = WIDTH, .h = SIDE, .w = SIDE, .reference = patch};
    assert_ok(kd_patch_maps_fit(&m, 1, &err));
    assert_int_equal(m.kept, PHOTOS * 16);
    kd_patch_maps_colour(&m, patch, rgb);
    for (int i = 0; i < PHOTOS * PLACES; i++) {
        int row = i % PLACES / SIDE, column = i % SIDE, figure = row >= 2 && row < 6 && column >= 2 && column < 6;
        assert_int_equal(m.shown[i], figure);
        if (!figure)
            assert_true(rgb[3 * i] == 0 && rgb[3 * i + 1] == 0 && rgb[3 * i + 2] == 0);
    }
    assert_true(fabs(m.pca.axis[0]) < 0.1); /* what sets the figure apart is no component within it */
    kd_patch_maps_free(&m);
}

/* Another network: a mixture of the teacher's channels on half the grid; or noise. */
static void look(float *own, const float *patch, int knows, uint64_t seed) {
    kd_rng r = kd_rng_make(seed, 1, 0, KD_RNG_TEST), mix = kd_rng_make(77, 0, 0, KD_RNG_TEST);
    static double m[OWN_WIDTH][WIDTH];
    for (int o = 0; o < OWN_WIDTH; o++)
        for (int c = 0; c < WIDTH; c++)
            m[o][c] = kd_rng_normal(&mix);
    for (int i = 0; i < PHOTOS * OWN * OWN; i++) {
        int photo = i / (OWN * OWN), row = i % (OWN * OWN) / OWN, column = i % OWN;
        for (int o = 0; o < OWN_WIDTH; o++) {
            double sum = kd_rng_normal(&r) * (knows ? 0.05 : 1);
            for (int c = 0; c < WIDTH && knows; c++)
                for (int k = 0; k < 4; k++)
                    sum += m[o][c] / 4 * (double)patch[((photo * SIDE + 2 * row + k / 2) * SIDE + 2 * column + k % 2) * WIDTH + c];
            own[i * OWN_WIDTH + o] = (float)sum;
        }
    }
}

static double read_out(const kd_patch_maps *m, const float *fit, const float *own_fit, const float *own, double *cosine) {
    static float predicted[PHOTOS * PLACES * WIDTH];
    kd_ridge map = {0};
    double r2;
    assert_ok(kd_patch_read_fit(&map, &(kd_patch_grid){own_fit, OWN, OWN, OWN_WIDTH}, fit, m, PHOTOS, 2, &err));
    assert_ok(kd_patch_read_apply(&map, &(kd_patch_grid){own, OWN, OWN, OWN_WIDTH}, m, predicted, 2, &err));
    kd_patch_maps_compare(m, predicted, cosine, &r2);
    kd_ridge_free(&map);
    return r2;
}

static void only_who_knows_the_teacher_gets_its_picture(void **state) {
    (void)state;
    static float shown[PHOTOS * PLACES * WIDTH], fit[PHOTOS * PLACES * WIDTH], own[PHOTOS * OWN * OWN * OWN_WIDTH], own_fit[PHOTOS * OWN * OWN * OWN_WIDTH];
    double cosine[PHOTOS], r2;
    kd_patch_maps m = {.photos = PHOTOS, .width = WIDTH, .h = SIDE, .w = SIDE, .reference = shown};
    draw(shown, 1);
    draw(fit, 2);
    assert_ok(kd_patch_maps_fit(&m, 0, &err));
    look(own, shown, 1, 3);
    look(own_fit, fit, 1, 4);
    r2 = read_out(&m, fit, own_fit, own, cosine);
    assert_true(r2 > 0.7 && r2 < 1 && cosine[0] > 0.7);
    look(own, shown, 0, 5);
    look(own_fit, fit, 0, 6);
    r2 = read_out(&m, fit, own_fit, own, cosine);
    assert_true(r2 < 0.2);
    kd_patch_maps_compare(&m, shown, cosine, &r2);
    assert_true(r2 > 1 - 1e-12 && fabs(cosine[PHOTOS - 1] - 1) < 1e-9);
    kd_patch_maps_free(&m);
}

static void a_picture_has_its_tiles_in_place(void **state) {
    (void)state;
    const uint8_t left[2 * 3] = {255, 0, 0, 0, 255, 0}, right[2 * 2 * 3] = {0, 0, 255, 1, 2, 3, 4, 5, 6, 7, 8, 9};
    char below[2][KD_PCA_CAPTION] = {"a/b.jpg", "c.jpg"}, *folder = unit_folder(), path[4200];
    const kd_pca_column columns[2] = {{.title = "photo", .note = "", .below = below, .h = 1, .w = 1, .rgb = left}, {.title = "teacher", .note = "1 x 2", .h = 1, .w = 2, .rgb = right}};
    kd_image img = {0};
    uint8_t *bytes;
    size_t size;
    snprintf(path, sizeof path, "%s/x.png", folder);
    assert_ok(kd_pca_grid_write(path, &(kd_pca_grid){.photos = 2, .columns = 2, .tile_h = 40, .tile_w = 40, .column = columns}, &err));
    assert_ok(kd_io_read_all(path, 1 << 20, &bytes, &size, &err));
    assert_ok(kd_image_decode(&img, bytes, size, path, NULL, &err));
    assert_int_equal(img.width, 16 + 40 + 12 + 40 + 16);
    assert_int_equal(img.height, 16 + 44 + 2 * (40 + 24) + 8);
    const struct { int y, x; uint8_t rgb[3]; } want[] = {
        {60, 16, {255, 0, 0}}, {99, 55, {255, 0, 0}}, {124, 16, {0, 255, 0}}, {60, 68, {0, 0, 255}}, {60, 87, {0, 0, 255}}, {60, 88, {1, 2, 3}}, {163, 107, {7, 8, 9}}, {59, 16, {255, 255, 255}}, {60, 56, {255, 255, 255}},
    };
    for (size_t i = 0; i < sizeof want / sizeof want[0]; i++)
        assert_memory_equal(img.rgb + ((size_t)want[i].y * (size_t)img.width + (size_t)want[i].x) * 3, want[i].rgb, 3);
    kd_image_free(&img);
    kd_free(bytes);
    free(folder);
}

static void captions_stay_inside_the_picture(void **state) {
    (void)state;
    enum { H = 10, W = 14 };
    uint8_t rgb[(H + 2) * W * 3], black[3] = {0};
    int dark = 0;
    memset(rgb, 200, sizeof rgb);
    kd_caption_draw(rgb + W * 3, H, W, -3, -2, 1, "Hg\xc3\xa9|", black);
    kd_caption_draw(rgb + W * 3, H, W, 5, 9, 3, "W", black);
    for (int i = 0; i < W * 3; i++)
        assert_true(rgb[i] == 200 && rgb[(H + 1) * W * 3 + i] == 200);
    memset(rgb, 200, sizeof rgb);
    kd_caption_draw(rgb, H, W, 0, 0, 1, "I-", black);
    for (int i = 0; i < H * W; i++)
        dark += rgb[3 * i] == 0;
    assert_int_equal(dark, 7 + 4 + 5);                   /* a stroke, two serifs of 3 that share its ends, a dash */
    assert_int_equal(rgb[(3 * W + KD_CAPTION_ADVANCE) * 3], 0); /* the dash begins at the second character's left */
    assert_int_equal(kd_caption_length("\xc3\xa9|"), 2);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_figure_is_the_foreground),
        cmocka_unit_test(only_who_knows_the_teacher_gets_its_picture),
        cmocka_unit_test(a_picture_has_its_tiles_in_place),
        cmocka_unit_test(captions_stay_inside_the_picture),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

/* Colour operations equal Pillow's on all 2^24 colours (tests/golden/image/color.txt has the hashes of Pillow's results). */
#include "tests/unit/unit.h"

#include "common/base/hash.h"
#include "common/image/color.h"
#include "common/image/color_kernels.h"

static void gray_of(uint8_t *rgb, size_t n, float factor) {
    (void)factor;
    kd_color_grayscale(rgb, n);
}

static void solarize_of(uint8_t *rgb, size_t n, float threshold) { kd_color_solarize(rgb, n, (int)threshold); }

static void every_colour_equals_pillow(void **state) {
    (void)state;
    static const struct { const char *name; void (*op)(uint8_t *, size_t, float); } ops[] = {{"brightness", kd_color_brightness}, {"contrast", kd_color_contrast},
        {"saturation", kd_color_saturation}, {"hue", kd_color_hue}, {"grayscale", gray_of}, {"solarize", solarize_of}};
    enum { COLOURS = 1 << 24 };
    uint8_t *rgb = malloc((size_t)COLOURS * 3);
    assert_non_null(rgb);
    FILE *f = fopen("tests/golden/image/color.txt", "r");
    assert_non_null(f);
    char name[32], hex[33], got[33];
    double factor;
    int n = 0;
    while (fscanf(f, "%31s %lf %32s", name, &factor, hex) == 3) {
        for (size_t i = 0; i < COLOURS; i++) {
            rgb[3 * i] = (uint8_t)(i >> 16);
            rgb[3 * i + 1] = (uint8_t)(i >> 8);
            rgb[3 * i + 2] = (uint8_t)i;
        }
        int known = 0;
        for (size_t k = 0; k < sizeof ops / sizeof *ops; k++)
            if (strcmp(ops[k].name, name) == 0) {
                ops[k].op(rgb, COLOURS, (float)factor);
                known++;
            }
        assert_int_equal(known, 1);
        kd_hash128 h = kd_xxh128(rgb, (size_t)COLOURS * 3);
        kd_hex(got, h.b, 16);
        if (strcmp(got, hex) != 0)
            fail_msg("%s by %g differs from Pillow", name, factor);
        n++;
    }
    assert_int_equal(n, 17);
    fclose(f);
    free(rgb);
}

/* Blocks and vectors have ends: any number of pixels gives what each pixel gives alone, and the bytes behind stay. */
static void any_number_of_pixels(void **state) {
    (void)state;
    static void (*const op[])(uint8_t *, size_t, float) = {kd_color_brightness, kd_color_saturation, kd_color_hue, gray_of};
    for (size_t n = 0; n < 300; n += n < 40 ? 1 : 37)
        for (int k = 0; k < 4; k++) {
            uint8_t all[301 * 3], one[301 * 3];
            for (size_t i = 0; i < sizeof all; i++)
                all[i] = one[i] = (uint8_t)(i * i * 7 + i / 3);
            op[k](all, n, 0.3f);
            for (size_t i = 0; i < n; i++)
                op[k](one + 3 * i, 1, 0.3f);
            assert_memory_equal(all, one, sizeof all);
        }
}

/* Every version gives the bytes of the plain one, for any number of pixels, and touches none behind. The colours are a walk through all 2^24. */
static void all_versions_give_the_same_bytes(void **state) {
    (void)state;
    const kd_color_kernels *variant[3];
    size_t variants = kd_color_variants(variant);
    assert_ptr_equal(variant[variants - 1], &kd_color_plain);
    static const float factors[] = {0.0f, 0.37f, 0.999f, 1.0f, 1.4f, 3.0f};
    static uint8_t from[70000 * 3 + 64], plain[sizeof from], other[sizeof from];
    uint32_t colour = 0;
    for (int turn = 0; turn < 240; turn++) {
        size_t n = turn < 200 ? (size_t)turn : 70000;
        for (size_t i = 0; i < sizeof from / 3; i++, colour += 7177 * 3)
            memcpy(from + 3 * i, (uint8_t[3]){(uint8_t)colour, (uint8_t)(colour >> 8), (uint8_t)(colour >> 16)}, 3);
        for (size_t v = 0; v + 1 < variants; v++)
            for (int op = 0; op < 6; op++) {
                const kd_color_kernels *const both[2] = {&kd_color_plain, variant[v]};
                uint64_t sum[2];
                memcpy(plain, from, sizeof from);
                memcpy(other, from, sizeof from);
                for (int k = 0; k < 2; k++) {
                    uint8_t *rgb = k ? other : plain;
                    float factor = factors[turn % 6];
                    sum[k] = both[k]->luma_sum(from, n);
                    if (op == 0)
                        both[k]->blend(rgb, n, turn * 5 % 256, factor);
                    else if (op == 1)
                        both[k]->saturation(rgb, n, factor);
                    else if (op == 2)
                        both[k]->hue(rgb, n, turn * 37 % 256);
                    else if (op == 3)
                        both[k]->grayscale(rgb, n);
                    else
                        both[k]->mirror(rgb, n);
                }
                assert_true(sum[0] == sum[1]);
                if (memcmp(plain, other, sizeof from) != 0)
                    fail_msg("operation %d on %zu pixels: %s differs from plain", op, n, variant[v]->name);
                assert_memory_equal(other + 3 * n, from + 3 * n, sizeof from - 3 * n);
            }
    }
}

static void factors_at_the_edges(void **state) {
    (void)state;
    uint8_t rgb[] = {10, 200, 30, 255, 0, 7, 90, 90, 90}, same[9], zero[9] = {0};
    memcpy(same, rgb, 9);
    kd_color_brightness(rgb, 3, 1.0f);
    kd_color_contrast(rgb, 3, 1.0f);
    kd_color_saturation(rgb, 3, 1.0f);
    assert_memory_equal(rgb, same, 9);
    kd_color_saturation(rgb, 3, 0.0f);
    kd_color_grayscale(same, 3);
    assert_memory_equal(rgb, same, 9);
    kd_color_brightness(rgb, 3, 0.0f);
    assert_memory_equal(rgb, zero, 9);
    kd_color_contrast(rgb, 0, 0.5f); /* no pixels, no mean */
}

static void thresholds_at_the_edges(void **state) {
    (void)state;
    uint8_t rgb[257], was[257];
    for (int n = 0; n < 86; n++)
        for (int threshold = 0; threshold <= 256; threshold += threshold == 1 ? 126 : 1) {
            for (int i = 0; i < 257; i++)
                was[i] = rgb[i] = (uint8_t)i;
            kd_color_solarize(rgb, (size_t)n, threshold);
            for (int i = 0; i < 257; i++)
                assert_int_equal(rgb[i], i < 3 * n && was[i] >= threshold ? 255 - was[i] : was[i]);
        }
}

static void flips_mirror_rows(void **state) {
    (void)state;
    for (int width = 1; width < 6; width++) {
        uint8_t rgb[5 * 2 * 3 + 3], was[sizeof rgb];
        for (size_t i = 0; i < sizeof rgb; i++)
            was[i] = rgb[i] = (uint8_t)i;
        kd_color_hflip(rgb, width, 2);
        for (int y = 0; y < 2; y++)
            for (int x = 0; x < width; x++)
                assert_memory_equal(rgb + 3 * (y * width + x), was + 3 * (y * width + width - 1 - x), 3);
        assert_memory_equal(rgb + 6 * width, was + 6 * width, sizeof rgb - 6 * (size_t)width);
    }
}

static void vertical_flips_mirror_columns(void **state) {
    (void)state;
    static const int widths[] = {1, 2, 7, 256, 257, 300}; /* rows of less, as much and more than what is moved at once */
    enum { ROWS = 5, END = 9 };
    static uint8_t rgb[300 * ROWS * 3 + END], was[sizeof rgb];
    for (size_t k = 0; k < sizeof widths / sizeof *widths; k++)
        for (int height = 1; height <= ROWS; height++) {
            size_t row = 3 * (size_t)widths[k];
            for (size_t i = 0; i < sizeof rgb; i++)
                was[i] = rgb[i] = (uint8_t)(i * 31 + i / 251);
            kd_color_vflip(rgb, widths[k], height);
            for (size_t y = 0; y < (size_t)height; y++)
                assert_memory_equal(rgb + y * row, was + ((size_t)height - 1 - y) * row, row);
            assert_memory_equal(rgb + (size_t)height * row, was + (size_t)height * row, END);
        }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_colour_equals_pillow),
        cmocka_unit_test(any_number_of_pixels),
        cmocka_unit_test(all_versions_give_the_same_bytes),
        cmocka_unit_test(factors_at_the_edges),
        cmocka_unit_test(thresholds_at_the_edges),
        cmocka_unit_test(flips_mirror_rows),
        cmocka_unit_test(vertical_flips_mirror_columns),
    };
    return cmocka_run_group_tests_name("color", tests, NULL, NULL);
}

/* The blur: within one step of torchvision's (tests/golden/image/blur), exact by its own definition, and kernels that sum to one. */
#include "tests/unit/unit.h"

#include <math.h>

#include "common/base/io.h"
#include "common/base/mem.h"
#include "common/image/blur.h"
#include "common/image/image.h"

#define PICTURES "tests/golden/image/blur/"

static kd_err err;

static void read_picture(kd_image *img, const char *name) {
    char path[200];
    uint8_t *bytes;
    size_t size;
    snprintf(path, sizeof path, PICTURES "%s.png", name);
    assert_ok(kd_io_read_all(path, 1 << 20, &bytes, &size, &err));
    assert_ok(kd_image_decode(img, bytes, size, path, NULL, &err));
    kd_free(bytes);
}

static void blurs_are_those_of_torchvision(void **state) {
    (void)state;
    static const struct { const char *picture; int kernel; double sigma; } cases[] = {{"edges", 3, 0.1}, {"edges", 3, 1}, {"edges", 9, 0.1}, {"edges", 9, 0.5}, {"edges", 9, 1.3},
        {"edges", 9, 2}, {"edges", 15, 2.5}, {"edges", 23, 4}, {"edges", 23, 50}, {"tiny", 9, 0.3}, {"tiny", 9, 2}, {"tiny", 3, 0.7}};
    kd_blur_scratch scratch = {0};
    kd_image img = {0}, theirs = {0};
    size_t bytes = 0, different = 0;
    for (size_t k = 0; k < sizeof cases / sizeof *cases; k++) {
        char name[64];
        uint32_t weight[KD_BLUR_MAX_RADIUS + 1];
        read_picture(&img, cases[k].picture);
        snprintf(name, sizeof name, "%s_%d_%g", cases[k].picture, cases[k].kernel, cases[k].sigma);
        read_picture(&theirs, name);
        assert_true(img.width == theirs.width && img.height == theirs.height);
        kd_blur_weights(weight, cases[k].kernel / 2, (float)cases[k].sigma);
        assert_ok(kd_blur(img.rgb, img.width, img.height, weight, cases[k].kernel / 2, &scratch, &err));
        for (size_t i = 0; i < 3 * (size_t)img.width * (size_t)img.height; i++, bytes++) {
            int d = abs(img.rgb[i] - theirs.rgb[i]);
            if (d > 1)
                fail_msg("%s: byte %zu is %d, torchvision's %d", name, i, img.rgb[i], theirs.rgb[i]);
            different += d != 0;
        }
    }
    assert_true(bytes > 30000 && different <= 3); /* measured: 0 */
    kd_image_free(&img);
    kd_image_free(&theirs);
    kd_blur_scratch_free(&scratch);
}

static void kernels_sum_to_one(void **state) {
    (void)state;
    static const float sigmas[] = {1e-38f, 0.01f, 0.1f, 0.29f, 0.5f, 1.0f, 1.3f, 2.0f, 11.0f, 1e4f, 3e38f};
    for (int radius = 1; radius <= KD_BLUR_MAX_RADIUS; radius++)
        for (size_t k = 0; k < sizeof sigmas / sizeof *sigmas; k++) {
            uint32_t w[KD_BLUR_MAX_RADIUS + 1];
            memset(w, 0xEE, sizeof w);
            kd_blur_weights(w, radius, sigmas[k]);
            uint64_t sum = w[0];
            double total = 1;
            for (int i = 1; i <= radius; i++)
                total += 2 * exp(-0.5 * pow(i / (double)sigmas[k], 2));
            for (int i = 1; i <= KD_BLUR_MAX_RADIUS; i++) {
                double exact = i > radius ? 0 : exp(-0.5 * pow(i / (double)sigmas[k], 2)) / total * KD_BLUR_ONE;
                assert_true(fabs(w[i] - exact) <= 0.5 + 1e-6);
                assert_true(i > radius || w[i] <= w[i - 1] + 12); /* the centre has the rest of up to 22 roundings */
                sum += 2 * (uint64_t)w[i];
            }
            assert_int_equal(sum, KD_BLUR_ONE);
        }
}

/* What blur.h says, one pixel at a time and with any weights. */
static uint8_t pixel(const uint8_t *rgb, int width, int height, const uint32_t *w, int radius, int x, int y, int c) {
    uint64_t s = 0;
    for (int i = -radius; i <= radius; i++) {
        uint64_t t = 128;
        int px = abs(x + i) < width ? abs(x + i) : 2 * (width - 1) - (x + i);
        for (int j = -radius; j <= radius; j++) {
            int py = abs(y + j) < height ? abs(y + j) : 2 * (height - 1) - (y + j);
            t += (uint64_t)w[abs(j)] * rgb[3 * (py * width + px) + c];
        }
        s += (t >> 8) * w[abs(i)];
    }
    uint64_t whole = s >> 40, rest = s & ((UINT64_C(1) << 40) - 1), half = UINT64_C(1) << 39;
    return (uint8_t)(whole + (rest > half || (rest == half && whole & 1)));
}

static void every_size_and_radius_follows_the_definition(void **state) {
    (void)state;
    enum { MAX = 70, GUARD = 64 };
    static uint8_t rgb[MAX * MAX * 3 + GUARD], was[sizeof rgb];
    kd_blur_scratch scratch = {0};
    uint32_t random = 1;
    for (int radius = 1; radius <= KD_BLUR_MAX_RADIUS; radius++)
        for (int k = 0; k < 6; k++) {
            int width = k < 2 ? radius + 1 + k : 7 * (k + 4), height = k < 3 ? radius + 1 : 13 + 3 * k;
            uint32_t w[KD_BLUR_MAX_RADIUS + 1];
            size_t n = 3 * (size_t)width * (size_t)height;
            kd_blur_weights(w, radius, k == 5 ? 40.0f : 0.3f + 0.7f * (float)k);
            if (k == 3) { /* halves everywhere */
                memset(w, 0, sizeof w);
                w[radius] = KD_BLUR_ONE / 4;
                w[0] = KD_BLUR_ONE / 2;
            }
            for (size_t i = 0; i < sizeof rgb; i++) {
                random = random * 1664525 + 1013904223;
                was[i] = rgb[i] = k == 4 ? 255 : (uint8_t)(random >> 24);
            }
            assert_ok(kd_blur(rgb, width, height, w, radius, &scratch, &err));
            for (size_t i = 0; i < n; i++)
                if (rgb[i] != pixel(was, width, height, w, radius, (int)(i / 3 % (size_t)width), (int)(i / 3 / (size_t)width), (int)(i % 3)))
                    fail_msg("radius %d, %d x %d: byte %zu", radius, width, height, i);
            assert_memory_equal(rgb + n, was + n, GUARD);
        }
    kd_blur_scratch_free(&scratch);
}

static void memory_that_is_out_is_an_error_and_nothing_is_lost(void **state) {
    (void)state;
    uint8_t rgb[12 * 12 * 3] = {0};
    uint32_t w[KD_BLUR_MAX_RADIUS + 1];
    kd_blur_scratch scratch = {0};
    size_t before = kd_mem_live_bytes();
    kd_blur_weights(w, 4, 1.0f);
    kd_mem_fail_after(1);
    assert_int_equal(kd_blur(rgb, 12, 12, w, 4, &scratch, &err), KD_EFAIL);
    kd_mem_fail_after(0);
    assert_contains(err.msg, "blurring");
    assert_ok(kd_blur(rgb, 12, 12, w, 4, &scratch, &err));
    kd_mem_fail_after(1); /* a second view of the size needs no memory */
    assert_ok(kd_blur(rgb, 12, 12, w, 4, &scratch, &err));
    kd_mem_fail_after(0);
    kd_blur_scratch_free(&scratch);
    assert_int_equal(kd_mem_live_bytes(), before);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(blurs_are_those_of_torchvision),
        cmocka_unit_test(kernels_sum_to_one),
        cmocka_unit_test(every_size_and_radius_follows_the_definition),
        cmocka_unit_test(memory_that_is_out_is_an_error_and_nothing_is_lost),
    };
    return cmocka_run_group_tests_name("blur", tests, NULL, NULL);
}

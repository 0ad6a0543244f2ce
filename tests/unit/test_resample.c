/* Resampling: every version of the loops gives the bits of the plain one (which the golden views compare with Pillow), a window equals that part
 * of the whole, and nothing outside the given buffers is touched. */
#include "tests/unit/unit.h"

#include <sys/mman.h>

#include "common/base/mem.h"
#include "common/base/rng.h"
#include "common/image/resample_kernels.h"

static kd_err err;

/* A random image whose last byte is followed by a page that can't be read. */
typedef struct fenced {
    kd_image img;
    uint8_t *map;
    size_t map_size;
} fenced;

static fenced fenced_image(kd_rng *r, int width, int height) {
    size_t page = (size_t)sysconf(_SC_PAGESIZE), bytes = (size_t)width * (size_t)height * 3, pages = (bytes + page - 1) / page * page;
    fenced f = {.map_size = pages + page};
    f.map = mmap(NULL, f.map_size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    assert_true(f.map != MAP_FAILED);
    assert_int_equal(mprotect(f.map + pages, page, PROT_NONE), 0);
    f.img = (kd_image){.rgb = f.map + pages - bytes, .width = width, .height = height, .capacity = bytes};
    uint32_t x = kd_rng_u32(r);
    for (size_t i = 0; i < bytes; i++) { /* many extremes, so that sums overshoot */
        x = x * 1664525 + 1013904223;
        f.img.rgb[i] = (uint8_t)(x >> 30 ? x >> 20 : (x >> 29) * 255);
    }
    return f;
}

static int between(kd_rng *r, int lo, int hi) { return lo + (int)kd_rng_below(r, (uint32_t)(hi - lo + 1)); }

static kd_box box_in(kd_rng *r, int width, int height) {
    kd_box b = {.w = between(r, 1, width), .h = between(r, 1, height)};
    b.x = between(r, 0, width - b.w);
    b.y = between(r, 0, height - b.h);
    return b;
}

enum { GUARD = 64 };

static uint8_t *guarded(size_t bytes) {
    uint8_t *p = malloc(bytes + GUARD);
    assert_non_null(p);
    memset(p, 0xA5, bytes + GUARD);
    return p;
}

static void check_guard(const uint8_t *p, size_t bytes) {
    for (size_t i = 0; i < GUARD; i++)
        assert_int_equal(p[bytes + i], 0xA5);
}

static void all_versions_give_the_same_bits(void **state) {
    (void)state;
    const kd_resample_kernels *variant[3];
    size_t variants = kd_resample_variants(variant);
    assert_ptr_equal(variant[variants - 1], &kd_resample_plain);
    kd_rng r = kd_rng_make(1, 0, 0, KD_RNG_TEST);
    kd_resample_scratch scratch = {0};
    for (int i = 0; i < 600; i++) {
        int width = between(&r, 1, i % 3 ? 90 : 12), height = between(&r, 1, i % 3 ? 90 : 12);
        fenced f = fenced_image(&r, width, height);
        kd_box box = i % 5 ? box_in(&r, width, height) : (kd_box){0, 0, width, height};
        int out_w = i % 7 ? between(&r, 1, 120) : box.w, out_h = i % 11 ? between(&r, 1, 120) : box.h;
        kd_box all = {0, 0, out_w, out_h};
        kd_filter filter = (kd_filter)(i % 3);
        size_t bytes = (size_t)out_w * (size_t)out_h * 3;
        uint8_t *plain = guarded(bytes), *other = guarded(bytes);
        assert_ok(kd_resample_with(&kd_resample_plain, plain, all, out_w, out_h, &f.img, box, filter, &scratch, &err));
        check_guard(plain, bytes);
        for (size_t v = 0; v + 1 < variants; v++) {
            memset(other, 0xA5, bytes);
            assert_ok(kd_resample_with(variant[v], other, all, out_w, out_h, &f.img, box, filter, &scratch, &err));
            if (memcmp(other, plain, bytes) != 0)
                fail_msg("case %d: %s differs from plain", i, variant[v]->name);
            check_guard(other, bytes);
        }
        free(plain);
        free(other);
        munmap(f.map, f.map_size);
    }
    kd_resample_scratch_free(&scratch);
    if (variants < 3)
        print_message("only %zu of 3 versions run on this processor\n", variants);
}

static void a_window_is_that_part_of_the_whole(void **state) {
    (void)state;
    kd_rng r = kd_rng_make(2, 0, 0, KD_RNG_TEST);
    kd_resample_scratch scratch = {0};
    for (int i = 0; i < 200; i++) {
        fenced f = fenced_image(&r, between(&r, 1, 70), between(&r, 1, 70));
        kd_box box = box_in(&r, f.img.width, f.img.height);
        int out_w = i % 4 ? between(&r, 1, 90) : box.w, out_h = i % 5 ? between(&r, 1, 90) : box.h;
        kd_box window = box_in(&r, out_w, out_h);
        uint8_t *whole = guarded((size_t)out_w * (size_t)out_h * 3), *part = guarded((size_t)window.w * (size_t)window.h * 3);
        assert_ok(kd_resample(whole, out_w, out_h, &f.img, box.x, box.y, box.w, box.h, (kd_filter)(i % 3), &scratch, &err));
        assert_ok(kd_resample_window(part, window, out_w, out_h, &f.img, box, (kd_filter)(i % 3), &scratch, &err));
        for (int y = 0; y < window.h; y++)
            assert_memory_equal(part + 3 * (size_t)y * (size_t)window.w, whole + 3 * ((size_t)(window.y + y) * (size_t)out_w + (size_t)window.x), 3 * (size_t)window.w);
        check_guard(part, (size_t)window.w * (size_t)window.h * 3);
        free(whole);
        free(part);
        munmap(f.map, f.map_size);
    }
    kd_resample_scratch_free(&scratch);
}

/* Pixels around the box have no influence: torchvision crops first. */
static void only_the_box_contributes(void **state) {
    (void)state;
    kd_rng r = kd_rng_make(3, 0, 0, KD_RNG_TEST);
    kd_resample_scratch scratch = {0};
    fenced f = fenced_image(&r, 40, 30);
    uint8_t a[50 * 44 * 3], b[50 * 44 * 3];
    kd_box box = {11, 7, 20, 15};
    assert_ok(kd_resample(a, 50, 44, &f.img, box.x, box.y, box.w, box.h, KD_FILTER_BICUBIC, &scratch, &err));
    for (int y = 0; y < 30; y++)
        for (int x = 0; x < 40; x++)
            if (x < box.x || x >= box.x + box.w || y < box.y || y >= box.y + box.h)
                f.img.rgb[3 * (y * 40 + x)] ^= 0xFF;
    assert_ok(kd_resample(b, 50, 44, &f.img, box.x, box.y, box.w, box.h, KD_FILTER_BICUBIC, &scratch, &err));
    assert_memory_equal(a, b, sizeof a);
    munmap(f.map, f.map_size);
    kd_resample_scratch_free(&scratch);
}

/* "Resize the shorter side to 256, then crop" of a line of pixels would be 16 million pixels wide. */
static void extreme_shapes_cost_only_their_window(void **state) {
    (void)state;
    kd_image img = {0};
    assert_ok(kd_image_resize_buffer(&img, 65500, 1, &err));
    memset(img.rgb, 77, 65500 * 3);
    uint8_t *out = malloc(224 * 224 * 3);
    assert_non_null(out);
    kd_resample_scratch scratch = {0};
    size_t before = kd_mem_live_bytes();
    kd_box window = {8383888, 16, 224, 224}, box = {0, 0, 65500, 1};
    assert_ok(kd_resample_window(out, window, 65500 * 256, 256, &img, box, KD_FILTER_BICUBIC, &scratch, &err));
    assert_true(kd_mem_live_bytes() - before < 1 << 20);
    for (size_t i = 0; i < 224 * 224 * 3; i++)
        assert_int_equal(out[i], 77);
    kd_resample_scratch_free(&scratch);
    kd_image_free(&img);
    free(out);
}

static void running_out_of_memory_is_an_error(void **state) {
    (void)state;
    kd_image img = {0};
    assert_ok(kd_image_resize_buffer(&img, 20, 20, &err));
    memset(img.rgb, 1, 1200);
    uint8_t out[30 * 30 * 3];
    for (size_t n = 1; n <= 3; n++) {
        kd_resample_scratch scratch = {0};
        kd_mem_fail_after(n);
        assert_int_equal(kd_resample(out, 30, 30, &img, 0, 0, 20, 20, KD_FILTER_BILINEAR, &scratch, &err), KD_EFAIL);
        assert_contains(err.msg, "out of memory");
        kd_mem_fail_after(0);
        assert_ok(kd_resample(out, 30, 30, &img, 0, 0, 20, 20, KD_FILTER_BILINEAR, &scratch, &err));
        kd_resample_scratch_free(&scratch);
    }
    kd_image_free(&img);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(all_versions_give_the_same_bits),
        cmocka_unit_test(a_window_is_that_part_of_the_whole),
        cmocka_unit_test(only_the_box_contributes),
        cmocka_unit_test(extreme_shapes_cost_only_their_window),
        cmocka_unit_test(running_out_of_memory_is_an_error),
    };
    return cmocka_run_group_tests_name("resample", tests, NULL, NULL);
}

/* Decoding a part of a picture gives the pixels that the whole has there, for every kind of JPEG, and accepts and refuses the same files. */
#include "tests/unit/unit.h"

#include <jpeglib.h>

#include "common/base/mem.h"
#include "common/base/rng.h"
#include "common/data/dataset.h"
#include "common/image/augment.h"
#include "common/image/codecs.h"

static kd_err err;

typedef struct kind {
    const char *name;
    int components, h, v; /* sampling factors of the first component */
    int progressive;
    int parts; /* whether a part can be decoded alone */
} kind;

static const kind kinds[] = {{"4:4:4", 3, 1, 1, 0, 1}, {"4:2:2", 3, 2, 1, 0, 1}, {"4:2:0", 3, 2, 2, 0, 1}, {"4:4:0", 3, 1, 2, 0, 1}, {"4:1:1", 3, 4, 1, 0, 1},
    {"4:1:0", 3, 4, 2, 0, 1}, {"gray", 1, 1, 1, 0, 1}, {"gray 2x2", 1, 2, 2, 0, 0}, {"progressive 4:2:0", 3, 2, 2, 1, 0}, {"progressive gray", 1, 1, 1, 1, 0}, {"CMYK", 4, 1, 1, 0, 0}};
enum { KINDS = sizeof kinds / sizeof *kinds };

typedef struct file {
    unsigned char *bytes;
    unsigned long size;
} file;

/* Waves with much noise: neighbouring blocks differ, so that a wrong neighbour shows. */
static file draw(const kind *k, int width, int height, int restart, int quality) {
    struct jpeg_compress_struct c;
    struct jpeg_error_mgr e;
    file f = {NULL, 0};
    c.err = jpeg_std_error(&e);
    jpeg_create_compress(&c);
    jpeg_mem_dest(&c, &f.bytes, &f.size);
    c.image_width = (JDIMENSION)width;
    c.image_height = (JDIMENSION)height;
    c.input_components = k->components;
    c.in_color_space = k->components == 1 ? JCS_GRAYSCALE : k->components == 3 ? JCS_RGB : JCS_CMYK;
    jpeg_set_defaults(&c);
    jpeg_set_quality(&c, quality, TRUE);
    c.comp_info[0].h_samp_factor = k->h;
    c.comp_info[0].v_samp_factor = k->v;
    c.restart_interval = (unsigned)restart;
    if (k->progressive)
        jpeg_simple_progression(&c);
    jpeg_start_compress(&c, TRUE);
    uint8_t *line = malloc((size_t)width * 4);
    assert_non_null(line);
    uint32_t x = (uint32_t)(width * 977 + height);
    while (c.next_scanline < c.image_height) {
        for (int i = 0; i < width * k->components; i++) {
            x = x * 1664525 + 1013904223;
            line[i] = (uint8_t)((i * 3 + (int)c.next_scanline * 5) / 4 + (int)(x >> 24) / 2);
        }
        JSAMPROW row = line;
        jpeg_write_scanlines(&c, &row, 1);
    }
    free(line);
    jpeg_finish_compress(&c);
    jpeg_destroy_compress(&c);
    return f;
}

static kd_box box_answer(void *ctx, int width, int height) {
    kd_box *b = ctx;
    /* A picture whose header was damaged may have another size. */
    if (b->x + b->w > width || b->y + b->h > height)
        *b = (kd_box){0, 0, width, height};
    return *b;
}

static int between(kd_rng *r, int lo, int hi) { return lo + (int)kd_rng_below(r, (uint32_t)(hi - lo + 1)); }

static kd_box some_box(kd_rng *r, int width, int height, int i) {
    kd_box b = {.w = between(r, 1, i % 4 ? width : 3 < width ? 3 : width), .h = between(r, 1, i % 3 ? height : 3 < height ? 3 : height)};
    b.x = i % 5 == 0 ? 0 : i % 5 == 1 ? width - b.w : between(r, 0, width - b.w);
    b.y = i % 7 == 0 ? 0 : i % 7 == 1 ? height - b.h : between(r, 0, height - b.h);
    return b;
}

static void compare(const char *what, const kd_image *part, const kd_image *whole, kd_box box) {
    assert_true(part->x <= box.x && part->y <= box.y && part->x + part->width >= box.x + box.w && part->y + part->height >= box.y + box.h);
    for (int y = 0; y < part->height; y++)
        if (memcmp(part->rgb + (size_t)y * (size_t)part->width * 3, whole->rgb + ((size_t)(part->y + y) * (size_t)whole->width + (size_t)part->x) * 3,
                   (size_t)part->width * 3) != 0)
            fail_msg("%s: box %d,%d %dx%d of %d x %d differs in row %d", what, box.x, box.y, box.w, box.h, whole->width, whole->height, y);
}

static void parts_equal_the_whole(void **state) {
    (void)state;
    static const int sizes[][2] = {{1, 1}, {7, 5}, {16, 16}, {17, 33}, {64, 48}, {97, 131}, {200, 70}, {35, 260}, {255, 257}};
    static const int restarts[] = {0, 1, 5};
    kd_rng r = kd_rng_make(11, 0, 0, KD_RNG_TEST);
    kd_image whole = {0}, part = {0};
    size_t alone = 0, all = 0;
    for (size_t k = 0; k < KINDS; k++)
        for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++)
            for (size_t m = 0; m < 3; m++) {
                int width = sizes[s][0], height = sizes[s][1];
                file f = draw(&kinds[k], width, height, restarts[m], m == 2 ? 30 : 92);
                assert_ok(kd_image_decode(&whole, f.bytes, f.size, kinds[k].name, NULL, &err));
                for (int i = 0; i < 40; i++) {
                    kd_box box = some_box(&r, width, height, i);
                    assert_ok(kd_image_decode_box(&part, f.bytes, f.size, kinds[k].name, NULL, box_answer, &box, &err));
                    compare(kinds[k].name, &part, &whole, box);
                    int is_part = part.width == box.w && part.height == box.h && (box.w < width || box.h < height);
                    assert_true(is_part || (part.width == width && part.height == height && part.x == 0 && part.y == 0));
                    if (!kinds[k].parts)
                        assert_true(!is_part);
                    else if (box.h < height / 2 && height > 64 + 32)
                        assert_true(is_part);
                    alone += (size_t)is_part;
                    all++;
                }
                free(f.bytes);
            }
    print_message("%zu boxes equal the whole, %zu of them decoded alone\n", all, alone);
    assert_true(alone > all / 4);
    kd_image_free(&whole);
    kd_image_free(&part);
}

/* The same status, and the same pixels where there are any. */
static size_t same_outcome(const kind *k, const uint8_t *bytes, size_t size, kd_box box, kd_image *whole, kd_image *part) {
    kd_status a = kd_image_decode(whole, bytes, size, k->name, NULL, &err);
    kd_status b = kd_image_decode_box(part, bytes, size, k->name, NULL, box_answer, &box, &err);
    assert_int_equal(a, b);
    if (a != KD_OK)
        return 0;
    compare(k->name, part, whole, box);
    return 1;
}

static void damaged_files_have_the_same_outcome(void **state) {
    (void)state;
    kd_rng r = kd_rng_make(12, 0, 0, KD_RNG_TEST);
    kd_image whole = {0}, part = {0};
    size_t read = 0, refused = 0;
    for (size_t k = 0; k < KINDS; k++)
        for (int i = 0; i < 150; i++) {
            int width = between(&r, 20, 150), height = between(&r, 20, 150);
            file f = draw(&kinds[k], width, height, i % 3 ? 0 : 4, 85);
            unsigned long size = f.size;
            /* Cut short, or up to three bytes changed (half of them into markers), mostly behind the header. */
            if (i % 5 == 0)
                size = (unsigned long)between(&r, 2, (int)size - 1);
            for (int n = i % 4; n > 0 && size > 700; n--)
                f.bytes[between(&r, i % 7 ? 620 : 2, (int)size - 1)] = (uint8_t)(n % 2 ? 0xFF : kd_rng_u32(&r));
            uint8_t *exact = malloc(size); /* for the address sanitizer */
            assert_non_null(exact);
            memcpy(exact, f.bytes, size);
            size_t ok = same_outcome(&kinds[k], exact, size, some_box(&r, width, height, i), &whole, &part);
            read += ok;
            refused += !ok;
            free(exact);
            free(f.bytes);
        }
    print_message("%zu damaged files read, %zu refused, whole and in part alike\n", read, refused);
    assert_true(read > 200 && refused > 100);
    kd_image_free(&whole);
    kd_image_free(&part);
}

/* The end of the file is missing, far below the box: a failure as for the whole. */
static void truncation_below_the_box_is_seen(void **state) {
    (void)state;
    kd_image img = {0};
    file f = draw(&kinds[2], 200, 400, 0, 90);
    kd_box box = {0, 0, 50, 20};
    assert_ok(kd_image_decode_box(&img, f.bytes, f.size, "whole.jpg", NULL, box_answer, &box, &err));
    assert_int_equal(img.height, 20);
    assert_int_equal(kd_image_decode_box(&img, f.bytes, f.size * 3 / 4, "cut.jpg", NULL, box_answer, &box, &err), KD_EFAIL);
    assert_contains(err.msg, "cut.jpg is truncated");
    free(f.bytes);
    kd_image_free(&img);
}

static void the_linked_library_passes_its_check(void **state) {
    (void)state;
    assert_true(kd_jpeg_parts_are_exact());
}

/* Views of one file, made from the union of their crops and from the whole picture, have the same hashes, and no buffer is allocated once they have grown. */
static void views_from_parts_have_the_same_hashes(void **state) {
    (void)state;
    enum { VIEWS = 4, SIDE = 64 };
    static const char *const presets[] = {"lightly", "crop-flip", "eval", "dino"};
    kd_image whole = {0}, part = {0};
    kd_view_scratch scratch = {0};
    static uint8_t out[SIDE * SIDE * 3];
    size_t smaller = 0;
    for (int turn = 0; turn < 160; turn++) {
        int i = turn % 80; /* everything twice: the second time all buffers are large enough */
        kd_policy policy;
        assert_ok(kd_policy_load(&policy, presets[i % 4], SIDE, SIDE, &err));
        int width = 150 + i % 90, height = 140 + i % 70;
        file f = draw(&kinds[i % 7], width, height, 0, 90);
        kd_hash128 id = kd_image_id(f.bytes, f.size);
        kd_plan plan[VIEWS];
        for (uint32_t v = 0; v < VIEWS; v++)
            plan[v] = kd_plan_draw(&policy, 5, &id, v, width, height);
        kd_plans plans = {plan, 1 + (size_t)i % VIEWS};
        assert_ok(kd_image_decode(&whole, f.bytes, f.size, "picture", NULL, &err));
        kd_mem_fail_after(turn < 80 ? 0 : 1);
        assert_ok(kd_image_decode_box(&part, f.bytes, f.size, "picture", NULL, kd_plans_box, &plans, &err));
        smaller += part.width < width && part.height < height;
        for (size_t v = 0; v < plans.count; v++) {
            assert_ok(kd_plan_apply(&plan[v], &part, out, &scratch, &err));
            kd_hash128 a = kd_view_hash(out, SIDE, SIDE);
            assert_ok(kd_plan_apply(&plan[v], &whole, out, &scratch, &err));
            kd_hash128 b = kd_view_hash(out, SIDE, SIDE);
            assert_memory_equal(&a, &b, sizeof a);
        }
        kd_mem_fail_after(0);
        free(f.bytes);
    }
    assert_true(smaller > 40);
    kd_image_free(&whole);
    kd_image_free(&part);
    kd_view_scratch_free(&scratch);
}

static void plans_outside_ask_for_the_whole(void **state) {
    (void)state;
    kd_plan plan[2] = {{.crop_x = 10, .crop_y = 20, .crop_w = 30, .crop_h = 5}, {.crop_x = 2, .crop_y = 22, .crop_w = 9, .crop_h = 40}};
    kd_box b = kd_plans_box(&(kd_plans){plan, 2}, 100, 80);
    assert_true(b.x == 2 && b.y == 20 && b.w == 38 && b.h == 42);
    b = kd_plans_box(&(kd_plans){plan, 2}, 100, 60); /* the second doesn't lie inside */
    assert_true(b.x == 0 && b.y == 0 && b.w == 100 && b.h == 60);
    b = kd_plans_box(&(kd_plans){plan, 0}, 100, 60);
    assert_true(b.x == 0 && b.y == 0 && b.w == 100 && b.h == 60);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(parts_equal_the_whole),
        cmocka_unit_test(damaged_files_have_the_same_outcome),
        cmocka_unit_test(truncation_below_the_box_is_seen),
        cmocka_unit_test(the_linked_library_passes_its_check),
        cmocka_unit_test(views_from_parts_have_the_same_hashes),
        cmocka_unit_test(plans_outside_ask_for_the_whole),
    };
    return cmocka_run_group_tests_name("decode_box", tests, NULL, NULL);
}

/* EXIF orientation: found where Pillow finds it, in whole and in damaged blocks, and applied as Pillow's ImageOps.exif_transpose does. */
#include "tests/unit/unit.h"

#include "common/base/io.h"
#include "common/base/mem.h"
#include "common/image/codecs.h"

#define GOLDEN "tests/golden/image/"

enum { BLOCK = 400, FILE_BYTES = 8192, LONGEST_LINE = 1200 };

static kd_err err;
static const kd_decode_options apply = {.exif_apply = 1};

static size_t from_hex(uint8_t *out, const char *hex) {
    size_t n = 0;
    unsigned byte;
    for (; sscanf(hex + 2 * n, "%2x", &byte) == 1; n++)
        out[n] = (uint8_t)byte;
    return n;
}

/* ---- files around a block ---- */

typedef struct file {
    uint8_t bytes[FILE_BYTES];
    size_t size;
} file;

static void put(file *f, const void *bytes, size_t n) {
    assert_true(n <= sizeof f->bytes - f->size);
    memcpy(f->bytes + f->size, bytes, n);
    f->size += n;
}

static void put_number(file *f, uint32_t v, int bytes, int big) {
    for (int i = 0; i < bytes; i++) {
        uint8_t b = (uint8_t)(v >> 8 * (big ? bytes - 1 - i : i));
        put(f, &b, 1);
    }
}

/* A picture of the golden set with the block put into it. Orientation is found without the picture's own decoder, so checksums don't matter here. */
static void read_picture(file *f, const char *name) {
    char path[256];
    uint8_t *bytes;
    size_t size;
    snprintf(path, sizeof path, GOLDEN "pictures/%s", name);
    assert_ok(kd_io_read_all(path, FILE_BYTES, &bytes, &size, &err));
    f->size = 0;
    put(f, bytes, size);
    kd_free(bytes);
}

static void splice(file *out, const file *in, size_t at, const file *piece) {
    out->size = 0;
    put(out, in->bytes, at);
    put(out, piece->bytes, piece->size);
    put(out, in->bytes + at, in->size - at);
}

static void as_jpeg(file *out, const uint8_t *block, size_t n) {
    static file in, piece;
    read_picture(&in, "rgb.jpg");
    piece.size = 0;
    put(&piece, "\xFF\xE1", 2);
    put_number(&piece, (uint32_t)n + 8, 2, 1);
    put(&piece, "Exif\0\0", 6);
    put(&piece, block, n);
    splice(out, &in, 2, &piece);
}

static uint32_t crc(const uint8_t *p, size_t n) {
    uint32_t c = 0xFFFFFFFF;
    for (size_t i = 0; i < n; i++) {
        c ^= p[i];
        for (int k = 0; k < 8; k++)
            c = c >> 1 ^ (c & 1 ? 0xEDB88320 : 0);
    }
    return ~c;
}

/* after_pixels: before IEND, where some programs write it; else before the pixels. */
static void as_png(file *out, const uint8_t *block, size_t n, int after_pixels) {
    static file in, piece;
    read_picture(&in, "rgb.png");
    piece.size = 0;
    put_number(&piece, (uint32_t)n, 4, 1);
    put(&piece, "eXIf", 4);
    put(&piece, block, n);
    put_number(&piece, crc(piece.bytes + 4, n + 4), 4, 1);
    splice(out, &in, after_pixels ? in.size - 12 : 33, &piece);
}

/* The simple file's one chunk in an extended file. */
static void as_webp(file *out, const uint8_t *block, size_t n, unsigned flags) {
    static file in;
    read_picture(&in, "lossless.webp");
    out->size = 0;
    put(out, "RIFF", 4);
    put_number(out, 0, 4, 0);
    put(out, "WEBPVP8X", 8);
    put_number(out, 10, 4, 0);
    put_number(out, flags, 4, 0);
    put_number(out, 47 - 1, 3, 0);
    put_number(out, 31 - 1, 3, 0);
    put(out, in.bytes + 12, in.size - 12);
    put(out, "EXIF", 4);
    put_number(out, (uint32_t)n, 4, 0);
    put(out, block, n);
    if (n & 1)
        put(out, "", 1);
    uint32_t size = (uint32_t)out->size - 8;
    for (int i = 0; i < 4; i++)
        out->bytes[4 + i] = (uint8_t)(size >> 8 * i);
}

static size_t simple_block(uint8_t *block, int orientation) {
    uint8_t entry[] = {'I', 'I', '*', 0, 8, 0, 0, 0, 1, 0, 0x12, 1, 3, 0, 1, 0, 0, 0, (uint8_t)orientation, 0, 0, 0, 0, 0, 0, 0};
    memcpy(block, entry, sizeof entry);
    return sizeof entry;
}

/* ---- tests ---- */

static void blocks_mean_what_pillow_says(void **state) {
    (void)state;
    FILE *f = fopen(GOLDEN "exif.txt", "r");
    assert_non_null(f);
    static char line[LONGEST_LINE], hex[LONGEST_LINE];
    static file out;
    uint8_t block[BLOCK];
    int want, blocks = 0, turned = 0;
    while (fgets(line, sizeof line, f)) {
        if (sscanf(line, "block %d %1199s", &want, hex) != 2)
            continue;
        size_t n = from_hex(block, hex);
        for (int kind = 0; kind < 4; kind++) {
            if (kind == 0)
                as_jpeg(&out, block, n);
            else if (kind < 3)
                as_png(&out, block, n, kind == 2);
            else
                as_webp(&out, block, n, 8);
            uint8_t *exact = malloc(out.size); /* so that a sanitizer sees a read past the end */
            assert_non_null(exact);
            memcpy(exact, out.bytes, out.size);
            int got = kd_exif_orientation(exact, out.size);
            free(exact);
            if (got != want)
                fail_msg("file kind %d, block %s: orientation %d and Pillow says %d", kind, hex, got, want);
        }
        blocks++;
        turned += want > 1;
    }
    fclose(f);
    assert_int_equal(blocks, 441);
    assert_in_range(turned, 100, 300);
}

static void all_eight_turns_equal_pillow(void **state) {
    (void)state;
    FILE *f = fopen(GOLDEN "exif.txt", "r");
    assert_non_null(f);
    static char line[LONGEST_LINE], hex[LONGEST_LINE];
    uint8_t source[BLOCK], want[BLOCK];
    int orientation, width, height, w = 0, h = 0, turns = 0;
    kd_image img = {0};
    while (fgets(line, sizeof line, f)) {
        if (sscanf(line, "picture %d %d %1199s", &w, &h, hex) == 3)
            from_hex(source, hex);
        if (sscanf(line, "turned %d %d %d %1199s", &orientation, &width, &height, hex) != 4)
            continue;
        size_t n = from_hex(want, hex);
        assert_int_equal(n, 3 * width * height);
        assert_ok(kd_image_resize_buffer(&img, w, h, &err));
        memcpy(img.rgb, source, n);
        assert_ok(kd_image_turn(&img, orientation, &err));
        assert_int_equal(img.width, width);
        assert_int_equal(img.height, height);
        assert_memory_equal(img.rgb, want, n);
        turns++;
    }
    fclose(f);
    kd_image_free(&img);
    assert_int_equal(turns, 8);
}

/* Decoding with `apply` is decoding as stored, then turning; without it nothing is turned. */
static void orientation_is_applied_only_when_asked(void **state) {
    (void)state;
    static file out;
    uint8_t block[BLOCK];
    kd_image stored = {0}, turned = {0};
    for (int kind = 0; kind < 4; kind++)
        for (int orientation = 1; orientation <= 8; orientation++) {
            size_t n = simple_block(block, orientation);
            if (kind == 0)
                as_jpeg(&out, block, n);
            else if (kind < 3)
                as_png(&out, block, n, kind == 2);
            else
                as_webp(&out, block, n, 8);
            assert_ok(kd_image_decode(&stored, out.bytes, out.size, "a", NULL, &err));
            assert_ok(kd_image_decode(&turned, out.bytes, out.size, "a", &apply, &err));
            assert_int_equal(turned.width, orientation >= 5 ? stored.height : stored.width);
            if (orientation > 1)
                assert_int_not_equal(memcmp(stored.rgb, turned.rgb, (size_t)stored.width * (size_t)stored.height * 3), 0);
            assert_ok(kd_image_turn(&stored, orientation, &err));
            assert_int_equal(turned.height, stored.height);
            assert_memory_equal(stored.rgb, turned.rgb, (size_t)stored.width * (size_t)stored.height * 3);
        }
    kd_image_free(&stored);
    kd_image_free(&turned);
}

static void files_without_a_usable_block_stay_as_they_are(void **state) {
    (void)state;
    static file out, in;
    uint8_t block[BLOCK];
    size_t n = simple_block(block, 6);
    as_webp(&out, block, n, 0); /* the header doesn't announce the chunk */
    assert_int_equal(kd_exif_orientation(out.bytes, out.size), 1);
    as_webp(&out, block, n, 8);
    assert_int_equal(kd_exif_orientation(out.bytes, out.size), 6);
    as_jpeg(&out, block, n); /* a first block without orientation hides a second one */
    in = out;
    as_jpeg(&out, block, n);
    in.bytes[2 + 4 + 6 + 18] = 0;
    memmove(in.bytes + 2 + 10 + n, out.bytes + 2, out.size - 2);
    assert_int_equal(kd_exif_orientation(in.bytes, in.size + 10 + n), 1);
    for (size_t size = 0; size < 40; size++) { /* cut anywhere: no block, no read past the end */
        uint8_t *exact = malloc(size + 1);
        assert_non_null(exact);
        memcpy(exact + 1, out.bytes, size);
        int got = kd_exif_orientation(exact + 1, size);
        assert_true(got == 1 || got == 6);
        free(exact);
    }
    assert_int_equal(kd_exif_orientation((const uint8_t *)"GIF89a", 6), 1);
}

static void turning_without_memory_is_an_error(void **state) {
    (void)state;
    kd_image img = {0};
    assert_ok(kd_image_resize_buffer(&img, 40, 30, &err));
    kd_mem_fail_after(1);
    kd_status status = kd_image_turn(&img, 6, &err);
    kd_mem_fail_after(0);
    assert_int_equal(status, KD_EFAIL);
    assert_contains(err.msg, "out of memory");
    kd_image_free(&img);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(blocks_mean_what_pillow_says),
        cmocka_unit_test(all_eight_turns_equal_pillow),
        cmocka_unit_test(orientation_is_applied_only_when_asked),
        cmocka_unit_test(files_without_a_usable_block_stay_as_they_are),
        cmocka_unit_test(turning_without_memory_is_an_error),
    };
    return cmocka_run_group_tests_name("exif", tests, NULL, NULL);
}

/* Decoding foreign pictures: what Pillow reads gives Pillow's pixels, what it refuses is refused with a sentence, and hostile headers cost nothing. */
#include "tests/unit/unit.h"

#include "common/base/io.h"
#include "common/base/mem.h"
#include "common/base/progress.h"
#include "common/image/augment.h"
#include "common/image/codecs.h"

#define PICTURES "tests/golden/image/pictures/"

static kd_err err;

static const kd_golden_picture *golden(const char *part) {
    for (size_t i = 0; i < kd_golden_jpeg_count; i++)
        if (strstr(kd_golden_jpegs[i].name, part))
            return &kd_golden_jpegs[i];
    fail_msg("no built-in picture \"%s\"", part);
    return NULL;
}

static uint8_t *copy_of(const kd_golden_picture *g) {
    uint8_t *bytes = malloc(g->size);
    assert_non_null(bytes);
    memcpy(bytes, g->bytes, g->size);
    return bytes;
}

/* Offset of the frame header's marker. */
static size_t frame_header(const uint8_t *bytes) {
    size_t at = 2;
    while (bytes[at + 1] < 0xC0 || bytes[at + 1] > 0xC3)
        at += 2 + (size_t)(bytes[at + 2] << 8 | bytes[at + 3]);
    return at;
}

static void refused(const uint8_t *bytes, size_t size, const char *why) {
    kd_image img = {0};
    assert_int_equal(kd_image_decode(&img, bytes, size, "holiday.jpg", NULL, &err), KD_EFAIL);
    assert_contains(err.msg, "holiday.jpg");
    assert_contains(err.msg, why);
    kd_image_free(&img);
}

static void pictures_of_every_kind_equal_pillow(void **state) {
    (void)state;
    FILE *f = fopen(PICTURES "expected.txt", "r");
    assert_non_null(f);
    char name[64], hex[33], got[33], path[256];
    int width, height, n = 0;
    kd_image img = {0}; /* one buffer for all, as the loaders do */
    while (fscanf(f, "%63s %d %d %32s", name, &width, &height, hex) == 4) {
        uint8_t *bytes;
        size_t size;
        snprintf(path, sizeof path, PICTURES "%s", name);
        assert_ok(kd_io_read_all(path, 1 << 20, &bytes, &size, &err));
        assert_ok(kd_image_decode(&img, bytes, size, name, NULL, &err));
        assert_int_equal(img.width, width);
        assert_int_equal(img.height, height);
        kd_hash128 h = kd_view_hash(img.rgb, img.width, img.height);
        kd_hex(got, h.b, 16);
        if (strcmp(got, hex) != 0)
            fail_msg("%s decodes to other pixels than in Pillow", name);
        kd_free(bytes);
        n++;
    }
    assert_int_equal(n, 71);
    kd_image_free(&img);
    fclose(f);
}

/* The constant is made from Pillow's pixels by make_golden_pictures.py. */
static void the_decoder_is_the_one_of_the_goldens(void **state) {
    (void)state;
    kd_hash128 h, again;
    char hex[33];
    assert_ok(kd_decoder_hash(&h, &err));
    assert_ok(kd_decoder_hash(&again, &err));
    assert_memory_equal(&h, &again, sizeof h);
    kd_hex(hex, h.b, 16);
    assert_string_equal(hex, "217ed406aa2d5e2a11ca9d89fb27ba6f");
    assert_contains(kd_decoder_version(), "libjpeg-turbo ");
    assert_contains(kd_decoder_version(), ", libwebp ");
}

/* Pillow accepts "4:2:2" without its end marker (the last row is complete without it) and no other prefix: checked with Pillow 9.4. */
static void truncated_jpegs_fail_at_every_length(void **state) {
    (void)state;
    for (size_t i = 0; i < kd_golden_jpeg_count; i++) {
        const kd_golden_picture *g = &kd_golden_jpegs[i];
        size_t complete = strstr(g->name, "4:2:2") ? g->size - 2 : g->size;
        for (size_t n = 0; n <= g->size; n++) {
            uint8_t *exact = malloc(n ? n : 1); /* so that a sanitizer sees a read past the end */
            assert_non_null(exact);
            memcpy(exact, g->bytes, n);
            kd_image img = {0};
            kd_status status = kd_image_decode(&img, exact, n, g->name, NULL, &err);
            if (status != (n < complete ? KD_EFAIL : KD_OK))
                fail_msg("%s cut to %zu of %zu bytes: status %d", g->name, n, g->size, (int)status);
            if (status != KD_OK && n > 400)
                assert_contains(err.msg, "truncated");
            kd_image_free(&img);
            free(exact);
        }
    }
}

static void truncated_and_corrupt_pngs_fail(void **state) {
    (void)state;
    const char *const names[] = {"rgb.png", "interlaced.png", "alpha.png", "palette.png"};
    for (size_t k = 0; k < 4; k++) {
        uint8_t *bytes;
        size_t size;
        char path[256];
        snprintf(path, sizeof path, PICTURES "%s", names[k]);
        assert_ok(kd_io_read_all(path, 1 << 20, &bytes, &size, &err));
        kd_image img = {0};
        for (size_t n = 0; n < size; n++) {
            uint8_t *exact = malloc(n ? n : 1);
            assert_non_null(exact);
            memcpy(exact, bytes, n);
            assert_int_equal(kd_image_decode(&img, exact, n, names[k], NULL, &err), KD_EFAIL);
            free(exact);
        }
        bytes[size / 2] ^= 4; /* inside the pixels: their checksum is wrong now */
        assert_int_equal(kd_image_decode(&img, bytes, size, names[k], NULL, &err), KD_EFAIL);
        assert_contains(err.msg, "corrupt PNG");
        kd_image_free(&img);
        kd_free(bytes);
    }
}

static void truncated_and_corrupt_webps_fail(void **state) {
    (void)state;
    const char *const names[] = {"lossy.webp", "lossy-alpha.webp", "lossless.webp", "exif-rotated.webp"};
    kd_image img = {0};
    for (size_t k = 0; k < 4; k++) {
        uint8_t *bytes;
        size_t size;
        char path[256];
        snprintf(path, sizeof path, PICTURES "%s", names[k]);
        assert_ok(kd_io_read_all(path, 1 << 20, &bytes, &size, &err));
        for (size_t n = 0; n < size; n++) {
            uint8_t *exact = malloc(n ? n : 1);
            assert_non_null(exact);
            memcpy(exact, bytes, n);
            assert_int_equal(kd_image_decode(&img, exact, n, names[k], NULL, &err), KD_EFAIL);
            if (n >= 12)
                assert_contains(err.msg, "is truncated: the WebP header announces");
            free(exact);
        }
        /* A header that tells of fewer bytes than the picture needs. */
        size_t told = size / 2;
        for (int i = 0; i < 4; i++)
            bytes[4 + i] = (uint8_t)((told - 8) >> 8 * i);
        assert_int_equal(kd_image_decode(&img, bytes, size, names[k], NULL, &err), KD_EFAIL);
        kd_free(bytes);
    }
    refused((const uint8_t *)"RIFF\x18\0\0\0WEBPVP8 \x0C\0\0\0abcdefghijkl", 32, "corrupt WebP");
    kd_image_free(&img);
}

static void animations_are_refused(void **state) {
    (void)state;
    uint8_t *bytes;
    size_t size;
    int is_read;
    assert_ok(kd_io_read_all(PICTURES "animated.webp", 1 << 20, &bytes, &size, &err));
    refused(bytes, size, "animated WebP");
    assert_contains(err.msg, "webpmux -get frame 1");
    assert_string_equal(kd_image_sniff(bytes, KD_SNIFF_BYTES, &is_read), "animated WebP");
    assert_false(is_read);
    kd_free(bytes);
}

static void the_pixel_limit_is_the_callers(void **state) {
    (void)state;
    const char *const names[] = {"rgb.jpg", "rgb.png", "lossy.webp"};
    const int pixels[] = {33 * 21, 33 * 21, 47 * 31};
    kd_image img = {0};
    for (size_t k = 0; k < 3; k++) {
        uint8_t *bytes;
        size_t size;
        char path[256], limit[64];
        snprintf(path, sizeof path, PICTURES "%s", names[k]);
        assert_ok(kd_io_read_all(path, 1 << 20, &bytes, &size, &err));
        kd_decode_options o = {.max_pixels = pixels[k]};
        assert_ok(kd_image_decode(&img, bytes, size, names[k], &o, &err));
        o.max_pixels--;
        assert_int_equal(kd_image_decode(&img, bytes, size, names[k], &o, &err), KD_EFAIL);
        snprintf(limit, sizeof limit, "above the limit of %d pixels", pixels[k] - 1);
        assert_contains(err.msg, limit);
        assert_contains(err.msg, "--max-pixels");
        o.max_pixels = 0; /* the default */
        assert_ok(kd_image_decode(&img, bytes, size, names[k], &o, &err));
        kd_free(bytes);
    }
    kd_image_free(&img);
}

/* Cameras write previews, notes and depth maps of megabytes before the picture. */
static void long_application_segments_are_passed_over(void **state) {
    (void)state;
    const kd_golden_picture *g = golden("4:2:0");
    enum { SEGMENTS = 64, LENGTH = 65535 };
    size_t size = g->size + SEGMENTS * (LENGTH + 2);
    uint8_t *bytes = calloc(1, size);
    assert_non_null(bytes);
    memcpy(bytes, g->bytes, 2);
    for (size_t i = 0; i < SEGMENTS; i++)
        memcpy(bytes + 2 + i * (LENGTH + 2), (const uint8_t[]){0xFF, (uint8_t)(0xE0 + i % 16), 0xFF, 0xFF}, 4);
    memcpy(bytes + 2 + SEGMENTS * (LENGTH + 2), g->bytes + 2, g->size - 2);
    kd_image plain = {0}, padded = {0};
    assert_ok(kd_image_decode(&plain, g->bytes, g->size, g->name, NULL, &err));
    assert_ok(kd_image_decode(&padded, bytes, size, g->name, NULL, &err));
    assert_memory_equal(plain.rgb, padded.rgb, (size_t)plain.width * (size_t)plain.height * 3);
    kd_image_free(&plain);
    kd_image_free(&padded);
    free(bytes);
}

/* Whatever the bytes: a status, no crash. (Equality with Pillow on such files was checked when the decoder was written.) */
static void damaged_jpegs_never_crash(void **state) {
    (void)state;
    uint32_t random = 1;
    size_t failed = 0;
    kd_image img = {0};
    for (int i = 0; i < 3000; i++) {
        const kd_golden_picture *g = &kd_golden_jpegs[(size_t)i % kd_golden_jpeg_count];
        uint8_t *bytes = copy_of(g);
        for (int k = 0; k < 3; k++) {
            random = random * 1664525 + 1013904223;
            bytes[3 + (random >> 8) % (g->size - 3)] = (uint8_t)(random >> 3);
        }
        failed += kd_image_decode(&img, bytes, g->size, g->name, NULL, &err) != KD_OK;
        free(bytes);
    }
    assert_in_range(failed, 300, 2000);
    kd_image_free(&img);
}

static void sizes_are_limited_before_anything_is_allocated(void **state) {
    (void)state;
    const struct { int width, height; const char *why; } cases[] = {
        {65500, 65500, "above the limit of 89478485 pixels"}, {65500, 1367, "above the limit"}, {65535, 1, "corrupt JPEG"}, {0, 20, "JPEG"}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        uint8_t *bytes = copy_of(golden("4:4:4"));
        size_t at = frame_header(bytes) + 5, before = kd_mem_peak_bytes();
        bytes[at] = (uint8_t)(cases[i].height >> 8);
        bytes[at + 1] = (uint8_t)cases[i].height;
        bytes[at + 2] = (uint8_t)(cases[i].width >> 8);
        bytes[at + 3] = (uint8_t)cases[i].width;
        refused(bytes, golden("4:4:4")->size, cases[i].why);
        assert_int_equal(kd_mem_peak_bytes(), before);
        free(bytes);
    }
    uint8_t *bytes;
    size_t size;
    assert_ok(kd_io_read_all(PICTURES "rgb.png", 1 << 20, &bytes, &size, &err));
    bytes[16] = 0x7F; /* width, and the header's checksum no longer fits: either is a reason */
    refused(bytes, size, "holiday.jpg");
    kd_free(bytes);
}

/* The last scan again and again: cheap to make, and each costs a pass over all coefficients. */
static void scan_bombs_are_stopped(void **state) {
    (void)state;
    const kd_golden_picture *g = golden("progressive 4:4:4");
    size_t scan = g->size - 2;
    while (g->bytes[scan] != 0xFF || g->bytes[scan + 1] != 0xDA)
        scan--;
    size_t length = g->size - 2 - scan;
    for (size_t copies = 50; copies <= 5000; copies *= 100) {
        size_t size = scan + copies * length + 2;
        uint8_t *bytes = malloc(size);
        assert_non_null(bytes);
        memcpy(bytes, g->bytes, scan);
        for (size_t i = 0; i < copies; i++)
            memcpy(bytes + scan + i * length, g->bytes + scan, length);
        memcpy(bytes + size - 2, "\xFF\xD9", 2);
        double start = kd_now();
        if (copies == 50) {
            kd_image img = {0};
            assert_ok(kd_image_decode(&img, bytes, size, "holiday.jpg", NULL, &err));
            kd_image_free(&img);
        } else {
            refused(bytes, size, "more than 100 scans");
            assert_true(kd_now() - start < 2.0);
        }
        free(bytes);
    }
}

static void unsupported_jpegs_are_told_from_corrupt_ones(void **state) {
    (void)state;
    const kd_golden_picture *g = golden("4:4:4");
    uint8_t *bytes = copy_of(g);
    size_t at = frame_header(bytes);
    bytes[at + 4] = 12; /* bits per sample */
    refused(bytes, g->size, "isn't supported");
    bytes[at + 4] = 8;
    bytes[at + 1] = 0xC3;
    refused(bytes, g->size, "lossless JPEG isn't supported");
    bytes[at + 1] = 0xC5; /* hierarchical */
    refused(bytes, g->size, "isn't supported");
    free(bytes);
    for (int components = 2; components <= 16; components += 14) {
        uint8_t header[128] = {0xFF, 0xD8, 0xFF, 0xC0, 0, (uint8_t)(8 + 3 * components), 8, 0, 8, 0, 8, (uint8_t)components};
        size_t n = 12;
        for (int c = 0; c < components; c++) {
            header[n++] = (uint8_t)c;
            header[n++] = 0x11;
            header[n++] = 0;
        }
        memcpy(header + n, "\xFF\xDA\0\x0A\2\0\0\1\0\0\x3F\0", 12);
        refused(header, n + 12, components == 2 ? "2 components isn't supported" : "corrupt JPEG: Too many color components: 16");
    }
    refused((const uint8_t *)"\xFF\xD8\xFF\xD9", 4, "corrupt JPEG");
}

static void other_formats_are_named_with_a_converter(void **state) {
    (void)state;
    const struct { const char *bytes; size_t size; const char *kind, *tool; } cases[] = {
        {"GIF89a\1\0\1\0", 10, "GIF", "magick"},
        {"\xFF\xD8\xFF\xF7\0\x0B", 6, "JPEG-LS", "magick"},
        {"\0\0\0\x0CjP  \r\n\x87\n", 12, "JPEG 2000", "opj_decompress"},
        {"\xFF\x0A\0\0", 4, "JPEG XL", "djxl"},
        {"II*\0\x10\0\0\0CR\2\0", 12, "raw photo (CR2)", "darktable-cli"},
        {"\0\0\0\x18" "ftypcrx \0\0\0\0", 16, "raw photo (CR3)", "darktable-cli"},
        {"%PDF-1.7\n", 9, "PDF", "pdftoppm"},
        {"PK\3\4\x14\0", 6, "ZIP archive", "unpack"},
        {"II*\0\x08\0\0\0", 8, "TIFF", "magick"},
        {"MM\0*\0\0\0\x08", 8, "TIFF", "magick"},
        {"BM\x46\0\0\0", 6, "BMP", "magick"},
        {"\0\0\0\x18" "ftypheic\0\0\0\0", 16, "HEIC", "heif-convert"},
        {"\0\0\0\x18" "ftypavif\0\0\0\0", 16, "AVIF", "avifdec"},
        {"\0\0\0\x18" "ftypisom\0\0\0\0", 16, "video", "ffmpeg"},
        {"\x1A\x45\xDF\xA3\x01\0\0\0", 8, "video", "ffmpeg"},
        {"RIFF\x10\0\0\0AVI LIST", 16, "video", "ffmpeg"},
        {"", 0, "is empty (0 bytes)", ""},
        {"<html>", 6, "is no JPEG, PNG or WebP picture", "3c 68 74 6d 6c 3e"},
        {"\xFF", 1, "is no JPEG, PNG or WebP picture", "of 1 bytes"}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        uint8_t *exact = malloc(cases[i].size ? cases[i].size : 1);
        assert_non_null(exact);
        memcpy(exact, cases[i].bytes, cases[i].size);
        refused(exact, cases[i].size, cases[i].kind);
        assert_contains(err.msg, cases[i].tool);
        free(exact);
    }
}

static void kinds_are_told_from_the_first_bytes(void **state) {
    (void)state;
    const struct { const char *name, *kind; int is_read; } cases[] = {
        {"rgb.jpg", "JPEG", 1}, {"rgb.png", "PNG", 1}, {"named-jpeg-is-png.jpg", "PNG", 1}, {"lossy.webp", "WebP", 1}, {"exif-rotated.webp", "WebP", 1}, {"animated.webp", "animated WebP", 0}};
    int is_read;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        uint8_t *bytes;
        size_t size;
        char path[256];
        snprintf(path, sizeof path, PICTURES "%s", cases[i].name);
        assert_ok(kd_io_read_all(path, 1 << 20, &bytes, &size, &err));
        assert_string_equal(kd_image_sniff(bytes, KD_SNIFF_BYTES, &is_read), cases[i].kind);
        assert_int_equal(is_read, cases[i].is_read);
        kd_free(bytes);
    }
    assert_string_equal(kd_image_sniff((const uint8_t *)"", 0, &is_read), "empty file");
    assert_string_equal(kd_image_sniff((const uint8_t *)"hello", 5, &is_read), "unknown kind");
    assert_false(is_read);
    assert_string_equal(kd_image_sniff((const uint8_t *)"\0\0\0\x18" "ftypheic", 12, &is_read), "HEIC picture");
    assert_false(is_read);
    /* Found by fuzzing: a JPEG with another format's name where that would stand. */
    assert_string_equal(kd_image_sniff((const uint8_t *)"\xFF\xD8\xFF\xE0\0\x10JFWEBPVP8X\0\0\0\2\2\2\2\2", 24, &is_read), "JPEG");
    assert_true(is_read);
}

static void written_pictures_read_back(void **state) {
    (void)state;
    enum { W = 37, H = 23 };
    uint8_t rgb[W * H * 3];
    for (size_t i = 0; i < sizeof rgb; i++)
        rgb[i] = (uint8_t)(128 + (i / 3 % W) * 2 + i / (3 * W));
    char *folder = unit_folder(), path[4200];
    uint8_t *bytes;
    size_t size;
    kd_image img = {0};
    snprintf(path, sizeof path, "%s/a b.png", folder);
    assert_ok(kd_png_write(path, rgb, W, H, &err));
    assert_ok(kd_io_read_all(path, 1 << 20, &bytes, &size, &err));
    assert_ok(kd_image_decode(&img, bytes, size, path, NULL, &err));
    assert_int_equal(img.width, W);
    assert_int_equal(img.height, H);
    assert_memory_equal(img.rgb, rgb, sizeof rgb);
    kd_free(bytes);
    snprintf(path, sizeof path, "%s/a.jpg", folder);
    assert_ok(kd_jpeg_write(path, rgb, W, H, 95, &err));
    assert_ok(kd_io_read_all(path, 1 << 20, &bytes, &size, &err));
    assert_int_equal(bytes[frame_header(bytes) + 11], 0x22); /* 4:2:0 */
    assert_ok(kd_image_decode(&img, bytes, size, path, NULL, &err));
    for (size_t i = 0; i < sizeof rgb; i++)
        assert_in_range(img.rgb[i] + 12 - rgb[i], 0, 24);
    kd_free(bytes);
    kd_image_free(&img);
    snprintf(path, sizeof path, "%s/no such folder/a.png", folder);
    assert_int_equal(kd_png_write(path, rgb, W, H, &err), KD_EFAIL);
    assert_int_equal(kd_jpeg_write(path, rgb, W, H, 95, &err), KD_EFAIL);
    free(folder);
}

static void running_out_of_memory_is_an_error(void **state) {
    (void)state;
    const char *const names[] = {"alpha.png", "interlaced.png", "rgb.jpg", "lossy-alpha.webp"};
    for (size_t k = 0; k < 4; k++) {
        uint8_t *bytes;
        size_t size, n = 0, live;
        char path[256];
        snprintf(path, sizeof path, PICTURES "%s", names[k]);
        assert_ok(kd_io_read_all(path, 1 << 20, &bytes, &size, &err));
        live = kd_mem_live_bytes();
        kd_status status;
        do {
            kd_image img = {0};
            kd_mem_fail_after(++n);
            status = kd_image_decode(&img, bytes, size, names[k], NULL, &err);
            kd_mem_fail_after(0);
            kd_image_free(&img);
            assert_int_equal(kd_mem_live_bytes(), live);
            assert_true(status == KD_OK || status == KD_EFAIL);
        } while (status != KD_OK);
        assert_true(n > 1);
        kd_free(bytes);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(pictures_of_every_kind_equal_pillow),
        cmocka_unit_test(the_decoder_is_the_one_of_the_goldens),
        cmocka_unit_test(truncated_jpegs_fail_at_every_length),
        cmocka_unit_test(truncated_and_corrupt_pngs_fail),
        cmocka_unit_test(truncated_and_corrupt_webps_fail),
        cmocka_unit_test(animations_are_refused),
        cmocka_unit_test(the_pixel_limit_is_the_callers),
        cmocka_unit_test(long_application_segments_are_passed_over),
        cmocka_unit_test(damaged_jpegs_never_crash),
        cmocka_unit_test(sizes_are_limited_before_anything_is_allocated),
        cmocka_unit_test(scan_bombs_are_stopped),
        cmocka_unit_test(unsupported_jpegs_are_told_from_corrupt_ones),
        cmocka_unit_test(other_formats_are_named_with_a_converter),
        cmocka_unit_test(kinds_are_told_from_the_first_bytes),
        cmocka_unit_test(written_pictures_read_back),
        cmocka_unit_test(running_out_of_memory_is_an_error),
    };
    return cmocka_run_group_tests_name("image", tests, NULL, NULL);
}

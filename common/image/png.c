/* PNG through libpng: the only file that includes png.h.
 *
 * Decodes to what Pillow's convert("RGB") gives for 8-bit gray, RGB and palette pictures. Transparent pictures are laid over white,
 * as Image.new("RGB", size, "white").paste(im, mask=alpha) does; of 16-bit samples the high byte is taken. Stricter than Pillow in
 * one thing: every checksum must be right and the end chunk must be there. */
#include <setjmp.h>
#include <string.h>

#include <png.h>

#include "common/base/io.h"
#include "common/base/mem.h"
#include "common/image/codecs.h"

/* Ancillary chunks beyond this (text, profiles) are refused by libpng: none is used here. */
enum { MAX_CHUNK_BYTES = 32 << 20 };

typedef struct png_job {
    png_structp png;
    png_infop info;
    char text[256];      /* libpng's sentence */
    const uint8_t *bytes; /* reading: the file */
    size_t size, at;
    int hit_end;         /* reading went past the last byte */
    uint8_t *out;        /* writing: the file so far */
    size_t out_size, out_cap;
    png_bytep *rows;
    int64_t max_pixels;
    const char *name;
    kd_err *err;
} png_job;

static void on_error(png_structp png, png_const_charp text) {
    png_job *j = png_get_error_ptr(png);
    size_t n = strlen(text);
    n = n < sizeof j->text - 1 ? n : sizeof j->text - 1;
    memcpy(j->text, text, n);
    j->text[n] = '\0';
    png_longjmp(png, 1);
}

static void on_warning(png_structp png, png_const_charp text) {
    (void)png;
    (void)text;
}

static png_voidp on_malloc(png_structp png, png_alloc_size_t bytes) {
    (void)png;
    return kd_malloc(bytes);
}

static void on_free(png_structp png, png_voidp p) {
    (void)png;
    kd_free(p);
}

/* ---- decoding ---- */

static void on_read(png_structp png, png_bytep dst, size_t n) {
    png_job *j = png_get_io_ptr(png);
    if (n > j->size - j->at) {
        j->hit_end = 1;
        png_error(png, "the data ends early");
    }
    memcpy(dst, j->bytes + j->at, n);
    j->at += n;
}

/* Everything becomes 8-bit RGB or RGBA. */
static int set_transforms(png_job *j) {
    png_structp png = j->png;
    int color = png_get_color_type(png, j->info);
    int transparent = (color & PNG_COLOR_MASK_ALPHA) != 0;
    if (color == PNG_COLOR_TYPE_PALETTE)
        png_set_palette_to_rgb(png);
    if (color == PNG_COLOR_TYPE_GRAY && png_get_bit_depth(png, j->info) < 8)
        png_set_expand_gray_1_2_4_to_8(png);
    if (png_get_valid(png, j->info, PNG_INFO_tRNS)) {
        png_set_tRNS_to_alpha(png);
        transparent = 1;
    }
    if (png_get_bit_depth(png, j->info) == 16)
        png_set_strip_16(png);
    if ((color & PNG_COLOR_MASK_COLOR) == 0)
        png_set_gray_to_rgb(png);
    png_set_interlace_handling(png);
    png_read_update_info(png, j->info);
    return transparent;
}

/* Between setjmp and a longjmp only objects behind j and img change. */
static kd_status decode_guarded(png_job *j, kd_image *img) {
    if (setjmp(png_jmpbuf(j->png))) {
        if (j->hit_end)
            return kd_fail(j->err, KD_EFAIL, "%s is truncated: the PNG data ends early, after %zu bytes", j->name, j->size);
        return kd_fail(j->err, KD_EFAIL, "%s: corrupt PNG: %s", j->name, j->text);
    }
    png_set_read_fn(j->png, j, on_read);
    png_set_user_limits(j->png, 0x7fffffff, 0x7fffffff); /* kd_image_check_size says it with a better sentence */
    png_set_chunk_malloc_max(j->png, MAX_CHUNK_BYTES);
    png_read_info(j->png, j->info);
    size_t width = png_get_image_width(j->png, j->info), height = png_get_image_height(j->png, j->info);
    KD_TRY(kd_image_check_size(width, height, j->max_pixels, j->name, j->err));
    KD_TRY(kd_image_resize_buffer(img, (int)width, (int)height, j->err));

    int transparent = set_transforms(j);
    size_t channels = transparent ? 4 : 3;
    if (png_get_rowbytes(j->png, j->info) != width * channels)
        png_error(j->png, "rows have an unexpected size");
    KD_TRY(kd_alloc_array(&j->rows, height, sizeof *j->rows, j->err));
    if (transparent)
        KD_TRY(kd_image_reserve_spare(img, width * height * 4, j->err));
    for (size_t y = 0; y < height; y++)
        j->rows[y] = (transparent ? img->spare : img->rgb) + y * width * channels;
    png_read_image(j->png, j->rows);
    png_read_end(j->png, NULL);
    if (transparent)
        kd_over_white(img->rgb, img->spare, width * height);
    return KD_OK;
}

kd_status kd_png_decode(kd_image *img, const uint8_t *bytes, size_t size, const char *name, int64_t max_pixels, kd_err *err) {
    png_job j = {.bytes = bytes, .size = size, .max_pixels = max_pixels, .name = name, .err = err};
    j.png = png_create_read_struct_2(PNG_LIBPNG_VER_STRING, &j, on_error, on_warning, NULL, on_malloc, on_free);
    j.info = j.png ? png_create_info_struct(j.png) : NULL;
    kd_status status = j.info ? decode_guarded(&j, img) : kd_fail(err, KD_EFAIL, "%s: out of memory in the PNG decoder", name);
    png_destroy_read_struct(&j.png, &j.info, NULL);
    kd_free(j.rows);
    return status;
}

/* ---- encoding ---- */

static void on_write(png_structp png, png_bytep src, size_t n) {
    png_job *j = png_get_io_ptr(png);
    if (n > j->out_cap - j->out_size) {
        size_t cap = 2 * j->out_cap + n + 4096;
        uint8_t *grown = kd_realloc(j->out, cap);
        if (!grown)
            png_error(png, "out of memory");
        j->out = grown;
        j->out_cap = cap;
    }
    memcpy(j->out + j->out_size, src, n);
    j->out_size += n;
}

static void on_flush(png_structp png) { (void)png; }

static kd_status encode_guarded(png_job *j, const uint8_t *rgb, int width, int height) {
    if (setjmp(png_jmpbuf(j->png)))
        return kd_fail(j->err, KD_EFAIL, "%s: encoding the PNG failed: %s", j->name, j->text);
    png_set_write_fn(j->png, j, on_write, on_flush);
    png_set_IHDR(j->png, j->info, (png_uint_32)width, (png_uint_32)height, 8, PNG_COLOR_TYPE_RGB, PNG_INTERLACE_NONE, PNG_COMPRESSION_TYPE_DEFAULT,
                 PNG_FILTER_TYPE_DEFAULT);
    png_write_info(j->png, j->info);
    for (int y = 0; y < height; y++)
        png_write_row(j->png, rgb + (size_t)y * (size_t)width * 3);
    png_write_end(j->png, j->info);
    return KD_OK;
}

kd_status kd_png_encode(uint8_t **bytes, size_t *size, const uint8_t *rgb, int width, int height, const char *name, kd_err *err) {
    png_job j = {.name = name, .err = err};
    j.png = png_create_write_struct_2(PNG_LIBPNG_VER_STRING, &j, on_error, on_warning, NULL, on_malloc, on_free);
    j.info = j.png ? png_create_info_struct(j.png) : NULL;
    kd_status status = j.info ? encode_guarded(&j, rgb, width, height) : kd_fail(err, KD_EFAIL, "%s: out of memory in the PNG encoder", name);
    png_destroy_write_struct(&j.png, &j.info);
    if (status != KD_OK) {
        kd_free(j.out);
        j.out = NULL;
        j.out_size = 0;
    }
    *bytes = j.out;
    *size = j.out_size;
    return status;
}

kd_status kd_png_write(const char *path, const uint8_t *rgb, int width, int height, kd_err *err) {
    uint8_t *bytes;
    size_t size;
    KD_TRY(kd_png_encode(&bytes, &size, rgb, width, height, path, err));
    kd_status status = kd_io_write_atomic(path, bytes, size, err);
    kd_free(bytes);
    return status;
}

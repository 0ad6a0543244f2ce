/* Image buffers, and the choice of a decoder by content. */
#include "common/image/image.h"

#include <string.h>

#include "common/base/mem.h"
#include "common/image/codecs.h"

kd_status kd_image_check_size(uint64_t width, uint64_t height, int64_t max_pixels, const char *name, kd_err *err) {
    if (width == 0 || height == 0)
        return kd_fail(err, KD_EFAIL, "%s: the header says %llu x %llu pixels; the file is corrupt", name, (unsigned long long)width,
                       (unsigned long long)height);
    if (width > KD_IMAGE_MAX_SIDE || height > KD_IMAGE_MAX_SIDE || width * height > (uint64_t)max_pixels)
        return kd_fail(err, KD_EFAIL, "%s: %llu x %llu pixels is above the limit of %lld pixels (side at most %d); make it smaller first, or raise kd-precompute's --max-pixels",
                       name, (unsigned long long)width, (unsigned long long)height, (long long)max_pixels, KD_IMAGE_MAX_SIDE);
    return KD_OK;
}

kd_status kd_image_resize_buffer(kd_image *img, int width, int height, kd_err *err) {
    KD_ASSERT(width > 0 && height > 0);
    size_t bytes = 0;
    if (!kd_mul_size((size_t)width, (size_t)height, &bytes) || !kd_mul_size(bytes, 3, &bytes))
        return kd_fail(err, KD_EFAIL, "an image of %d x %d pixels doesn't fit into the address space", width, height);
    if (bytes > img->capacity) {
        /* The old content isn't needed, so nothing is copied. */
        kd_free(img->rgb);
        img->capacity = 0;
        img->rgb = kd_malloc(bytes);
        if (!img->rgb)
            return kd_fail(err, KD_EFAIL, "out of memory: %zu bytes for an image of %d x %d pixels", bytes, width, height);
        img->capacity = bytes;
    }
    img->width = width;
    img->height = height;
    return KD_OK;
}

void kd_image_free(kd_image *img) {
    kd_free(img->rgb);
    kd_free(img->spare);
    *img = (kd_image){0};
}

/* ---- sniffing ---- */

typedef struct signature {
    size_t offset, length;
    const char *bytes;
    const char *kind, *advice;
} signature;

/* In order: the brands of ISO base media files are listed before the general "ftyp". The advice completes the sentence "convert it to JPEG or PNG, ...". */
static const signature foreign[] = {
    {8, 4, "WEBP", "a WebP picture", "for example: dwebp IN -o OUT.png, or magick IN OUT.png"},
    {0, 4, "GIF8", "a GIF picture", "for example: magick IN[0] OUT.png"},
    {0, 4, "II*\0", "a TIFF picture", "for example: magick IN[0] OUT.png"},
    {0, 4, "MM\0*", "a TIFF picture", "for example: magick IN[0] OUT.png"},
    {4, 8, "ftypavif", "an AVIF picture", "for example: avifdec IN OUT.png"},
    {4, 8, "ftypavis", "an AVIF sequence", "for example: avifdec IN OUT.png"},
    {4, 8, "ftypheic", "a HEIC picture", "for example: heif-convert IN OUT.png"},
    {4, 8, "ftypheix", "a HEIC picture", "for example: heif-convert IN OUT.png"},
    {4, 8, "ftyphevc", "a HEIC sequence", "for example: heif-convert IN OUT.png"},
    {4, 8, "ftypmif1", "a HEIF picture", "for example: heif-convert IN OUT.png"},
    {4, 8, "ftypmsf1", "a HEIF sequence", "for example: heif-convert IN OUT.png"},
    {4, 4, "ftyp", "a video (MP4 or MOV)", "frame by frame, for example: ffmpeg -i IN OUT-%05d.png"},
    {0, 4, "\x1A\x45\xDF\xA3", "a video (Matroska or WebM)", "frame by frame, for example: ffmpeg -i IN OUT-%05d.png"},
    {8, 4, "AVI ", "a video (AVI)", "frame by frame, for example: ffmpeg -i IN OUT-%05d.png"},
    {0, 4, "\0\0\1\xBA", "a video (MPEG)", "frame by frame, for example: ffmpeg -i IN OUT-%05d.png"},
    {0, 12, "\0\0\0\x0CjP  \r\n\x87\n", "a JPEG 2000 picture", "for example: opj_decompress -i IN -o OUT.png"},
    {0, 4, "\xFF\x4F\xFF\x51", "a JPEG 2000 codestream", "for example: opj_decompress -i IN -o OUT.png"},
    {0, 12, "\0\0\0\x0CJXL \r\n\x87\n", "a JPEG XL picture", "for example: djxl IN OUT.png"},
    {0, 2, "\xFF\x0A", "a JPEG XL codestream", "for example: djxl IN OUT.png"},
    {0, 4, "8BPS", "a Photoshop picture", "for example: magick IN[0] OUT.png"},
    {0, 5, "%PDF-", "a PDF document", "for example: pdftoppm -png IN OUT"},
    {0, 2, "BM", "a BMP picture", "for example: magick IN OUT.png"},
};

static int starts(const uint8_t *bytes, size_t size, size_t offset, const char *what, size_t length) {
    return size >= offset + length && memcmp(bytes + offset, what, length) == 0;
}

static kd_status refuse(const uint8_t *bytes, size_t size, const char *name, kd_err *err) {
    for (size_t i = 0; i < sizeof foreign / sizeof *foreign; i++) {
        const signature *f = &foreign[i];
        if (starts(bytes, size, f->offset, f->bytes, f->length))
            return kd_fail(err, KD_EFAIL, "%s is %s, which isn't read; convert it to JPEG or PNG, %s", name, f->kind, f->advice);
    }
    char head[3 * 8 + 1] = "";
    for (size_t i = 0; i < size && i < 8; i++) {
        static const char digit[] = "0123456789abcdef";
        head[3 * i] = digit[bytes[i] >> 4];
        head[3 * i + 1] = digit[bytes[i] & 15];
        head[3 * i + 2] = ' ';
        head[3 * i + 3] = '\0';
    }
    return kd_fail(err, KD_EFAIL, "%s is neither a JPEG nor a PNG picture (it starts with %sof %zu bytes)", name, head, size);
}

static kd_status decode_stored(kd_image *img, const uint8_t *bytes, size_t size, const char *name, int64_t max_pixels, kd_err *err) {
    if (size == 0)
        return kd_fail(err, KD_EFAIL, "%s is empty (0 bytes)", name);
    if (starts(bytes, size, 0, "\xFF\xD8\xFF", 3))
        return kd_jpeg_decode(img, bytes, size, name, max_pixels, err);
    if (starts(bytes, size, 0, "\x89PNG\r\n\x1A\n", 8))
        return kd_png_decode(img, bytes, size, name, max_pixels, err);
    return refuse(bytes, size, name, err);
}

kd_status kd_image_decode(kd_image *img, const uint8_t *bytes, size_t size, const char *name, const kd_decode_options *options, kd_err *err) {
    int64_t max_pixels = options != NULL && options->max_pixels > 0 ? options->max_pixels : KD_IMAGE_MAX_PIXELS;
    KD_TRY(decode_stored(img, bytes, size, name, max_pixels, err));
    if (options == NULL || !options->exif_apply)
        return KD_OK;
    return kd_image_turn(img, kd_exif_orientation(bytes, size), err);
}

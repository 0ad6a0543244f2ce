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
    img->x = img->y = 0;
    return KD_OK;
}

kd_status kd_image_reserve_spare(kd_image *img, size_t bytes, kd_err *err) {
    if (bytes <= img->spare_capacity)
        return KD_OK;
    kd_free(img->spare);
    img->spare_capacity = 0;
    img->spare = kd_malloc(bytes);
    if (img->spare == NULL)
        return kd_fail(err, KD_EFAIL, "out of memory: %zu bytes beside an image of %d x %d pixels", bytes, img->width, img->height);
    img->spare_capacity = bytes;
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
    const char *article, *kind;
    const char *advice; /* completes the sentence "convert it to JPEG or PNG, ..."; NULL for the kinds that are read */
    kd_status (*decode)(kd_image *img, const uint8_t *bytes, size_t size, const char *name, int64_t max_pixels, kd_err *err);
} signature;

#define MAGICK "for example: magick IN[0] OUT.png"
#define HEIF "for example: heif-convert IN OUT.png"
#define RAW "with a raw converter, for example: darktable-cli IN OUT.jpg"
#define FRAMES "frame by frame, for example: ffmpeg -i IN OUT-%05d.png"
#define UNPACK "or unpack it first: it is an archive"

/* In order: cameras' brands of TIFF and the brands of ISO base media files are listed before the general kind. What stands at offset 8 is the kind of a RIFF file. */
static const signature known[] = {
    {0, 4, "\xFF\xD8\xFF\xF7", "a", "JPEG-LS picture", MAGICK, NULL},
    {0, 3, "\xFF\xD8\xFF", "a", "JPEG", NULL, kd_jpeg_decode},
    {0, 8, "\x89PNG\r\n\x1A\n", "a", "PNG", NULL, kd_png_decode},
    {8, 4, "WEBP", "a", "WebP", NULL, kd_webp_decode},
    {0, 4, "GIF8", "a", "GIF picture", MAGICK, NULL},
    {0, 10, "II*\0\x10\0\0\0CR", "a", "raw photo (CR2)", RAW, NULL},
    {0, 4, "II*\0", "a", "TIFF picture", MAGICK, NULL},
    {0, 4, "MM\0*", "a", "TIFF picture", MAGICK, NULL},
    {0, 4, "II+\0", "a", "BigTIFF picture", MAGICK, NULL},
    {0, 4, "MM\0+", "a", "BigTIFF picture", MAGICK, NULL},
    {0, 4, "IIRO", "a", "raw photo (ORF)", RAW, NULL},
    {0, 4, "IIU\0", "a", "raw photo (RW2)", RAW, NULL},
    {0, 8, "FUJIFILM", "a", "raw photo (RAF)", RAW, NULL},
    {4, 7, "ftypcrx", "a", "raw photo (CR3)", RAW, NULL},
    {4, 8, "ftypavif", "an", "AVIF picture", "for example: avifdec IN OUT.png", NULL},
    {4, 8, "ftypavis", "an", "AVIF sequence", "for example: avifdec IN OUT.png", NULL},
    {4, 8, "ftypheic", "a", "HEIC picture", HEIF, NULL},
    {4, 8, "ftypheix", "a", "HEIC picture", HEIF, NULL},
    {4, 8, "ftypheim", "a", "HEIC picture", HEIF, NULL},
    {4, 8, "ftypheis", "a", "HEIC picture", HEIF, NULL},
    {4, 8, "ftyphevc", "a", "HEIC sequence", HEIF, NULL},
    {4, 8, "ftyphevx", "a", "HEIC sequence", HEIF, NULL},
    {4, 8, "ftypmif1", "a", "HEIF picture", HEIF, NULL},
    {4, 8, "ftypmsf1", "a", "HEIF sequence", HEIF, NULL},
    {4, 4, "ftyp", "a", "video (MP4 or MOV)", FRAMES, NULL},
    {0, 4, "\x1A\x45\xDF\xA3", "a", "video (Matroska or WebM)", FRAMES, NULL},
    {8, 4, "AVI ", "a", "video (AVI)", FRAMES, NULL},
    {0, 4, "\0\0\1\xBA", "a", "video (MPEG)", FRAMES, NULL},
    {0, 4, "\0\0\1\xB3", "a", "video (MPEG)", FRAMES, NULL},
    {0, 4, "OggS", "a", "video (Ogg)", FRAMES, NULL},
    {0, 4, "FLV\1", "a", "video (Flash)", FRAMES, NULL},
    {0, 4, "\x30\x26\xB2\x75", "a", "video (WMV)", FRAMES, NULL},
    {0, 12, "\0\0\0\x0CjP  \r\n\x87\n", "a", "JPEG 2000 picture", "for example: opj_decompress -i IN -o OUT.png", NULL},
    {0, 4, "\xFF\x4F\xFF\x51", "a", "JPEG 2000 codestream", "for example: opj_decompress -i IN -o OUT.png", NULL},
    {0, 12, "\0\0\0\x0CJXL \r\n\x87\n", "a", "JPEG XL picture", "for example: djxl IN OUT.png", NULL},
    {0, 2, "\xFF\x0A", "a", "JPEG XL codestream", "for example: djxl IN OUT.png", NULL},
    {0, 4, "8BPS", "a", "Photoshop picture", MAGICK, NULL},
    {0, 4, "v/1\1", "an", "OpenEXR picture", MAGICK, NULL},
    {0, 4, "qoif", "a", "QOI picture", MAGICK, NULL},
    {0, 4, "\0\0\1\0", "an", "icon (ICO)", MAGICK, NULL},
    {0, 5, "%PDF-", "a", "PDF document", "for example: pdftoppm -png IN OUT", NULL},
    {0, 4, "%!PS", "a", "PostScript document", MAGICK, NULL},
    {0, 4, "<svg", "an", "SVG drawing", "for example: rsvg-convert IN -o OUT.png", NULL},
    {0, 4, "PK\3\4", "a", "ZIP archive", UNPACK, NULL},
    {0, 2, "\x1F\x8B", "a", "gzip archive", UNPACK, NULL},
    {0, 3, "P6\n", "a", "PPM picture", MAGICK, NULL},
    {0, 3, "P5\n", "a", "PGM picture", MAGICK, NULL},
    {0, 2, "BM", "a", "BMP picture", MAGICK, NULL},
};

static int starts(const uint8_t *bytes, size_t size, size_t offset, const char *what, size_t length) {
    return size >= offset + length && memcmp(bytes + offset, what, length) == 0;
}

/* NULL: none of them. */
static const signature *find_signature(const uint8_t *bytes, size_t size) {
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (starts(bytes, size, known[i].offset, known[i].bytes, known[i].length) && (known[i].offset != 8 || starts(bytes, size, 0, "RIFF", 4)))
            return &known[i];
    return NULL;
}

const char *kd_image_sniff(const uint8_t *bytes, size_t size, int *is_read) {
    const signature *s = find_signature(bytes, size);
    *is_read = s != NULL && s->decode != NULL;
    if (*is_read && s->decode == kd_webp_decode && starts(bytes, size, 12, "VP8X", 4) && size > 20 && (bytes[20] & 2) != 0) { /* the flag of animations */
        *is_read = 0;
        return "animated WebP";
    }
    return s != NULL ? s->kind : size == 0 ? "empty file" : "unknown kind";
}

static kd_status refuse(const signature *s, const uint8_t *bytes, size_t size, const char *name, kd_err *err) {
    if (s != NULL)
        return kd_fail(err, KD_EFAIL, "%s is %s %s, which isn't read; convert it to JPEG or PNG, %s", name, s->article, s->kind, s->advice);
    char head[3 * 8 + 1] = "";
    for (size_t i = 0; i < size && i < 8; i++) {
        static const char digit[] = "0123456789abcdef";
        head[3 * i] = digit[bytes[i] >> 4];
        head[3 * i + 1] = digit[bytes[i] & 15];
        head[3 * i + 2] = ' ';
        head[3 * i + 3] = '\0';
    }
    return kd_fail(err, KD_EFAIL, "%s is no JPEG, PNG or WebP picture (it starts with %sof %zu bytes)", name, head, size);
}

static kd_status decode_stored(kd_image *img, const uint8_t *bytes, size_t size, const char *name, int64_t max_pixels, kd_err *err) {
    if (size == 0)
        return kd_fail(err, KD_EFAIL, "%s is empty (0 bytes)", name);
    const signature *s = find_signature(bytes, size);
    return s != NULL && s->decode != NULL ? s->decode(img, bytes, size, name, max_pixels, err) : refuse(s, bytes, size, name, err);
}

kd_status kd_image_decode(kd_image *img, const uint8_t *bytes, size_t size, const char *name, const kd_decode_options *options, kd_err *err) {
    int64_t max_pixels = options != NULL && options->max_pixels > 0 ? options->max_pixels : KD_IMAGE_MAX_PIXELS;
    KD_TRY(decode_stored(img, bytes, size, name, max_pixels, err));
    if (options == NULL || !options->exif_apply)
        return KD_OK;
    return kd_image_turn(img, kd_exif_orientation(bytes, size), err);
}

kd_status kd_image_decode_box(kd_image *img, const uint8_t *bytes, size_t size, const char *name, const kd_decode_options *options, kd_want_box want, void *ctx, kd_err *err) {
    int64_t max_pixels = options != NULL && options->max_pixels > 0 ? options->max_pixels : KD_IMAGE_MAX_PIXELS;
    const signature *s = find_signature(bytes, size);
    /* A turned picture is turned whole. */
    int turned = options != NULL && options->exif_apply && kd_exif_orientation(bytes, size) != 1;
    if (s != NULL && s->decode == kd_jpeg_decode && !turned)
        return kd_jpeg_decode_box(img, bytes, size, name, max_pixels, want, ctx, err);
    KD_TRY(kd_image_decode(img, bytes, size, name, options, err));
    (void)want(ctx, img->width, img->height);
    return KD_OK;
}

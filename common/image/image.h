/* Images: decoding foreign bytes to 8-bit RGB exactly as Pillow's Image.open(...).convert("RGB") does, and writing PNG.
 *
 *     kd_image img = {0};
 *     KD_TRY(kd_image_decode(&img, bytes, size, name, NULL, err));    // img.rgb is grown as needed and re-used
 *     ...
 *     kd_image_free(&img);
 *
 * The decoder's settings are libjpeg's defaults (islow DCT, fancy upsampling, block smoothing), CMYK and YCCK are inverted and converted as
 * Pillow does, gray is replicated. EXIF orientation is ignored, as Pillow and torchvision's loaders do, unless the options say otherwise. Thread rule: no shared state. */
#ifndef KD_COMMON_IMAGE_IMAGE_H
#define KD_COMMON_IMAGE_IMAGE_H

#include "common/base/hash.h"

typedef struct kd_image {
    uint8_t *rgb; /* height x width x 3, row-major, no padding */
    int width, height;
    size_t capacity; /* bytes allocated at rgb; managed by the functions of common/image */
    uint8_t *spare;  /* where a picture is turned; then the two buffers change places */
    size_t spare_capacity;
} kd_image;

enum { KD_IMAGE_MAX_PIXELS = 89478485 /* Pillow's MAX_IMAGE_PIXELS warning limit */, KD_IMAGE_MAX_SIDE = 65500, KD_JPEG_MAX_SCANS = 100 };

/* How a picture is decoded. exif_apply is part of a cache's recipe ("exif"); max_pixels only decides which pictures are refused. */
typedef struct kd_decode_options {
    int exif_apply;     /* 1: turned upright as its EXIF orientation says, like Pillow's ImageOps.exif_transpose; 0: as its pixels are stored */
    int64_t max_pixels; /* width x height above this is refused from the header; 0: KD_IMAGE_MAX_PIXELS */
} kd_decode_options;

/* Options NULL: the defaults. Sniffs by content: JPEG and PNG are decoded; HEIC, AVIF, TIFF, GIF, BMP, WebP and video are refused naming the kind and a converter. KD_EFAIL for a bad
 * image: empty, truncated (libjpeg's end-of-file warning is an error here, as in Pillow), corrupt, too many pixels or scans. `name` is for the sentence. */
kd_status kd_image_decode(kd_image *img, const uint8_t *bytes, size_t size, const char *name, const kd_decode_options *options, kd_err *err);
/* The EXIF orientation of a whole JPEG, PNG or WebP file: 1 to 8; 1 when it has none or none that can be understood. Looked for where Pillow's getexif
 * looks for EXIF (first "Exif" APP1, eXIf chunk, EXIF chunk of an extended WebP) and read as leniently; XMP isn't read. */
int kd_exif_orientation(const uint8_t *bytes, size_t size);
/* Grows img to width x height (content undefined). */
kd_status kd_image_resize_buffer(kd_image *img, int width, int height, kd_err *err);
void kd_image_free(kd_image *img);

/* Writes an RGB image as PNG, atomically. */
kd_status kd_png_write(const char *path, const uint8_t *rgb, int width, int height, kd_err *err);
/* Encodes as baseline JPEG, 4:2:0, given quality: used to draw the demo's picture files. */
kd_status kd_jpeg_write(const char *path, const uint8_t *rgb, int width, int height, int quality, kd_err *err);

/* Identity of the linked decoder: XXH3-128 over the decodes of the golden files built into the program (every subsampling and colour type).
 * Equal hash = equal pixels, whatever the library's version. Computed once per process. */
kd_status kd_decoder_hash(kd_hash128 *out, kd_err *err);
const char *kd_decoder_version(void); /* "libjpeg-turbo 2.1.5" or what the headers say: provenance only */

#endif

/* The decoders behind kd_image_decode: one home for each foreign library (jpeg.c: jpeglib.h, png.c: png.h, webp.c: webp/decode.h).
 * Internal to common/image; callers use image.h. Same contract as kd_image_decode for bytes of the right kind, but that the picture is never turned. */
#ifndef KD_COMMON_IMAGE_CODECS_H
#define KD_COMMON_IMAGE_CODECS_H

#include "common/image/image.h"

kd_status kd_jpeg_decode(kd_image *img, const uint8_t *bytes, size_t size, const char *name, int64_t max_pixels, kd_err *err);
/* kd_image_decode_box for a JPEG. want NULL: the whole picture. */
kd_status kd_jpeg_decode_box(kd_image *img, const uint8_t *bytes, size_t size, const char *name, int64_t max_pixels, kd_want_box want, void *ctx, kd_err *err);
/* Whether the linked libjpeg decodes parts of the built-in pictures to the pixels of the whole; where it doesn't, kd_jpeg_decode_box always decodes the whole.
 * Computed once per process. */
int kd_jpeg_parts_are_exact(void);
kd_status kd_png_decode(kd_image *img, const uint8_t *bytes, size_t size, const char *name, int64_t max_pixels, kd_err *err);
kd_status kd_webp_decode(kd_image *img, const uint8_t *bytes, size_t size, const char *name, int64_t max_pixels, kd_err *err);
/* The next marker with a segment in the header of a JPEG, looked for from *at (2: from the beginning): its code, with its content of *length bytes at *at. 0: a scan or
 * the end comes first, or the header is damaged. Padding and rubbish between segments are passed over, as libjpeg does. */
int kd_jpeg_next_segment(const uint8_t *bytes, size_t size, size_t *at, size_t *length);
const char *kd_jpeg_version(void);              /* "libjpeg-turbo 2.1.5", from the headers */
void kd_webp_version(char *out, size_t cap);    /* "libwebp 1.2.4", of the library that is loaded */

/* The one size check of every decoder, made from the header alone: KD_EFAIL beyond KD_IMAGE_MAX_SIDE or max_pixels. */
kd_status kd_image_check_size(uint64_t width, uint64_t height, int64_t max_pixels, const char *name, kd_err *err);

/* At least `bytes` at img->spare (content undefined). KD_EFAIL: out of memory. */
kd_status kd_image_reserve_spare(kd_image *img, size_t bytes, kd_err *err);

/* Turns the picture upright from EXIF orientation 1 to 8 (1: nothing to do), as ImageOps.exif_transpose does. KD_EFAIL: out of memory. */
kd_status kd_image_turn(kd_image *img, int orientation, kd_err *err);

/* Pillow's rounded division by 255 (src/libImaging/ImagingUtils.h), exact for products of two bytes. */
static inline uint8_t kd_div255(unsigned product) {
    unsigned t = product + 128;
    return (uint8_t)(((t >> 8) + t) >> 8);
}

/* Lays pixels over white (image.h says by which arithmetic). rgb and rgba don't overlap. */
static inline void kd_over_white(uint8_t *rgb, const uint8_t *rgba, size_t pixels) {
    for (size_t i = 0; i < pixels; i++, rgb += 3, rgba += 4)
        for (int c = 0; c < 3; c++)
            rgb[c] = kd_div255(255u * (255u - rgba[3]) + (unsigned)rgba[c] * rgba[3]);
}

/* Pictures that ship inside the program: the decoder's identity is the hash of their pixels. PNG isn't among them: its pixels don't depend on a library. */
typedef struct kd_golden_picture {
    const char *name;
    const uint8_t *bytes;
    size_t size;
} kd_golden_picture;
extern const kd_golden_picture kd_golden_jpegs[], kd_golden_webps[];
extern const size_t kd_golden_jpeg_count, kd_golden_webp_count;

#endif

/* The decoders behind kd_image_decode: one home for each foreign library (jpeg.c: jpeglib.h, png.c: png.h).
 * Internal to common/image; callers use image.h. Same contract as kd_image_decode for bytes of the right kind, but that the picture is never turned. */
#ifndef KD_COMMON_IMAGE_CODECS_H
#define KD_COMMON_IMAGE_CODECS_H

#include "common/image/image.h"

kd_status kd_jpeg_decode(kd_image *img, const uint8_t *bytes, size_t size, const char *name, int64_t max_pixels, kd_err *err);
kd_status kd_png_decode(kd_image *img, const uint8_t *bytes, size_t size, const char *name, int64_t max_pixels, kd_err *err);

/* The one size check of every decoder, made from the header alone: KD_EFAIL beyond KD_IMAGE_MAX_SIDE or max_pixels. */
kd_status kd_image_check_size(uint64_t width, uint64_t height, int64_t max_pixels, const char *name, kd_err *err);

/* Turns the picture upright from EXIF orientation 1 to 8 (1: nothing to do), as ImageOps.exif_transpose does. KD_EFAIL: out of memory. */
kd_status kd_image_turn(kd_image *img, int orientation, kd_err *err);

/* Pillow's rounded division by 255 (src/libImaging/ImagingUtils.h), exact for products of two bytes. */
static inline uint8_t kd_div255(unsigned product) {
    unsigned t = product + 128;
    return (uint8_t)(((t >> 8) + t) >> 8);
}

/* Pictures that ship inside the program: the decoder's identity is the hash of their pixels. */
typedef struct kd_golden_jpeg {
    const char *name;
    const uint8_t *bytes;
    size_t size;
} kd_golden_jpeg;
extern const kd_golden_jpeg kd_golden_jpegs[];
extern const size_t kd_golden_jpeg_count;

#endif

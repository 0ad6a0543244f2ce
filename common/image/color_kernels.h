/* The inner loops of the colour operations, in a plain version and, on x86-64, in versions for AVX2 and AVX-512 that give the same bytes: only integers and
 * IEEE float32 without contraction are used (tests/unit/test_color.c compares them).
 * Internal to common/image; color.c has the operations. n = number of pixels, in place. */
#ifndef KD_COMMON_IMAGE_COLOR_KERNELS_H
#define KD_COMMON_IMAGE_COLOR_KERNELS_H

#include <stddef.h>
#include <stdint.h>

typedef struct kd_color_kernels {
    const char *name;
    /* Pillow's blend of each byte with the constant d: d + factor * (byte - d), truncated and clipped. */
    void (*blend)(uint8_t *rgb, size_t n, int d, float factor);
    uint64_t (*luma_sum)(const uint8_t *rgb, size_t n);
    void (*saturation)(uint8_t *rgb, size_t n, float factor);
    void (*hue)(uint8_t *rgb, size_t n, int shift); /* shift 0..255, added to the byte of the hue modulo 256 */
    void (*grayscale)(uint8_t *rgb, size_t n);
    void (*mirror)(uint8_t *rgb, size_t n); /* the order of the pixels turned round */
} kd_color_kernels;

extern const kd_color_kernels kd_color_plain;
/* The versions that this processor can run, best first, plain last. */
size_t kd_color_variants(const kd_color_kernels *out[3]);

#endif

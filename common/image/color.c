/* Colour operations, bit for bit those of Pillow:
 *   L           src/libImaging/Convert.c, L24: (19595 R + 38470 G + 7471 B + 0x8000) >> 16
 *   blend       src/libImaging/Blend.c (ImageEnhance): float32 d + alpha * (p - d), truncated, clipped outside 0 <= alpha <= 1
 *   solarize    PIL/ImageOps.py
 *   hue         Convert.c rgb2hsv_row and hsv2rgb, between them torchvision's shift of the hue byte (functional_pil.adjust_hue)
 * The loops are in color_kernels.c. */
#include "common/image/color.h"

#include <string.h>

#include "common/image/color_kernels.h"
#include "common/image/simd.h"

static const kd_color_kernels *kernels(void) {
    const kd_color_kernels *variant[3];
    kd_color_variants(variant);
    return variant[0];
}

void kd_color_brightness(uint8_t *rgb, size_t n, float factor) { kernels()->blend(rgb, n, 0, factor); }

void kd_color_contrast(uint8_t *rgb, size_t n, float factor) {
    if (n == 0)
        return;
    double mean = (double)kernels()->luma_sum(rgb, n) / (double)n;
    kernels()->blend(rgb, n, (int)(mean + 0.5), factor);
}

void kd_color_saturation(uint8_t *rgb, size_t n, float factor) { kernels()->saturation(rgb, n, factor); }

void kd_color_grayscale(uint8_t *rgb, size_t n) { kernels()->grayscale(rgb, n); }

/* numpy's uint8(factor * 255): towards zero, then modulo 256. */
void kd_color_hue(uint8_t *rgb, size_t n, float factor) { kernels()->hue(rgb, n, (int)((double)factor * 255.0) & 255); }

KD_CLONES void kd_color_solarize(uint8_t *rgb, size_t n, int threshold) {
    for (size_t i = 0; i < 3 * n; i++)
        rgb[i] = (uint8_t)(rgb[i] < threshold ? rgb[i] : 255 - rgb[i]);
}

void kd_color_hflip(uint8_t *rgb, int width, int height) {
    const kd_color_kernels *k = kernels();
    for (int y = 0; y < height; y++)
        k->mirror(rgb + (size_t)y * (size_t)width * 3, (size_t)width);
}

void kd_color_vflip(uint8_t *rgb, int width, int height) {
    enum { PIECE = 768 };
    size_t n = 3 * (size_t)width;
    for (int top = 0, bottom = height - 1; top < bottom; top++, bottom--)
        for (size_t at = 0; at < n; at += PIECE) {
            uint8_t piece[PIECE], *a = rgb + (size_t)top * n + at, *b = rgb + (size_t)bottom * n + at;
            size_t m = n - at < PIECE ? n - at : PIECE;
            memcpy(piece, a, m);
            memcpy(a, b, m);
            memcpy(b, piece, m);
        }
}

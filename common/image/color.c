/* Colour operations, bit for bit those of Pillow:
 *   L           src/libImaging/Convert.c, L24: (19595 R + 38470 G + 7471 B + 0x8000) >> 16
 *   blend       src/libImaging/Blend.c (ImageEnhance): float32 d + alpha * (p - d), truncated, clipped outside 0 <= alpha <= 1
 *   hue         Convert.c rgb2hsv_row and hsv2rgb, between them torchvision's shift of the hue byte (functional_pil.adjust_hue)
 * Pixels are taken apart into planes of a small block, so that every loop runs over plain arrays and the compiler can vectorise it. */
#include "common/image/color.h"

#include <string.h>

#include "common/image/simd.h"

enum { BLOCK = 256 }; /* pixels; the planes of a block stay in the first-level cache */

static inline int luma(int r, int g, int b) { return (r * 19595 + g * 38470 + b * 7471 + 0x8000) >> 16; }

/* Value before truncation is at least 0 inside [0, 1]; outside it is clipped to the byte range, and clipping changes nothing inside. */
static inline uint8_t blend(int d, int p, float alpha) {
    float v = (float)d + alpha * (float)(p - d);
    v = v < 0.0f ? 0.0f : v;
    v = v > 255.0f ? 255.0f : v;
    return (uint8_t)(int)v;
}

KD_CLONES static void blend_with_constant(uint8_t *rgb, size_t n, int d, float alpha) {
    for (size_t i = 0; i < n; i++)
        rgb[i] = blend(d, rgb[i], alpha);
}

KD_CLONES static uint64_t luma_sum(const uint8_t *rgb, size_t n) {
    uint64_t total = 0;
    for (size_t start = 0; start < n; start += BLOCK) {
        const uint8_t *p = rgb + 3 * start;
        size_t m = n - start < BLOCK ? n - start : BLOCK;
        uint32_t sum = 0;
        for (size_t i = 0; i < m; i++)
            sum += (uint32_t)luma(p[3 * i], p[3 * i + 1], p[3 * i + 2]);
        total += sum;
    }
    return total;
}

void kd_color_brightness(uint8_t *rgb, size_t n, float factor) { blend_with_constant(rgb, 3 * n, 0, factor); }

void kd_color_contrast(uint8_t *rgb, size_t n, float factor) {
    if (n == 0)
        return;
    double mean = (double)luma_sum(rgb, n) / (double)n;
    blend_with_constant(rgb, 3 * n, (int)(mean + 0.5), factor);
}

KD_CLONES void kd_color_saturation(uint8_t *rgb, size_t n, float factor) {
    for (size_t i = 0; i < n; i++) {
        uint8_t *p = rgb + 3 * i;
        int r = p[0], g = p[1], b = p[2], l = luma(r, g, b);
        p[0] = blend(l, r, factor);
        p[1] = blend(l, g, factor);
        p[2] = blend(l, b, factor);
    }
}

KD_CLONES void kd_color_grayscale(uint8_t *rgb, size_t n) {
    for (size_t i = 0; i < n; i++) {
        uint8_t *p = rgb + 3 * i;
        p[0] = p[1] = p[2] = (uint8_t)luma(p[0], p[1], p[2]);
    }
}

/* ---- hue ---- */

/* rgb2hsv_row. Gray pixels have hue and saturation 0; cr = 1 there only avoids the division by zero. */
static inline void to_hsv(int r, int g, int b, int *uh, int *us, int *uv) {
    int max = r > g ? r : g, min = r < g ? r : g;
    max = b > max ? b : max;
    min = b < min ? b : min;
    int colored = max != min;
    float cr = colored ? (float)(max - min) : 1.0f;
    float rc = (float)(max - r) / cr, gc = (float)(max - g) / cr, bc = (float)(max - b) / cr;
    float s = cr / (float)(max > 0 ? max : 1);
    float h_red = bc - gc, h_green = (float)(2.0 + (double)rc - (double)bc), h_blue = (float)(4.0 + (double)gc - (double)rc);
    float h = r == max ? h_red : g == max ? h_green : h_blue;
    /* fmod(turn, 1.0) for 0 <= turn < 2 */
    double turn = (double)h / 6.0 + 1.0;
    turn = turn >= 1.0 ? turn - 1.0 : turn;
    float hue = (float)turn;
    *uh = colored ? (int)((double)hue * 255.0) : 0;
    *us = colored ? (int)((double)s * 255.0) : 0;
    *uv = max;
}

/* C's round() of a value in 0 .. 255, halves away from zero. */
static inline int round_byte(float x) {
    int whole = (int)x;
    return whole + (x - (float)whole >= 0.5f);
}

/* hsv2rgb. With saturation 0 all of p, q, t are v, so gray needs no case of its own. */
static inline void from_hsv(int h, int s, int v, uint8_t *out) {
    int i = h * 6 / 255;
    float fh = (float)h * 6.0f / 255.0f;
    float f = fh - (float)i, fs = (float)s / 255.0f, fv = (float)v;
    int p = round_byte(fv * (1.0f - fs));
    int q = round_byte(fv * (1.0f - fs * f));
    int t = round_byte(fv * (1.0f - fs * (1.0f - f)));
    i = i == 6 ? 0 : i;
    out[0] = (uint8_t)(i == 0 || i == 5 ? v : i == 1 ? q : i == 4 ? t : p);
    out[1] = (uint8_t)(i == 1 || i == 2 ? v : i == 0 ? t : i == 3 ? q : p);
    out[2] = (uint8_t)(i == 3 || i == 4 ? v : i == 2 ? t : i == 5 ? q : p);
}

KD_CLONES static void shift_hue(uint8_t *rgb, size_t n, int shift) {
    for (size_t i = 0; i < n; i++) {
        int h, s, v;
        uint8_t *p = rgb + 3 * i;
        to_hsv(p[0], p[1], p[2], &h, &s, &v);
        from_hsv((h + shift) & 255, s, v, p);
    }
}

void kd_color_hue(uint8_t *rgb, size_t n, float factor) {
    /* numpy's uint8(factor * 255): towards zero, then modulo 256. */
    shift_hue(rgb, n, (int)((double)factor * 255.0) & 255);
}

void kd_color_hflip(uint8_t *rgb, int width, int height) {
    for (int y = 0; y < height; y++) {
        uint8_t *a = rgb + (size_t)y * (size_t)width * 3, *b = a + ((size_t)width - 1) * 3;
        for (; a < b; a += 3, b -= 3) {
            uint8_t pixel[3];
            memcpy(pixel, a, 3);
            memcpy(a, b, 3);
            memcpy(b, pixel, 3);
        }
    }
}

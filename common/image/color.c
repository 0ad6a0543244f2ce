/* Colour operations, bit for bit those of Pillow:
 *   L           src/libImaging/Convert.c, L24: (19595 R + 38470 G + 7471 B + 0x8000) >> 16
 *   blend       src/libImaging/Blend.c (ImageEnhance): float32 d + alpha * (p - d), truncated, clipped outside 0 <= alpha <= 1
 *   solarize    PIL/ImageOps.py
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

KD_CLONES void kd_color_solarize(uint8_t *rgb, size_t n, int threshold) {
    for (size_t i = 0; i < 3 * n; i++)
        rgb[i] = (uint8_t)(rgb[i] < threshold ? rgb[i] : 255 - rgb[i]);
}

/* ---- hue ---- */

/* Lanes of a vector, written out so that nothing depends on the compiler turning branches into selections. A comparison gives -1 or 0. */
typedef int32_t ints __attribute__((vector_size(32)));
typedef float floats __attribute__((vector_size(32)));
enum { LANES = sizeof(ints) / sizeof(int32_t) };

#define ALL(value) ((ints){0} + (value))
#define SELECT(mask, yes, no) (((mask) & (yes)) | (~(mask) & (no)))
#define FLOATS(v) __builtin_convertvector((v), floats)
#define INTS(v) __builtin_convertvector((v), ints)

/* Convert.c rgb2hsv_row in float32. Of (max-r), (max-g), (max-b), divided by max-min, one is 0 and one is 1, so the hue in sixths is
 * base + sign * f, where f belongs to the middle component:
 *     red max:   b min  1 - f,  g min -1 + f        green max:  b min  1 + f,  r min  3 - f        blue max:  r min  3 + f,  g min  5 - f
 * Pillow computes parts of this in double; that the bytes are the same for all 2^24 colours is proven by tests/unit/test_color.c. */
static inline __attribute__((always_inline)) void to_hsv(const ints *r, const ints *g, const ints *b, ints *h, ints *s, ints *v) {
    ints max = SELECT(*r > *g, *r, *g), min = SELECT(*r < *g, *r, *g);
    max = SELECT(*b > max, *b, max);
    min = SELECT(*b < min, *b, min);
    ints chroma = max - min, gray = chroma == 0, black = max == 0;
    ints red = *r == max, green = (*g == max) & ~red, low_b = *b == min, low_r = *r == min;
    ints base = SELECT(red, SELECT(low_b, ALL(1), ALL(-1)), SELECT(green, SELECT(low_b, ALL(1), ALL(3)), SELECT(low_r, ALL(3), ALL(5))));
    ints plus = SELECT(red, ~low_b, SELECT(green, low_b, low_r));
    /* -gray and -black are 1 where a division by zero would be. */
    floats f = FLOATS(2 * max + min - *r - *g - *b) / FLOATS(chroma - gray);
    floats sixths = FLOATS(base) + (floats)((ints)f ^ (~plus & INT32_MIN)); /* the sign bit */
    floats turn = sixths / 6.0f;
    turn += (floats)((sixths < 0.0f) & (ints)((floats){0} + 1.0f));
    *h = INTS(turn * 255.0f) & ~gray;
    *s = INTS(FLOATS(chroma) / FLOATS(max - black) * 255.0f);
    *v = max;
}

/* C's round() of values in 0 .. 255, halves away from zero. */
static inline __attribute__((always_inline)) void round_bytes(ints *out, const floats *x) {
    ints whole = INTS(*x);
    *out = whole - (*x - FLOATS(whole) >= 0.5f);
}

/* Convert.c hsv2rgb. With saturation 0 all of p, q, t are v, so gray needs no case of its own. */
static inline __attribute__((always_inline)) void from_hsv(const ints *h, const ints *s, const ints *v, ints *r, ints *g, ints *b) {
    floats sixths = FLOATS(*h) * 6.0f / 255.0f, fs = FLOATS(*s) / 255.0f, fv = FLOATS(*v);
    ints i = INTS(sixths);
    floats f = sixths - FLOATS(i);
    ints odd = -(i & 1); /* q in odd sectors, t in even ones */
    floats p = fv * (1.0f - fs), m = fv * (1.0f - fs * (floats)SELECT(odd, (ints)f, (ints)(1.0f - f)));
    ints low, mid;
    round_bytes(&low, &p);
    round_bytes(&mid, &m);
    i &= ~(i == 6);
    *r = SELECT((i == 0) | (i == 5), *v, SELECT((i == 1) | (i == 4), mid, low));
    *g = SELECT((i == 1) | (i == 2), *v, SELECT((i == 0) | (i == 3), mid, low));
    *b = SELECT((i == 3) | (i == 4), *v, SELECT((i == 2) | (i == 5), mid, low));
}

KD_CLONES static void shift_hue(uint8_t *rgb, size_t n, int shift) {
    ints r[BLOCK / LANES] = {{0}}, g[BLOCK / LANES] = {{0}}, b[BLOCK / LANES] = {{0}};
    int32_t *plane_r = (int32_t *)r, *plane_g = (int32_t *)g, *plane_b = (int32_t *)b;
    for (size_t start = 0; start < n; start += BLOCK) {
        uint8_t *p = rgb + 3 * start;
        size_t m = n - start < BLOCK ? n - start : BLOCK;
        for (size_t i = 0; i < m; i++) {
            plane_r[i] = p[3 * i];
            plane_g[i] = p[3 * i + 1];
            plane_b[i] = p[3 * i + 2];
        }
        for (size_t i = 0; i < (m + LANES - 1) / LANES; i++) {
            ints h, s, v;
            to_hsv(&r[i], &g[i], &b[i], &h, &s, &v);
            h = (h + shift) & 255;
            from_hsv(&h, &s, &v, &r[i], &g[i], &b[i]);
        }
        for (size_t i = 0; i < m; i++) {
            p[3 * i] = (uint8_t)plane_r[i];
            p[3 * i + 1] = (uint8_t)plane_g[i];
            p[3 * i + 2] = (uint8_t)plane_b[i];
        }
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

/* Inner loops of the colour operations (formulas and their sources: color.c). Eight pixels at a time: R, G and B in a vector each. Every loop is an
 * always-inlined body of which the plain and the AVX2 version get a copy each, compiled for their instructions; they differ in load and store alone. */
#include "common/image/color_kernels.h"

#include <string.h>

typedef int32_t ints __attribute__((vector_size(32)));
typedef float floats __attribute__((vector_size(32)));
enum { LANES = sizeof(ints) / sizeof(int32_t), BYTES = 3 * LANES };
#define BODY static inline __attribute__((always_inline))

/* Selections are written out, so that nothing depends on the compiler turning branches into them. A comparison of vectors gives -1 or 0. */
#define ALL(value) ((ints){0} + (value))
#define SELECT(mask, yes, no) (((mask) & (yes)) | (~(mask) & (no)))
#define FLOATS(v) __builtin_convertvector((v), floats)
#define INTS(v) __builtin_convertvector((v), ints)

/* What a byte pattern of 8 pixels becomes: each pixel's bytes in one lane, R lowest. */
typedef void load_function(ints *pixels, const uint8_t *rgb);
typedef void store_function(uint8_t *rgb, const ints *pixels);

/* ---- arithmetic ---- */

BODY void luma(ints *l, const ints *r, const ints *g, const ints *b) { *l = (*r * 19595 + *g * 38470 + *b * 7471 + 0x8000) >> 16; }

/* Value before truncation is at least 0 for factors inside [0, 1]; outside it is clipped to the byte range, and clipping changes nothing inside. */
BODY void blend(ints *p, const ints *d, float factor) {
    floats v = FLOATS(*d) + factor * FLOATS(*p - *d);
    ints low = v < 0.0f, high = v > 255.0f;
    *p = SELECT(high, ALL(255), INTS((floats)(~low & (ints)v)) & ~high);
}

/* Convert.c rgb2hsv_row in float32. Of (max-r), (max-g), (max-b), divided by max-min, one is 0 and one is 1, so the hue in sixths is
 * base + sign * f, where f belongs to the middle component:
 *     red max:   b min  1 - f,  g min -1 + f        green max:  b min  1 + f,  r min  3 - f        blue max:  r min  3 + f,  g min  5 - f
 * Pillow computes parts of this in double; that the bytes are the same for all 2^24 colours is proven by tests/unit/test_color.c. */
BODY void to_hsv(const ints *r, const ints *g, const ints *b, ints *h, ints *s, ints *v) {
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
BODY void round_bytes(ints *out, const floats *x) {
    ints whole = INTS(*x);
    *out = whole - (*x - FLOATS(whole) >= 0.5f);
}

/* Convert.c hsv2rgb. With saturation 0 all of p, q, t are v, so gray needs no case of its own. */
BODY void from_hsv(const ints *h, const ints *s, const ints *v, ints *r, ints *g, ints *b) {
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

/* ---- loops ---- */

typedef enum operation { BLEND, SATURATION, HUE, GRAYSCALE } operation;

BODY void operate(ints *pixels, operation op, int number, float factor) {
    ints r = *pixels & 255, g = *pixels >> 8 & 255, b = *pixels >> 16 & 255, l;
    if (op == BLEND) {
        l = ALL(number);
        blend(&r, &l, factor);
        blend(&g, &l, factor);
        blend(&b, &l, factor);
    } else if (op == SATURATION) {
        luma(&l, &r, &g, &b);
        blend(&r, &l, factor);
        blend(&g, &l, factor);
        blend(&b, &l, factor);
    } else if (op == HUE) {
        ints h, s, v;
        to_hsv(&r, &g, &b, &h, &s, &v);
        h = (h + number) & 255;
        from_hsv(&h, &s, &v, &r, &g, &b);
    } else {
        luma(&l, &r, &g, &b);
        r = g = b = l;
    }
    *pixels = r | g << 8 | b << 16;
}

/* The last pixels, fewer than eight, go through a buffer. */
BODY void each(uint8_t *rgb, size_t n, load_function load, store_function store, operation op, int number, float factor) {
    ints pixels;
    for (; n >= LANES; n -= LANES, rgb += BYTES) {
        load(&pixels, rgb);
        operate(&pixels, op, number, factor);
        store(rgb, &pixels);
    }
    if (n > 0) {
        uint8_t rest[BYTES] = {0};
        memcpy(rest, rgb, 3 * n);
        load(&pixels, rest);
        operate(&pixels, op, number, factor);
        store(rest, &pixels);
        memcpy(rgb, rest, 3 * n);
    }
}

/* Lanes hold at most 255 more after each pixel, so that 2^20 fit before they are emptied. */
BODY uint64_t sum_of_luma(const uint8_t *rgb, size_t n, load_function load) {
    uint64_t total = 0;
    while (n > 0) {
        ints sum = {0}, pixels, l;
        for (int i = 0; i < 1 << 20 && n > 0; i++) {
            uint8_t rest[BYTES] = {0};
            size_t m = n < LANES ? n : LANES;
            if (m == LANES) {
                load(&pixels, rgb);
            } else {
                memcpy(rest, rgb, 3 * m); /* black has luma 0 */
                load(&pixels, rest);
            }
            ints r = pixels & 255, g = pixels >> 8 & 255, b = pixels >> 16 & 255;
            luma(&l, &r, &g, &b);
            sum += l;
            rgb += 3 * m;
            n -= m;
        }
        for (int i = 0; i < LANES; i++)
            total += (uint64_t)sum[i];
    }
    return total;
}

/* The same instruction has another name in clang, which builds the fuzz targets. */
#ifdef __clang__
#define REVERSED(v) __builtin_shufflevector(v, v, 7, 6, 5, 4, 3, 2, 1, 0)
#else
#define REVERSED(v) __builtin_shuffle(v, (ints){7, 6, 5, 4, 3, 2, 1, 0})
#endif

/* Eight from each end change places; what is left in the middle, one by one. */
BODY void turn_round(uint8_t *rgb, size_t n, load_function load, store_function store) {
    uint8_t *a = rgb, *b = rgb + 3 * n;
    for (; b - a >= 2 * BYTES; a += BYTES, b -= BYTES) {
        ints left, right;
        load(&left, a);
        load(&right, b - BYTES);
        left = REVERSED(left);
        right = REVERSED(right);
        store(a, &right);
        store(b - BYTES, &left);
    }
    for (b -= 3; a < b; a += 3, b -= 3) {
        uint8_t pixel[3];
        memcpy(pixel, a, 3);
        memcpy(a, b, 3);
        memcpy(b, pixel, 3);
    }
}

/* One version: its functions and its table. */
#define VERSION(target, version, load, store, table)                                                                                                        \
    target static void blend_##version(uint8_t *rgb, size_t n, int d, float factor) { each(rgb, n, load, store, BLEND, d, factor); }                        \
    target static uint64_t luma_sum_##version(const uint8_t *rgb, size_t n) { return sum_of_luma(rgb, n, load); }                                           \
    target static void saturation_##version(uint8_t *rgb, size_t n, float factor) { each(rgb, n, load, store, SATURATION, 0, factor); }                     \
    target static void hue_##version(uint8_t *rgb, size_t n, int shift) { each(rgb, n, load, store, HUE, shift, 0.0f); }                                    \
    target static void grayscale_##version(uint8_t *rgb, size_t n) { each(rgb, n, load, store, GRAYSCALE, 0, 0.0f); }                                       \
    target static void mirror_##version(uint8_t *rgb, size_t n) { turn_round(rgb, n, load, store); }                                                        \
    table = {#version, blend_##version, luma_sum_##version, saturation_##version, hue_##version, grayscale_##version, mirror_##version};

BODY void load_plain(ints *pixels, const uint8_t *rgb) {
    for (int i = 0; i < LANES; i++)
        (*pixels)[i] = rgb[3 * i] | rgb[3 * i + 1] << 8 | rgb[3 * i + 2] << 16;
}

BODY void store_plain(uint8_t *rgb, const ints *pixels) {
    for (int i = 0; i < LANES; i++)
        for (int c = 0; c < 3; c++)
            rgb[3 * i + c] = (uint8_t)((*pixels)[i] >> (8 * c));
}

VERSION(, plain, load_plain, store_plain, const kd_color_kernels kd_color_plain)

#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>

#define AVX2 __attribute__((target("avx2")))
#define AVX512 __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq")))

/* Bytes 0..15 and 8..23: four pixels at the beginning of the first half, four at the end of the second. */
AVX2 BODY void load_avx2(ints *pixels, const uint8_t *rgb) {
    __m256i v = _mm256_inserti128_si256(_mm256_castsi128_si256(_mm_loadu_si128((const void *)rgb)), _mm_loadu_si128((const void *)(rgb + 8)), 1);
    *pixels = (ints)_mm256_shuffle_epi8(v, _mm256_setr_epi8(0, 1, 2, -128, 3, 4, 5, -128, 6, 7, 8, -128, 9, 10, 11, -128,
                                                            4, 5, 6, -128, 7, 8, 9, -128, 10, 11, 12, -128, 13, 14, 15, -128));
}

AVX2 BODY void store_avx2(uint8_t *rgb, const ints *pixels) {
    const __m256i close = _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 1, 2, 4, 5, 6, 8, 9, 10, 12, 13, 14, -128, -128, -128, -128));
    __m256i v = _mm256_permutevar8x32_epi32(_mm256_shuffle_epi8((__m256i)*pixels, close), _mm256_setr_epi32(0, 1, 2, 4, 5, 6, 3, 7));
    _mm_storeu_si128((void *)rgb, _mm256_castsi256_si128(v));
    _mm_storel_epi64((void *)(rgb + 16), _mm256_extracti128_si256(v, 1));
}

VERSION(AVX2, avx2, load_avx2, store_avx2, static const kd_color_kernels color_avx2)
/* AVX-512, sixteen pixels at a time: the same formulas written for its masks, which the compiler doesn't make of vectors compared and selected. */

AVX512 static inline __m512i load16(const uint8_t *rgb) {
    __m512i v = _mm512_maskz_loadu_epi8((UINT64_C(1) << 48) - 1, rgb);
    v = _mm512_permutexvar_epi32(_mm512_setr_epi32(0, 1, 2, 2, 3, 4, 5, 5, 6, 7, 8, 8, 9, 10, 11, 11), v);
    return _mm512_shuffle_epi8(v, _mm512_broadcast_i32x4(_mm_setr_epi8(0, 1, 2, -128, 3, 4, 5, -128, 6, 7, 8, -128, 9, 10, 11, -128)));
}

AVX512 static inline void store16(uint8_t *rgb, __m512i r, __m512i g, __m512i b) {
    __m512i v = _mm512_or_si512(r, _mm512_or_si512(_mm512_slli_epi32(g, 8), _mm512_slli_epi32(b, 16)));
    v = _mm512_shuffle_epi8(v, _mm512_broadcast_i32x4(_mm_setr_epi8(0, 1, 2, 4, 5, 6, 8, 9, 10, 12, 13, 14, -128, -128, -128, -128)));
    v = _mm512_permutexvar_epi32(_mm512_setr_epi32(0, 1, 2, 4, 5, 6, 8, 9, 10, 12, 13, 14, 3, 7, 11, 15), v);
    _mm256_storeu_si256((void *)rgb, _mm512_castsi512_si256(v));
    _mm_storeu_si128((void *)(rgb + 32), _mm512_extracti32x4_epi32(v, 2));
}

#define ALL16(value) _mm512_set1_epi32(value)
#define ALL16F(value) _mm512_set1_ps(value)

AVX512 static inline __m512i luma16(__m512i r, __m512i g, __m512i b) {
    __m512i sum = _mm512_add_epi32(_mm512_mullo_epi32(r, ALL16(19595)), _mm512_mullo_epi32(g, ALL16(38470)));
    return _mm512_srli_epi32(_mm512_add_epi32(_mm512_add_epi32(sum, _mm512_mullo_epi32(b, ALL16(7471))), ALL16(0x8000)), 16);
}

AVX512 static inline __m512i blend16(__m512i p, __m512i d, __m512 factor) {
    __m512 v = _mm512_add_ps(_mm512_cvtepi32_ps(d), _mm512_mul_ps(factor, _mm512_cvtepi32_ps(_mm512_sub_epi32(p, d))));
    return _mm512_cvttps_epi32(_mm512_min_ps(_mm512_max_ps(v, ALL16F(0.0f)), ALL16F(255.0f)));
}

AVX512 static inline void to_hsv16(__m512i r, __m512i g, __m512i b, __m512i *h, __m512i *s, __m512i *v) {
    __m512i max = _mm512_max_epi32(_mm512_max_epi32(r, g), b), min = _mm512_min_epi32(_mm512_min_epi32(r, g), b), chroma = _mm512_sub_epi32(max, min);
    __mmask16 gray = _mm512_testn_epi32_mask(chroma, chroma), black = _mm512_testn_epi32_mask(max, max);
    __mmask16 red = _mm512_cmpeq_epi32_mask(r, max), green = (__mmask16)(_mm512_cmpeq_epi32_mask(g, max) & ~red);
    __mmask16 low_b = _mm512_cmpeq_epi32_mask(b, min), low_r = _mm512_cmpeq_epi32_mask(r, min);
    __mmask16 plus = (__mmask16)((red & ~low_b) | (green & low_b) | (~red & ~green & low_r));
    __m512 base = _mm512_mask_blend_ps(low_r, ALL16F(5.0f), ALL16F(3.0f));
    base = _mm512_mask_mov_ps(base, green, _mm512_mask_blend_ps(low_b, ALL16F(3.0f), ALL16F(1.0f)));
    base = _mm512_mask_mov_ps(base, red, _mm512_mask_blend_ps(low_b, ALL16F(-1.0f), ALL16F(1.0f)));
    __m512i above = _mm512_sub_epi32(_mm512_add_epi32(_mm512_slli_epi32(max, 1), min), _mm512_add_epi32(_mm512_add_epi32(r, g), b));
    __m512 f = _mm512_div_ps(_mm512_cvtepi32_ps(above), _mm512_cvtepi32_ps(_mm512_mask_mov_epi32(chroma, gray, ALL16(1))));
    __m512 sixths = _mm512_mask_add_ps(_mm512_sub_ps(base, f), plus, base, f), turn = _mm512_div_ps(sixths, ALL16F(6.0f));
    turn = _mm512_mask_add_ps(turn, _mm512_cmp_ps_mask(sixths, _mm512_setzero_ps(), _CMP_LT_OQ), turn, ALL16F(1.0f));
    *h = _mm512_maskz_cvttps_epi32((__mmask16)~gray, _mm512_mul_ps(turn, ALL16F(255.0f)));
    __m512 share = _mm512_div_ps(_mm512_cvtepi32_ps(chroma), _mm512_cvtepi32_ps(_mm512_mask_mov_epi32(max, black, ALL16(1))));
    *s = _mm512_cvttps_epi32(_mm512_mul_ps(share, ALL16F(255.0f)));
    *v = max;
}

/* v * (1 - s * w), rounded, with w cut to 0 .. 1. */
AVX512 static inline __m512i channel16(__m512 w, __m512 s, __m512 v) {
    w = _mm512_min_ps(_mm512_max_ps(w, ALL16F(0.0f)), ALL16F(1.0f));
    __m512 x = _mm512_mul_ps(v, _mm512_sub_ps(ALL16F(1.0f), _mm512_mul_ps(s, w)));
    __m512i whole = _mm512_cvttps_epi32(x);
    return _mm512_mask_add_epi32(whole, _mm512_cmp_ps_mask(_mm512_sub_ps(x, _mm512_cvtepi32_ps(whole)), ALL16F(0.5f), _CMP_GE_OQ), whole, ALL16(1));
}

/* hsv2rgb's p, q and t are v * (1 - s * w) with w = 1, f and 1 - f, and v is that with w = 0; x is the hue in sixths, f what it has behind the point:
 *     sector        0      1      2      3      4      5
 *     w of red      0      f      1      1    1 - f    0          = min(x - 1, 5 - x)
 *     w of green  1 - f    0      0      f      1      1          = max(1 - x, x - 3)
 *     w of blue     1      1    1 - f    0      0      f          = max(3 - x, x - 5)      cut to 0 .. 1 */
AVX512 static inline void from_hsv16(__m512i h, __m512i s, __m512i v, __m512i *r, __m512i *g, __m512i *b) {
    __m512 x = _mm512_div_ps(_mm512_mul_ps(_mm512_cvtepi32_ps(h), ALL16F(6.0f)), ALL16F(255.0f));
    __m512 fs = _mm512_div_ps(_mm512_cvtepi32_ps(s), ALL16F(255.0f)), fv = _mm512_cvtepi32_ps(v);
    *r = channel16(_mm512_min_ps(_mm512_sub_ps(x, ALL16F(1.0f)), _mm512_sub_ps(ALL16F(5.0f), x)), fs, fv);
    *g = channel16(_mm512_max_ps(_mm512_sub_ps(ALL16F(1.0f), x), _mm512_sub_ps(x, ALL16F(3.0f))), fs, fv);
    *b = channel16(_mm512_max_ps(_mm512_sub_ps(ALL16F(3.0f), x), _mm512_sub_ps(x, ALL16F(5.0f))), fs, fv);
}

/* Whole groups of sixteen pixels; how many pixels that were. What is left takes the loops for AVX2. */
AVX512 static inline __attribute__((always_inline)) size_t each16(uint8_t *rgb, size_t n, operation op, int number, float factor) {
    const __m512i low = ALL16(255), constant = ALL16(number);
    const __m512 f = ALL16F(factor);
    size_t done = 0;
    for (; done + 16 <= n; done += 16, rgb += 48) {
        __m512i v = load16(rgb), r = _mm512_and_si512(v, low), g = _mm512_and_si512(_mm512_srli_epi32(v, 8), low), b = _mm512_srli_epi32(v, 16);
        if (op == HUE) {
            __m512i hue, s, value;
            to_hsv16(r, g, b, &hue, &s, &value);
            hue = _mm512_and_si512(_mm512_add_epi32(hue, constant), low);
            from_hsv16(hue, s, value, &r, &g, &b);
        } else {
            __m512i d = op == BLEND ? constant : luma16(r, g, b);
            r = op == GRAYSCALE ? d : blend16(r, d, f);
            g = op == GRAYSCALE ? d : blend16(g, d, f);
            b = op == GRAYSCALE ? d : blend16(b, d, f);
        }
        store16(rgb, r, g, b);
    }
    return done;
}

AVX512 static void blend_avx512(uint8_t *rgb, size_t n, int d, float factor) {
    size_t done = each16(rgb, n, BLEND, d, factor);
    blend_avx2(rgb + 3 * done, n - done, d, factor);
}

AVX512 static void saturation_avx512(uint8_t *rgb, size_t n, float factor) {
    size_t done = each16(rgb, n, SATURATION, 0, factor);
    saturation_avx2(rgb + 3 * done, n - done, factor);
}

AVX512 static void hue_avx512(uint8_t *rgb, size_t n, int shift) {
    size_t done = each16(rgb, n, HUE, shift, 0.0f);
    hue_avx2(rgb + 3 * done, n - done, shift);
}

AVX512 static void grayscale_avx512(uint8_t *rgb, size_t n) {
    size_t done = each16(rgb, n, GRAYSCALE, 0, 0.0f);
    grayscale_avx2(rgb + 3 * done, n - done);
}

static const kd_color_kernels color_avx512 = {"avx512", blend_avx512, luma_sum_avx2, saturation_avx512, hue_avx512, grayscale_avx512, mirror_avx2};
#endif

size_t kd_color_variants(const kd_color_kernels *out[3]) {
    size_t n = 0;
#if defined(__x86_64__) && defined(__GNUC__)
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq"))
        out[n++] = &color_avx512;
    if (__builtin_cpu_supports("avx2"))
        out[n++] = &color_avx2;
#endif
    out[n++] = &kd_color_plain;
    return n;
}

/* Inner loops of resampling: see resample_kernels.h. */
#include "common/image/resample_kernels.h"

#include <string.h>

static void row_plain(uint8_t *dst, const uint8_t *src, const kd_pass *p, int n) {
    const int32_t *weight = p->weight;
    for (int i = 0; i < n; i++, dst += 3, weight += p->stride) {
        const uint8_t *s = src + 3 * (size_t)p->taps[i].first;
        int32_t r = KD_WEIGHT_HALF, g = r, b = r;
        for (int t = 0; t < p->taps[i].count; t++, s += 3) {
            r += s[0] * weight[t];
            g += s[1] * weight[t];
            b += s[2] * weight[t];
        }
        dst[0] = kd_clip8(r);
        dst[1] = kd_clip8(g);
        dst[2] = kd_clip8(b);
    }
}

static void horizontal_plain(uint8_t *dst, const uint8_t *src, size_t src_stride, int rows, const kd_pass *p, int n, uint8_t *packed) {
    (void)packed;
    for (int y = 0; y < rows; y++)
        row_plain(dst + (size_t)y * 3 * (size_t)n, src + (size_t)y * src_stride, p, n);
}

/* A block of columns at a time, so that the sums stay in registers or the first-level cache. */
static void vertical_plain(uint8_t *dst, const uint8_t *src, size_t src_stride, const int32_t *weight, int count, size_t n) {
    enum { BLOCK = 64 };
    for (size_t start = 0; start < n; start += BLOCK) {
        size_t m = n - start < BLOCK ? n - start : BLOCK;
        int32_t sum[BLOCK];
        for (size_t j = 0; j < m; j++)
            sum[j] = KD_WEIGHT_HALF;
        for (int t = 0; t < count; t++) {
            const uint8_t *s = src + (size_t)t * src_stride + start;
            int32_t k = weight[t];
            for (size_t j = 0; j < m; j++)
                sum[j] += s[j] * k;
        }
        for (size_t j = 0; j < m; j++)
            dst[start + j] = kd_clip8(sum[j]);
    }
}

const kd_resample_kernels kd_resample_plain = {"plain", horizontal_plain, vertical_plain};

#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>

/* The horizontal loops. The rows of a group are packed: the pixels of one column lie side by side, each as R, G, B and an unused byte (which may be anything:
 * its sum is thrown away). A tap is then one vector of that column times one weight, for all rows, and no sums are added across lanes at the end. Every output
 * takes p->most taps, the last ones with weight 0, because a loop whose length changes from pixel to pixel is mispredicted. Four outputs together are
 * narrowed: the packing instructions work within 128 bits, and each 128 bits are one row, so that a row's four pixels come out side by side.
 * With fewer rows left than a group has, the last one takes the place of the missing ones and is written again. */

#define AVX512 __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq")))
#define AVX2 __attribute__((target("avx2")))
/* Within 16 bytes: four RGB pixels to RGB and one unused byte each, and back. */
#define SPREAD_PIXELS 0, 1, 2, -128, 3, 4, 5, -128, 6, 7, 8, -128, 9, 10, 11, -128
#define CLOSE_PIXELS 0, 1, 2, 4, 5, 6, 8, 9, 10, 12, 13, 14, -128, -128, -128, -128

static inline int least(int a, int b) { return a < b ? a : b; }

/* Pixels from x on, to which the vector loop didn't get without reading behind the row; then zeros, for taps with weight 0. */
static void pack_rest(uint8_t *packed, const uint8_t *const *row, int rows, int x, int n, int zeros) {
    for (uint8_t *to = packed + (size_t)x * 4 * (size_t)rows; x < n; x++)
        for (int r = 0; r < rows; r++, to += 4) {
            memcpy(to, row[r] + 3 * (size_t)x, 3);
            to[3] = 0;
        }
    memset(packed + (size_t)n * 4 * (size_t)rows, 0, (size_t)zeros * 4 * (size_t)rows);
}

/* 16 bytes hold 4 pixels of a row and nothing; m of n are left. */
AVX2 static inline void store_pixels(uint8_t *to, __m128i pixels, int m) {
    if (m > 5) { /* 16 bytes fit, and what is too much is overwritten next */
        _mm_storeu_si128((void *)to, pixels);
        return;
    }
    uint8_t bytes[16];
    _mm_storeu_si128((void *)bytes, pixels);
    memcpy(to, bytes, 3 * (size_t)least(m, 4));
}

typedef struct group {
    const uint8_t *src[KD_ROW_GROUP];
    uint8_t *dst[KD_ROW_GROUP];
} group;

/* Rows y .. y + size - 1. */
static group group_at(uint8_t *dst, const uint8_t *src, size_t src_stride, int rows, const kd_pass *p, int n, int y, int size) {
    group g;
    for (int r = 0; r < size; r++) {
        size_t at = (size_t)least(y + r, rows - 1);
        g.src[r] = src + at * src_stride + 3 * (size_t)p->taps[0].first;
        g.dst[r] = dst + at * 3 * (size_t)n;
    }
    return g;
}

AVX512 static void pack_avx512(uint8_t *packed, const uint8_t *const *row, int n, int zeros) {
    const __m512i spread = _mm512_broadcast_i32x4(_mm_setr_epi8(SPREAD_PIXELS));
    const __m512i turn = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    int x = 0;
    for (; x + 6 <= n; x += 4) {
        size_t at = 3 * (size_t)x;
        __m512i v = _mm512_castsi128_si512(_mm_loadu_si128((const void *)(row[0] + at)));
        v = _mm512_inserti32x4(v, _mm_loadu_si128((const void *)(row[1] + at)), 1);
        v = _mm512_inserti32x4(v, _mm_loadu_si128((const void *)(row[2] + at)), 2);
        v = _mm512_inserti32x4(v, _mm_loadu_si128((const void *)(row[3] + at)), 3);
        v = _mm512_permutexvar_epi32(turn, _mm512_shuffle_epi8(v, spread));
        _mm512_storeu_si512(packed + (size_t)x * 16, v);
    }
    pack_rest(packed, row, 4, x, n, zeros);
}

#define TAP512(at) _mm512_cvtepu8_epi32(_mm_loadu_si128((const void *)(at)))

/* Four outputs of four rows: v[j] = 4 x (R, G, B, unused), shifted but not yet clipped. */
AVX512 static inline void sums_avx512(__m512i v[4], const uint8_t *const s[4], const int32_t *const k[4], int most) {
    __m512i a = _mm512_set1_epi32(KD_WEIGHT_HALF), b = a, c = a, d = a;
    for (int t = 0; t < most; t++) {
        a = _mm512_add_epi32(a, _mm512_mullo_epi32(TAP512(s[0] + 16 * (size_t)t), _mm512_set1_epi32(k[0][t])));
        b = _mm512_add_epi32(b, _mm512_mullo_epi32(TAP512(s[1] + 16 * (size_t)t), _mm512_set1_epi32(k[1][t])));
        c = _mm512_add_epi32(c, _mm512_mullo_epi32(TAP512(s[2] + 16 * (size_t)t), _mm512_set1_epi32(k[2][t])));
        d = _mm512_add_epi32(d, _mm512_mullo_epi32(TAP512(s[3] + 16 * (size_t)t), _mm512_set1_epi32(k[3][t])));
    }
    v[0] = _mm512_srai_epi32(a, KD_WEIGHT_BITS);
    v[1] = _mm512_srai_epi32(b, KD_WEIGHT_BITS);
    v[2] = _mm512_srai_epi32(c, KD_WEIGHT_BITS);
    v[3] = _mm512_srai_epi32(d, KD_WEIGHT_BITS);
}

AVX512 static void horizontal_avx512(uint8_t *dst, const uint8_t *src, size_t src_stride, int rows, const kd_pass *p, int n, uint8_t *packed) {
    const int first = p->taps[0].first, inputs = p->taps[n - 1].first + p->taps[n - 1].count - first, most = p->most;
    const __m512i close = _mm512_broadcast_i32x4(_mm_setr_epi8(CLOSE_PIXELS));
    for (int y = 0; y < rows; y += 4) {
        group g = group_at(dst, src, src_stride, rows, p, n, y, 4);
        pack_avx512(packed, g.src, inputs, most);
        for (int i = 0; i < n; i += 4) {
            __m512i v[4];
            const uint8_t *s[4];
            const int32_t *k[4];
            for (int j = 0; j < 4; j++) {
                int o = least(i + j, n - 1);
                s[j] = packed + 16 * (size_t)(p->taps[o].first - first);
                k[j] = p->weight + (size_t)o * p->stride;
            }
            sums_avx512(v, s, k, most);
            /* Sums are within 16 bits after the shift; the second step clips to bytes. */
            __m512i four = _mm512_packus_epi16(_mm512_packs_epi32(v[0], v[1]), _mm512_packs_epi32(v[2], v[3]));
            four = _mm512_shuffle_epi8(four, close);
            store_pixels(g.dst[0] + 3 * (size_t)i, _mm512_castsi512_si128(four), n - i);
            store_pixels(g.dst[1] + 3 * (size_t)i, _mm512_extracti32x4_epi32(four, 1), n - i);
            store_pixels(g.dst[2] + 3 * (size_t)i, _mm512_extracti32x4_epi32(four, 2), n - i);
            store_pixels(g.dst[3] + 3 * (size_t)i, _mm512_extracti32x4_epi32(four, 3), n - i);
        }
    }
}

AVX2 static void pack_avx2(uint8_t *packed, const uint8_t *const *row, int n, int zeros) {
    const __m256i spread = _mm256_broadcastsi128_si256(_mm_setr_epi8(SPREAD_PIXELS)), turn = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    int x = 0;
    for (; x + 6 <= n; x += 4) {
        size_t at = 3 * (size_t)x;
        __m256i v = _mm256_castsi128_si256(_mm_loadu_si128((const void *)(row[0] + at)));
        v = _mm256_inserti128_si256(v, _mm_loadu_si128((const void *)(row[1] + at)), 1);
        _mm256_storeu_si256((void *)(packed + (size_t)x * 8), _mm256_permutevar8x32_epi32(_mm256_shuffle_epi8(v, spread), turn));
    }
    pack_rest(packed, row, 2, x, n, zeros);
}

#define TAP256(at) _mm256_cvtepu8_epi32(_mm_loadl_epi64((const void *)(at)))

AVX2 static inline void sums_avx2(__m256i v[4], const uint8_t *const s[4], const int32_t *const k[4], int most) {
    __m256i a = _mm256_set1_epi32(KD_WEIGHT_HALF), b = a, c = a, d = a;
    for (int t = 0; t < most; t++) {
        a = _mm256_add_epi32(a, _mm256_mullo_epi32(TAP256(s[0] + 8 * (size_t)t), _mm256_set1_epi32(k[0][t])));
        b = _mm256_add_epi32(b, _mm256_mullo_epi32(TAP256(s[1] + 8 * (size_t)t), _mm256_set1_epi32(k[1][t])));
        c = _mm256_add_epi32(c, _mm256_mullo_epi32(TAP256(s[2] + 8 * (size_t)t), _mm256_set1_epi32(k[2][t])));
        d = _mm256_add_epi32(d, _mm256_mullo_epi32(TAP256(s[3] + 8 * (size_t)t), _mm256_set1_epi32(k[3][t])));
    }
    v[0] = _mm256_srai_epi32(a, KD_WEIGHT_BITS);
    v[1] = _mm256_srai_epi32(b, KD_WEIGHT_BITS);
    v[2] = _mm256_srai_epi32(c, KD_WEIGHT_BITS);
    v[3] = _mm256_srai_epi32(d, KD_WEIGHT_BITS);
}

AVX2 static void horizontal_avx2(uint8_t *dst, const uint8_t *src, size_t src_stride, int rows, const kd_pass *p, int n, uint8_t *packed) {
    const int first = p->taps[0].first, inputs = p->taps[n - 1].first + p->taps[n - 1].count - first, most = p->most;
    const __m256i close = _mm256_broadcastsi128_si256(_mm_setr_epi8(CLOSE_PIXELS));
    for (int y = 0; y < rows; y += 2) {
        group g = group_at(dst, src, src_stride, rows, p, n, y, 2);
        pack_avx2(packed, g.src, inputs, most);
        for (int i = 0; i < n; i += 4) {
            __m256i v[4];
            const uint8_t *s[4];
            const int32_t *k[4];
            for (int j = 0; j < 4; j++) {
                int o = least(i + j, n - 1);
                s[j] = packed + 8 * (size_t)(p->taps[o].first - first);
                k[j] = p->weight + (size_t)o * p->stride;
            }
            sums_avx2(v, s, k, most);
            __m256i four = _mm256_packus_epi16(_mm256_packs_epi32(v[0], v[1]), _mm256_packs_epi32(v[2], v[3]));
            four = _mm256_shuffle_epi8(four, close);
            store_pixels(g.dst[0] + 3 * (size_t)i, _mm256_castsi256_si128(four), n - i);
            store_pixels(g.dst[1] + 3 * (size_t)i, _mm256_extracti128_si256(four, 1), n - i);
        }
    }
}

AVX2 static void vertical_avx2(uint8_t *dst, const uint8_t *src, size_t src_stride, const int32_t *weight, int count, size_t n) {
    enum { STEP = 16 };
    if (n < STEP) {
        vertical_plain(dst, src, src_stride, weight, count, n);
        return;
    }
    for (size_t next = 0; next < n; next += STEP) {
        size_t j = next + STEP <= n ? next : n - STEP; /* the last step overlaps the one before */
        __m256i a = _mm256_set1_epi32(KD_WEIGHT_HALF), b = a;
        const uint8_t *s = src + j;
        for (int t = 0; t < count; t++, s += src_stride) {
            __m256i k = _mm256_set1_epi32(weight[t]);
            a = _mm256_add_epi32(a, _mm256_mullo_epi32(_mm256_cvtepu8_epi32(_mm_loadl_epi64((const void *)s)), k));
            b = _mm256_add_epi32(b, _mm256_mullo_epi32(_mm256_cvtepu8_epi32(_mm_loadl_epi64((const void *)(s + 8))), k));
        }
        __m256i words = _mm256_packs_epi32(_mm256_srai_epi32(a, KD_WEIGHT_BITS), _mm256_srai_epi32(b, KD_WEIGHT_BITS));
        words = _mm256_permute4x64_epi64(words, 0xD8); /* packs works within halves: a0 b0 a1 b1 -> a0 a1 b0 b1 */
        _mm_storeu_si128((void *)(dst + j), _mm_packus_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1)));
    }
}

AVX512 static void vertical_avx512(uint8_t *dst, const uint8_t *src, size_t src_stride,
                                                                                       const int32_t *weight, int count, size_t n) {
    enum { STEP = 32 };
    if (n < STEP) {
        vertical_plain(dst, src, src_stride, weight, count, n);
        return;
    }
    for (size_t next = 0; next < n; next += STEP) {
        size_t j = next + STEP <= n ? next : n - STEP;
        __m512i a = _mm512_set1_epi32(KD_WEIGHT_HALF), b = a;
        const uint8_t *s = src + j;
        for (int t = 0; t < count; t++, s += src_stride) {
            __m512i k = _mm512_set1_epi32(weight[t]);
            a = _mm512_add_epi32(a, _mm512_mullo_epi32(_mm512_cvtepu8_epi32(_mm_loadu_si128((const void *)s)), k));
            b = _mm512_add_epi32(b, _mm512_mullo_epi32(_mm512_cvtepu8_epi32(_mm_loadu_si128((const void *)(s + 16))), k));
        }
        /* Clip below, then narrow with unsigned saturation. */
        const __m512i zero = _mm512_setzero_si512();
        a = _mm512_max_epi32(_mm512_srai_epi32(a, KD_WEIGHT_BITS), zero);
        b = _mm512_max_epi32(_mm512_srai_epi32(b, KD_WEIGHT_BITS), zero);
        _mm_storeu_si128((void *)(dst + j), _mm512_cvtusepi32_epi8(a));
        _mm_storeu_si128((void *)(dst + j + 16), _mm512_cvtusepi32_epi8(b));
    }
}

static const kd_resample_kernels kernels_avx2 = {"avx2", horizontal_avx2, vertical_avx2};
static const kd_resample_kernels kernels_avx512 = {"avx512", horizontal_avx512, vertical_avx512};
#endif

size_t kd_resample_variants(const kd_resample_kernels *out[3]) {
    size_t n = 0;
#if defined(__x86_64__) && defined(__GNUC__)
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq"))
        out[n++] = &kernels_avx512;
    if (__builtin_cpu_supports("avx2"))
        out[n++] = &kernels_avx2;
#endif
    out[n++] = &kd_resample_plain;
    return n;
}

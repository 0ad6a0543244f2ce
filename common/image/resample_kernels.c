/* Inner loops of resampling: see resample_kernels.h. */
#include "common/image/resample_kernels.h"

#include <string.h>

static void horizontal_plain(uint8_t *dst, const uint8_t *src, const kd_taps *taps, const int32_t *weight, size_t stride, int n) {
    for (int i = 0; i < n; i++, dst += 3, weight += stride) {
        const uint8_t *s = src + 3 * (size_t)taps[i].first;
        int32_t r = KD_WEIGHT_HALF, g = r, b = r;
        for (int t = 0; t < taps[i].count; t++, s += 3) {
            int32_t k = weight[KD_SPREAD * t];
            r += s[0] * k;
            g += s[1] * k;
            b += s[2] * k;
        }
        dst[0] = kd_clip8(r);
        dst[1] = kd_clip8(g);
        dst[2] = kd_clip8(b);
    }
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

const kd_resample_kernels kd_resample_plain = {"plain", horizontal_plain, 0, vertical_plain};

#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>

/* Bytes of up to four pixels to lanes (R, G, B, unused) of 32 bits; 0x80 gives zero. The fourth lane is a zero, whatever its weight. */
#define LANES_OF_PIXEL(p) 3 * (p), -128, -128, -128, 3 * (p) + 1, -128, -128, -128, 3 * (p) + 2, -128, -128, -128, -128, -128, -128, -128

static inline void store_pixel(uint8_t *dst, uint32_t rgb, int last) {
    if (last) {
        memcpy(dst, &rgb, 3);
    } else {
        memcpy(dst, &rgb, 4); /* the fourth byte is the next pixel's first, written next */
    }
}

/* Four rounded sums to four bytes: arithmetic shift, then two saturating packs (sums stay within 16 bits after the shift). */
__attribute__((target("avx2"))) static inline uint32_t clip_lanes(__m128i sum) {
    sum = _mm_srai_epi32(sum, KD_WEIGHT_BITS);
    sum = _mm_packs_epi32(sum, sum);
    return (uint32_t)_mm_cvtsi128_si32(_mm_packus_epi16(sum, sum));
}

__attribute__((target("avx2"))) static void horizontal_avx2(uint8_t *dst, const uint8_t *src, const kd_taps *taps, const int32_t *weight,
                                                            size_t stride, int n) {
    const __m256i pair0 = _mm256_setr_epi8(LANES_OF_PIXEL(0), LANES_OF_PIXEL(1)), pair1 = _mm256_setr_epi8(LANES_OF_PIXEL(2), LANES_OF_PIXEL(3));
    for (int i = 0; i < n; i++, dst += 3, weight += stride) {
        const uint8_t *s = src + 3 * (size_t)taps[i].first;
        const int32_t *k = weight;
        __m256i sum = _mm256_setr_epi32(KD_WEIGHT_HALF, KD_WEIGHT_HALF, KD_WEIGHT_HALF, 0, 0, 0, 0, 0);
        for (int t = 0; t < taps[i].count; t += KD_TAP_GROUP, s += 3 * KD_TAP_GROUP, k += KD_SPREAD * KD_TAP_GROUP) {
            __m256i bytes = _mm256_broadcastsi128_si256(_mm_loadu_si128((const void *)s));
            __m256i a = _mm256_mullo_epi32(_mm256_shuffle_epi8(bytes, pair0), _mm256_loadu_si256((const void *)k));
            __m256i b = _mm256_mullo_epi32(_mm256_shuffle_epi8(bytes, pair1), _mm256_loadu_si256((const void *)(k + 8)));
            sum = _mm256_add_epi32(sum, _mm256_add_epi32(a, b));
        }
        store_pixel(dst, clip_lanes(_mm_add_epi32(_mm256_castsi256_si128(sum), _mm256_extracti128_si256(sum, 1))), i == n - 1);
    }
}

__attribute__((target("avx512f,avx512bw,avx512vl,avx512dq"))) static void horizontal_avx512(uint8_t *dst, const uint8_t *src, const kd_taps *taps,
                                                                                         const int32_t *weight, size_t stride, int n) {
    static const int8_t order[64] = {LANES_OF_PIXEL(0), LANES_OF_PIXEL(1), LANES_OF_PIXEL(2), LANES_OF_PIXEL(3)};
    const __m512i lanes = _mm512_loadu_si512(order);
    for (int i = 0; i < n; i++, dst += 3, weight += stride) {
        const uint8_t *s = src + 3 * (size_t)taps[i].first;
        const int32_t *k = weight;
        __m512i sum = _mm512_zextsi128_si512(_mm_set1_epi32(KD_WEIGHT_HALF));
        for (int t = 0; t < taps[i].count; t += KD_TAP_GROUP, s += 3 * KD_TAP_GROUP, k += KD_SPREAD * KD_TAP_GROUP) {
            __m512i bytes = _mm512_broadcast_i32x4(_mm_loadu_si128((const void *)s));
            sum = _mm512_add_epi32(sum, _mm512_mullo_epi32(_mm512_shuffle_epi8(bytes, lanes), _mm512_loadu_si512(k)));
        }
        __m256i half = _mm256_add_epi32(_mm512_castsi512_si256(sum), _mm512_extracti32x8_epi32(sum, 1));
        store_pixel(dst, clip_lanes(_mm_add_epi32(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1))), i == n - 1);
    }
}

__attribute__((target("avx2"))) static void vertical_avx2(uint8_t *dst, const uint8_t *src, size_t src_stride, const int32_t *weight, int count, size_t n) {
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

__attribute__((target("avx512f,avx512bw,avx512vl,avx512dq"))) static void vertical_avx512(uint8_t *dst, const uint8_t *src, size_t src_stride,
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

/* 16 bytes are read for 12 used ones, and up to three padding pixels. */
enum { OVERREAD = 3 * (KD_TAP_GROUP - 1) + 4 };
static const kd_resample_kernels kernels_avx2 = {"avx2", horizontal_avx2, OVERREAD, vertical_avx2};
static const kd_resample_kernels kernels_avx512 = {"avx512", horizontal_avx512, OVERREAD, vertical_avx512};
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

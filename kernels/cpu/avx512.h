/* What the AVX-512 files share: targets, masks, bf16, functions on sixteen lanes by its own instructions. Inside kernels/cpu only, in files whose name ends in _avx512 and in simd.h for them. */
#ifndef KD_KERNELS_CPU_AVX512_H
#define KD_KERNELS_CPU_AVX512_H

#include <immintrin.h>
#include <stddef.h>
#include <stdint.h>

#define KD_AVX512 "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma"
#define KD_AVX512_BF16 KD_AVX512 ",avx512bf16"
#define KD_WIDE __attribute__((target(KD_AVX512)))
#define KD_WIDE_BF16 __attribute__((target(KD_AVX512_BF16)))
#define KD_WIDE_LANE __attribute__((target(KD_AVX512), always_inline, unused)) static inline
#define KD_WIDE_BF16_LANE __attribute__((target(KD_AVX512_BF16), always_inline, unused)) static inline

enum { KD_LANES16 = 16 };

/* The first n lanes. */
KD_WIDE_LANE __mmask16 kd_first16(size_t n) {
    return n >= KD_LANES16 ? 0xffff : (__mmask16)((1u << n) - 1);
}

/* bf16 lanes as f32, 0 where the mask leaves them out. */
KD_WIDE_LANE __m512 kd_widen16(__mmask16 here, const uint16_t *p) {
    return (__m512)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(here, p)), 16);
}

/* Rounded to nearest even; subnormals become 0, as in the dot products that read them. */
KD_WIDE_BF16_LANE void kd_narrow16(uint16_t *p, __mmask16 here, __m512 v) {
    _mm256_mask_storeu_epi16(p, here, (__m256i)_mm512_cvtneps_pbh(v));
}

/* sum += value b; bf16: of pairs. By their names, because gcc 12 moves sums between registers, and to memory, in order to use the other forms of the first. */
#define KD_MADD_F32(sum, value, b) __asm__("vfmadd231ps %2, %1, %0" : "+v"(sum) : "v"(value), "v"(b))
#define KD_MADD_BF16(sum, value, b) __asm__("vdpbf16ps %2, %1, %0" : "+v"(sum) : "v"(value), "v"(b))

/* An f32 or a pair of bf16, which may lie at an odd one. */
typedef int32_t kd_any32 __attribute__((may_alias, aligned(2)));

/* Row m of a tile, sum[m][vectors] += the value at `at` times b0 and, of two vectors, b1: names of the caller's. */
#define KD_ROW(madd, m, at) \
    do { \
        __m512i value_ = _mm512_set1_epi32(*(const kd_any32 *)(at)); \
        madd(sum[m][0], value_, b0); \
        if (vectors > 1) \
            madd(sum[m][1], value_, b1); \
    } while (0)

/* Sixteen rows of sixteen become columns: as 4 x 4 blocks of 4 x 4. */
KD_WIDE_LANE void kd_turn16(__m512i to[KD_LANES16], const __m512i from[KD_LANES16]) {
    __m512i pair[KD_LANES16], four[KD_LANES16], half[KD_LANES16];
#pragma GCC unroll 8
    for (int i = 0; i < KD_LANES16; i += 2) {
        pair[i] = _mm512_unpacklo_epi32(from[i], from[i + 1]);
        pair[i + 1] = _mm512_unpackhi_epi32(from[i], from[i + 1]);
    }
#pragma GCC unroll 4
    for (int i = 0; i < KD_LANES16; i += 4) { /* four[i + s]: columns s, s + 4, s + 8, s + 12 of rows i .. i + 3 */
        four[i] = _mm512_unpacklo_epi64(pair[i], pair[i + 2]);
        four[i + 1] = _mm512_unpackhi_epi64(pair[i], pair[i + 2]);
        four[i + 2] = _mm512_unpacklo_epi64(pair[i + 1], pair[i + 3]);
        four[i + 3] = _mm512_unpackhi_epi64(pair[i + 1], pair[i + 3]);
    }
#pragma GCC unroll 4
    for (int s = 0; s < 4; s++) {
        half[s] = _mm512_shuffle_i32x4(four[s], four[4 + s], 0x88);
        half[4 + s] = _mm512_shuffle_i32x4(four[s], four[4 + s], 0xdd);
        half[8 + s] = _mm512_shuffle_i32x4(four[8 + s], four[12 + s], 0x88);
        half[12 + s] = _mm512_shuffle_i32x4(four[8 + s], four[12 + s], 0xdd);
    }
#pragma GCC unroll 4
    for (int s = 0; s < 4; s++) { /* columns 4 .. 7 and 12 .. 15 are in the second halves */
        to[s] = _mm512_shuffle_i32x4(half[s], half[8 + s], 0x88);
        to[4 + s] = _mm512_shuffle_i32x4(half[4 + s], half[12 + s], 0x88);
        to[8 + s] = _mm512_shuffle_i32x4(half[s], half[8 + s], 0xdd);
        to[12 + s] = _mm512_shuffle_i32x4(half[4 + s], half[12 + s], 0xdd);
    }
}

/* 2^x for |x| < 2^22, to about 1.2e-7 relative; 0 where it is below the smallest f32. The polynomial: least squares, reweighted for the smallest relative error of 2^f on [-1/2, 1/2] (2e-9); one after the other its
 * terms keep the units for multiplications the least busy. */
KD_WIDE_LANE __m512 kd_power_of_two(__m512 x) {
    const __m512 round = _mm512_set1_ps(12582912.0f); /* 1.5 2^23: adding it leaves no room for a fraction */
    __m512 whole = _mm512_sub_ps(_mm512_add_ps(x, round), round), f = _mm512_sub_ps(x, whole);
    __m512 p = _mm512_fmadd_ps(_mm512_set1_ps(1.53533621e-4f), f, _mm512_set1_ps(1.33988746e-3f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(9.61843736e-3f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(5.55033247e-2f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(0.240226479f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(0.693147203f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(1));
    return _mm512_scalef_ps(p, whole);
}

#endif

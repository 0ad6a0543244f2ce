/* The products of product.h and outer.h with AVX2, whose 6 x 16 sums stay in registers: twelve sums, two vectors and one value fill the sixteen. Inside kernels/cpu only. */
#ifndef KD_KERNELS_CPU_F32_TILE_H
#define KD_KERNELS_CPU_F32_TILE_H

#include <immintrin.h>

#include "kernels/cpu/outer.h"
#include "kernels/cpu/product.h"

#define KD_AVX2 __attribute__((target("avx2,fma")))

enum { KD_F32_ROWS = 6, KD_F32_COLUMNS = 16, KD_F32_TILE = KD_F32_ROWS * KD_F32_COLUMNS };

/* Eight unrolled turns of the first product's loop and a rest of single ones save a tenth of its time where another machine's work shares the core; in the second they save nothing. */
enum { KD_F32_UNROLL = 8 };

/* The twelve multiply-adds of one k or pixel: v[m] of six values times 16 of another side. */
#define KD_F32_ROW(m, value, b0, b1) \
    do { \
        __m256 kd_value = _mm256_broadcast_ss(value); \
        sum[m][0] = _mm256_fmadd_ps(kd_value, b0, sum[m][0]); \
        sum[m][1] = _mm256_fmadd_ps(kd_value, b1, sum[m][1]); \
    } while (0)

/* out[ld m + column], six rows of 16 = sum over taps and k < depth of row[m][k] * panel[at][16 k + column]. */
KD_AVX2 static inline void kd_f32_tile_sum(float *out, size_t ld, const kd_product_tap *t, size_t taps, size_t depth, const char *panel) {
    __m256 sum[KD_F32_ROWS][2];
#pragma GCC unroll 6
    for (int m = 0; m < KD_F32_ROWS; m++)
        sum[m][0] = sum[m][1] = _mm256_setzero_ps();
    for (size_t i = 0; i < taps; i++) {
        const float *b = (const void *)(panel + t[i].at);
        const float *const row0 = (const void *)t[i].row[0], *const row1 = (const void *)t[i].row[1], *const row2 = (const void *)t[i].row[2];
        const float *const row3 = (const void *)t[i].row[3], *const row4 = (const void *)t[i].row[4], *const row5 = (const void *)t[i].row[5];
#define TURN(k, b) \
    do { \
        __m256 b0 = _mm256_load_ps(b), b1 = _mm256_load_ps((b) + 8); \
        KD_F32_ROW(0, row0 + (k), b0, b1); \
        KD_F32_ROW(1, row1 + (k), b0, b1); \
        KD_F32_ROW(2, row2 + (k), b0, b1); \
        KD_F32_ROW(3, row3 + (k), b0, b1); \
        KD_F32_ROW(4, row4 + (k), b0, b1); \
        KD_F32_ROW(5, row5 + (k), b0, b1); \
    } while (0)
        size_t k = 0;
        for (; k + KD_F32_UNROLL <= depth; k += KD_F32_UNROLL, b += (size_t)KD_F32_UNROLL * KD_F32_COLUMNS)
#pragma GCC unroll 8
            for (size_t u = 0; u < KD_F32_UNROLL; u++)
                TURN(k + u, b + u * KD_F32_COLUMNS);
        for (; k < depth; k++, b += KD_F32_COLUMNS)
            TURN(k, b);
#undef TURN
    }
#pragma GCC unroll 6
    for (int m = 0; m < KD_F32_ROWS; m++) {
        _mm256_storeu_ps(out + (size_t)m * ld, sum[m][0]);
        _mm256_storeu_ps(out + (size_t)m * ld + 8, sum[m][1]);
    }
}

/* sums[6][16] = or += sum over a tap's lines and steps of x[m] * g[column] (outer.h). */
KD_AVX2 static inline void kd_f32_tile_outer(float *sums, int add, const kd_outer_tap *t, const float *x, const float *gradient) {
    __m256 sum[KD_F32_ROWS][2];
    size_t step = t->step / sizeof *x;
#pragma GCC unroll 6
    for (int m = 0; m < KD_F32_ROWS; m++)
        sum[m][0] = sum[m][1] = _mm256_setzero_ps();
    for (size_t l = 0; l < t->lines; l++) {
        const float *at = x + t->run[l].source / sizeof *x, *g = gradient + t->run[l].gradient / sizeof *g;
        for (size_t i = 0; i < t->steps; i++, at += step, g += KD_F32_COLUMNS) {
            __m256 g0 = _mm256_load_ps(g), g1 = _mm256_load_ps(g + 8);
            KD_F32_ROW(0, at, g0, g1);
            KD_F32_ROW(1, at + 1, g0, g1);
            KD_F32_ROW(2, at + 2, g0, g1);
            KD_F32_ROW(3, at + 3, g0, g1);
            KD_F32_ROW(4, at + 4, g0, g1);
            KD_F32_ROW(5, at + 5, g0, g1);
        }
    }
#pragma GCC unroll 6
    for (int m = 0; m < KD_F32_ROWS; m++) {
        float *to = sums + m * KD_F32_COLUMNS;
        _mm256_store_ps(to, add ? _mm256_add_ps(_mm256_load_ps(to), sum[m][0]) : sum[m][0]);
        _mm256_store_ps(to + 8, add ? _mm256_add_ps(_mm256_load_ps(to + 8), sum[m][1]) : sum[m][1]);
    }
}

#undef KD_F32_ROW

/* Eight columns of eight rows, `step` apart, as rows that are `ld` apart. */
KD_AVX2 static inline void kd_f32_turn8(float *out, size_t ld, const float *from, size_t step) {
    __m256 row[8], pair[8], four[8];
#pragma GCC unroll 8
    for (size_t i = 0; i < 8; i++)
        row[i] = _mm256_loadu_ps(from + i * step);
#pragma GCC unroll 4
    for (size_t i = 0; i < 8; i += 2) {
        pair[i] = _mm256_unpacklo_ps(row[i], row[i + 1]);
        pair[i + 1] = _mm256_unpackhi_ps(row[i], row[i + 1]);
    }
#pragma GCC unroll 2
    for (size_t i = 0; i < 8; i += 4) {
        four[i] = _mm256_shuffle_ps(pair[i], pair[i + 2], 0x44);
        four[i + 1] = _mm256_shuffle_ps(pair[i], pair[i + 2], 0xee);
        four[i + 2] = _mm256_shuffle_ps(pair[i + 1], pair[i + 3], 0x44);
        four[i + 3] = _mm256_shuffle_ps(pair[i + 1], pair[i + 3], 0xee);
    }
#pragma GCC unroll 4
    for (size_t i = 0; i < 4; i++) {
        _mm256_storeu_ps(out + i * ld, _mm256_permute2f128_ps(four[i], four[i + 4], 0x20));
        _mm256_storeu_ps(out + (i + 4) * ld, _mm256_permute2f128_ps(four[i], four[i + 4], 0x31));
    }
}

#endif

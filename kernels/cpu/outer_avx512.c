/* outer.h with AVX-512: tiles of up to 13 x 32, 26 sums in registers; for a step two vectors of the gradient and 13 values of x, each spread over a vector. A processor does two such multiply-adds a cycle. Thirteen, because the usual
 * numbers of channels, powers of two and multiples of 48, divide into blocks of 12 or 13 with 2 % left over. */
#include "kernels/cpu/avx512.h"
#include "kernels/cpu/outer.h"

enum { LANES = KD_LANES16, COLUMNS = 2 * LANES, STEP = 4, MOST_ROWS = 13, PANEL_STEP = COLUMNS * STEP };

/* Blocks of the same size, as far as there are tiles for it. */
static size_t rows_for(size_t width) {
    size_t blocks = (width + MOST_ROWS - 1) / MOST_ROWS, rows = (width + blocks - 1) / blocks;
    return rows <= 4 ? 4 : rows <= 8 ? 8 : rows <= 10 ? 10 : rows;
}

/* ---- copying ---- */

KD_WIDE_LANE __m512i step_of(const kd_outer_copy *c, kd_dtype type, size_t at, __mmask16 here) {
    if (type == KD_F32)
        return _mm512_maskz_loadu_epi32(here, c->from + at);
    __m512i low = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(here, c->from + at));
    if (!c->second)
        return low;
    return _mm512_or_si512(low, _mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(here, c->second + at)), 16));
}

/* Of every pixel the channels from `channel` on: one or two vectors, whole ones. */
KD_WIDE_LANE void copy_channels(const kd_outer_copy *c, kd_dtype type, char *to, size_t channel, size_t n, const int vectors) {
    __mmask16 here0 = kd_first16(n), here1 = kd_first16(n > LANES ? n - LANES : 0);
    size_t element = type == KD_F32 ? 4 : 2, at = channel * element;
    for (size_t i = 0; i < c->pixels; i++, to += c->rows * STEP, at += c->pixel) {
        _mm512_storeu_si512(to, step_of(c, type, at, here0));
        if (vectors > 1)
            _mm512_storeu_si512(to + LANES * STEP, step_of(c, type, at + LANES * element, here1));
    }
}

KD_WIDE_LANE void copy_as(const kd_outer_copy *c, kd_dtype type) {
    char *to = c->to;
    for (size_t first = 0; first < c->channels; first += c->rows, to += c->panel) {
        size_t n = c->channels - first < c->rows ? c->channels - first : c->rows, j = 0;
        for (; j + LANES < c->rows; j += 2 * LANES)
            copy_channels(c, type, to + j * STEP, first + j, n > j ? n - j : 0, 2);
        if (j < c->rows)
            copy_channels(c, type, to + j * STEP, first + j, n > j ? n - j : 0, 1);
    }
}

KD_WIDE static void copy(kd_dtype type, const kd_outer_copy *c) {
    if (type == KD_F32)
        copy_as(c, KD_F32);
    else
        copy_as(c, KD_BF16);
}

/* ---- tiles ---- */

#define TILE(name, isa, madd) \
    __attribute__((target(isa), always_inline)) static inline void name(float *sums, int add, const kd_outer_tap *t, const char *source, const char *gradient, const int rows, const int vectors) { \
        __m512 sum[MOST_ROWS][2]; \
        size_t step = t->step, steps = t->steps; \
        _Pragma("GCC unroll 13") for (int m = 0; m < rows; m++) sum[m][0] = sum[m][1] = _mm512_setzero_ps(); \
        for (size_t l = 0; l < t->lines; l++) { \
            const char *a = source + t->run[l].source, *b = gradient + t->run[l].gradient; \
            for (size_t i = 0; i < steps; i++, a += step, b += PANEL_STEP) { \
                __m512i b0 = _mm512_load_si512(b), b1 = vectors > 1 ? _mm512_load_si512(b + LANES * STEP) : b0; \
                _Pragma("GCC unroll 13") for (int m = 0; m < rows; m++) KD_ROW(madd, m, a + m * STEP); \
            } \
        } \
        _Pragma("GCC unroll 13") for (int m = 0; m < rows; m++) _Pragma("GCC unroll 2") for (int v = 0; v < vectors; v++) { \
            float *to = sums + m * COLUMNS + v * LANES; \
            _mm512_store_ps(to, add ? _mm512_add_ps(_mm512_load_ps(to), sum[m][v]) : sum[m][v]); \
        } \
    }
TILE(tile_f32, KD_AVX512, KD_MADD_F32)
TILE(tile_bf16, KD_AVX512_BF16, KD_MADD_BF16)

#define ROWS(tile, n) \
    case n: \
        if (columns > LANES) \
            tile(sums, add, t, source, gradient, n, 2); \
        else \
            tile(sums, add, t, source, gradient, n, 1); \
        break

#define TILES(name, isa, tile) \
    __attribute__((target(isa))) static void name(float *sums, int add, const kd_outer_tap *t, const char *source, const char *gradient, size_t rows, size_t columns) { \
        switch (rows) { \
            ROWS(tile, 4); \
            ROWS(tile, 8); \
            ROWS(tile, 10); \
            ROWS(tile, 11); \
            ROWS(tile, 12); \
            ROWS(tile, 13); \
        } \
    }
TILES(tiles_f32, KD_AVX512, tile_f32)
TILES(tiles_bf16, KD_AVX512_BF16, tile_bf16)

static void tile(kd_dtype type, float *sums, int add, const kd_outer_tap *t, const char *source, const char *gradient, size_t rows, size_t columns) {
    if (type == KD_F32)
        tiles_f32(sums, add, t, source, gradient, rows, columns);
    else
        tiles_bf16(sums, add, t, source, gradient, rows, columns);
}

/* ---- sums ---- */

KD_WIDE static void add_turned(float *dw, size_t distance, const float *const *sums, size_t n, size_t columns) {
    __mmask16 here = kd_first16(n);
    for (size_t first = 0; first < columns; first += LANES) {
        __m512i from[LANES], to[LANES];
        size_t channels = columns - first < LANES ? columns - first : LANES;
        for (size_t i = 0; i < LANES; i++)
            from[i] = i < n ? _mm512_load_si512(sums[i] + first) : _mm512_setzero_si512();
        kd_turn16(to, from);
        for (size_t j = 0; j < channels; j++) {
            float *at = dw + (first + j) * distance;
            _mm512_mask_storeu_ps(at, here, _mm512_add_ps(_mm512_maskz_loadu_ps(here, at), (__m512)to[j]));
        }
    }
}

const kd_outer_kind kd_outer_avx512 = {COLUMNS, rows_for, copy, tile, add_turned};

/* outer.h with AVX2 and FMA, f32: tiles of 6 x 16 (f32_tile.h). */
#include <string.h>

#include "kernels/cpu/f32_tile.h"
#include "kernels/cpu/outer.h"

enum { ROWS = KD_F32_ROWS, COLUMNS = KD_F32_COLUMNS };

static size_t rows_for(size_t width) {
    (void)width;
    return ROWS;
}

/* n <= `whole` floats, and zeros up to it. */
static inline __attribute__((always_inline)) void copy_block(float *to, const float *from, size_t n, size_t whole) {
    if (n == whole) {
        memcpy(to, from, whole * sizeof *to);
        return;
    }
    memset(to, 0, whole * sizeof *to);
    memcpy(to, from, n * sizeof *to);
}

KD_AVX2 static void copy(kd_dtype type, const kd_outer_copy *c) {
    (void)type;
    for (size_t first = 0, b = 0; first < c->channels; first += c->rows, b++) {
        float *to = (float *)(c->to + b * c->panel);
        const char *from = c->from + first * sizeof *to;
        size_t left = c->channels - first, n = left < c->rows ? left : c->rows;
        for (size_t i = 0; i < c->pixels; i++, to += c->rows, from += c->pixel) {
            if (c->rows == ROWS)
                copy_block(to, (const float *)from, n, ROWS);
            else if (c->rows == COLUMNS)
                copy_block(to, (const float *)from, n, COLUMNS);
            else
                copy_block(to, (const float *)from, n, c->rows);
        }
    }
}

static void tile(kd_dtype type, float *sums, int add, const kd_outer_tap *t, const char *source, const char *gradient, size_t rows, size_t columns) {
    (void)type, (void)rows, (void)columns;
    kd_f32_tile_outer(sums, add, t, (const float *)source, (const float *)gradient);
}

/* Eight weights of sixteen channels by way of registers; fewer of either one by one. */
KD_AVX2 static void add_turned(float *dw, size_t distance, const float *const *sums, size_t n, size_t columns) {
    size_t i = 0;
    for (; columns == COLUMNS && i + 8 <= n; i += 8) {
        _Alignas(32) float rows[8][COLUMNS], turned[COLUMNS][8];
        for (size_t w = 0; w < 8; w++)
            memcpy(rows[w], sums[i + w], sizeof rows[w]);
        kd_f32_turn8(turned[0], 8, rows[0], COLUMNS);
        kd_f32_turn8(turned[8], 8, rows[0] + 8, COLUMNS);
        for (size_t j = 0; j < COLUMNS; j++)
            for (size_t w = 0; w < 8; w++)
                dw[j * distance + i + w] += turned[j][w];
    }
    for (; i < n; i++)
        for (size_t j = 0; j < columns; j++)
            dw[j * distance + i] += sums[i][j];
}

const kd_outer_kind kd_outer_avx2 = {COLUMNS, rows_for, copy, tile, add_turned};

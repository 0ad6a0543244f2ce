/* matmul.h with AVX2 and FMA, f32: on the tiles of f32_tile.h. */
#include <string.h>

#include "kernels/cpu/cpu.h"
#include "kernels/cpu/f32_tile.h"
#include "kernels/cpu/matmul.h"

enum { ROWS = KD_F32_ROWS, COLUMNS = KD_F32_COLUMNS };

static size_t panel_floats(const kd_matmul *m) {
    return (size_t)m->depth * COLUMNS;
}

static size_t panels_bytes(const kd_matmul *m) {
    return (size_t)((m->columns + COLUMNS - 1) / COLUMNS) * panel_floats(m) * sizeof(float);
}

/* Of a transposed a's last rows. */
static size_t strip_bytes(const kd_matmul *m) {
    return (size_t)m->depth * ROWS * sizeof(float);
}

/* Values k < depth of n columns, which lie `step` apart. */
static void gather(float *panel, const float *from, int64_t n, size_t step, int64_t first, int64_t depth) {
    for (int64_t k = first; k < depth; k++)
        for (int64_t j = 0; j < n; j++)
            panel[k * COLUMNS + j] = from[(size_t)j * step + (size_t)k];
}

KD_AVX2 static void turn(float *panel, const float *from, size_t step, int64_t depth) {
    int64_t k = 0;
    for (; k + 8 <= depth; k += 8) {
        kd_f32_turn8(panel + k * COLUMNS, COLUMNS, from + k, step);
        kd_f32_turn8(panel + k * COLUMNS + 8, COLUMNS, from + k + 8 * step, step);
    }
    gather(panel, from, COLUMNS, step, k, depth);
}

/* The last panel has columns of zeros. Either of b's distances is 1. */
static void matmul_pack(const kd_matmul *m, const void *from_b, void *panels) {
    const float *b = from_b;
    float *panel = panels;
    for (int64_t first = 0; first < m->columns; first += COLUMNS, panel += panel_floats(m)) {
        int64_t n = m->columns - first < COLUMNS ? m->columns - first : COLUMNS;
        const float *from = b + first * m->b_column;
        if (n < COLUMNS)
            memset(panel, 0, panel_floats(m) * sizeof *panel);
        if (m->b_column == 1 && n == COLUMNS)
            for (int64_t k = 0; k < m->depth; k++)
                memcpy(panel + k * COLUMNS, from + k * m->b_row, COLUMNS * sizeof *panel);
        else if (m->b_column == 1)
            for (int64_t k = 0; k < m->depth; k++)
                memcpy(panel + k * COLUMNS, from + k * m->b_row, (size_t)n * sizeof *panel);
        else if (n == COLUMNS)
            turn(panel, from, (size_t)m->b_column, m->depth);
        else
            gather(panel, from, n, (size_t)m->b_column, 0, m->depth);
    }
}

/* Six rows of a, as addresses of rows or (transposed) as columns that lie side by side. */
typedef struct strip {
    kd_product_tap rows;
    const float *columns;
    size_t step;
} strip;

/* The n rows from `first` on; those beyond repeat the last or, transposed, are zeros. */
static strip strip_of(const kd_matmul *m, const float *a, int64_t first, int64_t n, float *copy) {
    strip s = {.columns = a + first, .step = (size_t)m->a_column};
    for (int64_t i = 0; i < ROWS; i++)
        s.rows.row[i] = (const char *)(a + (first + (i < n ? i : n - 1)) * m->a_row);
    if (m->a_column == 1 || n == ROWS)
        return s;
    memset(copy, 0, (size_t)m->depth * ROWS * sizeof *copy);
    for (int64_t k = 0; k < m->depth; k++)
        memcpy(copy + k * ROWS, a + first + k * m->a_column, (size_t)n * sizeof *copy);
    s.columns = copy;
    s.step = ROWS;
    return s;
}

KD_AVX2 static void store(const kd_matmul *m, float *c, const float *sum, int64_t rows, int64_t columns) {
    for (int64_t r = 0; r < rows; r++, c += m->c_row, sum += COLUMNS) {
        if (columns == COLUMNS && !m->add)
            memcpy(c, sum, COLUMNS * sizeof *c);
        else
            for (int64_t j = 0; j < columns; j++)
                c[j] = m->add ? c[j] + sum[j] : sum[j];
    }
}

/* The strip times one panel, into c. */
KD_AVX2 static void tile(const kd_matmul *m, float *c, const strip *s, const float *panel, int64_t rows, int64_t columns) {
    _Alignas(64) float sum[KD_F32_TILE];
    if (m->a_column == 1 && rows == ROWS && (columns == COLUMNS || m->pads) && !m->add) {
        kd_f32_tile_sum(c, (size_t)m->c_row, &s->rows, 1, (size_t)m->depth, (const char *)panel);
        return;
    }
    if (m->a_column == 1)
        kd_f32_tile_sum(sum, COLUMNS, &s->rows, 1, (size_t)m->depth, (const char *)panel);
    else
        kd_f32_tile_outer(sum, 0, &(kd_outer_tap){&(kd_outer_run){0, 0}, 1, (size_t)m->depth, s->step * sizeof(float)}, s->columns, panel);
    store(m, c, sum, rows, m->pads ? COLUMNS : columns);
}

static void matmul_rows(const kd_matmul *m, void *to_c, const void *from_a, int64_t rows, const void *from_panels, void *strip_work) {
    const float *a = from_a, *panels = from_panels;
    float *c = to_c;
    for (int64_t r = 0; r < rows; r += ROWS) {
        int64_t n = rows - r < ROWS ? rows - r : ROWS;
        strip s = strip_of(m, a, r, n, strip_work);
        for (int64_t j = 0; j < m->columns; j += COLUMNS)
            tile(m, c + r * m->c_row + j, &s, panels + (size_t)(j / COLUMNS) * panel_floats(m), n, m->columns - j < COLUMNS ? m->columns - j : COLUMNS);
    }
}

const kd_matmul_kind kd_matmul_avx2 = {ROWS, panels_bytes, strip_bytes, matmul_pack, matmul_rows};

/* Batched products of strided matrices on one thread: attention's (f32.h). */
#include <string.h>

#include "kernels/cpu/cpu.h"
#include "kernels/cpu/f32.h"
#include "kernels/cpu/f32_tile.h"

enum { ROWS = KD_F32_ROWS, COLUMNS = KD_F32_COLUMNS };

static size_t panel_floats(const kd_f32_matmul *m) {
    return (size_t)m->depth * COLUMNS;
}

size_t kd_f32_matmul_bytes(const kd_f32_matmul *m) {
    size_t at = 0;
    kd_cpu_region(&at, (size_t)((m->columns + COLUMNS - 1) / COLUMNS) * panel_floats(m) * sizeof(float));
    kd_cpu_region(&at, (size_t)m->depth * ROWS * sizeof(float));
    return at;
}

/* Panels of b, the last with columns of zeros. */
KD_AVX2 static void pack(const kd_f32_matmul *m, float *panels, const float *b) {
    for (int64_t first = 0; first < m->columns; first += COLUMNS) {
        int64_t n = m->columns - first < COLUMNS ? m->columns - first : COLUMNS;
        const float *from = b + first * m->b_column;
        if (n < COLUMNS)
            memset(panels, 0, panel_floats(m) * sizeof *panels);
        for (int64_t k = 0; k < m->depth; k++, panels += COLUMNS) {
            if (n == COLUMNS && m->b_column == 1)
                memcpy(panels, from + k * m->b_row, COLUMNS * sizeof *panels);
            else
                for (int64_t j = 0; j < n; j++)
                    panels[j] = from[k * m->b_row + j * m->b_column];
        }
    }
}

/* Six rows of a, as addresses of rows or (transposed) as columns that lie side by side. */
typedef struct strip {
    kd_f32_tap rows;
    const float *columns;
    size_t step;
} strip;

static strip strip_of(const kd_f32_matmul *m, const float *a, int64_t first, float *copy) {
    strip s = {.columns = a + first, .step = (size_t)m->a_column};
    int64_t n = m->rows - first < ROWS ? m->rows - first : ROWS;
    for (int64_t i = 0; i < ROWS; i++)
        s.rows.row[i] = a + (first + (i < n ? i : n - 1)) * m->a_row;
    if (m->a_column == 1 || n == ROWS)
        return s;
    memset(copy, 0, (size_t)m->depth * ROWS * sizeof *copy);
    for (int64_t k = 0; k < m->depth; k++)
        memcpy(copy + k * ROWS, a + first + k * m->a_column, (size_t)n * sizeof *copy);
    s.columns = copy;
    s.step = ROWS;
    return s;
}

KD_AVX2 static void store(const kd_f32_matmul *m, float *c, const float *sum, int64_t rows, int64_t columns) {
    for (int64_t r = 0; r < rows; r++, c += m->c_row, sum += COLUMNS) {
        if (columns == COLUMNS && !m->add)
            memcpy(c, sum, COLUMNS * sizeof *c);
        else
            for (int64_t j = 0; j < columns; j++)
                c[j] = m->add ? c[j] + sum[j] : sum[j];
    }
}

void kd_f32_matmul_run(const kd_f32_matmul *m, float *c, const float *a, const float *b, void *scratch) {
    static const size_t start = 0;
    _Alignas(64) float sum[KD_F32_TILE];
    size_t at = 0;
    float *panels = kd_cpu_at(scratch, kd_cpu_region(&at, (size_t)((m->columns + COLUMNS - 1) / COLUMNS) * panel_floats(m) * sizeof(float))), *copy = kd_cpu_at(scratch, at);
    pack(m, panels, b);
    for (int64_t r = 0; r < m->rows; r += ROWS) {
        strip s = strip_of(m, a, r, copy);
        for (int64_t j = 0; j < m->columns; j += COLUMNS) {
            const float *panel = panels + (size_t)(j / COLUMNS) * panel_floats(m);
            if (m->a_column == 1) {
                kd_f32_tile_sum(sum, &s.rows, 1, (size_t)m->depth, panel);
            } else {
                memset(sum, 0, sizeof sum);
                kd_f32_tile_outer(sum, &start, 1, (size_t)m->depth, s.step, s.columns, panel);
            }
            store(m, c + r * m->c_row + j, sum, m->rows - r < ROWS ? m->rows - r : ROWS, m->columns - j < COLUMNS ? m->columns - j : COLUMNS);
        }
    }
}

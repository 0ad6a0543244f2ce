/* rope: q and k of the patches are turned by their place in the grid. */
#include <string.h>

#include "kernels/ref/ref_core.h"

/* The f32 table lies in the work area. */
static size_t work(const kd_op_desc *d) {
    return kd_op_rope_table_floats(d);
}

/* One head of one patch: pairs (j, j + 2 periods); the first `periods` pairs turn by the row's line of the table, the others by the column's. back: the other way round. */
static void turn(const kd_op_desc *d, double *to, const double *from, const float *row, const float *column, int back) {
    int n = d->periods;
    for (int j = 0; j < 2 * n; j++) {
        const float *line = j < n ? row + j : column + j - n;
        double c = (double)line[0], s = back ? -(double)line[n] : (double)line[n], a = from[j], b = from[j + 2 * n];
        to[j] = a * c - b * s;
        to[j + 2 * n] = b * c + a * s;
    }
}

static void turn_all(const kd_op_desc *d, double *to, const double *from, float *table, int back) {
    int64_t tokens = d->y.shape[1], width = d->y.shape[2], head = 4 * (int64_t)d->periods, line = 2 * (int64_t)d->periods;
    kd_op_rope_table(d, table);
    memcpy(to, from, kd_tdesc_numel(&d->y) * sizeof *to);
    for (int64_t r = 0; r < d->y.shape[0] * tokens; r++) {
        int64_t patch = r % tokens - d->begin;
        if (patch < 0)
            continue;
        const float *row = table + patch / d->grid_w * line, *column = table + (d->grid_h + patch % d->grid_w) * line;
        for (int64_t h = 0; h < 2 * d->heads; h++) /* the heads of q, then of k */
            turn(d, to + r * width + h * head, from + r * width + h * head, row, column, back);
    }
}

static void forward(const kd_op_desc *d, const kd_ref_vals *v) {
    turn_all(d, v->y, v->x[0], (float *)v->work, 0);
}

static void backward(const kd_op_desc *d, const kd_ref_vals *v) {
    if (v->dx[0])
        turn_all(d, v->dx[0], v->dy, (float *)v->work, 1);
}

const kd_ref_core kd_ref_rope = {forward, backward, work};

/* Ops on token sequences: mean_tokens, tokens, token_slice; and on the channels of rows: concat, channel_slice, qkv_by_head. */
#include <math.h>
#include <string.h>

#include "kernels/ref/ref_core.h"

/* A map [N,H,W,D] is the tokens [N,H*W,D]. */
static void mean_tokens_forward(const kd_op_desc *d, const kd_ref_vals *v) {
    int64_t n = d->y.shape[0], width = d->y.shape[1], tokens = kd_ref_rows(&d->x[0]) / n;
    memset(v->y, 0, kd_tdesc_numel(&d->y) * sizeof *v->y);
    for (int64_t b = 0; b < n; b++)
        for (int64_t t = 0; t < tokens; t++)
            for (int64_t i = 0; i < width; i++)
                v->y[b * width + i] += v->x[0][(b * tokens + t) * width + i] / (double)tokens;
}

static void mean_tokens_backward(const kd_op_desc *d, const kd_ref_vals *v) {
    int64_t n = d->y.shape[0], width = d->y.shape[1], tokens = kd_ref_rows(&d->x[0]) / n;
    for (int64_t row = 0; v->dx[0] && row < n * tokens; row++)
        for (int64_t i = 0; i < width; i++)
            v->dx[0][row * width + i] = v->dy[row / tokens * width + i] / (double)tokens;
}

const kd_ref_core kd_ref_mean_tokens = {mean_tokens_forward, mean_tokens_backward, NULL};

/* Which rows of x0, of the positions and of the registers make row t of y: -1 = none. */
typedef struct token_row {
    int64_t patch, position, reg;
} token_row;

static token_row token_row_of(const kd_op_desc *d, int64_t t) {
    if (t == 0)
        return (token_row){-1, 0, -1};
    if (t <= d->registers)
        return (token_row){-1, -1, t - 1};
    return (token_row){t - 1 - d->registers, t - d->registers, -1};
}

static void tokens_forward(const kd_op_desc *d, const kd_ref_vals *v) {
    int64_t n = d->y.shape[0], tokens = d->y.shape[1], width = d->y.shape[2], patches = d->x[0].shape[1];
    for (int64_t b = 0; b < n; b++)
        for (int64_t t = 0; t < tokens; t++) {
            token_row row = token_row_of(d, t);
            const double *from = row.patch >= 0 ? v->x[0] + (b * patches + row.patch) * width : row.reg >= 0 ? v->param[2] + row.reg * width : v->param[0];
            for (int64_t i = 0; i < width; i++)
                v->y[(b * tokens + t) * width + i] = from[i] + (d->positions && row.position >= 0 ? v->param[1][row.position * width + i] : 0);
        }
}

static void add_row(double *to, const double *from, int64_t width) {
    for (int64_t i = 0; to && i < width; i++)
        to[i] += from[i];
}

static double *row_at(double *base, int64_t row, int64_t width) {
    return base && row >= 0 ? base + row * width : NULL;
}

static void tokens_backward(const kd_op_desc *d, const kd_ref_vals *v) {
    int64_t n = d->y.shape[0], tokens = d->y.shape[1], width = d->y.shape[2], patches = d->x[0].shape[1];
    for (int i = 0; i < 3; i++)
        if (v->dparam[i])
            memset(v->dparam[i], 0, kd_op_param_numel(d, i) * sizeof(double));
    if (v->dx[0])
        memset(v->dx[0], 0, kd_tdesc_numel(&d->x[0]) * sizeof(double));
    for (int64_t b = 0; b < n; b++)
        for (int64_t t = 0; t < tokens; t++) {
            token_row row = token_row_of(d, t);
            const double *dy = v->dy + (b * tokens + t) * width;
            add_row(row_at(v->dparam[0], t == 0 ? 0 : -1, width), dy, width);
            add_row(row_at(v->dparam[1], row.position, width), dy, width);
            add_row(row_at(v->dparam[2], row.reg, width), dy, width);
            add_row(row_at(v->dx[0], row.patch < 0 ? -1 : b * patches + row.patch, width), dy, width);
        }
}

const kd_ref_core kd_ref_tokens = {tokens_forward, tokens_backward, NULL};

static void token_slice_forward(const kd_op_desc *d, const kd_ref_vals *v) {
    int64_t n = d->y.shape[0], count = d->y.shape[1], width = d->y.shape[2], tokens = d->x[0].shape[1];
    for (int64_t b = 0; b < n; b++)
        memcpy(v->y + b * count * width, v->x[0] + (b * tokens + d->begin) * width, (size_t)(count * width) * sizeof(double));
}

static void token_slice_backward(const kd_op_desc *d, const kd_ref_vals *v) {
    int64_t n = d->y.shape[0], count = d->y.shape[1], width = d->y.shape[2], tokens = d->x[0].shape[1];
    if (!v->dx[0])
        return;
    memset(v->dx[0], 0, kd_tdesc_numel(&d->x[0]) * sizeof(double));
    for (int64_t b = 0; b < n; b++)
        memcpy(v->dx[0] + (b * tokens + d->begin) * width, v->dy + b * count * width, (size_t)(count * width) * sizeof(double));
}

const kd_ref_core kd_ref_token_slice = {token_slice_forward, token_slice_backward, NULL};

static void concat_forward(const kd_op_desc *d, const kd_ref_vals *v) {
    size_t all = (size_t)kd_ref_width(&d->y), rows = (size_t)kd_ref_rows(&d->y), at = 0;
    for (int k = 0; k < d->inputs; k++) {
        size_t width = (size_t)kd_ref_width(&d->x[k]);
        for (size_t r = 0; r < rows; r++)
            memcpy(v->y + r * all + at, v->x[k] + r * width, width * sizeof(double));
        at += width;
    }
}

static void concat_backward(const kd_op_desc *d, const kd_ref_vals *v) {
    size_t all = (size_t)kd_ref_width(&d->y), rows = (size_t)kd_ref_rows(&d->y), at = 0;
    for (int k = 0; k < d->inputs; k++) {
        size_t width = (size_t)kd_ref_width(&d->x[k]);
        for (size_t r = 0; v->dx[k] && r < rows; r++)
            memcpy(v->dx[k] + r * width, v->dy + r * all + at, width * sizeof(double));
        at += width;
    }
}

const kd_ref_core kd_ref_concat = {concat_forward, concat_backward, NULL};

static void channel_slice_forward(const kd_op_desc *d, const kd_ref_vals *v) {
    int64_t all = kd_ref_width(&d->x[0]), width = kd_ref_width(&d->y);
    for (int64_t r = 0; r < kd_ref_rows(&d->y); r++)
        memcpy(v->y + r * width, v->x[0] + r * all + d->begin, (size_t)width * sizeof(double));
}

static void channel_slice_backward(const kd_op_desc *d, const kd_ref_vals *v) {
    int64_t all = kd_ref_width(&d->x[0]), width = kd_ref_width(&d->y);
    if (!v->dx[0])
        return;
    memset(v->dx[0], 0, kd_tdesc_numel(&d->x[0]) * sizeof(double));
    for (int64_t r = 0; r < kd_ref_rows(&d->y); r++)
        memcpy(v->dx[0] + r * all + d->begin, v->dy + r * width, (size_t)width * sizeof(double));
}

const kd_ref_core kd_ref_channel_slice = {channel_slice_forward, channel_slice_backward, NULL};

/* Where element i of head h comes from: which of x0's channels makes channel i of part 0 (q), 1 (k) or 2 (v) of y; -1: a zero that fills q or k up. */
static int64_t by_head_from(const kd_op_desc *d, int64_t part, int64_t h, int64_t i) {
    int64_t key = d->key_dim, head = kd_ref_width(&d->y) / (3 * d->heads);
    return part < 2 && i >= key ? -1 : h * (2 * key + head) + part * key + i;
}

/* Moves rows from x0's order to y's, or (backward) from dy's to dx0's; q is scaled either way. */
static void by_head(const kd_op_desc *d, double *to, const double *from, int backward) {
    int64_t in = kd_ref_width(&d->x[0]), out = kd_ref_width(&d->y), head = out / (3 * d->heads);
    double scale = (double)(float)sqrt((double)head / d->key_dim);
    for (int64_t r = 0; r < kd_ref_rows(&d->y); r++)
        for (int64_t c = 0; c < out; c++) {
            int64_t part = c / (d->heads * head), x = by_head_from(d, part, c / head % d->heads, c % head);
            double factor = part == 0 ? scale : 1;
            if (!backward)
                to[r * out + c] = x < 0 ? 0 : from[r * in + x] * factor;
            else if (x >= 0)
                to[r * in + x] = from[r * out + c] * factor;
        }
}

static void qkv_by_head_forward(const kd_op_desc *d, const kd_ref_vals *v) {
    by_head(d, v->y, v->x[0], 0);
}

static void qkv_by_head_backward(const kd_op_desc *d, const kd_ref_vals *v) {
    if (v->dx[0])
        by_head(d, v->dx[0], v->dy, 1);
}

const kd_ref_core kd_ref_qkv_by_head = {qkv_by_head_forward, qkv_by_head_backward, NULL};

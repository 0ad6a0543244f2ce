/* Ops on token sequences: mean_tokens, tokens, token_slice. */
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

static void tokens_forward(const kd_op_desc *d, const kd_ref_vals *v) {
    int64_t n = d->y.shape[0], tokens = d->y.shape[1], width = d->y.shape[2];
    const double *cls = v->param[0], *pos = v->param[1];
    for (int64_t b = 0; b < n; b++)
        for (int64_t t = 0; t < tokens; t++) {
            const double *from = t == 0 ? cls : v->x[0] + (b * (tokens - 1) + t - 1) * width;
            for (int64_t i = 0; i < width; i++)
                v->y[(b * tokens + t) * width + i] = from[i] + pos[t * width + i];
        }
}

static void tokens_backward(const kd_op_desc *d, const kd_ref_vals *v) {
    int64_t n = d->y.shape[0], tokens = d->y.shape[1], width = d->y.shape[2];
    for (int64_t b = 0; v->dx[0] && b < n; b++)
        memcpy(v->dx[0] + b * (tokens - 1) * width, v->dy + (b * tokens + 1) * width, (size_t)((tokens - 1) * width) * sizeof(double));
    for (int64_t i = 0; v->dparam[0] && i < width; i++) {
        v->dparam[0][i] = 0;
        for (int64_t b = 0; b < n; b++)
            v->dparam[0][i] += v->dy[b * tokens * width + i];
    }
    for (int64_t i = 0; v->dparam[1] && i < tokens * width; i++) {
        v->dparam[1][i] = 0;
        for (int64_t b = 0; b < n; b++)
            v->dparam[1][i] += v->dy[b * tokens * width + i];
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

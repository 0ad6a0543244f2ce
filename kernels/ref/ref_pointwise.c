/* Ops that treat every element (or channel) alike: normalize, the activations, silu_gate, add, scale_add, channel_gate, row_scale, mse. */
#include <math.h>

#include "kernels/ref/ref_core.h"

/* In float on purpose: the contract promises torchvision's bits. */
static void normalize_forward(const kd_op_desc *d, const kd_ref_vals *v) {
    for (size_t i = 0; i < kd_tdesc_numel(&d->y); i++) {
        float unit = (float)v->x[0][i] / 255.0f;
        v->y[i] = (double)((unit - d->mean[i % 3]) / d->std[i % 3]);
    }
}

const kd_ref_core kd_ref_normalize = {normalize_forward, NULL, NULL};

static void act_forward(kd_act act, const kd_op_desc *d, const kd_ref_vals *v) {
    for (size_t i = 0; i < kd_tdesc_numel(&d->y); i++)
        v->y[i] = kd_ref_act(act, v->x[0][i]);
}

static void act_backward(kd_act act, const kd_op_desc *d, const kd_ref_vals *v) {
    for (size_t i = 0; v->dx[0] && i < kd_tdesc_numel(&d->y); i++)
        v->dx[0][i] = v->dy[i] * kd_ref_dact(act, v->x[0][i]);
}

static void relu_forward(const kd_op_desc *d, const kd_ref_vals *v) { act_forward(KD_ACT_RELU, d, v); }
static void relu_backward(const kd_op_desc *d, const kd_ref_vals *v) { act_backward(KD_ACT_RELU, d, v); }
static void gelu_forward(const kd_op_desc *d, const kd_ref_vals *v) { act_forward(KD_ACT_GELU, d, v); }
static void gelu_backward(const kd_op_desc *d, const kd_ref_vals *v) { act_backward(KD_ACT_GELU, d, v); }
static void silu_forward(const kd_op_desc *d, const kd_ref_vals *v) { act_forward(KD_ACT_SILU, d, v); }
static void silu_backward(const kd_op_desc *d, const kd_ref_vals *v) { act_backward(KD_ACT_SILU, d, v); }
static void hardswish_forward(const kd_op_desc *d, const kd_ref_vals *v) { act_forward(KD_ACT_HARDSWISH, d, v); }
static void hardswish_backward(const kd_op_desc *d, const kd_ref_vals *v) { act_backward(KD_ACT_HARDSWISH, d, v); }
static void hardsigmoid_forward(const kd_op_desc *d, const kd_ref_vals *v) { act_forward(KD_ACT_HARDSIGMOID, d, v); }
static void hardsigmoid_backward(const kd_op_desc *d, const kd_ref_vals *v) { act_backward(KD_ACT_HARDSIGMOID, d, v); }

const kd_ref_core kd_ref_relu = {relu_forward, relu_backward, NULL};
const kd_ref_core kd_ref_gelu = {gelu_forward, gelu_backward, NULL};
const kd_ref_core kd_ref_silu = {silu_forward, silu_backward, NULL};
const kd_ref_core kd_ref_hardswish = {hardswish_forward, hardswish_backward, NULL};
const kd_ref_core kd_ref_hardsigmoid = {hardsigmoid_forward, hardsigmoid_backward, NULL};

static void silu_gate_forward(const kd_op_desc *d, const kd_ref_vals *v) {
    int64_t width = kd_ref_width(&d->y), rows = kd_ref_rows(&d->y);
    for (int64_t r = 0; r < rows; r++)
        for (int64_t i = 0; i < width; i++) {
            double a = v->x[0][r * 2 * width + i], b = v->x[0][r * 2 * width + width + i];
            v->y[r * width + i] = kd_ref_act(KD_ACT_SILU, a) * b;
        }
}

static void silu_gate_backward(const kd_op_desc *d, const kd_ref_vals *v) {
    int64_t width = kd_ref_width(&d->y), rows = kd_ref_rows(&d->y);
    for (int64_t r = 0; v->dx[0] && r < rows; r++)
        for (int64_t i = 0; i < width; i++) {
            int64_t at = r * 2 * width + i;
            double a = v->x[0][at], b = v->x[0][at + width], dy = v->dy[r * width + i];
            v->dx[0][at] = dy * b * kd_ref_dact(KD_ACT_SILU, a);
            v->dx[0][at + width] = dy * kd_ref_act(KD_ACT_SILU, a);
        }
}

const kd_ref_core kd_ref_silu_gate = {silu_gate_forward, silu_gate_backward, NULL};

static void add_forward(const kd_op_desc *d, const kd_ref_vals *v) {
    for (size_t i = 0; i < kd_tdesc_numel(&d->y); i++)
        v->y[i] = kd_ref_act(d->act, v->x[0][i] + v->x[1][i]);
}

static void add_backward(const kd_op_desc *d, const kd_ref_vals *v) {
    for (size_t i = 0; i < kd_tdesc_numel(&d->y); i++) {
        double g = v->dy[i] * kd_ref_dact(d->act, v->x[0][i] + v->x[1][i]);
        if (v->dx[0])
            v->dx[0][i] = g;
        if (v->dx[1])
            v->dx[1][i] = g;
    }
}

const kd_ref_core kd_ref_add = {add_forward, add_backward, NULL};

static void scale_add_forward(const kd_op_desc *d, const kd_ref_vals *v) {
    size_t width = (size_t)kd_ref_width(&d->y);
    for (size_t i = 0; i < kd_tdesc_numel(&d->y); i++)
        v->y[i] = v->x[0][i] + v->param[0][i % width] * v->x[1][i];
}

static void scale_add_backward(const kd_op_desc *d, const kd_ref_vals *v) {
    size_t width = (size_t)kd_ref_width(&d->y);
    for (size_t i = 0; v->dparam[0] && i < width; i++)
        v->dparam[0][i] = 0;
    for (size_t i = 0; i < kd_tdesc_numel(&d->y); i++) {
        if (v->dx[0])
            v->dx[0][i] = v->dy[i];
        if (v->dx[1])
            v->dx[1][i] = v->dy[i] * v->param[0][i % width];
        if (v->dparam[0])
            v->dparam[0][i % width] += v->dy[i] * v->x[1][i];
    }
}

const kd_ref_core kd_ref_scale_add = {scale_add_forward, scale_add_backward, NULL};

/* Element i of x0 meets element gate_at of x1: its image's value for its channel. */
static size_t gate_at(const kd_op_desc *d, size_t i) {
    size_t width = (size_t)kd_ref_width(&d->y), image = kd_tdesc_numel(&d->y) / (size_t)d->y.shape[0];
    return i / image * width + i % width;
}

static void channel_gate_forward(const kd_op_desc *d, const kd_ref_vals *v) {
    for (size_t i = 0; i < kd_tdesc_numel(&d->y); i++)
        v->y[i] = v->x[0][i] * v->x[1][gate_at(d, i)];
}

static void channel_gate_backward(const kd_op_desc *d, const kd_ref_vals *v) {
    for (size_t i = 0; v->dx[1] && i < kd_tdesc_numel(&d->x[1]); i++)
        v->dx[1][i] = 0;
    for (size_t i = 0; i < kd_tdesc_numel(&d->y); i++) {
        if (v->dx[0])
            v->dx[0][i] = v->dy[i] * v->x[1][gate_at(d, i)];
        if (v->dx[1])
            v->dx[1][gate_at(d, i)] += v->dy[i] * v->x[0][i];
    }
}

const kd_ref_core kd_ref_channel_gate = {channel_gate_forward, channel_gate_backward, NULL};

static void row_scale_forward(const kd_op_desc *d, const kd_ref_vals *v) {
    size_t n = kd_tdesc_numel(&d->y), image = n / (size_t)d->y.shape[0];
    for (size_t i = 0; i < n; i++)
        v->y[i] = v->x[0][i] * v->x[1][i / image];
}

static void row_scale_backward(const kd_op_desc *d, const kd_ref_vals *v) {
    size_t n = kd_tdesc_numel(&d->y), image = n / (size_t)d->y.shape[0];
    for (size_t i = 0; v->dx[0] && i < n; i++)
        v->dx[0][i] = v->dy[i] * v->x[1][i / image];
}

const kd_ref_core kd_ref_row_scale = {row_scale_forward, row_scale_backward, NULL};

static void mse_forward(const kd_op_desc *d, const kd_ref_vals *v) {
    size_t n = kd_tdesc_numel(&d->x[0]);
    double sum = 0;
    for (size_t i = 0; i < n; i++)
        sum += (v->x[0][i] - v->x[1][i]) * (v->x[0][i] - v->x[1][i]);
    v->y[0] = sum / (double)n;
}

static void mse_backward(const kd_op_desc *d, const kd_ref_vals *v) {
    size_t n = kd_tdesc_numel(&d->x[0]);
    for (size_t i = 0; v->dx[0] && i < n; i++)
        v->dx[0][i] = v->dy[0] * 2 / (double)n * (v->x[0][i] - v->x[1][i]);
}

const kd_ref_core kd_ref_mse = {mse_forward, mse_backward, NULL};

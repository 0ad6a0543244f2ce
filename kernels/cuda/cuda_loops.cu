/* Loops that several ops use: conversion, sums over rows, activations and their gradients. */
#include "kernels/cuda/device.cuh"

/* ---- conversion ---- */

static __global__ void copy_kernel(void *dst, int dst_bf16, const void *src, int src_bf16, size_t n, int whole, int add) {
    kd_grid_stride(g, (n + 7) / 8) {
        size_t i = 8 * g;
        int some = n - i < 8 ? (int)(n - i) : 8, all = whole && some == 8;
        kd_store_grad_some(dst, dst_bf16, i, kd_load_some(src, src_bf16, i, some, all), some, all, add);
    }
}

/* Groups of eight may be moved as one where they begin: every address is a multiple of 16 bytes. */
static int aligned(const void *p) {
    return (uintptr_t)p % 16 == 0;
}

kd_status kd_cuda_copy(kd_cuda *b, void *dst, kd_dtype dst_type, const void *src, kd_dtype src_type, size_t n, int add, kd_err *err) {
    return kd_launch(b, "copy", copy_kernel, kd_blocks(b, (n + 7) / 8, 256), 256, err, dst, kd_is_bf16(dst_type), src, kd_is_bf16(src_type), n, aligned(dst) && aligned(src), add);
}

/* ---- sums over rows ---- */

enum { COLUMN_THREADS = 128, ROWS_OF_A_PART = 64, MOST_PARTS = 512, FOLD = 32 };

static size_t column_parts(size_t rows) {
    size_t parts = (rows + ROWS_OF_A_PART - 1) / ROWS_OF_A_PART;
    return parts < MOST_PARTS ? parts : MOST_PARTS;
}

/* A thread per column, a block row per part; f32 over up to FOLD rows, those sums in f64. */
static __global__ void column_parts_kernel(double *part, const void *g, int g_bf16, const void *times, int times_bf16, size_t rows, size_t stride, size_t width, size_t parts) {
    size_t col = (size_t)blockIdx.x * blockDim.x + threadIdx.x, p = blockIdx.y;
    if (col >= width)
        return;
    double sum = 0;
    float fold = 0;
    size_t first = rows * p / parts, last = rows * (p + 1) / parts;
    for (size_t r = first; r < last; r++) {
        float v = kd_load1(g, g_bf16, r * stride + col);
        fold += times ? v * kd_load1(times, times_bf16, r * stride + col) : v;
        if ((r - first) % FOLD == FOLD - 1) {
            sum += (double)fold;
            fold = 0;
        }
    }
    part[p * width + col] = sum + (double)fold;
}

static __global__ void column_sum_kernel(float *out, const double *part, size_t width, size_t parts) {
    size_t col = (size_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (col >= width)
        return;
    double sum = 0;
    for (size_t p = 0; p < parts; p++)
        sum += part[p * width + col];
    out[col] += (float)sum;
}

size_t kd_cuda_columns_bytes(size_t rows, size_t width) {
    return column_parts(rows) * width * sizeof(double);
}

kd_status kd_cuda_add_columns(kd_cuda *b, const kd_cuda_columns *c, kd_err *err) {
    unsigned wide = (unsigned)((c->width + COLUMN_THREADS - 1) / COLUMN_THREADS);
    size_t parts = column_parts(c->rows);
    KD_TRY(kd_launch(b, "sums over rows", column_parts_kernel, dim3(wide, (unsigned)parts), COLUMN_THREADS, err, (double *)c->scratch, c->g, kd_is_bf16(c->g_type), c->times, kd_is_bf16(c->times_type),
                     c->rows, c->stride, c->width, parts));
    return kd_launch(b, "sums over rows", column_sum_kernel, wide, COLUMN_THREADS, err, c->out, (const double *)c->scratch, c->width, parts);
}

/* ---- activations ---- */

static __global__ void act_kernel(void *y, int y_bf16, const void *x, int x_bf16, const float *bias, size_t width, int act, size_t n, int whole) {
    kd_grid_stride(g, (n + 7) / 8) {
        size_t i = 8 * g;
        int some = n - i < 8 ? (int)(n - i) : 8, all = whole && some == 8;
        kd_f8 v = kd_load_some(x, x_bf16, i, some, all);
        size_t column = bias ? i % width : 0;
        for (int k = 0; k < 8; k++) {
            v.v[k] = kd_act_of(act, bias ? v.v[k] + bias[column] : v.v[k]);
            column = column + 1 < width ? column + 1 : 0;
        }
        kd_store_some(y, y_bf16, i, v, some, all);
    }
}

kd_status kd_cuda_act_forward(kd_cuda *b, void *y, kd_dtype y_type, const void *x, kd_dtype x_type, const float *bias, size_t width, kd_act act, size_t n, kd_err *err) {
    return kd_launch(b, "activation", act_kernel, kd_blocks(b, (n + 7) / 8, 256), 256, err, y, kd_is_bf16(y_type), x, kd_is_bf16(x_type), bias, width, (int)act, n, aligned(y) && aligned(x));
}

static __global__ void act_grad_kernel(void *g, int g_bf16, const void *dy, int dy_bf16, const void *at, int at_bf16, int act, size_t n, int whole, int add) {
    kd_grid_stride(group, (n + 7) / 8) {
        size_t i = 8 * group;
        int some = n - i < 8 ? (int)(n - i) : 8, all = whole && some == 8;
        kd_f8 v = kd_load_some(dy, dy_bf16, i, some, all);
        if (act != KD_ACT_NONE) {
            kd_f8 x = kd_load_some(at, at_bf16, i, some, all);
            for (int k = 0; k < 8; k++)
                v.v[k] = v.v[k] * kd_dact_of(act, x.v[k]);
        }
        kd_store_grad_some(g, g_bf16, i, v, some, all, add);
    }
}

kd_status kd_cuda_act_backward(kd_cuda *b, const kd_cuda_act_grad *c, size_t n, kd_err *err) {
    int whole = aligned(c->g) && aligned(c->dy) && (c->act == KD_ACT_NONE || aligned(c->at));
    return kd_launch(b, "gradient of an activation", act_grad_kernel, kd_blocks(b, (n + 7) / 8, 256), 256, err, c->g, kd_is_bf16(c->g_type), c->dy, kd_is_bf16(c->dy_type), c->at,
                     kd_is_bf16(c->at_type), (int)c->act, n, whole, c->add);
}

/* max_pool and resize_bilinear on channels-last maps: a block per row of pixels, neighbouring threads on neighbouring channels. Backward passes gather (every input pixel collects from the outputs
 * that read it), so nothing is zeroed first, no two threads write one place, and the order of additions is fixed. */
#include "kernels/cuda/images.cuh"

extern "C" {
#include "common/tensor/target.h"
}

/* ---- max_pool. Training keeps each window's winner: its position in the window, row-major, one byte per output ---- */

enum { MAX_KERNEL = 16 };

typedef struct pool_args {
    const void *x, *dy;
    void *y, *dx;
    uint8_t *winner; /* [outputs]; NULL in inference */
    int h, w, out_h, out_w, kernel, stride, pad;
    size_t width;
    kd_steps steps;
    int x_bf16, y_bf16, add;
} pool_args;

static pool_args pool_args_of(const kd_op_desc *d, const kd_op_args *p) {
    const int64_t *x = d->x[0].shape, *y = d->y.shape;
    pool_args a = {};
    a.x = p->x[0], a.y = p->y, a.dy = p->dy, a.dx = p->dx[0];
    a.winner = d->train ? (uint8_t *)p->saved : NULL;
    a.h = (int)x[1], a.w = (int)x[2], a.out_h = (int)y[1], a.out_w = (int)y[2];
    a.kernel = d->kernel, a.stride = d->stride, a.pad = d->pad;
    a.width = (size_t)x[3];
    a.steps = kd_steps_of(a.width);
    a.x_bf16 = kd_is_bf16(d->x[0].dtype), a.y_bf16 = kd_is_bf16(d->y.dtype), a.add = (d->add_dx & 1) != 0;
    return a;
}

/* The part of a window that lies inside the map: positions [low, high) of `kernel`, the first at pixel `origin` (possibly outside). */
typedef struct span {
    int origin, low, high;
} span;

static __device__ __forceinline__ span span_of(int out, int size, const pool_args &a) {
    int origin = out * a.stride - a.pad;
    return {origin, origin < 0 ? -origin : 0, size - origin < a.kernel ? size - origin : a.kernel};
}

static __device__ __forceinline__ void store_winners(uint8_t *p, const unsigned winner[8], int whole) {
    if (!whole) {
        *p = (uint8_t)winner[0];
        return;
    }
    unsigned low = winner[0] | winner[1] << 8 | winner[2] << 16 | winner[3] << 24, high = winner[4] | winner[5] << 8 | winner[6] << 16 | winner[7] << 24;
    *(uint2 *)p = make_uint2(low, high);
}

static __device__ __forceinline__ void load_winners(unsigned winner[8], const uint8_t *p, int whole) {
    if (!whole) {
        winner[0] = *p;
        return;
    }
    uint2 u = *(const uint2 *)p;
    for (int k = 0; k < 4; k++) {
        winner[k] = u.x >> 8 * k & 255u;
        winner[4 + k] = u.y >> 8 * k & 255u;
    }
}

/* The first of the largest values in row-major order; the first NaN wins over all. */
static __global__ void __launch_bounds__(KD_IMAGE_THREADS) pool_kernel(pool_args a) {
    int each = a.steps.each, whole = a.steps.whole;
    unsigned image = blockIdx.x / (unsigned)a.out_h;
    span sy = span_of((int)(blockIdx.x - image * (unsigned)a.out_h), a.h, a);
    kd_each_of_image(i, (unsigned)a.out_w * a.steps.count) {
        unsigned ox = i / a.steps.count, winner[8] = {0};
        size_t channel = (size_t)(i - ox * a.steps.count) * (size_t)each;
        span sx = span_of((int)ox, a.w, a);
        kd_f8 best = {};
        for (int ky = sy.low; ky < sy.high; ky++) {
            size_t line = ((size_t)image * (size_t)a.h + (size_t)(sy.origin + ky)) * (size_t)a.w;
            for (int kx = sx.low; kx < sx.high; kx++) {
                kd_f8 v = kd_load_some(a.x, a.x_bf16, (line + (size_t)(sx.origin + kx)) * a.width + channel, each, whole);
                int first = ky == sy.low && kx == sx.low;
                for (int k = 0; k < 8; k++) {
                    int better = first || v.v[k] > best.v[k] || (v.v[k] != v.v[k] && best.v[k] == best.v[k]);
                    best.v[k] = better ? v.v[k] : best.v[k];
                    winner[k] = better ? (unsigned)(ky * a.kernel + kx) : winner[k];
                }
            }
        }
        size_t at = ((size_t)blockIdx.x * (size_t)a.out_w + ox) * a.width + channel;
        kd_store_some(a.y, a.y_bf16, at, best, each, whole);
        if (a.winner)
            store_winners(a.winner + at, winner, whole);
    }
}

/* Windows [low, high) that contain pixel `in`. */
static __device__ __forceinline__ span windows_of(int in, int outputs, const pool_args &a) {
    int first = in + a.pad - a.kernel + 1, last = (in + a.pad) / a.stride;
    return {0, first <= 0 ? 0 : (first + a.stride - 1) / a.stride, last + 1 < outputs ? last + 1 : outputs};
}

static __global__ void __launch_bounds__(KD_IMAGE_THREADS) pool_grad_kernel(pool_args a) {
    int each = a.steps.each, whole = a.steps.whole;
    unsigned image = blockIdx.x / (unsigned)a.h;
    int iy = (int)(blockIdx.x - image * (unsigned)a.h);
    span wy = windows_of(iy, a.out_h, a);
    kd_each_of_image(i, (unsigned)a.w * a.steps.count) {
        unsigned ix = i / a.steps.count;
        size_t channel = (size_t)(i - ix * a.steps.count) * (size_t)each;
        span wx = windows_of((int)ix, a.out_w, a);
        kd_f8 sum = {};
        for (int oy = wy.low; oy < wy.high; oy++)
            for (int ox = wx.low; ox < wx.high; ox++) {
                unsigned position = (unsigned)((iy + a.pad - oy * a.stride) * a.kernel + (int)ix + a.pad - ox * a.stride), winner[8] = {0};
                size_t at = (((size_t)image * (size_t)a.out_h + (size_t)oy) * (size_t)a.out_w + (size_t)ox) * a.width + channel;
                load_winners(winner, a.winner + at, whole);
                kd_f8 v = kd_load_some(a.dy, a.y_bf16, at, each, whole);
                for (int k = 0; k < 8; k++)
                    sum.v[k] += winner[k] == position ? v.v[k] : 0.0f;
            }
        kd_store_grad_some(a.dx, a.x_bf16, ((size_t)blockIdx.x * (size_t)a.w + ix) * a.width + channel, sum, each, whole, a.add);
    }
}

static kd_status pool_create(kd_cuda *b, kd_op *op, kd_op_needs *needs, kd_err *err) {
    (void)b;
    if (op->desc.kernel > MAX_KERNEL)
        return kd_fail(err, KD_EFAIL, "%s: a pooling window of %d is above the cuda backend's limit of %d; use --device ref", op->desc.name, op->desc.kernel, MAX_KERNEL);
    if (op->desc.train)
        needs->saved = kd_tdesc_numel(&op->desc.y);
    return KD_OK;
}

static kd_status pool_forward(kd_cuda *b, kd_op *op, const kd_op_args *p, kd_err *err) {
    pool_args a = pool_args_of(&op->desc, p);
    dim3 grid = kd_image_grid((size_t)op->desc.y.shape[0] * (size_t)a.out_h, (size_t)a.out_w * a.steps.count);
    return kd_launch(b, "max pooling", pool_kernel, grid, KD_IMAGE_THREADS, err, a);
}

static kd_status pool_backward(kd_cuda *b, kd_op *op, const kd_op_args *p, kd_err *err) {
    pool_args a = pool_args_of(&op->desc, p);
    dim3 grid = kd_image_grid((size_t)op->desc.x[0].shape[0] * (size_t)a.h, (size_t)a.w * a.steps.count);
    return op->desc.need_dx & 1 ? kd_launch(b, "gradient of max pooling", pool_grad_kernel, grid, KD_IMAGE_THREADS, err, a) : KD_OK;
}

extern "C" const kd_cuda_kind kd_cuda_max_pool = {pool_create, NULL, NULL, pool_forward, pool_backward};

/* ---- resize_bilinear ---- */

/* One axis. Forward: output o reads lines low and min(low + 1, in - 1) with weights 1 - weight and weight. Backward: input i is read by the outputs first .. end - 1, which lie beside each other. */
typedef struct tap {
    int low;
    float weight;
} tap;

typedef struct readers {
    int first, end;
} readers;

static void fill_axis(tap *taps, readers *lines, int64_t in, int64_t out) {
    memset(lines, 0, (size_t)in * sizeof *lines);
    for (int64_t o = 0; o < out; o++) {
        int64_t from[2];
        double weight;
        kd_bilinear_tap(in, out, o, &from[0], &from[1], &weight);
        taps[o] = {(int)from[0], (float)weight};
        for (int k = 0; k < 2; k++) {
            readers *r = &lines[from[k]];
            r->first = r->end == 0 ? (int)o : r->first;
            r->end = (int)o + 1;
        }
    }
}

/* The table on the device: the taps of rows and columns, then the readers of rows and columns. */
static void resize_destroy(void *table) {
    cudaFree(table);
}

static kd_status resize_create(kd_cuda *b, kd_op *op, kd_op_needs *needs, kd_err *err) {
    const int64_t *x = op->desc.x[0].shape, *y = op->desc.y.shape;
    size_t bytes = (size_t)(y[1] + y[2]) * sizeof(tap) + (size_t)(x[1] + x[2]) * sizeof(readers);
    char *host = NULL;
    (void)needs;
    KD_ASSERT(x[1] <= INT32_MAX && x[2] <= INT32_MAX && y[1] <= INT32_MAX && y[2] <= INT32_MAX);
    KD_TRY(b->base.v->alloc(&b->base, &op->impl, bytes, err));
    KD_TRY(kd_alloc_array(&host, bytes, 1, err));
    tap *taps = (tap *)host;
    readers *lines = (readers *)(taps + y[1] + y[2]);
    fill_axis(taps, lines, x[1], y[1]);
    fill_axis(taps + y[1], lines + x[1], x[2], y[2]);
    kd_status status = b->base.v->upload(&b->base, op->impl, host, bytes, err);
    kd_free(host);
    return status;
}

typedef struct resize_args {
    const void *from; /* x or dy */
    void *to;         /* y or dx */
    const tap *row, *column;
    const readers *row_readers, *column_readers;
    unsigned h, w, out_h, out_w;
    size_t width;
    kd_steps steps;
    int from_bf16, to_bf16, add;
} resize_args;

static __global__ void __launch_bounds__(KD_IMAGE_THREADS) resize_kernel(resize_args a) {
    int each = a.steps.each, whole = a.steps.whole;
    unsigned image = blockIdx.x / a.out_h;
    tap y = a.row[blockIdx.x - image * a.out_h];
    size_t top = ((size_t)image * a.h + (size_t)y.low) * a.w, bottom = (size_t)y.low + 1 < a.h ? top + a.w : top;
    kd_each_of_image(i, a.out_w * a.steps.count) {
        unsigned ox = i / a.steps.count;
        size_t channel = (size_t)(i - ox * a.steps.count) * (size_t)each;
        tap x = a.column[ox];
        size_t left = (size_t)x.low, right = left + 1 < a.w ? left + 1 : left;
        kd_f8 p = kd_load_some(a.from, a.from_bf16, (top + left) * a.width + channel, each, whole), q = kd_load_some(a.from, a.from_bf16, (top + right) * a.width + channel, each, whole);
        kd_f8 r = kd_load_some(a.from, a.from_bf16, (bottom + left) * a.width + channel, each, whole), s = kd_load_some(a.from, a.from_bf16, (bottom + right) * a.width + channel, each, whole);
        for (int k = 0; k < 8; k++) {
            float upper = fmaf(p.v[k], 1 - x.weight, q.v[k] * x.weight), lower = fmaf(r.v[k], 1 - x.weight, s.v[k] * x.weight);
            p.v[k] = fmaf(upper, 1 - y.weight, lower * y.weight);
        }
        kd_store_some(a.to, a.to_bf16, ((size_t)blockIdx.x * a.out_w + ox) * a.width + channel, p, each, whole);
    }
}

/* With what weight line `in` of `size` enters the output of this tap: as the lower line, the upper one, or (at the end) both. */
static __device__ __forceinline__ float weight_of(tap t, unsigned in, unsigned size) {
    unsigned low = (unsigned)t.low, high = low + 1 < size ? low + 1 : low;
    return (low == in ? 1 - t.weight : 0.0f) + (high == in ? t.weight : 0.0f);
}

static __global__ void __launch_bounds__(KD_IMAGE_THREADS) resize_grad_kernel(resize_args a) {
    int each = a.steps.each, whole = a.steps.whole;
    unsigned image = blockIdx.x / a.h, iy = blockIdx.x - image * a.h;
    readers rows = a.row_readers[iy];
    kd_each_of_image(i, a.w * a.steps.count) {
        unsigned ix = i / a.steps.count;
        size_t channel = (size_t)(i - ix * a.steps.count) * (size_t)each;
        readers columns = a.column_readers[ix];
        kd_f8 sum = {};
        for (int oy = rows.first; oy < rows.end; oy++) {
            size_t line = ((size_t)image * a.out_h + (size_t)oy) * a.out_w;
            float by_row = weight_of(a.row[oy], iy, a.h);
            kd_f8 part = {};
            for (int ox = columns.first; ox < columns.end; ox++) {
                float weight = weight_of(a.column[ox], ix, a.w);
                kd_f8 v = kd_load_some(a.from, a.from_bf16, (line + (size_t)ox) * a.width + channel, each, whole);
                for (int k = 0; k < 8; k++)
                    part.v[k] = fmaf(v.v[k], weight, part.v[k]);
            }
            for (int k = 0; k < 8; k++)
                sum.v[k] = fmaf(part.v[k], by_row, sum.v[k]);
        }
        kd_store_grad_some(a.to, a.to_bf16, ((size_t)blockIdx.x * a.w + ix) * a.width + channel, sum, each, whole, a.add);
    }
}

static resize_args resize_args_of(const kd_op *op) {
    const int64_t *x = op->desc.x[0].shape, *y = op->desc.y.shape;
    resize_args a = {};
    a.row = (const tap *)op->impl;
    a.column = a.row + y[1];
    a.row_readers = (const readers *)(a.column + y[2]);
    a.column_readers = a.row_readers + x[1];
    a.h = (unsigned)x[1], a.w = (unsigned)x[2], a.out_h = (unsigned)y[1], a.out_w = (unsigned)y[2];
    a.width = (size_t)x[3];
    a.steps = kd_steps_of(a.width);
    return a;
}

static kd_status resize_forward(kd_cuda *b, kd_op *op, const kd_op_args *p, kd_err *err) {
    const kd_op_desc *d = &op->desc;
    resize_args a = resize_args_of(op);
    a.from = p->x[0], a.from_bf16 = kd_is_bf16(d->x[0].dtype);
    a.to = p->y, a.to_bf16 = kd_is_bf16(d->y.dtype);
    return kd_launch(b, "bilinear resizing", resize_kernel, kd_image_grid((size_t)d->y.shape[0] * a.out_h, (size_t)a.out_w * a.steps.count), KD_IMAGE_THREADS, err, a);
}

static kd_status resize_backward(kd_cuda *b, kd_op *op, const kd_op_args *p, kd_err *err) {
    const kd_op_desc *d = &op->desc;
    resize_args a = resize_args_of(op);
    a.from = p->dy, a.from_bf16 = kd_is_bf16(d->y.dtype);
    a.to = p->dx[0], a.to_bf16 = kd_is_bf16(d->x[0].dtype), a.add = (d->add_dx & 1) != 0;
    if (!(d->need_dx & 1))
        return KD_OK;
    return kd_launch(b, "gradient of bilinear resizing", resize_grad_kernel, kd_image_grid((size_t)d->y.shape[0] * a.h, (size_t)a.w * a.steps.count), KD_IMAGE_THREADS, err, a);
}

extern "C" const kd_cuda_kind kd_cuda_resize_bilinear = {resize_create, resize_destroy, NULL, resize_forward, resize_backward};

/* Ops on the channels of rows: concat, channel_slice, channel_gate, row_scale, qkv_by_head. */
#include <math.h>

#include "kernels/cpu/cpu.h"
#include "kernels/cpu/simd.h"

typedef struct op_ctx {
    const kd_op_desc *d;
    const kd_op_args *p;
    size_t positions; /* rows per image */
} op_ctx;

static op_ctx context_of(const kd_op *op, const kd_op_args *a) {
    return (op_ctx){&op->desc, a, kd_cpu_rows(&op->desc.x[0]) / (size_t)op->desc.x[0].shape[0]};
}

static void over_rows(const kd_cpu *b, const kd_tdesc *t, kd_cpu_range fn, const op_ctx *c) {
    kd_cpu_parallel(b->base.threads, kd_cpu_rows(t), kd_cpu_width(t), fn, c);
}

static int adds(const kd_op_desc *d, int k) {
    return (int)(d->add_dx >> k & 1u);
}

/* ---- concat ---- */

KD_HOT static void concat_range(const void *ctx, int slice, size_t begin, size_t end) {
    const op_ctx c = *(const op_ctx *)ctx;
    size_t size = kd_dtype_size(c.d->y.dtype), all = kd_cpu_width(&c.d->y) * size;
    (void)slice;
    for (size_t r = begin; r < end; r++) {
        char *y = (char *)c.p->y + r * all;
        for (int k = 0; k < c.d->inputs; k++) {
            size_t width = kd_cpu_width(&c.d->x[k]) * size;
            memcpy(y, (const char *)c.p->x[k] + r * width, width);
            y += width;
        }
    }
}

KD_HOT static void concat_grad_range(const void *ctx, int slice, size_t begin, size_t end) {
    const op_ctx c = *(const op_ctx *)ctx;
    size_t from = 0, all = kd_cpu_width(&c.d->y);
    (void)slice;
    for (int k = 0; k < c.d->inputs; k++) {
        size_t width = kd_cpu_width(&c.d->x[k]);
        for (size_t r = begin; (c.d->need_dx >> k & 1) && r < end; r++)
            kd_copy_row(c.p->dx[k], c.d->x[k].dtype, r * width, c.p->dy, c.d->y.dtype, r * all + from, width, adds(c.d, k));
        from += width;
    }
}

static kd_status concat_forward(kd_cpu *b, kd_op *op, const kd_op_args *a, kd_err *err) {
    op_ctx c = context_of(op, a);
    (void)err;
    over_rows(b, &op->desc.y, concat_range, &c);
    return KD_OK;
}

static kd_status concat_backward(kd_cpu *b, kd_op *op, const kd_op_args *a, kd_err *err) {
    op_ctx c = context_of(op, a);
    (void)err;
    over_rows(b, &op->desc.y, concat_grad_range, &c);
    return KD_OK;
}

const kd_cpu_kind kd_cpu_concat = {NULL, NULL, NULL, concat_forward, concat_backward};

/* ---- channel_slice ---- */

KD_HOT static void slice_range(const void *ctx, int slice, size_t begin, size_t end) {
    const op_ctx c = *(const op_ctx *)ctx;
    size_t size = kd_dtype_size(c.d->y.dtype), all = kd_cpu_width(&c.d->x[0]) * size, width = kd_cpu_width(&c.d->y) * size;
    const char *x = (const char *)c.p->x[0] + (size_t)c.d->begin * size;
    (void)slice;
    for (size_t r = begin; r < end; r++)
        memcpy((char *)c.p->y + r * width, x + r * all, width);
}

/* Channels outside the slice get a gradient of 0. */
KD_HOT static void slice_grad_range(const void *ctx, int slice, size_t begin, size_t end) {
    const op_ctx c = *(const op_ctx *)ctx;
    size_t size = kd_dtype_size(c.d->y.dtype), all = kd_cpu_width(&c.d->x[0]), width = kd_cpu_width(&c.d->y), first = (size_t)c.d->begin;
    int add = adds(c.d, 0);
    (void)slice;
    for (size_t r = begin; r < end; r++) {
        char *dx = (char *)c.p->dx[0] + r * all * size;
        if (!add) {
            memset(dx, 0, first * size);
            memset(dx + (first + width) * size, 0, (all - first - width) * size);
        }
        kd_copy_row(c.p->dx[0], c.d->x[0].dtype, r * all + first, c.p->dy, c.d->y.dtype, r * width, width, add);
    }
}

static kd_status slice_forward(kd_cpu *b, kd_op *op, const kd_op_args *a, kd_err *err) {
    op_ctx c = context_of(op, a);
    (void)err;
    over_rows(b, &op->desc.y, slice_range, &c);
    return KD_OK;
}

static kd_status slice_backward(kd_cpu *b, kd_op *op, const kd_op_args *a, kd_err *err) {
    op_ctx c = context_of(op, a);
    (void)err;
    if (op->desc.need_dx & 1)
        over_rows(b, &op->desc.x[0], slice_grad_range, &c);
    return KD_OK;
}

const kd_cpu_kind kd_cpu_channel_slice = {NULL, NULL, NULL, slice_forward, slice_backward};

/* ---- channel_gate ---- */

/* to (y or dx0) = from (x0 or dy) times the image's gate, all of the given types. */
KD_LANE void gate_at(const op_ctx *c, void *to, kd_dtype to_type, const void *from, kd_dtype from_type, kd_dtype s_type, size_t at, size_t s_at, int n, int add) {
    kd_store_grad(to, to_type, at, kd_load(from, from_type, at, n) * kd_load(c->p->x[1], s_type, s_at, n), n, add);
}

KD_LANE void gate_loop(const op_ctx *c, void *to, kd_dtype to_type, const void *from, kd_dtype from_type, kd_dtype s_type, size_t begin, size_t end, int add) {
    size_t width = kd_cpu_width(&c->d->y), whole = width / KD_VF * KD_VF;
    for (size_t r = begin; r < end; r++) {
        size_t at = r * width, s_at = r / c->positions * width;
        for (size_t i = 0; i < whole; i += KD_VF)
            gate_at(c, to, to_type, from, from_type, s_type, at + i, s_at + i, KD_VF, add);
        if (whole < width)
            gate_at(c, to, to_type, from, from_type, s_type, at + whole, s_at + whole, (int)(width - whole), add);
    }
}

/* The types as constants for f32. */
KD_LANE void gate_rows(const op_ctx *c, void *to, kd_dtype to_type, const void *from, kd_dtype from_type, size_t begin, size_t end, int add) {
    kd_dtype s_type = c->d->x[1].dtype;
    if (to_type == KD_F32 && from_type == KD_F32 && s_type == KD_F32)
        gate_loop(c, to, KD_F32, from, KD_F32, KD_F32, begin, end, add);
    else
        gate_loop(c, to, to_type, from, from_type, s_type, begin, end, add);
}

KD_HOT static void gate_range(const void *ctx, int slice, size_t begin, size_t end) {
    const op_ctx c = *(const op_ctx *)ctx;
    (void)slice;
    gate_rows(&c, c.p->y, c.d->y.dtype, c.p->x[0], c.d->x[0].dtype, begin, end, 0);
}

KD_HOT static void gate_dx_range(const void *ctx, int slice, size_t begin, size_t end) {
    const op_ctx c = *(const op_ctx *)ctx;
    (void)slice;
    gate_rows(&c, c.p->dx[0], c.d->x[0].dtype, c.p->dy, c.d->y.dtype, begin, end, adds(c.d, 0));
}

enum { FOLD = 64 }; /* positions summed before they join the sum of sums, as in mean_tokens */

/* dx1 of one image for n channels from i on. */
KD_LANE void gate_ds(const op_ctx *c, kd_dtype x_type, kd_dtype y_type, size_t image, size_t i, int n) {
    size_t width = kd_cpu_width(&c->d->y);
    kd_carried total = KD_NO_SUM;
    for (size_t p0 = 0; p0 < c->positions; p0 += FOLD) {
        kd_carried sum = KD_NO_SUM;
        for (size_t k = p0; k < c->positions && k < p0 + FOLD; k++) {
            size_t at = (image * c->positions + k) * width + i;
            kd_carry(&sum, kd_load(c->p->dy, y_type, at, n) * kd_load(c->p->x[0], x_type, at, n));
        }
        total.low += sum.low;
        total.high += sum.high;
    }
    kd_store_grad(c->p->dx[1], c->d->x[1].dtype, image * width + i, kd_carried_sum(&total), n, adds(c->d, 1));
}

/* One image at a time; a column of 16 channels runs down all positions. */
KD_HOT static void gate_ds_range(const void *ctx, int slice, size_t begin, size_t end) {
    const op_ctx c = *(const op_ctx *)ctx;
    kd_dtype tx = c.d->x[0].dtype, ty = c.d->y.dtype;
    size_t width = kd_cpu_width(&c.d->y);
    (void)slice;
    for (size_t image = begin; image < end; image++)
        for (size_t i = 0; i < width; i += KD_VF)
            if (width - i >= KD_VF && tx == KD_F32 && ty == KD_F32)
                gate_ds(&c, KD_F32, KD_F32, image, i, KD_VF);
            else
                gate_ds(&c, tx, ty, image, i, kd_lanes(width - i));
}

static kd_status gate_forward(kd_cpu *b, kd_op *op, const kd_op_args *a, kd_err *err) {
    op_ctx c = context_of(op, a);
    (void)err;
    over_rows(b, &op->desc.y, gate_range, &c);
    return KD_OK;
}

static kd_status gate_backward(kd_cpu *b, kd_op *op, const kd_op_args *a, kd_err *err) {
    const kd_op_desc *d = &op->desc;
    op_ctx c = context_of(op, a);
    (void)err;
    if (d->need_dx & 1)
        over_rows(b, &d->y, gate_dx_range, &c);
    if (d->need_dx & 2)
        kd_cpu_parallel(b->base.threads, (size_t)d->y.shape[0], c.positions * kd_cpu_width(&d->y), gate_ds_range, &c);
    return KD_OK;
}

const kd_cpu_kind kd_cpu_channel_gate = {NULL, NULL, NULL, gate_forward, gate_backward};

/* ---- row_scale: one number per image ---- */

KD_LANE void scale_images(const op_ctx *c, void *to, kd_dtype to_type, const void *from, kd_dtype from_type, size_t begin, size_t end, int add) {
    size_t width = kd_cpu_width(&c->d->y);
    const float *s = c->p->x[1];
    for (size_t r = begin; r < end; r++)
        for (size_t i = 0; i < width; i += KD_VF) {
            int n = kd_lanes(width - i);
            kd_store_grad(to, to_type, r * width + i, kd_load(from, from_type, r * width + i, n) * s[r / c->positions], n, add);
        }
}

KD_HOT static void row_scale_range(const void *ctx, int slice, size_t begin, size_t end) {
    const op_ctx c = *(const op_ctx *)ctx;
    (void)slice;
    scale_images(&c, c.p->y, c.d->y.dtype, c.p->x[0], c.d->x[0].dtype, begin, end, 0);
}

KD_HOT static void row_scale_grad_range(const void *ctx, int slice, size_t begin, size_t end) {
    const op_ctx c = *(const op_ctx *)ctx;
    (void)slice;
    scale_images(&c, c.p->dx[0], c.d->x[0].dtype, c.p->dy, c.d->y.dtype, begin, end, adds(c.d, 0));
}

static kd_status row_scale_forward(kd_cpu *b, kd_op *op, const kd_op_args *a, kd_err *err) {
    op_ctx c = context_of(op, a);
    (void)err;
    over_rows(b, &op->desc.y, row_scale_range, &c);
    return KD_OK;
}

static kd_status row_scale_backward(kd_cpu *b, kd_op *op, const kd_op_args *a, kd_err *err) {
    op_ctx c = context_of(op, a);
    (void)err;
    if (op->desc.need_dx & 1)
        over_rows(b, &op->desc.y, row_scale_grad_range, &c);
    return KD_OK;
}

const kd_cpu_kind kd_cpu_row_scale = {NULL, NULL, NULL, row_scale_forward, row_scale_backward};

/* ---- qkv_by_head ---- */

typedef struct by_head {
    size_t heads, key, head; /* sizes */
    float scale;
} by_head;

static by_head by_head_of(const kd_op_desc *d) {
    size_t heads = (size_t)d->heads, head = kd_cpu_width(&d->y) / (3 * heads), key = (size_t)d->key_dim;
    return (by_head){heads, key, head, (float)sqrt((double)head / (double)key)};
}

KD_LANE void scale_row(void *dst, size_t to, const void *src, size_t at, kd_dtype type, size_t count, float scale, int add) {
    for (size_t i = 0; i < count; i += KD_VF) {
        int n = kd_lanes(count - i);
        kd_store_grad(dst, type, to + i, kd_load(src, type, at + i, n) * scale, n, add);
    }
}

KD_HOT static void by_head_range(const void *ctx, int slice, size_t begin, size_t end) {
    const op_ctx c = *(const op_ctx *)ctx;
    const by_head s = by_head_of(c.d);
    kd_dtype type = c.d->y.dtype;
    size_t size = kd_dtype_size(type), in = kd_cpu_width(&c.d->x[0]), width = s.heads * s.head;
    (void)slice;
    for (size_t r = begin; r < end; r++)
        for (size_t h = 0; h < s.heads; h++) {
            size_t from = r * in + h * (2 * s.key + s.head), to = 3 * r * width + h * s.head;
            scale_row(c.p->y, to, c.p->x[0], from, type, s.key, s.scale, 0);
            scale_row(c.p->y, to + width, c.p->x[0], from + s.key, type, s.key, 1, 0);
            scale_row(c.p->y, to + 2 * width, c.p->x[0], from + 2 * s.key, type, s.head, 1, 0);
            memset((char *)c.p->y + (to + s.key) * size, 0, (s.head - s.key) * size);
            memset((char *)c.p->y + (to + width + s.key) * size, 0, (s.head - s.key) * size);
        }
}

KD_HOT static void by_head_grad_range(const void *ctx, int slice, size_t begin, size_t end) {
    const op_ctx c = *(const op_ctx *)ctx;
    const by_head s = by_head_of(c.d);
    kd_dtype type = c.d->y.dtype;
    size_t in = kd_cpu_width(&c.d->x[0]), width = s.heads * s.head;
    int add = adds(c.d, 0);
    (void)slice;
    for (size_t r = begin; r < end; r++)
        for (size_t h = 0; h < s.heads; h++) {
            size_t to = r * in + h * (2 * s.key + s.head), from = 3 * r * width + h * s.head;
            scale_row(c.p->dx[0], to, c.p->dy, from, type, s.key, s.scale, add);
            scale_row(c.p->dx[0], to + s.key, c.p->dy, from + width, type, s.key, 1, add);
            scale_row(c.p->dx[0], to + 2 * s.key, c.p->dy, from + 2 * width, type, s.head, 1, add);
        }
}

static kd_status by_head_forward(kd_cpu *b, kd_op *op, const kd_op_args *a, kd_err *err) {
    op_ctx c = context_of(op, a);
    (void)err;
    over_rows(b, &op->desc.y, by_head_range, &c);
    return KD_OK;
}

static kd_status by_head_backward(kd_cpu *b, kd_op *op, const kd_op_args *a, kd_err *err) {
    op_ctx c = context_of(op, a);
    (void)err;
    if (op->desc.need_dx & 1)
        over_rows(b, &op->desc.x[0], by_head_grad_range, &c);
    return KD_OK;
}

const kd_cpu_kind kd_cpu_qkv_by_head = {NULL, NULL, NULL, by_head_forward, by_head_backward};

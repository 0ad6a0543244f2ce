/* Ops that move channels: concat, channel_slice, qkv_by_head. A thread moves eight values where everything begins at multiples of eight, else one. */
#include "kernels/cuda/columns.cuh"

enum { THREADS = 256 };

/* ---- concat, channel_slice: a range of channels of every row goes to another place in another row ---- */

/* to[row][to_at + c] = from[row][from_at + c - begin] for begin <= c < end, and 0 for other c below width. */
typedef struct move {
    void *to;
    const void *from;
    size_t rows, width, to_stride, to_at, from_stride, from_at, begin, end;
    int bf16, add;
} move;

static __device__ __forceinline__ void store_raw(void *p, int bf16, size_t i, kd_raw8 r) {
    uint4 *q = (uint4 *)((char *)p + (i << (bf16 ? 1 : 2)));
    q[0] = r.low;
    if (!bf16)
        q[1] = r.high;
}

/* Eight values: without an addition they stay as they are. */
static __global__ void __launch_bounds__(THREADS) move8_kernel(move a) {
    kd_grid_stride(g, a.rows * (a.width / 8)) {
        size_t row = g / (a.width / 8), c = 8 * (g - row * (a.width / 8)), to = row * a.to_stride + a.to_at + c;
        kd_raw8 r;
        r.low = r.high = make_uint4(0, 0, 0, 0);
        if (c >= a.begin && c < a.end)
            r = kd_load_raw(a.from, a.bf16, row * a.from_stride + a.from_at + c - a.begin, 8, 1);
        if (a.add)
            kd_store_grad8(a.to, a.bf16, to, kd_values(r, a.bf16, 1), 1);
        else
            store_raw(a.to, a.bf16, to, r);
    }
}

static __global__ void __launch_bounds__(THREADS) move1_kernel(move a) {
    kd_grid_stride(g, a.rows * a.width) {
        size_t row = g / a.width, c = g - row * a.width;
        float v = c >= a.begin && c < a.end ? kd_load1(a.from, a.bf16, row * a.from_stride + a.from_at + c - a.begin) : 0.0f;
        kd_store_grad1(a.to, a.bf16, row * a.to_stride + a.to_at + c, v, a.add);
    }
}

static kd_status move_channels(kd_cuda *b, const move *m, kd_err *err) {
    if ((m->width | m->to_stride | m->to_at | m->from_stride | m->from_at | m->begin | m->end) % 8 == 0)
        return kd_launch(b, "copy of channels", move8_kernel, kd_blocks(b, m->rows * (m->width / 8), THREADS), THREADS, err, *m);
    return kd_launch(b, "copy of channels", move1_kernel, kd_blocks(b, m->rows * m->width, THREADS), THREADS, err, *m);
}

static kd_status concat_forward(kd_cuda *b, kd_op *op, const kd_op_args *p, kd_err *err) {
    const kd_op_desc *d = &op->desc;
    size_t at = 0;
    for (int k = 0; k < d->inputs; k++) {
        size_t width = kd_cuda_width(&d->x[k]);
        move m = {p->y, p->x[k], kd_cuda_rows(&d->y), width, kd_cuda_width(&d->y), at, width, 0, 0, width, kd_is_bf16(d->y.dtype), 0};
        KD_TRY(move_channels(b, &m, err));
        at += width;
    }
    return KD_OK;
}

static kd_status concat_backward(kd_cuda *b, kd_op *op, const kd_op_args *p, kd_err *err) {
    const kd_op_desc *d = &op->desc;
    size_t at = 0;
    for (int k = 0; k < d->inputs; k++) {
        size_t width = kd_cuda_width(&d->x[k]);
        move m = {p->dx[k], p->dy, kd_cuda_rows(&d->y), width, width, 0, kd_cuda_width(&d->y), at, 0, width, kd_is_bf16(d->y.dtype), (int)(d->add_dx >> k & 1)};
        if (d->need_dx >> k & 1)
            KD_TRY(move_channels(b, &m, err));
        at += width;
    }
    return KD_OK;
}

extern "C" const kd_cuda_kind kd_cuda_concat = {NULL, NULL, NULL, concat_forward, concat_backward};

static kd_status slice_forward(kd_cuda *b, kd_op *op, const kd_op_args *p, kd_err *err) {
    const kd_op_desc *d = &op->desc;
    size_t width = kd_cuda_width(&d->y);
    move m = {p->y, p->x[0], kd_cuda_rows(&d->y), width, width, 0, kd_cuda_width(&d->x[0]), (size_t)d->begin, 0, width, kd_is_bf16(d->y.dtype), 0};
    return move_channels(b, &m, err);
}

/* Channels outside of the slice get a gradient of 0; where gradients are added they aren't touched. */
static kd_status slice_backward(kd_cuda *b, kd_op *op, const kd_op_args *p, kd_err *err) {
    const kd_op_desc *d = &op->desc;
    size_t width = kd_cuda_width(&d->y), all = kd_cuda_width(&d->x[0]), begin = (size_t)d->begin;
    move m = {p->dx[0], p->dy, kd_cuda_rows(&d->y), all, all, 0, width, 0, begin, begin + width, kd_is_bf16(d->y.dtype), 0};
    if (d->add_dx & 1) {
        m.width = m.end = width;
        m.to_at = begin;
        m.begin = 0;
        m.add = 1;
    }
    return d->need_dx & 1 ? move_channels(b, &m, err) : KD_OK;
}

extern "C" const kd_cuda_kind kd_cuda_channel_slice = {NULL, NULL, NULL, slice_forward, slice_backward};

/* ---- qkv_by_head ---- */

typedef struct heads_args {
    void *to;
    const void *from;
    size_t rows;
    unsigned heads, key, head; /* sizes */
    float scale;
    int bf16, add, whole; /* whole: groups of eight, else single values */
} heads_args;

/* One thread's n values (8 or 1): `zero` if they fill a key up, else moved with this factor. */
static __device__ __forceinline__ void move_head(const heads_args &a, size_t to, size_t from, int zero, float factor) {
    if (a.whole) {
        kd_f8 v = {};
        if (!zero)
            v = kd_load8(a.from, a.bf16, from);
        for (int k = 0; k < 8; k++)
            v.v[k] *= factor;
        kd_store_grad8(a.to, a.bf16, to, v, a.add);
    } else {
        kd_store_grad1(a.to, a.bf16, to, zero ? 0.0f : kd_load1(a.from, a.bf16, from) * factor, a.add);
    }
}

/* Over y: channel c of y is channel i of head h of part 0 (q), 1 (k) or 2 (v). */
static __global__ void __launch_bounds__(THREADS) by_head_kernel(heads_args a) {
    unsigned step = a.whole ? 8 : 1, width = a.heads * a.head, in = a.heads * (2 * a.key + a.head);
    kd_grid_stride(g, a.rows * (3 * width / step)) {
        size_t row = g / (3 * width / step);
        unsigned c = step * (unsigned)(g - row * (3 * width / step)), part = c / width, h = (c - part * width) / a.head, i = c - part * width - h * a.head;
        move_head(a, row * 3 * width + c, row * in + h * (2 * a.key + a.head) + part * a.key + i, part < 2 && i >= a.key, part == 0 ? a.scale : 1.0f);
    }
}

/* Over dx: the same turned round. */
static __global__ void __launch_bounds__(THREADS) by_head_grad_kernel(heads_args a) {
    unsigned step = a.whole ? 8 : 1, width = a.heads * a.head, in = a.heads * (2 * a.key + a.head);
    kd_grid_stride(g, a.rows * (in / step)) {
        size_t row = g / (in / step);
        unsigned c = step * (unsigned)(g - row * (in / step)), h = c / (2 * a.key + a.head), o = c - h * (2 * a.key + a.head), part = o < a.key ? 0 : o < 2 * a.key ? 1 : 2;
        move_head(a, row * in + c, row * 3 * width + part * width + h * a.head + o - part * a.key, 0, part == 0 ? a.scale : 1.0f);
    }
}

static heads_args heads_args_of(const kd_op_desc *d) {
    size_t head = kd_cuda_width(&d->y) / (3 * (size_t)d->heads), key = (size_t)d->key_dim;
    heads_args a = {NULL, NULL, kd_cuda_rows(&d->y), (unsigned)d->heads, (unsigned)key, (unsigned)head, (float)sqrt((double)head / (double)key), kd_is_bf16(d->y.dtype), 0,
                    key % 8 == 0 && head % 8 == 0};
    return a;
}

static kd_status by_head_forward(kd_cuda *b, kd_op *op, const kd_op_args *p, kd_err *err) {
    heads_args a = heads_args_of(&op->desc);
    a.to = p->y, a.from = p->x[0];
    return kd_launch(b, "queries by head", by_head_kernel, kd_blocks(b, kd_tdesc_numel(&op->desc.y) / (a.whole ? 8 : 1), THREADS), THREADS, err, a);
}

static kd_status by_head_backward(kd_cuda *b, kd_op *op, const kd_op_args *p, kd_err *err) {
    heads_args a = heads_args_of(&op->desc);
    a.to = p->dx[0], a.from = p->dy, a.add = (op->desc.add_dx & 1) != 0;
    if (!(op->desc.need_dx & 1))
        return KD_OK;
    return kd_launch(b, "gradient of queries by head", by_head_grad_kernel, kd_blocks(b, kd_tdesc_numel(&op->desc.x[0]) / (a.whole ? 8 : 1), THREADS), THREADS, err, a);
}

extern "C" const kd_cuda_kind kd_cuda_qkv_by_head = {NULL, NULL, NULL, by_head_forward, by_head_backward};

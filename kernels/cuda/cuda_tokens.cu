/* Ops that move or average tokens: mean_tokens, tokens, token_slice. */
#include "kernels/cuda/images.cuh"

/* Rows of x per image; a map [N,H,W,D] is the tokens [N,H*W,D]. */
static size_t positions_of(const kd_op_desc *d) {
    return kd_cuda_rows(&d->x[0]) / (size_t)d->x[0].shape[0];
}

/* ---- mean_tokens: a block per image and slab of channels; `lanes` threads beside each other take a slab's steps, the others further positions ---- */

enum { MEAN_THREADS = 256, FOLD = 32 };

typedef struct mean_args {
    const void *x;
    void *y;
    size_t positions, width;
    kd_steps steps; /* of the width */
    unsigned lanes; /* a power of two */
    int x_bf16, y_bf16;
} mean_args;

/* The sum of positions first, first + stride, ..: f32 sums of FOLD, and the sum of those. */
static __device__ kd_f8 sum_positions(mean_args a, size_t at, size_t first, size_t stride) {
    kd_f8 total = {};
    for (size_t p = first; p < a.positions;) {
        kd_f8 fold = {};
        for (int n = 0; n < FOLD && p < a.positions; n++, p += stride) {
            kd_f8 v = kd_load_some(a.x, a.x_bf16, at + p * a.width, a.steps.each, a.steps.whole);
            for (int k = 0; k < 8; k++)
                fold.v[k] += v.v[k];
        }
        for (int k = 0; k < 8; k++)
            total.v[k] += fold.v[k];
    }
    return total;
}

static __global__ void __launch_bounds__(MEAN_THREADS) mean_kernel(mean_args a) {
    __shared__ __align__(16) float part[8 * MEAN_THREADS]; /* [MEAN_THREADS / lanes][the slab's channels] */
    unsigned lane = threadIdx.x % a.lanes, rows = MEAN_THREADS / a.lanes, step = blockIdx.y * a.lanes + lane, each = (unsigned)a.steps.each, slab = a.lanes * each;
    kd_f8 sum = {};
    if (step < a.steps.count)
        sum = sum_positions(a, blockIdx.x * a.positions * a.width + (size_t)step * each, threadIdx.x / a.lanes, rows);
    kd_store_some(part, 0, (size_t)threadIdx.x * each, sum, a.steps.each, a.steps.whole);
    __syncthreads();
    size_t channel = (size_t)blockIdx.y * slab + threadIdx.x;
    if (threadIdx.x >= slab || channel >= a.width)
        return;
    double all = 0;
    for (unsigned r = 0; r < rows; r++)
        all += (double)part[r * slab + threadIdx.x];
    kd_store1(a.y, a.y_bf16, blockIdx.x * a.width + channel, (float)all / (float)a.positions);
}

static kd_status mean_forward(kd_cuda *b, kd_op *op, const kd_op_args *p, kd_err *err) {
    const kd_op_desc *d = &op->desc;
    size_t width = kd_cuda_width(&d->y);
    mean_args a = {p->x[0], p->y, positions_of(d), width, kd_steps_of(width), 1, kd_is_bf16(d->x[0].dtype), kd_is_bf16(d->y.dtype)};
    unsigned most = a.steps.whole ? 8 : 32; /* a cache line of bf16 */
    while (a.lanes < most && a.lanes < a.steps.count)
        a.lanes *= 2;
    return kd_launch(b, "mean of tokens", mean_kernel, dim3((unsigned)d->y.shape[0], (a.steps.count + a.lanes - 1) / a.lanes), MEAN_THREADS, err, a);
}

typedef struct mean_grad_args {
    const void *dy;
    void *dx;
    size_t positions, width;
    kd_steps steps;
    int dy_bf16, dx_bf16, add;
} mean_grad_args;

static __global__ void __launch_bounds__(KD_IMAGE_THREADS) mean_grad_kernel(mean_grad_args a) {
    size_t image = blockIdx.x, all = a.positions * a.steps.count;
    kd_each_of_image(i, all) {
        kd_f8 v = kd_load_some(a.dy, a.dy_bf16, image * a.width + (size_t)(i % a.steps.count) * (size_t)a.steps.each, a.steps.each, a.steps.whole);
        for (int k = 0; k < 8; k++)
            v.v[k] = v.v[k] / (float)a.positions;
        kd_store_grad_some(a.dx, a.dx_bf16, (image * all + i) * (size_t)a.steps.each, v, a.steps.each, a.steps.whole, a.add);
    }
}

static kd_status mean_backward(kd_cuda *b, kd_op *op, const kd_op_args *p, kd_err *err) {
    const kd_op_desc *d = &op->desc;
    size_t width = kd_cuda_width(&d->y);
    mean_grad_args a = {p->dy, p->dx[0], positions_of(d), width, kd_steps_of(width), kd_is_bf16(d->y.dtype), kd_is_bf16(d->x[0].dtype), (d->add_dx & 1) != 0};
    if (!(d->need_dx & 1))
        return KD_OK;
    return kd_launch(b, "gradient of a mean of tokens", mean_grad_kernel, kd_image_grid((size_t)d->y.shape[0], a.positions * a.steps.count), KD_IMAGE_THREADS, err, a);
}

extern "C" const kd_cuda_kind kd_cuda_mean_tokens = {NULL, NULL, NULL, mean_forward, mean_backward};

/* ---- rows of an image that lie beside each other ---- */

/* to[0 .. extent) of every image becomes (or, with add, gains) from[0 .. count) at `begin`, and 0 elsewhere; in steps. */
typedef struct window_args {
    void *to;
    const void *from;
    size_t to_image, from_image; /* values from one image to the next */
    unsigned extent, begin, count;
    int to_bf16, from_bf16, each, whole, add;
} window_args;

static __global__ void __launch_bounds__(KD_IMAGE_THREADS) window_kernel(window_args a) {
    size_t image = blockIdx.x, each = (size_t)a.each;
    kd_each_of_image(i, a.extent) {
        kd_f8 v = {};
        if (i - a.begin < a.count)
            v = kd_load_some(a.from, a.from_bf16, image * a.from_image + (i - a.begin) * each, a.each, a.whole);
        kd_store_grad_some(a.to, a.to_bf16, image * a.to_image + i * each, v, a.each, a.whole, a.add);
    }
}

/* Row `row` of an image of t. */
static void *row_of(const kd_tdesc *t, const void *p, size_t row) {
    return (char *)p + row * kd_cuda_width(t) * kd_dtype_size(t->dtype);
}

/* `rows` rows of `from` from `first` become those of `to` from `begin`, image by image; the rest of `to` stays, or is made 0. */
typedef struct row_move {
    const kd_tdesc *to_type, *from_type; /* [N,T,D] */
    void *to;
    const void *from;
    size_t begin, first, rows;
    int add, zero_rest;
} row_move;

static kd_status move_rows(kd_cuda *b, const row_move *m, kd_err *err) {
    size_t width = kd_cuda_width(m->to_type), to_rows = (size_t)m->to_type->shape[1];
    kd_steps s = kd_steps_of(width);
    dim3 grid = kd_image_grid((size_t)m->to_type->shape[0], (m->zero_rest ? to_rows : m->rows) * s.count);
    window_args a = {m->to, row_of(m->from_type, m->from, m->first), to_rows * width, (size_t)m->from_type->shape[1] * width, (unsigned)to_rows * s.count, (unsigned)m->begin * s.count,
                     (unsigned)m->rows * s.count, kd_is_bf16(m->to_type->dtype), kd_is_bf16(m->from_type->dtype), s.each, s.whole, m->add};
    if (!m->zero_rest) {
        a.to = row_of(m->to_type, m->to, m->begin);
        a.begin = 0;
        a.extent = a.count;
    }
    return kd_launch(b, "rows of tokens", window_kernel, grid, KD_IMAGE_THREADS, err, a);
}

/* ---- tokens ---- */

typedef struct tokens_args {
    const void *x;
    void *y;
    const float *class_token, *position, *registers; /* position may be NULL */
    size_t width;
    unsigned first, tokens; /* row of the first patch; rows of an image of y */
    kd_steps steps;
    int x_bf16, y_bf16;
} tokens_args;

static __global__ void __launch_bounds__(KD_IMAGE_THREADS) tokens_kernel(tokens_args a) {
    size_t image = blockIdx.x, patches = a.tokens - a.first;
    int each = a.steps.each, whole = a.steps.whole;
    kd_each_of_image(i, a.tokens * a.steps.count) {
        unsigned token = i / a.steps.count;
        size_t at = (size_t)(i - token * a.steps.count) * (size_t)each; /* within a row */
        kd_f8 v;
        if (token >= a.first)
            v = kd_load_some(a.x, a.x_bf16, (image * patches + token - a.first) * a.width + at, each, whole);
        else
            v = token == 0 ? kd_load_some(a.class_token, 0, at, each, whole) : kd_load_some(a.registers, 0, (token - 1) * a.width + at, each, whole);
        if (a.position && (token == 0 || token >= a.first)) {
            kd_f8 p = kd_load_some(a.position, 0, (token == 0 ? 0 : token - a.first + 1) * a.width + at, each, whole);
            for (int k = 0; k < 8; k++)
                v.v[k] += p.v[k];
        }
        kd_store_some(a.y, a.y_bf16, (image * a.tokens + token) * a.width + at, v, each, whole);
    }
}

static kd_status tokens_create(kd_cuda *b, kd_op *op, kd_op_needs *needs, kd_err *err) {
    const kd_op_desc *d = &op->desc;
    size_t patches = (size_t)d->x[0].shape[1], registers = (size_t)d->registers;
    (void)b, (void)err;
    if (d->train && d->need_dparam)
        needs->scratch = kd_cuda_columns_bytes((size_t)d->y.shape[0], (patches > registers ? patches : registers) * kd_cuda_width(&d->y));
    return KD_OK;
}

static kd_status tokens_forward(kd_cuda *b, kd_op *op, const kd_op_args *p, kd_err *err) {
    const kd_op_desc *d = &op->desc;
    size_t width = kd_cuda_width(&d->y);
    tokens_args a = {p->x[0], p->y, p->param[0], d->positions ? p->param[1] : NULL, p->param[2], width, 1 + (unsigned)d->registers, (unsigned)d->y.shape[1], kd_steps_of(width),
                     kd_is_bf16(d->x[0].dtype), kd_is_bf16(d->y.dtype)};
    return kd_launch(b, "tokens", tokens_kernel, kd_image_grid((size_t)d->y.shape[0], (size_t)a.tokens * a.steps.count), KD_IMAGE_THREADS, err, a);
}

/* out[rows * width] += the sums over images of `rows` rows of dy from `first`. */
static kd_status add_rows(kd_cuda *b, const kd_op_desc *d, const kd_op_args *p, float *out, size_t first, size_t rows, kd_err *err) {
    size_t width = kd_cuda_width(&d->y);
    kd_cuda_columns c = {out, row_of(&d->y, p->dy, first), NULL, d->y.dtype, KD_F32, (size_t)d->y.shape[0], (size_t)d->y.shape[1] * width, rows * width, p->scratch};
    return rows > 0 ? kd_cuda_add_columns(b, &c, err) : KD_OK;
}

static kd_status tokens_backward(kd_cuda *b, kd_op *op, const kd_op_args *p, kd_err *err) {
    const kd_op_desc *d = &op->desc;
    size_t patches = (size_t)d->x[0].shape[1], registers = (size_t)d->registers;
    if (d->need_dparam) {
        KD_TRY(add_rows(b, d, p, p->dparam[0], 0, 1, err));
        KD_TRY(add_rows(b, d, p, p->dparam[2], 1, registers, err));
    }
    if (d->need_dparam && d->positions) {
        KD_TRY(add_rows(b, d, p, p->dparam[1], 0, 1, err));
        KD_TRY(add_rows(b, d, p, p->dparam[1] + kd_cuda_width(&d->y), 1 + registers, patches, err));
    }
    if (!(d->need_dx & 1))
        return KD_OK;
    row_move m = {&d->x[0], &d->y, p->dx[0], p->dy, 0, 1 + registers, patches, (d->add_dx & 1) != 0, 0};
    return move_rows(b, &m, err);
}

extern "C" const kd_cuda_kind kd_cuda_tokens = {tokens_create, NULL, NULL, tokens_forward, tokens_backward};

/* ---- token_slice ---- */

static kd_status slice_forward(kd_cuda *b, kd_op *op, const kd_op_args *p, kd_err *err) {
    const kd_op_desc *d = &op->desc;
    row_move m = {&d->y, &d->x[0], p->y, p->x[0], 0, (size_t)d->begin, (size_t)d->y.shape[1], 0, 0};
    return move_rows(b, &m, err);
}

/* Rows outside the slice get a gradient of 0. */
static kd_status slice_backward(kd_cuda *b, kd_op *op, const kd_op_args *p, kd_err *err) {
    const kd_op_desc *d = &op->desc;
    int add = (d->add_dx & 1) != 0;
    row_move m = {&d->x[0], &d->y, p->dx[0], p->dy, (size_t)d->begin, 0, (size_t)d->y.shape[1], add, !add};
    return d->need_dx & 1 ? move_rows(b, &m, err) : KD_OK;
}

extern "C" const kd_cuda_kind kd_cuda_token_slice = {NULL, NULL, NULL, slice_forward, slice_backward};

/* conv2d, one of four ways. 1x1 kernels that step over nothing are a linear op on the map's positions. So are kernels that neither overlap nor leave gaps (patch embeddings, downsampling), once every
 * window lies in a row: matrix products have f32 results of bf16 operands and a bias, which cuDNN's convolutions haven't. Depthwise ones are our own (cuda_depthwise.h). The rest is cuDNN's.
 *
 * cuDNN's results have the operands' type, so in bf16 the gradient of the weights is rounded before it is added (as PyTorch's is under autocast), and so is what a bias or an activation is yet to be
 * put on. Where y is f32, or there is no engine for bf16, it computes in f32 with the operands rounded as they would be. Channels that its tensor-core engines don't take (an image's three) it fills up
 * itself, in its work memory: its heuristics list such engines for every number of channels, and a copy of our own would be the same again. */
#include "kernels/cuda/cuda_depthwise.h"
#include "kernels/cuda/cudnn_conv.h"
#include "kernels/cuda/device.cuh"

enum { THREADS = 256, TILE_CHANNELS = 32, TILE_TAPS = 64 };

typedef enum route { AS_LINEAR, AS_PATCHES, AS_DEPTHWISE, BY_LIBRARY } route;

typedef struct conv {
    route way;
    int own_g;    /* dy isn't the gradient of the sums yet: activation or type differ */
    kd_op linear; /* of AS_LINEAR and AS_PATCHES */
    /* of BY_LIBRARY */
    kd_conv *forward, *data, *filter;
    kd_dtype type; /* of operands and results */
    size_t packed;                             /* of AS_PATCHES: offset in args->packed of what the linear op packs, behind the weights in its order */
    size_t work, x, y, g, g32, dx, dw, columns; /* offsets in args->scratch */
} conv;

static size_t taps_of(const kd_op_desc *d) {
    return (size_t)d->kernel * (size_t)d->kernel;
}

/* ---- weights: [O,I,k,k] as parameters and gradients, [O,k,k,I] for products ---- */

typedef struct weights_args {
    float *plain; /* [out][in][taps] */
    void *packed; /* [out] times pitch, of which [taps][in] */
    size_t out, in, taps, pitch;
    int bf16, round;
} weights_args;

/* A block has TILE_CHANNELS inputs of one output, which lie beside each other on both sides, and turns them over TILE_TAPS taps at a time. */
static __global__ void __launch_bounds__(THREADS) pack_kernel(weights_args a) {
    __shared__ float tile[TILE_CHANNELS][TILE_TAPS + 1];
    size_t blocks = (a.in + TILE_CHANNELS - 1) / TILE_CHANNELS, o = blockIdx.x / blocks, first = blockIdx.x % blocks * TILE_CHANNELS;
    for (size_t begin = 0; begin < a.taps; begin += TILE_TAPS) {
        unsigned taps = (unsigned)(a.taps - begin < TILE_TAPS ? a.taps - begin : TILE_TAPS);
        __syncthreads(); /* of the last round's reads */
        for (unsigned e = threadIdx.x; e < TILE_CHANNELS * taps; e += THREADS) {
            size_t i = first + e / taps;
            if (i < a.in)
                tile[e / taps][e % taps] = a.plain[(o * a.in + i) * a.taps + begin + e % taps];
        }
        __syncthreads();
        for (unsigned e = threadIdx.x; e < TILE_CHANNELS * taps; e += THREADS) {
            size_t i = first + e % TILE_CHANNELS;
            float v = tile[e % TILE_CHANNELS][e / TILE_CHANNELS];
            if (i < a.in)
                kd_store1(a.packed, a.bf16, o * a.pitch + (begin + e / TILE_CHANNELS) * a.in + i, a.round ? __bfloat162float(__float2bfloat16_rn(v)) : v);
        }
    }
}

/* plain += packed */
static __global__ void __launch_bounds__(THREADS) unpack_kernel(weights_args a) {
    __shared__ float tile[TILE_CHANNELS][TILE_TAPS + 1];
    size_t blocks = (a.in + TILE_CHANNELS - 1) / TILE_CHANNELS, o = blockIdx.x / blocks, first = blockIdx.x % blocks * TILE_CHANNELS;
    for (size_t begin = 0; begin < a.taps; begin += TILE_TAPS) {
        unsigned taps = (unsigned)(a.taps - begin < TILE_TAPS ? a.taps - begin : TILE_TAPS);
        __syncthreads(); /* of the last round's reads */
        for (unsigned e = threadIdx.x; e < TILE_CHANNELS * taps; e += THREADS) {
            size_t i = first + e % TILE_CHANNELS;
            if (i < a.in)
                tile[e % TILE_CHANNELS][e / TILE_CHANNELS] = kd_load1(a.packed, a.bf16, o * a.pitch + (begin + e / TILE_CHANNELS) * a.in + i);
        }
        __syncthreads();
        for (unsigned e = threadIdx.x; e < TILE_CHANNELS * taps; e += THREADS) {
            size_t i = first + e / taps;
            if (i < a.in)
                a.plain[(o * a.in + i) * a.taps + begin + e % taps] += tile[e / taps][e % taps];
        }
    }
}

static weights_args weights_of(const kd_op_desc *d, const float *plain, void *packed, kd_dtype type) {
    size_t in = (size_t)(d->x[0].shape[3] / kd_op_groups(d));
    return weights_args{(float *)plain, packed, (size_t)d->y.shape[3], in, taps_of(d), taps_of(d) * in, kd_is_bf16(type), 0};
}

static kd_status turn_weights(kd_cuda *b, void (*kernel)(weights_args), weights_args a, kd_err *err) {
    return kd_launch(b, "weights of a convolution", kernel, (unsigned)(a.out * ((a.in + TILE_CHANNELS - 1) / TILE_CHANNELS)), THREADS, err, a);
}

/* ---- patches ---- */

typedef struct patch_args {
    const void *src;
    void *dst;
    size_t groups;      /* of eight values: in all of dst */
    unsigned row;       /* values of a row of patches' rows, a multiple of 8 */
    unsigned line, map; /* values of a patch's line, and of a map's */
    unsigned h, k, down, across; /* the map's lines, lines of a patch, patches down and across */
    int bf16, whole, add;
} patch_args;

/* rows[patch][line of the patch][values] of a map, and zeros up to the row's end. */
static __global__ void __launch_bounds__(THREADS) gather_kernel(patch_args a) {
    kd_grid_stride(t, a.groups) {
        unsigned groups = a.row / 8, e = (unsigned)(t % groups) * 8, patch = (unsigned)(t / groups), n = patch / (a.down * a.across), y = patch / a.across % a.down, x = patch % a.across;
        size_t first = ((size_t)n * a.h + y * a.k) * a.map + x * a.line; /* of the patch */
        if (a.whole) {
            kd_store8(a.dst, a.bf16, 8 * t, kd_load8(a.src, a.bf16, first + (size_t)(e / a.line) * a.map + e % a.line));
            continue;
        }
        kd_f8 v;
        for (unsigned k = 0; k < 8; k++)
            v.v[k] = e + k < a.k * a.line ? kd_load1(a.src, a.bf16, first + (size_t)((e + k) / a.line) * a.map + (e + k) % a.line) : 0.0f;
        kd_store8(a.dst, a.bf16, 8 * t, v);
    }
}

/* Where a value of a map lies in its patches' rows, or -1: no patch has it. */
static __device__ __forceinline__ long long patch_at(const patch_args &a, unsigned n, unsigned y, unsigned e) {
    unsigned down = y / a.k, across = e / a.line;
    if (down >= a.down || across >= a.across)
        return -1;
    return (long long)((((size_t)n * a.down + down) * a.across + across) * a.row + y % a.k * a.line + e % a.line);
}

/* The way back. Values that no patch has are zero. */
static __global__ void __launch_bounds__(THREADS) scatter_kernel(patch_args a) {
    kd_grid_stride(t, a.groups) {
        unsigned groups = (a.map + 7) / 8, e = (unsigned)(t % groups) * 8, line = (unsigned)(t / groups), n = line / a.h, y = line % a.h;
        int some = a.map - e < 8 ? (int)(a.map - e) : 8;
        kd_f8 v = {};
        if (a.whole) {
            long long at = patch_at(a, n, y, e);
            if (at >= 0)
                v = kd_load8(a.src, a.bf16, (size_t)at);
        } else {
            for (int k = 0; k < some; k++) {
                long long at = patch_at(a, n, y, e + (unsigned)k);
                if (at >= 0)
                    v.v[k] = kd_load1(a.src, a.bf16, (size_t)at);
            }
        }
        kd_store_grad_some(a.dst, a.bf16, (size_t)line * a.map + e, v, some, a.whole, a.add);
    }
}

/* A row of the product: k k I values, filled up to whole groups of eight. */
static size_t patch_row(const kd_op_desc *d) {
    return (taps_of(d) * kd_cuda_width(&d->x[0]) + 7) / 8 * 8;
}

static patch_args patches_of(const kd_op_desc *d) {
    const int64_t *x = d->x[0].shape, *y = d->y.shape;
    patch_args a = {};
    a.row = (unsigned)patch_row(d);
    a.line = (unsigned)(d->kernel * x[3]);
    a.map = (unsigned)(x[2] * x[3]);
    a.h = (unsigned)x[1], a.k = (unsigned)d->kernel, a.down = (unsigned)y[1], a.across = (unsigned)y[2];
    a.bf16 = kd_is_bf16(d->x[0].dtype);
    a.whole = a.line % 8 == 0 && a.map % 8 == 0;
    KD_ASSERT(kd_cuda_rows(&d->x[0]) <= UINT32_MAX && (size_t)(x[2] * x[3]) * (size_t)d->kernel <= INT32_MAX);
    return a;
}

static kd_status create_patches(kd_cuda *b, conv *c, const kd_op_desc *d, kd_op_needs *needs, kd_err *err) {
    size_t rows = kd_cuda_rows(&d->y), row = patch_row(d), out = kd_cuda_width(&d->y);
    kd_op_desc *l = &c->linear.desc;
    kd_op_needs inner = {};
    l->x[0] = kd_tdesc{d->x[0].dtype, 2, {(int64_t)rows, (int64_t)row}};
    l->y = kd_tdesc{d->y.dtype, 2, {(int64_t)rows, (int64_t)out}};
    l->add_dx = 0;
    KD_TRY(kd_cuda_linear.create(b, &c->linear, &inner, err));
    kd_cuda_region(&needs->packed, out * row * sizeof(float));
    c->packed = kd_cuda_region(&needs->packed, inner.packed);
    needs->saved = inner.saved;
    needs->consumed = d->train ? 0 : 1u | inner.consumed;
    c->work = kd_cuda_region(&needs->scratch, inner.scratch);
    c->x = kd_cuda_region(&needs->scratch, rows * row * kd_dtype_size(d->x[0].dtype));
    c->dx = kd_cuda_region(&needs->scratch, d->train && (d->need_dx & 1) ? rows * row * kd_dtype_size(d->x[0].dtype) : 0);
    c->dw = kd_cuda_region(&needs->scratch, d->train && d->need_dparam ? out * row * sizeof(float) : 0);
    return KD_OK;
}

/* The linear op's arguments: weights in its order, its own part of packed and scratch. */
static kd_op_args inner_args(const conv *c, const kd_op_args *a) {
    kd_op_args inner = *a;
    inner.param[0] = (const float *)a->packed;
    inner.packed = kd_cuda_at(a->packed, c->packed);
    inner.scratch = kd_cuda_at(a->scratch, c->work);
    inner.x[0] = kd_cuda_at(a->scratch, c->x);
    return inner;
}

static kd_status zero(kd_cuda *b, void *p, size_t bytes, kd_err *err) {
    return kd_cuda_check(cudaMemsetAsync(p, 0, bytes, b->stream), "weights of a convolution", err);
}

static kd_status patches_pack(kd_cuda *b, conv *c, const kd_op_desc *d, const kd_op_args *a, kd_err *err) {
    kd_op_args inner = inner_args(c, a);
    weights_args w = weights_of(d, a->param[0], a->packed, KD_F32);
    w.pitch = patch_row(d);
    KD_TRY(zero(b, a->packed, w.out * w.pitch * sizeof(float), err)); /* what fills up the rows */
    KD_TRY(turn_weights(b, pack_kernel, w, err));
    return kd_cuda_linear.pack(b, &c->linear, &inner, err);
}

static kd_status gather(kd_cuda *b, const conv *c, const kd_op_desc *d, const kd_op_args *a, kd_err *err) {
    patch_args g = patches_of(d);
    g.src = a->x[0];
    g.dst = kd_cuda_at(a->scratch, c->x);
    g.groups = kd_cuda_rows(&d->y) * (g.row / 8);
    return kd_launch(b, "patches of a convolution", gather_kernel, kd_blocks(b, g.groups, THREADS), THREADS, err, g);
}

static kd_status patches_forward(kd_cuda *b, conv *c, const kd_op_desc *d, const kd_op_args *a, kd_err *err) {
    kd_op_args inner = inner_args(c, a);
    KD_TRY(gather(b, c, d, a, err));
    return kd_cuda_linear.forward(b, &c->linear, &inner, err);
}

static kd_status patches_backward(kd_cuda *b, conv *c, const kd_op_desc *d, const kd_op_args *a, kd_err *err) {
    kd_op_args inner = inner_args(c, a);
    weights_args w = weights_of(d, a->dparam[0], kd_cuda_at(a->scratch, c->dw), KD_F32);
    w.pitch = patch_row(d);
    inner.dx[0] = kd_cuda_at(a->scratch, c->dx);
    inner.dparam[0] = (float *)w.packed;
    if (d->need_dparam) {
        KD_TRY(gather(b, c, d, a, err));
        KD_TRY(zero(b, w.packed, w.out * w.pitch * sizeof(float), err)); /* the linear op adds to it */
    }
    KD_TRY(kd_cuda_linear.backward(b, &c->linear, &inner, err));
    if (d->need_dparam)
        KD_TRY(turn_weights(b, unpack_kernel, w, err));
    if (!(d->need_dx & 1))
        return KD_OK;
    patch_args s = patches_of(d);
    s.src = inner.dx[0];
    s.dst = a->dx[0];
    s.add = (d->add_dx & 1) != 0;
    s.groups = (size_t)d->x[0].shape[0] * s.h * ((s.map + 7) / 8);
    return kd_launch(b, "patches of a convolution", scatter_kernel, kd_blocks(b, s.groups, THREADS), THREADS, err, s);
}

/* ---- cuDNN's ---- */

static void destroy_passes(conv *c) {
    kd_conv_destroy(c->forward);
    kd_conv_destroy(c->data);
    kd_conv_destroy(c->filter);
    c->forward = c->data = c->filter = NULL;
}

static kd_status create_pass(kd_cuda *b, conv *c, kd_conv **out, const kd_op_desc *d, kd_conv_pass pass, size_t *work, kd_err *err) {
    const int64_t *x = d->x[0].shape;
    kd_conv_desc desc = {d->name, pass, x[0], x[1], x[2], x[3], d->y.shape[3], d->kernel, d->stride, d->pad, kd_op_groups(d), c->type};
    size_t own = 0;
    KD_TRY(kd_conv_create(b, out, &desc, &own, err));
    *work = own > *work ? own : *work;
    return KD_OK;
}

static kd_status create_passes(kd_cuda *b, conv *c, const kd_op_desc *d, kd_dtype type, size_t *work, kd_err *err) {
    c->type = type;
    *work = 0;
    destroy_passes(c);
    KD_TRY(create_pass(b, c, &c->forward, d, KD_CONV_FORWARD, work, err));
    if (d->train && (d->need_dx & 1))
        KD_TRY(create_pass(b, c, &c->data, d, KD_CONV_DATA, work, err));
    if (d->train && d->need_dparam)
        KD_TRY(create_pass(b, c, &c->filter, d, KD_CONV_FILTER, work, err));
    return KD_OK;
}

/* Whether operands and gradients are copied to the library's type. */
static int widens(const conv *c, const kd_op_desc *d) {
    return c->type != d->x[0].dtype;
}
/* The result is y but for bias and activation, which are then put on in place. */
static int writes_y(const conv *c, const kd_op_desc *d) {
    return c->type == d->y.dtype;
}
static int writes_dx(const conv *c, const kd_op_desc *d) {
    return !widens(c, d) && !(d->add_dx & 1);
}

static kd_status create_library(kd_cuda *b, conv *c, const kd_op_desc *d, kd_op_needs *needs, kd_err *err) {
    size_t work = 0, forward, backward;
    kd_dtype narrow = d->x[0].dtype == KD_BF16 && d->y.dtype == KD_BF16 ? KD_BF16 : KD_F32;
    kd_status status = create_passes(b, c, d, narrow, &work, err);
    if (status != KD_OK && narrow == KD_BF16)
        status = create_passes(b, c, d, KD_F32, &work, err);
    KD_TRY(status);
    size_t operand = kd_dtype_size(c->type), x = kd_tdesc_numel(&d->x[0]), y = kd_tdesc_numel(&d->y);
    needs->consumed = d->train ? 0 : 1u;
    needs->packed = kd_op_param_numel(d, 0) * operand;
    c->work = kd_cuda_region(&needs->scratch, work);
    c->x = kd_cuda_region(&needs->scratch, widens(c, d) ? x * operand : 0);
    forward = backward = needs->scratch; /* from here on the passes share memory */
    c->y = kd_cuda_region(&forward, writes_y(c, d) ? 0 : y * operand);
    c->g = kd_cuda_region(&backward, c->own_g ? y * kd_dtype_size(d->x[0].dtype) : 0);
    c->g32 = kd_cuda_region(&backward, d->train && widens(c, d) ? y * operand : 0);
    c->dx = kd_cuda_region(&backward, c->data && !writes_dx(c, d) ? x * operand : 0);
    c->dw = kd_cuda_region(&backward, c->filter ? needs->packed : 0);
    c->columns = kd_cuda_region(&backward, c->filter && d->bias ? kd_cuda_columns_bytes(kd_cuda_rows(&d->y), kd_cuda_width(&d->y)) : 0);
    needs->scratch = forward > backward ? forward : backward;
    return KD_OK;
}

static kd_status library_pack(kd_cuda *b, const conv *c, const kd_op_desc *d, const kd_op_args *a, kd_err *err) {
    weights_args w = weights_of(d, a->param[0], a->packed, c->type);
    w.round = widens(c, d);
    return turn_weights(b, pack_kernel, w, err);
}

/* *p, of x's type, as the library takes it: where it stands, or copied to scratch. */
static kd_status as_operand(kd_cuda *b, const conv *c, const kd_op_desc *d, const void **p, size_t n, void *copy, kd_err *err) {
    if (!widens(c, d))
        return KD_OK;
    KD_TRY(kd_cuda_copy(b, copy, c->type, *p, d->x[0].dtype, n, 0, err));
    *p = copy;
    return KD_OK;
}

static kd_status library_forward(kd_cuda *b, const conv *c, const kd_op_desc *d, const kd_op_args *a, kd_err *err) {
    const void *x = a->x[0];
    void *y = writes_y(c, d) ? a->y : kd_cuda_at(a->scratch, c->y);
    KD_TRY(as_operand(b, c, d, &x, kd_tdesc_numel(&d->x[0]), kd_cuda_at(a->scratch, c->x), err));
    KD_TRY(kd_conv_run(b, c->forward, y, x, a->packed, kd_cuda_at(a->scratch, c->work), err));
    if (writes_y(c, d) && !d->bias && d->act == KD_ACT_NONE)
        return KD_OK;
    return kd_cuda_act_forward(b, a->y, d->y.dtype, y, c->type, d->bias ? a->param[1] : NULL, kd_cuda_width(&d->y), d->act, kd_tdesc_numel(&d->y), err);
}

static kd_status library_backward(kd_cuda *b, const conv *c, const kd_op_desc *d, const kd_op_args *a, const void *g, kd_err *err) {
    void *work = kd_cuda_at(a->scratch, c->work);
    KD_TRY(as_operand(b, c, d, &g, kd_tdesc_numel(&d->y), kd_cuda_at(a->scratch, c->g32), err));
    if (c->filter) {
        const void *x = a->x[0];
        void *dw = kd_cuda_at(a->scratch, c->dw);
        KD_TRY(as_operand(b, c, d, &x, kd_tdesc_numel(&d->x[0]), kd_cuda_at(a->scratch, c->x), err));
        KD_TRY(kd_conv_run(b, c->filter, dw, x, g, work, err));
        KD_TRY(turn_weights(b, unpack_kernel, weights_of(d, a->dparam[0], dw, c->type), err));
    }
    if (!c->data)
        return KD_OK;
    void *dx = writes_dx(c, d) ? a->dx[0] : kd_cuda_at(a->scratch, c->dx);
    KD_TRY(kd_conv_run(b, c->data, dx, g, a->packed, work, err));
    return writes_dx(c, d) ? KD_OK : kd_cuda_copy(b, a->dx[0], d->x[0].dtype, dx, c->type, kd_tdesc_numel(&d->x[0]), (d->add_dx & 1) != 0, err);
}

/* ---- the op ---- */

static int is_linear(const conv *c) {
    return c->way == AS_LINEAR || c->way == AS_PATCHES;
}

static void conv_destroy(void *impl) {
    conv *c = (conv *)impl;
    if (!c)
        return;
    destroy_passes(c);
    if (is_linear(c))
        kd_cuda_linear.destroy(c->linear.impl);
    kd_free(c);
}

static route way_of(const kd_op_desc *d) {
    if (d->kernel == d->stride && d->pad == 0 && kd_op_groups(d) == 1)
        return d->kernel == 1 ? AS_LINEAR : AS_PATCHES;
    return kd_cuda_is_depthwise(d) ? AS_DEPTHWISE : BY_LIBRARY;
}

static void plan_depthwise(conv *c, const kd_op_desc *d, kd_op_needs *needs) {
    int parameters = d->train && d->need_dparam;
    needs->consumed = d->train ? 0 : 1u;
    needs->packed = kd_cuda_depthwise_packed_bytes(d);
    c->g = kd_cuda_region(&needs->scratch, c->own_g ? kd_tdesc_numel(&d->y) * kd_dtype_size(d->x[0].dtype) : 0);
    c->dw = kd_cuda_region(&needs->scratch, parameters ? kd_cuda_depthwise_dw_bytes(d) : 0);
    c->columns = kd_cuda_region(&needs->scratch, parameters && d->bias ? kd_cuda_columns_bytes(kd_cuda_rows(&d->y), kd_cuda_width(&d->y)) : 0);
}

static kd_status conv_create(kd_cuda *b, kd_op *op, kd_op_needs *needs, kd_err *err) {
    const kd_op_desc *d = &op->desc;
    conv *c = NULL;
    KD_TRY(kd_alloc_array(&c, 1, sizeof *c, err));
    op->impl = c;
    c->way = way_of(d);
    c->own_g = d->train && (d->act != KD_ACT_NONE || d->y.dtype != d->x[0].dtype);
    c->linear.desc = *d;
    c->linear.desc.kind = KD_OP_LINEAR;
    c->linear.kind = &kd_cuda_linear;
    switch (c->way) {
    case AS_LINEAR: return kd_cuda_linear.create(b, &c->linear, needs, err);
    case AS_PATCHES: return create_patches(b, c, d, needs, err);
    case BY_LIBRARY: return create_library(b, c, d, needs, err);
    default: plan_depthwise(c, d, needs); return KD_OK;
    }
}

static kd_status conv_pack(kd_cuda *b, kd_op *op, const kd_op_args *a, kd_err *err) {
    conv *c = (conv *)op->impl;
    switch (c->way) {
    case AS_LINEAR: return kd_cuda_linear.pack(b, &c->linear, a, err);
    case AS_PATCHES: return patches_pack(b, c, &op->desc, a, err);
    case BY_LIBRARY: return library_pack(b, c, &op->desc, a, err);
    default: return kd_cuda_depthwise_pack(b, &op->desc, a->packed, a->param[0], err);
    }
}

static kd_status conv_forward(kd_cuda *b, kd_op *op, const kd_op_args *a, kd_err *err) {
    conv *c = (conv *)op->impl;
    switch (c->way) {
    case AS_LINEAR: return kd_cuda_linear.forward(b, &c->linear, a, err);
    case AS_PATCHES: return patches_forward(b, c, &op->desc, a, err);
    case BY_LIBRARY: return library_forward(b, c, &op->desc, a, err);
    default: return kd_cuda_depthwise_forward(b, &op->desc, a->y, a->x[0], a->packed, op->desc.bias ? a->param[1] : NULL, err);
    }
}

/* Sums of the unrounded gradient where there is one: without an activation that is dy itself. */
static kd_status add_bias_gradient(kd_cuda *b, const conv *c, const kd_op_desc *d, const kd_op_args *a, const void *g, kd_err *err) {
    size_t width = kd_cuda_width(&d->y);
    kd_cuda_columns columns = {a->dparam[1], g, NULL, d->x[0].dtype, KD_F32, kd_cuda_rows(&d->y), width, width, kd_cuda_at(a->scratch, c->columns)};
    if (d->act == KD_ACT_NONE)
        columns.g = a->dy, columns.g_type = d->y.dtype;
    return kd_cuda_add_columns(b, &columns, err);
}

static kd_status conv_backward(kd_cuda *b, kd_op *op, const kd_op_args *a, kd_err *err) {
    const kd_op_desc *d = &op->desc;
    conv *c = (conv *)op->impl;
    if (is_linear(c))
        return c->way == AS_LINEAR ? kd_cuda_linear.backward(b, &c->linear, a, err) : patches_backward(b, c, d, a, err);
    const void *g = a->dy;
    if (c->own_g) {
        kd_cuda_act_grad grad = {kd_cuda_at(a->scratch, c->g), a->dy, a->y, d->x[0].dtype, d->y.dtype, d->y.dtype, d->act, 0};
        KD_TRY(kd_cuda_act_backward(b, &grad, kd_tdesc_numel(&d->y), err));
        g = grad.g;
    }
    if (d->need_dparam && d->bias)
        KD_TRY(add_bias_gradient(b, c, d, a, g, err));
    if (c->way == BY_LIBRARY)
        return library_backward(b, c, d, a, g, err);
    if (d->need_dparam)
        KD_TRY(kd_cuda_depthwise_dw(b, d, a->dparam[0], a->x[0], g, kd_cuda_at(a->scratch, c->dw), err));
    return d->need_dx & 1 ? kd_cuda_depthwise_dx(b, d, a->dx[0], g, a->packed, err) : KD_OK;
}

extern "C" const kd_cuda_kind kd_cuda_conv2d = {conv_create, conv_destroy, conv_pack, conv_forward, conv_backward};

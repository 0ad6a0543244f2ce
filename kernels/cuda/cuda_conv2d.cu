/* conv2d, one of three ways: 1x1 kernels that step over nothing are a linear op on the map's positions, depthwise ones are our own (cuda_depthwise.h), the rest is cuDNN's.
 *
 * cuDNN's tensor-core engines for bf16 take channels by eights. Where a convolution in one group has others (the three of an image, above all), its operands are copied to maps filled up with zero
 * channels: cuDNN would do the same inside of some engines, but has those for some shapes only, and copies by way of its work memory, too. f32 doesn't use tensor cores (that would be TF32), so that
 * nothing is gained there; nor is it where groups divide the channels. When bf16 has no engine at all, the convolution runs in f32 on the same rounded operands, which is the same arithmetic.
 *
 * Bias and activation follow in a pass of their own, from an f32 result, so that y is rounded once. */
#include "kernels/cuda/cuda_depthwise.h"
#include "kernels/cuda/cudnn_conv.h"
#include "kernels/cuda/device.cuh"

enum { THREADS = 256, TILE_CHANNELS = 32, TILE_TAPS = 64 };

typedef enum route { AS_LINEAR, AS_DEPTHWISE, BY_LIBRARY } route;

typedef struct conv {
    route way;
    kd_op linear; /* of AS_LINEAR */
    int own_g;    /* dy isn't the gradient of the sums yet: activation or type differ */
    /* of BY_LIBRARY */
    kd_conv *forward, *data, *filter;
    kd_dtype type;        /* of the operands */
    int64_t in, out;      /* their channels */
    kd_dtype y_type, dw_type; /* of the results; dx has x's type, or f32 in f32 */
    size_t work, x, g, g_filled, y, dx, dw, columns; /* offsets in args->scratch */
} conv;

static int64_t group_in(const kd_op_desc *d) {
    return d->x[0].shape[3] / kd_op_groups(d);
}

static size_t taps_of(const kd_op_desc *d) {
    return (size_t)d->kernel * (size_t)d->kernel;
}

/* ---- rows of another width ---- */

typedef struct rows_args {
    void *dst;
    const void *src;
    const float *bias;
    size_t rows, dst_width, src_width; /* what dst has more is zero, what src has more is left out */
    int dst_bf16, src_bf16, act, add;
} rows_args;

/* Eight channels of a row per thread. dst may be src where the widths and types agree. */
static __global__ void rows_kernel(rows_args a) {
    size_t groups = ((a.dst_width > a.src_width ? a.dst_width : a.src_width) + 7) / 8;
    kd_grid_stride(i, a.rows * groups) {
        size_t r = i / groups, c = i % groups * 8;
        int n = c < a.dst_width ? (int)(a.dst_width - c < 8 ? a.dst_width - c : 8) : 0, there = c < a.src_width ? (int)(a.src_width - c < 8 ? a.src_width - c : 8) : 0;
        kd_f8 v = kd_load_some(a.src, a.src_bf16, r * a.src_width + c, there, a.src_width % 8 == 0 && there == 8);
        for (int k = 0; k < n && a.bias; k++)
            v.v[k] += a.bias[c + (size_t)k];
        for (int k = 0; k < n && a.act != KD_ACT_NONE; k++)
            v.v[k] = kd_act_of(a.act, v.v[k]);
        kd_store_grad_some(a.dst, a.dst_bf16, r * a.dst_width + c, v, n, a.dst_width % 8 == 0 && n == 8, a.add);
    }
}

static kd_status move_rows(kd_cuda *b, rows_args a, kd_err *err) {
    size_t widest = a.dst_width > a.src_width ? a.dst_width : a.src_width;
    return kd_launch(b, "channels of a convolution", rows_kernel, kd_blocks(b, a.rows * ((widest + 7) / 8), THREADS), THREADS, err, a);
}

/* ---- weights: [O,I,k,k] as parameters and gradients, [O,k,k,I] for cuDNN ---- */

typedef struct weights_args {
    float *plain;           /* [out][in][taps] */
    void *packed;           /* [filled_out][taps][filled_in] */
    size_t out, in, taps, filled_in;
    int bf16, round;
} weights_args;

/* A block has TILE_CHANNELS inputs of one output, which lie beside each other on both sides, and turns them over TILE_TAPS taps at a time. */
static __global__ void __launch_bounds__(THREADS) pack_kernel(weights_args a) {
    __shared__ float tile[TILE_CHANNELS][TILE_TAPS + 1];
    size_t blocks = (a.filled_in + TILE_CHANNELS - 1) / TILE_CHANNELS, o = blockIdx.x / blocks, first = blockIdx.x % blocks * TILE_CHANNELS;
    for (size_t begin = 0; begin < a.taps; begin += TILE_TAPS) {
        unsigned taps = (unsigned)(a.taps - begin < TILE_TAPS ? a.taps - begin : TILE_TAPS);
        __syncthreads(); /* of the last round's reads */
        for (unsigned e = threadIdx.x; e < TILE_CHANNELS * taps; e += THREADS) {
            size_t i = first + e / taps;
            tile[e / taps][e % taps] = o < a.out && i < a.in ? a.plain[(o * a.in + i) * a.taps + begin + e % taps] : 0.0f;
        }
        __syncthreads();
        for (unsigned e = threadIdx.x; e < TILE_CHANNELS * taps; e += THREADS) {
            size_t i = first + e % TILE_CHANNELS;
            float v = tile[e % TILE_CHANNELS][e / TILE_CHANNELS];
            if (i < a.filled_in)
                kd_store1(a.packed, a.bf16, (o * a.taps + begin + e / TILE_CHANNELS) * a.filled_in + i, a.round ? __bfloat162float(__float2bfloat16_rn(v)) : v);
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
                tile[e % TILE_CHANNELS][e / TILE_CHANNELS] = kd_load1(a.packed, a.bf16, (o * a.taps + begin + e / TILE_CHANNELS) * a.filled_in + i);
        }
        __syncthreads();
        for (unsigned e = threadIdx.x; e < TILE_CHANNELS * taps; e += THREADS) {
            size_t i = first + e / taps;
            if (i < a.in)
                a.plain[(o * a.in + i) * a.taps + begin + e % taps] += tile[e / taps][e % taps];
        }
    }
}

/* Channels of one group as cuDNN has them. Only a convolution in one group is filled up. */
static size_t filled_in(const conv *c, const kd_op_desc *d) {
    return (size_t)(c->in / kd_op_groups(d));
}

static size_t packed_numel(const conv *c, const kd_op_desc *d) {
    return (size_t)c->out * taps_of(d) * filled_in(c, d);
}

static kd_status pack_weights(kd_cuda *b, const conv *c, const kd_op_desc *d, void *packed, const float *weight, kd_err *err) {
    weights_args a = {(float *)weight, packed, (size_t)d->y.shape[3], (size_t)group_in(d), taps_of(d), filled_in(c, d), kd_is_bf16(c->type), kd_is_bf16(d->x[0].dtype)};
    return kd_launch(b, "packing of a convolution", pack_kernel, (unsigned)((size_t)c->out * ((a.filled_in + TILE_CHANNELS - 1) / TILE_CHANNELS)), THREADS, err, a);
}

static kd_status add_weights(kd_cuda *b, const conv *c, const kd_op_desc *d, float *dweight, void *dw, kd_err *err) {
    weights_args a = {dweight, dw, (size_t)d->y.shape[3], (size_t)group_in(d), taps_of(d), filled_in(c, d), kd_is_bf16(c->dw_type), 0};
    return kd_launch(b, "weights gradient of a convolution", unpack_kernel, (unsigned)(a.out * ((a.in + TILE_CHANNELS - 1) / TILE_CHANNELS)), THREADS, err, a);
}

/* ---- cuDNN's ---- */

static void destroy_passes(conv *c) {
    kd_conv_destroy(c->forward);
    kd_conv_destroy(c->data);
    kd_conv_destroy(c->filter);
    c->forward = c->data = c->filter = NULL;
}

static kd_status create_pass(kd_cuda *b, conv *c, kd_conv **out, const kd_op_desc *d, kd_conv_pass pass, kd_dtype result, size_t *work, kd_err *err) {
    const int64_t *x = d->x[0].shape;
    kd_conv_desc desc = {d->name, pass, x[0], x[1], x[2], c->in, c->out, d->kernel, d->stride, d->pad, kd_op_groups(d), c->type, result};
    size_t own = 0;
    KD_TRY(kd_conv_create(b, out, &desc, &own, err));
    *work = own > *work ? own : *work;
    return KD_OK;
}

/* Tries an f32 result of bf16 operands first: not every engine has one. */
static kd_status create_widened(kd_cuda *b, conv *c, kd_conv **out, const kd_op_desc *d, kd_conv_pass pass, kd_dtype *result, size_t *work, kd_err *err) {
    *result = KD_F32;
    kd_status status = create_pass(b, c, out, d, pass, KD_F32, work, err);
    if (status == KD_OK || c->type == KD_F32)
        return status;
    *result = c->type;
    return create_pass(b, c, out, d, pass, c->type, work, err);
}

static int has_tail(const kd_op_desc *d) {
    return d->bias || d->act != KD_ACT_NONE;
}

static kd_status create_passes(kd_cuda *b, conv *c, const kd_op_desc *d, size_t *work, kd_err *err) {
    c->y_type = c->type == KD_BF16 && d->y.dtype == KD_BF16 ? KD_BF16 : KD_F32;
    if (has_tail(d) && c->y_type == KD_BF16)
        KD_TRY(create_widened(b, c, &c->forward, d, KD_CONV_FORWARD, &c->y_type, work, err));
    else
        KD_TRY(create_pass(b, c, &c->forward, d, KD_CONV_FORWARD, c->y_type, work, err));
    if (d->train && (d->need_dx & 1))
        KD_TRY(create_pass(b, c, &c->data, d, KD_CONV_DATA, c->type, work, err));
    if (d->train && d->need_dparam)
        KD_TRY(create_widened(b, c, &c->filter, d, KD_CONV_FILTER, &c->dw_type, work, err));
    return KD_OK;
}

static int64_t by_eights(int64_t channels) {
    return (channels + 7) / 8 * 8;
}

static kd_status create_library(kd_cuda *b, conv *c, const kd_op_desc *d, size_t *work, kd_err *err) {
    int fill = d->x[0].dtype == KD_BF16 && kd_op_groups(d) == 1;
    c->type = d->x[0].dtype;
    c->in = fill ? by_eights(d->x[0].shape[3]) : d->x[0].shape[3];
    c->out = fill ? by_eights(d->y.shape[3]) : d->y.shape[3];
    kd_status status = create_passes(b, c, d, work, err);
    if (status == KD_OK || c->type == KD_F32)
        return status;
    destroy_passes(c);
    *work = 0;
    c->type = KD_F32;
    c->in = d->x[0].shape[3];
    c->out = d->y.shape[3];
    return create_passes(b, c, d, work, err);
}

static int fills_x(const conv *c, const kd_op_desc *d) {
    return c->in != d->x[0].shape[3] || c->type != d->x[0].dtype;
}
static int fills_g(const conv *c, const kd_op_desc *d) {
    return c->out != d->y.shape[3] || c->type != d->x[0].dtype;
}
/* The result is y but for bias and activation, which may then be put in place. */
static int writes_y(const conv *c, const kd_op_desc *d) {
    return c->out == d->y.shape[3] && c->y_type == d->y.dtype;
}
static int writes_dx(const conv *c, const kd_op_desc *d) {
    return !fills_x(c, d) && !(d->add_dx & 1);
}

/* Both passes use the same memory. */
static void plan_library(conv *c, const kd_op_desc *d, size_t work, kd_op_needs *needs) {
    size_t rows_x = kd_cuda_rows(&d->x[0]), rows_y = kd_cuda_rows(&d->y), operand = kd_dtype_size(c->type), forward, backward;
    needs->packed = packed_numel(c, d) * operand;
    c->work = kd_cuda_region(&needs->scratch, work);
    c->x = kd_cuda_region(&needs->scratch, fills_x(c, d) ? rows_x * (size_t)c->in * operand : 0);
    forward = backward = needs->scratch;
    c->y = kd_cuda_region(&forward, writes_y(c, d) ? 0 : rows_y * (size_t)c->out * kd_dtype_size(c->y_type));
    c->g = kd_cuda_region(&backward, c->own_g ? kd_tdesc_numel(&d->y) * kd_dtype_size(d->x[0].dtype) : 0);
    c->g_filled = kd_cuda_region(&backward, d->train && fills_g(c, d) ? rows_y * (size_t)c->out * operand : 0);
    c->dx = kd_cuda_region(&backward, c->data && !writes_dx(c, d) ? rows_x * (size_t)c->in * operand : 0);
    c->dw = kd_cuda_region(&backward, c->filter ? packed_numel(c, d) * kd_dtype_size(c->dw_type) : 0);
    c->columns = kd_cuda_region(&backward, c->filter && d->bias ? kd_cuda_columns_bytes(rows_y, kd_cuda_width(&d->y)) : 0);
    needs->scratch = forward > backward ? forward : backward;
}

/* x as the library takes it. */
static kd_status operand_x(kd_cuda *b, const conv *c, const kd_op_desc *d, const kd_op_args *a, const void **x, kd_err *err) {
    *x = a->x[0];
    if (!fills_x(c, d))
        return KD_OK;
    void *filled = kd_cuda_at(a->scratch, c->x);
    *x = filled;
    return move_rows(b, rows_args{filled, a->x[0], NULL, kd_cuda_rows(&d->x[0]), (size_t)c->in, kd_cuda_width(&d->x[0]), kd_is_bf16(c->type), kd_is_bf16(d->x[0].dtype), KD_ACT_NONE, 0}, err);
}

static kd_status library_forward(kd_cuda *b, const conv *c, const kd_op_desc *d, const kd_op_args *a, kd_err *err) {
    const void *x = NULL;
    void *y = writes_y(c, d) ? a->y : kd_cuda_at(a->scratch, c->y);
    KD_TRY(operand_x(b, c, d, a, &x, err));
    KD_TRY(kd_conv_run(b, c->forward, y, x, a->packed, kd_cuda_at(a->scratch, c->work), err));
    if (writes_y(c, d) && !has_tail(d))
        return KD_OK;
    return move_rows(b, rows_args{a->y, y, d->bias ? a->param[1] : NULL, kd_cuda_rows(&d->y), kd_cuda_width(&d->y), (size_t)c->out, kd_is_bf16(d->y.dtype), kd_is_bf16(c->y_type), (int)d->act, 0}, err);
}

static kd_status library_backward(kd_cuda *b, const conv *c, const kd_op_desc *d, const kd_op_args *a, const void *g, kd_err *err) {
    void *work = kd_cuda_at(a->scratch, c->work);
    if (fills_g(c, d) && (c->data || c->filter)) {
        void *filled = kd_cuda_at(a->scratch, c->g_filled);
        KD_TRY(move_rows(b, rows_args{filled, g, NULL, kd_cuda_rows(&d->y), (size_t)c->out, kd_cuda_width(&d->y), kd_is_bf16(c->type), kd_is_bf16(d->x[0].dtype), KD_ACT_NONE, 0}, err));
        g = filled;
    }
    if (c->filter) {
        const void *x = NULL;
        void *dw = kd_cuda_at(a->scratch, c->dw);
        KD_TRY(operand_x(b, c, d, a, &x, err));
        KD_TRY(kd_conv_run(b, c->filter, dw, x, g, work, err));
        KD_TRY(add_weights(b, c, d, a->dparam[0], dw, err));
    }
    if (!c->data)
        return KD_OK;
    void *dx = writes_dx(c, d) ? a->dx[0] : kd_cuda_at(a->scratch, c->dx);
    KD_TRY(kd_conv_run(b, c->data, dx, g, a->packed, work, err));
    if (writes_dx(c, d))
        return KD_OK;
    return move_rows(b, rows_args{a->dx[0], dx, NULL, kd_cuda_rows(&d->x[0]), kd_cuda_width(&d->x[0]), (size_t)c->in, kd_is_bf16(d->x[0].dtype), kd_is_bf16(c->type), KD_ACT_NONE,
                                  (d->add_dx & 1) != 0},
                     err);
}

/* ---- the op ---- */

static void conv_destroy(void *impl) {
    conv *c = (conv *)impl;
    if (!c)
        return;
    destroy_passes(c);
    if (c->way == AS_LINEAR)
        kd_cuda_linear.destroy(c->linear.impl);
    kd_free(c);
}

static route way_of(const kd_op_desc *d) {
    if (d->kernel == 1 && d->stride == 1 && d->pad == 0 && kd_op_groups(d) == 1)
        return AS_LINEAR;
    return kd_cuda_is_depthwise(d) ? AS_DEPTHWISE : BY_LIBRARY;
}

static kd_status conv_create(kd_cuda *b, kd_op *op, kd_op_needs *needs, kd_err *err) {
    const kd_op_desc *d = &op->desc;
    conv *c = NULL;
    size_t work = 0;
    KD_TRY(kd_alloc_array(&c, 1, sizeof *c, err));
    op->impl = c;
    c->way = way_of(d);
    c->own_g = d->train && (d->act != KD_ACT_NONE || d->y.dtype != d->x[0].dtype);
    if (c->way == AS_LINEAR) {
        c->linear.desc = *d;
        c->linear.desc.kind = KD_OP_LINEAR;
        c->linear.kind = &kd_cuda_linear;
        return kd_cuda_linear.create(b, &c->linear, needs, err);
    }
    needs->consumed = d->train ? 0 : 1u;
    if (c->way == BY_LIBRARY) {
        KD_TRY(create_library(b, c, d, &work, err));
        plan_library(c, d, work, needs);
        return KD_OK;
    }
    needs->packed = kd_cuda_depthwise_packed_bytes(d);
    c->g = kd_cuda_region(&needs->scratch, c->own_g ? kd_tdesc_numel(&d->y) * kd_dtype_size(d->x[0].dtype) : 0);
    c->dw = kd_cuda_region(&needs->scratch, d->train && d->need_dparam ? kd_cuda_depthwise_dw_bytes(d) : 0);
    c->columns = kd_cuda_region(&needs->scratch, d->train && d->need_dparam && d->bias ? kd_cuda_columns_bytes(kd_cuda_rows(&d->y), kd_cuda_width(&d->y)) : 0);
    return KD_OK;
}

static kd_status conv_pack(kd_cuda *b, kd_op *op, const kd_op_args *a, kd_err *err) {
    conv *c = (conv *)op->impl;
    switch (c->way) {
    case AS_LINEAR: return kd_cuda_linear.pack(b, &c->linear, a, err);
    case AS_DEPTHWISE: return kd_cuda_depthwise_pack(b, &op->desc, a->packed, a->param[0], err);
    default: return pack_weights(b, c, &op->desc, a->packed, a->param[0], err);
    }
}

static kd_status conv_forward(kd_cuda *b, kd_op *op, const kd_op_args *a, kd_err *err) {
    conv *c = (conv *)op->impl;
    switch (c->way) {
    case AS_LINEAR: return kd_cuda_linear.forward(b, &c->linear, a, err);
    case AS_DEPTHWISE: return kd_cuda_depthwise_forward(b, &op->desc, a->y, a->x[0], a->packed, op->desc.bias ? a->param[1] : NULL, err);
    default: return library_forward(b, c, &op->desc, a, err);
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
    if (c->way == AS_LINEAR)
        return kd_cuda_linear.backward(b, &c->linear, a, err);
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

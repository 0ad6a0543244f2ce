/* Depthwise convolutions (cuda_depthwise.h). A thread has four channels, so that a warp's loads lie beside each other, and several positions of a row: a value that it has loaded serves all of them whose
 * window holds it, a weight serves all of them. Kernels of 3, 5 and 7 at stride 1 and 2 have their loops laid out; others take the same way with loops. */
#include "kernels/cuda/cuda_depthwise.h"

#include "kernels/cuda/device.cuh"

enum { THREADS = 256, GRADIENTS = 4, SEGMENT = 32, UNITS_OF_A_PART = 16, MOST_PARTS = 2048, SLICES = 8 };

/* x is the map that a window slides over, y has its results: for the gradient of x at stride 1 these are g and dx. */
typedef struct sizes {
    size_t n, channels;
    int h, w, ho, wo, k, stride, pad;
} sizes;

static sizes sizes_of(const kd_op_desc *d) {
    const int64_t *x = d->x[0].shape, *y = d->y.shape;
    return sizes{(size_t)x[0], (size_t)x[3], (int)x[1], (int)x[2], (int)y[1], (int)y[2], d->kernel, d->stride, d->pad};
}

int kd_cuda_is_depthwise(const kd_op_desc *d) {
    return kd_op_groups(d) > 1 && d->groups == d->x[0].shape[3] && d->groups == d->y.shape[3];
}

/* ---- four channels ---- */

struct quad {
    float v[4];
};

/* The channels of a group that exist. Four are moved as one where all groups are whole: only then are they aligned. */
struct lanes {
    int n;
    bool whole;
};
static __device__ __forceinline__ lanes lanes_of(size_t c, size_t channels) {
    return lanes{channels - c < 4 ? (int)(channels - c) : 4, channels % 4 == 0};
}

template <int BF16> static __device__ __forceinline__ quad load_quad(const void *p, size_t i, lanes l = {4, true}) {
    quad r;
    if (!l.whole) {
        for (int k = 0; k < 4; k++)
            r.v[k] = k < l.n ? kd_load1(p, BF16, i + (size_t)k) : 0.0f;
    } else if (BF16) {
        uint2 u = *(const uint2 *)((const __nv_bfloat16 *)p + i);
        r.v[0] = kd_low(u.x), r.v[1] = kd_high(u.x), r.v[2] = kd_low(u.y), r.v[3] = kd_high(u.y);
    } else {
        float4 f = *(const float4 *)((const float *)p + i);
        r.v[0] = f.x, r.v[1] = f.y, r.v[2] = f.z, r.v[3] = f.w;
    }
    return r;
}

static __device__ __forceinline__ void store_quad(void *p, int bf16, size_t i, quad r, lanes l = {4, true}) {
    if (!l.whole) {
        for (int k = 0; k < l.n; k++)
            kd_store1(p, bf16, i + (size_t)k, r.v[k]);
    } else if (bf16) {
        *(uint2 *)((__nv_bfloat16 *)p + i) = make_uint2(kd_pair(r.v[0], r.v[1]), kd_pair(r.v[2], r.v[3]));
    } else {
        *(float4 *)((float *)p + i) = make_float4(r.v[0], r.v[1], r.v[2], r.v[3]);
    }
}

/* A sum and what memory has there. */
static __device__ __forceinline__ quad with(const void *p, int bf16, size_t i, quad sum, lanes l) {
    quad old = bf16 ? load_quad<1>(p, i, l) : load_quad<0>(p, i, l);
    for (int k = 0; k < 4; k++)
        sum.v[k] = old.v[k] + sum.v[k];
    return sum;
}

static __device__ __forceinline__ void add_product(quad *sum, quad a, quad b) {
    for (int k = 0; k < 4; k++)
        sum->v[k] = fmaf(a.v[k], b.v[k], sum->v[k]);
}

/* ---- sliding windows: the forward pass, and the gradient of x at stride 1 ---- */

typedef struct slide_args {
    const void *x;
    void *y;
    const float *w;    /* [k][k][C] */
    const float *bias; /* may be NULL */
    sizes s;
    int y_bf16, act, add;
    unsigned quads, columns; /* of a block, powers of two: threads along channels and along a row; the rest are rows */
    unsigned channel_blocks, column_blocks;
} slide_args;

/* What a sum begins with. */
static __device__ __forceinline__ quad bias_of(const slide_args &a, size_t c, lanes l = {4, true}) {
    quad none = {};
    return a.bias ? load_quad<0>(a.bias, c, l) : none;
}

static __device__ __forceinline__ void finish(const slide_args &a, size_t at, quad sum, lanes l = {4, true}) {
    if (a.add)
        sum = with(a.y, a.y_bf16, at, sum, l);
    if (a.act == KD_ACT_RELU)
        for (int k = 0; k < 4; k++)
            sum.v[k] = kd_act_of(KD_ACT_RELU, sum.v[k]);
    store_quad(a.y, a.y_bf16, at, sum, l);
}

/* Output columns of a thread: so many that the columns it reads fit into registers. */
static constexpr __host__ __device__ int columns_of(int stride) {
    return stride == 1 ? 8 : 4;
}

/* The whole channel groups of a block's rows and columns: a tile, so that what windows share comes from the cache beside the processor. */
template <int K, int S, int BF16> static __global__ void __launch_bounds__(THREADS, 2) slide_kernel(slide_args a) {
    constexpr int ROW = columns_of(S);
    const sizes s = a.s;
    unsigned t = threadIdx.x, block = blockIdx.x, rows = THREADS / (a.quads * a.columns);
    unsigned c = 4 * (block % a.channel_blocks * a.quads + t % a.quads), r = block / a.channel_blocks / a.column_blocks * rows + t / a.quads / a.columns;
    int ox = (int)(ROW * (block / a.channel_blocks % a.column_blocks * a.columns + t / a.quads % a.columns));
    if (c >= s.channels || ox >= s.wo || r >= (unsigned)s.n * (unsigned)s.ho)
        return;
    unsigned image = r / (unsigned)s.ho;
    int iy = (int)(r % (unsigned)s.ho) * S - s.pad, ix = ox * S - s.pad;
    quad sum[ROW], bias = bias_of(a, c);
#pragma unroll
    for (int i = 0; i < ROW; i++)
        sum[i] = bias;
#pragma unroll 1
    for (int ky = 0; ky < K; ky++) {
        if (iy + ky < 0 || iy + ky >= s.h)
            continue;
        size_t at = (((size_t)image * (size_t)s.h + (size_t)(iy + ky)) * (size_t)s.w + (size_t)ix) * s.channels + c; /* left of the map: wraps around, and back before it is used */
        quad w[K];
#pragma unroll
        for (int kx = 0; kx < K; kx++)
            w[kx] = load_quad<0>(a.w, (size_t)(ky * K + kx) * s.channels + c);
#pragma unroll
        for (int i = 0; i < (ROW - 1) * S + K; i++, at += s.channels) {
            quad x = {};
            if ((unsigned)(ix + i) < (unsigned)s.w)
                x = load_quad<BF16>(a.x, at);
#pragma unroll
            for (int kx = 0; kx < K; kx++)
                if (i >= kx && (i - kx) % S == 0 && (i - kx) / S < ROW)
                    add_product(&sum[(i - kx) / S], x, w[kx]);
        }
    }
#pragma unroll
    for (int i = 0; i < ROW; i++)
        if (ox + i < s.wo)
            finish(a, ((size_t)r * (size_t)s.wo + (size_t)(ox + i)) * s.channels + c, sum[i]);
}

/* A block goes through rows, a thread has a position and group of channels: any kernel, stride and number of channels. */
template <int BF16> static __global__ void __launch_bounds__(THREADS) slide_any_kernel(slide_args a) {
    const sizes s = a.s;
    unsigned groups = ((unsigned)s.channels + 3) / 4, rows = (unsigned)s.n * (unsigned)s.ho;
    for (unsigned r = blockIdx.x; r < rows; r += gridDim.x)
        for (unsigned i = threadIdx.x; i < (unsigned)s.wo * groups; i += THREADS) {
            unsigned c = i % groups * 4, ox = i / groups, image = r / (unsigned)s.ho;
            lanes l = lanes_of(c, s.channels);
            int iy = (int)(r % (unsigned)s.ho) * s.stride - s.pad, ix = (int)ox * s.stride - s.pad;
            quad sum = bias_of(a, c, l);
            for (int ky = 0; ky < s.k; ky++)
                for (int kx = 0; kx < s.k; kx++)
                    if (iy + ky >= 0 && iy + ky < s.h && ix + kx >= 0 && ix + kx < s.w) {
                        size_t at = (((size_t)image * (size_t)s.h + (size_t)(iy + ky)) * (size_t)s.w + (size_t)(ix + kx)) * s.channels + c;
                        add_product(&sum, load_quad<BF16>(a.x, at, l), load_quad<0>(a.w, (size_t)(ky * s.k + kx) * s.channels + c, l));
                    }
            finish(a, ((size_t)r * (size_t)s.wo + ox) * s.channels + c, sum, l);
        }
}

typedef void (*slide_fn)(slide_args);

template <int BF16> static slide_fn slide_of(const sizes &s) {
    switch (s.channels % 4 == 0 ? 10 * s.k + s.stride : 0) {
    case 31: return slide_kernel<3, 1, BF16>;
    case 32: return slide_kernel<3, 2, BF16>;
    case 51: return slide_kernel<5, 1, BF16>;
    case 52: return slide_kernel<5, 2, BF16>;
    case 71: return slide_kernel<7, 1, BF16>;
    case 72: return slide_kernel<7, 2, BF16>;
    default: return NULL;
    }
}

/* The power of two from n on, at most `most`. */
static unsigned power_for(size_t n, unsigned most) {
    unsigned p = 1;
    while (p < n && p < most)
        p *= 2;
    return p;
}

/* Blocks for as many rows of a map, of which each goes through several where there are many. */
static unsigned row_blocks(const kd_cuda *b, size_t rows) {
    return kd_blocks(b, rows, 1, 64);
}

static kd_status slide(kd_cuda *b, slide_args a, int x_bf16, kd_err *err) {
    const sizes s = a.s;
    slide_fn kernel = x_bf16 ? slide_of<1>(s) : slide_of<0>(s);
    size_t rows = s.n * (size_t)s.ho;
    KD_ASSERT(rows <= INT32_MAX && s.channels * (size_t)s.wo <= INT32_MAX);
    if (!kernel)
        return kd_launch(b, "depthwise convolution", x_bf16 ? slide_any_kernel<1> : slide_any_kernel<0>, row_blocks(b, rows), THREADS, err, a);
    unsigned row = (unsigned)columns_of(s.stride), quads = (unsigned)s.channels / 4;
    a.quads = power_for(quads, 8);
    a.columns = power_for(((unsigned)s.wo + row - 1) / row, 4);
    a.channel_blocks = (quads + a.quads - 1) / a.quads;
    a.column_blocks = ((unsigned)s.wo + row * a.columns - 1) / (row * a.columns);
    size_t rows_of_a_block = THREADS / (a.quads * a.columns), blocks = (rows + rows_of_a_block - 1) / rows_of_a_block * a.channel_blocks * a.column_blocks;
    KD_ASSERT(blocks <= INT32_MAX);
    return kd_launch(b, "depthwise convolution", kernel, (unsigned)blocks, THREADS, err, a);
}

/* ---- packing ---- */

/* packed[tap][C], and behind it the same turned round when `turned`. */
static __global__ void pack_kernel(float *packed, const float *weight, size_t channels, size_t taps, int round, int turned) {
    kd_grid_stride(i, channels * taps) {
        size_t tap = i / channels, c = i % channels;
        float v = weight[c * taps + tap];
        v = round ? __bfloat162float(__float2bfloat16_rn(v)) : v;
        packed[i] = v;
        if (turned)
            packed[channels * taps + (taps - 1 - tap) * channels + c] = v;
    }
}

static int turned(const kd_op_desc *d) {
    return d->train && (d->need_dx & 1) && d->stride == 1;
}

size_t kd_cuda_depthwise_packed_bytes(const kd_op_desc *d) {
    return kd_op_param_numel(d, 0) * sizeof(float) * (size_t)(1 + turned(d));
}

kd_status kd_cuda_depthwise_pack(kd_cuda *b, const kd_op_desc *d, void *packed, const float *weight, kd_err *err) {
    size_t channels = (size_t)d->x[0].shape[3], taps = (size_t)d->kernel * (size_t)d->kernel;
    return kd_launch(b, "packing of a depthwise convolution", pack_kernel, kd_blocks(b, channels * taps, THREADS), THREADS, err, (float *)packed, weight, channels, taps, kd_is_bf16(d->x[0].dtype),
                     turned(d));
}

kd_status kd_cuda_depthwise_forward(kd_cuda *b, const kd_op_desc *d, void *y, const void *x, const void *packed, const float *bias, kd_err *err) {
    slide_args a = {x, y, (const float *)packed, bias, sizes_of(d), kd_is_bf16(d->y.dtype), (int)d->act, 0, 0, 0, 0, 0};
    return slide(b, a, kd_is_bf16(d->x[0].dtype), err);
}

/* ---- the gradient of x ---- */

typedef struct dx_args {
    const void *g;
    void *dx;
    const float *w;
    sizes s; /* of the forward pass */
    int add;
} dx_args;

/* What reaches a position of x: of a row's taps every stride-th. */
template <int BF16> static __global__ void __launch_bounds__(THREADS) dx_kernel(dx_args a) {
    const sizes s = a.s;
    unsigned groups = ((unsigned)s.channels + 3) / 4, rows = (unsigned)s.n * (unsigned)s.h;
    for (unsigned r = blockIdx.x; r < rows; r += gridDim.x)
        for (unsigned i = threadIdx.x; i < (unsigned)s.w * groups; i += THREADS) {
            unsigned c = i % groups * 4, image = r / (unsigned)s.h;
            lanes l = lanes_of(c, s.channels);
            int y = (int)(r % (unsigned)s.h) + s.pad, x = (int)(i / groups) + s.pad;
            quad sum = {};
            for (int ky = y % s.stride; ky < s.k && ky <= y; ky += s.stride)
                for (int kx = x % s.stride; kx < s.k && kx <= x; kx += s.stride) {
                    int oy = (y - ky) / s.stride, ox = (x - kx) / s.stride;
                    if (oy < s.ho && ox < s.wo)
                        add_product(&sum, load_quad<BF16>(a.g, (((size_t)image * (size_t)s.ho + (size_t)oy) * (size_t)s.wo + (size_t)ox) * s.channels + c, l),
                                    load_quad<0>(a.w, (size_t)(ky * s.k + kx) * s.channels + c, l));
                }
            size_t at = ((size_t)r * (size_t)s.w + i / groups) * s.channels + c;
            store_quad(a.dx, BF16, at, a.add ? with(a.dx, BF16, at, sum, l) : sum, l);
        }
}

kd_status kd_cuda_depthwise_dx(kd_cuda *b, const kd_op_desc *d, void *dx, const void *g, const void *packed, kd_err *err) {
    sizes s = sizes_of(d);
    int bf16 = kd_is_bf16(d->x[0].dtype), add = (d->add_dx & 1) != 0;
    if (turned(d)) { /* g slides over the turned kernel */
        sizes back = {s.n, s.channels, s.ho, s.wo, s.h, s.w, s.k, 1, s.k - 1 - s.pad};
        slide_args a = {g, dx, (const float *)packed + kd_op_param_numel(d, 0), NULL, back, bf16, KD_ACT_NONE, add, 0, 0, 0, 0};
        return slide(b, a, bf16, err);
    }
    dx_args a = {g, dx, (const float *)packed, s, add};
    KD_ASSERT(s.n * (size_t)s.h <= INT32_MAX && s.channels * (size_t)s.w <= INT32_MAX);
    return kd_launch(b, "gradient of a depthwise convolution", bf16 ? dx_kernel<1> : dx_kernel<0>, row_blocks(b, s.n * (size_t)s.h), THREADS, err, a);
}

/* ---- the gradient of the weights ---- */

/* A unit is a segment of an output row, of at most SEGMENT columns; a part has a run of units, sums each of them in registers and adds up these sums: two short f32 sums instead of a long one. Parts are
 * added in f64. */
typedef struct dw_args {
    const void *x, *g;
    float *part; /* [parts][k][k][C] */
    sizes s;
    size_t segments, units, parts;
    unsigned quads; /* of a warp, a power of two: lanes along channels; the rest are parts */
} dw_args;

static dw_args dw_plan(const sizes &s) {
    dw_args a = {};
    a.s = s;
    a.segments = ((size_t)s.wo + SEGMENT - 1) / SEGMENT;
    a.units = s.n * (size_t)s.ho * a.segments;
    a.parts = (a.units + UNITS_OF_A_PART - 1) / UNITS_OF_A_PART;
    a.parts = a.parts < MOST_PARTS ? a.parts : MOST_PARTS;
    return a;
}

size_t kd_cuda_depthwise_dw_bytes(const kd_op_desc *d) {
    return dw_plan(sizes_of(d)).parts * kd_op_param_numel(d, 0) * sizeof(float);
}

/* A unit's place; divided out once, then counted on. */
struct place {
    size_t image;
    int oy, segment;
};

static __device__ __forceinline__ place place_of(const dw_args &a, size_t unit) {
    size_t r = unit / a.segments;
    return place{r / (size_t)a.s.ho, (int)(r % (size_t)a.s.ho), (int)(unit % a.segments)};
}

static __device__ __forceinline__ void go_on(const dw_args &a, place *p) {
    if (++p->segment < (int)a.segments)
        return;
    p->segment = 0;
    if (++p->oy < a.s.ho)
        return;
    p->oy = 0;
    p->image++;
}

/* What row ky of the kernel meets there. */
struct meeting {
    size_t x_row, g_row; /* first elements of the rows of x and g */
    int begin, end;      /* output columns: none when x has no such row */
};

static __device__ __forceinline__ meeting meeting_at(const dw_args &a, const place &p, int ky) {
    const sizes &s = a.s;
    int iy = p.oy * s.stride + ky - s.pad;
    if (iy < 0 || iy >= s.h)
        return meeting{0, 0, 0, 0};
    return meeting{(p.image * (size_t)s.h + (size_t)iy) * (size_t)s.w * s.channels, (p.image * (size_t)s.ho + (size_t)p.oy) * (size_t)s.wo * s.channels,
                   s.wo * p.segment / (int)a.segments, s.wo * (p.segment + 1) / (int)a.segments};
}

/* K warps, one for each row of the kernel. */
template <int K, int S, int BF16> static __global__ void __launch_bounds__(32 * K) dw_kernel(dw_args a) {
    const sizes s = a.s;
    int ky = (int)(threadIdx.x / 32);
    size_t lane = threadIdx.x % 32, channel_blocks = (s.channels / 4 + a.quads - 1) / a.quads;
    size_t c = 4 * (blockIdx.x % channel_blocks * a.quads + lane % a.quads), p = blockIdx.x / channel_blocks * (32 / a.quads) + lane / a.quads;
    if (c >= s.channels || p >= a.parts)
        return;
    quad total[K] = {};
    size_t first = a.units * p / a.parts, last = a.units * (p + 1) / a.parts;
    place at = place_of(a, first);
    for (size_t unit = first; unit < last; unit++, go_on(a, &at)) {
        meeting e = meeting_at(a, at, ky);
        quad sum[K] = {};
        for (int ox = e.begin; ox < e.end; ox += GRADIENTS) {
            quad g[GRADIENTS] = {};
            int ix = ox * S - s.pad;
#pragma unroll
            for (int i = 0; i < GRADIENTS; i++)
                if (ox + i < e.end)
                    g[i] = load_quad<BF16>(a.g, e.g_row + (size_t)(ox + i) * s.channels + c);
#pragma unroll
            for (int i = 0; i < (GRADIENTS - 1) * S + K; i++) {
                quad x = {};
                if (ix + i >= 0 && ix + i < s.w)
                    x = load_quad<BF16>(a.x, e.x_row + (size_t)(ix + i) * s.channels + c);
#pragma unroll
                for (int kx = 0; kx < K; kx++)
                    if (i >= kx && (i - kx) % S == 0 && (i - kx) / S < GRADIENTS)
                        add_product(&sum[kx], x, g[(i - kx) / S]);
            }
        }
#pragma unroll
        for (int kx = 0; kx < K; kx++)
            for (int k = 0; k < 4; k++)
                total[kx].v[k] += sum[kx].v[k];
    }
#pragma unroll
    for (int kx = 0; kx < K; kx++)
        store_quad(a.part, 0, ((p * K + (size_t)ky) * K + (size_t)kx) * s.channels + c, total[kx]);
}

/* A channel, tap and part per thread. */
template <int BF16> static __global__ void dw_any_kernel(dw_args a) {
    const sizes s = a.s;
    size_t taps = (size_t)s.k * (size_t)s.k;
    kd_grid_stride(t, a.parts * taps * s.channels) {
        size_t c = t % s.channels, tap = t / s.channels % taps, p = t / s.channels / taps;
        int ky = (int)tap / s.k, kx = (int)tap % s.k;
        size_t first = a.units * p / a.parts, last = a.units * (p + 1) / a.parts;
        place at = place_of(a, first);
        float total = 0;
        for (size_t unit = first; unit < last; unit++, go_on(a, &at)) {
            meeting e = meeting_at(a, at, ky);
            float sum = 0;
            for (int ox = e.begin; ox < e.end; ox++) {
                int ix = ox * s.stride + kx - s.pad;
                if (ix >= 0 && ix < s.w)
                    sum = fmaf(kd_load1(a.g, BF16, e.g_row + (size_t)ox * s.channels + c), kd_load1(a.x, BF16, e.x_row + (size_t)ix * s.channels + c), sum);
            }
            total += sum;
        }
        a.part[t] = total;
    }
}

/* dw[C][tap] += the parts' sums. SLICES threads share a column. */
static __global__ void __launch_bounds__(32 * SLICES) fold_kernel(float *dw, const float *part, size_t channels, size_t taps, size_t parts) {
    __shared__ double shared[SLICES][32];
    size_t lane = threadIdx.x % 32, slice = threadIdx.x / 32, i = (size_t)blockIdx.x * 32 + lane;
    double sum = 0;
    if (i < channels * taps)
        for (size_t p = slice; p < parts; p += SLICES)
            sum += (double)part[p * channels * taps + i];
    shared[slice][lane] = sum;
    __syncthreads();
    if (slice > 0 || i >= channels * taps)
        return;
    for (int k = 1; k < SLICES; k++)
        sum += shared[k][lane];
    dw[i % channels * taps + i / channels] += (float)sum;
}

typedef void (*dw_fn)(dw_args);

template <int BF16> static dw_fn dw_of(const sizes &s) {
    switch (s.channels % 4 == 0 ? 10 * s.k + s.stride : 0) {
    case 31: return dw_kernel<3, 1, BF16>;
    case 32: return dw_kernel<3, 2, BF16>;
    case 51: return dw_kernel<5, 1, BF16>;
    case 52: return dw_kernel<5, 2, BF16>;
    case 71: return dw_kernel<7, 1, BF16>;
    case 72: return dw_kernel<7, 2, BF16>;
    default: return NULL;
    }
}

kd_status kd_cuda_depthwise_dw(kd_cuda *b, const kd_op_desc *d, float *dweight, const void *x, const void *g, void *scratch, kd_err *err) {
    dw_args a = dw_plan(sizes_of(d));
    size_t taps = (size_t)d->kernel * (size_t)d->kernel;
    int bf16 = kd_is_bf16(d->x[0].dtype);
    dw_fn kernel = bf16 ? dw_of<1>(a.s) : dw_of<0>(a.s);
    a.x = x, a.g = g, a.part = (float *)scratch;
    if (kernel) {
        a.quads = power_for(a.s.channels / 4, 8);
        size_t channel_blocks = (a.s.channels / 4 + a.quads - 1) / a.quads, part_blocks = (a.parts * a.quads + 31) / 32;
        KD_TRY(kd_launch(b, "weights gradient of a depthwise convolution", kernel, (unsigned)(channel_blocks * part_blocks), 32 * (unsigned)d->kernel, err, a));
    } else {
        KD_TRY(kd_launch(b, "weights gradient of a depthwise convolution", bf16 ? dw_any_kernel<1> : dw_any_kernel<0>, kd_blocks(b, a.parts * taps * a.s.channels, THREADS, 64), THREADS, err, a));
    }
    return kd_launch(b, "weights gradient of a depthwise convolution", fold_kernel, (unsigned)((a.s.channels * taps + 31) / 32), 32 * SLICES, err, dweight, (const float *)scratch, a.s.channels, taps,
                     a.parts);
}

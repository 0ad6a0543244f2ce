/* Target encoding (common/tensor/encode.h): first the reduction of the grids, then the tokens that are left. A record's tokens are cut into parts; a warp takes a part token by token, in
 * registers: lane l has columns 256 c + 8 l .. + 7 of chunk c, so that the rotation's distances 1, 2, 4 lie within a lane, 8 .. 128 between lanes, 256 and above between chunks. Tokens too wide
 * for that are a block's, in shared memory, and the widest in the scratch region. Statistics are summed over columns, tokens and parts in an order that the sizes alone fix.
 * Payloads are exact: nothing is fused in here (-fmad=false). */
#include "kernels/cuda/device.cuh"

enum { WARPS = 4, CHUNK = 256, MOST_CHUNKS = 6, WIDE_THREADS = 256, SHARED_WIDTH = 8192, AXIS_THREADS = 64, REDUCE_THREADS = 128 };

typedef struct encode_args {
    const float *x; /* [records][rows][width]: the tokens to be stored */
    uint8_t *out;
    kd_encode_device_plan plan;
    size_t records, parts;
    size_t width, rows, bytes; /* of a stored record: columns, tokens, payload */
    const float *grid;         /* adjoint: the tokens before the reduction, [records][grid_rows][width]; else NULL */
    size_t grid_rows;
    int dtype, block, whole; /* block: of the rotation; whole: groups of eight values may be moved as one */
    float limit, norm;
} encode_args;

/* ---- the axes of a reduction ---- */

/* A thread per point of the reduced axis; kd_encode_axis_fill's arithmetic. */
static __global__ void axes_kernel(kd_encode_axis rows, kd_encode_axis columns) {
    kd_encode_axis a = blockIdx.y ? columns : rows;
    int64_t k = (int64_t)blockIdx.x * blockDim.x + threadIdx.x, first = k * a.from / a.to, last = ((k + 1) * a.from + a.to - 1) / a.to;
    if (k >= a.to)
        return;
    int begin = a.from, end = a.from;
    for (int64_t i = 0; i < a.from; i++) {
        double weight = a.mean && i >= first && i < last ? 1 : 0;
        if (!a.mean) {
            double at = ((double)i + 0.5) * (double)a.to / (double)a.from - 0.5; /* kd_bilinear_tap */
            at = at < 0 ? 0 : at;
            int64_t k0 = (int64_t)at < a.to - 1 ? (int64_t)at : a.to - 1, k1 = k0 + 1 < a.to ? k0 + 1 : k0;
            double w1 = at - (double)k0;
            weight += k == k0 ? 1 - w1 : 0;
            weight += k == k1 ? w1 : 0;
        }
        a.weight[k * a.from + i] = weight;
        if (weight != 0) {
            begin = begin < (int)i ? begin : (int)i;
            end = (int)i + 1;
        }
    }
    a.begin[k] = begin;
    a.end[k] = end;
}

/* ---- reduction ---- */

typedef struct reduce_args {
    kd_encode_axis rows, columns;
    float *y;       /* [records][rows.to][columns.to][width] */
    const float *x; /* [records][rows.from][columns.from][width] */
    size_t records, width;
    int whole;
} reduce_args;

/* A thread per eight columns of a reduced token. */
static __global__ void __launch_bounds__(REDUCE_THREADS) reduce_kernel(reduce_args a) {
    size_t groups = (a.width + 7) / 8, from = (size_t)a.columns.from, per_record = (size_t)a.rows.to * (size_t)a.columns.to;
    kd_grid_stride(index, a.records * per_record * groups) {
        size_t at = index % groups * 8, token = index / groups % per_record, record = index / groups / per_record, k = token / (size_t)a.columns.to, l = token % (size_t)a.columns.to;
        const float *x = a.x + record * (size_t)a.rows.from * from * a.width + at;
        int i_begin = a.rows.begin[k], i_end = a.rows.end[k], j_begin = a.columns.begin[l], j_end = a.columns.end[l], n = a.width - at < 8 ? (int)(a.width - at) : 8;
        double sum[8] = {0, 0, 0, 0, 0, 0, 0, 0}, divisor = (double)(i_end - i_begin) * (double)(j_end - j_begin);
        for (int i = i_begin; i < i_end; i++) {
            double line[8] = {0, 0, 0, 0, 0, 0, 0, 0}, weight = a.rows.weight[k * (size_t)a.rows.from + (size_t)i];
            for (int j = j_begin; j < j_end; j++) {
                double w = a.columns.weight[l * from + (size_t)j];
                kd_f8 v = kd_load_some(x, 0, ((size_t)i * from + (size_t)j) * a.width, n, a.whole);
                for (int q = 0; q < 8; q++)
                    line[q] += w * (double)v.v[q];
            }
            for (int q = 0; q < 8; q++)
                sum[q] += weight * line[q];
        }
        kd_f8 y;
        for (int q = 0; q < 8; q++)
            y.v[q] = (float)(a.rows.mean ? sum[q] / divisor : sum[q]);
        kd_store_some(a.y, 0, (record * per_record + token) * a.width + at, y, n, a.whole);
    }
}

/* ---- a token's values ---- */

/* Eight columns from `at` on; zeros behind the last one. */
static __device__ __forceinline__ kd_f8 values_of(const encode_args &a, const float *token, size_t at) {
    if (at >= a.width)
        return kd_f8{{0, 0, 0, 0, 0, 0, 0, 0}};
    return kd_load_some(token, 0, at, a.width - at < 8 ? (int)(a.width - at) : 8, a.whole);
}

static __device__ __forceinline__ unsigned count_bad(kd_f8 x, float limit) {
    unsigned bad = 0;
    for (int k = 0; k < 8; k++)
        bad += !(fabsf(x.v[k]) <= limit);
    return bad;
}

/* ---- statistics ---- */

typedef struct sums {
    double xx, qq, xq, err2;
} sums;

static __device__ __forceinline__ void count_values(sums *s, kd_f8 x, kd_f8 y) {
    for (int k = 0; k < 8; k++) {
        double a = (double)x.v[k], b = (double)y.v[k];
        s->xx += a * a;
        s->qq += b * b;
        s->xq += a * b;
        s->err2 += (a - b) * (a - b);
    }
}

/* The sum of squares over part p of a record's full grid, of thread `me` of `threads`. */
static __device__ __forceinline__ double squares_of(const encode_args &a, size_t record, size_t p, size_t me, size_t threads) {
    double sum = 0;
    if (a.grid == NULL)
        return 0;
    const float *t = a.grid + record * a.grid_rows * a.width;
    size_t end = a.grid_rows * (p + 1) / a.parts * a.width;
    for (size_t i = a.grid_rows * p / a.parts * a.width + 8 * me; i < end; i += 8 * threads) {
        kd_f8 x = kd_load_some(t, 0, i, end - i < 8 ? (int)(end - i) : 8, a.whole);
        for (int k = 0; k < 8; k++)
            sum += (double)x.v[k] * (double)x.v[k];
    }
    return sum;
}

static __device__ __forceinline__ double larger(double a, double b) {
    return b > a ? b : a;
}

/* ---- element types ---- */

/* kd_f32_to_f16. Below 2^-14, adding 1/2 rounds to a multiple of 2^-24, which is then in the low bits. */
static __device__ __forceinline__ unsigned f16_of(float x) {
    unsigned u = __float_as_uint(x), sign = u >> 16 & 0x8000, magnitude = u & 0x7fffffff;
    if (magnitude > 0x7f800000)
        return sign | 0x7e00 | (magnitude >> 13 & 0x3ff);
    if (magnitude >= 0x477ff000)
        return sign | 0x7c00;
    if (magnitude < 0x38800000)
        return sign | (__float_as_uint(__uint_as_float(magnitude) + 0.5f) - 0x3f000000);
    return sign | ((magnitude + 0xfff + (magnitude >> 13 & 1) - 0x38000000) >> 13);
}

static __device__ __forceinline__ float of_f16(unsigned h) {
    unsigned sign = (h & 0x8000) << 16, exponent = h >> 10 & 31, mantissa = h & 0x3ff;
    if (exponent == 31)
        return __uint_as_float(sign | 0x7f800000 | mantissa << 13);
    if (exponent == 0)
        return __uint_as_float(sign | __float_as_uint((float)mantissa * 0x1p-24f));
    return __uint_as_float(sign | (exponent + 112) << 23 | mantissa << 13);
}

static __device__ __forceinline__ unsigned bf16_of(float x) {
    unsigned u = __float_as_uint(x);
    return (u & 0x7fffffff) > 0x7f800000 ? u >> 16 | 0x40 : (u + 0x7fff + (u >> 16 & 1)) >> 16;
}

/* n of eight bytes; whole ones lie at a multiple of 4. */
static __device__ __forceinline__ void store_bytes(uint8_t *p, uint2 v, int n, int whole) {
    if (whole && (uintptr_t)p % 8 == 0) {
        *(uint2 *)p = v;
    } else if (whole) {
        ((unsigned *)p)[0] = v.x;
        ((unsigned *)p)[1] = v.y;
    } else {
        for (int k = 0; k < 8; k++)
            if (k < n)
                p[k] = (uint8_t)((k < 4 ? v.x : v.y) >> 8 * (k % 4));
    }
}

/* Byte `byte` of eight integers. */
static __device__ __forceinline__ uint2 pack(const unsigned v[8], int byte) {
    unsigned w[2];
    for (int k = 0; k < 2; k++) {
        w[k] = 0;
        for (int q = 0; q < 4; q++)
            w[k] |= (v[4 * k + q] >> 8 * byte & 255) << 8 * q;
    }
    return make_uint2(w[0], w[1]);
}

/* Columns `at` .. of a token as f32, f16 or bf16; what a reader gets. `out` is the record's payload. */
static __device__ __forceinline__ kd_f8 store_rounded(const encode_args &a, uint8_t *out, size_t token, size_t at, kd_f8 x) {
    if (at >= a.width)
        return x;
    int n = a.width - at < 8 ? (int)(a.width - at) : 8;
    size_t i = token * a.width + at;
    if (a.dtype == KD_F32) {
        kd_store_some(out, 0, i, x, n, a.whole);
        return x;
    }
    unsigned h[8];
    kd_f8 y;
    for (int k = 0; k < 8; k++) {
        h[k] = a.dtype == KD_F16 ? f16_of(x.v[k]) : bf16_of(x.v[k]);
        y.v[k] = a.dtype == KD_F16 ? of_f16(h[k]) : __uint_as_float(h[k] << 16);
    }
    store_bytes(out + i, pack(h, 1), n, a.whole);
    store_bytes(out + a.rows * a.width + i, pack(h, 0), n, a.whole);
    return y;
}

/* ---- i8 ---- */

static __device__ __forceinline__ void butterfly(float *a, float *b) {
    float sum = *a + *b, difference = *a - *b;
    *a = sum;
    *b = difference;
}

/* Distances 1, 2, 4. */
static __device__ __forceinline__ void butterflies8(kd_f8 *v, int block) {
#pragma unroll
    for (int d = 1; d < 8; d *= 2)
        if (d < block)
#pragma unroll
            for (int k = 0; k < 8; k++)
                if (!(k & d))
                    butterfly(&v->v[k], &v->v[k | d]);
}

/* A token in a warp's registers times Sylvester's matrix without its factor. */
template <int CHUNKS> static __device__ __forceinline__ void rotate(kd_f8 (&v)[CHUNKS], int block, int lane) {
#pragma unroll
    for (int c = 0; c < CHUNKS; c++) {
        butterflies8(&v[c], block);
#pragma unroll
        for (int mask = 1; mask < 32; mask *= 2)
            if (8 * mask < block)
#pragma unroll
                for (int k = 0; k < 8; k++) {
                    float mine = v[c].v[k], other = __shfl_xor_sync(0xffffffffu, mine, mask);
                    v[c].v[k] = other + (lane & mask ? -mine : mine);
                }
    }
#pragma unroll
    for (int d = 1; d < CHUNKS; d *= 2)
        if (CHUNK * d < block)
#pragma unroll
            for (int c = 0; c < CHUNKS; c++)
                if (!(c & d) && (c | d) < CHUNKS)
#pragma unroll
                    for (int k = 0; k < 8; k++)
                        butterfly(&v[c].v[k], &v[c | d].v[k]);
}

/* Rotated and scaled values to their codes; their largest magnitude is 127 scales. */
static __device__ __forceinline__ kd_f8 codes_of(kd_f8 v, float scale) {
    for (int k = 0; k < 8; k++)
        v.v[k] = scale > 0 ? fminf(fmaxf(rintf(__fdiv_rn(v.v[k], scale)), -127.0f), 127.0f) : 0.0f;
    return v;
}

static __device__ __forceinline__ void store_codes(const encode_args &a, uint8_t *out, size_t token, size_t at, kd_f8 code) {
    if (at >= a.width)
        return;
    unsigned q[8];
    for (int k = 0; k < 8; k++)
        q[k] = (unsigned)(int)code.v[k];
    store_bytes(out + 4 * a.rows + token * a.width + at, pack(q, 0), a.width - at < 8 ? (int)(a.width - at) : 8, a.whole);
}

/* Of the four lowest threads, a byte each: the payload of an odd width isn't aligned. */
static __device__ __forceinline__ void store_scale(uint8_t *out, size_t token, float scale, unsigned me) {
    if (me < 4)
        out[4 * token + me] = (uint8_t)(__float_as_uint(scale) >> 8 * me);
}

static __device__ __forceinline__ float magnitude_of(kd_f8 v, float most) {
    for (int k = 0; k < 8; k++)
        most = fmaxf(most, fabsf(v.v[k]));
    return most;
}

/* A token as codes, with `zeros` as zeros; y: what a reader gets. */
template <int CHUNKS> static __device__ __forceinline__ void store_rotated(const encode_args &a, uint8_t *out, size_t token, const kd_f8 (&x)[CHUNKS], kd_f8 (&y)[CHUNKS], int zeros, int lane) {
    float most = 0;
#pragma unroll
    for (int c = 0; c < CHUNKS; c++)
        for (int k = 0; k < 8; k++)
            y[c].v[k] = zeros ? 0.0f : x[c].v[k];
    rotate(y, a.block, lane);
#pragma unroll
    for (int c = 0; c < CHUNKS; c++) {
        for (int k = 0; k < 8; k++)
            y[c].v[k] *= a.norm;
        most = magnitude_of(y[c], most);
    }
    float scale = __fdiv_rn(kd_warp_max(most), 127.0f), back = scale * a.norm;
#pragma unroll
    for (int c = 0; c < CHUNKS; c++) {
        y[c] = codes_of(y[c], scale);
        store_codes(a, out, token, (size_t)(CHUNK * c + 8 * lane), y[c]);
    }
    store_scale(out, token, scale, (unsigned)lane);
    rotate(y, a.block, lane);
#pragma unroll
    for (int c = 0; c < CHUNKS; c++)
        for (int k = 0; k < 8; k++)
            y[c].v[k] *= back;
}

/* ---- tokens in a warp's registers ---- */

template <int CHUNKS> static __global__ void __launch_bounds__(32 * WARPS) warp_kernel(encode_args a) {
    size_t index = (size_t)blockIdx.x * WARPS + threadIdx.x / 32, record = index / a.parts, p = index % a.parts;
    int lane = (int)(threadIdx.x % 32);
    if (record >= a.records)
        return;
    const float *t = a.x + record * a.rows * a.width;
    uint8_t *out = a.out + record * a.bytes;
    kd_encode_stats s = {0, 0, 0, 0, 0, 0, 0};
    unsigned bad = 0;
    for (size_t token = a.rows * p / a.parts, end = a.rows * (p + 1) / a.parts; token < end; token++) {
        kd_f8 x[CHUNKS], y[CHUNKS];
        unsigned bad_here = 0;
        sums sum = {0, 0, 0, 0};
#pragma unroll
        for (int c = 0; c < CHUNKS; c++) {
            x[c] = values_of(a, t + token * a.width, (size_t)(CHUNK * c + 8 * lane));
            bad_here += count_bad(x[c], a.limit);
        }
        bad += bad_here;
        if (a.dtype == KD_I8) {
            store_rotated(a, out, token, x, y, kd_warp_sum(bad_here) > 0, lane);
        } else {
#pragma unroll
            for (int c = 0; c < CHUNKS; c++)
                y[c] = store_rounded(a, out, token, (size_t)(CHUNK * c + 8 * lane), x[c]);
        }
#pragma unroll
        for (int c = 0; c < CHUNKS; c++)
            count_values(&sum, x[c], y[c]);
        double xx = kd_warp_sum(sum.xx), err2 = kd_warp_sum(sum.err2);
        s.xx += xx, s.err2 += err2, s.qq += sum.qq, s.xq += sum.xq;
        s.worst = xx > 0 ? larger(s.worst, sqrt(err2 / xx)) : s.worst;
    }
    s.qq = kd_warp_sum(s.qq);
    s.xq = kd_warp_sum(s.xq);
    s.square = kd_warp_sum(squares_of(a, record, p, (size_t)lane, 32));
    s.bad = kd_warp_sum((double)bad);
    if (lane == 0)
        a.plan.part[index] = s;
}

/* ---- wide tokens: a block's ---- */

/* Distances from 8 on over a token in memory; all threads take part. */
static __device__ void butterflies_far(float *v, size_t width, size_t block) {
    for (size_t h = 8; h < block; h *= 2) {
        for (size_t i = threadIdx.x; i < width / 2; i += WIDE_THREADS) {
            size_t at = 2 * (i & ~(h - 1)) | (i & (h - 1));
            butterfly(&v[at], &v[at + h]);
        }
        __syncthreads();
    }
}

static __device__ float block_max(float v, double *shared) {
    int lane = (int)(threadIdx.x % 32);
    v = kd_warp_max(v);
    __syncthreads(); /* of an earlier use of shared */
    if (lane == 0)
        shared[threadIdx.x / 32] = (double)v;
    __syncthreads();
    return kd_warp_max(lane < WIDE_THREADS / 32 ? (float)shared[lane] : 0.0f);
}

/* A token as codes, through y: memory for its columns, rounded up to eight. Thread i has every WIDE_THREADS-th group of eight columns; what a reader gets stays in y, to be multiplied by the result.
 * *bad: values of this thread that can't be stored. */
static __device__ float store_wide_codes(const encode_args &a, uint8_t *out, const float *t, size_t token, float *y, double *shared, unsigned *bad) {
    size_t first = 8 * threadIdx.x, step = 8 * WIDE_THREADS;
    *bad = 0;
    for (size_t i = first; i < a.width; i += step) {
        kd_f8 v = values_of(a, t + token * a.width, i);
        *bad += count_bad(v, a.limit);
        butterflies8(&v, a.block);
        kd_store8(y, 0, i, v);
    }
    int zeros = kd_block_sum((double)*bad, shared) > 0; /* its barriers show y to everyone */
    butterflies_far(y, a.width, (size_t)a.block);
    float most = 0;
    for (size_t i = first; i < a.width; i += step) {
        kd_f8 v = kd_load8(y, 0, i);
        for (int k = 0; k < 8; k++)
            v.v[k] = zeros ? 0.0f : v.v[k] * a.norm;
        kd_store8(y, 0, i, v);
        most = magnitude_of(v, most);
    }
    float scale = __fdiv_rn(block_max(most, shared), 127.0f);
    for (size_t i = first; i < a.width; i += step) {
        kd_f8 v = codes_of(kd_load8(y, 0, i), scale);
        store_codes(a, out, token, i, v);
        butterflies8(&v, a.block);
        kd_store8(y, 0, i, v);
    }
    store_scale(out, token, scale, threadIdx.x);
    __syncthreads();
    butterflies_far(y, a.width, (size_t)a.block);
    return scale * a.norm;
}

static __global__ void __launch_bounds__(WIDE_THREADS) wide_kernel(encode_args a) {
    __shared__ __align__(16) float narrower[SHARED_WIDTH];
    __shared__ double shared[32];
    size_t record = blockIdx.x / a.parts, p = blockIdx.x % a.parts, first = 8 * threadIdx.x, step = 8 * WIDE_THREADS;
    float *y = a.width <= SHARED_WIDTH ? narrower : a.plan.host.token + (2 * record + p) * a.plan.host.stride;
    const float *t = a.x + record * a.rows * a.width;
    uint8_t *out = a.out + record * a.bytes;
    kd_encode_stats s = {0, 0, 0, 0, 0, 0, 0};
    double bad = 0;
    for (size_t token = a.rows * p / a.parts, end = a.rows * (p + 1) / a.parts; token < end; token++) {
        unsigned bad_here = 0;
        float back = a.dtype == KD_I8 ? store_wide_codes(a, out, t, token, y, shared, &bad_here) : 0;
        sums sum = {0, 0, 0, 0};
        for (size_t i = first; i < a.width; i += step) {
            kd_f8 x = values_of(a, t + token * a.width, i), q;
            if (a.dtype == KD_I8) {
                q = kd_load8(y, 0, i);
                for (int k = 0; k < 8; k++)
                    q.v[k] *= back;
            } else {
                bad_here += count_bad(x, a.limit);
                q = store_rounded(a, out, token, i, x);
            }
            count_values(&sum, x, q);
        }
        bad += (double)bad_here;
        double xx = kd_block_sum(sum.xx, shared), err2 = kd_block_sum(sum.err2, shared);
        s.xx += xx, s.err2 += err2, s.qq += sum.qq, s.xq += sum.xq;
        s.worst = xx > 0 ? larger(s.worst, sqrt(err2 / xx)) : s.worst;
    }
    s.qq = kd_block_sum(s.qq, shared);
    s.xq = kd_block_sum(s.xq, shared);
    s.square = kd_block_sum(squares_of(a, record, p, threadIdx.x, WIDE_THREADS), shared);
    s.bad = kd_block_sum(bad, shared);
    if (threadIdx.x == 0)
        a.plan.part[blockIdx.x] = s;
}

/* ---- records ---- */

/* A warp per record. */
static __global__ void __launch_bounds__(32 * WARPS) fold_kernel(kd_encode_stats *stats, const kd_encode_stats *part, size_t records, size_t parts) {
    size_t record = (size_t)blockIdx.x * WARPS + threadIdx.x / 32, lane = threadIdx.x % 32;
    kd_encode_stats s = {0, 0, 0, 0, 0, 0, 0};
    if (record >= records)
        return;
    for (size_t p = lane; p < parts; p += 32) {
        const kd_encode_stats *q = &part[record * parts + p];
        s.xx += q->xx, s.qq += q->qq, s.xq += q->xq, s.err2 += q->err2, s.square += q->square, s.bad += q->bad;
        s.worst = larger(s.worst, q->worst);
    }
    for (int mask = 16; mask > 0; mask >>= 1)
        s.worst = larger(s.worst, __shfl_xor_sync(0xffffffffu, s.worst, mask));
    s.xx = kd_warp_sum(s.xx), s.qq = kd_warp_sum(s.qq), s.xq = kd_warp_sum(s.xq), s.err2 = kd_warp_sum(s.err2), s.square = kd_warp_sum(s.square), s.bad = kd_warp_sum(s.bad);
    if (lane == 0)
        stats[record] = s;
}

static kd_status launch_warps(kd_cuda *b, const encode_args *a, kd_err *err) {
    void (*kernel)(encode_args) = a->width <= 1 * CHUNK   ? warp_kernel<1>
                                  : a->width <= 2 * CHUNK ? warp_kernel<2>
                                  : a->width <= 3 * CHUNK ? warp_kernel<3>
                                  : a->width <= 4 * CHUNK ? warp_kernel<4>
                                                          : warp_kernel<MOST_CHUNKS>;
    return kd_launch(b, "encoding", kernel, (unsigned)((a->records * a->parts + WARPS - 1) / WARPS), 32 * WARPS, err, *a);
}

/* The reduced tokens. */
static kd_status reduce(kd_cuda *b, const kd_encode_device_plan *plan, const float *x, size_t records, size_t width, int whole, kd_err *err) {
    const kd_encode_axis *v = &plan->host.rows, *h = &plan->host.columns;
    int longest = v->to > h->to ? v->to : h->to;
    reduce_args a = {*v, *h, plan->reduced, x, records, width, whole};
    KD_TRY(kd_launch(b, "reducing tokens", axes_kernel, dim3((unsigned)(longest + AXIS_THREADS - 1) / AXIS_THREADS, 2), AXIS_THREADS, err, *v, *h));
    size_t n = records * (size_t)v->to * (size_t)h->to * ((width + 7) / 8);
    return kd_launch(b, "reducing tokens", reduce_kernel, kd_blocks(b, n, REDUCE_THREADS), REDUCE_THREADS, err, a);
}

kd_status kd_cuda_encode(kd_backend *base, uint8_t *out, kd_encode_stats *stats, const float *x, size_t records, const kd_encode_spec *spec, void *scratch, kd_err *err) {
    kd_cuda *b = kd_cuda_use(base);
    kd_encode_check(spec);
    encode_args a = {};
    a.x = x, a.out = out, a.plan = kd_encode_device_place(spec, records, scratch), a.records = records, a.parts = a.plan.parts;
    a.width = (size_t)spec->width, a.rows = kd_encode_rows(spec), a.bytes = kd_encode_bytes(spec);
    a.dtype = (int)spec->dtype, a.block = kd_hadamard_block(spec->width), a.limit = kd_encode_limit(spec->dtype), a.norm = kd_hadamard_norm(a.block);
    a.whole = a.width % 8 == 0 && (uintptr_t)x % 16 == 0 && (uintptr_t)out % 16 == 0;
    if (spec->target.kind != KD_TARGET_FULL) {
        KD_TRY(reduce(b, &a.plan, x, records, a.width, a.whole, err));
        a.x = a.plan.reduced;
    }
    if (spec->target.kind == KD_TARGET_ADJOINT)
        a.grid = x, a.grid_rows = (size_t)spec->grid_h * (size_t)spec->grid_w;
    if (a.width <= MOST_CHUNKS * CHUNK) {
        KD_TRY(launch_warps(b, &a, err));
    } else {
        if (a.width > SHARED_WIDTH && a.parts > 2) /* a token of floats for each part */
            a.parts = 2;
        KD_TRY(kd_launch(b, "encoding", wide_kernel, (unsigned)(records * a.parts), WIDE_THREADS, err, a));
    }
    return kd_launch(b, "encoding", fold_kernel, (unsigned)((records + WARPS - 1) / WARPS), 32 * WARPS, err, stats, (const kd_encode_stats *)a.plan.part, records, a.parts);
}

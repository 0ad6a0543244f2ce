/* What kernels share: the checked launch, loads and stores of F32 and BF16 by groups of eight, activations, sums over warps and blocks.
 *
 * A tensor's dtype is an argument of the kernel: the branch is the same for all threads, and one kernel serves every mixture of types. Rows are taken in groups of eight values (16 bytes of
 * bf16, 32 of f32) where their width allows it. Reductions have a fixed order that depends on the shape alone. No fast-math, no contraction of a * b + c (-fmad=false): where a kernel wants a
 * fused multiply-add it writes fmaf. */
#ifndef KD_KERNELS_CUDA_DEVICE_CUH
#define KD_KERNELS_CUDA_DEVICE_CUH

#include <cuda_bf16.h>

#include "kernels/cuda/cuda.h"

/* Starts kernel(args...) on the backend's stream; `name` is for the message. An empty grid is no launch. */
template <class... P, class... A>
static kd_status kd_launch(kd_cuda *b, const char *name, void (*kernel)(P...), dim3 grid, unsigned threads, kd_err *err, A... args) {
    if (grid.x == 0 || grid.y == 0 || grid.z == 0)
        return KD_OK;
    cudaLaunchConfig_t config = {};
    config.gridDim = grid;
    config.blockDim = dim3(threads);
    config.stream = b->stream;
    return kd_cuda_check(cudaLaunchKernelEx(&config, kernel, static_cast<P>(args)...), name, err);
}

/* Blocks for n items of one thread each, at most `most` per multiprocessor: kernels loop over what is left (kd_grid_stride). */
static inline unsigned kd_blocks(const kd_cuda *b, size_t n, unsigned threads, unsigned most = 16) {
    size_t blocks = (n + threads - 1) / threads, limit = (size_t)b->processors * most;
    return (unsigned)(blocks < limit ? blocks : limit);
}

#define kd_grid_stride(i, n) for (size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x; i < (n); i += (size_t)gridDim.x * blockDim.x)

/* ---- values ---- */

static __device__ __forceinline__ float kd_load1(const void *p, int bf16, size_t i) {
    return bf16 ? __bfloat162float(((const __nv_bfloat16 *)p)[i]) : ((const float *)p)[i];
}

static __device__ __forceinline__ void kd_store1(void *p, int bf16, size_t i, float v) {
    if (bf16)
        ((__nv_bfloat16 *)p)[i] = __float2bfloat16_rn(v);
    else
        ((float *)p)[i] = v;
}

/* A gradient's store: added to what is there when `add`. */
static __device__ __forceinline__ void kd_store_grad1(void *p, int bf16, size_t i, float v, int add) {
    kd_store1(p, bf16, i, add ? kd_load1(p, bf16, i) + v : v);
}

struct kd_f8 {
    float v[8];
};

static __device__ __forceinline__ float kd_low(unsigned pair) {
    return __uint_as_float(pair << 16);
}
static __device__ __forceinline__ float kd_high(unsigned pair) {
    return __uint_as_float(pair & 0xffff0000u);
}
static __device__ __forceinline__ unsigned kd_pair(float low, float high) {
    return (unsigned)__bfloat16_as_ushort(__float2bfloat16_rn(low)) | (unsigned)__bfloat16_as_ushort(__float2bfloat16_rn(high)) << 16;
}

/* Values i .. i+7; i is a multiple of 8 and p 16-byte aligned there. */
static __device__ __forceinline__ kd_f8 kd_load8(const void *p, int bf16, size_t i) {
    kd_f8 r;
    if (bf16) {
        uint4 u = *(const uint4 *)((const __nv_bfloat16 *)p + i);
        r.v[0] = kd_low(u.x), r.v[1] = kd_high(u.x), r.v[2] = kd_low(u.y), r.v[3] = kd_high(u.y);
        r.v[4] = kd_low(u.z), r.v[5] = kd_high(u.z), r.v[6] = kd_low(u.w), r.v[7] = kd_high(u.w);
    } else {
        const float4 *q = (const float4 *)((const float *)p + i);
        float4 a = q[0], c = q[1];
        r.v[0] = a.x, r.v[1] = a.y, r.v[2] = a.z, r.v[3] = a.w;
        r.v[4] = c.x, r.v[5] = c.y, r.v[6] = c.z, r.v[7] = c.w;
    }
    return r;
}

static __device__ __forceinline__ void kd_store8(void *p, int bf16, size_t i, kd_f8 r) {
    if (bf16) {
        *(uint4 *)((__nv_bfloat16 *)p + i) = make_uint4(kd_pair(r.v[0], r.v[1]), kd_pair(r.v[2], r.v[3]), kd_pair(r.v[4], r.v[5]), kd_pair(r.v[6], r.v[7]));
    } else {
        float4 *q = (float4 *)((float *)p + i);
        q[0] = make_float4(r.v[0], r.v[1], r.v[2], r.v[3]);
        q[1] = make_float4(r.v[4], r.v[5], r.v[6], r.v[7]);
    }
}

static __device__ __forceinline__ void kd_store_grad8(void *p, int bf16, size_t i, kd_f8 r, int add) {
    if (add) {
        kd_f8 old = kd_load8(p, bf16, i);
        for (int k = 0; k < 8; k++)
            r.v[k] = old.v[k] + r.v[k];
    }
    kd_store8(p, bf16, i, r);
}

/* The same for any width: `n` of the eight values exist (the rest is 0), and only whole groups are moved as one; `whole` says that every group of this tensor may be. */
static __device__ __forceinline__ kd_f8 kd_load_some(const void *p, int bf16, size_t i, int n, int whole) {
    if (whole)
        return kd_load8(p, bf16, i);
    kd_f8 r;
    for (int k = 0; k < 8; k++)
        r.v[k] = k < n ? kd_load1(p, bf16, i + (size_t)k) : 0.0f;
    return r;
}

static __device__ __forceinline__ void kd_store_some(void *p, int bf16, size_t i, kd_f8 r, int n, int whole) {
    if (whole) {
        kd_store8(p, bf16, i, r);
        return;
    }
    for (int k = 0; k < 8; k++)
        if (k < n)
            kd_store1(p, bf16, i + (size_t)k, r.v[k]);
}

static __device__ __forceinline__ void kd_store_grad_some(void *p, int bf16, size_t i, kd_f8 r, int n, int whole, int add) {
    if (whole) {
        kd_store_grad8(p, bf16, i, r, add);
        return;
    }
    for (int k = 0; k < 8; k++)
        if (k < n)
            kd_store_grad1(p, bf16, i + (size_t)k, r.v[k], add);
}

static inline int kd_is_bf16(kd_dtype t) {
    return t == KD_BF16;
}

/* ---- activations: formulas in ops.h ---- */

static __device__ __forceinline__ float kd_act_of(int act, float x) {
    switch (act) {
    case KD_ACT_RELU: return x > 0 || x != x ? x : 0.0f;
    case KD_ACT_GELU: return 0.5f * x * (1.0f + erff(x * 0.70710678118654752f));
    case KD_ACT_SILU: return x / (1.0f + expf(-x));
    case KD_ACT_HARDSWISH: return x <= -3.0f ? 0.0f : x >= 3.0f ? x : x * (x + 3.0f) / 6.0f;
    case KD_ACT_HARDSIGMOID: return x <= -3.0f ? 0.0f : x >= 3.0f ? 1.0f : (x + 3.0f) / 6.0f;
    default: return x;
    }
}

static __device__ __forceinline__ float kd_dact_of(int act, float x) {
    switch (act) {
    case KD_ACT_RELU: return x > 0 ? 1.0f : 0.0f;
    case KD_ACT_GELU: return 0.5f * (1.0f + erff(x * 0.70710678118654752f)) + x * 0.39894228040143268f * expf(-0.5f * x * x);
    case KD_ACT_SILU: {
        float s = 1.0f / (1.0f + expf(-x));
        return s * (1.0f + x * (1.0f - s));
    }
    case KD_ACT_HARDSWISH: return x <= -3.0f ? 0.0f : x >= 3.0f ? 1.0f : x / 3.0f + 0.5f;
    case KD_ACT_HARDSIGMOID: return x > -3.0f && x < 3.0f ? 1.0f / 6.0f : 0.0f;
    default: return 1.0f;
    }
}

/* ---- sums: every thread gets the result; the order is fixed ---- */

template <class T> static __device__ __forceinline__ T kd_warp_sum(T v) {
    for (int mask = 16; mask > 0; mask >>= 1)
        v += __shfl_xor_sync(0xffffffffu, v, mask);
    return v;
}

static __device__ __forceinline__ float kd_warp_max(float v) {
    for (int mask = 16; mask > 0; mask >>= 1) {
        float o = __shfl_xor_sync(0xffffffffu, v, mask);
        v = o > v || o != o ? o : v;
    }
    return v;
}

/* Over the block; blockDim.x a multiple of 32, at most 1024. `shared`: 32 values that nothing else uses meanwhile. All threads take part. */
template <class T> static __device__ __forceinline__ T kd_block_sum(T v, T *shared) {
    int lane = (int)(threadIdx.x & 31u), warp = (int)(threadIdx.x >> 5), warps = (int)(blockDim.x >> 5);
    v = kd_warp_sum(v);
    __syncthreads(); /* of an earlier use of shared */
    if (lane == 0)
        shared[warp] = v;
    __syncthreads();
    v = lane < warps ? shared[lane] : (T)0;
    return kd_warp_sum(v);
}

#endif

/* Sixteen floats at a time, for every x86-64: gcc and clang lower these vectors to AVX-512, AVX2 or SSE2, and KD_HOT compiles a function once for each of the three and
 * picks at load time. Hot loops are functions over a range of rows (see kd_cpu_parallel), because OpenMP's outlined functions can't be cloned.
 *
 *     KD_HOT static void scale(const void *ctx, int slice, size_t begin, size_t end) {
 *         const scale_ctx c = *(const scale_ctx *)ctx;                // a copy: stores can't change it
 *         for (size_t i = begin; i < end; i += KD_VF) {
 *             int n = kd_lanes(end - i);                              // 16, fewer at the end
 *             kd_store(c.y, c.type, i, kd_load(c.x, c.type, i, n) * c.s, n);
 *         }
 *     }
 *
 * Where paths of a program with different vectors meet (a type or a number of lanes that is only known at run time, a sum that a loop carries), gcc 12 lets them pass through memory unless the
 * machine has AVX-512, which costs more than the arithmetic. So hot loops are always-inlined functions to which types, lanes and activation come as constants; rare combinations share a slow one.
 * For the same reason whole vectors are stored, carried and summed as halves.
 *
 * With AVX-512 all of that costs instructions, and gcc 12 takes conversions of sixteen bf16 apart. A file whose loops aren't bound by memory alone is therefore compiled a second time with KD_FOR_AVX512, by a file
 * FILE_avx512.c of three lines: KD_HOT is then one function for AVX-512, and loads, stores and sums below are its own instructions. So are e^x and the quotients of sigmoid and GELU, whose last bit may differ; everything else has the same bits.
 *
 * Vectors are passed by value between always-inlined functions only, so the calling convention doesn't matter (-Wno-psabi). */
#ifndef KD_KERNELS_CPU_SIMD_H
#define KD_KERNELS_CPU_SIMD_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "common/tensor/dtype.h"

#ifdef KD_FOR_AVX512
#include "kernels/cpu/avx512.h"
#define KD_HOT KD_WIDE
#define KD_LANE KD_WIDE_LANE
#else
#if defined(__clang__) || __GNUC__ < 12
#define KD_HOT __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define KD_HOT __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#endif
#define KD_LANE static inline __attribute__((always_inline, unused))
#endif

enum { KD_VF = 16 };
typedef float kd_vf __attribute__((vector_size(64)));
typedef int32_t kd_vi __attribute__((vector_size(64)));
typedef uint32_t kd_vu __attribute__((vector_size(64)));
typedef uint16_t kd_vh __attribute__((vector_size(32)));

/* Eight floats, which most machines have: what gcc keeps in registers where it would take sixteen through memory. */
enum { KD_V8 = 8 };
typedef float kd_vf8 __attribute__((vector_size(32)));
typedef int32_t kd_vi8 __attribute__((vector_size(32)));
typedef uint32_t kd_vu8 __attribute__((vector_size(32)));
typedef uint16_t kd_vh8 __attribute__((vector_size(16)));
typedef float kd_vf4 __attribute__((vector_size(16)));

typedef struct kd_halves {
    kd_vf8 low, high;
} kd_halves;

KD_LANE kd_halves kd_halve(kd_vf v) {
#if defined(__clang__) || __GNUC__ >= 12
    return (kd_halves){__builtin_shufflevector(v, v, 0, 1, 2, 3, 4, 5, 6, 7), __builtin_shufflevector(v, v, 8, 9, 10, 11, 12, 13, 14, 15)};
#else
    kd_halves h;
    memcpy(&h, &v, sizeof h);
    return h;
#endif
}

KD_LANE kd_vf kd_join(kd_halves h) {
#if defined(__clang__) || __GNUC__ >= 12
    return __builtin_shufflevector(h.low, h.high, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
#else
    kd_vf v;
    memcpy(&v, &h, sizeof v);
    return v;
#endif
}

KD_LANE int kd_lanes(size_t left) {
    return left < KD_VF ? (int)left : KD_VF;
}

KD_LANE kd_vf kd_splat(float x) {
    return x - (kd_vf){0};
}

/* Masks have lanes of 0 or -1. They come from sign bits, never from comparisons: gcc takes a comparison of vectors that are wider than the machine's apart, lane by lane. */
KD_LANE kd_vi kd_negative(kd_vf x) {
    return (kd_vi)x >> 31;
}

KD_LANE kd_vf kd_select(kd_vi mask, kd_vf a, kd_vf b) {
    return (kd_vf)((mask & (kd_vi)a) | (~mask & (kd_vi)b));
}

/* -1 where a < b, else 0; as kd_negative(a - b). */
KD_LANE kd_vi8 kd_less8(kd_vf8 a, kd_vf8 b) {
    return (kd_vi8)(a - b) >> 31;
}

KD_LANE kd_vf8 kd_select8(kd_vi8 mask, kd_vf8 a, kd_vf8 b) {
    return (kd_vf8)((mask & (kd_vi8)a) | (~mask & (kd_vi8)b));
}

KD_LANE kd_vi kd_first(int n) {
    const kd_vi lane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    return (lane - n) >> 31;
}

/* For finite values; a NaN may win or lose. */
KD_LANE kd_vf kd_max(kd_vf a, kd_vf b) {
    return kd_select(kd_negative(a - b), b, a);
}

KD_LANE kd_vf kd_abs(kd_vf x) {
    return (kd_vf)((kd_vi)x & 0x7fffffff);
}

/* max(x, 0), exact below 1.7e38; NaN stays. */
KD_LANE kd_vf kd_relu(kd_vf x) {
    return (x + kd_abs(x)) * 0.5f;
}

/* d where y > 0, else 0 (also for y = -0). */
KD_LANE kd_vf kd_relu_grad(kd_vf d, kd_vf y) {
    kd_vu u = (kd_vu)y;
    return (kd_vf)(~((kd_vi)((u - 1) | u) >> 31) & (kd_vi)d);
}

/* ---- memory: element i of an array of F32 or BF16; n lanes are touched, the others read as 0 ---- */

/* The rare incomplete vector goes through its own buffer, so that the usual one stays in a register. */
KD_LANE kd_vf kd_load_f32(const float *p, int n) {
#ifdef KD_FOR_AVX512
    return (kd_vf)(n == KD_VF ? _mm512_loadu_ps(p) : _mm512_maskz_loadu_ps(kd_first16((size_t)n), p));
#else
    kd_vf v;
    if (n == KD_VF) {
        memcpy(&v, p, sizeof v);
        return v;
    }
    float part[KD_VF] = {0};
    for (int i = 0; i < n; i++)
        part[i] = p[i];
    memcpy(&v, part, sizeof v);
    return v;
#endif
}

KD_LANE void kd_store_f32(float *p, kd_vf v, int n) {
#ifdef KD_FOR_AVX512
    if (n == KD_VF)
        _mm512_storeu_ps(p, (__m512)v);
    else
        _mm512_mask_storeu_ps(p, kd_first16((size_t)n), (__m512)v);
#else
    if (n == KD_VF) {
        kd_halves h = kd_halve(v);
        memcpy(p, &h.low, sizeof h.low);
        memcpy(p + KD_V8, &h.high, sizeof h.high);
        return;
    }
    float part[KD_VF];
    memcpy(part, &v, sizeof v);
    for (int i = 0; i < n; i++)
        p[i] = part[i];
#endif
}

KD_LANE kd_vf kd_widen_bf16(kd_vh h) {
    return (kd_vf)(__builtin_convertvector(h, kd_vu) << 16);
}

KD_LANE kd_vf kd_load_bf16(const uint16_t *p, int n) {
#ifdef KD_FOR_AVX512
    return (kd_vf)kd_widen16(kd_first16((size_t)n), p);
#else
    kd_vh h;
    if (n == KD_VF) {
        memcpy(&h, p, sizeof h);
        return kd_widen_bf16(h);
    }
    uint16_t part[KD_VF] = {0};
    for (int i = 0; i < n; i++)
        part[i] = p[i];
    memcpy(&h, part, sizeof h);
    return kd_widen_bf16(h);
#endif
}

/* Round to nearest even as kd_f32_to_bf16: subnormals exact, NaN quiet. */
KD_LANE void kd_store_bf16(uint16_t *p, kd_vf v, int n) {
#ifdef KD_FOR_AVX512
    __m512i u = (__m512i)v, kept = _mm512_srli_epi32(u, 16), rounded = _mm512_add_epi32(u, _mm512_set1_epi32(0x7fff));
    rounded = _mm512_mask_add_epi32(rounded, _mm512_test_epi32_mask(kept, _mm512_set1_epi32(1)), rounded, _mm512_set1_epi32(1));
    rounded = _mm512_mask_or_epi32(_mm512_srli_epi32(rounded, 16), _mm512_cmp_ps_mask((__m512)v, (__m512)v, _CMP_UNORD_Q), kept, _mm512_set1_epi32(0x40));
    _mm256_mask_storeu_epi16(p, kd_first16((size_t)n), _mm512_cvtepi32_epi16(rounded));
#else
    kd_vu u = (kd_vu)v;
    kd_vu rounded = (u + 0x7fff + ((u >> 16) & 1)) >> 16, quiet = (u >> 16) | 0x40;
    kd_vu nan = (kd_vu)((0x7f800000 - (kd_vi)(u & 0x7fffffff)) >> 31);
    kd_vu both = (nan & quiet) | (~nan & rounded);
    kd_vh h = __builtin_convertvector(both, kd_vh);
    if (n == KD_VF) {
        memcpy(p, &h, sizeof h);
        return;
    }
    uint16_t part[KD_VF];
    memcpy(part, &h, sizeof h);
    for (int i = 0; i < n; i++)
        p[i] = part[i];
#endif
}

KD_LANE kd_vf kd_load(const void *p, kd_dtype t, size_t i, int n) {
    return t == KD_F32 ? kd_load_f32((const float *)p + i, n) : kd_load_bf16((const uint16_t *)p + i, n);
}

KD_LANE void kd_store(void *p, kd_dtype t, size_t i, kd_vf v, int n) {
    if (t == KD_F32)
        kd_store_f32((float *)p + i, v, n);
    else
        kd_store_bf16((uint16_t *)p + i, v, n);
}

/* Writes a gradient: over what is there, or added to it. */
KD_LANE void kd_store_grad(void *p, kd_dtype t, size_t i, kd_vf v, int n, int add) {
    if (add)
        kd_store(p, t, i, v + kd_load(p, t, i, n), n);
    else
        kd_store(p, t, i, v, n);
}

/* count elements of one row, from `at` in src to `to` in dst. */
KD_LANE void kd_copy_row(void *dst, kd_dtype dst_type, size_t to, const void *src, kd_dtype src_type, size_t at, size_t count, int add) {
    if (dst_type == src_type && !add) {
        size_t size = kd_dtype_size(dst_type);
        memcpy((char *)dst + to * size, (const char *)src + at * size, count * size);
        return;
    }
    for (size_t i = 0; i < count; i += KD_VF) {
        int n = kd_lanes(count - i);
        kd_store_grad(dst, dst_type, to + i, kd_load(src, src_type, at + i, n), n, add);
    }
}

/* Sums of lanes, pairwise, so the order is the same for every instruction set. */
KD_LANE float kd_sum(kd_vf v) {
    kd_halves h = kd_halve(v);
    kd_vf8 s = h.low + h.high;
    return ((s[0] + s[4]) + (s[2] + s[6])) + ((s[1] + s[5]) + (s[3] + s[7]));
}

KD_LANE float kd_max_lane(kd_vf v) {
    kd_halves h = kd_halve(v);
    kd_vf8 s = kd_select8(kd_less8(h.low, h.high), h.high, h.low);
    float top = s[0];
    for (int i = 1; i < KD_V8; i++)
        top = s[i] > top ? s[i] : top;
    return top;
}

/* ---- eight floats ---- */

KD_LANE int kd_lanes8(size_t left) {
    return left < KD_V8 ? (int)left : KD_V8;
}

/* As kd_load and kd_store. */
KD_LANE kd_vf8 kd_load8(const void *p, kd_dtype t, size_t i, int n) {
    kd_vf8 v;
    kd_vh8 h;
    float part[KD_V8] = {0};
    if (n == KD_V8 && t == KD_F32) {
        memcpy(&v, (const float *)p + i, sizeof v);
        return v;
    }
    if (n == KD_V8) {
        memcpy(&h, (const uint16_t *)p + i, sizeof h);
        return (kd_vf8)(__builtin_convertvector(h, kd_vu8) << 16);
    }
    for (int k = 0; k < n; k++)
        part[k] = t == KD_F32 ? ((const float *)p)[i + (size_t)k] : kd_bf16_to_f32(((const uint16_t *)p)[i + (size_t)k]);
    memcpy(&v, part, sizeof v);
    return v;
}

KD_LANE void kd_store8(float *p, kd_vf8 v, int n) {
    float part[KD_V8];
    if (n == KD_V8) {
        memcpy(p, &v, sizeof v);
        return;
    }
    memcpy(part, &v, sizeof part);
    for (int k = 0; k < n; k++)
        p[k] = part[k];
}

/* As kd_store_bf16. */
KD_LANE void kd_store8_bf16(uint16_t *p, kd_vf8 v, int n) {
    kd_vu8 u = (kd_vu8)v;
    kd_vu8 rounded = (u + 0x7fff + ((u >> 16) & 1)) >> 16, quiet = (u >> 16) | 0x40;
    kd_vu8 nan = (kd_vu8)((0x7f800000 - (kd_vi8)(u & 0x7fffffff)) >> 31);
    kd_vh8 h = __builtin_convertvector((nan & quiet) | (~nan & rounded), kd_vh8);
    uint16_t part[KD_V8];
    if (n == KD_V8) {
        memcpy(p, &h, sizeof h);
        return;
    }
    memcpy(part, &h, sizeof part);
    for (int k = 0; k < n; k++)
        p[k] = part[k];
}

/* A sum of sixteen lanes that a loop carries; it begins with KD_NO_SUM. */
#ifdef KD_FOR_AVX512
typedef struct kd_carried {
    kd_vf all;
} kd_carried;
#define KD_NO_SUM {{0}}

KD_LANE void kd_carry(kd_carried *sum, kd_vf v) {
    sum->all += v;
}

KD_LANE kd_vf kd_carried_sum(const kd_carried *sum) {
    return sum->all;
}
#else
typedef kd_halves kd_carried;
#define KD_NO_SUM {{0}, {0}}

KD_LANE void kd_carry(kd_carried *sum, kd_vf v) {
    kd_halves h = kd_halve(v);
    sum->low += h.low;
    sum->high += h.high;
}

KD_LANE kd_vf kd_carried_sum(const kd_carried *sum) {
    return kd_join(*sum);
}
#endif

/* ---- four doubles, for sums that f32 is too short for. No wider: gcc keeps vectors that the machine doesn't have in memory ---- */

enum { KD_VD = 4 };
typedef double kd_vd __attribute__((vector_size(32)));

KD_LANE kd_vd kd_load_double(const float *p) {
    kd_vf4 v;
    memcpy(&v, p, sizeof v);
    return __builtin_convertvector(v, kd_vd);
}

KD_LANE double kd_sum_double(kd_vd v) {
    double s[KD_VD];
    memcpy(s, &v, sizeof s);
    return (s[0] + s[2]) + (s[1] + s[3]);
}

/* Sum of x^2 over n values, in four vectors whose chains run beside each other. */
KD_LANE double kd_sum_of_squares(const float *x, size_t n) {
    kd_vd a[4] = {{0}};
    size_t i = 0;
    for (; i + 4 * KD_VD <= n; i += 4 * KD_VD)
        for (size_t k = 0; k < 4; k++) {
            kd_vd v = kd_load_double(x + i + k * KD_VD);
            a[k] += v * v;
        }
    double sum = kd_sum_double((a[0] + a[2]) + (a[1] + a[3]));
    for (; i < n; i++)
        sum += (double)x[i] * (double)x[i];
    return sum;
}

/* ---- functions. Coefficients: Lawson-weighted least squares fits for the smallest relative error. Polynomials in halves that are computed side by side: a processor would wait in a single chain ---- */

/* e^x for x <= 0, to about 1.5e-7 relative; 0 below -87.3. NaN stays; -infinity gives NaN. */
#ifdef KD_FOR_AVX512
/* The same approximation with fused multiply-adds, which round less often; below -87.3 it goes on to the smallest f32. */
KD_LANE kd_vf kd_exp_negative(kd_vf v) {
    __m512 x = (__m512)v, k = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504f)), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    __m512 r = _mm512_fmadd_ps(k, _mm512_set1_ps(2.12194440e-4f), _mm512_fnmadd_ps(k, _mm512_set1_ps(0.693359375f), x)), r2 = _mm512_mul_ps(r, r);
    __m512 high = _mm512_fmadd_ps(_mm512_set1_ps(1.3813153e-3f), r, _mm512_set1_ps(8.3694216e-3f)), low = _mm512_fmadd_ps(_mm512_set1_ps(4.1668456e-2f), r, _mm512_set1_ps(0.16666515f));
    __m512 g = _mm512_fmadd_ps(_mm512_fmadd_ps(high, r2, low), r, _mm512_set1_ps(0.49999994f));
    return (kd_vf)_mm512_scalef_ps(_mm512_add_ps(_mm512_fmadd_ps(r2, g, r), _mm512_set1_ps(1)), k);
}
#else
KD_LANE kd_vf kd_exp_negative(kd_vf x) {
    const float low = -87.3f, round = 12582912.0f; /* 1.5 * 2^23: adding it leaves the nearest integer in the low bits */
    kd_vi below = kd_negative(x - low);
    kd_vf shifted = x * 1.44269504f + round, k = shifted - round;
    kd_vf r = x - k * 0.693359375f + k * 2.12194440e-4f; /* ln 2 in two parts, the first exact in 9 bits */
    kd_vf r2 = r * r, g = ((1.3813153e-3f * r + 8.3694216e-3f) * r2 + (4.1668456e-2f * r + 0.16666515f)) * r + 0.49999994f;
    kd_vf e = (r2 * g + r) + 1;
    kd_vi power = ((kd_vi)shifted - 0x4b400000 + 127) << 23; /* the bits of 2^k */
    return (kd_vf)((kd_vi)(e * (kd_vf)power) & ~below) + (x - x);
}
#endif

/* a / b for b >= 1; with AVX-512 to about 1e-7, by an estimate and one step of Newton's, because a division takes as long as all the rest of a sigmoid. */
KD_LANE kd_vf kd_quotient(kd_vf a, kd_vf b) {
#ifdef KD_FOR_AVX512
    __m512 t = _mm512_rcp14_ps((__m512)b);
    return a * (kd_vf)_mm512_mul_ps(t, _mm512_fnmadd_ps((__m512)b, t, _mm512_set1_ps(2)));
#else
    return a / b;
#endif
}

/* The normal distribution at x: density phi and cumulative Phi, each to about 4e-7. Phi(-|x|) = e^(-x^2/2) q(|x|), where q (Mills' ratio) is smooth. */
typedef struct kd_normal {
    kd_vf density, cumulative;
} kd_normal;

KD_LANE kd_normal kd_normal_at(kd_vf x) {
    kd_vf a = kd_abs(x), t = kd_quotient(kd_splat(1), a + 3);
    kd_vf t2 = t * t, t4 = t2 * t2;
    kd_vf high = (840.27014f * t - 586.61383f) * t2 + (157.16585f * t - 12.427953f);
    kd_vf low = (9.639978f * t + 3.0411937f) * t2 + (1.2019169f * t + 0.39886937f);
    kd_vf q = ((-441.71817f * t4 + high) * t4 + low) * t;
    kd_vf e = kd_exp_negative(x * x * -0.5f), tail = e * q;
    return (kd_normal){e * 0.39894228f, kd_select(kd_negative(x), tail, 1 - tail)};
}

KD_LANE kd_vf kd_gelu(kd_vf x) {
    return x * kd_normal_at(x).cumulative;
}

KD_LANE kd_vf kd_gelu_derivative(kd_vf x) {
    kd_normal p = kd_normal_at(x);
    return p.cumulative + x * p.density;
}

/* 1 / (1 + e^-x); for negative x as e^x / (1 + e^x), so that nothing overflows. */
KD_LANE kd_vf kd_sigmoid(kd_vf x) {
    kd_vf e = kd_exp_negative(-kd_abs(x));
    return kd_quotient(kd_select(kd_negative(x), e, kd_splat(1)), 1 + e);
}

#endif

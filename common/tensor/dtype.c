#include "common/tensor/dtype.h"

#include <cpuid.h>
#include <immintrin.h>
#include <stdatomic.h>
#include <string.h>

#include "common/base/err.h"

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "files are little endian and are used in place");
_Static_assert(sizeof(float) == 4 && sizeof(double) == 8, "IEEE 754 types");

size_t kd_dtype_size(kd_dtype t)
{
    static const uint8_t sizes[] = {4, 2, 2, 8, 1, 1, 2, 4, 8, 1};
    KD_ASSERT((unsigned)t < sizeof sizes);
    return sizes[t];
}

const char *kd_dtype_name(kd_dtype t)
{
    static const char *const names[] = {"f32", "f16", "bf16", "f64", "u8", "i8", "i16", "i32", "i64", "bool"};
    KD_ASSERT((unsigned)t < sizeof names / sizeof *names);
    return names[t];
}

static uint32_t bits_of(float x)
{
    uint32_t u;
    memcpy(&u, &x, sizeof u);
    return u;
}

static float float_of(uint32_t u)
{
    float x;
    memcpy(&x, &u, sizeof x);
    return x;
}

uint16_t kd_f32_to_f16(float x)
{
    uint32_t u = bits_of(x), sign = u >> 16 & 0x8000, magnitude = u & 0x7FFFFFFF;
    if (magnitude > 0x7F800000) /* NaN: upper payload bits, made quiet, as the processor does */
        return (uint16_t)(sign | 0x7E00 | (magnitude >> 13 & 0x3FF));
    if (magnitude >= 0x477FF000) /* 65520 and above round to infinity */
        return (uint16_t)(sign | 0x7C00);
    if (magnitude < 0x38800000) { /* below 2^-14: a subnormal, counted in units of 2^-24 */
        uint32_t exponent = magnitude >> 23, mantissa, shift, half, value;
        if (exponent < 102) /* below 2^-25: zero */
            return (uint16_t)sign;
        mantissa = (magnitude & 0x7FFFFF) | 0x800000;
        shift = 126 - exponent;
        value = mantissa >> shift;
        half = 1u << (shift - 1);
        mantissa &= (1u << shift) - 1;
        if (mantissa > half || (mantissa == half && (value & 1)))
            value++;
        return (uint16_t)(sign | value);
    }
    magnitude += 0xFFF + (magnitude >> 13 & 1); /* round to nearest even at bit 13 */
    return (uint16_t)(sign | ((magnitude - 0x38000000) >> 13));
}

float kd_f16_to_f32(uint16_t h)
{
    uint32_t sign = (uint32_t)(h & 0x8000) << 16, exponent = h >> 10 & 31, mantissa = h & 0x3FF;
    if (exponent == 31)
        return float_of(sign | 0x7F800000 | mantissa << 13 | (mantissa ? 0x400000u : 0u));
    if (exponent == 0) {
        float value = (float)mantissa * 0x1p-24f;
        return sign ? -value : value;
    }
    return float_of(sign | (exponent + 112) << 23 | mantissa << 13);
}

/* Functions of their own, so that the loops below don't call across a module's border for every value. */
static inline uint16_t to_bf16(float x)
{
    uint32_t u = bits_of(x), nan = u >> 16 | 0x40, rounded = (u + 0x7FFF + (u >> 16 & 1)) >> 16;
    return (uint16_t)((u & 0x7FFFFFFF) > 0x7F800000 ? nan : rounded);
}

static inline float from_bf16(uint16_t h)
{
    return float_of((uint32_t)h << 16);
}

uint16_t kd_f32_to_bf16(float x)
{
    return to_bf16(x);
}

float kd_bf16_to_f32(uint16_t h)
{
    return from_bf16(h);
}

/* F16C is the processor's own conversion; its results equal the scalar functions' for every input (tests/unit/test_dtype.c). */
__attribute__((target("avx,f16c"))) static void f32_to_f16_f16c(uint16_t *dst, const float *src, size_t n)
{
    size_t i = 0;
    for (; i + 8 <= n; i += 8)
        _mm_storeu_si128((__m128i *)(void *)(dst + i), _mm256_cvtps_ph(_mm256_loadu_ps(src + i), _MM_FROUND_TO_NEAREST_INT));
    for (; i < n; i++)
        dst[i] = kd_f32_to_f16(src[i]);
}

__attribute__((target("avx,f16c"))) static void f16_to_f32_f16c(float *dst, const uint16_t *src, size_t n)
{
    size_t i = 0;
    for (; i + 8 <= n; i += 8)
        _mm256_storeu_ps(dst + i, _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(const void *)(src + i))));
    for (; i < n; i++)
        dst[i] = kd_f16_to_f32(src[i]);
}

/* clang's __builtin_cpu_supports doesn't know f16c, so the processor is asked; once, because a virtual machine answers slowly. */
static int have_f16c(void)
{
    static atomic_int known; /* 0: not asked yet, 1: no, 2: yes */
    int answer = atomic_load_explicit(&known, memory_order_relaxed);
    if (answer == 0) {
        unsigned a, b, c = 0, d;
        answer = __builtin_cpu_supports("avx") && __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C) ? 2 : 1;
        atomic_store_explicit(&known, answer, memory_order_relaxed);
    }
    return answer == 2;
}

void kd_f32_to_f16_n(uint16_t *dst, const float *src, size_t n)
{
    if (have_f16c()) {
        f32_to_f16_f16c(dst, src, n);
        return;
    }
    for (size_t i = 0; i < n; i++)
        dst[i] = kd_f32_to_f16(src[i]);
}

void kd_f16_to_f32_n(float *dst, const uint16_t *src, size_t n)
{
    if (have_f16c()) {
        f16_to_f32_f16c(dst, src, n);
        return;
    }
    for (size_t i = 0; i < n; i++)
        dst[i] = kd_f16_to_f32(src[i]);
}

void kd_f32_to_bf16_n(uint16_t *KD_RESTRICT dst, const float *KD_RESTRICT src, size_t n)
{
    for (size_t i = 0; i < n; i++)
        dst[i] = to_bf16(src[i]);
}

void kd_bf16_to_f32_n(float *KD_RESTRICT dst, const uint16_t *KD_RESTRICT src, size_t n)
{
    for (size_t i = 0; i < n; i++)
        dst[i] = from_bf16(src[i]);
}

#define CONVERT(type)                                                \
    do {                                                             \
        const type *s = src;                                         \
        for (size_t i = 0; i < n; i++)                               \
            dst[i] = (float)s[i];                                    \
    } while (0)

void kd_convert_to_f32(float *dst, const void *src, kd_dtype src_type, size_t n)
{
    switch (src_type) {
    case KD_F32: if (n) memmove(dst, src, n * sizeof *dst); return;
    case KD_F16: kd_f16_to_f32_n(dst, src, n); return;
    case KD_BF16: kd_bf16_to_f32_n(dst, src, n); return;
    case KD_F64: CONVERT(double); return;
    case KD_U8: case KD_BOOL: CONVERT(uint8_t); return;
    case KD_I8: CONVERT(int8_t); return;
    case KD_I16: CONVERT(int16_t); return;
    case KD_I32: CONVERT(int32_t); return;
    case KD_I64: CONVERT(int64_t); return;
    }
    KD_ASSERT(!"a dtype of kd_dtype");
}

size_t kd_first_nonfinite(const float *x, size_t n)
{
    enum { CHUNK = 256 };
    for (size_t at = 0; at < n; at += CHUNK) {
        size_t end = n - at < CHUNK ? n : at + CHUNK;
        uint32_t bad = 0;
        for (size_t i = at; i < end; i++) /* no early exit: this loop is vectorised */
            bad |= (bits_of(x[i]) & 0x7F800000) == 0x7F800000;
        for (size_t i = at; bad && i < end; i++)
            if ((bits_of(x[i]) & 0x7F800000) == 0x7F800000)
                return i;
    }
    return n;
}

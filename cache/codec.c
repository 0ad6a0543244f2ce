#include "cache/codec.h"

#include <math.h>
#include <string.h>

/* At -O2 gcc leaves loops of unknown length scalar, which is ten times slower. */
#ifdef __clang__
#define FAST
#define CLONES
#else
#define FAST __attribute__((optimize("O3")))
#define CLONES __attribute__((target_clones("avx512f", "avx2", "default")))
#endif

/* ---- f16, bf16 ---- */

enum { CHUNK = 1024 };

FAST static void join_planes(uint16_t *KD_RESTRICT out, const uint8_t *KD_RESTRICT high, const uint8_t *KD_RESTRICT low, size_t n)
{
    for (size_t i = 0; i < n; i++)
        out[i] = (uint16_t)(high[i] << 8 | low[i]);
}

static void decode_planes(float *out, const uint8_t *payload, size_t n, void (*widen)(float *dst, const uint16_t *src, size_t n))
{
    for (size_t i = 0; i < n; i += CHUNK) {
        uint16_t joined[CHUNK];
        size_t m = n - i < CHUNK ? n - i : CHUNK;
        join_planes(joined, payload + i, payload + n + i, m);
        widen(out + i, joined, m);
    }
}

/* ---- i8: the inverse of a Hadamard rotation is the rotation itself ----
 *
 * Sums of at most 256 bytes fit 16 bits, and all sums are integers below 2^24, which f32 holds: whatever the order of the additions, the bits are the same. */

enum { LANES = 16, NARROW = 256 };
typedef int16_t lanes __attribute__((vector_size(2 * LANES)));
typedef int8_t bytes __attribute__((vector_size(LANES)));

#define EIGHT(f, b, h) f(b, h), f(b + 1, h), f(b + 2, h), f(b + 3, h), f(b + 4, h), f(b + 5, h), f(b + 6, h), f(b + 7, h)
#define ALL(f, h) EIGHT(f, 0, h), EIGHT(f, 8, h)
#define PARTNER(i, h) ((i) ^ (h))                           /* the lane that lane i meets in stage h */
#define CHOICE(i, h) (((i) & (h)) ? (i) + LANES : (i))      /* sums in the lanes without bit h, differences in the others */
#ifdef __clang__
#define PERMUTE(v, h) __builtin_shufflevector(v, v, ALL(PARTNER, h))
#define BLEND(s, d, h) __builtin_shufflevector(s, d, ALL(CHOICE, h))
#else
#define PERMUTE(v, h) __builtin_shuffle(v, (lanes){ALL(PARTNER, h)})
#define BLEND(s, d, h) __builtin_shuffle(s, d, (lanes){ALL(CHOICE, h)})
#endif
#define STAGE(v, h) do { lanes other_ = PERMUTE(v, h); v = BLEND(v + other_, other_ - v, h); } while (0)

/* out[n] = sums of q over Sylvester's matrix of order n, a multiple of LANES, at most NARROW, times factor. */
static inline __attribute__((always_inline)) void block_narrow(float *KD_RESTRICT out, const int8_t *KD_RESTRICT q, size_t n, float factor)
{
    lanes v[NARROW / LANES];
    int16_t x[NARROW];
    size_t count = n / LANES;
    for (size_t i = 0; i < count; i++) {
        bytes b;
        memcpy(&b, q + LANES * i, LANES);
        v[i] = __builtin_convertvector(b, lanes);
        STAGE(v[i], 1);
        STAGE(v[i], 2);
        STAGE(v[i], 4);
        STAGE(v[i], 8);
    }
    for (size_t h = 1; h < count; h *= 2) {
        for (size_t i = 0; i < count; i += 2 * h) {
            for (size_t j = i; j < i + h; j++) {
                lanes a = v[j], b = v[j + h];
                v[j] = a + b;
                v[j + h] = a - b;
            }
        }
    }
    memcpy(x, v, 2 * n);
    for (size_t i = 0; i < n; i++)
        out[i] = (float)x[i] * factor;
}

/* Stages h = first, 2 first, .. of a block of n, in f32. */
static inline __attribute__((always_inline)) void sums_wide(float *x, size_t first, size_t n)
{
    for (size_t h = first; h < n; h *= 2) {
        for (size_t i = 0; i < n; i += 2 * h) {
            float *KD_RESTRICT low = x + i, *KD_RESTRICT high = x + i + h;
            for (size_t j = 0; j < h; j++) {
                float a = low[j], b = high[j];
                low[j] = a + b;
                high[j] = a - b;
            }
        }
    }
}

static inline __attribute__((always_inline)) void block_any(float *out, const int8_t *q, size_t n, float factor)
{
    size_t done = 1;
    if (n > NARROW) {
        for (size_t i = 0; i < n; i += NARROW)
            block_narrow(out + i, q + i, NARROW, 1.0f);
        done = NARROW;
    } else {
        for (size_t i = 0; i < n; i++)
            out[i] = (float)q[i];
    }
    sums_wide(out, done, n);
    for (size_t i = 0; i < n; i++)
        out[i] *= factor;
}

/* A length that the compiler knows becomes straight code in registers. */
FAST CLONES static void decode_token(float *out, const int8_t *q, size_t width, size_t block, float factor)
{
    for (size_t i = 0; i < width; i += block) {
        switch (block) {
        case 64: block_narrow(out + i, q + i, 64, factor); break;
        case 128: block_narrow(out + i, q + i, 128, factor); break;
        case 256: block_narrow(out + i, q + i, 256, factor); break;
        default: block_any(out + i, q + i, block, factor);
        }
    }
}

static kd_status decode_i8(float *out, const uint8_t *payload, size_t rows, size_t width, kd_err *err)
{
    const int8_t *q = (const int8_t *)payload + 4 * rows;
    size_t block = (size_t)kd_hadamard_block((int)width);
    float norm = kd_hadamard_norm((int)block);
    for (size_t r = 0; r < rows; r++) {
        float scale;
        memcpy(&scale, payload + 4 * r, 4);
        if (!isfinite(scale) || scale < 0)
            return kd_fail(err, KD_EDAMAGED, "token %zu of a record has the scale %g", r, (double)scale);
        decode_token(out + r * width, q + r * width, width, block, scale * norm);
    }
    return KD_OK;
}

kd_status kd_codec_decode(float *out, const uint8_t *payload, kd_dtype dtype, size_t rows, size_t width, kd_err *err)
{
    switch (dtype) {
    case KD_F16: decode_planes(out, payload, rows * width, kd_f16_to_f32_n); return KD_OK;
    case KD_BF16: decode_planes(out, payload, rows * width, kd_bf16_to_f32_n); return KD_OK;
    case KD_I8: return decode_i8(out, payload, rows, width, err);
    default: return kd_fail(err, KD_EDAMAGED, "a record's element type is %s, which isn't stored", kd_dtype_name(dtype));
    }
}

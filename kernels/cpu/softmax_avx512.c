/* softmax.h with AVX-512. */
#include "kernels/cpu/softmax.h"

#include "kernels/cpu/avx512.h"

enum { LANES = KD_LANES16 };

KD_WIDE_LANE float largest(const float *x, size_t t) {
    __m512 a = _mm512_set1_ps(-__builtin_inff()), b = a;
    size_t i = 0;
    for (; i + 2 * LANES <= t; i += 2 * LANES) {
        a = _mm512_max_ps(a, _mm512_loadu_ps(x + i));
        b = _mm512_max_ps(b, _mm512_loadu_ps(x + i + LANES));
    }
    for (; i < t; i += LANES)
        a = _mm512_mask_max_ps(a, kd_first16(t - i), a, _mm512_maskz_loadu_ps(kd_first16(t - i), x + i));
    return _mm512_reduce_max_ps(_mm512_max_ps(a, b));
}

/* score = 2^(factor (score - top)); the sum of the row. */
KD_WIDE_LANE float exponentials(float *x, size_t t, float top, float factor) {
    __m512 scale = _mm512_set1_ps(factor), shift = _mm512_set1_ps(top * factor), a = _mm512_setzero_ps(), b = a;
    size_t i = 0;
    for (; i + 2 * LANES <= t; i += 2 * LANES) {
        __m512 e = kd_power_of_two(_mm512_fmsub_ps(_mm512_loadu_ps(x + i), scale, shift)), f = kd_power_of_two(_mm512_fmsub_ps(_mm512_loadu_ps(x + i + LANES), scale, shift));
        _mm512_storeu_ps(x + i, e);
        _mm512_storeu_ps(x + i + LANES, f);
        a = _mm512_add_ps(a, e);
        b = _mm512_add_ps(b, f);
    }
    for (; i < t; i += LANES) {
        __mmask16 here = kd_first16(t - i);
        __m512 e = _mm512_maskz_mov_ps(here, kd_power_of_two(_mm512_fmsub_ps(_mm512_maskz_loadu_ps(here, x + i), scale, shift)));
        _mm512_storeu_ps(x + i, e);
        a = _mm512_add_ps(a, e);
    }
    return _mm512_reduce_add_ps(_mm512_add_ps(a, b));
}

static const float LOG2_E = 1.44269504f;

enum { TOGETHER = 12 }; /* rows whose steps, each of which ends in one number, are done one after the other: no row waits for its own */

#define FORWARD(name, isa, element, store) \
    __attribute__((target(isa))) static void name(const kd_softmax_rows *c) { \
        size_t t = (size_t)c->t, ld = (size_t)c->ld; \
        for (size_t first = 0; first < c->rows; first += TOGETHER) { \
            size_t n = c->rows - first < TOGETHER ? c->rows - first : TOGETHER; \
            float top[TOGETHER], sum[TOGETHER], *x = c->score + first * ld; \
            for (size_t r = 0; r < n; r++) \
                top[r] = largest(x + r * ld, t); \
            for (size_t r = 0; r < n; r++) \
                sum[r] = exponentials(x + r * ld, t, top[r], c->scale * LOG2_E); \
            for (size_t r = 0; r < n; r++) { \
                __m512 inverse = _mm512_set1_ps(1 / sum[r]); \
                element *to = (element *)c->operand + (first + r) * (size_t)c->operand_ld; \
                for (size_t i = 0; i < t; i += LANES) \
                    store(to + i, _mm512_mul_ps(_mm512_loadu_ps(x + r * ld + i), inverse)); \
            } \
        } \
    }
#define STORE_F32(to, v) _mm512_storeu_ps(to, v)
#define STORE_BF16(to, v) kd_narrow16(to, 0xffff, v)
FORWARD(forward_f32, KD_AVX512, float, STORE_F32)
FORWARD(forward_bf16, KD_AVX512_BF16, uint16_t, STORE_BF16)

void kd_softmax_avx512(const kd_softmax_rows *c) {
    if (c->type == KD_F32)
        forward_f32(c);
    else
        forward_bf16(c);
}

KD_WIDE_LANE __m512 probabilities(const void *p, kd_dtype type, size_t i, __mmask16 here) {
    if (type == KD_F32)
        return _mm512_maskz_loadu_ps(here, (const float *)p + i);
    return kd_widen16(here, (const uint16_t *)p + i);
}

KD_WIDE_LANE float weighted_sum(const float *dp, const void *p, kd_dtype type, size_t at, size_t t) {
    __m512 sum = _mm512_setzero_ps();
    for (size_t i = 0; i < t; i += LANES)
        sum = _mm512_fmadd_ps(probabilities(p, type, at + i, kd_first16(t - i)), _mm512_maskz_loadu_ps(kd_first16(t - i), dp + i), sum);
    return _mm512_reduce_add_ps(sum);
}

/* scale p (dp - dot) at element i of a row, zeros beyond t. */
KD_WIDE_LANE __m512 gradient(const kd_softmax_rows *c, kd_dtype type, size_t at, size_t i, const float *dp, __m512 dot, __m512 scale) {
    __mmask16 here = kd_first16((size_t)c->t - i);
    return _mm512_maskz_mul_ps(here, _mm512_mul_ps(probabilities(c->p, type, at + i, here), scale), _mm512_sub_ps(_mm512_maskz_loadu_ps(here, dp + i), dot));
}

KD_WIDE static void backward_f32(const kd_softmax_rows *c) {
    for (size_t r = 0; r < c->rows; r++) {
        size_t at = r * (size_t)c->ld, t = (size_t)c->t;
        const float *dp = c->score + at;
        __m512 dot = _mm512_set1_ps(weighted_sum(dp, c->p, KD_F32, at, t)), scale = _mm512_set1_ps(c->scale);
        for (size_t i = 0; i < t; i += LANES)
            _mm512_storeu_ps((float *)c->operand + r * (size_t)c->operand_ld + i, gradient(c, KD_F32, at, i, dp, dot, scale));
    }
}

KD_WIDE_BF16 static void backward_bf16(const kd_softmax_rows *c) {
    for (size_t r = 0; r < c->rows; r++) {
        size_t at = r * (size_t)c->ld, t = (size_t)c->t;
        const float *dp = c->score + at;
        __m512 dot = _mm512_set1_ps(weighted_sum(dp, c->p, KD_BF16, at, t)), scale = _mm512_set1_ps(c->scale);
        for (size_t i = 0; i < t; i += LANES)
            kd_narrow16((uint16_t *)c->operand + r * (size_t)c->operand_ld + i, 0xffff, gradient(c, KD_BF16, at, i, dp, dot, scale));
    }
}

void kd_softmax_backward_avx512(const kd_softmax_rows *c) {
    if (c->type == KD_F32)
        backward_f32(c);
    else
        backward_bf16(c);
}

/* softmax.h for every processor. */
#include "kernels/cpu/softmax.h"

#include "kernels/cpu/simd.h"

static const float LOWEST = -1e38f;

/* The largest of n numbers, a multiple of KD_VF; of a NaN any. */
KD_LANE float largest(const float *x, size_t n) {
    kd_halves top = {kd_load8(x, KD_F32, 0, KD_V8), kd_load8(x, KD_F32, KD_V8, KD_V8)};
    for (size_t i = KD_VF; i < n; i += KD_VF) {
        kd_vf8 low = kd_load8(x, KD_F32, i, KD_V8), high = kd_load8(x, KD_F32, i + KD_V8, KD_V8);
        top.low = kd_select8(kd_less8(top.low, low), low, top.low);
        top.high = kd_select8(kd_less8(top.high, high), high, top.high);
    }
    return kd_max_lane(kd_join(top));
}

/* operand = softmax(scale * score). May run in place: a bf16 row is written behind where it is read. */
KD_HOT void kd_softmax(const kd_softmax_rows *ctx) {
    const kd_softmax_rows c = *ctx;
    size_t t = (size_t)c.t;
    for (size_t r = 0; r < c.rows; r++) {
        float *score = c.score + r * (size_t)c.ld;
        for (size_t k = t; k < (size_t)c.ld; k++)
            score[k] = LOWEST; /* the padding of the row: its exponential is 0 */
        float shift = largest(score, (size_t)c.ld) * c.scale;
        kd_carried total = KD_NO_SUM;
        for (size_t i = 0; i < t; i += KD_VF) {
            kd_vf e = kd_exp_negative(kd_load_f32(score + i, KD_VF) * c.scale - shift);
            kd_store_f32(score + i, e, KD_VF);
            kd_carry(&total, e);
        }
        float inverse = 1 / kd_sum(kd_carried_sum(&total));
        for (size_t i = 0; i < t; i += KD_VF)
            kd_store(c.operand, c.type, r * (size_t)c.operand_ld + i, kd_load_f32(score + i, KD_VF) * inverse, KD_VF);
    }
}

/* operand = scale * p (dp - sum(p dp)), where score holds dp; in place as above. The type comes as a constant (simd.h). */
KD_LANE void softmax_backward_rows(const kd_softmax_rows *ctx, kd_dtype type) {
    const kd_softmax_rows c = *ctx;
    size_t t = (size_t)c.t;
    for (size_t r = 0; r < c.rows; r++) {
        float *dp = c.score + r * (size_t)c.ld;
        for (size_t k = t; k < (size_t)c.ld; k++)
            dp[k] = 0; /* as p there */
        kd_carried total = KD_NO_SUM;
        for (size_t i = 0; i < t; i += KD_VF)
            kd_carry(&total, kd_load(c.p, type, r * (size_t)c.ld + i, KD_VF) * kd_load_f32(dp + i, KD_VF));
        float dot = kd_sum(kd_carried_sum(&total));
        for (size_t i = 0; i < t; i += KD_VF) {
            kd_vf p = kd_load(c.p, type, r * (size_t)c.ld + i, KD_VF) * c.scale;
            kd_store(c.operand, type, r * (size_t)c.operand_ld + i, p * (kd_load_f32(dp + i, KD_VF) - dot), KD_VF);
        }
    }
}

KD_HOT void kd_softmax_backward(const kd_softmax_rows *c) {
    if (c->type == KD_F32)
        softmax_backward_rows(c, KD_F32);
    else
        softmax_backward_rows(c, KD_BF16);
}

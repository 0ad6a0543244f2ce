/* Activation functions on sixteen lanes, by kd_act: what every file that applies one uses (formulas in kernels/ops.h). A NaN stays a NaN. */
#ifndef KD_KERNELS_CPU_CPU_ACT_H
#define KD_KERNELS_CPU_CPU_ACT_H

#include "kernels/cpu/simd.h"
#include "kernels/ops.h"

/* min(max(x + 3, 0), 6) / 6. x - x brings a NaN back that the masks may have lost (and makes one of an infinity). */
KD_LANE kd_vf kd_hardsigmoid(kd_vf x) {
    kd_vf v = kd_relu(x + 3);
    return kd_select(kd_negative(6 - v), kd_splat(6), v) / 6 + (x - x);
}

/* inside where -3 < x < 3, else low or high. */
KD_LANE kd_vf kd_hard_piece(kd_vf x, float low, kd_vf inside, float high) {
    return kd_select(kd_negative(-3 - x), kd_select(kd_negative(x - 3), inside, kd_splat(high)), kd_splat(low));
}

KD_LANE kd_vf kd_act_value(kd_act act, kd_vf x) {
    switch (act) {
    case KD_ACT_RELU:
        return kd_relu(x);
    case KD_ACT_GELU:
        return kd_gelu(x);
    case KD_ACT_SILU:
        return x * kd_sigmoid(x);
    case KD_ACT_HARDSWISH:
        return x * kd_hardsigmoid(x);
    case KD_ACT_HARDSIGMOID:
        return kd_hardsigmoid(x);
    case KD_ACT_NONE:
        break;
    }
    return x;
}

/* dy times the derivative at x. */
KD_LANE kd_vf kd_act_gradient(kd_act act, kd_vf dy, kd_vf x) {
    switch (act) {
    case KD_ACT_RELU:
        return kd_relu_grad(dy, x);
    case KD_ACT_GELU:
        return dy * kd_gelu_derivative(x);
    case KD_ACT_SILU: {
        kd_vf s = kd_sigmoid(x);
        return dy * (s + x * s * (1 - s));
    }
    case KD_ACT_HARDSWISH:
        return dy * kd_hard_piece(x, 0, x * (1.0f / 3) + 0.5f, 1);
    case KD_ACT_HARDSIGMOID:
        return dy * kd_hard_piece(x, 0, kd_splat(1.0f / 6), 0);
    case KD_ACT_NONE:
        break;
    }
    return dy;
}

#endif

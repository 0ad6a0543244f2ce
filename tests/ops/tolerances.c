#include "tests/ops/tolerances.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Measured: the cpu backend (oneDNN 2.6.3, 2 and 3 threads) against ref over all cases, on EPYC processors, one with AVX2 (f32 only) and one with AVX-512 and its bf16; the larger figure counts.
 *
 * f32: ref rounds once; a backend that sums k products in f32 is off by about sqrt(k) * 6e-8 of the result's size.
 * bf16: where the two lie on different sides of a rounding border the results are one step apart, 2^-7 = 7.8e-3 relative at worst, so 1e-2 is the
 * least that a bf16 result can be given; where bf16 intermediates enter another product (gradients after an activation, probabilities), such steps add up. */
static const struct row {
    ops_tolerance allowed;
    double measured_f32, measured_bf16;
} table[KD_OP_KINDS] = {
    [KD_OP_NORMALIZE] = {{0, 0}, 0, 0},                /* the contract promises torchvision's bits */
    [KD_OP_CONV2D] = {{5e-6, 2e-2}, 2.9e-6, 6.3e-3},   /* up to 4752 products per output; by the definition 1.8e-6, by Winograd's tiles the larger */
    [KD_OP_LINEAR] = {{5e-6, 2e-2}, 3.4e-6, 8.3e-3},   /* up to 4096 products; one sum in a row (our tiles), oneDNN 1.7e-6 */
    [KD_OP_BATCH_NORM] = {{5e-6, 2e-2}, 1.1e-6, 4.7e-3}, /* few values per channel: the gradient is a small difference of large terms */
    [KD_OP_LAYER_NORM] = {{2e-6, 1e-2}, 3.9e-7, 2.0e-3},
    [KD_OP_RELU] = {{0, 0}, 0, 0},
    [KD_OP_GELU] = {{1e-6, 1e-2}, 2.5e-7, 4.1e-3},     /* erf by polynomial */
    [KD_OP_SILU] = {{1e-6, 1e-2}, 1.4e-7, 3.6e-4},
    [KD_OP_HARDSWISH] = {{1e-6, 1e-2}, 1.3e-7, 3.3e-3},
    [KD_OP_HARDSIGMOID] = {{1e-6, 1e-2}, 9.1e-8, 0},
    [KD_OP_SILU_GATE] = {{1e-6, 1e-2}, 1.4e-7, 1.4e-6},
    [KD_OP_ADD] = {{0, 0}, 0, 0},                      /* one rounding on either side */
    [KD_OP_SCALE_ADD] = {{1e-6, 1e-2}, 3.1e-7, 5.8e-4},
    [KD_OP_MAX_POOL] = {{1e-6, 1e-2}, 2.2e-7, 0},      /* overlapping windows add gradients */
    [KD_OP_MEAN_TOKENS] = {{1e-6, 1e-2}, 2.8e-7, 6.1e-8},
    [KD_OP_ATTENTION] = {{1e-5, 4e-2}, 4.3e-6, 2.4e-2},/* probabilities and score gradients are rounded before the second product */
    [KD_OP_ROPE] = {{1e-6, 1e-2}, 1.0e-7, 3.4e-3}, /* one rounding of the products; bf16: one step of the result */
    [KD_OP_TOKENS] = {{1e-6, 1e-2}, 8.4e-8, 8.4e-8},
    [KD_OP_TOKEN_SLICE] = {{0, 0}, 0, 0},
    [KD_OP_CONCAT] = {{0, 0}, 0, 0},
    [KD_OP_CHANNEL_SLICE] = {{0, 0}, 0, 0},
    [KD_OP_CHANNEL_GATE] = {{2e-6, 1e-2}, 4.3e-7, 1.2e-7}, /* the gate's gradient is a sum over positions */
    [KD_OP_ROW_SCALE] = {{1e-6, 1e-2}, 7.8e-8, 0},
    [KD_OP_QKV_BY_HEAD] = {{1e-6, 1e-2}, 9.1e-8, 0},
    [KD_OP_RESIZE_BILINEAR] = {{1e-6, 1e-2}, 2.1e-7, 3.5e-3},
    [KD_OP_MSE] = {{5e-7, 0}, 8.0e-8, 0},
    [KD_OP_MSE_ADJOINT] = {{2e-6, 0}, 1.8e-7, 0}, /* the value is a difference of sums */
    [KD_OP_L2_NORMALIZE] = {{1e-6, 1e-2}, 9.9e-8, 6.9e-8}, /* bf16 rounds once, as layer_norm's */
    [KD_OP_COSINE] = {{1e-6, 0}, 1.3e-7, 0},
    [KD_OP_SMOOTH_L1] = {{5e-7, 0}, 7.8e-8, 0},
    [KD_OP_KL_LOGITS] = {{3e-6, 0}, 1.3e-6, 0}, /* e^x by polynomial; the gradient is a difference of probabilities */
    [KD_OP_KL_QUEUE] = {{1e-5, 0}, 1.9e-6, 0},  /* the same, of similarities summed in f32 and divided by the temperature */
    [KD_OP_KL_INTRA] = {{1e-5, 0}, 3.0e-6, 0},
    [KD_OP_GRAM] = {{1e-5, 0}, 2.5e-6, 0},      /* a difference of similarities */
    [KD_OP_KOLEO] = {{3e-6, 0}, 6.8e-7, 0},     /* a difference of neighbours */
};

ops_tolerance ops_tolerance_vs_ref(kd_op_kind kind) {
    return table[kind].allowed;
}

enum { MAX_ROWS = 200 };

static struct measured {
    char what[40];
    kd_op_kind kind;
    kd_dtype arithmetic;
    double error;
} rows[MAX_ROWS];
static size_t row_count;

void ops_measured(const char *what, kd_op_kind kind, kd_dtype arithmetic, double error) {
    size_t i = 0;
    while (i < row_count && (rows[i].kind != kind || rows[i].arithmetic != arithmetic || strcmp(rows[i].what, what) != 0))
        i++;
    if (i == MAX_ROWS)
        return;
    if (i == row_count) {
        row_count++;
        rows[i] = (struct measured){.kind = kind, .arithmetic = arithmetic};
        snprintf(rows[i].what, sizeof rows[i].what, "%s", what);
    }
    if (!(error <= rows[i].error))
        rows[i].error = error;
}

void ops_print_measured(void) {
    if (!getenv("KD_OPS_MEASURE"))
        return;
    for (size_t i = 0; i < row_count; i++) {
        const struct row *r = &table[rows[i].kind];
        printf("measured: %-24s %-16s %-5s %.2g (cpu in the table: %.2g)\n", rows[i].what, kd_op_kind_name(rows[i].kind), kd_dtype_name(rows[i].arithmetic), rows[i].error,
               rows[i].arithmetic == KD_BF16 ? r->measured_bf16 : r->measured_f32);
    }
}

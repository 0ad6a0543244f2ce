/* Softmax over rows of attention's scores, forward and backward (cpu_attention.c), on the calling thread. kd_softmax runs everywhere; kd_softmax_avx512 with AVX-512, for bf16 operands with AVX512-BF16, where it takes a third
 * of the time: the products are so fast there that the other took two fifths of a bf16 attention. Their bits differ. A row with a NaN, or with nothing but minus infinities, becomes NaN. Inside kernels/cpu only. */
#ifndef KD_KERNELS_CPU_SOFTMAX_H
#define KD_KERNELS_CPU_SOFTMAX_H

#include <stddef.h>
#include <stdint.h>

#include "common/tensor/dtype.h"

/* Rows of t numbers with room for ld, a multiple of 16. Results have zeros behind the t-th, up to the next multiple of 16. */
typedef struct kd_softmax_rows {
    float *score;  /* rows [.., ld]; overwritten */
    void *operand; /* what the next product reads: rows [.., operand_ld] of `type`. May be score's memory: a bf16 row is written behind where it is read */
    const void *p; /* backward: the probabilities, rows [.., ld] of `type` */
    kd_dtype type;
    int64_t t, ld, operand_ld;
    size_t rows;
    float scale;
} kd_softmax_rows;

/* operand = softmax(scale score). */
void kd_softmax(const kd_softmax_rows *c);
void kd_softmax_avx512(const kd_softmax_rows *c);
/* operand = scale p (dp - sum(p dp)), where score holds dp: the gradient of the score. */
void kd_softmax_backward(const kd_softmax_rows *c);
void kd_softmax_backward_avx512(const kd_softmax_rows *c);

#endif

/* Products of strided matrices on the calling thread: attention's (cpu_attention.c), which need its softmax in between, and those of Winograd's tiles (winograd.c); with AVX-512 also those of
 * linear layers in inference (cpu_linear_avx512.c), so that what follows the product is done while it lies in the first-level cache.
 *
 * Two kinds, of the same meaning: matmul_avx2.c (f32, 6 x 16 of the result in registers) and matmul_avx512.c (f32, and bf16 with its dot products; 8 x 48). Either copies b into panels, which stay in the second-level
 * cache, and reads a where it lies. The order of every sum follows from the depth alone. Inside kernels/cpu only. */
#ifndef KD_KERNELS_CPU_MATMUL_H
#define KD_KERNELS_CPU_MATMUL_H

#include <stddef.h>
#include <stdint.h>

#include "kernels/ops.h"

/* c[rows,columns] = or += a[rows,depth] b[depth,columns]. Distances in elements from row to row and from column to column; either of a's and either of b's is 1, and c's columns lie side by side.
 * bf16: sums are f32; where a's columns lie side by side and depth is odd, each of its rows has one more element, a zero; where b's rows do, depth is even.
 * pads: c's rows have room for a multiple of 16 columns, and those beyond `columns` become 0; not with add or a transposed a, and c is f32. */
typedef struct kd_matmul {
    kd_dtype type, c_type; /* of a and b; of c */
    int64_t rows, depth, columns;
    int64_t a_row, a_column, b_row, b_column, c_row;
    int add, pads;
} kd_matmul;

/* Panels of several column ranges of one b may lie one after the other, if all ranges but the last are multiples of KD_MATMUL_COLUMNS. Panels and strips are 64-byte aligned. */
typedef struct kd_matmul_kind {
    int64_t tile_rows;                          /* their multiples waste nothing */
    size_t (*panels_bytes)(const kd_matmul *m); /* from depth and columns */
    size_t (*strip_bytes)(const kd_matmul *m);  /* from depth: of the calling thread's scratch */
    void (*pack)(const kd_matmul *m, const void *b, void *panels);
    void (*rows)(const kd_matmul *m, void *c, const void *a, int64_t rows, const void *panels, void *strip); /* `rows` rows of a and c from where they begin, as often as wanted and by any number of threads */
} kd_matmul_kind;

extern const kd_matmul_kind kd_matmul_avx2, kd_matmul_avx512;

/* For who keeps panels and, behind them, a strip in one piece of scratch: its size, and where the strip begins. */
static inline size_t kd_matmul_strip_offset(const kd_matmul_kind *kind, const kd_matmul *m) {
    return (kind->panels_bytes(m) + 63) / 64 * 64;
}

static inline size_t kd_matmul_work_bytes(const kd_matmul_kind *kind, const kd_matmul *m) {
    return kd_matmul_strip_offset(kind, m) + kind->strip_bytes(m);
}

enum { KD_MATMUL_ROWS = 8, KD_MATMUL_COLUMNS = 48 }; /* of a tile: a product of fewer, or of other than their multiples, wastes some of its last tiles */

/* ---- with AVX-512 only ---- */

/* What becomes of a finished sum s: c = act(s + bias), or c = residual + gamma (s + bias) with act NONE. Absent ones are NULL. c may be the residual's memory. */
typedef struct kd_matmul_finish {
    const float *bias, *gamma; /* of the first column */
    const void *residual;      /* of c's first element; laid out as c */
    kd_dtype residual_type;
    kd_act act;                /* NONE, RELU, GELU */
} kd_matmul_finish;

/* As rows; m->add: c is the residual, and finish has none, nor an activation; finish may be NULL. bf16 on either side of c needs AVX512-BF16. */
void kd_matmul_rows_avx512(const kd_matmul *m, const kd_matmul_finish *finish, void *c, const void *a, int64_t rows, const void *panels, void *strip);

/* The kind for operands of `type` on this processor, as far as ONEDNN_MAX_CPU_ISA allows; NULL: none. */
const kd_matmul_kind *kd_matmul_here(kd_dtype type);

#endif

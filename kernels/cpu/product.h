/* Products of gathered rows, whose sums stay in registers: forward passes and gradients of x of convolutions, and of linear layers; with AVX-512 only in training (else matmul.h). (Gradients of weights: outer.h.)
 *
 *     product.c            what is multiplied and by whom: the taps of every pixel, blocks of pixels, the order of packed weights. No instructions
 *     product_avx2.c       tiles of 6 pixels x 16 channels of f32
 *     product_avx512.c     tiles of 12 x 32 of f32, and of bf16 with AVX512-BF16's dot products
 *
 * For every tap of the window and every channel of the source, R values of x times C weights. The rows of x are used where they lie: a tap is R addresses, of a row of zeros beyond the border; a tap that no pixel of a tile sees inside of
 * the map costs nothing.
 *
 * Everything is counted in steps of four bytes: an f32, or two bf16 that lie one after the other in depth (so there the depth is even).
 *
 * The order of every sum follows from the shape alone, so neither threads nor the other images of a batch change a bit. A linear layer over `rows` rows is the shape {1, 1, rows, in, 1, rows, out, 1, 1, 0}.
 * All tensors are dense (NHWC); scratch and packed are 64-byte aligned and the caller's. Thread rule: as the backend. Inside kernels/cpu only. */
#ifndef KD_KERNELS_CPU_PRODUCT_H
#define KD_KERNELS_CPU_PRODUCT_H

#include <stddef.h>
#include <stdint.h>

#include "kernels/ops.h"

typedef struct kd_window {
    int64_t images, h, w, in, ho, wo, out, kernel, stride, pad;
} kd_window;

/* Of a conv2d or linear op. */
kd_window kd_product_window(const kd_op_desc *d);

/* What happens to a finished sum s of forward: y = act(s + bias), or y = residual + gamma (s + bias) with act NONE. Absent ones are NULL. before_act, if given, gets s + bias (act GELU).
 * With AVX-512 bias and act NONE or RELU only. */
typedef struct kd_product_finish {
    const float *bias, *residual, *gamma;
    float *before_act;
    kd_act act; /* NONE, RELU, GELU */
} kd_product_finish;

/* Whether there are tiles for operands of `type` on this processor, as far as ONEDNN_MAX_CPU_ISA allows: f32 with AVX2 and FMA, bf16 with AVX512-BF16. */
int kd_product_runs_here(kd_dtype type);
/* Whether these functions take operands of `type` and a result of y_type here, and that window: not too many taps, in bf16 an even depth. */
int kd_product_takes(const kd_window *s, kd_dtype type, kd_dtype y_type);
int kd_product_takes_dx(const kd_window *s, kd_dtype type);

/* Weights w [out,in,kernel,kernel] as operands of `type` in the order of forward, and of dx. */
size_t kd_product_packed_bytes(const kd_window *s, kd_dtype type);
size_t kd_product_packed_dx_bytes(const kd_window *s, kd_dtype type);
void kd_product_pack(int threads, const kd_window *s, kd_dtype type, const float *w, void *packed);
void kd_product_pack_dx(int threads, const kd_window *s, kd_dtype type, const float *w, void *packed);

/* y [images,ho,wo,out] of y_type from x [images,h,w,in] of `type`. y may be the residual's memory. */
size_t kd_product_forward_bytes(const kd_window *s, kd_dtype type, int threads);
void kd_product_forward(int threads, const kd_window *s, kd_dtype type, kd_dtype y_type, void *y, const void *x, const void *packed, const kd_product_finish *f, void *scratch);

/* dx [images,h,w,in] = or += the gradient from g [images,ho,wo,out], all of `type`; packed: of kd_product_pack_dx. */
size_t kd_product_dx_bytes(const kd_window *s, kd_dtype type, int threads);
void kd_product_dx(int threads, const kd_window *s, kd_dtype type, void *dx, const void *g, const void *packed, int add, void *scratch);

/* ---- what the files share ---- */

/* Few input channels (a photo's three): a row of the window is one run of kernel x in values, so that a tap is a row of the window instead of a pixel. */
int kd_product_merges(const kd_window *s);

enum { KD_PRODUCT_MOST_ROWS = 12, KD_PRODUCT_DEPTHS = 16 };

/* One tap for a tile's pixels: where each one's source row begins, and where the tap's weights lie in a panel (bytes). */
typedef struct kd_product_tap {
    const char *row[KD_PRODUCT_MOST_ROWS];
    size_t at;
} kd_product_tap;

typedef struct kd_product_tile {
    const kd_product_tap *tap;
    size_t taps, steps;          /* of each */
    const char *panel;           /* [tap][step][C] */
    void *out;
    const size_t *at;            /* of each row in out, in elements */
    kd_dtype type;               /* of out */
    size_t rows, column, columns; /* that are wanted; column: the first */
    const kd_product_finish *finish;
    int add;
} kd_product_tile;

/* Weights of one panel: of column j, depth i and tap t in w[j column + i depth + t]. */
typedef struct kd_product_weights {
    const float *w;
    size_t column, depth;         /* distances */
    size_t columns, depths, taps; /* columns: of this panel */
} kd_product_weights;

typedef struct kd_product_kind {
    size_t rows, columns;  /* R, C */
    size_t competing_rows; /* R where the rows of x fall on one set of the first-level cache, which has eight ways or more */
    void (*tile)(kd_dtype type, const kd_product_tile *t);
    void (*pack)(kd_dtype type, void *to, const kd_product_weights *w, size_t begin, size_t end); /* depths begin .. end-1 into to[tap][step][C], with zeros beyond columns; begin: a multiple of KD_PRODUCT_DEPTHS */
} kd_product_kind;

extern const kd_product_kind kd_product_avx2, kd_product_avx512;

#endif

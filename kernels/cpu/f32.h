/* Convolutions and linear layers in f32 for CPUs with AVX2 and FMA but without AVX-512 (with it, of one output channel only: cpu_f32.c): forward passes and gradients of x (f32_product.c). On channels-last maps oneDNN reaches
 * half to two thirds of what such a core can do, 3.2 little more than 2.6; these reach 65 to 90 %. With AVX-512 oneDNN reaches 90 and more, so there it stays. Gradients of weights are outer.h's on both. Inside kernels/cpu only;
 * cpu_f32.c makes ops of these functions.
 *
 * Everything is a small matrix product whose sums, 6 pixels x 16 channels, stay in registers: for every tap of the window and every channel of the source, 6 values of x times 16 weights. The rows of x are used where they lie: a tap is
 * six addresses, of a row of zeros beyond the border. Attention's products (matmul_avx2.c) are made of the same tiles (f32_tile.h).
 *
 * The order of every sum follows from the shape alone, so neither threads nor the other images of a batch change a bit.
 *
 * A linear layer over `rows` rows is the shape {1, 1, rows, in, 1, rows, out, 1, 1, 0}. All tensors are dense f32 (NHWC); scratch and packed are 64-byte aligned and the caller's. Thread rule: as the backend. */
#ifndef KD_KERNELS_CPU_F32_H
#define KD_KERNELS_CPU_F32_H

#include <stddef.h>
#include <stdint.h>

#include "kernels/ops.h"

typedef struct kd_f32_shape {
    int64_t images, h, w, in, ho, wo, out, kernel, stride, pad;
} kd_f32_shape;

/* What happens to a finished sum s of forward: y = act(s + bias), or y = residual + gamma (s + bias) with act NONE. Absent ones are NULL. before_act, if given, gets s + bias (act GELU). */
typedef struct kd_f32_finish {
    const float *bias, *residual, *gamma;
    float *before_act;
    kd_act act; /* NONE, RELU, GELU */
} kd_f32_finish;

/* 1 where these functions may be called: AVX2 and FMA. */
int kd_f32_runs_here(void);
/* 0: a window of too many taps. */
int kd_f32_takes(const kd_f32_shape *s);

/* Weights w [out,in,kernel,kernel] in the order of forward, and of dx. */
size_t kd_f32_packed_bytes(const kd_f32_shape *s);
size_t kd_f32_packed_dx_bytes(const kd_f32_shape *s);
void kd_f32_pack(int threads, const kd_f32_shape *s, const float *w, float *packed);
void kd_f32_pack_dx(int threads, const kd_f32_shape *s, const float *w, float *packed);

/* y [images,ho,wo,out] from x [images,h,w,in]. y may be the residual's memory. */
size_t kd_f32_forward_bytes(const kd_f32_shape *s, int threads);
void kd_f32_forward(int threads, const kd_f32_shape *s, float *y, const float *x, const float *packed, const kd_f32_finish *f, void *scratch);

/* dx [images,h,w,in] = or += the gradient from g [images,ho,wo,out]; packed: of kd_f32_pack_dx. */
size_t kd_f32_dx_bytes(const kd_f32_shape *s, int threads);
void kd_f32_dx(int threads, const kd_f32_shape *s, float *dx, const float *g, const float *packed, int add, void *scratch);

/* ---- shared by the files ---- */

enum { KD_F32_ROWS = 6, KD_F32_COLUMNS = 16, KD_F32_TILE = KD_F32_ROWS * KD_F32_COLUMNS };

/* Few input channels (a photo's three): a row of the window is one run of kernel x in floats, so that a tap is a row of the window instead of a pixel. */
int kd_f32_merges(const kd_f32_shape *s);

#endif

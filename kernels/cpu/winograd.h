/* 3x3 convolutions of f32 in 16 multiplications where the definition has 36: Winograd's minimal filtering F(2x2, 3x3) (Lavin and Gray, "Fast algorithms for convolutional neural networks", 2015). Forward passes, gradients of x
 * and of the weights, for cpu_product.c; the products are matmul.h's.
 *
 * A tile is 2 x 2 values of the result, from 4 x 4 of the source. With d a channel of those, g the weights that lead to one output channel, and
 *
 *     B' = 1  0 -1  0     G = 1    0    0       A' = 1  1  1  0
 *          0  1  1  0         1/2  1/2  1/2          0  1 -1 -1
 *          0 -1  1  0         1/2 -1/2  1/2
 *          0  1  0 -1         0    0    1
 *
 *     y  = A' [ sum over input channels of (G g G') * (B' d B) ] A      * is by element: at each of 16 points one product [tiles, in] x [in, out]
 *     dg = G' [ sum over tiles of (A dy A') * (B' d B) ] G              the adjoint: at each point [out, tiles] x [tiles, in]
 *     dx:  y of the weights turned by half a turn, from dy
 *
 * All constants but the halves of G are 0, 1 and -1, so hardly a digit is lost: tests/ops/tolerances.c has what was measured.
 *
 * The order of the sums of y and dx follows from the shape alone, so neither threads nor the other images of a batch change a bit of them; that of dw follows from the number of threads, too. All tensors are dense (NHWC); scratch and
 * packed are 64-byte aligned and the caller's. Inside kernels/cpu only. */
#ifndef KD_KERNELS_CPU_WINOGRAD_H
#define KD_KERNELS_CPU_WINOGRAD_H

#include "kernels/cpu/product.h"

/* Whether these functions take operands of `type` and a result of y_type here: f32 with AVX2 or AVX-512, 3x3 of stride 1 and padding 1, channels in multiples of 16. */
int kd_winograd_takes(const kd_window *s, kd_dtype type, kd_dtype y_type);

/* The convolution whose forward pass gives the gradient of x: from [h,w,out] to [h,w,in]. */
kd_window kd_winograd_back(const kd_window *s);

/* Weights w [out,in,3,3] for forward; back: s is kd_winograd_back's, and w those of the convolution that it turns around. scratch: kd_winograd_forward_bytes. */
size_t kd_winograd_packed_bytes(const kd_window *s);
void kd_winograd_pack(int threads, const kd_window *s, int back, const float *w, void *packed, void *scratch);

/* y [images,h,w,out] = act(sum + bias), or += sum; act: NONE or RELU; bias may be NULL. */
size_t kd_winograd_forward_bytes(const kd_window *s, int threads);
void kd_winograd_forward(int threads, const kd_window *s, float *y, const float *x, const void *packed, const float *bias, kd_act act, int add, void *scratch);

/* dw [out,in,3,3] += the gradient from x [images,h,w,in] and g [images,h,w,out]. */
size_t kd_winograd_dw_bytes(const kd_window *s, int threads);
void kd_winograd_dw(int threads, const kd_window *s, float *dw, const float *x, const float *g, void *scratch);

#endif

/* Depthwise convolutions of channels-last maps: every channel has a kernel of its own (desc.groups = I = O). Not cuDNN's: its bf16 kernels for groups are made for several channels each.
 *
 * Weights are packed as f32 [k][k][C], rounded to bf16 when x is bf16, with a second copy turned by 180 degrees for the gradient of x. Gradients g are of x's type. */
#ifndef KD_KERNELS_CUDA_CUDA_DEPTHWISE_H
#define KD_KERNELS_CUDA_CUDA_DEPTHWISE_H

#include "kernels/cuda/cuda.h"

#ifdef __cplusplus
extern "C" {
#endif

int kd_cuda_is_depthwise(const kd_op_desc *d);
size_t kd_cuda_depthwise_packed_bytes(const kd_op_desc *d);
size_t kd_cuda_depthwise_dw_bytes(const kd_op_desc *d); /* scratch of dw */
kd_status kd_cuda_depthwise_pack(kd_cuda *b, const kd_op_desc *d, void *packed, const float *weight, kd_err *err);
/* y with bias and activation */
kd_status kd_cuda_depthwise_forward(kd_cuda *b, const kd_op_desc *d, void *y, const void *x, const void *packed, const float *bias, kd_err *err);
/* dx, or dx += as desc.add_dx says */
kd_status kd_cuda_depthwise_dx(kd_cuda *b, const kd_op_desc *d, void *dx, const void *g, const void *packed, kd_err *err);
/* dweight [C,1,k,k] += */
kd_status kd_cuda_depthwise_dw(kd_cuda *b, const kd_op_desc *d, float *dweight, const void *x, const void *g, void *scratch, kd_err *err);

#ifdef __cplusplus
}
#endif
#endif

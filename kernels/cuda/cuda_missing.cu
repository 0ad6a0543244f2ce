/* Only while the backend is being written: ops that aren't there yet. */
#include "kernels/cuda/device.cuh"
static kd_status missing(kd_cuda *b, kd_op *op, const kd_op_args *a, kd_err *err) { (void)b, (void)a; return kd_fail(err, KD_EFAIL, "op %s isn't written", kd_op_kind_name(op->desc.kind)); }
#define M(n) extern "C" const kd_cuda_kind __attribute__((weak)) kd_cuda_##n = {NULL, NULL, NULL, missing, missing};
M(conv2d) M(linear) M(attention) M(batch_norm) M(normalize) M(act) M(silu_gate) M(add) M(scale_add) M(mse) M(mse_adjoint) M(max_pool) M(mean_tokens) M(tokens) M(token_slice) M(rope)
M(resize_bilinear) M(concat) M(channel_slice) M(channel_gate) M(row_scale) M(qkv_by_head) M(l2_normalize) M(cosine) M(smooth_l1) M(kl_logits) M(kl_queue) M(kl_intra) M(gram) M(koleo)
extern "C" {
#define W __attribute__((weak))
W kd_status kd_cuda_sum_squares(kd_backend *, float *, const float *, size_t, kd_err *err) { return kd_fail(err, KD_EFAIL, "missing"); }
W kd_status kd_cuda_clip_scale(kd_backend *, float *, const float *, float, kd_err *err) { return kd_fail(err, KD_EFAIL, "missing"); }
W kd_status kd_cuda_adamw(kd_backend *, float *, const float *, float *, float *, size_t, const kd_adamw *, const float *, kd_err *err) { return kd_fail(err, KD_EFAIL, "missing"); }
W kd_status kd_cuda_sgd(kd_backend *, float *, const float *, float *, size_t, const kd_sgd *, const float *, kd_err *err) { return kd_fail(err, KD_EFAIL, "missing"); }
W kd_status kd_cuda_lars(kd_backend *, float *, const float *, float *, const uint64_t *, float *, size_t, const kd_lars *, const float *, kd_err *err) { return kd_fail(err, KD_EFAIL, "missing"); }
W kd_status kd_cuda_ema(kd_backend *, float *, const float *, size_t, float, kd_err *err) { return kd_fail(err, KD_EFAIL, "missing"); }
W kd_status kd_cuda_encode(kd_backend *, uint8_t *, kd_encode_stats *, const float *, size_t, const kd_encode_spec *, void *, kd_err *err) { return kd_fail(err, KD_EFAIL, "missing"); }
W kd_status kd_gemm_library_create(kd_gemm_library **out, kd_err *) { *out = NULL; return KD_OK; }
W void kd_gemm_library_destroy(kd_gemm_library *) {}
W void kd_gemm_library_version(const kd_gemm_library *, int *a, int *b, int *c) { *a = *b = *c = 0; }
W kd_status kd_conv_library_create(kd_conv_library **out, kd_cuda *, kd_err *) { *out = NULL; return KD_OK; }
W void kd_conv_library_destroy(kd_conv_library *) {}
W void kd_conv_library_version(int *a, int *b, int *c) { *a = *b = *c = 0; }
}

/* The flat-vector functions of the reference backend's table (see backend.h). */
#ifndef KD_KERNELS_REF_FLAT_H
#define KD_KERNELS_REF_FLAT_H

#include "kernels/backend.h"

kd_status kd_ref_sum_squares(kd_backend *b, float *out, const float *x, size_t n, kd_err *err);
kd_status kd_ref_clip_scale(kd_backend *b, float *scale, const float *sumsq, float max_norm, kd_err *err);
kd_status kd_ref_adamw(kd_backend *b, float *w, const float *g, float *m, float *v, size_t n, const kd_adamw *h, const float *scale, kd_err *err);
kd_status kd_ref_sgd(kd_backend *b, float *w, const float *g, float *m, size_t n, const kd_sgd *h, const float *scale, kd_err *err);
kd_status kd_ref_lars(kd_backend *b, float *w, const float *g, float *m, const uint64_t *begin, float *rate, size_t tensors, const kd_lars *h, const float *scale, kd_err *err);
kd_status kd_ref_ema(kd_backend *b, float *e, const float *w, size_t n, float decay, kd_err *err);
/* ref_encode.c */
kd_status kd_ref_encode(kd_backend *b, uint8_t *out, kd_encode_stats *stats, const float *x, size_t records, const kd_encode_spec *spec, void *scratch, kd_err *err);

#endif

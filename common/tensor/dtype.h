/* Element types and conversions between them. Everything on disk is little endian; only little-endian hosts are supported
 * (checked by a static assertion in dtype.c). */
#ifndef KD_COMMON_TENSOR_DTYPE_H
#define KD_COMMON_TENSOR_DTYPE_H

#include <stddef.h>
#include <stdint.h>

typedef enum kd_dtype {
    KD_F32 = 0, KD_F16 = 1, KD_BF16 = 2, KD_F64 = 3,
    KD_U8 = 4, KD_I8 = 5, KD_I16 = 6, KD_I32 = 7, KD_I64 = 8, KD_BOOL = 9
} kd_dtype;

size_t kd_dtype_size(kd_dtype t);         /* bytes of one element */
const char *kd_dtype_name(kd_dtype t);    /* "f32", "bf16", ... (our options and JSON) */

/* Round to nearest even; overflow gives infinity; NaN stays NaN (quiet). Subnormals are exact. */
uint16_t kd_f32_to_f16(float x);
float kd_f16_to_f32(uint16_t h);
uint16_t kd_f32_to_bf16(float x);
float kd_bf16_to_f32(uint16_t h);
/* Arrays; vectorised, same results as the scalar functions. */
void kd_f32_to_f16_n(uint16_t *dst, const float *src, size_t n);
void kd_f16_to_f32_n(float *dst, const uint16_t *src, size_t n);
void kd_f32_to_bf16_n(uint16_t *dst, const float *src, size_t n);
void kd_bf16_to_f32_n(float *dst, const uint16_t *src, size_t n);

/* n elements of any floating type, or I8..I64/U8/BOOL, as f32. */
void kd_convert_to_f32(float *dst, const void *src, kd_dtype src_type, size_t n);
/* Index of the first NaN or infinity, or n. */
size_t kd_first_nonfinite(const float *x, size_t n);

#endif

/* Codec: stored payloads back to f32. The other direction is the kernels' encode, which runs where the teacher runs. Layouts: common/tensor/target.h, FORMAT.md.
 * Inside cache/ only. Pure functions. */
#ifndef KD_CACHE_CODEC_H
#define KD_CACHE_CODEC_H

#include "common/tensor/target.h"

/* payload: kd_stored_bytes(dtype, rows, width) bytes of KD_F16, KD_BF16 or KD_I8 -> out [rows, width]. KD_EDAMAGED: a scale isn't a finite number from 0 up, which no writer stores. */
kd_status kd_codec_decode(float *out, const uint8_t *payload, kd_dtype dtype, size_t rows, size_t width, kd_err *err);

#endif

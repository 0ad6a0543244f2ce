/* The two inner loops of resampling, in a plain version and, on x86-64, in versions for AVX2 and AVX-512 that give the same bits (all sums are of
 * 32-bit integers, so lanes and order don't matter). Internal to common/image; resample.c has the arithmetic around them. */
#ifndef KD_COMMON_IMAGE_RESAMPLE_KERNELS_H
#define KD_COMMON_IMAGE_RESAMPLE_KERNELS_H

#include <stddef.h>
#include <stdint.h>

#include "common/image/resample.h"

/* Fixed point of the weights (Pillow's PRECISION_BITS). A pixel's weight stands KD_SPREAD times in a row: once per lane of R, G, B and unused. */
enum { KD_WEIGHT_BITS = 32 - 8 - 2, KD_WEIGHT_HALF = 1 << (KD_WEIGHT_BITS - 1), KD_SPREAD = 4, KD_TAP_GROUP = 4 };

/* An output is the weighted sum of `count` inputs from `first` on. */
typedef struct kd_taps {
    int first, count;
} kd_taps;

static inline uint8_t kd_clip8(int32_t sum) {
    sum >>= KD_WEIGHT_BITS;
    return (uint8_t)(sum < 0 ? 0 : sum > 255 ? 255 : sum);
}

typedef struct kd_resample_kernels {
    const char *name;
    /* n RGB pixels of one row. Output i has its weights at weight + i * stride, each KD_SPREAD times, padded with zeros to a multiple of KD_TAP_GROUP taps. */
    void (*horizontal)(uint8_t *dst, const uint8_t *src, const kd_taps *taps, const int32_t *weight, size_t stride, int n);
    /* How many bytes after a row's last used pixel `horizontal` may read (and ignore). */
    size_t overread;
    /* n bytes of one output row from `count` input rows; weight has one number per row. */
    void (*vertical)(uint8_t *dst, const uint8_t *src, size_t src_stride, const int32_t *weight, int count, size_t n);
} kd_resample_kernels;

extern const kd_resample_kernels kd_resample_plain;
/* The versions that this processor can run, best first, plain last. */
size_t kd_resample_variants(const kd_resample_kernels *out[3]);

/* kd_resample_window with a given version: how the tests compare them. */
kd_status kd_resample_with(const kd_resample_kernels *kernels, uint8_t *dst, kd_box window, int out_w, int out_h, const kd_image *src, kd_box box,
                           kd_filter filter, kd_resample_scratch *scratch, kd_err *err);

#endif

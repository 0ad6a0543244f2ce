/* The two inner loops of resampling, in a plain version and, on x86-64, in versions for AVX2 and AVX-512 that give the same bits (all sums are of
 * 32-bit integers, so lanes and order don't matter). Internal to common/image; resample.c has the arithmetic around them. */
#ifndef KD_COMMON_IMAGE_RESAMPLE_KERNELS_H
#define KD_COMMON_IMAGE_RESAMPLE_KERNELS_H

#include <stddef.h>
#include <stdint.h>

#include "common/image/resample.h"

/* Fixed point of the weights (Pillow's PRECISION_BITS). */
enum { KD_WEIGHT_BITS = 32 - 8 - 2, KD_WEIGHT_HALF = 1 << (KD_WEIGHT_BITS - 1) };
/* A fast horizontal loop takes up to so many rows at once; a pixel's bytes of all of them (R, G, B and one unused each) then lie side by side. */
enum { KD_ROW_GROUP = 4, KD_GROUP_PIXEL = 4 * KD_ROW_GROUP };

/* An output is the weighted sum of `count` inputs from `first` on. */
typedef struct kd_taps {
    int first, count;
} kd_taps;

static inline uint8_t kd_clip8(int32_t sum) {
    sum >>= KD_WEIGHT_BITS;
    return (uint8_t)(sum < 0 ? 0 : sum > 255 ? 255 : sum);
}

/* One direction of a resize: output i is made of taps[i], with its weights at weight + i * stride. `most` is the largest count; weights from a count up to
 * `most` are 0. */
typedef struct kd_pass {
    kd_taps *taps;
    int32_t *weight;
    size_t stride;
    int most;
} kd_pass;

typedef struct kd_resample_kernels {
    const char *name;
    /* `rows` rows of n RGB pixels from as many input rows, of which nothing outside the taps is read. packed: (last input - first input + most) *
     * KD_GROUP_PIXEL bytes, written and then read. */
    void (*horizontal)(uint8_t *dst, const uint8_t *src, size_t src_stride, int rows, const kd_pass *p, int n, uint8_t *packed);
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

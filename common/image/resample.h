/* Resampling with Pillow's fixed-point two-pass arithmetic (src/libImaging/Resample.c), bit for bit on uint8:
 * coefficients in double, rounded to 22 fractional bits; horizontal pass first into uint8; a pass is skipped when it is the identity.
 * That is the order of Pillow up to 12; 13 takes the vertical pass first when the width grows and the height shrinks.
 *
 *     kd_resample_scratch scratch = {0};
 *     KD_TRY(kd_resample(out, 224, 224, &img, x, y, w, h, KD_FILTER_BICUBIC, &scratch, err));
 *     kd_resample_scratch_free(&scratch);
 *
 * Thread rule: no shared state; scratch belongs to one thread. */
#ifndef KD_COMMON_IMAGE_RESAMPLE_H
#define KD_COMMON_IMAGE_RESAMPLE_H

#include "common/image/image.h"

typedef enum kd_filter { KD_FILTER_BOX = 0, KD_FILTER_BILINEAR = 1, KD_FILTER_BICUBIC = 2 } kd_filter;

/* Buffers that a thread re-uses from image to image. Zero-initialise; free with kd_resample_scratch_free. */
typedef struct kd_resample_scratch {
    void *coeffs;
    size_t coeffs_cap;
    uint8_t *rows;
    size_t rows_cap;
    uint8_t *packed;
    size_t packed_cap;
} kd_resample_scratch;
void kd_resample_scratch_free(kd_resample_scratch *s);

/* dst (out_h x out_w x 3, dense) = the integer box (x, y, w, h) of src, resized. Pixels outside the box never contribute (torchvision crops first).
 * The box must lie inside src (asserted). KD_EFAIL only when memory is out. */
kd_status kd_resample(uint8_t *dst, int out_w, int out_h, const kd_image *src, int x, int y, int w, int h, kd_filter filter,
                      kd_resample_scratch *scratch, kd_err *err);

/* The same, but only the box `window` of the out_w x out_h result is computed: dst is window.h x window.w x 3. Cost and memory follow the
 * window, so a picture of 65500 x 1 pixels is no problem for "resize, then centre crop". Both boxes must lie inside (asserted). */
kd_status kd_resample_window(uint8_t *dst, kd_box window, int out_w, int out_h, const kd_image *src, kd_box box, kd_filter filter,
                             kd_resample_scratch *scratch, kd_err *err);

#endif

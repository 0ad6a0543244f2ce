/* Gaussian blur of a view, in integers: torchvision's GaussianBlur (kernel exp(-x^2 / 2 sigma^2) normalised, borders mirrored without repeating the edge), but the same
 * bits on every machine and at most one step of 255 from torchvision, whose float32 sums depend on the order of its convolution.
 *
 *     uint32_t weight[KD_BLUR_MAX_RADIUS + 1];
 *     kd_blur_weights(weight, 4, 1.3f);                        // once, when the plan is drawn; the plan keeps them
 *     KD_TRY(kd_blur(rgb, 224, 224, weight, 4, &scratch, err));  // in place
 *     kd_blur_scratch_free(&scratch);
 *
 * The arithmetic, which a replay in any language repeats exactly (tests/golden/image/pillow_views.py), for each channel, with weights w[0..r] in 2^-24:
 *     column:  t = (sum over i of w[|i|] * p[y + i][x] + 128) >> 8           i = -r .. r; t has 16 fractional bits
 *     row:     s = sum over i of w[|i|] * t[y][x + i]                        40 fractional bits
 *     result:  s / 2^40 rounded to the nearest integer, halves to even
 * Thread rule: no shared state; scratch belongs to one thread. */
#ifndef KD_COMMON_IMAGE_BLUR_H
#define KD_COMMON_IMAGE_BLUR_H

#include <stddef.h>
#include <stdint.h>

#include "common/base/err.h"

enum { KD_BLUR_MAX_RADIUS = 11, KD_BLUR_ONE = 1 << 24 };

/* Half a kernel, centre first, in 2^-24: each weight is rounded, and the centre takes the rest, so that the whole kernel sums to exactly KD_BLUR_ONE. Entries beyond the radius are 0.
 * Uses kd_exact_exp, so the weights are equal on every machine. 1 <= radius <= KD_BLUR_MAX_RADIUS, sigma > 0 and finite (asserted). */
void kd_blur_weights(uint32_t weight[KD_BLUR_MAX_RADIUS + 1], int radius, float sigma);

/* Buffers that a thread re-uses from view to view. Zero-initialise; free with kd_blur_scratch_free. */
typedef struct kd_blur_scratch {
    uint8_t *bytes;
    size_t cap;
} kd_blur_scratch;
void kd_blur_scratch_free(kd_blur_scratch *s);

/* In place. Both sides of the picture must be longer than the radius: a mirror can't show more (asserted; plans are checked when they are made and when they are decoded).
 * The whole kernel sums to KD_BLUR_ONE (asserted). KD_EFAIL only when memory is out. */
kd_status kd_blur(uint8_t *rgb, int width, int height, const uint32_t *weight, int radius, kd_blur_scratch *scratch, kd_err *err);

#endif

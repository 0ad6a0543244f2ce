/* Gaussian blur in integers: see blur.h. A row of the result needs the rows around it as they were, so the picture is copied first. */
#include "common/image/blur.h"

#include <math.h>
#include <string.h>

#include "common/base/mem.h"
#include "common/base/rng.h"
#include "common/image/simd.h"

enum { COLUMN_SHIFT = 8, ROW_SHIFT = 40, BLOCK = 64 }; /* sums of a block stay in registers or the first-level cache */

void kd_blur_weights(uint32_t weight[KD_BLUR_MAX_RADIUS + 1], int radius, float sigma) {
    KD_ASSERT(radius >= 1 && radius <= KD_BLUR_MAX_RADIUS && sigma > 0.0f && isfinite(sigma));
    double e[KD_BLUR_MAX_RADIUS + 1] = {1.0}, sum = 1.0;
    for (int i = 1; i <= radius; i++) {
        double x = i / (double)sigma;
        e[i] = kd_exact_exp(-0.5 * (x * x));
        sum += 2.0 * e[i];
    }
    memset(weight, 0, (KD_BLUR_MAX_RADIUS + 1) * sizeof *weight);
    weight[0] = KD_BLUR_ONE;
    for (int i = 1; i <= radius; i++) {
        weight[i] = (uint32_t)(e[i] / sum * KD_BLUR_ONE + 0.5);
        weight[0] -= 2 * weight[i];
    }
}

void kd_blur_scratch_free(kd_blur_scratch *s) {
    kd_free(s->bytes);
    *s = (kd_blur_scratch){0};
}

/* Where a mirror at 0 and at n - 1 shows position i, for -n < i < 2n - 1. */
static int mirrored(int i, int n) { return i < 0 ? -i : i >= n ? 2 * (n - 1) - i : i; }

/* The n sums of columns of 2 radius + 1 rows; the sum of weights keeps each below 2^32. */
KD_CLONES static void blur_columns(uint32_t *t, const uint8_t *const *row, const uint32_t *weight, int radius, size_t n) {
    for (size_t start = 0; start < n; start += BLOCK) {
        size_t m = n - start < BLOCK ? n - start : BLOCK;
        const uint8_t *center = row[radius] + start;
        uint32_t sum[BLOCK];
        for (size_t j = 0; j < m; j++)
            sum[j] = center[j] * weight[0] + (1 << (COLUMN_SHIFT - 1));
        for (int i = 1; i <= radius; i++) {
            const uint8_t *above = row[radius - i] + start, *below = row[radius + i] + start;
            uint32_t w = weight[i];
            for (size_t j = 0; j < m; j++)
                sum[j] += (uint32_t)(above[j] + below[j]) * w;
        }
        for (size_t j = 0; j < m; j++)
            t[start + j] = sum[j] >> COLUMN_SHIFT;
    }
}

/* n results from sums that reach 3 * radius further on both sides. */
KD_CLONES static void blur_row(uint8_t *dst, const uint32_t *t, const uint32_t *weight, int radius, size_t n) {
    for (size_t start = 0; start < n; start += BLOCK) {
        size_t m = n - start < BLOCK ? n - start : BLOCK;
        const uint32_t *center = t + start;
        uint64_t sum[BLOCK];
        for (size_t j = 0; j < m; j++)
            sum[j] = (uint64_t)center[j] * weight[0];
        for (int i = 1; i <= radius; i++) {
            const uint32_t *left = center - 3 * i, *right = center + 3 * i;
            uint32_t w = weight[i];
            for (size_t j = 0; j < m; j++)
                sum[j] += (uint64_t)(left[j] + right[j]) * w;
        }
        for (size_t j = 0; j < m; j++) /* halves to even: up only when the integer is odd */
            dst[start + j] = (uint8_t)((sum[j] + ((UINT64_C(1) << (ROW_SHIFT - 1)) - 1) + (sum[j] >> ROW_SHIFT & 1)) >> ROW_SHIFT);
    }
}

/* Pixels left of t[0] and right of t[width - 1] as a mirror shows them. */
static void mirror_ends(uint32_t *t, int width, int radius) {
    for (int i = 1; i <= radius; i++) {
        memcpy(t - 3 * (ptrdiff_t)i, t + 3 * (ptrdiff_t)i, 3 * sizeof *t);
        memcpy(t + 3 * (ptrdiff_t)(width - 1 + i), t + 3 * (ptrdiff_t)(width - 1 - i), 3 * sizeof *t);
    }
}

kd_status kd_blur(uint8_t *rgb, int width, int height, const uint32_t *weight, int radius, kd_blur_scratch *scratch, kd_err *err) {
    KD_ASSERT(radius >= 1 && radius <= KD_BLUR_MAX_RADIUS && width > radius && height > radius);
    uint64_t total = weight[0];
    for (int i = 1; i <= radius; i++)
        total += 2 * (uint64_t)weight[i];
    KD_ASSERT(total == KD_BLUR_ONE);
    size_t n = 3 * (size_t)width, sums = n + 6 * (size_t)radius, bytes = sums * sizeof(uint32_t) + n * (size_t)height;
    if (bytes > scratch->cap) {
        kd_blur_scratch_free(scratch);
        scratch->bytes = kd_malloc(bytes);
        if (!scratch->bytes)
            return kd_fail(err, KD_EFAIL, "out of memory: %zu bytes for blurring a picture", bytes);
        scratch->cap = bytes;
    }
    uint32_t *t = (uint32_t *)(void *)scratch->bytes + 3 * (size_t)radius;
    uint8_t *was = scratch->bytes + sums * sizeof(uint32_t);
    memcpy(was, rgb, n * (size_t)height);
    for (int y = 0; y < height; y++) {
        const uint8_t *row[2 * KD_BLUR_MAX_RADIUS + 1];
        for (int i = -radius; i <= radius; i++)
            row[i + radius] = was + n * (size_t)mirrored(y + i, height);
        blur_columns(t, row, weight, radius, n);
        mirror_ends(t, width, radius);
        blur_row(rgb + n * (size_t)y, t, weight, radius, n);
    }
    return KD_OK;
}

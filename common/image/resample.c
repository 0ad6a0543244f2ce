/* Pillow's resampling (src/libImaging/Resample.c): see resample.h. The sums are of 32-bit integers, so lanes and order don't matter. */
#include "common/image/resample.h"

#include <math.h>
#include <string.h>

#include "common/base/mem.h"
#include "common/image/simd.h"

enum { PRECISION_BITS = 32 - 8 - 2, HALF = 1 << (PRECISION_BITS - 1), LANES = 16, GROUP = 4 };

/* Output i of a pass is the sum of `count` inputs from `first` on, weighted with weight[i * stride ...]. */
typedef struct taps {
    int first, count;
} taps;

typedef struct pass {
    taps *taps;
    int32_t *weight;
    int stride;
} pass;

static double filter_box(double x) { return x > -0.5 && x <= 0.5 ? 1.0 : 0.0; }

static double filter_bilinear(double x) {
    x = fabs(x);
    return x < 1.0 ? 1.0 - x : 0.0;
}

static double filter_bicubic(double x) {
    static const double a = -0.5;
    x = fabs(x);
    if (x < 1.0)
        return ((a + 2.0) * x - (a + 3.0)) * x * x + 1;
    if (x < 2.0)
        return (((x - 5) * x + 8) * x - 4) * a;
    return 0.0;
}

typedef struct filter_info {
    double (*weight)(double);
    double support;
} filter_info;

static const filter_info filters[] = {
    [KD_FILTER_BOX] = {filter_box, 0.5}, [KD_FILTER_BILINEAR] = {filter_bilinear, 1.0}, [KD_FILTER_BICUBIC] = {filter_bicubic, 2.0}};

static double filter_scale(int in, int out) {
    double scale = (double)in / out;
    return scale < 1.0 ? 1.0 : scale;
}

static int max_taps(const filter_info *f, int in, int out) { return (int)ceil(f->support * filter_scale(in, out)) * 2 + 1; }

/* Outputs start .. start + n - 1 of `out` from `in` inputs. w holds max_taps doubles. */
static void compute_pass(pass *p, const filter_info *f, int in, int out, int start, int n, double *w) {
    double scale = (double)in / out, filterscale = filter_scale(in, out), support = f->support * filterscale, inverse = 1.0 / filterscale;
    for (int i = 0; i < n; i++) {
        double center = (start + i + 0.5) * scale, sum = 0.0;
        int lo = (int)(center - support + 0.5), hi = (int)(center + support + 0.5);
        lo = lo < 0 ? 0 : lo;
        hi = hi > in ? in : hi;
        for (int t = 0; t < hi - lo; t++) {
            w[t] = f->weight((t + lo - center + 0.5) * inverse);
            sum += w[t];
        }
        int32_t *k = p->weight + (size_t)i * (size_t)p->stride;
        for (int t = 0; t < hi - lo; t++) {
            double v = (sum != 0.0 ? w[t] / sum : w[t]) * (1 << PRECISION_BITS);
            k[t] = (int32_t)(v < 0 ? v - 0.5 : v + 0.5);
        }
        p->taps[i] = (taps){lo, hi - lo};
    }
}

/* ---- the two loops ---- */

typedef int32_t i32x4 __attribute__((vector_size(16)));
typedef uint8_t u8x4 __attribute__((vector_size(4)));
typedef int32_t i32x16 __attribute__((vector_size(64)));
typedef uint8_t u8x16 __attribute__((vector_size(16)));

/* Rounded sum to a byte, in place. */
#define CLIP8(v)                                 \
    do {                                         \
        (v) >>= PRECISION_BITS;                  \
        (v) &= ~((v) >> 31);                     \
        (v) = ((v) | ((v) > 255)) & 255;         \
    } while (0)

static uint8_t clip8(int32_t sum) {
    sum >>= PRECISION_BITS;
    return (uint8_t)(sum < 0 ? 0 : sum > 255 ? 255 : sum);
}

static void horizontal_row_plain(uint8_t *dst, const uint8_t *src, const pass *p, int n) {
    for (int i = 0; i < n; i++) {
        const uint8_t *s = src + 3 * (size_t)p->taps[i].first;
        const int32_t *k = p->weight + (size_t)i * (size_t)p->stride;
        int32_t r = HALF, g = HALF, b = HALF;
        for (int t = 0; t < p->taps[i].count; t++, s += 3) {
            r += s[0] * k[t];
            g += s[1] * k[t];
            b += s[2] * k[t];
        }
        dst[3 * i] = clip8(r);
        dst[3 * i + 1] = clip8(g);
        dst[3 * i + 2] = clip8(b);
    }
}

#define STORE3(p, v)                                        \
    do {                                                    \
        CLIP8(v);                                           \
        u8x4 store3_bytes_ = __builtin_convertvector(v, u8x4); \
        memcpy((p), &store3_bytes_, 3);                     \
    } while (0)

/* GROUP rows at once, a pixel and the first byte of its neighbour in four lanes: one byte past the last pixel is read. */
KD_CLONES static void horizontal_group(uint8_t *dst, size_t dst_stride, const uint8_t *src, size_t src_stride, const pass *p, int n) {
    for (int i = 0; i < n; i++) {
        const uint8_t *s0 = src + 3 * (size_t)p->taps[i].first, *s1 = s0 + src_stride, *s2 = s1 + src_stride, *s3 = s2 + src_stride;
        const int32_t *k = p->weight + (size_t)i * (size_t)p->stride;
        i32x4 a0 = {HALF, HALF, HALF, HALF}, a1 = a0, a2 = a0, a3 = a0;
        size_t count = (size_t)p->taps[i].count;
        for (size_t t = 0; t < count; t++) {
            u8x4 p0, p1, p2, p3;
            memcpy(&p0, s0 + 3 * t, 4);
            memcpy(&p1, s1 + 3 * t, 4);
            memcpy(&p2, s2 + 3 * t, 4);
            memcpy(&p3, s3 + 3 * t, 4);
            a0 += __builtin_convertvector(p0, i32x4) * k[t];
            a1 += __builtin_convertvector(p1, i32x4) * k[t];
            a2 += __builtin_convertvector(p2, i32x4) * k[t];
            a3 += __builtin_convertvector(p3, i32x4) * k[t];
        }
        uint8_t *d = dst + 3 * (size_t)i;
        STORE3(d, a0);
        STORE3(d + dst_stride, a1);
        STORE3(d + 2 * dst_stride, a2);
        STORE3(d + 3 * dst_stride, a3);
    }
}

/* readable_past: the bytes after the last row's last pixel may be read (another row follows in memory). */
static void horizontal(uint8_t *dst, const uint8_t *src, size_t src_stride, int rows, const pass *p, int n, int readable_past) {
    size_t dst_stride = 3 * (size_t)n;
    int fast_rows = readable_past ? rows : rows - 1, y = 0;
    for (; y + GROUP <= fast_rows; y += GROUP)
        horizontal_group(dst + (size_t)y * dst_stride, dst_stride, src + (size_t)y * src_stride, src_stride, p, n);
    for (; y < rows; y++)
        horizontal_row_plain(dst + (size_t)y * dst_stride, src + (size_t)y * src_stride, p, n);
}

/* One output row of n bytes from `count` input rows. */
KD_CLONES static void vertical_row(uint8_t *dst, const uint8_t *src, size_t src_stride, const int32_t *k, int count, size_t n) {
    size_t j = 0;
    while (j < n) {
        if (n < LANES) {
            int32_t sum = HALF;
            for (int t = 0; t < count; t++)
                sum += src[(size_t)t * src_stride + j] * k[t];
            dst[j++] = clip8(sum);
            continue;
        }
        if (j + LANES > n)
            j = n - LANES; /* the last step overlaps the one before */
        i32x16 sum = {0};
        sum += HALF;
        const uint8_t *s = src + j;
        for (int t = 0; t < count; t++, s += src_stride) {
            u8x16 bytes;
            memcpy(&bytes, s, LANES);
            sum += __builtin_convertvector(bytes, i32x16) * k[t];
        }
        CLIP8(sum);
        u8x16 out = __builtin_convertvector(sum, u8x16);
        memcpy(dst + j, &out, LANES);
        j += LANES;
    }
}

/* ---- entry ---- */

void kd_resample_scratch_free(kd_resample_scratch *s) {
    kd_free(s->coeffs);
    kd_free(s->rows);
    *s = (kd_resample_scratch){0};
}

static kd_status grow(void **p, size_t *cap, size_t bytes, kd_err *err) {
    if (bytes <= *cap)
        return KD_OK;
    kd_free(*p);
    *cap = 0;
    *p = kd_malloc(bytes);
    if (!*p)
        return kd_fail(err, KD_EFAIL, "out of memory: %zu bytes for resampling a picture", bytes);
    *cap = bytes;
    return KD_OK;
}

/* Lays both passes out in the scratch and fills the ones that are needed. */
static kd_status prepare(pass *ph, pass *pv, const filter_info *f, kd_box window, int out_w, int out_h, kd_box box, kd_resample_scratch *s, kd_err *err) {
    ph->stride = max_taps(f, box.w, out_w);
    pv->stride = max_taps(f, box.h, out_h);
    size_t nh = (size_t)window.w, nv = (size_t)window.h, sh = (size_t)ph->stride, sv = (size_t)pv->stride;
    size_t doubles = sh > sv ? sh : sv;
    size_t bytes = doubles * sizeof(double) + (nh + nv) * sizeof(taps) + (nh * sh + nv * sv) * sizeof(int32_t);
    KD_TRY(grow(&s->coeffs, &s->coeffs_cap, bytes, err));
    double *w = s->coeffs;
    ph->taps = (taps *)(w + doubles);
    pv->taps = ph->taps + nh;
    ph->weight = (int32_t *)(pv->taps + nv);
    pv->weight = ph->weight + nh * sh;
    compute_pass(ph, f, box.w, out_w, window.x, window.w, w);
    compute_pass(pv, f, box.h, out_h, window.y, window.h, w);
    return KD_OK;
}

static int inside(kd_box b, int width, int height) {
    return b.x >= 0 && b.y >= 0 && b.w > 0 && b.h > 0 && b.w <= width && b.h <= height && b.x <= width - b.w && b.y <= height - b.h;
}

kd_status kd_resample_window(uint8_t *dst, kd_box window, int out_w, int out_h, const kd_image *src, kd_box box, kd_filter filter,
                             kd_resample_scratch *scratch, kd_err *err) {
    KD_ASSERT((unsigned)filter < sizeof filters / sizeof *filters);
    KD_ASSERT(inside(box, src->width, src->height) && inside(window, out_w, out_h));
    int resize_x = out_w != box.w, resize_y = out_h != box.h;
    size_t stride = 3 * (size_t)src->width, row_bytes = 3 * (size_t)window.w;
    const uint8_t *from = src->rgb + (size_t)box.y * stride + 3 * (size_t)box.x;

    pass ph, pv;
    KD_TRY(prepare(&ph, &pv, &filters[filter], window, out_w, out_h, box, scratch, err));
    /* Input rows of the vertical pass: first .. end - 1. */
    int first = window.y, end = window.y + window.h;
    if (resize_y) {
        first = pv.taps[0].first;
        end = pv.taps[window.h - 1].first + pv.taps[window.h - 1].count;
    }
    from += (size_t)first * stride;
    if (resize_x) {
        uint8_t *rows = dst;
        if (resize_y) {
            KD_TRY(grow((void **)&scratch->rows, &scratch->rows_cap, (size_t)(end - first) * row_bytes, err));
            rows = scratch->rows;
        }
        int readable_past = box.x + box.w < src->width || box.y + end < src->height;
        horizontal(rows, from, stride, end - first, &ph, window.w, readable_past);
        from = rows;
        stride = row_bytes;
    } else {
        from += 3 * (size_t)window.x;
    }
    if (resize_y) {
        for (int y = 0; y < window.h; y++)
            vertical_row(dst + (size_t)y * row_bytes, from + (size_t)(pv.taps[y].first - first) * stride, stride,
                         pv.weight + (size_t)y * (size_t)pv.stride, pv.taps[y].count, row_bytes);
    } else if (!resize_x) {
        for (int y = 0; y < window.h; y++)
            memcpy(dst + (size_t)y * row_bytes, from + (size_t)y * stride, row_bytes);
    }
    return KD_OK;
}

kd_status kd_resample(uint8_t *dst, int out_w, int out_h, const kd_image *src, int x, int y, int w, int h, kd_filter filter,
                      kd_resample_scratch *scratch, kd_err *err) {
    return kd_resample_window(dst, (kd_box){0, 0, out_w, out_h}, out_w, out_h, src, (kd_box){x, y, w, h}, filter, scratch, err);
}

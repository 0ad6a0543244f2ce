/* Pillow's resampling (src/libImaging/Resample.c): see resample.h. */
#include "common/image/resample.h"

#include <math.h>
#include <string.h>

#include "common/base/mem.h"
#include "common/image/resample_kernels.h"

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
static void compute_pass(kd_pass *p, const filter_info *f, int in, int out, int start, int n, double *w) {
    double scale = (double)in / out, filterscale = filter_scale(in, out), support = f->support * filterscale, inverse = 1.0 / filterscale;
    p->most = 0;
    for (int i = 0; i < n; i++) {
        double center = (start + i + 0.5) * scale, sum = 0.0;
        int lo = (int)(center - support + 0.5), hi = (int)(center + support + 0.5);
        lo = lo < 0 ? 0 : lo;
        hi = hi > in ? in : hi;
        for (int t = 0; t < hi - lo; t++) {
            w[t] = f->weight((t + lo - center + 0.5) * inverse);
            sum += w[t];
        }
        int32_t *k = p->weight + (size_t)i * p->stride;
        memset(k, 0, p->stride * sizeof *k);
        for (int t = 0; t < hi - lo; t++) {
            double v = (sum != 0.0 ? w[t] / sum : w[t]) * (1 << KD_WEIGHT_BITS);
            k[t] = (int32_t)(v < 0 ? v - 0.5 : v + 0.5);
        }
        p->taps[i] = (kd_taps){lo, hi - lo};
        p->most = hi - lo > p->most ? hi - lo : p->most;
    }
}

/* ---- entry ---- */

void kd_resample_scratch_free(kd_resample_scratch *s) {
    kd_free(s->coeffs);
    kd_free(s->rows);
    kd_free(s->packed);
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
static kd_status prepare(kd_pass *ph, kd_pass *pv, const filter_info *f, kd_box window, int out_w, int out_h, kd_box box, kd_resample_scratch *s, kd_err *err) {
    size_t nh = (size_t)window.w, nv = (size_t)window.h, th = (size_t)max_taps(f, box.w, out_w), tv = (size_t)max_taps(f, box.h, out_h);
    size_t doubles = th > tv ? th : tv;
    ph->stride = th;
    pv->stride = tv;
    size_t bytes = doubles * sizeof(double) + (nh + nv) * sizeof(kd_taps) + (nh * ph->stride + nv * pv->stride) * sizeof(int32_t);
    KD_TRY(grow(&s->coeffs, &s->coeffs_cap, bytes, err));
    double *w = s->coeffs;
    ph->taps = (kd_taps *)(w + doubles);
    pv->taps = ph->taps + nh;
    ph->weight = (int32_t *)(pv->taps + nv);
    pv->weight = ph->weight + nh * ph->stride;
    compute_pass(ph, f, box.w, out_w, window.x, window.w, w);
    compute_pass(pv, f, box.h, out_h, window.y, window.h, w);
    size_t inputs = (size_t)(ph->taps[nh - 1].first + ph->taps[nh - 1].count - ph->taps[0].first + ph->most);
    return grow((void **)&s->packed, &s->packed_cap, inputs * KD_GROUP_PIXEL, err);
}

static int inside(kd_box b, int width, int height) {
    return b.x >= 0 && b.y >= 0 && b.w > 0 && b.h > 0 && b.w <= width && b.h <= height && b.x <= width - b.w && b.y <= height - b.h;
}

kd_status kd_resample_with(const kd_resample_kernels *kernels, uint8_t *dst, kd_box window, int out_w, int out_h, const kd_image *src, kd_box box,
                           kd_filter filter, kd_resample_scratch *scratch, kd_err *err) {
    KD_ASSERT((unsigned)filter < sizeof filters / sizeof *filters);
    KD_ASSERT(inside(box, src->width, src->height) && inside(window, out_w, out_h));
    int resize_x = out_w != box.w, resize_y = out_h != box.h;
    size_t stride = 3 * (size_t)src->width, row_bytes = 3 * (size_t)window.w;

    kd_pass ph, pv;
    KD_TRY(prepare(&ph, &pv, &filters[filter], window, out_w, out_h, box, scratch, err));
    /* Input rows of the vertical pass: first .. end - 1. */
    int first = window.y, end = window.y + window.h;
    if (resize_y) {
        first = pv.taps[0].first;
        end = pv.taps[window.h - 1].first + pv.taps[window.h - 1].count;
    }
    const uint8_t *from = src->rgb + (size_t)(box.y + first) * stride + 3 * (size_t)box.x;
    if (resize_x) {
        uint8_t *rows = dst;
        if (resize_y) {
            KD_TRY(grow((void **)&scratch->rows, &scratch->rows_cap, (size_t)(end - first) * row_bytes, err));
            rows = scratch->rows;
        }
        kernels->horizontal(rows, from, stride, end - first, &ph, window.w, scratch->packed);
        from = rows;
        stride = row_bytes;
    } else {
        from += 3 * (size_t)window.x;
    }
    if (resize_y) {
        for (int y = 0; y < window.h; y++)
            kernels->vertical(dst + (size_t)y * row_bytes, from + (size_t)(pv.taps[y].first - first) * stride, stride,
                              pv.weight + (size_t)y * pv.stride, pv.taps[y].count, row_bytes);
    } else if (!resize_x) {
        for (int y = 0; y < window.h; y++)
            memcpy(dst + (size_t)y * row_bytes, from + (size_t)y * stride, row_bytes);
    }
    return KD_OK;
}

kd_status kd_resample_window(uint8_t *dst, kd_box window, int out_w, int out_h, const kd_image *src, kd_box box, kd_filter filter,
                             kd_resample_scratch *scratch, kd_err *err) {
    const kd_resample_kernels *variant[3];
    kd_resample_variants(variant);
    return kd_resample_with(variant[0], dst, window, out_w, out_h, src, box, filter, scratch, err);
}

kd_status kd_resample(uint8_t *dst, int out_w, int out_h, const kd_image *src, int x, int y, int w, int h, kd_filter filter,
                      kd_resample_scratch *scratch, kd_err *err) {
    return kd_resample_window(dst, (kd_box){0, 0, out_w, out_h}, out_w, out_h, src, (kd_box){x, y, w, h}, filter, scratch, err);
}

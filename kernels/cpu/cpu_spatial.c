/* max_pool and resize_bilinear on channels-last maps: vectors run over channels. Backward passes gather (every input pixel collects from the outputs that
 * read it), so nothing is zeroed first, no two threads write one place, and the order of additions is fixed. */
#include "common/base/mem.h"
#include "common/tensor/target.h"
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/simd.h"

/* ---- max_pool. Training keeps each window's winner: its position in the window, row-major, one byte per output ---- */

enum { MAX_KERNEL = 16 };

typedef struct op_ctx {
    const kd_op_desc *d;
    const kd_op_args *p;
} op_ctx;

static kd_status pool_create(kd_cpu *b, kd_op *op, kd_op_needs *needs, kd_err *err) {
    (void)b;
    if (op->desc.kernel > MAX_KERNEL)
        return kd_fail(err, KD_EFAIL, "%s: a pooling window of %d is above the cpu backend's limit of %d; use --device ref", op->desc.name, op->desc.kernel, MAX_KERNEL);
    if (op->desc.train)
        needs->saved = kd_tdesc_numel(&op->desc.y);
    return KD_OK;
}

/* The part of a window that lies inside the map: positions [low, high) of `kernel`, the first at pixel `origin` (possibly outside). */
typedef struct span {
    int64_t origin, low, high;
} span;

KD_LANE span span_of(int64_t out, int64_t size, const kd_op_desc *d) {
    int64_t origin = out * d->stride - d->pad;
    return (span){origin, origin < 0 ? -origin : 0, size - origin < d->kernel ? size - origin : d->kernel};
}

/* What the loops are made of: eight lanes, or with AVX-512 sixteen. */
#ifdef KD_FOR_AVX512
enum { POOL_LANES = KD_VF };
typedef kd_vf pool_vf;
typedef kd_vi pool_vi;

KD_LANE void store_winner(uint8_t *p, pool_vi winner, int n) {
    _mm_mask_storeu_epi8(p, kd_first16((size_t)n), _mm512_cvtepi32_epi8((__m512i)winner));
}

KD_LANE pool_vf pool_load(const void *p, kd_dtype t, size_t i, int n) {
    return kd_load(p, t, i, n);
}

/* dy's lanes where the window's winner is at `position`, else 0. */
KD_LANE pool_vf load_won(const uint8_t *winner, int position, const void *p, kd_dtype t, size_t i, int n) {
    __mmask16 here = kd_first16((size_t)n), won = _mm_mask_cmpeq_epi8_mask(here, _mm_maskz_loadu_epi8(here, winner + i), _mm_set1_epi8((char)position));
    return (pool_vf)(t == KD_F32 ? _mm512_maskz_loadu_ps(won, (const float *)p + i) : kd_widen16(won, (const uint16_t *)p + i));
}

KD_LANE void pool_store(void *p, kd_dtype t, size_t i, pool_vf v, int n) {
    kd_store(p, t, i, v, n);
}

/* One more value of the window. zero: 0, or NaN once a value isn't finite, which must show in y. */
KD_LANE void take_better(pool_vf *best, pool_vi *winner, pool_vf *zero, pool_vf v, int position) {
    __mmask16 better = _mm512_cmp_ps_mask((__m512)*best, (__m512)v, _CMP_LT_OQ);
    *best = (pool_vf)_mm512_mask_mov_ps((__m512)*best, better, (__m512)v);
    *winner = (pool_vi)_mm512_mask_mov_epi32((__m512i)*winner, better, _mm512_set1_epi32(position));
    *zero = (pool_vf)_mm512_fmadd_ps((__m512)v, _mm512_setzero_ps(), (__m512)*zero);
}
#else
enum { POOL_LANES = KD_V8 };
typedef kd_vf8 pool_vf;
typedef kd_vi8 pool_vi;

/* Winners by way of 16 bits: gcc 12 takes a direct conversion between 32 and 8 bits apart, lane by lane. */
typedef uint8_t kd_vb8 __attribute__((vector_size(8)));

KD_LANE void store_winner(uint8_t *p, pool_vi winner, int n) {
    kd_vb8 v = __builtin_convertvector(__builtin_convertvector(winner, kd_vh8), kd_vb8);
    if (n == KD_V8) {
        memcpy(p, &v, sizeof v);
        return;
    }
    uint8_t part[KD_V8];
    memcpy(part, &v, sizeof part);
    for (int i = 0; i < n; i++)
        p[i] = part[i];
}

KD_LANE pool_vi load_winner(const uint8_t *p, int n) {
    kd_vb8 v;
    if (n == KD_V8) {
        memcpy(&v, p, sizeof v);
    } else {
        uint8_t part[KD_V8] = {0};
        for (int i = 0; i < n; i++)
            part[i] = p[i];
        memcpy(&v, part, sizeof v);
    }
    return __builtin_convertvector(__builtin_convertvector(v, kd_vh8), pool_vi);
}

KD_LANE pool_vf pool_load(const void *p, kd_dtype t, size_t i, int n) {
    return kd_load8(p, t, i, n);
}

KD_LANE void pool_store(void *p, kd_dtype t, size_t i, pool_vf v, int n) {
    if (t == KD_F32)
        kd_store8((float *)p + i, v, n);
    else
        kd_store8_bf16((uint16_t *)p + i, v, n);
}

KD_LANE pool_vf load_won(const uint8_t *winner, int position, const void *p, kd_dtype t, size_t i, int n) {
    pool_vi other = load_winner(winner + i, n) ^ position; /* 0 where it won; small numbers */
    return (pool_vf)((other - 1) >> 31 & (pool_vi)pool_load(p, t, i, n));
}

KD_LANE void take_better(pool_vf *best, pool_vi *winner, pool_vf *zero, pool_vf v, int position) {
    pool_vi better = kd_less8(*best, v);
    *best = kd_select8(better, v, *best);
    *winner = (better & position) | (~better & *winner);
    *zero += v - v;
}
#endif

KD_LANE int pool_lanes(size_t left) {
    return left < POOL_LANES ? (int)left : POOL_LANES;
}

/* What the window below this one will read, from element `at` on: processors see no pattern in it, and waiting for memory took three quarters of the time. Beyond the map it does no harm. */
KD_LANE void fetch_next(const kd_op_desc *d, const void *x, kd_dtype type, size_t at) {
    enum { LINE = 64 };
    size_t element = type == KD_F32 ? 4 : 2, width = (size_t)d->x[0].shape[3] * element, row = (size_t)d->x[0].shape[2] * width;
    for (size_t y = 0; y < (size_t)d->stride; y++)
        for (size_t b = 0; b < (size_t)d->stride * width; b += LINE)
            __builtin_prefetch((const char *)x + at * element + y * row + b);
}

/* Output pixels begin .. end-1. `whole`: the channels are a multiple of POOL_LANES. Types and that come as constants (simd.h). */
KD_LANE void pool_pixels(const op_ctx *ctx, kd_dtype tx, kd_dtype ty, int whole, size_t begin, size_t end) {
    const kd_op_desc d = *ctx->d;
    const kd_op_args p = *ctx->p;
    const int64_t *xs = d.x[0].shape, *ys = d.y.shape;
    size_t width = (size_t)xs[3];
    for (size_t r = begin; r < end; r++) {
        int64_t ox = (int64_t)r % ys[2], oy = (int64_t)r / ys[2] % ys[1], image = (int64_t)r / (ys[2] * ys[1]);
        span sy = span_of(oy, xs[1], &d), sx = span_of(ox, xs[2], &d);
        size_t origin = (size_t)((image * xs[1] + sy.origin) * xs[2] + sx.origin) * width, line = (size_t)xs[2] * width; /* may lie before the map: wraps, and back */
        fetch_next(&d, p.x[0], tx, origin + (size_t)d.kernel * line);
        for (size_t i = 0; i < width; i += POOL_LANES) {
            int n = whole ? POOL_LANES : pool_lanes(width - i);
            pool_vf best = pool_load(p.x[0], tx, origin + (size_t)sy.low * line + (size_t)sx.low * width + i, n), zero = best - best;
            pool_vi winner = (pool_vi){0} + (int32_t)(sy.low * d.kernel + sx.low);
            for (int64_t ky = sy.low; ky < sy.high; ky++)
                for (int64_t kx = sx.low; kx < sx.high; kx++)
                    take_better(&best, &winner, &zero, pool_load(p.x[0], tx, origin + (size_t)ky * line + (size_t)kx * width + i, n), (int)(ky * d.kernel + kx));
            pool_store(p.y, ty, r * width + i, best + zero, n);
            if (d.train)
                store_winner((uint8_t *)p.saved + r * width + i, winner, n);
        }
    }
}

KD_HOT static void pool_range(const void *ctx, int slice, size_t begin, size_t end) {
    const op_ctx *c = ctx;
    kd_dtype tx = c->d->x[0].dtype, ty = c->d->y.dtype;
    int whole = c->d->y.shape[3] % POOL_LANES == 0;
    (void)slice;
    if (whole && tx == KD_F32 && ty == KD_F32)
        pool_pixels(c, KD_F32, KD_F32, 1, begin, end);
    else if (whole && tx == KD_BF16 && ty == KD_BF16)
        pool_pixels(c, KD_BF16, KD_BF16, 1, begin, end);
    else
        pool_pixels(c, tx, ty, 0, begin, end);
}

/* Windows [low, high) that contain pixel `in`. */
KD_LANE span windows_of(int64_t in, int64_t outputs, const kd_op_desc *d) {
    int32_t end = (int32_t)in + d->pad, first = end - d->kernel + 1, last = end / d->stride; /* a division of 64 bits takes twice as long */
    return (span){0, first <= 0 ? 0 : (first + d->stride - 1) / d->stride, last + 1 < outputs ? last + 1 : outputs};
}

/* Input pixels begin .. end-1; constants as above. */
KD_LANE void pool_grad_pixels(const op_ctx *ctx, kd_dtype tx, kd_dtype ty, int whole, size_t begin, size_t end) {
    const kd_op_desc d = *ctx->d;
    const kd_op_args p = *ctx->p;
    const int64_t *xs = d.x[0].shape, *ys = d.y.shape;
    size_t width = (size_t)xs[3];
    int add = (d.add_dx & 1) != 0;
    for (size_t r = begin, row_end; r < end; r = row_end) {
        int64_t left = (int64_t)r % xs[2], iy = (int64_t)r / xs[2] % xs[1], image = (int64_t)r / (xs[2] * xs[1]);
        span wy = windows_of(iy, ys[1], &d);
        row_end = r + (size_t)(xs[2] - left) < end ? r + (size_t)(xs[2] - left) : end;
        for (size_t at = r; at < row_end; at++) {
            int64_t ix = left + (int64_t)(at - r);
            span wx = windows_of(ix, ys[2], &d);
            for (size_t i = 0; i < width; i += POOL_LANES) {
                int n = whole ? POOL_LANES : pool_lanes(width - i);
                pool_vf sum = {0};
                for (int64_t oy = wy.low; oy < wy.high; oy++)
                    for (int64_t ox = wx.low; ox < wx.high; ox++) {
                        int position = (int)((iy + d.pad - oy * d.stride) * d.kernel + ix + d.pad - ox * d.stride);
                        sum += load_won(p.saved, position, p.dy, ty, (size_t)((image * ys[1] + oy) * ys[2] + ox) * width + i, n);
                    }
                if (add)
                    sum += pool_load(p.dx[0], tx, at * width + i, n);
                pool_store(p.dx[0], tx, at * width + i, sum, n);
            }
        }
    }
}

KD_HOT static void pool_grad_range(const void *ctx, int slice, size_t begin, size_t end) {
    const op_ctx *c = ctx;
    kd_dtype tx = c->d->x[0].dtype, ty = c->d->y.dtype;
    int whole = c->d->y.shape[3] % POOL_LANES == 0;
    (void)slice;
    if (whole && tx == KD_F32 && ty == KD_F32)
        pool_grad_pixels(c, KD_F32, KD_F32, 1, begin, end);
    else if (whole && tx == KD_BF16 && ty == KD_BF16)
        pool_grad_pixels(c, KD_BF16, KD_BF16, 1, begin, end);
    else
        pool_grad_pixels(c, tx, ty, 0, begin, end);
}

static kd_status pool_forward(kd_cpu *b, kd_op *op, const kd_op_args *a, kd_err *err) {
    (void)err;
    kd_cpu_parallel(b->base.threads, kd_cpu_rows(&op->desc.y), kd_cpu_width(&op->desc.y), pool_range, &(op_ctx){&op->desc, a});
    return KD_OK;
}

static kd_status pool_backward(kd_cpu *b, kd_op *op, const kd_op_args *a, kd_err *err) {
    (void)err;
    if (op->desc.need_dx & 1)
        kd_cpu_parallel(b->base.threads, kd_cpu_rows(&op->desc.x[0]), kd_cpu_width(&op->desc.y), pool_grad_range, &(op_ctx){&op->desc, a});
    return KD_OK;
}

const kd_cpu_kind kd_cpu_max_pool = {pool_create, NULL, NULL, pool_forward, pool_backward};

/* ---- resize_bilinear ---- */

/* One axis. Forward: output o reads lines a[o] and b[o] with weights 1 - wb[o] and wb[o]. Backward: input i is read by the readers
 * start[i] .. start[i+1]-1, each an output and its weight. */
typedef struct axis {
    int64_t in, out;
    int64_t *a, *b, *start, *reader;
    float *wb, *weight;
} axis;

typedef struct resize {
    axis y, x;
} resize;

static void axis_free(axis *s) {
    void *const all[] = {s->a, s->b, s->start, s->reader, s->wb, s->weight};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        kd_free(all[i]);
}

static void resize_destroy(void *impl) {
    resize *s = impl;
    if (!s)
        return;
    axis_free(&s->y);
    axis_free(&s->x);
    kd_free(s);
}

static void fill_sources(axis *s) {
    for (int64_t o = 0; o < s->out; o++) {
        double w1;
        kd_bilinear_tap(s->in, s->out, o, &s->a[o], &s->b[o], &w1);
        s->wb[o] = (float)w1;
    }
}

/* Counting sort of all (input, output) pairs by input. */
static void fill_readers(axis *s) {
    for (int64_t o = 0; o < s->out; o++) {
        s->start[s->a[o] + 1]++;
        s->start[s->b[o] + 1]++;
    }
    for (int64_t i = 0; i < s->in; i++)
        s->start[i + 1] += s->start[i];
    for (int64_t o = 0; o < s->out; o++)
        for (int k = 0; k < 2; k++) {
            int64_t at = s->start[k ? s->b[o] : s->a[o]]++;
            s->reader[at] = o;
            s->weight[at] = k ? s->wb[o] : 1 - s->wb[o];
        }
    for (int64_t i = s->in; i > 0; i--) /* each start has moved to its end, which is the next one's start */
        s->start[i] = s->start[i - 1];
    s->start[0] = 0;
}

static kd_status axis_create(axis *s, int64_t in, int64_t out, kd_err *err) {
    size_t n = (size_t)out;
    s->in = in;
    s->out = out;
    KD_TRY(kd_alloc_array(&s->a, n, sizeof *s->a, err));
    KD_TRY(kd_alloc_array(&s->b, n, sizeof *s->b, err));
    KD_TRY(kd_alloc_array(&s->wb, n, sizeof *s->wb, err));
    KD_TRY(kd_alloc_array(&s->start, (size_t)in + 1, sizeof *s->start, err));
    KD_TRY(kd_alloc_array(&s->reader, 2 * n, sizeof *s->reader, err));
    KD_TRY(kd_alloc_array(&s->weight, 2 * n, sizeof *s->weight, err));
    fill_sources(s);
    fill_readers(s);
    return KD_OK;
}

static kd_status resize_create(kd_cpu *b, kd_op *op, kd_op_needs *needs, kd_err *err) {
    const int64_t *x = op->desc.x[0].shape, *y = op->desc.y.shape;
    resize *s = NULL;
    (void)b, (void)needs;
    KD_TRY(kd_alloc_array(&s, 1, sizeof *s, err));
    op->impl = s;
    KD_TRY(axis_create(&s->y, x[1], y[1], err));
    return axis_create(&s->x, x[2], y[2], err);
}

typedef struct resize_ctx {
    const kd_op_desc *d;
    const kd_op_args *p;
    const resize *s;
} resize_ctx;

KD_HOT static void resize_range(const void *ctx, int slice, size_t begin, size_t end) {
    const resize_ctx c = *(const resize_ctx *)ctx;
    const axis ya = c.s->y, xa = c.s->x;
    const void *x = c.p->x[0];
    kd_dtype tx = c.d->x[0].dtype, ty = c.d->y.dtype;
    size_t width = kd_cpu_width(&c.d->y);
    (void)slice;
    for (size_t r = begin; r < end; r++) { /* one output pixel */
        int64_t ox = (int64_t)r % xa.out, oy = (int64_t)r / xa.out % ya.out, image = (int64_t)r / (xa.out * ya.out);
        size_t top = (size_t)((image * ya.in + ya.a[oy]) * xa.in), low = (size_t)((image * ya.in + ya.b[oy]) * xa.in);
        size_t left = (size_t)xa.a[ox], right = (size_t)xa.b[ox];
        float wy = ya.wb[oy], wx = xa.wb[ox];
        for (size_t i = 0; i < width; i += KD_VF) {
            int n = kd_lanes(width - i);
            kd_vf upper = kd_load(x, tx, (top + left) * width + i, n) * (1 - wx) + kd_load(x, tx, (top + right) * width + i, n) * wx;
            kd_vf lower = kd_load(x, tx, (low + left) * width + i, n) * (1 - wx) + kd_load(x, tx, (low + right) * width + i, n) * wx;
            kd_store(c.p->y, ty, r * width + i, upper * (1 - wy) + lower * wy, n);
        }
    }
}

KD_HOT static void resize_grad_range(const void *ctx, int slice, size_t begin, size_t end) {
    const resize_ctx c = *(const resize_ctx *)ctx;
    const axis ya = c.s->y, xa = c.s->x;
    kd_dtype tx = c.d->x[0].dtype, ty = c.d->y.dtype;
    size_t width = kd_cpu_width(&c.d->y);
    int add = (c.d->add_dx & 1) != 0;
    (void)slice;
    for (size_t r = begin; r < end; r++) { /* one input pixel */
        int64_t ix = (int64_t)r % xa.in, iy = (int64_t)r / xa.in % ya.in, image = (int64_t)r / (xa.in * ya.in);
        for (size_t i = 0; i < width; i += KD_VF) {
            int n = kd_lanes(width - i);
            kd_vf sum = {0};
            for (int64_t v = ya.start[iy]; v < ya.start[iy + 1]; v++) {
                size_t line = (size_t)((image * ya.out + ya.reader[v]) * xa.out);
                kd_vf part = {0};
                for (int64_t h = xa.start[ix]; h < xa.start[ix + 1]; h++)
                    part += kd_load(c.p->dy, ty, (line + (size_t)xa.reader[h]) * width + i, n) * xa.weight[h];
                sum += part * ya.weight[v];
            }
            kd_store_grad(c.p->dx[0], tx, r * width + i, sum, n, add);
        }
    }
}

static kd_status resize_forward(kd_cpu *b, kd_op *op, const kd_op_args *a, kd_err *err) {
    (void)err;
    kd_cpu_parallel(b->base.threads, kd_cpu_rows(&op->desc.y), kd_cpu_width(&op->desc.y), resize_range, &(resize_ctx){&op->desc, a, op->impl});
    return KD_OK;
}

static kd_status resize_backward(kd_cpu *b, kd_op *op, const kd_op_args *a, kd_err *err) {
    (void)err;
    if (op->desc.need_dx & 1)
        kd_cpu_parallel(b->base.threads, kd_cpu_rows(&op->desc.x[0]), kd_cpu_width(&op->desc.y), resize_grad_range, &(resize_ctx){&op->desc, a, op->impl});
    return KD_OK;
}

const kd_cpu_kind kd_cpu_resize_bilinear = {resize_create, resize_destroy, NULL, resize_forward, resize_backward};

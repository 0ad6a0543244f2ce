/* The weights gradient of depthwise convolutions. oneDNN has forward and data passes made for them, but computes this one for kernels above 3x3 as a grouped convolution in blocks of
 * 8 x 8 channels, of which it throws 7/8 away (12 times slower than the forward pass with AVX2).
 *
 * Each thread takes a range of output rows and adds to sums of its own, [k][k][C]: for a row, 8 channels and a row of the kernel at a time, sums over the columns stay in registers. The
 * threads' sums are added in a fixed order. */
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/simd.h"

enum { TAPS = 7 }; /* of a kernel row at once, so that all sums fit into registers */

typedef struct sizes {
    size_t h, w, ho, wo, channels, k, stride, pad;
} sizes;

/* Output columns. */
typedef struct span {
    size_t begin, end;
} span;

typedef struct depthwise {
    sizes s;
    const span *columns; /* [k]: those whose input column for tap kx exists */
    const void *x, *g;
    kd_dtype type;
    float *sums; /* [threads][k][k][C] */
    float *dw;   /* [C,1,k,k] */
    size_t slices;
} depthwise;

static sizes sizes_of(const kd_op_desc *d) {
    const int64_t *x = d->x[0].shape, *y = d->y.shape;
    return (sizes){(size_t)x[1], (size_t)x[2], (size_t)y[1], (size_t)y[2], (size_t)x[3], (size_t)d->kernel, (size_t)d->stride, (size_t)d->pad};
}

int kd_cpu_is_depthwise(const kd_op_desc *d) {
    return kd_op_groups(d) > 1 && d->groups == d->x[0].shape[3] && d->groups == d->y.shape[3];
}

static size_t sums_bytes(const kd_op_desc *d, int threads) {
    size_t bytes = 0;
    kd_cpu_region(&bytes, kd_op_param_numel(d, 0) * sizeof(float) * (size_t)threads);
    return bytes;
}

size_t kd_cpu_depthwise_bytes(const kd_op_desc *d, int threads) {
    return sums_bytes(d, threads) + (size_t)d->kernel * sizeof(span);
}

static span columns_of(const sizes *s, size_t kx) {
    size_t begin = kx < s->pad ? (s->pad - kx + s->stride - 1) / s->stride : 0;
    size_t end = s->w + s->pad > kx ? (s->w + s->pad - kx - 1) / s->stride + 1 : 0; /* input column ox * stride + kx - pad < w */
    if (end > s->wo)
        end = s->wo;
    return (span){begin < end ? begin : end, end};
}

/* Where a row of outputs meets a row of inputs, for the n channels from c on: element g0 + ox * channels of g and x0 + ox * step + t * channels of x belong to column ox and the t-th tap of a
 * block. x0 may lie before the row: unsigned arithmetic gets it right in the end. */
typedef struct row {
    size_t x0, step, g0, channels;
    int n;
    kd_dtype type;
} row;

KD_LANE kd_vf8 row_product(const depthwise *w, const row *r, kd_vf8 g, size_t ox, size_t t) {
    return g * kd_load8(w->x, r->type, r->x0 + ox * r->step + t * r->channels, r->n);
}

KD_LANE kd_vf8 row_gradient(const depthwise *w, const row *r, size_t ox) {
    return kd_load8(w->g, r->type, r->g0 + ox * r->channels, r->n);
}

KD_LANE void add_sum(const row *r, float *sums, size_t t, kd_vf8 sum) {
    kd_store8(sums + t * r->channels, kd_load8(sums, KD_F32, t * r->channels, r->n) + sum, r->n);
}

/* Columns that only tap t of its block has. */
KD_LANE void add_edge(const depthwise *w, const row *r, float *sums, size_t t, span at) {
    kd_vf8 sum = {0};
    if (at.begin >= at.end)
        return;
    for (size_t ox = at.begin; ox < at.end; ox++)
        sum += row_product(w, r, row_gradient(w, r, ox), ox, t);
    add_sum(r, sums, t, sum);
}

/* sums[tap][C] += g x over one row, for `taps` taps from kx on: first the columns that all of them have, their sums in registers (where their number is a constant, and if no loop with
 * a loop inside touches them). */
KD_LANE void add_taps(const depthwise *w, const row *r, float *sums, size_t kx, size_t taps) {
    kd_vf8 sum[TAPS] = {{0}};
    const span *columns = w->columns + kx;
    span all = {columns[0].begin, columns[taps - 1].end};
    if (all.begin > all.end) /* a window wider than the map */
        all.begin = all.end = columns[0].begin;
    for (size_t ox = all.begin; ox < all.end; ox++) {
        kd_vf8 g = row_gradient(w, r, ox);
        for (size_t t = 0; t < taps; t++)
            sum[t] += row_product(w, r, g, ox, t);
    }
    for (size_t t = 0; t < taps; t++)
        add_sum(r, sums, t, sum[t]);
    for (size_t t = 0; t < taps; t++) {
        span own = columns[t];
        add_edge(w, r, sums, t, (span){own.begin, all.begin < own.end ? all.begin : own.end});
        add_edge(w, r, sums, t, (span){all.end > own.begin ? all.end : own.begin, own.end});
    }
}

/* The number of taps as a constant. */
KD_LANE void add_block(const depthwise *w, const row *r, float *sums, size_t kx, size_t taps) {
    switch (taps) {
    case 7:
        add_taps(w, r, sums, kx, 7);
        break;
    case 5:
        add_taps(w, r, sums, kx, 5);
        break;
    case 3:
        add_taps(w, r, sums, kx, 3);
        break;
    default:
        add_taps(w, r, sums, kx, 1);
    }
}

static inline size_t taps_of(size_t left) {
    return left >= TAPS ? TAPS : left >= 5 ? 5 : left >= 3 ? 3 : 1;
}

KD_HOT static void rows_range(const void *ctx, int slice, size_t begin, size_t end) {
    const depthwise w = *(const depthwise *)ctx;
    const sizes s = w.s;
    float *own = w.sums + (size_t)slice * s.k * s.k * s.channels;
    for (size_t r = begin; r < end; r++)
        for (size_t c = 0; c < s.channels; c += KD_V8)
            for (size_t ky = 0; ky < s.k; ky++) {
                size_t iy = r % s.ho * s.stride + ky - s.pad; /* above the map: a huge number */
                if (iy >= s.h)
                    continue;
                row at = {.step = s.stride * s.channels, .g0 = r * s.wo * s.channels + c, .channels = s.channels, .n = kd_lanes8(s.channels - c), .type = w.type};
                for (size_t kx = 0, taps; kx < s.k; kx += taps) {
                    taps = taps_of(s.k - kx);
                    at.x0 = ((r / s.ho * s.h + iy) * s.w + kx - s.pad) * s.channels + c;
                    float *sums = own + (ky * s.k + kx) * s.channels + c;
                    if (at.n == KD_V8 && w.type == KD_F32) {
                        at.n = KD_V8, at.type = KD_F32; /* constants in what is inlined */
                        add_block(&w, &at, sums, kx, taps);
                    } else {
                        add_taps(&w, &at, sums, kx, taps);
                    }
                }
            }
}

/* dw += the sums of all slices; [k][k][C] becomes [C,1,k,k]. */
static void fold_range(const void *ctx, int slice, size_t begin, size_t end) {
    const depthwise *w = ctx;
    size_t kk = w->s.k * w->s.k, c_all = w->s.channels;
    (void)slice;
    for (size_t c = begin; c < end; c++)
        for (size_t tap = 0; tap < kk; tap++) {
            float sum = 0;
            for (size_t i = 0; i < w->slices; i++)
                sum += w->sums[(i * kk + tap) * c_all + c];
            w->dw[c * kk + tap] += sum;
        }
}

void kd_cpu_depthwise_dw(int threads, const kd_op_desc *d, float *dw, const void *x, const void *g, kd_dtype type, void *scratch) {
    span *columns = kd_cpu_at(scratch, sums_bytes(d, threads));
    depthwise w = {.s = sizes_of(d), .columns = columns, .x = x, .g = g, .type = type, .sums = scratch, .dw = dw, .slices = (size_t)threads};
    size_t kk = w.s.k * w.s.k;
    for (size_t kx = 0; kx < w.s.k; kx++)
        columns[kx] = columns_of(&w.s, kx);
    memset(w.sums, 0, sums_bytes(d, threads));
    kd_cpu_parallel(threads, (size_t)d->y.shape[0] * w.s.ho, w.s.wo * w.s.channels * kk, rows_range, &w);
    kd_cpu_parallel(threads, w.s.channels, kk * w.slices, fold_range, &w);
}

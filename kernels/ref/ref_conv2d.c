/* conv2d as a sum of small matrix products: one per (image, output row, ky, kx, group), over the output columns whose input column exists. */
#include <string.h>

#include "kernels/ref/ref_core.h"

typedef struct dims {
    int64_t n, h, w, in, ho, wo, out, k, stride, pad;
    int64_t groups, gin, gout; /* channels of one group: I/groups, O/groups */
} dims;

static dims dims_of(const kd_op_desc *d) {
    const int64_t *x = d->x[0].shape, *y = d->y.shape;
    int64_t groups = kd_op_groups(d);
    return (dims){x[0], x[1], x[2], x[3], y[1], y[2], y[3], d->kernel, d->stride, d->pad, groups, x[3] / groups, y[3] / groups};
}

/* The part of output row `oy` of image `n` that tap (ky, kx) reaches: `count` columns; offsets of the first one in y and of the input pixel it meets in x. */
typedef struct span {
    int64_t count, out_offset, in_offset;
} span;

static span span_of(const dims *s, int64_t n, int64_t oy, int64_t ky, int64_t kx) {
    int64_t iy = oy * s->stride + ky - s->pad;
    if (iy < 0 || iy >= s->h)
        return (span){0, 0, 0};
    int64_t first = 0, end = s->wo;
    while (first < end && first * s->stride + kx - s->pad < 0)
        first++;
    while (end > first && (end - 1) * s->stride + kx - s->pad >= s->w)
        end--;
    int64_t ix = first * s->stride + kx - s->pad;
    return (span){end - first, ((n * s->ho + oy) * s->wo + first) * s->out, ((n * s->h + iy) * s->w + ix) * s->in};
}

static size_t weights_of(const dims *s) {
    return (size_t)(s->out * s->gin * s->k * s->k);
}

/* Work: the weight re-ordered by tap, and (backward) the gradient before the activation, exact and as operands. */
static size_t work(const kd_op_desc *d) {
    dims s = dims_of(d);
    return weights_of(&s) + 2 * kd_tdesc_numel(&d->y);
}

/* Offset of weight (o, i, tap) in [O,I/groups,k,k], the shape of the parameter. */
static int64_t weight_at(const dims *s, int64_t o, int64_t i, int64_t tap) {
    return (o * s->gin + i) * s->k * s->k + tap;
}

/* Where the matrix of one group and tap begins in weights that are ordered by tap. */
static int64_t matrix_at(const dims *s, int64_t tap, int64_t group) {
    return (tap * s->groups + group) * s->gin * s->gout;
}

/* [O,I/groups,k,k] -> [k*k][groups] matrices [I/groups,O/groups] (forward) or [O/groups,I/groups] (backward), as operands. */
static void order_by_tap(const kd_op_desc *d, double *out, const double *w, int in_first) {
    dims s = dims_of(d);
    for (int64_t tap = 0; tap < s.k * s.k; tap++)
        for (int64_t o = 0; o < s.out; o++)
            for (int64_t i = 0; i < s.gin; i++) {
                int64_t row = o % s.gout, to = in_first ? i * s.gout + row : row * s.gin + i;
                out[matrix_at(&s, tap, o / s.gout) + to] = kd_ref_operand(d, w[weight_at(&s, o, i, tap)]);
            }
}

typedef void (*span_fn)(const dims *s, span at, int64_t tap, void *ctx);

static void for_each_span(const dims *s, span_fn fn, void *ctx) {
    for (int64_t n = 0; n < s->n; n++)
        for (int64_t oy = 0; oy < s->ho; oy++)
            for (int64_t tap = 0; tap < s->k * s->k; tap++) {
                span at = span_of(s, n, oy, tap / s->k, tap % s->k);
                if (at.count > 0)
                    fn(s, at, tap, ctx);
            }
}

/* Operands of the three products; w is by tap. */
typedef struct product {
    const double *x, *g, *w;
    double *y, *dx, *dw;
} product;

static void add_output(const dims *s, span at, int64_t tap, void *ctx) {
    product *p = ctx;
    for (int64_t group = 0; group < s->groups; group++) {
        kd_ref_mat x = {p->x + at.in_offset + group * s->gin, s->stride * s->in, 1};
        kd_ref_matmul_add(p->y + at.out_offset + group * s->gout, s->out, x, p->w + matrix_at(s, tap, group), s->gout, at.count, s->gin, s->gout);
    }
}

static void add_input_gradient(const dims *s, span at, int64_t tap, void *ctx) {
    product *p = ctx;
    for (int64_t group = 0; group < s->groups; group++) {
        kd_ref_mat g = {p->g + at.out_offset + group * s->gout, s->out, 1};
        kd_ref_matmul_add(p->dx + at.in_offset + group * s->gin, s->stride * s->in, g, p->w + matrix_at(s, tap, group), s->gin, at.count, s->gout, s->gin);
    }
}

static void add_weight_gradient(const dims *s, span at, int64_t tap, void *ctx) {
    product *p = ctx;
    for (int64_t group = 0; group < s->groups; group++) {
        kd_ref_mat g = {p->g + at.out_offset + group * s->gout, 1, s->out}; /* transposed: [O/groups, columns] */
        kd_ref_matmul_add(p->dw + matrix_at(s, tap, group), s->gin, g, p->x + at.in_offset + group * s->gin, s->stride * s->in, s->gout, at.count, s->gin);
    }
}

static void pre_activation(const kd_op_desc *d, const kd_ref_vals *v, double *pre, double *by_tap) {
    dims s = dims_of(d);
    order_by_tap(d, by_tap, v->param[0], 1);
    for (size_t i = 0; i < kd_tdesc_numel(&d->y); i++)
        pre[i] = d->bias ? v->param[1][i % (size_t)s.out] : 0;
    for_each_span(&s, add_output, &(product){.x = v->x[0], .w = by_tap, .y = pre});
}

static void forward(const kd_op_desc *d, const kd_ref_vals *v) {
    pre_activation(d, v, v->y, v->work);
    for (size_t i = 0; i < kd_tdesc_numel(&d->y); i++)
        v->y[i] = kd_ref_act(d->act, v->y[i]);
}

static void backward(const kd_op_desc *d, const kd_ref_vals *v) {
    dims s = dims_of(d);
    size_t weights = weights_of(&s), outputs = kd_tdesc_numel(&d->y);
    double *w = v->work, *g = w + weights, *exact = g + outputs;

    if (d->act != KD_ACT_NONE)
        pre_activation(d, v, exact, w);
    for (size_t i = 0; i < outputs; i++) {
        exact[i] = v->dy[i] * (d->act != KD_ACT_NONE ? kd_ref_dact(d->act, exact[i]) : 1);
        g[i] = kd_ref_operand(d, exact[i]);
    }
    if (v->dx[0]) {
        order_by_tap(d, w, v->param[0], 0);
        memset(v->dx[0], 0, kd_tdesc_numel(&d->x[0]) * sizeof(double));
        for_each_span(&s, add_input_gradient, &(product){.g = g, .w = w, .dx = v->dx[0]});
    }
    if (v->dparam[0]) {
        memset(w, 0, weights * sizeof *w);
        for_each_span(&s, add_weight_gradient, &(product){.x = v->x[0], .g = g, .dw = w});
        for (int64_t tap = 0; tap < s.k * s.k; tap++)
            for (int64_t o = 0; o < s.out; o++)
                for (int64_t i = 0; i < s.gin; i++)
                    v->dparam[0][weight_at(&s, o, i, tap)] = w[matrix_at(&s, tap, o / s.gout) + o % s.gout * s.gin + i];
    }
    if (v->dparam[1]) {
        memset(v->dparam[1], 0, (size_t)s.out * sizeof(double));
        for (size_t i = 0; i < outputs; i++)
            v->dparam[1][i % (size_t)s.out] += exact[i];
    }
}

const kd_ref_core kd_ref_conv2d = {forward, backward, work};

/* attention: softmax(q k^T / sqrt(Dh)) v, head by head. */
#include <math.h>
#include <string.h>

#include "kernels/ref/ref_core.h"

typedef struct dims {
    int64_t n, t, width, heads, head;
    double scale;
} dims;

static dims dims_of(const kd_op_desc *d) {
    const int64_t *y = d->y.shape;
    int64_t head = y[2] / d->heads;
    return (dims){y[0], y[1], y[2], d->heads, head, 1 / sqrt((double)head)};
}

/* One head, gathered into contiguous pieces: q, k, v, o and their gradients [T,Dh], transposes [Dh,T]; p and dp [rows,T] for some queries at a time. */
typedef struct head_vals {
    double *q, *k, *v, *kt, *vt, *o, *dout, *dq, *dk, *dv, *p, *p_operand, *dp;
} head_vals;

enum { THIN = 10, WIDE = 3, QUERIES = 64 };

static int64_t rows_at(const dims *s, int64_t first) {
    return s->t - first < QUERIES ? s->t - first : QUERIES;
}

static size_t work(const kd_op_desc *d) {
    dims s = dims_of(d);
    return (size_t)(THIN * s.t * s.head + WIDE * rows_at(&s, 0) * s.t);
}

static head_vals carve(const dims *s, double *w) {
    double *thin[THIN], *wide[WIDE];
    for (int i = 0; i < THIN; i++, w += s->t * s->head)
        thin[i] = w;
    for (int i = 0; i < WIDE; i++, w += rows_at(s, 0) * s->t)
        wide[i] = w;
    return (head_vals){.q = thin[0], .k = thin[1], .v = thin[2], .kt = thin[3], .vt = thin[4], .o = thin[5], .dout = thin[6], .dq = thin[7], .dk = thin[8], .dv = thin[9],
                       .p = wide[0], .p_operand = wide[1], .dp = wide[2]};
}

/* Rows of one head: `to` [T,Dh] from (or back into) a matrix with rows of `width` elements. */
static void gather(const dims *s, double *to, const double *from, int64_t width) {
    for (int64_t t = 0; t < s->t; t++)
        memcpy(to + t * s->head, from + t * width, (size_t)s->head * sizeof *to);
}

static void scatter(const dims *s, double *to, int64_t width, const double *from) {
    for (int64_t t = 0; t < s->t; t++)
        memcpy(to + t * width, from + t * s->head, (size_t)s->head * sizeof *to);
}

static void softmax_rows(double *p, int64_t rows, int64_t n) {
    for (int64_t r = 0; r < rows; r++, p += n) {
        double top = p[0], sum = 0;
        for (int64_t i = 1; i < n; i++)
            if (p[i] > top)
                top = p[i];
        for (int64_t i = 0; i < n; i++)
            sum += p[i] = exp(p[i] - top);
        for (int64_t i = 0; i < n; i++)
            p[i] /= sum;
    }
}

/* Fills q, k, v and kt from one head's slice of x. */
static void gather_head(const dims *s, head_vals *h, const double *x) {
    gather(s, h->q, x, 3 * s->width);
    gather(s, h->k, x + s->width, 3 * s->width);
    gather(s, h->v, x + 2 * s->width, 3 * s->width);
    kd_ref_transpose(h->kt, h->k, s->t, s->head);
}

/* Fills p and p_operand for the queries first .. first + rows - 1. */
static void probabilities(const kd_op_desc *d, const dims *s, head_vals *h, int64_t first, int64_t rows) {
    size_t n = (size_t)(rows * s->t);
    memset(h->p, 0, n * sizeof *h->p);
    kd_ref_matmul_add(h->p, s->t, (kd_ref_mat){h->q + first * s->head, s->head, 1}, h->kt, s->t, rows, s->head, s->t);
    for (size_t i = 0; i < n; i++)
        h->p[i] *= s->scale;
    softmax_rows(h->p, rows, s->t);
    memcpy(h->p_operand, h->p, n * sizeof *h->p);
    kd_ref_operands(d, h->p_operand, n);
}

static void forward(const kd_op_desc *d, const kd_ref_vals *v) {
    dims s = dims_of(d);
    head_vals h = carve(&s, v->work);
    for (int64_t i = 0; i < s.n * s.heads; i++) {
        int64_t image = i / s.heads, column = i % s.heads * s.head;
        gather_head(&s, &h, v->x[0] + image * s.t * 3 * s.width + column);
        memset(h.o, 0, (size_t)(s.t * s.head) * sizeof *h.o);
        for (int64_t first = 0; first < s.t; first += QUERIES) {
            int64_t rows = rows_at(&s, first);
            probabilities(d, &s, &h, first, rows);
            kd_ref_matmul_add(h.o + first * s.head, s.head, (kd_ref_mat){h.p_operand, s.t, 1}, h.v, s.head, rows, s.t, s.head);
        }
        scatter(&s, v->y + image * s.t * s.width + column, s.width, h.o);
    }
}

/* dp -> gradient of the scores, in place: ds = p (dp - sum(p dp)), times the scale, as operands. */
static void softmax_backward(const kd_op_desc *d, const dims *s, head_vals *h, int64_t rows) {
    for (int64_t r = 0; r < rows; r++) {
        double *dp = h->dp + r * s->t, dot = 0;
        const double *p = h->p + r * s->t;
        for (int64_t i = 0; i < s->t; i++)
            dot += p[i] * dp[i];
        for (int64_t i = 0; i < s->t; i++)
            dp[i] = kd_ref_operand(d, p[i] * (dp[i] - dot) * s->scale);
    }
}

static void head_backward(const kd_op_desc *d, const dims *s, head_vals *h) {
    size_t thin = (size_t)(s->t * s->head) * sizeof(double);
    memset(h->dq, 0, thin);
    memset(h->dk, 0, thin);
    memset(h->dv, 0, thin);
    kd_ref_operands(d, h->dout, (size_t)(s->t * s->head));
    kd_ref_transpose(h->vt, h->v, s->t, s->head);
    for (int64_t first = 0; first < s->t; first += QUERIES) {
        int64_t rows = rows_at(s, first), at = first * s->head;
        probabilities(d, s, h, first, rows);
        kd_ref_matmul_add(h->dv, s->head, (kd_ref_mat){h->p_operand, 1, s->t}, h->dout + at, s->head, s->t, rows, s->head);
        memset(h->dp, 0, (size_t)(rows * s->t) * sizeof(double));
        kd_ref_matmul_add(h->dp, s->t, (kd_ref_mat){h->dout + at, s->head, 1}, h->vt, s->t, rows, s->head, s->t);
        softmax_backward(d, s, h, rows);
        kd_ref_matmul_add(h->dq + at, s->head, (kd_ref_mat){h->dp, s->t, 1}, h->k, s->head, rows, s->t, s->head);
        kd_ref_matmul_add(h->dk, s->head, (kd_ref_mat){h->dp, 1, s->t}, h->q + at, s->head, s->t, rows, s->head);
    }
}

static void backward(const kd_op_desc *d, const kd_ref_vals *v) {
    if (!v->dx[0])
        return;
    dims s = dims_of(d);
    head_vals h = carve(&s, v->work);
    for (int64_t i = 0; i < s.n * s.heads; i++) {
        int64_t image = i / s.heads, column = i % s.heads * s.head, at = image * s.t * 3 * s.width + column;
        gather_head(&s, &h, v->x[0] + at);
        gather(&s, h.dout, v->dy + image * s.t * s.width + column, s.width);
        head_backward(d, &s, &h);
        scatter(&s, v->dx[0] + at, 3 * s.width, h.dq);
        scatter(&s, v->dx[0] + at + s.width, 3 * s.width, h.dk);
        scatter(&s, v->dx[0] + at + 2 * s.width, 3 * s.width, h.dv);
    }
}

const kd_ref_core kd_ref_attention = {forward, backward, work};

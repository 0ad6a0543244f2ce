/* linear: y = act(x W^T + b), or the residual join y = x1 + gamma (x W^T + b). */
#include <string.h>

#include "kernels/ref/ref_core.h"

typedef struct dims {
    int64_t rows, in, out;
} dims;

static dims dims_of(const kd_op_desc *d) {
    return (dims){kd_ref_rows(&d->y), kd_ref_width(&d->x[0]), kd_ref_width(&d->y)};
}

/* Work: the weight as operands [O,I] or [I,O], and (backward) the gradient before the activation, once exact and once as operands. */
static size_t work(const kd_op_desc *d) {
    dims s = dims_of(d);
    return (size_t)(s.in * s.out + 2 * s.rows * s.out);
}

/* pre = x W^T + b */
static void product(const kd_op_desc *d, const kd_ref_vals *v, double *pre, double *wt) {
    dims s = dims_of(d);
    kd_ref_transpose(wt, v->param[0], s.out, s.in);
    kd_ref_operands(d, wt, (size_t)(s.in * s.out));
    for (int64_t r = 0; r < s.rows; r++)
        for (int64_t o = 0; o < s.out; o++)
            pre[r * s.out + o] = d->bias ? v->param[1][o] : 0;
    kd_ref_matmul_add(pre, s.out, (kd_ref_mat){v->x[0], s.in, 1}, wt, s.out, s.rows, s.in, s.out);
}

static void forward(const kd_op_desc *d, const kd_ref_vals *v) {
    dims s = dims_of(d);
    const double *gamma = v->param[2];
    product(d, v, v->y, v->work);
    for (int64_t r = 0; r < s.rows; r++)
        for (int64_t o = 0; o < s.out; o++) {
            double *y = &v->y[r * s.out + o];
            if (d->residual)
                *y = v->x[1][r * s.out + o] + (gamma ? gamma[o] : 1) * *y;
            else
                *y = kd_ref_act(d->act, *y);
        }
}

static void backward(const kd_op_desc *d, const kd_ref_vals *v) {
    dims s = dims_of(d);
    size_t weights = (size_t)(s.in * s.out), outputs = (size_t)(s.rows * s.out);
    double *w = v->work, *g = w + weights, *exact = g + outputs;

    if (d->act != KD_ACT_NONE)
        product(d, v, exact, w);
    for (size_t i = 0; i < outputs; i++) {
        exact[i] = v->dy[i] * (d->act != KD_ACT_NONE ? kd_ref_dact(d->act, exact[i]) : 1);
        g[i] = kd_ref_operand(d, exact[i]);
    }
    if (v->dx[0]) {
        memcpy(w, v->param[0], weights * sizeof *w);
        kd_ref_operands(d, w, weights);
        memset(v->dx[0], 0, (size_t)(s.rows * s.in) * sizeof(double));
        kd_ref_matmul_add(v->dx[0], s.in, (kd_ref_mat){g, s.out, 1}, w, s.in, s.rows, s.out, s.in);
    }
    if (v->dparam[0]) { /* dW[O,I] = g^T x */
        memset(v->dparam[0], 0, weights * sizeof(double));
        kd_ref_matmul_add(v->dparam[0], s.in, (kd_ref_mat){g, 1, s.out}, v->x[0], s.in, s.out, s.rows, s.in);
    }
    if (v->dparam[1]) {
        memset(v->dparam[1], 0, (size_t)s.out * sizeof(double));
        for (size_t i = 0; i < outputs; i++)
            v->dparam[1][i % (size_t)s.out] += exact[i];
    }
}

const kd_ref_core kd_ref_linear = {forward, backward, work};

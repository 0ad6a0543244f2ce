/* l2_normalize, and the losses that take each row or element by itself: cosine, smooth_l1, kl_logits. One pass over memory each. */
#include "kernels/cpu/cpu_loss.h"

typedef struct rows_ctx {
    const kd_op_desc *d;
    const kd_op_args *a;
    double *part;  /* [rows]: each row's loss */
    double factor; /* of gradients */
} rows_ctx;

/* One f64 per row. */
static kd_status row_loss_create(kd_cpu *b, kd_op *op, kd_op_needs *needs, kd_err *err) {
    (void)b, (void)err;
    needs->scratch = kd_cpu_rows(&op->desc.x[0]) * sizeof(double);
    return KD_OK;
}

/* y = scale times the sum over rows of what `value` leaves in part. */
static void row_loss_value(kd_cpu *b, const kd_op *op, const kd_op_args *a, kd_cpu_range value, double scale) {
    rows_ctx c = {.d = &op->desc, .a = a, .part = a->scratch};
    size_t rows = kd_cpu_rows(&op->desc.x[0]);
    kd_cpu_parallel(b->base.threads, rows, kd_cpu_width(&op->desc.x[0]) + 1, value, &c);
    *(float *)a->y = (float)(scale * kd_cpu_total(c.part, rows));
}

static void row_loss_grad(kd_cpu *b, const kd_op *op, const kd_op_args *a, kd_cpu_range grad, double scale) {
    rows_ctx c = {.d = &op->desc, .a = a, .factor = scale * (double)*(const float *)a->dy};
    if (op->desc.need_dx & 1)
        kd_cpu_parallel(b->base.threads, kd_cpu_rows(&op->desc.x[0]), kd_cpu_width(&op->desc.x[0]) + 1, grad, &c);
}

static double per_row(const kd_op *op) {
    return 1 / (double)kd_cpu_rows(&op->desc.x[0]);
}

/* ---- l2_normalize ---- */

/* <a, b> of two rows that begin at element `at`. */
KD_LANE double row_dot(const void *a, kd_dtype a_type, const void *b, kd_dtype b_type, size_t at, size_t n) {
    if (a_type == KD_F32 && b_type == KD_F32)
        return kd_dot_double((const float *)a + at, (const float *)b + at, n);
    kd_vf sum = {0};
    for (size_t i = 0; i < n; i += KD_VF) {
        int lanes = kd_lanes(n - i);
        sum += kd_load(a, a_type, at + i, lanes) * kd_load(b, b_type, at + i, lanes);
    }
    return (double)kd_sum(sum);
}

KD_HOT static void normalize_range(const void *ctx, int slice, size_t begin, size_t end) {
    const kd_op_desc d = *((const rows_ctx *)ctx)->d;
    const kd_op_args p = *((const rows_ctx *)ctx)->a;
    size_t width = kd_cpu_width(&d.y);
    kd_dtype type = d.x[0].dtype;
    (void)slice;
    for (size_t at = begin * width; at < end * width; at += width) {
        float inverse = (float)kd_inverse_norm(sqrt(row_dot(p.x[0], type, p.x[0], type, at, width)), KD_OP_L2_EPS);
        for (size_t i = 0; i < width; i += KD_VF) {
            int n = kd_lanes(width - i);
            kd_store(p.y, d.y.dtype, at + i, kd_load(p.x[0], type, at + i, n) * inverse, n);
        }
    }
}

/* dx = (dy - x <x, dy> / |x|^2) / |x| */
KD_HOT static void normalize_grad_range(const void *ctx, int slice, size_t begin, size_t end) {
    const kd_op_desc d = *((const rows_ctx *)ctx)->d;
    const kd_op_args p = *((const rows_ctx *)ctx)->a;
    size_t width = kd_cpu_width(&d.y);
    kd_dtype type = d.x[0].dtype;
    (void)slice;
    for (size_t at = begin * width; at < end * width; at += width) {
        double norm = sqrt(row_dot(p.x[0], type, p.x[0], type, at, width)), inverse = kd_inverse_norm(norm, KD_OP_L2_EPS);
        float along = norm < KD_OP_L2_EPS ? 0 : (float)(row_dot(p.x[0], type, p.dy, d.y.dtype, at, width) * inverse * inverse), scale = (float)inverse;
        for (size_t i = 0; i < width; i += KD_VF) {
            int n = kd_lanes(width - i);
            kd_vf g = (kd_load(p.dy, d.y.dtype, at + i, n) - kd_load(p.x[0], type, at + i, n) * along) * scale;
            kd_store_grad(p.dx[0], type, at + i, g, n, (d.add_dx & 1) != 0);
        }
    }
}

static kd_status normalize_forward(kd_cpu *b, kd_op *op, const kd_op_args *a, kd_err *err) {
    (void)err;
    kd_cpu_parallel(b->base.threads, kd_cpu_rows(&op->desc.y), kd_cpu_width(&op->desc.y) + 1, normalize_range, &(rows_ctx){.d = &op->desc, .a = a});
    return KD_OK;
}

static kd_status normalize_backward(kd_cpu *b, kd_op *op, const kd_op_args *a, kd_err *err) {
    (void)err;
    if (op->desc.need_dx & 1)
        kd_cpu_parallel(b->base.threads, kd_cpu_rows(&op->desc.y), kd_cpu_width(&op->desc.y) + 1, normalize_grad_range, &(rows_ctx){.d = &op->desc, .a = a});
    return KD_OK;
}

const kd_cpu_kind kd_cpu_l2_normalize = {NULL, NULL, NULL, normalize_forward, normalize_backward};

/* ---- cosine ---- */

KD_HOT static void cosine_range(const void *ctx, int slice, size_t begin, size_t end) {
    const rows_ctx c = *(const rows_ctx *)ctx;
    size_t width = kd_cpu_width(&c.d->x[0]);
    (void)slice;
    for (size_t r = begin; r < end; r++) {
        const float *s = (const float *)c.a->x[0] + r * width, *t = (const float *)c.a->x[1] + r * width;
        double by_s = kd_inverse_norm(sqrt(kd_sum_of_squares(s, width)), KD_OP_COSINE_EPS), by_t = kd_inverse_norm(sqrt(kd_sum_of_squares(t, width)), KD_OP_COSINE_EPS);
        c.part[r] = 1 - kd_dot_double(s, t, width) * by_s * by_t;
    }
}

/* ds = - factor / |s| (t / |t| - s / |s| cos) */
KD_HOT static void cosine_grad_range(const void *ctx, int slice, size_t begin, size_t end) {
    const rows_ctx c = *(const rows_ctx *)ctx;
    size_t width = kd_cpu_width(&c.d->x[0]);
    int add = (c.d->add_dx & 1) != 0;
    (void)slice;
    for (size_t r = begin; r < end; r++) {
        const float *s = (const float *)c.a->x[0] + r * width, *t = (const float *)c.a->x[1] + r * width;
        double norm = sqrt(kd_sum_of_squares(s, width)), by_s = kd_inverse_norm(norm, KD_OP_COSINE_EPS);
        double by_t = kd_inverse_norm(sqrt(kd_sum_of_squares(t, width)), KD_OP_COSINE_EPS), g = -c.factor * by_s;
        float of_t = (float)(g * by_t), of_s = norm < KD_OP_COSINE_EPS ? 0 : (float)(g * by_t * by_s * by_s * kd_dot_double(s, t, width));
        for (size_t i = 0; i < width; i += KD_VF) {
            int n = kd_lanes(width - i);
            kd_store_grad(c.a->dx[0], KD_F32, r * width + i, kd_load_f32(t + i, n) * of_t - kd_load_f32(s + i, n) * of_s, n, add);
        }
    }
}

static kd_status cosine_forward(kd_cpu *b, kd_op *op, const kd_op_args *a, kd_err *err) {
    (void)err;
    row_loss_value(b, op, a, cosine_range, per_row(op));
    return KD_OK;
}

static kd_status cosine_backward(kd_cpu *b, kd_op *op, const kd_op_args *a, kd_err *err) {
    (void)err;
    row_loss_grad(b, op, a, cosine_grad_range, per_row(op));
    return KD_OK;
}

const kd_cpu_kind kd_cpu_cosine = {row_loss_create, NULL, NULL, cosine_forward, cosine_backward};

/* ---- smooth_l1 ---- */

/* Per row, in f32 lanes folded into f64 every FOLD elements. */
KD_HOT static void smooth_range(const void *ctx, int slice, size_t begin, size_t end) {
    enum { FOLD = 1024 };
    const rows_ctx c = *(const rows_ctx *)ctx;
    size_t width = kd_cpu_width(&c.d->x[0]);
    float beta = c.d->beta, half = beta * 0.5f, curve = 0.5f / beta;
    (void)slice;
    for (size_t r = begin; r < end; r++) {
        const float *s = (const float *)c.a->x[0] + r * width, *t = (const float *)c.a->x[1] + r * width;
        double total = 0;
        for (size_t at = 0; at < width; at += FOLD) {
            size_t stop = width - at < FOLD ? width : at + FOLD;
            kd_vf sum = {0};
            for (size_t i = at; i < stop; i += KD_VF) {
                int n = kd_lanes(stop - i);
                kd_vf e = kd_abs(kd_load_f32(s + i, n) - kd_load_f32(t + i, n)), value = kd_select(kd_negative(e - beta), e * e * curve, e - half);
                sum += (kd_vf)((kd_vi)value & kd_first(n));
            }
            total += (double)kd_sum(sum);
        }
        c.part[r] = total;
    }
}

KD_HOT static void smooth_grad_range(const void *ctx, int slice, size_t begin, size_t end) {
    const rows_ctx c = *(const rows_ctx *)ctx;
    const float *s = c.a->x[0], *t = c.a->x[1];
    size_t width = kd_cpu_width(&c.d->x[0]);
    float beta = c.d->beta, inverse = 1 / beta, factor = (float)c.factor;
    int add = (c.d->add_dx & 1) != 0;
    (void)slice;
    for (size_t i = begin * width; i < end * width; i += KD_VF) {
        int n = kd_lanes(end * width - i);
        kd_vf e = kd_load_f32(s + i, n) - kd_load_f32(t + i, n), one = (kd_vf)(((kd_vi)e & INT32_MIN) | (kd_vi)kd_splat(1)); /* the sign of e */
        kd_vi inside = kd_negative(kd_abs(e) - beta);
        kd_store_grad(c.a->dx[0], KD_F32, i, kd_select(inside, e * inverse, one + (e - e)) * factor, n, add); /* e - e: NaN stays */
    }
}

static double per_element(const kd_op *op) {
    return 1 / (double)kd_tdesc_numel(&op->desc.x[0]);
}

static kd_status smooth_forward(kd_cpu *b, kd_op *op, const kd_op_args *a, kd_err *err) {
    (void)err;
    row_loss_value(b, op, a, smooth_range, per_element(op));
    return KD_OK;
}

static kd_status smooth_backward(kd_cpu *b, kd_op *op, const kd_op_args *a, kd_err *err) {
    (void)err;
    row_loss_grad(b, op, a, smooth_grad_range, per_element(op));
    return KD_OK;
}

const kd_cpu_kind kd_cpu_smooth_l1 = {row_loss_create, NULL, NULL, smooth_forward, smooth_backward};

/* ---- kl_logits ---- */

KD_HOT static void logits_range(const void *ctx, int slice, size_t begin, size_t end) {
    const rows_ctx c = *(const rows_ctx *)ctx;
    size_t width = kd_cpu_width(&c.d->x[0]);
    (void)slice;
    for (size_t r = begin; r < end; r++) {
        kd_softmax_row of_s, of_t;
        c.part[r] = kd_kl_row(&of_s, &of_t, (const float *)c.a->x[0] + r * width, (const float *)c.a->x[1] + r * width, width, 1 / c.d->temperature);
    }
}

KD_HOT static void logits_grad_range(const void *ctx, int slice, size_t begin, size_t end) {
    const rows_ctx c = *(const rows_ctx *)ctx;
    size_t width = kd_cpu_width(&c.d->x[0]);
    float scale = 1 / c.d->temperature;
    int add = (c.d->add_dx & 1) != 0;
    (void)slice;
    for (size_t r = begin; r < end; r++) {
        const float *s = (const float *)c.a->x[0] + r * width, *t = (const float *)c.a->x[1] + r * width;
        kd_softmax_row of_s, of_t;
        kd_kl_row(&of_s, &of_t, s, t, width, scale);
        kd_kl_row_grad((float *)c.a->dx[0] + r * width, &of_s, &of_t, s, t, width, scale, c.factor, add);
    }
}

static kd_status logits_forward(kd_cpu *b, kd_op *op, const kd_op_args *a, kd_err *err) {
    double temperature = (double)op->desc.temperature;
    (void)err;
    row_loss_value(b, op, a, logits_range, temperature * temperature * per_row(op));
    return KD_OK;
}

static kd_status logits_backward(kd_cpu *b, kd_op *op, const kd_op_args *a, kd_err *err) {
    (void)err;
    row_loss_grad(b, op, a, logits_grad_range, (double)op->desc.temperature * per_row(op));
    return KD_OK;
}

const kd_cpu_kind kd_cpu_kl_logits = {row_loss_create, NULL, NULL, logits_forward, logits_backward};

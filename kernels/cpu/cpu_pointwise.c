/* Elementwise ops and the mean squared error. */
#include "common/base/mem.h"
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/simd.h"

typedef struct op_ctx {
    const kd_op_desc *d;
    const kd_op_args *p;
} op_ctx;

/* ---- normalize: 256 values per channel, so a table gives true divisions for free ---- */

typedef struct normalize {
    float f32[256][3];
    uint16_t bf16[256][3];
} normalize;

static kd_status normalize_create(kd_cpu *b, kd_op *op, kd_op_needs *needs, kd_err *err) {
    normalize *t = NULL;
    (void)b, (void)needs;
    KD_TRY(kd_alloc_array(&t, 1, sizeof *t, err));
    op->impl = t;
    for (int v = 0; v < 256; v++)
        for (int c = 0; c < 3; c++) {
            t->f32[v][c] = ((float)v / 255.0f - op->desc.mean[c]) / op->desc.std[c];
            t->bf16[v][c] = kd_f32_to_bf16(t->f32[v][c]);
        }
    return KD_OK;
}

static void normalize_destroy(void *impl) {
    kd_free(impl);
}

typedef struct normalize_ctx {
    const normalize *t;
    const uint8_t *x;
    void *y;
    kd_dtype type;
} normalize_ctx;

static void normalize_range(const void *ctx, int slice, size_t begin, size_t end) {
    const normalize_ctx *c = ctx;
    const uint8_t *x = c->x;
    float *f = c->y;
    uint16_t *h = c->y;
    (void)slice;
    for (size_t i = 3 * begin; i < 3 * end; i += 3)
        for (size_t k = 0; k < 3; k++)
            if (c->type == KD_F32)
                f[i + k] = c->t->f32[x[i + k]][k];
            else
                h[i + k] = c->t->bf16[x[i + k]][k];
}

static kd_status normalize_forward(kd_cpu *b, kd_op *op, const kd_op_args *a, kd_err *err) {
    (void)err;
    normalize_ctx c = {op->impl, a->x[0], a->y, op->desc.y.dtype};
    kd_cpu_parallel(b->base.threads, kd_tdesc_numel(&op->desc.y) / 3, 3, normalize_range, &c);
    return KD_OK;
}

const kd_cpu_kind kd_cpu_normalize = {normalize_create, normalize_destroy, NULL, normalize_forward, NULL};

/* ---- activations ---- */

static kd_act act_of(const kd_op_desc *d) {
    switch (d->kind) {
    case KD_OP_RELU:
        return KD_ACT_RELU;
    case KD_OP_GELU:
        return KD_ACT_GELU;
    case KD_OP_SILU:
        return KD_ACT_SILU;
    case KD_OP_HARDSWISH:
        return KD_ACT_HARDSWISH;
    default:
        return KD_ACT_HARDSIGMOID;
    }
}

static kd_status act_forward(kd_cpu *b, kd_op *op, const kd_op_args *a, kd_err *err) {
    const kd_op_desc *d = &op->desc;
    (void)err;
    kd_cpu_act_forward(b->base.threads, a->y, d->y.dtype, a->x[0], d->x[0].dtype, act_of(d), kd_tdesc_numel(&d->y));
    return KD_OK;
}

static kd_status act_backward(kd_cpu *b, kd_op *op, const kd_op_args *a, kd_err *err) {
    const kd_op_desc *d = &op->desc;
    (void)err;
    if (!(d->need_dx & 1))
        return KD_OK;
    kd_cpu_act_grad c = {.g = a->dx[0], .dy = a->dy, .at = a->x[0], .g_type = d->x[0].dtype, .dy_type = d->y.dtype, .at_type = d->x[0].dtype, .act = act_of(d),
                         .add = (d->add_dx & 1) != 0};
    kd_cpu_act_backward(b->base.threads, &c, kd_tdesc_numel(&d->y));
    return KD_OK;
}

const kd_cpu_kind kd_cpu_act = {NULL, NULL, NULL, act_forward, act_backward};

/* ---- silu_gate: rows [gate | value] ---- */

KD_HOT static void silu_range(const void *ctx, int slice, size_t begin, size_t end) {
    const kd_op_desc d = *((const op_ctx *)ctx)->d;
    const kd_op_args p = *((const op_ctx *)ctx)->p;
    size_t f = kd_cpu_width(&d.y);
    (void)slice;
    for (size_t r = begin; r < end; r++)
        for (size_t i = 0; i < f; i += KD_VF) {
            int n = kd_lanes(f - i);
            kd_vf gate = kd_load(p.x[0], d.x[0].dtype, 2 * r * f + i, n), value = kd_load(p.x[0], d.x[0].dtype, (2 * r + 1) * f + i, n);
            kd_store(p.y, d.y.dtype, r * f + i, gate * kd_sigmoid(gate) * value, n);
        }
}

KD_HOT static void silu_grad_range(const void *ctx, int slice, size_t begin, size_t end) {
    const kd_op_desc d = *((const op_ctx *)ctx)->d;
    const kd_op_args p = *((const op_ctx *)ctx)->p;
    size_t f = kd_cpu_width(&d.y);
    int add = (d.add_dx & 1) != 0;
    kd_dtype type = d.x[0].dtype;
    (void)slice;
    for (size_t r = begin; r < end; r++)
        for (size_t i = 0; i < f; i += KD_VF) {
            int n = kd_lanes(f - i);
            size_t g = 2 * r * f + i, v = g + f;
            kd_vf gate = kd_load(p.x[0], type, g, n), value = kd_load(p.x[0], type, v, n), dy = kd_load(p.dy, d.y.dtype, r * f + i, n);
            kd_vf s = kd_sigmoid(gate), silu = gate * s;
            kd_store_grad(p.dx[0], type, g, dy * value * (s + silu * (1 - s)), n, add);
            kd_store_grad(p.dx[0], type, v, dy * silu, n, add);
        }
}

static kd_status silu_forward(kd_cpu *b, kd_op *op, const kd_op_args *a, kd_err *err) {
    (void)err;
    kd_cpu_parallel(b->base.threads, kd_cpu_rows(&op->desc.y), 2 * kd_cpu_width(&op->desc.y), silu_range, &(op_ctx){&op->desc, a});
    return KD_OK;
}

static kd_status silu_backward(kd_cpu *b, kd_op *op, const kd_op_args *a, kd_err *err) {
    (void)err;
    if (op->desc.need_dx & 1)
        kd_cpu_parallel(b->base.threads, kd_cpu_rows(&op->desc.y), 2 * kd_cpu_width(&op->desc.y), silu_grad_range, &(op_ctx){&op->desc, a});
    return KD_OK;
}

const kd_cpu_kind kd_cpu_silu_gate = {NULL, NULL, NULL, silu_forward, silu_backward};

/* ---- add ---- */

KD_HOT static void add_range(const void *ctx, int slice, size_t begin, size_t end) {
    const kd_op_desc d = *((const op_ctx *)ctx)->d;
    const kd_op_args p = *((const op_ctx *)ctx)->p;
    (void)slice;
    for (size_t i = begin; i < end; i += KD_VF) {
        int n = kd_lanes(end - i);
        kd_vf v = kd_load(p.x[0], d.x[0].dtype, i, n) + kd_load(p.x[1], d.x[1].dtype, i, n);
        kd_store(p.y, d.y.dtype, i, d.act == KD_ACT_RELU ? kd_relu(v) : v, n);
    }
}

static kd_status add_forward(kd_cpu *b, kd_op *op, const kd_op_args *a, kd_err *err) {
    (void)err;
    kd_cpu_parallel(b->base.threads, kd_tdesc_numel(&op->desc.y), 1, add_range, &(op_ctx){&op->desc, a});
    return KD_OK;
}

static kd_status add_backward(kd_cpu *b, kd_op *op, const kd_op_args *a, kd_err *err) {
    const kd_op_desc *d = &op->desc;
    (void)err;
    for (int k = 0; k < 2; k++) {
        kd_cpu_act_grad c = {.g = a->dx[k], .dy = a->dy, .at = a->y, .g_type = d->x[k].dtype, .dy_type = d->y.dtype, .at_type = d->y.dtype, .act = d->act,
                             .add = (d->add_dx >> k & 1) != 0};
        if (d->need_dx >> k & 1)
            kd_cpu_act_backward(b->base.threads, &c, kd_tdesc_numel(&d->y));
    }
    return KD_OK;
}

const kd_cpu_kind kd_cpu_add = {NULL, NULL, NULL, add_forward, add_backward};

/* ---- scale_add ---- */

KD_HOT static void scale_add_range(const void *ctx, int slice, size_t begin, size_t end) {
    const kd_op_desc d = *((const op_ctx *)ctx)->d;
    const kd_op_args p = *((const op_ctx *)ctx)->p;
    size_t width = kd_cpu_width(&d.y);
    (void)slice;
    for (size_t r = begin; r < end; r++)
        for (size_t i = 0; i < width; i += KD_VF) {
            int n = kd_lanes(width - i);
            size_t at = r * width + i;
            kd_store(p.y, d.y.dtype, at, kd_load(p.x[0], d.x[0].dtype, at, n) + kd_load_f32(p.param[0] + i, n) * kd_load(p.x[1], d.x[1].dtype, at, n), n);
        }
}

KD_HOT static void scale_grad_range(const void *ctx, int slice, size_t begin, size_t end) {
    const kd_op_desc d = *((const op_ctx *)ctx)->d;
    const kd_op_args p = *((const op_ctx *)ctx)->p;
    size_t width = kd_cpu_width(&d.y);
    int add0 = (d.add_dx & 1) != 0, add1 = (d.add_dx & 2) != 0;
    (void)slice;
    for (size_t r = begin; r < end; r++)
        for (size_t i = 0; i < width; i += KD_VF) {
            int n = kd_lanes(width - i);
            size_t at = r * width + i;
            kd_vf dy = kd_load(p.dy, d.y.dtype, at, n);
            if (d.need_dx & 1)
                kd_store_grad(p.dx[0], d.x[0].dtype, at, dy, n, add0);
            if (d.need_dx & 2)
                kd_store_grad(p.dx[1], d.x[1].dtype, at, kd_load_f32(p.param[0] + i, n) * dy, n, add1);
        }
}

static kd_status scale_add_forward(kd_cpu *b, kd_op *op, const kd_op_args *a, kd_err *err) {
    (void)err;
    kd_cpu_parallel(b->base.threads, kd_cpu_rows(&op->desc.y), kd_cpu_width(&op->desc.y), scale_add_range, &(op_ctx){&op->desc, a});
    return KD_OK;
}

static kd_status scale_add_backward(kd_cpu *b, kd_op *op, const kd_op_args *a, kd_err *err) {
    const kd_op_desc *d = &op->desc;
    size_t rows = kd_cpu_rows(&d->y), width = kd_cpu_width(&d->y);
    (void)err;
    if (d->need_dparam)
        kd_cpu_add_columns(b->base.threads, &(kd_cpu_columns){.out = a->dparam[0], .g = a->dy, .times = a->x[1], .g_type = d->y.dtype, .times_type = d->x[1].dtype,
                                                              .rows = rows, .stride = width, .width = width});
    if (d->need_dx)
        kd_cpu_parallel(b->base.threads, rows, width, scale_grad_range, &(op_ctx){d, a});
    return KD_OK;
}

const kd_cpu_kind kd_cpu_scale_add = {NULL, NULL, NULL, scale_add_forward, scale_add_backward};

/* ---- mse ---- */

enum { PARTS = 64, FOLD = 1024 }; /* a partition that doesn't depend on the thread count; elements summed in f32 lanes before f64 */

typedef struct mse_ctx {
    double *part;
    const float *a, *b;
    float *dx;
    size_t n;
    float scale;
    int add;
} mse_ctx;

KD_HOT static void mse_range(const void *ctx, int slice, size_t begin, size_t end) {
    const mse_ctx c = *(const mse_ctx *)ctx;
    (void)slice;
    for (size_t p = begin; p < end; p++) {
        size_t first = c.n * p / PARTS, last = c.n * (p + 1) / PARTS;
        double total = 0;
        for (size_t at = first; at < last; at += FOLD) {
            size_t stop = last - at < FOLD ? last : at + FOLD;
            kd_carried sum = KD_NO_SUM;
            for (size_t i = at; i < stop; i += KD_VF) {
                int n = kd_lanes(stop - i);
                kd_vf e = kd_load_f32(c.a + i, n) - kd_load_f32(c.b + i, n);
                kd_carry(&sum, e * e);
            }
            total += (double)kd_sum(kd_carried_sum(&sum));
        }
        c.part[p] = total;
    }
}

KD_HOT static void mse_grad_range(const void *ctx, int slice, size_t begin, size_t end) {
    const mse_ctx c = *(const mse_ctx *)ctx;
    (void)slice;
    for (size_t i = begin; i < end; i += KD_VF) {
        int n = kd_lanes(end - i);
        kd_store_grad(c.dx, KD_F32, i, (kd_load_f32(c.a + i, n) - kd_load_f32(c.b + i, n)) * c.scale, n, c.add);
    }
}

static kd_status mse_forward(kd_cpu *b, kd_op *op, const kd_op_args *a, kd_err *err) {
    double part[PARTS], sum = 0;
    mse_ctx c = {.part = part, .a = a->x[0], .b = a->x[1], .n = kd_tdesc_numel(&op->desc.x[0])};
    (void)err;
    kd_cpu_parallel(b->base.threads, PARTS, c.n / PARTS + 1, mse_range, &c);
    for (int p = 0; p < PARTS; p++)
        sum += part[p];
    *(float *)a->y = (float)(sum / (double)c.n);
    return KD_OK;
}

static kd_status mse_backward(kd_cpu *b, kd_op *op, const kd_op_args *a, kd_err *err) {
    mse_ctx c = {.a = a->x[0], .b = a->x[1], .dx = a->dx[0], .n = kd_tdesc_numel(&op->desc.x[0]), .add = (op->desc.add_dx & 1) != 0};
    (void)err;
    c.scale = (float)((double)*(const float *)a->dy * 2 / (double)c.n);
    if (op->desc.need_dx & 1)
        kd_cpu_parallel(b->base.threads, c.n, 1, mse_grad_range, &c);
    return KD_OK;
}

const kd_cpu_kind kd_cpu_mse = {NULL, NULL, NULL, mse_forward, mse_backward};

/* conv2d and linear of f32 on CPUs where f32.h's functions are faster than oneDNN's: kd_cpu_f32_kind says which ops.
 *
 * Weights that never change are packed once. Where they do, in training and validation, each pass packs them in scratch just before it multiplies: in training as often as when they were kept, without further copies of the network. */
#include "kernels/cpu/f32.h"

#include "common/base/mem.h"
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/outer.h"

typedef struct f32_op {
    kd_f32_shape shape;
    int packs_itself;      /* in every pass, at the beginning of scratch. dw packs nothing: its work begins there */
    size_t g, work;        /* offsets in args->scratch */
    int own_g;             /* dy isn't the product's gradient yet: it lies behind an activation */
    int saves_input_of_act;
} f32_op;

static kd_f32_shape shape_of(const kd_op_desc *d) {
    const int64_t *x = d->x[0].shape, *y = d->y.shape;
    if (d->kind == KD_OP_CONV2D)
        return (kd_f32_shape){x[0], x[1], x[2], x[3], y[1], y[2], y[3], d->kernel, d->stride, d->pad};
    int64_t rows = (int64_t)kd_cpu_rows(&d->y);
    return (kd_f32_shape){1, 1, rows, (int64_t)kd_cpu_width(&d->x[0]), 1, rows, (int64_t)kd_cpu_width(&d->y), 1, 1, 0};
}

static size_t larger(size_t a, size_t b) {
    return a > b ? a : b;
}

static kd_status f32_create(kd_cpu *b, kd_op *op, kd_op_needs *needs, kd_err *err) {
    const kd_op_desc *d = &op->desc;
    int threads = b->base.threads;
    f32_op *f = NULL;
    KD_TRY(kd_alloc_array(&f, 1, sizeof *f, err));
    op->impl = f;
    f->shape = shape_of(d);
    f->packs_itself = d->train || d->changing;
    f->own_g = d->train && d->act != KD_ACT_NONE;
    f->saves_input_of_act = d->train && d->act == KD_ACT_GELU;
    size_t outputs = kd_tdesc_bytes(&d->y), packed = kd_f32_packed_bytes(&f->shape), work = kd_f32_forward_bytes(&f->shape, threads), at = 0;
    needs->consumed = f->packs_itself ? 0 : 1u;
    needs->packed = f->packs_itself ? 0 : packed;
    needs->saved = f->saves_input_of_act ? outputs : 0;
    if (d->train && (d->need_dx & 1)) {
        packed = larger(packed, kd_f32_packed_dx_bytes(&f->shape));
        work = larger(work, kd_f32_dx_bytes(&f->shape, threads));
    }
    if (f->packs_itself)
        kd_cpu_region(&at, packed);
    f->work = kd_cpu_region(&at, work);
    at = larger(at, d->train && d->need_dparam ? kd_outer_dw_bytes(&f->shape, KD_F32, threads) : 0);
    kd_cpu_region(&needs->scratch, at);
    f->g = kd_cpu_region(&needs->scratch, f->own_g ? outputs : 0);
    return KD_OK;
}

static void f32_destroy(void *impl) {
    kd_free(impl);
}

static kd_status f32_pack(kd_cpu *b, kd_op *op, const kd_op_args *a, kd_err *err) {
    const f32_op *f = op->impl;
    (void)err;
    if (!f->packs_itself)
        kd_f32_pack(b->base.threads, &f->shape, a->param[0], a->packed);
    return KD_OK;
}

static kd_status f32_forward(kd_cpu *b, kd_op *op, const kd_op_args *a, kd_err *err) {
    const f32_op *f = op->impl;
    const kd_op_desc *d = &op->desc;
    float *packed = f->packs_itself ? a->scratch : a->packed;
    (void)err;
    if (f->packs_itself)
        kd_f32_pack(b->base.threads, &f->shape, a->param[0], packed);
    kd_f32_finish finish = {.bias = d->bias ? a->param[1] : NULL, .residual = d->residual ? a->x[1] : NULL, .gamma = d->residual ? a->param[2] : NULL, .before_act = f->saves_input_of_act ? a->saved : NULL, .act = d->act};
    kd_f32_forward(b->base.threads, &f->shape, a->y, a->x[0], packed, &finish, kd_cpu_at(a->scratch, f->work));
    return KD_OK;
}

static kd_status f32_backward(kd_cpu *b, kd_op *op, const kd_op_args *a, kd_err *err) {
    const f32_op *f = op->impl;
    const kd_op_desc *d = &op->desc;
    int threads = b->base.threads;
    const float *g = a->dy;
    (void)err;
    if (f->own_g) {
        kd_cpu_act_grad grad = {.g = kd_cpu_at(a->scratch, f->g), .dy = a->dy, .at = f->saves_input_of_act ? a->saved : a->y, .g_type = KD_F32, .dy_type = KD_F32, .at_type = KD_F32, .act = d->act};
        kd_cpu_act_backward(threads, &grad, kd_tdesc_numel(&d->y));
        g = grad.g;
    }
    if (d->need_dparam) {
        size_t width = kd_cpu_width(&d->y);
        kd_outer_dw(threads, &f->shape, KD_F32, a->dparam[0], a->x[0], g, a->scratch);
        if (d->bias)
            kd_cpu_add_columns(threads, &(kd_cpu_columns){.out = a->dparam[1], .g = g, .g_type = KD_F32, .rows = kd_cpu_rows(&d->y), .stride = width, .width = width});
    }
    if (d->need_dx & 1) {
        kd_f32_pack_dx(threads, &f->shape, a->param[0], a->scratch);
        kd_f32_dx(threads, &f->shape, a->dx[0], g, a->scratch, (d->add_dx & 1) != 0, kd_cpu_at(a->scratch, f->work));
    }
    return KD_OK;
}

static const kd_cpu_kind f32_kind = {f32_create, f32_destroy, f32_pack, f32_forward, f32_backward};

int kd_cpu_f32_here(void) {
    return kd_dnn_instructions() == KD_DNN_AVX2 && kd_f32_runs_here();
}

const kd_cpu_kind *kd_cpu_f32_kind(const kd_op_desc *d) {
    /* One output channel: oneDNN falls back to products whose bits follow the number of threads. */
    int single = d->kind == KD_OP_CONV2D && d->y.shape[3] == 1 && kd_f32_runs_here();
    if ((d->kind != KD_OP_CONV2D && d->kind != KD_OP_LINEAR) || !(single || kd_cpu_f32_here()))
        return NULL;
    if (d->x[0].dtype != KD_F32 || d->y.dtype != KD_F32 || (d->residual && d->x[1].dtype != KD_F32) || kd_op_groups(d) > 1)
        return NULL;
    kd_f32_shape s = shape_of(d);
    return kd_f32_takes(&s) ? &f32_kind : NULL;
}

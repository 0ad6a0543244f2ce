/* conv2d and linear by our own products (product.h, outer.h; winograd.h where that takes them) instead of oneDNN's: kd_cpu_product_kind says which ops.
 *
 * Weights that never change are packed once. Where they do, in training and validation, each pass packs them in scratch just before it multiplies: in training as often as when they were kept, without further copies of the network. */
#include "common/base/mem.h"
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/outer.h"
#include "kernels/cpu/product.h"
#include "kernels/cpu/winograd.h"

typedef struct product_op {
    kd_window window;
    kd_dtype type;         /* of the operands */
    int winograd;          /* winograd.h does all of it */
    int packs_itself;      /* in every pass, at the beginning of scratch. dw packs nothing: its work begins there */
    size_t g, work;        /* offsets in args->scratch */
    int own_g;             /* dy isn't the product's gradient yet: it lies behind an activation, or has another type */
    int saves_input_of_act;
    int act_apart;         /* a pass of its own, from what was saved */
} product_op;

static size_t larger(size_t a, size_t b) {
    return a > b ? a : b;
}

/* Bytes of packed weights, and of what the passes need besides. */
typedef struct product_needs {
    size_t packed, work, dw;
} product_needs;

static product_needs needs_of(const product_op *p, const kd_op_desc *d, int threads) {
    const kd_window *w = &p->window;
    product_needs n = {0};
    int dx = d->train && (d->need_dx & 1), dw = d->train && d->need_dparam;
    if (p->winograd) {
        kd_window back = kd_winograd_back(w);
        n.packed = larger(kd_winograd_packed_bytes(w), dx ? kd_winograd_packed_bytes(&back) : 0);
        n.work = larger(kd_winograd_forward_bytes(w, threads), dx ? kd_winograd_forward_bytes(&back, threads) : 0);
        n.dw = dw ? kd_winograd_dw_bytes(w, threads) : 0;
    } else {
        n.packed = larger(kd_product_packed_bytes(w, p->type), dx ? kd_product_packed_dx_bytes(w, p->type) : 0);
        n.work = larger(kd_product_forward_bytes(w, p->type, threads), dx ? kd_product_dx_bytes(w, p->type, threads) : 0);
        n.dw = dw ? kd_outer_dw_bytes(w, p->type, threads) : 0;
    }
    return n;
}

static kd_status product_create(kd_cpu *b, kd_op *op, kd_op_needs *needs, kd_err *err) {
    const kd_op_desc *d = &op->desc;
    int threads = b->base.threads;
    product_op *p = NULL;
    KD_TRY(kd_alloc_array(&p, 1, sizeof *p, err));
    op->impl = p;
    p->window = kd_product_window(d);
    p->type = d->x[0].dtype;
    p->packs_itself = d->train || d->changing;
    p->own_g = d->train && (d->act != KD_ACT_NONE || d->y.dtype != p->type);
    p->saves_input_of_act = d->train && d->act == KD_ACT_GELU;
    p->act_apart = p->saves_input_of_act && !kd_cpu_f32_here();
    p->winograd = d->kind == KD_OP_CONV2D && !d->residual && d->act != KD_ACT_GELU && kd_winograd_takes(&p->window, p->type, d->y.dtype);
    product_needs n = needs_of(p, d, threads);
    size_t outputs = kd_tdesc_numel(&d->y) * kd_dtype_size(p->type), at = 0;
    needs->consumed = p->packs_itself ? 0 : 1u;
    needs->packed = p->packs_itself ? 0 : n.packed;
    needs->saved = p->saves_input_of_act ? outputs : 0;
    if (p->packs_itself)
        kd_cpu_region(&at, n.packed);
    p->work = kd_cpu_region(&at, n.work);
    at = larger(at, n.dw);
    kd_cpu_region(&needs->scratch, at);
    p->g = kd_cpu_region(&needs->scratch, p->own_g ? outputs : 0);
    return KD_OK;
}

static void product_destroy(void *impl) {
    kd_free(impl);
}

static void pack_forward(int threads, const product_op *p, const kd_op_args *a, void *packed) {
    if (p->winograd)
        kd_winograd_pack(threads, &p->window, 0, a->param[0], packed, kd_cpu_at(a->scratch, p->work));
    else
        kd_product_pack(threads, &p->window, p->type, a->param[0], packed);
}

static kd_status product_pack(kd_cpu *b, kd_op *op, const kd_op_args *a, kd_err *err) {
    const product_op *p = op->impl;
    (void)err;
    if (!p->packs_itself)
        pack_forward(b->base.threads, p, a, a->packed);
    return KD_OK;
}

static kd_status product_forward(kd_cpu *b, kd_op *op, const kd_op_args *a, kd_err *err) {
    const product_op *p = op->impl;
    const kd_op_desc *d = &op->desc;
    void *packed = p->packs_itself ? a->scratch : a->packed;
    (void)err;
    if (p->packs_itself)
        pack_forward(b->base.threads, p, a, packed);
    if (p->winograd) {
        kd_winograd_forward(b->base.threads, &p->window, a->y, a->x[0], packed, d->bias ? a->param[1] : NULL, d->act, 0, kd_cpu_at(a->scratch, p->work));
        return KD_OK;
    }
    kd_product_finish finish = {.bias = d->bias ? a->param[1] : NULL, .residual = d->residual ? a->x[1] : NULL, .gamma = d->residual ? a->param[2] : NULL};
    finish.act = p->act_apart ? KD_ACT_NONE : d->act;
    finish.before_act = p->saves_input_of_act && !p->act_apart ? a->saved : NULL;
    kd_product_forward(b->base.threads, &p->window, p->type, p->act_apart ? p->type : d->y.dtype, p->act_apart ? a->saved : a->y, a->x[0], packed, &finish, kd_cpu_at(a->scratch, p->work));
    if (p->act_apart)
        kd_cpu_act_forward(b->base.threads, a->y, d->y.dtype, a->saved, p->type, d->act, kd_tdesc_numel(&d->y));
    return KD_OK;
}

static void find_dw(int threads, const product_op *p, const kd_op_args *a, const void *g) {
    if (p->winograd)
        kd_winograd_dw(threads, &p->window, a->dparam[0], a->x[0], g, a->scratch);
    else
        kd_outer_dw(threads, &p->window, p->type, a->dparam[0], a->x[0], g, a->scratch);
}

static void find_dx(int threads, const product_op *p, const kd_op_args *a, const void *g, int add) {
    void *work = kd_cpu_at(a->scratch, p->work);
    if (p->winograd) {
        kd_window back = kd_winograd_back(&p->window);
        kd_winograd_pack(threads, &back, 1, a->param[0], a->scratch, work);
        kd_winograd_forward(threads, &back, a->dx[0], g, a->scratch, NULL, KD_ACT_NONE, add, work);
    } else {
        kd_product_pack_dx(threads, &p->window, p->type, a->param[0], a->scratch);
        kd_product_dx(threads, &p->window, p->type, a->dx[0], g, a->scratch, add, work);
    }
}

static kd_status product_backward(kd_cpu *b, kd_op *op, const kd_op_args *a, kd_err *err) {
    const product_op *p = op->impl;
    const kd_op_desc *d = &op->desc;
    int threads = b->base.threads;
    const void *g = a->dy;
    (void)err;
    if (p->own_g) {
        kd_dtype at_type = p->saves_input_of_act ? p->type : d->y.dtype;
        kd_cpu_act_grad grad = {.g = kd_cpu_at(a->scratch, p->g), .dy = a->dy, .at = p->saves_input_of_act ? a->saved : a->y, .g_type = p->type, .dy_type = d->y.dtype, .at_type = at_type, .act = d->act};
        kd_cpu_act_backward(threads, &grad, kd_tdesc_numel(&d->y));
        g = grad.g;
    }
    if (d->need_dparam) {
        find_dw(threads, p, a, g);
        if (d->bias)
            kd_cpu_add_bias_gradient(threads, d, a->dparam[1], a->dy, g);
    }
    if (d->need_dx & 1)
        find_dx(threads, p, a, g, (d->add_dx & 1) != 0);
    return KD_OK;
}

static const kd_cpu_kind product_kind = {product_create, product_destroy, product_pack, product_forward, product_backward};

int kd_cpu_f32_here(void) {
    return kd_dnn_instructions() == KD_DNN_AVX2 && kd_product_runs_here(KD_F32);
}

/* Values that one of the result, or of the gradient of x, is a sum of: with fewer, what surrounds a tile's products takes as long as they. */
enum { LEAST_VALUES = 64 };

/* Linear layers outside training with AVX-512 are cpu_linear_avx512.c's. oneDNN keeps windows and layers of few values there, and merged ones, a ResNet's stem and patch embeddings, whose taps are short. But of one output channel in f32 it falls back to products whose
 * bits follow the number of threads. */
static int faster_here(const kd_op_desc *d, const kd_window *w) {
    int64_t taps = w->kernel * w->kernel, least = w->in < w->out / (w->stride * w->stride) ? w->in : w->out / (w->stride * w->stride);
    if (kd_cpu_f32_here())
        return 1;
    if (d->kind == KD_OP_LINEAR)
        return d->train && least >= LEAST_VALUES;
    return (!kd_product_merges(w) && taps * least >= LEAST_VALUES) || (w->out == 1 && d->x[0].dtype == KD_F32);
}

const kd_cpu_kind *kd_cpu_product_kind(const kd_op_desc *d) {
    if ((d->kind != KD_OP_CONV2D && d->kind != KD_OP_LINEAR) || kd_op_groups(d) > 1 || (d->residual && d->x[1].dtype != KD_F32))
        return NULL;
    kd_window w = kd_product_window(d);
    kd_dtype type = d->x[0].dtype;
    int taken = faster_here(d, &w) && kd_product_takes(&w, type, d->y.dtype) && (!d->train || !(d->need_dx & 1) || kd_product_takes_dx(&w, type));
    return taken ? &product_kind : NULL;
}

/* The reference backend: host memory, conversion to double, one call into ref_core.h, one rounding at the end. */
#include <string.h>

#include "common/base/mem.h"
#include "kernels/backend.h"
#include "kernels/ref/ref_core.h"
#include "kernels/ref/ref_flat.h"

typedef struct ref_backend {
    kd_backend base;
} ref_backend;

struct kd_op {
    kd_op_desc desc;
    const kd_ref_core *core;
};

const kd_ref_core *kd_ref_core_of(kd_op_kind kind) {
    static const kd_ref_core *const cores[KD_OP_KINDS] = {
        [KD_OP_NORMALIZE] = &kd_ref_normalize,
        [KD_OP_CONV2D] = &kd_ref_conv2d,
        [KD_OP_LINEAR] = &kd_ref_linear,
        [KD_OP_BATCH_NORM] = &kd_ref_batch_norm,
        [KD_OP_LAYER_NORM] = &kd_ref_layer_norm,
        [KD_OP_RELU] = &kd_ref_relu,
        [KD_OP_GELU] = &kd_ref_gelu,
        [KD_OP_SILU] = &kd_ref_silu,
        [KD_OP_HARDSWISH] = &kd_ref_hardswish,
        [KD_OP_HARDSIGMOID] = &kd_ref_hardsigmoid,
        [KD_OP_SILU_GATE] = &kd_ref_silu_gate,
        [KD_OP_ADD] = &kd_ref_add,
        [KD_OP_SCALE_ADD] = &kd_ref_scale_add,
        [KD_OP_MAX_POOL] = &kd_ref_max_pool,
        [KD_OP_MEAN_TOKENS] = &kd_ref_mean_tokens,
        [KD_OP_ATTENTION] = &kd_ref_attention,
        [KD_OP_ROPE] = &kd_ref_rope,
        [KD_OP_TOKENS] = &kd_ref_tokens,
        [KD_OP_TOKEN_SLICE] = &kd_ref_token_slice,
        [KD_OP_CONCAT] = &kd_ref_concat,
        [KD_OP_CHANNEL_SLICE] = &kd_ref_channel_slice,
        [KD_OP_CHANNEL_GATE] = &kd_ref_channel_gate,
        [KD_OP_ROW_SCALE] = &kd_ref_row_scale,
        [KD_OP_QKV_BY_HEAD] = &kd_ref_qkv_by_head,
        [KD_OP_RESIZE_BILINEAR] = &kd_ref_resize_bilinear,
        [KD_OP_MSE] = &kd_ref_mse,
        [KD_OP_MSE_ADJOINT] = &kd_ref_mse_adjoint,
        [KD_OP_L2_NORMALIZE] = &kd_ref_l2_normalize,
        [KD_OP_COSINE] = &kd_ref_cosine,
        [KD_OP_SMOOTH_L1] = &kd_ref_smooth_l1,
        [KD_OP_KL_LOGITS] = &kd_ref_kl_logits,
        [KD_OP_KL_QUEUE] = &kd_ref_kl_queue,
        [KD_OP_KL_INTRA] = &kd_ref_kl_intra,
        [KD_OP_GRAM] = &kd_ref_gram,
        [KD_OP_KOLEO] = &kd_ref_koleo,
    };
    KD_ASSERT((unsigned)kind < KD_OP_KINDS);
    return cores[kind];
}

/* --- device and memory --- */

static kd_status ref_open(kd_backend **out, int threads, int ordinal, kd_err *err) {
    (void)ordinal;
    ref_backend *b = NULL;
    KD_TRY(kd_alloc_array(&b, 1, sizeof *b, err));
    b->base.v = kd_backend_ref_table();
    b->base.threads = threads;
    *out = &b->base;
    return KD_OK;
}

static void ref_close(kd_backend *b) {
    kd_free(b);
}

static const char *ref_describe(const kd_backend *b) {
    (void)b;
    return "reference loops in C, double precision inside, 1 thread";
}

static kd_status ref_check_bf16(const kd_backend *b, kd_err *err) {
    (void)b, (void)err;
    return KD_OK; /* emulated with integer rounding: available everywhere */
}

static kd_status ref_alloc(kd_backend *b, void **out, size_t bytes, kd_err *err) {
    (void)b;
    return kd_alloc_array(out, bytes, 1, err);
}

static void ref_release(kd_backend *b, void *p) {
    (void)b;
    kd_free(p);
}

static kd_status ref_copy(kd_backend *b, void *dst, const void *src, size_t bytes, kd_err *err) {
    (void)b, (void)err;
    if (bytes > 0)
        memcpy(dst, src, bytes);
    return KD_OK;
}

static kd_status ref_zero(kd_backend *b, void *dst, size_t bytes, kd_err *err) {
    (void)b, (void)err;
    if (bytes > 0)
        memset(dst, 0, bytes);
    return KD_OK;
}

static kd_status ref_sync(kd_backend *b, kd_err *err) {
    (void)b, (void)err;
    return KD_OK;
}

/* --- ops --- */

/* Doubles that one call needs: a copy of every operand that may occur, and the core's own work area. */
static size_t scratch_doubles(const kd_op_desc *d, const kd_ref_core *core) {
    size_t copies = d->train ? 2 : 1, n = copies * kd_tdesc_numel(&d->y); /* the second: gradients */
    for (int i = 0; i < d->inputs; i++)
        n += copies * kd_tdesc_numel(&d->x[i]);
    for (int i = 0; i < KD_OP_MAX_PARAM; i++)
        n += copies * kd_op_param_numel(d, i);
    for (int i = 0; i < KD_OP_MAX_STATE; i++)
        n += kd_op_state_numel(d, i);
    return n + (core->work ? core->work(d) : 0);
}

static kd_status ref_op_create(kd_backend *b, kd_op **out, const kd_op_desc *desc, kd_op_needs *needs, kd_err *err) {
    (void)b;
    kd_op_check(desc);
    kd_op *op = NULL;
    KD_TRY(kd_alloc_array(&op, 1, sizeof *op, err));
    op->desc = *desc;
    op->core = kd_ref_core_of(desc->kind);
    *needs = (kd_op_needs){.scratch = scratch_doubles(desc, op->core) * sizeof(double)};
    *out = op;
    return KD_OK;
}

static void ref_op_destroy(kd_backend *b, kd_op *op) {
    (void)b;
    kd_free(op);
}

static kd_status ref_op_pack(kd_backend *b, kd_op *op, const kd_op_args *args, kd_err *err) {
    (void)b, (void)op, (void)args, (void)err;
    return KD_OK; /* weights are converted in every call */
}

static void to_double(double *dst, const void *src, kd_dtype type, size_t n) {
    for (size_t i = 0; i < n; i++)
        dst[i] = type == KD_F32   ? (double)((const float *)src)[i]
                 : type == KD_U8 ? (double)((const uint8_t *)src)[i]
                                 : (double)kd_bf16_to_f32(((const uint16_t *)src)[i]);
}

/* One rounding; with `add` to the sum with what is there. Doubles pass through float on the way to bf16, as every f32 accumulator does. */
static void from_double(void *dst, const double *src, kd_dtype type, size_t n, int add) {
    float *f = dst;
    uint16_t *h = dst;
    for (size_t i = 0; i < n; i++)
        if (type == KD_F32)
            f[i] = (float)(src[i] + (add ? (double)f[i] : 0));
        else
            h[i] = kd_f32_to_bf16((float)(src[i] + (add ? (double)kd_bf16_to_f32(h[i]) : 0)));
}

/* Takes n doubles from the scratch region. */
static double *take(double **scratch, size_t n) {
    double *p = *scratch;
    *scratch += n;
    return p;
}

static double *take_converted(double **scratch, const void *src, kd_dtype type, size_t n) {
    if (!src || n == 0)
        return NULL;
    double *p = take(scratch, n);
    to_double(p, src, type, n);
    return p;
}

static kd_ref_vals convert_inputs(const kd_op_desc *d, const kd_op_args *a, double **scratch) {
    kd_ref_vals v = {0};
    for (int i = 0; i < d->inputs; i++)
        v.x[i] = take_converted(scratch, a->x[i], d->x[i].dtype, kd_tdesc_numel(&d->x[i]));
    for (int i = 0; i < KD_OP_MAX_PARAM; i++)
        v.param[i] = take_converted(scratch, a->param[i], KD_F32, kd_op_param_numel(d, i));
    for (int i = 0; i < KD_OP_MAX_STATE; i++)
        v.state[i] = take_converted(scratch, a->state[i], KD_F32, kd_op_state_numel(d, i));
    return v;
}

static kd_status ref_op_forward(kd_backend *b, kd_op *op, const kd_op_args *args, kd_err *err) {
    (void)b, (void)err;
    const kd_op_desc *d = &op->desc;
    double *scratch = args->scratch;
    kd_ref_vals v = convert_inputs(d, args, &scratch);
    v.y = take(&scratch, kd_tdesc_numel(&d->y));
    v.work = scratch;
    op->core->forward(d, &v);
    from_double(args->y, v.y, d->y.dtype, kd_tdesc_numel(&d->y), 0);
    for (int i = 0; d->train && i < KD_OP_MAX_STATE; i++)
        from_double(args->state[i], v.state[i], KD_F32, kd_op_state_numel(d, i), 0);
    return KD_OK;
}

static kd_status ref_op_backward(kd_backend *b, kd_op *op, const kd_op_args *args, kd_err *err) {
    (void)b, (void)err;
    const kd_op_desc *d = &op->desc;
    KD_ASSERT(d->train && op->core->backward);
    double *scratch = args->scratch;
    kd_ref_vals v = convert_inputs(d, args, &scratch);
    v.dy = take_converted(&scratch, args->dy, d->y.dtype, kd_tdesc_numel(&d->y));
    for (int i = 0; i < d->inputs; i++)
        if (d->need_dx >> i & 1u)
            v.dx[i] = take(&scratch, kd_tdesc_numel(&d->x[i]));
    for (int i = 0; d->need_dparam && i < KD_OP_MAX_PARAM; i++)
        if (kd_op_param_numel(d, i) > 0)
            v.dparam[i] = take(&scratch, kd_op_param_numel(d, i));
    v.work = scratch;
    op->core->backward(d, &v);
    for (int i = 0; i < d->inputs; i++)
        if (v.dx[i])
            from_double(args->dx[i], v.dx[i], d->x[i].dtype, kd_tdesc_numel(&d->x[i]), (int)(d->add_dx >> i & 1u));
    for (int i = 0; i < KD_OP_MAX_PARAM; i++)
        if (v.dparam[i])
            from_double(args->dparam[i], v.dparam[i], KD_F32, kd_op_param_numel(d, i), 1);
    return KD_OK;
}

const kd_backend_table *kd_backend_ref_table(void) {
    static const kd_backend_table table = {
        .abi = KD_BACKEND_ABI,
        .name = "ref",
    .host_memory = 1,
        .open = ref_open,
        .close = ref_close,
        .describe = ref_describe,
        .check_bf16 = ref_check_bf16,
        .alloc = ref_alloc,
        .release = ref_release,
        .upload = ref_copy,
        .download = ref_copy,
        .zero = ref_zero,
        .sync = ref_sync,
    .fetch_create = kd_host_fetch_create,
    .fetch_destroy = kd_host_fetch_destroy,
    .fetch_begin = kd_host_fetch_begin,
    .fetch_end = kd_host_fetch_end,
        .op_create = ref_op_create,
        .op_destroy = ref_op_destroy,
        .op_pack = ref_op_pack,
        .op_forward = ref_op_forward,
        .op_backward = ref_op_backward,
        .sum_squares = kd_ref_sum_squares,
        .clip_scale = kd_ref_clip_scale,
        .adamw = kd_ref_adamw,
        .sgd = kd_ref_sgd,
        .lars = kd_ref_lars,
        .ema = kd_ref_ema,
        .encode = kd_ref_encode,
    };
    return &table;
}

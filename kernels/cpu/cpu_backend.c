/* The cpu backend's table: host memory, one kd_cpu_kind per op kind. */
#include <omp.h>
#include <stdio.h>
#include <string.h>

#include "common/base/mem.h"
#include "kernels/cpu/cpu.h"

static const kd_backend_table table;

static const kd_cpu_kind *kind_of(const kd_op_desc *d) {
    static const kd_cpu_kind *const kinds[KD_OP_KINDS] = {
        [KD_OP_NORMALIZE] = &kd_cpu_normalize,
        [KD_OP_CONV2D] = &kd_cpu_conv2d,
        [KD_OP_LINEAR] = &kd_cpu_linear,
        [KD_OP_BATCH_NORM] = &kd_cpu_batch_norm,
        [KD_OP_LAYER_NORM] = &kd_cpu_layer_norm,
        [KD_OP_RELU] = &kd_cpu_act,
        [KD_OP_GELU] = &kd_cpu_act,
        [KD_OP_SILU] = &kd_cpu_act,
        [KD_OP_HARDSWISH] = &kd_cpu_act,
        [KD_OP_HARDSIGMOID] = &kd_cpu_act,
        [KD_OP_SILU_GATE] = &kd_cpu_silu_gate,
        [KD_OP_ADD] = &kd_cpu_add,
        [KD_OP_SCALE_ADD] = &kd_cpu_scale_add,
        [KD_OP_MAX_POOL] = &kd_cpu_max_pool,
        [KD_OP_MEAN_TOKENS] = &kd_cpu_mean_tokens,
        [KD_OP_ATTENTION] = &kd_cpu_attention,
        [KD_OP_ROPE] = &kd_cpu_rope,
        [KD_OP_TOKENS] = &kd_cpu_tokens,
        [KD_OP_TOKEN_SLICE] = &kd_cpu_token_slice,
        [KD_OP_CONCAT] = &kd_cpu_concat,
        [KD_OP_CHANNEL_SLICE] = &kd_cpu_channel_slice,
        [KD_OP_CHANNEL_GATE] = &kd_cpu_channel_gate,
        [KD_OP_ROW_SCALE] = &kd_cpu_row_scale,
        [KD_OP_QKV_BY_HEAD] = &kd_cpu_qkv_by_head,
        [KD_OP_RESIZE_BILINEAR] = &kd_cpu_resize_bilinear,
        [KD_OP_MSE] = &kd_cpu_mse,
        [KD_OP_MSE_ADJOINT] = &kd_cpu_mse_adjoint,
        [KD_OP_L2_NORMALIZE] = &kd_cpu_l2_normalize,
        [KD_OP_COSINE] = &kd_cpu_cosine,
        [KD_OP_SMOOTH_L1] = &kd_cpu_smooth_l1,
        [KD_OP_KL_LOGITS] = &kd_cpu_kl_logits,
        [KD_OP_KL_QUEUE] = &kd_cpu_kl_queue,
        [KD_OP_KL_INTRA] = &kd_cpu_kl_intra,
        [KD_OP_GRAM] = &kd_cpu_gram,
        [KD_OP_KOLEO] = &kd_cpu_koleo,
    };
    static const kd_cpu_kind *const wide_kinds[KD_OP_KINDS] = {
        [KD_OP_BATCH_NORM] = &kd_cpu_batch_norm_avx512,
        [KD_OP_LAYER_NORM] = &kd_cpu_layer_norm_avx512,
        [KD_OP_MAX_POOL] = &kd_cpu_max_pool_avx512,
        [KD_OP_RESIZE_BILINEAR] = &kd_cpu_resize_bilinear_avx512,
    };
    KD_ASSERT((unsigned)d->kind < KD_OP_KINDS);
    if (wide_kinds[d->kind] && kd_dnn_instructions() == KD_DNN_AVX512)
        return wide_kinds[d->kind];
    const kd_cpu_kind *product = kd_cpu_product_kind(d), *wide = kd_cpu_wide_linear(d);
    return product ? product : wide ? wide : kinds[d->kind];
}

/* OpenMP's thread count is a property of the calling thread; a backend may have been opened on another one. */
static void use_threads(const kd_backend *b) {
    if (omp_get_max_threads() != b->threads)
        omp_set_num_threads(b->threads);
}

/* ---- device and memory ---- */

static const char *instructions(void) {
    kd_dnn_isa isa = kd_dnn_instructions();
    if (isa == KD_DNN_AVX512)
        return __builtin_cpu_supports("avx512bf16") ? "AVX-512 bf16" : "AVX-512";
    return isa == KD_DNN_AVX2 ? "AVX2" : "no AVX2";
}

static kd_status cpu_open(kd_backend **out, int threads, int ordinal, kd_err *err) {
    (void)ordinal;
    KD_ASSERT(threads >= 1);
    kd_cpu *b = NULL;
    KD_TRY(kd_alloc_array(&b, 1, sizeof *b, err));
    b->base.v = &table;
    b->base.threads = threads;
    use_threads(&b->base);
    kd_status status = kd_dnn_engine_create(&b->engine, err);
    if (status != KD_OK) {
        kd_free(b);
        return status;
    }
    int major, minor, patch;
    kd_dnn_version(&major, &minor, &patch);
    snprintf(b->about, sizeof b->about, "oneDNN %d.%d.%d, %s, %d thread%s", major, minor, patch, instructions(), threads, threads == 1 ? "" : "s");
    *out = &b->base;
    return KD_OK;
}

static void cpu_close(kd_backend *base) {
    kd_cpu *b = (kd_cpu *)base;
    kd_dnn_engine_destroy(b->engine);
    omp_pause_resource_all(omp_pause_soft); /* ends the worker threads of this thread; another backend starts its own */
    kd_free(b);
}

static const char *cpu_describe(const kd_backend *b) {
    return ((const kd_cpu *)b)->about;
}

static kd_status cpu_check_bf16(const kd_backend *b, kd_err *err) {
    (void)b;
    if (kd_dnn_instructions() == KD_DNN_AVX512)
        return KD_OK;
    return kd_fail(err, KD_ENODEVICE, "bf16 on the CPU needs AVX-512 (BW, VL, DQ), oneDNN has %s here; use --precision f32", instructions());
}

static kd_status cpu_alloc(kd_backend *b, void **out, size_t bytes, kd_err *err) {
    (void)b;
    return kd_alloc_array(out, bytes, 1, err);
}

static void cpu_release(kd_backend *b, void *p) {
    (void)b;
    kd_free(p);
}

static kd_status cpu_copy(kd_backend *b, void *dst, const void *src, size_t bytes, kd_err *err) {
    (void)b, (void)err;
    if (bytes > 0)
        memcpy(dst, src, bytes);
    return KD_OK;
}

static kd_status cpu_zero(kd_backend *b, void *dst, size_t bytes, kd_err *err) {
    (void)b, (void)err;
    if (bytes > 0)
        memset(dst, 0, bytes);
    return KD_OK;
}

static kd_status cpu_sync(kd_backend *b, kd_err *err) {
    (void)b, (void)err;
    return KD_OK;
}

/* ---- ops ---- */

static void cpu_op_destroy(kd_backend *b, kd_op *op) {
    (void)b;
    if (op && op->kind->destroy)
        op->kind->destroy(op->impl);
    kd_free(op);
}

static int uses_bf16(const kd_op_desc *d) {
    int bf16 = d->y.dtype == KD_BF16;
    for (int i = 0; i < d->inputs; i++)
        bf16 |= d->x[i].dtype == KD_BF16;
    return bf16;
}

static kd_status cpu_op_create(kd_backend *base, kd_op **out, const kd_op_desc *desc, kd_op_needs *needs, kd_err *err) {
    kd_op_check(desc);
    if (uses_bf16(desc))
        KD_TRY(cpu_check_bf16(base, err));
    use_threads(base);
    kd_op *op = NULL;
    KD_TRY(kd_alloc_array(&op, 1, sizeof *op, err));
    op->desc = *desc;
    op->kind = kind_of(desc);
    *needs = (kd_op_needs){.unread = kd_op_unread(desc)};
    kd_status status = op->kind->create ? op->kind->create((kd_cpu *)base, op, needs, err) : KD_OK;
    if (status != KD_OK) {
        cpu_op_destroy(base, op);
        return status;
    }
    op->desc.name = NULL; /* the caller's string may not live as long */
    *out = op;
    return KD_OK;
}

static kd_status cpu_op_pack(kd_backend *b, kd_op *op, const kd_op_args *args, kd_err *err) {
    use_threads(b);
    return op->kind->pack ? op->kind->pack((kd_cpu *)b, op, args, err) : KD_OK;
}

static kd_status cpu_op_forward(kd_backend *b, kd_op *op, const kd_op_args *args, kd_err *err) {
    use_threads(b);
    return op->kind->forward((kd_cpu *)b, op, args, err);
}

static kd_status cpu_op_backward(kd_backend *b, kd_op *op, const kd_op_args *args, kd_err *err) {
    KD_ASSERT(op->desc.train && op->kind->backward);
    use_threads(b);
    return op->kind->backward((kd_cpu *)b, op, args, err);
}

static const kd_backend_table table = {
    .abi = KD_BACKEND_ABI,
    .name = "cpu",
    .host_memory = 1,
    .open = cpu_open,
    .close = cpu_close,
    .describe = cpu_describe,
    .check_bf16 = cpu_check_bf16,
    .alloc = cpu_alloc,
    .release = cpu_release,
    .upload = cpu_copy,
    .download = cpu_copy,
    .zero = cpu_zero,
    .sync = cpu_sync,
    .fetch_create = kd_host_fetch_create,
    .fetch_destroy = kd_host_fetch_destroy,
    .fetch_begin = kd_host_fetch_begin,
    .fetch_end = kd_host_fetch_end,
    .op_create = cpu_op_create,
    .op_destroy = cpu_op_destroy,
    .op_pack = cpu_op_pack,
    .op_forward = cpu_op_forward,
    .op_backward = cpu_op_backward,
    .sum_squares = kd_cpu_sum_squares,
    .clip_scale = kd_cpu_clip_scale,
    .adamw = kd_cpu_adamw,
    .sgd = kd_cpu_sgd,
    .lars = kd_cpu_lars,
    .ema = kd_cpu_ema,
    .encode = kd_cpu_encode,
};

const kd_backend_table *kd_backend_table_get(void); /* KD_BACKEND_ENTRY_NAME */
const kd_backend_table *kd_backend_table_get(void) {
    return &table;
}

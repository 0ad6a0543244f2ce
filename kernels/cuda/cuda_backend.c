/* The cuda backend's table: the device and its memory, one kd_cuda_kind per op kind, recorded sequences as CUDA graphs. */
#include "kernels/cuda/cuda.h"
#include "kernels/cuda/cudnn_conv.h"
#include "kernels/cuda/gemm.h"
#include "kernels/cuda/transfer.h"

static const kd_backend_table table;

static const kd_cuda_kind *kind_of(kd_op_kind k) {
    static const kd_cuda_kind *const kinds[KD_OP_KINDS] = {
        [KD_OP_NORMALIZE] = &kd_cuda_normalize,
        [KD_OP_CONV2D] = &kd_cuda_conv2d,
        [KD_OP_LINEAR] = &kd_cuda_linear,
        [KD_OP_BATCH_NORM] = &kd_cuda_batch_norm,
        [KD_OP_LAYER_NORM] = &kd_cuda_layer_norm,
        [KD_OP_RELU] = &kd_cuda_act,
        [KD_OP_GELU] = &kd_cuda_act,
        [KD_OP_SILU] = &kd_cuda_act,
        [KD_OP_HARDSWISH] = &kd_cuda_act,
        [KD_OP_HARDSIGMOID] = &kd_cuda_act,
        [KD_OP_SILU_GATE] = &kd_cuda_silu_gate,
        [KD_OP_ADD] = &kd_cuda_add,
        [KD_OP_SCALE_ADD] = &kd_cuda_scale_add,
        [KD_OP_MAX_POOL] = &kd_cuda_max_pool,
        [KD_OP_MEAN_TOKENS] = &kd_cuda_mean_tokens,
        [KD_OP_ATTENTION] = &kd_cuda_attention,
        [KD_OP_ROPE] = &kd_cuda_rope,
        [KD_OP_TOKENS] = &kd_cuda_tokens,
        [KD_OP_TOKEN_SLICE] = &kd_cuda_token_slice,
        [KD_OP_CONCAT] = &kd_cuda_concat,
        [KD_OP_CHANNEL_SLICE] = &kd_cuda_channel_slice,
        [KD_OP_CHANNEL_GATE] = &kd_cuda_channel_gate,
        [KD_OP_ROW_SCALE] = &kd_cuda_row_scale,
        [KD_OP_QKV_BY_HEAD] = &kd_cuda_qkv_by_head,
        [KD_OP_RESIZE_BILINEAR] = &kd_cuda_resize_bilinear,
        [KD_OP_MSE] = &kd_cuda_mse,
        [KD_OP_MSE_ADJOINT] = &kd_cuda_mse_adjoint,
        [KD_OP_L2_NORMALIZE] = &kd_cuda_l2_normalize,
        [KD_OP_COSINE] = &kd_cuda_cosine,
        [KD_OP_SMOOTH_L1] = &kd_cuda_smooth_l1,
        [KD_OP_KL_LOGITS] = &kd_cuda_kl_logits,
        [KD_OP_KL_QUEUE] = &kd_cuda_kl_queue,
        [KD_OP_KL_INTRA] = &kd_cuda_kl_intra,
        [KD_OP_GRAM] = &kd_cuda_gram,
        [KD_OP_KOLEO] = &kd_cuda_koleo,
    };
    KD_ASSERT((unsigned)k < KD_OP_KINDS);
    return kinds[k];
}

/* ---- errors ---- */

kd_status kd_cuda_check(cudaError_t status, const char *what, kd_err *err) {
    if (status == cudaSuccess)
        return KD_OK;
    cudaGetLastError(); /* clears what isn't sticky */
    if (status == cudaErrorMemoryAllocation)
        return kd_fail(err, KD_ENODEVICE, "%s failed: %s; use a smaller --batch-size, or end what else runs on the device", what, cudaGetErrorString(status));
    return kd_fail(err, status == cudaErrorNoDevice ? KD_ENODEVICE : KD_EFAIL, "%s failed: %s (%s)", what, cudaGetErrorString(status), cudaGetErrorName(status));
}

/* ---- the device ---- */

static void version_text(char buf[16], int version) {
    snprintf(buf, 16, "%d.%d", version / 1000, version % 1000 / 10);
}

/* Why there is no device to use, in the user's terms. */
static kd_status no_device(cudaError_t status, int ordinal, kd_err *err) {
    int driver = 0, runtime = 0;
    char has[16], wants[16];
    cudaDriverGetVersion(&driver);
    cudaRuntimeGetVersion(&runtime);
    cudaGetLastError();
    version_text(has, driver);
    version_text(wants, runtime);
    if (driver == 0)
        return kd_fail(err, KD_ENODEVICE, "device cuda:%d: no NVIDIA driver is loaded on this machine; install one for CUDA %s or newer, or choose --device cpu", ordinal, wants);
    if (status == cudaErrorInsufficientDriver)
        return kd_fail(err, KD_ENODEVICE, "device cuda:%d: the NVIDIA driver supports CUDA %s at most, and this build needs %s; update the driver, or build with a CUDA toolkit that it supports", ordinal,
                       has, wants);
    return kd_fail(err, KD_ENODEVICE, "device cuda:%d: the driver (CUDA %s) sees no device (%s); is it hidden by CUDA_VISIBLE_DEVICES, or choose --device cpu", ordinal, has, cudaGetErrorString(status));
}

static kd_status count_devices(int *count, int ordinal, kd_err *err) {
    cudaError_t status = cudaGetDeviceCount(count);
    return status != cudaSuccess || *count == 0 ? no_device(status, ordinal, err) : KD_OK;
}

static kd_status cuda_devices(int *count, kd_err *err) {
    return count_devices(count, 0, err);
}

static kd_status find_device(kd_cuda *b, struct cudaDeviceProp *prop, kd_err *err) {
    int count = 0;
    KD_TRY(count_devices(&count, b->ordinal, err));
    if (b->ordinal >= count)
        return kd_fail(err, KD_ENODEVICE, "device cuda:%d: this machine has %d CUDA device%s, numbered from 0", b->ordinal, count, count == 1 ? "" : "s");
    KD_TRY(kd_cuda_check(cudaSetDevice(b->ordinal), "cuda: choosing the device", err));
    KD_TRY(kd_cuda_check(cudaGetDeviceProperties(prop, b->ordinal), "cuda: asking what the device is", err));
    if (prop->major < 8)
        return kd_fail(err, KD_ENODEVICE, "device cuda:%d: %s has compute capability %d.%d, and kdcache needs 8.0 (Ampere) or newer; choose another --device", b->ordinal, prop->name, prop->major,
                       prop->minor);
    b->processors = prop->multiProcessorCount;
    return KD_OK;
}

static kd_status open_parts(kd_cuda *b, const struct cudaDeviceProp *prop, kd_err *err) {
    KD_TRY(kd_cuda_check(cudaStreamCreateWithFlags(&b->stream, cudaStreamNonBlocking), "cuda: a stream", err));
    KD_TRY(kd_transfer_create(&b->transfer, b, err));
    KD_TRY(kd_cuda_check(cudaMalloc((void **)&b->reduction, KD_CUDA_PARTS * sizeof(double)), "cuda: memory for sums", err));
    KD_TRY(kd_gemm_library_create(&b->gemm, err));
    KD_TRY(kd_conv_library_create(&b->conv, b, err));
    int runtime = 0, g[3], c[3];
    char cuda[16];
    cudaRuntimeGetVersion(&runtime);
    version_text(cuda, runtime);
    kd_gemm_library_version(b->gemm, &g[0], &g[1], &g[2]);
    kd_conv_library_version(&c[0], &c[1], &c[2]);
    snprintf(b->about, sizeof b->about, "%.80s (compute capability %d.%d, %.0f GiB), CUDA %s, cuBLASLt %d.%d.%d, cuDNN %d.%d.%d", prop->name, prop->major, prop->minor,
             (double)prop->totalGlobalMem / (double)(1 << 30), cuda, g[0], g[1], g[2], c[0], c[1], c[2]);
    return KD_OK;
}

static void cuda_close(kd_backend *base) {
    kd_cuda *b = (kd_cuda *)base;
    cudaSetDevice(b->ordinal);
    if (b->stream != NULL)
        cudaStreamSynchronize(b->stream);
    kd_transfer_destroy(b->transfer);
    kd_gemm_library_destroy(b->gemm);
    kd_conv_library_destroy(b->conv);
    if (b->reduction != NULL)
        cudaFree(b->reduction);
    if (b->stream != NULL)
        cudaStreamDestroy(b->stream);
    kd_free(b);
}

static kd_status cuda_open(kd_backend **out, int threads, int ordinal, kd_err *err) {
    kd_cuda *b = NULL;
    struct cudaDeviceProp prop;
    KD_TRY(kd_alloc_array(&b, 1, sizeof *b, err));
    b->base.v = &table;
    b->base.threads = threads;
    b->ordinal = ordinal;
    kd_status status = find_device(b, &prop, err);
    if (status == KD_OK)
        status = open_parts(b, &prop, err);
    if (status != KD_OK) {
        cuda_close(&b->base);
        return status;
    }
    *out = &b->base;
    return KD_OK;
}

static const char *cuda_describe(const kd_backend *b) {
    return ((const kd_cuda *)b)->about;
}

/* What find_device lets through has it. */
static kd_status cuda_check_bf16(const kd_backend *b, kd_err *err) {
    (void)b, (void)err;
    return KD_OK;
}

kd_cuda *kd_cuda_use(kd_backend *b) {
    cudaSetDevice(((kd_cuda *)b)->ordinal);
    return (kd_cuda *)b;
}

/* ---- memory ---- */

static kd_status out_of_memory(const kd_cuda *b, size_t bytes, kd_err *err) {
    size_t left = 0, total = 0;
    cudaGetLastError();
    cudaMemGetInfo(&left, &total);
    return kd_fail(err, KD_ENODEVICE, "device cuda:%d has no room for %.1f MiB more: %.1f of its %.1f MiB are free; use a smaller --batch-size, or end what else runs on it", b->ordinal,
                   (double)bytes / (1 << 20), (double)left / (1 << 20), (double)total / (1 << 20));
}

static kd_status cuda_zero(kd_backend *base, void *dst, size_t bytes, kd_err *err) {
    kd_cuda *b = kd_cuda_use(base);
    return bytes == 0 ? KD_OK : kd_cuda_check(cudaMemsetAsync(dst, 0, bytes, b->stream), "cuda: zeroing memory", err);
}

static kd_status cuda_memory(kd_backend *base, size_t *left, size_t *total, kd_err *err) {
    kd_cuda_use(base);
    return kd_cuda_check(cudaMemGetInfo(left, total), "cuda: asking for the device's memory", err);
}

static kd_status cuda_alloc(kd_backend *base, void **out, size_t bytes, kd_err *err) {
    kd_cuda *b = kd_cuda_use(base);
    *out = NULL;
    cudaError_t status = cudaMalloc(out, bytes > 0 ? bytes : 1);
    if (status == cudaErrorMemoryAllocation)
        return out_of_memory(b, bytes, err);
    KD_TRY(kd_cuda_check(status, "cuda: allocating memory", err));
    return cuda_zero(base, *out, bytes, err);
}

static void cuda_release(kd_backend *base, void *p) {
    kd_cuda_use(base);
    if (p != NULL)
        cudaFree(p);
}

static kd_status cuda_upload(kd_backend *base, void *dst, const void *src, size_t bytes, kd_err *err) {
    return kd_transfer_upload(kd_cuda_use(base)->transfer, dst, src, bytes, err);
}

static kd_status cuda_download(kd_backend *base, void *dst, const void *src, size_t bytes, kd_err *err) {
    return kd_transfer_download(kd_cuda_use(base)->transfer, dst, src, bytes, err);
}

static kd_status cuda_sync(kd_backend *base, kd_err *err) {
    kd_cuda *b = kd_cuda_use(base);
    return kd_cuda_check(cudaStreamSynchronize(b->stream), "cuda: the queued work", err);
}

static kd_status cuda_fetch_create(kd_backend *base, kd_fetch **out, size_t capacity, kd_err *err) {
    return kd_transfer_fetch_create(kd_cuda_use(base)->transfer, out, capacity, err);
}

static void cuda_fetch_destroy(kd_backend *base, kd_fetch *f) {
    kd_transfer_fetch_destroy(kd_cuda_use(base)->transfer, f);
}

static kd_status cuda_fetch_begin(kd_backend *base, kd_fetch *f, const void *src, size_t bytes, kd_err *err) {
    return kd_transfer_fetch_begin(kd_cuda_use(base)->transfer, f, src, bytes, err);
}

static kd_status cuda_fetch_end(kd_backend *base, kd_fetch *f, const void **data, kd_err *err) {
    return kd_transfer_fetch_end(kd_cuda_use(base)->transfer, f, data, err);
}

/* ---- recorded sequences ---- */

struct kd_recording {
    cudaGraphExec_t exec;
};

static kd_status cuda_record_begin(kd_backend *base, kd_err *err) {
    kd_cuda *b = kd_cuda_use(base);
    return kd_cuda_check(cudaStreamBeginCapture(b->stream, cudaStreamCaptureModeThreadLocal), "cuda: beginning a recording", err);
}

static kd_status instantiate(kd_recording **out, cudaGraph_t graph, kd_err *err) {
    kd_recording *r = NULL;
    KD_TRY(kd_alloc_array(&r, 1, sizeof *r, err));
    kd_status status = kd_cuda_check(cudaGraphInstantiateWithFlags(&r->exec, graph, 0), "cuda: preparing a recording", err);
    if (status != KD_OK) {
        kd_free(r);
        return status;
    }
    *out = r;
    return KD_OK;
}

static kd_status cuda_record_end(kd_backend *base, kd_recording **out, kd_err *err) {
    kd_cuda *b = kd_cuda_use(base);
    cudaGraph_t graph = NULL;
    kd_status status = kd_cuda_check(cudaStreamEndCapture(b->stream, &graph), "cuda: ending a recording", err);
    if (status == KD_OK && out != NULL)
        status = instantiate(out, graph, err);
    if (graph != NULL)
        cudaGraphDestroy(graph);
    return status;
}

static kd_status cuda_replay(kd_backend *base, kd_recording *r, kd_err *err) {
    kd_cuda *b = kd_cuda_use(base);
    return kd_cuda_check(cudaGraphLaunch(r->exec, b->stream), "cuda: a recorded sequence", err);
}

static void cuda_recording_destroy(kd_backend *base, kd_recording *r) {
    kd_cuda_use(base);
    if (r != NULL)
        cudaGraphExecDestroy(r->exec);
    kd_free(r);
}

/* ---- ops ---- */

static void cuda_op_destroy(kd_backend *base, kd_op *op) {
    kd_cuda_use(base);
    if (op && op->kind->destroy)
        op->kind->destroy(op->impl);
    kd_free(op);
}

static kd_status cuda_op_create(kd_backend *base, kd_op **out, const kd_op_desc *desc, kd_op_needs *needs, kd_err *err) {
    kd_cuda *b = kd_cuda_use(base);
    kd_op_check(desc);
    kd_op *op = NULL;
    KD_TRY(kd_alloc_array(&op, 1, sizeof *op, err));
    op->desc = *desc;
    op->kind = kind_of(desc->kind);
    *needs = (kd_op_needs){.unread = kd_op_unread(desc)};
    kd_status status = op->kind->create ? op->kind->create(b, op, needs, err) : KD_OK;
    if (status != KD_OK) {
        cuda_op_destroy(base, op);
        return status;
    }
    op->desc.name = NULL; /* the caller's string may not live as long */
    *out = op;
    return KD_OK;
}

static kd_status cuda_op_pack(kd_backend *b, kd_op *op, const kd_op_args *args, kd_err *err) {
    return op->kind->pack ? op->kind->pack(kd_cuda_use(b), op, args, err) : KD_OK;
}

static kd_status cuda_op_forward(kd_backend *b, kd_op *op, const kd_op_args *args, kd_err *err) {
    return op->kind->forward(kd_cuda_use(b), op, args, err);
}

static kd_status cuda_op_backward(kd_backend *b, kd_op *op, const kd_op_args *args, kd_err *err) {
    KD_ASSERT(op->desc.train && op->kind->backward);
    return op->kind->backward(kd_cuda_use(b), op, args, err);
}

static const kd_backend_table table = {
    .abi = KD_BACKEND_ABI,
    .name = "cuda",
    .host_memory = 0,
    .devices = cuda_devices,
    .open = cuda_open,
    .close = cuda_close,
    .describe = cuda_describe,
    .check_bf16 = cuda_check_bf16,
    .memory = cuda_memory,
    .alloc = cuda_alloc,
    .release = cuda_release,
    .upload = cuda_upload,
    .download = cuda_download,
    .zero = cuda_zero,
    .sync = cuda_sync,
    .fetch_create = cuda_fetch_create,
    .fetch_destroy = cuda_fetch_destroy,
    .fetch_begin = cuda_fetch_begin,
    .fetch_end = cuda_fetch_end,
    .record_begin = cuda_record_begin,
    .record_end = cuda_record_end,
    .replay = cuda_replay,
    .recording_destroy = cuda_recording_destroy,
    .op_create = cuda_op_create,
    .op_destroy = cuda_op_destroy,
    .op_pack = cuda_op_pack,
    .op_forward = cuda_op_forward,
    .op_backward = cuda_op_backward,
    .sum_squares = kd_cuda_sum_squares,
    .clip_scale = kd_cuda_clip_scale,
    .adamw = kd_cuda_adamw,
    .sgd = kd_cuda_sgd,
    .lars = kd_cuda_lars,
    .ema = kd_cuda_ema,
    .encode = kd_cuda_encode,
};

const kd_backend_table *kd_backend_table_get(void); /* KD_BACKEND_ENTRY_NAME */
const kd_backend_table *kd_backend_table_get(void) {
    return &table;
}

/* cuBLASLt knows column-major matrices. A row-major matrix is its transpose there, in the same memory, and c^T = op(b)^T op(a)^T: so b is cuBLASLt's first operand, a the second, n its rows and m its
 * columns, and a bias over n is its bias over rows. */
#include "kernels/cuda/gemm.h"

#include <cublasLt.h>

struct kd_gemm_library {
    cublasLtHandle_t handle;
};

struct kd_gemm {
    char name[80];
    cublasLtMatmulDesc_t op;
    cublasLtMatrixLayout_t a, b, c; /* of the desc's a, b, c */
    cublasLtMatmulAlgo_t algo;
    size_t workspace;
    uint32_t align_a, align_b, align_c; /* bytes */
    float alpha, beta;
    int bias;
};

/* cuBLASLt's workspaces lie at multiples of 256 bytes, scratch at multiples of 64. MOST_ALIGN is the most that any of its kernels asks of an operand. */
enum { WORKSPACE_ALIGN = 256, SCRATCH_ALIGN = 64, MOST_ALIGN = 16 };

static kd_status check(cublasStatus_t status, const char *name, const char *what, kd_err *err) {
    if (status == CUBLAS_STATUS_SUCCESS)
        return KD_OK;
    return kd_fail(err, KD_EFAIL, "%s: cuBLASLt: %s failed: %s", name, what, cublasLtGetStatusString(status));
}

/* ---- the library ---- */

kd_status kd_gemm_library_create(kd_gemm_library **out, kd_err *err) {
    kd_gemm_library *l = NULL;
    KD_TRY(kd_alloc_array(&l, 1, sizeof *l, err));
    cublasStatus_t status = cublasLtCreate(&l->handle);
    if (status != CUBLAS_STATUS_SUCCESS) {
        kd_free(l);
        return kd_fail(err, KD_ENODEVICE, "cuBLASLt doesn't start on this device: %s; is its memory taken by something else", cublasLtGetStatusString(status));
    }
    *out = l;
    return KD_OK;
}

void kd_gemm_library_destroy(kd_gemm_library *l) {
    if (l)
        cublasLtDestroy(l->handle);
    kd_free(l);
}

void kd_gemm_library_version(const kd_gemm_library *l, int *major, int *minor, int *patch) {
    (void)l;
    *major = *minor = *patch = 0;
    cublasLtGetProperty(MAJOR_VERSION, major);
    cublasLtGetProperty(MINOR_VERSION, minor);
    cublasLtGetProperty(PATCH_LEVEL, patch);
}

/* ---- what a product is ---- */

static cudaDataType_t type_of(kd_dtype t) {
    KD_ASSERT(t == KD_F32 || t == KD_BF16);
    return t == KD_BF16 ? CUDA_R_16BF : CUDA_R_32F;
}

/* A row-major operand [rows, cols]. */
typedef struct operand {
    kd_dtype type;
    int64_t rows, cols, ld, batch, stride;
} operand;

static operand operand_of(kd_dtype type, int64_t rows, int64_t cols, int64_t ld, int64_t batch, int64_t stride) {
    operand o = {type, rows, cols, ld ? ld : cols, batch ? batch : 1, stride};
    KD_ASSERT(rows > 0 && cols > 0 && o.ld >= cols && o.batch > 0 && o.batch <= INT32_MAX && stride >= 0);
    return o;
}

/* What every row of every batch begins at a multiple of, when the first one does. */
static uint32_t alignment_of(operand o) {
    uint64_t bytes = (uint64_t)o.ld * kd_dtype_size(o.type);
    if (o.batch > 1)
        bytes |= (uint64_t)o.stride * kd_dtype_size(o.type);
    uint32_t align = MOST_ALIGN;
    while (bytes % align)
        align /= 2;
    return align;
}

static cublasStatus_t create_layout(cublasLtMatrixLayout_t *out, operand o) {
    int32_t batch = (int32_t)o.batch;
    cublasStatus_t status = cublasLtMatrixLayoutCreate(out, type_of(o.type), (uint64_t)o.cols, (uint64_t)o.rows, o.ld);
    if (status == CUBLAS_STATUS_SUCCESS && batch > 1)
        status = cublasLtMatrixLayoutSetAttribute(*out, CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, &batch, sizeof batch);
    if (status == CUBLAS_STATUS_SUCCESS && batch > 1)
        status = cublasLtMatrixLayoutSetAttribute(*out, CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET, &o.stride, sizeof o.stride);
    return status;
}

static cublasStatus_t set_bias(kd_gemm *g, const void *bias) {
    return cublasLtMatmulDescSetAttribute(g->op, CUBLASLT_MATMUL_DESC_BIAS_POINTER, &bias, sizeof bias);
}

static cublasStatus_t create_op(kd_gemm *g, const kd_gemm_desc *d) {
    cublasOperation_t first = d->trans_b ? CUBLAS_OP_T : CUBLAS_OP_N, second = d->trans_a ? CUBLAS_OP_T : CUBLAS_OP_N;
    cublasLtEpilogue_t epilogue = d->bias ? (d->relu ? CUBLASLT_EPILOGUE_RELU_BIAS : CUBLASLT_EPILOGUE_BIAS) : d->relu ? CUBLASLT_EPILOGUE_RELU : CUBLASLT_EPILOGUE_DEFAULT;
    cublasStatus_t status = cublasLtMatmulDescCreate(&g->op, CUBLAS_COMPUTE_32F, CUDA_R_32F);
    if (status == CUBLAS_STATUS_SUCCESS)
        status = cublasLtMatmulDescSetAttribute(g->op, CUBLASLT_MATMUL_DESC_TRANSA, &first, sizeof first);
    if (status == CUBLAS_STATUS_SUCCESS)
        status = cublasLtMatmulDescSetAttribute(g->op, CUBLASLT_MATMUL_DESC_TRANSB, &second, sizeof second);
    if (status == CUBLAS_STATUS_SUCCESS)
        status = cublasLtMatmulDescSetAttribute(g->op, CUBLASLT_MATMUL_DESC_EPILOGUE, &epilogue, sizeof epilogue);
    if (status == CUBLAS_STATUS_SUCCESS && d->bias)
        status = set_bias(g, (const void *)(uintptr_t)MOST_ALIGN); /* the heuristic reads the alignment off the address, and takes NULL for a missing bias */
    return status;
}

/* ---- the algorithm ---- */

/* cuBLAS's own sizes: kernels from Hopper on want more. */
static kd_status most_workspace(const kd_cuda *b, uint64_t *bytes, kd_err *err) {
    int major = 0;
    KD_TRY(kd_cuda_check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, b->ordinal), "cuda: asking what the device is", err));
    *bytes = (uint64_t)(major >= 9 ? 32 : 4) << 20;
    return KD_OK;
}

/* Products whose k is cut into parts may only add those up in f32, in a step of their own: sums in bf16 would lose bits. */
static cublasStatus_t create_preference(cublasLtMatmulPreference_t *out, const kd_gemm *g, uint64_t workspace) {
    uint32_t reductions = CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE;
    const struct {
        cublasLtMatmulPreferenceAttributes_t attribute;
        const void *value;
        size_t size;
    } wish[] = {
        {CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &workspace, sizeof workspace},
        {CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, &reductions, sizeof reductions},
        {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, &g->align_b, sizeof g->align_b},
        {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, &g->align_a, sizeof g->align_a},
        {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, &g->align_c, sizeof g->align_c},
        {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, &g->align_c, sizeof g->align_c},
    };
    cublasStatus_t status = cublasLtMatmulPreferenceCreate(out);
    for (size_t i = 0; i < sizeof wish / sizeof *wish && status == CUBLAS_STATUS_SUCCESS; i++)
        status = cublasLtMatmulPreferenceSetAttribute(*out, wish[i].attribute, wish[i].value, wish[i].size);
    return status;
}

static kd_status no_algorithm(const kd_gemm *g, const kd_gemm_desc *d, cublasStatus_t status, kd_err *err) {
    return kd_fail(err, KD_EFAIL, "%s: cuBLASLt has no algorithm for %s[%lld,%lld]%s x %s[%lld,%lld]%s = %s[%lld,%lld]%s%s, batch %lld: %s", g->name, kd_dtype_name(d->ab), (long long)d->m,
                   (long long)d->k, d->trans_a ? " (transposed)" : "", kd_dtype_name(d->ab), (long long)d->k, (long long)d->n, d->trans_b ? " (transposed)" : "", kd_dtype_name(d->c),
                   (long long)d->m, (long long)d->n, d->bias ? " + bias" : "", d->relu ? ", ReLU" : "", (long long)(d->batch ? d->batch : 1), cublasLtGetStatusString(status));
}

static kd_status choose(kd_cuda *b, kd_gemm *g, const kd_gemm_desc *d, kd_err *err) {
    uint64_t workspace = 0;
    int found = 0;
    cublasLtMatmulPreference_t preference = NULL;
    cublasLtMatmulHeuristicResult_t result = {.state = CUBLAS_STATUS_NOT_SUPPORTED};
    KD_TRY(most_workspace(b, &workspace, err));
    cublasStatus_t status = create_preference(&preference, g, workspace);
    if (status == CUBLAS_STATUS_SUCCESS)
        status = cublasLtMatmulAlgoGetHeuristic(b->gemm->handle, g->op, g->b, g->a, g->c, g->c, preference, 1, &result, &found);
    if (preference)
        cublasLtMatmulPreferenceDestroy(preference);
    if (status != CUBLAS_STATUS_SUCCESS || found == 0 || result.state != CUBLAS_STATUS_SUCCESS)
        return no_algorithm(g, d, status != CUBLAS_STATUS_SUCCESS ? status : result.state, err);
    g->algo = result.algo;
    g->workspace = result.workspaceSize;
    return KD_OK;
}

/* ---- kd_gemm ---- */

static kd_status prepare(kd_cuda *b, kd_gemm *g, const kd_gemm_desc *d, kd_err *err) {
    operand a = operand_of(d->ab, d->trans_a ? d->k : d->m, d->trans_a ? d->m : d->k, d->lda, d->batch, d->stride_a);
    operand bm = operand_of(d->ab, d->trans_b ? d->n : d->k, d->trans_b ? d->k : d->n, d->ldb, d->batch, d->stride_b);
    operand c = operand_of(d->c, d->m, d->n, d->ldc, d->batch, d->stride_c);
    KD_ASSERT(d->c == KD_F32 || d->ab == KD_BF16);
    KD_ASSERT(c.batch == 1 || c.stride > 0);
    snprintf(g->name, sizeof g->name, "%s", d->name ? d->name : "matrix product");
    g->align_a = alignment_of(a);
    g->align_b = alignment_of(bm);
    g->align_c = alignment_of(c);
    g->alpha = d->alpha != 0 ? d->alpha : 1;
    g->beta = d->accumulate ? 1 : 0;
    g->bias = d->bias;
    KD_TRY(check(create_layout(&g->a, a), g->name, "describing a matrix", err));
    KD_TRY(check(create_layout(&g->b, bm), g->name, "describing a matrix", err));
    KD_TRY(check(create_layout(&g->c, c), g->name, "describing a matrix", err));
    KD_TRY(check(create_op(g, d), g->name, "describing a product", err));
    return choose(b, g, d, err);
}

kd_status kd_gemm_create(kd_cuda *b, kd_gemm **out, const kd_gemm_desc *desc, size_t *scratch, kd_err *err) {
    kd_gemm *g = NULL;
    KD_TRY(kd_alloc_array(&g, 1, sizeof *g, err));
    kd_status status = prepare(b, g, desc, err);
    if (status != KD_OK) {
        kd_gemm_destroy(g);
        return status;
    }
    *scratch = g->workspace > 0 ? g->workspace + WORKSPACE_ALIGN - SCRATCH_ALIGN : 0;
    *out = g;
    return KD_OK;
}

void kd_gemm_destroy(kd_gemm *g) {
    if (!g)
        return;
    if (g->op)
        cublasLtMatmulDescDestroy(g->op);
    cublasLtMatrixLayout_t const layouts[] = {g->a, g->b, g->c};
    for (size_t i = 0; i < sizeof layouts / sizeof *layouts; i++)
        if (layouts[i])
            cublasLtMatrixLayoutDestroy(layouts[i]);
    kd_free(g);
}

static int lies_at(const void *p, uint32_t align) {
    return p != NULL && (uintptr_t)p % align == 0;
}

kd_status kd_gemm_run_onto(kd_cuda *b, kd_gemm *g, void *c, const void *onto, const void *a, const void *bm, const void *bias, void *scratch, kd_err *err) {
    KD_ASSERT(lies_at(c, g->align_c) && lies_at(onto, g->align_c) && lies_at(a, g->align_a) && lies_at(bm, g->align_b));
    KD_ASSERT(g->bias ? lies_at(bias, MOST_ALIGN) : bias == NULL);
    KD_ASSERT(onto == c || g->beta != 0);
    void *workspace = g->workspace > 0 ? (void *)(((uintptr_t)scratch + WORKSPACE_ALIGN - 1) / WORKSPACE_ALIGN * WORKSPACE_ALIGN) : NULL;
    if (g->bias)
        KD_TRY(check(set_bias(g, bias), g->name, "giving the bias", err));
    return check(cublasLtMatmul(b->gemm->handle, g->op, &g->alpha, bm, g->b, a, g->a, &g->beta, onto, g->c, c, g->c, &g->algo, workspace, g->workspace, b->stream), g->name, "a matrix product", err);
}

kd_status kd_gemm_run(kd_cuda *b, kd_gemm *g, void *c, const void *a, const void *bm, const void *bias, void *scratch, kd_err *err) {
    return kd_gemm_run_onto(b, g, c, c, a, bm, bias, scratch, err);
}

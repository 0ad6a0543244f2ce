/* cuBLASLt on the emulated device: column-major, sums in f32 one product after the other, as the library's kernels without tensor cores add. See cublasLt.h. */
#include "cublasLt.h"

#include <cstdlib>
#include <cstring>
#include <vector>

#include "cuda_bf16.h"

struct cublasLtContext {
    int alive;
};
struct kd_emulated_layout {
    cudaDataType_t type;
    uint64_t rows, cols;
    int64_t ld;
    int32_t batch;
    int64_t stride;
};
struct kd_emulated_product {
    cublasComputeType_t compute;
    cudaDataType_t scale;
    cublasOperation_t trans_a, trans_b;
    cublasLtEpilogue_t epilogue;
    const void *bias;
    int32_t bias_type; /* -1: the result's */
};
struct kd_emulated_preference {
    uint64_t workspace;
    uint32_t reductions, align[4]; /* of a, b, c, d */
};

/* ---- the library ---- */

extern "C" cublasStatus_t cublasLtCreate(cublasLtHandle_t *out) {
    *out = new cublasLtContext{1};
    return CUBLAS_STATUS_SUCCESS;
}

extern "C" cublasStatus_t cublasLtDestroy(cublasLtHandle_t h) {
    delete h;
    return CUBLAS_STATUS_SUCCESS;
}

extern "C" cublasStatus_t cublasLtGetProperty(libraryPropertyType which, int *value) {
    *value = which == MAJOR_VERSION ? 13 : 0;
    return CUBLAS_STATUS_SUCCESS;
}

extern "C" const char *cublasLtGetStatusString(cublasStatus_t status) {
    static const char *const names[] = {"success", "not initialized", "allocation failed", "invalid value", "not supported"};
    return names[status];
}

/* ---- descriptions ---- */

template <class T> static cublasStatus_t take(T *field, const void *value, size_t bytes) {
    if (!value || bytes != sizeof *field)
        return CUBLAS_STATUS_INVALID_VALUE;
    memcpy(field, value, bytes);
    return CUBLAS_STATUS_SUCCESS;
}

extern "C" cublasStatus_t cublasLtMatrixLayoutCreate(cublasLtMatrixLayout_t *out, cudaDataType_t type, uint64_t rows, uint64_t cols, int64_t ld) {
    *out = new kd_emulated_layout{type, rows, cols, ld, 1, 0};
    return CUBLAS_STATUS_SUCCESS;
}

extern "C" cublasStatus_t cublasLtMatrixLayoutSetAttribute(cublasLtMatrixLayout_t l, cublasLtMatrixLayoutAttribute_t attribute, const void *value, size_t bytes) {
    switch (attribute) {
    case CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT: return take(&l->batch, value, bytes);
    case CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET: return take(&l->stride, value, bytes);
    }
    return CUBLAS_STATUS_INVALID_VALUE;
}

extern "C" cublasStatus_t cublasLtMatrixLayoutDestroy(cublasLtMatrixLayout_t l) {
    delete l;
    return CUBLAS_STATUS_SUCCESS;
}

extern "C" cublasStatus_t cublasLtMatmulDescCreate(cublasLtMatmulDesc_t *out, cublasComputeType_t compute, cudaDataType_t scale) {
    *out = new kd_emulated_product{compute, scale, CUBLAS_OP_N, CUBLAS_OP_N, CUBLASLT_EPILOGUE_DEFAULT, nullptr, -1};
    return CUBLAS_STATUS_SUCCESS;
}

extern "C" cublasStatus_t cublasLtMatmulDescSetAttribute(cublasLtMatmulDesc_t d, cublasLtMatmulDescAttributes_t attribute, const void *value, size_t bytes) {
    switch (attribute) {
    case CUBLASLT_MATMUL_DESC_TRANSA: return take(&d->trans_a, value, bytes);
    case CUBLASLT_MATMUL_DESC_TRANSB: return take(&d->trans_b, value, bytes);
    case CUBLASLT_MATMUL_DESC_EPILOGUE: return take(&d->epilogue, value, bytes);
    case CUBLASLT_MATMUL_DESC_BIAS_POINTER: return take(&d->bias, value, bytes);
    case CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE: return take(&d->bias_type, value, bytes);
    }
    return CUBLAS_STATUS_INVALID_VALUE;
}

extern "C" cublasStatus_t cublasLtMatmulDescDestroy(cublasLtMatmulDesc_t d) {
    delete d;
    return CUBLAS_STATUS_SUCCESS;
}

extern "C" cublasStatus_t cublasLtMatmulPreferenceCreate(cublasLtMatmulPreference_t *out) {
    *out = new kd_emulated_preference{0, 7, {256, 256, 256, 256}};
    return CUBLAS_STATUS_SUCCESS;
}

extern "C" cublasStatus_t cublasLtMatmulPreferenceSetAttribute(cublasLtMatmulPreference_t p, cublasLtMatmulPreferenceAttributes_t attribute, const void *value, size_t bytes) {
    switch (attribute) {
    case CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES: return take(&p->workspace, value, bytes);
    case CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK: return take(&p->reductions, value, bytes);
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES: return take(&p->align[0], value, bytes);
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES: return take(&p->align[1], value, bytes);
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES: return take(&p->align[2], value, bytes);
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES: return take(&p->align[3], value, bytes);
    }
    return CUBLAS_STATUS_INVALID_VALUE;
}

extern "C" cublasStatus_t cublasLtMatmulPreferenceDestroy(cublasLtMatmulPreference_t p) {
    delete p;
    return CUBLAS_STATUS_SUCCESS;
}

/* ---- what can be multiplied ---- */

static size_t size_of(cudaDataType_t type) {
    return type == CUDA_R_16BF ? 2 : 4;
}

static bool valid(const kd_emulated_layout *l) {
    return l && (l->type == CUDA_R_32F || l->type == CUDA_R_16BF) && l->rows > 0 && l->cols > 0 && l->rows <= INT32_MAX && l->cols <= INT32_MAX && l->ld >= (int64_t)l->rows && l->batch > 0 &&
           l->stride >= 0;
}

static bool same(const kd_emulated_layout *a, const kd_emulated_layout *b) {
    return a->type == b->type && a->rows == b->rows && a->cols == b->cols && a->ld == b->ld && a->batch == b->batch && a->stride == b->stride;
}

static cublasStatus_t check_product(const kd_emulated_product *d, const kd_emulated_layout *a, const kd_emulated_layout *b, const kd_emulated_layout *c, const kd_emulated_layout *out) {
    if (!d || !valid(a) || !valid(b) || !valid(c) || !valid(out))
        return CUBLAS_STATUS_INVALID_VALUE;
    uint64_t m = d->trans_a == CUBLAS_OP_T ? a->cols : a->rows, k = d->trans_a == CUBLAS_OP_T ? a->rows : a->cols;
    uint64_t n = d->trans_b == CUBLAS_OP_T ? b->rows : b->cols, k_of_b = d->trans_b == CUBLAS_OP_T ? b->cols : b->rows;
    if (k != k_of_b || out->rows != m || out->cols != n || a->batch != out->batch || b->batch != out->batch || !same(c, out) || (out->batch > 1 && out->stride == 0))
        return CUBLAS_STATUS_INVALID_VALUE;
    if ((d->epilogue & CUBLASLT_EPILOGUE_BIAS) && !d->bias)
        return CUBLAS_STATUS_INVALID_VALUE;
    if (d->compute != CUBLAS_COMPUTE_32F || d->scale != CUDA_R_32F || a->type != b->type || (out->type == CUDA_R_16BF && a->type != CUDA_R_16BF))
        return CUBLAS_STATUS_NOT_SUPPORTED;
    if (d->bias_type != -1 && d->bias_type != (int32_t)out->type)
        return CUBLAS_STATUS_NOT_SUPPORTED;
    if (d->epilogue != CUBLASLT_EPILOGUE_DEFAULT && d->epilogue != CUBLASLT_EPILOGUE_RELU && d->epilogue != CUBLASLT_EPILOGUE_BIAS && d->epilogue != CUBLASLT_EPILOGUE_RELU_BIAS)
        return CUBLAS_STATUS_NOT_SUPPORTED;
    return CUBLAS_STATUS_SUCCESS;
}

/* Which product an algorithm is for. */
static uint64_t fingerprint(const kd_emulated_product *d, const kd_emulated_layout *a, const kd_emulated_layout *b, const kd_emulated_layout *out) {
    uint64_t h = 14695981039346656037u;
    auto mix = [&h](uint64_t v) { h = (h ^ v) * 1099511628211u; };
    mix((uint64_t)d->trans_a), mix((uint64_t)d->trans_b), mix((uint64_t)d->epilogue);
    for (const kd_emulated_layout *l : {a, b, out})
        mix((uint64_t)l->type), mix(l->rows), mix(l->cols), mix((uint64_t)l->ld), mix((uint64_t)l->batch), mix((uint64_t)l->stride);
    return h;
}

static const size_t WORKSPACE = 1000; /* no multiple of anything */

extern "C" cublasStatus_t cublasLtMatmulAlgoGetHeuristic(cublasLtHandle_t h, cublasLtMatmulDesc_t d, cublasLtMatrixLayout_t a, cublasLtMatrixLayout_t b, cublasLtMatrixLayout_t c,
                                                         cublasLtMatrixLayout_t out, cublasLtMatmulPreference_t p, int wanted, cublasLtMatmulHeuristicResult_t *results, int *found) {
    *found = 0;
    if (!h || !p || wanted < 1)
        return CUBLAS_STATUS_INVALID_VALUE;
    for (uint32_t align : p->align)
        if (align == 0 || (align & (align - 1)) != 0)
            return CUBLAS_STATUS_INVALID_VALUE;
    cublasStatus_t status = check_product(d, a, b, c, out);
    if (status != CUBLAS_STATUS_SUCCESS)
        return status;
    if (p->align[0] < size_of(a->type) || p->align[1] < size_of(b->type) || p->align[2] < size_of(c->type) || p->align[3] < size_of(out->type) || kd_emulator_fault("no-gemm"))
        return CUBLAS_STATUS_NOT_SUPPORTED;
    results[0] = cublasLtMatmulHeuristicResult_t{{{fingerprint(d, a, b, out), p->align[0], p->align[1], p->align[2], p->align[3]}}, p->workspace < WORKSPACE ? 0 : WORKSPACE, CUBLAS_STATUS_SUCCESS};
    results[0].algo.data[5] = results[0].workspaceSize;
    *found = 1;
    return CUBLAS_STATUS_SUCCESS;
}

/* ---- the product ---- */

static float load(const void *p, cudaDataType_t type, size_t i) {
    return type == CUDA_R_16BF ? __bfloat162float(((const __nv_bfloat16 *)p)[i]) : ((const float *)p)[i];
}

static void store(void *p, cudaDataType_t type, size_t i, float v) {
    if (type == CUDA_R_16BF)
        ((__nv_bfloat16 *)p)[i] = __float2bfloat16_rn(v);
    else
        ((float *)p)[i] = v;
}

struct product_call {
    kd_emulated_product d;
    kd_emulated_layout la, lb, lout;
    float alpha, beta;
    const void *a, *b, *c;
    void *out;
};

/* op(x) of one batch as rows of `inner` values: [outer, inner]. */
static std::vector<float> gather(const void *p, const kd_emulated_layout &l, size_t batch, bool rows_outside) {
    size_t outer = rows_outside ? l.rows : l.cols, inner = rows_outside ? l.cols : l.rows, base = batch * (size_t)l.stride;
    std::vector<float> v(outer * inner);
    for (size_t o = 0; o < outer; o++)
        for (size_t i = 0; i < inner; i++)
            v[o * inner + i] = load(p, l.type, base + (rows_outside ? i * (size_t)l.ld + o : o * (size_t)l.ld + i));
    return v;
}

static void multiply(const product_call &p, size_t batch) {
    size_t m = p.lout.rows, n = p.lout.cols, k = p.d.trans_a == CUBLAS_OP_T ? p.la.rows : p.la.cols;
    std::vector<float> a = gather(p.a, p.la, batch, p.d.trans_a == CUBLAS_OP_T), b = gather(p.b, p.lb, batch, p.d.trans_b == CUBLAS_OP_T); /* a as [k,m], b as [n,k] */
    std::vector<float> column(m);
    for (size_t j = 0; j < n; j++) {
        std::fill(column.begin(), column.end(), 0.0f);
        for (size_t l = 0; l < k; l++)
            for (size_t i = 0; i < m; i++)
                column[i] = (float)((double)a[l * m + i] * (double)b[j * k + l] + (double)column[i]);
        for (size_t i = 0; i < m; i++) {
            size_t at = batch * (size_t)p.lout.stride + j * (size_t)p.lout.ld + i;
            float v = p.alpha * column[i];
            if (p.beta != 0)
                v += p.beta * load(p.c, p.lout.type, at);
            if (p.d.epilogue & CUBLASLT_EPILOGUE_BIAS)
                v += load(p.d.bias, p.lout.type, i);
            if (p.d.epilogue & CUBLASLT_EPILOGUE_RELU)
                v = v > 0 || v != v ? v : 0.0f;
            store(p.out, p.lout.type, at, v);
        }
    }
}

static size_t span(const kd_emulated_layout *l) {
    return ((size_t)(l->batch - 1) * (size_t)l->stride + (l->cols - 1) * (size_t)l->ld + l->rows) * size_of(l->type);
}

static bool overlap(const void *a, size_t a_bytes, const void *b, size_t b_bytes) {
    return (const char *)a < (const char *)b + b_bytes && (const char *)b < (const char *)a + a_bytes;
}

static bool aligned(const void *p, uint64_t to) {
    return p && (uintptr_t)p % to == 0;
}

extern "C" cublasStatus_t cublasLtMatmul(cublasLtHandle_t h, cublasLtMatmulDesc_t d, const void *alpha, const void *a, cublasLtMatrixLayout_t la, const void *b, cublasLtMatrixLayout_t lb,
                                         const void *beta, const void *c, cublasLtMatrixLayout_t lc, void *out, cublasLtMatrixLayout_t lout, const cublasLtMatmulAlgo_t *algo, void *workspace, size_t workspace_bytes,
                                         cudaStream_t stream) {
    cublasStatus_t status = h && algo ? check_product(d, la, lb, lc, lout) : CUBLAS_STATUS_INVALID_VALUE;
    if (status != CUBLAS_STATUS_SUCCESS)
        return status;
    if (algo->data[0] != fingerprint(d, la, lb, lout) || !aligned(a, algo->data[1]) || !aligned(b, algo->data[2]) || !aligned(c, algo->data[3]) || !aligned(out, algo->data[4]))
        return CUBLAS_STATUS_INVALID_VALUE;
    if (overlap(out, span(lout), a, span(la)) || overlap(out, span(lout), b, span(lb)))
        return CUBLAS_STATUS_INVALID_VALUE;
    if (algo->data[5] > workspace_bytes || (algo->data[5] > 0 && !aligned(workspace, 256)))
        return CUBLAS_STATUS_INVALID_VALUE;
    product_call p = {*d, *la, *lb, *lout, *(const float *)alpha, *(const float *)beta, a, b, c, out};
    kd_emulator_check_range(a, span(la), "cublasLtMatmul: A");
    kd_emulator_check_range(b, span(lb), "cublasLtMatmul: B");
    kd_emulator_check_range(out, span(lout), "cublasLtMatmul: D");
    if (p.beta != 0)
        kd_emulator_check_range(c, span(lc), "cublasLtMatmul: C");
    if (d->epilogue & CUBLASLT_EPILOGUE_BIAS)
        kd_emulator_check_range(d->bias, lout->rows * size_of(lout->type), "cublasLtMatmul: the bias");
    if (algo->data[5] > 0)
        kd_emulator_check_range(workspace, algo->data[5], "cublasLtMatmul: the workspace");
    size_t used = algo->data[5];
    cudaError_t queued = kd_emulator_enqueue(stream, [p, workspace, used] {
        if (used > 0)
            memset(workspace, 0xff, used);
        for (size_t i = 0; i < (size_t)p.lout.batch; i++)
            multiply(p, i);
    });
    return queued == cudaSuccess ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_NOT_INITIALIZED;
}

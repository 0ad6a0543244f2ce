/* Convolutions through cuDNN 9's backend API: a graph of one operation, an engine from the heuristic list, an execution plan. */
#include "kernels/cuda/cudnn_conv.h"

#include <cudnn.h>

struct kd_conv_library {
    cudnnHandle_t handle;
};

/* Every descriptor lives as long as those that name it. */
struct kd_conv {
    cudnnBackendDescriptor_t x, w, y, window, operation, graph, config, plan;
    kd_conv_pass pass;
    int64_t work; /* bytes */
};

/* Tensors of the graph go by these numbers. */
enum { ID_X = 1, ID_W = 2, ID_Y = 3 };

/* An engine that wants more is only taken where no other works: some copy whole operands into it, to have channels first, or more of them. */
static const int64_t WORK_LIMIT = (int64_t)512 << 20;

static kd_status check(cudnnStatus_t status, const char *name, const char *what, kd_err *err) {
    return status == CUDNN_STATUS_SUCCESS ? KD_OK : kd_fail(err, KD_EFAIL, "%s: cuDNN, %s: %s", name, what, cudnnGetErrorString(status));
}

/* ---- the library ---- */

kd_status kd_conv_library_create(kd_conv_library **out, kd_cuda *b, kd_err *err) {
    kd_conv_library *l = NULL;
    KD_TRY(kd_alloc_array(&l, 1, sizeof *l, err));
    cudnnStatus_t status = cudnnCreate(&l->handle);
    if (status == CUDNN_STATUS_SUCCESS)
        status = cudnnSetStream(l->handle, b->stream);
    if (status != CUDNN_STATUS_SUCCESS) {
        kd_conv_library_destroy(l);
        return kd_fail(err, KD_ENODEVICE, "cuDNN doesn't start on this device: %s; is its memory taken by something else", cudnnGetErrorString(status));
    }
    *out = l;
    return KD_OK;
}

void kd_conv_library_destroy(kd_conv_library *l) {
    if (l && l->handle)
        cudnnDestroy(l->handle);
    kd_free(l);
}

void kd_conv_library_version(int *major, int *minor, int *patch) {
    int version = (int)cudnnGetVersion();
    *major = version / 10000;
    *minor = version % 10000 / 100;
    *patch = version % 100;
}

/* ---- descriptors ---- */

typedef struct attribute {
    cudnnBackendAttributeName_t name;
    cudnnBackendAttributeType_t type;
    int64_t count;
    const void *values;
} attribute;

#define COUNT(a) (sizeof(a) / sizeof *(a))

static void release(cudnnBackendDescriptor_t *d) {
    if (*d)
        cudnnBackendDestroyDescriptor(*d);
    *d = NULL;
}

/* Creates, fills and finalizes a descriptor; none is left after a failure. */
static cudnnStatus_t make(cudnnBackendDescriptor_t *out, cudnnBackendDescriptorType_t type, const attribute *list, size_t count) {
    *out = NULL;
    cudnnStatus_t status = cudnnBackendCreateDescriptor(type, out);
    for (size_t i = 0; status == CUDNN_STATUS_SUCCESS && i < count; i++)
        status = cudnnBackendSetAttribute(*out, list[i].name, list[i].type, list[i].count, list[i].values);
    if (status == CUDNN_STATUS_SUCCESS)
        status = cudnnBackendFinalize(*out);
    if (status != CUDNN_STATUS_SUCCESS)
        release(out);
    return status;
}

static cudnnDataType_t type_of(kd_dtype t) {
    return t == KD_BF16 ? CUDNN_DATA_BFLOAT16 : CUDNN_DATA_FLOAT;
}

/* cuDNN names dimensions in the order N,C,H,W (of weights: O,I,kh,kw) whatever lies where; the strides say that channels come last. */
static cudnnStatus_t make_tensor(cudnnBackendDescriptor_t *out, int64_t id, kd_dtype dtype, const int64_t dim[4]) {
    int64_t stride[4] = {dim[1] * dim[2] * dim[3], 1, dim[1] * dim[3], dim[1]}, alignment = 16;
    cudnnDataType_t type = type_of(dtype);
    const attribute list[] = {
        {CUDNN_ATTR_TENSOR_DATA_TYPE, CUDNN_TYPE_DATA_TYPE, 1, &type},
        {CUDNN_ATTR_TENSOR_DIMENSIONS, CUDNN_TYPE_INT64, 4, dim},
        {CUDNN_ATTR_TENSOR_STRIDES, CUDNN_TYPE_INT64, 4, stride},
        {CUDNN_ATTR_TENSOR_UNIQUE_ID, CUDNN_TYPE_INT64, 1, &id},
        {CUDNN_ATTR_TENSOR_BYTE_ALIGNMENT, CUDNN_TYPE_INT64, 1, &alignment},
    };
    return make(out, CUDNN_BACKEND_TENSOR_DESCRIPTOR, list, COUNT(list));
}

static cudnnStatus_t make_window(cudnnBackendDescriptor_t *out, const kd_conv_desc *d) {
    cudnnDataType_t compute = CUDNN_DATA_FLOAT;
    cudnnConvolutionMode_t mode = CUDNN_CROSS_CORRELATION;
    int64_t dims = 2, pad[2] = {d->pad, d->pad}, stride[2] = {d->stride, d->stride}, dilation[2] = {1, 1};
    const attribute list[] = {
        {CUDNN_ATTR_CONVOLUTION_COMP_TYPE, CUDNN_TYPE_DATA_TYPE, 1, &compute},
        {CUDNN_ATTR_CONVOLUTION_CONV_MODE, CUDNN_TYPE_CONVOLUTION_MODE, 1, &mode},
        {CUDNN_ATTR_CONVOLUTION_SPATIAL_DIMS, CUDNN_TYPE_INT64, 1, &dims},
        {CUDNN_ATTR_CONVOLUTION_PRE_PADDINGS, CUDNN_TYPE_INT64, 2, pad},
        {CUDNN_ATTR_CONVOLUTION_POST_PADDINGS, CUDNN_TYPE_INT64, 2, pad},
        {CUDNN_ATTR_CONVOLUTION_FILTER_STRIDES, CUDNN_TYPE_INT64, 2, stride},
        {CUDNN_ATTR_CONVOLUTION_DILATIONS, CUDNN_TYPE_INT64, 2, dilation},
    };
    return make(out, CUDNN_BACKEND_CONVOLUTION_DESCRIPTOR, list, COUNT(list));
}

/* The three operations differ in their names alone. */
static const struct pass {
    const char *name;
    cudnnBackendDescriptorType_t type;
    cudnnBackendAttributeName_t x, w, y, window, alpha, beta;
} passes[] = {
    [KD_CONV_FORWARD] = {"forward pass", CUDNN_BACKEND_OPERATION_CONVOLUTION_FORWARD_DESCRIPTOR, CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_X, CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_W,
                         CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_Y, CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_CONV_DESC, CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_ALPHA,
                         CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_BETA},
    [KD_CONV_DATA] = {"gradient of the input", CUDNN_BACKEND_OPERATION_CONVOLUTION_BACKWARD_DATA_DESCRIPTOR, CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_DX,
                      CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_W, CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_DY, CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_CONV_DESC,
                      CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_ALPHA, CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_BETA},
    [KD_CONV_FILTER] = {"gradient of the weights", CUDNN_BACKEND_OPERATION_CONVOLUTION_BACKWARD_FILTER_DESCRIPTOR, CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_X,
                        CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_DW, CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_DY, CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_CONV_DESC,
                        CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_ALPHA, CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_BETA},
};

static cudnnStatus_t make_operation(kd_conv *c) {
    const struct pass *p = &passes[c->pass];
    float alpha = 1, beta = 0;
    const attribute list[] = {
        {p->x, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &c->x}, {p->w, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &c->w}, {p->y, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &c->y},
        {p->window, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &c->window}, {p->alpha, CUDNN_TYPE_FLOAT, 1, &alpha}, {p->beta, CUDNN_TYPE_FLOAT, 1, &beta},
    };
    return make(&c->operation, p->type, list, COUNT(list));
}

static int64_t window_out(int64_t size, const kd_conv_desc *d) {
    return (size + 2 * d->pad - d->kernel) / d->stride + 1;
}

static cudnnStatus_t make_graph(kd_conv *c, const kd_conv_desc *d, cudnnHandle_t handle) {
    /* Groups aren't said: they follow from the weights' input channels. */
    int64_t x[4] = {d->n, d->in, d->h, d->w}, w[4] = {d->out, d->in / d->groups, d->kernel, d->kernel}, y[4] = {d->n, d->out, window_out(d->h, d), window_out(d->w, d)};
    cudnnStatus_t status = make_tensor(&c->x, ID_X, d->type, x);
    if (status == CUDNN_STATUS_SUCCESS)
        status = make_tensor(&c->w, ID_W, d->type, w);
    if (status == CUDNN_STATUS_SUCCESS)
        status = make_tensor(&c->y, ID_Y, d->type, y);
    if (status == CUDNN_STATUS_SUCCESS)
        status = make_window(&c->window, d);
    if (status == CUDNN_STATUS_SUCCESS)
        status = make_operation(c);
    const attribute list[] = {{CUDNN_ATTR_OPERATIONGRAPH_HANDLE, CUDNN_TYPE_HANDLE, 1, &handle}, {CUDNN_ATTR_OPERATIONGRAPH_OPS, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &c->operation}};
    return status == CUDNN_STATUS_SUCCESS ? make(&c->graph, CUDNN_BACKEND_OPERATIONGRAPH_DESCRIPTOR, list, COUNT(list)) : status;
}

/* ---- the engine ---- */

/* Whether a note of an engine speaks against it. Transforms (FFT, Winograd) lose digits; on tensor cores f32 is TF32. */
static int objectionable(cudnnBackendNumericalNote_t note, kd_dtype type) {
    switch (note) {
    case CUDNN_NUMERICAL_NOTE_NONDETERMINISTIC:
    case CUDNN_NUMERICAL_NOTE_DOWN_CONVERT_INPUTS:
    case CUDNN_NUMERICAL_NOTE_REDUCED_PRECISION_REDUCTION:
    case CUDNN_NUMERICAL_NOTE_FFT:
    case CUDNN_NUMERICAL_NOTE_WINOGRAD:
    case CUDNN_NUMERICAL_NOTE_WINOGRAD_TILE_4x4:
    case CUDNN_NUMERICAL_NOTE_WINOGRAD_TILE_6x6:
    case CUDNN_NUMERICAL_NOTE_WINOGRAD_TILE_13x13: return 1;
    case CUDNN_NUMERICAL_NOTE_TENSOR_CORE: return type == KD_F32;
    default: return 0;
    }
}

static int acceptable(cudnnBackendDescriptor_t config, kd_dtype type) {
    enum { NOTES = CUDNN_NUMERICAL_NOTE_TYPE_COUNT };
    cudnnBackendNumericalNote_t note[NOTES];
    cudnnBackendDescriptor_t engine = NULL;
    int64_t count = 0;
    int good = cudnnBackendCreateDescriptor(CUDNN_BACKEND_ENGINE_DESCRIPTOR, &engine) == CUDNN_STATUS_SUCCESS &&
               cudnnBackendGetAttribute(config, CUDNN_ATTR_ENGINECFG_ENGINE, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &count, &engine) == CUDNN_STATUS_SUCCESS &&
               cudnnBackendGetAttribute(engine, CUDNN_ATTR_ENGINE_NUMERICAL_NOTE, CUDNN_TYPE_NUMERICAL_NOTE, NOTES, &count, note) == CUDNN_STATUS_SUCCESS && count <= NOTES;
    for (int64_t i = 0; good && i < count; i++)
        good = !objectionable(note[i], type);
    release(&engine);
    return good;
}

/* Takes the plan of *config if it can be built and wants less than what c has; then c has the config as well. */
static void try_config(kd_conv *c, cudnnBackendDescriptor_t *config, cudnnHandle_t handle) {
    cudnnBackendDescriptor_t plan = NULL;
    int64_t work = 0, count = 0;
    const attribute list[] = {{CUDNN_ATTR_EXECUTION_PLAN_HANDLE, CUDNN_TYPE_HANDLE, 1, &handle}, {CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, config}};
    if (make(&plan, CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR, list, COUNT(list)) != CUDNN_STATUS_SUCCESS)
        return;
    if (cudnnBackendGetAttribute(plan, CUDNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE, CUDNN_TYPE_INT64, 1, &count, &work) != CUDNN_STATUS_SUCCESS || (c->plan && work >= c->work)) {
        release(&plan);
        return;
    }
    release(&c->plan);
    release(&c->config);
    c->plan = plan;
    c->config = *config;
    c->work = work;
    *config = NULL;
}

static int settled(const kd_conv *c) {
    return c->plan && c->work <= WORK_LIMIT;
}

/* The engines that one kind of heuristics lists, best first. */
static kd_status try_engines(kd_conv *c, kd_dtype type, cudnnBackendHeurMode_t mode, cudnnHandle_t handle, kd_err *err) {
    cudnnBackendDescriptor_t heuristics = NULL, *config = NULL;
    int64_t count = 0;
    kd_status status = KD_OK;
    const attribute list[] = {{CUDNN_ATTR_ENGINEHEUR_OPERATION_GRAPH, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &c->graph}, {CUDNN_ATTR_ENGINEHEUR_MODE, CUDNN_TYPE_HEUR_MODE, 1, &mode}};
    if (make(&heuristics, CUDNN_BACKEND_ENGINEHEUR_DESCRIPTOR, list, COUNT(list)) != CUDNN_STATUS_SUCCESS)
        return KD_OK; /* an empty list is told like this, too */
    if (cudnnBackendGetAttribute(heuristics, CUDNN_ATTR_ENGINEHEUR_RESULTS, CUDNN_TYPE_BACKEND_DESCRIPTOR, 0, &count, NULL) != CUDNN_STATUS_SUCCESS)
        count = 0;
    if (count > 0)
        status = kd_alloc_array(&config, (size_t)count, sizeof *config, err);
    int64_t made = 0, got = 0;
    while (status == KD_OK && made < count && cudnnBackendCreateDescriptor(CUDNN_BACKEND_ENGINECFG_DESCRIPTOR, &config[made]) == CUDNN_STATUS_SUCCESS)
        made++;
    if (made > 0 && cudnnBackendGetAttribute(heuristics, CUDNN_ATTR_ENGINEHEUR_RESULTS, CUDNN_TYPE_BACKEND_DESCRIPTOR, made, &got, config) != CUDNN_STATUS_SUCCESS)
        got = 0;
    for (int64_t i = 0; i < got && i < made && !settled(c); i++)
        if (acceptable(config[i], type))
            try_config(c, &config[i], handle);
    for (int64_t i = 0; i < made; i++)
        release(&config[i]);
    release(&heuristics);
    kd_free(config);
    return status;
}

static kd_status choose_engine(kd_conv *c, const kd_conv_desc *d, cudnnHandle_t handle, kd_err *err) {
    static const cudnnBackendHeurMode_t modes[] = {CUDNN_HEUR_MODE_A, CUDNN_HEUR_MODE_FALLBACK};
    for (size_t i = 0; i < COUNT(modes) && !settled(c); i++)
        KD_TRY(try_engines(c, d->type, modes[i], handle, err));
    if (c->plan)
        return KD_OK;
    return kd_fail(err, KD_EFAIL, "%s: cuDNN has no deterministic engine for this convolution's %s (%lldx%lldx%lldx%lld to %lld channels, kernel %d, stride %d, padding %d, %d groups, %s)", d->name,
                   passes[d->pass].name, (long long)d->n, (long long)d->h, (long long)d->w, (long long)d->in, (long long)d->out, d->kernel, d->stride, d->pad, d->groups, kd_dtype_name(d->type));
}

/* ---- convolutions ---- */

kd_status kd_conv_create(kd_cuda *b, kd_conv **out, const kd_conv_desc *desc, size_t *scratch, kd_err *err) {
    cudnnHandle_t handle = b->conv->handle;
    kd_conv *c = NULL;
    KD_TRY(kd_alloc_array(&c, 1, sizeof *c, err));
    c->pass = desc->pass;
    kd_status status = check(make_graph(c, desc, handle), desc->name, "describing a convolution", err);
    if (status == KD_OK)
        status = choose_engine(c, desc, handle, err);
    if (status != KD_OK) {
        kd_conv_destroy(c);
        return status;
    }
    *scratch = (size_t)c->work;
    *out = c;
    return KD_OK;
}

void kd_conv_destroy(kd_conv *c) {
    if (!c)
        return;
    cudnnBackendDescriptor_t *const all[] = {&c->plan, &c->config, &c->graph, &c->operation, &c->window, &c->y, &c->w, &c->x};
    for (size_t i = 0; i < COUNT(all); i++)
        release(all[i]);
    kd_free(c);
}

kd_status kd_conv_run(kd_cuda *b, kd_conv *c, void *result, const void *first, const void *second, void *scratch, kd_err *err) {
    static const int64_t ids[][3] = {[KD_CONV_FORWARD] = {ID_Y, ID_X, ID_W}, [KD_CONV_DATA] = {ID_X, ID_Y, ID_W}, [KD_CONV_FILTER] = {ID_W, ID_X, ID_Y}};
    const void *pointers[3] = {result, first, second};
    const attribute list[] = {
        {CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS, CUDNN_TYPE_INT64, 3, ids[c->pass]},
        {CUDNN_ATTR_VARIANT_PACK_DATA_POINTERS, CUDNN_TYPE_VOID_PTR, 3, pointers},
        {CUDNN_ATTR_VARIANT_PACK_WORKSPACE, CUDNN_TYPE_VOID_PTR, 1, &scratch},
    };
    cudnnBackendDescriptor_t pack = NULL;
    KD_TRY(check(make(&pack, CUDNN_BACKEND_VARIANT_PACK_DESCRIPTOR, list, COUNT(list)), "convolution", "naming its operands", err));
    kd_status status = check(cudnnBackendExecute(b->conv->handle, c->plan, pack), "convolution", passes[c->pass].name, err);
    release(&pack);
    return status;
}

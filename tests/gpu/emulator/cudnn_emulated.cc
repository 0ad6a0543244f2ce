/* The emulated cuDNN: descriptors as bags of attributes, engines of which one works, convolutions by plain loops. See cudnn.h. */
#include "cudnn.h"
#include "cuda_bf16.h"

#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <set>
#include <vector>

[[noreturn]] __attribute__((format(printf, 1, 2))) static void die(const char *format, ...) {
    va_list args;
    va_start(args, format);
    fputs("emulated cuDNN: ", stderr);
    vfprintf(stderr, format, args);
    fputs("\n", stderr);
    abort();
}

/* ---- which attributes there are ---- */

typedef cudnnBackendDescriptorType_t kind;
static const int NO_KIND = -1;

struct rule {
    int of; /* kind */
    cudnnBackendAttributeName_t name;
    cudnnBackendAttributeType_t type;
    int64_t count;
    int names; /* the kind of descriptor that is named, or NO_KIND */
};

#define OPERATION(kind_, prefix, x, w, y)                                                                          \
    {kind_, prefix##x, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, CUDNN_BACKEND_TENSOR_DESCRIPTOR},                          \
    {kind_, prefix##w, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, CUDNN_BACKEND_TENSOR_DESCRIPTOR},                          \
    {kind_, prefix##y, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, CUDNN_BACKEND_TENSOR_DESCRIPTOR},                          \
    {kind_, prefix##_CONV_DESC, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, CUDNN_BACKEND_CONVOLUTION_DESCRIPTOR},            \
    {kind_, prefix##_ALPHA, CUDNN_TYPE_FLOAT, 1, NO_KIND}, {kind_, prefix##_BETA, CUDNN_TYPE_FLOAT, 1, NO_KIND}

/* All of a kind's attributes are required. A graph's operation: any of the three kinds, checked at its finalization. */
static const rule rules[] = {
    {CUDNN_BACKEND_TENSOR_DESCRIPTOR, CUDNN_ATTR_TENSOR_DATA_TYPE, CUDNN_TYPE_DATA_TYPE, 1, NO_KIND},
    {CUDNN_BACKEND_TENSOR_DESCRIPTOR, CUDNN_ATTR_TENSOR_DIMENSIONS, CUDNN_TYPE_INT64, 4, NO_KIND},
    {CUDNN_BACKEND_TENSOR_DESCRIPTOR, CUDNN_ATTR_TENSOR_STRIDES, CUDNN_TYPE_INT64, 4, NO_KIND},
    {CUDNN_BACKEND_TENSOR_DESCRIPTOR, CUDNN_ATTR_TENSOR_UNIQUE_ID, CUDNN_TYPE_INT64, 1, NO_KIND},
    {CUDNN_BACKEND_TENSOR_DESCRIPTOR, CUDNN_ATTR_TENSOR_BYTE_ALIGNMENT, CUDNN_TYPE_INT64, 1, NO_KIND},
    {CUDNN_BACKEND_CONVOLUTION_DESCRIPTOR, CUDNN_ATTR_CONVOLUTION_COMP_TYPE, CUDNN_TYPE_DATA_TYPE, 1, NO_KIND},
    {CUDNN_BACKEND_CONVOLUTION_DESCRIPTOR, CUDNN_ATTR_CONVOLUTION_CONV_MODE, CUDNN_TYPE_CONVOLUTION_MODE, 1, NO_KIND},
    {CUDNN_BACKEND_CONVOLUTION_DESCRIPTOR, CUDNN_ATTR_CONVOLUTION_SPATIAL_DIMS, CUDNN_TYPE_INT64, 1, NO_KIND},
    {CUDNN_BACKEND_CONVOLUTION_DESCRIPTOR, CUDNN_ATTR_CONVOLUTION_PRE_PADDINGS, CUDNN_TYPE_INT64, 2, NO_KIND},
    {CUDNN_BACKEND_CONVOLUTION_DESCRIPTOR, CUDNN_ATTR_CONVOLUTION_POST_PADDINGS, CUDNN_TYPE_INT64, 2, NO_KIND},
    {CUDNN_BACKEND_CONVOLUTION_DESCRIPTOR, CUDNN_ATTR_CONVOLUTION_FILTER_STRIDES, CUDNN_TYPE_INT64, 2, NO_KIND},
    {CUDNN_BACKEND_CONVOLUTION_DESCRIPTOR, CUDNN_ATTR_CONVOLUTION_DILATIONS, CUDNN_TYPE_INT64, 2, NO_KIND},
    OPERATION(CUDNN_BACKEND_OPERATION_CONVOLUTION_FORWARD_DESCRIPTOR, CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD, _X, _W, _Y),
    OPERATION(CUDNN_BACKEND_OPERATION_CONVOLUTION_BACKWARD_DATA_DESCRIPTOR, CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA, _DX, _W, _DY),
    OPERATION(CUDNN_BACKEND_OPERATION_CONVOLUTION_BACKWARD_FILTER_DESCRIPTOR, CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER, _X, _DW, _DY),
    {CUDNN_BACKEND_OPERATIONGRAPH_DESCRIPTOR, CUDNN_ATTR_OPERATIONGRAPH_HANDLE, CUDNN_TYPE_HANDLE, 1, NO_KIND},
    {CUDNN_BACKEND_OPERATIONGRAPH_DESCRIPTOR, CUDNN_ATTR_OPERATIONGRAPH_OPS, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, NO_KIND},
    {CUDNN_BACKEND_ENGINEHEUR_DESCRIPTOR, CUDNN_ATTR_ENGINEHEUR_OPERATION_GRAPH, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, CUDNN_BACKEND_OPERATIONGRAPH_DESCRIPTOR},
    {CUDNN_BACKEND_ENGINEHEUR_DESCRIPTOR, CUDNN_ATTR_ENGINEHEUR_MODE, CUDNN_TYPE_HEUR_MODE, 1, NO_KIND},
    {CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR, CUDNN_ATTR_EXECUTION_PLAN_HANDLE, CUDNN_TYPE_HANDLE, 1, NO_KIND},
    {CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR, CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, CUDNN_BACKEND_ENGINECFG_DESCRIPTOR},
    {CUDNN_BACKEND_VARIANT_PACK_DESCRIPTOR, CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS, CUDNN_TYPE_INT64, 3, NO_KIND},
    {CUDNN_BACKEND_VARIANT_PACK_DESCRIPTOR, CUDNN_ATTR_VARIANT_PACK_DATA_POINTERS, CUDNN_TYPE_VOID_PTR, 3, NO_KIND},
    {CUDNN_BACKEND_VARIANT_PACK_DESCRIPTOR, CUDNN_ATTR_VARIANT_PACK_WORKSPACE, CUDNN_TYPE_VOID_PTR, 1, NO_KIND},
};

static size_t size_of(cudnnBackendAttributeType_t type) {
    switch (type) {
    case CUDNN_TYPE_INT64: return sizeof(int64_t);
    case CUDNN_TYPE_FLOAT: return sizeof(float);
    case CUDNN_TYPE_HANDLE:
    case CUDNN_TYPE_VOID_PTR:
    case CUDNN_TYPE_BACKEND_DESCRIPTOR: return sizeof(void *);
    default: return sizeof(int); /* enumerations */
    }
}

/* ---- descriptors ---- */

enum engine { NONDETERMINISTIC, BY_TRANSFORM, TENSOR32, UNBUILDABLE, HUNGRY, WORKING };

struct descriptor {
    kind type;
    bool finalized = false;
    int users = 0;
    std::map<cudnnBackendAttributeName_t, std::vector<char>> values;
    std::vector<descriptor *> named;
    engine which = WORKING; /* of an engine and its config */

    template <class T> T get(cudnnBackendAttributeName_t name, size_t i = 0) const {
        T v;
        memcpy(&v, values.at(name).data() + i * sizeof v, sizeof v);
        return v;
    }
    descriptor *at(cudnnBackendAttributeName_t name) const { return get<descriptor *>(name); }
    void use(descriptor *d) {
        d->users++;
        named.push_back(d);
    }
};

static std::set<void *> alive;

static descriptor *as_descriptor(cudnnBackendDescriptor_t p, const char *what) {
    if (!alive.count(p))
        die("%s: not a living descriptor", what);
    return (descriptor *)p;
}

extern "C" cudnnStatus_t cudnnBackendCreateDescriptor(cudnnBackendDescriptorType_t type, cudnnBackendDescriptor_t *out) {
    descriptor *d = new descriptor;
    d->type = type;
    alive.insert(d);
    *out = d;
    return CUDNN_STATUS_SUCCESS;
}

extern "C" cudnnStatus_t cudnnBackendDestroyDescriptor(cudnnBackendDescriptor_t p) {
    descriptor *d = as_descriptor(p, "destroying");
    if (d->users)
        die("a descriptor of kind %d is destroyed that another one names", d->type);
    for (descriptor *n : d->named)
        n->users--;
    alive.erase(p);
    delete d;
    return CUDNN_STATUS_SUCCESS;
}

extern "C" cudnnStatus_t cudnnBackendSetAttribute(cudnnBackendDescriptor_t p, cudnnBackendAttributeName_t name, cudnnBackendAttributeType_t type, int64_t count, const void *values) {
    descriptor *d = as_descriptor(p, "setting an attribute");
    const rule *r = nullptr;
    for (const rule &candidate : rules)
        if (candidate.of == (int)d->type && candidate.name == name)
            r = &candidate;
    if (!r)
        die("kind %d has no attribute %d that can be set", d->type, name);
    if (d->finalized || d->values.count(name))
        die("attribute %d of kind %d is set %s", name, d->type, d->finalized ? "after it was finalized" : "twice");
    if (r->type != type || r->count != count || !values)
        die("attribute %d of kind %d: type %d and %lld elements instead of %d and %lld", name, d->type, type, (long long)count, r->type, (long long)r->count);
    d->values[name].assign((const char *)values, (const char *)values + (size_t)count * size_of(type));
    if (type == CUDNN_TYPE_BACKEND_DESCRIPTOR) {
        descriptor *n = as_descriptor(d->at(name), "naming a descriptor");
        if (!n->finalized || (r->names != NO_KIND && r->names != (int)n->type))
            die("attribute %d of kind %d names a descriptor of kind %d, %s", name, d->type, n->type, n->finalized ? "the wrong one" : "not finalized");
        d->use(n);
    }
    return CUDNN_STATUS_SUCCESS;
}

/* ---- the operation ---- */

enum pass { FORWARD, DATA, FILTER };

struct tensor {
    cudnnDataType_t type;
    int64_t id, dim[4], stride[4];
};

struct convolution {
    pass what;
    tensor x, w, y;
    int64_t pad, stride, groups;
    const tensor &result() const { return what == FORWARD ? y : what == DATA ? x : w; }
    const tensor &operand() const { return what == FORWARD ? x : y; }
};

static tensor read_tensor(const descriptor *d) {
    tensor t;
    t.type = d->get<cudnnDataType_t>(CUDNN_ATTR_TENSOR_DATA_TYPE);
    t.id = d->get<int64_t>(CUDNN_ATTR_TENSOR_UNIQUE_ID);
    for (size_t i = 0; i < 4; i++) {
        t.dim[i] = d->get<int64_t>(CUDNN_ATTR_TENSOR_DIMENSIONS, i);
        t.stride[i] = d->get<int64_t>(CUDNN_ATTR_TENSOR_STRIDES, i);
    }
    return t;
}

static void check_tensor(const descriptor *d) {
    tensor t = read_tensor(d);
    int64_t c = t.dim[1], h = t.dim[2], w = t.dim[3];
    for (int64_t n : t.dim)
        if (n < 1)
            die("a tensor has a dimension of %lld", (long long)n);
    if (t.stride[0] != h * w * c || t.stride[1] != 1 || t.stride[2] != w * c || t.stride[3] != c)
        die("a tensor that isn't dense with channels last");
    if (d->get<int64_t>(CUDNN_ATTR_TENSOR_BYTE_ALIGNMENT) != 16)
        die("a tensor aligned to %lld bytes", (long long)d->get<int64_t>(CUDNN_ATTR_TENSOR_BYTE_ALIGNMENT));
}

static void check_window(const descriptor *d) {
    if (d->get<cudnnDataType_t>(CUDNN_ATTR_CONVOLUTION_COMP_TYPE) != CUDNN_DATA_FLOAT || d->get<cudnnConvolutionMode_t>(CUDNN_ATTR_CONVOLUTION_CONV_MODE) != CUDNN_CROSS_CORRELATION ||
        d->get<int64_t>(CUDNN_ATTR_CONVOLUTION_SPATIAL_DIMS) != 2)
        die("a convolution other than a cross-correlation of maps that computes in f32");
    for (size_t i = 0; i < 2; i++) {
        int64_t pad = d->get<int64_t>(CUDNN_ATTR_CONVOLUTION_PRE_PADDINGS, i), stride = d->get<int64_t>(CUDNN_ATTR_CONVOLUTION_FILTER_STRIDES, i);
        if (d->get<int64_t>(CUDNN_ATTR_CONVOLUTION_DILATIONS, i) != 1 || d->get<int64_t>(CUDNN_ATTR_CONVOLUTION_POST_PADDINGS, i) != pad || pad < 0 || stride < 1 ||
            pad != d->get<int64_t>(CUDNN_ATTR_CONVOLUTION_PRE_PADDINGS) || stride != d->get<int64_t>(CUDNN_ATTR_CONVOLUTION_FILTER_STRIDES))
            die("a convolution that isn't the same in all directions");
    }
}

static convolution read_operation(const descriptor *d) {
    convolution c;
    descriptor *window;
    if (d->type == CUDNN_BACKEND_OPERATION_CONVOLUTION_FORWARD_DESCRIPTOR) {
        c = {FORWARD, read_tensor(d->at(CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_X)), read_tensor(d->at(CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_W)),
             read_tensor(d->at(CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_Y)), 0, 0, 0};
        window = d->at(CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_CONV_DESC);
    } else if (d->type == CUDNN_BACKEND_OPERATION_CONVOLUTION_BACKWARD_DATA_DESCRIPTOR) {
        c = {DATA, read_tensor(d->at(CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_DX)), read_tensor(d->at(CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_W)),
             read_tensor(d->at(CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_DY)), 0, 0, 0};
        window = d->at(CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_CONV_DESC);
    } else {
        c = {FILTER, read_tensor(d->at(CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_X)), read_tensor(d->at(CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_DW)),
             read_tensor(d->at(CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_DY)), 0, 0, 0};
        window = d->at(CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_CONV_DESC);
    }
    c.pad = window->get<int64_t>(CUDNN_ATTR_CONVOLUTION_PRE_PADDINGS);
    c.stride = window->get<int64_t>(CUDNN_ATTR_CONVOLUTION_FILTER_STRIDES);
    c.groups = c.x.dim[1] / c.w.dim[1];
    return c;
}

static void check_operation(const descriptor *d, float alpha, float beta) {
    convolution c = read_operation(d);
    if (alpha != 1 || beta != 0)
        die("a convolution scaled by %g and %g", (double)alpha, (double)beta);
    if (c.x.id == c.w.id || c.x.id == c.y.id || c.w.id == c.y.id)
        die("two tensors with one number");
    if (c.x.dim[0] != c.y.dim[0] || c.w.dim[0] != c.y.dim[1] || c.x.dim[1] != c.groups * c.w.dim[1] || c.w.dim[0] % c.groups != 0)
        die("a convolution whose images or channels don't match");
    for (int i = 2; i < 4; i++)
        if (c.y.dim[i] != (c.x.dim[i] + 2 * c.pad - c.w.dim[i]) / c.stride + 1)
            die("a convolution of %lld positions to %lld", (long long)c.x.dim[i], (long long)c.y.dim[i]);
    if (c.operand().type != (c.what == FILTER ? c.x.type : c.w.type))
        die("operands of two types");
}

static void check_operation(const descriptor *d) {
    if (d->type == CUDNN_BACKEND_OPERATION_CONVOLUTION_FORWARD_DESCRIPTOR)
        check_operation(d, d->get<float>(CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_ALPHA), d->get<float>(CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_BETA));
    else if (d->type == CUDNN_BACKEND_OPERATION_CONVOLUTION_BACKWARD_DATA_DESCRIPTOR)
        check_operation(d, d->get<float>(CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_ALPHA), d->get<float>(CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_BETA));
    else
        check_operation(d, d->get<float>(CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_ALPHA), d->get<float>(CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_BETA));
}

/* ---- engines ---- */

static bool works(const convolution &c) {
    bool bf16 = c.operand().type == CUDNN_DATA_BFLOAT16;
    return c.result().type == c.operand().type && !kd_emulator_fault("no-conv") && !(bf16 && kd_emulator_fault("no-bf16-conv"));
}

static std::vector<engine> engines_of(const descriptor *heuristics) {
    convolution c = read_operation(heuristics->at(CUDNN_ATTR_ENGINEHEUR_OPERATION_GRAPH)->at(CUDNN_ATTR_OPERATIONGRAPH_OPS));
    bool fallback = heuristics->get<cudnnBackendHeurMode_t>(CUDNN_ATTR_ENGINEHEUR_MODE) == CUDNN_HEUR_MODE_FALLBACK;
    std::vector<engine> list;
    if (!fallback)
        list = {NONDETERMINISTIC, BY_TRANSFORM, UNBUILDABLE};
    if (!fallback && c.operand().type == CUDNN_DATA_FLOAT)
        list.push_back(TENSOR32);
    if (works(c)) {
        list.push_back(HUNGRY);
        if (fallback || c.what == FORWARD)
            list.push_back(WORKING);
    }
    return list;
}

static std::vector<cudnnBackendNumericalNote_t> notes_of(engine e) {
    switch (e) {
    case NONDETERMINISTIC: return {CUDNN_NUMERICAL_NOTE_STRICT_NAN_PROP, CUDNN_NUMERICAL_NOTE_NONDETERMINISTIC};
    case BY_TRANSFORM: return {CUDNN_NUMERICAL_NOTE_WINOGRAD, CUDNN_NUMERICAL_NOTE_WINOGRAD_TILE_4x4};
    case TENSOR32: return {CUDNN_NUMERICAL_NOTE_TENSOR_CORE};
    default: return {};
    }
}

static int64_t work_of(engine e) {
    return e == HUNGRY ? int64_t(1) << 40 : 1000;
}

extern "C" cudnnStatus_t cudnnBackendFinalize(cudnnBackendDescriptor_t p) {
    descriptor *d = as_descriptor(p, "finalizing");
    if (d->finalized)
        die("a descriptor of kind %d is finalized twice", d->type);
    for (const rule &r : rules)
        if (r.of == (int)d->type && !d->values.count(r.name))
            die("kind %d is finalized without attribute %d", d->type, r.name);
    switch (d->type) {
    case CUDNN_BACKEND_TENSOR_DESCRIPTOR: check_tensor(d); break;
    case CUDNN_BACKEND_CONVOLUTION_DESCRIPTOR: check_window(d); break;
    case CUDNN_BACKEND_OPERATION_CONVOLUTION_FORWARD_DESCRIPTOR:
    case CUDNN_BACKEND_OPERATION_CONVOLUTION_BACKWARD_DATA_DESCRIPTOR:
    case CUDNN_BACKEND_OPERATION_CONVOLUTION_BACKWARD_FILTER_DESCRIPTOR: check_operation(d); break;
    case CUDNN_BACKEND_OPERATIONGRAPH_DESCRIPTOR:
        switch (d->at(CUDNN_ATTR_OPERATIONGRAPH_OPS)->type) {
        case CUDNN_BACKEND_OPERATION_CONVOLUTION_FORWARD_DESCRIPTOR:
        case CUDNN_BACKEND_OPERATION_CONVOLUTION_BACKWARD_DATA_DESCRIPTOR:
        case CUDNN_BACKEND_OPERATION_CONVOLUTION_BACKWARD_FILTER_DESCRIPTOR: break;
        default: die("a graph of something that isn't an operation");
        }
        break;
    case CUDNN_BACKEND_ENGINEHEUR_DESCRIPTOR: break;
    case CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR:
        d->which = d->at(CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG)->which;
        if (d->which == UNBUILDABLE)
            return CUDNN_STATUS_NOT_SUPPORTED;
        break;
    case CUDNN_BACKEND_VARIANT_PACK_DESCRIPTOR: break;
    default: die("a descriptor of kind %d isn't finalized by its user", d->type);
    }
    d->finalized = true;
    return CUDNN_STATUS_SUCCESS;
}

static void fill_configs(descriptor *heuristics, int64_t requested, int64_t *count, void *values) {
    std::vector<engine> list = engines_of(heuristics);
    *count = (int64_t)list.size();
    for (int64_t i = 0; i < requested && i < *count; i++) {
        descriptor *config = as_descriptor(((void **)values)[i], "an engine's config");
        if (config->type != CUDNN_BACKEND_ENGINECFG_DESCRIPTOR || config->finalized)
            die("engines' configs are put into empty descriptors of that kind");
        config->which = list[(size_t)i];
        config->finalized = true;
        config->use(heuristics->at(CUDNN_ATTR_ENGINEHEUR_OPERATION_GRAPH));
    }
    if (requested > 0 && requested < *count)
        *count = requested;
}

extern "C" cudnnStatus_t cudnnBackendGetAttribute(cudnnBackendDescriptor_t p, cudnnBackendAttributeName_t name, cudnnBackendAttributeType_t type, int64_t requested, int64_t *count,
                                                  void *values) {
    descriptor *d = as_descriptor(p, "asking for an attribute");
    if (!d->finalized)
        die("attribute %d is asked for before kind %d is finalized", name, d->type);
    if (d->type == CUDNN_BACKEND_ENGINEHEUR_DESCRIPTOR && name == CUDNN_ATTR_ENGINEHEUR_RESULTS && type == CUDNN_TYPE_BACKEND_DESCRIPTOR) {
        fill_configs(d, requested, count, values);
    } else if (d->type == CUDNN_BACKEND_ENGINECFG_DESCRIPTOR && name == CUDNN_ATTR_ENGINECFG_ENGINE && type == CUDNN_TYPE_BACKEND_DESCRIPTOR && requested == 1) {
        descriptor *e = as_descriptor(*(void **)values, "an engine");
        if (e->type != CUDNN_BACKEND_ENGINE_DESCRIPTOR || e->finalized)
            die("an engine is put into an empty descriptor of that kind");
        e->which = d->which;
        e->finalized = true;
        *count = 1;
    } else if (d->type == CUDNN_BACKEND_ENGINE_DESCRIPTOR && name == CUDNN_ATTR_ENGINE_NUMERICAL_NOTE && type == CUDNN_TYPE_NUMERICAL_NOTE) {
        std::vector<cudnnBackendNumericalNote_t> notes = notes_of(d->which);
        *count = (int64_t)notes.size();
        for (int64_t i = 0; i < *count && i < requested; i++)
            ((cudnnBackendNumericalNote_t *)values)[i] = notes[(size_t)i];
    } else if (d->type == CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR && name == CUDNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE && type == CUDNN_TYPE_INT64 && requested == 1) {
        *(int64_t *)values = work_of(d->which);
        *count = 1;
    } else {
        die("attribute %d of kind %d can't be asked for like this", name, d->type);
    }
    return CUDNN_STATUS_SUCCESS;
}

/* ---- running ---- */

static double load(const tensor &t, const void *p, int64_t i) {
    return t.type == CUDNN_DATA_BFLOAT16 ? (double)__bfloat162float(((const __nv_bfloat16 *)p)[i]) : (double)((const float *)p)[i];
}

/* Every product of the convolution: visit(offset in x, in w, in y). */
template <class F> static void for_each_product(const convolution &c, F visit) {
    int64_t gin = c.w.dim[1], gout = c.w.dim[0] / c.groups;
    for (int64_t n = 0; n < c.y.dim[0]; n++)
        for (int64_t oy = 0; oy < c.y.dim[2]; oy++)
            for (int64_t ox = 0; ox < c.y.dim[3]; ox++)
                for (int64_t ky = 0; ky < c.w.dim[2]; ky++)
                    for (int64_t kx = 0; kx < c.w.dim[3]; kx++) {
                        int64_t iy = oy * c.stride + ky - c.pad, ix = ox * c.stride + kx - c.pad;
                        if (iy < 0 || iy >= c.x.dim[2] || ix < 0 || ix >= c.x.dim[3])
                            continue;
                        int64_t x = n * c.x.stride[0] + iy * c.x.stride[2] + ix * c.x.stride[3], y = n * c.y.stride[0] + oy * c.y.stride[2] + ox * c.y.stride[3];
                        for (int64_t o = 0; o < c.w.dim[0]; o++) {
                            int64_t w = o * c.w.stride[0] + ky * c.w.stride[2] + kx * c.w.stride[3];
                            for (int64_t i = 0; i < gin; i++)
                                visit(x + o / gout * gin + i, w + i, y + o);
                        }
                    }
}

static void compute(const convolution &c, void *result, const void *first, const void *second) {
    const tensor &r = c.result();
    std::vector<double> sum((size_t)(r.dim[0] * r.stride[0]), 0.0);
    if (c.what == FORWARD)
        for_each_product(c, [&](int64_t x, int64_t w, int64_t y) { sum[(size_t)y] += load(c.x, first, x) * load(c.w, second, w); });
    else if (c.what == DATA)
        for_each_product(c, [&](int64_t x, int64_t w, int64_t y) { sum[(size_t)x] += load(c.y, first, y) * load(c.w, second, w); });
    else
        for_each_product(c, [&](int64_t x, int64_t w, int64_t y) { sum[(size_t)w] += load(c.x, first, x) * load(c.y, second, y); });
    for (size_t i = 0; i < sum.size(); i++) {
        if (r.type == CUDNN_DATA_BFLOAT16)
            ((__nv_bfloat16 *)result)[i] = __float2bfloat16_rn((float)sum[i]);
        else
            ((float *)result)[i] = (float)sum[i];
    }
}

struct cudnnContext {
    cudaStream_t stream;
};

extern "C" cudnnStatus_t cudnnBackendExecute(cudnnHandle_t handle, cudnnBackendDescriptor_t plan_, cudnnBackendDescriptor_t pack_) {
    descriptor *plan = as_descriptor(plan_, "running"), *pack = as_descriptor(pack_, "running");
    if (plan->type != CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR || pack->type != CUDNN_BACKEND_VARIANT_PACK_DESCRIPTOR || !plan->finalized || !pack->finalized)
        die("what is run is a plan with a variant pack, both finalized");
    if (plan->get<cudnnHandle_t>(CUDNN_ATTR_EXECUTION_PLAN_HANDLE) != handle || !handle->stream)
        die("a plan is run with another handle, or without a stream");
    if (plan->which != WORKING)
        die("engine %d was chosen, which must not be", plan->which);
    descriptor *graph = plan->at(CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG)->named.at(0);
    convolution c = read_operation(graph->at(CUDNN_ATTR_OPERATIONGRAPH_OPS));
    std::map<int64_t, void *> pointer;
    for (size_t i = 0; i < 3; i++) {
        void *at = pack->get<void *>(CUDNN_ATTR_VARIANT_PACK_DATA_POINTERS, i);
        if (!at || (uintptr_t)at % 16 != 0)
            die("an operand at %p", at);
        pointer[pack->get<int64_t>(CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS, i)] = at;
    }
    if (!pointer.count(c.x.id) || !pointer.count(c.w.id) || !pointer.count(c.y.id))
        die("a tensor of the graph without a pointer");
    void *x = pointer[c.x.id], *w = pointer[c.w.id], *y = pointer[c.y.id], *work = pack->get<void *>(CUDNN_ATTR_VARIANT_PACK_WORKSPACE);
    if (!work || (uintptr_t)work % 16 != 0)
        die("work memory at %p", work);
    void *result = c.what == FORWARD ? y : c.what == DATA ? x : w, *first = c.what == DATA ? y : x, *second = c.what == FILTER ? y : w;
    cudaError_t queued = kd_emulator_enqueue(handle->stream, [=] {
        memset(work, 0xff, (size_t)work_of(WORKING));
        compute(c, result, first, second);
    });
    return queued == cudaSuccess ? CUDNN_STATUS_SUCCESS : CUDNN_STATUS_EXECUTION_FAILED;
}

/* ---- the library ---- */

extern "C" size_t cudnnGetVersion(void) {
    return 91900;
}

extern "C" const char *cudnnGetErrorString(cudnnStatus_t status) {
    switch (status) {
    case CUDNN_STATUS_SUCCESS: return "CUDNN_STATUS_SUCCESS";
    case CUDNN_STATUS_NOT_INITIALIZED: return "CUDNN_STATUS_NOT_INITIALIZED";
    case CUDNN_STATUS_BAD_PARAM: return "CUDNN_STATUS_BAD_PARAM";
    case CUDNN_STATUS_NOT_SUPPORTED: return "CUDNN_STATUS_NOT_SUPPORTED";
    default: return "CUDNN_STATUS_EXECUTION_FAILED";
    }
}

extern "C" cudnnStatus_t cudnnCreate(cudnnHandle_t *handle) {
    *handle = new cudnnContext{};
    return CUDNN_STATUS_SUCCESS;
}

extern "C" cudnnStatus_t cudnnDestroy(cudnnHandle_t handle) {
    delete handle;
    return CUDNN_STATUS_SUCCESS;
}

extern "C" cudnnStatus_t cudnnSetStream(cudnnHandle_t handle, cudaStream_t stream) {
    handle->stream = stream;
    return CUDNN_STATUS_SUCCESS;
}

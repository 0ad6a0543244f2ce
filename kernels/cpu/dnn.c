#include "kernels/cpu/dnn.h"

#include <dnnl.h>
#include <string.h>

#include "common/base/mem.h"

#if DNNL_VERSION_MAJOR != 2 && DNNL_VERSION_MAJOR != 3
#error "oneDNN 2.x or 3.x is needed"
#endif
#define V3 (DNNL_VERSION_MAJOR >= 3)

/* A memory description: a value in 2.x, a handle in 3.x. */
typedef struct md {
    dnnl_memory_desc_t at;
} md;
#if V3
typedef const_dnnl_memory_desc_t md_ref;
#else
typedef const dnnl_memory_desc_t *md_ref;
#endif

struct kd_dnn_engine {
    dnnl_engine_t engine;
    dnnl_stream_t stream;
};

struct kd_dnn {
    kd_dnn_engine *e;
    dnnl_primitive_t primitive;
    int count;
    int slot[KD_DNN_ARGS]; /* of data, per argument */
    dnnl_exec_arg_t arg[KD_DNN_ARGS];
    dnnl_query_t weights; /* which of the primitive's descriptions is ours for WEIGHTS */
};

static kd_status check(dnnl_status_t s, const char *what, const char *step, kd_err *err) {
    if (s == dnnl_success)
        return KD_OK;
    if (s == dnnl_out_of_memory)
        return kd_fail(err, KD_EFAIL, "%s: out of memory in oneDNN (%s)", what, step);
    if (s == dnnl_unimplemented)
        return kd_fail(err, KD_EFAIL, "%s: oneDNN has no implementation for this %s; use --device ref or another --precision", what, step);
    return kd_fail(err, KD_EFAIL, "%s: oneDNN error %d (%s)", what, (int)s, step);
}

/* ---- descriptions ---- */

kd_dnn_tensor kd_dnn_rows(kd_dtype dtype, int64_t rows, int64_t width) {
    return (kd_dnn_tensor){.dtype = dtype, .rank = 2, .dim = {rows, width}, .stride = {width, 1}};
}

kd_dnn_tensor kd_dnn_transposed(kd_dnn_tensor t) {
    int a = t.rank - 2, b = t.rank - 1;
    int64_t dim = t.dim[a], stride = t.stride[a];
    t.dim[a] = t.dim[b], t.stride[a] = t.stride[b];
    t.dim[b] = dim, t.stride[b] = stride;
    return t;
}

kd_dnn_tensor kd_dnn_nhwc(kd_dtype dtype, const int64_t s[4]) {
    return (kd_dnn_tensor){.dtype = dtype, .rank = 4, .dim = {s[0], s[3], s[1], s[2]}, .stride = {s[1] * s[2] * s[3], 1, s[2] * s[3], s[3]}};
}

static kd_status md_create(md *out, const kd_dnn_tensor *t, const char *what, kd_err *err) {
    dnnl_dims_t dims = {0}, strides = {0};
    dnnl_data_type_t type = t->dtype == KD_BF16 ? dnnl_bf16 : dnnl_f32;
    int plain = 0;
    for (int i = 0; i < t->rank; i++) {
        dims[i] = t->dim[i];
        strides[i] = t->stride[i];
        plain |= t->stride[i] != 0;
    }
    dnnl_status_t s;
#if V3
    s = plain ? dnnl_memory_desc_create_with_strides(&out->at, t->rank, dims, type, strides)
              : dnnl_memory_desc_create_with_tag(&out->at, t->rank, dims, type, t->rank == 0 ? dnnl_format_tag_undef : dnnl_format_tag_any);
#else
    if (t->rank == 0) {
        out->at = (dnnl_memory_desc_t){0};
        return KD_OK;
    }
    s = plain ? dnnl_memory_desc_init_by_strides(&out->at, t->rank, dims, type, strides)
              : dnnl_memory_desc_init_by_tag(&out->at, t->rank, dims, type, dnnl_format_tag_any);
#endif
    return check(s, what, "memory description", err);
}

#if V3
static md_ref md_of(const md *m) {
    return m->at;
}
static void md_destroy(md *m) {
    if (m->at)
        dnnl_memory_desc_destroy(m->at);
}
#else
static md_ref md_of(const md *m) {
    return &m->at;
}
static void md_destroy(md *m) {
    (void)m;
}
#endif

static kd_status add_eltwise(dnnl_post_ops_t ops, kd_dnn_act act, const char *what, kd_err *err) {
    dnnl_alg_kind_t alg = act == KD_DNN_RELU ? dnnl_eltwise_relu : dnnl_eltwise_gelu_erf;
#if V3
    return check(dnnl_post_ops_append_eltwise(ops, alg, 0.0f, 0.0f), what, "activation", err);
#else
    return check(dnnl_post_ops_append_eltwise(ops, 1.0f, alg, 0.0f, 0.0f), what, "activation", err);
#endif
}

static kd_status add_sum(dnnl_post_ops_t ops, const char *what, kd_err *err) {
#if V3
    return check(dnnl_post_ops_append_sum(ops, 1.0f, 0, dnnl_data_type_undef), what, "sum", err);
#else
    return check(dnnl_post_ops_append_sum(ops, 1.0f), what, "sum", err);
#endif
}

/* Attributes: the caller's scratch memory and what follows the product. */
static kd_status attr_create(dnnl_primitive_attr_t *out, dnnl_post_ops_t ops, const char *what, kd_err *err) {
    KD_TRY(check(dnnl_primitive_attr_create(out), what, "attributes", err));
    dnnl_status_t s = dnnl_primitive_attr_set_scratchpad_mode(*out, dnnl_scratchpad_mode_user);
    if (s == dnnl_success)
        s = dnnl_primitive_attr_set_post_ops(*out, ops);
    if (s != dnnl_success)
        dnnl_primitive_attr_destroy(*out);
    return check(s, what, "attributes", err);
}

/* ---- primitives ---- */

static kd_status add_arg(kd_dnn *p, int slot, int dnnl_arg, md_ref desc, const char *what, kd_err *err) {
    dnnl_memory_t m;
    KD_TRY(check(dnnl_memory_create(&m, desc, p->e->engine, DNNL_MEMORY_NONE), what, "memory object", err));
    p->slot[p->count] = slot;
    p->arg[p->count++] = (dnnl_exec_arg_t){dnnl_arg, m};
    return KD_OK;
}

static md_ref query_md(const kd_dnn *p, dnnl_query_t q) {
    const_dnnl_primitive_desc_t pd;
    if (dnnl_primitive_get_primitive_desc(p->primitive, &pd) != dnnl_success)
        return NULL;
    return dnnl_primitive_desc_query_md(pd, q, 0);
}

static kd_status add_queried(kd_dnn *p, int slot, int dnnl_arg, dnnl_query_t q, const char *what, kd_err *err) {
    return add_arg(p, slot, dnnl_arg, query_md(p, q), what, err);
}

/* Takes pd over. The scratch argument comes with it. */
static kd_status dnn_create(kd_dnn **out, kd_dnn_engine *e, dnnl_primitive_desc_t pd, const char *what, kd_err *err) {
    kd_dnn *p = NULL;
    kd_status status = kd_alloc_array(&p, 1, sizeof *p, err);
    if (status == KD_OK) {
        p->e = e;
        p->weights = dnnl_query_weights_md;
        status = check(dnnl_primitive_create(&p->primitive, pd), what, "primitive", err);
    }
    dnnl_primitive_desc_destroy(pd);
    if (status == KD_OK)
        status = add_queried(p, KD_DNN_SCRATCH, DNNL_ARG_SCRATCHPAD, dnnl_query_scratchpad_md, what, err);
    if (status == KD_OK)
        *out = p;
    else
        kd_dnn_destroy(p);
    return status;
}

void kd_dnn_destroy(kd_dnn *p) {
    if (!p)
        return;
    for (int i = 0; i < p->count; i++)
        dnnl_memory_destroy(p->arg[i].memory);
    if (p->primitive)
        dnnl_primitive_destroy(p->primitive);
    kd_free(p);
}

enum { A, B, C, BIAS, MATMUL_TENSORS };

static kd_status matmul_post_ops(dnnl_post_ops_t ops, const kd_dnn_matmul_desc *d, const char *what, kd_err *err) {
    if (d->act != KD_DNN_NONE)
        KD_TRY(add_eltwise(ops, d->act, what, err));
    return d->add ? add_sum(ops, what, err) : KD_OK;
}

static kd_status matmul_pd(dnnl_primitive_desc_t *out, kd_dnn_engine *e, const md *m, int bias, dnnl_primitive_attr_t attr, const char *what, kd_err *err) {
    md_ref b = bias ? md_of(&m[BIAS]) : NULL;
#if V3
    return check(dnnl_matmul_primitive_desc_create(out, e->engine, md_of(&m[A]), md_of(&m[B]), b, md_of(&m[C]), attr), what, "matrix product", err);
#else
    dnnl_matmul_desc_t desc;
    KD_TRY(check(dnnl_matmul_desc_init(&desc, md_of(&m[A]), md_of(&m[B]), b, md_of(&m[C])), what, "matrix product", err));
    return check(dnnl_primitive_desc_create(out, &desc, attr, e->engine, NULL), what, "matrix product", err);
#endif
}

static kd_status matmul_args(kd_dnn *p, const kd_dnn_matmul_desc *d, const md *m, const char *what, kd_err *err) {
    KD_TRY(add_queried(p, KD_DNN_SRC, DNNL_ARG_SRC, dnnl_query_src_md, what, err));
    KD_TRY(add_queried(p, KD_DNN_WEIGHTS, DNNL_ARG_WEIGHTS, dnnl_query_weights_md, what, err));
    KD_TRY(add_queried(p, KD_DNN_DST, DNNL_ARG_DST, dnnl_query_dst_md, what, err));
    return d->bias.rank ? add_arg(p, KD_DNN_BIAS, DNNL_ARG_BIAS, md_of(&m[BIAS]), what, err) : KD_OK;
}

static void mds_destroy(md *m, int n) {
    for (int i = 0; i < n; i++)
        md_destroy(&m[i]);
}

static kd_status mds_create(md *m, const kd_dnn_tensor *const *t, int n, const char *what, kd_err *err) {
    for (int i = 0; i < n; i++)
        KD_TRY(md_create(&m[i], t[i], what, err));
    return KD_OK;
}

kd_status kd_dnn_matmul(kd_dnn **out, kd_dnn_engine *e, const kd_dnn_matmul_desc *d, const char *what, kd_err *err) {
    md m[MATMUL_TENSORS] = {0};
    dnnl_post_ops_t ops = NULL;
    dnnl_primitive_attr_t attr = NULL;
    dnnl_primitive_desc_t pd = NULL;
    kd_dnn *p = NULL;
    kd_status status = mds_create(m, (const kd_dnn_tensor *[]){&d->a, &d->b, &d->c, &d->bias}, MATMUL_TENSORS, what, err);
    if (status == KD_OK)
        status = check(dnnl_post_ops_create(&ops), what, "post operations", err);
    KD_TRY_TO(done, status, status);
    KD_TRY_TO(done, status, matmul_post_ops(ops, d, what, err));
    KD_TRY_TO(done, status, attr_create(&attr, ops, what, err));
    KD_TRY_TO(done, status, matmul_pd(&pd, e, m, d->bias.rank > 0, attr, what, err));
    KD_TRY_TO(done, status, dnn_create(&p, e, pd, what, err));
    KD_TRY_TO(done, status, matmul_args(p, d, m, what, err));
    *out = p;
    p = NULL;
done:
    kd_dnn_destroy(p);
    if (attr)
        dnnl_primitive_attr_destroy(attr);
    if (ops)
        dnnl_post_ops_destroy(ops);
    mds_destroy(m, MATMUL_TENSORS);
    return status;
}

/* ---- convolution ---- */

typedef struct window {
    dnnl_dims_t stride, dilation, pad_low, pad_high;
} window;

static window window_of(const kd_dnn_conv_desc *d) {
    window w = {{0}, {0}, {0}, {0}};
    for (int i = 0; i < 2; i++) {
        w.stride[i] = d->stride;
        w.pad_low[i] = w.pad_high[i] = d->pad;
    }
    return w;
}

enum { CONV_SRC, CONV_WEIGHTS, CONV_DST, CONV_BIAS, CONV_TENSORS };

#if V3
/* oneDNN 3.x prefers "brgconv" on AVX2, whose blocks, and with them the order of its sums, follow the number of threads: the next implementation, which is 2.x's, gives one result. */
static void fix_order(dnnl_primitive_desc_t pd) {
    const char *name = NULL;
    while (dnnl_primitive_desc_query(pd, dnnl_query_impl_info_str, 0, &name) == dnnl_success && strncmp(name, "brgconv:avx2", 12) == 0 && dnnl_primitive_desc_next_impl(pd) == dnnl_success)
        ;
}

static kd_status conv_pd(dnnl_primitive_desc_t *out, kd_dnn_engine *e, const kd_dnn_conv_desc *d, kd_dnn_pass pass, const md *m, dnnl_primitive_attr_t attr,
                         const_dnnl_primitive_desc_t hint, const char *what, kd_err *err) {
    window w = window_of(d);
    dnnl_alg_kind_t alg = dnnl_convolution_direct;
    md_ref src = md_of(&m[CONV_SRC]), weights = md_of(&m[CONV_WEIGHTS]), dst = md_of(&m[CONV_DST]), bias = d->bias.rank ? md_of(&m[CONV_BIAS]) : NULL;
    dnnl_status_t s;
    if (pass == KD_DNN_FORWARD)
        s = dnnl_convolution_forward_primitive_desc_create(out, e->engine, dnnl_forward_training, alg, src, weights, bias, dst, w.stride, w.dilation,
                                                           w.pad_low, w.pad_high, attr);
    else if (pass == KD_DNN_BACKWARD_DATA)
        s = dnnl_convolution_backward_data_primitive_desc_create(out, e->engine, alg, src, weights, dst, w.stride, w.dilation, w.pad_low, w.pad_high, hint, attr);
    else
        s = dnnl_convolution_backward_weights_primitive_desc_create(out, e->engine, alg, src, weights, NULL, dst, w.stride, w.dilation, w.pad_low, w.pad_high, hint, attr);
    if (s == dnnl_success && pass == KD_DNN_FORWARD)
        fix_order(*out);
    return check(s, what, "convolution", err);
}
#else
static kd_status conv_pd(dnnl_primitive_desc_t *out, kd_dnn_engine *e, const kd_dnn_conv_desc *d, kd_dnn_pass pass, const md *m, dnnl_primitive_attr_t attr,
                         const_dnnl_primitive_desc_t hint, const char *what, kd_err *err) {
    window w = window_of(d);
    dnnl_alg_kind_t alg = dnnl_convolution_direct;
    md_ref src = md_of(&m[CONV_SRC]), weights = md_of(&m[CONV_WEIGHTS]), dst = md_of(&m[CONV_DST]), bias = d->bias.rank ? md_of(&m[CONV_BIAS]) : NULL;
    dnnl_convolution_desc_t desc;
    dnnl_status_t s;
    if (pass == KD_DNN_FORWARD)
        s = dnnl_convolution_forward_desc_init(&desc, dnnl_forward_training, alg, src, weights, bias, dst, w.stride, w.pad_low, w.pad_high);
    else if (pass == KD_DNN_BACKWARD_DATA)
        s = dnnl_convolution_backward_data_desc_init(&desc, alg, src, weights, dst, w.stride, w.pad_low, w.pad_high);
    else
        s = dnnl_convolution_backward_weights_desc_init(&desc, alg, src, weights, NULL, dst, w.stride, w.pad_low, w.pad_high);
    KD_TRY(check(s, what, "convolution", err));
    return check(dnnl_primitive_desc_create(out, &desc, attr, e->engine, hint), what, "convolution", err);
}
#endif

/* A backward description needs the forward one as a hint. Its data types may differ (f32 weights gradient of a bf16 convolution), so it is made from operands only. */
static kd_status hint_create(dnnl_primitive_desc_t *out, kd_dnn_engine *e, const kd_dnn_conv_desc *d, const char *what, kd_err *err) {
    md m[CONV_TENSORS] = {0};
    kd_dnn_tensor w = d->weights, src = d->src, none = {0};
    w.dtype = src.dtype = d->dst.dtype;
    kd_status status = mds_create(m, (const kd_dnn_tensor *[]){&src, &w, &d->dst, &none}, CONV_TENSORS, what, err);
    if (status == KD_OK) {
        kd_dnn_conv_desc f = *d;
        f.bias = none;
        status = conv_pd(out, e, &f, KD_DNN_FORWARD, m, NULL, NULL, what, err);
    }
    mds_destroy(m, CONV_TENSORS);
    return status;
}

static kd_status conv_args(kd_dnn *p, const kd_dnn_conv_desc *d, const char *what, kd_err *err) {
    switch (d->pass) {
    case KD_DNN_FORWARD:
        KD_TRY(add_queried(p, KD_DNN_SRC, DNNL_ARG_SRC, dnnl_query_src_md, what, err));
        KD_TRY(add_queried(p, KD_DNN_WEIGHTS, DNNL_ARG_WEIGHTS, dnnl_query_weights_md, what, err));
        if (d->bias.rank) {
            const_dnnl_primitive_desc_t pd;
            KD_TRY(check(dnnl_primitive_get_primitive_desc(p->primitive, &pd), what, "bias", err));
            KD_TRY(add_arg(p, KD_DNN_BIAS, DNNL_ARG_BIAS, dnnl_primitive_desc_query_md(pd, dnnl_query_weights_md, 1), what, err));
        }
        return add_queried(p, KD_DNN_DST, DNNL_ARG_DST, dnnl_query_dst_md, what, err);
    case KD_DNN_BACKWARD_DATA:
        KD_TRY(add_queried(p, KD_DNN_SRC, DNNL_ARG_DIFF_SRC, dnnl_query_diff_src_md, what, err));
        KD_TRY(add_queried(p, KD_DNN_WEIGHTS, DNNL_ARG_WEIGHTS, dnnl_query_weights_md, what, err));
        return add_queried(p, KD_DNN_DST, DNNL_ARG_DIFF_DST, dnnl_query_diff_dst_md, what, err);
    case KD_DNN_BACKWARD_WEIGHTS:
        break;
    }
    p->weights = dnnl_query_diff_weights_md;
    KD_TRY(add_queried(p, KD_DNN_SRC, DNNL_ARG_SRC, dnnl_query_src_md, what, err));
    KD_TRY(add_queried(p, KD_DNN_WEIGHTS, DNNL_ARG_DIFF_WEIGHTS, dnnl_query_diff_weights_md, what, err));
    return add_queried(p, KD_DNN_DST, DNNL_ARG_DIFF_DST, dnnl_query_diff_dst_md, what, err);
}

kd_status kd_dnn_conv(kd_dnn **out, kd_dnn_engine *e, const kd_dnn_conv_desc *d, const char *what, kd_err *err) {
    md m[CONV_TENSORS] = {0};
    dnnl_post_ops_t ops = NULL;
    dnnl_primitive_attr_t attr = NULL;
    dnnl_primitive_desc_t pd = NULL, hint = NULL;
    kd_dnn *p = NULL;
    kd_status status = mds_create(m, (const kd_dnn_tensor *[]){&d->src, &d->weights, &d->dst, &d->bias}, CONV_TENSORS, what, err);
    if (status == KD_OK)
        status = check(dnnl_post_ops_create(&ops), what, "post operations", err);
    if (status == KD_OK && d->act != KD_DNN_NONE)
        status = add_eltwise(ops, d->act, what, err);
    if (status == KD_OK && d->pass != KD_DNN_FORWARD)
        status = hint_create(&hint, e, d, what, err);
    KD_TRY_TO(done, status, status);
    KD_TRY_TO(done, status, attr_create(&attr, ops, what, err));
    KD_TRY_TO(done, status, conv_pd(&pd, e, d, d->pass, m, attr, hint, what, err));
    KD_TRY_TO(done, status, dnn_create(&p, e, pd, what, err));
    KD_TRY_TO(done, status, conv_args(p, d, what, err));
    *out = p;
    p = NULL;
done:
    kd_dnn_destroy(p);
    if (hint)
        dnnl_primitive_desc_destroy(hint);
    if (attr)
        dnnl_primitive_attr_destroy(attr);
    if (ops)
        dnnl_post_ops_destroy(ops);
    mds_destroy(m, CONV_TENSORS);
    return status;
}

/* ---- re-ordering ---- */

static kd_status reorder_create(kd_dnn **out, kd_dnn_engine *e, md_ref from, md_ref to, int add, const char *what, kd_err *err) {
    dnnl_post_ops_t ops = NULL;
    dnnl_primitive_attr_t attr = NULL;
    dnnl_primitive_desc_t pd = NULL;
    kd_dnn *p = NULL;
    kd_status status = check(dnnl_post_ops_create(&ops), what, "post operations", err);
    if (status == KD_OK && add)
        status = add_sum(ops, what, err);
    KD_TRY_TO(done, status, status);
    KD_TRY_TO(done, status, attr_create(&attr, ops, what, err));
    KD_TRY_TO(done, status, check(dnnl_reorder_primitive_desc_create(&pd, from, e->engine, to, e->engine, attr), what, "re-ordering", err));
    KD_TRY_TO(done, status, dnn_create(&p, e, pd, what, err));
    KD_TRY_TO(done, status, add_arg(p, KD_DNN_SRC, DNNL_ARG_FROM, from, what, err));
    KD_TRY_TO(done, status, add_arg(p, KD_DNN_DST, DNNL_ARG_TO, to, what, err));
    *out = p;
    p = NULL;
done:
    kd_dnn_destroy(p);
    if (attr)
        dnnl_primitive_attr_destroy(attr);
    if (ops)
        dnnl_post_ops_destroy(ops);
    return status;
}

kd_status kd_dnn_pack(kd_dnn **out, const kd_dnn *p, const kd_dnn_tensor *plain, const char *what, kd_err *err) {
    md m = {0};
    kd_status status = md_create(&m, plain, what, err);
    if (status == KD_OK)
        status = reorder_create(out, p->e, md_of(&m), query_md(p, p->weights), 0, what, err);
    md_destroy(&m);
    return status;
}

kd_status kd_dnn_unpack_add(kd_dnn **out, const kd_dnn *p, const kd_dnn_tensor *plain, const char *what, kd_err *err) {
    md m = {0};
    kd_status status = md_create(&m, plain, what, err);
    if (status == KD_OK)
        status = reorder_create(out, p->e, query_md(p, p->weights), md_of(&m), 1, what, err);
    md_destroy(&m);
    return status;
}

/* ---- use ---- */

size_t kd_dnn_scratch_bytes(const kd_dnn *p) {
    return p ? dnnl_memory_desc_get_size(query_md(p, dnnl_query_scratchpad_md)) : 0;
}

size_t kd_dnn_weights_bytes(const kd_dnn *p) {
    return dnnl_memory_desc_get_size(query_md(p, p->weights));
}

int kd_dnn_same_weights(const kd_dnn *a, const kd_dnn *b) {
    return dnnl_memory_desc_equal(query_md(a, a->weights), query_md(b, b->weights));
}

const char *kd_dnn_implementation(const kd_dnn *p) {
    const_dnnl_primitive_desc_t pd;
    const char *name = NULL;
    if (dnnl_primitive_get_primitive_desc(p->primitive, &pd) != dnnl_success || dnnl_primitive_desc_query(pd, dnnl_query_impl_info_str, 0, &name) != dnnl_success)
        return "unknown";
    return name;
}

kd_status kd_dnn_run(kd_dnn *p, void *const data[KD_DNN_ARGS], kd_err *err) {
    for (int i = 0; i < p->count; i++)
        KD_TRY(check(dnnl_memory_set_data_handle(p->arg[i].memory, data[p->slot[i]]), "cpu", "memory handle", err));
    return check(dnnl_primitive_execute(p->primitive, p->e->stream, p->count, p->arg), "cpu", "run", err);
}

kd_status kd_dnn_engine_create(kd_dnn_engine **out, kd_err *err) {
    kd_dnn_engine *e = NULL;
    KD_TRY(kd_alloc_array(&e, 1, sizeof *e, err));
    kd_status status = check(dnnl_engine_create(&e->engine, dnnl_cpu, 0), "cpu", "engine", err);
    if (status == KD_OK)
        status = check(dnnl_stream_create(&e->stream, e->engine, dnnl_stream_default_flags), "cpu", "stream", err);
    if (status == KD_OK)
        *out = e;
    else
        kd_dnn_engine_destroy(e);
    return status;
}

void kd_dnn_engine_destroy(kd_dnn_engine *e) {
    if (!e)
        return;
    if (e->stream)
        dnnl_stream_destroy(e->stream);
    if (e->engine)
        dnnl_engine_destroy(e->engine);
    kd_free(e);
}

void kd_dnn_version(int *major, int *minor, int *patch) {
    const dnnl_version_t *v = dnnl_version();
    *major = v->major;
    *minor = v->minor;
    *patch = v->patch;
}

kd_dnn_isa kd_dnn_instructions(void) {
    unsigned isa = dnnl_get_effective_cpu_isa();
    if ((isa & dnnl_cpu_isa_avx512_core) == dnnl_cpu_isa_avx512_core)
        return KD_DNN_AVX512;
    return (isa & dnnl_cpu_isa_avx2) == dnnl_cpu_isa_avx2 ? KD_DNN_AVX2 : KD_DNN_OLDER;
}

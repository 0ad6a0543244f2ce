/* Compiling: which nodes a program needs, of which type their values are, what can be fused, where gradients flow. Memory: plan_memory.c. */
#include "kernels/nn/graph_impl.h"

#include <string.h>

/* Drop path lets everything pass outside training. */
static int passes_through(const kd_exec *e, const kd_gnode *n) {
    return n->desc.kind == KD_OP_ROW_SCALE && !e->config.train;
}

/* Whose memory v is in this program. */
static kd_val root_of(const kd_exec *e, const kd_graph *g, kd_val v) {
    kd_val root = g->vals[v].root;
    while (g->vals[root].node >= 0 && passes_through(e, &g->nodes[g->vals[root].node]))
        root = g->vals[g->nodes[g->vals[root].node].x[0]].root;
    return root;
}

/* ---- which nodes run ---- */

/* Marks what the outputs need, from the back. A training program also runs every loss; an inference program neither runs them nor has their inputs, unless they were asked for. */
static void mark_live(kd_exec *e, const kd_graph *g, char *node_live) {
    for (int i = 0; i < g->output_count; i++)
        if (e->config.train || e->config.losses || !g->vals[g->outputs[i].val].scalar)
            e->vals[root_of(e, g, g->outputs[i].val)].live = 1;
    for (int i = g->node_count - 1; i >= 0; i--) {
        const kd_gnode *n = &g->nodes[i];
        if (passes_through(e, n) || !e->vals[root_of(e, g, n->y)].live)
            continue;
        node_live[i] = 1;
        for (int k = 0; k < n->desc.inputs; k++)
            e->vals[root_of(e, g, n->x[k])].live = 1;
    }
}

static void count_consumers(kd_exec *e, const kd_graph *g, const char *node_live) {
    for (int i = 0; i < g->node_count; i++)
        if (node_live[i])
            for (int k = 0; k < g->nodes[i].desc.inputs; k++)
                e->vals[root_of(e, g, g->nodes[i].x[k])].consumers++;
    for (int i = 0; i < g->output_count; i++)
        e->vals[root_of(e, g, g->outputs[i].val)].kept = 1;
    for (int v = 0; v < g->val_count; v++)
        if (g->vals[v].node < 0)
            e->vals[g->vals[v].root].kept = 1;
}

/* ---- types ---- */

/* The type of a node's result: residual streams, means, unit vectors, losses and what as_f32 asked for are F32 in every precision; choosing and turning ops keep their input's type. */
static kd_dtype result_dtype(const kd_exec *e, const kd_graph *g, const kd_gnode *n) {
    if (e->config.precision == KD_F32 || g->vals[root_of(e, g, n->y)].f32 || kd_is_loss(n->desc.kind))
        return KD_F32;
    if (kd_keeps_dtype(n->desc.kind))
        return e->vals[root_of(e, g, n->x[0])].dtype;
    switch (n->desc.kind) {
    case KD_OP_ADD:
        return n->shortcut ? KD_BF16 : KD_F32;
    case KD_OP_SCALE_ADD:
    case KD_OP_TOKENS:
    case KD_OP_MEAN_TOKENS:
    case KD_OP_L2_NORMALIZE:
        return KD_F32;
    default:
        return KD_BF16;
    }
}

static kd_tdesc tensor_desc(const kd_exec *e, const kd_graph *g, kd_val v) {
    const kd_gval *gv = &g->vals[v];
    kd_tdesc t = {.dtype = e->vals[root_of(e, g, v)].dtype};
    if (!gv->scalar)
        t.shape[t.rank++] = e->config.batch;
    for (int i = 0; i < gv->rank; i++)
        t.shape[t.rank++] = gv->shape[i];
    return t;
}

/* Bytes of a value, checked: a batch from a command line may be absurd. */
static kd_status value_bytes(const kd_tdesc *t, const char *what, size_t *bytes, kd_err *err) {
    const size_t limit = (size_t)1 << 40;
    size_t n = kd_dtype_size(t->dtype);
    for (int i = 0; i < t->rank; i++)
        if (!kd_mul_size(n, (size_t)t->shape[i], &n) || n > limit)
            return kd_fail(err, KD_EFAIL, "batch %lld is too large: the result of %s alone would take more than 1 TiB; choose a smaller batch", (long long)t->shape[0], what);
    *bytes = n;
    return KD_OK;
}

/* ---- nodes ---- */

static kd_status add_pnode(kd_exec *e, const kd_graph *g, const kd_gnode *n, kd_err *err) {
    e->vals[root_of(e, g, n->y)].dtype = result_dtype(e, g, n);
    kd_pnode *p = &e->nodes[e->node_count++];
    memset(p, 0, sizeof *p);
    p->desc = n->desc;
    p->desc.name = kd_arena_strdup(e->names, n->desc.name);
    if (!p->desc.name)
        return kd_fail(err, KD_EFAIL, "out of memory for the plan of %d nodes", g->node_count);
    p->desc.train = e->config.train;
    p->desc.changing = e->config.values != NULL;
    for (int k = 0; k < n->desc.inputs; k++) {
        p->x[k] = root_of(e, g, n->x[k]);
        p->desc.x[k] = tensor_desc(e, g, n->x[k]);
    }
    p->y = root_of(e, g, n->y);
    p->desc.y = tensor_desc(e, g, n->y);
    memcpy(p->param, n->param, sizeof p->param);
    memcpy(p->state, n->state, sizeof p->state);
    p->loss_weight = n->loss_weight;
    if (n->desc.kind == KD_OP_BATCH_NORM) {
        e->has_batch_norm = 1;
        if (e->config.train && p->desc.y.shape[0] * p->desc.y.shape[1] * p->desc.y.shape[2] < 2)
            return kd_fail(err, KD_EUSAGE, "%s has one value per channel, and one value has no variance; choose a batch of at least 2 or larger images", p->desc.name);
    }
    if (n->desc.kind == KD_OP_KOLEO && e->config.batch < 2)
        return kd_fail(err, KD_EUSAGE, "loss %s compares the images of a batch, and a batch of one has none to compare; choose a batch of at least 2", p->desc.name);
    return value_bytes(&p->desc.y, p->desc.name, &e->vals[p->y].mem.bytes, err);
}

static kd_status add_taps(kd_exec *e, const kd_graph *g, kd_err *err) {
    KD_TRY(kd_alloc_array(&e->outputs, (size_t)g->output_count + 1, sizeof *e->outputs, err));
    for (int i = 0; i < g->output_count; i++) {
        kd_goutput o = g->outputs[i];
        if (e->vals[root_of(e, g, o.val)].live)
            e->outputs[e->output_count++] = (kd_ptap){.name = kd_arena_strdup(e->names, o.name), .val = root_of(e, g, o.val), .desc = tensor_desc(e, g, o.val)};
    }
    for (int i = 0; i < e->output_count; i++)
        if (!e->outputs[i].name)
            return kd_fail(err, KD_EFAIL, "out of memory for the plan");
    return KD_OK;
}

/* Inputs are values too, but without a producer: their types and sizes are known before any node. */
static kd_status add_inputs(kd_exec *e, const kd_graph *g, kd_err *err) {
    KD_TRY(kd_alloc_array(&e->inputs, (size_t)g->val_count + 1, sizeof *e->inputs, err));
    for (int v = 0; v < g->val_count; v++) {
        const kd_gval *gv = &g->vals[v];
        if (!gv->input || !e->vals[v].live)
            continue;
        e->vals[v].dtype = gv->input_dtype;
        kd_ptap *t = &e->inputs[e->input_count++];
        *t = (kd_ptap){.name = kd_arena_strdup(e->names, gv->input), .val = v, .desc = tensor_desc(e, g, v)};
        if (!t->name)
            return kd_fail(err, KD_EFAIL, "out of memory for the plan");
        KD_TRY(value_bytes(&t->desc, t->name, &e->vals[v].mem.bytes, err));
    }
    return KD_OK;
}

/* ---- fusion (inference only: training needs the values in between) ---- */

static int is_private(const kd_exec *e, kd_val v) {
    return e->vals[v].consumers == 1 && !e->vals[v].kept;
}

/* The node that makes v, if it is a linear layer or a convolution that can still take something on. */
static kd_pnode *open_producer(kd_exec *e, kd_val v, int before) {
    for (int i = before - 1; i >= 0; i--) {
        kd_pnode *n = &e->nodes[i];
        if (n->y != v)
            continue;
        int able = n->desc.kind == KD_OP_LINEAR || n->desc.kind == KD_OP_CONV2D;
        return able && n->desc.act == KD_ACT_NONE && !n->desc.residual && is_private(e, v) ? n : NULL;
    }
    return NULL;
}

/* linear -> GELU or ReLU, conv -> ReLU: the activation moves into the op that computes its input. */
static int fuse_act(kd_exec *e, int i) {
    kd_pnode *n = &e->nodes[i];
    if (n->desc.kind != KD_OP_RELU && n->desc.kind != KD_OP_GELU)
        return 0;
    kd_pnode *from = open_producer(e, n->x[0], i);
    if (!from || (n->desc.kind == KD_OP_GELU && from->desc.kind != KD_OP_LINEAR))
        return 0;
    from->desc.act = n->desc.kind == KD_OP_RELU ? KD_ACT_RELU : KD_ACT_GELU;
    from->desc.y.dtype = n->desc.y.dtype;
    from->y = n->y;
    return 1;
}

/* linear -> residual join: the linear layer writes residual + gamma * (x W^T + b). It moves to the place of the join, where the residual exists. */
static int fuse_join(kd_exec *e, int i) {
    kd_pnode *n = &e->nodes[i];
    int scaled = n->desc.kind == KD_OP_SCALE_ADD;
    if (!scaled && (n->desc.kind != KD_OP_ADD || n->desc.act != KD_ACT_NONE))
        return 0;
    int side = 1; /* which input the linear layer computes */
    kd_pnode *from = open_producer(e, n->x[1], i);
    if (!scaled && (!from || from->desc.kind != KD_OP_LINEAR)) {
        from = open_producer(e, n->x[0], i);
        side = 0;
    }
    if (!from || from->desc.kind != KD_OP_LINEAR || n->desc.x[1 - side].dtype != n->desc.y.dtype)
        return 0;
    kd_pnode joined = *from;
    joined.desc.residual = 1;
    joined.desc.inputs = 2;
    joined.desc.x[1] = n->desc.x[1 - side];
    joined.desc.y = n->desc.y;
    joined.x[1] = n->x[1 - side];
    joined.y = n->y;
    joined.param[2] = scaled ? n->param[0] : -1;
    from->y = -1; /* removed below */
    *n = joined;
    return 0;
}

static void fuse(kd_exec *e) {
    for (int i = 0; i < e->node_count; i++)
        if (fuse_act(e, i))
            e->nodes[i].y = -1;
        else
            fuse_join(e, i);
    int kept = 0;
    for (int i = 0; i < e->node_count; i++)
        if (e->nodes[i].y >= 0)
            e->nodes[kept++] = e->nodes[i];
    e->node_count = kept;
}

/* ---- gradients ---- */

static int has_trained_params(const kd_exec *e, const kd_pnode *n) {
    for (int k = 0; k < KD_OP_MAX_PARAM; k++)
        if (n->param[k] >= 0 && !e->p->params[n->param[k]].info.is_state)
            return 1;
    return 0;
}

/* Forwards: what trained parameters feed. Backwards: what losses depend on. */
static void mark_paths(kd_exec *e) {
    for (int i = 0; i < e->node_count; i++) {
        kd_pnode *n = &e->nodes[i];
        int fed = has_trained_params(e, n);
        for (int k = 0; k < n->desc.inputs; k++)
            fed |= e->vals[n->x[k]].trained;
        e->vals[n->y].trained = fed;
    }
    for (int i = e->node_count - 1; i >= 0; i--) {
        kd_pnode *n = &e->nodes[i];
        if (kd_is_loss(n->desc.kind))
            e->vals[n->y].to_loss = 1;
        n->backward = e->vals[n->y].to_loss && e->vals[n->y].trained;
        for (int k = 0; k < n->desc.inputs && n->backward; k++)
            e->vals[n->x[k]].to_loss = 1;
    }
}

/* A join passes its gradient on unchanged to the residual: when nobody has contributed to that gradient yet, it may simply be the same buffer, because the join is
 * the last reader of its own result's gradient. So the residual stream of a transformer has one gradient buffer from end to end. */
static int shares_gradient(const kd_exec *e, const kd_pnode *n) {
    int join = n->desc.kind == KD_OP_SCALE_ADD || (n->desc.kind == KD_OP_ADD && n->desc.act == KD_ACT_NONE);
    return join && !e->vals[n->x[0]].grad_written && n->desc.x[0].dtype == n->desc.y.dtype;
}

static void plan_gradients(kd_exec *e) {
    for (int v = 0; v < e->val_count; v++)
        e->vals[v].grad_root = v;
    for (int i = e->node_count - 1; i >= 0; i--) {
        kd_pnode *n = &e->nodes[i];
        if (!n->backward)
            continue;
        n->desc.need_dparam = has_trained_params(e, n);
        for (int k = 0; k < n->desc.inputs; k++) {
            kd_pval *x = &e->vals[n->x[k]];
            if (!x->trained)
                continue;
            if (k == 0 && shares_gradient(e, n)) {
                x->grad_root = e->vals[n->y].grad_root;
            } else {
                n->desc.need_dx |= 1u << k;
                if (x->grad_written)
                    n->desc.add_dx |= 1u << k;
            }
            x->grad_written = 1;
        }
    }
}

/* ---- all of it ---- */

static void check_same_params(const kd_exec *e, const kd_graph *g) {
    KD_ASSERT(e->p->count == g->param_count);
    for (int i = 0; i < g->param_count; i++)
        KD_ASSERT(strcmp(e->p->params[i].info.name, g->params[i].info.name) == 0);
}

kd_status kd_plan_nodes(kd_exec *e, const kd_graph *g, kd_err *err) {
    check_same_params(e, g);
    e->val_count = g->val_count;
    KD_TRY(kd_alloc_array(&e->vals, (size_t)g->val_count + 1, sizeof *e->vals, err));
    KD_TRY(kd_alloc_array(&e->nodes, (size_t)g->node_count + 1, sizeof *e->nodes, err));
    char *node_live = NULL;
    KD_TRY(kd_alloc_array(&node_live, (size_t)g->node_count + 1, 1, err));
    mark_live(e, g, node_live);
    count_consumers(e, g, node_live);
    kd_status status = add_inputs(e, g, err);
    for (int i = 0; i < g->node_count && status == KD_OK; i++)
        if (node_live[i])
            status = add_pnode(e, g, &g->nodes[i], err);
    kd_free(node_live);
    KD_TRY(status);
    KD_TRY(add_taps(e, g, err));
    if (!e->config.train) {
        fuse(e);
        return KD_OK;
    }
    mark_paths(e);
    plan_gradients(e);
    return KD_OK;
}

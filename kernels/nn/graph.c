/* The builder: appends values, nodes and parameters, and works out shapes as it goes. */
#include "kernels/nn/graph_impl.h"

#include <math.h>
#include <string.h>

/* Makes room for one more element; on failure the graph is marked and stays consistent. */
static int grow(kd_graph *g, void **list, int count, int *cap, size_t size) {
    if (count < *cap)
        return 1;
    int more = *cap ? *cap * 2 : 64;
    void *p = kd_realloc(*list, (size_t)more * size);
    if (!p) {
        g->failed = 1;
        return 0;
    }
    *list = p;
    *cap = more;
    return 1;
}

static const char *keep_name(kd_graph *g, const char *name) {
    const char *s = kd_arena_strdup(g->names, name);
    if (!s)
        g->failed = 1;
    return s;
}

kd_graph *kd_graph_create(void) {
    kd_graph *g = kd_calloc(1, sizeof *g);
    if (!g)
        return NULL;
    g->names = kd_arena_create();
    if (!g->names) {
        kd_free(g);
        return NULL;
    }
    return g;
}

void kd_graph_destroy(kd_graph *g) {
    if (!g)
        return;
    kd_arena_destroy(g->names);
    kd_free(g->vals);
    kd_free(g->nodes);
    kd_free(g->params);
    kd_free(g->outputs);
    kd_free(g);
}

void kd_graph_set_init(kd_graph *g, kd_init how) {
    g->init = how;
}

/* ---- values ---- */

static kd_val add_val(kd_graph *g, int rank, const int64_t *shape, int node) {
    KD_ASSERT(rank >= 1 && rank <= 3);
    void *list = g->vals;
    int ok = grow(g, &list, g->val_count, &g->val_cap, sizeof *g->vals);
    g->vals = list;
    if (!ok)
        return 0;
    kd_gval *v = &g->vals[g->val_count];
    memset(v, 0, sizeof *v);
    v->rank = rank;
    for (int i = 0; i < rank; i++) {
        KD_ASSERT(shape[i] > 0);
        v->shape[i] = shape[i];
    }
    v->node = node;
    v->root = g->val_count;
    return g->val_count++;
}

static kd_gval *val(const kd_graph *g, kd_val v) {
    KD_ASSERT(v >= 0 && v < g->val_count);
    return &g->vals[v];
}

static int64_t last_dim(const kd_graph *g, kd_val v) {
    const kd_gval *p = val(g, v);
    return p->shape[p->rank - 1];
}

void kd_graph_shape(const kd_graph *g, kd_val v, int *rank, int64_t shape[3]) {
    if (g->failed) { /* a builder may go on to compute with what it gets */
        *rank = 3;
        shape[0] = shape[1] = shape[2] = 1;
        return;
    }
    const kd_gval *p = val(g, v);
    *rank = p->rank;
    for (int i = 0; i < p->rank; i++)
        shape[i] = p->shape[i];
}

static kd_val add_input(kd_graph *g, const char *name, kd_dtype dtype, int rank, const int64_t *shape) {
    if (g->failed)
        return 0;
    for (int i = 0; i < g->val_count; i++)
        KD_ASSERT(!g->vals[i].input || strcmp(g->vals[i].input, name) != 0);
    const char *kept = keep_name(g, name);
    kd_val v = add_val(g, rank, shape, -1);
    if (g->failed)
        return 0;
    g->vals[v].input = kept;
    g->vals[v].input_dtype = dtype;
    return v;
}

kd_val kd_graph_images(kd_graph *g, int height, int width) {
    int64_t shape[3] = {height, width, 3};
    return add_input(g, "images", KD_U8, 3, shape);
}

kd_val kd_graph_input(kd_graph *g, const char *name, int rank, const int64_t *shape) {
    return add_input(g, name, KD_F32, rank, shape);
}

void kd_graph_output(kd_graph *g, kd_val v, const char *name) {
    if (g->failed)
        return;
    (void)val(g, v);
    for (int i = 0; i < g->output_count; i++)
        KD_ASSERT(strcmp(g->outputs[i].name, name) != 0);
    void *list = g->outputs;
    int ok = grow(g, &list, g->output_count, &g->output_cap, sizeof *g->outputs);
    g->outputs = list;
    const char *kept = keep_name(g, name);
    if (ok && kept)
        g->outputs[g->output_count++] = (kd_goutput){.name = kept, .val = v};
}

/* ---- parameters ---- */

static int add_param(kd_graph *g, const char *prefix, const char *suffix, int rank, const int64_t *shape, kd_fill fill, double amount) {
    KD_ASSERT(prefix && prefix[0]);
    char *name = suffix ? kd_arena_printf(g->names, "%s.%s", prefix, suffix) : kd_arena_strdup(g->names, prefix);
    void *list = g->params;
    int ok = grow(g, &list, g->param_count, &g->param_cap, sizeof *g->params);
    g->params = list;
    if (!ok || !name) {
        g->failed = 1;
        return -1;
    }
    for (int i = 0; i < g->param_count; i++)
        KD_ASSERT(strcmp(g->params[i].info.name, name) != 0);
    kd_gparam *p = &g->params[g->param_count];
    memset(p, 0, sizeof *p);
    p->info.name = name;
    p->info.rank = rank;
    p->info.count = 1;
    for (int i = 0; i < rank; i++) {
        p->info.shape[i] = shape[i];
        p->info.count *= (size_t)shape[i];
    }
    p->info.decay = rank >= 2;
    p->fill = fill;
    p->amount = amount;
    return g->param_count++;
}

static int add_vector(kd_graph *g, const char *prefix, const char *suffix, int64_t count, double value) {
    return add_param(g, prefix, suffix, 1, &count, KD_FILL_CONST, value);
}

int kd_graph_add_state(kd_graph *g, const char *prefix, const char *suffix, int rank, const int64_t *shape, double value) {
    int i = add_param(g, prefix, suffix, rank, shape, KD_FILL_CONST, value);
    if (i >= 0) {
        g->params[i].info.is_state = 1;
        g->params[i].info.decay = 0;
    }
    return i;
}

/* Tokens and positions: shaped [1,..] but no matrices, so no weight decay. */
static int add_token(kd_graph *g, const char *name, int rank, const int64_t *shape, double std) {
    int i = add_param(g, name, NULL, rank, shape, KD_FILL_NORMAL, std);
    if (i >= 0)
        g->params[i].info.decay = 0;
    return i;
}

/* weight and, with bias, bias of a linear layer or a convolution, by the current initialisation. */
static void add_weight_bias(kd_graph *g, kd_gnode *n, const char *name, int rank, const int64_t *shape, int bias) {
    int conv = rank == 4;
    double field = conv ? (double)(shape[2] * shape[3]) : 1.0;
    double fan_in = (double)shape[1] * field, fan_out = (double)shape[0] * field;
    kd_fill fill = KD_FILL_UNIFORM, bias_fill = KD_FILL_UNIFORM;
    double amount = 1.0 / sqrt(fan_in), bias_amount = amount, std = 0; /* std: of normal weights, with biases of 0 */
    if ((g->init == KD_INIT_KAIMING_FAN_OUT || g->init == KD_INIT_MOBILENET) && conv)
        std = sqrt(2.0 / fan_out);
    else if (g->init == KD_INIT_CONVNEXT || (g->init == KD_INIT_TRUNC_NORMAL_02 && !conv))
        std = 0.02;
    else if (g->init == KD_INIT_MOBILENET)
        std = 0.01;
    if (std > 0) {
        fill = KD_FILL_NORMAL;
        amount = std;
        bias_fill = KD_FILL_CONST;
        bias_amount = 0;
    }
    n->param[0] = add_param(g, name, "weight", rank, shape, fill, amount);
    if (bias)
        n->param[1] = add_param(g, name, "bias", 1, shape, bias_fill, bias_amount);
}

/* weight 1 and bias 0 of a normalisation. */
static void add_gain_bias(kd_graph *g, kd_gnode *n, const char *name, int64_t count) {
    n->param[0] = add_vector(g, name, "weight", count, 1.0);
    n->param[1] = add_vector(g, name, "bias", count, 0.0);
}

static void mark_carried(kd_graph *g, int param) {
    g->params[param].info.carried = 1;
    g->params[param].info.decay = 0;
}

void kd_graph_carry(kd_graph *g, const char *name, int rank, const int64_t *shape) {
    int param = g->failed ? -1 : add_param(g, name, NULL, rank, shape, KD_FILL_CONST, 0.0);
    if (param >= 0)
        mark_carried(g, param);
}

void kd_graph_carry_linear(kd_graph *g, const char *name, int in, int out) {
    kd_gnode n;
    if (g->failed)
        return;
    add_weight_bias(g, &n, name, 2, (int64_t[]){out, in}, 1);
    for (int i = 0; i < 2 && n.param[i] >= 0; i++) {
        mark_carried(g, n.param[i]);
        g->params[n.param[i]].info.classifier = 1;
    }
}

/* ---- nodes ---- */

kd_gnode kd_graph_new_node(kd_graph *g, kd_op_kind kind, const char *name, kd_val x0, kd_val x1) {
    kd_gnode n;
    memset(&n, 0, sizeof n);
    n.desc.kind = kind;
    n.desc.name = keep_name(g, name ? name : kd_op_kind_name(kind));
    n.desc.inputs = x1 >= 0 ? 2 : 1;
    (void)val(g, x0);
    KD_ASSERT(!val(g, x0)->scalar);
    n.x[0] = x0;
    n.x[1] = x1;
    if (x1 >= 0) /* one gradient buffer per value: an op that reads it twice would write it twice */
        KD_ASSERT(val(g, x0)->root != val(g, x1)->root);
    for (int i = 0; i < KD_OP_MAX_PARAM; i++)
        n.param[i] = -1;
    for (int i = 0; i < KD_OP_MAX_STATE; i++)
        n.state[i] = -1;
    return n;
}

/* Appends the node with a new result of the given shape. */
kd_val kd_graph_push(kd_graph *g, kd_gnode *n, int rank, const int64_t *shape) {
    if (g->failed)
        return 0;
    void *list = g->nodes;
    int ok = grow(g, &list, g->node_count, &g->node_cap, sizeof *g->nodes);
    g->nodes = list;
    if (!ok)
        return 0;
    n->y = add_val(g, rank, shape, g->node_count);
    if (g->failed)
        return 0;
    g->nodes[g->node_count++] = *n;
    return n->y;
}

static kd_val push_like(kd_graph *g, kd_gnode *n, kd_val like) {
    kd_gval v = *val(g, like);
    return kd_graph_push(g, n, v.rank, v.shape);
}

kd_val kd_graph_normalize(kd_graph *g, kd_val x, const float mean[3], const float std[3]) {
    if (g->failed)
        return 0;
    kd_gval *v = val(g, x);
    KD_ASSERT(v->rank == 3 && v->shape[2] == 3 && v->input && v->input_dtype == KD_U8);
    kd_gnode n = kd_graph_new_node(g, KD_OP_NORMALIZE, NULL, x, -1);
    for (int i = 0; i < 3; i++) {
        n.desc.mean[i] = mean[i];
        n.desc.std[i] = std[i];
    }
    return push_like(g, &n, x);
}

kd_val kd_graph_conv2d(kd_graph *g, kd_val x, const char *name, int out_channels, int kernel, int stride, int pad, int bias) {
    return kd_graph_conv2d_grouped(g, x, name, out_channels, kernel, stride, pad, 1, bias);
}

kd_val kd_graph_conv2d_grouped(kd_graph *g, kd_val x, const char *name, int out_channels, int kernel, int stride, int pad, int groups, int bias) {
    if (g->failed)
        return 0;
    kd_gval v = *val(g, x);
    KD_ASSERT(v.rank == 3 && stride > 0 && kernel > 0 && pad >= 0);
    KD_ASSERT(groups > 0 && v.shape[2] % groups == 0 && out_channels % groups == 0);
    KD_ASSERT(v.shape[0] + 2 * pad >= kernel && v.shape[1] + 2 * pad >= kernel);
    kd_gnode n = kd_graph_new_node(g, KD_OP_CONV2D, name, x, -1);
    n.desc.kernel = kernel;
    n.desc.stride = stride;
    n.desc.pad = pad;
    n.desc.groups = groups;
    n.desc.bias = bias != 0;
    int64_t w[4] = {out_channels, v.shape[2] / groups, kernel, kernel};
    add_weight_bias(g, &n, name, 4, w, bias);
    int64_t y[3] = {(v.shape[0] + 2 * pad - kernel) / stride + 1, (v.shape[1] + 2 * pad - kernel) / stride + 1, out_channels};
    return kd_graph_push(g, &n, 3, y);
}

kd_val kd_graph_linear(kd_graph *g, kd_val x, const char *name, int out, int bias) {
    if (g->failed)
        return 0;
    kd_gval v = *val(g, x);
    kd_gnode n = kd_graph_new_node(g, KD_OP_LINEAR, name, x, -1);
    n.desc.bias = bias != 0;
    int64_t w[2] = {out, last_dim(g, x)};
    add_weight_bias(g, &n, name, 2, w, bias);
    v.shape[v.rank - 1] = out;
    return kd_graph_push(g, &n, v.rank, v.shape);
}

kd_val kd_graph_batch_norm(kd_graph *g, kd_val x, kd_val residual, const char *name, float eps, float momentum, kd_act act) {
    if (g->failed)
        return 0;
    int64_t c = last_dim(g, x);
    int fused = act == KD_ACT_NONE || act == KD_ACT_RELU || (residual < 0 && (act == KD_ACT_SILU || act == KD_ACT_HARDSWISH)); /* others take a node of their own */
    KD_ASSERT(val(g, x)->rank == 3);
    if (residual >= 0) {
        const kd_gval *a = val(g, x), *r = val(g, residual);
        KD_ASSERT(a->rank == r->rank && memcmp(a->shape, r->shape, sizeof a->shape) == 0);
    }
    kd_gnode n = kd_graph_new_node(g, KD_OP_BATCH_NORM, name, x, residual);
    n.desc.eps = eps;
    n.desc.momentum = momentum;
    n.desc.act = fused ? act : KD_ACT_NONE;
    add_gain_bias(g, &n, name, c);
    n.state[0] = kd_graph_add_state(g, name, "running_mean", 1, &c, 0.0);
    n.state[1] = kd_graph_add_state(g, name, "running_var", 1, &c, 1.0);
    int counter = add_param(g, name, "num_batches_tracked", 0, NULL, KD_FILL_CONST, 0.0);
    if (counter >= 0) {
        g->params[counter].info.is_state = 1;
        g->params[counter].info.is_counter = 1;
    }
    kd_val y = push_like(g, &n, x);
    return fused ? y : kd_graph_act(g, y, act);
}

kd_val kd_graph_layer_norm(kd_graph *g, kd_val x, const char *name, float eps) {
    if (g->failed)
        return 0;
    kd_gnode n = kd_graph_new_node(g, KD_OP_LAYER_NORM, name, x, -1);
    n.desc.eps = eps;
    add_gain_bias(g, &n, name, last_dim(g, x));
    return push_like(g, &n, x);
}

kd_val kd_graph_layer_norm_again(kd_graph *g, kd_val x, const char *name) {
    const kd_gnode *first = NULL;
    if (g->failed)
        return 0;
    for (int i = 0; i < g->node_count && !first; i++)
        if (g->nodes[i].desc.kind == KD_OP_LAYER_NORM && strcmp(g->nodes[i].desc.name, name) == 0)
            first = &g->nodes[i];
    KD_ASSERT(first && g->params[first->param[0]].info.count == (size_t)last_dim(g, x));
    float eps = first->desc.eps;
    int weight = first->param[0], bias = first->param[1];
    kd_gnode n = kd_graph_new_node(g, KD_OP_LAYER_NORM, name, x, -1);
    n.desc.eps = eps;
    n.param[0] = weight;
    n.param[1] = bias;
    return push_like(g, &n, x);
}

kd_val kd_graph_act(kd_graph *g, kd_val x, kd_act act) {
    if (g->failed || act == KD_ACT_NONE)
        return x;
    static const kd_op_kind kinds[] = {[KD_ACT_RELU] = KD_OP_RELU, [KD_ACT_GELU] = KD_OP_GELU, [KD_ACT_SILU] = KD_OP_SILU, [KD_ACT_HARDSWISH] = KD_OP_HARDSWISH,
                                       [KD_ACT_HARDSIGMOID] = KD_OP_HARDSIGMOID};
    kd_gnode n = kd_graph_new_node(g, kinds[act], NULL, x, -1);
    return push_like(g, &n, x);
}

kd_val kd_graph_silu_gate(kd_graph *g, kd_val x) {
    if (g->failed)
        return 0;
    kd_gval v = *val(g, x);
    KD_ASSERT(v.shape[v.rank - 1] % 2 == 0);
    kd_gnode n = kd_graph_new_node(g, KD_OP_SILU_GATE, NULL, x, -1);
    v.shape[v.rank - 1] /= 2;
    return kd_graph_push(g, &n, v.rank, v.shape);
}

/* A node that joins two values of one shape. */
static kd_gnode join_node(kd_graph *g, kd_op_kind kind, const char *name, kd_val a, kd_val b) {
    const kd_gval *va = val(g, a), *vb = val(g, b);
    KD_ASSERT(va->rank == vb->rank && memcmp(va->shape, vb->shape, sizeof va->shape) == 0);
    return kd_graph_new_node(g, kind, name, a, b);
}

static kd_val add(kd_graph *g, kd_val a, kd_val b, int shortcut) {
    if (g->failed)
        return 0;
    kd_gnode n = join_node(g, KD_OP_ADD, NULL, a, b);
    n.shortcut = shortcut;
    return push_like(g, &n, a);
}

kd_val kd_graph_add(kd_graph *g, kd_val a, kd_val b) {
    return add(g, a, b, 0);
}

kd_val kd_graph_shortcut(kd_graph *g, kd_val a, kd_val b) {
    return add(g, a, b, 1);
}

kd_val kd_graph_scale_add(kd_graph *g, kd_val residual, kd_val x, const char *gamma_name) {
    int64_t d = g->failed ? 1 : last_dim(g, residual);
    return kd_graph_scale_add_shaped(g, residual, x, gamma_name, 1, &d, 1.0f);
}

kd_val kd_graph_scale_add_shaped(kd_graph *g, kd_val residual, kd_val x, const char *gamma_name, int rank, const int64_t *shape, float init) {
    if (g->failed)
        return 0;
    kd_gnode n = join_node(g, KD_OP_SCALE_ADD, gamma_name, residual, x);
    n.param[0] = add_param(g, gamma_name, NULL, rank, shape, KD_FILL_CONST, (double)init);
    if (n.param[0] >= 0) {
        KD_ASSERT(g->params[n.param[0]].info.count == (size_t)last_dim(g, residual));
        g->params[n.param[0]].info.decay = 0; /* a scale, whatever its rank */
    }
    return push_like(g, &n, residual);
}

kd_val kd_graph_max_pool(kd_graph *g, kd_val x, int kernel, int stride, int pad) {
    if (g->failed)
        return 0;
    kd_gval v = *val(g, x);
    KD_ASSERT(v.rank == 3 && stride > 0 && pad >= 0 && 2 * pad <= kernel);
    KD_ASSERT(v.shape[0] + 2 * pad >= kernel && v.shape[1] + 2 * pad >= kernel);
    kd_gnode n = kd_graph_new_node(g, KD_OP_MAX_POOL, NULL, x, -1);
    n.desc.kernel = kernel;
    n.desc.stride = stride;
    n.desc.pad = pad;
    int64_t y[3] = {(v.shape[0] + 2 * pad - kernel) / stride + 1, (v.shape[1] + 2 * pad - kernel) / stride + 1, v.shape[2]};
    return kd_graph_push(g, &n, 3, y);
}

kd_val kd_graph_mean_tokens(kd_graph *g, kd_val x) {
    if (g->failed)
        return 0;
    KD_ASSERT(val(g, x)->rank >= 2);
    kd_gnode n = kd_graph_new_node(g, KD_OP_MEAN_TOKENS, NULL, x, -1);
    int64_t d = last_dim(g, x);
    return kd_graph_push(g, &n, 1, &d);
}

kd_val kd_graph_attention(kd_graph *g, kd_val qkv, int heads) {
    if (g->failed)
        return 0;
    kd_gval v = *val(g, qkv);
    KD_ASSERT(v.rank == 2 && heads > 0 && v.shape[1] % (3 * (int64_t)heads) == 0);
    kd_gnode n = kd_graph_new_node(g, KD_OP_ATTENTION, NULL, qkv, -1);
    n.desc.heads = heads;
    v.shape[1] /= 3;
    return kd_graph_push(g, &n, 2, v.shape);
}

kd_val kd_graph_rope(kd_graph *g, kd_val qkv, int heads, int begin, int grid_h, int grid_w, const float *period, int periods) {
    if (g->failed)
        return 0;
    kd_gval v = *val(g, qkv);
    KD_ASSERT(v.rank == 2 && heads > 0 && periods > 0 && periods <= KD_OP_MAX_PERIODS && v.shape[1] == 3 * (int64_t)heads * 4 * periods);
    KD_ASSERT(begin >= 0 && grid_h > 0 && grid_w > 0 && v.shape[0] - begin == (int64_t)grid_h * grid_w);
    kd_gnode n = kd_graph_new_node(g, KD_OP_ROPE, NULL, qkv, -1);
    n.desc.heads = heads;
    n.desc.begin = begin;
    n.desc.grid_h = grid_h;
    n.desc.grid_w = grid_w;
    n.desc.periods = periods;
    memcpy(n.desc.period, period, (size_t)periods * sizeof *period);
    return push_like(g, &n, qkv);
}

kd_val kd_graph_tokens(kd_graph *g, kd_val patches, const char *cls_name, const char *pos_name, const char *reg_name, int registers) {
    if (g->failed)
        return 0;
    kd_gval v = *val(g, patches);
    KD_ASSERT(v.rank == 2 && registers >= 0);
    kd_gnode n = kd_graph_new_node(g, KD_OP_TOKENS, NULL, patches, -1);
    int64_t cls[3] = {1, 1, v.shape[1]}, pos[3] = {1, 1 + v.shape[0], v.shape[1]}, reg[3] = {1, registers, v.shape[1]};
    n.desc.positions = pos_name != NULL;
    n.desc.registers = registers;
    /* timm vision_transformer.py and DINOv2 vision_transformer.py, init_weights: class token and registers normal 1e-6, positions truncated normal 0.02 */
    n.param[0] = add_token(g, cls_name, 3, cls, 1e-6);
    if (pos_name)
        n.param[1] = add_token(g, pos_name, 3, pos, 0.02);
    if (registers)
        n.param[2] = add_token(g, reg_name, 3, reg, 1e-6);
    v.shape[0] += 1 + registers;
    return kd_graph_push(g, &n, 2, v.shape);
}

kd_val kd_graph_concat(kd_graph *g, kd_val a, kd_val b) {
    return kd_graph_concat_n(g, (kd_val[]){a, b}, 2);
}

kd_val kd_graph_concat_n(kd_graph *g, const kd_val *x, int n) {
    if (g->failed)
        return 0;
    KD_ASSERT(n >= 2 && n <= KD_OP_MAX_X);
    kd_gnode node = kd_graph_new_node(g, KD_OP_CONCAT, NULL, x[0], x[1]);
    kd_gval y = *val(g, x[0]);
    node.desc.inputs = n;
    for (int k = 1; k < n; k++) {
        const kd_gval *v = val(g, x[k]);
        KD_ASSERT(v->rank == y.rank && !v->scalar);
        for (int i = 0; i + 1 < y.rank; i++)
            KD_ASSERT(v->shape[i] == y.shape[i]);
        for (int i = 0; i < k; i++) /* as in new_node */
            KD_ASSERT(v->root != val(g, x[i])->root);
        y.shape[y.rank - 1] += v->shape[y.rank - 1];
        node.x[k] = x[k];
    }
    return kd_graph_push(g, &node, y.rank, y.shape);
}

kd_val kd_graph_channel_slice(kd_graph *g, kd_val x, int begin, int count) {
    if (g->failed)
        return 0;
    kd_gval v = *val(g, x);
    KD_ASSERT(begin >= 0 && count > 0 && begin + count <= last_dim(g, x));
    kd_gnode n = kd_graph_new_node(g, KD_OP_CHANNEL_SLICE, NULL, x, -1);
    n.desc.begin = begin;
    v.shape[v.rank - 1] = count;
    return kd_graph_push(g, &n, v.rank, v.shape);
}

kd_val kd_graph_channel_gate(kd_graph *g, kd_val x, kd_val s) {
    if (g->failed)
        return 0;
    const kd_gval *v = val(g, s);
    KD_ASSERT(last_dim(g, s) == last_dim(g, x));
    for (int i = 0; i + 1 < v->rank; i++)
        KD_ASSERT(v->shape[i] == 1);
    kd_gnode n = kd_graph_new_node(g, KD_OP_CHANNEL_GATE, NULL, x, s);
    return push_like(g, &n, x);
}

kd_val kd_graph_row_scale(kd_graph *g, kd_val x, kd_val s) {
    if (g->failed)
        return 0;
    const kd_gval *v = val(g, s);
    KD_ASSERT(v->rank == 1 && v->shape[0] == 1 && v->input && v->input_dtype == KD_F32);
    kd_gnode n = kd_graph_new_node(g, KD_OP_ROW_SCALE, NULL, x, s);
    return push_like(g, &n, x);
}

kd_val kd_graph_qkv_by_head(kd_graph *g, kd_val x, int heads, int key_dim) {
    if (g->failed)
        return 0;
    kd_gval v = *val(g, x);
    KD_ASSERT(v.rank == 2 && heads > 0 && key_dim > 0 && v.shape[1] % heads == 0);
    int64_t head_dim = v.shape[1] / heads - 2 * (int64_t)key_dim;
    KD_ASSERT(head_dim >= key_dim);
    kd_gnode n = kd_graph_new_node(g, KD_OP_QKV_BY_HEAD, NULL, x, -1);
    n.desc.heads = heads;
    n.desc.key_dim = key_dim;
    v.shape[1] = 3 * heads * head_dim;
    return kd_graph_push(g, &n, 2, v.shape);
}

kd_val kd_graph_token_slice(kd_graph *g, kd_val x, int begin, int count) {
    if (g->failed)
        return 0;
    kd_gval v = *val(g, x);
    KD_ASSERT(v.rank == 2 && begin >= 0 && count > 0 && begin + count <= v.shape[0]);
    kd_gnode n = kd_graph_new_node(g, KD_OP_TOKEN_SLICE, NULL, x, -1);
    n.desc.begin = begin;
    v.shape[0] = count;
    return kd_graph_push(g, &n, 2, v.shape);
}

kd_val kd_graph_reshape(kd_graph *g, kd_val x, int rank, const int64_t *shape) {
    if (g->failed)
        return 0;
    kd_gval v = *val(g, x);
    int64_t have = 1, want = 1;
    for (int i = 0; i < v.rank; i++)
        have *= v.shape[i];
    for (int i = 0; i < rank; i++)
        want *= shape[i];
    KD_ASSERT(have == want && !v.scalar);
    kd_val y = add_val(g, rank, shape, v.node);
    if (g->failed)
        return 0;
    g->vals[y].root = v.root;
    return y;
}

kd_val kd_graph_resize_bilinear(kd_graph *g, kd_val x, int height, int width) {
    if (g->failed)
        return 0;
    kd_gval v = *val(g, x);
    KD_ASSERT(v.rank == 3);
    if (v.shape[0] == height && v.shape[1] == width)
        return x;
    kd_gnode n = kd_graph_new_node(g, KD_OP_RESIZE_BILINEAR, NULL, x, -1);
    int64_t y[3] = {height, width, v.shape[2]};
    return kd_graph_push(g, &n, 3, y);
}

/* The op that makes a value writes F32 itself; those that can't aren't producers of features. */
static int writes_f32(kd_op_kind k) {
    switch (k) {
    case KD_OP_LINEAR:
    case KD_OP_CONV2D:
    case KD_OP_LAYER_NORM:
    case KD_OP_BATCH_NORM:
    case KD_OP_RELU:
    case KD_OP_GELU:
    case KD_OP_SILU:
    case KD_OP_HARDSWISH:
    case KD_OP_HARDSIGMOID:
    case KD_OP_MEAN_TOKENS:
    case KD_OP_ADD:
    case KD_OP_SCALE_ADD:
    case KD_OP_CHANNEL_GATE:
    case KD_OP_TOKENS:
    case KD_OP_L2_NORMALIZE:
        return 1;
    default:
        return 0;
    }
}

static void mark_f32(kd_graph *g, kd_val v) {
    kd_val r = val(g, v)->root;
    g->vals[r].f32 = 1;
    if (g->vals[r].node < 0)
        return;
    const kd_gnode *n = &g->nodes[g->vals[r].node];
    if (!kd_keeps_dtype(n->desc.kind)) {
        KD_ASSERT(writes_f32(n->desc.kind));
        return;
    }
    for (int k = 0; k < n->desc.inputs; k++)
        mark_f32(g, n->x[k]);
}

kd_val kd_graph_as_f32(kd_graph *g, kd_val x) {
    if (g->failed)
        return 0;
    mark_f32(g, x);
    return x;
}

/* ---- for graph_loss.c ---- */

const kd_gval *kd_graph_value(const kd_graph *g, kd_val v) {
    return val(g, v);
}

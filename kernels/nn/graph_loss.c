/* The builder's losses: nodes whose result is one number for the batch, which backward minimises. */
#include <string.h>

#include "kernels/nn/graph_impl.h"

kd_val kd_graph_l2_normalize(kd_graph *g, kd_val x) {
    if (g->failed)
        return 0;
    kd_gval v = *kd_graph_value(g, x);
    kd_gnode n = kd_graph_new_node(g, KD_OP_L2_NORMALIZE, NULL, x, -1);
    return kd_graph_push(g, &n, v.rank, v.shape);
}

/* Whether a parameter that could be trained feeds v. */
static int has_params_behind(const kd_graph *g, kd_val v) {
    int producer = kd_graph_value(g, v)->node;
    if (producer < 0)
        return 0;
    const kd_gnode *n = &g->nodes[producer];
    for (int k = 0; k < KD_OP_MAX_PARAM; k++)
        if (n->param[k] >= 0)
            return 1;
    for (int k = 0; k < n->desc.inputs; k++)
        if (has_params_behind(g, n->x[k]))
            return 1;
    return 0;
}

/* A target in F32. It gets no gradient, so nothing behind it may want one. */
static kd_val as_target(kd_graph *g, kd_val target) {
    const kd_gval *v = kd_graph_value(g, target);
    KD_ASSERT(!v->scalar && !has_params_behind(g, target) && (!v->input || v->input_dtype == KD_F32));
    return kd_graph_as_f32(g, target);
}

/* A loss node over a prediction and a target of its shape. */
static kd_gnode pair_node(kd_graph *g, kd_op_kind kind, kd_val pred, kd_val target, const char *name) {
    kd_val x0 = kd_graph_as_f32(g, pred), x1 = as_target(g, target);
    const kd_gval *a = kd_graph_value(g, x0), *b = kd_graph_value(g, x1);
    KD_ASSERT(a->rank == b->rank && memcmp(a->shape, b->shape, sizeof a->shape) == 0);
    return kd_graph_new_node(g, kind, name, x0, x1);
}

/* Pushes a loss node: its result is a scalar output that bears its name. */
static void push_loss(kd_graph *g, kd_gnode *n, float weight) {
    int64_t one = 1;
    n->loss_weight = weight;
    kd_val y = kd_graph_push(g, n, 1, &one);
    if (g->failed)
        return;
    g->vals[y].scalar = 1;
    kd_graph_output(g, y, n->desc.name);
}

/* A loss over a pair that has no attribute but, for some, a temperature. */
static void pair_loss(kd_graph *g, kd_op_kind kind, kd_val pred, kd_val target, float temperature, float weight, const char *name) {
    if (g->failed)
        return;
    kd_gnode n = pair_node(g, kind, pred, target, name);
    n.desc.temperature = temperature;
    push_loss(g, &n, weight);
}

void kd_graph_mse(kd_graph *g, kd_val pred, kd_val target, float weight, const char *name) {
    pair_loss(g, KD_OP_MSE, pred, target, 0, weight, name);
}

void kd_graph_mse_adjoint(kd_graph *g, kd_val pred, kd_val target, kd_val square, int grid_h, int grid_w, float weight, const char *name) {
    if (g->failed)
        return;
    const kd_gval *s = kd_graph_value(g, square);
    KD_ASSERT(kd_graph_value(g, pred)->rank == 3 && s->rank == 1 && s->shape[0] == 1 && s->input && s->input_dtype == KD_F32 && grid_h > 0 && grid_w > 0);
    kd_gnode n = pair_node(g, KD_OP_MSE_ADJOINT, pred, target, name);
    n.desc.inputs = 3;
    n.x[2] = square;
    n.desc.grid_h = grid_h;
    n.desc.grid_w = grid_w;
    push_loss(g, &n, weight);
}

void kd_graph_cosine(kd_graph *g, kd_val pred, kd_val target, float weight, const char *name) {
    pair_loss(g, KD_OP_COSINE, pred, target, 0, weight, name);
}

void kd_graph_smooth_l1(kd_graph *g, kd_val pred, kd_val target, float beta, float weight, const char *name) {
    if (g->failed)
        return;
    kd_gnode n = pair_node(g, KD_OP_SMOOTH_L1, pred, target, name);
    n.desc.beta = beta;
    push_loss(g, &n, weight);
}

void kd_graph_kl_logits(kd_graph *g, kd_val pred, kd_val target, float temperature, float weight, const char *name) {
    pair_loss(g, KD_OP_KL_LOGITS, pred, target, temperature, weight, name);
}

void kd_graph_kl_queue(kd_graph *g, kd_val pred, kd_val target, int queue_rows, float temperature, float weight, const char *name) {
    if (g->failed)
        return;
    const kd_gval *v = kd_graph_value(g, pred);
    int64_t queue[2] = {queue_rows, v->shape[0]};
    KD_ASSERT(v->rank == 1 && queue_rows >= 1);
    kd_gnode n = pair_node(g, KD_OP_KL_QUEUE, pred, target, name);
    n.desc.queue_rows = queue_rows;
    n.desc.temperature = temperature;
    n.state[0] = kd_graph_add_state(g, name, "queue", 2, queue, 0.0);
    push_loss(g, &n, weight);
}

/* Positions of one image: [P,D] or [h,w,D]. */
static int has_patches(const kd_graph *g, kd_val v) {
    return g->failed || kd_graph_value(g, v)->rank >= 2;
}

void kd_graph_kl_intra(kd_graph *g, kd_val pred, kd_val target, float temperature, float weight, const char *name) {
    KD_ASSERT(has_patches(g, pred));
    pair_loss(g, KD_OP_KL_INTRA, pred, target, temperature, weight, name);
}

void kd_graph_gram(kd_graph *g, kd_val pred, kd_val target, float weight, const char *name) {
    KD_ASSERT(has_patches(g, pred));
    pair_loss(g, KD_OP_GRAM, pred, target, 0, weight, name);
}

void kd_graph_koleo(kd_graph *g, kd_val pred, float weight, const char *name) {
    if (g->failed)
        return;
    kd_val x = kd_graph_as_f32(g, pred);
    KD_ASSERT(kd_graph_value(g, x)->rank == 1);
    kd_gnode n = kd_graph_new_node(g, KD_OP_KOLEO, name, x, -1);
    push_loss(g, &n, weight);
}

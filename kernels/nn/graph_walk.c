#include "kernels/nn/graph_walk.h"

#include <string.h>

#include "kernels/nn/graph_impl.h"

int kd_graph_nodes(const kd_graph *g) {
    return g->node_count;
}

int kd_graph_values(const kd_graph *g) {
    return g->val_count;
}

kd_graph_node kd_graph_node_at(const kd_graph *g, int i) {
    KD_ASSERT(i >= 0 && i < g->node_count);
    const kd_gnode *n = &g->nodes[i];
    kd_graph_node out = {.desc = &n->desc, .y = n->y};
    memcpy(out.x, n->x, sizeof out.x);
    memcpy(out.param, n->param, sizeof out.param);
    memcpy(out.state, n->state, sizeof out.state);
    return out;
}

int kd_graph_producer(const kd_graph *g, kd_val v) {
    return kd_graph_value(g, v)->node;
}

kd_val kd_graph_root(const kd_graph *g, kd_val v) {
    return kd_graph_value(g, v)->root;
}

void kd_graph_needed(const kd_graph *g, const kd_val *values, int n, char *needed) {
    memset(needed, 0, (size_t)g->node_count);
    for (int i = 0; i < n; i++)
        if (kd_graph_producer(g, values[i]) >= 0)
            needed[kd_graph_producer(g, values[i])] = 1;
    for (int i = g->node_count - 1; i >= 0; i--) /* a node's inputs are made before it */
        for (int k = 0; needed[i] && k < g->nodes[i].desc.inputs; k++)
            if (kd_graph_producer(g, g->nodes[i].x[k]) >= 0)
                needed[kd_graph_producer(g, g->nodes[i].x[k])] = 1;
}

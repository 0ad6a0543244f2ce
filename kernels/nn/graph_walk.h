/* Graph walk: a read-only look at a graph's nodes, for those who say it in another language (train/export/onnx.c). What runs it needs none of this.
 *
 *     for (int i = 0; i < kd_graph_nodes(g); i++) {
 *         kd_graph_node n = kd_graph_node_at(g, i);
 *         ... n.desc->kind, kd_graph_shape(g, n.y, ...), kd_params_info(p, n.param[0]).name ...
 *     }
 *
 * Nodes are in order of building, so that a node's inputs are there before it. A value that kd_graph_reshape made has no node: it is another shape of what kd_graph_root says.
 * Thread rule: that of graph.h. */
#ifndef KD_KERNELS_NN_GRAPH_WALK_H
#define KD_KERNELS_NN_GRAPH_WALK_H

#include "kernels/nn/graph.h"

typedef struct kd_graph_node {
    const kd_op_desc *desc; /* kind, name, inputs and attributes (formulas: kernels/ops.h); shapes and types are a program's and not filled. Lives as long as nothing is added to the graph */
    kd_val x[KD_OP_MAX_X], y;
    int param[KD_OP_MAX_PARAM], state[KD_OP_MAX_STATE]; /* indexes for kd_params_info; -1: none */
} kd_graph_node;

int kd_graph_nodes(const kd_graph *g);
kd_graph_node kd_graph_node_at(const kd_graph *g, int i);
/* The node that computes v (for a reshaped value: its root); -1 for an input. */
int kd_graph_producer(const kd_graph *g, kd_val v);
/* The value whose memory v has: v itself, unless it was reshaped. */
kd_val kd_graph_root(const kd_graph *g, kd_val v);
int kd_graph_values(const kd_graph *g); /* values are 0 .. this - 1 */
/* Into needed [kd_graph_nodes]: 1 for every node that one of the n values depends on, else 0. */
void kd_graph_needed(const kd_graph *g, const kd_val *values, int n, char *needed);

#endif

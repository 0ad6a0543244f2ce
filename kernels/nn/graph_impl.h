/* What graph.c, graph_loss.c, graph_walk.c, params.c, plan.c, frozen.c, exec.c and inspect.c share, and nobody else: the graph's lists, the parameter store, a compiled program.
 *
 * A graph is data: values (shapes without batch), nodes in order of building (an op's attributes and which values and parameters it
 * touches), parameters. plan.c turns it into a kd_exec: the nodes that are needed, each with a complete kd_op_desc, fused where that
 * saves a pass, and an address for everything. exec.c only runs that list. */
#ifndef KD_KERNELS_NN_GRAPH_IMPL_H
#define KD_KERNELS_NN_GRAPH_IMPL_H

#include "common/base/mem.h"
#include "kernels/nn/graph.h"

enum { KD_ALIGN_BYTES = 64, KD_ALIGN_FLOATS = 16 };

/* How a parameter starts. */
typedef enum kd_fill { KD_FILL_CONST, KD_FILL_UNIFORM /* +-amount */, KD_FILL_NORMAL /* std = amount */ } kd_fill;

typedef struct kd_gparam {
    kd_param_info info; /* info.name lives in the owner's arena */
    kd_fill fill;
    double amount;
} kd_gparam;

typedef struct kd_gval {
    int rank;
    int64_t shape[3];
    int node;          /* producer, -1 for inputs */
    kd_val root;       /* whose memory it is: itself, or for a reshape the value it views */
    int f32;           /* kd_graph_as_f32 was asked for (set on roots) */
    int scalar;        /* a loss: one number for the whole batch */
    const char *input; /* name, for inputs */
    kd_dtype input_dtype;
} kd_gval;

typedef struct kd_gnode {
    kd_op_desc desc; /* kind, name, inputs and attributes; shapes, dtypes and modes are the plan's */
    kd_val x[KD_OP_MAX_X], y;
    int param[KD_OP_MAX_PARAM], state[KD_OP_MAX_STATE]; /* indexes of parameters, -1 = none */
    float loss_weight;
    int shortcut; /* an ADD whose result has the program's precision */
} kd_gnode;

typedef struct kd_goutput {
    const char *name;
    kd_val val;
} kd_goutput;

/* Ops that copy, choose, turn or scale values: their result has the type of their input, so a request for F32 goes through them. */
static inline int kd_keeps_dtype(kd_op_kind k) {
    return k == KD_OP_TOKEN_SLICE || k == KD_OP_MAX_POOL || k == KD_OP_RESIZE_BILINEAR || k == KD_OP_CONCAT || k == KD_OP_ROPE || k == KD_OP_CHANNEL_SLICE || k == KD_OP_ROW_SCALE ||
           k == KD_OP_QKV_BY_HEAD;
}

/* Ops whose result is one number for the batch, which backward minimises. */
static inline int kd_is_loss(kd_op_kind k) {
    return k == KD_OP_MSE || k == KD_OP_MSE_ADJOINT || (k >= KD_OP_COSINE && k <= KD_OP_KOLEO);
}

struct kd_graph {
    kd_arena *names;
    int failed; /* memory ran out while building */
    kd_init init;
    kd_gval *vals;
    kd_gnode *nodes;
    kd_gparam *params;
    kd_goutput *outputs;
    int val_count, node_count, param_count, output_count;
    int val_cap, node_cap, param_cap, output_cap;
};

/* The builder's own steps (graph.c), for the files that hold further builder calls. None may be called while g->failed.
 * value: v, which must exist. new_node: over x0 and, unless it is -1, x1, without parameters or states. push: appends it with a result of that shape (0 when memory is out).
 * add_state: a parameter prefix.suffix that is no one's to train and starts at value; its index, -1 when memory is out. */
const kd_gval *kd_graph_value(const kd_graph *g, kd_val v);
kd_gnode kd_graph_new_node(kd_graph *g, kd_op_kind kind, const char *name, kd_val x0, kd_val x1);
kd_val kd_graph_push(kd_graph *g, kd_gnode *n, int rank, const int64_t *shape);
int kd_graph_add_state(kd_graph *g, const char *prefix, const char *suffix, int rank, const int64_t *shape, double value);

struct kd_params {
    kd_backend *b;
    kd_arena *names;
    kd_gparam *params;
    size_t *offset; /* element offset in `trained` or `states` */
    int count;
    float *trained, *states; /* device */
    size_t decayed, trained_total, states_total;
    int64_t counter;
    uint64_t version, state_version; /* programs compare these with what they packed */
    kd_param_source source;          /* frozen parameters: read is set, and there are no arrays */
};

/* A run of bytes that must not overlap others alive at the same time: [first, last] in a program's time (plan_memory.c); empty: none. */
typedef struct kd_span {
    size_t bytes, offset;
    int first, last;
} kd_span;

/* plan_memory.c. Gives every span an offset, the largest first, each at the lowest address free during its life. Returns the arena's size. KD_EFAIL: memory. */
kd_status kd_plan_place(kd_span *spans, size_t count, size_t *total, kd_err *err);

/* A value inside a program. Entries of values that aren't roots are unused. */
typedef struct kd_pval {
    kd_dtype dtype;
    int live;         /* computed or uploaded in this program */
    int consumers;    /* live nodes that read it */
    int kept;         /* an output or an input: its memory is never shared */
    int trained;      /* a trained parameter feeds it */
    int to_loss;      /* a loss depends on it */
    int grad_written; /* planning: a consumer has contributed already */
    kd_val grad_root; /* whose gradient buffer it uses */
    kd_span mem, grad;
} kd_pval;

/* A node inside a program. */
typedef struct kd_pnode {
    kd_op_desc desc;
    kd_val x[KD_OP_MAX_X], y; /* roots */
    int param[KD_OP_MAX_PARAM], state[KD_OP_MAX_STATE];
    float loss_weight;
    int backward; /* takes part in the backward pass */
    kd_op *op;
    kd_op_needs needs;
    kd_span saved;
    kd_op_args args;
    double seconds[2]; /* forward, backward, while profiling */
} kd_pnode;

typedef struct kd_ptap {
    const char *name;
    kd_val val; /* root */
    kd_tdesc desc;
    void *data;
    /* of an input of a device with memory of its own: rows that came one by one wait here and go there together, as one copy, when the batch is complete or a pass begins */
    char *rows;
    int first_row, end_row; /* those that wait */
} kd_ptap;

typedef enum kd_arena_kind {
    KD_ARENA_ACTIVATIONS, KD_ARENA_PARAM_GRADIENTS, KD_ARENA_PARAMETERS, KD_ARENA_PACKED, KD_ARENA_SCRATCH, KD_ARENA_KINDS
} kd_arena_kind;

#define KD_NOT_KEPT SIZE_MAX

/* The passes that are queued as one where the backend records (recorded.c). */
typedef enum kd_pass { KD_PASS_PACK, KD_PASS_FORWARD, KD_PASS_BACKWARD, KD_PASS_BACKWARD_ADDED /* to the gradients that are there */, KD_PASSES } kd_pass;

typedef struct kd_recorded {
    int runs;        /* op by op, so far */
    kd_recording *r; /* NULL: none yet */
} kd_recorded;

struct kd_exec {
    kd_backend *b;
    kd_params *p;
    kd_exec_config config;
    kd_arena *names;
    kd_pval *vals;
    kd_pnode *nodes;
    kd_ptap *inputs, *outputs;
    int val_count, node_count, input_count, output_count;
    char *arena[KD_ARENA_KINDS];
    size_t bytes[KD_ARENA_KINDS];
    size_t loss_weights_at; /* in the activations: end of the values */
    unsigned borrowed;      /* bit of a kd_arena_kind: that arena is config.values' */
    size_t *kept_at; /* frozen parameters: offset of parameter i in KD_ARENA_PARAMETERS, or KD_NOT_KEPT; else NULL */
    int has_batch_norm, profile;
    int forwarded; /* the last pass was a forward pass */
    int profiled_passes;
    kd_recorded recorded[KD_PASSES];
    char *looked_at; /* kd_exec_check_finite: the host's copy of what an op has written; NULL while off */
    uint64_t packed_version, packed_state_version; /* 0 = never */
};

/* plan.c: everything but running. Fills e->nodes, vals, inputs and outputs (no ops yet, no addresses). */
kd_status kd_plan_nodes(kd_exec *e, const kd_graph *g, kd_err *err);
/* plan_memory.c: after the ops exist and have said their needs: arenas and addresses. */
kd_status kd_plan_memory(kd_exec *e, kd_err *err);
/* frozen.c, for programs of frozen parameters. plan, before the arenas are made: which parameters stay, and how many bytes that is. bind: their addresses in a node's arguments.
 * load, when everything has its address: reads the parameters, packs every node. */
kd_status kd_frozen_plan(kd_exec *e, kd_err *err);
void kd_frozen_bind(kd_exec *e, kd_pnode *n);
kd_status kd_frozen_load(kd_exec *e, kd_err *err);
/* recorded.c: runs a pass. The first time, and while someone looks between the ops (profile, check-finite), op by op; the second time it is recorded, from then on replayed, after one question to
 * config.stop. Without a backend that records always op by op. Errors of the ops; of a recording that fails nothing is kept. */
kd_status kd_run_pass(kd_exec *e, kd_pass pass, kd_err *err);
void kd_recorded_drop(kd_exec *e);
/* exec.c: the ops of a pass in their order. */
kd_status kd_run_ops(kd_exec *e, kd_pass pass, kd_err *err);
/* exec.c: the parts of a pass, for those who run it op by op (inspect.c). begin: before the first op; end: after the last forward. */
kd_status kd_run_begin(kd_exec *e, kd_err *err);
kd_status kd_run_node(kd_exec *e, kd_pnode *n, int backward, kd_err *err);
void kd_run_end(kd_exec *e);
kd_status kd_run_zero_gradients(kd_exec *e, kd_err *err);
/* 0: a join whose gradient is shared and that has no parameter has nothing left to do. */
int kd_has_backward_work(const kd_pnode *n);
/* inspect.c. KD_ENONFINITE: kd_exec_check_finite. */
kd_status kd_check_written(kd_exec *e, const kd_pnode *n, int backward, kd_err *err);

static inline int kd_is_frozen(const kd_params *p) {
    return p->source.read != NULL;
}

#endif

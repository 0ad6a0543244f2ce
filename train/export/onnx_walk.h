/* What onnx.c, onnx_values.c and onnx_ops.c share, and nobody else: a walk over a graph that leaves an ONNX file.
 *
 * A kd_graph's maps are channels-last; ONNX's convolutions, batch norms and pools want channels first, its matrix products and layer norms channels last. So a map may exist in both layouts: an op asks for
 * a value in the one that it wants, and the transposition is written when it is asked for, once. Tokens [T,D] and vectors [D] have one layout, rows.
 *
 * Errors: the first one is kept in `status` (and `err`); names are then "" and the walk goes on to its end, which comes soon. */
#ifndef KD_TRAIN_EXPORT_ONNX_WALK_H
#define KD_TRAIN_EXPORT_ONNX_WALK_H

#include "common/base/mem.h"
#include "kernels/nn/graph_walk.h"
#include "train/export/onnx_file.h"

typedef enum kd_onnx_layout {
    KD_ONNX_ROWS,  /* [batch,D], [batch,T,D], [batch,h,w,C] */
    KD_ONNX_MAPS,  /* [batch,C,h,w] */
    KD_ONNX_LAYOUTS
} kd_onnx_layout;

typedef struct kd_onnx_slot {
    const char *name[KD_ONNX_LAYOUTS]; /* NULL: not written */
} kd_onnx_slot;

typedef struct kd_onnx_walk {
    kd_onnx_file *file;
    const kd_graph *g;
    kd_params *p;
    int dynamic;          /* heights and widths are known only when the model runs */
    kd_arena *names;
    kd_onnx_slot *slot;   /* [values of g] */
    char *used;           /* [parameters of p]: an initializer */
    int number;           /* nodes written */
    const char *node;     /* name of the graph's node that is being said */
    kd_status status;
    kd_err *err;
} kd_onnx_walk;

/* ---- onnx_values.c ---- */

/* Writes a node with one result, whose name is the result's: "NUMBER/NODE/OP". */
const char *kd_onnx_emit(kd_onnx_walk *w, const char *op, const char *const *inputs, const kd_onnx_attr *attrs);
/* Cuts x into n parts of these sizes along axis. */
void kd_onnx_split(kd_onnx_walk *w, const char *x, int axis, int n, const int64_t *sizes, const char **parts);
/* Constants: the same numbers are one initializer. */
const char *kd_onnx_ints(kd_onnx_walk *w, int n, const int64_t *values);
#define KD_ONNX_CONST(w, ...) kd_onnx_ints((w), (int)(sizeof((int64_t[]){__VA_ARGS__}) / sizeof(int64_t)), (int64_t[]){__VA_ARGS__})
const char *kd_onnx_scalar(kd_onnx_walk *w, float value);
/* Parameter i as an initializer. */
const char *kd_onnx_param(kd_onnx_walk *w, int i);
/* v in a layout; of what is no map there are only rows, and the layout isn't looked at. */
const char *kd_onnx_value(kd_onnx_walk *w, kd_val v, kd_onnx_layout layout);
/* One that v exists in already. */
kd_onnx_layout kd_onnx_layout_of(kd_onnx_walk *w, kd_val v);
/* v has been written in this layout. */
void kd_onnx_set(kd_onnx_walk *w, kd_val v, kd_onnx_layout layout, const char *name);

/* ---- onnx_ops.c ---- */

/* Says a node. KD_EUSAGE (in status): an op that has no form there. */
void kd_onnx_op(kd_onnx_walk *w, const kd_graph_node *n);

#endif

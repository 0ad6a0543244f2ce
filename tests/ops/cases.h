/* The one list of op cases: every op kind, in every size and variant that the tests of all backends run.
 *
 * A new op kind gets its cases here first; test_ops_grad fails while a kind has none. KD_OPS=linear (or a comma-separated list of kinds) in
 * the environment limits the list. */
#ifndef KD_TESTS_OPS_CASES_H
#define KD_TESTS_OPS_CASES_H

#include "kernels/ops.h"

typedef struct ops_case {
    char label[160]; /* "linear 3x7->17 gelu bias | train bf16 add" */
    kd_op_desc desc;
    int no_gamma;    /* residual linear with param[2] = NULL */
} ops_case;

/* 1 when any tensor of the op is bf16. */
int ops_uses_bf16(const kd_op_desc *d);

/* 1 for the losses: f32 only, one result, a gradient for the prediction alone. */
int ops_is_loss(kd_op_kind kind);

/* The list, built at the first call and valid until the process ends. */
size_t ops_cases(const ops_case **list);

#endif

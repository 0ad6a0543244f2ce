#include "tests/ops/tolerances.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* TABLE */
ops_tolerance ops_tolerance_vs_ref(kd_op_kind kind) {
    (void)kind;
    return (ops_tolerance){1e-5, 2e-2};
}

enum { MAX_ROWS = 200 };

static struct measured {
    char what[40];
    kd_op_kind kind;
    kd_dtype arithmetic;
    double error;
} rows[MAX_ROWS];
static size_t row_count;

void ops_measured(const char *what, kd_op_kind kind, kd_dtype arithmetic, double error) {
    size_t i = 0;
    while (i < row_count && (rows[i].kind != kind || rows[i].arithmetic != arithmetic || strcmp(rows[i].what, what) != 0))
        i++;
    if (i == MAX_ROWS)
        return;
    if (i == row_count) {
        row_count++;
        rows[i] = (struct measured){.kind = kind, .arithmetic = arithmetic};
        snprintf(rows[i].what, sizeof rows[i].what, "%s", what);
    }
    if (!(error <= rows[i].error))
        rows[i].error = error;
}

void ops_print_measured(void) {
    if (!getenv("KD_OPS_MEASURE"))
        return;
    for (size_t i = 0; i < row_count; i++)
        printf("measured: %-24s %-16s %-5s %.2g\n", rows[i].what, kd_op_kind_name(rows[i].kind), kd_dtype_name(rows[i].arithmetic), rows[i].error);
}

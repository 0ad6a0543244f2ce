/* Runs one op case on a backend the way a graph would, with traps around it.
 *
 * Every region lies between guard zones, every output and work area starts as NaN, and inputs are compared with what was uploaded afterwards.
 * Works on device addresses only through the backend's table, so it serves every backend. Failures are cmocka failures that name case and tensor. */
#ifndef KD_TESTS_OPS_HARNESS_H
#define KD_TESTS_OPS_HARNESS_H

#include "kernels/backend.h"
#include "kernels/ref/ref_core.h"
#include "tests/ops/cases.h"
#include "tests/ops/tolerances.h"

/* All tensors of one case on the host, as f32 (bf16 tensors hold values that bf16 can represent). NULL: not there. */
typedef struct ops_inputs {
    float *x[KD_OP_MAX_X], *param[KD_OP_MAX_PARAM], *state[KD_OP_MAX_STATE], *dy;
    float *dx[KD_OP_MAX_X], *dparam[KD_OP_MAX_PARAM]; /* what is there before backward: the base that an added gradient goes onto */
} ops_inputs;

typedef struct ops_results {
    float *y, *state[KD_OP_MAX_STATE], *dx[KD_OP_MAX_X], *dparam[KD_OP_MAX_PARAM];
} ops_results;

/* Seeded values of natural size; the same case and seed give the same values. */
ops_inputs ops_inputs_make(const ops_case *c, uint64_t seed);
void ops_inputs_free(ops_inputs *in);

/* op_create, op_pack, forward and, for a training case, backward. warm: first a pass with other inputs and parameters through the same op and
 * regions, so that anything stale (packed weights, saved values, scratch) shows. */
ops_results ops_run(kd_backend *b, const ops_case *c, const ops_inputs *in, int warm);
void ops_results_free(ops_results *r);

/* got against want, tensor by tensor, within `tolerance` of rms(want) + |want|; `what` begins the message and labels the measurement.
 * Cases without any bf16 tensor use tolerance->f32. */
void ops_compare(const char *what, const ops_case *c, const ops_results *got, const ops_results *want, const ops_tolerance *tolerance);
/* One tensor; fails the test when outside. */
void ops_compare_tensor(const char *what, const ops_case *c, const char *tensor, const float *got, const float *want, size_t n, double tolerance);
/* Bit for bit. */
void ops_assert_identical(const ops_case *c, const ops_results *a, const ops_results *b);

/* The whole program for a backend other than ref: every case against ref, repeatability, flat functions, encoding, transfers, recordings. Returns the exit status for main;
 * when the device or its module is missing, one skipped test says so. */
int ops_backend_main(const char *device);
/* The same for the cuda backend on an emulated device, which must be there; part `part` of `parts` of the cases, each run once against ref. */
int ops_emulated_main(size_t part, size_t parts);

/* Flat functions of b against ref's on odd sizes (test_ops_flat checks ref itself). */
void ops_check_flat(kd_backend *b, kd_backend *ref);

/* One call of a backend's encode, between guard zones, with a dirty scratch region, and nothing allocated in it. */
typedef struct ops_encoded {
    uint8_t *payload;
    kd_encode_stats *stats;
} ops_encoded;
ops_encoded ops_encode(kd_backend *b, const kd_encode_spec *s, const float *x, size_t records);
void ops_encoded_free(ops_encoded *e);
/* Encoding of b against ref's over all element types and targets, and with other thread counts (test_ops_encode checks ref itself). */
void ops_check_encode(kd_backend *b, kd_backend *ref);

/* The operands of ref's double core (every pointer is owned), for tests without any rounding. ops_widen: NULL gives NULL. */
kd_ref_vals ops_ref_vals_make(const kd_op_desc *d, const ops_inputs *in);
void ops_ref_vals_free(kd_ref_vals *v);
double *ops_widen(const float *x, size_t n);

/* From here on "cuda" is the emulated device of tests/gpu/emulator (and "cpu" what it always is). */
void ops_use_emulated(void);

/* Opens "ref"; fails the test when that doesn't work. */
kd_backend *ops_open_ref(void);

/* n seeded normal values. */
void ops_fill_normal(float *out, size_t n, uint64_t seed, uint64_t stream);

#endif

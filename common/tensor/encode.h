/* Encode: what is stored of a teacher's tokens: the contract that the kernels' encode op fulfils, the arithmetic that its backends share, and the plain implementation of it.
 *
 * Between the teacher's output and the cache's record: grids of grid_h x grid_w tokens of `width` f32 values are reduced as target.h says (full, pool, adjoint), then stored as f16, bf16
 * or i8. Decoding is the cache's reader. Used by the backends (kernels/ref calls the plain implementation; the others give the same bytes) and by kd-cache, which makes caches from caches.
 *
 *     kd_encode_spec s = {.target = {KD_TARGET_ADJOINT, 7, 7}, .grid_h = 16, .grid_w = 16, .width = 384, .dtype = KD_I8};
 *     kd_encode_plan plan = kd_encode_plan_make(&s, scratch);                  // kd_encode_scratch_bytes(&s, 1) bytes
 *     kd_encode_record(payload, &stats, tokens, &s, &plan);                    // kd_encode_bytes(&s) bytes
 *
 * Arithmetic, the same in every backend, so that equal inputs give equal payloads:
 *   reduction  y[k,l] = sum over the grid's rows i (wy[k,i] * (sum over its columns j (wx[l,j] * t[i,j]))), for pool divided by the number of tokens: in f64, i and j ascending from the
 *              first to the last weight that isn't 0, nothing fused, one rounding to f32 at the end. Weights of pool: 1; of adjoint: what kd_bilinear_tap gives the point.
 *   f32        the values as they are, in the machine's order: what a live teacher's students are given; no cache stores them
 *   f16, bf16  round to nearest even; payload in byte planes (kd_stored_bytes)
 *   i8         v = the token's blocks times Sylvester's matrix, in f32: butterflies a + b, a - b over distances 1, 2, 4 .. block/2 in this order, then one multiplication by
 *              kd_hadamard_norm. scale = max |v| / 127; q = v / scale rounded to the nearest integer (ties to even) within +-127; scale 0: q = 0. Payload: scales, then q.
 *              A token with bad values (below) is stored as zeros.
 * This header compiles as C11 and under nvcc. Thread rule: pure functions. */
#ifndef KD_COMMON_TENSOR_ENCODE_H
#define KD_COMMON_TENSOR_ENCODE_H

#include "common/tensor/target.h"

enum { KD_ENCODE_MAX_BLOCK = 65536 }; /* of i8's rotation: sums of that many codes are exact in f32 */

typedef struct kd_encode_spec {
    kd_target target;
    int grid_h, grid_w; /* of the tokens; for class tokens, registers and means: rows x 1, full */
    int width;
    kd_dtype dtype;     /* KD_F32, KD_F16, KD_BF16, KD_I8 */
} kd_encode_spec;

/* Of one record, over the values x that are left after the reduction (f32) and what a reader decodes of them, q. Where bad isn't 0 the other numbers mean nothing. */
typedef struct kd_encode_stats {
    double xx, qq, xq, err2; /* sums of x*x, q*q, x*q, (x-q)^2 */
    double worst;            /* largest relative L2 error of a token: sqrt(sum (x-q)^2 / sum x^2); 0 for a token of zeros */
    double square;           /* adjoint: |t|^2, the sum of squares over the full grid; else 0 */
    double bad;              /* values x that can't be stored: NaN, or |x| > kd_encode_limit */
} kd_encode_stats;

/* Asserts a spec that breaks the contract: a program's bug, not input. */
void kd_encode_check(const kd_encode_spec *s);
/* Tokens of a record after the reduction, and bytes of its payload. */
size_t kd_encode_rows(const kd_encode_spec *s);
size_t kd_encode_bytes(const kd_encode_spec *s);
/* Memory for one call (of a backend: on its device), 64-byte aligned. */
size_t kd_encode_scratch_bytes(const kd_encode_spec *s, size_t records);
/* The largest finite value of f32, 65504 in f16, the largest bf16, and 1e30 in i8, where sums of a block must stay finite. */
float kd_encode_limit(kd_dtype dtype);

/* ---- for the backends ---- */

/* One axis of a reduction: output k = sum over i in [begin[k], end[k]) of weight[k * from + i] * input i. */
typedef struct kd_encode_axis {
    int from, to;
    double *weight; /* [to][from] */
    int *begin, *end; /* [to]; equal where nothing reads the point */
    int mean;         /* pool */
} kd_encode_axis;

/* Fills an axis of pool or adjoint; its arrays lie in `memory`, kd_encode_axis_bytes, 64-byte aligned. */
size_t kd_encode_axis_bytes(int from, int to);
void kd_encode_axis_fill(kd_encode_axis *a, kd_target_kind kind, int from, int to, void *memory);
/* What the weighted sum at (k, l) is divided by: the tokens of a mean, or 1. */
double kd_encode_divisor(const kd_encode_axis *rows, const kd_encode_axis *columns, size_t k, size_t l);

/* The scratch region: the axes of a reduction (nothing for full), two tokens of floats for each record, and what a device wants beside them (kd_encode_device_place). */
typedef struct kd_encode_plan {
    kd_encode_axis rows, columns;
    float *token;       /* [records][2][stride] */
    size_t stride;
} kd_encode_plan;
kd_encode_plan kd_encode_plan_make(const kd_encode_spec *s, void *scratch);

/* A device takes many tokens at once. These are addresses in its scratch region: nothing is written here, it fills the axes itself. */
enum { KD_ENCODE_MAX_PARTS = 128 };
typedef struct kd_encode_device_plan {
    kd_encode_plan host;
    kd_encode_stats *part; /* [records][parts]: of a part of a record's tokens */
    size_t parts;          /* the stored tokens of a record, at most KD_ENCODE_MAX_PARTS */
    float *reduced;        /* [records][kd_encode_rows][width]; NULL for full */
} kd_encode_device_plan;
kd_encode_device_plan kd_encode_device_place(const kd_encode_spec *s, size_t records, void *scratch);

/* ---- the plain implementation ---- */

/* One record: tokens [grid_h * grid_w, width] -> payload, kd_encode_bytes(s). Token by token in the plan's first two tokens of floats. A record with bad values (stats->bad) isn't to be stored. */
void kd_encode_record(uint8_t *payload, kd_encode_stats *stats, const float *tokens, const kd_encode_spec *s, const kd_encode_plan *plan);

#endif

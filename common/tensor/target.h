/* Target: the form in which a teacher's tokens are stored and taught: which reduction of the patch grid, and which element type.
 *
 * The arithmetic that encoding (kernels), decoding (cache) and losses (train) must agree on stands here once.
 *
 * Reductions of a grid_h x grid_w grid of patch tokens t [grid_h * grid_w, D]:
 *   full       every token
 *   pool:K     K x K tokens, each the mean of its cell: rows floor(i H / K) .. ceil((i + 1) H / K) - 1, columns likewise (torch.nn.functional.adaptive_avg_pool2d)
 *   adjoint:K  K x K rows a = U^T t and the number |t|^2, where U is the bilinear upsampling from K x K to the grid (align_corners = false: kd_bilinear_tap on each axis). They give
 *              the value and the gradient of the mean squared error between an upsampled K x K prediction s and t exactly:
 *                  |U s - t|^2 = |U s|^2 - 2 <s, a> + |t|^2        its gradient by s: 2 (U^T U s - a)
 * Thread rule: pure functions. */
#ifndef KD_COMMON_TENSOR_TARGET_H
#define KD_COMMON_TENSOR_TARGET_H

#include "common/base/err.h"
#include "common/tensor/dtype.h"

typedef enum kd_target_kind { KD_TARGET_FULL = 0, KD_TARGET_POOL = 1, KD_TARGET_ADJOINT = 2 } kd_target_kind;
typedef struct kd_target {
    kd_target_kind kind;
    int h, w; /* of a reduced grid; 0 for full */
} kd_target;

enum { KD_TARGET_MAX_SIDE = 1024, KD_TARGET_TEXT = 32 };

/* "full", "pool:7", "adjoint:7", "pool:7x9" (rows x columns). KD_EUSAGE naming `what` ("--patch-target"). */
kd_status kd_target_parse(kd_target *t, const char *text, const char *what, kd_err *err);
/* The inverse; a square is written with one number. Returns buf. */
const char *kd_target_text(const kd_target *t, char buf[KD_TARGET_TEXT]);
int kd_target_equal(const kd_target *a, const kd_target *b);
/* Rows of a stored target: tokens of the full or of the reduced grid. */
uint32_t kd_target_rows(const kd_target *t, int grid_h, int grid_w);

/* One axis of bilinear resizing from `from` to `to` points, align_corners = false (torch.nn.functional.interpolate): output i is (1 - *w1) x[*i0] + *w1 x[*i1]. */
void kd_bilinear_tap(int64_t from, int64_t to, int64_t i, int64_t *i0, int64_t *i1, double *w1);

/* ---- element types: KD_F16, KD_BF16, KD_I8; KD_F32 for what isn't stored ---- */

/* Bytes of rows x width values before compression. f32: the values. f16, bf16: a plane of high bytes, then one of low bytes. i8: rows f32 scales, then rows x width signed bytes. */
size_t kd_stored_bytes(kd_dtype dtype, size_t rows, size_t width);
/* Block of the rotation of i8: the largest power of two that divides width. A token x is stored as q = round(H x / scale), where H is block-diagonal with Sylvester's Hadamard matrices of this
 * order, H[i][j] = (-1)^popcount(i & j) / sqrt(block), and scale = max |H x| / 127; reading gives back H q scale: the integer sums of q are exact, then one multiplication by
 * scale / sqrt(block), rounded once, so that every reader gets the same bits. */
int kd_hadamard_block(int width);
/* 1 / sqrt(block), rounded once to f32. */
float kd_hadamard_norm(int block);

#endif

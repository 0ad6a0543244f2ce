/* Convolutions through cuDNN's graph API, the only place that knows it. Channels-last maps [N,H,W,C], weights [O,kh,kw,I/groups] of the maps' type, deterministic engines only.
 *
 * Prepared once for a shape: the engine is the first of cuDNN's heuristic list (mode A, then its fallback) that supports it, is deterministic and fits into the work memory (512 MiB; the one that wants
 * least where none does); nothing is timed, so a run and its resume use the same. f32 without TF32; bf16 multiplies bf16 and accumulates in f32. No transforms (FFT, Winograd).
 *
 * The result has the operands' type: for f32 results of bf16 operands cuDNN 9.19 has no engine but those that it compiles at run time, which takes seconds for every convolution. */
#ifndef KD_KERNELS_CUDA_CUDNN_CONV_H
#define KD_KERNELS_CUDA_CUDNN_CONV_H

#include "kernels/cuda/cuda.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef enum kd_conv_pass {
    KD_CONV_FORWARD, /* y = x * w */
    KD_CONV_DATA,    /* dx from dy and w */
    KD_CONV_FILTER   /* dw from x and dy */
} kd_conv_pass;

typedef struct kd_conv_desc {
    const char *name; /* for messages */
    kd_conv_pass pass;
    int64_t n, h, w, in, out; /* of the forward pass */
    int kernel, stride, pad, groups;
    kd_dtype type; /* F32 or BF16 */
} kd_conv_desc;

typedef struct kd_conv kd_conv;

kd_status kd_conv_library_create(kd_conv_library **out, kd_cuda *b, kd_err *err);
void kd_conv_library_destroy(kd_conv_library *l); /* accepts NULL */
void kd_conv_library_version(int *major, int *minor, int *patch);

/* *scratch: bytes that run needs, 64-byte aligned. KD_EFAIL: no engine. */
kd_status kd_conv_create(kd_cuda *b, kd_conv **out, const kd_conv_desc *desc, size_t *scratch, kd_err *err);
void kd_conv_destroy(kd_conv *c); /* accepts NULL */
/* forward: result y of x and w; data: result dx of dy and w; filter: result dw of x and dy. The result is overwritten. */
kd_status kd_conv_run(kd_cuda *b, kd_conv *c, void *result, const void *first, const void *second, void *scratch, kd_err *err);

#ifdef __cplusplus
}
#endif
#endif

/* Gradients of the weights of convolutions and linear layers as sums over pixels of outer products, whose results stay in registers: for one tap of the window, R input times C output channels,
 * and for every pixel R values of x times C of the gradient.
 *
 *     outer.c            what is summed and by whom: parts of the pixels, their copies in panels, the list of a tap's pixels inside the map, the sum over threads. No instructions
 *     outer_avx2.c       tiles of 6 x 16 of f32
 *     outer_avx512.c     tiles of up to 13 x 32 of f32, and of bf16 with AVX512-BF16's dot products
 *
 * With AVX2 oneDNN reaches a third of what such a core can do, with AVX-512 half to nine tenths, these 65 to 95 %; and what lies outside of the map costs nothing here, which in a 3x3 window over 7x7 pixels is 18 %.
 *
 * Everything is counted in steps of four bytes: an f32, or two bf16 that a dot product sums up: the same pixel of two images, so that all taps see the same pairs; in a window of one pixel two neighbours.
 *
 * The bits follow from shape and number of threads: a share of the pixels per thread, summed in a fixed order; with few pixels and many weights a share of the output channels instead. Inside kernels/cpu only. */
#ifndef KD_KERNELS_CPU_OUTER_H
#define KD_KERNELS_CPU_OUTER_H

#include <stddef.h>

#include "kernels/cpu/product.h"

/* dw [out,in,kernel,kernel] += the gradient from x [images,h,w,in] and g [images,ho,wo,out], both of `type`, for which kd_product_runs_here. scratch: kd_outer_dw_bytes, 64-byte aligned. */
size_t kd_outer_dw_bytes(const kd_window *s, kd_dtype type, int threads);
void kd_outer_dw(int threads, const kd_window *s, kd_dtype type, float *dw, const void *x, const void *g, void *scratch);

/* ---- what the files share ---- */

/* Pixels as steps in panels: to[panel bytes * b][pixel][rows] of channels rows b .. rows b + rows - 1, zeros beyond `channels`. second: the other half of a pair of bf16; NULL: zeros.
 * Up to KD_OUTER_SPILL bytes behind what is written get any values. */
typedef struct kd_outer_copy {
    char *to;
    size_t panel, rows;
    const char *from, *second;
    size_t pixel; /* bytes from a pixel of from to the next */
    size_t pixels, channels;
} kd_outer_copy;

/* What a tap sees: of every line, `steps` steps from run[line] on (bytes, in a panel of the source and in one of the gradient). */
typedef struct kd_outer_run {
    size_t source, gradient;
} kd_outer_run;

typedef struct kd_outer_tap {
    kd_outer_run *run;
    size_t lines, steps;
    size_t step; /* bytes from the source of a step to that of the next */
} kd_outer_tap;

typedef struct kd_outer_kind {
    size_t columns;                  /* C: a step of the gradient has that many */
    size_t (*rows)(size_t width);    /* R for that many input channels */
    void (*copy)(kd_dtype type, const kd_outer_copy *c);
    /* sums[rows][C] = or += of a tap; columns: those that are wanted. */
    void (*tile)(kd_dtype type, float *sums, int add, const kd_outer_tap *t, const char *source, const char *gradient, size_t rows, size_t columns);
    /* dw[j distance + i] += sums[i][j] for weights i < n <= KD_OUTER_TURN and channels j < columns. */
    void (*add_turned)(float *dw, size_t distance, const float *const *sums, size_t n, size_t columns);
} kd_outer_kind;

enum { KD_OUTER_TURN = 16, KD_OUTER_SPILL = 60 };

extern const kd_outer_kind kd_outer_avx2, kd_outer_avx512;

#endif

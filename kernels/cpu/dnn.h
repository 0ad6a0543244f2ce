/* oneDNN, wrapped: the matrix products, convolutions and weight re-orderings that the cpu backend is made of. Nothing else includes dnnl.h,
 * so the differences between oneDNN 2.x and 3.x stay in dnn.c.
 *
 *     kd_dnn_tensor a = kd_dnn_rows(KD_BF16, rows, in), c = kd_dnn_rows(KD_F32, rows, out);
 *     kd_dnn_tensor w = {.dtype = KD_BF16, .rank = 2, .dim = {in, out}};                  // no strides: oneDNN chooses the layout
 *     KD_TRY(kd_dnn_matmul(&p, engine, &(kd_dnn_matmul_desc){.a = a, .b = w, .c = c}, err));
 *     KD_TRY(kd_dnn_pack(&r, p, &plain_w, err));                                          // plain_w -> what p wants, into kd_dnn_bytes(p, KD_DNN_WEIGHTS)
 *     KD_TRY(kd_dnn_run(p, (void *[KD_DNN_ARGS]){[KD_DNN_SRC] = x, [KD_DNN_WEIGHTS] = packed, [KD_DNN_DST] = y, [KD_DNN_SCRATCH] = s}, err));
 *
 * Scratch memory is the caller's (kd_dnn_scratch_bytes); running allocates nothing. Thread rule: as the backend. */
#ifndef KD_KERNELS_CPU_DNN_H
#define KD_KERNELS_CPU_DNN_H

#include <stdint.h>

#include "common/base/err.h"
#include "common/tensor/dtype.h"

enum { KD_DNN_RANK = 5 };

/* dim and stride in elements. rank 0: absent. All strides 0: the library chooses the layout. */
typedef struct kd_dnn_tensor {
    kd_dtype dtype;
    int rank;
    int64_t dim[KD_DNN_RANK], stride[KD_DNN_RANK];
} kd_dnn_tensor;

kd_dnn_tensor kd_dnn_rows(kd_dtype dtype, int64_t rows, int64_t width); /* dense matrix */
kd_dnn_tensor kd_dnn_transposed(kd_dnn_tensor t);                       /* last two dimensions swapped, same memory */
kd_dnn_tensor kd_dnn_nhwc(kd_dtype dtype, const int64_t shape[4]);      /* shape n,h,w,c; dimensions in oneDNN's order n,c,h,w */

/* Arguments of kd_dnn_run. In a backward pass SRC, WEIGHTS and DST are the places of the gradients too: backward data reads WEIGHTS and DST and writes SRC,
 * backward weights reads SRC and DST and writes WEIGHTS. A re-ordering reads SRC and writes DST. */
enum { KD_DNN_SRC, KD_DNN_WEIGHTS, KD_DNN_BIAS, KD_DNN_DST, KD_DNN_SCRATCH, KD_DNN_ARGS };

typedef enum kd_dnn_act { KD_DNN_NONE, KD_DNN_RELU, KD_DNN_GELU } kd_dnn_act;

/* c = act(a b + bias), plus the old c where `add`. Leading dimensions are a batch. bias: one f32 per column, shape 1 x n. */
typedef struct kd_dnn_matmul_desc {
    kd_dnn_tensor a, b, c, bias;
    kd_dnn_act act;
    int add;
} kd_dnn_matmul_desc;

typedef enum kd_dnn_pass { KD_DNN_FORWARD, KD_DNN_BACKWARD_DATA, KD_DNN_BACKWARD_WEIGHTS } kd_dnn_pass;

typedef struct kd_dnn_conv_desc {
    kd_dnn_pass pass;
    kd_dnn_tensor src, weights, dst; /* n,c,h,w; o,i,h,w or with groups g,o/g,i/g,h,w; n,c,h,w */
    kd_dnn_tensor bias;              /* forward only */
    int stride, pad;
    kd_dnn_act act;                  /* forward only */
} kd_dnn_conv_desc;

typedef struct kd_dnn kd_dnn;               /* one prepared primitive */
typedef struct kd_dnn_engine kd_dnn_engine; /* engine and stream */

kd_status kd_dnn_engine_create(kd_dnn_engine **out, kd_err *err);
void kd_dnn_engine_destroy(kd_dnn_engine *e); /* accepts NULL */
void kd_dnn_version(int *major, int *minor, int *patch);
/* The instructions that oneDNN uses here, as far as ONEDNN_MAX_CPU_ISA allows: AVX-512 with BW, VL and DQ (without, it has no bf16), AVX2, or older ones. */
typedef enum kd_dnn_isa { KD_DNN_OLDER, KD_DNN_AVX2, KD_DNN_AVX512 } kd_dnn_isa;
kd_dnn_isa kd_dnn_instructions(void);

/* KD_EFAIL when oneDNN has no implementation. what: op name for messages. */
kd_status kd_dnn_matmul(kd_dnn **out, kd_dnn_engine *e, const kd_dnn_matmul_desc *d, const char *what, kd_err *err);
kd_status kd_dnn_conv(kd_dnn **out, kd_dnn_engine *e, const kd_dnn_conv_desc *d, const char *what, kd_err *err);
/* Re-ordering `plain` into the layout that p wants for its weights. */
kd_status kd_dnn_pack(kd_dnn **out, const kd_dnn *p, const kd_dnn_tensor *plain, const char *what, kd_err *err);
/* plain += the weights gradient that p (backward weights) has written. */
kd_status kd_dnn_unpack_add(kd_dnn **out, const kd_dnn *p, const kd_dnn_tensor *plain, const char *what, kd_err *err);
void kd_dnn_destroy(kd_dnn *p); /* accepts NULL */

size_t kd_dnn_scratch_bytes(const kd_dnn *p); /* 0 for NULL */
size_t kd_dnn_weights_bytes(const kd_dnn *p);
int kd_dnn_same_weights(const kd_dnn *a, const kd_dnn *b); /* both want one layout: pack once */
const char *kd_dnn_implementation(const kd_dnn *p);        /* "brg:avx512_core_bf16", for benches; lives as long as p */

kd_status kd_dnn_run(kd_dnn *p, void *const data[KD_DNN_ARGS], kd_err *err);

#endif

/* Backend: one opened device and the table of functions that every implementation fills in.
 *
 * Three implementations of one contract: `ref` (plain C, the oracle, always linked in), `cpu` (own products and oneDNN, lib/libkd_cpu.so) and `cuda`
 * (lib/libkd_cuda.so), the last two loaded at run time, so that one binary starts anywhere. Asking for a device that isn't there is
 * KD_ENODEVICE, never a fallback.
 *
 *     kd_backend *b;
 *     KD_TRY(kd_backend_open(&b, "cpu", 2, err));
 *     void *x = NULL;
 *     KD_TRY(b->v->alloc(b, &x, bytes, err));
 *     KD_TRY(b->v->upload(b, x, host, bytes, err));
 *     ...
 *     kd_backend_close(b);
 *
 * Buffers are device addresses: only the backend dereferences them (but see host_memory), offsets are plain pointer arithmetic. Calls are queued on one stream in
 * order; upload and download have completed for the host side when they return: an upload's source may change then, and its destination has the bytes before the next call's work begins.
 * No op returns a host scalar: results lie in buffers.
 * Thread rule: a backend belongs to one thread at a time.
 * This header, ops.h and encode.h compile as C11 and under nvcc. */
#ifndef KD_KERNELS_BACKEND_H
#define KD_KERNELS_BACKEND_H

#include "common/base/err.h"
#include "common/tensor/encode.h"
#include "kernels/ops.h"

enum { KD_BACKEND_ABI = 7 };

typedef struct kd_backend kd_backend;
typedef struct kd_op kd_op; /* one prepared op; each backend defines its own, as the next two */
typedef struct kd_fetch kd_fetch;
typedef struct kd_recording kd_recording;

/* The optimizers compute in f32 and round where PyTorch's CPU kernels do (torch/optim/adam.py and sgd.py, aten lerp, addcmul, addcdiv, add with alpha), so that runs of the two don't drift apart
 * by the order of roundings. Below, every operation rounds to f32, fma(a, b, c) = a b + c rounds once, [x] is a scalar computed in double and then rounded, and g is first multiplied by *scale.
 * Square roots are rounded correctly here; PyTorch's vectors may be 1 ulp off. All backends give the same bits. */

/* AdamW (Loshchilov & Hutter; torch.optim.AdamW), decay first:
 * w *= [1 - lr wd];  m = fma([1 - b1], g - m, m);  v = fma([1 - b2] g, g, [b2] v);  w += ([-lr / (1 - b1^t)] m) / (sqrt(v) / [sqrt(1 - b2^t)] + [eps]). beta1 above 0.5. */
typedef struct kd_adamw {
    double lr, beta1, beta2, eps, weight_decay;
    int64_t step; /* t, from 1 */
} kd_adamw;

/* SGD with momentum (torch.optim.SGD, dampening 0, no Nesterov): the decay is part of the gradient.
 * d = fma(wd, w, g);  m = mu m + d;  w = fma(-lr, m, w).  torch's first step sets m = d, which m = 0 gives too. */
typedef struct kd_sgd {
    float lr, momentum, weight_decay;
} kd_sgd;

/* LARS (You, Gitman & Ginsburg 2017, as lightly's LARS): SGD whose gradient has, for every tensor, a rate of its own:
 * d = r fma(wd, w, g) with r = [trust |w| / (|g| + wd |w| + eps)];  m = mu m + d;  w = fma(-lr, m, w).
 * r = 1 for a tensor of zeros, and 0 for one without gradient (which then isn't decayed either). */
typedef struct kd_lars {
    float lr, momentum, weight_decay, trust, eps;
} kd_lars;

typedef struct kd_backend_table {
    int abi;
    const char *name; /* "ref", "cpu", "cuda" */
    int host_memory;  /* buffers lie in the host's memory: the host may read one in place after sync instead of downloading it */

    /* How many devices there are, at least 1. KD_ENODEVICE with the reason. NULL: the host alone. */
    kd_status (*devices)(int *count, kd_err *err);
    /* threads >= 1; ordinal: device number for cuda, else 0. */
    kd_status (*open)(kd_backend **out, int threads, int ordinal, kd_err *err);
    void (*close)(kd_backend *b);
    /* "oneDNN 2.6.3, AVX-512 bf16, 2 threads": provenance. Lives as long as b. */
    const char *(*describe)(const kd_backend *b);
    /* KD_OK, or KD_ENODEVICE with the sentence why bf16 isn't available here (no instructions). */
    kd_status (*check_bf16)(const kd_backend *b, kd_err *err);

    /* Bytes of the device that are free, and all. NULL where buffers lie in the host's memory. */
    kd_status (*memory)(kd_backend *b, size_t *left, size_t *total, kd_err *err);
    kd_status (*alloc)(kd_backend *b, void **out, size_t bytes, kd_err *err); /* 64-byte aligned, zeroed. KD_ENODEVICE: no room on the device; KD_EFAIL: none on the host */
    void (*release)(kd_backend *b, void *p);                                   /* accepts NULL */
    kd_status (*upload)(kd_backend *b, void *dst, const void *src, size_t bytes, kd_err *err);
    kd_status (*download)(kd_backend *b, void *dst, const void *src, size_t bytes, kd_err *err);
    kd_status (*zero)(kd_backend *b, void *dst, size_t bytes, kd_err *err);
    kd_status (*sync)(kd_backend *b, kd_err *err); /* waits for the stream; reports errors of earlier launches */

    /* A download in two halves, between which the device goes on working: begin takes what src holds at this point of the stream, at most `capacity` bytes; end waits until the host has it, and for
     * nothing that was queued later. Every begin has its end before the next begin. *data is the fetch's own memory, valid until then. */
    kd_status (*fetch_create)(kd_backend *b, kd_fetch **out, size_t capacity, kd_err *err);
    void (*fetch_destroy)(kd_backend *b, kd_fetch *f); /* accepts NULL */
    kd_status (*fetch_begin)(kd_backend *b, kd_fetch *f, const void *src, size_t bytes, kd_err *err);
    kd_status (*fetch_end)(kd_backend *b, kd_fetch *f, const void **data, kd_err *err);

    /* A sequence of calls (ops, zero, flat functions) that is queued as one, as often as wanted: between record_begin and record_end they are noted instead of run, and every replay runs them with the
     * arguments and addresses of then. No memory, copy to or from the host, fetch or sync in between. After an error record_end is still called, with out NULL: it forgets what was noted.
     * NULL, all four, where a backend gains nothing by it. */
    kd_status (*record_begin)(kd_backend *b, kd_err *err);
    kd_status (*record_end)(kd_backend *b, kd_recording **out, kd_err *err);
    kd_status (*replay)(kd_backend *b, kd_recording *r, kd_err *err);
    void (*recording_destroy)(kd_backend *b, kd_recording *r); /* accepts NULL */

    /* Ops (kernels/ops.h). create chooses the algorithm and fills needs; nothing may be allocated in pack, forward or backward. */
    kd_status (*op_create)(kd_backend *b, kd_op **out, const kd_op_desc *desc, kd_op_needs *needs, kd_err *err);
    void (*op_destroy)(kd_backend *b, kd_op *op);
    /* Re-orders or converts args->param into args->packed; called after the parameters have changed, before forward. In inference the caller may then drop the parameters
     * of needs.consumed. */
    kd_status (*op_pack)(kd_backend *b, kd_op *op, const kd_op_args *args, kd_err *err);
    kd_status (*op_forward)(kd_backend *b, kd_op *op, const kd_op_args *args, kd_err *err);
    kd_status (*op_backward)(kd_backend *b, kd_op *op, const kd_op_args *args, kd_err *err);

    /* Flat vectors of n f32. */
    kd_status (*sum_squares)(kd_backend *b, float *out, const float *x, size_t n, kd_err *err); /* *out (device) = sum x^2, fixed order */
    /* *scale = max_norm / (norm + 1e-6) when norm = sqrt(*sumsq) > max_norm > 0, else 1 (torch.nn.utils.clip_grad_norm_); NaN when norm isn't finite. */
    kd_status (*clip_scale)(kd_backend *b, float *scale, const float *sumsq, float max_norm, kd_err *err);
    /* One AdamW step with gradient *scale * g. When *scale is NaN nothing is changed. */
    kd_status (*adamw)(kd_backend *b, float *w, const float *g, float *m, float *v, size_t n, const kd_adamw *h, const float *scale, kd_err *err);
    /* One SGD step, in the same way. */
    kd_status (*sgd)(kd_backend *b, float *w, const float *g, float *m, size_t n, const kd_sgd *h, const float *scale, kd_err *err);
    /* One LARS step, in the same way (|g| is that of *scale * g), over `tensors` tensors: number i is [begin[i], begin[i+1]) of the vectors. begin (tensors + 1 values) lies on the device.
     * rate[i] (device) becomes the tensor's r. Norms are summed in a fixed order. */
    kd_status (*lars)(kd_backend *b, float *w, const float *g, float *m, const uint64_t *begin, float *rate, size_t tensors, const kd_lars *h, const float *scale, kd_err *err);
    /* Exponential moving average: e = decay e + (1 - decay) w (timm ModelEmaV2). decay 0 copies. */
    kd_status (*ema)(kd_backend *b, float *e, const float *w, size_t n, float decay, kd_err *err);

    /* Target encoding for storage (common/tensor/encode.h): x = `records` grids of f32 tokens -> kd_encode_bytes(spec) bytes and one kd_encode_stats each, all on the device. scratch:
     * kd_encode_scratch_bytes(spec, records), 64-byte aligned; nothing is allocated. */
    kd_status (*encode)(kd_backend *b, uint8_t *out, kd_encode_stats *stats, const float *x, size_t records, const kd_encode_spec *spec, void *scratch, kd_err *err);
} kd_backend_table;

/* Every backend's own struct begins with this one. */
struct kd_backend {
    const kd_backend_table *v;
    int threads;
};

/* Each module exports this symbol. */
typedef const kd_backend_table *(*kd_backend_entry)(void);
#define KD_BACKEND_ENTRY_NAME "kd_backend_table_get"

const kd_backend_table *kd_backend_ref_table(void); /* kernels/ref, linked in */

/* The fetch of backends whose buffers lie in the host's memory: a copy. In kernels/host_fetch.c; modules find it in the program that loads them. */
kd_status kd_host_fetch_create(kd_backend *b, kd_fetch **out, size_t capacity, kd_err *err);
void kd_host_fetch_destroy(kd_backend *b, kd_fetch *f);
kd_status kd_host_fetch_begin(kd_backend *b, kd_fetch *f, const void *src, size_t bytes, kd_err *err);
kd_status kd_host_fetch_end(kd_backend *b, kd_fetch *f, const void **data, kd_err *err);

/* device: "auto", "ref", "cpu", "cuda" or "cuda:N". auto: cuda if its module and a device are present, else cpu, else KD_ENODEVICE; says which with kd_log, and
 * warns on every run when an NVIDIA device is there but its module isn't. threads 0 = all processors of this process.
 * Modules are looked for in KD_LIB_DIR, then in ../lib beside the executable. KD_EUSAGE: unknown name. KD_ENODEVICE: module or device missing, wrong ABI. */
kd_status kd_backend_open(kd_backend **out, const char *device, int threads, kd_err *err);
void kd_backend_close(kd_backend *b); /* accepts NULL */
/* How many devices a module ("ref", "cpu", "cuda") finds on this machine. KD_ENODEVICE: as kd_backend_open. */
kd_status kd_backend_devices(int *count, const char *module, kd_err *err);

#endif

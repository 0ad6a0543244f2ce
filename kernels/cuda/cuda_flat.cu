/* Flat vectors: gradient norm and clipping, the optimizers' steps, moving averages. A step rounds exactly as backend.h says, so its operations are the ones that name their rounding: the compiler may
 * neither fuse nor reorder them. Whether *scale is NaN is decided on the device: the host doesn't wait for it. */
#include "kernels/cuda/device.cuh"

enum { THREADS = 256, STEP_BLOCKS = 64 /* per multiprocessor, many more than fit: the last ones to end are short */ };

/* ---- sums of squares: exact products in f64, in parts that depend on the length alone ---- */

enum { VALUES_OF_A_PART = 8192, FOLD_THREADS = 256 };

static size_t parts_of(size_t n) {
    size_t parts = (n + VALUES_OF_A_PART - 1) / VALUES_OF_A_PART;
    return parts < 1 ? 1 : parts < KD_CUDA_PARTS ? parts : (size_t)KD_CUDA_PARTS;
}

static __device__ __forceinline__ double add_square(double sum, float x) {
    return fma((double)x, (double)x, sum);
}

/* How many values before x begin its group of four: groups are where memory has them. */
static __host__ __device__ __forceinline__ size_t lead_of(const float *x) {
    return (uintptr_t)x / sizeof *x % 4;
}

/* This thread's share of the sum over x[begin .. end). */
static __device__ double squares_of(const float *x, size_t begin, size_t end) {
    size_t lead = lead_of(x);
    double sum = 0;
    for (size_t group = (begin + lead) / 4 + threadIdx.x; 4 * group < end + lead; group += blockDim.x) {
        size_t i = 4 * group; /* of value i - lead */
        if (i >= begin + lead && i + 4 <= end + lead) {
            float4 v = *(const float4 *)(x + (i - lead));
            sum = add_square(add_square(add_square(add_square(sum, v.x), v.y), v.z), v.w);
        } else {
            for (size_t k = i; k < i + 4; k++)
                if (k >= begin + lead && k < end + lead)
                    sum = add_square(sum, x[k - lead]);
        }
    }
    return sum;
}

static __global__ void __launch_bounds__(THREADS) square_parts_kernel(double *part, const float *x, size_t n) {
    __shared__ double shared[32];
    size_t parts = gridDim.x, p = blockIdx.x;
    double sum = kd_block_sum(squares_of(x, n / parts * p + n % parts * p / parts, n / parts * (p + 1) + n % parts * (p + 1) / parts), shared);
    if (threadIdx.x == 0)
        part[p] = sum;
}

static __global__ void __launch_bounds__(FOLD_THREADS) square_sum_kernel(float *out, const double *part, size_t parts) {
    __shared__ double shared[32];
    double sum = 0;
    for (size_t p = threadIdx.x; p < parts; p += FOLD_THREADS)
        sum += part[p];
    sum = kd_block_sum(sum, shared);
    if (threadIdx.x == 0)
        *out = (float)sum;
}

kd_status kd_cuda_sum_squares(kd_backend *base, float *out, const float *x, size_t n, kd_err *err) {
    kd_cuda *b = kd_cuda_use(base);
    size_t parts = parts_of(n);
    KD_TRY(kd_launch(b, "sum of squares", square_parts_kernel, (unsigned)parts, THREADS, err, (double *)b->reduction, x, n));
    return kd_launch(b, "sum of squares", square_sum_kernel, 1u, FOLD_THREADS, err, out, (const double *)b->reduction, parts);
}

static __global__ void clip_kernel(float *scale, const float *sumsq, float max_norm) {
    if (threadIdx.x > 0)
        return;
    double norm = sqrt((double)*sumsq);
    if (!isfinite(norm))
        *scale = NAN;
    else
        *scale = max_norm > 0 && norm > (double)max_norm ? (float)((double)max_norm / (norm + 1e-6)) : 1.0f;
}

kd_status kd_cuda_clip_scale(kd_backend *b, float *scale, const float *sumsq, float max_norm, kd_err *err) {
    return kd_launch(kd_cuda_use(b), "clipping", clip_kernel, 1u, 32, err, scale, sumsq, max_norm);
}

/* ---- elementwise steps: one pass over the vectors of the weights, the gradient and the optimizer's state, four values a thread ---- */

typedef struct vectors {
    float *w, *m, *v; /* m and v: as many as the step has (STATES) */
    const float *g;
} vectors;

/* A step: one(g, w, m, v) changes one weight and its state. */
typedef struct adamw_step {
    enum { STATES = 2 };
    float keep, a1, a2, b2, step, root, eps; /* keep: what weight decay leaves; a1, a2: 1 - beta; step: -lr / (1 - beta1^t); root: sqrt(1 - beta2^t) */
    float scale;                             /* of the gradient; the kernel's to fill in */
    __device__ __forceinline__ void one(float g, float &w, float &m, float &v) const {
        float gi = __fmul_rn(g, scale);
        m = __fmaf_rn(a1, __fsub_rn(gi, m), m);
        v = __fmaf_rn(__fmul_rn(a2, gi), gi, __fmul_rn(b2, v));
        w = __fadd_rn(__fmul_rn(w, keep), __fdiv_rn(__fmul_rn(step, m), __fadd_rn(__fdiv_rn(__fsqrt_rn(v), root), eps)));
    }
} adamw_step;

typedef struct momentum_step { /* rate 1 is SGD */
    enum { STATES = 1 };
    float decay, rate, momentum, lr;
    float scale;
    __device__ __forceinline__ void one(float g, float &w, float &m, float &) const {
        m = __fadd_rn(__fmul_rn(momentum, m), __fmul_rn(rate, __fmaf_rn(decay, w, __fmul_rn(g, scale))));
        w = __fmaf_rn(-lr, m, w);
    }
} momentum_step;

typedef struct average_step { /* w is the average, g what it follows */
    enum { STATES = 0 };
    double decay;
    float scale; /* 1 */
    __device__ __forceinline__ void one(float g, float &w, float &, float &) const {
        w = (float)(decay * (double)w + (1 - decay) * (double)g);
    }
} average_step;

template <class S> static __device__ __forceinline__ void step_one(const S &s, const vectors &p, size_t i) {
    float w = p.w[i], m = S::STATES > 0 ? p.m[i] : 0.0f, v = S::STATES > 1 ? p.v[i] : 0.0f;
    s.one(p.g[i], w, m, v);
    p.w[i] = w;
    if (S::STATES > 0)
        p.m[i] = m;
    if (S::STATES > 1)
        p.v[i] = v;
}

static __device__ __forceinline__ float4 load_four(const float *p, size_t i) {
    return *(const float4 *)(p + i);
}

template <class S> static __device__ __forceinline__ void step_four(const S &s, const vectors &p, size_t i) {
    float4 zero = make_float4(0, 0, 0, 0), g = load_four(p.g, i), w = load_four(p.w, i), m = S::STATES > 0 ? load_four(p.m, i) : zero, v = S::STATES > 1 ? load_four(p.v, i) : zero;
    s.one(g.x, w.x, m.x, v.x);
    s.one(g.y, w.y, m.y, v.y);
    s.one(g.z, w.z, m.z, v.z);
    s.one(g.w, w.w, m.w, v.w);
    *(float4 *)(p.w + i) = w;
    if (S::STATES > 0)
        *(float4 *)(p.m + i) = m;
    if (S::STATES > 1)
        *(float4 *)(p.v + i) = v;
}

/* Values begin .. end - 1, in groups of four from number `first` on, every `stride`th. A group that isn't all there, or (`whole` is 0) doesn't lie alike in all vectors, goes value by value. */
template <class S> static __device__ __forceinline__ void step_range(const S &s, const vectors &p, size_t begin, size_t end, size_t first, size_t stride, int whole) {
    size_t lead = lead_of(p.w);
    for (size_t group = (begin + lead) / 4 + first; 4 * group < end + lead; group += stride) {
        size_t i = 4 * group; /* of value i - lead */
        if (whole && i >= begin + lead && i + 4 <= end + lead) {
            step_four(s, p, i - lead);
        } else {
            for (size_t k = i; k < i + 4; k++)
                if (k >= begin + lead && k < end + lead)
                    step_one(s, p, k - lead);
        }
    }
}

static int lie_alike(const vectors *p) {
    size_t lead = lead_of(p->w);
    return lead_of(p->g) == lead && (!p->m || lead_of(p->m) == lead) && (!p->v || lead_of(p->v) == lead);
}

template <class S> static __global__ void __launch_bounds__(THREADS) step_kernel(S s, vectors p, size_t n, const float *scale, int whole) {
    s.scale = scale ? *scale : 1.0f;
    if (s.scale == s.scale)
        step_range(s, p, 0, n, (size_t)blockIdx.x * THREADS + threadIdx.x, (size_t)gridDim.x * THREADS, whole);
}

template <class S> static kd_status launch_step(kd_backend *base, const char *name, const S &s, const vectors &p, size_t n, const float *scale, kd_err *err) {
    kd_cuda *b = kd_cuda_use(base);
    return kd_launch(b, name, step_kernel<S>, n > 0 ? kd_blocks(b, n / 4 + 2, THREADS, STEP_BLOCKS) : 0u, THREADS, err, s, p, n, scale, lie_alike(&p));
}

kd_status kd_cuda_adamw(kd_backend *b, float *w, const float *g, float *m, float *v, size_t n, const kd_adamw *h, const float *scale, kd_err *err) {
    double t = (double)h->step;
    adamw_step s = {};
    s.keep = (float)(1 - h->lr * h->weight_decay);
    s.a1 = (float)(1 - h->beta1);
    s.a2 = (float)(1 - h->beta2);
    s.b2 = (float)h->beta2;
    s.step = (float)(-h->lr / (1 - pow(h->beta1, t)));
    s.root = (float)sqrt(1 - pow(h->beta2, t));
    s.eps = (float)h->eps;
    return launch_step(b, "AdamW", s, {w, m, v, g}, n, scale, err);
}

kd_status kd_cuda_sgd(kd_backend *b, float *w, const float *g, float *m, size_t n, const kd_sgd *h, const float *scale, kd_err *err) {
    momentum_step s = {h->weight_decay, 1, h->momentum, h->lr, 1};
    return launch_step(b, "SGD", s, {w, m, NULL, g}, n, scale, err);
}

kd_status kd_cuda_ema(kd_backend *b, float *e, const float *w, size_t n, float decay, kd_err *err) {
    average_step s = {(double)decay, 1};
    return launch_step(b, "moving average", s, {e, NULL, NULL, w}, n, NULL, err);
}

/* ---- LARS: the tensors' norms, BATCH tensors at a time (as many as b->reduction has room for); then one pass over all of them. Where tensors begin is known on the device alone, so every
 * tensor gets the same number of blocks ---- */

enum { NORM_PARTS = 16, BATCH = KD_CUDA_PARTS / (2 * NORM_PARTS), STEP_PARTS = 32 };

/* part[tensor of the batch][w, g][NORM_PARTS] */
static __global__ void __launch_bounds__(THREADS) norm_parts_kernel(double *part, const float *w, const float *g, const uint64_t *begin, const float *scale) {
    __shared__ double shared[32];
    if (*scale != *scale)
        return;
    size_t t = blockIdx.y, p = blockIdx.x, first = (size_t)begin[t], n = (size_t)begin[t + 1] - first, share = (n + NORM_PARTS - 1) / NORM_PARTS;
    size_t from = p * share < n ? p * share : n, to = from + share < n ? from + share : n;
    double of_w = kd_block_sum(squares_of(w, first + from, first + to), shared), of_g = kd_block_sum(squares_of(g, first + from, first + to), shared);
    if (threadIdx.x == 0) {
        part[2 * NORM_PARTS * t + p] = of_w;
        part[2 * NORM_PARTS * t + NORM_PARTS + p] = of_g;
    }
}

/* A warp per tensor: half of it sums w's parts, the other g's. */
static __global__ void rate_kernel(float *rate, const double *part, momentum_step s, float trust, float eps, const float *scale) {
    static_assert(2 * NORM_PARTS == 32, "a lane per part");
    float by = *scale;
    if (by != by)
        return;
    double sum = part[32 * blockIdx.x + threadIdx.x];
    for (int mask = NORM_PARTS / 2; mask > 0; mask >>= 1)
        sum += __shfl_xor_sync(0xffffffffu, sum, mask);
    double of_g = __shfl_xor_sync(0xffffffffu, sum, NORM_PARTS);
    if (threadIdx.x > 0)
        return;
    double wn = sqrt(sum), gn = (double)by * sqrt(of_g);
    rate[blockIdx.x] = (float)(wn == 0 ? 1 : gn == 0 ? 0 : (double)trust * wn / (gn + (double)s.decay * wn + (double)eps));
}

static __global__ void __launch_bounds__(THREADS) lars_kernel(momentum_step s, vectors p, const uint64_t *begin, const float *rate, size_t tensors, const float *scale, int whole) {
    s.scale = *scale;
    if (s.scale != s.scale)
        return;
    for (size_t t = blockIdx.y; t < tensors; t += gridDim.y) {
        s.rate = rate[t];
        step_range(s, p, (size_t)begin[t], (size_t)begin[t + 1], (size_t)blockIdx.x * THREADS + threadIdx.x, (size_t)gridDim.x * THREADS, whole);
    }
}

kd_status kd_cuda_lars(kd_backend *base, float *w, const float *g, float *m, const uint64_t *begin, float *rate, size_t tensors, const kd_lars *h, const float *scale, kd_err *err) {
    kd_cuda *b = kd_cuda_use(base);
    double *part = (double *)b->reduction;
    momentum_step s = {h->weight_decay, 0, h->momentum, h->lr, 1};
    vectors p = {w, m, NULL, g};
    for (size_t t = 0; t < tensors; t += BATCH) {
        unsigned some = (unsigned)(tensors - t < BATCH ? tensors - t : BATCH);
        KD_TRY(kd_launch(b, "LARS", norm_parts_kernel, dim3(NORM_PARTS, some), THREADS, err, part, w, g, begin + t, scale));
        KD_TRY(kd_launch(b, "LARS", rate_kernel, some, 32, err, rate + t, part, s, h->trust, h->eps, scale));
    }
    return kd_launch(b, "LARS", lars_kernel, dim3(STEP_PARTS, (unsigned)(tensors < 65535 ? tensors : 65535)), THREADS, err, s, p, begin, rate, tensors, scale, lie_alike(&p));
}

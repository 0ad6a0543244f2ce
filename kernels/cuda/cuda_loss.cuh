/* What the losses' files share: teams of threads that go over rows, the sum over what blocks have found, gradients of normalised rows, and the KL divergence of two rows.
 *
 * A loss is summed in a fixed order: a thread adds up eight values in f32 and these sums in f64, then come team, block and, in a launch of its own, the blocks. How many blocks there are
 * depends on the shape alone. */
#ifndef KD_KERNELS_CUDA_CUDA_LOSS_CUH
#define KD_KERNELS_CUDA_CUDA_LOSS_CUH

#include "kernels/cuda/device.cuh"

/* ---- teams: a warp per row where rows are short, else a block ---- */

enum { KD_LOSS_PARTS = 1024, KD_SHORT_ROW = 512, KD_TEAM_WARPS = 8, KD_TEAM_MOST = 512 };

static inline unsigned kd_team_threads(size_t width) {
    size_t wanted = width <= KD_SHORT_ROW ? 32 * KD_TEAM_WARPS : (width + 255) / 256 * 32; /* a group of eight per thread */
    return (unsigned)(wanted < KD_TEAM_MOST ? wanted : KD_TEAM_MOST);
}

/* Blocks of kd_team_threads(width) threads that share the rows, and so the number of partial sums. */
static inline size_t kd_loss_blocks(size_t rows, size_t width) {
    size_t blocks = width <= KD_SHORT_ROW ? (rows + KD_TEAM_WARPS - 1) / KD_TEAM_WARPS : rows;
    return blocks < KD_LOSS_PARTS ? blocks : KD_LOSS_PARTS;
}

typedef struct kd_team {
    size_t row, step;  /* its first row, and the distance to its next one */
    size_t lane, size; /* of its threads */
    double *shared;    /* 32 of the block */
} kd_team;

/* width as at the launch. */
static __device__ __forceinline__ kd_team kd_team_here(size_t width, double *shared) {
    kd_team t = {blockIdx.x, gridDim.x, threadIdx.x, blockDim.x, shared};
    if (width <= KD_SHORT_ROW) {
        size_t warps = blockDim.x / 32;
        t.row = blockIdx.x * warps + threadIdx.x / 32, t.step = gridDim.x * warps;
        t.lane = threadIdx.x % 32, t.size = 32;
    }
    return t;
}

/* Every thread of the team takes part and gets the result. */
static __device__ __forceinline__ double kd_team_sum(const kd_team *t, double v) {
    return t->size == 32 ? kd_warp_sum(v) : kd_block_sum(v, t->shared);
}

static __device__ __forceinline__ float kd_team_max(const kd_team *t, float v) {
    int lane = (int)(threadIdx.x & 31u), warp = (int)(threadIdx.x >> 5), warps = (int)(blockDim.x >> 5);
    v = kd_warp_max(v);
    if (t->size == 32)
        return v;
    __syncthreads(); /* of an earlier use of shared */
    if (lane == 0)
        t->shared[warp] = (double)v;
    __syncthreads();
    return kd_warp_max(lane < warps ? (float)t->shared[lane] : -INFINITY);
}

/* The block's part of the loss: the sum of its teams' totals. All threads of the block take part. */
static __device__ __forceinline__ void kd_team_finish(double *part, const kd_team *t, double total) {
    double sum = kd_block_sum(t->lane == 0 ? total : 0.0, t->shared);
    if (threadIdx.x == 0)
        part[blockIdx.x] = sum;
}

/* The thread's groups of eight in a row. */
#define kd_team_groups(i, t, width) for (size_t i = 8 * (t).lane; i < (width); i += 8 * (t).size)

/* Values at .. at+7, of which `left` or all exist. aligned: groups of this tensor's rows begin at multiples of eight elements. */
static __device__ __forceinline__ kd_f8 kd_row_load(const void *p, int bf16, size_t at, size_t left, int aligned) {
    return kd_load_some(p, bf16, at, left < 8 ? (int)left : 8, aligned && left >= 8);
}

static __device__ __forceinline__ void kd_row_store_grad(void *p, int bf16, size_t at, kd_f8 v, size_t left, int aligned, int add) {
    kd_store_grad_some(p, bf16, at, v, left < 8 ? (int)left : 8, aligned && left >= 8, add);
}

/* |x| of the row at `at`. */
static __device__ __forceinline__ double kd_row_norm(const kd_team *t, const void *x, int bf16, size_t at, size_t width, int aligned) {
    double sum = 0;
    kd_team_groups(i, *t, width) {
        kd_f8 v = kd_row_load(x, bf16, at + i, width - i, aligned);
        float squares = 0;
        for (int k = 0; k < 8; k++)
            squares = fmaf(v.v[k], v.v[k], squares);
        sum += (double)squares;
    }
    return sqrt(kd_team_sum(t, sum));
}

/* max(norm, eps); NaN stays. */
static __device__ __forceinline__ double kd_at_least(double norm, double eps) {
    return norm < eps ? eps : norm;
}

/* ---- KL(t || s) of two rows of scores ---- */

typedef struct kd_score_rows {
    const float *s, *t;
    const float *by_s, *by_t; /* factors of the columns, or NULL */
    size_t width;
    float scale_s, scale_t; /* factors of the rows */
    int aligned;            /* of all four */
} kd_score_rows;

/* The largest score and 1 / (sum of e^(score - largest)) of either side: what a probability is made from. */
typedef struct kd_kl {
    float top_s, by_s, top_t, by_t;
} kd_kl;

static __device__ __forceinline__ kd_f8 kd_scores(const float *x, const float *by, size_t i, const kd_score_rows *r) {
    kd_f8 v = kd_row_load(x, 0, i, r->width - i, r->aligned);
    if (by) {
        kd_f8 factor = kd_row_load(by, 0, i, r->width - i, r->aligned);
        for (int k = 0; k < 8; k++)
            v.v[k] = v.v[k] * factor.v[k];
    }
    return v;
}

/* sum over j of p_j ((t_j - top_t) - (s_j - top_s)) + log total_s - log total_t. */
static __device__ __forceinline__ double kd_kl_row(const kd_team *t, const kd_score_rows *r, kd_kl *kl) {
    float top_s = -INFINITY, top_t = -INFINITY; /* fmaxf passes over NaN; the exponentials don't */
    kd_team_groups(i, *t, r->width) {
        kd_f8 s = kd_scores(r->s, r->by_s, i, r), of_t = kd_scores(r->t, r->by_t, i, r);
        for (int k = 0; k < 8; k++)
            if (i + (size_t)k < r->width) {
                top_s = fmaxf(top_s, s.v[k]);
                top_t = fmaxf(top_t, of_t.v[k]);
            }
    }
    kl->top_s = kd_team_max(t, top_s);
    kl->top_t = kd_team_max(t, top_t);
    double total_s = 0, total_t = 0, distance = 0;
    kd_team_groups(i, *t, r->width) {
        kd_f8 s = kd_scores(r->s, r->by_s, i, r), of_t = kd_scores(r->t, r->by_t, i, r);
        float sum_s = 0, sum_t = 0, sum_d = 0;
        for (int k = 0; k < 8; k++)
            if (i + (size_t)k < r->width) {
                float a = (s.v[k] - kl->top_s) * r->scale_s, c = (of_t.v[k] - kl->top_t) * r->scale_t, p = expf(c);
                sum_s += expf(a);
                sum_t += p;
                sum_d = fmaf(p, c - a, sum_d);
            }
        total_s += (double)sum_s, total_t += (double)sum_t, distance += (double)sum_d;
    }
    total_s = kd_team_sum(t, total_s);
    total_t = kd_team_sum(t, total_t);
    distance = kd_team_sum(t, distance);
    kl->by_s = 1.0f / (float)total_s;
    kl->by_t = 1.0f / (float)total_t;
    return distance / total_t + log(total_s / total_t);
}

/* (q - p) * factor in the group at i, after kd_kl_row. */
static __device__ __forceinline__ kd_f8 kd_kl_grad(const kd_score_rows *r, const kd_kl *kl, size_t i, float factor) {
    kd_f8 s = kd_scores(r->s, r->by_s, i, r), t = kd_scores(r->t, r->by_t, i, r);
    for (int k = 0; k < 8; k++)
        s.v[k] = (expf((s.v[k] - kl->top_s) * r->scale_s) * kl->by_s - expf((t.v[k] - kl->top_t) * r->scale_t) * kl->by_t) * factor;
    return s;
}

/* ---- calls (cuda_losses.cu) ---- */

/* Losses have a gradient by the prediction only. */
static inline int kd_wants_dx(const kd_op_desc *d) {
    return d->train && (d->need_dx & 1);
}
static inline int kd_adds_dx(const kd_op_desc *d) {
    return (d->add_dx & 1) != 0;
}

/* y[0] = scale times the sum of n parts. */
kd_status kd_cuda_loss_total(kd_cuda *b, void *y, const double *part, size_t n, double scale, kd_err *err);

/* dx = (dy - y <y, dy>) / |x| * factor * *of_loss with y = x / |x|, row by row; where |x| < eps, dx = dy / eps * factor * *of_loss (ops.h, l2_normalize). */
typedef struct kd_normalize_grad {
    void *dx;
    const void *dy, *x;
    kd_dtype x_type, dy_type; /* dx is of x's type */
    size_t rows, width;
    double eps, factor;
    const float *of_loss; /* the loss's gradient, or NULL: 1 */
    int add;
} kd_normalize_grad;
kd_status kd_cuda_normalize_grad(kd_cuda *b, const kd_normalize_grad *g, kd_err *err);

#endif

/* attention without tensor cores: f32, and heads above 128 in bf16. The same passes as cuda_attention.cu and cuda_attention_backward.cu, for every width of a head.
 *
 * A block of 16 x 16 threads has 64 rows of a head; tiles of 64 pass. A thread has 4 x 4 of the 64 x 64 scores (own rows 4 y to 4 y + 3, passing rows x, x + 16, x + 32, x + 48) and 4 x 4 of the sums (the same own rows, columns
 * 4 x to 4 x + 3). Heads are taken 32 columns at a time for scores; sums are made for 64 columns, and a wider head has further blocks, which make the scores again.
 *
 * Bound by arithmetic: four 16-byte loads of shared memory, of which half are broadcasts, for 32 fused multiply-adds of a thread. At 64 columns of a head nothing is computed twice. */
#include "kernels/cuda/attention.cuh"

enum { TILE = 64, THREADS = 256, DEPTH = 32, DEPTH_LD = DEPTH + 4, LD = TILE + 4 };

/* Pieces of 32 columns of both factors of the scores; then 64 columns of what is summed. */
union factors {
    float depth[2][TILE][DEPTH_LD];
    float sum[TILE][LD];
};

namespace {
__shared__ __align__(16) float shared[TILE][LD]; /* probabilities or gradients of scores: own rows x passing rows */
__shared__ __align__(16) factors f;
} // namespace

/* As an operand of a product. */
static __device__ __forceinline__ float operand(const kd_attention &a, float v) {
    return a.x_bf16 ? __bfloat162float(__float2bfloat16_rn(v)) : v;
}

/* rows [first, first + 64), columns [column, column + columns) of a head; zeros beyond the last token and the head. */
static __device__ __forceinline__ void load_rows(float *to, int ld, const kd_attention &a, const kd_head_rows &m, int first, int column, int columns) {
    for (int i = (int)threadIdx.x; i < TILE * columns / 4; i += THREADS) {
        int row = i / (columns / 4), at = i % (columns / 4) * 4, some = first + row < a.tokens ? a.head - column - at : 0;
        float4 v = make_float4(0, 0, 0, 0);
        size_t from = m.at + (size_t)(first + row) * m.stride + (size_t)(column + at);
        if (!m.bf16 && a.head % 4 == 0 && some > 0) {
            v = *(const float4 *)((const float *)m.p + from);
        } else {
            v.x = some > 0 ? kd_load1(m.p, m.bf16, from) : 0, v.y = some > 1 ? kd_load1(m.p, m.bf16, from + 1) : 0;
            v.z = some > 2 ? kd_load1(m.p, m.bf16, from + 2) : 0, v.w = some > 3 ? kd_load1(m.p, m.bf16, from + 3) : 0;
        }
        if (a.x_bf16) /* dO may be f32 where x is bf16 */
            v = make_float4(operand(a, v.x), operand(a, v.y), operand(a, v.z), operand(a, v.w));
        *(float4 *)(to + row * ld + at) = v;
    }
}

static __device__ __forceinline__ void zero(float s[4][4]) {
    for (int i = 0; i < 4; i++)
        for (int j = 0; j < 4; j++)
            s[i][j] = 0;
}

static __device__ __forceinline__ float dot4(float4 a, float4 b, float sum) {
    return fmaf(a.w, b.w, fmaf(a.z, b.z, fmaf(a.y, b.y, fmaf(a.x, b.x, sum))));
}

/* s = own rows x passing rows, transposed. Begins and ends with `f` free for all threads. */
static __device__ __forceinline__ void scores(float s[4][4], const kd_attention &a, const kd_head_rows &own, int own_first, const kd_head_rows &passing, int first) {
    int x = (int)threadIdx.x % 16, y = (int)threadIdx.x / 16;
    zero(s);
    for (int column = 0; column < a.head; column += DEPTH) {
        load_rows(&f.depth[0][0][0], DEPTH_LD, a, own, own_first, column, DEPTH);
        load_rows(&f.depth[1][0][0], DEPTH_LD, a, passing, first, column, DEPTH);
        __syncthreads();
        for (int d = 0; d < DEPTH && column + d < a.head; d += 4) {
            float4 l[4], r[4];
            #pragma unroll
            for (int i = 0; i < 4; i++) {
                l[i] = *(const float4 *)&f.depth[0][4 * y + i][d];
                r[i] = *(const float4 *)&f.depth[1][x + 16 * i][d];
            }
            #pragma unroll
            for (int i = 0; i < 4; i++)
                #pragma unroll
                for (int j = 0; j < 4; j++)
                    s[i][j] = dot4(l[i], r[j], s[i][j]);
        }
        __syncthreads();
    }
}

/* sums += p x columns of the passing rows. Begins and ends with `f` and `shared` free for all threads. */
static __device__ __forceinline__ void add_product(float sums[4][4], const float p[4][4], const kd_attention &a, const kd_head_rows &passing, int first, int column) {
    int x = (int)threadIdx.x % 16, y = (int)threadIdx.x / 16, count = column + 4 * x < a.head ? min((int)TILE, a.tokens - first) : 0;
    load_rows(&f.sum[0][0], LD, a, passing, first, column, TILE);
    for (int i = 0; i < 4; i++)
        for (int j = 0; j < 4; j++)
            shared[4 * y + i][x + 16 * j] = operand(a, p[i][j]);
    __syncthreads();
    for (int n = 0; n < count; n += 4) {
        float4 l[4];
        #pragma unroll
        for (int i = 0; i < 4; i++)
            l[i] = *(const float4 *)&shared[4 * y + i][n];
        #pragma unroll
        for (int k = 0; k < 4; k++) {
            float4 r = *(const float4 *)&f.sum[n + k][4 * x];
            #pragma unroll
            for (int i = 0; i < 4; i++) {
                float v = k == 0 ? l[i].x : k == 1 ? l[i].y : k == 2 ? l[i].z : l[i].w;
                sums[i][0] = fmaf(v, r.x, sums[i][0]), sums[i][1] = fmaf(v, r.y, sums[i][1]);
                sums[i][2] = fmaf(v, r.z, sums[i][2]), sums[i][3] = fmaf(v, r.w, sums[i][3]);
            }
        }
    }
    __syncthreads();
}

static __device__ __forceinline__ void store_sums(void *p, const kd_attention &a, const kd_head_rows &m, int first, int column, float sums[4][4], int add) {
    int x = (int)threadIdx.x % 16, y = (int)threadIdx.x / 16;
    for (int i = 0; i < 4; i++)
        for (int j = 0; j < 4; j++) {
            int row = first + 4 * y + i, at = column + 4 * x + j;
            if (row < a.tokens && at < a.head)
                kd_store_grad1(p, m.bf16, m.at + (size_t)row * m.stride + (size_t)at, sums[i][j], add);
        }
}

/* Over the 16 threads that have parts of the same rows. */
template <class F> static __device__ __forceinline__ float over_row(float v, F join) {
    for (int mask = 8; mask > 0; mask >>= 1)
        v = join(v, __shfl_xor_sync(0xffffffffu, v, mask));
    return v;
}

/* Scores of a tile become probabilities relative to `top`, the largest so far; sums shrink where that grows. */
static __device__ __forceinline__ void softmax_tile(float s[4][4], float top[4], float sum[4], float sums[4][4], int count, float scale2) {
    int x = (int)threadIdx.x % 16;
    for (int i = 0; i < 4; i++) {
        float most = -INFINITY;
        for (int j = 0; j < 4; j++) {
            s[i][j] = x + 16 * j < count ? s[i][j] : -INFINITY;
            most = fmaxf(most, s[i][j]);
        }
        most = fmaxf(top[i], over_row(most, fmaxf) * scale2);
        float shrink = exp2f(top[i] - most);
        top[i] = most, sum[i] *= shrink;
        for (int j = 0; j < 4; j++) {
            sums[i][j] *= shrink;
            s[i][j] = exp2f(fmaf(s[i][j], scale2, -most));
            sum[i] += s[i][j];
        }
    }
}

static __global__ void __launch_bounds__(THREADS, 2) forward_kernel(kd_attention a, int columns) {
    int tile = (int)blockIdx.x / columns, column = (int)blockIdx.x % columns * TILE, own_first = tile * TILE, y = (int)threadIdx.x / 16;
    size_t pair = kd_pair();
    float s[4][4], sums[4][4], top[4], sum[4], scale2 = a.scale * 1.4426950408889634f;
    if (pair >= a.pairs)
        return;
    kd_head_rows q = kd_rows_of_x(a, a.x, pair, 0), k = kd_rows_of_x(a, a.x, pair, 1), v = kd_rows_of_x(a, a.x, pair, 2);
    zero(sums);
    for (int i = 0; i < 4; i++)
        top[i] = -INFINITY, sum[i] = 0;
    for (int first = 0; first < a.tokens; first += TILE) {
        scores(s, a, q, own_first, k, first);
        softmax_tile(s, top, sum, sums, a.tokens - first, scale2);
        add_product(sums, s, a, v, first, column);
    }
    for (int i = 0; i < 4; i++) {
        int row = own_first + 4 * y + i;
        sum[i] = over_row(sum[i], [](float u, float w) { return u + w; });
        for (int j = 0; j < 4; j++)
            sums[i][j] /= sum[i];
        if (a.lse && column == 0 && threadIdx.x % 16 == 0 && row < a.tokens)
            a.lse[pair * a.tokens + row] = top[i] + log2f(sum[i]);
    }
    store_sums(a.y, a, kd_rows_of_y(a, a.y, pair), own_first, column, sums, 0);
}

/* Probabilities in s; the gradients of the scores in dp, without the scale. */
template <bool KEYS> static __device__ __forceinline__ void score_gradients(float s[4][4], float dp[4][4], const kd_attention &a, size_t pair, int own_first, int first, float scale2) {
    const float *lse = a.lse + pair * a.tokens, *delta = a.delta + pair * a.tokens;
    int x = (int)threadIdx.x % 16, y = (int)threadIdx.x / 16;
    for (int i = 0; i < 4; i++)
        for (int j = 0; j < 4; j++) {
            int own = own_first + 4 * y + i, other = first + x + 16 * j, query = KEYS ? other : own;
            int there = own < a.tokens && other < a.tokens;
            s[i][j] = there ? exp2f(fmaf(s[i][j], scale2, -lse[query])) : 0;
            dp[i][j] = there ? s[i][j] * (dp[i][j] - delta[query]) : 0;
        }
}

/* KEYS: own rows are keys and queries pass (dk, dv); else queries, and keys pass (dq). */
template <bool KEYS> static __global__ void __launch_bounds__(THREADS, 2) gradient_kernel(kd_attention a, int columns) {
    int tile = (int)blockIdx.x / columns, column = (int)blockIdx.x % columns * TILE, own_first = tile * TILE;
    size_t pair = kd_pair();
    float s[4][4], dp[4][4], sums[4][4], dv[4][4], scale2 = a.scale * 1.4426950408889634f;
    if (pair >= a.pairs)
        return;
    kd_head_rows q = kd_rows_of_x(a, a.x, pair, 0), k = kd_rows_of_x(a, a.x, pair, 1), v = kd_rows_of_x(a, a.x, pair, 2), g = kd_rows_of_y(a, a.dy, pair);
    zero(sums), zero(dv);
    for (int first = 0; first < a.tokens; first += TILE) {
        scores(s, a, KEYS ? k : q, own_first, KEYS ? q : k, first);
        scores(dp, a, KEYS ? v : g, own_first, KEYS ? g : v, first);
        score_gradients<KEYS>(s, dp, a, pair, own_first, first, scale2);
        if (KEYS)
            add_product(dv, s, a, g, first, column);
        add_product(sums, dp, a, KEYS ? q : k, first, column);
    }
    for (int i = 0; i < 4; i++)
        for (int j = 0; j < 4; j++)
            sums[i][j] *= a.scale;
    store_sums(a.dx, a, kd_rows_of_x(a, a.dx, pair, KEYS ? 1 : 0), own_first, column, sums, a.add);
    if (KEYS)
        store_sums(a.dx, a, kd_rows_of_x(a, a.dx, pair, 2), own_first, column, dv, a.add);
}

static int column_blocks(const kd_attention *a) {
    return (a->head + TILE - 1) / TILE;
}

kd_status kd_attention_plain_forward(kd_cuda *b, const kd_attention *a, kd_err *err) {
    int columns = column_blocks(a);
    return kd_launch(b, "attention", forward_kernel, kd_attention_grid(a, TILE, columns), THREADS, err, *a, columns);
}

kd_status kd_attention_plain_backward(kd_cuda *b, const kd_attention *a, kd_err *err) {
    int columns = column_blocks(a);
    KD_TRY(kd_launch(b, "gradient of attention", gradient_kernel<true>, kd_attention_grid(a, TILE, columns), THREADS, err, *a, columns));
    return kd_launch(b, "gradient of attention", gradient_kernel<false>, kd_attention_grid(a, TILE, columns), THREADS, err, *a, columns);
}

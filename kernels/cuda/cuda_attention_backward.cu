/* attention, backward on tensor cores. With p = 2^(score log2 e - lse), dp = dO v^T and delta = sum of dO O over a row, the scores' gradient is ds = p (dp - delta); dq = scale ds k, dk = scale ds^T q, dv = p^T dO.
 *
 * Two kernels, which recompute p and dp, so that nothing is added up across blocks: one has 64 keys of a head in a block and lets queries pass (dk, dv), one has queries and lets keys pass (dq). They differ in what is a row
 * and what is a column, so they are one:
 *
 *                own rows (registers)    tiles that pass     16 x 16 at a time             sums (registers)
 *     keys       k, v                    q, dO               p^T, ds^T: own x passing      dk += ds^T q, dv += p^T dO
 *     queries    q, dO                   k, v                p, ds: own x passing          dq += ds k
 *
 * Seven products instead of the five that one pass with atomic additions would take. As in the forward pass, shared memory bounds it: 16 products of 16 x 16 x 16 for 8 KB (keys, heads of 64), so at best half of an H100's peak,
 * and 5/7 of that by the usual count; not measured. */
#include "kernels/cuda/attention_tensor.cuh"

enum { MOST_ROWS = 64 };

namespace {
__shared__ __align__(16) float attention_rows[2][2][MOST_ROWS]; /* lse and delta beside each of the pairs of tiles */
} // namespace

/* The sums over a head's part of dO y: eight lanes for each. */
static __global__ void row_products_kernel(kd_attention a, size_t count) {
    size_t i = ((size_t)blockIdx.x * blockDim.x + threadIdx.x) / 8, stop = count < i + 1 ? 0 : (size_t)a.head;
    float sum = 0;
    for (size_t d = 8 * (threadIdx.x % 8); d < stop; d += 64) {
        int some = (int)(stop - d);
        kd_f8 g = kd_load_some(a.dy, a.y_bf16, i * stop + d, some, a.whole), y = kd_load_some(a.y, a.y_bf16, i * stop + d, some, a.whole);
        for (int k = 0; k < 8; k++)
            sum = fmaf(a.x_bf16 ? __bfloat162float(__float2bfloat16_rn(g.v[k])) : g.v[k], y.v[k], sum);
    }
    for (int mask = 4; mask > 0; mask >>= 1)
        sum += __shfl_xor_sync(0xffffffffu, sum, mask);
    size_t head = i % a.heads, token = i / a.heads % a.tokens, image = i / a.heads / a.tokens;
    if (i < count && threadIdx.x % 8 == 0)
        a.delta[(image * a.heads + head) * a.tokens + token] = sum;
}

kd_status kd_attention_row_products(kd_cuda *b, const kd_attention *a, kd_err *err) {
    size_t count = a->pairs * (size_t)a->tokens, blocks = (count + 31) / 32;
    if (blocks > 0x7fffffff)
        return kd_fail(err, KD_EFAIL, "attention: %zu rows of heads are too many", count);
    return kd_launch(b, "gradient of attention", row_products_kernel, (unsigned)blocks, 256, err, *a, count);
}

/* lse and delta of a tile's rows; zeros where there are none, which make p = 1 and everything else 0. */
template <int ROWS> static __device__ __forceinline__ void begin_row_values(float (*to)[MOST_ROWS], const kd_attention &a, size_t pair, int first) {
    for (int i = (int)threadIdx.x; i < 2 * ROWS; i += (int)blockDim.x) {
        int row = i % ROWS, there = first + row < a.tokens;
        const float *from = (i < ROWS ? a.lse : a.delta) + pair * a.tokens;
        __pipeline_memcpy_async(&to[i / ROWS][row], there ? from + first + row : from, 4, there ? 0 : 4);
    }
}

/* The rows of one matrix that a block has, as operands of its warps. */
template <int D, int WARPS> static __device__ __forceinline__ void own_rows(kd_operand *f, const kd_attention &a, const kd_head_rows &m, int first) {
    kd_begin_tile<D, 16 * WARPS, 32 * WARPS>(attention_tiles, a, m, first);
    __pipeline_commit();
    __pipeline_wait_prior(0);
    __syncthreads();
    kd_load_own<D>(f, attention_tiles + threadIdx.x / 32 * 16 * kd_tile<D>::ld);
    __syncthreads();
}

/* What a warp has of its 16 rows: keys, or queries and then their lse and delta. */
template <int D, bool KEYS> struct own {
    kd_operand one[kd_tile<D>::parts], two[kd_tile<D>::parts]; /* k, v; or q, dO */
    kd_sums sums[kd_tile<D>::parts], dv[KEYS ? kd_tile<D>::parts : 1];
    float lse[2], delta[2]; /* of queries: kd_by_row */
};

/* 16 of the rows that pass, of which `count` exist; row_values as begin_row_values laid them, from these rows on. */
template <int D, bool KEYS>
static __device__ __forceinline__ void gradient_step(own<D, KEYS> &w, const __nv_bfloat16 *one, const __nv_bfloat16 *two, const float *row_values, int count, float scale2) {
    kd_sums s, dp;
    kd_f8 p, ds;
    kd_scores<D>(s, w.one, one);
    kd_scores<D>(dp, w.two, two);
    kd_f8 lse = KEYS ? kd_by_column(row_values) : kd_by_row(w.lse[0], w.lse[1]), delta = KEYS ? kd_by_column(row_values + MOST_ROWS) : kd_by_row(w.delta[0], w.delta[1]);
    for (int i = 0; i < 8; i++)
        p.v[i] = exp2f(fmaf(s.x[i], scale2, -lse.v[i]));
    if (!KEYS && count < 16)
        for (int i = 0; i < 8; i++)
            p.v[i] = kd_column(i) < count ? p.v[i] : 0.0f;
    for (int i = 0; i < 8; i++)
        ds.v[i] = p.v[i] * (dp.x[i] - delta.v[i]);
    if (KEYS)
        kd_add_product<D>(w.dv, kd_as_operand(p), two);
    kd_add_product<D>(w.sums, kd_as_operand(ds), one);
}

template <int D, bool KEYS> static __device__ __forceinline__ void store_own(const kd_attention &a, const own<D, KEYS> &w, size_t pair, int first, float *scratch) {
    kd_f8 one, scale;
    for (int i = 0; i < 8; i++)
        one.v[i] = 1.0f, scale.v[i] = a.scale;
    kd_store_own<D>(a.dx, a, kd_rows_of_x(a, a.dx, pair, KEYS ? 1 : 0), first, w.sums, scale, a.add, scratch);
    if (KEYS)
        kd_store_own<D>(a.dx, a, kd_rows_of_x(a, a.dx, pair, 2), first, w.dv, one, a.add, scratch);
}

template <int D, int WARPS, bool KEYS> static __device__ __forceinline__ void begin_own(own<D, KEYS> &w, const kd_attention &a, size_t pair, int block_first) {
    own_rows<D, WARPS>(w.one, a, kd_rows_of_x(a, a.x, pair, KEYS ? 1 : 0), block_first);
    own_rows<D, WARPS>(w.two, a, KEYS ? kd_rows_of_x(a, a.x, pair, 2) : kd_rows_of_y(a, a.dy, pair), block_first);
    #pragma unroll
    for (int j = 0; j < kd_tile<D>::parts; j++)
        wmma::fill_fragment(w.sums[j], 0.0f);
    #pragma unroll
    for (kd_sums &f : w.dv)
        wmma::fill_fragment(f, 0.0f);
    for (int r = 0; r < (KEYS ? 0 : 2); r++) {
        int row = block_first + (int)threadIdx.x / 32 * 16 + (int)threadIdx.x % 32 / 4 + 8 * r;
        w.lse[r] = row < a.tokens ? a.lse[pair * a.tokens + row] : 0.0f;
        w.delta[r] = row < a.tokens ? a.delta[pair * a.tokens + row] : 0.0f;
    }
}

template <int D, int WARPS, bool KEYS> static __device__ __forceinline__ void gradient_block(const kd_attention &a, size_t pair) {
    constexpr int rows = kd_tile<D>::rows, size = kd_tile<D>::size;
    int block_first = (int)blockIdx.x * 16 * WARPS, first = block_first + (int)threadIdx.x / 32 * 16, tiles = (a.tokens + rows - 1) / rows;
    kd_head_rows one = kd_rows_of_x(a, a.x, pair, KEYS ? 0 : 1), two = KEYS ? kd_rows_of_y(a, a.dy, pair) : kd_rows_of_x(a, a.x, pair, 2);
    float scale2 = a.scale * 1.4426950408889634f;
    own<D, KEYS> w;
    begin_own<D, WARPS, KEYS>(w, a, pair, block_first);
    for (int t = -1; t < tiles; t++) {
        const __nv_bfloat16 *tile = attention_tiles + (t & 1) * 2 * size;
        __pipeline_wait_prior(0);
        __syncthreads(); /* this tile is there, and the last one has been read by all */
        if (t + 1 < tiles) {
            __nv_bfloat16 *next = attention_tiles + ((t + 1) & 1) * 2 * size;
            kd_begin_tile<D, rows, 32 * WARPS>(next, a, one, (t + 1) * rows);
            kd_begin_tile<D, rows, 32 * WARPS>(next + size, a, two, (t + 1) * rows);
            if (KEYS)
                begin_row_values<rows>(attention_rows[(t + 1) & 1], a, pair, (t + 1) * rows);
            __pipeline_commit();
        }
        if (first >= a.tokens || t < 0)
            continue;
        int count = min(rows, a.tokens - t * rows);
        #pragma unroll 1
        for (int n = 0; n < count; n += 16)
            gradient_step<D, KEYS>(w, tile + n * kd_tile<D>::ld, tile + size + n * kd_tile<D>::ld, attention_rows[t & 1][0] + n, count - n, scale2);
    }
    if (first < a.tokens)
        store_own<D, KEYS>(a, w, pair, first, attention_scratch + threadIdx.x / 32 * KD_SCRATCH);
}

template <int D, int WARPS, int BLOCKS, bool KEYS> static __global__ void __launch_bounds__(32 * WARPS, BLOCKS) gradient_kernel(kd_attention a) {
    size_t pair = kd_pair();
    if (pair < a.pairs)
        gradient_block<D, WARPS, KEYS>(a, pair);
}

template <int D, int WARPS, int BLOCKS, bool KEYS> static kd_status launch_gradient(kd_cuda *b, const kd_attention *a, kd_err *err) {
    return kd_launch(b, "gradient of attention", gradient_kernel<D, WARPS, BLOCKS, KEYS>, kd_attention_grid(a, 16 * WARPS, 1), 32 * WARPS, err, *a);
}

template <int D, int WARPS, int BLOCKS> static kd_status launch_gradients(kd_cuda *b, const kd_attention *a, kd_err *err) {
    KD_TRY((launch_gradient<D, WARPS, BLOCKS, true>(b, a, err)));
    return launch_gradient<D, WARPS, BLOCKS, false>(b, a, err);
}

kd_status kd_attention_tensor_backward(kd_cuda *b, const kd_attention *a, kd_err *err) {
    if (a->head <= 32)
        return launch_gradients<32, 4, 4>(b, a, err);
    if (a->head <= 64)
        return launch_gradients<64, 4, 3>(b, a, err);
    if (a->head <= 96)
        return launch_gradients<96, 4, 2>(b, a, err);
    return launch_gradients<128, 4, 2>(b, a, err);
}

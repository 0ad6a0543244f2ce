/* Attention on tensor cores, what forward and backward share: tiles in shared memory, fragments and their layout. Heads of up to 128, filled up with zeros to D.
 *
 * nvcuda::wmma leaves open which elements of a fragment a lane holds. From compute capability 8.0 on, an operand (a) and an accumulator lie alike:
 *
 *     element i of lane l:  row l / 4 + 8 (i / 2 % 2),  column 2 (l % 4) + i % 2 + 8 (i / 4)
 *
 * so that softmax and the rounding to operands need no shared memory: a row is that of four lanes. (nvcc 13.0's code for 8.0 to 12.1 does so.) The op asks for this layout at its creation, usual_layout_kernel, and
 * takes the plain path on a device that has another. */
#ifndef KD_KERNELS_CUDA_ATTENTION_TENSOR_CUH
#define KD_KERNELS_CUDA_ATTENTION_TENSOR_CUH

#include <cuda_pipeline.h>
#include <mma.h>

#include "kernels/cuda/attention.cuh"

namespace wmma = nvcuda::wmma;

/* Rows are 16 bytes longer than D elements, so that eight of them at the same column lie in different banks. */
template <int D> struct kd_tile {
    static constexpr int ld = D + 8, rows = D <= 64 ? 64 : 32, size = rows * ld, parts = D / 16;
};
enum { KD_TILE_BYTES = 4 * 64 * (64 + 8) * 2, KD_MOST_WARPS = 8, KD_SCRATCH = 256 };

/* Two pairs of tiles, one of them being filled; the warps' scratch. Outside of the kernels, since those are templates. */
namespace {
__shared__ __align__(128) __nv_bfloat16 attention_tiles[KD_TILE_BYTES / 2];
__shared__ __align__(128) float attention_scratch[KD_MOST_WARPS * KD_SCRATCH];
} // namespace

typedef wmma::fragment<wmma::matrix_a, 16, 16, 16, __nv_bfloat16, wmma::row_major> kd_operand;
typedef wmma::fragment<wmma::matrix_b, 16, 16, 16, __nv_bfloat16, wmma::row_major> kd_right;
typedef wmma::fragment<wmma::matrix_b, 16, 16, 16, __nv_bfloat16, wmma::col_major> kd_right_transposed;
typedef wmma::fragment<wmma::accumulator, 16, 16, 16, float> kd_sums;
static_assert(kd_operand::num_elements == 8 && kd_sums::num_elements == 8, "eight of 256 elements for each lane");

/* rows [first, first + ROWS) as bf16 into a tile, by a block of THREADS; zeros beyond the last token and the head's width. In place after commit, wait and a barrier. */
template <int D, int ROWS, int THREADS> static __device__ __forceinline__ void kd_begin_tile(__nv_bfloat16 *tile, const kd_attention &a, const kd_head_rows &m, int first) {
    constexpr int groups = D / 8; /* of a row */
    if (a.whole && m.bf16) {
        #pragma unroll
        for (int n = 0; n < (ROWS * groups + THREADS - 1) / THREADS; n++) {
            int i = n * THREADS + (int)threadIdx.x, row = i / groups, column = i % groups * 8, there = first + row < a.tokens && column < a.head;
            const __nv_bfloat16 *from = (const __nv_bfloat16 *)m.p + m.at;
            if (ROWS * groups % THREADS == 0 || row < ROWS)
                __pipeline_memcpy_async(tile + row * kd_tile<D>::ld + column, there ? from + ((size_t)(unsigned)(first + row) * m.stride + (unsigned)column) : from, 16, there ? 0 : 16);
        }
        return;
    }
    #pragma unroll 1
    for (int i = (int)threadIdx.x; i < ROWS * groups; i += THREADS) {
        int row = i / groups, column = i % groups * 8, some = first + row < a.tokens ? a.head - column : 0;
        size_t at = some > 0 ? m.at + (size_t)(unsigned)(first + row) * m.stride + (unsigned)column : m.at;
        kd_store8(tile + row * kd_tile<D>::ld + column, 1, 0, kd_load_some(m.p, m.bf16, at, some, a.whole && some >= 8));
    }
}

/* A load from shared memory. bf16 lies as f16 does, for which nvcc (13.0) has ldmatrix, where for bf16 it loads four times and transposes by moves. */
template <class Use, class Layout> static __device__ __forceinline__ void kd_load_operand(wmma::fragment<Use, 16, 16, 16, __nv_bfloat16, Layout> &f, const __nv_bfloat16 *p, unsigned ld) {
    wmma::fragment<Use, 16, 16, 16, __half, Layout> h;
    wmma::load_matrix_sync(h, (const __half *)p, ld);
    memcpy(f.x, h.x, sizeof f.x);
}

/* A warp's 16 rows of a tile, as operands. */
template <int D> static __device__ __forceinline__ void kd_load_own(kd_operand *f, const __nv_bfloat16 *rows) {
    #pragma unroll
    for (int j = 0; j < kd_tile<D>::parts; j++)
        kd_load_operand(f[j], rows + 16 * j, kd_tile<D>::ld);
}

/* s = own 16 rows x 16 rows of a tile, transposed. */
template <int D> static __device__ __forceinline__ void kd_scores(kd_sums &s, const kd_operand *own, const __nv_bfloat16 *rows) {
    wmma::fill_fragment(s, 0.0f);
    #pragma unroll
    for (int j = 0; j < kd_tile<D>::parts; j++) {
        kd_right_transposed b;
        kd_load_operand(b, rows + 16 * j, kd_tile<D>::ld);
        wmma::mma_sync(s, own[j], b, s);
    }
}

/* sums += p x 16 rows of a tile. */
template <int D> static __device__ __forceinline__ void kd_add_product(kd_sums *sums, const kd_operand &p, const __nv_bfloat16 *rows) {
    #pragma unroll
    for (int j = 0; j < kd_tile<D>::parts; j++) {
        kd_right b;
        kd_load_operand(b, rows + 16 * j, kd_tile<D>::ld);
        wmma::mma_sync(sums[j], p, b, sums[j]);
    }
}

/* ---- elements of an accumulator ---- */

/* In bf16, as an operand. */
static __device__ __forceinline__ kd_operand kd_as_operand(const kd_f8 &p) {
    kd_operand f;
    #pragma unroll
    for (int i = 0; i < 8; i += 2) {
        __nv_bfloat162 two = __floats2bfloat162_rn(p.v[i], p.v[i + 1]);
        f.x[i] = two.x, f.x[i + 1] = two.y;
    }
    return f;
}

/* Each becomes the maximum, or the sum, of its row. */
template <class F> static __device__ __forceinline__ kd_f8 kd_over_rows(kd_f8 v, F join) {
    #pragma unroll
    for (int i = 0; i < 4; i += 2) {
        float r = join(join(v.v[i], v.v[i + 1]), join(v.v[i + 4], v.v[i + 5]));
        r = join(r, __shfl_xor_sync(0xffffffffu, r, 1));
        r = join(r, __shfl_xor_sync(0xffffffffu, r, 2));
        v.v[i] = v.v[i + 1] = v.v[i + 4] = v.v[i + 5] = r;
    }
    return v;
}

/* Each: the value of its row; low is that of row l / 4, high that of row l / 4 + 8. */
static __device__ __forceinline__ kd_f8 kd_by_row(float low, float high) {
    kd_f8 v;
    v.v[0] = v.v[1] = v.v[4] = v.v[5] = low;
    v.v[2] = v.v[3] = v.v[6] = v.v[7] = high;
    return v;
}

/* Each: value[its column]. */
static __device__ __forceinline__ kd_f8 kd_by_column(const float *value) {
    int column = 2 * (int)(threadIdx.x % 4);
    float2 low = *(const float2 *)(value + column), high = *(const float2 *)(value + column + 8);
    kd_f8 v;
    v.v[0] = v.v[2] = low.x, v.v[1] = v.v[3] = low.y;
    v.v[4] = v.v[6] = high.x, v.v[5] = v.v[7] = high.y;
    return v;
}

/* Element i's column. */
static __device__ __forceinline__ int kd_column(int i) {
    return 2 * (int)(threadIdx.x % 4) + i % 2 + 8 * (i / 4);
}

/* Stores a warp's 16 rows from `first` on, from accumulators times `factor`, by way of the warp's scratch: 16 bytes of bf16 for each lane. */
template <int D> static __device__ __forceinline__ void kd_store_own(void *p, const kd_attention &a, const kd_head_rows &m, int first, const kd_sums *sums, const kd_f8 &factor, int add, float *scratch) {
    int lane = (int)threadIdx.x % 32, row = first + lane / 2;
    #pragma unroll
    for (int j = 0; j < kd_tile<D>::parts; j++) {
        kd_sums f;
        for (int i = 0; i < 8; i++)
            f.x[i] = sums[j].x[i] * factor.v[i];
        __syncwarp(); /* of the last ones */
        wmma::store_matrix_sync(scratch, f, 16, wmma::mem_row_major);
        __syncwarp();
        kd_f8 v = kd_load8(scratch, 0, 8 * (size_t)lane); /* row lane / 2, from column 8 (lane % 2) on */
        int column = 16 * j + 8 * (lane % 2), some = a.head - column;
        if (row < a.tokens && some > 0)
            kd_store_grad_some(p, m.bf16, m.at + (size_t)row * m.stride + (size_t)column, v, some, a.whole, add);
    }
}

#endif

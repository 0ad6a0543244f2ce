/* attention: which path, and the forward pass on tensor cores; the backward pass is in cuda_attention_backward.cu, f32 and very wide heads in cuda_attention_plain.cu.
 *
 * After Dao, FlashAttention-2 (2023): a block takes 128 queries of a head (64 for heads above 64), a warp 16 of them, and keys pass by in tiles. The scores of 16 queries and a tile of keys never leave the warp's registers:
 * their softmax is taken relative to the largest score so far, and the sums are rescaled when a larger one comes. Probabilities are rounded to bf16 before they are divided by their sum.
 *
 * What bounds it, by count, for heads of 64 on an H100; cycles in which an SM's four schedulers each do 16 queries x 64 keys:
 *     256 products at the peak (about 410 as mma.sync gets them: the full rate is for Hopper's own instructions); 256 exponentials; 512 shared memory, since every warp reads all keys and values;
 *     about 560 instructions issued, of which 64 are products and 136 are exp2f (each with its care for subnormal results)
 * So the issue of instructions, then shared memory: at best 45% of the peak, 30 to 35% to be expected with 16 warps of an SM to hide latencies. Not measured. On an A100, whose products take 512, everything is about even. */
#include "kernels/cuda/attention_tensor.cuh"

/* What a warp keeps of its 16 queries. A lane has parts of two rows (kd_by_row); their sums are over its own elements. */
template <int D> struct queries {
    kd_operand q[kd_tile<D>::parts];
    kd_sums o[kd_tile<D>::parts];
    float top[2], sum[2];
};

/* Scores of the 16 keys from n on, of which `count` exist. */
template <bool LAST, int D> static __device__ __forceinline__ void scores_of_keys(kd_sums &s, const kd_operand *q, const __nv_bfloat16 *k, int count) {
    if (LAST && count <= 0) {
        wmma::fill_fragment(s, -INFINITY);
        return;
    }
    kd_scores<D>(s, q, k);
    if (LAST && count < 16)
        for (int i = 0; i < 8; i++)
            s.x[i] = kd_column(i) < count ? s.x[i] : -INFINITY;
}

/* The largest scores so far, to base 2, with those of a tile; sums shrink where they grow. */
template <int D, int GROUPS> static __device__ __forceinline__ void raise_top(queries<D> &w, const kd_sums *s, float scale2) {
    kd_f8 top, shrink;
    for (int i = 0; i < 8; i++) {
        top.v[i] = s[0].x[i];
        #pragma unroll
        for (int n = 1; n < GROUPS; n++)
            top.v[i] = fmaxf(top.v[i], s[n].x[i]);
    }
    top = kd_over_rows(top, [](float a, float b) { return fmaxf(a, b); });
    #pragma unroll
    for (int r = 0; r < 2; r++) {
        float most = fmaxf(w.top[r], top.v[2 * r] * scale2);
        top.v[r] = exp2f(w.top[r] - most);
        w.top[r] = most;
        w.sum[r] *= top.v[r];
    }
    shrink = kd_by_row(top.v[0], top.v[1]);
    #pragma unroll
    for (int j = 0; j < kd_tile<D>::parts; j++)
        for (int i = 0; i < 8; i++)
            w.o[j].x[i] *= shrink.v[i];
}

/* A tile of keys and values. LAST: it may have fewer than a tile's. scale2: to base 2. */
template <bool LAST, int D> static __device__ __forceinline__ void forward_tile(queries<D> &w, const __nv_bfloat16 *k, const __nv_bfloat16 *v, int keys, float scale2) {
    constexpr int groups = kd_tile<D>::rows / 16, step = 16 * kd_tile<D>::ld;
    kd_sums s[groups];
    #pragma unroll
    for (int n = 0; n < groups; n++)
        scores_of_keys<LAST, D>(s[n], w.q, k + n * step, keys - 16 * n);
    raise_top<D, groups>(w, s, scale2);
    kd_f8 top = kd_by_row(w.top[0], w.top[1]);
    #pragma unroll
    for (int n = 0; n < groups; n++) {
        kd_f8 p;
        if (LAST && 16 * n >= keys)
            continue;
        for (int i = 0; i < 8; i++) {
            p.v[i] = exp2f(fmaf(s[n].x[i], scale2, -top.v[i]));
            w.sum[i / 2 % 2] += p.v[i];
        }
        kd_add_product<D>(w.o, kd_as_operand(p), v + n * step);
    }
}

/* Divides by the sums and stores; lse for the backward pass. */
template <int D> static __device__ __forceinline__ void store_queries(const kd_attention &a, const queries<D> &w, size_t pair, int first, float *scratch) {
    int lane = (int)threadIdx.x % 32;
    kd_f8 sum = kd_by_row(w.sum[0], w.sum[1]), inverse;
    for (int i = 0; i < 8; i++)
        sum.v[i] = i % 2 == 0 && i < 4 ? sum.v[i] : 0.0f;
    sum = kd_over_rows(sum, [](float u, float v) { return u + v; });
    for (int i = 0; i < 8; i++)
        inverse.v[i] = 1.0f / sum.v[i];
    kd_store_own<D>(a.y, a, kd_rows_of_y(a, a.y, pair), first, w.o, inverse, 0, scratch);
    for (int r = 0; a.lse && r < 2; r++) {
        int row = first + lane / 4 + 8 * r;
        if (lane % 4 == 0 && row < a.tokens)
            a.lse[pair * a.tokens + row] = w.top[r] + log2f(sum.v[2 * r]);
    }
}

template <int D, int WARPS> static __device__ __forceinline__ void forward_block(const kd_attention &a, size_t pair) {
    constexpr int rows = kd_tile<D>::rows, size = kd_tile<D>::size;
    int warp = (int)threadIdx.x / 32, block_first = (int)blockIdx.x * 16 * WARPS, first = block_first + 16 * warp, tiles = (a.tokens + rows - 1) / rows;
    kd_head_rows k = kd_rows_of_x(a, a.x, pair, 1), v = kd_rows_of_x(a, a.x, pair, 2);
    float scale2 = a.scale * 1.4426950408889634f;
    queries<D> w;
    kd_begin_tile<D, 16 * WARPS, 32 * WARPS>(attention_tiles, a, kd_rows_of_x(a, a.x, pair, 0), block_first);
    __pipeline_commit();
    __pipeline_wait_prior(0);
    __syncthreads();
    kd_load_own<D>(w.q, attention_tiles + warp * 16 * kd_tile<D>::ld);
    #pragma unroll
    for (int j = 0; j < kd_tile<D>::parts; j++)
        wmma::fill_fragment(w.o[j], 0.0f);
    w.top[0] = w.top[1] = -INFINITY;
    w.sum[0] = w.sum[1] = 0.0f;
    __syncthreads();
    kd_begin_tile<D, rows, 32 * WARPS>(attention_tiles, a, k, 0);
    kd_begin_tile<D, rows, 32 * WARPS>(attention_tiles + size, a, v, 0);
    __pipeline_commit();
    for (int t = 0; t < tiles; t++) {
        const __nv_bfloat16 *tile = attention_tiles + t % 2 * 2 * size;
        __pipeline_wait_prior(0);
        __syncthreads(); /* this tile is there, and the last one has been read by all */
        if (t + 1 < tiles) {
            __nv_bfloat16 *next = attention_tiles + (t + 1) % 2 * 2 * size;
            kd_begin_tile<D, rows, 32 * WARPS>(next, a, k, (t + 1) * rows);
            kd_begin_tile<D, rows, 32 * WARPS>(next + size, a, v, (t + 1) * rows);
            __pipeline_commit();
        }
        if (first >= a.tokens)
            continue;
        if (t + 1 < tiles)
            forward_tile<false, D>(w, tile, tile + size, rows, scale2);
        else
            forward_tile<true, D>(w, tile, tile + size, a.tokens - t * rows, scale2);
    }
    if (first < a.tokens)
        store_queries<D>(a, w, pair, first, attention_scratch + warp * KD_SCRATCH);
}

template <int D, int WARPS, int BLOCKS> static __global__ void __launch_bounds__(32 * WARPS, BLOCKS) forward_kernel(kd_attention a) {
    size_t pair = kd_pair();
    if (pair < a.pairs)
        forward_block<D, WARPS>(a, pair);
}

template <int D, int WARPS, int BLOCKS> static kd_status launch_forward(kd_cuda *b, const kd_attention *a, kd_err *err) {
    return kd_launch(b, "attention", forward_kernel<D, WARPS, BLOCKS>, kd_attention_grid(a, 16 * WARPS, 1), 32 * WARPS, err, *a);
}

kd_status kd_attention_tensor_forward(kd_cuda *b, const kd_attention *a, kd_err *err) {
    if (a->head <= 32)
        return launch_forward<32, 8, 2>(b, a, err);
    if (a->head <= 64)
        return launch_forward<64, 8, 2>(b, a, err);
    if (a->head <= 96)
        return launch_forward<96, 4, 3>(b, a, err);
    return launch_forward<128, 4, 3>(b, a, err);
}

/* ---- the op ---- */

/* Bits that differ between the two ways to load a matrix of operands, or from what is expected. */
template <class F> static __device__ __forceinline__ int differs(const __nv_bfloat16 *matrix, const float *expected) {
    F direct, other;
    int different = 0;
    wmma::load_matrix_sync(direct, matrix, 16);
    kd_load_operand(other, matrix, 16);
    for (int i = 0; i < 8; i++)
        different |= __bfloat16_as_ushort(direct.x[i]) != __bfloat16_as_ushort(other.x[i]) || (expected && __bfloat162float(direct.x[i]) != expected[i]);
    return different;
}

/* One warp. *usual: whether fragments lie as attention_tensor.cuh says. A matrix that holds the places of its elements (whole numbers below 256, which bf16 has) is loaded as each kind. */
static __global__ void usual_layout_kernel(int *usual) {
    int lane = (int)threadIdx.x, different = 0;
    float expected[8];
    kd_f8 place;
    for (int i = 0; i < 8; i++) {
        place.v[i] = (float)(8 * lane + i);
        expected[i] = (float)(16 * (lane / 4 + 8 * (i / 2 % 2)) + kd_column(i));
    }
    kd_store8(attention_scratch, 0, 8 * (size_t)lane, place);
    kd_store8(attention_tiles, 1, 8 * (size_t)lane, place);
    __syncwarp();
    kd_sums sums;
    wmma::load_matrix_sync(sums, attention_scratch, 16, wmma::mem_row_major);
    for (int i = 0; i < 8; i++)
        different |= sums.x[i] != expected[i];
    different |= differs<kd_operand>(attention_tiles, expected) | differs<kd_right>(attention_tiles, NULL) | differs<kd_right_transposed>(attention_tiles, NULL);
    different = kd_warp_sum(different);
    if (lane == 0)
        *usual = different == 0;
}

static kd_status ask_layout(kd_cuda *b, int *usual, kd_err *err) {
    const kd_backend_table *v = b->base.v;
    void *answer = NULL;
    KD_TRY(v->alloc(&b->base, &answer, sizeof *usual, err));
    kd_status status = kd_launch(b, "attention", usual_layout_kernel, 1, 32, err, (int *)answer);
    if (status == KD_OK)
        status = v->download(&b->base, usual, answer, sizeof *usual, err);
    v->release(&b->base, answer);
    return status;
}

typedef struct attention {
    int tensor; /* the path on tensor cores */
} attention;

static kd_attention attention_of(const kd_op_desc *d, const kd_op_args *p) {
    kd_attention a = {};
    a.x = p->x[0], a.y = p->y, a.dy = p->dy, a.dx = p->dx[0];
    a.lse = d->train ? (float *)p->saved : NULL, a.delta = (float *)p->scratch;
    a.pairs = (size_t)d->y.shape[0] * (size_t)d->heads;
    a.tokens = (int)d->y.shape[1], a.heads = d->heads, a.head = (int)(d->y.shape[2] / d->heads);
    a.x_bf16 = kd_is_bf16(d->x[0].dtype), a.y_bf16 = kd_is_bf16(d->y.dtype);
    a.add = (d->add_dx & 1) != 0, a.whole = a.head % 8 == 0;
    a.scale = (float)(1 / sqrt((double)a.head));
    return a;
}

static void attention_destroy(void *impl) {
    kd_free(impl);
}

static kd_status attention_create(kd_cuda *b, kd_op *op, kd_op_needs *needs, kd_err *err) {
    const kd_op_desc *d = &op->desc;
    attention *s = NULL;
    KD_TRY(kd_alloc_array(&s, 1, sizeof *s, err));
    op->impl = s;
    if (kd_is_bf16(d->x[0].dtype) && d->y.shape[2] / d->heads <= 128)
        KD_TRY(ask_layout(b, &s->tensor, err));
    if (d->train)
        needs->saved = needs->scratch = (size_t)d->y.shape[0] * (size_t)d->heads * (size_t)d->y.shape[1] * sizeof(float);
    needs->unread &= ~KD_OP_UNREAD_Y; /* a softmax's gradient needs the sums of dy y */
    return KD_OK;
}

static kd_status attention_forward(kd_cuda *b, kd_op *op, const kd_op_args *p, kd_err *err) {
    kd_attention a = attention_of(&op->desc, p);
    return ((const attention *)op->impl)->tensor ? kd_attention_tensor_forward(b, &a, err) : kd_attention_plain_forward(b, &a, err);
}

static kd_status attention_backward(kd_cuda *b, kd_op *op, const kd_op_args *p, kd_err *err) {
    kd_attention a = attention_of(&op->desc, p);
    if (!(op->desc.need_dx & 1))
        return KD_OK;
    KD_TRY(kd_attention_row_products(b, &a, err));
    return ((const attention *)op->impl)->tensor ? kd_attention_tensor_backward(b, &a, err) : kd_attention_plain_backward(b, &a, err);
}

extern "C" const kd_cuda_kind kd_cuda_attention = {attention_create, attention_destroy, NULL, attention_forward, attention_backward};

/* attention: batched matrix products straight on the q|k|v rows (strides, no copies) and an own softmax between them.
 *
 * Scores are T x T for every head, far larger than q, k and v; so the work is done in blocks of some images, heads and queries whose scores are small enough for the cache
 * and for the scratch memory. Scores are f32; probabilities are rounded to the operands' type, in place where nothing needs them later:
 *
 *     scores   [images, heads, queries, ld] f32     ld = T rounded up, so that rows are aligned
 *     probs    the same memory read as [.., queries, 2 ld] bf16, or args->saved [N, heads, T, ld] in training
 *
 * oneDNN's products have fixed shapes, so all blocks are equally large: images and heads of a block divide N and heads, and where queries don't divide T the last block begins
 * earlier and computes some rows a second time. */
#include <math.h>

#include "common/base/mem.h"
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/simd.h"

/* A block's first image, head and query, or how many of each it has. */
typedef struct block {
    int64_t images, heads, queries;
} block;

typedef struct attention {
    kd_dnn *scores, *values;          /* forward: q k^T, p v */
    kd_dnn *dv, *dp, *dq, *dk;        /* backward */
    int64_t n, t, width, heads, head; /* head: Dh */
    int64_t ld;
    block size;                       /* of every block */
    kd_dtype type;                    /* of the operands */
    int rounds_y, converts_dy;
    size_t score, y32, dy, work;      /* offsets in args->scratch */
} attention;

static void attention_destroy(void *impl) {
    attention *s = impl;
    if (!s)
        return;
    kd_dnn *const all[] = {s->scores, s->values, s->dv, s->dp, s->dq, s->dk};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        kd_dnn_destroy(all[i]);
    kd_free(s);
}

/* ---- the matrices of one block: [images, heads, rows, columns] ---- */

/* `tokens` rows of `row` elements, heads side by side in them: y, dy (row = D), q, k, v and their gradients (row = 3D). */
static kd_dnn_tensor heads_of(const attention *s, kd_dtype type, int64_t tokens, int64_t row) {
    return (kd_dnn_tensor){.dtype = type, .rank = 4, .dim = {s->size.images, s->size.heads, tokens, s->head}, .stride = {s->t * row, s->head, row, 1}};
}

/* Scores, what was made of them in place, or saved probabilities (where a block has several images it has all heads, and where it has several heads all queries,
 * so that its part of args->saved is one piece), with rows `ld` apart. */
static kd_dnn_tensor scores_of(const attention *s, kd_dtype type, int64_t ld) {
    const block *b = &s->size;
    return (kd_dnn_tensor){.dtype = type, .rank = 4, .dim = {b->images, b->heads, b->queries, s->t}, .stride = {b->heads * b->queries * ld, b->queries * ld, ld, 1}};
}

/* Row distance of operands that were made in place of f32 scores. */
static int64_t in_place_ld(const attention *s) {
    return s->type == KD_BF16 ? 2 * s->ld : s->ld;
}

static int64_t probs_ld(const attention *s, const kd_op_desc *d) {
    return d->train ? s->ld : in_place_ld(s);
}

static kd_status create_products(kd_cpu *b, attention *s, const kd_op_desc *d, kd_err *err) {
    kd_dnn_tensor q = heads_of(s, s->type, s->size.queries, 3 * s->width), kv = heads_of(s, s->type, s->t, 3 * s->width);
    kd_dnn_tensor y = heads_of(s, s->rounds_y ? KD_F32 : d->y.dtype, s->size.queries, s->width);
    kd_dnn_tensor scores = scores_of(s, KD_F32, s->ld), probs = scores_of(s, s->type, probs_ld(s, d));
    kd_dnn_matmul_desc qk = {.a = q, .b = kd_dnn_transposed(kv), .c = scores}, pv = {.a = probs, .b = kv, .c = y};
    KD_TRY(kd_dnn_matmul(&s->scores, b->engine, &qk, d->name, err));
    KD_TRY(kd_dnn_matmul(&s->values, b->engine, &pv, d->name, err));
    if (!d->train || !(d->need_dx & 1))
        return KD_OK;
    int add = (d->add_dx & 1) != 0;
    kd_dnn_tensor dy = heads_of(s, s->type, s->t, s->width), ds = scores_of(s, s->type, in_place_ld(s));
    kd_dnn_matmul_desc dv = {.a = kd_dnn_transposed(probs), .b = dy, .c = kv, .add = add}, dp = {.a = dy, .b = kd_dnn_transposed(kv), .c = scores};
    kd_dnn_matmul_desc dq = {.a = ds, .b = kv, .c = kv, .add = add}, dk = {.a = kd_dnn_transposed(ds), .b = kv, .c = kv, .add = add};
    KD_TRY(kd_dnn_matmul(&s->dv, b->engine, &dv, d->name, err));
    KD_TRY(kd_dnn_matmul(&s->dp, b->engine, &dp, d->name, err));
    KD_TRY(kd_dnn_matmul(&s->dq, b->engine, &dq, d->name, err));
    return kd_dnn_matmul(&s->dk, b->engine, &dk, d->name, err);
}

/* The largest divisor of n that is at most `most`, at least 1. */
static int64_t divisor(int64_t n, int64_t most) {
    int64_t best = 1;
    for (int64_t c = 2; c <= n && c <= most; c++)
        if (n % c == 0)
            best = c;
    return best;
}

/* Scores of a block of a long sequence: measured, 4 to 8 MiB are the fastest (of 0.25 to 64) for T = 1374 and 4101. Not by the number of threads: the shape of a product may
 * change its bits. */
static const int64_t BLOCK_BYTES = 8 << 20;

/* Images: the largest divisor of n whose scores fit half of each thread's second-level cache (1 MiB is common), but work for every thread. Where the scores of one image
 * are too many, some of its heads; where those of one head are, some of its queries. Training keeps all probabilities anyway, and its blocks all queries. */
static block block_of(const attention *s, int train, int threads) {
    int64_t head = s->t * s->ld * (int64_t)sizeof(float), image = s->heads * head, budget = (int64_t)threads * 512 * 1024;
    block b = {1, s->heads, s->t};
    for (int64_t c = 2; c <= s->n; c++)
        if (s->n % c == 0 && image <= BLOCK_BYTES && (c * image <= budget || b.images * s->heads < threads))
            b.images = c;
    if (image > BLOCK_BYTES)
        b.heads = divisor(s->heads, BLOCK_BYTES / head);
    if (head > BLOCK_BYTES && !train) {
        int64_t blocks = (head + BLOCK_BYTES - 1) / BLOCK_BYTES;
        b.queries = (s->t + blocks - 1) / blocks;
    }
    return b;
}

static void plan(attention *s, const kd_op_desc *d, kd_op_needs *needs) {
    size_t work = 0, scores = (size_t)(s->size.images * s->size.heads * s->size.queries * s->ld);
    const kd_dnn *const all[] = {s->scores, s->values, s->dv, s->dp, s->dq, s->dk};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        if (kd_dnn_scratch_bytes(all[i]) > work)
            work = kd_dnn_scratch_bytes(all[i]);
    if (d->train)
        needs->saved = (size_t)(s->n * s->heads * s->t * s->ld) * kd_dtype_size(s->type);
    s->work = kd_cpu_region(&needs->scratch, work);
    s->score = kd_cpu_region(&needs->scratch, scores * sizeof(float));
    s->y32 = kd_cpu_region(&needs->scratch, s->rounds_y ? kd_tdesc_numel(&d->y) * sizeof(float) : 0);
    s->dy = kd_cpu_region(&needs->scratch, s->converts_dy ? kd_tdesc_numel(&d->y) * kd_dtype_size(s->type) : 0);
}

static kd_status attention_create(kd_cpu *b, kd_op *op, kd_op_needs *needs, kd_err *err) {
    const kd_op_desc *d = &op->desc;
    attention *s = NULL;
    KD_TRY(kd_alloc_array(&s, 1, sizeof *s, err));
    op->impl = s;
    s->n = d->y.shape[0], s->t = d->y.shape[1], s->width = d->y.shape[2];
    s->heads = d->heads, s->head = s->width / d->heads;
    s->ld = (s->t + KD_VF - 1) / KD_VF * KD_VF;
    s->type = d->x[0].dtype;
    s->rounds_y = s->type == KD_F32 && d->y.dtype == KD_BF16;
    s->converts_dy = d->train && d->y.dtype != s->type;
    s->size = block_of(s, d->train, b->base.threads);
    KD_TRY(create_products(b, s, d, err));
    plan(s, d, needs);
    return KD_OK;
}

/* ---- softmax over rows, forward and backward ---- */

typedef struct softmax_ctx {
    float *score;  /* rows [.., ld] */
    void *operand; /* what the next product reads: rows [.., operand_ld] */
    const void *p; /* backward: probabilities, rows [.., ld] */
    kd_dtype type; /* of operand and p */
    int64_t t, ld, operand_ld;
    float scale;
} softmax_ctx;

static const float LOWEST = -1e38f;

/* operand = softmax(scale * score). May run in place: a bf16 row is written behind where it is read. */
KD_HOT static void softmax_range(const void *ctx, int slice, size_t begin, size_t end) {
    const softmax_ctx c = *(const softmax_ctx *)ctx;
    (void)slice;
    size_t t = (size_t)c.t;
    for (size_t r = begin; r < end; r++) {
        float *score = c.score + r * (size_t)c.ld;
        kd_vf top = kd_splat(LOWEST), total = {0};
        for (size_t i = 0; i < t; i += KD_VF) {
            int n = kd_lanes(t - i);
            for (int k = n; k < KD_VF; k++)
                score[i + (size_t)k] = LOWEST; /* the padding of the row: its exponential is 0 */
            top = kd_max(top, kd_load_f32(score + i, KD_VF));
        }
        float shift = kd_max_lane(top) * c.scale;
        for (size_t i = 0; i < t; i += KD_VF) {
            kd_vf e = kd_exp_negative(kd_load_f32(score + i, KD_VF) * c.scale - shift);
            kd_store_f32(score + i, e, KD_VF);
            total += e;
        }
        float inverse = 1 / kd_sum(total);
        for (size_t i = 0; i < t; i += KD_VF)
            kd_store(c.operand, c.type, r * (size_t)c.operand_ld + i, kd_load_f32(score + i, KD_VF) * inverse, KD_VF);
    }
}

/* operand = scale * p (dp - sum(p dp)), where score holds dp; in place as above. */
KD_HOT static void softmax_backward_range(const void *ctx, int slice, size_t begin, size_t end) {
    const softmax_ctx c = *(const softmax_ctx *)ctx;
    (void)slice;
    size_t t = (size_t)c.t;
    for (size_t r = begin; r < end; r++) {
        const float *dp = c.score + r * (size_t)c.ld;
        kd_vf total = {0};
        for (size_t i = 0; i < t; i += KD_VF) {
            int n = kd_lanes(t - i);
            total += kd_load(c.p, c.type, r * (size_t)c.ld + i, n) * kd_load_f32(dp + i, n);
        }
        float dot = kd_sum(total);
        for (size_t i = 0; i < t; i += KD_VF) {
            int n = kd_lanes(t - i);
            kd_vf p = kd_load(c.p, c.type, r * (size_t)c.ld + i, n) * c.scale;
            kd_store(c.operand, c.type, r * (size_t)c.operand_ld + i, p * (kd_load_f32(dp + i, n) - dot), n);
        }
    }
}

/* ---- calls ---- */

static int64_t query_blocks(const attention *s) {
    return (s->t + s->size.queries - 1) / s->size.queries;
}

static int64_t blocks_of(const attention *s) {
    return s->n / s->size.images * (s->heads / s->size.heads) * query_blocks(s);
}

static block block_at(const attention *s, int64_t i) {
    int64_t queries = query_blocks(s), heads = s->heads / s->size.heads, query = i % queries * s->size.queries;
    if (query > s->t - s->size.queries)
        query = s->t - s->size.queries;
    return (block){i / (queries * heads) * s->size.images, i / queries % heads * s->size.heads, query};
}

/* A token of the block's first image in an array whose rows have `row` elements: the part of the block's first head, `column` elements in. */
static void *at(const attention *s, const void *base, kd_dtype type, block first, int64_t token, int64_t row, int64_t column) {
    return (char *)base + (size_t)((first.images * s->t + token) * row + column + first.heads * s->head) * kd_dtype_size(type);
}

static void *saved_at(const attention *s, void *saved, block first) {
    return (char *)saved + (size_t)((first.images * s->heads + first.heads) * s->t * s->ld) * kd_dtype_size(s->type);
}

static softmax_ctx softmax_of(const attention *s, const kd_op_args *a) {
    float *score = kd_cpu_at(a->scratch, s->score);
    return (softmax_ctx){.score = score, .operand = score, .type = s->type, .t = s->t, .ld = s->ld, .operand_ld = in_place_ld(s), .scale = (float)(1 / sqrt((double)s->head))};
}

static size_t score_rows(const attention *s) {
    return (size_t)(s->size.images * s->size.heads * s->size.queries);
}

static kd_status forward_block(kd_cpu *b, const attention *s, const kd_op_desc *d, const kd_op_args *a, void *y, block first, kd_err *err) {
    void *work = kd_cpu_at(a->scratch, s->work);
    int64_t w = s->width, row = 3 * w;
    void *q = at(s, a->x[0], s->type, first, first.queries, row, 0), *k = at(s, a->x[0], s->type, first, 0, row, w), *v = at(s, a->x[0], s->type, first, 0, row, 2 * w);
    softmax_ctx c = softmax_of(s, a);
    if (d->train) {
        c.operand = saved_at(s, a->saved, first);
        c.operand_ld = s->ld;
    }
    KD_TRY(kd_dnn_run(s->scores, (void *[KD_DNN_ARGS]){[KD_DNN_SRC] = q, [KD_DNN_WEIGHTS] = k, [KD_DNN_DST] = c.score, [KD_DNN_SCRATCH] = work}, err));
    kd_cpu_parallel(b->base.threads, score_rows(s), (size_t)s->ld, softmax_range, &c);
    return kd_dnn_run(s->values,
                      (void *[KD_DNN_ARGS]){[KD_DNN_SRC] = c.operand, [KD_DNN_WEIGHTS] = v,
                                            [KD_DNN_DST] = at(s, y, s->rounds_y ? KD_F32 : d->y.dtype, first, first.queries, w, 0), [KD_DNN_SCRATCH] = work},
                      err);
}

static kd_status attention_forward(kd_cpu *b, kd_op *op, const kd_op_args *a, kd_err *err) {
    const attention *s = op->impl;
    void *y = s->rounds_y ? kd_cpu_at(a->scratch, s->y32) : a->y;
    for (int64_t i = 0; i < blocks_of(s); i++)
        KD_TRY(forward_block(b, s, &op->desc, a, y, block_at(s, i), err));
    if (s->rounds_y)
        kd_cpu_copy(b->base.threads, a->y, KD_BF16, y, KD_F32, kd_tdesc_numel(&op->desc.y), 0);
    return KD_OK;
}

/* A training block has all queries. */
static kd_status backward_block(kd_cpu *b, const attention *s, const kd_op_args *a, const void *dy_all, block first, kd_err *err) {
    int64_t w = s->width, row = 3 * w;
    void *work = kd_cpu_at(a->scratch, s->work), *dy = at(s, dy_all, s->type, first, 0, w, 0);
    void *q = at(s, a->x[0], s->type, first, 0, row, 0), *k = at(s, a->x[0], s->type, first, 0, row, w), *v = at(s, a->x[0], s->type, first, 0, row, 2 * w);
    void *dq = at(s, a->dx[0], s->type, first, 0, row, 0), *dk = at(s, a->dx[0], s->type, first, 0, row, w), *dv = at(s, a->dx[0], s->type, first, 0, row, 2 * w);
    softmax_ctx c = softmax_of(s, a);
    c.p = saved_at(s, a->saved, first);
    KD_TRY(kd_dnn_run(s->dv, (void *[KD_DNN_ARGS]){[KD_DNN_SRC] = (void *)c.p, [KD_DNN_WEIGHTS] = dy, [KD_DNN_DST] = dv, [KD_DNN_SCRATCH] = work}, err));
    KD_TRY(kd_dnn_run(s->dp, (void *[KD_DNN_ARGS]){[KD_DNN_SRC] = dy, [KD_DNN_WEIGHTS] = v, [KD_DNN_DST] = c.score, [KD_DNN_SCRATCH] = work}, err));
    kd_cpu_parallel(b->base.threads, score_rows(s), (size_t)s->ld, softmax_backward_range, &c);
    KD_TRY(kd_dnn_run(s->dq, (void *[KD_DNN_ARGS]){[KD_DNN_SRC] = c.operand, [KD_DNN_WEIGHTS] = k, [KD_DNN_DST] = dq, [KD_DNN_SCRATCH] = work}, err));
    return kd_dnn_run(s->dk, (void *[KD_DNN_ARGS]){[KD_DNN_SRC] = c.operand, [KD_DNN_WEIGHTS] = q, [KD_DNN_DST] = dk, [KD_DNN_SCRATCH] = work}, err);
}

static kd_status attention_backward(kd_cpu *b, kd_op *op, const kd_op_args *a, kd_err *err) {
    const attention *s = op->impl;
    const void *dy = a->dy;
    if (!s->dp)
        return KD_OK;
    if (s->converts_dy) {
        dy = kd_cpu_at(a->scratch, s->dy);
        kd_cpu_copy(b->base.threads, kd_cpu_at(a->scratch, s->dy), s->type, a->dy, op->desc.y.dtype, kd_tdesc_numel(&op->desc.y), 0);
    }
    for (int64_t i = 0; i < blocks_of(s); i++)
        KD_TRY(backward_block(b, s, a, dy, block_at(s, i), err));
    return KD_OK;
}

const kd_cpu_kind kd_cpu_attention = {attention_create, attention_destroy, NULL, attention_forward, attention_backward};

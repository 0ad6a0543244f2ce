/* attention: batched matrix products straight on the q|k|v rows (strides, no copies) and an own softmax between them.
 *
 * Scores are T x T for every head, far larger than q, k and v; so the work is done in blocks of some images, heads and queries whose scores stay in a thread's cache.
 * Each block is one thread's: oneDNN's products run on a single thread, because shared among several they choose other kernels and other bits for every number of threads
 * (and wait for each other). Scores are f32; probabilities are rounded to the operands' type, in place where nothing needs them later:
 *
 *     scores   [images, heads, queries, ld] f32     ld = T rounded up, so that rows are aligned
 *     probs    the same memory read as [.., queries, 2 ld] bf16, or in training a second one of [.., queries, ld]
 *
 * With f32.h's products a forward pass needs the scores of twelve queries at a time: they stay in the first-level cache between the products, and k and v are packed once for all queries of a head.
 *
 * Probabilities aren't saved for the backward pass, which makes them again, bit for bit: for one product and a softmax more, a training program of ViT-S is an eighth smaller. */
#include <math.h>
#include <omp.h>

#include "common/base/mem.h"
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/f32.h"
#include "kernels/cpu/simd.h"

/* A block's first image, head and query, or how many of each it has. */
typedef struct block {
    int64_t images, heads, queries;
} block;

/* One of attention's products: oneDNN's, or f32.h's for each head of each image of the block. */
typedef struct product {
    kd_dnn *dnn;
    kd_dnn_matmul_desc d;
    kd_f32_matmul own;
} product;

/* oneDNN's prepared products hold the addresses of a call, so every slice of the work has its own. */
typedef struct products {
    product scores[2], values[2]; /* forward: q k^T, p v; the second for the last queries, when they are fewer */
    product dv, dp, dq, dk;       /* backward */
} products;

typedef struct attention {
    products *slice;
    int slices;
    int64_t n, t, width, heads, head; /* head: Dh */
    int64_t ld;
    block size;                       /* of the blocks; images and heads divide N and heads, the last queries may be fewer */
    kd_dtype type;                    /* of the operands */
    int own;                          /* f32.h's products */
    int rounds_y, converts_dy;
    size_t work, work_bytes, score, score_bytes, probs, probs_bytes; /* offsets in args->scratch of the first slice's part, and the distance to the next */
    size_t values_work;                                              /* f32.h, forward: where v's panels begin in a slice's work, behind k's */
    size_t y32, dy;                                                  /* offsets in args->scratch */
} attention;

enum {
    PRODUCTS = sizeof(products) / sizeof(product),
    QUERIES_AT_ONCE = 12,    /* f32.h, forward: two strips */
    QUERIES_OF_BLOCK = 1024  /* at most, f32.h, forward: the packing of k and v takes a twenty-fifth of that */
};

static void attention_destroy(void *impl) {
    attention *s = impl;
    if (!s)
        return;
    for (int i = 0; s->slice && i < s->slices; i++)
        for (int k = 0; k < PRODUCTS; k++)
            kd_dnn_destroy(((product *)&s->slice[i])[k].dnn);
    kd_free(s->slice);
    kd_free(s);
}

/* ---- products ---- */

static kd_status product_create(product *p, int own, kd_cpu *b, const kd_dnn_matmul_desc *d, const char *what, kd_err *err) {
    p->d = *d;
    if (!own)
        return kd_dnn_matmul(&p->dnn, b->engine, d, what, err);
    p->own = (kd_f32_matmul){.rows = d->a.dim[2], .depth = d->a.dim[3], .columns = d->b.dim[3], .a_row = d->a.stride[2], .a_column = d->a.stride[3], .b_row = d->b.stride[2], .b_column = d->b.stride[3],
                             .c_row = d->c.stride[2], .add = d->add};
    return KD_OK;
}

static size_t product_bytes(const product *p) {
    return p->dnn ? kd_dnn_scratch_bytes(p->dnn) : kd_f32_matmul_bytes(&p->own);
}

static kd_status product_run(const product *p, void *c, const void *a, const void *b, void *work) {
    if (p->dnn)
        return kd_dnn_run(p->dnn, (void *[KD_DNN_ARGS]){[KD_DNN_SRC] = (void *)a, [KD_DNN_WEIGHTS] = (void *)b, [KD_DNN_DST] = c, [KD_DNN_SCRATCH] = work}, NULL);
    for (int64_t i = 0; i < p->d.a.dim[0]; i++)
        for (int64_t h = 0; h < p->d.a.dim[1]; h++)
            kd_f32_matmul_run(&p->own, (float *)c + i * p->d.c.stride[0] + h * p->d.c.stride[1], (const float *)a + i * p->d.a.stride[0] + h * p->d.a.stride[1],
                              (const float *)b + i * p->d.b.stride[0] + h * p->d.b.stride[1], work);
    return KD_OK;
}

/* ---- the matrices of one block: [images, heads, rows, columns] ---- */

/* `tokens` rows of `row` elements, heads side by side in them: y, dy (row = D), q, k, v and their gradients (row = 3D). */
static kd_dnn_tensor heads_of(const attention *s, kd_dtype type, int64_t tokens, int64_t row) {
    return (kd_dnn_tensor){.dtype = type, .rank = 4, .dim = {s->size.images, s->size.heads, tokens, s->head}, .stride = {s->t * row, s->head, row, 1}};
}

/* A block's scores, or what was made of them, with rows `ld` apart. */
static kd_dnn_tensor scores_of(const attention *s, kd_dtype type, int64_t queries, int64_t ld) {
    const block *b = &s->size;
    return (kd_dnn_tensor){.dtype = type, .rank = 4, .dim = {b->images, b->heads, queries, s->t}, .stride = {b->heads * queries * ld, queries * ld, ld, 1}};
}

/* Row distance of operands that were made in place of f32 scores. */
static int64_t in_place_ld(const attention *s) {
    return s->type == KD_BF16 ? 2 * s->ld : s->ld;
}

static int64_t probs_ld(const attention *s, const kd_op_desc *d) {
    return d->train ? s->ld : in_place_ld(s);
}

static kd_status create_forward(kd_cpu *b, const attention *s, products *p, const kd_op_desc *d, kd_err *err) {
    int64_t rest = s->t % s->size.queries;
    for (int last = 0; last < 1 + (rest > 0); last++) {
        int64_t queries = last ? rest : s->size.queries;
        kd_dnn_tensor q = heads_of(s, s->type, queries, 3 * s->width), kv = heads_of(s, s->type, s->t, 3 * s->width);
        kd_dnn_tensor y = heads_of(s, s->rounds_y ? KD_F32 : d->y.dtype, queries, s->width);
        kd_dnn_matmul_desc qk = {.a = q, .b = kd_dnn_transposed(kv), .c = scores_of(s, KD_F32, queries, s->ld)};
        kd_dnn_matmul_desc pv = {.a = scores_of(s, s->type, queries, probs_ld(s, d)), .b = kv, .c = y};
        KD_TRY(product_create(&p->scores[last], s->own, b, &qk, d->name, err));
        p->scores[last].own.pads = 1;
        KD_TRY(product_create(&p->values[last], s->own, b, &pv, d->name, err));
    }
    return KD_OK;
}

/* A training block has all queries. */
static kd_status create_backward(kd_cpu *b, const attention *s, products *p, const kd_op_desc *d, kd_err *err) {
    int add = (d->add_dx & 1) != 0;
    kd_dnn_tensor qkv = heads_of(s, s->type, s->t, 3 * s->width), dy = heads_of(s, s->type, s->t, s->width);
    kd_dnn_tensor scores = scores_of(s, KD_F32, s->t, s->ld), probs = scores_of(s, s->type, s->t, s->ld), ds = scores_of(s, s->type, s->t, in_place_ld(s));
    kd_dnn_matmul_desc dv = {.a = kd_dnn_transposed(probs), .b = dy, .c = qkv, .add = add}, dp = {.a = dy, .b = kd_dnn_transposed(qkv), .c = scores};
    kd_dnn_matmul_desc dq = {.a = ds, .b = qkv, .c = qkv, .add = add}, dk = {.a = kd_dnn_transposed(ds), .b = qkv, .c = qkv, .add = add};
    KD_TRY(product_create(&p->dv, s->own, b, &dv, d->name, err));
    KD_TRY(product_create(&p->dp, s->own, b, &dp, d->name, err));
    p->dp.own.pads = 1;
    KD_TRY(product_create(&p->dq, s->own, b, &dq, d->name, err));
    return product_create(&p->dk, s->own, b, &dk, d->name, err);
}

static kd_status create_products(kd_cpu *b, attention *s, const kd_op_desc *d, kd_err *err) {
    kd_status status = KD_OK;
    s->slices = b->base.threads < KD_CPU_MAX_THREADS ? b->base.threads : KD_CPU_MAX_THREADS;
    KD_TRY(kd_alloc_array(&s->slice, (size_t)s->slices, sizeof *s->slice, err));
    omp_set_num_threads(1); /* oneDNN prepares a primitive for the number of threads at its creation */
    for (int i = 0; i < s->slices && status == KD_OK; i++) {
        status = create_forward(b, s, &s->slice[i], d, err);
        if (status == KD_OK && d->train && (d->need_dx & 1))
            status = create_backward(b, s, &s->slice[i], d, err);
    }
    omp_set_num_threads(b->base.threads);
    return status;
}

/* The largest divisor of n that is at most `most`, at least 1. */
static int64_t divisor(int64_t n, int64_t most) {
    int64_t best = 1;
    for (int64_t c = 2; c <= n && c <= most; c++)
        if (n % c == 0)
            best = c;
    return best;
}

/* Bytes of a block's scores. Measured for T = 197 to 4101: SMALL, half of a usual second-level cache, serves whole heads; a part of one head may be larger, since each block reads all
 * of k and v. Neither depends on the number of threads, for the shape of a product may change its bits. */
static const int64_t SMALL = 512 * 1024, LARGE = 2 << 20;

static block block_of(const attention *s, int train) {
    int64_t row = s->ld * (int64_t)sizeof(float), head = s->t * row;
    block b = {1, divisor(s->heads, SMALL / head), s->t};
    if (b.heads == s->heads)
        b.images = divisor(s->n, SMALL / 4 / (head * s->heads)); /* a quarter: images are divided among threads, too */
    if (!train) { /* the backward pass sums over all queries */
        int64_t blocks = s->own ? (s->t + QUERIES_OF_BLOCK - 1) / QUERIES_OF_BLOCK : (head + LARGE - 1) / LARGE;
        b.queries = (s->t + blocks - 1) / blocks;
    }
    return b;
}

static void plan(attention *s, const kd_op_desc *d, kd_op_needs *needs) {
    int64_t whole = s->size.images * s->size.heads * s->size.queries;
    size_t scores = (size_t)((s->own && !d->train ? QUERIES_AT_ONCE : whole) * s->ld), slices = (size_t)s->slices;
    for (int k = 0; k < PRODUCTS; k++) {
        size_t bytes = product_bytes(&((const product *)s->slice)[k]);
        if (bytes > s->work_bytes)
            s->work_bytes = bytes;
    }
    if (s->own) {
        size_t both = 0;
        kd_cpu_region(&both, product_bytes(&s->slice->scores[0]));
        s->values_work = kd_cpu_region(&both, product_bytes(&s->slice->values[0]));
        s->work_bytes = both > s->work_bytes ? both : s->work_bytes;
    }
    s->work_bytes = (s->work_bytes + 63) / 64 * 64;
    s->score_bytes = scores * sizeof(float); /* rows are multiples of 64 bytes */
    s->probs_bytes = d->train ? (scores * kd_dtype_size(s->type) + 63) / 64 * 64 : 0;
    s->work = kd_cpu_region(&needs->scratch, slices * s->work_bytes);
    s->score = kd_cpu_region(&needs->scratch, slices * s->score_bytes);
    s->probs = kd_cpu_region(&needs->scratch, slices * s->probs_bytes);
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
    s->own = kd_cpu_f32_here() && s->type == KD_F32;
    s->rounds_y = s->type == KD_F32 && d->y.dtype == KD_BF16;
    s->converts_dy = d->train && d->y.dtype != s->type;
    s->size = block_of(s, d->train);
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
    size_t rows;
    float scale;
} softmax_ctx;

static const float LOWEST = -1e38f;

/* The largest of n numbers, a multiple of KD_VF; of a NaN any. */
KD_LANE float largest(const float *x, size_t n) {
    kd_halves top = {kd_load8(x, KD_F32, 0, KD_V8), kd_load8(x, KD_F32, KD_V8, KD_V8)};
    for (size_t i = KD_VF; i < n; i += KD_VF) {
        kd_vf8 low = kd_load8(x, KD_F32, i, KD_V8), high = kd_load8(x, KD_F32, i + KD_V8, KD_V8);
        top.low = kd_select8(kd_less8(top.low, low), low, top.low);
        top.high = kd_select8(kd_less8(top.high, high), high, top.high);
    }
    return kd_max_lane(kd_join(top));
}

/* operand = softmax(scale * score). May run in place: a bf16 row is written behind where it is read. */
KD_HOT static void softmax(const softmax_ctx *ctx) {
    const softmax_ctx c = *ctx;
    size_t t = (size_t)c.t;
    for (size_t r = 0; r < c.rows; r++) {
        float *score = c.score + r * (size_t)c.ld;
        for (size_t k = t; k < (size_t)c.ld; k++)
            score[k] = LOWEST; /* the padding of the row: its exponential is 0 */
        float shift = largest(score, (size_t)c.ld) * c.scale;
        kd_carried total = {{0}, {0}};
        for (size_t i = 0; i < t; i += KD_VF) {
            kd_vf e = kd_exp_negative(kd_load_f32(score + i, KD_VF) * c.scale - shift);
            kd_store_f32(score + i, e, KD_VF);
            kd_carry(&total, e);
        }
        float inverse = 1 / kd_sum(kd_carried_sum(&total));
        for (size_t i = 0; i < t; i += KD_VF)
            kd_store(c.operand, c.type, r * (size_t)c.operand_ld + i, kd_load_f32(score + i, KD_VF) * inverse, KD_VF);
    }
}

/* operand = scale * p (dp - sum(p dp)), where score holds dp; in place as above. The type comes as a constant (simd.h). */
KD_LANE void softmax_backward_rows(const softmax_ctx *ctx, kd_dtype type) {
    const softmax_ctx c = *ctx;
    size_t t = (size_t)c.t;
    for (size_t r = 0; r < c.rows; r++) {
        float *dp = c.score + r * (size_t)c.ld;
        for (size_t k = t; k < (size_t)c.ld; k++)
            dp[k] = 0; /* as p there */
        kd_carried total = {{0}, {0}};
        for (size_t i = 0; i < t; i += KD_VF)
            kd_carry(&total, kd_load(c.p, type, r * (size_t)c.ld + i, KD_VF) * kd_load_f32(dp + i, KD_VF));
        float dot = kd_sum(kd_carried_sum(&total));
        for (size_t i = 0; i < t; i += KD_VF) {
            kd_vf p = kd_load(c.p, type, r * (size_t)c.ld + i, KD_VF) * c.scale;
            kd_store(c.operand, type, r * (size_t)c.operand_ld + i, p * (kd_load_f32(dp + i, KD_VF) - dot), KD_VF);
        }
    }
}

KD_HOT static void softmax_backward(const softmax_ctx *c) {
    if (c->type == KD_F32)
        softmax_backward_rows(c, KD_F32);
    else
        softmax_backward_rows(c, KD_BF16);
}

/* ---- calls ---- */

typedef struct call {
    const attention *s;
    const kd_op_desc *d;
    const kd_op_args *a;
    void *y;        /* where the product writes */
    const void *dy; /* as operand */
    int backward;
    kd_status *status; /* per slice */
} call;

/* What one block's run needs. */
typedef struct place {
    const products *p;
    void *work;
    block first;
    int last;       /* the block has the rest of the queries */
    softmax_ctx c;  /* as the backward pass has it */
    void *probs;    /* training */
} place;

static int64_t query_blocks(const attention *s) {
    return (s->t + s->size.queries - 1) / s->size.queries;
}

static size_t blocks_of(const attention *s) {
    return (size_t)(s->n / s->size.images * (s->heads / s->size.heads) * query_blocks(s));
}

static place place_of(const call *w, int slice, int64_t i) {
    const attention *s = w->s;
    int64_t parts = query_blocks(s), heads = s->heads / s->size.heads;
    block first = {i / (parts * heads) * s->size.images, i / parts % heads * s->size.heads, i % parts * s->size.queries};
    int64_t queries = s->t - first.queries < s->size.queries ? s->t - first.queries : s->size.queries;
    float *score = kd_cpu_at(w->a->scratch, s->score + (size_t)slice * s->score_bytes);
    return (place){.p = &s->slice[slice], .work = kd_cpu_at(w->a->scratch, s->work + (size_t)slice * s->work_bytes), .first = first, .last = queries < s->size.queries,
                   .probs = kd_cpu_at(w->a->scratch, s->probs + (size_t)slice * s->probs_bytes),
                   .c = {.score = score, .operand = score, .type = s->type, .t = s->t, .ld = s->ld, .operand_ld = in_place_ld(s),
                         .rows = (size_t)(s->size.images * s->size.heads * queries), .scale = (float)(1 / sqrt((double)s->head))}};
}

/* A token of the block's first image in an array whose rows have `row` elements: the part of the block's first head, `column` elements in. */
static void *at(const attention *s, const void *base, kd_dtype type, block first, int64_t token, int64_t row, int64_t column) {
    return (char *)base + (size_t)((first.images * s->t + token) * row + column + first.heads * s->head) * kd_dtype_size(type);
}

/* o's probabilities, at *probs. */
static kd_status find_probs(const call *w, const place *o, const void *q, const void *k, const void **probs) {
    softmax_ctx c = o->c;
    if (w->d->train) {
        c.operand = o->probs;
        c.operand_ld = w->s->ld;
    }
    KD_TRY(product_run(&o->p->scores[o->last], c.score, q, k, o->work));
    softmax(&c);
    *probs = c.operand;
    return KD_OK;
}

/* One head of one image. Rows of q, k and v are `row` floats apart. */
static void forward_head(const attention *s, const place *o, float *y, const float *q, const float *k, const float *v) {
    const kd_f32_matmul *scores = &o->p->scores[o->last].own, *values = &o->p->values[o->last].own;
    void *values_work = (char *)o->work + s->values_work;
    softmax_ctx c = o->c;
    kd_f32_matmul_pack(scores, k, o->work);
    kd_f32_matmul_pack(values, v, values_work);
    for (int64_t r = 0; r < scores->rows; r += QUERIES_AT_ONCE) {
        int64_t n = scores->rows - r < QUERIES_AT_ONCE ? scores->rows - r : QUERIES_AT_ONCE;
        c.rows = (size_t)n;
        kd_f32_matmul_rows(scores, c.score, q + r * scores->a_row, n, o->work);
        softmax(&c);
        kd_f32_matmul_rows(values, y + r * values->c_row, c.score, n, values_work);
    }
}

static kd_status forward_block(const call *w, place o) {
    const attention *s = w->s;
    const kd_op_args *a = w->a;
    int64_t width = s->width, row = 3 * width, query = o.first.queries;
    void *q = at(s, a->x[0], s->type, o.first, query, row, 0), *k = at(s, a->x[0], s->type, o.first, 0, row, width), *v = at(s, a->x[0], s->type, o.first, 0, row, 2 * width);
    void *y = at(s, w->y, s->rounds_y ? KD_F32 : w->d->y.dtype, o.first, query, width, 0);
    const void *probs;
    if (s->own) {
        for (int64_t i = 0; i < s->size.images; i++)
            for (int64_t h = 0; h < s->size.heads; h++) {
                int64_t tokens = i * s->t, column = h * s->head;
                forward_head(s, &o, (float *)y + tokens * width + column, (float *)q + tokens * row + column, (float *)k + tokens * row + column, (float *)v + tokens * row + column);
            }
        return KD_OK;
    }
    KD_TRY(find_probs(w, &o, q, k, &probs));
    return product_run(&o.p->values[o.last], y, probs, v, o.work);
}

static kd_status backward_block(const call *w, place o) {
    const attention *s = w->s;
    const kd_op_args *a = w->a;
    int64_t width = s->width, row = 3 * width;
    const void *x = a->x[0];
    void *dx = a->dx[0], *dy = at(s, w->dy, s->type, o.first, 0, width, 0), *work = o.work;
    void *q = at(s, x, s->type, o.first, 0, row, 0), *k = at(s, x, s->type, o.first, 0, row, width), *v = at(s, x, s->type, o.first, 0, row, 2 * width);
    void *dq = at(s, dx, s->type, o.first, 0, row, 0), *dk = at(s, dx, s->type, o.first, 0, row, width), *dv = at(s, dx, s->type, o.first, 0, row, 2 * width);
    KD_TRY(find_probs(w, &o, q, k, &o.c.p));
    KD_TRY(product_run(&o.p->dv, dv, o.c.p, dy, work));
    KD_TRY(product_run(&o.p->dp, o.c.score, dy, v, work));
    softmax_backward(&o.c);
    KD_TRY(product_run(&o.p->dq, dq, o.c.operand, k, work));
    return product_run(&o.p->dk, dk, o.c.operand, q, work);
}

static void blocks_range(const void *ctx, int slice, size_t begin, size_t end) {
    const call *w = ctx;
    for (size_t i = begin; i < end && w->status[slice] == KD_OK; i++) {
        place o = place_of(w, slice, (int64_t)i);
        w->status[slice] = w->backward ? backward_block(w, o) : forward_block(w, o);
    }
}

/* Always in a parallel region, however small the work is: outside of one, oneDNN would run a product that was prepared for one thread on all. */
static kd_status run_blocks(call *w, kd_err *err) {
    kd_status status[KD_CPU_MAX_THREADS] = {KD_OK};
    w->status = status;
    kd_cpu_share(w->s->slices, blocks_of(w->s), (size_t)1 << 20, blocks_range, w);
    for (int i = 0; i < w->s->slices; i++)
        if (status[i] != KD_OK)
            return kd_fail(err, status[i], "oneDNN failed in part %d of %d of an attention's %s pass", i, w->s->slices, w->backward ? "backward" : "forward");
    return KD_OK;
}

static kd_status attention_forward(kd_cpu *b, kd_op *op, const kd_op_args *a, kd_err *err) {
    const attention *s = op->impl;
    call w = {.s = s, .d = &op->desc, .a = a, .y = s->rounds_y ? kd_cpu_at(a->scratch, s->y32) : a->y};
    KD_TRY(run_blocks(&w, err));
    if (s->rounds_y)
        kd_cpu_copy(b->base.threads, a->y, KD_BF16, w.y, KD_F32, kd_tdesc_numel(&op->desc.y), 0);
    return KD_OK;
}

static kd_status attention_backward(kd_cpu *b, kd_op *op, const kd_op_args *a, kd_err *err) {
    const attention *s = op->impl;
    call w = {.s = s, .d = &op->desc, .a = a, .dy = a->dy, .backward = 1};
    if (!(op->desc.need_dx & 1))
        return KD_OK;
    if (s->converts_dy) {
        w.dy = kd_cpu_at(a->scratch, s->dy);
        kd_cpu_copy(b->base.threads, kd_cpu_at(a->scratch, s->dy), s->type, a->dy, op->desc.y.dtype, kd_tdesc_numel(&op->desc.y), 0);
    }
    return run_blocks(&w, err);
}

const kd_cpu_kind kd_cpu_attention = {attention_create, attention_destroy, NULL, attention_forward, attention_backward};

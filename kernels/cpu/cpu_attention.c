/* attention: batched matrix products straight on the q|k|v rows (strides, no copies) and an own softmax between them.
 *
 * Scores are T x T for every head, far larger than q, k and v; so the work is done in blocks of some images, heads and queries whose scores stay in a thread's cache.
 * Each block is one thread's: oneDNN's products run on a single thread, because shared among several they choose other kernels and other bits for every number of threads
 * (and wait for each other). Scores are f32; probabilities are rounded to the operands' type, in place where nothing needs them later:
 *
 *     scores   [images, heads, queries, ld] f32     ld = T rounded up, so that rows are aligned
 *     probs    the same memory read as [.., queries, 2 ld] bf16, or in training a second one of [.., queries, ld]
 *
 * With matmul.h's products a forward pass needs the scores of two tiles of queries at a time: they stay in the first-level cache between the products, and k and v are packed once for all queries of a head.
 *
 * Probabilities aren't saved for the backward pass, which makes them again, bit for bit: for one product and a softmax more, a training program of ViT-S is an eighth smaller. */
#include <math.h>
#include <omp.h>

#include "common/base/mem.h"
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/matmul.h"
#include "kernels/cpu/simd.h"
#include "kernels/cpu/softmax.h"

/* A block's first image, head and query, or how many of each it has. */
typedef struct block {
    int64_t images, heads, queries;
} block;

/* One of attention's products: oneDNN's, or matmul.h's for each head of each image of the block. */
typedef struct product {
    kd_dnn *dnn;
    kd_dnn_matmul_desc d;
    const kd_matmul_kind *kind; /* NULL: oneDNN's */
    kd_matmul own;
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
    const kd_matmul_kind *own;        /* matmul.h's products; NULL: oneDNN's */
    void (*softmax)(const kd_softmax_rows *c), (*softmax_backward)(const kd_softmax_rows *c);
    int rounds_y, converts_dy;
    size_t work, work_bytes, score, score_bytes, probs, probs_bytes; /* offsets in args->scratch of the first slice's part, and the distance to the next */
    size_t values_work;                                              /* matmul.h, forward: where v's panels begin in a slice's work, behind k's */
    size_t y32, dy;                                                  /* offsets in args->scratch */
} attention;

enum {
    PRODUCTS = sizeof(products) / sizeof(product),
    TILES_AT_ONCE = 2,       /* of queries, matmul.h, forward */
    QUERIES_OF_BLOCK = 1024  /* at most, matmul.h, forward: the packing of k and v takes a twenty-fifth of that */
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

static kd_status product_create(product *p, const kd_matmul_kind *own, kd_cpu *b, const kd_dnn_matmul_desc *d, const char *what, kd_err *err) {
    p->d = *d;
    p->kind = own;
    if (!own)
        return kd_dnn_matmul(&p->dnn, b->engine, d, what, err);
    p->own = (kd_matmul){.type = d->a.dtype, .c_type = d->c.dtype, .rows = d->a.dim[2], .depth = d->a.dim[3], .columns = d->b.dim[3], .a_row = d->a.stride[2], .a_column = d->a.stride[3],
                         .b_row = d->b.stride[2], .b_column = d->b.stride[3], .c_row = d->c.stride[2], .add = d->add};
    return KD_OK;
}

static size_t product_bytes(const product *p) {
    return p->kind ? kd_matmul_work_bytes(p->kind, &p->own) : kd_dnn_scratch_bytes(p->dnn);
}

/* A matrix of image i and head h of a block. */
static void *head_at(const kd_dnn_tensor *t, const void *base, int64_t i, int64_t h) {
    return (char *)base + (size_t)(i * t->stride[0] + h * t->stride[1]) * kd_dtype_size(t->dtype);
}

static kd_status product_run(const product *p, void *c, const void *a, const void *b, void *work) {
    if (!p->kind)
        return kd_dnn_run(p->dnn, (void *[KD_DNN_ARGS]){[KD_DNN_SRC] = (void *)a, [KD_DNN_WEIGHTS] = (void *)b, [KD_DNN_DST] = c, [KD_DNN_SCRATCH] = work}, NULL);
    for (int64_t i = 0; i < p->d.a.dim[0]; i++)
        for (int64_t h = 0; h < p->d.a.dim[1]; h++) {
            p->kind->pack(&p->own, head_at(&p->d.b, b, i, h), work);
            p->kind->rows(&p->own, head_at(&p->d.c, c, i, h), head_at(&p->d.a, a, i, h), p->own.rows, work, kd_cpu_at(work, kd_matmul_strip_offset(p->kind, &p->own)));
        }
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
        kd_dnn_matmul_desc pv = {.a = scores_of(s, s->type, queries, s->own ? in_place_ld(s) : probs_ld(s, d)), .b = kv, .c = y};
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
    size_t scores = (size_t)((s->own && !d->train ? TILES_AT_ONCE * s->own->tile_rows : whole) * s->ld), slices = (size_t)s->slices;
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
    s->own = s->type == KD_F32 || s->head % 2 == 0 ? kd_matmul_here(s->type) : NULL; /* bf16 is multiplied in pairs */
    s->softmax = s->own == &kd_matmul_avx512 ? kd_softmax_avx512 : kd_softmax;
    s->softmax_backward = s->own == &kd_matmul_avx512 ? kd_softmax_backward_avx512 : kd_softmax_backward;
    s->rounds_y = s->type == KD_F32 && d->y.dtype == KD_BF16;
    s->converts_dy = d->train && d->y.dtype != s->type;
    s->size = block_of(s, d->train);
    KD_TRY(create_products(b, s, d, err));
    plan(s, d, needs);
    return KD_OK;
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
    kd_softmax_rows c;  /* as the backward pass has it */
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
    kd_softmax_rows c = o->c;
    if (w->d->train) {
        c.operand = o->probs;
        c.operand_ld = w->s->ld;
    }
    KD_TRY(product_run(&o->p->scores[o->last], c.score, q, k, o->work));
    w->s->softmax(&c);
    *probs = c.operand;
    return KD_OK;
}

/* One head of one image of the block. */
static void forward_head(const attention *s, const place *o, char *y, const char *q, const void *k, const void *v) {
    const kd_matmul *scores = &o->p->scores[o->last].own, *values = &o->p->values[o->last].own;
    void *values_panels = kd_cpu_at(o->work, s->values_work), *scores_strip = kd_cpu_at(o->work, kd_matmul_strip_offset(s->own, scores)), *values_strip = kd_cpu_at(values_panels, kd_matmul_strip_offset(s->own, values));
    size_t q_row = (size_t)scores->a_row * kd_dtype_size(scores->type), y_row = (size_t)values->c_row * kd_dtype_size(values->c_type);
    kd_softmax_rows c = o->c;
    s->own->pack(scores, k, o->work);
    s->own->pack(values, v, values_panels);
    const int64_t most = TILES_AT_ONCE * s->own->tile_rows;
    for (int64_t r = 0; r < scores->rows; r += most, q += (size_t)most * q_row, y += (size_t)most * y_row) {
        int64_t n = scores->rows - r < most ? scores->rows - r : most;
        c.rows = (size_t)n;
        s->own->rows(scores, c.score, q, n, o->work, scores_strip);
        s->softmax(&c);
        s->own->rows(values, y, c.score, n, values_panels, values_strip);
    }
}

static kd_status forward_block(const call *w, place o) {
    const attention *s = w->s;
    const kd_op_args *a = w->a;
    const product *scores = &o.p->scores[o.last], *values = &o.p->values[o.last];
    int64_t width = s->width, row = 3 * width, query = o.first.queries;
    void *q = at(s, a->x[0], s->type, o.first, query, row, 0), *k = at(s, a->x[0], s->type, o.first, 0, row, width), *v = at(s, a->x[0], s->type, o.first, 0, row, 2 * width);
    void *y = at(s, w->y, s->rounds_y ? KD_F32 : w->d->y.dtype, o.first, query, width, 0);
    const void *probs;
    if (s->own) {
        for (int64_t i = 0; i < s->size.images; i++)
            for (int64_t h = 0; h < s->size.heads; h++)
                forward_head(s, &o, head_at(&values->d.c, y, i, h), head_at(&scores->d.a, q, i, h), head_at(&scores->d.b, k, i, h), head_at(&values->d.b, v, i, h));
        return KD_OK;
    }
    KD_TRY(find_probs(w, &o, q, k, &probs));
    return product_run(values, y, probs, v, o.work);
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
    s->softmax_backward(&o.c);
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

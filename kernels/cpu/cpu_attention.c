/* attention: batched matrix products straight on the q|k|v rows (strides, no copies) and an own softmax between them.
 *
 * Scores of all heads of an image are T x T each, far larger than q, k and v; so images are taken in chunks whose scores stay in the second-level cache.
 * Scores are f32; probabilities are rounded to the operands' type, in place where nothing needs them later:
 *
 *     scores   [chunk, heads, T, ld] f32     ld = T rounded up, so that rows are aligned
 *     probs    the same memory read as [.., T, 2 ld] bf16, or args->saved [N, heads, T, ld] in training */
#include <math.h>

#include "common/base/mem.h"
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/simd.h"

typedef struct attention {
    kd_dnn *scores, *values;          /* forward: q k^T, p v */
    kd_dnn *dv, *dp, *dq, *dk;        /* backward */
    int64_t n, t, width, heads, head; /* head: Dh */
    int64_t ld, chunk;                /* chunk divides n */
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

/* ---- the matrices of one chunk: [images, heads, rows, columns] ---- */

/* Heads side by side in rows of `row` elements: y, dy (row = D), q, k, v and their gradients (row = 3D). */
static kd_dnn_tensor heads_of(const attention *s, kd_dtype type, int64_t row) {
    return (kd_dnn_tensor){.dtype = type, .rank = 4, .dim = {s->chunk, s->heads, s->t, s->head}, .stride = {s->t * row, s->head, row, 1}};
}

static kd_dnn_tensor square_of(const attention *s, kd_dtype type, int64_t ld) {
    return (kd_dnn_tensor){.dtype = type, .rank = 4, .dim = {s->chunk, s->heads, s->t, s->t}, .stride = {s->heads * s->t * ld, s->t * ld, ld, 1}};
}

/* Row distance of operands that were made in place of f32 scores. */
static int64_t in_place_ld(const attention *s) {
    return s->type == KD_BF16 ? 2 * s->ld : s->ld;
}

static int64_t probs_ld(const attention *s, const kd_op_desc *d) {
    return d->train ? s->ld : in_place_ld(s);
}

static kd_status create_products(kd_cpu *b, attention *s, const kd_op_desc *d, kd_err *err) {
    kd_dnn_tensor qkv = heads_of(s, s->type, 3 * s->width), scores = square_of(s, KD_F32, s->ld), probs = square_of(s, s->type, probs_ld(s, d));
    kd_dnn_tensor y = heads_of(s, s->rounds_y ? KD_F32 : d->y.dtype, s->width);
    kd_dnn_matmul_desc qk = {.a = qkv, .b = kd_dnn_transposed(qkv), .c = scores}, pv = {.a = probs, .b = qkv, .c = y};
    KD_TRY(kd_dnn_matmul(&s->scores, b->engine, &qk, d->name, err));
    KD_TRY(kd_dnn_matmul(&s->values, b->engine, &pv, d->name, err));
    if (!d->train || !(d->need_dx & 1))
        return KD_OK;
    int add = (d->add_dx & 1) != 0;
    kd_dnn_tensor dy = heads_of(s, s->type, s->width), ds = square_of(s, s->type, in_place_ld(s));
    kd_dnn_matmul_desc dv = {.a = kd_dnn_transposed(probs), .b = dy, .c = qkv, .add = add}, dp = {.a = dy, .b = kd_dnn_transposed(qkv), .c = scores};
    kd_dnn_matmul_desc dq = {.a = ds, .b = qkv, .c = qkv, .add = add}, dk = {.a = kd_dnn_transposed(ds), .b = qkv, .c = qkv, .add = add};
    KD_TRY(kd_dnn_matmul(&s->dv, b->engine, &dv, d->name, err));
    KD_TRY(kd_dnn_matmul(&s->dp, b->engine, &dp, d->name, err));
    KD_TRY(kd_dnn_matmul(&s->dq, b->engine, &dq, d->name, err));
    return kd_dnn_matmul(&s->dk, b->engine, &dk, d->name, err);
}

/* The largest divisor of n whose scores fit half of each thread's second-level cache (1 MiB is common), but work for every thread. */
static int64_t chunk_of(const attention *s, int threads) {
    int64_t image = s->heads * s->t * s->ld * (int64_t)sizeof(float), budget = (int64_t)threads * 512 * 1024, best = 1;
    for (int64_t c = 2; c <= s->n; c++)
        if (s->n % c == 0 && (c * image <= budget || best * s->heads < threads))
            best = c;
    return best;
}

static void plan(attention *s, const kd_op_desc *d, kd_op_needs *needs) {
    size_t work = 0, square = (size_t)(s->heads * s->t * s->ld);
    const kd_dnn *const all[] = {s->scores, s->values, s->dv, s->dp, s->dq, s->dk};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        if (kd_dnn_scratch_bytes(all[i]) > work)
            work = kd_dnn_scratch_bytes(all[i]);
    if (d->train)
        needs->saved = (size_t)s->n * square * kd_dtype_size(s->type);
    s->work = kd_cpu_region(&needs->scratch, work);
    s->score = kd_cpu_region(&needs->scratch, (size_t)s->chunk * square * sizeof(float));
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
    s->chunk = chunk_of(s, b->base.threads);
    KD_TRY(create_products(b, s, d, err));
    plan(s, d, needs);
    return KD_OK;
}

/* ---- softmax over rows, forward and backward ---- */

typedef struct softmax_ctx {
    float *score;  /* rows [.., ld] */
    void *operand; /* what the next product reads: rows [.., operand_ld] */
    const void *p; /* backward: probabilities, rows [.., p_ld] */
    kd_dtype type; /* of operand and p */
    int64_t t, ld, operand_ld, p_ld;
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
            total += kd_load(c.p, c.type, r * (size_t)c.p_ld + i, n) * kd_load_f32(dp + i, n);
        }
        float dot = kd_sum(total);
        for (size_t i = 0; i < t; i += KD_VF) {
            int n = kd_lanes(t - i);
            kd_vf p = kd_load(c.p, c.type, r * (size_t)c.p_ld + i, n) * c.scale;
            kd_store(c.operand, c.type, r * (size_t)c.operand_ld + i, p * (kd_load_f32(dp + i, n) - dot), n);
        }
    }
}

/* ---- calls ---- */

/* Image `first` of an array whose rows have `row` elements, `column` elements in. */
static void *at_image(const attention *s, const void *base, kd_dtype type, int64_t first, int64_t row, int64_t column) {
    return (char *)base + (size_t)(first * s->t * row + column) * kd_dtype_size(type);
}

static softmax_ctx softmax_of(const attention *s) {
    return (softmax_ctx){.type = s->type, .t = s->t, .ld = s->ld, .p_ld = s->ld, .operand_ld = in_place_ld(s), .scale = (float)(1 / sqrt((double)s->head))};
}

static kd_status forward_chunk(kd_cpu *b, const attention *s, const kd_op_desc *d, const kd_op_args *a, void *y, int64_t first, kd_err *err) {
    void *work = kd_cpu_at(a->scratch, s->work);
    int64_t w = s->width;
    kd_dtype y_type = s->rounds_y ? KD_F32 : d->y.dtype;
    softmax_ctx c = softmax_of(s);
    c.score = kd_cpu_at(a->scratch, s->score);
    c.operand = d->train ? kd_cpu_at(a->saved, (size_t)(first * s->heads * s->t * s->ld) * kd_dtype_size(s->type)) : c.score;
    c.operand_ld = probs_ld(s, d);
    KD_TRY(kd_dnn_run(s->scores,
                      (void *[KD_DNN_ARGS]){[KD_DNN_SRC] = at_image(s, a->x[0], s->type, first, 3 * w, 0), [KD_DNN_WEIGHTS] = at_image(s, a->x[0], s->type, first, 3 * w, w),
                                            [KD_DNN_DST] = c.score, [KD_DNN_SCRATCH] = work},
                      err));
    kd_cpu_parallel(b->base.threads, (size_t)(s->chunk * s->heads * s->t), (size_t)s->ld, softmax_range, &c);
    return kd_dnn_run(s->values,
                      (void *[KD_DNN_ARGS]){[KD_DNN_SRC] = c.operand, [KD_DNN_WEIGHTS] = at_image(s, a->x[0], s->type, first, 3 * w, 2 * w),
                                            [KD_DNN_DST] = at_image(s, y, y_type, first, w, 0), [KD_DNN_SCRATCH] = work},
                      err);
}

static kd_status attention_forward(kd_cpu *b, kd_op *op, const kd_op_args *a, kd_err *err) {
    const attention *s = op->impl;
    void *y = s->rounds_y ? kd_cpu_at(a->scratch, s->y32) : a->y;
    for (int64_t first = 0; first < s->n; first += s->chunk)
        KD_TRY(forward_chunk(b, s, &op->desc, a, y, first, err));
    if (s->rounds_y)
        kd_cpu_copy(b->base.threads, a->y, KD_BF16, y, KD_F32, kd_tdesc_numel(&op->desc.y), 0);
    return KD_OK;
}

static kd_status backward_chunk(kd_cpu *b, const attention *s, const kd_op_args *a, const void *dy_all, int64_t first, kd_err *err) {
    int64_t w = s->width, row = 3 * w;
    void *work = kd_cpu_at(a->scratch, s->work), *dy = at_image(s, dy_all, s->type, first, w, 0);
    void *q = at_image(s, a->x[0], s->type, first, row, 0), *k = at_image(s, a->x[0], s->type, first, row, w), *v = at_image(s, a->x[0], s->type, first, row, 2 * w);
    void *dq = at_image(s, a->dx[0], s->type, first, row, 0), *dk = at_image(s, a->dx[0], s->type, first, row, w), *dv = at_image(s, a->dx[0], s->type, first, row, 2 * w);
    softmax_ctx c = softmax_of(s);
    c.score = kd_cpu_at(a->scratch, s->score);
    c.operand = c.score;
    c.p = kd_cpu_at(a->saved, (size_t)(first * s->heads * s->t * s->ld) * kd_dtype_size(s->type));
    KD_TRY(kd_dnn_run(s->dv, (void *[KD_DNN_ARGS]){[KD_DNN_SRC] = (void *)c.p, [KD_DNN_WEIGHTS] = dy, [KD_DNN_DST] = dv, [KD_DNN_SCRATCH] = work}, err));
    KD_TRY(kd_dnn_run(s->dp, (void *[KD_DNN_ARGS]){[KD_DNN_SRC] = dy, [KD_DNN_WEIGHTS] = v, [KD_DNN_DST] = c.score, [KD_DNN_SCRATCH] = work}, err));
    kd_cpu_parallel(b->base.threads, (size_t)(s->chunk * s->heads * s->t), (size_t)s->ld, softmax_backward_range, &c);
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
    for (int64_t first = 0; first < s->n; first += s->chunk)
        KD_TRY(backward_chunk(b, s, a, dy, first, err));
    return KD_OK;
}

const kd_cpu_kind kd_cpu_attention = {attention_create, attention_destroy, NULL, attention_forward, attention_backward};

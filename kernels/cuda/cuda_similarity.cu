/* Losses over similarities of normalised rows: with a queue of earlier targets (kl_queue), among the patches of an image (kl_intra, gram), among the images of a batch (koleo).
 *
 * Products are made of the rows as they come (gemm.h) and then scaled by inverse norms where they are read: a similarity by those of its row and its column, and a gradient that is
 * multiplied by rows again by that of its column. So no normalised copy of a tensor is written. */
#include "kernels/cuda/cuda_loss.cuh"
#include "kernels/cuda/gemm.h"

enum { ALIGN_FLOATS = 16, MOST_IMAGES = 32768, TILE = 32, TILE_ROWS = 8, PUSH_THREADS = 128, PUSH_AHEAD = 4 };
#define MOST_BYTES ((size_t)64 << 20) /* of similarities or gradients of rows in scratch: images are taken in blocks of this size */

/* Rows of similarities begin at multiples of 64 bytes. */
static size_t padded(size_t n) {
    return (n + ALIGN_FLOATS - 1) / ALIGN_FLOATS * ALIGN_FLOATS;
}

/* ---- norms ---- */

/* max(|x|, eps), or its inverse, of the rows of one or two tensors, the second's behind the first's; `per` rows (an image) lie in ld values. */
typedef struct row_norm_args {
    float *out;
    const float *x[2];
    size_t sides, rows, width, per, ld;
    double eps;
    int inverse;
} row_norm_args;

static __global__ void __launch_bounds__(KD_TEAM_MOST) norm_kernel(row_norm_args a) {
    __shared__ double shared[32];
    kd_team t = kd_team_here(a.width, shared);
    for (size_t r = t.row; r < a.sides * a.rows; r += t.step) {
        size_t side = r >= a.rows, row = r - side * a.rows;
        double norm = kd_at_least(kd_row_norm(&t, side ? a.x[1] : a.x[0], 0, row * a.width, a.width, a.width % 8 == 0), a.eps);
        if (t.lane == 0)
            a.out[(r / a.per) * a.ld + r % a.per] = (float)(a.inverse ? 1 / norm : norm);
    }
}

static kd_status row_norms(kd_cuda *b, row_norm_args a, kd_err *err) {
    return kd_launch(b, "norms of rows", norm_kernel, (unsigned)kd_loss_blocks(a.sides * a.rows, a.width), kd_team_threads(a.width), err, a);
}

/* ---- kl_queue ----
 *
 *     scratch   matrix: similarities of the targets [N, ld] (in inference those of the predictions before them); in backward the gradient of the rows [N, D]
 *               inverse [2, ld of N];  parts;  work of the products
 *     saved     difference [N, ld]: q - p; before that, the similarities of the predictions             ld = queue_rows rounded up */

typedef struct queue_loss {
    kd_gemm *like, *ds;
    size_t n, width, rows, ld, inverse_ld;
    size_t at_matrix, at_inverse, at_part, at_work; /* offsets in args->scratch */
} queue_loss;

static void queue_destroy(void *impl) {
    queue_loss *q = (queue_loss *)impl;
    if (!q)
        return;
    kd_gemm_destroy(q->like);
    kd_gemm_destroy(q->ds);
    kd_free(q);
}

static size_t larger(size_t a, size_t b) {
    return a > b ? a : b;
}

static kd_status queue_products(kd_cuda *b, queue_loss *q, const kd_op_desc *d, size_t *work, kd_err *err) {
    size_t more = 0;
    kd_gemm_desc like = {}, ds = {};
    like.name = ds.name = d->name;
    like.ab = like.c = ds.ab = ds.c = KD_F32;
    like.m = (int64_t)q->n, like.n = (int64_t)q->rows, like.k = (int64_t)q->width, like.trans_b = 1, like.ldc = (int64_t)q->ld;
    ds.m = (int64_t)q->n, ds.n = (int64_t)q->width, ds.k = (int64_t)q->rows, ds.lda = (int64_t)q->ld;
    KD_TRY(kd_gemm_create(b, &q->like, &like, work, err));
    if (kd_wants_dx(d))
        KD_TRY(kd_gemm_create(b, &q->ds, &ds, &more, err));
    *work = larger(*work, more);
    return KD_OK;
}

static kd_status queue_create(kd_cuda *b, kd_op *op, kd_op_needs *needs, kd_err *err) {
    const kd_op_desc *d = &op->desc;
    queue_loss *q = NULL;
    size_t work = 0;
    KD_TRY(kd_alloc_array(&q, 1, sizeof *q, err));
    op->impl = q;
    q->n = (size_t)d->x[0].shape[0], q->width = (size_t)d->x[0].shape[1], q->rows = (size_t)d->queue_rows;
    q->ld = padded(q->rows), q->inverse_ld = padded(q->n);
    KD_TRY(queue_products(b, q, d, &work, err));
    size_t like = q->n * q->ld * sizeof(float), gradient = q->n * q->width * sizeof(float);
    q->at_matrix = kd_cuda_region(&needs->scratch, q->ds ? larger(like, gradient) : 2 * like);
    q->at_inverse = kd_cuda_region(&needs->scratch, 2 * q->inverse_ld * sizeof(float));
    q->at_part = kd_cuda_region(&needs->scratch, kd_loss_blocks(q->n, q->rows) * sizeof(double));
    q->at_work = kd_cuda_region(&needs->scratch, work);
    needs->saved = q->ds ? like : 0;
    return KD_OK;
}

/* Queue row r moves to r + n, and the targets, normalised, become the first rows. A thread moves one column of the rows c, c + n, c + 2n ..., which only it touches: each value is read before
 * the one above it takes its place. */
static __global__ void __launch_bounds__(PUSH_THREADS) push_kernel(float *queue, const float *target, const float *inverse, size_t n, size_t rows, size_t width) {
    size_t chains = n < rows ? n : rows;
    kd_grid_stride(item, chains * width) {
        size_t c = item / width, column = item % width;
        float carried = target[item] * inverse[c];
        for (size_t r = c; r < rows; r += PUSH_AHEAD * n) { /* the loads of some rows at once */
            float v[PUSH_AHEAD];
            for (int k = 0; k < PUSH_AHEAD; k++)
                v[k] = r + (size_t)k * n < rows ? queue[(r + (size_t)k * n) * width + column] : 0.0f;
            for (int k = 0; k < PUSH_AHEAD; k++)
                if (r + (size_t)k * n < rows)
                    queue[(r + (size_t)k * n) * width + column] = k == 0 ? carried : v[k - 1];
            carried = v[PUSH_AHEAD - 1];
        }
    }
}

typedef struct queue_loss_args {
    double *part;
    float *s; /* becomes q - p when `keep` */
    const float *t, *inverse;
    size_t n, rows, ld, inverse_ld;
    float temperature;
    int keep;
} queue_loss_args;

static __global__ void __launch_bounds__(KD_TEAM_MOST) queue_kernel(queue_loss_args a) {
    __shared__ double shared[32];
    kd_team t = kd_team_here(a.rows, shared);
    double total = 0;
    for (size_t r = t.row; r < a.n; r += t.step) {
        kd_score_rows rows = {a.s + r * a.ld, a.t + r * a.ld, NULL, NULL, a.rows, a.inverse[r] / a.temperature, a.inverse[a.inverse_ld + r] / a.temperature, 1};
        kd_kl kl;
        total += kd_kl_row(&t, &rows, &kl);
        if (a.keep)
            kd_team_groups(i, t, a.rows)
                kd_row_store_grad(a.s, 0, r * a.ld + i, kd_kl_grad(&rows, &kl, i, 1.0f), a.rows - i, 1, 0);
    }
    kd_team_finish(a.part, &t, total);
}

static kd_status queue_forward(kd_cuda *b, kd_op *op, const kd_op_args *a, kd_err *err) {
    const kd_op_desc *d = &op->desc;
    const queue_loss *q = (const queue_loss *)op->impl;
    float *like_t = (float *)kd_cuda_at(a->scratch, q->at_matrix), *like_s = q->ds ? (float *)a->saved : like_t + q->n * q->ld, *inverse = (float *)kd_cuda_at(a->scratch, q->at_inverse);
    double *part = (double *)kd_cuda_at(a->scratch, q->at_part);
    void *work = kd_cuda_at(a->scratch, q->at_work);
    const float *s = (const float *)a->x[0], *t = (const float *)a->x[1];
    KD_TRY(row_norms(b, row_norm_args{inverse, {s, t}, 2, q->n, q->width, q->n, q->inverse_ld, KD_OP_L2_EPS, 1}, err));
    if (d->train) {
        size_t items = (q->n < q->rows ? q->n : q->rows) * q->width;
        KD_TRY(kd_launch(b, "push into a queue", push_kernel, kd_blocks(b, items, PUSH_THREADS), PUSH_THREADS, err, a->state[0], t, inverse + q->inverse_ld, q->n, q->rows, q->width));
    }
    KD_TRY(kd_gemm_run(b, q->like, like_s, s, a->state[0], NULL, work, err));
    KD_TRY(kd_gemm_run(b, q->like, like_t, t, a->state[0], NULL, work, err));
    queue_loss_args k = {part, like_s, like_t, inverse, q->n, q->rows, q->ld, q->inverse_ld, d->temperature, q->ds != NULL};
    unsigned blocks = (unsigned)kd_loss_blocks(q->n, q->rows);
    KD_TRY(kd_launch(b, "KL over a queue", queue_kernel, blocks, kd_team_threads(q->rows), err, k));
    return kd_cuda_loss_total(b, a->y, part, blocks, 1 / (double)q->n, err);
}

static kd_status queue_backward(kd_cuda *b, kd_op *op, const kd_op_args *a, kd_err *err) {
    const kd_op_desc *d = &op->desc;
    const queue_loss *q = (const queue_loss *)op->impl;
    void *ds = kd_cuda_at(a->scratch, q->at_matrix);
    if (!q->ds)
        return KD_OK;
    KD_TRY(kd_gemm_run(b, q->ds, ds, a->saved, a->state[0], NULL, kd_cuda_at(a->scratch, q->at_work), err));
    kd_normalize_grad g = {a->dx[0], ds, a->x[0], KD_F32, KD_F32, q->n, q->width, KD_OP_L2_EPS, 1 / ((double)q->n * (double)d->temperature), (const float *)a->dy, kd_adds_dx(d)};
    return kd_cuda_normalize_grad(b, &g, err);
}

extern "C" const kd_cuda_kind kd_cuda_kl_queue = {queue_create, queue_destroy, NULL, queue_forward, queue_backward};

/* ---- kl_intra, gram: the P x P similarities inside each image ----
 *
 *     scratch   matrix: similarities of a block of images, [images, P, ld] of the predictions, then of the targets; in backward the gradient of a block's rows [images, P, D]
 *               inverse [2, N, ld];  parts;  work of the products
 *     saved     [N, P, ld]: derivative of the loss's sum by the prediction's similarities, plus its transpose, times the inverse norms of the columns             ld = P rounded up */

/* A product of every image, in blocks of images. */
typedef struct image_product {
    kd_gemm *whole, *rest; /* of a block, and of the last one where that is shorter; else NULL */
    size_t images;
} image_product;

typedef struct patches_loss {
    image_product like, ds; /* ds: none without gradient */
    size_t n, patches, width, ld;
    size_t at_matrix, at_inverse, at_part, at_work; /* offsets in args->scratch */
} patches_loss;

static void product_destroy(image_product *p) {
    kd_gemm_destroy(p->whole);
    kd_gemm_destroy(p->rest);
}

static void patches_destroy(void *impl) {
    patches_loss *m = (patches_loss *)impl;
    if (!m)
        return;
    product_destroy(&m->like);
    product_destroy(&m->ds);
    kd_free(m);
}

/* Blocks of nearly the same size, `bytes` of scratch per image. *work grows to what a run needs. */
static kd_status product_create(kd_cuda *b, image_product *p, kd_gemm_desc d, size_t n, size_t bytes, size_t *work, kd_err *err) {
    size_t most = MOST_BYTES / bytes, more = 0;
    most = most < 1 ? 1 : most > MOST_IMAGES ? MOST_IMAGES : most;
    size_t blocks = (n + most - 1) / most;
    p->images = (n + blocks - 1) / blocks;
    d.batch = (int64_t)p->images;
    KD_TRY(kd_gemm_create(b, &p->whole, &d, &more, err));
    *work = larger(*work, more);
    if (n % p->images == 0)
        return KD_OK;
    d.batch = (int64_t)(n % p->images);
    KD_TRY(kd_gemm_create(b, &p->rest, &d, &more, err));
    *work = larger(*work, more);
    return KD_OK;
}

static kd_status product_run(kd_cuda *b, const image_product *p, size_t images, void *c, const void *a, const void *bm, void *work, kd_err *err) {
    return kd_gemm_run(b, images == p->images ? p->whole : p->rest, c, a, bm, NULL, work, err);
}

static kd_status patches_products(kd_cuda *b, patches_loss *m, const kd_op_desc *d, size_t *work, kd_err *err) {
    int64_t patches = (int64_t)m->patches, width = (int64_t)m->width, ld = (int64_t)m->ld;
    kd_gemm_desc like = {}, ds = {};
    like.name = ds.name = d->name;
    like.ab = like.c = ds.ab = ds.c = KD_F32;
    like.m = like.n = patches, like.k = width, like.trans_b = 1, like.ldc = ld;
    like.stride_a = like.stride_b = patches * width, like.stride_c = patches * ld;
    ds.m = ds.k = patches, ds.n = width, ds.lda = ld;
    ds.stride_a = patches * ld, ds.stride_b = ds.stride_c = patches * width;
    KD_TRY(product_create(b, &m->like, like, m->n, 2 * m->patches * m->ld * sizeof(float), work, err));
    return kd_wants_dx(d) ? product_create(b, &m->ds, ds, m->n, m->patches * m->width * sizeof(float), work, err) : KD_OK;
}

static kd_status patches_create(kd_cuda *b, kd_op *op, kd_op_needs *needs, kd_err *err) {
    const kd_op_desc *d = &op->desc;
    patches_loss *m = NULL;
    size_t work = 0;
    KD_TRY(kd_alloc_array(&m, 1, sizeof *m, err));
    op->impl = m;
    m->n = (size_t)d->x[0].shape[0], m->width = kd_cuda_width(&d->x[0]), m->patches = kd_cuda_rows(&d->x[0]) / m->n, m->ld = padded(m->patches);
    KD_TRY(patches_products(b, m, d, &work, err));
    size_t blocks = (m->n + m->like.images - 1) / m->like.images;
    m->at_matrix = kd_cuda_region(&needs->scratch, larger(m->like.images * 2 * m->patches * m->ld, m->ds.images * m->patches * m->width) * sizeof(float));
    m->at_inverse = kd_cuda_region(&needs->scratch, 2 * m->n * m->ld * sizeof(float));
    m->at_part = kd_cuda_region(&needs->scratch, blocks * kd_loss_blocks(m->like.images * m->patches, m->patches) * sizeof(double));
    m->at_work = kd_cuda_region(&needs->scratch, work);
    needs->saved = kd_wants_dx(d) ? m->n * m->patches * m->ld * sizeof(float) : 0;
    return KD_OK;
}

/* A block of images. */
typedef struct patches_loss_args {
    double *part;
    float *s; /* becomes the derivative of the sum when `keep` */
    const float *t, *inverse_s, *inverse_t;
    size_t images, patches, ld;
    float temperature;
    int keep;
} patches_loss_args;

static __global__ void __launch_bounds__(KD_TEAM_MOST) kl_kernel(patches_loss_args a) {
    __shared__ double shared[32];
    kd_team t = kd_team_here(a.patches, shared);
    double total = 0;
    for (size_t r = t.row; r < a.images * a.patches; r += t.step) {
        size_t image = r / a.patches * a.ld, own = image + r % a.patches; /* in the inverse norms */
        kd_score_rows rows = {a.s + r * a.ld, a.t + r * a.ld, a.inverse_s + image, a.inverse_t + image, a.patches, a.inverse_s[own] / a.temperature, a.inverse_t[own] / a.temperature, 1};
        kd_kl kl;
        total += kd_kl_row(&t, &rows, &kl);
        if (a.keep)
            kd_team_groups(i, t, a.patches)
                kd_row_store_grad(a.s, 0, r * a.ld + i, kd_kl_grad(&rows, &kl, i, 1.0f / a.temperature), a.patches - i, 1, 0);
    }
    kd_team_finish(a.part, &t, total);
}

static __global__ void __launch_bounds__(KD_TEAM_MOST) gram_kernel(patches_loss_args a) {
    __shared__ double shared[32];
    kd_team t = kd_team_here(a.patches, shared);
    double total = 0;
    for (size_t r = t.row; r < a.images * a.patches; r += t.step) {
        size_t image = r / a.patches * a.ld, own = image + r % a.patches;
        kd_score_rows rows = {a.s + r * a.ld, a.t + r * a.ld, a.inverse_s + image, a.inverse_t + image, a.patches, a.inverse_s[own], a.inverse_t[own], 1};
        double sum = 0;
        kd_team_groups(i, t, a.patches) {
            kd_f8 s = kd_scores(rows.s, rows.by_s, i, &rows), of_t = kd_scores(rows.t, rows.by_t, i, &rows);
            float squares = 0;
            for (int k = 0; k < 8; k++) {
                float e = s.v[k] * rows.scale_s - of_t.v[k] * rows.scale_t;
                squares = i + (size_t)k < a.patches ? fmaf(e, e, squares) : squares;
                s.v[k] = 2 * e;
            }
            sum += (double)squares;
            if (a.keep)
                kd_row_store_grad(a.s, 0, r * a.ld + i, s, a.patches - i, 1, 0);
        }
        total += kd_team_sum(&t, sum);
    }
    kd_team_finish(a.part, &t, total);
}

/* out[i, j] = (g[i, j] + g[j, i]) inverse[j], a tile per block. */
static __global__ void __launch_bounds__(TILE * TILE_ROWS) both_ways_kernel(float *out, const float *g, const float *inverse, size_t patches, size_t ld) {
    __shared__ float turned[TILE][TILE + 1];
    size_t x = threadIdx.x % TILE, y = threadIdx.x / TILE, first_i = (size_t)blockIdx.y * TILE, first_j = (size_t)blockIdx.x * TILE, image = (size_t)blockIdx.z * patches * ld;
    for (size_t k = y; k < TILE; k += TILE_ROWS)
        if (first_j + k < patches && first_i + x < patches)
            turned[k][x] = g[image + (first_j + k) * ld + first_i + x];
    __syncthreads();
    for (size_t k = y; k < TILE; k += TILE_ROWS)
        if (first_i + k < patches && first_j + x < patches) {
            size_t at = image + (first_i + k) * ld + first_j + x;
            out[at] = (g[at] + turned[x][k]) * inverse[blockIdx.z * ld + first_j + x];
        }
}

/* Images first .. first+images-1; *parts partial sums are there before and after. */
static kd_status patches_block(kd_cuda *b, kd_op *op, const kd_op_args *a, size_t first, size_t images, size_t *parts, kd_err *err) {
    const patches_loss *m = (const patches_loss *)op->impl;
    size_t rows = first * m->patches, matrix = m->patches * m->ld;
    float *s = (float *)kd_cuda_at(a->scratch, m->at_matrix), *t = s + m->like.images * matrix, *inverse = (float *)kd_cuda_at(a->scratch, m->at_inverse) + first * m->ld;
    double *part = (double *)kd_cuda_at(a->scratch, m->at_part) + *parts;
    void *work = kd_cuda_at(a->scratch, m->at_work);
    for (int side = 0; side < 2; side++) {
        const float *x = (const float *)a->x[side] + rows * m->width;
        KD_TRY(product_run(b, &m->like, images, side ? t : s, x, x, work, err));
    }
    patches_loss_args k = {part, s, t, inverse, inverse + m->n * m->ld, images, m->patches, m->ld, op->desc.temperature, kd_wants_dx(&op->desc)};
    size_t blocks = kd_loss_blocks(images * m->patches, m->patches);
    *parts += blocks;
    KD_TRY(kd_launch(b, "loss over patches", op->desc.kind == KD_OP_GRAM ? gram_kernel : kl_kernel, (unsigned)blocks, kd_team_threads(m->patches), err, k));
    if (!k.keep)
        return KD_OK;
    unsigned tiles = (unsigned)((m->patches + TILE - 1) / TILE);
    return kd_launch(b, "loss over patches", both_ways_kernel, dim3(tiles, tiles, (unsigned)images), TILE * TILE_ROWS, err, (float *)a->saved + first * matrix, s, inverse, m->patches, m->ld);
}

/* What the sum is divided by: rows, or similarities. */
static double count(const kd_op *op) {
    const patches_loss *m = (const patches_loss *)op->impl;
    double rows = (double)(m->n * m->patches);
    return op->desc.kind == KD_OP_GRAM ? rows * (double)m->patches : rows;
}

static size_t fewer(size_t a, size_t b) {
    return a < b ? a : b;
}

static kd_status patches_forward(kd_cuda *b, kd_op *op, const kd_op_args *a, kd_err *err) {
    const patches_loss *m = (const patches_loss *)op->impl;
    float *inverse = (float *)kd_cuda_at(a->scratch, m->at_inverse);
    size_t parts = 0;
    KD_TRY(row_norms(b, row_norm_args{inverse, {(const float *)a->x[0], (const float *)a->x[1]}, 2, m->n * m->patches, m->width, m->patches, m->ld, KD_OP_L2_EPS, 1}, err));
    for (size_t first = 0; first < m->n; first += m->like.images)
        KD_TRY(patches_block(b, op, a, first, fewer(m->like.images, m->n - first), &parts, err));
    return kd_cuda_loss_total(b, a->y, (const double *)kd_cuda_at(a->scratch, m->at_part), parts, 1 / count(op), err);
}

static kd_status patches_backward(kd_cuda *b, kd_op *op, const kd_op_args *a, kd_err *err) {
    const patches_loss *m = (const patches_loss *)op->impl;
    void *ds = kd_cuda_at(a->scratch, m->at_matrix), *work = kd_cuda_at(a->scratch, m->at_work);
    for (size_t first = 0; m->ds.whole && first < m->n; first += m->ds.images) {
        size_t images = fewer(m->ds.images, m->n - first), at = first * m->patches * m->width;
        const float *x = (const float *)a->x[0] + at;
        KD_TRY(product_run(b, &m->ds, images, ds, (const float *)a->saved + first * m->patches * m->ld, x, work, err));
        kd_normalize_grad g = {(float *)a->dx[0] + at, ds, x, KD_F32, KD_F32, images * m->patches, m->width, KD_OP_L2_EPS, 1 / count(op), (const float *)a->dy, kd_adds_dx(&op->desc)};
        KD_TRY(kd_cuda_normalize_grad(b, &g, err));
    }
    return KD_OK;
}

extern "C" const kd_cuda_kind kd_cuda_kl_intra = {patches_create, patches_destroy, NULL, patches_forward, patches_backward};
extern "C" const kd_cuda_kind kd_cuda_gram = {patches_create, patches_destroy, NULL, patches_forward, patches_backward};

/* ---- koleo: every row of the batch against every other ----
 *
 *     scratch   matrix: similarities [N, ld]; in backward the gradient of the rows [N, D];  parts;  work of the product
 *     saved     norm [N];  slope [N]: what |u_i| passes on to each element of u_i;  nearest [N] */

typedef struct koleo_loss {
    kd_gemm *like;
    size_t n, width, ld;
    size_t at_matrix, at_part, at_work;   /* offsets in args->scratch */
    size_t at_norm, at_slope, at_nearest; /* offsets in args->saved */
} koleo_loss;

static void koleo_destroy(void *impl) {
    koleo_loss *m = (koleo_loss *)impl;
    if (!m)
        return;
    kd_gemm_destroy(m->like);
    kd_free(m);
}

/* A row is compared with n others and is `width` long; the team suits the longer. */
static size_t koleo_span(const koleo_loss *m) {
    return larger(m->n, m->width);
}

static kd_status koleo_create(kd_cuda *b, kd_op *op, kd_op_needs *needs, kd_err *err) {
    const kd_op_desc *d = &op->desc;
    koleo_loss *m = NULL;
    size_t work = 0;
    KD_TRY(kd_alloc_array(&m, 1, sizeof *m, err));
    op->impl = m;
    m->n = (size_t)d->x[0].shape[0], m->width = (size_t)d->x[0].shape[1], m->ld = padded(m->n);
    kd_gemm_desc like = {};
    like.name = d->name, like.ab = like.c = KD_F32;
    like.m = like.n = (int64_t)m->n, like.k = (int64_t)m->width, like.trans_b = 1, like.ldc = (int64_t)m->ld;
    KD_TRY(kd_gemm_create(b, &m->like, &like, &work, err));
    m->at_matrix = kd_cuda_region(&needs->scratch, m->n * larger(m->ld, m->width) * sizeof(float));
    m->at_part = kd_cuda_region(&needs->scratch, kd_loss_blocks(m->n, koleo_span(m)) * sizeof(double));
    m->at_work = kd_cuda_region(&needs->scratch, work);
    m->at_norm = kd_cuda_region(&needs->saved, m->n * sizeof(float));
    m->at_slope = kd_cuda_region(&needs->saved, m->n * sizeof(float));
    m->at_nearest = kd_cuda_region(&needs->saved, m->n * sizeof(int));
    return KD_OK;
}

typedef struct koleo_loss_args {
    const float *x, *like;
    float *norm, *slope;
    int *nearest;
    size_t n, width, ld, span;
} koleo_loss_args;

static koleo_loss_args koleo_args_of(const koleo_loss *m, const kd_op_args *a) {
    koleo_loss_args k = {(const float *)a->x[0], (const float *)kd_cuda_at(a->scratch, m->at_matrix), (float *)kd_cuda_at(a->saved, m->at_norm), (float *)kd_cuda_at(a->saved, m->at_slope),
                    (int *)kd_cuda_at(a->saved, m->at_nearest), m->n, m->width, m->ld, koleo_span(m)};
    return k;
}

/* A number that is larger for a larger value, and of equal values for the lower index; never 0. index_of gets the index back. */
static __device__ __forceinline__ unsigned long long rank_of(float value, size_t j) {
    unsigned u = __float_as_uint(value + 0.0f); /* -0 becomes 0 */
    u = u & 0x80000000u ? ~u : u | 0x80000000u;
    return (unsigned long long)u << 32 | (0xffffffffu - (unsigned)j);
}

static __device__ __forceinline__ size_t index_of(unsigned long long rank) {
    return 0xffffffffu - (unsigned)rank;
}

static __device__ __forceinline__ unsigned long long warp_most(unsigned long long v) {
    for (int mask = 16; mask > 0; mask >>= 1) {
        unsigned long long o = __shfl_xor_sync(0xffffffffu, v, mask);
        v = o > v ? o : v;
    }
    return v;
}

static __device__ __forceinline__ unsigned long long team_most(const kd_team *t, unsigned long long v, unsigned long long *shared) {
    v = warp_most(v);
    if (t->size == 32)
        return v;
    __syncthreads(); /* of an earlier use of shared */
    if (threadIdx.x % 32 == 0)
        shared[threadIdx.x / 32] = v;
    __syncthreads();
    return warp_most(threadIdx.x % 32 < blockDim.x / 32 ? shared[threadIdx.x % 32] : 0);
}

/* u = y_i - y_j + eps in the group at g, y exactly as the gradient of normalised rows makes it: what the neighbours of a much-named row add up along that row then cancels. */
static __device__ __forceinline__ kd_f8 difference(const koleo_loss_args *a, size_t i, size_t j, size_t g) {
    int aligned = a->width % 8 == 0;
    kd_f8 u = kd_row_load(a->x, 0, i * a->width + g, a->width - g, aligned), v = kd_row_load(a->x, 0, j * a->width + g, a->width - g, aligned);
    float by_i = a->norm[i], by_j = a->norm[j];
    for (int k = 0; k < 8; k++)
        u.v[k] = u.v[k] / by_i - v.v[k] / by_j + (float)KD_OP_KOLEO_EPS;
    return u;
}

/* Where no comparison holds (NaN), any other row serves: the distance is NaN as well. */
static __global__ void __launch_bounds__(KD_TEAM_MOST) nearest_kernel(double *part, koleo_loss_args a) {
    __shared__ double shared[32];
    __shared__ unsigned long long shared_most[32];
    kd_team t = kd_team_here(a.span, shared);
    double total = 0;
    for (size_t i = t.row; i < a.n; i += t.step) {
        unsigned long long most = 0;
        for (size_t j = t.lane; j < a.n; j += t.size) {
            float like = a.like[i * a.ld + j] / a.norm[j];
            if (j != i && like == like)
                most = max(most, rank_of(like, j));
        }
        most = team_most(&t, most, shared_most);
        size_t j = most ? index_of(most) : i == 0;
        double sum = 0;
        kd_team_groups(g, t, a.width) {
            kd_f8 u = difference(&a, i, j, g);
            float squares = 0;
            for (int k = 0; k < 8; k++)
                squares = g + (size_t)k < a.width ? fmaf(u.v[k], u.v[k], squares) : squares;
            sum += (double)squares;
        }
        double length = sqrt(kd_team_sum(&t, sum));
        total += log(length + KD_OP_KOLEO_EPS);
        if (t.lane == 0) {
            a.nearest[i] = (int)j;
            a.slope[i] = length == 0 ? 0.0f : (float)(-1 / ((length + KD_OP_KOLEO_EPS) * length));
        }
    }
    kd_team_finish(part, &t, total);
}

/* A row's gradient: from its own distance, then from those of the rows whose neighbour it is, in order. Products are rounded before they are added: those of two equal rows, whose slopes are
 * huge, then cancel exactly. */
static __global__ void __launch_bounds__(KD_TEAM_MOST) koleo_grad_kernel(float *dy, koleo_loss_args a) {
    kd_team t = kd_team_here(a.width, NULL);
    for (size_t i = t.row; i < a.n; i += t.step)
        kd_team_groups(g, t, a.width) {
            kd_f8 sum = difference(&a, i, (size_t)a.nearest[i], g);
            for (int k = 0; k < 8; k++)
                sum.v[k] = sum.v[k] * a.slope[i];
            for (size_t j = 0; j < a.n; j++) {
                if ((size_t)a.nearest[j] != i)
                    continue;
                kd_f8 u = difference(&a, j, i, g);
                for (int k = 0; k < 8; k++)
                    sum.v[k] = sum.v[k] - u.v[k] * a.slope[j];
            }
            kd_row_store_grad(dy, 0, i * a.width + g, sum, a.width - g, a.width % 8 == 0, 0);
        }
}

static kd_status koleo_forward(kd_cuda *b, kd_op *op, const kd_op_args *a, kd_err *err) {
    const koleo_loss *m = (const koleo_loss *)op->impl;
    koleo_loss_args k = koleo_args_of(m, a);
    double *part = (double *)kd_cuda_at(a->scratch, m->at_part);
    unsigned blocks = (unsigned)kd_loss_blocks(m->n, k.span);
    KD_TRY(row_norms(b, row_norm_args{k.norm, {k.x, NULL}, 1, m->n, m->width, m->n, m->n, KD_OP_KOLEO_EPS, 0}, err));
    KD_TRY(kd_gemm_run(b, m->like, kd_cuda_at(a->scratch, m->at_matrix), k.x, k.x, NULL, kd_cuda_at(a->scratch, m->at_work), err));
    KD_TRY(kd_launch(b, "nearest rows", nearest_kernel, blocks, kd_team_threads(k.span), err, part, k));
    return kd_cuda_loss_total(b, a->y, part, blocks, -1 / (double)m->n, err);
}

static kd_status koleo_backward(kd_cuda *b, kd_op *op, const kd_op_args *a, kd_err *err) {
    const kd_op_desc *d = &op->desc;
    const koleo_loss *m = (const koleo_loss *)op->impl;
    float *dy = (float *)kd_cuda_at(a->scratch, m->at_matrix);
    if (!kd_wants_dx(d))
        return KD_OK;
    KD_TRY(kd_launch(b, "gradient of koleo", koleo_grad_kernel, (unsigned)kd_loss_blocks(m->n, m->width), kd_team_threads(m->width), err, dy, koleo_args_of(m, a)));
    kd_normalize_grad g = {a->dx[0], dy, a->x[0], KD_F32, KD_F32, m->n, m->width, KD_OP_KOLEO_EPS, 1 / (double)m->n, (const float *)a->dy, kd_adds_dx(d)};
    return kd_cuda_normalize_grad(b, &g, err);
}

extern "C" const kd_cuda_kind kd_cuda_koleo = {koleo_create, koleo_destroy, NULL, koleo_forward, koleo_backward};

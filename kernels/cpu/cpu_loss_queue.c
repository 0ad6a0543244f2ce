/* kl_queue. The similarities of both sides' rows with the queue are one product, cut into blocks of queue rows that follow from the shape alone; each block is one thread's, so
 * the bits don't depend on the number of threads. Its gradient is one product of all threads (training only, where a fixed number of threads is enough).
 *
 *     scratch   rows [2N, D]: normalised predictions, then targets;  like [2N, ld]: their similarities;  part [N];  ds [N, D]
 *     saved     difference [N, ld]: q - p                            ld = queue_rows rounded up, so that rows are aligned */
#include "common/base/mem.h"
#include "kernels/cpu/cpu_loss.h"

enum { BLOCK = 256 }; /* queue rows; with 384 values each they fill a usual second-level cache by three quarters */

typedef struct queue_loss {
    kd_cpu_products like; /* of a whole block and, where queue_rows isn't a multiple, of the rest */
    kd_dnn *ds;
    size_t n, width, rows, ld;
    size_t at_rows, at_like, at_part, at_ds, at_work; /* offsets in args->scratch */
} queue_loss;

static void queue_destroy(void *impl) {
    queue_loss *q = impl;
    if (!q)
        return;
    kd_cpu_products_destroy(&q->like);
    kd_dnn_destroy(q->ds);
    kd_free(q);
}

static kd_status create_products(kd_cpu *b, queue_loss *q, const kd_op_desc *d, kd_op_needs *needs, kd_err *err) {
    int64_t width = (int64_t)q->width, rows = (int64_t)q->rows, ld = (int64_t)q->ld, sizes[2] = {BLOCK, rows % BLOCK};
    kd_dnn_matmul_desc list[2];
    int count = 0;
    for (int i = 0; i < 2; i++)
        if (rows >= sizes[i] && sizes[i] > 0)
            list[count++] = (kd_dnn_matmul_desc){.a = kd_dnn_rows(KD_F32, 2 * (int64_t)q->n, width), .b = kd_dnn_transposed(kd_dnn_rows(KD_F32, sizes[i], width)),
                                                 .c = {.dtype = KD_F32, .rank = 2, .dim = {2 * (int64_t)q->n, sizes[i]}, .stride = {ld, 1}}};
    KD_TRY(kd_cpu_products_create(&q->like, b, list, count, d->name, needs, err));
    if (!(d->need_dx & 1))
        return KD_OK;
    kd_dnn_tensor difference = {.dtype = KD_F32, .rank = 2, .dim = {(int64_t)q->n, rows}, .stride = {ld, 1}};
    return kd_dnn_matmul(&q->ds, b->engine, &(kd_dnn_matmul_desc){.a = difference, .b = kd_dnn_rows(KD_F32, rows, width), .c = kd_dnn_rows(KD_F32, (int64_t)q->n, width)}, d->name, err);
}

static kd_status queue_create(kd_cpu *b, kd_op *op, kd_op_needs *needs, kd_err *err) {
    const kd_op_desc *d = &op->desc;
    queue_loss *q = NULL;
    KD_TRY(kd_alloc_array(&q, 1, sizeof *q, err));
    op->impl = q;
    q->n = (size_t)d->x[0].shape[0], q->width = (size_t)d->x[0].shape[1], q->rows = (size_t)d->queue_rows;
    q->ld = kd_cpu_padded(q->rows);
    KD_TRY(create_products(b, q, d, needs, err));
    q->at_rows = kd_cpu_region(&needs->scratch, 2 * q->n * q->width * sizeof(float));
    q->at_like = kd_cpu_region(&needs->scratch, 2 * q->n * q->ld * sizeof(float));
    q->at_part = kd_cpu_region(&needs->scratch, q->n * sizeof(double));
    q->at_ds = kd_cpu_region(&needs->scratch, q->ds ? q->n * q->width * sizeof(float) : 0);
    q->at_work = kd_cpu_region(&needs->scratch, kd_dnn_scratch_bytes(q->ds));
    needs->saved = q->ds ? q->n * q->ld * sizeof(float) : 0;
    return KD_OK;
}

typedef struct queue_ctx {
    const queue_loss *q;
    const kd_op_args *a;
    float *rows, *like;
    double *part;
    float scale;   /* of similarities */
    double factor; /* of gradients */
    int add;
    kd_status *status; /* per slice */
} queue_ctx;

static queue_ctx context(const kd_op *op, const kd_op_args *a) {
    const queue_loss *q = op->impl;
    return (queue_ctx){.q = q, .a = a, .rows = kd_cpu_at(a->scratch, q->at_rows), .like = kd_cpu_at(a->scratch, q->at_like), .part = kd_cpu_at(a->scratch, q->at_part),
                       .scale = 1 / op->desc.temperature, .add = (op->desc.add_dx & 1) != 0};
}

KD_HOT static void rows_range(const void *ctx, int slice, size_t begin, size_t end) {
    const queue_ctx c = *(const queue_ctx *)ctx;
    size_t width = c.q->width;
    (void)slice;
    for (size_t r = begin; r < end; r++) {
        const float *x = r < c.q->n ? (const float *)c.a->x[0] + r * width : (const float *)c.a->x[1] + (r - c.q->n) * width;
        kd_normalize_row(c.rows + r * width, x, width, KD_OP_L2_EPS);
    }
}

static void push_targets(const queue_ctx *c) {
    const queue_loss *q = c->q;
    float *queue = c->a->state[0];
    size_t fresh = q->n < q->rows ? q->n : q->rows;
    memmove(queue + fresh * q->width, queue, (q->rows - fresh) * q->width * sizeof *queue);
    memcpy(queue, c->rows + q->n * q->width, fresh * q->width * sizeof *queue);
}

/* begin, end: blocks of queue rows. */
static void like_range(const void *ctx, int slice, size_t begin, size_t end) {
    const queue_ctx *c = ctx;
    const queue_loss *q = c->q;
    for (size_t i = begin; i < end && c->status[slice] == KD_OK; i++) {
        int which = (i + 1) * BLOCK > q->rows ? q->like.count - 1 : 0;
        c->status[slice] = kd_cpu_product_run(&q->like, slice, which, c->a->scratch, c->rows, c->a->state[0] + i * BLOCK * q->width, c->like + i * BLOCK);
    }
}

KD_HOT static void kl_range(const void *ctx, int slice, size_t begin, size_t end) {
    const queue_ctx c = *(const queue_ctx *)ctx;
    size_t ld = c.q->ld;
    (void)slice;
    for (size_t r = begin; r < end; r++) {
        const float *s = c.like + r * ld, *t = c.like + (c.q->n + r) * ld;
        kd_softmax_row of_s, of_t;
        c.part[r] = kd_kl_row(&of_s, &of_t, s, t, c.q->rows, c.scale);
        if (c.q->ds)
            kd_kl_row_grad((float *)c.a->saved + r * ld, &of_s, &of_t, s, t, c.q->rows, c.scale, 1, 0);
    }
}

static kd_status queue_forward(kd_cpu *b, kd_op *op, const kd_op_args *a, kd_err *err) {
    kd_status status[KD_CPU_MAX_THREADS] = {KD_OK};
    queue_ctx c = context(op, a);
    const queue_loss *q = c.q;
    c.status = status;
    kd_cpu_parallel(b->base.threads, 2 * q->n, q->width + 1, rows_range, &c);
    if (op->desc.train)
        push_targets(&c);
    kd_cpu_products_parallel(&q->like, (q->rows + BLOCK - 1) / BLOCK, like_range, &c);
    for (int i = 0; i < q->like.slices; i++)
        if (status[i] != KD_OK)
            return kd_fail(err, status[i], "oneDNN failed in part %d of %d of the product with a queue of %zu rows", i, q->like.slices, q->rows);
    kd_cpu_parallel(b->base.threads, q->n, q->rows + 1, kl_range, &c);
    *(float *)a->y = (float)(kd_cpu_total(c.part, q->n) / (double)q->n);
    return KD_OK;
}

KD_HOT static void grad_range(const void *ctx, int slice, size_t begin, size_t end) {
    const queue_ctx c = *(const queue_ctx *)ctx;
    size_t width = c.q->width;
    const float *ds = kd_cpu_at(c.a->scratch, c.q->at_ds);
    (void)slice;
    for (size_t r = begin; r < end; r++) {
        float *y = c.rows + r * width;
        double norm = kd_normalize_row(y, (const float *)c.a->x[0] + r * width, width, KD_OP_L2_EPS);
        kd_normalize_row_grad((float *)c.a->dx[0] + r * width, ds + r * width, y, norm, width, KD_OP_L2_EPS, c.factor, c.add);
    }
}

static kd_status queue_backward(kd_cpu *b, kd_op *op, const kd_op_args *a, kd_err *err) {
    queue_ctx c = context(op, a);
    const queue_loss *q = c.q;
    if (!q->ds)
        return KD_OK;
    KD_TRY(kd_dnn_run(q->ds, (void *[KD_DNN_ARGS]){[KD_DNN_SRC] = a->saved, [KD_DNN_WEIGHTS] = a->state[0], [KD_DNN_DST] = kd_cpu_at(a->scratch, q->at_ds),
                                                   [KD_DNN_SCRATCH] = kd_cpu_at(a->scratch, q->at_work)}, err));
    c.factor = (double)*(const float *)a->dy / ((double)q->n * (double)op->desc.temperature);
    kd_cpu_parallel(b->base.threads, q->n, q->width + 1, grad_range, &c);
    return KD_OK;
}

const kd_cpu_kind kd_cpu_kl_queue = {queue_create, queue_destroy, NULL, queue_forward, queue_backward};

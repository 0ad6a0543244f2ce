/* A device with memory of its own, made of the reference backend: work is queued and runs when something waits for it, as late as possible; sequences are recorded and replayed. For what must hold on
 * such a device whatever its kernels are. One at a time; errors of its own kind (work where none may be, a fetch that is begun twice) end the test. */
#ifndef KD_TESTS_UNIT_QUEUED_DEVICE_H
#define KD_TESTS_UNIT_QUEUED_DEVICE_H

#include "tests/unit/unit.h"

#include "kernels/backend.h"

typedef enum qd_kind { QD_PACK, QD_FORWARD, QD_BACKWARD, QD_ZERO, QD_COPY } qd_kind;

typedef struct qd_call {
    qd_kind kind;
    kd_op *op;
    kd_op_args args;
    void *dst;
    const void *src;
    size_t bytes;
    void *owned; /* an upload's bytes */
} qd_call;

typedef struct qd_list {
    qd_call *call;
    size_t count, room;
} qd_list;

struct kd_fetch {
    void *data;
    size_t capacity, number; /* of the queued call that fills it */
    int begun;
};

struct kd_recording {
    qd_list list;
};

static struct {
    const kd_backend_table *host;
    kd_backend_table table;
    qd_list queue, noted;
    size_t ran; /* calls that left the queue so far: the first one in it has this number */
    int recording;
    int fail_at; /* of the calls that are noted, this one fails, from 1; 0: none */
    /* what a test looks at */
    size_t left; /* bytes that the device says are free */
    int queued_ops, uploads, recordings, replays, recordings_alive;
} qd;

static inline void qd_append(qd_list *l, const qd_call *c) {
    if (l->count == l->room) {
        l->room = 2 * l->room + 64;
        l->call = realloc(l->call, l->room * sizeof *l->call);
        assert_non_null(l->call);
    }
    l->call[l->count++] = *c;
}

static inline kd_status qd_run(kd_backend *b, const qd_call *c, kd_err *err) {
    switch (c->kind) {
    case QD_PACK: return qd.host->op_pack(b, c->op, &c->args, err);
    case QD_FORWARD: return qd.host->op_forward(b, c->op, &c->args, err);
    case QD_BACKWARD: return qd.host->op_backward(b, c->op, &c->args, err);
    case QD_ZERO: return qd.host->zero(b, c->dst, c->bytes, err);
    case QD_COPY: memcpy(c->dst, c->src, c->bytes); free(c->owned); return KD_OK;
    }
    return KD_OK;
}

/* Everything up to and with call `last`. */
static inline kd_status qd_reach(kd_backend *b, size_t last, kd_err *err) {
    size_t n = 0;
    kd_status status = KD_OK;
    if (qd.recording)
        fail_msg("the device is waited for while calls are recorded");
    while (n < qd.queue.count && qd.ran + n <= last && status == KD_OK)
        status = qd_run(b, &qd.queue.call[n++], err);
    qd.ran += n;
    qd.queue.count -= n;
    if (qd.queue.count > 0)
        memmove(qd.queue.call, qd.queue.call + n, qd.queue.count * sizeof *qd.queue.call);
    return status;
}

static inline kd_status qd_sync(kd_backend *b, kd_err *err) {
    return qd_reach(b, SIZE_MAX, err);
}

static inline kd_status qd_enqueue(const qd_call *c, kd_err *err) {
    if (!qd.recording) {
        qd_append(&qd.queue, c);
        return KD_OK;
    }
    if (c->kind == QD_COPY)
        fail_msg("a copy while calls are recorded");
    qd_append(&qd.noted, c);
    return qd.fail_at > 0 && (int)qd.noted.count == qd.fail_at ? kd_fail(err, KD_EFAIL, "planted") : KD_OK;
}

static inline kd_status qd_memory(kd_backend *b, size_t *left, size_t *total, kd_err *err) {
    (void)b, (void)err;
    *left = qd.left;
    *total = (size_t)1 << 40;
    return KD_OK;
}
static inline kd_status qd_alloc(kd_backend *b, void **out, size_t bytes, kd_err *err) {
    assert_false(qd.recording);
    return qd.host->alloc(b, out, bytes, err);
}
static inline void qd_release(kd_backend *b, void *p) {
    kd_err err = {0};
    assert_ok(qd_sync(b, &err));
    qd.host->release(b, p);
}
static inline kd_status qd_upload(kd_backend *b, void *dst, const void *src, size_t bytes, kd_err *err) {
    (void)b;
    qd_call c = {.kind = QD_COPY, .dst = dst, .bytes = bytes, .owned = malloc(bytes + 1)};
    assert_non_null(c.owned);
    memcpy(c.owned, src, bytes);
    c.src = c.owned;
    qd.uploads++;
    return qd_enqueue(&c, err);
}
static inline kd_status qd_download(kd_backend *b, void *dst, const void *src, size_t bytes, kd_err *err) {
    KD_TRY(qd_sync(b, err));
    return qd.host->download(b, dst, src, bytes, err);
}
static inline kd_status qd_zero(kd_backend *b, void *dst, size_t bytes, kd_err *err) {
    (void)b;
    return qd_enqueue(&(qd_call){.kind = QD_ZERO, .dst = dst, .bytes = bytes}, err);
}

static inline kd_status qd_fetch_create(kd_backend *b, kd_fetch **out, size_t capacity, kd_err *err) {
    (void)b, (void)err;
    *out = calloc(1, sizeof **out);
    assert_non_null(*out);
    **out = (kd_fetch){.data = malloc(capacity), .capacity = capacity};
    assert_non_null((*out)->data);
    memset((*out)->data, 0xff, capacity);
    return KD_OK;
}
static inline void qd_fetch_destroy(kd_backend *b, kd_fetch *f) {
    kd_err err = {0};
    if (f == NULL)
        return;
    assert_ok(qd_sync(b, &err));
    free(f->data);
    free(f);
}
static inline kd_status qd_fetch_begin(kd_backend *b, kd_fetch *f, const void *src, size_t bytes, kd_err *err) {
    (void)b;
    assert_true(!f->begun && bytes <= f->capacity);
    f->begun = 1;
    f->number = qd.ran + qd.queue.count;
    return qd_enqueue(&(qd_call){.kind = QD_COPY, .dst = f->data, .src = src, .bytes = bytes}, err);
}
static inline kd_status qd_fetch_end(kd_backend *b, kd_fetch *f, const void **data, kd_err *err) {
    assert_true(f->begun);
    f->begun = 0;
    *data = f->data;
    return qd_reach(b, f->number, err);
}

static inline kd_status qd_record_begin(kd_backend *b, kd_err *err) {
    (void)b, (void)err;
    assert_false(qd.recording);
    qd.recording = 1;
    qd.noted.count = 0;
    return KD_OK;
}
static inline kd_status qd_record_end(kd_backend *b, kd_recording **out, kd_err *err) {
    (void)b, (void)err;
    assert_true(qd.recording);
    qd.recording = 0;
    if (out == NULL)
        return KD_OK;
    kd_recording *r = calloc(1, sizeof *r);
    assert_non_null(r);
    r->list = qd.noted;
    qd.noted = (qd_list){0};
    qd.recordings++;
    qd.recordings_alive++;
    *out = r;
    return KD_OK;
}
static inline kd_status qd_replay(kd_backend *b, kd_recording *r, kd_err *err) {
    (void)b;
    qd.replays++;
    for (size_t i = 0; i < r->list.count; i++)
        KD_TRY(qd_enqueue(&r->list.call[i], err));
    return KD_OK;
}
static inline void qd_recording_destroy(kd_backend *b, kd_recording *r) {
    kd_err err = {0};
    if (r == NULL)
        return;
    assert_ok(qd_sync(b, &err));
    free(r->list.call);
    free(r);
    qd.recordings_alive--;
}

static inline void qd_op_destroy(kd_backend *b, kd_op *op) {
    kd_err err = {0};
    assert_ok(qd_sync(b, &err));
    qd.host->op_destroy(b, op);
}
static inline kd_status qd_op(qd_kind kind, kd_op *op, const kd_op_args *args, kd_err *err) {
    qd.queued_ops += !qd.recording;
    return qd_enqueue(&(qd_call){.kind = kind, .op = op, .args = *args}, err);
}
static inline kd_status qd_op_pack(kd_backend *b, kd_op *op, const kd_op_args *args, kd_err *err) {
    (void)b;
    return qd_op(QD_PACK, op, args, err);
}
static inline kd_status qd_op_forward(kd_backend *b, kd_op *op, const kd_op_args *args, kd_err *err) {
    (void)b;
    return qd_op(QD_FORWARD, op, args, err);
}
static inline kd_status qd_op_backward(kd_backend *b, kd_op *op, const kd_op_args *args, kd_err *err) {
    (void)b;
    return qd_op(QD_BACKWARD, op, args, err);
}

/* The rest isn't recorded by anyone: it runs at once, behind what is queued. */
static inline kd_status qd_sum_squares(kd_backend *b, float *out, const float *x, size_t n, kd_err *err) {
    KD_TRY(qd_sync(b, err));
    return qd.host->sum_squares(b, out, x, n, err);
}
static inline kd_status qd_clip_scale(kd_backend *b, float *scale, const float *sumsq, float max_norm, kd_err *err) {
    KD_TRY(qd_sync(b, err));
    return qd.host->clip_scale(b, scale, sumsq, max_norm, err);
}
static inline kd_status qd_adamw(kd_backend *b, float *w, const float *g, float *m, float *v, size_t n, const kd_adamw *h, const float *scale, kd_err *err) {
    KD_TRY(qd_sync(b, err));
    return qd.host->adamw(b, w, g, m, v, n, h, scale, err);
}
static inline kd_status qd_ema(kd_backend *b, float *e, const float *w, size_t n, float decay, kd_err *err) {
    KD_TRY(qd_sync(b, err));
    return qd.host->ema(b, e, w, n, decay, err);
}
static inline kd_status qd_encode(kd_backend *b, uint8_t *out, kd_encode_stats *stats, const float *x, size_t records, const kd_encode_spec *spec, void *scratch, kd_err *err) {
    KD_TRY(qd_sync(b, err));
    return qd.host->encode(b, out, stats, x, records, spec, scratch, err);
}

static inline kd_backend *qd_open(void) {
    kd_err err = {0};
    kd_backend *b;
    assert_ok(kd_backend_open(&b, "ref", 1, &err));
    memset(&qd, 0, sizeof qd);
    qd.host = b->v;
    qd.left = (size_t)1 << 39;
    kd_backend_table t = *b->v;
    t.host_memory = 0;
    t.memory = qd_memory;
    t.alloc = qd_alloc;
    t.release = qd_release;
    t.upload = qd_upload;
    t.download = qd_download;
    t.zero = qd_zero;
    t.sync = qd_sync;
    t.fetch_create = qd_fetch_create;
    t.fetch_destroy = qd_fetch_destroy;
    t.fetch_begin = qd_fetch_begin;
    t.fetch_end = qd_fetch_end;
    t.record_begin = qd_record_begin;
    t.record_end = qd_record_end;
    t.replay = qd_replay;
    t.recording_destroy = qd_recording_destroy;
    t.op_destroy = qd_op_destroy;
    t.op_pack = qd_op_pack;
    t.op_forward = qd_op_forward;
    t.op_backward = qd_op_backward;
    t.sum_squares = qd_sum_squares;
    t.clip_scale = qd_clip_scale;
    t.adamw = qd_adamw;
    t.ema = qd_ema;
    t.encode = qd_encode;
    t.sgd = NULL;
    t.lars = NULL;
    qd.table = t;
    b->v = &qd.table;
    return b;
}

static inline void qd_close(kd_backend *b) {
    kd_err err = {0};
    assert_ok(qd_sync(b, &err));
    assert_int_equal(qd.recordings_alive, 0);
    free(qd.queue.call);
    free(qd.noted.call);
    b->v = qd.host;
    kd_backend_close(b);
}

#endif

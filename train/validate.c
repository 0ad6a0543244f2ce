#include "train/validate.h"

#include <math.h>

#include "common/base/mem.h"
#include "common/base/threads.h"
#include "train/adjoint.h"

/* A target of the samples: CLS, or one of their patch targets. Sums over the set, in double and in the order of the items. */
typedef struct target {
    size_t rows;          /* in a sample; 0 = no student learns it */
    size_t tokens;        /* that they stand for: more than `rows` where only sums over the grid are stored */
    kd_adjoint *adjoint;  /* then, else NULL */
    double *sum, square;  /* of the values of all tokens: per channel; of their squares */
} target;

/* Of one student and one feature. */
typedef struct sums {
    double error2, cosine;
} sums;

enum { CLS = 0, PATCHES = 1, ALL = PATCHES + KD_REPLAY_PATCHES }; /* places in pass.target */

typedef struct pass {
    kd_student *const *students;
    size_t n;
    kd_replay *replay;
    size_t width;
    target target[ALL];
    sums *sum;                       /* n x KD_TARGETS */
    float *pred;                     /* predictions of one batch */
    kd_sample *held;                 /* samples of one batch */
    const kd_val_watch *watch;
} pass;

static const char *const prediction[KD_TARGETS] = {"pred.cls", "pred.patch"};

/* What a student learns of feature f; ALL: nothing. */
static int learns(const kd_student *s, int f) {
    const kd_student_program *p = &s->program[0];
    if (f == KD_FEATURE_CLS)
        return p->view.loss.cls_weight > 0 ? CLS : ALL;
    return p->view.loss.patch_weight > 0 ? PATCHES + p->sample_patch : ALL;
}

static const float *values_of(const kd_sample *s, int at) {
    return at == CLS ? s->cls : s->patch[at - PATCHES];
}

/* Of one sample. The sum of U^T t over its rows is that of t over its tokens. */
static void add_target(target *t, const kd_sample *s, int at, size_t width) {
    const float *v = values_of(s, at);
    for (size_t row = 0; row < t->rows; row++, v += width)
        for (size_t c = 0; c < width; c++) {
            t->sum[c] += (double)v[c];
            t->square += t->adjoint == NULL ? (double)v[c] * (double)v[c] : 0;
        }
    if (t->adjoint != NULL)
        t->square += (double)s->square[at - PATCHES];
}

static void add_prediction(sums *s, size_t rows, size_t width, const float *y, const float *t) {
    for (size_t row = 0; row < rows; row++, y += width, t += width) {
        double yy = 0, tt = 0, yt = 0, e2 = 0;
        for (size_t c = 0; c < width; c++) {
            double a = (double)y[c], b = (double)t[c];
            yy += a * a;
            tt += b * b;
            yt += a * b;
            e2 += (a - b) * (a - b);
        }
        s->error2 += e2;
        s->cosine += yy > 0 && tt > 0 ? yt / sqrt(yy * tt) : 0;
    }
}

/* y on the student's map, given U^T t and |t|^2: |U y - t|^2, and the cosine between U y and t as wholes. */
static void add_upsampled(sums *s, const target *t, size_t width, const float *y, const float *a, double square) {
    double yy = kd_adjoint_upsampled_square(t->adjoint, y, width), ya = 0;
    for (size_t i = 0; i < t->rows * width; i++)
        ya += (double)y[i] * (double)a[i];
    s->error2 += yy - 2 * ya + square;
    s->cosine += yy > 0 && square > 0 ? ya / sqrt(yy * square) : 0;
}

/* Predictions of one student for feature f on the batch that its program has just seen. */
static kd_status add_student(pass *p, size_t k, int f, int count, kd_err *err) {
    int at = learns(p->students[k], f);
    if (at == ALL)
        return KD_OK;
    const target *t = &p->target[at];
    sums *s = &p->sum[k * KD_TARGETS + (size_t)f];
    KD_TRY(kd_exec_download(p->students[k]->infer, prediction[f], count, p->pred, err));
    for (int i = 0; i < count; i++) {
        const float *y = p->pred + (size_t)i * t->rows * p->width, *v = values_of(&p->held[i], at);
        if (t->adjoint != NULL)
            add_upsampled(s, t, p->width, y, v, (double)p->held[i].square[at - PATCHES]);
        else
            add_prediction(s, t->rows, p->width, y, v);
    }
    return KD_OK;
}

static kd_status run_batch(pass *p, size_t first, int count, kd_err *err) {
    for (int at = 0; at < ALL; at++)
        for (int i = 0; i < count && p->target[at].rows > 0; i++)
            add_target(&p->target[at], &p->held[i], at, p->width);
    for (size_t k = 0; k < p->n; k++) {
        kd_student *s = p->students[k];
        for (int i = 0; i < count; i++)
            KD_TRY(kd_student_show(s, i, &p->held[i], err));
        KD_TRY(kd_exec_forward(s->infer, err));
        for (int f = 0; f < KD_TARGETS; f++)
            KD_TRY(add_student(p, k, f, count, err));
        if (p->watch != NULL)
            KD_TRY(p->watch->see(p->watch->ctx, k, s->infer, first, count, err));
    }
    return KD_OK;
}

/* Samples of a batch are held until it has run. */
static kd_status run_all(pass *p, const kd_replay_item *items, size_t count, kd_err *err) {
    int batch = p->students[0]->batch, filled = 0;
    KD_TRY(kd_replay_begin(p->replay, items, count, err));
    for (size_t done = 0; done < count; done++) {
        KD_TRY(kd_replay_next(p->replay, &p->held[filled++], err));
        if (filled < batch && done + 1 < count)
            continue;
        KD_TRY(run_batch(p, done + 1 - (size_t)filled, filled, err));
        while (filled > 0)
            kd_replay_release(p->replay, &p->held[--filled]);
        kd_status stop = kd_stop_requested();
        if (stop != KD_OK)
            return kd_fail(err, stop, "interrupted during validation");
    }
    return KD_OK;
}

static void summarise(const pass *p, kd_val_result *results, size_t count) {
    for (size_t k = 0; k < p->n; k++) {
        kd_val_result *r = &results[k];
        const kd_loss_spec *loss = &p->students[k]->program[0].view.loss;
        *r = (kd_val_result){.agreement = NAN};
        for (int f = 0; f < KD_TARGETS; f++) {
            int at = learns(p->students[k], f);
            if (at == ALL)
                continue;
            const target *t = &p->target[at];
            double tokens = (double)count * (double)t->tokens, values = tokens * (double)p->width, mean2 = 0;
            for (size_t c = 0; c < p->width; c++)
                mean2 += t->sum[c] / tokens * (t->sum[c] / tokens);
            double variance = t->square / values - mean2 / (double)p->width;
            const sums *s = &p->sum[k * KD_TARGETS + (size_t)f];
            r->mse[f] = s->error2 / values;
            r->cosine[f] = s->cosine / (t->adjoint != NULL ? (double)count : tokens);
            r->r2[f] = variance > 0 ? 1 - r->mse[f] / variance : 0; /* a single CLS has no variance */
        }
        r->loss = loss->cls_weight * r->mse[KD_FEATURE_CLS] + loss->patch_weight * r->mse[KD_FEATURE_PATCH];
    }
}

/* The targets that the students learn. */
static kd_status find_targets(pass *p, kd_err *err) {
    for (size_t k = 0; k < p->n; k++)
        for (int f = 0; f < KD_TARGETS; f++) {
            int at = learns(p->students[k], f);
            const kd_loss_spec *loss = &p->students[k]->program[0].view.loss;
            if (at == ALL || p->target[at].rows > 0)
                continue;
            target *t = &p->target[at];
            t->rows = at == CLS ? 1 : kd_target_rows(&loss->target, loss->grid_h, loss->grid_w);
            t->tokens = t->rows;
            KD_TRY(kd_alloc_array(&t->sum, p->width, sizeof(double), err));
            if (at == CLS || loss->target.kind != KD_TARGET_ADJOINT)
                continue;
            t->tokens = (size_t)loss->grid_h * (size_t)loss->grid_w;
            KD_TRY(kd_alloc_array(&t->adjoint, 1, sizeof *t->adjoint, err));
            KD_TRY(kd_adjoint_create(t->adjoint, &loss->target, loss->grid_h, loss->grid_w, err));
        }
    return KD_OK;
}

static kd_status allocate(pass *p, kd_err *err) {
    size_t batch = (size_t)p->students[0]->batch, rows = 1;
    KD_TRY(find_targets(p, err));
    for (int at = 0; at < ALL; at++)
        rows = p->target[at].rows > rows ? p->target[at].rows : rows;
    KD_TRY(kd_alloc_array(&p->sum, p->n * KD_TARGETS, sizeof(sums), err));
    KD_TRY(kd_alloc_array(&p->held, batch, sizeof(kd_sample), err));
    return kd_alloc_array(&p->pred, batch * rows, p->width * sizeof(float), err);
}

static void release(pass *p) {
    for (int at = 0; at < ALL; at++) {
        target *t = &p->target[at];
        if (t->adjoint != NULL)
            kd_adjoint_free(t->adjoint);
        kd_free(t->adjoint);
        kd_free(t->sum);
    }
    kd_free(p->sum);
    kd_free(p->held);
    kd_free(p->pred);
}

kd_status kd_validate(kd_val_result *results, kd_student *const *students, size_t n, kd_replay *replay, const kd_replay_item *items, size_t count, const kd_val_watch *watch,
                      kd_err *err) {
    pass p = {.students = students, .n = n, .replay = replay, .watch = watch, .width = (size_t)students[0]->program[0].view.loss.width};
    KD_ASSERT(n > 0 && count > 0);
    kd_status status = allocate(&p, err);
    if (status == KD_OK)
        status = run_all(&p, items, count, err);
    kd_replay_end(replay);
    if (status == KD_OK)
        summarise(&p, results, count);
    release(&p);
    return status;
}

#include "train/validate.h"

#include <math.h>
#include <stdio.h>

#include "common/base/mem.h"
#include "common/base/threads.h"
#include "train/adjoint.h"

/* A target of the samples that some student is measured on. Sums over the set, in double and in the order of the items. */
typedef struct target {
    size_t rows;         /* in a sample; 0 = nobody is measured on it */
    size_t tokens;       /* that they stand for: more than `rows` where only sums over the grid are stored */
    kd_adjoint *adjoint; /* then, else NULL */
    double *sum, square; /* of the values of all tokens: per channel; of their squares */
} target;

/* What a student is measured on for one feature. */
typedef struct measure {
    int pair;      /* of its loss; -1 = nothing */
    int at;        /* which of the samples' targets */
    int regresses; /* R2 means something */
    const float *mean; /* to subtract before the cosine; NULL: the values are centred */
    double error2, cosine;
} measure;

typedef struct pass {
    kd_student *const *students;
    size_t n;
    kd_replay *replay;
    size_t width;
    target target[KD_REPLAY_TARGETS];
    measure *measure;     /* n x KD_TARGETS */
    const kd_val_watch *watch;
    double *term;         /* n x KD_MAX_TERMS: sums over batches */
    float *pred;          /* predictions of one batch */
    kd_sample *held;      /* samples of one batch */
    kd_replay_item *items; /* whole batches */
    size_t count, padded; /* items asked for, items run */
} pass;

static size_t batches(const pass *p) {
    return p->padded / (size_t)p->students[0]->batch;
}

/* ---- sums ---- */

/* Of one sample. The sum of U^T t over its rows is that of t over its tokens. */
static void add_target(target *t, const float *v, double square, size_t width) {
    for (size_t row = 0; row < t->rows; row++, v += width)
        for (size_t c = 0; c < width; c++) {
            t->sum[c] += (double)v[c];
            t->square += t->adjoint == NULL ? (double)v[c] * (double)v[c] : 0;
        }
    if (t->adjoint != NULL)
        t->square += square;
}

static double length(const float *v, size_t width) {
    double sum = 0;
    for (size_t c = 0; c < width; c++)
        sum += (double)v[c] * (double)v[c];
    return sqrt(sum);
}

/* Token by token. */
static void add_prediction(measure *m, size_t rows, size_t width, const float *y, const float *t) {
    for (size_t row = 0; row < rows; row++, y += width, t += width) {
        double own = length(y, width), scale = m->regresses ? 1 : own > 0 ? length(t, width) / own : 0, yy = 0, tt = 0, yt = 0;
        for (size_t c = 0; c < width; c++) {
            double centre = m->mean != NULL ? (double)m->mean[c] : 0, error = (double)y[c] - (double)t[c];
            double a = scale * (double)y[c] - centre, b = (double)t[c] - centre;
            yy += a * a;
            tt += b * b;
            yt += a * b;
            m->error2 += error * error;
        }
        m->cosine += yy > 0 && tt > 0 ? yt / sqrt(yy * tt) : 0;
    }
}

/* y on the student's map, given U^T t and |t|^2: |U y - t|^2, and the cosine between U y and t as wholes. */
static void add_upsampled(measure *m, const target *t, size_t width, const float *y, const float *a, double square) {
    double yy = kd_adjoint_upsampled_square(t->adjoint, y, width), ya = 0;
    for (size_t i = 0; i < t->rows * width; i++)
        ya += (double)y[i] * (double)a[i];
    m->error2 += yy - 2 * ya + square;
    m->cosine += yy > 0 && square > 0 ? ya / sqrt(yy * square) : 0;
}

/* ---- batches ---- */

/* Predictions of one student for one feature on the batch that its program has just seen. */
static kd_status add_measure(pass *p, const kd_student *s, measure *m, int real, kd_err *err) {
    char output[2 * KD_TERM_NAME];
    if (m->pair < 0)
        return KD_OK;
    const target *t = &p->target[m->at];
    snprintf(output, sizeof output, "pred.%s", s->loss.pair[m->pair].name);
    KD_TRY(kd_exec_download(s->infer, output, real, p->pred, err));
    for (int i = 0; i < real; i++) {
        const float *y = p->pred + (size_t)i * t->rows * p->width, *v = p->held[i].target[m->at];
        if (t->adjoint != NULL)
            add_upsampled(m, t, p->width, y, v, (double)p->held[i].square[m->at]);
        else
            add_prediction(m, t->rows, p->width, y, v);
    }
    return KD_OK;
}

static kd_status add_terms(const kd_student *s, double *term, kd_err *err) {
    char output[2 * KD_TERM_NAME];
    for (int i = 0; i < s->loss.terms; i++) {
        float value;
        snprintf(output, sizeof output, "loss.%s", s->loss.term[i].name);
        KD_TRY(kd_exec_download(s->infer, output, 1, &value, err));
        term[i] += (double)value;
    }
    return KD_OK;
}

/* Items from `first` on. The first `real` of the held samples are measured; all are in the losses. */
static kd_status run_batch(pass *p, size_t first, int batch, int real, kd_err *err) {
    for (int at = 0; at < KD_REPLAY_TARGETS; at++)
        for (int i = 0; i < real && p->target[at].rows > 0; i++)
            add_target(&p->target[at], p->held[i].target[at], (double)p->held[i].square[at], p->width);
    for (size_t k = 0; k < p->n; k++) {
        kd_student *s = p->students[k];
        for (int i = 0; i < batch; i++)
            KD_TRY(kd_student_show(s, i, &p->held[i], err));
        KD_TRY(kd_exec_forward(s->infer, err));
        KD_TRY(add_terms(s, &p->term[k * KD_MAX_TERMS], err));
        for (int f = 0; f < KD_TARGETS; f++)
            KD_TRY(add_measure(p, s, &p->measure[k * KD_TARGETS + (size_t)f], real, err));
        if (p->watch != NULL)
            KD_TRY(p->watch->see(p->watch->ctx, k, s->infer, first, real, err));
    }
    return KD_OK;
}

/* Samples of a batch are held until it has run. */
static kd_status run_all(pass *p, kd_err *err) {
    int batch = p->students[0]->batch, filled = 0;
    KD_TRY(kd_replay_begin(p->replay, p->items, p->padded, err));
    for (size_t done = 1; done <= p->padded; done++) {
        KD_TRY(kd_replay_next(p->replay, &p->held[filled++], err));
        if (filled < batch)
            continue;
        KD_TRY(run_batch(p, done - (size_t)batch, batch, done > p->count ? batch - (int)(done - p->count) : batch, err));
        while (filled > 0)
            kd_replay_release(p->replay, &p->held[--filled]);
        kd_status stop = kd_stop_requested();
        if (stop != KD_OK)
            return kd_fail(err, stop, "interrupted during validation");
    }
    return KD_OK;
}

static void summarise(const pass *p, kd_val_result *results) {
    for (size_t k = 0; k < p->n; k++) {
        kd_val_result *r = &results[k];
        const kd_loss *loss = &p->students[k]->loss;
        *r = (kd_val_result){.agreement = NAN};
        for (int i = 0; i < loss->terms; i++) {
            r->term[i] = p->term[k * KD_MAX_TERMS + (size_t)i] / (double)batches(p);
            r->loss += loss->term[i].weight * r->term[i];
        }
        for (int f = 0; f < KD_TARGETS; f++) {
            const measure *m = &p->measure[k * KD_TARGETS + (size_t)f];
            r->r2[f] = r->cosine[f] = NAN;
            if (m->pair < 0)
                continue;
            const target *t = &p->target[m->at];
            double tokens = (double)p->count * (double)t->tokens, values = tokens * (double)p->width, mean2 = 0;
            for (size_t c = 0; c < p->width; c++)
                mean2 += t->sum[c] / tokens * (t->sum[c] / tokens);
            double variance = t->square / values - mean2 / (double)p->width;
            if (m->regresses)
                r->r2[f] = variance > 0 ? 1 - m->error2 / values / variance : 0; /* a single CLS has no variance */
            if (t->adjoint == NULL || m->mean == NULL)
                r->cosine[f] = m->cosine / (t->adjoint != NULL ? (double)p->count : tokens);
        }
    }
}

/* ---- what is measured ---- */

static kd_status find_target(pass *p, const kd_student *s, const measure *m, kd_err *err) {
    const kd_pair_target *of = &s->program[0].target[m->pair];
    target *t = &p->target[m->at];
    if (t->rows > 0)
        return KD_OK;
    int grid = kd_pair_is_grid(&s->loss.pair[m->pair]);
    t->rows = t->tokens = grid ? kd_target_rows(&of->form, of->grid_h, of->grid_w) : 1;
    KD_TRY(kd_alloc_array(&t->sum, p->width, sizeof(double), err));
    if (!grid || of->form.kind != KD_TARGET_ADJOINT)
        return KD_OK;
    t->tokens = (size_t)of->grid_h * (size_t)of->grid_w;
    KD_TRY(kd_alloc_array(&t->adjoint, 1, sizeof *t->adjoint, err));
    return kd_adjoint_create(t->adjoint, &of->form, of->grid_h, of->grid_w, err);
}

static kd_status find_measures(pass *p, kd_err *err) {
    for (size_t k = 0; k < p->n; k++)
        for (int f = 0; f < KD_TARGETS; f++) {
            const kd_student *s = p->students[k];
            measure *m = &p->measure[k * KD_TARGETS + (size_t)f];
            m->pair = kd_loss_representative(&s->loss, (kd_feature)f, &m->regresses);
            if (m->pair < 0)
                continue;
            m->at = s->program[0].sample[m->pair];
            m->mean = kd_replay_target_at(p->replay, m->at)->raw ? kd_replay_target_at(p->replay, m->at)->mean : NULL;
            KD_TRY(find_target(p, s, m, err));
        }
    return KD_OK;
}

static kd_status allocate(pass *p, const kd_replay_item *items, kd_err *err) {
    size_t batch = (size_t)p->students[0]->batch, rows = 1;
    KD_TRY(kd_alloc_array(&p->measure, p->n * KD_TARGETS, sizeof(measure), err));
    KD_TRY(kd_alloc_array(&p->term, p->n * KD_MAX_TERMS, sizeof(double), err));
    KD_TRY(find_measures(p, err));
    for (int at = 0; at < KD_REPLAY_TARGETS; at++)
        rows = p->target[at].rows > rows ? p->target[at].rows : rows;
    p->padded = (p->count + batch - 1) / batch * batch;
    KD_TRY(kd_alloc_array(&p->items, p->padded, sizeof *p->items, err));
    for (size_t i = 0; i < p->padded; i++)
        p->items[i] = items[i % p->count];
    KD_TRY(kd_alloc_array(&p->held, batch, sizeof(kd_sample), err));
    return kd_alloc_array(&p->pred, batch * rows, p->width * sizeof(float), err);
}

static void release(pass *p) {
    for (int at = 0; at < KD_REPLAY_TARGETS; at++) {
        target *t = &p->target[at];
        if (t->adjoint != NULL)
            kd_adjoint_free(t->adjoint);
        kd_free(t->adjoint);
        kd_free(t->sum);
    }
    kd_free(p->measure);
    kd_free(p->term);
    kd_free(p->held);
    kd_free(p->items);
    kd_free(p->pred);
}

kd_status kd_validate(kd_val_result *results, kd_student *const *students, size_t n, kd_replay *replay, const kd_replay_item *items, size_t count, const kd_val_watch *watch,
                      kd_err *err) {
    pass p = {.students = students, .n = n, .replay = replay, .watch = watch, .width = (size_t)students[0]->program[0].view.width, .count = count};
    KD_ASSERT(n > 0 && count > 0);
    kd_status status = allocate(&p, items, err);
    if (status == KD_OK)
        status = run_all(&p, err);
    kd_replay_end(replay);
    if (status == KD_OK)
        summarise(&p, results);
    release(&p);
    return status;
}

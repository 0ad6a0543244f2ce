#include "train/validate.h"

#include <math.h>

#include "common/base/mem.h"
#include "common/base/threads.h"

/* Sums over a set, of one feature. Everything in double and in the order of the items. */
typedef struct sums {
    double error2, cosine; /* of one student */
} sums;

typedef struct pass {
    kd_student *const *students;
    size_t n;
    kd_replay *replay;
    size_t rows[KD_TARGETS], width; /* tokens per view; 0 = the feature isn't trained */
    double *target_sum[KD_TARGETS]; /* per channel */
    double target2[KD_TARGETS];
    sums *sum;                       /* n x KD_TARGETS */
    float *pred;                     /* predictions of one batch */
    kd_sample *held;                 /* samples of one batch */
} pass;

static const char *const prediction[KD_TARGETS] = {"pred.cls", "pred.patch"};

static const float *target_of(const kd_sample *s, int f) {
    return f == KD_FEATURE_CLS ? s->cls : s->patch[0];
}

static void add_target(pass *p, int f, const float *t) {
    for (size_t row = 0; row < p->rows[f]; row++, t += p->width)
        for (size_t c = 0; c < p->width; c++) {
            p->target_sum[f][c] += (double)t[c];
            p->target2[f] += (double)t[c] * (double)t[c];
        }
}

static void add_prediction(const pass *p, sums *s, int f, const float *y, const float *t) {
    for (size_t row = 0; row < p->rows[f]; row++, y += p->width, t += p->width) {
        double yy = 0, tt = 0, yt = 0, e2 = 0;
        for (size_t c = 0; c < p->width; c++) {
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

static kd_status run_batch(pass *p, int count, kd_err *err) {
    for (int f = 0; f < KD_TARGETS; f++)
        for (int i = 0; i < count && p->rows[f] > 0; i++)
            add_target(p, f, target_of(&p->held[i], f));
    for (size_t k = 0; k < p->n; k++) {
        kd_student *s = p->students[k];
        for (int i = 0; i < count; i++)
            KD_TRY(kd_student_show(s, i, &p->held[i], err));
        KD_TRY(kd_exec_forward(s->infer, err));
        for (int f = 0; f < KD_TARGETS; f++) {
            if (p->rows[f] == 0)
                continue;
            KD_TRY(kd_exec_download(s->infer, prediction[f], count, p->pred, err));
            for (int i = 0; i < count; i++)
                add_prediction(p, &p->sum[k * KD_TARGETS + (size_t)f], f, p->pred + (size_t)i * p->rows[f] * p->width, target_of(&p->held[i], f));
        }
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
        KD_TRY(run_batch(p, filled, err));
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
        *r = (kd_val_result){0};
        for (int f = 0; f < KD_TARGETS; f++) {
            if (p->rows[f] == 0)
                continue;
            double tokens = (double)count * (double)p->rows[f], values = tokens * (double)p->width, mean2 = 0;
            for (size_t c = 0; c < p->width; c++)
                mean2 += p->target_sum[f][c] / tokens * (p->target_sum[f][c] / tokens);
            double variance = p->target2[f] / values - mean2 / (double)p->width;
            const sums *s = &p->sum[k * KD_TARGETS + (size_t)f];
            r->mse[f] = s->error2 / values;
            r->cosine[f] = s->cosine / tokens;
            r->r2[f] = variance > 0 ? 1 - r->mse[f] / variance : 0; /* a single CLS has no variance */
        }
        r->loss = loss->cls_weight * r->mse[KD_FEATURE_CLS] + loss->patch_weight * r->mse[KD_FEATURE_PATCH];
    }
}

static kd_status allocate(pass *p, kd_err *err) {
    size_t batch = (size_t)p->students[0]->batch, rows = p->rows[KD_FEATURE_PATCH] > 0 ? p->rows[KD_FEATURE_PATCH] : 1;
    for (int f = 0; f < KD_TARGETS; f++)
        KD_TRY(kd_alloc_array(&p->target_sum[f], p->width, sizeof(double), err));
    KD_TRY(kd_alloc_array(&p->sum, p->n * KD_TARGETS, sizeof(sums), err));
    KD_TRY(kd_alloc_array(&p->held, batch, sizeof(kd_sample), err));
    return kd_alloc_array(&p->pred, batch * rows, p->width * sizeof(float), err);
}

kd_status kd_validate(kd_val_result *results, kd_student *const *students, size_t n, kd_replay *replay, const kd_replay_item *items, size_t count, kd_err *err) {
    const kd_loss_spec *loss = &students[0]->program[0].view.loss;
    pass p = {.students = students, .n = n, .replay = replay, .width = (size_t)loss->width};
    KD_ASSERT(n > 0 && count > 0);
    p.rows[KD_FEATURE_CLS] = loss->cls_weight > 0;
    p.rows[KD_FEATURE_PATCH] = loss->patch_weight > 0 ? (size_t)loss->grid_h * (size_t)loss->grid_w : 0;
    kd_status status = allocate(&p, err);
    if (status == KD_OK)
        status = run_all(&p, items, count, err);
    kd_replay_end(replay);
    if (status == KD_OK)
        summarise(&p, results, count);
    for (int f = 0; f < KD_TARGETS; f++)
        kd_free(p.target_sum[f]);
    kd_free(p.sum);
    kd_free(p.held);
    kd_free(p.pred);
    return status;
}

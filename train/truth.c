#include "train/truth.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "common/base/log.h"
#include "common/base/mem.h"
#include "common/base/progress.h"
#include "kernels/nn/inspect.h"
#include "train/batch.h"
#include "train/step.h"

enum { WARM_UP_STEPS = 2, PROFILED_STEPS = 5, OVERFIT_LINES = 20 };
static const double F32_TOLERANCE = 1e-4, BF16_TOLERANCE = 5e-2, NOISE = 1e-6, EXPECTED_FALL = 10;

int kd_truth_wanted(const kd_train_config *c) {
    return c->compare_backends || c->profile || c->overfit_batch > 0;
}

/* ---- the first batch ---- */

/* What the first step of the run shows, into all of `students`. */
static kd_status put_first_batch(const kd_setup *s, kd_student *const *students, size_t count, kd_err *err) {
    kd_batches batches = {0};
    kd_status status = kd_batches_open(&batches, s, NULL, err);
    if (status == KD_OK)
        status = kd_batches_begin(&batches, 0, 1, err);
    if (status == KD_OK) {
        status = kd_batches_put(&batches, students, count, err);
        kd_batches_end(&batches);
    }
    kd_batches_close(&batches);
    return status;
}

/* ---- two backends ---- */

typedef struct entry {
    char *name;
    double relative, norm; /* L2 error over the reference's norm; that norm */
    size_t nonfinite;
    int parameter_gradient;
} entry;

typedef struct entries {
    entry *list;
    size_t count, room;
    kd_arena *names;
} entries;

static double norm_of(const kd_tensor *t) {
    size_t n = kd_tensor_numel(t), size = kd_dtype_size(t->dtype);
    double sum = 0;
    for (size_t i = 0; i < n; i++) {
        float x;
        kd_convert_to_f32(&x, (const char *)t->data + i * size, t->dtype, 1);
        sum += (double)x * (double)x;
    }
    return sqrt(sum);
}

static kd_status note(void *ctx, const kd_exec_pair *pair, kd_err *err) {
    entries *e = ctx;
    if (e->count == e->room) {
        size_t room = e->room > 0 ? 2 * e->room : 256;
        entry *more = kd_realloc(e->list, room * sizeof *more);
        if (more == NULL)
            return kd_fail(err, KD_EFAIL, "out of memory for %zu comparisons", room);
        e->list = more;
        e->room = room;
    }
    kd_comparison c = kd_compare(&pair->got, &pair->want, (kd_tolerance){0});
    entry *x = &e->list[e->count++];
    *x = (entry){kd_arena_strdup(e->names, pair->got.name), c.rel_l2, norm_of(&pair->want), c.nonfinite, pair->parameter_gradient};
    return x->name != NULL ? KD_OK : kd_fail(err, KD_EFAIL, "out of memory for %zu comparisons", e->count);
}

static double gradient_norm(const entries *e) {
    double sum = 0;
    for (size_t i = 0; i < e->count; i++)
        if (e->list[i].parameter_gradient)
            sum += e->list[i].norm * e->list[i].norm;
    return sqrt(sum);
}

static kd_status report_pairs(const kd_setup *s, const kd_student *t, const entries *e, kd_err *err) {
    double tolerance = strcmp(s->config->precision, "bf16") == 0 ? BF16_TOLERANCE : F32_TOLERANCE, whole = gradient_norm(e);
    const entry *worst = NULL, *first = NULL;
    for (size_t i = 0; i < e->count; i++) {
        const entry *x = &e->list[i];
        int noise = x->parameter_gradient && x->norm <= NOISE * whole, good = x->nonfinite == 0 && x->relative <= tolerance;
        if (!s->config->json)
            printf("%10.2e  %s%s\n", x->relative, x->name, x->nonfinite > 0 ? "  NOT FINITE" : noise ? "  (rounding: its norm is below 1e-6 of the whole gradient's)" : good ? "" : "  BEYOND");
        if (noise && x->nonfinite == 0)
            continue;
        if (worst == NULL || !(x->relative <= worst->relative))
            worst = x;
        if (!good && first == NULL)
            first = x;
    }
    KD_ASSERT(worst != NULL);
    if (s->config->json) {
        json_t *line = json_pack("{s:s, s:s, s:s, s:I, s:f, s:s, s:f, s:s*}", "type", "result", "check", "compare-backends", "student", t->name, "tensors", (json_int_t)e->count, "worst",
                                 isfinite(worst->relative) ? worst->relative : -1.0, "worst_tensor", worst->name, "tolerance", tolerance, "first_beyond", first != NULL ? first->name : NULL);
        kd_json_line(line);
        json_decref(line);
    } else
        printf("%s: %zu tensors; largest relative L2 error %.2e (%s); first beyond %.0e: %s\n", t->name, e->count, worst->relative, worst->name, tolerance, first != NULL ? first->name : "none");
    if (first != NULL)
        return kd_fail(err, KD_EFAIL, "%s: %s on %s differs from the reference backend by %.2e, beyond %.0e; what comes after it in the list follows from it", t->name, first->name,
                       s->backend->v->name, first->relative, tolerance);
    return KD_OK;
}

static kd_status compare_student(const kd_setup *s, size_t i, kd_backend *ref, kd_err *err) {
    kd_student *pair[2] = {s->students[i], NULL};
    entries e = {.names = kd_arena_create()};
    kd_status status = e.names != NULL ? kd_setup_create_student(&pair[1], s, i, ref, err) : kd_fail(err, KD_EFAIL, "out of memory");
    for (int k = 0; k < pair[0]->programs && status == KD_OK; k++)
        memcpy(pair[1]->program[k].sample, pair[0]->program[k].sample, sizeof pair[1]->program[k].sample);
    if (status == KD_OK)
        status = put_first_batch(s, pair, 2, err);
    for (int k = 0; k < pair[0]->programs && status == KD_OK; k++)
        status = kd_exec_compare(pair[0]->program[k].train, pair[1]->program[k].train, note, &e, err);
    if (status == KD_OK)
        status = report_pairs(s, pair[0], &e, err);
    kd_student_destroy(pair[1]);
    kd_free(e.list);
    kd_arena_destroy(e.names);
    return status;
}

static kd_status compare_backends(const kd_setup *s, kd_err *err) {
    kd_backend *ref;
    if (strcmp(s->backend->v->name, "ref") == 0)
        return kd_fail(err, KD_EUSAGE, "--compare-backends compares --device with the reference backend, and --device is that; give cpu or cuda");
    KD_TRY(kd_backend_open(&ref, "ref", s->threads, err));
    kd_status status = KD_OK;
    for (size_t i = 0; i < s->count && status == KD_OK; i++)
        status = compare_student(s, i, ref, err);
    kd_backend_close(ref);
    return status;
}

/* ---- time ---- */

static kd_status profile_student(const kd_setup *s, kd_student *t, kd_err *err) {
    kd_step_result x;
    KD_TRY(put_first_batch(s, &t, 1, err));
    for (int i = 0; i < WARM_UP_STEPS; i++)
        KD_TRY(kd_step_run(t, t->hyper.lr, t->hyper.clip, &x, err));
    double begin = kd_now();
    for (int i = 0; i < PROFILED_STEPS; i++)
        KD_TRY(kd_step_run(t, t->hyper.lr, t->hyper.clip, &x, err));
    double plain = (kd_now() - begin) / PROFILED_STEPS;
    for (int k = 0; k < t->programs; k++)
        kd_exec_profile(t->program[k].train, 1);
    for (int i = 0; i < PROFILED_STEPS; i++)
        KD_TRY(kd_step_run(t, t->hyper.lr, t->hyper.clip, &x, err));
    for (int k = 0; k < t->programs; k++) {
        if (!s->config->json)
            printf("%s%s:\n", t->name, k > 0 ? ", next recipe" : "");
        KD_TRY(kd_exec_print_profile(t->program[k].train, s->config->json ? stderr : stdout, err));
        kd_exec_profile(t->program[k].train, 0);
    }
    if (s->config->json) {
        json_t *line = json_pack("{s:s, s:s, s:s, s:f}", "type", "result", "check", "profile", "student", t->name, "step_ms", plain * 1e3);
        kd_json_line(line);
        json_decref(line);
    } else
        printf("%10.3f ms a step without the clock: forward, backward, clipping and optimizer, not the data; %.1f images/s\n", plain * 1e3, (double)s->config->batch_size / plain);
    return KD_OK;
}

/* ---- one batch ---- */

static kd_status overfit_student(const kd_setup *s, kd_student *t, kd_err *err) {
    int64_t steps = s->config->overfit_batch, warm_up = steps / 10, every = steps / OVERFIT_LINES > 0 ? steps / OVERFIT_LINES : 1;
    double first = 0, last = 0;
    KD_TRY(put_first_batch(s, &t, 1, err));
    for (int64_t i = 0; i < steps; i++) {
        kd_step_result x;
        KD_TRY(kd_step_run(t, i < warm_up ? t->hyper.lr * (double)(i + 1) / (double)warm_up : t->hyper.lr, t->hyper.clip, &x, err));
        first = i == 0 ? x.loss : first;
        last = x.loss;
        if (!s->config->json && ((i + 1) % every == 0 || i == 0))
            printf("%s: step %" PRId64 ", loss %.6g\n", t->name, i + 1, x.loss);
    }
    int good = last * EXPECTED_FALL <= first;
    if (s->config->json) {
        json_t *line = json_pack("{s:s, s:s, s:s, s:I, s:f, s:f, s:b}", "type", "result", "check", "overfit-batch", "student", t->name, "steps", (json_int_t)steps, "first", first, "last", last,
                                 "learned", good);
        kd_json_line(line);
        json_decref(line);
    } else if (good)
        printf("%s: can learn: the loss on one batch fell from %.4g to %.4g (%.1f-fold) in %" PRId64 " steps\n", t->name, first, last, first / last, steps);
    if (!good)
        return kd_fail(err, KD_EFAIL, "%s: the loss on one batch went from %.4g to %.4g (%.1f-fold) in %" PRId64 " steps, and a tenth is expected of a student that can learn; give more steps, another --lr, a "
                       "batch of 8 or more, or --patch-weight 0 (a map that is coarser than the teacher's grid can't reproduce it) before doubting weights and wiring", t->name, first, last, first / last, steps);
    return KD_OK;
}

/* ---- all ---- */

kd_status kd_truth_run(kd_setup *s, kd_err *err) {
    const kd_train_config *c = s->config;
    if (c->compare_backends)
        KD_TRY(compare_backends(s, err));
    for (size_t i = 0; i < s->count && c->profile; i++)
        KD_TRY(profile_student(s, s->students[i], err));
    for (size_t i = 0; i < s->count && c->overfit_batch > 0; i++)
        KD_TRY(overfit_student(s, s->students[i], err));
    return KD_OK;
}

kd_status kd_truth_watch(kd_setup *s, kd_err *err) {
    for (size_t i = 0; i < s->count && s->config->check_finite; i++) {
        kd_student *t = s->students[i];
        KD_TRY(kd_exec_check_finite(t->infer, 1, err));
        for (int k = 0; k < t->programs; k++)
            KD_TRY(kd_exec_check_finite(t->program[k].train, 1, err));
    }
    return KD_OK;
}

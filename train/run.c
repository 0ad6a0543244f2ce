#include "train/run.h"

#include <math.h>
#include <string.h>

#include "common/base/io.h"
#include "common/base/log.h"
#include "common/base/progress.h"
#include "common/base/rng.h"
#include "common/base/threads.h"
#include "train/export.h"
#include "train/save.h"
#include "train/step.h"
#include "train/validate.h"

typedef struct run {
    kd_setup setup;
    kd_save save;
    int64_t step, validated;             /* kd_position */
    kd_metrics *metrics;
    kd_progress *progress;
    double begun;                        /* time */
    double step_seconds;                 /* that the last step took; 0 before the first */
    kd_step_result *results;             /* of the step, by student */
    double logged_at, logged_wait;       /* at the last line of metrics */
    int64_t logged_step;
    kd_replay_item *items[KD_MAX_GROUPS]; /* of the epoch's remaining steps */
    uint32_t *order;
} run;

/* ---- metrics ---- */

/* prefix_TERM of every term: values[i] / n. */
static void put_terms(json_t *line, const char *prefix, const kd_loss *loss, const double *values, double n) {
    char key[2 * KD_TERM_NAME];
    for (int i = 0; i < loss->terms && line != NULL; i++) {
        snprintf(key, sizeof key, "%s_%s", prefix, loss->term[i].name);
        json_object_set_new(line, key, json_real(values[i] / n));
    }
}

static kd_status log_step(run *r, const kd_student *s, const kd_step_result *x, double lr, kd_err *err) {
    const kd_setup *u = &r->setup;
    double seconds = kd_now() - r->logged_at, wait = kd_groups_wait_seconds(&u->groups) - r->logged_wait;
    double images = (double)((r->step + 1 - r->logged_step) * u->step_images);
    json_t *line = json_pack("{s:I, s:I, s:s, s:f}", "step", (json_int_t)(r->step + 1), "epoch", (json_int_t)(r->step / u->epoch_steps + 1), "student", s->name, "loss", x->loss);
    put_terms(line, "loss", &s->loss, x->term, 1);
    for (int k = 0; k < s->programs && s->programs > 1 && line != NULL; k++) {
        char key[24];
        snprintf(key, sizeof key, "loss_recipe_%d", k + 1);
        json_object_set_new(line, key, json_real(x->group[k]));
    }
    json_t *rest = json_pack("{s:f, s:f, s:f, s:f}", "lr", lr, "grad_norm", x->grad_norm, "images_per_s", seconds > 0 ? images / seconds : 0.0, "data_wait",
                             seconds > 0 ? wait / seconds : 0.0);
    if (line != NULL)
        json_object_update(line, rest);
    json_decref(rest);
    return kd_metrics_write(r->metrics, line, err);
}

static void put_validation(json_t *line, const char *prefix, const kd_val_result *v, const kd_loss *loss) {
    static const char *const name[KD_TARGETS] = {"cls", "patch"};
    char key[64];
    snprintf(key, sizeof key, "%s_loss", prefix);
    json_object_set_new(line, key, json_real(v->loss)); /* json_real refuses NaN; the key is then absent */
    put_terms(line, key, loss, v->term, 1);
    for (int f = 0; f < KD_TARGETS; f++) {
        snprintf(key, sizeof key, "%s_r2_%s", prefix, name[f]);
        json_object_set_new(line, key, json_real(v->r2[f]));
        snprintf(key, sizeof key, "%s_cos_%s", prefix, name[f]);
        json_object_set_new(line, key, json_real(v->cosine[f]));
    }
}

/* "R2 cls 0.512 patch 0.401, cos cls 0.7 ..": what means something for the loss. */
static const char *quality_text(const kd_val_result *v, char *buf, size_t cap) {
    static const char *const name[KD_TARGETS] = {"cls", "patch"};
    size_t used = 0;
    buf[0] = '\0';
    for (int kind = 0; kind < 2; kind++) {
        const double *value = kind == 0 ? v->r2 : v->cosine;
        int said = 0;
        for (int f = 0; f < KD_TARGETS && used < cap; f++)
            if (!isnan(value[f]))
                used += (size_t)snprintf(buf + used, cap - used, "%s%s %.3f", said++ > 0 ? " " : kind == 0 ? ", R2 " : ", cos ", name[f], value[f]);
    }
    return buf;
}

static kd_status log_epoch(run *r, const kd_student *s, const kd_val_result *held, const kd_val_result *seen, int best, kd_err *err) {
    double n = s->summed > 0 ? (double)s->summed : 1;
    int64_t epoch = r->validated + 1;
    char here[120], there[120];
    json_t *line = json_pack("{s:I, s:I, s:s, s:f}", "step", (json_int_t)r->step, "epoch", (json_int_t)epoch, "student", s->name, "train_loss", s->sum[0] / n);
    if (line == NULL)
        return kd_fail(err, KD_EFAIL, "out of memory for a line of metrics");
    put_terms(line, "train_loss", &s->loss, s->sum + 1, n);
    if (held != NULL)
        put_validation(line, "val", held, &s->loss);
    put_validation(line, "seen", seen, &s->loss);
    json_object_set_new(line, "best", json_boolean(best));
    const kd_val_result *v = held != NULL ? held : seen;
    kd_log(KD_LOG_INFO, "epoch %lld/%lld %s: loss %.4f, %s loss %.4f%s (seen: loss %.4f%s)%s", (long long)epoch, (long long)r->setup.config->epochs, s->name, s->sum[0] / n,
           held != NULL ? "val" : "seen", v->loss, quality_text(v, here, sizeof here), seen->loss, quality_text(seen, there, sizeof there), best ? ", best so far" : "");
    return kd_metrics_write(r->metrics, line, err);
}

/* ---- an epoch ---- */

static kd_status save_latest(run *r, kd_err *err) {
    return kd_save_latest(&r->save, &(kd_position){r->step, r->validated}, err);
}

/* The states that are worth keeping after a validation. latest.kdt is the last: see save.h. */
static kd_status save_epoch(run *r, kd_err *err) {
    kd_position at = {r->step, r->validated};
    for (size_t i = 0; i < r->setup.count; i++)
        if (r->setup.students[i]->best_epoch == r->validated)
            KD_TRY(kd_save_best(&r->save, &at, r->setup.students[i], err));
    KD_TRY(kd_save_epoch(&r->save, &at, err));
    return save_latest(r, err);
}

/* An epoch that is to be validated goes on with its validation. */
static kd_status leave_validation(run *r, kd_status status, kd_err *err) {
    if (status != KD_ESIGINT && status != KD_ESIGTERM)
        return status;
    KD_TRY(save_latest(r, err));
    return kd_fail(err, status, "interrupted after step %lld of %lld, before the validation of epoch %lld; the same command goes on from there", (long long)r->step,
                   (long long)r->setup.steps, (long long)(r->validated + 1));
}

static kd_status validate_epoch(run *r, kd_err *err) {
    kd_setup *u = &r->setup;
    kd_val_result *held, *seen;
    kd_replay *replay = u->groups.group[0].replay;
    for (size_t i = 0; i < u->seen_count; i++) {
        const kd_image_entry *e = kd_replay_image(replay, u->seen[i].image);
        u->seen[i].view = kd_epoch_view(&e->image, (uint32_t)r->validated, e->views);
    }
    KD_TRY(kd_alloc_array(&held, 2 * u->count, sizeof *held, err));
    seen = held + u->count;
    kd_status status = u->held_count > 0 ? kd_validate(held, u->students, u->count, replay, u->held, u->held_count, err) : KD_OK;
    if (status == KD_OK)
        status = kd_validate(seen, u->students, u->count, replay, u->seen, u->seen_count, err);
    for (size_t i = 0; i < u->count && status == KD_OK; i++) {
        kd_student *s = u->students[i];
        int best = u->held_count == 0 || held[i].loss < s->best_loss;
        status = log_epoch(r, s, u->held_count > 0 ? &held[i] : NULL, &seen[i], best, err);
        if (best) {
            s->best_loss = u->held_count > 0 ? held[i].loss : seen[i].loss;
            s->best_epoch = r->validated + 1;
        }
        memset(s->sum, 0, sizeof s->sum);
        s->summed = 0;
    }
    if (status == KD_OK)
        r->validated++;
    kd_free(held);
    r->logged_at = kd_now(); /* speeds are those of training */
    r->logged_step = r->step;
    r->logged_wait = kd_groups_wait_seconds(&u->groups);
    return status == KD_OK ? save_epoch(r, err) : leave_validation(r, status, err);
}

/* The remaining items of the epoch of r->step, up to step `end`: the same images for every group. */
static size_t plan_epoch(run *r, int64_t end) {
    const kd_setup *u = &r->setup;
    uint32_t epoch = (uint32_t)(r->step / u->epoch_steps);
    size_t images = (size_t)u->step_images, n = 0;
    kd_rng_permutation((uint64_t)u->config->seed, epoch, r->order, (uint32_t)u->split.train_count);
    for (size_t i = (size_t)(r->step % u->epoch_steps) * images; n < (size_t)(end - r->step) * images; i++, n++)
        for (size_t k = 0; k < u->groups.count; k++)
            r->items[k][n] = kd_group_item(&u->groups.group[k], u->split.train[r->order[i]], epoch);
    return n;
}

static kd_status fill_batch(run *r, kd_err *err) {
    kd_setup *u = &r->setup;
    for (size_t k = 0; k < u->groups.count; k++)
        for (int row = 0; row < (int)u->config->batch_size; row++) {
            kd_sample sample;
            kd_status stop = kd_stop_requested();
            if (stop != KD_OK)
                return kd_fail(err, stop, "interrupted while images were read");
            KD_TRY(kd_replay_next(u->groups.group[k].replay, &sample, err));
            for (size_t i = 0; i < u->count; i++)
                KD_TRY(kd_student_put(u->students[i], (int)k, row, &sample, err));
            kd_replay_release(u->groups.group[k].replay, &sample);
        }
    return KD_OK;
}

/* ---- a step ---- */

/* A step that is over in a moment is waited for. Others, and the first, can be left in the middle. */
static const double LONG_STEP = 3; /* seconds; a run that is asked to stop has 25 for the rest of its step and a checkpoint */

static kd_status mark_students(run *r, kd_err *err) {
    const kd_setup *u = &r->setup;
    if (u->config->accumulate == 1 && r->step_seconds > 0 && r->step_seconds < LONG_STEP)
        return KD_OK;
    for (size_t i = 0; i < u->count; i++)
        KD_TRY(kd_student_set_mark(u->students[i], err));
    return KD_OK;
}

/* The gradients of a step. *begun: a student has changed. */
static kd_status run_batches(run *r, int *begun, kd_err *err) {
    const kd_setup *u = &r->setup;
    *begun = 0;
    KD_TRY(mark_students(r, err));
    for (int micro = 0; micro < (int)u->config->accumulate; micro++) {
        KD_TRY(fill_batch(r, err));
        *begun = 1;
        for (size_t i = 0; i < u->count; i++)
            KD_TRY(kd_step_backward(u->students[i], micro, &r->results[i], err));
    }
    return KD_OK;
}

static double lr_of(const run *r, const kd_student *s) {
    kd_schedule schedule = {.base = s->hyper.lr, .warmup = r->setup.warmup_steps, .total = r->setup.steps};
    return kd_schedule_lr(&schedule, r->step);
}

static kd_status not_finite(const run *r, const char *cause, kd_err *err) {
    return kd_fail(err, KD_ENONFINITE, "step %lld, learning rate %.3g: %.700s; the last good state is %.300s", (long long)(r->step + 1), lr_of(r, r->setup.students[0]), cause,
                   r->save.saved_step >= 0 ? r->save.latest : "the beginning");
}

/* The step ends with a failure before any weight has changed: it is undone, and what was learned before it is kept. */
static kd_status leave_step(run *r, int begun, kd_status status, const char *cause, kd_err *err) {
    const kd_setup *u = &r->setup;
    kd_err secondary = {0};
    kd_status saved = KD_OK;
    int stopped = status == KD_ESIGINT || status == KD_ESIGTERM, undone = 1;
    if (status == KD_ENONFINITE)
        return not_finite(r, cause, err);
    for (size_t i = 0; i < u->count && begun; i++) {
        if (u->students[i]->mark.set && saved == KD_OK)
            saved = kd_student_rewind(u->students[i], &secondary);
        else
            undone = 0;
    }
    if (undone && saved == KD_OK)
        saved = save_latest(r, &secondary);
    if (stopped && saved != KD_OK)
        return kd_fail(err, saved, "%s", secondary.msg);
    if (stopped)
        return kd_fail(err, status, "interrupted after step %lld of %lld; the same command goes on from there", (long long)r->step, (long long)u->steps);
    if (saved != KD_OK)
        kd_log(KD_LOG_WARN, "no checkpoint of step %lld: %s", (long long)r->step, secondary.msg);
    return kd_fail(err, status, "%s", cause);
}

static kd_status update_students(run *r, kd_err *err) {
    kd_setup *u = &r->setup;
    int line = (r->step + 1) % u->config->log_every == 0;
    char extra[64] = "";
    for (size_t i = 0; i < u->count; i++) {
        kd_student *s = u->students[i];
        double lr = lr_of(r, s);
        kd_err cause = {0};
        kd_status status = kd_step_update(s, lr, s->hyper.clip, &r->results[i], &cause);
        if (status != KD_OK)
            return status == KD_ENONFINITE ? not_finite(r, cause.msg, err) : kd_fail(err, status, "%s", cause.msg);
        if (line)
            KD_TRY(log_step(r, s, &r->results[i], lr, err));
        snprintf(extra, sizeof extra, "loss %.4f", r->results[i].loss);
    }
    r->step++;
    if (line) {
        r->logged_at = kd_now();
        r->logged_step = r->step;
        r->logged_wait = kd_groups_wait_seconds(&u->groups);
    }
    kd_progress_update(r->progress, (uint64_t)(r->step * u->step_images), kd_groups_wait_seconds(&u->groups), extra);
    return KD_OK;
}

/* Steps up to `end`, inside one epoch. */
static kd_status run_steps(run *r, int64_t end, kd_err *err) {
    const kd_setup *u = &r->setup;
    double age = u->config->checkpoint_minutes * 60;
    while (r->step < end) {
        double begin = kd_now();
        int begun;
        kd_err cause = {0};
        kd_status status = run_batches(r, &begun, &cause);
        if (status != KD_OK)
            return leave_step(r, begun, status, cause.msg, err);
        KD_TRY(update_students(r, err));
        r->step_seconds = kd_now() - begin;
        status = kd_stop_requested();
        if (status != KD_OK)
            return leave_step(r, 0, status, "", err);
        if (age > 0 && r->step < end && kd_now() - r->save.saved_at > age)
            KD_TRY(save_latest(r, err));
    }
    return KD_OK;
}

static kd_status train_to(run *r, int64_t last, kd_err *err) {
    kd_setup *u = &r->setup;
    for (;;) {
        if (r->step / u->epoch_steps > r->validated)
            KD_TRY(validate_epoch(r, err));
        if (r->step >= last)
            return KD_OK;
        int64_t end = (r->step / u->epoch_steps + 1) * u->epoch_steps;
        if (end > last)
            end = last;
        size_t n = plan_epoch(r, end);
        kd_status status = KD_OK;
        for (size_t k = 0; k < u->groups.count && status == KD_OK; k++)
            status = kd_replay_begin(u->groups.group[k].replay, r->items[k], n, err);
        if (status == KD_OK)
            status = run_steps(r, end, err);
        for (size_t k = 0; k < u->groups.count; k++)
            kd_replay_end(u->groups.group[k].replay);
        if (status != KD_OK)
            return status;
    }
}

/* ---- beginning and end ---- */

static kd_status open_run(run *r, kd_arena *arena, kd_err *err) {
    kd_setup *u = &r->setup;
    const kd_train_config *c = u->config;
    char *log = kd_arena_printf(arena, "%s/train.log", c->out), *yaml = kd_arena_printf(arena, "%s/config.resolved.yaml", c->out);
    char *metrics = kd_arena_printf(arena, "%s/metrics.jsonl", c->out);
    uint64_t keep = 0;
    kd_position at;
    if (log == NULL || yaml == NULL || metrics == NULL)
        return kd_fail(err, KD_EFAIL, "out of memory");
    KD_TRY(kd_log_open_file(log, err));
    KD_TRY(kd_save_open(&r->save, u, err));
    KD_TRY(kd_save_resume(&r->save, &at, &keep, err));
    r->step = at.step;
    r->validated = at.validated;
    KD_TRY(kd_options_write_yaml(&kd_train_program, c, yaml, err));
    KD_TRY(kd_metrics_open(&r->metrics, metrics, keep, err));
    r->save.metrics = r->metrics;
    KD_TRY(kd_alloc_array(&r->results, u->count, sizeof *r->results, err));
    KD_TRY(kd_alloc_array(&r->order, u->split.train_count, sizeof *r->order, err));
    for (size_t k = 0; k < u->groups.count; k++)
        KD_TRY(kd_alloc_array(&r->items[k], (size_t)u->epoch_steps * (size_t)u->step_images, sizeof *r->items[k], err));
    r->begun = r->logged_at = kd_now();
    r->logged_step = r->step;
    return KD_OK;
}

/* Writes the state of a checkpoint as `out` (owned here) and says so. */
static kd_status export_one(run *r, const kd_student *s, char *checkpoint, char *out, const char *what, kd_err *err) {
    kd_setup *u = &r->setup;
    kd_status status = out != NULL && checkpoint != NULL ? kd_export_checkpoint(u->backend, checkpoint, s->name, out, KD_F32, err) : kd_fail(err, KD_EFAIL, "out of memory");
    if (status == KD_OK)
        kd_log(KD_LOG_INFO, "exported %s (%s)", out, what);
    if (status == KD_OK && u->config->json) {
        json_t *line = json_pack("{s:s, s:s, s:s, s:s}", "type", "result", "student", s->name, "exported", out, "state", what);
        kd_json_line(line);
        json_decref(line);
    }
    kd_free(out);
    kd_free(checkpoint);
    return status;
}

/* The last state is the one to use: it is where the schedule ends, and on photos its k-NN is higher (README). The best validation loss is kept beside it. */
static kd_status export_all(run *r, kd_err *err) {
    kd_setup *u = &r->setup;
    const char *dir = u->config->out;
    char *folder = kd_asprintf("%s/exported", dir);
    kd_status status = folder != NULL ? kd_io_mkdirs(folder, err) : kd_fail(err, KD_EFAIL, "out of memory");
    for (size_t i = 0; i < u->count && status == KD_OK; i++) {
        const kd_student *s = u->students[i];
        char what[80];
        status = export_one(r, s, kd_checkpoint_path(dir, "latest", s->name), kd_asprintf("%s/%s.safetensors", folder, s->name), "last epoch", err);
        if (status != KD_OK || s->best_epoch <= 0)
            continue;
        snprintf(what, sizeof what, "epoch %lld, best validation loss %.4f", (long long)s->best_epoch, s->best_loss);
        status = export_one(r, s, kd_checkpoint_path(dir, "best", s->name), kd_asprintf("%s/%s-best.safetensors", folder, s->name), what, err);
    }
    kd_free(folder);
    return status;
}

static kd_status train(run *r, kd_arena *arena, kd_err *err) {
    kd_setup *u = &r->setup;
    const kd_train_config *c = u->config;
    KD_TRY(open_run(r, arena, err));
    kd_setup_print(u);
    int64_t last = c->steps > 0 && c->steps < u->steps ? c->steps : u->steps, first = r->step;
    r->progress = kd_progress_create("train", "image", (uint64_t)(u->steps * u->step_images), (uint64_t)(first * u->step_images), c->json);
    kd_status status = train_to(r, last, err);
    kd_progress_finish(r->progress);
    if (status != KD_OK)
        return status;
    double seconds = kd_now() - r->begun;
    if (r->step > first)
        kd_log(KD_LOG_INFO, "%lld steps in %.0f s: %.1f images/s with validation, %.0f%% of the time waiting for data", (long long)(r->step - first), seconds,
               (double)((r->step - first) * u->step_images) / seconds, 100 * kd_groups_wait_seconds(&u->groups) / seconds);
    if (r->step < u->steps) {
        KD_TRY(save_latest(r, err));
        kd_log(KD_LOG_INFO, "paused after step %lld of %lld (--steps); run again without --steps to go on", (long long)r->step, (long long)u->steps);
        return KD_OK;
    }
    return export_all(r, err);
}

kd_status kd_train_run(kd_train_config *c, kd_arena *arena, kd_err *err) {
    run r = {.setup = {.lock = -1}};
    kd_status status = kd_setup_open(&r.setup, c, arena, err);
    if (status == KD_OK && c->dry_run)
        kd_setup_print(&r.setup);
    else if (status == KD_OK)
        status = train(&r, arena, err);
    kd_metrics_close(r.metrics);
    kd_save_close(&r.save);
    kd_free(r.results);
    for (int k = 0; k < KD_MAX_GROUPS; k++)
        kd_free(r.items[k]);
    kd_free(r.order);
    kd_setup_close(&r.setup);
    kd_log_open_file(NULL, NULL);
    return status;
}

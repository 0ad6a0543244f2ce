#include "train/run.h"

#include <string.h>

#include "common/base/io.h"
#include "common/base/log.h"
#include "common/base/progress.h"
#include "common/base/threads.h"
#include "common/data/skip_list.h"
#include "train/batch.h"
#include "train/dump.h"
#include "train/export/export.h"
#include "train/logbook.h"
#include "train/neighbourhood.h"
#include "train/probe.h"
#include "train/report.h"
#include "train/save.h"
#include "train/spent.h"
#include "train/truth.h"

typedef struct run {
    kd_setup setup;
    kd_save save;
    kd_position at;
    kd_stages stages;                     /* of this thread, from the start of the program */
    kd_logbook *logbook;
    int64_t first;                        /* steps done by earlier runs; -1 until training begins */
    double step_seconds;                  /* that the last step took; 0 before the first */
    kd_step_result *results;              /* of the step, by student */
    kd_batches batches;
    int reads_ahead;                      /* a batch is put while a device works on the one before it */
    struct {
        int put;                          /* the next batch, with this result */
        kd_status status;
        kd_err err;
        double waited;                    /* seconds for its images */
    } ahead;
} run;

/* ---- an epoch ---- */

static kd_status save_latest(run *r, kd_err *err) {
    int before = kd_stages_enter(&r->stages, KD_SPENT_CHECKPOINT);
    kd_status status = kd_save_latest(&r->save, &r->at, err);
    kd_stages_enter(&r->stages, before);
    return status;
}

/* The states that are worth keeping after a validation. latest.kdt is the last: see save.h. */
static kd_status save_states(run *r, kd_err *err) {
    for (size_t i = 0; i < r->setup.count; i++)
        if (r->setup.students[i]->best_epoch == r->at.validated)
            KD_TRY(kd_save_best(&r->save, &r->at, r->setup.students[i], err));
    KD_TRY(kd_save_epoch(&r->save, &r->at, err));
    return kd_save_latest(&r->save, &r->at, err);
}

static kd_status save_epoch(run *r, kd_err *err) {
    int before = kd_stages_enter(&r->stages, KD_SPENT_CHECKPOINT);
    kd_status status = save_states(r, err);
    kd_stages_enter(&r->stages, before);
    return status;
}

/* An epoch that is to be validated goes on with its validation. */
static kd_status leave_validation(run *r, kd_status status, kd_err *err) {
    if (status != KD_ESIGINT && status != KD_ESIGTERM)
        return status;
    KD_TRY(save_latest(r, err));
    return kd_fail(err, status, "interrupted after step %lld of %lld, before the validation of epoch %lld; the same command goes on from there", (long long)r->at.step,
                   (long long)r->setup.steps, (long long)(r->at.validated + 1));
}

/* The losses of all students on some views, and what they keep of the teacher's neighbourhoods. */
static kd_status validate_on(run *r, kd_val_result *results, const kd_replay_item *items, size_t count, kd_err *err) {
    kd_setup *u = &r->setup;
    kd_neighbourhood h = {0};
    kd_status status = kd_neighbourhood_begin(&h, u, items, count, err);
    if (status == KD_OK)
        status = kd_validate(results, u->students, u->count, u->groups.group[0].replay, items, count, &(kd_val_watch){kd_neighbourhood_see, &h}, err);
    if (status == KD_OK)
        status = kd_neighbourhood_measure(&h, results, err);
    kd_neighbourhood_end(&h);
    return status;
}

/* Pictures among the events and report.html. They are for looking at: a failure is said and the training goes on. */
static void tell(run *r) {
    kd_setup *u = &r->setup;
    kd_maps maps = {0};
    kd_err err = {0};
    int before = kd_stages_enter(&r->stages, KD_SPENT_REPORT);
    kd_status status = kd_maps_make(&maps, u, &err);
    for (size_t i = 0; i < u->count && status == KD_OK; i++)
        status = kd_logbook_maps(r->logbook, i, r->at.step, &maps, &err);
    if (status == KD_OK)
        status = kd_report_write(u, r->at.step, &maps, &err);
    kd_maps_free(&maps);
    if (status != KD_OK)
        kd_log(KD_LOG_WARN, "%s/report.html isn't up to date: %s", u->config->out, err.msg);
    kd_stages_enter(&r->stages, before);
}

/* What an epoch's end measures, by student. Everything is measured before anything of it is written, so that a run that is interrupted here goes on with the same lines. */
typedef struct findings {
    kd_val_result *held, *seen; /* held: nothing in it when nothing is held out */
    kd_knn_result *knn;         /* [students][KD_PROBE_KS] */
    int has_knn;
} findings;

static kd_status measure(run *r, findings *f, kd_err *err) {
    kd_setup *u = &r->setup;
    kd_replay *replay = u->groups.group[0].replay;
    for (size_t i = 0; i < u->seen_count; i++) {
        const kd_image_entry *e = kd_replay_image(replay, u->seen[i].image);
        u->seen[i].view = kd_epoch_view(&e->image, (uint32_t)r->at.validated, e->views);
    }
    if (u->held_count > 0)
        KD_TRY(validate_on(r, f->held, u->held, u->held_count, err));
    KD_TRY(validate_on(r, f->seen, u->seen, u->seen_count, err));
    f->has_knn = kd_probe_is_due(u, r->at.validated + 1);
    for (size_t i = 0; i < u->count && f->has_knn; i++)
        KD_TRY(kd_probe_knn(u, u->students[i], f->knn + i * KD_PROBE_KS, err));
    return KD_OK;
}

/* The students' lines of the epoch; keeps the best. */
static kd_status record(run *r, const findings *f, kd_err *err) {
    kd_setup *u = &r->setup;
    for (size_t i = 0; i < u->count; i++) {
        kd_student *s = u->students[i];
        const kd_val_result *held = u->held_count > 0 ? &f->held[i] : NULL, *v = held != NULL ? held : &f->seen[i];
        kd_epoch_facts facts = {.epoch = r->at.validated + 1, .held = held, .seen = &f->seen[i], .knn = f->knn + i * KD_PROBE_KS, .knn_count = f->has_knn ? KD_PROBE_KS : 0,
                                .best = held == NULL || held->loss < s->best_loss};
        KD_TRY(kd_logbook_epoch(r->logbook, i, r->at.step, &facts, err));
        if (facts.best) {
            s->best_loss = v->loss;
            s->best_epoch = facts.epoch;
        }
        memset(s->sum, 0, sizeof s->sum);
        s->summed = 0;
    }
    r->at.validated++;
    return KD_OK;
}

static kd_status validate_epoch(run *r, kd_err *err) {
    kd_setup *u = &r->setup;
    findings f = {0};
    kd_status status = kd_alloc_array(&f.held, 2 * u->count, sizeof *f.held, err);
    if (status == KD_OK)
        status = kd_alloc_array(&f.knn, u->count * KD_PROBE_KS, sizeof *f.knn, err);
    if (status == KD_OK) {
        f.seen = f.held + u->count;
        int before = kd_stages_enter(&r->stages, KD_SPENT_VALIDATION);
        status = measure(r, &f, err);
        kd_stages_enter(&r->stages, before);
    }
    if (status == KD_OK)
        status = record(r, &f, err);
    kd_free(f.knn);
    kd_free(f.held);
    if (status == KD_OK)
        tell(r);
    kd_logbook_resume_clock(r->logbook, r->at.step);
    return status == KD_OK ? save_epoch(r, err) : leave_validation(r, status, err);
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

/* What went wrong while the batch was put ahead is said here, where it is due. */
static kd_status put_batch(run *r, kd_err *err) {
    if (!r->ahead.put)
        return kd_batches_put(&r->batches, r->setup.students, r->setup.count, err);
    r->ahead.put = 0;
    if (r->ahead.status != KD_OK)
        *err = r->ahead.err;
    return r->ahead.status;
}

static void put_ahead(run *r) {
    const kd_groups *g = &r->setup.groups;
    double before = kd_groups_wait_seconds(g);
    r->ahead.status = kd_batches_put(&r->batches, r->setup.students, r->setup.count, &r->ahead.err);
    r->ahead.put = 1;
    r->ahead.waited = kd_groups_wait_seconds(g) - before;
}

static kd_status read_losses(run *r, int micro, kd_err *err) {
    kd_setup *u = &r->setup;
    double begin = kd_now();
    int before = kd_stages_enter(&r->stages, u->backend->v->host_memory ? KD_SPENT_OTHER : KD_SPENT_DEVICE);
    for (size_t i = 0; i < u->count; i++)
        KD_TRY(kd_step_losses(u->students[i], micro, &r->results[i], err));
    if (r->ahead.put && kd_now() - begin > 0.1 * r->ahead.waited) /* the device was still at work: it hasn't waited for the images */
        u->groups.covered_wait += r->ahead.waited;
    kd_stages_enter(&r->stages, before);
    return KD_OK;
}

/* The gradients of a step, behind which another one comes or not. *begun: a student has changed. */
static kd_status run_batches(run *r, int another, int *begun, kd_err *err) {
    const kd_setup *u = &r->setup;
    int batches = (int)u->config->accumulate;
    *begun = 0;
    KD_TRY(mark_students(r, err));
    for (int micro = 0; micro < batches; micro++) {
        KD_TRY(put_batch(r, err));
        *begun = 1;
        for (size_t i = 0; i < u->count; i++)
            KD_TRY(kd_step_begin(u->students[i], micro, &r->stages, err));
        if (r->reads_ahead && (another || micro + 1 < batches))
            put_ahead(r);
        KD_TRY(read_losses(r, micro, err));
    }
    return KD_OK;
}

static double lr_of(const run *r, const kd_student *s) {
    kd_schedule schedule = {.base = s->hyper.lr, .warmup = r->setup.warmup_steps, .total = r->setup.steps};
    return kd_schedule_lr(&schedule, r->at.step);
}

static kd_status not_finite(const run *r, const char *cause, kd_err *err) {
    return kd_fail(err, KD_ENONFINITE, "step %lld, learning rate %.3g: %.700s; the last good state is %.300s", (long long)(r->at.step + 1), lr_of(r, r->setup.students[0]), cause,
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
        return kd_fail(err, status, "interrupted after step %lld of %lld; the same command goes on from there", (long long)r->at.step, (long long)u->steps);
    if (saved != KD_OK)
        kd_log(KD_LOG_WARN, "no checkpoint of step %lld: %s", (long long)r->at.step, secondary.msg);
    return kd_fail(err, status, "%s", cause);
}

static kd_status update_students(run *r, kd_err *err) {
    kd_setup *u = &r->setup;
    for (size_t i = 0; i < u->count; i++) {
        kd_student *s = u->students[i];
        double lr = lr_of(r, s);
        kd_err cause = {0};
        int before = kd_stages_enter(&r->stages, KD_SPENT_OPTIMIZER);
        kd_status status = kd_step_update(s, lr, s->hyper.clip, &r->results[i], &cause);
        kd_stages_enter(&r->stages, before);
        if (status != KD_OK)
            return status == KD_ENONFINITE ? not_finite(r, cause.msg, err) : kd_fail(err, status, "%s", cause.msg);
        KD_TRY(kd_dump_step(u, s, r->at.step + 1, lr, &r->results[i], err));
        kd_logbook_step(r->logbook, i, &r->results[i], lr);
    }
    r->at.step++;
    return kd_logbook_stepped(r->logbook, r->at.step, err);
}

/* Steps up to `end`, inside one epoch. */
static kd_status run_steps(run *r, int64_t end, kd_err *err) {
    const kd_setup *u = &r->setup;
    double age = u->config->checkpoint_minutes * 60;
    while (r->at.step < end) {
        double begin = kd_now();
        int begun;
        kd_err cause = {0};
        kd_status status = run_batches(r, r->at.step + 1 < end, &begun, &cause);
        if (status != KD_OK)
            return leave_step(r, begun, status, cause.msg, err);
        KD_TRY(update_students(r, err));
        r->step_seconds = kd_now() - begin;
        status = kd_stop_requested();
        if (status != KD_OK)
            return leave_step(r, 0, status, "", err);
        if (age > 0 && r->at.step < end && kd_now() - r->save.saved_at > age)
            KD_TRY(save_latest(r, err));
    }
    return KD_OK;
}

static kd_status train_to(run *r, int64_t last, kd_err *err) {
    kd_setup *u = &r->setup;
    for (;;) {
        if (r->at.step / u->epoch_steps > r->at.validated)
            KD_TRY(validate_epoch(r, err));
        if (r->at.step >= last)
            return KD_OK;
        int64_t end = (r->at.step / u->epoch_steps + 1) * u->epoch_steps;
        if (end > last)
            end = last;
        KD_TRY(kd_batches_begin(&r->batches, r->at.step, end, err));
        kd_status status = run_steps(r, end, err);
        kd_batches_end(&r->batches);
        if (status != KD_OK)
            return status;
    }
}

/* ---- beginning and end ---- */

static kd_status open_run(run *r, kd_arena *arena, kd_err *err) {
    kd_setup *u = &r->setup;
    const kd_train_config *c = u->config;
    char *log = kd_arena_printf(arena, "%s/train.log", c->out), *yaml = kd_arena_printf(arena, "%s/config.resolved.yaml", c->out);
    if (log == NULL || yaml == NULL)
        return kd_fail(err, KD_EFAIL, "out of memory");
    KD_TRY(kd_log_open_file(log, err));
    KD_TRY(kd_save_open(&r->save, u, err));
    KD_TRY(kd_save_resume(&r->save, &r->at, &r->logbook, err));
    KD_TRY(kd_alloc_array(&r->results, u->count, sizeof *r->results, err));
    KD_TRY(kd_options_write_yaml(&kd_train_program, c, yaml, err));
    /* On the host a pass is over when it returns; a dump wants the batch that was trained on; a live teacher shares the device. */
    r->reads_ahead = !u->backend->v->host_memory && c->dump == NULL && u->groups.group[0].source.live == NULL;
    return kd_batches_open(&r->batches, u, &r->stages, err);
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
    kd_stages_enter(&r->stages, KD_SPENT_EXPORT);
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

/* The run is complete: that pictures are missing from it is its exit code. */
static kd_status finish_live(const run *r, kd_err *err) {
    const kd_setup *u = &r->setup;
    const kd_live *live = u->groups.group[0].source.live;
    uint64_t allowed;
    if (live == NULL)
        return KD_OK;
    KD_TRY(kd_max_skipped_parse(u->config->max_skipped, kd_live_files(live), &allowed, err));
    if (kd_live_skipped(live) > allowed)
        return kd_fail(err, KD_ESKIPPED, "%zu pictures were skipped (listed in %s/live-skipped.json) and --max-skipped allows %llu; the run is complete without them", kd_live_skipped(live), u->config->out,
                       (unsigned long long)allowed);
    return KD_OK;
}

static kd_status train(run *r, kd_arena *arena, kd_err *err) {
    kd_setup *u = &r->setup;
    const kd_train_config *c = u->config;
    KD_TRY(open_run(r, arena, err));
    kd_setup_print(u);
    int64_t last = c->steps > 0 && c->steps < u->steps ? c->steps : u->steps;
    KD_TRY(kd_truth_watch(u, err));
    KD_TRY(kd_dump_start(u, r->at.step, err));
    r->first = r->at.step;
    kd_stages_enter(&r->stages, KD_SPENT_OTHER);
    kd_status status = train_to(r, last, err);
    kd_stages_enter(&r->stages, KD_SPENT_OTHER); /* whatever it was that failed */
    kd_logbook_finish(r->logbook, r->at.step);
    if (status != KD_OK)
        return status;
    const kd_live *live = u->groups.group[0].source.live;
    if (live != NULL)
        kd_log(KD_LOG_INFO, "%.0f s of them in the teacher", kd_live_seconds(live));
    if (r->at.step < u->steps) {
        tell(r);
        KD_TRY(save_latest(r, err));
        kd_log(KD_LOG_INFO, "paused after step %lld of %lld (--steps); run again without --steps to go on", (long long)r->at.step, (long long)u->steps);
        return KD_OK;
    }
    for (size_t i = 0; i < u->count; i++) /* an export has the weights once more, and shall not be the run's peak */
        kd_student_retire(u->students[i]);
    KD_TRY(export_all(r, err));
    return finish_live(r, err);
}

/* Of a run that was stopped too. */
static void tell_spent(run *r) {
    kd_stages_enter(&r->stages, 0);
    if (r->first >= 0 && r->at.step > r->first)
        kd_spent_tell(&r->stages, &r->setup.groups, !r->setup.backend->v->host_memory, (long long)(r->at.step - r->first), r->setup.config->json);
}

kd_status kd_train_run(kd_train_config *c, kd_arena *arena, kd_err *err) {
    run r = {.setup = {.lock = -1}, .first = -1};
    kd_stages_begin(&r.stages, KD_SPENT_START);
    kd_status status = kd_setup_open(&r.setup, c, arena, err);
    if (status == KD_OK && c->dry_run)
        kd_setup_print(&r.setup);
    else if (status == KD_OK && kd_truth_wanted(c))
        status = kd_truth_run(&r.setup, err);
    else if (status == KD_OK)
        status = train(&r, arena, err);
    tell_spent(&r);
    kd_logbook_close(r.logbook);
    kd_save_close(&r.save);
    kd_free(r.results);
    kd_batches_close(&r.batches);
    kd_setup_close(&r.setup);
    kd_log_open_file(NULL, NULL);
    return status;
}

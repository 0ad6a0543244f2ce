#include "train/run.h"

#include <dirent.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "common/base/io.h"
#include "common/base/log.h"
#include "common/base/progress.h"
#include "common/base/rng.h"
#include "common/base/threads.h"
#include "train/checkpoint.h"
#include "train/dump.h"
#include "train/export.h"
#include "train/logbook.h"
#include "train/neighbourhood.h"
#include "train/probe.h"
#include "train/report.h"
#include "train/truth.h"

/* Where a run stands. `step` and `validated` say everything about what comes next: all draws are functions of them. */
typedef struct run {
    kd_setup setup;
    int64_t step;      /* steps done */
    int64_t validated; /* epochs that were validated and logged */
    kd_logbook *logbook;
    char *latest;
    double checkpointed;                  /* time */
    kd_replay_item *items[KD_MAX_GROUPS]; /* of the epoch's remaining steps */
    uint32_t *order;
} run;

/* ---- checkpoints ---- */

/* Under which the recipe of group k stands: cache, cache_2, ... */
static const char *cache_key(size_t k, char key[32]) {
    if (k == 0)
        return "cache";
    snprintf(key, 32, "cache_%zu", k + 1);
    return key;
}

static json_t *run_json(const run *r) {
    const kd_setup *s = &r->setup;
    char sha[65], images[33], key[32];
    json_t *recipe = kd_source_recipe(&s->groups.group[0].source)->json;
    json_t *teacher = json_object_get(json_object_get(recipe, "teacher"), "sha256");
    kd_hex(sha, kd_source_recipe(&s->groups.group[0].source)->sha.b, 32);
    kd_hex(images, s->images.b, 16);
    json_t *json = json_pack("{s:s, s:s, s:O, s:s, s:I, s:I, s:I, s:i, s:s, s:O}", "version", kd_version, "cache", sha, "teacher", teacher, "images", images, "step",
                             (json_int_t)r->step, "validated", (json_int_t)r->validated, "steps", (json_int_t)s->steps, "threads", s->threads, "device", s->backend->v->describe(s->backend), "options", s->options);
    for (size_t k = 1; k < s->groups.count && json != NULL; k++) {
        kd_hex(sha, kd_source_recipe(&s->groups.group[k].source)->sha.b, 32);
        json_object_set_new(json, cache_key(k, key), json_string(sha));
    }
    return json;
}

/* best: only the student at that place, without optimizer. */
static kd_status save(run *r, const char *path, kd_student *const *students, size_t n, int with_moments, kd_err *err) {
    json_t *json = run_json(r);
    if (json == NULL)
        return kd_fail(err, KD_EFAIL, "out of memory for a checkpoint");
    kd_status status = kd_logbook_store(r->logbook, json, err);
    if (status == KD_OK)
        status = kd_checkpoint_write(path, students, n, json, with_moments, err);
    json_decref(json);
    return status;
}

static kd_status save_latest(run *r, kd_err *err) {
    KD_TRY(save(r, r->latest, r->setup.students, r->setup.count, 1, err));
    r->checkpointed = kd_now();
    return KD_OK;
}

static kd_status save_best(run *r, kd_student *student, kd_err *err) {
    char *path = kd_checkpoint_path(r->setup.config->out, "best", student->name);
    if (path == NULL)
        return kd_fail(err, KD_EFAIL, "out of memory");
    kd_status status = save(r, path, &student, 1, 0, err);
    kd_free(path);
    return status;
}

/* A stored text that must be what this run has. */
static kd_status same(const json_t *stored, const char *key, const json_t *now, const char *latest, const char *advice, kd_err *err) {
    const char *a = json_string_value(json_object_get(stored, key)), *b = json_string_value(json_object_get(now, key));
    if (a != NULL && b != NULL && strcmp(a, b) == 0)
        return KD_OK;
    return kd_fail(err, KD_EMISMATCH, "%s: %s was %.16s when the run was begun and is %.16s now; %s", latest, key, a != NULL ? a : "absent", b != NULL ? b : "absent", advice);
}

static kd_status check_same(run *r, const json_t *stored, kd_err *err) {
    char key[32];
    json_t *now = run_json(r);
    if (now == NULL)
        return kd_fail(err, KD_EFAIL, "out of memory");
    kd_status status = KD_OK;
    for (size_t k = 0; k < KD_MAX_GROUPS && status == KD_OK; k++)
        if (json_object_get(stored, cache_key(k, key)) != NULL || json_object_get(now, key) != NULL || k == 0)
            status = same(stored, cache_key(k, key), now, r->latest, "give the caches of the run in their order, or its live teacher with the same options (recipes are compared), or another --out", err);
    if (status == KD_OK)
        status = kd_train_same_run(json_object_get(stored, "options"), r->setup.options, r->setup.config->out, err);
    if (status == KD_OK)
        status = same(stored, "images", now, r->latest, "the images or views in use have changed: restore them, or give another --out", err);
    if (status == KD_OK && json_integer_value(json_object_get(stored, "threads")) != r->setup.threads)
        kd_log(KD_LOG_WARN, "the run used %lld threads so far and goes on with %d: results stay valid, but aren't bit-equal to an uninterrupted run",
               (long long)json_integer_value(json_object_get(stored, "threads")), r->setup.threads);
    if (status == KD_OK && !json_equal(json_object_get(stored, "device"), json_object_get(now, "device")))
        kd_log(KD_LOG_WARN, "the run was on %s and goes on on %s: results stay valid, but aren't bit-equal to an uninterrupted run",
               json_string_value(json_object_get(stored, "device")), json_string_value(json_object_get(now, "device")));
    json_decref(now);
    return status;
}

static kd_status resume(run *r, kd_err *err) {
    kd_checkpoint *c;
    long long step = 0, validated = 0;
    KD_TRY(kd_checkpoint_open(&c, r->latest, err));
    const json_t *stored = kd_checkpoint_run(c);
    kd_status status = check_same(r, stored, err);
    for (size_t i = 0; i < r->setup.count && status == KD_OK; i++)
        status = kd_checkpoint_restore(c, r->setup.students[i], err);
    if (status == KD_OK)
        status = kd_json_get_int(stored, "step", r->latest, &step, err);
    if (status == KD_OK)
        status = kd_json_get_int(stored, "validated", r->latest, &validated, err);
    if (status == KD_OK && (step < 0 || step > r->setup.steps || validated < 0 || validated > step / r->setup.epoch_steps))
        status = kd_fail(err, KD_EFAIL, "%s: step %lld of %lld with %lld validated epochs can't be; the file is damaged", r->latest, step, (long long)r->setup.steps, validated);
    r->step = step;
    r->validated = validated;
    if (status == KD_OK)
        status = kd_logbook_open(&r->logbook, &r->setup, stored, step, err);
    kd_checkpoint_close(c);
    return status;
}

/* ---- an epoch ---- */

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
    kd_status status = kd_maps_make(&maps, u, &err);
    for (size_t i = 0; i < u->count && status == KD_OK; i++)
        status = kd_logbook_maps(r->logbook, i, r->step, &maps, &err);
    if (status == KD_OK)
        status = kd_report_write(u, r->step, &maps, &err);
    kd_maps_free(&maps);
    if (status != KD_OK)
        kd_log(KD_LOG_WARN, "%s/report.html isn't up to date: %s", u->config->out, err.msg);
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
        u->seen[i].view = kd_epoch_view(&e->image, (uint32_t)r->validated, e->views);
    }
    if (u->held_count > 0)
        KD_TRY(validate_on(r, f->held, u->held, u->held_count, err));
    KD_TRY(validate_on(r, f->seen, u->seen, u->seen_count, err));
    f->has_knn = kd_probe_is_due(u, r->validated + 1);
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
        kd_epoch_facts facts = {.epoch = r->validated + 1, .held = held, .seen = &f->seen[i], .knn = f->knn + i * KD_PROBE_KS, .knn_count = f->has_knn ? KD_PROBE_KS : 0,
                                .best = held == NULL || held->loss < s->best_loss};
        KD_TRY(kd_logbook_epoch(r->logbook, i, r->step, &facts, err));
        if (facts.best) {
            s->best_loss = v->loss;
            s->best_epoch = facts.epoch;
        }
        memset(s->sum, 0, sizeof s->sum);
        s->summed = 0;
    }
    r->validated++;
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
        status = measure(r, &f, err);
    }
    if (status == KD_OK)
        status = record(r, &f, err);
    for (size_t i = 0; i < u->count && status == KD_OK; i++)
        if (u->students[i]->best_epoch == r->validated)
            status = save_best(r, u->students[i], err);
    kd_free(f.knn);
    kd_free(f.held);
    if (status == KD_OK)
        tell(r);
    kd_logbook_resume_clock(r->logbook, r->step);
    return status == KD_OK ? save_latest(r, err) : status;
}

/* The remaining items of the epoch of r->step, up to step `end`: the same images for every group. */
static size_t plan_epoch(run *r, int64_t end) {
    const kd_setup *u = &r->setup;
    uint32_t epoch = (uint32_t)(r->step / u->epoch_steps);
    size_t batch = (size_t)u->config->batch_size, n = 0;
    kd_rng_permutation((uint64_t)u->config->seed, epoch, r->order, (uint32_t)u->split.train_count);
    for (size_t i = (size_t)(r->step % u->epoch_steps) * batch; n < (size_t)(end - r->step) * batch; i++, n++)
        for (size_t k = 0; k < u->groups.count; k++)
            r->items[k][n] = kd_group_item(&u->groups.group[k], u->split.train[r->order[i]], epoch);
    return n;
}

static kd_status fill_batch(run *r, kd_err *err) {
    kd_setup *u = &r->setup;
    for (size_t k = 0; k < u->groups.count; k++)
        for (int row = 0; row < (int)u->config->batch_size; row++) {
            kd_sample sample;
            KD_TRY(kd_replay_next(u->groups.group[k].replay, &sample, err));
            for (size_t i = 0; i < u->count; i++)
                KD_TRY(kd_student_put(u->students[i], (int)k, row, &sample, err));
            kd_replay_release(u->groups.group[k].replay, &sample);
        }
    return KD_OK;
}

static kd_status step_students(run *r, kd_err *err) {
    kd_setup *u = &r->setup;
    for (size_t i = 0; i < u->count; i++) {
        kd_student *s = u->students[i];
        kd_schedule schedule = {.base = s->hyper.lr, .warmup = u->warmup_steps, .total = u->steps};
        double lr = kd_schedule_lr(&schedule, r->step);
        kd_step_result x;
        kd_err cause = {0};
        kd_status status = kd_step_run(s, lr, u->config->clip, &x, &cause);
        if (status == KD_ENONFINITE)
            return kd_fail(err, status, "step %lld: %.700s; the last good state is %.300s", (long long)(r->step + 1), cause.msg,
                           kd_io_exists(r->latest) ? r->latest : "the beginning");
        if (status != KD_OK) {
            *err = cause;
            return status;
        }
        KD_TRY(kd_dump_step(u, s, r->step + 1, lr, &x, err));
        kd_logbook_step(r->logbook, i, &x, lr);
    }
    r->step++;
    return kd_logbook_stepped(r->logbook, r->step, err);
}

/* Steps up to `end`, inside one epoch. At every step boundary the run can stop. */
static kd_status run_steps(run *r, int64_t end, kd_err *err) {
    const kd_setup *u = &r->setup;
    double age = u->config->checkpoint_minutes * 60;
    while (r->step < end) {
        kd_err secondary = {0};
        kd_status status = fill_batch(r, err);
        if (status != KD_OK) { /* the images failed, not the training: what was learned is kept */
            if (save_latest(r, &secondary) != KD_OK)
                kd_log(KD_LOG_WARN, "no checkpoint of step %lld: %s", (long long)r->step, secondary.msg);
            return status;
        }
        KD_TRY(step_students(r, err));
        status = kd_stop_requested();
        if (status != KD_OK) {
            KD_TRY(save_latest(r, err));
            return kd_fail(err, status, "interrupted after step %lld of %lld; the same command goes on from there", (long long)r->step, (long long)u->steps);
        }
        if (age > 0 && r->step < end && kd_now() - r->checkpointed > age)
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

/* Half-written files of a run that was killed while it replaced a checkpoint or an export. The run directory is locked, so nobody is writing them. */
static void remove_leftovers(const char *run_folder, const char *folder) {
    char *path = kd_asprintf("%s/%s", run_folder, folder);
    DIR *d = path != NULL ? opendir(path) : NULL;
    for (struct dirent *e; d != NULL && (e = readdir(d)) != NULL;) {
        char *file = strstr(e->d_name, ".tmp.") != NULL ? kd_asprintf("%s/%s", path, e->d_name) : NULL;
        if (file != NULL)
            unlink(file);
        kd_free(file);
    }
    if (d != NULL)
        closedir(d);
    kd_free(path);
}

static kd_status open_run(run *r, kd_arena *arena, kd_err *err) {
    kd_setup *u = &r->setup;
    const kd_train_config *c = u->config;
    char *log = kd_arena_printf(arena, "%s/train.log", c->out), *yaml = kd_arena_printf(arena, "%s/config.resolved.yaml", c->out);
    r->latest = kd_checkpoint_path(c->out, "latest", NULL);
    if (log == NULL || yaml == NULL || r->latest == NULL)
        return kd_fail(err, KD_EFAIL, "out of memory");
    KD_TRY(kd_log_open_file(log, err));
    remove_leftovers(c->out, "checkpoints");
    remove_leftovers(c->out, "exported");
    if (kd_io_exists(r->latest)) {
        KD_TRY(resume(r, err));
        kd_log(KD_LOG_INFO, "resuming after step %lld of %lld", (long long)r->step, (long long)u->steps);
    } else {
        KD_TRY(kd_logbook_open(&r->logbook, u, NULL, 0, err));
    }
    KD_TRY(kd_options_write_yaml(&kd_train_program, c, yaml, err));
    KD_TRY(kd_alloc_array(&r->order, u->split.train_count, sizeof *r->order, err));
    for (size_t k = 0; k < u->groups.count; k++)
        KD_TRY(kd_alloc_array(&r->items[k], (size_t)u->epoch_steps * (size_t)c->batch_size, sizeof *r->items[k], err));
    r->checkpointed = kd_now();
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
    int64_t last = c->steps > 0 && c->steps < u->steps ? c->steps : u->steps;
    KD_TRY(kd_truth_watch(u, err));
    KD_TRY(kd_dump_start(u, r->step, err));
    kd_status status = train_to(r, last, err);
    kd_logbook_finish(r->logbook, r->step);
    if (status != KD_OK)
        return status;
    const kd_live *live = u->groups.group[0].source.live;
    if (live != NULL)
        kd_log(KD_LOG_INFO, "%.0f s of them in the teacher", kd_live_seconds(live));
    if (r->step < u->steps) {
        tell(r);
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
    else if (status == KD_OK && kd_truth_wanted(c))
        status = kd_truth_run(&r.setup, err);
    else if (status == KD_OK)
        status = train(&r, arena, err);
    kd_logbook_close(r.logbook);
    kd_free(r.latest);
    for (int k = 0; k < KD_MAX_GROUPS; k++)
        kd_free(r.items[k]);
    kd_free(r.order);
    kd_setup_close(&r.setup);
    kd_log_open_file(NULL, NULL);
    return status;
}

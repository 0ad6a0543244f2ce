#include "train/run.h"

#include <dirent.h>
#include <math.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "common/base/io.h"
#include "common/base/log.h"
#include "common/base/progress.h"
#include "common/base/rng.h"
#include "common/base/threads.h"
#include "train/checkpoint.h"
#include "train/export.h"
#include "train/metrics.h"
#include "train/setup.h"
#include "train/step.h"
#include "train/validate.h"

/* Where a run stands. `step` and `validated` say everything about what comes next: all draws are functions of them. */
typedef struct run {
    kd_setup setup;
    int64_t step;      /* steps done */
    int64_t validated; /* epochs that were validated and logged */
    kd_metrics *metrics;
    kd_progress *progress;
    char *latest;
    double begun, checkpointed;          /* times */
    double logged_at, logged_wait;       /* at the last line of metrics */
    int64_t logged_step;
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

static json_t *run_json(const run *r, uint64_t metrics_bytes) {
    const kd_setup *s = &r->setup;
    char sha[65], images[33], key[32];
    json_t *recipe = kd_source_recipe(&s->groups.group[0].source)->json;
    json_t *teacher = json_object_get(json_object_get(recipe, "teacher"), "sha256");
    kd_hex(sha, kd_source_recipe(&s->groups.group[0].source)->sha.b, 32);
    kd_hex(images, s->images.b, 16);
    json_t *json = json_pack("{s:s, s:s, s:O, s:s, s:I, s:I, s:I, s:I, s:i, s:s, s:O}", "version", kd_version, "cache", sha, "teacher", teacher, "images", images, "step",
                             (json_int_t)r->step, "validated", (json_int_t)r->validated, "steps", (json_int_t)s->steps, "metrics_bytes", (json_int_t)metrics_bytes, "threads",
                             s->threads, "device", s->backend->v->describe(s->backend), "options", s->options);
    for (size_t k = 1; k < s->groups.count && json != NULL; k++) {
        kd_hex(sha, kd_source_recipe(&s->groups.group[k].source)->sha.b, 32);
        json_object_set_new(json, cache_key(k, key), json_string(sha));
    }
    return json;
}

/* best: only the student at that place, without optimizer. */
static kd_status save(run *r, const char *path, kd_student *const *students, size_t n, int with_moments, kd_err *err) {
    uint64_t bytes;
    KD_TRY(kd_metrics_sync(r->metrics, &bytes, err));
    json_t *json = run_json(r, bytes);
    if (json == NULL)
        return kd_fail(err, KD_EFAIL, "out of memory for a checkpoint");
    kd_status status = kd_checkpoint_write(path, students, n, json, with_moments, err);
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
    json_t *now = run_json(r, 0);
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

static kd_status resume(run *r, uint64_t *metrics_bytes, kd_err *err) {
    kd_checkpoint *c;
    long long step = 0, validated = 0, bytes = 0;
    KD_TRY(kd_checkpoint_open(&c, r->latest, err));
    const json_t *stored = kd_checkpoint_run(c);
    kd_status status = check_same(r, stored, err);
    for (size_t i = 0; i < r->setup.count && status == KD_OK; i++)
        status = kd_checkpoint_restore(c, r->setup.students[i], err);
    if (status == KD_OK)
        status = kd_json_get_int(stored, "step", r->latest, &step, err);
    if (status == KD_OK)
        status = kd_json_get_int(stored, "validated", r->latest, &validated, err);
    if (status == KD_OK)
        status = kd_json_get_int(stored, "metrics_bytes", r->latest, &bytes, err);
    kd_checkpoint_close(c);
    if (status == KD_OK && (step < 0 || step > r->setup.steps || validated < 0 || validated > step / r->setup.epoch_steps))
        status = kd_fail(err, KD_EFAIL, "%s: step %lld of %lld with %lld validated epochs can't be; the file is damaged", r->latest, step, (long long)r->setup.steps, validated);
    r->step = step;
    r->validated = validated;
    *metrics_bytes = (uint64_t)bytes;
    return status;
}

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
    double images = (double)((r->step + 1 - r->logged_step) * u->config->batch_size);
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
    for (size_t i = 0; i < u->count && status == KD_OK; i++)
        if (u->students[i]->best_epoch == r->validated)
            status = save_best(r, u->students[i], err);
    kd_free(held);
    r->logged_at = kd_now(); /* speeds are those of training */
    r->logged_step = r->step;
    r->logged_wait = kd_groups_wait_seconds(&u->groups);
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
    int line = (r->step + 1) % u->config->log_every == 0;
    char extra[64] = "";
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
        if (line)
            KD_TRY(log_step(r, s, &x, lr, err));
        snprintf(extra, sizeof extra, "loss %.4f", x.loss);
    }
    r->step++;
    if (line) {
        r->logged_at = kd_now();
        r->logged_step = r->step;
        r->logged_wait = kd_groups_wait_seconds(&u->groups);
    }
    kd_progress_update(r->progress, (uint64_t)(r->step * u->config->batch_size), kd_groups_wait_seconds(&u->groups), extra);
    return KD_OK;
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
    char *metrics = kd_arena_printf(arena, "%s/metrics.jsonl", c->out);
    uint64_t keep = 0;
    r->latest = kd_checkpoint_path(c->out, "latest", NULL);
    if (log == NULL || yaml == NULL || metrics == NULL || r->latest == NULL)
        return kd_fail(err, KD_EFAIL, "out of memory");
    KD_TRY(kd_log_open_file(log, err));
    remove_leftovers(c->out, "checkpoints");
    remove_leftovers(c->out, "exported");
    if (kd_io_exists(r->latest)) {
        KD_TRY(resume(r, &keep, err));
        kd_log(KD_LOG_INFO, "resuming after step %lld of %lld", (long long)r->step, (long long)u->steps);
    }
    KD_TRY(kd_options_write_yaml(&kd_train_program, c, yaml, err));
    KD_TRY(kd_metrics_open(&r->metrics, metrics, keep, err));
    KD_TRY(kd_alloc_array(&r->order, u->split.train_count, sizeof *r->order, err));
    for (size_t k = 0; k < u->groups.count; k++)
        KD_TRY(kd_alloc_array(&r->items[k], (size_t)u->epoch_steps * (size_t)c->batch_size, sizeof *r->items[k], err));
    r->begun = r->checkpointed = r->logged_at = kd_now();
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
    r->progress = kd_progress_create("train", "image", (uint64_t)(u->steps * c->batch_size), (uint64_t)(first * c->batch_size), c->json);
    kd_status status = train_to(r, last, err);
    kd_progress_finish(r->progress);
    if (status != KD_OK)
        return status;
    double seconds = kd_now() - r->begun;
    const kd_live *live = u->groups.group[0].source.live;
    char teacher[64] = "";
    if (live != NULL)
        snprintf(teacher, sizeof teacher, ", %.0f%% in the teacher", 100 * kd_live_seconds(live) / seconds);
    if (r->step > first)
        kd_log(KD_LOG_INFO, "%lld steps in %.0f s: %.1f images/s with validation, %.0f%% of the time waiting for data%s", (long long)(r->step - first), seconds,
               (double)((r->step - first) * c->batch_size) / seconds, 100 * kd_groups_wait_seconds(&u->groups) / seconds, teacher);
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
    kd_free(r.latest);
    for (int k = 0; k < KD_MAX_GROUPS; k++)
        kd_free(r.items[k]);
    kd_free(r.order);
    kd_setup_close(&r.setup);
    kd_log_open_file(NULL, NULL);
    return status;
}

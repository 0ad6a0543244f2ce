#include "train/save.h"

#include <dirent.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/base/io.h"
#include "common/base/log.h"
#include "common/base/mem.h"
#include "common/base/progress.h"
#include "train/checkpoint.h"
#include "train/export/export.h"

/* Under which the recipe of group k stands: cache, cache_2, ... */
static const char *cache_key(size_t k, char key[32]) {
    if (k == 0)
        return "cache";
    snprintf(key, 32, "cache_%zu", k + 1);
    return key;
}

static json_t *run_json(const kd_setup *s, const kd_position *at) {
    char sha[65], images[33], key[32];
    json_t *recipe = kd_source_recipe(&s->groups.group[0].source)->json;
    json_t *teacher = json_object_get(json_object_get(recipe, "teacher"), "sha256");
    kd_hex(sha, kd_source_recipe(&s->groups.group[0].source)->sha.b, 32);
    kd_hex(images, s->images.b, 16);
    json_t *json = json_pack("{s:s, s:s, s:O, s:s, s:I, s:I, s:I, s:i, s:s, s:O}", "version", kd_version, "cache", sha, "teacher", teacher, "images", images, "step",
                             (json_int_t)at->step, "validated", (json_int_t)at->validated, "steps", (json_int_t)s->steps, "threads",
                             s->threads, "device", s->backend->v->describe(s->backend), "options", s->options);
    if (s->teacher_head != NULL && json != NULL) {
        kd_hex(sha, s->teacher_head->sha.b, 32);
        json_object_set_new(json, "teacher_head", json_string(sha));
    }
    const kd_recipe *r = kd_source_recipe(&s->groups.group[0].source);
    if (json != NULL)
        json_object_set_new(json, "view_size", json_pack("[i,i]", r->image_h, r->image_w)); /* of what the students' sizes are reductions */
    for (size_t k = 1; k < s->groups.count && json != NULL; k++) {
        kd_hex(sha, kd_source_recipe(&s->groups.group[k].source)->sha.b, 32);
        json_object_set_new(json, cache_key(k, key), json_string(sha));
    }
    return json;
}

/* ---- writing ---- */

static kd_status save(kd_save *s, const kd_position *at, const char *path, kd_student *const *students, size_t n, int with_optimizer, kd_err *err) {
    if (path == NULL)
        return kd_fail(err, KD_EFAIL, "out of memory for the name of a checkpoint");
    json_t *json = run_json(s->setup, at);
    if (json == NULL)
        return kd_fail(err, KD_EFAIL, "out of memory for a checkpoint");
    kd_err cause = {0};
    kd_status status = kd_logbook_store(s->logbook, json, &cause);
    if (status == KD_OK)
        status = kd_checkpoint_write(path, students, n, json, with_optimizer, &cause);
    json_decref(json);
    if (status != KD_OK && s->saved_step >= 0)
        return kd_fail(err, status, "step %lld isn't saved: %.800s. %.250s, of step %lld, is as it was: the same command goes on from there", (long long)at->step, cause.msg, s->latest,
                       (long long)s->saved_step);
    if (status != KD_OK)
        *err = cause;
    return status;
}

kd_status kd_save_latest(kd_save *s, const kd_position *at, kd_err *err) {
    KD_TRY(save(s, at, s->latest, s->setup->students, s->setup->count, 1, err));
    s->saved_step = at->step;
    s->saved_at = kd_now();
    return KD_OK;
}

kd_status kd_save_best(kd_save *s, const kd_position *at, kd_student *student, kd_err *err) {
    char *path = kd_checkpoint_path(s->setup->config->out, "best", student->name);
    kd_status status = save(s, at, path, &student, 1, 0, err);
    kd_free(path);
    return status;
}

/* N of a name epoch-N.kdt, or 0. */
static long long epoch_of(const char *name) {
    char *end = NULL;
    if (strncmp(name, "epoch-", 6) != 0 || name[6] < '0' || name[6] > '9')
        return 0;
    long long n = strtoll(name + 6, &end, 10);
    return strcmp(end, ".kdt") == 0 ? n : 0;
}

static int ascending(const void *a, const void *b) {
    long long x = *(const long long *)a, y = *(const long long *)b;
    return (x > y) - (x < y);
}

static char *epoch_path(const kd_save *s, long long epoch) {
    return kd_asprintf("%s/checkpoints/epoch-%04lld.kdt", s->setup->config->out, epoch);
}

/* Numbers of the epochs up to `last` that are kept, ascending. */
static kd_status kept_epochs(const kd_save *s, long long last, long long **epochs, size_t *count, kd_err *err) {
    char *folder = kd_asprintf("%s/checkpoints", s->setup->config->out);
    DIR *d = folder != NULL ? opendir(folder) : NULL;
    kd_status status = KD_OK;
    *epochs = NULL;
    *count = 0;
    for (struct dirent *e; d != NULL && status == KD_OK && (e = readdir(d)) != NULL;) {
        long long n = epoch_of(e->d_name), *grown;
        if (n <= 0 || n > last)
            continue;
        grown = kd_realloc(*epochs, (*count + 1) * sizeof **epochs);
        if (grown == NULL) {
            status = kd_fail(err, KD_EFAIL, "out of memory for the list of %s", folder);
            continue;
        }
        *epochs = grown;
        grown[(*count)++] = n;
    }
    if (d != NULL)
        closedir(d);
    if (*count > 1)
        qsort(*epochs, *count, sizeof **epochs, ascending);
    kd_free(folder);
    return status;
}

static kd_status remove_old(const kd_save *s, long long last, kd_err *err) {
    size_t count, keep = (size_t)s->setup->config->keep;
    long long *epochs;
    kd_status status = kept_epochs(s, last, &epochs, &count, err);
    for (size_t i = 0; status == KD_OK && i + keep < count; i++) {
        char *path = epoch_path(s, epochs[i]);
        if (path == NULL || unlink(path) != 0)
            kd_log(KD_LOG_WARN, "checkpoint of epoch %lld can't be removed", epochs[i]);
        kd_free(path);
    }
    kd_free(epochs);
    return status;
}

kd_status kd_save_epoch(kd_save *s, const kd_position *at, kd_err *err) {
    const kd_train_config *c = s->setup->config;
    if (c->checkpoint_epochs == 0 || at->validated % c->checkpoint_epochs != 0)
        return KD_OK;
    char *path = epoch_path(s, (long long)at->validated);
    kd_status status = save(s, at, path, s->setup->students, s->setup->count, 1, err);
    kd_free(path);
    return status == KD_OK && c->keep > 0 ? remove_old(s, (long long)at->validated, err) : status;
}

/* ---- going on ---- */

/* A stored text that must be what this run has. */
static kd_status same(const json_t *stored, const char *key, const json_t *now, const char *latest, const char *advice, kd_err *err) {
    const char *a = json_string_value(json_object_get(stored, key)), *b = json_string_value(json_object_get(now, key));
    if (a != NULL && b != NULL && strcmp(a, b) == 0)
        return KD_OK;
    return kd_fail(err, KD_EMISMATCH, "%s: %s was %.16s when the run was begun and is %.16s now; %s", latest, key, a != NULL ? a : "absent", b != NULL ? b : "absent", advice);
}

static void warn_of_changes(const kd_setup *u, const json_t *stored, const json_t *now) {
    if (json_integer_value(json_object_get(stored, "threads")) != u->threads)
        kd_log(KD_LOG_WARN, "the run used %lld threads so far and goes on with %d: results stay valid, but aren't bit-equal to an uninterrupted run",
               (long long)json_integer_value(json_object_get(stored, "threads")), u->threads);
    if (!json_equal(json_object_get(stored, "device"), json_object_get(now, "device")))
        kd_log(KD_LOG_WARN, "the run was on %s and goes on on %s: results stay valid, but aren't bit-equal to an uninterrupted run",
               json_string_value(json_object_get(stored, "device")), json_string_value(json_object_get(now, "device")));
}

static kd_status check_same(const kd_save *s, const json_t *stored, kd_err *err) {
    const kd_setup *u = s->setup;
    char key[32];
    json_t *now = run_json(u, &(kd_position){0});
    if (now == NULL)
        return kd_fail(err, KD_EFAIL, "out of memory");
    kd_status status = KD_OK;
    for (size_t k = 0; k < KD_MAX_GROUPS && status == KD_OK; k++)
        if (json_object_get(stored, cache_key(k, key)) != NULL || json_object_get(now, key) != NULL || k == 0)
            status = same(stored, cache_key(k, key), now, s->latest, "give the caches of the run in their order, or its live teacher with the same options (recipes are compared), or another --out", err);
    if (status == KD_OK)
        status = kd_train_same_run(json_object_get(stored, "options"), u->options, u->config->out, err);
    if (status == KD_OK && (json_object_get(stored, "teacher_head") != NULL || json_object_get(now, "teacher_head") != NULL))
        status = same(stored, "teacher_head", now, s->latest, "give the classifier of the run with --teacher-head (its values are compared, not the file), or another --out", err);
    if (status == KD_OK)
        status = same(stored, "images", now, s->latest, "the images or views in use have changed: restore them, or give another --out", err);
    if (status == KD_OK)
        warn_of_changes(u, stored, now);
    json_decref(now);
    return status;
}

static kd_status restore(kd_save *s, const kd_checkpoint *c, kd_position *at, kd_err *err) {
    const kd_setup *u = s->setup;
    const json_t *stored = kd_checkpoint_run(c);
    long long step, validated;
    KD_TRY(check_same(s, stored, err));
    for (size_t i = 0; i < u->count; i++)
        KD_TRY(kd_checkpoint_restore(c, u->students[i], err));
    KD_TRY(kd_json_get_int(stored, "step", s->latest, &step, err));
    KD_TRY(kd_json_get_int(stored, "validated", s->latest, &validated, err));
    if (step < 0 || step > u->steps || validated < 0 || validated > step / u->epoch_steps)
        return kd_fail(err, KD_EFAIL, "%s: step %lld of %lld with %lld validated epochs can't be; the file is damaged", s->latest, step, (long long)u->steps, validated);
    *at = (kd_position){.step = step, .validated = validated};
    s->saved_step = step;
    return kd_logbook_open(&s->logbook, u, stored, step, err);
}

kd_status kd_save_resume(kd_save *s, kd_position *at, kd_logbook **logbook, kd_err *err) {
    kd_checkpoint *c;
    kd_status status;
    *at = (kd_position){0};
    if (!kd_io_exists(s->latest)) {
        status = kd_logbook_open(&s->logbook, s->setup, NULL, 0, err);
    } else {
        KD_TRY(kd_checkpoint_open(&c, s->latest, err));
        status = restore(s, c, at, err);
        kd_checkpoint_close(c);
        if (status == KD_OK)
            kd_log(KD_LOG_INFO, "resuming after step %lld of %lld", (long long)at->step, (long long)s->setup->steps);
    }
    *logbook = s->logbook;
    return status;
}

/* ---- beginning and end ---- */

static void remove_leftovers(const char *run_folder, const char *folder) {
    char *path = kd_asprintf("%s/%s", run_folder, folder);
    if (path != NULL)
        kd_io_remove_temporaries(path);
    kd_free(path);
}

kd_status kd_save_open(kd_save *s, const kd_setup *setup, kd_err *err) {
    const char *out = setup->config->out;
    *s = (kd_save){.setup = setup, .latest = kd_checkpoint_path(out, "latest", NULL), .saved_step = -1, .saved_at = kd_now()};
    if (s->latest == NULL)
        return kd_fail(err, KD_EFAIL, "out of memory");
    remove_leftovers(out, "."); /* of report.html, which is replaced after every epoch */
    remove_leftovers(out, "checkpoints");
    remove_leftovers(out, "exported");
    return KD_OK;
}

void kd_save_close(kd_save *s) {
    kd_free(s->latest);
    *s = (kd_save){0};
}

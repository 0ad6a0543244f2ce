#include "train/logbook.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "common/base/log.h"
#include "common/base/mem.h"
#include "common/base/progress.h"
#include "common/image/image.h"
#include "train/metrics.h"
#include "train/outlier.h"

enum { MAX_VALUES = 64, TAG = 160 }; /* numbers of a line */

/* What is judged of a student's steps. */
enum { LOSS = 0, GRAD_NORM = 1, JUDGED = 2 };
static const char *const judged_key[JUDGED] = {"loss", "grad_norm"}, *const judged_name[JUDGED] = {"the loss", "the gradient's norm"};

typedef struct watch {
    kd_outlier_window window[JUDGED];
    kd_step_result result; /* of the last step */
    double lr;
} watch;

struct kd_logbook {
    const kd_setup *setup;
    kd_metrics *metrics;
    kd_events *events;
    kd_progress *progress;
    watch *watch;                      /* [students] */
    double begun, stepped_at, logged_at, logged_wait; /* times */
    int64_t first, logged_step;
    kd_event_value value[MAX_VALUES];  /* of the line that is being written */
    char tag[MAX_VALUES][TAG];
};

/* ---- life ---- */

static kd_status read_watch(watch *w, const json_t *stored, const char *student, const char *what, kd_err *err) {
    const json_t *windows = json_object_get(json_object_get(stored, "outliers"), student);
    for (int k = 0; k < JUDGED; k++)
        KD_TRY(kd_outlier_parse(&w->window[k], json_object_get(windows, judged_key[k]), what, err));
    return KD_OK;
}

static kd_status open_files(kd_logbook *b, const json_t *stored, kd_err *err) {
    const char *out = b->setup->config->out;
    char *path = kd_asprintf("%s/metrics.jsonl", out), *checkpoint = kd_asprintf("the checkpoint of %s", out);
    long long metrics = 0, events = 0;
    kd_status status = path != NULL && checkpoint != NULL ? KD_OK : kd_fail(err, KD_EFAIL, "out of memory for the run's logs");
    if (status == KD_OK && stored != NULL)
        status = kd_json_get_int(stored, "metrics_bytes", checkpoint, &metrics, err);
    if (status == KD_OK && stored != NULL)
        status = kd_json_get_int(stored, "events_bytes", checkpoint, &events, err);
    for (size_t i = 0; i < b->setup->count && status == KD_OK && stored != NULL; i++)
        status = read_watch(&b->watch[i], stored, b->setup->students[i]->name, checkpoint, err);
    if (status == KD_OK && (metrics < 0 || events < 0))
        status = kd_fail(err, KD_EDAMAGED, "%s: files of %lld and %lld bytes can't be; the file is damaged", checkpoint, metrics, events);
    if (status == KD_OK)
        status = kd_metrics_open(&b->metrics, path, (uint64_t)metrics, err);
    if (status == KD_OK)
        status = kd_events_open(&b->events, out, (uint64_t)events, err);
    kd_free(path);
    kd_free(checkpoint);
    return status;
}

kd_status kd_logbook_open(kd_logbook **out, const kd_setup *setup, const json_t *stored, int64_t step, kd_err *err) {
    kd_logbook *b;
    *out = NULL;
    KD_TRY(kd_alloc_array(&b, 1, sizeof *b, err));
    b->setup = setup;
    b->first = b->logged_step = step;
    b->begun = b->logged_at = kd_now();
    for (int k = 0; k < MAX_VALUES; k++)
        b->value[k].tag = b->tag[k];
    kd_status status = kd_alloc_array(&b->watch, setup->count, sizeof *b->watch, err);
    if (status == KD_OK)
        status = open_files(b, stored, err);
    if (status != KD_OK) {
        kd_logbook_close(b);
        return status;
    }
    const kd_train_config *c = setup->config;
    b->progress = kd_progress_create("train", "image", (uint64_t)(setup->steps * setup->step_images), (uint64_t)(step * setup->step_images), c->json);
    *out = b;
    return KD_OK;
}

void kd_logbook_close(kd_logbook *b) {
    if (b == NULL)
        return;
    kd_progress_finish(b->progress);
    kd_metrics_close(b->metrics);
    kd_events_close(b->events);
    kd_free(b->watch);
    kd_free(b);
}

kd_status kd_logbook_store(kd_logbook *b, json_t *run, kd_err *err) {
    uint64_t metrics, events;
    json_t *outliers = json_object();
    for (size_t i = 0; i < b->setup->count; i++) {
        json_t *windows = json_object();
        for (int k = 0; k < JUDGED; k++)
            json_object_set_new(windows, judged_key[k], kd_outlier_json(&b->watch[i].window[k]));
        json_object_set_new(outliers, b->setup->students[i]->name, windows);
    }
    int bad = json_object_set_new(run, "outliers", outliers) != 0;
    KD_TRY(kd_metrics_sync(b->metrics, &metrics, err));
    KD_TRY(kd_events_sync(b->events, &events, err));
    bad |= json_object_set_new(run, "metrics_bytes", json_integer((json_int_t)metrics)) != 0;
    bad |= json_object_set_new(run, "events_bytes", json_integer((json_int_t)events)) != 0;
    return bad ? kd_fail(err, KD_EFAIL, "out of memory for a checkpoint") : KD_OK;
}

/* ---- lines ---- */

/* A line and the same numbers as an event. Takes over the line. */
static kd_status write_line(kd_logbook *b, const char *student, int64_t step, json_t *line, kd_err *err) {
    const char *key;
    json_t *value;
    size_t n = 0;
    json_object_foreach(line, key, value) {
        if (!json_is_number(value) || strcmp(key, "step") == 0 || strcmp(key, "epoch") == 0 || n == MAX_VALUES)
            continue;
        snprintf(b->tag[n], TAG, "%s/%s", student, key);
        b->value[n++].scalar = json_number_value(value);
    }
    KD_TRY(kd_metrics_write(b->metrics, line, err));
    return kd_events_write(b->events, step, b->value, n, err);
}

/* prefix_TERM of every term: values[i] / n. */
static void put_terms(json_t *line, const char *prefix, const kd_loss *loss, const double *values, double n) {
    char key[2 * KD_TERM_NAME];
    for (int i = 0; i < loss->terms; i++) {
        snprintf(key, sizeof key, "%s_%s", prefix, loss->term[i].name);
        json_object_set_new(line, key, json_real(values[i] / n));
    }
}

static void put_recipes(json_t *line, const kd_student *s, const kd_step_result *x) {
    for (int k = 0; k < s->programs && s->programs > 1; k++) {
        char key[24];
        snprintf(key, sizeof key, "loss_recipe_%d", k + 1);
        json_object_set_new(line, key, json_real(x->group[k]));
    }
}

static json_t *step_line(const kd_logbook *b, size_t i, int64_t step, int outlier) {
    const kd_setup *u = b->setup;
    const kd_student *s = u->students[i];
    const kd_step_result *x = &b->watch[i].result;
    double seconds = b->stepped_at - b->logged_at, wait = kd_groups_wait_seconds(&u->groups) - b->logged_wait;
    double images = (double)((step - b->logged_step) * u->step_images);
    json_t *line = json_pack("{s:I, s:I, s:s, s:f}", "step", (json_int_t)step, "epoch", (json_int_t)((step - 1) / u->epoch_steps + 1), "student", s->name, "loss", x->loss);
    json_t *rest = json_pack("{s:f, s:f, s:f, s:f}", "lr", b->watch[i].lr, "grad_norm", x->grad_norm, "images_per_s", seconds > 0 ? images / seconds : 0.0, "data_wait",
                             seconds > 0 ? wait / seconds : 0.0);
    if (line == NULL || rest == NULL) {
        json_decref(line);
        json_decref(rest);
        return NULL;
    }
    put_terms(line, "loss", &s->loss, x->term, 1);
    put_recipes(line, s, x);
    json_object_update(line, rest);
    if (outlier)
        json_object_set_new(line, "outlier", json_true());
    json_decref(rest);
    return line;
}

void kd_logbook_step(kd_logbook *b, size_t i, const kd_step_result *x, double lr) {
    b->watch[i].result = *x;
    b->watch[i].lr = lr;
}

/* Whether the last step of student i is an outlier in anything; says so. */
static int judge(kd_logbook *b, size_t i, int64_t step) {
    watch *w = &b->watch[i];
    const double judged[JUDGED] = {w->result.loss, w->result.grad_norm};
    int outlier = 0;
    for (int k = 0; k < JUDGED; k++) {
        double median = kd_outlier_median(&w->window[k]);
        int steps = w->window[k].count;
        if (!kd_outlier_add(&w->window[k], judged[k]))
            continue;
        outlier = 1;
        kd_log(KD_LOG_WARN, "step %lld, %s: %s is %.4g, %.0f times the median of the last %d steps; one alone is harmless (a strange batch), many ask for a lower --lr or a smaller --clip",
               (long long)step, b->setup->students[i]->name, judged_name[k], judged[k], judged[k] / median, steps);
    }
    return outlier;
}

static void show_progress(kd_logbook *b, int64_t step) {
    const kd_setup *u = b->setup;
    char extra[160];
    int n = snprintf(extra, sizeof extra, "epoch %lld/%lld, step %lld, loss", (long long)((step - 1) / u->epoch_steps + 1), (long long)u->config->epochs, (long long)step);
    for (size_t i = 0; i < u->count && n < (int)sizeof extra; i++)
        n += snprintf(extra + n, sizeof extra - (size_t)n, "%s%.4f", i > 0 ? " / " : " ", b->watch[i].result.loss);
    if (n < (int)sizeof extra)
        snprintf(extra + n, sizeof extra - (size_t)n, ", lr %.2e", b->watch[0].lr);
    kd_progress_update(b->progress, (uint64_t)(step * u->step_images), kd_groups_wait_seconds(&u->groups), extra);
}

kd_status kd_logbook_stepped(kd_logbook *b, int64_t step, kd_err *err) {
    const kd_setup *u = b->setup;
    int due = step % u->config->log_every == 0;
    b->stepped_at = kd_now(); /* one time for all: they share the speed */
    for (size_t i = 0; i < u->count; i++) {
        int outlier = judge(b, i, step);
        if (due || outlier)
            KD_TRY(write_line(b, u->students[i]->name, step, step_line(b, i, step, outlier), err));
    }
    if (due)
        kd_logbook_resume_clock(b, step);
    show_progress(b, step);
    return KD_OK;
}

void kd_logbook_resume_clock(kd_logbook *b, int64_t step) {
    b->logged_at = kd_now();
    b->logged_step = step;
    b->logged_wait = kd_groups_wait_seconds(&b->setup->groups);
}

/* ---- epochs ---- */

/* json_real refuses NaN, which stands for what wasn't measured or means nothing for the loss; the key is then absent. */
static void put_validation(json_t *line, const char *prefix, const kd_val_result *v, const kd_loss *loss) {
    static const char *const name[KD_TARGETS] = {"cls", "patch"};
    char key[32];
    snprintf(key, sizeof key, "%s_loss", prefix);
    json_object_set_new(line, key, json_real(v->loss));
    put_terms(line, key, loss, v->term, 1);
    for (int f = 0; f < KD_TARGETS; f++) {
        snprintf(key, sizeof key, "%s_r2_%s", prefix, name[f]);
        json_object_set_new(line, key, json_real(v->r2[f]));
        snprintf(key, sizeof key, "%s_cos_%s", prefix, name[f]);
        json_object_set_new(line, key, json_real(v->cosine[f]));
    }
    snprintf(key, sizeof key, "%s_agreement", prefix);
    json_object_set_new(line, key, json_real(v->agreement));
}

static void put_knn(json_t *line, const kd_epoch_facts *f) {
    char key[32];
    for (size_t i = 0; i < f->knn_count; i++) {
        snprintf(key, sizeof key, "knn_top1_k%d", f->knn[i].k);
        json_object_set_new(line, key, json_real(f->knn[i].top1));
        snprintf(key, sizeof key, "knn_top5_k%d", f->knn[i].k);
        json_object_set_new(line, key, json_real(f->knn[i].top5));
    }
}

/* ", R2 cls 0.512 patch 0.401, cos cls 0.7 .., agreement 0.3": what means something for the loss and was measured. */
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
    if (!isnan(v->agreement) && used < cap)
        snprintf(buf + used, cap - used, ", agreement %.3f", v->agreement);
    return buf;
}

static void say_epoch(const kd_logbook *b, const kd_student *s, double train_loss, const kd_epoch_facts *f) {
    const kd_val_result *v = f->held != NULL ? f->held : f->seen;
    char here[160], there[160], knn[160] = "";
    int n = 0;
    for (size_t i = 0; i < f->knn_count && n < (int)sizeof knn; i++)
        n += snprintf(knn + n, sizeof knn - (size_t)n, "%s%d: %.2f %%", i == 0 ? "; k-NN top-1 k=" : ", k=", f->knn[i].k, 100 * f->knn[i].top1);
    kd_log(KD_LOG_INFO, "epoch %lld/%lld %s: loss %.4f, %s loss %.4f%s (seen: loss %.4f%s)%s%s", (long long)f->epoch, (long long)b->setup->config->epochs, s->name, train_loss,
           f->held != NULL ? "val" : "seen", v->loss, quality_text(v, here, sizeof here), f->seen->loss, quality_text(f->seen, there, sizeof there), knn, f->best ? ", best so far" : "");
}

kd_status kd_logbook_epoch(kd_logbook *b, size_t i, int64_t step, const kd_epoch_facts *f, kd_err *err) {
    const kd_student *s = b->setup->students[i];
    double n = s->summed > 0 ? (double)s->summed : 1;
    json_t *line = json_pack("{s:I, s:I, s:s, s:f}", "step", (json_int_t)step, "epoch", (json_int_t)f->epoch, "student", s->name, "train_loss", s->sum[0] / n);
    if (line == NULL)
        return kd_fail(err, KD_EFAIL, "out of memory for a line of metrics");
    put_terms(line, "train_loss", &s->loss, s->sum + 1, n);
    if (f->held != NULL)
        put_validation(line, "val", f->held, &s->loss);
    put_validation(line, "seen", f->seen, &s->loss);
    put_knn(line, f);
    json_object_set_new(line, "best", json_boolean(f->best));
    say_epoch(b, s, s->sum[0] / n, f);
    return write_line(b, s->name, step, line, err);
}

kd_status kd_logbook_maps(kd_logbook *b, size_t i, int64_t step, const kd_maps *maps, kd_err *err) {
    kd_event_value v = {.tag = b->tag[0]};
    uint8_t *rgb, *png;
    KD_TRY(kd_maps_strip(maps, (int)i, &rgb, &v.height, &v.width, err));
    if (rgb == NULL)
        return KD_OK;
    kd_status status = kd_png_encode(&png, &v.png_size, rgb, v.width, v.height, "a picture of the events", err);
    kd_free(rgb);
    KD_TRY(status);
    v.png = png;
    snprintf(b->tag[0], TAG, "%s/maps", b->setup->students[i]->name);
    status = kd_events_write(b->events, step, &v, 1, err);
    kd_free(png);
    return status;
}

void kd_logbook_finish(kd_logbook *b, int64_t step) {
    kd_progress_finish(b->progress);
    b->progress = NULL;
    double seconds = kd_now() - b->begun;
    if (step > b->first)
        kd_log(KD_LOG_INFO, "%lld steps in %.0f s: %.1f images/s with validation, %.0f%% of the time waiting for data", (long long)(step - b->first), seconds,
               (double)((step - b->first) * b->setup->step_images) / seconds, 100 * kd_groups_wait_seconds(&b->setup->groups) / seconds);
}

#include "precompute/run.h"

#include <inttypes.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "common/base/io.h"
#include "common/base/log.h"
#include "common/base/progress.h"
#include "common/data/skip_list.h"
#include "precompute/describe.h"
#include "precompute/devices.h"
#include "precompute/fill.h"
#include "precompute/inspect.h"
#include "precompute/kinds.h"
#include "precompute/output.h"
#include "precompute/probe.h"
#include "precompute/sealed.h"
#include "precompute/timing.h"
#include "common/data/views.h"

/* One row of the teacher's batch. */
typedef struct batch_row {
    kd_image_entry image;
    kd_view_entry view;
    char hidden[KD_HIDDEN_PATH]; /* image.rel, with --paths hash */
    kd_record_buf *record; /* one per slot */
} batch_row;

/* One stored record of every view: a feature of a layer. */
typedef struct record_slot {
    kd_feature feature; /* of the cache: each patch target is one */
    uint16_t layer;
    size_t bytes;       /* of a payload */
} record_slot;

enum { MAX_SLOTS = KD_FEATURES * KD_MAX_LAYERS };

/* Views that the teacher sees at once, from their pixels to their records. */
typedef struct view_batch {
    batch_row *row; /* [batch_size] */
    int rows;
    uint8_t *pixels;
    kd_record_buf *records; /* [batch_size][slots] */
    /* of each slot; payload and stats between the end of its fetch and the next begin */
    kd_teacher_fetch *fetch[MAX_SLOTS];
    const uint8_t *payload[MAX_SLOTS];
    const kd_encode_stats *stats[MAX_SLOTS];
} view_batch;

typedef struct run {
    const kd_precompute_config *config; /* resolved */
    kd_precompute_config resolved;      /* as given, but with the batch size that --batch-size 0 means */
    int threads;
    kd_dataset whole, some;
    const kd_dataset *data; /* what this run works on: all, or some of it (--shard, --fill) */
    kd_fill fill;           /* no rows: every view */
    kd_weights *weights;
    kd_sha256 weights_sha;
    kd_backend *backend;
    kd_model_info model;
    kd_policy policy;
    kd_run_plan plan;
    kd_locator *files; /* with ids; NULL where nothing is mixed, as the next two */
    kd_hash128 *ids;
    kd_mix_set mix;
    kd_recipe recipe;
    kd_teacher *teacher;

    kd_output out;
    pthread_mutex_t writer_lock; /* loader threads ask it what is done while the main thread adds */

    record_slot slot[MAX_SLOTS];
    int slots;
    view_batch batch[2]; /* where the device has memory of its own: it works on one while the other one's features come back */
    int batches;
    view_batch *filling, *flying; /* flying: with the device; NULL: none */
    view_batch *encoding;         /* that whose records are being made */
    kd_record_scratch *scratch; /* [threads] */
    kd_stages stages;           /* of the main thread, from the start of the program */
    double loaders[KD_STAGES];  /* what loader threads took, by the stages of views.h, once they have ended */
    kd_status encode_status;
    kd_err encode_err;

    uint64_t views_wanted, views_before, views_new, skipped, duplicates;
    uint64_t max_skipped;
    kd_skip_list *skip_list; /* while files are read */
} run;

static size_t view_bytes(const run *r) {
    return (size_t)r->policy.image_h * (size_t)r->policy.image_w * 3;
}

static kd_run_facts facts(const run *r) {
    return (kd_run_facts){.config = r->config, .data = r->data, .weights = r->weights, .weights_sha = &r->weights_sha, .model = &r->model, .policy = &r->policy, .plan = &r->plan};
}

/* ---- set-up ---- */

/* The images of this run: all, a part, or those of the views to fill. */
static kd_status open_images(run *r, kd_err *err) {
    const kd_precompute_config *c = r->config;
    KD_TRY(kd_dataset_open(&r->whole, c->images, c->null ? KD_LIST_NUL : KD_LIST_LINES, err));
    r->data = &r->whole;
    if (c->fill == NULL && r->out.part.parts == 1)
        return KD_OK;
    r->data = &r->some;
    if (c->fill == NULL)
        return kd_dataset_part(&r->some, &r->whole, r->out.part.part, r->out.part.parts, err);
    KD_TRY(kd_fill_read(&r->fill, c->fill, err));
    return kd_fill_select(&r->fill, &r->some, &r->whole, r->threads, err);
}

/* What is stored follows from the whole set; counted are the views of this run. */
static kd_status open_plan(run *r, kd_err *err) {
    int lists = r->fill.count > 0;
    KD_TRY(kd_run_plan_make(&r->plan, r->config, &r->policy, &r->model, r->whole.count, err));
    r->views_wanted = lists ? kd_fill_view_count(&r->fill) : (uint64_t)r->data->count * r->plan.views;
    if (r->data != &r->whole)
        kd_run_plan_narrow(&r->plan, r->data->count, lists ? r->fill.views : r->plan.views, r->views_wanted);
    return KD_OK;
}

static kd_status open_inputs(run *r, kd_err *err) {
    const kd_precompute_config *c = r->config;
    KD_TRY(kd_output_choose(&r->out, c, err));
    int height, width;
    KD_TRY(kd_image_size_parse(c->image_size, "--image-size", &height, &width, err));
    KD_TRY(kd_policy_load(&r->policy, c->augment, height, width, err));
    KD_TRY(kd_weights_open(&r->weights, c->weights, err));
    KD_TRY(kd_model_find_teacher(&r->model, c->teacher, r->weights, &(kd_teacher_choice){c->weights_key, c->positions, c->normalize}, err));
    KD_TRY(kd_model_check_size(&r->model, height, width, err));
    KD_TRY(open_images(r, err));
    KD_TRY(kd_max_skipped_parse(c->max_skipped, r->data->count, &r->max_skipped, err));
    KD_TRY(open_plan(r, err));
    return kd_weights_sha256(r->weights, &r->weights_sha, err);
}

/* The ids of the whole set, before the first view: partners are drawn from them, and their digest is in the recipe. */
static kd_status open_mix(run *r, kd_err *err) {
    kd_log(KD_LOG_INFO, "views are mixed with those of other images: all files are read once for their ids, and each mixed view needs a decode of its own");
    KD_TRY(kd_locator_create_over(&r->files, &r->whole, err)); /* partners come from all images, also for a part of them */
    KD_TRY(kd_locator_hash_all(r->files, r->threads, NULL, err));
    KD_TRY(kd_alloc_array(&r->ids, r->whole.count, sizeof *r->ids, err));
    r->mix = (kd_mix_set){.files = r->files, .id = r->ids, .count = kd_locator_picture_ids(r->files, r->ids)};
    if (r->mix.count == 0)
        return kd_fail(err, KD_EFAIL, "%s: none of the %zu files begins like a picture that can be read", r->config->images, r->whole.count);
    if (r->mix.count == 1)
        kd_log(KD_LOG_WARN, "%s holds one image: there is no other one to mix it with, so its views stay as they are", r->config->images);
    return KD_OK;
}

static kd_status open_recipe(run *r, kd_err *err) {
    if (r->policy.mix_p > 0)
        KD_TRY(open_mix(r, err));
    return kd_run_recipe(&r->recipe, r->config, &r->plan, &r->policy, &r->model, &r->weights_sha, r->ids, r->mix.count, err);
}

enum { PLAIN_BATCH = 16, SMALLEST_BATCH = 8, LARGEST_BATCH = 256 };

/* --batch-size 0 on a device: from its whole memory, not from what happens to be free, because a cache's bits may depend on the batch size. Measured on a teacher with a small batch. */
static kd_status choose_batch(run *r, kd_teacher_config *t, kd_err *err) {
    size_t left, total;
    r->resolved.batch_size = PLAIN_BATCH;
    if (r->backend->v->memory == NULL)
        return KD_OK;
    KD_TRY(r->backend->v->memory(r->backend, &left, &total, err));
    t->batch = SMALLEST_BATCH;
    KD_TRY(kd_teacher_open(&r->teacher, r->backend, r->weights, t, err));
    size_t model = kd_teacher_model_bytes(r->teacher), each = kd_teacher_work_bytes(r->teacher) / SMALLEST_BATCH, room = total / 5 * 3;
    kd_teacher_close(r->teacher);
    r->teacher = NULL;
    int64_t batch = LARGEST_BATCH;
    while (batch > SMALLEST_BATCH && model + (size_t)batch * each > room)
        batch /= 2;
    r->resolved.batch_size = batch;
    kd_log(KD_LOG_INFO, "batch size %d, from the device's memory (--batch-size)", (int)batch);
    return KD_OK;
}

static kd_status open_teacher(run *r, kd_err *err) {
    const kd_precompute_config *c = r->config;
    kd_teacher_config t = {.model = &r->model, .choice = &r->plan.choice, .height = r->policy.image_h, .width = r->policy.image_w,
                           .precision = strcmp(c->precision, "bf16") == 0 ? KD_BF16 : KD_F32, .store = r->plan.dtype,
                           .target = r->plan.target, .targets = r->plan.targets};
    KD_TRY(kd_backend_open(&r->backend, c->device, r->threads, err));
    if (c->batch_size == 0)
        KD_TRY(choose_batch(r, &t, err));
    t.batch = (int)c->batch_size;
    return kd_teacher_open(&r->teacher, r->backend, r->weights, &t, err);
}

static void open_slots(run *r) {
    int layers = kd_selection_layers(&r->plan.choice);
    KD_ASSERT(layers * KD_FEATURES <= MAX_SLOTS);
    for (int i = 0; i < layers; i++)
        for (kd_feature f = 0; f < KD_FEATURES; f++) {
            int target;
            kd_feature output = kd_feature_output(f, &target);
            if ((kd_plan_features(&r->plan) & 1u << f) == 0)
                continue;
            kd_encode_spec spec = kd_teacher_spec(r->teacher, output, target);
            r->slot[r->slots++] = (record_slot){.feature = f, .layer = r->plan.choice.layer[i], .bytes = kd_encode_bytes(&spec)};
        }
}

static kd_status open_batch(run *r, view_batch *b, kd_err *err) {
    size_t batch = (size_t)r->config->batch_size;
    KD_TRY(kd_alloc_array(&b->row, batch, sizeof *b->row, err));
    KD_TRY(kd_alloc_array(&b->records, batch * (size_t)r->slots, sizeof *b->records, err));
    for (size_t i = 0; i < batch; i++)
        b->row[i].record = b->records + i * (size_t)r->slots;
    for (int k = 0; k < r->slots; k++) {
        int target;
        kd_feature output = kd_feature_output(r->slot[k].feature, &target);
        KD_TRY(kd_teacher_fetch_create(&b->fetch[k], r->teacher, output, r->slot[k].layer, target, err));
    }
    return kd_alloc_array(&b->pixels, batch, view_bytes(r), err);
}

static kd_status open_buffers(run *r, kd_err *err) {
    open_slots(r);
    r->batches = r->backend->v->host_memory ? 1 : 2;
    r->filling = &r->batch[0];
    for (int i = 0; i < r->batches; i++)
        KD_TRY(open_batch(r, &r->batch[i], err));
    return kd_alloc_array(&r->scratch, (size_t)r->threads, sizeof *r->scratch, err);
}

/* What the run reserves beside the model: the teacher's work memory, payloads and their compressed records, pixels of the batch and of the loader's slots; where the model lies in the host's memory too, what the
 * writer holds and the libraries. */
static uint64_t planned_bytes(const run *r) {
    uint64_t batch = (uint64_t)r->config->batch_size, payloads = 0, host = 0;
    if (r->backend->v->host_memory)
        host = KD_MEM_LIBRARIES + (r->plan.cache_bytes < KD_WRITER_MEMORY ? r->plan.cache_bytes : KD_WRITER_MEMORY);
    for (int i = 0; i < r->slots; i++)
        payloads += r->slot[i].bytes;
    return host + kd_teacher_work_bytes(r->teacher) + (uint64_t)r->batches * batch * (2 * payloads + view_bytes(r)) + kd_view_stage_slots(r->threads) * (uint64_t)r->plan.views * view_bytes(r);
}

/* New reference: the whole set, also for a part of it. */
static json_t *dataset_json(const run *r) {
    uint64_t bytes = 0;
    for (size_t i = 0; i < r->whole.count; i++)
        bytes += r->whole.file[i].size;
    json_t *d = json_pack("{s:I, s:I}", "files", (json_int_t)r->whole.count, "bytes", (json_int_t)bytes);
    if (r->config->dataset_name != NULL)
        json_object_set_new(d, "name", kd_json_bytes(r->config->dataset_name, strlen(r->config->dataset_name)));
    return d;
}

static json_t *provenance(const run *r) {
    const kd_precompute_config *c = r->config;
    char created[32];
    time_t now = time(NULL);
    struct tm utc;
    strftime(created, sizeof created, "%Y-%m-%dT%H:%M:%SZ", gmtime_r(&now, &utc));
    json_t *p = json_pack("{s:s, s:s, s:s, s:s, s:i, s:i, s:s, s:s}", "created", created, "program", kd_version, "backend", r->backend->v->describe(r->backend),
                          "precision", c->precision, "batch_size", (int)c->batch_size, "zstd_level", (int)c->zstd_level, "decoder", kd_decoder_version(), "teacher_name", r->model.name);
    kd_run_facts known = facts(r);
    json_object_set_new(p, "weights", kd_describe_weights(&known));
    json_object_set_new(p, "dataset", dataset_json(r));
    const char *const key[] = {"note", "license", "contact"};
    const char *const text[] = {c->note, c->license, c->contact};
    for (int i = 0; i < 3; i++)
        if (text[i] != NULL)
            json_object_set_new(p, key[i], kd_json_bytes(text[i], strlen(text[i])));
    return p;
}

/* ---- one batch: teacher, encode, compress, store ---- */

static void encode_row(void *ctx, int worker, size_t i) {
    run *r = ctx;
    kd_err err = {0};
    const view_batch *b = r->encoding;
    batch_row *row = &b->row[i];
    for (int k = 0; k < r->slots; k++) {
        const record_slot *slot = &r->slot[k];
        kd_record_head head = kd_recipe_head(&r->recipe, slot->feature, &row->view.image, row->view.view, slot->layer);
        const kd_encode_stats *s = &b->stats[k][i];
        head.view_hash = row->view.view_hash;
        head.square = s->square;
        head.fidelity = (kd_fidelity){.xx = s->xx, .qq = s->qq, .err2 = s->err2, .worst = s->worst};
        kd_status status = kd_record_encode(&row->record[k], &head, b->payload[k] + i * slot->bytes, (int)r->config->zstd_level, &r->scratch[worker], &err);
        if (status != KD_OK) {
            pthread_mutex_lock(&r->writer_lock);
            r->encode_status = status;
            r->encode_err = err;
            pthread_mutex_unlock(&r->writer_lock);
        }
    }
}

static kd_status store_row(run *r, batch_row *row, kd_err *err) {
    kd_record_ref ref[MAX_SLOTS];
    for (int k = 0; k < r->slots; k++)
        ref[k] = (kd_record_ref){.feature = r->slot[k].feature, .layer = r->slot[k].layer, .bytes = row->record[k].bytes, .size = row->record[k].size};
    return kd_shard_writer_add_view(r->out.writer, &row->image, &row->view, ref, (size_t)r->slots, err);
}

static int device_works_alone(const run *r) {
    return !r->backend->v->host_memory;
}

/* The batch is given to the teacher; where the device works on its own, this returns at once. */
static kd_status start(run *r, view_batch *b, kd_err *err) {
    int before = kd_stages_enter(&r->stages, KD_TIMING_TEACHER);
    KD_TRY(kd_teacher_run(r->teacher, b->pixels, b->rows, err));
    kd_stages_enter(&r->stages, KD_TIMING_ENCODE);
    for (int k = 0; k < r->slots; k++)
        KD_TRY(kd_teacher_fetch_begin(b->fetch[k], b->rows, err));
    kd_stages_enter(&r->stages, before);
    return KD_OK;
}

/* What start began comes back and is compressed. */
static kd_status finish(run *r, view_batch *b, kd_err *err) {
    int before = kd_stages_enter(&r->stages, device_works_alone(r) ? KD_TIMING_DEVICE : KD_TIMING_ENCODE);
    for (int k = 0; k < r->slots; k++)
        KD_TRY(kd_teacher_fetch_end(b->fetch[k], &b->payload[k], &b->stats[k], err));
    r->encode_status = KD_OK;
    r->encoding = b;
    kd_stages_enter(&r->stages, KD_TIMING_COMPRESS);
    kd_parallel_for(r->threads, (size_t)b->rows, encode_row, r);
    kd_stages_enter(&r->stages, before);
    if (r->encode_status != KD_OK && err != NULL)
        *err = r->encode_err;
    return r->encode_status;
}

static kd_status finish_and_store(run *r, view_batch *b, kd_err *err) {
    kd_status status = finish(r, b, err);
    int before = kd_stages_enter(&r->stages, KD_TIMING_WRITE);
    pthread_mutex_lock(&r->writer_lock);
    for (int i = 0; i < b->rows && status == KD_OK; i++) {
        status = store_row(r, &b->row[i], err);
        r->views_new += status == KD_OK;
    }
    pthread_mutex_unlock(&r->writer_lock);
    kd_stages_enter(&r->stages, before);
    b->rows = 0;
    return status;
}

/* What is with the device is stored. */
static kd_status land(run *r, kd_err *err) {
    view_batch *b = r->flying;
    r->flying = NULL;
    return b != NULL ? finish_and_store(r, b, err) : KD_OK;
}

/* The batch that was filled takes off; the one before it lands meanwhile and is filled next. */
static kd_status flush(run *r, kd_err *err) {
    view_batch *full = r->filling;
    if (full->rows == 0)
        return KD_OK;
    KD_TRY(start(r, full, err));
    if (r->batches == 1)
        return finish_and_store(r, full, err);
    kd_status status = land(r, err);
    if (status != KD_OK) { /* nothing is stored behind a failure */
        full->rows = 0;
        return status;
    }
    r->flying = full;
    r->filling = full == &r->batch[0] ? &r->batch[1] : &r->batch[0];
    return KD_OK;
}

/* ---- dry run ---- */

static kd_status probe_batch(void *ctx, double *teacher, double *storing, kd_err *err) {
    run *r = ctx;
    view_batch *b = r->filling;
    double begin = kd_now(), computed;
    b->rows = (int)r->config->batch_size;
    kd_status status = start(r, b, err);
    if (status == KD_OK)
        status = r->backend->v->sync(r->backend, err);
    computed = kd_now();
    if (status == KD_OK)
        status = finish(r, b, err);
    b->rows = 0;
    *teacher += computed - begin;
    *storing += kd_now() - computed;
    return status;
}

/* The sample's records are made as the run's, but of unmixed views: mixing needs the ids of all files. */
static kd_status measure_speed(run *r, kd_probe_rates *rates, kd_err *err) {
    kd_policy plain = r->policy;
    plain.mix_p = 0;
    KD_TRY(kd_run_recipe(&r->recipe, r->config, &r->plan, &plain, &r->model, &r->weights_sha, NULL, 0, err));
    kd_probe probe = {.data = r->data, .policy = &plain, .decode = {.exif_apply = r->recipe.exif_apply, .max_pixels = r->config->max_pixels}, .seed = (uint64_t)r->config->seed,
                      .views = r->plan.views, .threads = r->threads, .batch = (int)r->config->batch_size, .pixels = r->filling->pixels, .compute = probe_batch, .ctx = r};
    return kd_probe_run(rates, &probe, err);
}

/* Looks at the kinds of a sample of the files and tries how fast they would be done. */
static kd_status dry_run(run *r, kd_err *err) {
    kd_kinds kinds;
    kd_probe_rates rates;
    if (r->data->count == 0) {
        kd_log(KD_LOG_INFO, "none of the listed images is there: no speed to measure");
        return KD_OK;
    }
    KD_TRY(kd_kinds_sample(&kinds, r->data, err));
    kd_kinds_log(&kinds, r->data);
    KD_TRY(measure_speed(r, &rates, err));
    kd_run_facts known = facts(r);
    kd_describe_speed(&known, &rates, &kinds, r->views_wanted, kd_teacher_flops(r->teacher), r->threads);
    return KD_OK;
}

/* ---- items ---- */

/* Whether this run has nothing to do for a view. Called from loader threads too. */
static int view_is_stored(void *ctx, const kd_hash128 *id, uint32_t view) {
    run *r = ctx;
    if (r->fill.count > 0 && !kd_fill_has(&r->fill, id, view))
        return 1;
    pthread_mutex_lock(&r->writer_lock);
    int stored = kd_shard_writer_has_view(r->out.writer, id, view);
    pthread_mutex_unlock(&r->writer_lock);
    return stored;
}

static kd_status report_skip(run *r, const char *rel, const char *reason, kd_err *err) {
    r->skipped++;
    kd_log(KD_LOG_WARN, "skipped: %s", reason);
    KD_TRY(kd_skip_list_add(r->skip_list, rel, reason, err));
    if (!r->config->json)
        return KD_OK;
    json_t *line = json_pack("{s:s, s:o, s:s}", "type", "skipped", "path", kd_json_bytes(rel, strlen(rel)), "reason", reason);
    kd_json_line(line);
    json_decref(line);
    return KD_OK;
}

/* Images of the list to fill that no file has. */
static kd_status report_lost(run *r, kd_err *err) {
    for (size_t i = 0; i < r->fill.count; i++) {
        const kd_fill_row *row = &r->fill.row[i];
        char id[33];
        kd_err reason;
        if (!row->lost)
            continue;
        kd_hex(id, row->image.b, sizeof row->image.b);
        kd_fail(&reason, KD_EFAIL, "%s: neither this file nor another one of %s has the id %s", row->path, r->config->images, id);
        KD_TRY(report_skip(r, row->path, reason.msg, err));
    }
    return KD_OK;
}

/* The same bytes under a second name, made before the first one's views were stored. */
static int is_in(const view_batch *b, const kd_hash128 *id, uint32_t view) {
    for (int i = 0; b != NULL && i < b->rows; i++)
        if (b->row[i].view.view == view && memcmp(&b->row[i].view.image, id, sizeof *id) == 0)
            return 1;
    return 0;
}

static int is_pending(const run *r, const kd_hash128 *id, uint32_t view) {
    return is_in(r->filling, id, view) || is_in(r->flying, id, view);
}

/* What the cache calls the file. */
static const char *recorded_path(const run *r, batch_row *row, size_t file) {
    const char *rel = r->data->file[file].rel;
    if (strcmp(r->config->paths, "hash") != 0)
        return rel;
    kd_hidden_path(row->hidden, rel);
    return row->hidden;
}

static kd_status take_item(run *r, const kd_view_item *item, kd_err *err) {
    if (item->problem.status != KD_OK)
        return report_skip(r, r->data->file[item->file].rel, item->problem.msg, err);
    for (uint32_t i = 0; i < item->count; i++) {
        if (is_pending(r, &item->id, item->view[i]) || view_is_stored(r, &item->id, item->view[i])) {
            r->duplicates += i == 0;
            continue;
        }
        view_batch *b = r->filling;
        batch_row *row = &b->row[b->rows];
        row->image = (kd_image_entry){.image = item->id, .rel = recorded_path(r, row, item->file), .file_size = item->size, .width = item->width, .height = item->height,
                                      .views = r->plan.views};
        row->view = (kd_view_entry){.image = item->id, .view = item->view[i], .view_hash = item->hash[i], .plan = item->plan[i]};
        if (item->partner != NULL)
            row->view.partner = item->partner[i];
        memcpy(b->pixels + (size_t)b->rows * view_bytes(r), item->pixels + i * view_bytes(r), view_bytes(r));
        if (++b->rows == r->config->batch_size)
            KD_TRY(flush(r, err));
    }
    return KD_OK;
}

static kd_status take_all(run *r, kd_ordered *q, kd_err *err) {
    uint64_t files = 0;
    kd_progress *progress = kd_progress_create("precompute", "view", r->views_wanted, r->views_before, r->config->json);
    kd_status status = KD_OK;
    while (status == KD_OK) {
        void *slot;
        status = kd_stop_requested();
        if (status != KD_OK) {
            kd_fail(err, status, "stopped with %" PRIu64 " views stored; run the same command again to go on", kd_shard_writer_totals(r->out.writer).views);
            break;
        }
        kd_stages_enter(&r->stages, KD_TIMING_WAIT);
        status = kd_ordered_next(q, &slot, err);
        kd_stages_enter(&r->stages, KD_TIMING_BATCH);
        if (status != KD_OK)
            break;
        status = take_item(r, slot, err);
        kd_ordered_release(q, slot);
        files++;
        kd_progress_update(progress, r->views_before + r->views_new, kd_ordered_wait_seconds(q), NULL);
    }
    kd_progress_finish(progress);
    if (status == KD_DONE)
        status = flush(r, err);
    /* What was computed before a stop or an error is kept; the first error is the one to report. */
    kd_err ignored = {0};
    kd_status landed = land(r, status == KD_OK ? err : &ignored);
    status = status == KD_OK ? landed : status;
    kd_stages_enter(&r->stages, KD_TIMING_WRITE);
    kd_status commit = kd_shard_writer_commit(r->out.writer, status == KD_OK ? err : &ignored);
    kd_stages_enter(&r->stages, KD_TIMING_OTHER);
    return status == KD_OK ? commit : status;
}

/* ---- the end ---- */

static void tell_timing(run *r) {
    kd_stages_enter(&r->stages, 0);
    kd_timing_tell(&r->stages, r->loaders, device_works_alone(r));
}

static kd_status summarise(run *r, double seconds, kd_err *err) {
    kd_shard_totals t = kd_shard_writer_totals(r->out.writer);
    uint64_t bytes = t.bytes, views = t.views;
    char size[32], per[32], shards[48] = "";
    if (r->out.folder)
        snprintf(shards, sizeof shards, " in %zu shard%s", t.shards, t.shards == 1 ? "" : "s");
    double rate = seconds > 0 ? (double)r->views_new / seconds : 0, per_view = views > 0 ? (double)bytes / (double)views : 0;
    kd_log(KD_LOG_INFO, "sealed %s: %" PRIu64 " views%s, %s, %s a view; %" PRIu64 " new at %.1f views/s; %" PRIu64 " images skipped, %" PRIu64 " duplicates", r->config->cache,
           views, shards, kd_io_size_text(bytes, size, sizeof size), kd_io_size_text((uint64_t)per_view, per, sizeof per), r->views_new, rate, r->skipped, r->duplicates);
    tell_timing(r);
    if (r->config->json) {
        json_t *line = json_pack("{s:s, s:s, s:I, s:I, s:I, s:I, s:I, s:f, s:f, s:f}", "type", "summary", "cache", r->config->cache, "views", (json_int_t)views, "new_views",
                                 (json_int_t)r->views_new, "skipped", (json_int_t)r->skipped, "duplicates", (json_int_t)r->duplicates, "bytes", (json_int_t)bytes,
                                 "bytes_per_view", per_view, "views_per_s", rate, "seconds", seconds);
        kd_timing_json(line, &r->stages, r->loaders, device_works_alone(r));
        kd_json_line(line);
        json_decref(line);
    }
    if (r->skipped > r->max_skipped)
        return kd_fail(err, KD_ESKIPPED, "%" PRIu64 " images were skipped (listed in %s.skipped.tsv) and --max-skipped allows %" PRIu64 "; the cache is sealed without them", r->skipped,
                       r->out.product, r->max_skipped);
    return KD_OK;
}

static kd_status finish_skip_list(run *r, kd_err *err) {
    kd_skip_list *list = r->skip_list;
    r->skip_list = NULL;
    return kd_skip_list_finish(list, err);
}

static kd_status fill_cache(run *r, kd_err *err) {
    kd_decode_options decode = {.exif_apply = r->recipe.exif_apply, .max_pixels = r->config->max_pixels};
    kd_view_maker make = {.data = r->data, .policy = &r->policy, .decode = decode, .seed = (uint64_t)r->config->seed, .mix = r->policy.mix_p > 0 ? &r->mix : NULL};
    kd_view_stage stage = {.make = make, .views = r->plan.views, .done = view_is_stored, .ctx = r};
    kd_ordered *q = NULL;
    double begin = kd_now();
    kd_stages_enter(&r->stages, KD_TIMING_OTHER);
    kd_status status = kd_skip_list_create(&r->skip_list, r->out.product, err);
    if (status == KD_OK)
        status = report_lost(r, err);
    if (status == KD_OK)
        status = kd_view_stage_start(&stage, &q, r->threads, err);
    if (status == KD_OK)
        status = take_all(r, q, err);
    double seconds = kd_now() - begin;
    kd_view_stage_stop(&stage, q);
    memcpy(r->loaders, stage.seconds, sizeof r->loaders);
    if (status != KD_OK && r->views_new > 0)
        tell_timing(r);
    KD_TRY(status);
    KD_TRY(finish_skip_list(r, err));
    if (kd_shard_writer_totals(r->out.writer).views == 0)
        return kd_fail(err, KD_EFAIL, "%s: none of the %zu files could be read as an image; the reasons are in %s.skipped.tsv", r->config->images, r->data->count, r->out.product);
    kd_stages_enter(&r->stages, KD_TIMING_SEAL);
    KD_TRY(kd_shard_writer_seal(r->out.writer, err));
    return summarise(r, seconds, err);
}

static kd_status open_output(run *r, kd_err *err) {
    json_t *p = provenance(r);
    kd_status status = kd_output_open(&r->out, &r->plan, &r->recipe, p, err);
    json_decref(p);
    KD_TRY(status);
    uint64_t stored = kd_shard_writer_totals(r->out.writer).views;
    r->views_before = stored < r->views_wanted && r->fill.count == 0 ? stored : 0;
    if (stored > 0)
        kd_log(KD_LOG_INFO, "resuming: %" PRIu64 " views are stored already", stored);
    return KD_OK;
}

static kd_status execute(run *r, kd_err *err) {
    KD_TRY(open_inputs(r, err));
    kd_run_facts known = facts(r);
    kd_describe_plan(&known);
    kd_output_describe(&r->out, r->data->count, r->whole.count);
    if (r->data->count == 0 && r->fill.count == 0) {
        kd_log(KD_LOG_INFO, "no image is in this part: nothing to do");
        return KD_OK;
    }
    KD_TRY(open_teacher(r, err));
    KD_TRY(open_buffers(r, err));
    kd_describe_memory(&known, r->teacher, planned_bytes(r));
    if (r->config->dry_run)
        return dry_run(r, err);
    KD_TRY(open_recipe(r, err));
    kd_status status = open_output(r, err);
    if (status == KD_DONE)
        return kd_sealed_check(r->config->cache, r->data, r->plan.views, err);
    KD_TRY(status);
    return fill_cache(r, err);
}

static void close_batch(run *r, view_batch *b) {
    for (size_t i = 0; b->records != NULL && i < (size_t)r->config->batch_size * (size_t)r->slots; i++)
        kd_record_buf_free(&b->records[i]);
    for (int k = 0; k < r->slots; k++)
        kd_teacher_fetch_destroy(b->fetch[k]);
    kd_free(b->records);
    kd_free(b->row);
    kd_free(b->pixels);
}

static void release(run *r) {
    kd_skip_list_discard(r->skip_list);
    kd_output_close(&r->out);
    for (int i = 0; i < r->batches; i++)
        close_batch(r, &r->batch[i]);
    for (int i = 0; r->scratch != NULL && i < r->threads; i++)
        kd_record_scratch_free(&r->scratch[i]);
    kd_free(r->scratch);
    kd_teacher_close(r->teacher);
    kd_backend_close(r->backend);
    kd_recipe_free(&r->recipe);
    kd_free(r->ids);
    kd_locator_destroy(r->files);
    kd_weights_close(r->weights);
    kd_fill_free(&r->fill);
    kd_dataset_close(&r->some);
    kd_dataset_close(&r->whole);
    pthread_mutex_destroy(&r->writer_lock);
}

kd_status kd_precompute_run(const kd_precompute_config *config, kd_err *err) {
    if (config->inspect)
        return kd_inspect_run(config, err);
    if (config->file != NULL)
        return kd_fail(err, KD_EUSAGE, "%s: a file without an option before it is for --inspect; the teacher is given as --weights %s", config->file, config->file);
    if (kd_devices_all(config))
        return kd_devices_run(config, err);
    run r = {.resolved = *config, .threads = config->threads > 0 ? (int)config->threads : kd_cpu_count()};
    r.config = &r.resolved;
    kd_stages_begin(&r.stages, KD_TIMING_START);
    pthread_mutex_init(&r.writer_lock, NULL);
    kd_signals_catch();
    kd_status status = execute(&r, err);
    release(&r);
    return status;
}

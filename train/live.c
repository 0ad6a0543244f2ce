#include "train/live.h"

#include <inttypes.h>
#include <string.h>

#include "cache/recipe.h"
#include "common/base/log.h"
#include "common/base/mem.h"
#include "common/base/progress.h"
#include "common/base/threads.h"
#include "common/data/views.h"
#include "kernels/nn/teacher.h"
#include "train/live_check.h"
#include "train/live_stats.h"

/* What a loader thread re-uses. */
typedef struct worker {
    kd_view_worker views;
    kd_view_item item; /* of one view */
} worker;

struct kd_live {
    char *name, *checked, *statistics; /* the last two: NULL, or where they are kept */
    kd_weights *weights; /* until the teacher has read them */
    kd_model_info model;
    kd_layer_choice choice;
    kd_policy policy;
    kd_target target[KD_MAX_TARGETS];
    int targets;
    int batch, threads, json, plan_only;
    kd_dtype precision;
    kd_dataset data;
    kd_locator *files;
    kd_hash128 *id;        /* [images], ascending */
    kd_hash128 *every;     /* [pictures], ascending: with those that are skipped; what views are mixed with */
    size_t pictures;
    kd_mix_set mix;
    kd_view_maker make;
    kd_image_entry *image; /* [images] */
    size_t *file;          /* [images]: in the data set */
    kd_view_run run;       /* of every image */
    size_t images;
    kd_recipe recipe;
    worker *workers;
    kd_teacher *teacher;
    kd_encode_stats *stats; /* [batch] */
    kd_stats *sums;         /* [features][layers] of those that the recipe has, once they are made; else NULL */
    double seconds;
};

static size_t view_bytes(const kd_live *l) {
    return (size_t)l->policy.image_h * (size_t)l->policy.image_w * 3;
}

/* ---- what there is: teacher, images, recipe ---- */

static kd_status open_teacher_file(kd_live *l, const kd_live_options *o, kd_err *err) {
    KD_TRY(kd_policy_load(&l->policy, o->augment, o->image_h, o->image_w, err));
    KD_TRY(kd_weights_open(&l->weights, o->weights, err));
    KD_TRY(kd_model_find_teacher(&l->model, o->teacher, l->weights, &o->choice, err));
    KD_TRY(kd_model_check_size(&l->model, o->image_h, o->image_w, err));
    return kd_selection_parse(&l->choice, &o->selection, &l->model, err);
}

static kd_status open_images(kd_live *l, const kd_live_options *o, kd_err *err) {
    KD_TRY(kd_dataset_open(&l->data, o->images, o->list, err));
    KD_TRY(kd_locator_create_over(&l->files, &l->data, err));
    KD_TRY(kd_locator_hash_all(l->files, l->threads, NULL, err));
    KD_TRY(kd_alloc_array(&l->id, l->data.count, sizeof *l->id, err));
    l->images = l->pictures = kd_locator_picture_ids(l->files, l->id);
    if (l->images == 0)
        return kd_fail(err, KD_EFAIL, "%s: none of the %zu files begins like a picture that can be read", o->images, l->data.count);
    KD_TRY(kd_alloc_array(&l->image, l->images, sizeof *l->image, err));
    KD_TRY(kd_alloc_array(&l->file, l->images, sizeof *l->file, err));
    KD_TRY(kd_alloc_array(&l->every, l->images, sizeof *l->every, err));
    memcpy(l->every, l->id, l->images * sizeof *l->every);
    l->run = (kd_view_run){.count = o->views};
    for (size_t i = 0; i < l->images; i++) {
        int64_t file = kd_locator_by_id(l->files, &l->id[i]);
        KD_ASSERT(file >= 0);
        l->file[i] = (size_t)file;
        l->image[i] = (kd_image_entry){.image = l->id[i], .rel = l->data.file[file].rel, .file_size = l->data.file[file].size, .views = o->views, .runs = 1, .run = &l->run};
    }
    l->mix = (kd_mix_set){.files = l->files, .id = l->every, .count = l->pictures};
    l->make = (kd_view_maker){.data = &l->data, .policy = &l->policy, .decode = {.exif_apply = strcmp(o->exif, "apply") == 0, .max_pixels = o->max_pixels}, .seed = o->seed,
                              .mix = l->policy.mix_p > 0 ? &l->mix : NULL};
    return KD_OK;
}

static kd_status make_recipe(kd_live *l, const kd_live_options *o, kd_err *err) {
    kd_sha256 sha;
    int grid_h = o->image_h / l->model.multiple, grid_w = o->image_w / l->model.multiple;
    for (int i = 0; i < l->targets; i++)
        if (l->target[i].h > grid_h || l->target[i].w > grid_w)
            return kd_fail(err, KD_EUSAGE, "--patch-target: the grid of patches is %d x %d, and %d x %d is larger", grid_h, grid_w, l->target[i].h, l->target[i].w);
    KD_TRY(kd_weights_sha256(l->weights, &sha, err));
    kd_recipe_parts parts = {.teacher = kd_teacher_json(&l->model, &sha), .layer = l->choice.layer, .layers = l->choice.layers, .norm = l->choice.norm, .concat = l->choice.concat, .policy = &l->policy,
                             .seed = o->seed, .exif = o->exif, .features = l->choice.features, .grid_h = grid_h, .grid_w = grid_w, .registers = l->model.vit.registers,
                             .width = (int)kd_selection_width(&l->choice, &l->model), .target = l->target, .targets = l->targets, .dtype = KD_F32, .ids = l->every, .images = l->pictures};
    return kd_recipe_make(&l->recipe, &parts, o->weights, err);
}

static kd_status open_all(kd_live *l, const kd_live_options *o, kd_err *err) {
    l->batch = o->batch;
    l->threads = o->threads;
    l->json = o->json;
    l->plan_only = o->plan_only;
    l->precision = o->precision;
    l->targets = o->targets;
    memcpy(l->target, o->target, (size_t)o->targets * sizeof *l->target);
    l->name = kd_strdup(o->weights);
    l->statistics = o->statistics != NULL ? kd_strdup(o->statistics) : NULL;
    l->checked = o->checked != NULL ? kd_strdup(o->checked) : NULL;
    if (l->name == NULL || (o->statistics != NULL && l->statistics == NULL) || (o->checked != NULL && l->checked == NULL))
        return kd_fail(err, KD_EFAIL, "out of memory for the live teacher");
    KD_TRY(open_teacher_file(l, o, err));
    KD_TRY(open_images(l, o, err));
    KD_TRY(kd_alloc_array(&l->workers, (size_t)l->threads, sizeof *l->workers, err));
    KD_TRY(kd_alloc_array(&l->stats, (size_t)l->batch, sizeof *l->stats, err));
    return make_recipe(l, o, err);
}

kd_status kd_live_open(kd_live **out, const kd_live_options *o, kd_err *err) {
    *out = NULL;
    KD_ASSERT(o->batch >= 1 && o->threads >= 1 && o->views >= 1 && o->targets >= 1 && o->targets <= KD_MAX_TARGETS);
    kd_live *l;
    KD_TRY(kd_alloc_array(&l, 1, sizeof *l, err));
    kd_status status = open_all(l, o, err);
    if (status != KD_OK) {
        kd_live_close(l);
        return status;
    }
    *out = l;
    return KD_OK;
}

kd_status kd_live_check_images(kd_live *l, kd_err *err) {
    const kd_live_set set = {.make = &l->make, .id = l->id, .file = l->file, .count = l->images, .views = l->run.count, .threads = l->threads, .json = l->json, .path = l->checked};
    uint8_t *usable;
    size_t skipped, n = 0;
    KD_TRY(kd_alloc_array(&usable, l->images, 1, err));
    kd_status status = kd_live_check(usable, &skipped, &set, err);
    for (size_t i = 0; i < l->images && status == KD_OK; i++) {
        l->id[n] = l->id[i];
        l->file[n] = l->file[i];
        l->image[n] = l->image[i];
        n += usable[i];
    }
    kd_free(usable);
    KD_TRY(status);
    if (n == 0)
        return kd_fail(err, KD_EFAIL, "--images: none of the %zu pictures can be decoded; the reasons are above", l->images);
    l->images = n;
    return KD_OK;
}

kd_status kd_live_start(kd_live *l, kd_backend *backend, kd_err *err) {
    kd_teacher_config c = {.model = &l->model, .choice = &l->choice, .height = l->policy.image_h, .width = l->policy.image_w, .batch = l->batch, .precision = l->precision, .target = l->target,
                           .targets = l->targets, .store = KD_F32};
    KD_ASSERT(l->teacher == NULL);
    KD_TRY(kd_teacher_open(&l->teacher, backend, l->weights, &c, err));
    kd_weights_close(l->weights);
    l->weights = NULL;
    return KD_OK;
}

static void free_sums(kd_live *l) {
    for (int i = 0; i < KD_FEATURES * l->recipe.layers && l->sums != NULL; i++)
        kd_stats_free(&l->sums[i]);
    kd_free(l->sums);
    l->sums = NULL;
}

void kd_live_close(kd_live *l) {
    if (l == NULL)
        return;
    free_sums(l);
    kd_free(l->stats);
    kd_teacher_close(l->teacher);
    for (int i = 0; i < l->threads && l->workers != NULL; i++) {
        kd_view_worker_free(&l->workers[i].views);
        kd_view_item_free(&l->workers[i].item);
    }
    kd_free(l->workers);
    kd_recipe_free(&l->recipe);
    kd_free(l->file);
    kd_free(l->image);
    kd_free(l->id);
    kd_free(l->every);
    kd_locator_destroy(l->files);
    kd_dataset_close(&l->data);
    kd_weights_close(l->weights);
    kd_free(l->statistics);
    kd_free(l->checked);
    kd_free(l->name);
    kd_free(l);
}

const kd_recipe *kd_live_recipe(const kd_live *l) {
    return &l->recipe;
}

const char *kd_live_name(const kd_live *l) {
    return l->name;
}

size_t kd_live_device_bytes(const kd_live *l) {
    return kd_teacher_model_bytes(l->teacher) + kd_teacher_work_bytes(l->teacher);
}

size_t kd_live_images(const kd_live *l) {
    return l->images;
}

const kd_image_entry *kd_live_image(const kd_live *l, size_t i) {
    KD_ASSERT(i < l->images);
    return &l->image[i];
}

size_t kd_live_extra(const kd_live *l) {
    return l->data.count - l->pictures;
}

size_t kd_live_skipped(const kd_live *l) {
    return l->pictures - l->images;
}

size_t kd_live_files(const kd_live *l) {
    return l->data.count;
}

int kd_live_batch(const kd_live *l) {
    return l->batch;
}

void kd_live_add_work(const kd_live *l, double seconds[KD_STAGES]) {
    for (int i = 0; i < l->threads; i++)
        kd_stages_add(seconds, &l->workers[i].views.time);
}

double kd_live_seconds(const kd_live *l) {
    return l->seconds;
}

/* ---- views and targets ---- */

kd_status kd_live_view(kd_live *l, int thread, size_t image, uint32_t view, kd_image *picture, kd_hash128 *hash, kd_err *err) {
    worker *w = &l->workers[thread];
    kd_view_item *item = &w->item;
    KD_ASSERT(thread < l->threads && image < l->images && view < l->run.count);
    KD_TRY(kd_view_item_reserve(&l->make, item, 1, err));
    item->file = l->file[image];
    KD_TRY(kd_views_read(&l->make, &w->views, item, err));
    if (memcmp(&item->id, &l->id[image], sizeof item->id) != 0)
        return kd_fail(err, KD_EFAIL, "%s was changed while the program ran; restore it and run the same command again", l->image[image].rel);
    item->view[0] = view;
    item->count = 1;
    KD_TRY(kd_views_make(&l->make, &w->views, item, err));
    *picture = (kd_image){.rgb = item->pixels, .width = l->policy.image_w, .height = l->policy.image_h};
    if (hash != NULL)
        *hash = item->hash[0];
    return KD_OK;
}

kd_status kd_live_run(kd_live *l, const uint8_t *views, int count, kd_err *err) {
    double begin = kd_now();
    kd_status status = kd_teacher_run(l->teacher, views, count, err);
    l->seconds += kd_now() - begin;
    return status;
}

kd_status kd_live_target(kd_live *l, kd_feature f, uint16_t layer, int count, float *values, double *square, kd_err *err) {
    double begin = kd_now();
    int target;
    kd_feature output = kd_feature_output(f, &target);
    kd_status status = kd_teacher_encode(l->teacher, output, layer, target, count, (uint8_t *)values, l->stats, err);
    for (int i = 0; i < count; i++)
        square[i] = l->stats[i].square;
    l->seconds += kd_now() - begin;
    return status;
}

/* ---- passes over many views ---- */

/* Views that go through the teacher batch by batch; `take` is called with the pass after each: rows views, from place `first` on, have been run. */
typedef struct pass {
    kd_live *l;
    const kd_live_item *items; /* NULL: every view in the order of keys */
    uint64_t count;
    kd_status (*take)(struct pass *p, kd_err *err);
    uint64_t first;
    int rows;
    uint8_t *pixels;           /* [batch] views */
    double *square;            /* [batch] */
    float *values;             /* of the statistics: [batch] of the largest target; else all that is asked for */
    kd_feature feature;        /* of the latter, as the next */
    uint16_t layer;
    kd_progress *progress;     /* may be NULL */
} pass;

static kd_status make_view(void *ctx, int thread, uint64_t index, void *slot, kd_err *err) {
    const pass *p = ctx;
    kd_live *l = p->l;
    kd_image picture;
    kd_live_item item = {(uint32_t)(index / l->run.count), (uint32_t)(index % l->run.count)};
    if (p->items != NULL)
        item = p->items[index];
    KD_TRY(kd_live_view(l, thread, item.image, item.view, &picture, NULL, err));
    memcpy(slot, picture.rgb, view_bytes(l));
    return KD_OK;
}

static kd_status run_batch(pass *p, kd_err *err) {
    if (p->rows == 0)
        return KD_OK;
    KD_TRY(kd_live_run(p->l, p->pixels, p->rows, err));
    KD_TRY(p->take(p, err));
    p->first += (uint64_t)p->rows;
    p->rows = 0;
    return KD_OK;
}

static kd_status run_all(pass *p, kd_ordered *q, kd_err *err) {
    for (;;) {
        void *slot;
        kd_status status = kd_ordered_next(q, &slot, err);
        if (status == KD_DONE)
            return run_batch(p, err);
        KD_TRY(status);
        memcpy(p->pixels + (size_t)p->rows * view_bytes(p->l), slot, view_bytes(p->l));
        kd_ordered_release(q, slot);
        if (++p->rows == p->l->batch)
            KD_TRY(run_batch(p, err));
        kd_progress_update(p->progress, p->first + (uint64_t)p->rows, kd_ordered_wait_seconds(q), NULL);
    }
}

static kd_status run_pass(pass *p, kd_err *err) {
    kd_live *l = p->l;
    kd_ordered *q = NULL;
    kd_status status = kd_alloc_array(&p->pixels, (size_t)l->batch, view_bytes(l), err);
    if (status == KD_OK)
        status = kd_alloc_array(&p->square, (size_t)l->batch, sizeof *p->square, err);
    if (status == KD_OK)
        status = kd_ordered_create(&q, l->threads, kd_view_stage_slots(l->threads), view_bytes(l), p->count, make_view, NULL, p, err);
    if (status == KD_OK)
        status = run_all(p, q, err);
    kd_ordered_destroy(q);
    kd_free(p->pixels);
    kd_free(p->square);
    return status;
}

static size_t values_of(const kd_live *l, kd_feature f) {
    return kd_recipe_rows(&l->recipe, f) * (size_t)l->recipe.width;
}

static kd_status take_features(pass *p, kd_err *err) {
    return kd_live_target(p->l, p->feature, p->layer, p->rows, p->values + p->first * values_of(p->l, p->feature), p->square, err);
}

static kd_status check_offered(const kd_live *l, kd_feature f, uint16_t layer, kd_err *err) {
    if (kd_recipe_has(&l->recipe, f) && kd_recipe_layer_index(&l->recipe, layer) >= 0)
        return KD_OK;
    return kd_fail(err, KD_ENOTFOUND, "%s: the live teacher gives no %s features of layer %u; --layers chooses them", l->name, kd_feature_name(f), (unsigned)layer);
}

kd_status kd_live_features(kd_live *l, const kd_live_item *items, size_t count, kd_feature f, uint16_t layer, float *values, kd_err *err) {
    pass p = {.l = l, .items = items, .count = count, .take = take_features, .values = values, .feature = f, .layer = layer};
    KD_TRY(check_offered(l, f, layer, err));
    return run_pass(&p, err);
}

/* ---- statistics ---- */

static kd_stats *sums_of(const kd_live *l, kd_feature f, int layer) {
    return &l->sums[(int)f * l->recipe.layers + layer];
}

static kd_status count_target(pass *p, kd_feature f, int layer, kd_err *err) {
    kd_live *l = p->l;
    const kd_recipe *r = &l->recipe;
    size_t rows = kd_recipe_rows(r, f), values = values_of(l, f);
    int adjoint = kd_recipe_target(r, f).kind == KD_TARGET_ADJOINT;
    KD_TRY(kd_live_target(l, f, r->layer[layer], p->rows, p->values, p->square, err));
    for (int i = 0; i < p->rows; i++) {
        if (adjoint)
            kd_stats_add_adjoint(sums_of(l, f, layer), p->values + (size_t)i * values, rows, p->square[i], (size_t)r->grid_h * (size_t)r->grid_w);
        else
            kd_stats_add_view(sums_of(l, f, layer), p->values + (size_t)i * values, rows);
    }
    return KD_OK;
}

static kd_status count_batch(pass *p, kd_err *err) {
    const kd_recipe *r = &p->l->recipe;
    kd_status status = kd_stop_requested();
    if (status != KD_OK)
        return kd_fail(err, status, "stopped while the statistics of the live teacher's targets were made; the same command begins again");
    for (kd_feature f = 0; f < KD_FEATURES; f++)
        for (int layer = 0; layer < r->layers && kd_recipe_has(r, f); layer++)
            KD_TRY(count_target(p, f, layer, err));
    return KD_OK;
}

/* Nothing counted yet: means 0, and deviations 1. */
static kd_status open_sums(kd_live *l, kd_err *err) {
    KD_TRY(kd_alloc_array(&l->sums, (size_t)(KD_FEATURES * l->recipe.layers), sizeof *l->sums, err));
    for (kd_feature f = 0; f < KD_FEATURES; f++)
        for (int layer = 0; layer < l->recipe.layers && kd_recipe_has(&l->recipe, f); layer++) {
            KD_TRY(kd_stats_create(sums_of(l, f, layer), l->recipe.width, err));
            sums_of(l, f, layer)->scalar_std = 1;
        }
    return KD_OK;
}

static kd_status take_census(kd_live *l, kd_err *err) {
    uint64_t views = (uint64_t)l->images * l->run.count;
    pass p = {.l = l, .count = views < KD_STATS_VIEWS ? views : KD_STATS_VIEWS, .take = count_batch};
    KD_TRY(kd_alloc_array(&p.values, (size_t)l->batch, kd_recipe_largest(&l->recipe) * sizeof *p.values, err));
    kd_log(KD_LOG_INFO, "statistics of the live teacher's targets, from the first %" PRIu64 " views in the order of image ids, as a cache would have them", p.count);
    p.progress = kd_progress_create("statistics", "view", p.count, 0, l->json);
    kd_status status = run_pass(&p, err);
    kd_progress_finish(p.progress);
    kd_free(p.values);
    for (int i = 0; i < KD_FEATURES * l->recipe.layers && status == KD_OK; i++)
        if (l->sums[i].mean != NULL)
            kd_stats_finish(&l->sums[i]);
    l->seconds = 0;
    return status;
}

/* What statistics are of: the recipe, the images and the number of their views. */
static void census_name(const kd_live *l, char out[33]) {
    kd_sha256 ids = kd_sha256_of(l->id, l->images * sizeof *l->id);
    uint8_t all[32 + 32 + 4];
    memcpy(all, l->recipe.sha.b, 32);
    memcpy(all + 32, ids.b, 32);
    for (int i = 0; i < 4; i++)
        all[64 + i] = (uint8_t)(l->run.count >> (8 * i));
    kd_hash128 hash = kd_xxh128(all, sizeof all);
    kd_hex(out, hash.b, sizeof hash.b);
}

/* From the run's file, or made and put there. A damaged file is made again. */
static kd_status make_sums(kd_live *l, kd_err *err) {
    char of[33];
    kd_err cause = {0};
    KD_TRY(open_sums(l, err));
    if (l->plan_only)
        return KD_OK;
    if (l->statistics == NULL)
        return take_census(l, err);
    census_name(l, of);
    kd_status status = kd_live_stats_read(l->statistics, of, &l->recipe, l->sums, &cause);
    if (status == KD_OK)
        return KD_OK;
    if (status != KD_DONE)
        kd_log(KD_LOG_WARN, "%s; the statistics are made again", cause.msg);
    KD_TRY(take_census(l, err));
    return kd_live_stats_write(l->statistics, of, &l->recipe, l->sums, err);
}

kd_status kd_live_mean(kd_live *l, kd_feature f, uint16_t layer, const float **mean, float *scalar_std, kd_err *err) {
    KD_TRY(check_offered(l, f, layer, err));
    kd_status status = l->sums == NULL ? make_sums(l, err) : KD_OK;
    if (status != KD_OK) {
        free_sums(l);
        return status;
    }
    const kd_stats *sums = sums_of(l, f, kd_recipe_layer_index(&l->recipe, layer));
    *mean = sums->mean;
    *scalar_std = sums->scalar_std;
    return KD_OK;
}

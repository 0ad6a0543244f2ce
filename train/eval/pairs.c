#include "train/eval/pairs.h"

#include <string.h>

#include "common/base/mem.h"
#include "common/base/progress.h"
#include "common/base/threads.h"
#include "train/eval/likeness.h"
#include "train/replay.h"

/* Chosen item i of `count` out of `total`. */
static size_t spread(size_t i, size_t count, size_t total) {
    return i * total / count;
}

static size_t at_most(size_t total, size_t count) {
    return count > 0 && count < total ? count : total;
}

static kd_status reserve_patches(kd_pairs *p, size_t count, int grid_h, int grid_w, const kd_network *student, kd_err *err) {
    size_t rows = (size_t)grid_h * (size_t)grid_w;
    p->patch_count = count;
    p->grid_h = grid_h;
    p->grid_w = grid_w;
    p->own_h = student->map_h;
    p->own_w = student->map_w;
    KD_TRY(kd_alloc_array(&p->teacher_patch, count, rows * p->teacher_width * sizeof(float), err));
    return kd_alloc_array(&p->student_patch, count, rows * p->student_width * sizeof(float), err);
}

static float *patch_of(float *all, const kd_pairs *p, size_t i, size_t width) {
    return all + i * (size_t)p->grid_h * (size_t)p->grid_w * width;
}

/* ---- two networks ---- */

/* A network over files that are listed in `from`, which stays. */
static kd_status run_over(const kd_network *x, const kd_dataset *from, const char *images, kd_tap tap, kd_feature_set *set, kd_err *err) {
    kd_dataset files;
    KD_TRY(kd_dataset_spread(&files, from, 0, err));
    return kd_features_run_over(x, &files, images, 1u << tap, set, err);
}

/* The second over what the first could read. A file that changes meanwhile is found by its id. */
static kd_status check_same(const kd_feature_set *s, const kd_feature_set *t, const char *images, kd_err *err) {
    if (s->count == t->count && memcmp(s->id, t->id, s->count * sizeof *s->id) == 0)
        return KD_OK;
    return kd_fail(err, KD_EFAIL, "%s: files have changed while they were read for the student and then for the teacher; try again when nothing writes there", images);
}

static kd_status readable_of(kd_dataset *out, const kd_feature_set *s, kd_err *err) {
    uint8_t *keep;
    KD_TRY(kd_alloc_array(&keep, s->data.count, 1, err));
    for (size_t i = 0; i < s->count; i++)
        keep[s->file[i]] = 1;
    kd_status status = kd_dataset_subset(out, &s->data, keep, err);
    kd_free(keep);
    return status;
}

/* Moves the features out of the sets. */
static void take_features(kd_pairs *p, kd_feature_set *s, kd_feature_set *t, kd_tap tap) {
    p->count = s->count;
    p->skipped = s->skipped;
    p->student_width = s->width;
    p->teacher_width = t->width;
    p->student = s->values[tap];
    p->teacher = t->values[KD_TAP_CLS];
    p->id = s->id;
    s->values[tap] = t->values[KD_TAP_CLS] = NULL;
    s->id = NULL;
}

static kd_status pair_features(kd_pairs *p, const kd_network *student, const kd_network *teacher, const char *images, const kd_dataset *files, kd_feature_set *s, kd_tap tap, kd_err *err) {
    kd_dataset readable = {0};
    kd_feature_set t = {0};
    KD_TRY(run_over(student, files, images, tap, s, err));
    kd_status status = readable_of(&readable, s, err);
    if (status == KD_OK)
        status = run_over(teacher, &readable, images, KD_TAP_CLS, &t, err);
    if (status == KD_OK)
        status = check_same(s, &t, images, err);
    if (status == KD_OK)
        take_features(p, s, &t, tap);
    kd_feature_set_free(&t);
    kd_dataset_close(&readable);
    return status;
}

static kd_status pair_patches(kd_pairs *p, const kd_network *student, const kd_network *teacher, const char *images, const kd_dataset *files, kd_err *err) {
    kd_feature_set s = {0}, t = {0};
    kd_status status = run_over(student, files, images, KD_TAP_PATCH, &s, err);
    if (status == KD_OK)
        status = run_over(teacher, files, images, KD_TAP_PATCH, &t, err);
    if (status == KD_OK)
        status = check_same(&s, &t, images, err);
    if (status == KD_OK)
        status = reserve_patches(p, s.count, teacher->map_h, teacher->map_w, student, err);
    if (status == KD_OK) {
        memcpy(p->teacher_patch, t.values[KD_TAP_PATCH], t.count * t.patches * t.width * sizeof(float));
        for (size_t i = 0; i < s.count; i++)
            kd_grid_resize(patch_of(p->student_patch, p, i, s.width), p->grid_h, p->grid_w, s.values[KD_TAP_PATCH] + i * s.patches * s.width, student->map_h, student->map_w, s.width);
    }
    kd_feature_set_free(&s);
    kd_feature_set_free(&t);
    return status;
}

/* Patches are many values: of the images whose patches count the networks are run once more, instead of keeping those of all. */
static kd_status pair_networks(kd_pairs *p, const kd_network *student, const kd_network *teacher, const char *images, const kd_dataset *all, const kd_pairs_choice *choice, kd_err *err) {
    kd_feature_set s = {0};
    kd_dataset files = {0}, readable = {0}, some = {0};
    kd_status status = kd_dataset_spread(&files, all, choice->count, err);
    if (status == KD_OK)
        status = pair_features(p, student, teacher, images, &files, &s, choice->tap, err);
    if (status == KD_OK && choice->patch_count > 0) {
        status = readable_of(&readable, &s, err);
        if (status == KD_OK)
            status = kd_dataset_spread(&some, &readable, choice->patch_count, err);
        if (status == KD_OK)
            status = pair_patches(p, student, teacher, images, &some, err);
    }
    kd_dataset_close(&some);
    kd_dataset_close(&readable);
    kd_feature_set_free(&s); /* before the files, whose names it borrows */
    kd_dataset_close(&files);
    return status;
}

kd_status kd_pairs_of_network(kd_pairs *p, const kd_network *student, const kd_network *teacher, const char *images, kd_list_format list, const kd_pairs_choice *choice, kd_err *err) {
    kd_dataset all = {0};
    *p = (kd_pairs){0};
    kd_status status = kd_dataset_open(&all, images, list, err);
    if (status == KD_OK)
        status = pair_networks(p, student, teacher, images, &all, choice, err);
    kd_dataset_close(&all);
    if (status != KD_OK)
        kd_pairs_free(p);
    return status;
}

/* ---- a network and a cache ---- */

typedef struct pairing {
    kd_pairs *p;
    const kd_network *student;
    const kd_pairs_choice *choice;
    kd_replay *replay;
    kd_replay_item *items;
    float *map;         /* of a batch, as the student gives it */
    size_t patches;     /* images whose patches are in already */
} pairing;

static kd_status reserve(pairing *g, const kd_recipe *r, int patches, kd_err *err) {
    kd_pairs *p = g->p;
    p->teacher_width = (size_t)r->width;
    p->student_width = (size_t)g->student->model->width;
    KD_TRY(kd_alloc_array(&g->items, p->count, sizeof *g->items, err));
    KD_TRY(kd_alloc_array(&p->id, p->count, sizeof *p->id, err));
    KD_TRY(kd_alloc_array(&p->teacher, p->count, p->teacher_width * sizeof(float), err));
    KD_TRY(kd_alloc_array(&p->student, p->count, p->student_width * sizeof(float), err));
    if (!patches)
        return KD_OK;
    KD_TRY(kd_alloc_array(&g->map, (size_t)g->student->batch * g->student->patches, p->student_width * sizeof(float), err));
    return reserve_patches(p, at_most(p->count, g->choice->patch_count), r->grid_h, r->grid_w, g->student, err);
}

static int wants_patches(const pairing *g, size_t i) {
    return g->patches < g->p->patch_count && i == spread(g->patches, g->p->patch_count, g->p->count);
}

/* Images first .. first + rows - 1 are in the program's batch. */
static kd_status run_batch(pairing *g, size_t first, int rows, kd_err *err) {
    kd_pairs *p = g->p;
    const kd_network *x = g->student;
    KD_TRY(kd_exec_forward(x->exec, err));
    KD_TRY(kd_exec_download(x->exec, g->choice->tap == KD_TAP_CLS ? "cls" : "pooled", rows, p->student + first * p->student_width, err));
    if (p->patch_count == 0)
        return KD_OK;
    KD_TRY(kd_exec_download(x->exec, "map", rows, g->map, err));
    for (int i = 0; i < rows; i++)
        if (wants_patches(g, first + (size_t)i))
            kd_grid_resize(patch_of(p->student_patch, p, g->patches++, p->student_width), p->grid_h, p->grid_w, g->map + (size_t)i * x->patches * p->student_width, x->map_h, x->map_w,
                           p->student_width);
    return KD_OK;
}

static kd_status take_sample(pairing *g, size_t i, int row, size_t *teacher_patches, const kd_sample *sample, kd_err *err) {
    kd_pairs *p = g->p;
    memcpy(p->teacher + i * p->teacher_width, sample->target[0], p->teacher_width * sizeof(float));
    if (*teacher_patches < p->patch_count && i == spread(*teacher_patches, p->patch_count, p->count))
        memcpy(patch_of(p->teacher_patch, p, (*teacher_patches)++, p->teacher_width), sample->target[1], (size_t)p->grid_h * (size_t)p->grid_w * p->teacher_width * sizeof(float));
    return kd_exec_upload_rows(g->student->exec, "images", row, 1, sample->pixels, err);
}

static kd_status run_all(pairing *g, kd_progress *progress, kd_err *err) {
    size_t count = g->p->count, teacher_patches = 0, first = 0;
    for (size_t i = 0; i < count; i++) {
        kd_sample sample;
        KD_TRY(kd_replay_next(g->replay, &sample, err));
        kd_status status = take_sample(g, i, (int)(i - first), &teacher_patches, &sample, err);
        kd_replay_release(g->replay, &sample);
        if (status == KD_OK && (i + 1 == count || (int)(i + 1 - first) == g->student->batch)) {
            status = run_batch(g, first, (int)(i + 1 - first), err);
            first = i + 1;
        }
        KD_TRY(status);
        kd_status stop = kd_stop_requested();
        if (stop != KD_OK)
            return kd_fail(err, stop, "interrupted while features were computed");
        kd_progress_update(progress, i + 1, kd_replay_wait_seconds(g->replay), NULL);
    }
    return KD_OK;
}

static kd_status choose_views(pairing *g, kd_err *err) {
    size_t total = kd_replay_images(g->replay);
    for (size_t i = 0; i < g->p->count; i++) {
        size_t image = spread(i, g->p->count, total);
        g->items[i] = (kd_replay_item){.image = (uint32_t)image};
        g->p->id[i] = kd_replay_image(g->replay, image)->image;
    }
    return kd_replay_begin(g->replay, g->items, g->p->count, err);
}

static kd_status pair_cache(pairing *g, kd_cache *cache, const char *images, kd_list_format list, kd_err *err) {
    const kd_recipe *r = kd_cache_recipe(cache);
    const kd_network *x = g->student;
    KD_ASSERT(x->image_h == r->image_h && x->image_w == r->image_w);
    if (!kd_recipe_has(r, KD_FEATURE_CLS))
        return kd_fail(err, KD_EUSAGE, "%s: the cache holds no CLS features, and images are compared by these; make one with --features cls,patch", kd_cache_shard_path(cache, 0));
    int patches = g->choice->patch_count > 0 && kd_recipe_has(r, KD_FEATURE_PATCH) && kd_recipe_target(r, KD_FEATURE_PATCH).kind == KD_TARGET_FULL;
    kd_replay_options o = {.source = {.cache = cache}, .images = images, .list = list, .threads = x->threads, .student_h = x->height, .student_w = x->width, .targets = 1 + patches, .allow_missing = 1,
                           .ahead = (size_t)x->batch + 2 * (size_t)x->threads};
    o.target[0] = (kd_replay_target){.feature = KD_FEATURE_CLS, .layer = r->layer[0], .raw = 1};
    o.target[1] = (kd_replay_target){.feature = KD_FEATURE_PATCH, .layer = r->layer[0], .raw = 1};
    KD_TRY(kd_replay_create(&g->replay, &o, err));
    g->p->skipped = kd_replay_missing(g->replay);
    g->p->count = at_most(kd_replay_images(g->replay), g->choice->count);
    KD_TRY(reserve(g, r, patches, err));
    KD_TRY(choose_views(g, err));
    kd_progress *progress = x->progress != NULL ? kd_progress_create(x->progress, "image", g->p->count, 0, x->json) : NULL;
    kd_status status = run_all(g, progress, err);
    kd_progress_finish(progress);
    return status;
}

kd_status kd_pairs_of_cache(kd_pairs *p, const kd_network *student, kd_cache *cache, const char *images, kd_list_format list, const kd_pairs_choice *choice, kd_err *err) {
    pairing g = {.p = p, .student = student, .choice = choice};
    *p = (kd_pairs){0};
    kd_status status = pair_cache(&g, cache, images, list, err);
    kd_replay_destroy(g.replay); /* ends the pass */
    kd_free(g.items);
    kd_free(g.map);
    if (status != KD_OK)
        kd_pairs_free(p);
    return status;
}

void kd_pairs_free(kd_pairs *p) {
    kd_free(p->teacher);
    kd_free(p->student);
    kd_free(p->teacher_patch);
    kd_free(p->student_patch);
    kd_free(p->id);
    *p = (kd_pairs){0};
}

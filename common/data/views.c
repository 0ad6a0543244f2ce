#include "common/data/views.h"

#include <string.h>

#include "common/base/mem.h"
#include "common/image/mix.h"

static size_t view_bytes(const kd_view_maker *m) {
    return (size_t)m->policy->image_h * (size_t)m->policy->image_w * 3;
}

void kd_view_worker_free(kd_view_worker *w) {
    kd_free(w->bytes);
    kd_image_free(&w->image);
    kd_image_free(&w->partner);
    kd_view_scratch_free(&w->scratch);
    *w = (kd_view_worker){0};
}

kd_status kd_view_item_reserve(const kd_view_maker *m, kd_view_item *item, uint32_t views, kd_err *err) {
    if (item->pixels != NULL)
        return KD_OK;
    KD_TRY(kd_alloc_array(&item->view, views, sizeof *item->view, err));
    KD_TRY(kd_alloc_array(&item->plan, views, sizeof *item->plan, err));
    if (m->mix != NULL)
        KD_TRY(kd_alloc_array(&item->partner, views, sizeof *item->partner, err));
    KD_TRY(kd_alloc_array(&item->hash, views, sizeof *item->hash, err));
    return kd_alloc_array(&item->pixels, views, view_bytes(m), err);
}

void kd_view_item_free(kd_view_item *item) {
    kd_free(item->view);
    kd_free(item->plan);
    kd_free(item->partner);
    kd_free(item->hash);
    kd_free(item->pixels);
    *item = (kd_view_item){0};
}

typedef struct drawing {
    const kd_view_maker *maker;
    kd_view_item *item;
} drawing;

/* When the picture's size is known, the plans are drawn; what they need of it is decoded. */
static kd_box draw_plans(void *ctx, int width, int height) {
    const drawing *d = ctx;
    kd_view_item *item = d->item;
    item->width = width;
    item->height = height;
    for (uint32_t i = 0; i < item->count; i++)
        item->plan[i] = kd_plan_draw(d->maker->policy, d->maker->seed, &item->id, item->view[i], width, height);
    return kd_plans_box(&(kd_plans){item->plan, item->count}, width, height);
}

typedef struct partner_drawing {
    const kd_view_maker *maker;
    const kd_plan *plan; /* of the mixed view */
    kd_plan *partner;
} partner_drawing;

static kd_box draw_partner(void *ctx, int width, int height) {
    const partner_drawing *d = ctx;
    *d->partner = kd_plan_draw(d->maker->policy, d->maker->seed, &d->plan->mix_partner, d->plan->mix_view, width, height);
    return kd_plans_box(&(kd_plans){d->partner, 1}, width, height);
}

/* The picture of the view's partner in w->partner, and its plan. Takes the place of the image's own bytes. */
static kd_status read_partner(const kd_view_maker *m, kd_view_worker *w, const kd_plan *plan, kd_plan *partner, kd_err *err) {
    char path[KD_DATA_NAME];
    size_t size = 0;
    int64_t file = kd_locator_by_id(m->mix->files, &plan->mix_partner);
    KD_ASSERT(file >= 0);
    KD_TRY(kd_locator_read(m->mix->files, file, &w->bytes, &w->bytes_cap, &size, err));
    KD_TRY(kd_locator_path(m->mix->files, file, path, sizeof path, err));
    kd_hash128 id = kd_image_id(w->bytes, size);
    if (memcmp(&id, &plan->mix_partner, sizeof id) != 0)
        return kd_fail(err, KD_EFAIL, "%s was changed while the program ran", path);
    return kd_image_decode_box(&w->partner, w->bytes, size, path, &m->decode, draw_partner, &(partner_drawing){m, plan, partner}, err);
}

/* Draws the partner of view i of the item and blends it in. */
static kd_status mix_view(const kd_view_maker *m, kd_view_worker *w, kd_view_item *item, uint32_t i, uint8_t *out, const char *path, kd_err *err) {
    kd_err cause = {0};
    kd_mix_draw(&item->plan[i], m->policy, m->seed, &item->id, item->view[i], m->mix->id, m->mix->count);
    if (!kd_plan_is_mixed(&item->plan[i]))
        return KD_OK;
    int before = kd_stages_enter(&w->time, KD_VIEW_DECODE);
    kd_status status = read_partner(m, w, &item->plan[i], &item->partner[i], &cause);
    kd_stages_enter(&w->time, before);
    if (status != KD_OK)
        return kd_fail(err, KD_EFAIL, "%s: its view %u is mixed with an image that can't be read: %.900s", path, item->view[i], cause.msg);
    return kd_view_mix(out, &item->plan[i], &item->partner[i], &w->partner, &w->scratch, err);
}

kd_status kd_views_read(const kd_view_maker *m, kd_view_worker *w, kd_view_item *item, kd_err *err) {
    size_t size = 0;
    int before = kd_stages_enter(&w->time, KD_VIEW_DECODE);
    kd_status status = kd_dataset_read(m->data, item->file, &w->bytes, &w->bytes_cap, &size, err);
    if (status == KD_OK) {
        item->size = size;
        item->id = kd_image_id(w->bytes, size);
    }
    kd_stages_enter(&w->time, before);
    return status;
}

static kd_status make_views(const kd_view_maker *m, kd_view_worker *w, kd_view_item *item, kd_err *err) {
    char path[KD_DATA_NAME];
    KD_TRY(kd_dataset_path(m->data, item->file, path, sizeof path, err));
    KD_TRY(kd_image_decode_box(&w->image, w->bytes, item->size, path, &m->decode, draw_plans, &(drawing){m, item}, err));
    if (m->mix != NULL && !kd_mix_has(m->mix->id, m->mix->count, &item->id))
        return kd_fail(err, KD_EFAIL, "%s was changed while the program ran", path);
    kd_stages_enter(&w->time, KD_VIEW_REPLAY);
    for (uint32_t i = 0; i < item->count; i++) {
        uint8_t *out = item->pixels + i * view_bytes(m);
        KD_TRY(kd_plan_apply(&item->plan[i], &w->image, out, &w->scratch, err));
        if (m->mix != NULL)
            KD_TRY(mix_view(m, w, item, i, out, path, err));
        item->hash[i] = kd_view_hash(out, item->plan[i].out_w, item->plan[i].out_h);
    }
    return KD_OK;
}

kd_status kd_views_make(const kd_view_maker *m, kd_view_worker *w, kd_view_item *item, kd_err *err) {
    int before = kd_stages_enter(&w->time, KD_VIEW_DECODE);
    kd_status status = make_views(m, w, item, err);
    kd_stages_enter(&w->time, before);
    return status;
}

/* A part decodes exactly when the whole does, and one pixel is the cheapest. */
static kd_box corner(void *ctx, int width, int height) {
    kd_view_item *item = ctx;
    item->width = width;
    item->height = height;
    return (kd_box){0, 0, 1, 1};
}

kd_status kd_views_check(const kd_view_maker *m, kd_view_worker *w, kd_view_item *item, kd_err *err) {
    char path[KD_DATA_NAME];
    KD_TRY(kd_dataset_path(m->data, item->file, path, sizeof path, err));
    return kd_image_decode_box(&w->image, w->bytes, item->size, path, &m->decode, corner, item, err);
}

/* ---- the stage ---- */

/* Everything about one image whose failure means "skip this image". */
static kd_status read_image(const kd_view_stage *s, kd_view_worker *w, kd_view_item *item, kd_err *err) {
    KD_TRY(kd_views_read(&s->make, w, item, err));
    for (uint32_t v = 0; v < s->views; v++)
        if (!s->done(s->ctx, &item->id, v))
            item->view[item->count++] = v;
    return item->count > 0 ? kd_views_make(&s->make, w, item, err) : KD_OK;
}

static kd_status make_item(void *ctx, int worker, uint64_t index, void *slot, kd_err *err) {
    kd_view_stage *s = ctx;
    kd_view_item *item = slot;
    KD_TRY(kd_view_item_reserve(&s->make, item, s->views, err));
    item->file = (size_t)index;
    item->count = 0;
    item->problem.status = KD_OK;
    kd_status status = read_image(s, &s->workers[worker], item, &item->problem);
    item->problem.status = status;
    if (status != KD_OK)
        item->count = 0;
    return KD_OK;
}

static void free_item(void *ctx, void *slot) {
    (void)ctx;
    kd_view_item_free(slot);
}

kd_status kd_view_stage_start(kd_view_stage *stage, kd_ordered **out, int threads, kd_err *err) {
    stage->threads = threads;
    KD_TRY(kd_alloc_array(&stage->workers, (size_t)threads, sizeof *stage->workers, err));
    return kd_ordered_create(out, threads, kd_view_stage_slots(threads), sizeof(kd_view_item), stage->make.data->count, make_item, free_item, stage, err);
}

void kd_view_stage_stop(kd_view_stage *stage, kd_ordered *q) {
    kd_ordered_destroy(q);
    for (int i = 0; stage->workers != NULL && i < stage->threads; i++) {
        kd_stages_add(stage->seconds, &stage->workers[i].time);
        kd_view_worker_free(&stage->workers[i]);
    }
    kd_free(stage->workers);
    stage->workers = NULL;
}

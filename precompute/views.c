#include "precompute/views.h"

#include <string.h>

#include "common/base/mem.h"
#include "common/image/mix.h"

struct kd_view_worker {
    uint8_t *bytes;
    size_t bytes_cap;
    kd_image image, partner;
    kd_view_scratch scratch;
};

static size_t view_bytes(const kd_view_stage *s) {
    return (size_t)s->policy->image_h * (size_t)s->policy->image_w * 3;
}

/* Buffers of an item are made once per slot and re-used. */
static kd_status reserve(const kd_view_stage *s, kd_view_item *item, kd_err *err) {
    if (item->pixels != NULL)
        return KD_OK;
    KD_TRY(kd_alloc_array(&item->view, s->views, sizeof *item->view, err));
    KD_TRY(kd_alloc_array(&item->plan, s->views, sizeof *item->plan, err));
    if (s->mix != NULL)
        KD_TRY(kd_alloc_array(&item->partner, s->views, sizeof *item->partner, err));
    KD_TRY(kd_alloc_array(&item->hash, s->views, sizeof *item->hash, err));
    return kd_alloc_array(&item->pixels, s->views, view_bytes(s), err);
}

typedef struct drawing {
    const kd_view_stage *stage;
    kd_view_item *item;
} drawing;

/* When the picture's size is known, the plans are drawn; what they need of it is decoded. */
static kd_box draw_plans(void *ctx, int width, int height) {
    const drawing *d = ctx;
    kd_view_item *item = d->item;
    item->width = width;
    item->height = height;
    for (uint32_t i = 0; i < item->count; i++)
        item->plan[i] = kd_plan_draw(d->stage->policy, d->stage->seed, &item->id, item->view[i], width, height);
    return kd_plans_box(&(kd_plans){item->plan, item->count}, width, height);
}

typedef struct partner_drawing {
    const kd_view_stage *stage;
    const kd_plan *plan; /* of the mixed view */
    kd_plan *partner;
} partner_drawing;

static kd_box draw_partner(void *ctx, int width, int height) {
    const partner_drawing *d = ctx;
    *d->partner = kd_plan_draw(d->stage->policy, d->stage->seed, &d->plan->mix_partner, d->plan->mix_view, width, height);
    return kd_plans_box(&(kd_plans){d->partner, 1}, width, height);
}

/* The picture of the view's partner in w->partner, and its plan. Takes the place of the image's own bytes. */
static kd_status read_partner(const kd_view_stage *s, struct kd_view_worker *w, const kd_plan *plan, kd_plan *partner, kd_err *err) {
    char path[KD_DATA_NAME];
    size_t size = 0;
    int64_t file = kd_locator_by_id(s->mix->files, &plan->mix_partner);
    KD_ASSERT(file >= 0);
    KD_TRY(kd_locator_read(s->mix->files, file, &w->bytes, &w->bytes_cap, &size, err));
    KD_TRY(kd_locator_path(s->mix->files, file, path, sizeof path, err));
    kd_hash128 id = kd_image_id(w->bytes, size);
    if (memcmp(&id, &plan->mix_partner, sizeof id) != 0)
        return kd_fail(err, KD_EFAIL, "%s was changed while the program ran", path);
    return kd_image_decode_box(&w->partner, w->bytes, size, path, &s->decode, draw_partner, &(partner_drawing){s, plan, partner}, err);
}

/* Draws the partner of view i of the item and blends it in. */
static kd_status mix_view(const kd_view_stage *s, struct kd_view_worker *w, kd_view_item *item, uint32_t i, uint8_t *out, const char *path, kd_err *err) {
    kd_err cause = {0};
    kd_mix_draw(&item->plan[i], s->policy, s->seed, &item->id, item->view[i], s->mix->id, s->mix->count);
    if (!kd_plan_is_mixed(&item->plan[i]))
        return KD_OK;
    if (read_partner(s, w, &item->plan[i], &item->partner[i], &cause) != KD_OK)
        return kd_fail(err, KD_EFAIL, "%s: its view %u is mixed with an image that can't be read: %.900s", path, item->view[i], cause.msg);
    return kd_view_mix(out, &item->plan[i], &item->partner[i], &w->partner, &w->scratch, err);
}

/* Everything about one image whose failure means "skip this image". */
static kd_status read_image(const kd_view_stage *s, struct kd_view_worker *w, kd_view_item *item, kd_err *err) {
    char path[KD_DATA_NAME];
    size_t size = 0;
    KD_TRY(kd_dataset_read(s->data, item->file, &w->bytes, &w->bytes_cap, &size, err));
    KD_TRY(kd_dataset_path(s->data, item->file, path, sizeof path, err));
    item->size = size;
    item->id = kd_image_id(w->bytes, size);
    item->count = 0;
    for (uint32_t v = 0; v < s->views; v++)
        if (!s->done(s->ctx, &item->id, v))
            item->view[item->count++] = v;
    if (item->count == 0)
        return KD_OK;
    KD_TRY(kd_image_decode_box(&w->image, w->bytes, size, path, &s->decode, draw_plans, &(drawing){s, item}, err));
    if (s->mix != NULL && !kd_mix_has(s->mix->id, s->mix->count, &item->id))
        return kd_fail(err, KD_EFAIL, "%s was changed while the program ran", path);
    for (uint32_t i = 0; i < item->count; i++) {
        uint8_t *out = item->pixels + i * view_bytes(s);
        KD_TRY(kd_plan_apply(&item->plan[i], &w->image, out, &w->scratch, err));
        if (s->mix != NULL)
            KD_TRY(mix_view(s, w, item, i, out, path, err));
        item->hash[i] = kd_view_hash(out, item->plan[i].out_w, item->plan[i].out_h);
    }
    return KD_OK;
}

static kd_status make_item(void *ctx, int worker, uint64_t index, void *slot, kd_err *err) {
    kd_view_stage *s = ctx;
    kd_view_item *item = slot;
    KD_TRY(reserve(s, item, err));
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
    kd_view_item *item = slot;
    kd_free(item->view);
    kd_free(item->plan);
    kd_free(item->partner);
    kd_free(item->hash);
    kd_free(item->pixels);
}

kd_status kd_view_stage_start(kd_view_stage *stage, kd_ordered **out, int threads, kd_err *err) {
    stage->threads = threads;
    KD_TRY(kd_alloc_array(&stage->workers, (size_t)threads, sizeof *stage->workers, err));
    return kd_ordered_create(out, threads, kd_view_stage_slots(threads), sizeof(kd_view_item), stage->data->count, make_item, free_item, stage, err);
}

void kd_view_stage_stop(kd_view_stage *stage, kd_ordered *q) {
    kd_ordered_destroy(q);
    for (int i = 0; stage->workers != NULL && i < stage->threads; i++) {
        kd_free(stage->workers[i].bytes);
        kd_image_free(&stage->workers[i].image);
        kd_image_free(&stage->workers[i].partner);
        kd_view_scratch_free(&stage->workers[i].scratch);
    }
    kd_free(stage->workers);
    stage->workers = NULL;
}

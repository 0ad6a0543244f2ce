#include "precompute/views.h"

#include <string.h>

#include "common/base/mem.h"

struct kd_view_worker {
    uint8_t *bytes;
    size_t bytes_cap;
    kd_image image;
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
    for (uint32_t i = 0; i < item->count; i++) {
        uint8_t *out = item->pixels + i * view_bytes(s);
        KD_TRY(kd_plan_apply(&item->plan[i], &w->image, out, &w->scratch, err));
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
        kd_view_scratch_free(&stage->workers[i].scratch);
    }
    kd_free(stage->workers);
    stage->workers = NULL;
}

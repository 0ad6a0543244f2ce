#include "train/neighbourhood.h"

#include <math.h>

#include "common/base/mem.h"
#include "train/eval/agreement.h"

/* A live teacher sees the views once more; its replay numbers images as it does. */
static kd_status ask_teacher(kd_neighbourhood *h, kd_live *live, const kd_replay_item *items, kd_err *err) {
    kd_live_item *views;
    KD_TRY(kd_alloc_array(&views, h->count, sizeof *views, err));
    for (size_t i = 0; i < h->count; i++)
        views[i] = (kd_live_item){items[i].image, items[i].view};
    kd_status status = kd_live_features(live, views, h->count, KD_FEATURE_CLS, (uint16_t)h->setup->config->teacher_layer, h->teacher, err);
    kd_free(views);
    return status;
}

static kd_status read_teacher(kd_neighbourhood *h, const kd_replay_item *items, kd_err *err) {
    const kd_group *g = &h->setup->groups.group[0];
    kd_reader *reader;
    KD_TRY(kd_alloc_array(&h->teacher, h->count, h->teacher_width * sizeof(float), err));
    if (g->source.live != NULL)
        return ask_teacher(h, g->source.live, items, err);
    KD_TRY(kd_reader_create(&reader, g->source.cache, err));
    kd_status status = KD_OK;
    for (size_t i = 0; i < h->count && status == KD_OK; i++) {
        const kd_image_entry *e = kd_replay_image(g->replay, items[i].image);
        status = kd_reader_feature(reader, KD_FEATURE_CLS, &e->image, kd_image_view(e, items[i].view), (uint16_t)h->setup->config->teacher_layer, h->teacher + i * h->teacher_width, NULL, err);
    }
    kd_reader_destroy(reader);
    return status;
}

kd_status kd_neighbourhood_begin(kd_neighbourhood *h, const kd_setup *setup, const kd_replay_item *items, size_t count, kd_err *err) {
    const kd_recipe *r = kd_source_recipe(&setup->groups.group[0].source);
    h->setup = setup;
    h->count = count < KD_AGREEMENT_MAX ? count : KD_AGREEMENT_MAX;
    if (h->count < 3 || !kd_recipe_has(r, KD_FEATURE_CLS))
        h->count = 0;
    if (h->count == 0)
        return KD_OK;
    h->teacher_width = (size_t)r->width;
    KD_TRY(read_teacher(h, items, err));
    KD_TRY(kd_alloc_array(&h->student, setup->count, sizeof *h->student, err));
    for (size_t i = 0; i < setup->count; i++)
        KD_TRY(kd_alloc_array(&h->student[i], h->count, (size_t)setup->students[i]->model.width * sizeof(float), err));
    return KD_OK;
}

kd_status kd_neighbourhood_see(void *ctx, size_t student, kd_exec *infer, size_t first, int rows, kd_err *err) {
    kd_neighbourhood *h = ctx;
    if (first >= h->count)
        return KD_OK;
    if ((size_t)rows > h->count - first)
        rows = (int)(h->count - first);
    return kd_exec_download(infer, "pooled", rows, h->student[student] + first * (size_t)h->setup->students[student]->model.width, err);
}

kd_status kd_neighbourhood_measure(const kd_neighbourhood *h, kd_val_result *results, kd_err *err) {
    for (size_t i = 0; i < h->setup->count; i++) {
        results[i].agreement = NAN;
        if (h->count > 0)
            KD_TRY(kd_agreement(&results[i].agreement, NULL, h->setup->backend, h->teacher, h->teacher_width, h->student[i], (size_t)h->setup->students[i]->model.width, h->count,
                                kd_agreement_neighbours(h->count, KD_AGREEMENT_K), err));
    }
    return KD_OK;
}

void kd_neighbourhood_end(kd_neighbourhood *h) {
    for (size_t i = 0; h->student != NULL && i < h->setup->count; i++)
        kd_free(h->student[i]);
    kd_free(h->student);
    kd_free(h->teacher);
    *h = (kd_neighbourhood){0};
}

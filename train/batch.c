#include "train/batch.h"

#include "common/base/mem.h"
#include "common/base/rng.h"
#include "common/base/threads.h"

kd_status kd_batches_open(kd_batches *b, const kd_setup *s, kd_stages *stages, kd_err *err) {
    b->setup = s;
    b->stages = stages;
    KD_TRY(kd_alloc_array(&b->order, s->split.train_count, sizeof *b->order, err));
    for (size_t k = 0; k < s->groups.count; k++)
        KD_TRY(kd_alloc_array(&b->items[k], (size_t)s->epoch_steps * (size_t)s->step_images, sizeof *b->items[k], err));
    return KD_OK;
}

void kd_batches_close(kd_batches *b) {
    for (int k = 0; k < KD_MAX_GROUPS; k++)
        kd_free(b->items[k]);
    kd_free(b->order);
    *b = (kd_batches){0};
}

kd_status kd_batches_begin(kd_batches *b, int64_t step, int64_t end, kd_err *err) {
    const kd_setup *s = b->setup;
    uint32_t epoch = (uint32_t)(step / s->epoch_steps);
    size_t images = (size_t)s->step_images, n = 0;
    kd_rng_permutation((uint64_t)s->config->seed, epoch, b->order, (uint32_t)s->split.train_count);
    for (size_t i = (size_t)(step % s->epoch_steps) * images; n < (size_t)(end - step) * images; i++, n++)
        for (size_t k = 0; k < s->groups.count; k++)
            b->items[k][n] = kd_group_item(&s->groups.group[k], s->split.train[b->order[i]], epoch);
    kd_status status = KD_OK;
    for (size_t k = 0; k < s->groups.count && status == KD_OK; k++)
        status = kd_replay_begin(s->groups.group[k].replay, b->items[k], n, err);
    if (status != KD_OK)
        kd_batches_end(b);
    return status;
}

void kd_batches_end(kd_batches *b) {
    for (size_t k = 0; k < b->setup->groups.count; k++)
        kd_replay_end(b->setup->groups.group[k].replay);
}

static kd_status put_row(const kd_batches *b, size_t k, int row, kd_student *const *students, size_t count, kd_err *err) {
    kd_replay *replay = b->setup->groups.group[k].replay;
    kd_sample sample;
    int before = kd_stages_enter(b->stages, KD_SPENT_WAIT);
    kd_status status = kd_replay_next(replay, &sample, err);
    kd_stages_enter(b->stages, before);
    if (status != KD_OK)
        return status;
    for (size_t i = 0; i < count && status == KD_OK; i++)
        status = kd_student_put(students[i], (int)k, row, &sample, err);
    kd_replay_release(replay, &sample);
    return status;
}

static kd_status put_rows(const kd_batches *b, kd_student *const *students, size_t count, kd_err *err) {
    for (size_t k = 0; k < b->setup->groups.count; k++)
        for (int row = 0; row < (int)b->setup->config->batch_size; row++) {
            kd_status stop = kd_stop_requested();
            if (stop != KD_OK)
                return kd_fail(err, stop, "interrupted while images were read");
            KD_TRY(put_row(b, k, row, students, count, err));
        }
    return KD_OK;
}

/* A live teacher works inside kd_replay_next. */
static double teacher_seconds(const kd_batches *b) {
    const kd_live *live = b->setup->groups.group[0].source.live;
    return live != NULL ? kd_live_seconds(live) : 0;
}

kd_status kd_batches_put(kd_batches *b, kd_student *const *students, size_t count, kd_err *err) {
    int before = kd_stages_enter(b->stages, KD_SPENT_BATCH);
    double taught = teacher_seconds(b);
    kd_status status = put_rows(b, students, count, err);
    kd_stages_enter(b->stages, before);
    if (b->stages != NULL)
        kd_stages_move(b->stages, KD_SPENT_WAIT, KD_SPENT_TEACHER, teacher_seconds(b) - taught);
    return status;
}

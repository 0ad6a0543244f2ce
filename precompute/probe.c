#include "precompute/probe.h"

#include <string.h>

#include "common/base/mem.h"
#include "common/base/progress.h"

enum { BATCHES = 6, FEWEST_IMAGES = 32 };
static const double decoding_seconds = 3, together_seconds = 8; /* a pass ends here even if the sample isn't through */

static size_t view_bytes(const kd_probe *p) {
    return (size_t)p->policy->image_h * (size_t)p->policy->image_w * 3;
}

static int never_stored(void *ctx, const kd_hash128 *id, uint32_t view) {
    (void)ctx, (void)id, (void)view;
    return 0;
}

/* Evenly spread over the set, enough for the batches. */
static kd_status take_sample(kd_dataset *sample, const kd_probe *p, kd_err *err) {
    size_t count = p->data->count, want = ((size_t)BATCHES * (size_t)p->batch + p->views - 1) / p->views;
    uint8_t *keep;
    want = want < FEWEST_IMAGES ? FEWEST_IMAGES : want;
    want = want > count ? count : want;
    KD_TRY(kd_alloc_array(&keep, count + 1, 1, err));
    for (size_t i = 0; i < want; i++)
        keep[(size_t)((uint64_t)i * count / want)] = 1;
    kd_status status = kd_dataset_subset(sample, p->data, keep, err);
    kd_free(keep);
    return status;
}

/* ---- one pass over the sample ---- */

typedef struct pass {
    const kd_probe *probe;
    int computes;           /* or only decodes */
    int rows, batches;      /* rows that wait in pixels; batches computed */
    double begin, end;      /* of what is measured */
    double teacher, storing;
    size_t images;
    uint64_t views;         /* within begin .. end */
} pass;

/* The first batch warms up: the clock starts behind it. */
static kd_status compute(pass *a, kd_err *err) {
    double teacher = 0, storing = 0;
    KD_TRY(a->probe->compute(a->probe->ctx, &teacher, &storing, err));
    a->end = kd_now();
    if (a->batches++ == 0) {
        a->begin = a->end;
    } else {
        a->teacher += teacher;
        a->storing += storing;
        a->views += (uint64_t)a->probe->batch;
    }
    a->rows = 0;
    return KD_OK;
}

static kd_status take_item(pass *a, const kd_view_item *item, kd_err *err) {
    const kd_probe *p = a->probe;
    a->images += item->count > 0;
    if (!a->computes) {
        a->views += item->count;
        a->end = kd_now();
        return KD_OK;
    }
    for (uint32_t i = 0; i < item->count; i++) {
        memcpy(p->pixels + (size_t)a->rows * view_bytes(p), item->pixels + i * view_bytes(p), view_bytes(p));
        if (++a->rows == p->batch)
            KD_TRY(compute(a, err));
    }
    return KD_OK;
}

static kd_status run_pass(pass *a, const kd_dataset *sample, double most_seconds, kd_err *err) {
    const kd_probe *p = a->probe;
    kd_view_stage stage = {.make = {.data = sample, .policy = p->policy, .decode = p->decode, .seed = p->seed}, .views = p->views, .done = never_stored};
    kd_ordered *q = NULL;
    double start = kd_now();
    a->begin = a->end = start;
    kd_status status = kd_view_stage_start(&stage, &q, p->threads, err);
    while (status == KD_OK && (kd_now() - start < most_seconds || (a->computes && a->batches < 2))) {
        void *slot;
        status = kd_stop_requested();
        if (status != KD_OK) {
            kd_fail(err, status, "stopped while the speed was measured");
            break;
        }
        status = kd_ordered_next(q, &slot, err);
        if (status == KD_OK) {
            status = take_item(a, slot, err);
            kd_ordered_release(q, slot);
        }
    }
    kd_view_stage_stop(&stage, q);
    status = status == KD_DONE ? KD_OK : status;
    /* Too few images for two batches: the pixels that are there are computed again. */
    while (status == KD_OK && a->computes && a->batches < 2)
        status = compute(a, err);
    return status;
}

/* ---- the rates ---- */

static double rate(uint64_t views, double seconds) {
    return seconds > 0 ? (double)views / seconds : 0;
}

kd_status kd_probe_run(kd_probe_rates *r, const kd_probe *p, kd_err *err) {
    kd_dataset sample = {0};
    pass decodes = {.probe = p}, all = {.probe = p, .computes = 1};
    *r = (kd_probe_rates){0};
    kd_status status = take_sample(&sample, p, err);
    if (status == KD_OK)
        status = run_pass(&decodes, &sample, decoding_seconds, err);
    if (status == KD_OK)
        status = run_pass(&all, &sample, together_seconds, err);
    kd_dataset_close(&sample);
    KD_TRY(status);
    r->images = decodes.images;
    r->decoding = rate(decodes.views, decodes.end - decodes.begin);
    r->teacher = rate(all.views, all.teacher);
    r->storing = rate(all.views, all.storing);
    r->together = rate(all.views, all.end - all.begin);
    r->binds = r->decoding > 0 && r->decoding < r->teacher && r->decoding < r->storing ? "decoding" : r->storing < r->teacher ? "storing" : "the teacher";
    return KD_OK;
}

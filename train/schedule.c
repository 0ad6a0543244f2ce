#include "train/schedule.h"

#include "common/base/mem.h"
#include "common/base/rng.h"

static const double PI = 3.14159265358979323846, FLOOR_SHARE = 0.001;

double kd_schedule_lr(const kd_schedule *s, int64_t step) {
    KD_ASSERT(step >= 0 && s->total > 0 && s->warmup <= s->total);
    if (step < s->warmup)
        return s->base * (double)(step + 1) / (double)s->warmup;
    int64_t left = s->total - s->warmup, at = step - s->warmup;
    double floor = s->base * FLOOR_SHARE;
    if (at >= left - 1)
        return floor;
    return floor + (s->base - floor) * (kd_exact_cos(PI * (double)at / (double)(left - 1)) + 1) / 2;
}

uint32_t kd_epoch_view(const kd_hash128 *id, uint32_t epoch, uint32_t views) {
    KD_ASSERT(views > 0);
    return (uint32_t)((kd_hash128_low64(id) % views + epoch % views) % views);
}

kd_status kd_split_make(kd_split *s, size_t n, const kd_hash128 *(*id)(const void *ctx, size_t i), const void *ctx, double fraction, uint64_t seed, kd_err *err) {
    double lowest = 2;
    size_t lowest_at = 0, held = 0;
    *s = (kd_split){0};
    kd_status status = kd_alloc_array(&s->train, n, sizeof *s->train, err);
    if (status == KD_OK)
        status = kd_alloc_array(&s->held, n, sizeof *s->held, err);
    if (status != KD_OK) {
        kd_split_free(s);
        return status;
    }
    for (int pass = 0; pass < 2; pass++) /* first the draws, then the lists: a lone held-out image is known only after all draws */
        for (size_t i = 0; i < n; i++) {
            kd_rng r = kd_rng_make(seed, kd_hash128_low64(id(ctx, i)), 0, KD_RNG_SPLIT);
            double u = kd_rng_unit(&r);
            if (pass == 0) {
                held += u < fraction;
                if (u < lowest) {
                    lowest = u;
                    lowest_at = i;
                }
            } else if (u < fraction || (fraction > 0 && held == 0 && i == lowest_at)) {
                s->held[s->held_count++] = (uint32_t)i;
            } else {
                s->train[s->train_count++] = (uint32_t)i;
            }
        }
    return KD_OK;
}

void kd_split_free(kd_split *s) {
    kd_free(s->train);
    kd_free(s->held);
    *s = (kd_split){0};
}

#include "train/schedule.h"

#include <stdlib.h>
#include <string.h>

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

uint64_t kd_split_key(const kd_hash128 *id, const char *path, int depth) {
    size_t end = 0;
    if (depth == 0)
        return kd_hash128_low64(id);
    while (path[0] == '/' || (path[0] == '.' && path[1] == '/'))
        path += path[0] == '/' ? 1 : 2;
    for (int folders = 0; folders < depth; folders++) {
        const char *slash = strchr(path + end + (folders > 0), '/');
        if (slash == NULL)
            break;
        end = (size_t)(slash - path);
    }
    kd_hash128 h = kd_xxh128(path, end);
    return kd_hash128_low64(&h);
}

static int compare_keys(const void *a, const void *b) {
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}

static size_t count_different(const uint64_t *sorted, size_t n) {
    size_t different = n > 0;
    for (size_t i = 1; i < n; i++)
        different += sorted[i] != sorted[i - 1];
    return different;
}

/* The keys that are held out, sorted, in *out. */
static size_t choose_keys(uint64_t *out, const uint64_t *key, const uint8_t *listed, size_t n, double fraction, uint64_t seed) {
    size_t held = 0, lowest_at = 0;
    double lowest = 2;
    for (size_t i = 0; i < n; i++) {
        kd_rng r = kd_rng_make(seed, key[i], 0, KD_RNG_SPLIT);
        double u = listed != NULL ? !listed[i] : kd_rng_unit(&r);
        if (u < lowest) {
            lowest = u;
            lowest_at = i;
        }
        if (u < (listed != NULL ? 0.5 : fraction))
            out[held++] = key[i];
    }
    if (listed == NULL && fraction > 0 && held == 0 && n > 0)
        out[held++] = key[lowest_at];
    qsort(out, held, sizeof *out, compare_keys);
    return held;
}

kd_status kd_split_make(kd_split *s, size_t n, const uint64_t *key, const uint8_t *listed, double fraction, uint64_t seed, kd_err *err) {
    uint64_t *sorted = NULL;
    *s = (kd_split){0};
    kd_status status = kd_alloc_array(&s->train, n, sizeof *s->train, err);
    if (status == KD_OK)
        status = kd_alloc_array(&s->held, n, sizeof *s->held, err);
    if (status == KD_OK)
        status = kd_alloc_array(&sorted, n, sizeof *sorted, err);
    if (status != KD_OK) {
        kd_split_free(s);
        return status;
    }
    memcpy(sorted, key, n * sizeof *key);
    qsort(sorted, n, sizeof *sorted, compare_keys);
    s->groups = count_different(sorted, n);
    size_t chosen = choose_keys(sorted, key, listed, n, fraction, seed);
    s->held_groups = count_different(sorted, chosen);
    for (size_t i = 0; i < n; i++)
        if (bsearch(&key[i], sorted, chosen, sizeof *sorted, compare_keys) != NULL)
            s->held[s->held_count++] = (uint32_t)i;
        else
            s->train[s->train_count++] = (uint32_t)i;
    kd_free(sorted);
    return KD_OK;
}

void kd_split_free(kd_split *s) {
    kd_free(s->train);
    kd_free(s->held);
    *s = (kd_split){0};
}

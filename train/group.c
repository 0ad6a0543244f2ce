#include "train/group.h"

#include <string.h>

#include "common/base/mem.h"
#include "train/schedule.h"

/* ---- caches ---- */

/* The group of a cache's recipe; a new one takes over the cache and clears *cache. */
static kd_status find_group(kd_groups *g, kd_cache **cache, const char *path, size_t *at, kd_err *err) {
    const kd_recipe *r = kd_cache_recipe(*cache);
    for (*at = 0; *at < g->count; ++*at)
        if (memcmp(&kd_source_recipe(&g->group[*at].source)->sha, &r->sha, sizeof r->sha) == 0)
            return KD_OK;
    if (g->count > 0)
        KD_TRY(kd_recipe_same_teacher(kd_source_recipe(&g->group[0].source), kd_source_name(&g->group[0].source), r, path, err));
    if (g->count == KD_MAX_GROUPS)
        return kd_fail(err, KD_EUSAGE, "--cache %s is of a recipe of its own, the %dth; a run learns from at most %d recipes, leave some out", path, KD_MAX_GROUPS + 1, KD_MAX_GROUPS);
    g->group[g->count++].source.cache = *cache;
    *cache = NULL;
    return KD_OK;
}

/* Opens the paths of group `at` as one cache, when there are several. */
static kd_status join(kd_groups *g, size_t at, const char *const *paths, const size_t *owner, size_t count, kd_err *err) {
    const char **own;
    size_t n = 0;
    KD_TRY(kd_alloc_array(&own, count, sizeof *own, err));
    for (size_t i = 0; i < count; i++)
        if (owner[i] == at)
            own[n++] = paths[i];
    kd_status status = KD_OK;
    if (n > 1) {
        kd_source_close(&g->group[at].source);
        status = kd_cache_open(&g->group[at].source.cache, own, n, err);
    }
    kd_free(own);
    return status;
}

kd_status kd_groups_open(kd_groups *g, const char *const *paths, size_t count, kd_err *err) {
    size_t *owner;
    kd_status status = KD_OK;
    KD_TRY(kd_alloc_array(&owner, count, sizeof *owner, err));
    for (size_t i = 0; i < count && status == KD_OK; i++) {
        kd_cache *cache = NULL;
        status = kd_cache_open(&cache, &paths[i], 1, err);
        if (status == KD_OK)
            status = find_group(g, &cache, paths[i], &owner[i], err);
        kd_cache_close(cache);
    }
    for (size_t k = 0; k < g->count && status == KD_OK; k++)
        status = join(g, k, paths, owner, count, err);
    kd_free(owner);
    return status;
}

void kd_groups_live(kd_groups *g, kd_live *live) {
    g->group[0].source.live = live;
    g->count = 1;
}

void kd_groups_close(kd_groups *g) {
    for (size_t k = 0; k < g->count; k++) {
        kd_replay_destroy(g->group[k].replay);
        kd_source_close(&g->group[k].source);
        kd_free(g->group[k].image);
    }
    *g = (kd_groups){0};
}

/* ---- sizes ---- */

/* side * part / whole, rounded. */
static int scaled(int side, int part, int whole) {
    int x = (int)((2 * (int64_t)side * part + whole) / (2 * (int64_t)whole));
    return x > 0 ? x : 1;
}

void kd_groups_scale(kd_groups *g) {
    const kd_group *first = &g->group[0];
    const kd_recipe *whole = kd_source_recipe(&first->source);
    for (size_t k = 1; k < g->count; k++) {
        const kd_recipe *r = kd_source_recipe(&g->group[k].source);
        g->group[k].student_h = scaled(r->image_h, first->student_h, whole->image_h);
        g->group[k].student_w = scaled(r->image_w, first->student_w, whole->image_w);
    }
}

/* ---- images ---- */

const kd_image_entry *kd_group_image(const kd_group *g, size_t i) {
    return kd_replay_image(g->replay, g->image[i]);
}

kd_replay_item kd_group_item(const kd_group *g, size_t i, uint32_t epoch) {
    const kd_image_entry *e = kd_group_image(g, i);
    return (kd_replay_item){.image = g->image[i], .view = kd_epoch_view(&e->image, epoch, e->views)};
}

/* Moves every group whose next image is below the highest of all one image on; *found: none was. 0: a group has come to its end. */
static int meet(const kd_groups *g, size_t next[KD_MAX_GROUPS], int *found) {
    const kd_hash128 *highest = NULL;
    for (size_t k = 0; k < g->count; k++) {
        if (next[k] == kd_replay_images(g->group[k].replay))
            return 0;
        const kd_hash128 *id = &kd_replay_image(g->group[k].replay, next[k])->image;
        if (highest == NULL || memcmp(id, highest, sizeof *id) > 0)
            highest = id;
    }
    *found = 1;
    for (size_t k = 0; k < g->count; k++)
        if (memcmp(&kd_replay_image(g->group[k].replay, next[k])->image, highest, sizeof *highest) != 0) {
            next[k]++;
            *found = 0;
        }
    return 1;
}

kd_status kd_groups_match(kd_groups *g, kd_err *err) {
    size_t next[KD_MAX_GROUPS] = {0}, least = SIZE_MAX, sum = 0;
    int found;
    for (size_t k = 0; k < g->count; k++) {
        size_t n = kd_replay_images(g->group[k].replay);
        least = n < least ? n : least;
        sum += n;
    }
    for (size_t k = 0; k < g->count; k++)
        KD_TRY(kd_alloc_array(&g->group[k].image, least, sizeof *g->group[k].image, err));
    while (meet(g, next, &found)) {
        for (size_t k = 0; k < g->count && found; k++)
            g->group[k].image[g->images] = (uint32_t)next[k]++;
        g->images += (size_t)found;
    }
    g->left_out = sum - g->count * g->images;
    if (g->images == 0 && g->count > 1)
        return kd_fail(err, KD_EMISMATCH, "no image is in all %zu recipes (%s has %zu, %s has %zu): they were made from different images; make the caches from the same --images, or train on them apart",
                       g->count, kd_source_name(&g->group[0].source), kd_replay_images(g->group[0].replay), kd_source_name(&g->group[1].source),
                       kd_replay_images(g->group[1].replay));
    return KD_OK;
}

double kd_groups_wait_seconds(const kd_groups *g) {
    double sum = -g->covered_wait;
    for (size_t k = 0; k < g->count; k++)
        sum += kd_replay_wait_seconds(g->group[k].replay);
    return sum;
}

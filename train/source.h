/* Source: what the samples of a group are made from: a cache, or a live teacher that stands in for one. Who asks for a recipe, images or statistics needn't know which.
 * Thread rule: as cache/store.h and live.h. */
#ifndef KD_TRAIN_SOURCE_H
#define KD_TRAIN_SOURCE_H

#include "cache/store.h"
#include "train/live.h"

typedef struct kd_source {
    kd_cache *cache; /* one of the two; the other is NULL */
    kd_live *live;
} kd_source;

void kd_source_close(kd_source *s); /* accepts a zeroed one */

const kd_recipe *kd_source_recipe(const kd_source *s);
const char *kd_source_name(const kd_source *s); /* for messages: the (first) cache file, the teacher's weights */
/* Images by ascending id, and the views of all. */
size_t kd_source_images(const kd_source *s);
const kd_image_entry *kd_source_image(const kd_source *s, size_t i);
uint64_t kd_source_views(const kd_source *s);
/* kd_cache_mean, kd_live_mean. */
kd_status kd_source_mean(const kd_source *s, kd_feature f, uint16_t layer, const float **mean, float *scalar_std, kd_err *err);

#endif

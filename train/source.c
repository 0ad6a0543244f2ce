#include "train/source.h"

void kd_source_close(kd_source *s) {
    kd_cache_close(s->cache);
    kd_live_close(s->live);
    *s = (kd_source){0};
}

const kd_recipe *kd_source_recipe(const kd_source *s) {
    return s->live != NULL ? kd_live_recipe(s->live) : kd_cache_recipe(s->cache);
}

const char *kd_source_name(const kd_source *s) {
    return s->live != NULL ? kd_live_name(s->live) : kd_cache_shard_path(s->cache, 0);
}

size_t kd_source_images(const kd_source *s) {
    return s->live != NULL ? kd_live_images(s->live) : kd_cache_images(s->cache);
}

const kd_image_entry *kd_source_image(const kd_source *s, size_t i) {
    return s->live != NULL ? kd_live_image(s->live, i) : kd_cache_image(s->cache, i);
}

uint64_t kd_source_views(const kd_source *s) {
    return s->live != NULL ? (uint64_t)kd_live_images(s->live) * kd_live_image(s->live, 0)->views : kd_cache_view_total(s->cache);
}

kd_status kd_source_mean(const kd_source *s, kd_feature f, uint16_t layer, const float **mean, float *scalar_std, kd_err *err) {
    return s->live != NULL ? kd_live_mean(s->live, f, layer, mean, scalar_std, err) : kd_cache_mean(s->cache, f, layer, mean, scalar_std, err);
}

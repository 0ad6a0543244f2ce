#include "precompute/sealed.h"

#include <stdlib.h>
#include <string.h>

#include "cache/store.h"
#include "common/base/log.h"

static int by_rel(const void *key, const void *element) {
    return strcmp(key, ((const kd_data_file *)element)->rel);
}

static int knows(const kd_dataset *data, const kd_image_entry *e) {
    const kd_data_file *f = bsearch(e->rel, data->file, data->count, sizeof *data->file, by_rel);
    return f != NULL && f->size == e->file_size;
}

static kd_status compare(const kd_cache *c, const char *path, const kd_dataset *data, uint32_t views, kd_err *err) {
    size_t images = kd_cache_images(c), known = 0;
    uint32_t fewest = UINT32_MAX;
    for (size_t i = 0; i < images; i++) {
        const kd_image_entry *e = kd_cache_image(c, i);
        known += (size_t)knows(data, e);
        if (e->views < fewest)
            fewest = e->views;
    }
    if (images > 0 && fewest < views)
        return kd_fail(err, KD_EMISMATCH, "%s is sealed with %u view%s per image and this command asks for %u; give another --cache, or remove it to make it again", path,
                       fewest, fewest == 1 ? "" : "s", views);
    if (known == 0)
        return kd_fail(err, KD_EMISMATCH, "%s is sealed and its %zu images are none of the %zu files given (by path and size); give another --cache for these", path, images,
                       data->count);
    kd_log(KD_LOG_INFO, "%s is already sealed with this recipe; nothing to do", path);
    if (known < data->count)
        kd_log(KD_LOG_INFO, "%zu of the %zu files aren't in it by path and size: duplicates, unreadable, or added since; a sealed cache doesn't grow", data->count - known,
               data->count);
    return KD_OK;
}

kd_status kd_sealed_check(const char *path, const kd_dataset *data, uint32_t views, kd_err *err) {
    kd_cache *c;
    KD_TRY(kd_cache_open(&c, &path, 1, err));
    kd_status status = compare(c, path, data, views, err);
    kd_cache_close(c);
    return status;
}

#include "precompute/sealed.h"

#include <string.h>

#include "cache/store.h"
#include "common/base/log.h"
#include "common/data/locate.h"

static kd_status compare(const kd_cache *c, const char *path, const kd_locator *files, uint32_t views, kd_err *err) {
    size_t images = kd_cache_images(c), known = 0, count = kd_locator_files(files);
    int stem = (int)strlen(path) - 4; /* without .kdc */
    uint32_t fewest = UINT32_MAX;
    for (size_t i = 0; i < images; i++) {
        const kd_image_entry *e = kd_cache_image(c, i);
        known += kd_locator_by_path(files, e->rel, e->file_size) >= 0;
        if (e->views < fewest)
            fewest = e->views;
    }
    if (images > 0 && fewest < views)
        return kd_fail(err, KD_EMISMATCH, "%s is sealed with %u view%s per image and this command asks for %u; a folder takes more: mkdir %.*s.shards && mv %s %s.json %.*s.shards/, "
                       "then give --cache %.*s.shards/",
                       path, fewest, fewest == 1 ? "" : "s", views, stem, path, path, path, stem, path, stem, path);
    if (known == 0)
        return kd_fail(err, KD_EMISMATCH, "%s is sealed and its %zu images are none of the %zu files given (by path and size); give another --cache for these", path, images,
                       count);
    kd_log(KD_LOG_INFO, "%s is already sealed with this recipe; nothing to do", path);
    if (known < count)
        kd_log(KD_LOG_INFO, "%zu of the %zu files aren't in it by path and size: duplicates, unreadable, or added since; a sealed file doesn't grow, a folder does: mkdir %.*s.shards && mv %s %s.json %.*s.shards/, "
                            "then give --cache %.*s.shards/", count - known, count, stem, path, path, path, stem, path, stem, path);
    return KD_OK;
}

kd_status kd_sealed_check(const char *path, const kd_dataset *data, uint32_t views, kd_err *err) {
    kd_cache *c;
    kd_locator *files = NULL;
    KD_TRY(kd_cache_open(&c, &path, 1, err));
    kd_status status = kd_locator_create_over(&files, data, err);
    if (status == KD_OK)
        status = compare(c, path, files, views, err);
    kd_locator_destroy(files);
    kd_cache_close(c);
    return status;
}

/* Size model: what a cache will take on disk, before it is made. Used by kd-precompute (--dry-run, --budget, free space) and kd-cache estimate.
 *
 *     kd_size_shape s = {.features = 1u << KD_FEATURE_CLS | 1u << KD_FEATURE_PATCH, .width = 384, .grid_h = 16, .grid_w = 16, .layers = 1};
 *     kd_storage f = {.dtype = KD_I8, .targets = 1, .target = {{KD_TARGET_ADJOINT, 7, 7}}};
 *     bytes = kd_size_cache(&s, &f, 1281167, 8);
 *
 * A record is its header and one zstd frame (level 1; higher levels saved 0.01 % of real features). How much zstd saves is one row per element type in size_model.c, with the measurement behind it.
 * LMDB adds the rest: a large value takes whole pages, small ones share pages with their keys. On real photos the model is within 1 % of sealed caches of patches (tests/reference/README.md).
 * Pure functions. */
#ifndef KD_CACHE_SIZE_MODEL_H
#define KD_CACHE_SIZE_MODEL_H

#include "cache/record.h"

/* What a view's records hold, before it is chosen how they are stored. */
typedef struct kd_size_shape {
    unsigned features; /* bits 1 << kd_feature of the teacher's outputs: cls, patch, registers, mean */
    int width;         /* of a record: the teacher's, or of joined layers their sum */
    int grid_h, grid_w, registers;
    int layers;        /* stored: joined ones are one */
    int mixed;         /* views may be mixed with those of other images: then a view has two plans */
} kd_size_shape;

/* How they are stored. targets: of the patches; not read where the features have none. */
typedef struct kd_storage {
    kd_dtype dtype; /* KD_F16, KD_BF16, KD_I8 */
    int targets;
    kd_target target[KD_MAX_TARGETS];
} kd_storage;

/* "i8 adjoint:7,adjoint:14", or without patches "i8". Returns buf. */
enum { KD_STORAGE_TEXT = 8 + KD_MAX_TARGETS * KD_TARGET_TEXT };
const char *kd_storage_text(const kd_storage *f, unsigned features, char buf[KD_STORAGE_TEXT]);
/* The targets alone, as --patch-target takes them: "adjoint:7,adjoint:14". */
const char *kd_targets_text(const kd_target *target, int targets, char buf[KD_STORAGE_TEXT]);

/* Expected size of a record's value: header and frame. */
uint64_t kd_size_record(kd_dtype dtype, uint64_t rows, uint64_t width);
/* Bytes that one view adds to a sealed cache, pages and its share of its image's entry included, when images have `views` views. */
uint64_t kd_size_view(const kd_size_shape *s, const kd_storage *f, uint32_t views);
/* The sealed cache. UINT64_MAX when it doesn't fit in 64 bits. */
uint64_t kd_size_cache(const kd_size_shape *s, const kd_storage *f, uint64_t images, uint32_t views);

#endif

/* Export: a cache's features as files that other tools read, without this project's reader. Inside cache/ only.
 *
 * What is exported of each view: per stored feature an array [layers, (rows,) width], f16 where the cache stores f16, else f32 (what the reader decodes); of adjoint targets also their |t|^2.
 * Views are in the order of (image id, view). One view is in memory at a time. */
#ifndef KD_CACHE_EXPORT_H
#define KD_CACHE_EXPORT_H

#include "cache/store.h"
#include "cache/view_ranges.h"

typedef struct kd_export {
    kd_cache *cache;
    unsigned features;              /* bits 1 << kd_feature, all of them stored */
    uint16_t layer[KD_MAX_LAYERS];  /* stored layers, ascending */
    int layers;
    const kd_view_ranges *views;
} kd_export;

/* The arrays of one view: of feature f, and (adjoint) its squares. */
size_t kd_export_values(const kd_export *x, kd_feature f); /* of an array: layers x rows x width */
kd_dtype kd_export_dtype(const kd_export *x);              /* KD_F16 or KD_F32 */
int kd_export_is_token(kd_feature f);                      /* arrays [layers, width], without rows */
/* "square", of later patch targets "square2" ..; NULL: f isn't an adjoint target. */
const char *kd_export_square_name(const kd_export *x, kd_feature f);
uint64_t kd_export_views(const kd_export *x);              /* how many views are chosen */
uint64_t kd_export_view_bytes(const kd_export *x);         /* of all arrays of a view */

/* Calls `use` for each chosen view in order. KD_ESIGINT, KD_ESIGTERM when interrupted. */
kd_status kd_export_each(const kd_export *x, kd_status (*use)(void *ctx, const kd_image_entry *e, uint32_t view, kd_err *err), void *ctx, kd_err *err);
/* Reads a feature of a view: `out` has room for kd_export_values f32, where they become kd_export_dtype in place; squares (may be NULL): one for each layer. */
kd_status kd_export_read(const kd_export *x, kd_reader *r, kd_feature f, const kd_image_entry *e, uint32_t view, void *out, double *squares, kd_err *err);

/* WebDataset tars. out: a name with one %d or %06d in it for the number of the tar (from 0), or a folder, which then gets DIR/views-%06d.tar. A view's members are <id>-<view>.cls.npy, .json, .patch.npy ..,
 * views have 5 digits; a tar ends behind the view that reaches shard_bytes. *tars: how many were written. KD_EUSAGE: a name without a number. KD_ENOSPACE. */
kd_status kd_export_webdataset(const kd_export *x, const char *out, uint64_t shard_bytes, size_t *tars, kd_err *err);
/* One .safetensors file: id U8 [V,16], view I32 [V], and per feature [V,L,(rows,)D]; metadata: identity, recipe, layers. KD_EFAIL: more than 2^63 bytes. KD_ENOSPACE. */
kd_status kd_export_safetensors(const kd_export *x, const char *out, kd_err *err);

#endif

/* Store: a cache on disk. The only file of the project that knows LMDB is store*.c's store_lmdb.c.
 *
 * Life: kd-precompute writes X.kdc.partial (one LMDB file with a lock of its own: pid and host), then seals it into X.kdc by a cursor walk into a fresh environment with
 * MDB_APPEND and fixed transactions, so that the sealed bytes are a function of the content. Sealed files are read-only; readers validate pages before LMDB sees them
 * and open with MDB_RDONLY | MDB_NOLOCK. Databases: meta, images, views, and one for each feature. Layouts: FORMAT.md.
 *
 *     kd_writer *w;
 *     st = kd_writer_open(&w, "photos.kdc", recipe, provenance, err);       // KD_DONE: already sealed with this recipe
 *     if (!kd_writer_has_view(w, &id, view)) kd_writer_add_view(w, &image, &view, records, n, err);
 *     kd_writer_commit(w, err); ... kd_writer_seal(w, err); kd_writer_close(w);
 *
 *     kd_cache *c;
 *     KD_TRY(kd_cache_open(&c, paths, 1, err));
 *     kd_reader *r; KD_TRY(kd_reader_create(&r, c, err));                   // one per thread
 *     KD_TRY(kd_reader_view(r, image, view, &entry, err));
 *     KD_TRY(kd_reader_feature(r, KD_FEATURE_PATCH, image, view, 1, out, err));
 */
#ifndef KD_CACHE_STORE_H
#define KD_CACHE_STORE_H

#include "cache/identity.h"
#include "cache/record.h"
#include "common/image/augment.h"

/* One view: what was seen and how it was made. */
typedef struct kd_view_entry {
    kd_hash128 image;
    uint32_t view;
    kd_hash128 view_hash;
    kd_plan plan;
    kd_plan partner; /* of a mixed view: the plan that makes the other picture from the partner's file; else not read, and 0 where it comes from the cache */
} kd_view_entry;

/* The largest number of a view. */
#define KD_MAX_VIEW (UINT32_MAX - 1)

/* Views first .. first + count - 1 of an image, in one shard. */
typedef struct kd_view_run {
    uint32_t first, count;
    uint32_t shard; /* of an open cache; else 0 */
} kd_view_run;

/* rel: path relative to --images when it was read, or, where paths are hidden, "xxh128:" and the hex of the path's XXH3-128. */
typedef struct kd_image_entry {
    kd_hash128 image;
    const char *rel;      /* NUL-terminated bytes, at most 4095; borrowed */
    uint64_t file_size;
    int32_t width, height;
    uint32_t views;       /* number of stored views; not read by a writer, as the next two */
    uint32_t runs;
    const kd_view_run *run; /* ascending, apart; borrowed */
} kd_image_entry;
/* Number of the image's i-th stored view, i < views. Views are usually 0 .. views - 1, but a repaired or extracted cache may have any. */
uint32_t kd_image_view(const kd_image_entry *e, uint32_t i);
/* "views 0 to 7", or "5 views from 1 to 70" where some between aren't stored. Returns buf. */
const char *kd_image_views_text(const kd_image_entry *e, char buf[64]);
/* The run that has this view, or NULL: it isn't stored. */
const kd_view_run *kd_image_find_view(const kd_image_entry *e, uint32_t view);

/* ---- writing (one thread) ---- */
typedef struct kd_writer kd_writer;

enum { KD_WRITER_MEMORY = 64 << 20 }; /* pages that the open transaction holds in memory, at most */

/* Creates or resumes path.partial. KD_DONE: `path` is already sealed with the same recipe (nothing opened). KD_ELOCKED at once when another process writes it (pid and host named).
 * KD_EMISMATCH: sealed or partial file of another recipe. KD_EDAMAGED: what is there fails a check. KD_EUSAGE: path doesn't end in .kdc. KD_EFAIL/KD_ENOSPACE. expected_bytes sizes the map's first step (it grows by itself). */
kd_status kd_writer_open(kd_writer **out, const char *path, const kd_recipe *recipe, const json_t *provenance, uint64_t expected_bytes, kd_err *err);
int kd_writer_has_view(const kd_writer *w, const kd_hash128 *image, uint32_t view); /* all its records are in */
int kd_writer_has_image(const kd_writer *w, const kd_hash128 *image); /* at least one view of it */
uint64_t kd_writer_view_count(const kd_writer *w);
/* Adds a view with all its encoded feature records (bytes copied before return) to the open transaction; commits by itself about every 64 MiB.
 * The image's entry is written with its first view. Duplicate views are an error (KD_EFAIL). Disk full: KD_ENOSPACE; what was committed stays. */
typedef struct kd_record_ref {
    kd_feature feature;
    uint16_t layer;
    const uint8_t *bytes;
    size_t size;
} kd_record_ref;
kd_status kd_writer_add_view(kd_writer *w, const kd_image_entry *image, const kd_view_entry *view, const kd_record_ref *records, size_t n, kd_err *err);
kd_status kd_writer_commit(kd_writer *w, kd_err *err);
/* Bytes of all record values in the partial file, those of earlier runs too: what a shard of equal content has whatever interrupted its writer. */
uint64_t kd_writer_value_bytes(const kd_writer *w);
/* After a failed seal the writer can only be closed; the same command again goes on from what was committed. KD_ESIGINT, KD_ESIGTERM when interrupted.
 * Completes: statistics (mean vector and scalar per feature and layer, first 8,192 views in key order), fidelity, content digest, sealed copy with manifest, fsync, rename, removal of the
 * partial file. Views that lack a record can't occur: add_view is atomic per view. */
kd_status kd_writer_seal(kd_writer *w, kd_err *err);
void kd_writer_close(kd_writer *w); /* aborts what isn't committed; releases the lock; accepts NULL */

/* ---- reading ---- */
typedef struct kd_cache kd_cache; /* one or several sealed shards of equal recipe */

/* Each path is a sealed .kdc file or a folder of them. Validates every shard's pages (once: verdict.h), manifest and recipe. An image may have views in several shards; a view that is in
 * two of them, as a duplicate file in two parts of a set is, is read from one. KD_ENOTFOUND: no such cache (a .partial beside it is mentioned, with the command
 * that completes it); KD_EDAMAGED; KD_EMISMATCH between shards. */
kd_status kd_cache_open(kd_cache **out, const char *const *paths, size_t count, kd_err *err);
/* The same, walking all pages whatever earlier runs have found. */
kd_status kd_cache_open_anew(kd_cache **out, const char *const *paths, size_t count, kd_err *err);
void kd_cache_close(kd_cache *c);
/* Whether a path is meant as a cache where it could be a folder of images too: it ends in .kdc, or is a folder with such a file in it. Nothing is opened. */
int kd_cache_is_at(const char *path);

/* The structure of shard i beyond its pages: every view that its image table lists has its entry, which checks, and one record of each feature and layer, and there are no others; statistics
 * and fidelity check. Values of records aren't read. KD_EDAMAGED at the first difference; KD_ESIGINT, KD_ESIGTERM. */
kd_status kd_cache_shard_structure(kd_cache *c, size_t i, kd_err *err);

const kd_recipe *kd_cache_recipe(const kd_cache *c);
/* Manifest of shard i: {"identity","content":{"images","views","digest","bytes"},"fidelity":{...},"provenance":{...},"created"...}; borrowed. */
size_t kd_cache_shards(const kd_cache *c);
const char *kd_cache_shard_path(const kd_cache *c, size_t i);
const json_t *kd_cache_shard_manifest(const kd_cache *c, size_t i);

/* The content digest (digest.h) of shard i, computed anew from every key and header (the payloads behind them are kd_reader_feature's to check).
 * KD_ESIGINT, KD_ESIGTERM when interrupted. */
kd_status kd_cache_shard_digest(kd_cache *c, size_t i, kd_sha256 *out, kd_err *err);
/* Of all that the cache has, every view once: equal for equal content in whatever shards it lies. KD_ESIGINT, KD_ESIGTERM when interrupted. */
kd_status kd_cache_digest(kd_cache *c, kd_sha256 *out, kd_err *err);

/* Images sorted by id. */
size_t kd_cache_images(const kd_cache *c);
const kd_image_entry *kd_cache_image(const kd_cache *c, size_t i);
const kd_image_entry *kd_cache_find_image(const kd_cache *c, const kd_hash128 *id); /* NULL when absent */
uint64_t kd_cache_view_total(const kd_cache *c);
/* Target statistics of a feature of a layer: *mean [width], which lives as long as the cache, and the scalar standard deviation sqrt(mean over channels of the variance).
 * One shard has them stored; several together compute them at the first call, from up to 8,192 views. Not while other threads use the cache. KD_ENOTFOUND: not stored. KD_EDAMAGED. */
kd_status kd_cache_mean(kd_cache *c, kd_feature f, uint16_t layer, const float **mean, float *scalar_std, kd_err *err);

typedef struct kd_reader kd_reader; /* per thread */
kd_status kd_reader_create(kd_reader **out, kd_cache *c, kd_err *err);
void kd_reader_destroy(kd_reader *r); /* accepts NULL */
/* KD_ENOTFOUND: the cache has no such image, view, feature or layer. KD_EDAMAGED: missing although the image table lists it, or bytes that fail a check (file, key). */
kd_status kd_reader_view(kd_reader *r, const kd_hash128 *image, uint32_t view, kd_view_entry *out, kd_err *err);
/* What a record says beside its values. */
typedef struct kd_record_facts {
    kd_hash128 view_hash; /* to be compared with the view's */
    double square;        /* adjoint targets: sum of squares of the full grid's values */
} kd_record_facts;
/* Decoded f32: kd_recipe_rows x width values. facts may be NULL. */
kd_status kd_reader_feature(kd_reader *r, kd_feature f, const kd_hash128 *image, uint32_t view, uint16_t layer, float *out, kd_record_facts *facts, kd_err *err);
/* The record as it is stored, header and frame, checked as kd_reader_feature checks it but not unpacked: borrowed until the reader is destroyed, and read only inside `use`. For copying. */
kd_status kd_reader_record(kd_reader *r, kd_feature f, const kd_hash128 *image, uint32_t view, uint16_t layer, kd_status (*use)(void *ctx, const uint8_t *bytes, size_t size, kd_err *err),
                           void *ctx, kd_err *err);
/* Asks the kernel to read a record ahead of time, so that a cold cache is read at the disk's rate instead of one page after another. Worth it some 64 records ahead. Errors as kd_reader_feature,
 * but the record itself isn't looked at. */
kd_status kd_reader_will_need(kd_reader *r, kd_feature f, const kd_hash128 *image, uint32_t view, uint16_t layer, kd_err *err);

#endif

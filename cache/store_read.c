#include <dirent.h>
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cache/store_internal.h"
#include "cache/verdict.h"
#include "common/base/io.h"
#include "common/base/log.h"
#include "common/base/mem.h"

enum { PAGE = 4096 };

/* ---- finding the files ---- */

typedef struct path_list {
    char **path;
    size_t count, capacity;
} path_list;

static kd_status list_add(path_list *l, const char *folder, const char *name, kd_err *err)
{
    char *p = folder ? kd_asprintf("%s/%s", folder, name) : kd_strdup(name);
    if (p && l->count == l->capacity) {
        size_t capacity = l->capacity ? 2 * l->capacity : 16;
        char **bigger = kd_realloc(l->path, capacity * sizeof *bigger);
        if (bigger) {
            l->path = bigger;
            l->capacity = capacity;
        } else {
            kd_free(p);
            p = NULL;
        }
    }
    if (!p)
        return kd_fail(err, KD_EFAIL, "%s: out of memory while listing shards", name);
    l->path[l->count++] = p;
    return KD_OK;
}

static int compare_paths(const void *a, const void *b)
{
    return strcmp(*(char *const *)a, *(char *const *)b);
}

static int ends_in(const char *s, const char *end)
{
    size_t n = strlen(s), m = strlen(end);
    return n > m && strcmp(s + n - m, end) == 0;
}

/* A shard gets its name first, then its manifest, and then its partial file goes: looked for the other way round, a shard that a writer is about to finish isn't taken for a damaged one. */
static int being_finished(const char *folder, const char *name)
{
    char *path = kd_asprintf("%s/%s", folder, name), *partial = path ? kd_asprintf("%s.partial", path) : NULL, *manifest = path ? kd_manifest_path(path) : NULL;
    int yes = partial && manifest && kd_io_exists(partial) && !kd_io_exists(manifest);
    kd_free(path);
    kd_free(partial);
    kd_free(manifest);
    return yes;
}

static kd_status list_folder(path_list *l, const char *folder, kd_err *err)
{
    size_t before = l->count, unfinished = 0;
    struct dirent *e;
    kd_status status = KD_OK;
    DIR *d = opendir(folder);
    if (!d)
        return kd_fail_errno(err, KD_ENOTFOUND, "%s: can't be listed", folder);
    while (status == KD_OK && (errno = 0, e = readdir(d)) != NULL) {
        if (e->d_name[0] == '.') /* also what other systems put beside a copied file: ._a.kdc */
            continue;
        unfinished += (size_t)ends_in(e->d_name, ".kdc.partial");
        if (ends_in(e->d_name, ".kdc") && !being_finished(folder, e->d_name))
            status = list_add(l, folder, e->d_name, err);
    }
    if (status == KD_OK && errno != 0)
        status = kd_fail_errno(err, KD_EFAIL, "%s: can't be listed", folder);
    closedir(d);
    KD_TRY(status);
    if (l->count == before)
        return kd_fail(err, KD_ENOTFOUND, "%s: holds no sealed cache (*.kdc)%s", folder,
                       unfinished ? ", but unfinished ones (*.kdc.partial): run the same kd-precompute command again to complete them" : "");
    if (unfinished)
        kd_log(KD_LOG_WARN, "%s: %zu shards are unfinished (*.kdc.partial) and left out; run kd-precompute again to complete them", folder, unfinished);
    qsort(l->path + before, l->count - before, sizeof *l->path, compare_paths);
    return KD_OK;
}

static kd_status list_paths(path_list *l, const char *const *paths, size_t count, kd_err *err)
{
    for (size_t i = 0; i < count; i++) {
        char *partial;
        int has_partial;
        if (kd_io_is_dir(paths[i])) {
            KD_TRY(list_folder(l, paths[i], err));
            continue;
        }
        if (kd_io_exists(paths[i])) {
            KD_TRY(list_add(l, NULL, paths[i], err));
            continue;
        }
        partial = kd_asprintf("%s.partial", paths[i]);
        has_partial = partial && kd_io_exists(partial);
        kd_free(partial);
        if (has_partial)
            return kd_fail(err, KD_ENOTFOUND, "%s: not finished yet: %s.partial is there; run the same kd-precompute command again to complete it", paths[i], paths[i]);
        return kd_fail(err, KD_ENOTFOUND, "%s: no such cache; kd-precompute --images DIR --weights FILE --cache %s makes it", paths[i], paths[i]);
    }
    return KD_OK;
}

int kd_cache_is_at(const char *path)
{
    int yes = ends_in(path, ".kdc");
    DIR *d = yes ? NULL : opendir(path);
    for (struct dirent *e; d && !yes && (e = readdir(d)) != NULL;)
        yes = e->d_name[0] != '.' && ends_in(e->d_name, ".kdc");
    if (d)
        closedir(d);
    return yes;
}

/* ---- opening one shard ---- */

static kd_status check_counts(const kd_shard *s, const kd_lmdb_facts *facts, kd_err *err)
{
    const kd_manifest *m = &s->manifest;
    struct { const char *what, *of; uint64_t have, want; } row[3 + 2 * KD_FEATURES] = {
        {"images", "", facts->entries[KD_DB_IMAGES], m->images},
        {"views", "", facts->entries[KD_DB_VIEWS], m->views},
        {"bytes", "", facts->pages * PAGE, m->bytes},
    };
    for (int f = 0; f < KD_FEATURES; f++) {
        uint64_t want = kd_recipe_has(&s->recipe, (kd_feature)f) ? m->views * (uint64_t)s->recipe.layers : 0;
        row[3 + 2 * f].what = row[4 + 2 * f].what = kd_feature_name((kd_feature)f);
        row[3 + 2 * f].of = " records";
        row[4 + 2 * f].of = " records for its views and layers";
        row[3 + 2 * f].have = facts->entries[KD_DB_FEATURES + f];
        row[3 + 2 * f].want = row[4 + 2 * f].have = m->records[f];
        row[4 + 2 * f].want = want;
    }
    for (size_t i = 0; i < sizeof row / sizeof row[0]; i++) {
        if (row[i].have != row[i].want)
            return kd_fail(err, KD_EDAMAGED, "%s: has %llu %s%s where %llu are expected from its manifest; copy both files again", s->path, (unsigned long long)row[i].have,
                           row[i].what, row[i].of, (unsigned long long)row[i].want);
    }
    return KD_OK;
}

/* The file's own account of its content must be the manifest's. */
static kd_status check_content(const kd_shard *s, kd_lmdb_txn *t, kd_err *err)
{
    json_t *content;
    kd_sha256 digest;
    const char *hex = "";
    kd_status status = kd_meta_get_json(t, KD_META_CONTENT, &content, s->path, err);
    if (status == KD_OK)
        status = kd_json_get_string(content, "digest", s->path, &hex, err);
    if (status == KD_OK && (kd_unhex(digest.b, hex, sizeof digest.b) != 0 || memcmp(digest.b, s->manifest.digest.b, sizeof digest.b) != 0))
        status = kd_fail(err, KD_EDAMAGED, "%s: its content digest is %s, its manifest says otherwise: the manifest belongs to another file; copy both again", s->path, hex);
    json_decref(content);
    return status;
}

static kd_status read_shard_meta(void *arg, kd_err *err)
{
    kd_shard *s = arg;
    kd_lmdb_txn *t;
    kd_status status;
    KD_TRY(kd_lmdb_read(&t, s->db, err));
    status = kd_read_recipe(&s->recipe, t, s->path, err);
    if (status == KD_OK)
        status = check_content(s, t, err);
    kd_lmdb_read_end(t);
    if (status == KD_DONE)
        return kd_fail(err, KD_EDAMAGED, "%s: has no recipe or content entry; copy it again from where it came", s->path);
    if (status == KD_OK && memcmp(s->recipe.sha.b, s->manifest.identity.b, sizeof s->recipe.sha.b) != 0)
        return kd_fail(err, KD_EDAMAGED, "%s: its manifest belongs to a cache of another recipe; copy both files again", s->path);
    return status;
}

static kd_status open_shard(kd_shard *s, int anew, kd_err *err)
{
    kd_lmdb_facts facts;
    KD_TRY(kd_manifest_read(&s->manifest, s->path, err));
    KD_TRY(kd_verdict_validate(s->path, anew, &facts, err));
    if (facts.first_value_at == 0)
        return kd_fail(err, KD_EDAMAGED, "%s: its meta database is empty; copy it again from where it came", s->path);
    KD_TRY(kd_lmdb_open_read(&s->db, s->path, facts.pages * PAGE, facts.first_value_at, err));
    KD_TRY(kd_lmdb_guard(s->db, read_shard_meta, s, err));
    return check_counts(s, &facts, err);
}

/* ---- the table of images ---- */

typedef struct image_load {
    kd_cache *cache;
    uint32_t shard;
    kd_lmdb_cursor *cursor;
    uint64_t views;
    size_t end; /* of the table, when this shard's images are in */
} image_load;

/* Path and runs, where they outlive the map's pages. */
static kd_status keep_image(kd_cache *c, kd_image_entry *e, const kd_image_tail *tail, uint32_t number, kd_err *err)
{
    char *rel = kd_arena_alloc(c->arena, tail->rel_size + 1);
    kd_view_run *run = kd_arena_alloc(c->arena, e->runs * sizeof *run);
    if (!rel || !run)
        return kd_fail(err, KD_EFAIL, "%s: out of memory while reading its image table", c->shards[number].path);
    memcpy(rel, e->rel, tail->rel_size);
    for (uint32_t i = 0; i < e->runs; i++) {
        run[i] = kd_image_run(tail, i);
        run[i].shard = number;
    }
    e->rel = rel;
    e->run = run;
    return KD_OK;
}

static kd_status load_images(void *arg, kd_err *err)
{
    image_load *l = arg;
    kd_cache *c = l->cache;
    kd_shard *s = &c->shards[l->shard];
    kd_bytes key, value;
    kd_status status;
    while ((status = kd_lmdb_cursor_next(l->cursor, &key, &value, err)) == KD_OK) {
        kd_image_entry *e = &c->images[c->image_count];
        kd_image_tail tail;
        if (c->image_count == l->end) /* the pages aren't those that were counted */
            return kd_fail(err, KD_EDAMAGED, "%s: has more images than the %llu of its manifest; kd-cache check says where it is damaged", s->path, (unsigned long long)s->manifest.images);
        KD_TRY(kd_image_value_decode(e, &tail, key, value, s->recipe.sha.b, s->path, err));
        if (e->views == 0)
            return kd_fail(err, KD_EDAMAGED, "%s: lists an image without views; copy it again from where it came", s->path);
        KD_TRY(keep_image(c, e, &tail, l->shard, err));
        c->image_count++;
        l->views += e->views;
    }
    return status == KD_DONE ? KD_OK : status;
}

static kd_status load_shard_images(kd_cache *c, uint32_t shard_index, kd_err *err)
{
    kd_shard *s = &c->shards[shard_index];
    image_load l = {.cache = c, .shard = shard_index, .end = c->image_count + s->manifest.images};
    kd_lmdb_txn *t;
    kd_status status;
    KD_TRY(kd_lmdb_read(&t, s->db, err));
    status = kd_lmdb_cursor_open(&l.cursor, t, KD_DB_IMAGES, err);
    if (status == KD_OK)
        status = kd_lmdb_guard(s->db, load_images, &l, err);
    kd_lmdb_cursor_close(l.cursor);
    kd_lmdb_read_end(t);
    if (status == KD_OK && l.views != s->manifest.views)
        return kd_fail(err, KD_EDAMAGED, "%s: its images list %llu views where its manifest has %llu; copy both files again", s->path, (unsigned long long)l.views,
                       (unsigned long long)s->manifest.views);
    c->views += l.views;
    return status;
}

/* By id, then by shard: every entry has a run. */
static int compare_images(const void *a, const void *b)
{
    const kd_image_entry *x = a, *y = b;
    int order = memcmp(x->image.b, y->image.b, KD_IMAGE_KEY_BYTES);
    return order ? order : x->run[0].shard < y->run[0].shard ? -1 : x->run[0].shard > y->run[0].shard;
}

static int compare_runs(const void *a, const void *b)
{
    const kd_view_run *x = a, *y = b;
    return x->first < y->first ? -1 : x->first > y->first ? 1 : x->shard < y->shard ? -1 : x->shard > y->shard;
}

/* Runs of several shards, sorted by compare_runs, as runs that don't overlap: a view that is in several is read from one of them. out has room for as many. */
static uint32_t flatten_runs(kd_view_run *out, const kd_view_run *in, uint32_t n, uint32_t *views)
{
    uint32_t count = 0;
    uint64_t next = 0; /* first view that isn't covered yet */
    *views = 0;
    for (uint32_t i = 0; i < n; i++) {
        uint64_t begin = in[i].first > next ? in[i].first : next, end = (uint64_t)in[i].first + in[i].count;
        if (begin >= end)
            continue;
        out[count++] = (kd_view_run){.first = (uint32_t)begin, .count = (uint32_t)(end - begin), .shard = in[i].shard};
        *views += (uint32_t)(end - begin);
        next = end;
    }
    return count;
}

uint32_t kd_image_first_shard(const kd_image_entry *e)
{
    uint32_t least = e->run[0].shard;
    for (uint32_t i = 1; i < e->runs; i++)
        least = e->run[i].shard < least ? e->run[i].shard : least;
    return least;
}

/* The entries of one image in several shards, as one, with the path of the first that is read. */
static kd_status join_image(kd_cache *c, kd_image_entry *out, const kd_image_entry *e, size_t n, kd_err *err)
{
    uint32_t total = 0, at = 0;
    kd_view_run *all, *flat;
    for (size_t i = 0; i < n; i++)
        total += e[i].runs;
    all = kd_arena_alloc(c->arena, total * sizeof *all);
    flat = kd_arena_alloc(c->arena, total * sizeof *flat);
    if (!all || !flat)
        return kd_fail(err, KD_EFAIL, "out of memory while joining the image tables of %zu shards", c->shard_count);
    for (size_t i = 0; i < n; i++) {
        memcpy(all + at, e[i].run, e[i].runs * sizeof *all);
        at += e[i].runs;
    }
    qsort(all, total, sizeof *all, compare_runs);
    *out = e[0];
    out->run = flat;
    out->runs = flatten_runs(flat, all, total, &out->views);
    for (size_t i = 0; i < n; i++) {
        if (e[i].run[0].shard == kd_image_first_shard(out))
            out->rel = e[i].rel;
    }
    return KD_OK;
}

/* Each shard is sorted; several together are not, and may have views of the same images. */
static kd_status merge_images(kd_cache *c, kd_err *err)
{
    size_t kept = 0, n;
    uint64_t before = c->views;
    qsort(c->images, c->image_count, sizeof *c->images, compare_images);
    c->views = 0;
    for (size_t i = 0; i < c->image_count; i += n) {
        kd_image_entry joined = c->images[i];
        for (n = 1; i + n < c->image_count && memcmp(c->images[i].image.b, c->images[i + n].image.b, KD_IMAGE_KEY_BYTES) == 0; n++)
            ;
        if (n > 1)
            KD_TRY(join_image(c, &joined, &c->images[i], n, err));
        c->images[kept++] = joined;
        c->views += joined.views;
    }
    c->image_count = kept;
    if (c->views < before)
        kd_log(KD_LOG_INFO, "%llu views are in several of the %zu shards; each is read from one", (unsigned long long)(before - c->views), c->shard_count);
    return KD_OK;
}

static kd_status load_all_images(kd_cache *c, kd_err *err)
{
    uint64_t total = 0;
    for (size_t i = 0; i < c->shard_count; i++)
        total += c->shards[i].manifest.images; /* equal to the entries that were counted page by page */
    KD_TRY(kd_alloc_array(&c->images, total, sizeof *c->images, err));
    c->arena = kd_arena_create();
    if (!c->arena)
        return kd_fail(err, KD_EFAIL, "out of memory while reading a cache's image table");
    for (size_t i = 0; i < c->shard_count; i++)
        KD_TRY(load_shard_images(c, (uint32_t)i, err));
    return c->shard_count > 1 ? merge_images(c, err) : KD_OK;
}

/* ---- statistics ---- */

kd_status kd_check_stored(const kd_cache *c, kd_feature f, uint16_t layer, kd_err *err)
{
    const kd_recipe *r = kd_cache_recipe(c);
    if (kd_recipe_layer_index(r, layer) >= 0 && kd_recipe_has(r, f))
        return KD_OK;
    return kd_fail(err, KD_ENOTFOUND, "%s: holds no %s of layer %u", c->shards[0].path, kd_feature_name(f), layer);
}

/* A deviation from 0 up, then width numbers; all finite. */
static int stats_are_sound(kd_bytes b, size_t width)
{
    if (b.size != KD_STATS_MEAN_AT + 4 * width || kd_get_le(b.data + 8, 4) != (uint64_t)width)
        return 0;
    for (size_t at = KD_STATS_STD_AT; at < b.size; at += 4) {
        float x;
        memcpy(&x, b.data + at, 4);
        if (!isfinite(x) || (at == KD_STATS_STD_AT && x < 0))
            return 0;
    }
    return 1;
}

kd_status kd_stats_get(kd_lmdb_txn *t, const kd_recipe *r, kd_feature f, uint16_t layer, kd_bytes *payload, const char *file, kd_err *err)
{
    char key[32];
    kd_status status;
    kd_stats_key(key, f, layer);
    status = kd_meta_get(t, key, payload, file, err);
    if (status == KD_DONE || (status == KD_OK && !stats_are_sound(*payload, (size_t)r->width)))
        return kd_fail(err, KD_EDAMAGED, "%s: its statistics of %s of layer %u are missing, of another width or no numbers; copy it again from where it came", file, kd_feature_name(f), layer);
    return status;
}

typedef struct stats_load {
    kd_cache *cache;
    kd_lmdb_txn *txn;
    kd_feature feature;
    uint16_t layer;
    kd_feature_stats *out;
} stats_load;

static kd_status load_stats(void *arg, kd_err *err)
{
    stats_load *l = arg;
    kd_shard *s = &l->cache->shards[0];
    size_t width = (size_t)s->recipe.width;
    kd_bytes b;
    KD_TRY(kd_stats_get(l->txn, &s->recipe, l->feature, l->layer, &b, s->path, err));
    KD_TRY(kd_alloc_array(&l->out->mean, width, sizeof *l->out->mean, err));
    memcpy(&l->out->scalar_std, b.data + KD_STATS_STD_AT, 4);
    memcpy(l->out->mean, b.data + KD_STATS_MEAN_AT, 4 * width);
    return KD_OK;
}

static kd_status read_stats(stats_load *l, kd_err *err)
{
    kd_lmdb *db = l->cache->shards[0].db;
    kd_status status;
    KD_TRY(kd_lmdb_read(&l->txn, db, err));
    status = kd_lmdb_guard(db, load_stats, l, err);
    kd_lmdb_read_end(l->txn);
    if (status != KD_OK) { /* also a page that went away in the middle of copying */
        kd_free(l->out->mean);
        l->out->mean = NULL;
    }
    return status;
}

static kd_status add_view_stats(kd_stats *st, kd_reader *reader, const stats_load *l, const kd_image_entry *e, uint32_t view, float *x, kd_err *err)
{
    const kd_recipe *r = kd_cache_recipe(l->cache);
    kd_record_facts facts;
    KD_TRY(kd_reader_feature(reader, l->feature, &e->image, view, l->layer, x, &facts, err));
    if (kd_recipe_target(r, l->feature).kind == KD_TARGET_ADJOINT)
        kd_stats_add_adjoint(st, x, kd_recipe_rows(r, l->feature), facts.square, (size_t)r->grid_h * (size_t)r->grid_w);
    else
        kd_stats_add_view(st, x, kd_recipe_rows(r, l->feature));
    return KD_OK;
}

/* Several shards together: the same rule as when sealing, over the merged key order, so that all who give these shards train on the same targets. */
static kd_status compute_stats(const stats_load *l, kd_err *err)
{
    kd_cache *c = l->cache;
    const kd_recipe *r = kd_cache_recipe(c);
    kd_reader *reader = NULL;
    kd_stats st;
    float *x = NULL;
    kd_status status = kd_stats_create(&st, r->width, err);
    if (status == KD_OK)
        status = kd_alloc_array(&x, (size_t)kd_recipe_rows(r, l->feature) * (size_t)r->width, sizeof *x, err);
    if (status == KD_OK)
        status = kd_reader_create(&reader, c, err);
    for (size_t i = 0; i < c->image_count && st.views < KD_STATS_VIEWS && status == KD_OK; i++) {
        for (uint32_t v = 0; v < c->images[i].views && st.views < KD_STATS_VIEWS && status == KD_OK; v++)
            status = add_view_stats(&st, reader, l, &c->images[i], kd_image_view(&c->images[i], v), x, err);
    }
    if (status == KD_OK) {
        kd_stats_finish(&st);
        kd_log(KD_LOG_INFO, "%s statistics of layer %u over %llu views of %zu shards: standard deviation %.4f", kd_feature_name(l->feature), l->layer, (unsigned long long)st.views,
               c->shard_count, (double)st.scalar_std);
        l->out->scalar_std = st.scalar_std;
        l->out->mean = st.mean;
        st.mean = NULL;
    }
    kd_reader_destroy(reader);
    kd_free(x);
    kd_stats_free(&st);
    return status;
}

kd_status kd_cache_mean(kd_cache *c, kd_feature f, uint16_t layer, const float **mean, float *scalar_std, kd_err *err)
{
    const kd_recipe *r = kd_cache_recipe(c);
    int index = kd_recipe_layer_index(r, layer);
    stats_load l = {.cache = c, .feature = f, .layer = layer};
    *mean = NULL;
    KD_TRY(kd_check_stored(c, f, layer, err));
    l.out = &c->stats[f][index];
    if (l.out->mean == NULL)
        KD_TRY(c->shard_count > 1 ? compute_stats(&l, err) : read_stats(&l, err));
    *mean = l.out->mean;
    *scalar_std = l.out->scalar_std;
    return KD_OK;
}

/* ---- the cache ---- */

static kd_status open_all(kd_cache *c, path_list *l, int anew, kd_err *err)
{
    KD_TRY(kd_alloc_array(&c->shards, l->count, sizeof *c->shards, err));
    for (size_t i = 0; i < l->count; i++) {
        kd_shard *s = &c->shards[c->shard_count++];
        s->path = l->path[i];
        l->path[i] = NULL;
        KD_TRY(open_shard(s, anew, err));
        if (i > 0)
            KD_TRY(kd_recipe_compare(&c->shards[0].recipe, c->shards[0].path, &s->recipe, s->path, err));
    }
    return load_all_images(c, err);
}

static kd_status cache_open(kd_cache **out, const char *const *paths, size_t count, int anew, kd_err *err)
{
    kd_cache *c = kd_calloc(1, sizeof *c);
    path_list l = {0};
    kd_status status;
    *out = NULL;
    if (!c)
        return kd_fail(err, KD_EFAIL, "out of memory while opening a cache");
    status = count > 0 ? list_paths(&l, paths, count, err) : kd_fail(err, KD_EUSAGE, "no cache was given");
    if (status == KD_OK)
        status = open_all(c, &l, anew, err);
    for (size_t i = 0; i < l.count; i++)
        kd_free(l.path[i]);
    kd_free(l.path);
    if (status != KD_OK) {
        kd_cache_close(c);
        return status;
    }
    *out = c;
    return KD_OK;
}

kd_status kd_cache_open(kd_cache **out, const char *const *paths, size_t count, kd_err *err)
{
    return cache_open(out, paths, count, 0, err);
}

kd_status kd_cache_open_anew(kd_cache **out, const char *const *paths, size_t count, kd_err *err)
{
    return cache_open(out, paths, count, 1, err);
}

void kd_cache_close(kd_cache *c)
{
    if (!c)
        return;
    for (size_t i = 0; i < c->shard_count; i++) {
        kd_shard *s = &c->shards[i];
        kd_lmdb_close(s->db);
        kd_recipe_free(&s->recipe);
        kd_manifest_free(&s->manifest);
        kd_free(s->path);
    }
    for (int f = 0; f < KD_FEATURES; f++) {
        for (int l = 0; l < KD_MAX_LAYERS; l++)
            kd_free(c->stats[f][l].mean);
    }
    kd_free(c->shards);
    kd_free(c->images);
    kd_arena_destroy(c->arena);
    kd_free(c);
}

const kd_recipe *kd_cache_recipe(const kd_cache *c)
{
    return &c->shards[0].recipe;
}

size_t kd_cache_shards(const kd_cache *c)
{
    return c->shard_count;
}

const char *kd_cache_shard_path(const kd_cache *c, size_t i)
{
    KD_ASSERT(i < c->shard_count);
    return c->shards[i].path;
}

const json_t *kd_cache_shard_manifest(const kd_cache *c, size_t i)
{
    KD_ASSERT(i < c->shard_count);
    return c->shards[i].manifest.json;
}

size_t kd_cache_images(const kd_cache *c)
{
    return c->image_count;
}

const kd_image_entry *kd_cache_image(const kd_cache *c, size_t i)
{
    KD_ASSERT(i < c->image_count);
    return &c->images[i];
}

const kd_image_entry *kd_cache_find_image(const kd_cache *c, const kd_hash128 *id)
{
    size_t lo = 0, hi = c->image_count;
    while (lo < hi) {
        size_t mid = lo + (hi - lo) / 2;
        int order = memcmp(c->images[mid].image.b, id->b, KD_IMAGE_KEY_BYTES);
        if (order == 0)
            return &c->images[mid];
        if (order < 0)
            lo = mid + 1;
        else
            hi = mid;
    }
    return NULL;
}

uint64_t kd_cache_view_total(const kd_cache *c)
{
    return c->views;
}

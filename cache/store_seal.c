/* Sealing: the partial cache, copied in key order into a fresh file whose bytes depend on the content only. */
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "cache/store_internal.h"
#include "cache/validate.h"
#include "common/base/io.h"
#include "common/base/log.h"
#include "common/base/mem.h"
#include "common/base/progress.h"
#include "common/base/threads.h"

/* Part of the format as far as equal bytes go: where transactions end decides which pages LMDB uses again. */
enum { TRANSACTION_BYTES = 32 << 20, PAGE = 4096, INLINE_MAX = 2000, MAP_ROUND = 64 << 20 };

typedef struct seal {
    kd_writer *w;
    kd_lmdb *partial, *to;
    kd_lmdb_txn *from;
    kd_sha256_ctx *digest;
    uint64_t images, records[KD_FEATURES];
    uint64_t pending;               /* bytes in the open transaction */
    uint64_t map_bytes;
    kd_stats *stats;                /* for each feature, for each layer: stats_of */
    kd_record_scratch scratch;
    float *rows;
    uint8_t *value;
    kd_progress *progress;
    uint64_t done;
} seal;

static kd_status add(seal *s, kd_db db, const void *key, size_t key_size, const void *value, size_t size, kd_err *err)
{
    if (s->pending > 0 && s->pending + size > TRANSACTION_BYTES) {
        KD_TRY(kd_lmdb_commit(s->to, err));
        s->pending = 0;
        if (kd_stop_requested() != KD_OK)
            return kd_fail(err, kd_stop_requested(), "%s: interrupted while sealing; run the same command again to finish", s->w->path);
    }
    if (!kd_lmdb_in_transaction(s->to))
        KD_TRY(kd_lmdb_begin(s->to, 0, err));
    s->pending += size + key_size;
    return kd_lmdb_put(s->to, db, key, key_size, value, size, 1, err);
}

/* What one record says of itself in the content digest: its key and the checksum that covers the rest. */
static void digest(seal *s, const void *key, size_t key_size, const uint8_t *hash)
{
    kd_sha256_update(s->digest, key, key_size);
    kd_sha256_update(s->digest, hash, 16);
}

/* Space in the new file, from above; also its map size, so it must not depend on anything but the content. */
static kd_status survey(seal *s, kd_err *err)
{
    uint64_t bytes = 0;
    for (int db = KD_DB_IMAGES; db < KD_DBS; db++) {
        kd_lmdb_cursor *c;
        kd_bytes key, value;
        kd_status status;
        KD_TRY(kd_lmdb_cursor_open(&c, s->from, (kd_db)db, err));
        while ((status = kd_lmdb_cursor_next(c, &key, &value, err)) == KD_OK)
            bytes += value.size > INLINE_MAX ? (value.size / PAGE + 2) * PAGE : 2 * (value.size + key.size + 16);
        kd_lmdb_cursor_close(c);
        if (status != KD_DONE)
            return status;
    }
    s->map_bytes = ((bytes + bytes / 8) / MAP_ROUND + 2) * MAP_ROUND;
    return KD_OK;
}

/* Images in order, each with the number of its views, which must be 0, 1, .. n-1. */
static kd_status copy_images(seal *s, kd_lmdb_cursor *images, kd_lmdb_cursor *views, kd_err *err)
{
    const uint8_t *identity = s->w->recipe.sha.b;
    kd_bytes key, value, view_key, view_value;
    kd_status status, more = kd_lmdb_cursor_next(views, &view_key, &view_value, err);
    while ((status = kd_lmdb_cursor_next(images, &key, &value, err)) == KD_OK) {
        char rel[KD_MAX_REL + 1], hex[33];
        kd_image_entry e;
        size_t rel_size, size;
        KD_TRY(kd_image_value_decode(&e, &rel_size, key, value, identity, s->w->partial, err));
        memcpy(rel, e.rel, rel_size);
        rel[rel_size] = 0;
        e.rel = rel;
        for (e.views = 0; more == KD_OK && memcmp(view_key.data, key.data, KD_IMAGE_KEY_BYTES) == 0; e.views++) {
            kd_view_entry v;
            KD_TRY(kd_view_value_decode(&v, view_key, view_value, identity, s->w->partial, err));
            kd_hex(hex, e.image.b, 16);
            if (v.view != e.views)
                return kd_fail(err, KD_EFAIL, "%s: image %s (%s) has view %u but not view %u; run kd-precompute again with the same options to fill the gap", s->w->partial,
                               hex, rel, v.view, e.views);
            more = kd_lmdb_cursor_next(views, &view_key, &view_value, err);
        }
        if (more != KD_OK && more != KD_DONE)
            return more;
        size = kd_image_value_encode(s->value, identity, &e);
        digest(s, key.data, key.size, s->value);
        KD_TRY(add(s, KD_DB_IMAGES, key.data, key.size, s->value, size, err));
        s->images++;
    }
    if (status == KD_DONE && more == KD_OK)
        return kd_fail(err, KD_EDAMAGED, "%s: holds views of an image that it doesn't list; remove it and run kd-precompute again", s->w->partial);
    return status == KD_DONE ? KD_OK : status;
}

static kd_status copy_views(seal *s, kd_lmdb_cursor *views, kd_err *err)
{
    kd_bytes key, value;
    kd_view_entry v;
    kd_status status;
    while ((status = kd_lmdb_cursor_next(views, &key, &value, err)) == KD_OK) {
        KD_TRY(kd_view_value_decode(&v, key, value, s->w->recipe.sha.b, s->w->partial, err));
        digest(s, key.data, key.size, value.data);
        KD_TRY(add(s, KD_DB_VIEWS, key.data, key.size, value.data, value.size, err));
    }
    return status == KD_DONE ? KD_OK : status;
}

static kd_stats *stats_of(const seal *s, kd_feature f, uint16_t layer)
{
    return &s->stats[f * s->w->recipe.layers + kd_recipe_layer_index(&s->w->recipe, layer)];
}

static kd_status copy_record(seal *s, kd_feature f, const kd_view_entry *v, uint16_t layer, kd_bytes key, kd_bytes value, kd_err *err)
{
    kd_record_head head = kd_recipe_head(&s->w->recipe, f, &v->image, v->view, layer);
    kd_stats *stats = stats_of(s, f, layer);
    kd_lmdb_will_need(value);
    if (stats->views < KD_STATS_VIEWS) {
        KD_TRY(kd_record_decode(s->rows, value.data, value.size, &head, &s->scratch, err));
        kd_stats_add_view(stats, s->rows, head.rows);
    } else {
        KD_TRY(kd_record_check(value.data, value.size, &head, err));
    }
    digest(s, key.data, key.size, value.data + KD_RECORD_HEADER_BYTES - 16);
    s->records[f]++;
    return add(s, kd_feature_db(f), key.data, key.size, value.data, value.size, err);
}

/* Lockstep with the views: exactly one record of each layer for each view. */
static kd_status copy_feature(seal *s, kd_feature f, kd_lmdb_cursor *views, kd_lmdb_cursor *records, kd_err *err)
{
    kd_bytes view_key, view_value, key, value;
    kd_view_entry v;
    kd_status status;
    while ((status = kd_lmdb_cursor_next(views, &view_key, &view_value, err)) == KD_OK) {
        KD_TRY(kd_view_value_decode(&v, view_key, view_value, s->w->recipe.sha.b, s->w->partial, err));
        for (int l = 0; l < s->w->recipe.layers; l++) {
            kd_key k = {v.image, v.view, s->w->recipe.layer[l]};
            uint8_t want[KD_KEY_BYTES];
            kd_key_encode(want, &k);
            status = kd_lmdb_cursor_next(records, &key, &value, err);
            if (status == KD_DONE || (status == KD_OK && memcmp(key.data, want, KD_KEY_BYTES) != 0))
                return kd_fail(err, KD_EDAMAGED, "%s: the %s record of a view is missing; remove it and run kd-precompute again", s->w->partial, kd_feature_name(f));
            if (status != KD_OK)
                return status;
            KD_TRY(copy_record(s, f, &v, k.layer, key, value, err));
            kd_progress_update(s->progress, ++s->done, 0, NULL);
        }
    }
    return status == KD_DONE ? KD_OK : status;
}

static kd_status with_cursors(seal *s, kd_db first, kd_db second, kd_feature f, kd_err *err)
{
    kd_lmdb_cursor *a = NULL, *b = NULL;
    kd_status status = kd_lmdb_cursor_open(&a, s->from, first, err);
    if (status == KD_OK)
        status = kd_lmdb_cursor_open(&b, s->from, second, err);
    if (status == KD_OK && first == KD_DB_IMAGES)
        status = copy_images(s, a, b, err);
    else if (status == KD_OK && first == second)
        status = copy_views(s, a, err);
    else if (status == KD_OK)
        status = copy_feature(s, f, a, b, err);
    kd_lmdb_cursor_close(a);
    kd_lmdb_cursor_close(b);
    return status;
}

static kd_status put_stats(seal *s, kd_feature f, uint16_t layer, kd_err *err)
{
    kd_stats *st = stats_of(s, f, layer);
    size_t size = 16 + 4 * (size_t)st->width;
    uint8_t *bytes = kd_malloc(size);
    char key[32];
    kd_status status;
    if (!bytes)
        return kd_fail(err, KD_EFAIL, "out of memory: no room for statistics of %d channels", st->width);
    kd_stats_finish(st);
    kd_put_le(bytes, st->views, 8);
    kd_put_le(bytes + 8, (uint32_t)st->width, 4);
    memcpy(bytes + 12, &st->scalar_std, 4); /* little endian, as every supported host */
    memcpy(bytes + 16, st->mean, 4 * (size_t)st->width);
    kd_stats_key(key, f, layer);
    status = kd_meta_put(s->to, key, bytes, size, err);
    kd_free(bytes);
    return status;
}

static json_t *content_json(const seal *s, const kd_sha256 *sha)
{
    char hex[65];
    json_t *content;
    kd_hex(hex, sha->b, sizeof sha->b);
    content = json_pack("{s:I,s:I,s:s}", "images", (json_int_t)s->images, "views", (json_int_t)s->w->views, "digest", hex);
    for (int f = 0; f < KD_FEATURES && content; f++) {
        if (json_object_set_new(content, kd_feature_name((kd_feature)f), json_integer((json_int_t)s->records[f])) != 0) {
            json_decref(content);
            return NULL;
        }
    }
    return content;
}

static kd_status put_text(seal *s, const char *key, json_t *json, kd_err *err)
{
    char *text = json ? kd_json_canonical(json) : NULL;
    kd_status status = text ? kd_meta_put(s->to, key, text, strlen(text), err) : kd_fail(err, KD_EFAIL, "out of memory: no room for the cache's %s", key);
    kd_free(text);
    return status;
}

static kd_status put_meta(seal *s, kd_err *err)
{
    kd_sha256 sha = kd_sha256_final(s->digest);
    json_t *content = content_json(s, &sha);
    kd_status status;
    s->digest = NULL;
    status = put_text(s, KD_META_CONTENT, content, err);
    json_decref(content);
    if (status == KD_OK)
        status = put_text(s, KD_META_RECIPE, s->w->recipe.json, err);
    for (int f = 0; f < KD_FEATURES; f++) {
        for (int l = 0; l < s->w->recipe.layers && kd_recipe_has(&s->w->recipe, (kd_feature)f) && status == KD_OK; l++)
            status = put_stats(s, (kd_feature)f, s->w->recipe.layer[l], err);
    }
    return status;
}

static kd_status copy_all(void *arg, kd_err *err)
{
    seal *s = arg;
    KD_TRY(survey(s, err));
    KD_TRY(kd_lmdb_open_write(&s->to, s->w->sealing, 0, s->map_bytes, err));
    KD_TRY(with_cursors(s, KD_DB_IMAGES, KD_DB_VIEWS, KD_FEATURE_CLS, err));
    KD_TRY(with_cursors(s, KD_DB_VIEWS, KD_DB_VIEWS, KD_FEATURE_CLS, err));
    for (int f = 0; f < KD_FEATURES; f++) {
        if (kd_recipe_has(&s->w->recipe, (kd_feature)f))
            KD_TRY(with_cursors(s, KD_DB_VIEWS, kd_feature_db((kd_feature)f), (kd_feature)f, err));
    }
    KD_TRY(kd_lmdb_commit(s->to, err)); /* so that meta's place depends on the content only */
    KD_TRY(kd_lmdb_begin(s->to, 0, err));
    KD_TRY(put_meta(s, err));
    return kd_lmdb_commit(s->to, err);
}

static kd_status seal_create(seal *s, kd_err *err)
{
    const kd_recipe *r = &s->w->recipe;
    KD_TRY(kd_alloc_array(&s->stats, (size_t)(KD_FEATURES * r->layers), sizeof *s->stats, err));
    for (int i = 0; i < KD_FEATURES * r->layers; i++) {
        if (kd_recipe_has(r, (kd_feature)(i / r->layers)))
            KD_TRY(kd_stats_create(&s->stats[i], r->width, err));
    }
    KD_TRY(kd_alloc_array(&s->rows, kd_recipe_largest(r), sizeof *s->rows, err));
    KD_TRY(kd_alloc_array(&s->value, KD_IMAGE_VALUE_HEAD + KD_MAX_REL, 1, err));
    s->digest = kd_sha256_begin();
    if (!s->digest)
        return kd_fail(err, KD_EFAIL, "out of memory while sealing");
    s->progress = kd_progress_create("sealing", "record", s->w->views * (uint64_t)kd_recipe_records(r), 0, 0);
    unlink(s->w->sealing);
    return KD_OK;
}

/* Opened again for reading: what is sealed is what stands in the file, page by page, and a page that can't be read is an error instead of a signal. */
static kd_status open_source(seal *s, kd_err *err)
{
    kd_lmdb_facts facts;
    kd_lmdb_close(s->w->db);
    s->w->db = NULL;
    s->w->broken = 1; /* for adding */
    KD_TRY(kd_lmdb_validate(s->w->partial, 0, &facts, err));
    KD_TRY(kd_lmdb_open_read(&s->partial, s->w->partial, facts.pages * PAGE, facts.first_value_at, err));
    return kd_lmdb_read(&s->from, s->partial, err);
}

static void seal_free(seal *s)
{
    kd_lmdb_close(s->to);
    kd_lmdb_read_end(s->from);
    kd_lmdb_close(s->partial);
    for (int i = 0; s->stats && i < KD_FEATURES * s->w->recipe.layers; i++)
        kd_stats_free(&s->stats[i]);
    kd_free(s->stats);
    kd_record_scratch_free(&s->scratch);
    if (s->digest)
        (void)kd_sha256_final(s->digest);
    kd_free(s->rows);
    kd_free(s->value);
    kd_progress_finish(s->progress);
}

/* Cuts the file behind its last page (LMDB may have counted pages that it never wrote, or written some that it gave back), and makes it durable and read-only. */
static kd_status settle(const char *path, kd_err *err)
{
    uint64_t pages = 0;
    uint8_t meta[2][PAGE];
    kd_status status = KD_OK;
    int fd = open(path, O_RDWR | O_CLOEXEC);
    if (fd < 0)
        return kd_fail_errno(err, KD_EFAIL, "%s: can't be opened", path);
    if (pread(fd, meta, sizeof meta, 0) != (ssize_t)sizeof meta)
        status = kd_fail_errno(err, KD_EFAIL, "%s: can't be read", path);
    for (int i = 0; i < 2 && status == KD_OK; i++) { /* the meta page of the later transaction holds; 136 and 144: see validate.c */
        if (i == 0 || kd_get_le(meta[1] + 144, 8) > kd_get_le(meta[0] + 144, 8))
            pages = kd_get_le(meta[i] + 136, 8) + 1;
    }
    if (status == KD_OK && (ftruncate(fd, (off_t)(pages * PAGE)) != 0 || fsync(fd) != 0 || fchmod(fd, 0444) != 0))
        status = kd_fail_errno(err, KD_EFAIL, "%s: can't be completed", path);
    close(fd);
    return status;
}

/* ---- manifest ---- */

/* Six digits say enough, and hide the order of the additions. */
static double rounded(double x)
{
    char text[32];
    double y;
    snprintf(text, sizeof text, "%.6g", x);
    return sscanf(text, "%lf", &y) == 1 ? y : x;
}

static json_t *fidelity_json(const kd_writer *w)
{
    json_t *all = json_object();
    for (int f = 0; f < KD_FEATURES; f++) {
        const kd_fidelity *v = &w->fidelity[f];
        if (v->xx > 0 && v->qq > 0)
            json_object_set_new(all, kd_feature_name((kd_feature)f),
                                json_pack("{s:f,s:f}", "cosine", rounded(v->xq / sqrt(v->xx * v->qq)), "relative_l2", rounded(sqrt(v->err2 / v->xx))));
    }
    return all;
}

static void utc_now(char out[32])
{
    time_t t = time(NULL);
    struct tm tm;
    gmtime_r(&t, &tm);
    strftime(out, 32, "%Y-%m-%dT%H:%M:%SZ", &tm);
}

static kd_status sealed_content(kd_writer *w, json_t **content, kd_recipe *recipe, kd_err *err)
{
    kd_lmdb_facts facts;
    kd_lmdb *db = NULL;
    kd_lmdb_txn *t = NULL;
    kd_status status;
    *content = NULL;
    memset(recipe, 0, sizeof *recipe);
    KD_TRY(kd_lmdb_validate(w->path, 1, &facts, err));
    KD_TRY(kd_lmdb_open_read(&db, w->path, facts.pages * PAGE, facts.first_value_at, err));
    status = kd_lmdb_read(&t, db, err);
    if (status == KD_OK)
        status = kd_meta_get_json(t, KD_META_CONTENT, content, w->path, err);
    if (status == KD_OK)
        status = json_object_set_new(*content, "bytes", json_integer((json_int_t)(facts.pages * PAGE))) == 0 ? KD_OK : kd_fail(err, KD_EFAIL, "out of memory while sealing");
    if (status == KD_OK)
        status = kd_read_recipe(recipe, t, w->path, err);
    if (status == KD_DONE)
        status = kd_fail(err, KD_EDAMAGED, "%s: has no recipe or content entry; remove it and run kd-precompute again", w->path);
    kd_lmdb_read_end(t);
    kd_lmdb_close(db);
    return status;
}

static kd_status write_manifest(kd_writer *w, json_t *content, kd_err *err)
{
    kd_sha256 file;
    char file_hex[65], identity_hex[65], now[32];
    json_t *m;
    kd_status status;
    KD_TRY(kd_sha256_file(w->path, &file, err));
    kd_hex(file_hex, file.b, sizeof file.b);
    kd_hex(identity_hex, w->recipe.sha.b, sizeof w->recipe.sha.b);
    utc_now(now);
    m = json_pack("{s:i,s:s,s:s,s:O,s:O,s:o,s:O?,s:s}", "format_version", 0, "identity", identity_hex, "sha256", file_hex, "recipe", w->recipe.json, "content", content,
                  "fidelity", fidelity_json(w), "provenance", w->provenance, "created", now);
    status = m ? kd_manifest_write(w->path, m, err) : kd_fail(err, KD_EFAIL, "%s: out of memory while writing its manifest", w->path);
    json_decref(m);
    return status;
}

kd_status kd_writer_finish(kd_writer *w, kd_err *err)
{
    json_t *content;
    kd_recipe recipe;
    kd_status status = sealed_content(w, &content, &recipe, err);
    if (status == KD_OK)
        status = kd_recipe_compare(&recipe, w->path, &w->recipe, "this run", err);
    if (status == KD_OK)
        status = write_manifest(w, content, err);
    kd_recipe_free(&recipe);
    json_decref(content);
    if (status == KD_OK) {
        kd_lmdb_close(w->db);
        w->db = NULL;
        kd_writer_unlink_leftovers(w);
    }
    return status;
}

kd_status kd_writer_seal(kd_writer *w, kd_err *err)
{
    seal s = {.w = w};
    kd_status status;
    if (w->broken)
        return kd_fail(err, KD_EFAIL, "%s: can't be sealed after a failed commit; run the same command again", w->partial);
    KD_TRY(kd_writer_commit(w, err));
    if (w->views == 0)
        return kd_fail(err, KD_EFAIL, "%s: holds no view: there is nothing to seal", w->partial);
    status = seal_create(&s, err);
    if (status == KD_OK)
        status = open_source(&s, err);
    if (status == KD_OK)
        status = kd_lmdb_guard(s.partial, copy_all, &s, err);
    seal_free(&s);
    if (status == KD_OK)
        status = settle(w->sealing, err);
    if (status == KD_OK && rename(w->sealing, w->path) != 0)
        status = kd_fail_errno(err, KD_EFAIL, "%s: can't be renamed to %s", w->sealing, w->path);
    if (status != KD_OK) {
        unlink(w->sealing); /* the partial cache is as it was */
        return status;
    }
    KD_TRY(kd_io_fsync_dir_of(w->path, err));
    return kd_writer_finish(w, err);
}

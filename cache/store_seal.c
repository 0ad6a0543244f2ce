/* Sealing: the partial cache, copied in key order into a fresh file whose bytes depend on the content only. */
#include <fcntl.h>
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
enum { TRANSACTION_BYTES = 32 << 20, PAGE = 4096, INLINE_MAX = 2000, MAP_ROUND = 64 << 20,
       RUN_BYTES = 8 /* a view may be a run of its own in its image's entry */ };

/* What is summed up over the records of a feature of a layer. */
typedef struct feature_sums {
    kd_stats stats;
    kd_fidelity fidelity;
} feature_sums;

typedef struct seal {
    kd_writer *w;
    kd_lmdb *partial, *to;
    kd_lmdb_txn *from;
    kd_digest digest;
    uint64_t images, records[KD_FEATURES];
    uint64_t pending;               /* bytes in the open transaction */
    uint64_t map_bytes;
    feature_sums *sums;             /* for each feature, for each layer: sums_of */
    kd_record_scratch scratch;
    float *rows;
    uint8_t *value;                 /* of an image, with its runs */
    size_t value_cap;
    kd_view_run *run;               /* of the image at hand */
    size_t run_cap;
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
    KD_TRY(kd_digest_add(&s->digest, db, (kd_bytes){key, key_size}, (kd_bytes){value, size}, s->w->partial, err));
    return kd_lmdb_put(s->to, db, key, key_size, value, size, 1, err);
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
            bytes += value.size > INLINE_MAX ? (value.size / PAGE + 2) * PAGE : 2 * (value.size + key.size + RUN_BYTES + 16);
        kd_lmdb_cursor_close(c);
        if (status != KD_DONE)
            return status;
    }
    s->map_bytes = ((bytes + bytes / 8) / MAP_ROUND + 2) * MAP_ROUND;
    return KD_OK;
}

/* Room for `need` elements of `size` bytes; keeps what is there. */
static kd_status grow(void **p, size_t *cap, size_t need, size_t size, kd_err *err)
{
    size_t more = *cap ? 2 * *cap : 16;
    void *bigger;
    if (need <= *cap)
        return KD_OK;
    more = more < need ? need : more;
    bigger = kd_realloc(*p, more * size);
    if (!bigger)
        return kd_fail(err, KD_EFAIL, "out of memory: no room for %zu views of an image", more);
    *p = bigger;
    *cap = more;
    return KD_OK;
}

static kd_status add_to_runs(seal *s, kd_image_entry *e, uint32_t view, kd_err *err)
{
    kd_view_run *last = e->runs ? &s->run[e->runs - 1] : NULL;
    e->views++;
    if (last && last->first + last->count == view) {
        last->count++;
        return KD_OK;
    }
    if (e->runs == UINT16_MAX)
        return kd_fail(err, KD_EFAIL, "%s: image %s has views in more than %d separate runs", s->w->partial, e->rel, UINT16_MAX);
    KD_TRY(grow((void **)&s->run, &s->run_cap, e->runs + 1, sizeof *s->run, err));
    s->run[e->runs++] = (kd_view_run){.first = view, .count = 1};
    return KD_OK;
}

static kd_status add_image(seal *s, kd_bytes key, const kd_image_entry *e, kd_err *err)
{
    KD_TRY(grow((void **)&s->value, &s->value_cap, kd_image_value_size(e), 1, err));
    KD_TRY(add(s, KD_DB_IMAGES, key.data, key.size, s->value, kd_image_value_encode(s->value, s->w->recipe.sha.b, e), err));
    s->images++;
    return KD_OK;
}

/* Images in order, each with its views. */
static kd_status copy_images(seal *s, kd_lmdb_cursor *images, kd_lmdb_cursor *views, kd_err *err)
{
    const uint8_t *identity = s->w->recipe.sha.b;
    kd_bytes key, value, view_key, view_value;
    kd_status status, more = kd_lmdb_cursor_next(views, &view_key, &view_value, err);
    while ((status = kd_lmdb_cursor_next(images, &key, &value, err)) == KD_OK) {
        char rel[KD_MAX_REL + 1];
        kd_image_entry e;
        kd_image_tail tail;
        KD_TRY(kd_image_value_decode(&e, &tail, key, value, identity, s->w->partial, err));
        memcpy(rel, e.rel, tail.rel_size);
        rel[tail.rel_size] = 0;
        e.rel = rel;
        e.views = e.runs = 0;
        while (more == KD_OK && memcmp(view_key.data, key.data, KD_IMAGE_KEY_BYTES) == 0) {
            kd_view_entry v;
            KD_TRY(kd_view_value_decode(&v, view_key, view_value, identity, s->w->partial, err));
            KD_TRY(add_to_runs(s, &e, v.view, err));
            more = kd_lmdb_cursor_next(views, &view_key, &view_value, err);
        }
        if (more != KD_OK && more != KD_DONE)
            return more;
        if (e.views == 0)
            return kd_fail(err, KD_EDAMAGED, "%s: lists image %s without views; remove it and run kd-precompute again", s->w->partial, rel);
        e.run = s->run;
        KD_TRY(add_image(s, key, &e, err));
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
        KD_TRY(add(s, KD_DB_VIEWS, key.data, key.size, value.data, value.size, err));
    }
    return status == KD_DONE ? KD_OK : status;
}

static feature_sums *sums_of(const seal *s, kd_feature f, uint16_t layer)
{
    return &s->sums[f * s->w->recipe.layers + kd_recipe_layer_index(&s->w->recipe, layer)];
}

static void add_fidelity(kd_fidelity *sum, const kd_fidelity *x)
{
    sum->xx += x->xx;
    sum->qq += x->qq;
    sum->err2 += x->err2;
    sum->worst = x->worst > sum->worst ? x->worst : sum->worst;
}

static kd_status add_stats(seal *s, kd_stats *stats, kd_record_head *head, kd_bytes value, kd_err *err)
{
    const kd_recipe *r = &s->w->recipe;
    KD_TRY(kd_record_decode(s->rows, value.data, value.size, head, &s->scratch, err));
    if (head->target == KD_TARGET_ADJOINT)
        kd_stats_add_adjoint(stats, s->rows, head->rows, head->square, (size_t)r->grid_h * (size_t)r->grid_w);
    else
        kd_stats_add_view(stats, s->rows, head->rows);
    return KD_OK;
}

static kd_status copy_record(seal *s, kd_feature f, const kd_view_entry *v, uint16_t layer, kd_bytes key, kd_bytes value, kd_err *err)
{
    kd_record_head head = kd_recipe_head(&s->w->recipe, f, &v->image, v->view, layer);
    feature_sums *sums = sums_of(s, f, layer);
    kd_lmdb_will_need(value);
    if (sums->stats.views < KD_STATS_VIEWS)
        KD_TRY(add_stats(s, &sums->stats, &head, value, err));
    else
        KD_TRY(kd_record_check(value.data, value.size, &head, err));
    add_fidelity(&sums->fidelity, &head.fidelity);
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
    kd_stats *st = &sums_of(s, f, layer)->stats;
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

/* {"cls":{"1":{"cosine":..,"relative_l2":..,"worst_token":..}}}, by feature and layer. */
static json_t *fidelity_json(const seal *s)
{
    const kd_recipe *r = &s->w->recipe;
    json_t *all = json_object();
    for (int f = 0; f < KD_FEATURES; f++) {
        json_t *of = json_object();
        for (int l = 0; l < r->layers && kd_recipe_has(r, (kd_feature)f); l++) {
            const kd_fidelity *v = &sums_of(s, (kd_feature)f, r->layer[l])->fidelity;
            char layer[16];
            snprintf(layer, sizeof layer, "%u", r->layer[l]);
            json_object_set_new(of, layer, json_pack("{s:f,s:f,s:f}", "cosine", kd_fidelity_cosine(v), "relative_l2", kd_fidelity_relative_l2(v), "worst_token", v->worst));
        }
        if (json_object_size(of) > 0)
            json_object_set(all, kd_feature_name((kd_feature)f), of);
        json_decref(of);
    }
    return all;
}

static kd_status put_meta(seal *s, kd_err *err)
{
    json_t *content = content_json(s, &s->digest.sum), *fidelity = fidelity_json(s);
    kd_status status = kd_meta_put_json(s->to, KD_META_CONTENT, content, err);
    if (status == KD_OK)
        status = kd_meta_put_json(s->to, KD_META_FIDELITY, fidelity, err);
    json_decref(content);
    json_decref(fidelity);
    if (status == KD_OK)
        status = kd_meta_put_json(s->to, KD_META_RECIPE, s->w->recipe.json, err);
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
    KD_TRY(kd_alloc_array(&s->sums, (size_t)(KD_FEATURES * r->layers), sizeof *s->sums, err));
    for (int i = 0; i < KD_FEATURES * r->layers; i++) {
        if (kd_recipe_has(r, (kd_feature)(i / r->layers)))
            KD_TRY(kd_stats_create(&s->sums[i].stats, r->width, err));
    }
    KD_TRY(kd_alloc_array(&s->rows, kd_recipe_largest(r), sizeof *s->rows, err));
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
    for (int i = 0; s->sums && i < KD_FEATURES * s->w->recipe.layers; i++)
        kd_stats_free(&s->sums[i].stats);
    kd_free(s->sums);
    kd_record_scratch_free(&s->scratch);
    kd_free(s->rows);
    kd_free(s->value);
    kd_free(s->run);
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
        status = kd_io_write_failed(path, "can't be completed", err);
    close(fd);
    return status;
}

/* ---- manifest ---- */

static void utc_now(char out[32])
{
    time_t t = time(NULL);
    struct tm tm;
    gmtime_r(&t, &tm);
    strftime(out, 32, "%Y-%m-%dT%H:%M:%SZ", &tm);
}

/* What the manifest repeats of a sealed file's meta. */
typedef struct sealed_meta {
    json_t *content, *fidelity;
    kd_recipe recipe;
} sealed_meta;

static void sealed_meta_free(sealed_meta *m)
{
    json_decref(m->content);
    json_decref(m->fidelity);
    kd_recipe_free(&m->recipe);
}

typedef struct meta_load {
    sealed_meta *m;
    kd_lmdb_txn *txn;
    uint64_t bytes;
    const char *path;
} meta_load;

static kd_status read_sealed_meta(void *arg, kd_err *err)
{
    meta_load *l = arg;
    kd_status status = kd_meta_get_json(l->txn, KD_META_CONTENT, &l->m->content, l->path, err);
    if (status == KD_OK)
        status = kd_meta_get_json(l->txn, KD_META_FIDELITY, &l->m->fidelity, l->path, err);
    if (status == KD_OK)
        status = kd_read_recipe(&l->m->recipe, l->txn, l->path, err);
    if (status == KD_DONE)
        return kd_fail(err, KD_EDAMAGED, "%s: has no recipe, content or fidelity entry; remove it and run kd-precompute again", l->path);
    if (status == KD_OK && json_object_set_new(l->m->content, "bytes", json_integer((json_int_t)l->bytes)) != 0)
        return kd_fail(err, KD_EFAIL, "out of memory while sealing");
    return status;
}

static kd_status sealed_meta_load(kd_writer *w, sealed_meta *m, kd_err *err)
{
    kd_lmdb_facts facts;
    kd_lmdb *db = NULL;
    meta_load l = {.m = m, .path = w->path};
    kd_status status;
    KD_TRY(kd_lmdb_validate(w->path, 1, &facts, err));
    l.bytes = facts.pages * PAGE;
    KD_TRY(kd_lmdb_open_read(&db, w->path, l.bytes, facts.first_value_at, err));
    status = kd_lmdb_read(&l.txn, db, err);
    if (status == KD_OK)
        status = kd_lmdb_guard(db, read_sealed_meta, &l, err);
    kd_lmdb_read_end(l.txn);
    kd_lmdb_close(db);
    return status;
}

static kd_status write_manifest(kd_writer *w, const sealed_meta *meta, kd_err *err)
{
    kd_sha256 file;
    char file_hex[65], identity_hex[65], now[32];
    json_t *m;
    kd_status status;
    KD_TRY(kd_sha256_file(w->path, &file, err));
    kd_hex(file_hex, file.b, sizeof file.b);
    kd_hex(identity_hex, w->recipe.sha.b, sizeof w->recipe.sha.b);
    utc_now(now);
    m = json_pack("{s:s,s:s,s:s,s:O,s:O,s:O,s:O?,s:s}", "format", KD_FORMAT_TEXT, "identity", identity_hex, "sha256", file_hex, "recipe", w->recipe.json, "content", meta->content,
                  "fidelity", meta->fidelity, "provenance", w->provenance, "created", now);
    status = m ? kd_manifest_write(w->path, m, err) : kd_fail(err, KD_EFAIL, "%s: out of memory while writing its manifest", w->path);
    json_decref(m);
    return status;
}

kd_status kd_writer_finish(kd_writer *w, kd_err *err)
{
    sealed_meta meta = {0};
    kd_status status = sealed_meta_load(w, &meta, err);
    if (status == KD_OK)
        status = kd_recipe_compare(&meta.recipe, w->path, &w->recipe, "this run", err);
    if (status == KD_OK)
        status = write_manifest(w, &meta, err);
    sealed_meta_free(&meta);
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
        status = kd_io_write_failed(w->path, "its finished copy can't be put in its place", err);
    if (status != KD_OK) {
        unlink(w->sealing); /* the partial cache is as it was */
        return status;
    }
    KD_TRY(kd_io_fsync_dir_of(w->path, err));
    return kd_writer_finish(w, err);
}

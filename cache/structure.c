/* Structure of a shard: its key lists against each other, in lockstep and in key order. */
#include <string.h>

#include "cache/store_internal.h"
#include "common/base/threads.h"

typedef struct structure {
    const kd_shard *s;
    kd_lmdb_cursor *cursor[2]; /* views, and images or a feature's records */
    kd_feature feature;
    kd_lmdb_txn *txn;          /* for meta */
} structure;

static kd_status missing(const kd_shard *s, kd_db db, const uint8_t *key, size_t size, const char *what, kd_err *err)
{
    char hex[2 * KD_KEY_BYTES + 1];
    kd_hex(hex, key, size);
    return kd_fail(err, KD_EDAMAGED, "%s: the %s entry %s %s", s->path, kd_db_names[db], hex, what);
}

/* The views of the next image, as its runs list them. */
static kd_status match_image(structure *t, kd_bytes key, kd_bytes value, kd_err *err)
{
    kd_image_entry e;
    kd_image_tail tail;
    kd_view_entry v;
    KD_TRY(kd_image_value_decode(&e, &tail, key, value, t->s->recipe.sha.b, t->s->path, err));
    for (uint32_t r = 0; r < e.runs; r++) {
        kd_view_run run = kd_image_run(&tail, r);
        for (uint32_t i = 0; i < run.count; i++) {
            kd_bytes view_key, view_value;
            uint8_t want[KD_VIEW_KEY_BYTES];
            kd_status status = kd_lmdb_cursor_next(t->cursor[0], &view_key, &view_value, err);
            kd_view_key(want, &e.image, run.first + i);
            if (status == KD_DONE || (status == KD_OK && (view_key.size != sizeof want || memcmp(view_key.data, want, sizeof want) != 0)))
                return missing(t->s, KD_DB_VIEWS, want, sizeof want, "is missing, although its image lists it", err);
            KD_TRY(status);
            KD_TRY(kd_view_value_decode(&v, view_key, view_value, t->s->recipe.sha.b, t->s->path, err));
        }
    }
    return KD_OK;
}

static kd_status match_images(void *arg, kd_err *err)
{
    structure *t = arg;
    kd_bytes key, value;
    kd_status status;
    while ((status = kd_lmdb_cursor_next(t->cursor[1], &key, &value, err)) == KD_OK) {
        KD_TRY(match_image(t, key, value, err));
        if (kd_stop_requested() != KD_OK)
            return kd_fail(err, kd_stop_requested(), "%s: interrupted while its structure was checked", t->s->path);
    }
    if (status != KD_DONE)
        return status;
    status = kd_lmdb_cursor_next(t->cursor[0], &key, &value, err);
    return status == KD_OK ? missing(t->s, KD_DB_VIEWS, key.data, key.size, "is there, although no image lists it", err) : status == KD_DONE ? KD_OK : status;
}

static kd_status match_records(void *arg, kd_err *err)
{
    structure *t = arg;
    const kd_recipe *r = &t->s->recipe;
    kd_db db = kd_feature_db(t->feature);
    kd_bytes view_key, key, value;
    kd_status status;
    while ((status = kd_lmdb_cursor_next(t->cursor[0], &view_key, &value, err)) == KD_OK) {
        uint8_t want[KD_KEY_BYTES];
        memcpy(want, view_key.data, KD_VIEW_KEY_BYTES);
        for (int l = 0; l < r->layers; l++) {
            want[20] = (uint8_t)(r->layer[l] >> 8);
            want[21] = (uint8_t)r->layer[l];
            status = kd_lmdb_cursor_next(t->cursor[1], &key, &value, err);
            if (status == KD_DONE || (status == KD_OK && (key.size != sizeof want || memcmp(key.data, want, sizeof want) != 0)))
                return missing(t->s, db, want, sizeof want, "is missing, although its view is there", err);
            KD_TRY(status);
        }
        if (kd_stop_requested() != KD_OK)
            return kd_fail(err, kd_stop_requested(), "%s: interrupted while its structure was checked", t->s->path);
    }
    return status == KD_DONE ? KD_OK : status; /* further records can't be: they were counted */
}

/* What meta repeats for readers: statistics of every feature and layer, and the fidelity. Each entry proves itself. */
static kd_status check_meta(void *arg, kd_err *err)
{
    structure *t = arg;
    const kd_recipe *r = &t->s->recipe;
    json_t *fidelity;
    kd_status status = kd_meta_get_json(t->txn, KD_META_FIDELITY, &fidelity, t->s->path, err);
    json_decref(fidelity);
    if (status == KD_DONE)
        return kd_fail(err, KD_EDAMAGED, "%s: its fidelity is missing", t->s->path);
    for (int i = 0; i < KD_FEATURES * r->layers && status == KD_OK; i++) {
        kd_feature f = (kd_feature)(i / r->layers);
        kd_bytes b;
        if (kd_recipe_has(r, f))
            status = kd_stats_get(t->txn, r, f, r->layer[i % r->layers], &b, t->s->path, err);
    }
    return status;
}

static kd_status meta(structure *t, kd_err *err)
{
    kd_status status;
    KD_TRY(kd_lmdb_read(&t->txn, t->s->db, err));
    status = kd_lmdb_guard(t->s->db, check_meta, t, err);
    kd_lmdb_read_end(t->txn);
    return status;
}

static kd_status with_cursors(structure *t, kd_db second, kd_status (*fn)(void *arg, kd_err *err), kd_err *err)
{
    kd_lmdb_txn *txn;
    kd_status status;
    KD_TRY(kd_lmdb_read(&txn, t->s->db, err));
    t->cursor[0] = t->cursor[1] = NULL;
    status = kd_lmdb_cursor_open(&t->cursor[0], txn, KD_DB_VIEWS, err);
    if (status == KD_OK)
        status = kd_lmdb_cursor_open(&t->cursor[1], txn, second, err);
    if (status == KD_OK)
        status = kd_lmdb_guard(t->s->db, fn, t, err);
    kd_lmdb_cursor_close(t->cursor[0]);
    kd_lmdb_cursor_close(t->cursor[1]);
    kd_lmdb_read_end(txn);
    return status;
}

kd_status kd_cache_shard_structure(kd_cache *c, size_t i, kd_err *err)
{
    structure t = {.s = &c->shards[i]};
    KD_TRY(meta(&t, err));
    KD_TRY(with_cursors(&t, KD_DB_IMAGES, match_images, err));
    for (int f = 0; f < KD_FEATURES; f++) {
        t.feature = (kd_feature)f;
        if (kd_recipe_has(&t.s->recipe, t.feature))
            KD_TRY(with_cursors(&t, kd_feature_db(t.feature), match_records, err));
    }
    return KD_OK;
}

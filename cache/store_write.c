#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "cache/store_internal.h"
#include "cache/validate.h"
#include "common/base/io.h"
#include "common/base/log.h"
#include "common/base/mem.h"

/* Pages that one transaction may touch: durable commits of this size run at the disk's rate (facts/performance.md 5) and little is lost by a kill. */
#define MAX_EXPECTED ((uint64_t)64 << 30) /* address space, not memory; beyond it the map grows by itself */
enum { BATCH_BYTES = KD_WRITER_MEMORY, PAGE = 4096, LEAF_COST = 3 * PAGE, SLACK = 32 << 20, INLINE_MAX = 2000 };

_Static_assert(KD_DBS == KD_DB_FEATURES + KD_FEATURES, "every feature has a database");

kd_db kd_feature_db(kd_feature f)
{
    return (kd_db)(KD_DB_FEATURES + (int)f);
}

void kd_stats_key(char out[32], kd_feature f, uint16_t layer)
{
    snprintf(out, 32, KD_META_STATS "%s/%u", kd_feature_name(f), layer);
}

kd_status kd_meta_put(kd_lmdb *db, const char *key, const void *payload, size_t size, kd_err *err)
{
    uint8_t *value;
    size_t value_size;
    kd_status status;
    KD_TRY(kd_meta_encode(&value, &value_size, key, payload, size, err));
    status = kd_lmdb_put(db, KD_DB_META, key, strlen(key), value, value_size, 0, err);
    kd_free(value);
    return status;
}

kd_status kd_meta_get(kd_lmdb_txn *t, const char *key, kd_bytes *payload, const char *file, kd_err *err)
{
    kd_bytes value;
    KD_TRY(kd_lmdb_get(t, KD_DB_META, key, strlen(key), &value, err));
    return kd_meta_decode(payload, key, value, file, err);
}

kd_status kd_meta_get_json(kd_lmdb_txn *t, const char *key, json_t **out, const char *file, kd_err *err)
{
    kd_bytes text;
    *out = NULL;
    KD_TRY(kd_meta_get(t, key, &text, file, err));
    return kd_json_parse((const char *)text.data, text.size, file, out, err);
}

kd_status kd_read_recipe(kd_recipe *r, kd_lmdb_txn *t, const char *file, kd_err *err)
{
    json_t *json;
    memset(r, 0, sizeof *r);
    KD_TRY(kd_meta_get_json(t, KD_META_RECIPE, &json, file, err));
    return kd_recipe_from_json(r, json, file, err);
}

/* ---- opening ---- */

kd_status kd_meta_put_json(kd_lmdb *db, const char *key, const json_t *json, kd_err *err)
{
    char *text = json ? kd_json_canonical(json) : NULL;
    kd_status status = text ? kd_meta_put(db, key, text, strlen(text), err) : kd_fail(err, KD_EFAIL, "out of memory: no room for the cache's %s", key);
    kd_free(text);
    return status;
}

static kd_status put_value_bytes(kd_writer *w, kd_err *err)
{
    uint8_t bytes[8];
    kd_put_le(bytes, w->value_bytes, 8);
    return kd_meta_put(w->db, KD_META_VALUE_BYTES, bytes, sizeof bytes, err);
}

static kd_status get_value_bytes(kd_writer *w, kd_lmdb_txn *t, kd_err *err)
{
    kd_bytes b;
    kd_status status = kd_meta_get(t, KD_META_VALUE_BYTES, &b, w->partial, err);
    if (status == KD_DONE)
        return KD_OK;
    if (status == KD_OK && b.size != 8)
        return kd_fail(err, KD_EDAMAGED, "%s: its count of stored bytes has %zu bytes; remove the file and run kd-precompute again", w->partial, b.size);
    if (status == KD_OK)
        w->value_bytes = w->committed_value_bytes = kd_get_le(b.data, 8);
    return status;
}

/* The first run's provenance stays; later runs that differ (another host, another thread count) are listed beside it. */
static kd_status merge_provenance(kd_writer *w, json_t *stored, const json_t *now, kd_err *err)
{
    json_t *runs, *bare;
    int same;
    if (!stored) {
        w->provenance = now ? json_deep_copy(now) : json_object();
        return w->provenance ? KD_OK : kd_fail(err, KD_EFAIL, "%s: out of memory while copying its provenance", w->path);
    }
    w->provenance = stored;
    bare = json_copy(stored);
    json_object_del(bare, "resumed");
    same = !now || json_equal(bare, now);
    json_decref(bare);
    runs = json_object_get(stored, "resumed");
    for (size_t i = 0; i < json_array_size(runs); i++)
        same |= json_equal(json_array_get(runs, i), now);
    if (same)
        return KD_OK;
    if (!runs && (json_object_set_new(stored, "resumed", json_array()) != 0 || !(runs = json_object_get(stored, "resumed"))))
        return kd_fail(err, KD_EFAIL, "%s: out of memory while copying its provenance", w->path);
    return json_array_append_new(runs, json_deep_copy(now)) == 0 ? KD_OK : kd_fail(err, KD_EFAIL, "%s: out of memory while copying its provenance", w->path);
}

static kd_status load_views(kd_writer *w, kd_lmdb_txn *t, kd_err *err)
{
    kd_lmdb_cursor *c;
    kd_bytes key, value;
    kd_view_entry entry;
    kd_status status;
    int added;
    KD_TRY(kd_lmdb_cursor_open(&c, t, KD_DB_VIEWS, err));
    while ((status = kd_lmdb_cursor_next(c, &key, &value, err)) == KD_OK) {
        status = kd_view_value_decode(&entry, key, value, w->recipe.sha.b, w->partial, err);
        if (status == KD_OK)
            status = kd_view_set_add(&w->present, &entry.image, entry.view, &added, err);
        if (status == KD_OK)
            status = kd_view_set_add(&w->present, &entry.image, KD_VIEW_ANY, &added, err);
        if (status != KD_OK)
            break;
        w->views++;
    }
    kd_lmdb_cursor_close(c);
    return status == KD_DONE ? KD_OK : status;
}

/* What an earlier run left: its recipe must be ours; its views are ours to keep. *fresh: nothing was left. */
static kd_status load_partial(kd_writer *w, const json_t *provenance, int *fresh, kd_err *err)
{
    kd_lmdb_txn *t;
    kd_recipe theirs;
    json_t *stored = NULL;
    kd_status status;
    KD_TRY(kd_lmdb_read(&t, w->db, err));
    status = kd_read_recipe(&theirs, t, w->partial, err);
    *fresh = status == KD_DONE;
    if (status == KD_OK) {
        status = kd_recipe_compare(&theirs, w->partial, &w->recipe, "this run", err);
        kd_recipe_free(&theirs);
        if (status == KD_OK)
            status = load_views(w, t, err);
        if (status == KD_OK)
            status = get_value_bytes(w, t, err);
        if (status == KD_OK && (status = kd_meta_get_json(t, KD_META_PROVENANCE, &stored, w->partial, err)) == KD_DONE)
            status = KD_OK;
    }
    if (status == KD_OK || status == KD_DONE)
        status = merge_provenance(w, stored, provenance, err);
    else
        json_decref(stored);
    kd_lmdb_read_end(t);
    return status;
}

/* Made under another name: after a power failure there is no partial file, or one that LMDB can open, and its name is on the disk before anything in it is called safe. */
static kd_status create_partial(kd_writer *w, kd_err *err)
{
    kd_lmdb *db;
    kd_status status = kd_lmdb_open_write(&db, w->sealing, 1, 0, err);
    kd_lmdb_close(db);
    if (status == KD_OK && rename(w->sealing, w->partial) != 0)
        status = kd_io_write_failed(w->partial, "can't be created", err);
    if (status != KD_OK) {
        unlink(w->sealing);
        return status;
    }
    return kd_io_fsync_dir_of(w->partial, err);
}

/* Validates what is there, opens it, and makes sure that it carries the recipe. */
static kd_status open_partial(kd_writer *w, const json_t *provenance, kd_err *err)
{
    kd_lmdb_facts facts;
    int fresh = 1;
    kd_status status;
    if (kd_io_exists(w->partial))
        KD_TRY(kd_lmdb_validate(w->partial, 0, &facts, err));
    else
        KD_TRY(create_partial(w, err));
    KD_TRY(kd_lmdb_open_write(&w->db, w->partial, 1, 0, err));
    KD_TRY(load_partial(w, provenance, &fresh, err));
    KD_TRY(kd_lmdb_begin(w->db, w->expected > SLACK ? w->expected : SLACK, err));
    status = fresh ? kd_meta_put_json(w->db, KD_META_RECIPE, w->recipe.json, err) : KD_OK;
    if (status == KD_OK)
        status = kd_meta_put_json(w->db, KD_META_PROVENANCE, w->provenance, err);
    if (status == KD_OK)
        status = kd_lmdb_commit(w->db, err);
    else
        kd_lmdb_abort(w->db);
    return status;
}

void kd_writer_unlink_leftovers(kd_writer *w)
{
    unlink(w->sealing);
    unlink(w->partial);
    kd_io_remove_temporaries(w->manifest);
}

/* KD_DONE: sealed with this recipe. */
static kd_status check_sealed(kd_writer *w, kd_err *err)
{
    const char *path = w->path;
    kd_cache *c;
    kd_status status;
    KD_TRY(kd_cache_open(&c, &path, 1, err));
    status = kd_recipe_compare(kd_cache_recipe(c), w->path, &w->recipe, "this run", err);
    kd_cache_close(c);
    return status == KD_OK ? KD_DONE : status;
}

static kd_status make_paths(kd_writer *w, const char *path, kd_err *err)
{
    size_t n = strlen(path);
    if (n < 5 || strcmp(path + n - 4, ".kdc") != 0)
        return kd_fail(err, KD_EUSAGE, "%s: the name of a cache ends in .kdc", path);
    w->path = kd_strdup(path);
    w->partial = kd_asprintf("%s.partial", path);
    w->sealing = kd_asprintf("%s.sealing", path);
    w->lock_path = kd_asprintf("%s.partial.lock", path);
    w->manifest = kd_manifest_path(path);
    w->value = kd_malloc(KD_IMAGE_VALUE_HEAD + KD_MAX_REL);
    if (!w->path || !w->partial || !w->sealing || !w->lock_path || !w->manifest || !w->value)
        return kd_fail(err, KD_EFAIL, "%s: out of memory while opening", path);
    return KD_OK;
}

/* A kill after the manifest leaves files that nobody needs. Where they can't be removed (no write permission), they stay: the cache is complete. */
static void tidy(kd_writer *w)
{
    if (!kd_io_exists(w->partial) && !kd_io_exists(w->sealing) && !kd_io_exists(w->lock_path))
        return;
    if (w->lock || kd_lock_take(&w->lock, w->lock_path, w->path, NULL) == KD_OK)
        kd_writer_unlink_leftovers(w);
}

static kd_status writer_open(kd_writer *w, const char *path, const kd_recipe *recipe, const json_t *provenance, kd_err *err)
{
    kd_status status = KD_OK;
    KD_TRY(make_paths(w, path, err));
    KD_TRY(kd_recipe_from_json(&w->recipe, json_deep_copy(recipe->json), "this run's recipe", err));
    if (!(kd_io_exists(w->path) && kd_io_exists(w->manifest))) /* else: finished, and reading is enough to see it */
        KD_TRY(kd_lock_take(&w->lock, w->lock_path, w->path, err));
    if (kd_io_exists(w->path) && kd_io_exists(w->manifest)) {
        status = check_sealed(w, err);
        if (status == KD_DONE)
            tidy(w);
        return status;
    }
    if (!w->lock) /* the finished cache has just been removed */
        KD_TRY(kd_lock_take(&w->lock, w->lock_path, w->path, err));
    if (kd_io_exists(w->path)) { /* killed between the rename and the manifest */
        if (kd_io_exists(w->partial))
            KD_TRY(open_partial(w, provenance, err));
        KD_TRY(kd_writer_finish(w, err));
        return KD_DONE;
    }
    unlink(w->sealing);
    return open_partial(w, provenance, err);
}

kd_status kd_writer_open(kd_writer **out, const char *path, const kd_recipe *recipe, const json_t *provenance, uint64_t expected_bytes, kd_err *err)
{
    kd_writer *w = kd_calloc(1, sizeof *w);
    kd_status status;
    *out = NULL;
    if (!w)
        return kd_fail(err, KD_EFAIL, "%s: out of memory while opening", path);
    w->expected = expected_bytes < MAX_EXPECTED ? expected_bytes : MAX_EXPECTED;
    status = writer_open(w, path, recipe, provenance, err);
    if (status != KD_OK) {
        kd_writer_close(w);
        return status;
    }
    *out = w;
    return KD_OK;
}

void kd_writer_close(kd_writer *w)
{
    if (!w)
        return;
    kd_lmdb_close(w->db);
    kd_view_set_free(&w->present);
    kd_recipe_free(&w->recipe);
    json_decref(w->provenance);
    kd_lock_release(w->lock);
    kd_free(w->path);
    kd_free(w->partial);
    kd_free(w->sealing);
    kd_free(w->lock_path);
    kd_free(w->manifest);
    kd_free(w->value);
    kd_free(w);
}

/* ---- adding ---- */

int kd_writer_has_view(const kd_writer *w, const kd_hash128 *image, uint32_t view)
{
    return kd_view_set_has(&w->present, image, view);
}

int kd_writer_has_image(const kd_writer *w, const kd_hash128 *image)
{
    return kd_view_set_has(&w->present, image, KD_VIEW_ANY);
}

uint64_t kd_writer_view_count(const kd_writer *w)
{
    return w->views;
}

uint64_t kd_writer_value_bytes(const kd_writer *w)
{
    return w->value_bytes;
}

kd_status kd_writer_commit(kd_writer *w, kd_err *err)
{
    kd_status status = KD_OK;
    if (!kd_lmdb_in_transaction(w->db))
        return KD_OK;
    if (w->value_bytes != w->committed_value_bytes)
        status = put_value_bytes(w, err);
    if (status == KD_OK)
        status = kd_lmdb_commit(w->db, err);
    else
        kd_lmdb_abort(w->db);
    w->batch = 0;
    w->committed_value_bytes = w->value_bytes;
    w->broken |= status != KD_OK;
    return status;
}

/* Upper bound of the pages that a view's records make dirty. */
static uint64_t view_cost(const kd_record_ref *records, size_t n)
{
    uint64_t cost = 2 * LEAF_COST;
    for (size_t i = 0; i < n; i++)
        cost += LEAF_COST + (records[i].size > INLINE_MAX ? (records[i].size / PAGE + 2) * PAGE : 0);
    return cost;
}

/* Every feature and layer of the recipe, each once, in a form that a reader will accept. */
static kd_status check_records(const kd_writer *w, const kd_view_entry *view, const kd_record_ref *records, size_t n, kd_err *err)
{
    size_t want = (size_t)kd_recipe_records(&w->recipe);
    if (n != want)
        return kd_fail(err, KD_EFAIL, "%s: view %u comes with %zu records where the recipe has %zu", w->partial, view->view, n, want);
    for (size_t i = 0; i < n; i++) {
        kd_record_head head = kd_recipe_head(&w->recipe, records[i].feature, &view->image, view->view, records[i].layer);
        if (kd_recipe_layer_index(&w->recipe, records[i].layer) < 0 || !kd_recipe_has(&w->recipe, records[i].feature))
            return kd_fail(err, KD_EFAIL, "%s: view %u comes with %s of layer %u, which the recipe doesn't have", w->partial, view->view,
                           kd_feature_name(records[i].feature), records[i].layer);
        for (size_t j = 0; j < i; j++) {
            if (records[j].feature == records[i].feature && records[j].layer == records[i].layer)
                return kd_fail(err, KD_EFAIL, "%s: view %u comes twice with %s of layer %u", w->partial, view->view, kd_feature_name(records[i].feature), records[i].layer);
        }
        KD_TRY(kd_record_check(records[i].bytes, records[i].size, &head, err));
        if (memcmp(head.view_hash.b, view->view_hash.b, 16) != 0)
            return kd_fail(err, KD_EFAIL, "%s: the records of view %u carry another view's hash", w->partial, view->view);
    }
    return KD_OK;
}

static kd_status put_view(kd_writer *w, const kd_image_entry *image, const kd_view_entry *view, const kd_record_ref *records, size_t n, kd_err *err)
{
    uint8_t value[KD_MIXED_VALUE_BYTES], key[KD_KEY_BYTES];
    kd_image_entry plain = *image;
    int added;
    plain.views = plain.runs = 0; /* counted when the cache is sealed */
    KD_TRY(kd_view_set_add(&w->present, &view->image, KD_VIEW_ANY, &added, err));
    if (added)
        KD_TRY(kd_lmdb_put(w->db, KD_DB_IMAGES, image->image.b, KD_IMAGE_KEY_BYTES, w->value, kd_image_value_encode(w->value, w->recipe.sha.b, &plain), 0, err));
    for (size_t i = 0; i < n; i++) {
        kd_key k = {view->image, view->view, records[i].layer};
        kd_key_encode(key, &k);
        KD_TRY(kd_lmdb_put(w->db, kd_feature_db(records[i].feature), key, KD_KEY_BYTES, records[i].bytes, records[i].size, 0, err));
        w->value_bytes += records[i].size;
    }
    size_t size = kd_view_value_encode(value, w->recipe.sha.b, view);
    kd_view_key(key, &view->image, view->view);
    KD_TRY(kd_lmdb_put(w->db, KD_DB_VIEWS, key, KD_VIEW_KEY_BYTES, value, size, 0, err));
    KD_TRY(kd_view_set_add(&w->present, &view->image, view->view, &added, err));
    w->views++;
    return KD_OK;
}

kd_status kd_writer_add_view(kd_writer *w, const kd_image_entry *image, const kd_view_entry *view, const kd_record_ref *records, size_t n, kd_err *err)
{
    uint64_t cost = view_cost(records, n);
    kd_status status;
    if (w->broken)
        return kd_fail(err, KD_EFAIL, "%s: can't go on after a failed commit; run the same command again", w->partial);
    if (view->view > KD_MAX_VIEW)
        return kd_fail(err, KD_EFAIL, "%s: view %u of %s is above the largest number of a view, %u", w->partial, view->view, image->rel, KD_MAX_VIEW);
    if (kd_writer_has_view(w, &view->image, view->view))
        return kd_fail(err, KD_EFAIL, "%s: view %u of %s is there already", w->partial, view->view, image->rel);
    if (strlen(image->rel) > KD_MAX_REL)
        return kd_fail(err, KD_EFAIL, "%s: its path of %zu bytes is above the limit of %d", image->rel, strlen(image->rel), KD_MAX_REL);
    KD_TRY(check_records(w, view, records, n, err));
    if (w->batch > 0 && w->batch + cost > BATCH_BYTES)
        KD_TRY(kd_writer_commit(w, err));
    if (!kd_lmdb_in_transaction(w->db))
        KD_TRY(kd_lmdb_begin(w->db, (cost > BATCH_BYTES ? cost : BATCH_BYTES) + SLACK, err));
    w->batch += cost;
    status = put_view(w, image, view, records, n, err);
    if (status != KD_OK) {
        kd_lmdb_abort(w->db);
        w->broken = 1;
    }
    return status;
}

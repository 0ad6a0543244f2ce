/* Lookups in an open cache: views, features, digests. Everything that touches a map goes through kd_lmdb_guard. */
#include <string.h>

#include "cache/store_internal.h"
#include "common/base/log.h"
#include "common/base/threads.h"

struct kd_reader {
    kd_cache *cache;
    kd_lmdb_txn **txn; /* one per shard */
    kd_record_scratch scratch;
};

kd_status kd_reader_create(kd_reader **out, kd_cache *c, kd_err *err)
{
    kd_reader *r = kd_calloc(1, sizeof *r);
    kd_status status;
    *out = NULL;
    if (!r)
        return kd_fail(err, KD_EFAIL, "out of memory while creating a reader");
    r->cache = c;
    status = kd_alloc_array(&r->txn, c->shard_count, sizeof *r->txn, err);
    for (size_t i = 0; i < c->shard_count && status == KD_OK; i++)
        status = kd_lmdb_read(&r->txn[i], c->shards[i].db, err);
    if (status != KD_OK) {
        kd_reader_destroy(r);
        return status;
    }
    *out = r;
    return KD_OK;
}

void kd_reader_destroy(kd_reader *r)
{
    if (!r)
        return;
    for (size_t i = 0; r->txn && i < r->cache->shard_count; i++)
        kd_lmdb_read_end(r->txn[i]);
    kd_free(r->txn);
    kd_record_scratch_free(&r->scratch);
    kd_free(r);
}

/* ---- one lookup, as it goes through the guard ---- */

typedef struct lookup {
    kd_reader *reader;
    uint32_t shard;
    const kd_hash128 *image;
    uint32_t view;
    kd_view_entry *entry; /* for a view */
    kd_feature feature;   /* for a feature */
    uint16_t layer;
    float *out;
    kd_record_facts *facts;
    kd_status (*use)(void *ctx, const uint8_t *bytes, size_t size, kd_err *err); /* for a record */
    void *ctx;
} lookup;

static kd_status find_shard(lookup *l, kd_err *err)
{
    const kd_cache *c = l->reader->cache;
    const kd_image_entry *e = kd_cache_find_image(c, l->image);
    const kd_view_run *run = e ? kd_image_find_view(e, l->view) : NULL;
    char hex[33], views[64];
    if (run) {
        l->shard = run->shard;
        return KD_OK;
    }
    kd_hex(hex, l->image->b, 16);
    if (!e)
        return kd_fail(err, KD_ENOTFOUND, "%s: has no image %s", c->shards[0].path, hex);
    return kd_fail(err, KD_ENOTFOUND, "%s: image %s (%s) has %s, not %u", c->shards[0].path, hex, e->rel, kd_image_views_text(e, views), l->view);
}

/* The image table knows this view, so a missing entry is damage. */
static kd_status get(const lookup *l, kd_db db, const uint8_t *key, size_t size, kd_bytes *value, kd_err *err)
{
    kd_status status = kd_lmdb_get(l->reader->txn[l->shard], db, key, size, value, err);
    char hex[2 * KD_KEY_BYTES + 1];
    if (status != KD_DONE)
        return status;
    kd_hex(hex, key, size);
    return kd_fail(err, KD_EDAMAGED, "%s: the %s entry %s is missing; copy the file again from where it came, or repair it: kd-cache repair %s --drop-bad --out REPAIRED.kdc",
                   l->reader->cache->shards[l->shard].path, kd_db_names[db], hex, l->reader->cache->shards[l->shard].path);
}

static kd_status read_view(void *arg, kd_err *err)
{
    lookup *l = arg;
    const kd_shard *s = &l->reader->cache->shards[l->shard];
    uint8_t bytes[KD_VIEW_KEY_BYTES];
    kd_bytes key = {bytes, sizeof bytes}, value;
    kd_view_key(bytes, l->image, l->view);
    KD_TRY(get(l, KD_DB_VIEWS, bytes, sizeof bytes, &value, err));
    return kd_view_value_decode(l->entry, key, value, s->recipe.sha.b, s->path, err);
}

static kd_record_head head_of(const lookup *l)
{
    return kd_recipe_head(&l->reader->cache->shards[l->shard].recipe, l->feature, l->image, l->view, l->layer);
}

/* The stored bytes, asked for in one go. */
static kd_status find_record(const lookup *l, const kd_record_head *head, kd_bytes *value, kd_err *err)
{
    uint8_t key[KD_KEY_BYTES];
    kd_key_encode(key, &head->key);
    KD_TRY(get(l, kd_feature_db(l->feature), key, sizeof key, value, err));
    kd_lmdb_will_need(*value);
    return KD_OK;
}

/* Says which record a failed check was about. */
static kd_status name_record(const lookup *l, kd_status status, const kd_err *inner, kd_err *err)
{
    char hex[33];
    kd_hex(hex, l->image->b, 16);
    return kd_fail(err, status, "%s: %s of image %s, view %u, layer %u: %s", l->reader->cache->shards[l->shard].path, kd_feature_name(l->feature), hex, l->view, l->layer, inner->msg);
}

static kd_status read_feature(void *arg, kd_err *err)
{
    lookup *l = arg;
    kd_record_head head = head_of(l);
    kd_bytes value;
    kd_err inner;
    kd_status status;
    KD_TRY(find_record(l, &head, &value, err));
    status = kd_record_decode(l->out, value.data, value.size, &head, &l->reader->scratch, &inner);
    if (status != KD_OK)
        return name_record(l, status, &inner, err);
    if (l->facts)
        *l->facts = (kd_record_facts){head.view_hash, head.square};
    return KD_OK;
}

static kd_status use_record(void *arg, kd_err *err)
{
    lookup *l = arg;
    kd_record_head head = head_of(l);
    kd_bytes value;
    kd_err inner;
    kd_status status;
    KD_TRY(find_record(l, &head, &value, err));
    status = kd_record_check(value.data, value.size, &head, &inner);
    return status == KD_OK ? l->use(l->ctx, value.data, value.size, err) : name_record(l, status, &inner, err);
}

static kd_status will_need(void *arg, kd_err *err)
{
    lookup *l = arg;
    kd_record_head head = head_of(l);
    kd_bytes value;
    return find_record(l, &head, &value, err);
}

static kd_status look(lookup *l, kd_status (*fn)(void *arg, kd_err *err), kd_err *err)
{
    KD_TRY(find_shard(l, err));
    return kd_lmdb_guard(l->reader->cache->shards[l->shard].db, fn, l, err);
}

kd_status kd_reader_view(kd_reader *r, const kd_hash128 *image, uint32_t view, kd_view_entry *out, kd_err *err)
{
    return look(&(lookup){.reader = r, .image = image, .view = view, .entry = out}, read_view, err);
}

kd_status kd_reader_feature(kd_reader *r, kd_feature f, const kd_hash128 *image, uint32_t view, uint16_t layer, float *out, kd_record_facts *facts, kd_err *err)
{
    KD_TRY(kd_check_stored(r->cache, f, layer, err));
    return look(&(lookup){.reader = r, .image = image, .view = view, .feature = f, .layer = layer, .out = out, .facts = facts}, read_feature, err);
}

kd_status kd_reader_record(kd_reader *r, kd_feature f, const kd_hash128 *image, uint32_t view, uint16_t layer, kd_status (*use)(void *ctx, const uint8_t *bytes, size_t size, kd_err *err),
                           void *ctx, kd_err *err)
{
    KD_TRY(kd_check_stored(r->cache, f, layer, err));
    return look(&(lookup){.reader = r, .image = image, .view = view, .feature = f, .layer = layer, .use = use, .ctx = ctx}, use_record, err);
}

kd_status kd_reader_will_need(kd_reader *r, kd_feature f, const kd_hash128 *image, uint32_t view, uint16_t layer, kd_err *err)
{
    KD_TRY(kd_check_stored(r->cache, f, layer, err));
    return look(&(lookup){.reader = r, .image = image, .view = view, .feature = f, .layer = layer}, will_need, err);
}

/* ---- digests ---- */

typedef struct digest_load {
    const kd_shard *s;
    kd_lmdb_cursor *cursor;
    kd_db db;
    kd_digest digest;
} digest_load;

static kd_status digest_values(void *arg, kd_err *err)
{
    digest_load *l = arg;
    kd_bytes key, value;
    kd_status status;
    while ((status = kd_lmdb_cursor_next(l->cursor, &key, &value, err)) == KD_OK) {
        KD_TRY(kd_digest_add(&l->digest, l->db, key, value, l->s->path, err));
        if (kd_stop_requested() != KD_OK)
            return kd_fail(err, kd_stop_requested(), "%s: interrupted while its digest was computed", l->s->path);
    }
    return status == KD_DONE ? KD_OK : status;
}

kd_status kd_cache_shard_digest(kd_cache *c, size_t i, kd_sha256 *out, kd_err *err)
{
    digest_load l = {.s = &c->shards[i]};
    kd_lmdb_txn *t;
    kd_status status;
    KD_TRY(kd_lmdb_read(&t, l.s->db, err));
    status = KD_OK;
    for (l.db = KD_DB_IMAGES; l.db < KD_DBS && status == KD_OK; l.db++) {
        status = kd_lmdb_cursor_open(&l.cursor, t, l.db, err);
        if (status == KD_OK)
            status = kd_lmdb_guard(l.s->db, digest_values, &l, err);
        kd_lmdb_cursor_close(l.cursor);
        l.cursor = NULL;
    }
    kd_lmdb_read_end(t);
    *out = l.digest.sum;
    return status;
}

/* One entry by its key. */
typedef struct digest_entry {
    lookup l;
    kd_db db;
    uint8_t key[KD_KEY_BYTES];
    size_t key_size;
    kd_digest *digest;
} digest_entry;

static kd_status digest_one(void *arg, kd_err *err)
{
    digest_entry *e = arg;
    kd_bytes value;
    KD_TRY(get(&e->l, e->db, e->key, e->key_size, &value, err));
    return kd_digest_add(e->digest, e->db, (kd_bytes){e->key, e->key_size}, value, e->l.reader->cache->shards[e->l.shard].path, err);
}

static kd_status digest_key(digest_entry *e, kd_db db, size_t key_size, kd_err *err)
{
    e->db = db;
    e->key_size = key_size;
    return kd_lmdb_guard(e->l.reader->cache->shards[e->l.shard].db, digest_one, e, err);
}

static kd_status digest_view(digest_entry *e, kd_err *err)
{
    const kd_recipe *r = kd_cache_recipe(e->l.reader->cache);
    KD_TRY(find_shard(&e->l, err));
    for (int l = 0; l < r->layers; l++) {
        kd_key k = {*e->l.image, e->l.view, r->layer[l]};
        kd_key_encode(e->key, &k);
        if (l == 0)
            KD_TRY(digest_key(e, KD_DB_VIEWS, KD_VIEW_KEY_BYTES, err));
        for (int f = 0; f < KD_FEATURES; f++) {
            if (kd_recipe_has(r, (kd_feature)f))
                KD_TRY(digest_key(e, kd_feature_db((kd_feature)f), KD_KEY_BYTES, err));
        }
    }
    return KD_OK;
}

static kd_status digest_image(digest_entry *e, const kd_image_entry *image, kd_err *err)
{
    e->l.image = &image->image;
    e->l.shard = kd_image_first_shard(image);
    memcpy(e->key, image->image.b, KD_IMAGE_KEY_BYTES);
    KD_TRY(digest_key(e, KD_DB_IMAGES, KD_IMAGE_KEY_BYTES, err));
    for (uint32_t v = 0; v < image->views; v++) {
        e->l.view = kd_image_view(image, v);
        KD_TRY(digest_view(e, err));
    }
    return KD_OK;
}

kd_status kd_cache_digest(kd_cache *c, kd_sha256 *out, kd_err *err)
{
    kd_digest sum = {0};
    digest_entry e = {.digest = &sum};
    kd_status status;
    if (c->shard_count == 1)
        return kd_cache_shard_digest(c, 0, out, err);
    KD_TRY(kd_reader_create(&e.l.reader, c, err));
    status = KD_OK;
    for (size_t i = 0; i < c->image_count && status == KD_OK; i++) {
        status = digest_image(&e, &c->images[i], err);
        if (status == KD_OK && kd_stop_requested() != KD_OK)
            status = kd_fail(err, kd_stop_requested(), "interrupted after %zu of %zu images", i + 1, c->image_count);
    }
    kd_reader_destroy(e.l.reader);
    *out = sum.sum;
    return status;
}

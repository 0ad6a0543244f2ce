#include "cache/check.h"

#include <pthread.h>
#include <stdatomic.h>
#include <string.h>

#include "cache/find.h"
#include "common/base/io.h"
#include "common/base/log.h"
#include "common/base/mem.h"
#include "common/base/progress.h"
#include "common/base/threads.h"

enum { MAX_REPORTS = 100 };

/* Where the first pass, and then the second one by id, found an image's bytes. */
enum place { IN_PLACE = 0, NOWHERE, ELSEWHERE, PARTNER_AWAY /* in place, but an image that it is mixed with isn't */ };

typedef struct worker {
    kd_reader *reader;
    kd_found found;
    float *values;
} worker;

typedef struct check {
    kd_cache *cache;
    const kd_check_options *o;
    kd_locator *locator;      /* NULL: no replay */
    worker *workers;
    uint8_t *elsewhere;       /* per image: a place */
    int by_id;                /* second pass of a replay */
    kd_check_report report;
    void *ctx;
    pthread_mutex_t lock;     /* of result and report */
    kd_check_result *result;
    uint64_t reported, done;
    kd_progress *progress;
} check;

static void say(check *c, const char *sentence)
{
    if (c->reported++ < MAX_REPORTS)
        c->report(c->ctx, sentence);
}

static void bad(check *c, const char *sentence)
{
    pthread_mutex_lock(&c->lock);
    c->result->bad++;
    say(c, sentence);
    pthread_mutex_unlock(&c->lock);
}

/* ---- whole files ---- */

/* Counts what a part of the check found wrong; passes on what kept it from going on. */
static kd_status count_damage(check *c, kd_status status, const kd_err *said, kd_err *err)
{
    if (status == KD_OK)
        return KD_OK;
    if (status == KD_ESIGINT || status == KD_ESIGTERM) {
        if (err)
            *err = *said;
        return status;
    }
    bad(c, said->msg);
    return KD_OK;
}

static kd_status check_structure(check *c, kd_err *err)
{
    for (size_t i = 0; i < kd_cache_shards(c->cache); i++) {
        kd_err said;
        uint64_t bytes;
        KD_TRY(kd_io_file_size(kd_cache_shard_path(c->cache, i), &bytes, err));
        c->result->bytes += bytes;
        KD_TRY(count_damage(c, kd_cache_shard_structure(c->cache, i, &said), &said, err));
    }
    return KD_OK;
}

static void compare_hex(check *c, const char *path, const char *what, const kd_sha256 *have, const char *want, const char *advice)
{
    char hex[65];
    kd_err said;
    kd_hex(hex, have->b, sizeof have->b);
    if (strcmp(hex, want) == 0)
        return;
    kd_fail(&said, KD_EDAMAGED, "%s: %s is %s, its manifest has %s; %s", path, what, hex, want, advice);
    bad(c, said.msg);
}

static kd_status check_file(check *c, size_t i, kd_err *err)
{
    const char *path = kd_cache_shard_path(c->cache, i), *sha_hex = "", *digest_hex = "";
    const json_t *manifest = kd_cache_shard_manifest(c->cache, i);
    kd_sha256 sha, digest;
    kd_status status;
    kd_err said;
    KD_TRY(kd_json_get_string(manifest, "sha256", path, &sha_hex, err));
    KD_TRY(kd_json_get_string(json_object_get(manifest, "content"), "digest", path, &digest_hex, err));
    status = kd_sha256_file(path, &sha, &said);
    if (status == KD_OK)
        compare_hex(c, path, "the file's SHA-256", &sha, sha_hex, "its bytes have changed since it was sealed");
    KD_TRY(count_damage(c, status, &said, err));
    status = kd_cache_shard_digest(c->cache, i, &digest, &said);
    if (status == KD_OK)
        compare_hex(c, path, "the digest of its content", &digest, digest_hex, "keys or records were changed");
    return count_damage(c, status, &said, err);
}

/* ---- one image ---- */

static void check_view(check *c, worker *w, const kd_image_entry *e, uint32_t v, uint64_t *records)
{
    const kd_recipe *r = kd_cache_recipe(c->cache);
    kd_view_entry view;
    kd_record_facts facts;
    kd_err said;
    int have_view = kd_reader_view(w->reader, &e->image, v, &view, &said) == KD_OK;
    if (!have_view)
        bad(c, said.msg);
    for (int f = 0; f < KD_FEATURES; f++) {
        for (int l = 0; l < r->layers && kd_recipe_has(r, (kd_feature)f); l++) {
            ++*records;
            if (kd_reader_feature(w->reader, (kd_feature)f, &e->image, v, r->layer[l], w->values, &facts, &said) != KD_OK) {
                bad(c, said.msg);
            } else if (have_view && memcmp(facts.view_hash.b, view.view_hash.b, 16) != 0) {
                kd_fail(&said, KD_EDAMAGED, "view %u of %s: its %s record of layer %u belongs to another view (their hashes differ)", v, e->rel, kd_feature_name((kd_feature)f), r->layer[l]);
                bad(c, said.msg);
            }
        }
    }
}

/* Plays all views of an image from its file and those of their partners. In the first pass, what isn't all in place is left to the second; there, views whose partner is nowhere are counted. */
static enum place replay_image(check *c, worker *w, const kd_image_entry *e)
{
    kd_err said;
    uint64_t wrong = 0, alone = 0;
    kd_status status = kd_find_file(&w->found, c->locator, e, c->by_id, &said);
    if (status == KD_DONE)
        return NOWHERE;
    if (status == KD_OK)
        status = kd_find_decode(&w->found, kd_cache_recipe(c->cache), e, &said);
    for (uint32_t v = 0; v < e->views; v++) {
        kd_view_entry view;
        if (status == KD_OK && kd_reader_view(w->reader, &e->image, kd_image_view(e, v), &view, &said) != KD_OK)
            continue; /* counted as damage already */
        kd_status partner = status == KD_OK ? kd_find_partner(&w->found, c->cache, c->locator, &view, c->by_id, &said) : status;
        if (partner == KD_DONE && !c->by_id)
            return PARTNER_AWAY;
        alone += partner == KD_DONE;
        if (partner == KD_DONE || (partner == KD_OK && kd_find_replay(&w->found, kd_cache_recipe(c->cache), e, &view, &said) == KD_OK))
            continue;
        wrong++;
        pthread_mutex_lock(&c->lock);
        say(c, said.msg);
        pthread_mutex_unlock(&c->lock);
    }
    pthread_mutex_lock(&c->lock);
    c->result->replayed += e->views - alone;
    c->result->replay_missing += alone;
    c->result->replay_bad += wrong;
    pthread_mutex_unlock(&c->lock);
    return c->by_id ? ELSEWHERE : IN_PLACE;
}

static void step(check *c, uint64_t records)
{
    pthread_mutex_lock(&c->lock);
    c->result->records += records;
    kd_progress_update(c->progress, ++c->done, 0, NULL);
    pthread_mutex_unlock(&c->lock);
}

static void read_image(void *ctx, int worker_index, size_t i)
{
    check *c = ctx;
    const kd_image_entry *e = kd_cache_image(c->cache, i);
    uint64_t records = 0;
    if (kd_stop_requested() != KD_OK || i % c->o->parts != c->o->part - 1)
        return;
    for (uint32_t v = 0; v < e->views; v++)
        check_view(c, &c->workers[worker_index], e, kd_image_view(e, v), &records);
    step(c, records);
}

static void play_image(void *ctx, int worker_index, size_t i)
{
    check *c = ctx;
    enum place place = c->elsewhere[i];
    if (kd_stop_requested() != KD_OK || (c->by_id && place != NOWHERE && place != PARTNER_AWAY))
        return;
    enum place now = replay_image(c, &c->workers[worker_index], kd_cache_image(c->cache, i));
    c->elsewhere[i] = (uint8_t)(place == PARTNER_AWAY ? IN_PLACE : now);
    if (!c->by_id) /* the second round looks at the same images again */
        step(c, 0);
}

/* ---- all ---- */

static kd_status create_workers(check *c, int threads, kd_err *err)
{
    size_t values = kd_recipe_largest(kd_cache_recipe(c->cache));
    KD_TRY(kd_alloc_array(&c->workers, (size_t)threads, sizeof *c->workers, err));
    KD_TRY(kd_alloc_array(&c->elsewhere, kd_cache_images(c->cache), 1, err));
    for (int i = 0; i < threads; i++) {
        KD_TRY(kd_reader_create(&c->workers[i].reader, c->cache, err));
        KD_TRY(kd_alloc_array(&c->workers[i].values, values, sizeof(float), err));
    }
    return KD_OK;
}

/* After both passes: what became of each image, and what is to be said of those that can't be replayed. */
static void count_whereabouts(check *c, const char *images)
{
    for (size_t i = 0; i < kd_cache_images(c->cache); i++) {
        const kd_image_entry *e = kd_cache_image(c->cache, i);
        int64_t file = -1;
        kd_whereabouts where = KD_IN_PLACE;
        const char *name;
        char id[33];
        kd_err said;
        if (c->elsewhere[i] == ELSEWHERE)
            where = KD_MOVED;
        else if (c->elsewhere[i] == NOWHERE)
            where = kd_locator_find(c->locator, &e->image, e->rel, e->file_size, &file) == KD_MISSING ? KD_MISSING : KD_CHANGED;
        kd_search_count(&c->result->search, where, e->rel); /* outlives the locator */
        name = kd_locator_show(c->locator, file, e->rel);
        if (where != KD_CHANGED && where != KD_MISSING)
            continue;
        c->result->replay_missing += e->views;
        kd_hex(id, e->image.b, sizeof e->image.b);
        if (where == KD_CHANGED)
            kd_fail(&said, KD_EMISMATCH, "%s: changed after the cache was made: it isn't the file with the id %s any more, and no other file under %s is", name, id, images);
        else
            kd_fail(&said, KD_EMISMATCH, "%s: missing: nothing under %s has this path, or the id %s", name, images, id);
        say(c, said.msg);
    }
}

/* One pass over the images on all threads. */
static kd_status pass(check *c, const char *title, int threads, void (*fn)(void *ctx, int worker, size_t i), kd_err *err)
{
    size_t n = kd_cache_images(c->cache);
    c->done = 0;
    c->progress = title ? kd_progress_create(title, "image", fn == read_image ? n / c->o->parts : n, 0, 0) : NULL;
    kd_parallel_for(threads, n, fn, c);
    kd_progress_finish(c->progress);
    c->progress = NULL;
    return kd_stop_requested() == KD_OK ? KD_OK : kd_fail(err, kd_stop_requested(), "interrupted after %llu of %zu images", (unsigned long long)c->done, n);
}

static kd_status check_data(check *c, int threads, kd_err *err)
{
    for (size_t i = 0; i < kd_cache_shards(c->cache) && c->o->parts == 1; i++)
        KD_TRY(check_file(c, i, err));
    return pass(c, "checking", threads, read_image, err);
}

static kd_status check_replay(check *c, int threads, kd_err *err)
{
    size_t n = kd_cache_images(c->cache), missing = 0;
    kd_err said;
    KD_TRY(kd_locator_create(&c->locator, c->o->images, c->o->list, err));
    c->result->decoder_differs = kd_recipe_check_decoder(kd_cache_recipe(c->cache), &said) != KD_OK;
    if (c->result->decoder_differs)
        say(c, said.msg);
    KD_TRY(pass(c, "replaying", threads, play_image, err));
    for (size_t i = 0; i < n; i++)
        missing += c->elsewhere[i] == NOWHERE || c->elsewhere[i] == PARTNER_AWAY;
    if (missing) {
        kd_log(KD_LOG_INFO, "%zu images, or images that they are mixed with, are not at their recorded paths: every file under %s is hashed to find them", missing, c->o->images);
        KD_TRY(kd_locator_hash_all(c->locator, threads, NULL, err));
        c->by_id = 1;
        KD_TRY(pass(c, NULL, threads, play_image, err));
    }
    count_whereabouts(c, c->o->images);
    return KD_OK;
}

static kd_status run(check *c, int threads, kd_err *err)
{
    double begin = kd_now();
    KD_TRY(create_workers(c, threads, err));
    KD_TRY(check_structure(c, err));
    c->result->structure_s += kd_now() - begin;
    begin = kd_now();
    if (c->o->read_data) {
        KD_TRY(check_data(c, threads, err));
        c->result->data_s = kd_now() - begin;
    }
    begin = kd_now();
    if (c->o->images) {
        KD_TRY(check_replay(c, threads, err));
        c->result->replay_s = kd_now() - begin;
    }
    return KD_OK;
}

kd_status kd_cache_check(kd_cache *cache, const kd_check_options *options, double opened_s, kd_check_report report, void *ctx, kd_check_result *result, kd_err *err)
{
    check c = {.cache = cache, .o = options, .report = report, .ctx = ctx, .result = result};
    int threads = options->threads < 1 ? kd_cpu_count() : options->threads;
    kd_status status;
    KD_ASSERT(options->parts >= 1 && options->part >= 1 && options->part <= options->parts);
    memset(result, 0, sizeof *result);
    result->images = kd_cache_images(cache);
    result->views = kd_cache_view_total(cache);
    result->structure_s = opened_s;
    pthread_mutex_init(&c.lock, NULL);
    status = run(&c, threads, err);
    for (int i = 0; c.workers && i < threads; i++) {
        kd_reader_destroy(c.workers[i].reader);
        kd_found_free(&c.workers[i].found);
        kd_free(c.workers[i].values);
    }
    kd_locator_destroy(c.locator);
    kd_free(c.workers);
    kd_free(c.elsewhere);
    pthread_mutex_destroy(&c.lock);
    return status;
}

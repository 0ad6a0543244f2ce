#include "cache/repair.h"

#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cache/entry.h"
#include "cache/manifest.h"
#include "cache/parent.h"
#include "cache/place.h"
#include "cache/salvage.h"
#include "cache/store_internal.h"
#include "cache/validate.h"
#include "common/base/io.h"
#include "common/base/mem.h"
#include "common/base/progress.h"
#include "common/base/threads.h"

enum { MAX_REPORTS = 100, MAX_META_BYTES = 16 << 20 };

/* Something that looks like an entry. Sorted, those of an image follow each other: its own entry, then for each view the view's, then its records. */
typedef struct item {
    uint8_t key[KD_KEY_BYTES]; /* padded with zeros */
    uint8_t key_size, db;
    uint32_t file;
    uint64_t at, size;
} item;

typedef struct source {
    char *path;
    kd_manifest manifest;   /* json NULL: can't be read */
    kd_salvage file;
    uint64_t images;        /* that it had, as its manifest or its own count says; 0: unknown */
    uint64_t entries;       /* of images that are sound */
    int has_recipe;         /* in itself */
    int bad;                /* as a whole: manifest, pages or SHA-256 */
} source;

/* Some views of an image that can't be kept. */
typedef struct span {
    uint64_t first, end;
} span;

typedef struct repair {
    const kd_repair_job *job;
    kd_repair_result *result;
    source *source;
    size_t sources, source_cap;
    uint32_t scanning;      /* the source that is being looked at */
    kd_recipe recipe;
    const char *recipe_of;  /* the file that it was found in; NULL: none yet */
    item *item;
    size_t items, item_cap;
    kd_record_buf *buf;     /* [records of a view] */
    kd_record_ref *ref;
    kd_record_buf entry;    /* value of an image or view */
    float *values;
    kd_record_scratch scratch;
    kd_writer *writer;
    kd_replace *list;
    uint64_t reported, known; /* known: images without a sound entry of which something is left */
    kd_progress *progress;
    /* of the image at hand */
    char rel[KD_MAX_REL + 1];
    span *span;
    size_t spans, span_cap;
    uint32_t *sound;        /* views, ascending */
    size_t sounds, sound_cap;
} repair;

static void say(repair *r, const char *sentence)
{
    if (r->reported++ < MAX_REPORTS)
        r->job->report(r->job->ctx, sentence);
}

/* Room for one more element of `size` bytes. */
static kd_status grow(void **p, size_t *cap, size_t count, size_t size, kd_err *err)
{
    size_t more = *cap ? 2 * *cap : 64;
    void *bigger;
    if (count < *cap)
        return KD_OK;
    bigger = kd_realloc(*p, more * size);
    if (!bigger)
        return kd_fail(err, KD_EFAIL, "out of memory: no room for %zu entries of a damaged cache", more);
    *p = bigger;
    *cap = more;
    return KD_OK;
}

static kd_status reserve(kd_record_buf *b, size_t size, kd_err *err)
{
    if (size <= b->cap)
        return KD_OK;
    kd_record_buf_free(b);
    b->bytes = kd_malloc(size);
    if (!b->bytes)
        return kd_fail(err, KD_EFAIL, "out of memory: no room for a value of %zu bytes", size);
    b->cap = size;
    return KD_OK;
}

/* ---- the files ---- */

static kd_status add_source(repair *r, const char *folder, const char *name, kd_err *err)
{
    size_t n = strlen(folder);
    source s = {.path = folder[0] ? kd_asprintf("%s%s%s", folder, folder[n - 1] == '/' ? "" : "/", name) : kd_strdup(name)};
    if (!s.path)
        return kd_fail(err, KD_EFAIL, "%s: out of memory while listing shards", name);
    kd_status status = grow((void **)&r->source, &r->source_cap, r->sources, sizeof *r->source, err);
    if (status != KD_OK) {
        kd_free(s.path);
        return status;
    }
    r->source[r->sources++] = s;
    return KD_OK;
}

static int is_shard(const struct dirent *e)
{
    size_t n = strlen(e->d_name);
    return n > 4 && e->d_name[0] != '.' && strcmp(e->d_name + n - 4, ".kdc") == 0;
}

static int by_bytes(const struct dirent **a, const struct dirent **b)
{
    return strcmp((*a)->d_name, (*b)->d_name);
}

static kd_status list_folder(repair *r, const char *folder, kd_err *err)
{
    struct dirent **entry = NULL;
    kd_status status = KD_OK;
    int n = scandir(folder, &entry, is_shard, by_bytes);
    if (n < 0)
        return kd_fail_errno(err, KD_ENOTFOUND, "%s: can't be listed", folder);
    for (int i = 0; i < n; i++) {
        if (status == KD_OK)
            status = add_source(r, folder, entry[i]->d_name, err);
        free(entry[i]);
    }
    free(entry);
    return n > 0 ? status : kd_fail(err, KD_ENOTFOUND, "%s: holds no sealed cache (*.kdc)", folder);
}

static kd_status list_sources(repair *r, kd_err *err)
{
    for (size_t i = 0; i < r->job->count; i++) {
        if (kd_io_is_dir(r->job->paths[i]))
            KD_TRY(list_folder(r, r->job->paths[i], err));
        else if (kd_io_exists(r->job->paths[i]))
            KD_TRY(add_source(r, "", r->job->paths[i], err));
        else
            return kd_fail(err, KD_ENOTFOUND, "%s: no such file", r->job->paths[i]);
    }
    r->result->files = r->sources;
    return KD_OK;
}

/* ---- the recipe ---- */

/* Takes over recipe. The first one holds; others must be equal. */
static kd_status offer_recipe(repair *r, kd_recipe *recipe, const char *file, kd_err *err)
{
    kd_status status = KD_OK;
    if (!r->recipe_of) {
        r->recipe = *recipe;
        r->recipe_of = file;
        return KD_OK;
    }
    status = kd_recipe_compare(&r->recipe, r->recipe_of, recipe, file, err);
    kd_recipe_free(recipe);
    return status;
}

static void read_manifest(repair *r, source *s)
{
    kd_err said;
    if (kd_manifest_read(&s->manifest, s->path, &said) == KD_OK) {
        s->images = s->manifest.images;
        return;
    }
    say(r, said.msg);
    s->bad = 1;
}

/* What the file says of itself comes first: a manifest of another file is as good as none. */
static kd_status take_recipe(repair *r, source *s, kd_recipe *recipe, kd_err *err)
{
    kd_err said;
    s->has_recipe = 1;
    if (s->manifest.json && memcmp(s->manifest.identity.b, recipe->sha.b, sizeof recipe->sha.b) != 0) {
        kd_fail(&said, KD_EDAMAGED, "%s: its manifest belongs to a cache of another recipe and isn't used", s->path);
        say(r, said.msg);
        kd_manifest_free(&s->manifest);
        s->images = 0;
        s->bad = 1;
    }
    return offer_recipe(r, recipe, s->path, err);
}

static kd_status recipe_of_manifest(repair *r, source *s, kd_err *err)
{
    kd_recipe recipe;
    kd_err said;
    if (s->has_recipe || !s->manifest.json || kd_recipe_from_json(&recipe, json_incref(json_object_get(s->manifest.json, "recipe")), s->path, &said) != KD_OK)
        return KD_OK;
    return offer_recipe(r, &recipe, s->path, err);
}

/* An entry of meta that may help: the recipe, or the counts where there is no manifest. */
static kd_status take_meta(repair *r, const kd_salvaged *found, kd_err *err)
{
    source *s = &r->source[r->scanning];
    const char *key = found->key.size == strlen(KD_META_RECIPE) && memcmp(found->key.data, KD_META_RECIPE, found->key.size) == 0 ? KD_META_RECIPE : KD_META_CONTENT;
    kd_bytes value = {NULL, found->size}, payload;
    json_t *json = NULL;
    kd_recipe recipe;
    kd_err said;
    if (found->key.size != strlen(key) || memcmp(found->key.data, key, found->key.size) != 0 || found->size > MAX_META_BYTES)
        return KD_OK;
    KD_TRY(reserve(&r->entry, found->size, err));
    value.data = r->entry.bytes;
    if (kd_salvage_read(&s->file, found->at, found->size, r->entry.bytes, &said) != KD_OK || kd_meta_decode(&payload, key, value, s->path, &said) != KD_OK ||
        kd_json_parse((const char *)payload.data, payload.size, s->path, &json, &said) != KD_OK)
        return KD_OK;
    if (strcmp(key, KD_META_CONTENT) == 0) {
        if (s->images == 0)
            s->images = (uint64_t)json_integer_value(json_object_get(json, "images"));
        json_decref(json);
        return KD_OK;
    }
    return kd_recipe_from_json(&recipe, json, s->path, &said) == KD_OK ? take_recipe(r, s, &recipe, err) : KD_OK;
}

static kd_status take(void *ctx, const kd_salvaged *found, kd_err *err)
{
    repair *r = ctx;
    item *i;
    if (found->db == KD_DB_META)
        return take_meta(r, found, err);
    KD_TRY(grow((void **)&r->item, &r->item_cap, r->items, sizeof *r->item, err));
    i = &r->item[r->items++];
    *i = (item){.key_size = (uint8_t)found->key.size, .db = (uint8_t)found->db, .file = r->scanning, .at = found->at, .size = found->size};
    memcpy(i->key, found->key.data, found->key.size);
    return KD_OK;
}

static int compare_items(const void *a, const void *b)
{
    const item *x = a, *y = b;
    int order = memcmp(x->key, y->key, KD_KEY_BYTES);
    if (order)
        return order;
    if (x->key_size != y->key_size)
        return x->key_size < y->key_size ? -1 : 1;
    if (x->db != y->db)
        return x->db < y->db ? -1 : 1;
    if (x->file != y->file)
        return x->file < y->file ? -1 : 1;
    if (x->at != y->at)
        return x->at < y->at ? -1 : 1;
    return x->size < y->size ? -1 : x->size > y->size;
}

/* Equal ones follow each other: leaf pages that LMDB left behind lead to the same large value. */
static void drop_repetitions(repair *r)
{
    size_t n = 0;
    for (size_t i = 0; i < r->items; i++) {
        if (n == 0 || compare_items(&r->item[n - 1], &r->item[i]) != 0)
            r->item[n++] = r->item[i];
    }
    r->items = n;
}

/* What isn't an entry but must hold too: pages, and in the end every byte. */
static void check_file(repair *r, source *s)
{
    kd_lmdb_facts facts;
    kd_sha256 sha;
    kd_err said;
    kd_status status = kd_lmdb_validate(s->path, 1, &facts, &said);
    if (status == KD_OK && s->manifest.json) {
        status = kd_sha256_file(s->path, &sha, &said);
        if (status == KD_OK && memcmp(sha.b, s->manifest.file_sha.b, sizeof sha.b) != 0)
            status = kd_fail(&said, KD_EDAMAGED, "%s: the file's SHA-256 isn't the one in its manifest: bytes have changed since it was written", s->path);
    }
    if (status == KD_OK)
        return;
    say(r, said.msg);
    s->bad = 1;
}

static kd_status read_sources(repair *r, kd_err *err)
{
    for (size_t i = 0; i < r->sources; i++) {
        source *s = &r->source[i];
        r->scanning = (uint32_t)i;
        read_manifest(r, s);
        check_file(r, s);
        KD_TRY(kd_salvage_open(&s->file, s->path, err));
        KD_TRY(kd_salvage_scan(&s->file, take, r, err));
        KD_TRY(recipe_of_manifest(r, s, err));
        r->result->bad_files += (size_t)s->bad;
    }
    if (!r->recipe_of)
        return kd_fail(err, KD_EDAMAGED, "%s: its recipe can't be read, neither in the file nor in a manifest beside it, and nothing can be believed without it; copy both files again from where they "
                       "came, or make the cache again with kd-precompute", r->source[0].path);
    if (r->items > 0)
        qsort(r->item, r->items, sizeof *r->item, compare_items);
    drop_repetitions(r);
    return KD_OK;
}

/* ---- the new shard ---- */

static kd_status provenance(const repair *r, json_t **out, kd_err *err)
{
    const json_t **manifests;
    json_t *names;
    kd_status status;
    KD_TRY(kd_alloc_array(&manifests, r->sources, sizeof *manifests, err));
    for (size_t i = 0; i < r->sources; i++)
        manifests[i] = r->source[i].manifest.json;
    status = kd_parent_provenance(out, manifests, r->sources, &r->recipe.sha, r->sources == 1 && manifests[0] ? &r->source[0].manifest.digest : NULL, r->job->command, err);
    kd_free(manifests);
    KD_TRY(status);
    names = json_array();
    for (size_t i = 0; i < r->sources; i++) {
        const char *slash = strrchr(r->source[i].path, '/'), *name = slash ? slash + 1 : r->source[i].path;
        json_array_append_new(names, kd_json_bytes(name, strlen(name)));
    }
    json_object_set_new(*out, "repaired", names);
    return KD_OK;
}

static kd_status already_there(const repair *r, kd_err *err)
{
    return kd_fail(err, KD_EUSAGE, "%s: is there already; remove it, or give another name with --out", r->job->out);
}

static kd_status check_space(const repair *r, kd_err *err)
{
    uint64_t need = 0;
    for (size_t i = 0; i < r->sources; i++)
        need += 2 * r->source[i].file.map.size; /* the partial file and the sealed copy */
    return kd_place_check_room(r->job->out, need, "", err);
}

/* Begun with the first view that it is to hold: where nothing can be saved, nothing is left behind. */
static kd_status open_writer(repair *r, kd_err *err)
{
    json_t *p;
    kd_status status;
    KD_TRY(provenance(r, &p, err));
    status = kd_writer_open(&r->writer, r->job->out, &r->recipe, p, 0, err);
    json_decref(p);
    return status == KD_DONE ? already_there(r, err) : status;
}

/* ---- one image ---- */

/* Above every size that a sound value of the database can have (zstd adds less than a hundredth to what it can't compress), so that a damaged size asks for no memory. */
static uint64_t size_limit(const repair *r, const item *i)
{
    if (i->db < KD_DB_FEATURES)
        return KD_IMAGE_VALUE_HEAD + KD_MAX_REL + 8 * (uint64_t)UINT16_MAX;
    return 2 * kd_stored_bytes(KD_BF16, 1, 2 * kd_recipe_largest(&r->recipe)) + 65536;
}

/* KD_EDAMAGED, said by nobody: another copy may be sound. */
static kd_status read_item(const repair *r, const item *i, kd_record_buf *out, kd_err *err)
{
    if (i->size > size_limit(r, i))
        return kd_fail(err, KD_EDAMAGED, "%s: an entry of %llu bytes", r->source[i->file].path, (unsigned long long)i->size);
    KD_TRY(reserve(out, (size_t)i->size, err));
    out->size = (size_t)i->size;
    return kd_salvage_read(&r->source[i->file].file, i->at, out->size, out->bytes, err);
}

static kd_status add_span(repair *r, uint64_t first, uint64_t end, kd_err *err)
{
    KD_TRY(grow((void **)&r->span, &r->span_cap, r->spans, sizeof *r->span, err));
    r->span[r->spans++] = (span){first, end};
    return KD_OK;
}

/* The image's entries, one in each file: the first sound one counts, all say which views there were. e->rel is r->rel. *has: there is one. */
static kd_status read_image(repair *r, const item *first, const item *end, kd_image_entry *e, int *has, kd_err *err)
{
    uint32_t counted = UINT32_MAX;
    *has = 0;
    for (const item *i = first; i < end && i->key_size == KD_IMAGE_KEY_BYTES; i++) {
        kd_image_entry one;
        kd_image_tail tail;
        kd_err said;
        kd_status status = read_item(r, i, &r->entry, &said);
        if (status == KD_OK)
            status = kd_image_value_decode(&one, &tail, (kd_bytes){i->key, i->key_size}, (kd_bytes){r->entry.bytes, r->entry.size}, r->recipe.sha.b, r->source[i->file].path, &said);
        if (status == KD_EFAIL)
            return kd_fail(err, status, "%s", said.msg);
        if (status != KD_OK)
            continue;
        for (uint32_t k = 0; k < one.runs; k++) {
            kd_view_run run = kd_image_run(&tail, k);
            KD_TRY(add_span(r, run.first, (uint64_t)run.first + run.count, err));
        }
        if (i->file != counted)
            r->source[counted = i->file].entries++;
        if (*has)
            continue;
        *has = 1;
        *e = one;
        memcpy(r->rel, one.rel, tail.rel_size);
        r->rel[tail.rel_size] = 0;
        e->rel = r->rel;
        e->runs = e->views = 0;
    }
    return KD_OK;
}

/* KD_DONE: none of the view's entries is sound. */
static kd_status read_view(repair *r, const item *first, const item *end, kd_view_entry *v, kd_err *err)
{
    for (const item *i = first; i < end && i->key_size == KD_VIEW_KEY_BYTES; i++) {
        kd_status status = read_item(r, i, &r->entry, err);
        if (status == KD_OK)
            status = kd_view_value_decode(v, (kd_bytes){i->key, i->key_size}, (kd_bytes){r->entry.bytes, r->entry.size}, r->recipe.sha.b, r->source[i->file].path, err);
        if (status == KD_OK || status == KD_EFAIL)
            return status;
    }
    return KD_DONE;
}

/* The record of a view, from the first place where it is sound. KD_DONE: from none. */
static kd_status read_record(repair *r, const item *first, const item *end, const kd_record_head *want, kd_record_buf *out, kd_err *err)
{
    uint8_t key[KD_KEY_BYTES];
    kd_key_encode(key, &want->key);
    for (const item *i = first; i < end; i++) {
        kd_record_head head = *want;
        kd_status status;
        if (i->db != kd_feature_db(want->feature) || memcmp(i->key, key, sizeof key) != 0)
            continue;
        status = read_item(r, i, out, err);
        if (status == KD_OK)
            status = kd_record_decode(r->values, out->bytes, out->size, &head, &r->scratch, err);
        if (status == KD_OK && memcmp(head.view_hash.b, want->view_hash.b, sizeof head.view_hash.b) == 0)
            return KD_OK;
        if (status == KD_EFAIL)
            return status;
    }
    return KD_DONE;
}

/* Whether something of the view proves that it was there: its entry (as read_view found), or a record. */
static int is_proven(repair *r, const item *first, const item *end, const kd_hash128 *image, uint32_t number)
{
    for (const item *i = first; i < end; i++) {
        kd_key k;
        kd_record_head head;
        kd_err said;
        if (i->key_size != KD_KEY_BYTES)
            continue;
        kd_key_decode(&k, i->key);
        head = kd_recipe_head(&r->recipe, (kd_feature)(i->db - KD_DB_FEATURES), image, number, k.layer);
        if (read_item(r, i, &r->entry, &said) == KD_OK && kd_record_check(r->entry.bytes, r->entry.size, &head, &said) == KD_OK)
            return 1;
    }
    return 0;
}

/* All that belongs to a view, into r->ref. *sound, else *proven. */
static kd_status read_all(repair *r, const item *first, const item *end, const kd_hash128 *image, uint32_t number, kd_view_entry *v, int *sound, int *proven, kd_err *err)
{
    kd_status status = read_view(r, first, end, v, err);
    size_t n = 0;
    *proven = status == KD_OK;
    for (int f = 0; f < KD_FEATURES && status == KD_OK; f++) {
        for (int l = 0; l < r->recipe.layers && kd_recipe_has(&r->recipe, (kd_feature)f) && status == KD_OK; l++, n++) {
            kd_record_head want = kd_recipe_head(&r->recipe, (kd_feature)f, image, number, r->recipe.layer[l]);
            want.view_hash = v->view_hash;
            status = read_record(r, first, end, &want, &r->buf[n], err);
            r->ref[n] = (kd_record_ref){(kd_feature)f, r->recipe.layer[l], r->buf[n].bytes, r->buf[n].size};
        }
    }
    *sound = status == KD_OK;
    if (!*proven)
        *proven = is_proven(r, first, end, image, number);
    return status == KD_DONE ? KD_OK : status;
}

static uint32_t view_of(const item *i)
{
    kd_key k;
    kd_key_decode(&k, i->key);
    return k.view;
}

static int compare_spans(const void *a, const void *b)
{
    const span *x = a, *y = b;
    return x->first < y->first ? -1 : x->first > y->first;
}

/* Paths are the rest of a line: what a line can't hold is given by its hash, as hidden paths are. */
static const char *path_text(const repair *r, int has, char hidden[48])
{
    size_t n = strlen(r->rel);
    kd_hash128 h;
    if (!has)
        return "?";
    if (n > 0 && !strpbrk(r->rel, "\n\r") && !strchr(" \t", r->rel[0]) && !strchr(" \t", r->rel[n - 1]))
        return r->rel;
    h = kd_xxh128(r->rel, n);
    memcpy(hidden, "xxh128:", 7);
    kd_hex(hidden + 7, h.b, sizeof h.b);
    return hidden;
}

static kd_status list_lost(repair *r, const kd_hash128 *image, int has, uint64_t first, uint64_t end, kd_err *err)
{
    char id[33], hidden[48], views[48], sentence[KD_MAX_REL + 200];
    const char *path = path_text(r, has, hidden);
    int n;
    kd_hex(id, image->b, sizeof image->b);
    snprintf(views, sizeof views, end - first > 1 ? "%llu-%llu" : "%llu", (unsigned long long)first, (unsigned long long)(end - 1));
    r->result->lost_views += end - first;
    snprintf(sentence, sizeof sentence, "lost: view %s of image %s (%s)", views, id, has ? r->rel : "its entry is lost, and its path with it");
    say(r, sentence);
    if (!r->list)
        return KD_OK;
    n = snprintf(sentence, sizeof sentence, "%s %s %s\n", id, views, path);
    return kd_io_replace_write(r->list, sentence, (size_t)n, err);
}

/* Sorted, and spans that meet or overlap made one. */
static void join_spans(repair *r)
{
    size_t n = 0;
    if (r->spans > 0)
        qsort(r->span, r->spans, sizeof *r->span, compare_spans);
    for (size_t i = 0; i < r->spans; i++) {
        if (n > 0 && r->span[i].first <= r->span[n - 1].end)
            r->span[n - 1].end = r->span[i].end > r->span[n - 1].end ? r->span[i].end : r->span[n - 1].end;
        else
            r->span[n++] = r->span[i];
    }
    r->spans = n;
}

/* The views that there were, without those that are sound. */
static kd_status list_image(repair *r, const kd_hash128 *image, int has, kd_err *err)
{
    size_t s = 0;
    join_spans(r);
    for (size_t i = 0; i < r->spans; i++) {
        uint64_t from = r->span[i].first, end = r->span[i].end;
        while (from < end) {
            uint64_t stop;
            while (s < r->sounds && r->sound[s] < from)
                s++;
            stop = s < r->sounds && r->sound[s] < end ? r->sound[s] : end;
            if (stop > from)
                KD_TRY(list_lost(r, image, has, from, stop, err));
            from = stop + 1;
        }
    }
    return KD_OK;
}

static kd_status keep_view(repair *r, const kd_image_entry *e, const kd_view_entry *v, kd_err *err)
{
    KD_TRY(grow((void **)&r->sound, &r->sound_cap, r->sounds, sizeof *r->sound, err));
    r->sound[r->sounds++] = v->view;
    r->result->views++;
    if (!r->job->out)
        return KD_OK;
    if (!r->writer)
        KD_TRY(open_writer(r, err));
    if (kd_writer_has_view(r->writer, &e->image, v->view))
        return KD_OK;
    return kd_writer_add_view(r->writer, e, v, r->ref, (size_t)kd_recipe_records(&r->recipe), err);
}

/* Items of one image. */
static kd_status repair_image(repair *r, const item *first, const item *end, kd_err *err)
{
    kd_image_entry e;
    kd_hash128 image;
    const item *i = first, *next;
    int has, sound, proven;
    memcpy(image.b, first->key, sizeof image.b);
    r->spans = r->sounds = 0;
    KD_TRY(read_image(r, first, end, &e, &has, err));
    while (i < end && i->key_size == KD_IMAGE_KEY_BYTES)
        i++;
    for (; i < end; i = next) {
        uint32_t number = view_of(i);
        kd_view_entry v;
        for (next = i + 1; next < end && view_of(next) == number; next++)
            ;
        KD_TRY(read_all(r, i, next, &image, number, &v, &sound, &proven, err));
        if (sound && has)
            KD_TRY(keep_view(r, &e, &v, err));
        else if (proven)
            KD_TRY(add_span(r, number, (uint64_t)number + 1, err));
    }
    r->result->images += r->sounds > 0;
    r->known += !has && r->spans > 0;
    return list_image(r, &image, has, err);
}

static kd_status repair_images(repair *r, kd_err *err)
{
    size_t next;
    for (size_t i = 0; i < r->items; i = next) {
        for (next = i + 1; next < r->items && memcmp(r->item[next].key, r->item[i].key, KD_IMAGE_KEY_BYTES) == 0; next++)
            ;
        if (kd_stop_requested() != KD_OK) {
            if (r->writer)
                KD_TRY(kd_writer_commit(r->writer, err));
            return kd_fail(err, kd_stop_requested(), "interrupted after %llu views; run the same command again to go on", (unsigned long long)r->result->views);
        }
        KD_TRY(repair_image(r, &r->item[i], &r->item[next], err));
        kd_progress_update(r->progress, next, 0, NULL);
    }
    for (size_t i = 0; i < r->sources; i++) {
        const source *s = &r->source[i];
        r->result->lost_entries += s->images > s->entries ? s->images - s->entries : 0;
    }
    r->result->lost_images = r->result->lost_entries > r->known ? r->result->lost_entries - r->known : 0;
    return KD_OK;
}

static kd_status open_list(repair *r, kd_err *err)
{
    static const char head[] = "# views that kd-cache repair could not save: image id, views, path; kd-precompute --fill computes them\n";
    if (kd_io_exists(r->job->out))
        return already_there(r, err);
    KD_TRY(check_space(r, err));
    snprintf(r->result->missing, sizeof r->result->missing, "%s.missing.txt", r->job->out);
    KD_TRY(kd_io_replace_begin(&r->list, r->result->missing, err));
    return kd_io_replace_write(r->list, head, sizeof head - 1, err);
}

/* The list is there before the shard is: who has the shard has both. */
static kd_status finish_out(repair *r, kd_err *err)
{
    kd_replace *list = r->list;
    r->list = NULL;
    if (r->result->views == 0) {
        kd_io_replace_abort(list);
        r->result->missing[0] = 0;
        return kd_fail(err, KD_EDAMAGED, "%s: no view in it is sound; nothing was written: make the cache again with kd-precompute", r->source[0].path);
    }
    if (r->result->lost_views > 0) {
        KD_TRY(kd_io_replace_commit(list, err));
    } else {
        kd_io_replace_abort(list);
        unlink(r->result->missing); /* of an earlier repair of this name */
        r->result->missing[0] = 0;
    }
    return kd_writer_seal(r->writer, err);
}

static kd_status make_buffers(repair *r, kd_err *err)
{
    size_t records = (size_t)kd_recipe_records(&r->recipe);
    KD_TRY(kd_alloc_array(&r->buf, records, sizeof *r->buf, err));
    KD_TRY(kd_alloc_array(&r->ref, records, sizeof *r->ref, err));
    return kd_alloc_array(&r->values, kd_recipe_largest(&r->recipe), sizeof *r->values, err);
}

static kd_status run(repair *r, kd_err *err)
{
    if (r->job->out)
        KD_TRY(kd_place_check(r->job->out, r->job->force, err));
    KD_TRY(list_sources(r, err));
    KD_TRY(read_sources(r, err));
    KD_TRY(make_buffers(r, err));
    if (r->job->out)
        KD_TRY(open_list(r, err));
    r->progress = kd_progress_create(r->job->out ? "repairing" : "checking", "record", r->items, 0, 0);
    KD_TRY(repair_images(r, err));
    return r->job->out ? finish_out(r, err) : KD_OK;
}

static void repair_free(repair *r)
{
    kd_progress_finish(r->progress);
    kd_io_replace_abort(r->list);
    for (size_t i = 0; i < r->sources; i++) {
        kd_salvage_close(&r->source[i].file);
        kd_manifest_free(&r->source[i].manifest);
        kd_free(r->source[i].path);
    }
    for (int i = 0; r->buf && i < kd_recipe_records(&r->recipe); i++)
        kd_record_buf_free(&r->buf[i]);
    kd_record_buf_free(&r->entry);
    kd_record_scratch_free(&r->scratch);
    kd_writer_close(r->writer);
    kd_recipe_free(&r->recipe);
    kd_free(r->source);
    kd_free(r->item);
    kd_free(r->buf);
    kd_free(r->ref);
    kd_free(r->values);
    kd_free(r->span);
    kd_free(r->sound);
}

kd_status kd_cache_repair(const kd_repair_job *job, kd_repair_result *result, kd_err *err)
{
    repair *r = kd_calloc(1, sizeof *r);
    kd_status status;
    memset(result, 0, sizeof *result);
    if (!r)
        return kd_fail(err, KD_EFAIL, "out of memory while repairing a cache");
    r->job = job;
    r->result = result;
    status = run(r, err);
    repair_free(r);
    kd_free(r);
    return status;
}

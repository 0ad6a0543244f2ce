#include "cache/shard_writer.h"

#include <dirent.h>
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cache/lock.h"
#include "cache/manifest.h"
#include "cache/shard_move.h"
#include "cache/view_set.h"
#include "common/base/io.h"
#include "common/base/log.h"
#include "common/base/mem.h"

/* Names are sorted as text, so numbers have five digits. */
enum { MAX_SHARDS = 100000, MAX_PARTS = 99999, NAME_CAP = 64 };

struct kd_shard_writer {
    int folder;
    char *dest, *work;       /* folders: where shards are kept, and where they are written (the same without a stage); "" for the current one */
    int staged, made_dest;
    uint32_t part, parts;    /* parts 0: not divided */
    char prefix[NAME_CAP];   /* of this writer's shards: shard, or part-00003-of-00008 */
    char *file;              /* name of the only file; NULL in a folder */
    uint64_t shard_size, expected;
    kd_recipe recipe;
    json_t *provenance;
    kd_lock *lock;
    kd_view_set sealed;      /* views in sealed shards */
    kd_shard_totals totals;  /* without the open shard */
    kd_writer *current;      /* NULL: begun with the next view */
    char *name;              /* of its file */
    int failed;
};

int kd_shard_is_folder(const char *path)
{
    size_t n = strlen(path);
    return kd_io_is_dir(path) || (n > 0 && path[n - 1] == '/') || n < 5 || strcmp(path + n - 4, ".kdc") != 0;
}

static char *join(const char *folder, const char *name)
{
    size_t n = strlen(folder);
    return kd_asprintf("%s%s%s", folder, n > 0 && folder[n - 1] != '/' ? "/" : "", name);
}

static kd_status no_memory(const kd_shard_writer *w, kd_err *err)
{
    return kd_fail(err, KD_EFAIL, "%s: out of memory while opening shards", w->dest ? w->dest : "the cache");
}

/* ---- names ---- */

/* Number of this writer's shard file name ("shard-00007.kdc" + end), or -1: another's. */
static int own_number(const kd_shard_writer *w, const char *name, const char *end)
{
    size_t n = strlen(w->prefix);
    int number, length = 0;
    if (strncmp(name, w->prefix, n) != 0 || sscanf(name + n, "-%5d.kdc%n", &number, &length) != 1 || length != 10 || number < 0)
        return -1;
    return strcmp(name + n + length, end) == 0 ? number : -1;
}

/* A shard of another part of the same array. */
static int of_other_part(const kd_shard_writer *w, const char *name)
{
    unsigned part, parts, number;
    int length = 0;
    return w->parts > 0 && sscanf(name, "part-%5u-of-%5u-%5u.kdc%n", &part, &parts, &number, &length) == 3 && length > 0 && name[length] == 0 && parts == w->parts && part != w->part;
}

static int by_bytes(const struct dirent **a, const struct dirent **b)
{
    return strcmp((*a)->d_name, (*b)->d_name);
}

typedef kd_status (*visit_fn)(kd_shard_writer *w, const char *name, kd_err *err);

/* visit for every name in a folder, sorted. */
static kd_status each_name(kd_shard_writer *w, const char *folder, visit_fn visit, kd_err *err)
{
    struct dirent **entry = NULL;
    kd_status status = KD_OK;
    int n = scandir(folder[0] ? folder : ".", &entry, NULL, by_bytes);
    if (n < 0)
        return kd_fail_errno(err, KD_EFAIL, "%s: can't be listed", folder);
    for (int i = 0; i < n; i++) {
        if (status == KD_OK)
            status = visit(w, entry[i]->d_name, err);
        free(entry[i]);
    }
    free(entry);
    return status;
}

/* ---- sealed shards ---- */

static kd_status add_views(kd_shard_writer *w, const kd_cache *c, kd_err *err)
{
    for (size_t i = 0; i < kd_cache_images(c); i++) {
        const kd_image_entry *e = kd_cache_image(c, i);
        int added;
        for (uint32_t k = 0; k < e->views; k++) {
            KD_TRY(kd_view_set_add(&w->sealed, &e->image, kd_image_view(e, k), &added, err));
            w->totals.views += (uint64_t)added;
        }
    }
    return KD_OK;
}

static kd_status check_recipe(const kd_shard_writer *w, const kd_cache *c, const char *path, kd_err *err)
{
    return kd_recipe_compare(kd_cache_recipe(c), path, &w->recipe, "this run", err);
}

/* Its views count as stored from now on. */
static kd_status take_sealed(kd_shard_writer *w, const char *path, kd_err *err)
{
    uint64_t size;
    kd_cache *c;
    kd_status status;
    KD_TRY(kd_io_file_size(path, &size, err));
    KD_TRY(kd_cache_open(&c, &path, 1, err));
    status = check_recipe(w, c, path, err);
    if (status == KD_OK)
        status = add_views(w, c, err);
    kd_cache_close(c);
    w->totals.bytes += size;
    w->totals.shards++;
    return status;
}

/* A shard of another part, which may be arriving just now: only its recipe matters, and only if it is another one. */
static kd_status check_other(const kd_shard_writer *w, const char *path, kd_err *err)
{
    kd_manifest m;
    kd_cache *c;
    kd_status status = kd_manifest_read(&m, path, NULL);
    int same = status != KD_OK || memcmp(m.identity.b, w->recipe.sha.b, sizeof m.identity.b) == 0;
    if (status == KD_OK)
        kd_manifest_free(&m);
    if (same)
        return KD_OK;
    KD_TRY(kd_cache_open(&c, &path, 1, err));
    status = check_recipe(w, c, path, err);
    kd_cache_close(c);
    return status;
}

/* Takes the last steps of a writer that was killed. */
static kd_status complete(kd_shard_writer *w, const char *path, kd_err *err)
{
    kd_writer *none;
    kd_status status = kd_writer_open(&none, path, &w->recipe, w->provenance, 0, err);
    if (status == KD_OK) {
        kd_writer_close(none);
        return kd_fail(err, KD_EFAIL, "%s: disappeared while it was being completed", path);
    }
    return status == KD_DONE ? KD_OK : status;
}

static int exists_with(const char *path, const char *end)
{
    char *name = kd_asprintf("%s%s", path, end);
    int there = name && kd_io_exists(name);
    kd_free(name);
    return there;
}

/* A sealed file whose writer was killed before its last steps: the manifest, and removing its other files. */
static int is_complete(const char *path)
{
    return exists_with(path, ".json") && !exists_with(path, ".sealing") && !exists_with(path, ".partial.lock");
}

static int ends_in_kdc(const char *name)
{
    size_t n = strlen(name);
    return n > 4 && name[0] != '.' && strcmp(name + n - 4, ".kdc") == 0;
}

/* visit_fn over the folder where shards are kept. */
static kd_status take_one(kd_shard_writer *w, const char *name, kd_err *err)
{
    char *path;
    kd_status status = KD_OK;
    if (w->staged && own_number(w, name, ".partial") >= 0)
        return kd_fail(err, KD_EUSAGE, "%s%s%s is an unfinished shard of a run without --stage: finish it without --stage, or move it to %s", w->dest, w->dest[0] ? "/" : "", name, w->work);
    if (!ends_in_kdc(name))
        return KD_OK;
    path = join(w->dest, name);
    if (!path)
        return no_memory(w, err);
    if (of_other_part(w, name)) {
        status = check_other(w, path, err);
    } else {
        if (own_number(w, name, "") >= 0 && !is_complete(path))
            status = complete(w, path, err);
        if (status == KD_OK)
            status = take_sealed(w, path, err);
    }
    kd_free(path);
    return status;
}

/* ---- the stage ---- */

static int is_own(const kd_shard_writer *w, const char *name, const char *end)
{
    size_t n = w->file ? strlen(w->file) : 0;
    return w->file ? strncmp(name, w->file, n) == 0 && strcmp(name + n, end) == 0 : own_number(w, name, end) >= 0;
}

static kd_status move_to_dest(kd_shard_writer *w, const char *name, kd_err *err)
{
    char *from = join(w->work, name), *to = join(w->dest, name);
    kd_status status = from && to ? KD_OK : no_memory(w, err);
    if (status == KD_OK && !is_complete(from))
        status = complete(w, from, err);
    if (status == KD_OK)
        status = kd_shard_move(from, to, err);
    if (status == KD_OK)
        kd_log(KD_LOG_INFO, "moved %s to %s", name, w->dest[0] ? w->dest : ".");
    kd_free(from);
    kd_free(to);
    return status;
}

/* visit_fn over the stage: what was sealed but not moved. */
static kd_status move_one(kd_shard_writer *w, const char *name, kd_err *err)
{
    return is_own(w, name, "") ? move_to_dest(w, name, err) : KD_OK;
}

/* A folder of this cache's own, so that caches that share a stage don't get mixed up: named after the cache, and after the hash of its full path. */
static kd_status name_stage(kd_shard_writer *w, const char *stage, const char *base, kd_err *err)
{
    char real[PATH_MAX];
    char *full;
    if (!realpath(w->dest[0] ? w->dest : ".", real))
        return kd_fail_errno(err, KD_EFAIL, "%s: can't be examined", w->dest);
    full = join(real, w->file ? w->file : "");
    kd_free(w->work);
    w->work = full ? kd_asprintf("%s/%s-%08x", stage, base, (unsigned)(kd_xxh64(full, strlen(full)) & 0xFFFFFFFFu)) : NULL;
    kd_free(full);
    return w->work ? kd_io_mkdirs(w->work, err) : no_memory(w, err);
}

/* ---- unfinished shards ---- */

/* partial: X.kdc.partial. Its lock isn't held: this writer has the names' lock. */
static void remove_unfinished(const char *partial)
{
    static const char *const end[] = {".sealing", ".partial.lock", ".partial"};
    for (size_t i = 0; i < sizeof end / sizeof *end; i++) {
        char *path = kd_asprintf("%.*s%s", (int)(strlen(partial) - strlen(".partial")), partial, end[i]);
        if (path)
            unlink(path);
        kd_free(path);
    }
}

/* visit_fn over the folder where shards are written: a partial file whose shard is sealed isn't needed. Killed before it was removed; or, in a stage, the job went on on another machine. */
static kd_status settle_partial(kd_shard_writer *w, const char *name, kd_err *err)
{
    char *sealed, *partial;
    kd_status status = KD_OK;
    if (!is_own(w, name, ".partial"))
        return KD_OK;
    partial = join(w->work, name);
    sealed = join(w->dest, name);
    if (!partial || !sealed) {
        status = no_memory(w, err);
    } else {
        sealed[strlen(sealed) - strlen(".partial")] = 0;
        if (kd_io_exists(sealed) && !w->staged) {
            status = complete(w, sealed, err);
        } else if (kd_io_exists(sealed)) {
            kd_log(KD_LOG_WARN, "%s has been sealed elsewhere; its beginning in %s is removed", sealed, partial);
            remove_unfinished(partial);
        }
    }
    kd_free(partial);
    kd_free(sealed);
    return status;
}

/* visit_fn: the first unfinished shard goes on first. */
static kd_status find_partial(kd_shard_writer *w, const char *name, kd_err *err)
{
    if (w->name || !is_own(w, name, ".partial"))
        return KD_OK;
    w->name = kd_asprintf("%.*s", (int)(strlen(name) - strlen(".partial")), name);
    return w->name ? KD_OK : no_memory(w, err);
}

static int is_taken(const kd_shard_writer *w, const char *name)
{
    char *there = join(w->dest, name), *here = join(w->work, name);
    int taken = (there && kd_io_exists(there)) || (here && kd_io_exists(here));
    kd_free(there);
    kd_free(here);
    return taken;
}

static kd_status next_name(kd_shard_writer *w, kd_err *err)
{
    for (int number = 0; number < MAX_SHARDS && !w->name; number++) {
        w->name = kd_asprintf("%s-%05d.kdc", w->prefix, number);
        if (!w->name)
            return no_memory(w, err);
        if (is_taken(w, w->name)) {
            kd_free(w->name);
            w->name = NULL;
        }
    }
    return w->name ? KD_OK : kd_fail(err, KD_EUSAGE, "%s: holds %d shards named %s-*.kdc; give a larger --shard-size or another folder", w->dest, MAX_SHARDS, w->prefix);
}

/* The writer of w->name. KD_DONE: the only file is sealed. */
static kd_status open_current(kd_shard_writer *w, kd_err *err)
{
    uint64_t expected = w->folder && w->shard_size > 0 && w->shard_size < w->expected ? w->shard_size : w->expected;
    char *path = join(w->work, w->name);
    kd_status status = path ? kd_writer_open(&w->current, path, &w->recipe, w->provenance, expected, err) : no_memory(w, err);
    if (w->folder && status == KD_DONE)
        status = kd_fail(err, KD_EFAIL, "%s: appeared while this run was going on; run the same command again", path);
    kd_free(path);
    return status;
}

/* Opens the first unfinished shard, if there is one. */
static kd_status open_partial(kd_shard_writer *w, kd_err *err)
{
    KD_TRY(each_name(w, w->work, find_partial, err));
    return w->name ? open_current(w, err) : KD_OK;
}

static kd_status open_next(kd_shard_writer *w, kd_err *err)
{
    KD_TRY(open_partial(w, err));
    if (w->current)
        return KD_OK;
    KD_TRY(next_name(w, err));
    return open_current(w, err);
}

/* ---- opening ---- */

static kd_status set_names(kd_shard_writer *w, const kd_shard_place *place, kd_err *err)
{
    const char *slash = strrchr(place->path, '/');
    size_t n = strlen(place->path);
    w->folder = kd_shard_is_folder(place->path);
    if (!w->folder && place->parts > 1)
        return kd_fail(err, KD_EUSAGE, "%s is one file, and parts need a folder: each job writes shards of its own; give a folder such as %.*s.shards/", place->path, (int)(n - 4), place->path);
    if (place->parts > MAX_PARTS)
        return kd_fail(err, KD_EUSAGE, "%u parts are above the limit of %d", place->parts, MAX_PARTS);
    while (w->folder && n > 1 && place->path[n - 1] == '/')
        n--;
    w->dest = w->folder ? kd_asprintf("%.*s", (int)n, place->path) : kd_asprintf("%.*s", slash ? (slash == place->path ? 1 : (int)(slash - place->path)) : 0, place->path);
    w->file = w->folder ? NULL : kd_strdup(slash ? slash + 1 : place->path);
    if (place->parts > 1) {
        w->part = place->part;
        w->parts = place->parts;
        snprintf(w->prefix, sizeof w->prefix, "part-%05u-of-%05u", w->part, w->parts);
    } else {
        snprintf(w->prefix, sizeof w->prefix, "shard");
    }
    w->work = w->dest ? kd_strdup(w->dest) : NULL;
    return w->work && (w->folder || w->file) ? KD_OK : no_memory(w, err);
}

static kd_status refuse_network(const char *folder, int staged, kd_err *err)
{
    const char *name;
    if (!kd_io_network_fs(folder[0] ? folder : ".", &name))
        return KD_OK;
    if (staged)
        return kd_fail(err, KD_EUSAGE, "--stage %s: on a network file system (%s); give a folder on a local disk", folder, name);
    return kd_fail(err, KD_EUSAGE, "%s: on a network file system (%s), where a cache that is being written is neither safe nor quick; add --stage DIR to write on a local disk and move finished files "
                                   "here, or --force to write here all the same", folder[0] ? folder : "the current folder", name);
}

static kd_status make_folders(kd_shard_writer *w, const kd_shard_place *place, kd_err *err)
{
    const char *slash = strrchr(w->dest, '/');
    if (!place->force)
        KD_TRY(refuse_network(place->stage ? place->stage : w->dest, place->stage != NULL, err));
    if (w->folder && !kd_io_is_dir(w->dest)) {
        KD_TRY(kd_io_mkdirs(w->dest, err));
        w->made_dest = 1;
    }
    if (!place->stage)
        return KD_OK;
    w->staged = 1;
    return name_stage(w, place->stage, w->file ? w->file : slash ? slash + 1 : w->dest, err);
}

/* One writer at a time for the names that begin with the prefix, wherever it writes. */
static kd_status lock(kd_shard_writer *w, kd_err *err)
{
    char *name = w->file ? kd_asprintf("%s.partial.lock", w->file) : kd_asprintf("%s.lock", w->prefix);
    char *path = name ? join(w->dest, name) : NULL;
    kd_status status = path ? kd_lock_take(&w->lock, path, w->file ? w->file : w->dest, err) : no_memory(w, err);
    kd_free(name);
    kd_free(path);
    return status;
}

static kd_status open_folder(kd_shard_writer *w, kd_err *err)
{
    KD_TRY(each_name(w, w->dest, take_one, err));
    KD_TRY(each_name(w, w->work, settle_partial, err));
    return open_partial(w, err);
}

/* KD_DONE: sealed. */
static kd_status open_file(kd_shard_writer *w, kd_err *err)
{
    char *path = join(w->dest, w->file);
    kd_status status = path ? KD_OK : no_memory(w, err);
    w->name = kd_strdup(w->file);
    if (status == KD_OK && !w->name)
        status = no_memory(w, err);
    if (status == KD_OK && w->staged && kd_io_exists(path)) {
        status = kd_writer_open(&w->current, path, &w->recipe, w->provenance, 0, err);
        if (status == KD_OK) { /* it was there and sealed a moment ago */
            kd_writer_close(w->current);
            w->current = NULL;
            status = kd_fail(err, KD_EFAIL, "%s: was removed while it was being opened; run the same command again", path);
        }
    }
    kd_free(path);
    return status == KD_OK ? open_current(w, err) : status;
}

static kd_status open_all(kd_shard_writer *w, const kd_shard_place *place, const kd_recipe *recipe, const json_t *provenance, kd_err *err)
{
    KD_TRY(set_names(w, place, err));
    KD_TRY(kd_recipe_from_json(&w->recipe, json_deep_copy(recipe->json), "this run's recipe", err));
    w->provenance = provenance ? json_deep_copy(provenance) : NULL;
    if (provenance && !w->provenance)
        return no_memory(w, err);
    if (w->file && !place->stage && kd_io_exists(place->path)) /* most likely finished, which can be seen anywhere */
        return open_file(w, err);
    KD_TRY(make_folders(w, place, err));
    if (w->file && !w->staged)
        return open_file(w, err);
    KD_TRY(lock(w, err));
    if (w->staged)
        KD_TRY(each_name(w, w->work, move_one, err));
    return w->file ? open_file(w, err) : open_folder(w, err);
}

kd_status kd_shard_writer_open(kd_shard_writer **out, const kd_shard_place *place, const kd_recipe *recipe, const json_t *provenance, kd_err *err)
{
    kd_shard_writer *w = kd_calloc(1, sizeof *w);
    kd_status status;
    *out = NULL;
    if (!w)
        return kd_fail(err, KD_EFAIL, "%s: out of memory while opening", place->path);
    w->shard_size = place->shard_size;
    w->expected = place->expected_bytes;
    status = open_all(w, place, recipe, provenance, err);
    if (status != KD_OK) {
        kd_shard_writer_close(w);
        return status;
    }
    *out = w;
    return KD_OK;
}

/* rmdir takes a folder only while it is empty. */
void kd_shard_writer_close(kd_shard_writer *w)
{
    if (!w)
        return;
    kd_writer_close(w->current);
    if (w->staged)
        rmdir(w->work);
    kd_lock_release(w->lock);
    if (w->made_dest)
        rmdir(w->dest);
    kd_view_set_free(&w->sealed);
    kd_recipe_free(&w->recipe);
    json_decref(w->provenance);
    kd_free(w->dest);
    kd_free(w->work);
    kd_free(w->file);
    kd_free(w->name);
    kd_free(w);
}

/* ---- what is there ---- */

int kd_shard_writer_has_view(const kd_shard_writer *w, const kd_hash128 *image, uint32_t view)
{
    return kd_view_set_has(&w->sealed, image, view) || (w->current && kd_writer_has_view(w->current, image, view));
}

kd_shard_totals kd_shard_writer_totals(const kd_shard_writer *w)
{
    kd_shard_totals t = w->totals;
    char *path = w->current ? kd_asprintf("%s%s%s.partial", w->work, w->work[0] ? "/" : "", w->name) : NULL;
    if (w->current)
        t.views += kd_writer_view_count(w->current);
    if (path)
        (void)kd_io_file_size(path, &t.unfinished_bytes, NULL);
    kd_free(path);
    return t;
}

/* ---- adding and sealing ---- */

/* The current shard is finished: closed, counted and moved. `on`: more views follow, which must know its own. */
static kd_status finish_current(kd_shard_writer *w, int on, kd_err *err)
{
    char *path = join(w->work, w->name);
    uint64_t size = 0, views = kd_writer_view_count(w->current);
    kd_status status = path ? kd_writer_seal(w->current, err) : no_memory(w, err);
    kd_writer_close(w->current);
    w->current = NULL;
    if (status == KD_OK && on) {
        status = take_sealed(w, path, err);
    } else if (status == KD_OK) {
        status = kd_io_file_size(path, &size, err);
        w->totals.views += views;
        w->totals.bytes += size;
        w->totals.shards++;
    }
    if (status == KD_OK && w->staged)
        status = move_to_dest(w, w->name, err);
    kd_free(path);
    kd_free(w->name);
    w->name = NULL;
    w->failed |= status != KD_OK;
    return status;
}

kd_status kd_shard_writer_add_view(kd_shard_writer *w, const kd_image_entry *image, const kd_view_entry *view, const kd_record_ref *records, size_t n, kd_err *err)
{
    kd_status status = KD_OK;
    if (w->failed)
        return kd_fail(err, KD_EFAIL, "%s: can't go on after a failure; run the same command again", w->dest);
    if (w->folder && w->shard_size > 0 && w->current && kd_writer_value_bytes(w->current) >= w->shard_size && !kd_writer_has_image(w->current, &view->image))
        status = finish_current(w, 1, err);
    if (status == KD_OK && !w->current)
        status = open_next(w, err);
    return status == KD_OK ? kd_writer_add_view(w->current, image, view, records, n, err) : status;
}

kd_status kd_shard_writer_commit(kd_shard_writer *w, kd_err *err)
{
    return w->current ? kd_writer_commit(w->current, err) : KD_OK;
}

/* A run that was killed before its first commit leaves a partial file without views. */
static kd_status drop_empty(kd_shard_writer *w, kd_err *err)
{
    char *path = kd_asprintf("%s%s%s.partial", w->work, w->work[0] ? "/" : "", w->name);
    if (!path)
        return no_memory(w, err);
    unlink(path);
    kd_free(path);
    kd_writer_close(w->current);
    w->current = NULL;
    kd_free(w->name);
    w->name = NULL;
    return KD_OK;
}

kd_status kd_shard_writer_seal(kd_shard_writer *w, kd_err *err)
{
    if (w->failed)
        return kd_fail(err, KD_EFAIL, "%s: can't be sealed after a failure; run the same command again", w->dest);
    while (w->current) {
        KD_TRY(w->folder && kd_writer_view_count(w->current) == 0 ? drop_empty(w, err) : finish_current(w, 0, err));
        if (w->folder)
            KD_TRY(open_partial(w, err));
    }
    return KD_OK;
}

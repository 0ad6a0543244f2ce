#include "cache/copy.h"

#include <dirent.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "cache/parent.h"
#include "cache/place.h"
#include "cache/shard_writer.h"
#include "common/base/io.h"
#include "common/base/mem.h"
#include "common/base/progress.h"
#include "common/base/threads.h"
#include "common/tensor/encode.h"

enum { AHEAD = 8 }; /* images */

typedef struct copy {
    const kd_copy_job *job;
    kd_copy_result *result;
    const kd_recipe *from, *to;
    int folder;
    size_t *image, images;    /* that are copied: indexes in the cache, ascending */
    uint64_t views, done;     /* to copy; before the image at hand */
    json_t *provenance;
    uint64_t expected;        /* bytes of the result */
    kd_reader *reader;
    kd_writer *writer;
    char *path;               /* of the shard at hand */
    kd_record_buf *buf;       /* [records of a view] */
    kd_record_ref *ref;
    float *values;
    uint8_t *payload, *scratch; /* of what is encoded anew */
    kd_record_scratch zstd;
    kd_progress *progress;
} copy;

/* ---- what is copied ---- */

static uint32_t chosen_views(const copy *c, const kd_image_entry *e)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < e->views; i++)
        n += (uint32_t)kd_view_ranges_have(&c->job->views, kd_image_view(e, i));
    return n;
}

static kd_status choose(copy *c, kd_err *err)
{
    size_t n = kd_cache_images(c->job->cache);
    KD_TRY(kd_alloc_array(&c->image, n, sizeof *c->image, err));
    for (size_t i = 0; i < n; i++) {
        uint32_t views = chosen_views(c, kd_cache_image(c->job->cache, i));
        if (c->job->chosen && !c->job->chosen[i])
            continue;
        if (views == 0) {
            c->result->dropped_images++;
            continue;
        }
        c->image[c->images++] = i;
        c->views += views;
    }
    if (c->images == 0)
        return kd_fail(err, KD_EUSAGE, "%s: none of the chosen images has one of the chosen views; kd-cache list prints the views that there are", kd_cache_shard_path(c->job->cache, 0));
    if (c->job->shards > c->images)
        return kd_fail(err, KD_EUSAGE, "--shards %u: there are %zu images, and a shard ends between two of them", c->job->shards, c->images);
    return KD_OK;
}

/* ---- records ---- */

typedef struct record_job {
    copy *c;
    kd_feature f; /* of the result */
    const kd_view_entry *view;
    uint16_t layer;
    kd_record_buf *out;
} record_job;

static kd_status take_over(void *ctx, const uint8_t *bytes, size_t size, kd_err *err)
{
    record_job *j = ctx;
    copy *c = j->c;
    kd_record_head head;
    const uint8_t *payload;
    if (c->job->zstd_level == 0)
        return kd_record_readdress(j->out, bytes, size, j->f, c->to->sha.b, err);
    head = kd_recipe_head(c->from, c->job->derived->origin[j->f].from, &j->view->image, j->view->view, j->layer);
    KD_TRY(kd_record_unpack(&payload, bytes, size, &head, &c->zstd, err));
    head.feature = j->f;
    memcpy(head.identity, c->to->sha.b, sizeof head.identity);
    return kd_record_encode(j->out, &head, payload, c->job->zstd_level, &c->zstd, err);
}

/* The full grid where it is reduced; else the rows as they are stored. */
static kd_encode_spec spec_of(const copy *c, kd_feature f)
{
    const struct kd_origin *o = &c->job->derived->origin[f];
    int whole = o->reduce.kind == KD_TARGET_FULL;
    return (kd_encode_spec){.target = o->reduce, .grid_h = whole ? (int)kd_recipe_rows(c->from, o->from) : c->from->grid_h, .grid_w = whole ? 1 : c->from->grid_w,
                            .width = c->from->width, .dtype = c->to->dtype};
}

static kd_status encode(const record_job *j, kd_err *err)
{
    copy *c = j->c;
    kd_encode_spec spec = spec_of(c, j->f);
    kd_encode_plan plan;
    kd_encode_stats stats;
    kd_record_facts facts;
    kd_record_head head = kd_recipe_head(c->to, j->f, &j->view->image, j->view->view, j->layer);
    char id[33];
    KD_TRY(kd_reader_feature(c->reader, c->job->derived->origin[j->f].from, &j->view->image, j->view->view, j->layer, c->values, &facts, err));
    plan = kd_encode_plan_make(&spec, c->scratch);
    kd_encode_record(c->payload, &stats, c->values, &spec, &plan);
    kd_hex(id, j->view->image.b, sizeof j->view->image.b);
    if (stats.bad > 0)
        return kd_fail(err, KD_ENONFINITE, "%s of image %s, view %u, layer %u: %.0f values are not numbers or beyond %g, the largest that %s holds; --store bf16 holds all that are finite",
                       kd_feature_name(j->f), id, j->view->view, j->layer, stats.bad, (double)kd_encode_limit(spec.dtype), kd_dtype_name(spec.dtype));
    head.view_hash = facts.view_hash;
    head.square = spec.target.kind == KD_TARGET_ADJOINT ? stats.square : facts.square;
    head.fidelity = (kd_fidelity){stats.xx, stats.qq, stats.err2, stats.worst};
    return kd_record_encode(j->out, &head, c->payload, c->job->zstd_level ? c->job->zstd_level : KD_COPY_ZSTD_LEVEL, &c->zstd, err);
}

static kd_status copy_view(copy *c, const kd_image_entry *e, uint32_t number, kd_err *err)
{
    kd_view_entry view;
    size_t n = 0;
    KD_TRY(kd_reader_view(c->reader, &e->image, number, &view, err));
    for (int f = 0; f < KD_FEATURES; f++) {
        for (int l = 0; l < c->to->layers && kd_recipe_has(c->to, (kd_feature)f); l++, n++) {
            record_job j = {c, (kd_feature)f, &view, c->to->layer[l], &c->buf[n]};
            const struct kd_origin *o = &c->job->derived->origin[f];
            KD_TRY(o->encode ? encode(&j, err) : kd_reader_record(c->reader, o->from, &e->image, number, j.layer, take_over, &j, err));
            c->ref[n] = (kd_record_ref){(kd_feature)f, j.layer, c->buf[n].bytes, c->buf[n].size};
        }
    }
    return kd_writer_add_view(c->writer, e, &view, c->ref, n, err);
}

static kd_status interrupted(copy *c, uint64_t done, kd_err *err)
{
    KD_TRY(kd_writer_commit(c->writer, err));
    return kd_fail(err, kd_stop_requested(), "interrupted after %llu of %llu views; run the same command again to go on", (unsigned long long)done, (unsigned long long)c->views);
}

static kd_status copy_image(copy *c, const kd_image_entry *e, kd_err *err)
{
    for (uint32_t i = 0; i < e->views; i++) {
        uint32_t number = kd_image_view(e, i);
        if (!kd_view_ranges_have(&c->job->views, number))
            continue;
        if (kd_stop_requested() != KD_OK)
            return interrupted(c, c->done, err);
        if (!kd_writer_has_view(c->writer, &e->image, number))
            KD_TRY(copy_view(c, e, number, err));
        kd_progress_update(c->progress, ++c->done, 0, NULL);
    }
    return KD_OK;
}

/* ---- shards ---- */

static char *shard_path(const copy *c, size_t shard)
{
    size_t n = strlen(c->job->out);
    if (!c->folder)
        return kd_strdup(c->job->out);
    return kd_asprintf("%s%sshard-%05zu.kdc", c->job->out, n > 0 && c->job->out[n - 1] == '/' ? "" : "/", shard);
}

/* Where a shard ends depends on the views before it only, also when the copy was interrupted: image `at` begins another one. What the open shard has of it already, an earlier run put there. */
static int shard_is_full(const copy *c, size_t at, size_t shard)
{
    const kd_image_entry *e = kd_cache_image(c->job->cache, c->image[at]);
    if (!c->folder)
        return 0;
    if (c->job->shards > 0)
        return (long double)c->done * c->job->shards >= (long double)(shard + 1) * (long double)c->views;
    return c->job->shard_size > 0 && kd_writer_value_bytes(c->writer) >= c->job->shard_size && !kd_writer_has_image(c->writer, &e->image);
}

static kd_status foreign(const copy *c, const char *what, kd_err *err)
{
    return kd_fail(err, KD_EMISMATCH, "%s: %s other views than this command would write there; remove it, or give another name with --out", c->path, what);
}

/* Whether a sealed image has the chosen views of `want` and no other. */
static int has_chosen_views(const copy *c, const kd_image_entry *have, const kd_image_entry *want)
{
    if (memcmp(have->image.b, want->image.b, sizeof have->image.b) != 0 || have->views != chosen_views(c, want))
        return 0;
    for (uint32_t i = 0; i < have->views; i++) {
        uint32_t number = kd_image_view(have, i);
        if (!kd_view_ranges_have(&c->job->views, number) || !kd_image_find_view(want, number))
            return 0;
    }
    return 1;
}

/* The shard at hand is sealed: by an earlier run of this command, if it holds the next images with these views. */
static kd_status pass_sealed(copy *c, size_t *at, kd_err *err)
{
    const char *path = c->path;
    kd_cache *sealed;
    kd_status status = KD_OK;
    KD_TRY(kd_cache_open(&sealed, &path, 1, err));
    for (size_t i = 0; i < kd_cache_images(sealed) && status == KD_OK; i++, ++*at) {
        const kd_image_entry *have = kd_cache_image(sealed, i), *want = *at < c->images ? kd_cache_image(c->job->cache, c->image[*at]) : NULL;
        if (!want || !has_chosen_views(c, have, want))
            status = foreign(c, "is there already and holds", err);
        else
            c->done += have->views;
    }
    if (status == KD_OK && !c->folder && *at < c->images)
        status = foreign(c, "is there already and holds", err);
    kd_cache_close(sealed);
    return status;
}

/* What an interrupted run left must be the beginning of what this one writes. */
static kd_status check_partial(const copy *c, size_t at, kd_err *err)
{
    uint64_t ours = 0;
    for (size_t i = at; i < c->images && ours < kd_writer_view_count(c->writer); i++) {
        const kd_image_entry *e = kd_cache_image(c->job->cache, c->image[i]);
        for (uint32_t v = 0; v < e->views; v++)
            ours += (uint64_t)(kd_view_ranges_have(&c->job->views, kd_image_view(e, v)) && kd_writer_has_view(c->writer, &e->image, kd_image_view(e, v)));
    }
    return ours == kd_writer_view_count(c->writer) ? KD_OK : foreign(c, "is unfinished (its .partial is there) and holds", err);
}

/* The records of an image further on, so that the disk reads while this one is written: maps are read without the kernel's own read-ahead. */
static kd_status ask_ahead(copy *c, size_t at, kd_err *err)
{
    const kd_image_entry *e = at < c->images ? kd_cache_image(c->job->cache, c->image[at]) : NULL;
    for (uint32_t v = 0; e && v < e->views; v++) {
        for (int i = 0; i < KD_FEATURES * c->to->layers && kd_view_ranges_have(&c->job->views, kd_image_view(e, v)); i++) {
            kd_feature f = (kd_feature)(i / c->to->layers);
            if (kd_recipe_has(c->to, f))
                KD_TRY(kd_reader_will_need(c->reader, c->job->derived->origin[f].from, &e->image, kd_image_view(e, v), c->to->layer[i % c->to->layers], err));
        }
    }
    return KD_OK;
}

static kd_status fill_shard(copy *c, size_t *at, size_t shard, kd_err *err)
{
    KD_TRY(check_partial(c, *at, err));
    do {
        KD_TRY(ask_ahead(c, *at + AHEAD, err));
        KD_TRY(copy_image(c, kd_cache_image(c->job->cache, c->image[(*at)++]), err));
    } while (*at < c->images && !shard_is_full(c, *at, shard));
    return kd_writer_seal(c->writer, err);
}

static kd_status count_shard(copy *c, kd_err *err)
{
    uint64_t bytes;
    KD_TRY(kd_io_file_size(c->path, &bytes, err));
    c->result->bytes += bytes;
    c->result->shards++;
    return KD_OK;
}

static kd_status name_shard(copy *c, size_t shard, kd_err *err)
{
    kd_free(c->path);
    c->path = shard_path(c, shard);
    return c->path ? KD_OK : kd_fail(err, KD_EFAIL, "%s: out of memory while naming a shard", c->job->out);
}

/* Moves *at behind its images. */
static kd_status write_shard(copy *c, size_t *at, size_t shard, kd_err *err)
{
    kd_status status;
    if (shard == KD_COPY_MAX_SHARDS)
        return kd_fail(err, KD_EUSAGE, "%s: more than %d shards; give a larger --shard-size", c->job->out, KD_COPY_MAX_SHARDS);
    KD_TRY(name_shard(c, shard, err));
    status = kd_writer_open(&c->writer, c->path, c->to, c->provenance, c->expected, err);
    if (status == KD_DONE)
        return pass_sealed(c, at, err);
    KD_TRY(status);
    status = fill_shard(c, at, shard, err);
    kd_writer_close(c->writer);
    c->writer = NULL;
    return status;
}

static kd_status write_shards(copy *c, kd_err *err)
{
    size_t at = 0, shard = 0;
    for (; at < c->images; shard++) {
        KD_TRY(write_shard(c, &at, shard, err));
        KD_TRY(count_shard(c, err));
    }
    if (!c->folder)
        return KD_OK;
    KD_TRY(name_shard(c, shard, err));
    return kd_io_exists(c->path) ? foreign(c, "is there already and holds", err) : KD_OK;
}

/* ---- before the first byte ---- */

static int same_file(const char *a, const char *b)
{
    struct stat x, y;
    return stat(a, &x) == 0 && stat(b, &y) == 0 && x.st_dev == y.st_dev && x.st_ino == y.st_ino;
}

/* Shards that aren't this command's would be read as a part of its result. */
static kd_status check_folder(const copy *c, kd_err *err)
{
    struct dirent *e;
    kd_status status = KD_OK;
    DIR *d;
    KD_TRY(kd_io_mkdirs(c->job->out, err));
    d = opendir(c->job->out);
    if (!d)
        return kd_fail_errno(err, KD_EFAIL, "%s: can't be listed", c->job->out);
    while (status == KD_OK && (e = readdir(d)) != NULL) {
        size_t n = strlen(e->d_name), at;
        int length = 0;
        if (n < 5 || e->d_name[0] == '.' || strcmp(e->d_name + n - 4, ".kdc") != 0)
            continue;
        if (sscanf(e->d_name, "shard-%5zu.kdc%n", &at, &length) != 1 || length != 15 || e->d_name[15] != 0)
            status = kd_fail(err, KD_EUSAGE, "%s: holds %s, which would be read together with the new shards; give a folder of its own with --out", c->job->out, e->d_name);
    }
    closedir(d);
    return status;
}

static kd_status check_out(const copy *c, kd_err *err)
{
    KD_TRY(kd_place_check(c->job->out, c->job->force, err));
    for (size_t i = 0; i < kd_cache_shards(c->job->cache); i++) {
        const char *source = kd_cache_shard_path(c->job->cache, i), *slash = strrchr(source, '/');
        char *folder = slash ? kd_asprintf("%.*s", (int)(slash - source + 1), source) : kd_strdup(".");
        int clash = same_file(source, c->job->out) || (c->folder && folder && same_file(folder, c->job->out));
        kd_free(folder);
        if (clash)
            return kd_fail(err, KD_EUSAGE, "--out %s: %s is read from there; give another place", c->job->out, source);
    }
    return c->folder ? check_folder(c, err) : KD_OK;
}

static uint64_t raw_bytes(const kd_recipe *r)
{
    uint64_t bytes = 0;
    for (int f = 0; f < KD_FEATURES; f++) {
        if (kd_recipe_has(r, (kd_feature)f))
            bytes += (uint64_t)r->layers * kd_stored_bytes(r->dtype, kd_recipe_rows(r, (kd_feature)f), (size_t)r->width);
    }
    return bytes;
}

/* From the size of the parent: as much of it as the views and the values of each are of the parent's. */
static void estimate(copy *c)
{
    uint64_t bytes = 0;
    for (size_t i = 0; i < kd_cache_shards(c->job->cache); i++)
        bytes += (uint64_t)json_integer_value(json_object_get(json_object_get(kd_cache_shard_manifest(c->job->cache, i), "content"), "bytes"));
    c->expected = (uint64_t)((double)bytes * ((double)c->views / (double)kd_cache_view_total(c->job->cache)) * ((double)raw_bytes(c->to) / (double)raw_bytes(c->from)));
}

/* What earlier runs of the command wrote. */
static uint64_t already_there(const copy *c)
{
    uint64_t bytes = 0, size;
    for (size_t shard = 0; shard < KD_COPY_MAX_SHARDS; shard++) {
        char *path = shard_path(c, shard), *partial = path ? kd_asprintf("%s.partial", path) : NULL;
        int any = 0;
        if (partial && kd_io_file_size(partial, &size, NULL) == KD_OK) {
            bytes += size;
            any = 1;
        }
        if (path && kd_io_file_size(path, &size, NULL) == KD_OK) {
            bytes += c->folder ? size : 2 * size; /* a file is there twice before it is sealed */
            any = 1;
        }
        kd_free(partial);
        kd_free(path);
        if (!any || !c->folder)
            break;
    }
    return bytes;
}

/* The shard that is being sealed is there twice for a while. */
static kd_status check_space(const copy *c, kd_err *err)
{
    uint64_t largest = c->expected, need, there = already_there(c);
    if (c->folder && c->job->shards > 0)
        largest = c->expected / c->job->shards;
    else if (c->folder && c->job->shard_size > 0 && c->job->shard_size < largest)
        largest = c->job->shard_size;
    need = c->expected + largest > there ? c->expected + largest - there : 0;
    return kd_place_check_room(c->job->out, need, c->folder ? ", or give a smaller --shard-size" : "", err);
}

/* One file has its digest in its manifest; that of several together is read from their headers. */
static kd_status parent_digest(const copy *c, kd_sha256 *digest, kd_err *err)
{
    const json_t *content = json_object_get(kd_cache_shard_manifest(c->job->cache, 0), "content");
    const char *hex;
    if (kd_cache_shards(c->job->cache) > 1)
        return kd_cache_digest(c->job->cache, digest, err);
    KD_TRY(kd_json_get_string(content, "digest", kd_cache_shard_path(c->job->cache, 0), &hex, err));
    if (kd_unhex(digest->b, hex, sizeof digest->b) != 0)
        return kd_fail(err, KD_EDAMAGED, "%s: its manifest's digest is \"%s\"; copy both files again from where they came", kd_cache_shard_path(c->job->cache, 0), hex);
    return KD_OK;
}

static kd_status describe_parent(copy *c, kd_err *err)
{
    size_t n = kd_cache_shards(c->job->cache);
    const json_t **manifests;
    kd_sha256 digest;
    kd_status status;
    KD_TRY(parent_digest(c, &digest, err));
    KD_TRY(kd_alloc_array(&manifests, n, sizeof *manifests, err));
    for (size_t i = 0; i < n; i++)
        manifests[i] = kd_cache_shard_manifest(c->job->cache, i);
    status = kd_parent_provenance(&c->provenance, manifests, n, &c->from->sha, &digest, c->job->command, err);
    kd_free(manifests);
    return status;
}

static kd_status make_buffers(copy *c, kd_err *err)
{
    size_t records = (size_t)kd_recipe_records(c->to), payload = 0, scratch = 0;
    KD_TRY(kd_alloc_array(&c->buf, records, sizeof *c->buf, err));
    KD_TRY(kd_alloc_array(&c->ref, records, sizeof *c->ref, err));
    KD_TRY(kd_alloc_array(&c->values, kd_recipe_largest(c->from), sizeof *c->values, err));
    for (int f = 0; f < KD_FEATURES; f++) {
        kd_encode_spec spec;
        if (!kd_recipe_has(c->to, (kd_feature)f) || !c->job->derived->origin[f].encode)
            continue;
        spec = spec_of(c, (kd_feature)f);
        payload = kd_encode_bytes(&spec) > payload ? kd_encode_bytes(&spec) : payload;
        scratch = kd_encode_scratch_bytes(&spec, 1) > scratch ? kd_encode_scratch_bytes(&spec, 1) : scratch;
    }
    KD_TRY(kd_alloc_array(&c->payload, payload, 1, err));
    KD_TRY(kd_alloc_array(&c->scratch, scratch, 1, err));
    return kd_reader_create(&c->reader, c->job->cache, err);
}

static kd_status run(copy *c, kd_err *err)
{
    KD_TRY(choose(c, err));
    KD_TRY(check_out(c, err));
    estimate(c);
    KD_TRY(check_space(c, err));
    KD_TRY(make_buffers(c, err));
    KD_TRY(describe_parent(c, err));
    c->progress = kd_progress_create("copying", "view", c->views, 0, 0);
    KD_TRY(write_shards(c, err));
    c->result->images = c->images;
    c->result->views = c->views;
    return KD_OK;
}

kd_status kd_cache_copy(const kd_copy_job *job, kd_copy_result *result, kd_err *err)
{
    copy c = {.job = job, .result = result, .from = kd_cache_recipe(job->cache), .to = &job->derived->recipe, .folder = kd_shard_is_folder(job->out)};
    kd_status status;
    memset(result, 0, sizeof *result);
    status = run(&c, err);
    kd_progress_finish(c.progress);
    for (int i = 0; c.buf && i < kd_recipe_records(c.to); i++)
        kd_record_buf_free(&c.buf[i]);
    kd_writer_close(c.writer);
    kd_reader_destroy(c.reader);
    kd_record_scratch_free(&c.zstd);
    json_decref(c.provenance);
    kd_free(c.image);
    kd_free(c.path);
    kd_free(c.buf);
    kd_free(c.ref);
    kd_free(c.values);
    kd_free(c.payload);
    kd_free(c.scratch);
    return status;
}

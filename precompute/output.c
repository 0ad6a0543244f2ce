#include "precompute/output.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "common/base/io.h"
#include "common/base/log.h"
#include "common/base/mem.h"

/* Without the slashes at its end; "/" stays. */
static int folder_length(const char *path) {
    size_t n = strlen(path);
    while (n > 1 && path[n - 1] == '/')
        n--;
    return (int)n;
}

static kd_status name_product(kd_output *o, kd_err *err) {
    const char *cache = o->config->cache;
    int n = folder_length(cache);
    if (!o->folder)
        o->product = kd_strdup(cache);
    else if (o->part.parts > 1)
        o->product = kd_asprintf("%.*s/part-%05" PRIu32 "-of-%05" PRIu32, n, cache, o->part.part, o->part.parts);
    else
        o->product = kd_asprintf("%.*s/shard", n, cache);
    return o->product != NULL ? KD_OK : kd_fail(err, KD_EFAIL, "out of memory");
}

/* How a file becomes the first shard of a folder. */
static kd_status needs_folder(const char *option, const char *cache, kd_err *err) {
    int n = (int)strlen(cache) - 4;
    return kd_fail(err, KD_EUSAGE, "%s needs a folder as --cache, and %s is one file; give --cache %.*s.shards/, and if the file exists, move it there first: mkdir %.*s.shards && mv %s %s.json %.*s.shards/", option, cache,
                   n, cache, n, cache, cache, cache, n, cache);
}

/* A job array may as well be an array of different caches: then each has a file of its own, which isn't divided. --fill is one job's work. */
static kd_status choose_part(kd_output *o, kd_err *err) {
    const kd_precompute_config *c = o->config;
    if (c->fill != NULL && c->shard != NULL)
        return kd_fail(err, KD_EUSAGE, "--fill and --shard don't go together: the listed views are one job's work");
    if (!o->folder && c->fill != NULL)
        return needs_folder("--fill", c->cache, err);
    if (c->fill != NULL)
        return KD_OK;
    KD_TRY(kd_part_parse(&o->part, c->shard, err));
    if (o->folder || o->part.parts == 1)
        return KD_OK;
    if (!o->part.from_slurm)
        return needs_folder("--shard", c->cache, err);
    kd_log(KD_LOG_INFO, "in task %" PRIu32 " of %" PRIu32 " of a Slurm array, but not divided: --cache %s is one file; give a folder to share the work", o->part.part, o->part.parts, c->cache);
    o->part = (kd_part){.part = 1, .parts = 1};
    return KD_OK;
}

kd_status kd_output_choose(kd_output *o, const kd_precompute_config *config, kd_err *err) {
    if (config->cache[0] == '\0')
        return kd_fail(err, KD_EUSAGE, "--cache is empty; name a file X.kdc or a folder");
    if (config->stage != NULL && config->stage[0] == '\0')
        return kd_fail(err, KD_EUSAGE, "--stage is empty; name a folder on a local disk, or leave the option out");
    *o = (kd_output){.config = config, .folder = kd_shard_is_folder(config->cache), .part = {.part = 1, .parts = 1}};
    KD_TRY(choose_part(o, err));
    return name_product(o, err);
}

void kd_output_close(kd_output *o) {
    kd_shard_writer_close(o->writer);
    kd_free(o->product);
    *o = (kd_output){0};
}

void kd_output_describe(const kd_output *o, uint64_t files, uint64_t files_of_all) {
    const kd_precompute_config *c = o->config;
    char size[32];
    if (o->part.parts > 1)
        kd_log(KD_LOG_INFO, "part      %" PRIu32 " of %" PRIu32 " (from %s): %" PRIu64 " of %" PRIu64 " files", o->part.part, o->part.parts,
               o->part.from_slurm ? "Slurm's array task" : "--shard", files, files_of_all);
    if (o->folder)
        kd_log(KD_LOG_INFO, "shards    %s-NNNNN.kdc of %s each", o->product, c->shard_size > 0 ? kd_io_size_text(c->shard_size, size, sizeof size) : "any size");
    if (c->stage != NULL)
        kd_log(KD_LOG_INFO, "stage     written in %s and moved when sealed", c->stage);
}

/* A shard and its sealed copy. */
static kd_status guard_stage(const kd_output *o, const kd_run_plan *plan, uint64_t already, kd_err *err) {
    const kd_precompute_config *c = o->config;
    uint64_t shard = o->folder && c->shard_size > 0 && c->shard_size < plan->cache_bytes ? c->shard_size : plan->cache_bytes, need, space;
    char need_text[32], free_text[32];
    KD_TRY(kd_io_free_bytes(c->stage, &space, err));
    need = 2 * shard > already ? 2 * shard - already : 0;
    if (need <= space / 5 * 4)
        return KD_OK;
    return kd_fail(err, KD_ENOSPACE, "--stage %s: writing and sealing needs about %s there and %s are free (at most 80%% is used); give %s or another stage", c->stage,
                   kd_io_size_text(need, need_text, sizeof need_text), kd_io_size_text(space, free_text, sizeof free_text), o->folder ? "a smaller --shard-size" : "a folder as --cache");
}

/* What a file's interrupted run has written already. */
static kd_status partial_bytes(const kd_output *o, uint64_t *bytes, kd_err *err) {
    char *partial = kd_asprintf("%s.partial", o->config->cache);
    if (partial == NULL)
        return kd_fail(err, KD_EFAIL, "out of memory");
    kd_status status = kd_io_exists(partial) ? kd_io_file_size(partial, bytes, err) : KD_OK;
    kd_free(partial);
    return status;
}

/* Free space counts only for a run that will write. One file that isn't there will be written; in a folder the writer knows what is there, and begins no file before the first view. */
kd_status kd_output_open(kd_output *o, const kd_run_plan *plan, const kd_recipe *recipe, const json_t *provenance, kd_err *err) {
    const kd_precompute_config *c = o->config;
    uint64_t already = 0;
    if (!o->folder)
        KD_TRY(partial_bytes(o, &already, err));
    if (!o->folder && !kd_io_exists(c->cache))
        KD_TRY(kd_run_plan_guard(plan, c, already, err));
    kd_shard_place place = {.path = c->cache, .stage = c->stage, .part = o->part.part, .parts = o->part.parts, .shard_size = c->shard_size, .expected_bytes = plan->cache_bytes, .force = c->force};
    KD_TRY(kd_shard_writer_open(&o->writer, &place, recipe, provenance, err));
    kd_shard_totals t = kd_shard_writer_totals(o->writer);
    int lists = c->fill != NULL; /* views that sealed shards don't have, so that these don't count */
    if (o->folder && !lists && t.views >= plan->images * plan->views)
        return KD_OK;
    if (o->folder)
        KD_TRY(kd_run_plan_guard(plan, c, (lists ? 0 : t.bytes) + (c->stage == NULL ? t.unfinished_bytes : 0), err));
    return c->stage != NULL ? guard_stage(o, plan, t.unfinished_bytes, err) : KD_OK;
}

/* kd-cache merge, split, compact, extract: caches from caches. */
#include <stdio.h>
#include <string.h>

#include "cache/commands.h"
#include "cache/copy.h"
#include "cache/image_list.h"
#include "cache/shard_writer.h"
#include "common/base/io.h"
#include "common/base/mem.h"

#define EPILOG "Interrupted, the same command goes on with what is there. Exit codes: 0 ok; 1 failure; 2 usage; 10 not found; 11 --out is being written by another process; " \
               "12 damaged; 13 the caches don't belong together, or --out holds another one; 14 no space; "

static const kd_option merge_table[] = {
    {"FILE.kdc|DIR", KD_OPT_STRINGS, offsetof(kd_cache_config, files), "FILE.kdc|DIR", NULL, 0, 0, KD_OPT_REQUIRED | KD_OPT_POSITIONAL, "sealed caches, or folders of shards, of equal identity"},
    KD_OPTION_STRING(kd_cache_config, out, "out", "X.kdc", NULL, KD_OPT_REQUIRED, "file to write"),
    KD_CACHE_FORCE,
    KD_OPTION_END,
};
const kd_program kd_cache_merge_program = {
    .name = "kd-cache merge",
    .summary = "Joins caches of equal identity into one file; views that are in several are taken once.",
    .examples = "  $ kd-cache merge part-0.kdc part-1.kdc --out photos.kdc\n  $ kd-cache merge photos/ --out photos.kdc\n",
    .epilog = EPILOG "130, 143 interrupted.\n",
    .options = merge_table,
};

static const kd_option split_table[] = {
    KD_CACHE_FILES,
    KD_OPTION_STRING(kd_cache_config, out, "out", "DIR", NULL, KD_OPT_REQUIRED, "folder to write; it is made"),
    KD_OPTION_INT(kd_cache_config, shards, "shards", "N", "0", 0, KD_COPY_MAX_SHARDS, "so many shards of about equally many views"),
    KD_CACHE_SHARD_SIZE(NULL),
    KD_CACHE_FORCE,
    KD_OPTION_END,
};
const kd_program kd_cache_split_program = {
    .name = "kd-cache split",
    .summary = "Divides a cache into a folder of shards, for transport in parts; all views of an image stay together.",
    .examples = "  $ kd-cache split photos.kdc --shards 8 --out photos/\n  $ kd-cache split photos.kdc --shard-size 4GB --out photos/\n",
    .epilog = EPILOG "130, 143 interrupted.\n",
    .options = split_table,
};

static const kd_option compact_table[] = {
    KD_CACHE_FILES,
    KD_OPTION_STRING(kd_cache_config, out, "out", "X.kdc|DIR", NULL, KD_OPT_REQUIRED, "file or folder of shards to write"),
    KD_CACHE_SHARD_SIZE("32GB"),
    KD_CACHE_ZSTD_LEVEL("compress every record anew at this zstd level; 0: take the frames over"),
    KD_CACHE_FORCE,
    KD_OPTION_END,
};
const kd_program kd_cache_compact_program = {
    .name = "kd-cache compact",
    .summary = "Rewrites a folder of many small shards as few; views that are in several are taken once.",
    .examples = "  $ kd-cache compact photos/ --out photos-32g/\n  $ kd-cache compact photos/ --zstd-level 9 --out photos.kdc\n",
    .epilog = EPILOG "130, 143 interrupted.\n",
    .options = compact_table,
};

static const kd_option extract_table[] = {
    KD_CACHE_FILES,
    KD_OPTION_STRING(kd_cache_config, out, "out", "Y.kdc|DIR", NULL, KD_OPT_REQUIRED, "file or folder of shards to write"),
    KD_OPTION_STRING(kd_cache_config, images, "images", "LIST", NULL, 0, "text file: a line for each image, its id or its path as kd-cache list prints them; default: all"),
    KD_CACHE_NULL,
    KD_OPTION_STRING(kd_cache_config, views, "views", "A-B,..", NULL, 0, "views to keep, such as 0-3 or 0-3,6; default: all"),
    KD_OPTION_STRING(kd_cache_config, features, "features", "LIST", NULL, 0, "some of the cache's of cls,patch,registers,mean; default: all"),
    KD_OPTION_STRING(kd_cache_config, layers, "layers", "LIST", NULL, 0, "some of the cache's layers, such as 1,4 (1 = last); default: all"),
    KD_OPTION_STRING(kd_cache_config, patch_target, "patch-target", "LIST", NULL, 0,
                     "forms of the patches, such as adjoint:7 or full,adjoint:7: those of the cache, and from a full grid any pool:K or adjoint:K; default: as they are"),
    KD_OPTION_CHOICE(kd_cache_config, store, "store", "f16|bf16|i8", NULL, "element type; another one than the cache's rounds the numbers again; default: as they are"),
    KD_CACHE_SHARD_SIZE("32GB"),
    KD_CACHE_ZSTD_LEVEL("compress every record anew at this zstd level; 0: take frames over, and compress what is encoded anew at level 1"),
    KD_CACHE_FORCE,
    KD_OPTION_END,
};
const kd_program kd_cache_extract_program = {
    .name = "kd-cache extract",
    .summary = "Makes a smaller cache from a cache: fewer images, views, features or layers, smaller patch targets, a smaller element type.",
    .examples = "  $ kd-cache extract photos.kdc --features cls --out photos-cls.kdc\n"
                "  $ kd-cache extract photos.kdc --views 0-3 --patch-target adjoint:7 --store i8 --out photos-small.kdc\n"
                "  $ kd-cache extract photos/ --images cats.txt --out cats.kdc\n",
    .epilog = "What is only left out gives the cache that kd-precompute with less would have made. What is rounded again carries the form that its numbers had before (\"source\") in its recipe, "
              "and its fidelity is measured against the cache that it was made from.\n" EPILOG "16 values that the element type can't hold; 130, 143 interrupted.\n",
    .options = extract_table,
};

static void summary(const kd_cache_config *config, const kd_copy_result *r)
{
    char size[32], out[600];
    json_t *line;
    if (config->json) {
        line = json_pack("{s:s,s:o,s:I,s:I,s:I,s:I,s:I}", "type", "summary", "out", kd_json_bytes(config->out, strlen(config->out)), "images", (json_int_t)r->images, "views",
                         (json_int_t)r->views, "shards", (json_int_t)r->shards, "bytes", (json_int_t)r->bytes, "images_without_view", (json_int_t)r->dropped_images);
        kd_json_line(line);
        json_decref(line);
        return;
    }
    printf("%s: %llu images, %llu views, %s in %zu file%s\n", kd_text_escape(out, sizeof out, config->out), (unsigned long long)r->images, (unsigned long long)r->views,
           kd_io_size_text(r->bytes, size, sizeof size), r->shards, r->shards == 1 ? "" : "s");
    if (r->dropped_images)
        printf("%llu images have none of the chosen views and were left out\n", (unsigned long long)r->dropped_images);
}

static kd_status copy_chosen(const kd_cache_config *config, const kd_derive_options *derive, kd_copy_job *job, kd_err *err)
{
    kd_copy_result result;
    kd_derived derived;
    kd_status status;
    KD_TRY(kd_derive(&derived, kd_cache_recipe(job->cache), derive, err));
    job->derived = &derived;
    status = kd_cache_copy(job, &result, err);
    if (status == KD_OK)
        summary(config, &result);
    kd_derived_free(&derived);
    return status;
}

/* What only extract has is empty in the others. */
static kd_status run(const kd_cache_config *config, kd_err *err)
{
    kd_copy_job job = {.out = config->out, .zstd_level = (int)config->zstd_level, .shard_size = config->shard_size, .shards = (uint32_t)config->shards, .force = config->force,
                       .command = config->command};
    kd_derive_options derive = {.features = config->features, .targets = config->patch_target, .layers = config->layers, .dtype = config->store};
    uint8_t *chosen = NULL;
    kd_status status;
    KD_TRY(kd_view_ranges_parse(&job.views, config->views, "--views", err));
    KD_TRY(kd_cache_open_files(&job.cache, config, err));
    kd_image_set set = kd_image_set_of(job.cache);
    status = config->images ? kd_image_list_read(&chosen, &set, config->images, config->null, NULL, err) : KD_OK;
    job.chosen = chosen;
    if (status == KD_OK)
        status = copy_chosen(config, &derive, &job, err);
    kd_free(chosen);
    kd_cache_close(job.cache);
    return status;
}

kd_status kd_cache_merge_run(const kd_cache_config *config, kd_err *err)
{
    if (kd_shard_is_folder(config->out))
        return kd_fail(err, KD_EUSAGE, "--out %s: merge writes one file, whose name ends in .kdc; kd-cache compact writes folders", config->out);
    return run(config, err);
}

kd_status kd_cache_split_run(const kd_cache_config *config, kd_err *err)
{
    if ((config->shards > 0) == (config->shard_size > 0))
        return kd_fail(err, KD_EUSAGE, "give --shards N or --shard-size SIZE, one of them");
    if (!kd_shard_is_folder(config->out))
        return kd_fail(err, KD_EUSAGE, "--out %s: split writes a folder, whose name doesn't end in .kdc", config->out);
    return run(config, err);
}

kd_status kd_cache_compact_run(const kd_cache_config *config, kd_err *err)
{
    return run(config, err);
}

kd_status kd_cache_extract_run(const kd_cache_config *config, kd_err *err)
{
    return run(config, err);
}

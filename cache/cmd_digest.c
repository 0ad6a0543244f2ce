/* kd-cache digest. */
#include <string.h>

#include "cache/commands.h"
#include "common/base/mem.h"

static const kd_option table[] = {
    KD_CACHE_FILES,
    KD_OPTION_FLAG(kd_cache_config, each_shard, "shards", "also the digest of each shard, as its manifest has it"),
    KD_OPTION_END,
};
const kd_program kd_cache_digest_program = {
    .name = "kd-cache digest",
    .summary = "Prints one number for what a cache holds: equal for equal content, however it was made, split or compressed.",
    .examples = "  $ kd-cache digest photos.kdc\n  $ kd-cache digest shards/ --shards\n",
    .epilog = "It is computed from every key and the hash in every record's header; kd-cache check --read-data proves that the records fit their headers.\n"
              "Exit codes: 0 ok; 10 not found; 12 damaged; 13 the shards don't belong together.\n",
    .options = table,
};

static const char *stored_digest(const kd_cache *c, size_t shard)
{
    const char *text = json_string_value(json_object_get(json_object_get(kd_cache_shard_manifest(c, shard), "content"), "digest"));
    return text ? text : "";
}

static void print_json(const kd_cache *c, const char *digest, int each)
{
    json_t *shards = json_array(), *line;
    for (size_t i = 0; each && i < kd_cache_shards(c); i++) {
        const char *path = kd_cache_shard_path(c, i);
        json_array_append_new(shards, json_pack("{s:o,s:s}", "path", kd_json_bytes(path, strlen(path)), "digest", stored_digest(c, i)));
    }
    line = json_pack("{s:s,s:s,s:I,s:I}", "type", "result", "digest", digest, "images", (json_int_t)kd_cache_images(c), "views", (json_int_t)kd_cache_view_total(c));
    if (each)
        json_object_set(line, "shards", shards);
    json_decref(shards);
    kd_json_line(line);
    json_decref(line);
}

kd_status kd_cache_digest_run(const kd_cache_config *config, kd_err *err)
{
    kd_cache *c;
    kd_sha256 digest;
    kd_status status;
    char hex[65], path[4000];
    KD_TRY(kd_cache_open_files(&c, config, err));
    status = kd_cache_digest(c, &digest, err);
    if (status == KD_OK) {
        kd_hex(hex, digest.b, sizeof digest.b);
        if (config->json) {
            print_json(c, hex, config->each_shard);
        } else {
            printf("%s\n", hex);
            for (size_t i = 0; config->each_shard && i < kd_cache_shards(c); i++)
                printf("%s  %s\n", stored_digest(c, i), kd_text_escape(path, sizeof path, kd_cache_shard_path(c, i)));
        }
    }
    kd_cache_close(c);
    return status;
}

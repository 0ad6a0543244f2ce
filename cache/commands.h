/* Commands of kd-cache: one option table and one run function each; commands.c dispatches. Inside cache/ only (kd_cache.c is the main). */
#ifndef KD_CACHE_COMMANDS_H
#define KD_CACHE_COMMANDS_H

#include "cache/store.h"
#include "common/base/options.h"
#include "common/data/dataset.h"

typedef struct kd_cache_config {
    kd_strings files;
    const char *images, *id, *out, *grid, *exif, *read_data, *features, *views, *layers, *patch_target, *store;
    const char *teacher, *image_size, *students, *student_size, *webdataset, *safetensors;
    int64_t image_count, view_count, view, threads, short_side, quality, max_pixels, shards, zstd_level;
    uint64_t budget, shard_size;
    int null, json, all, each_shard, drop_bad, force;
    const char *command; /* the command line, without the folders of its files: for provenance */
} kd_cache_config;

extern const kd_program kd_cache_info_program, kd_cache_list_program, kd_cache_check_program, kd_cache_dump_program, kd_cache_view_program, kd_cache_prepare_program,
    kd_cache_merge_program, kd_cache_split_program, kd_cache_compact_program, kd_cache_extract_program, kd_cache_repair_program, kd_cache_estimate_program, kd_cache_digest_program,
    kd_cache_export_program;
kd_status kd_cache_info_run(const kd_cache_config *c, kd_err *err);
kd_status kd_cache_list_run(const kd_cache_config *c, kd_err *err);
kd_status kd_cache_check_run(const kd_cache_config *c, kd_err *err);
kd_status kd_cache_dump_run(const kd_cache_config *c, kd_err *err);
kd_status kd_cache_view_run(const kd_cache_config *c, kd_err *err);
kd_status kd_cache_prepare_run(const kd_cache_config *c, kd_err *err);
kd_status kd_cache_merge_run(const kd_cache_config *c, kd_err *err);
kd_status kd_cache_split_run(const kd_cache_config *c, kd_err *err);
kd_status kd_cache_compact_run(const kd_cache_config *c, kd_err *err);
kd_status kd_cache_extract_run(const kd_cache_config *c, kd_err *err);
kd_status kd_cache_repair_run(const kd_cache_config *c, kd_err *err);
kd_status kd_cache_estimate_run(const kd_cache_config *c, kd_err *err);
kd_status kd_cache_digest_run(const kd_cache_config *c, kd_err *err);
kd_status kd_cache_export_run(const kd_cache_config *c, kd_err *err);

/* Parses and runs. *json: --json was seen. KD_DONE after help, version, man page or completion. */
kd_status kd_cache_main(int argc, char **argv, int *json, kd_arena *arena, kd_err *err);

/* Table rows that several commands share. */
#define KD_CACHE_FILES {"FILE.kdc|DIR", KD_OPT_STRINGS, offsetof(kd_cache_config, files), "FILE.kdc|DIR", NULL, 0, 0, KD_OPT_REQUIRED | KD_OPT_POSITIONAL, \
                        "sealed cache, or folder of shards; several are read as one"}
#define KD_CACHE_ID KD_OPTION_STRING(kd_cache_config, id, "id", "ID", NULL, KD_OPT_REQUIRED, "image: its id, 32 hexadecimal digits as `kd-cache list` prints them")
#define KD_CACHE_NULL KD_OPTION_FLAG(kd_cache_config, null, "null", "the list's paths end in NUL instead of newline (find -print0)")
#define KD_CACHE_VIEW KD_OPTION_INT(kd_cache_config, view, "view", "V", "0", 0, 4294967294.0, "view of the image, counted from 0")
#define KD_CACHE_SHARD_SIZE(dflt) KD_OPTION_SIZE(kd_cache_config, shard_size, "shard-size", dflt, "bytes of records in a shard of a folder; a shard ends behind the image that reaches them")
#define KD_CACHE_FORCE KD_OPTION_FLAG(kd_cache_config, force, "force", "write on a network file system")
#define KD_CACHE_ZSTD_LEVEL(h) KD_OPTION_INT(kd_cache_config, zstd_level, "zstd-level", "L", "0", 0, 19, h)

kd_list_format kd_cache_list_format(const kd_cache_config *config); /* of --images */
kd_status kd_cache_open_files(kd_cache **c, const kd_cache_config *config, kd_err *err);
/* The image of --id; KD_EUSAGE when the text isn't an id, KD_ENOTFOUND when the cache hasn't it or has fewer views. */
kd_status kd_cache_pick(const kd_image_entry **e, const kd_cache *c, const kd_cache_config *config, kd_err *err);

#endif

/* Config: the options of kd-precompute, as one struct filled by one table. */
#ifndef KD_PRECOMPUTE_CONFIG_H
#define KD_PRECOMPUTE_CONFIG_H

#include "common/base/options.h"

typedef struct kd_precompute_config {
    const char *file; /* --inspect FILE */
    const char *images, *weights, *cache, *teacher;
    const char *weights_key, *positions, *normalize; /* weights_key: NULL when absent */
    int64_t views, seed, zstd_level, batch_size, threads;
    const char *image_size, *augment, *features, *layers, *layer_norm, *layer_concat, *patch_target, *store, *student_size, *device, *precision, *exif;
    int64_t max_pixels;
    const char *students; /* --for; NULL when absent */
    uint64_t budget;
    const char *max_skipped;
    const char *note, *license, *contact, *dataset_name;
    const char *shard, *stage, *paths, *fill; /* shard, stage, fill: NULL when absent */
    uint64_t shard_size;
    int null, inspect, dry_run, json, force;
    char **argv; /* the command line, for the processes of --device cuda:all */
} kd_precompute_config;

extern const kd_program kd_precompute_program;

#endif

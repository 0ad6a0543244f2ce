/* Recipe: makes the recipe (cache/identity.h) of what a run is about to compute: of a cache that is to be written, or of a live teacher's targets. */
#ifndef KD_CACHE_RECIPE_H
#define KD_CACHE_RECIPE_H

#include "cache/identity.h"
#include "common/image/augment.h"

typedef struct kd_recipe_parts {
    json_t *teacher;        /* kd_teacher_json; taken over */
    const uint16_t *layer;  /* [layers], as chosen */
    int layers, norm, concat;
    const kd_policy *policy;
    uint64_t seed;          /* of the views */
    const char *exif;       /* "ignore", "apply" */
    unsigned features;      /* bits 1 << kd_feature below KD_OUTPUTS */
    int grid_h, grid_w, registers, width;
    const kd_target *target; /* [targets]; read where features have patches */
    int targets;
    kd_dtype dtype;         /* of the stored values; KD_F32: they aren't stored but taught as the teacher gives them */
    const kd_hash128 *ids;  /* [images], ascending, each once: the set, where the policy mixes views; else not read */
    size_t images;
} kd_recipe_parts;

/* The decoder's hash is this program's. KD_EFAIL: memory, or a decoder that doesn't decode its reference pictures. KD_EDAMAGED as kd_recipe_from_json, for parts that contradict each other; `what` names the
 * source. */
kd_status kd_recipe_make(kd_recipe *recipe, const kd_recipe_parts *parts, const char *what, kd_err *err);

#endif

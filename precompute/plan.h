/* Plan: what a run will do, before it does it: recipe, sizes, free-space guard, --budget.
 *
 * Sizes are the model's of cache/size_model.h, and what is stored in which form is the ladder's of cache/budget.h, which kd-cache estimate uses too. Sealing needs the size of the cache again beside the
 * partial file, in a folder that of one shard at a time. */
#ifndef KD_PRECOMPUTE_PLAN_H
#define KD_PRECOMPUTE_PLAN_H

#include "common/image/augment.h"
#include "cache/identity.h"
#include "kernels/nn/selection.h"
#include "precompute/config.h"

typedef struct kd_run_plan {
    uint64_t images; /* files in the data set, duplicates included */
    uint32_t views;  /* per image */
    kd_layer_choice choice;
    uint32_t grid_h, grid_w, registers;
    uint32_t width;  /* of a stored record */
    kd_dtype dtype;  /* of stored values */
    int targets;     /* forms in which patches are stored; 0 without patches */
    kd_target target[KD_MAX_TARGETS];
    uint64_t bytes_per_view, cache_bytes, peak_bytes; /* peak: at --cache while the last shard is sealed */
    uint64_t beside_bytes; /* what sealing needs at --cache beside the sealed cache, at most: two shards in a folder, nothing with --stage */
    uint64_t free_bytes;
    int mixed;       /* views are mixed with those of other images */
    char reason[400]; /* what was chosen, and what of the ladder didn't fit */
} kd_run_plan;

/* What the run stores of every layer, in the order of kd_feature: bits 1 << kd_feature, a bit for each patch target. */
unsigned kd_plan_features(const kd_run_plan *plan);
/* Rows (tokens) of a feature's records, as stored. */
uint32_t kd_plan_rows(const kd_run_plan *plan, kd_feature f);
/* Fills the plan; images: of the whole set, so that every part of it (kd_run_plan_narrow) is stored in one way and --budget holds for all together. Element type, targets and, with --budget,
 * views and features are chosen as cache/budget.h says. KD_ENOSPACE: not even one view of the smallest form fits the budget. KD_EUSAGE: an option that is none. */
kd_status kd_run_plan_make(kd_run_plan *plan, const kd_precompute_config *config, const kd_policy *policy, const kd_model_info *model, uint64_t images, kd_err *err);

/* A part of the planned work, stored in the same way: `images` of the files, of each at most `views` views, `count` views in all. */
void kd_run_plan_narrow(kd_run_plan *plan, uint64_t images, uint32_t views, uint64_t count);

/* KD_ENOSPACE when what is still to be written (peak minus `already` bytes of a partial file) is above 80% of the free space; the sentence gives commands that would fit. */
kd_status kd_run_plan_guard(const kd_run_plan *plan, const kd_precompute_config *config, uint64_t already, kd_err *err);

/* The recipe (cache/identity.h) of this run. ids: the n ids of the set, ascending, each once, where the policy mixes views; else not read. */
kd_status kd_run_recipe(kd_recipe *recipe, const kd_precompute_config *config, const kd_run_plan *plan, const kd_policy *policy,
                        const kd_model_info *model, const kd_sha256 *weights, const kd_hash128 *ids, size_t n, kd_err *err);

#endif

/* Plan: what a run will do, before it does it: recipe, sizes, free-space guard, --budget.
 *
 * Size model: a view costs its records (headers, compressed f16 planes, taken as incompressible), its plan and LMDB's pages; sealing needs the same again beside the partial file, in a folder for one
 * shard at a time.
 * The real size is a little smaller: measured 92.9 KiB where this says 101.5 (ViT-Ti/14 on Caltech-101). */
#ifndef KD_PRECOMPUTE_PLAN_H
#define KD_PRECOMPUTE_PLAN_H

#include "common/image/augment.h"
#include "precompute/selection.h"

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
} kd_run_plan;

/* What the run stores of every layer, in the order of kd_feature: bits 1 << kd_feature, a bit for each patch target. */
unsigned kd_plan_features(const kd_run_plan *plan);
/* Rows (tokens) of a feature's records, as stored. */
uint32_t kd_plan_rows(const kd_run_plan *plan, kd_feature f);
/* Bytes that one view takes in the cache: every feature of every stored layer. */
uint64_t kd_plan_view_bytes(const kd_run_plan *plan);

/* Fills the plan; with --budget the views are reduced, then the patch features dropped, until the sealed cache fits (KD_ENOSPACE when one view
 * without them doesn't). */
kd_status kd_run_plan_make(kd_run_plan *plan, const kd_precompute_config *config, const kd_policy *policy, const kd_model_info *model, uint64_t images, kd_err *err);

/* KD_ENOSPACE when what is still to be written (peak minus `already` bytes of a partial file) is above 80% of the free space; the sentence gives commands that would fit. */
kd_status kd_run_plan_guard(const kd_run_plan *plan, const kd_precompute_config *config, uint64_t already, kd_err *err);

/* The recipe (cache/identity.h) of this run. ids: the n ids of the set, ascending, each once, where the policy mixes views; else not read. */
kd_status kd_run_recipe(kd_recipe *recipe, const kd_precompute_config *config, const kd_run_plan *plan, const kd_policy *policy,
                        const kd_model_info *model, const kd_sha256 *weights, const kd_hash128 *ids, size_t n, kd_err *err);

#endif

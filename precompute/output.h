/* Output: the cache that a run writes, as the options say it: one file or a folder of shards, all images or a part of them, here or by way of a stage. */
#ifndef KD_PRECOMPUTE_OUTPUT_H
#define KD_PRECOMPUTE_OUTPUT_H

#include "cache/shard_writer.h"
#include "precompute/part.h"
#include "precompute/plan.h"

typedef struct kd_output {
    const kd_precompute_config *config;
    int folder;
    kd_part part;
    char *product;           /* what the list of skipped inputs stands beside: FILE.kdc, DIR/shard, DIR/part-00003-of-00008 */
    kd_shard_writer *writer; /* after kd_output_open */
} kd_output;

/* Reads the options; touches nothing. Borrows config. KD_EUSAGE: --shard or --fill with a file, or both; an empty name. */
kd_status kd_output_choose(kd_output *o, const kd_precompute_config *config, kd_err *err);
void kd_output_close(kd_output *o);

/* Says in the log which part of how many files this is, and where shards go. */
void kd_output_describe(const kd_output *o, uint64_t files, uint64_t files_of_all);

/* Checks the free space and opens the writer. KD_DONE: one file, sealed with this recipe already. KD_ENOSPACE; otherwise as kd_shard_writer_open. */
kd_status kd_output_open(kd_output *o, const kd_run_plan *plan, const kd_recipe *recipe, const json_t *provenance, kd_err *err);

#endif

/* Describe: a run's plan in words, before it starts: which teacher, which images, what is stored, how much memory. */
#ifndef KD_PRECOMPUTE_DESCRIBE_H
#define KD_PRECOMPUTE_DESCRIBE_H

#include "common/data/dataset.h"
#include "precompute/kinds.h"
#include "precompute/plan.h"
#include "precompute/probe.h"
#include "kernels/nn/teacher.h"

typedef struct kd_run_facts {
    const kd_precompute_config *config;
    const kd_dataset *data;
    const kd_weights *weights;
    const kd_sha256 *weights_sha;
    const kd_model_info *model;
    const kd_policy *policy;
    const kd_run_plan *plan;
} kd_run_facts;

/* What is known before the weights are read. Warns where --budget has reduced the run, and where the teacher's normalisation is a guess. */
void kd_describe_plan(const kd_run_facts *f);

/* Memory once the teacher is open: planned_bytes is everything beside the model that the run has reserved. With --json also the line {"type":"plan"}. */
void kd_describe_memory(const kd_run_facts *f, const kd_teacher *t, uint64_t planned_bytes);

/* How fast a dry run found the machine, how long `views` take at that rate and which stage sets it; with --json also the line {"type":"result"}. */
void kd_describe_speed(const kd_run_facts *f, const kd_probe_rates *rates, const kd_kinds *kinds, uint64_t views, double flops_per_view, int threads);

/* New reference: what the manifest's provenance says about the weights: container, files, names, layout, normalisation. */
json_t *kd_describe_weights(const kd_run_facts *f);

#endif

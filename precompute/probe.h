/* Probe: how fast this machine would go through a run, tried on a sample of its own images. For --dry-run.
 *
 * Two passes: loader threads decode and augment the sample with nothing beside them; then they do it again while the calling thread computes and compresses batches, as the run does. What the second pass
 * reaches is the estimate; on a CPU its stages share the processors, so that it lies below the slowest of them alone. Writing to disk and sealing aren't tried: a dry run touches nothing. */
#ifndef KD_PRECOMPUTE_PROBE_H
#define KD_PRECOMPUTE_PROBE_H

#include "common/data/views.h"

typedef struct kd_probe {
    const kd_dataset *data;
    const kd_policy *policy; /* of mixed views only the own picture is made */
    kd_decode_options decode;
    uint64_t seed;
    uint32_t views;          /* of each image */
    int threads, batch;
    uint8_t *pixels;         /* [batch][image_h][image_w][3] */
    /* Computes and compresses a batch of `pixels`, and adds the seconds that both took. */
    kd_status (*compute)(void *ctx, double *teacher, double *storing, kd_err *err);
    void *ctx;
} kd_probe;

typedef struct kd_probe_rates {
    double decoding, teacher, storing; /* views per second of each stage; decoding is 0 when none of the sample could be read */
    double together;
    const char *binds;                 /* "decoding", "the teacher", "storing" */
    size_t images;                     /* of the sample, that could be read */
} kd_probe_rates;

/* Takes some seconds: at least two batches. KD_ESIGINT, KD_ESIGTERM when stopped; otherwise compute's errors, memory. */
kd_status kd_probe_run(kd_probe_rates *rates, const kd_probe *p, kd_err *err);

#endif

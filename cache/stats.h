/* Statistics of a feature: mean vector and one scalar, accumulated in double in the order of the rows given. Inside cache/ only. */
#ifndef KD_CACHE_STATS_H
#define KD_CACHE_STATS_H

#include <stdint.h>

#include "common/base/err.h"

/* Image ids are hashes, so the first views in key order are a fair sample. */
enum { KD_STATS_VIEWS = 8192 };

typedef struct kd_stats {
    int width;
    uint64_t rows, views;
    double *sum, *squares; /* [width] */
    float *mean;           /* [width], after kd_stats_finish */
    float scalar_std;      /* sqrt(mean over channels of the variance) */
} kd_stats;

kd_status kd_stats_create(kd_stats *s, int width, kd_err *err);
void kd_stats_add_view(kd_stats *s, const float *rows, size_t count); /* [count, width] */
void kd_stats_finish(kd_stats *s);
void kd_stats_free(kd_stats *s);

#endif

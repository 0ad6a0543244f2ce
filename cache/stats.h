/* Statistics of a feature: mean vector and one scalar, accumulated in double in the order of the rows given. Of what a cache stores, and of a live teacher's targets. */
#ifndef KD_CACHE_STATS_H
#define KD_CACHE_STATS_H

#include <stdint.h>

#include "common/base/err.h"

/* Image ids are hashes, so the first views in key order are a fair sample. */
enum { KD_STATS_VIEWS = 8192 };

typedef struct kd_stats {
    int width;
    uint64_t rows, views;
    double *sum, *squares; /* [width]; adjoint targets add all squares to the first */
    float *mean;           /* [width], after kd_stats_finish */
    float scalar_std;      /* sqrt(mean over channels of the variance) */
} kd_stats;

kd_status kd_stats_create(kd_stats *s, int width, kd_err *err);
void kd_stats_add_view(kd_stats *s, const float *rows, size_t count); /* [count, width] */
/* Of a view stored as U^T t [count, width] and |t|^2 = square, where t has `tokens` rows: U's rows sum to 1, so the sums over the stored rows are those over the tokens. */
void kd_stats_add_adjoint(kd_stats *s, const float *rows, size_t count, double square, size_t tokens);
void kd_stats_finish(kd_stats *s);
void kd_stats_free(kd_stats *s);

#endif

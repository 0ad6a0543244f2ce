#include "cache/stats.h"

#include <math.h>
#include <string.h>

#include "common/base/mem.h"

#ifdef __clang__
#define VECTORISED
#else
#define VECTORISED __attribute__((optimize("O3")))
#endif

kd_status kd_stats_create(kd_stats *s, int width, kd_err *err)
{
    memset(s, 0, sizeof *s);
    s->width = width;
    KD_TRY(kd_alloc_array(&s->sum, (size_t)width, sizeof *s->sum, err));
    KD_TRY(kd_alloc_array(&s->squares, (size_t)width, sizeof *s->squares, err));
    return kd_alloc_array(&s->mean, (size_t)width, sizeof *s->mean, err);
}

/* Each channel is summed over the rows in order, so the compiler may work on several channels at once without changing a bit. */
VECTORISED __attribute__((target_clones("avx512f", "avx2", "default"))) static void add_rows(double *KD_RESTRICT sum, double *KD_RESTRICT squares, const float *KD_RESTRICT rows,
                                                                                 size_t count, size_t width)
{
    for (size_t r = 0; r < count; r++) {
        const float *x = rows + r * width;
        for (size_t i = 0; i < width; i++) {
            double v = (double)x[i];
            sum[i] += v;
            squares[i] += v * v;
        }
    }
}

void kd_stats_add_view(kd_stats *s, const float *rows, size_t count)
{
    add_rows(s->sum, s->squares, rows, count, (size_t)s->width);
    s->rows += count;
    s->views++;
}

void kd_stats_add_adjoint(kd_stats *s, const float *rows, size_t count, double square, size_t tokens)
{
    for (size_t r = 0; r < count; r++) {
        for (int i = 0; i < s->width; i++)
            s->sum[i] += (double)rows[r * (size_t)s->width + (size_t)i];
    }
    s->squares[0] += square;
    s->rows += tokens;
    s->views++;
}

void kd_stats_finish(kd_stats *s)
{
    double variance = 0, n = s->rows ? (double)s->rows : 1;
    for (int i = 0; i < s->width; i++) {
        double mean = s->sum[i] / n;
        s->mean[i] = (float)mean;
        variance += s->squares[i] / n - mean * mean;
    }
    s->scalar_std = variance > 0 ? (float)sqrt(variance / s->width) : 0.0f; /* rounding can take constants below zero */
}

void kd_stats_free(kd_stats *s)
{
    kd_free(s->sum);
    kd_free(s->squares);
    kd_free(s->mean);
    memset(s, 0, sizeof *s);
}

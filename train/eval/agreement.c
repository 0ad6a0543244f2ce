#include "train/eval/agreement.h"

#include <math.h>
#include <stdint.h>
#include <string.h>

#include "common/base/mem.h"
#include "common/base/threads.h"

typedef struct side {
    float *rows;   /* [n][width], of length 1 (0 where the feature is 0) */
    size_t width;
} side;

typedef struct job {
    side side[2];      /* teacher, student */
    size_t n, k;
    uint32_t *kept;    /* [n] neighbours that both have */
    float *similarity; /* [threads][k] */
    uint32_t *nearest; /* [threads][2][k] */
} job;

static kd_status normalise(side *s, const float *in, size_t n, size_t width, kd_err *err) {
    s->width = width;
    KD_TRY(kd_alloc_array(&s->rows, n, width * sizeof(float), err));
    for (size_t i = 0; i < n; i++) {
        const float *row = in + i * width;
        double square = 0;
        for (size_t c = 0; c < width; c++)
            square += (double)row[c] * (double)row[c];
        double scale = square > 0 ? 1 / sqrt(square) : 0;
        for (size_t c = 0; c < width; c++)
            s->rows[i * width + c] = (float)((double)row[c] * scale);
    }
    return KD_OK;
}

/* Eight partial sums let the compiler vectorise without re-associating by itself. */
static float dot(const float *a, const float *b, size_t n) {
    float part[8] = {0}, sum = 0;
    size_t i = 0;
    for (; i + 8 <= n; i += 8)
        for (size_t j = 0; j < 8; j++)
            part[j] += a[i + j] * b[i + j];
    for (size_t j = 0; j < 8; j++)
        sum += part[j];
    for (; i < n; i++)
        sum += a[i] * b[i];
    return sum;
}

/* The k most similar to image i, nearest first. Candidates come in index order, so `>` makes the lower index win ties. */
static void find_nearest(const side *s, size_t n, size_t i, size_t k, float *similarity, uint32_t *nearest) {
    size_t filled = 0;
    for (size_t j = 0; j < n; j++) {
        if (j == i)
            continue;
        float x = dot(s->rows + i * s->width, s->rows + j * s->width, s->width);
        if (filled == k && !(x > similarity[k - 1]))
            continue;
        size_t at = filled < k ? filled++ : k - 1;
        for (; at > 0 && x > similarity[at - 1]; at--) {
            similarity[at] = similarity[at - 1];
            nearest[at] = nearest[at - 1];
        }
        similarity[at] = x;
        nearest[at] = (uint32_t)j;
    }
}

static void compare(void *ctx, int worker, size_t i) {
    job *g = ctx;
    uint32_t *a = g->nearest + (size_t)worker * 2 * g->k, *b = a + g->k;
    float *similarity = g->similarity + (size_t)worker * g->k;
    find_nearest(&g->side[0], g->n, i, g->k, similarity, a);
    find_nearest(&g->side[1], g->n, i, g->k, similarity, b);
    g->kept[i] = 0;
    for (size_t x = 0; x < g->k; x++)
        for (size_t y = 0; y < g->k; y++)
            g->kept[i] += a[x] == b[y];
}

kd_status kd_agreement(double *share, double *each, const float *teacher, size_t teacher_width, const float *student, size_t student_width, size_t n, int k, int threads, kd_err *err) {
    KD_ASSERT(n >= 2 && k >= 1 && threads >= 1);
    size_t most = n > 2 ? n - 2 : 1; /* with all others as neighbours there would be nothing to tell */
    job g = {.n = n, .k = (size_t)k < most ? (size_t)k : most};
    uint64_t kept = 0;
    kd_status status = normalise(&g.side[0], teacher, n, teacher_width, err);
    if (status == KD_OK)
        status = normalise(&g.side[1], student, n, student_width, err);
    if (status == KD_OK)
        status = kd_alloc_array(&g.kept, n, sizeof *g.kept, err);
    if (status == KD_OK)
        status = kd_alloc_array(&g.similarity, (size_t)threads * g.k, sizeof *g.similarity, err);
    if (status == KD_OK)
        status = kd_alloc_array(&g.nearest, (size_t)threads * 2 * g.k, sizeof *g.nearest, err);
    if (status == KD_OK)
        kd_parallel_for(threads, n, compare, &g);
    for (size_t i = 0; i < n && status == KD_OK; i++) {
        kept += g.kept[i];
        if (each != NULL)
            each[i] = (double)g.kept[i] / (double)g.k;
    }
    *share = (double)kept / ((double)n * (double)g.k);
    kd_free(g.side[0].rows);
    kd_free(g.side[1].rows);
    kd_free(g.kept);
    kd_free(g.similarity);
    kd_free(g.nearest);
    return status;
}

int kd_agreement_neighbours(size_t n, int k) {
    size_t quarter = (n - 1) / 4;
    return quarter < 1 ? 1 : quarter < (size_t)k ? (int)quarter : k;
}

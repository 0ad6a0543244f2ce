#include "train/eval/ridge.h"

#include <math.h>
#include <string.h>

#include "common/base/mem.h"
#include "common/base/threads.h"

static const double strengths[] = {10, 1, 1e-1, 1e-2, 1e-3, 1e-4};
enum { STRENGTHS = sizeof strengths / sizeof strengths[0], HELD = 4 /* every fourth sample */ };
static const double unknown_strength = 0.1; /* too few samples to choose */

/* The sums that every strength shares. */
typedef struct moments {
    size_t in, out, n;
    double *x;          /* [in][n], without its mean */
    double *y;          /* [out][n] */
    double *mean_x, *mean_y;
    double *cov;        /* [in][in], the lower half: x x^T / n */
    double *cross;      /* [out][in]: y x^T / n */
    double scale;       /* mean variance of x's channels */
} moments;

/* Eight partial sums let the compiler vectorise without re-associating by itself. */
static double dot(const double *a, const double *b, size_t n) {
    double part[8] = {0}, sum = 0;
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

/* ---- sums ---- */

/* One channel after the other, because each is summed with every other. */
static void centre(double *to, double *mean, const float *from, size_t width, size_t n) {
    for (size_t c = 0; c < width; c++) {
        double sum = 0;
        for (size_t i = 0; i < n; i++)
            sum += (double)from[i * width + c];
        mean[c] = sum / (double)n;
        for (size_t i = 0; i < n; i++)
            to[c * n + i] = (double)from[i * width + c] - mean[c];
    }
}

static void sum_channel(void *ctx, int worker, size_t c) {
    moments *m = ctx;
    (void)worker;
    if (c < m->in) {
        for (size_t b = 0; b <= c; b++)
            m->cov[c * m->in + b] = dot(m->x + c * m->n, m->x + b * m->n, m->n) / (double)m->n;
        return;
    }
    c -= m->in;
    for (size_t b = 0; b < m->in; b++)
        m->cross[c * m->in + b] = dot(m->y + c * m->n, m->x + b * m->n, m->n) / (double)m->n;
}

static kd_status collect(moments *m, const float *x, const float *y, int threads, kd_err *err) {
    KD_TRY(kd_alloc_array(&m->x, m->in, m->n * sizeof *m->x, err));
    KD_TRY(kd_alloc_array(&m->y, m->out, m->n * sizeof *m->y, err));
    KD_TRY(kd_alloc_array(&m->mean_x, m->in, sizeof *m->mean_x, err));
    KD_TRY(kd_alloc_array(&m->mean_y, m->out, sizeof *m->mean_y, err));
    KD_TRY(kd_alloc_array(&m->cov, m->in, m->in * sizeof *m->cov, err));
    KD_TRY(kd_alloc_array(&m->cross, m->out, m->in * sizeof *m->cross, err));
    centre(m->x, m->mean_x, x, m->in, m->n);
    centre(m->y, m->mean_y, y, m->out, m->n);
    kd_parallel_for(threads, m->in + m->out, sum_channel, m);
    for (size_t c = 0; c < m->in; c++)
        m->scale += m->cov[c * m->in + c] / (double)m->in;
    return KD_OK;
}

static void free_moments(moments *m) {
    kd_free(m->x);
    kd_free(m->y);
    kd_free(m->mean_x);
    kd_free(m->mean_y);
    kd_free(m->cov);
    kd_free(m->cross);
}

/* ---- solving ---- */

typedef struct solving {
    size_t in;
    const double *lower; /* [in][in], L of A = L L^T */
    double *weight;      /* [out][in], in place: the right side becomes the solution */
} solving;

/* A = L L^T in place, row by row. A is the covariance with `ridge` on its diagonal: positive definite. */
static void decompose(double *a, size_t n, double ridge) {
    for (size_t i = 0; i < n; i++) {
        double *row = a + i * n;
        row[i] += ridge;
        for (size_t j = 0; j < i; j++)
            row[j] = (row[j] - dot(row, a + j * n, j)) / a[j * n + j];
        row[i] = sqrt(row[i] - dot(row, row, i));
    }
}

static void solve_row(void *ctx, int worker, size_t o) {
    const solving *s = ctx;
    double *w = s->weight + o * s->in;
    (void)worker;
    for (size_t i = 0; i < s->in; i++)
        w[i] = (w[i] - dot(s->lower + i * s->in, w, i)) / s->lower[i * s->in + i];
    for (size_t i = s->in; i-- > 0;) { /* L^T from the end: what is known is taken out of what is before it */
        w[i] /= s->lower[i * s->in + i];
        for (size_t j = 0; j < i; j++)
            w[j] -= s->lower[i * s->in + j] * w[i];
    }
}

static kd_status solve(kd_ridge *map, const moments *m, double strength, int threads, kd_err *err) {
    double *a;
    kd_ridge_free(map);
    *map = (kd_ridge){.in = m->in, .out = m->out, .strength = strength};
    KD_TRY(kd_alloc_array(&map->weight, m->out, m->in * sizeof *map->weight, err));
    KD_TRY(kd_alloc_array(&map->bias, m->out, sizeof *map->bias, err));
    KD_TRY(kd_alloc_array(&map->mean, m->out, sizeof *map->mean, err));
    KD_TRY(kd_alloc_array(&a, m->in, m->in * sizeof *a, err));
    for (size_t o = 0; o < m->out; o++)
        map->mean[o] = (double)(float)m->mean_y[o];
    if (m->scale > 0) {
        memcpy(a, m->cov, m->in * m->in * sizeof *a);
        memcpy(map->weight, m->cross, m->out * m->in * sizeof *map->weight);
        decompose(a, m->in, strength * m->scale);
        kd_parallel_for(threads, m->out, solve_row, &(solving){m->in, a, map->weight});
    }
    for (size_t o = 0; o < m->out; o++)
        map->bias[o] = m->mean_y[o] - dot(map->weight + o * m->in, m->mean_x, m->in);
    kd_free(a);
    return KD_OK;
}

kd_status kd_ridge_fit(kd_ridge *map, const float *x, size_t in, const float *y, size_t out, size_t n, double strength, int threads, kd_err *err) {
    KD_ASSERT(n >= 1 && in >= 1 && out >= 1 && strength > 0);
    moments m = {.in = in, .out = out, .n = n};
    kd_status status = collect(&m, x, y, threads, err);
    if (status == KD_OK)
        status = solve(map, &m, strength, threads, err);
    free_moments(&m);
    return status;
}

/* ---- choosing ---- */

/* Rows of the samples that are held back (held 1), or of the others. */
static size_t take(float *to, const float *from, size_t width, size_t n, size_t group, int held) {
    size_t taken = 0;
    for (size_t i = 0; i < n; i++)
        if ((i / group % HELD == HELD - 1) == held)
            memcpy(to + taken++ * width, from + i * width, width * sizeof *to);
    return taken;
}

static double squared_error(const float *a, const float *b, size_t n) {
    double sum = 0;
    for (size_t i = 0; i < n; i++)
        sum += ((double)a[i] - (double)b[i]) * ((double)a[i] - (double)b[i]);
    return sum;
}

typedef struct choosing {
    float *x, *y;           /* [n][in], [n][out]: rows to fit on, then those held back */
    float *predicted;       /* [n][out] */
    size_t fitted, held;
} choosing;

static kd_status try_strengths(double *best, kd_ridge *map, const choosing *c, size_t in, size_t out, int threads, kd_err *err) {
    moments m = {.in = in, .out = out, .n = c->fitted};
    double least = INFINITY;
    kd_status status = collect(&m, c->x, c->y, threads, err);
    for (int i = 0; i < STRENGTHS && status == KD_OK; i++) {
        status = solve(map, &m, strengths[i], threads, err);
        if (status != KD_OK)
            break;
        kd_ridge_apply(map, c->x + c->fitted * in, c->held, c->predicted, threads);
        double error = squared_error(c->predicted, c->y + c->fitted * out, c->held * out);
        if (error < least) {
            least = error;
            *best = strengths[i];
        }
    }
    free_moments(&m);
    return status;
}

static kd_status choose(double *best, kd_ridge *map, choosing *c, const float *x, size_t in, const float *y, size_t out, size_t n, size_t group, int threads, kd_err *err) {
    KD_TRY(kd_alloc_array(&c->x, n, in * sizeof *c->x, err));
    KD_TRY(kd_alloc_array(&c->y, n, out * sizeof *c->y, err));
    KD_TRY(kd_alloc_array(&c->predicted, n, out * sizeof *c->predicted, err));
    c->fitted = take(c->x, x, in, n, group, 0);
    c->held = take(c->x + c->fitted * in, x, in, n, group, 1);
    (void)take(c->y, y, out, n, group, 0);
    (void)take(c->y + c->fitted * out, y, out, n, group, 1);
    return try_strengths(best, map, c, in, out, threads, err);
}

kd_status kd_ridge_fit_best(kd_ridge *map, const float *x, size_t in, const float *y, size_t out, size_t n, size_t group, int threads, kd_err *err) {
    KD_ASSERT(group >= 1 && n % group == 0);
    double best = unknown_strength;
    if (n / group >= HELD) {
        choosing c = {0};
        kd_status status = choose(&best, map, &c, x, in, y, out, n, group, threads, err);
        kd_free(c.x);
        kd_free(c.y);
        kd_free(c.predicted);
        KD_TRY(status);
    }
    return kd_ridge_fit(map, x, in, y, out, n, best, threads, err);
}

/* ---- use ---- */

typedef struct applying {
    const kd_ridge *map;
    const float *x;
    float *y;
} applying;

static void apply_row(void *ctx, int worker, size_t i) {
    const applying *a = ctx;
    const kd_ridge *r = a->map;
    const float *x = a->x + i * r->in;
    (void)worker;
    for (size_t o = 0; o < r->out; o++) {
        const double *w = r->weight + o * r->in;
        double part[4] = {0}, sum = r->bias[o];
        size_t c = 0;
        for (; c + 4 <= r->in; c += 4)
            for (size_t j = 0; j < 4; j++)
                part[j] += w[c + j] * (double)x[c + j];
        for (; c < r->in; c++)
            sum += w[c] * (double)x[c];
        a->y[i * r->out + o] = (float)(sum + (part[0] + part[1]) + (part[2] + part[3]));
    }
}

void kd_ridge_apply(const kd_ridge *map, const float *x, size_t n, float *y, int threads) {
    kd_parallel_for(threads, n, apply_row, &(applying){map, x, y});
}

void kd_ridge_free(kd_ridge *map) {
    kd_free(map->weight);
    kd_free(map->bias);
    kd_free(map->mean);
    *map = (kd_ridge){0};
}

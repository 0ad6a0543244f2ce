#include "train/eval/likeness.h"

#include <math.h>
#include <string.h>

#include "common/base/mem.h"
#include "common/base/threads.h"
#include "common/tensor/target.h"
#include "train/eval/ridge.h"

kd_figure kd_figure_ratio(const double *a, const double *b, size_t n) {
    double over = 0, under = 0, square = 0;
    for (size_t i = 0; i < n; i++) {
        over += a[i];
        under += b != NULL ? b[i] : 1;
    }
    double value = over / under;
    for (size_t i = 0; i < n; i++) {
        double d = a[i] - value * (b != NULL ? b[i] : 1);
        square += d * d;
    }
    double margin = 1.96 * sqrt((double)n / (double)(n - 1) * square) / under;
    return (kd_figure){value, value - margin, value + margin};
}

/* ---- grids ---- */

void kd_grid_resize(float *out, int to_h, int to_w, const float *in, int h, int w, size_t width) {
    for (int y = 0; y < to_h; y++)
        for (int x = 0; x < to_w; x++, out += width) {
            int64_t y0, y1, x0, x1;
            double fy, fx;
            kd_bilinear_tap(h, to_h, y, &y0, &y1, &fy);
            kd_bilinear_tap(w, to_w, x, &x0, &x1, &fx);
            const float *a = in + (size_t)(y0 * w + x0) * width, *b = in + (size_t)(y0 * w + x1) * width, *c = in + (size_t)(y1 * w + x0) * width, *d = in + (size_t)(y1 * w + x1) * width;
            for (size_t k = 0; k < width; k++)
                out[k] = (float)((1 - fy) * ((1 - fx) * (double)a[k] + fx * (double)b[k]) + fy * ((1 - fx) * (double)c[k] + fx * (double)d[k]));
        }
}

void kd_grid_sample(float *to, size_t taken, const float *from, size_t rows, size_t width, size_t image) {
    enum { TURN = 7919 }; /* a prime: the places differ from image to image */
    for (size_t j = 0; j < taken; j++)
        memcpy(to + j * width, from + (j * rows + image * TURN % rows) / taken * width, width * sizeof *to);
}

/* ---- measuring ---- */

typedef struct measuring {
    const float *teacher, *student;
    size_t teacher_width, student_width, images, rows;
    int threads;
    kd_ridge map[2];      /* fitted on even, on odd images */
    float *predicted;     /* [threads][rows][teacher_width] */
    double *error, *spread, *cosine, *raw_cosine, *raw_error; /* [images] each */
} measuring;

static double cosine_of(const float *a, const float *b, const double *mean, size_t n) {
    double aa = 0, bb = 0, ab = 0;
    for (size_t c = 0; c < n; c++) {
        double x = (double)a[c] - (mean != NULL ? mean[c] : 0), y = (double)b[c] - (mean != NULL ? mean[c] : 0);
        aa += x * x;
        bb += y * y;
        ab += x * y;
    }
    return aa > 0 && bb > 0 ? ab / sqrt(aa * bb) : 0;
}

static void measure_raw(measuring *g, size_t i, const float *t, const float *s) {
    size_t width = g->teacher_width;
    for (size_t r = 0; r < g->rows; r++) {
        g->raw_cosine[i] += cosine_of(s + r * width, t + r * width, NULL, width) / (double)g->rows;
        for (size_t c = 0; c < width; c++) {
            double d = (double)s[r * width + c] - (double)t[r * width + c];
            g->raw_error[i] += d * d / (double)(g->rows * width);
        }
    }
}

static void measure_image(void *ctx, int worker, size_t i) {
    measuring *g = ctx;
    const kd_ridge *map = &g->map[(i + 1) % 2]; /* that hasn't seen it */
    const float *t = g->teacher + i * g->rows * g->teacher_width, *s = g->student + i * g->rows * g->student_width;
    float *p = g->predicted + (size_t)worker * g->rows * g->teacher_width;
    kd_ridge_apply(map, s, g->rows, p, 1);
    for (size_t r = 0; r < g->rows; r++, p += g->teacher_width) {
        const float *row = t + r * g->teacher_width;
        for (size_t c = 0; c < g->teacher_width; c++) {
            double e = (double)p[c] - (double)row[c], d = (double)row[c] - map->mean[c];
            g->error[i] += e * e;
            g->spread[i] += d * d;
        }
        g->cosine[i] += cosine_of(p, row, map->mean, g->teacher_width) / (double)g->rows;
    }
    if (g->raw_cosine != NULL)
        measure_raw(g, i, t, s);
}

/* The rows that a half's map is fitted on. */
static kd_status fit_half(measuring *g, size_t half, kd_err *err) {
    size_t images = (g->images + 1 - half) / 2, most = KD_LIKENESS_ROWS / images, taken = most < 1 ? 1 : most < g->rows ? most : g->rows;
    float *x = NULL, *y = NULL;
    kd_status status = kd_alloc_array(&x, images * taken, g->student_width * sizeof *x, err);
    if (status == KD_OK)
        status = kd_alloc_array(&y, images * taken, g->teacher_width * sizeof *y, err);
    for (size_t n = 0; n < images && status == KD_OK; n++) {
        size_t i = 2 * n + half;
        kd_grid_sample(x + n * taken * g->student_width, taken, g->student + i * g->rows * g->student_width, g->rows, g->student_width, n);
        kd_grid_sample(y + n * taken * g->teacher_width, taken, g->teacher + i * g->rows * g->teacher_width, g->rows, g->teacher_width, n);
    }
    if (status == KD_OK)
        status = kd_ridge_fit_best(&g->map[half], x, g->student_width, y, g->teacher_width, images * taken, taken, g->threads, err);
    kd_free(x);
    kd_free(y);
    return status;
}

static kd_status measure(measuring *g, kd_likeness *l, kd_err *err) {
    double *sums;
    size_t n = g->images;
    KD_TRY(kd_alloc_array(&sums, 5, n * sizeof *sums, err));
    g->error = sums; /* owned from here on */
    g->spread = sums + n;
    g->cosine = sums + 2 * n;
    g->raw_cosine = l->same_width ? sums + 3 * n : NULL;
    g->raw_error = sums + 4 * n;
    KD_TRY(kd_alloc_array(&g->predicted, (size_t)g->threads * g->rows, g->teacher_width * sizeof *g->predicted, err));
    for (size_t half = 0; half < 2; half++) {
        KD_TRY(fit_half(g, half, err));
        l->strength[half] = g->map[half].strength;
    }
    kd_parallel_for(g->threads, n, measure_image, g);
    kd_figure lost = kd_figure_ratio(g->error, g->spread, n);
    l->r2 = (kd_figure){1 - lost.value, 1 - lost.high, 1 - lost.low};
    l->cosine = kd_figure_ratio(g->cosine, NULL, n);
    if (l->same_width) {
        l->raw_cosine = kd_figure_ratio(g->raw_cosine, NULL, n);
        l->raw_mse = kd_figure_ratio(g->raw_error, NULL, n);
    }
    return KD_OK;
}

kd_status kd_likeness_measure(kd_likeness *l, const float *teacher, size_t teacher_width, const float *student, size_t student_width, size_t images, size_t rows, int threads, kd_err *err) {
    KD_ASSERT(images >= KD_LIKENESS_IMAGES && rows >= 1 && threads >= 1);
    measuring g = {.teacher = teacher, .student = student, .teacher_width = teacher_width, .student_width = student_width, .images = images, .rows = rows, .threads = threads};
    *l = (kd_likeness){.same_width = teacher_width == student_width};
    kd_status status = measure(&g, l, err);
    kd_ridge_free(&g.map[0]);
    kd_ridge_free(&g.map[1]);
    kd_free(g.predicted);
    kd_free(g.error);
    return status;
}

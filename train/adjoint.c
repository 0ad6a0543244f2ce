#include "train/adjoint.h"

#include "common/base/mem.h"

/* Of one axis: U [to, from] has two taps in every row. */
static kd_status axis(double **ones, double **gram, int from, int to, kd_err *err) {
    size_t n = (size_t)from;
    KD_TRY(kd_alloc_array(ones, n, sizeof **ones, err));
    KD_TRY(kd_alloc_array(gram, n, n * sizeof **gram, err));
    for (int i = 0; i < to; i++) {
        int64_t at[2];
        double w1, weight[2];
        kd_bilinear_tap(from, to, i, &at[0], &at[1], &w1);
        weight[0] = 1 - w1;
        weight[1] = w1;
        for (int a = 0; a < 2; a++) {
            (*ones)[at[a]] += weight[a];
            for (int b = 0; b < 2; b++)
                (*gram)[(size_t)at[a] * n + (size_t)at[b]] += weight[a] * weight[b];
        }
    }
    return KD_OK;
}

kd_status kd_adjoint_create(kd_adjoint *a, const kd_target *target, int grid_h, int grid_w, kd_err *err) {
    KD_ASSERT(target->kind == KD_TARGET_ADJOINT);
    *a = (kd_adjoint){.h = target->h, .w = target->w, .tokens = grid_h * grid_w};
    KD_TRY(axis(&a->ones_h, &a->gram_h, a->h, grid_h, err));
    return axis(&a->ones_w, &a->gram_w, a->w, grid_w, err);
}

void kd_adjoint_free(kd_adjoint *a) {
    kd_free(a->ones_h);
    kd_free(a->ones_w);
    kd_free(a->gram_h);
    kd_free(a->gram_w);
    *a = (kd_adjoint){0};
}

/* U^T t' = (U^T t - U^T 1 mean) / std. The rows of U sum to 1, so the sum of t over the grid is that of U^T t over its rows, and
 * |t'|^2 = (|t|^2 - 2 <mean, sum of t> + tokens |mean|^2) / std^2. */
double kd_adjoint_standardise(const kd_adjoint *a, float *tokens, double square, const float *mean, float std, size_t width) {
    double dot = 0, mean2 = 0, inverse = 1 / (double)std;
    for (int k = 0; k < a->h * a->w; k++) {
        double ones = a->ones_h[k / a->w] * a->ones_w[k % a->w];
        float *row = tokens + (size_t)k * width;
        for (size_t c = 0; c < width; c++) {
            dot += (double)mean[c] * (double)row[c];
            row[c] = (float)(((double)row[c] - ones * (double)mean[c]) * inverse);
        }
    }
    for (size_t c = 0; c < width; c++)
        mean2 += (double)mean[c] * (double)mean[c];
    return (square - 2 * dot + (double)a->tokens * mean2) * inverse * inverse;
}

static double dot(const float *x, const float *y, size_t n) {
    double sum = 0;
    for (size_t i = 0; i < n; i++)
        sum += (double)x[i] * (double)y[i];
    return sum;
}

/* Element (j, k) of U^T U. */
static double gram(const kd_adjoint *a, int j, int k) {
    return a->gram_h[j / a->w * a->h + k / a->w] * a->gram_w[j % a->w * a->w + k % a->w];
}

/* s^T (gram_h x gram_w) s over pairs of rows; only neighbours have a product. */
double kd_adjoint_upsampled_square(const kd_adjoint *a, const float *s, size_t width) {
    int n = a->h * a->w;
    double sum = 0;
    for (int j = 0; j < n; j++)
        for (int k = 0; k <= j; k++) {
            double g = gram(a, j, k);
            if (g != 0)
                sum += (j == k ? g : 2 * g) * dot(s + (size_t)j * width, s + (size_t)k * width, width);
        }
    return sum;
}

void kd_adjoint_of_prediction(const kd_adjoint *a, float *out, const float *s, size_t width) {
    int n = a->h * a->w;
    for (int j = 0; j < n; j++)
        for (size_t c = 0; c < width; c++) {
            double sum = 0;
            for (int k = 0; k < n; k++)
                sum += gram(a, j, k) * (double)s[(size_t)k * width + c];
            out[(size_t)j * width + c] = (float)sum;
        }
}

void kd_adjoint_means(const kd_adjoint *a, float *tokens, size_t width) {
    for (int k = 0; k < a->h * a->w; k++) {
        double ones = a->ones_h[k / a->w] * a->ones_w[k % a->w];
        for (size_t c = 0; c < width; c++)
            tokens[(size_t)k * width + c] = ones > 0 ? (float)((double)tokens[(size_t)k * width + c] / ones) : 0;
    }
}

#include "train/eval/pca.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/mem.h"

/* With a block wider than the wanted 3 a round brings the third axis nearer by the ratio of the 9th eigenvalue to the 3rd, not of the 4th to the 3rd: 40 rounds at a ratio of 0.7 leave 1e-6. */
enum { BLOCK = 8, ROUNDS = 40, SWEEPS = 30 };

typedef struct fit {
    const float *rows;
    size_t n, width, block; /* block: BLOCK, or the width when that is less */
    const double *mean;
    double *basis, *next;   /* [block][width] */
} fit;

static double dot(const double *a, const double *b, size_t n) {
    double sum = 0;
    for (size_t i = 0; i < n; i++)
        sum += a[i] * b[i];
    return sum;
}

/* next = covariance * basis, row by row of the data, so that the covariance is never formed. */
static void multiply(fit *f) {
    memset(f->next, 0, f->block * f->width * sizeof *f->next);
    for (size_t i = 0; i < f->n; i++) {
        const float *x = f->rows + i * f->width;
        for (size_t b = 0; b < f->block; b++) {
            const double *v = f->basis + b * f->width;
            double *out = f->next + b * f->width, along = 0;
            for (size_t c = 0; c < f->width; c++)
                along += ((double)x[c] - f->mean[c]) * v[c];
            along /= (double)f->n;
            for (size_t c = 0; c < f->width; c++)
                out[c] += along * ((double)x[c] - f->mean[c]);
        }
    }
}

/* Gram-Schmidt, twice for orthogonality to rounding. A vector that vanishes is replaced by the first unit vector that doesn't. */
static void orthogonalise(double *v, size_t block, size_t width) {
    for (size_t b = 0; b < block; b++) {
        double *x = v + b * width, before = sqrt(dot(x, x, width)), length = 0;
        for (size_t unit = 0; unit <= width; unit++) {
            for (int twice = 0; twice < 2; twice++)
                for (size_t a = 0; a < b; a++) {
                    double along = dot(v + a * width, x, width);
                    for (size_t c = 0; c < width; c++)
                        x[c] -= along * v[a * width + c];
                }
            length = sqrt(dot(x, x, width));
            if (length > 1e-12 * before && length > 1e-150)
                break;
            memset(x, 0, width * sizeof *x);
            x[unit < width ? unit : 0] = before = 1;
        }
        for (size_t c = 0; c < width; c++)
            x[c] /= length;
    }
}

/* Eigenvectors of the symmetric m [k,k] as columns of u, by cyclic Jacobi rotations; the eigenvalues stay on m's diagonal. */
static void jacobi(double *m, double *u, size_t k) {
    for (size_t i = 0; i < k * k; i++)
        u[i] = i / k == i % k;
    for (int sweep = 0; sweep < SWEEPS; sweep++)
        for (size_t p = 0; p + 1 < k; p++)
            for (size_t q = p + 1; q < k; q++) {
                double a = m[p * k + q];
                if (a == 0)
                    continue;
                double theta = (m[q * k + q] - m[p * k + p]) / (2 * a), t = (theta >= 0 ? 1 : -1) / (fabs(theta) + sqrt(theta * theta + 1));
                double c = 1 / sqrt(t * t + 1), s = t * c;
                for (size_t i = 0; i < k; i++) {
                    double x = m[i * k + p], y = m[i * k + q];
                    m[i * k + p] = c * x - s * y;
                    m[i * k + q] = s * x + c * y;
                }
                for (size_t i = 0; i < k; i++) {
                    double x = m[p * k + i], y = m[q * k + i];
                    m[p * k + i] = c * x - s * y;
                    m[q * k + i] = s * x + c * y;
                    x = u[i * k + p];
                    y = u[i * k + q];
                    u[i * k + p] = c * x - s * y;
                    u[i * k + q] = s * x + c * y;
                }
            }
}

/* The best directions within the block's span (Rayleigh-Ritz): eigenvectors of basis^T covariance basis, largest first, into p. */
static void choose_axes(kd_pca *p, fit *f) {
    double m[BLOCK * BLOCK], u[BLOCK * BLOCK];
    size_t k = f->block, order[BLOCK];
    multiply(f);
    for (size_t a = 0; a < k; a++)
        for (size_t b = 0; b < k; b++)
            m[a * k + b] = (dot(f->basis + a * f->width, f->next + b * f->width, f->width) + dot(f->basis + b * f->width, f->next + a * f->width, f->width)) / 2;
    jacobi(m, u, k);
    for (size_t i = 0; i < k; i++) {
        size_t at = i;
        for (; at > 0 && m[i * k + i] > m[order[at - 1] * k + order[at - 1]]; at--)
            order[at] = order[at - 1];
        order[at] = i;
    }
    for (size_t i = 0; i < KD_PCA_COMPONENTS && i < k; i++) {
        double *axis = p->axis + i * f->width;
        p->variance[i] = fmax(m[order[i] * k + order[i]], 0);
        for (size_t c = 0; c < f->width; c++)
            for (size_t b = 0; b < k; b++)
                axis[c] += f->basis[b * f->width + c] * u[b * k + order[i]];
    }
}

static void fix_signs(kd_pca *p) {
    for (size_t i = 0; i < KD_PCA_COMPONENTS; i++) {
        double *axis = p->axis + i * p->width;
        size_t largest = 0;
        for (size_t c = 1; c < p->width; c++)
            if (fabs(axis[c]) > fabs(axis[largest]))
                largest = c;
        for (size_t c = 0; c < p->width && axis[largest] < 0; c++)
            if (c != largest)
                axis[c] = -axis[c];
        axis[largest] = fabs(axis[largest]);
    }
}

static int compare(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static kd_status find_ranges(kd_pca *p, const float *rows, size_t n, kd_err *err) {
    double *at, xyz[KD_PCA_COMPONENTS];
    KD_TRY(kd_alloc_array(&at, n, KD_PCA_COMPONENTS * sizeof *at, err));
    for (size_t i = 0; i < n; i++) {
        kd_pca_project(p, rows + i * p->width, xyz);
        for (size_t k = 0; k < KD_PCA_COMPONENTS; k++)
            at[k * n + i] = xyz[k];
    }
    for (size_t k = 0; k < KD_PCA_COMPONENTS; k++) {
        qsort(at + k * n, n, sizeof *at, compare);
        p->low[k] = at[k * n + (n - 1) * 2 / 100];
        p->high[k] = at[k * n + (n - 1) * 98 / 100];
    }
    kd_free(at);
    return KD_OK;
}

static void centre(kd_pca *p, const float *rows, size_t n) {
    for (size_t i = 0; i < n; i++)
        for (size_t c = 0; c < p->width; c++)
            p->mean[c] += (double)rows[i * p->width + c];
    for (size_t c = 0; c < p->width; c++)
        p->mean[c] /= (double)n;
    for (size_t i = 0; i < n; i++)
        for (size_t c = 0; c < p->width; c++) {
            double d = (double)rows[i * p->width + c] - p->mean[c];
            p->total += d * d / (double)n;
        }
}

kd_status kd_pca_fit(kd_pca *p, const float *rows, size_t n, size_t width, kd_err *err) {
    KD_ASSERT(n >= 1 && width >= 1);
    *p = (kd_pca){.width = width};
    fit f = {.rows = rows, .n = n, .width = width, .block = width < BLOCK ? width : BLOCK};
    KD_TRY(kd_alloc_array(&p->mean, width, sizeof *p->mean, err));
    KD_TRY(kd_alloc_array(&p->axis, KD_PCA_COMPONENTS * width, sizeof *p->axis, err));
    centre(p, rows, n);
    f.mean = p->mean;
    kd_status status = kd_alloc_array(&f.basis, 2 * f.block * width, sizeof *f.basis, err);
    if (status != KD_OK)
        return status;
    f.next = f.basis + f.block * width;
    for (size_t b = 0; b < f.block; b++) /* rows of the data, evenly spread, lie in the span that is sought */
        for (size_t c = 0; c < width; c++)
            f.basis[b * width + c] = (double)rows[b * n / f.block * width + c] - p->mean[c];
    double *memory = f.basis;
    orthogonalise(f.basis, f.block, width);
    for (int round = 0; round < ROUNDS; round++) {
        multiply(&f);
        double *done = f.next;
        f.next = f.basis;
        f.basis = done;
        orthogonalise(f.basis, f.block, width);
    }
    choose_axes(p, &f);
    kd_free(memory);
    fix_signs(p);
    return find_ranges(p, rows, n, err);
}

void kd_pca_free(kd_pca *p) {
    kd_free(p->mean);
    kd_free(p->axis);
    *p = (kd_pca){0};
}

void kd_pca_project(const kd_pca *p, const float *row, double out[KD_PCA_COMPONENTS]) {
    for (size_t k = 0; k < KD_PCA_COMPONENTS; k++) {
        out[k] = 0;
        for (size_t c = 0; c < p->width; c++)
            out[k] += ((double)row[c] - p->mean[c]) * p->axis[k * p->width + c];
    }
}

void kd_pca_colour(const kd_pca *p, const float *rows, size_t m, uint8_t *rgb) {
    double xyz[KD_PCA_COMPONENTS];
    for (size_t i = 0; i < m; i++) {
        kd_pca_project(p, rows + i * p->width, xyz);
        for (size_t k = 0; k < KD_PCA_COMPONENTS; k++) {
            double range = p->high[k] - p->low[k], share = range > 0 ? (xyz[k] - p->low[k]) / range : 0.5;
            rgb[3 * i + k] = (uint8_t)(255 * fmin(fmax(share, 0), 1) + 0.5);
        }
    }
}

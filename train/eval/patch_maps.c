#include "train/eval/patch_maps.h"

#include <math.h>
#include <string.h>

#include "common/base/mem.h"
#include "train/eval/likeness.h"

static size_t places_of(const kd_patch_maps *m) {
    return (size_t)m->h * (size_t)m->w;
}

/* ---- foreground ---- */

/* The middle: the inner half of rows and columns. */
static int in_middle(const kd_patch_maps *m, size_t place) {
    int y = (int)(place / (size_t)m->w), x = (int)(place % (size_t)m->w);
    return 4 * y >= m->h && 4 * y < 3 * m->h && 4 * x >= m->w && 4 * x < 3 * m->w;
}

/* Marks the side of the first component that the middle has more of. */
static void split(kd_patch_maps *m, const kd_pca *all) {
    size_t count[2][2] = {{0}}; /* [in the middle][above the mean] */
    for (size_t i = 0; i < m->photos * places_of(m); i++) {
        double xyz[KD_PCA_COMPONENTS];
        kd_pca_project(all, m->reference + i * m->width, xyz);
        m->shown[i] = xyz[0] > 0;
        count[in_middle(m, i % places_of(m))][m->shown[i]]++;
    }
    double middle = (double)count[1][1] / (double)(count[1][0] + count[1][1] + 1), rim = (double)count[0][1] / (double)(count[0][0] + count[0][1] + 1);
    for (size_t i = 0; i < m->photos * places_of(m) && middle < rim; i++)
        m->shown[i] = !m->shown[i];
}

static kd_status fit_shown(kd_patch_maps *m, kd_err *err) {
    float *rows;
    size_t n = 0;
    KD_TRY(kd_alloc_array(&rows, m->kept, m->width * sizeof *rows, err));
    for (size_t i = 0; i < m->photos * places_of(m); i++)
        if (m->shown[i])
            memcpy(rows + n++ * m->width, m->reference + i * m->width, m->width * sizeof *rows);
    kd_pca_free(&m->pca);
    kd_status status = kd_pca_fit(&m->pca, rows, n, m->width, err);
    kd_free(rows);
    return status;
}

kd_status kd_patch_maps_fit(kd_patch_maps *m, int foreground, kd_err *err) {
    size_t n = m->photos * places_of(m);
    m->kept = 0;
    KD_TRY(kd_alloc_array(&m->shown, n, 1, err));
    memset(m->shown, 1, n);
    KD_TRY(kd_pca_fit(&m->pca, m->reference, n, m->width, err));
    if (foreground)
        split(m, &m->pca);
    for (size_t i = 0; i < n; i++)
        m->kept += m->shown[i];
    return m->kept > 0 && m->kept < n ? fit_shown(m, err) : KD_OK;
}

/* ---- pictures and figures ---- */

void kd_patch_maps_colour(const kd_patch_maps *m, const float *patches, uint8_t *rgb) {
    size_t n = m->photos * places_of(m);
    kd_pca_colour(&m->pca, patches, n, rgb);
    for (size_t i = 0; i < n; i++)
        if (!m->shown[i])
            memset(rgb + 3 * i, 0, 3);
}

void kd_patch_maps_compare(const kd_patch_maps *m, const float *predicted, double *cosine, double *r2) {
    double error = 0, spread = 0;
    for (size_t photo = 0; photo < m->photos; photo++) {
        size_t seen = 0;
        cosine[photo] = 0;
        for (size_t i = photo * places_of(m); i < (photo + 1) * places_of(m); i++) {
            const float *p = predicted + i * m->width, *t = m->reference + i * m->width;
            double pp = 0, tt = 0, pt = 0;
            if (!m->shown[i])
                continue;
            for (size_t c = 0; c < m->width; c++) {
                double a = (double)p[c] - m->pca.mean[c], b = (double)t[c] - m->pca.mean[c];
                pp += a * a;
                tt += b * b;
                pt += a * b;
            }
            error += pp + tt - 2 * pt;
            spread += tt;
            cosine[photo] += pp > 0 && tt > 0 ? pt / sqrt(pp * tt) : 0;
            seen++;
        }
        cosine[photo] /= seen > 0 ? (double)seen : 1;
    }
    *r2 = spread > 0 ? 1 - error / spread : 0;
}

void kd_patch_maps_free(kd_patch_maps *m) {
    kd_free(m->shown);
    kd_pca_free(&m->pca);
    *m = (kd_patch_maps){0};
}

/* ---- reading one network's patches out of another's ---- */

static const float *photo_of(const kd_patch_grid *x, size_t i) {
    return x->patch + i * (size_t)x->h * (size_t)x->w * x->width;
}

/* All photos' sampled places, and a resized map to take them from. */
typedef struct sampling {
    float *x, *y, *resized;
} sampling;

static kd_status sample(sampling *s, const kd_patch_grid *x, const float *y, const kd_patch_maps *m, size_t photos, size_t taken, kd_err *err) {
    size_t places = places_of(m);
    KD_TRY(kd_alloc_array(&s->x, photos * taken, x->width * sizeof(float), err));
    KD_TRY(kd_alloc_array(&s->y, photos * taken, m->width * sizeof(float), err));
    KD_TRY(kd_alloc_array(&s->resized, places, x->width * sizeof(float), err));
    for (size_t i = 0; i < photos; i++) {
        kd_grid_resize(s->resized, m->h, m->w, photo_of(x, i), x->h, x->w, x->width);
        kd_grid_sample(s->x + i * taken * x->width, taken, s->resized, places, x->width, i);
        kd_grid_sample(s->y + i * taken * m->width, taken, y + i * places * m->width, places, m->width, i);
    }
    return KD_OK;
}

kd_status kd_patch_read_fit(kd_ridge *map, const kd_patch_grid *x, const float *y, const kd_patch_maps *m, size_t photos, int threads, kd_err *err) {
    sampling s = {0};
    size_t most = KD_LIKENESS_ROWS / photos, taken = most < 1 ? 1 : most < places_of(m) ? most : places_of(m);
    kd_status status = sample(&s, x, y, m, photos, taken, err);
    if (status == KD_OK)
        status = kd_ridge_fit_best(map, s.x, x->width, s.y, m->width, photos * taken, taken, threads, err);
    kd_free(s.x);
    kd_free(s.y);
    kd_free(s.resized);
    return status;
}

kd_status kd_patch_read_apply(const kd_ridge *map, const kd_patch_grid *x, const kd_patch_maps *m, float *predicted, int threads, kd_err *err) {
    float *resized;
    size_t places = places_of(m);
    KD_TRY(kd_alloc_array(&resized, places, x->width * sizeof *resized, err));
    for (size_t i = 0; i < m->photos; i++) {
        kd_grid_resize(resized, m->h, m->w, photo_of(x, i), x->h, x->w, x->width);
        kd_ridge_apply(map, resized, places, predicted + i * places * m->width, threads);
    }
    kd_free(resized);
    return KD_OK;
}

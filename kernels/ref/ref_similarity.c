/* Losses over similarities of normalised rows: with a queue of earlier targets (kl_queue), among the patches of an image (kl_intra, gram), among the images of a batch (koleo). */
#include <math.h>
#include <string.h>

#include "kernels/ref/ref_core.h"

/* Takes n doubles from the work area. */
static double *take(double **work, int64_t n) {
    double *p = *work;
    *work += n;
    return p;
}

static void add_scaled(double *y, double a, const double *x, int64_t n) {
    for (int64_t i = 0; i < n; i++)
        y[i] += a * x[i];
}

/* --- kl_queue --- */

/* One row of the batch against the queue. */
typedef struct queue_row {
    double *s, *t;                         /* normalised [D] */
    double *like_s, *like_t, *difference;  /* similarities and their gradient [queue_rows] */
    double *ds;                            /* [D] */
    double norm;                           /* of the prediction's row */
} queue_row;

static size_t kl_queue_work(const kd_op_desc *d) {
    return 3 * (size_t)d->x[0].shape[1] + 3 * (size_t)d->queue_rows;
}

static queue_row queue_row_make(const kd_op_desc *d, double *work) {
    int64_t width = d->x[0].shape[1], rows = d->queue_rows;
    queue_row q = {.s = take(&work, width), .t = take(&work, width), .ds = take(&work, width)};
    q.like_s = take(&work, rows);
    q.like_t = take(&work, rows);
    q.difference = take(&work, rows);
    return q;
}

/* Normalises row n of both sides and compares them with the queue; returns KL. */
static double kl_of_row(const kd_op_desc *d, const kd_ref_vals *v, queue_row *q, int64_t n) {
    int64_t width = d->x[0].shape[1];
    q->norm = kd_ref_normalize_row(q->s, v->x[0] + n * width, width, KD_OP_L2_EPS);
    kd_ref_normalize_row(q->t, v->x[1] + n * width, width, KD_OP_L2_EPS);
    for (int64_t j = 0; j < d->queue_rows; j++) {
        q->like_s[j] = kd_ref_dot(q->s, v->state[0] + j * width, width);
        q->like_t[j] = kd_ref_dot(q->t, v->state[0] + j * width, width);
    }
    return kd_ref_kl_row(q->difference, q->like_s, q->like_t, d->queue_rows, (double)d->temperature);
}

static void push_targets(const kd_op_desc *d, const kd_ref_vals *v) {
    int64_t n = d->x[0].shape[0], width = d->x[0].shape[1], rows = d->queue_rows, fresh = n < rows ? n : rows;
    memmove(v->state[0] + fresh * width, v->state[0], (size_t)((rows - fresh) * width) * sizeof(double));
    for (int64_t i = 0; i < fresh; i++)
        kd_ref_normalize_row(v->state[0] + i * width, v->x[1] + i * width, width, KD_OP_L2_EPS);
}

static void kl_queue_forward(const kd_op_desc *d, const kd_ref_vals *v) {
    int64_t n = d->x[0].shape[0];
    queue_row q = queue_row_make(d, v->work);
    double sum = 0;
    if (d->train)
        push_targets(d, v);
    for (int64_t i = 0; i < n; i++)
        sum += kl_of_row(d, v, &q, i);
    v->y[0] = sum / (double)n;
}

static void kl_queue_backward(const kd_op_desc *d, const kd_ref_vals *v) {
    int64_t n = d->x[0].shape[0], width = d->x[0].shape[1];
    queue_row q = queue_row_make(d, v->work);
    double scale = v->dy[0] / ((double)n * (double)d->temperature);
    for (int64_t i = 0; v->dx[0] && i < n; i++) {
        kl_of_row(d, v, &q, i);
        memset(q.ds, 0, (size_t)width * sizeof *q.ds);
        for (int64_t j = 0; j < d->queue_rows; j++)
            add_scaled(q.ds, scale * q.difference[j], v->state[0] + j * width, width);
        kd_ref_normalize_row_backward(v->dx[0] + i * width, q.ds, q.s, q.norm, width, KD_OP_L2_EPS);
    }
}

const kd_ref_core kd_ref_kl_queue = {kl_queue_forward, kl_queue_backward, kl_queue_work};

/* --- kl_intra, gram: the P x P similarities inside each image --- */

typedef struct image {
    int64_t patches, width;
    double *s, *t, *ds;                   /* [P,D]: normalised rows, gradient of those of the prediction */
    double *norm;                         /* [P] */
    double *like_s, *like_t, *difference; /* one patch against all [P] */
} image;

static int64_t patches_of(const kd_op_desc *d) {
    return kd_ref_rows(&d->x[0]) / d->x[0].shape[0];
}

static size_t image_work(const kd_op_desc *d) {
    return (size_t)patches_of(d) * (3 * (size_t)kd_ref_width(&d->x[0]) + 4);
}

static image image_make(const kd_op_desc *d, double *work) {
    image m = {.patches = patches_of(d), .width = kd_ref_width(&d->x[0])};
    m.s = take(&work, m.patches * m.width);
    m.t = take(&work, m.patches * m.width);
    m.ds = take(&work, m.patches * m.width);
    m.norm = take(&work, m.patches);
    m.like_s = take(&work, m.patches);
    m.like_t = take(&work, m.patches);
    m.difference = take(&work, m.patches);
    return m;
}

static void normalize_image(image *m, const kd_ref_vals *v, int64_t n) {
    for (int64_t i = 0, at = n * m->patches * m->width; i < m->patches; i++, at += m->width) {
        m->norm[i] = kd_ref_normalize_row(m->s + i * m->width, v->x[0] + at, m->width, KD_OP_L2_EPS);
        kd_ref_normalize_row(m->t + i * m->width, v->x[1] + at, m->width, KD_OP_L2_EPS);
    }
}

/* What patch i's similarities add to the loss's sum; leaves in m->difference the derivative of that by the prediction's similarities. */
typedef double (*patch_loss)(const kd_op_desc *d, image *m);

static double kl_patch(const kd_op_desc *d, image *m) {
    double temperature = (double)d->temperature, kl = kd_ref_kl_row(m->difference, m->like_s, m->like_t, m->patches, temperature);
    for (int64_t j = 0; j < m->patches; j++)
        m->difference[j] /= temperature;
    return kl;
}

static double gram_patch(const kd_op_desc *d, image *m) {
    (void)d;
    double sum = 0;
    for (int64_t j = 0; j < m->patches; j++) {
        double e = m->like_s[j] - m->like_t[j];
        sum += e * e;
        m->difference[j] = 2 * e;
    }
    return sum;
}

static double loss_of_patch(const kd_op_desc *d, image *m, int64_t i, patch_loss loss) {
    for (int64_t j = 0; j < m->patches; j++) {
        m->like_s[j] = kd_ref_dot(m->s + i * m->width, m->s + j * m->width, m->width);
        m->like_t[j] = kd_ref_dot(m->t + i * m->width, m->t + j * m->width, m->width);
    }
    return loss(d, m);
}

static double sum_over_patches(const kd_op_desc *d, const kd_ref_vals *v, patch_loss loss) {
    image m = image_make(d, v->work);
    double sum = 0;
    for (int64_t n = 0; n < d->x[0].shape[0]; n++) {
        normalize_image(&m, v, n);
        for (int64_t i = 0; i < m.patches; i++)
            sum += loss_of_patch(d, &m, i, loss);
    }
    return sum;
}

/* dx0 = scale times the derivative of the sum. A similarity <s_i, s_j> passes its gradient on to both rows. */
static void patches_backward(const kd_op_desc *d, const kd_ref_vals *v, patch_loss loss, double scale) {
    image m = image_make(d, v->work);
    int64_t width = m.width;
    for (int64_t n = 0; v->dx[0] && n < d->x[0].shape[0]; n++) {
        normalize_image(&m, v, n);
        memset(m.ds, 0, (size_t)(m.patches * width) * sizeof *m.ds);
        for (int64_t i = 0; i < m.patches; i++) {
            loss_of_patch(d, &m, i, loss);
            for (int64_t j = 0; j < m.patches; j++) {
                add_scaled(m.ds + i * width, scale * m.difference[j], m.s + j * width, width);
                add_scaled(m.ds + j * width, scale * m.difference[j], m.s + i * width, width);
            }
        }
        for (int64_t i = 0; i < m.patches; i++)
            kd_ref_normalize_row_backward(v->dx[0] + (n * m.patches + i) * width, m.ds + i * width, m.s + i * width, m.norm[i], width, KD_OP_L2_EPS);
    }
}

static void kl_intra_forward(const kd_op_desc *d, const kd_ref_vals *v) {
    v->y[0] = sum_over_patches(d, v, kl_patch) / (double)kd_ref_rows(&d->x[0]);
}

static void kl_intra_backward(const kd_op_desc *d, const kd_ref_vals *v) {
    patches_backward(d, v, kl_patch, v->dy[0] / (double)kd_ref_rows(&d->x[0]));
}

const kd_ref_core kd_ref_kl_intra = {kl_intra_forward, kl_intra_backward, image_work};

/* N P P */
static double similarities(const kd_op_desc *d) {
    return (double)kd_ref_rows(&d->x[0]) * (double)patches_of(d);
}

static void gram_forward(const kd_op_desc *d, const kd_ref_vals *v) {
    v->y[0] = sum_over_patches(d, v, gram_patch) / similarities(d);
}

static void gram_backward(const kd_op_desc *d, const kd_ref_vals *v) {
    patches_backward(d, v, gram_patch, v->dy[0] / similarities(d));
}

const kd_ref_core kd_ref_gram = {gram_forward, gram_backward, image_work};

/* --- koleo --- */

/* Work area: normalised rows [N,D], their gradient [N,D], norms [N], one difference [D]. */
static size_t koleo_work(const kd_op_desc *d) {
    size_t n = (size_t)d->x[0].shape[0], width = (size_t)d->x[0].shape[1];
    return 2 * n * width + n + width;
}

static int64_t nearest(const double *y, int64_t i, int64_t n, int64_t width) {
    int64_t best = i == 0;
    double most = kd_ref_dot(y + i * width, y + best * width, width);
    for (int64_t j = best + 1; j < n; j++) {
        double like = j == i ? -INFINITY : kd_ref_dot(y + i * width, y + j * width, width);
        if (like > most) {
            best = j;
            most = like;
        }
    }
    return best;
}

/* u = y_i - y_j + eps; returns |u|. */
static double neighbour_distance(double *u, const double *a, const double *b, int64_t width) {
    for (int64_t k = 0; k < width; k++)
        u[k] = a[k] - b[k] + KD_OP_KOLEO_EPS;
    return sqrt(kd_ref_dot(u, u, width));
}

static void koleo_forward(const kd_op_desc *d, const kd_ref_vals *v) {
    int64_t n = d->x[0].shape[0], width = d->x[0].shape[1];
    double *work = v->work, *y = take(&work, n * width), *u = take(&work, width), sum = 0;
    for (int64_t i = 0; i < n; i++)
        kd_ref_normalize_row(y + i * width, v->x[0] + i * width, width, KD_OP_KOLEO_EPS);
    for (int64_t i = 0; i < n; i++)
        sum += log(neighbour_distance(u, y + i * width, y + nearest(y, i, n, width) * width, width) + KD_OP_KOLEO_EPS);
    v->y[0] = -sum / (double)n;
}

static void koleo_backward(const kd_op_desc *d, const kd_ref_vals *v) {
    int64_t n = d->x[0].shape[0], width = d->x[0].shape[1];
    double *work = v->work, *y = take(&work, n * width), *dy = take(&work, n * width), *norm = take(&work, n), *u = take(&work, width);
    memset(dy, 0, (size_t)(n * width) * sizeof *dy);
    for (int64_t i = 0; i < n; i++)
        norm[i] = kd_ref_normalize_row(y + i * width, v->x[0] + i * width, width, KD_OP_KOLEO_EPS);
    for (int64_t i = 0; i < n; i++) {
        int64_t j = nearest(y, i, n, width);
        double length = neighbour_distance(u, y + i * width, y + j * width, width);
        double g = length == 0 ? 0 : -v->dy[0] / ((double)n * (length + KD_OP_KOLEO_EPS) * length);
        add_scaled(dy + i * width, g, u, width);
        add_scaled(dy + j * width, -g, u, width);
    }
    for (int64_t i = 0; v->dx[0] && i < n; i++)
        kd_ref_normalize_row_backward(v->dx[0] + i * width, dy + i * width, y + i * width, norm[i], width, KD_OP_KOLEO_EPS);
}

const kd_ref_core kd_ref_koleo = {koleo_forward, koleo_backward, koleo_work};

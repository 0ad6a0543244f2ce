#include "train/eval/logreg.h"

#include <math.h>
#include <string.h>

#include "common/base/log.h"
#include "common/base/mem.h"
#include "common/base/progress.h"
#include "common/base/threads.h"
#include "train/eval/product.h"

enum { ROWS = 64, FEATURES = 16, MEMORY = 10 }; /* images and features per job: fixed, so that sums don't depend on the threads; pairs of L-BFGS as in scipy (cuML: 5) */
static const double least_spread = 1e-12; /* keeps M positive definite where every probability is 0 or 1 */
static const double worth_waking = 1e6; /* operations of an evaluation from which other threads help: about a tenth of a millisecond */

void kd_logreg_protocol_cs(double c[KD_LOGREG_CS]) {
    for (int i = 0; i < KD_LOGREG_CS; i++)
        c[i] = pow(10, -6 + 11.0 * i / (KD_LOGREG_CS - 1));
}

/* The function that a fit minimises, and its gradient. One column more than features: it is 1 and its weights are the biases. */
typedef struct problem {
    const int32_t *label;  /* [n] */
    size_t n, columns, classes, padded;
    double *x;             /* [n][columns]: features less their mean, then 1 */
    double *residual;      /* [n][padded]: (probabilities - one-hot labels) / n */
    double *loss;          /* [blocks of ROWS]: sums of cross entropies */
    double *squares;       /* [blocks of FEATURES]: sums of squared weights */
    double *spread;        /* [n]: mean of p (1 - p) over the classes */
    double *factor;        /* [columns][columns]: lower triangle L of the preconditioner L L^T */
    unsigned char *seen;   /* [classes]: has images */
    double penalty;        /* of |W|^2 / 2 */
    int threads;
    const double *w;       /* [columns][padded]: where it is evaluated */
    double *gradient;      /* [columns][padded] */
} problem;

static size_t blocks(size_t n, size_t size) {
    return (n + size - 1) / size;
}

static size_t block_end(size_t block, size_t n, size_t size) {
    return (block + 1) * size < n ? (block + 1) * size : n;
}

/* Scores to probabilities less the label, divided by n; returns the cross entropy and the mean of p (1 - p). Classes without images have probability 0. */
static double softmax_row(const problem *p, double *row, int32_t label, double *spread) {
    double most = -HUGE_VAL, sum = 0, of_label = row[label];
    for (size_t c = 0; c < p->classes; c++)
        if (p->seen[c] && row[c] > most)
            most = row[c];
    for (size_t c = 0; c < p->classes; c++) {
        row[c] = p->seen[c] ? exp(row[c] - most) : 0;
        sum += row[c];
    }
    *spread = 0;
    for (size_t c = 0; c < p->classes; c++) {
        double probability = row[c] / sum;
        *spread += probability * (1 - probability) / (double)p->classes;
        row[c] = probability / (double)p->n;
    }
    row[label] -= 1 / (double)p->n;
    return log(sum) + most - of_label;
}

static void residual_block(void *ctx, int worker, size_t block) {
    problem *p = ctx;
    const size_t first = block * ROWS, end = block_end(block, p->n, ROWS);
    double *rows = p->residual + first * p->padded, loss = 0;
    (void)worker;
    memset(rows, 0, (end - first) * p->padded * sizeof *rows);
    kd_product_f64(rows, p->x + first * p->columns, p->columns, 1, p->w, end - first, p->columns, p->padded);
    for (size_t i = first; i < end; i++)
        loss += softmax_row(p, p->residual + i * p->padded, p->label[i], &p->spread[i]);
    p->loss[block] = loss;
}

static void gradient_block(void *ctx, int worker, size_t block) {
    problem *p = ctx;
    const size_t first = block * FEATURES, end = block_end(block, p->columns, FEATURES), n = p->padded;
    const size_t penalised = end < p->columns ? end : p->columns - 1; /* not the biases */
    double squares = 0;
    (void)worker;
    memset(p->gradient + first * n, 0, (end - first) * n * sizeof *p->gradient);
    kd_product_f64(p->gradient + first * n, p->x + first, 1, p->columns, p->residual, end - first, p->n, n);
    for (size_t i = first * n; i < penalised * n; i++) {
        p->gradient[i] += p->penalty * p->w[i];
        squares += p->w[i] * p->w[i];
    }
    p->squares[block] = squares;
}

static double evaluate(void *ctx, const double *w, double *gradient) {
    problem *p = ctx;
    double loss = 0, squares = 0;
    p->w = w;
    p->gradient = gradient;
    kd_parallel_for(p->threads, blocks(p->n, ROWS), residual_block, p);
    kd_parallel_for(p->threads, blocks(p->columns, FEATURES), gradient_block, p);
    for (size_t b = 0; b < blocks(p->n, ROWS); b++)
        loss += p->loss[b];
    for (size_t b = 0; b < blocks(p->columns, FEATURES); b++)
        squares += p->squares[b];
    return loss / (double)p->n + 0.5 * p->penalty * squares;
}

/* The second derivatives between classes c and d are 1/n sum of x x^T p_c ([c = d] - p_d), and the penalty. With an image's mean of p (1 - p) for each of its classes and without what couples them that
 * is one matrix for all: M = 1/n sum of spread x x^T + penalty (not for the bias). L-BFGS starts from its inverse, so that directions of much and of little variance converge alike. */
static kd_status factorise(problem *p, kd_err *err) {
    const size_t n = p->columns, padded = kd_product_padded(n);
    double *rows = NULL, *square = NULL, *l;
    kd_status status = kd_alloc_array(&rows, p->n, padded * sizeof *rows, err);
    if (status == KD_OK)
        status = kd_alloc_array(&square, n, padded * sizeof *square, err);
    if (status == KD_OK)
        status = kd_alloc_array(&p->factor, n, n * sizeof *p->factor, err);
    l = p->factor;
    for (size_t i = 0; status == KD_OK && i < p->n; i++)
        for (size_t k = 0; k < n; k++)
            rows[i * padded + k] = fmax(p->spread[i], least_spread) / (double)p->n * p->x[i * n + k];
    if (status == KD_OK)
        kd_product_f64(square, p->x, 1, n, rows, n, p->n, padded);
    for (size_t i = 0; status == KD_OK && i < n; i++) /* Cholesky */
        for (size_t j = 0; j <= i; j++) {
            double sum = square[i * padded + j] + (i == j && i + 1 < n ? p->penalty : 0);
            for (size_t k = 0; k < j; k++)
                sum -= l[i * n + k] * l[j * n + k];
            l[i * n + j] = i > j ? sum / l[j * n + j] : sqrt(sum);
        }
    kd_free(rows);
    kd_free(square);
    return status;
}

/* d = M^-1 d, for each column of d [columns][padded]. */
static void precondition(void *ctx, double *d) {
    const problem *p = ctx;
    const size_t n = p->columns, w = p->padded;
    for (size_t i = 0; i < n; i++) { /* L z = d */
        for (size_t k = 0; k < i; k++)
            for (size_t c = 0; c < w; c++)
                d[i * w + c] -= p->factor[i * n + k] * d[k * w + c];
        for (size_t c = 0; c < w; c++)
            d[i * w + c] /= p->factor[i * n + i];
    }
    for (size_t i = n; i-- > 0;) { /* L^T z = d */
        for (size_t k = i + 1; k < n; k++)
            for (size_t c = 0; c < w; c++)
                d[i * w + c] -= p->factor[k * n + i] * d[k * w + c];
        for (size_t c = 0; c < w; c++)
            d[i * w + c] /= p->factor[i * n + i];
    }
}

static void mean_of(double *mean, const kd_knn_data *data, size_t width) {
    memset(mean, 0, width * sizeof *mean);
    for (size_t i = 0; i < data->count; i++)
        for (size_t c = 0; c < width; c++)
            mean[c] += (double)data->features[i * width + c];
    for (size_t c = 0; c < width; c++)
        mean[c] /= (double)data->count;
}

/* x [count][width + 1] of a problem. */
static kd_status centred(double **x, const kd_knn_data *data, const double *mean, size_t width, kd_err *err) {
    KD_TRY(kd_alloc_array(x, data->count, (width + 1) * sizeof **x, err));
    for (size_t i = 0; i < data->count; i++) {
        double *row = *x + i * (width + 1);
        for (size_t c = 0; c < width; c++)
            row[c] = (double)data->features[i * width + c] - mean[c];
        row[width] = 1;
    }
    return KD_OK;
}

static kd_status prepare(problem *p, kd_logreg_model *m, const kd_knn_data *train, kd_err *err) {
    if (m->weights == NULL)
        KD_TRY(kd_alloc_array(&m->weights, p->columns * m->padded, sizeof *m->weights, err));
    if (m->mean == NULL)
        KD_TRY(kd_alloc_array(&m->mean, m->width, sizeof *m->mean, err));
    mean_of(m->mean, train, m->width);
    KD_TRY(centred(&p->x, train, m->mean, m->width, err));
    KD_TRY(kd_alloc_array(&p->residual, p->n, p->padded * sizeof *p->residual, err));
    KD_TRY(kd_alloc_array(&p->loss, blocks(p->n, ROWS), sizeof *p->loss, err));
    KD_TRY(kd_alloc_array(&p->squares, blocks(p->columns, FEATURES), sizeof *p->squares, err));
    KD_TRY(kd_alloc_array(&p->spread, p->n, sizeof *p->spread, err));
    return kd_alloc_array(&p->seen, p->classes, 1, err);
}

/* The spreads where the fit begins. */
static kd_status find_spread(problem *p, const double *w, kd_err *err) {
    double *gradient = NULL;
    KD_TRY(kd_alloc_array(&gradient, p->columns * p->padded, sizeof *gradient, err));
    evaluate(p, w, gradient);
    kd_free(gradient);
    return KD_OK;
}

static kd_status fit(problem *p, kd_logreg_model *m, const kd_knn_data *train, double c, double tolerance, int max_iterations, kd_lbfgs_result *result, kd_err *err) {
    size_t seen = 0;
    KD_TRY(prepare(p, m, train, err));
    for (size_t i = 0; i < p->n; i++) {
        KD_ASSERT(p->label[i] >= 0 && (size_t)p->label[i] < p->classes);
        seen += !p->seen[p->label[i]];
        p->seen[p->label[i]] = 1;
    }
    if (seen < 2)
        return kd_fail(err, KD_EUSAGE, "the %zu training images are all of one class: logistic regression needs at least 2", p->n);
    p->penalty = (seen == 2 ? 2 : 1) / (c * (double)p->n);
    for (size_t k = 0; k < p->columns; k++) /* the bias last: it says which columns are to be reset */
        for (size_t j = 0; j < p->classes; j++)
            if (!p->seen[j] || !isfinite(m->weights[m->width * p->padded + j]))
                m->weights[k * p->padded + j] = 0;
    KD_TRY(find_spread(p, m->weights, err));
    KD_TRY(factorise(p, err));
    const kd_lbfgs_options o = {.precondition = precondition, .memory = MEMORY, .max_iterations = max_iterations, .tolerance = tolerance};
    KD_TRY(kd_lbfgs_minimise(m->weights, p->columns * p->padded, evaluate, p, &o, result, err));
    for (size_t j = 0; j < p->classes; j++)
        if (!p->seen[j])
            m->weights[m->width * p->padded + j] = -HUGE_VAL;
    return KD_OK;
}

kd_status kd_logreg_fit(kd_logreg_model *m, const kd_knn_data *train, size_t width, size_t classes, double c, double tolerance, int max_iterations, int threads, kd_lbfgs_result *result,
                        kd_err *err) {
    KD_ASSERT(m->weights == NULL || (m->width == width && m->classes == classes));
    m->width = width;
    m->classes = classes;
    m->padded = kd_product_padded(classes);
    problem p = {.label = train->label, .n = train->count, .columns = width + 1, .classes = classes, .padded = m->padded, .threads = threads};
    if (4.0 * (double)p.n * (double)p.columns * (double)p.padded < worth_waking)
        p.threads = 1;
    kd_status status = fit(&p, m, train, c, tolerance, max_iterations, result, err);
    kd_free(p.x);
    kd_free(p.residual);
    kd_free(p.loss);
    kd_free(p.squares);
    kd_free(p.spread);
    kd_free(p.factor);
    kd_free(p.seen);
    return status;
}

typedef struct scoring {
    const kd_logreg_model *m;
    const double *x;
    double *padded; /* [count][m->padded] */
    size_t count;
} scoring;

static void score_block(void *ctx, int worker, size_t block) {
    const scoring *s = ctx;
    const size_t first = block * ROWS, columns = s->m->width + 1;
    (void)worker;
    kd_product_f64(s->padded + first * s->m->padded, s->x + first * columns, columns, 1, s->m->weights, block_end(block, s->count, ROWS) - first, columns, s->m->padded);
}

kd_status kd_logreg_scores(const kd_logreg_model *m, const kd_knn_data *test, double *scores, int threads, kd_err *err) {
    double *x = NULL, *padded = NULL;
    kd_status status = centred(&x, test, m->mean, m->width, err);
    if (status == KD_OK)
        status = kd_alloc_array(&padded, test->count, m->padded * sizeof *padded, err);
    if (status == KD_OK) {
        scoring s = {m, x, padded, test->count};
        kd_parallel_for(threads, blocks(test->count, ROWS), score_block, &s);
        for (size_t i = 0; i < test->count; i++)
            memcpy(scores + i * m->classes, padded + i * m->padded, m->classes * sizeof *scores);
    }
    kd_free(x);
    kd_free(padded);
    return status;
}

void kd_logreg_model_free(kd_logreg_model *m) {
    kd_free(m->weights);
    kd_free(m->mean);
    *m = (kd_logreg_model){0};
}

/* prediction (may be NULL): [data->count]. */
static kd_status measure(const kd_logreg_model *m, const kd_knn_data *data, int threads, kd_shares *shares, int32_t *prediction, kd_err *err) {
    double *scores = NULL;
    int32_t *top = NULL;
    kd_status status = kd_alloc_array(&scores, data->count, m->classes * sizeof *scores, err);
    if (status == KD_OK)
        status = kd_alloc_array(&top, data->count, KD_TOP * sizeof *top, err);
    if (status == KD_OK)
        status = kd_logreg_scores(m, data, scores, threads, err);
    for (size_t i = 0; status == KD_OK && i < data->count; i++) {
        kd_top_classes(top + i * KD_TOP, scores + i * m->classes, m->classes);
        if (prediction != NULL)
            prediction[i] = top[i * KD_TOP];
    }
    if (status == KD_OK)
        *shares = kd_top_shares(top, data->label, data->count);
    kd_free(scores);
    kd_free(top);
    return status;
}

static kd_status choose(kd_logreg_result *r, const kd_parts *s, size_t width, size_t classes, const kd_logreg_options *o, kd_progress *progress, kd_err *err) {
    kd_logreg_model m = {0};
    kd_status status = kd_alloc_array(&r->tried, o->n_c, sizeof *r->tried, err);
    double best = -1;
    r->held_out = s->choose.count;
    for (size_t i = 0; status == KD_OK && i < o->n_c; i++) {
        kd_logreg_try *t = &r->tried[i];
        kd_shares shares = {0};
        t->c = o->c[i];
        status = kd_logreg_fit(&m, &s->fit, width, classes, t->c, o->tolerance, o->max_iterations, o->threads, &t->fit, err);
        if (status == KD_OK)
            status = measure(&m, &s->choose, o->threads, &shares, NULL, err);
        if (status != KD_OK)
            break;
        t->top1 = shares.top1;
        if (t->top1 > best) {
            best = t->top1;
            r->c = t->c;
        }
        kd_log(KD_LOG_DEBUG, "C = %.3g: top-1 %.2f %% of the held-out images, %d iterations (%d evaluations), value %.9g, gradient %.1e", t->c, 100 * t->top1, t->fit.iterations,
               t->fit.evaluations, t->fit.value, t->fit.gradient);
        kd_progress_update(progress, i + 1, 0, NULL);
    }
    kd_logreg_model_free(&m);
    return status;
}

static kd_status fit_all(kd_logreg_result *r, const kd_knn_data *train, const kd_knn_data *test, size_t width, size_t classes, const kd_logreg_options *o, kd_err *err) {
    kd_logreg_model m = {0};
    const double begun = kd_now();
    kd_status status = kd_logreg_fit(&m, train, width, classes, r->c, o->tolerance, o->max_iterations, o->threads, &r->fit, err);
    r->seconds += kd_now() - begun;
    if (status == KD_OK)
        status = kd_alloc_array(&r->prediction, test->count, sizeof *r->prediction, err);
    if (status == KD_OK)
        status = measure(&m, test, o->threads, &r->accuracy, r->prediction, err);
    kd_logreg_model_free(&m);
    return status;
}

kd_status kd_logreg(kd_logreg_result *result, const kd_knn_data *train, const kd_knn_data *test, size_t width, size_t classes, const kd_logreg_options *o, kd_err *err) {
    kd_parts s = {0};
    kd_status status = KD_OK;
    result->n_c = o->n_c;
    result->c = o->c[0];
    if (o->n_c > 1) {
        const double begun = kd_now();
        kd_progress *progress = kd_progress_create("logreg", "C", o->n_c, 0, o->json);
        status = kd_parts_make(&s, train, width, classes, o->seed, err);
        if (status == KD_OK)
            status = choose(result, &s, width, classes, o, progress, err);
        kd_progress_finish(progress);
        result->seconds = kd_now() - begun;
    }
    kd_parts_free(&s);
    return status == KD_OK ? fit_all(result, train, test, width, classes, o, err) : status;
}

void kd_logreg_result_free(kd_logreg_result *result) {
    kd_free(result->tried);
    kd_free(result->prediction);
    *result = (kd_logreg_result){0};
}

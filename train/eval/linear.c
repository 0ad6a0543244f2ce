#include "train/eval/linear.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "common/base/hash.h"
#include "common/base/mem.h"
#include "common/base/progress.h"
#include "common/base/rng.h"
#include "common/base/threads.h"
#include "train/eval/product.h"

enum { STRETCH = 25, ROWS = 64 }; /* iterations between looks at signals and progress; images per block of measuring */

const double kd_linear_protocol_rates[KD_LINEAR_RATES] = {1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1};
static const float momentum = 0.9f;

/* What a thread needs beside the heads. */
typedef struct scratch {
    float *x;        /* [rows][columns]: features, then 1 */
    float *residual; /* [rows][padded]: scores, then probabilities less the label, divided by the batch */
    float *gradient; /* [columns][padded] */
    double *score;   /* [classes] */
} scratch;

typedef struct heads {
    const kd_linear_options *o;
    const kd_knn_data *data;
    size_t width, columns, classes, padded;
    float *weights, *velocity; /* [n_rates][columns][padded] */
    scratch *scratch;          /* [threads] */
    uint32_t *order;           /* [STRETCH][batch]: images of the iterations at hand */
    int first, count;          /* those iterations */
    int32_t *top;              /* [n_rates][data->count][KD_TOP], when measuring */
} heads;

static void load_row(const heads *h, float *row, size_t image) {
    memcpy(row, h->data->features + image * h->width, h->width * sizeof *row);
    row[h->width] = 1;
}

/* Scores to (probabilities - one-hot label) / batch, as the mean cross entropy's gradient. */
static void softmax_row(const heads *h, float *row, int32_t label) {
    float most = row[0], sum = 0;
    for (size_t c = 1; c < h->classes; c++)
        if (row[c] > most)
            most = row[c];
    for (size_t c = 0; c < h->classes; c++)
        sum += row[c] = expf(row[c] - most);
    for (size_t c = 0; c < h->classes; c++)
        row[c] /= sum * (float)h->o->batch;
    row[label] -= 1 / (float)h->o->batch;
}

static void take_step(const heads *h, const scratch *s, float *w, float *v, const uint32_t *images, float rate) {
    const size_t batch = (size_t)h->o->batch, size = h->columns * h->padded;
    for (size_t i = 0; i < batch; i++)
        load_row(h, s->x + i * h->columns, images[i]);
    memset(s->residual, 0, batch * h->padded * sizeof *s->residual);
    kd_product_f32(s->residual, s->x, h->columns, 1, w, batch, h->columns, h->padded);
    for (size_t i = 0; i < batch; i++)
        softmax_row(h, s->residual + i * h->padded, h->data->label[images[i]]);
    memset(s->gradient, 0, size * sizeof *s->gradient);
    kd_product_f32(s->gradient, s->x, 1, h->columns, s->residual, h->columns, batch, h->padded);
    for (size_t i = 0; i < size; i++) { /* torch.optim.SGD */
        v[i] = momentum * v[i] + s->gradient[i];
        w[i] -= rate * v[i];
    }
}

static void train_head(void *ctx, int worker, size_t head) {
    const heads *h = ctx;
    const kd_linear_options *o = h->o;
    float *w = h->weights + head * h->columns * h->padded, *v = h->velocity + head * h->columns * h->padded;
    for (int i = 0; i < h->count; i++) {
        double rate = o->rate[head] * o->batch / 256 * (1 + kd_exact_cos(3.141592653589793 * (h->first + i) / o->iterations)) / 2;
        take_step(h, &h->scratch[worker], w, v, h->order + (size_t)i * (size_t)o->batch, (float)rate);
    }
}

static void begin_head(void *ctx, int worker, size_t head) {
    const heads *h = ctx;
    char name[64];
    (void)worker;
    float *w = h->weights + head * h->columns * h->padded;
    int n = snprintf(name, sizeof name, "linear.%zu.weight", head);
    memset(w, 0, h->columns * h->padded * sizeof *w);
    for (size_t k = 0; k < h->width; k++) {
        kd_rng r = kd_rng_make(h->o->seed, kd_xxh64(name, (size_t)n), (uint32_t)k, KD_RNG_INIT);
        for (size_t c = 0; c < h->classes; c++)
            w[k * h->padded + c] = (float)(0.01 * kd_rng_normal(&r));
    }
}

/* The endless stream of shuffled epochs. */
typedef struct stream {
    uint32_t *permutation; /* [count] */
    uint32_t count, at, epoch;
} stream;

static void fill_order(stream *s, uint32_t *order, size_t n, uint64_t seed) {
    for (size_t i = 0; i < n; i++) {
        if (s->at == s->count) {
            kd_rng_permutation(seed, s->epoch++, s->permutation, s->count);
            s->at = 0;
        }
        order[i] = s->permutation[s->at++];
    }
}

static kd_status allocate(heads *h, stream *s, kd_err *err) {
    const size_t threads = (size_t)h->o->threads, rows = h->o->batch > ROWS ? (size_t)h->o->batch : ROWS;
    KD_TRY(kd_alloc_array(&h->velocity, h->o->n_rates * h->columns, h->padded * sizeof *h->velocity, err));
    KD_TRY(kd_alloc_array(&h->order, STRETCH, (size_t)h->o->batch * sizeof *h->order, err));
    KD_TRY(kd_alloc_array(&h->scratch, threads, sizeof *h->scratch, err));
    for (size_t t = 0; t < threads; t++) {
        KD_TRY(kd_alloc_array(&h->scratch[t].x, rows, h->columns * sizeof(float), err));
        KD_TRY(kd_alloc_array(&h->scratch[t].residual, rows, h->padded * sizeof(float), err));
        KD_TRY(kd_alloc_array(&h->scratch[t].gradient, h->columns, h->padded * sizeof(float), err));
        KD_TRY(kd_alloc_array(&h->scratch[t].score, h->classes, sizeof(double), err));
    }
    return s != NULL ? kd_alloc_array(&s->permutation, s->count, sizeof *s->permutation, err) : KD_OK;
}

static void release(heads *h) {
    for (int t = 0; h->scratch != NULL && t < h->o->threads; t++) {
        kd_free(h->scratch[t].x);
        kd_free(h->scratch[t].residual);
        kd_free(h->scratch[t].gradient);
        kd_free(h->scratch[t].score);
    }
    kd_free(h->scratch);
    kd_free(h->velocity);
    kd_free(h->order);
}

static heads heads_of(float *weights, const kd_knn_data *data, size_t width, size_t classes, const kd_linear_options *o) {
    return (heads){.o = o, .data = data, .width = width, .columns = width + 1, .classes = classes, .padded = kd_product_padded(classes), .weights = weights};
}

static kd_status train(heads *h, stream *s, const char *label, kd_err *err) {
    const kd_linear_options *o = h->o;
    kd_status status = KD_OK;
    KD_TRY(allocate(h, s, err));
    kd_parallel_for(o->threads, o->n_rates, begin_head, h);
    kd_progress *progress = kd_progress_create(label, "iteration", (uint64_t)o->iterations, 0, o->json);
    for (h->first = 0; status == KD_OK && h->first < o->iterations; h->first += h->count) {
        h->count = o->iterations - h->first < STRETCH ? o->iterations - h->first : STRETCH;
        fill_order(s, h->order, (size_t)h->count * (size_t)o->batch, o->seed);
        kd_parallel_for(o->threads, o->n_rates, train_head, h);
        kd_progress_update(progress, (uint64_t)(h->first + h->count), 0, NULL);
        status = kd_stop_requested();
        if (status != KD_OK)
            kd_fail(err, status, "interrupted after %d of %d iterations of the linear classifiers", h->first + h->count, o->iterations);
    }
    kd_progress_finish(progress);
    return status;
}

kd_status kd_linear_train(float *weights, const kd_knn_data *data, size_t width, size_t classes, const kd_linear_options *options, const char *progress, kd_err *err) {
    heads h = heads_of(weights, data, width, classes, options);
    stream s = {.count = (uint32_t)data->count, .at = (uint32_t)data->count};
    kd_status status = train(&h, &s, progress, err);
    release(&h);
    kd_free(s.permutation);
    return status;
}

static void measure_head(void *ctx, int worker, size_t head) {
    const heads *h = ctx;
    const scratch *s = &h->scratch[worker];
    const float *w = h->weights + head * h->columns * h->padded;
    int32_t *top = h->top + head * h->data->count * KD_TOP;
    for (size_t first = 0; first < h->data->count; first += ROWS) {
        const size_t rows = h->data->count - first < ROWS ? h->data->count - first : ROWS;
        for (size_t i = 0; i < rows; i++)
            load_row(h, s->x + i * h->columns, first + i);
        memset(s->residual, 0, rows * h->padded * sizeof *s->residual);
        kd_product_f32(s->residual, s->x, h->columns, 1, w, rows, h->columns, h->padded);
        for (size_t i = 0; i < rows; i++) {
            for (size_t c = 0; c < h->classes; c++)
                s->score[c] = (double)s->residual[i * h->padded + c];
            kd_top_classes(top + (first + i) * KD_TOP, s->score, h->classes);
        }
    }
}

static int is_finite(const float *w, size_t n) {
    for (size_t i = 0; i < n; i++)
        if (!isfinite(w[i]))
            return 0;
    return 1;
}

/* What a set of heads is worth on a set of images. */
typedef struct worth {
    kd_shares *shares;   /* [n_rates]; zeros of a head that diverged */
    int *diverged;       /* [n_rates] */
    int32_t *prediction; /* [n_rates][images] */
} worth;

static kd_status measure(heads *h, worth *w, kd_err *err) {
    const size_t rates = h->o->n_rates, count = h->data->count, size = h->columns * h->padded;
    KD_TRY(allocate(h, NULL, err));
    KD_TRY(kd_alloc_array(&h->top, rates * count, KD_TOP * sizeof *h->top, err));
    KD_TRY(kd_alloc_array(&w->shares, rates, sizeof *w->shares, err));
    KD_TRY(kd_alloc_array(&w->diverged, rates, sizeof *w->diverged, err));
    KD_TRY(kd_alloc_array(&w->prediction, rates * count, sizeof *w->prediction, err));
    kd_parallel_for(h->o->threads, rates, measure_head, h);
    for (size_t i = 0; i < rates; i++) {
        w->diverged[i] = !is_finite(h->weights + i * size, size);
        if (!w->diverged[i])
            w->shares[i] = kd_top_shares(h->top + i * count * KD_TOP, h->data->label, count);
        for (size_t image = 0; image < count; image++)
            w->prediction[i * count + image] = h->top[(i * count + image) * KD_TOP];
    }
    return KD_OK;
}

static void free_worth(worth *w) {
    kd_free(w->shares);
    kd_free(w->diverged);
    kd_free(w->prediction);
}

/* Trains on one set and measures on another. */
static kd_status try_rates(worth *out, const kd_knn_data *train_set, const kd_knn_data *test, size_t width, size_t classes, const kd_linear_options *o, const char *progress, kd_err *err) {
    float *weights = NULL;
    KD_TRY(kd_alloc_array(&weights, o->n_rates * (width + 1), kd_product_padded(classes) * sizeof *weights, err));
    heads h = heads_of(weights, test, width, classes, o);
    kd_status status = kd_linear_train(weights, train_set, width, classes, o, progress, err);
    if (status == KD_OK)
        status = measure(&h, out, err);
    release(&h);
    kd_free(h.top);
    kd_free(weights);
    return status;
}

static kd_status choose(kd_linear_result *r, const kd_knn_data *train_set, size_t width, size_t classes, const kd_linear_options *o, kd_err *err) {
    kd_parts parts = {0};
    worth w = {0};
    kd_status status = kd_parts_make(&parts, train_set, width, classes, o->seed, err);
    if (status == KD_OK)
        status = try_rates(&w, &parts.fit, &parts.choose, width, classes, o, "linear (nine tenths)", err);
    r->held_out = parts.choose.count;
    for (size_t i = 0; status == KD_OK && i < o->n_rates; i++) {
        r->head[i].held_out = w.shares[i].top1;
        if (w.shares[i].top1 > r->head[r->chosen].held_out)
            r->chosen = i;
    }
    free_worth(&w);
    kd_parts_free(&parts);
    return status;
}

static kd_status run(kd_linear_result *r, worth *w, const kd_knn_data *train_set, const kd_knn_data *test, size_t width, size_t classes, const kd_linear_options *o, kd_err *err) {
    size_t failed = 0;
    if (o->held_out && o->n_rates > 1)
        KD_TRY(choose(r, train_set, width, classes, o, err));
    KD_TRY(try_rates(w, train_set, test, width, classes, o, "linear", err));
    for (size_t i = 0; i < o->n_rates; i++) {
        r->head[i].rate = o->rate[i];
        r->head[i].diverged = w->diverged[i];
        r->head[i].accuracy = w->shares[i];
        failed += (size_t)w->diverged[i];
        if (w->shares[i].top1 > r->head[r->best].accuracy.top1)
            r->best = i;
    }
    if (r->held_out == 0)
        r->chosen = r->best;
    if (failed == o->n_rates)
        return kd_fail(err, KD_ENONFINITE, "all %zu linear classifiers diverged (weights that aren't finite): use smaller --learning-rates than %g", failed, o->rate[0]);
    r->prediction = w->prediction;
    w->prediction = NULL;
    return KD_OK;
}

kd_status kd_linear(kd_linear_result *result, const kd_knn_data *train_set, const kd_knn_data *test, size_t width, size_t classes, const kd_linear_options *o, kd_err *err) {
    worth w = {0};
    size_t same = 1;
    const double begun = kd_now();
    while (same < train_set->count && train_set->label[same] == train_set->label[0])
        same++;
    if (same >= train_set->count)
        return kd_fail(err, KD_EUSAGE, "the %zu training images are all of one class: a linear classifier needs at least 2", train_set->count);
    result->n_rates = o->n_rates;
    kd_status status = kd_alloc_array(&result->head, o->n_rates, sizeof *result->head, err);
    if (status == KD_OK)
        status = run(result, &w, train_set, test, width, classes, o, err);
    result->seconds = kd_now() - begun;
    free_worth(&w);
    return status;
}

void kd_linear_result_free(kd_linear_result *result) {
    kd_free(result->head);
    kd_free(result->prediction);
    *result = (kd_linear_result){0};
}

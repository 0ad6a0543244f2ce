#include "train/eval/neighbours.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "common/base/io.h"
#include "common/base/log.h"
#include "common/base/mem.h"
#include "common/base/progress.h"
#include "common/base/threads.h"

/* A product of whole blocks stays in the last level of cache. Small tasks take smaller blocks in steps of STEP, and rows are filled up with zeros to a multiple of CHANNELS: both are multiples of every
 * kernel's tile. oneDNN sums a similarity in the same order in all of these shapes, and in another order at the edge of a shape between them. */
enum { ROW_BLOCK = 1024, QUERY_BLOCK = 1024, STEP = 128, CHANNELS = 16, QUERIES_PER_JOB = 32, LANES = 32 };

static const double long_search = 1e12; /* operations: about ten seconds of one core */

typedef struct search {
    kd_backend *b;
    kd_neighbours_plan plan;
    size_t padded; /* width, filled up */
    kd_op *op;
    kd_op_needs needs;
    /* host */
    kd_neighbour *found;
    float *unit;       /* [row_block or query_block][padded]: rows of length 1 on their way to the device */
    double *norm;      /* [the same] */
    float *download;   /* [query_block][row_block]; NULL: the product is read in place */
    const float *similarity; /* the product on the host */
    /* device */
    float *rows, *queries, *product; /* [row_block][padded], [whole blocks of queries][padded], [query_block][row_block] */
    void *packed, *scratch;
    /* the part that is worked on */
    const float *source;
    size_t first_row, row_count, first_query, query_count;
} search;

/* ---- plan ---- */

static size_t rounded_up(size_t n, size_t step) {
    return (n + step - 1) / step * step;
}

static size_t block_of(size_t count, size_t most) {
    return count < most ? rounded_up(count, STEP) : most;
}

static size_t larger(size_t a, size_t b) {
    return a > b ? a : b;
}

/* y[queries][rows] = queries rows^T as a 1x1 convolution over a map of queries: oneDNN's keeps its weights packed from call to call. Its matrix products without AVX-512 pack both sides in every
 * call, which takes an eighth longer. */
static kd_status create_product(search *s, kd_err *err) {
    int64_t width = (int64_t)s->padded, rows = (int64_t)s->plan.row_block, queries = (int64_t)s->plan.query_block;
    kd_op_desc d = {.kind = KD_OP_CONV2D, .name = "neighbours", .inputs = 1, .kernel = 1, .stride = 1, .x = {{KD_F32, 4, {1, queries, 1, width}}}, .y = {KD_F32, 4, {1, queries, 1, rows}}};
    return s->b->v->op_create(s->b, &s->op, &d, &s->needs, err);
}

static void count_bytes(search *s) {
    kd_neighbours_plan *p = &s->plan;
    const kd_neighbours_task *t = &p->task;
    size_t product = p->query_block * p->row_block * sizeof(float), row = s->padded * sizeof(float);
    size_t device = p->row_block * row + rounded_up(t->query_count, p->query_block) * row + product + s->needs.packed + s->needs.scratch;
    size_t host = larger(p->row_block, p->query_block) * (row + sizeof(double)) + t->query_count * (size_t)t->k * sizeof(kd_neighbour);
    int shared = s->b->v->host_memory;
    p->features = (t->row_count + t->query_count) * t->width * sizeof(float);
    p->host = host + (shared ? device : product);
    p->device = shared ? 0 : device;
}

static kd_status prepare(search *s, kd_backend *b, const kd_neighbours_task *t, kd_err *err) {
    KD_ASSERT(t->width >= 1 && t->query_count >= 1 && t->k >= 1 && (size_t)t->k <= t->row_count);
    if (t->row_count > UINT32_MAX)
        return kd_fail(err, KD_EUSAGE, "%zu rows are more than neighbours are searched among (%u); take fewer images", t->row_count, UINT32_MAX);
    kd_neighbours_plan *p = &s->plan;
    *p = (kd_neighbours_plan){.task = *t, .row_block = block_of(t->row_count, ROW_BLOCK), .query_block = block_of(t->query_count, QUERY_BLOCK)};
    size_t row_blocks = rounded_up(t->row_count, p->row_block) / p->row_block, query_blocks = rounded_up(t->query_count, p->query_block) / p->query_block;
    p->products = row_blocks * query_blocks;
    p->flops = 2.0 * (double)p->products * (double)p->row_block * (double)p->query_block * (double)rounded_up(t->width, CHANNELS);
    s->b = b;
    s->padded = rounded_up(t->width, CHANNELS);
    KD_TRY(create_product(s, err));
    count_bytes(s);
    return KD_OK;
}

kd_status kd_neighbours_plan_make(kd_neighbours_plan *plan, kd_backend *b, const kd_neighbours_task *t, kd_err *err) {
    search s = {0};
    KD_TRY(prepare(&s, b, t, err));
    *plan = s.plan;
    b->v->op_destroy(b, s.op);
    return KD_OK;
}

kd_status kd_neighbours_plan_check(const kd_neighbours_plan *p, int with_features, size_t available, kd_err *err) {
    char needed[32], beside[32], there[32];
    size_t bytes = p->host + (with_features ? p->features : 0);
    if (bytes <= available)
        return KD_OK;
    return kd_fail(err, KD_EFAIL, "neighbours of %zu among %zu features of width %zu need %s of memory (the features themselves: %s) and %s is available; take fewer images or a machine with more memory",
                   p->task.query_count, p->task.row_count, p->task.width, kd_io_size_text(bytes, needed, sizeof needed), kd_io_size_text(p->features, beside, sizeof beside),
                   kd_io_size_text(available, there, sizeof there));
}

void kd_neighbours_plan_text(const kd_neighbours_plan *p, char *buf, size_t cap) {
    char features[32], host[32], device[32] = "";
    kd_io_size_text(p->features, features, sizeof features);
    kd_io_size_text(p->host, host, sizeof host);
    if (p->device > 0)
        kd_io_size_text(p->device, device, sizeof device);
    snprintf(buf, cap, "%zu nearest of %zu features for each of %zu, width %zu: %zu products of %zu x %zu, %.3g TFLOP; %s beside the features' %s%s%s", (size_t)p->task.k, p->task.row_count,
             p->task.query_count, p->task.width, p->products, p->query_block, p->row_block, 1e-12 * p->flops, host, features, p->device > 0 ? ", on the device " : "", device);
}

/* ---- rows of length 1 ---- */

/* Eight partial sums let the compiler vectorise without re-associating by itself. */
__attribute__((target_clones("avx512f", "avx2", "default")))
static double normalise(float *out, size_t padded, const float *in, size_t width) {
    double part[8] = {0}, sum = 0;
    size_t c = 0;
    for (; c + 8 <= width; c += 8)
        for (size_t j = 0; j < 8; j++)
            part[j] += (double)in[c + j] * (double)in[c + j];
    for (; c < width; c++)
        sum += (double)in[c] * (double)in[c];
    for (size_t j = 0; j < 8; j++)
        sum += part[j];
    double norm = sqrt(sum), scale = 1.0 / fmax(norm, KD_OP_L2_EPS);
    for (c = 0; c < width; c++)
        out[c] = (float)((double)in[c] * scale);
    memset(out + width, 0, (padded - width) * sizeof(float));
    return norm;
}

static void normalise_job(void *ctx, int worker, size_t i) {
    search *s = ctx;
    size_t width = s->plan.task.width;
    (void)worker;
    s->norm[i] = normalise(s->unit + i * s->padded, s->padded, s->source + i * width, width);
}

/* `count` rows of `source` to the device, the rest of the block as zeros. */
static kd_status bring(search *s, float *to, const float *source, size_t first, size_t count, size_t block, const char *what, kd_err *err) {
    s->source = source + first * s->plan.task.width;
    kd_parallel_for(s->b->threads, count, normalise_job, s);
    for (size_t i = 0; i < count; i++)
        if (!isfinite(s->norm[i]))
            return kd_fail(err, KD_ENONFINITE, "the feature of %s %zu has NaN or infinite values; its network can't be compared", what, first + i);
    memset(s->unit + count * s->padded, 0, (block - count) * s->padded * sizeof(float));
    return s->b->v->upload(s->b, to, s->unit, block * s->padded * sizeof(float), err);
}

/* ---- selection ---- */

static void insert(kd_neighbour *list, size_t k, float similarity, uint32_t index) {
    size_t at = k - 1;
    for (; at > 0 && similarity > list[at - 1].similarity; at--)
        list[at] = list[at - 1];
    list[at] = (kd_neighbour){similarity, index};
}

/* Nearly every similarity is below that of the k-th neighbour so far, which LANES of them are asked at once. Rows come in the order of their index, so `>` makes the lower one win. */
__attribute__((target_clones("avx512f", "avx2", "default")))
static void select_row(kd_neighbour *list, size_t k, const float *similarity, size_t count, size_t first) {
    for (size_t i = 0; i < count; i += LANES) {
        float least = list[k - 1].similarity;
        size_t end = count - i < LANES ? count : i + LANES;
        int above = end - i < LANES;
        for (size_t j = 0; j < LANES && end - i == LANES; j++)
            above |= similarity[i + j] > least;
        for (size_t j = i; above && j < end; j++)
            if (similarity[j] > list[k - 1].similarity)
                insert(list, k, similarity[j], (uint32_t)(first + j));
    }
}

static void select_job(void *ctx, int worker, size_t job) {
    search *s = ctx;
    size_t k = (size_t)s->plan.task.k, end = (job + 1) * QUERIES_PER_JOB < s->query_count ? (job + 1) * QUERIES_PER_JOB : s->query_count;
    (void)worker;
    for (size_t q = job * QUERIES_PER_JOB; q < end; q++)
        select_row(s->found + (s->first_query + q) * k, k, s->similarity + q * s->plan.row_block, s->row_count, s->first_row);
}

/* ---- search ---- */

static kd_status allocate(search *s, kd_err *err) {
    const kd_neighbours_plan *p = &s->plan;
    const kd_backend_table *v = s->b->v;
    size_t row = s->padded * sizeof(float), product = p->query_block * p->row_block * sizeof(float), most = larger(p->row_block, p->query_block);
    KD_TRY(kd_alloc_array(&s->unit, most, row, err));
    KD_TRY(kd_alloc_array(&s->norm, most, sizeof *s->norm, err));
    if (!v->host_memory)
        KD_TRY(kd_alloc_array(&s->download, product, 1, err));
    KD_TRY(v->alloc(s->b, (void **)&s->rows, p->row_block * row, err));
    KD_TRY(v->alloc(s->b, (void **)&s->queries, rounded_up(p->task.query_count, p->query_block) * row, err));
    KD_TRY(v->alloc(s->b, (void **)&s->product, product, err));
    KD_TRY(v->alloc(s->b, &s->packed, s->needs.packed, err));
    s->similarity = v->host_memory ? s->product : s->download;
    return v->alloc(s->b, &s->scratch, s->needs.scratch, err);
}

static void release(search *s) {
    void *const device[] = {s->rows, s->queries, s->product, s->packed, s->scratch};
    for (size_t i = 0; i < sizeof device / sizeof *device; i++)
        s->b->v->release(s->b, device[i]);
    if (s->op != NULL)
        s->b->v->op_destroy(s->b, s->op);
    kd_free(s->unit);
    kd_free(s->norm);
    kd_free(s->download);
}

static kd_status bring_queries(search *s, kd_err *err) {
    const kd_neighbours_task *t = &s->plan.task;
    size_t block = s->plan.query_block;
    for (size_t first = 0; first < t->query_count; first += block) {
        size_t count = t->query_count - first < block ? t->query_count - first : block;
        KD_TRY(bring(s, s->queries + first * s->padded, t->queries, first, count, block, "query", err));
    }
    return KD_OK;
}

/* s->similarity = the product */
static kd_status fetch(search *s, kd_err *err) {
    if (s->download == NULL)
        return s->b->v->sync(s->b, err);
    return s->b->v->download(s->b, s->download, s->product, s->plan.query_block * s->plan.row_block * sizeof(float), err);
}

/* The rows that are in s->packed against all queries. */
static kd_status search_rows(search *s, kd_progress *progress, size_t *done, kd_err *err) {
    const kd_neighbours_plan *p = &s->plan;
    for (size_t first = 0; first < p->task.query_count; first += p->query_block) {
        kd_op_args a = {.x = {s->queries + first * s->padded}, .y = s->product, .param = {s->needs.consumed & 1u ? NULL : s->rows}, .packed = s->packed, .scratch = s->scratch};
        KD_TRY(s->b->v->op_forward(s->b, s->op, &a, err));
        KD_TRY(fetch(s, err));
        s->first_query = first;
        s->query_count = p->task.query_count - first < p->query_block ? p->task.query_count - first : p->query_block;
        kd_parallel_for(s->b->threads, (s->query_count + QUERIES_PER_JOB - 1) / QUERIES_PER_JOB, select_job, s);
        kd_status stop = kd_stop_requested();
        if (stop != KD_OK)
            return kd_fail(err, stop, "interrupted while neighbours were searched");
        kd_progress_update(progress, ++*done, 0, NULL);
    }
    return KD_OK;
}

static kd_status run(search *s, kd_progress *progress, kd_err *err) {
    const kd_neighbours_plan *p = &s->plan;
    const kd_neighbours_task *t = &p->task;
    size_t done = 0;
    for (size_t i = 0; i < t->query_count * (size_t)t->k; i++)
        s->found[i] = (kd_neighbour){-INFINITY, 0};
    KD_TRY(allocate(s, err));
    KD_TRY(bring_queries(s, err));
    for (s->first_row = 0; s->first_row < t->row_count; s->first_row += p->row_block) {
        s->row_count = t->row_count - s->first_row < p->row_block ? t->row_count - s->first_row : p->row_block;
        KD_TRY(bring(s, s->rows, t->rows, s->first_row, s->row_count, p->row_block, "row", err));
        KD_TRY(s->b->v->op_pack(s->b, s->op, &(kd_op_args){.param = {s->rows}, .packed = s->packed, .scratch = s->scratch}, err));
        KD_TRY(search_rows(s, progress, &done, err));
    }
    return KD_OK;
}

kd_status kd_neighbours_find(kd_neighbour *found, kd_backend *b, const kd_neighbours_task *t, kd_err *err) {
    search s = {.found = found};
    char text[KD_NEIGHBOURS_TEXT];
    KD_TRY(prepare(&s, b, t, err));
    kd_neighbours_plan_text(&s.plan, text, sizeof text);
    kd_log(KD_LOG_DEBUG, "%s", text);
    kd_progress *progress = s.plan.flops > long_search ? kd_progress_create("neighbours", "product", s.plan.products, 0, 0) : NULL;
    kd_status status = kd_neighbours_plan_check(&s.plan, 0, kd_mem_available(), err);
    if (status == KD_OK)
        status = run(&s, progress, err);
    kd_progress_finish(progress);
    release(&s);
    return status;
}

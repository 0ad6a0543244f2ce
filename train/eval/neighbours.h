/* Neighbours: for every query its k most similar rows of a set, exactly. What k-NN and the agreement of neighbourhoods are made of.
 *
 *     kd_neighbours_task t = {.rows = train, .row_count = 1281167, .queries = test, .query_count = 50000, .width = 768, .k = 20};
 *     KD_TRY(kd_neighbours_plan_make(&plan, backend, &t, err));          // the counts alone are enough, before there are features
 *     KD_TRY(kd_neighbours_plan_check(&plan, 1, kd_mem_available(), err));
 *     KD_TRY(kd_neighbours_find(found, backend, &t, err));               // found[query * 20 + rank]
 *
 * Similarity is the cosine: both sides are brought to length 1 (a row of zeros stays zero) on their way into the backend, so the caller's features are neither changed nor copied as a whole. Products
 * are the backend's (one op whose weights are a block of rows), blocks of rows outside, blocks of queries inside; what is left of a product is k neighbours per query.
 * Equal similarities: the lower index is nearer. Blocks are filled up with zeros to whole ones, because a product of another shape may round otherwise: so a pair's similarity doesn't depend on its
 * place, equal rows are equally similar, and results depend neither on the number of threads nor on how the work is cut. */
#ifndef KD_TRAIN_NEIGHBOURS_H
#define KD_TRAIN_NEIGHBOURS_H

#include "kernels/backend.h"

typedef struct kd_neighbours_task {
    const float *rows, *queries; /* [row_count][width], [query_count][width], borrowed; a plan doesn't read them */
    size_t row_count, query_count, width;
    int k; /* from 1 to row_count */
} kd_neighbours_task;

typedef struct kd_neighbour {
    float similarity;
    uint32_t index; /* of the row */
} kd_neighbour;

/* What a task takes. Bytes of `host` and `device` come on top of the features; a backend that computes in main memory has its buffers in `host`. */
typedef struct kd_neighbours_plan {
    kd_neighbours_task task;
    size_t row_block, query_block, products; /* shape of one product, and how many there are */
    size_t features, host, device;           /* bytes: the caller's rows and queries, found neighbours included in host */
    double flops;
} kd_neighbours_plan;

enum { KD_NEIGHBOURS_TEXT = 320 }; /* bytes that a plan's text fits in */

/* KD_EUSAGE: more rows than an index can count. KD_EFAIL: the backend has no such product, memory. */
kd_status kd_neighbours_plan_make(kd_neighbours_plan *plan, kd_backend *b, const kd_neighbours_task *t, kd_err *err);
/* KD_EFAIL with the numbers when main memory of which `available` bytes are left can't hold the plan; with_features: the features aren't there yet either. */
kd_status kd_neighbours_plan_check(const kd_neighbours_plan *plan, int with_features, size_t available, kd_err *err);
/* One sentence of it, for logs: products, their work, memory. */
void kd_neighbours_plan_text(const kd_neighbours_plan *plan, char *buf, size_t cap);

/* found[query_count][k], nearest first, of the caller. Uses b and as many threads; long searches show their progress. KD_ENONFINITE: a feature is NaN or infinite. KD_ESIGINT, KD_ESIGTERM: the user
 * asks to stop. Else the causes of kd_neighbours_plan_make and _check. */
kd_status kd_neighbours_find(kd_neighbour *found, kd_backend *b, const kd_neighbours_task *t, kd_err *err);

#endif

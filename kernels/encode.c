#include "kernels/encode.h"

#include <string.h>

static size_t aligned(size_t bytes) {
    return (bytes + 63) / 64 * 64;
}

void kd_encode_check(const kd_encode_spec *s) {
    KD_ASSERT(s->dtype == KD_F16 || s->dtype == KD_BF16 || s->dtype == KD_I8);
    KD_ASSERT(s->grid_h >= 1 && s->grid_w >= 1 && s->width >= 1);
    KD_ASSERT(s->target.kind == KD_TARGET_FULL || (s->target.h >= 1 && s->target.w >= 1 && s->target.h <= KD_TARGET_MAX_SIDE && s->target.w <= KD_TARGET_MAX_SIDE));
    KD_ASSERT(kd_hadamard_block(s->width) <= KD_ENCODE_MAX_BLOCK);
}

size_t kd_encode_rows(const kd_encode_spec *s) {
    return kd_target_rows(&s->target, s->grid_h, s->grid_w);
}

size_t kd_encode_bytes(const kd_encode_spec *s) {
    return kd_stored_bytes(s->dtype, kd_encode_rows(s), (size_t)s->width);
}

float kd_encode_limit(kd_dtype dtype) {
    return dtype == KD_F16 ? 65504.0f : dtype == KD_BF16 ? 0x1.FEp127f : 1e30f;
}

/* ---- reductions ---- */

size_t kd_encode_axis_bytes(int from, int to) {
    return aligned((size_t)to * (size_t)from * sizeof(double)) + aligned(2 * (size_t)to * sizeof(int));
}

static void fill_pool(kd_encode_axis *a) {
    for (int64_t k = 0; k < a->to; k++) {
        int64_t begin = k * a->from / a->to, end = ((k + 1) * a->from + a->to - 1) / a->to;
        for (int64_t i = begin; i < end; i++)
            a->weight[k * a->from + i] = 1;
    }
}

/* The transpose of the upsampling: grid point i adds to the two points of the reduced axis that it is made from. */
static void fill_adjoint(kd_encode_axis *a) {
    for (int64_t i = 0; i < a->from; i++) {
        int64_t k0, k1;
        double w1;
        kd_bilinear_tap(a->to, a->from, i, &k0, &k1, &w1);
        a->weight[k0 * a->from + i] += 1 - w1;
        a->weight[k1 * a->from + i] += w1;
    }
}

void kd_encode_axis_fill(kd_encode_axis *a, kd_target_kind kind, int from, int to, void *memory) {
    size_t n = (size_t)to * (size_t)from;
    KD_ASSERT(kind == KD_TARGET_POOL || kind == KD_TARGET_ADJOINT);
    *a = (kd_encode_axis){.from = from, .to = to, .weight = (double *)memory, .mean = kind == KD_TARGET_POOL};
    a->begin = (int *)(void *)((char *)memory + aligned(n * sizeof(double)));
    a->end = a->begin + to;
    memset(a->weight, 0, n * sizeof(double));
    if (kind == KD_TARGET_POOL)
        fill_pool(a);
    else
        fill_adjoint(a);
    for (int k = 0; k < to; k++) {
        const double *w = a->weight + (size_t)k * (size_t)from;
        int begin = 0, end = from;
        while (begin < end && w[begin] == 0)
            begin++;
        while (end > begin && w[end - 1] == 0)
            end--;
        a->begin[k] = begin;
        a->end[k] = end;
    }
}

double kd_encode_divisor(const kd_encode_axis *rows, const kd_encode_axis *columns, size_t k, size_t l) {
    return rows->mean ? (double)(rows->end[k] - rows->begin[k]) * (double)(columns->end[l] - columns->begin[l]) : 1;
}

/* ---- scratch ---- */

static size_t token_floats(const kd_encode_spec *s) {
    return aligned((size_t)s->width * sizeof(float)) / sizeof(float);
}

static size_t axes_bytes(const kd_encode_spec *s) {
    if (s->target.kind == KD_TARGET_FULL)
        return 0;
    return kd_encode_axis_bytes(s->grid_h, s->target.h) + kd_encode_axis_bytes(s->grid_w, s->target.w);
}

size_t kd_encode_scratch_bytes(const kd_encode_spec *s, size_t records) {
    return axes_bytes(s) + records * 2 * token_floats(s) * sizeof(float);
}

kd_encode_plan kd_encode_plan_make(const kd_encode_spec *s, void *scratch) {
    kd_encode_plan p = {.token = (float *)(void *)((char *)scratch + axes_bytes(s)), .stride = token_floats(s)};
    if (s->target.kind == KD_TARGET_FULL)
        return p;
    kd_encode_axis_fill(&p.rows, s->target.kind, s->grid_h, s->target.h, scratch);
    kd_encode_axis_fill(&p.columns, s->target.kind, s->grid_w, s->target.w, (char *)scratch + kd_encode_axis_bytes(s->grid_h, s->target.h));
    return p;
}

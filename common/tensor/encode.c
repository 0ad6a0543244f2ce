#include "common/tensor/encode.h"

#include <float.h>
#include <math.h>
#include <string.h>

static size_t aligned(size_t bytes)
{
    return (bytes + 63) / 64 * 64;
}

void kd_encode_check(const kd_encode_spec *s)
{
    KD_ASSERT(s->dtype == KD_F32 || s->dtype == KD_F16 || s->dtype == KD_BF16 || s->dtype == KD_I8);
    KD_ASSERT(s->grid_h >= 1 && s->grid_w >= 1 && s->width >= 1);
    KD_ASSERT(s->target.kind == KD_TARGET_FULL || (s->target.h >= 1 && s->target.w >= 1 && s->target.h <= KD_TARGET_MAX_SIDE && s->target.w <= KD_TARGET_MAX_SIDE));
    KD_ASSERT(kd_hadamard_block(s->width) <= KD_ENCODE_MAX_BLOCK);
}

size_t kd_encode_rows(const kd_encode_spec *s)
{
    return kd_target_rows(&s->target, s->grid_h, s->grid_w);
}

size_t kd_encode_bytes(const kd_encode_spec *s)
{
    return kd_stored_bytes(s->dtype, kd_encode_rows(s), (size_t)s->width);
}

float kd_encode_limit(kd_dtype dtype)
{
    return dtype == KD_F32 ? FLT_MAX : dtype == KD_F16 ? 65504.0f : dtype == KD_BF16 ? 0x1.FEp127f : 1e30f;
}

/* ---- reductions ---- */

size_t kd_encode_axis_bytes(int from, int to)
{
    return aligned((size_t)to * (size_t)from * sizeof(double)) + aligned(2 * (size_t)to * sizeof(int));
}

static void fill_pool(kd_encode_axis *a)
{
    for (int64_t k = 0; k < a->to; k++) {
        int64_t begin = k * a->from / a->to, end = ((k + 1) * a->from + a->to - 1) / a->to;
        for (int64_t i = begin; i < end; i++)
            a->weight[k * a->from + i] = 1;
    }
}

/* The transpose of the upsampling: grid point i adds to the two points of the reduced axis that it is made from. */
static void fill_adjoint(kd_encode_axis *a)
{
    for (int64_t i = 0; i < a->from; i++) {
        int64_t k0, k1;
        double w1;
        kd_bilinear_tap(a->to, a->from, i, &k0, &k1, &w1);
        a->weight[k0 * a->from + i] += 1 - w1;
        a->weight[k1 * a->from + i] += w1;
    }
}

static kd_encode_axis axis_at(kd_target_kind kind, int from, int to, void *memory)
{
    kd_encode_axis a = {.from = from, .to = to, .weight = (double *)memory, .mean = kind == KD_TARGET_POOL};
    a.begin = (int *)(void *)((char *)memory + aligned((size_t)to * (size_t)from * sizeof(double)));
    a.end = a.begin + to;
    return a;
}

void kd_encode_axis_fill(kd_encode_axis *a, kd_target_kind kind, int from, int to, void *memory)
{
    KD_ASSERT(kind == KD_TARGET_POOL || kind == KD_TARGET_ADJOINT);
    *a = axis_at(kind, from, to, memory);
    memset(a->weight, 0, (size_t)to * (size_t)from * sizeof(double));
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

double kd_encode_divisor(const kd_encode_axis *rows, const kd_encode_axis *columns, size_t k, size_t l)
{
    return rows->mean ? (double)(rows->end[k] - rows->begin[k]) * (double)(columns->end[l] - columns->begin[l]) : 1;
}

/* ---- scratch ---- */

static size_t token_floats(const kd_encode_spec *s)
{
    return aligned((size_t)s->width * sizeof(float)) / sizeof(float);
}

static size_t axes_bytes(const kd_encode_spec *s)
{
    if (s->target.kind == KD_TARGET_FULL)
        return 0;
    return kd_encode_axis_bytes(s->grid_h, s->target.h) + kd_encode_axis_bytes(s->grid_w, s->target.w);
}

static size_t host_bytes(const kd_encode_spec *s, size_t records)
{
    return axes_bytes(s) + records * 2 * token_floats(s) * sizeof(float);
}

static size_t parts_of(const kd_encode_spec *s)
{
    size_t rows = kd_encode_rows(s);
    return rows < KD_ENCODE_MAX_PARTS ? rows : KD_ENCODE_MAX_PARTS;
}

static size_t parts_bytes(const kd_encode_spec *s, size_t records)
{
    return aligned(records * parts_of(s) * sizeof(kd_encode_stats));
}

size_t kd_encode_scratch_bytes(const kd_encode_spec *s, size_t records)
{
    size_t reduced = s->target.kind == KD_TARGET_FULL ? 0 : records * kd_encode_rows(s) * (size_t)s->width * sizeof(float);
    return host_bytes(s, records) + parts_bytes(s, records) + reduced;
}

static kd_encode_plan plan_at(const kd_encode_spec *s, void *scratch)
{
    kd_encode_plan p = {.token = (float *)(void *)((char *)scratch + axes_bytes(s)), .stride = token_floats(s)};
    if (s->target.kind == KD_TARGET_FULL)
        return p;
    p.rows = axis_at(s->target.kind, s->grid_h, s->target.h, scratch);
    p.columns = axis_at(s->target.kind, s->grid_w, s->target.w, (char *)scratch + kd_encode_axis_bytes(s->grid_h, s->target.h));
    return p;
}

kd_encode_plan kd_encode_plan_make(const kd_encode_spec *s, void *scratch)
{
    kd_encode_plan p = plan_at(s, scratch);
    if (s->target.kind == KD_TARGET_FULL)
        return p;
    kd_encode_axis_fill(&p.rows, s->target.kind, s->grid_h, s->target.h, p.rows.weight);
    kd_encode_axis_fill(&p.columns, s->target.kind, s->grid_w, s->target.w, p.columns.weight);
    return p;
}

kd_encode_device_plan kd_encode_device_place(const kd_encode_spec *s, size_t records, void *scratch)
{
    char *behind = (char *)scratch + host_bytes(s, records);
    kd_encode_device_plan p = {.host = plan_at(s, scratch), .part = (kd_encode_stats *)(void *)behind, .parts = parts_of(s)};
    if (s->target.kind != KD_TARGET_FULL)
        p.reduced = (float *)(void *)(behind + parts_bytes(s, records));
    return p;
}

/* ---- the plain implementation: value by value as the header says it ---- */

typedef struct encoder {
    const kd_encode_spec *spec;
    const kd_encode_plan *plan;
    size_t rows, width;
} encoder;

/* Token (k, l) of the reduced grid. */
static void reduce_token(const encoder *e, float *y, const float *t, int k, int l)
{
    const kd_encode_axis *v = &e->plan->rows, *h = &e->plan->columns;
    for (size_t d = 0; d < e->width; d++) {
        double sum = 0;
        for (int i = v->begin[k]; i < v->end[k]; i++) {
            double line = 0;
            for (int j = h->begin[l]; j < h->end[l]; j++)
                line += h->weight[l * h->from + j] * (double)t[((size_t)i * (size_t)h->from + (size_t)j) * e->width + d];
            sum += v->weight[k * v->from + i] * line;
        }
        y[d] = (float)(sum / kd_encode_divisor(v, h, (size_t)k, (size_t)l));
    }
}

/* Sums of the blocks of v: Sylvester's matrix without its factor. */
static void butterflies(float *v, size_t width, size_t block)
{
    for (size_t h = 1; h < block; h *= 2)
        for (size_t i = 0; i < width; i += 2 * h)
            for (size_t j = i; j < i + h; j++) {
                float a = v[j], b = v[j + h];
                v[j] = a + b;
                v[j + h] = a - b;
            }
}

/* One token as codes; y: what a reader makes of them. */
static float encode_i8(int8_t *q, float *y, const float *x, size_t width)
{
    int block = kd_hadamard_block((int)width);
    float norm = kd_hadamard_norm(block), most = 0;
    memcpy(y, x, width * sizeof *y);
    butterflies(y, width, (size_t)block);
    for (size_t i = 0; i < width; i++) {
        y[i] *= norm;
        most = fmaxf(most, fabsf(y[i]));
    }
    float scale = most / 127;
    for (size_t i = 0; i < width; i++) {
        float code = scale > 0 ? rintf(y[i] / scale) : 0;
        y[i] = fminf(fmaxf(code, -127), 127);
        q[i] = (int8_t)y[i];
    }
    butterflies(y, width, (size_t)block);
    for (size_t i = 0; i < width; i++)
        y[i] *= scale * norm;
    return scale;
}

static size_t count_bad(const float *x, size_t n, float limit)
{
    size_t bad = 0;
    for (size_t i = 0; i < n; i++)
        bad += !(fabsf(x[i]) <= limit);
    return bad;
}

/* Writes token r of a record; y receives what a reader decodes. */
static void store_token(const encoder *e, uint8_t *out, float *y, const float *x, size_t r, size_t bad)
{
    size_t n = e->rows * e->width, at = r * e->width;
    if (e->spec->dtype == KD_F32) {
        memcpy(out + at * sizeof *x, x, e->width * sizeof *x);
        memcpy(y, x, e->width * sizeof *x);
        return;
    }
    if (e->spec->dtype == KD_I8) {
        int8_t *q = (int8_t *)out + 4 * e->rows + at;
        float scale = 0;
        memset(q, 0, e->width);
        memset(y, 0, e->width * sizeof *y);
        if (bad == 0)
            scale = encode_i8(q, y, x, e->width);
        memcpy(out + 4 * r, &scale, sizeof scale);
        return;
    }
    for (size_t i = 0; i < e->width; i++) {
        uint16_t h = e->spec->dtype == KD_F16 ? kd_f32_to_f16(x[i]) : kd_f32_to_bf16(x[i]);
        out[at + i] = (uint8_t)(h >> 8);
        out[n + at + i] = (uint8_t)(h & 255);
        y[i] = e->spec->dtype == KD_F16 ? kd_f16_to_f32(h) : kd_bf16_to_f32(h);
    }
}

static void count_token(kd_encode_stats *s, const float *x, const float *y, size_t width)
{
    double xx = 0, err2 = 0;
    for (size_t i = 0; i < width; i++) {
        double a = (double)x[i], b = (double)y[i];
        xx += a * a;
        err2 += (a - b) * (a - b);
        s->qq += b * b;
        s->xq += a * b;
    }
    s->xx += xx;
    s->err2 += err2;
    if (xx > 0)
        s->worst = fmax(s->worst, sqrt(err2 / xx));
}

void kd_encode_record(uint8_t *payload, kd_encode_stats *stats, const float *t, const kd_encode_spec *s, const kd_encode_plan *plan)
{
    const kd_target *target = &s->target;
    encoder e = {s, plan, kd_encode_rows(s), (size_t)s->width};
    float *reduced = plan->token, *y = reduced + plan->stride;
    size_t n = (size_t)s->grid_h * (size_t)s->grid_w * e.width;
    *stats = (kd_encode_stats){0};
    for (size_t r = 0; r < e.rows; r++) {
        const float *x = target->kind == KD_TARGET_FULL ? t + r * e.width : reduced;
        size_t bad;
        if (target->kind != KD_TARGET_FULL)
            reduce_token(&e, reduced, t, (int)(r / (size_t)target->w), (int)(r % (size_t)target->w));
        bad = count_bad(x, e.width, kd_encode_limit(s->dtype));
        store_token(&e, payload, y, x, r, bad);
        count_token(stats, x, y, e.width);
        stats->bad += (double)bad;
    }
    for (size_t i = 0; target->kind == KD_TARGET_ADJOINT && i < n; i++)
        stats->square += (double)t[i] * (double)t[i];
}

/* Target encoding, value by value as kernels/encode.h says it. */
#include <math.h>
#include <string.h>

#include "kernels/ref/ref_flat.h"

typedef struct encoder {
    const kd_encode_spec *spec;
    const kd_encode_plan *plan;
    size_t rows, width;
} encoder;

/* Token (k, l) of the reduced grid. */
static void reduce_token(const encoder *e, float *y, const float *t, int k, int l) {
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
static void butterflies(float *v, size_t width, size_t block) {
    for (size_t h = 1; h < block; h *= 2)
        for (size_t i = 0; i < width; i += 2 * h)
            for (size_t j = i; j < i + h; j++) {
                float a = v[j], b = v[j + h];
                v[j] = a + b;
                v[j + h] = a - b;
            }
}

/* One token as codes; y: what a reader makes of them. */
static float encode_i8(int8_t *q, float *y, const float *x, size_t width) {
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

static size_t count_bad(const float *x, size_t n, float limit) {
    size_t bad = 0;
    for (size_t i = 0; i < n; i++)
        bad += !(fabsf(x[i]) <= limit);
    return bad;
}

/* Writes token r of a record; y receives what a reader decodes. */
static void store_token(const encoder *e, uint8_t *out, float *y, const float *x, size_t r, size_t bad) {
    size_t n = e->rows * e->width, at = r * e->width;
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

static void count_token(kd_encode_stats *s, const float *x, const float *y, size_t width) {
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

static void encode_record(const encoder *e, uint8_t *out, kd_encode_stats *stats, const float *t) {
    const kd_target *target = &e->spec->target;
    float *reduced = e->plan->token, *y = reduced + e->plan->stride;
    *stats = (kd_encode_stats){0};
    for (size_t r = 0; r < e->rows; r++) {
        const float *x = target->kind == KD_TARGET_FULL ? t + r * e->width : reduced;
        if (target->kind != KD_TARGET_FULL)
            reduce_token(e, reduced, t, (int)(r / (size_t)target->w), (int)(r % (size_t)target->w));
        size_t bad = count_bad(x, e->width, kd_encode_limit(e->spec->dtype));
        store_token(e, out, y, x, r, bad);
        count_token(stats, x, y, e->width);
        stats->bad += (double)bad;
    }
    size_t n = (size_t)e->spec->grid_h * (size_t)e->spec->grid_w * e->width;
    for (size_t i = 0; target->kind == KD_TARGET_ADJOINT && i < n; i++)
        stats->square += (double)t[i] * (double)t[i];
}

kd_status kd_ref_encode(kd_backend *b, uint8_t *out, kd_encode_stats *stats, const float *x, size_t records, const kd_encode_spec *spec, void *scratch, kd_err *err) {
    (void)b, (void)err;
    kd_encode_check(spec);
    kd_encode_plan plan = kd_encode_plan_make(spec, scratch);
    encoder e = {spec, &plan, kd_encode_rows(spec), (size_t)spec->width};
    size_t n = (size_t)spec->grid_h * (size_t)spec->grid_w * e.width;
    for (size_t r = 0; r < records; r++)
        encode_record(&e, out + r * kd_encode_bytes(spec), &stats[r], x + r * n);
    return KD_OK;
}

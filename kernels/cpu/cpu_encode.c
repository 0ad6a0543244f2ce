/* Target encoding (common/tensor/encode.h), record by record on the threads, token by token within: a token stays in the first cache through reduction, rotation, rounding and statistics. */
#include <math.h>

#include "kernels/cpu/cpu.h"
#include "kernels/cpu/simd.h"

typedef struct encode_ctx {
    const kd_encode_spec *spec;
    const kd_encode_plan *plan;
    uint8_t *out;
    kd_encode_stats *stats;
    const float *x;
    size_t rows, width, values; /* of a record: stored tokens; values of the full grid */
} encode_ctx;

/* ---- reduction ---- */

enum { AHEAD = 4 }; /* vectors of doubles whose sums run beside each other */

/* Token (k, l) of the reduced grid. No sums are kept from one token to the next: reading the few input tokens again is cheaper than storing doubles. */
KD_HOT static void reduce_token(const encode_ctx *ctx, float *y, const float *t, size_t k, size_t l) {
    const kd_encode_axis v = ctx->plan->rows, h = ctx->plan->columns;
    const double *wv = v.weight + k * (size_t)v.from, *wh = h.weight + l * (size_t)h.from;
    double divisor = kd_encode_divisor(&v, &h, k, l);
    size_t width = ctx->width, d = 0;
    for (; d + AHEAD * KD_VD <= width; d += AHEAD * KD_VD) {
        kd_vd sum[AHEAD] = {{0}};
        for (int i = v.begin[k]; i < v.end[k]; i++) {
            kd_vd line[AHEAD] = {{0}};
            for (int j = h.begin[l]; j < h.end[l]; j++)
                for (size_t a = 0; a < AHEAD; a++)
                    line[a] += wh[j] * kd_load_double(t + ((size_t)i * (size_t)h.from + (size_t)j) * width + d + a * KD_VD);
            for (size_t a = 0; a < AHEAD; a++)
                sum[a] += wv[i] * line[a];
        }
        for (size_t a = 0; a < AHEAD; a++) {
            kd_vf4 f = __builtin_convertvector(sum[a] / divisor, kd_vf4);
            memcpy(y + d + a * KD_VD, &f, sizeof f);
        }
    }
    for (; d < width; d++) {
        double sum = 0;
        for (int i = v.begin[k]; i < v.end[k]; i++) {
            double line = 0;
            for (int j = h.begin[l]; j < h.end[l]; j++)
                line += wh[j] * (double)t[((size_t)i * (size_t)h.from + (size_t)j) * width + d];
            sum += wv[i] * line;
        }
        y[d] = (float)(sum / divisor);
    }
}

KD_HOT static double squares(const float *x, size_t n) {
    return kd_sum_of_squares(x, n);
}

/* ---- f32 ---- */

static void store_floats(const encode_ctx *c, uint8_t *out, float *y, const float *x, size_t r) {
    memcpy(out + r * c->width * sizeof *x, x, c->width * sizeof *x);
    memcpy(y, x, c->width * sizeof *x);
}

/* ---- f16, bf16 ---- */

enum { CHUNK = 1024 };

KD_HOT static void split_planes(uint8_t *KD_RESTRICT high, uint8_t *KD_RESTRICT low, const uint16_t *KD_RESTRICT h, size_t n) {
    for (size_t i = 0; i < n; i++) {
        high[i] = (uint8_t)(h[i] >> 8);
        low[i] = (uint8_t)(h[i] & 255);
    }
}

/* kd_f32_to_bf16 and back in integers, which are vectorised for every machine. */
KD_HOT static void round_bf16(uint16_t *KD_RESTRICT half, float *KD_RESTRICT y, const float *KD_RESTRICT x, size_t n) {
    for (size_t i = 0; i < n; i++) {
        uint32_t u, high;
        memcpy(&u, &x[i], sizeof u);
        high = (int32_t)(u & INT32_MAX) > 0x7f800000 ? u >> 16 | 0x40 : (u + 0x7fff + (u >> 16 & 1)) >> 16;
        half[i] = (uint16_t)high;
        high <<= 16;
        memcpy(&y[i], &high, sizeof high);
    }
}

static void store_planes(const encode_ctx *c, uint8_t *out, float *y, const float *x, size_t r) {
    for (size_t i = 0; i < c->width; i += CHUNK) {
        uint16_t half[CHUNK];
        size_t n = c->width - i < CHUNK ? c->width - i : CHUNK, at = r * c->width + i;
        if (c->spec->dtype == KD_F16) {
            kd_f32_to_f16_n(half, x + i, n);
            kd_f16_to_f32_n(y + i, half, n);
        } else {
            round_bf16(half, y + i, x + i, n);
        }
        split_planes(out + at, out + c->rows * c->width + at, half, n);
    }
}

/* ---- i8 ---- */

/* Butterflies use vectors that common machines have, see kd_vd; shuffles need them. */
typedef float vf8 __attribute__((vector_size(32)));
typedef int32_t vi4 __attribute__((vector_size(16)));

#if defined(__clang__)
#define SHUFFLE(v, ...) __builtin_shufflevector(v, v, __VA_ARGS__)
#else
#define SHUFFLE(v, ...) __builtin_shuffle(v, (vi4){__VA_ARGS__})
#endif

/* a + b, a - b over distances 1 and 2: the partner plus the value, whose sign is turned in the upper place of each pair. */
KD_LANE kd_vf4 butterfly_quad(const float *p) {
    const vi4 odd = {0, INT32_MIN, 0, INT32_MIN}, upper = {0, 0, INT32_MIN, INT32_MIN};
    kd_vf4 v;
    memcpy(&v, p, sizeof v);
    v = SHUFFLE(v, 1, 0, 3, 2) + (kd_vf4)((vi4)v ^ odd);
    return SHUFFLE(v, 2, 3, 0, 1) + (kd_vf4)((vi4)v ^ upper);
}

KD_LANE void store_quad(float *p, kd_vf4 v) {
    memcpy(p, &v, sizeof v);
}

/* Distances 1, 2, 4, 8. */
KD_LANE void butterfly_sixteen(float *p) {
    kd_vf4 v0 = butterfly_quad(p), v1 = butterfly_quad(p + 4), v2 = butterfly_quad(p + 8), v3 = butterfly_quad(p + 12);
    kd_vf4 a = v0 + v1, b = v0 - v1, c = v2 + v3, d = v2 - v3;
    store_quad(p, a + c);
    store_quad(p + 4, b + d);
    store_quad(p + 8, a - c);
    store_quad(p + 12, b - d);
}

/* One distance over a block, h a multiple of 8. */
KD_LANE void butterfly_far(float *p, size_t block, size_t h) {
    for (size_t i = 0; i < block; i += 2 * h)
        for (size_t j = i; j < i + h; j += 8) {
            vf8 a, b, sum, difference;
            memcpy(&a, p + j, sizeof a);
            memcpy(&b, p + j + h, sizeof b);
            sum = a + b;
            difference = a - b;
            memcpy(p + j, &sum, sizeof sum);
            memcpy(p + j + h, &difference, sizeof difference);
        }
}

/* Sylvester's matrix without its factor, block by block. */
KD_LANE void butterflies(float *v, size_t width, size_t block) {
    if (block < KD_VF) {
        for (size_t h = 1; h < block; h *= 2)
            for (size_t i = 0; i < width; i += 2 * h)
                for (size_t j = i; j < i + h; j++) {
                    float a = v[j], b = v[j + h];
                    v[j] = a + b;
                    v[j + h] = a - b;
                }
        return;
    }
    for (size_t first = 0; first < width; first += block) {
        for (size_t i = 0; i < block; i += KD_VF)
            butterfly_sixteen(v + first + i);
        for (size_t h = KD_VF; h < block; h *= 2)
            butterfly_far(v + first, block, h);
    }
}

/* y = the rotated token; returns the largest magnitude. Magnitudes are compared as integers, whose maximum is vectorised. */
KD_LANE float rotate(float *KD_RESTRICT y, const float *x, size_t width, size_t block, float norm) {
    int32_t most = 0;
    float largest;
    memcpy(y, x, width * sizeof *y);
    butterflies(y, width, block);
    for (size_t i = 0; i < width; i++) {
        int32_t bits;
        y[i] *= norm;
        memcpy(&bits, &y[i], sizeof bits);
        bits &= INT32_MAX;
        most = bits > most ? bits : most;
    }
    memcpy(&largest, &most, sizeof largest);
    return largest;
}

/* Codes of the rotated token in y, which become its values. Adding 1.5 * 2^23 rounds to the nearest integer, ties to even, and leaves it in the low bits. Quotients are near 127 at most,
 * even where the scale is subnormal; integers are clamped, because comparisons of floats aren't vectorised. */
KD_LANE void round_codes(int8_t *KD_RESTRICT q, float *KD_RESTRICT y, size_t width, float scale) {
    for (size_t i = 0; i < width; i++) {
        float v = y[i] / scale + 12582912.0f;
        int32_t code;
        memcpy(&code, &v, sizeof code);
        code -= 0x4b400000;
        code = code > 127 ? 127 : code;
        code = code < -127 ? -127 : code;
        q[i] = (int8_t)code;
        y[i] = (float)code;
    }
}

/* The token's codes; returns their scale. y: what a reader makes of them. */
KD_HOT static float encode_i8(int8_t *q, float *y, const float *x, size_t width) {
    size_t block = (size_t)kd_hadamard_block((int)width);
    float norm = kd_hadamard_norm((int)block), scale = rotate(y, x, width, block, norm) / 127, back = scale * norm;
    if (!(scale > 0)) {
        memset(q, 0, width);
        memset(y, 0, width * sizeof *y);
        return 0;
    }
    round_codes(q, y, width, scale);
    butterflies(y, width, block);
    for (size_t i = 0; i < width; i++)
        y[i] *= back;
    return scale;
}

static void store_codes_of(const encode_ctx *c, uint8_t *out, float *y, const float *x, size_t r, size_t bad) {
    int8_t *q = (int8_t *)out + 4 * c->rows + r * c->width;
    float scale = 0;
    if (bad == 0) {
        scale = encode_i8(q, y, x, c->width);
    } else {
        memset(q, 0, c->width);
        memset(y, 0, c->width * sizeof *y);
    }
    memcpy(out + 4 * r, &scale, sizeof scale);
}

/* ---- statistics ---- */

KD_HOT static size_t count_bad(const float *x, size_t n, float limit) {
    unsigned bad = 0;
    for (size_t i = 0; i < n; i++)
        bad += !(fabsf(x[i]) <= limit);
    return bad;
}

KD_HOT static void count_token(kd_encode_stats *s, const float *x, const float *y, size_t n) {
    kd_vd vxx[2] = {{0}}, vqq[2] = {{0}}, vxq[2] = {{0}}, verr2[2] = {{0}};
    size_t i = 0;
    for (; i + 2 * KD_VD <= n; i += 2 * KD_VD)
        for (size_t k = 0; k < 2; k++) {
            kd_vd a = kd_load_double(x + i + k * KD_VD), b = kd_load_double(y + i + k * KD_VD);
            vxx[k] += a * a;
            vqq[k] += b * b;
            vxq[k] += a * b;
            verr2[k] += (a - b) * (a - b);
        }
    double xx = kd_sum_double(vxx[0] + vxx[1]), qq = kd_sum_double(vqq[0] + vqq[1]), xq = kd_sum_double(vxq[0] + vxq[1]), err2 = kd_sum_double(verr2[0] + verr2[1]);
    for (; i < n; i++) {
        double a = (double)x[i], b = (double)y[i];
        xx += a * a;
        qq += b * b;
        xq += a * b;
        err2 += (a - b) * (a - b);
    }
    s->xx += xx;
    s->qq += qq;
    s->xq += xq;
    s->err2 += err2;
    if (xx > 0 && sqrt(err2 / xx) > s->worst)
        s->worst = sqrt(err2 / xx);
}

/* ---- records ---- */

static void encode_record(const encode_ctx *c, uint8_t *out, kd_encode_stats *stats, const float *t, float *reduced) {
    const kd_target *target = &c->spec->target;
    float *y = reduced + c->plan->stride;
    *stats = (kd_encode_stats){0};
    for (size_t r = 0; r < c->rows; r++) {
        const float *x = target->kind == KD_TARGET_FULL ? t + r * c->width : reduced;
        if (target->kind != KD_TARGET_FULL)
            reduce_token(c, reduced, t, r / (size_t)target->w, r % (size_t)target->w);
        size_t bad = count_bad(x, c->width, kd_encode_limit(c->spec->dtype));
        if (c->spec->dtype == KD_I8)
            store_codes_of(c, out, y, x, r, bad);
        else if (c->spec->dtype == KD_F32)
            store_floats(c, out, y, x, r);
        else
            store_planes(c, out, y, x, r);
        count_token(stats, x, y, c->width);
        stats->bad += (double)bad;
    }
    if (target->kind == KD_TARGET_ADJOINT)
        stats->square = squares(t, c->values);
}

static void encode_range(const void *ctx, int slice, size_t begin, size_t end) {
    const encode_ctx *c = ctx;
    (void)slice;
    for (size_t r = begin; r < end; r++)
        encode_record(c, c->out + r * kd_encode_bytes(c->spec), &c->stats[r], c->x + r * c->values, c->plan->token + r * 2 * c->plan->stride);
}

kd_status kd_cpu_encode(kd_backend *b, uint8_t *out, kd_encode_stats *stats, const float *x, size_t records, const kd_encode_spec *spec, void *scratch, kd_err *err) {
    (void)err;
    kd_encode_check(spec);
    kd_encode_plan plan = kd_encode_plan_make(spec, scratch);
    encode_ctx c = {.spec = spec, .plan = &plan, .out = out, .stats = stats, .x = x, .rows = kd_encode_rows(spec), .width = (size_t)spec->width};
    c.values = (size_t)spec->grid_h * (size_t)spec->grid_w * c.width;
    kd_cpu_parallel(b->threads, records, c.values < 2 ? 2 : c.values, encode_range, &c);
    return KD_OK;
}

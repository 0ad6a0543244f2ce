#include "tests/ops/harness.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "common/base/mem.h"
#include "common/base/rng.h"
#include "common/tensor/compare.h"

static void must(kd_status status, const kd_err *err, const ops_case *c, const char *step) {
    if (status != KD_OK)
        fail_msg("%s: %s: %s", c ? c->label : "backend", step, err->msg);
}

/* "dx3"; valid until the next call. */
static const char *numbered(const char *name, int i) {
    static char text[40];
    snprintf(text, sizeof text, "%s%d", name, i);
    return text;
}

/* --- inputs --- */

static float *new_array(size_t n) {
    float *p = kd_calloc(n ? n : 1, sizeof *p);
    assert_non_null(p);
    return p;
}

void ops_fill_normal(float *out, size_t n, uint64_t seed, uint64_t stream) {
    enum { PER_STREAM = 50000 }; /* a stream holds 262,144 draws, and a normal value takes two or more */
    kd_rng r = {0};
    for (size_t i = 0; i < n; i++) {
        if (i % PER_STREAM == 0)
            r = kd_rng_make(seed, stream, (uint32_t)(i / PER_STREAM), KD_RNG_TEST);
        out[i] = (float)kd_rng_normal(&r);
    }
}

static float *normal_array(size_t n, kd_dtype t, double mean, double std, uint64_t seed, uint64_t stream) {
    if (n == 0)
        return NULL;
    float *p = new_array(n);
    ops_fill_normal(p, n, seed, stream);
    for (size_t i = 0; i < n; i++) {
        p[i] = (float)(mean + std * (double)p[i]);
        if (t == KD_U8)
            p[i] = (float)((int)fabs((double)p[i] * 1000) % 256);
        if (t == KD_BF16)
            p[i] = kd_bf16_to_f32(kd_f32_to_bf16(p[i]));
    }
    return p;
}

/* Weights shrink with the fan-in, so that outputs stay of size one; scales lie around one. */
static void param_moments(const kd_op_desc *d, int i, double *mean, double *std) {
    size_t out = (size_t)d->y.shape[d->y.rank - 1];
    int matrix = d->kind == KD_OP_CONV2D || d->kind == KD_OP_LINEAR;
    int scale = (d->kind == KD_OP_BATCH_NORM || d->kind == KD_OP_LAYER_NORM || d->kind == KD_OP_SCALE_ADD) && i == 0;
    *mean = scale ? 1 : 0;
    *std = matrix && i == 0 ? 1 / sqrt((double)(kd_op_param_numel(d, 0) / out)) : 0.5;
}

double *ops_widen(const float *x, size_t n) {
    if (!x)
        return NULL;
    double *out = kd_calloc(n + 1, sizeof *out);
    assert_non_null(out);
    for (size_t i = 0; i < n; i++)
        out[i] = (double)x[i];
    return out;
}

kd_ref_vals ops_ref_vals_make(const kd_op_desc *d, const ops_inputs *in) {
    const kd_ref_core *core = kd_ref_core_of(d->kind);
    kd_ref_vals v = {0};
    for (int i = 0; i < d->inputs; i++)
        v.x[i] = ops_widen(in->x[i], kd_tdesc_numel(&d->x[i]));
    for (int i = 0; i < KD_OP_MAX_PARAM; i++)
        v.param[i] = ops_widen(in->param[i], kd_op_param_numel(d, i));
    for (int i = 0; i < KD_OP_MAX_STATE; i++)
        v.state[i] = ops_widen(in->state[i], kd_op_state_numel(d, i));
    v.y = kd_calloc(kd_tdesc_numel(&d->y), sizeof *v.y);
    v.work = kd_calloc((core->work ? core->work(d) : 0) + 1, sizeof *v.work);
    v.dy = ops_widen(in->dy, kd_tdesc_numel(&d->y));
    assert_true(v.y && v.work);
    return v;
}

void ops_ref_vals_free(kd_ref_vals *v) {
    void **all = (void **)v;
    for (size_t i = 0; i < sizeof *v / sizeof *all; i++)
        kd_free(all[i]);
}

/* Where the derivative jumps: a ReLU's at 0, hardswish's at -3 and 3. */
static int near_kink(kd_act act, double x, double margin) {
    return act == KD_ACT_RELU ? fabs(x) < margin : act == KD_ACT_HARDSWISH ? fabs(fabs(x) - 3) < margin : 0;
}

/* On which side of such a kink a value falls may depend on rounding. Where it lies that near, dy becomes zero, so that the side doesn't matter. */
static void silence_kinks(const kd_op_desc *d, ops_inputs *in) {
    kd_op_desc linear = *d;
    double margin = d->x[0].dtype == KD_BF16 ? 0.05 : 1e-3;
    linear.act = KD_ACT_NONE;
    kd_ref_vals v = ops_ref_vals_make(&linear, in);
    kd_ref_core_of(d->kind)->forward(&linear, &v);
    for (size_t i = 0; i < kd_tdesc_numel(&d->y); i++)
        if (near_kink(d->act, v.y[i], margin))
            in->dy[i] = 0;
    ops_ref_vals_free(&v);
}

ops_inputs ops_inputs_make(const ops_case *c, uint64_t seed) {
    const kd_op_desc *d = &c->desc;
    ops_inputs in = {0};
    for (int i = 0; i < d->inputs; i++) {
        size_t n = kd_tdesc_numel(&d->x[i]);
        in.x[i] = normal_array(n, d->x[i].dtype, 0.1, 1, seed, (uint64_t)i);
        if (d->need_dx >> i & 1u)
            in.dx[i] = normal_array(n, d->x[i].dtype, 0, 0.3, seed, 10 + (uint64_t)i);
    }
    for (int i = 0; i < KD_OP_MAX_PARAM; i++) {
        size_t n = kd_op_param_numel(d, i);
        double mean, std;
        param_moments(d, i, &mean, &std);
        if (!(i == 2 && c->no_gamma))
            in.param[i] = normal_array(n, KD_F32, mean, std, seed, 20 + (uint64_t)i);
        if (d->train && d->need_dparam)
            in.dparam[i] = normal_array(n, KD_F32, 0, 0.3, seed, 30 + (uint64_t)i);
    }
    for (int i = 0; i < KD_OP_MAX_STATE; i++)
        in.state[i] = normal_array(kd_op_state_numel(d, i), KD_F32, 0, 0.5, seed, 40 + (uint64_t)i);
    for (size_t i = 0; i < kd_op_state_numel(d, 1); i++) /* a variance */
        in.state[1][i] = 0.5f + in.state[1][i] * in.state[1][i];
    in.dy = normal_array(kd_tdesc_numel(&d->y), d->y.dtype, 0, 1, seed, 50);
    if (d->act != KD_ACT_NONE && d->train)
        silence_kinks(d, &in);
    return in;
}

void ops_inputs_free(ops_inputs *in) {
    float **all = (float **)in;
    for (size_t i = 0; i < sizeof *in / sizeof *all; i++)
        kd_free(all[i]);
}

void ops_results_free(ops_results *r) {
    float **all = (float **)r;
    for (size_t i = 0; i < sizeof *r / sizeof *all; i++)
        kd_free(all[i]);
}

/* --- regions: device memory between guard zones --- */

enum { GUARD = 256, GUARD_BYTE = 0xA5, NAN_BYTE = 0xFF /* four make a NaN in f32, two in bf16, eight in f64 */ };

typedef struct region {
    uint8_t *base; /* device; the guard before */
    void *at;      /* device; what the op sees, NULL when not there */
    uint8_t *host; /* what was last written there, without guards */
    size_t bytes;
} region;

static void region_write(kd_backend *b, const ops_case *c, region *r, const void *host) {
    kd_err err = {0};
    if (!r->at)
        return;
    if (host)
        memcpy(r->host, host, r->bytes);
    else
        memset(r->host, NAN_BYTE, r->bytes);
    must(b->v->upload(b, r->at, r->host, r->bytes, &err), &err, c, "upload");
}

/* present = 0: no region; zero bytes still get an address. */
static region region_make(kd_backend *b, const ops_case *c, int present, size_t bytes) {
    kd_err err = {0};
    region r = {.bytes = bytes};
    if (!present)
        return r;
    size_t all = bytes + 2 * GUARD;
    uint8_t *pattern = kd_malloc(all);
    r.host = kd_malloc(bytes);
    assert_true(pattern && r.host);
    memset(pattern, GUARD_BYTE, all);
    void *p = NULL;
    must(b->v->alloc(b, &p, all, &err), &err, c, "alloc");
    must(b->v->upload(b, p, pattern, all, &err), &err, c, "upload");
    kd_free(pattern);
    r.base = p;
    r.at = r.base + GUARD;
    return r;
}

/* Fresh host copy of the content after checking the guards. */
static uint8_t *region_read(kd_backend *b, const ops_case *c, const char *name, const region *r) {
    kd_err err = {0};
    size_t all = r->bytes + 2 * GUARD;
    uint8_t *copy = kd_malloc(all);
    assert_non_null(copy);
    must(b->v->download(b, copy, r->base, all, &err), &err, c, "download");
    for (size_t i = 0; i < GUARD; i++)
        if (copy[i] != GUARD_BYTE || copy[GUARD + r->bytes + i] != GUARD_BYTE)
            fail_msg("%s: written outside of %s: %zu bytes %s it", c->label, name, copy[i] != GUARD_BYTE ? GUARD - i : i + 1, copy[i] != GUARD_BYTE ? "before" : "after");
    memmove(copy, copy + GUARD, r->bytes);
    return copy;
}

static void region_must_be_unchanged(kd_backend *b, const ops_case *c, const char *name, const region *r) {
    if (!r->at)
        return;
    uint8_t *now = region_read(b, c, name, r);
    if (r->bytes > 0 && memcmp(now, r->host, r->bytes) != 0)
        fail_msg("%s: %s was changed but is only an input here", c->label, name);
    kd_free(now);
}

static void region_release(kd_backend *b, region *r) {
    if (r->base)
        b->v->release(b, r->base);
    kd_free(r->host);
}

/* --- one run --- */

typedef struct run {
    kd_backend *b;
    const ops_case *c;
    kd_op *op;
    region x[KD_OP_MAX_X], y, param[KD_OP_MAX_PARAM], state[KD_OP_MAX_STATE], packed, saved, scratch, dy, dx[KD_OP_MAX_X], dparam[KD_OP_MAX_PARAM];
    kd_op_args args;
    kd_op_needs needs;
} run;

static void write_tensor(run *u, region *r, const float *values, kd_dtype type) {
    if (!r->at)
        return;
    size_t n = r->bytes / kd_dtype_size(type);
    if (type == KD_F32) {
        region_write(u->b, u->c, r, values);
        return;
    }
    uint8_t *bytes = kd_malloc(r->bytes);
    assert_non_null(bytes);
    if (type == KD_BF16)
        kd_f32_to_bf16_n((uint16_t *)(void *)bytes, values, n);
    else
        for (size_t i = 0; i < n; i++)
            bytes[i] = (uint8_t)values[i];
    region_write(u->b, u->c, r, bytes);
    kd_free(bytes);
}

/* The region's content as f32; every element must have been written. NULL when the region isn't there. */
static float *read_tensor(run *u, const char *name, const region *r, kd_dtype type) {
    if (!r->at)
        return NULL;
    size_t n = r->bytes / kd_dtype_size(type);
    uint8_t *bytes = region_read(u->b, u->c, name, r);
    float *out = new_array(n);
    kd_convert_to_f32(out, bytes, type, n);
    kd_free(bytes);
    size_t bad = kd_first_nonfinite(out, n);
    if (bad < n)
        fail_msg("%s: %s[%zu] of %zu is %g: not written, or computed from memory that was not", u->c->label, name, bad, n, (double)out[bad]);
    return out;
}

static void make_regions(run *u, const ops_inputs *in, const kd_op_needs *needs) {
    const kd_op_desc *d = &u->c->desc;
    kd_backend *b = u->b;
    for (int i = 0; i < d->inputs; i++) {
        u->args.x[i] = (u->x[i] = region_make(b, u->c, 1, kd_tdesc_bytes(&d->x[i]))).at;
        u->args.dx[i] = (u->dx[i] = region_make(b, u->c, in->dx[i] != NULL, kd_tdesc_bytes(&d->x[i]))).at;
    }
    for (int i = 0; i < KD_OP_MAX_PARAM; i++) {
        size_t bytes = kd_op_param_numel(d, i) * sizeof(float);
        u->args.param[i] = (u->param[i] = region_make(b, u->c, in->param[i] != NULL, bytes)).at;
        u->args.dparam[i] = (u->dparam[i] = region_make(b, u->c, in->dparam[i] != NULL, bytes)).at;
    }
    for (int i = 0; i < KD_OP_MAX_STATE; i++)
        u->args.state[i] = (u->state[i] = region_make(b, u->c, in->state[i] != NULL, kd_op_state_numel(d, i) * sizeof(float))).at;
    u->args.y = (u->y = region_make(b, u->c, 1, kd_tdesc_bytes(&d->y))).at;
    u->args.dy = (u->dy = region_make(b, u->c, d->train, kd_tdesc_bytes(&d->y))).at;
    u->args.packed = (u->packed = region_make(b, u->c, 1, needs->packed)).at;
    u->args.saved = (u->saved = region_make(b, u->c, 1, needs->saved)).at;
    u->args.scratch = (u->scratch = region_make(b, u->c, 1, needs->scratch)).at;
    region_write(b, u->c, &u->packed, NULL);
    region_write(b, u->c, &u->saved, NULL);
    region_write(b, u->c, &u->scratch, NULL);
}

/* Everything but the work areas, which keep what the last pass left. */
static void write_inputs(run *u, const ops_inputs *in) {
    const kd_op_desc *d = &u->c->desc;
    for (int i = 0; i < d->inputs; i++) {
        write_tensor(u, &u->x[i], in->x[i], d->x[i].dtype);
        if (d->add_dx >> i & 1u)
            write_tensor(u, &u->dx[i], in->dx[i], d->x[i].dtype);
        else
            region_write(u->b, u->c, &u->dx[i], NULL);
    }
    for (int i = 0; i < KD_OP_MAX_PARAM; i++) {
        write_tensor(u, &u->param[i], in->param[i], KD_F32);
        write_tensor(u, &u->dparam[i], in->dparam[i], KD_F32);
    }
    for (int i = 0; i < KD_OP_MAX_STATE; i++)
        write_tensor(u, &u->state[i], in->state[i], KD_F32);
    write_tensor(u, &u->dy, in->dy, d->y.dtype);
    region_write(u->b, u->c, &u->y, NULL);
}

/* Backward exists for every op that has a gradient. */
static int has_backward(const kd_op_desc *d) {
    return d->train && d->kind != KD_OP_NORMALIZE;
}

/* Forward as a caller runs it who drops in inference what packing has consumed. */
static void forward(run *u) {
    kd_err err = {0};
    kd_op_args args = u->args;
    for (int i = 0; i < KD_OP_MAX_PARAM; i++)
        if (u->needs.consumed >> i & 1u) {
            region_write(u->b, u->c, &u->param[i], NULL);
            args.param[i] = NULL;
        }
    kd_mem_fail_after(1); /* the contract: nothing may be allocated in pack, forward or backward */
    must(u->b->v->op_forward(u->b, u->op, &args, &err), &err, u->c, "forward");
    kd_mem_fail_after(0);
}

/* Numbers that aren't: in the place of what backward says that it doesn't read. */
static void spoil(run *u, const region *r) {
    kd_err err = {0};
    uint8_t *pattern = kd_malloc(r->bytes);
    assert_non_null(pattern);
    memset(pattern, NAN_BYTE, r->bytes);
    must(u->b->v->upload(u->b, r->at, pattern, r->bytes, &err), &err, u->c, "upload");
    kd_free(pattern);
}

static void restore(run *u, const char *name, const region *r) {
    kd_err err = {0};
    uint8_t *now = region_read(u->b, u->c, name, r);
    for (size_t i = 0; i < r->bytes; i++)
        if (now[i] != NAN_BYTE)
            fail_msg("%s: backward wrote into %s", u->c->label, name);
    kd_free(now);
    must(u->b->v->upload(u->b, r->at, r->host, r->bytes, &err), &err, u->c, "upload");
}

static void backward(run *u) {
    kd_err err = {0};
    const kd_op_desc *d = &u->c->desc;
    for (int i = 0; i < d->inputs; i++)
        if (u->needs.unread >> i & 1u)
            spoil(u, &u->x[i]);
    if (u->needs.unread & KD_OP_UNREAD_Y)
        spoil(u, &u->y);
    kd_mem_fail_after(1);
    must(u->b->v->op_backward(u->b, u->op, &u->args, &err), &err, u->c, "backward");
    kd_mem_fail_after(0);
    must(u->b->v->sync(u->b, &err), &err, u->c, "sync after backward");
    for (int i = 0; i < d->inputs; i++)
        if (u->needs.unread >> i & 1u)
            restore(u, numbered("x", i), &u->x[i]);
    if (u->needs.unread & KD_OP_UNREAD_Y)
        restore(u, "y", &u->y);
}

static void call_op(run *u) {
    kd_err err = {0};
    kd_backend *b = u->b;
    kd_mem_fail_after(1);
    must(b->v->op_pack(b, u->op, &u->args, &err), &err, u->c, "pack");
    kd_mem_fail_after(0);
    forward(u);
    must(b->v->sync(b, &err), &err, u->c, "sync after forward");
    if (!has_backward(&u->c->desc))
        return;
    uint8_t *y = region_read(b, u->c, "y", &u->y);
    memcpy(u->y.host, y, u->y.bytes); /* from here on y is an input */
    kd_free(y);
    backward(u);
    region_must_be_unchanged(b, u->c, "y (in backward)", &u->y);
}

static ops_results read_results(run *u) {
    const kd_op_desc *d = &u->c->desc;
    ops_results r = {.y = read_tensor(u, "y", &u->y, d->y.dtype)};
    for (int i = 0; i < d->inputs; i++) {
        region_must_be_unchanged(u->b, u->c, numbered("x", i), &u->x[i]);
        r.dx[i] = has_backward(d) ? read_tensor(u, numbered("dx", i), &u->dx[i], d->x[i].dtype) : NULL;
    }
    for (int i = 0; i < KD_OP_MAX_PARAM; i++) {
        region_must_be_unchanged(u->b, u->c, numbered("param", i), &u->param[i]);
        r.dparam[i] = has_backward(d) ? read_tensor(u, numbered("dparam", i), &u->dparam[i], KD_F32) : NULL;
    }
    for (int i = 0; i < KD_OP_MAX_STATE; i++) {
        r.state[i] = read_tensor(u, numbered("state", i), &u->state[i], KD_F32);
        if (!d->train)
            region_must_be_unchanged(u->b, u->c, numbered("state", i), &u->state[i]);
    }
    region_must_be_unchanged(u->b, u->c, "dy", &u->dy);
    const region *work[] = {&u->packed, &u->saved, &u->scratch};
    static const char *const work_name[] = {"packed", "saved", "scratch"};
    for (int i = 0; i < 3; i++)
        kd_free(region_read(u->b, u->c, work_name[i], work[i]));
    return r;
}

static void release_regions(run *u) {
    region *single[] = {&u->y, &u->packed, &u->saved, &u->scratch, &u->dy};
    for (size_t i = 0; i < sizeof single / sizeof *single; i++)
        region_release(u->b, single[i]);
    for (int i = 0; i < KD_OP_MAX_X; i++) {
        region_release(u->b, &u->x[i]);
        region_release(u->b, &u->dx[i]);
    }
    for (int i = 0; i < KD_OP_MAX_PARAM; i++) {
        region_release(u->b, &u->param[i]);
        region_release(u->b, &u->dparam[i]);
    }
    for (int i = 0; i < KD_OP_MAX_STATE; i++)
        region_release(u->b, &u->state[i]);
}

ops_results ops_run(kd_backend *b, const ops_case *c, const ops_inputs *in, int warm) {
    kd_err err = {0};
    run u = {.b = b, .c = c};
    must(b->v->op_create(b, &u.op, &c->desc, &u.needs, &err), &err, c, "op_create");
    if (u.needs.consumed && (c->desc.train || u.needs.consumed >> KD_OP_MAX_PARAM))
        fail_msg("%s: parameters %#x are consumed", c->label, u.needs.consumed);
    make_regions(&u, in, &u.needs);
    if (warm) {
        ops_inputs other = ops_inputs_make(c, 999);
        write_inputs(&u, &other);
        call_op(&u);
        ops_inputs_free(&other);
    }
    write_inputs(&u, in);
    call_op(&u);
    ops_results r = read_results(&u);
    release_regions(&u);
    b->v->op_destroy(b, u.op);
    return r;
}

/* --- comparisons --- */

static double rms(const float *x, size_t n) {
    double sum = 0;
    for (size_t i = 0; i < n; i++)
        sum += (double)x[i] * (double)x[i];
    return sqrt(sum / (double)n);
}

void ops_compare_tensor(const char *what, const ops_case *c, const char *tensor, const float *got, const float *want, size_t n, double tolerance) {
    const kd_op_desc *d = &c->desc;
    if (!got != !want)
        fail_msg("%s: %s: %s is only there on one side", c->label, what, tensor);
    if (!want)
        return;
    double scale = fmax(rms(want, n), 1e-6), worst = 0; /* the floor serves tensors whose exact value is zero, as the gradient in front of a normalisation of equal values */
    for (size_t i = 0; i < n; i++) {
        double distance = fabs((double)got[i] - (double)want[i]), size = scale + fabs((double)want[i]);
        if (distance > worst * size)
            worst = distance / size;
    }
    ops_measured(what, d->kind, ops_uses_bf16(d) ? KD_BF16 : KD_F32, worst);
    kd_tensor a = {.name = tensor, .dtype = KD_F32, .rank = 1, .shape = {(int64_t)n}, .data = got}, b = a;
    b.data = want;
    kd_comparison k = kd_compare(&a, &b, (kd_tolerance){.abs = tolerance * scale, .rel = tolerance});
    if (!k.equal)
        fail_msg("%s: %s: %s", c->label, what, k.text);
}

void ops_compare(const char *what, const ops_case *c, const ops_results *got, const ops_results *want, const ops_tolerance *tolerance) {
    const kd_op_desc *d = &c->desc;
    double t = ops_uses_bf16(d) ? tolerance->bf16 : tolerance->f32;
    ops_compare_tensor(what, c, "y", got->y, want->y, kd_tdesc_numel(&d->y), t);
    for (int i = 0; i < KD_OP_MAX_STATE; i++)
        ops_compare_tensor(what, c, numbered("state", i), got->state[i], want->state[i], kd_op_state_numel(d, i), t);
    for (int i = 0; i < d->inputs; i++)
        ops_compare_tensor(what, c, numbered("dx", i), got->dx[i], want->dx[i], kd_tdesc_numel(&d->x[i]), t);
    for (int i = 0; i < KD_OP_MAX_PARAM; i++)
        ops_compare_tensor(what, c, numbered("dparam", i), got->dparam[i], want->dparam[i], kd_op_param_numel(d, i), t);
}

static void assert_same_bits(const ops_case *c, const char *tensor, const float *a, const float *b, size_t n) {
    if (!a && !b)
        return;
    assert_true(a && b);
    for (size_t i = 0; i < n; i++)
        if (memcmp(&a[i], &b[i], sizeof *a) != 0)
            fail_msg("%s: %s[%zu] differs between two runs: %.9g, %.9g", c->label, tensor, i, (double)a[i], (double)b[i]);
}

void ops_assert_identical(const ops_case *c, const ops_results *a, const ops_results *b) {
    const kd_op_desc *d = &c->desc;
    assert_same_bits(c, "y", a->y, b->y, kd_tdesc_numel(&d->y));
    for (int i = 0; i < KD_OP_MAX_STATE; i++)
        assert_same_bits(c, "state", a->state[i], b->state[i], kd_op_state_numel(d, i));
    for (int i = 0; i < d->inputs; i++)
        assert_same_bits(c, "dx", a->dx[i], b->dx[i], kd_tdesc_numel(&d->x[i]));
    for (int i = 0; i < KD_OP_MAX_PARAM; i++)
        assert_same_bits(c, "dparam", a->dparam[i], b->dparam[i], kd_op_param_numel(d, i));
}

kd_backend *ops_open_ref(void) {
    kd_err err = {0};
    kd_backend *b = NULL;
    must(kd_backend_open(&b, "ref", 1, &err), &err, NULL, "open ref");
    return b;
}

void ops_use_emulated(void) {
    char dir[4200];
    const char *tests = getenv("KD_TEST_DIR");
    snprintf(dir, sizeof dir, "%s/gpu/emulator", tests != NULL ? tests : ".");
    setenv("KD_LIB_DIR", dir, 1);
}

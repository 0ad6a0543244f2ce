/* The reference backend itself: gradients against central differences in double, coverage of the case list, repeatability, ties. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "common/base/mem.h"
#include "tests/ops/harness.h"

static kd_backend *ref;

/* --- the oracle of the oracle: the double core, called without any rounding --- */

/* A desc without bf16, so that the core rounds nothing in between. */
static kd_op_desc unrounded(const kd_op_desc *d) {
    kd_op_desc f = *d;
    for (int i = 0; i < d->inputs; i++)
        if (f.x[i].dtype == KD_BF16)
            f.x[i].dtype = KD_F32;
    f.y.dtype = KD_F32;
    return f;
}

/* Forward from the states that the op found: a training pass changes them. */
static void forward(const kd_op_desc *d, const kd_ref_vals *v, const ops_inputs *in) {
    for (int i = 0; i < KD_OP_MAX_STATE; i++)
        for (size_t k = 0; k < kd_op_state_numel(d, i); k++)
            v->state[i][k] = (double)in->state[i][k];
    kd_ref_core_of(d->kind)->forward(d, v);
}

/* d(sum dy y) / d(*at) by central differences. */
static double difference(const kd_op_desc *d, const kd_ref_vals *v, const ops_inputs *in, double *at, double *y_plus) {
    const double h = 1e-4, x = *at;
    size_t n = kd_tdesc_numel(&d->y);
    double sum = 0;
    *at = x + h;
    forward(d, v, in);
    memcpy(y_plus, v->y, n * sizeof *y_plus);
    *at = x - h;
    forward(d, v, in);
    *at = x;
    for (size_t i = 0; i < n; i++)
        sum += v->dy[i] * (y_plus[i] - v->y[i]);
    return sum / (2 * h);
}

/* Up to 24 elements of one operand (4 of a large one): ends and an even spread between. base: what the gradient was added to, or NULL. */
static void check_differences(const ops_case *c, const ops_inputs *in, const kd_ref_vals *v, const char *tensor, double *operand, size_t n, const float *got, const float *base) {
    enum { MOST = 24, FEW = 4, LARGE = 100000 };
    const kd_op_desc *d = &c->desc;
    float g[MOST], w[MOST];
    size_t samples = n < MOST ? n : n < LARGE ? MOST : FEW;
    double *y_plus = kd_calloc(kd_tdesc_numel(&d->y), sizeof *y_plus);
    assert_non_null(y_plus);
    for (size_t k = 0; k < samples; k++) {
        size_t i = samples > 1 ? k * (n - 1) / (samples - 1) : 0;
        g[k] = got[i];
        w[k] = (float)(difference(d, v, in, operand + i, y_plus) + (base ? (double)base[i] : 0));
    }
    ops_compare_tensor("central differences", c, tensor, g, w, samples, OPS_TOLERANCE_DIFFERENCES);
    kd_free(y_plus);
}

/* The f32 case: ref's rounded gradient is the derivative of the unrounded forward pass. */
static void gradient_matches_differences(const ops_case *c, const ops_inputs *in, const ops_results *r) {
    static const char *const dx_name[KD_OP_MAX_X] = {"dx0", "dx1", "dx2", "dx3", "dx4", "dx5", "dx6", "dx7"};
    static const char *const dparam_name[KD_OP_MAX_PARAM] = {"dparam0", "dparam1", "dparam2", "dparam3"};
    const kd_op_desc *d = &c->desc;
    kd_ref_vals v = ops_ref_vals_make(d, in);
    for (int i = 0; i < d->inputs; i++)
        if (r->dx[i])
            check_differences(c, in, &v, dx_name[i], (double *)(uintptr_t)v.x[i], kd_tdesc_numel(&d->x[i]), r->dx[i], d->add_dx >> i & 1u ? in->dx[i] : NULL);
    for (int i = 0; i < KD_OP_MAX_PARAM; i++)
        if (r->dparam[i])
            check_differences(c, in, &v, dparam_name[i], (double *)(uintptr_t)v.param[i], kd_op_param_numel(d, i), r->dparam[i], in->dparam[i]);
    ops_ref_vals_free(&v);
}

static float *narrow(double *x, const float *base, size_t n) {
    float *out = kd_calloc(n + 1, sizeof *out);
    assert_non_null(out);
    for (size_t i = 0; i < n; i++)
        out[i] = (float)(x[i] + (base ? (double)base[i] : 0));
    return out;
}

/* The bf16 case: rounding has no derivative, so ref is compared with the same inputs through the core without rounding, whose f32 twin the
 * differences have checked. */
static void rounded_matches_unrounded(const ops_case *c, const ops_inputs *in, const ops_results *r) {
    const kd_op_desc d = unrounded(&c->desc);
    const kd_ref_core *core = kd_ref_core_of(d.kind);
    kd_ref_vals v = ops_ref_vals_make(&d, in);
    ops_results want = {0};
    core->forward(&d, &v);
    want.y = narrow(v.y, NULL, kd_tdesc_numel(&d.y));
    for (int i = 0; i < KD_OP_MAX_STATE; i++)
        if (v.state[i])
            want.state[i] = narrow(v.state[i], NULL, kd_op_state_numel(&d, i));
    for (int i = 0; i < d.inputs; i++)
        v.dx[i] = r->dx[i] ? kd_calloc(kd_tdesc_numel(&d.x[i]), sizeof(double)) : NULL;
    for (int i = 0; i < KD_OP_MAX_PARAM; i++)
        v.dparam[i] = r->dparam[i] ? kd_calloc(kd_op_param_numel(&d, i), sizeof(double)) : NULL;
    if (d.train && core->backward)
        core->backward(&d, &v);
    for (int i = 0; i < d.inputs; i++)
        if (v.dx[i])
            want.dx[i] = narrow(v.dx[i], d.add_dx >> i & 1u ? in->dx[i] : NULL, kd_tdesc_numel(&d.x[i]));
    for (int i = 0; i < KD_OP_MAX_PARAM; i++)
        if (v.dparam[i])
            want.dparam[i] = narrow(v.dparam[i], in->dparam[i], kd_op_param_numel(&d, i));
    ops_tolerance t = {OPS_TOLERANCE_BF16_ROUNDING, OPS_TOLERANCE_BF16_ROUNDING};
    ops_compare("bf16 rounding", c, r, &want, &t);
    ops_results_free(&want);
    ops_ref_vals_free(&v);
}

static void ref_is_right(void **state) {
    const ops_case *c = *state;
    ops_inputs in = ops_inputs_make(c, 1);
    ops_results r = ops_run(ref, c, &in, 0), again = ops_run(ref, c, &in, 1);
    ops_assert_identical(c, &r, &again);
    if (ops_uses_bf16(&c->desc))
        rounded_matches_unrounded(c, &in, &r);
    else if (c->desc.train)
        gradient_matches_differences(c, &in, &r);
    ops_results_free(&r);
    ops_results_free(&again);
    ops_inputs_free(&in);
}

/* --- coverage --- */

/* Every kind has inference and training cases, and all but the losses have them in both precisions. */
static void every_op_kind_has_cases(void **state) {
    (void)state;
    const ops_case *list;
    size_t n = ops_cases(&list);
    if (getenv("KD_OPS")) {
        print_message("skipped: KD_OPS limits the list\n");
        skip();
    }
    for (int kind = 0; kind < KD_OP_KINDS; kind++) {
        int seen[2][2] = {{0}};
        for (size_t i = 0; i < n; i++)
            if ((int)list[i].desc.kind == kind)
                seen[list[i].desc.train != 0][ops_uses_bf16(&list[i].desc)] = 1;
        for (int train = 0; train < 2; train++)
            for (int bf16 = 0; bf16 < 2; bf16++)
                if (!seen[train][bf16] && !(ops_is_loss((kd_op_kind)kind) && bf16))
                    fail_msg("op %s has no %s case in %s; add one to tests/ops/cases.c", kd_op_kind_name((kd_op_kind)kind), train ? "training" : "inference", bf16 ? "bf16" : "f32");
    }
}

/* --- what random values don't reach --- */

static void max_pool_tie_goes_to_the_first(void **state) {
    (void)state;
    ops_case c = {.label = "max_pool of equal values",
                  .desc = {.kind = KD_OP_MAX_POOL, .name = "pool", .inputs = 1, .kernel = 2, .stride = 2, .train = 1, .need_dx = 1,
                           .x = {{KD_F32, 4, {1, 2, 4, 1}}}, .y = {KD_F32, 4, {1, 1, 2, 1}}}};
    float x[] = {-3, 5, 2, 2, 5, 5, 2, 2}, dy[] = {10, 20}, dx[8];
    float want[] = {0, 10, 20, 0, 0, 0, 0, 0};
    ops_inputs in = {.x = {x}, .dy = dy, .dx = {dx}};
    ops_results r = ops_run(ref, &c, &in, 0);
    assert_true(r.y[0] == 5 && r.y[1] == 2);
    assert_memory_equal(r.dx[0], want, sizeof want);
    ops_results_free(&r);
}

/* Padding is not a zero: the largest of negative values stays negative. */
static void max_pool_padding_never_wins(void **state) {
    (void)state;
    ops_case c = {.label = "max_pool of negative values",
                  .desc = {.kind = KD_OP_MAX_POOL, .name = "pool", .inputs = 1, .kernel = 3, .stride = 2, .pad = 1, .x = {{KD_F32, 4, {1, 2, 2, 1}}}, .y = {KD_F32, 4, {1, 1, 1, 1}}}};
    float x[] = {-3, -5, -2, -7};
    ops_inputs in = {.x = {x}};
    ops_results r = ops_run(ref, &c, &in, 0);
    assert_true(r.y[0] == -2);
    ops_results_free(&r);
}

/* torchvision: ToTensor divides by 255, Normalize subtracts and divides, each in f32. */
static void normalize_has_torchvisions_bits(void **state) {
    (void)state;
    ops_case c = {.label = "normalize all bytes",
                  .desc = {.kind = KD_OP_NORMALIZE, .name = "normalize", .inputs = 1, .x = {{KD_U8, 4, {1, 16, 16, 3}}}, .y = {KD_F32, 4, {1, 16, 16, 3}},
                           .mean = {0.485f, 0.456f, 0.406f}, .std = {0.229f, 0.224f, 0.225f}}};
    float x[768];
    for (int i = 0; i < 768; i++)
        x[i] = (float)(i / 3);
    ops_inputs in = {.x = {x}};
    ops_results r = ops_run(ref, &c, &in, 0);
    for (int i = 0; i < 768; i++) {
        float unit = x[i] / 255.0f, centred = unit - c.desc.mean[i % 3], want = centred / c.desc.std[i % 3];
        assert_true(r.y[i] == want);
    }
    ops_results_free(&r);
}

/* bf16 has 1 and 1 + 2^-7 and nothing between, so 1 + 2^-9 rounds to 1; with an f32 result it shows which operands were rounded. */
static void bf16_products_round_their_operands(void **state) {
    (void)state;
    ops_case c = {.label = "linear with operands that bf16 can't hold",
                  .desc = {.kind = KD_OP_LINEAR, .name = "linear", .inputs = 1, .bias = 1, .train = 1, .need_dx = 1, .need_dparam = 1, .x = {{KD_BF16, 2, {1, 1}}},
                           .y = {KD_F32, 2, {1, 1}}}};
    const float odd = 1 + 0x1p-9f;
    float x = 2, w = odd, bias = 0x1p-9f, dy = odd, dx = 0, dw = 0, db = 0;
    ops_inputs in = {.x = {&x}, .param = {&w, &bias}, .dy = &dy, .dx = {&dx}, .dparam = {&dw, &db}};
    for (int as_conv = 0; as_conv < 2; as_conv++) {
        if (as_conv) {
            c.desc.kind = KD_OP_CONV2D;
            c.desc.kernel = c.desc.stride = 1;
            c.desc.x[0] = (kd_tdesc){KD_BF16, 4, {1, 1, 1, 1}};
            c.desc.y = (kd_tdesc){KD_F32, 4, {1, 1, 1, 1}};
        }
        ops_results r = ops_run(ref, &c, &in, 0);
        assert_true(r.y[0] == 2 + 0x1p-9f); /* weight rounded, bias not */
        assert_true(r.dx[0][0] == 1);       /* both rounded */
        assert_true(r.dparam[0][0] == 2);   /* gradient rounded */
        assert_true(r.dparam[1][0] == odd); /* a sum, no product */
        ops_results_free(&r);
    }
}

/* Three equal scores: each probability is bf16(1/3) = 0.333984375, so values of one give 3 * 0.333984375. */
static void bf16_attention_rounds_probabilities(void **state) {
    (void)state;
    ops_case c = {.label = "attention with equal scores",
                  .desc = {.kind = KD_OP_ATTENTION, .name = "attention", .inputs = 1, .heads = 1, .x = {{KD_BF16, 3, {1, 3, 3}}}, .y = {KD_F32, 3, {1, 3, 1}}}};
    float qkv[] = {1, 2, 1, 1, 2, 1, 1, 2, 1};
    ops_inputs in = {.x = {qkv}};
    ops_results r = ops_run(ref, &c, &in, 0);
    for (int t = 0; t < 3; t++)
        assert_true(r.y[t] == 3 * 0.333984375f);
    ops_results_free(&r);
}

int main(void) {
    const ops_case *list;
    size_t count = ops_cases(&list), n = 0;
    struct CMUnitTest *tests = kd_calloc(count + 6, sizeof *tests);
    if (!tests)
        return 1;
    ref = ops_open_ref();
    tests[n++] = (struct CMUnitTest)cmocka_unit_test(every_op_kind_has_cases);
    tests[n++] = (struct CMUnitTest)cmocka_unit_test(max_pool_tie_goes_to_the_first);
    tests[n++] = (struct CMUnitTest)cmocka_unit_test(max_pool_padding_never_wins);
    tests[n++] = (struct CMUnitTest)cmocka_unit_test(normalize_has_torchvisions_bits);
    tests[n++] = (struct CMUnitTest)cmocka_unit_test(bf16_products_round_their_operands);
    tests[n++] = (struct CMUnitTest)cmocka_unit_test(bf16_attention_rounds_probabilities);
    for (size_t i = 0; i < count; i++)
        tests[n++] = (struct CMUnitTest){list[i].label, ref_is_right, NULL, NULL, (void *)(uintptr_t)&list[i]};
    int failed = _cmocka_run_group_tests("ref", tests, n, NULL, NULL);
    ops_print_measured();
    kd_backend_close(ref);
    kd_free(tests);
    return failed;
}

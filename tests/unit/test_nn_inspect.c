/* Looking into programs: non-finite numbers are found where they arise, in both directions; a backend that computes one op wrongly is caught at that op; the table of times adds up. */
#include "tests/unit/graph_fixture.h"

#include <math.h>

#include "kernels/nn/inspect.h"

static void set(kd_params *p, const char *name, float value) {
    float buf[4096];
    int i = kd_params_find(p, name);
    assert_true(i >= 0);
    for (size_t k = 0; k < kd_params_info(p, i).count; k++)
        buf[k] = value;
    must(kd_params_set(p, i, buf, &err));
}

static void a_forward_overflow_is_named(void **state) {
    (void)state;
    fixture f;
    make(&f);
    set(f.p, "fc1.weight", 3e38f);
    kd_exec *e = compile(&f, KD_F32, 1);
    must(kd_exec_forward(e, &err)); /* nobody looks */
    must(kd_exec_check_finite(e, 1, &err));
    assert_int_equal(kd_exec_forward(e, &err), KD_ENONFINITE);
    assert_contains(err.msg, "linear fc2 is"); /* fc1's normalised rows sum to almost nothing: its results are large, and finite */
    assert_contains(err.msg, "forward");
    must(kd_exec_check_finite(e, 0, &err));
    must(kd_exec_forward(e, &err));
    kd_exec_destroy(e);
    drop(&f);
}

/* The join adds gamma times zero, so the result is finite, but the gradient that goes through gamma isn't. */
static void a_backward_overflow_is_named(void **state) {
    (void)state;
    fixture f;
    make(&f);
    set(f.p, "proj.weight", 0);
    set(f.p, "proj.bias", 0);
    set(f.p, "ls.gamma", 3e38f);
    for (int i = 0; i < BATCH * OUT; i++)
        f.target_cls[i] *= 1e9f;
    kd_exec *e = compile(&f, KD_F32, 1);
    must(kd_exec_check_finite(e, 1, &err));
    must(kd_exec_forward(e, &err));
    assert_int_equal(kd_exec_backward(e, 0, &err), KD_ENONFINITE);
    assert_contains(err.msg, "gradient of input 1");
    assert_contains(err.msg, "ls.gamma");
    assert_contains(err.msg, "backward");
    kd_exec_destroy(e);
    drop(&f);
}

static void bf16_results_are_looked_at(void **state) {
    (void)state;
    fixture f;
    make(&f);
    set(f.p, "fc1.weight", 3e38f);
    kd_exec *e = compile(&f, KD_BF16, 1);
    must(kd_exec_check_finite(e, 1, &err));
    assert_int_equal(kd_exec_forward(e, &err), KD_ENONFINITE);
    assert_contains(err.msg, "linear fc2 is"); /* fc1's normalised rows sum to almost nothing: its results are large, and finite */
    kd_exec_destroy(e);
    drop(&f);
}

/* ---- two backends ---- */

typedef struct notes {
    int count, beyond, gradients;
    char first[200];
} notes;

static kd_status note(void *ctx, const kd_exec_pair *pair, kd_err *e) {
    notes *n = ctx;
    (void)e;
    kd_comparison c = kd_compare(&pair->got, &pair->want, (kd_tolerance){0});
    n->count++;
    n->gradients += pair->parameter_gradient;
    if (!(c.rel_l2 <= 1e-4) && c.max_abs > 1e-6 && n->beyond++ == 0)
        snprintf(n->first, sizeof n->first, "%s", pair->got.name);
    return KD_OK;
}

/* The reference with one wrong op: GELU's result is a little too large, forwards or backwards. */
static kd_backend_table wrong;
static int wrong_backward;

static int is_gelu(const kd_op_args *a, const kd_exec *e, const kd_pnode **at) {
    for (int i = 0; i < e->node_count; i++)
        if (e->nodes[i].desc.kind == KD_OP_GELU && e->nodes[i].args.y == a->y) {
            *at = &e->nodes[i];
            return 1;
        }
    return 0;
}
static kd_exec *faulty;
static kd_status wrong_op(kd_backend *b, kd_op *op, const kd_op_args *a, kd_err *e, int backward) {
    const kd_pnode *n;
    KD_TRY((backward ? plain.op_backward : plain.op_forward)(b, op, a, e));
    if (backward == wrong_backward && is_gelu(a, faulty, &n)) {
        float *x = backward ? a->dx[0] : a->y;
        for (size_t i = 0; i < kd_tdesc_numel(&n->desc.y); i++)
            x[i] *= 1.01f;
    }
    return KD_OK;
}
static kd_status wrong_forward(kd_backend *b, kd_op *op, const kd_op_args *a, kd_err *e) {
    return wrong_op(b, op, a, e, 0);
}
static kd_status wrong_backward_op(kd_backend *b, kd_op *op, const kd_op_args *a, kd_err *e) {
    return wrong_op(b, op, a, e, 1);
}

/* The program of `other` beside that of the reference; fault 0: none, 1: forwards, 2: backwards. */
static notes compare_with(int fault) {
    fixture f, g;
    notes n = {0};
    kd_backend *other, *kept = ref;
    must(kd_backend_open(&other, "ref", 1, &err));
    make(&f);
    ref = other; /* the fixture builds on it */
    make(&g);
    kd_exec *want = compile(&f, KD_F32, 1), *got = compile(&g, KD_F32, 1);
    wrong = *other->v;
    wrong.op_forward = wrong_forward;
    wrong.op_backward = wrong_backward_op;
    wrong_backward = fault == 2;
    faulty = got;
    const kd_backend_table *sound = other->v;
    if (fault)
        other->v = &wrong;
    must(kd_exec_compare(got, want, note, &n, &err));
    other->v = sound;
    kd_exec_destroy(got);
    kd_exec_destroy(want);
    drop(&g);
    drop(&f);
    ref = kept;
    kd_backend_close(other);
    return n;
}

static void equal_backends_agree(void **state) {
    (void)state;
    notes n = compare_with(0);
    assert_true(n.count > 60);
    assert_true(n.gradients > 30);
    assert_int_equal(n.beyond, 0);
}
static void a_wrong_op_is_the_first_beyond(void **state) {
    (void)state;
    notes n = compare_with(1);
    assert_true(n.beyond > 1);
    assert_string_equal(n.first, "gelu gelu");
}
static void a_wrong_gradient_is_the_first_beyond(void **state) {
    (void)state;
    notes n = compare_with(2);
    assert_true(n.beyond > 1);
    assert_string_equal(n.first, "gelu gelu, gradient of input 0");
}

/* ---- doors, gradients, time ---- */

static void doors_and_gradients_are_found(void **state) {
    (void)state;
    fixture f;
    make(&f);
    kd_exec *e = compile(&f, KD_F32, 1);
    assert_int_equal(kd_exec_inputs(e), 3);
    assert_int_equal(kd_exec_outputs(e), 6);
    assert_string_equal(kd_exec_input_tap(e, 0).name, "images");
    kd_exec_tap t = kd_exec_output_tap(e, 0);
    assert_ptr_equal(t.data, kd_exec_output(e, t.name, NULL));
    int i = kd_params_find(f.p, "stem.weight"), mean = kd_params_find(f.p, "bn1.running_mean"), counter = kd_params_find(f.p, "bn1.num_batches_tracked");
    float values[4096], *gradients = kd_exec_gradients(e);
    must(kd_params_get(f.p, i, values, &err));
    assert_memory_equal(values, kd_params_data(f.p, i), kd_params_info(f.p, i).count * sizeof(float)); /* ref: device memory is the host's */
    assert_true(kd_exec_gradient(e, i) - gradients == kd_params_data(f.p, i) - kd_params_trained(f.p, NULL, NULL));
    assert_null(kd_exec_gradient(e, mean));
    assert_non_null(kd_params_data(f.p, mean));
    assert_null(kd_params_data(f.p, counter));
    kd_exec_destroy(e);
    drop(&f);
}

static void times_are_printed_longest_first(void **state) {
    (void)state;
    fixture f;
    char line[400];
    double before = INFINITY, ms, share;
    int lines = 0;
    make(&f);
    kd_exec *e = compile(&f, KD_F32, 1);
    FILE *out = tmpfile();
    assert_non_null(out);
    kd_exec_profile(e, 1);
    for (int i = 0; i < 2; i++) {
        must(kd_exec_forward(e, &err));
        must(kd_exec_backward(e, 0, &err));
    }
    must(kd_exec_print_profile(e, out, &err));
    kd_exec_times times = kd_exec_profile_times(e);
    assert_true(times.products > 0 && times.products < times.ops);
    rewind(out);
    while (fgets(line, sizeof line, out) != NULL && sscanf(line, "%lf ms %lf%%", &ms, &share) == 2) {
        assert_true(ms <= before);
        before = ms;
        lines++;
    }
    assert_true(lines > kd_exec_ops(e)); /* both directions */
    fclose(out);
    kd_exec_destroy(e);
    drop(&f);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_forward_overflow_is_named),
        cmocka_unit_test(a_backward_overflow_is_named),
        cmocka_unit_test(bf16_results_are_looked_at),
        cmocka_unit_test(equal_backends_agree),
        cmocka_unit_test(a_wrong_op_is_the_first_beyond),
        cmocka_unit_test(a_wrong_gradient_is_the_first_beyond),
        cmocka_unit_test(doors_and_gradients_are_found),
        cmocka_unit_test(times_are_printed_longest_first),
    };
    return cmocka_run_group_tests(tests, open_ref, close_ref);
}

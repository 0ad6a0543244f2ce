/* Losses inside graphs: gradients through all of them at once, targets, the queue over several steps, programs of validation, NaN. On the reference and the cpu backend. */
#include "tests/unit/unit.h"

#include <math.h>
#include <signal.h>
#include <string.h>
#include <sys/wait.h>

#include "common/base/mem.h"
#include "kernels/nn/graph_impl.h"
#include "tests/unit/formula.h"

enum { BATCH = 3, SIDE = 2, PATCHES = SIDE * SIDE, IN = 6, WIDTH = 5, QUEUE = 8, LOSSES = 9 };

static kd_err err;
static const char *const devices[] = {"ref", "cpu"};
static const char *const losses[LOSSES] = {"cosine", "smooth", "logits", "queue", "koleo", "intra", "gram", "mse", "unit"};
static const double weights[LOSSES] = {1, 0.5, 0.25, 2, 0.125, 1.5, 3, 0.75, 0.375};

static void must(kd_status s) {
    if (s != KD_OK)
        fail_msg("%s: %s", kd_status_name(s), err.msg);
}

/* Two heads over an input: "map" [2,2,WIDTH] and its mean, and every loss on them. */
static void build(kd_graph *g) {
    kd_val x = kd_graph_input(g, "x", 2, (int64_t[]){PATCHES, IN});
    kd_val map = kd_graph_reshape(g, kd_graph_linear(g, x, "head", WIDTH, 1), 3, (int64_t[]){SIDE, SIDE, WIDTH});
    kd_val cls = kd_graph_linear(g, kd_graph_mean_tokens(g, map), "cls", WIDTH, 1);
    kd_val t_cls = kd_graph_input(g, "target.cls", 1, (int64_t[]){WIDTH}), t_map = kd_graph_input(g, "target.map", 3, (int64_t[]){SIDE, SIDE, WIDTH});
    kd_graph_cosine(g, cls, t_cls, (float)weights[0], losses[0]);
    kd_graph_smooth_l1(g, cls, t_cls, 0.5f, (float)weights[1], losses[1]);
    kd_graph_kl_logits(g, cls, t_cls, 2, (float)weights[2], losses[2]);
    kd_graph_kl_queue(g, cls, t_cls, QUEUE, 0.3f, (float)weights[3], losses[3]);
    kd_graph_koleo(g, cls, (float)weights[4], losses[4]);
    kd_graph_kl_intra(g, map, t_map, 0.3f, (float)weights[5], losses[5]);
    kd_graph_gram(g, map, t_map, (float)weights[6], losses[6]);
    kd_graph_mse(g, map, t_map, (float)weights[7], losses[7]);
    kd_graph_mse(g, kd_graph_l2_normalize(g, map), kd_graph_l2_normalize(g, t_map), (float)weights[8], losses[8]);
}

typedef struct fixture {
    kd_backend *b;
    kd_graph *g;
    kd_params *p;
    float x[BATCH * PATCHES * IN], cls[BATCH * WIDTH], map[BATCH * PATCHES * WIDTH], queue[QUEUE * WIDTH];
} fixture;

static void fill(float *out, const char *name, size_t n) {
    for (size_t i = 0; i < n; i++)
        out[i] = (float)(2 * formula_unit(name, (uint32_t)i));
}

/* 0 where the backend's module is missing. */
static int make(fixture *f, const char *device) {
    memset(f, 0, sizeof *f);
    kd_status status = kd_backend_open(&f->b, device, 2, &err);
    if (status == KD_ENODEVICE)
        return 0;
    must(status);
    f->g = kd_graph_create();
    assert_non_null(f->g);
    build(f->g);
    must(kd_params_create(&f->p, f->g, f->b, &err));
    must(kd_params_init(f->p, 3, &err));
    fill(f->x, "x", BATCH * PATCHES * IN);
    fill(f->cls, "cls", BATCH * WIDTH);
    fill(f->map, "map", BATCH * PATCHES * WIDTH);
    return 1;
}

static void drop(fixture *f) {
    kd_params_destroy(f->p);
    kd_graph_destroy(f->g);
    kd_backend_close(f->b);
}

/* mode: 0 inference, 1 training, 2 inference with losses. */
static kd_exec *compile(const fixture *f, kd_dtype precision, int mode) {
    kd_exec *e = NULL;
    must(kd_exec_create(&e, f->g, f->p, &(kd_exec_config){.batch = BATCH, .precision = precision, .train = mode == 1, .losses = mode == 2}, &err));
    if (mode > 0) {
        must(kd_exec_upload(e, "x", f->x, &err));
        must(kd_exec_upload(e, "target.cls", f->cls, &err));
        must(kd_exec_upload(e, "target.map", f->map, &err));
    }
    return e;
}

static void set_queue(const fixture *f, const float *rows) {
    must(kd_params_set(f->p, kd_params_find(f->p, "queue.queue"), rows, &err));
}

static void get_queue(const fixture *f, float *rows) {
    must(kd_params_get(f->p, kd_params_find(f->p, "queue.queue"), rows, &err));
}

static void read_losses(kd_exec *e, float out[LOSSES]) {
    must(kd_exec_forward(e, &err));
    for (int i = 0; i < LOSSES; i++)
        must(kd_exec_download(e, losses[i], 1, &out[i], &err));
}

/* What backward minimises, from a queue of zeros. */
static double total(const fixture *f, kd_exec *e) {
    static const float zeros[QUEUE * WIDTH];
    float value[LOSSES];
    double sum = 0;
    set_queue(f, zeros);
    read_losses(e, value);
    for (int i = 0; i < LOSSES; i++)
        sum += weights[i] * (double)value[i];
    return sum;
}

static void for_each_device(void (*check)(fixture *f)) {
    for (size_t i = 0; i < sizeof devices / sizeof *devices; i++) {
        fixture f;
        if (!make(&f, devices[i])) {
            print_message("without %s: %s\n", devices[i], err.msg);
            continue;
        }
        check(&f);
        drop(&f);
    }
}

/* ---- gradients ---- */

static void check_gradients(fixture *f) {
    kd_exec *e = compile(f, KD_F32, 1);
    const double step = 2e-3;
    (void)total(f, e);
    must(kd_exec_backward(e, 0, &err));
    for (int i = 0; i < kd_params_count(f->p); i++) {
        kd_param_info info = kd_params_info(f->p, i);
        if (info.is_state)
            continue;
        float values[WIDTH * IN], gradient[WIDTH * IN];
        must(f->b->v->download(f->b, gradient, kd_exec_gradients(e) + f->p->offset[i], info.count * sizeof(float), &err));
        must(kd_params_get(f->p, i, values, &err));
        for (size_t k = 0; k < info.count; k++) {
            float old = values[k];
            values[k] = (float)(old + step);
            must(kd_params_set(f->p, i, values, &err));
            double right = total(f, e);
            values[k] = (float)(old - step);
            must(kd_params_set(f->p, i, values, &err));
            double slope = (right - total(f, e)) / (2 * step), got = (double)gradient[k];
            values[k] = old;
            must(kd_params_set(f->p, i, values, &err));
            if (!(fabs(got - slope) <= 2e-3 * (1 + fabs(slope))))
                fail_msg("%s: d loss / d %s[%zu] is %g, by differences %g", f->b->v->name, info.name, k, got, slope);
        }
    }
    kd_exec_destroy(e);
}

static void gradients_equal_differences_through_all_losses(void **state) {
    (void)state;
    for_each_device(check_gradients);
}

/* Nothing is computed or kept for the gradient of a target. */
static void targets_get_no_gradient(void **state) {
    (void)state;
    fixture f;
    assert_true(make(&f, "ref"));
    kd_exec *e = compile(&f, KD_F32, 1);
    int normalised = 0, from_target = 0;
    for (int i = 0; i < e->node_count; i++) {
        const kd_pnode *n = &e->nodes[i];
        if (kd_is_loss(n->desc.kind))
            assert_int_equal(n->desc.need_dx, 1);
        if (n->desc.kind == KD_OP_L2_NORMALIZE) {
            normalised++;
            from_target += !n->backward && n->args.dy == NULL && n->args.dx[0] == NULL;
        }
    }
    assert_int_equal(normalised, 2);
    assert_int_equal(from_target, 1);
    kd_exec_destroy(e);
    drop(&f);
}

/* ---- the queue ---- */

static void unit_row(double *out, const float *x) {
    double square = 0;
    for (int k = 0; k < WIDTH; k++)
        square += (double)x[k] * (double)x[k];
    for (int k = 0; k < WIDTH; k++)
        out[k] = (double)x[k] / sqrt(square);
}

/* Three batches of three in a queue of eight: the newest batch in front, the oldest row gone. */
static void check_queue(fixture *f) {
    kd_param_info info = kd_params_info(f->p, kd_params_find(f->p, "queue.queue"));
    assert_true(info.is_state && !info.decay && info.rank == 2 && info.shape[0] == QUEUE && info.shape[1] == WIDTH);
    kd_exec *train = compile(f, KD_F32, 1), *validate = compile(f, KD_F32, 2);
    float targets[3][BATCH * WIDTH], queue[QUEUE * WIDTH], pushed[LOSSES], seen[LOSSES];
    for (int step = 0; step < 3; step++) {
        static const char *const name[] = {"first", "second", "third"};
        fill(targets[step], name[step], BATCH * WIDTH);
        must(kd_exec_upload(train, "target.cls", targets[step], &err));
        read_losses(train, pushed);
        get_queue(f, queue);
        for (int row = 0; row < QUEUE; row++) {
            double want[WIDTH] = {0};
            int from = step - row / BATCH;
            if (from >= 0)
                unit_row(want, targets[from] + row % BATCH * WIDTH);
            for (int k = 0; k < WIDTH; k++)
                if (!(fabs((double)queue[row * WIDTH + k] - want[k]) <= 1e-6))
                    fail_msg("%s: step %d: queue[%d][%d] is %g, should be %g", f->b->v->name, step, row, k, (double)queue[row * WIDTH + k], want[k]);
        }
    }
    float before[QUEUE * WIDTH];
    memcpy(before, queue, sizeof before);
    must(kd_exec_upload(validate, "target.cls", targets[2], &err));
    read_losses(validate, seen);
    get_queue(f, queue);
    assert_memory_equal(before, queue, sizeof queue); /* validation pushes nothing */
    for (int i = 0; i < LOSSES; i++)                  /* and computes what training did, which had pushed before */
        if (!(fabs((double)seen[i] - (double)pushed[i]) <= 1e-6 * (1 + fabs((double)pushed[i]))))
            fail_msg("%s: %s is %g in validation, %g in training", f->b->v->name, losses[i], (double)seen[i], (double)pushed[i]);
    assert_int_equal(kd_params_counter(f->p), 3);
    kd_exec_destroy(train);
    kd_exec_destroy(validate);
}

static void queue_holds_the_last_targets_newest_first(void **state) {
    (void)state;
    for_each_device(check_queue);
}

/* ---- programs ---- */

static void losses_run_where_they_are_asked_for(void **state) {
    (void)state;
    fixture f;
    assert_true(make(&f, "ref"));
    kd_exec *infer = compile(&f, KD_F32, 0), *validate = compile(&f, KD_F32, 2);
    for (int i = 0; i < LOSSES; i++) {
        kd_tdesc d;
        assert_null(kd_exec_output(infer, losses[i], NULL));
        assert_non_null(kd_exec_output(validate, losses[i], &d));
        assert_true(d.dtype == KD_F32 && d.rank == 1 && d.shape[0] == 1);
    }
    assert_int_equal(kd_exec_upload(infer, "target.cls", f.cls, &err), KD_EFAIL);
    assert_contains(err.msg, "target.cls");
    assert_int_equal(validate->bytes[KD_ARENA_PARAM_GRADIENTS], 0);
    for (int i = 0; i < validate->node_count; i++)
        assert_int_equal(validate->nodes[i].desc.train, 0);
    kd_exec_destroy(infer);
    kd_exec_destroy(validate);
    drop(&f);
}

/* Predictions, unit vectors and losses are F32 in a bf16 program; only the layers round. */
static void losses_are_f32_in_bf16_programs(void **state) {
    (void)state;
    fixture f;
    assert_true(make(&f, "ref"));
    float wide[LOSSES], narrow[LOSSES];
    kd_exec *e32 = compile(&f, KD_F32, 2), *e16 = compile(&f, KD_BF16, 2);
    fill(f.queue, "rows", QUEUE * WIDTH);
    set_queue(&f, f.queue);
    read_losses(e32, wide);
    read_losses(e16, narrow);
    for (int i = 0; i < LOSSES; i++)
        assert_true(fabs((double)wide[i] - (double)narrow[i]) <= 0.02 * (0.1 + fabs((double)wide[i])));
    for (int i = 0; i < e16->node_count; i++) {
        const kd_op_desc *d = &e16->nodes[i].desc;
        for (int k = 0; kd_is_loss(d->kind) && k < d->inputs; k++)
            assert_int_equal(d->x[k].dtype, KD_F32);
        if (d->kind == KD_OP_L2_NORMALIZE)
            assert_int_equal(d->y.dtype, KD_F32);
    }
    kd_exec_destroy(e32);
    kd_exec_destroy(e16);
    drop(&f);
}

static void one_image_has_no_neighbour(void **state) {
    (void)state;
    fixture f;
    assert_true(make(&f, "ref"));
    kd_exec *e = NULL;
    assert_int_equal(kd_exec_create(&e, f.g, f.p, &(kd_exec_config){.batch = 1, .precision = KD_F32, .train = 1}, &err), KD_EUSAGE);
    assert_contains(err.msg, "koleo");
    assert_contains(err.msg, "at least 2");
    must(kd_exec_create(&e, f.g, f.p, &(kd_exec_config){.batch = 1, .precision = KD_F32}, &err)); /* without losses one image will do */
    kd_exec_destroy(e);
    drop(&f);
}

/* ---- NaN ---- */

/* One NaN in what a loss sees makes that loss NaN; the others stay. */
static void check_nan(fixture *f) {
    static const int sees[3][LOSSES] = {{1, 1, 1, 1, 1, 1, 1, 1, 1}, {1, 1, 1, 1, 0, 0, 0, 0, 0}, {0, 0, 0, 0, 0, 1, 1, 1, 1}}; /* x, which feeds both heads; target.cls; target.map */
    for (int input = 0; input < 3; input++) {
        fixture broken = *f;
        *(input == 0 ? &broken.x[7] : input == 1 ? &broken.cls[WIDTH + 2] : &broken.map[WIDTH * PATCHES + 3]) = NAN;
        kd_exec *e = compile(&broken, KD_F32, 2);
        float value[LOSSES];
        fill(f->queue, "rows", QUEUE * WIDTH);
        set_queue(f, f->queue);
        read_losses(e, value);
        for (int i = 0; i < LOSSES; i++)
            if ((isnan(value[i]) != 0) != sees[input][i])
                fail_msg("%s: %s is %g with a NaN in input %d", f->b->v->name, losses[i], (double)value[i], input);
        kd_exec_destroy(e);
    }
}

static void nan_shows(void **state) {
    (void)state;
    for_each_device(check_nan);
}

/* ---- builders' bugs ---- */

static void trained_target(kd_graph *g) {
    kd_val x = kd_graph_input(g, "x", 1, (int64_t[]){IN});
    kd_graph_cosine(g, kd_graph_linear(g, x, "a", WIDTH, 0), kd_graph_l2_normalize(g, kd_graph_linear(g, x, "b", WIDTH, 0)), 1, "loss");
}

static void other_shape(kd_graph *g) {
    kd_graph_gram(g, kd_graph_linear(g, kd_graph_input(g, "x", 2, (int64_t[]){PATCHES, IN}), "a", WIDTH, 0), kd_graph_input(g, "t", 3, (int64_t[]){SIDE, SIDE, WIDTH}), 1, "loss");
}

static void koleo_of_a_map(kd_graph *g) {
    kd_graph_koleo(g, kd_graph_linear(g, kd_graph_input(g, "x", 2, (int64_t[]){PATCHES, IN}), "a", WIDTH, 0), 1, "loss");
}

static void intra_of_a_vector(kd_graph *g) {
    kd_graph_kl_intra(g, kd_graph_linear(g, kd_graph_input(g, "x", 1, (int64_t[]){IN}), "a", WIDTH, 0), kd_graph_input(g, "t", 1, (int64_t[]){WIDTH}), 1, 1, "loss");
}

static void wrong_graphs_are_asserted(void **state) {
    (void)state;
    static void (*const wrong[])(kd_graph *) = {trained_target, other_shape, koleo_of_a_map, intra_of_a_vector};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        int status = 0;
        fflush(NULL);
        pid_t child = fork();
        assert_true(child >= 0);
        if (child == 0) {
            signal(SIGABRT, SIG_DFL);
            if (freopen("/dev/null", "w", stderr) != NULL)
                wrong[i](kd_graph_create());
            _exit(0);
        }
        assert_int_equal(waitpid(child, &status, 0), child);
        assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(gradients_equal_differences_through_all_losses),
        cmocka_unit_test(targets_get_no_gradient),
        cmocka_unit_test(queue_holds_the_last_targets_newest_first),
        cmocka_unit_test(losses_run_where_they_are_asked_for),
        cmocka_unit_test(losses_are_f32_in_bf16_programs),
        cmocka_unit_test(one_image_has_no_neighbour),
        cmocka_unit_test(nan_shows),
        cmocka_unit_test(wrong_graphs_are_asserted),
    };
    return cmocka_run_group_tests_name("losses in graphs", tests, NULL, NULL);
}

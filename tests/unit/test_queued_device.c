/* What the host owes a device that works later and on its own: passes from recordings, copies in the order of the work, two batches in flight, plans that fit. On tests/unit/queued_device.h, against ref. */
#include "tests/unit/queued_device.h"

#include <math.h>

#include "common/base/mem.h"
#include "kernels/nn/inspect.h"
#include "kernels/nn/teacher.h"
#include "tests/unit/graph_fixture.h"
#include "tests/unit/loss_fixture.h"
#include "train/step.h"

static int open_device(void **state) {
    (void)state;
    ref = qd_open();
    return 0;
}

static int close_device(void **state) {
    (void)state;
    qd_close(ref);
    ref = NULL;
    return 0;
}

/* ---- recordings ---- */

enum { STEPS = 6, NUMBERS = 200000 };

typedef struct numbers {
    float *x;
    size_t count;
} numbers;

static float *room(numbers *n, size_t count) {
    assert_true(n->count + count <= NUMBERS);
    n->count += count;
    return n->x + n->count - count;
}

static void note_output(numbers *n, kd_exec *e, const char *name) {
    kd_tdesc t;
    assert_non_null(kd_exec_output(e, name, &t));
    must(kd_exec_download(e, name, (int)t.shape[0], room(n, kd_tdesc_numel(&t)), &err));
}

/* Steps whose batches come row by row, whose gradients are sometimes those of two passes, and whose weights move; an inference program looks in between. */
static void train(fixture *f, numbers *n) {
    kd_exec *e = compile(f, KD_F32, 1), *infer = compile(f, KD_F32, 0);
    kd_backend *b = kd_exec_backend(e);
    size_t total, states, row = sizeof f->pixels / BATCH;
    float *w = kd_params_trained(f->p, NULL, &total), *m = NULL, *v = NULL, *scalars = NULL;
    must(b->v->alloc(b, (void **)&m, total * sizeof *m, &err));
    must(b->v->alloc(b, (void **)&v, total * sizeof *v, &err));
    must(b->v->alloc(b, (void **)&scalars, 128, &err));
    for (int step = 0; step < STEPS; step++) {
        for (int pass = 0; pass <= step % 2; pass++) {
            for (size_t i = 0; i < sizeof f->pixels; i++)
                f->pixels[i] = (uint8_t)(f->pixels[i] + 17 * step + 5);
            for (int i = 0; i < BATCH; i++)
                must(kd_exec_upload_rows(e, "images", i, 1, f->pixels + (size_t)i * row, &err));
            must(kd_exec_forward(e, &err));
            must(kd_exec_backward(e, pass > 0, &err));
            note_output(n, e, "loss_cls");
            note_output(n, e, "loss_map");
            note_output(n, e, "map");
        }
        must(b->v->download(b, room(n, total), kd_exec_gradients(e), total * sizeof *w, &err));
        must(b->v->sum_squares(b, scalars, kd_exec_gradients(e), total, &err));
        must(b->v->clip_scale(b, scalars + 16, scalars, 1, &err));
        must(b->v->adamw(b, w, kd_exec_gradients(e), m, v, total, &(kd_adamw){.lr = 1e-2, .beta1 = 0.9, .beta2 = 0.999, .eps = 1e-8, .step = step + 1}, scalars + 16, &err));
        kd_params_changed(f->p);
        must(kd_exec_upload(infer, "images", f->pixels, &err));
        must(kd_exec_forward(infer, &err));
        note_output(n, infer, "both");
    }
    const float *s = kd_params_states(f->p, &states);
    must(b->v->download(b, room(n, states), s, states * sizeof *s, &err));
    b->v->release(b, m);
    b->v->release(b, v);
    b->v->release(b, scalars);
    kd_exec_destroy(infer);
    kd_exec_destroy(e);
}

static numbers train_on(kd_backend *b) {
    numbers n = {0};
    kd_backend *device = ref;
    fixture f;
    must(kd_alloc_array(&n.x, NUMBERS, sizeof *n.x, &err));
    ref = b;
    make(&f);
    train(&f, &n);
    drop(&f);
    ref = device;
    return n;
}

static void recorded_passes_give_the_bits_of_passes_op_by_op(void **state) {
    (void)state;
    kd_backend *plain_ref;
    must(kd_backend_open(&plain_ref, "ref", 1, &err));
    numbers want = train_on(plain_ref), got = train_on(ref);
    assert_int_equal(got.count, want.count);
    assert_memory_equal(got.x, want.x, want.count * sizeof *want.x);
    /* of training: pack, forward, both kinds of backward; of inference: pack, forward */
    assert_int_equal(qd.recordings, 6);
    int passes = STEPS + STEPS / 2;
    assert_int_equal(qd.replays, (STEPS - 1) + (passes - 1) + (STEPS - 1) + (STEPS / 2 - 1) + (STEPS - 1) + (STEPS - 1));
    assert_int_equal(qd.recordings_alive, 0);
    kd_free(want.x);
    kd_free(got.x);
    kd_backend_close(plain_ref);
}

/* While someone looks between the ops, they run one by one; what was recorded before is still right afterwards. */
static void looking_between_ops_leaves_recordings_aside(void **state) {
    (void)state;
    fixture f;
    make(&f);
    kd_exec *e = compile(&f, KD_F32, 1);
    double first = loss(e), second = loss(e);
    assert_true(first == second && qd.replays == 1);
    kd_exec_profile(e, 1);
    int before = qd.queued_ops;
    assert_true(loss(e) == first);
    assert_true(qd.replays == 1 && qd.queued_ops > before);
    kd_exec_profile(e, 0);
    must(kd_exec_check_finite(e, 1, &err));
    before = qd.queued_ops;
    assert_true(loss(e) == first);
    assert_true(qd.replays == 1 && qd.queued_ops > before);
    must(kd_exec_check_finite(e, 0, &err));
    before = qd.queued_ops;
    assert_true(loss(e) == first);
    assert_true(qd.replays == 2 && qd.recordings == 1 && qd.queued_ops == before);
    kd_exec_destroy(e);
    drop(&f);
}

typedef struct asking {
    int asked, stop;
} asking;

static kd_status ask(void *ctx, kd_err *e) {
    asking *a = ctx;
    a->asked++;
    return a->stop ? kd_fail(e, KD_ESIGTERM, "enough") : KD_OK;
}

static void a_replay_is_preceded_by_one_question(void **state) {
    (void)state;
    fixture f;
    kd_exec *e;
    asking a = {0};
    make(&f);
    must(kd_exec_create(&e, f.g, f.p, &(kd_exec_config){.batch = BATCH, .precision = KD_F32, .train = 1, .stop = ask, .stop_ctx = &a}, &err));
    double want = loss(e);
    a.stop = 1; /* in the middle of recording */
    assert_int_equal(kd_exec_forward(e, &err), KD_ESIGTERM);
    assert_true(!qd.recording && qd.recordings == 0 && qd.replays == 0);
    a.stop = 0;
    assert_true(loss(e) == want && qd.recordings == 1);
    a.asked = 0;
    assert_true(loss(e) == want);
    assert_int_equal(a.asked, 1);
    a.stop = 1;
    assert_int_equal(kd_exec_forward(e, &err), KD_ESIGTERM);
    assert_true(a.asked == 2 && qd.replays == 2);
    a.stop = 0;
    assert_true(loss(e) == want);
    kd_exec_destroy(e);
    drop(&f);
}

static void an_error_ends_a_recording(void **state) {
    (void)state;
    fixture f;
    make(&f);
    kd_exec *e = compile(&f, KD_F32, 1);
    double want = loss(e);
    must(kd_exec_backward(e, 0, &err));
    for (int n = 1; n <= 3; n++) {
        qd.fail_at = n;
        assert_int_equal(kd_exec_forward(e, &err), KD_EFAIL);
        assert_string_equal(err.msg, "planted");
        assert_true(!qd.recording && qd.recordings == 0);
    }
    for (int n = 1; n <= 3; n++) {
        qd.fail_at = 0;
        assert_true(loss(e) == want);
        qd.fail_at = n;
        assert_int_equal(kd_exec_backward(e, 0, &err), KD_EFAIL);
        assert_true(!qd.recording && qd.recordings == 1);
    }
    qd.fail_at = 0;
    assert_true(loss(e) == want);
    must(kd_exec_backward(e, 0, &err));
    assert_int_equal(qd.recordings, 2);
    kd_exec_destroy(e);
    drop(&f);
}

/* ---- rows ---- */

static void rows_of_a_batch_go_as_one_copy(void **state) {
    (void)state;
    fixture f;
    make(&f);
    kd_exec *e = compile(&f, KD_F32, 1);
    size_t row = sizeof f.pixels / BATCH;
    double whole = loss(e);
    int before = qd.uploads;
    static const int order[BATCH] = {1, 2, 0};
    for (int i = 0; i < BATCH; i++)
        must(kd_exec_upload_rows(e, "images", order[i], 1, f.pixels + (size_t)order[i] * row, &err));
    assert_int_equal(qd.uploads, before + 1); /* before the pass asks for it: the copy goes on while the host does other things */
    assert_true(loss(e) == whole);
    /* a row alone waits for the pass; one that doesn't adjoin sends the first away; a whole batch overtakes what waits */
    uint8_t other[sizeof f.pixels];
    memset(other, 9, sizeof other);
    must(kd_exec_upload_rows(e, "images", 0, 1, other, &err));
    assert_int_equal(qd.uploads, before + 1);
    must(kd_exec_upload_rows(e, "images", 2, 1, other, &err));
    assert_int_equal(qd.uploads, before + 2);
    assert_true(loss(e) != whole);
    assert_int_equal(qd.uploads, before + 3);
    must(kd_exec_upload_rows(e, "images", 1, 1, other, &err));
    must(kd_exec_upload(e, "images", f.pixels, &err));
    assert_true(loss(e) == whole);
    assert_int_equal(qd.uploads, before + 4);
    kd_exec_destroy(e);
    drop(&f);
}

/* ---- memory ---- */

static void a_plan_that_does_not_fit_names_the_batch_that_would(void **state) {
    (void)state;
    fixture f;
    kd_exec *e = NULL;
    make(&f);
    kd_exec_config config = {.batch = 400, .precision = KD_F32, .train = 1};
    must(kd_exec_create(&e, f.g, f.p, &config, &err));
    size_t all = kd_exec_device_bytes(e);
    kd_exec_destroy(e);
    qd.left = all - 1;
    assert_int_equal(kd_exec_create(&e, f.g, f.p, &config, &err), KD_ENODEVICE);
    qd.left = all / 3;
    assert_int_equal(kd_exec_create(&e, f.g, f.p, &config, &err), KD_ENODEVICE);
    assert_null(e);
    const char *advice = strstr(err.msg, "a batch of ");
    assert_contains(err.msg, "the plan of a batch of 400 takes");
    assert_contains(err.msg, "are free");
    advice = strstr(advice + 1, "; a batch of ");
    assert_non_null(advice);
    config.batch = atoi(advice + strlen("; a batch of "));
    assert_true(config.batch > 100 && config.batch < 134);
    must(kd_exec_create(&e, f.g, f.p, &config, &err));
    kd_exec_destroy(e);
    qd.left = 100;
    assert_int_equal(kd_exec_create(&e, f.g, f.p, &config, &err), KD_ENODEVICE);
    assert_contains(err.msg, "no batch fits");
    drop(&f);
}

/* ---- a teacher's results in two halves ---- */

enum { VIEWS = 3, SIDE_PX = 56, ROUNDS = 4, RECORD = 1 << 16 };

static void teacher_round(kd_teacher *t, int round, kd_err *e) {
    static uint8_t views[VIEWS * SIDE_PX * SIDE_PX * 3];
    formula_pictures(views, sizeof views);
    for (size_t i = 0; i < sizeof views; i++)
        views[i] = (uint8_t)(views[i] + 40 * round);
    must(kd_teacher_run(t, views, 1 + round % VIEWS, e));
    memset(views, 0, sizeof views); /* the caller's again */
}

/* The next batch is with the device before the results of this one are asked for. */
static void two_batches_in_flight_give_the_bits_of_one(void **state) {
    (void)state;
    static uint8_t want[2][ROUNDS][RECORD];
    static const kd_feature kind[2] = {KD_FEATURE_CLS, KD_FEATURE_PATCH};
    static const kd_target forms[1] = {{0}};
    kd_weights *w;
    kd_model_info m;
    kd_backend *plain_ref;
    kd_teacher *t;
    kd_teacher_fetch *f[2][2]; /* [batch][kind] */
    kd_encode_stats stats[VIEWS];
    const kd_layer_choice choice = {.layers = 1, .layer = {1}, .norm = 1, .features = KD_WANT_CLS | KD_WANT_PATCH};
    must(kd_weights_open(&w, "tests/golden/models/tiny_dinov2.pth", &err));
    must(kd_model_find_teacher(&m, "auto", w, &(kd_teacher_choice){0}, &err));
    kd_teacher_config c = {.model = &m, .choice = &choice, .height = SIDE_PX, .width = SIDE_PX, .batch = VIEWS, .precision = KD_F32, .store = KD_I8, .target = forms, .targets = 1};
    must(kd_backend_open(&plain_ref, "ref", 1, &err));
    must(kd_teacher_open(&t, plain_ref, w, &c, &err));
    for (int round = 0; round < ROUNDS; round++) {
        teacher_round(t, round, &err);
        for (int k = 0; k < 2; k++)
            must(kd_teacher_encode(t, kind[k], 1, 0, 1 + round % VIEWS, want[k][round], stats, &err));
    }
    kd_teacher_close(t);
    kd_backend_close(plain_ref);
    must(kd_teacher_open(&t, ref, w, &c, &err));
    for (int i = 0; i < 4; i++)
        must(kd_teacher_fetch_create(&f[i / 2][i % 2], t, kind[i % 2], 1, 0, &err));
    for (int round = 0; round <= ROUNDS; round++) {
        for (int k = 0; round < ROUNDS && k < 2; k++) {
            if (k == 0)
                teacher_round(t, round, &err);
            must(kd_teacher_fetch_begin(f[round % 2][k], 1 + round % VIEWS, &err));
        }
        for (int k = 0; round > 0 && k < 2; k++) {
            const uint8_t *payload;
            const kd_encode_stats *s;
            kd_encode_spec spec = kd_teacher_spec(t, kind[k], 0);
            size_t bytes = kd_encode_bytes(&spec) * (size_t)(1 + (round - 1) % VIEWS);
            assert_true(bytes <= RECORD);
            must(kd_teacher_fetch_end(f[(round - 1) % 2][k], &payload, &s, &err));
            assert_memory_equal(payload, want[k][round - 1], bytes);
        }
    }
    assert_true(qd.replays == ROUNDS - 1);
    for (int i = 0; i < 4; i++)
        kd_teacher_fetch_destroy(f[i / 2][i % 2]);
    kd_teacher_close(t);
    kd_weights_close(w);
}

/* ---- a student's step in two halves ---- */

enum { PX = 28, TEACHER = 8, GRID = 2, MICRO = 2 };

static void put_batch(kd_student *s, int number) {
    static uint8_t pixels[BATCH * PX * PX * 3];
    static float cls[BATCH * TEACHER], patch[BATCH * GRID * GRID * TEACHER];
    char name[32];
    snprintf(name, sizeof name, "batch %d", number);
    formula_pictures(pixels, sizeof pixels);
    for (size_t i = 0; i < sizeof pixels; i++)
        pixels[i] = (uint8_t)(pixels[i] + 29 * number);
    formula_targets(cls, name, BATCH * TEACHER);
    formula_targets(patch, name, BATCH * GRID * GRID * TEACHER);
    for (int row = 0; row < BATCH; row++)
        must(kd_student_put(s, 0, row, &(kd_sample){.pixels = pixels + row * PX * PX * 3, .target = {cls + row * TEACHER, patch + row * GRID * GRID * TEACHER}}, &err));
}

/* ahead: every batch is put between the two halves of the one before it. */
static void train_student(kd_backend *b, int ahead, numbers *n) {
    kd_train_config config = {.lr = "1e-3", .weight_decay = "0.01", .batch_size = BATCH, .optimizer = "adamw", .lr_scale = "auto", .accumulate = MICRO, .drop_path = 0.4, .ema = 0.5};
    kd_loss terms = lf_std_mse(1, 1);
    kd_student_spec spec = {.name = "dinov2_w64_d2", .batch = BATCH, .seed = 3, .config = &config, .loss = &terms, .views = 1,
                            .view = {{.image_h = PX, .image_w = PX, .width = TEACHER, .grid_h = GRID, .grid_w = GRID}}};
    kd_student *s;
    kd_step_result x;
    size_t total;
    must(kd_student_create(&s, b, &spec, &err));
    if (ahead)
        put_batch(s, 0);
    for (int step = 0, number = 0; step < STEPS; step++) {
        for (int micro = 0; micro < MICRO; micro++) {
            if (!ahead)
                put_batch(s, number);
            must(kd_step_begin(s, micro, NULL, &err));
            if (ahead)
                put_batch(s, number + 1);
            must(kd_step_losses(s, micro, &x, &err));
            number++;
        }
        must(kd_step_update(s, 1e-3, 1, &x, &err));
        *room(n, 1) = (float)x.loss;
        *room(n, 1) = (float)x.grad_norm;
    }
    const float *w = kd_params_trained(s->ema.average, NULL, &total);
    must(b->v->download(b, room(n, total), w, total * sizeof *w, &err));
    kd_student_destroy(s);
}

static void a_batch_put_ahead_changes_nothing(void **state) {
    (void)state;
    numbers want = {0}, got = {0};
    kd_backend *plain_ref;
    must(kd_alloc_array(&want.x, NUMBERS, sizeof *want.x, &err));
    must(kd_alloc_array(&got.x, NUMBERS, sizeof *got.x, &err));
    must(kd_backend_open(&plain_ref, "ref", 1, &err));
    train_student(plain_ref, 0, &want);
    train_student(ref, 1, &got);
    assert_int_equal(got.count, want.count);
    assert_memory_equal(got.x, want.x, want.count * sizeof *want.x);
    kd_backend_close(plain_ref);
    kd_free(want.x);
    kd_free(got.x);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(recorded_passes_give_the_bits_of_passes_op_by_op, open_device, close_device),
        cmocka_unit_test_setup_teardown(looking_between_ops_leaves_recordings_aside, open_device, close_device),
        cmocka_unit_test_setup_teardown(a_replay_is_preceded_by_one_question, open_device, close_device),
        cmocka_unit_test_setup_teardown(an_error_ends_a_recording, open_device, close_device),
        cmocka_unit_test_setup_teardown(rows_of_a_batch_go_as_one_copy, open_device, close_device),
        cmocka_unit_test_setup_teardown(a_plan_that_does_not_fit_names_the_batch_that_would, open_device, close_device),
        cmocka_unit_test_setup_teardown(two_batches_in_flight_give_the_bits_of_one, open_device, close_device),
        cmocka_unit_test_setup_teardown(a_batch_put_ahead_changes_nothing, open_device, close_device),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

/* The optimizer on a student: which tensors LARS scales, what a moving average follows, several batches in a step, steps that are left in the middle, learning rates. Steps of single vectors
 * are compared with PyTorch in tests/ops/test_optim_golden.c. */
#include "tests/unit/unit.h"

#include <math.h>

#include "common/base/mem.h"
#include "common/base/rng.h"
#include "tests/unit/formula.h"
#include "tests/unit/loss_fixture.h"
#include "train/preset.h"
#include "train/step.h"

enum { BATCH = 2, SIZE = 32, PATCH_SIZE = 28, WIDTH = 8, GRID = 2 };

static kd_err err;
static kd_backend *ref;

static int open_ref(void **state) {
    (void)state;
    return kd_backend_open(&ref, "ref", 1, &err);
}

static int close_ref(void **state) {
    (void)state;
    kd_backend_close(ref);
    return 0;
}

static kd_train_config config_of(const char *optimizer) {
    return (kd_train_config){.lr = "1e-2", .weight_decay = "0.05", .batch_size = BATCH, .optimizer = optimizer, .lr_scale = "auto", .lr_reference_batch = 64, .accumulate = 1, .momentum = 0.9};
}

static kd_student *make_student(const char *name, const kd_train_config *config, int batch) {
    int side = strncmp(name, "dinov2", 6) == 0 ? PATCH_SIZE : SIZE;
    kd_loss loss = lf_std_mse(1, 1);
    kd_student_spec spec = {.name = name, .batch = batch, .seed = 3, .config = config, .loss = &loss, .views = 1,
                            .view = {{.image_h = side, .image_w = side, .width = WIDTH, .grid_h = GRID, .grid_w = GRID}}};
    kd_student *s;
    assert_ok(kd_student_create(&s, ref, &spec, &err));
    return s;
}

/* Images first .. first + batch - 1 of a fixed set, with their targets, as rows 0 .. */
static void put_images(kd_student *s, int first) {
    enum { MANY = 8 };
    static uint8_t pixels[MANY * SIZE * SIZE * 3];
    static float cls[MANY * WIDTH], patch[MANY * GRID * GRID * WIDTH];
    const kd_student_view *v = &s->program[0].view;
    assert_true(first + s->batch <= MANY);
    formula_pictures(pixels, sizeof pixels);
    formula_targets(cls, "cls", MANY * WIDTH);
    formula_targets(patch, "patch", MANY * GRID * GRID * WIDTH);
    for (int row = 0; row < s->batch; row++) {
        int i = first + row;
        kd_sample sample = {.pixels = pixels + i * v->image_h * v->image_w * 3, .target = {cls + i * WIDTH, patch + i * GRID * GRID * WIDTH}};
        assert_ok(kd_student_put(s, 0, row, &sample, &err));
    }
}

static float *copy_of(const float *device, size_t n) {
    float *x;
    assert_ok(kd_alloc_array(&x, n, sizeof *x, &err));
    assert_ok(ref->v->download(ref, x, device, n * sizeof *x, &err));
    return x;
}

static double norm_of(const float *x, size_t n) {
    double sum = 0;
    for (size_t i = 0; i < n; i++)
        sum += (double)x[i] * (double)x[i];
    return sqrt(sum);
}

/* One step from no momentum moves a tensor by lr times its gradient, which LARS has scaled by trust |w| / (|g| + wd |w|) where there is decay, and only there. */
static void lars_scales_every_decayed_tensor(void **state) {
    (void)state;
    kd_train_config config = config_of("lars");
    kd_student *s = make_student("resnet18", &config, BATCH);
    kd_step_result x;
    const double lr = 2, decay = 0.05;
    size_t total = s->optim.total, scaled = 0, plain = 0;
    float *before = copy_of(kd_params_trained(s->params, NULL, NULL), total);
    put_images(s, 0);
    assert_ok(kd_step_run(s, lr, 0, &x, &err));
    float *after = copy_of(kd_params_trained(s->params, NULL, NULL), total), *g = copy_of(kd_exec_gradients(s->program[0].train), total);
    for (int i = 0; i < kd_params_count(s->params); i++) {
        kd_param_info info = kd_params_info(s->params, i);
        if (info.is_state || info.is_counter || info.carried)
            continue;
        size_t at = kd_params_offset(s->params, i);
        double wn = norm_of(before + at, info.count), gn = norm_of(g + at, info.count), rate = 1, wd = 0;
        if (info.decay) {
            wd = decay;
            rate = 1e-3 * wn / (gn + wd * wn + 1e-8);
        }
        scaled += info.decay;
        plain += !info.decay;
        for (size_t k = at; k < at + info.count; k++) {
            double want = (double)before[k] - lr * rate * ((double)g[k] + wd * (double)before[k]);
            if (!(fabs((double)after[k] - want) <= 1e-6 * (fabs(want) + lr * rate * fabs((double)g[k]))))
                fail_msg("%s[%zu] is %.9g, expected %.9g", info.name, k - at, (double)after[k], want);
        }
    }
    assert_true(scaled == 22 && plain == 46 && s->optim.tensors == scaled); /* 20 convolutions and the heads' 2 matrices; two vectors of each of 20 batch norms and 2 layer norms, 2 biases */
    float *all[] = {before, after, g};
    for (int i = 0; i < 3; i++)
        kd_free(all[i]);
    kd_student_destroy(s);
}

/* Without decay there is nothing to scale: LARS is SGD then, as lightly's is. */
static void lars_without_decay_is_sgd(void **state) {
    (void)state;
    float *w[2];
    size_t total = 0;
    for (int k = 0; k < 2; k++) {
        kd_train_config config = config_of(k == 0 ? "lars" : "sgd");
        kd_step_result x;
        config.weight_decay = "0";
        kd_student *s = make_student("dinov2_w64_d1", &config, BATCH);
        put_images(s, 0);
        assert_ok(kd_step_run(s, 0.1, 1, &x, &err));
        put_images(s, 2);
        assert_ok(kd_step_run(s, 0.1, 1, &x, &err));
        total = s->optim.total;
        w[k] = copy_of(kd_params_trained(s->params, NULL, NULL), total);
        kd_student_destroy(s);
    }
    assert_memory_equal(w[0], w[1], total * sizeof **w);
    kd_free(w[0]);
    kd_free(w[1]);
}

/* Weights and running statistics are averaged, what nothing trains is copied, and validation sees the average. */
static void a_moving_average_follows_weights_and_statistics(void **state) {
    (void)state;
    kd_train_config config = config_of("sgd");
    kd_step_result x;
    config.ema = 0.75;
    kd_student *s = make_student("resnet18", &config, BATCH);
    int fc = kd_params_find(s->params, "fc.weight"), mean = kd_params_find(s->params, "layer1.0.bn1.running_mean"), weight = kd_params_find(s->params, "conv1.weight");
    size_t count = kd_params_info(s->params, fc).count;
    float *values, *again, want_mean = 0, want_weight;
    assert_ok(kd_alloc_array(&values, count, sizeof *values, &err));
    assert_ok(kd_alloc_array(&again, count, sizeof *again, &err));
    assert_ok(kd_params_get(s->params, weight, values, &err));
    want_weight = values[7];
    for (int step = 0; step < 3; step++) {
        put_images(s, step);
        assert_ok(kd_step_run(s, 0.1, 1, &x, &err));
        assert_ok(kd_params_get(s->params, mean, values, &err));
        want_mean = 0.75f * want_mean + 0.25f * values[5];
        assert_ok(kd_params_get(s->params, weight, values, &err));
        want_weight = 0.75f * want_weight + 0.25f * values[7];
    }
    assert_true(fabsf(values[7] - want_weight) > 1e-4f); /* the average is another value */
    assert_ok(kd_params_get(s->ema.average, mean, values, &err));
    assert_true(want_mean != 0 && fabsf(values[5] - want_mean) <= 1e-6f);
    assert_ok(kd_params_get(s->ema.average, weight, values, &err));
    assert_true(fabsf(values[7] - want_weight) <= 1e-6f);
    assert_ok(kd_params_get(s->params, fc, values, &err));
    assert_ok(kd_params_get(s->ema.average, fc, again, &err));
    assert_memory_equal(values, again, count * sizeof *values);
    assert_int_equal(kd_params_counter(s->ema.average), 3);
    kd_free(values);
    kd_free(again);
    kd_student_destroy(s);
}

/* Three batches of two images are one of six, for a network that treats every image by itself. Measured: 1.1e-7 of the gradient's norm. */
static void batches_of_a_step_average_their_gradients(void **state) {
    (void)state;
    float *g[2];
    size_t total = 0;
    double loss[2], difference = 0;
    for (int k = 0; k < 2; k++) {
        kd_train_config config = config_of("sgd");
        kd_step_result x;
        config.accumulate = k == 0 ? 1 : 3;
        kd_student *s = make_student("dinov2_w64_d1", &config, k == 0 ? 6 : 2);
        for (int micro = 0; micro < s->accumulate; micro++) {
            put_images(s, 2 * micro);
            assert_ok(kd_step_backward(s, micro, &x, &err));
        }
        assert_ok(kd_step_update(s, 0, 0, &x, &err));
        loss[k] = x.loss;
        assert_true(fabs(x.loss - x.term[0] - x.term[1]) < 1e-9 && fabs(x.loss - x.group[0]) < 1e-9 && s->summed == 1 && s->optim.steps == 1);
        total = s->optim.total;
        g[k] = copy_of(kd_exec_gradients(s->program[0].train), total);
        kd_student_destroy(s);
    }
    assert_true(fabs(loss[0] - loss[1]) <= 1e-6 * loss[0]);
    double norm = norm_of(g[0], total);
    for (size_t i = 0; i < total; i++)
        difference += ((double)g[1][i] - (double)g[0][i]) * ((double)g[1][i] - (double)g[0][i]);
    if (!(sqrt(difference) <= 1e-6 * norm))
        fail_msg("gradients differ by %g of their norm", sqrt(difference) / norm);
    kd_free(g[0]);
    kd_free(g[1]);
}

/* A step that was begun and taken back, batches and all, leaves no trace. */
static void a_step_can_be_undone(void **state) {
    (void)state;
    float *w[2], *states[2];
    size_t total = 0, count = 0;
    for (int k = 0; k < 2; k++) {
        kd_train_config config = config_of("adamw");
        kd_step_result x;
        config.accumulate = 2;
        kd_student *s = make_student("resnet18", &config, BATCH);
        if (k == 1) {
            float *before = copy_of(kd_params_states(s->params, NULL), s->mark.count);
            assert_ok(kd_student_set_mark(s, &err));
            put_images(s, 5);
            assert_ok(kd_step_backward(s, 0, &x, &err));
            float *between = copy_of(kd_params_states(s->params, NULL), s->mark.count);
            assert_memory_not_equal(before, between, s->mark.count * sizeof *before);
            assert_ok(kd_student_rewind(s, &err));
            kd_free(before);
            kd_free(between);
        }
        for (int step = 0; step < 2; step++) {
            for (int micro = 0; micro < 2; micro++) {
                put_images(s, step + 2 * micro);
                assert_ok(kd_step_backward(s, micro, &x, &err));
            }
            assert_ok(kd_step_update(s, 1e-3, 1, &x, &err));
        }
        assert_int_equal(kd_params_counter(s->params), 4);
        total = s->optim.total;
        w[k] = copy_of(kd_params_trained(s->params, NULL, NULL), total);
        states[k] = copy_of(kd_params_states(s->params, &count), s->mark.count);
        kd_student_destroy(s);
    }
    assert_memory_equal(w[0], w[1], total * sizeof **w);
    assert_memory_equal(states[0], states[1], count * sizeof **states);
    for (int k = 0; k < 2; k++) {
        kd_free(w[k]);
        kd_free(states[k]);
    }
}

/* ---- drop path ---- */

/* Of two blocks' four branches, the second block's two are dropped with the whole rate and the first's never; what stays is scaled so that the mean does. The draws depend on seed, batch, branch and
 * row alone, and validation drops nothing. */
static void drop_path_follows_its_chances(void **state) {
    (void)state;
    enum { STEPS = 400 };
    kd_train_config config = config_of("sgd");
    config.drop_path = 0.25;
    kd_student *s = make_student("dinov2_w64_d2", &config, 8);
    int dropped[2] = {0}, both = 0;
    float keep[2][8], again[8];
    assert_int_equal(s->model.branches, 4);
    put_images(s, 0);
    for (uint64_t batch = 0; batch < STEPS; batch++) {
        kd_rng r[2];
        assert_ok(kd_student_drop_paths(s, 0, batch, &err)); /* the last branch's draws are left in s->keep */
        memcpy(again, s->keep, sizeof again);
        for (int k = 0; k < 2; k++) {
            r[k] = kd_rng_make(3, batch, (uint32_t)(2 + k), KD_RNG_DROP_PATH);
            for (int row = 0; row < 8; row++) {
                keep[k][row] = kd_rng_unit(&r[k]) < 0.25 ? 0 : 1 / 0.75f;
                dropped[k] += keep[k][row] == 0;
            }
        }
        for (int row = 0; row < 8; row++)
            both += keep[0][row] == 0 && keep[1][row] == 0;
        assert_memory_equal(again, keep[1], sizeof again);
    }
    for (int k = 0; k < 2; k++) /* 3,200 draws: 4 standard deviations of a quarter */
        assert_true(fabs(dropped[k] / 3200.0 - 0.25) < 0.031);
    assert_true(fabs(both / 3200.0 - 0.0625) < 0.018); /* branches are independent */
    float with[WIDTH], without[WIDTH];
    kd_train_config plain_config = config_of("sgd");
    kd_student *t = make_student("dinov2_w64_d2", &plain_config, 8);
    put_images(t, 0);
    kd_step_result x, y;
    assert_ok(kd_step_run(s, 0, 0, &x, &err));
    assert_ok(kd_step_run(t, 0, 0, &y, &err));
    assert_true(x.loss != y.loss);
    for (int k = 0; k < 2; k++) {
        kd_student *u = k == 0 ? s : t;
        static uint8_t pixels[8 * PATCH_SIZE * PATCH_SIZE * 3];
        formula_pictures(pixels, sizeof pixels);
        assert_ok(kd_exec_upload(u->infer, "images", pixels, &err));
        assert_ok(kd_exec_forward(u->infer, &err));
        assert_ok(kd_exec_download(u->infer, "pred.cls", 1, k == 0 ? with : without, &err));
    }
    assert_memory_equal(with, without, sizeof with);
    kd_student_destroy(s);
    kd_student_destroy(t);
}

static void drop_path_needs_branches(void **state) {
    (void)state;
    kd_train_config config = config_of("sgd");
    config.drop_path = 0.1;
    kd_loss loss = lf_std_mse(1, 0);
    kd_student_spec spec = {.name = "resnet18", .batch = 2, .config = &config, .loss = &loss, .views = 1, .view = {{.image_h = SIZE, .image_w = SIZE, .width = WIDTH, .grid_h = GRID, .grid_w = GRID}}};
    kd_student *s;
    assert_int_equal(kd_student_create(&s, ref, &spec, &err), KD_EUSAGE);
    assert_contains(err.msg, "resnet18 has no residual branches");
}

/* ---- learning rates ---- */

static double rate_of(const char *model, const char *optimizer, const char *lr, const char *scale, int64_t reference, int64_t batch, int64_t accumulate) {
    kd_train_config c = config_of(optimizer);
    kd_model_info m;
    kd_hyper h;
    c.lr = lr;
    c.lr_scale = scale;
    c.lr_reference_batch = reference;
    c.batch_size = batch;
    c.accumulate = accumulate;
    assert_ok(kd_model_find(&m, model, NULL, &err));
    assert_ok(kd_train_hyper(&h, &c, &m, &err));
    return h.lr;
}

static void learning_rates_grow_with_the_images_of_a_step(void **state) {
    (void)state;
    static const struct {
        const char *model, *optimizer, *lr, *scale;
        int64_t reference, batch, accumulate;
        double want;
    } cases[] = {
        {"resnet18", "adamw", "auto", "auto", 64, 64, 1, 1e-3},      {"dinov2_vits14", "adamw", "auto", "auto", 64, 64, 1, 5e-4},
        {"resnet18", "adamw", "auto", "auto", 64, 64, 4, 2e-3},      {"resnet18", "adamw", "auto", "none", 64, 256, 1, 1e-3},
        {"resnet18", "adamw", "auto", "linear", 64, 128, 2, 4e-3},   {"resnet18", "adamw", "auto", "auto", 1024, 256, 1, 2e-3}, /* auto is for 64, whatever a given rate is for */
        {"resnet18", "adamw", "3e-3", "auto", 64, 1024, 1, 3e-3},    {"resnet18", "adamw", "3e-3", "none", 1536, 128, 1, 3e-3},
        {"resnet18", "lars", "1.8", "sqrt", 1536, 128, 1, 0.5196152}, {"resnet18", "lars", "9", "sqrt", 1536, 128, 1, 2.5980762}, /* LightlyTrain's v1 and v2 at their batch */
        {"resnet18", "adamw", "5e-4", "sqrt", 1536, 64, 2, 1.443376e-4}, {"resnet18", "sgd", "0.1", "linear", 256, 64, 8, 0.2},
        {"resnet18", "sgd", "auto", "auto", 64, 256, 1, 0.1},        {"resnet18", "lars", "auto", "auto", 64, 1536, 1, 1.8},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        double got = rate_of(cases[i].model, cases[i].optimizer, cases[i].lr, cases[i].scale, cases[i].reference, cases[i].batch, cases[i].accumulate);
        if (!(fabs(got - cases[i].want) <= 1e-6 * cases[i].want))
            fail_msg("case %zu: %.9g, expected %.9g", i, got, cases[i].want);
    }
}

/* The resolved options mean the same run, also where a preset had given a scale. */
static void a_resolved_rate_isnt_scaled_again(void **state) {
    (void)state;
    char *words[] = {"kd-train", "--cache", "c", "--images", "i", "--student", "resnet18", "--out", "o", "--lr", "1.8", "--lr-scale", "sqrt", "--lr-reference-batch", "1536", NULL};
    kd_train_config c = {0};
    kd_model_info m;
    kd_hyper h, again;
    kd_arena *arena = kd_arena_create();
    assert_ok(kd_options_parse(&kd_train_program, &c, 15, words, NULL, arena, &err));
    assert_ok(kd_model_find(&m, "resnet18", NULL, &err));
    assert_ok(kd_train_hyper(&h, &c, &m, &err));
    assert_ok(kd_train_resolve(&c, &h, 1, arena, &err));
    assert_ok(kd_train_hyper(&again, &c, &m, &err));
    assert_true(fabs(again.lr - h.lr) <= 1e-8 * h.lr && fabs(h.lr - 1.8 * sqrt(64 / 1536.0)) < 1e-9);
    kd_arena_destroy(arena);
}

static kd_train_config preset_of(const char *name, kd_arena *arena) {
    char *words[] = {"kd-train", "--cache", "c", "--images", "i", "--student", "resnet18", "--out", "o", "--preset", (char *)(uintptr_t)name, NULL};
    kd_train_config c = {0};
    assert_ok(kd_options_parse(&kd_train_program, &c, 11, words, NULL, arena, &err));
    assert_ok(kd_train_config_check(&c, &err));
    return c;
}

/* Every preset's values are ones that the options take. The numbers are facts of LightlyTrain's and of the recipe for ViTs. */
static void presets_set_everything_at_once(void **state) {
    (void)state;
    kd_arena *arena = kd_arena_create();
    kd_model_info m;
    kd_hyper h;
    int count = 0;
    assert_ok(kd_model_find(&m, "resnet18", NULL, &err));
    for (const kd_preset *p = kd_train_presets; p->name != NULL; p++, count++)
        preset_of(p->name, arena);
    assert_int_equal(count, 4);
    kd_train_config c = preset_of("lightly-v1", arena);
    assert_string_equal(c.loss, "kl-queue");
    assert_string_equal(c.optimizer, "lars");
    assert_ok(kd_train_hyper(&h, &c, &m, &err));
    assert_true(c.batch_size == 128 && c.epochs == 100 && fabs(h.lr - 0.5196152) < 1e-6 && h.optim.weight_decay == 1e-6 && h.clip == 1);
    c = preset_of("lightly-v3", arena);
    assert_string_equal(c.loss, "kl-queue+intra");
    assert_ok(kd_train_hyper(&h, &c, &m, &err));
    assert_true(h.optim.kind == KD_ADAMW && fabs(h.lr - 1.443376e-4) < 1e-9 && h.optim.weight_decay == 1e-6);
    c = preset_of("vit-kd", arena);
    assert_string_equal(c.loss, "mse-normalized");
    assert_string_equal(c.patch_weight, "0.5");
    assert_ok(kd_train_hyper(&h, &c, &m, &err));
    assert_true(c.batch_size == 64 && h.lr == 5e-4 && h.optim.weight_decay == 0.04);
    c = preset_of("default", arena);
    assert_string_equal(c.loss, "std-mse");
    kd_arena_destroy(arena);
}

#define WITH_REF(f) cmocka_unit_test_setup_teardown(f, open_ref, close_ref)

int main(void) {
    const struct CMUnitTest tests[] = {
        WITH_REF(lars_scales_every_decayed_tensor),
        WITH_REF(lars_without_decay_is_sgd),
        WITH_REF(a_moving_average_follows_weights_and_statistics),
        WITH_REF(batches_of_a_step_average_their_gradients),
        WITH_REF(a_step_can_be_undone),
        WITH_REF(drop_path_follows_its_chances),
        WITH_REF(drop_path_needs_branches),
        cmocka_unit_test(learning_rates_grow_with_the_images_of_a_step),
        cmocka_unit_test(presets_set_everything_at_once),
        cmocka_unit_test(a_resolved_rate_isnt_scaled_again),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

/* Checkpoints: what is restored is what was saved, bit for bit, so that training goes on as if nothing had happened; damaged files are refused. */
#include "tests/unit/unit.h"

#include <math.h>

#include "common/base/io.h"
#include "common/base/mem.h"
#include "tests/unit/formula.h"
#include "train/checkpoint.h"
#include "tests/unit/loss_fixture.h"
#include "train/export/export.h"
#include "train/step.h"

enum { BATCH = 3, SIZE = 32, WIDTH = 8, GRID = 2 };

static kd_err err;

static const kd_train_config plain = {.lr = "1e-3", .weight_decay = "0.01", .batch_size = BATCH, .optimizer = "adamw", .lr_scale = "auto", .accumulate = 1};

static kd_student *make_student_with(kd_backend *b, const char *name, uint64_t seed, const kd_train_config *config) {
    int side = strncmp(name, "dinov2", 6) == 0 ? 28 : SIZE;
    kd_loss loss = lf_std_mse(1, 1);
    kd_student_spec spec = {.name = name, .batch = BATCH, .seed = seed, .config = config, .loss = &loss, .views = 1,
                            .view = {{.image_h = side, .image_w = side, .width = WIDTH, .grid_h = GRID, .grid_w = GRID}}};
    kd_student *s;
    assert_ok(kd_student_create(&s, b, &spec, &err));
    return s;
}

static kd_student *make_student(kd_backend *b, const char *name, uint64_t seed) {
    return make_student_with(b, name, seed, &plain);
}

/* Step number `step` on data of its own, the same in each of its batches but for the pixels. */
static double take_step(kd_student *s, int step) {
    static uint8_t pixels[BATCH * SIZE * SIZE * 3];
    static float cls[BATCH * WIDTH], patch[BATCH * GRID * GRID * WIDTH];
    char name[32];
    kd_step_result x;
    snprintf(name, sizeof name, "target %d", step);
    formula_targets(cls, name, BATCH * WIDTH);
    formula_targets(patch, name, BATCH * GRID * GRID * WIDTH);
    for (int micro = 0; micro < s->accumulate; micro++) {
        formula_pictures(pixels, sizeof pixels);
        for (size_t i = 0; i < sizeof pixels; i++)
            pixels[i] = (uint8_t)(pixels[i] + 31 * step + 7 * micro);
        for (int row = 0; row < BATCH; row++) {
            kd_sample sample = {.pixels = pixels + row * s->program[0].view.image_h * s->program[0].view.image_w * 3, .target = {cls + row * WIDTH, patch + row * GRID * GRID * WIDTH}};
            assert_ok(kd_student_put(s, 0, row, &sample, &err));
        }
        assert_ok(kd_step_backward(s, micro, &x, &err));
    }
    assert_ok(kd_step_update(s, 1e-3, 1, &x, &err));
    return x.loss;
}

static json_t *some_run(void) {
    return json_pack("{s:s, s:s, s:I, s:{s:s, s:s}}", "cache", "abc", "teacher", "def", "step", (json_int_t)2, "options", "loss", "std-mse", "precision", "f32");
}

static char *path_in(const char *folder, const char *name) {
    static char path[4][4200];
    static int next;
    next = (next + 1) % 4;
    snprintf(path[next], sizeof path[next], "%s/%s", folder, name);
    return path[next];
}

/* Trains 2 steps, saves, trains 2 more; a fresh student of another seed is restored and trains the same 2. */
static void resume_with(const char *device, const char *model, const kd_train_config *config) {
    kd_backend *b;
    char *folder = unit_folder();
    if (kd_backend_open(&b, device, 2, &err) != KD_OK) {
        print_message("skipped: %s\n", err.msg);
        free(folder);
        skip();
    }
    kd_student *s = make_student_with(b, model, 1, config), *t = make_student_with(b, model, config->drop_path > 0 ? 1 : 2, config); /* the seed of drop path is an option of the run */
    json_t *run = some_run();
    kd_checkpoint *c;
    take_step(s, 0);
    take_step(s, 1);
    s->best_loss = 0.1 + 0.2;
    s->best_epoch = 7;
    assert_ok(kd_checkpoint_write(path_in(folder, "a.kdt"), &s, 1, run, 1, &err));
    double first = take_step(s, 2), second = take_step(s, 3);
    assert_ok(kd_checkpoint_open(&c, path_in(folder, "a.kdt"), &err));
    assert_true(json_equal(kd_checkpoint_run(c), run));
    assert_ok(kd_checkpoint_restore(c, t, &err));
    kd_checkpoint_close(c);
    assert_true(t->best_loss == 0.1 + 0.2 && t->best_epoch == 7 && t->summed == 2 && t->optim.steps == 2);
    assert_true(take_step(t, 2) == first);
    assert_true(take_step(t, 3) == second);
    assert_true(memcmp(s->sum, t->sum, sizeof s->sum) == 0);
    assert_ok(kd_checkpoint_write(path_in(folder, "s.kdt"), &s, 1, run, 1, &err));
    t->best_loss = s->best_loss;
    assert_ok(kd_checkpoint_write(path_in(folder, "t.kdt"), &t, 1, run, 1, &err));
    uint8_t *x, *y;
    size_t nx, ny;
    assert_ok(kd_io_read_all(path_in(folder, "s.kdt"), 1 << 30, &x, &nx, &err));
    assert_ok(kd_io_read_all(path_in(folder, "t.kdt"), 1 << 30, &y, &ny, &err));
    assert_int_equal(nx, ny);
    assert_memory_equal(x, y, nx);
    kd_free(x);
    kd_free(y);
    json_decref(run);
    kd_student_destroy(s);
    kd_student_destroy(t);
    kd_backend_close(b);
    free(folder);
}

static void resume_is_bit_equal(const char *device, const char *model) {
    resume_with(device, model, &plain);
}

static void a_vit_goes_on_bit_equal_on_ref(void **state) {
    (void)state;
    resume_is_bit_equal("ref", "dinov2_w64_d1");
}
static void a_vit_goes_on_bit_equal_on_cpu(void **state) {
    (void)state;
    resume_is_bit_equal("cpu", "dinov2_w64_d1");
}
static void a_cnn_goes_on_bit_equal_on_cpu(void **state) {
    (void)state;
    resume_is_bit_equal("cpu", "mobilenet_v3_small");
}

/* Every optimizer, with a moving average, drop path and several batches in a step, on networks with and without running statistics. */
static void every_optimizer_goes_on_bit_equal(void **state) {
    (void)state;
    static const char *const optimizers[] = {"adamw", "sgd", "lars"}, *const models[] = {"dinov2_w64_d2", "mobilenet_v3_small"};
    for (int i = 0; i < 6; i++) {
        kd_train_config config = plain;
        config.optimizer = optimizers[i / 2];
        config.momentum = 0.9;
        config.ema = 0.9;
        config.accumulate = i % 2 + 1;
        config.drop_path = i % 2 == 0 ? 0.5 : 0;
        resume_with("cpu", models[i % 2], &config);
    }
}

/* What is exported is the moving average, which here has gone half the way of the weights; from the latest and from the best state. */
static void exports_are_of_the_moving_average(void **state) {
    (void)state;
    enum { COUNT = 16 };
    static const char *const names[] = {"features.0.1.weight", "features.0.1.running_mean"};
    kd_backend *b;
    kd_train_config config = plain;
    char *folder = unit_folder(), *kdt = path_in(folder, "a.kdt"), *out = path_in(folder, "a.safetensors");
    float before[2][COUNT], after[2][COUNT], got[COUNT];
    config.ema = 0.5;
    assert_ok(kd_backend_open(&b, "ref", 1, &err));
    kd_student *s = make_student_with(b, "mobilenet_v3_small", 5, &config);
    json_t *run = some_run();
    for (int n = 0; n < 2; n++)
        assert_ok(kd_params_get(s->params, kd_params_find(s->params, names[n]), before[n], &err));
    take_step(s, 0);
    for (int n = 0; n < 2; n++)
        assert_ok(kd_params_get(s->params, kd_params_find(s->params, names[n]), after[n], &err));
    for (int with_optimizer = 0; with_optimizer < 2; with_optimizer++) {
        kd_weights *w;
        assert_ok(kd_checkpoint_write(kdt, &s, 1, run, with_optimizer, &err));
        assert_ok(kd_export_checkpoint(b, kdt, NULL, out, KD_F32, &err));
        assert_ok(kd_weights_open(&w, out, &err));
        for (int n = 0; n < 2; n++) {
            assert_ok(kd_weights_read_f32(w, kd_weights_find(w, names[n]), got, COUNT, &err));
            for (size_t i = 0; i < COUNT; i++) {
                double x = (double)before[n][i], y = (double)after[n][i];
                assert_true(x != y && fabs((double)got[i] - (x + y) / 2) <= 1e-7 * (fabs(x) + fabs(y)));
            }
        }
        kd_weights_close(w);
    }
    json_decref(run);
    kd_student_destroy(s);
    kd_backend_close(b);
    free(folder);
}

/* Any byte changed in values or metadata is found, by the hash or by the container's checks. */
static void damage_is_found(void **state) {
    (void)state;
    kd_backend *b;
    char *folder = unit_folder(), *path = path_in(folder, "a.kdt"), *bad = path_in(folder, "bad.kdt");
    uint8_t *bytes;
    size_t size;
    assert_ok(kd_backend_open(&b, "ref", 1, &err));
    kd_student *s = make_student(b, "dinov2_w64_d1", 1);
    json_t *run = some_run();
    take_step(s, 0);
    assert_ok(kd_checkpoint_write(path, &s, 1, run, 1, &err));
    assert_ok(kd_io_read_all(path, 1 << 28, &bytes, &size, &err));
    int found = 0, tried = 0;
    for (size_t i = 0; i < 40; i++) {
        size_t at = i < 20 ? size - 1 - i * (size / 25) : 8 + i * 61; /* values; then header and metadata */
        kd_checkpoint *c;
        bytes[at] ^= 0x10;
        unit_write(bad, bytes, size);
        kd_status status = kd_checkpoint_open(&c, bad, &err);
        if (status == KD_OK) {
            status = kd_checkpoint_restore(c, s, &err);
            kd_checkpoint_close(c);
        }
        found += status < 0;
        tried++;
        bytes[at] ^= 0x10;
    }
    assert_int_equal(found, tried);
    for (size_t n = 0; n < size; n += size / 7 + 1) {
        kd_checkpoint *c;
        unit_write(bad, bytes, n);
        assert_true(kd_checkpoint_open(&c, bad, &err) < 0);
        assert_contains(err.msg, "bad.kdt");
    }
    kd_free(bytes);
    json_decref(run);
    kd_student_destroy(s);
    kd_backend_close(b);
    free(folder);
}

static void a_checkpoint_of_another_student_is_refused(void **state) {
    (void)state;
    kd_backend *b;
    kd_checkpoint *c;
    char *folder = unit_folder();
    size_t index;
    assert_ok(kd_backend_open(&b, "ref", 1, &err));
    kd_student *two[2] = {make_student(b, "dinov2_w64_d1", 1), make_student(b, "dinov2_w64_d2", 1)}, *other = make_student(b, "dinov2_w128_d1", 1);
    json_t *run = some_run();
    assert_ok(kd_checkpoint_write(path_in(folder, "a.kdt"), two, 2, run, 1, &err));
    assert_ok(kd_checkpoint_open(&c, path_in(folder, "a.kdt"), &err));
    assert_int_equal(kd_checkpoint_restore(c, other, &err), KD_EUSAGE);
    assert_contains(err.msg, "dinov2_w64_d2");
    assert_int_equal(kd_checkpoint_find(c, NULL, &index, &err), KD_EUSAGE);
    assert_ok(kd_checkpoint_find(c, "dinov2_w64_d2", &index, &err));
    assert_int_equal(index, 1);
    assert_ok(kd_checkpoint_restore(c, two[1], &err));
    kd_checkpoint_close(c);
    json_decref(run);
    kd_student_destroy(two[0]);
    kd_student_destroy(two[1]);
    kd_student_destroy(other);
    kd_backend_close(b);
    free(folder);
}

/* The exported file holds the student's weights without the heads, and can be trained on from. */
static void an_export_has_the_weights_and_no_heads(void **state) {
    (void)state;
    kd_backend *b;
    kd_weights *w;
    char *folder = unit_folder(), *out = path_in(folder, "r18.safetensors"), *kdt = path_in(folder, "a.kdt");
    assert_ok(kd_backend_open(&b, "ref", 1, &err));
    kd_student *s = make_student(b, "resnet18", 5);
    json_t *run = some_run();
    take_step(s, 0);
    assert_ok(kd_checkpoint_write(kdt, &s, 1, run, 0, &err)); /* without moments, as the best state is kept */
    assert_ok(kd_export_checkpoint(b, kdt, NULL, out, KD_F32, &err));
    assert_ok(kd_weights_open(&w, out, &err));
    assert_int_equal(kd_weights_count(w), 120); /* torchvision's state_dict without fc */
    assert_true(kd_weights_find(w, "kd_head.cls.linear.weight") < 0);
    assert_true(kd_weights_find(w, "fc.weight") < 0);
    assert_string_equal(json_string_value(json_object_get(kd_weights_metadata(w), "kdcache_cache")), "abc");
    float got[64], want[64];
    int64_t batches;
    assert_ok(kd_weights_read_f32(w, kd_weights_find(w, "bn1.running_mean"), got, 64, &err));
    assert_ok(kd_params_get(s->params, kd_params_find(s->params, "bn1.running_mean"), want, &err));
    assert_memory_equal(got, want, sizeof got);
    assert_ok(kd_weights_read_i64(w, kd_weights_find(w, "bn1.num_batches_tracked"), &batches, 1, &err));
    assert_int_equal(batches, 1);
    kd_weights_close(w);
    json_decref(run);
    kd_student_destroy(s);
    kd_backend_close(b);
    free(folder);
}

/* Positions of 2 x 4 patches and the class token's: nine rows, which would also be those of a grid of 3 x 3 without a class token. */
static void an_export_of_a_view_that_is_not_square_is_read_back_as_it_is(void **state) {
    (void)state;
    enum { VALUES = 9 * 64 };
    kd_backend *b;
    kd_weights *w;
    kd_vit_spec vit;
    kd_train_config config = {.lr = "1e-3", .weight_decay = "0.01", .batch_size = 1, .optimizer = "adamw", .lr_scale = "auto", .accumulate = 1};
    char *folder = unit_folder(), *out = path_in(folder, "vit.safetensors"), *kdt = path_in(folder, "a.kdt");
    kd_student *first, *second;
    kd_loss loss = lf_std_mse(1, 0);
    kd_student_spec spec = {.name = "dinov2_w64_d1", .batch = 1, .seed = 3, .config = &config, .loss = &loss, .views = 1, .view = {{.image_h = 28, .image_w = 56, .width = WIDTH}}};
    float want[VALUES], got[VALUES];
    assert_ok(kd_backend_open(&b, "ref", 1, &err));
    assert_ok(kd_student_create(&first, b, &spec, &err));
    json_t *run = some_run();
    assert_ok(kd_checkpoint_write(kdt, &first, 1, run, 0, &err));
    assert_ok(kd_export_checkpoint(b, kdt, NULL, out, KD_F32, &err));

    assert_ok(kd_weights_open(&w, out, &err));
    assert_string_equal(json_string_value(json_object_get(kd_weights_metadata(w), "kdcache_image_size")), "28x56");
    assert_ok(kd_vit_detect(w, NULL, &vit, &err));
    assert_int_equal(vit.pos_grid, 2);
    assert_int_equal(kd_vit_pos_columns(&vit), 4);
    kd_weights_close(w);
    spec.init = out;
    spec.seed = 4;
    assert_ok(kd_student_create(&second, b, &spec, &err));
    assert_ok(kd_params_get(first->params, kd_params_find(first->params, "pos_embed"), want, &err));
    assert_ok(kd_params_get(second->params, kd_params_find(second->params, "pos_embed"), got, &err));
    assert_memory_equal(got, want, sizeof got);
    kd_student_destroy(second);
    spec.view[0].image_h = 56; /* 4 x 2: resized */
    spec.view[0].image_w = 28;
    assert_ok(kd_student_create(&second, b, &spec, &err));
    assert_ok(kd_params_get(second->params, kd_params_find(second->params, "pos_embed"), got, &err));
    assert_memory_equal(got, want, 64 * sizeof *got); /* the class token's */
    assert_memory_not_equal(got, want, sizeof got);
    json_decref(run);
    kd_student_destroy(first);
    kd_student_destroy(second);
    kd_backend_close(b);
    free(folder);
}

/* A write that fails leaves the old checkpoint. */
static void a_full_disk_leaves_the_old_checkpoint(void **state) {
    (void)state;
    kd_backend *b;
    kd_checkpoint *c;
    char *folder = unit_folder(), *path = path_in(folder, "a.kdt");
    assert_ok(kd_backend_open(&b, "ref", 1, &err));
    kd_student *s = make_student(b, "dinov2_w64_d1", 1);
    json_t *run = some_run();
    assert_ok(kd_checkpoint_write(path, &s, 1, run, 1, &err));
    json_object_set_new(run, "step", json_integer(99));
    for (size_t n = 1; n <= 3; n++) {
        kd_io_fail_after(n, 28 /* ENOSPC */);
        kd_status status = kd_checkpoint_write(path, &s, 1, run, 1, &err);
        kd_io_fail_after(0, 0);
        if (status == KD_OK)
            break;
        assert_int_equal(status, KD_ENOSPACE);
        assert_ok(kd_checkpoint_open(&c, path, &err));
        assert_int_equal(json_integer_value(json_object_get(kd_checkpoint_run(c), "step")), 2);
        kd_checkpoint_close(c);
    }
    json_decref(run);
    kd_student_destroy(s);
    kd_backend_close(b);
    free(folder);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_vit_goes_on_bit_equal_on_ref),
        cmocka_unit_test(a_vit_goes_on_bit_equal_on_cpu),
        cmocka_unit_test(a_cnn_goes_on_bit_equal_on_cpu),
        cmocka_unit_test(every_optimizer_goes_on_bit_equal),
        cmocka_unit_test(exports_are_of_the_moving_average),
        cmocka_unit_test(damage_is_found),
        cmocka_unit_test(a_checkpoint_of_another_student_is_refused),
        cmocka_unit_test(an_export_has_the_weights_and_no_heads),
        cmocka_unit_test(an_export_of_a_view_that_is_not_square_is_read_back_as_it_is),
        cmocka_unit_test(a_full_disk_leaves_the_old_checkpoint),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

/* Students under every named loss: the loss falls, its terms have their names; what validation says of them is what a plain recomputation says; a queue goes on where a checkpoint left it. */
#include "tests/unit/train_fixture.h"

#include "common/base/log.h"
#include "common/weights/safetensors.h"
#include "train/checkpoint.h"
#include "train/loss_named.h"
#include "train/setup.h"
#include "train/step.h"
#include "train/validate.h"

enum { BATCH = 4, STEPS = 8, WIDTH = 8, GRID_H = 2, GRID_W = 3, CLASSES = 5 };

static kd_err err;
static char *folder;
static kd_arena *arena;
static kd_teacher_head *head;

static char *at(const char *name) {
    static char path[16][4300];
    static int next;
    next = (next + 1) % 16;
    snprintf(path[next], sizeof path[next], "%s/%s", folder, name);
    return path[next];
}

/* A classifier of the teacher's CLS, of formula values. */
static void write_head(void) {
    static float weight[CLASSES * WIDTH];
    formula_targets(weight, "classifier", CLASSES * WIDTH);
    const kd_tensor t = {.name = "fc.weight", .dtype = KD_F32, .rank = 2, .shape = {CLASSES, WIDTH}, .data = weight};
    assert_ok(kd_safetensors_write(at("head.safetensors"), &t, 1, NULL, &err));
    assert_ok(kd_teacher_head_open(&head, at("head.safetensors"), WIDTH, &err));
}

static int fresh(void **state) {
    (void)state;
    folder = unit_folder();
    arena = kd_arena_create();
    kd_log_set_level(KD_LOG_ERROR);
    write_head();
    return 0;
}
static int drop(void **state) {
    (void)state;
    kd_teacher_head_close(head);
    kd_arena_destroy(arena);
    free(folder);
    return 0;
}

/* kd-train's options, words between single spaces. */
static kd_train_config options(const char *words) {
    char *argv[60] = {"kd-train"}, *rest = kd_arena_strdup(arena, words);
    kd_train_config c = {0};
    int n = 1, json = 0;
    for (char *word; (word = strsep(&rest, " ")) != NULL;)
        if (word[0] != '\0')
            argv[n++] = word;
    assert_ok(kd_options_parse(&kd_train_program, &c, n, argv, &json, arena, &err));
    return c;
}

/* ---- every loss falls ---- */

/* What --loss is given with, and the names that its terms must have. The queue is as long as a batch, so that it holds the same rows in every step. */
static const struct {
    const char *options, *terms;
} losses[] = {
    {"--loss std-mse", "cls patch"},
    {"--loss mse", "patch_1 patch_2"},
    {"--loss kl-queue --queue-size 4", "global"},
    {"--loss kl-queue+intra --queue-size 4", "global local"},
    {"--loss mse-normalized", "cls patch"},
    {"--loss cosine", "cls patch"},
    {"--loss cos-sl1", "cls_cosine cls_smooth_l1 patch_cosine patch_smooth_l1"},
    {"--loss radio", "cls patch_cosine patch_smooth_l1"},
    {"--loss unic", "cls_cosine cls_smooth_l1 patch_cosine patch_smooth_l1"},
    {"--loss smooth-l1", "cls patch"},
    {"--loss gram", "patch"},
    {"--loss kl-logits", "logits"},
    {"--loss std-mse --gram-weight 0.5 --koleo-weight 0.1", "cls patch gram koleo"},
    {"--loss none --pair teacher=cls,loss=cosine:0.9+smooth-l1:0.1,head=mlp-gelu,hidden=16,weight=0.5 --pair teacher=patch:2,name=deep,head=mlp,hidden=16,weight=0.5", "pair1_cosine pair1_smooth_l1 deep"},
};

static kd_student *make_student(kd_backend *b, const char *model, const char *words, int height, int width) {
    const kd_recipe recipe = {.width = WIDTH, .grid_h = GRID_H, .grid_w = GRID_W, .layers = 2, .layer = {1, 2}, .features = 1u << KD_FEATURE_CLS | 1u << KD_FEATURE_PATCH, .targets = 1};
    const kd_loss_offer offer = {.recipe = &recipe, .cache = "photos.kdc", .images = 100, .classes = CLASSES};
    char text[600];
    kd_loss loss;
    kd_student *s;
    snprintf(text, sizeof text, "--cache c --images i --out o --student %s --teacher-layer 1 --batch-size 4 %s", model, words);
    kd_train_config c = options(text);
    assert_ok(kd_loss_from_config(&loss, &c, &offer, &err));
    kd_student_spec spec = {.name = model, .batch = BATCH, .seed = 5, .config = &c, .loss = &loss, .teacher_head = head, .views = 1,
                            .view = {{.image_h = height, .image_w = width, .width = WIDTH, .grid_h = GRID_H, .grid_w = GRID_W}}};
    assert_ok(kd_student_create(&s, b, &spec, &err));
    return s;
}

/* Fills the batch of a step: pixels and, for each pair, targets that its feature and layer name. */
static void put_batch(kd_student *s, int step) {
    static uint8_t pixels[BATCH * 64 * 96 * 3];
    static float target[KD_MAX_PAIRS][BATCH * GRID_H * GRID_W * WIDTH];
    size_t pixel_row = (size_t)(s->program[0].view.image_h * s->program[0].view.image_w * 3);
    formula_pictures(pixels, sizeof pixels);
    for (int i = 0; i < s->loss.pairs; i++) {
        char name[64];
        snprintf(name, sizeof name, "%d/%u/%d", (int)s->loss.pair[i].feature, s->loss.pair[i].layer, step);
        formula_targets(target[i], name, BATCH * GRID_H * GRID_W * WIDTH);
    }
    for (int row = 0; row < BATCH; row++) {
        kd_sample sample = {.pixels = pixels + (size_t)(row + step % 2) % BATCH * pixel_row};
        for (int i = 0; i < s->loss.pairs; i++)
            sample.target[i] = target[i] + row * (kd_pair_is_grid(&s->loss.pair[i]) ? GRID_H * GRID_W * WIDTH : WIDTH);
        assert_ok(kd_student_put(s, 0, row, &sample, &err));
    }
}

static void check_names(const kd_student *s, const char *names) {
    char all[400] = "", output[100];
    kd_tdesc desc;
    for (int i = 0; i < s->loss.terms; i++) {
        snprintf(all + strlen(all), sizeof all - strlen(all), "%s%s", i > 0 ? " " : "", s->loss.term[i].name);
        snprintf(output, sizeof output, "loss.%s", s->loss.term[i].name);
        assert_non_null(kd_exec_output(s->program[0].train, output, &desc));
    }
    assert_string_equal(all, names);
}

static void every_loss_falls(const char *device, const char *model, int height, int width) {
    kd_backend *b;
    if (kd_backend_open(&b, device, 2, &err) != KD_OK) {
        print_message("skipped: %s\n", err.msg);
        skip();
    }
    for (size_t k = 0; k < sizeof losses / sizeof losses[0]; k++) {
        kd_student *s = make_student(b, model, losses[k].options, height, width);
        kd_step_result first = {0}, x = {0};
        check_names(s, losses[k].terms);
        for (int step = 0; step < STEPS; step++) {
            put_batch(s, 0);
            assert_ok(kd_step_run(s, 2e-3, 0, &x, &err));
            first = step == 0 ? x : first;
            double sum = 0;
            for (int i = 0; i < s->loss.terms; i++)
                sum += s->loss.term[i].weight * x.term[i];
            assert_true(fabs(sum - x.loss) <= 1e-5 * fabs(sum));
            assert_true(x.grad_norm > 0);
        }
        if (!(x.loss < first.loss))
            fail_msg("%s, %s: the loss is %g after %d steps and was %g", model, losses[k].options, x.loss, STEPS, first.loss);
        kd_student_destroy(s);
    }
    kd_backend_close(b);
}

static void every_loss_falls_with_a_vit(void **state) {
    (void)state;
    every_loss_falls("ref", "dinov2_w64_d1", 28, 42);
}
static void every_loss_falls_with_a_vit_on_cpu(void **state) {
    (void)state;
    every_loss_falls("cpu", "dinov2_w64_d1", 28, 42);
}
static void every_loss_falls_with_a_cnn_on_cpu(void **state) {
    (void)state;
    every_loss_falls("cpu", "mobilenet_v3_small", 64, 96); /* 2 x 3: a map of one point has no gram matrix */
}

/* ---- features that a student hasn't ---- */

static kd_status create_with(kd_backend *b, const char *pair, kd_patch_offer offer) {
    const kd_recipe recipe = {.width = WIDTH, .grid_h = GRID_H, .grid_w = GRID_W, .layers = 1, .layer = {1}, .features = 1u << KD_FEATURE_CLS | 1u << KD_FEATURE_PATCH, .targets = 1};
    const kd_loss_offer of = {.recipe = &recipe, .cache = "photos.kdc", .images = 100};
    char text[300];
    kd_loss loss;
    kd_student *s;
    snprintf(text, sizeof text, "--cache c --images i --out o --student mobilenet_v3_small --teacher-layer 1 --loss none --pair %s", pair);
    kd_train_config c = options(text);
    assert_ok(kd_loss_from_config(&loss, &c, &of, &err));
    kd_student_spec spec = {.name = "mobilenet_v3_small", .batch = 2, .config = &c, .loss = &loss, .views = 1,
                            .view = {{.image_h = 64, .image_w = 96, .width = WIDTH, .grid_h = GRID_H, .grid_w = GRID_W, .offer = offer}}};
    kd_status status = kd_student_create(&s, b, &spec, &err);
    kd_student_destroy(s);
    return status;
}

static void a_feature_that_a_student_lacks_is_refused_with_those_that_it_has(void **state) {
    (void)state;
    static const kd_target full = {KD_TARGET_FULL, 0, 0}, adjoint = {KD_TARGET_ADJOINT, 2, 3};
    const kd_patch_offer any = {"photos.kdc", &full, 1}, only_adjoint = {"photos.kdc", &adjoint, 1};
    kd_backend *b;
    assert_ok(kd_backend_open(&b, "ref", 1, &err));
    assert_int_equal(create_with(b, "student=layer9,teacher=patch", any), KD_EUSAGE);
    assert_contains(err.msg, "pair pair1: \"layer9\" isn't a feature of mobilenet_v3_small that can learn patches; it has map, ");
    assert_contains(err.msg, "features.8");
    assert_int_equal(create_with(b, "student=layer9,teacher=patch", only_adjoint), KD_EUSAGE); /* and not that its map doesn't fit */
    assert_contains(err.msg, "isn't a feature of mobilenet_v3_small");
    assert_int_equal(create_with(b, "student=cls,teacher=patch", any), KD_EUSAGE);
    assert_int_equal(create_with(b, "student=mean,teacher=patch", any), KD_EUSAGE); /* one vector can't be a grid */
    assert_contains(err.msg, "\"mean\" isn't a feature of mobilenet_v3_small that can learn patches");
    assert_int_equal(create_with(b, "student=layer9,teacher=cls", any), KD_EUSAGE);
    assert_contains(err.msg, "can learn one vector; it has cls, pooled, mean, ");
    assert_ok(create_with(b, "student=features.8,teacher=patch", any));
    assert_ok(create_with(b, "student=features.8,teacher=cls", any));
    assert_ok(create_with(b, "student=mean,teacher=cls", any));
    assert_int_equal(create_with(b, "student=features.8,teacher=patch", only_adjoint), KD_EUSAGE); /* its map is 4 x 6 */
    assert_contains(err.msg, "its feature map at 64x96 px is 4x6");
    assert_ok(create_with(b, "teacher=patch", only_adjoint));
    assert_int_equal(create_with(b, "name=mine,teacher=patch,loss=mse+cosine", only_adjoint), KD_EUSAGE);
    assert_contains(err.msg, "--loss none: pair mine compares single patch tokens (cosine)");
    kd_backend_close(b);
}

/* ---- validation ---- */

enum { IMAGES = 12, VAL_BATCH = 5, LARGEST = GRID_H * GRID_W * WIDTH };

/* Predictions and targets of one pair on all images, and what is known of its targets. */
typedef struct seen {
    float pred[IMAGES][LARGEST], target[IMAGES][LARGEST];
    size_t tokens;     /* of an image */
    const float *mean; /* what centring takes off */
} seen;

static void look(seen *x, kd_student *s, kd_replay *replay, int pair) {
    kd_replay_item items[IMAGES];
    int place = s->program[0].sample[pair];
    char output[100];
    kd_sample sample;
    x->tokens = kd_pair_is_grid(&s->loss.pair[pair]) ? GRID_H * GRID_W : 1;
    x->mean = kd_replay_target_at(replay, place)->raw ? kd_replay_target_at(replay, place)->mean : NULL;
    snprintf(output, sizeof output, "pred.%s", s->loss.pair[pair].name);
    for (uint32_t i = 0; i < IMAGES; i++)
        items[i] = (kd_replay_item){.image = i};
    assert_ok(kd_replay_begin(replay, items, IMAGES, &err));
    for (int i = 0; i < IMAGES; i++) { /* one by one, in every row: nothing of another image may matter */
        assert_ok(kd_replay_next(replay, &sample, &err));
        for (int row = 0; row < VAL_BATCH; row++)
            assert_ok(kd_student_show(s, row, &sample, &err));
        assert_ok(kd_exec_forward(s->infer, &err));
        assert_ok(kd_exec_download(s->infer, output, 1, x->pred[i], &err));
        memcpy(x->target[i], sample.target[place], x->tokens * WIDTH * sizeof(float));
        kd_replay_release(replay, &sample);
    }
    kd_replay_end(replay);
}

static double norm_of(const float *v) {
    double sum = 0;
    for (int c = 0; c < WIDTH; c++)
        sum += (double)v[c] * (double)v[c];
    return sqrt(sum);
}

/* 1 - squared error / variance around each channel's mean. */
static double plain_r2(const seen *x) {
    double n = (double)(IMAGES * x->tokens), error = 0, variance = 0;
    for (int c = 0; c < WIDTH; c++) {
        double mean = 0;
        for (int i = 0; i < IMAGES; i++)
            for (size_t t = 0; t < x->tokens; t++)
                mean += (double)x->target[i][t * WIDTH + (size_t)c] / n;
        for (int i = 0; i < IMAGES; i++)
            for (size_t t = 0; t < x->tokens; t++) {
                double v = (double)x->target[i][t * WIDTH + (size_t)c], p = (double)x->pred[i][t * WIDTH + (size_t)c];
                error += (p - v) * (p - v);
                variance += (v - mean) * (v - mean);
            }
    }
    return 1 - error / variance;
}

/* Mean over tokens of the cosine of what is left when the mean is off both; stretched: the prediction has the target's length first. */
static double plain_cosine(const seen *x, int stretched) {
    double sum = 0;
    for (int i = 0; i < IMAGES; i++)
        for (size_t t = 0; t < x->tokens; t++) {
            const float *p = &x->pred[i][t * WIDTH], *v = &x->target[i][t * WIDTH];
            double scale = stretched ? norm_of(v) / norm_of(p) : 1, pp = 0, vv = 0, pv = 0;
            for (int c = 0; c < WIDTH; c++) {
                double m = x->mean != NULL ? (double)x->mean[c] : 0, a = scale * (double)p[c] - m, b = (double)v[c] - m;
                pp += a * a;
                vv += b * b;
                pv += a * b;
            }
            sum += pv / sqrt(pp * vv);
        }
    return sum / (double)(IMAGES * x->tokens);
}

/* One image's value of a term that is a mean over tokens. */
static double plain_image(const seen *x, int i, kd_term_kind kind, int unit, double beta) {
    double sum = 0;
    for (size_t t = 0; t < x->tokens; t++) {
        const float *p = &x->pred[i][t * WIDTH], *v = &x->target[i][t * WIDTH];
        double np = norm_of(p), nv = norm_of(v), dot = 0;
        for (int c = 0; c < WIDTH; c++) {
            double a = (double)p[c] / (unit ? np : 1), b = (double)v[c] / (unit ? nv : 1), e = fabs(a - b);
            dot += (double)p[c] * (double)v[c];
            sum += kind == KD_TERM_MSE ? e * e / WIDTH : kind == KD_TERM_SMOOTH_L1 ? (e < beta ? e * e / (2 * beta) : e - beta / 2) / WIDTH : 0;
        }
        sum += kind == KD_TERM_COSINE ? 1 - dot / (np * nv) : 0;
    }
    return sum / (double)x->tokens;
}

/* The last of the three batches of 5 is filled up with images 0, 1, 2. */
static double plain_term(const seen *x, kd_term_kind kind, int unit, double beta) {
    double sum = 0;
    for (int i = 0; i < 3 * VAL_BATCH; i++)
        sum += plain_image(x, i % IMAGES, kind, unit, beta) / (3 * VAL_BATCH);
    return sum;
}

static void near(const char *loss, const char *what, double got, double want) {
    if (!(fabs(got - want) <= 2e-5 * fmax(1, fabs(want))))
        fail_msg("%s: %s is %.8g and not %.8g", loss, what, got, want);
}

/* What means something: 'r' R2 and cosine, 'c' the cosine of directions, '-' nothing. */
static const struct {
    const char *options;
    char cls, patch;
} validated[] = {
    {"--loss std-mse", 'r', 'r'},          {"--loss mse", '-', 'r'},
    {"--loss cosine", 'c', 'c'},           {"--loss mse-normalized", 'c', 'c'},
    {"--loss cos-sl1", 'r', 'r'},          {"--loss smooth-l1 --beta 0.25", 'r', 'r'},
    {"--loss kl-queue --queue-size 6", 'c', '-'}, {"--loss kl-queue+intra --queue-size 6", 'c', '-'},
    {"--loss gram", '-', '-'},             {"--loss kl-logits --teacher-head HEAD", '-', '-'},
    {"--loss none --pair student=mean,teacher=cls,scaling=raw --pair teacher=patch,loss=kl-intra --pair teacher=patch,loss=cosine", 'r', 'c'},
};

static void check_feature(const char *loss, const kd_student *s, kd_replay *replay, const kd_val_result *r, kd_feature f, char means) {
    static seen x;
    int regresses, pair = kd_loss_representative(&s->loss, f, &regresses);
    if (means == '-') {
        assert_true(isnan(r->r2[f]) && isnan(r->cosine[f]));
        return;
    }
    assert_true(pair >= 0);
    look(&x, (kd_student *)(uintptr_t)s, replay, pair);
    if (means == 'r')
        near(loss, "R2", r->r2[f], plain_r2(&x));
    else
        assert_true(isnan(r->r2[f]));
    near(loss, "the cosine", r->cosine[f], plain_cosine(&x, means == 'c'));
}

static void check_terms(const char *loss, kd_student *s, kd_replay *replay, const kd_val_result *r) {
    static seen x;
    double sum = 0;
    for (int i = 0; i < s->loss.terms; i++) {
        const kd_term *t = &s->loss.term[i];
        sum += t->weight * r->term[i];
        if (t->kind != KD_TERM_MSE && t->kind != KD_TERM_COSINE && t->kind != KD_TERM_SMOOTH_L1)
            continue;
        look(&x, s, replay, t->pair);
        near(loss, t->name, r->term[i], plain_term(&x, t->kind, s->loss.pair[t->pair].scaling == KD_SCALING_UNIT, t->beta));
    }
    near(loss, "the loss", r->loss, sum);
}

static void validation_says_what_a_plain_recomputation_says(void **state) {
    (void)state;
    kd_replay_item items[IMAGES];
    tf_pictures(at("pictures"), IMAGES);
    kd_cache_close(tf_cache(at("x.kdc"), at("pictures"), IMAGES, 2, 1, NULL));
    for (uint32_t i = 0; i < IMAGES; i++)
        items[i] = (kd_replay_item){.image = i};
    for (size_t k = 0; k < sizeof validated / sizeof validated[0]; k++) {
        char words[2000], with[400], *place;
        kd_setup s = {.lock = -1};
        kd_val_result r;
        snprintf(with, sizeof with, "%s", validated[k].options);
        if ((place = strstr(with, "HEAD")) != NULL)
            snprintf(place, sizeof with - (size_t)(place - with), "%s", at("head.safetensors"));
        snprintf(words, sizeof words, "--cache %s --images %s --student dinov2_w64_d1 --student-size 14x28 --out %s --device ref --batch-size 5 --epochs 1 --threads 2 --val-fraction 0.1 %s", at("x.kdc"),
                 at("pictures"), at("run"), with);
        kd_train_config c = options(words);
        assert_ok(kd_setup_open(&s, &c, arena, &err));
        assert_ok(kd_validate(&r, s.students, 1, s.groups.group[0].replay, items, IMAGES, NULL, &err));
        check_feature(with, s.students[0], s.groups.group[0].replay, &r, KD_FEATURE_CLS, validated[k].cls);
        check_feature(with, s.students[0], s.groups.group[0].replay, &r, KD_FEATURE_PATCH, validated[k].patch);
        check_terms(with, s.students[0], s.groups.group[0].replay, &r);
        kd_setup_close(&s);
    }
}

/* ---- queues in checkpoints ---- */

static void read_queue(float *out, size_t floats, const kd_student *s) {
    for (int i = 0; i < kd_params_count(s->params); i++) {
        kd_param_info info = kd_params_info(s->params, i);
        if (strstr(info.name, ".queue") == NULL)
            continue;
        assert_true(info.is_state && info.count == floats);
        assert_ok(kd_params_get(s->params, i, out, &err));
        return;
    }
    fail_msg("there is no queue");
}

static double take_step(kd_student *s, int step) {
    kd_step_result x;
    put_batch(s, step);
    assert_ok(kd_step_run(s, 1e-3, 1, &x, &err));
    return x.loss;
}

static void a_queue_goes_on_where_a_checkpoint_left_it(void **state) {
    (void)state;
    enum { ROWS = 11, FLOATS = ROWS * WIDTH };
    static const char words[] = "--loss kl-queue+intra --queue-size 11";
    float before[FLOATS], after[FLOATS];
    kd_backend *b;
    kd_checkpoint *c;
    json_t *run = json_pack("{s:i}", "step", 2);
    assert_ok(kd_backend_open(&b, "ref", 1, &err));
    kd_student *s = make_student(b, "dinov2_w64_d1", words, 28, 42), *other = make_student(b, "dinov2_w64_d1", words, 28, 42);
    take_step(s, 0);
    take_step(s, 1);
    assert_ok(kd_checkpoint_write(at("latest.kdt"), &s, 1, run, 1, &err));
    read_queue(before, FLOATS, s);
    for (int row = 0; row < 2 * BATCH; row++) /* two batches are in it, and nothing yet behind them */
        assert_true(fabs(norm_of(before + row * WIDTH) - 1) < 1e-5);
    for (int i = 2 * BATCH * WIDTH; i < FLOATS; i++)
        assert_true(before[i] == 0);
    double third = take_step(s, 2), fourth = take_step(s, 3);

    take_step(other, 7); /* a queue of its own, which must not stay */
    assert_ok(kd_checkpoint_open(&c, at("latest.kdt"), &err));
    assert_ok(kd_checkpoint_restore(c, other, &err));
    kd_checkpoint_close(c);
    read_queue(after, FLOATS, other);
    assert_memory_equal(before, after, sizeof before);
    double again = take_step(other, 2), on = take_step(other, 3);
    assert_memory_equal(&again, &third, sizeof third);
    assert_memory_equal(&on, &fourth, sizeof fourth);
    json_decref(run);
    kd_student_destroy(s);
    kd_student_destroy(other);
    kd_backend_close(b);
}

int main(void) {
#define T(f) cmocka_unit_test_setup_teardown(f, fresh, drop)
    const struct CMUnitTest tests[] = {
        T(every_loss_falls_with_a_vit), T(every_loss_falls_with_a_vit_on_cpu), T(every_loss_falls_with_a_cnn_on_cpu), T(a_feature_that_a_student_lacks_is_refused_with_those_that_it_has),
        T(validation_says_what_a_plain_recomputation_says), T(a_queue_goes_on_where_a_checkpoint_left_it),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

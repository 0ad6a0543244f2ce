/* YOLO backbones against ultralytics: maps, one training step, names, sizes; weight files of every kind that ultralytics leaves. */
#include "tests/unit/model_fixture.h"

#include <stdlib.h>

#include "common/weights/safetensors.h"

static const char *const names[] = {"yolov8n", "yolov8s", "yolov8m", "yolov8l", "yolov8x", "yolo11n", "yolo11s"};
enum { NAMES = sizeof names / sizeof *names, SIDE = 64, LARGEST = 8 << 20 /* floats of the largest parameter, and of any map at SIDE */ };

static void find(kd_model_info *m, const char *name) {
    assert_ok(kd_model_find(m, name, NULL, &err));
    assert_int_equal(m->kind, KD_MODEL_YOLO);
}

static kd_graph *graph_of(const char *name) {
    kd_model_info m;
    kd_graph *g = NULL;
    find(&m, name);
    assert_ok(kd_model_graph(&g, &m, &err));
    return g;
}

/* ---- maps ---- */

typedef struct network {
    kd_model_info m;
    kd_graph *g;
    kd_model_taps taps;
    kd_params *p;
    kd_exec *e;
} network;

static void open_network(network *n, kd_backend *b, const char *name, kd_dtype precision, float *buf) {
    find(&n->m, name);
    n->g = kd_graph_create();
    n->taps = kd_model_build(n->g, &n->m, SIDE, SIDE);
    for (int i = 0; i < n->taps.maps; i++)
        kd_graph_output(n->g, kd_graph_as_f32(n->g, n->taps.tap[i].val), n->taps.tap[i].name);
    assert_ok(kd_params_create(&n->p, n->g, b, &err));
    assert_ok(formula_params(n->p, buf, &err));
    assert_ok(kd_exec_create(&n->e, n->g, n->p, &(kd_exec_config){.batch = 1, .precision = precision}, &err));
}

static void close_network(network *n) {
    kd_exec_destroy(n->e);
    kd_params_destroy(n->p);
    kd_graph_destroy(n->g);
}

/* sample() of generate.py, in place. */
static void sample(float *x, size_t n) {
    const float picked[4] = {x[0], x[n / 3], x[2 * n / 3], x[n - 1]};
    double sum = 0;
    for (size_t i = 0; i < n; i++)
        sum += (double)x[i] * (double)x[i];
    x[0] = (float)sqrt(sum);
    memcpy(x + 1, picked, sizeof picked);
}

static void check_maps(const kd_weights *w, network *n, float *buf, kd_tolerance tol) {
    static uint8_t pixels[SIDE * SIDE * 3];
    formula_pictures(pixels, sizeof pixels);
    assert_ok(kd_exec_upload(n->e, "images", pixels, &err));
    assert_ok(kd_exec_forward(n->e, &err));
    assert_int_equal(n->taps.maps, 3);
    for (int i = 0; i < 3; i++) {
        const kd_model_tap *t = &n->taps.tap[i];
        size_t count = (size_t)(t->h * t->w * t->channels);
        char key[128];
        snprintf(key, sizeof key, "%s/%s", n->m.name, t->name);
        assert_int_equal(t->h, SIDE >> (3 + i));
        assert_ok(kd_exec_download(n->e, t->name, 1, buf, &err));
        int k = kd_weights_find(w, key);
        assert_true(k >= 0);
        if (kd_weights_info(w, k).rank == 1) {
            sample(buf, count);
            count = 5;
        }
        check_golden(w, key, buf, count, tol);
    }
    /* The last one is also the map that students learn by, and its mean is the pooled feature. */
    assert_int_equal(n->taps.map_h, SIDE / 32);
    assert_int_equal(n->taps.tap[2].channels, n->m.width);
}

/* Every map of every backbone; on ref, which takes seconds for the large ones, those of n. */
static void the_maps_that_detection_uses_equal_ultralytics(void **state) {
    (void)state;
    kd_weights *w = NULL;
    float *buf = NULL;
    assert_ok(kd_alloc_array(&buf, LARGEST, sizeof *buf, &err));
    assert_ok(kd_weights_open(&w, GOLDEN "yolo_maps.safetensors", &err));
    for (int d = 0; d < DEVICES; d++) {
        kd_backend *b = try_open(devices[d]);
        for (int i = 0; b && i < NAMES; i++) {
            network n;
            if (d == 0 && names[i][strlen(names[i]) - 1] != 'n')
                continue;
            open_network(&n, b, names[i], KD_F32, buf);
            /* Goldens are f64. Measured: ref 6e-8 in values up to 1, cpu 2e-7. */
            double bound = d == 0 ? 1e-6 : 3e-6;
            check_maps(w, &n, buf, (kd_tolerance){.abs = bound, .rel = bound});
            close_network(&n);
        }
        kd_backend_close(b);
    }
    kd_free(buf);
    kd_weights_close(w);
}

/* bf16 against the f64 goldens: rounding of 2^-9 per layer. */
static void bf16_maps_stay_close(void **state) {
    (void)state;
    kd_weights *w = NULL;
    float *buf = NULL;
    assert_ok(kd_alloc_array(&buf, LARGEST, sizeof *buf, &err));
    assert_ok(kd_weights_open(&w, GOLDEN "yolo_maps.safetensors", &err));
    for (int d = 0; d < DEVICES; d++) {
        kd_backend *b = try_open(devices[d]);
        network n;
        if (b && b->v->check_bf16(b, &err) == KD_OK) {
            open_network(&n, b, "yolo11n", KD_BF16, buf);
            check_maps(w, &n, buf, (kd_tolerance){.abs = 0.02, .rel = 0.05, .min_cosine = 0.9999});
            close_network(&n);
        }
        kd_backend_close(b);
    }
    kd_free(buf);
    kd_weights_close(w);
}

/* ---- one training step ---- */

static void training_step(const char *name, const char *file) {
    step_case c = {.file = file, .size = 64, .batch = 3, .target_side = 4};
    find(&c.model, name);
    /* Measured: ref outputs 2e-5, gradients 1e-5 of their norm; cpu 8e-5 and 2e-5: the last batch norms see 12 values. */
    check_step(&c, 1e-4, 3e-4);
}

static void yolov8n_training_step_equals_ultralytics(void **state) {
    (void)state;
    training_step("yolov8n", GOLDEN "train_yolov8n.safetensors");
}

static void yolo11n_training_step_equals_ultralytics(void **state) {
    (void)state;
    training_step("yolo11n", GOLDEN "train_yolo11n.safetensors");
}

/* The last batch norms see 12 values, which magnifies bf16's rounding: PyTorch's autocast is as far from the goldens (cosine of the map 0.974). */
static void bf16_training_step_is_as_close_as_autocasts(void **state) {
    (void)state;
    step_case c = {.file = GOLDEN "train_yolo11n.safetensors", .size = 64, .batch = 3, .target_side = 4};
    kd_weights *w = NULL;
    find(&c.model, "yolo11n");
    assert_ok(kd_weights_open(&w, c.file, &err));
    for (int d = 0; d < DEVICES; d++) {
        step s = {.c = &c, .b = try_open(devices[d])};
        if (!s.b || s.b->v->check_bf16(s.b, &err) != KD_OK) {
            kd_backend_close(s.b);
            continue;
        }
        step_run(&s, KD_BF16);
        check_output(&s, w, "pooled", (kd_tolerance){.abs = 1, .min_cosine = 0.97});
        check_output(&s, w, "map", (kd_tolerance){.abs = 3, .min_cosine = 0.95});
        check_output(&s, w, "loss_patch", (kd_tolerance){.rel = 0.2});
        step_drop(&s);
    }
    kd_weights_close(w);
}

/* ---- the registry ---- */

static void backbones_have_ultralytics_number_of_tensors_and_parameters(void **state) {
    (void)state;
    kd_weights *w = NULL;
    assert_ok(kd_weights_open(&w, GOLDEN "yolo_maps.safetensors", &err));
    for (int i = 0; i < NAMES; i++) {
        kd_model_info m;
        kd_model_facts f;
        int64_t want[2];
        char key[128];
        snprintf(key, sizeof key, "%s/parameters", names[i]);
        assert_ok(kd_weights_read_i64(w, kd_weights_find(w, key), want, 2, &err));
        find(&m, names[i]);
        assert_ok(kd_model_measure(&f, &m, 640, 640, &err));
        assert_int_equal(f.parameters, want[0]);
        kd_graph *g = graph_of(names[i]);
        assert_int_equal(g->param_count, want[1]);
        kd_graph_destroy(g);
    }
    kd_weights_close(w);
}

/* Too small to show in features of ordinary size, so looked up (utils/torch_utils.py initialize_weights). */
static void batch_norms_have_ultralytics_constants(void **state) {
    (void)state;
    kd_graph *g = graph_of("yolo11n");
    int seen = 0;
    for (int k = 0; k < g->node_count; k++) {
        const kd_op_desc *d = &g->nodes[k].desc;
        assert_true(d->kind != KD_OP_BATCH_NORM || (d->eps == 1e-3f && d->momentum == 0.03f));
        seen += d->kind == KD_OP_BATCH_NORM;
    }
    assert_int_equal(seen, 40);
    kd_graph_destroy(g);
}

static void sizes_are_multiples_of_32(void **state) {
    (void)state;
    static const int good[] = {32, 64, 224, 320, 640, 1280}, bad[] = {0, 31, 100, 208, 630, 9000};
    kd_model_info m;
    for (int i = 0; i < NAMES; i++) {
        find(&m, names[i]);
        assert_int_equal(m.usual, 640);
        for (int k = 0; k < 6; k++) {
            assert_ok(kd_model_check_size(&m, good[k], good[k], &err));
            assert_int_equal(kd_model_check_size(&m, bad[k], bad[k], &err), KD_EUSAGE);
        }
        assert_ok(kd_model_check_size(&m, 224, 320, &err));
    }
    assert_int_equal(kd_model_check_size(&m, 210, 210, &err), KD_EUSAGE);
    assert_contains(err.msg, "the nearest is 224");
}

static void pixels_are_divided_by_255_and_nothing_else(void **state) {
    (void)state;
    kd_model_info m;
    find(&m, "yolov8n");
    for (int i = 0; i < 3; i++)
        assert_true(m.mean[i] == 0.0f && m.std[i] == 1.0f);
    assert_string_equal(m.library, "ultralytics");
}

static void unknown_names_get_the_nearest(void **state) {
    (void)state;
    kd_model_info m;
    assert_int_equal(kd_model_find(&m, "yolov8", NULL, &err), KD_EUSAGE);
    assert_contains(err.msg, "yolov8");
    assert_int_equal(kd_model_find(&m, "yolov11n", NULL, &err), KD_EUSAGE);
    assert_contains(err.msg, "yolo11n");
}

/* torch's default for a convolution: uniform within 1 / sqrt(fan_in). */
static void convolutions_start_as_torchs(void **state) {
    (void)state;
    kd_graph *g = graph_of("yolo11n");
    kd_backend *b = open_ref();
    kd_params *p = NULL;
    float *x = NULL;
    int seen = 0;
    assert_ok(kd_alloc_array(&x, LARGEST, sizeof *x, &err));
    assert_ok(kd_params_create(&p, g, b, &err));
    assert_ok(kd_params_init(p, 7, &err));
    for (int i = 0; i < kd_params_count(p); i++) {
        kd_param_info info = kd_params_info(p, i);
        double bound = 0, largest = 0, sum = 0;
        if (info.rank != 4)
            continue;
        assert_ok(kd_params_get(p, i, x, &err));
        bound = 1 / sqrt((double)info.count / (double)info.shape[0]);
        for (size_t k = 0; k < info.count; k++) {
            largest = fmax(largest, fabs((double)x[k]));
            sum += (double)x[k] * (double)x[k];
        }
        assert_true(largest <= bound && largest > 0.97 * bound);
        assert_true(fabs(sum / (double)info.count / (bound * bound / 3) - 1) < 0.2);
        seen++;
    }
    assert_int_equal(seen, 40);
    kd_free(x);
    kd_params_destroy(p);
    kd_backend_close(b);
    kd_graph_destroy(g);
}

/* ---- weight files ---- */

enum { TENSORS = 400, COUNTER = 77 };

/* How a file differs from the backbone's own state_dict. */
typedef struct file_kind {
    const char *name;   /* of the model whose tensors it has */
    int drop;           /* bytes that are taken from the front of every name */
    const char *prefix; /* what is put there */
    const char *without, *reshaped; /* names of the backbone */
    const char *extra[3];           /* tensors of the neck and the head */
    int shapes_only;                /* zeros of one byte each */
} file_kind;

static const void *values_of(const file_kind *f, const kd_param_info *p) {
    float *x = NULL;
    assert_ok(kd_alloc_array(&x, p->count + 1, sizeof *x, &err));
    if (p->is_counter)
        *(int64_t *)(void *)x = COUNTER;
    else if (!f->shapes_only)
        formula_fill(x, p);
    return x;
}

/* Writes such a file with formula values, by the backbone's own names; path gets its place. */
static void write_file(const file_kind *f, char path[4200]) {
    static kd_tensor t[TENSORS];
    static char name[TENSORS][160];
    char *folder = unit_folder();
    kd_graph *g = graph_of(f->name);
    size_t n = 0;
    snprintf(path, 4200, "%s/yolo.safetensors", folder);
    for (int i = 0; i < g->param_count; i++) {
        kd_param_info p = g->params[i].info;
        if (f->without && strcmp(p.name, f->without) == 0)
            continue;
        snprintf(name[n], sizeof name[n], "%s%s", f->prefix, p.name + f->drop);
        t[n] = (kd_tensor){.name = name[n], .dtype = p.is_counter ? KD_I64 : f->shapes_only ? KD_U8 : KD_F32, .rank = p.rank, .data = values_of(f, &p)};
        for (int k = 0; k < p.rank; k++)
            t[n].shape[k] = p.shape[k];
        if (f->reshaped && strcmp(p.name, f->reshaped) == 0)
            t[n].shape[0]--;
        n++;
    }
    size_t owned = n;
    for (int k = 0; k < 3 && f->extra[k]; k++) {
        snprintf(name[n], sizeof name[n], "%s%s", f->prefix, f->extra[k] + f->drop);
        t[n] = t[0];
        t[n].name = name[n];
        n++;
    }
    assert_ok(kd_safetensors_write(path, t, n, NULL, &err));
    for (size_t i = 0; i < owned; i++)
        kd_free((void *)(uintptr_t)t[i].data);
    kd_graph_destroy(g);
    free(folder);
}

/* Finds and loads; compares every value with the formula. */
static kd_status load_file(const char *path, const char *name, const char *want) {
    kd_weights *w = NULL;
    kd_model_info m;
    kd_graph *g = NULL;
    kd_params *p = NULL;
    float *x = NULL, *y = NULL;
    kd_backend *b = open_ref();
    assert_ok(kd_weights_open(&w, path, &err));
    kd_status status = kd_model_find(&m, name, w, &err);
    if (status == KD_OK) {
        assert_string_equal(m.name, want);
        assert_ok(kd_model_graph(&g, &m, &err));
        assert_ok(kd_params_create(&p, g, b, &err));
        status = kd_model_load(p, &m, w, 64, 64, &err);
    }
    if (status == KD_OK) {
        assert_ok(kd_alloc_array(&x, LARGEST, sizeof *x, &err));
        assert_ok(kd_alloc_array(&y, LARGEST, sizeof *y, &err));
        for (int i = 0; i < kd_params_count(p); i++) {
            kd_param_info info = kd_params_info(p, i);
            if (info.is_counter)
                continue;
            formula_fill(x, &info);
            assert_ok(kd_params_get(p, i, y, &err));
            assert_memory_equal(x, y, info.count * sizeof *x);
        }
        assert_int_equal(kd_params_counter(p), COUNTER);
    }
    kd_free(x);
    kd_free(y);
    kd_params_destroy(p);
    kd_graph_destroy(g);
    kd_weights_close(w);
    kd_backend_close(b);
    return status;
}

/* A whole model's state_dict, that of the YOLO object around it, a wrapped one, the backbone's alone, and what is left of it by slicing. */
static void files_of_every_kind_are_loaded(void **state) {
    (void)state;
    static const file_kind kinds[] = {
        {.name = "yolov8n", .prefix = "", .extra = {"model.12.cv1.conv.weight", "model.12.m.0.cv1.conv.weight", "model.22.cv2.0.0.conv.weight"}},
        {.name = "yolov8n", .prefix = "model.", .extra = {"model.12.m.0.cv1.conv.weight"}},
        {.name = "yolov8n", .prefix = "state_dict.module."},
        {.name = "yolov8n", .prefix = "", .drop = 6},
        {.name = "yolov8s", .prefix = ""},
        {.name = "yolo11n", .prefix = "", .extra = {"model.13.m.0.cv1.conv.weight", "model.23.cv2.0.0.conv.weight"}},
        {.name = "yolo11n", .prefix = "", .drop = 6},
    };
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++) {
        char path[4200];
        write_file(&kinds[i], path);
        assert_ok(load_file(path, "auto", kinds[i].name));
        assert_ok(load_file(path, kinds[i].name, kinds[i].name));
    }
}

/* yolov8n_checkpoint.pt of yolo.py: element [o,...] of every tensor is o / 1024. */
static void an_ultralytics_checkpoint_is_loaded_as_it_is(void **state) {
    (void)state;
    kd_weights *w = NULL;
    kd_model_info m;
    kd_graph *g = NULL;
    kd_params *p = NULL;
    float *x = NULL;
    kd_backend *b = open_ref();
    assert_ok(kd_weights_open(&w, GOLDEN "yolov8n_checkpoint.pt", &err));
    assert_int_equal(kd_weights_count(w), 355);
    assert_ok(kd_model_find(&m, "auto", w, &err));
    assert_string_equal(m.name, "yolov8n");
    assert_ok(kd_model_graph(&g, &m, &err));
    assert_ok(kd_params_create(&p, g, b, &err));
    assert_ok(kd_model_load(p, &m, w, 224, 224, &err));
    assert_ok(kd_alloc_array(&x, LARGEST, sizeof *x, &err));
    for (int i = 0; i < kd_params_count(p); i++) {
        kd_param_info info = kd_params_info(p, i);
        if (info.is_counter)
            continue;
        size_t row = info.count / (size_t)info.shape[0];
        assert_ok(kd_params_get(p, i, x, &err));
        for (size_t k = 0; k < info.count; k++)
            assert_true(x[k] == (float)(k / row) / 1024);
    }
    assert_int_equal(kd_params_counter(p), 7);
    kd_free(x);
    kd_params_destroy(p);
    kd_graph_destroy(g);
    kd_weights_close(w);
    kd_backend_close(b);
}

static void each_scale_is_told_from_the_others(void **state) {
    (void)state;
    for (int i = 0; i < NAMES; i++) {
        char path[4200];
        kd_weights *w = NULL;
        kd_model_info m;
        write_file(&(file_kind){.name = names[i], .prefix = "", .shapes_only = 1}, path);
        assert_ok(kd_weights_open(&w, path, &err));
        assert_ok(kd_model_find(&m, "auto", w, &err));
        assert_string_equal(m.name, names[i]);
        const char *other = names[(i + 1) % NAMES];
        assert_int_equal(kd_model_find(&m, other, w, &err), KD_EUSAGE);
        assert_contains(err.msg, names[i]);
        assert_contains(err.msg, other);
        assert_int_equal(kd_model_find(&m, "resnet18", w, &err), KD_EUSAGE);
        kd_weights_close(w);
    }
}

static void bad_files_are_named_with_what_is_wrong(void **state) {
    (void)state;
    char path[4200];
    /* yolov8n-cls.pt has no SPPF; a fused model has no batch norms. */
    write_file(&(file_kind){.name = "yolov8n", .prefix = "", .without = "model.9.cv1.conv.weight"}, path);
    assert_int_equal(load_file(path, "yolov8n", "yolov8n"), KD_EFAIL);
    assert_contains(err.msg, "model.9.cv1.conv.weight is missing, and yolov8n needs it");
    write_file(&(file_kind){.name = "yolov8n", .prefix = "", .drop = 6, .without = "model.0.bn.weight"}, path);
    assert_int_equal(load_file(path, "yolov8n", "yolov8n"), KD_EFAIL);
    assert_contains(err.msg, "tensor 0.bn.weight is missing");
    write_file(&(file_kind){.name = "yolov8n", .prefix = "", .reshaped = "model.4.m.1.cv1.conv.weight"}, path);
    assert_int_equal(load_file(path, "yolov8n", "yolov8n"), KD_EFAIL);
    assert_contains(err.msg, "[31, 32, 3, 3]");
    /* Another width than any scale's. */
    write_file(&(file_kind){.name = "yolov8n", .prefix = "", .reshaped = "model.4.cv2.conv.weight"}, path);
    assert_int_equal(load_file(path, "auto", ""), KD_EUSAGE);
    assert_contains(err.msg, "none of yolov8n");
    /* YOLO26's backbone has YOLO11's tensors and another function. */
    write_file(&(file_kind){.name = "yolo11n", .prefix = "", .extra = {"model.23.one2one_cv2.0.0.conv.weight"}}, path);
    assert_int_equal(load_file(path, "yolo11n", ""), KD_EUSAGE);
    assert_contains(err.msg, "none of yolov8n");
}

/* The names and shapes that model.model[:10].load_state_dict({k[6:]: v}) expects are those of the goldens' gradients; all else is the counters and the normalisation. */
static void an_export_has_the_backbones_state_dict(void **state) {
    (void)state;
    kd_model_info m;
    kd_weights *w = NULL;
    kd_params *p = NULL;
    kd_graph *g = graph_of("yolov8n");
    kd_backend *b = open_ref();
    char *folder = unit_folder(), path[4200];
    find(&m, "yolov8n");
    snprintf(path, sizeof path, "%s/model.safetensors", folder);
    assert_ok(kd_params_create(&p, g, b, &err));
    assert_ok(kd_params_init(p, 3, &err));
    assert_ok(kd_model_export(p, &m, path, KD_F32, NULL, &err));
    assert_ok(kd_weights_open(&w, path, &err));
    assert_int_equal(kd_weights_count(w), 162);
    assert_true(kd_weights_find(w, "model.9.cv2.bn.num_batches_tracked") >= 0);
    assert_string_equal(json_string_value(json_object_get(kd_weights_metadata(w), "image_mean")), "[0, 0, 0]");
    assert_string_equal(json_string_value(json_object_get(kd_weights_metadata(w), "library")), "ultralytics");
    kd_weights *golden = NULL;
    assert_ok(kd_weights_open(&golden, GOLDEN "train_yolov8n.safetensors", &err));
    for (int i = 0; i < kd_weights_count(golden); i++) {
        const char *name = kd_weights_info(golden, i).name, *slash = strchr(name, '/');
        if (slash && strncmp(slash, "/head.", 6) != 0 && kd_weights_find(w, slash + 1) < 0)
            fail_msg("the export lacks %s", slash + 1);
    }
    kd_weights_close(golden);
    kd_weights_close(w);
    kd_params_destroy(p);
    kd_graph_destroy(g);
    kd_backend_close(b);
    free(folder);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_maps_that_detection_uses_equal_ultralytics),
        cmocka_unit_test(yolov8n_training_step_equals_ultralytics),
        cmocka_unit_test(yolo11n_training_step_equals_ultralytics),
        cmocka_unit_test(bf16_maps_stay_close),
        cmocka_unit_test(bf16_training_step_is_as_close_as_autocasts),
        cmocka_unit_test(backbones_have_ultralytics_number_of_tensors_and_parameters),
        cmocka_unit_test(batch_norms_have_ultralytics_constants),
        cmocka_unit_test(sizes_are_multiples_of_32),
        cmocka_unit_test(pixels_are_divided_by_255_and_nothing_else),
        cmocka_unit_test(unknown_names_get_the_nearest),
        cmocka_unit_test(convolutions_start_as_torchs),
        cmocka_unit_test(files_of_every_kind_are_loaded),
        cmocka_unit_test(an_ultralytics_checkpoint_is_loaded_as_it_is),
        cmocka_unit_test(each_scale_is_told_from_the_others),
        cmocka_unit_test(bad_files_are_named_with_what_is_wrong),
        cmocka_unit_test(an_export_has_the_backbones_state_dict),
    };
    return cmocka_run_group_tests_name("yolo", tests, NULL, NULL);
}

/* Models against PyTorch: features, losses and gradients of one training step, weight files, interpolated positions, export; names, sizes and bad files. */
#include "tests/unit/model_fixture.h"

#include <stdlib.h>

#include "common/image/augment.h"
#include "common/image/image.h"
#include "common/weights/safetensors.h"

/* Measured, largest of these four models: ref (f32 storage, f64 inside) outputs 4e-6, gradients 6e-7 of their norm; cpu (f32 throughout) 4e-5 and 8e-6, both in resnet18, whose last batch norms see
 * 12 values. */
static const double REF = 1e-5, CPU = 2e-4;

static kd_model_info vit_model(kd_vit_family family, int width, int depth, int patch, kd_ffn_kind ffn, int hidden) {
    kd_model_info m;
    assert_ok(kd_model_find(&m, family == KD_VIT_TIMM ? "vit_tiny_patch16_224" : "dinov2_w64_d1", NULL, &err));
    m.vit.width = m.width = width;
    m.vit.heads = width / 64;
    m.vit.depth = depth;
    m.vit.patch = m.multiple = m.smallest = patch;
    m.vit.ffn = ffn;
    m.vit.ffn_hidden = hidden;
    return m;
}

static void resnet18_training_step_equals_torchvision(void **state) {
    (void)state;
    step_case c = {.file = GOLDEN "train_resnet18.safetensors", .size = 48, .batch = 3, .target_side = 3};
    assert_ok(kd_model_find(&c.model, "resnet18", NULL, &err));
    check_step(&c, REF, CPU);
}

static void vit_training_step_equals_timm(void **state) {
    (void)state;
    step_case c = {.file = GOLDEN "train_timm.safetensors", .model = vit_model(KD_VIT_TIMM, 192, 3, 16, KD_FFN_GELU, 768), .size = 64, .batch = 2, .target_side = 4};
    check_step(&c, REF, CPU);
}

static void dinov2_training_step_equals_pytorch(void **state) {
    (void)state;
    step_case c = {.file = GOLDEN "train_dinov2.safetensors", .model = vit_model(KD_VIT_DINOV2, 128, 2, 14, KD_FFN_GELU, 512), .size = 42, .batch = 2, .target_side = 4};
    check_step(&c, REF, CPU);
}

static void swiglu_training_step_equals_pytorch(void **state) {
    (void)state;
    step_case c = {.file = GOLDEN "train_swiglu.safetensors", .model = vit_model(KD_VIT_DINOV2, 128, 2, 14, KD_FFN_SWIGLU, 88), .size = 42, .batch = 2, .target_side = 4};
    check_step(&c, REF, CPU);
}

/* bf16 against the f64 goldens: rounding of 2^-9 per layer, so cosines, not values. */
static void bf16_training_step_stays_close(void **state) {
    (void)state;
    step_case c = {.file = GOLDEN "train_timm.safetensors", .model = vit_model(KD_VIT_TIMM, 192, 3, 16, KD_FFN_GELU, 768), .size = 64, .batch = 2, .target_side = 4};
    kd_weights *w = NULL;
    assert_ok(kd_weights_open(&w, c.file, &err));
    for (int d = 0; d < DEVICES; d++) {
        step s = {.c = &c, .b = try_open(devices[d])};
        if (!s.b)
            continue;
        if (s.b->v->check_bf16(s.b, &err) != KD_OK) {
            kd_backend_close(s.b);
            continue;
        }
        step_run(&s, KD_BF16);
        kd_tolerance tol = {.abs = 0.15, .rel = 0.05, .min_cosine = 0.9995};
        check_output(&s, w, "pooled", tol);
        check_output(&s, w, "map", tol);
        check_output(&s, w, "loss_patch", (kd_tolerance){.rel = 0.01});
        check_parameters(&s, w, 0.08);
        step_drop(&s);
    }
    kd_weights_close(w);
}

/* Training is bit-equal on one machine and thread count: two programs, the same step, equal gradients and statistics. */
static void the_same_step_gives_the_same_bits(void **state) {
    (void)state;
    step_case c = {.size = 48, .batch = 3, .target_side = 3};
    assert_ok(kd_model_find(&c.model, "resnet18", NULL, &err));
    for (int d = 0; d < DEVICES; d++) {
        step s[2] = {{.c = &c, .b = try_open(devices[d])}, {.c = &c, .b = try_open(devices[d])}};
        if (!s[0].b || !s[1].b)
            continue;
        size_t total, states;
        float *bits[2];
        for (int k = 0; k < 2; k++) {
            step_run(&s[k], KD_F32);
            kd_params_trained(s[k].p, NULL, &total);
            const float *running = kd_params_states(s[k].p, &states);
            assert_ok(kd_alloc_array(&bits[k], total + states, sizeof(float), &err));
            assert_ok(s[k].b->v->download(s[k].b, bits[k], kd_exec_gradients(s[k].e), total * sizeof(float), &err));
            assert_ok(s[k].b->v->download(s[k].b, bits[k] + total, running, states * sizeof(float), &err));
        }
        assert_memory_equal(bits[0], bits[1], (total + states) * sizeof(float));
        for (int k = 0; k < 2; k++) {
            kd_free(bits[k]);
            step_drop(&s[k]);
        }
    }
}

/* ---- weight files ---- */

typedef struct loaded {
    kd_backend *b;
    kd_weights *w;
    kd_model_info m;
    kd_graph *g;
    kd_params *p;
    kd_exec *e;
} loaded;

static void load(loaded *l, const char *device, const char *name, const char *file, int size, int batch) {
    memset(l, 0, sizeof *l);
    l->b = try_open(device);
    assert_non_null(l->b);
    assert_ok(kd_weights_open(&l->w, file, &err));
    assert_ok(kd_model_find(&l->m, name, l->w, &err));
    l->g = kd_graph_create();
    kd_model_build(l->g, &l->m, size, size);
    assert_ok(kd_params_create(&l->p, l->g, l->b, &err));
    assert_ok(kd_model_load(l->p, &l->m, l->w, size, size, &err));
    assert_ok(kd_exec_create(&l->e, l->g, l->p, &(kd_exec_config){.batch = batch}, &err));
}

static void unload(loaded *l) {
    kd_exec_destroy(l->e);
    kd_params_destroy(l->p);
    kd_graph_destroy(l->g);
    kd_weights_close(l->w);
    kd_backend_close(l->b);
}

static void a_dinov2_file_gives_the_official_features_at_every_size(void **state) {
    (void)state;
    static const int sizes[] = {70, 98, 42}; /* the file's grid of 5, one above, one below */
    static uint8_t pixels[2 * 98 * 98 * 3];
    static float out[2 * 49 * 64];
    kd_weights *want = NULL;
    assert_ok(kd_weights_open(&want, GOLDEN "tiny_dinov2_outputs.safetensors", &err));
    for (int i = 0; i < 3; i++) {
        loaded l;
        char name[32];
        size_t side = (size_t)(sizes[i] / 14);
        load(&l, "ref", "auto", GOLDEN "tiny_dinov2.pth", sizes[i], 2);
        assert_string_equal(l.m.name, "dinov2_w64_d2");
        assert_int_equal(l.m.vit.pos_grid, 5);
        formula_pictures(pixels, 2 * (size_t)(sizes[i] * sizes[i] * 3));
        assert_ok(kd_exec_upload(l.e, "images", pixels, &err));
        assert_ok(kd_exec_forward(l.e, &err));
        assert_ok(kd_exec_download(l.e, "cls", 2, out, &err));
        snprintf(name, sizeof name, "cls_%d", sizes[i]);
        check_golden(want, name, out, 2 * 64, (kd_tolerance){.abs = 2e-5});
        assert_ok(kd_exec_download(l.e, "map", 2, out, &err));
        snprintf(name, sizeof name, "patch_%d", sizes[i]);
        check_golden(want, name, out, 2 * side * side * 64, (kd_tolerance){.abs = 2e-5});
        unload(&l);
    }
    kd_weights_close(want);
}

static void positions_are_resized_as_each_library_does(void **state) {
    (void)state;
    /* grid of the file, rows, columns; both ways of being non-square, one side unchanged, smaller and larger */
    static const int targets[][3] = {{37, 16, 16}, {5, 9, 9}, {14, 7, 7}, {14, 20, 20}, {37, 16, 11}, {5, 5, 7}, {5, 8, 3}, {14, 10, 14}};
    static const struct {
        kd_pos_profile profile;
        int registers;
        const char *way;
    } profiles[] = {{KD_POS_OFFICIAL, 0, "offset"}, {KD_POS_OFFICIAL, 4, "antialias"}, {KD_POS_HF, 0, "size"},
                    {KD_POS_HF, 4, "antialias"},    {KD_POS_TIMM, 0, "antialias"},     {KD_POS_TIMM, 4, "antialias"}};
    static float in[2 * 1370], out[2 * 401];
    kd_weights *w = NULL;
    assert_ok(kd_weights_open(&w, GOLDEN "positions.safetensors", &err));
    assert_int_equal(kd_weights_count(w), 3 * 8);
    for (int i = 0; i < 8; i++)
        for (int p = 0; p < 6; p++) {
            int from = targets[i][0], h = targets[i][1], cols = targets[i][2];
            char name[64];
            for (int k = 0; k < 2 * (1 + from * from); k++)
                in[k] = (float)(0.5 * formula_unit("pos_embed", (uint32_t)k));
            snprintf(name, sizeof name, "%s_%d_%dx%d", profiles[p].way, from, h, cols);
            assert_ok(kd_pos_embed_resize(out, in, from, from, h, cols, 2, profiles[p].profile, profiles[p].registers, &err));
            /* Measured: 8e-7 */
            check_golden(w, name, out, 2 * (size_t)(1 + h * cols), (kd_tolerance){.abs = 4e-6});
        }
    for (int p = 0; p < 6; p++) { /* the file's own grid: as it is */
        memset(out, 0, sizeof out);
        assert_ok(kd_pos_embed_resize(out, in, 14, 14, 14, 14, 2, profiles[p].profile, profiles[p].registers, &err));
        assert_memory_equal(in, out, 197 * 2 * sizeof *in);
    }
    kd_weights_close(w);
}

/* The resizing is separable, so a grid that only varies along one side tells that side's filter: it must be the one of a square grid of that side, which is checked above. */
static void positions_of_a_grid_that_is_not_square_are_resized_along_each_side(void **state) {
    (void)state;
    enum { H = 5, W = 3, TO_H = 8, TO_W = 7 };
    static const struct {
        kd_pos_profile profile;
        int registers;
    } ways[] = {{KD_POS_OFFICIAL, 0}, {KD_POS_HF, 0}, {KD_POS_TIMM, 0}};
    for (int p = 0; p < 3; p++)
        for (int rows = 0; rows < 2; rows++) { /* varying with the row, or with the column */
            float in[1 + H * W], square[1 + H * H], out[1 + TO_H * TO_W], want[1 + TO_H * TO_W];
            int side = rows ? H : W;
            in[0] = square[0] = 9;
            for (int y = 0; y < H; y++)
                for (int x = 0; x < W; x++)
                    in[1 + y * W + x] = (float)formula_unit("line", (uint32_t)(rows ? y : x));
            for (int y = 0; y < side; y++)
                for (int x = 0; x < side; x++)
                    square[1 + y * side + x] = (float)formula_unit("line", (uint32_t)(rows ? y : x));
            assert_ok(kd_pos_embed_resize(out, in, H, W, TO_H, TO_W, 1, ways[p].profile, ways[p].registers, &err));
            assert_ok(kd_pos_embed_resize(want, square, side, side, TO_H, TO_W, 1, ways[p].profile, ways[p].registers, &err));
            for (int i = 0; i < 1 + TO_H * TO_W; i++)
                assert_true(fabsf(out[i] - want[i]) < 1e-6f);
            assert_ok(kd_pos_embed_resize(out, in, H, W, H, W, 1, ways[p].profile, ways[p].registers, &err));
            assert_memory_equal(out, in, sizeof in); /* its own grid: as it is */
        }
}

/* ---- registry ---- */

static void count_names(const char *name, int tensors, size_t parameters) {
    kd_model_info m;
    kd_graph *g = NULL;
    size_t sum = 0;
    assert_ok(kd_model_find(&m, name, NULL, &err));
    assert_ok(kd_model_graph(&g, &m, &err));
    if (m.kind == KD_MODEL_VIT) { /* positions at the library's own grid */
        kd_graph_destroy(g);
        g = kd_graph_create();
        int side = m.vit.family == KD_VIT_TIMM ? 224 : 518;
        kd_model_build(g, &m, side, side);
    }
    for (int i = 0; i < g->param_count; i++)
        sum += g->params[i].info.is_state ? 0 : g->params[i].info.count;
    assert_int_equal(g->param_count, tensors);
    assert_int_equal(sum, parameters);
    kd_graph_destroy(g);
}

/* Tensors and parameters of the reference implementations (timm without its head of (D + 1) * 1000 numbers). */
static void models_have_the_reference_number_of_tensors_and_parameters(void **state) {
    (void)state;
    count_names("resnet18", 122, 11689512);
    count_names("vit_tiny_patch16_224", 150, 5717416 - 193000);
    count_names("vit_small_patch16_224", 150, 22050664 - 385000);
    count_names("vit_base_patch16_224", 150, 86567656 - 769000);
    count_names("dinov2_vits14", 175, 22056576);
    count_names("dinov2_vitb14", 175, 86580480);
    count_names("dinov2_vitl14", 343, 304368640);
    count_names("dinov2_vitg14", 567, 1136480768);
}

/* Too small to show in features of ordinary size, so looked up: torch.nn.BatchNorm2d 1e-5 and 0.1, both ViT families 1e-6. */
static void normalisations_have_the_libraries_constants(void **state) {
    (void)state;
    static const char *const names[] = {"resnet18", "vit_tiny_patch16_224", "dinov2_w64_d2"};
    for (int i = 0; i < 3; i++) {
        kd_model_info m;
        kd_graph *g = NULL;
        int seen = 0;
        assert_ok(kd_model_find(&m, names[i], NULL, &err));
        assert_ok(kd_model_graph(&g, &m, &err));
        for (int k = 0; k < g->node_count; k++) {
            const kd_op_desc *d = &g->nodes[k].desc;
            if (d->kind == KD_OP_BATCH_NORM)
                assert_true(d->eps == 1e-5f && d->momentum == 0.1f);
            if (d->kind == KD_OP_LAYER_NORM)
                assert_true(d->eps == 1e-6f);
            seen += d->kind == KD_OP_BATCH_NORM || d->kind == KD_OP_LAYER_NORM;
        }
        assert_true(seen >= 5);
        kd_graph_destroy(g);
    }
}

static void unknown_names_and_sizes_say_what_would_fit(void **state) {
    (void)state;
    kd_model_info m;
    assert_int_equal(kd_model_find(&m, "resnet_18", NULL, &err), KD_EUSAGE);
    assert_contains(err.msg, "resnet18");
    assert_int_equal(kd_model_find(&m, "vit_tiny_patch16", NULL, &err), KD_EUSAGE);
    assert_contains(err.msg, "vit_tiny_patch16_224");
    assert_int_equal(kd_model_find(&m, "auto", NULL, &err), KD_EUSAGE);
    assert_int_equal(kd_model_find(&m, "dinov2_w100_d2", NULL, &err), KD_EUSAGE);
    assert_contains(err.msg, "64");
    assert_int_equal(kd_model_find(&m, "dinov2_w0_d2", NULL, &err), KD_EUSAGE);
    assert_int_equal(kd_model_find(&m, "dinov2_w64_d0", NULL, &err), KD_EUSAGE);
    assert_int_equal(kd_model_find(&m, "dinov2_w064_d2", NULL, &err), KD_EUSAGE);
    assert_int_equal(kd_model_find(&m, "dinov2_w64_d2x", NULL, &err), KD_EUSAGE);
    assert_ok(kd_model_find(&m, "dinov2_w192_d7", NULL, &err));
    assert_int_equal(m.vit.heads, 3);
    assert_int_equal(m.vit.depth, 7);
    assert_int_equal(kd_model_check_size(&m, 225, 225, &err), KD_EUSAGE);
    assert_contains(err.msg, "224");
    assert_ok(kd_model_check_size(&m, 112, 112, &err));
    assert_int_equal(kd_model_check_size(&m, 0, 0, &err), KD_EUSAGE);
    assert_int_equal(kd_model_check_size(&m, 1 << 30, 1 << 30, &err), KD_EUSAGE);
    assert_ok(kd_model_find(&m, "vit_tiny_patch16_224", NULL, &err));
    assert_int_equal(kd_model_check_size(&m, 104, 112, &err), KD_EUSAGE);
    assert_ok(kd_model_check_size(&m, 112, 96, &err));
    assert_ok(kd_model_find(&m, "resnet18", NULL, &err));
    assert_ok(kd_model_check_size(&m, 112, 112, &err));
    assert_int_equal(kd_model_check_size(&m, 31, 31, &err), KD_EUSAGE);
}

static void a_name_that_is_not_what_the_file_holds_is_refused(void **state) {
    (void)state;
    kd_weights *w = NULL;
    kd_model_info m;
    assert_ok(kd_weights_open(&w, GOLDEN "tiny_dinov2.pth", &err));
    assert_int_equal(kd_model_find(&m, "dinov2_vits14", w, &err), KD_EUSAGE);
    assert_contains(err.msg, "tiny_dinov2.pth");
    assert_int_equal(kd_model_find(&m, "resnet18", w, &err), KD_EUSAGE);
    assert_ok(kd_model_find(&m, "dinov2_w64_d2", w, &err));
    assert_int_equal(m.from_file, 1);
    kd_weights_close(w);
}

/* ---- export ---- */

static void random_model(loaded *l, const char *name, int size) {
    memset(l, 0, sizeof *l);
    l->b = open_ref();
    assert_ok(kd_model_find(&l->m, name, NULL, &err));
    l->g = kd_graph_create();
    kd_model_taps taps = kd_model_build(l->g, &l->m, size, size);
    kd_graph_output(l->g, kd_graph_linear(l->g, taps.cls, "head", 3, 1), "head");
    assert_ok(kd_params_create(&l->p, l->g, l->b, &err));
    assert_ok(kd_params_init(l->p, 3, &err));
}

/* Exports, loads into a second model, and compares every parameter. */
static void export_and_load(const char *name, int size, kd_dtype dtype, double tolerance) {
    loaded a, b;
    char *folder = unit_folder(), path[4200];
    float *x = NULL, *y = NULL;
    size_t largest = 4 << 20;
    snprintf(path, sizeof path, "%s/model.safetensors", folder);
    random_model(&a, name, size);
    kd_params_set_counter(a.p, 12345678901);
    assert_ok(kd_model_export(a.p, &a.m, path, dtype, NULL, &err));
    load(&b, "ref", "auto", path, size, 1);
    assert_string_equal(b.m.name, name);
    assert_int_equal(kd_weights_find(b.w, "head.weight"), -1);
    int classifiers = 0;
    for (int i = 0; i < kd_params_count(b.p); i++)
        classifiers += kd_params_info(b.p, i).classifier;
    assert_int_equal(kd_weights_count(b.w), kd_params_count(b.p) - classifiers);
    if (a.m.norm == KD_MODEL_BATCH_NORM)
        assert_true(kd_params_counter(b.p) == 12345678901);
    assert_non_null(json_object_get(kd_weights_metadata(b.w), "image_mean"));
    assert_ok(kd_alloc_array(&x, largest, sizeof *x, &err));
    assert_ok(kd_alloc_array(&y, largest, sizeof *y, &err));
    for (int i = 0; i < kd_params_count(b.p); i++) {
        kd_param_info info = kd_params_info(b.p, i);
        if (info.classifier)
            continue;
        assert_true(info.count <= largest);
        assert_ok(kd_params_get(b.p, i, y, &err));
        assert_ok(kd_params_get(a.p, kd_params_find(a.p, info.name), x, &err));
        for (size_t k = 0; k < info.count && !info.is_counter; k++)
            if (!(fabs((double)x[k] - (double)y[k]) <= tolerance * (1e-3 + fabs((double)x[k]))))
                fail_msg("%s[%zu]: %g became %g", info.name, k, (double)x[k], (double)y[k]);
    }
    kd_free(x);
    kd_free(y);
    unload(&a);
    unload(&b);
    free(folder);
}

static void an_exported_model_loads_with_equal_values(void **state) {
    (void)state;
    export_and_load("dinov2_w64_d2", 28, KD_F32, 0);
    export_and_load("dinov2_w64_d2", 28, KD_F16, 0.0005);
    export_and_load("resnet18", 32, KD_F32, 0);
    export_and_load("mobilenet_v3_small", 32, KD_F32, 0);
    export_and_load("convnext_tiny", 32, KD_F16, 0.0005);
}

static void non_finite_parameters_are_not_exported(void **state) {
    (void)state;
    loaded a;
    char *folder = unit_folder(), path[4200];
    float w[64];
    snprintf(path, sizeof path, "%s/model.safetensors", folder);
    random_model(&a, "dinov2_w64_d1", 28);
    int i = kd_params_find(a.p, "norm.bias");
    assert_ok(kd_params_get(a.p, i, w, &err));
    w[5] = 70000;
    assert_ok(kd_params_set(a.p, i, w, &err));
    assert_int_equal(kd_model_export(a.p, &a.m, path, KD_F16, NULL, &err), KD_ENONFINITE);
    assert_contains(err.msg, "norm.bias");
    assert_ok(kd_model_export(a.p, &a.m, path, KD_F32, NULL, &err));
    w[5] = NAN;
    assert_ok(kd_params_set(a.p, i, w, &err));
    assert_int_equal(kd_model_export(a.p, &a.m, path, KD_F32, NULL, &err), KD_ENONFINITE);
    unload(&a);
    free(folder);
}

/* ---- bad files ---- */

/* A safetensors file with every tensor of a resnet18 as zeros, except what `change` does to the list. */
static kd_status load_changed_resnet(const char *without, const char *reshaped) {
    kd_model_info m;
    kd_graph *g = NULL;
    static float zeros[512 * 512 * 9];
    static const int64_t counter = 0;
    kd_tensor t[130];
    size_t n = 0;
    char *folder = unit_folder(), path[4200];
    snprintf(path, sizeof path, "%s/resnet.safetensors", folder);
    assert_ok(kd_model_find(&m, "resnet18", NULL, &err));
    assert_ok(kd_model_graph(&g, &m, &err));
    for (int i = 0; i < g->param_count; i++) {
        kd_param_info p = g->params[i].info;
        if (without && strcmp(p.name, without) == 0)
            continue;
        t[n] = (kd_tensor){.name = p.name, .dtype = p.is_counter ? KD_I64 : KD_F32, .rank = p.rank, .data = p.is_counter ? (const void *)&counter : zeros};
        for (int k = 0; k < p.rank; k++)
            t[n].shape[k] = p.shape[k];
        if (reshaped && strcmp(p.name, reshaped) == 0)
            t[n].shape[0]--;
        n++;
    }
    assert_ok(kd_safetensors_write(path, t, n, NULL, &err));
    kd_backend *b = open_ref();
    kd_params *p = NULL;
    kd_weights *w = NULL;
    assert_ok(kd_params_create(&p, g, b, &err));
    assert_ok(kd_weights_open(&w, path, &err));
    kd_status s = kd_model_load(p, &m, w, 64, 64, &err);
    kd_weights_close(w);
    kd_params_destroy(p);
    kd_graph_destroy(g);
    kd_backend_close(b);
    free(folder);
    return s;
}

static void missing_and_misshapen_tensors_are_named(void **state) {
    (void)state;
    assert_ok(load_changed_resnet(NULL, NULL));
    assert_int_equal(load_changed_resnet("layer3.0.bn1.running_var", NULL), KD_EFAIL);
    assert_contains(err.msg, "layer3.0.bn1.running_var");
    assert_int_equal(load_changed_resnet(NULL, "layer2.1.conv2.weight"), KD_EFAIL);
    assert_contains(err.msg, "layer2.1.conv2.weight");
    assert_contains(err.msg, "[127, 128, 3, 3]");
    /* The classifier isn't needed, and old files have no counters. */
    assert_ok(load_changed_resnet("fc.weight", NULL));
    assert_ok(load_changed_resnet("bn1.num_batches_tracked", NULL));
}

/* ---- real photos and weights ---- */

/* Extracts one file of the archive into folder. */
static void extract(const char *data, const char *member, const char *folder) {
    char command[9000];
    snprintf(command, sizeof command, "tar -xf '%s/caltech101.tar' -C '%s' '%s'", data, folder, member);
    assert_int_equal(system(command), 0);
}

/* The eval view of one photo: resize 256, centre crop 224. */
static void eval_view(const char *path, uint8_t *out) {
    FILE *f = fopen(path, "rb");
    static uint8_t bytes[4 << 20];
    assert_non_null(f);
    size_t n = fread(bytes, 1, sizeof bytes, f);
    fclose(f);
    kd_image img = {0};
    kd_policy policy;
    kd_view_scratch scratch;
    kd_hash128 id = kd_xxh128(bytes, n);
    memset(&scratch, 0, sizeof scratch);
    assert_ok(kd_image_decode(&img, bytes, n, path, NULL, &err));
    assert_ok(kd_policy_load(&policy, "eval", 224, 224, &err));
    kd_plan plan = kd_plan_draw(&policy, 0, &id, 0, img.width, img.height);
    assert_ok(kd_plan_apply(&plan, &img, out, &scratch, &err));
    kd_view_scratch_free(&scratch);
    kd_image_free(&img);
}

static void check_photo_pixels(const kd_weights *want, const uint8_t *pixels) {
    int64_t sums[12], got[12] = {0};
    assert_ok(kd_weights_read_i64(want, kd_weights_find(want, "pixel_sums"), sums, 12, &err));
    for (int i = 0; i < 4 * 224 * 224 * 3; i++)
        got[i / (224 * 224 * 3) * 3 + i % 3] += pixels[i];
    for (int i = 0; i < 12; i++)
        assert_int_equal(got[i], sums[i]);
}

static void real_photos_and_weights_give_pytorch_features(void **state) {
    (void)state;
    static uint8_t pixels[4 * 224 * 224 * 3];
    static float map[4 * 256 * 192], cls[4 * 192], picked[4 * 8 * 192];
    const char *data = getenv("KD_TEST_DATA");
    char path[5000], *folder, key[16];
    int64_t tokens[8];
    kd_weights *want = NULL;
    loaded l;
    if (!data) {
        print_message("needs KD_TEST_DATA, a folder with caltech101.tar and teachers/vitt14_dinov2_layout.pth\n");
        skip();
    }
    folder = unit_folder();
    assert_ok(kd_weights_open(&want, GOLDEN "photos.safetensors", &err));
    for (int i = 0; i < 4; i++) {
        snprintf(key, sizeof key, "photo%d", i);
        const char *member = json_string_value(json_object_get(kd_weights_metadata(want), key));
        assert_non_null(member);
        extract(data, member, folder);
        snprintf(path, sizeof path, "%s/%s", folder, member);
        eval_view(path, pixels + i * 224 * 224 * 3);
    }
    check_photo_pixels(want, pixels);
    assert_ok(kd_weights_read_i64(want, kd_weights_find(want, "tokens"), tokens, 8, &err));
    kd_backend *cpu = try_open("cpu"); /* ref needs minutes for this */
    kd_backend_close(cpu);
    snprintf(path, sizeof path, "%s/teachers/vitt14_dinov2_layout.pth", data);
    load(&l, cpu ? "cpu" : "ref", "auto", path, 224, 4);
    assert_ok(kd_exec_upload(l.e, "images", pixels, &err));
    assert_ok(kd_exec_forward(l.e, &err));
    assert_ok(kd_exec_download(l.e, "cls", 4, cls, &err));
    assert_ok(kd_exec_download(l.e, "map", 4, map, &err));
    for (int i = 0; i < 4; i++)
        for (int k = 0; k < 8; k++)
            memcpy(picked + (i * 8 + k) * 192, map + (i * 256 + tokens[k]) * 192, 192 * sizeof *map);
    /* Measured: ref 9e-6, cpu 8e-5 in values up to 10. */
    kd_tolerance tol = {.abs = 3e-4, .min_cosine = 0.999999};
    check_golden(want, "cls", cls, 4 * 192, tol);
    check_golden(want, "patch", picked, 4 * 8 * 192, tol);
    unload(&l);
    kd_weights_close(want);
    free(folder);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(resnet18_training_step_equals_torchvision),
        cmocka_unit_test(vit_training_step_equals_timm),
        cmocka_unit_test(dinov2_training_step_equals_pytorch),
        cmocka_unit_test(swiglu_training_step_equals_pytorch),
        cmocka_unit_test(bf16_training_step_stays_close),
        cmocka_unit_test(the_same_step_gives_the_same_bits),
        cmocka_unit_test(a_dinov2_file_gives_the_official_features_at_every_size),
        cmocka_unit_test(positions_are_resized_as_each_library_does),
        cmocka_unit_test(positions_of_a_grid_that_is_not_square_are_resized_along_each_side),
        cmocka_unit_test(models_have_the_reference_number_of_tensors_and_parameters),
        cmocka_unit_test(normalisations_have_the_libraries_constants),
        cmocka_unit_test(unknown_names_and_sizes_say_what_would_fit),
        cmocka_unit_test(a_name_that_is_not_what_the_file_holds_is_refused),
        cmocka_unit_test(an_exported_model_loads_with_equal_values),
        cmocka_unit_test(non_finite_parameters_are_not_exported),
        cmocka_unit_test(missing_and_misshapen_tensors_are_named),
        cmocka_unit_test(real_photos_and_weights_give_pytorch_features),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

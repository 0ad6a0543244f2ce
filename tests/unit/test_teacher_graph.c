/* Teachers as graphs: every named model has its parameters; chosen layers and features equal what computing by hand gives; cpu equals ref in every family; parameters that pass through from a
 * weight file give the bits of loaded ones; what a user may choose. End to end against the original implementations: tests/golden/test_teachers.c. */
#include "tests/unit/unit.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/mem.h"
#include "common/tensor/compare.h"
#include "common/weights/safetensors.h"
#include "kernels/nn/graph_impl.h"
#include "kernels/nn/model_builders.h"
#include "precompute/cost.h"
#include "tests/unit/formula.h"

static kd_err err;

static kd_backend *try_open(const char *device) {
    kd_backend *b = NULL;
    return kd_backend_open(&b, device, 2, &err) == KD_OK ? b : NULL;
}

/* ---- named models ---- */

/* The reference implementations' parameters (facts of dinov2/hub/backbones.py, dinov3/hub/backbones.py, timm with num_classes=0), without the mask token, which no inference reads. */
static const struct {
    const char *name;
    int64_t parameters;
} reference_counts[] = {
    {"dinov2_vits14", 22056576 - 384},          {"dinov2_vitb14", 86580480 - 768},          {"dinov2_vitl14", 304368640 - 1024},       {"dinov2_vitg14", 1136480768 - 1536},
    {"dinov2_vits14_reg", 22058112 - 384},      {"dinov2_vitb14_reg", 86583552 - 768},      {"dinov2_vitl14_reg", 304372736 - 1024},   {"dinov2_vitg14_reg", 1136486912 - 1536},
    {"dinov3_vits16", 21601152 - 384},          {"dinov3_vits16plus", 28697472 - 384},      {"dinov3_vitb16", 85669632 - 768},         {"dinov3_vitl16", 303154176 - 1024},
    {"dinov3_vitl16plus", 403915776 - 1024},    {"dinov3_vith16plus", 840633600 - 1280},
    {"dinov3_vit7b16", 6716035072 - 4096 + 40 * 3 * 4096}, /* qkv without bias: we have one of zeros */
    {"vit_tiny_patch16_224", 5717416 - 193000}, {"vit_small_patch16_224", 22050664 - 385000}, {"vit_base_patch16_224", 86567656 - 769000}, {"deit_small_patch16_224", 22050664 - 385000},
};

static void named_models_have_the_reference_number_of_parameters(void **state) {
    (void)state;
    const char *const *names;
    size_t count = kd_vit_names(&names), known = sizeof reference_counts / sizeof *reference_counts, seen = 0;
    for (size_t i = 0; i < count; i++) {
        kd_model_info m = {.kind = KD_MODEL_VIT, .mean = {0, 0, 0}, .std = {1, 1, 1}};
        int64_t sum = 0;
        assert_true(kd_vit_named(names[i], &m.vit));
        m.multiple = m.smallest = m.vit.patch;
        int side = m.vit.patch * (m.vit.pos_grid ? m.vit.pos_grid : 14);
        kd_graph *g = kd_graph_create();
        kd_layer_choice all = {.layers = 1, .layer = {1}, .norm = 1, .features = KD_WANT_CLS | KD_WANT_PATCH};
        kd_model_build_layers(g, &m, side, side, &all);
        for (int k = 0; k < g->param_count; k++)
            sum += (int64_t)g->params[k].info.count;
        if (sum != m.vit.parameters)
            fail_msg("%s: the graph has %lld parameters, the spec says %lld", names[i], (long long)sum, (long long)m.vit.parameters);
        for (size_t k = 0; k < known; k++)
            if (strcmp(names[i], reference_counts[k].name) == 0) {
                seen++;
                if (sum != reference_counts[k].parameters)
                    fail_msg("%s: %lld parameters, the reference has %lld", names[i], (long long)sum, (long long)reference_counts[k].parameters);
            }
        kd_graph_destroy(g);
    }
    assert_int_equal(seen, known);
}

/* ---- tiny models of every family, with the formula's values ---- */

typedef struct family_case {
    const char *name;
    kd_vit_family family;
    int width, heads, depth, patch, hidden;
    kd_ffn_kind ffn;
    int registers, grid;
} family_case;

/* Widths and heads that aren't powers of two, odd FFNs, the 128-wide heads of ViT-7B. */
static const family_case families[] = {
    {"dinov2", KD_VIT_DINOV2, 48, 3, 3, 14, 100, KD_FFN_GELU, 0, 5},
    {"dinov2 with registers", KD_VIT_DINOV2, 48, 3, 3, 14, 100, KD_FFN_GELU, 4, 5},
    {"dinov2 giant", KD_VIT_DINOV2, 64, 1, 3, 14, 40, KD_FFN_SWIGLU, 4, 5},
    {"dinov3", KD_VIT_DINOV3, 48, 3, 3, 16, 100, KD_FFN_GELU, 4, 0},
    {"dinov3 plus", KD_VIT_DINOV3, 64, 1, 3, 16, 40, KD_FFN_SWIGLU, 4, 0},
    {"dinov3 7b", KD_VIT_DINOV3, 128, 1, 3, 16, 72, KD_FFN_SWIGLU, 4, 0},
    {"timm", KD_VIT_TIMM, 48, 3, 3, 8, 100, KD_FFN_GELU, 0, 6},
};
enum { FAMILIES = sizeof families / sizeof *families, BATCH = 2, ROWS = 3, COLUMNS = 5, MOST = BATCH * (ROWS * COLUMNS) * 3 * 128 };

static kd_model_info tiny(const family_case *c) {
    kd_model_info m = {.kind = KD_MODEL_VIT, .width = c->width, .multiple = c->patch, .smallest = c->patch, .mean = {0.5f, 0.4f, 0.3f}, .std = {0.2f, 0.25f, 0.3f}};
    m.vit = (kd_vit_spec){.family = c->family, .width = c->width, .heads = c->heads, .depth = c->depth, .patch = c->patch, .ffn = c->ffn, .ffn_hidden = c->hidden,
                          .layer_scale = c->family != KD_VIT_TIMM, .registers = c->registers, .pos_grid = c->grid, .ln_eps = c->family == KD_VIT_DINOV3 ? 1e-5 : 1e-6};
    if (c->family == KD_VIT_DINOV3)
        m.vit.periods = c->width / c->heads / 4;
    for (int i = 0; i < m.vit.periods; i++)
        m.vit.period[i] = (float)pow(100.0, 2.0 * i / (c->width / c->heads / 2));
    snprintf(m.name, sizeof m.name, "%s", c->name);
    return m;
}

typedef struct program {
    kd_graph *g;
    kd_params *p;
    kd_exec *e;
} program;

/* choice NULL: kd_model_build. */
static void make(program *q, kd_backend *b, const kd_model_info *m, const kd_layer_choice *choice, kd_dtype precision) {
    static float buf[128 * 3 * 16 * 16];
    static uint8_t pixels[BATCH * ROWS * COLUMNS * 16 * 16 * 3];
    int h = ROWS * m->vit.patch, w = COLUMNS * m->vit.patch;
    q->g = kd_graph_create();
    if (choice)
        kd_model_build_layers(q->g, m, h, w, choice);
    else
        kd_model_build(q->g, m, h, w);
    assert_ok(kd_params_create(&q->p, q->g, b, &err));
    for (int i = 0; i < kd_params_count(q->p); i++)
        assert_true(kd_params_info(q->p, i).count <= sizeof buf / sizeof *buf);
    assert_ok(formula_params(q->p, buf, &err));
    assert_ok(kd_exec_create(&q->e, q->g, q->p, &(kd_exec_config){.batch = BATCH, .precision = precision}, &err));
    formula_pictures(pixels, (size_t)(BATCH * h * w * 3));
    assert_ok(kd_exec_upload(q->e, "images", pixels, &err));
    assert_ok(kd_exec_forward(q->e, &err));
}

static void drop(program *q) {
    kd_exec_destroy(q->e);
    kd_params_destroy(q->p);
    kd_graph_destroy(q->g);
}

/* Values per image; they lie in out. */
static size_t fetch(const program *q, const char *name, float *out) {
    kd_tdesc d;
    if (!kd_exec_output(q->e, name, &d))
        fail_msg("no output %s", name);
    assert_true(kd_tdesc_numel(&d) <= MOST);
    assert_ok(kd_exec_download(q->e, name, BATCH, out, &err));
    return kd_tdesc_numel(&d) / BATCH;
}

static void compare(const char *what, const float *got, const float *want, size_t n, kd_tolerance tol) {
    kd_tensor a = {.name = what, .dtype = KD_F32, .rank = 1, .shape = {(int64_t)n}, .data = got}, b = a;
    b.data = want;
    kd_comparison c = kd_compare(&a, &b, tol);
    if (!c.equal)
        fail_msg("%s", c.text);
}

/* ---- layers by hand ---- */

/* nn.LayerNorm of each row, in double. */
static void norm_by_hand(const program *q, const float *x, size_t rows, int width, double eps, float *y) {
    float gain[128], shift[128];
    assert_ok(kd_params_get(q->p, kd_params_find(q->p, "norm.weight"), gain, &err));
    assert_ok(kd_params_get(q->p, kd_params_find(q->p, "norm.bias"), shift, &err));
    for (size_t r = 0; r < rows; r++, x += width, y += width) {
        double mean = 0, var = 0;
        for (int i = 0; i < width; i++)
            mean += (double)x[i] / width;
        for (int i = 0; i < width; i++)
            var += ((double)x[i] - mean) * ((double)x[i] - mean) / width;
        for (int i = 0; i < width; i++)
            y[i] = (float)(((double)x[i] - mean) / sqrt(var + eps) * (double)gain[i] + (double)shift[i]);
    }
}

static void mean_by_hand(const float *patch, int patches, int width, float *out) {
    for (int n = 0; n < BATCH; n++)
        for (int c = 0; c < width; c++) {
            double sum = 0;
            for (int p = 0; p < patches; p++)
                sum += (double)patch[(n * patches + p) * width + c];
            out[n * width + c] = (float)(sum / patches);
        }
}

static unsigned all_features(const kd_model_info *m) {
    return KD_WANT_CLS | KD_WANT_PATCH | KD_WANT_MEAN | (m->vit.registers ? KD_WANT_REGISTERS : 0);
}

/* A layer from the end is what the model without the blocks after it gives. */
static void layer_equals_the_shorter_model(kd_backend *b, const kd_model_info *m, int layer) {
    static float got[MOST], want[MOST];
    kd_model_info shorter = *m;
    program a, s;
    char name[32];
    shorter.vit.depth -= layer - 1;
    make(&a, b, m, &(kd_layer_choice){.layers = 3, .layer = {1, 2, 3}, .norm = 1, .features = all_features(m)}, KD_F32);
    make(&s, b, &shorter, NULL, KD_F32);
    snprintf(name, sizeof name, "cls.%d", layer);
    size_t n = fetch(&a, name, got);
    assert_int_equal(fetch(&s, "cls", want), n);
    compare(name, got, want, BATCH * n, (kd_tolerance){0});
    snprintf(name, sizeof name, "patch.%d", layer);
    n = fetch(&a, name, got);
    assert_int_equal(fetch(&s, "map", want), n);
    compare(name, got, want, BATCH * n, (kd_tolerance){0});
    drop(&a);
    drop(&s);
}

static void norm_and_mean_equal_computing_by_hand(kd_backend *b, const kd_model_info *m) {
    static const char *const features[] = {"cls", "patch", "registers"};
    static float raw[MOST], normed[MOST], want[MOST];
    const kd_layer_choice on = {.layers = 2, .layer = {1, 3}, .norm = 1, .features = all_features(m)};
    kd_layer_choice off = on;
    program with, without;
    off.norm = 0;
    make(&with, b, m, &on, KD_F32);
    make(&without, b, m, &off, KD_F32);
    assert_int_equal(kd_params_find(without.p, "norm.weight"), -1);
    for (int l = 0; l < 2; l++) {
        char name[32];
        for (int f = 0; f < (m->vit.registers ? 3 : 2); f++) {
            snprintf(name, sizeof name, "%s.%d", features[f], on.layer[l]);
            size_t n = fetch(&without, name, raw);
            assert_int_equal(fetch(&with, name, normed), n);
            norm_by_hand(&with, raw, BATCH * n / (size_t)m->width, m->width, m->vit.ln_eps, want);
            compare(name, normed, want, BATCH * n, (kd_tolerance){.abs = 2e-6, .rel = 2e-6});
        }
        for (int norm = 0; norm < 2; norm++) {
            const program *q = norm ? &with : &without;
            snprintf(name, sizeof name, "patch.%d", on.layer[l]);
            fetch(q, name, raw);
            mean_by_hand(raw, ROWS * COLUMNS, m->width, want);
            snprintf(name, sizeof name, "mean.%d", on.layer[l]);
            size_t n = fetch(q, name, normed);
            compare(name, normed, want, BATCH * n, (kd_tolerance){.abs = 2e-6, .rel = 2e-6});
        }
    }
    drop(&with);
    drop(&without);
}

/* Rows of layer 3, then of layer 2, then of layer 1, side by side under the smallest number. */
static void concat_joins_columns(kd_backend *b, const kd_model_info *m, int norm) {
    static const char *const features[] = {"cls", "patch", "mean", "registers"};
    static float joined[MOST], single[MOST];
    kd_layer_choice c = {.layers = 3, .layer = {1, 2, 3}, .norm = norm, .features = all_features(m)};
    program apart, together;
    make(&apart, b, m, &c, KD_F32);
    c.concat = 1;
    make(&together, b, m, &c, KD_F32);
    assert_null(kd_exec_output(together.e, "cls.2", NULL));
    for (int f = 0; f < (m->vit.registers ? 4 : 3); f++) {
        char name[32];
        snprintf(name, sizeof name, "%s.1", features[f]);
        size_t n = fetch(&together, name, joined), width = (size_t)m->width, rows = BATCH * n / (3 * width);
        for (int l = 1; l <= 3; l++) {
            snprintf(name, sizeof name, "%s.%d", features[f], l);
            assert_int_equal(fetch(&apart, name, single), n / 3);
            for (size_t r = 0; r < rows; r++)
                assert_memory_equal(joined + (3 * r + (size_t)(3 - l)) * width, single + r * width, width * sizeof(float));
        }
    }
    drop(&apart);
    drop(&together);
}

static void layers_norm_mean_and_concat_equal_computing_by_hand(void **state) {
    (void)state;
    kd_backend *ref = try_open("ref");
    for (int i = 0; i < FAMILIES; i++) {
        kd_model_info m = tiny(&families[i]);
        for (int layer = 1; layer <= 3; layer++)
            layer_equals_the_shorter_model(ref, &m, layer);
        norm_and_mean_equal_computing_by_hand(ref, &m);
        concat_joins_columns(ref, &m, 1);
        concat_joins_columns(ref, &m, 0);
    }
    kd_backend_close(ref);
}

static void only_what_is_asked_for_is_built(void **state) {
    (void)state;
    kd_model_info m = tiny(&families[3]);
    kd_graph *g = kd_graph_create();
    kd_model_build_layers(g, &m, 48, 80, &(kd_layer_choice){.layers = 1, .layer = {3}, .features = KD_WANT_MEAN});
    assert_int_equal(g->output_count, 1);
    assert_string_equal(g->outputs[0].name, "mean.3");
    for (int i = 0; i < g->param_count; i++) {
        const char *name = g->params[i].info.name;
        assert_true(strncmp(name, "blocks.", 7) != 0 || strncmp(name, "blocks.0.", 9) == 0);
        assert_string_not_equal(name, "norm.weight");
        assert_string_not_equal(name, "pos_embed");
    }
    kd_graph_destroy(g);
}

/* What --inspect says from the shape numbers is what a program counts over its ops. */
static void operations_are_counted_as_inspect_says_them(void **state) {
    (void)state;
    kd_backend *ref = try_open("ref");
    for (int i = 0; i < FAMILIES; i++) {
        kd_model_info m = tiny(&families[i]);
        for (int layer = 1; layer <= 3; layer += 2) {
            kd_vit_spec computed = m.vit;
            program q;
            computed.depth -= layer - 1; /* blocks after the chosen one don't run */
            make(&q, ref, &m, &(kd_layer_choice){.layers = 1, .layer = {(uint16_t)layer}, .norm = 1, .features = KD_WANT_CLS}, KD_F32);
            assert_float_equal(kd_exec_flops(q.e) / BATCH, kd_teacher_cost_of(&computed, ROWS * m.vit.patch, COLUMNS * m.vit.patch).flops, 0.5);
            drop(&q);
        }
    }
    kd_backend_close(ref);
}

/* ---- devices ---- */

/* Two blocks of every family on a grid of 3 x 5, all features of two layers. */
static void cpu_equals_ref_in_every_family(void **state) {
    (void)state;
    static const char *const features[] = {"cls", "patch", "mean", "registers"};
    static float got[MOST], want[MOST];
    kd_backend *ref = try_open("ref"), *cpu = try_open("cpu");
    if (!cpu)
        skip();
    int precisions = cpu->v->check_bf16(cpu, &err) == KD_OK ? 2 : 1;
    for (int i = 0; i < FAMILIES; i++)
        for (int bf16 = 0; bf16 < precisions; bf16++) {
            kd_model_info m = tiny(&families[i]);
            const kd_layer_choice c = {.layers = 2, .layer = {1, 2}, .norm = 1, .features = all_features(&m)};
            /* Measured, largest of the families, in values up to 6: f32 7e-6; bf16 against f32 0.065 and cosine 0.99989, because each layer rounds to 2^-9. */
            kd_tolerance tol = bf16 ? (kd_tolerance){.abs = 0.2, .min_cosine = 0.9996} : (kd_tolerance){.abs = 3e-5, .min_cosine = 0.9999999};
            program a, b;
            make(&a, ref, &m, &c, KD_F32);
            make(&b, cpu, &m, &c, bf16 ? KD_BF16 : KD_F32);
            for (int f = 0; f < (m.vit.registers ? 4 : 3); f++)
                for (int l = 1; l <= 2; l++) {
                    char name[32], what[160];
                    kd_tdesc d;
                    snprintf(name, sizeof name, "%s.%d", features[f], l);
                    snprintf(what, sizeof what, "%s, %s: %s", m.name, bf16 ? "bf16" : "f32", name);
                    assert_non_null(kd_exec_output(b.e, name, &d));
                    assert_int_equal(d.dtype, KD_F32);
                    size_t n = fetch(&a, name, want);
                    assert_int_equal(fetch(&b, name, got), n);
                    compare(what, got, want, BATCH * n, tol);
                }
            drop(&a);
            drop(&b);
        }
    kd_backend_close(ref);
    kd_backend_close(cpu);
}

/* ---- from a file ---- */

#define TINY_FILE "tests/golden/models/tiny_dinov2.pth"

typedef struct teacher {
    kd_weights *w;
    kd_model_info m;
} teacher;

static void open_teacher(teacher *t, const char *path, const char *prefix) {
    assert_ok(kd_weights_open(&t->w, path, &err));
    assert_ok(kd_model_find_teacher(&t->m, "auto", t->w, &(kd_teacher_choice){.prefix = prefix}, &err));
    assert_int_equal(t->m.from_file, 1);
}

enum { TALL = 56, WIDE = 98 }; /* 4 x 7 patches; the file's grid is 5 x 5 */

/* cls.1, then patch.1, of one picture; through frozen parameters, or loaded ones. Returns the program's bytes on the device, and the parameters' own. */
static size_t run_teacher(const teacher *t, kd_backend *b, kd_dtype precision, int frozen, float *out) {
    static uint8_t pixels[TALL * WIDE * 3];
    kd_graph *g = kd_graph_create();
    kd_params *p = NULL;
    kd_exec *e = NULL;
    size_t trained = 0, bytes;
    const kd_layer_choice c = {.layers = 1, .layer = {1}, .norm = 1, .features = KD_WANT_CLS | KD_WANT_PATCH};
    if (frozen) {
        kd_model_build_layers(g, &t->m, TALL, WIDE, &c);
        assert_ok(kd_model_params_frozen(&p, g, b, &t->m, t->w, TALL, WIDE, &err));
    } else {
        kd_model_build(g, &t->m, TALL, WIDE);
        assert_ok(kd_params_create(&p, g, b, &err));
        assert_ok(kd_model_load(p, &t->m, t->w, TALL, WIDE, &err));
    }
    assert_ok(kd_exec_create(&e, g, p, &(kd_exec_config){.batch = 1, .precision = precision}, &err));
    formula_pictures(pixels, sizeof pixels);
    assert_ok(kd_exec_upload(e, "images", pixels, &err));
    assert_ok(kd_exec_forward(e, &err));
    assert_ok(kd_exec_download(e, frozen ? "cls.1" : "cls", 1, out, &err));
    assert_ok(kd_exec_download(e, frozen ? "patch.1" : "map", 1, out + t->m.width, &err));
    kd_params_trained(p, NULL, &trained);
    bytes = kd_exec_device_bytes(e) + trained * sizeof(float);
    kd_exec_destroy(e);
    kd_params_destroy(p);
    kd_graph_destroy(g);
    return bytes;
}

static void passing_parameters_give_the_bits_of_loaded_ones(void **state) {
    (void)state;
    static const char *const devices[] = {"ref", "cpu"};
    static float frozen[29 * 64], loaded[29 * 64];
    teacher t;
    open_teacher(&t, TINY_FILE, NULL);
    for (int d = 0; d < 2; d++) {
        kd_backend *b = try_open(devices[d]);
        for (int bf16 = 0; b && bf16 < (b->v->check_bf16(b, &err) == KD_OK ? 2 : 1); bf16++) {
            size_t small = run_teacher(&t, b, bf16 ? KD_BF16 : KD_F32, 1, frozen), large = run_teacher(&t, b, bf16 ? KD_BF16 : KD_F32, 0, loaded);
            assert_memory_equal(frozen, loaded, sizeof loaded);
            if (d == 1) /* the matrices exist once: at least their f32 copies are gone */
                assert_true(small + 4 * (size_t)t.m.vit.parameters * 9 / 10 < large);
        }
        kd_backend_close(b);
    }
    kd_weights_close(t.w);
}

/* Writes every parameter of m under the prefix, official layout, times `scale`. */
static size_t add_model(kd_tensor *t, kd_arena *arena, const kd_model_info *m, const char *prefix, float scale) {
    kd_graph *g = kd_graph_create();
    size_t count = 0;
    kd_model_build(g, m, m->vit.pos_grid * m->vit.patch, m->vit.pos_grid * m->vit.patch);
    for (int i = 0; i < g->param_count; i++) {
        kd_param_info info = g->params[i].info;
        float *v = kd_arena_alloc(arena, info.count * sizeof *v);
        assert_non_null(v);
        formula_fill(v, &info);
        for (size_t k = 0; k < info.count; k++)
            v[k] *= scale;
        t[count] = (kd_tensor){.name = kd_arena_printf(arena, "%s%s", prefix, info.name), .dtype = KD_F32, .rank = info.rank, .data = v};
        memcpy(t[count++].shape, info.shape, sizeof info.shape);
    }
    kd_graph_destroy(g);
    return count;
}

/* A checkpoint with a student and its teacher: the file says teacher, a key says otherwise, and what was found is what is read. */
static void the_chosen_model_of_a_checkpoint_is_read(void **state) {
    (void)state;
    static kd_tensor tensors[100];
    static float out[3][29 * 64];
    kd_arena *arena = kd_arena_create();
    kd_backend *ref = try_open("ref");
    char *folder = unit_folder(), path[4200];
    kd_model_info m;
    assert_ok(kd_model_find(&m, "dinov2_w64_d1", NULL, &err));
    m.vit.pos_grid = 5;
    size_t count = add_model(tensors, arena, &m, "student.backbone.", 1);
    count += add_model(tensors + count, arena, &m, "teacher.backbone.", 0.5f);
    snprintf(path, sizeof path, "%s/checkpoint.safetensors", folder);
    assert_ok(kd_safetensors_write(path, tensors, count, NULL, &err));
    static const char *const keys[] = {NULL, "teacher.backbone", "student.backbone"};
    for (int i = 0; i < 3; i++)
        for (int frozen = 0; frozen < 2; frozen++) {
            teacher t;
            static float again[29 * 64];
            open_teacher(&t, path, keys[i]);
            assert_string_equal(t.m.name, "dinov2_w64_d1");
            run_teacher(&t, ref, KD_F32, frozen, frozen ? again : out[i]);
            if (frozen)
                assert_memory_equal(again, out[i], sizeof again);
            kd_weights_close(t.w);
        }
    assert_memory_equal(out[0], out[1], sizeof out[0]);
    assert_memory_not_equal(out[0], out[2], sizeof out[0]);
    kd_arena_destroy(arena);
    kd_backend_close(ref);
    free(folder);
}

static void a_profile_changes_positions_and_nothing_else(void **state) {
    (void)state;
    static const char *const profiles[] = {"official", "hf", "timm", "auto"};
    static float out[4][29 * 64];
    kd_backend *ref = try_open("ref");
    for (int i = 0; i < 4; i++) {
        teacher t;
        assert_ok(kd_weights_open(&t.w, TINY_FILE, &err));
        assert_ok(kd_model_find_teacher(&t.m, "dinov2_w64_d2", t.w, &(kd_teacher_choice){.positions = profiles[i], .normalize = "auto"}, &err));
        assert_int_equal(t.m.vit.positions, i < 3 ? i : KD_POS_OFFICIAL);
        run_teacher(&t, ref, KD_F32, 1, out[i]);
        kd_weights_close(t.w);
    }
    assert_memory_equal(out[3], out[0], sizeof out[0]);
    for (int i = 0; i < 3; i++)
        assert_memory_not_equal(out[i], out[(i + 1) % 3], sizeof out[0]);
    kd_backend_close(ref);
}

/* ---- choices ---- */

static void check_choice(const kd_weights *w, const char *name, kd_teacher_choice choice, const char *part) {
    kd_model_info m;
    assert_int_equal(kd_model_find_teacher(&m, name, w, &choice, &err), KD_EUSAGE);
    assert_contains(err.msg, part);
}

static void choices_that_do_not_fit_are_refused_with_a_sentence(void **state) {
    (void)state;
    kd_weights *w = NULL;
    kd_model_info m;
    assert_ok(kd_weights_open(&w, TINY_FILE, &err));
    check_choice(w, "dinov2_vits14", (kd_teacher_choice){0}, "dinov2_w64_d2");
    check_choice(w, "dinov2_vits14_reg", (kd_teacher_choice){0}, "4 registers");
    check_choice(w, "dinov3_vitb16", (kd_teacher_choice){0}, "dinov3");
    check_choice(w, "dinov3_vitb", (kd_teacher_choice){0}, "dinov3_vitb16");
    check_choice(w, "resnet18", (kd_teacher_choice){0}, "isn't a teacher");
    check_choice(w, "auto", (kd_teacher_choice){.positions = "bilinear"}, "official, hf or timm");
    check_choice(w, "auto", (kd_teacher_choice){.normalize = "imagenett"}, "imagenett");
    check_choice(w, "auto", (kd_teacher_choice){.normalize = "1,1,1/0,1,1"}, "1,1,1/0,1,1");
    check_choice(w, "auto", (kd_teacher_choice){.prefix = "student."}, "student");
    assert_ok(kd_model_find_teacher(&m, "auto", w, &(kd_teacher_choice){.normalize = "0.1,0.2,0.3/1,2,3"}, &err));
    assert_true(m.mean[1] == 0.2f && m.std[2] == 3.0f && m.vit.mean[1] == 0.2f);
    assert_string_equal(m.vit.normalisation, "as given");
    assert_ok(kd_model_find_teacher(&m, "auto", w, &(kd_teacher_choice){.normalize = "half"}, &err));
    assert_true(m.mean[0] == 0.5f && m.std[0] == 0.5f);
    assert_string_equal(m.vit.normalisation, "half");
    kd_weights_close(w);
}

/* A DeiT's weights have a timm ViT's shapes: a name that knows better than the guess must be confirmed, for kd-eval it decides. */
static void a_deit_is_not_normalised_as_a_vit_without_a_word(void **state) {
    (void)state;
    static kd_tensor tensors[200];
    kd_arena *arena = kd_arena_create();
    char *folder = unit_folder(), path[4200];
    kd_weights *w = NULL;
    kd_model_info m;
    assert_ok(kd_model_find(&m, "deit_tiny_patch16_224", NULL, &err));
    assert_true(m.mean[0] == 0.485f);
    size_t count = add_model(tensors, arena, &m, "", 1);
    snprintf(path, sizeof path, "%s/some.safetensors", folder);
    assert_ok(kd_safetensors_write(path, tensors, count, NULL, &err));
    assert_ok(kd_weights_open(&w, path, &err));
    assert_ok(kd_model_find_teacher(&m, "vit_tiny_patch16_224", w, &(kd_teacher_choice){0}, &err));
    assert_true(m.mean[0] == 0.5f);
    check_choice(w, "deit_tiny_patch16_224", (kd_teacher_choice){0}, "--normalize imagenet");
    assert_ok(kd_model_find_teacher(&m, "deit_tiny_patch16_224", w, &(kd_teacher_choice){.normalize = "imagenet"}, &err));
    assert_true(m.mean[0] == 0.485f);
    assert_ok(kd_model_find(&m, "deit_tiny_patch16_224", w, &err));
    assert_true(m.mean[0] == 0.485f);
    kd_weights_close(w);
    kd_arena_destroy(arena);
    free(folder);
}

static void layers_and_features_are_checked(void **state) {
    (void)state;
    kd_model_info plain = tiny(&families[0]), registers = tiny(&families[1]);
    static const kd_layer_choice bad[] = {{.layers = 1, .layer = {1}},
                                          {.features = KD_WANT_CLS},
                                          {.layers = 1, .layer = {0}, .features = KD_WANT_CLS},
                                          {.layers = 1, .layer = {4}, .features = KD_WANT_CLS},
                                          {.layers = 2, .layer = {2, 1}, .features = KD_WANT_CLS},
                                          {.layers = 2, .layer = {2, 2}, .features = KD_WANT_CLS},
                                          {.layers = 65, .layer = {1}, .features = KD_WANT_CLS},
                                          {.layers = 1, .layer = {1}, .features = KD_WANT_REGISTERS}};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        assert_int_equal(kd_model_check_layers(&plain, &bad[i], &err), KD_EUSAGE);
    assert_contains(err.msg, "register");
    assert_ok(kd_model_check_layers(&registers, &bad[7], &err));
    assert_ok(kd_model_check_layers(&plain, &(kd_layer_choice){.layers = 3, .layer = {1, 2, 3}, .features = KD_WANT_CLS}, &err));
}

static void dinov3_teaches_and_is_not_a_student(void **state) {
    (void)state;
    kd_model_info m;
    assert_int_equal(kd_model_find(&m, "dinov3_vits16", NULL, &err), KD_EUSAGE);
    assert_contains(err.msg, "dinov3_vits16");
    m = tiny(&families[3]);
    assert_int_equal(kd_model_check_student(&m, &err), KD_EUSAGE);
    assert_ok(kd_model_find(&m, "dinov2_vits14_reg", NULL, &err));
    assert_ok(kd_model_check_student(&m, &err));
}

static void sides_are_checked_apart(void **state) {
    (void)state;
    kd_model_info m;
    assert_ok(kd_model_find(&m, "dinov2_w64_d1", NULL, &err));
    assert_ok(kd_model_check_size(&m, 112, 224, &err));
    assert_int_equal(kd_model_check_size(&m, 112, 225, &err), KD_EUSAGE);
    assert_contains(err.msg, "width 225");
    assert_int_equal(kd_model_check_size(&m, 113, 224, &err), KD_EUSAGE);
    assert_contains(err.msg, "height 113");
    assert_ok(kd_model_find(&m, "vit_tiny_patch16_224", NULL, &err));
    assert_ok(kd_model_check_size(&m, 224, 112, &err));
    assert_int_equal(kd_model_check_size(&m, 224, 120, &err), KD_EUSAGE);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(named_models_have_the_reference_number_of_parameters),
        cmocka_unit_test(layers_norm_mean_and_concat_equal_computing_by_hand),
        cmocka_unit_test(only_what_is_asked_for_is_built),
        cmocka_unit_test(operations_are_counted_as_inspect_says_them),
        cmocka_unit_test(cpu_equals_ref_in_every_family),
        cmocka_unit_test(passing_parameters_give_the_bits_of_loaded_ones),
        cmocka_unit_test(the_chosen_model_of_a_checkpoint_is_read),
        cmocka_unit_test(a_profile_changes_positions_and_nothing_else),
        cmocka_unit_test(choices_that_do_not_fit_are_refused_with_a_sentence),
        cmocka_unit_test(a_deit_is_not_normalised_as_a_vit_without_a_word),
        cmocka_unit_test(layers_and_features_are_checked),
        cmocka_unit_test(dinov3_teaches_and_is_not_a_student),
        cmocka_unit_test(sides_are_checked_apart),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

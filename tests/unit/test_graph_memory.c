/* Memory of a graph's programs: where it lies, that a step allocates nothing, frozen parameters, and allocations that fail. On the reference backend, and on the cpu's where it is there. */
#include "tests/unit/graph_fixture.h"

#include <stdlib.h>

#include "common/base/mem.h"
#include "kernels/nn/models.h"

/* ---- memory ---- */

static void spans_alive_together_never_overlap(void **state) {
    (void)state;
    enum { N = 200 };
    kd_span s[N];
    size_t total, sum = 0, peak = 0;
    for (int i = 0; i < N; i++) {
        uint32_t r = formula_bits("span", (uint32_t)i);
        s[i] = (kd_span){.bytes = 1 + r % 5000, .first = (int)(r >> 16) % 100};
        s[i].last = s[i].first + (int)(r >> 8) % 10;
        sum += s[i].bytes;
    }
    must(kd_plan_place(s, N, &total, &err));
    for (int i = 0; i < N; i++) {
        assert_int_equal(s[i].offset % 64, 0);
        assert_true(s[i].offset + s[i].bytes <= total);
        for (int k = 0; k < i; k++)
            if (s[i].first <= s[k].last && s[k].first <= s[i].last)
                assert_true(s[i].offset >= s[k].offset + s[k].bytes || s[k].offset >= s[i].offset + s[i].bytes);
    }
    for (int t = 0; t < 110; t++) {
        size_t now = 0;
        for (int i = 0; i < N; i++)
            now += s[i].first <= t && t <= s[i].last ? s[i].bytes : 0;
        peak = now > peak ? now : peak;
    }
    assert_true(total >= peak && total < peak + peak / 4);
    assert_true(total < sum / 4);
}

static void programs_take_no_more_than_is_alive_at_once(void **state) {
    (void)state;
    fixture f;
    make(&f);
    kd_exec *train = compile(&f, KD_F32, 1), *infer = compile(&f, KD_F32, 0), *kept = NULL;
    must(kd_exec_create(&kept, f.g, f.p, &(kd_exec_config){.batch = BATCH, .precision = KD_F32, .train = 1, .keep_values = 1}, &err));
    assert_true(infer->bytes[KD_ARENA_ACTIVATIONS] < train->bytes[KD_ARENA_ACTIVATIONS] / 2);
    assert_true(train->bytes[KD_ARENA_ACTIVATIONS] < kept->bytes[KD_ARENA_ACTIVATIONS]);
    assert_int_equal(infer->bytes[KD_ARENA_PARAM_GRADIENTS], 0);
    kd_exec_destroy(train);
    kd_exec_destroy(infer);
    kd_exec_destroy(kept);
    drop(&f);
}

static void one_step(kd_exec *e, fixture *f, float *out) {
    must(kd_exec_upload(e, "images", f->pixels, &err));
    must(kd_exec_forward(e, &err));
    if (e->config.train)
        must(kd_exec_backward(e, 0, &err));
    must(kd_exec_download(e, "cls", BATCH, out, &err));
    kd_params_changed(f->p); /* the next step packs again */
}

/* A training pass with everything that it reads uploaded; its gradients. */
static void trained(float *gradients, kd_exec *train, fixture *f, size_t count) {
    float out[BATCH * WIDTH];
    must(kd_exec_upload(train, "target_cls", f->target_cls, &err));
    must(kd_exec_upload(train, "target_map", f->target_map, &err));
    one_step(train, f, out);
    memcpy(gradients, kd_exec_gradients(train), count * sizeof *gradients);
}

static void inference_may_lie_in_the_memory_of_training(void **state) {
    (void)state;
    fixture f;
    float own[BATCH * WIDTH], other[BATCH * WIDTH], *gradients;
    size_t trainable;
    make(&f);
    kd_exec *train = compile(&f, KD_F32, 1), *alone = compile(&f, KD_F32, 0), *lent;
    must(kd_exec_create(&lent, f.g, f.p, &(kd_exec_config){.batch = BATCH, .precision = KD_F32, .values = train}, &err));
    assert_int_equal(kd_exec_device_bytes(alone) - kd_exec_device_bytes(lent), alone->bytes[KD_ARENA_ACTIVATIONS] + alone->bytes[KD_ARENA_SCRATCH]);
    kd_params_trained(f.p, NULL, &trainable);
    must(kd_alloc_array(&gradients, 2 * trainable, sizeof *gradients, &err));
    trained(gradients, train, &f, trainable);
    one_step(alone, &f, own);
    one_step(lent, &f, other);
    assert_memory_equal(own, other, sizeof own);
    trained(gradients + trainable, train, &f, trainable); /* batch norm's running statistics aren't read in training */
    assert_memory_equal(gradients, gradients + trainable, trainable * sizeof *gradients);
    kd_free(gradients);
    kd_exec_destroy(lent);
    kd_exec_destroy(alone);
    kd_exec_destroy(train);
    drop(&f);
}

/* ---- memory that is used again ---- */

/* Gradients and losses of a step of p's network, whose result must not depend on what lies where. */
static float *stepped(const kd_graph *g, kd_params *p, kd_backend *b, const uint8_t *pixels, int batch, int keep, size_t *count, size_t *bytes) {
    kd_exec *e = NULL;
    float *out;
    must(kd_exec_create(&e, g, p, &(kd_exec_config){.batch = batch, .precision = KD_F32, .train = 1, .keep_values = keep}, &err));
    must(kd_exec_upload(e, "images", pixels, &err));
    for (int i = 0; i < e->input_count; i++)
        if (e->inputs[i].desc.dtype == KD_F32)
            must(b->v->zero(b, e->inputs[i].data, kd_tdesc_bytes(&e->inputs[i].desc), &err));
    for (int twice = 0; twice < 2; twice++) { /* the second time nothing in memory is new */
        must(kd_exec_forward(e, &err));
        must(kd_exec_backward(e, 0, &err));
    }
    kd_params_trained(p, NULL, count);
    must(kd_alloc_array(&out, *count + 1, sizeof *out, &err));
    must(b->v->download(b, out, kd_exec_gradients(e), *count * sizeof *out, &err));
    must(kd_exec_download(e, "loss", 1, out + *count, &err));
    *bytes = kd_exec_device_bytes(e);
    kd_exec_destroy(e);
    return out;
}

static void check_student(kd_backend *b, const char *name) {
    enum { PIXELS = 64, IMAGES = 2 };
    static uint8_t pixels[IMAGES * PIXELS * PIXELS * 3];
    kd_model_info m;
    kd_params *p = NULL;
    kd_graph *g = kd_graph_create();
    size_t count, apart, again;
    assert_non_null(g);
    must(kd_model_find(&m, name, NULL, &err));
    kd_model_taps taps = kd_model_build(g, &m, PIXELS, PIXELS);
    kd_val map = kd_graph_linear(g, taps.map, "head", OUT, 1);
    kd_graph_mse(g, map, kd_graph_input(g, "target", 3, (int64_t[]){taps.map_h, taps.map_w, OUT}), 1, "loss");
    must(kd_params_create(&p, g, b, &err));
    must(kd_params_init(p, 3, &err));
    formula_pictures(pixels, sizeof pixels);
    float *want = stepped(g, p, b, pixels, IMAGES, 1, &count, &apart), *got = stepped(g, p, b, pixels, IMAGES, 0, &count, &again);
    if (memcmp(want, got, (count + 1) * sizeof *got) != 0)
        fail_msg("%s: memory that is used again changes gradients", name);
    assert_true(want[count] > 0 && again < apart);
    kd_free(want);
    kd_free(got);
    kd_params_destroy(p);
    kd_graph_destroy(g);
}

static void memory_that_is_used_again_changes_no_bit(void **state) {
    static const char *const students[] = {"resnet18", "mobilenet_v3_small", "convnext_tiny", "vit_tiny_patch16_224", "yolov8n", "yolo11n"};
    kd_backend *b;
    (void)state;
    if (kd_backend_open(&b, "cpu", 2, &err) != KD_OK) {
        print_message("skipped: %s\n", err.msg);
        skip();
    }
    for (size_t i = 0; i < sizeof students / sizeof *students; i++)
        check_student(b, students[i]);
    kd_backend_close(b);
}

/* Any allocation on the host would fail, and the device's are counted. */
static void check_steps(int train, kd_dtype precision) {
    fixture f;
    float out[BATCH * WIDTH];
    make(&f);
    kd_exec *e = compile(&f, precision, train);
    size_t before = device_allocs, live = kd_mem_live_bytes(), peak = kd_mem_peak_bytes();
    kd_mem_fail_after(1);
    for (int k = 0; k < 3; k++)
        one_step(e, &f, out);
    void *p = kd_malloc(1);
    assert_null(p); /* the fault was still armed: nobody had allocated */
    assert_int_equal(device_allocs, before);
    assert_int_equal(kd_mem_live_bytes(), live);
    assert_int_equal(kd_mem_peak_bytes(), peak);
    kd_exec_destroy(e);
    drop(&f);
}

static void a_step_allocates_nothing(void **state) {
    for (int mode = 0; mode < 4; mode++)
        check_steps(mode >> 1, mode & 1 ? KD_BF16 : KD_F32);
    /* Where its module is there, the same with oneDNN. The counting table belongs to one backend at a time. */
    close_ref(state);
    if (open_counted(&ref, "cpu") == 0) {
        int modes = ref->v->check_bf16(ref, &err) == KD_OK ? 2 : 1;
        for (int mode = 0; mode < 4; mode++)
            if ((mode & 1) < modes)
                check_steps(mode >> 1, mode & 1 ? KD_BF16 : KD_F32);
        close_ref(state);
    }
    assert_int_equal(open_ref(state), 0);
}

/* ---- frozen parameters ---- */

/* The formula's values, as a weight file would give them. */
typedef struct formula_source {
    const kd_params *infos;
    int reads[64]; /* per parameter */
    const char *damaged;
} formula_source;

static kd_status read_formula(void *ctx, const char *name, float *out, size_t count, kd_err *e) {
    formula_source *s = ctx;
    int i = kd_params_find(s->infos, name);
    assert_true(i >= 0 && i < 64);
    kd_param_info info = kd_params_info(s->infos, i);
    assert_int_equal(info.count, count);
    if (s->damaged && strcmp(name, s->damaged) == 0)
        return kd_fail(e, KD_EFAIL, "tensor %s is damaged", name);
    formula_fill(out, &info);
    s->reads[i]++;
    return KD_OK;
}

static size_t live_device_bytes; /* allocated through sized_alloc and not yet released */

typedef struct block {
    void *p;
    size_t bytes;
} block;
static block blocks[64];

static kd_status sized_alloc(kd_backend *b, void **out, size_t bytes, kd_err *e) {
    kd_status s = plain.alloc(b, out, bytes, e);
    for (int i = 0; s == KD_OK && bytes && i < 64; i++)
        if (!blocks[i].p) {
            blocks[i] = (block){*out, bytes};
            live_device_bytes += bytes;
            break;
        }
    return s;
}

static void sized_release(kd_backend *b, void *p) {
    for (int i = 0; p && i < 64; i++)
        if (blocks[i].p == p) {
            live_device_bytes -= blocks[i].bytes;
            blocks[i].p = NULL;
        }
    plain.release(b, p);
}

/* Bytes that the parameters of a program's nodes take where packing consumes them, and where it doesn't. */
static void parameter_bytes(const kd_exec *e, size_t *consumed, size_t *kept) {
    char seen[64] = {0}; /* a norm may stand in two nodes */
    *consumed = *kept = 0;
    for (int i = 0; i < e->node_count; i++) {
        const kd_pnode *n = &e->nodes[i];
        for (int k = 0; k < KD_OP_MAX_PARAM; k++)
            if (n->param[k] >= 0 && !seen[n->param[k]]++)
                *(n->needs.consumed >> k & 1 ? consumed : kept) += (e->p->params[n->param[k]].info.count * 4 + 63) / 64 * 64;
        for (int k = 0; k < KD_OP_MAX_STATE; k++)
            if (n->state[k] >= 0)
                *kept += (e->p->params[n->state[k]].info.count * 4 + 63) / 64 * 64;
    }
}

static void check_frozen(const char *device, kd_dtype precision) {
    fixture f;
    kd_params *frozen = NULL;
    formula_source source = {0};
    size_t consumed, kept, live;
    make(&f);
    source.infos = f.p;
    kd_exec *want = compile(&f, precision, 0), *got = NULL;
    must(kd_exec_forward(want, &err));
    live = live_device_bytes;
    must(kd_params_create_frozen(&frozen, f.g, ref, &(kd_param_source){read_formula, &source}, &err));
    assert_int_equal(live_device_bytes, live); /* they have no array */
    assert_null(kd_params_trained(frozen, NULL, NULL));
    must(kd_exec_create(&got, f.g, frozen, &(kd_exec_config){.batch = BATCH, .precision = precision}, &err));
    parameter_bytes(got, &consumed, &kept);
    assert_true(strcmp(device, "cpu") == 0 ? consumed > 0 : consumed == 0);
    /* The program is the ordinary one and the parameters that ops still read; what packing consumed is gone. */
    assert_int_equal(got->bytes[KD_ARENA_PARAMETERS], kept);
    assert_int_equal(kd_exec_model_bytes(got), kept + got->bytes[KD_ARENA_PACKED]);
    assert_int_equal(kd_exec_device_bytes(got), kd_exec_device_bytes(want) + kept);
    assert_int_equal(live_device_bytes - live, kd_exec_device_bytes(got));
    must(kd_exec_upload(got, "images", f.pixels, &err));
    size_t before = packs;
    must(kd_exec_forward(got, &err));
    must(kd_exec_forward(got, &err));
    assert_int_equal(packs, before);
    static const char *const outputs[] = {"cls", "map", "mean", "both"};
    for (int o = 0; o < 4; o++) {
        float a[BATCH * 16 * WIDTH], b[BATCH * 16 * WIDTH];
        kd_tdesc d;
        assert_non_null(kd_exec_output(got, outputs[o], &d));
        must(kd_exec_download(want, outputs[o], BATCH, a, &err));
        must(kd_exec_download(got, outputs[o], BATCH, b, &err));
        assert_memory_equal(a, b, kd_tdesc_numel(&d) * sizeof *a);
    }
    for (int i = 0; i < kd_params_count(f.p); i++) { /* each once; the heads, which inference leaves out, and the counters never */
        kd_param_info info = kd_params_info(f.p, i);
        assert_int_equal(source.reads[i], strncmp(info.name, "head", 4) != 0 && !info.is_counter);
    }
    kd_exec_destroy(want);
    kd_exec_destroy(got);
    kd_params_destroy(frozen);
    drop(&f);
}

static void frozen_parameters_give_the_same_bits_in_less_memory(void **state) {
    static const char *const devices[] = {"ref", "cpu"};
    close_ref(state);
    for (int d = 0; d < 2; d++) {
        if (open_counted(&ref, devices[d]) != 0)
            continue;
        counting.alloc = sized_alloc;
        counting.release = sized_release;
        check_frozen(devices[d], KD_F32);
        if (ref->v->check_bf16(ref, &err) == KD_OK)
            check_frozen(devices[d], KD_BF16);
        assert_int_equal(live_device_bytes, 0);
        close_ref(state);
    }
    assert_int_equal(open_ref(state), 0);
}

static void a_source_that_fails_is_quoted(void **state) {
    (void)state;
    fixture f;
    kd_params *frozen = NULL;
    kd_exec *e = NULL;
    make(&f);
    size_t live = kd_mem_live_bytes();
    static const char *const damaged[] = {"fc1.weight", "norm.bias", "bn1.running_var"};
    for (int i = 0; i < 3; i++) {
        formula_source source = {.infos = f.p, .damaged = damaged[i]};
        must(kd_params_create_frozen(&frozen, f.g, ref, &(kd_param_source){read_formula, &source}, &err));
        assert_int_equal(kd_exec_create(&e, f.g, frozen, &(kd_exec_config){.batch = BATCH}, &err), KD_EFAIL);
        assert_null(e);
        assert_contains(err.msg, damaged[i]);
        kd_params_destroy(frozen);
        assert_int_equal(kd_mem_live_bytes(), live);
    }
    drop(&f);
}

static kd_status read_ones(void *ctx, const char *name, float *out, size_t count, kd_err *e) {
    (void)ctx;
    (void)name;
    (void)e;
    for (size_t i = 0; i < count; i++)
        out[i] = 1;
    return KD_OK;
}

/* Everything from building to the first pass, with the n-th allocation failing. */
static kd_status whole_life(int freeze) {
    kd_graph *g = kd_graph_create();
    kd_params *p = NULL;
    kd_exec *e = NULL;
    if (!g)
        return KD_EFAIL;
    build(g);
    kd_status s = freeze ? kd_params_create_frozen(&p, g, ref, &(kd_param_source){read_ones, NULL}, &err) : kd_params_create(&p, g, ref, &err);
    if (s == KD_OK && !freeze)
        s = kd_params_init(p, 1, &err);
    if (s == KD_OK)
        s = kd_exec_create(&e, g, p, &(kd_exec_config){.batch = BATCH, .train = !freeze}, &err);
    if (s == KD_OK)
        s = kd_exec_forward(e, &err);
    kd_exec_destroy(e);
    kd_params_destroy(p);
    kd_graph_destroy(g);
    return s;
}

static void check_failing_allocations(int freeze) {
    size_t live = kd_mem_live_bytes(), n = 1, failures = 0;
    for (;; n++) {
        kd_mem_fail_after(n);
        kd_status s = whole_life(freeze);
        void *probe = kd_malloc(1); /* NULL: the fault hadn't fired yet */
        int fired = probe != NULL;
        kd_free(probe);
        kd_mem_fail_after(0);
        assert_int_equal(kd_mem_live_bytes(), live);
        if (!fired) {
            assert_int_equal(s, KD_OK);
            break;
        }
        failures += s == KD_EFAIL;
        assert_true(s == KD_EFAIL);
        assert_true(n < 100000);
    }
    assert_true(failures > 50);
}

static void every_failing_allocation_is_an_error_without_a_leak(void **state) {
    (void)state;
    check_failing_allocations(0);
    check_failing_allocations(1);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(spans_alive_together_never_overlap),
        cmocka_unit_test(programs_take_no_more_than_is_alive_at_once),
        cmocka_unit_test(memory_that_is_used_again_changes_no_bit),
        cmocka_unit_test(inference_may_lie_in_the_memory_of_training),
        cmocka_unit_test(a_step_allocates_nothing),
        cmocka_unit_test(frozen_parameters_give_the_same_bits_in_less_memory),
        cmocka_unit_test(a_source_that_fails_is_quoted),
        cmocka_unit_test(every_failing_allocation_is_an_error_without_a_leak),
    };
    return cmocka_run_group_tests(tests, open_ref, close_ref);
}

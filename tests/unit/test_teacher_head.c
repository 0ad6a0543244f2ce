/* A teacher's classifier from a weight file: found by its shape, with or without a bias; logits are W x + b. */
#include "tests/unit/unit.h"

#include "common/tensor/dtype.h"
#include "common/weights/safetensors.h"
#include "train/teacher_head.h"

enum { CLASSES = 5, WIDTH = 8 };

static kd_err err;
static char *folder, path[4200];

static int fresh(void **state) {
    (void)state;
    folder = unit_folder();
    snprintf(path, sizeof path, "%s/head.safetensors", folder);
    return 0;
}
static int drop(void **state) {
    (void)state;
    free(folder);
    return 0;
}

/* value(i) = i / 8 - 1, exact in f16. */
static const float *values(void) {
    static float v[256];
    for (int i = 0; i < 256; i++)
        v[i] = (float)i / 8 - 1;
    return v;
}

static kd_tensor matrix(const char *name, int64_t rows, int64_t columns) {
    return (kd_tensor){.name = name, .dtype = KD_F32, .rank = 2, .shape = {rows, columns}, .data = values()};
}
static kd_tensor vector(const char *name, int64_t n) {
    return (kd_tensor){.name = name, .dtype = KD_F32, .rank = 1, .shape = {n}, .data = values() + 100};
}

static kd_status open_of(kd_teacher_head **h, const kd_tensor *t, size_t n) {
    assert_ok(kd_safetensors_write(path, t, n, NULL, &err));
    return kd_teacher_head_open(h, path, WIDTH, &err);
}

static void logits_are(const kd_teacher_head *h, int biased) {
    float cls[WIDTH], got[CLASSES];
    for (int c = 0; c < WIDTH; c++)
        cls[c] = (float)(c % 3) - 0.75f;
    kd_teacher_head_logits(h, cls, got);
    for (int k = 0; k < CLASSES; k++) {
        double want = biased ? (double)values()[100 + k] : 0;
        for (int c = 0; c < WIDTH; c++)
            want += (double)values()[k * WIDTH + c] * (double)cls[c];
        assert_true(got[k] == (float)want);
    }
}

static void a_linear_layer_is_found_by_its_shape(void **state) {
    (void)state;
    kd_teacher_head *h;
    const kd_tensor t[] = {vector("fc.bias", CLASSES), matrix("fc.weight", CLASSES, WIDTH), matrix("other", WIDTH, 3), vector("norm.weight", WIDTH)};
    assert_ok(open_of(&h, t, 4));
    assert_int_equal(h->classes, CLASSES);
    assert_int_equal(h->width, WIDTH);
    logits_are(h, 1);
    kd_teacher_head_close(h);
    assert_ok(open_of(&h, &t[1], 1));
    logits_are(h, 0);
    kd_teacher_head_close(h);
    const kd_tensor bare[] = {matrix("weight", CLASSES, WIDTH), vector("bias", CLASSES)};
    assert_ok(open_of(&h, bare, 2));
    logits_are(h, 1);
    kd_teacher_head_close(h);
    kd_teacher_head_close(NULL);
}

/* The bias of "weights.linear.weight" is "weights.linear.bias": what stands before is left alone, and a tensor whose name doesn't end so has none. */
static void the_bias_is_the_one_beside_the_matrix(void **state) {
    (void)state;
    kd_teacher_head *h;
    const kd_tensor t[] = {vector("bias", 3), matrix("weights.linear.weight", CLASSES, WIDTH), vector("weights.linear.bias", CLASSES)};
    assert_ok(open_of(&h, t, 3));
    logits_are(h, 1);
    kd_teacher_head_close(h);
    const kd_tensor none[] = {matrix("a.weight_g", CLASSES, WIDTH), vector("a.bias", CLASSES)};
    assert_ok(open_of(&h, none, 2));
    logits_are(h, 0);
    kd_teacher_head_close(h);
}

static void of_a_whole_network_the_classifier_is_taken_by_its_name(void **state) {
    (void)state;
    kd_teacher_head *h;
    const kd_tensor t[] = {matrix("blocks.0.attn.qkv.weight", 3 * WIDTH, WIDTH), matrix("head.weight", CLASSES, WIDTH), vector("head.bias", CLASSES), matrix("blocks.0.mlp.fc1.weight", 4 * WIDTH, WIDTH)};
    assert_ok(open_of(&h, t, 4));
    assert_int_equal(h->classes, CLASSES);
    logits_are(h, 1);
    kd_teacher_head_close(h);
}

/* What a resumed run compares: values, in whatever file and under whatever name they are. */
static void its_hash_is_of_the_values(void **state) {
    (void)state;
    kd_teacher_head *a, *b, *c;
    const kd_tensor one[] = {matrix("fc.weight", CLASSES, WIDTH), vector("fc.bias", CLASSES)}, other[] = {vector("norm.weight", WIDTH), matrix("head.weight", CLASSES, WIDTH), vector("head.bias", CLASSES)};
    assert_ok(open_of(&a, one, 2));
    assert_ok(open_of(&b, other, 3));
    assert_ok(open_of(&c, one, 1));
    assert_memory_equal(&a->sha, &b->sha, sizeof a->sha);
    assert_memory_not_equal(&a->sha, &c->sha, sizeof a->sha);
    kd_teacher_head_close(a);
    kd_teacher_head_close(b);
    kd_teacher_head_close(c);
}

static void half_precision_is_read(void **state) {
    (void)state;
    kd_teacher_head *h;
    uint16_t half[CLASSES * WIDTH];
    for (int i = 0; i < CLASSES * WIDTH; i++)
        half[i] = kd_f32_to_f16(values()[i]);
    const kd_tensor t = {.name = "head.weight", .dtype = KD_F16, .rank = 2, .shape = {CLASSES, WIDTH}, .data = half};
    assert_ok(open_of(&h, &t, 1));
    logits_are(h, 0);
    kd_teacher_head_close(h);
}

static void refused(const kd_tensor *t, size_t n, const char *says) {
    kd_teacher_head *h;
    assert_int_equal(open_of(&h, t, n), KD_EUSAGE);
    assert_null(h);
    assert_contains(err.msg, says);
    assert_contains(err.msg, "head.safetensors");
}

static void what_is_no_classifier_is_refused_with_what_is_there(void **state) {
    (void)state;
    const kd_tensor none[] = {vector("x", WIDTH)}, wrong[] = {matrix("fc.weight", CLASSES, WIDTH + 1), matrix("one", 1, WIDTH)},
                    two[] = {matrix("a.weight", 3, WIDTH), matrix("b.weight", 4, WIDTH)}, bias[] = {matrix("fc.weight", CLASSES, WIDTH), vector("fc.bias", CLASSES - 1)};
    refused(none, 1, "no tensor has the shape [classes, 8]");
    assert_contains(err.msg, "matrices there: none");
    refused(wrong, 2, "no tensor has the shape [classes, 8]");
    assert_contains(err.msg, "fc.weight [5, 9]");
    refused(two, 2, "a.weight and b.weight are both matrices [classes, 8]");
    refused(bias, 2, "fc.bias has another length than the 5 classes of fc.weight");
    kd_teacher_head *h;
    snprintf(path, sizeof path, "%s/nowhere.safetensors", folder);
    assert_true(kd_teacher_head_open(&h, path, WIDTH, &err) != KD_OK);
    assert_null(h);
    assert_contains(err.msg, "nowhere.safetensors");
}

int main(void) {
#define T(f) cmocka_unit_test_setup_teardown(f, fresh, drop)
    const struct CMUnitTest tests[] = {
        T(a_linear_layer_is_found_by_its_shape), T(the_bias_is_the_one_beside_the_matrix), T(of_a_whole_network_the_classifier_is_taken_by_its_name), T(its_hash_is_of_the_values), T(half_precision_is_read), T(what_is_no_classifier_is_refused_with_what_is_there),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

/* The teacher that ships with the project, on drawn pictures, against the DINOv2 architecture in PyTorch: decode, eval view, network in one. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <cmocka.h>
#include <string.h>

#include "common/base/mem.h"
#include "common/tensor/compare.h"
#include "train/eval/features.h"

#define FOLDER "tests/golden/demo_teacher/"
enum { PICTURES = 3, WIDTH = 128, PATCHES = 256, STEP = 5, KEPT = (PATCHES + STEP - 1) / STEP };

/* Measured: ref 1.0e-6 absolute, cpu f32 1.3e-5, bf16 2.1e-2 with cosine 0.999996; features are of size 1 to 10. In bf16 the cosine is the criterion. */
static const kd_tolerance f32_tolerance = {.abs = 1e-4, .rel = 0, .min_cosine = 0.999999};
static const kd_tolerance bf16_tolerance = {.abs = 1e9, .rel = 0, .min_cosine = 0.999};

static void compare_features(const kd_feature_set *set, kd_tolerance tolerance) {
    static float cls[PICTURES * WIDTH], patch[PICTURES * KEPT * WIDTH], got[PICTURES * KEPT * WIDTH];
    kd_err err = {0};
    kd_weights *golden = NULL;
    assert_int_equal(KD_OK, kd_weights_open(&golden, FOLDER "golden.safetensors", &err));
    assert_int_equal(KD_OK, kd_weights_read_f32(golden, kd_weights_find(golden, "cls"), cls, PICTURES * WIDTH, &err));
    assert_int_equal(KD_OK, kd_weights_read_f32(golden, kd_weights_find(golden, "patch"), patch, PICTURES * KEPT * WIDTH, &err));
    kd_weights_close(golden);
    for (int i = 0; i < PICTURES; i++)
        for (int k = 0; k < KEPT; k++)
            memcpy(got + (i * KEPT + k) * WIDTH, set->values[KD_TAP_PATCH] + ((size_t)i * PATCHES + (size_t)(k * STEP)) * WIDTH, WIDTH * sizeof(float));
    kd_comparison c = kd_compare(&(kd_tensor){.name = "cls", .dtype = KD_F32, .rank = 2, .shape = {PICTURES, WIDTH}, .data = set->values[KD_TAP_CLS]},
                                 &(kd_tensor){.name = "cls", .dtype = KD_F32, .rank = 2, .shape = {PICTURES, WIDTH}, .data = cls}, tolerance);
    print_message("%s\n", c.text);
    assert_true(c.equal);
    c = kd_compare(&(kd_tensor){.name = "patch", .dtype = KD_F32, .rank = 3, .shape = {PICTURES, KEPT, WIDTH}, .data = got},
                   &(kd_tensor){.name = "patch", .dtype = KD_F32, .rank = 3, .shape = {PICTURES, KEPT, WIDTH}, .data = patch}, tolerance);
    print_message("%s\n", c.text);
    assert_true(c.equal);
}

static void check_on(const char *device, kd_dtype precision, kd_tolerance tolerance) {
    kd_err err = {0};
    kd_extractor *x = NULL;
    kd_feature_set set = {0};
    kd_extractor_options o = {.model = "auto", .weights = FOLDER "demo_teacher.safetensors", .image_h = 224, .image_w = 224, .batch = 2, .threads = 2, .device = device, .precision = precision};
    kd_status status = kd_extractor_open(&x, &o, &err);
    if (status == KD_ENODEVICE) {
        print_message("needs: %s\n", err.msg);
        skip();
    }
    assert_int_equal(KD_OK, status);
    assert_int_equal(KD_OK, kd_features_run(kd_extractor_network(x), FOLDER "pictures", KD_LIST_LINES, 1u << KD_TAP_CLS | 1u << KD_TAP_PATCH, &set, &err));
    assert_int_equal(PICTURES, set.count);
    compare_features(&set, tolerance);
    kd_feature_set_free(&set);
    kd_extractor_close(x);
}

static void ref_equals_pytorch(void **state) {
    (void)state;
    check_on("ref", KD_F32, f32_tolerance);
}

static void cpu_equals_pytorch(void **state) {
    (void)state;
    check_on("cpu", KD_F32, f32_tolerance);
}

static void cpu_in_bf16_is_close_to_pytorch(void **state) {
    (void)state;
    check_on("cpu", KD_BF16, bf16_tolerance);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(ref_equals_pytorch),
        cmocka_unit_test(cpu_equals_pytorch),
        cmocka_unit_test(cpu_in_bf16_is_close_to_pytorch),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

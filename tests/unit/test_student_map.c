/* The rule for the sizes of students' maps against the networks that kernels/nn builds. */
#include "cache/student_map.h"
#include "kernels/nn/models.h"
#include "tests/unit/unit.h"

/* The map that kernels/nn gives this student, or 0 x 0 where it refuses name or size. */
static kd_map_size built(const char *name, int height, int width)
{
    kd_model_info m;
    kd_model_taps taps;
    kd_graph *g;
    if (kd_model_find(&m, name, NULL, NULL) != KD_OK || kd_model_check_student(&m, NULL) != KD_OK || kd_model_check_size(&m, height, width, NULL) != KD_OK)
        return (kd_map_size){0, 0};
    g = kd_graph_create();
    assert_non_null(g);
    taps = kd_model_build(g, &m, height, width);
    kd_graph_destroy(g);
    return (kd_map_size){taps.map_h, taps.map_w};
}

static void agree(const char *name, int height, int width)
{
    kd_map_size want = built(name, height, width), got = {0, 0};
    if (kd_student_map(&got, name, height, width, NULL) != KD_OK)
        got = (kd_map_size){0, 0};
    if (got.h != want.h || got.w != want.w)
        fail_msg("%s at %d x %d: the rule says %d x %d, the network is %d x %d", name, height, width, got.h, got.w, want.h, want.w);
}

static void maps_are_those_of_the_networks(void **state)
{
    static const int size[][2] = {{224, 224}, {112, 112}, {98, 98}, {518, 518}, {224, 336}, {97, 33}, {63, 65}, {31, 224}, {64, 96}, {640, 640}, {8193, 224}, {238, 154}, {7, 7}};
    static const char *const other[] = {"dinov2_w64_d1", "dinov2_w192_d6", "dinov2_w100_d6", "dinov2_w64_d0", "dinov2_w64", "dinov2_w64_d1x", "resnet19", "yolov8", "yolo11m", "dinov3_vitb16", ""};
    const char *name;
    (void)state;
    for (size_t s = 0; s < sizeof size / sizeof size[0]; s++) {
        for (size_t i = 0; i < sizeof other / sizeof other[0]; i++)
            agree(other[i], size[s][0], size[s][1]);
        for (size_t i = 0; (name = kd_model_students(i)) != NULL; i++)
            agree(name, size[s][0], size[s][1]);
    }
}

static void examples_are_students(void **state)
{
    kd_err err;
    kd_map_size map;
    (void)state;
    for (size_t i = 0; kd_student_example(i); i++)
        assert_ok(kd_student_map(&map, kd_student_example(i), 224, 224, &err));
}

static void sentences_name_what_is_wrong(void **state)
{
    kd_err err;
    kd_map_size map;
    (void)state;
    assert_int_equal(kd_student_map(&map, "resnet81", 224, 224, &err), KD_EUSAGE);
    assert_contains(err.msg, "the nearest is resnet18");
    assert_int_equal(kd_student_map(&map, "vit_small_patch16_224", 112, 120, &err), KD_EUSAGE);
    assert_contains(err.msg, "multiples of 16, up to 8192, not 112 x 120");
    assert_int_equal(kd_student_map(&map, "dinov2_vits14", 100, 112, &err), KD_EUSAGE);
    assert_contains(err.msg, "multiples of 14");
    assert_int_equal(kd_student_map(&map, "yolov8n", 224, 208, &err), KD_EUSAGE);
    assert_contains(err.msg, "multiples of 32, not 224 x 208");
}

static void a_map_below_the_grid_gets_its_adjoint(void **state)
{
    kd_target t = kd_student_target(&(kd_map_size){7, 7}, 16, 16);
    (void)state;
    assert_int_equal(t.kind, KD_TARGET_ADJOINT);
    assert_int_equal(t.h, 7);
    assert_int_equal(kd_student_target(&(kd_map_size){16, 16}, 16, 16).kind, KD_TARGET_FULL);
    assert_int_equal(kd_student_target(&(kd_map_size){28, 28}, 16, 16).kind, KD_TARGET_FULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(maps_are_those_of_the_networks),
        cmocka_unit_test(examples_are_students),
        cmocka_unit_test(sentences_name_what_is_wrong),
        cmocka_unit_test(a_map_below_the_grid_gets_its_adjoint),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

/* timm's view of students against what timm builds (tests/golden/export/make_timm_names.py): names and shapes of a ConvNeXt, architectures and arguments, sizes. */
#include "tests/unit/unit.h"

#include "common/base/mem.h"
#include "train/export/timm_layout.h"

#define GOLDEN "tests/golden/export/"
enum { NAMES = 400, NAME = 128 };

static kd_err err;

static kd_model_info find(const char *name) {
    kd_model_info m;
    assert_ok(kd_model_find(&m, name, NULL, &err));
    return m;
}

static void line_of(const kd_tensor *t, char out[NAME]) {
    int at = snprintf(out, NAME, "%s", t->name);
    for (int d = 0; d < t->rank; d++)
        at += snprintf(out + at, (size_t)(NAME - at), " %lld", (long long)t->shape[d]);
}

static void read_state(kd_model_state *s, kd_params **p, kd_graph **g, kd_backend **b, const kd_model_info *m) {
    assert_ok(kd_backend_open(b, "ref", 1, &err));
    *g = kd_graph_create();
    kd_model_build(*g, m, 32, 32);
    assert_ok(kd_params_create(p, *g, *b, &err));
    assert_ok(kd_model_state_read(s, *p, m, KD_F32, &err));
}

static void a_convnext_has_timms_names_and_shapes(void **state) {
    (void)state;
    static char want[NAMES][NAME];
    size_t count = 0;
    FILE *f = fopen(GOLDEN "timm_convnext_tiny.txt", "r");
    assert_non_null(f);
    while (count < NAMES && fgets(want[count], NAME, f) != NULL) {
        want[count][strcspn(want[count], "\n")] = '\0';
        count++;
    }
    fclose(f);
    kd_model_info m = find("convnext_tiny");
    kd_model_state s;
    kd_params *p;
    kd_graph *g;
    kd_backend *b;
    kd_arena *arena = kd_arena_create();
    read_state(&s, &p, &g, &b, &m);
    assert_ok(kd_timm_rename(&s, &m, arena, &err));
    assert_int_equal(s.count, count);
    for (size_t i = 0; i < s.count; i++) {
        char line[NAME];
        size_t k = 0;
        line_of(&s.tensor[i], line);
        while (k < count && strcmp(want[k], line) != 0)
            k++;
        if (k == count)
            fail_msg("timm has no \"%s\", or not twice", line);
        want[k][0] = '\0';
    }
    kd_model_state_free(&s);
    kd_arena_destroy(arena);
    kd_params_destroy(p);
    kd_graph_destroy(g);
    kd_backend_close(b);
}

static void other_students_keep_their_names(void **state) {
    (void)state;
    kd_model_info m = find("resnet18");
    kd_model_state s;
    kd_params *p;
    kd_graph *g;
    kd_backend *b;
    read_state(&s, &p, &g, &b, &m);
    assert_ok(kd_timm_rename(&s, &m, NULL, &err));
    assert_string_equal(s.tensor[0].name, "conv1.weight");
    kd_model_state_free(&s);
    kd_params_destroy(p);
    kd_graph_destroy(g);
    kd_backend_close(b);
}

static void every_student_is_the_network_that_timm_builds(void **state) {
    (void)state;
    char student[64], architecture[64], rest[200];
    int width, lines = 0;
    long long parameters;
    FILE *f = fopen(GOLDEN "timm_architectures.txt", "r");
    assert_non_null(f);
    for (; fscanf(f, "%63s %63s %d %lld %199[^\n]", student, architecture, &width, &parameters, rest) == 5; lines++) {
        kd_model_info m = find(student);
        json_t *want, *args, *config = kd_timm_config(&m, 224, 224, NULL);
        assert_true(kd_timm_loads(&m));
        assert_string_equal(json_string_value(json_object_get(config, "architecture")), architecture);
        assert_int_equal(json_integer_value(json_object_get(config, "num_features")), width);
        args = json_object_get(config, "model_args");
        json_object_del(args, "img_size");
        assert_ok(kd_json_parse(rest, strlen(rest), student, &want, &err));
        assert_true(json_equal(args, want));
        kd_model_facts facts;
        assert_ok(kd_model_measure(&facts, &m, 224, 224, &err));
        /* timm keeps no position for the class token of a network with registers: it adds it to the token */
        if (facts.parameters != (size_t)parameters + (m.vit.registers > 0 ? (size_t)width : 0))
            fail_msg("%s has %zu parameters, timm's %s %lld", student, facts.parameters, architecture, parameters);
        json_decref(want);
        json_decref(config);
    }
    fclose(f);
    assert_int_equal(lines, 10);
}

static void the_configuration_says_how_pictures_are_prepared(void **state) {
    (void)state;
    kd_model_info m = find("vit_tiny_patch16_224");
    json_t *config = kd_timm_config(&m, 112, 160, "mit"), *prepare = json_object_get(config, "pretrained_cfg"), *size = json_object_get(prepare, "input_size");
    assert_int_equal(json_integer_value(json_array_get(size, 1)), 112);
    assert_int_equal(json_integer_value(json_array_get(size, 2)), 160);
    assert_int_equal(json_integer_value(json_array_get(json_object_get(json_object_get(config, "model_args"), "img_size"), 1)), 160);
    assert_true(json_real_value(json_array_get(json_object_get(prepare, "mean"), 0)) == 0.5);
    assert_string_equal(json_string_value(json_object_get(prepare, "license")), "mit");
    json_decref(config);
    m = find("mobilenet_v3_small"); /* timm's network of that name has other layers: nothing there may look for one */
    config = kd_timm_config(&m, 224, 224, NULL);
    prepare = json_object_get(config, "pretrained_cfg");
    assert_false(kd_timm_loads(&m));
    assert_null(json_object_get(config, "architecture"));
    assert_string_equal(json_string_value(json_object_get(config, "library")), "torchvision");
    assert_true(json_real_value(json_array_get(json_object_get(prepare, "std"), 0)) == 0.229);
    assert_null(json_object_get(prepare, "license"));
    json_decref(config);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_convnext_has_timms_names_and_shapes),
        cmocka_unit_test(other_students_keep_their_names),
        cmocka_unit_test(every_student_is_the_network_that_timm_builds),
        cmocka_unit_test(the_configuration_says_how_pictures_are_prepared),
    };
    return cmocka_run_group_tests_name("timm layout", tests, NULL, NULL);
}

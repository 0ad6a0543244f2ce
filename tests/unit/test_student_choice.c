/* What one --student says: a model, a name, and settings of its own over the run's. */
#include "tests/unit/unit.h"

#include "train/student_choice.h"

static kd_err err;
static kd_arena *arena;
static kd_train_config run;

static int fresh(void **state) {
    (void)state;
    char *argv[] = {"kd-train", "--cache", "c", "--images", "i", "--out", "o", "--student", "resnet18", "--lr", "0.5"};
    arena = kd_arena_create();
    memset(&run, 0, sizeof run);
    assert_ok(kd_options_parse(&kd_train_program, &run, 11, argv, NULL, arena, &err));
    return 0;
}
static int drop(void **state) {
    (void)state;
    kd_arena_destroy(arena);
    return 0;
}

static void a_bare_model_has_the_settings_of_the_run(void **state) {
    (void)state;
    kd_student_choice c;
    assert_ok(kd_student_choice_parse(&c, "resnet18", &run, arena, &err));
    assert_string_equal(c.model, "resnet18");
    assert_string_equal(c.name, "resnet18");
    assert_memory_equal(&c.config, &run, sizeof run);
}

static void own_settings_win_over_those_of_the_run_and_touch_no_other(void **state) {
    (void)state;
    kd_student_choice c;
    assert_ok(kd_student_choice_parse(&c, "resnet18,name=r18-low,lr=3e-4,cls-weight=0.5,init=a=b.pth", &run, arena, &err));
    assert_string_equal(c.model, "resnet18");
    assert_string_equal(c.name, "r18-low");
    assert_string_equal(c.config.lr, "3e-4");
    assert_string_equal(c.config.cls_weight, "0.5");
    assert_string_equal(c.config.init, "a=b.pth");
    assert_string_equal(run.lr, "0.5");
    assert_string_equal(run.cls_weight, "auto");
    assert_null(run.init);
    assert_ok(kd_student_choice_parse(&c, "name=x,model=vit_tiny_patch16_224", &run, arena, &err));
    assert_string_equal(c.model, "vit_tiny_patch16_224");
    assert_string_equal(c.name, "x");
}

static void a_config_file_may_write_a_student_as_a_mapping(void **state) {
    (void)state;
    char *folder = unit_folder(), path[4200];
    static const char text[] = "cache: c\nimages: i\nout: o\nstudent:\n  - resnet18\n  - {model: resnet18, name: second, lr: 0.25, cls-weight: 2, pair: [{student: layer3, weight: 0.5}, {teacher: cls}]}\n";
    snprintf(path, sizeof path, "%s/c.yaml", folder);
    unit_write(path, text, strlen(text));
    kd_train_config c = {0};
    kd_student_choice *all;
    assert_ok(kd_options_parse(&kd_train_program, &c, 3, (char *[]){"kd-train", "--config", path}, NULL, arena, &err));
    assert_int_equal(c.students.count, 2);
    assert_ok(kd_student_choices(&all, &c, arena, &err));
    assert_string_equal(all[0].name, "resnet18");
    assert_string_equal(all[1].name, "second");
    assert_string_equal(all[1].model, "resnet18");
    assert_string_equal(all[1].config.lr, "0.25");
    assert_string_equal(all[1].config.cls_weight, "2");
    assert_int_equal(all[1].config.pairs.count, 2);
    assert_string_equal(all[1].config.pairs.item[0], "student=layer3,weight=0.5");
    assert_string_equal(all[1].config.pairs.item[1], "teacher=cls");
    free(folder);
}

static void pairs_of_its_own_take_the_place_of_the_runs(void **state) {
    (void)state;
    const char *shared[] = {"teacher=cls"};
    kd_student_choice c;
    run.pairs = (kd_strings){shared, 1};
    assert_ok(kd_student_choice_parse(&c, "resnet18,pair=[student=layer3,teacher=patch:2],lr=2,pair=[teacher=cls,weight=0.5]", &run, arena, &err));
    assert_int_equal(c.config.pairs.count, 2);
    assert_string_equal(c.config.pairs.item[0], "student=layer3,teacher=patch:2");
    assert_string_equal(c.config.pairs.item[1], "teacher=cls,weight=0.5");
    assert_string_equal(c.config.lr, "2");
    assert_ok(kd_student_choice_parse(&c, "resnet18,pair=teacher=mean", &run, arena, &err));
    assert_int_equal(c.config.pairs.count, 1);
    assert_string_equal(c.config.pairs.item[0], "teacher=mean");
    assert_ok(kd_student_choice_parse(&c, "resnet18,pair=none", &run, arena, &err));
    assert_int_equal(c.config.pairs.count, 0);
    assert_ok(kd_student_choice_parse(&c, "resnet18,lr=2", &run, arena, &err));
    assert_int_equal(c.config.pairs.count, 1);
    assert_string_equal(shared[0], "teacher=cls");
}

static void what_cannot_be_one_students_own_is_refused(void **state) {
    (void)state;
    static const struct {
        const char *text, *says;
    } bad[] = {
        {"", "names no model"},
        {"lr=1", "names no model"},
        {"resnet18,lr", "\"lr\" isn't a setting"},
        {"resnet18,vit_tiny_patch16_224", "\"vit_tiny_patch16_224\" isn't a setting"},
        {"resnet18,batch-size=3", "all students of a run share \"batch-size\""},
        {"resnet18,seed=3", "all students of a run share \"seed\""},
        {"resnet18,wieght-decay=3", "did you mean \"weight-decay\"?"},
        {"resnet18,clip=-1", "--student resnet18,clip=-1: clip: -1 is outside of 0"},
        {"resnet18,loss=std-mes", "did you mean std-mse?"},
        {"resnet18,pair=[teacher=cls,lr=1", "the bracket in \"pair=[teacher=cls,lr=1\" isn't closed"},
        {"resnet18,pair=[teacher=cls]x,lr=1", "isn't closed before the next setting"},
        {"resnet18,name=a/b", "name \"a/b\" must be"},
        {"resnet18,name=", "name \"\" must be"},
        {"resnet18,name=.x", "name \".x\" must be"},
        {"resnet18,name=0123456789012345678901234567890123456789012345678901234567890", "must be 1 to 60"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        kd_student_choice c;
        assert_int_equal(kd_student_choice_parse(&c, bad[i].text, &run, arena, &err), KD_EUSAGE);
        assert_contains(err.msg, bad[i].says);
    }
}

static void two_students_of_one_name_are_refused_with_the_way_out(void **state) {
    (void)state;
    const char *two[] = {"resnet18,lr=1", "resnet18"};
    kd_student_choice *all;
    run.students = (kd_strings){two, 2};
    assert_int_equal(kd_student_choices(&all, &run, arena, &err), KD_EUSAGE);
    assert_contains(err.msg, "two students are called resnet18");
    assert_contains(err.msg, "--student resnet18,name=resnet18-2");
    two[0] = "resnet18,name=first";
    assert_ok(kd_student_choices(&all, &run, arena, &err));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(a_bare_model_has_the_settings_of_the_run, fresh, drop),
        cmocka_unit_test_setup_teardown(own_settings_win_over_those_of_the_run_and_touch_no_other, fresh, drop),
        cmocka_unit_test_setup_teardown(a_config_file_may_write_a_student_as_a_mapping, fresh, drop),
        cmocka_unit_test_setup_teardown(pairs_of_its_own_take_the_place_of_the_runs, fresh, drop),
        cmocka_unit_test_setup_teardown(what_cannot_be_one_students_own_is_refused, fresh, drop),
        cmocka_unit_test_setup_teardown(two_students_of_one_name_are_refused_with_the_way_out, fresh, drop),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

/* Accuracy: intervals against SciPy, counts class by class, means in which classes count alike, tables that read back. */
#include "tests/unit/unit.h"

#include <math.h>

#include "common/base/csv.h"
#include "common/base/io.h"
#include "common/base/mem.h"
#include "train/eval/accuracy.h"

static kd_err err;

/* Against scipy 1.17.1: scipy.stats.binomtest(right, n).proportion_ci(method="wilson"). */
static void intervals_are_wilsons(void **state) {
    (void)state;
    static const struct {
        size_t right, n;
        double low, high;
    } known[] = {
        {50, 100, 0.4038315303659956, 0.5961684696340044}, {1, 10, 0.017876213095072896, 0.4041500267952385}, {0, 20, 0, 0.16112515805281935}, {20, 20, 0.8388748419471808, 1},
        {2834, 3000, 0.9359022265984465, 0.9522937839351635}, {0, 0, 0, 1}, /* no images: nothing is known */
    };
    for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
        kd_interval got = kd_wilson(known[i].right, known[i].n);
        if (!(fabs(got.low - known[i].low) < 1e-13) || !(fabs(got.high - known[i].high) < 1e-13))
            fail_msg("%zu of %zu: %.10f to %.10f", known[i].right, known[i].n, got.low, got.high);
    }
}

/* Classes ant (3 training images), bee (1); test: 4 ants, 1 bee, 2 of a class that training lacks, 1 of none. */
enum { TRAIN = 4, TEST = 8, CLASSES = 2 };
static char *class_name[CLASSES] = {(char *)"ant", (char *)"bee"};
static const kd_classes classes = {class_name, CLASSES};
static int32_t train_label[TRAIN] = {0, 0, 0, 1}, test_label[TEST] = {0, 0, 0, 0, 1, -1, -1, -1};
static const char *train_name[TRAIN] = {"ant", "ant", "ant", "bee"}, *test_name[TEST] = {"ant", "ant", "ant", "ant", "bee", "c, \"d\"", "c, \"d\"", NULL};
static const int32_t first[TEST] = {0, 0, 0, 1, 1, 0, 0, 0}, second[TEST] = {1, 1, 1, 1, 0, 0, 0, 1};
static const kd_setting setting[2] = {{"k1", first}, {"k2", second}};

static void sets(kd_labelled *train, kd_labelled *test) {
    *train = (kd_labelled){.features = {.count = TRAIN}, .label = train_label, .name = train_name};
    *test = (kd_labelled){.features = {.count = TEST}, .label = test_label, .name = test_name};
}

static void classes_are_counted_one_by_one(void **state) {
    (void)state;
    kd_labelled train, test;
    kd_accuracy a;
    kd_spread s;
    sets(&train, &test);
    assert_ok(kd_accuracy_count(&a, &train, &test, &classes, setting, 2, &err));
    assert_true(a.rows == 4 && a.classes == 2 && a.test == TEST);
    assert_true(a.right[0] == 4 && a.right[1] == 0);
    assert_true(a.row[0].train == 3 && a.row[0].test == 4 && a.row[0].right[0] == 3 && a.row[0].right[1] == 0);
    assert_true(a.row[1].train == 1 && a.row[1].test == 1 && a.row[1].right[0] == 1);
    assert_string_equal(a.row[2].name, "c, \"d\"");
    assert_true(a.row[2].train == 0 && a.row[2].test == 2 && a.row[2].right[0] == 0);
    assert_true(a.row[3].name[0] == '\0' && a.row[3].test == 1);
    assert_true(fabs(kd_accuracy_mean(&a, 0) - (0.75 + 1 + 0 + 0) / 4) < 1e-15);
    assert_true(kd_accuracy_below(&a, 1) == 0 && kd_accuracy_below(&a, 2) == 1 && kd_accuracy_below(&a, 4) == 2);
    assert_ok(kd_accuracy_spread(&a, 0, &s, &err));
    assert_true(s.least == 1 && s.median == 1 && s.most == 3);
    assert_ok(kd_accuracy_spread(&a, 1, &s, &err));
    assert_true(s.least == 1 && s.median == 1 && s.most == 4);
    kd_accuracy_free(&a);
}

static void assert_file(const char *path, const char *want) {
    uint8_t *text;
    size_t size;
    assert_ok(kd_io_read_all(path, 1 << 20, &text, &size, &err));
    assert_string_equal((const char *)text, want);
    kd_free(text);
}

static void tables_have_a_line_for_each_class_and_image(void **state) {
    (void)state;
    char *folder = unit_folder(), path[4300];
    size_t file[TEST];
    kd_data_file files[TEST];
    kd_labelled train, test;
    kd_accuracy a;
    sets(&train, &test);
    for (size_t i = 0; i < TEST; i++) {
        static const char *const rel[TEST] = {"a/0.jpg", "a/1.jpg", "a/2.jpg", "a/3.jpg", "b/\"4\".jpg", "c/5.jpg", "c/6.jpg", "7.jpg"};
        file[i] = i;
        files[i] = (kd_data_file){.rel = rel[i]};
    }
    test.features.file = file;
    test.features.data = (kd_dataset){.file = files, .count = TEST};
    snprintf(path, sizeof path, "%s/t.csv", folder);
    assert_ok(kd_accuracy_count(&a, &train, &test, &classes, setting, 2, &err));
    assert_ok(kd_accuracy_write(&a, path, &err));
    assert_file(path, "class,train,test,correct_k1,top1_k1,correct_k2,top1_k2\nant,3,4,3,0.750000,0,0.000000\nbee,1,1,1,1.000000,0,0.000000\n"
                      "\"c, \"\"d\"\"\",0,2,0,0.000000,0,0.000000\n\"\",0,1,0,0.000000,0,0.000000\n");
    kd_accuracy_free(&a);
    assert_ok(kd_predictions_write(path, &test, &classes, setting, 2, &err));
    assert_file(path, "path,label,k1,k2\na/0.jpg,ant,ant,bee\na/1.jpg,ant,ant,bee\na/2.jpg,ant,ant,bee\na/3.jpg,ant,bee,bee\n\"b/\"\"4\"\".jpg\",bee,bee,ant\n"
                      "c/5.jpg,\"c, \"\"d\"\"\",ant,ant\nc/6.jpg,\"c, \"\"d\"\"\",ant,ant\n7.jpg,\"\",ant,bee\n");
    free(folder);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(intervals_are_wilsons),
        cmocka_unit_test(classes_are_counted_one_by_one),
        cmocka_unit_test(tables_have_a_line_for_each_class_and_image),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

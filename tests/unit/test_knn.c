/* k-NN: predictions equal to NumPy's one by one; ties and bad k. */
#include "tests/unit/unit.h"

#include "tests/golden/knn/knn_golden.h"
#include "train/eval/knn.h"

static kd_err err;

typedef struct fixture {
    float train[KNN_TRAIN * KNN_WIDTH], test[KNN_TEST * KNN_WIDTH];
    int32_t train_label[KNN_TRAIN], test_label[KNN_TEST];
} fixture;

static void fill(float *out, size_t n, uint32_t seed) {
    for (size_t i = 0; i < n; i++) {
        seed = 1664525u * seed + 1013904223u;
        out[i] = (float)(seed / 4294967296.0 - 0.5);
    }
}

static void make_fixture(fixture *f) {
    fill(f->train, KNN_TRAIN * KNN_WIDTH, 1);
    fill(f->test, KNN_TEST * KNN_WIDTH, 2);
    for (int i = 0; i < KNN_TRAIN; i++) {
        f->train_label[i] = i % KNN_CLASSES;
        f->train[i * KNN_WIDTH + f->train_label[i]] += 0.75f;
    }
    for (int i = 0; i < KNN_TEST; i++) {
        f->test_label[i] = (i * 5 + 1) % KNN_CLASSES;
        f->test[i * KNN_WIDTH + f->test_label[i]] += 0.75f;
    }
}

static void predictions_equal_numpy_one_by_one(void **state) {
    (void)state;
    static fixture f;
    make_fixture(&f);
    const int k[] = {1, 5, 20};
    const int *want[] = {knn_k1, knn_k5, knn_k20};
    const double top1[] = {knn_k1_top1, knn_k5_top1, knn_k20_top1}, top5[] = {knn_k1_top5, knn_k5_top5, knn_k20_top5};
    for (int threads = 1; threads <= 3; threads += 2) {
        kd_knn_result result[3];
        int32_t got[3 * KNN_TEST];
        kd_backend *b;
        assert_ok(kd_backend_open(&b, "ref", threads, &err));
        assert_ok(kd_knn(b, &(kd_knn_data){f.train, f.train_label, KNN_TRAIN}, &(kd_knn_data){f.test, f.test_label, KNN_TEST}, KNN_WIDTH, KNN_CLASSES, k, 3, KD_KNN_TEMPERATURE, result, got, &err));
        kd_backend_close(b);
        for (int q = 0; q < 3; q++) {
            for (int i = 0; i < KNN_TEST; i++)
                assert_int_equal(want[q][i], got[q * KNN_TEST + i]);
            assert_float_equal(top1[q], result[q].top1, 1e-12);
            assert_float_equal(top5[q], result[q].top5, 1e-12);
        }
    }
}

static kd_backend *backend; /* of the tests of small sets */

static int open_backend(void **state) {
    (void)state;
    return kd_backend_open(&backend, "ref", 1, &err) == KD_OK ? 0 : -1;
}

static int close_backend(void **state) {
    (void)state;
    kd_backend_close(backend);
    return 0;
}

static void lower_index_wins_equal_similarities(void **state) {
    (void)state;
    const float train[] = {1, 0, 1, 0, 0, 1}, test[] = {2, 0};
    const int32_t label[] = {1, 0, 2}, want = 1;
    const int k = 1;
    kd_knn_result result;
    int32_t got;
    assert_ok(kd_knn(backend, &(kd_knn_data){train, label, 3}, &(kd_knn_data){test, &want, 1}, 2, 3, &k, 1, KD_KNN_TEMPERATURE, &result, &got, &err));
    assert_int_equal(1, got);
    assert_float_equal(1.0, result.top1, 0);
}

static void a_small_temperature_listens_to_the_nearest(void **state) {
    (void)state;
    const float train[] = {1, 0, 4, 3, 4, -3}, test[] = {1, 0}; /* cosines 1, 0.8, 0.8 */
    const int32_t label[] = {0, 1, 1}, want = 0;
    const double temperature[] = {0.002, KD_KNN_TEMPERATURE, 1}; /* exp(1 / t) against 2 exp(0.8 / t): ahead up to t = 0.2 / log 2 */
    const int32_t winner[] = {0, 0, 1};
    const int k = 3;
    for (int i = 0; i < 3; i++) {
        kd_knn_result result;
        int32_t got;
        assert_ok(kd_knn(backend, &(kd_knn_data){train, label, 3}, &(kd_knn_data){test, &want, 1}, 2, 2, &k, 1, temperature[i], &result, &got, &err));
        assert_int_equal(winner[i], got);
    }
}

static void unknown_test_class_counts_as_wrong(void **state) {
    (void)state;
    const float train[] = {1, 0, 0, 1}, test[] = {1, 0};
    const int32_t label[] = {0, 1}, unknown = -1;
    const int k = 2;
    kd_knn_result result;
    assert_ok(kd_knn(backend, &(kd_knn_data){train, label, 2}, &(kd_knn_data){test, &unknown, 1}, 2, 2, &k, 1, KD_KNN_TEMPERATURE, &result, NULL, &err));
    assert_float_equal(0.0, result.top1, 0);
    assert_float_equal(0.0, result.top5, 0);
}

static void k_above_the_training_set_is_refused(void **state) {
    (void)state;
    const float train[] = {1, 0}, test[] = {1, 0};
    const int32_t label = 0;
    const int k = 2;
    kd_knn_result result;
    assert_int_equal(KD_EUSAGE, kd_knn(backend, &(kd_knn_data){train, &label, 1}, &(kd_knn_data){test, &label, 1}, 2, 1, &k, 1, KD_KNN_TEMPERATURE, &result, NULL, &err));
    assert_non_null(strstr(err.msg, "--k 2"));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(predictions_equal_numpy_one_by_one),
        cmocka_unit_test(lower_index_wins_equal_similarities),
        cmocka_unit_test(a_small_temperature_listens_to_the_nearest),
        cmocka_unit_test(unknown_test_class_counts_as_wrong),
        cmocka_unit_test(k_above_the_training_set_is_refused),
    };
    return cmocka_run_group_tests(tests, open_backend, close_backend);
}

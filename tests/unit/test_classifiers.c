/* Classifiers on frozen features: probabilities, weights and choices equal to scikit-learn's and PyTorch's; thread counts; classes that are missing; what can't be trained on. */
#include "tests/unit/unit.h"

#include <math.h>

#include "common/base/log.h"
#include "common/base/mem.h"
#include "tests/golden/classifiers/classifiers_golden.h"
#include "train/eval/linear.h"
#include "train/eval/logreg.h"
#include "train/eval/product.h"

enum { N = CLASSIFIER_TRAIN, M = CLASSIFIER_TEST, W = CLASSIFIER_WIDTH, C = CLASSIFIER_CLASSES };

static kd_err err;
static float train_features[N * W], test_features[M * W];
static int32_t train_label[N], test_label[M];
static const kd_knn_data train = {train_features, train_label, N}, test = {test_features, test_label, M};

static void fill(float *out, size_t n, uint32_t seed) { /* as make_classifiers.py does */
    for (size_t i = 0; i < n; i++) {
        seed = 1664525u * seed + 1013904223u;
        out[i] = (float)(seed / 4294967296.0 - 0.5);
    }
}

static void signal_and_mean(float *features, const int32_t *label, size_t n) {
    for (size_t i = 0; i < n; i++) {
        features[i * W + (size_t)label[i]] += 0.5f;
        for (size_t k = 0; k < W; k++)
            features[i * W + k] += 2.0f;
    }
}

static int make_sets(void **state) {
    (void)state;
    kd_log_set_level(KD_LOG_ERROR); /* no progress lines */
    for (int i = 0; i < N; i++)
        train_label[i] = i % C;
    for (int i = 0; i < M; i++)
        test_label[i] = (i * 5 + 1) % C;
    fill(train_features, N * W, 1);
    fill(test_features, M * W, 2);
    signal_and_mean(train_features, train_label, N);
    signal_and_mean(test_features, test_label, M);
    return 0;
}

/* ---- products ---- */

static void product_equals_its_sums_whatever_the_sizes(void **state) {
    (void)state;
    enum { ROWS = 7, INNER = 300, COLUMNS = 32 };
    static float a[ROWS * INNER], b[INNER * COLUMNS], out[ROWS * COLUMNS];
    static double a64[ROWS * INNER], b64[INNER * COLUMNS], out64[ROWS * COLUMNS];
    fill(a, ROWS * INNER, 3);
    fill(b, INNER * COLUMNS, 4);
    for (size_t i = 0; i < ROWS * INNER; i++)
        a64[i] = (double)a[i];
    for (size_t i = 0; i < INNER * COLUMNS; i++)
        b64[i] = (double)b[i];
    for (size_t i = 0; i < ROWS * COLUMNS; i++)
        out[i] = 1, out64[i] = 1;
    kd_product_f32(out, a, INNER, 1, b, ROWS, INNER, COLUMNS);
    kd_product_f64(out64, a64, 1, ROWS, b64, ROWS, INNER, COLUMNS); /* a read as its transpose */
    for (size_t i = 0; i < ROWS; i++)
        for (size_t j = 0; j < COLUMNS; j++) {
            float sum = 1;
            double sum64 = 1;
            for (size_t k = 0; k < INNER; k++) {
                sum += a[i * INNER + k] * b[k * COLUMNS + j];
                sum64 += a64[k * ROWS + i] * b64[k * COLUMNS + j];
            }
            assert_true(sum == out[i * COLUMNS + j]); /* the documented order: every bit */
            assert_true(sum64 == out64[i * COLUMNS + j]);
        }
}

/* ---- what both share ---- */

static void held_out_tenth_is_the_documented_draw(void **state) {
    (void)state;
    kd_parts p = {0};
    assert_ok(kd_parts_make(&p, &train, W, C, CLASSIFIER_SEED, &err));
    assert_int_equal(N / 10, p.choose.count);
    assert_int_equal(N - N / 10, p.fit.count);
    assert_int_equal(0, p.lacking);
    for (size_t i = 0; i < p.choose.count; i++) {
        const size_t image = (size_t)logreg_held_out[i];
        assert_int_equal(image, p.index[p.fit.count + i]);
        assert_int_equal(train_label[image], p.choose.label[i]);
        assert_memory_equal(train_features + image * W, p.choose.features + i * W, W * sizeof(float));
    }
    for (size_t i = 0; i < p.fit.count; i++)
        assert_true(i == 0 || p.index[i] > p.index[i - 1]);
    kd_parts_free(&p);
    assert_int_equal(KD_EUSAGE, kd_parts_make(&p, &(kd_knn_data){train_features, train_label, 9}, W, C, 0, &err));
    kd_parts_free(&p);
}

static void best_classes_come_in_order_and_impossible_ones_never(void **state) {
    (void)state;
    const double score[] = {1, 3, -HUGE_VAL, 3, 0, 2, -1, 7};
    const int32_t want[] = {7, 1, 3, 5, 0};
    int32_t top[KD_TOP];
    kd_top_classes(top, score, 8);
    assert_memory_equal(want, top, sizeof top);
    kd_top_classes(top, score, 3);
    assert_int_equal(1, top[0]);
    assert_int_equal(0, top[1]);
    assert_int_equal(-2, top[2]);
    const int32_t two[2 * KD_TOP] = {0, 1, 2, -2, -2, 1, 0, 2, -2, -2}, label[] = {0, -1};
    kd_shares s = kd_top_shares(two, label, 2);
    assert_float_equal(0.5, s.top1, 0);
    assert_float_equal(0.5, s.top5, 0);
}

/* ---- logistic regression ---- */

static void check_probabilities(const kd_logreg_model *m, const double *want, double tolerance) {
    double score[M * C];
    assert_ok(kd_logreg_scores(m, &test, score, 1, &err));
    for (size_t i = 0; i < M; i++) {
        double sum = 0;
        for (size_t c = 0; c < m->classes; c++)
            sum += exp(score[i * m->classes + c]);
        for (size_t c = 0; c < m->classes; c++)
            assert_float_equal(want[i * m->classes + c], exp(score[i * m->classes + c]) / sum, tolerance);
    }
}

static void probabilities_equal_scikit_learn(void **state) {
    (void)state;
    const double *want[] = {logreg_probability_0, logreg_probability_1, logreg_probability_2, logreg_probability_3};
    kd_logreg_model warm = {0};
    kd_lbfgs_result r;
    for (int i = 0; i < 4; i++) {
        kd_logreg_model cold = {0};
        assert_ok(kd_logreg_fit(&cold, &train, W, C, logreg_c[i], 1e-12, 1000, 1, &r, &err));
        assert_true(r.end != KD_LBFGS_ITERATIONS);
        check_probabilities(&cold, want[i], 1e-5);
        kd_logreg_model_free(&cold);
        assert_ok(kd_logreg_fit(&warm, &train, W, C, logreg_c[i], 1e-12, 1000, 2, &r, &err)); /* from the last C's */
        check_probabilities(&warm, want[i], 1e-5);
    }
    kd_logreg_model_free(&warm);
}

static void two_classes_are_penalised_as_one_vector(void **state) {
    (void)state;
    float features[N * W];
    int32_t label[N];
    size_t n = 0;
    kd_logreg_model m = {0};
    kd_lbfgs_result r;
    for (size_t i = 0; i < N; i++)
        if (train_label[i] < 2) {
            memcpy(features + n * W, train_features + i * W, W * sizeof(float));
            label[n++] = train_label[i];
        }
    assert_ok(kd_logreg_fit(&m, &(kd_knn_data){features, label, n}, W, 2, 1.0, 1e-12, 1000, 1, &r, &err));
    check_probabilities(&m, logreg_two_classes, 1e-6);
    kd_logreg_model_free(&m);
}

static void chosen_c_and_accuracy_equal_scikit_learn(void **state) {
    (void)state;
    double c[KD_LOGREG_CS];
    kd_logreg_protocol_cs(c);
    int32_t prediction[2][M];
    for (int threads = 1; threads <= 3; threads += 2) {
        kd_logreg_result r = {0};
        const kd_logreg_options o = {.c = c, .n_c = KD_LOGREG_CS, .tolerance = 1e-12, .max_iterations = 1000, .seed = CLASSIFIER_SEED, .threads = threads};
        assert_ok(kd_logreg(&r, &train, &test, W, C, &o, &err));
        for (int i = 0; i < KD_LOGREG_CS; i++)
            assert_float_equal(logreg_held_out_top1[i], r.tried[i].top1, 1e-12);
        assert_float_equal(logreg_chosen[0], r.c, 1e-12);
        assert_float_equal(logreg_chosen[1], r.accuracy.top1, 1e-12);
        memcpy(prediction[threads / 2], r.prediction, sizeof prediction[0]);
        kd_logreg_result_free(&r);
    }
    assert_memory_equal(prediction[0], prediction[1], sizeof prediction[0]);
}

static void weights_do_not_depend_on_the_threads(void **state) {
    (void)state;
    enum { IMAGES = 500, WIDTH = 40, CLASSES = 20 }; /* enough work for threads to be woken */
    static float features[IMAGES * WIDTH];
    static int32_t label[IMAGES];
    const kd_knn_data set = {features, label, IMAGES};
    kd_logreg_model one = {0}, many = {0};
    kd_lbfgs_result r;
    fill(features, IMAGES * WIDTH, 5);
    for (int i = 0; i < IMAGES; i++)
        label[i] = i * 7 % CLASSES;
    assert_ok(kd_logreg_fit(&one, &set, WIDTH, CLASSES, 10, 1e-12, 20, 1, &r, &err));
    assert_int_equal(20, r.iterations);
    assert_ok(kd_logreg_fit(&many, &set, WIDTH, CLASSES, 10, 1e-12, 20, 4, &r, &err));
    assert_memory_equal(one.weights, many.weights, (WIDTH + 1) * one.padded * sizeof *one.weights);
    kd_logreg_model_free(&one);
    kd_logreg_model_free(&many);
}

static void class_without_images_is_never_predicted(void **state) {
    (void)state;
    kd_logreg_model m = {0};
    kd_lbfgs_result r;
    double score[M * (C + 1)];
    int32_t shifted[N];
    for (size_t i = 0; i < N; i++)
        shifted[i] = train_label[i] + (train_label[i] > 1); /* class 2 has none */
    assert_ok(kd_logreg_fit(&m, &(kd_knn_data){train_features, shifted, N}, W, C + 1, 10, 1e-12, 1000, 1, &r, &err));
    assert_ok(kd_logreg_scores(&m, &test, score, 1, &err));
    for (size_t i = 0; i < M; i++) {
        assert_true(score[i * (C + 1) + 2] == -HUGE_VAL);
        memmove(score + i * C, score + i * (C + 1), 2 * sizeof *score); /* the others are as they would be without it */
        memmove(score + i * C + 2, score + i * (C + 1) + 3, (C - 2) * sizeof *score);
    }
    for (size_t i = 0; i < M; i++) {
        double sum = 0;
        for (size_t c = 0; c < C; c++)
            sum += exp(score[i * C + c]);
        for (size_t c = 0; c < C; c++)
            assert_float_equal(logreg_probability_2[i * C + c], exp(score[i * C + c]) / sum, 1e-5);
    }
    /* Fitted once more with images of that class, from there. */
    assert_ok(kd_logreg_fit(&m, &train, W, C + 1, 10, 1e-12, 1000, 1, &r, &err));
    assert_true(m.weights[W * m.padded + C] == -HUGE_VAL && isfinite(m.weights[W * m.padded + 2]));
    kd_logreg_model_free(&m);
}

static void features_that_are_not_finite_are_refused(void **state) {
    (void)state;
    float features[N * W];
    kd_logreg_model m = {0};
    kd_lbfgs_result r;
    memcpy(features, train_features, sizeof features);
    features[17] = NAN;
    assert_int_equal(KD_ENONFINITE, kd_logreg_fit(&m, &(kd_knn_data){features, train_label, N}, W, C, 1, 1e-12, 10, 1, &r, &err));
    kd_logreg_model_free(&m);
}

static void one_class_is_refused(void **state) {
    (void)state;
    const int32_t label[N] = {0};
    const kd_knn_data same = {train_features, label, N};
    const double one = 1;
    kd_logreg_result r = {0};
    kd_linear_result l = {0};
    assert_int_equal(KD_EUSAGE, kd_logreg(&r, &same, &test, W, 1, &(kd_logreg_options){.c = &one, .n_c = 1, .tolerance = 1e-12, .max_iterations = 10, .threads = 1}, &err));
    assert_non_null(strstr(err.msg, "one class"));
    assert_int_equal(KD_EUSAGE, kd_linear(&l, &same, &test, W, 1, &(kd_linear_options){.rate = &one, .n_rates = 1, .iterations = 1, .batch = 1, .threads = 1}, &err));
    assert_non_null(strstr(err.msg, "one class"));
    kd_logreg_result_free(&r);
    kd_linear_result_free(&l);
}

/* ---- linear ---- */

static kd_linear_options linear_options(int threads) {
    return (kd_linear_options){.rate = linear_rate, .n_rates = 3, .iterations = LINEAR_STEPS, .batch = LINEAR_BATCH, .held_out = 1, .seed = CLASSIFIER_SEED, .threads = threads};
}

static void steps_of_every_learning_rate_are_those_of_pytorch(void **state) {
    (void)state;
    const double *want[] = {linear_weights_0, linear_weights_1, linear_weights_2};
    const size_t padded = kd_product_padded(C), size = (W + 1) * padded;
    float one[3 * (W + 1) * KD_PRODUCT_COLUMNS], many[3 * (W + 1) * KD_PRODUCT_COLUMNS];
    const kd_linear_options o = linear_options(1), threads = linear_options(4);
    assert_int_equal(KD_PRODUCT_COLUMNS, padded);
    assert_ok(kd_linear_train(one, &train, W, C, &o, "test", &err));
    assert_ok(kd_linear_train(many, &train, W, C, &threads, "test", &err));
    assert_memory_equal(one, many, sizeof one);
    for (size_t head = 0; head < 3; head++)
        for (size_t k = 0; k <= W; k++)
            for (size_t c = 0; c < C; c++)
                assert_float_equal(want[head][k * C + c], (double)one[head * size + k * padded + c], 2e-5); /* f32 beside f64: measured 3e-6 of weights up to 2.2 */
}

static void best_on_test_and_chosen_on_held_out_are_both_given(void **state) {
    (void)state;
    const kd_linear_options o = linear_options(2);
    kd_linear_result r = {0};
    assert_ok(kd_linear(&r, &train, &test, W, C, &o, &err));
    assert_int_equal(N / 10, r.held_out);
    for (size_t i = 0; i < 3; i++) {
        size_t right = 0;
        for (size_t image = 0; image < M; image++)
            right += r.prediction[i * M + image] == test_label[image];
        assert_float_equal((double)right / M, r.head[i].accuracy.top1, 1e-12);
        assert_true(r.head[i].accuracy.top1 <= r.head[r.best].accuracy.top1 && r.head[i].held_out <= r.head[r.chosen].held_out);
        assert_float_equal(1, r.head[i].accuracy.top5, 0); /* of 4 classes */
    }
    assert_true(r.head[r.best].accuracy.top1 > 0.5);
    kd_linear_result_free(&r);
}

static void rate_that_diverges_is_said_and_never_chosen(void **state) {
    (void)state;
    const double rates[] = {1, 1e41}, only[] = {1e41, 1e42};
    kd_linear_options o = linear_options(1);
    kd_linear_result r = {0}, bad = {0};
    o.rate = rates;
    o.n_rates = 2;
    assert_ok(kd_linear(&r, &train, &test, W, C, &o, &err));
    assert_true(!r.head[0].diverged && r.head[1].diverged);
    assert_float_equal(0, r.head[1].accuracy.top1, 0);
    assert_int_equal(0, r.best);
    assert_int_equal(0, r.chosen);
    o.rate = only;
    assert_int_equal(KD_ENONFINITE, kd_linear(&bad, &train, &test, W, C, &o, &err));
    assert_non_null(strstr(err.msg, "--learning-rates"));
    kd_linear_result_free(&r);
    kd_linear_result_free(&bad);
}

/* ---- memory ---- */

static kd_status try_logreg(void) {
    const double c[] = {0.1, 1};
    const kd_logreg_options o = {.c = c, .n_c = 2, .tolerance = 1e-12, .max_iterations = 2, .threads = 1};
    kd_logreg_result r = {0};
    kd_status status = kd_logreg(&r, &train, &test, W, C, &o, &err);
    kd_logreg_result_free(&r);
    return status;
}

static kd_status try_linear(void) {
    kd_linear_options o = linear_options(2);
    kd_linear_result r = {0};
    o.iterations = 2;
    kd_status status = kd_linear(&r, &train, &test, W, C, &o, &err);
    kd_linear_result_free(&r);
    return status;
}

static void memory_that_runs_out_anywhere_is_an_error_without_leaks(void **state) {
    (void)state;
    kd_status (*const tries[])(void) = {try_logreg, try_linear};
    for (int t = 0; t < 2; t++) {
        const size_t before = kd_mem_live_bytes();
        kd_status status = KD_EFAIL;
        size_t failed = 0;
        for (size_t nth = 1; nth < 200; nth++) {
            kd_mem_fail_after(nth);
            status = tries[t]();
            kd_mem_fail_after(0);
            assert_true(status == KD_OK || status == KD_EFAIL); /* a progress line may do without */
            assert_int_equal(before, kd_mem_live_bytes());
            failed += status == KD_EFAIL;
        }
        assert_ok(status); /* the last ones are beyond what it allocates */
        assert_true(failed > 20);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(product_equals_its_sums_whatever_the_sizes),
        cmocka_unit_test(held_out_tenth_is_the_documented_draw),
        cmocka_unit_test(best_classes_come_in_order_and_impossible_ones_never),
        cmocka_unit_test(probabilities_equal_scikit_learn),
        cmocka_unit_test(two_classes_are_penalised_as_one_vector),
        cmocka_unit_test(chosen_c_and_accuracy_equal_scikit_learn),
        cmocka_unit_test(weights_do_not_depend_on_the_threads),
        cmocka_unit_test(class_without_images_is_never_predicted),
        cmocka_unit_test(features_that_are_not_finite_are_refused),
        cmocka_unit_test(one_class_is_refused),
        cmocka_unit_test(steps_of_every_learning_rate_are_those_of_pytorch),
        cmocka_unit_test(best_on_test_and_chosen_on_held_out_are_both_given),
        cmocka_unit_test(rate_that_diverges_is_said_and_never_chosen),
        cmocka_unit_test(memory_that_runs_out_anywhere_is_an_error_without_leaks),
    };
    return cmocka_run_group_tests(tests, make_sets, NULL);
}

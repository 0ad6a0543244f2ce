/* What a report is drawn from and with: metrics.jsonl read back, numbers and ticks that people can read, charts that stay inside their frame. */
#include "tests/unit/unit.h"

#include <math.h>

#include "train/curves.h"

static kd_err err;

static void numbers_are_short(void **state) {
    (void)state;
    static const struct {
        double v;
        const char *text;
    } known[] = {{0, "0"}, {0.25, "0.25"}, {1, "1"}, {-0.5, "-0.5"}, {1200, "1200"}, {12345, "12345"}, {123456.7, "123457"}, {5e-4, "5e-4"}, {1.234e-7, "1.23e-7"},
                 {2e6, "2e6"}, {1.5e12, "1.5e12"}, {0.1 + 0.2, "0.3"}, {-2e-10, "-2e-10"}, {1e-100, "1e-100"}, {99.996, "100"}};
    char buf[KD_SVG_NUMBER];
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        assert_string_equal(kd_svg_number(known[i].v, buf), known[i].text);
}

static void ticks_are_round_and_inside(void **state) {
    (void)state;
    static const double ranges[][2] = {{0, 1}, {0, 100}, {-0.2, 1}, {0.001, 0.0015}, {-3.7, 12.2}, {1e6, 3.1e6}, {0, 7}, {0.95, 1.05}, {-7, -2}};
    double t[16];
    for (size_t i = 0; i < sizeof ranges / sizeof *ranges; i++)
        for (int most = 2; most <= 10; most++) {
            double lo = ranges[i][0], hi = ranges[i][1];
            int n = kd_svg_ticks(t, lo, hi, most);
            assert_true(n >= 1 && n <= most);
            assert_true(t[0] >= lo - 1e-9 * (hi - lo) && t[n - 1] <= hi + 1e-9 * (hi - lo));
            for (int k = 1; k < n; k++) {
                double step = t[k] - t[k - 1], mantissa = step / pow(10, floor(log10(step) + 1e-9));
                assert_true(fabs(mantissa - 1) < 1e-6 || fabs(mantissa - 2) < 1e-6 || fabs(mantissa - 5) < 1e-6);
            }
        }
    assert_int_equal(kd_svg_ticks(t, 0, 1, 6), 6); /* 0, 0.2, ... 1 */
    assert_true(t[0] == 0 && fabs(t[1] - 0.2) < 1e-12);
}

static void a_chart_has_its_lines_and_harmless_labels(void **state) {
    (void)state;
    const kd_point p[] = {{0, 1}, {1, NAN}, {2, 3}, {3, INFINITY}, {4, 2}};
    const kd_series s[] = {{.label = "a <b>", .colour = "#123456", .point = p, .count = 5, .dots = 1}, {.label = "c", .colour = "#654321", .dashed = 1, .point = p, .count = 0}};
    kd_text t = {0};
    kd_svg_chart(&t, &(kd_chart){.id = "x", .series = s, .count = 2, .x_label = "epoch", .floor = NAN, .ceiling = NAN});
    assert_contains(t.at, "stroke=\"#123456\"");
    assert_contains(t.at, "<title>a &lt;b&gt;, epoch 2: 3</title>");
    assert_null(strstr(t.at, "#654321"));
    assert_null(strstr(t.at, "nan"));
    assert_null(strstr(t.at, "inf"));
    assert_contains(t.at, "</svg>");
    kd_text_free(&t);
}

static void charts_of_nothing_of_one_point_and_of_equal_points(void **state) {
    (void)state;
    const kd_point p[] = {{1, 5}, {2, 5}}, zero[] = {{0, 0}}, negative[] = {{1, -1}};
    kd_text t = {0};
    kd_series s = {.label = "a", .colour = "red", .point = p};
    kd_chart c = {.id = "x", .series = &s, .count = 1, .x_label = "epoch", .floor = NAN, .ceiling = NAN};
    kd_svg_chart(&t, &c);
    assert_contains(t.at, "nothing yet");
    for (s.count = 1; s.count <= 2; s.count++) {
        kd_text_free(&t);
        kd_svg_chart(&t, &c);
        assert_null(strstr(t.at, "nan"));
        assert_null(strstr(t.at, "inf"));
        assert_contains(t.at, "d=\"M");
    }
    s.point = zero;
    s.count = 1;
    kd_text_free(&t);
    kd_svg_chart(&t, &c);
    assert_null(strstr(t.at, "nan"));
    s.point = negative;
    c.log_y = 1; /* nothing that a logarithm could show */
    kd_text_free(&t);
    kd_svg_chart(&t, &c);
    assert_contains(t.at, "nothing yet");
    c.log_y = 0;
    c.floor = 0; /* all points under the axis */
    kd_text_free(&t);
    kd_svg_chart(&t, &c);
    assert_null(strstr(t.at, "nan"));
    kd_text_free(&t);
}

static void logarithmic_axes_have_round_numbers(void **state) {
    (void)state;
    static const struct {
        double low, high;
        const char *has[3], *hasnt;
    } known[] = {{1.2, 18, {">2<", ">5<", ">10<"}, ">1.585<"}, {1e-6, 10, {">1e-6<", ">0.01<", ">1<"}, ">2<"}, {3.1, 3.9, {">3.2<", ">3.4<", ">3.8<"}, ">10<"}, {1e-40, 1e40, {"<", "<", "<"}, ">2<"}};
    for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
        const kd_point p[] = {{0, known[i].low}, {5, known[i].high}};
        const kd_series s = {.label = "a", .colour = "red", .point = p, .count = 2};
        kd_text t = {0};
        kd_svg_chart(&t, &(kd_chart){.id = "x", .series = &s, .count = 1, .x_label = "epoch", .floor = NAN, .ceiling = NAN, .log_y = 1});
        for (int k = 0; k < 3; k++)
            assert_contains(t.at, known[i].has[k]);
        const char *y_ticks = strstr(t.at, "class=\"grid\""); /* those of x stand before */
        assert_non_null(y_ticks);
        assert_null(strstr(y_ticks, known[i].hasnt));
        kd_text_free(&t);
    }
}

static const char metrics[] =
    "{\"step\":10,\"epoch\":1,\"student\":\"a\",\"loss\":2.5,\"lr\":0.1}\n"
    "{\"step\":10,\"epoch\":1,\"student\":\"b\",\"loss\":3}\n"
    "{\"step\":15,\"epoch\":1,\"student\":\"a\",\"loss\":40,\"outlier\":true}\n"
    "{\"step\":20,\"epoch\":1,\"student\":\"a\",\"val_loss\":1.5,\"best\":true,\"note\":\"x\"}\n"
    "{\"step\":30,\"epoch\":2,\"student\":\"a\",\"loss\":2,\"outlier\":false}\n"
    "{\"step\":40,\"epo";

static void lines_become_series(void **state) {
    (void)state;
    char *folder = unit_folder(), path[4200];
    kd_curves c = {0};
    snprintf(path, sizeof path, "%s/metrics.jsonl", folder);
    unit_write(path, metrics, sizeof metrics - 1);
    assert_ok(kd_curves_read(&c, path, 20, &err));
    const kd_curve *loss = kd_curves_find(&c, "a", "loss"), *outlier = kd_curves_find(&c, "a", "outlier");
    assert_int_equal(loss->count, 3);
    assert_true(loss->point[0].x == 0.5 && loss->point[0].y == 2.5);
    assert_true(loss->point[2].x == 1.5 && loss->point[2].y == 2);
    assert_int_equal(kd_curves_find(&c, "b", "loss")->count, 1);
    assert_int_equal(outlier->count, 1);
    assert_true(outlier->point[0].x == 0.75 && outlier->point[0].y == 40);
    assert_true(kd_curves_find(&c, "a", "best")->point[0].y == 1);
    assert_null(kd_curves_find(&c, "b", "val_loss"));
    assert_null(kd_curves_find(&c, "a", "note"));
    assert_null(kd_curves_find(&c, "a", "epoch"));
    kd_curves_free(&c);
    unit_write(path, "{\"step\":1}\n", 11);
    assert_int_equal(kd_curves_read(&c, path, 20, &err), KD_EFAIL);
    assert_contains(err.msg, "metrics.jsonl: line 1");
    kd_curves_free(&c);
    unit_write(path, "nonsense\n", 9);
    assert_int_equal(kd_curves_read(&c, path, 20, &err), KD_EFAIL);
    kd_curves_free(&c);
    free(folder);
}

static void long_series_are_averaged(void **state) {
    (void)state;
    kd_point p[10], out[4];
    for (int i = 0; i < 10; i++)
        p[i] = (kd_point){i, 2 * i};
    kd_curve c = {.point = p, .count = 10};
    assert_int_equal(kd_curve_thin(&c, out, 4), 4);
    assert_true(out[0].x == 0.5 && out[0].y == 1);   /* 0, 1 */
    assert_true(out[1].x == 3 && out[1].y == 6);     /* 2, 3, 4 */
    assert_true(out[3].x == 8);                      /* 7, 8, 9 */
    c.count = 3;
    assert_int_equal(kd_curve_thin(&c, out, 4), 3);
    assert_true(out[2].x == 2 && out[2].y == 4);
    c.count = 0;
    assert_int_equal(kd_curve_thin(&c, out, 4), 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(numbers_are_short),
        cmocka_unit_test(ticks_are_round_and_inside),
        cmocka_unit_test(a_chart_has_its_lines_and_harmless_labels),
        cmocka_unit_test(charts_of_nothing_of_one_point_and_of_equal_points),
        cmocka_unit_test(logarithmic_axes_have_round_numbers),
        cmocka_unit_test(lines_become_series),
        cmocka_unit_test(long_series_are_averaged),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

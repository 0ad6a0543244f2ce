/* Stages: the time of a thread is in exactly one of them at any moment, so they add up to it; what is printed adds up as printed. */
#include "tests/unit/unit.h"

#include <fcntl.h>
#include <pthread.h>

#include "common/base/log.h"
#include "common/base/progress.h"
#include "common/base/stages.h"

enum { OTHER = 1, A, B, COUNT };
static const char *const name[COUNT] = {[OTHER] = "other", [A] = "a", [B] = "b"};

static void stages_add_up_to_the_time_that_passed(void **state) {
    (void)state;
    kd_stages s = {0};
    double begin = kd_now();
    kd_stages_begin(&s, OTHER);
    for (int i = 0; i < 1000; i++) {
        int before = kd_stages_enter(&s, A);
        assert_int_equal(before, OTHER);
        assert_int_equal(kd_stages_enter(&s, B), A);
        if (i % 100 == 0)
            usleep(1000);
        kd_stages_enter(&s, before);
    }
    kd_stages_enter(&s, 0);
    double outer = kd_now() - begin, sum = s.seconds[OTHER] + s.seconds[A] + s.seconds[B];
    assert_true(s.seconds[B] >= 0.01 && sum >= s.seconds[B] && sum <= outer);
    usleep(200000);
    kd_stages_enter(&s, OTHER); /* in stage 0 nothing was counted */
    kd_stages_enter(&s, 0);
    assert_true(s.seconds[OTHER] + s.seconds[A] + s.seconds[B] < sum + 0.2);
}

static void moving_time_keeps_the_sum_and_takes_no_more_than_there_is(void **state) {
    (void)state;
    kd_stages s = {.seconds = {[A] = 2, [B] = 1}};
    kd_stages_move(&s, A, B, 0.5);
    assert_true(s.seconds[A] == 1.5 && s.seconds[B] == 1.5);
    kd_stages_move(&s, A, B, 7);
    assert_true(s.seconds[A] == 0 && s.seconds[B] == 3);
    kd_stages_move(&s, B, A, -1);
    assert_true(s.seconds[A] == 0 && s.seconds[B] == 3);
    assert_int_equal(kd_stages_enter(NULL, A), 0);
}

static void *work(void *arg) {
    kd_stages *s = arg;
    volatile double x = 1;
    kd_stages_enter(s, A);
    for (int i = 0; i < 2000000; i++)
        x *= 1.0000001;
    usleep(20000);
    kd_stages_enter(s, 0);
    return NULL;
}

/* The clock of a thread begins at 0: what one worker counted must not be taken from the next one's. */
static void workers_count_processor_time_across_threads(void **state) {
    (void)state;
    kd_stages s = {0};
    double sum[KD_STAGES] = {0}, last = 0;
    for (int i = 0; i < 3; i++) {
        pthread_t t;
        double begin = kd_now();
        assert_int_equal(pthread_create(&t, NULL, work, &s), 0);
        pthread_join(t, NULL);
        double took = s.seconds[A] - last;
        assert_true(took > 0 && took < kd_now() - begin - 0.02); /* without the sleep */
        last = s.seconds[A];
    }
    kd_stages_add(sum, &s);
    kd_stages_add(sum, &s);
    assert_true(sum[A] == 2 * s.seconds[A] && sum[OTHER] == 0);
}

/* Prints a table into a file and gives the sum of its lines, in hundredths, minus that of "all". */
static long long printed_difference(const double *seconds, int *lines) {
    char *folder = unit_folder(), path[4200], line[256], what[64];
    kd_err err = {0};
    long long difference = 0;
    int names = 0;
    snprintf(path, sizeof path, "%s/log", folder);
    assert_ok(kd_log_open_file(path, &err));
    kd_stages_log("where", name, seconds, COUNT, OTHER);
    assert_ok(kd_log_open_file(NULL, &err));
    FILE *f = fopen(path, "r");
    while (f != NULL && fgets(line, sizeof line, f) != NULL) {
        long long whole, part;
        char stamp[64];
        if (sscanf(line, "%63s %63s %lld.%lld", stamp, what, &whole, &part) != 4)
            continue;
        assert_true(whole >= 0 && part >= 0);
        difference += (strcmp(what, "all") == 0 ? -1 : 1) * (100 * whole + part);
        names++;
    }
    if (f != NULL)
        fclose(f);
    free(folder);
    *lines = names;
    return difference;
}

static void printed_lines_add_up_to_the_last_one(void **state) {
    (void)state;
    int lines;
    for (int i = 1; i < 20; i++) {
        double seconds[COUNT] = {0, 0.001 * i * i, 0.3333 * i, 0.0049 * i};
        assert_int_equal(printed_difference(seconds, &lines), 0);
        assert_int_equal(lines, 4);
    }
    assert_int_equal(printed_difference((const double[COUNT]){0, 0, 0.004, 0.004}, &lines), 0);
    assert_int_equal(lines, 3); /* a stage that nothing entered has no line */
    assert_int_equal(printed_difference((const double[COUNT]){0}, &lines), 0);
    assert_int_equal(lines, 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(stages_add_up_to_the_time_that_passed), cmocka_unit_test(moving_time_keeps_the_sum_and_takes_no_more_than_there_is),
                                       cmocka_unit_test(workers_count_processor_time_across_threads), cmocka_unit_test(printed_lines_add_up_to_the_last_one)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}

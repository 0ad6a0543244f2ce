/* Messages go to stderr and the run's log in whole, safe lines; progress is quiet on a pipe and JSON goes to stdout only. */
#include "tests/unit/unit.h"

#include "common/base/io.h"
#include "common/base/json.h"
#include "common/base/log.h"
#include "common/base/mem.h"
#include "common/base/progress.h"

static char *folder, path[4200];
static int saved[3];

/* Sends stdout (1) or stderr (2) into the file at path. */
static void capture(int fd)
{
    FILE *stream = fd == 1 ? stdout : stderr;
    fflush(stream);
    saved[fd] = dup(fd);
    assert_non_null(freopen(path, "w", stream));
}

/* What was captured; kd_free'd by the caller. */
static char *captured(int fd)
{
    uint8_t *bytes;
    size_t size;
    kd_err err;
    fflush(fd == 1 ? stdout : stderr);
    dup2(saved[fd], fd);
    close(saved[fd]);
    assert_ok(kd_io_read_all(path, 1 << 20, &bytes, &size, &err));
    return (char *)bytes;
}

static int start(void **state)
{
    (void)state;
    folder = unit_folder();
    snprintf(path, sizeof path, "%s/out", folder);
    kd_log_set_level(KD_LOG_INFO);
    return 0;
}

static int end(void **state)
{
    (void)state;
    free(folder);
    return 0;
}

static void levels_and_prefixes(void **state)
{
    char *text;
    (void)state;
    capture(2);
    kd_log(KD_LOG_INFO, "cache %s: %d views", "a.kdc", 5);
    kd_log(KD_LOG_WARN, "careful");
    kd_log(KD_LOG_DEBUG, "not shown");
    kd_log_set_level(KD_LOG_WARN);
    kd_log(KD_LOG_INFO, "not shown");
    text = captured(2);
    assert_string_equal(text, "cache a.kdc: 5 views\nwarning: careful\n");
    kd_free(text);
}

static void a_file_name_can_not_forge_a_line(void **state)
{
    char *text;
    (void)state;
    capture(2);
    kd_log(KD_LOG_INFO, "skipped %s", "x\nerror: all is lost\x1b[2J\xff");
    text = captured(2);
    assert_string_equal(text, "skipped x\\nerror: all is lost\\x1b[2J\\xff\n");
    kd_free(text);
}

static void the_log_file_gets_time_stamps_and_is_appended_to(void **state)
{
    char log[4300], *text;
    uint8_t *bytes;
    size_t size;
    kd_err err;
    (void)state;
    snprintf(log, sizeof log, "%s/train.log", folder);
    unit_write(log, "earlier run\n", 12);
    capture(2);
    assert_ok(kd_log_open_file(log, &err));
    kd_log(KD_LOG_INFO, "step 1");
    assert_ok(kd_log_open_file(NULL, &err));
    kd_log(KD_LOG_INFO, "only on stderr");
    text = captured(2);
    assert_string_equal(text, "step 1\nonly on stderr\n");
    kd_free(text);
    assert_ok(kd_io_read_all(log, 1000, &bytes, &size, &err));
    assert_int_equal(size, 12 + 21 + 7);
    assert_memory_equal(bytes, "earlier run\n20", 14);
    assert_string_equal((char *)bytes + 12 + 19, "Z step 1\n");
    kd_free(bytes);
    assert_int_equal(kd_log_open_file("/absent folder/train.log", &err), KD_EFAIL);
}

static void errors_are_said_and_given_as_json(void **state)
{
    char *text;
    kd_err err;
    json_t *v;
    (void)state;
    kd_fail(&err, KD_ELOCKED, "a \"b\".kdc: locked by process 7");
    capture(2);
    kd_log_error("kd-train", &err, 0);
    text = captured(2);
    assert_string_equal(text, "kd-train: error: a \"b\".kdc: locked by process 7\n");
    kd_free(text);
    capture(1);
    kd_log_error("kd-train", &err, 1);
    text = captured(1);
    assert_ok(kd_json_parse(text, strlen(text), "line", &v, &err));
    assert_string_equal(json_string_value(json_object_get(v, "type")), "error");
    assert_int_equal(json_integer_value(json_object_get(v, "code")), 11);
    assert_string_equal(json_string_value(json_object_get(v, "message")), "a \"b\".kdc: locked by process 7");
    json_decref(v);
    kd_free(text);
}

static void a_pipe_gets_one_line_not_a_moving_one(void **state)
{
    kd_progress *p;
    char *text;
    (void)state;
    capture(2);
    p = kd_progress_create("precompute", "view", 1000, 400, 0);
    for (uint64_t i = 400; i <= 1000; i++)
        kd_progress_update(p, i, 0, "cos 0.9999");
    kd_progress_finish(p);
    text = captured(2);
    assert_contains(text, "precompute: 1000 of 1000 views (100.0%)");
    assert_contains(text, "cos 0.9999\n");
    assert_null(strchr(text, '\r'));
    assert_ptr_equal(strchr(text, '\n'), text + strlen(text) - 1);
    kd_free(text);
}

static void quiet_prints_nothing(void **state)
{
    kd_progress *p;
    char *text;
    (void)state;
    kd_log_set_level(KD_LOG_WARN);
    capture(2);
    p = kd_progress_create("x", "step", 0, 0, 0);
    kd_progress_update(p, 10, 1.0, NULL);
    kd_progress_finish(p);
    kd_progress_update(NULL, 1, 0, NULL);
    kd_progress_finish(NULL);
    text = captured(2);
    assert_string_equal(text, "");
    kd_free(text);
}

static void json_status_lines_go_to_stdout(void **state)
{
    kd_progress *p;
    char *text;
    json_t *v;
    kd_err err;
    (void)state;
    kd_log_set_level(KD_LOG_WARN);
    capture(1);
    p = kd_progress_create("train", "step", 10, 4, 1);
    usleep(20000);
    kd_progress_update(p, 10, 0.001, NULL);
    kd_progress_finish(p);
    text = captured(1);
    assert_ok(kd_json_parse(text, strlen(text), "line", &v, &err));
    assert_string_equal(json_string_value(json_object_get(v, "type")), "status");
    assert_int_equal(json_integer_value(json_object_get(v, "done")), 10);
    assert_int_equal(json_integer_value(json_object_get(v, "total")), 10);
    assert_true(json_real_value(json_object_get(v, "rate")) > 6); /* 6 steps of this run, not 10, in more than 20 ms */
    assert_true(json_real_value(json_object_get(v, "rate")) <= 300);
    json_decref(v);
    kd_free(text);
}

static void the_clock_goes_forward(void **state)
{
    double a = kd_now(), b;
    (void)state;
    usleep(2000);
    b = kd_now();
    assert_true(b - a >= 0.002 && b - a < 5);
}

#define PROGRESS_TEST(f) cmocka_unit_test_setup_teardown(f, start, end)

int main(void)
{
    const struct CMUnitTest tests[] = {
        PROGRESS_TEST(levels_and_prefixes),
        PROGRESS_TEST(a_file_name_can_not_forge_a_line),
        PROGRESS_TEST(the_log_file_gets_time_stamps_and_is_appended_to),
        PROGRESS_TEST(errors_are_said_and_given_as_json),
        PROGRESS_TEST(a_pipe_gets_one_line_not_a_moving_one),
        PROGRESS_TEST(quiet_prints_nothing),
        PROGRESS_TEST(json_status_lines_go_to_stdout),
        PROGRESS_TEST(the_clock_goes_forward),
    };
    return cmocka_run_group_tests_name("progress", tests, NULL, NULL);
}

/* Opening a device by name: spelling, absent and broken modules. Never a fallback, always a sentence. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "common/base/io.h"
#include "common/base/mem.h"
#include "kernels/backend.h"

static char empty_dir[300];

static int make_dir(void **state) {
    (void)state;
    const char *tmp = getenv("TMPDIR");
    snprintf(empty_dir, sizeof empty_dir, "%s/kd-backend-XXXXXX", tmp && *tmp ? tmp : "/tmp");
    return mkdtemp(empty_dir) ? 0 : -1;
}

static int remove_dir(void **state) {
    (void)state;
    char path[400];
    snprintf(path, sizeof path, "%s/libkd_cpu.so", empty_dir);
    unlink(path);
    return rmdir(empty_dir);
}

static void refuse(const char *device, int threads, kd_status status, const char *word) {
    kd_err err = {0};
    kd_backend *b = NULL;
    assert_int_equal(kd_backend_open(&b, device, threads, &err), status);
    if (!strstr(err.msg, word))
        fail_msg("'%s' is missing in: %s", word, err.msg);
    assert_null(b);
}

static void unknown_names_are_usage_errors(void **state) {
    (void)state;
    static const char *const names[] = {"", "gpu", "CPU", "cpu:0", "cuda:", "cuda:-1", "cuda:1x", "cuda:99999999999999999999", "ref "};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        refuse(names[i], 1, KD_EUSAGE, "unknown device");
    refuse("ref", -1, KD_EUSAGE, "threads");
}

static void ref_is_always_there(void **state) {
    (void)state;
    kd_err err = {0};
    kd_backend *b = NULL;
    assert_int_equal(kd_backend_open(&b, "ref", 0, &err), KD_OK);
    assert_string_equal(b->v->name, "ref");
    assert_int_equal(b->v->abi, KD_BACKEND_ABI);
    assert_true(b->threads >= 1);
    assert_true(strlen(b->v->describe(b)) > 0);
    assert_int_equal(b->v->check_bf16(b, &err), KD_OK);
    kd_backend_close(b);
    kd_backend_close(NULL);
}

/* The lib folder beside this test's executable doesn't exist, so only KD_LIB_DIR counts. */
static void absent_module_is_named(void **state) {
    (void)state;
    setenv("KD_LIB_DIR", empty_dir, 1);
    refuse("cpu", 1, KD_ENODEVICE, "libkd_cpu.so");
    refuse("cuda", 1, KD_ENODEVICE, "libkd_cuda.so");
    refuse("cuda:3", 1, KD_ENODEVICE, empty_dir);
    refuse("auto", 1, KD_ENODEVICE, "libkd_cpu.so");
    unsetenv("KD_LIB_DIR");
    refuse("cpu", 1, KD_ENODEVICE, "not set");
}

static void file_that_is_no_module_is_refused(void **state) {
    (void)state;
    kd_err err = {0};
    char path[400];
    snprintf(path, sizeof path, "%s/libkd_cpu.so", empty_dir);
    assert_int_equal(kd_io_write_atomic(path, "not a library", 13, &err), KD_OK);
    setenv("KD_LIB_DIR", empty_dir, 1);
    refuse("cpu", 1, KD_ENODEVICE, "can't be loaded");
    refuse("auto", 1, KD_ENODEVICE, "can't be loaded");
    unsetenv("KD_LIB_DIR");
}

static void memory_shortage_is_an_error(void **state) {
    (void)state;
    kd_err err = {0};
    kd_backend *b = NULL;
    void *p = NULL;
    kd_mem_fail_after(1);
    assert_int_equal(kd_backend_open(&b, "ref", 1, &err), KD_EFAIL);
    kd_mem_fail_after(0);
    assert_int_equal(kd_backend_open(&b, "ref", 1, &err), KD_OK);
    assert_int_equal(b->v->alloc(b, &p, SIZE_MAX, &err), KD_EFAIL);
    assert_null(p);
    kd_backend_close(b);
}

int main(void) {
    unsetenv("KD_LIB_DIR");
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(unknown_names_are_usage_errors),
        cmocka_unit_test(ref_is_always_there),
        cmocka_unit_test(absent_module_is_named),
        cmocka_unit_test(file_that_is_no_module_is_refused),
        cmocka_unit_test(memory_shortage_is_an_error),
    };
    return cmocka_run_group_tests_name("backend open", tests, make_dir, remove_dir);
}

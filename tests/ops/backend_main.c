/* The test program of a backend other than ref: ops_backend_main of harness.h. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "common/base/mem.h"
#include "tests/ops/harness.h"

static kd_backend *tested, *uneven, *reference; /* uneven: the tested backend with a thread count that splits nothing evenly */
static char missing[1200]; /* why there is nothing to test */
static char no_bf16[1200];

/* One case: near ref, and the same bits when the op is used a second time after other inputs and parameters, and in inference (what a cache is made of) with another number
 * of threads. */
static void matches_ref(void **state) {
    const ops_case *c = *state;
    if (ops_uses_bf16(&c->desc) && no_bf16[0]) {
        print_message("skipped, no bf16: %s\n", no_bf16);
        skip();
    }
    ops_inputs in = ops_inputs_make(c, 1);
    ops_results want = ops_run(reference, c, &in, 0), got = ops_run(tested, c, &in, 0), again = ops_run(tested, c, &in, 1), other = ops_run(uneven, c, &in, 0);
    ops_tolerance t = ops_tolerance_vs_ref(c->desc.kind);
    ops_compare(tested->v->name, c, &got, &want, &t);
    ops_compare(tested->v->name, c, &other, &want, &t);
    ops_assert_identical(c, &got, &again);
    if (!c->desc.train)
        ops_assert_identical(c, &got, &other);
    ops_results_free(&want);
    ops_results_free(&got);
    ops_results_free(&again);
    ops_results_free(&other);
    ops_inputs_free(&in);
}

static void flat_functions_match_ref(void **state) {
    (void)state;
    ops_check_flat(tested, reference);
}

static void encoding_equals_ref(void **state) {
    (void)state;
    ops_check_encode(tested, reference);
}

static void backend_is_present(void **state) {
    (void)state;
    if (missing[0]) {
        print_message("skipped: %s\n", missing);
        skip();
    }
    print_message("%s\n", tested->v->describe(tested));
}

static void memory_is_zeroed_and_aligned(void **state) {
    (void)state;
    kd_err err = {0};
    static const size_t sizes[] = {1, 63, 4097, 1 << 20};
    for (int round = 0; round < 2; round++) /* the second round may get back memory that the first one has filled */
        for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
            void *p = NULL;
            unsigned char *host = kd_malloc(sizes[i]);
            assert_int_equal(tested->v->alloc(tested, &p, sizes[i], &err), KD_OK);
            assert_int_equal((uintptr_t)p % 64, 0);
            assert_int_equal(tested->v->download(tested, host, p, sizes[i], &err), KD_OK);
            for (size_t k = 0; k < sizes[i]; k++)
                assert_int_equal(host[k], 0);
            memset(host, 0x5A, sizes[i]);
            assert_int_equal(tested->v->upload(tested, p, host, sizes[i], &err), KD_OK);
            memset(host, 0, sizes[i]);
            assert_int_equal(tested->v->download(tested, host, p, sizes[i], &err), KD_OK);
            assert_int_equal(host[sizes[i] - 1], 0x5A);
            assert_int_equal(tested->v->zero(tested, p, sizes[i], &err), KD_OK);
            assert_int_equal(tested->v->download(tested, host, p, sizes[i], &err), KD_OK);
            assert_int_equal(host[sizes[i] / 2], 0);
            tested->v->release(tested, p);
            kd_free(host);
        }
    tested->v->release(tested, NULL);
}

int ops_backend_main(const char *device) {
    kd_err err = {0};
    const ops_case *list;
    size_t n = 0, count = ops_cases(&list);
    struct CMUnitTest *tests = kd_calloc(count + 4, sizeof *tests);
    if (!tests)
        return 1;
    tests[n++] = (struct CMUnitTest)cmocka_unit_test(backend_is_present);
    if (kd_backend_open(&tested, device, 2, &err) == KD_OK && kd_backend_open(&uneven, device, 3, &err) == KD_OK && kd_backend_open(&reference, "ref", 1, &err) == KD_OK) {
        if (tested->v->check_bf16(tested, &err) != KD_OK)
            snprintf(no_bf16, sizeof no_bf16, "%s", err.msg);
        tests[n++] = (struct CMUnitTest)cmocka_unit_test(memory_is_zeroed_and_aligned);
        tests[n++] = (struct CMUnitTest)cmocka_unit_test(flat_functions_match_ref);
        tests[n++] = (struct CMUnitTest)cmocka_unit_test(encoding_equals_ref);
        for (size_t i = 0; i < count; i++)
            tests[n++] = (struct CMUnitTest){list[i].label, matches_ref, NULL, NULL, (void *)(uintptr_t)&list[i]};
    } else if (err.status == KD_ENODEVICE) {
        snprintf(missing, sizeof missing, "%s", err.msg);
    } else {
        printf("device %s: %s\n", device, err.msg);
        return 1;
    }
    int failed = _cmocka_run_group_tests(device, tests, n, NULL, NULL);
    ops_print_measured();
    kd_backend_close(tested);
    kd_backend_close(uneven);
    kd_backend_close(reference);
    kd_free(tests);
    return failed;
}

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
static int emulated;

/* On an emulated device, which is slow and knows no chance: the second of two uses near ref. */
static void once(const ops_case *c, const ops_inputs *in) {
    ops_results want = ops_run(reference, c, in, 0), got = ops_run(tested, c, in, 1);
    ops_tolerance t = ops_tolerance_vs_ref(c->desc.kind);
    ops_compare(tested->v->name, c, &got, &want, &t);
    ops_results_free(&want);
    ops_results_free(&got);
}

/* One case: near ref, and the same bits when the op is used a second time after other inputs and parameters, and in inference (what a cache is made of) with another number
 * of threads. */
static void matches_ref(void **state) {
    const ops_case *c = *state;
    if (ops_uses_bf16(&c->desc) && no_bf16[0]) {
        print_message("skipped, no bf16: %s\n", no_bf16);
        skip();
    }
    ops_inputs in = ops_inputs_make(c, 1);
    if (emulated) {
        once(c, &in);
        ops_inputs_free(&in);
        return;
    }
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

static void must(kd_status status, const kd_err *err) {
    if (status != KD_OK)
        fail_msg("%s", err->msg);
}

static void *device_memory(size_t bytes) {
    kd_err err = {0};
    void *p = NULL;
    must(tested->v->alloc(tested, &p, bytes, &err), &err);
    return p;
}

/* Other bytes for every seed, without a short period. */
static void fill_bytes(uint8_t *p, size_t n, uint32_t seed) {
    uint32_t v = seed * 2654435761u + 1;
    for (size_t i = 0; i < n; i++) {
        v = v * 1664525u + 1013904223u;
        p[i] = (uint8_t)(v >> 24);
    }
}

/* More than a backend has staging memory for, to an odd address, behind queued work on the same memory; the host's source changes right after. */
static void uploads_of_many_pieces_arrive_whole(void **state) {
    (void)state;
    const size_t bytes = ((size_t)84 << 20) + 12345, offset = 3;
    kd_err err = {0};
    uint8_t *host = kd_malloc(bytes), *want = kd_malloc(bytes), *device = device_memory(bytes + 64);
    assert_true(host && want);
    for (uint32_t round = 0; round < 2; round++) {
        fill_bytes(want, bytes, round);
        memcpy(host, want, bytes);
        must(tested->v->zero(tested, device, bytes + 64, &err), &err);
        must(tested->v->upload(tested, device + offset, host, bytes, &err), &err);
        memset(host, 0xEE, bytes);
        must(tested->v->download(tested, host, device + offset, bytes, &err), &err);
        assert_memory_equal(host, want, bytes);
    }
    tested->v->release(tested, device);
    kd_free(host);
    kd_free(want);
}

/* What the source held at begin, although work that is queued behind it and an upload overwrite it; of less than the capacity, and from within a buffer. */
static void a_fetch_has_the_bytes_of_its_begin(void **state) {
    (void)state;
    enum { CAPACITY = 3 << 20 };
    static const size_t begins[] = {0, 64, 1000, 0, 1}, sizes[] = {CAPACITY, 5, 2 << 20, CAPACITY, CAPACITY - 1};
    kd_err err = {0};
    uint8_t *want = kd_malloc(CAPACITY), *other = kd_malloc(CAPACITY), *source = device_memory(CAPACITY);
    kd_fetch *f = NULL;
    const void *got = NULL;
    assert_true(want && other);
    must(tested->v->fetch_create(tested, &f, CAPACITY, &err), &err);
    for (uint32_t k = 0; k < sizeof sizes / sizeof *sizes; k++) {
        fill_bytes(want, CAPACITY, k);
        fill_bytes(other, CAPACITY, k + 100);
        must(tested->v->upload(tested, source, want, CAPACITY, &err), &err);
        must(tested->v->fetch_begin(tested, f, source + begins[k], sizes[k], &err), &err);
        must(tested->v->zero(tested, source, CAPACITY, &err), &err);
        must(tested->v->upload(tested, source, other, CAPACITY, &err), &err);
        if (k % 2)
            must(tested->v->sync(tested, &err), &err);
        must(tested->v->fetch_end(tested, f, &got, &err), &err);
        assert_memory_equal(got, want + begins[k], sizes[k]);
        must(tested->v->download(tested, want, source, CAPACITY, &err), &err);
        assert_memory_equal(want, other, CAPACITY);
    }
    must(tested->v->fetch_begin(tested, f, source, CAPACITY, &err), &err); /* destroyed with a copy under way */
    tested->v->fetch_destroy(tested, f);
    tested->v->fetch_destroy(tested, NULL);
    tested->v->release(tested, source);
    kd_free(want);
    kd_free(other);
}

/* A moving average, its sum of squares in front of it, and a region of zeros: each step sees what the one before has left. */
enum { AVERAGED = 100003, ZEROED = 777 };
typedef struct steps {
    float *average, *weights, *sum, *zeroed;
} steps;

static steps steps_make(const float *average) {
    kd_err err = {0};
    steps s = {device_memory(AVERAGED * sizeof(float)), device_memory(AVERAGED * sizeof(float)), device_memory(sizeof(float)), device_memory(ZEROED)};
    must(tested->v->upload(tested, s.average, average, AVERAGED * sizeof(float), &err), &err);
    return s;
}

static void steps_queue(const steps *s) {
    kd_err err = {0};
    must(tested->v->zero(tested, s->zeroed, ZEROED, &err), &err);
    must(tested->v->sum_squares(tested, s->sum, s->average, AVERAGED, &err), &err);
    must(tested->v->ema(tested, s->average, s->weights, AVERAGED, 0.9f, &err), &err);
}

typedef struct steps_values {
    float average[AVERAGED], sum;
    uint8_t zeroed[ZEROED];
} steps_values;

static steps_values *steps_read(const steps *s) {
    kd_err err = {0};
    steps_values *v = kd_calloc(1, sizeof *v);
    assert_non_null(v);
    must(tested->v->download(tested, v->average, s->average, sizeof v->average, &err), &err);
    must(tested->v->download(tested, &v->sum, s->sum, sizeof v->sum, &err), &err);
    must(tested->v->download(tested, v->zeroed, s->zeroed, sizeof v->zeroed, &err), &err);
    return v;
}

static void steps_release(steps *s) {
    float *all[] = {s->average, s->weights, s->sum, s->zeroed};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        tested->v->release(tested, all[i]);
}

/* Recorded calls aren't run until they are replayed, and replayed three times with new weights they leave the same bits as three times the calls; one that is given up leaves nothing. */
static void a_replayed_recording_equals_its_calls(void **state) {
    (void)state;
    kd_err err = {0};
    if (tested->v->record_begin == NULL) {
        assert_true(tested->v->record_end == NULL && tested->v->replay == NULL && tested->v->recording_destroy == NULL);
        print_message("skipped: %s has no recordings\n", tested->v->name);
        skip();
    }
    float *x = kd_malloc(AVERAGED * sizeof *x);
    assert_non_null(x);
    ops_fill_normal(x, AVERAGED, 1, 1);
    steps called = steps_make(x), replayed = steps_make(x);
    kd_recording *r = NULL;
    for (int kept = 0; kept < 2; kept++) {
        must(tested->v->record_begin(tested, &err), &err);
        steps_queue(&replayed);
        must(tested->v->record_end(tested, kept ? &r : NULL, &err), &err);
    }
    steps_values *still = steps_read(&replayed);
    assert_memory_equal(still->average, x, sizeof still->average);
    kd_free(still);
    for (uint64_t k = 0; k < 3; k++) {
        uint8_t ones[ZEROED];
        memset(ones, 1, sizeof ones);
        ops_fill_normal(x, AVERAGED, 2, k);
        for (int i = 0; i < 2; i++) {
            const steps *s = i ? &replayed : &called;
            must(tested->v->upload(tested, s->weights, x, AVERAGED * sizeof *x, &err), &err);
            must(tested->v->upload(tested, s->zeroed, ones, sizeof ones, &err), &err);
        }
        steps_queue(&called);
        must(tested->v->replay(tested, r, &err), &err);
        steps_values *want = steps_read(&called), *got = steps_read(&replayed);
        assert_true(want->sum > 0 && want->zeroed[0] == 0);
        assert_memory_equal(got, want, sizeof *got);
        kd_free(want);
        kd_free(got);
    }
    tested->v->recording_destroy(tested, r);
    tested->v->recording_destroy(tested, NULL);
    steps_release(&called);
    steps_release(&replayed);
    kd_free(x);
}

/* Part `part` of `parts` of the cases; what isn't a case belongs to the first. */
static int run_part(const char *device, size_t part, size_t parts) {
    kd_err err = {0};
    const ops_case *list;
    size_t n = 0, count = ops_cases(&list);
    struct CMUnitTest *tests = kd_calloc(count + 7, sizeof *tests);
    if (!tests)
        return 1;
    tests[n++] = (struct CMUnitTest)cmocka_unit_test(backend_is_present);
    if (kd_backend_open(&tested, device, 2, &err) == KD_OK && kd_backend_open(&uneven, device, 3, &err) == KD_OK && kd_backend_open(&reference, "ref", 1, &err) == KD_OK) {
        if (tested->v->check_bf16(tested, &err) != KD_OK)
            snprintf(no_bf16, sizeof no_bf16, "%s", err.msg);
        if (part == 0) {
            tests[n++] = (struct CMUnitTest)cmocka_unit_test(memory_is_zeroed_and_aligned);
            tests[n++] = (struct CMUnitTest)cmocka_unit_test(uploads_of_many_pieces_arrive_whole);
            tests[n++] = (struct CMUnitTest)cmocka_unit_test(a_fetch_has_the_bytes_of_its_begin);
            tests[n++] = (struct CMUnitTest)cmocka_unit_test(a_replayed_recording_equals_its_calls);
            tests[n++] = (struct CMUnitTest)cmocka_unit_test(flat_functions_match_ref);
            tests[n++] = (struct CMUnitTest)cmocka_unit_test(encoding_equals_ref);
        }
        for (size_t i = part; i < count; i += parts)
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

int ops_backend_main(const char *device) {
    return run_part(device, 0, 1);
}

int ops_emulated_main(size_t part, size_t parts) {
    kd_err err = {0};
    kd_backend *b = NULL;
    ops_use_emulated();
    if (kd_backend_open(&b, "cuda", 1, &err) != KD_OK) { /* it is built with the tests: its absence is a failure, and no reason to skip */
        printf("not ok - %s\n", err.msg);
        return 1;
    }
    kd_backend_close(b);
    emulated = 1;
    return run_part("cuda", part, parts);
}

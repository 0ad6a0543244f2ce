/* Neighbours against a plain search; ties, cuts, threads, memory against the plan, refusals. On ref, and on cpu where it is. */
#include "tests/unit/unit.h"

#include <math.h>
#include <signal.h>
#include <sys/wait.h>

#include "common/base/mem.h"
#include "common/base/rng.h"
#include "common/base/threads.h"
#include "train/eval/neighbours.h"

static kd_err err;
static const char *const devices[] = {"ref", "cpu"};
enum { DEVICES = sizeof devices / sizeof *devices };

static void fill(float *out, size_t n, size_t width, uint32_t set) {
    for (size_t i = 0; i < n; i++) {
        kd_rng r = kd_rng_make(1, i, set, KD_RNG_TEST);
        for (size_t c = 0; c < width; c++)
            out[i * width + c] = (float)kd_rng_normal(&r);
    }
}

/* NULL where the module isn't built. */
static kd_backend *open_device(int device, int threads) {
    kd_backend *b = NULL;
    return kd_backend_open(&b, devices[device], threads, &err) == KD_OK ? b : NULL;
}

static void search(kd_neighbour *found, int device, int threads, const kd_neighbours_task *t) {
    kd_backend *b = open_device(device, threads);
    if (b == NULL)
        skip();
    assert_ok(kd_neighbours_find(found, b, t, &err));
    kd_backend_close(b);
}

enum { ROWS = 1300, QUERIES = 150, WIDTH = 19, K = 12 }; /* two blocks of each, none of them full */
static float rows[ROWS * WIDTH], queries[QUERIES * WIDTH];
static const kd_neighbours_task task = {rows, queries, ROWS, QUERIES, WIDTH, K};

static int fill_task(void **state) {
    (void)state;
    fill(rows, ROWS, WIDTH, 1);
    fill(queries, QUERIES, WIDTH, 2);
    return 0;
}

static double cosine(const float *a, const float *b) {
    double ab = 0, aa = 0, bb = 0;
    for (int c = 0; c < WIDTH; c++) {
        ab += (double)a[c] * (double)b[c];
        aa += (double)a[c] * (double)a[c];
        bb += (double)b[c] * (double)b[c];
    }
    return ab / sqrt(aa * bb);
}

static void they_are_those_of_a_plain_search(void **state) {
    (void)state;
    static kd_neighbour found[QUERIES * K];
    for (int d = 0; d < DEVICES; d++) {
        search(found, d, 1, &task);
        for (int q = 0; q < QUERIES; q++) {
            double last = cosine(queries + q * WIDTH, rows + found[q * K + K - 1].index * WIDTH);
            int nearer = 0;
            for (int r = 0; r < ROWS; r++)
                nearer += cosine(queries + q * WIDTH, rows + r * WIDTH) >= last;
            assert_int_equal(K, nearer);
            for (int n = 0; n < K; n++) {
                assert_true(fabs((double)found[q * K + n].similarity - cosine(queries + q * WIDTH, rows + found[q * K + n].index * WIDTH)) < 1e-6);
                assert_true(n == 0 || found[q * K + n].similarity <= found[q * K + n - 1].similarity);
            }
        }
    }
}

static void threads_change_nothing(void **state) {
    (void)state;
    static kd_neighbour one[QUERIES * K], three[QUERIES * K];
    for (int d = 0; d < DEVICES; d++) {
        search(one, d, 1, &task);
        search(three, d, 3, &task);
        assert_memory_equal(one, three, sizeof one);
    }
}

/* Other numbers of rows and queries make products of other shapes, in which a pair has another place. */
static void a_pair_has_the_same_bits_wherever_it_lies(void **state) {
    (void)state;
    enum { FIRST = 1021, SOME = 270, ASKED = 7 };
    static kd_neighbour all[QUERIES * K], part[ASKED * SOME];
    for (int d = 0; d < DEVICES; d++) {
        search(all, d, 1, &task);
        search(part, d, 1, &(kd_neighbours_task){rows + FIRST * WIDTH, queries + 130 * WIDTH, SOME, ASKED, WIDTH, SOME});
        int met = 0;
        for (int q = 0; q < ASKED; q++)
            for (int n = 0; n < K; n++)
                for (int m = 0; m < SOME; m++)
                    if (all[(130 + q) * K + n].index == part[q * SOME + m].index + FIRST) {
                        assert_memory_equal(&all[(130 + q) * K + n].similarity, &part[q * SOME + m].similarity, sizeof(float));
                        met++;
                    }
        assert_true(met > 5);
    }
}

static void equal_rows_come_in_the_order_of_their_index(void **state) {
    (void)state;
    static float copies[ROWS * WIDTH];
    static const uint32_t places[K] = {0, 5, 16, 127, 128, 500, 1020, 1023, 1024, 1030, 1200, 1299};
    static kd_neighbour found[QUERIES * K];
    memcpy(copies, rows, sizeof copies);
    for (int i = 0; i < K; i++)
        memcpy(copies + places[i] * WIDTH, queries + 149 * WIDTH, WIDTH * sizeof(float));
    for (int d = 0; d < DEVICES; d++) {
        search(found, d, 2, &(kd_neighbours_task){copies, queries, ROWS, QUERIES, WIDTH, K});
        for (int n = 0; n < K; n++) {
            assert_int_equal(places[n], found[149 * K + n].index);
            assert_true(found[149 * K + n].similarity == found[149 * K].similarity);
        }
    }
}

static void a_device_with_its_own_memory_is_downloaded_from(void **state) {
    (void)state;
    static kd_neighbour in_place[QUERIES * K], downloaded[QUERIES * K];
    kd_backend *b = open_device(0, 1);
    const kd_backend_table *table = b->v;
    kd_backend_table apart = *table;
    apart.host_memory = 0;
    assert_ok(kd_neighbours_find(in_place, b, &task, &err));
    b->v = &apart;
    assert_ok(kd_neighbours_find(downloaded, b, &task, &err));
    kd_neighbours_plan plan;
    assert_ok(kd_neighbours_plan_make(&plan, b, &task, &err));
    assert_true(plan.device > plan.host);
    b->v = table;
    kd_backend_close(b);
    assert_memory_equal(in_place, downloaded, sizeof in_place);
}

static void memory_is_what_the_plan_says(void **state) {
    (void)state;
    enum { MANY = 3000, WIDE = 96, ASKED = 40, NEAREST = 5 };
    kd_neighbours_plan plan;
    float *x = NULL;
    kd_neighbour *found = NULL;
    kd_backend *b = open_device(0, 1);
    assert_ok(kd_alloc_array(&x, MANY * WIDE, sizeof *x, &err));
    fill(x, MANY, WIDE, 3);
    kd_neighbours_task t = {x, x, MANY, ASKED, WIDE, NEAREST};
    assert_ok(kd_neighbours_plan_make(&plan, b, &t, &err));
    assert_int_equal(3, plan.products);
    size_t before = kd_mem_live_bytes();
    assert_true(kd_mem_peak_bytes() < before + plan.host / 2); /* or what comes next would measure nothing */
    assert_ok(kd_alloc_array(&found, ASKED * NEAREST, sizeof *found, &err));
    assert_ok(kd_neighbours_find(found, b, &t, &err));
    size_t taken = kd_mem_peak_bytes() - before;
    assert_true(taken <= plan.host + plan.host / 100 && taken >= plan.host - plan.host / 100);
    kd_free(found);
    assert_int_equal(before, kd_mem_live_bytes());
    kd_free(x);
    kd_backend_close(b);
}

static void imagenet_is_planned_in_blocks(void **state) {
    (void)state;
    kd_neighbours_plan plan;
    kd_backend *b = open_device(1, 1);
    if (b == NULL)
        skip();
    assert_ok(kd_neighbours_plan_make(&plan, b, &(kd_neighbours_task){.row_count = 1281167, .query_count = 50000, .width = 768, .k = 200}, &err));
    assert_int_equal(1252 * 49, plan.products);
    assert_true(plan.features == (size_t)(1281167 + 50000) * 768 * sizeof(float));
    assert_true(plan.host < (size_t)400 << 20);
    assert_ok(kd_neighbours_plan_check(&plan, 0, (size_t)1 << 30, &err));
    assert_int_equal(KD_EFAIL, kd_neighbours_plan_check(&plan, 1, (size_t)4 << 30, &err));
    assert_contains(err.msg, "50000 among 1281167 features of width 768");
    assert_contains(err.msg, "4.0 GiB is available");
    kd_backend_close(b);
}

static void more_rows_than_an_index_counts_are_refused(void **state) {
    (void)state;
    kd_neighbours_plan plan;
    kd_backend *b = open_device(0, 1);
    assert_int_equal(KD_EUSAGE, kd_neighbours_plan_make(&plan, b, &(kd_neighbours_task){.row_count = (size_t)1 << 32, .query_count = 1, .width = 1, .k = 1}, &err));
    assert_contains(err.msg, "4294967296 rows");
    kd_backend_close(b);
}

static void a_feature_that_is_no_number_is_named(void **state) {
    (void)state;
    static float broken[ROWS * WIDTH];
    static kd_neighbour found[QUERIES * K];
    kd_backend *b = open_device(0, 1);
    memcpy(broken, rows, sizeof broken);
    broken[1100 * WIDTH + 3] = NAN;
    assert_int_equal(KD_ENONFINITE, kd_neighbours_find(found, b, &(kd_neighbours_task){broken, queries, ROWS, QUERIES, WIDTH, K}, &err));
    assert_contains(err.msg, "row 1100");
    broken[1100 * WIDTH + 3] = INFINITY;
    assert_int_equal(KD_ENONFINITE, kd_neighbours_find(found, b, &(kd_neighbours_task){rows, broken + 1000 * WIDTH, ROWS, QUERIES, WIDTH, K}, &err));
    assert_contains(err.msg, "query 100");
    kd_backend_close(b);
}

static void a_search_can_be_interrupted(void **state) {
    (void)state;
    static kd_neighbour found[QUERIES * K];
    pid_t child = fork();
    if (child == 0) {
        kd_backend *b = open_device(0, 1);
        kd_signals_catch();
        raise(SIGTERM);
        _exit(kd_neighbours_find(found, b, &task, &err) == KD_ESIGTERM && strstr(err.msg, "interrupted") ? 0 : 1);
    }
    int how = 0;
    assert_int_equal(child, waitpid(child, &how, 0));
    assert_true(WIFEXITED(how) && WEXITSTATUS(how) == 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(memory_is_what_the_plan_says), /* first: it looks at the peak of the process */
        cmocka_unit_test(they_are_those_of_a_plain_search),
        cmocka_unit_test(threads_change_nothing),
        cmocka_unit_test(a_pair_has_the_same_bits_wherever_it_lies),
        cmocka_unit_test(equal_rows_come_in_the_order_of_their_index),
        cmocka_unit_test(a_device_with_its_own_memory_is_downloaded_from),
        cmocka_unit_test(imagenet_is_planned_in_blocks),
        cmocka_unit_test(more_rows_than_an_index_counts_are_refused),
        cmocka_unit_test(a_feature_that_is_no_number_is_named),
        cmocka_unit_test(a_search_can_be_interrupted),
    };
    return cmocka_run_group_tests(tests, fill_task, NULL);
}

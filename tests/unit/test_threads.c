/* Results arrive in index order whatever the thread count, failures at their own index, and a pipeline can be ended at any time. */
#include "tests/unit/unit.h"

#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/wait.h>

#include "common/base/mem.h"
#include "common/base/rng.h"
#include "common/base/threads.h"

typedef struct item {
    uint64_t index;
    char *kept; /* allocated by the first use of the slot, kept for the later ones */
} item;

typedef struct job {
    int threads, fail_every;
    useconds_t slow;
    atomic_size_t made, allocated, freed, in_flight, most_in_flight;
    atomic_int bad_worker;
    atomic_int worker_busy[16];
} job;

static kd_status make_item(void *ctx, int worker, uint64_t index, void *slot, kd_err *err)
{
    job *j = ctx;
    item *it = slot;
    kd_rng r = kd_rng_make(1, index, 0, KD_RNG_TEST);
    size_t now = atomic_fetch_add(&j->in_flight, 1) + 1, most = atomic_load(&j->most_in_flight);
    while (now > most && !atomic_compare_exchange_weak(&j->most_in_flight, &most, now))
        ;
    if (worker < 0 || worker >= j->threads || atomic_fetch_add(&j->worker_busy[worker], 1) != 0)
        atomic_store(&j->bad_worker, 1); /* out of range, or used by two threads at once */
    if (j->slow)
        usleep(kd_rng_below(&r, j->slow));
    if (!it->kept) {
        it->kept = kd_strdup("kept");
        atomic_fetch_add(&j->allocated, 1);
    }
    it->index = index;
    atomic_fetch_add(&j->made, 1);
    atomic_fetch_sub(&j->worker_busy[worker], 1);
    atomic_fetch_sub(&j->in_flight, 1);
    if (j->fail_every && index % (uint64_t)j->fail_every == 3)
        return kd_fail(err, KD_EFAIL, "image %llu is broken", (unsigned long long)index);
    return KD_OK;
}

static void free_item(void *ctx, void *slot)
{
    job *j = ctx;
    item *it = slot;
    if (it->kept)
        atomic_fetch_add(&j->freed, 1);
    kd_free(it->kept);
}

static const int thread_counts[] = {1, 2, 8};

static void results_are_in_order_with_their_failures(void **state)
{
    (void)state;
    for (int k = 0; k < 3; k++) {
        enum { COUNT = 300 };
        job j = {.threads = thread_counts[k], .fail_every = 7, .slow = 300};
        size_t live = kd_mem_live_bytes();
        kd_ordered *q;
        kd_err err;
        item *it;
        assert_ok(kd_ordered_create(&q, j.threads, (size_t)j.threads + 2, sizeof(item), COUNT, make_item, free_item, &j, &err));
        for (uint64_t i = 0; i < COUNT; i++) {
            kd_status status = kd_ordered_next(q, (void **)&it, &err);
            char want[40];
            if (i % 7 == 3) {
                snprintf(want, sizeof want, "image %llu is broken", (unsigned long long)i);
                assert_int_equal(status, KD_EFAIL);
                assert_string_equal(err.msg, want);
                assert_null(it);
                continue;
            }
            assert_int_equal(status, KD_OK);
            assert_int_equal(it->index, i);
            kd_ordered_release(q, it);
        }
        assert_int_equal(kd_ordered_next(q, (void **)&it, &err), KD_DONE);
        assert_int_equal(kd_ordered_next(q, (void **)&it, &err), KD_DONE);
        assert_true(kd_ordered_wait_seconds(q) > 0);
        kd_ordered_destroy(q);
        assert_int_equal(j.bad_worker, 0);
        assert_int_equal(j.made, COUNT);
        assert_true(j.allocated <= (size_t)j.threads + 2); /* slots are re-used */
        assert_int_equal(j.allocated, j.freed);
        assert_int_equal(kd_mem_live_bytes(), live);
    }
}

static void workers_run_at_most_the_slots_ahead(void **state)
{
    job j = {.threads = 8};
    kd_ordered *q;
    kd_err err;
    item *it;
    (void)state;
    assert_ok(kd_ordered_create(&q, 8, 3, sizeof(item), 1000, make_item, free_item, &j, &err));
    usleep(20000);
    assert_int_equal(j.made, 3);
    assert_ok(kd_ordered_next(q, (void **)&it, &err));
    usleep(20000);
    assert_int_equal(j.made, 3); /* the taken slot is still the consumer's */
    kd_ordered_release(q, it);
    for (int i = 0; i < 100 && j.made < 4; i++)
        usleep(1000);
    assert_int_equal(j.made, 4);
    kd_ordered_destroy(q);
}

static void several_items_may_be_held_and_released_in_any_order(void **state)
{
    job j = {.threads = 3, .slow = 100};
    kd_ordered *q;
    kd_err err;
    uint64_t next = 0;
    (void)state;
    assert_ok(kd_ordered_create(&q, 3, 5, sizeof(item), 200, make_item, free_item, &j, &err));
    for (int batch = 0; batch < 50; batch++) {
        item *held[4];
        for (int i = 0; i < 4; i++)
            assert_ok(kd_ordered_next(q, (void **)&held[i], &err));
        for (int i = 0; i < 4; i++)
            assert_int_equal(held[i]->index, next++);
        for (int i = 3; i >= 0; i--)
            kd_ordered_release(q, held[i]);
    }
    kd_ordered_destroy(q);
}

static void a_pipeline_can_be_ended_in_the_middle(void **state)
{
    (void)state;
    for (int k = 0; k < 3; k++) {
        for (int taken = 0; taken < 6; taken++) {
            job j = {.threads = thread_counts[k], .slow = 500};
            size_t live = kd_mem_live_bytes();
            kd_ordered *q;
            kd_err err;
            item *it;
            assert_ok(kd_ordered_create(&q, j.threads, 6, sizeof(item), 1000000, make_item, free_item, &j, &err));
            for (int i = 0; i < taken; i++) {
                assert_ok(kd_ordered_next(q, (void **)&it, &err));
                if (i % 2) /* some are still held at the end */
                    kd_ordered_release(q, it);
            }
            kd_ordered_destroy(q);
            assert_int_equal(j.allocated, j.freed);
            assert_true(j.made < 100);
            assert_int_equal(kd_mem_live_bytes(), live);
        }
    }
    kd_ordered_destroy(NULL);
}

static void an_empty_pipeline_is_done(void **state)
{
    job j = {.threads = 2};
    kd_ordered *q;
    kd_err err;
    void *slot;
    (void)state;
    assert_ok(kd_ordered_create(&q, 2, 3, 0, 0, make_item, NULL, &j, &err));
    assert_int_equal(kd_ordered_next(q, &slot, &err), KD_DONE);
    kd_ordered_destroy(q);
}

static void creation_fails_cleanly_at_every_allocation(void **state)
{
    job j = {.threads = 2};
    size_t live = kd_mem_live_bytes(), n;
    (void)state;
    for (n = 1; n < 20; n++) {
        kd_ordered *q;
        kd_err err;
        kd_status status;
        kd_mem_fail_after(n);
        status = kd_ordered_create(&q, 2, 3, sizeof(item), 0, make_item, free_item, &j, &err);
        kd_mem_fail_after(0);
        if (status == KD_OK) {
            kd_ordered_destroy(q);
            break;
        }
        assert_null(q);
        assert_contains(err.msg, "out of memory");
        assert_int_equal(kd_mem_live_bytes(), live);
    }
    assert_in_range(n, 2, 10);
    assert_int_equal(kd_mem_live_bytes(), live);
}

typedef struct loop {
    atomic_int *seen;
    atomic_int busy[8];
    atomic_int wrong;
    int threads, nested;
} loop;

static void count_nested(void *ctx, int worker, size_t i)
{
    (void)worker;
    atomic_fetch_add(&((atomic_int *)ctx)[i], 1);
}

static void visit(void *ctx, int worker, size_t i)
{
    loop *l = ctx;
    if (worker < 0 || worker >= l->threads || atomic_fetch_add(&l->busy[worker], 1) != 0)
        atomic_store(&l->wrong, 1);
    atomic_fetch_add(&l->seen[i], 1);
    if (l->nested) {
        atomic_int inner[5] = {0};
        kd_parallel_for(4, 5, count_nested, inner);
        for (int k = 0; k < 5; k++)
            if (inner[k] != 1)
                atomic_store(&l->wrong, 1);
    }
    atomic_fetch_sub(&l->busy[worker], 1);
}

static void run_loop(int threads, size_t n, int nested)
{
    loop l = {.threads = threads, .nested = nested};
    l.seen = calloc(n + 1, sizeof *l.seen);
    kd_parallel_for(threads, n, visit, &l);
    assert_int_equal(l.wrong, 0);
    for (size_t i = 0; i < n; i++)
        assert_int_equal(l.seen[i], 1);
    assert_int_equal(l.seen[n], 0);
    free(l.seen);
}

static void a_parallel_loop_visits_each_index_once(void **state)
{
    static const size_t sizes[] = {0, 1, 2, 3, 7, 100, 5000};
    (void)state;
    for (int repeat = 0; repeat < 30; repeat++)
        for (int threads = 1; threads <= 8; threads++)
            for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++)
                if (sizes[s] < 1000 || repeat == 0)
                    run_loop(threads, sizes[s], repeat % 3 == 0);
}

static void *loops_of_one_thread(void *arg)
{
    (void)arg;
    for (int i = 0; i < 200; i++)
        run_loop(3, 50, 0);
    return NULL;
}

static void parallel_loops_may_run_at_the_same_time(void **state)
{
    pthread_t t[3];
    (void)state;
    for (int i = 0; i < 3; i++)
        assert_int_equal(pthread_create(&t[i], NULL, loops_of_one_thread, NULL), 0);
    for (int i = 0; i < 3; i++)
        pthread_join(t[i], NULL);
}

static void a_parallel_loop_works_in_a_child_process(void **state)
{
    int status;
    pid_t child;
    (void)state;
    run_loop(4, 100, 0); /* the pool has threads, which the child will not have */
    child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        loop l = {.threads = 4};
        l.seen = calloc(101, sizeof *l.seen);
        alarm(20);
        kd_parallel_for(4, 100, visit, &l);
        for (size_t i = 0; i < 100; i++)
            if (l.seen[i] != 1)
                _exit(1);
        _exit(0);
    }
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

static int child_with_signals(int first, int second)
{
    int status;
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        kd_signals_catch();
        if (kd_stop_requested() != KD_OK)
            _exit(99);
        raise(first);
        if (second)
            raise(second);
        for (int i = 0; i < 1000 && kd_stop_requested() == KD_OK; i++) /* a sanitizer may deliver it late */
            usleep(1000);
        _exit(kd_exit_code(kd_stop_requested()));
    }
    assert_int_equal(waitpid(child, &status, 0), child);
    return status;
}

static void the_first_signal_asks_and_the_second_ends(void **state)
{
    int status = child_with_signals(SIGINT, 0);
    (void)state;
    assert_true(WIFEXITED(status));
    assert_int_equal(WEXITSTATUS(status), 130);
    status = child_with_signals(SIGTERM, 0);
    assert_int_equal(WEXITSTATUS(status), 143);
    status = child_with_signals(SIGTERM, SIGINT);
    assert_true(WIFSIGNALED(status));
    assert_int_equal(WTERMSIG(status), SIGINT);
}

static void there_is_a_processor(void **state)
{
    (void)state;
    assert_in_range(kd_cpu_count(), 1, 100000);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_first_signal_asks_and_the_second_ends), /* first: it forks, and there are no other threads yet */
        cmocka_unit_test(results_are_in_order_with_their_failures),
        cmocka_unit_test(workers_run_at_most_the_slots_ahead),
        cmocka_unit_test(several_items_may_be_held_and_released_in_any_order),
        cmocka_unit_test(a_pipeline_can_be_ended_in_the_middle),
        cmocka_unit_test(an_empty_pipeline_is_done),
        cmocka_unit_test(creation_fails_cleanly_at_every_allocation),
        cmocka_unit_test(a_parallel_loop_visits_each_index_once),
        cmocka_unit_test(parallel_loops_may_run_at_the_same_time),
        cmocka_unit_test(a_parallel_loop_works_in_a_child_process),
        cmocka_unit_test(there_is_a_processor),
    };
    return cmocka_run_group_tests_name("threads", tests, NULL, NULL);
}

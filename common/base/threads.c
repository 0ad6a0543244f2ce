#include "common/base/threads.h"

#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <string.h>

#include "common/base/mem.h"
#include "common/base/progress.h"

/* ---- ordered pipeline ----
 * Indices are given out in order and each takes a free slot at that moment, so the index that the consumer waits for always
 * owns a slot. The indices in flight are contiguous and at most `slots`: index mod slots is their place in `entries`. */

typedef struct entry {
    int ready;
    void *slot;
    kd_status status;
    kd_err err;
} entry;

struct kd_ordered {
    kd_ordered_make make;
    kd_ordered_free_slot free_slot;
    void *ctx;
    size_t slots, slot_bytes, free_count;
    uint64_t count, next_index, next_out;
    char *storage;   /* slots * slot_bytes */
    void **free_list;
    entry *entries;
    pthread_t *threads;
    int thread_count, workers_named, stop, joined;
    double wait_seconds;
    pthread_mutex_t lock;
    pthread_cond_t slot_freed, entry_ready;
};

static void *ordered_worker(void *arg)
{
    kd_ordered *q = arg;
    int worker;
    pthread_mutex_lock(&q->lock);
    worker = q->workers_named++;
    for (;;) {
        uint64_t index;
        entry *e;
        while (!q->stop && q->next_index < q->count && q->free_count == 0)
            pthread_cond_wait(&q->slot_freed, &q->lock);
        if (q->stop || q->next_index >= q->count)
            break;
        index = q->next_index++;
        e = &q->entries[index % q->slots];
        e->ready = 0;
        e->slot = q->free_list[--q->free_count];
        pthread_mutex_unlock(&q->lock);
        e->err.status = KD_OK;
        e->err.file = NULL;
        e->err.line = 0;
        e->err.msg[0] = '\0';
        e->status = q->make(q->ctx, worker, index, e->slot, &e->err);
        pthread_mutex_lock(&q->lock);
        e->ready = 1;
        if (index == q->next_out)
            pthread_cond_signal(&q->entry_ready);
    }
    pthread_mutex_unlock(&q->lock);
    return NULL;
}

kd_status kd_ordered_create(kd_ordered **out, int threads, size_t slots, size_t slot_bytes, uint64_t count,
                            kd_ordered_make make, kd_ordered_free_slot free_slot, void *ctx, kd_err *err)
{
    kd_ordered *q;
    kd_status status;
    size_t stride;
    *out = NULL;
    KD_ASSERT(threads >= 1 && slots >= 1);
    KD_TRY(kd_alloc_array(&q, 1, sizeof *q, err));
    q->make = make;
    q->free_slot = free_slot;
    q->ctx = ctx;
    q->slots = slots;
    q->count = count;
    pthread_mutex_init(&q->lock, NULL);
    pthread_cond_init(&q->slot_freed, NULL);
    pthread_cond_init(&q->entry_ready, NULL);
    stride = slot_bytes + (64 - slot_bytes % 64) % 64; /* a cache line of its own for each worker's slot */
    q->slot_bytes = stride ? stride : 64;
    KD_TRY_TO(fail, status, kd_alloc_array(&q->storage, slots, q->slot_bytes, err));
    KD_TRY_TO(fail, status, kd_alloc_array(&q->free_list, slots, sizeof *q->free_list, err));
    KD_TRY_TO(fail, status, kd_alloc_array(&q->entries, slots, sizeof *q->entries, err));
    KD_TRY_TO(fail, status, kd_alloc_array(&q->threads, (size_t)threads, sizeof *q->threads, err));
    for (size_t i = 0; i < slots; i++)
        q->free_list[q->free_count++] = q->storage + (slots - 1 - i) * q->slot_bytes;
    for (int i = 0; i < threads; i++) {
        if (pthread_create(&q->threads[i], NULL, ordered_worker, q) != 0) {
            status = kd_fail(err, KD_EFAIL, "thread %d of %d can't be started; use fewer --threads", i + 1, threads);
            goto fail;
        }
        q->thread_count++;
    }
    *out = q;
    return KD_OK;
fail:
    kd_ordered_destroy(q);
    return status;
}

kd_status kd_ordered_next(kd_ordered *q, void **slot, kd_err *err)
{
    kd_status status = KD_DONE;
    *slot = NULL;
    pthread_mutex_lock(&q->lock);
    if (q->next_out < q->count) {
        entry *e = &q->entries[q->next_out % q->slots];
        if (q->next_out >= q->next_index || !e->ready) {
            double start = kd_now();
            while (q->next_out >= q->next_index || !e->ready)
                pthread_cond_wait(&q->entry_ready, &q->lock);
            q->wait_seconds += kd_now() - start;
        }
        status = e->status;
        KD_ASSERT(status != KD_DONE); /* KD_DONE from make would end the consumer's loop early */
        if (status == KD_OK) {
            *slot = e->slot;
        } else {
            if (err)
                *err = e->err;
            q->free_list[q->free_count++] = e->slot;
            pthread_cond_signal(&q->slot_freed);
        }
        e->ready = 0;
        e->slot = NULL;
        q->next_out++;
    }
    pthread_mutex_unlock(&q->lock);
    return status;
}

void kd_ordered_release(kd_ordered *q, void *slot)
{
    pthread_mutex_lock(&q->lock);
    KD_ASSERT(q->free_count < q->slots);
    q->free_list[q->free_count++] = slot;
    pthread_cond_signal(&q->slot_freed);
    pthread_mutex_unlock(&q->lock);
}

double kd_ordered_wait_seconds(const kd_ordered *q)
{
    kd_ordered *writable = (kd_ordered *)(uintptr_t)q; /* only its lock is touched */
    double seconds;
    pthread_mutex_lock(&writable->lock);
    seconds = q->wait_seconds;
    pthread_mutex_unlock(&writable->lock);
    return seconds;
}

void kd_ordered_destroy(kd_ordered *q)
{
    if (!q)
        return;
    pthread_mutex_lock(&q->lock);
    q->stop = 1;
    pthread_cond_broadcast(&q->slot_freed);
    pthread_mutex_unlock(&q->lock);
    for (int i = 0; i < q->thread_count; i++)
        pthread_join(q->threads[i], NULL);
    for (size_t i = 0; q->free_slot && q->storage && i < q->slots; i++)
        q->free_slot(q->ctx, q->storage + i * q->slot_bytes);
    pthread_cond_destroy(&q->entry_ready);
    pthread_cond_destroy(&q->slot_freed);
    pthread_mutex_destroy(&q->lock);
    kd_free(q->threads);
    kd_free(q->entries);
    kd_free(q->free_list);
    kd_free(q->storage);
    kd_free(q);
}

/* ---- parallel loop ----
 * One pool for the process, started on first use. A call that finds the pool at work (nested, or from another thread) runs
 * on its caller alone: the processors are busy anyway. */

enum { MAX_HELPERS = 255 };

static struct {
    pthread_mutex_t owner; /* held by the call that uses the pool */
    pthread_mutex_t lock;  /* guards the rest */
    pthread_cond_t work, finished;
    int helpers;           /* threads started */
    int wanted, taken, running;
    uint64_t generation;
    void (*fn)(void *, int, size_t);
    void *ctx;
    size_t n;
    atomic_size_t next;
} pool = {.owner = PTHREAD_MUTEX_INITIALIZER, .lock = PTHREAD_MUTEX_INITIALIZER, .work = PTHREAD_COND_INITIALIZER,
          .finished = PTHREAD_COND_INITIALIZER};

static void pool_run(int worker)
{
    for (size_t i; (i = atomic_fetch_add(&pool.next, 1)) < pool.n;)
        pool.fn(pool.ctx, worker, i);
}

static void *pool_helper(void *arg)
{
    uint64_t seen = 0;
    (void)arg;
    pthread_mutex_lock(&pool.lock);
    for (;;) {
        int worker;
        while (pool.generation == seen || pool.taken >= pool.wanted) {
            seen = pool.generation;
            pthread_cond_wait(&pool.work, &pool.lock);
        }
        seen = pool.generation;
        worker = ++pool.taken; /* the caller is worker 0 */
        pool.running++;
        pthread_mutex_unlock(&pool.lock);
        pool_run(worker);
        pthread_mutex_lock(&pool.lock);
        if (--pool.running == 0)
            pthread_cond_signal(&pool.finished);
    }
    return NULL;
}

/* A child process has none of the helpers. */
static void pool_forget(void)
{
    pthread_mutex_init(&pool.owner, NULL);
    pthread_mutex_init(&pool.lock, NULL);
    pthread_cond_init(&pool.work, NULL);
    pthread_cond_init(&pool.finished, NULL);
    pool.helpers = pool.running = pool.wanted = pool.taken = 0;
}

static void pool_watch_forks(void)
{
    pthread_atfork(NULL, NULL, pool_forget);
}

/* Starts helpers until there are `want`, or as many as the system allows. Called with pool.lock held. */
static void pool_grow(int want)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_attr_t attributes;
    pthread_t thread;
    pthread_once(&once, pool_watch_forks);
    pthread_attr_init(&attributes);
    pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
    while (pool.helpers < want && pthread_create(&thread, &attributes, pool_helper, NULL) == 0)
        pool.helpers++;
    pthread_attr_destroy(&attributes);
}

void kd_parallel_for(int threads, size_t n, void (*fn)(void *ctx, int worker, size_t i), void *ctx)
{
    int helpers = threads - 1 < MAX_HELPERS ? threads - 1 : MAX_HELPERS;
    if (n > 0 && (size_t)helpers > n - 1 && helpers > 0)
        helpers = (int)(n - 1);
    if (helpers <= 0 || pthread_mutex_trylock(&pool.owner) != 0) {
        for (size_t i = 0; i < n; i++)
            fn(ctx, 0, i);
        return;
    }
    pthread_mutex_lock(&pool.lock);
    pool_grow(helpers);
    pool.fn = fn;
    pool.ctx = ctx;
    pool.n = n;
    atomic_store(&pool.next, 0);
    pool.taken = 0;
    pool.wanted = helpers;
    pool.generation++;
    pthread_cond_broadcast(&pool.work);
    pthread_mutex_unlock(&pool.lock);
    pool_run(0);
    pthread_mutex_lock(&pool.lock);
    pool.wanted = 0; /* a helper that wakes up only now finds nothing to do */
    while (pool.running > 0)
        pthread_cond_wait(&pool.finished, &pool.lock);
    pthread_mutex_unlock(&pool.lock);
    pthread_mutex_unlock(&pool.owner);
}

int kd_cpu_count(void)
{
    cpu_set_t set;
    int n = sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : 1;
    return n > 0 ? n : 1;
}

/* ---- signals ---- */

static volatile sig_atomic_t caught;

static void on_stop(int number)
{
    if (caught) { /* the user insists */
        signal(number, SIG_DFL);
        raise(number);
        return;
    }
    caught = number;
}

void kd_signals_catch(void)
{
    struct sigaction action = {0};
    action.sa_handler = on_stop;
    action.sa_flags = SA_RESTART;
    sigemptyset(&action.sa_mask);
    sigaction(SIGINT, &action, NULL);
    sigaction(SIGTERM, &action, NULL);
    signal(SIGXFSZ, SIG_IGN);
}

kd_status kd_stop_requested(void)
{
    return caught == SIGINT ? KD_ESIGINT : caught == SIGTERM ? KD_ESIGTERM : KD_OK;
}

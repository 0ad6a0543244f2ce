/* Threads: an ordered pipeline for producers that may run ahead, and a pool for parallel loops.
 *
 * kd_ordered is how images become batches: worker threads call `make` for index 0, 1, 2, ... in any order, at most `slots`
 * ahead, and the consumer receives the results in index order. So results never depend on the thread count.
 *
 *     kd_ordered_create(&q, 2, 16, sizeof(item), count, make_item, free_item, ctx, err);
 *     while ((st = kd_ordered_next(q, &item, err)) == KD_OK) { use(item); kd_ordered_release(q, item); }
 *     kd_ordered_destroy(q);                                    // stops the workers, also in the middle
 */
#ifndef KD_COMMON_BASE_THREADS_H
#define KD_COMMON_BASE_THREADS_H

#include <stdint.h>

#include "common/base/err.h"

typedef struct kd_ordered kd_ordered;

/* Fills slot (slot_bytes, zeroed once at creation and then re-used, so buffers inside can be kept) for `index`.
 * worker is 0..threads-1, for per-thread scratch. A failure is delivered to the consumer at this index, in order. */
typedef kd_status (*kd_ordered_make)(void *ctx, int worker, uint64_t index, void *slot, kd_err *err);
typedef void (*kd_ordered_free_slot)(void *ctx, void *slot);

/* threads >= 1; slots >= 1 (at least threads + 1 is sensible); free_slot may be NULL. */
kd_status kd_ordered_create(kd_ordered **out, int threads, size_t slots, size_t slot_bytes, uint64_t count,
                            kd_ordered_make make, kd_ordered_free_slot free_slot, void *ctx, kd_err *err);
/* Blocks until the next index is ready. KD_OK: *slot is the caller's until released (release in any order; several may be
 * held at once, up to slots - 1). KD_DONE after the last. Otherwise the error of that index; the next call goes on after it. */
kd_status kd_ordered_next(kd_ordered *q, void **slot, kd_err *err);
void kd_ordered_release(kd_ordered *q, void *slot);
double kd_ordered_wait_seconds(const kd_ordered *q); /* total time that kd_ordered_next has blocked: "data wait" */
void kd_ordered_destroy(kd_ordered *q);              /* accepts NULL */

/* fn(ctx, worker, i) for i in 0..n-1 on `threads` threads (the caller is one of them); returns when all are done.
 * fn must not fail: it records failures in ctx. */
void kd_parallel_for(int threads, size_t n, void (*fn)(void *ctx, int worker, size_t i), void *ctx);

int kd_cpu_count(void); /* processors this process may run on (affinity mask), at least 1 */

/* SIGINT and SIGTERM: after kd_signals_catch the first one sets a flag that long loops poll (kd_stop_requested returns
 * KD_ESIGINT or KD_ESIGTERM, else KD_OK); the second one ends the process at once. SIGXFSZ (ulimit -f) is ignored from
 * then on: the write fails with EFBIG, which is an error like a full disk. */
void kd_signals_catch(void);
kd_status kd_stop_requested(void);

#endif

/* Memory: counted allocation, overflow-checked sizes, and arenas.
 *
 * Everything that this project allocates on the host goes through here, so that the high-water mark can be printed, a
 * leak shows at exit in debug builds, and tests can make the N-th allocation fail (kd_mem_fail_after).
 *
 *     float *x = NULL;
 *     KD_TRY(kd_alloc_array(&x, n, sizeof *x, err));
 *     ...
 *     kd_free(x);
 *
 * Thread rule: allocation functions are thread-safe; an arena belongs to one thread at a time. */
#ifndef KD_COMMON_BASE_MEM_H
#define KD_COMMON_BASE_MEM_H

#include <stdint.h>

#include "common/base/err.h"

/* 64-byte aligned (a cache line, an AVX-512 register), uninitialised. 0 bytes gives a valid pointer. NULL when memory is out. */
void *kd_malloc(size_t bytes);
void *kd_calloc(size_t count, size_t size); /* zeroed; NULL also when count * size overflows */
void *kd_realloc(void *p, size_t bytes);    /* keeps the alignment */
void kd_free(void *p);                      /* accepts NULL */
char *kd_strdup(const char *s);
char *kd_asprintf(const char *fmt, ...) KD_PRINTF(1, 2); /* NULL when memory is out */

/* *(void **)out = zeroed array of count elements; KD_EFAIL naming the size when memory is out or the product overflows. */
kd_status kd_alloc_array_(void **out, size_t count, size_t size, kd_err *err);
#define kd_alloc_array(out, count, size, err) kd_alloc_array_((void **)(out), (count), (size), (err))

/* False when a * b (a + b) doesn't fit into size_t; *out is set otherwise. */
int kd_mul_size(size_t a, size_t b, size_t *out);
int kd_add_size(size_t a, size_t b, size_t *out);

/* What a program's libraries take beside kd_malloc, for plans that are printed: code that oneDNN makes, JSON, the linker's tables. Measured: 8 to 16 MiB with every model. */
enum { KD_MEM_LIBRARIES = 16 << 20 };

size_t kd_mem_live_bytes(void);
size_t kd_mem_peak_bytes(void);
/* What the system could still give without paging others out (MemAvailable; limits of a container aren't seen). SIZE_MAX where it doesn't tell. */
size_t kd_mem_available(void);
/* Test hook: the n-th allocation from now on (1 = the next) fails once; 0 switches it off. */
void kd_mem_fail_after(size_t n);

/* An arena: many small allocations with one lifetime, freed together. Grows by blocks. */
typedef struct kd_arena kd_arena;
kd_arena *kd_arena_create(void); /* NULL when memory is out */
void kd_arena_destroy(kd_arena *a);
void *kd_arena_alloc(kd_arena *a, size_t bytes); /* zeroed, 16-byte aligned; NULL when memory is out */
char *kd_arena_strdup(kd_arena *a, const char *s);
char *kd_arena_printf(kd_arena *a, const char *fmt, ...) KD_PRINTF(2, 3);

#endif

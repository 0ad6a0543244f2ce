/* Every block has a 64-byte header with its size and a mark, so that free can count and catch a foreign pointer. */
#include "common/base/mem.h"

#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

enum { ALIGNMENT = 64, ARENA_BLOCK = 64 * 1024, ARENA_ALIGNMENT = 16, LARGE = 4 << 20 };
static const uint64_t LIVE_MARK = 0x6b6463616368656dULL, FREED_MARK = 0x66726565642e2e2eULL;

typedef struct header {
    uint64_t mark;
    size_t bytes;
} header;

static atomic_size_t live_bytes, peak_bytes, fail_countdown;

static void count_in(size_t bytes)
{
    size_t live = atomic_fetch_add(&live_bytes, bytes) + bytes;
    size_t peak = atomic_load(&peak_bytes);
    while (live > peak && !atomic_compare_exchange_weak(&peak_bytes, &peak, live))
        ;
}

static int must_fail(void)
{
    size_t n = atomic_load_explicit(&fail_countdown, memory_order_relaxed);
    while (n > 0)
        if (atomic_compare_exchange_weak(&fail_countdown, &n, n - 1))
            return n == 1;
    return 0;
}

/* Large blocks lie on huge pages where the system gives any: a processor fetches ahead within a page only, and looks up fewer of them. Only whole huge pages inside the block, so that it takes no more memory. */
static void ask_for_huge_pages(void *p, size_t bytes)
{
    const uintptr_t huge = (uintptr_t)2 << 20;
    uintptr_t begin = ((uintptr_t)p + huge - 1) / huge * huge, end = ((uintptr_t)p + bytes) / huge * huge;
    if (begin < end)
        (void)madvise((void *)begin, end - begin, MADV_HUGEPAGE); /* refused: usual pages serve as well */
}

void *kd_malloc(size_t bytes)
{
    size_t total;
    header *h;
    if (must_fail() || !kd_add_size(bytes, 2 * ALIGNMENT - 1, &total))
        return NULL;
    total -= total % ALIGNMENT;
    h = aligned_alloc(ALIGNMENT, total);
    if (!h)
        return NULL;
    if (total >= LARGE)
        ask_for_huge_pages(h, total);
    h->mark = LIVE_MARK;
    h->bytes = bytes;
    count_in(bytes);
    return (char *)h + ALIGNMENT;
}

void *kd_calloc(size_t count, size_t size)
{
    size_t bytes;
    void *p;
    if (!kd_mul_size(count, size, &bytes))
        return NULL;
    p = kd_malloc(bytes);
    return p ? memset(p, 0, bytes) : NULL;
}

static header *header_of(void *p)
{
    header *h = (header *)(void *)((char *)p - ALIGNMENT);
    KD_ASSERT(h->mark == LIVE_MARK); /* else: freed twice, or not from kd_malloc */
    return h;
}

void *kd_realloc(void *p, size_t bytes)
{
    size_t old;
    void *q;
    if (!p)
        return kd_malloc(bytes);
    old = header_of(p)->bytes;
    q = kd_malloc(bytes);
    if (!q)
        return NULL;
    memcpy(q, p, old < bytes ? old : bytes);
    kd_free(p);
    return q;
}

void kd_free(void *p)
{
    header *h;
    if (!p)
        return;
    h = header_of(p);
    h->mark = FREED_MARK;
    atomic_fetch_sub(&live_bytes, h->bytes);
    free(h);
}

char *kd_strdup(const char *s)
{
    size_t n = strlen(s) + 1;
    char *copy = kd_malloc(n);
    return copy ? memcpy(copy, s, n) : NULL;
}

static int formatted_length(const char *fmt, va_list args)
{
    va_list copy;
    int n;
    va_copy(copy, args);
    n = vsnprintf(NULL, 0, fmt, copy);
    va_end(copy);
    return n;
}

char *kd_asprintf(const char *fmt, ...)
{
    va_list args;
    char *text = NULL;
    int n;
    va_start(args, fmt);
    n = formatted_length(fmt, args);
    if (n >= 0 && (text = kd_malloc((size_t)n + 1)))
        vsnprintf(text, (size_t)n + 1, fmt, args);
    va_end(args);
    return text;
}

kd_status kd_alloc_array_(void **out, size_t count, size_t size, kd_err *err)
{
    *out = kd_calloc(count, size);
    if (!*out)
        return kd_fail(err, KD_EFAIL,
                       "out of memory: %zu elements of %zu bytes were asked for while %zu MiB are in use; use a smaller batch, "
                       "fewer threads or a machine with more memory",
                       count, size, kd_mem_live_bytes() >> 20);
    return KD_OK;
}

int kd_mul_size(size_t a, size_t b, size_t *out)
{
    return !__builtin_mul_overflow(a, b, out);
}

int kd_add_size(size_t a, size_t b, size_t *out)
{
    return !__builtin_add_overflow(a, b, out);
}

size_t kd_mem_live_bytes(void)
{
    return atomic_load(&live_bytes);
}

size_t kd_mem_peak_bytes(void)
{
    return atomic_load(&peak_bytes);
}

size_t kd_mem_available(void)
{
    unsigned long long kib = 0;
    char line[128];
    int found = 0;
    FILE *f = fopen("/proc/meminfo", "r");
    while (f && !found && fgets(line, sizeof line, f))
        found = sscanf(line, "MemAvailable: %llu kB", &kib) == 1;
    if (f)
        fclose(f);
    return found ? (size_t)kib * 1024 : SIZE_MAX;
}

void kd_mem_fail_after(size_t n)
{
    atomic_store(&fail_countdown, n);
}

/* KD_LOG=debug is how a developer runs; a leak of a few bytes is no news for a user. */
__attribute__((destructor)) static void report_leak(void)
{
    const char *level = getenv("KD_LOG");
    if (level && strcmp(level, "debug") == 0 && kd_mem_live_bytes() != 0)
        fprintf(stderr, "debug: %zu bytes were still allocated at exit\n", kd_mem_live_bytes());
}

typedef struct block {
    struct block *next;
    size_t used, size;
} block;

struct kd_arena {
    block *blocks; /* the newest first; only it has room */
};

/* The data of a block begins at a multiple of ARENA_ALIGNMENT behind its header. */
enum { BLOCK_HEADER = (sizeof(block) + ARENA_ALIGNMENT - 1) / ARENA_ALIGNMENT * ARENA_ALIGNMENT };

kd_arena *kd_arena_create(void)
{
    return kd_calloc(1, sizeof(kd_arena));
}

void kd_arena_destroy(kd_arena *a)
{
    if (!a)
        return;
    for (block *b = a->blocks, *next; b; b = next) {
        next = b->next;
        kd_free(b);
    }
    kd_free(a);
}

void *kd_arena_alloc(kd_arena *a, size_t bytes)
{
    block *b = a->blocks;
    size_t rounded, total;
    void *p;
    if (!kd_add_size(bytes, ARENA_ALIGNMENT - 1, &rounded))
        return NULL;
    rounded -= rounded % ARENA_ALIGNMENT;
    if (!b || b->size - b->used < rounded) {
        size_t size = rounded > ARENA_BLOCK / 4 ? rounded : ARENA_BLOCK;
        if (!kd_add_size(size, BLOCK_HEADER, &total) || !(b = kd_malloc(total)))
            return NULL;
        b->size = size;
        b->used = 0;
        /* A large allocation gets a block of its own behind the newest, which keeps its room for small ones. */
        if (size == rounded && a->blocks) {
            b->next = a->blocks->next;
            a->blocks->next = b;
        } else {
            b->next = a->blocks;
            a->blocks = b;
        }
    }
    p = (char *)b + BLOCK_HEADER + b->used;
    b->used += rounded;
    return memset(p, 0, rounded);
}

char *kd_arena_strdup(kd_arena *a, const char *s)
{
    size_t n = strlen(s) + 1;
    char *copy = kd_arena_alloc(a, n);
    return copy ? memcpy(copy, s, n) : NULL;
}

char *kd_arena_printf(kd_arena *a, const char *fmt, ...)
{
    va_list args;
    char *text = NULL;
    int n;
    va_start(args, fmt);
    n = formatted_length(fmt, args);
    if (n >= 0 && (text = kd_arena_alloc(a, (size_t)n + 1)))
        vsnprintf(text, (size_t)n + 1, fmt, args);
    va_end(args);
    return text;
}

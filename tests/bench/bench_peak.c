/* What this machine's cores can do at best, measured: the roof that the other benches are held against.
 *
 *     bench_peak f32|bf16|triad [THREADS]
 *
 * f32, bf16: multiply-adds on registers alone, in independent chains, with the widest vectors that the processor has; GFLOP/s. bf16 needs AVX512-BF16 (exit 15 elsewhere; AMX tiles aren't measured).
 * triad: a[i] = b[i] + s c[i] over arrays far larger than any cache; GB/s, counted as two reads and a write. Prints one JSON line, the best of several rounds, of all threads together.
 *
 * Pin it from outside (taskset); user time doesn't count here, so on a busy machine the best round is what comes nearest. */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { ROUNDS = 9, MAX_THREADS = 64, CHAINS = 12, WIDE_CHAINS = 24, NO_DEVICE = 15 };
enum { TURNS = 4000000 };                 /* of a loop with CHAINS or WIDE_CHAINS multiply-adds: about 20 ms */
enum { TRIAD_FLOATS = 16 * 1024 * 1024 }; /* of one array, of all threads together */

typedef struct peak {
    const char *isa;
    double flops;      /* of a turn of the loop */
    void (*run)(void); /* TURNS turns */
} peak;

typedef struct worker {
    pthread_t thread;
    pthread_barrier_t *together;
    const peak *peak; /* NULL: triad */
    float *a, *b, *c;
    size_t n;
    double begin[ROUNDS], end[ROUNDS];
} worker;

/* Twelve independent sums hide the latency of a fused multiply-add (4 cycles, two a cycle) with some to spare; of a bf16 dot product (6 cycles) they don't: AVX-512 has registers for twice as many. */
#define TWELVE(op, r)                                                                                                                             \
    op " %%" r "0, %%" r "0, %%" r "4\n" op " %%" r "0, %%" r "0, %%" r "5\n" op " %%" r "0, %%" r "0, %%" r "6\n" op " %%" r "0, %%" r "0, %%" r "7\n"     \
    op " %%" r "0, %%" r "0, %%" r "8\n" op " %%" r "0, %%" r "0, %%" r "9\n" op " %%" r "0, %%" r "0, %%" r "10\n" op " %%" r "0, %%" r "0, %%" r "11\n"   \
    op " %%" r "0, %%" r "0, %%" r "12\n" op " %%" r "0, %%" r "0, %%" r "13\n" op " %%" r "0, %%" r "0, %%" r "14\n" op " %%" r "0, %%" r "0, %%" r "15\n"
#define MORE(op, r)                                                                                                                               \
    op " %%" r "0, %%" r "0, %%" r "16\n" op " %%" r "0, %%" r "0, %%" r "17\n" op " %%" r "0, %%" r "0, %%" r "18\n" op " %%" r "0, %%" r "0, %%" r "19\n" \
    op " %%" r "0, %%" r "0, %%" r "20\n" op " %%" r "0, %%" r "0, %%" r "21\n" op " %%" r "0, %%" r "0, %%" r "22\n" op " %%" r "0, %%" r "0, %%" r "23\n" \
    op " %%" r "0, %%" r "0, %%" r "24\n" op " %%" r "0, %%" r "0, %%" r "25\n" op " %%" r "0, %%" r "0, %%" r "26\n" op " %%" r "0, %%" r "0, %%" r "27\n"
/* Register 0 holds zeros, so that no sum ever becomes a slow number. */
#define CHAINS_LOOP(name, isa, chains)                                                                                                            \
    __attribute__((target(isa))) static void name(void) {                                                                                         \
        __asm__ volatile("vpxor %%xmm0, %%xmm0, %%xmm0\n" ::: "xmm0");                                                                            \
        for (int i = 0; i < TURNS; i++)                                                                                                           \
            __asm__ volatile(chains::: "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11", "xmm12", "xmm13", "xmm14", "xmm15"); \
    }
#if defined(__x86_64__)
CHAINS_LOOP(fma_ymm, "avx2,fma", TWELVE("vfmadd231ps", "ymm"))
CHAINS_LOOP(fma_zmm, "avx512f", TWELVE("vfmadd231ps", "zmm") MORE("vfmadd231ps", "zmm"))
CHAINS_LOOP(dot_zmm, "avx512f,avx512bf16", TWELVE("vdpbf16ps", "zmm") MORE("vdpbf16ps", "zmm"))

static int find_peak(peak *p, int bf16) {
    if (bf16 && __builtin_cpu_supports("avx512bf16"))
        *p = (peak){"AVX512-BF16", 2.0 * 32 * WIDE_CHAINS, dot_zmm};
    else if (!bf16 && __builtin_cpu_supports("avx512f"))
        *p = (peak){"AVX-512", 2.0 * 16 * WIDE_CHAINS, fma_zmm};
    else if (!bf16 && __builtin_cpu_supports("fma"))
        *p = (peak){"AVX2 and FMA", 2.0 * 8 * CHAINS, fma_ymm};
    else
        return 0;
    return 1;
}
#else
static int find_peak(peak *p, int bf16) {
    (void)p, (void)bf16;
    return 0;
}
#endif

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void triad(worker *w) {
    typedef float four __attribute__((vector_size(16)));
    four *a = (four *)(void *)w->a, *b = (four *)(void *)w->b, *c = (four *)(void *)w->c;
    for (size_t i = 0; i < w->n / 4; i++)
        a[i] = b[i] + 3.0f * c[i];
    __asm__ volatile("" ::: "memory");
}

static void *work(void *arg) {
    worker *w = arg;
    for (size_t i = 0; i < w->n; i++) /* each thread touches its own part first */
        w->a[i] = w->b[i] = w->c[i] = 1;
    for (int r = 0; r < ROUNDS; r++) {
        pthread_barrier_wait(w->together);
        w->begin[r] = now();
        if (w->peak)
            w->peak->run();
        else
            triad(w);
        w->end[r] = now();
    }
    return NULL;
}

/* Seconds of the best round, from the first thread's begin to the last one's end. */
static double best_round(const worker *w, int threads) {
    double best = 1e30;
    for (int r = 0; r < ROUNDS; r++) {
        double begin = w[0].begin[r], end = w[0].end[r];
        for (int i = 1; i < threads; i++) {
            begin = w[i].begin[r] < begin ? w[i].begin[r] : begin;
            end = w[i].end[r] > end ? w[i].end[r] : end;
        }
        best = end - begin < best ? end - begin : best;
    }
    return best;
}

static double run_all(const peak *p, int threads, float *arrays) {
    static worker w[MAX_THREADS];
    pthread_barrier_t together;
    size_t n = arrays ? (size_t)TRIAD_FLOATS / (size_t)threads / 64 * 64 : 0;
    pthread_barrier_init(&together, NULL, (unsigned)threads);
    for (int i = 0; i < threads; i++) {
        float *part = arrays ? arrays + (size_t)i * n : NULL;
        w[i] = (worker){.together = &together, .peak = p, .a = part, .b = arrays ? part + TRIAD_FLOATS : NULL, .c = arrays ? part + 2 * (size_t)TRIAD_FLOATS : NULL, .n = n};
        if (pthread_create(&w[i].thread, NULL, work, &w[i]) != 0) {
            fprintf(stderr, "bench_peak: no thread %d\n", i);
            exit(1);
        }
    }
    for (int i = 0; i < threads; i++)
        pthread_join(w[i].thread, NULL);
    pthread_barrier_destroy(&together);
    return best_round(w, threads);
}

int main(int argc, char **argv) {
    const char *what = argc > 1 ? argv[1] : "";
    int threads = argc > 2 ? atoi(argv[2]) : 1, bf16 = strcmp(what, "bf16") == 0;
    if ((!bf16 && strcmp(what, "f32") != 0 && strcmp(what, "triad") != 0) || threads < 1 || threads > MAX_THREADS) {
        fprintf(stderr, "usage: bench_peak f32|bf16|triad [THREADS]\n");
        return 2;
    }
    if (strcmp(what, "triad") == 0) {
        float *arrays = malloc(3 * (size_t)TRIAD_FLOATS * sizeof *arrays);
        if (!arrays)
            return 1;
        printf("{\"gb_s\": %.1f}\n", 1e-9 * 12 * TRIAD_FLOATS / run_all(NULL, threads, arrays));
        free(arrays);
        return 0;
    }
    peak p = {0};
    if (!find_peak(&p, bf16)) {
        fprintf(stderr, "bench_peak: no %s multiply-add that this program knows on this processor\n", what);
        return NO_DEVICE;
    }
    printf("{\"isa\": \"%s\", \"gflops\": %.1f}\n", p.isa, 1e-9 * p.flops * TURNS * threads / run_all(&p, threads, NULL));
    return 0;
}

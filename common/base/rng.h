/* Random numbers: counter-based Philox4x32-10 (Salmon et al., SC 2011), the only source of randomness in the project.
 *
 * A draw is a pure function of (seed, image id, view, purpose, block): no state is shared, so thread counts and order can't
 * change it. Key = seed (64 bits); counter = image id low 64 bits | view 32 | purpose 16 | block 16.
 *
 *     kd_rng r = kd_rng_make(seed, id_low64, view, KD_RNG_AUGMENT);
 *     double u = kd_rng_unit(&r);
 *
 * Known answers: the kat_vectors of the Random123 distribution (tests/unit). */
#ifndef KD_COMMON_BASE_RNG_H
#define KD_COMMON_BASE_RNG_H

#include <stdint.h>

/* Purposes are part of the format: never renumber, only append. */
typedef enum kd_rng_purpose {
    KD_RNG_AUGMENT = 1, /* plan of a view */
    KD_RNG_INIT = 2,    /* a parameter's initial values; "image id" is XXH3-64 of the parameter's name */
    KD_RNG_SHUFFLE = 3, /* order of an epoch; "view" is the epoch */
    KD_RNG_SPLIT = 4,   /* held-out part */
    KD_RNG_TEST = 5,     /* tests and benches */
    KD_RNG_DROP_PATH = 6 /* residual branches of a training pass: "image id" is the number of the batch in the run, "view" the branch and the recipe; one number for each row */
} kd_rng_purpose;

/* One block: out = philox4x32-10(ctr, key). */
void kd_philox4x32(uint32_t out[4], const uint32_t ctr[4], const uint32_t key[2]);

typedef struct kd_rng {
    uint32_t key[2], ctr[4], buf[4];
    uint32_t used; /* numbers of buf already given out */
} kd_rng;

kd_rng kd_rng_make(uint64_t seed, uint64_t id_low64, uint32_t view, kd_rng_purpose purpose);
/* At most 2^16 blocks (262,144 numbers) per stream; asserts beyond. Long streams (initial weights) use `view` as a segment number. */
uint32_t kd_rng_u32(kd_rng *r);
double kd_rng_unit(kd_rng *r);                       /* uniform in [0,1), 32 bits: u32 * 2^-32 */
double kd_rng_uniform(kd_rng *r, double lo, double hi); /* lo + (hi-lo) * unit */
uint32_t kd_rng_below(kd_rng *r, uint32_t n);        /* uniform in 0..n-1, n > 0, unbiased (rejection) */
double kd_rng_normal(kd_rng *r);                     /* Box-Muller with kd_exact_log and kd_exact_cos: equal on every machine */

/* Random permutation of 0..n-1 (Fisher-Yates) for an epoch; n may exceed the per-stream limit: the place of the image id
 * in the counter holds the number of the block of 65,536 swaps. */
void kd_rng_permutation(uint64_t seed, uint32_t epoch, uint32_t *out, uint32_t n);

/* Natural exponential, logarithm and cosine from + - * / only, so that no libm version can change a plan.
 * Relative error below 1e-14 for |x| <= 100 (exp), x > 0 (log), |x| <= 10 (cos); compiled with -ffp-contract=off. */
double kd_exact_exp(double x);
double kd_exact_log(double x);
double kd_exact_cos(double x);

#endif

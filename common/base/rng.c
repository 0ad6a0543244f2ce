#include "common/base/rng.h"

#include <math.h>
#include <string.h>

#include "common/base/err.h"

void kd_philox4x32(uint32_t out[4], const uint32_t ctr[4], const uint32_t key[2])
{
    uint32_t c0 = ctr[0], c1 = ctr[1], c2 = ctr[2], c3 = ctr[3], k0 = key[0], k1 = key[1];
    for (int round = 0; round < 10; round++) {
        uint64_t p0 = (uint64_t)0xD2511F53u * c0, p1 = (uint64_t)0xCD9E8D57u * c2;
        uint32_t n0 = (uint32_t)(p1 >> 32) ^ c1 ^ k0, n2 = (uint32_t)(p0 >> 32) ^ c3 ^ k1;
        c1 = (uint32_t)p1;
        c3 = (uint32_t)p0;
        c0 = n0;
        c2 = n2;
        k0 += 0x9E3779B9u; /* golden ratio */
        k1 += 0xBB67AE85u; /* sqrt(3) - 1 */
    }
    out[0] = c0;
    out[1] = c1;
    out[2] = c2;
    out[3] = c3;
}

/* `used` counts 0..4 within a block and 8..12 within the last block of the stream: 4 = draw the next, 12 = exhausted. */
enum { BLOCK_EMPTY = 4, LAST_BLOCK = 8, STREAM_EMPTY = 12 };

kd_rng kd_rng_make(uint64_t seed, uint64_t id_low64, uint32_t view, kd_rng_purpose purpose)
{
    kd_rng r;
    memset(&r, 0, sizeof r);
    r.key[0] = (uint32_t)seed;
    r.key[1] = (uint32_t)(seed >> 32);
    r.ctr[0] = (uint32_t)id_low64;
    r.ctr[1] = (uint32_t)(id_low64 >> 32);
    r.ctr[2] = view;
    r.ctr[3] = (uint32_t)purpose << 16;
    r.used = BLOCK_EMPTY;
    return r;
}

uint32_t kd_rng_u32(kd_rng *r)
{
    if (r->used >= BLOCK_EMPTY && r->used < LAST_BLOCK) {
        kd_philox4x32(r->buf, r->ctr, r->key);
        r->used = (r->ctr[3] & 0xFFFF) == 0xFFFF ? LAST_BLOCK : 0;
        r->ctr[3]++;
    }
    KD_ASSERT(r->used < STREAM_EMPTY);
    return r->buf[r->used++ & 3];
}

double kd_rng_unit(kd_rng *r)
{
    return kd_rng_u32(r) * (1.0 / 4294967296.0);
}

double kd_rng_uniform(kd_rng *r, double lo, double hi)
{
    return lo + (hi - lo) * kd_rng_unit(r);
}

uint32_t kd_rng_below(kd_rng *r, uint32_t n)
{
    uint32_t skip, x;
    KD_ASSERT(n > 0);
    skip = (0u - n) % n; /* 2^32 mod n: the lowest values that would make the remainders uneven */
    do
        x = kd_rng_u32(r);
    while (x < skip);
    return x % n;
}

double kd_rng_normal(kd_rng *r)
{
    double u = (kd_rng_u32(r) + 1.0) * (1.0 / 4294967296.0); /* (0,1]: the logarithm is finite */
    double angle = 6.283185307179586 * kd_rng_unit(r);
    return sqrt(-2.0 * kd_exact_log(u)) * kd_exact_cos(angle);
}

void kd_rng_permutation(uint64_t seed, uint32_t epoch, uint32_t *out, uint32_t n)
{
    enum { SWAPS_PER_STREAM = 65536 }; /* a quarter of the stream: rejections need 1 draw more in 2 at worst */
    kd_rng r = kd_rng_make(seed, 0, epoch, KD_RNG_SHUFFLE);
    for (uint32_t i = 0; i < n; i++)
        out[i] = i;
    for (uint32_t i = n; i > 1; i--) {
        uint32_t done = n - i, j, swapped;
        if (done > 0 && done % SWAPS_PER_STREAM == 0)
            r = kd_rng_make(seed, done / SWAPS_PER_STREAM, epoch, KD_RNG_SHUFFLE);
        j = kd_rng_below(&r, i);
        swapped = out[i - 1];
        out[i - 1] = out[j];
        out[j] = swapped;
    }
}

/* ---- exact functions: argument reduction with split constants, then a Taylor polynomial ---- */

static const double LN2_HIGH = 0x1.62e42fee00000p-1;  /* 33 bits, so that k * LN2_HIGH is exact for |k| < 2^20 */
static const double LN2_LOW = 0x1.a39ef35793c76p-33;
static const double HALF_PI_1 = 0x1.921fb54400000p+0; /* pi/2 = the sum of three, the first two with 33 bits */
static const double HALF_PI_2 = 0x1.0b4611a600000p-34;
static const double HALF_PI_3 = 0x1.3198a2e037073p-69;

static double power_of_two(int k)
{
    uint64_t bits = (uint64_t)(k + 1023) << 52;
    double d;
    memcpy(&d, &bits, sizeof d);
    return d;
}

static int nearest_int(double x)
{
    return (int)(x < 0 ? x - 0.5 : x + 0.5);
}

double kd_exact_exp(double x)
{
    int k;
    double r, sum = 1;
    if (x != x)
        return x;
    if (x > 709)
        return HUGE_VAL;
    if (x < -708)
        return 0;
    k = nearest_int(x * 1.4426950408889634);
    r = (x - k * LN2_HIGH) - k * LN2_LOW; /* |r| <= 0.35; r^14 / 14! < 1e-17 */
    for (int n = 14; n > 0; n--)
        sum = 1 + r * sum / n;
    return sum * power_of_two(k);
}

double kd_exact_log(double x)
{
    uint64_t bits;
    int k = 0;
    double m, s, s2, sum = 0;
    if (!(x > 0))
        return x == 0 ? -HUGE_VAL : NAN;
    if (x == HUGE_VAL)
        return x;
    if (x < 0x1p-1022) { /* subnormal */
        x *= 0x1p54;
        k = -54;
    }
    memcpy(&bits, &x, sizeof bits);
    k += (int)(bits >> 52) - 1023;
    bits = (bits & 0xFFFFFFFFFFFFFULL) | (uint64_t)1023 << 52;
    memcpy(&m, &bits, sizeof m);
    if (m > 1.4142135623730951) {
        m *= 0.5;
        k++;
    }
    /* log m = 2 atanh s = 2 (s + s^3/3 + ...), |s| <= 0.172: the term of s^21 is below 1e-17 of s. */
    s = (m - 1) / (m + 1);
    s2 = s * s;
    for (int n = 23; n > 1; n -= 2)
        sum = s2 * (1.0 / n + sum);
    return k * LN2_HIGH + (2 * s + (2 * s * sum + k * LN2_LOW));
}

double kd_exact_cos(double x)
{
    int quadrant = nearest_int(x * 0.6366197723675814);
    double r = ((x - quadrant * HALF_PI_1) - quadrant * HALF_PI_2) - quadrant * HALF_PI_3; /* |r| <= pi/4 */
    double r2 = r * r, sum = 1;
    if (quadrant & 1) { /* cos(r + pi/2) = -sin r */
        for (int n = 18; n > 0; n -= 2)
            sum = 1 - r2 * sum / (n * (n + 1));
        sum *= r;
        return (quadrant & 3) == 1 ? -sum : sum;
    }
    for (int n = 18; n > 0; n -= 2)
        sum = 1 - r2 * sum / (n * (n - 1));
    return (quadrant & 3) == 0 ? sum : -sum;
}

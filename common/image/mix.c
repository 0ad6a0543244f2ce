#include "common/image/mix.h"

#include <string.h>

#include "common/base/mem.h"
#include "common/base/rng.h"

/* Places in the random stream of a view, reserved by view_plan.c: part of the format, never moved. */
enum { U_MIX = 14, U_LAMBDA = 15, U_PARTNER = 16, U_COUNT = 17 };

/* Place of the first of n ascending ids that isn't below this one. */
static size_t place_of(const kd_hash128 *ids, size_t n, const kd_hash128 *id) {
    size_t lo = 0, hi = n;
    while (lo < hi) {
        size_t mid = lo + (hi - lo) / 2;
        if (memcmp(ids[mid].b, id->b, sizeof id->b) < 0)
            lo = mid + 1;
        else
            hi = mid;
    }
    return lo;
}

int kd_mix_has(const kd_hash128 *ids, size_t n, const kd_hash128 *id) {
    size_t at = place_of(ids, n, id);
    return at < n && memcmp(ids[at].b, id->b, sizeof id->b) == 0;
}

void kd_mix_draw(kd_plan *plan, const kd_policy *p, uint64_t seed, const kd_hash128 *image_id, uint32_t view, const kd_hash128 *ids, size_t n) {
    size_t own = place_of(ids, n, image_id);
    KD_ASSERT(!kd_plan_is_mixed(plan) && n <= UINT32_MAX && kd_mix_has(ids, n, image_id));
    uint32_t u[U_COUNT];
    kd_rng rng = kd_rng_make(seed, kd_hash128_low64(image_id), view, KD_RNG_AUGMENT);
    for (int i = 0; i < U_COUNT; i++)
        u[i] = kd_rng_u32(&rng);
    if (n < 2 || !(u[U_MIX] * 0x1p-32 < p->mix_p))
        return;
    size_t other = (size_t)((uint64_t)u[U_PARTNER] * (n - 1) >> 32);
    plan->mix_lambda = (float)(u[U_LAMBDA] >> 16) * 0x1p-16f;
    plan->mix_partner = ids[other + (other >= own)];
    plan->mix_view = view;
}

void kd_mix_bytes(uint8_t *view, const uint8_t *partner, size_t n, float lambda) {
    KD_ASSERT(lambda >= 0.0f && lambda <= 1.0f);
    uint32_t mine = (uint32_t)(lambda * 65536.0f), theirs = 65536 - mine; /* exact: lambda is a multiple of 2^-16 */
    for (size_t i = 0; i < n; i++)
        view[i] = (uint8_t)((view[i] * mine + partner[i] * theirs + 32768) >> 16);
}

kd_status kd_view_mix(uint8_t *view, const kd_plan *plan, const kd_plan *partner_plan, const kd_image *partner, kd_view_scratch *scratch, kd_err *err) {
    KD_ASSERT(kd_plan_is_mixed(plan) && !kd_plan_is_mixed(partner_plan) && partner_plan->out_w == plan->out_w && partner_plan->out_h == plan->out_h);
    KD_TRY(kd_image_resize_buffer(&scratch->partner, plan->out_w, plan->out_h, err));
    KD_TRY(kd_plan_apply(partner_plan, partner, scratch->partner.rgb, scratch, err));
    kd_mix_bytes(view, scratch->partner.rgb, (size_t)plan->out_w * (size_t)plan->out_h * 3, plan->mix_lambda);
    return KD_OK;
}

kd_sha256 kd_mix_digest(const kd_hash128 *ids, size_t n) {
    return kd_sha256_of(ids, n * sizeof *ids);
}

/* Mixup: a view that is blended with a view of another image of the set.
 *
 * Lambda and partner are a pure function of (seed, image id, view, the set's ids), so threads, order and interruption can't move them; but the set is part of it: a cache with mixed views
 * has the digest of the ids in its recipe, and adding or removing an image makes another cache. The partner's picture is its own view of the same number, made from its own plan, which
 * stands in the record beside the view's (kd_view_entry): a mixed view can be rebuilt from its record and two files, even where the partner has no views in the cache.
 *
 *     kd_mix_draw(&plan, &policy, seed, &id, view, ids, n);                     // after kd_plan_draw
 *     KD_TRY(kd_plan_apply(&plan, &image, out, &scratch, err));                 // everything before the mix
 *     if (kd_plan_is_mixed(&plan))                                              // then the partner is needed
 *         KD_TRY(kd_view_mix(out, &plan, &partner_plan, &partner_image, &scratch, err));
 *     kd_hash128 h = kd_view_hash(out, plan.out_w, plan.out_h);                 // after the mix
 *
 * Thread rule: pure functions; scratch belongs to one thread. */
#ifndef KD_COMMON_IMAGE_MIX_H
#define KD_COMMON_IMAGE_MIX_H

#include "common/image/augment.h"

static inline int kd_plan_is_mixed(const kd_plan *plan) {
    return plan->mix_lambda < 1.0f;
}

/* Whether the id is one of n ascending ones. */
int kd_mix_has(const kd_hash128 *ids, size_t n, const kd_hash128 *id);

/* Fills the mix_ fields of a plan without a mix. ids: the set's n image ids, ascending, each once, image_id among them (asserted).
 * With u the 32-bit numbers 14, 15, 16 of the view's random stream (that of kd_plan_draw): mixed when u14 / 2^32 < mix_p and n > 1; lambda = (u15 >> 16) / 2^16;
 * partner: number u16 * (n - 1) >> 32 of the ids without image_id; its view: the same number. */
void kd_mix_draw(kd_plan *plan, const kd_policy *p, uint64_t seed, const kd_hash128 *image_id, uint32_t view, const kd_hash128 *ids, size_t n);

/* Per byte: view = (view * L + partner * (65536 - L) + 32768) >> 16, L = lambda * 65536, a whole number from 0 to 65536. */
void kd_mix_bytes(uint8_t *view, const uint8_t *partner, size_t n, float lambda);

/* Completes `view`, which kd_plan_apply made from a mixed plan: makes the partner's view from its plan (not mixed itself, of the same size: asserted) and picture, and blends it in.
 * Errors: those of kd_plan_apply; KD_EFAIL: out of memory. */
kd_status kd_view_mix(uint8_t *view, const kd_plan *plan, const kd_plan *partner_plan, const kd_image *partner, kd_view_scratch *scratch, kd_err *err);

/* What the recipe says of the set: SHA-256 of the ids (16 bytes each) in ascending order. */
kd_sha256 kd_mix_digest(const kd_hash128 *ids, size_t n);

#endif

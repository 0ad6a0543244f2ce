/* Patch target: which of the forms in which a cache holds the teacher's patch tokens a student learns.
 *
 * Every form serves every student and loss, but one: adjoint:KxL stands for a full grid only towards predictions on a map of exactly KxL that are upsampled bilinearly (std-mse's head is
 * made on the student's own map, so the prediction's map is the student's), and only for losses that need no single token.
 *
 * Thread rule: pure functions. */
#ifndef KD_TRAIN_PATCH_TARGET_H
#define KD_TRAIN_PATCH_TARGET_H

#include "common/tensor/target.h"

/* What a cache has. */
typedef struct kd_patch_offer {
    const char *cache; /* for messages */
    const kd_target *target;
    int count;
} kd_patch_offer;

/* Who wants to learn from it. */
typedef struct kd_patch_learner {
    const char *student, *loss, *pair; /* names, for messages */
    const char *compares; /* what looks at single tokens of the teacher ("cosine"); NULL: nothing does */
    int map_h, map_w;     /* of the map that the prediction is made on ... */
    int image_h, image_w; /* ... when it sees views of this size */
} kd_patch_learner;

/* wish "auto": the adjoint target of the student's own map; else full; else the largest pooled one. Otherwise a target (kd_target_parse). *chosen: its place in the offer.
 * KD_EUSAGE: the cache doesn't hold it, or nothing that it holds can serve the student, with what the cache holds and what to do. */
kd_status kd_patch_target_choose(int *chosen, const kd_patch_offer *offer, const char *wish, const kd_patch_learner *learner, kd_err *err);
/* Place of an equal target in the offer, or -1. */
int kd_patch_target_find(const kd_patch_offer *offer, const kd_target *t);

#endif

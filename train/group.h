/* Group: what a training run draws from the caches of one recipe, or from a live teacher. Ordinarily there is one group. Several recipes of one teacher make several (multi-crop as two caches: one of global, one
 * of local crops): every step then shows the students the same images once from each group, each as one of that group's views.
 *
 *     kd_groups g = {0};
 *     KD_TRY(kd_groups_open(&g, paths, count, err));          // also after a failure: kd_groups_close
 *     ... sizes, and a replay for each group ...
 *     KD_TRY(kd_groups_match(&g, err));
 *     image = kd_group_image(&g.group[k], i);                 // the same image i in every group
 *     kd_groups_close(&g); */
#ifndef KD_TRAIN_GROUP_H
#define KD_TRAIN_GROUP_H

#include "train/replay.h"

enum { KD_MAX_GROUPS = 4 };

typedef struct kd_group {
    kd_source source;
    kd_replay *replay;
    int student_h, student_w; /* what the students see of a view */
    uint32_t *image;          /* image of the run -> image of the replay */
} kd_group;

typedef struct kd_groups {
    kd_group group[KD_MAX_GROUPS]; /* in the order in which their recipes are first met */
    size_t count;
    size_t images;                 /* of the run: those that every group has, in the order of their ids */
    size_t left_out;               /* images of some group that another lacks */
    double covered_wait;           /* of the replays' waiting seconds: while a device was at work */
} kd_groups;

/* Opens every path (sealed cache, or folder of shards); those of equal recipe are shards of one cache. *g must be zeroed. KD_EMISMATCH: another teacher, other layers
 * (kd_recipe_same_teacher), or shards that don't belong together. KD_EUSAGE: more than KD_MAX_GROUPS recipes. */
kd_status kd_groups_open(kd_groups *g, const char *const *paths, size_t count, kd_err *err);
/* One group, of a live teacher, which is taken over. *g must be zeroed. */
void kd_groups_live(kd_groups *g, kd_live *live);
void kd_groups_close(kd_groups *g); /* replays too; accepts a zeroed one */

/* Size at which the students see the views of groups 1, 2, ..., from that of the first: reduced by the same factors, rounded to whole pixels. */
void kd_groups_scale(kd_groups *g);
/* Finds the images that all replays have. KD_EMISMATCH: none. */
kd_status kd_groups_match(kd_groups *g, kd_err *err);

/* Image i of the run as this group has it. */
const kd_image_entry *kd_group_image(const kd_group *g, size_t i);
/* What image i shows in an epoch (kd_epoch_view). */
kd_replay_item kd_group_item(const kd_group *g, size_t i, uint32_t epoch);
double kd_groups_wait_seconds(const kd_groups *g); /* kd_replay_wait_seconds of all, without covered_wait */

#endif

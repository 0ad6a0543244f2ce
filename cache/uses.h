/* Uses: which students and losses a cache can train, for kd-cache info. What kd-train itself checks before a run is in train/patch_target.h; this page says the same to people who are only looking.
 * Pure functions. Inside cache/ only. */
#ifndef KD_CACHE_USES_H
#define KD_CACHE_USES_H

#include "cache/identity.h"
#include "cache/student_map.h"

enum { KD_USE_STUDENTS = 8, KD_USE_TEXT = 64 };

/* One line of the answer. */
typedef struct kd_use {
    char stored[KD_USE_TEXT];                        /* "cls", "patch full", "patch adjoint:7" */
    char student[KD_USE_STUDENTS][KD_USE_TEXT];      /* "resnet18", "resnet18 --student-size 112"; none for "every student" */
    int students;
    int every;                                       /* every student can learn it */
    const char *losses;                              /* those that learn from it, as --loss names them, separated by ", " */
} kd_use;

/* What the recipe's cls (if stored) and patch targets can train; returns how many lines. */
int kd_recipe_uses(kd_use use[1 + KD_MAX_TARGETS], const kd_recipe *r);

/* Arguments of kd-train, beside cache and images, for a run that works with this cache: "--student resnet18 --patch-weight 0". Returns buf; empty when nothing of it can be trained on. */
const char *kd_recipe_train_arguments(const kd_recipe *r, char *buf, size_t cap);

#endif

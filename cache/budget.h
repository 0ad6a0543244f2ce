/* Budget: which of the ways to store features to take, and how many views fit. One rule for kd-precompute --budget and kd-cache estimate.
 *
 *     kd_budget_ask a = {.shape = shape, .images = 1281167, .views = 8, .budget = 200000000000};
 *     KD_TRY(kd_budget_choose(&c, &a, err));                              // c.step[c.chosen], c.views
 *
 * The ladder (the table in budget.c), from what is preferred down:
 *   1. every token in i8: every student and every loss can use it; on real photos as good as f16 (equal k-NN) at half the bytes: docs/storage.md
 *   2. where students are named: the adjoint targets of their maps, i8. For them (and the losses that allow it) they are every token at a fraction of the bytes, so that the choice starts here;
 *      unless together they save less than a fifth
 *   3. patches pooled to half the grid, i8: coarser, for every student; unless step 2 takes less
 *   4. the last of those with fewer views of each image
 *   5. what is left without patches, i8, and at last fewer views of that
 * f16 and bf16 aren't on it: they are for who asks. f16 full is listed first all the same, to compare with. What the user has fixed (--store, --patch-target) replaces the ladder's.
 * Without a budget the first step is taken. Pure functions. */
#ifndef KD_CACHE_BUDGET_H
#define KD_CACHE_BUDGET_H

#include "cache/size_model.h"
#include "cache/student_map.h"

typedef struct kd_budget_ask {
    kd_size_shape shape;
    uint64_t images;
    uint32_t views;             /* wanted of each image, at least 1 */
    uint64_t budget;            /* bytes of the sealed cache; 0: no limit */
    const kd_map_size *student; /* maps of the students that will be trained */
    int students;
    const kd_dtype *dtype;      /* fixed by the user; NULL: free */
    const kd_target *target;    /* likewise: the patch targets */
    int targets;                /* 0: free */
} kd_budget_ask;

/* One way to store the features. */
typedef struct kd_budget_step {
    kd_storage storage;
    unsigned features;
    uint64_t view_bytes, cache_bytes; /* with the wanted views */
    uint32_t fits;                    /* views of each image that the budget has room for, at most those wanted */
} kd_budget_step;

enum { KD_BUDGET_STEPS = 8 };
typedef struct kd_budget_choice {
    kd_budget_step step[KD_BUDGET_STEPS]; /* in the ladder's order */
    int steps, first;                     /* the choice starts at step `first` */
    int chosen;
    uint32_t views;
    uint64_t view_bytes, cache_bytes;     /* of the chosen step with these views */
} kd_budget_choice;

/* KD_ENOSPACE: not even one view of the smallest step fits; the sentence says what would. The steps are filled in all the same. */
kd_status kd_budget_choose(kd_budget_choice *c, const kd_budget_ask *ask, kd_err *err);

/* Why the chosen step: "i8 full x 8 views, 120.1 GiB: f16 full would need 231.0 GiB". Returns buf. */
const char *kd_budget_reason(const kd_budget_choice *c, const kd_budget_ask *ask, char *buf, size_t cap);

/* Names of students, separated by commas, as --for takes them -> their maps (each once, in order) when they see views of height x width pixels at the size that --student-size says ("0": as they are).
 * KD_EUSAGE: kd_student_map's, a size that is none or above the view's, more than KD_FOR_MAX maps. */
enum { KD_FOR_MAX = 32 };
kd_status kd_for_parse(kd_map_size map[KD_FOR_MAX], int *count, const char *text, const char *student_size, int height, int width, kd_err *err);

#endif

/* Setup: everything that a training run needs, opened and checked before the first step, and the plan that says so to people.
 *
 *     kd_setup s = {0};
 *     KD_TRY(kd_setup_open(&s, config, arena, err));                 // also after a failure: kd_setup_close
 *     kd_setup_print(&s);
 *     kd_setup_close(&s);
 */
#ifndef KD_TRAIN_SETUP_H
#define KD_TRAIN_SETUP_H

#include "train/loss_named.h"
#include "train/schedule.h"
#include "train/student.h"
#include "train/student_choice.h"

enum { KD_VAL_MAX = 4096 }; /* views that are validated; more would cost time and tell nothing new */

typedef struct kd_setup {
    kd_train_config *config;
    int threads;
    int lock;                 /* of the run directory; -1 = not held */
    kd_groups groups;         /* caches and replays, by recipe */
    kd_backend *backend;
    kd_student_choice *choices; /* what each student's settings are; in the arena */
    kd_loss *losses;            /* what each learns */
    kd_teacher_head *teacher_head; /* NULL: none */
    kd_student **students;
    size_t count;
    kd_split split;           /* of the run's images: kd_group_image */
    kd_replay_item *held, *seen; /* validation, on the first group; seen[].view is filled in per epoch */
    size_t held_count, seen_count;
    int64_t step_images;      /* in a step: --batch-size times --accumulate */
    int64_t epoch_steps, steps, warmup_steps;
    uint64_t view_memory;
    kd_hash128 images;        /* of the ids, and view numbers in all groups, of all images in use */
    json_t *options;          /* resolved: what a resumed run must agree with */
} kd_setup;

/* *s must be zeroed with lock = -1. KD_ELOCKED: another kd-train works in the run directory. KD_EUSAGE: fewer training images than one batch. Creates the run directory
 * unless the options touch nothing. */
kd_status kd_setup_open(kd_setup *s, kd_train_config *config, kd_arena *arena, kd_err *err);
void kd_setup_close(kd_setup *s);
/* Student i of the options with its first weights, on any backend. The caller destroys it. Errors: kd_student_create's. */
kd_status kd_setup_create_student(kd_student **out, const kd_setup *s, size_t i, kd_backend *backend, kd_err *err);
void kd_setup_print(const kd_setup *s); /* through kd_log */

#endif

/* Pairs: the same views as a student and as its teacher describe them, side by side. What `kd-eval agree` compares. The teacher is a network that sees the views too, or a cache that holds what it saw.
 *
 *     kd_pairs p;
 *     KD_TRY(kd_pairs_of_network(&p, student, teacher, "photos", KD_LIST_LINES, &(kd_pairs_choice){.count = 4096, .patch_count = 128}, err));
 *     ... p.teacher [p.count][p.teacher_width], p.student [p.count][p.student_width]
 *     kd_pairs_free(&p);
 *
 * Networks see the evaluation view of each image, each reduced as it was opened; with a cache the student sees, proven by hash (replay.h), the pixels that the teacher saw: view 0 of each image, whatever
 * the cache's augmentation. Patches: the student's map is resized to the teacher's grid (kd_grid_resize). Chosen images are evenly spread over all, in the order of paths or, of a cache, of ids. */
#ifndef KD_TRAIN_EVAL_PAIRS_H
#define KD_TRAIN_EVAL_PAIRS_H

#include "cache/store.h"
#include "train/eval/features.h"

typedef struct kd_pairs_choice {
    kd_tap tap;         /* the student's feature of an image: KD_TAP_POOLED or KD_TAP_CLS; the teacher's is its CLS feature */
    size_t count;       /* images at most; 0: all */
    size_t patch_count; /* of them, whose patches are compared too; 0: none */
} kd_pairs_choice;

typedef struct kd_pairs {
    size_t count, skipped;                /* images compared; that couldn't be read, or of a cache aren't among the files as they were */
    size_t teacher_width, student_width;
    float *teacher, *student;             /* [count][width of each] */
    kd_hash128 *id;                       /* [count] */
    size_t patch_count;                   /* 0: patches weren't asked for, or the cache doesn't hold the full grid */
    int grid_h, grid_w;                   /* of the teacher's patches */
    int own_h, own_w;                     /* of the student's map, before it was resized */
    float *teacher_patch, *student_patch; /* [patch_count][grid_h * grid_w][width of each] */
} kd_pairs;

/* KD_EUSAGE: the causes of kd_dataset_open; KD_EFAIL: no image could be read, files that change meanwhile. Otherwise the causes of kd_features_run. *p needs no freeing after a failure. */
kd_status kd_pairs_of_network(kd_pairs *p, const kd_network *student, const kd_network *teacher, const char *images, kd_list_format list, const kd_pairs_choice *choice, kd_err *err);
/* Features of the cache's last stored layer. The student must have been opened for views of the recipe's size (asserted). KD_EUSAGE: the cache holds no CLS features. Otherwise the causes of
 * kd_replay_create and kd_replay_next. */
kd_status kd_pairs_of_cache(kd_pairs *p, const kd_network *student, kd_cache *cache, const char *images, kd_list_format list, const kd_pairs_choice *choice, kd_err *err);
void kd_pairs_free(kd_pairs *p); /* accepts a zeroed one */

#endif

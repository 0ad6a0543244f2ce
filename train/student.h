/* Student: one network in training: its graph with heads and losses, parameters, programs for training and validation, optimizer and history.
 * Fifth station of the way of the data. A run may hold several; they share samples and nothing else, and no draw depends on a student's place among them.
 *
 *     KD_TRY(kd_student_create(&s, backend, &spec, err));
 *     for every group g and row: kd_student_put(s, g, row, &sample, err);  kd_step_run(s, lr, clip, &result, err);       // step.h
 *
 * A step that has begun can be undone until the optimizer has changed the weights: kd_student_set_mark before it, kd_student_rewind after what was run of it. While a student is marked, a
 * request to stop (kd_stop_requested) ends its passes between two ops.
 *
 *     kd_student_destroy(s);
 */
#ifndef KD_TRAIN_STUDENT_H
#define KD_TRAIN_STUDENT_H

#include "train/config.h"
#include "train/ema.h"
#include "train/group.h"
#include "train/loss.h"
#include "train/optim.h"
#include "train/patch_target.h"
#include "train/teacher_head.h"

enum { KD_TARGETS = 2 }; /* features that validation speaks of; indexes KD_FEATURE_CLS and KD_FEATURE_PATCH */

/* What a student sees of one group, and what the teacher's features there are like. */
typedef struct kd_student_view {
    int image_h, image_w;
    int width, grid_h, grid_w; /* of the teacher */
    kd_target target;          /* the form of the patches, if there is no offer */
    kd_patch_offer offer;      /* the forms to choose from; count 0: target. Borrowed while the student is created */
} kd_student_view;

typedef struct kd_student_spec {
    const char *name;  /* of the model */
    const char *label; /* what it is called in metrics, checkpoints and exports; NULL: as the model. Borrowed for the life of the student */
    const char *init;  /* weight file or NULL */
    const kd_loss *loss;
    const kd_teacher_head *teacher_head; /* for pairs with classes; borrowed for the life of the student */
    kd_student_view view[KD_MAX_GROUPS];
    int views;         /* 1 .. KD_MAX_GROUPS */
    int batch;         /* images of each group */
    kd_dtype precision;
    uint64_t seed;
    const kd_train_config *config; /* the student's own settings, "auto" resolved by the kind of model. Borrowed while it is created */
} kd_student_spec;

/* What a pass changes besides gradients, as it was at the last kd_student_set_mark. */
typedef struct kd_student_mark {
    float *states; /* host, as long as kd_params_states */
    size_t count;
    int64_t counter;
    int set;
} kd_student_mark;

/* The network at one group's size, with the parameters that all sizes share. */
typedef struct kd_student_program {
    kd_student_view view;
    kd_pair_target target[KD_MAX_PAIRS]; /* what each pair of the loss learns */
    int form[KD_MAX_PAIRS];   /* place of its form in the offer, of patches */
    int sample[KD_MAX_PAIRS]; /* which of a sample's targets that is: by default the pair's place; else set by who makes the samples */
    kd_graph *graph;
    kd_exec *train;
} kd_student_program;

typedef struct kd_student {
    const char *name;
    kd_backend *backend;
    kd_model_info model;
    int batch;
    kd_hyper hyper;
    kd_loss loss;
    const kd_teacher_head *teacher_head;
    float *logits;            /* [classes], of one image; NULL without a head */
    kd_params *params;
    kd_student_program program[KD_MAX_GROUPS]; /* one for each group; they work on the gradients of the first */
    int programs;
    kd_graph *infer_graph;    /* the first program's without drop path */
    kd_exec *infer;           /* at the first group's size, of the moving average if there is one: what is validated; computes the losses too */
    kd_optim optim;
    kd_ema ema;               /* zeroed without --ema */
    int accumulate;           /* batches of a step */
    kd_student_mark mark;
    uint64_t seed;
    double drop_path;
    float *keep;              /* with drop path, host, [batch]: what a residual branch of each image is multiplied with */
    /* history: part of the checkpoint */
    double best_loss;         /* lowest validation loss; infinity before the first */
    int64_t best_epoch;       /* 0 = none */
    double sum[1 + KD_MAX_TERMS]; /* since the epoch began: loss, terms */
    int64_t summed;           /* steps in `sum` */
} kd_student;

/* KD_EUSAGE: unknown name, size that the model can't take, several sizes for a model that has one, a feature that it doesn't have, no form of the patches that serves it. KD_EFAIL: the init file.
 * KD_ENODEVICE: bf16 without the instructions. */
kd_status kd_student_create(kd_student **out, kd_backend *backend, const kd_student_spec *spec, kd_err *err);
void kd_student_destroy(kd_student *s); /* accepts NULL */
/* Gives back the memory of what trains and validates; its name and history stay. */
void kd_student_retire(kd_student *s);
size_t kd_student_device_bytes(const kd_student *s);
/* KD_EUSAGE: m can't be trained on these views: a size that it can't take, or several sizes where its learned positions are those of one. */
kd_status kd_student_check_views(const kd_model_info *m, const kd_student_view *views, int count, kd_err *err);

/* Uploads pixels and targets as row `row` of the next training pass on group `group`. */
kd_status kd_student_put(kd_student *s, int group, int row, const kd_sample *sample, kd_err *err);
/* The same for the next validation pass, which sees the first group. */
kd_status kd_student_show(kd_student *s, int row, const kd_sample *sample, kd_err *err);
/* Draws and uploads, for the batch number `batch` of the run, which residual branches of which images group `group`'s pass drops. Nothing without --drop-path. */
kd_status kd_student_drop_paths(kd_student *s, int group, uint64_t batch, kd_err *err);

/* Remembers and brings back what a step changes before its update: running statistics, states of losses, the counter. Nothing is allocated. */
kd_status kd_student_set_mark(kd_student *s, kd_err *err);
void kd_student_drop_mark(kd_student *s);
kd_status kd_student_rewind(kd_student *s, kd_err *err); /* drops the mark, which must be set */

#endif

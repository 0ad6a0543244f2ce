/* Config: the options of kd-train, and the values that "auto" stands for.
 *
 *     kd_train_config c = {0};
 *     kd_options_parse(&kd_train_program, &c, argc, argv, &json, arena, err);
 *     KD_TRY(kd_train_config_check(&c, err));
 *     KD_TRY(kd_train_hyper(&h, &c, &model, err));        // per student: learning rate, weight decay
 *
 * Strings belong to the arena that parsing was given. */
#ifndef KD_TRAIN_CONFIG_H
#define KD_TRAIN_CONFIG_H

#include "common/base/options.h"
#include "kernels/nn/models.h"
#include "train/optim.h"

typedef struct kd_train_config {
    kd_strings cache, students, pairs;
    const char *images, *out, *init, *dump;
    const char *image_size, *student_size; /* "224" or "112x168"; "0" = the cache's, the view's */
    const char *live_teacher, *teacher, *weights_key, *positions, *normalize; /* live_teacher, weights_key: NULL when absent */
    const char *augment, *exif, *layers, *layer_norm, *layer_concat, *teacher_precision, *max_skipped;
    int64_t views, view_seed, max_pixels, teacher_batch; /* of a live teacher, as the two lines above */
    const char *patch_target; /* "auto" or a target (patch_target.h) */
    const char *preset, *loss, *head, *teacher_head, *optimizer, *lr_scale, *device, *precision;
    const char *val_list, *knn_train, *knn_test; /* NULL: none */
    const char *lr, *weight_decay, *warmup_epochs, *view_memory, *cls_weight, *patch_weight, *temperature, *queue_size; /* a number or "auto" */
    int64_t epochs, batch_size, accumulate, lr_reference_batch, teacher_layer, head_hidden, seed, val_seed, val_group, knn_every, threads, log_every, steps, overfit_batch, checkpoint_epochs, keep;
    double cosine_share, beta, gram_weight, koleo_weight, clip, momentum, ema, drop_path, val_fraction, checkpoint_minutes;
    int null, allow_missing, dry_run, list_students, json, compare_backends, check_finite, profile;
} kd_train_config;

extern const kd_program kd_train_program;

/* A dry run and the modes of truth.h: the run directory is neither made nor read. */
int kd_train_touches_nothing(const kd_train_config *c);

/* What the table can't say: KD_EUSAGE for numbers and sizes that aren't, for no or two sources of targets, for options of a live teacher where there is none. The students' own settings are
 * checked by the same function. */
kd_status kd_train_config_check(const kd_train_config *c, kd_err *err);

/* A student's own settings. lr is the peak rate, scaled: --lr auto stands for 1e-3 for models of batch norm and 5e-4 for those of layer norm (ViTs, ConvNeXt) with adamw, 0.05 with sgd and 0.37
 * with lars, at 64 images per step. --weight-decay auto: 1e-6 and 0.04 (LightlyTrain's). */
typedef struct kd_hyper {
    double lr, clip;
    kd_optim_spec optim;
} kd_hyper;
kd_status kd_train_hyper(kd_hyper *h, const kd_train_config *c, const kd_model_info *m, kd_err *err);

/* Epochs of warm-up; auto: min(10, epochs / 10). */
kd_status kd_train_warmup(double *epochs, const kd_train_config *c, kd_err *err);
/* Bytes for decoded views; auto: a quarter of the memory that this process may use. */
kd_status kd_train_view_memory(uint64_t *bytes, const kd_train_config *c, kd_err *err);

/* The options as they are run, "auto" replaced where all students agree: what config.resolved.yaml and checkpoints keep. Texts go to the arena. */
kd_status kd_train_resolve(kd_train_config *c, const kd_hyper *h, size_t students, kd_arena *arena, kd_err *err);

/* KD_EUSAGE naming the first option that differs between a run's stored options and the present ones and that may not change within a run. */
kd_status kd_train_same_run(const json_t *stored, const json_t *now, const char *run, kd_err *err);

#endif

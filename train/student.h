/* Student: one network in training: its graph with heads and losses, parameters, programs for training and validation, optimizer and history.
 * Fifth station of the way of the data. A run may hold several; they share samples and nothing else, and no draw depends on a student's place among them.
 *
 *     KD_TRY(kd_student_create(&s, backend, &spec, err));
 *     kd_student_put(s, row, &sample, 1, err) for every row;  kd_step_run(s, lr, clip, &result, err);       // step.h
 *     kd_student_destroy(s);
 */
#ifndef KD_TRAIN_STUDENT_H
#define KD_TRAIN_STUDENT_H

#include "train/config.h"
#include "train/loss.h"
#include "train/optim.h"
#include "train/replay.h"

typedef struct kd_student_spec {
    const char *name;  /* of the model: also the student's name in metrics, checkpoints and exports */
    const char *init;  /* weight file or NULL */
    int image_h, image_w, batch;
    kd_dtype precision;
    uint64_t seed;
    kd_loss_spec loss;
    const kd_train_config *config; /* learning rate and weight decay, "auto" resolved by the kind of model */
} kd_student_spec;

typedef struct kd_student {
    const char *name;         /* model.name */
    kd_backend *backend;
    kd_model_info model;
    int image_h, image_w, batch;
    kd_loss_spec loss;
    kd_hyper hyper;
    kd_graph *graph;
    kd_params *params;
    kd_exec *train, *infer;   /* the same parameters */
    kd_optim optim;
    /* history: part of the checkpoint */
    double best_loss;         /* lowest validation loss; infinity before the first */
    int64_t best_epoch;       /* 0 = none */
    double sum[3];            /* loss, CLS term, patch term since the epoch began */
    int64_t summed;           /* steps in `sum` */
} kd_student;

/* KD_EUSAGE: unknown name, size that the model can't take. KD_EFAIL: the init file. KD_ENODEVICE: bf16 without the instructions. */
kd_status kd_student_create(kd_student **out, kd_backend *backend, const kd_student_spec *spec, kd_err *err);
void kd_student_destroy(kd_student *s); /* accepts NULL */
size_t kd_student_device_bytes(const kd_student *s);

/* Uploads a sample as row `row` of the next pass of the training or the validation program. */
kd_status kd_student_put(kd_student *s, kd_exec *program, int row, const kd_sample *sample, int with_targets, kd_err *err);

#endif

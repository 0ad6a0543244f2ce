/* Student choice: what one --student says. "resnet18", or a model with settings of its own that differ from the run's:
 *
 *     --student resnet18 --student resnet18,name=r18-mse,loss=mse,lr=3e-4
 *
 *     student:                                       # the same in a --config file
 *       - resnet18
 *       - {model: resnet18, name: r18-mse, loss: mse, lr: 3e-4}
 *
 * A setting whose value has commas of its own stands in brackets, as pairs do, of which a student may have several in place of the run's ("pair=none": none of them):
 *
 *     --student 'resnet18,loss=none,pair=[student=layer3,teacher=patch:2],pair=[teacher=cls]'
 *       - {model: resnet18, loss: none, pair: [{student: layer3, teacher: patch:2}, {teacher: cls}]}
 *
 * Students of one run share images, views, batch size, epochs and seed: these can't be set for one of them.
 *
 *     KD_TRY(kd_student_choice_parse(&choice, text, &run, arena, err));
 *     kd_student_create(..., &(kd_student_spec){.name = choice.model, .label = choice.name, .config = &choice.config}, ...) */
#ifndef KD_TRAIN_STUDENT_CHOICE_H
#define KD_TRAIN_STUDENT_CHOICE_H

#include "train/config.h"

typedef struct kd_student_choice {
    const char *model, *name; /* name: in metrics, checkpoints and exports; the model's unless it is given */
    kd_train_config config;   /* the run's options with this student's own */
} kd_student_choice;

/* Strings go to the arena. KD_EUSAGE: no model, an unknown setting, one that all students share, a value that the option refuses, a bracket that isn't closed, a name that can't be a file's. */
kd_status kd_student_choice_parse(kd_student_choice *out, const char *text, const kd_train_config *run, kd_arena *arena, kd_err *err);

/* All of a run's, in their order, *out in the arena. KD_EUSAGE beside the above: two of one name. */
kd_status kd_student_choices(kd_student_choice **out, const kd_train_config *run, kd_arena *arena, kd_err *err);

#endif

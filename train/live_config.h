/* Live config: the live teacher that a run's options describe. */
#ifndef KD_TRAIN_LIVE_CONFIG_H
#define KD_TRAIN_LIVE_CONFIG_H

#include "train/live.h"
#include "train/student_choice.h"

/* Opens the teacher of config->live_teacher; it gives the features that losses know (cls, patch, mean), patches in full and in each form that --patch-target names for the run or one of its students. Resolves
 * config->views 0 to config->epochs. KD_EUSAGE beside kd_live_open's causes: more forms than KD_MAX_TARGETS. */
kd_status kd_live_from_config(kd_live **out, kd_train_config *config, const kd_student_choice *students, int threads, kd_err *err);

#endif

/* Eval: the commands of kd-eval, each with its own option table. Last station of the way of the data. */
#ifndef KD_TRAIN_EVAL_H
#define KD_TRAIN_EVAL_H

#include "common/base/options.h"

/* argv[1] is the command ("knn", "logreg", ...); prints its result on stdout. *json: --json was given. KD_DONE: help was printed. */
kd_status kd_eval_main(int argc, char **argv, int *json, kd_arena *arena, kd_err *err);

#endif

#include "train/eval/eval.h"

#include "common/base/threads.h"
#include "train/eval/command.h"

static const kd_eval_command *const commands[] = {&kd_eval_knn_command,   &kd_eval_logreg_command,   &kd_eval_linear_command,
                                                  &kd_eval_agree_command, &kd_eval_features_command, &kd_eval_pca_command};
enum { COMMANDS = sizeof commands / sizeof commands[0] };

kd_status kd_eval_main(int argc, char **argv, int *json, kd_arena *arena, kd_err *err) {
    const kd_program *programs[COMMANDS];
    size_t which;
    for (size_t i = 0; i < COMMANDS; i++)
        programs[i] = commands[i]->program;
    const kd_command_set set = {.name = "kd-eval", .summary = "Measures what a network's frozen features know.", .programs = programs, .count = COMMANDS};
    KD_TRY(kd_options_command(&set, argc, argv, &which, json, err));
    kd_signals_catch();
    return commands[which]->run(argc - 1, argv + 1, json, arena, err);
}

/* kd-eval: dispatch, exit code. */
#include "common/base/log.h"
#include "train/eval/eval.h"

int main(int argc, char **argv) {
    kd_err err = {0};
    int json = 0;
    kd_arena *arena = kd_arena_create();
    kd_status status = arena == NULL ? kd_fail(&err, KD_EFAIL, "out of memory") : kd_eval_main(argc, argv, &json, arena, &err);
    if (status < 0)
        kd_log_error("kd-eval", &err, json);
    kd_arena_destroy(arena);
    return kd_exit_code(status);
}

/* kd-train: option table, parse, run, exit code. */
#include "common/base/log.h"
#include "common/base/threads.h"
#include "train/list_students.h"
#include "train/run.h"

int main(int argc, char **argv) {
    kd_err err = {0};
    kd_train_config config = {0};
    kd_arena *arena = kd_arena_create();
    int json = 0;
    kd_status status = arena == NULL ? kd_fail(&err, KD_EFAIL, "out of memory") : kd_options_parse(&kd_train_program, &config, argc, argv, &json, arena, &err);
    if (status == KD_OK) {
        config.json = json;
        kd_signals_catch();
        status = config.list_students ? kd_list_students(json, &err) : kd_train_run(&config, arena, &err);
    }
    if (status < 0)
        kd_log_error(kd_train_program.name, &err, json);
    kd_arena_destroy(arena);
    return kd_exit_code(status);
}

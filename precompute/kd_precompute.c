/* kd-precompute: option table, parse, run, exit code. */
#include "common/base/log.h"
#include "precompute/run.h"

int main(int argc, char **argv) {
    kd_err err = {0};
    kd_precompute_config config = {0};
    kd_arena *arena = kd_arena_create();
    int json = 0;
    kd_status status = arena == NULL ? kd_fail(&err, KD_EFAIL, "out of memory")
                                     : kd_options_parse(&kd_precompute_program, &config, argc, argv, &json, arena, &err);
    if (status == KD_OK) {
        config.json = json;
        config.argv = argv;
        status = kd_precompute_run(&config, &err);
    }
    if (status < 0)
        kd_log_error(kd_precompute_program.name, &err, json);
    kd_arena_destroy(arena);
    return kd_exit_code(status);
}

/* kd-cache: dispatch, exit code. */
#include "cache/commands.h"
#include "common/base/log.h"

int main(int argc, char **argv)
{
    kd_err err = {0};
    int json = 0;
    kd_arena *arena = kd_arena_create();
    kd_status status = arena ? kd_cache_main(argc, argv, &json, arena, &err) : kd_fail(&err, KD_EFAIL, "out of memory");
    if (status < 0)
        kd_log_error("kd-cache", &err, json);
    kd_arena_destroy(arena);
    return kd_exit_code(status);
}

#include "train/spent.h"

static const char *const HOST[KD_SPENT_STAGES] = {
    [KD_SPENT_START] = "start", [KD_SPENT_WAIT] = "wait for data", [KD_SPENT_TEACHER] = "live teacher", [KD_SPENT_BATCH] = "batch", [KD_SPENT_FORWARD] = "forward",
    [KD_SPENT_BACKWARD] = "backward", [KD_SPENT_DEVICE] = "wait for the device", [KD_SPENT_OPTIMIZER] = "optimizer", [KD_SPENT_VALIDATION] = "validation", [KD_SPENT_CHECKPOINT] = "checkpoint",
    [KD_SPENT_REPORT] = "report", [KD_SPENT_EXPORT] = "export", [KD_SPENT_OTHER] = "other"};
static const char *const QUEUED[] = {[KD_SPENT_FORWARD] = "queue forward", [KD_SPENT_BACKWARD] = "queue backward"};
enum { LOADER_STAGES = KD_REPLAY_CACHE + 1 };
static const char *const LOADERS[LOADER_STAGES] = {[KD_VIEW_DECODE] = "decode", [KD_VIEW_REPLAY] = "replay", [KD_REPLAY_CACHE] = "cache"};

static void write_summary(const kd_stages *s, const char *const *name, const double *loaders, long long steps) {
    double all = 0;
    for (int i = 1; i < KD_SPENT_STAGES; i++)
        all += s->seconds[i];
    json_t *line = json_pack("{s:s, s:I, s:f, s:o, s:o}", "type", "summary", "steps", (json_int_t)steps, "seconds", all, "stages", kd_stages_json(name, s->seconds, KD_SPENT_STAGES), "loaders",
                             kd_stages_json(LOADERS, loaders, LOADER_STAGES));
    kd_json_line(line);
    json_decref(line);
}

void kd_spent_tell(const kd_stages *s, const kd_groups *groups, int device, long long steps, int json) {
    const char *name[KD_SPENT_STAGES];
    double loaders[KD_STAGES] = {0};
    for (int i = 0; i < KD_SPENT_STAGES; i++)
        name[i] = device && i < (int)(sizeof QUEUED / sizeof *QUEUED) && QUEUED[i] != NULL ? QUEUED[i] : HOST[i];
    for (size_t k = 0; k < groups->count; k++)
        kd_replay_add_work(groups->group[k].replay, loaders);
    kd_stages_log("where the time went", name, s->seconds, KD_SPENT_STAGES, KD_SPENT_OTHER);
    kd_stages_log("loader threads, processor time", LOADERS, loaders, LOADER_STAGES, 0);
    if (json)
        write_summary(s, name, loaders, steps);
}

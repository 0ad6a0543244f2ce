#include "precompute/timing.h"

static const char *const HOST[KD_TIMING_STAGES] = {
    [KD_TIMING_START] = "start", [KD_TIMING_WAIT] = "wait for data", [KD_TIMING_BATCH] = "batch", [KD_TIMING_TEACHER] = "teacher", [KD_TIMING_ENCODE] = "encode",
    [KD_TIMING_DEVICE] = "wait for the device", [KD_TIMING_COMPRESS] = "compress", [KD_TIMING_WRITE] = "write", [KD_TIMING_SEAL] = "seal", [KD_TIMING_OTHER] = "other"};
static const char *const QUEUED[] = {[KD_TIMING_TEACHER] = "queue teacher", [KD_TIMING_ENCODE] = "queue encode"};
enum { LOADER_STAGES = KD_VIEW_REPLAY + 1 };
static const char *const LOADERS[LOADER_STAGES] = {[KD_VIEW_DECODE] = "decode", [KD_VIEW_REPLAY] = "replay"};

static void names_of(const char *name[KD_TIMING_STAGES], int device) {
    for (int i = 0; i < KD_TIMING_STAGES; i++)
        name[i] = device && i < (int)(sizeof QUEUED / sizeof *QUEUED) && QUEUED[i] != NULL ? QUEUED[i] : HOST[i];
}

void kd_timing_tell(const kd_stages *s, const double *loaders, int device) {
    const char *name[KD_TIMING_STAGES];
    names_of(name, device);
    kd_stages_log("where the time went", name, s->seconds, KD_TIMING_STAGES, KD_TIMING_OTHER);
    kd_stages_log("loader threads, processor time", LOADERS, loaders, LOADER_STAGES, 0);
}

void kd_timing_json(json_t *line, const kd_stages *s, const double *loaders, int device) {
    const char *name[KD_TIMING_STAGES];
    names_of(name, device);
    json_object_set_new(line, "stages", kd_stages_json(name, s->seconds, KD_TIMING_STAGES));
    json_object_set_new(line, "loaders", kd_stages_json(LOADERS, loaders, LOADER_STAGES));
}

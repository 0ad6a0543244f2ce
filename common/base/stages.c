#include "common/base/stages.h"

#include <math.h>
#include <time.h>

#include "common/base/log.h"

static double clock_of(const kd_stages *s) {
    struct timespec t;
    clock_gettime(s->wall ? CLOCK_MONOTONIC : CLOCK_THREAD_CPUTIME_ID, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

void kd_stages_begin(kd_stages *s, int stage) {
    s->wall = 1;
    kd_stages_enter(s, stage);
}

int kd_stages_enter(kd_stages *s, int stage) {
    if (s == NULL)
        return 0;
    KD_ASSERT(stage >= 0 && stage < KD_STAGES);
    int before = s->now;
    double now = clock_of(s);
    if (before > 0)
        s->seconds[before] += now - s->since;
    s->now = stage;
    s->since = now;
    return before;
}

void kd_stages_move(kd_stages *s, int from, int to, double seconds) {
    double there = s->seconds[from];
    if (!(seconds > 0))
        return;
    if (seconds > there)
        seconds = there;
    s->seconds[from] = there - seconds;
    s->seconds[to] += seconds;
}

void kd_stages_add(double seconds[KD_STAGES], const kd_stages *s) {
    for (int i = 0; i < KD_STAGES; i++)
        seconds[i] += s->seconds[i];
}

/* The i-th stage in the order of printing; 0: it has none. */
static int stage_at(int i, int count, int last) {
    if (i == count)
        return last;
    return i == last ? 0 : i;
}

void kd_stages_log(const char *title, const char *const *name, const double *seconds, int count, int last) {
    double all = 0, sum = 0;
    long long said = 0; /* hundredths */
    for (int i = 1; i < count; i++)
        all += seconds[i];
    if (!(all > 0))
        return;
    kd_log(KD_LOG_INFO, "%-32s seconds   share", title);
    for (int i = 1; i <= count; i++) {
        int stage = stage_at(i, count, last);
        if (stage == 0 || !(seconds[stage] > 0))
            continue;
        sum += seconds[stage];
        long long upto = llround(100 * sum);
        kd_log(KD_LOG_INFO, "  %-28s %9.2f  %5.1f%%", name[stage], (double)(upto - said) / 100, 100 * seconds[stage] / all);
        said = upto;
    }
    kd_log(KD_LOG_INFO, "  %-28s %9.2f  100.0%%", "all", (double)said / 100);
}

json_t *kd_stages_json(const char *const *name, const double *seconds, int count) {
    json_t *v = json_object();
    for (int i = 1; i < count && v != NULL; i++)
        if (seconds[i] > 0)
            json_object_set_new(v, name[i], json_real(seconds[i]));
    return v;
}

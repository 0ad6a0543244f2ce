#include "common/base/progress.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "common/base/json.h"
#include "common/base/log.h"
#include "common/base/mem.h"

struct kd_progress {
    const char *label, *unit;
    uint64_t total, before, done;
    double start, last, wait;
    int json, terminal, printed;
    char extra[160];
};

static const double MOVING_SECONDS = 0.2, PLAIN_SECONDS = 30;

double kd_now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* A terminal that can redraw a line. NO_COLOR asks for no escape sequences. */
static int moving_terminal(void)
{
    const char *term = getenv("TERM"), *no_color = getenv("NO_COLOR");
    return isatty(STDERR_FILENO) && term && strcmp(term, "dumb") != 0 && !(no_color && no_color[0]);
}

kd_progress *kd_progress_create(const char *label, const char *unit, uint64_t total, uint64_t done_before, int json)
{
    kd_progress *p = kd_calloc(1, sizeof *p);
    if (!p)
        return NULL;
    p->label = label;
    p->unit = unit;
    p->total = total;
    p->before = p->done = done_before;
    p->json = json;
    p->terminal = moving_terminal();
    p->start = p->last = kd_now();
    return p;
}

static const char *duration_text(double seconds, char *buf, size_t cap)
{
    uint64_t s = seconds > 0 && seconds < 1e12 ? (uint64_t)(seconds + 0.5) : 0;
    if (s < 60)
        snprintf(buf, cap, "%" PRIu64 " s", s);
    else if (s < 3600)
        snprintf(buf, cap, "%" PRIu64 " min %02" PRIu64 " s", s / 60, s % 60);
    else
        snprintf(buf, cap, "%" PRIu64 " h %02" PRIu64 " min", s / 3600, s / 60 % 60);
    return buf;
}

static void print(kd_progress *p, double now)
{
    double elapsed = now - p->start, rate = elapsed > 0 ? (double)(p->done - p->before) / elapsed : 0;
    double left = p->total > p->done && rate > 0 ? (double)(p->total - p->done) / rate : 0;
    char line[480], part[64];
    size_t n = (size_t)snprintf(line, sizeof line, "%s: %" PRIu64, p->label, p->done);
    if (p->total)
        n += (size_t)snprintf(line + n, sizeof line - n, " of %" PRIu64 " %ss (%.1f%%)", p->total, p->unit, 100.0 * (double)p->done / (double)p->total);
    else
        n += (size_t)snprintf(line + n, sizeof line - n, " %ss", p->unit);
    n += (size_t)snprintf(line + n, sizeof line - n, rate < 10 ? ", %.2f %ss/s" : ", %.0f %ss/s", rate, p->unit);
    if (p->done < p->total && rate > 0)
        n += (size_t)snprintf(line + n, sizeof line - n, ", %s left", duration_text(left, part, sizeof part));
    else if (p->done >= p->total)
        n += (size_t)snprintf(line + n, sizeof line - n, ", %s", duration_text(elapsed, part, sizeof part));
    if (p->wait > 0 && elapsed > 0)
        n += (size_t)snprintf(line + n, sizeof line - n, ", data wait %.0f%%", 100 * p->wait / elapsed);
    if (p->extra[0])
        snprintf(line + n, sizeof line - n, ", %s", p->extra);
    if (kd_log_get_level() >= KD_LOG_INFO) {
        if (p->terminal)
            kd_log_moving_line(line);
        else
            kd_log(KD_LOG_INFO, "%s", line);
    }
    if (p->json) {
        json_t *v = json_pack("{s:s, s:s, s:s, s:I, s:I, s:f, s:f, s:f, s:f}", "type", "status", "label", p->label, "unit", p->unit,
                              "done", (json_int_t)p->done, "total", (json_int_t)p->total, "rate", rate, "seconds", elapsed,
                              "seconds_left", left, "data_wait", elapsed > 0 ? p->wait / elapsed : 0);
        kd_json_line(v);
        json_decref(v);
    }
    p->last = now;
    p->printed = 1;
}

void kd_progress_update(kd_progress *p, uint64_t done, double wait_seconds, const char *extra)
{
    double now;
    if (!p)
        return;
    p->done = done > p->before ? done : p->before;
    p->wait = wait_seconds;
    snprintf(p->extra, sizeof p->extra, "%s", extra ? extra : "");
    now = kd_now();
    if (now - p->last >= (p->terminal ? MOVING_SECONDS : PLAIN_SECONDS))
        print(p, now);
}

void kd_progress_finish(kd_progress *p)
{
    if (!p)
        return;
    if (p->done > p->before || p->printed)
        print(p, kd_now());
    if (p->terminal && p->printed)
        kd_log_moving_line(NULL);
    kd_free(p);
}

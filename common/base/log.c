#include "common/base/log.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "common/base/json.h"

enum { LEVEL_UNSET = -1 };
static atomic_int current_level = LEVEL_UNSET;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static FILE *log_file;         /* guarded by lock */
static char moving_line[512];  /* guarded by lock */

static int level_from_environment(void)
{
    static const char *const names[] = {"error", "warn", "info", "debug"};
    const char *text = getenv("KD_LOG");
    for (int i = 0; text && i < 4; i++)
        if (strcmp(text, names[i]) == 0)
            return i;
    return KD_LOG_INFO;
}

void kd_log_set_level(kd_log_level level)
{
    atomic_store(&current_level, (int)level);
}

kd_log_level kd_log_get_level(void)
{
    int level = atomic_load(&current_level);
    if (level == LEVEL_UNSET) {
        int unset = LEVEL_UNSET;
        level = level_from_environment();
        if (!atomic_compare_exchange_strong(&current_level, &unset, level))
            level = unset;
    }
    return (kd_log_level)level;
}

/* One write per line, so that lines of several processes on one terminal don't mix. Called with the lock held. */
static void write_stderr(const char *text)
{
    if (moving_line[0])
        fprintf(stderr, "\r\033[K%s\n%s", text, moving_line);
    else
        fprintf(stderr, "%s\n", text);
    fflush(stderr);
}

static void write_file(const char *text)
{
    struct timespec now;
    struct tm utc;
    char stamp[32];
    if (!log_file)
        return;
    clock_gettime(CLOCK_REALTIME, &now);
    gmtime_r(&now.tv_sec, &utc);
    strftime(stamp, sizeof stamp, "%Y-%m-%dT%H:%M:%SZ", &utc);
    fprintf(log_file, "%s %s\n", stamp, text);
    fflush(log_file);
}

void kd_log(kd_log_level level, const char *fmt, ...)
{
    static const char *const prefixes[] = {"error: ", "warning: ", "", "debug: "};
    char raw[2048], line[2048 + 16];
    size_t n;
    va_list args;
    if (level > kd_log_get_level())
        return;
    va_start(args, fmt);
    vsnprintf(raw, sizeof raw, fmt, args);
    va_end(args);
    n = (size_t)snprintf(line, sizeof line, "%s", prefixes[level]);
    kd_text_escape(line + n, sizeof line - n, raw);
    pthread_mutex_lock(&lock);
    write_stderr(line);
    write_file(line);
    pthread_mutex_unlock(&lock);
}

kd_status kd_log_open_file(const char *path, kd_err *err)
{
    FILE *opened = NULL;
    if (path) {
        int fd = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC | O_NONBLOCK, 0666);
        if (fd < 0 || !(opened = fdopen(fd, "a"))) {
            kd_status status = kd_fail_errno(err, KD_EFAIL, "%s: can't open the log file", path);
            if (fd >= 0)
                close(fd);
            return status;
        }
    }
    pthread_mutex_lock(&lock);
    if (log_file)
        fclose(log_file);
    log_file = opened;
    pthread_mutex_unlock(&lock);
    return KD_OK;
}

void kd_log_moving_line(const char *text)
{
    pthread_mutex_lock(&lock);
    if (text) {
        kd_text_escape(moving_line, sizeof moving_line, text);
        fprintf(stderr, "\r\033[K%s", moving_line);
    } else if (moving_line[0]) {
        moving_line[0] = '\0';
        fprintf(stderr, "\n");
    }
    fflush(stderr);
    pthread_mutex_unlock(&lock);
}

void kd_log_error(const char *program, const kd_err *err, int json)
{
    char line[sizeof err->msg + 512];
    snprintf(line, sizeof line, "%s: error: %s", program, err->msg);
    pthread_mutex_lock(&lock);
    write_stderr(line);
    write_file(line);
    pthread_mutex_unlock(&lock);
    if (err->file)
        kd_log(KD_LOG_DEBUG, "detected at %s:%d", err->file, err->line);
    if (json) {
        json_t *v = json_pack("{s:s, s:i, s:s, s:s}", "type", "error", "code", kd_exit_code(err->status), "name",
                              kd_status_name(err->status), "message", err->msg);
        kd_json_line(v);
        json_decref(v);
    }
}

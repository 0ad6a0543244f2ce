/* Log: messages for people, on stderr (and, once opened, in a run's train.log).
 *
 *     kd_log(KD_LOG_INFO, "cache %s: %zu views", path, n);
 *
 * Data goes to stdout, never through here. The level comes from -v/-q or KD_LOG=error|warn|info|debug.
 * Thread rule: every function may be called from any thread; a line is written whole. */
#ifndef KD_COMMON_BASE_LOG_H
#define KD_COMMON_BASE_LOG_H

#include "common/base/err.h"

typedef enum kd_log_level { KD_LOG_ERROR = 0, KD_LOG_WARN = 1, KD_LOG_INFO = 2, KD_LOG_DEBUG = 3 } kd_log_level;

void kd_log_set_level(kd_log_level level);
kd_log_level kd_log_get_level(void);
void kd_log(kd_log_level level, const char *fmt, ...) KD_PRINTF(2, 3);

/* Copies every later line (with a UTC time stamp) to `path`, appending. NULL closes it. */
kd_status kd_log_open_file(const char *path, kd_err *err);

/* The moving line of a terminal (progress.c): log lines are printed above it and it is drawn again. NULL: none. `text` is copied. */
void kd_log_moving_line(const char *text);

/* Prints "PROGRAM: error: sentence" on stderr, and with json a {"type":"error","code":N,"message":...} line on stdout. */
void kd_log_error(const char *program, const kd_err *err, int json);

#endif

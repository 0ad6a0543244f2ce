#include "precompute/devices.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/base/log.h"
#include "common/base/threads.h"
#include "kernels/backend.h"
#include "precompute/output.h"

enum { MAX_DEVICES = 64, LINE = 2048, POLL_MS = 100 };

typedef struct worker {
    pid_t pid;      /* 0: has ended */
    int messages;   /* its stderr; -1: closed */
    char line[LINE];
    size_t length;  /* of what has come of the line */
    int code;       /* exit code, or 128 + signal */
} worker;

int kd_devices_all(const kd_precompute_config *config) {
    return strcmp(config->device, "cuda:all") == 0;
}

/* ---- starting ---- */

static kd_status check(const kd_precompute_config *config, kd_part *part, kd_err *err) {
    kd_output o = {0};
    kd_status status = kd_output_choose(&o, config, err);
    *part = o.part;
    if (status == KD_OK && !o.folder)
        status = kd_fail(err, KD_EUSAGE, "--device cuda:all writes a shard per device, and --cache %s is one file; give a folder, such as --cache cache/", config->cache);
    if (status == KD_OK && strcmp(config->images, "-") == 0)
        status = kd_fail(err, KD_EUSAGE, "--device cuda:all: each device's process reads the list of images, so it can't come from stdin; write it to a file and give --images FILE");
    kd_output_close(&o);
    return status;
}

/* The command line with other values for device, part and threads, in front of a "--" if there is one: of an option given twice the last one counts. */
static kd_status spawn(worker *w, char **argv, const char *const more[6], kd_err *err) {
    int n = 0, at = 0, pipe_ends[2];
    while (argv[n] != NULL)
        n++;
    char **words = NULL;
    KD_TRY(kd_alloc_array(&words, (size_t)n + 7, sizeof *words, err));
    while (at < n && strcmp(argv[at], "--") != 0) {
        words[at] = argv[at];
        at++;
    }
    for (int i = 0; i < 6; i++)
        words[at + i] = (char *)(uintptr_t)more[i];
    for (int i = at; i < n; i++)
        words[i + 6] = argv[i];
    if (pipe(pipe_ends) != 0) {
        kd_free(words);
        return kd_fail_errno(err, KD_EFAIL, "a pipe for the messages of a device's process");
    }
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_adddup2(&actions, pipe_ends[1], STDERR_FILENO);
    posix_spawn_file_actions_addclose(&actions, pipe_ends[0]);
    posix_spawn_file_actions_addclose(&actions, pipe_ends[1]);
    int problem = posix_spawn(&w->pid, "/proc/self/exe", &actions, NULL, words, environ);
    posix_spawn_file_actions_destroy(&actions);
    kd_free(words);
    close(pipe_ends[1]);
    if (problem != 0) {
        close(pipe_ends[0]);
        w->pid = 0;
        return kd_fail(err, KD_EFAIL, "the process for a device can't be started: %s", strerror(problem));
    }
    w->messages = pipe_ends[0];
    return KD_OK;
}

static kd_status start(worker *w, int i, int count, const kd_part *part, const kd_precompute_config *config, kd_err *err) {
    char device[24], shard[32], threads[16];
    int processors = config->threads > 0 ? (int)config->threads : kd_cpu_count(), share = processors / count > 0 ? processors / count : 1;
    snprintf(device, sizeof device, "cuda:%d", i);
    snprintf(shard, sizeof shard, "%u/%u", (part->part - 1) * (unsigned)count + (unsigned)i + 1, part->parts * (unsigned)count);
    snprintf(threads, sizeof threads, "%d", share);
    kd_log(KD_LOG_INFO, "%s takes part %s of the images with %s thread%s", device, shard, threads, share == 1 ? "" : "s");
    return spawn(w, config->argv, (const char *const[]){"--device", device, "--shard", shard, "--threads", threads}, err);
}

/* ---- listening ---- */

static void say(int device, const worker *w) {
    if (w->length > 0)
        fprintf(stderr, "cuda:%d  %.*s\n", device, (int)w->length, w->line);
}

static void take_messages(int device, worker *w) {
    char bytes[4096];
    ssize_t n = read(w->messages, bytes, sizeof bytes);
    if (n < 0 && errno == EINTR)
        return;
    for (ssize_t i = 0; i < n; i++) {
        if (bytes[i] == '\n' || w->length == LINE) {
            say(device, w);
            w->length = 0;
        }
        if (bytes[i] != '\n')
            w->line[w->length++] = bytes[i];
    }
    if (n <= 0) {
        say(device, w);
        close(w->messages);
        w->messages = -1;
    }
}

static void end(worker *w) {
    int status;
    while (waitpid(w->pid, &status, 0) < 0 && errno == EINTR)
        ;
    w->code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
    w->pid = 0;
}

static void stop_all(worker *w, int count) {
    for (int i = 0; i < count; i++)
        if (w[i].pid > 0)
            kill(w[i].pid, SIGTERM);
}

/* Until all have ended. A signal to this process goes to all of them, once. */
static void wait_for_all(worker *w, int count) {
    int stopped = 0;
    for (;;) {
        struct pollfd fd[MAX_DEVICES];
        int index[MAX_DEVICES], open = 0;
        for (int i = 0; i < count; i++)
            if (w[i].messages >= 0) {
                fd[open] = (struct pollfd){.fd = w[i].messages, .events = POLLIN};
                index[open++] = i;
            }
        if (open == 0)
            break;
        int ready = poll(fd, (nfds_t)open, POLL_MS);
        for (int k = 0; ready > 0 && k < open; k++)
            if (fd[k].revents != 0)
                take_messages(index[k], &w[index[k]]);
        if (!stopped && kd_stop_requested() != KD_OK) {
            stop_all(w, count);
            stopped = 1;
        }
    }
    for (int i = 0; i < count; i++)
        if (w[i].pid > 0)
            end(&w[i]);
}

/* The statuses together: the first failure, else whether something was skipped. */
static kd_status verdict(const worker *w, int count, kd_err *err) {
    kd_status stop = kd_stop_requested();
    if (stop != KD_OK)
        return kd_fail(err, stop, "stopped; run the same command again to go on");
    for (int i = 0; i < count; i++)
        if (w[i].code != 0 && w[i].code != -KD_ESKIPPED)
            return kd_fail(err, w[i].code > 128 ? KD_EFAIL : (kd_status)-w[i].code, "cuda:%d ended with status %d, see its message above; run the same command again to go on", i, w[i].code);
    for (int i = 0; i < count; i++)
        if (w[i].code != 0)
            return kd_fail(err, KD_ESKIPPED, "inputs were skipped beyond --max-skipped; the lists stand beside the shards of the parts");
    return KD_OK;
}

kd_status kd_devices_run(const kd_precompute_config *config, kd_err *err) {
    int count = 0;
    kd_part part;
    worker *w = NULL;
    KD_TRY(check(config, &part, err));
    KD_TRY(kd_backend_devices(&count, "cuda", err));
    if (count > MAX_DEVICES)
        count = MAX_DEVICES;
    KD_TRY(kd_alloc_array(&w, (size_t)count, sizeof *w, err));
    kd_signals_catch();
    kd_status status = KD_OK;
    for (int i = 0; i < count; i++)
        w[i].messages = -1;
    for (int i = 0; i < count && status == KD_OK; i++)
        status = start(&w[i], i, count, &part, config, err);
    if (status != KD_OK)
        stop_all(w, count);
    wait_for_all(w, count);
    if (status == KD_OK)
        status = verdict(w, count, err);
    kd_free(w);
    return status;
}

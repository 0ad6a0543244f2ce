/* kd_io_guard: a page of a mapped file that can't be read becomes an error instead of ending the process. */
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdint.h>

#include "common/base/io.h"

typedef struct guard {
    struct guard *outer;
    uintptr_t base, size;
    volatile uintptr_t fault;
    sigjmp_buf jump;
} guard;

static _Thread_local guard *volatile innermost;
static struct sigaction previous;
static int install_error;

/* SIGBUS from a load is delivered to the thread that made it, in the middle of that load: jumping out is well defined,
 * because no library function is being executed that this file's user could depend on later (see the header). */
static void on_sigbus(int signal_number, siginfo_t *info, void *context)
{
    uintptr_t address = (uintptr_t)info->si_addr;
    for (guard *g = innermost; g; g = g->outer) {
        if (address >= g->base && address - g->base < g->size) {
            g->fault = address - g->base;
            siglongjmp(g->jump, 1);
        }
    }
    if (previous.sa_flags & SA_SIGINFO) {
        previous.sa_sigaction(signal_number, info, context);
    } else if (previous.sa_handler != SIG_DFL && previous.sa_handler != SIG_IGN) {
        previous.sa_handler(signal_number);
    } else {
        signal(signal_number, SIG_DFL); /* the load is repeated on return and ends the process */
    }
}

static void install(void)
{
    struct sigaction action = {0};
    action.sa_sigaction = on_sigbus;
    action.sa_flags = SA_SIGINFO | SA_NODEFER;
    sigemptyset(&action.sa_mask);
    install_error = sigaction(SIGBUS, &action, &previous);
}

kd_status kd_io_guard(const void *base, size_t size, const char *what, kd_status (*fn)(void *arg, kd_err *err), void *arg, kd_err *err)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    guard g;
    kd_status status;
    pthread_once(&once, install);
    if (install_error)
        return kd_fail(err, KD_EFAIL, "%s: the SIGBUS handler can't be installed", what);
    g.outer = innermost;
    g.base = (uintptr_t)base;
    g.size = size;
    g.fault = 0;
    if (sigsetjmp(g.jump, 1) == 0) { /* with the signal mask: a handler may run with more signals blocked (thread sanitizer) */
        innermost = &g;
        status = fn(arg, err);
    } else {
        status = kd_fail(err, KD_EDAMAGED,
                         "%s: can't be read at byte %zu: the file is shorter than it was when it was opened, or its disk or network "
                         "mount reports an input error; check the mount and compare the file with its manifest",
                         what, (size_t)g.fault);
    }
    innermost = g.outer;
    return status;
}

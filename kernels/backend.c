#include "kernels/backend.h"

#include <dlfcn.h>
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/base/io.h"
#include "common/base/log.h"
#include "common/base/threads.h"

/* What the text after --device means. */
typedef struct device_name {
    const char *module; /* "auto", "ref", "cpu", "cuda" */
    int ordinal;
} device_name;

static kd_status parse_device(device_name *out, const char *text, kd_err *err) {
    static const char *const known[] = {"auto", "ref", "cpu", "cuda"};
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (strcmp(text, known[i]) == 0) {
            *out = (device_name){known[i], 0};
            return KD_OK;
        }
    if (strncmp(text, "cuda:", 5) == 0 && text[5] >= '0' && text[5] <= '9') {
        char *end;
        errno = 0;
        long n = strtol(text + 5, &end, 10);
        if (errno == 0 && *end == '\0' && n <= 1023) {
            *out = (device_name){"cuda", (int)n};
            return KD_OK;
        }
    }
    if (strcmp(text, "cuda:all") == 0)
        return kd_fail(err, KD_EUSAGE, "--device cuda:all is for kd-precompute, which gives each device a part of the images; use cuda:N here");
    return kd_fail(err, KD_EUSAGE, "unknown device '%s'; use auto, cpu, cuda, cuda:N or ref", text);
}

/* The driver's own marks, so that a machine with a GPU is recognised without any NVIDIA library. */
static int nvidia_device_present(void) {
    return kd_io_exists("/dev/nvidia0") || kd_io_exists("/proc/driver/nvidia/version");
}

/* "<folder of the executable>/../lib", or 0 when the executable can't be found. */
static int lib_beside_executable(char *buf, size_t cap) {
    char exe[PATH_MAX];
    ssize_t n = readlink("/proc/self/exe", exe, sizeof exe - 1);
    if (n <= 0)
        return 0;
    exe[n] = '\0';
    char *slash = strrchr(exe, '/');
    if (!slash)
        return 0;
    *slash = '\0';
    return snprintf(buf, cap, "%s/../lib", exe) < (int)cap;
}

/* Path of lib/libkd_<module>.so. KD_ENODEVICE naming the places when there is none. */
static kd_status find_module(char *path, size_t cap, const char *module, kd_err *err) {
    char beside[PATH_MAX + 8] = "";
    const char *dir[2] = {getenv("KD_LIB_DIR"), lib_beside_executable(beside, sizeof beside) ? beside : NULL};
    for (int i = 0; i < 2; i++) {
        if (!dir[i] || !*dir[i])
            continue;
        int n = snprintf(path, cap, "%s/libkd_%s.so", dir[i], module);
        if (n > 0 && (size_t)n < cap && kd_io_exists(path))
            return KD_OK;
    }
    return kd_fail(err, KD_ENODEVICE, "device %s: module libkd_%s.so is neither in KD_LIB_DIR (%s) nor in %s; run 'make', whose report says what is missing, or choose another --device",
                   module, module, dir[0] && *dir[0] ? dir[0] : "not set", dir[1] ? dir[1] : "../lib");
}

static kd_status load_module(const kd_backend_table **out, const char *module, kd_err *err) {
    if (strcmp(module, "ref") == 0) {
        *out = kd_backend_ref_table();
        return KD_OK;
    }
    char path[2 * PATH_MAX];
    KD_TRY(find_module(path, sizeof path, module, err));
    /* Idle OpenMP threads would spin for milliseconds and take the processor from decoding threads (a factor of 2 on a shared machine); libgomp reads this when it is loaded. */
    setenv("GOMP_SPINCOUNT", "1000", 0);
    /* Never unloaded: the libraries underneath (OpenMP, CUDA) keep threads that outlive a backend. */
    void *handle = dlopen(path, RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE);
    if (!handle)
        return kd_fail(err, KD_ENODEVICE, "device %s: %s can't be loaded: %s", module, path, dlerror());
    kd_backend_entry entry;
    void *symbol = dlsym(handle, KD_BACKEND_ENTRY_NAME);
    if (!symbol)
        return kd_fail(err, KD_ENODEVICE, "device %s: %s has no symbol %s; it isn't a module of this program", module, path, KD_BACKEND_ENTRY_NAME);
    memcpy(&entry, &symbol, sizeof entry); /* ISO C has no cast from void * to a function pointer */
    const kd_backend_table *table = entry();
    if (table->abi != KD_BACKEND_ABI)
        return kd_fail(err, KD_ENODEVICE, "device %s: %s has interface version %d, this program needs %d; rebuild both with 'make clean all'", module, path, table->abi,
                       KD_BACKEND_ABI);
    *out = table;
    return KD_OK;
}

static kd_status open_module(kd_backend **out, const device_name *device, int threads, kd_err *err) {
    const kd_backend_table *table = NULL;
    KD_TRY(load_module(&table, device->module, err));
    KD_TRY(table->open(out, threads, device->ordinal, err));
    KD_ASSERT((*out)->v == table);
    return KD_OK;
}

/* cuda, else cpu. A failure other than "not there" is passed on: a broken device must not turn into a slow run. */
static kd_status open_auto(kd_backend **out, int threads, kd_err *err) {
    kd_err why = {0};
    kd_status status = open_module(out, &(device_name){"cuda", 0}, threads, &why);
    if (status != KD_OK && status != KD_ENODEVICE) {
        if (err)
            *err = why;
        return status;
    }
    if (status == KD_ENODEVICE) {
        if (nvidia_device_present())
            kd_log(KD_LOG_WARN, "an NVIDIA device is present but isn't used: %s", why.msg);
        KD_TRY(open_module(out, &(device_name){"cpu", 0}, threads, err));
    }
    kd_log(KD_LOG_INFO, "device auto: %s (%s)", (*out)->v->name, (*out)->v->describe(*out));
    return KD_OK;
}

kd_status kd_backend_open(kd_backend **out, const char *device, int threads, kd_err *err) {
    device_name name = {0};
    KD_TRY(parse_device(&name, device, err));
    if (threads < 0)
        return kd_fail(err, KD_EUSAGE, "%d threads: the number of threads can't be negative; 0 means all processors", threads);
    if (threads == 0)
        threads = kd_cpu_count();
    *out = NULL;
    if (strcmp(name.module, "auto") == 0)
        return open_auto(out, threads, err);
    return open_module(out, &name, threads, err);
}

kd_status kd_backend_devices(int *count, const char *module, kd_err *err) {
    const kd_backend_table *table = NULL;
    KD_TRY(load_module(&table, module, err));
    *count = 1;
    return table->devices != NULL ? table->devices(count, err) : KD_OK;
}

void kd_backend_close(kd_backend *b) {
    if (b)
        b->v->close(b);
}

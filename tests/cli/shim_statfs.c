/* Loaded with LD_PRELOAD: statfs says that what lies under KD_SHIM_NETWORK is on NFS. For tests of what programs do on network file systems, on machines that have none. */
#include <dlfcn.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/vfs.h>

int statfs(const char *path, struct statfs *fs)
{
    int (*real)(const char *, struct statfs *);
    const char *network = getenv("KD_SHIM_NETWORK");
    char full[PATH_MAX];
    int status;
    *(void **)&real = dlsym(RTLD_NEXT, "statfs");
    status = real(path, fs);
    if (status == 0 && network && realpath(path, full) && strncmp(full, network, strlen(network)) == 0)
        fs->f_type = 0x6969;
    return status;
}

/* Which file systems are shared by several machines: kd_io_network_fs of io.h. */
#include <errno.h>
#include <string.h>
#include <sys/vfs.h>

#include "common/base/io.h"
#include "common/base/mem.h"

/* f_type of statfs(2). Source "k": linux/magic.h of Linux 6.1; "c": what coreutils' stat.c calls remote (those that live outside the kernel's tree).
 * FUSE is here for sshfs, s3fs, gcsfuse, GlusterFS, JuiceFS and the like; the few local file systems on it (NTFS-3G, rootless containers) need --force. */
static const struct {
    uint32_t type;
    const char *name;
} table[] = {
    {0x6969, "NFS"},          /* k */
    {0x517B, "SMB"},          /* k */
    {0xFE534D42, "SMB"},      /* k, SMB2 */
    {0xFF534D42, "CIFS"},     /* k */
    {0x0BD00BD0, "Lustre"},   /* c */
    {0x47504653, "GPFS"},     /* c: IBM Storage Scale */
    {0x19830326, "BeeGFS"},   /* c, where it has its old name FhGFS */
    {0x00C36400, "Ceph"},     /* k */
    {0x65735546, "FUSE"},     /* k */
    {0x01021997, "9p"},       /* k */
    {0x5346414F, "AFS"},      /* k */
    {0x6B414653, "AFS"},      /* k, the kernel's own client */
    {0x73757245, "Coda"},     /* k */
    {0x7461636F, "OCFS2"},    /* k */
    {0x01161970, "GFS2"},     /* c */
    {0xAAD7AAEA, "PanFS"},    /* c */
    {0xBEEFDEAD, "StorNext"}, /* c */
    {0x013111A8, "IBRIX"},    /* c */
    {0xBACBACBC, "vmhgfs"},   /* c: a VMware host's folder */
    {0x786F4256, "vboxsf"},   /* c: a VirtualBox host's folder */
};

/* statfs of path, or of the nearest parent that exists. */
static int examine(const char *path, struct statfs *fs)
{
    char *p = kd_strdup(path[0] ? path : ".");
    int found = 0;
    while (p && !(found = statfs(p, fs) == 0) && (errno == ENOENT || errno == ENOTDIR)) {
        char *slash = strrchr(p, '/');
        if (strcmp(p, "/") == 0 || strcmp(p, ".") == 0)
            break;
        if (!slash)
            strcpy(p, ".");
        else
            slash[slash == p] = 0;
    }
    kd_free(p);
    return found;
}

int kd_io_network_fs(const char *path, const char **name)
{
    struct statfs fs;
    if (name)
        *name = NULL;
    if (!examine(path, &fs))
        return 0;
    for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
        if ((uint32_t)fs.f_type != table[i].type) /* a signed field of 32 or 64 bits */
            continue;
        if (name)
            *name = table[i].name;
        return 1;
    }
    return 0;
}

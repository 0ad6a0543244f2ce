/* Tar: the directory of a plain tar archive, so that its members can be read in place. tar.c is the one home of libarchive.
 *
 * Names are only names: nothing is ever unpacked, so "../x" or "/etc/x" harms nobody. Every size and offset is checked against the archive's real length.
 *
 *     kd_status visit(void *ctx, const kd_tar_member *m, kd_err *err);
 *     kd_tar_info info;
 *     status = kd_tar_walk("shard-000.tar", visit, ctx, &info, err);
 *
 * Thread rule: no shared state. */
#ifndef KD_COMMON_DATA_TAR_H
#define KD_COMMON_DATA_TAR_H

#include <stdint.h>

#include "common/base/err.h"

typedef enum kd_tar_kind {
    KD_TAR_FILE,      /* its bytes are [offset, offset + size) of the archive */
    KD_TAR_TRUNCATED, /* a file whose bytes go beyond the archive's end */
    KD_TAR_SPARSE,    /* a file stored with holes: its bytes aren't in one piece */
    KD_TAR_OTHER      /* folder, link, device, FIFO */
} kd_tar_kind;

typedef struct kd_tar_member {
    const char *name; /* bytes as in the archive, without a NUL; borrowed during the visit */
    kd_tar_kind kind;
    uint64_t size, offset;
} kd_tar_member;

typedef struct kd_tar_info {
    uint64_t size;    /* of the archive */
    int64_t mtime_ns;
    uint64_t members; /* visited */
    int ended;        /* the end mark was there; without it the archive may have been cut off between two members */
} kd_tar_info;

/* A status other than KD_OK ends the walk and is its result. */
typedef kd_status (*kd_tar_visit)(void *ctx, const kd_tar_member *m, kd_err *err);

/* Visits the members in the archive's order: ustar, GNU, pax and old tars, concatenated ones too. info is filled as far as the walk came. KD_EFAIL: can't be opened, not a regular file, compressed
 * or no tar at all (info->members is 0), or damaged from some byte on (what was visited before is sound). */
kd_status kd_tar_walk(const char *path, kd_tar_visit visit, void *ctx, kd_tar_info *info, kd_err *err);

/* Whether the first bytes of a file are those of a tar: its mark "ustar" is at its place. Old tars have none; their suffix tells. */
int kd_tar_sniff(const uint8_t *bytes, size_t size);

#endif

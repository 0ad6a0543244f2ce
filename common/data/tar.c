#include "common/data/tar.h"

#include <archive.h>
#include <archive_entry.h>
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* What libarchive reads at once. Members are jumped over, so larger blocks only read bytes of pictures that aren't wanted yet. */
enum { BLOCK = 4096, RECORD = 512 };

static const char *reason(struct archive *a)
{
    const char *text = archive_error_string(a);
    return text ? text : "no reason given";
}

/* Does the archive go on for one more record after the member that ends at `end`? A tar that was closed properly ends in two records of zeros. */
static int has_end_mark(uint64_t end, uint64_t size)
{
    return (end + RECORD - 1) / RECORD * RECORD + RECORD <= size;
}

/* Where the entry's bytes begin. libarchive has consumed the header only when the first block of data is asked for; for a file in one piece that block is at the current position. */
static int data_offset(struct archive *a, uint64_t *offset)
{
    const void *block;
    size_t n;
    la_int64_t at, position;
    int status = archive_read_data_block(a, &block, &n, &at);
    position = archive_filter_bytes(a, 0);
    *offset = (uint64_t)position;
    return (status == ARCHIVE_OK || status == ARCHIVE_WARN) && at == 0 && position >= RECORD;
}

static kd_tar_member describe(struct archive *a, struct archive_entry *e, uint64_t archive_size)
{
    kd_tar_member m = {.name = archive_entry_pathname(e), .kind = KD_TAR_OTHER};
    if (!m.name)
        m.name = "";
    if (archive_entry_filetype(e) != AE_IFREG || archive_entry_hardlink(e))
        return m;
    m.size = archive_entry_size(e) > 0 ? (uint64_t)archive_entry_size(e) : 0;
    m.kind = KD_TAR_FILE;
    if (archive_entry_sparse_count(e) > 0)
        m.kind = KD_TAR_SPARSE;
    else if (m.size > archive_size || (m.size > 0 && (!data_offset(a, &m.offset) || m.offset > archive_size - m.size)))
        m.kind = KD_TAR_TRUNCATED;
    return m;
}

static kd_status walk_members(struct archive *a, const char *path, kd_tar_visit visit, void *ctx, kd_tar_info *info, kd_err *err)
{
    uint64_t end = 0;
    for (;;) {
        struct archive_entry *e;
        kd_tar_member m;
        int status = archive_read_next_header(a, &e);
        if (status == ARCHIVE_EOF) {
            info->ended = has_end_mark(end, info->size);
            return KD_OK;
        }
        /* A warning is about a name's alphabet or an unknown attribute; the member's bytes are sound. */
        if (status != ARCHIVE_OK && status != ARCHIVE_WARN)
            return kd_fail(err, KD_EFAIL, "%s: damaged or cut off after %llu members, at byte %llu of %llu (%s)", path, (unsigned long long)info->members,
                           (unsigned long long)archive_filter_bytes(a, 0), (unsigned long long)info->size, reason(a));
        m = describe(a, e, info->size);
        if (m.kind == KD_TAR_FILE)
            end = m.offset + m.size > end ? m.offset + m.size : end;
        info->members++;
        KD_TRY(visit(ctx, &m, err));
        if (m.kind == KD_TAR_TRUNCATED)
            return kd_fail(err, KD_EFAIL, "%s: cut off: it ends at byte %llu, inside %s", path, (unsigned long long)info->size, m.name);
    }
}

static kd_status walk_archive(struct archive *a, int fd, const char *path, kd_tar_visit visit, void *ctx, kd_tar_info *info, kd_err *err)
{
    if (archive_read_support_format_tar(a) != ARCHIVE_OK || archive_read_set_format_option(a, "tar", "read_concatenated_archives", "1") != ARCHIVE_OK)
        return kd_fail(err, KD_EFAIL, "%s: this libarchive reads no tars (%s)", path, reason(a));
    if (archive_read_open_fd(a, fd, BLOCK) != ARCHIVE_OK)
        return kd_fail(err, KD_EFAIL, "%s: can't be read as a tar (%s)", path, reason(a));
    return walk_members(a, path, visit, ctx, info, err);
}

/* The kinds of compression whose first bytes are known by heart. NULL: none of them. */
static const char *compression(const uint8_t *b, size_t n)
{
    static const struct {
        const char *bytes;
        size_t size;
        const char *tool;
    } known[] = {{"\x1F\x8B", 2, "gunzip"}, {"BZh", 3, "bunzip2"}, {"\xFD" "7zXZ", 5, "unxz"}, {"\x28\xB5\x2F\xFD", 4, "unzstd"}, {"\x04\x22\x4D\x18", 4, "unlz4"}};
    for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
        if (n >= known[i].size && memcmp(b, known[i].bytes, known[i].size) == 0)
            return known[i].tool;
    }
    return NULL;
}

static kd_status refuse_compressed(int fd, const char *path, kd_err *err)
{
    uint8_t head[RECORD];
    ssize_t n = pread(fd, head, sizeof head, 0);
    const char *tool = n > 0 ? compression(head, (size_t)n) : NULL;
    if (n < 0)
        return kd_fail_errno(err, KD_EFAIL, "%s: can't be read", path);
    if (n == 0)
        return kd_fail(err, KD_EFAIL, "%s: empty (0 bytes), not a tar", path);
    if (tool)
        return kd_fail(err, KD_EFAIL, "%s: compressed; images are read in place, which needs a plain tar: %s it first (JPEGs hardly shrink)", path, tool);
    return KD_OK;
}

kd_status kd_tar_walk(const char *path, kd_tar_visit visit, void *ctx, kd_tar_info *info, kd_err *err)
{
    struct stat st;
    struct archive *a;
    kd_status status;
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    *info = (kd_tar_info){0};
    if (fd < 0)
        return kd_fail_errno(err, KD_EFAIL, "%s: can't be opened", path);
    if (fstat(fd, &st) != 0 || !S_ISREG(st.st_mode)) {
        close(fd);
        return kd_fail(err, KD_EFAIL, "%s: not a regular file", path);
    }
    info->size = (uint64_t)st.st_size;
    info->mtime_ns = (int64_t)st.st_mtim.tv_sec * 1000000000 + st.st_mtim.tv_nsec;
    status = refuse_compressed(fd, path, err);
    if (status == KD_OK) {
        a = archive_read_new();
        status = a ? walk_archive(a, fd, path, visit, ctx, info, err) : kd_fail(err, KD_EFAIL, "out of memory while reading %s", path);
        archive_read_free(a);
    }
    close(fd);
    return status;
}

int kd_tar_sniff(const uint8_t *bytes, size_t size)
{
    return size >= RECORD && memcmp(bytes + 257, "ustar", 5) == 0;
}

/* Listing a dataset: see dataset.h. Nothing is opened but directories and the list itself; what isn't a regular file is never touched. */
#include "common/data/dataset.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/base/io.h"
#include "common/base/log.h"
#include "common/base/mem.h"

enum { MAX_LIST_BYTES = 1 << 30, MAX_DEPTH = 100 };

typedef struct lister {
    kd_dataset *d;
    size_t capacity;
    kd_err *err;
} lister;

static kd_status no_memory(kd_err *err) { return kd_fail(err, KD_EFAIL, "out of memory while listing the images"); }

/* rel is in the arena already. st may be NULL: size and time unknown. */
static kd_status add(lister *l, const char *rel, const struct stat *st) {
    kd_dataset *d = l->d;
    if (d->count == l->capacity) {
        size_t capacity = l->capacity ? 2 * l->capacity : 1024, bytes;
        kd_data_file *grown = kd_mul_size(capacity, sizeof *grown, &bytes) ? kd_realloc(d->file, bytes) : NULL;
        if (!grown)
            return no_memory(l->err);
        d->file = grown;
        l->capacity = capacity;
    }
    kd_data_file *f = &d->file[d->count++];
    *f = (kd_data_file){.rel = rel};
    if (st) {
        f->size = (uint64_t)st->st_size;
        f->mtime_ns = (int64_t)st->st_mtim.tv_sec * 1000000000 + st->st_mtim.tv_nsec;
    }
    return KD_OK;
}

static int has_image_suffix(const char *name) {
    static const char *const suffix[] = {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp"};
    const char *dot = strrchr(name, '.');
    for (size_t i = 0; dot && i < sizeof suffix / sizeof *suffix; i++)
        if (strcasecmp(dot, suffix[i]) == 0)
            return 1;
    return 0;
}

static kd_status walk(lister *l, int fd, const char *prefix, int depth);

/* One entry of a directory. A file that vanishes while we look is as if it had never been there. */
static kd_status visit(lister *l, int dir, const char *prefix, const char *name, int depth) {
    struct stat st;
    if (fstatat(dir, name, &st, AT_SYMLINK_NOFOLLOW) != 0)
        return KD_OK;
    int link = S_ISLNK(st.st_mode);
    if (link && fstatat(dir, name, &st, 0) != 0) {
        l->d->ignored++; /* a dangling link */
        return KD_OK;
    }
    if (S_ISDIR(st.st_mode)) {
        if (link)
            return KD_OK;
        char *deeper = kd_arena_printf(l->d->arena, "%s%s/", prefix, name);
        if (!deeper)
            return no_memory(l->err);
        int fd = openat(dir, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
        if (fd < 0) {
            kd_log(KD_LOG_WARN, "folder %s can't be opened (%s); what is in it is left out", deeper, strerror(errno));
            l->d->ignored++;
            return KD_OK;
        }
        return walk(l, fd, deeper, depth + 1);
    }
    if (!S_ISREG(st.st_mode) || !has_image_suffix(name)) {
        l->d->ignored++;
        return KD_OK;
    }
    char *rel = kd_arena_printf(l->d->arena, "%s%s", prefix, name);
    return rel ? add(l, rel, &st) : no_memory(l->err);
}

/* Owns fd. prefix is "" or ends with '/'. */
static kd_status walk(lister *l, int fd, const char *prefix, int depth) {
    if (depth > MAX_DEPTH) {
        close(fd);
        return kd_fail(l->err, KD_EUSAGE, "%s/%s: folders are nested deeper than %d; give a list file instead", l->d->root, prefix, MAX_DEPTH);
    }
    DIR *dir = fdopendir(fd);
    if (!dir) {
        kd_status status = kd_fail_errno(l->err, KD_EUSAGE, "%s/%s", l->d->root, prefix);
        close(fd);
        return status;
    }
    kd_status status = KD_OK;
    const struct dirent *e;
    while (status == KD_OK) {
        errno = 0;
        e = readdir(dir);
        if (!e) {
            if (errno)
                status = kd_fail_errno(l->err, KD_EUSAGE, "reading the folder %s/%s failed", l->d->root, prefix);
            break;
        }
        if (strcmp(e->d_name, ".") != 0 && strcmp(e->d_name, "..") != 0)
            status = visit(l, fd, prefix, e->d_name, depth);
    }
    closedir(dir);
    return status;
}

static kd_status open_folder(lister *l, const char *source) {
    kd_dataset *d = l->d;
    size_t n = strlen(source);
    while (n > 1 && source[n - 1] == '/')
        n--;
    d->root = kd_asprintf("%.*s", (int)n, source);
    if (!d->root)
        return no_memory(l->err);
    int fd = open(source, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0)
        return kd_fail_errno(l->err, KD_EUSAGE, "the image folder %s can't be opened", source);
    return walk(l, fd, "", 0);
}

/* ---- lists ---- */

static kd_status parse_list(lister *l, const char *text, size_t size, const char *source) {
    kd_dataset *d = l->d;
    const char *nul = memchr(text, 0, size);
    if (nul)
        return kd_fail(l->err, KD_EUSAGE, "%s isn't a list of paths: it has a zero byte at offset %zu (a list is text, one path per line)", source, (size_t)(nul - text));
    for (size_t at = 0; at < size;) {
        const char *line = text + at, *end = memchr(line, '\n', size - at);
        size_t n = end ? (size_t)(end - line) : size - at;
        at += n + 1;
        if (n == 0)
            continue;
        char *rel = kd_arena_alloc(d->arena, n + 1);
        if (!rel)
            return no_memory(l->err);
        memcpy(rel, line, n); /* the arena's bytes are zero: NUL terminated */
        struct stat st;
        char *path = rel[0] == '/' || !d->root[0] ? kd_strdup(rel) : kd_asprintf("%s/%s", d->root, rel);
        if (!path)
            return no_memory(l->err);
        int known = stat(path, &st) == 0;
        kd_free(path);
        KD_TRY(add(l, rel, known ? &st : NULL));
    }
    return KD_OK;
}

static kd_status open_list_file(lister *l, const char *source) {
    const char *slash = strrchr(source, '/');
    l->d->root = slash ? kd_asprintf("%.*s", slash == source ? 1 : (int)(slash - source), source) : kd_strdup("");
    if (!l->d->root)
        return no_memory(l->err);
    uint8_t *text = NULL;
    size_t size = 0;
    kd_status status = kd_io_read_all(source, MAX_LIST_BYTES, &text, &size, l->err);
    if (status != KD_OK) {
        if (l->err && status == KD_EFAIL)
            l->err->status = KD_EUSAGE;
        return status == KD_EFAIL ? KD_EUSAGE : status;
    }
    status = parse_list(l, (const char *)text, size, source);
    kd_free(text);
    return status;
}

static kd_status open_stdin(lister *l) {
    l->d->root = kd_strdup("");
    char *text = NULL;
    size_t size = 0, capacity = 0, got = 1;
    kd_status status = l->d->root ? KD_OK : no_memory(l->err);
    while (status == KD_OK && got > 0) {
        if (size == capacity) {
            capacity = capacity ? 2 * capacity : 65536;
            char *grown = capacity <= MAX_LIST_BYTES ? kd_realloc(text, capacity) : NULL;
            if (!grown) {
                status = kd_fail(l->err, KD_EUSAGE, "the list of paths on standard input is longer than %d bytes, or memory is out", MAX_LIST_BYTES);
                break;
            }
            text = grown;
        }
        got = fread(text + size, 1, capacity - size, stdin);
        size += got;
    }
    if (status == KD_OK && ferror(stdin))
        status = kd_fail_errno(l->err, KD_EUSAGE, "reading the list of paths from standard input failed");
    if (status == KD_OK && size > 0)
        status = parse_list(l, text, size, "standard input");
    kd_free(text);
    return status;
}

/* ---- entry ---- */

static int by_rel(const void *a, const void *b) { return strcmp(((const kd_data_file *)a)->rel, ((const kd_data_file *)b)->rel); }

static void sort_unique(kd_dataset *d) {
    if (d->count == 0)
        return;
    qsort(d->file, d->count, sizeof *d->file, by_rel);
    size_t kept = 1;
    for (size_t i = 1; i < d->count; i++)
        if (strcmp(d->file[i].rel, d->file[kept - 1].rel) != 0)
            d->file[kept++] = d->file[i];
    d->count = kept;
}

static kd_status open_source(lister *l, const char *source) {
    kd_dataset *d = l->d;
    d->arena = kd_arena_create();
    if (!d->arena)
        return no_memory(l->err);
    struct stat st;
    if (strcmp(source, "-") == 0)
        KD_TRY(open_stdin(l));
    else if (stat(source, &st) != 0)
        return kd_fail_errno(l->err, KD_EUSAGE, "the images at %s can't be read", source);
    else if (S_ISDIR(st.st_mode))
        KD_TRY(open_folder(l, source));
    else if (S_ISREG(st.st_mode))
        KD_TRY(open_list_file(l, source));
    else
        return kd_fail(l->err, KD_EUSAGE, "%s is neither a folder nor a list file; to read a list from a pipe give \"-\"", source);
    if (d->count == 0)
        return kd_fail(l->err, KD_EUSAGE, "%s holds no images (%zu other files are there; names end in .jpg, .jpeg, .jpe, .jfif, .png or .webp)", source, d->ignored);
    sort_unique(d);
    return KD_OK;
}

kd_status kd_dataset_open(kd_dataset *d, const char *source, kd_err *err) {
    *d = (kd_dataset){0};
    lister l = {.d = d, .err = err};
    kd_status status = open_source(&l, source);
    if (status != KD_OK)
        kd_dataset_close(d);
    return status;
}

void kd_dataset_close(kd_dataset *d) {
    kd_free(d->root);
    kd_free(d->file);
    kd_arena_destroy(d->arena);
    *d = (kd_dataset){0};
}

kd_status kd_dataset_path(const kd_dataset *d, size_t i, char *buf, size_t cap, kd_err *err) {
    KD_ASSERT(i < d->count);
    const char *rel = d->file[i].rel;
    size_t root = rel[0] == '/' ? 0 : strlen(d->root), n = strlen(rel), slash = root > 0 && d->root[root - 1] != '/';
    if (root + slash + n + 1 > cap)
        return kd_fail(err, KD_EFAIL, "the path of %s is longer than %zu bytes", rel, cap - 1);
    memcpy(buf, d->root, root);
    if (slash)
        buf[root] = '/';
    memcpy(buf + root + slash, rel, n + 1);
    return KD_OK;
}

kd_hash128 kd_image_id(const uint8_t *bytes, size_t size) { return kd_xxh128(bytes, size); }

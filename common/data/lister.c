/* Folders and tars. Nothing is opened but directories and tars; what isn't a regular file is never touched. */
#include "common/data/lister.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <unistd.h>

#include "common/base/log.h"
#include "common/base/mem.h"
#include "common/data/tar.h"

enum { MAX_DEPTH = 100, MAX_REL = 4095 /* what a cache can record: cache/entry.h */ };

kd_status kd_lister_no_memory(kd_lister *l) { return kd_fail(l->err, KD_EFAIL, "out of memory while listing the images"); }

static kd_status append(kd_lister *l, kd_file_vector *v, kd_data_file f) {
    if (v->count == v->capacity) {
        size_t capacity = v->capacity ? 2 * v->capacity : 1024, bytes;
        kd_data_file *grown = kd_mul_size(capacity, sizeof *grown, &bytes) ? kd_realloc(v->file, bytes) : NULL;
        if (!grown)
            return kd_lister_no_memory(l);
        v->file = grown;
        v->capacity = capacity;
    }
    if (!f.problem && strlen(f.rel) > MAX_REL) {
        f.problem = kd_arena_printf(l->d->arena, "%.60s...: the name of %zu bytes is above the limit of %d; shorten it", f.rel, strlen(f.rel), MAX_REL);
        if (!f.problem)
            return kd_lister_no_memory(l);
    }
    v->file[v->count++] = f;
    return KD_OK;
}

kd_status kd_lister_add(kd_lister *l, const char *rel, const struct stat *st, const char *problem) {
    kd_data_file f = {.rel = rel, .problem = problem};
    if (st) {
        f.size = (uint64_t)st->st_size;
        f.mtime_ns = (int64_t)st->st_mtim.tv_sec * 1000000000 + st->st_mtim.tv_nsec;
    }
    return append(l, &l->files, f);
}

static int has_image_suffix(const char *name) {
    static const char *const suffix[] = {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp"};
    const char *dot = strrchr(name, '.');
    for (size_t i = 0; dot && i < sizeof suffix / sizeof *suffix; i++)
        if (strcasecmp(dot, suffix[i]) == 0)
            return 1;
    return 0;
}

int kd_lister_is_tar_name(const char *name) {
    const char *dot = strrchr(name, '.');
    return dot && strcasecmp(dot, ".tar") == 0;
}

/* ---- tars ---- */

typedef struct tar_visit {
    kd_lister *l;
    kd_file_vector *to;
    const char *rel;
    size_t first;     /* its files in `to` begin here; their time is known after the walk */
    kd_status failed; /* of our own doing: the tar may be sound */
} tar_visit;

static kd_status add_member(tar_visit *v, const kd_tar_member *m) {
    kd_arena *arena = v->l->d->arena;
    if (m->kind == KD_TAR_OTHER || !has_image_suffix(m->name)) {
        v->l->d->ignored++;
        return KD_OK;
    }
    kd_data_file f = {.rel = kd_arena_printf(arena, "%s/%s", v->rel, m->name), .size = m->size, .offset = m->offset, .tar = (uint32_t)v->l->d->tars};
    if (!f.rel)
        return kd_lister_no_memory(v->l);
    if (m->kind == KD_TAR_TRUNCATED)
        f.problem = kd_arena_printf(arena, "%s: cut off: its %llu bytes go beyond the end of the tar; copy the tar again", f.rel, (unsigned long long)m->size);
    else if (m->kind == KD_TAR_SPARSE)
        f.problem = kd_arena_printf(arena, "%s: stored with holes; write the tar without --sparse", f.rel);
    if (!f.problem && m->kind != KD_TAR_FILE)
        return kd_lister_no_memory(v->l);
    return append(v->l, v->to, f);
}

static kd_status visit_member(void *ctx, const kd_tar_member *m, kd_err *err) {
    tar_visit *v = ctx;
    (void)err; /* the lister has its own */
    return v->failed = add_member(v, m);
}

/* d->tar[d->tars - 1] is the new one while it is walked. */
static kd_status begin_tar(kd_lister *l, const char *rel) {
    kd_dataset *d = l->d;
    if (d->tars == l->tar_capacity) {
        size_t capacity = l->tar_capacity ? 2 * l->tar_capacity : 64, bytes;
        kd_data_tar *grown = kd_mul_size(capacity, sizeof *grown, &bytes) ? kd_realloc(d->tar, bytes) : NULL;
        if (!grown)
            return kd_lister_no_memory(l);
        d->tar = grown;
        l->tar_capacity = capacity;
    }
    const char *path = rel[0] == '/' || !d->root[0] ? rel : kd_arena_printf(d->arena, "%s/%s", d->root, rel);
    if (!path)
        return kd_lister_no_memory(l);
    d->tar[d->tars++] = (kd_data_tar){.path = path, .rel_length = strlen(rel) + 1};
    return KD_OK;
}

kd_status kd_lister_add_tar(kd_lister *l, kd_file_vector *to, const char *rel) {
    kd_dataset *d = l->d;
    kd_tar_info info;
    kd_err damage;
    tar_visit v = {.l = l, .to = to, .rel = rel, .first = to->count};
    size_t ignored = d->ignored;
    KD_TRY(begin_tar(l, rel));
    kd_data_tar *t = &d->tar[d->tars - 1];
    kd_status status = kd_tar_walk(t->path, visit_member, &v, &info, &damage);
    KD_TRY(v.failed);
    t->size = info.size;
    for (size_t i = v.first; i < to->count; i++)
        to->file[i].mtime_ns = info.mtime_ns;
    if (status == KD_OK) {
        if (!info.ended)
            kd_log(KD_LOG_WARN, "%s has no end mark: it wasn't closed, or was cut off between two members; its %llu members are used", t->path, (unsigned long long)info.members);
        kd_log(KD_LOG_DEBUG, "%s: %llu members, %zu images, %zu others", t->path, (unsigned long long)info.members, to->count - v.first, d->ignored - ignored);
        return KD_OK;
    }
    /* A member that is cut off says so itself; anything else becomes a file that can't be read, so that no run takes part of a tar for the whole in silence. */
    if (to->count > v.first && to->file[to->count - 1].problem && to->file[to->count - 1].offset + to->file[to->count - 1].size > info.size)
        return KD_OK;
    const char *problem = kd_arena_strdup(d->arena, damage.msg);
    return problem ? append(l, to, (kd_data_file){.rel = rel, .mtime_ns = info.mtime_ns, .problem = problem}) : kd_lister_no_memory(l);
}

/* ---- folders ---- */

static kd_status walk(kd_lister *l, int fd, const char *prefix, int depth);

static kd_status visit_folder(kd_lister *l, int dir, const char *prefix, const char *name, int depth) {
    char *deeper = kd_arena_printf(l->d->arena, "%s%s/", prefix, name);
    if (!deeper)
        return kd_lister_no_memory(l);
    int fd = openat(dir, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (fd >= 0)
        return walk(l, fd, deeper, depth + 1);
    char *problem = kd_arena_printf(l->d->arena, "%s/%s: the folder can't be opened (%s); what is in it is left out", l->d->root, deeper, strerror(errno));
    return problem ? kd_lister_add(l, deeper, NULL, problem) : kd_lister_no_memory(l);
}

/* One entry of a directory. A file that vanishes while we look is as if it had never been there. */
static kd_status visit(kd_lister *l, int dir, const char *prefix, const char *name, int depth) {
    struct stat st;
    if (fstatat(dir, name, &st, AT_SYMLINK_NOFOLLOW) != 0)
        return KD_OK;
    int link = S_ISLNK(st.st_mode);
    if (link && fstatat(dir, name, &st, 0) != 0) {
        l->d->ignored++; /* a dangling link */
        return KD_OK;
    }
    if (S_ISDIR(st.st_mode))
        return link ? KD_OK : visit_folder(l, dir, prefix, name, depth);
    int tar = kd_lister_is_tar_name(name);
    if (!S_ISREG(st.st_mode) || (!tar && !has_image_suffix(name))) {
        l->d->ignored++;
        return KD_OK;
    }
    char *rel = kd_arena_printf(l->d->arena, "%s%s", prefix, name);
    if (!rel)
        return kd_lister_no_memory(l);
    return tar ? kd_lister_add_tar(l, &l->files, rel) : kd_lister_add(l, rel, &st, NULL);
}

/* Owns fd. prefix is "" or ends with '/'. */
static kd_status walk(kd_lister *l, int fd, const char *prefix, int depth) {
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

kd_status kd_lister_add_folder(kd_lister *l, const char *source) {
    int fd = open(source, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0)
        return kd_fail_errno(l->err, KD_EUSAGE, "the image folder %s can't be opened", source);
    return walk(l, fd, "", 0);
}

/* ---- order ---- */

static int by_rel(const void *a, const void *b) {
    const kd_data_file *x = a, *y = b;
    int order = strcmp(x->rel, y->rel);
    return order ? order : (x->offset > y->offset) - (x->offset < y->offset);
}

void kd_lister_sort(kd_file_vector *v, size_t *ignored) {
    if (v->count == 0)
        return;
    qsort(v->file, v->count, sizeof *v->file, by_rel);
    size_t kept = 0;
    for (size_t i = 1; i < v->count; i++) {
        if (strcmp(v->file[i].rel, v->file[kept].rel) != 0)
            v->file[++kept] = v->file[i];
        else if (v->file[i].offset != v->file[kept].offset) {
            v->file[kept] = v->file[i]; /* the later member of the tar */
            ++*ignored;
        }
    }
    v->count = kept + 1;
}

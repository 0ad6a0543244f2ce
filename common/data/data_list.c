/* Lists of paths: files, tars, and members of tars. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/mem.h"
#include "common/data/lister.h"

/* Members that the list names one by one. Their tars are read once each, into a directory of their own; the list's order doesn't matter, as the data set is sorted anyway. */
typedef struct list_reader {
    kd_lister *l;
    kd_file_vector directory; /* all images of the tars in `tar` */
    const char **tar;         /* rel of each tar that was read for its members */
    size_t tars, tar_capacity;
    const char **wanted;      /* rel of each member */
    size_t wanted_count, wanted_capacity;
} list_reader;

static kd_status push(list_reader *r, const char ***array, size_t *count, size_t *capacity, const char *text) {
    if (*count == *capacity) {
        size_t bigger = *capacity ? 2 * *capacity : 256, bytes;
        const char **grown = kd_mul_size(bigger, sizeof *grown, &bytes) ? kd_realloc((void *)*array, bytes) : NULL;
        if (!grown)
            return kd_lister_no_memory(r->l);
        *array = grown;
        *capacity = bigger;
    }
    (*array)[(*count)++] = text;
    return KD_OK;
}

static char *full_path(const kd_dataset *d, const char *rel) { return rel[0] == '/' || !d->root[0] ? kd_strdup(rel) : kd_asprintf("%s/%s", d->root, rel); }

/* KD_DONE: not there, or not a regular file. */
static kd_status regular(list_reader *r, const char *rel, struct stat *st) {
    char *path = full_path(r->l->d, rel);
    if (!path)
        return kd_lister_no_memory(r->l);
    int there = stat(path, st) == 0 && S_ISREG(st->st_mode);
    kd_free(path);
    return there ? KD_OK : KD_DONE;
}

/* Lists name the members of one tar after another, so the newest tar is tried first. */
static int was_read(const list_reader *r, const char *rel, size_t n) {
    for (size_t i = r->tars; i-- > 0;)
        if (strncmp(r->tar[i], rel, n) == 0 && r->tar[i][n] == '\0')
            return 1;
    return 0;
}

/* rel as the address of a member: some "X.tar/" in it is a tar. KD_DONE: it is none. */
static kd_status want_member(list_reader *r, const char *rel) {
    for (const char *slash = strchr(rel, '/'); slash; slash = strchr(slash + 1, '/')) {
        size_t n = (size_t)(slash - rel);
        struct stat st;
        if (!was_read(r, rel, n)) {
            char *tar = kd_arena_printf(r->l->d->arena, "%.*s", (int)n, rel);
            if (!tar)
                return kd_lister_no_memory(r->l);
            if (!kd_lister_is_tar_name(tar))
                continue;
            kd_status status = regular(r, tar, &st);
            if (status == KD_DONE)
                continue;
            KD_TRY(status);
            KD_TRY(kd_lister_add_tar(r->l, &r->directory, tar));
            KD_TRY(push(r, &r->tar, &r->tars, &r->tar_capacity, tar));
        }
        return push(r, &r->wanted, &r->wanted_count, &r->wanted_capacity, rel);
    }
    return KD_DONE;
}

static kd_status take_path(list_reader *r, const char *rel) {
    struct stat st;
    kd_status status = regular(r, rel, &st);
    if (status == KD_OK)
        return kd_lister_is_tar_name(rel) ? kd_lister_add_tar(r->l, &r->l->files, rel) : kd_lister_add(r->l, rel, &st, NULL);
    if (status == KD_DONE)
        status = want_member(r, rel);
    return status == KD_DONE ? kd_lister_add(r->l, rel, NULL, NULL) : status;
}

static int rel_is(const void *key, const void *element) { return strcmp(key, ((const kd_data_file *)element)->rel); }

/* Members that a tar lacks stay in as files that can't be read. */
static kd_status take_members(list_reader *r) {
    size_t replaced = 0;
    kd_lister_sort(&r->directory, &replaced);
    for (size_t i = 0; i < r->wanted_count; i++) {
        const char *rel = r->wanted[i];
        const kd_data_file *f = r->directory.count ? bsearch(rel, r->directory.file, r->directory.count, sizeof *f, rel_is) : NULL;
        if (f) {
            KD_TRY(kd_lister_add(r->l, f->rel, NULL, f->problem));
            r->l->files.file[r->l->files.count - 1] = *f;
            continue;
        }
        char *problem = kd_arena_printf(r->l->d->arena, "%.3000s: the tar has no image of this name", rel);
        if (!problem)
            return kd_lister_no_memory(r->l);
        KD_TRY(kd_lister_add(r->l, rel, NULL, problem));
    }
    return KD_OK;
}

static kd_status take_all(list_reader *r, const char *text, size_t size, char end) {
    for (size_t at = 0; at < size;) {
        const char *line = text + at, *stop = memchr(line, end, size - at);
        size_t n = stop ? (size_t)(stop - line) : size - at;
        at += n + 1;
        if (n == 0)
            continue;
        char *rel = kd_arena_alloc(r->l->d->arena, n + 1);
        if (!rel)
            return kd_lister_no_memory(r->l);
        memcpy(rel, line, n); /* the arena's bytes are zero: NUL terminated */
        KD_TRY(take_path(r, rel));
    }
    return r->wanted_count ? take_members(r) : KD_OK;
}

kd_status kd_lister_add_list(kd_lister *l, const char *text, size_t size, kd_list_format format, const char *source) {
    const char *nul = memchr(text, 0, size);
    if (format == KD_LIST_LINES && nul)
        return kd_fail(l->err, KD_EUSAGE, "%s isn't a list of paths: it has a zero byte at offset %zu (a list is text, one path per line; for the output of find -print0 give --null)", source,
                       (size_t)(nul - text));
    if (format == KD_LIST_NUL && size > 0 && !nul)
        return kd_fail(l->err, KD_EUSAGE, "%s: with --null each path ends in a zero byte, as find -print0 writes them, and there is none; leave --null out for a list of lines", source);
    list_reader r = {.l = l};
    size_t ignored = l->d->ignored;
    kd_status status = take_all(&r, text, size, format == KD_LIST_NUL ? '\0' : '\n');
    if (r.tars) /* what else lies in tars of which members were asked for is nobody's business */
        l->d->ignored = ignored;
    kd_free(r.directory.file);
    kd_free((void *)r.tar);
    kd_free((void *)r.wanted);
    return status;
}

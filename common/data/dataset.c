/* Opening a data set and reading its images: see dataset.h. What a source holds is found by lister.c and data_list.c. */
#include "common/data/dataset.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>
#include <unistd.h>

#include "common/base/io.h"
#include "common/base/mem.h"
#include "common/data/lister.h"
#include "common/data/tar.h"

enum { MAX_LIST_BYTES = 1 << 30 };

/* ---- sources ---- */

/* The folder that a file lies in; "" for a bare name. */
static kd_status root_of_file(kd_lister *l, const char *source) {
    const char *slash = strrchr(source, '/');
    l->d->root = slash ? kd_asprintf("%.*s", slash == source ? 1 : (int)(slash - source), source) : kd_strdup("");
    return l->d->root ? KD_OK : kd_lister_no_memory(l);
}

static kd_status open_folder(kd_lister *l, const char *source) {
    size_t n = strlen(source);
    while (n > 1 && source[n - 1] == '/')
        n--;
    l->d->root = kd_asprintf("%.*s", (int)n, source);
    return l->d->root ? kd_lister_add_folder(l, source) : kd_lister_no_memory(l);
}

static kd_status open_tar(kd_lister *l, const char *source) {
    const char *slash = strrchr(source, '/');
    KD_TRY(root_of_file(l, source));
    char *rel = kd_arena_strdup(l->d->arena, slash ? slash + 1 : source);
    return rel ? kd_lister_add_tar(l, &l->files, rel) : kd_lister_no_memory(l);
}

static kd_status open_list_file(kd_lister *l, const char *source, kd_list_format list) {
    uint8_t *text = NULL;
    size_t size = 0;
    KD_TRY(root_of_file(l, source));
    kd_status status = kd_io_read_all(source, MAX_LIST_BYTES, &text, &size, l->err);
    if (status != KD_OK) {
        if (l->err && status == KD_EFAIL)
            l->err->status = KD_EUSAGE;
        return status == KD_EFAIL ? KD_EUSAGE : status;
    }
    status = kd_lister_add_list(l, (const char *)text, size, list, source);
    kd_free(text);
    return status;
}

static kd_status open_stdin(kd_lister *l, kd_list_format list) {
    l->d->root = kd_strdup("");
    char *text = NULL;
    size_t size = 0, capacity = 0, got = 1;
    kd_status status = l->d->root ? KD_OK : kd_lister_no_memory(l);
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
        status = kd_lister_add_list(l, text, size, list, "standard input");
    kd_free(text);
    return status;
}

/* A single file is a tar by its name or by its content, or a list. */
static int is_tar(const char *source) {
    uint8_t head[512];
    if (kd_lister_is_tar_name(source))
        return 1;
    int fd = open(source, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    ssize_t n = fd >= 0 ? pread(fd, head, sizeof head, 0) : -1;
    if (fd >= 0)
        close(fd);
    return n > 0 && kd_tar_sniff(head, (size_t)n);
}

static int ends_in(const char *text, const char *end) {
    size_t n = strlen(text), m = strlen(end);
    return n >= m && strcasecmp(text + n - m, end) == 0;
}

static int is_compressed_tar(const char *source) {
    static const char *const end[] = {".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst", ".tar.lz4"};
    for (size_t i = 0; i < sizeof end / sizeof *end; i++)
        if (ends_in(source, end[i]))
            return 1;
    return 0;
}

static kd_status open_file(kd_lister *l, const char *source, kd_list_format list) {
    if (is_tar(source))
        return open_tar(l, source);
    if (is_compressed_tar(source))
        return kd_fail(l->err, KD_EUSAGE, "%s: compressed; images are read in place, which needs a plain tar: decompress it first (JPEGs hardly shrink)", source);
    return open_list_file(l, source, list);
}

/* ---- entry ---- */

static kd_status add_source(kd_lister *l, const char *source, kd_list_format list) {
    struct stat st;
    if (strcmp(source, "-") == 0)
        return open_stdin(l, list);
    if (stat(source, &st) != 0)
        return kd_fail_errno(l->err, KD_EUSAGE, "the images at %s can't be read", source);
    if (S_ISDIR(st.st_mode))
        return open_folder(l, source);
    if (S_ISREG(st.st_mode))
        return open_file(l, source, list);
    return kd_fail(l->err, KD_EUSAGE, "%s is neither a folder nor a tar nor a list file; to read a list from a pipe give \"-\"", source);
}

static kd_status begin(kd_lister *l, kd_dataset *d, kd_err *err) {
    *d = (kd_dataset){.arena = kd_arena_create()};
    *l = (kd_lister){.d = d, .err = err};
    return d->arena ? KD_OK : kd_lister_no_memory(l);
}

/* What was listed becomes the data set, unless that failed. */
static kd_status finish(kd_lister *l, kd_status status, const char *source) {
    kd_dataset *d = l->d;
    if (status == KD_OK && l->files.count == 0)
        status = kd_fail(l->err, KD_EUSAGE, "%s holds no images (%zu other files are there; names end in .jpg, .jpeg, .jpe, .jfif, .png or .webp)", source, d->ignored);
    kd_lister_sort(&l->files, &d->ignored);
    d->file = l->files.file;
    d->count = l->files.count;
    if (status != KD_OK)
        kd_dataset_close(d);
    return status;
}

kd_status kd_dataset_open(kd_dataset *d, const char *source, kd_list_format list, kd_err *err) {
    kd_lister l;
    kd_status status = begin(&l, d, err);
    if (status == KD_OK)
        status = add_source(&l, source, list);
    return finish(&l, status, source);
}

kd_status kd_dataset_open_list(kd_dataset *d, const char *text, size_t size, kd_list_format list, const char *source, kd_err *err) {
    kd_lister l;
    kd_status status = begin(&l, d, err);
    if (status == KD_OK)
        status = root_of_file(&l, source);
    if (status == KD_OK)
        status = kd_lister_add_list(&l, text, size, list, source);
    return finish(&l, status, source);
}

void kd_dataset_close(kd_dataset *d) {
    kd_free(d->root);
    kd_free(d->file);
    kd_free(d->tar);
    kd_arena_destroy(d->arena);
    *d = (kd_dataset){0};
}

/* ---- parts of a set ---- */

kd_status kd_dataset_subset(kd_dataset *out, const kd_dataset *whole, const uint8_t *keep, kd_err *err) {
    size_t count = 0;
    *out = (kd_dataset){.ignored = whole->ignored, .tars = whole->tars};
    for (size_t i = 0; i < whole->count; i++)
        count += keep[i] != 0;
    out->root = kd_strdup(whole->root);
    kd_status status = out->root ? KD_OK : kd_fail(err, KD_EFAIL, "out of memory for the names of %zu images", count);
    if (status == KD_OK)
        status = kd_alloc_array(&out->file, count + 1, sizeof *out->file, err);
    if (status == KD_OK)
        status = kd_alloc_array(&out->tar, whole->tars + 1, sizeof *out->tar, err);
    if (status != KD_OK) {
        kd_dataset_close(out);
        return status;
    }
    for (size_t i = 0; i < whole->count; i++)
        if (keep[i])
            out->file[out->count++] = whole->file[i];
    if (whole->tars > 0)
        memcpy(out->tar, whole->tar, whole->tars * sizeof *out->tar);
    return KD_OK;
}

kd_status kd_dataset_spread(kd_dataset *out, const kd_dataset *whole, size_t count, kd_err *err) {
    uint8_t *keep;
    size_t n = count > 0 && count < whole->count ? count : whole->count;
    KD_TRY(kd_alloc_array(&keep, whole->count + 1, 1, err));
    for (size_t i = 0; i < n; i++)
        keep[i * whole->count / n] = 1;
    kd_status status = kd_dataset_subset(out, whole, keep, err);
    kd_free(keep);
    return status;
}

kd_status kd_dataset_part(kd_dataset *out, const kd_dataset *whole, uint32_t part, uint32_t parts, kd_err *err) {
    uint8_t *keep;
    KD_ASSERT(part >= 1 && part <= parts);
    KD_TRY(kd_alloc_array(&keep, whole->count + 1, 1, err));
    for (size_t i = 0; i < whole->count; i++)
        keep[i] = kd_xxh64(whole->file[i].rel, strlen(whole->file[i].rel)) % parts == part - 1;
    kd_status status = kd_dataset_subset(out, whole, keep, err);
    kd_free(keep);
    return status;
}

/* ---- one image ---- */

kd_status kd_dataset_path(const kd_dataset *d, size_t i, char *buf, size_t cap, kd_err *err) {
    KD_ASSERT(i < d->count);
    const char *rel = d->file[i].rel;
    size_t root = rel[0] == '/' ? 0 : strlen(d->root), n = strlen(rel), slash = root > 0 && d->root[root - 1] != '/';
    if (root + slash + n + 1 > cap)
        return kd_fail(err, KD_EFAIL, "the path of %.60s... is longer than %zu bytes", rel, cap - 1);
    memcpy(buf, d->root, root);
    if (slash)
        buf[root] = '/';
    memcpy(buf + root + slash, rel, n + 1);
    return KD_OK;
}

kd_status kd_dataset_read(const kd_dataset *d, size_t i, uint8_t **buf, size_t *cap, size_t *size, kd_err *err) {
    KD_ASSERT(i < d->count);
    const kd_data_file *f = &d->file[i];
    char path[KD_DATA_NAME];
    if (f->problem)
        return kd_fail(err, KD_EFAIL, "%s", f->problem);
    KD_TRY(kd_dataset_path(d, i, path, sizeof path, err));
    if (f->tar == 0)
        return kd_io_read_into(path, KD_MAX_IMAGE_FILE, buf, cap, size, err);
    if (f->size > KD_MAX_IMAGE_FILE)
        return kd_fail(err, KD_EFAIL, "%s: %llu bytes are above the limit of %d", path, (unsigned long long)f->size, KD_MAX_IMAGE_FILE);
    const kd_data_tar *t = &d->tar[f->tar - 1];
    *size = (size_t)f->size;
    return kd_io_read_part(t->path, t->size, f->offset, *size, buf, cap, err);
}

kd_status kd_dataset_head(const kd_dataset *d, size_t i, size_t n, uint8_t **buf, size_t *cap, size_t *size, kd_err *err) {
    KD_ASSERT(i < d->count);
    const kd_data_file *f = &d->file[i];
    const kd_data_tar *t = f->tar != 0 ? &d->tar[f->tar - 1] : NULL;
    char path[KD_DATA_NAME];
    if (f->problem)
        return kd_fail(err, KD_EFAIL, "%s", f->problem);
    KD_TRY(kd_dataset_path(d, i, path, sizeof path, err));
    *size = f->size < n ? (size_t)f->size : n;
    return kd_io_read_part(t != NULL ? t->path : path, t != NULL ? t->size : f->size, t != NULL ? f->offset : 0, *size, buf, cap, err);
}

const char *kd_dataset_inner_name(const kd_dataset *d, size_t i) {
    const kd_data_file *f = &d->file[i];
    return f->tar ? f->rel + d->tar[f->tar - 1].rel_length : f->rel;
}

kd_hash128 kd_image_id(const uint8_t *bytes, size_t size) { return kd_xxh128(bytes, size); }

/* ---- hidden paths ---- */

static const char hidden_prefix[] = "xxh128:";

void kd_hidden_path(char out[KD_HIDDEN_PATH], const char *rel) {
    kd_hash128 h = kd_xxh128(rel, strlen(rel));
    memcpy(out, hidden_prefix, sizeof hidden_prefix - 1);
    kd_hex(out + sizeof hidden_prefix - 1, h.b, sizeof h.b);
}

int kd_is_hidden_path(const char *rel, kd_hash128 *hash) {
    kd_hash128 h;
    size_t n = sizeof hidden_prefix - 1;
    if (strncmp(rel, hidden_prefix, n) != 0 || strlen(rel) != KD_HIDDEN_PATH - 1 || kd_unhex(h.b, rel + n, sizeof h.b) != 0)
        return 0;
    if (hash)
        *hash = h;
    return 1;
}

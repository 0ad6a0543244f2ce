#include "train/eval/label_source.h"

#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "cache/store.h"
#include "common/base/csv.h"
#include "common/base/io.h"
#include "common/base/log.h"
#include "common/base/mem.h"
#include "common/data/locate.h"

static kd_status no_memory(kd_err *err) {
    return kd_fail(err, KD_EFAIL, "out of memory for the names of classes");
}

/* label[i] = n bytes of text; NULL for none. */
static kd_status set_label(kd_label_source *s, size_t i, const char *text, size_t n, kd_err *err) {
    const char *last = i > 0 ? s->label[i - 1] : NULL;
    s->label[i] = NULL;
    if (n == 0)
        return KD_OK;
    if (last != NULL && strlen(last) == n && memcmp(last, text, n) == 0)
        s->label[i] = last;
    else
        s->label[i] = kd_arena_printf(s->arena, "%.*s", (int)n, text);
    return s->label[i] != NULL ? KD_OK : no_memory(err);
}

/* ---- class folders ---- */

/* rel, whose first `tar` bytes name a tar and its slash. Its class is the n bytes at *at; 0: none. */
static size_t folder_class(const char *rel, size_t tar, const char **at) {
    const char *inner = rel + tar, *slash;
    while (strncmp(inner, "./", 2) == 0)
        inner += 2;
    *at = inner;
    slash = strchr(inner, '/');
    if (slash != NULL)
        return (size_t)(slash - inner);
    if (tar == 0)
        return 0;
    size_t n = tar - strlen(".tar/"), from = n;
    while (from > 0 && rel[from - 1] != '/')
        from--;
    *at = rel + from;
    return n - from;
}

static size_t tar_length(const kd_dataset *d, size_t i) {
    return d->file[i].tar != 0 ? d->tar[d->file[i].tar - 1].rel_length : 0;
}

static kd_status open_folders(kd_label_source *s, const char *source, kd_err *err) {
    KD_TRY(kd_dataset_open(&s->data, source, KD_LIST_LINES, err));
    KD_TRY(kd_alloc_array(&s->label, s->data.count, sizeof *s->label, err));
    for (size_t i = 0; i < s->data.count; i++) {
        const char *at;
        size_t n = folder_class(s->data.file[i].rel, tar_length(&s->data, i), &at);
        KD_TRY(set_label(s, i, at, n, err));
    }
    return KD_OK;
}

/* ---- CSV ---- */

typedef struct csv_row {
    const char *path, *label; /* in the file's text */
    size_t line;
} csv_row;

typedef struct csv_rows {
    csv_row *row; /* [count], sorted by path */
    size_t count, capacity;
    size_t path, label, fields; /* columns; fields of every record */
} csv_rows;

static int is_one_of(const char *field, const char *const *names) {
    size_t n = strlen(field);
    while (n > 0 && *field == ' ')
        field++, n--;
    while (n > 0 && field[n - 1] == ' ')
        n--;
    for (; *names != NULL; names++)
        if (strlen(*names) == n && strncasecmp(field, *names, n) == 0)
            return 1;
    return 0;
}

/* Which columns count, from the first record; *header: it names them and is no image. */
static kd_status find_columns(csv_rows *r, const kd_csv *c, int *header, kd_err *err) {
    static const char *const path_names[] = {"path", "file", "filename", "file_name", "filepath", "file_path", "image", "image_path", "img", "img_path", NULL};
    static const char *const label_names[] = {"label", "class", "class_name", "category", "target", NULL};
    size_t path = SIZE_MAX, label = SIZE_MAX;
    for (size_t i = c->fields; i-- > 0;) {
        path = is_one_of(c->field[i], path_names) ? i : path;
        label = is_one_of(c->field[i], label_names) ? i : label;
    }
    if (path != SIZE_MAX && label == SIZE_MAX && c->fields == 2)
        label = 1 - path; /* no picture is called "path": a header whose other column can only be the label */
    *header = path != SIZE_MAX && label != SIZE_MAX;
    if (!*header && c->fields != 2)
        return kd_fail(err, KD_EUSAGE, "%s, line %zu: has %zu fields; expected path,label, or a header that names the columns: path (or file, filename, image) and label (or class, category, target)",
                       c->what, c->line, c->fields);
    r->path = *header ? path : 0;
    r->label = *header ? label : 1;
    r->fields = c->fields;
    return KD_OK;
}

static kd_status add_row(csv_rows *r, const kd_csv *c, kd_err *err) {
    if (c->fields != r->fields)
        return kd_fail(err, KD_EUSAGE, "%s, line %zu: has %zu fields where the first line has %zu; a comma that belongs to a name needs quotes around the field", c->what, c->line, c->fields, r->fields);
    csv_row row = {c->field[r->path], c->field[r->label], c->line};
    if (row.path[0] == '\0' || row.label[0] == '\0')
        return kd_fail(err, KD_EUSAGE, "%s, line %zu: the %s is empty; leave out images without a label", c->what, c->line, row.path[0] == '\0' ? "path" : "label");
    if (r->count == r->capacity) {
        size_t capacity = r->capacity > 0 ? 2 * r->capacity : 1024, bytes;
        csv_row *grown = kd_mul_size(capacity, sizeof *grown, &bytes) ? kd_realloc(r->row, bytes) : NULL;
        if (grown == NULL)
            return kd_fail(err, KD_EFAIL, "out of memory for the lines of %s", c->what);
        r->row = grown;
        r->capacity = capacity;
    }
    r->row[r->count++] = row;
    return KD_OK;
}

static int by_path(const void *a, const void *b) {
    const csv_row *x = a, *y = b;
    int order = strcmp(x->path, y->path);
    return order != 0 ? order : (x->line > y->line) - (x->line < y->line);
}

static int path_is(const void *key, const void *element) {
    return strcmp(key, ((const csv_row *)element)->path);
}

static kd_status read_rows(csv_rows *r, char *text, size_t size, const char *source, kd_err *err) {
    kd_csv c = kd_csv_over(text, size, source);
    kd_status status = kd_csv_next(&c, err);
    int header = 0;
    if (status == KD_OK)
        status = find_columns(r, &c, &header, err);
    while (status == KD_OK) {
        if (!header)
            KD_TRY(add_row(r, &c, err));
        header = 0;
        status = kd_csv_next(&c, err);
    }
    if (status != KD_DONE)
        return status;
    if (r->count == 0)
        return kd_fail(err, KD_EUSAGE, "%s: has no images; expected a line path,label for each", source);
    qsort(r->row, r->count, sizeof *r->row, by_path);
    for (size_t i = 1; i < r->count; i++)
        if (strcmp(r->row[i].path, r->row[i - 1].path) == 0 && strcmp(r->row[i].label, r->row[i - 1].label) != 0)
            return kd_fail(err, KD_EUSAGE, "%s, line %zu: %s is a %s here and a %s on line %zu; an image has one class", source, r->row[i].line, r->row[i].path, r->row[i].label, r->row[i - 1].label,
                           r->row[i - 1].line);
    return KD_OK;
}

/* The listed images as a data set, which may hold more files than there are lines: a tar's. */
static kd_status list_rows(kd_label_source *s, const csv_rows *r, const char *source, kd_err *err) {
    kd_text paths = {0};
    for (size_t i = 0; i < r->count; i++)
        kd_text_printf(&paths, "%s%c", r->row[i].path, '\0');
    kd_status status = kd_text_check(&paths, "the paths of images", err);
    if (status == KD_OK)
        status = kd_dataset_open_list(&s->data, paths.at, paths.size, KD_LIST_NUL, source, err);
    kd_text_free(&paths);
    return status;
}

static kd_status label_rows(kd_label_source *s, const csv_rows *r, kd_err *err) {
    KD_TRY(kd_alloc_array(&s->label, s->data.count, sizeof *s->label, err));
    for (size_t i = 0; i < s->data.count; i++) {
        const char *rel = s->data.file[i].rel;
        const csv_row *row = bsearch(rel, r->row, r->count, sizeof *row, path_is);
        if (row == NULL) { /* a member: the line names its tar */
            char *tar = kd_asprintf("%.*s", (int)tar_length(&s->data, i) - 1, rel);
            if (tar == NULL)
                return no_memory(err);
            row = bsearch(tar, r->row, r->count, sizeof *row, path_is);
            kd_free(tar);
        }
        KD_ASSERT(row != NULL);
        KD_TRY(set_label(s, i, row->label, strlen(row->label), err));
    }
    return KD_OK;
}

static kd_status open_csv(kd_label_source *s, const char *source, kd_err *err) {
    enum { MAX_BYTES = 1 << 30 };
    uint8_t *text = NULL;
    size_t size;
    csv_rows r = {0};
    kd_status status = kd_io_read_all(source, MAX_BYTES, &text, &size, err);
    if (status == KD_EFAIL) { /* what the user named, as with every source */
        if (err != NULL)
            err->status = KD_EUSAGE;
        status = KD_EUSAGE;
    }
    if (status == KD_OK)
        status = read_rows(&r, (char *)text, size, source, err);
    if (status == KD_OK)
        status = list_rows(s, &r, source, err);
    if (status == KD_OK)
        status = label_rows(s, &r, err);
    kd_free(r.row);
    kd_free(text);
    return status;
}

/* ---- the images of a cache ---- */

typedef struct found {
    const kd_image_entry **entry; /* [files] what each file is; NULL: no image of the cache */
    uint8_t *keep;                /* [files] */
} found;

/* A recorded path says by its names alone what in it is a tar. */
static size_t recorded_tar_length(const char *rel) {
    size_t n = 0;
    for (const char *slash = strchr(rel, '/'); slash != NULL; slash = strchr(slash + 1, '/'))
        if (slash - rel > 4 && strncasecmp(slash - 4, ".tar", 4) == 0)
            n = (size_t)(slash - rel) + 1;
    return n;
}

static int all_in_place(const kd_locator *l, const kd_cache *c) {
    for (size_t i = 0; i < kd_cache_images(c); i++) {
        const kd_image_entry *e = kd_cache_image(c, i);
        if (kd_locator_by_path(l, e->rel, e->file_size) < 0)
            return 0;
    }
    return 1;
}

static kd_status find_images(kd_label_source *s, found *f, const kd_locator *l, const kd_cache *c, const char *images, kd_err *err) {
    kd_search search = {0};
    char text[600];
    size_t total = kd_cache_images(c);
    for (size_t i = 0; i < total; i++) {
        const kd_image_entry *e = kd_cache_image(c, i);
        int64_t file;
        kd_whereabouts where = kd_locator_find(l, &e->image, e->rel, e->file_size, &file);
        kd_search_count(&search, where, kd_locator_show(l, file, e->rel));
        if (where != KD_IN_PLACE && where != KD_MOVED)
            continue;
        f->entry[file] = e;
        f->keep[file] = 1;
    }
    s->missing = search.count[KD_CHANGED] + search.count[KD_MISSING];
    kd_search_text(&search, text, sizeof text);
    if (s->missing == total)
        return kd_fail(err, KD_EMISMATCH, "%s: none of the cache's %zu images is there as it was: %s; give the folder that the cache was made from", images, total, text);
    if (s->missing > 0)
        kd_log(KD_LOG_WARN, "%s: of the cache's %zu images %s; the result is over the others", images, total, text);
    return KD_OK;
}

static kd_status keep_found(kd_label_source *s, const found *f, kd_err *err) {
    size_t n = 0;
    KD_TRY(kd_dataset_subset(&s->data, &s->whole, f->keep, err));
    KD_TRY(kd_alloc_array(&s->label, s->data.count, sizeof *s->label, err));
    KD_TRY(kd_alloc_array(&s->id, s->data.count, sizeof *s->id, err));
    for (size_t i = 0; i < s->whole.count; i++) {
        const kd_image_entry *e = f->entry[i];
        if (e == NULL)
            continue;
        const char *at;
        size_t size = kd_is_hidden_path(e->rel, NULL) ? folder_class(s->whole.file[i].rel, tar_length(&s->whole, i), &at) : folder_class(e->rel, recorded_tar_length(e->rel), &at);
        s->id[n] = e->image;
        KD_TRY(set_label(s, n++, at, size, err));
    }
    return KD_OK;
}

static kd_status take_images(kd_label_source *s, const kd_cache *c, const char *images, kd_list_format list, int threads, kd_err *err) {
    kd_locator *l = NULL;
    found f = {0};
    KD_TRY(kd_dataset_open(&s->whole, images, list, err));
    KD_TRY(kd_locator_create_over(&l, &s->whole, err));
    kd_status status = all_in_place(l, c) ? KD_OK : kd_locator_hash_all(l, threads, NULL, err);
    if (status == KD_OK)
        status = kd_alloc_array(&f.entry, s->whole.count, sizeof *f.entry, err);
    if (status == KD_OK)
        status = kd_alloc_array(&f.keep, s->whole.count, 1, err);
    if (status == KD_OK)
        status = find_images(s, &f, l, c, images, err);
    if (status == KD_OK)
        status = keep_found(s, &f, err);
    kd_free((void *)f.entry);
    kd_free(f.keep);
    kd_locator_destroy(l);
    return status;
}

static kd_status open_cache(kd_label_source *s, const char *source, const char *images, kd_list_format list, int threads, kd_err *err) {
    kd_cache *c;
    if (images == NULL)
        return kd_fail(err, KD_EUSAGE, "%s is a cache, which has features but no pictures; say with --images where the pictures are that it was made from", source);
    KD_TRY(kd_cache_open(&c, &source, 1, err));
    kd_status status = take_images(s, c, images, list, threads, err);
    kd_cache_close(c);
    return status;
}

/* ---- entry ---- */

static int is_csv(const char *source) {
    size_t n = strlen(source);
    return n >= 4 && strcasecmp(source + n - 4, ".csv") == 0;
}

kd_status kd_label_source_open(kd_label_source *s, const char *source, const char *images, kd_list_format list, int threads, kd_err *err) {
    *s = (kd_label_source){.arena = kd_arena_create()};
    kd_status status = s->arena != NULL ? KD_OK : no_memory(err);
    if (status == KD_OK)
        status = is_csv(source) ? open_csv(s, source, err) : kd_cache_is_at(source) ? open_cache(s, source, images, list, threads, err) : open_folders(s, source, err);
    if (status != KD_OK)
        kd_label_source_close(s);
    return status;
}

void kd_label_source_close(kd_label_source *s) {
    kd_dataset_close(&s->data);
    kd_dataset_close(&s->whole);
    kd_free((void *)s->label);
    kd_free(s->id);
    kd_arena_destroy(s->arena);
    *s = (kd_label_source){0};
}

#include "precompute/fill.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/io.h"
#include "common/base/log.h"
#include "common/base/mem.h"

enum { MAX_LIST_BYTES = 1 << 30, MAX_VIEWS = 65536, ID_DIGITS = 32 };

/* ---- reading the list ---- */

static int blank(char c) {
    return c == ' ' || c == '\t';
}

static const char *skip_blanks(const char *p) {
    while (blank(*p))
        p++;
    return p;
}

/* A view number at *p, which moves behind it. */
static int parse_view(const char **p, uint32_t *view) {
    char *end;
    if (**p < '0' || **p > '9')
        return 0;
    errno = 0;
    unsigned long v = strtoul(*p, &end, 10);
    if (errno != 0 || v >= MAX_VIEWS)
        return 0;
    *p = end;
    *view = (uint32_t)v;
    return 1;
}

/* text: one line, NUL-terminated, neither empty nor a comment. */
static kd_status parse_line(kd_fill_row *row, const char *text, const char *file, size_t line, kd_err *err) {
    size_t digits = strspn(text, "0123456789abcdefABCDEF");
    char id[ID_DIGITS + 1] = "";
    memcpy(id, text, digits < ID_DIGITS ? digits : ID_DIGITS);
    if ((text[digits] != '\0' && !blank(text[digits])) || digits > ID_DIGITS || kd_unhex(row->image.b, id, sizeof row->image.b) != 0)
        return kd_fail(err, KD_EUSAGE, "%s: line %zu doesn't begin with an image id of %d hex digits: %.60s", file, line, ID_DIGITS, text);
    const char *p = skip_blanks(text + digits), *views = p;
    int ok = parse_view(&p, &row->first);
    row->last = row->first;
    if (ok && *p == '-') {
        p++;
        ok = parse_view(&p, &row->last);
    }
    if (!ok || (*p != '\0' && !blank(*p)) || row->last < row->first)
        return kd_fail(err, KD_EUSAGE, "%s: line %zu: \"%.*s\" isn't a view such as 3 or a range such as 0-7, with numbers below %d", file, line, (int)strcspn(views, " \t"), views, MAX_VIEWS);
    row->path = skip_blanks(p);
    if (*row->path == '\0')
        return kd_fail(err, KD_EUSAGE, "%s: line %zu ends without the image's path: %.60s", file, line, text);
    return KD_OK;
}

static int by_image(const void *a, const void *b) {
    const kd_fill_row *x = a, *y = b;
    int order = memcmp(x->image.b, y->image.b, sizeof x->image.b);
    return order != 0 ? order : (x->first > y->first) - (x->first < y->first);
}

/* text is kept: the rows' paths point into it. */
static kd_status parse_all(kd_fill *f, char *text, size_t size, const char *file, kd_err *err) {
    size_t lines = 1, line = 0;
    for (size_t i = 0; i < size; i++)
        lines += text[i] == '\n';
    KD_TRY(kd_alloc_array(&f->row, lines, sizeof *f->row, err));
    for (char *p = text, *next; p < text + size; p = next) {
        size_t n = strcspn(p, "\n"); /* a NUL follows the last byte */
        next = p + n + 1;
        line++;
        p[n] = '\0';
        if (n > 0 && p[n - 1] == '\r')
            p[n - 1] = '\0';
        p += strspn(p, " \t");
        if (*p == '\0' || *p == '#')
            continue;
        KD_TRY(parse_line(&f->row[f->count], p, file, line, err));
        if (f->row[f->count].last >= f->views)
            f->views = f->row[f->count].last + 1;
        f->count++;
    }
    if (f->count == 0)
        return kd_fail(err, KD_EUSAGE, "%s: lists no views; lines look like: 0123456789abcdef0123456789abcdef 0-7 cat/12.jpg", file);
    qsort(f->row, f->count, sizeof *f->row, by_image);
    return KD_OK;
}

kd_status kd_fill_read(kd_fill *f, const char *path, kd_err *err) {
    uint8_t *bytes = NULL;
    size_t size;
    *f = (kd_fill){0};
    KD_TRY(kd_io_read_all(path, MAX_LIST_BYTES, &bytes, &size, err));
    f->text = (char *)bytes;
    kd_status status = memchr(bytes, 0, size) == NULL ? parse_all(f, f->text, size, path, err) : kd_fail(err, KD_EUSAGE, "%s: holds a NUL byte: not a text file", path);
    if (status != KD_OK)
        kd_fill_free(f);
    return status;
}

void kd_fill_free(kd_fill *f) {
    kd_free(f->row);
    kd_free(f->text);
    *f = (kd_fill){0};
}

/* ---- asking it ---- */

/* The first row of this image, or where it would be. */
static size_t first_row(const kd_fill *f, const kd_hash128 *image) {
    size_t lo = 0, hi = f->count;
    while (lo < hi) {
        size_t mid = lo + (hi - lo) / 2;
        if (memcmp(f->row[mid].image.b, image->b, sizeof image->b) < 0)
            lo = mid + 1;
        else
            hi = mid;
    }
    return lo;
}

static int same_image(const kd_fill *f, size_t i, const kd_hash128 *image) {
    return i < f->count && memcmp(f->row[i].image.b, image->b, sizeof image->b) == 0;
}

int kd_fill_has(const kd_fill *f, const kd_hash128 *image, uint32_t view) {
    for (size_t i = first_row(f, image); same_image(f, i, image) && f->row[i].first <= view; i++)
        if (view <= f->row[i].last)
            return 1;
    return 0;
}

uint64_t kd_fill_view_count(const kd_fill *f) {
    uint64_t sum = 0;
    uint32_t next = 0; /* first view of the current image that isn't counted yet */
    for (size_t i = 0; i < f->count; i++) {
        const kd_fill_row *r = &f->row[i];
        if (i == 0 || !same_image(f, i - 1, &r->image))
            next = 0;
        uint32_t first = r->first > next ? r->first : next;
        if (r->last >= first) {
            sum += r->last - first + 1;
            next = r->last + 1;
        }
    }
    return sum;
}

/* ---- finding its files ---- */

typedef struct search {
    kd_fill *fill;
    kd_locator *files;
    uint8_t *keep; /* per file of the set */
    uint8_t *bytes;
    size_t capacity;
} search;

/* Marks the file at this row's path if it still holds the image. */
static int take_by_path(search *s, const kd_fill_row *row) {
    int64_t file = kd_locator_by_name(s->files, row->path);
    size_t size;
    if (file < 0 || kd_locator_read(s->files, file, &s->bytes, &s->capacity, &size, NULL) != KD_OK)
        return 0;
    kd_hash128 id = kd_image_id(s->bytes, size);
    if (memcmp(id.b, row->image.b, sizeof id.b) != 0)
        return 0;
    s->keep[file] = 1;
    return 1;
}

static kd_status find_all(search *s, int threads, kd_err *err) {
    kd_fill *f = s->fill;
    int hashed = 0;
    for (size_t i = 0; i < f->count; i++) {
        kd_fill_row *row = &f->row[i];
        if ((i > 0 && same_image(f, i - 1, &row->image)) || take_by_path(s, row))
            continue;
        if (!hashed) {
            kd_log(KD_LOG_INFO, "%s isn't what the list says; looking for its image among all files", row->path);
            KD_TRY(kd_locator_hash_all(s->files, threads, NULL, err));
            hashed = 1;
        }
        int64_t file = kd_locator_by_id(s->files, &row->image);
        row->lost = file < 0;
        if (file >= 0)
            s->keep[file] = 1;
    }
    return KD_OK;
}

kd_status kd_fill_select(kd_fill *f, kd_dataset *out, const kd_dataset *data, int threads, kd_err *err) {
    search s = {.fill = f};
    *out = (kd_dataset){0};
    kd_status status = kd_locator_create_over(&s.files, data, err);
    if (status == KD_OK)
        status = kd_alloc_array(&s.keep, data->count + 1, 1, err);
    if (status == KD_OK)
        status = find_all(&s, threads, err);
    if (status == KD_OK)
        status = kd_dataset_subset(out, data, s.keep, err);
    kd_locator_destroy(s.files);
    kd_free(s.keep);
    kd_free(s.bytes);
    return status;
}

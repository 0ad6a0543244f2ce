#include "cache/image_list.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/io.h"
#include "common/base/mem.h"

enum { MAX_LIST_BYTES = 1 << 30, HEX = 2 * KD_IMAGE_KEY_BYTES };

/* An image's path and where it is in the cache. */
typedef struct place {
    const char *rel;
    size_t index;
} place;

typedef struct search {
    const kd_image_set *set;
    const char *file;
    place *by_path; /* sorted; made when the first path is looked for */
    uint8_t *chosen;
    size_t named;
    size_t *unknown; /* NULL: an unknown entry is an error */
} search;

static int compare_places(const void *a, const void *b)
{
    return strcmp(((const place *)a)->rel, ((const place *)b)->rel);
}

static kd_status sort_paths(search *s, kd_err *err)
{
    size_t n = s->set->count;
    if (s->by_path)
        return KD_OK;
    KD_TRY(kd_alloc_array(&s->by_path, n, sizeof *s->by_path, err));
    for (size_t i = 0; i < n; i++)
        s->by_path[i] = (place){s->set->image[i].rel, i};
    qsort(s->by_path, n, sizeof *s->by_path, compare_places);
    return KD_OK;
}

/* All images of this path: in two shards it may be that of two pictures. */
static size_t choose_path(search *s, const char *rel)
{
    size_t n = s->set->count, lo = 0, hi = n, found = 0;
    while (lo < hi) {
        size_t mid = lo + (hi - lo) / 2;
        if (strcmp(s->by_path[mid].rel, rel) < 0)
            lo = mid + 1;
        else
            hi = mid;
    }
    for (; lo < n && strcmp(s->by_path[lo].rel, rel) == 0; lo++, found++)
        s->chosen[s->by_path[lo].index] = 1;
    return found;
}

static size_t choose_id(search *s, const char *text)
{
    kd_hash128 id;
    size_t lo = 0, hi = s->set->count;
    if (strlen(text) != HEX || kd_unhex(id.b, text, sizeof id.b) != 0)
        return 0;
    while (lo < hi) {
        size_t mid = lo + (hi - lo) / 2;
        if (memcmp(s->set->image[mid].image.b, id.b, sizeof id.b) < 0)
            lo = mid + 1;
        else
            hi = mid;
    }
    if (lo == s->set->count || memcmp(s->set->image[lo].image.b, id.b, sizeof id.b) != 0)
        return 0;
    s->chosen[lo] = 1;
    return 1;
}

/* Where the names are to be had. */
static const char *advice(const search *s, char out[4200])
{
    out[0] = 0;
    if (s->set->is_cache)
        snprintf(out, 4200, "; `kd-cache list %s` prints those that it has", s->set->name);
    return out;
}

static kd_status choose_line(search *s, const char *text, size_t line, kd_err *err)
{
    char hidden[8 + HEX + 1], where[4200];
    kd_hash128 h = kd_xxh128(text, strlen(text));
    size_t found = choose_id(s, text);
    if (!found)
        KD_TRY(sort_paths(s, err));
    if (!found)
        found = choose_path(s, text);
    if (!found) {
        memcpy(hidden, "xxh128:", 7);
        kd_hex(hidden + 7, h.b, sizeof h.b);
        found = choose_path(s, hidden);
    }
    if (!found && s->unknown) {
        ++*s->unknown;
        return KD_OK;
    }
    if (!found)
        return kd_fail(err, KD_ENOTFOUND, "%s: entry %zu, \"%.200s\", is neither the id nor the path of an image of %s%s", s->file, line, text, s->set->name, advice(s, where));
    s->named++;
    return KD_OK;
}

/* text: size bytes and a NUL behind them. */
static kd_status choose_lines(search *s, char *text, size_t size, int nul, kd_err *err)
{
    size_t line = 0;
    char where[4200];
    if (!nul && memchr(text, 0, size))
        return kd_fail(err, KD_EUSAGE, "%s: holds a NUL byte; a list whose entries end in NUL is read with --null", s->file);
    for (char *p = text, *end; p < text + size; p = end + 1) {
        end = memchr(p, nul ? 0 : '\n', (size_t)(text + size - p));
        end = end ? end : text + size;
        *end = 0;
        line++;
        if (!nul && end > p && end[-1] == '\r')
            end[-1] = 0;
        if (*p)
            KD_TRY(choose_line(s, p, line, err));
    }
    if (!s->named && s->unknown && *s->unknown)
        return kd_fail(err, KD_EUSAGE, "%s: none of its %zu entries is the id or the path of an image of %s%s", s->file, *s->unknown, s->set->name, advice(s, where));
    return s->named ? KD_OK : kd_fail(err, KD_EUSAGE, "%s: names no image", s->file);
}

kd_image_set kd_image_set_of(const kd_cache *c)
{
    return (kd_image_set){.image = kd_cache_images(c) > 0 ? kd_cache_image(c, 0) : NULL, .count = kd_cache_images(c), .name = kd_cache_shard_path(c, 0), .is_cache = 1};
}

kd_status kd_image_list_read(uint8_t **chosen, const kd_image_set *set, const char *path, int nul, size_t *unknown, kd_err *err)
{
    search s = {.set = set, .file = path, .unknown = unknown};
    uint8_t *text = NULL;
    size_t size;
    kd_status status;
    *chosen = NULL;
    if (unknown)
        *unknown = 0;
    KD_TRY(kd_io_read_all(path, MAX_LIST_BYTES, &text, &size, err));
    status = kd_alloc_array(&s.chosen, set->count, 1, err);
    if (status == KD_OK)
        status = choose_lines(&s, (char *)text, size, nul, err);
    kd_free(text);
    kd_free(s.by_path);
    if (status != KD_OK) {
        kd_free(s.chosen);
        return status;
    }
    *chosen = s.chosen;
    return KD_OK;
}

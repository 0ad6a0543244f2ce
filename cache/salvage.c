#include "cache/salvage.h"

#include <string.h>

#include "cache/entry.h"
#include "cache/record.h"
#include "common/base/progress.h"
#include "common/base/threads.h"

/* Pages and nodes: see validate.c. */
enum { PAGE = 4096, PAGE_HEAD = 16, NODE_HEAD = 8, MAX_KEY = 511, P_LEAF = 2, F_BIGDATA = 1 };
/* Nodes of a sound leaf lie apart, in less than a page. A few of damaged size may lie over others; one that is listed a thousand times isn't a thousand entries. */
enum { LEAF_BYTES = 4 * PAGE };

kd_status kd_salvage_open(kd_salvage *s, const char *path, kd_err *err)
{
    memset(s, 0, sizeof *s);
    s->path = path;
    KD_TRY(kd_io_map(path, &s->map, err));
    s->pages = (s->map.size + PAGE - 1) / PAGE;
    return KD_OK;
}

void kd_salvage_close(kd_salvage *s)
{
    kd_io_unmap(&s->map);
    memset(s, 0, sizeof *s);
}

typedef struct piece {
    const uint8_t *from;
    uint8_t *to;
    size_t size;
} piece;

static kd_status copy_piece(void *arg, kd_err *err)
{
    piece *p = arg;
    (void)err;
    memcpy(p->to, p->from, p->size);
    return KD_OK;
}

kd_status kd_salvage_read(const kd_salvage *s, uint64_t at, size_t size, uint8_t *out, kd_err *err)
{
    piece p = {s->map.data + at, out, size};
    if (at > s->map.size || size > s->map.size - at)
        return kd_fail(err, KD_EDAMAGED, "%s: ends before byte %llu", s->path, (unsigned long long)(at + size));
    return size == 0 ? KD_OK : kd_io_guard(s->map.data, s->map.size, s->path, copy_piece, &p, err);
}

static int fits(const kd_salvage *s, uint64_t at, uint64_t size)
{
    return at <= s->map.size && size <= s->map.size - at;
}

/* The database of a record, which its header says; KD_DBS: it isn't one. */
static kd_db record_db(const uint8_t *head)
{
    kd_record_place p;
    return kd_record_locate(&p, head) ? (kd_db)(KD_DB_FEATURES + (int)p.feature) : KD_DBS;
}

static kd_status visit_node(const kd_salvage *s, const uint8_t *page, uint64_t page_at, size_t node, size_t *left, kd_salvage_visit visit, void *ctx, kd_err *err)
{
    const uint8_t *p = page + node;
    unsigned flags = (unsigned)kd_get_le(p + 4, 2);
    size_t key_size = (size_t)kd_get_le(p + 6, 2), head = node + NODE_HEAD + key_size;
    kd_salvaged item = {.db = KD_DB_META, .key = {p + NODE_HEAD, key_size}, .at = page_at + head, .size = (size_t)kd_get_le(p, 4)};
    size_t inside = flags & F_BIGDATA ? 8 : item.size; /* of the page, behind the key */
    if (key_size == 0 || key_size > MAX_KEY || head > PAGE || inside > PAGE - head || head + inside - node > *left)
        return KD_OK;
    *left -= head + inside - node;
    if (key_size == KD_KEY_BYTES) { /* a record; a large one is found by itself */
        item.db = flags & F_BIGDATA || item.size < KD_RECORD_HEADER_BYTES ? KD_DBS : record_db(page + head);
    } else if (key_size == KD_VIEW_KEY_BYTES) {
        item.db = KD_DB_VIEWS;
    } else if (key_size == KD_IMAGE_KEY_BYTES) {
        item.db = KD_DB_IMAGES;
    }
    if (flags & F_BIGDATA) {
        uint64_t first = kd_get_le(page + head, 8);
        if (first > s->map.size / PAGE)
            return KD_OK;
        item.at = first * PAGE + PAGE_HEAD;
    }
    return item.db != KD_DBS && fits(s, item.at, item.size) ? visit(ctx, &item, err) : KD_OK;
}

static kd_status visit_leaf(const kd_salvage *s, const uint8_t *page, uint64_t number, kd_salvage_visit visit, void *ctx, kd_err *err)
{
    size_t left = LEAF_BYTES, lower = (size_t)kd_get_le(page + 12, 2), upper = (size_t)kd_get_le(page + 14, 2);
    if (kd_get_le(page, 8) != number || kd_get_le(page + 10, 2) != P_LEAF || lower < PAGE_HEAD || lower > upper || upper > PAGE)
        return KD_OK;
    for (size_t i = PAGE_HEAD; i + 2 <= lower; i += 2) {
        size_t node = (size_t)kd_get_le(page + i, 2);
        if (node >= upper && node + NODE_HEAD <= PAGE)
            KD_TRY(visit_node(s, page, number * PAGE, node, &left, visit, ctx, err));
    }
    return KD_OK;
}

/* A record that begins a page of its own, behind the page's head, whatever that says. */
static kd_status visit_record(const kd_salvage *s, const uint8_t *page, uint64_t number, kd_salvage_visit visit, void *ctx, kd_err *err)
{
    uint8_t key[KD_KEY_BYTES];
    kd_record_place p;
    kd_salvaged item = {.key = {key, sizeof key}, .at = number * PAGE + PAGE_HEAD};
    if (!kd_record_locate(&p, page + PAGE_HEAD) || !fits(s, item.at, p.size))
        return KD_OK;
    kd_key_encode(key, &p.key);
    item.db = (kd_db)(KD_DB_FEATURES + (int)p.feature);
    item.size = (size_t)p.size;
    return visit(ctx, &item, err);
}

kd_status kd_salvage_scan(kd_salvage *s, kd_salvage_visit visit, void *ctx, kd_err *err)
{
    uint8_t page[PAGE];
    kd_progress *progress = kd_progress_create("scanning", "page", s->pages, 0, 0);
    kd_status status = KD_OK;
    for (uint64_t i = 0; i < s->pages && status == KD_OK; i++) {
        size_t n = s->map.size - i * PAGE < PAGE ? (size_t)(s->map.size - i * PAGE) : PAGE;
        kd_err unread;
        memset(page + n, 0, PAGE - n); /* the last page of a cut file */
        if (kd_salvage_read(s, i * PAGE, n, page, &unread) != KD_OK) {
            s->unreadable++;
            continue;
        }
        status = visit_leaf(s, page, i, visit, ctx, err);
        if (status == KD_OK)
            status = visit_record(s, page, i, visit, ctx, err);
        if (status == KD_OK && kd_stop_requested() != KD_OK)
            status = kd_fail(err, kd_stop_requested(), "%s: interrupted after %llu of %llu pages", s->path, (unsigned long long)i, (unsigned long long)s->pages);
        kd_progress_update(progress, i + 1, 0, NULL);
    }
    kd_progress_finish(progress);
    return status;
}
